//! Clusters with the smallest segments, and with large ones.

use walrelay_testkit::{Cluster, Receivewal, Server, compare, on_every_version, on_one_version_mostly};

use crate::relay_below;

on_every_version!(one_megabyte);
on_one_version_mostly!(sixty_four_megabytes);

fn one_megabyte(server: &Server) {
    segments_of(server, 1, 20);
}

fn sixty_four_megabytes(server: &Server) {
    segments_of(server, 64, 2);
}

fn segments_of(server: &Server, megabytes: u32, at_least: usize) {
    let primary = Cluster::builder(server).seg_mb(megabytes).start();
    let relay = relay_below(&primary).start();
    assert_eq!(relay.command("SHOW wal_segment_size"), format!("{megabytes}MB"));
    relay.create_slots(&["standby", "archive"]);
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();

    primary.pgbench_init(2);
    primary.switch_wal();
    primary.pgbench(2, 100);
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    archive.wait_for_segment(&last);
    compare::assert_segments(&primary, &relay.wal_dir(), at_least);
    compare::assert_segments(&primary, &archive.wal_dir(), at_least);
    standby.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &standby);
}
