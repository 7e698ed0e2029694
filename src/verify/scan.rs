//! Reads segments and checks every page header and every record.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::Advice;
use walrelay_proto::{Lsn, SegNo, TimelineId, WalError, WalFileName, WalIdentity, WalVerifier};

use super::chain::{Chain, Shard};
use super::place::{Found, Place};
use crate::archive::check::{self, Fault as FileFault};
use crate::progress::Progress;

/// What is read at a time: whole pages.
const CHUNK: usize = 1 << 20;
const PAGE: u64 = 8192;

/// What was found in the files of a place.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// By file and position.
    pub(super) faults: Vec<Fault>,
    /// Where the WAL ends, in files in which it may, by their number in [`Place::segments`].
    pub(super) ends: Vec<(usize, Lsn)>,
    pub(super) bytes: u64,
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    /// The file in which it was noticed, by its number.
    pub(super) file: usize,
    /// The page, record or byte; a record may begin in an earlier file.
    pub(super) lsn: Lsn,
    pub(super) reason: String,
}

/// Scans all that is there.
pub(super) fn scan(place: &Place, chain: &Chain, threads: usize, progress: &Progress) -> Scanned {
    let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let all = Mutex::new(Scanned::default());
    let work = || {
        while let Some(shard) = chain.shards.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut scan = Scan { place, chain, bytes: &bytes, progress, found: Scanned::default() };
            scan.shard(shard);
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.faults.append(&mut scan.found.faults);
            all.ends.append(&mut scan.found.ends);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // A machine that gives no more threads has this one.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.faults.sort_by_key(|fault| (fault.file, fault.lsn));
    all.ends.sort_unstable();
    all.bytes = bytes.into_inner();
    all
}

/// Checks that a file is the segment it is called after, and fits between its neighbours, as far as those are right.
pub(super) fn check_fit(place: &Place, candidate: &Found) -> Result<(), String> {
    let (id, tli) = (place.id, candidate.name.tli);
    let bytes = AtomicU64::new(0);
    let context = place.context(candidate.name);
    let mut run = Run::begin(place, &bytes, tli, candidate.name.segno);
    run.take_up(&context);
    let failed = |wrong: Wrong| Err(wrong.to_string());
    if let Err(wrong) = run.file(candidate, false) {
        return failed(wrong);
    }
    // The record that reaches into the next segment is whole only with this one.
    let end = candidate.name.segno.end(id.seg_size);
    let behind = place.find(WalFileName::new(tli, candidate.name.segno.next()));
    let Some(behind) = behind.filter(|behind| behind.has_begun(id)) else { return Ok(()) };
    match run.file(behind, true) {
        Err(wrong) if wrong.lsn().is_some_and(|lsn| lsn < end) => failed(wrong),
        _ => Ok(()),
    }
}

struct Scan<'a> {
    place: &'a Place,
    chain: &'a Chain,
    bytes: &'a AtomicU64,
    progress: &'a Progress,
    found: Scanned,
}

impl Scan<'_> {
    fn shard(&mut self, shard: &Shard) {
        let Some(first) = shard.files.first().map(|&first| &self.place.segments[first]) else { return };
        let mut run = Run::begin(self.place, self.bytes, first.name.tli, first.name.segno);
        run.take_up(&self.place.context(first.name));
        for &number in &shard.files {
            let goes_on = self.file(&mut run, number);
            self.progress.did(self.place.segments[number].len);
            if !goes_on {
                break;
            }
        }
    }

    /// Whether the WAL goes on behind this file.
    fn file(&mut self, run: &mut Run<'_>, number: usize) -> bool {
        let found = &self.place.segments[number];
        let start = found.name.segno.start(self.place.id.seg_size);
        let may_end = self.chain.may_end_in(number);
        let Err(wrong) = run.file(found, may_end) else { return true };
        if may_end && wrong.may_be_the_end() {
            self.found.ends.push((number, run.verifier.verified_end().unwrap_or(start)));
            return false;
        }
        run.begin_at(found.name.segno.next());
        if let Wrong::Io(error) = &wrong
            && error.kind() == ErrorKind::NotFound
        {
            // The retention of a running relay or server.
            return true;
        }
        let lsn = wrong.lsn().unwrap_or(start);
        self.found.faults.push(Fault { file: number, lsn, reason: wrong.to_string() });
        if lsn < start {
            // It is the record before this file: what begins in the file has not been looked at yet.
            run.begin_at(found.name.segno);
            return self.file(run, number);
        }
        true
    }
}

/// Why the good WAL ends in a file.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error("{0}")]
    Wal(#[from] WalError),
    #[error("{0}")]
    File(#[from] FileFault),
    #[error("it ends after {0} bytes")]
    Short(u64, Lsn),
    #[error("could not be read: {0}")]
    Io(#[from] io::Error),
}

impl Wrong {
    fn lsn(&self) -> Option<Lsn> {
        match self {
            Wrong::Wal(error) => Some(error.lsn()),
            Wrong::File(fault) => fault.lsn(),
            Wrong::Short(_, at) => Some(*at),
            Wrong::Io(_) => None,
        }
    }

    /// Whether this is how unfinished WAL ends. Pages of another cluster or timeline are not.
    fn may_be_the_end(&self) -> bool {
        match self {
            Wrong::Wal(error) => !matches!(
                error,
                WalError::OtherSystem { .. }
                    | WalError::OtherSegmentSize { .. }
                    | WalError::OtherBlockSize { .. }
            ),
            Wrong::Short(..) => true,
            Wrong::File(_) | Wrong::Io(_) => false,
        }
    }
}

/// Takes a piece of a file, given where it begins.
type Take<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Wrong> + 'a;

/// Segments of one timeline, one after the other.
struct Run<'a> {
    place: &'a Place,
    bytes: &'a AtomicU64,
    tli: TimelineId,
    verifier: WalVerifier,
}

impl<'a> Run<'a> {
    fn begin(place: &'a Place, bytes: &'a AtomicU64, tli: TimelineId, segno: SegNo) -> Run<'a> {
        Run { place, bytes, tli, verifier: verifier(place.id, tli, segno) }
    }

    /// Goes on with a segment, whatever came before.
    fn begin_at(&mut self, segno: SegNo) {
        self.verifier = verifier(self.place.id, self.tli, segno);
    }

    /// Takes up the record that reaches in from the segments before, if they are right; it is skipped otherwise.
    fn take_up(&mut self, context: &[&Found]) {
        let Some(first) = context.first() else { return };
        let mut before = verifier(self.place.id, self.tli, first.name.segno);
        let is_right = |found: &&Found| {
            let pushed = self.read(found, &mut |_, chunk| Ok(before.push(chunk)?));
            pushed.is_ok_and(|read| read == self.place.id.seg_size.bytes())
        };
        if context.iter().all(is_right) {
            self.verifier = before;
        }
    }

    /// Verifies one file behind those before it. `may_end`: there may be nothing in it.
    fn file(&mut self, found: &Found, may_end: bool) -> Result<(), Wrong> {
        let (id, place) = (self.place.id, self.place);
        let (size, start) = (id.seg_size.bytes(), found.name.segno.start(id.seg_size));
        if found.len > size || (found.len < size && !found.partial) {
            return Err(FileFault::Length { found: found.len, expected: size }.into());
        }
        let history = place.histories.get(&found.name.tli);
        let mut verifier = self.verifier.clone();
        let pushed = self.read(found, &mut |at, chunk| {
            verifier.push(chunk)?;
            history.map_or(Ok(()), |history| check::pages_are_on(history, start.advance(at), chunk))?;
            Ok(())
        });
        self.verifier = verifier;
        match pushed {
            Ok(read) if read < size => Err(Wrong::Short(read, start.advance(read))),
            Ok(_) => Ok(()),
            Err(Wrong::Wal(error)) if !may_end && self.is_padding_of_earlier_switch(found, error)? => {
                self.begin_at(found.name.segno.next());
                Ok(())
            }
            Err(wrong) => Err(wrong),
        }
    }

    /// The rest of an XLOG_SWITCH record that began in the segment before goes unnoticed if it is very short; what
    /// follows it are zeros to the end.
    fn is_padding_of_earlier_switch(&self, found: &Found, error: WalError) -> Result<bool, Wrong> {
        let WalError::RecordTooShort { lsn, found: 0 } = error else { return Ok(false) };
        let offset = lsn.since(found.name.segno.start(self.place.id.seg_size));
        if self.verifier.last_record().is_some() || offset > PAGE {
            return Ok(false);
        }
        let mut zeros = true;
        self.read(found, &mut |at, chunk| {
            let from = offset.saturating_sub(at).min(chunk.len() as u64) as usize;
            zeros &= chunk[from..].iter().all(|&byte| byte == 0);
            Ok(())
        })?;
        Ok(zeros)
    }

    /// Gives all of a file to `take`, with where it is in it. How much there was.
    fn read(&self, found: &Found, take: &mut Take<'_>) -> Result<u64, Wrong> {
        let file = File::open(&found.path)?;
        // Only a word to the kernel.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        let (mut buffer, mut at) = (vec![0; CHUNK], 0);
        while at < found.len {
            let wanted = usize::try_from(found.len - at).unwrap_or(CHUNK).min(CHUNK);
            let read = fill(&file, &mut buffer[..wanted], at)?;
            self.bytes.fetch_add(read as u64, Ordering::Relaxed);
            take(at, &buffer[..read])?;
            at += read as u64;
            if read < wanted {
                break;
            }
        }
        Ok(at)
    }
}

/// How much there was; less than wanted only at the file's end.
fn fill(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn verifier(id: WalIdentity, tli: TimelineId, segno: SegNo) -> WalVerifier {
    let mut verifier = WalVerifier::at_segment_start(id, tli, segno.start(id.seg_size));
    verifier.accept_any_padding(true);
    verifier
}
