//! Which WAL the relay keeps, and what those are told for whom it did not.

use walrelay_proto::{TimelineId, WalFileName};
use walrelay_testkit::{
    Cluster, Receivewal, Server, compare, on_every_version, on_one_version_mostly, wait_until,
};

use crate::relay_below;

on_every_version!(a_stopped_consumer_holds_up_nobody);
on_one_version_mostly!(slots_keep_wal_up_to_the_limit);

fn slots_keep_wal_up_to_the_limit(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).arg("--wal-keep-size").arg("0");
    let mut relay = relay.arg("--max-slot-wal-keep-size").arg("8MB").start();
    relay.create_slot("absent");
    let reserved = relay.slot_lsn("absent").expect("WAL is reserved");
    let first = WalFileName::new(TimelineId::FIRST, reserved.seg_at(primary.seg_size()));
    let first = relay.wal_dir().join(first.format(primary.seg_size()));

    // Within the limit everything stays, over a restart too.
    primary.switch_wal();
    relay.wait_for_segment(&primary.switch_wal());
    relay.restart();
    assert_eq!(relay.slot_lsn("absent"), Some(reserved));
    assert!(first.exists());

    primary.pgbench_init(1);
    relay.wait_for_segment(&primary.switch_wal());
    relay.log().wait_for("invalidating slot \"absent\"");
    let error = relay
        .try_command(&format!("START_REPLICATION SLOT absent {reserved} TIMELINE 1"))
        .expect_err("the slot is lost");
    assert!(error.0.contains("can no longer access replication slot \"absent\""), "{error}");
    wait_until("old WAL to be removed", || !first.exists());
    relay.command("DROP_REPLICATION_SLOT absent");
}

fn a_stopped_consumer_holds_up_nobody(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).start();
    relay.create_slots(&["stopped", "lively"]);
    let mut stopped = Receivewal::start(server, &relay.conninfo(), "stopped");
    let lively = Receivewal::start(server, &relay.conninfo(), "lively");
    let begin = primary.switch_wal();
    stopped.wait_for_segment(&begin);
    stopped.hold();

    primary.pgbench_init(2);
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    lively.wait_for_segment(&last);
    compare::assert_segments(&primary, &lively.wal_dir(), 10);

    stopped.go_on();
    stopped.wait_for_segment(&last);
    compare::assert_segments(&primary, &stopped.wal_dir(), 10);
}
