use std::fs;
use std::sync::Arc;

use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegNo, SegSize, SystemId, TimelineId, WalFileName, WalIdentity};

use super::*;
use crate::archive::{RelayDirectory, Source};
use crate::progress::Progress;

const SEG: usize = 1 << 20;

fn id() -> WalIdentity {
    WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SEG as u64).unwrap() }
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn name(timeline: u32, segno: u64) -> String {
    WalFileName::new(tli(timeline), SegNo::new(segno)).format(id().seg_size)
}

fn start() -> Lsn {
    Lsn::new(3 * SEG as u64)
}

/// WAL from segment 3 on, on timeline 1.
fn wal() -> WalGenerator {
    WalGenerator::new(id(), TimelineId::FIRST, start(), 5)
}

struct Directory {
    temp: tempfile::TempDir,
    /// Where the segments are.
    wal: PathBuf,
}

impl Directory {
    fn of_segments() -> Directory {
        let temp = crate::permissions::private_tempdir();
        Directory { wal: temp.path().to_owned(), temp }
    }

    fn with_pg_wal() -> Directory {
        let temp = crate::permissions::private_tempdir();
        let wal = temp.path().join("pg_wal");
        fs::create_dir(&wal).unwrap();
        Directory { wal, temp }
    }

    fn of_a_relay() -> Directory {
        let dir = Directory::with_pg_wal();
        let state = "system_identifier = \"77\"\nwal_segment_size = 1048576\n[parameters]\nstatus = []\n[parameters.settings]\n";
        fs::write(dir.temp.path().join("cluster.toml"), state).unwrap();
        dir
    }

    fn of_a_server() -> Directory {
        let dir = Directory::with_pg_wal();
        fs::write(dir.temp.path().join("PG_VERSION"), "18\n").unwrap();
        dir
    }

    /// Puts WAL from segment `first` on into files of this timeline, the last of them perhaps unfinished.
    fn put(&self, timeline: u32, first: u64, bytes: &[u8], suffix: &str) {
        for (segno, piece) in (first..).zip(bytes.chunks(SEG)) {
            let (mut content, whole) = (piece.to_vec(), piece.len() == SEG);
            content.resize(SEG, 0);
            let file = format!("{}{}", name(timeline, segno), if whole { "" } else { suffix });
            fs::write(self.wal.join(file), content).unwrap();
        }
    }

    fn flip(&self, file: &str, at: u64) {
        let path = self.wal.join(file);
        let mut content = fs::read(&path).unwrap();
        content[at as usize] ^= 4;
        fs::write(path, content).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.wal.join(file)).unwrap();
    }

    fn verify(&self) -> Report {
        verify(self.temp.path(), 3, &Progress::default()).unwrap()
    }

    /// Files that are wrong, and from where on.
    fn faults(&self) -> Vec<(String, Problem, Option<String>)> {
        self.verify().findings.into_iter().map(|it| (it.file, it.problem, it.lsn)).collect()
    }

    /// Where the WAL of each stretch ends.
    fn ends(&self) -> Vec<(u32, String)> {
        self.verify().stretches.into_iter().map(|it| (it.timeline, it.to)).collect()
    }
}

fn damaged(file: String, lsn: Lsn) -> (String, Problem, Option<String>) {
    (file, Problem::Damaged, Some(lsn.to_string()))
}

fn missing(file: String, segno: u64) -> (String, Problem, Option<String>) {
    (file, Problem::Missing, Some(Lsn::new(segno * SEG as u64).to_string()))
}

/// The record that holds a position.
fn record_at(wal: &WalGenerator, lsn: Lsn) -> Lsn {
    *wal.record_starts().iter().rfind(|&&start| start <= lsn).unwrap()
}

#[test]
fn good_wal_ends_with_its_last_record() {
    let mut wal = wal();
    wal.fill(5 * SEG + 300_000);
    let end = wal.position();
    // The beginning of another record has come.
    wal.record(5000);
    let dir = Directory::of_segments();
    dir.put(1, 3, &wal.bytes()[..end.since(start()) as usize + 100], ".partial");
    let report = dir.verify();
    assert_eq!((report.kind, &*report.system_identifier), ("directory of WAL segments", "77"));
    assert_eq!((report.is_good(), report.bytes), (true, 6 * SEG as u64), "{report:?}");
    let [stretch] = &report.stretches[..] else { panic!("{report:?}") };
    assert_eq!((&*stretch.from, &stretch.to, stretch.segments), ("0/300000", &end.to_string(), 6));
    let empty = Directory::of_segments();
    assert!(matches!(verify(empty.temp.path(), 1, &Progress::default()), Err(VerifyError::Empty(_))));
    assert!(matches!(verify(&empty.wal.join("x"), 1, &Progress::default()), Err(VerifyError::Io { .. })));
}

#[test]
fn a_fault_is_told_with_its_record_and_what_comes_behind_it_is_checked_too() {
    let mut wal = wal();
    wal.fill(6 * SEG);
    let dir = Directory::of_segments();
    dir.put(1, 3, &wal.bytes()[..6 * SEG], "");
    let (first, second) = (start().advance(SEG as u64 + 500_000), start().advance(4 * SEG as u64 + 700_001));
    for lsn in [first, second] {
        dir.flip(&name(1, lsn.seg_at(id().seg_size).as_u64()), lsn.offset_in_seg(id().seg_size));
    }
    let report = dir.verify();
    assert_eq!(report.first_fault().unwrap().file, name(1, 4));
    let near = |found: &str, lsn: Lsn| {
        let found: Lsn = found.parse().unwrap();
        // In the record itself, or in the header of the page it lies on.
        found == record_at(&wal, lsn) || found == lsn.page_start()
    };
    let found: Vec<_> = report.findings.iter().map(|it| it.lsn.clone().unwrap()).collect();
    assert!(found.len() == 2 && near(&found[0], first) && near(&found[1], second), "{report:?}");
}

#[test]
fn a_record_over_segments_is_checked_over_all_of_them() {
    let mut wal = wal();
    wal.fill(SEG - 20_000);
    let long = wal.position();
    wal.record(2 * SEG + 60_000);
    wal.fill(2 * SEG);
    let dir = Directory::of_segments();
    let whole = wal.bytes().len() / SEG;
    dir.put(1, 3, &wal.bytes()[..whole * SEG], "");
    assert_eq!(dir.faults(), []);
    // In its last part; and what begins behind it in the same segment is looked at nevertheless.
    dir.flip(&name(1, 6), 100);
    let later = start().advance(3 * SEG as u64 + 600_000);
    dir.flip(&name(1, 6), 600_000);
    let faults = dir.faults();
    assert_eq!(faults[0], damaged(name(1, 6), long), "{faults:?}");
    let second: Lsn = faults[1].2.as_deref().unwrap().parse().unwrap();
    assert!(second == record_at(&wal, later) || second == later.page_start(), "{faults:?}");
    assert_eq!(faults.len(), 2);
    // Without its beginning nobody can check it.
    dir.remove(&name(1, 3));
    assert_eq!(dir.faults().len(), 1);
}

#[test]
fn each_fault_is_found_once_wherever_the_work_is_divided() {
    let mut wal = wal();
    // Records as long as a segment, so that most boundaries lie inside of one.
    while wal.bytes().len() < 70 * SEG {
        wal.record(SEG / 2);
    }
    let dir = Directory::of_segments();
    dir.put(1, 3, &wal.bytes()[..70 * SEG], "");
    assert_eq!(dir.faults(), []);
    for segment in [31, 32, 33, 63, 64, 65] {
        let lsn = start().advance(segment * SEG as u64 + 60);
        dir.flip(&name(1, 3 + segment), 60);
        assert_eq!(dir.faults(), [damaged(name(1, 3 + segment), record_at(&wal, lsn))], "{segment}");
        dir.flip(&name(1, 3 + segment), 60);
    }
}

/// Segments 3 to 14, with a switch to timeline 2 in 8.
fn two_timelines(dir: &Directory) {
    let mut wal = wal();
    wal.fill(5 * SEG + SEG / 2);
    let left = wal.position();
    wal.switch_timeline(tli(2));
    wal.fill(12 * SEG - wal.bytes().len());
    dir.put(1, 3, &wal.bytes()[..5 * SEG], "");
    dir.put(2, 8, &wal.bytes()[5 * SEG..12 * SEG], "");
    fs::write(dir.wal.join("00000002.history"), format!("1\t{left}\tx\n")).unwrap();
}

#[test]
fn what_is_missing_between_timelines_is_found() {
    let dir = Directory::of_segments();
    two_timelines(&dir);
    assert_eq!(dir.faults(), []);
    assert_eq!(dir.ends(), [(1, "0/800000".to_owned()), (2, "0/F00000".to_owned())]);
    dir.remove(&name(1, 7));
    dir.remove(&name(2, 10));
    assert_eq!(dir.faults(), [missing(name(1, 7), 7), missing(name(2, 10), 10)]);
    dir.remove("00000002.history");
    let files: Vec<_> = dir.faults().into_iter().map(|(file, ..)| file).collect();
    // Without it nobody knows that timeline 1 goes on to where it was left.
    assert_eq!(files, ["00000002.history".to_owned(), name(2, 10)]);
}

#[test]
fn what_was_left_behind_a_fork_is_not_on_the_way() {
    // Timeline 2 forked in 8; of timeline 1 only what lies behind that is still here, and retention went on to 10.
    let dir = Directory::of_a_relay();
    two_timelines(&dir);
    let mut left = wal();
    left.fill(8 * SEG + 5000);
    dir.put(1, 3, left.bytes(), ".partial");
    for file in [3, 4, 5, 6, 7, 8, 9].map(|segno| name(1, segno)).into_iter().chain([name(2, 8), name(2, 9)])
    {
        dir.remove(&file);
    }
    assert_eq!(dir.faults(), []);
}

#[test]
fn what_lies_behind_an_end_is_no_wal_yet() {
    let mut wal = wal();
    wal.fill(3 * SEG);
    let dir = Directory::of_a_relay();
    dir.put(1, 3, &wal.bytes()[..3 * SEG], "");
    for segno in [4, 5] {
        fs::rename(dir.wal.join(name(1, segno)), dir.wal.join(format!("{}.partial", name(1, segno))))
            .unwrap();
    }
    dir.flip(&format!("{}.partial", name(1, 4)), 300_000);
    let report = dir.verify();
    let [stretch] = &report.stretches[..] else { panic!("{report:?}") };
    assert!(report.is_good() && stretch.segments == 2 && stretch.to.as_str() < "0/500000", "{report:?}");
}

#[test]
fn a_page_of_another_timeline_or_cluster_is_found() {
    let dir = Directory::of_segments();
    two_timelines(&dir);
    // The first page of timeline 2 in a segment that is all its own.
    dir.flip(&name(2, 9), 4);
    let [(file, problem, lsn)] = &dir.faults()[..] else { panic!("{:?}", dir.faults()) };
    assert_eq!((file, *problem, lsn.as_deref()), (&name(2, 9), Problem::Damaged, Some("0/900000")));
    let other = WalIdentity { system_id: SystemId(78), ..id() };
    let mut wal = WalGenerator::new(other, TimelineId::FIRST, Lsn::new(5 * SEG as u64), 5);
    wal.fill(SEG);
    dir.put(1, 5, &wal.bytes()[..SEG], "");
    assert_eq!(dir.faults().iter().filter(|(file, ..)| *file == name(1, 5)).count(), 1);
}

#[test]
fn a_servers_wal_ends_before_the_files_that_it_keeps_for_later() {
    let mut wal = wal();
    wal.fill(3 * SEG + 400_000);
    let end = wal.position();
    let dir = Directory::of_a_server();
    dir.put(1, 3, wal.bytes(), "");
    // Old segments under later names, and one that was never used.
    fs::copy(dir.wal.join(name(1, 3)), dir.wal.join(name(1, 7))).unwrap();
    fs::copy(dir.wal.join(name(1, 4)), dir.wal.join(name(1, 8))).unwrap();
    fs::write(dir.wal.join(name(1, 9)), vec![0; SEG]).unwrap();
    let report = dir.verify();
    assert_eq!((report.kind, report.findings.len()), ("WAL of a PostgreSQL server", 0), "{report:?}");
    assert_eq!(dir.ends(), [(1, end.to_string())]);
    // With WAL behind it, an end is a fault.
    dir.flip(&name(1, 4), 600_000);
    assert_eq!(dir.faults().len(), 1);
    assert_eq!(dir.ends(), [(1, end.to_string())]);
}

#[test]
fn an_end_before_what_was_confirmed_is_a_fault() {
    let mut wal = wal();
    wal.fill(3 * SEG + 400_000);
    let end = wal.position();
    let dir = Directory::of_a_relay();
    dir.put(1, 3, wal.bytes(), ".partial");
    let saved = |state: &str, lsn: Lsn| {
        let text = format!("state = \"{state}\"\ntimeline = 1\nflush_lsn = \"{lsn}\"\n");
        fs::write(dir.temp.path().join("last-run.toml"), text).unwrap();
    };
    saved("stopped", end);
    assert_eq!(dir.faults(), []);
    saved("stopped", end.advance(8));
    assert_eq!(dir.faults(), [damaged(format!("{}.partial", name(1, 6)), end)]);
    saved("failed", end.advance(8));
    assert_eq!(dir.faults().len(), 1);
    // Whole segments that should follow, and everything.
    saved("stopped", Lsn::new(8 * SEG as u64 + 40));
    let gone =
        [damaged(format!("{}.partial", name(1, 6)), end), missing(name(1, 7), 7), missing(name(1, 8), 8)];
    assert_eq!(dir.faults(), gone);
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(&dir.wal, elsewhere.path().join("pg_wal")).unwrap();
    fs::create_dir(&dir.wal).unwrap();
    assert_eq!(dir.faults(), [missing(name(1, 8), 8)]);
    fs::write(dir.temp.path().join("timeline.toml"), "timeline = 2\nnewest = 2\n").unwrap();
    assert!(dir.faults().iter().any(|(file, ..)| file == "timeline.toml"));
    fs::remove_file(dir.temp.path().join("timeline.toml")).unwrap();
    fs::remove_dir(&dir.wal).unwrap();
    fs::rename(elsewhere.path().join("pg_wal"), &dir.wal).unwrap();
    saved("running", end.advance(8));
    assert_eq!(dir.faults(), []);
    fs::write(dir.temp.path().join("slots.toml"), "[[slot]]\nname = \"s\"\nrestart_lsn = \"0/200000\"\n")
        .unwrap();
    let notes = dir.verify().notes;
    assert!(notes.len() == 1 && notes[0].contains("slot \"s\" needs WAL from 0/200000 on"), "{notes:?}");
    fs::write(dir.temp.path().join("slots.toml"), "[[slot]\n").unwrap();
    assert_eq!(dir.faults(), [("slots.toml".to_owned(), Problem::Damaged, None)]);
}

#[test]
fn the_padding_behind_a_switch_is_no_fault() {
    for before in [8, 16, 24, 5000] {
        let mut wal = wal();
        wal.fill(SEG - 100_000);
        loop {
            let left = SEG as u64 - wal.position().since(start());
            if left == before {
                break;
            }
            let step = if left > 8000 { 1000 } else { (left - before) as usize };
            wal.record(step.max(24));
            assert!(wal.position().since(start()) < SEG as u64, "the record sizes lead to the place");
        }
        wal.switch_segment();
        wal.fill(SEG);
        let dir = Directory::of_segments();
        let whole = wal.bytes().len() / SEG * SEG;
        dir.put(1, 3, &wal.bytes()[..whole], "");
        assert_eq!(dir.faults(), [], "{before}");
        dir.remove(&name(1, 3));
        assert_eq!(dir.faults(), [], "{before}");
    }
}

fn sources(dir: &Directory) -> Vec<Arc<dyn Source>> {
    vec![Arc::new(RelayDirectory::new(dir.temp.path()))]
}

#[tokio::test]
async fn what_is_wrong_is_repaired_from_elsewhere_and_kept() {
    let good = Directory::of_a_relay();
    two_timelines(&good);
    let files: Vec<_> = fs::read_dir(&good.wal).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for spoil in 0..files.len() * 3 {
        let dir = Directory::of_a_relay();
        two_timelines(&dir);
        let file = files[spoil / 3].to_str().unwrap();
        match spoil % 3 {
            0 => dir.remove(file),
            1 if file.ends_with("history") => fs::write(dir.wal.join(file), "nonsense").unwrap(),
            1 => dir.flip(file, 777_777),
            _ => fs::write(dir.wal.join(file), "short").unwrap(),
        }
        // The ends can be removed without a trace.
        let is_end = file == name(1, 3) || file == name(2, 14);
        let mut report = dir.verify();
        assert_eq!(report.is_good(), spoil % 3 == 0 && is_end, "{file} {spoil}: {report:?}");
        repair(dir.temp.path(), &mut report, &sources(&good), &Progress::default()).await.unwrap();
        assert!(report.is_good(), "{file} {spoil}: {report:?}");
        assert_eq!(dir.faults(), [], "{file} {spoil}");
        let aside = dir.temp.path().join("aside");
        assert_eq!(
            fs::read_dir(aside).map_or(0, Iterator::count),
            usize::from(spoil % 3 > 0),
            "{file} {spoil}"
        );
        if !(is_end && spoil % 3 == 0) {
            assert!(fs::read(dir.wal.join(file)).unwrap() == fs::read(good.wal.join(file)).unwrap());
        }
    }
}

#[tokio::test]
async fn neighbours_that_share_a_damaged_record_are_repaired_together() {
    let mut wal = wal();
    wal.fill(SEG - 20_000);
    wal.record(SEG + 60_000);
    wal.fill(2 * SEG);
    let (dir, good) = (Directory::of_a_relay(), Directory::of_a_relay());
    for dir in [&dir, &good] {
        dir.put(1, 3, &wal.bytes()[..4 * SEG], "");
    }
    for damaged in [&[3][..], &[4], &[5], &[3, 4], &[3, 4, 5], &[4, 5]] {
        for &segno in damaged {
            dir.flip(&name(1, segno), if segno == 5 { 100 } else { SEG as u64 - 5000 });
        }
        let mut report = dir.verify();
        assert!(!report.is_good());
        repair(dir.temp.path(), &mut report, &sources(&good), &Progress::default()).await.unwrap();
        assert!(report.is_good(), "{damaged:?}: {report:?}");
        assert_eq!(dir.faults(), [], "{damaged:?}");
    }
}

#[tokio::test]
async fn what_does_not_fit_repairs_nothing() {
    let (dir, other) = (Directory::of_a_relay(), Directory::of_a_relay());
    two_timelines(&dir);
    // WAL of the same cluster and place, but of another history.
    let mut wal = WalGenerator::new(id(), TimelineId::FIRST, start(), 6);
    wal.fill(6 * SEG);
    other.put(1, 3, &wal.bytes()[..6 * SEG], "");
    dir.remove(&name(1, 5));
    let mut report = dir.verify();
    repair(dir.temp.path(), &mut report, &sources(&other), &Progress::default()).await.unwrap();
    assert!(!report.is_good());
    let left: Vec<_> = fs::read_dir(&dir.wal).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|file| !file.to_string_lossy().starts_with("walrelay-new")), "{left:?}");
}

#[tokio::test]
async fn nobody_repairs_under_a_running_server_or_relay() {
    let (server, relay, good) = (Directory::of_a_server(), Directory::of_a_relay(), Directory::of_a_relay());
    for dir in [&server, &relay, &good] {
        two_timelines(dir);
    }
    for dir in [&server, &relay] {
        dir.remove(&name(1, 5));
    }
    fs::write(server.temp.path().join("postmaster.pid"), "1\n").unwrap();
    let refused =
        repair(server.temp.path(), &mut server.verify(), &sources(&good), &Progress::default()).await;
    assert!(matches!(refused, Err(RepairError::InUse(_))), "{refused:?}");
    let lock = crate::store::offline::OfflineLock::take(relay.temp.path()).unwrap();
    let refused = repair(relay.temp.path(), &mut relay.verify(), &sources(&good), &Progress::default()).await;
    assert!(matches!(refused, Err(RepairError::Store(_))), "{refused:?}");
    // Also by the name of its pg_wal.
    let refused = repair(
        &relay.wal,
        &mut verify(&relay.wal, 1, &Progress::default()).unwrap(),
        &sources(&good),
        &Progress::default(),
    )
    .await;
    assert!(matches!(refused, Err(RepairError::Store(_))), "{refused:?}");
    let elsewhere = tempfile::tempdir().unwrap();
    let (moved, link) = (elsewhere.path().join("wal"), server.temp.path().join("pg_wal"));
    fs::rename(&server.wal, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &link).unwrap();
    let refused = repair(
        &link,
        &mut verify(&link, 1, &Progress::default()).unwrap(),
        &sources(&good),
        &Progress::default(),
    )
    .await;
    assert!(matches!(refused, Err(RepairError::InUse(_))), "{refused:?}");
    fs::create_dir(moved.join("archive_status")).unwrap();
    let refused = repair(
        &moved,
        &mut verify(&moved, 1, &Progress::default()).unwrap(),
        &sources(&good),
        &Progress::default(),
    )
    .await;
    assert!(matches!(refused, Err(RepairError::NoDataDirectory(_))), "{refused:?}");
    drop(lock);
    fs::remove_file(server.temp.path().join("postmaster.pid")).unwrap();
    for dir in [&server, &relay] {
        let mut report = dir.verify();
        repair(dir.temp.path(), &mut report, &sources(&good), &Progress::default()).await.unwrap();
        assert!(report.is_good(), "{report:?}");
    }
}

#[test]
fn archives_are_told_from_directories_of_segments() {
    let dir = Directory::of_segments();
    two_timelines(&dir);
    assert!(!is_archive(dir.temp.path()).unwrap());
    for file in [".walrelay-archive", "000000010000000000000003.gz", "00000002.history.sha256"] {
        fs::write(dir.wal.join(file), "").unwrap();
        assert!(is_archive(dir.temp.path()).unwrap(), "{file}");
        dir.remove(file);
    }
    assert!(!is_archive(Directory::of_a_relay().temp.path()).unwrap());
}
