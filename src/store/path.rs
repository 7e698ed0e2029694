//! The way of a timeline through the segment files: which of them holds a segment for it, and which are missing.

use std::io;
use std::ops::Range;

use walrelay_proto::{Lsn, SegNo, SegSize, TimelineHistory, WalFileName};

use super::dir::{DataDir, FoundSegment};

/// The segment files of a data directory, seen from a timeline.
#[derive(Debug)]
pub(super) struct WalPath {
    size: SegSize,
    history: TimelineHistory,
    /// Sorted.
    segments: Vec<FoundSegment>,
}

impl WalPath {
    /// Lists the directory; what is put there later is not seen.
    pub(super) fn read(dir: &DataDir, size: SegSize, history: TimelineHistory) -> io::Result<WalPath> {
        Ok(WalPath { size, history, segments: dir.segments(size)? })
    }

    /// The timeline's history.
    pub(super) fn history(&self) -> &TimelineHistory {
        &self.history
    }

    /// All segment files, also those of other branches.
    pub(super) fn segments(&self) -> &[FoundSegment] {
        &self.segments
    }

    /// The file that holds `segno` on the way to the timeline; the finished one where there are two.
    ///
    /// The file of one name only: an ancestor's of the same number holds what was left there behind the switch, or
    /// nothing.
    pub(super) fn file_for(&self, segno: SegNo) -> Option<FoundSegment> {
        self.find(self.name_of(segno))
    }

    /// The first segment that is looked for on the timeline itself and on no ancestor.
    pub(super) fn first_of_its_own(&self) -> SegNo {
        self.history.begin().seg_at(self.size)
    }

    fn find(&self, name: WalFileName) -> Option<FoundSegment> {
        let at = self.segments.partition_point(|found| found.name < name);
        self.segments.get(at).copied().filter(|found| found.name == name)
    }

    /// Whether this file holds its segment on the way.
    pub(super) fn leads_through(&self, found: &FoundSegment) -> bool {
        self.file_for(found.name.segno) == Some(*found)
    }

    /// Where files go on behind a hole that begins with `hole`, if all WAL before them is sure to have been durable:
    /// it was when a segment got its final name, and when a timeline got its first segment. `None` if nothing says
    /// so, or there are none.
    pub(super) fn durable_behind(&self, hole: SegNo) -> Option<SegNo> {
        let behind =
            || self.segments.iter().filter(|found| found.name.segno > hole && self.leads_through(found));
        let is_sure = hole <= self.first_of_its_own() || behind().any(|found| !found.partial);
        behind().map(|found| found.name.segno).min().filter(|_| is_sure)
    }

    /// The first segment of those that lead to `segno` without a hole; `segno` itself where there are none.
    pub(super) fn oldest_before(&self, segno: SegNo) -> SegNo {
        let mut oldest = segno;
        while let Some(before) = oldest.prev().filter(|&before| self.file_for(before).is_some()) {
            oldest = before;
        }
        oldest
    }

    /// The segments without a file between the oldest that has one, or `from` if that is before it, and the one that
    /// holds `end`, in order.
    pub(super) fn holes(&self, from: Option<Lsn>, end: Lsn) -> Vec<Range<SegNo>> {
        let on_the_way = self.segments.iter().filter(|found| self.leads_through(found));
        let mut held: Vec<SegNo> = on_the_way.map(|found| found.name.segno).collect();
        held.sort_unstable();
        let tail = end.seg_at(self.size);
        let Some(&oldest) = held.first() else { return Vec::new() };
        let mut next = from.map_or(oldest, |from| from.seg_at(self.size).min(oldest));
        let mut holes = Vec::new();
        for segno in held.into_iter().take_while(|&segno| segno < tail).chain([tail]) {
            if next < segno {
                holes.push(next..segno);
            }
            next = segno.next();
        }
        holes
    }

    /// The name under which a server of the timeline has this segment.
    pub(super) fn name_of(&self, segno: SegNo) -> WalFileName {
        WalFileName::new(self.history.timeline_at(segno.end(self.size).rewind(1)), segno)
    }
}

#[cfg(test)]
mod tests {
    use walrelay_proto::TimelineId;

    use super::*;

    fn segno(number: u64) -> SegNo {
        SegNo::new(number)
    }

    /// Timeline 2 left 1 in the middle of segment 6.
    fn path(files: &[(u32, u64, bool)]) -> WalPath {
        let size = SegSize::new(1 << 20).unwrap();
        let fork = segno(6).start(size).advance(5000);
        let second = TimelineId::new(2).unwrap();
        let history = TimelineHistory::parse(second, format!("1\t{fork}\tx\n").as_bytes()).unwrap();
        let mut segments: Vec<_> = files
            .iter()
            .map(|&(tli, number, partial)| {
                let name = WalFileName::new(TimelineId::new(tli).unwrap(), segno(number));
                FoundSegment { name, partial }
            })
            .collect();
        segments.sort();
        WalPath { size, history, segments }
    }

    #[test]
    fn a_segment_is_looked_for_on_the_timeline_of_its_end() {
        let files = [(1, 5, false), (1, 6, true), (1, 7, false), (2, 4, false), (2, 6, false), (2, 8, true)];
        let found =
            |path: &WalPath, number| path.file_for(segno(number)).map(|found| found.name.tli.as_u32());
        let all = path(&files);
        assert_eq!(
            [4, 5, 6, 7, 8].map(|number| found(&all, number)),
            [None, Some(1), Some(2), None, Some(2)]
        );
        assert_eq!([5, 6, 7].map(|number| all.name_of(segno(number)).tli.as_u32()), [1, 2, 2]);
        assert_eq!((all.oldest_before(segno(6)), all.oldest_before(segno(8))), (segno(5), segno(8)));
        let without_first: Vec<_> = files.into_iter().filter(|file| *file != (2, 6, false)).collect();
        assert_eq!(found(&path(&without_first), 6), None, "its predecessor's is another");
        let at = segno(8).start(SegSize::new(1 << 20).unwrap()).advance(8);
        assert_eq!(path(&without_first).holes(None, at), [segno(6)..segno(8)]);
    }

    #[test]
    fn what_lies_behind_a_hole_counts_where_all_before_it_was_durable() {
        let behind = |files: &[(u32, u64, bool)], hole| path(files).durable_behind(segno(hole));
        assert_eq!(behind(&[(1, 5, true), (2, 7, true)], 6), Some(segno(7)), "the first of a timeline");
        assert_eq!(behind(&[(1, 3, true), (2, 6, true)], 4), Some(segno(6)), "an ancestor's");
        assert_eq!(behind(&[(2, 6, true), (2, 8, true), (2, 9, false)], 7), Some(segno(8)), "a name");
        assert_eq!(behind(&[(2, 6, true), (2, 8, true), (1, 9, false)], 7), None);
        assert_eq!(behind(&[(1, 5, true), (1, 6, true)], 6), None);
    }

    #[test]
    fn holes_lie_between_the_oldest_that_is_needed_or_held_and_the_tail() {
        let size = SegSize::new(1 << 20).unwrap();
        let at = |number| segno(number).start(size).advance(8);
        let path = path(&[(1, 3, false), (1, 5, false), (1, 7, false), (2, 8, false), (2, 9, true)]);
        assert_eq!(path.holes(None, at(9)), [segno(4)..segno(5), segno(6)..segno(8)]);
        assert_eq!(path.holes(Some(at(4)), at(9)).len(), 2);
        assert_eq!(path.holes(Some(at(2)), at(5)), [segno(2)..segno(3), segno(4)..segno(5)]);
        // The tail's own segment may not have begun; but what lies before it is missing with it.
        assert_eq!(path.holes(None, at(11)).last(), Some(&(segno(10)..segno(11))));
        assert!(super::tests::path(&[]).holes(None, at(9)).is_empty());
    }
}
