//! The disk, looked at now and then by a task that may wait for it, so that nobody who asks has to.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use walrelay_proto::{SegSize, WalFileName};

use super::value::{DiskStatus, SegmentsStatus};
use crate::lane::Lane;
use crate::moment::{Clock, Past};
use crate::store::Store;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(10);
/// How long a look may take before the disk counts as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Over how long the rate is taken, and how often its samples are.
const WINDOW: Duration = Duration::from_secs(3600);
const SPACING: Duration = Duration::from_secs(60);
/// The least from which a rate says anything: one large file is no trend.
const LEAST: Duration = Duration::from_secs(600);
/// Over how long the mean of syncs is taken; the least that says anything, and how many there have to be.
const SYNCS_WINDOW: Duration = Duration::from_secs(600);
const SYNCS_LEAST: Duration = Duration::from_secs(300);
const SYNCS_FEWEST: u64 = 10;

/// Looks at the disk of a store's data directory.
#[derive(Debug)]
pub struct DiskGauge {
    store: Arc<Store>,
    lane: Lane,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Without when that was, its rate, and who keeps what.
    seen: DiskStatus,
    looked_at: Option<Past>,
    free: FreeSpace,
    syncs: Syncs,
    /// Missing at the last look. A file that gets its name while the directory is read may be seen under neither.
    suspected: Vec<String>,
}

/// How many syncs there were when, and how long they took, oldest first.
#[derive(Debug, Default)]
struct Syncs {
    samples: VecDeque<(Instant, u64, Duration)>,
}

impl Syncs {
    fn note(&mut self, now: Instant, count: u64, took: Duration) {
        self.samples.push_back((now, count, took));
        while self.samples.front().is_some_and(|(at, ..)| now.duration_since(*at) > SYNCS_WINDOW) {
            self.samples.pop_front();
        }
    }

    /// How long one took on average, seconds.
    fn mean(&self) -> Option<f64> {
        let ((begun, before, took_before), (now, count, took)) =
            (*self.samples.front()?, *self.samples.back()?);
        let syncs = count.saturating_sub(before);
        let is_enough = now.duration_since(begun) >= SYNCS_LEAST && syncs >= SYNCS_FEWEST;
        is_enough.then(|| took.saturating_sub(took_before).as_secs_f64() / syncs as f64)
    }
}

/// What was free when, oldest first.
#[derive(Debug, Default)]
struct FreeSpace {
    samples: VecDeque<(Instant, u64)>,
    newest: Option<(Instant, u64)>,
}

impl FreeSpace {
    fn note(&mut self, now: Instant, free: u64) {
        self.newest = Some((now, free));
        if self.samples.back().is_some_and(|(at, _)| now.duration_since(*at) < SPACING) {
            return;
        }
        self.samples.push_back((now, free));
        while self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes per second by which it becomes less.
    fn shrinks(&self) -> Option<f64> {
        let ((begun, before), (now, after)) = (*self.samples.front()?, self.newest?);
        let lasted = now.duration_since(begun);
        (lasted >= LEAST).then(|| (before as f64 - after as f64) / lasted.as_secs_f64())
    }
}

impl DiskGauge {
    /// Nothing is looked at yet.
    pub fn new(store: Arc<Store>) -> DiskGauge {
        DiskGauge { store, lane: Lane::new("disk-gauge", PATIENCE), state: Mutex::default() }
    }

    /// What was seen last, without who keeps the WAL. Waits for nothing.
    pub fn seen(&self, clock: Clock) -> DiskStatus {
        let state = self.lock();
        let looked_at = state.looked_at.map(|past| clock.moment(past));
        let rate = state.free.shrinks();
        let full = rate.filter(|rate| *rate > 0.0).map(|rate| state.seen.free_bytes as f64 / rate);
        DiskStatus {
            looked_at,
            growth_bytes_per_second: rate,
            full_in_seconds: full,
            sync_seconds: state.syncs.mean(),
            ..state.seen.clone()
        }
    }

    /// Looks now and then, until told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            if stop.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
            if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Looks once. What cannot be seen leaves what was seen before, and why.
    pub(super) async fn look(&self) {
        let store = self.store.clone();
        let looked = self.lane.run(0, move || look_at(&store)).await;
        let looked = looked.and_then(|looked| looked.map_err(|error| error.to_string()));
        let (now, syncs) = (Instant::now(), &self.store.counts().syncs);
        let mut state = self.lock();
        state.syncs.note(now, syncs.classes().iter().sum(), syncs.total());
        match looked {
            Ok((mut seen, missing)) => {
                state.free.note(now, seen.free_bytes);
                let sure: Vec<&String> =
                    missing.iter().filter(|name| state.suspected.contains(name)).collect();
                (seen.missing_segments, seen.first_missing) =
                    (sure.len() as u64, sure.first().map(|name| (*name).clone()));
                state.suspected = missing;
                (state.seen, state.looked_at) = (seen, Some(Past::now()));
            }
            Err(error) => state.seen.error = Some(error),
        }
    }

    /// For a moment: nothing is waited for under it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is seen, and the names of segments that are missing. Waits for the disk.
fn look_at(store: &Store) -> io::Result<(DiskStatus, Vec<String>)> {
    let space = rustix::fs::statvfs(store.data_dir())?;
    let files = list(&store.wal_path(""))?;
    let seg_size = store.identity().map(|identity| identity.seg_size);
    let missing = store.missing_segments()?;
    let missing = missing.into_iter().filter_map(|name| Some(name.format(seg_size?))).collect();
    let seen = DiskStatus {
        size_bytes: space.f_blocks.saturating_mul(space.f_frsize),
        free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        wal_bytes: files.iter().map(|(_, bytes)| bytes).sum(),
        wal_files: files.len() as u64,
        segments: seg_size.map(|size| by_timeline(&files, size)).unwrap_or_default(),
        ..DiskStatus::default()
    };
    Ok((seen, missing))
}

/// Names of the files, and what each takes on the disk.
fn list(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(found) => {
                // The unit of `st_blocks`, whatever the file system's is.
                files.push((entry.file_name().to_string_lossy().into_owned(), found.blocks() * 512));
            }
            // Removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files.sort();
    Ok(files)
}

fn by_timeline(files: &[(String, u64)], size: SegSize) -> Vec<SegmentsStatus> {
    let mut timelines: BTreeMap<u32, SegmentsStatus> = BTreeMap::new();
    for (file, bytes) in files {
        let (name, unfinished) = match file.strip_suffix(".partial") {
            Some(name) => (name, 1),
            None => (file.as_str(), 0),
        };
        let Some(wal) = WalFileName::parse(name, size) else { continue };
        let timeline = wal.tli.as_u32();
        let segments = timelines.entry(timeline).or_insert_with(|| SegmentsStatus {
            timeline,
            first: name.to_owned(),
            last: name.to_owned(),
            last_complete: None,
            complete: 0,
            unfinished: 0,
            bytes: 0,
        });
        name.clone_into(&mut segments.last);
        if unfinished == 0 {
            segments.last_complete = Some(name.to_owned());
        }
        segments.unfinished += unfinished;
        segments.complete += 1 - unfinished;
        segments.bytes += bytes;
    }
    timelines.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_disk_is_full_is_shown_and_told() {
        let scene = crate::status::tests::Scene::new();
        {
            let (mut state, start) = (scene.sources.disk().lock(), Instant::now());
            state.free.note(start, 4_800_000);
            state.free.note(start + Duration::from_secs(1200), 3_600_000);
            (state.seen.size_bytes, state.seen.free_bytes) = (8_000_000, 3_600_000);
            state.looked_at = Some(Past::now());
        }
        let status = scene.now();
        let shown = crate::metrics::exposition(&status);
        assert!(shown.contains("\nwalrelay_disk_full_in_seconds 3600.0\n"), "{shown}");
        let troubles = status.troubles();
        assert!(troubles.iter().any(|line| line.starts_with("the disk is full in 60 min")), "{troubles:?}");
    }

    #[test]
    fn the_rate_is_that_of_the_last_hour() {
        let (mut free, start) = (FreeSpace::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        free.note(start, 100_000_000);
        free.note(at(10), 90_000_000);
        assert_eq!(free.shrinks(), None, "too early to tell");
        free.note(at(600), 40_000_000);
        assert_eq!(free.shrinks(), Some(100_000.0));
        free.note(at(610), 39_000_000);
        assert_eq!(free.shrinks(), Some(100_000.0));
        // Constant for two hours: what was before does not count any more.
        (1..=720).for_each(|n| free.note(at(610 + n * 10), 39_000_000));
        assert_eq!(free.shrinks(), Some(0.0));
        assert!(free.samples.len() <= 62, "{}", free.samples.len());
        free.note(at(8000), 40_000_000);
        assert!(free.shrinks().unwrap() < 0.0, "it becomes more");
    }

    #[test]
    fn the_mean_of_syncs_is_that_of_the_last_minutes_and_of_enough_of_them() {
        let (mut syncs, start) = (Syncs::default(), Instant::now());
        let mut note = |seconds, count, took| {
            syncs.note(start + Duration::from_secs(seconds), count, Duration::from_secs(took));
            syncs.mean()
        };
        assert_eq!(note(0, 1000, 10), None);
        assert_eq!(note(299, 1100, 60), None, "too early to tell");
        assert_eq!(note(300, 1100, 60), Some(0.5));
        assert_eq!(note(800, 1105, 61), None, "too few");
        assert_eq!(note(850, 1300, 61), Some(0.005));
    }

    #[test]
    fn segments_are_told_by_timeline() {
        let files = [
            ("000000010000000000000003", 10),
            ("000000010000000000000004.partial", 20),
            ("000000020000000000000004", 30),
            ("00000002.history", 1),
            ("archive_status", 1),
        ];
        let files = files.map(|(name, bytes)| (name.to_owned(), bytes));
        let found = by_timeline(&files, SegSize::new(16 << 20).unwrap());
        let told: Vec<_> =
            found.iter().map(|it| (it.timeline, it.complete, it.unfinished, it.bytes)).collect();
        assert_eq!(told, [(1, 1, 1, 30), (2, 1, 0, 30)]);
        assert_eq!((&*found[0].first, &*found[0].last), (&*files[0].0, "000000010000000000000004"));
    }
}
