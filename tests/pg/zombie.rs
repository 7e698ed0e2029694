//! Servers that are not followed, while everything stored goes on being served.

use walrelay_testkit::{Cluster, Relay, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(a_zombie_is_not_followed, another_cluster_is_not_followed);

fn a_zombie_is_not_followed(server: &Server) {
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let mut b = a.standby().name("b").start();
    let mut relay = relay_below(&a).upstream(&Relay::hosts(&[&a, &b])).start();
    relay.create_slot("c");
    let c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);
    a.freeze_walsender("walrelay");
    b.wait_for_receive(a.settled_lsn());
    a.kill9();
    b.promote();
    relay.wait_for_timeline(2);
    b.pgbench(1, 50);
    let end = b.settled_lsn();
    relay.wait_for_flush(end);

    // The old primary comes back by itself, writes more than the new one has, and the new one goes.
    a.start();
    a.sql("drop table if exists pgbench_history; create table zombie as select generate_series(1, 100000)");
    b.stop();
    relay.log().wait_for("upstream is on timeline 1, behind timeline 2 that is held here");
    let mark = relay.log().mark();
    relay.restart();
    relay.log().wait_for_after(mark, "upstream is on timeline 1, behind timeline 2 that is held here");
    assert_eq!(a.sql("select count(*) from pg_stat_replication"), "0");
    // Refused, it is left without a slot that would keep WAL for nobody: the one it has is from before.
    assert_eq!(a.sql("select active from pg_replication_slots"), "f");

    // All there is is served to everybody, also to a newcomer.
    c.wait_for_replay(end);
    assert!(relay.flush_lsn() >= end && relay.timeline() == 2);

    b.start();
    b.pgbench(1, 50);
    let last = b.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_timelines(&b, &relay.wal_dir(), 2);
    c.wait_for_replay(b.settled_lsn());
    compare::assert_dumps(&b, &c);
}

fn another_cluster_is_not_followed(server: &Server) {
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let other = Cluster::builder(server).name("other").seg_mb(1).fresh_initdb().start();
    let relay = relay_below(&a).upstream(&Relay::hosts(&[&a, &other])).start();
    relay.create_slot("c");
    let c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);
    let end = a.settled_lsn();
    relay.wait_for_flush(end);
    a.stop();

    let id = "select system_identifier from pg_control_system()";
    relay.log().wait_for(&format!("the upstream's is {}", other.sql(id)));
    let line = relay.log().lines_with("belongs to another cluster", Default::default());
    assert!(line[0].contains(&c.sql(id)), "{line:?}");
    assert_eq!(other.sql("select count(*) from pg_replication_slots"), "0");
    c.wait_for_replay(end);
    assert_eq!(relay.timeline(), 1);

    a.start();
    a.pgbench(1, 50);
    c.wait_for_replay(a.settled_lsn());
    compare::assert_dumps(&a, &c);
}
