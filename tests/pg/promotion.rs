//! The relay's upstream is a standby, which is promoted in mid-stream.

use walrelay_testkit::{Cluster, Receivewal, Relay, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(the_upstream_is_promoted, a_promotion_goes_down_a_chain);

fn the_upstream_is_promoted(server: &Server) {
    let a = Cluster::builder(server).name("a").seg_mb(1).start();
    let b = a.standby().name("b").start();
    let relay = relay_below(&b).start();
    follows_the_promotion(server, &a, &b, &[&relay]);
    relay.assert_calm();
}

fn a_promotion_goes_down_a_chain(server: &Server) {
    let a = Cluster::builder(server).name("a").seg_mb(1).start();
    let b = a.standby().name("b").start();
    let upper = relay_below(&b).name("upper").start();
    let lower = upper.builder_below().name("lower").start();
    follows_the_promotion(server, &a, &b, &[&upper, &lower]);
    upper.assert_calm();
    lower.assert_calm();
}

/// `relays` are a chain below `b`.
fn follows_the_promotion(server: &Server, a: &Cluster, b: &Cluster, relays: &[&Relay]) {
    let last_relay = relays.last().expect("at least one");
    last_relay.create_slots(&["c", "archive"]);
    let archive = Receivewal::start(server, &last_relay.conninfo(), "archive");
    let c = a.standby().name("c").follow(&last_relay.conninfo()).slot("c").start();
    let walreceiver = c.sql("select pid from pg_stat_wal_receiver");
    a.pgbench_init(1);
    archive.wait_for_segment(&a.switch_wal());

    // While WAL flows: what B has received beyond its last whole record goes, everywhere.
    let pgbench = a.spawn_pgbench(2);
    c.wait_for_replay(a.flush_lsn());
    b.promote();
    pgbench.stop();
    b.pgbench(2, 100);

    let last = b.switch_wal();
    archive.wait_for_segment(&last);
    for relay in relays {
        relay.wait_for_segment(&last);
        compare::assert_timelines(b, &relay.wal_dir(), 2);
    }
    compare::assert_timelines(b, &archive.wal_dir(), 2);
    c.wait_for_replay(b.settled_lsn());
    compare::assert_dumps(b, &c);
    assert_eq!(c.sql("select pid, received_tli from pg_stat_wal_receiver"), format!("{walreceiver}|2"));
    archive.stop();
}
