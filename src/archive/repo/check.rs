//! Whether a file is the segment it is said to be: its size, its place, its cluster, every record's checksum.

use walrelay_proto::{Lsn, TimelineHistory, TimelineId, WalError, WalFileName, WalIdentity, WalVerifier};

/// Bytes of a WAL page.
const PAGE: usize = 8192;

/// A file is not the segment it is said to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Not one segment long.
    #[error("it is {found} bytes long, expected {expected}")]
    Length {
        /// Bytes found.
        found: u64,
        /// The segment size.
        expected: u64,
    },
    /// The first page is no beginning of a segment.
    #[error("it is no WAL segment of PostgreSQL 13 or later")]
    NoSegment,
    /// Bad WAL, or that of another cluster or place.
    #[error("{0}")]
    Wal(#[from] WalError),
    /// Right WAL of the wrong timeline.
    #[error("the page at {at} is of timeline {found}, expected {expected}")]
    Timeline {
        /// Start of the page.
        at: Lsn,
        /// What the page says.
        found: u32,
        /// What the name and the history say.
        expected: TimelineId,
    },
}

impl Fault {
    /// The first position that is not good, where that can be said.
    pub fn lsn(&self) -> Option<Lsn> {
        match self {
            Fault::Wal(error) => Some(error.lsn()),
            Fault::Timeline { at, .. } => Some(*at),
            Fault::Length { .. } | Fault::NoSegment => None,
        }
    }
}

/// Reads from a segment's first page whose it is.
pub fn identity_of(bytes: &[u8]) -> Result<WalIdentity, Fault> {
    WalIdentity::of_segment(bytes).ok_or(Fault::NoSegment)
}

/// Checks a finished segment: every page header, every record that begins in it, and with the history of its
/// timeline also that its pages are on the timelines they should be on.
///
/// A record that began in an earlier segment is skipped; its checksum can only be known with both.
pub fn whole_segment(
    id: WalIdentity,
    name: WalFileName,
    history: Option<&TimelineHistory>,
    bytes: &[u8],
) -> Result<(), Fault> {
    let (found, expected) = (bytes.len() as u64, id.seg_size.bytes());
    if found != expected {
        return Err(Fault::Length { found, expected });
    }
    let mut segment = Gradual::new(id, name).on(history);
    segment.push(bytes)?;
    segment.finish()
}

/// A check of a segment that comes piece by piece: finished, as [`whole_segment`], or a part, as [`part_of_segment`].
pub(crate) struct Gradual<'a> {
    id: WalIdentity,
    name: WalFileName,
    history: Option<&'a TimelineHistory>,
    verifier: WalVerifier,
    /// Bytes that have come, and that have to.
    len: u64,
    expected: u64,
    /// Only zeros may follow.
    padding: bool,
}

impl<'a> Gradual<'a> {
    pub(crate) fn new(id: WalIdentity, name: WalFileName) -> Gradual<'a> {
        let expected = id.seg_size.bytes();
        Gradual { id, name, history: None, verifier: verifier(id, name), len: 0, expected, padding: false }
    }

    /// Its pages have to be on the timelines that the history says, if it is this one's.
    pub(crate) fn on(self, history: Option<&'a TimelineHistory>) -> Gradual<'a> {
        let history = history.filter(|history| history.tli() == self.name.tli);
        Gradual { history, ..self }
    }

    /// Only its first `len` bytes come.
    pub(crate) fn first(self, len: u64) -> Gradual<'a> {
        Gradual { expected: len.min(self.expected), ..self }
    }

    /// Takes the next bytes: whole pages, but for the last ones, and two at least the first time. After an error there is
    /// nothing more to say.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let before = self.len;
        self.len += bytes.len() as u64;
        if self.len > self.expected {
            return Err(Fault::Length { found: self.len, expected: self.expected });
        }
        let pushed = match self.padding {
            true if bytes.iter().all(|&byte| byte == 0) => Ok(()),
            _ => self.verifier.push(bytes),
        };
        if let Err(error) = pushed {
            let is_first = before == 0;
            self.padding =
                is_first && is_padding_of_earlier_switch(error, &self.verifier, self.id, self.name, bytes);
            if !self.padding {
                return Err(error.into());
            }
        }
        let at = self.name.segno.start(self.id.seg_size).advance(before);
        self.history.map_or(Ok(()), |history| pages_are_on(history, at, bytes))
    }

    /// There is no more.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        let (found, expected) = (self.len, self.expected);
        if found == expected { Ok(()) } else { Err(Fault::Length { found, expected }) }
    }
}

/// Checks the first `len` bytes of a segment, whatever comes after them.
pub fn part_of_segment(id: WalIdentity, name: WalFileName, bytes: &[u8], len: u64) -> Result<(), Fault> {
    let expected = len.min(id.seg_size.bytes());
    let part = bytes.get(..expected as usize);
    let part = part.ok_or(Fault::Length { found: bytes.len() as u64, expected: id.seg_size.bytes() })?;
    Ok(verifier(id, name).push(part)?)
}

/// How many bytes at the start of an unfinished segment are good: up to the end of the last complete record. If no
/// record begins in it, all that is the middle of one.
pub fn good_length(id: WalIdentity, name: WalFileName, bytes: &[u8]) -> u64 {
    let start = name.segno.start(id.seg_size);
    let bytes = &bytes[..bytes.len().min(id.seg_size.bytes() as usize)];
    let mut verifier = verifier(id, name);
    verifier.accept_any_padding(false);
    let pushed = verifier.push(bytes);
    match (verifier.verified_end(), pushed) {
        (Some(end), _) => end.since(start),
        (None, Ok(())) => verifier.position().since(start),
        (None, Err(_)) => 0,
    }
}

fn verifier(id: WalIdentity, name: WalFileName) -> WalVerifier {
    let mut verifier = WalVerifier::at_segment_start(id, name.tli, name.segno.start(id.seg_size));
    verifier.accept_any_padding(true);
    verifier
}

/// The rest of an XLOG_SWITCH record that began in the segment before goes unnoticed if it is very short; what
/// follows it are zeros to the end.
fn is_padding_of_earlier_switch(
    error: WalError,
    verifier: &WalVerifier,
    id: WalIdentity,
    name: WalFileName,
    bytes: &[u8],
) -> bool {
    let WalError::RecordTooShort { lsn, found: 0 } = error else { return false };
    let offset = lsn.since(name.segno.start(id.seg_size)) as usize;
    verifier.last_record().is_none()
        && offset <= PAGE
        && bytes.get(offset..).is_some_and(|rest| rest.iter().all(|&byte| byte == 0))
}

/// Checks that pages are on the timelines that the history says. A page carries the timeline of its first byte; what
/// lies behind an XLOG_SWITCH are zeros, or pages of elsewhere. `start` is the first page's.
pub(crate) fn pages_are_on(history: &TimelineHistory, start: Lsn, bytes: &[u8]) -> Result<(), Fault> {
    for (number, page) in (0u64..).zip(bytes.chunks_exact(PAGE)) {
        let at = start.advance(number * PAGE as u64);
        let expected = history.timeline_at(at);
        let found = u32::from_le_bytes([page[4], page[5], page[6], page[7]]);
        let is_padding = page[8..16] != at.as_u64().to_le_bytes();
        if found != expected.as_u32() && !is_padding {
            return Err(Fault::Timeline { at, found, expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use walrelay_proto::generate::WalGenerator;
    use walrelay_proto::{SegNo, SegSize, SystemId};

    const SEG: usize = 1 << 20;

    fn id() -> WalIdentity {
        WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SEG as u64).unwrap() }
    }

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn name(timeline: u32, segno: u64) -> WalFileName {
        WalFileName::new(tli(timeline), SegNo::new(segno))
    }

    /// Segments 3, 4, …, the last of them unfinished.
    fn segments(len: usize) -> Vec<Vec<u8>> {
        let mut wal = WalGenerator::new(id(), TimelineId::FIRST, Lsn::new(3 * SEG as u64), 5);
        wal.fill(len);
        wal.take().chunks(SEG).map(<[u8]>::to_vec).collect()
    }

    fn check(name: WalFileName, bytes: &[u8]) -> Result<(), Fault> {
        whole_segment(id(), name, Some(&TimelineHistory::first()), bytes)
    }

    #[test]
    fn finished_segments_pass_and_others_do_not() {
        let segments = segments(2_500_000);
        check(name(1, 3), &segments[0]).unwrap();
        check(name(1, 4), &segments[1]).unwrap();
        assert!(matches!(check(name(1, 5), &segments[2]), Err(Fault::Length { .. })));
        assert!(matches!(check(name(1, 4), &segments[0]), Err(Fault::Wal(WalError::PageAddress { .. }))));
        let mut flipped = segments[0].clone();
        flipped[500_000] ^= 4;
        assert!(check(name(1, 3), &flipped).is_err());
        let other = WalIdentity { system_id: SystemId(78), ..id() };
        assert!(whole_segment(other, name(1, 3), None, &segments[0]).is_err());
        assert_eq!(identity_of(&segments[0]).unwrap(), id());
        assert_eq!(identity_of(&flipped[8192..]), Err(Fault::NoSegment));
    }

    #[test]
    fn pages_of_the_wrong_timeline_are_found_with_the_history() {
        let segments = segments(1_500_000);
        let history = TimelineHistory::parse(tli(2), b"1\t0/3F0000\tx\n").unwrap();
        whole_segment(id(), name(2, 3), None, &segments[0]).unwrap();
        let fault = whole_segment(id(), name(2, 3), Some(&history), &segments[0]).unwrap_err();
        assert_eq!(fault, Fault::Timeline { at: Lsn::new(0x3F0000), found: 1, expected: tli(2) });
    }

    #[test]
    fn a_timeline_switch_in_the_middle_of_a_page_leaves_the_page_on_the_old_one() {
        let mut wal = WalGenerator::new(id(), TimelineId::FIRST, Lsn::new(3 * SEG as u64), 5);
        wal.fill(300_000);
        let left = wal.position();
        wal.switch_timeline(tli(2));
        wal.fill(SEG);
        let history = TimelineHistory::parse(tli(2), format!("1\t{left}\tx\n").as_bytes()).unwrap();
        whole_segment(id(), name(2, 3), Some(&history), &wal.bytes()[..SEG]).unwrap();
    }

    #[test]
    fn what_is_good_of_an_unfinished_segment_ends_with_a_record() {
        let mut wal = WalGenerator::new(id(), TimelineId::FIRST, Lsn::new(3 * SEG as u64), 5);
        wal.fill(300_000);
        let end = wal.position().since(Lsn::new(3 * SEG as u64));
        wal.record(40_000);
        let bytes = wal.take();
        assert_eq!(good_length(id(), name(1, 3), &bytes[..end as usize]), end);
        assert_eq!(good_length(id(), name(1, 3), &bytes[..end as usize + 9000]), end);
        let padded = [&bytes[..end as usize], &vec![0; SEG - end as usize]].concat();
        assert_eq!(good_length(id(), name(1, 3), &padded), end);
        part_of_segment(id(), name(1, 3), &padded, end).unwrap();
        assert!(part_of_segment(id(), name(1, 3), &padded, SEG as u64).is_err());
        assert_eq!(good_length(id(), name(1, 4), &bytes), 0);
        assert_eq!(good_length(id(), name(1, 3), &[]), 0);
    }

    #[test]
    fn a_switch_record_fills_its_segment_with_zeros() {
        let mut wal = WalGenerator::new(id(), TimelineId::FIRST, Lsn::new(3 * SEG as u64), 5);
        wal.fill(30_000);
        wal.switch_segment();
        check(name(1, 3), &wal.take()).unwrap();
    }

    #[test]
    fn the_last_bytes_of_a_switch_record_may_begin_a_segment() {
        // The record starts 8 or 16 bytes before the boundary.
        for before in [8, 16] {
            let start = Lsn::new(3 * SEG as u64);
            let boundary = SEG as u64;
            let mut wal = WalGenerator::new(id(), TimelineId::FIRST, start, 5);
            wal.fill(SEG - 100_000);
            loop {
                let left = boundary - wal.position().since(start);
                if left == before {
                    break;
                }
                let step = if left > 8000 { 1000 } else { (left - before) as usize };
                wal.record(step.max(24));
                assert!(wal.position().since(start) < boundary, "the record sizes lead to the place");
            }
            wal.switch_segment();
            let bytes = wal.take();
            assert_eq!(bytes.len(), 2 * SEG);
            check(name(1, 4), &bytes[SEG..]).unwrap();
        }
    }
}
