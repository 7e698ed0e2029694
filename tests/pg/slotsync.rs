//! A standby below the relay keeps copies of the primary's logical failover slots.

use walrelay_testkit::{Cluster, Server, on_versions};

use crate::relay_below;

// Failover slots came with 17.
on_versions!([pg17 = 17, pg19 = 19; pg18 = 18] failover_slots_are_synced);

fn failover_slots_are_synced(server: &Server) {
    let primary = Cluster::builder(server).conf("wal_level = logical").start();
    let relay = relay_below(&primary).start();
    relay.create_slot("standby");
    primary.sql("select pg_create_logical_replication_slot('lf', 'pgoutput', false, false, true)");
    let conninfo = format!("{} dbname=postgres", relay.conninfo());
    let standby = primary.standby().follow(&conninfo).slot("standby").conf("hot_standby_feedback = on");
    let standby = standby.conf("sync_replication_slots = on").start();

    let synced = "select slot_name, synced, failover, temporary from pg_replication_slots";
    walrelay_testkit::wait_until("the slot is synced", || {
        // What the slot needs must be on the standby first: consumers confirm, and snapshots are logged, all the time.
        primary.sql("select pg_log_standby_snapshot()");
        primary.sql("select pg_replication_slot_advance('lf', pg_current_wal_lsn())");
        standby.sql(synced) == "lf|t|t|f"
    });
    assert!(standby.log().lines_with("does not exist on", walrelay_testkit::Mark::default()).is_empty());
    relay.assert_calm();
}
