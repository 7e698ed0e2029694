//! Whether what is stored is what should be, found out while it comes: a segment may have 1 GB, and little of it is in
//! memory at a time.

use std::io::{self, BufReader, Read};

use walrelay_proto::TimelineHistory;

use crate::archive::repo::check::{self, Gradual};
use crate::archive::repo::codec::{Codec, Format};
use crate::archive::repo::name::{FileKind, FileName};
use crate::archive::repo::sidecar::{Sha256, Summed};
use crate::objects::buffer::fill;
use crate::objects::limit;

/// Bytes looked at in one go; more than the two pages that [`Gradual`] wants first.
const STEP: usize = 128 << 10;

/// What a comparison has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Compared {
    /// The same content; digest and size of what is stored.
    Same { sha256: Sha256, size: u64 },
    /// The first bytes of the same content, so many.
    Beginning { len: usize },
    /// Other content, or nothing that can be read. `is_good`: it can be what it is called, a segment's WAL or a history;
    /// said only to who has asked for it.
    Other { is_good: bool },
}

/// Compares what is `stored` in this format for a file with its content. `judge`: other content is looked at to its end.
pub(super) fn with(
    stored: &mut dyn Read,
    codec: &Codec,
    format: Format,
    plain: &[u8],
    name: &FileName,
    judge: bool,
) -> Compared {
    let mut stored = Summed::new(stored);
    let compared = match codec.reader(BufReader::with_capacity(STEP, &mut stored), format) {
        Ok(mut content) => content_with(&mut content, plain, name, judge),
        Err(_) => Content::Other { is_good: false },
    };
    match compared {
        Content::Other { is_good } => Compared::Other { is_good },
        Content::Beginning { len } => Compared::Beginning { len },
        // What comes behind it belongs to what is stored, too.
        Content::Same => match io::copy(&mut stored, &mut io::sink()) {
            Ok(_) => {
                let (sha256, size) = stored.finish();
                Compared::Same { sha256, size }
            }
            Err(_) => Compared::Other { is_good: false },
        },
    }
}

enum Content {
    Same,
    Beginning { len: usize },
    Other { is_good: bool },
}

fn content_with(content: &mut dyn Read, plain: &[u8], name: &FileName, judge: bool) -> Content {
    let (mut piece, mut at) = (vec![0; STEP], 0);
    loop {
        match fill(content, &mut piece) {
            Err(_) => return Content::Other { is_good: false },
            Ok(0) if at == plain.len() => return Content::Same,
            Ok(0) => return Content::Beginning { len: at },
            Ok(len) if plain[at..].starts_with(&piece[..len]) => at += len,
            Ok(len) => {
                let is_good = judge && is_good(name, &plain[..at], &piece[..len], content);
                return Content::Other { is_good };
            }
        }
    }
}

/// Whether this can be what it is called: a segment's WAL, a history. It comes in three parts.
fn is_good(name: &FileName, before: &[u8], piece: &[u8], rest: &mut dyn Read) -> bool {
    match name.kind() {
        FileKind::Segment => is_good_segment(name, before, piece, rest).is_some(),
        FileKind::History => {
            let mut content = [before, piece].concat();
            let read = rest.take(limit::TEXT).read_to_end(&mut content);
            read.is_ok() && TimelineHistory::parse(name.tli(), &content).is_ok()
        }
        // Nothing tells.
        FileKind::Partial | FileKind::Backup => false,
    }
}

fn is_good_segment(name: &FileName, before: &[u8], piece: &[u8], rest: &mut dyn Read) -> Option<()> {
    // Only the last piece is a short one.
    let first = if before.is_empty() { piece } else { before };
    let id = check::identity_of(first).ok()?;
    let mut segment = Gradual::new(id, name.wal(id.seg_size)?);
    if !before.is_empty() {
        segment.push(before).ok()?;
    }
    segment.push(piece).ok()?;
    let mut next = vec![0; STEP];
    loop {
        match fill(rest, &mut next).ok()? {
            0 => return segment.finish().ok(),
            len => segment.push(&next[..len]).ok()?,
        }
    }
}
