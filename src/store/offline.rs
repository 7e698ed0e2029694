//! What a data directory says of itself, read while no relay has it, or beside one that has.

use std::fs::TryLockError;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walrelay_proto::{Lsn, TimelineId, WalIdentity};

use super::dir::DataDir;
use super::{Identity, StoreError, TimelinePosition, cluster, dir, followed, last_run, slots};
use crate::disk::OsDisk;

/// What a relay has left word of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedState {
    /// `cluster.toml`: whose WAL it is.
    pub identity: Option<WalIdentity>,
    /// `timeline.toml`: the timeline that is followed.
    pub timeline: Option<TimelineId>,
    /// `last-run.toml`: what was confirmed to the upstream as durable when the last run ended; `None` if it did not
    /// say, or goes on.
    pub confirmed: Option<TimelinePosition>,
    /// `slots.toml`.
    pub slots: Vec<SavedSlot>,
}

/// A slot as it was saved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedSlot {
    /// Its name.
    pub name: String,
    /// The oldest WAL it keeps.
    pub restart_lsn: Option<Lsn>,
    /// Whether it keeps nothing any more.
    pub invalidated: bool,
}

/// Reads it; beside what could be read, the files that could not, and why.
pub fn read(data_dir: &Path) -> (SavedState, Vec<(String, String)>) {
    let (mut state, mut bad) = (SavedState::default(), Vec::new());
    if let Some((Identity { system_id, seg_size }, _)) =
        one(data_dir, cluster::FILE, cluster::parse, &mut bad)
    {
        state.identity = Some(WalIdentity { system_id, seg_size });
    }
    let followed = one(data_dir, followed::FILE, followed::parse, &mut bad);
    state.timeline = followed.map(|followed| followed.tli);
    state.confirmed = one(data_dir, last_run::FILE, last_run::confirmed_in, &mut bad).flatten();
    state.slots = one(data_dir, slots::FILE, slots::parse, &mut bad).unwrap_or_default();
    (state, bad)
}

/// One file; `None` if there is none.
fn one<T>(
    data_dir: &Path,
    file: &str,
    parse: impl FnOnce(&str) -> io::Result<T>,
    bad: &mut Vec<(String, String)>,
) -> Option<T> {
    let text = dir::read_if_present(&OsDisk, &data_dir.join(file))
        .and_then(|content| content.map(String::from_utf8).transpose().map_err(io::Error::other));
    let parsed = text.and_then(|text| text.as_deref().map(parse).transpose());
    parsed.unwrap_or_else(|error| {
        bad.push((file.to_owned(), error.to_string()));
        None
    })
}

/// That a relay runs on a data directory, if so. Changes nothing there.
///
/// It takes the lock for as long as the look takes, with others who only look; a start tries for longer than that.
pub fn in_use(data_dir: &Path) -> Option<StoreError> {
    let mut lock = std::fs::File::open(data_dir.join("walrelay.lock")).ok()?;
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            Some(StoreError::InUse { dir: data_dir.to_owned(), pid: pid.trim().parse().ok() })
        }
        _ => None,
    }
}

/// A data directory that no relay can take meanwhile.
#[derive(Debug)]
pub struct OfflineLock(DataDir);

impl OfflineLock {
    /// Takes a relay's data directory.
    ///
    /// # Errors
    /// A relay runs on it, or it is none.
    pub fn take(data_dir: &Path) -> Result<OfflineLock, StoreError> {
        DataDir::lock(Arc::new(OsDisk), data_dir).map(OfflineLock)
    }

    /// Moves a file of `pg_wal` out of the way, into `aside`, durably; where it is then.
    pub fn set_aside(&self, path: &Path) -> io::Result<PathBuf> {
        self.0.set_aside(path)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Of starts at the same time one may look while another one takes the directory: that one must get it.
    #[test]
    fn looking_keeps_nobody_from_taking_the_directory() {
        let dir = crate::permissions::private_tempdir();
        drop(OfflineLock::take(dir.path()).unwrap());
        let (end, looks) = (AtomicBool::new(false), std::sync::atomic::AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    in_use(dir.path());
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
            let taken = |_| OfflineLock::take(dir.path()).map(drop).map_err(|error| error.to_string());
            let taken: Vec<_> = (0..100).map(taken).collect();
            end.store(true, Ordering::Relaxed);
            assert_eq!(taken, vec![Ok(()); 100]);
        });
        assert!(looks.into_inner() > 0);
        // Whoever looks is told who has it, and does not take another look for an owner.
        assert!(in_use(dir.path()).is_none());
        let looking = std::fs::File::open(dir.path().join("walrelay.lock")).unwrap();
        looking.try_lock_shared().unwrap();
        assert!(in_use(dir.path()).is_none());
        drop(looking);
        let _held = OfflineLock::take(dir.path()).unwrap();
        let told = in_use(dir.path());
        assert!(matches!(told, Some(StoreError::InUse { pid: Some(pid), .. }) if pid == std::process::id()));
    }
}
