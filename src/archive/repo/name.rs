//! Names of what an archive holds, as PostgreSQL's archiver knows them (`xlog_internal.h`), and of the pieces
//! of a segment that arrive before it.
//!
//! | kind | name |
//! |---|---|
//! | segment | `000000010000000A000000FF` |
//! | partial | `000000010000000A000000FF.partial`: the last segment of a timeline that was left |
//! | history | `00000002.history` |
//! | backup | `000000010000000A000000FF.00000028.backup`: label of a base backup |

use std::fmt;

use walrelay_proto::{SegSize, TimelineId, WalFileName};

use super::sidecar::Sha256;

/// What a file is, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A finished segment.
    Segment,
    /// The last, unfinished segment of a timeline that was left.
    Partial,
    /// History of a timeline.
    History,
    /// Label of a base backup.
    Backup,
}

/// A name PostgreSQL's archiver would use. Sorts by timeline, then position.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileName(String);

impl FileName {
    /// Reads a name; `None` if PostgreSQL would not archive a file called so.
    pub fn parse(text: &str) -> Option<FileName> {
        kind_of(text)?;
        let name = FileName(text.to_owned());
        (name.timeline_number() != 0).then_some(name)
    }

    /// The name of a finished segment.
    pub fn segment(name: WalFileName, size: SegSize) -> FileName {
        FileName(name.format(size))
    }

    /// The name of the last segment of a timeline that was left.
    pub fn partial(name: WalFileName, size: SegSize) -> FileName {
        FileName(format!("{}.partial", name.format(size)))
    }

    /// The name of a timeline's history.
    pub fn history(tli: TimelineId) -> FileName {
        FileName(tli.history_file_name())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        kind_of(&self.0).expect("checked when the name was made")
    }

    /// The timeline in the name; of a history file, the timeline it describes.
    pub fn tli(&self) -> TimelineId {
        TimelineId::new(self.timeline_number()).expect("checked when the name was made")
    }

    /// The 24 digits of the segment that the file is, or is about; `None` for a history file.
    pub fn segment_digits(&self) -> Option<&str> {
        self.0.get(..24).filter(|digits| is_hex(digits))
    }

    /// The same as a segment's name, given the cluster's segment size; `None` for a history file, and for
    /// a name that does not exist with this size.
    pub fn wal(&self, size: SegSize) -> Option<WalFileName> {
        WalFileName::parse(self.segment_digits()?, size)
    }

    fn timeline_number(&self) -> u32 {
        u32::from_str_radix(&self.0[..8], 16).expect("every kind of name begins with 8 digits")
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn kind_of(text: &str) -> Option<FileKind> {
    let (stem, rest) = text.split_once('.').map_or((text, None), |(stem, rest)| (stem, Some(rest)));
    match (stem.len(), rest) {
        _ if !is_hex(stem) => None,
        (24, None) => Some(FileKind::Segment),
        (24, Some("partial")) => Some(FileKind::Partial),
        (8, Some("history")) => Some(FileKind::History),
        (24, Some(rest)) => {
            rest.strip_suffix(".backup").filter(|at| at.len() == 8 && is_hex(at)).map(|_| FileKind::Backup)
        }
        _ => None,
    }
}

/// Upper case only, as PostgreSQL writes and accepts them.
fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
}

/// A piece of a segment that is not finished: bytes `start..end` of it, and the beginning of their SHA-256,
/// so that pieces of different WAL are never taken for each other.
///
/// Its name is `SSSSSSSS-EEEEEEEE-CCCCCCCCCCCCCCCC`, in the directory of its segment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkName {
    /// The segment.
    pub segment: FileName,
    /// First byte, from the segment's start.
    pub start: u64,
    /// First byte after it; more than `start`.
    pub end: u64,
    /// The first 8 bytes of the SHA-256 of the plain bytes.
    pub checksum: [u8; 8],
}

impl ChunkName {
    /// The name of `bytes`, found at `start` of `segment`.
    pub fn of(segment: &FileName, start: u64, bytes: &[u8]) -> ChunkName {
        ChunkName::with(segment, start, bytes.len() as u64, Sha256::of(bytes))
    }

    /// The name of `len` bytes with this digest, found at `start` of `segment`.
    pub(crate) fn with(segment: &FileName, start: u64, len: u64, sum: Sha256) -> ChunkName {
        ChunkName { segment: segment.clone(), start, end: start + len, checksum: sum.beginning() }
    }

    /// The last part of its path, without a suffix.
    pub fn file_name(&self) -> String {
        let sum = u64::from_be_bytes(self.checksum);
        format!("{:08x}-{:08x}-{sum:016x}", self.start, self.end)
    }

    /// Reads what [`file_name`](Self::file_name) writes.
    pub fn parse(segment: &FileName, text: &str) -> Option<ChunkName> {
        let mut parts = text.split('-');
        let mut number = |digits: usize| {
            let part = parts.next()?;
            let lower = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let good = part.len() == digits && part.bytes().all(lower);
            good.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        let (start, end, sum) = (number(8)?, number(8)?, number(16)?);
        let whole = parts.next().is_none() && start < end;
        whole.then(|| ChunkName { segment: segment.clone(), start, end, checksum: sum.to_be_bytes() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind(text: &str) -> Option<FileKind> {
        FileName::parse(text).map(|name| name.kind())
    }

    #[test]
    fn names_are_those_of_the_archiver() {
        assert_eq!(kind("000000010000000A000000FF"), Some(FileKind::Segment));
        assert_eq!(kind("000000010000000A000000FF.partial"), Some(FileKind::Partial));
        assert_eq!(kind("0000000A.history"), Some(FileKind::History));
        assert_eq!(kind("000000010000000A000000FF.00000028.backup"), Some(FileKind::Backup));
        for other in [
            "",
            "000000010000000A000000ff",
            "000000000000000A000000FF",
            "00000000.history",
            "000000010000000A000000FF.0000028.backup",
            "000000010000000A000000FF.zst",
            "000000010000000A000000F",
            "0000000A.history.partial",
            "RECOVERYXLOG",
            "..",
        ] {
            assert_eq!(kind(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_tells_its_timeline_and_segment() {
        let name = FileName::parse("0000000B0000000A000000FF.00000028.backup").unwrap();
        assert_eq!(name.tli(), TimelineId::new(11).unwrap());
        assert_eq!(name.segment_digits(), Some("0000000B0000000A000000FF"));
        let size = SegSize::new(16 << 20).unwrap();
        assert_eq!(name.wal(size), WalFileName::parse("0000000B0000000A000000FF", size));
        assert_eq!(FileName::parse("00000002.history").unwrap().segment_digits(), None);
    }

    proptest! {
        #[test]
        fn chunks_come_back_from_their_names(start in 0u64..1 << 30, bytes in prop::collection::vec(any::<u8>(), 1..64)) {
            let segment = FileName::parse("000000010000000000000001").unwrap();
            let chunk = ChunkName::of(&segment, start, &bytes);
            prop_assert_eq!(ChunkName::parse(&segment, &chunk.file_name()), Some(chunk));
        }

        #[test]
        fn a_name_that_is_read_is_written_the_same(text in "[0-9A-F]{8}([0-9A-F]{16})?(\\.[0-9a-zA-Z.]{0,16})?") {
            if let Some(name) = FileName::parse(&text) {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(name.segment_digits().is_some() == (name.kind() != FileKind::History));
            }
        }
    }

    #[test]
    fn fuzz_object_name() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let segment = FileName::parse("000000010000000000000001").expect("a segment's name");
            if let Some(name) = FileName::parse(text) {
                let _ = (name.kind(), name.tli());
            }
            if let Some(chunk) = ChunkName::parse(&segment, text) {
                assert_eq!(chunk.file_name(), text);
            }
        });
    }
}
