//! A round through the sources for a simulation that takes its steps: what [`Recall`](super::Recall) asks for, and how it
//! verifies what comes. What it makes of the answers is mirrored here, without its waiting, its turns and its files.

use walrelay_proto::{SegNo, TimelineId, WalFileName, WalIdentity};

use super::arriving::{Refusal, verified};
use super::candidates::candidates;
use crate::store::Store;

/// What a source says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// All that it has of a file.
    Content(Vec<u8>),
    /// It certainly has no such file.
    None,
    /// Nobody can ask it now.
    Away,
}

/// What a round has come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Round {
    /// The segment, or the part of it that counts.
    Found(Vec<u8>),
    /// Some source could not be asked, and no other has it: there will be another round.
    Unknown,
    /// Copies exist, and none is good.
    Damaged,
    /// No source has it.
    Nowhere,
}

/// One round for a reader of `tli`. `ask` is asked for files by number of the source, `0 .. sources`, and name.
pub fn round(
    store: &Store,
    tli: TimelineId,
    segno: SegNo,
    sources: usize,
    ask: &mut dyn FnMut(usize, &str) -> Said,
) -> Round {
    let Some(identity) = store.identity() else { return Round::Nowhere };
    let id = WalIdentity { system_id: identity.system_id, seg_size: identity.seg_size };
    let (history, name) = (store.history(), WalFileName::new(tli, segno));
    let (mut unknown, mut damaged) = (false, false);
    for wanted in candidates(&history, id.seg_size, name) {
        for source in 0..sources {
            let content = match ask(source, &wanted.text(id.seg_size)) {
                Said::Content(content) => content,
                Said::None => continue,
                Said::Away => {
                    unknown = true;
                    continue;
                }
            };
            let mut found = Vec::with_capacity(content.len());
            let mut put = |piece: &[u8]| {
                found.extend_from_slice(piece);
                Ok(())
            };
            match verified(&mut &content[..], wanted, id, &history, &mut put) {
                Ok(()) => return Round::Found(found),
                Err(Refusal::Damaged(_) | Refusal::Incomplete | Refusal::Disk(_)) => damaged = true,
            }
        }
    }
    match (unknown, damaged) {
        (true, _) => Round::Unknown,
        (false, true) => Round::Damaged,
        (false, false) => Round::Nowhere,
    }
}
