//! A repository over a store in memory.

use super::*;
use crate::archive::repo::codec::Compression;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use std::sync::atomic::{AtomicU64, Ordering};

fn name(text: &str) -> FileName {
    FileName::parse(text).unwrap()
}

fn segment() -> FileName {
    name("000000010000000000000003")
}

fn repository(store: &Arc<InMemory>, layout: Layout, compression: Compression) -> Repository {
    let store: Arc<dyn ObjectStore> = store.clone();
    let codec = Codec::new(compression, None, layout.hides_compression());
    Repository::over(Storage::over(store, "here"), "test", layout, codec)
}

fn plain(store: &Arc<InMemory>) -> Repository {
    repository(store, Layout::Plain, Compression::None)
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn paths(repository: &Repository) -> Vec<String> {
    repository.list().await.unwrap().into_iter().map(|entry| entry.path).collect()
}

#[tokio::test]
async fn what_is_written_is_read_in_every_layout() {
    for layout in [Layout::Plain, Layout::Barman, Layout::BarmanCloud] {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3), Compression::Gzip(1)] {
            let there = repository(&Arc::default(), layout, compression);
            for file in ["000000010000000000000003", "00000002.history", "000000010000000000000003.partial"] {
                assert_eq!(there.read(&name(file)).await.unwrap(), None);
                let written = there.write(&name(file), bytes(file)).await.unwrap();
                assert!(matches!(written, Written::New { .. }));
                assert_eq!(there.write(&name(file), bytes(file)).await.unwrap(), Written::Same);
                assert_eq!(there.read(&name(file)).await.unwrap(), Some(bytes(file)));
            }
        }
    }
}

#[tokio::test]
async fn an_object_that_is_neither_compressed_nor_encrypted_is_the_file() {
    let there = plain(&Arc::default());
    there.write(&segment(), bytes("WAL")).await.unwrap();
    assert_eq!(paths(&there).await, ["000000010000000000000003", "000000010000000000000003.sha256"]);
    assert_eq!(there.storage().get(segment().as_str()).await.unwrap(), Some(bytes("WAL")));
}

#[tokio::test]
async fn other_content_is_kept_aside_and_the_first_stays() {
    let there = plain(&Arc::default());
    there.write(&segment(), bytes("first")).await.unwrap();
    let Written::Conflict { kept_aside } = there.write(&segment(), bytes("second")).await.unwrap() else {
        panic!("no conflict");
    };
    assert!(kept_aside.starts_with("000000010000000000000003.conflict-"), "{kept_aside}");
    assert_eq!(there.storage().get(&kept_aside).await.unwrap(), Some(bytes("second")));
    assert_eq!(there.read(&segment()).await.unwrap(), Some(bytes("first")));
    assert_eq!(paths(&there).await.len(), 3);
    there.write(&segment(), bytes("second")).await.unwrap();
    assert_eq!(paths(&there).await.len(), 3);
}

#[tokio::test]
async fn a_file_is_the_same_under_another_compression() {
    let store = Arc::default();
    let before = repository(&store, Layout::Plain, Compression::Gzip(6));
    before.write(&segment(), bytes("WAL")).await.unwrap();
    let now = repository(&store, Layout::Plain, Compression::Zstd(1));
    assert_eq!(now.write(&segment(), bytes("WAL")).await.unwrap(), Written::Same);
    assert_eq!(now.read(&segment()).await.unwrap(), Some(bytes("WAL")));
    assert!(matches!(now.write(&segment(), bytes("other")).await.unwrap(), Written::Conflict { .. }));
    // Also if the checksum never came.
    now.storage().delete("000000010000000000000003.sha256").await.unwrap();
    assert_eq!(now.read(&segment()).await.unwrap(), Some(bytes("WAL")));
    assert_eq!(now.write(&segment(), bytes("WAL")).await.unwrap(), Written::Same);
}

#[tokio::test]
async fn a_crash_between_object_and_checksum_is_made_good() {
    let there = repository(&Arc::default(), Layout::Plain, Compression::Zstd(3));
    there.write(&segment(), bytes("WAL")).await.unwrap();
    let before = there.sidecar(&segment()).await.unwrap();
    there.storage().delete("000000010000000000000003.sha256").await.unwrap();
    assert_eq!(there.write(&segment(), bytes("WAL")).await.unwrap(), Written::Same);
    assert_eq!(there.sidecar(&segment()).await.unwrap(), before);
    // The other way round, somebody has removed the object.
    there.storage().delete("000000010000000000000003.zst").await.unwrap();
    assert!(matches!(there.read(&segment()).await, Err(ReadError::Damaged { .. })));
    assert!(matches!(there.write(&segment(), bytes("WAL")).await.unwrap(), Written::New { .. }));
    assert_eq!(there.read(&segment()).await.unwrap(), Some(bytes("WAL")));
}

#[tokio::test]
async fn damage_shows_and_is_replaced() {
    for compression in [Compression::None, Compression::Lz4] {
        let there = repository(&Arc::default(), Layout::BarmanCloud, compression);
        there.write(&segment(), bytes("write-ahead log")).await.unwrap();
        let path = there.layout().file(&segment(), there.codec.format());
        for damage in ["", "write-ahead bog", "write"] {
            there.storage().put(&path, bytes(damage)).await.unwrap();
            let Err(ReadError::Damaged { path: at, .. }) = there.read(&segment()).await else {
                panic!("{damage} passes for WAL");
            };
            assert_eq!(at, path);
            there.replace(&segment(), bytes("write-ahead log")).await.unwrap();
            assert_eq!(there.read(&segment()).await.unwrap(), Some(bytes("write-ahead log")));
        }
        let kept = paths(&there).await.iter().filter(|path| path.contains(".damaged-")).count();
        assert_eq!(kept, 3);
    }
}

#[tokio::test]
async fn pieces_are_put_together_as_far_as_they_reach() {
    let there = repository(&Arc::default(), Layout::Plain, Compression::Lz4);
    assert_eq!(there.read_beginning(&segment()).await.unwrap(), b"");
    let all = "0123456789";
    let mut chunks = Vec::new();
    for (start, end) in [(0, 2), (2, 5), (4, 7), (8, 10)] {
        chunks.push(there.write_chunk(&segment(), start, bytes(&all[start as usize..end])).await.unwrap());
    }
    assert_eq!(there.chunks(&segment()).await.unwrap(), chunks);
    assert_eq!(there.read_beginning(&segment()).await.unwrap(), b"0123456");
    there.write_chunk(&segment(), 0, bytes(all)).await.unwrap();
    assert_eq!(there.read_beginning(&segment()).await.unwrap(), all.as_bytes());
    there.remove_chunks(&chunks).await.unwrap();
    assert_eq!(there.chunks(&segment()).await.unwrap().len(), 1);
    there.remove_all_chunks(&segment()).await.unwrap();
    assert_eq!(paths(&there).await, [""; 0]);
}

#[tokio::test]
async fn a_damaged_piece_shows() {
    let there = plain(&Arc::default());
    let chunk = there.write_chunk(&segment(), 0, bytes("0123")).await.unwrap();
    let path = there.layout().chunk(&chunk, Format::PLAIN);
    there.storage().put(&path, bytes("01x3")).await.unwrap();
    assert!(matches!(there.read_beginning(&segment()).await, Err(ReadError::Damaged { .. })));
}

#[tokio::test]
async fn removal_takes_the_checksum_first() {
    let there = plain(&Arc::default());
    there.write(&segment(), bytes("WAL")).await.unwrap();
    let entries = there.list().await.unwrap();
    let file = entries.iter().find(|entry| matches!(entry.item, Item::File(..))).unwrap();
    there.remove(file).await.unwrap();
    assert_eq!(paths(&there).await, [""; 0]);
    assert_eq!(there.read(&segment()).await.unwrap(), None);
}

#[tokio::test]
async fn two_writers_of_the_same_file_agree() {
    let store = Arc::default();
    let there = repository(&store, Layout::Plain, Compression::Zstd(1));
    let (segment, other) = (segment(), there.clone());
    let (one, two) = tokio::join!(there.write(&segment, bytes("WAL")), other.write(&segment, bytes("WAL")));
    let new = [one.unwrap(), two.unwrap()].iter().filter(|it| matches!(it, Written::New { .. })).count();
    assert_eq!(new, 1);
}

fn storage_of(dir: &std::path::Path) -> Storage {
    let url = format!("file://{}", dir.display());
    Storage::open(&crate::objects::ObjectPlace::parse(&url).unwrap()).unwrap()
}

fn over_directory(storage: Storage) -> Repository {
    Repository::over(storage, "test", Layout::Plain, Codec::default())
}

/// A repository in a directory, which is waited for as anywhere.
fn in_directory(dir: &std::path::Path) -> Repository {
    over_directory(storage_of(dir))
}

/// A segment of 1 MB with this number.
fn wal(segno: u64) -> Bytes {
    use walrelay_proto::generate::WalGenerator;
    use walrelay_proto::{Lsn, SegSize, SystemId, TimelineId, WalIdentity};
    let id = WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(1 << 20).unwrap() };
    let mut wal = WalGenerator::new(id, TimelineId::FIRST, Lsn::new(segno << 20), segno);
    wal.fill(1 << 20);
    wal.take()[..1 << 20].to_vec().into()
}

#[tokio::test]
async fn a_file_that_somebody_is_still_writing_gets_no_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let (there, path) = (in_directory(dir.path()), dir.path().join(segment().as_str()));
    let whole = wal(3);
    for half in [0, 1, 500_000, (1 << 20) - 1] {
        std::fs::write(&path, &whole[..half]).unwrap();
        let error = there.write(&segment(), whole.clone()).await.unwrap_err();
        assert!(matches!(error, WriteError::Unfinished { .. }), "{half}: {error}");
    }
    // At full size from the start, and filled.
    let mut filling = whole.to_vec();
    filling[300_000..].fill(0);
    std::fs::write(&path, &filling).unwrap();
    let error = there.write(&segment(), whole.clone()).await.unwrap_err();
    assert!(matches!(error, WriteError::Unfinished { .. }), "{error}");
    assert!(there.sidecar(&segment()).await.unwrap().is_none());
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(there.write(&segment(), whole.clone()).await.unwrap(), Written::Same);
    assert!(there.read(&segment()).await.unwrap() == Some(whole.clone()));
    // A checksum of half a file, as earlier versions have stored it, is made good.
    let half = Sidecar::describe(segment().as_str(), &whole[..9], &whole[..9], Sha256::of(&whole[..9]));
    there.storage().put("000000010000000000000003.sha256", half.format().into()).await.unwrap();
    assert_eq!(there.write(&segment(), whole.clone()).await.unwrap(), Written::Same);
    assert!(there.read(&segment()).await.unwrap() == Some(whole));
}

#[tokio::test]
async fn whole_wal_of_another_cluster_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (there, path) = (in_directory(dir.path()), dir.path().join(segment().as_str()));
    // Right WAL, other records.
    let mut other = wal(3).to_vec();
    other[24..32].copy_from_slice(&78u64.to_le_bytes());
    std::fs::write(&path, &other).unwrap();
    let written = there.write(&segment(), wal(3)).await.unwrap();
    assert!(matches!(written, Written::Conflict { .. }), "{written:?}");
    // What is no WAL at all, and has lain there for long, is nothing that becomes it.
    let old = name("000000010000000000000004");
    let file = std::fs::File::create(dir.path().join(old.as_str())).unwrap();
    std::io::Write::write_all(&mut &file, b"notes").unwrap();
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    let written = there.write(&old, wal(4)).await.unwrap();
    assert!(matches!(written, Written::Conflict { .. }), "{written:?}");
}

#[tokio::test]
async fn a_place_that_hangs_is_an_error_in_time_and_costs_the_others_nothing() {
    let (dir, fine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Only what hangs is hurried: a busy machine takes its time for what goes well.
    let hung = over_directory(storage_of(dir.path()).patient_for(std::time::Duration::from_millis(200)));
    let fine = in_directory(fine.path());
    // Whoever opens a FIFO that nobody writes to waits.
    let fifo = dir.path().join("000000010000000000000003.sha256");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let error = hung.write(&segment(), wal(3)).await.unwrap_err().to_string();
    assert!(error.contains("no answer in"), "{error}");
    assert!(hung.read(&segment()).await.unwrap_err().to_string().contains("no answer in"));
    fine.write(&segment(), wal(3)).await.unwrap();
    assert!(fine.read(&segment()).await.unwrap() == Some(wal(3)));
    // The threads that hang are let go.
    let writer = rustix::fs::open(
        &fifo,
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK,
        rustix::fs::Mode::empty(),
    );
    drop(writer);
}

#[tokio::test]
async fn what_is_too_large_is_damaged_and_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let there = in_directory(dir.path());
    there.write(&segment(), wal(3)).await.unwrap();
    let huge = |name: &str| {
        std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.path().join(name))
            .unwrap()
            .set_len(1 << 40)
            .unwrap()
    };
    for file in ["000000010000000000000004", "000000010000000000000005.zst", "00000002.history"] {
        huge(file);
        let (stem, _) = Format::split(file);
        let error = there.read(&name(stem)).await.unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }), "{file}: {error}");
    }
    // A segment that is longer than it says.
    huge(segment().as_str());
    let error = there.read(&segment()).await.unwrap_err();
    assert!(error.to_string().contains("expected 1048576"), "{error}");
    huge("000000010000000000000003.sha256");
    assert!(matches!(there.read(&segment()).await, Err(ReadError::Damaged { .. })));
}

#[tokio::test]
async fn what_could_not_be_synced_is_written_again() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let (there, path) = (in_directory(dir.path()), dir.path().join(segment().as_str()));
    there.write(&segment(), wal(3)).await.unwrap();
    let inode = || std::fs::metadata(&path).unwrap().ino();
    let before = inode();
    assert_eq!(there.write(&segment(), wal(3)).await.unwrap(), Written::Same);
    assert_eq!(inode(), before);
    assert_eq!(there.write_again(&segment(), wal(3)).await.unwrap(), Written::Same);
    assert_ne!(inode(), before);
    assert!(there.read(&segment()).await.unwrap() == Some(wal(3)));
    // What its checksum promises is not what has reached the disk.
    for lost in [vec![0; 1 << 20], Vec::new()] {
        std::fs::write(&path, lost).unwrap();
        assert_eq!(there.write_again(&segment(), wal(3)).await.unwrap(), Written::Same);
        assert!(there.read(&segment()).await.unwrap() == Some(wal(3)));
    }
    // Written by somebody who compresses.
    let storage = storage_of(dir.path());
    let packing = Codec::new(Compression::Zstd(1), None, false);
    let packing = Repository::over(storage, "test", Layout::Plain, packing);
    assert_eq!(packing.write_again(&segment(), wal(3)).await.unwrap(), Written::Same);
    assert!(!path.exists() && there.read(&segment()).await.unwrap() == Some(wal(3)));
    // Of what is not there nothing is believed either.
    let other = name("000000010000000000000004");
    assert!(matches!(there.write_again(&other, wal(4)).await.unwrap(), Written::New { .. }));
}

/// Who has only recipients can read nothing back, and what is encrypted twice differs.
#[tokio::test]
async fn an_own_object_whose_answer_was_lost_is_known_also_without_a_key_to_read_it() {
    for has_ended in [false, true] {
        is_known_without_a_key(has_ended).await;
    }
}

async fn is_known_without_a_key(has_ended: bool) {
    let dir = tempfile::tempdir().unwrap();
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    let file = dir.path().join("recipients");
    std::fs::write(&file, format!("{recipient}\n")).unwrap();
    let codec = || Codec::new(Compression::Zstd(1), Some(Keys::load(&file).unwrap()), false);
    let archive = dir.path().join("archive");
    std::fs::create_dir(&archive).unwrap();
    // The file has its name, and whoever wrote it does not hear of it.
    let lost = std::sync::atomic::AtomicBool::new(false);
    let name = archive.join(format!("{}.zst.age", segment()));
    let fault = move |file: &std::fs::File| {
        let is_named = file.metadata()?.is_dir() && name.exists();
        match is_named && !lost.swap(true, std::sync::atomic::Ordering::SeqCst) {
            true => Err(std::io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    };
    let storage = storage_of(&archive).with_fault(Box::new(fault));
    let kept = Arc::new(std::sync::Mutex::new(String::new()));
    let remembering = |storage| {
        let (there, kept) = (Repository::over(storage, "test", Layout::Plain, codec()), kept.clone());
        let text = kept.lock().unwrap().clone();
        let keep = move |text: &str| {
            text.clone_into(&mut kept.lock().unwrap());
            Ok(())
        };
        there.keep_sent(&text, Arc::new(keep));
        there
    };
    let there = remembering(storage);
    there.write(&segment(), wal(3)).await.unwrap_err();
    // The process that has sent it may have ended.
    let there = if has_ended { remembering(storage_of(&archive)) } else { there };
    assert_eq!(there.write(&segment(), wal(3)).await.unwrap(), Written::Same);
    let sidecar = there.sidecar(&segment()).await.unwrap().unwrap();
    assert_eq!(sidecar.plain_sha256, Sha256::of(&wal(3)));
    assert_eq!(there.write(&segment(), wal(3)).await.unwrap(), Written::Same);
    // Somebody else's is still that.
    let fourth = FileName::parse("000000010000000000000004").unwrap();
    there.storage().put("000000010000000000000004.zst.age", bytes("whose?")).await.unwrap();
    let old = archive.join("000000010000000000000004.zst.age");
    let hour = std::time::Duration::from_secs(3600);
    let file = std::fs::File::options().write(true).open(&old).unwrap();
    file.set_modified(std::time::SystemTime::now() - hour).unwrap();
    assert!(matches!(there.write(&fourth, wal(4)).await.unwrap(), Written::Conflict { .. }));
}

/// Its directory's sync has failed, and after a crash not even the file's first one is to be believed.
#[tokio::test]
async fn what_was_lost_before_it_had_a_checksum_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let (there, path) = (in_directory(dir.path()), dir.path().join(segment().as_str()));
    let (sidecar, hour) =
        (dir.path().join(format!("{}.sha256", segment())), std::time::Duration::from_secs(3600));
    let mut half = wal(3).to_vec();
    half[300_000..].fill(0);
    for (left, age) in
        [(vec![0; 1 << 20], 2), (half.clone(), 0), (half, 2), (Vec::new(), 2), (wal(3)[..9].to_vec(), 0)]
    {
        let _ = std::fs::remove_file(&sidecar);
        std::fs::write(&path, &left).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - hour * age).unwrap();
        assert_eq!(there.write_again(&segment(), wal(3)).await.unwrap(), Written::Same, "{}", left.len());
        assert!(there.read(&segment()).await.unwrap() == Some(wal(3)), "{}", left.len());
    }
    // Of larger segments, the beginning lost.
    let large: Bytes = wal(3).repeat(24).into();
    let mut left = large.to_vec();
    left[..8192].fill(0);
    let _ = std::fs::remove_file(&sidecar);
    std::fs::write(&path, &left).unwrap();
    assert_eq!(there.write_again(&segment(), large.clone()).await.unwrap(), Written::Same);
    assert!(std::fs::read(&path).unwrap() == large);
    let conflicts = paths(&there).await.into_iter().filter(|path| path.contains(".conflict-")).count();
    assert_eq!(conflicts, 0);
    // Whole WAL of somebody else's stays.
    let mut other = wal(3).to_vec();
    other[24..32].copy_from_slice(&78u64.to_le_bytes());
    std::fs::remove_file(&sidecar).unwrap();
    std::fs::write(&path, &other).unwrap();
    let written = there.write_again(&segment(), wal(3)).await.unwrap();
    assert!(matches!(written, Written::Conflict { .. }), "{written:?}");
    assert!(std::fs::read(&path).unwrap() == other);
    // What nothing can be told of is kept aside.
    let partial = name("000000010000000000000004.partial");
    there.storage().put(partial.as_str(), bytes("whose?")).await.unwrap();
    assert_eq!(there.write_again(&partial, wal(4)).await.unwrap(), Written::Same);
    assert!(there.read(&partial).await.unwrap() == Some(wal(4)));
    let kept = |path: &String| path.starts_with("000000010000000000000004.partial.damaged-");
    let kept: Vec<_> = paths(&there).await.into_iter().filter(kept).collect();
    assert_eq!(there.storage().get(&kept[0]).await.unwrap(), Some(bytes("whose?")));
}

#[tokio::test]
async fn what_comes_later_is_listed_in_every_layout() {
    for layout in [Layout::Plain, Layout::Barman, Layout::BarmanCloud] {
        let there = repository(&Arc::default(), layout, Compression::None);
        for file in [
            "000000010000000000000002",
            "000000010000000000000005",
            "00000002.history",
            "000000020000000000000006",
        ] {
            there.write(&name(file), bytes("x")).await.unwrap();
        }
        there.write_chunk(&name("000000020000000000000007"), 0, bytes("x")).await.unwrap();
        let later = there.later(&segment()).await.unwrap();
        let mut later: Vec<_> = later.iter().map(FileName::as_str).collect();
        later.sort_unstable();
        let expected = [
            "000000010000000000000005",
            "00000002.history",
            "000000020000000000000006",
            "000000020000000000000007",
        ];
        assert_eq!(later, expected, "{layout:?}");
    }
}

#[tokio::test]
async fn work_of_our_own_is_not_the_silence_of_the_place() {
    let repository = plain(&Arc::default());
    let pulse = repository.storage().pulse().clone();
    let before = pulse.last();
    let until_heard = move || {
        while pulse.last() == before {
            std::thread::yield_now();
        }
    };
    repository.ours(until_heard).await;
}

/// The most memory that this process ever had, in bytes; the kernel adds up what its processors counted, so that it may be a little
/// less than it said before.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

const ALONE: &str = "WALRELAY_TEST_ALONE";

/// Memory is a process's, so this one has a process of its own.
#[test]
fn a_large_file_without_a_checksum_is_compared_with_little_of_it_in_memory() {
    if std::env::var_os(ALONE).is_some() {
        return compares_in_little_memory();
    }
    let test = "a_large_file_without_a_checksum_is_compared_with_little_of_it_in_memory";
    let test = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", &test, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::main]
async fn compares_in_little_memory() {
    use walrelay_proto::generate::WalGenerator;
    use walrelay_proto::{Lsn, SegNo, SegSize, SystemId, TimelineId, WalFileName, WalIdentity};
    const SIZE: usize = 64 << 20;
    let id = WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SIZE as u64).unwrap() };
    let mut first = WalGenerator::new(id, TimelineId::FIRST, Lsn::new(3 * SIZE as u64), 3);
    first.fill(8192);
    // Zeros that nobody writes to take no memory.
    let mut plain = vec![0; SIZE];
    plain[..8192].copy_from_slice(&first.take()[..8192]);
    let plain = Bytes::from(plain);
    let name = FileName::segment(WalFileName::new(TimelineId::FIRST, SegNo::new(3)), id.seg_size);
    for compression in [Compression::None, Compression::Zstd(1), Compression::Lz4] {
        let dir = tempfile::tempdir().unwrap();
        let storage = storage_of(dir.path());
        let codec = Codec::new(compression, None, false);
        let path = dir.path().join(format!("{name}{}", codec.format().suffix()));
        let file = std::fs::File::create(path).unwrap();
        codec.encode_to(&plain.clone().into(), file).unwrap();
        let there = Repository::over(storage, "test", Layout::Plain, codec);
        let before = peak();
        assert_eq!(there.write(&name, plain.clone()).await.unwrap(), Written::Same);
        let grown = peak().saturating_sub(before);
        assert!(grown < SIZE as u64 / 2, "{compression:?}: {grown} bytes");
        assert_eq!(there.sidecar(&name).await.unwrap().unwrap().plain_size, SIZE as u64);
        // Nor is it in memory when it is read.
        let before = peak();
        let size = Arc::new(AtomicU64::new(0));
        let seen = size.clone();
        let look: Look = Arc::new(move |content| {
            seen.store(std::io::copy(content, &mut std::io::sink()).unwrap(), Ordering::Relaxed);
            true
        });
        assert!(there.show(&name, SIZE as u64, &look).await.unwrap());
        let grown = peak().saturating_sub(before);
        assert!(grown < 8 << 20, "{compression:?}: {grown} bytes");
        assert_eq!(size.load(Ordering::Relaxed), SIZE as u64);
        // Nor when it is kept aside for another one.
        let before = peak();
        there.replace(&name, plain.clone()).await.unwrap();
        let grown = peak().saturating_sub(before);
        assert!(grown < SIZE as u64 / 2, "{compression:?}: {grown} bytes");
        let aside = |path: &&String| path.contains(".damaged-");
        assert_eq!(paths(&there).await.iter().filter(aside).count(), 1);
    }
}

/// Merged pieces of a large segment are larger than a usual one, and none but the first has its header.
#[tokio::test]
async fn large_pieces_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let codec = Codec::new(Compression::Zstd(1), None, false);
    let there = Repository::over(storage_of(dir.path()), "test", Layout::Plain, codec);
    let bytes = Bytes::from(vec![7; 17 << 20]);
    let chunk = there.write_chunk(&segment(), 16 << 20, bytes.clone()).await.unwrap();
    assert!(there.read_chunk(&chunk).await.unwrap() == Some(bytes));
}
