//! A worker over a directory whose writes and syncs fail or hang, and over a store that is slow.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc;

use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{SegNo, SystemId, TimelineHistory, TimelineId, WalIdentity};
use walrelay_testkit::wait_until;

use super::*;
use crate::archive::out::reading;
use crate::archive::repo::codec::{Codec, Compression};
use crate::archive::repo::content::Content;
use crate::archive::repo::layout::Layout;
use crate::archive::repo::repository::WriteError;
use crate::archive::repo::target::Place;
use crate::objects::{Fault, ObjectPlace, Storage};
use crate::store::{Background, Identity, StoreConfig, UpstreamParameters, WalWrite, Writer};

const SEG: u64 = 1 << 20;
/// The segments that are there to be archived.
pub(crate) const FIRST: u64 = 3;
pub(crate) const LAST: u64 = 5;

fn id() -> WalIdentity {
    WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SEG).unwrap() }
}

pub(crate) fn segment(segno: u64) -> FileName {
    FileName::segment(WalFileName::new(TimelineId::FIRST, SegNo::new(segno)), id().seg_size)
}

/// What is on its way at the end has this long.
const GRACE: Duration = Duration::from_millis(200);

type Order = watch::Sender<Option<Arc<Wanted>>>;

/// A store with some finished segments, and a directory to archive them to.
pub(crate) struct Setting {
    pub(crate) store: Arc<Store>,
    pub(crate) target: Target,
    pub(crate) dir: tempfile::TempDir,
    stop: CancellationToken,
    writer: Writer,
    wal: WalGenerator,
    _background: Background,
}

impl Setting {
    pub(crate) fn new() -> Setting {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("archive")).unwrap();
        let (store, mut writer, background) = Store::open(StoreConfig {
            data_dir: dir.path().join("relay"),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 1 << 30,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        })
        .unwrap();
        let identity = Identity { system_id: id().system_id, seg_size: id().seg_size };
        store.attach(identity, UpstreamParameters::default()).unwrap();
        let start = Lsn::new(FIRST * SEG);
        let mut wal = WalGenerator::new(id(), TimelineId::FIRST, start, 3);
        wal.fill(((LAST + 1 - FIRST) * SEG + SEG / 2) as usize);
        writer.begin(identity, TimelineHistory::first(), start);
        writer.append(start, &wal.take()).unwrap();
        writer.commit();
        let url = format!("file://{}", dir.path().join("archive").display());
        let place = Place::Objects(ObjectPlace::parse(&url).unwrap());
        let target = Target { concurrency: 1, ..Target::new("main".to_owned(), place) };
        let stop = CancellationToken::new();
        let it = Setting { store, target, dir, stop, writer, wal, _background: background };
        it.wait_for_segment(LAST);
        it
    }

    fn wait_for_segment(&self, segno: u64) {
        let name = segment(segno).to_string();
        wait_until(&name, || self.store.wal_files().unwrap().contains(&name));
    }

    /// Finishes one more segment, the one after this.
    pub(crate) fn more(&mut self, last: u64) {
        let start = self.wal.position();
        self.wal.fill(SEG as usize);
        self.writer.append(start, &self.wal.take()).unwrap();
        self.writer.commit();
        self.wait_for_segment(last + 1);
    }

    fn archive(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    fn inode(&self, segno: u64) -> Option<u64> {
        fs::metadata(self.archive().join(segment(segno).as_str())).ok().map(|found| found.ino())
    }

    /// The directory, whose calls have this long.
    fn directory(&self, patience: Duration) -> Storage {
        let Place::Objects(place) = &self.target.place else { panic!("it is a directory") };
        Storage::open(place).unwrap().patient_for(patience)
    }

    /// Starts a worker whose calls have this long.
    fn start(&self, patience: Duration, fault: Fault) -> tokio::task::JoinHandle<()> {
        let (worker, order) = self.start_over(self.directory(patience).with_fault(fault));
        tokio::spawn(async move {
            worker.await.unwrap();
            drop(order);
        })
    }

    /// Starts a worker for this place, and what tells it what it is to be.
    fn start_over(&self, storage: Storage) -> (tokio::task::JoinHandle<()>, Order) {
        let (worker, listings, order) = self.worker_over(storage);
        let stop = self.stop.clone();
        let worker = tokio::spawn(async move {
            worker.run(stop, GRACE.into()).await;
            drop(listings);
        });
        (worker, order)
    }

    /// The same before it runs, with what tells it what there is.
    fn worker_over(&self, storage: Storage) -> (Worker, watch::Sender<Option<Arc<Listing>>>, Order) {
        let sink = Sink::Objects(Repository::over(storage, "main", Layout::Plain, Codec::default()));
        let tip = self.store.tip().unwrap();
        let names = self.store.wal_files().unwrap();
        let listing = Listing {
            way: self.store.holds().way(),
            ..Listing::new(&names, id().seg_size, self.store.history(), tip.write_lsn)
        };
        let (listings, listing) = watch::channel(Some(Arc::new(listing)));
        let floors = Arc::new(Floors::new(self.store.clone()));
        floors.expect("main", self.target.identity());
        let places = Arc::new(Places::new(self.store.data_dir()));
        let now = Arc::new(Wanted { target: self.target.clone(), sink });
        let (order, wanted) = watch::channel(Some(now.clone()));
        let worker = Worker::new(now, wanted, self.store.clone(), floors, places, listing);
        (worker, listings, order)
    }

    /// What counts: what is saved.
    fn saved(&self) -> Progress {
        let text = self.store.read_state("archive-main.toml").unwrap().unwrap_or_default();
        let identity = self.target.identity();
        Progress::parse(&text, id().seg_size, &identity)
            .unwrap_or_else(|| Progress::new(id().seg_size, identity))
    }

    fn wait_for(&self, what: &str, ready: impl Fn(&Progress) -> bool) {
        wait_until(format_args!("{what}: {:?}", self.saved()), || ready(&self.saved()));
    }
}

/// What has been synced: each file's inode, each directory as `None`.
type Synced = Arc<Mutex<Vec<Option<u64>>>>;

/// Runs until everything counts, and insists that what lay there at the failure does not count before it was written anew
/// and synced, its directory after it.
async fn counts_when_it_was_synced_again(it: &Setting, patience: Duration, hang: Option<mpsc::Receiver<()>>) {
    let synced = Synced::default();
    let (archive, name) = (it.archive(), it.archive().join(segment(FIRST).as_str()));
    let (log, hang, failed) = (synced.clone(), Mutex::new(hang), Arc::new(Mutex::new(false)));
    let has_failed = failed.clone();
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let fault = move |file: &fs::File| {
        let found = file.metadata()?;
        let is_named = found.is_dir() && name.exists();
        if is_named && !std::mem::replace(&mut *failed.lock().unwrap(), true) {
            if let Some(hang) = hang.lock().unwrap().take() {
                let _ = hang.recv();
            }
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        if *failed.lock().unwrap() {
            // Until the test has looked.
            let _ = wait.lock().unwrap().recv();
        }
        log.lock().unwrap().push((!found.is_dir()).then_some(found.ino()));
        Ok(())
    };
    let worker = it.start(patience, Box::new(fault));
    // On a busy machine what came before may have been late, too.
    it.wait_for("a suspect", |saved| saved.is_suspect(&segment(FIRST)) && *has_failed.lock().unwrap());
    let before = it.inode(FIRST);
    assert!(before.is_some() && archive.exists(), "its content is there");
    assert!(!it.saved().is_done(&segment(FIRST)));
    synced.lock().unwrap().clear();
    drop(go_on);
    it.wait_for("everything to count", |saved| (FIRST..=LAST).all(|segno| saved.is_done(&segment(segno))));
    let now = it.inode(FIRST);
    assert!(now.is_some() && now != before, "{before:?} is still there");
    let synced = synced.lock().unwrap().clone();
    let file = synced.iter().position(|one| *one == now).expect("its new file was synced");
    assert!(synced[file..].contains(&None), "and its directory: {synced:?}");
    assert!(!it.saved().is_suspect(&segment(FIRST)));
    it.stop.cancel();
    worker.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_after_a_failed_sync_counts_when_it_was_synced_again() {
    counts_when_it_was_synced_again(&Setting::new(), Duration::from_secs(30), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_after_a_sync_that_timed_out_counts_when_it_was_synced_again() {
    let (release, hang) = mpsc::channel();
    counts_when_it_was_synced_again(&Setting::new(), Duration::from_millis(300), Some(hang)).await;
    drop(release);
}

/// Nothing fails, and nothing is taken: that is seen, and its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_neither_taken_nor_refused_is_seen_to_be_stalled() {
    let it = Setting::new();
    let name = it.archive().join(segment(FIRST).as_str());
    let (release, hang) = mpsc::channel::<()>();
    let hang = Mutex::new(hang);
    let fault = move |file: &fs::File| {
        if file.metadata()?.is_dir() && name.exists() {
            let _ = hang.lock().unwrap().recv();
        }
        Ok(())
    };
    let storage = it.directory(Duration::from_secs(300)).with_fault(Box::new(fault));
    let (mut worker, listings, order) = it.worker_over(storage);
    worker.report_every = Duration::from_millis(200);
    let (board, stop) = (worker.board.clone(), it.stop.clone());
    let worker = tokio::spawn(async move {
        worker.run(stop, GRACE.into()).await;
        drop(listings);
    });
    wait_until("it to be seen", || board.seen().stalled_since.is_some());
    let seen = board.seen();
    assert_eq!((seen.failures, seen.failing_since), (0, seen.stalled_since));
    assert!(seen.pending_files > 0, "{seen:?}");
    drop(release);
    wait_until("all to be taken", || board.seen().archived_files > LAST - FIRST);
    wait_until("nothing to be stalled", || board.seen().failing_since.is_none());
    it.stop.cancel();
    worker.await.unwrap();
    drop(order);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_at_the_end_of_a_run_is_a_suspect_of_the_next() {
    let it = Setting::new();
    let name = it.archive().join(segment(FIRST).as_str());
    let (release, hang) = mpsc::channel::<()>();
    let (say, reached) = mpsc::channel();
    let hang = Mutex::new(hang);
    let fault = move |file: &fs::File| {
        if file.metadata()?.is_dir() && name.exists() {
            let _ = say.send(());
            let _ = hang.lock().unwrap().recv();
        }
        Ok(())
    };
    let worker = it.start(Duration::from_secs(30), Box::new(fault));
    reached.recv().unwrap();
    it.stop.cancel();
    worker.await.unwrap();
    assert!(it.inode(FIRST).is_some(), "its content is there");
    let saved = it.saved();
    assert!(saved.is_suspect(&segment(FIRST)) && !saved.is_done(&segment(FIRST)), "{saved:?}");
    drop(release);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_the_map_whatever_the_segments_size() {
    let it = Setting::new();
    let here = it.store.finished_segment(WalFileName::new(TimelineId::FIRST, SegNo::new(FIRST))).unwrap();
    let content = reading::content(&it.store, &segment(FIRST), id().seg_size).unwrap().unwrap();
    let (content, map) = (content.whole().unwrap(), here.bytes(0, SEG as usize));
    assert_eq!((content.as_ptr(), content.len()), (map.as_ptr(), map.len()));
    // Parts of it, as pieces take them, too.
    let piece = Content::part(here.clone(), 100, SEG).whole().unwrap();
    assert_eq!((piece.as_ptr(), piece.len()), (map[100..].as_ptr(), map.len() - 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unfinished_segment_of_a_timeline_that_was_left_is_sent_from_a_map() {
    let it = Setting::new();
    let name = FileName::parse(&format!("{}.partial", segment(LAST + 5))).unwrap();
    let (path, whole) = (it.store.wal_path(name.as_str()), vec![7; SEG as usize]);
    fs::write(&path, &whole).unwrap();
    let names = || {
        let entries = fs::read_dir(path.parent().unwrap()).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    let content = reading::content(&it.store, &name, id().seg_size).unwrap().unwrap();
    // Its timeline is taken up again, and written to.
    fs::write(&path, vec![8; SEG as usize]).unwrap();
    let content = content.whole().unwrap();
    assert!(content[..] == whole[..] && names() == before);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let map = maps.lines().find(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let at = |text| usize::from_str_radix(text, 16).unwrap();
        (at(from)..at(to)).contains(&(content.as_ptr() as usize))
    });
    assert!(map.is_some_and(|map| map.ends_with("(deleted)")), "it is in memory: {map:?}");
    // Half of one is sent as it is.
    fs::write(&path, b"half").unwrap();
    let half = reading::content(&it.store, &name, id().seg_size).unwrap().unwrap();
    let (mut bytes, mut again) = (Vec::new(), Vec::new());
    half.write_to(&mut bytes).unwrap();
    assert_eq!((&bytes[..], half.whole()), (&b"half"[..], None), "it is not in memory");
    half.write_to(&mut again).unwrap();
    assert_eq!(again, bytes);
    fs::write(&path, b"more").unwrap();
    assert!(half.write_to(&mut again).unwrap_err().to_string().contains("written to while it was read"));
    fs::remove_file(&path).unwrap();
    assert!(reading::content(&it.store, &name, id().seg_size).unwrap().is_none());
}

/// What this thread logs, for as long as the guard lives.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn listen() -> (Lines, tracing::subscriber::DefaultGuard) {
        let lines = Lines::default();
        let out = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || out.clone()).finish();
        (lines, tracing::subscriber::set_default(log))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    async fn wait_for(&self, expected: &str) {
        until(|| self.text().contains(expected), || format!("{expected}: {}", self.text())).await;
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Waits for a condition on the thread that the worker runs on; in a paused runtime that takes no time.
async fn until(ready: impl Fn() -> bool, what: impl Fn() -> String) {
    let until = Instant::now() + Duration::from_secs(120);
    while !ready() {
        assert!(Instant::now() < until, "{}", what());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A store in memory in which removing something takes a tenth of a second, and what is in it.
fn slow_removals(old: &[String]) -> (Arc<object_store::memory::InMemory>, Storage) {
    use object_store::ObjectStoreExt;
    use object_store::throttle::{ThrottleConfig, ThrottledStore};
    let objects = Arc::new(object_store::memory::InMemory::new());
    let put = |path: &str, size: u64| {
        let path = path.into();
        let put = objects.put(&path, vec![1; size as usize].into());
        put.now_or_never().expect("it is in memory").unwrap();
    };
    old.iter().for_each(|path| put(path, SEG / 8));
    // The newest of them, which alone is as much as is to stay.
    put("000000010000000000000002", 4 * SEG);
    let slow =
        ThrottleConfig { wait_delete_per_call: Duration::from_millis(100), ..ThrottleConfig::default() };
    (objects.clone(), Storage::over(Arc::new(ThrottledStore::new(objects, slow)), ""))
}

async fn names(objects: &object_store::memory::InMemory) -> Vec<String> {
    use futures_util::TryStreamExt;
    use object_store::ObjectStore;
    let all: Vec<_> = objects.list(None).try_collect().await.unwrap();
    all.into_iter().map(|one| one.location.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn retention_removes_much_and_holds_up_no_upload() {
    let mut it = Setting::new();
    it.target.keep_size = Some(4 * SEG);
    // Of another timeline, long ago; numbers decide, and these are lower than what is sent.
    let old: Vec<_> = (1..=250).map(|tli: u32| format!("{tli:08X}0000000000000001")).collect();
    let (objects, storage) = slow_removals(&old);
    let (worker, _order) = it.start_over(storage);
    let sent = |names: &[String]| {
        (FIRST..=LAST).all(|segno| names.iter().any(|name| name == segment(segno).as_str()))
    };
    let left = |names: &[String]| names.iter().filter(|name| old.contains(name)).count();
    let begun = Instant::now();
    let mut at_arrival = None;
    loop {
        let names = names(&objects).await;
        if sent(&names) {
            at_arrival.get_or_insert(left(&names));
        }
        if left(&names) == 0 && at_arrival.is_some() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{at_arrival:?}, {} are left", left(&names));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(at_arrival > Some(240), "{at_arrival:?} were left when all had been sent");
    it.stop.cancel();
    worker.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn retention_says_what_keeps_it_from_its_size() {
    let (lines, _listening) = Lines::listen();
    let mut it = Setting::new();
    it.target.keep_size = Some(SEG);
    let mut old: Vec<_> = (1..=20).map(|tli: u32| format!("{tli:08X}0000000000000001")).collect();
    let label = "000000010000000000000001.00000028.backup";
    old.push(label.to_owned());
    let (objects, storage) = slow_removals(&old);
    let (worker, _order) = it.start_over(storage);
    lines.wait_for(&format!("because \"{label}\" keeps all WAL from its base backup on")).await;
    assert!(lines.text().contains("archive target \"main\" keeps "), "{}", lines.text());
    assert_eq!(names(&objects).await.iter().filter(|name| old.contains(name)).count(), old.len());
    it.stop.cancel();
    worker.await.unwrap();
}

#[tokio::test]
async fn a_directory_that_is_read_only_then_full_is_waited_for_and_taken_up_again() {
    use std::io::ErrorKind::{self, ReadOnlyFilesystem, StorageFull};
    let (lines, _listening) = Lines::listen();
    let it = Setting::new();
    let trouble = Arc::new(Mutex::new((Some(ReadOnlyFilesystem), HashMap::<ErrorKind, u32>::new())));
    let fails = trouble.clone();
    let fault = move |file: &fs::File| {
        let (now, met) = &mut *fails.lock().unwrap();
        let Some(kind) = *now else { return Ok(()) };
        if kind == StorageFull {
            // As much as there was room for.
            file.set_len(4096)?;
        }
        *met.entry(kind).or_default() += 1;
        Err(kind.into())
    };
    let (worker, _order) =
        it.start_over(it.directory(Duration::from_secs(30)).with_write_fault(Box::new(fault)));
    for (kind, next) in [(ReadOnlyFilesystem, Some(StorageFull)), (StorageFull, None)] {
        let met = || trouble.lock().unwrap().1.get(&kind).is_some_and(|times| *times >= 2);
        until(met, || format!("{kind}: {}", lines.text())).await;
        let saved = it.saved();
        assert!((FIRST..=LAST).all(|segno| !saved.is_done(&segment(segno))), "{kind}: {saved:?}");
        let wal = it.store.wal_files().unwrap();
        assert!((FIRST..=LAST).all(|segno| wal.contains(&segment(segno).to_string())), "{kind}: {wal:?}");
        trouble.lock().unwrap().0 = next;
    }
    let done = || (FIRST..=LAST).all(|segno| it.saved().is_done(&segment(segno)));
    until(done, || format!("{:?}: {}", it.saved(), lines.text())).await;
    let text = lines.text();
    assert_eq!(text.matches("could not archive").count(), 1, "{text}");
    assert!(text.contains("read-only filesystem") && text.contains("takes WAL again"), "{text}");
    for entry in fs::read_dir(it.archive()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(!name.starts_with(".walrelay-new"), "{name} was left");
        if FileName::parse(&name).is_some() {
            assert_eq!(entry.metadata().unwrap().len(), SEG, "{name}");
        }
    }
    it.stop.cancel();
    worker.await.unwrap();
}

#[tokio::test]
async fn a_stop_while_a_removed_target_ends_waits_no_longer_and_promises_nothing() {
    let (lines, _listening) = Lines::listen();
    let it = Setting::new();
    let name = it.archive().join(segment(FIRST).as_str());
    let (release, hang) = mpsc::channel::<()>();
    let reached = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (hang, say) = (Mutex::new(hang), reached.clone());
    let fault = move |file: &fs::File| {
        if file.metadata()?.is_dir() && name.exists() {
            say.store(true, std::sync::atomic::Ordering::SeqCst);
            let _ = hang.lock().unwrap().recv();
        }
        Ok(())
    };
    let (worker, order) = it.start_over(it.directory(Duration::from_secs(30)).with_fault(Box::new(fault)));
    until(|| reached.load(std::sync::atomic::Ordering::SeqCst), || lines.text()).await;
    order.send_replace(None);
    it.stop.cancel();
    worker.await.unwrap();
    let saved = it.saved();
    assert!(saved.is_suspect(&segment(FIRST)) && !saved.is_done(&segment(FIRST)), "{saved:?}");
    let text = lines.text();
    assert!(
        text.contains("has not taken 1 files in time when it was taken out of the configuration"),
        "{text}"
    );
    assert!(!text.contains("offered again"), "{text}");
    drop(release);
}

/// Somebody truncates it after it was looked at. What is compressed, encrypted, compared, summed up or written to a directory
/// is read so that this is an error; a signal would end the process.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_bad_while_it_is_sent_is_an_error_of_its_own() {
    let it = Setting::new();
    let wal = segment(FIRST).wal(id().seg_size).unwrap();
    let held = it.store.finished_segment(wal).unwrap();
    held.populate(0, SEG as usize).unwrap();
    let content = Content::of(held);
    content.digest().unwrap();
    let store: Arc<dyn object_store::ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let storages = [it.directory(Duration::from_secs(30)), Storage::over(store, "")];
    for storage in &storages {
        let there = Repository::over(storage.clone(), "main", Layout::Plain, Codec::default());
        there.send(&segment(LAST), content.clone(), false).await.unwrap();
        there.storage().delete(&there.layout().sidecar(&segment(LAST))).await.unwrap();
    }
    let path = it.store.wal_path(segment(FIRST).as_str());
    fs::File::options().write(true).open(path).unwrap().set_len(SEG / 2).unwrap();
    assert!(content.digest().is_err());
    for compression in [Compression::None, Compression::Zstd(1), Compression::Lz4, Compression::Gzip(1)] {
        let codec = Codec::new(compression, None, false);
        let error = codec.encode_to(&content, std::io::sink()).unwrap_err().to_string();
        assert!(error.contains("truncated"), "{error}");
    }
    let unreadable = |error: WriteError| {
        let Outcome::Unreadable(reason) = send::failure(error) else {
            panic!("it is not the target's fault")
        };
        assert!(reason.contains("truncated"), "{reason}");
    };
    for storage in storages {
        let codec = Codec::new(Compression::Zstd(1), None, false);
        let there = Repository::over(storage.clone(), "main", Layout::Plain, codec);
        for name in [segment(FIRST), segment(LAST)] {
            unreadable(there.send(&name, content.clone(), false).await.unwrap_err());
        }
        let before = storage.list("").await.unwrap().len();
        unreadable(there.send_chunk(&segment(FIRST), 0, content.clone()).await.unwrap_err());
        assert_eq!(storage.list("").await.unwrap().len(), before, "no half of it is left");
    }
}
