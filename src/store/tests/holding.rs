//! Retention on a disk that loses power, or fails, at each of its operations: what is held is there, whoever holds it.

use super::*;
use crate::disk::sim::SimDisk;

/// The segment in which WAL ends.
const LAST: u64 = 11;

fn config() -> StoreConfig {
    StoreConfig {
        data_dir: PathBuf::from("/relay"),
        wal_write: WalWrite::Pwrite,
        wal_keep_size: SEG,
        max_slot_wal_keep_size: Some(6 * SEG),
        max_replication_slots: 10,
    }
}

fn at(segment: u64) -> Lsn {
    Lsn::new(segment * SEG + 64)
}

/// A relay with WAL in nine segments, and what holds it: slots that have moved since they were saved, forwards and back,
/// one that is beyond its limit, and an archive target.
struct Held {
    it: Stepped,
    target: Hold,
    end: Lsn,
}

impl Held {
    fn on(disk: &SimDisk) -> Held {
        let mut it = Store::open_on(Arc::new(disk.clone()), config()).unwrap();
        it.store.attach(identity(), UpstreamParameters::default()).unwrap();
        let target = it.store.holds().register(HoldKind::ArchiveTarget, "main");
        it.writer.begin(identity(), TimelineHistory::first(), START);
        let slots = it.store.slots().clone();
        for (name, segment) in [("forwards", 5), ("back", 9), ("lost", 3)] {
            slots.create(&name.parse().unwrap(), SlotPersistence::Persistent, Some(at(segment))).unwrap();
        }
        let mut wal = generator(60);
        while wal.position() < Lsn::new(LAST * SEG) {
            wal.fill(100_000);
        }
        let end = *wal.record_ends().last().unwrap();
        it.writer.append(START, wal.bytes()).unwrap();
        it.writer.commit();
        while it.flushing.step() {}
        slots.save().unwrap();
        for (name, segment) in [("forwards", 8), ("back", 7)] {
            slots.acquire(name, 1).unwrap().confirm_flush(|| Some(at(segment)));
        }
        target.set(Some(at(6)));
        Held { it, target, end }
    }

    fn pass(&mut self) -> bool {
        self.it.retaining.pass(Instant::now())
    }
}

fn oldest(store: &Store) -> u64 {
    store.oldest().unwrap().as_u64() / SEG
}

/// What a start finds after whatever came in between.
fn check(disk: &SimDisk, end: Lsn, case: &str) {
    let it = Store::open_on(Arc::new(disk.clone()), config()).unwrap();
    assert_eq!(it.store.tip().map(|tip| tip.flush_lsn), Some(end), "{case}");
    let slots = it.store.slots().list();
    assert_eq!(slots.len(), 3, "{case}");
    for slot in slots.iter().filter(|slot| !slot.invalidated) {
        let restart = slot.restart_lsn.unwrap().as_u64() / SEG;
        let stood = match slot.name.as_str() {
            "forwards" => [5, 8],
            "back" => [9, 7],
            _ => [3, 3],
        };
        assert!(stood.contains(&restart), "{case}: {slot:?}");
        assert!(oldest(&it.store) <= restart, "{case}: {slot:?}, and WAL begins at {}", oldest(&it.store));
    }
    assert!(oldest(&it.store) <= 6, "{case}: the target has not got it");
}

#[test]
fn a_pass_removes_just_what_nobody_holds() {
    let mut held = Held::on(&SimDisk::new());
    let who = |held: &Held| held.it.store.who_holds_wal().unwrap();
    let expected = "WAL from 0/500040 on, 6 MB, is kept for slot \"forwards\" as it was saved last";
    assert_eq!(who(&held), expected, "before the first pass");
    let starting = held.it.store.hold_for_start();
    assert_eq!(who(&held), "all WAL is kept until the start has said what it needs");
    assert!(held.pass());
    assert_eq!(
        (oldest(&held.it.store), held.it.store.holds().oldest().unwrap().name.as_str()),
        (3, "the start")
    );
    assert!(!held.it.store.slots().get("lost").unwrap().invalidated, "somebody may have its WAL");
    let other = held.it.store.holds().register(HoldKind::ArchiveTarget, "other");
    drop(starting);
    assert!(held.pass());
    assert_eq!(oldest(&held.it.store), 3, "one has not said what it needs");
    assert!(held.it.store.slots().get("lost").unwrap().invalidated);
    drop(other);
    assert!(held.pass());
    assert_eq!(oldest(&held.it.store), 6, "the target");
    held.target.set(None);
    assert!(held.pass());
    assert_eq!(oldest(&held.it.store), 7, "the slot that went back");
    held.it.store.drop_slot("back", 1).unwrap();
    assert!(held.pass());
    assert_eq!(oldest(&held.it.store), 8, "the other one");
    held.it.store.drop_slot("forwards", 1).unwrap();
    assert!(held.pass());
    assert_eq!(oldest(&held.it.store), LAST - 1, "--wal-keep-size");
}

/// What a target has said is a position on the way before. The new timeline may begin far behind it.
#[test]
fn a_target_that_has_not_seen_a_new_timeline_holds_all_of_it() {
    let mut held = Held::on(&SimDisk::new());
    for name in ["forwards", "back", "lost"] {
        held.it.store.drop_slot(name, 1).unwrap();
    }
    let (seen, segment) = (held.it.store.holds().way(), |segment: u64| Lsn::new(segment * SEG));
    held.target.set_on(seen, Some(segment(LAST)));
    let mut wal = generator(60);
    while wal.position() < segment(8) {
        wal.fill(100_000);
    }
    let (left, second) = (*wal.record_ends().last().unwrap(), TimelineId::new(2).unwrap());
    let history = TimelineHistory::parse(second, format!("1\t{left}\tx\n").as_bytes()).unwrap();
    held.it.writer.switch_timeline(history).unwrap();
    wal.switch_timeline(second);
    while wal.position() < segment(LAST + 2) {
        wal.fill(100_000);
    }
    held.it.writer.append(left, &wal.bytes()[left.since(START) as usize..]).unwrap();
    held.it.writer.commit();
    while held.it.flushing.step() {}
    // Its worker saves once more what it saw before.
    held.target.set_on(seen, Some(segment(LAST)));
    assert!(held.pass());
    assert!(oldest(&held.it.store) <= 8, "WAL begins at {}", oldest(&held.it.store));
    held.target.set_on(held.it.store.holds().way(), Some(segment(9)));
    assert!(held.pass());
    assert_eq!(oldest(&held.it.store), 9);
}

#[test]
fn a_pass_that_is_cut_anywhere_leaves_what_is_held() {
    let (disk, held) = {
        let disk = SimDisk::new();
        let held = Held::on(&disk);
        (disk, held)
    };
    let (before, mut whole) = (disk.operations(), held);
    assert!(whole.pass());
    let count = disk.operations() - before;
    assert!(count >= 6, "slots are saved, three segments removed, names synced: {count} operations");
    for cut in 1..=count {
        for seed in 0..4 {
            let disk = SimDisk::new();
            let mut held = Held::on(&disk);
            assert_eq!(disk.operations(), before);
            disk.die_at(before + cut);
            held.pass();
            assert!(disk.is_dead(), "{cut}");
            let end = held.end;
            drop(held);
            check(&disk.crash(seed), end, &format!("cut at {cut}, seed {seed}"));
        }
        for errno in [libc::EIO, libc::ENOSPC] {
            let disk = SimDisk::new();
            let mut held = Held::on(&disk);
            disk.fail_at(before + cut, errno);
            held.pass();
            let end = held.end;
            if !held.it.store.has_failed() {
                assert!(held.pass(), "it is done by a later pass");
                assert_eq!(oldest(&held.it.store), 6);
            }
            drop(held);
            check(&disk.restart(cut), end, &format!("error {errno} at {cut}"));
            check(&disk.crash(cut), end, &format!("error {errno} at {cut}, and a cut"));
        }
    }
}

/// A timeline that forks off far behind the end, and its history file.
fn second(held: &Held, wal: &WalGenerator) -> (Lsn, TimelineHistory) {
    let tli = TimelineId::new(2).unwrap();
    let fork = *wal.record_ends().iter().find(|end| **end > at(4)).unwrap();
    let content = format!("1\t{fork}\tx\n");
    held.it.store.save_history_file(tli, content.as_bytes()).unwrap();
    (fork, TimelineHistory::parse(tli, content.as_bytes()).unwrap())
}

/// What is saved of slots ends at the fork before the other timeline is shown. Until then they are judged by the end that is
/// left, and where they have come back to may be more than they may keep behind that.
#[test]
fn a_change_of_timeline_that_comes_to_nothing_loses_no_slot() {
    let mut wal = generator(60);
    while wal.position() < Lsn::new(LAST * SEG) {
        wal.fill(100_000);
    }
    let (mut refused, mut done) = (0, 0);
    for operation in 1..=24 {
        let disk = SimDisk::new();
        let mut held = Held::on(&disk);
        let (fork, history) = second(&held, &wal);
        disk.fail_at(disk.operations() + operation, libc::EIO);
        let switched = held.it.writer.switch_timeline(history);
        disk.heal();
        if held.it.store.has_failed() {
            continue;
        }
        assert!(held.pass());
        let slots = held.it.store.slots();
        let [forwards, back] = ["forwards", "back"].map(|name| slots.get(name).unwrap());
        assert!(!forwards.invalidated && !back.invalidated, "{operation}: {forwards:?} {back:?}");
        let expected = match switched {
            Ok(()) => [fork, fork],
            Err(_) => [at(8), at(7)],
        };
        assert_eq!([forwards, back].map(|slot| slot.restart_lsn), expected.map(Some), "{operation}");
        *if switched.is_ok() { &mut done } else { &mut refused } += 1;
    }
    assert!(refused >= 3 && done > 0, "{refused} were refused, {done} done");
}

/// Retention sleeps between two looks just when the writer goes back to another end, and lets go of what it has held for that.
#[test]
fn wal_stays_by_the_end_of_the_moment_when_that_is_decided() {
    let mut wal = generator(60);
    wal.fill(3 * SEG as usize);
    let held = Held::on(&SimDisk::for_threads());
    for name in ["forwards", "back", "lost"] {
        held.it.store.drop_slot(name, 1).unwrap();
    }
    held.target.set(None);
    let (fork, history) = second(&held, &wal);
    let (store, size) = (held.it.store.clone(), identity().seg_size);
    let (is_in, inside) = std::sync::mpsc::channel();
    let (go_on, told) = std::sync::mpsc::channel::<()>();
    let (say, thread) = std::sync::mpsc::channel();
    let keep = std::thread::scope(|threads| {
        // Nobody else gets at who holds what.
        let other = store.clone();
        threads.spawn(move || {
            other.holds().decide(size, || {
                is_in.send(()).unwrap();
                let _ = told.recv();
                None
            })
        });
        inside.recv().unwrap();
        let other = store.clone();
        let retention = threads.spawn(move || {
            say.send(fs::read_link("/proc/thread-self").unwrap()).unwrap();
            other.wal_to_keep(size)
        });
        let stat = Path::new("/proc").join(thread.recv().unwrap()).join("stat");
        wait("retention to wait", || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S ")));
        let (other, end) = (store.clone(), TimelinePosition { tli: history.tli(), lsn: fork });
        threads.spawn(move || other.show_timeline(history, end, true));
        wait("the other timeline", || store.tip().is_some_and(|tip| tip.write_lsn == fork));
        drop(go_on);
        retention.join().unwrap()
    });
    assert!(keep.is_some_and(|keep| keep <= fork.rewind(SEG)), "{keep:?} for {fork}");
}
