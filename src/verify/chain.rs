//! Which segments belong together, which of them are read in one go, and which are missing.

use std::collections::{BTreeMap, BTreeSet};

use walrelay_proto::{SegNo, TimelineId, WalFileName};

use super::place::{Found, Kind, Place};
use crate::archive::missing_segments;

/// Segments that are read by one thread in one go.
const SHARD: usize = 32;

/// Neighbours to verify one after the other, by their number in [`Place::segments`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shard {
    pub(super) files: Vec<usize>,
}

/// The segments of a place, in their order.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) shards: Vec<Shard>,
    /// Segments that should be there.
    pub(super) missing: Vec<WalFileName>,
    /// Timelines of which there is WAL and no history.
    pub(super) without_history: Vec<TimelineId>,
    /// Files in which the WAL of their timeline may end.
    may_end: BTreeSet<usize>,
}

impl Chain {
    pub(super) fn of(place: &Place) -> Chain {
        let mut timelines: BTreeMap<TimelineId, Vec<usize>> = BTreeMap::new();
        for (number, found) in place.segments.iter().enumerate() {
            timelines.entry(found.name.tli).or_default().push(number);
        }
        let (mut shards, mut may_end) = (Vec::new(), BTreeSet::new());
        let mut held: BTreeMap<TimelineId, BTreeSet<SegNo>> = BTreeMap::new();
        for (&tli, files) in &mut timelines {
            drop_unused(place, files);
            may_end.extend(ends(place, files));
            held.insert(tli, files.iter().map(|&file| place.segments[file].name.segno).collect());
            shards.extend(shards_of(place, files));
        }
        held.retain(|_, segnos| !segnos.is_empty());
        let without_history = held.keys().filter(|tli| !place.histories.contains_key(tli)).copied().collect();
        let missing = missing_segments(&held, &place.histories, place.id.seg_size);
        Chain { shards, missing, without_history, may_end }
    }

    /// Whether the WAL of the timeline may end inside this file.
    pub(super) fn may_end_in(&self, file: usize) -> bool {
        self.may_end.contains(&file)
    }
}

/// Whether a file may hold less WAL than its size.
fn is_unfinished(place: &Place, found: &Found) -> bool {
    found.partial || place.kind == Kind::Server
}

/// Files that are ready for WAL that has not come: a server keeps old segments under the names of later ones.
fn drop_unused(place: &Place, files: &mut Vec<usize>) {
    while let Some(found) = files.last().map(|&last| &place.segments[last]) {
        if !is_unfinished(place, found) || found.has_begun(place.id) {
            break;
        }
        files.pop();
    }
}

/// As recovery does: a relay's WAL ends in any file behind which none is finished, a server's in its last one.
fn ends(place: &Place, files: &[usize]) -> Vec<usize> {
    let unfinished = files.iter().rev().take_while(|&&file| is_unfinished(place, &place.segments[file]));
    let most = if place.kind == Kind::Server { 1 } else { usize::MAX };
    unfinished.take(most).copied().collect()
}

fn shards_of(place: &Place, files: &[usize]) -> Vec<Shard> {
    let segno = |file: usize| place.segments[file].name.segno;
    let neighbours = files.chunk_by(|&one, &other| segno(one).next() == segno(other));
    neighbours.flat_map(|run| run.chunks(SHARD)).map(|files| Shard { files: files.to_vec() }).collect()
}
