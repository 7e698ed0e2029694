//! The upstream stops, or crashes, and comes back.

use walrelay_testkit::{Cluster, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(the_primary_restarts_and_crashes);

fn the_primary_restarts_and_crashes(server: &Server) {
    let mut primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("standby");
    let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();
    primary.pgbench_init(1);

    // A fast shutdown waits for the relay to confirm all of the WAL, so it must.
    primary.stop();
    // What the relay has, it serves meanwhile.
    let last = relay.flush_lsn();
    standby.wait_for_replay(last);
    primary.start();
    primary.pgbench(2, 50);

    primary.kill9();
    primary.start();
    primary.pgbench(2, 50);
    primary.stop_immediately();
    primary.start();
    primary.pgbench(2, 50);

    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_segments(&primary, &relay.wal_dir(), 5);
    standby.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &standby);
}
