//! The header of a WAL page (PostgreSQL: `XLogPageHeaderData`, `XLogLongPageHeaderData`).
//!
//! | offset | size | field | |
//! |---|---|---|---|
//! | 0 | 2 | `xlp_magic` | one number per major version, [`known_magic`] |
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
    /// The record that should continue here was lost in a crash; a new one starts instead.
    pub(crate) const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
    /// All bits that have a meaning; 0x0004, which nearly all pages have, has none for a relay.
    pub(crate) const ALL: u16 = 0x000F;
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

/// Whether a PostgreSQL from 13 to 18 writes pages with this magic number.
pub(crate) fn known_magic(magic: u16) -> bool {
    matches!(magic, 0xD106 | 0xD10D | 0xD110 | 0xD113 | 0xD116 | 0xD118)
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
