//! Recovery: where does the WAL in a data directory end?
//!
//! Finished segments are verified and durable, by their name. Those still called `.partial` are verified
//! again from the first of them on; a record that reaches into it from a finished segment is checked from
//! its start. The end is the end of the last complete record: preallocated zeros, torn pages and half
//! records are all beyond it. Files are read with `pread`, so that a bad sector is an error.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use walrelay_proto::{
    Lsn, SegNo, TimelineHistory, TimelineId, WalError, WalFileName, WalIdentity, WalVerifier,
};

use super::dir::{DataDir, FoundSegment};
use super::mapped::{Segment, WalWrite};
use super::{Identity, StoreError, dir};

/// What a data directory holds.
#[derive(Debug)]
pub(super) struct Recovered {
    /// History of the newest timeline.
    pub(super) history: TimelineHistory,
    /// Stands at the end of the WAL.
    pub(super) verifier: WalVerifier,
    /// The segment that holds the next byte, unless that is the first of a new one.
    pub(super) tail: Option<Arc<Segment>>,
}

/// Reads the data directory; `None` if it holds no WAL. `magic` is what its pages must have, if that is known.
pub(super) fn recover(
    dir: &DataDir,
    identity: Identity,
    magic: Option<u16>,
    how: WalWrite,
) -> Result<Option<Recovered>, StoreError> {
    let segments = dir.segments(identity.seg_size).map_err(failed("could not list", dir.wal().into()))?;
    let Some(newest) = segments.iter().map(|found| found.name.tli).max() else { return Ok(None) };
    let history = read_history(dir, newest)?;
    let scan = Scan { dir, identity, magic, segments, history };
    let end = scan.run()?;
    if end.verifier.verified_end().is_none() && scan.segments.iter().all(|found| found.partial) {
        // Not a single record was complete: begin anew.
        scan.remove_partials_from(SegNo::new(0))?;
        return Ok(None);
    }
    let tail = scan.settle(&end, how)?;
    let lsn = end.verifier.position();
    tracing::info!("recovered WAL up to {lsn} on timeline {newest}");
    Ok(Some(Recovered { history: scan.history, verifier: end.verifier, tail }))
}

fn read_history(dir: &DataDir, tli: TimelineId) -> Result<TimelineHistory, StoreError> {
    if tli == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let unusable = |reason: String| StoreError::History { tli, reason };
    let content = dir::read_if_present(&dir.history(tli)).map_err(|error| unusable(error.to_string()))?;
    let content = content.ok_or_else(|| unusable("it is missing".to_owned()))?;
    TimelineHistory::parse(tli, &content).map_err(|error| unusable(error.to_string()))
}

fn failed(action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path, source }
}

struct Scan<'a> {
    dir: &'a DataDir,
    identity: Identity,
    /// What all pages must have, if that is known.
    magic: Option<u16>,
    segments: Vec<FoundSegment>,
    history: TimelineHistory,
}

struct End {
    verifier: WalVerifier,
    /// Why the scan ended inside a segment; `None` where the files simply end.
    error: Option<WalError>,
}

impl Scan<'_> {
    /// Verifies from the first unfinished segment of the newest timeline to the end.
    fn run(&self) -> Result<End, StoreError> {
        let tli = self.history.tli();
        let own = || self.segments.iter().filter(|found| found.name.tli == tli);
        let unnamed = self
            .segments
            .iter()
            .filter(|found| found.partial && (found.name.tli == tli || self.is_whole(found)));
        let first_partial = unnamed.map(|found| found.name.segno).min();
        let last = own().map(|found| found.name.segno).max();
        let first = first_partial.or(last).unwrap_or(SegNo::new(0));
        let from = self.step_back(first)?;
        let id = WalIdentity { system_id: self.identity.system_id, seg_size: self.identity.seg_size };
        // Older timelines' segments on the way carry lower numbers, which the newest one allows.
        let mut verifier = WalVerifier::at_segment_start(id, tli, from.start(id.seg_size));
        if let Some(magic) = self.magic {
            verifier.expect_magic(magic);
        }
        let mut end = End { verifier, error: None };
        let mut segno = from;
        while let Some(found) = self.file_for(segno) {
            if let Some(error) = self.verify(&mut end.verifier, found)? {
                self.must_be_partial(found, error)?;
                end.error = Some(error);
                break;
            }
            segno = segno.next();
        }
        end.verifier.rewind();
        end.verifier.accept_any_padding(true);
        Ok(end)
    }

    /// The file that holds `segno` on the way to the newest timeline.
    fn file_for(&self, segno: SegNo) -> Option<FoundSegment> {
        let ancestors = self.history.ancestors().iter().rev();
        let timelines = std::iter::once(self.history.tli()).chain(ancestors.map(|entry| entry.tli));
        timelines
            .filter(|&tli| self.on_path(tli, segno))
            .find_map(|tli| {
                let name = WalFileName::new(tli, segno);
                self.segments.iter().find(|found| found.name == name)
            })
            .copied()
    }

    /// Whether the newest timeline's history goes through this segment on `tli`: an abandoned branch
    /// may have files beyond its switch point.
    fn on_path(&self, tli: TimelineId, segno: SegNo) -> bool {
        let start = segno.start(self.identity.seg_size);
        self.history.switch_point(tli).is_none_or(|(left_at, _)| start < left_at)
    }

    /// Whether this is a segment of an older timeline all of which lies on the way to the newest: complete,
    /// though a crash may have come before it got its name.
    fn is_whole(&self, found: &FoundSegment) -> bool {
        let end = found.name.segno.end(self.identity.seg_size);
        self.history.switch_point(found.name.tli).is_some_and(|(left_at, _)| end <= left_at)
            && self.file_for(found.name.segno) == Some(*found)
    }

    /// Goes back at least one segment, and over segments that are nothing but the middle of a record, so
    /// that what reaches into `first` is checked from its start.
    fn step_back(&self, first: SegNo) -> Result<SegNo, StoreError> {
        let mut from = first;
        while let Some(previous) = from.prev().and_then(|before| self.file_for(before)) {
            from = previous.name.segno;
            if !self.is_middle_of_record(previous)? {
                break;
            }
        }
        Ok(from)
    }

    fn is_middle_of_record(&self, found: FoundSegment) -> Result<bool, StoreError> {
        let mut header = [0u8; 20];
        let path = self.path(found);
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut header, 0))
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
        let path = self.path(found);
        let file = File::open(&path).map_err(failed("could not open WAL segment", path.clone()))?;
        // A finished segment was taken as the server sent it; in an unfinished one only zeros are to be trusted.
        verifier.accept_any_padding(!found.partial);
        let mut buffer = vec![0u8; 1 << 20];
        for offset in (0..self.identity.seg_size.bytes()).step_by(buffer.len()) {
            file.read_exact_at(&mut buffer, offset)
                .map_err(failed("could not read WAL segment", path.clone()))?;
            if let Err(error) = verifier.push(&buffer) {
                return Ok(Some(error));
            }
        }
        Ok(None)
    }

    fn must_be_partial(&self, found: FoundSegment, source: WalError) -> Result<(), StoreError> {
        let later_finished = |other: &&FoundSegment| {
            other.name.tli == self.history.tli() && !other.partial && other.name.segno > found.name.segno
        };
        let may_end_here = found.partial && found.name.tli == self.history.tli();
        if may_end_here && !self.segments.iter().any(|other| later_finished(&other)) {
            return Ok(());
        }
        Err(StoreError::Damaged { file: self.path(found).display().to_string(), source })
    }

    /// Brings the files in line with the end: finished ones get their name, later ones go, the tail is
    /// made durable and mapped.
    fn settle(&self, end: &End, how: WalWrite) -> Result<Option<Arc<Segment>>, StoreError> {
        let size = self.identity.seg_size;
        let lsn = end.verifier.position();
        if let Some(error) = &end.error {
            tracing::debug!("WAL ends at {lsn}: {error}");
        }
        let tail = lsn.seg_at(size);
        let own = self.segments.iter().filter(|found| found.name.tli == self.history.tli() && found.partial);
        let whole = self.segments.iter().filter(|found| found.partial && self.is_whole(found));
        for found in own.clone().filter(|found| found.name.segno < tail).chain(whole) {
            self.finish(*found)?;
        }
        self.remove_partials_from(tail.next())?;
        // Kept even if it is empty: it may be all there is of the newest timeline.
        let result = match own.clone().find(|found| found.name.segno == tail) {
            Some(found) => Some(self.map_tail(*found, lsn, how)?),
            None => None,
        };
        self.dir.sync_wal_dir().map_err(failed("could not sync", self.dir.wal().into()))?;
        Ok(result)
    }

    fn finish(&self, found: FoundSegment) -> Result<(), StoreError> {
        let path = self.path(found);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&path, self.dir.segment(found.name, self.identity.seg_size)))
            .map_err(failed("could not finish WAL segment", path))
    }

    /// Removes unfinished segments of the newest timeline that hold nothing verified.
    fn remove_partials_from(&self, from: SegNo) -> Result<(), StoreError> {
        for found in &self.segments {
            if found.partial && found.name.segno >= from && found.name.tli == self.history.tli() {
                let path = self.path(*found);
                fs::remove_file(&path).map_err(failed("could not remove WAL segment", path))?;
            }
        }
        Ok(())
    }

    fn map_tail(&self, found: FoundSegment, end: Lsn, how: WalWrite) -> Result<Arc<Segment>, StoreError> {
        let path = self.path(found);
        let published = end.offset_in_seg(self.identity.seg_size);
        let open = || {
            let file = File::options().read(true).write(true).open(&path)?;
            file.sync_all()?;
            Segment::for_writer(file, found.name, self.identity.seg_size, published, how)
        };
        open().map(Arc::new).map_err(failed(
            "could not use unfinished WAL segment (remove it to fetch it again)",
            path.clone(),
        ))
    }

    fn path(&self, found: FoundSegment) -> PathBuf {
        match found.partial {
            true => self.dir.partial(found.name, self.identity.seg_size),
            false => self.dir.segment(found.name, self.identity.seg_size),
        }
    }
}
