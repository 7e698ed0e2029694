//! Syncs in a directory that is a target, and what a failed one means for the others.
//!
//! The system tells of a write-back that has failed those who had the file open at the time, and who opens it later only
//! if nobody was told yet. So a sync that says no, whoever waits for it, and be it one that was given up as hung, puts all
//! those in doubt that are under way in the same place: names share their directory.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// A sync has failed: what was written may be lost although it can be read. Inside of an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("could not sync: {0}")]
pub(super) struct NotSynced(String);

impl NotSynced {
    fn error(kind: io::ErrorKind, reason: String) -> io::Error {
        io::Error::new(kind, NotSynced(reason))
    }
}

/// All syncs of one place.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    failed: AtomicU64,
    #[cfg(test)]
    pub(super) faults: Faults,
    /// Of writing, before anything is synced.
    #[cfg(test)]
    pub(super) writes: Faults,
}

/// How many syncs had failed at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failures(u64);

impl Syncs {
    /// Makes a file or a directory durable. May hang.
    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        let synced = self.faults.next(file).and_then(|()| file.sync_all());
        #[cfg(not(test))]
        let synced = file.sync_all();
        synced.map_err(|error| {
            self.failed.fetch_add(1, Ordering::SeqCst);
            NotSynced::error(error.kind(), error.to_string())
        })
    }

    /// To be asked before something is written.
    pub(super) fn failures(&self) -> Failures {
        Failures(self.failed.load(Ordering::SeqCst))
    }

    /// Whether the syncs that said yes since then can be believed.
    pub(super) fn none_failed_since(&self, before: Failures) -> io::Result<()> {
        match self.failures() == before {
            true => Ok(()),
            false => {
                let reason = "a sync of something else there has failed meanwhile".to_owned();
                Err(NotSynced::error(io::ErrorKind::Other, reason))
            }
        }
    }
}

/// What happens to a test's syncs, or writes.
#[cfg(test)]
pub(crate) type Fault = Box<dyn Fn(&File) -> io::Result<()> + Send + Sync>;

#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults(std::sync::OnceLock<Fault>);

#[cfg(test)]
impl Faults {
    pub(super) fn set(&self, fault: Fault) {
        assert!(self.0.set(fault).is_ok(), "a place has one");
    }

    pub(super) fn next(&self, file: &File) -> io::Result<()> {
        self.0.get().map_or(Ok(()), |fault| fault(file))
    }
}

#[cfg(test)]
impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faults")
    }
}
