//! `walrelay restore`: PostgreSQL's `restore_command`.
//!
//! PostgreSQL tells three outcomes apart: 0, the file is there; 1 to 125, there is no such file, so recovery goes on
//! without it, which may be its end; more than 125, recovery stops, and the server with it. So what to say when nobody
//! can tell depends on who asks ([`Role`]): a standby has other places to look in, and must not be stopped; a recovery
//! would end with less than there is.
//!
//! The file appears under its name whole, checked and synced, or not at all; what recovery asks for it syncs itself.
//! What a killed run leaves is removed by the next one.

mod server;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use walrelay_proto::{SegSize, SystemId};

use super::fetch::{self, Failure, Fetched, Fetcher, SILENCE};
use super::source::{FetchError, Source};
use super::spool::{Spool, Taken};
use super::temp::{TempFile, dir_of, put};
use crate::archive::repo::check;
use crate::archive::repo::name::{FileKind, FileName};
use crate::objects::buffer;
use crate::objects::limit::Limit;
use crate::pulse::Pulse;
pub use server::{BROKEN, MISSING, NOT_NOW, Role, broken_here, data_dir, seg_size_of, system_id_of};

/// How long a file that should be there is waited for, because uploads need not arrive in order; and the longest silence
/// of a source that keeps a standby from looking elsewhere.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// So many times [`PATIENCE`] is all that a standby is kept from looking elsewhere, also while something comes: it streams
/// nothing meanwhile.
const LONGEST: u32 = 3;
/// After this part of [`PATIENCE`] a segment on its way to a standby is left to the background.
const LEAVE_AFTER: u32 = 5;
/// Attempts in that time.
const ATTEMPTS: u32 = 10;
/// How often a wait is told.
const TELL_EVERY: Duration = Duration::from_secs(30);

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
    /// Where a standby leaves what takes long; `None` to give that up.
    pub background: Option<Spool>,
    /// How long to wait for what may still come; [`PATIENCE`] but for tests.
    pub patience: Duration,
    /// How long a recovery waits for a source that cannot be reached; `None` for ever.
    pub wait: Option<Duration>,
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
    /// A standby was to be told in time.
    #[error("could not get \"{file}\": no answer in {seconds} s")]
    Late {
        /// The file.
        file: String,
        /// How long it took.
        seconds: u64,
    },
    /// A standby was to be told in time, and what comes goes on coming.
    #[error("\"{file}\" takes longer than {seconds} s; it is fetched in the background, see \"{}\"", log.display())]
    Slow {
        /// The file.
        file: String,
        /// How long it took by now.
        seconds: u64,
        /// Where the background complains.
        log: PathBuf,
    },
    /// The background has not got it.
    #[error("could not get \"{file}\" in the background, see \"{}\"", log.display())]
    Background {
        /// The file.
        file: String,
        /// Where the background complains.
        log: PathBuf,
    },
    /// PostgreSQL never asks for a file of this name.
    #[error(
        "\"{file}\" is no name of a WAL file: expected a segment or a history file first and then the path to put it \
         at, as in restore_command = 'walrelay restore ... %f %p'"
    )]
    Name {
        /// What was asked for.
        file: String,
    },
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
    /// Runs as `restore_command` does. Can be killed at any time.
    pub async fn run(&self) -> Result<Restored, RestoreError> {
        if FileName::parse(&self.file).is_none() {
            return Err(RestoreError::Name { file: self.file.clone() });
        }
        let data_dir = data_dir(&self.target);
        let system_id = system_id_of(&data_dir);
        let (role, seg_size) = (Role::of(&data_dir), seg_size_of(&data_dir));
        TempFile::remove_leftovers(dir_of(&self.target));
        let deadline = Instant::now() + self.patience * LONGEST;
        let mut found = None;
        if let Some(spool) = self.spool_of(role) {
            match self.take(spool, system_id, role, deadline).await? {
                Some(Taken::Put(size)) => {
                    spool.go_on(&self.file, size);
                    return Ok(Restored::Done);
                }
                Some(Taken::Unfinished(segment)) => found = Some(self.unfinished(segment)),
                None => {}
            }
        }
        let fetcher = Fetcher::new(self.sources.clone(), system_id).with_seg_size(seg_size);
        let fetcher = fetcher.with_silence(self.silence(role));
        let found = match (found, role) {
            (Some(found), _) => found,
            (None, Role::Recovery) => self.fetch_for_recovery(&fetcher).await?,
            (None, Role::Standby) => match self.fetch_for_standby(&fetcher, deadline).await? {
                Some(found) => found,
                None => match self.wait_for_background(system_id, deadline).await? {
                    Taken::Put(_) => return Ok(Restored::Done),
                    Taken::Unfinished(segment) => self.unfinished(segment),
                },
            },
        };
        let content = match found {
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

    /// Takes a segment that was fetched ahead, or waits for one that is on its way; a standby not for long.
    async fn take(
        &self,
        spool: &Spool,
        system_id: Option<SystemId>,
        role: Role,
        deadline: Instant,
    ) -> Result<Option<Taken>, RestoreError> {
        let taking = spool.take(&self.file, &self.target, system_id, role);
        match role {
            Role::Recovery => Ok(taking.await),
            Role::Standby => {
                let taken = tokio::time::timeout_at(deadline, taking).await;
                taken.map_err(|_| self.slow(spool))
            }
        }
    }

    /// The spool to look into first: a standby may have left something in the background.
    fn spool_of(&self, role: Role) -> Option<&Spool> {
        let background = self.background.as_ref().filter(|_| role == Role::Standby);
        self.spool.as_ref().or(background)
    }

    /// The longest silence of a source.
    fn silence(&self, role: Role) -> Duration {
        match role {
            Role::Standby => self.patience,
            Role::Recovery => self.wait.map_or(SILENCE, |wait| wait.min(SILENCE)),
        }
    }

    fn slow(&self, spool: &Spool) -> RestoreError {
        let seconds = (self.patience * LONGEST).as_secs();
        RestoreError::Slow { file: self.file.clone(), seconds, log: spool.log() }
    }

    fn unfinished(&self, segment: Bytes) -> Fetched {
        Fetched::Unfinished { good: self.good_length(&segment), segment }
    }

    /// A standby asks again in a moment, and meanwhile looks elsewhere: one look, and no long one. `None` if a segment is
    /// on its way, and takes its time: that was left to the background. Where it could not be, it goes on coming here.
    async fn fetch_for_standby(
        &self,
        fetcher: &Fetcher,
        deadline: Instant,
    ) -> Result<Option<Fetched>, RestoreError> {
        let moment = self.patience / LEAVE_AFTER;
        let mut background = self.background.as_ref().filter(|_| fetch::is_segment(&self.file));
        let mut looking = std::pin::pin!(fetcher.fetch(&self.file));
        loop {
            if let Ok(found) = tokio::time::timeout(moment, &mut looking).await {
                return Ok(Some(found?));
            }
            if let Some(spool) = background
                && fetcher.is_coming(moment)
            {
                if self.leave_to(spool, fetcher.seg_size()) {
                    return Ok(None);
                }
                background = None;
            }
            if Instant::now() >= deadline {
                let seconds = (self.patience * LONGEST).as_secs();
                return Err(RestoreError::Late { file: self.file.clone(), seconds });
            }
        }
    }

    /// Leaves the segment to the background, which is not ended with us; whether that is possible.
    fn leave_to(&self, spool: &Spool, seg_size: Option<SegSize>) -> bool {
        let left = spool.leave(&self.file, seg_size.unwrap_or_else(fetch::default_size));
        if let Err(error) = &left {
            tracing::warn!(
                "could not fetch \"{}\" in the background into \"{}\": {error}; it is given up if it does not come \
                 within {} s",
                self.file,
                spool.dir().display(),
                (self.patience * LONGEST).as_secs()
            );
        }
        left.is_ok()
    }

    /// Waits for what was left to the background as long as a standby may wait.
    async fn wait_for_background(
        &self,
        system_id: Option<SystemId>,
        deadline: Instant,
    ) -> Result<Taken, RestoreError> {
        let spool = self.background.as_ref().expect("nothing is left to one that is not there");
        let waiting = spool.wait(&self.file, &self.target, system_id);
        let waited = tokio::time::timeout_at(deadline, waiting).await;
        let waited = waited.map_err(|_| self.slow(spool))?;
        waited.ok_or_else(|| RestoreError::Background { file: self.file.clone(), log: spool.log() })
    }

    async fn fetch_for_recovery(&self, fetcher: &Fetcher) -> Result<Fetched, RestoreError> {
        let mut told: Option<Instant> = None;
        // Since when it has been so without interruption: the one says nothing about the other.
        let (mut hole_since, mut away_since): (Option<Instant>, Option<Instant>) = (None, None);
        let begun = Instant::now();
        loop {
            match self.look(fetcher).await {
                Ok(found) => {
                    if let Some(begun) = told.map(|_| begun) {
                        tracing::warn!(
                            "got an answer about \"{}\" after {} s",
                            self.file,
                            begun.elapsed().as_secs()
                        );
                    }
                    return Ok(found);
                }
                Err(hole @ Failure::Hole { .. }) => {
                    away_since = None;
                    if hole_since.get_or_insert_with(Instant::now).elapsed() > self.patience {
                        return Err(hole.into());
                    }
                }
                Err(error @ Failure::Source { source: FetchError::Unreachable { .. }, .. }) => {
                    hole_since = None;
                    let away = away_since.get_or_insert_with(Instant::now).elapsed();
                    if self.wait.is_some_and(|limit| away >= limit) {
                        return Err(error.into());
                    }
                    if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                        told = Some(Instant::now());
                        self.tell(&error, away);
                    }
                }
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(self.patience / ATTEMPTS).await;
        }
    }

    fn tell(&self, error: &Failure, waited: Duration) {
        let limit = match self.wait {
            None => "recovery waits for it (--timeout or --strict would stop it)".to_owned(),
            Some(limit) => format!("recovery waits for it, {} s at most", limit.as_secs()),
        };
        tracing::warn!("{error}; {limit}, {} s so far", waited.as_secs());
    }

    /// Looks once; "missing" is an answer only if nothing says that there is more.
    async fn look(&self, fetcher: &Fetcher) -> Result<Fetched, Failure> {
        let found = fetcher.fetch(&self.file).await?;
        if found == Fetched::Missing && fetch::is_segment(&self.file) {
            for caveat in fetcher.caveats() {
                tracing::warn!("nobody has \"{}\"; {caveat}, and was not asked", self.file);
            }
        }
        let is_last = !matches!(found, Fetched::Whole(_));
        if is_last && fetch::is_segment(&self.file) && !self.has_whole(fetcher.system_id()) {
            // A whole one in pg_wal is used from there. With a beginning, or with nothing, recovery would end.
            fetcher.check_hole(&self.file).await?;
        }
        if found == Fetched::Missing
            && is_history(&self.file)
            && let Some(next) = fetcher.history_after(&self.file).await
        {
            tracing::warn!(
                "\"{}\" is not there although \"{next}\" is: recovery to the latest timeline will not find that one; \
                 name it in recovery_target_timeline if it is meant",
                self.file
            );
        }
        Ok(found)
    }

    /// Whether `pg_wal` has this much of the segment, and perhaps more: what a standby has confirmed must not be
    /// replaced by less. A recycled file has nothing of it.
    fn has_more(&self, good: u64) -> bool {
        self.own_copy().is_ok_and(|bytes| self.good_length(&bytes) >= good)
    }

    /// Whether recovery finds the whole segment in `pg_wal`. A base backup from a standby may hold only its beginning.
    fn has_whole(&self, system_id: Option<SystemId>) -> bool {
        self.own_copy().is_ok_and(|bytes| fetch::check_file(&self.file, system_id, &bytes).is_ok())
    }

    /// What `pg_wal` has under the segment's name.
    fn own_copy(&self) -> io::Result<Bytes> {
        let file = File::open(dir_of(&self.target).join(&self.file))?;
        buffer::read_to_end(file, &Limit::segment(), &Pulse::default())
    }

    /// Bytes of the file that are whole records.
    fn good_length(&self, bytes: &[u8]) -> u64 {
        let Ok(id) = check::identity_of(bytes) else { return 0 };
        let name = walrelay_proto::WalFileName::parse(&self.file, id.seg_size);
        name.map_or(0, |name| check::good_length(id, name, bytes))
    }

    fn put(&self, content: Bytes) -> Result<(), RestoreError> {
        let failed = |source| RestoreError::Write { path: self.target.clone(), source };
        put(&content, &self.target).map_err(failed)
    }
}

fn is_history(file: &str) -> bool {
    FileName::parse(file).is_some_and(|name| name.kind() == FileKind::History)
}

#[cfg(test)]
mod tests;
