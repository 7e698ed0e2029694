//! `walrelay restore`: PostgreSQL's `restore_command`.
//!
//! PostgreSQL tells three outcomes apart: 0, the file is there; 1 to 125, there is no such file, so recovery goes on
//! without it, which may be its end; more than 125, recovery stops. [`BROKEN`] is used for everything but
//! certainty.
//!
//! The file appears under its name whole, checked and synced, or not at all; what recovery asks for it syncs itself.
//! What a killed run leaves is removed by the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use walrelay_proto::SystemId;

use super::check;
use super::fetch::{self, Failure, Fetched, Fetcher};
use super::source::{FetchError, Source};
use super::spool::Spool;
use super::temp::{TempFile, dir_of, put};

/// Exit code for "there is no such file".
pub const MISSING: u8 = 1;
/// Exit code for "nobody can say" and "it is broken": recovery stops, as for any code above 125.
pub const BROKEN: u8 = 200;

/// How long a source that cannot be reached is tried again, and how long a file that should be there is waited for:
/// uploads need not arrive in order.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Attempts in that time.
const ATTEMPTS: u32 = 10;

/// What to do.
#[derive(Clone, Debug)]
pub struct Restore {
    /// Where to look, in this order.
    pub sources: Vec<Arc<dyn Source>>,
    /// `%f`.
    pub file: String,
    /// `%p`.
    pub target: PathBuf,
    /// Where segments fetched ahead are; `None` to fetch nothing ahead.
    pub spool: Option<Spool>,
    /// How long to wait for what may still come; [`PATIENCE`] but for tests.
    pub patience: Duration,
}

/// How it went, if nothing failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restored {
    /// The file is under its name.
    Done,
    /// There is no such file.
    Missing,
}

/// It cannot be told, or cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The sources.
    #[error(transparent)]
    Fetch(#[from] Failure),
    /// The disk.
    #[error("could not write \"{}\": {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Restore {
    /// Runs in PostgreSQL's data directory, as `restore_command` does. Can be killed at any time.
    pub async fn run(&self) -> Result<Restored, RestoreError> {
        let fetcher = Fetcher::new(self.sources.clone(), system_id_here());
        TempFile::remove_leftovers(dir_of(&self.target));
        if let Some(spool) = &self.spool
            && let Some(size) = spool.take(&self.file, &self.target, system_id_here()).await
        {
            spool.go_on(&self.file, size);
            return Ok(Restored::Done);
        }
        let content = match self.fetch(&fetcher).await? {
            Fetched::Whole(content) => content,
            Fetched::Unfinished { segment, good } if !self.has_more(good) => segment,
            _ => return Ok(Restored::Missing),
        };
        if let (Some(spool), Ok(id)) = (&self.spool, check::identity_of(&content)) {
            spool.go_on(&self.file, id.seg_size);
        }
        self.put(content)?;
        Ok(Restored::Done)
    }

    async fn fetch(&self, fetcher: &Fetcher) -> Result<Fetched, Failure> {
        let begun = Instant::now();
        loop {
            match fetcher.fetch(&self.file).await {
                Ok(Fetched::Whole(content)) => return Ok(Fetched::Whole(content)),
                Ok(other) if !self.must_not_end_here() => return Ok(other),
                Ok(other) => match fetcher.check_hole(&self.file).await {
                    Ok(()) => return Ok(other),
                    Err(hole @ Failure::Hole { .. }) if begun.elapsed() > self.patience => return Err(hole),
                    Err(Failure::Hole { .. }) => {}
                    Err(error) => return Err(error),
                },
                Err(Failure::Source { source: FetchError::Unreachable { .. }, .. })
                    if begun.elapsed() < self.patience => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(self.patience / ATTEMPTS).await;
        }
    }

    /// Whether recovery would end where this segment is missing although there might be more: a standby goes on
    /// looking elsewhere, and what lies in `pg_wal` is used from there.
    fn must_not_end_here(&self) -> bool {
        fetch::is_segment(&self.file)
            && !Path::new("standby.signal").exists()
            && !dir_of(&self.target).join(&self.file).exists()
    }

    /// Whether `pg_wal` has this much of the segment, and perhaps more: what a standby has confirmed must not be
    /// replaced by less.
    fn has_more(&self, good: u64) -> bool {
        let Ok(bytes) = fs::read(dir_of(&self.target).join(&self.file)) else { return false };
        let Ok(id) = check::identity_of(&bytes) else { return false };
        let name = walrelay_proto::WalFileName::parse(&self.file, id.seg_size);
        name.is_some_and(|name| check::good_length(id, name, &bytes) >= good)
    }

    fn put(&self, content: Bytes) -> Result<(), RestoreError> {
        let failed = |source| RestoreError::Write { path: self.target.clone(), source };
        put(&content, &self.target).map_err(failed)
    }
}

/// The cluster whose data directory this is: PostgreSQL runs `restore_command` there. The identifier is the first
/// word of `pg_control`, as the machine writes it.
pub fn system_id_here() -> Option<SystemId> {
    system_id_of(Path::new("."))
}

fn system_id_of(data_dir: &Path) -> Option<SystemId> {
    let control = fs::read(data_dir.join("global/pg_control")).ok()?;
    let id = u64::from_ne_bytes(*control.first_chunk()?);
    (id != 0).then_some(SystemId(id))
}

#[cfg(test)]
mod tests;
