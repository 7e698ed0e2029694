//! A full disk: the relay waits, serves what it has, can be killed and started, and goes on when there is room.

use std::fs;

use walrelay_testkit::{Cluster, Disk, Server, on_one_version};

use crate::relay_below;

on_one_version!(a_full_disk_is_waited_out_also_by_a_relay_that_was_killed);

fn a_full_disk_is_waited_out_also_by_a_relay_that_was_killed(server: &Server) {
    let disk = Disk::ext4(64);
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).data_dir(disk.join("data")).start();
    primary.sql("create table t (i int, filler text)");
    relay.wait_for_flush(primary.flush_lsn());

    disk.fill_but(0);
    primary.sql("insert into t select i, repeat('x', 500) from generate_series(1, 8000) i");
    relay.log().wait_for("could not allocate WAL segment");
    let held = relay.flush_lsn();
    assert!(relay.is_running());

    // Nothing says that what it has is on the disk, and there is no room for a copy of it: not in the place of segments that were
    // made ahead, either, which are no WAL and go in the next start.
    relay.kill9();
    for file in fs::read_dir(disk.join("data/pg_wal")).expect("it is there").flatten() {
        if file.file_name().to_string_lossy().starts_with("walrelay-new.") {
            fs::remove_file(file.path()).expect("the relay is dead");
        }
    }
    disk.fill_but(0);
    relay.start();
    assert!(relay.flush_lsn() >= held, "{} after {held}", relay.flush_lsn());
    relay.log().wait_for("it is written again in place");

    disk.empty();
    relay.wait_for_flush(primary.flush_lsn());
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    relay.terminate();
    relay.start();
    relay.wait_for_flush(primary.flush_lsn());
}
