//! Makes valid WAL, for tests and benches. The same seed always gives the same bytes.
//!
//! Records are `XLOG_NOOP`s with random content: PostgreSQL's tools can read them, a standby can replay
//! them.
//!
//! ```
//! use walrelay_proto::generate::WalGenerator;
//! use walrelay_proto::{Lsn, SegSize, SystemId, TimelineId, WalIdentity, WalVerifier};
//!
//! let id = WalIdentity { system_id: SystemId(1), seg_size: SegSize::new(1 << 20)? };
//! let start = Lsn::new(1 << 20);
//! let mut wal = WalGenerator::new(id, TimelineId::FIRST, start, 42);
//! wal.fill(100_000);
//! let end = wal.record(5000);
//! wal.switch_segment();
//!
//! let mut walk = WalVerifier::at_segment_start(id, TimelineId::FIRST, start);
//! walk.push(wal.bytes())?;
//! assert_eq!(walk.verified_end(), Some(wal.position()));
//! assert!(wal.record_ends().contains(&end));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::lsn::{Lsn, PAGE_SIZE};
use crate::page::{flags, header_len, known_flags, overwrite_flag, room_on_page};
use crate::record::{RECORD_HEADER, alignment_padding};
use crate::timeline::TimelineId;
use crate::walk::WalIdentity;

/// Magic number of PostgreSQL 18, used unless told otherwise.
const MAGIC: u16 = 0xD118;
const BKP_REMOVABLE: u16 = 0x0004;

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const XACT_COMMIT: u8 = 0x00;
const XLOG_NOOP: u8 = 0x20;
const XLOG_SWITCH: u8 = 0x40;
const XLOG_END_OF_RECOVERY: u8 = 0x90;
const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;
const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;

/// Appends WAL to a buffer, as a server would write it.
#[derive(Clone, Debug)]
pub struct WalGenerator {
    id: WalIdentity,
    tli: TimelineId,
    magic: u16,
    random: Random,
    out: Vec<u8>,
    position: Lsn,
    prev: Lsn,
    starts: Vec<Lsn>,
    ends: Vec<Lsn>,
}

impl WalGenerator {
    /// Begins with the segment that holds `start`, on timeline `tli`.
    pub fn new(id: WalIdentity, tli: TimelineId, start: Lsn, seed: u64) -> WalGenerator {
        let position = start.seg_start(id.seg_size);
        WalGenerator {
            id,
            tli,
            magic: MAGIC,
            random: Random(seed),
            out: Vec::new(),
            position,
            prev: position.rewind(RECORD_HEADER as u64),
            starts: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Goes on behind a record that ends at `end`, written by somebody else: after a crash, or a promotion.
    pub fn behind(id: WalIdentity, tli: TimelineId, last_record: Lsn, end: Lsn, seed: u64) -> WalGenerator {
        WalGenerator { position: end, prev: last_record, ..WalGenerator::new(id, tli, end, seed) }
    }

    /// Writes the pages of another version: `0xD106` for 13 … `0xD122` for 19, or a newer one.
    pub fn with_magic(mut self, magic: u16) -> WalGenerator {
        self.magic = magic;
        self
    }

    /// The bytes made since the beginning or the last [`take`](Self::take).
    pub fn bytes(&self) -> &[u8] {
        &self.out
    }

    /// Takes these bytes out. Positions go on.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Where the next byte goes; the end of [`bytes`](Self::bytes).
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Start of the last record.
    pub fn last_record(&self) -> Lsn {
        self.prev
    }

    /// Starts of all records, in order; aborted ones do not count.
    pub fn record_starts(&self) -> &[Lsn] {
        &self.starts
    }

    /// All values that `verified_end` of a verifier takes on these bytes: the ends of records, and the
    /// page ends in the padding behind an XLOG_SWITCH.
    pub fn record_ends(&self) -> &[Lsn] {
        &self.ends
    }

    /// Appends a record of `len` bytes, header included, and returns its end.
    ///
    /// Records have 24 bytes, or 26 and more: other lengths are raised.
    pub fn record(&mut self, len: usize) -> Lsn {
        let body = self.main_data(len.saturating_sub(RECORD_HEADER));
        self.append(XLOG_NOOP, &body)
    }

    /// Appends records of random lengths, mostly short, some longer than a page, until there are at
    /// least `bytes` more.
    pub fn fill(&mut self, bytes: usize) {
        let end = self.position.advance(bytes as u64);
        while self.position < end {
            let len = self.random.record_len();
            self.record(len);
        }
    }

    /// Appends a record that ends exactly where a page does.
    pub fn fill_page(&mut self) {
        self.begin_page_if_due();
        let room = room_on_page(self.position);
        // Eight or sixteen bytes hold no record: that one ends with the page after.
        let next = self.position.advance(room as u64);
        let more = if room < RECORD_HEADER { 8192 - header_len(next, self.id.seg_size) } else { 0 };
        self.record(room + more);
    }

    /// Switches to the next segment (`pg_switch_wal`); does nothing at a segment's start.
    pub fn switch_segment(&mut self) {
        if self.at_segment_start() {
            return;
        }
        self.append(XLOG_SWITCH, &[]);
        while !self.at_segment_start() {
            let room = room_on_page(self.position);
            self.out.resize(self.out.len() + room, 0);
            self.position = self.position.advance(room as u64);
            self.ends.push(self.position);
        }
    }

    /// Begins a record of at least `len` bytes that a crash cuts off after `pages` page ends (at least
    /// one), and the XLOG_OVERWRITE_CONTRECORD record that says so. Returns where the lost record began.
    pub fn abort_record(&mut self, len: usize, pages: usize) -> Lsn {
        self.begin_page_if_due();
        let lost = self.position;
        let pages = pages.max(1);
        let enough = len.max(room_on_page(lost) + pages * 8192);
        let body = self.main_data(enough - RECORD_HEADER);
        let record = self.assemble(RM_XLOG, XLOG_NOOP, &body);
        self.write(&record, Some(pages));
        self.begin_page(overwrite_flag(self.magic).unwrap_or(0), 0);
        let mut overwritten = vec![0xFF, 16];
        overwritten.extend(lost.as_u64().to_le_bytes());
        overwritten.extend(self.random.next().to_le_bytes());
        self.append(XLOG_OVERWRITE_CONTRECORD, &overwritten);
        lost
    }

    /// Appends the record of a commit (`xl_xact_commit`), and returns its end.
    pub fn commit(&mut self) -> Lsn {
        let time = self.random.next().cast_signed();
        self.commit_at(time)
    }

    /// The same of a commit that was made at this time, microseconds since 2000.
    pub fn commit_at(&mut self, time: i64) -> Lsn {
        let mut body = vec![0xFF, 8];
        body.extend(time.to_le_bytes());
        self.append_of(RM_XACT, XACT_COMMIT, &body)
    }

    /// Appends an XLOG_CHECKPOINT_ONLINE record from which replay begins at `redo`, and returns its end.
    pub fn checkpoint(&mut self, redo: Lsn) -> Lsn {
        let mut body = vec![0xFF, 88];
        body.extend(redo.as_u64().to_le_bytes());
        body.resize(2 + 88, 0);
        self.append(XLOG_CHECKPOINT_ONLINE, &body)
    }

    /// Goes on on timeline `tli`, as a promoted standby would: the page begun keeps the old one.
    pub fn switch_timeline(&mut self, tli: TimelineId) {
        let before = std::mem::replace(&mut self.tli, tli);
        let mut body = vec![0xFF, 24];
        body.extend(self.random.next().to_le_bytes());
        body.extend(tli.as_u32().to_le_bytes());
        body.extend(before.as_u32().to_le_bytes());
        body.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        self.append(XLOG_END_OF_RECOVERY, &body);
    }

    fn at_segment_start(&self) -> bool {
        self.position.offset_in_seg(self.id.seg_size) == 0
    }

    /// A record's body of about `len` bytes: the record's main data with its header.
    fn main_data(&mut self, len: usize) -> Vec<u8> {
        let mut body = match len {
            0 => return Vec::new(),
            1..=257 => vec![0xFF, u8::try_from(len.saturating_sub(2)).unwrap_or(u8::MAX)],
            _ => {
                let data = u32::try_from(len - 5).unwrap_or(u32::MAX);
                [&[0xFE], data.to_le_bytes().as_slice()].concat()
            }
        };
        body.reserve(len + 8);
        let len = len.max(2);
        while body.len() < len {
            body.extend(self.random.next().to_le_bytes());
        }
        body.truncate(len);
        body
    }

    fn append(&mut self, info: u8, body: &[u8]) -> Lsn {
        self.append_of(RM_XLOG, info, body)
    }

    fn append_of(&mut self, manager: u8, info: u8, body: &[u8]) -> Lsn {
        self.begin_page_if_due();
        let start = self.position;
        let record = self.assemble(manager, info, body);
        self.write(&record, None);
        let padding = [0; 8];
        self.put(padding.split_at(alignment_padding(self.position.as_u64())).0);
        self.prev = start;
        self.starts.push(start);
        self.ends.push(self.position);
        self.position
    }

    /// The whole record, to be written at the current position.
    fn assemble(&mut self, manager: u8, info: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(RECORD_HEADER + body.len()).expect("records of less than 1 GB");
        let xid = if info == XLOG_NOOP { 1000 } else { 0u32 };
        let mut record = Vec::with_capacity(RECORD_HEADER + body.len());
        record.extend(len.to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.prev.as_u64().to_le_bytes());
        record.extend([info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend(crc.to_le_bytes());
        record.extend_from_slice(body);
        record
    }

    /// Writes a record over as many pages as it takes, or until `pages` of them are full.
    fn write(&mut self, record: &[u8], mut pages: Option<usize>) {
        let mut rest = record;
        loop {
            let (now, later) = rest.split_at(rest.len().min(room_on_page(self.position)));
            self.put(now);
            rest = later;
            pages = pages.map(|pages| pages - 1);
            if rest.is_empty() || pages == Some(0) {
                return;
            }
            let missing = u32::try_from(rest.len()).expect("records of less than 1 GB");
            self.begin_page(flags::FIRST_IS_CONTRECORD, missing);
        }
    }

    fn begin_page_if_due(&mut self) {
        if self.position == self.position.page_start() {
            self.begin_page(0, 0);
        }
    }

    fn begin_page(&mut self, extra_flags: u16, rem_len: u32) {
        let long = self.at_segment_start();
        // 19 has no such bit any more; it stands for a lost record there.
        let removable = if known_flags(self.magic) == 0x0007 { 0 } else { BKP_REMOVABLE };
        let info = removable | extra_flags | if long { flags::LONG_HEADER } else { 0 };
        let page = self.position;
        self.put(&self.magic.to_le_bytes());
        self.put(&info.to_le_bytes());
        self.put(&self.tli.as_u32().to_le_bytes());
        self.put(&page.as_u64().to_le_bytes());
        self.put(&rem_len.to_le_bytes());
        self.put(&[0; 4]);
        if long {
            let [seg_size, block_size] = [self.id.seg_size.bytes(), PAGE_SIZE];
            self.put(&self.id.system_id.0.to_le_bytes());
            self.put(seg_size.to_le_bytes().split_at(4).0);
            self.put(block_size.to_le_bytes().split_at(4).0);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.position = self.position.advance(bytes.len() as u64);
    }
}

/// SplitMix64.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// As in the WAL of a busy server: short records, full pages now and then, some of many pages.
    fn record_len(&mut self) -> usize {
        let (from, to) = match self.next() % 100 {
            0 => (40_000, 200_000),
            1..=3 => (8200, 40_000),
            4..=15 => (600, 8200),
            16..=49 => (120, 600),
            50 => return RECORD_HEADER,
            _ => (26, 120),
        };
        usize::try_from(from + self.next() % (to - from)).expect("at most 200000")
    }
}
