//! Recovery: where does the WAL in a data directory end?
//!
//! Finished segments are verified and durable, by their name. Those still called `.partial` are verified
//! again from the first of them on; a record that reaches into it from a finished segment is checked from
//! its start. The end is the end of the last complete record: preallocated zeros, torn pages and half
//! records are all beyond it. Files are read with `pread`, so that a bad sector is an error.
//!
//! Where a segment is missing, what lies behind it counts if everything before it is sure to have been durable once
//! ([`WalPath::durable_behind`]); it is verified from there on, and the hole is somebody else's
//! ([`holes`](super::holes)). Else the WAL ends there.
//!
//! What is read back need not be on the disk. After a failed sync the kernel takes the pages for clean: they can be
//! read, and a sync says yes without writing them. So whatever recovery takes over is copied into a new file, which is
//! synced and takes the old one's name, before anybody hears of it, unless the last run ended in order at just this
//! position. What a copy was made of might have left memory in between, so the copies are verified, too.
//!
//! Behind an XLOG_SWITCH nothing but its segment's end can follow, whatever the bytes are: the live stream takes any, so
//! recovery does, and never ends before what was confirmed. Where the last of them had not come, the file has zeros,
//! as a server has unless it lost power just then.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walrelay_proto::{
    Lsn, SegNo, SegSize, TimelineHistory, TimelineId, WalError, WalFileName, WalIdentity, WalVerifier,
};

use super::dir::{DataDir, FoundSegment};
use super::mapped::{Segment, WalWrite};
use super::opening::OpeningStep;
use super::path::WalPath;
use super::{Identity, StoreError, TimelinePosition, dir, steps};
use crate::disk::{DiskFile, Open};
use crate::mutation::{self, Mutation};

/// Finished segments of which a crash may have left the names in memory only: the flusher syncs them in turns.
const RENAMED: usize = 16;
/// What is read and written at a time.
const CHUNK: usize = 1 << 20;
/// Of WAL, bytes.
const PAGE: u64 = 8192;
/// Of a page or of a record, bytes.
const LONGEST_HEADER: u64 = 40;
/// What may be torn of the first WAL of all, bytes.
const FIRST_RECORD: u64 = 1 << 16;

/// How to recover.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecoveryPlan {
    /// `--wal-write`.
    pub(super) how: WalWrite,
    /// What all pages must have, if that is known.
    pub(super) magic: Option<u16>,
    /// The timeline to go to; `None` for the newest of which there is a file, also where there is none of this one.
    pub(super) timeline: Option<TimelineId>,
    /// Everything up to here is known to be on the disk.
    pub(super) durable: Option<TimelinePosition>,
    /// Everything up to here was confirmed to the upstream, wherever it is now; `None` if that is not known.
    pub(super) confirmed: Option<TimelinePosition>,
    /// A sync of everything has failed: finished segments and those of other timelines are not known to be on the disk
    /// either.
    pub(super) unsynced: bool,
}

/// What a data directory holds.
#[derive(Debug)]
pub(super) struct Recovered {
    /// History of the timeline.
    pub(super) history: TimelineHistory,
    /// Stands at the end of the WAL.
    pub(super) verifier: WalVerifier,
    /// The segment that holds the next byte, unless that is the first of a new one.
    pub(super) tail: Option<Arc<Segment>>,
    /// There is no whole record, on no timeline.
    pub(super) is_bare: bool,
}

/// Reads the data directory; `None` if it holds no WAL. What is found is durable.
pub(super) fn recover(
    dir: &DataDir,
    identity: Identity,
    plan: &RecoveryPlan,
) -> Result<Option<Recovered>, StoreError> {
    let list = || dir.segments(identity.seg_size).map_err(failed("could not list", dir.wal().into()));
    set_useless_aside(dir, identity, &list()?)?;
    let segments = list()?;
    if plan.unsynced {
        write_all_again(dir, identity, &segments)?;
    }
    let Some(newest) = segments.iter().map(|found| found.name.tli).max() else { return Ok(None) };
    let is_here = |tli: &TimelineId| segments.iter().any(|found| found.name.tli == *tli);
    let tli = match plan.timeline {
        Some(followed) if !is_here(&followed) => instead_of(dir, followed, is_here).unwrap_or(newest),
        followed => followed.unwrap_or(newest),
    };
    let history = read_history(dir, tli)?;
    let path =
        WalPath::read(dir, identity.seg_size, history).map_err(failed("could not list", dir.wal().into()))?;
    let scan = Scan { dir, identity, path, magic: plan.magic, confirmed: plan.confirmed };
    let mut end = scan.run()?;
    let is_bare = end.verifier.last_record().is_none() && scan.holds_no_record()?;
    if is_bare && end.verifier.verified_end().is_none() {
        // Not a single record was complete: begin anew.
        scan.clear_for_a_new_beginning(&end)?;
        return Ok(None);
    }
    if end.verifier.verified_end().is_none() && scan.has_only_the_middle_of_its_first_record() {
        // Where that record begins is lost and was never confirmed: it comes again, from the fork on.
        scan.set_partials_aside_from(scan.path.first_of_its_own())?;
        return recover(dir, identity, &RecoveryPlan { timeline: Some(tli), unsynced: false, ..*plan });
    }
    if end.verifier.verified_end().is_some() && scan.put_finished_aside_behind(&end)? {
        return recover(dir, identity, &RecoveryPlan { unsynced: false, ..*plan });
    }
    if plan.durable != Some(scan.position(&end)) && !mutation::is(Mutation::BelieveUnsynced) {
        scan.keep_what_lies_behind(&end);
        end = scan.write_again(end)?;
    }
    let tail = scan.settle(&end, plan.how)?;
    let TimelinePosition { tli, lsn } = scan.position(&end);
    tracing::info!("recovered WAL up to {lsn} on timeline {tli}");
    Ok(Some(Recovered { history: scan.path.history().clone(), verifier: end.verifier, tail, is_bare }))
}

/// The last timeline on the way to `followed` of which there is a file; there is none of `followed` itself.
fn instead_of(
    dir: &DataDir,
    followed: TimelineId,
    is_here: impl Fn(&TimelineId) -> bool,
) -> Option<TimelineId> {
    tracing::error!(
        "timeline {followed} was followed, and the data directory holds nothing of it any more: what was confirmed on it is \
         lost here, and comes back only if the upstream still has it; did somebody remove its files from pg_wal?"
    );
    read_history(dir, followed).ok()?.way().rev().find(is_here)
}

/// A `.partial` file has its full size before anything in it is confirmed: in a shorter one nothing was, nor in one that comes
/// behind it. They go the last one first: a crash that comes meanwhile leaves no hole.
fn set_useless_aside(dir: &DataDir, identity: Identity, segments: &[FoundSegment]) -> Result<(), StoreError> {
    let size = identity.seg_size;
    let is_finished = |found: &FoundSegment| segments.contains(&FoundSegment { partial: false, ..*found });
    let mut short: Vec<(FoundSegment, u64)> = Vec::new();
    for found in segments.iter().filter(|found| found.partial && !is_finished(found)) {
        let path = dir.partial(found.name, size);
        let len = dir.disk().metadata(&path);
        let len = len.map_err(failed("could not look at WAL segment", path))?.len;
        if len != size.bytes() {
            short.push((*found, len));
        }
    }
    // A final name says that all before it was durable.
    let is_behind = |found: &FoundSegment, before: &FoundSegment| {
        let same = found.name.tli == before.name.tli && found.name.segno > before.name.segno;
        let sure = |other: &&FoundSegment| {
            !other.partial && other.name.tli == before.name.tli && other.name.segno > before.name.segno
        };
        same && !segments.iter().any(|other| sure(&other))
    };
    for found in segments.iter().rev().filter(|found| found.partial) {
        let own = short.iter().find(|(other, _)| other == found);
        let before = short.iter().find(|(before, _)| is_behind(found, before));
        let why = match (is_finished(found), own, before) {
            (true, ..) => "there is a finished one of this name".to_owned(),
            (false, Some((_, len)), _) => format!("it is {len} bytes long, a segment has {}", size.bytes()),
            (false, None, Some((before, _))) => {
                format!("it lies behind {}, which was not written", before.name.format(size))
            }
            (false, None, None) => continue,
        };
        let path = dir.partial(found.name, size);
        let to = dir.set_aside(&path).map_err(failed("could not put aside WAL segment", path.clone()))?;
        tracing::warn!(
            "unfinished WAL segment \"{}\" is of no use, nothing in it was confirmed: {why}; it is now \"{}\"",
            path.display(),
            to.display()
        );
    }
    Ok(())
}

/// Puts copies in the place of all segments, durably, whatever they hold.
fn write_all_again(dir: &DataDir, identity: Identity, segments: &[FoundSegment]) -> Result<(), StoreError> {
    let size = identity.seg_size;
    tracing::warn!(
        "a sync of all files of \"{}\" has failed: its {} segments are written again, which takes its time; what the disk had \
         lost by then is found by \"walrelay verify\"",
        dir.wal().display(),
        segments.len()
    );
    dir.opening().enter(OpeningStep::WriteAgain, segments.len() as u64);
    for found in segments {
        dir.opening().advance();
        let path = path_of(dir, size, *found);
        let len = dir.disk().metadata(&path).map(|file| file.len);
        // One of another length is no segment, and told where it is met.
        if len.map_err(failed("could not look at WAL segment", path.clone()))? != size.bytes() {
            continue;
        }
        let copied = copy_over(dir, size, *found, size.bytes());
        match copied.map_err(|error| why_unreadable(dir, &path).ok_or(error)) {
            Ok(()) => {}
            // It stays as it is: whoever needs it finds that it cannot be read.
            Err(Ok(error)) => tracing::error!(
                "WAL segment \"{}\" cannot be read ({error}), so it could not be written again: look at the disk, and see \
                 what \"walrelay verify\" says",
                path.display()
            ),
            Err(Err(error)) => return Err(failed("could not write again", path)(error)),
        }
    }
    Ok(())
}

/// What the disk says where some of a file cannot be read.
fn why_unreadable(dir: &DataDir, path: &Path) -> Option<io::Error> {
    let read = || {
        let (file, mut buffer) = (dir.disk().open(path, Open::Read)?, vec![0; CHUNK]);
        let mut at = 0;
        loop {
            match file.read_at(&mut buffer, at)? {
                0 => return Ok(()),
                len => at += len as u64,
            }
        }
    };
    read().err()
}

/// Finds what is held of the timeline with this history, wherever the relay is at the moment; `None` if not a single
/// record is. It is durable: it was when the timeline was left, and an end of the process since then was no failed sync
/// of it.
pub(super) fn held(
    dir: &DataDir,
    identity: Identity,
    how: WalWrite,
    magic: Option<u16>,
    history: TimelineHistory,
) -> Result<Option<Recovered>, StoreError> {
    let tli = history.tli();
    let path =
        WalPath::read(dir, identity.seg_size, history).map_err(failed("could not list", dir.wal().into()))?;
    let scan = Scan { dir, identity, path, magic, confirmed: None };
    if !scan.path.segments().iter().any(|found| found.name.tli == tli) {
        return Ok(None);
    }
    let end = scan.run()?;
    if end.verifier.verified_end().is_none() {
        return Ok(None);
    }
    if scan.put_finished_aside_behind(&end)? {
        return held(dir, identity, how, magic, scan.path.history().clone());
    }
    let tail = scan.settle(&end, how)?;
    let history = scan.path.history().clone();
    Ok(Some(Recovered { history, verifier: end.verifier, tail, is_bare: false }))
}

fn read_history(dir: &DataDir, tli: TimelineId) -> Result<TimelineHistory, StoreError> {
    if tli == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let unusable = |reason: String| StoreError::History { tli, reason };
    let content =
        dir::read_if_present(dir.disk(), &dir.history(tli)).map_err(|error| unusable(error.to_string()))?;
    let content = content.ok_or_else(|| unusable("it is missing".to_owned()))?;
    TimelineHistory::parse(tli, &content).map_err(|error| unusable(error.to_string()))
}

fn failed(action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path, source }
}

struct Scan<'a> {
    dir: &'a DataDir,
    identity: Identity,
    path: WalPath,
    /// What all pages must have, if that is known.
    magic: Option<u16>,
    /// What was confirmed to the upstream, if that is known.
    confirmed: Option<TimelinePosition>,
}

struct End {
    verifier: WalVerifier,
    /// Why the scan ended inside a segment; `None` where the files simply end.
    error: Option<WalError>,
    /// How far it came, beyond the end: up to here there is at most a record that is not whole. What lies behind nobody has
    /// looked at.
    reach: Lsn,
}

impl Scan<'_> {
    /// Verifies from the first unfinished segment of the timeline to the end.
    fn run(&self) -> Result<End, StoreError> {
        let tli = self.path.history().tli();
        let last = self
            .path
            .segments()
            .iter()
            .filter(|found| found.name.tli == tli)
            .map(|found| found.name.segno)
            .max();
        let first_partial = self.unfinished().map(|found| found.name.segno).min();
        let first = first_partial.or(last).unwrap_or(SegNo::new(0));
        let from = self.step_back(first)?;
        let mut end = End { verifier: self.verifier_at(from), error: None, reach: Lsn::INVALID };
        let to_read = self.path.segments().iter().filter(|found| found.name.segno >= from);
        self.dir.opening().enter(OpeningStep::Verify, to_read.count() as u64);
        let (mut segno, mut reach) = (from, None);
        while end.error.is_none() {
            if let Some(found) = self.path.file_for(segno) {
                self.dir.opening().advance();
                end.error = self.verify(&mut end.verifier, found)?;
                if let Some(error) = end.error {
                    self.must_be_partial(found, error)?;
                    reach = Some(self.end_of_what_is_torn(found, end.verifier.position()));
                }
                segno = segno.next();
            } else if let Some(behind) = self.path.durable_behind(segno) {
                end.verifier = self.verifier_at(behind);
                segno = behind;
            } else {
                break;
            }
        }
        end.reach = reach.unwrap_or(end.verifier.position());
        end.verifier.rewind();
        Ok(end)
    }

    /// Where ends what does not verify and begins at `at`: of a page's header or of a record that a crash has cut off within a
    /// page, the verifier takes nothing. The record says itself how long it is, if that much of it is there.
    fn end_of_what_is_torn(&self, found: FoundSegment, at: Lsn) -> Lsn {
        let offset = at.since(found.name.segno.start(self.identity.seg_size));
        let mut length = [0; 4];
        let file = self.dir.disk().open(&self.path_of(found), Open::Read);
        if file.and_then(|file| file.read_exact_at(&mut length, offset)).is_err() {
            return at;
        }
        let length = u64::from(u32::from_le_bytes(length)).max(LONGEST_HEADER);
        at.advance(length.min(PAGE - at.since(at.page_start())))
    }

    /// Whether all that is here of the timeline is unfinished and lies right behind its first segment, which is missing: a
    /// server that keeps what was not confirmed has that.
    fn has_only_the_middle_of_its_first_record(&self) -> bool {
        let (tli, first) = (self.path.history().tli(), self.path.first_of_its_own());
        let own = || self.path.segments().iter().filter(|found| found.name.tli == tli);
        tli != TimelineId::FIRST
            && self.path.file_for(first).is_none()
            && self.path.file_for(first.next()).is_some()
            && own().all(|found| found.partial)
    }

    /// Whether there is no whole record in any file, on whatever timeline: one that is not on the way may hold the only
    /// copy of what was confirmed. A finished segment was confirmed, and where one is lost nobody knows what was.
    fn holds_no_record(&self) -> Result<bool, StoreError> {
        if self.path.segments().iter().any(|found| !found.partial) || self.has_lost_files() {
            return Ok(false);
        }
        let mut before: Option<(WalFileName, WalVerifier)> = None;
        for found in self.path.segments() {
            // A record may reach from one file into the next.
            let continues = |(last, _): &(WalFileName, WalVerifier)| {
                last.tli == found.name.tli && last.segno.next() == found.name.segno
            };
            let mut verifier = before
                .take()
                .filter(continues)
                .map_or_else(|| self.verifier_of(found.name), |(_, verifier)| verifier);
            let error = match self.verify(&mut verifier, *found) {
                // Nobody knows what it holds.
                Err(_) if !self.path.leads_through(found) => return Ok(false),
                other => other?,
            };
            if verifier.last_record().is_some() {
                return Ok(false);
            }
            before = error.is_none().then_some((found.name, verifier));
        }
        Ok(true)
    }

    /// Whether a number is left out between those that are here, or the segment is missing with which the timeline went on
    /// from another that is.
    fn has_lost_files(&self) -> bool {
        let numbers: BTreeSet<_> =
            self.path.segments().iter().map(|found| found.name.segno.as_u64()).collect();
        let is_hole = |(first, last): (&u64, &u64)| last - first >= numbers.len() as u64;
        let (tli, first) = (self.path.history().tli(), self.path.first_of_its_own());
        let left = |found: &FoundSegment| found.name.tli != tli && found.name.segno <= first;
        numbers.first().zip(numbers.last()).is_some_and(is_hole)
            || self.path.file_for(first).is_none() && self.path.segments().iter().any(left)
    }

    /// At the start of a segment on the way.
    fn verifier_at(&self, segno: SegNo) -> WalVerifier {
        // Older timelines' segments on the way carry lower numbers, which the newest one allows.
        self.verifier_of(WalFileName::new(self.path.history().tli(), segno))
    }

    fn verifier_of(&self, name: WalFileName) -> WalVerifier {
        let id = WalIdentity { system_id: self.identity.system_id, seg_size: self.identity.seg_size };
        let mut verifier = WalVerifier::at_segment_start(id, name.tli, name.segno.start(id.seg_size));
        verifier.accept_any_padding(true);
        if let Some(magic) = self.magic {
            verifier.expect_magic(magic);
        }
        verifier
    }

    /// Segments on the way without a final name. Those of older timelines are complete, though a crash may have come
    /// before they got it.
    fn unfinished(&self) -> impl Iterator<Item = FoundSegment> {
        let on_the_way = |found: &FoundSegment| found.partial && self.path.leads_through(found);
        self.path.segments().iter().copied().filter(on_the_way)
    }

    fn position(&self, end: &End) -> TimelinePosition {
        TimelinePosition { tli: self.path.history().tli(), lsn: end.verifier.position() }
    }

    /// Goes back at least one segment, and over segments that are nothing but the middle of a record, so
    /// that what reaches into `first` is checked from its start.
    fn step_back(&self, first: SegNo) -> Result<SegNo, StoreError> {
        let mut from = first;
        while let Some(previous) = from.prev().and_then(|before| self.path.file_for(before)) {
            from = previous.name.segno;
            if !self.is_middle_of_record(previous)? {
                break;
            }
        }
        Ok(from)
    }

    fn is_middle_of_record(&self, found: FoundSegment) -> Result<bool, StoreError> {
        let mut header = [0u8; 20];
        let path = self.path_of(found);
        let file = self.dir.disk().open(&path, Open::Read);
        file.and_then(|file| read_exact(&*file, &mut header, 0))
            .map_err(failed("could not read WAL segment", path))?;
        let continues = header[2] & 1 == 1;
        let rem_len = u32::from_le_bytes([header[16], header[17], header[18], header[19]]);
        let page_headers = self.identity.seg_size.bytes() / 8192 * 24 + 16;
        Ok(continues && u64::from(rem_len) >= self.identity.seg_size.bytes() - page_headers)
    }

    /// Pushes one segment; the error is where its WAL ends.
    fn verify(
        &self,
        verifier: &mut WalVerifier,
        found: FoundSegment,
    ) -> Result<Option<WalError>, StoreError> {
        let path = self.path_of(found);
        let file = self.dir.disk().open(&path, Open::Read);
        let file = file.map_err(failed("could not open WAL segment", path.clone()))?;
        let mut buffer = vec![0u8; CHUNK];
        for offset in (0..self.identity.seg_size.bytes()).step_by(buffer.len()) {
            read_exact(&*file, &mut buffer, offset)
                .map_err(failed("could not read WAL segment", path.clone()))?;
            if let Err(error) = verifier.push(&buffer) {
                return Ok(Some(error));
            }
        }
        Ok(None)
    }

    fn must_be_partial(&self, found: FoundSegment, source: WalError) -> Result<(), StoreError> {
        let later_finished = |other: &&FoundSegment| {
            other.name.tli == self.path.history().tli()
                && !other.partial
                && other.name.segno > found.name.segno
        };
        let may_end_here = found.partial && found.name.tli == self.path.history().tli();
        if may_end_here && !self.path.segments().iter().any(|other| later_finished(&other)) {
            return Ok(());
        }
        Err(StoreError::Damaged { file: self.path_of(found).display().to_string(), source })
    }

    /// Makes what was found durable, where nobody knows whether it is: all that the last run may have left in memory.
    fn write_again(&self, end: End) -> Result<End, StoreError> {
        let size = self.identity.seg_size;
        let before = self.position(&end).lsn;
        self.renew_histories()?;
        let found_again = || self.unfinished().filter(|found| found.name.segno.start(size) <= before);
        self.dir.opening().enter(OpeningStep::WriteAgain, found_again().count() as u64);
        for found in found_again() {
            self.dir.opening().advance();
            let len = before.min(found.name.segno.end(size)).since(found.name.segno.start(size));
            if len == 0 {
                // Nothing of it counts, and what it holds comes again: in the same place.
                continue;
            }
            let path = self.path_of(found);
            copy_over(self.dir, size, found, len)
                .map_err(failed("could not write again, to be sure that it is on the disk,", path))?;
        }
        self.write_left_again()?;
        self.renew_names()?;
        let again = self.run()?;
        let after = self.position(&again).lsn;
        if after < before {
            tracing::error!(
                "WAL that was read up to {before} is only there up to {after} after it was written again: look at the disk"
            );
        }
        // A copy has nothing behind the end: where the files ended there, they still do.
        Ok(End { error: end.error.and(again.error), reach: end.reach.max(again.reach), ..again })
    }

    /// Unfinished segments of timelines that were left, or begun and not come to: who goes to one of them takes what is there
    /// for durable, and a failed sync of `pg_wal` may have left even the name in memory only.
    fn write_left_again(&self) -> Result<(), StoreError> {
        let size = self.identity.seg_size;
        let is_left = |found: &&FoundSegment| found.partial && !self.path.leads_through(found);
        for found in self.path.segments().iter().filter(is_left) {
            let path = self.path_of(*found);
            let Err(error) = copy_over(self.dir, size, *found, size.bytes()) else { continue };
            match why_unreadable(self.dir, &path).filter(|_| !self.was_confirmed(*found)) {
                Some(why) => self.set_unreadable_aside(*found, &why)?,
                None => {
                    return Err(failed("could not write again, to be sure that it is on the disk,", path)(
                        error,
                    ));
                }
            }
        }
        Ok(())
    }

    /// One of a timeline that is not followed: who goes to that one finds less of it, which comes again or is lost with the
    /// disk.
    fn set_unreadable_aside(&self, found: FoundSegment, why: &io::Error) -> Result<(), StoreError> {
        let (path, tli) = (self.path_of(found), found.name.tli);
        let to =
            self.dir.set_aside(&path).map_err(failed("could not put aside WAL segment", path.clone()))?;
        tracing::error!(
            "unfinished WAL segment \"{}\" cannot be read ({why}): look at the disk; it is now \"{}\". Nothing on the way to \
             timeline {} is in it, but what was received of timeline {tli} from {} on may be, and is not held any more",
            path.display(),
            to.display(),
            self.path.history().tli(),
            found.name.segno.start(self.identity.seg_size)
        );
        Ok(())
    }

    /// History files are small, and whether they are durable nobody knows either.
    fn renew_histories(&self) -> Result<(), StoreError> {
        let names = self.dir.wal_files().map_err(failed("could not list", self.dir.wal().into()))?;
        for tli in names.iter().filter_map(|name| TimelineId::from_history_file_name(name)) {
            let path = self.dir.history(tli);
            let renewed = dir::read_if_present(self.dir.disk(), &path).and_then(|content| {
                let Some(content) = content else { return Ok(()) };
                match self.dir.write_history(tli, &content) {
                    Err(error) if is_full(&error) => {
                        let file = self.dir.disk().open(&path, Open::ReadWrite)?;
                        file.write_all_at(&content, 0)?;
                        file.sync_all()
                    }
                    other => other,
                }
            });
            renewed.map_err(failed("could not write again history file", path))?;
        }
        Ok(())
    }

    /// Finished segments are durable, but the sync of the directory that gave the last of them their names may have
    /// failed: they get them again. A crash in between leaves the names that they had before.
    fn renew_names(&self) -> Result<(), StoreError> {
        let tli = self.path.history().tli();
        let finished =
            self.path.segments().iter().rev().filter(|found| !found.partial && found.name.tli == tli);
        for found in finished.take(RENAMED) {
            let path = self.path_of(*found);
            let before = self.dir.partial(found.name, self.identity.seg_size);
            let disk = self.dir.disk();
            disk.rename(&path, &before)
                .and_then(|()| disk.rename(&before, &path))
                .map_err(failed("could not rename WAL segment", path))?;
        }
        self.dir.sync_wal_dir().map_err(failed("could not sync", self.dir.wal().into()))
    }

    /// Brings the files in line with the end: finished ones get their name, later ones go or are put aside, the tail is
    /// mapped.
    fn settle(&self, end: &End, how: WalWrite) -> Result<Option<Arc<Segment>>, StoreError> {
        let size = self.identity.seg_size;
        let lsn = end.verifier.position();
        if let Some(error) = &end.error {
            tracing::debug!("WAL ends at {lsn}: {error}");
        }
        let tail = lsn.seg_at(size);
        for found in self.unfinished().filter(|found| found.name.segno < tail) {
            let path = self.path_of(found);
            let renamed = self.dir.disk().rename(&path, &self.dir.segment(found.name, size));
            renamed.map_err(failed("could not finish WAL segment", path))?;
            steps::taken();
        }
        self.clear_behind(end)?;
        // Kept even if it is empty: it may be all there is of the newest timeline.
        let tli = self.path.history().tli();
        let own = self.path.file_for(tail).filter(|found| found.name.tli == tli);
        let own = own.map(|found| self.open_again(found)).transpose()?;
        let result = own.map(|found| self.map_tail(found, lsn, how)).transpose()?;
        self.dir.sync_wal_dir().map_err(failed("could not sync", self.dir.wal().into()))?;
        Ok(result)
    }

    /// The file that WAL goes on in. A finished one loses its name: its last record reached into a segment that is
    /// lost, and comes again.
    fn open_again(&self, found: FoundSegment) -> Result<FoundSegment, StoreError> {
        let unfinished = FoundSegment { partial: true, ..found };
        if !found.partial {
            let path = self.path_of(found);
            let renamed = self.dir.disk().rename(&path, &self.path_of(unfinished));
            renamed.map_err(failed("could not go on in finished WAL segment", path))?;
            steps::taken();
        }
        Ok(unfinished)
    }

    /// Finished segments behind the end are full of a record that does not end here. It was durable when they got their names,
    /// so what ends it is lost, or a relay up to 0.1.0 has left them so in a power cut: they are put aside, durably. Else a
    /// new one of their name would lie beside each of them when it comes again. What is unfinished behind them goes with them:
    /// behind the hole nobody would look at that record again. Whether there were any.
    fn put_finished_aside_behind(&self, end: &End) -> Result<bool, StoreError> {
        let TimelinePosition { tli, lsn } = self.position(end);
        let tail = lsn.seg_at(self.identity.seg_size);
        let is_behind = |found: &&FoundSegment| found.name.tli == tli && found.name.segno > tail;
        if self.path.segments().iter().filter(is_behind).all(|found| found.partial) {
            return Ok(false);
        }
        // The last one first: a crash in between must not leave a hole.
        for found in self.path.segments().iter().rev().filter(is_behind) {
            if found.partial {
                self.clear(*found, end)?;
                continue;
            }
            let path = self.path_of(*found);
            let to =
                self.dir.set_aside(&path).map_err(failed("could not put aside WAL segment", path.clone()))?;
            tracing::error!(
                "finished WAL segment \"{}\" is full of a record that begins at {lsn} and does not end here: what ends it is \
                 lost, and it is fetched again from there on; the segment is now \"{}\"",
                path.display(),
                to.display()
            );
        }
        Ok(true)
    }

    /// Has the unfinished segments of the timeline behind the end's gone. What was reached holds at most the middle of a
    /// record that is not whole; what lies behind may have been confirmed, and is put aside.
    fn clear_behind(&self, end: &End) -> Result<(), StoreError> {
        let tail = end.verifier.position().seg_at(self.identity.seg_size);
        self.own_partials(tail.next()).try_for_each(|found| self.clear(found, end))
    }

    /// One of those.
    fn clear(&self, found: FoundSegment, end: &End) -> Result<(), StoreError> {
        match self.is_blank_behind(found, end.reach) && !self.was_confirmed(found) {
            true => self.remove(found),
            false => self.set_aside(found, end.error, end.verifier.position()),
        }
    }

    /// Whether it is known that some of it was: then what ends that record is lost.
    fn was_confirmed(&self, found: FoundSegment) -> bool {
        let starts_before = |confirmed: TimelinePosition| {
            confirmed.tli == found.name.tli && found.name.segno.start(self.identity.seg_size) < confirmed.lsn
        };
        self.confirmed.is_some_and(starts_before)
    }

    fn set_partials_aside_from(&self, from: SegNo) -> Result<(), StoreError> {
        let start = from.start(self.identity.seg_size);
        self.own_partials(from).try_for_each(|found| self.set_aside(found, None, start))
    }

    /// The timeline's unfinished segments from there on, the last one first: a crash that comes while they go one by one
    /// leaves no hole between them.
    fn own_partials(&self, from: SegNo) -> impl Iterator<Item = FoundSegment> {
        let tli = self.path.history().tli();
        let is_one =
            move |found: &FoundSegment| found.partial && found.name.tli == tli && found.name.segno >= from;
        self.path.segments().iter().rev().copied().filter(is_one)
    }

    fn remove(&self, found: FoundSegment) -> Result<(), StoreError> {
        let path = self.path_of(found);
        self.dir.disk().remove(&path).map_err(failed("could not remove WAL segment", path))?;
        steps::taken();
        Ok(())
    }

    /// It lies behind WAL that does not verify, or is missing where there is no error.
    fn set_aside(
        &self,
        found: FoundSegment,
        error: Option<WalError>,
        again_from: Lsn,
    ) -> Result<(), StoreError> {
        let path = self.path_of(found);
        let to =
            self.dir.set_aside(&path).map_err(failed("could not put aside WAL segment", path.clone()))?;
        let why = match error {
            Some(error) => format!("what does not verify ({error})"),
            None => "one that is missing".to_owned(),
        };
        tracing::error!(
            "unfinished WAL segment \"{}\" lies behind {why}, so WAL up to it may have been confirmed and is fetched again \
             from {again_from} on; it is now \"{}\"",
            path.display(),
            to.display()
        );
        Ok(())
    }

    /// The end's segment is written over from there on. What else it holds is what a power cut has left of WAL that was not
    /// confirmed, or it is damaged, and that is all there is of WAL that was: nobody can tell, so it is kept in a copy. It
    /// is for people, so nothing fails where there is no room.
    fn keep_what_lies_behind(&self, end: &End) {
        let tail = end.verifier.position().seg_at(self.identity.seg_size);
        let own = self.own_partials(tail).last().filter(|found| found.name.segno == tail);
        let (Some(found), Some(error)) = (own, end.error) else { return };
        if self.is_blank_behind(found, end.reach) {
            return;
        }
        let path = self.path_of(found);
        match self.dir.copy_aside(&path) {
            Ok(to) => tracing::warn!(
                "WAL segment \"{}\" holds something behind the end of its WAL at {} ({error}): what a power cut has left of \
                 WAL that was not confirmed, or a fault of the disk; as it was it is now \"{}\", and its WAL is fetched again from \
                 there on",
                path.display(),
                end.verifier.position(),
                to.display()
            ),
            Err(failure) => tracing::warn!(
                "could not copy WAL segment \"{}\", which holds something behind the end of its WAL at {} ({error}): {failure}",
                path.display(),
                end.verifier.position()
            ),
        }
    }

    /// Removes what was begun of the timeline's first record. A file that holds more is damaged at its beginning, and what
    /// lies behind that may be the only copy of what was confirmed: it is put aside.
    fn clear_for_a_new_beginning(&self, end: &End) -> Result<(), StoreError> {
        // So little is not worth a word: a power cut may have torn it before it could be confirmed.
        let first = self.own_partials(SegNo::new(0)).last();
        let first = first.map_or(Lsn::INVALID, |found| found.name.segno.start(self.identity.seg_size));
        let reach = end.reach.max(first.advance(FIRST_RECORD));
        for found in self.own_partials(SegNo::new(0)) {
            if self.is_blank_behind(found, reach) {
                self.remove(found)?;
                continue;
            }
            let path = self.path_of(found);
            let to =
                self.dir.set_aside(&path).map_err(failed("could not put aside WAL segment", path.clone()))?;
            tracing::error!(
                "WAL segment \"{}\" is damaged at its beginning, so nothing of it can be used, and WAL is fetched from the \
                 upstream as if none were held; it is now \"{}\": if the upstream has lost its WAL, look for commits there",
                path.display(),
                to.display()
            );
        }
        Ok(())
    }

    /// Whether there are only zeros in a segment from there on. What cannot be read may be anything.
    fn is_blank_behind(&self, found: FoundSegment, from: Lsn) -> bool {
        let (size, segno) = (self.identity.seg_size, found.name.segno);
        let (mut at, mut buffer) = (from.since(segno.start(size)), vec![0u8; CHUNK]);
        let Ok(file) = self.dir.disk().open(&self.path_of(found), Open::Read) else { return false };
        while at < size.bytes() {
            let piece = &mut buffer[..CHUNK.min((size.bytes() - at) as usize)];
            if file.read_exact_at(piece, at).is_err() || piece.iter().any(|&byte| byte != 0) {
                return false;
            }
            at += piece.len() as u64;
        }
        true
    }

    fn map_tail(&self, found: FoundSegment, end: Lsn, how: WalWrite) -> Result<Arc<Segment>, StoreError> {
        let path = self.path_of(found);
        let published = end.offset_in_seg(self.identity.seg_size);
        let open = || {
            let file = self.dir.disk().open(&path, Open::ReadWrite)?;
            Segment::for_writer(file, found.name, self.identity.seg_size, published, how)
        };
        open().map(Arc::new).map_err(failed(
            "could not use unfinished WAL segment (remove it to fetch it again)",
            path.clone(),
        ))
    }

    fn path_of(&self, found: FoundSegment) -> PathBuf {
        path_of(self.dir, self.identity.seg_size, found)
    }
}

fn path_of(dir: &DataDir, size: SegSize, found: FoundSegment) -> PathBuf {
    match found.partial {
        true => dir.partial(found.name, size),
        false => dir.segment(found.name, size),
    }
}

/// Puts a copy of a file's first `len` bytes in its place, durably.
fn copy_over(dir: &DataDir, size: SegSize, found: FoundSegment, len: u64) -> io::Result<()> {
    let (path, copy) = (path_of(dir, size, found), dir.new_file(&found.name.format(size)));
    let disk = dir.disk();
    let copied = dir::preallocate(disk, &copy, size).and_then(|new| {
        copy_bytes(&*disk.open(&path, Open::Read)?, &*new, len)?;
        new.sync_data()?;
        steps::taken();
        disk.rename(&copy, &path)
    });
    match copied {
        Ok(()) => {
            steps::taken();
            dir.sync_wal_dir()
        }
        Err(error) => {
            let _ = disk.remove(&copy);
            if !is_full(&error) {
                return Err(error);
            }
            // Storing the same bytes in the same place makes the kernel write them, too; a torn one was not durable.
            tracing::warn!(
                "no room for a copy of \"{}\" ({error}): it is written again in place",
                path.display()
            );
            let file = disk.open(&path, Open::ReadWrite)?;
            copy_bytes(&*file, &*file, len)?;
            file.sync_data()
        }
    }
}

/// Reads from a file that should be as long as a segment.
fn read_exact(file: &dyn DiskFile, buffer: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(buffer, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(
            error.kind(),
            "it is shorter than a segment; restore it from another copy, or move it and all later segments away to fetch them again",
        ),
        _ => error,
    })
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Copies the first `len` bytes; both may be the same file.
fn copy_bytes(from: &dyn DiskFile, to: &dyn DiskFile, len: u64) -> io::Result<()> {
    let mut buffer = vec![0u8; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        let chunk = &mut buffer[..CHUNK.min((len - at) as usize)];
        from.read_exact_at(chunk, at)?;
        to.write_all_at(chunk, at)?;
    }
    Ok(())
}
