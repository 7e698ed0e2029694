//! What was found, for people and for programs.

use std::collections::BTreeMap;

use serde::Serialize;
use walrelay_proto::{Lsn, SegNo, TimelineId, WalFileName};

use super::chain::Chain;
use super::place::{Found, Place};
use super::scan::Scanned;
pub use crate::archive::verify::Problem;

/// Something is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The file in which it was noticed.
    pub file: String,
    /// Its kind.
    pub problem: Problem,
    /// The first position that is not good: a byte, a page, or the start of a record; `None` if it is about no WAL.
    pub lsn: Option<String>,
    /// What was found.
    pub reason: String,
    /// Where good copies came from.
    pub repaired_from: Option<String>,
    /// The segments that would have to be fetched again.
    #[serde(skip)]
    pub(super) segments: Vec<WalFileName>,
}

/// Consecutive WAL of a timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stretch {
    /// The timeline.
    pub timeline: u32,
    /// Its first byte, as `X/X`.
    pub from: String,
    /// First byte after it.
    pub to: String,
    /// Segment files.
    pub segments: usize,
}

/// What was found in a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// The directory.
    pub place: String,
    /// What it is.
    pub kind: &'static str,
    /// The cluster whose WAL it is.
    pub system_identifier: String,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// What there is, by timeline.
    pub stretches: Vec<Stretch>,
    /// Bytes that were read and checked.
    pub bytes: u64,
    /// All that is wrong, by file.
    pub findings: Vec<Finding>,
    /// What is worth knowing, and no fault.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong, or all of it has been repaired.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.repaired_from.is_some())
    }

    /// What is found after a repair, with what that has repaired.
    #[must_use]
    pub fn after_repair(self, now: Report) -> Report {
        let repaired = self.findings.into_iter().filter(|finding| finding.repaired_from.is_some());
        Report { findings: repaired.chain(now.findings).collect(), ..now }
    }

    /// The first fault in the order of timelines and positions, unless all is well.
    pub fn first_fault(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.repaired_from.is_none())
    }
}

pub(super) fn report(place: &Place, chain: &Chain, scanned: Scanned) -> Report {
    let stretches = stretches(place, chain, &scanned);
    let mut findings: Vec<Placed> = Vec::new();
    let size = place.id.seg_size;
    for (file, reason) in &place.bad {
        findings.push((None, about(file, Problem::Damaged, reason)));
    }
    let is_bad = |tli: &&TimelineId| place.bad.iter().any(|(file, _)| *file == tli.history_file_name());
    for tli in chain.without_history.iter().filter(|tli| !is_bad(tli)) {
        let reason = format!("there is WAL of timeline {tli}");
        findings.push((None, about(&tli.history_file_name(), Problem::Missing, &reason)));
    }
    for &name in &chain.missing {
        let lsn = name.segno.start(size);
        let finding = about(&name.format(size), Problem::Missing, "there is WAL before and after it");
        findings.push((Some((name.tli, lsn)), of_wal(finding, lsn, vec![name])));
    }
    for fault in &scanned.faults {
        let found = &place.segments[fault.file];
        let (name, lsn) = (found.name, fault.lsn);
        let finding =
            of_wal(about(&found.file(), Problem::Damaged, &fault.reason), lsn, to_fetch(place, name, lsn));
        findings.push((Some((name.tli, lsn)), finding));
    }
    findings.extend(confirmed_and_gone(place, &scanned));
    findings.extend(followed_and_gone(place));
    findings.dedup_by(|one, other| one.1.problem == Problem::Missing && one.1.file == other.1.file);
    findings.sort_by(|(a, one), (b, other)| (a, &one.file).cmp(&(b, &other.file)));
    Report {
        place: place.dir.display().to_string(),
        kind: place.kind.as_str(),
        system_identifier: place.id.system_id.to_string(),
        segment_size: size.bytes(),
        notes: notes(place, &stretches),
        stretches,
        bytes: scanned.bytes,
        findings: findings.into_iter().map(|(_, finding)| finding).collect(),
    }
}

fn about(file: &str, problem: Problem, reason: &str) -> Finding {
    let reason = reason.to_owned();
    Finding { file: file.to_owned(), problem, lsn: None, reason, repaired_from: None, segments: Vec::new() }
}

fn of_wal(finding: Finding, lsn: Lsn, segments: Vec<WalFileName>) -> Finding {
    Finding { lsn: Some(lsn.to_string()), segments, ..finding }
}

/// From the segment in which a bad record begins to the one in which that was noticed: nobody knows which is the bad one.
fn to_fetch(place: &Place, noticed: WalFileName, lsn: Lsn) -> Vec<WalFileName> {
    let first = lsn.seg_at(place.id.seg_size);
    let mut all = vec![noticed];
    let mut at = noticed;
    while at.segno > first
        && let Some(before) = place.before(at)
    {
        all.push(before.name);
        at = before.name;
    }
    all.reverse();
    all
}

/// A finding and where it belongs among the others.
type Placed = (Option<(TimelineId, Lsn)>, Finding);

/// WAL that the relay had confirmed when it ended, and that is not there up to where it was: the file in which the good
/// WAL ends, and those that should follow.
fn confirmed_and_gone(place: &Place, scanned: &Scanned) -> Vec<Placed> {
    let Some(confirmed) = place.saved.confirmed else { return Vec::new() };
    let size = place.id.seg_size;
    let history = |tli| place.histories.get(&tli);
    // The way goes on with the timeline that is followed, or had not come further.
    let followed = place.saved.timeline.and_then(history).filter(|history| history.contains(confirmed.tli));
    let Some(way) = followed.or_else(|| history(confirmed.tli)) else { return Vec::new() };
    let left_at = way.switch_point(confirmed.tli).map_or(confirmed.lsn, |(left_at, _)| left_at);
    let needed = confirmed.lsn.min(left_at);
    let name_of = |segno: SegNo| WalFileName::new(way.timeline_at(segno.end(size).rewind(1)), segno);
    let is_on_the_way = |found: &Found| name_of(found.name.segno) == found.name;
    let last = place.segments.iter().enumerate().filter(|(_, found)| is_on_the_way(found));
    let last = last.max_by_key(|(_, found)| found.name.segno).map(|(file, _)| file);
    let ended = scanned.ends.iter().find(|(file, _)| is_on_the_way(&place.segments[*file]));
    let end = match (ended, last) {
        (Some(&(_, end)), _) => end,
        (None, Some(file)) => place.segments[file].name.segno.end(size),
        (None, None) => needed.seg_before(size).start(size),
    };
    if end >= needed {
        return Vec::new();
    }
    let reason =
        format!("WAL up to {needed} was confirmed to the upstream as durable, and is good up to {end}");
    let numbers = end.seg_at(size).as_u64()..=needed.seg_before(size).as_u64();
    let placed = |segno: SegNo| {
        let (name, lsn) = (name_of(segno), end.max(segno.start(size)));
        let (file, problem) = match place.find(name) {
            Some(found) => (found.file(), Problem::Damaged),
            None => (name.format(size), Problem::Missing),
        };
        (Some((name.tli, lsn)), of_wal(about(&file, problem, &reason), lsn, vec![name]))
    };
    numbers.map(SegNo::new).map(placed).collect()
}

/// The relay had confirmed WAL and gone over to another timeline, of which nothing is left. Without a word of how it
/// ended it may have received nothing there yet.
fn followed_and_gone(place: &Place) -> Option<Placed> {
    let (tli, confirmed) = (place.saved.timeline?, place.saved.confirmed?);
    let is_there = place.segments.iter().any(|found| found.name.tli == tli);
    let reason = format!("timeline {tli} was followed, and there is no segment of it");
    (!is_there && confirmed.tli != tli).then(|| (None, about("timeline.toml", Problem::Missing, &reason)))
}

fn stretches(place: &Place, chain: &Chain, scanned: &Scanned) -> Vec<Stretch> {
    let size = place.id.seg_size;
    let ends: BTreeMap<usize, Lsn> = scanned.ends.iter().copied().collect();
    let mut stretches: Vec<(WalFileName, Stretch)> = Vec::new();
    let mut files: Vec<usize> = chain.shards.iter().flat_map(|shard| shard.files.iter().copied()).collect();
    files.sort_unstable();
    // What lies behind an end is not WAL yet.
    let is_behind = |file: usize| {
        let tli = place.segments[file].name.tli;
        ends.keys().any(|&end| end < file && place.segments[end].name.tli == tli)
    };
    for file in files.into_iter().filter(|&file| !is_behind(file)) {
        let name = place.segments[file].name;
        let end = ends.get(&file).copied().unwrap_or(name.segno.end(size)).to_string();
        match stretches.last_mut() {
            Some((last, stretch)) if last.tli == name.tli && last.segno.next() == name.segno => {
                (*last, stretch.to) = (name, end);
                stretch.segments += 1;
            }
            _ => {
                let (timeline, from) = (name.tli.as_u32(), name.segno.start(size).to_string());
                stretches.push((name, Stretch { timeline, from, to: end, segments: 1 }));
            }
        }
    }
    stretches.into_iter().map(|(_, stretch)| stretch).collect()
}

/// Slots that need what is not here: it may be in an archive.
fn notes(place: &Place, stretches: &[Stretch]) -> Vec<String> {
    let oldest = stretches.iter().filter_map(|stretch| stretch.from.parse::<Lsn>().ok()).min();
    let end = stretches.iter().filter_map(|stretch| stretch.to.parse::<Lsn>().ok()).max();
    let mut notes = Vec::new();
    for slot in place.saved.slots.iter().filter(|slot| !slot.invalidated) {
        let (Some(restart), Some(oldest), Some(end)) = (slot.restart_lsn, oldest, end) else { continue };
        let name = &slot.name;
        if restart < oldest {
            notes.push(format!(
                "slot \"{name}\" needs WAL from {restart} on, the oldest here is {oldest}: the rest has to come from an archive"
            ));
        }
        if restart > end {
            notes.push(format!("slot \"{name}\" is at {restart}, behind the end of the WAL here, {end}"));
        }
    }
    notes
}
