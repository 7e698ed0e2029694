//! A worker over a directory whose syncs fail or hang.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc;

use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{SegNo, SystemId, TimelineHistory, TimelineId, WalIdentity};
use walrelay_testkit::wait_until;

use super::*;
use crate::archive::codec::Codec;
use crate::archive::layout::Layout;
use crate::archive::storage::{Fault, Storage};
use crate::archive::target::{ObjectPlace, Place};
use crate::store::{Background, Identity, StoreConfig, UpstreamParameters, WalWrite, Writer};

const SEG: u64 = 1 << 20;
/// The segments that are there to be archived.
pub(in crate::archive) const FIRST: u64 = 3;
pub(in crate::archive) const LAST: u64 = 5;

fn id() -> WalIdentity {
    WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SEG).unwrap() }
}

pub(in crate::archive) fn segment(segno: u64) -> FileName {
    FileName::segment(WalFileName::new(TimelineId::FIRST, SegNo::new(segno)), id().seg_size)
}

/// A store with some finished segments, and a directory to archive them to.
pub(in crate::archive) struct Setting {
    pub(in crate::archive) store: Arc<Store>,
    pub(in crate::archive) target: Target,
    pub(in crate::archive) dir: tempfile::TempDir,
    stop: CancellationToken,
    writer: Writer,
    wal: WalGenerator,
    _background: Background,
}

impl Setting {
    pub(in crate::archive) fn new() -> Setting {
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
    pub(in crate::archive) fn more(&mut self, last: u64) {
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

    /// Starts a worker whose calls have this long.
    fn start(&self, patience: Duration, fault: Fault) -> tokio::task::JoinHandle<()> {
        let Place::Objects(place) = &self.target.place else { panic!("it is a directory") };
        let storage = Storage::open(place).unwrap().patient_for(patience).with_fault(fault);
        let sink = Sink::Objects(Repository::over(storage, "main", Layout::Plain, Codec::default()));
        let tip = self.store.tip().unwrap();
        let names = self.store.wal_files().unwrap();
        let listing = Listing::new(&names, id().seg_size, self.store.history(), tip.write_lsn);
        let (listings, listing) = watch::channel(Some(Arc::new(listing)));
        let floors = Arc::new(Floors::new(self.store.clone()));
        floors.expect("main", self.target.identity());
        let places = Arc::new(Places::new(self.store.data_dir()));
        let now = Arc::new(Wanted { target: self.target.clone(), sink });
        let (order, wanted) = watch::channel(Some(now.clone()));
        let worker = Worker::new(now, wanted, self.store.clone(), floors, places, listing);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            worker.run(stop, Duration::from_millis(200)).await;
            drop((listings, order));
        })
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
    let (log, hang, failed) = (synced.clone(), Mutex::new(hang), Mutex::new(false));
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
    it.wait_for("a suspect", |saved| saved.is_suspect(&segment(FIRST)));
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
    let content = send::content(&it.store, &segment(FIRST), id().seg_size).unwrap().unwrap();
    let map = here.bytes(0, SEG as usize);
    assert_eq!((content.as_ptr(), content.len()), (map.as_ptr(), map.len()));
    // Parts of it, as pieces and uploads in parts take them, too.
    let piece = mapped(here.clone()).slice(100..SEG as usize);
    assert_eq!(piece.as_ptr(), map[100..].as_ptr());
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
    let content = send::content(&it.store, &name, id().seg_size).unwrap().unwrap();
    // Its timeline is taken up again, and written to.
    fs::write(&path, vec![8; SEG as usize]).unwrap();
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
    assert_eq!(&send::content(&it.store, &name, id().seg_size).unwrap().unwrap()[..], b"half");
    fs::remove_file(&path).unwrap();
    assert_eq!(send::content(&it.store, &name, id().seg_size).unwrap(), None);
}
