//! What the cuts have found, told one by one.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use walrelay::disk::sim::SimDisk;
use walrelay::store::{SlotPersistence, Stepped, Store, UpstreamParameters};
use walrelay_proto::{Lsn, TimelineHistory, TimelineId};

use super::workload::{START, Tree, config, identity, tli};

fn open(disk: &SimDisk) -> Stepped {
    Store::open_on(Arc::new(disk.clone()), config()).expect("it starts")
}

/// A relay that has received so much of the first timeline.
fn received(disk: &SimDisk, tree: &Tree, bytes: usize) -> Stepped {
    let mut it = open(disk);
    it.store.attach(identity(), UpstreamParameters::default()).expect("the disk takes it");
    it.writer.begin(identity(), TimelineHistory::first(), START);
    it.writer.note_followed().expect("the disk takes it");
    receive(&mut it, tree, TimelineId::FIRST, bytes);
    it
}

fn receive(it: &mut Stepped, tree: &Tree, tli: TimelineId, bytes: usize) {
    let at = it.writer.position().expect("it has begun");
    assert_eq!(at.tli, tli);
    it.writer.append(at.lsn, &tree.bytes(tli)[at.lsn.since(START) as usize..bytes]).expect("it is WAL");
    it.writer.commit();
    while it.flushing.step() {}
}

fn restart_lsn(it: &Stepped) -> Option<Lsn> {
    it.store.slots().get("s").expect("it is there").restart_lsn
}

/// Else WAL is removed that its consumer needs when it comes over.
#[test]
fn what_a_slot_has_confirmed_of_a_timeline_that_was_left_never_counts_on_another() {
    let tree = Tree::new();
    let disk = SimDisk::new();
    let mut it = received(&disk, &tree, 2_000_000);
    let name = "s".parse().expect("it is one");
    it.store.slots().create(&name, SlotPersistence::Persistent, Some(START)).expect("the disk takes it");
    let slot = it.store.slots().acquire("s", 1).expect("it is free");
    slot.confirm_flush(|| Some(START.advance(1_900_000)));
    drop(slot);
    assert!(it.retaining.pass(Instant::now()), "it is saved there");
    let second = tree.history(tli(2));
    let (fork, _) = second.switch_point(TimelineId::FIRST).expect("it forks off there");
    assert!(fork < START.advance(1_900_000));
    it.store.save_history_file(tli(2), tree.history_file(tli(2)).as_bytes()).expect("the disk takes it");
    it.writer.switch_timeline(second).expect("it goes over");
    receive(&mut it, &tree, tli(2), 2_200_000);
    assert_eq!(restart_lsn(&it), Some(fork));
    // Before retention has saved anything.
    for seed in 0..8 {
        let crashed = disk.crash(seed);
        let mut again = open(&crashed);
        assert_eq!((again.store.history().tli(), restart_lsn(&again)), (tli(2), Some(fork)));
        // The same on the way back, where there is more behind the fork from the start.
        let slot = again.store.slots().acquire("s", 1).expect("it is free");
        slot.confirm_flush(|| Some(START.advance(1_800_000)));
        drop(slot);
        assert!(again.retaining.pass(Instant::now()));
        let held = again.writer.find(TimelineHistory::first()).expect("it can be read").expect("it is held");
        again.writer.take_up(held, tli(3)).expect("it goes back");
        let back = open(&crashed.crash(seed));
        assert_eq!((back.store.history().tli(), restart_lsn(&back)), (TimelineId::FIRST, Some(fork)));
    }
}

/// The next one would say yes, or for ever no; either way nobody knows which names are durable.
#[test]
fn a_failed_sync_of_pg_wal_stops_the_store_whoever_asked_for_it() {
    let tree = Tree::new();
    for is_history in [true, false] {
        let disk = SimDisk::new();
        let mut it = received(&disk, &tree, 2_500_000);
        let done = if is_history {
            // The file's own sync comes first.
            disk.fail_at(disk.operations() + 5, libc::EIO);
            it.store.save_history_file(tli(2), tree.history_file(tli(2)).as_bytes()).is_ok()
        } else {
            // Slots are saved already, and two segments are removed.
            it.store
                .slots()
                .create(&"s".parse().expect("it is one"), SlotPersistence::Persistent, None)
                .expect("room");
            disk.fail_at(disk.operations() + 3, libc::EIO);
            it.retaining.pass(Instant::now())
        };
        assert!(!done, "history: {is_history}");
        let reason = it.store.failed().now_or_never().expect("it goes on");
        assert!(reason.contains("could not sync pg_wal"), "{reason}");
    }
}

/// As on a disk that hangs, in a world that one thread steps: what has not come back counts neither as done nor as failed.
#[test]
fn a_disk_that_hangs_holds_up_what_is_confirmed_and_no_more() {
    let tree = Tree::new();
    let disk = SimDisk::new();
    let mut it = received(&disk, &tree, 300_000);
    let at = it.writer.position().expect("it has begun").lsn;
    let confirmed = it.store.tip().expect("there is WAL").flush_lsn;
    // Two new files, and the first of the segments is complete.
    let bytes = &tree.bytes(TimelineId::FIRST)[at.since(START) as usize..2_300_000];
    it.writer.append(at, bytes).expect("it is WAL");
    it.writer.commit();
    disk.hang();
    assert!(!it.flushing.step() && !it.flushing.step());
    let tip = it.store.tip().expect("there is WAL");
    assert_eq!(tip.flush_lsn, confirmed);
    assert!(tip.write_lsn > confirmed.advance(1_900_000), "consumers get it");
    assert!(it.store.failed().now_or_never().is_none());
    disk.release();
    while it.flushing.step() {}
    assert_eq!(it.store.tip().map(|tip| tip.flush_lsn), Some(tip.write_lsn));
    for seed in 0..8 {
        let found = open(&disk.crash(seed)).store.tip().expect("there is WAL");
        assert!(found.flush_lsn >= tip.write_lsn, "{found:?}");
    }
}
