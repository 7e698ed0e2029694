//! A relay behind a relay.

use walrelay_testkit::{Cluster, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(a_relay_feeds_a_relay);

fn a_relay_feeds_a_relay(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut upper = relay_below(&primary).name("upper").start();
    let lower = upper.builder_below().name("lower").start();
    lower.create_slot("standby");
    let standby = primary.standby().follow(&lower.conninfo()).slot("standby").start();

    primary.pgbench_init(1);
    standby.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &standby);

    // The relay in the middle goes and comes back; the one below asks it for more.
    let pgbench = primary.spawn_pgbench(2);
    upper.restart();
    lower.wait_for_flush(primary.flush_lsn());
    pgbench.stop();

    let last = primary.switch_wal();
    lower.wait_for_segment(&last);
    compare::assert_segments(&primary, &upper.wal_dir(), 5);
    compare::assert_segments(&primary, &lower.wal_dir(), 5);
    standby.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &standby);
    assert_eq!(primary.sql("select slot_name from pg_replication_slots"), "upper");
}
