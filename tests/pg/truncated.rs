//! Somebody truncates a file that the relay has mapped: never a death without a word.

use std::fs::File;
use std::path::Path;

use walrelay_testkit::{Cluster, Receivewal, Server, Signal, compare, on_one_version, wait_until};

use crate::relay_below;

on_one_version!(
    what_is_stored_through_a_map_and_gone_is_told,
    who_streams_from_it_is_cut_and_the_others_go_on
);

fn truncate(file: &Path, len: u64) {
    let file = File::options().write(true).open(file).expect("the relay has it");
    file.set_len(len).expect("files can be made shorter");
}

/// The store into the map cannot fail otherwise than by SIGBUS.
fn what_is_stored_through_a_map_and_gone_is_told(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).arg("--wal-write").arg("mmap").start();
    primary.switch_wal();
    relay.wait_for_flush(primary.settled_lsn());
    let mut partial =
        std::fs::read_dir(relay.wal_dir()).expect("it is there").flatten().map(|entry| entry.path());
    let partial = partial.find(|path| path.extension().is_some_and(|end| end == "partial"));
    let partial = partial.expect("a segment is being received");
    truncate(&partial, 0);
    primary.sql("create table t as select generate_series(1, 1000)");
    assert_eq!(relay.wait_exit(), Some(74), "{}", relay.log().tail());
    let said = format!("of mapped file \"{}\" (SIGBUS): it was truncated", partial.display());
    assert!(relay.log().text().contains(&said), "{}", relay.log().tail());
}

fn who_streams_from_it_is_cut_and_the_others_go_on(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).start();
    relay.create_slots(&["late", "good"]);
    let mut late = Receivewal::start(server, &relay.conninfo(), "late");
    let good = Receivewal::start(server, &relay.conninfo(), "good");
    let first = primary.switch_wal();
    late.wait_for_segment(&first);
    late.hold();
    // More than the sockets of one that does not read take.
    for _ in 0..24 {
        primary.sql("create table t as select generate_series(1, 40000) i; drop table t");
    }
    let last = primary.switch_wal();
    good.wait_for_segment(&last);
    let names = primary.finished_segments();
    let held = names.iter().filter(|name| **name > first);
    held.for_each(|name| truncate(&relay.wal_dir().join(name), 0));
    late.go_on();
    wait_until("the relay to say that it cannot read them", || {
        !relay.log().lines_with("could not read WAL segment", Default::default()).is_empty()
    });
    // What comes is nobody's loss.
    let next = primary.switch_wal();
    good.wait_for_segment(&next);
    compare::assert_segments(&primary, &good.wal_dir(), 10);
    relay.signal(Signal::TERM);
    assert_eq!(relay.wait_exit(), Some(0), "{}", relay.log().tail());
}
