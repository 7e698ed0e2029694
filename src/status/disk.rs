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
        DiskStatus { looked_at, growth_bytes_per_second: rate, full_in_seconds: full, ..state.seen.clone() }
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
        let mut state = self.lock();
        match looked {
            Ok(seen) => {
                state.free.note(Instant::now(), seen.free_bytes);
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

/// Waits for the disk.
fn look_at(store: &Store) -> io::Result<DiskStatus> {
    let space = rustix::fs::statvfs(store.data_dir())?;
    let files = list(&store.wal_path(""))?;
    let seg_size = store.identity().map(|identity| identity.seg_size);
    Ok(DiskStatus {
        size_bytes: space.f_blocks.saturating_mul(space.f_frsize),
        free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        wal_bytes: files.iter().map(|(_, bytes)| bytes).sum(),
        wal_files: files.len() as u64,
        segments: seg_size.map(|size| by_timeline(&files, size)).unwrap_or_default(),
        ..DiskStatus::default()
    })
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
