//! What is to be stored.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::sidecar::{Sha256, Summing};
use crate::objects::Unreadable;
use crate::store::{Segment, UnfinishedFile};

/// Bytes that are copied at a time.
const STEP: usize = 128 << 10;

/// What is to be stored: bytes, what a segment has in a range, or a file that may be written to meanwhile.
///
/// A segment's file may go bad while it is read. Then that is an error: what is read is copied out of the map by the
/// kernel. So is a file that is not the same each time it is read to its end.
#[derive(Clone)]
pub struct Content(Kind);

#[derive(Clone)]
enum Kind {
    Bytes(Bytes),
    Segment {
        segment: Arc<Segment>,
        start: u64,
        len: u64,
    },
    /// With the digest of what was read first.
    File {
        file: Arc<UnfinishedFile>,
        first: Arc<OnceLock<Sha256>>,
    },
}

impl Content {
    /// What is published of a segment now.
    pub fn of(segment: Arc<Segment>) -> Content {
        let len = segment.published();
        Content(Kind::Segment { segment, start: 0, len })
    }

    /// Bytes `start..end` of a segment, which are published.
    pub fn part(segment: Arc<Segment>, start: u64, end: u64) -> Content {
        Content(Kind::Segment { segment, start, len: end - start })
    }

    /// All of a file as it is now, of which no copy could be made. It is read piece by piece.
    pub fn file(file: UnfinishedFile) -> Content {
        Content(Kind::File { file: Arc::new(file), first: Arc::default() })
    }

    /// How many bytes they are.
    pub fn len(&self) -> u64 {
        match &self.0 {
            Kind::Bytes(bytes) => bytes.len() as u64,
            Kind::Segment { len, .. } => *len,
            Kind::File { file, .. } => file.size(),
        }
    }

    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads it from its first byte on.
    pub fn reader(&self) -> Reader {
        let sum = matches!(self.0, Kind::File { .. }).then(|| Summing::new(io::sink()));
        Reader { content: self.clone(), at: 0, sum }
    }

    /// Writes all of it.
    pub fn write_to(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        if let Kind::Bytes(bytes) = &self.0 {
            return out.write_all(bytes);
        }
        let (mut from, mut piece) = (self.reader(), vec![0; STEP]);
        loop {
            match from.read(&mut piece)? {
                0 => return Ok(()),
                len => out.write_all(&piece[..len])?,
            }
        }
    }

    /// The digest of it. Takes processor time, and may wait for the disk.
    pub fn digest(&self) -> io::Result<Sha256> {
        let mut sum = Summing::new(io::sink());
        self.write_to(&mut sum)?;
        Ok(sum.finish().0)
    }

    /// All of it in one piece, for those who take nothing else, and not a copy: it may be as long as a segment. A page that
    /// cannot be read ends the process (`store::Segment::bytes`). `None` for a file, which is nowhere in one piece.
    pub(crate) fn whole(&self) -> Option<Bytes> {
        match &self.0 {
            Kind::Bytes(bytes) => Some(bytes.clone()),
            Kind::Segment { segment, start, len } => {
                let (start, len) = (*start, *len as usize);
                Some(Bytes::from_owner(Mapped { segment: segment.clone(), start, len }))
            }
            Kind::File { .. } => None,
        }
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Content {
        Content(Kind::Bytes(bytes))
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Content {
        Content(Kind::Bytes(bytes.into()))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.len())
    }
}

/// A part of the shared map, as bytes that keep it mapped.
struct Mapped {
    segment: Arc<Segment>,
    start: u64,
    len: usize,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.segment.bytes(self.start, self.len)
    }
}

/// Reads a [`Content`].
pub struct Reader {
    content: Content,
    at: u64,
    /// Of what was read of a file.
    sum: Option<Summing<io::Sink>>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({:?} at {})", self.content, self.at)
    }
}

impl Reader {
    /// The end of a file is reached: was it the same as before?
    fn end(&mut self) -> io::Result<()> {
        if let (Kind::File { first, .. }, Some(sum)) = (&self.content.0, self.sum.take()) {
            let (sum, _) = sum.finish();
            if *first.get_or_init(|| sum) != sum {
                return Err(io::Error::other("it was written to while it was read; it is tried again"));
            }
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = (self.content.len() - self.at).min(buffer.len() as u64) as usize;
        match &self.content.0 {
            Kind::Bytes(bytes) => buffer[..len].copy_from_slice(&bytes[self.at as usize..][..len]),
            Kind::Segment { segment, start, .. } => {
                let read = segment.read(start + self.at, &mut buffer[..len]);
                read.map_err(|error| io::Error::other(Unreadable(error)))?;
            }
            Kind::File { file, .. } => {
                let read = file.read_exact_at(&mut buffer[..len], self.at);
                read.map_err(|error| io::Error::other(Unreadable(error)))?;
            }
        }
        self.at += len as u64;
        if let Some(sum) = &mut self.sum {
            sum.write_all(&buffer[..len])?;
        }
        if self.at == self.content.len() {
            self.end()?;
        }
        Ok(len)
    }
}
