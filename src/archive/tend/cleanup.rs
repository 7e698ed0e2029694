//! Removing WAL that nobody needs any more from a target: `walrelay archive-cleanup`, and retention by age and size.
//!
//! As `pg_archivecleanup` does, timelines are left out of the comparison: a segment of any timeline goes if its
//! number is lower. History files stay. The oldest goes first, so that what is left never has a hole for it.
//!
//! What a base backup needs whose `.backup` label is in the target stays, whatever is asked for.

use std::time::{Duration, SystemTime};

use crate::archive::repo::layout::Item;
use crate::archive::repo::name::{FileKind, FileName};
use crate::archive::repo::repository::{Entry, ReadError, Repository, WriteError};
use crate::objects::StorageError;

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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Objects to remove, in this order.
    pub remove: Vec<Entry>,
    /// The label that keeps WAL which would go otherwise.
    pub kept_for: Option<FileName>,
    /// Bytes that it keeps.
    pub held: u64,
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
    Ok(choose(repository.list().await?, limit, drop_labels, now))
}

/// Removes what was chosen.
pub async fn remove(repository: &Repository, plan: &Plan) -> Result<(), CleanupError> {
    for entry in &plan.remove {
        repository.remove(entry).await?;
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
        return Ok(Plan { remove: Vec::new(), kept_for: None, held: 0 });
    }
    plan(repository, &Limit::Retention { keep_age, keep_size }, false, SystemTime::now()).await
}

/// A segment's number as its file name shows it, which sorts as the positions do.
type Number = String;

fn choose(entries: Vec<Entry>, limit: &Limit, drop_labels: bool, now: SystemTime) -> Plan {
    let mut wal: Vec<(Number, Entry)> =
        entries.into_iter().filter_map(|it| Some((number(&it)?, it))).collect();
    wal.sort_by(|a, b| (&a.0, &a.1.path).cmp(&(&b.0, &b.1.path)));
    let cut = match limit {
        Limit::Before(name) => digits(name).map(str::to_owned),
        Limit::Retention { keep_age, keep_size } => retention_cut(&wal, *keep_age, *keep_size, now),
    };
    let Some(cut) = cut else { return Plan { remove: Vec::new(), kept_for: None, held: 0 } };
    let label = wal.iter().find(|(_, entry)| kind(entry) == Some(FileKind::Backup));
    let label = label.filter(|(start, _)| !drop_labels && *start < cut);
    let keep_from = label.map_or(&cut, |(start, _)| start);
    let kept_for = label.and_then(|(_, entry)| file(entry)).cloned();
    let goes = |entry: &Entry| kind(entry) != Some(FileKind::Backup) || drop_labels;
    let remove = wal.iter().filter(|(number, entry)| number < keep_from && goes(entry));
    let held = wal.iter().filter(|(number, _)| number >= keep_from && *number < cut);
    let held = held.map(|(_, entry)| entry.size).sum();
    Plan { remove: remove.map(|(_, entry)| entry.clone()).collect(), kept_for, held }
}

/// The first segment to keep. The newest always is.
fn retention_cut(
    wal: &[(Number, Entry)],
    keep_age: Option<Duration>,
    keep_size: Option<u64>,
    now: SystemTime,
) -> Option<Number> {
    let newest = wal.last().map(|(number, _)| number.clone())?;
    let is_old = |entry: &Entry| {
        keep_age.is_some_and(|keep| now.duration_since(entry.modified).is_ok_and(|age| age > keep))
    };
    let mut left: u64 = wal.iter().map(|(_, entry)| entry.size).sum();
    for (number, entry) in wal {
        if !is_old(entry) && keep_size.is_none_or(|keep| left <= keep) {
            return Some(number.clone().min(newest));
        }
        left -= entry.size;
    }
    Some(newest)
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

    fn chosen(entries: Vec<Entry>, limit: Limit, drop_labels: bool) -> Vec<String> {
        choose(entries, &limit, drop_labels, now()).remove.into_iter().map(|entry| entry.path).collect()
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
        let plan = choose(entries.clone(), &limit(), false, now());
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
