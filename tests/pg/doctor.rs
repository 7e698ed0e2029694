//! `walrelay doctor`: what goes wrong in practice is provoked, and has to be named.

use std::fs;
use std::process::Command;

use serde_json::Value;
use walrelay_testkit::{
    Cluster, Relay, Scratch, Server, on_every_version, on_one_version, servers_command, tied_command,
    wait_for, wait_until,
};

use crate::restore::readable_binary;
use crate::{relay_below, walrelay};

on_every_version!(all_is_well_and_then_a_standby_is_paused_and_loses_its_slot);
on_one_version!(
    before_the_first_start,
    a_receiver_that_does_not_run_after_a_reboot,
    an_archive_that_fails_and_a_slot_that_was_never_used,
    commits_that_wait_for_a_name_that_nobody_carries,
    two_relays_with_one_slot_and_one_name,
    a_standby_that_is_stuck_on_the_old_timeline,
    restore_commands_that_lie_or_kill,
);

/// What doctor finds: its exit code, and each code that is not well with its message and remedies.
fn doctor(relay: &Relay, more: &[&str]) -> (Option<i32>, Vec<(String, String)>) {
    examine(tied_command(walrelay()), relay, more)
}

fn examine(mut command: Command, relay: &Relay, more: &[&str]) -> (Option<i32>, Vec<(String, String)>) {
    command
        .arg("doctor")
        .args(relay.command_line())
        .args(["--relay", &relay.conninfo(), "--json"])
        .args(more);
    let said = command.output().expect("it can be run");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&said.stderr)));
    let findings = report["findings"].as_array().expect("a list").iter();
    // How fast this machine syncs is no matter of the story's.
    let bad = findings.filter(|it| it["severity"] != "ok" && it["code"] != "disk_sync").map(|it| {
        let remedy: Vec<_> =
            it["remedy"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        let code = it["code"].as_str().expect("a text").to_owned();
        (code, format!("{}: {} -> {}", it["about"], it["message"], remedy.join("; ")))
    });
    let bad: Vec<_> = bad.collect();
    let is_slow = text.contains("\"disk_sync\"") && bad.is_empty();
    (said.status.code().map(|code| if is_slow && code == 1 { 0 } else { code }), bad)
}

/// Insists on this being found, with that word in its text.
#[track_caller]
fn finds(found: &(Option<i32>, Vec<(String, String)>), code: &str, word: &str) {
    assert_eq!(found.0, Some(1), "{found:?}");
    assert!(found.1.iter().any(|(it, text)| it == code && text.contains(word)), "{code}, {word}: {found:#?}");
}

fn sql_of(cluster: &Cluster) -> String {
    format!("{} user=postgres", cluster.conninfo())
}

fn all_is_well_and_then_a_standby_is_paused_and_loses_its_slot(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("s1");
    let standby = primary.standby().name("s1").follow(&relay.conninfo()).slot("s1").start();
    primary.sql("create table t as select 1 as n");
    standby.wait_for_replay(primary.flush_lsn());
    let consumer = sql_of(&standby);
    let with = ["--consumer", consumer.as_str()];
    let found = doctor(&relay, &with);
    assert_eq!(found, (Some(0), Vec::new()), "{found:#?}");

    standby.sql("select pg_wal_replay_pause()");
    wait_until("it to be paused", || standby.sql("select pg_get_wal_replay_pause_state()") == "paused");
    finds(&doctor(&relay, &with), "consumer_paused", "pg_wal_replay_resume()");
    standby.sql("select pg_wal_replay_resume()");

    standby.sql("alter system set primary_slot_name = 's2'");
    standby.sql("select pg_reload_conf()");
    wait_until("its receiver to end", || {
        standby.sql("select count(*) from pg_stat_wal_receiver where status = 'streaming'") == "0"
    });
    let found = doctor(&relay, &with);
    finds(&found, "consumer_slot_missing", "CREATE_REPLICATION_SLOT s2 PHYSICAL");
    // Who is no standby cannot be one of the relay's.
    finds(&doctor(&relay, &["--consumer", &sql_of(&primary)]), "consumer_no_standby", "primary");
}

fn before_the_first_start(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).prepare();
    let found = doctor(&relay, &[]);
    assert_eq!(found, (Some(0), Vec::new()), "{found:#?}");
    primary.stop();
    finds(&doctor(&relay, &[]), "upstream_unreachable", "listen_addresses");
}

fn a_receiver_that_does_not_run_after_a_reboot(server: &Server) {
    let primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).start();
    relay.wait_for_flush(primary.flush_lsn());
    relay.kill9();
    finds(&doctor(&relay, &[]), "relay_not_running", "systemctl enable --now walrelay");
}

fn an_archive_that_fails_and_a_slot_that_was_never_used(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let scratch = Scratch::new("doctor");
    let wal = scratch.join("wal");
    let text = format!("[archive.main]\ncommand = \"test -d {0} && cp %p {0}/%f\"\n", wal.display());
    let config = scratch.shared_secret("walrelay.toml", &text).display().to_string();
    let relay = relay_below(&primary).arg("--config").arg(&config).start();
    relay.command("CREATE_REPLICATION_SLOT barman PHYSICAL");
    primary.switch_wal();
    let found = wait_for("it to fail", || {
        let found = doctor(&relay, &[]);
        found.1.iter().any(|(code, _)| code == "archive_failing").then_some(found)
    });
    finds(&found, "archive_failing", "takes nothing since");
    finds(&found, "slot_not_initialised", "barman cron");
    fs::create_dir(&wal).expect("the directory is ours");
    relay.command("DROP_REPLICATION_SLOT barman");
    wait_until("all to be well", || doctor(&relay, &[]).0 == Some(0));
}

fn commits_that_wait_for_a_name_that_nobody_carries(server: &Server) {
    let primary = Cluster::builder(server).conf("synchronous_standby_names = 'relay2'").start();
    let relay = relay_below(&primary).start();
    finds(&doctor(&relay, &[]), "upstream_nobody_confirms", "relay2");
    primary.sql("alter system set synchronous_standby_names = 'walrelay'");
    primary.sql("alter system set synchronous_commit = 'remote_apply'");
    primary.sql("select pg_reload_conf()");
    let found = wait_for("it to be in effect", || {
        let found = doctor(&relay, &[]);
        found.1.iter().any(|(code, _)| code == "upstream_remote_apply").then_some(found)
    });
    finds(&found, "upstream_remote_apply", "hot standby below the relay");
}

fn two_relays_with_one_slot_and_one_name(server: &Server) {
    let primary = Cluster::builder(server).start();
    let first = relay_below(&primary).start();
    first.wait_for_flush(primary.flush_lsn());
    // The same slot and name, and a directory of its own.
    let second = relay_below(&primary).prepare();
    finds(&doctor(&second, &[]), "upstream_slot_taken", "each relay needs its own --slot");
    let _twin = primary.standby().name("walrelay").start();
    let found = wait_for("it to stream", || {
        let found = doctor(&first, &[]);
        found.1.iter().any(|(code, _)| code == "upstream_name_twice").then_some(found)
    });
    finds(&found, "upstream_name_twice", "application_name of its own");
}

fn a_standby_that_is_stuck_on_the_old_timeline(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).start();
    let promoted = primary.standby().name("next").follow(&relay.conninfo()).start();
    let stuck = primary
        .standby()
        .name("stuck")
        .follow(&relay.conninfo())
        .conf("recovery_target_timeline = 'current'")
        .start();
    primary.sql("create table t as select 1 as n");
    stuck.wait_for_replay(primary.flush_lsn());
    promoted.wait_for_replay(primary.flush_lsn());
    primary.stop();
    promoted.promote();
    relay.set_upstream(&promoted.conninfo());
    relay.restart();
    promoted.sql("insert into t values (2)");
    relay.wait_for_flush(promoted.flush_lsn());
    let consumer = sql_of(&stuck);
    let found = wait_for("it to be stuck", || {
        let found = doctor(&relay, &["--consumer", &consumer]);
        found.1.iter().any(|(code, _)| code == "consumer_old_timeline").then_some(found)
    });
    finds(&found, "consumer_target_timeline", "'latest'");
    finds(&found, "consumer_old_timeline", "stuck on the old one");
}

fn restore_commands_that_lie_or_kill(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    let standby = |name: &str, command: &str| {
        let conf = format!("restore_command = '{command}'");
        primary.standby().name(name).follow(&relay.conninfo()).conf(&conf).start()
    };
    let consumer = standby("good", "false %f");
    let (scratch, user) = (Scratch::new("doctor"), sql_of(&consumer));
    let program = readable_binary(&scratch);
    let tried =
        || examine(servers_command(&program), &relay, &["--try-restore", "--consumer", user.as_str()]);
    let codes = |found: (Option<i32>, Vec<(String, String)>)| {
        found.1.into_iter().map(|(code, _)| code).collect::<Vec<_>>()
    };
    assert!(!codes(tried()).iter().any(|code| code.starts_with("restore_k")));
    consumer.sql("alter system set restore_command = '/nowhere/restore %f %p'");
    consumer.sql("select pg_reload_conf()");
    wait_until("it to be in effect", || consumer.sql("show restore_command").contains("nowhere"));
    finds(&tried(), "restore_kills", "above 125");
    consumer.sql("alter system set restore_command = 'true'");
    consumer.sql("select pg_reload_conf()");
    wait_until("it to be in effect", || consumer.sql("show restore_command") == "true");
    finds(&tried(), "restore_lies", "does not exist");
}
