//! What a target has got: kept in the data directory as `archive-<target>.toml`, replaced whole.
//!
//! A file is counted only after the target has taken it, and WAL is let go only after that was saved. So a
//! crash makes the archiver offer some files again, which the target answers with "the same", and nothing is
//! ever skipped.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use walrelay_proto::{Lsn, SegNo, SegSize, TimelineId, WalFileName};

use super::name::{FileKind, FileName};
use super::target::is_same_place;

/// WAL that will never reach a target from here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    pub(crate) tli: TimelineId,
    /// First missing segment.
    pub(crate) from: SegNo,
    /// First segment after the gap.
    pub(crate) to: SegNo,
}

/// Segments of one timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Line {
    /// Everything before it is settled.
    next: SegNo,
    /// What is done beyond it.
    beyond: BTreeSet<SegNo>,
}

/// The file of the target with this name.
pub(crate) fn state_file(target: &str) -> String {
    format!("archive-{target}.toml")
}

/// The file for what was sent to the target with this name and not answered.
pub(crate) fn sent_file(target: &str) -> String {
    format!("sent-{target}.toml")
}

/// The marker in a text that was saved for the target with this identity.
pub(crate) fn saved_marker(text: &str, identity: &str) -> Option<String> {
    let saved: Saved = toml::from_str(text).ok()?;
    saved.marker.filter(|_| is_same_place(&saved.target, identity))
}

/// What a target has got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    size: SegSize,
    identity: String,
    /// Where the WAL begins that is there without a gap up to the present.
    since: Option<Lsn>,
    lines: BTreeMap<TimelineId, Line>,
    files: BTreeSet<FileName>,
    gaps: Vec<Gap>,
    /// How many of these somebody has looked at.
    dismissed_gaps: usize,
    /// Files that may have been written in vain: a sync in the target has failed.
    suspects: BTreeSet<FileName>,
    /// What tells the target's directory from the one that its file system is mounted on.
    marker: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Saved {
    target: String,
    marker: Option<String>,
    since: Option<String>,
    #[serde(default)]
    write_again: Vec<String>,
    #[serde(default)]
    files: Vec<String>,
    #[serde(default, skip_serializing_if = "is_none")]
    dismissed_gaps: usize,
    #[serde(default)]
    timeline: Vec<SavedLine>,
    #[serde(default)]
    gap: Vec<SavedGap>,
}

#[derive(Serialize, Deserialize)]
struct SavedLine {
    next: String,
    #[serde(default)]
    beyond: Vec<String>,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

#[derive(Serialize, Deserialize)]
struct SavedGap {
    from: String,
    to: String,
}

impl Progress {
    /// Nothing yet, for a target with this identity.
    pub(crate) fn new(size: SegSize, identity: String) -> Progress {
        let (lines, files) = (BTreeMap::new(), BTreeSet::new());
        Progress {
            size,
            identity,
            since: None,
            lines,
            files,
            gaps: Vec::new(),
            dismissed_gaps: 0,
            suspects: BTreeSet::new(),
            marker: None,
        }
    }

    /// Reads what was saved. Another place than then has got nothing yet; `None` if the text cannot be used.
    pub(crate) fn parse(text: &str, size: SegSize, identity: &str) -> Option<Progress> {
        let saved: Saved = toml::from_str(text).ok()?;
        let mut progress = Progress::new(size, identity.to_owned());
        if !is_same_place(&saved.target, identity) {
            return Some(progress);
        }
        let segment = |text: &String| WalFileName::parse(text, size);
        progress.since = saved.since.map(|text| text.parse()).transpose().ok()?;
        progress.marker = saved.marker;
        progress.dismissed_gaps = saved.dismissed_gaps;
        progress.suspects =
            saved.write_again.iter().map(|text| FileName::parse(text)).collect::<Option<_>>()?;
        progress.files = saved.files.iter().map(|text| FileName::parse(text)).collect::<Option<_>>()?;
        for line in &saved.timeline {
            let next = segment(&line.next)?;
            let beyond = line.beyond.iter().map(|text| Some(segment(text)?.segno)).collect::<Option<_>>()?;
            progress.lines.insert(next.tli, Line { next: next.segno, beyond });
        }
        for gap in &saved.gap {
            let (from, to) = (segment(&gap.from)?, segment(&gap.to)?);
            progress.gaps.push(Gap { tli: from.tli, from: from.segno, to: to.segno });
        }
        Some(progress)
    }

    /// The text to save.
    pub(crate) fn format(&self) -> String {
        let name = |tli: TimelineId, segno: SegNo| WalFileName::new(tli, segno).format(self.size);
        let line = |(tli, line): (&TimelineId, &Line)| SavedLine {
            next: name(*tli, line.next),
            beyond: line.beyond.iter().map(|segno| name(*tli, *segno)).collect(),
        };
        let gap = |gap: &Gap| SavedGap { from: name(gap.tli, gap.from), to: name(gap.tli, gap.to) };
        let saved = Saved {
            target: self.identity.clone(),
            marker: self.marker.clone(),
            since: self.since.map(|lsn| lsn.to_string()),
            write_again: self.suspects.iter().map(FileName::to_string).collect(),
            files: self.files.iter().map(FileName::to_string).collect(),
            dismissed_gaps: self.dismissed_gaps,
            timeline: self.lines.iter().map(line).collect(),
            gap: self.gaps.iter().map(gap).collect(),
        };
        toml::to_string(&saved).expect("strings and lists can be written")
    }

    /// Whether a file is settled.
    pub(crate) fn is_done(&self, name: &FileName) -> bool {
        let Some(wal) = name.wal(self.size).filter(|_| name.kind() == FileKind::Segment) else {
            return self.files.contains(name);
        };
        let done = |line: &Line| wal.segno < line.next || line.beyond.contains(&wal.segno);
        self.lines.get(&wal.tli).is_some_and(done)
    }

    /// Counts a file as settled.
    pub(crate) fn mark(&mut self, name: &FileName) {
        self.suspects.remove(name);
        match name.wal(self.size).filter(|_| name.kind() == FileKind::Segment) {
            None => drop(self.files.insert(name.clone())),
            Some(wal) => {
                let line = self.line(wal);
                if wal.segno >= line.next {
                    line.beyond.insert(wal.segno);
                    line.advance();
                }
            }
        }
    }

    /// Files that have to be written again, as far as they are not settled.
    pub(crate) fn suspect(&mut self, names: impl Iterator<Item = FileName>) {
        self.suspects.extend(names);
    }

    /// Whether what the target has of a file may be lost.
    pub(crate) fn is_suspect(&self, name: &FileName) -> bool {
        self.suspects.contains(name)
    }

    /// Whether the target has taken anything.
    pub(crate) fn has_anything(&self) -> bool {
        let first = self.since.map(|since| since.seg_at(self.size));
        let moved = |line: &Line| first.is_some_and(|first| line.next > first) || !line.beyond.is_empty();
        !self.files.is_empty() || self.lines.values().any(moved)
    }

    /// What tells the target's directory from others in its place, once it was used.
    pub(crate) fn marker(&self) -> Option<&str> {
        self.marker.as_deref()
    }

    /// Notes that.
    pub(crate) fn set_marker(&mut self, marker: String) {
        self.marker = Some(marker);
    }

    /// The first segment of a timeline that is not settled; `None` for a timeline not seen yet.
    pub(crate) fn next(&self, tli: TimelineId) -> Option<SegNo> {
        self.lines.get(&tli).map(|line| line.next)
    }

    /// Begins with a timeline at a segment, unless it has begun.
    pub(crate) fn begin(&mut self, first: WalFileName) {
        self.line(first);
    }

    fn line(&mut self, first: WalFileName) -> &mut Line {
        let start = first.segno.start(self.size);
        self.since.get_or_insert(start);
        self.lines.entry(first.tli).or_insert_with(|| Line { next: first.segno, beyond: BTreeSet::new() })
    }

    /// Gives up what is missing of a timeline before `to`; tells the gaps, which are recorded. Between them
    /// may be what is done.
    pub(crate) fn give_up(&mut self, tli: TimelineId, to: SegNo) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let Some(line) = self.lines.get_mut(&tli) else { return gaps };
        while line.next < to {
            let until = line.beyond.first().copied().filter(|done| *done < to).unwrap_or(to);
            gaps.push(Gap { tli, from: line.next, to: until });
            line.next = until;
            line.advance();
        }
        if let Some(last) = gaps.last() {
            self.since = Some(last.to.start(self.size));
        }
        self.gaps.extend(gaps.iter().cloned());
        gaps
    }

    /// How many there are that nobody has looked at.
    pub(crate) fn open_gaps(&self) -> usize {
        self.gaps.len().saturating_sub(self.dismissed_gaps)
    }

    /// Somebody has looked at so many of them, the oldest.
    pub(crate) fn dismiss_gaps(&mut self, looked_at: usize) {
        self.dismissed_gaps += looked_at.min(self.open_gaps());
    }

    /// Notes that the target keeps nothing before this position any more.
    pub(crate) fn removed_before(&mut self, lsn: Lsn) {
        self.since = self.since.map(|since| since.max(lsn));
    }

    /// Where the WAL begins that is there without a gap up to the present.
    pub(crate) fn since(&self) -> Option<Lsn> {
        self.since
    }
}

impl Line {
    fn advance(&mut self) {
        while self.beyond.remove(&self.next) {
            self.next = self.next.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size() -> SegSize {
        SegSize::new(1 << 20).unwrap()
    }

    fn wal(segno: u64) -> WalFileName {
        WalFileName::new(TimelineId::FIRST, SegNo::new(segno))
    }

    #[test]
    fn what_retention_removes_is_not_there_any_more() {
        let mut progress = Progress::new(size(), "x".to_owned());
        progress.removed_before(Lsn::new(9 << 20));
        assert_eq!(progress.since(), None);
        progress.begin(wal(3));
        progress.removed_before(Lsn::new(5 << 20));
        progress.removed_before(Lsn::new(4 << 20));
        assert_eq!(progress.since(), Some(Lsn::new(5 << 20)));
    }

    fn name(segno: u64) -> FileName {
        FileName::segment(wal(segno), size())
    }

    fn began_at(segno: u64) -> Progress {
        let mut progress = Progress::new(size(), "plain s3://b".to_owned());
        progress.begin(wal(segno));
        progress
    }

    #[test]
    fn what_is_done_out_of_order_counts_when_the_rest_is() {
        let mut progress = began_at(3);
        progress.mark(&name(5));
        assert_eq!(progress.next(TimelineId::FIRST), Some(SegNo::new(3)));
        assert!(progress.is_done(&name(2)) && progress.is_done(&name(5)) && !progress.is_done(&name(4)));
        progress.mark(&name(3));
        progress.mark(&name(4));
        assert_eq!(progress.next(TimelineId::FIRST), Some(SegNo::new(6)));
        let history = FileName::parse("00000002.history").unwrap();
        assert!(!progress.is_done(&history));
        progress.mark(&history);
        assert!(progress.is_done(&history));
    }

    #[test]
    fn gaps_leave_out_what_is_done() {
        let mut progress = began_at(3);
        progress.mark(&name(5));
        let gaps = progress.give_up(TimelineId::FIRST, SegNo::new(8));
        let ranges: Vec<_> = gaps.iter().map(|gap| (gap.from.as_u64(), gap.to.as_u64())).collect();
        assert_eq!(ranges, [(3, 5), (6, 8)]);
        assert_eq!(progress.next(TimelineId::FIRST), Some(SegNo::new(8)));
        assert_eq!(progress.since(), Some(SegNo::new(8).start(size())));
    }

    #[test]
    fn gaps_that_nobody_was_told_of_stay_open() {
        let mut progress = began_at(3);
        progress.give_up(TimelineId::FIRST, SegNo::new(5));
        progress.mark(&name(5));
        progress.give_up(TimelineId::FIRST, SegNo::new(9));
        assert_eq!(progress.open_gaps(), 2);
        progress.dismiss_gaps(1);
        let read = Progress::parse(&progress.format(), size(), "plain s3://b").unwrap();
        assert_eq!(read.open_gaps(), 1);
        progress.dismiss_gaps(7);
        progress.mark(&name(9));
        progress.give_up(TimelineId::FIRST, SegNo::new(12));
        assert_eq!(progress.open_gaps(), 1, "it came later");
    }

    #[test]
    fn another_place_has_got_nothing() {
        let text = began_at(3).format();
        assert_eq!(Progress::parse(&text, size(), "plain s3://b"), Some(began_at(3)));
        let other = Progress::parse(&text, size(), "plain s3://c").unwrap();
        assert_eq!(other, Progress::new(size(), "plain s3://c".to_owned()));
        assert_eq!(Progress::parse("next = 3", size(), "x"), None);
    }

    proptest! {
        #[test]
        fn what_is_saved_is_read(done in prop::collection::vec(3u64..40, 0..40), up_to in 0u64..40) {
            let mut progress = began_at(3);
            done.iter().for_each(|segno| progress.mark(&name(*segno)));
            progress.give_up(TimelineId::FIRST, SegNo::new(up_to));
            progress.mark(&FileName::parse("00000002.history").unwrap());
            progress.suspect([name(40)].into_iter());
            progress.set_marker("0123".to_owned());
            let read = Progress::parse(&progress.format(), size(), "plain s3://b");
            prop_assert_eq!(read, Some(progress.clone()));
            for segno in 3..40 {
                let known = done.contains(&segno) || segno < up_to;
                prop_assert_eq!(progress.is_done(&name(segno)), known);
            }
        }
    }
}
