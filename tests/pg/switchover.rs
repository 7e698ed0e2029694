//! A planned switchover, and back again: timelines 1, 2, 3.

use walrelay_testkit::{Cluster, Receivewal, Relay, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(there_and_back_again);

fn there_and_back_again(server: &Server) {
    let mut a = Cluster::builder(server).name("a").seg_mb(1).conf("wal_log_hints = on").start();
    let mut b = a.standby().name("b").start();
    // Who is a standby of the relay must not become its upstream before it is a primary.
    let upstream = Relay::hosts(&[&a, &b]) + " target_session_attrs=primary";
    let relay = relay_below(&a).upstream(&upstream).start();
    relay.create_slots(&["a", "b", "c", "archive"]);
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    let c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);

    switch(&mut a, &mut b, &relay);
    a.become_standby("a", &relay.conninfo(), Some("a"));
    a.start();
    b.pgbench(2, 100);
    a.wait_for_replay(b.settled_lsn());
    compare::assert_dumps(&b, &a);
    a.wait_for_sql("select status, received_tli from pg_stat_wal_receiver", "streaming|2");

    switch(&mut b, &mut a, &relay);
    b.become_standby("b", &relay.conninfo(), Some("b"));
    b.start();
    a.pgbench(2, 100);

    let last = a.switch_wal();
    relay.wait_for_segment(&last);
    archive.wait_for_segment(&last);
    compare::assert_timelines(&a, &relay.wal_dir(), 3);
    compare::assert_timelines(&a, &archive.wal_dir(), 3);
    for standby in [&b, &c] {
        standby.wait_for_replay(a.settled_lsn());
        compare::assert_dumps(&a, standby);
        standby.wait_for_sql("select received_tli from pg_stat_wal_receiver", "3");
    }
    archive.stop();
}

/// A clean stop of the primary, the standby's promotion, and what pg_rewind makes of the old one.
fn switch(primary: &mut Cluster, standby: &mut Cluster, relay: &Relay) {
    let end = primary.settled_lsn();
    // Its last words, the shutdown checkpoint, go to everybody who is connected.
    primary.stop();
    standby.wait_for_replay(end);
    let tli = relay.timeline();
    standby.promote();
    relay.wait_for_timeline(tli + 1);
    primary.rewind_to(standby);
}
