//! The other way to store WAL.

use walrelay_testkit::{Cluster, Receivewal, Server, compare, on_one_version_mostly};

use crate::relay_below;

on_one_version_mostly!(through_a_writable_map);

fn through_a_writable_map(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).arg("--wal-write").arg("mmap").start();
    relay.create_slot("archive");
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    primary.pgbench_init(1);
    relay.kill9();
    primary.pgbench(2, 200);
    relay.start();
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    archive.wait_for_segment(&last);
    compare::assert_segments(&primary, &relay.wal_dir(), 10);
    compare::assert_segments(&primary, &archive.wal_dir(), 10);
}
