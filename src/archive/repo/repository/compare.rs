//! Whether what is stored is what should be, found out while it comes: a segment may have 1 GB, and little of it is in
//! memory at a time.

use std::io::{self, BufReader, Read};

use walrelay_proto::TimelineHistory;

use crate::archive::repo::check::{self, Gradual};
use crate::archive::repo::codec::{Codec, Format};
use crate::archive::repo::content::Content;
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
    Beginning { len: u64 },
    /// Other content, or nothing that can be read. `is_good`: it can be what it is called, a segment's WAL or a history;
    /// said only to who has asked for it.
    Other { is_good: bool },
}

/// Compares what is `stored` in this format for a file with its content. `judge`: other content is looked at to its end.
///
/// # Errors
/// The content cannot be read.
pub(super) fn with(
    stored: &mut dyn Read,
    codec: &Codec,
    format: Format,
    plain: &Content,
    name: &FileName,
    judge: bool,
) -> io::Result<Compared> {
    let mut stored = Summed::new(stored);
    let compared = match codec.reader(BufReader::with_capacity(STEP, &mut stored), format) {
        Ok(mut content) => content_with(&mut content, plain, name, judge)?,
        Err(_) => Same::Not { is_good: false },
    };
    Ok(match compared {
        Same::Not { is_good } => Compared::Other { is_good },
        Same::Beginning { len } => Compared::Beginning { len },
        // What comes behind it belongs to what is stored, too.
        Same::All => match io::copy(&mut stored, &mut io::sink()) {
            Ok(_) => {
                let (sha256, size) = stored.finish();
                Compared::Same { sha256, size }
            }
            Err(_) => Compared::Other { is_good: false },
        },
    })
}

/// How much is the same.
enum Same {
    All,
    Beginning { len: u64 },
    Not { is_good: bool },
}

fn content_with(content: &mut dyn Read, plain: &Content, name: &FileName, judge: bool) -> io::Result<Same> {
    let (mut ours, mut at) = (plain.reader(), 0);
    let (mut piece, mut expected) = (vec![0; STEP], vec![0; STEP]);
    loop {
        let Ok(len) = fill(content, &mut piece) else { return Ok(Same::Not { is_good: false }) };
        if len == 0 {
            return Ok(if at == plain.len() { Same::All } else { Same::Beginning { len: at } });
        }
        let piece = &piece[..len];
        let there = fill(&mut ours, &mut expected[..len])?;
        if &expected[..there] != piece {
            let mut all = plain.reader().take(at).chain(piece).chain(content);
            return Ok(Same::Not { is_good: judge && is_good(name, &mut all) });
        }
        at += len as u64;
    }
}

/// Whether this can be what it is called: a segment's WAL, a history.
fn is_good(name: &FileName, all: &mut dyn Read) -> bool {
    match name.kind() {
        FileKind::Segment => is_good_segment(name, all).is_some(),
        FileKind::History => {
            let mut content = Vec::new();
            let read = all.take(limit::TEXT).read_to_end(&mut content);
            read.is_ok() && TimelineHistory::parse(name.tli(), &content).is_ok()
        }
        // Nothing tells.
        FileKind::Partial | FileKind::Backup => false,
    }
}

fn is_good_segment(name: &FileName, all: &mut dyn Read) -> Option<()> {
    let mut next = vec![0; STEP];
    let len = fill(all, &mut next).ok()?;
    let id = check::identity_of(&next[..len]).ok()?;
    let mut segment = Gradual::new(id, name.wal(id.seg_size)?);
    segment.push(&next[..len]).ok()?;
    loop {
        match fill(all, &mut next).ok()? {
            0 => return segment.finish().ok(),
            len => segment.push(&next[..len]).ok()?,
        }
    }
}
