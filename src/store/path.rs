//! The way of a timeline through the segment files: which of them holds a segment for it, and which are missing.

use std::io;
use std::ops::Range;

use walrelay_proto::{Lsn, SegNo, SegSize, TimelineHistory, TimelineId, WalFileName};

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
    pub(super) fn file_for(&self, segno: SegNo) -> Option<FoundSegment> {
        let ancestors = self.history.ancestors().iter().rev();
        let timelines = std::iter::once(self.history.tli()).chain(ancestors.map(|entry| entry.tli));
        timelines
            .filter(|&tli| self.leads_through(tli, segno))
            .find_map(|tli| self.find(WalFileName::new(tli, segno)))
    }

    fn find(&self, name: WalFileName) -> Option<FoundSegment> {
        let at = self.segments.partition_point(|found| found.name < name);
        self.segments.get(at).copied().filter(|found| found.name == name)
    }

    /// Whether the way goes through this segment on `tli`: an abandoned branch may have files beyond its switch point.
    fn leads_through(&self, tli: TimelineId, segno: SegNo) -> bool {
        let start = segno.start(self.size);
        self.history.switch_point(tli).is_none_or(|(left_at, _)| start < left_at)
    }

    /// Whether this is a segment of an older timeline all of which lies on the way: complete, though a crash may have
    /// come before it got its name.
    pub(super) fn is_whole(&self, found: &FoundSegment) -> bool {
        let end = found.name.segno.end(self.size);
        self.history.switch_point(found.name.tli).is_some_and(|(left_at, _)| end <= left_at)
            && self.file_for(found.name.segno) == Some(*found)
    }

    /// The segments without a file between the oldest that has one, or `from` if that is before it, and the one that
    /// holds `end`, in order.
    pub(super) fn holes(&self, from: Option<Lsn>, end: Lsn) -> Vec<Range<SegNo>> {
        let mut held: Vec<SegNo> = self.segments.iter().map(|found| found.name.segno).collect();
        held.sort_unstable();
        held.dedup();
        held.retain(|&segno| self.file_for(segno).is_some());
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
    fn a_segment_is_looked_for_on_the_newest_timeline_first_and_never_beyond_a_switch() {
        let path = path(&[(1, 5, false), (1, 6, true), (1, 7, false), (2, 6, false), (2, 8, true)]);
        let found = |number| path.file_for(segno(number)).map(|found| found.name.tli.as_u32());
        assert_eq!([5, 6, 7, 8].map(found), [Some(1), Some(2), None, Some(2)]);
        assert_eq!([5, 6, 7].map(|number| path.name_of(segno(number)).tli.as_u32()), [1, 2, 2]);
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
