//! WAL positions.

use std::fmt;
use std::str::FromStr;

use crate::segment::{SegNo, SegSize};

/// A page of WAL (`XLOG_BLCKSZ`). Builds with another size exist but no packager ships one.
pub(crate) const PAGE_SIZE: u64 = 8192;

/// A position in the WAL: the number of bytes since the cluster's beginning (`XLogRecPtr`).
///
/// An *end* position is exclusive: it is the first byte that is not covered any more. `0/0` is not a
/// position (`InvalidXLogRecPtr`); inside walrelay "none" is `Option::None`, on the wire it is `0/0`.
///
/// Text form: two hexadecimal numbers as PostgreSQL prints them with `%X/%X` (`1A/2F000028`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`, PostgreSQL's `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);

    /// The position `bytes` after the beginning of the WAL.
    pub const fn new(bytes: u64) -> Lsn {
        Lsn(bytes)
    }

    /// Bytes since the beginning of the WAL.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// `None` for `0/0`, which is how "no position" is written on the wire.
    pub fn valid(self) -> Option<Lsn> {
        (self != Lsn::INVALID).then_some(self)
    }

    /// Segment holding the byte *at* this position. For the start of a read. (`XLByteToSeg`)
    pub fn seg_at(self, size: SegSize) -> SegNo {
        SegNo::new(self.0 / size.bytes())
    }

    /// Segment holding the byte *before* this position. For an end position, which may sit on a
    /// boundary. (`XLByteToPrevSeg`)
    pub fn seg_before(self, size: SegSize) -> SegNo {
        SegNo::new(self.0.saturating_sub(1) / size.bytes())
    }

    /// As a server of this major version writes it to clients: from 19 on the second number has eight digits
    /// (`%X/%08X`).
    pub fn text(self, major: u32) -> String {
        match major {
            19.. => format!("{:X}/{:08X}", self.0 >> 32, self.0 & 0xFFFF_FFFF),
            _ => self.to_string(),
        }
    }

    /// Offset inside the segment that holds the byte at this position, `0 .. seg_size`.
    pub fn offset_in_seg(self, size: SegSize) -> u64 {
        self.0 & (size.bytes() - 1)
    }

    /// Start of the segment that holds the byte at this position.
    pub fn seg_start(self, size: SegSize) -> Lsn {
        Lsn(self.0 - self.offset_in_seg(size))
    }

    /// Start of the 8 kB page that holds the byte at this position.
    pub fn page_start(self) -> Lsn {
        Lsn(self.0 & !(PAGE_SIZE - 1))
    }

    /// This position rounded up to a multiple of eight, where the next record starts. (`MAXALIGN`)
    pub fn max_align(self) -> Lsn {
        Lsn(self.0.saturating_add(7) & !7)
    }

    /// The position `bytes` later; stops at the end of the address space.
    pub fn advance(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// The position `bytes` earlier; stops at `0/0`.
    pub fn rewind(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_sub(bytes))
    }

    /// Bytes from `earlier` to here, 0 if `earlier` lies ahead.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a WAL position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL position \"{0}\": expected two hexadecimal numbers such as 0/3000000")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    /// Follows `pg_lsn_in`: one to eight hexadecimal digits on each side of the slash, nothing else.
    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let half = |part: &str| {
            let digits = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_postgresqls() {
        assert_eq!(Lsn::new(0x1_2345_6789).to_string(), "1/23456789");
        assert_eq!(Lsn::new(0x300_0028).text(18), "0/3000028");
        assert_eq!(Lsn::new(0x300_0028).text(19), "0/03000028");
        assert_eq!("0/3000028".parse(), Ok(Lsn::new(0x300_0028)));
        assert_eq!("0/03000028".parse(), Ok(Lsn::new(0x300_0028)));
        for bad in ["", "/", "0", "0/", "/0", "0/123456789", "0/+1", "0/ 1", "g/0", "0/0/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_boundary_ends_one_segment_and_starts_the_next() {
        let size = SegSize::new(1 << 20).unwrap();
        let at = Lsn::new(3 << 20);
        assert_eq!(at.seg_at(size), SegNo::new(3));
        assert_eq!(at.seg_before(size), SegNo::new(2));
        assert_eq!(at.advance(1).seg_before(size), SegNo::new(3));
        assert_eq!(at.advance(5).seg_start(size), at);
        assert_eq!(at.advance(5).offset_in_seg(size), 5);
    }
}
