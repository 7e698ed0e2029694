//! WAL segments: their size, their numbers, their file names.

use std::fmt;

use crate::lsn::Lsn;
use crate::timeline::TimelineId;

/// Size of a WAL segment in bytes: a power of two from 1 MB to 1 GB, the same for a cluster's whole life
/// (`wal_segment_size`, `IsValidWalSegSize`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SegSize(u64);

/// The number is not a size PostgreSQL allows for a WAL segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL segment size {0}: expected a power of two between 1 MB and 1 GB")]
pub struct InvalidSegSize(String);

impl SegSize {
    const MIN: u64 = 1 << 20;
    const MAX: u64 = 1 << 30;

    /// The size `bytes`, if PostgreSQL allows it.
    pub fn new(bytes: u64) -> Result<SegSize, InvalidSegSize> {
        let allowed = bytes.is_power_of_two() && (SegSize::MIN..=SegSize::MAX).contains(&bytes);
        allowed.then_some(SegSize(bytes)).ok_or_else(|| InvalidSegSize(bytes.to_string()))
    }

    /// Reads what `SHOW wal_segment_size` answers: `1MB` … `512MB`, `1GB`.
    pub fn from_show(text: &str) -> Result<SegSize, InvalidSegSize> {
        let parsed = text.strip_suffix("MB").map(|n| (n, 20)).or(text.strip_suffix("GB").map(|n| (n, 30)));
        parsed
            .and_then(|(n, shift)| n.parse::<u64>().ok()?.checked_mul(1 << shift))
            .and_then(|bytes| SegSize::new(bytes).ok())
            .ok_or_else(|| InvalidSegSize(text.to_owned()))
    }

    /// What `SHOW wal_segment_size` answers for this size.
    pub fn to_show(self) -> String {
        if self.0 >= 1 << 30 { format!("{}GB", self.0 >> 30) } else { format!("{}MB", self.0 >> 20) }
    }

    /// Bytes in a segment.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Segments in each 4 GB of WAL, the base of the file name's last part (`XLogSegmentsPerXLogId`).
    fn per_id(self) -> u64 {
        (1 << 32) / self.0
    }
}

/// Number of a segment: its start position divided by the segment size. Timelines share the numbering.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegNo(u64);

impl SegNo {
    /// The segment with this number.
    pub const fn new(number: u64) -> SegNo {
        SegNo(number)
    }

    /// The number itself.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// First byte of the segment.
    pub fn start(self, size: SegSize) -> Lsn {
        Lsn::new(self.0.saturating_mul(size.bytes()))
    }

    /// First byte after the segment.
    pub fn end(self, size: SegSize) -> Lsn {
        self.next().start(size)
    }

    /// The segment after this one.
    pub fn next(self) -> SegNo {
        SegNo(self.0.saturating_add(1))
    }

    /// The segment before this one, `None` for the first.
    pub fn prev(self) -> Option<SegNo> {
        self.0.checked_sub(1).map(SegNo)
    }
}

/// Name of a segment's file: timeline and segment number, 24 upper-case hexadecimal digits (`XLogFileName`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WalFileName {
    /// Timeline the file belongs to.
    pub tli: TimelineId,
    /// Segment it holds.
    pub segno: SegNo,
}

impl WalFileName {
    /// The name of `segno` on `tli`.
    pub const fn new(tli: TimelineId, segno: SegNo) -> WalFileName {
        WalFileName { tli, segno }
    }

    /// The text, which depends on the segment size.
    pub fn format(self, size: SegSize) -> String {
        let (id, seg) = (self.segno.0 / size.per_id(), self.segno.0 % size.per_id());
        format!("{:08X}{:08X}{:08X}", self.tli.as_u32(), id, seg)
    }

    /// Reads a name; `None` if it is no segment of this size (`IsXLogFileName`, and the parts in range).
    pub fn parse(name: &str, size: SegSize) -> Option<WalFileName> {
        let hex = name.len() == 24 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        if !hex {
            return None;
        }
        let part = |range| u64::from_str_radix(name.get(range)?, 16).ok();
        let tli = TimelineId::new(u32::try_from(part(0..8)?).ok()?)?;
        let (id, seg) = (part(8..16)?, part(16..24)?);
        (seg < size.per_id()).then(|| WalFileName::new(tli, SegNo(id * size.per_id() + seg)))
    }
}

impl fmt::Display for SegNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(tli: u32, lsn: u64, mb: u64) -> String {
        let size = SegSize::new(mb << 20).unwrap();
        let name = WalFileName::new(TimelineId::new(tli).unwrap(), Lsn::new(lsn).seg_at(size));
        let text = name.format(size);
        assert_eq!(WalFileName::parse(&text, size), Some(name));
        text
    }

    #[test]
    fn names_are_postgresqls() {
        assert_eq!(name(1, 0x1_2345_6789, 1), "000000010000000100000234");
        assert_eq!(name(1, 0x1_2345_6789, 16), "000000010000000100000023");
        assert_eq!(name(0xA, 0x1_FFFF_FFFF, 1024), "0000000A0000000100000003");
    }

    #[test]
    fn other_names_are_refused() {
        let size = SegSize::new(16 << 20).unwrap();
        for bad in [
            "00000001000000010000002",
            "000000010000000100000100",
            "000000010000000100000023.partial",
            "00000001000000010000002a",
            "000000000000000100000023",
            "+00000010000000100000023",
        ] {
            assert_eq!(WalFileName::parse(bad, size), None, "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, mb) in [("1MB", 1), ("16MB", 16), ("512MB", 512), ("1GB", 1024)] {
            let size = SegSize::new(mb << 20).unwrap();
            assert_eq!(SegSize::from_show(text), Ok(size));
            assert_eq!(size.to_show(), text);
        }
        for bad in ["", "MB", "3MB", "16", "2GB", "16 MB", "16kB", "99999999999999999999GB"] {
            assert!(SegSize::from_show(bad).is_err(), "{bad}");
        }
    }
}
