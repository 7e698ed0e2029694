//! Many consumers at once.

use walrelay_testkit::{Cluster, Receivewal, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(two_standbys_and_an_archive);

fn two_standbys_and_an_archive(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).start();
    relay.create_slots(&["first", "second", "archive"]);
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    let standbys = ["first", "second"]
        .map(|name| primary.standby().name(name).follow(&relay.conninfo()).slot(name).start());

    primary.pgbench_init(1);
    primary.pgbench(4, 200);
    let last = primary.switch_wal();
    archive.wait_for_segment(&last);
    relay.wait_for_segment(&last);
    compare::assert_segments(&primary, &relay.wal_dir(), 10);
    compare::assert_segments(&primary, &archive.wal_dir(), 10);
    for standby in &standbys {
        standby.wait_for_replay(primary.settled_lsn());
        compare::assert_dumps(&primary, standby);
    }
    archive.stop();
    drop(standbys);
    relay.assert_calm();
}
