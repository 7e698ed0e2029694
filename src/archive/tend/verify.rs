//! `walrelay archive verify`: whether all that is in a target is what it should be, and what is missing.
//!
//! Checked are checksums, page headers, the cluster, the timelines of pages, and every record: one that reaches over
//! segments is checked over all of them. So is what pieces of an unfinished segment make up. Missing is what lies between the
//! first and the last segment on the way to a timeline, or between two pieces, a history file, and a file of which only the
//! checksum is left.

mod pieces;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use serde::Serialize;
use walrelay_proto::{Lsn, SegNo, TimelineHistory, TimelineId, WalFileName, WalIdentity, WalVerifier};

use crate::archive::back::source::Source;
use crate::archive::repo::chain::missing_segments;
use crate::archive::repo::check;
use crate::archive::repo::layout::Item;
use crate::archive::repo::name::{ChunkName, FileKind, FileName};
use crate::archive::repo::repository::{ReadError, Repository, WriteError};
use crate::progress::{Progress, Unit};
use pieces::Piece;

/// Files read at a time.
const AT_A_TIME: usize = 4;

/// Something is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// Its kind.
    pub problem: Problem,
    /// First byte of WAL that cannot be restored for it; `None` if it holds no WAL.
    pub from: Option<String>,
    /// First byte after that.
    pub to: Option<String>,
    /// The first position that is not good, where that is known.
    pub lsn: Option<String>,
    /// What was found.
    pub reason: String,
    /// Where a good copy came from.
    pub healed_from: Option<String>,
}

/// Kinds of trouble.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// The file is not there.
    Missing,
    /// It is there and wrong.
    Damaged,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Problem::Missing => "missing",
            Problem::Damaged => "damaged",
        })
    }
}

/// What was found in a target.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// The target's name.
    pub target: String,
    /// The cluster whose WAL it holds; `None` if nothing tells.
    #[serde(skip)]
    pub id: Option<WalIdentity>,
    /// Segments that were read.
    pub segments: usize,
    /// All that is wrong, by file.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is wrong, or all of it has been healed.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.healed_from.is_some())
    }
}

/// Checks a target. `id` is the cluster it should hold WAL of; without it, that of most of its segments. `progress` counts files.
///
/// # Errors
/// The target cannot be reached.
pub async fn verify(
    repository: &Repository,
    id: Option<WalIdentity>,
    progress: &Progress,
) -> Result<Report, ReadError> {
    let mut check = Check::begin(repository, id, progress).await?;
    progress.expect(Unit::Files, (check.files.len() + check.pieces.len()) as u64);
    check.read_histories().await?;
    check.read_segments().await?;
    check.read_others().await?;
    check.find_holes();
    Ok(check.report())
}

/// Replaces what is wrong by good copies from elsewhere, of the same cluster. What was there is kept aside. `progress` counts files.
///
/// # Errors
/// The target cannot be written.
pub async fn heal(
    repository: &Repository,
    report: &mut Report,
    sources: &[Arc<dyn Source>],
    progress: &Progress,
) -> Result<(), WriteError> {
    let (mut histories, id) = (HashMap::new(), report.id);
    progress.expect(Unit::Files, report.findings.len() as u64);
    // Histories sort first, and segments are checked with them.
    report.findings.sort_by_key(|finding| (!finding.file.ends_with(".history"), finding.file.clone()));
    for finding in &mut report.findings {
        if let Some(piece) = Piece::parse(&finding.file) {
            finding.healed_from = piece.heal(repository, id, sources).await?;
            if finding.healed_from.is_none() {
                finding.reason.push_str("; none of the sources has good WAL of the segment up to there");
            }
        }
        for source in sources {
            let Some(name) = FileName::parse(&finding.file) else { continue };
            let Ok(Some(content)) = source.read(&finding.file).await else { continue };
            if !is_good_copy(repository, &mut histories, &name, id, &content).await {
                continue;
            }
            repository.replace(&name, content).await?;
            finding.healed_from = Some(source.name().to_owned());
            break;
        }
        progress.did(1);
    }
    report.findings.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(())
}

async fn is_good_copy(
    repository: &Repository,
    histories: &mut HashMap<TimelineId, Option<TimelineHistory>>,
    name: &FileName,
    id: Option<WalIdentity>,
    content: &Bytes,
) -> bool {
    match name.kind() {
        FileKind::History => TimelineHistory::parse(name.tli(), content).is_ok(),
        FileKind::Backup => true,
        FileKind::Partial => check::identity_of(content).is_ok_and(|found| id.is_none_or(|id| id == found)),
        FileKind::Segment => {
            let Ok(found) = check::identity_of(content) else { return false };
            let Some(wal) = name.wal(found.seg_size).filter(|_| id.is_none_or(|id| id == found)) else {
                return false;
            };
            if let Entry::Vacant(vacant) = histories.entry(wal.tli) {
                let text = repository.read(&FileName::history(wal.tli)).await.ok().flatten();
                vacant.insert(text.and_then(|text| TimelineHistory::parse(wal.tli, &text).ok()));
            }
            let history = histories.get(&wal.tli).and_then(Option::as_ref);
            check::whole_segment(found, wal, history, content).is_ok()
        }
    }
}

/// A file that was read.
type Content = Result<Bytes, String>;

struct Check<'a> {
    repository: &'a Repository,
    progress: &'a Progress,
    /// Files that are there, and files whose checksum is.
    files: BTreeSet<FileName>,
    described: BTreeSet<FileName>,
    /// Pieces of segments that are not finished.
    pieces: BTreeSet<ChunkName>,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    id: Option<WalIdentity>,
    segments: usize,
    findings: BTreeMap<String, Finding>,
}

impl<'a> Check<'a> {
    async fn begin(
        repository: &'a Repository,
        id: Option<WalIdentity>,
        progress: &'a Progress,
    ) -> Result<Check<'a>, ReadError> {
        let (mut files, mut described, mut pieces) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for entry in repository.list().await? {
            match entry.item {
                Item::File(name, _) => _ = files.insert(name),
                Item::Sidecar(name) => _ = described.insert(name),
                Item::Chunk(piece, _) => _ = pieces.insert(piece),
                _ => {}
            }
        }
        let histories = BTreeMap::from([(TimelineId::FIRST, TimelineHistory::first())]);
        let findings = BTreeMap::new();
        Ok(Check { repository, progress, files, described, pieces, histories, id, segments: 0, findings })
    }

    fn of_kind(&self, kind: FileKind) -> Vec<FileName> {
        self.files.iter().filter(|name| name.kind() == kind).cloned().collect()
    }

    async fn read(&self, names: &[FileName]) -> Result<Vec<Content>, ReadError> {
        let read = join_all(names.iter().map(|name| self.repository.read(name))).await;
        let content = |result| match result {
            Ok(Some(bytes)) => Ok(Ok(bytes)),
            Ok(None) => Ok(Err("it vanished while it was read".to_owned())),
            Err(ReadError::Damaged { reason, .. }) => Ok(Err(reason)),
            Err(error) => Err(error),
        };
        read.into_iter().map(content).collect()
    }

    async fn read_histories(&mut self) -> Result<(), ReadError> {
        let names = self.of_kind(FileKind::History);
        for (name, content) in names.iter().zip(self.read(&names).await?) {
            let parsed = content.and_then(|content| {
                TimelineHistory::parse(name.tli(), &content).map_err(|error| error.to_string())
            });
            match parsed {
                Ok(history) => _ = self.histories.insert(name.tli(), history),
                Err(reason) => self.note(name.as_str(), Problem::Damaged, reason),
            }
        }
        self.progress.did(names.len() as u64);
        Ok(())
    }

    /// Reads all segments twice over only if the cluster is not known: the first pages say it.
    async fn read_segments(&mut self) -> Result<(), ReadError> {
        let names = self.of_kind(FileKind::Segment);
        if self.id.is_none() {
            self.id = self.majority(&names).await?;
        }
        let mut run: Option<Run> = None;
        for group in names.chunks(AT_A_TIME) {
            for (name, content) in group.iter().zip(self.read(group).await?) {
                self.segments += 1;
                self.progress.did(1);
                let content = content.map_err(|reason| (reason, None));
                let checked = content.and_then(|bytes| self.check_segment(name, &bytes, &mut run));
                if let Err((reason, lsn)) = checked {
                    run = None;
                    self.note_at(name.as_str(), Problem::Damaged, reason, lsn);
                }
            }
        }
        Ok(())
    }

    async fn majority(&self, names: &[FileName]) -> Result<Option<WalIdentity>, ReadError> {
        let mut votes: Vec<(WalIdentity, usize)> = Vec::new();
        // A few from everywhere tell as much as all.
        let step = names.len().div_ceil(24).max(1);
        for name in names.iter().step_by(step) {
            for content in self.read(std::slice::from_ref(name)).await? {
                let Some(id) = content.ok().and_then(|bytes| check::identity_of(&bytes).ok()) else {
                    continue;
                };
                match votes.iter_mut().find(|(known, _)| *known == id) {
                    Some((_, count)) => *count += 1,
                    None => votes.push((id, 1)),
                }
            }
        }
        Ok(votes.into_iter().max_by_key(|(_, count)| *count).map(|(id, _)| id))
    }

    fn check_segment(
        &self,
        name: &FileName,
        bytes: &Bytes,
        run: &mut Option<Run>,
    ) -> Result<(), (String, Option<Lsn>)> {
        let described = |fault: check::Fault| (fault.to_string(), fault.lsn());
        let found = check::identity_of(bytes).map_err(described)?;
        let id = self.id.unwrap_or(found);
        if found.system_id != id.system_id {
            let reason = format!(
                "it belongs to another cluster: its system identifier is {}, expected {}",
                found.system_id, id.system_id
            );
            return Err((reason, None));
        }
        let wal = name.wal(id.seg_size);
        let wal =
            wal.ok_or_else(|| (format!("there is no such segment of {}", id.seg_size.to_show()), None))?;
        check::whole_segment(id, wal, self.histories.get(&wal.tli), bytes).map_err(described)?;
        let before = run.take().filter(|run| run.next == wal);
        let mut run_on = before.unwrap_or_else(|| Run::begin(id, wal));
        run_on.push(bytes)?;
        *run = Some(run_on);
        Ok(())
    }

    /// Partial segments, labels, pieces.
    async fn read_others(&mut self) -> Result<(), ReadError> {
        for kind in [FileKind::Partial, FileKind::Backup] {
            let names = self.of_kind(kind);
            for group in names.chunks(AT_A_TIME) {
                for (name, content) in group.iter().zip(self.read(group).await?) {
                    self.progress.did(1);
                    if let Err(reason) = content.and_then(|bytes| self.check_other(name, &bytes)) {
                        self.note(name.as_str(), Problem::Damaged, reason);
                    }
                }
            }
        }
        self.read_pieces().await
    }

    fn check_other(&self, name: &FileName, bytes: &[u8]) -> Result<(), String> {
        if name.kind() == FileKind::Backup {
            return Ok(());
        }
        let found = check::identity_of(bytes).map_err(|fault| fault.to_string())?;
        let ours = self.id.is_none_or(|id| id == found);
        let wal = name.wal(found.seg_size).filter(|_| ours).ok_or("it belongs to another cluster")?;
        match check::good_length(found, wal, bytes) {
            0 => Err("it holds not a single good record".to_owned()),
            _ => Ok(()),
        }
    }

    fn find_holes(&mut self) {
        for name in self.described.difference(&self.files).cloned().collect::<Vec<_>>() {
            self.note(name.as_str(), Problem::Missing, "only its checksum is there".to_owned());
        }
        let Some(size) = self.id.map(|id| id.seg_size) else { return };
        let mut held: BTreeMap<TimelineId, BTreeSet<SegNo>> = BTreeMap::new();
        for wal in self.of_kind(FileKind::Segment).iter().filter_map(|name| name.wal(size)) {
            held.entry(wal.tli).or_default().insert(wal.segno);
        }
        for &tli in held.keys() {
            if !self.histories.contains_key(&tli) {
                let reason = format!("there is WAL of timeline {tli}");
                self.note(&tli.history_file_name(), Problem::Missing, reason);
            }
        }
        for wal in missing_segments(&held, &self.histories, size) {
            self.note(&wal.format(size), Problem::Missing, "there is WAL before and after it".to_owned());
        }
    }

    fn note(&mut self, file: &str, problem: Problem, reason: String) {
        self.note_at(file, problem, reason, None);
    }

    fn note_at(&mut self, file: &str, problem: Problem, reason: String, lsn: Option<Lsn>) {
        let size = self.id.map(|id| id.seg_size);
        let wal = size.and_then(|size| Some((FileName::parse(file)?.wal(size)?, size)));
        let wal = wal.filter(|_| !file.ends_with(".backup"));
        let finding = Finding {
            file: file.to_owned(),
            problem,
            from: wal.map(|(wal, size)| wal.segno.start(size).to_string()),
            to: wal.map(|(wal, size)| wal.segno.end(size).to_string()),
            lsn: lsn.map(|lsn| lsn.to_string()),
            reason,
            healed_from: None,
        };
        self.findings.entry(file.to_owned()).or_insert(finding);
    }

    fn report(self) -> Report {
        Report {
            target: self.repository.name().to_owned(),
            id: self.id,
            segments: self.segments,
            findings: self.findings.into_values().collect(),
        }
    }
}

/// Records over consecutive segments.
struct Run {
    verifier: WalVerifier,
    next: WalFileName,
}

impl Run {
    fn begin(id: WalIdentity, wal: WalFileName) -> Run {
        let mut verifier = WalVerifier::at_segment_start(id, wal.tli, wal.segno.start(id.seg_size));
        verifier.accept_any_padding(true);
        Run { verifier, next: wal }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), (String, Option<Lsn>)> {
        let at: Lsn = self.verifier.position();
        self.next = WalFileName::new(self.next.tli, self.next.segno.next());
        match self.verifier.push(bytes) {
            // The padding behind a switch record whose beginning nobody has seen; it has been checked.
            Err(walrelay_proto::WalError::RecordTooShort { .. }) if self.verifier.last_record().is_none() => {
                self.next = WalFileName::new(self.next.tli, SegNo::new(u64::MAX));
                Ok(())
            }
            other => other.map_err(|error| {
                (format!("{error} (in WAL that goes on from before {at})"), Some(error.lsn()))
            }),
        }
    }
}

#[cfg(test)]
mod tests;
