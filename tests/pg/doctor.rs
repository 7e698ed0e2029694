//! `walrelay doctor`: what goes wrong in practice is provoked, and has to be named.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use walrelay_testkit::{
    Barman, Certificates, Cluster, Hung, Process, Receivewal, Relay, S3, Scratch, Server, on_every_version,
    on_one_version, servers_command, tied_command, wait_for, wait_until,
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
    an_upstream_that_does_not_let_the_relay_in,
    a_full_upstream_is_an_error_only_for_who_has_no_place,
    a_disk_that_does_not_answer,
    targets_that_are_away_or_not_ours,
    a_target_with_holes_that_falls_behind,
    a_bucket_that_takes_nothing,
    a_consumers_receiver_that_does_not_run_after_a_reboot,
    barman_says_that_its_archive_has_failed,
    a_backup_that_waits_for_wal_that_nobody_archives,
    a_consumer_that_is_stopped,
    a_certificate_that_is_not_trusted,
    rules_of_the_relay_that_keep_a_standby_out,
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
    let wrong = relay_below(&primary).arg("--ident-file").arg("/nowhere/ident.conf").prepare();
    finds(&doctor(&wrong, &[]), "configuration", "/nowhere/ident.conf");
    let open = doctor(&relay, &["--http-listen", "0.0.0.0:9187"]);
    finds(&open, "http_exposed", "--http-auth on and --http-ssl on");
    primary.stop();
    finds(&doctor(&relay, &[]), "upstream_unreachable", "listen_addresses");
}

fn a_receiver_that_does_not_run_after_a_reboot(server: &Server) {
    let primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).start();
    relay.wait_for_flush(primary.flush_lsn());
    relay.kill9();
    finds(&doctor(&relay, &[]), "relay_not_running", "systemctl enable --now walrelay");
    primary.wait_for_sql("select count(*) from pg_replication_slots where active", "0");
    primary.sql("select pg_drop_replication_slot('walrelay')");
    finds(
        &doctor(&relay, &[]),
        "upstream_slot_missing",
        "pg_create_physical_replication_slot('walrelay', true)",
    );
}

fn an_upstream_that_does_not_let_the_relay_in(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    primary.sql("create role weak login");
    let relay = relay_below(&primary).upstream(&format!("{} user=weak", primary.conninfo())).prepare();
    finds(&doctor(&relay, &[]), "upstream_role", "ALTER ROLE \"weak\" LOGIN REPLICATION;");
    primary.sql("alter role weak replication connection limit 0");
    let found = doctor(&relay, &[]);
    // Sessions are counted everywhere, walsenders by some releases only.
    let limited = |(_, text): &(String, String)| text.contains("ALTER ROLE \"weak\" CONNECTION LIMIT");
    assert!(found.0 == Some(1) && found.1.iter().any(limited), "{found:#?}");
    primary.sql("alter role weak connection limit -1");
    // Whoever may use a database is not let in for replication by that.
    primary.set_hba("local all all trust\nhost all all 127.0.0.1/32 trust\n");
    primary.reload();
    let found = wait_for("the rules to be in effect", || {
        let found = doctor(&relay, &[]);
        found.1.iter().any(|(code, _)| code == "upstream_hba").then_some(found)
    });
    finds(&found, "upstream_hba", "host  replication  weak");
    primary.set_hba("local all,replication all trust\nhost all,replication all 127.0.0.1/32 trust\n");
    primary.append_conf("wal_level = minimal\nmax_wal_senders = 0");
    primary.restart();
    let found = doctor(&relay, &[]);
    finds(&found, "upstream_wal_level", "ALTER SYSTEM SET wal_level = replica");
    finds(&found, "upstream_max_wal_senders", "max_wal_senders");
}

fn a_full_upstream_is_an_error_only_for_who_has_no_place(server: &Server) {
    let primary = Cluster::builder(server).conf("max_wal_senders = 1").start();
    let mut relay = relay_below(&primary).start();
    relay.wait_for_flush(primary.flush_lsn());
    let found = doctor(&relay, &[]);
    finds(&found, "upstream_max_wal_senders", "the relay has its connection");
    assert_eq!(found.1.len(), 1, "{found:#?}");
    // It has no place any more, and somebody else has it.
    relay.terminate();
    primary.sql("select pg_create_physical_replication_slot('other', true)");
    let other = Receivewal::start(server, &primary.conninfo(), "other");
    primary.wait_for_sql("select count(*) from pg_stat_replication", "1");
    finds(&doctor(&relay, &[]), "upstream_max_wal_senders", "the relay cannot replicate from it");
    drop(other);
}

fn a_disk_that_does_not_answer(server: &Server) {
    let primary = Cluster::builder(server).start();
    let scratch = Scratch::new("doctor");
    let data = scratch.dir("data");
    let relay = relay_below(&primary).data_dir(&data).prepare();
    let hung = Hung::over(&data);
    finds(&doctor(&relay, &[]), "disk_silent", "does not answer");
    drop(hung);
    let found = doctor(&relay, &[]);
    assert_eq!(found, (Some(0), Vec::new()), "{found:#?}");
}

/// Targets before the first start, each with its trouble.
fn targets_that_are_away_or_not_ours(server: &Server) {
    let primary = Cluster::builder(server).start();
    let scratch = Scratch::new("doctor");
    let with = |dir: &Path| relay_below(&primary).arg("--archive").arg(&url(dir)).prepare();
    finds(&doctor(&with(&scratch.join("away")), &[]), "archive_missing", "does not exist");
    let hangs = scratch.dir("hangs");
    let relay = with(&hangs);
    let hung = Hung::over(&hangs);
    finds(&doctor(&relay, &[]), "archive_silent", "whether it is there");
    drop(hung);
    // Ours, and not the servers'.
    let archive = scratch.join("archive");
    fs::create_dir(&archive).expect("the directory is ours");
    let relay = with(&archive);
    let found = doctor(&relay, &[]);
    assert_eq!(found, (Some(0), Vec::new()), "{found:#?}");
    let left: Vec<_> = fs::read_dir(&archive).expect("it is there").collect();
    assert!(left.is_empty(), "{left:?}");
    // As somebody who may not write there.
    let program = readable_binary(&scratch);
    finds(
        &examine(servers_command(&program), &relay, &[]),
        "archive_unwritable",
        "run doctor as the relay's user",
    );
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

fn a_target_with_holes_that_falls_behind(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let scratch = Scratch::new("doctor");
    let archive = scratch.dir("wal");
    let text = format!("[archive.main]\nurl = \"{}\"\n", url(&archive));
    let config = scratch.shared_secret("walrelay.toml", &text).display().to_string();
    let mut relay =
        relay_below(&primary).arg("--config").arg(&config).arg("--admin-role").arg("postgres").start();
    let segment = || {
        primary.sql("create table if not exists t (i int); insert into t values (1)");
        primary.switch_wal()
    };
    let files: Vec<_> = (0..4).map(|_| segment()).collect();
    let last = archive.join(format!("{}.sha256", files[3]));
    wait_until("all to be archived", || last.exists());
    wait_until("all to be well", || doctor(&relay, &[]).0 == Some(0));
    // The oldest may go; what lies between may not.
    let remove = |file: &str| fs::remove_file(archive.join(file)).expect("it is there");
    let there = fs::read_dir(&archive).expect("it is there").map(|it| it.expect("readable").file_name());
    let there = there.filter_map(|name| name.into_string().ok());
    there.filter(|name| name.len() == 24 && *name <= files[0]).for_each(|name| remove(&name));
    let found = doctor(&relay, &[]);
    assert_eq!(found, (Some(0), Vec::new()), "{found:#?}");
    remove(&files[2]);
    let found = wait_for("it to be known that it was taken", || {
        let found = doctor(&relay, &[]);
        found.1.iter().any(|(code, _)| code == "archive_hole").then_some(found)
    });
    finds(&found, "archive_hole", &files[2]);
    fs::copy(primary.wal_dir().join(&files[3]), archive.join(&files[2])).expect("any content will do");

    // Another directory in its place.
    fs::rename(archive.join(".walrelay-archive"), scratch.join("marker")).expect("both are ours");
    finds(&doctor(&relay, &[]), "archive_missing", "is its file system mounted");
    fs::rename(scratch.join("marker"), archive.join(".walrelay-archive")).expect("both are ours");

    relay.psql("dbname=walrelay", &["pause main"]).expect("the relay's user may");
    finds(&doctor(&relay, &[]), "archive_paused", "RESUME");
    let file = segment();
    relay.wait_for_segment(&file);
    relay.terminate();
    finds(&doctor(&relay, &[]), "archive_behind", "1 segments");
}

fn a_bucket_that_takes_nothing(server: &Server) {
    let primary = Cluster::builder(server).start();
    let (scratch, bucket) = (Scratch::new("doctor"), S3::start());
    let text = format!(
        "[archive.main]\nurl = \"s3://wal/main\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath-style = true\n\
         options = {{ access_key_id = \"relay\", secret_access_key = \"secret\" }}\n",
        bucket.endpoint()
    );
    let config = scratch.shared_secret("walrelay.toml", &text).display().to_string();
    let relay = relay_below(&primary).arg("--config").arg(&config).prepare();
    let found = doctor(&relay, &[]);
    assert_eq!(found, (Some(0), Vec::new()), "{found:#?}");
    assert!(bucket.objects().is_empty(), "{:?}", bucket.objects().keys());
    bucket.behave(|it| it.key = Some("another".to_owned()));
    finds(&doctor(&relay, &[]), "archive_unwritable", "credentials");
    bucket.behave(|it| it.hold = true);
    finds(&doctor(&relay, &[]), "archive_silent", "a write");
}

fn a_consumers_receiver_that_does_not_run_after_a_reboot(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).start();
    relay.create_slot("barman");
    let receiver = Receivewal::start(server, &relay.conninfo(), "barman");
    receiver.wait_for_segment(&primary.switch_wal());
    receiver.stop();
    relay.restart();
    let found = wait_for("it to be missed", || {
        let found = doctor(&relay, &[]);
        found.1.iter().any(|(code, _)| code == "slot_unused").then_some(found)
    });
    finds(&found, "slot_unused", "barman cron");
    assert_eq!(found.1.len(), 1, "{found:#?}");
    let _receiver = Receivewal::start(server, &relay.conninfo(), "barman");
    wait_until("all to be well", || doctor(&relay, &[]).0 == Some(0));
}

fn barman_says_that_its_archive_has_failed(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create role barman login superuser");
    primary.sql("create role streaming_barman login replication");
    primary.sql("create table t (i int)");
    let relay = relay_below(&primary).start();
    let host = format!("host=127.0.0.1 port={}", relay.port());
    let settings = format!(
        "conninfo = {host} user=barman dbname=postgres\nstreaming_conninfo = {host} user=streaming_barman\n\
         backup_method = postgres\nstreaming_archiver = on\nslot_name = barman\ncreate_slot = auto\n"
    );
    let barman = Barman::new(server, &settings, "");
    // Twice, because the slot is made first.
    barman.ok(&["cron"]);
    let found = wait_for("its receiver to be there", || {
        barman.run(&["cron"]);
        let found = doctor(&relay, &[]);
        found.1.iter().any(|(code, _)| code == "slot_no_segment").then_some(found)
    });
    let said = barman.run(&["check", "acc"]).text;
    assert!(said.contains("WAL archive: FAILED"), "{said}");
    finds(&found, "slot_no_segment", "WAL archive: FAILED");
    // What doctor says to do.
    let commit = || drop(primary.sql("insert into t values (1)"));
    barman.ok_while(&["switch-wal", "--force", "--archive", "acc"], commit);
    let said = barman.run(&["check", "acc"]).text;
    assert!(!said.contains("WAL archive: FAILED"), "{said}");
    wait_until("doctor to be content", || {
        !doctor(&relay, &[]).1.iter().any(|(code, _)| code == "slot_no_segment")
    });
}

fn a_backup_that_waits_for_wal_that_nobody_archives(server: &Server) {
    let primary =
        Cluster::builder(server).conf("archive_mode = on").conf("archive_command = 'test -z \"%p\"'").start();
    let relay = relay_below(&primary).start();
    let scratch = Scratch::new("backup");
    let mut command = server.lasting("pg_basebackup");
    command.args(["-d", &relay.conninfo(), "-c", "fast", "--no-sync", "-X", "none", "-D"]);
    command.arg(scratch.join("data"));
    let mut backup = Process::spawn("pg_basebackup", command, &scratch.join("log"));
    let found = wait_for("it to hang", || {
        let found = doctor(&relay, &[]);
        found.1.iter().any(|(code, _)| code == "upstream_backup_waits").then_some(found)
    });
    finds(&found, "upstream_backup_waits", "archive_command = '/bin/true'");
    primary.sql("alter system set archive_command = '/bin/true'");
    primary.sql("select pg_reload_conf()");
    backup.wait_success();
    wait_until("all to be well", || doctor(&relay, &[]).0 == Some(0));
}

fn a_consumer_that_is_stopped(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).arg("--wal-sender-timeout").arg("20s").start();
    relay.create_slot("s1");
    let mut receiver = Receivewal::start(server, &relay.conninfo(), "s1");
    relay.wait_for_sql("select count(*) from pg_replication_slots where active", "1");
    receiver.hold();
    let found = wait_for("its silence to be noticed", || {
        let found = doctor(&relay, &[]);
        found.1.iter().any(|(code, _)| code == "consumer_silent").then_some(found)
    });
    finds(&found, "consumer_silent", "has said nothing for");
    receiver.go_on();
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

    // The old primary comes back, and is what the relay is pointed at.
    relay.terminate();
    primary.start();
    relay.set_upstream(&primary.conninfo());
    finds(&doctor(&relay, &[]), "upstream_older_timeline", "pg_rewind");
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
    // It says so only when its archive is away.
    let command = "ls $(dirname /usr/%f) > /dev/null || exit 200; cp /usr/%f %p";
    consumer.sql(&format!("alter system set restore_command = '{command}'"));
    consumer.sql("select pg_reload_conf()");
    wait_until("it to be in effect", || consumer.sql("show restore_command").contains("exit 200"));
    finds(&tried(), "restore_away", "when its archive is away");
    consumer.sql("alter system set restore_command = 'true'");
    consumer.sql("select pg_reload_conf()");
    wait_until("it to be in effect", || consumer.sql("show restore_command") == "true");
    finds(&tried(), "restore_lies", "does not exist");
}

/// The upstream is a relay, which has a certificate.
fn a_certificate_that_is_not_trusted(server: &Server) {
    let primary = Cluster::builder(server).start();
    let (ours, others) = (Certificates::new(), Certificates::new());
    let above = relay_below(&primary).tls(&ours).start();
    above.wait_for_flush(primary.flush_lsn());
    let trusting = |certificates: &Certificates| {
        let upstream = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=postgres sslmode=verify-full sslrootcert={}",
            above.port(),
            certificates.file("root.crt")
        );
        relay_below(&primary).upstream(&upstream).prepare()
    };
    finds(&doctor(&trusting(&others), &[]), "upstream_tls", "openssl s_client");
    let found = doctor(&trusting(&ours), &[]);
    assert_eq!(found, (Some(0), Vec::new()), "{found:#?}");
}

/// The line that it says is the one that is missing.
fn rules_of_the_relay_that_keep_a_standby_out(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create role rep login replication");
    let mut relay = relay_below(&primary).start();
    let standby =
        primary.standby().name("s1").follow(&relay.conninfo().replace("user=postgres", "user=rep")).start();
    primary.sql("create table t as select 1 as n");
    standby.wait_for_replay(primary.flush_lsn());
    let consumer = sql_of(&standby);
    let with = ["--consumer", consumer.as_str()];
    let others = "host all all 127.0.0.1/32 trust\nhost replication postgres,walrelay 127.0.0.1/32 trust\n";
    let hba = relay.hba_file();
    let line = |found: &(Option<i32>, Vec<(String, String)>)| {
        let (_, text) = found.1.iter().find(|(code, _)| code == "consumer_hba").expect("it is found");
        let line = text.split(&format!("\"{}\": ", hba.display())).nth(1).expect("the file is named");
        line.split(';').next().expect("there is a line").to_owned()
    };
    for (before, said) in [
        ("", format!("no line of \"{}\" lets role \"rep\" from 127.0.0.1 in", hba.display())),
        (
            "host replication rep all reject\n",
            format!("{}:1 rejects role \"rep\" from 127.0.0.1", hba.display()),
        ),
    ] {
        relay.set_hba(&format!("{before}{others}"));
        let mark = relay.log().mark();
        relay.reload();
        relay.log().wait_for_after(mark, "configuration reloaded");
        let found = doctor(&relay, &with);
        // As JSON has it.
        finds(&found, "consumer_hba", &said.replace('"', "\\\""));
        // Now it is so.
        let pid = relay.sql("select pid from pg_stat_replication where application_name = 's1'");
        assert_eq!(relay.sql(&format!("select pg_terminate_backend({pid})")), "t");
        wait_until("it to be kept out", || standby.sql("select count(*) from pg_stat_wal_receiver") == "0");
        let line = line(&found);
        // This machine has no password to give.
        relay.set_hba(&format!("{}\n{before}{others}", line.replace("scram-sha-256", "trust")));
        let mark = relay.log().mark();
        relay.reload();
        relay.log().wait_for_after(mark, "configuration reloaded");
        primary.sql("insert into t values (2)");
        standby.wait_for_replay(primary.flush_lsn());
        let found = doctor(&relay, &with);
        assert!(found.1.iter().all(|(code, _)| code != "consumer_hba"), "{line}: {found:#?}");
    }
}
