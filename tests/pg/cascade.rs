//! A relay behind a relay.

use walrelay_testkit::{Cluster, Receivewal, Relay, Server, compare, on_every_version, on_one_version};

use crate::relay_below;

on_every_version!(a_relay_feeds_a_relay);
on_one_version!(a_consumers_number_ends_nobody_at_the_relay_above);

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

/// Both take their consumers' numbers from the same range: what is sent through the one below is about its own, or about nobody.
fn a_consumers_number_ends_nobody_at_the_relay_above(server: &Server) {
    let primary = Cluster::builder(server).start();
    let upper = relay_below(&primary).name("upper").start();
    let lower = upper.builder_below().name("lower").start();
    lower.create_slot("archive");
    let archive = Receivewal::start(server, &lower.conninfo(), "archive");
    let only = "select pid from pg_stat_replication where state = 'streaming'";
    let pid_at = |relay: &Relay| {
        relay.wait_for_sql(&format!("select count(*) from ({only}) as s"), "1");
        relay.sql(only)
    };
    let (above, below) = (pid_at(&upper), pid_at(&lower));
    let terminate = |pid: &str| lower.sql(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(lower.sql("select pg_terminate_backend(pid) from pg_stat_replication"), "f");
    assert_eq!(pid_at(&lower), below);
    assert_eq!(terminate(&below), "t");
    drop(archive);
    lower.wait_for_sql("select count(*) from pg_stat_replication", "0");
    for pid in [&below, &above] {
        assert_eq!(terminate(pid), "f", "{pid} is nobody's below");
        assert_eq!(lower.sql(&format!("select pg_cancel_backend({pid})")), "f");
    }
    assert_eq!(pid_at(&upper), above, "the lower relay streams as before");
    primary.sql("create table t ()");
    lower.wait_for_flush(primary.flush_lsn());
    // Asked above, it is that relay's, which comes back.
    assert_eq!(upper.sql(&format!("select pg_terminate_backend({above})")), "t");
    upper.wait_for_sql(&format!("select count(*) from ({only}) as s where pid <> {above}"), "1");
    primary.sql("create table u ()");
    lower.wait_for_flush(primary.flush_lsn());
}
