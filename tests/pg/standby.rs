//! A hot standby that knows nothing but the relay.

use walrelay_testkit::{Cluster, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(a_standby_streams_through_the_relay);

fn a_standby_streams_through_the_relay(server: &Server) {
    let primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).start();
    relay.create_slot("standby");
    let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();

    primary.pgbench_init(1);
    primary.pgbench(2, 200);
    standby.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &standby);

    let sender = format!("streaming|standby|{}", relay.port());
    standby.wait_for_sql("select status, slot_name, sender_port from pg_stat_wal_receiver", &sender);
    // The primary serves one walsender and keeps one slot, whatever there is below the relay.
    primary.wait_for_sql("select application_name, state from pg_stat_replication", "walrelay|streaming");
    assert_eq!(primary.sql("select slot_name, active from pg_replication_slots"), "walrelay|t");

    drop(standby);
    relay.terminate();
    relay.assert_calm();
}
