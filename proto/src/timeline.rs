//! Timelines and their history files (PostgreSQL: `timeline.c`).

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::lsn::Lsn;

/// A cluster's identity, made by initdb and shared by all its copies (`system_identifier`).
///
/// Decimal on the wire, binary in the first page of each segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for SystemId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<SystemId, Self::Err> {
        text.parse().map(SystemId)
    }
}

/// Number of a timeline; 1 is the one initdb makes, 0 does not exist.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The first timeline of every cluster; the only one without a history file.
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    /// The timeline `number`, `None` for 0.
    pub fn new(number: u32) -> Option<TimelineId> {
        NonZeroU32::new(number).map(TimelineId)
    }

    /// The number itself.
    pub const fn as_u32(self) -> u32 {
        self.0.get()
    }

    /// Name of this timeline's history file, `00000002.history`.
    pub fn history_file_name(self) -> String {
        format!("{:08X}.history", self.as_u32())
    }

    /// The timeline whose history file has this name.
    pub fn from_history_file_name(name: &str) -> Option<TimelineId> {
        let digits = name.strip_suffix(".history")?;
        let hex = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        hex.then(|| u32::from_str_radix(digits, 16).ok()).flatten().and_then(TimelineId::new)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A position on a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimelinePosition {
    /// The timeline.
    pub tli: TimelineId,
    /// The position on it.
    pub lsn: Lsn,
}

/// One ancestor in a timeline's history: it was left at `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// The ancestor.
    pub tli: TimelineId,
    /// Its switch point: the first position that is not on it any more.
    pub end: Lsn,
}

/// Where a timeline comes from: each ancestor with the position at which it was left, oldest first.
///
/// Timeline ids rise strictly and the last ancestor is lower than the timeline itself; switch points
/// never fall (a timeline may be left where it began).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelineHistory {
    tli: TimelineId,
    ancestors: Vec<HistoryEntry>,
}

/// A history file that PostgreSQL's startup process would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A line is not `<timeline> <position> <reason>`.
    #[error("syntax error in history file of timeline {tli}: {line:?}")]
    Syntax {
        /// Timeline whose file it is.
        tli: TimelineId,
        /// The line, shortened.
        line: String,
    },
    /// Timeline ids do not rise, or reach the file's own timeline.
    #[error("invalid history file of timeline {tli}: timeline {ancestor} is out of sequence")]
    Sequence {
        /// Timeline whose file it is.
        tli: TimelineId,
        /// The entry out of order.
        ancestor: TimelineId,
    },
    /// The file has no entry at all.
    #[error("history file of timeline {0} names no parent timeline")]
    Empty(TimelineId),
}

impl TimelineHistory {
    /// Timeline 1, which has no ancestors and no file.
    pub fn first() -> TimelineHistory {
        TimelineHistory { tli: TimelineId::FIRST, ancestors: Vec::new() }
    }

    /// Reads the content of `tli`'s history file (PostgreSQL: `readTimeLineHistory`).
    ///
    /// Blank lines and lines starting with `#` are skipped; whatever follows the position is a reason
    /// for people.
    pub fn parse(tli: TimelineId, content: &[u8]) -> Result<TimelineHistory, HistoryError> {
        let mut ancestors: Vec<HistoryEntry> = Vec::new();
        for raw in content.split(|&b| b == b'\n') {
            let line = String::from_utf8_lossy(raw);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = parse_line(line)
                .ok_or_else(|| HistoryError::Syntax { tli, line: line.chars().take(80).collect() })?;
            let in_sequence = entry.tli < tli
                && ancestors.last().is_none_or(|last| last.tli < entry.tli && last.end <= entry.end);
            if !in_sequence {
                return Err(HistoryError::Sequence { tli, ancestor: entry.tli });
            }
            ancestors.push(entry);
        }
        if ancestors.is_empty() && tli != TimelineId::FIRST {
            return Err(HistoryError::Empty(tli));
        }
        Ok(TimelineHistory { tli, ancestors })
    }

    /// The timeline this is the history of.
    pub fn tli(&self) -> TimelineId {
        self.tli
    }

    /// The ancestors, oldest first.
    pub fn ancestors(&self) -> &[HistoryEntry] {
        &self.ancestors
    }

    /// Whether `tli` is this timeline or one of its ancestors (`tliInHistory`).
    pub fn contains(&self, tli: TimelineId) -> bool {
        tli == self.tli || self.ancestors.iter().any(|entry| entry.tli == tli)
    }

    /// Where `tli` was left, and for which timeline; `None` for the timeline itself and for strangers
    /// (`tliSwitchPoint`).
    pub fn switch_point(&self, tli: TimelineId) -> Option<(Lsn, TimelineId)> {
        let at = self.ancestors.iter().position(|entry| entry.tli == tli)?;
        let next = self.ancestors.get(at + 1).map_or(self.tli, |entry| entry.tli);
        self.ancestors.get(at).map(|entry| (entry.end, next))
    }

    /// The timeline on which the byte at `lsn` lies (`tliOfPointInHistory`).
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.ancestors.iter().find(|entry| lsn < entry.end).map_or(self.tli, |entry| entry.tli)
    }

    /// The history of `tli`, this timeline or one of its ancestors: what its own file said when it began. `None`
    /// for strangers.
    pub fn up_to(&self, tli: TimelineId) -> Option<TimelineHistory> {
        if tli == self.tli {
            return Some(self.clone());
        }
        let at = self.ancestors.iter().position(|entry| entry.tli == tli)?;
        Some(TimelineHistory { tli, ancestors: self.ancestors.get(..at)?.to_vec() })
    }

    /// The timelines on the way, oldest first; the last is this one.
    pub fn way(&self) -> impl DoubleEndedIterator<Item = TimelineId> {
        self.ancestors.iter().map(|entry| entry.tli).chain([self.tli])
    }

    /// The last timeline that both have come through, and where their ways part: the first of them leaves it there,
    /// or `None` if both are still on it. `None` where they have nothing in common.
    ///
    /// The same timeline is one of the same number that was reached in the same way. Numbers prove nothing, because
    /// two promotions may choose the same.
    pub fn parting(&self, other: &TimelineHistory) -> Option<(TimelineId, Option<Lsn>)> {
        let same =
            self.ancestors.iter().zip(&other.ancestors).take_while(|(ours, theirs)| ours == theirs).count();
        let step = |history: &TimelineHistory, at: usize| {
            let entry = history.ancestors.get(at);
            (entry.map_or(history.tli, |entry| entry.tli), entry.map(|entry| entry.end))
        };
        let (ours, theirs) = (step(self, same), step(other, same));
        if ours.0 == theirs.0 {
            let ends = [ours.1, theirs.1];
            return Some((ours.0, ends.into_iter().flatten().min()));
        }
        let last = self.ancestors.get(same.checked_sub(1)?)?;
        Some((last.tli, Some(last.end)))
    }

    /// Where the timeline itself begins: the switch point of its parent, `0/0` for the first.
    pub fn begin(&self) -> Lsn {
        self.ancestors.last().map_or(Lsn::INVALID, |entry| entry.end)
    }
}

fn parse_line(line: &str) -> Option<HistoryEntry> {
    let mut words = line.split_whitespace();
    let tli = TimelineId::new(words.next()?.parse().ok()?)?;
    let end = words.next()?.parse().ok()?;
    Some(HistoryEntry { tli, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn a_grandchilds_file_is_read_as_postgresql_writes_it() {
        let content = b"1\t0/D00170\tno recovery target specified\n\n2\t0/E000A0\tat restore point \"x\"\n";
        let history = TimelineHistory::parse(tli(5), content).unwrap();
        assert_eq!(history.switch_point(tli(1)), Some((Lsn::new(0xD00170), tli(2))));
        assert_eq!(history.switch_point(tli(2)), Some((Lsn::new(0xE000A0), tli(5))));
        assert_eq!(history.switch_point(tli(5)), None);
        assert!(history.contains(tli(5)) && history.contains(tli(1)) && !history.contains(tli(3)));
        assert_eq!(history.timeline_at(Lsn::new(0xD0016F)), tli(1));
        assert_eq!(history.timeline_at(Lsn::new(0xD00170)), tli(2));
        assert_eq!(history.timeline_at(Lsn::new(0xE000A0)), tli(5));
        assert_eq!(history.begin(), Lsn::new(0xE000A0));
    }

    #[test]
    fn two_ways_part_where_the_first_of_them_leaves_the_last_common_timeline() {
        let history =
            |number: u32, lines: &str| TimelineHistory::parse(tli(number), lines.as_bytes()).unwrap();
        let check = |a: &TimelineHistory, b: &TimelineHistory, expected: Option<(u32, Option<u64>)>| {
            let expected = expected.map(|(number, end)| (tli(number), end.map(Lsn::new)));
            assert_eq!((a.parting(b), b.parting(a)), (expected, expected), "{a:?} {b:?}");
        };
        let one = TimelineHistory::first();
        let two = history(2, "1\t0/100\n");
        check(&one, &one, Some((1, None)));
        check(&one, &two, Some((1, Some(0x100))));
        check(&two, &two, Some((2, None)));
        check(&two, &history(3, "1\t0/80\n"), Some((1, Some(0x80))));
        check(&two, &history(3, "1\t0/100\n"), Some((1, Some(0x100))));
        check(&two, &history(2, "1\t0/80\n"), Some((1, Some(0x80))));
        let five = history(5, "1\t0/100\n2\t0/300\n");
        check(&five, &history(4, "1\t0/100\n2\t0/200\n"), Some((2, Some(0x200))));
        check(&five, &history(4, "1\t0/80\n2\t0/200\n"), Some((1, Some(0x80))));
        check(&five, &history(4, "2\t0/300\n"), None);
    }

    #[test]
    fn an_ancestor_knew_less() {
        let five = TimelineHistory::parse(tli(5), b"1\t0/100\n2\t0/300\n").unwrap();
        assert_eq!(five.up_to(tli(1)), Some(TimelineHistory::first()));
        assert_eq!(five.up_to(tli(2)), TimelineHistory::parse(tli(2), b"1\t0/100\n").ok());
        assert_eq!((five.up_to(tli(5)), five.up_to(tli(3))), (Some(five.clone()), None));
        assert_eq!(five.way().collect::<Vec<_>>(), [1, 2, 5].map(tli));
    }

    #[test]
    fn what_would_stop_a_standby_is_refused() {
        for bad in ["", "\n# only a comment\n", "x\t0/1\tr\n", "1\n", "1\t0/0/0\n", "0\t0/1\n"] {
            assert!(TimelineHistory::parse(tli(2), bad.as_bytes()).is_err(), "{bad:?}");
        }
        for sequence in ["2\t0/1\tr\n", "1\t0/1\n1\t0/2\n", "1\t0/9\n2\t0/2\n"] {
            let error = TimelineHistory::parse(tli(2), sequence.as_bytes()).unwrap_err();
            assert!(matches!(error, HistoryError::Sequence { .. }), "{sequence:?}: {error}");
        }
    }

    #[test]
    fn file_names() {
        assert_eq!(tli(0x63).history_file_name(), "00000063.history");
        assert_eq!(TimelineId::from_history_file_name("00000063.history"), Some(tli(0x63)));
        for bad in ["00000000.history", "0000006a.history", "63.history", "00000063"] {
            assert_eq!(TimelineId::from_history_file_name(bad), None);
        }
    }
}
