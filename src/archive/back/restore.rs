//! `walrelay restore`: PostgreSQL's `restore_command`.
//!
//! PostgreSQL tells three outcomes apart: 0, the file is there; 1 to 125, there is no such file, so recovery goes on
//! without it, which may be its end; more than 125, recovery stops, and the server with it. So what to say when nobody
//! can tell depends on who asks ([`Role`]): a standby has other places to look in, and must not be stopped; a recovery
//! would end with less than there is.
//!
//! A standby that is promoted asks on until it is told that there is no more, or has read an unfinished segment to its
//! end. After that it asks for the segment of its last record once more, only to read that record again
//! (`FinishWalRecovery`), and for history files: what it is given then is not on the new timeline.
//! Who must not lose anything has the command wait for the answers of certain sources ([`Strict`]).
//!
//! The file appears under its name whole, checked and synced, or not at all; what recovery asks for it syncs itself.
//! What a killed run leaves is removed by the next one.

mod server;
mod strict;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use walrelay_proto::{SegSize, SystemId, TimelineId};

use super::fetch::{self, Failure, Fetched, Fetcher, Looked, Own, SILENCE};
use super::source::{FetchError, Source};
use super::spool::{Spool, Taken};
use super::temp::{TempFile, dir_of, put, told};
use crate::archive::repo::check;
use crate::archive::repo::name::{FileKind, FileName};
use crate::objects::buffer;
use crate::objects::limit::Limit;
use crate::pulse::Pulse;
use server::is_rewind;
pub use server::{BROKEN, MISSING, NOT_NOW, Role, broken_here, data_dir, seg_size_of, system_id_of};
use strict::{Awaited, Turn, Waiting};
pub use strict::{OnTimeout, REQUIRE_TIMEOUT, Required, Strict};

/// How long a file that should be there is waited for, because uploads need not arrive in order; and the longest silence
/// of a source that keeps a standby from looking elsewhere.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// So many times [`PATIENCE`] is all that a standby is kept from looking elsewhere, also while something comes: it streams
/// nothing meanwhile.
const LONGEST: u32 = 3;
/// After this part of [`PATIENCE`] a segment on its way to a standby is left to the background.
const LEAVE_AFTER: u32 = 5;
/// Where the disk is full.
const MAKE_ROOM: &str = "make room there; segments that are fetched ahead can lie elsewhere (--spool-dir), or not be (--prefetch 0)";
/// Attempts in that time.
const ATTEMPTS: u32 = 10;
/// How often a recovery's wait is told; that of a standby is told each [`PATIENCE`], whatever it waits for.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// What a promotion is asked for with, in the data directory (PG: `PROMOTE_SIGNAL_FILE`). The server takes it away as soon as
/// it looks, but not while this command runs.
const PROMOTE: &str = "promote";

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
    /// Whose answers a standby waits for; `None` for nobody's. A recovery waits for all in any case.
    pub strict: Option<Strict>,
    /// A timeline that is wanted to its end, also behind the place where it was left; `pg_rewind` wants that without saying so.
    pub branch: Option<TimelineId>,
}

/// How it went, if nothing failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restored {
    /// The file is under its name.
    Done,
    /// There is no such file.
    Missing,
    /// Those that are required have not answered, and the server is to end rather than to go on without them.
    Stop,
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
        if self.file == TimelineId::FIRST.history_file_name() {
            // There never is one, and the server asks for it when it has just been promoted.
            return Ok(Restored::Missing);
        }
        let data_dir = data_dir(&self.target);
        let system_id = system_id_of(&data_dir);
        let (role, seg_size) = (Role::of(&data_dir), seg_size_of(&data_dir));
        TempFile::remove_leftovers(dir_of(&self.target));
        let deadline = Instant::now() + self.patience * LONGEST;
        let strict = self.strict.as_ref().filter(|_| role == Role::Standby);
        let branch = self.branch_wanted();
        let mut found = None;
        // There are only the parts that are on the way.
        if let Some(spool) = self.spool_of(role).filter(|_| branch.is_none()) {
            // What comes to the spool is no answer of those that are required: they are asked at once.
            let moment = self.patience / LEAVE_AFTER;
            let until = if strict.is_some() { Instant::now() + moment } else { deadline };
            match self.take(spool, system_id, role, until).await {
                Ok(Some(Taken::Put(size))) => {
                    spool.go_on(&self.file, size);
                    return Ok(Restored::Done);
                }
                // Not everybody was asked for that beginning, and not now.
                Ok(Some(Taken::Unfinished(_))) | Err(_) if strict.is_some() => {}
                Ok(Some(Taken::Unfinished(segment))) => found = Some(self.unfinished(segment)),
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
        // Only now they are asked.
        let begun = Instant::now();
        let fetcher = Fetcher::new(self.sources.clone(), system_id).with_seg_size(seg_size);
        let fetcher = fetcher.with_silence(self.silence(role)).with_own(self.own()).with_branch(branch);
        let found = match (found, role, strict) {
            (Some(found), ..) => found,
            (None, Role::Recovery, _) => self.fetch_for_recovery(&fetcher).await?,
            (None, Role::Standby, Some(strict)) => {
                match self.fetch_strictly(&fetcher, strict, begun).await? {
                    Some(found) => found,
                    None => return Ok(Restored::Stop),
                }
            }
            (None, Role::Standby, None) => match self.fetch_for_standby(&fetcher, deadline).await? {
                Some(found) => found,
                None => match self.wait_for_background(system_id, deadline).await? {
                    Taken::Put(_) => return Ok(Restored::Done),
                    Taken::Unfinished(segment) => self.unfinished(segment),
                },
            },
        };
        let is_whole = matches!(found, Fetched::Whole(_));
        let content = match found {
            Fetched::Whole(content) => content,
            Fetched::Unfinished { segment, good } if !self.has_more(good) => segment,
            _ => return Ok(Restored::Missing),
        };
        let id = check::identity_of(&content);
        let restored = match strict {
            Some(strict) if is_whole => self.put_strictly(content, strict, begun, None).await?,
            Some(strict) => self.put_strictly(content, strict, begun, Some(&fetcher)).await?,
            None => self.put(content).map(|()| Restored::Done)?,
        };
        // Not before: it is the same disk that has to take this one.
        if let (Some(spool), Ok(id), Restored::Done) = (&self.spool, id, restored) {
            spool.go_on(&self.file, id.seg_size);
        }
        Ok(restored)
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

    /// The timeline of the file, if all of it is wanted.
    fn branch_wanted(&self) -> Option<TimelineId> {
        let tli = FileName::parse(&self.file).map(|name| name.tli())?;
        (self.branch == Some(tli) || is_rewind(&self.file, &self.target)).then_some(tli)
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
            // It is asked for by a server that has it, at the very end of its promotion.
            Role::Recovery if self.has_history() => self.patience / LEAVE_AFTER,
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
        let mut looking = std::pin::pin!(self.look_for_standby(fetcher));
        loop {
            if let Ok(looked) = tokio::time::timeout(moment, &mut looking).await {
                let found = looked.into_answer(&self.file)?;
                return Ok(Some(found));
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

    /// What there is, whoever does not answer; who takes the beginning of a segment is told whom nothing is known of.
    ///
    /// What was acknowledged after the sources were asked is not in it. A promotion that is wanted meanwhile does not ask
    /// again: the server looks for [`PROMOTE`] when it has replayed what it gets here. So they are asked again in its place.
    async fn look_for_standby(&self, fetcher: &Fetcher) -> Looked {
        let promote = data_dir(&self.target).join(PROMOTE);
        let is_promoted = promote.exists();
        let mut looked = fetcher.look(&self.file).await;
        if !is_promoted && !matches!(looked.found, Fetched::Whole(_)) && promote.exists() {
            looked = fetcher.look(&self.file).await;
        }
        if matches!(looked.found, Fetched::Unfinished { .. }) {
            for (_, error) in &looked.unanswered {
                tracing::warn!("\"{}\" is taken from the others: {error}", self.file);
            }
        }
        looked
    }

    /// Waits for the answers of those that are required, unless somebody has the file whole. `None` if they have not come
    /// and the server is to end.
    async fn fetch_strictly(
        &self,
        fetcher: &Fetcher,
        strict: &Strict,
        begun: Instant,
    ) -> Result<Option<Fetched>, RestoreError> {
        let mut waiting = self.waiting(strict, Awaited::Answers, begun);
        let fetcher = &self.in_time(fetcher, &waiting);
        let awaited = || {
            let missing = fetcher.missing();
            let numbers: Vec<usize> = missing.iter().map(|(number, _)| *number).collect();
            reasons_of(&strict.required.awaited(&numbers), &missing)
        };
        loop {
            let looked = waiting.telling(self.look_for_standby(fetcher), awaited).await;
            if matches!(looked.found, Fetched::Whole(_)) {
                return Ok(Some(looked.found));
            }
            // What pg_wal has whole is used from there: nothing of it is anywhere else.
            if !looked.unanswered.is_empty() && self.has_whole(fetcher.system_id()) {
                return Ok(Some(looked.found));
            }
            let unanswered: Vec<usize> = looked.unanswered.iter().map(|(number, _)| *number).collect();
            let Some(reasons) = reasons_of(&strict.required.awaited(&unanswered), &looked.unanswered) else {
                waiting.end();
                return Ok(Some(looked.into_answer(&self.file)?));
            };
            match waiting.turn(&reasons) {
                Turn::Again => {}
                Turn::GoOn => return Ok(Some(looked.found)),
                Turn::Stop => return Ok(None),
            }
            waiting.telling(tokio::time::sleep(self.patience / ATTEMPTS), awaited).await;
        }
    }

    /// Silence is waited for as long as answers are, and hardly where they have been given up: the server asks for several files
    /// in a row, and a promotion with them has to come to its end.
    fn in_time(&self, fetcher: &Fetcher, waiting: &Waiting<'_>) -> Fetcher {
        let moment = self.patience / LEAVE_AFTER;
        match (waiting.is_released(), waiting.until()) {
            (true, _) => fetcher.clone().with_silence(moment),
            (false, Some(until)) => fetcher.clone().with_silence_until(until.into_std(), moment),
            (false, None) => fetcher.clone(),
        }
    }

    /// Puts what those who are required have where the server takes it. A disk that is full is waited for as they are: the
    /// server would take our failure for "there is no such file". With `again` it is only a beginning: what was acknowledged
    /// meanwhile is not in it, and a server that is promoted does not ask again, so it is asked for again here.
    async fn put_strictly(
        &self,
        mut content: Bytes,
        strict: &Strict,
        begun: Instant,
        again: Option<&Fetcher>,
    ) -> Result<Restored, RestoreError> {
        let mut waiting = self.waiting(strict, Awaited::Disk, begun);
        loop {
            let Err(error) = self.put(content.clone()) else {
                waiting.end();
                return Ok(Restored::Done);
            };
            match waiting.turn(&error.to_string()) {
                Turn::Again => {}
                Turn::GoOn => return Err(error),
                Turn::Stop => return Ok(Restored::Stop),
            }
            // Each attempt takes what is left of the disk, and gives it back.
            tokio::time::sleep(self.patience).await;
            let Some(fetcher) = again else { continue };
            let Some(found) = self.fetch_strictly(fetcher, strict, begun).await? else {
                return Ok(Restored::Stop);
            };
            content = match found {
                Fetched::Whole(now) => now,
                Fetched::Unfinished { segment, good } if good >= self.good_length(&content) => segment,
                _ => content,
            };
        }
    }

    fn waiting<'a>(&'a self, strict: &'a Strict, awaited: Awaited, begun: Instant) -> Waiting<'a> {
        Waiting::begin(strict, &self.file, awaited, dir_of(&self.target), self.patience, begun)
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
                    if self.has_history() {
                        tracing::warn!("{error}; recovery uses the one in pg_wal");
                        return Ok(Fetched::Missing);
                    }
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
        // What there is of a branch need not be followed by anything.
        let is_part = matches!(found, Fetched::Unfinished { .. }) && self.branch_wanted().is_some();
        let is_last = !matches!(found, Fetched::Whole(_)) && !is_part;
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
        let is_whole = |bytes: Bytes| fetch::check_file(&self.file, system_id, &bytes).is_ok();
        fetch::is_segment(&self.file) && self.own_copy().is_ok_and(is_whole)
    }

    /// What `pg_wal` has of the file and of timelines.
    fn own(&self) -> Own {
        let mut beginning = match fetch::is_segment(&self.file) {
            true => self.own_copy().unwrap_or_default(),
            false => Bytes::new(),
        };
        beginning.truncate(self.good_length(&beginning) as usize);
        Own { beginning, ..self.own_dir() }
    }

    fn own_dir(&self) -> Own {
        let data_dir = data_dir(&self.target);
        let (tli, replayed) = (server::timeline_of(&data_dir), server::replayed_of(&data_dir));
        Own { wal_dir: Some(dir_of(&self.target).to_owned()), tli, replayed, ..Own::default() }
    }

    /// Whether recovery finds this history file in `pg_wal` when it is told that there is none. At the end of a promotion,
    /// when nothing in the data directory says any more that this was a standby, the server asks for its parent's; to wait
    /// then for somebody who is away would keep it from becoming a primary.
    fn has_history(&self) -> bool {
        let tli = TimelineId::from_history_file_name(&self.file);
        tli.is_some_and(|tli| self.own_dir().history(tli).is_some())
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
        let failed = |source| {
            let source = told(source, dir_of(&self.target), content.len() as u64, MAKE_ROOM);
            RestoreError::Write { path: self.target.clone(), source }
        };
        put(&content, &self.target).map_err(failed)
    }
}

/// Why those who are awaited have not answered; `None` if nobody is.
fn reasons_of(awaited: &[usize], missing: &[(usize, impl std::fmt::Display)]) -> Option<String> {
    let of_awaited = missing.iter().filter(|(number, _)| awaited.contains(number));
    let reasons: Vec<String> = of_awaited.map(|(_, reason)| reason.to_string()).collect();
    (!awaited.is_empty()).then(|| reasons.join("; "))
}

fn is_history(file: &str) -> bool {
    FileName::parse(file).is_some_and(|name| name.kind() == FileKind::History)
}

#[cfg(test)]
mod tests;
