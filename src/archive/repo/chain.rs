//! Which segments belong to timelines, as far as those that are there tell.

use std::collections::{BTreeMap, BTreeSet};

use walrelay_proto::{HistoryEntry, SegNo, SegSize, TimelineHistory, TimelineId, WalFileName};

/// The segments that should be there and are not, given those that are: between the first and the last of each
/// timeline, from where it begins, if there is anything on the way to it, to where it was left, if there is anything of a
/// timeline that forked off it.
pub fn missing_segments(
    held: &BTreeMap<TimelineId, BTreeSet<SegNo>>,
    histories: &BTreeMap<TimelineId, TimelineHistory>,
    size: SegSize,
) -> Vec<WalFileName> {
    let missing = |(&tli, segnos): (&TimelineId, &BTreeSet<SegNo>)| {
        let (Some(&first), Some(&last)) = (segnos.first(), segnos.last()) else { return Vec::new() };
        let (from, to) = expected(tli, first, last, held, histories, size);
        let numbers = (from.as_u64()..=to.as_u64()).map(SegNo::new);
        let absent = numbers.filter(|segno| !segnos.contains(segno));
        absent.map(|segno| WalFileName::new(tli, segno)).collect::<Vec<_>>()
    };
    held.iter().flat_map(missing).collect()
}

fn expected(
    tli: TimelineId,
    first: SegNo,
    last: SegNo,
    held: &BTreeMap<TimelineId, BTreeSet<SegNo>>,
    histories: &BTreeMap<TimelineId, TimelineHistory>,
    size: SegSize,
) -> (SegNo, SegNo) {
    let (mut from, mut to) = (first, last);
    if let Some(history) = histories.get(&tli) {
        // What an ancestor has behind the point where it was left is not on the way.
        let begin = history.begin().seg_at(size);
        let on_the_way = |entry: &HistoryEntry| {
            let first = held.get(&entry.tli).and_then(BTreeSet::first);
            first.is_some_and(|&first| first < begin.min(entry.end.seg_at(size)))
        };
        if history.ancestors().iter().any(on_the_way) {
            from = from.min(begin);
        }
    }
    for child in held.keys() {
        let left_at = histories.get(child).and_then(|history| history.switch_point(tli));
        // Where it was left, the segment is the next timeline's.
        if let Some(before) = left_at.and_then(|(left_at, _)| left_at.seg_at(size).prev()) {
            to = to.max(before);
        }
    }
    (from, to)
}
