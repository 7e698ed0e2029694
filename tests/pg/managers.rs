//! The primary is lost, and a tool that people use promotes a standby by itself: it fences and drains the relay, and nothing that
//! was acknowledged is missing.

use std::path::PathBuf;

use walrelay_proto::Lsn;
use walrelay_testkit::drill::Clients;
use walrelay_testkit::patroni::script;
use walrelay_testkit::repmgr::{self, Repmgr};
use walrelay_testkit::{
    Cluster, Mark, Patroni, Relay, Scratch, Server, on_one_version, on_versions, patroni, wait_until,
};

use crate::restore::readable_binary;
use crate::walrelay;

on_one_version!(patroni_promotes_without_loss);
// Debian has it for its own version.
on_versions!([pg15 = 15] repmgr_promotes_without_loss);

const CLIENTS: usize = 2;

/// A relay that has not been started, and is told later whom to follow.
fn prepared_relay(server: &Server) -> Relay {
    Relay::builder_on(walrelay(), server, "").arg("--wal-keep-size").arg("1GB").prepare()
}

fn restore_command(scratch: &Scratch, relay: &Relay) -> String {
    let program = readable_binary(scratch);
    format!(
        "\"{}\" restore --from \"{}\" --require-relays 1 --require-timeout 0 %f %p",
        program.display(),
        relay.conninfo()
    )
}

/// A script that fences the relay, and then does something else.
fn fence(scratch: &Scratch, relay: &Relay, reason: &str, then: &str) -> PathBuf {
    let (program, relay) = (scratch.join("walrelay"), relay.conninfo());
    let fence = format!(
        "\"{}\" fence --relay \"{relay}\" --sync-names walrelay --reason {reason}",
        program.display()
    );
    script(scratch, "fence", &format!("{fence}{then}"))
}

/// The relay has said about timeline 2 that everything was kept.
#[track_caller]
fn assert_kept(relay: &Relay) {
    relay.wait_for_timeline(2);
    let part = "promotion to timeline 2 at ";
    relay.log().wait_for(part);
    let said = relay.log().lines_with(part, Mark::default());
    assert!(said.len() == 1 && said[0].contains("kept everything acknowledged"), "{said:?}");
    relay.log().wait_for("is passed: timeline 2 is followed");
}

fn patroni_promotes_without_loss(server: &Server) {
    if !patroni::is_here() {
        eprintln!("NOT RUN: there is no Patroni, see `make setup`");
        return;
    }
    let settings = "ttl: 20\nloop_wait: 1\nretry_timeout: 5\nmaximum_lag_on_failover: 1073741824\n\
                    ignore_slots:\n- name: walrelay\n  type: physical\n\
                    postgresql:\n  use_pg_rewind: true\n  parameters:\n    wal_log_hints: 'on'\n    wal_keep_size: 1GB\n\
                    \x20   fsync: 'off'\n    wal_retrieve_retry_interval: 200ms\n\
                    \x20   synchronous_standby_names: walrelay";
    let mut cluster = Patroni::start(server, settings);
    let scratch = Scratch::new("patroni");
    let names = ["a", "b", "c"];
    let mut relay = prepared_relay(server);
    let command = restore_command(&scratch, &relay).replace('\'', "''");
    let fence = fence(&scratch, &relay, "patroni", "");
    for name in names {
        let sections =
            format!("pre_promote: {}\nrecovery_conf:\n  restore_command: '{command}'", fence.display());
        cluster.add(name, &sections);
    }
    relay.set_upstream(&cluster.to_primary());
    cluster.run(0);
    relay.start();
    cluster.run(1);
    cluster.run(2);
    let sync = "select count(*) from pg_stat_replication where sync_state = 'sync' and application_name = 'walrelay'";
    wait_until("the relay to be waited for", || cluster.sql(0, sync).as_deref() == Ok("1"));
    let clients = Clients::at(server, &cluster.to_primary(), CLIENTS);
    assert!(clients.get_more(20));
    cluster.freeze_walsenders(0);
    assert!(clients.get_more(20));
    cluster.kill9(0);

    let promoted = |number: usize| cluster.sql(number, "select pg_is_in_recovery()").as_deref() == Ok("f");
    wait_until("Patroni to promote one", || promoted(1) || promoted(2));
    let primary = if promoted(1) { 1 } else { 2 };
    let to = clients.marks();
    let missing = clients.missing_at(&cluster.conninfo(primary), &[0; CLIENTS], &to);
    assert!(missing.is_empty(), "{missing:?}");
    assert_kept(&relay);
    assert!(clients.get_more(5), "commits go on");

    // The old one comes back, by itself as well.
    cluster.run(0);
    let end = cluster.sql(primary, "select pg_current_wal_flush_lsn()").expect("it is up");
    let end: Lsn = end.parse().expect("a position");
    for number in (0..names.len()).filter(|number| *number != primary) {
        wait_until("the others to follow", || {
            let at =
                cluster.sql(number, "select coalesce(pg_last_wal_replay_lsn(), '0/0')").unwrap_or_default();
            at.parse::<Lsn>().is_ok_and(|at| at >= end)
        });
    }
}

fn repmgr_promotes_without_loss(server: &Server) {
    if !repmgr::is_here() {
        eprintln!("NOT RUN: there is no repmgr, see `make setup`");
        return;
    }
    let scratch = Scratch::new("repmgr");
    let mut a = Cluster::builder(server)
        .name("a")
        .seg_mb(1)
        .conf("wal_log_hints = on")
        .conf("shared_preload_libraries = 'repmgr'")
        .start();
    a.sql("create database repmgr");
    let standbys = ["b", "c"].map(|name| a.standby().name(name).start());
    let [b, c] = &standbys;
    let mut relay = prepared_relay(server);
    relay.set_upstream(&format!("{} target_session_attrs=primary", Relay::hosts(&[&a, b, c])));
    relay.start();
    let command = restore_command(&scratch, &relay);
    for cluster in [&a, b, c] {
        cluster.append_conf(&format!("restore_command = '{command}'"));
        cluster.append_conf("synchronous_standby_names = 'walrelay'");
        cluster.reload();
    }
    a.wait_until_commits_wait();
    let promote = fence(&scratch, &relay, "repmgr", " && exec \"$1/repmgr\" standby promote -f \"$2\"");
    // It is started as every server here is.
    let more = format!(
        "failover=automatic\npromote_command='{} {{bin}} {{conf}}'\n\
         follow_command='{{bin}}/repmgr standby follow -f {{conf}} --upstream-node-id=%n'\n\
         reconnect_attempts=2\nreconnect_interval=1\nmonitor_interval_secs=1\nservice_start_command='true'",
        promote.display()
    );
    let node = |cluster: &Cluster, number, name| Repmgr::new(cluster, number, name, &more);
    let of_a = node(&a, 1, "a");
    of_a.run(&["primary", "register"]);
    let mut others = [node(b, 2, "b"), node(c, 3, "c")];
    for (standby, cluster) in others.iter_mut().zip([b, c]) {
        cluster.wait_for_replay(a.settled_lsn());
        standby.run(&["standby", "register", "--force"]);
    }
    for standby in &mut others {
        standby.watch();
        standby.log().wait_for("monitoring connection to upstream node");
    }
    let clients = Clients::start(&a, CLIENTS, "on");
    assert!(clients.get_more(20));
    for name in ["b", "c"] {
        a.freeze_walsender(name);
    }
    assert!(clients.get_more(20));
    a.kill9();

    let promoted = |cluster: &Cluster| cluster.sql("select pg_is_in_recovery()") == "f";
    wait_until("repmgr to promote one", || promoted(b) || promoted(c));
    let (primary, other, name) = if promoted(b) { (b, c, "b") } else { (c, b, "c") };
    clients.go_to(primary);
    let missing = clients.missing_on(primary, &[0; CLIENTS], &clients.marks());
    assert!(missing.is_empty(), "{missing:?}");
    assert_kept(&relay);
    assert!(clients.get_more(5), "commits go on");
    other.wait_for_replay(primary.settled_lsn());

    Repmgr::wait_for_primary(primary, name);
    primary.sql("checkpoint");
    let to = Repmgr::conninfo(primary);
    of_a.run(&["node", "rejoin", "-d", &to, "--force-rewind", "--no-wait"]);
    a.start();
    a.wait_for_replay(primary.settled_lsn());
}
