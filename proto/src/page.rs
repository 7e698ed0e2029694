//! The header of a WAL page (PostgreSQL: `XLogPageHeaderData`, `XLogLongPageHeaderData`).
//!
//! | offset | size | field | |
//! |---|---|---|---|
//! | 0 | 2 | `xlp_magic` | one number per major version, [`wal_magic_of`] |
//! | 2 | 2 | `xlp_info` | [`flags`] |
//! | 4 | 4 | `xlp_tli` | timeline of the page's first record |
//! | 8 | 8 | `xlp_pageaddr` | the page's own position |
//! | 16 | 4 | `xlp_rem_len` | bytes of the continued record still to come |
//! | 20 | 4 | padding | |
//! | 24 | 8 | `xlp_sysid` | long header only |
//! | 32 | 4 | `xlp_seg_size` | long header only |
//! | 36 | 4 | `xlp_xlog_blcksz` | long header only |
//!
//! WAL is written in the server's byte order. Only little-endian WAL is read here: the other kind shows
//! as an unknown magic number.

use crate::lsn::{Lsn, PAGE_SIZE};
use crate::segment::SegSize;
use crate::timeline::SystemId;

/// Bits of `xlp_info`.
pub(crate) mod flags {
    /// The page begins with the rest of a record.
    pub(crate) const FIRST_IS_CONTRECORD: u16 = 0x0001;
    /// The header is a long one.
    pub(crate) const LONG_HEADER: u16 = 0x0002;
}

/// From where to where the short header is padding.
pub(crate) const HEADER_PADDING: (usize, usize) = (20, 24);

/// The first major version that is known, and those after it: what they write, in ascending order.
const FIRST_MAJOR: u32 = 13;
const MAGICS: [u16; 7] = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118, 0xD122];
/// The number of 19.
const MAGIC_19: u16 = 0xD122;
/// The newest major version that is known.
pub const NEWEST_MAJOR: u32 = 19;

/// The magic number of WAL pages that a major version of PostgreSQL writes; `None` for one that is older or newer
/// than those that are known. Betas may differ from their release.
pub fn wal_magic_of(major: u32) -> Option<u16> {
    MAGICS.get(usize::try_from(major.checked_sub(FIRST_MAJOR)?).ok()?).copied()
}

/// Whether WAL pages with this magic number are of a version newer than those that are known. Such pages are judged
/// by what has never changed: position, timeline, cluster, lengths and checksums.
pub fn is_newer_wal_magic(magic: u16) -> bool {
    magic > MAGIC_19
}

/// The magic number of the segment that begins with `first_page`; `None` if that is no beginning of a segment, or of
/// another cluster's.
pub fn wal_magic_of_segment(first_page: &[u8], system_id: SystemId) -> Option<u16> {
    let raw = first_page.first_chunk()?;
    let header = PageHeader::parse(&part(raw, 0));
    let is_ours = header.has(flags::LONG_HEADER) && LongPart::parse(raw).system_id == system_id;
    is_ours.then_some(header.magic)
}

/// The magic number of the page at `at` that begins with these bytes; `None` if that is no such page's beginning.
pub fn wal_magic_of_page(page: &[u8], at: Lsn) -> Option<u16> {
    let header = PageHeader::parse(page.first_chunk()?);
    (header.pageaddr == at).then_some(header.magic)
}

/// Whether it can be WAL: of a known version, or a newer one.
pub(crate) fn acceptable_magic(magic: u16) -> bool {
    MAGICS.contains(&magic) || is_newer_wal_magic(magic)
}

/// The bit that says that the record that should continue on the page was lost in a crash, and that a new one starts
/// instead. 19 gave it that of `XLP_BKP_REMOVABLE`, which is gone. Of newer versions nothing is known.
pub(crate) fn overwrite_flag(magic: u16) -> Option<u16> {
    match magic {
        _ if is_newer_wal_magic(magic) => None,
        MAGIC_19 => Some(0x0004),
        _ => Some(0x0008),
    }
}

/// Whether two bytes at `at` differ only in what nothing says whether it is right: `XLP_BKP_REMOVABLE` in a page's header, which
/// nobody reads. What 19 means by that bit is told by the record that follows, too.
pub fn differs_in_nothing(at: Lsn, one: u8, other: u8) -> bool {
    const INFO: u64 = 2;
    const BKP_REMOVABLE: u8 = 0x04;
    at.since(at.page_start()) == INFO && one ^ other == BKP_REMOVABLE
}

/// All bits that a version gives a meaning.
pub(crate) fn known_flags(magic: u16) -> u16 {
    match magic {
        _ if is_newer_wal_magic(magic) => u16::MAX,
        MAGIC_19 => 0x0007,
        _ => 0x000F,
    }
}

/// Length of the header of most pages.
pub(crate) const SHORT_HEADER: usize = 24;
/// Length of the header of a segment's first page.
pub(crate) const LONG_HEADER: usize = 40;

/// Length of the header of the page at `page`.
pub(crate) fn header_len(page: Lsn, size: SegSize) -> usize {
    if page.offset_in_seg(size) == 0 { LONG_HEADER } else { SHORT_HEADER }
}

/// Bytes from `at` to the end of its page, `1 ..= 8192`.
pub(crate) fn room_on_page(at: Lsn) -> usize {
    usize::try_from(PAGE_SIZE - at.since(at.page_start())).expect("at most 8192")
}

/// Length of bytes that lie on one page.
pub(crate) fn len_on_page(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// A page header as found, unchecked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageHeader {
    pub(crate) magic: u16,
    pub(crate) info: u16,
    pub(crate) tli: u32,
    pub(crate) pageaddr: Lsn,
    pub(crate) rem_len: u32,
}

/// What only the long header has, unchecked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LongPart {
    pub(crate) system_id: SystemId,
    pub(crate) seg_size: u32,
    pub(crate) block_size: u32,
}

impl PageHeader {
    pub(crate) fn parse(bytes: &[u8; SHORT_HEADER]) -> PageHeader {
        PageHeader {
            magic: u16::from_le_bytes(part(bytes, 0)),
            info: u16::from_le_bytes(part(bytes, 2)),
            tli: u32::from_le_bytes(part(bytes, 4)),
            pageaddr: Lsn::new(u64::from_le_bytes(part(bytes, 8))),
            rem_len: u32::from_le_bytes(part(bytes, 16)),
        }
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.info & flag != 0
    }
}

impl LongPart {
    pub(crate) fn parse(bytes: &[u8; LONG_HEADER]) -> LongPart {
        LongPart {
            system_id: SystemId(u64::from_le_bytes(part(bytes, 24))),
            seg_size: u32::from_le_bytes(part(bytes, 32)),
            block_size: u32::from_le_bytes(part(bytes, 36)),
        }
    }
}

/// The `N` bytes at `at`; zeros if they reach beyond the end, which no caller's constants do.
pub(crate) fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}
