//! The writer: takes WAL as it is received, verifies it, stores it, shows it to readers.
//!
//! There is one, owned by whoever drives the upstream connection. For each piece of WAL it verifies the
//! bytes in the caller's buffer, writes them, and at [`Writer::commit`] publishes up to the end of the last
//! complete record. Bytes of an unfinished record are in the file but nobody sees them, so a record that
//! turns out bad is fetched again and written over, without anything published ever changing.
//!
//! ```text
//!   segment start        verified_end             position
//!        |---- published ----|-- written -- gathered --|---- preallocated ----|
//! ```
//!
//! Small pieces are gathered, and written together: at a commit, at the segment's end, when there are enough of them, and before
//! anything that is not as usual. Nobody reads the file there before.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use walrelay_proto::{
    CommitCounter, Lsn, PAGE_HEAD, SegNo, TimelineHistory, TimelineId, WalError, WalFileName, WalIdentity,
    WalVerifier, behind_lost_record, differs_in_nothing,
};

use super::followed::{self, Followed};
use super::holds::{Hold, HoldKind};
use super::mapped::{COPIED, Segment};
use super::recovery::{self, Recovered};
use super::trouble::Trouble;
use super::{Identity, ReadError, Store, StoreError, TimelinePosition, dir, lock, steps};
use crate::disk::DiskFile;
use crate::mutation::{self, Mutation};

/// Of WAL, bytes.
const PAGE: u64 = 8192;
/// Pieces smaller than this are gathered, bytes: a system call each costs more than a copy.
const SMALL: usize = 16 << 10;
/// So much of what is gathered is written, bytes.
const GATHERED: usize = 64 << 10;

/// WAL was not taken. Nothing that was published before is affected.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The bytes are not valid WAL; fetch them again from [`Writer::position`].
    #[error("received bad WAL: {0}")]
    Bad(#[from] WalError),
    /// The bytes do not follow on what is here.
    #[error("received WAL at {at}, expected {expected}")]
    Gap {
        /// Start of the bytes.
        at: Lsn,
        /// What should have come.
        expected: Lsn,
    },
    /// The upstream has other bytes where we have WAL already.
    #[error(
        "timeline {tli} at {lsn}: the upstream's WAL differs from what was received before; the histories of the two have diverged"
    )]
    Diverged {
        /// The timeline.
        tli: TimelineId,
        /// First byte that differs.
        lsn: Lsn,
    },
    /// The disk or the system does not take the bytes now: no room, no memory, no descriptor, an I/O error. It may pass:
    /// rewind and try again, for as long as it lasts. The writer says it, now and then, and says when it is over.
    #[error("could not {action} WAL segment {file} in the data directory: {source}{}", advice(source))]
    Disk {
        /// What was tried.
        action: &'static str,
        /// The segment.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A new timeline does not fork off where it says.
    #[error("timeline {tli} cannot begin at {at}: {reason}")]
    Fork {
        /// The new timeline.
        tli: TimelineId,
        /// Its switch point.
        at: Lsn,
        /// Why not.
        reason: String,
    },
    /// The timeline stays as it is, because it could not be noted which one is followed; retry.
    #[error("could not note in the data directory that timeline {tli} is followed: {source}")]
    NotNoted {
        /// The timeline that was to be followed.
        tli: TimelineId,
        /// What the system said.
        source: io::Error,
    },
    /// The store has failed before.
    #[error("the store has failed")]
    Failed,
}

/// What to do about it, where that is known.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => "; make room there, nothing needs a restart",
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files, or let fewer clients connect",
        Some(libc::ENOMEM) => "; give the relay more memory or address space",
        Some(libc::EIO) => "; look at the disk",
        _ => "",
    }
}

/// The one writer of a [`Store`].
#[derive(Debug)]
pub struct Writer {
    store: Arc<Store>,
    stream: Option<Stream>,
    /// Whether the disk takes WAL.
    trouble: Trouble,
    /// Since the disk did not take WAL it has taken none.
    refuses: bool,
    /// What was gathered could not be written, when there was nobody to tell.
    unsaid: Option<AppendError>,
    /// What this process has noted as followed; `None` while that is in doubt.
    noted: Option<Followed>,
    /// The newest timeline that was ever followed or headed for, if that is known.
    newest: Option<TimelineId>,
}

/// What is held of a timeline, found by [`Writer::find`]; [`Writer::take_up`] goes on with it.
#[derive(Debug)]
pub struct HeldTimeline {
    recovered: Recovered,
    end: TimelinePosition,
    /// Keeps its files here.
    _hold: Hold,
}

impl HeldTimeline {
    /// The timeline's history.
    pub fn history(&self) -> &TimelineHistory {
        &self.recovered.history
    }

    /// The end of its last complete record here.
    pub fn end(&self) -> TimelinePosition {
        self.end
    }

    /// The segment of the last byte before `at`, which is not beyond the end.
    pub fn segment_before(&self, store: &Store, at: Lsn) -> Result<Arc<Segment>, ReadError> {
        let size = store.identity().map(|identity| identity.seg_size);
        let history = self.history();
        let tail = self.recovered.tail.as_ref();
        let segno = size.map_or(SegNo::new(0), |size| at.seg_before(size));
        // Readers may have the same file mapped as the end of a timeline that was left before this one's.
        match tail.filter(|tail| tail.name().segno == segno) {
            Some(tail) => Ok(tail.clone()),
            None => store.segment_on(history, history.timeline_at(at.rewind(1)), segno),
        }
    }
}

/// A timeline being received.
#[derive(Debug)]
struct Stream {
    identity: Identity,
    tli: TimelineId,
    verifier: WalVerifier,
    /// The segment that is being filled.
    current: Option<Arc<Segment>>,
    /// Verified, and not in the file yet.
    gathered: Gathered,
    /// Of a page behind an XLOG_SWITCH that is coming, what is not zero, up to the position: stored when it has come twice.
    held_back: Vec<u8>,
    /// Segments with bytes that have not been handed to the flusher, oldest first.
    touched: Vec<Arc<Segment>>,
    /// What `commit` published last.
    published: Option<Lsn>,
    /// The redo position of the newest checkpoint that the store knows of.
    redo: Option<Lsn>,
    /// Whether there was not one whole record before it, on whatever timeline.
    is_first: bool,
}

/// Pieces that are to be written with what comes next, in one segment and one behind the other.
#[derive(Debug, Default)]
struct Gathered {
    bytes: Vec<u8>,
    /// Where they go, and what is gone back to if they do not get there.
    place: Option<(Arc<Segment>, WalVerifier)>,
}

impl Writer {
    pub(super) fn new(store: Arc<Store>, recovered: Option<Recovered>, newest: Option<TimelineId>) -> Writer {
        let stream = store.identity().zip(recovered).map(|(identity, found)| {
            if let Some(tail) = &found.tail {
                store.segments.insert(tail);
            }
            Stream::of(identity, found)
        });
        // What was read at the start may not be durable.
        Writer {
            store,
            stream,
            trouble: Trouble::default(),
            refuses: false,
            unsaid: None,
            noted: None,
            newest,
        }
    }

    /// The store it writes to.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Timeline and next byte to fetch; `None` while the data directory is empty.
    pub fn position(&self) -> Option<TimelinePosition> {
        let stream = self.stream.as_ref()?;
        Some(TimelinePosition { tli: stream.tli, lsn: stream.verifier.position() })
    }

    /// Timeline and end of the last complete record; `None` before the first.
    pub fn verified(&self) -> Option<TimelinePosition> {
        let stream = self.stream.as_ref()?;
        stream.verifier.verified_end().map(|lsn| TimelinePosition { tli: stream.tli, lsn })
    }

    /// Whether it was decided where WAL begins, and not a single record has come since, at most the header of its page:
    /// then it may [`begin`](Self::begin) elsewhere.
    pub fn is_bare(&self) -> bool {
        self.stream.as_ref().is_some_and(Stream::is_bare)
    }

    /// Starts an empty data directory at the beginning of the segment that holds `at`, or begins anew while it is
    /// [bare](Self::is_bare) and what is written is durable. The store must have been attached to a cluster. Slots that
    /// wait for WAL beyond come back to it.
    ///
    /// Waits for the disk.
    pub fn begin(&mut self, identity: Identity, history: TimelineHistory, at: Lsn) {
        assert!(self.stream.is_none() || self.is_bare(), "the data directory is not empty");
        let tli = history.tli();
        let start = at.seg_start(identity.seg_size);
        // Retention must not take what comes now for what it has decided to remove.
        let removing = lock(&self.store.removing);
        if let Some(bare) = self.stream.take() {
            self.forget(bare);
        }
        // Also those of WAL that somebody has taken away.
        self.store.clamp_slots(start);
        self.store.holds.begin_anew(start);
        drop(removing);
        let id = WalIdentity { system_id: identity.system_id, seg_size: identity.seg_size };
        // Nobody reports what is not of this timeline as if it were.
        let store = &self.store;
        store.consumers.acknowledgements().begin_timeline(|| *lock(&store.history) = Arc::new(history));
        let mut verifier = WalVerifier::at_segment_start(id, tli, at);
        verifier.accept_padding_that_comes_twice();
        if let Some(magic) = self.store.upstream_parameters().expected_magic() {
            verifier.expect_magic(magic);
        }
        // Whatever was followed before, its WAL is not here.
        self.newest = Some(tli);
        self.stream = Some(Stream {
            identity,
            tli,
            verifier,
            current: None,
            gathered: Gathered::default(),
            held_back: Vec::new(),
            touched: Vec::new(),
            published: None,
            redo: None,
            is_first: true,
        });
    }

    /// Files of a beginning that was given up hold nothing; the next start would read them, if only to say so.
    fn forget(&self, bare: Stream) {
        self.store.forget_start();
        let (dir, size, tli) = (&self.store.dir, bare.identity.seg_size, bare.tli);
        drop(bare);
        let files = dir.segments(size).unwrap_or_else(|error| {
            tracing::warn!("could not list pg_wal in the data directory: {error}");
            Vec::new()
        });
        for found in files.iter().filter(|found| found.partial && found.name.tli == tli) {
            let path = dir.partial(found.name, size);
            if let Err(error) = self.store.dir.disk().remove(&path) {
                tracing::warn!("could not remove empty WAL segment \"{}\": {error}", path.display());
            }
        }
    }

    /// Shows readers where the WAL begins that is being received, although none of it has come: they may wait for it
    /// there, and the upstream is told so, which makes its slot keep it. To be called when the upstream streams; without
    /// effect once anything is published, and where WAL is held before it: what is missing in between counts for nothing.
    ///
    /// What lies before is not ours, so it counts as durable, as with pg_receivewal.
    pub fn show_start(&mut self) {
        let waits = |stream: &&mut Stream| stream.is_first && stream.published.is_none();
        let Some(stream) = self.stream.as_mut().filter(waits) else { return };
        if stream.verifier.verified_end().is_some() {
            return;
        }
        let mut start = stream.verifier.clone();
        start.rewind();
        let start = TimelinePosition { tli: stream.tli, lsn: start.position() };
        stream.published = Some(start.lsn);
        self.store.show_start(start);
    }

    /// Forgets what was received beyond the last complete record. To be called before fetching again.
    pub fn rewind(&mut self) {
        self.write_gathered();
        // It comes again.
        self.unsaid = None;
        if let Some(stream) = &mut self.stream {
            stream.verifier.rewind();
            stream.held_back.clear();
            let seg_size = stream.identity.seg_size;
            let next = stream.verifier.position().seg_at(seg_size);
            stream.current = stream.current.take().filter(|segment| segment.name().segno == next);
            stream.touched.retain(|segment| segment.name().segno <= next);
            if stream.current.is_none() {
                stream.current = stream.touched.iter().find(|segment| segment.name().segno == next).cloned();
            }
        }
    }

    /// Takes the WAL that starts at `at`. Bytes from before [`position`](Self::position) are compared with
    /// what is here. Readers see it after [`commit`](Self::commit).
    pub fn append(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), AppendError> {
        let result = self.unsaid.take().map_or_else(|| self.take(at, bytes), Err);
        self.tell(&result);
        self.refuses &= result.is_err();
        result
    }

    /// Whether the last [`commit`](Self::commit) could write what it was to show.
    ///
    /// # Errors
    /// The disk did not take it: it has to come again.
    pub fn check_commit(&mut self) -> Result<(), AppendError> {
        self.unsaid.take().map_or(Ok(()), Err)
    }

    /// Where that fails, the next piece is refused.
    fn write_gathered(&mut self) {
        let written = self.stream.as_mut().map_or(Ok(()), Stream::write_gathered);
        self.tell(&written);
        self.unsaid = written.err().or(self.unsaid.take());
    }

    /// Says that the disk does not take WAL, if so; not each time.
    fn tell<T>(&mut self, result: &Result<T, AppendError>) {
        let Err(error @ AppendError::Disk { source, .. }) = result else { return };
        self.refuses = true;
        if self.trouble.is_news(Instant::now()) {
            let is_full = matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
            let kept = self.store.who_holds_wal().filter(|_| is_full);
            let kept = kept.map(|kept| format!("; {kept}")).unwrap_or_default();
            tracing::error!(
                "{error}; no WAL is received until then, consumers are served what is here{kept}"
            );
        }
    }

    fn take(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), AppendError> {
        if self.store.has_failed() {
            return Err(AppendError::Failed);
        }
        let Some(stream) = &mut self.stream else {
            return Err(AppendError::Gap { at, expected: Lsn::INVALID });
        };
        let position = stream.verifier.position();
        if at > position {
            return Err(AppendError::Gap { at, expected: position });
        }
        let known = (position.since(at)).min(bytes.len() as u64) as usize;
        stream.compare(&self.store, at, &bytes[..known])?;
        let mut rest = &bytes[known..];
        while !rest.is_empty() {
            let segment = stream.segment_for_next_byte(&self.store)?;
            let room = segment.end().since(stream.verifier.position()) as usize;
            let (chunk, behind) = rest.split_at(rest.len().min(room));
            stream.take(&segment, chunk)?;
            rest = behind;
        }
        Ok(())
    }

    /// Shows readers everything up to the end of the last complete record, and has it synced.
    pub fn commit(&mut self) {
        let came = Instant::now();
        self.write_gathered();
        let Some(stream) = &mut self.stream else { return };
        let Some(mut end) = stream.verifier.verified_end() else { return };
        if mutation::is(Mutation::ShowUnfinished) {
            end = stream.verifier.position();
        }
        if stream.published == Some(end) {
            return;
        }
        assert!(
            stream.published <= Some(end),
            "the published end falls from {:?} to {end}",
            stream.published
        );
        for segment in &stream.touched {
            segment.publish(end.min(segment.end()).since(segment.start()));
        }
        stream.published = Some(end);
        let target = TimelinePosition { tli: stream.tli, lsn: end };
        if stream.verifier.newest_redo() != stream.redo
            && let Some(redo) = stream.verifier.newest_redo()
        {
            stream.redo = Some(redo);
            self.store.checkpoint.note(self.store.history().timeline_at(redo), redo);
        }
        if let Some(commit) = stream.verifier.newest_commit() {
            self.store.newest_commit.store(commit.as_micros(), Ordering::Relaxed);
        }
        self.store.lag.arrived(end, came);
        // Before it can be called durable.
        self.store.written.send_replace(Some(target));
        // Before it is synced, which takes longer.
        self.store.audience.tell(Some(target));
        self.store.flush_queue.push(stream.touched.iter().cloned(), target, came);
        if mutation::is(Mutation::AckBeforeSync) {
            self.store.flushed.send_replace(Some(target));
        }
        // Segments with bytes of an unfinished record come again with its end.
        stream.touched.retain(|segment| segment.end() > end);
        // What was taken before the error is shown, too.
        if !self.refuses && self.trouble.is_over() {
            tracing::info!("WAL is received again");
        }
    }

    /// Notes durably that the present timeline is followed, unless it is noted already. To be called before anything
    /// is received on it.
    ///
    /// Waits for the disk.
    pub fn note_followed(&mut self) -> Result<(), AppendError> {
        let Some(stream) = &self.stream else { return Ok(()) };
        let (tli, newest) = (stream.tli, self.newest.map_or(stream.tli, |newest| newest.max(stream.tli)));
        self.note(self.followed(tli, newest))
    }

    /// Notes durably that a server on this timeline is followed, where that is a newer one than all before: ours may be far
    /// from having come there, and a fence that is ordered meanwhile is one of that timeline. To be called before anything is
    /// reported to the server.
    ///
    /// Waits for the disk.
    pub fn head_for(&mut self, heading: TimelineId) -> Result<(), AppendError> {
        let Some(stream) = &self.stream else { return Ok(()) };
        let (tli, newest) = (stream.tli, self.newest.map_or(stream.tli, |newest| newest.max(stream.tli)));
        let followed = self.followed(tli, newest);
        if followed.heading >= heading {
            return Ok(());
        }
        self.note(Followed { heading, ..followed })
    }

    fn followed(&self, tli: TimelineId, newest: TimelineId) -> Followed {
        let heading = self.store.fences.heading().map_or(newest, |heading| heading.max(newest));
        Followed { tli, newest, heading }
    }

    fn note(&mut self, followed: Followed) -> Result<(), AppendError> {
        if self.noted == Some(followed) {
            return Ok(());
        }
        // After an error nobody knows what the file says.
        self.noted = None;
        if !mutation::is(Mutation::ForgetNote) {
            followed::save(&self.store.dir, followed)
                .map_err(|source| AppendError::NotNoted { tli: followed.tli, source })?;
        }
        (self.noted, self.newest) = (Some(followed), Some(followed.newest));
        self.store.fences.heads_for(followed.heading);
        Ok(())
    }

    /// The newest timeline that was followed or headed for; higher than the present one while WAL of an ancestor of
    /// it is still missing. `None` if that is not known.
    pub fn newest(&self) -> Option<TimelineId> {
        self.newest
    }

    /// Goes on along a timeline that forked off the present one at or before its end; `history` is the
    /// new timeline's, and its file is stored already. What is held of the present one must be durable,
    /// because recovery takes the new timeline's first file as the proof that the old one is complete.
    ///
    /// The new timeline's first segment begins with the old one's bytes, in a file of its own. What was
    /// received beyond the fork stays in the old timeline's files. Slots beyond it come back to it.
    pub fn switch_timeline(&mut self, history: TimelineHistory) -> Result<(), AppendError> {
        self.commit();
        self.rewind();
        let tli = history.tli();
        let Some(stream) = &self.stream else {
            return Err(AppendError::Gap { at: Lsn::INVALID, expected: Lsn::INVALID });
        };
        let fail = |at, reason: String| AppendError::Fork { tli, at, reason };
        let Some((at, _)) = history.switch_point(stream.tli) else {
            return Err(fail(Lsn::INVALID, format!("timeline {} is not in its history", stream.tli)));
        };
        let end = stream.verifier.position();
        if at > end {
            return Err(fail(at, format!("timeline {} is held only up to {end}", stream.tli)));
        }
        // Where generations were skipped, everything from the first fork on is the newer timeline's.
        let hold = self.store.holds.register(HoldKind::TimelineSwitch, tli.to_string());
        if at.seg_start(stream.identity.seg_size) < hold.removed_before() {
            return Err(fail(at, "WAL of that age has been removed here".to_owned()));
        }
        let forked = stream.fork(&self.store, tli, at);
        self.tell(&forked);
        let forked = forked?;
        let newest = self.newest.map_or(tli, |newest| newest.max(tli));
        let target = TimelinePosition { tli, lsn: at };
        let first = forked.current.clone();
        self.go_over(self.followed(tli, newest), forked, history, target, false, at)?;
        self.store.flush_queue.push(first.into_iter(), target, Instant::now());
        Ok(())
    }

    /// Goes over to another timeline, of which nothing but what lies before `common` was followed before: what slots have
    /// confirmed beyond that is of the timeline that is left. A crash must not find it on the other, so what is saved of them
    /// before that is noted ends at `common`, and nobody saves more until it is shown. The slots themselves come back after
    /// that: until then retention judges them by the end that is left, and a slot that is far behind it is lost.
    fn go_over(
        &mut self,
        followed: Followed,
        stream: Stream,
        history: TimelineHistory,
        end: TimelinePosition,
        is_durable: bool,
        common: Lsn,
    ) -> Result<(), AppendError> {
        let store = self.store.clone();
        let alone = store.slots.alone();
        // Until the other history is shown, consumers confirm what they have of this one.
        let saved = match mutation::is(Mutation::ForgetSlotsAtSwitch) {
            true => alone.save(),
            false => alone.save_up_to(common),
        };
        saved.map_err(|source| AppendError::NotNoted { tli: followed.tli, source })?;
        self.note(followed)?;
        if let Some(tail) = &stream.current {
            store.segments.insert(tail);
        }
        self.stream = Some(stream);
        self.show(history, end, is_durable, common);
        Ok(())
    }

    /// Looks what is held here of a timeline with this history that is not the present one: left for another before,
    /// or begun and not come to. `None` if nothing is. Changes nothing but names of finished files.
    ///
    /// All of the present timeline must be durable. Waits for the disk.
    pub fn find(&self, history: TimelineHistory) -> Result<Option<HeldTimeline>, StoreError> {
        let Some(identity) = self.store.identity() else { return Ok(None) };
        let tli = history.tli();
        let magic = self.store.upstream_parameters().expected_magic();
        let hold = self.store.holds.register(HoldKind::TimelineSwitch, tli.to_string());
        let found = recovery::held(&self.store.dir, identity, self.store.config.wal_write, magic, history);
        let found = found.inspect_err(|error| self.store.fail_if_names_are_lost(error))?;
        Ok(found.and_then(|recovered| {
            let lsn = recovered.verifier.verified_end()?;
            let is_there = lsn.rewind(1).seg_start(identity.seg_size) >= hold.removed_before();
            is_there.then(|| HeldTimeline { recovered, end: TimelinePosition { tli, lsn }, _hold: hold })
        }))
    }

    /// Goes on with a timeline that was found, to come to `newest`. The present one, which must be durable, is left as
    /// it is. Slots beyond the point where both part come back to it.
    ///
    /// Waits for the disk. Fails with [`AppendError::NotNoted`], and then nothing has changed.
    pub fn take_up(&mut self, held: HeldTimeline, newest: TimelineId) -> Result<(), AppendError> {
        self.commit();
        // Nothing of it is removed before it is shown.
        let HeldTimeline { recovered, end, _hold } = held;
        let Some(identity) = self.store.identity() else { return Err(AppendError::Failed) };
        if *self.store.flushed.borrow() != *self.store.written.borrow() {
            let reason = "what is held of the present timeline is not durable yet".to_owned();
            return Err(AppendError::Fork { tli: end.tli, at: end.lsn, reason });
        }
        if let Some(tail) = &recovered.tail
            && let Err(error) = tail.sync()
        {
            // Zeros that nobody had sent may have made a record whole that was never synced.
            self.store.fail_sync(&format!("could not sync WAL up to {}", end.lsn), &error);
            return Err(AppendError::Failed);
        }
        let history = recovered.history.clone();
        let parting = self.store.history().parting(&history).and_then(|(_, at)| at);
        let common = parting.map_or(end.lsn, |at| at.min(end.lsn));
        let followed = self.followed(end.tli, newest.max(end.tli));
        self.go_over(followed, Stream::of(identity, recovered), history, end, true, common)?;
        self.store.tell_of_slots_without_wal();
        Ok(())
    }

    /// Readers get to see another timeline, of which nothing but what lies before `common` was seen before.
    fn show(&self, history: TimelineHistory, end: TimelinePosition, is_durable: bool, common: Lsn) {
        self.store.show_timeline(history, end, is_durable);
        self.store.lag.part(common, end.lsn, Instant::now());
        self.store.clamp_slots(common);
    }

    /// Commits on the present timeline's way from `from`, where a record begins, up to `to` or the end of what is held; `None`
    /// if not all of that WAL can be read, or there is more of it than `most` bytes.
    ///
    /// Waits for the disk.
    pub fn commits_between(&self, from: Lsn, to: Lsn, most: u64) -> Option<CommitCounter> {
        let stream = self.stream.as_ref()?;
        let (end, size) = (stream.published?.min(to), stream.identity.seg_size);
        let (history, mut at) = (self.store.history(), from);
        let mut counter = CommitCounter::new(from, size);
        while at < end && end.since(from) <= most {
            let tli = history.timeline_at(at);
            let segment = self.store.segment(tli, at.seg_at(size)).ok()?;
            let left_at = history.switch_point(tli).map_or(end, |(left_at, _)| left_at);
            let to = segment.end().min(left_at).min(end);
            if to.since(segment.start()) > segment.published() {
                return None;
            }
            let mut piece = vec![0; COPIED];
            while at < to {
                let piece = &mut piece[..to.since(at).min(COPIED as u64) as usize];
                segment.read(at.since(segment.start()), piece).ok()?;
                counter.push(piece);
                at = at.advance(piece.len() as u64);
            }
        }
        (at >= end).then_some(counter)
    }
}

impl Stream {
    fn of(identity: Identity, found: Recovered) -> Stream {
        let mut verifier = found.verifier;
        // What is here already could not be fetched again.
        verifier.accept_padding_that_comes_twice();
        Stream {
            identity,
            tli: found.history.tli(),
            published: verifier.verified_end(),
            redo: None,
            is_first: found.is_bare,
            verifier,
            current: found.tail,
            gathered: Gathered::default(),
            held_back: Vec::new(),
            touched: Vec::new(),
        }
    }

    /// Whether not one whole record is held.
    fn is_bare(&self) -> bool {
        self.is_first && self.verifier.last_record().is_none()
    }

    /// Verifies and writes bytes that lie in one segment.
    fn take(&mut self, segment: &Arc<Segment>, chunk: &[u8]) -> Result<(), AppendError> {
        let before = self.verifier.clone();
        let at = before.position();
        let checked = self.verifier.push(chunk);
        let is_usual =
            checked.is_ok() && self.held_back.is_empty() && self.verifier.doubtful_from().is_none();
        if is_usual && chunk.len() < SMALL && segment.is_written_by_calls() {
            return self.gather(segment, chunk, before);
        }
        self.write_gathered()?;
        let chunk = &*self.behind_what_is_held_back(chunk);
        let at = at.rewind(self.held_back.len() as u64);
        let good = match checked {
            // The file has zeros until it has come twice.
            Ok(()) => match self.verifier.doubtful_from() {
                Some(from) => &chunk[..(from.as_u64().saturating_sub(at.as_u64()) as usize).min(chunk.len())],
                None => chunk,
            },
            Err(_) if mutation::is(Mutation::ForwardUnverified) => {
                let (to, id) = (at.advance(chunk.len() as u64), self.identity);
                let id = WalIdentity { system_id: id.system_id, seg_size: id.seg_size };
                self.verifier = WalVerifier::at_record_start(id, self.tli, to, None);
                chunk
            }
            // The records before the bad one count.
            Err(_) => {
                let end = self.verifier.verified_end().unwrap_or(at);
                &chunk[..end.since(at).min(chunk.len() as u64) as usize]
            }
        };
        if let Err(source) = segment.write(at.since(segment.start()), good) {
            self.verifier = before;
            return Err(self.disk("write", segment.name())(source));
        }
        let doubtful = &chunk[good.len()..];
        self.held_back = match doubtful.len() as u64 {
            // Pages behind one that has not come before come again.
            len if len > PAGE => Vec::new(),
            _ => doubtful.to_vec(),
        };
        self.touch(segment);
        if mutation::is(Mutation::ForwardUnverified) { Ok(()) } else { Ok(checked?) }
    }

    /// Takes a piece that was verified.
    fn gather(
        &mut self,
        segment: &Arc<Segment>,
        chunk: &[u8],
        before: WalVerifier,
    ) -> Result<(), AppendError> {
        self.gathered.place.get_or_insert_with(|| (segment.clone(), before));
        self.gathered.bytes.extend_from_slice(chunk);
        self.touch(segment);
        if self.gathered.bytes.len() >= GATHERED { self.write_gathered() } else { Ok(()) }
    }

    fn write_gathered(&mut self) -> Result<(), AppendError> {
        let Some((segment, before)) = self.gathered.place.take() else { return Ok(()) };
        let written = segment.write(before.position().since(segment.start()), &self.gathered.bytes);
        self.gathered.bytes.clear();
        written.map_err(|source| {
            self.verifier = before;
            self.disk("write", segment.name())(source)
        })
    }

    /// The segment has bytes that have not been handed to the flusher.
    fn touch(&mut self, segment: &Arc<Segment>) {
        if !self.touched.iter().any(|known| Arc::ptr_eq(known, segment)) {
            self.touched.push(segment.clone());
        }
    }

    fn behind_what_is_held_back<'a>(&self, chunk: &'a [u8]) -> Cow<'a, [u8]> {
        match self.held_back.is_empty() {
            true => Cow::Borrowed(chunk),
            false => Cow::Owned([&self.held_back, chunk].concat()),
        }
    }

    /// Compares bytes with what was published; those of an unfinished record cannot come twice, because
    /// it is fetched from its start after a `rewind`.
    fn compare(&self, store: &Store, at: Lsn, bytes: &[u8]) -> Result<(), AppendError> {
        let (mut at, mut rest) = (at, bytes);
        let published = self.published.unwrap_or_default();
        while !rest.is_empty() && at < published {
            let segno = at.seg_at(self.identity.seg_size);
            let end = segno.end(self.identity.seg_size).min(published);
            let (chunk, behind) = rest.split_at(rest.len().min(end.since(at) as usize));
            let segment = match store.segment(self.tli, segno) {
                Ok(segment) => Some(segment),
                // What retention has removed cannot be compared, and nobody below can ask for it.
                Err(ReadError::Removed(_)) => None,
                // It is there, and nobody knows whether it is the same.
                Err(ReadError::Io { source, .. }) => {
                    return Err(self.disk("read", WalFileName::new(self.tli, segno))(source));
                }
            };
            if let Some(segment) = segment {
                let offset = at.since(segment.start());
                let readable = segment.published().saturating_sub(offset).min(chunk.len() as u64) as usize;
                let mut ours = vec![0; readable];
                segment.read(offset, &mut ours).map_err(self.disk("read", segment.name()))?;
                let (mut from, end) = (at, at.advance(readable as u64));
                while from < end {
                    let behind = from.since(at) as usize;
                    let both = ours[behind..].iter().zip(&chunk[behind..]);
                    let Some(differs) = both.into_iter().position(|(a, b)| a != b) else { break };
                    let lsn = from.advance(differs as u64);
                    if differs_in_nothing(lsn, ours[behind + differs], chunk[behind + differs]) {
                        from = lsn.advance(1);
                        continue;
                    }
                    // A crash may have left other bytes of a record that nobody could verify, nor will replay.
                    from = behind_lost_record(lsn, |page| self.page(store, page))
                        .ok_or(AppendError::Diverged { tli: self.tli, lsn })?;
                }
            }
            at = at.advance(chunk.len() as u64);
            rest = behind;
        }
        Ok(())
    }

    /// The beginning of a page that is published.
    fn page(&self, store: &Store, at: Lsn) -> Option<[u8; PAGE_HEAD]> {
        let segment = store.segment(self.tli, at.seg_at(self.identity.seg_size)).ok()?;
        let (mut head, offset) = ([0; PAGE_HEAD], at.since(segment.start()));
        // The end may lie in it: behind that there is nothing yet.
        let there = segment.published().checked_sub(offset)?.min(PAGE_HEAD as u64) as usize;
        segment.read(offset, &mut head[..there]).ok().map(|()| head)
    }

    fn segment_for_next_byte(&mut self, store: &Store) -> Result<Arc<Segment>, AppendError> {
        let position = self.verifier.position();
        if let Some(segment) = self.current.as_ref().filter(|segment| position < segment.end()) {
            return Ok(segment.clone());
        }
        self.write_gathered()?;
        if let Some(full) = &self.current {
            self.let_go_of(store, full);
        }
        let segno = position.seg_at(self.identity.seg_size);
        let segment = self.create_segment(store, self.tli, segno, &[])?;
        self.current = Some(segment.clone());
        Ok(segment)
    }

    /// A segment that holds nothing but the middle of a record is never written again: were the record bad, it would
    /// come again in new files. So its own need not stay open until the record is complete.
    fn let_go_of(&self, store: &Store, full: &Arc<Segment>) {
        let mut again = self.verifier.clone();
        again.rewind();
        if full.start() > again.position() && !full.is_closed() {
            store.flush_queue.push_early(full.clone());
        }
    }

    /// For errors of the system on a segment.
    fn disk(&self, action: &'static str, name: WalFileName) -> impl Fn(io::Error) -> AppendError + use<> {
        let file = name.format(self.identity.seg_size);
        move |source| AppendError::Disk { action, file: file.clone(), source }
    }

    /// A new segment file under its `.partial` name, at full size. A `head` is published and is durable
    /// before the name exists: recovery relies on it.
    fn create_segment(
        &self,
        store: &Store,
        tli: TimelineId,
        segno: SegNo,
        head: &[u8],
    ) -> Result<Arc<Segment>, AppendError> {
        let size = self.identity.seg_size;
        let name = WalFileName::new(tli, segno);
        let (temporary, made) = match store.ahead.take(size) {
            Some(spare) => (spare.path, Ok(spare.file)),
            None => {
                let path = store.dir.new_file(&name.format(size));
                let made = dir::preallocate(store.dir.disk(), &path, size);
                (path, made.map_err(self.disk("allocate", name)))
            }
        };
        let segment = made.and_then(|file| self.begin_segment(store, file, name, head)).and_then(|segment| {
            steps::taken();
            let renamed = store.dir.disk().rename(&temporary, &store.dir.partial(name, size));
            renamed.map(|()| segment).map_err(self.disk("name", name))
        });
        // All of it is thrown away, a failed sync of the head included: the next attempt has another file.
        let segment = segment.inspect_err(|_| drop(store.dir.disk().remove(&temporary)))?;
        steps::taken();
        let segment = Arc::new(segment);
        store.segments.insert(&segment);
        store.counts.segments_made.note();
        Ok(segment)
    }

    fn begin_segment(
        &self,
        store: &Store,
        file: Box<dyn DiskFile>,
        name: WalFileName,
        head: &[u8],
    ) -> Result<Segment, AppendError> {
        let segment = Segment::for_writer(file, name, self.identity.seg_size, 0, store.config.wal_write)
            .map_err(self.disk("map", name))?;
        if !head.is_empty() {
            segment.write(0, head).and_then(|()| segment.sync()).map_err(self.disk("write", name))?;
            segment.publish(head.len() as u64);
        }
        Ok(segment)
    }

    /// Begins timeline `tli` at `at`, which is at or before the verified end.
    fn fork(&self, store: &Store, tli: TimelineId, at: Lsn) -> Result<Stream, AppendError> {
        let size = self.identity.seg_size;
        let fail = |reason: String| AppendError::Fork { tli, at, reason };
        let files = store.dir.segments(size).map_err(|error| fail(error.to_string()))?;
        if files.iter().any(|found| found.name.tli == tli) {
            return Err(fail("there are files of a timeline of that number here".to_owned()));
        }
        let offset = at.offset_in_seg(size);
        let head = match offset {
            0 => Vec::new(),
            _ => self.head_of(store, at).map_err(|error| fail(error.to_string()))?,
        };
        let mut verifier = self.verifier.clone();
        if at != verifier.position() {
            let id = WalIdentity { system_id: self.identity.system_id, seg_size: size };
            verifier = match offset {
                0 => WalVerifier::at_record_start(id, tli, at, None),
                _ => WalVerifier::at_segment_start(id, tli, at),
            };
            if let Some(magic) = self.verifier.wal_magic() {
                verifier.expect_magic(magic);
            }
            verifier.push(&head).map_err(|error| fail(error.to_string()))?;
            if verifier.verified_end() != Some(at) {
                return Err(fail("no record ends there".to_owned()));
            }
            verifier.accept_padding_that_comes_twice();
        }
        verifier.switch_timeline(tli);
        // Also where it has no bytes yet: the file says which timeline we are on, after a crash too.
        let first = self.create_segment(store, tli, at.seg_at(size), &head)?;
        if let Err(error) = store.dir.sync_wal_dir() {
            store
                .fail_sync(&format!("could not sync pg_wal for the first segment of timeline {tli}"), &error);
            return Err(AppendError::Failed);
        }
        Ok(Stream {
            identity: self.identity,
            tli,
            verifier,
            current: Some(first),
            gathered: Gathered::default(),
            held_back: Vec::new(),
            touched: Vec::new(),
            published: Some(at),
            redo: None,
            // After a fork at the start of a segment the new verifier knows of no record; those before it are held.
            is_first: self.is_bare(),
        })
    }

    /// The bytes of `at`'s segment before `at`, on the present timeline.
    fn head_of(&self, store: &Store, at: Lsn) -> Result<Vec<u8>, ReadError> {
        let size = self.identity.seg_size;
        let segment = store.segment(self.tli, at.seg_at(size))?;
        let mut head = vec![0; at.offset_in_seg(size) as usize];
        let read = segment.read(0, &mut head);
        read.map_err(|source| ReadError::Io { file: segment.file_name(), source })?;
        Ok(head)
    }
}
