//! The flusher: one thread that makes written WAL durable, as much as there is at each turn.
//!
//! While one sync runs, everything written meanwhile waits for the next: group commit. `flush_lsn` moves
//! after the sync returned. A failed sync ends the relay: the kernel may have dropped the pages, and a
//! second sync would claim success (PostgreSQL: `data_sync_retry = off`). Word of it is left for the next start.
//!
//! A complete segment gets its final name after its sync, so finished segments are durable by their name. If that name
//! cannot be given (a rename fails), the segment is as durable under the old one, and it is tried again.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::mapped::Segment;
use super::trouble::Trouble;
use super::{Store, TimelinePosition, lock};
use crate::parts::{BEAT, Heart, PartEnded, Thread, beat};

/// What the flusher's thread is called.
pub(crate) const FLUSHER: &str = "flusher";

/// Full segments of an unfinished record that may wait for their sync, and so keep their files open.
const MOST_EARLY: usize = 8;
/// Pause before names are given again that could not be.
const NAMING_PAUSE: Duration = Duration::from_secs(1);

/// What the writer has left for the flusher.
#[derive(Debug, Default)]
pub(super) struct FlushQueue {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    /// Segments with bytes that are not durable, oldest first.
    dirty: Vec<Arc<Segment>>,
    /// What may be called durable once they are.
    target: Option<TimelinePosition>,
    /// Segments full of the middle of a record, not to be written again, whose file is to be synced and closed.
    early: Vec<Arc<Segment>>,
    /// How many of those are being synced.
    early_at_work: usize,
    stop: bool,
    /// Nobody takes anything any more.
    ended: bool,
}

/// What the flusher does in one turn.
#[derive(Debug, Default)]
struct Turn {
    dirty: Vec<Arc<Segment>>,
    target: Option<TimelinePosition>,
    early: Vec<Arc<Segment>>,
}

impl FlushQueue {
    /// Asks for `segments` to be synced; then everything up to `target` is durable.
    pub(super) fn push(&self, segments: impl Iterator<Item = Arc<Segment>>, target: TimelinePosition) {
        let mut work = lock(&self.work);
        for segment in segments {
            if !work.dirty.iter().any(|known| Arc::ptr_eq(known, &segment)) {
                work.dirty.push(segment);
            }
        }
        work.target = Some(target);
        self.changed.notify_all();
    }

    /// Has a segment that is full of the middle of a record synced and closed; waits while too many are. To be called
    /// by the writer, from a thread that may wait for the disk.
    pub(super) fn push_early(&self, segment: Arc<Segment>) {
        let mut work = lock(&self.work);
        work.early.push(segment);
        self.changed.notify_all();
        while work.early.len() + work.early_at_work > MOST_EARLY && !work.ended {
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for work, or, if `names_wait`, for a moment; `None` when there is none left and the flusher shall stop.
    fn take(&self, names_wait: bool) -> Option<Turn> {
        let mut work = lock(&self.work);
        loop {
            if work.target.is_some() || !work.early.is_empty() {
                let early = std::mem::take(&mut work.early);
                work.early_at_work = early.len();
                let target = work.target.take();
                let dirty = if target.is_some() { std::mem::take(&mut work.dirty) } else { Vec::new() };
                return Some(Turn { dirty, target, early });
            }
            if work.stop {
                return None;
            }
            beat();
            work = match names_wait {
                false => self.changed.wait_timeout(work, BEAT).unwrap_or_else(PoisonError::into_inner).0,
                true => {
                    let (work, waited) =
                        self.changed.wait_timeout(work, NAMING_PAUSE).unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() {
                        return Some(Turn::default());
                    }
                    work
                }
            };
        }
    }

    fn early_are_done(&self) {
        lock(&self.work).early_at_work = 0;
        self.changed.notify_all();
    }
}

/// Lets nobody wait for a flusher that is gone, whatever ended it.
struct EndOfFlusher<'a>(&'a FlushQueue);

impl Drop for EndOfFlusher<'_> {
    fn drop(&mut self) {
        lock(&self.0.work).ended = true;
        self.0.changed.notify_all();
    }
}

/// The flusher's thread.
#[derive(Debug)]
pub(super) struct Flusher {
    thread: Thread<()>,
}

impl Flusher {
    pub(super) fn start(store: Arc<Store>) -> Flusher {
        let run = move || {
            let _end = EndOfFlusher(&store.flush_queue);
            let mut naming = Naming::default();
            while let Some(turn) = store.flush_queue.take(naming.is_behind()) {
                if let Err(failure) = store.flush(turn, &mut naming) {
                    return store.fail_sync(&failure.what, &failure.source);
                }
            }
        };
        let thread = Thread::start(FLUSHER, run);
        Flusher { thread: thread.expect("threads can be started when the process starts") }
    }

    pub(super) fn heart(&self) -> Heart {
        self.thread.heart()
    }

    /// Resolves when the thread has ended by itself. Cancel-safe.
    pub(super) async fn lost(&mut self) -> PartEnded {
        self.thread.lost().await
    }

    /// Syncs what is left and ends the thread.
    pub(super) fn stop(self, store: &Store) -> Result<(), PartEnded> {
        lock(&store.flush_queue.work).stop = true;
        store.flush_queue.changed.notify_all();
        self.thread.join()
    }
}

/// A sync failed: nobody knows what is durable.
struct SyncFailure {
    what: String,
    source: io::Error,
}

impl Store {
    fn flush(&self, turn: Turn, naming: &mut Naming) -> Result<(), SyncFailure> {
        for segment in turn.early {
            let what =
                |source| SyncFailure { what: "could not sync WAL of an unfinished record".into(), source };
            segment.sync().map_err(what)?;
            segment.close();
        }
        self.flush_queue.early_are_done();
        if let Some(target) = turn.target {
            let failed =
                |source| SyncFailure { what: format!("could not sync WAL up to {}", target.lsn), source };
            self.sync_all(turn.dirty, target, naming).map_err(failed)?;
        }
        let failed =
            |source| SyncFailure { what: "could not sync pg_wal for finished segments".into(), source };
        naming.give(self).map_err(failed)
    }

    fn sync_all(
        &self,
        segments: Vec<Arc<Segment>>,
        target: TimelinePosition,
        naming: &mut Naming,
    ) -> io::Result<()> {
        // What is complete now is synced whole below; what is completed meanwhile comes again.
        let complete: Vec<_> = segments.iter().filter(|segment| segment.is_complete()).cloned().collect();
        let mut link = false;
        for segment in &segments {
            segment.sync()?;
            link |= segment.needs_link_sync();
        }
        if link {
            self.dir.sync_wal_dir()?;
        }
        let (before, written) = (*self.flushed.borrow(), *self.written.borrow());
        let goes_on = |from: TimelinePosition| from.tli != target.tli || from.lsn <= target.lsn;
        assert!(before.is_none_or(goes_on), "the durable end falls from {before:?} to {target:?}");
        let reaches = |to: TimelinePosition| to.tli != target.tli || target.lsn <= to.lsn;
        assert!(written.is_none_or(reaches), "{target:?} is called durable and {written:?} written");
        self.flushed.send_replace(Some(target));
        complete.iter().for_each(|segment| segment.close());
        naming.complete.extend(complete);
        Ok(())
    }
}

/// Complete, durable segments that have not got their final names yet.
#[derive(Debug, Default)]
struct Naming {
    complete: Vec<Arc<Segment>>,
    trouble: Trouble,
}

impl Naming {
    fn is_behind(&self) -> bool {
        !self.complete.is_empty()
    }

    /// Gives them their names. A name that cannot be given now is given later; only a failed sync of the directory is an
    /// error.
    fn give(&mut self, store: &Store) -> io::Result<()> {
        let Some(identity) = store.identity().filter(|_| self.is_behind()) else { return Ok(()) };
        let mut named = 0;
        for segment in &self.complete {
            let (name, size) = (segment.name(), identity.seg_size);
            let partial = store.dir.partial(name, size);
            match store.dir.disk().rename(&partial, &store.dir.segment(name, size)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // It came twice: the second time it has its name.
                    if !store.dir.disk().exists(&store.dir.segment(name, size)) {
                        tracing::error!(
                            "complete WAL segment {} has vanished from the data directory: somebody has removed it",
                            partial.display()
                        );
                    }
                }
                Err(error) => {
                    if self.trouble.is_news(Instant::now()) {
                        tracing::error!(
                            "could not rename complete WAL segment {}: {error}; it is durable, and the relay tries again",
                            partial.display()
                        );
                    }
                    break;
                }
                Ok(()) => {}
            }
            named += 1;
        }
        if named == 0 {
            return Ok(());
        }
        self.complete.drain(..named);
        store.dir.sync_wal_dir()?;
        if self.complete.is_empty() && self.trouble.is_over() {
            tracing::info!("complete WAL segments have their names again");
        }
        store.retention_bell.ring();
        store.files.send_modify(|step| *step += 1);
        Ok(())
    }
}
