//! Segments that are made before they are needed: what they spare the writer, and that nobody takes them for anything else.

use super::*;
use crate::disk::sim::{OperationKind, SimDisk};

const RUN: &str = "/relay";
const MB: u64 = 1 << 20;

/// A store that has begun its first segment, and WAL of five.
struct Begun {
    disk: SimDisk,
    it: Stepped,
    wal: WalGenerator,
    now: Instant,
}

impl Begun {
    fn new() -> Begun {
        let disk = SimDisk::new();
        let mut begun = Begun { it: open(&disk), disk, wal: generator(70), now: Instant::now() };
        begun.it.writer.begin(identity(), TimelineHistory::first(), START);
        begun.wal.fill(4_500_000);
        begun.receive(500_000);
        begun
    }

    /// Takes WAL up to so many bytes from the start, and syncs it.
    fn receive(&mut self, to: u64) {
        let at = self.it.writer.position().unwrap().lsn;
        self.it.writer.append(at, &self.wal.bytes()[at.since(START) as usize..to as usize]).unwrap();
        self.it.writer.commit();
        while self.it.flushing.step() {}
    }

    /// Has segments made as long as there is something to do.
    fn make(&mut self) {
        while self.it.making.step(self.now) {}
    }

    fn later(&mut self) {
        self.now += Duration::from_secs(60);
    }
}

fn open(disk: &SimDisk) -> Stepped {
    let it = Store::open_on(Arc::new(disk.clone()), config(Path::new(RUN), WalWrite::Pwrite)).unwrap();
    it.store.attach(identity(), UpstreamParameters::default()).unwrap();
    it
}

fn in_wal(disk: &SimDisk) -> Vec<String> {
    let mut names: Vec<_> = disk.list(Path::new("/relay/pg_wal")).unwrap();
    names.sort();
    names.into_iter().map(|name| name.into_string().unwrap()).collect()
}

fn spares(disk: &SimDisk) -> usize {
    in_wal(disk).iter().filter(|name| name.starts_with("walrelay-new.ahead-")).count()
}

#[test]
fn at_a_segments_end_a_file_only_gets_its_name() {
    let mut begun = Begun::new();
    begun.make();
    assert_eq!(spares(&begun.disk), 2);
    assert_eq!(begun.it.store.wal_files().unwrap(), ["000000010000000000000003.partial"]);
    assert_eq!(begun.it.store.held_timelines().unwrap().len(), 1);
    begun.disk.start_trace();
    begun.receive(MB + 100_000);
    let made: Vec<_> = begun
        .disk
        .trace()
        .into_iter()
        .filter(|operation| operation.file.starts_with("walrelay-new"))
        .collect();
    assert!(
        made.iter().all(|operation| matches!(operation.kind, OperationKind::Write | OperationKind::Sync)),
        "{made:?}"
    );
    assert!(begun.disk.trace().iter().all(|operation| operation.kind != OperationKind::Allocate));
    assert_eq!(spares(&begun.disk), 1);
    begun.make();
    assert_eq!(spares(&begun.disk), 2);
    // More than there are at once: it makes its own.
    begun.receive(4_400_000);
    let end = begun.it.store.tip().unwrap().flush_lsn;
    assert!(
        read_back(&begun.it.store, TimelineId::FIRST, end) == begun.wal.bytes()[..end.since(START) as usize]
    );
}

#[test]
fn nothing_is_made_before_wal_comes() {
    let disk = SimDisk::new();
    let mut it = open(&disk);
    assert!(!it.making.step(Instant::now()));
    assert_eq!(in_wal(&disk), [""; 0]);
}

#[test]
fn one_that_is_half_full_of_zeros_is_taken_as_it_is() {
    let mut begun = Begun::new();
    for steps in [3, 1, 2] {
        for _ in 0..steps {
            assert!(begun.it.making.step(begun.now));
        }
        let to = begun.it.writer.position().unwrap().lsn.since(START) + MB;
        begun.receive(to);
    }
    let end = begun.it.store.tip().unwrap().flush_lsn;
    assert!(
        read_back(&begun.it.store, TimelineId::FIRST, end) == begun.wal.bytes()[..end.since(START) as usize]
    );
}

#[test]
fn a_stop_leaves_none_and_a_start_after_a_crash_removes_them() {
    let mut begun = Begun::new();
    begun.make();
    begun.it.stop();
    assert_eq!(spares(&begun.disk), 0);
    begun.disk.start_trace();
    let mut it = open(&begun.disk);
    let synced_all = |disk: &SimDisk| disk.trace().iter().any(|operation| operation.file == "(all)");
    assert!(!synced_all(&begun.disk), "pg_wal is as the stop has left it");
    let at = it.writer.position().unwrap().lsn;
    it.writer.append(at, &begun.wal.bytes()[at.since(START) as usize..MB as usize + 5000]).unwrap();
    while it.making.step(begun.now) {}
    assert_eq!(spares(&begun.disk), 2);
    for seed in 0..20 {
        let disk = begun.disk.restart(seed).crash(seed);
        drop(open(&disk));
        assert_eq!(spares(&disk), 0);
        begun.disk = disk;
        let mut it = open(&begun.disk);
        let at = it.writer.position().unwrap().lsn;
        it.writer.append(at, &begun.wal.bytes()[at.since(START) as usize..2 * MB as usize + 5000]).unwrap();
        while it.making.step(begun.now) {}
        assert_eq!(spares(&begun.disk), 2);
    }
}

#[test]
fn spares_go_where_room_gets_scarce_and_come_back_with_it() {
    let mut begun = Begun::new();
    begun.disk.set_free_space(Some(15 * MB));
    begun.make();
    assert_eq!(spares(&begun.disk), 0, "there has to be plenty");
    begun.later();
    begun.disk.set_free_space(Some(17 * MB));
    begun.make();
    assert_eq!(spares(&begun.disk), 2);
    begun.later();
    begun.disk.set_free_space(Some(9 * MB));
    begun.make();
    assert_eq!(spares(&begun.disk), 2, "they take no more");
    begun.later();
    begun.disk.set_free_space(Some(7 * MB));
    begun.make();
    assert_eq!(spares(&begun.disk), 0);
    assert!(begun.disk.free_space(Path::new(RUN)).unwrap() >= 9 * MB);
    begun.receive(4_400_000);
}

#[test]
fn a_disk_that_fails_under_a_spare_fails_nothing_else() {
    for nth in 0..12 {
        let mut begun = Begun::new();
        begun.disk.fail_at(begun.disk.operations() + 1 + nth, libc::EIO);
        begun.make();
        assert!(!begun.it.store.has_failed());
        assert!(spares(&begun.disk) < 2, "operation {nth}");
        begun.later();
        begun.make();
        assert_eq!(spares(&begun.disk), 2);
        begun.receive(4_400_000);
        let end = begun.it.store.tip().unwrap().flush_lsn;
        let same = read_back(&begun.it.store, TimelineId::FIRST, end)
            == begun.wal.bytes()[..end.since(START) as usize];
        assert!(same, "operation {nth}");
    }
}

#[test]
fn a_disk_that_hangs_under_a_spare_is_waited_for() {
    let mut begun = Begun::new();
    for steps in 0..6 {
        for _ in 0..steps {
            begun.it.making.step(begun.now);
        }
        begun.disk.hang();
        assert!(!begun.it.making.step(begun.now));
        begun.disk.release();
    }
    begun.make();
    assert_eq!(spares(&begun.disk), 2);
    begun.receive(4_400_000);
}
