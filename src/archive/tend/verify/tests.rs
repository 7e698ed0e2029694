use object_store::memory::InMemory;
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{SegSize, SystemId};

use super::*;
use crate::archive::back::target_source::TargetSource;
use crate::archive::repo::codec::{Codec, Compression, Format};
use crate::archive::repo::layout::Layout;
use crate::objects::Storage;

const SEG: usize = 1 << 20;

fn id(system: u64) -> WalIdentity {
    WalIdentity { system_id: SystemId(system), seg_size: SegSize::new(SEG as u64).unwrap() }
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn name(timeline: u32, segno: u64) -> FileName {
    FileName::segment(WalFileName::new(tli(timeline), SegNo::new(segno)), id(77).seg_size)
}

/// Segments 3 to 14, with a switch to timeline 2 in 8, and its history.
fn files(system: u64) -> Vec<(FileName, Bytes)> {
    let start = Lsn::new(3 * SEG as u64);
    let mut wal = WalGenerator::new(id(system), TimelineId::FIRST, start, 5);
    wal.fill(5 * SEG + SEG / 2);
    let left = wal.position();
    wal.switch_timeline(tli(2));
    wal.fill(12 * SEG - wal.bytes().len());
    let segments = (3u64..).zip(wal.bytes().chunks_exact(SEG));
    let files = segments
        .map(|(segno, bytes)| (name(if segno < 8 { 1 } else { 2 }, segno), Bytes::copy_from_slice(bytes)));
    let history = (FileName::history(tli(2)), format!("1\t{left}\tx\n").into());
    files.chain([history]).collect()
}

fn empty(name: &str, compression: Compression) -> Repository {
    let storage = Storage::over(Arc::new(InMemory::new()), "");
    Repository::over(storage, name, Layout::Plain, Codec::new(compression, None, false))
}

async fn filled(name: &str, files: &[(FileName, Bytes)]) -> Repository {
    let repository = empty(name, Compression::None);
    for (name, content) in files {
        repository.write(name, content.clone()).await.unwrap();
    }
    repository
}

async fn found(repository: &Repository) -> Vec<(String, Problem)> {
    let report = verify(repository, None, &Progress::default()).await.unwrap();
    report.findings.into_iter().map(|finding| (finding.file, finding.problem)).collect()
}

fn source(repository: &Repository) -> Arc<dyn Source> {
    Arc::new(TargetSource::over(repository.clone()))
}

/// One way to spoil a target; what has to be found.
async fn spoil(target: &Repository, files: &[(FileName, Bytes)], random: u64) -> Vec<(String, Problem)> {
    let storage = target.storage();
    let at = (random / 7) as usize % files.len();
    let (name, content) = &files[at];
    let put = async |name: &FileName, bytes: Vec<u8>| storage.put(name.as_str(), bytes.into()).await.unwrap();
    match random % 6 {
        0 => {
            let mut bytes = content.to_vec();
            let byte = (random / 100) as usize % bytes.len();
            bytes[byte] ^= 1 << (random / 3 % 8);
            put(name, bytes).await;
        }
        1 => put(name, content[..content.len() / 2].to_vec()).await,
        2 => storage.delete(name.as_str()).await.unwrap(),
        3 => {
            // Without a trace; the ends of the archive can not be told from where it should end.
            let (name, _) = &files[1 + at % (files.len() - 3)];
            storage.delete(&format!("{name}.sha256")).await.unwrap();
            storage.delete(name.as_str()).await.unwrap();
            return vec![(name.to_string(), Problem::Missing)];
        }
        4 => {
            let foreign = self::files(78)[at % 12].1.to_vec();
            let (name, _) = &files[at % 12];
            storage.delete(&format!("{name}.sha256")).await.unwrap();
            put(name, foreign).await;
            return vec![(name.to_string(), Problem::Damaged)];
        }
        _ => {
            // Swapped, with their checksums.
            let ((one, one_is), (other, other_is)) = (&files[at % 11], &files[at % 11 + 1]);
            for name in [one, other] {
                storage.delete(&format!("{name}.sha256")).await.unwrap();
            }
            put(one, other_is.to_vec()).await;
            put(other, one_is.to_vec()).await;
            return vec![(one.to_string(), Problem::Damaged), (other.to_string(), Problem::Damaged)];
        }
    }
    let problem = if random % 6 == 2 { Problem::Missing } else { Problem::Damaged };
    vec![(name.to_string(), problem)]
}

#[tokio::test]
async fn a_whole_target_has_no_findings() {
    let files = files(77);
    let target = filled("a", &files).await;
    let report = verify(&target, Some(id(77)), &Progress::default()).await.unwrap();
    assert_eq!((report.segments, report.findings.len(), report.is_good()), (12, 0, true), "{report:?}");
    assert_eq!(verify(&empty("b", Compression::None), None, &Progress::default()).await.unwrap().segments, 0);
    // Of another cluster than expected, all is wrong.
    assert_eq!(verify(&target, Some(id(78)), &Progress::default()).await.unwrap().findings.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_faults_are_found_and_repaired() {
    let files = files(77);
    let good = filled("good", &files).await;
    let mut random = 0x1234_5678_9ABC_DEF1u64;
    for fault in 0..100 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let target = filled("spoiled", &files).await;
        let mut expected = spoil(&target, &files, random >> 20).await;
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        let mut report = verify(&target, None, &Progress::default()).await.unwrap();
        let found: Vec<_> = report.findings.iter().map(|it| (it.file.clone(), it.problem)).collect();
        let missed: Vec<_> = expected.iter().filter(|fault| !found.contains(fault)).collect();
        assert!(missed.is_empty(), "fault {fault}: found {found:?}, missed {missed:?}");
        heal(&target, &mut report, &[source(&good)], &Progress::default()).await.unwrap();
        assert!(report.is_good(), "fault {fault}: {report:?}");
        assert_eq!(self::found(&target).await, [], "fault {fault} is repaired");
        for (name, content) in &files {
            assert!(target.read(name).await.unwrap().as_ref() == Some(content), "fault {fault}: {name}");
        }
    }
}

#[tokio::test]
async fn what_nobody_has_stays_found() {
    let files = files(77);
    let (target, other) = (filled("a", &files).await, filled("b", &files).await);
    for repository in [&target, &other] {
        repository.storage().delete(name(2, 10).as_str()).await.unwrap();
    }
    let mut report = verify(&target, None, &Progress::default()).await.unwrap();
    heal(&target, &mut report, &[source(&other)], &Progress::default()).await.unwrap();
    assert!(!report.is_good());
    let [hole] = &report.findings[..] else { panic!("{report:?}") };
    assert_eq!((hole.from.as_deref(), hole.to.as_deref()), (Some("0/A00000"), Some("0/B00000")));
    assert_eq!(hole.healed_from, None);
}

#[tokio::test]
async fn another_clusters_segment_heals_nothing() {
    let files = files(77);
    let (target, other) = (filled("a", &files).await, filled("b", &self::files(78)).await);
    target.storage().delete(name(1, 5).as_str()).await.unwrap();
    let mut report = verify(&target, None, &Progress::default()).await.unwrap();
    heal(&target, &mut report, &[source(&other)], &Progress::default()).await.unwrap();
    assert_eq!((report.id, report.is_good()), (Some(id(77)), false), "{report:?}");
}

#[tokio::test]
async fn what_is_replaced_is_kept_aside() {
    let files = files(77);
    let (target, good) = (filled("a", &files).await, filled("b", &files).await);
    target.storage().put(name(1, 4).as_str(), "rubbish".into()).await.unwrap();
    let mut report = verify(&target, None, &Progress::default()).await.unwrap();
    heal(&target, &mut report, &[source(&good)], &Progress::default()).await.unwrap();
    let kept = target.list().await.unwrap();
    assert!(kept.iter().any(|entry| entry.path.contains(".damaged-")), "{kept:?}");
}

#[tokio::test]
async fn a_record_over_two_segments_is_checked_over_both() {
    let mut wal = WalGenerator::new(id(77), TimelineId::FIRST, Lsn::new(3 * SEG as u64), 5);
    wal.fill(SEG - 20_000);
    wal.record(60_000);
    wal.fill(SEG);
    let mut bytes = wal.take();
    // In the part of the record that lies in the second segment.
    bytes[SEG + 9000] ^= 1;
    let segments = (3..).zip(bytes.chunks_exact(SEG));
    let files: Vec<_> =
        segments.map(|(segno, bytes)| (name(1, segno), Bytes::copy_from_slice(bytes))).collect();
    let target = filled("a", &files).await;
    assert_eq!(found(&target).await, [(name(1, 4).to_string(), Problem::Damaged)]);
}

#[tokio::test]
async fn chains_go_over_timelines() {
    let files = files(77);
    let without = async |names: &[FileName]| {
        let left: Vec<_> = files.iter().filter(|(name, _)| !names.contains(name)).cloned().collect();
        found(&filled("a", &left).await).await
    };
    let missing = |names: &[FileName]| -> Vec<_> {
        names.iter().map(|name| (name.to_string(), Problem::Missing)).collect()
    };
    // The end of the old timeline, the beginning of the new one, its history.
    assert_eq!(without(&[name(1, 6), name(1, 7)]).await, missing(&[name(1, 6), name(1, 7)]));
    assert_eq!(without(&[name(2, 8)]).await, missing(&[name(2, 8)]));
    let history = FileName::history(tli(2));
    assert_eq!(without(std::slice::from_ref(&history)).await, missing(std::slice::from_ref(&history)));
    // What was removed from the beginning, and what has not come yet, is not missing.
    assert_eq!(without(&[name(1, 3), name(1, 4), name(2, 14)]).await, []);
    let old: Vec<_> = (3..8).map(|segno| name(1, segno)).collect();
    assert_eq!(without(&old).await, []);
}

#[tokio::test]
async fn compressed_segments_are_listed_and_checked() {
    let target = empty("a", Compression::Zstd(1));
    for (name, content) in files(77) {
        target.write(&name, content).await.unwrap();
    }
    target.write_chunk(&name(2, 15), 0, unfinished().slice(..100)).await.unwrap();
    assert_eq!(found(&target).await, []);
    let listing = crate::archive::tend::list::list(&target, &Progress::default()).await.unwrap();
    assert_eq!(listing.system_identifier.as_deref(), Some("77"));
    let shown: Vec<_> =
        listing.stretches.iter().map(|it| (it.timeline, &*it.from, &*it.to, it.segments)).collect();
    assert_eq!(shown, [(1, "0/300000", "0/800000", 5), (2, "0/800000", "0/F00064", 7)]);
}

/// What is there of segment 15 on timeline 2, which follows [`files`].
fn unfinished() -> Bytes {
    let mut wal = WalGenerator::new(id(77), tli(2), Lsn::new(15 * SEG as u64), 9);
    wal.fill(60_000);
    Bytes::from(wal.take())
}

/// A target with a good copy of that, and one with the same pieces, but for what is done to it.
async fn with_pieces(cuts: &[usize]) -> (Repository, Repository) {
    let [good, bad] = ["good", "bad"].map(|name| empty(name, Compression::None));
    for target in [&good, &bad] {
        for (name, content) in files(77) {
            target.write(&name, content).await.unwrap();
        }
        for ends in cuts.windows(2) {
            let bytes = unfinished().slice(ends[0]..ends[1]);
            target.write_chunk(&name(2, 15), ends[0] as u64, bytes).await.unwrap();
        }
        assert_eq!(found(target).await, []);
    }
    (good, bad)
}

/// The one thing that is wrong, where, and what comes of healing it with nothing and with a good copy.
async fn check_piece(good: &Repository, bad: &Repository, file: &str, problem: Problem, lsn: &str) {
    let mut report = verify(bad, None, &Progress::default()).await.unwrap();
    let [finding] = &report.findings[..] else { panic!("{report:?}") };
    assert_eq!((&*finding.file, finding.problem, finding.lsn.as_deref()), (file, problem, Some(lsn)));
    heal(bad, &mut report, &[source(bad)], &Progress::default()).await.unwrap();
    assert!(!report.is_good() && report.findings[0].reason.contains("none of the sources"), "{report:?}");
    heal(bad, &mut report, &[source(bad), source(good)], &Progress::default()).await.unwrap();
    assert_eq!(report.findings[0].healed_from.as_deref(), Some("good"));
    assert_eq!(found(bad).await, []);
    assert_eq!(bad.read_beginning(&name(2, 15)).await.unwrap(), unfinished()[..40_000]);
}

#[tokio::test]
async fn a_damaged_piece_of_an_unfinished_segment_is_found_and_replaced() {
    let (good, bad) = with_pieces(&[0, 100, 400, 40_000]).await;
    let piece = ChunkName::of(&name(2, 15), 100, &unfinished()[100..400]);
    let path = Layout::Plain.chunk(&piece, Format::split("").1);
    bad.storage().put(&path, Bytes::from(vec![3; 300])).await.unwrap();
    let file = format!("{}.chunks/{}", name(2, 15), piece.file_name());
    check_piece(&good, &bad, &file, Problem::Damaged, "0/F00064").await;
}

#[tokio::test]
async fn wal_in_pieces_is_verified_record_by_record() {
    let (good, bad) = with_pieces(&[0, 10_000, 20_000, 40_000]).await;
    let segment = name(2, 15);
    bad.remove_chunks(&[ChunkName::of(&segment, 10_000, &unfinished()[10_000..20_000])]).await.unwrap();
    // Its checksum is that of what it has.
    let mut wrong = unfinished()[10_000..20_000].to_vec();
    wrong[5_000] ^= 1;
    let piece = bad.write_chunk(&segment, 10_000, wrong.clone().into()).await.unwrap();
    let mut all = unfinished().to_vec();
    all[15_000] ^= 1;
    let mut verifier = WalVerifier::at_segment_start(id(77), tli(2), Lsn::new(15 * SEG as u64));
    let fault = verifier.push(&all).unwrap_err().lsn();
    let file = format!("{segment}.chunks/{}", piece.file_name());
    check_piece(&good, &bad, &file, Problem::Damaged, &fault.to_string()).await;
}

#[tokio::test]
async fn a_hole_between_pieces_is_found_and_filled() {
    let (good, bad) = with_pieces(&[0, 10_000, 20_000, 40_000]).await;
    let segment = name(2, 15);
    bad.remove_chunks(&[ChunkName::of(&segment, 10_000, &unfinished()[10_000..20_000])]).await.unwrap();
    let file = format!("{segment}.chunks/00002710-00004e20");
    check_piece(&good, &bad, &file, Problem::Missing, "0/F02710").await;
}
