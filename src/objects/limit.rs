//! How large something may be that is read whole: what it should be, not what somebody has put there.

use std::fmt;
use std::sync::Arc;

use walrelay_proto::WalIdentity;

/// Bytes of the texts beside WAL: history files, backup labels. PostgreSQL's longest history has some kilobytes.
pub(crate) const TEXT: u64 = 4 << 20;
/// Bytes of a checksum object, or of a marker.
pub(crate) const LINE: u64 = 4 << 10;
/// What may be read before anything is known: a segment of PostgreSQL's default size, and what storing adds to it.
pub(crate) const UNSEEN: u64 = (16 << 20) + overhead(16 << 20);
/// Bytes of a segment that say how long it is: its first page's header.
pub(crate) const HEADER: usize = 40;
/// Stored bytes in which that header is, however it is compressed: blocks of LZ4 frames hold up to 8 MB.
const PEEK_PACKED: usize = 9 << 20;

/// What compression and encryption may add to something that cannot be compressed.
pub(crate) const fn overhead(plain: u64) -> u64 {
    plain / 64 + (64 << 10)
}

/// Looks at the beginning of something large, and its size.
type Judge = Arc<dyn Fn(&[u8], u64) -> Result<(), String> + Send + Sync>;

/// How large an object may be.
#[derive(Clone)]
pub(crate) struct Limit {
    /// Up to this size it is read without being looked at.
    small: u64,
    /// How much of a larger one is looked at.
    pub(crate) peek: usize,
    judge: Option<Judge>,
}

impl Limit {
    /// At most so many bytes.
    pub(crate) fn most(bytes: u64) -> Limit {
        Limit { small: bytes, peek: 0, judge: None }
    }

    /// As long as the first page of the segment says, which is stored as it is.
    pub(crate) fn segment() -> Limit {
        let judge = |beginning: &[u8], size| fits(segment_size(beginning), size, false);
        Limit { small: UNSEEN, peek: HEADER, judge: Some(Arc::new(judge)) }
    }

    /// The same, for one that `header_of` reads the first bytes of, from the first bytes stored.
    pub(crate) fn packed_segment(
        header_of: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Limit {
        let judge = move |beginning: &[u8], size| {
            fits(header_of(beginning).and_then(|header| segment_size(&header)), size, true)
        };
        Limit { small: UNSEEN, peek: PEEK_PACKED, judge: Some(Arc::new(judge)) }
    }

    /// Whether its beginning has to be looked at first; an error if it is too large anyway.
    pub(crate) fn must_look(&self, size: u64) -> Result<bool, String> {
        match (size <= self.small, &self.judge) {
            (true, _) => Ok(false),
            (false, Some(_)) => Ok(true),
            (false, None) => Err(format!("it is {size} bytes long, expected at most {}", self.small)),
        }
    }

    /// Whether something of this size that begins so may be read.
    pub(crate) fn judge(&self, beginning: &[u8], size: u64) -> Result<(), String> {
        self.judge.as_ref().map_or(Ok(()), |judge| judge(beginning, size))
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit").field("small", &self.small).finish_non_exhaustive()
    }
}

/// How long a segment is that begins so.
pub(crate) fn segment_size(beginning: &[u8]) -> Option<u64> {
    WalIdentity::of_segment(beginning).map(|id| id.seg_size.bytes())
}

fn fits(segment: Option<u64>, size: u64, packed: bool) -> Result<(), String> {
    let Some(segment) = segment else {
        return Err(format!("it is {size} bytes long and does not begin as a WAL segment does"));
    };
    let most = if packed { segment + overhead(segment) } else { segment };
    match size <= most {
        true => Ok(()),
        false => Err(format!("it is {size} bytes long, expected {segment}")),
    }
}
