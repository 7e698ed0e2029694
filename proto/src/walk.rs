//! Walks over WAL as it arrives: checks every page header and every record, and says up to where.

mod error;
mod padding;
#[cfg(test)]
mod tests;

pub use error::WalError;
use padding::Odd;
pub use padding::PaddingSeen;

use crate::lsn::{Lsn, PAGE_SIZE};
use crate::message::PgTimestamp;
use crate::page::{self, LONG_HEADER, LongPart, PageHeader, flags};
use crate::record::{
    MAX_RECORD, OVERWRITE_BODY, RECORD_HEADER, RecordHeader, alignment_padding, check_length,
};
use crate::segment::SegSize;
use crate::timeline::{SystemId, TimelineId};

/// What all WAL of a cluster has in common; every segment's first page repeats it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalIdentity {
    /// The cluster.
    pub system_id: SystemId,
    /// Size of its segments.
    pub seg_size: SegSize,
}

impl WalIdentity {
    /// Reads it from the beginning of a segment; `None` if that is not the WAL of PostgreSQL 13 or later.
    pub fn of_segment(first_page: &[u8]) -> Option<WalIdentity> {
        let raw = first_page.first_chunk()?;
        let (header, long) = (PageHeader::parse(&page::part(raw, 0)), LongPart::parse(raw));
        let seg_size = SegSize::new(long.seg_size.into()).ok()?;
        let is_first = page::acceptable_magic(header.magic)
            && header.has(flags::LONG_HEADER)
            && u64::from(long.block_size) == PAGE_SIZE;
        is_first.then_some(WalIdentity { system_id: long.system_id, seg_size })
    }
}

/// What a segment's first page says of the segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHead {
    /// Whose WAL it is.
    pub id: WalIdentity,
    /// Position of its first byte. In a file that a server keeps for later it is not the one of the file's name.
    pub start: Lsn,
    /// Timeline of the first byte.
    pub tli: u32,
    /// Bytes of a record that began in an earlier segment; 0 if a record or its padding begins here.
    pub rest_of_record: u32,
}

impl SegmentHead {
    /// Bytes that [`parse`](Self::parse) needs.
    pub const LEN: usize = LONG_HEADER;

    /// Reads it from the beginning of a segment; `None` if that is not the WAL of PostgreSQL 13 or later.
    pub fn parse(first_page: &[u8]) -> Option<SegmentHead> {
        let id = WalIdentity::of_segment(first_page)?;
        let header = PageHeader::parse(first_page.first_chunk()?);
        let rest_of_record = if header.has(flags::FIRST_IS_CONTRECORD) { header.rem_len } else { 0 };
        Some(SegmentHead { id, start: header.pageaddr, tli: header.tli, rest_of_record })
    }

    /// Whether the segment holds nothing but the middle of one record.
    pub fn is_middle_of_record(&self) -> bool {
        let size = self.id.seg_size.bytes();
        let headers =
            size / PAGE_SIZE * page::SHORT_HEADER as u64 + (LONG_HEADER - page::SHORT_HEADER) as u64;
        u64::from(self.rest_of_record) >= size - headers
    }
}

/// Checks WAL, byte after byte, and knows where its last complete record ends.
///
/// Bytes are given to [`push`](Self::push) in order, cut anywhere. What PostgreSQL's own reader checks is
/// checked (`xlogreader.c`): page headers, continuations, record headers and their links, checksums.
/// Records are never put together in memory, so a verifier is a few hundred bytes whatever their length.
///
/// ```text
///            header          record of length >= 24            padding to 8
/// Boundary -----------> Record ----- last byte, CRC ok -----> Align -----> Boundary
///    |                    | page does not continue it, and begins with an     ^
///    |                    | XLOG_OVERWRITE_CONTRECORD that names it           |
///    |                    +---------------------------------------------------+
///    | first page continues a record                           segment end    |
///    +--> Skip --------------- its last byte --> Align   XLOG_SWITCH --> Padding
/// ```
///
/// The padding between records and at the end of a page header has no checksum, and PostgreSQL does not look at it; but it writes
/// zeros there, and so a bit that was flipped on the way is found. Not checked: what a record means.
/// `verified_end <= position`, always.
#[derive(Clone, Debug)]
pub struct WalVerifier {
    id: WalIdentity,
    tli: TimelineId,
    any_padding: AnyPadding,
    now: Mark,
    phase: Phase,
    page_header: PartialHeader,
    failed: Option<WalError>,
    /// A record that the page does not continue: the next one has to say that it was lost.
    lost: Option<Lost>,
    /// Where `rewind` goes: `verified_end`, or the start of the walk while `!synced`.
    anchor: Mark,
    anchor_in_padding: bool,
    /// Behind an XLOG_SWITCH, what the page has that is not zero, as far as it has come.
    odd: Option<Odd>,
    /// The first page there that is not zeros and has not come like this before.
    doubt: Option<Odd>,
    /// What has come there. It outlasts a `rewind`.
    seen: PaddingSeen,
    /// Whether a record's start was reached.
    synced: bool,
    /// See [`WalVerifier::newest_redo`].
    redo: Option<Lsn>,
    /// See [`WalVerifier::newest_commit`].
    commit: Option<PgTimestamp>,
}

/// What is taken behind an XLOG_SWITCH besides zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AnyPadding {
    No,
    Yes,
    /// Pages that come the same twice.
    Twice,
}

/// A position and what must be known there to go on.
#[derive(Clone, Copy, Debug)]
struct Mark {
    position: Lsn,
    magic: Option<u16>,
    page_tli: u32,
    last_record: Option<Lsn>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Between two records.
    Boundary,
    /// Inside a record.
    Record(Assembly),
    /// Inside a record that began before the walk did.
    Skip { left: u32 },
    /// Behind a record's last byte, before the next multiple of eight.
    Align { left: usize, record: Option<Finished> },
    /// Between an XLOG_SWITCH record and the segment's end.
    Padding,
}

/// A record whose checksum is right.
#[derive(Clone, Copy, Debug)]
struct Finished {
    start: Lsn,
    is_switch: bool,
}

/// A record that was cut off by a crash, and by what it is known.
#[derive(Clone, Copy, Debug)]
enum Lost {
    /// By its start.
    From(Lsn),
    /// It began before the walk: by the page that does not continue it.
    Before(Lsn),
}

impl Lost {
    /// `named` is the start of a lost record according to the record that comes instead.
    fn check(self, named: Option<Lsn>) -> Result<(), WalError> {
        let (lsn, is_it) = match self {
            Lost::From(start) => (start, named == Some(start)),
            Lost::Before(page) => (page, named.is_some_and(|named| named < page)),
        };
        if is_it { Ok(()) } else { Err(WalError::MissingContrecord { lsn }) }
    }
}

impl WalVerifier {
    /// Starts at the beginning of the segment that holds `at`, on timeline `tli`.
    ///
    /// If a record continues there, it cannot be checked and is skipped, be it several segments long:
    /// [`verified_end`](Self::verified_end) is `None` until the first record start is reached, then it
    /// is that position.
    ///
    /// An XLOG_SWITCH record of which only the last 8 or 16 bytes lie in the segment goes unnoticed. Its
    /// padding then looks like the end of the WAL ([`WalError::RecordTooShort`] where the first record
    /// should start): begin one segment earlier.
    pub fn at_segment_start(id: WalIdentity, tli: TimelineId, at: Lsn) -> WalVerifier {
        WalVerifier::new(id, tli, at.seg_start(id.seg_size), None, false)
    }

    /// Starts at `at`, the end of a record; `prev` is the start of that record, if known.
    ///
    /// Where a record filled its page, both the page boundary and the position behind the next page's
    /// header will do. A page boundary inside the padding behind an XLOG_SWITCH record will not: begin at
    /// the segment instead. A position where no record can start makes the first `push` fail.
    pub fn at_record_start(id: WalIdentity, tli: TimelineId, at: Lsn, prev: Option<Lsn>) -> WalVerifier {
        WalVerifier::new(id, tli, at, prev, true)
    }

    fn new(id: WalIdentity, tli: TimelineId, at: Lsn, prev: Option<Lsn>, synced: bool) -> WalVerifier {
        let mark = Mark { position: at, magic: None, page_tli: 1, last_record: prev };
        WalVerifier {
            id,
            tli,
            any_padding: AnyPadding::No,
            now: mark,
            phase: Phase::Boundary,
            page_header: PartialHeader::default(),
            failed: None,
            lost: None,
            anchor: mark,
            anchor_in_padding: false,
            odd: None,
            doubt: None,
            seen: PaddingSeen::default(),
            synced,
            redo: None,
            commit: None,
        }
    }

    /// Accepts any bytes as padding behind an XLOG_SWITCH record, as PostgreSQL does. Between records there are zeros in any
    /// case.
    ///
    /// A server that lost power just after writing such a record may have kept the old content of a
    /// recycled segment there, and sends it.
    pub fn accept_any_padding(&mut self, accept: bool) {
        self.any_padding = if accept { AnyPadding::Yes } else { AnyPadding::No };
    }

    /// Accepts any bytes there that come the same twice, for who can fetch them again: no checksum covers them, and a bit may have been
    /// flipped on the way. The first time the segment is refused at its end, with [`WalError::SwitchPadding`]; then
    /// [`rewind`](Self::rewind), and push them again. Pages count one by one, so it does not matter where either attempt
    /// breaks off.
    pub fn accept_padding_that_comes_twice(&mut self) {
        self.any_padding = AnyPadding::Twice;
    }

    /// The same where something has come before, to another verifier.
    pub fn accept_padding_that_comes_again(&mut self, seen: PaddingSeen) {
        (self.any_padding, self.seen) = (AnyPadding::Twice, seen);
    }

    /// What has come behind an XLOG_SWITCH that is not zeros, for [`accept_padding_that_comes_again`](Self::accept_padding_that_comes_again).
    pub fn padding_seen(&self) -> PaddingSeen {
        self.seen.clone()
    }

    /// From where on what was pushed behind an XLOG_SWITCH is not zero, and has not come before or is of a page that is not
    /// complete: nobody should keep it before this says something else. Where it stays, the segment is refused at its end.
    pub fn doubtful_from(&self) -> Option<Lsn> {
        let odd = self.doubt.or(self.odd).filter(|_| self.any_padding == AnyPadding::Twice);
        odd.map(|odd| odd.lsn)
    }

    /// Takes no pages but those with this magic number, that of the server's version. Without it the first page
    /// decides, which may have any number of a known version or one above those.
    pub fn expect_magic(&mut self, magic: u16) {
        self.now.magic = Some(magic);
        self.anchor.magic = Some(magic);
    }

    /// Takes the bytes that follow [`position`](Self::position), any number of them.
    ///
    /// # Errors
    ///
    /// The bytes are not valid WAL. Records before the error count; `verified_end` tells. From then on
    /// every `push` fails with the same error, until [`rewind`](Self::rewind).
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.step(rest).inspect_err(|&error| self.failed = Some(error))?;
            rest = rest.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// The next byte expected. Means nothing between an error and `rewind`.
    pub fn position(&self) -> Lsn {
        self.now.position
    }

    /// The end of the last record that is complete and right, rounded up to eight (PostgreSQL:
    /// `EndRecPtr`); `None` while a record that began before the walk is skipped.
    ///
    /// Behind an XLOG_SWITCH record it moves page by page to the segment's end.
    pub fn verified_end(&self) -> Option<Lsn> {
        self.synced.then_some(self.anchor.position)
    }

    /// The start of the last verified record, which the next one must name as its predecessor.
    pub fn last_record(&self) -> Option<Lsn> {
        self.anchor.last_record
    }

    /// Where replay from the newest checkpoint that was seen begins; `None` before the first.
    pub fn newest_redo(&self) -> Option<Lsn> {
        self.redo
    }

    /// When the newest commit was made that was seen, by its server's clock; `None` before the first. Of commits that lie over two
    /// pages and came from a replication origin none is seen.
    pub fn newest_commit(&self) -> Option<PgTimestamp> {
        self.commit
    }

    /// The magic number of the pages seen, or expected, which tells the server's major version.
    pub fn wal_magic(&self) -> Option<u16> {
        self.now.magic
    }

    /// Forgets everything behind [`verified_end`](Self::verified_end), errors included, so that the same
    /// bytes can come again; while that is `None`, forgets everything.
    pub fn rewind(&mut self) {
        self.now = self.anchor;
        self.phase = if self.anchor_in_padding { Phase::Padding } else { Phase::Boundary };
        self.page_header = PartialHeader::default();
        self.failed = None;
        self.lost = None;
        (self.odd, self.doubt) = (None, None);
    }

    /// Goes on at `verified_end` on a newer timeline, which pages may carry from there on.
    pub fn switch_timeline(&mut self, tli: TimelineId) {
        self.rewind();
        self.tli = tli;
    }

    /// Takes what one phase can use, and says how much that was. Taking nothing changes the phase.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, WalError> {
        let room = page::room_on_page(self.now.position);
        let on_page = bytes.get(..room).unwrap_or(bytes);
        let at_header = self.now.position == self.now.position.page_start() || self.page_header.len > 0;
        match self.phase {
            Phase::Padding => self.take_padding(on_page),
            _ if at_header => self.take_page_header(on_page),
            Phase::Boundary => self.take_records(on_page),
            Phase::Record(assembly) => self.take_part(assembly, on_page),
            Phase::Skip { left } => Ok(self.take_skipped(left, on_page)),
            Phase::Align { left, record } => {
                let taken = left.min(on_page.len());
                self.check_alignment(on_page.get(..taken).unwrap_or_default(), self.now.position)?;
                self.advance(taken);
                self.align(left - taken, record);
                Ok(taken)
            }
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.now.position = self.now.position.advance(bytes as u64);
    }

    /// The current position becomes `verified_end`.
    fn settle(&mut self) {
        self.anchor = self.now;
        self.anchor_in_padding = matches!(self.phase, Phase::Padding);
        self.synced = true;
    }

    fn finish(&mut self, record: Finished) {
        self.now.last_record = Some(record.start);
        let ends_segment = self.now.position.offset_in_seg(self.id.seg_size) == 0;
        let padded = record.is_switch && !ends_segment;
        self.phase = if padded { Phase::Padding } else { Phase::Boundary };
        self.settle();
    }

    /// `record` is `None` for one that was skipped.
    fn align(&mut self, left: usize, record: Option<Finished>) {
        match record {
            _ if left > 0 => self.phase = Phase::Align { left, record },
            Some(record) => self.finish(record),
            None => {
                self.phase = Phase::Boundary;
                self.settle();
            }
        }
    }

    /// The fast path: records that lie in one page and in one push.
    fn take_records(&mut self, on_page: &[u8]) -> Result<usize, WalError> {
        self.check_offset()?;
        let mut rest = on_page;
        while let Some(raw) = rest.first_chunk() {
            let start = self.now.position;
            let header = RecordHeader::parse(raw);
            header.check(start, self.now.last_record, self.is_newer())?;
            let length = header.tot_len as usize;
            let aligned = length + alignment_padding(header.tot_len.into());
            let Some((record, behind)) = rest.split_at_checked(aligned) else { break };
            let body = record.get(RECORD_HEADER..length).unwrap_or_default();
            header.check_crc(crc32c::crc32c(body), raw, start)?;
            // In this order, which is that of the bytes: what is reported does not depend on how they come.
            self.check_lost(&header, body)?;
            self.check_alignment(record.get(length..).unwrap_or_default(), start.advance(length as u64))?;
            self.redo = header.redo(body).or(self.redo);
            self.commit = header.commit_time(body).or(self.commit);
            rest = behind;
            self.advance(aligned);
            self.finish(Finished { start, is_switch: header.is_switch() });
            if matches!(self.phase, Phase::Padding) {
                return Ok(on_page.len() - rest.len());
            }
        }
        if !rest.is_empty() {
            self.phase = Phase::Record(Assembly::new(self.now.position));
        }
        Ok(on_page.len() - rest.len())
    }

    /// What lies between a record's end and the next multiple of eight, from `at` on.
    // PG: AdvanceXLInsertBuffer, which fills pages with zeros before anything is copied there
    fn check_alignment(&self, bytes: &[u8], at: Lsn) -> Result<(), WalError> {
        if self.is_newer() { Ok(()) } else { zeros(bytes, at) }
    }

    fn is_newer(&self) -> bool {
        self.now.magic.is_some_and(page::is_newer_wal_magic)
    }

    /// The first record on a page that does not continue one has to say so.
    // PG: VerifyOverwriteContrecord
    fn check_lost(&mut self, header: &RecordHeader, body: &[u8]) -> Result<(), WalError> {
        self.lost.take().map_or(Ok(()), |lost| lost.check(header.overwritten(body)))
    }

    /// Only the start given by the caller can be wrong; records end where others may start.
    fn check_offset(&self) -> Result<(), WalError> {
        let lsn = self.now.position;
        let page = lsn.page_start();
        let inside_header = lsn.since(page) < page::header_len(page, self.id.seg_size) as u64;
        if inside_header || lsn.max_align() != lsn { Err(WalError::RecordOffset { lsn }) } else { Ok(()) }
    }

    fn take_part(&mut self, mut assembly: Assembly, on_page: &[u8]) -> Result<usize, WalError> {
        let taken = assembly.take(on_page, self.now.last_record, self.is_newer())?;
        self.advance(taken);
        let finished = assembly.finished()?;
        if finished.is_some() {
            let header = RecordHeader::parse(&assembly.header);
            self.check_lost(&header, &assembly.body_start)?;
            self.redo = header.redo(&assembly.body_start).or(self.redo);
            self.commit = header.commit_time(&assembly.body_start).or(self.commit);
        }
        match finished {
            Some(record) => self.align(alignment_padding(assembly.tot_len.into()), Some(record)),
            None => self.phase = Phase::Record(assembly),
        }
        Ok(taken)
    }

    fn take_skipped(&mut self, left: u32, on_page: &[u8]) -> usize {
        let taken = page::len_on_page(on_page).min(left);
        self.advance(taken as usize);
        if taken == left {
            // The record began on a multiple of eight, and so do the bytes behind a page header.
            let end = self.now.position;
            self.align(alignment_padding(end.as_u64()), None);
        } else {
            self.phase = Phase::Skip { left: left - taken };
        }
        taken as usize
    }

    fn take_padding(&mut self, on_page: &[u8]) -> Result<usize, WalError> {
        static ZEROS: [u8; 8192] = [0; 8192];
        let strict = self.any_padding != AnyPadding::Yes;
        if strict && (self.odd.is_some() || ZEROS.get(..on_page.len()) != Some(on_page)) {
            self.take_odd(on_page)?;
        }
        self.advance(on_page.len());
        let end = self.now.position;
        if end == end.page_start() {
            self.judge_page();
        }
        if end.offset_in_seg(self.id.seg_size) == 0 {
            self.judge_segment()?;
            self.phase = Phase::Boundary;
        }
        if end == end.page_start() && self.doubt.is_none() {
            self.settle();
        }
        Ok(on_page.len())
    }

    /// What is not only zeros, or lies behind such bytes.
    fn take_odd(&mut self, on_page: &[u8]) -> Result<(), WalError> {
        let odd = self.odd.get_or_insert_with(|| {
            let first = on_page.iter().position(|&byte| byte != 0).unwrap_or_default();
            let found = on_page.get(first).copied().unwrap_or_default();
            Odd::new(self.now.position.advance(first as u64), found)
        });
        if self.any_padding == AnyPadding::No {
            return Err(WalError::SwitchPadding { lsn: odd.lsn, found: odd.found });
        }
        // Earlier pieces of the page have been looked at.
        let first = odd.lsn.as_u64().saturating_sub(self.now.position.as_u64());
        let from = usize::try_from(first).unwrap_or_default();
        odd.push(on_page.get(from..).unwrap_or_default());
        Ok(())
    }

    /// The page is complete: what is odd in it counts if it has come before.
    fn judge_page(&mut self) {
        let Some(odd) = self.odd.take() else { return };
        if !self.seen.note(odd, self.id.seg_size) {
            self.doubt = self.doubt.or(Some(odd));
        }
    }

    /// The segment is complete.
    fn judge_segment(&mut self) -> Result<(), WalError> {
        match self.doubt.take() {
            Some(odd) => Err(WalError::SwitchPadding { lsn: odd.lsn, found: odd.found }),
            None => {
                self.seen = PaddingSeen::default();
                Ok(())
            }
        }
    }

    fn take_page_header(&mut self, on_page: &[u8]) -> Result<usize, WalError> {
        let page = self.now.position.page_start();
        let length = page::header_len(page, self.id.seg_size);
        let taken = self.page_header.take(on_page, length);
        self.advance(taken);
        if self.page_header.len == length {
            let raw = std::mem::take(&mut self.page_header).bytes;
            self.check_page(page, &raw)?;
        }
        Ok(taken)
    }

    // PG: XLogReaderValidatePageHeader, in its order
    fn check_page(&mut self, page: Lsn, raw: &[u8; LONG_HEADER]) -> Result<(), WalError> {
        let header = PageHeader::parse(&page::part(raw, 0));
        self.check_magic(page, header.magic)?;
        let first = page.offset_in_seg(self.id.seg_size) == 0;
        if header.info & !page::known_flags(header.magic) != 0 || header.has(flags::LONG_HEADER) != first {
            return Err(WalError::InfoBits { lsn: page, found: header.info });
        }
        if first {
            self.check_identity(page, LongPart::parse(raw))?;
        }
        if header.pageaddr != page {
            return Err(WalError::PageAddress { lsn: page, found: header.pageaddr });
        }
        if !page::is_newer_wal_magic(header.magic) {
            let (from, to) = page::HEADER_PADDING;
            zeros(raw.get(from..to).unwrap_or_default(), page.advance(from as u64))?;
        }
        self.check_timeline(page, header.tli)?;
        self.now.magic = Some(header.magic);
        self.now.page_tli = header.tli;
        self.enter_page(page, header)
    }

    fn check_magic(&self, lsn: Lsn, found: u16) -> Result<(), WalError> {
        match self.now.magic {
            Some(expected) if expected != found => Err(WalError::OtherMagic { lsn, found, expected }),
            None if !page::acceptable_magic(found) => Err(WalError::UnknownMagic { lsn, found }),
            _ => Ok(()),
        }
    }

    fn check_identity(&self, lsn: Lsn, long: LongPart) -> Result<(), WalError> {
        let (expected, seg_size) = (self.id.system_id, self.id.seg_size.bytes());
        if long.system_id != expected {
            Err(WalError::OtherSystem { lsn, found: long.system_id, expected })
        } else if u64::from(long.seg_size) != seg_size {
            Err(WalError::OtherSegmentSize { lsn, found: long.seg_size, expected: seg_size })
        } else if u64::from(long.block_size) != PAGE_SIZE {
            Err(WalError::OtherBlockSize { lsn, found: long.block_size })
        } else {
            Ok(())
        }
    }

    fn check_timeline(&self, lsn: Lsn, found: u32) -> Result<(), WalError> {
        if found < self.now.page_tli {
            Err(WalError::TimelineFell { lsn, found, after: self.now.page_tli })
        } else if found > self.tli.as_u32() {
            Err(WalError::TimelineAhead { lsn, found, current: self.tli })
        } else {
            Ok(())
        }
    }

    /// Brings together what the page says it begins with and what should come. The position is behind
    /// the header.
    fn enter_page(&mut self, page: Lsn, header: PageHeader) -> Result<(), WalError> {
        let continues = header.has(flags::FIRST_IS_CONTRECORD);
        let flag = page::overwrite_flag(header.magic);
        let overwrites = flag.map_or(!continues, |flag| header.has(flag));
        let was_inside = matches!(self.phase, Phase::Record(_) | Phase::Skip { .. });
        if overwrites {
            // The record was lost in a crash, if the next one says so too. The one before it stays the predecessor of
            // what follows.
            self.lost = match self.phase {
                Phase::Record(assembly) => Some(Lost::From(assembly.start)),
                Phase::Skip { .. } => Some(Lost::Before(page)),
                // Behind a record that ended on the page before nothing can have been lost; at the start of a walk it may.
                _ => flag.map(|_| Lost::Before(page)),
            };
            self.phase = Phase::Boundary;
        }
        let (lsn, expected) = match self.phase {
            Phase::Record(assembly) => (assembly.start, assembly.left()),
            Phase::Skip { left } => (page, left),
            _ if continues && !overwrites && !self.synced => {
                self.phase = Phase::Skip { left: header.rem_len };
                (page, header.rem_len.clamp(1, MAX_RECORD))
            }
            _ if continues => return Err(WalError::UnexpectedContrecord { lsn: self.now.position }),
            _ => (page, 0),
        };
        if expected > 0 && !continues {
            return Err(WalError::MissingContrecord { lsn });
        }
        if header.rem_len != expected {
            return Err(WalError::ContrecordLength { lsn, found: header.rem_len, expected });
        }
        if expected == 0 && !self.synced && (self.lost.is_none() || !was_inside) {
            self.settle();
        }
        Ok(())
    }
}

/// Insists on zeros, from `at` on.
fn zeros(bytes: &[u8], at: Lsn) -> Result<(), WalError> {
    let wrong = (0..).zip(bytes).find(|&(_, &byte)| byte != 0);
    wrong.map_or(Ok(()), |(offset, &found)| Err(WalError::Padding { lsn: at.advance(offset), found }))
}

/// A page header of which the first `len` bytes have arrived.
#[derive(Clone, Copy, Debug)]
struct PartialHeader {
    bytes: [u8; LONG_HEADER],
    len: usize,
}

impl Default for PartialHeader {
    fn default() -> PartialHeader {
        PartialHeader { bytes: [0; LONG_HEADER], len: 0 }
    }
}

impl PartialHeader {
    /// Takes bytes until there are `length` of them.
    fn take(&mut self, bytes: &[u8], length: usize) -> usize {
        let taken = copy_prefix(self.bytes.get_mut(self.len..length).unwrap_or_default(), bytes);
        self.len += taken;
        taken
    }
}

/// A record of which the first `got` bytes have arrived.
#[derive(Clone, Copy, Debug)]
struct Assembly {
    start: Lsn,
    header: [u8; RECORD_HEADER],
    /// Valid once four bytes have arrived, which always lie on one page.
    tot_len: u32,
    got: u32,
    body_crc: u32,
    /// The beginning of the body, as far as it has arrived.
    body_start: [u8; OVERWRITE_BODY],
}

impl Assembly {
    fn new(start: Lsn) -> Assembly {
        Assembly {
            start,
            header: [0; RECORD_HEADER],
            tot_len: 0,
            got: 0,
            body_crc: 0,
            body_start: [0; OVERWRITE_BODY],
        }
    }

    /// Bytes still to come; only where `tot_len` is valid.
    fn left(&self) -> u32 {
        self.tot_len.saturating_sub(self.got)
    }

    fn take(&mut self, bytes: &[u8], prev: Option<Lsn>, newer: bool) -> Result<usize, WalError> {
        if (self.got as usize) < RECORD_HEADER {
            self.take_header(bytes, prev, newer)
        } else {
            Ok(self.take_body(bytes))
        }
    }

    fn take_header(&mut self, bytes: &[u8], prev: Option<Lsn>, newer: bool) -> Result<usize, WalError> {
        let missing = RECORD_HEADER - self.got as usize;
        let part = bytes.get(..missing).unwrap_or(bytes);
        copy_prefix(self.header.get_mut(self.got as usize..).unwrap_or_default(), part);
        self.got += page::len_on_page(part);
        if self.got >= 4 {
            self.tot_len = u32::from_le_bytes(page::part(&self.header, 0));
            check_length(self.tot_len, self.start)?;
        }
        if self.got as usize == RECORD_HEADER {
            RecordHeader::parse(&self.header).check(self.start, prev, newer)?;
        }
        Ok(part.len())
    }

    fn take_body(&mut self, bytes: &[u8]) -> usize {
        let part = bytes.get(..self.left() as usize).unwrap_or(bytes);
        self.body_crc = crc32c::crc32c_append(self.body_crc, part);
        let body = self.got as usize - RECORD_HEADER;
        copy_prefix(self.body_start.get_mut(body..).unwrap_or_default(), part);
        self.got += page::len_on_page(part);
        part.len()
    }

    /// Checks the checksum once the record is complete.
    fn finished(&self) -> Result<Option<Finished>, WalError> {
        if (self.got as usize) < RECORD_HEADER || self.left() > 0 {
            return Ok(None);
        }
        let header = RecordHeader::parse(&self.header);
        header.check_crc(self.body_crc, &self.header, self.start)?;
        Ok(Some(Finished { start: self.start, is_switch: header.is_switch() }))
    }
}

/// Copies as much as fits, and says how much that was.
fn copy_prefix(to: &mut [u8], from: &[u8]) -> usize {
    let len = to.len().min(from.len());
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
    len
}
