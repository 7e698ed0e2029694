//! Removing WAL that nobody needs any more from a target: `walrelay archive-cleanup`, and retention by age and size.
//!
//! As `pg_archivecleanup` does, timelines are left out of the comparison: a segment of any timeline goes if its
//! number is lower. History files stay. The oldest goes first, so that what is left never has a hole for it.
//!
//! A relay's own retention has the oldest few thousand objects in memory, however many there are, and goes on with the next when
//! these are gone.
//!
//! What a base backup needs whose `.backup` label is in the target stays, whatever is asked for.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::archive::repo::layout::Item;
use crate::archive::repo::name::{FileKind, FileName};
use crate::archive::repo::repository::{Entry, ReadError, Repository, WriteError};
use crate::objects::StorageError;
use crate::progress::{Progress, Unit};

/// Objects that a relay's retention has in memory at a time, about 300 bytes each.
const AT_A_TIME: usize = 8192;

/// Removal has failed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The name is no limit.
    #[error("\"{0}\" is no WAL file name: expected a segment, a .partial segment or a .backup label")]
    Name(String),
    /// Nothing may be removed there.
    #[error(transparent)]
    Place(#[from] StorageError),
    /// The target cannot be listed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Something cannot be removed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Limit {
    /// All before this file.
    Before(FileName),
    /// What is older than this, and the oldest beyond this size.
    Retention {
        /// Age since it was stored.
        keep_age: Option<Duration>,
        /// Bytes stored.
        keep_size: Option<u64>,
    },
}

impl Limit {
    /// The argument of `pg_archivecleanup`.
    pub fn before(text: &str) -> Result<Limit, CleanupError> {
        let name = FileName::parse(text).filter(|name| name.kind() != FileKind::History);
        name.map(Limit::Before).ok_or_else(|| CleanupError::Name(text.to_owned()))
    }
}

/// What a removal is about.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    /// Objects to remove, in this order.
    pub remove: Vec<Entry>,
    /// The label that keeps WAL which would go otherwise.
    pub kept_for: Option<FileName>,
    /// Bytes that it keeps, at least.
    pub held: u64,
    /// More will have to go when these are gone.
    pub has_more: bool,
}

/// Whether anything may be removed there: not from anybody's data directory or `pg_wal`.
pub async fn allowed(repository: &Repository) -> Result<(), CleanupError> {
    Ok(repository.storage().admit().await?)
}

/// Chooses what to remove; `drop_labels` gives up the labels of base backups that began before the limit.
pub async fn plan(
    repository: &Repository,
    limit: &Limit,
    drop_labels: bool,
    now: SystemTime,
) -> Result<Plan, CleanupError> {
    choose_of(repository, usize::MAX, limit, drop_labels, now).await
}

async fn choose_of(
    repository: &Repository,
    most: usize,
    limit: &Limit,
    drop_labels: bool,
    now: SystemTime,
) -> Result<Plan, CleanupError> {
    let seen = repository.visit(Wal::new(most), Wal::take).await?;
    Ok(seen.choose(limit, drop_labels, now))
}

/// Removes what was chosen. `progress` counts files.
pub async fn remove(repository: &Repository, plan: &Plan, progress: &Progress) -> Result<(), CleanupError> {
    progress.expect(Unit::Files, plan.remove.len() as u64);
    for entry in &plan.remove {
        repository.remove(entry).await?;
        progress.did(1);
    }
    Ok(())
}

/// What `keep-age` and `keep-size` of a target would remove.
pub async fn retention(
    repository: &Repository,
    keep_age: Option<Duration>,
    keep_size: Option<u64>,
) -> Result<Plan, CleanupError> {
    if keep_age.is_none() && keep_size.is_none() {
        return Ok(Plan::default());
    }
    let limit = Limit::Retention { keep_age, keep_size };
    choose_of(repository, AT_A_TIME, &limit, false, SystemTime::now()).await
}

/// A segment's number as its file name shows it, which sorts as the positions do.
type Number = String;

/// What is known of a target's WAL: the oldest of it, and what has to be known of the rest.
#[derive(Debug)]
struct Wal {
    most: usize,
    /// At most so many, by number and path.
    oldest: BTreeMap<(Number, String), Entry>,
    /// There is more.
    is_cut: bool,
    /// Bytes of all.
    size: u64,
    newest: Number,
    /// The first label.
    label: Option<(Number, FileName)>,
}

impl Wal {
    fn new(most: usize) -> Wal {
        let (oldest, newest) = (BTreeMap::new(), Number::new());
        Wal { most, oldest, is_cut: false, size: 0, newest, label: None }
    }

    fn take(&mut self, entry: Entry) {
        let Some(number) = number(&entry) else { return };
        self.size += entry.size;
        if number > self.newest {
            self.newest.clone_from(&number);
        }
        if let Some(label) = file(&entry).filter(|file| file.kind() == FileKind::Backup) {
            let label = (number.clone(), label.clone());
            self.label = self.label.take().map_or(Some(label.clone()), |first| Some(first.min(label)));
        }
        self.oldest.insert((number, entry.path.clone()), entry);
        if self.oldest.len() > self.most {
            self.is_cut = self.oldest.pop_last().is_some();
        }
    }

    fn choose(self, limit: &Limit, drop_labels: bool, now: SystemTime) -> Plan {
        let cut = match limit {
            Limit::Before(name) => digits(name).map(str::to_owned),
            Limit::Retention { keep_age, keep_size } => self.retention_cut(*keep_age, *keep_size, now),
        };
        let is_old = |number: &Number| cut.as_ref().is_none_or(|cut| number < cut);
        let label = self.label.filter(|(start, _)| !drop_labels && is_old(start));
        let is_needed = |number: &Number| label.as_ref().is_some_and(|(start, _)| number >= start);
        let goes = |entry: &Entry| kind(entry) != Some(FileKind::Backup) || drop_labels;
        let (mut remove, mut held, mut is_at_end) = (Vec::new(), 0, false);
        for ((number, _), entry) in self.oldest {
            is_at_end |= !is_old(&number) || is_needed(&number);
            if is_old(&number) && is_needed(&number) {
                held += entry.size;
            } else if is_old(&number) && goes(&entry) {
                remove.push(entry);
            }
        }
        let has_more = self.is_cut && !is_at_end && !remove.is_empty();
        Plan { remove, kept_for: label.map(|(_, label)| label), held, has_more }
    }

    /// The first segment to keep, if it is among the oldest. The newest always is kept.
    fn retention_cut(
        &self,
        keep_age: Option<Duration>,
        keep_size: Option<u64>,
        now: SystemTime,
    ) -> Option<Number> {
        let is_old = |entry: &Entry| {
            keep_age.is_some_and(|keep| now.duration_since(entry.modified).is_ok_and(|age| age > keep))
        };
        let mut left = self.size;
        for ((number, _), entry) in &self.oldest {
            if *number == self.newest || !is_old(entry) && keep_size.is_none_or(|keep| left <= keep) {
                return Some(number.clone());
            }
            left -= entry.size;
        }
        None
    }
}

fn number(entry: &Entry) -> Option<Number> {
    match &entry.item {
        Item::File(name, _) => digits(name).map(str::to_owned),
        Item::Chunk(chunk, _) => digits(&chunk.segment).map(str::to_owned),
        _ => None,
    }
}

/// Without the timeline.
fn digits(name: &FileName) -> Option<&str> {
    name.segment_digits().map(|digits| &digits[8..])
}

fn file(entry: &Entry) -> Option<&FileName> {
    match &entry.item {
        Item::File(name, _) => Some(name),
        _ => None,
    }
}

fn kind(entry: &Entry) -> Option<FileKind> {
    file(entry).map(FileName::kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::repo::layout::Layout;

    const DAY: Duration = Duration::from_secs(86400);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 20_000
    }

    fn entry(path: &str, size: u64, days: u32) -> Entry {
        let modified = now() - DAY * days;
        Entry { item: Layout::Plain.parse(path), path: path.to_owned(), size, modified }
    }

    /// Segments 3 to 8, the later the younger; a switch to timeline 2 in 6.
    fn entries() -> Vec<Entry> {
        let names = [
            ("000000010000000000000003", 9),
            ("000000010000000000000004", 8),
            ("000000010000000000000005", 7),
            ("000000010000000000000006.partial", 6),
            ("000000020000000000000006", 6),
            ("000000020000000000000007.zst", 5),
            ("000000020000000000000008", 4),
            ("00000002.history", 6),
            ("000000010000000000000003.sha256", 9),
            ("notes.txt", 100),
        ];
        names.map(|(path, days)| entry(path, 100, days)).to_vec()
    }

    fn choose(entries: Vec<Entry>, most: usize, limit: &Limit, drop_labels: bool) -> Plan {
        let mut wal = Wal::new(most);
        entries.into_iter().for_each(|entry| wal.take(entry));
        wal.choose(limit, drop_labels, now())
    }

    fn chosen(entries: Vec<Entry>, limit: Limit, drop_labels: bool) -> Vec<String> {
        let plan = choose(entries.clone(), usize::MAX, &limit, drop_labels);
        assert!(!plan.has_more);
        let all: Vec<_> = plan.remove.into_iter().map(|entry| entry.path).collect();
        // Whoever has only some of them in memory removes the same, if not at once.
        for most in 1..4 {
            let (mut left, mut gone) = (entries.clone(), Vec::new());
            loop {
                let plan = choose(left.clone(), most, &limit, drop_labels);
                left.retain(|entry| !plan.remove.contains(entry));
                gone.extend(plan.remove.into_iter().map(|entry| entry.path));
                if !plan.has_more {
                    break;
                }
            }
            assert_eq!(gone, all, "{most} at a time");
        }
        all
    }

    #[test]
    fn what_lies_before_the_name_goes_on_all_timelines() {
        let before = |text| chosen(entries(), Limit::before(text).unwrap(), false);
        assert_eq!(
            before("000000010000000000000005"),
            ["000000010000000000000003", "000000010000000000000004"]
        );
        let all_but_last = before("000000020000000000000008.00000028.backup");
        assert_eq!(all_but_last.len(), 6);
        assert_eq!(before("000000030000000000000007.partial").len(), 5);
        assert!(before("000000010000000000000003").is_empty());
        for bad in ["00000002.history", "x", "000000010000000000000005.zst"] {
            assert!(matches!(Limit::before(bad), Err(CleanupError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn what_a_base_backup_needs_stays() {
        let label = "000000010000000000000004.00000028.backup";
        let mut entries = entries();
        entries.push(entry(label, 1, 8));
        let limit = || Limit::before("000000020000000000000008").unwrap();
        let plan = choose(entries.clone(), usize::MAX, &limit(), false);
        assert_eq!(plan.remove.len(), 1);
        assert_eq!(plan.kept_for, FileName::parse(label));
        // Segments 4 to 7, and the label itself.
        assert_eq!(plan.held, 501);
        let all = chosen(entries.clone(), limit(), true);
        assert!(all.contains(&label.to_owned()) && all.len() == 7, "{all:?}");
        let retention = Limit::Retention { keep_age: Some(DAY), keep_size: None };
        assert_eq!(chosen(entries, retention, false), ["000000010000000000000003"]);
    }

    #[test]
    fn retention_by_age_and_size() {
        let keep =
            |days: Option<u32>, keep_size| Limit::Retention { keep_age: days.map(|n| DAY * n), keep_size };
        let count = |limit| chosen(entries(), limit, false).len();
        assert_eq!(count(keep(Some(7), None)), 2);
        assert_eq!(count(keep(Some(1), None)), 6, "the newest stays");
        assert_eq!(count(keep(None, Some(700))), 0);
        assert_eq!(count(keep(None, Some(550))), 2);
        assert_eq!(count(keep(None, Some(0))), 6);
        assert_eq!(count(keep(Some(100), Some(650))), 1);
        assert_eq!(count(keep(None, None)), 0);
        assert!(chosen(Vec::new(), keep(None, Some(0)), false).is_empty());
    }

    #[test]
    fn pieces_go_with_their_segment() {
        let mut entries = entries();
        let piece = "000000010000000000000004.chunks/00000000-00002000-0123456789abcdef";
        entries.push(entry(piece, 10, 8));
        let gone = chosen(entries, Limit::before("000000010000000000000005").unwrap(), false);
        assert!(gone.contains(&piece.to_owned()), "{gone:?}");
    }
}
