//! Going back to a timeline that was left, for a sibling that has taken over; and what may happen just then.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use super::*;

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn history(number: u32, fork: Lsn) -> TimelineHistory {
    TimelineHistory::parse(tli(number), format!("1\t{fork}\tx\n").as_bytes()).unwrap()
}

fn path(dir: &Path, number: u32, segment: u64, suffix: &str) -> PathBuf {
    dir.join("pg_wal").join(format!("{number:08X}{segment:016X}{suffix}"))
}

fn last_end(wal: &WalGenerator) -> Lsn {
    *wal.record_ends().last().unwrap()
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// Three ways that part: 1 went on in its own files, 2 was followed from one of them on, 3 is to be.
struct Tree {
    first: WalGenerator,
    second: WalGenerator,
    third: WalGenerator,
    forks: [Lsn; 2],
}

impl Tree {
    fn new() -> Tree {
        let mut first = generator(41);
        first.fill(1_300_000);
        let mut third = first.clone();
        let to_third = first.position();
        first.fill(200_000);
        let mut second = first.clone();
        let to_second = first.position();
        first.fill(1_000_000);
        second.switch_timeline(tli(2));
        second.fill(1_500_000);
        third.switch_timeline(tli(3));
        third.fill(1_200_000);
        Tree { first, second, third, forks: [to_second, to_third] }
    }

    /// A relay that has come to the end of 2.
    fn on_second(&self, config: StoreConfig) -> Opened {
        let mut opened = Opened::with(config);
        let slot = "s".parse().unwrap();
        opened.store.slots().create(&slot, SlotPersistence::Persistent, Some(START)).unwrap();
        opened.append(START, self.first.bytes());
        opened.wait_flushed(last_end(&self.first));
        for (number, fork) in [2, 3].into_iter().zip(self.forks) {
            let content = format!("1\t{fork}\tx\n");
            opened.store.save_history_file(tli(number), content.as_bytes()).unwrap();
        }
        opened.writer.switch_timeline(history(2, self.forks[0])).unwrap();
        let from = self.forks[0].since(START) as usize;
        opened.append(self.forks[0], &self.second.bytes()[from..]);
        opened.wait_flushed(last_end(&self.second));
        opened
    }

    /// Goes to 3 from wherever it is, and to its end.
    fn go_on(&self, opened: &mut Opened) {
        let at = opened.writer.position().unwrap();
        if at.tli == tli(2) {
            let held = opened.writer.find(TimelineHistory::first()).unwrap().expect("1 is held");
            assert_eq!(held.end().lsn, last_end(&self.first));
            opened.writer.take_up(held, tli(3)).unwrap();
        }
        let to_third = history(3, self.forks[1]);
        if opened.writer.position().unwrap().tli == tli(1) {
            match opened.writer.find(to_third.clone()).unwrap() {
                Some(begun) => opened.writer.take_up(begun, tli(3)).unwrap(),
                None => opened.writer.switch_timeline(to_third).unwrap(),
            }
        }
        let at = opened.writer.position().unwrap();
        assert_eq!(at.tli, tli(3));
        opened.append(at.lsn, &self.third.bytes()[at.lsn.since(START) as usize..]);
        opened.wait_flushed(last_end(&self.third));
    }

    /// All three can be read as far as they were confirmed.
    fn check(&self, opened: &Opened) {
        let read = |history: &TimelineHistory, wal: &WalGenerator| {
            let (mut at, end) = (START, last_end(wal));
            while at < end {
                let segno = at.seg_at(identity().seg_size);
                let segment = opened.store.segment_on(history, history.timeline_at(at), segno).unwrap();
                let to = segment.end().min(end).min(segment.start().advance(segment.published()));
                assert!(to > at, "{at} is not readable");
                let range = at.since(START) as usize..to.since(START) as usize;
                assert!(segment.bytes(at.since(segment.start()), range.len()) == &wal.bytes()[range]);
                at = to;
            }
        };
        read(&history(3, self.forks[1]), &self.third);
        for (number, wal) in [(1, &self.first), (2, &self.second)] {
            let last = last_end(wal).seg_at(identity().seg_size).as_u64();
            let whole = |segment: u64| fs::read(path(opened.store.data_dir(), number, segment, "")).unwrap();
            for segment in if number == 1 { 3 } else { 4 }..last {
                let from = ((segment - 3) * SEG) as usize;
                assert!(whole(segment) == wal.bytes()[from..][..SEG as usize], "{number}: {segment}");
            }
            let tail = fs::read(path(opened.store.data_dir(), number, last, ".partial")).unwrap();
            let from = last_end(wal).seg_start(identity().seg_size).since(START) as usize;
            let to = last_end(wal).since(START) as usize;
            assert!(tail[..to - from] == wal.bytes()[from..to], "the end of {number}");
        }
    }
}

/// What kill -9 leaves behind any step on the disk: the place before or the place after, all of it, and the way on.
#[test]
fn a_crash_at_any_step_of_going_back_loses_nothing() {
    let (dir, copies) = (crate::permissions::private_tempdir(), crate::permissions::private_tempdir());
    let tree = Tree::new();
    let mut opened = tree.on_second(config(dir.path(), WalWrite::Pwrite));
    wait("names", || path(dir.path(), 2, 4, "").exists() && path(dir.path(), 1, 4, "").exists());
    // As a crash in other moments leaves them: a whole segment without its name, one that was to come next.
    fs::rename(path(dir.path(), 1, 3, ""), path(dir.path(), 1, 3, ".partial")).unwrap();
    fs::write(path(dir.path(), 1, 6, ".partial"), vec![0; SEG as usize]).unwrap();
    let (from, to) = (dir.path().to_owned(), copies.path().to_owned());
    let left = Rc::new(RefCell::new(Vec::new()));
    let leave = {
        let left = left.clone();
        move || {
            let number = left.borrow().len();
            let place = to.join(number.to_string());
            copy(&from, &place);
            left.borrow_mut().push(place);
        }
    };
    let held = steps::watch(leave, || {
        let held = opened.writer.find(TimelineHistory::first()).unwrap().unwrap();
        let end = held.end();
        opened.writer.take_up(held, tli(3)).unwrap();
        opened.writer.switch_timeline(history(3, tree.forks[1])).unwrap();
        end
    });
    assert_eq!(held, TimelinePosition { tli: tli(1), lsn: last_end(&tree.first) });
    let places = left.take();
    // A name, a file removed, the note twice, the new file, and what each of them takes.
    assert!(places.len() >= 8, "{places:?}");
    let mut seen = Vec::new();
    for place in &places {
        let mut after = Opened::open(place);
        let tip = after.store.tip().unwrap();
        let expected = match tip.tli.as_u32() {
            1 => last_end(&tree.first),
            2 => last_end(&tree.second),
            _ => tree.forks[1],
        };
        assert_eq!((tip.write_lsn, tip.flush_lsn), (expected, expected), "{tip:?} at {}", place.display());
        assert!(after.store.missing_segments().unwrap().is_empty());
        seen.push(tip.tli.as_u32());
        tree.go_on(&mut after);
        tree.check(&after);
        after.stop();
    }
    seen.dedup();
    assert_eq!(seen, [2, 1, 3], "never back");
    tree.go_on(&mut opened);
    tree.check(&opened);
}

/// What is found may lie far behind the end, where retention is about to remove WAL.
#[test]
fn what_was_found_stays_until_it_is_taken_up_or_let_go() {
    let tree = Tree::new();
    let finished = |dir: &Path| path(dir, 1, 3, "").exists();
    for take_up in [true, false] {
        let dir = crate::permissions::private_tempdir();
        let mut opened =
            tree.on_second(StoreConfig { wal_keep_size: 0, ..config(dir.path(), WalWrite::Pwrite) });
        wait("names", || finished(dir.path()));
        let held = opened.writer.find(TimelineHistory::first()).unwrap().unwrap();
        opened.store.drop_slot("s", 1).unwrap();
        opened.store.remove_old_wal().unwrap();
        assert!(finished(dir.path()), "removed under the writer's hands");
        if take_up {
            opened.writer.take_up(held, tli(3)).unwrap();
            assert_eq!(opened.store.tip().unwrap().flush_lsn, last_end(&tree.first));
        } else {
            drop(held);
        }
        opened.store.remove_old_wal().unwrap();
        assert!(!finished(dir.path()));
    }
}

/// Retention has decided to remove it, and may be at it: it cannot be gone on with.
#[test]
fn what_retention_is_about_to_remove_is_not_gone_back_to() {
    let dir = crate::permissions::private_tempdir();
    let tree = Tree::new();
    let mut opened = tree.on_second(config(dir.path(), WalWrite::Pwrite));
    let beyond = last_end(&tree.first).advance(SEG).seg_start(identity().seg_size);
    opened.store.drop_slot("s", 1).unwrap();
    let decide = |keep: Lsn| {
        let ends = holds::Ends { keep_size: keep, recovery: keep, slots: Lsn::INVALID };
        opened.store.holds().decide(identity().seg_size, || Some(ends));
    };
    decide(tree.forks[1]);
    let found = opened.writer.find(TimelineHistory::first()).unwrap();
    assert!(found.is_some(), "its end is not touched");
    drop(found);
    decide(beyond);
    assert!(opened.writer.find(TimelineHistory::first()).unwrap().is_none());
    let end = last_end(&tree.second);
    let early = TimelineHistory::parse(
        tli(4),
        format!("1\t{}\tx\n2\t{}\tx\n", tree.forks[0], tree.forks[0]).as_bytes(),
    );
    let error = opened.writer.switch_timeline(early.unwrap()).unwrap_err().to_string();
    assert!(error.contains("has been removed here"), "{error}");
    assert_eq!(opened.store.tip().unwrap().write_lsn, end);
}

/// What cannot be written again in a new file on a full disk is written in place.
#[test]
fn history_files_are_renewed_in_place_where_there_is_no_room() {
    let dir = crate::permissions::private_tempdir();
    let tree = Tree::new();
    tree.on_second(config(dir.path(), WalWrite::Pwrite)).stop();
    let file = dir.path().join("pg_wal/00000002.history");
    let (before, inode) = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().ino());
    let locked = dir::DataDir::lock(Arc::new(OsDisk), dir.path()).unwrap();
    std::os::unix::fs::symlink("/dev/full", locked.new_file("00000002.history")).unwrap();
    let plan = RecoveryPlan {
        how: WalWrite::Pwrite,
        magic: None,
        timeline: Some(tli(2)),
        durable: None,
        confirmed: None,
        unsynced: false,
    };
    let recovered = recovery::recover(&locked, identity(), &plan).unwrap().unwrap();
    assert_eq!(recovered.verifier.verified_end(), Some(last_end(&tree.second)));
    assert_eq!((fs::read(&file).unwrap(), fs::metadata(&file).unwrap().ino()), (before, inode));
}
