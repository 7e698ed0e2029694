//! The flusher: one thread that makes written WAL durable, as much as there is at each turn.
//!
//! While one sync runs, everything written meanwhile waits for the next: group commit. `flush_lsn` moves
//! after the sync returned. A failed sync ends the relay: the kernel may have dropped the pages, and a
//! second sync would claim success (PostgreSQL: `data_sync_retry = off`).

use std::fs;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::mapped::Segment;
use super::{Store, TimelinePosition, lock};
use crate::parts::{PartEnded, Thread};

/// What the flusher's thread is called.
pub(crate) const FLUSHER: &str = "flusher";

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
    stop: bool,
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
        self.changed.notify_one();
    }

    /// Waits for work; `None` when there is none left and the flusher shall stop.
    fn take(&self) -> Option<(Vec<Arc<Segment>>, TimelinePosition)> {
        let mut work = lock(&self.work);
        loop {
            if let Some(target) = work.target.take() {
                return Some((std::mem::take(&mut work.dirty), target));
            }
            if work.stop {
                return None;
            }
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
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
            while let Some((segments, target)) = store.flush_queue.take() {
                if let Err(error) = store.flush(&segments, target) {
                    store.fail(format!("could not sync WAL up to {}: {error}", target.lsn));
                    return;
                }
            }
        };
        let thread = Thread::start(FLUSHER, run);
        Flusher { thread: thread.expect("threads can be started when the process starts") }
    }

    /// Resolves when the thread has ended by itself. Cancel-safe.
    pub(super) async fn lost(&mut self) -> PartEnded {
        self.thread.lost().await
    }

    /// Syncs what is left and ends the thread.
    pub(super) fn stop(self, store: &Store) -> Result<(), PartEnded> {
        lock(&store.flush_queue.work).stop = true;
        store.flush_queue.changed.notify_one();
        self.thread.join()
    }
}

impl Store {
    fn flush(&self, segments: &[Arc<Segment>], target: TimelinePosition) -> io::Result<()> {
        // What is complete now is synced whole below; what is completed meanwhile comes again.
        let complete: Vec<_> = segments.iter().filter(|segment| segment.is_complete()).collect();
        let mut link = false;
        for segment in segments {
            segment.sync()?;
            link |= segment.needs_link_sync();
        }
        if link {
            self.dir.sync_wal_dir()?;
        }
        self.flushed.send_replace(Some(target));
        self.finish(&complete)
    }

    /// Gives complete, durable segments their final names.
    fn finish(&self, complete: &[&Arc<Segment>]) -> io::Result<()> {
        let Some(identity) = self.identity().filter(|_| !complete.is_empty()) else { return Ok(()) };
        for segment in complete {
            let (name, size) = (segment.name(), identity.seg_size);
            let partial = self.dir.partial(name, size);
            match fs::rename(&partial, self.dir.segment(name, size)) {
                // It came twice: the second time it has its name.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        self.dir.sync_wal_dir()?;
        self.retention_bell.ring();
        self.files.send_modify(|step| *step += 1);
        Ok(())
    }
}
