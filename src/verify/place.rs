//! What lies in a directory: its kind, its segments and histories, and what a relay's own files say of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use walrelay_proto::{SegmentHead, TimelineHistory, TimelineId, WalFileName, WalIdentity};

use super::VerifyError;
use crate::archive::{FileKind, FileName, Format};
use crate::store::offline::{self, SavedState};

/// What only an archive has: its marker, and the suffix of its checksums.
const ARCHIVE_MARKER: &str = ".walrelay-archive";
const ARCHIVE_CHECKSUM: &str = ".sha256";

/// Segments that a record is followed back over; the longest that a server writes is 1 GB.
const MOST_CONTEXT: usize = 1024;

/// What a directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A relay's data directory.
    Relay,
    /// A PostgreSQL server's data directory or `pg_wal`, where segments lie ready for WAL to come.
    Server,
    /// Segments, each of them whole or called `.partial`.
    Segments,
}

impl Kind {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Relay => "data directory of a relay",
            Kind::Server => "WAL of a PostgreSQL server",
            Kind::Segments => "directory of WAL segments",
        }
    }
}

/// Whether a directory is an archive: with a marker, or with files that are compressed, encrypted or have checksums.
/// Only an archive's own reader understands it.
///
/// # Errors
/// It cannot be listed.
pub fn is_archive(dir: &Path) -> io::Result<bool> {
    if dir.join("pg_wal").is_dir() {
        return Ok(false);
    }
    let is_archives = |name: &str| {
        let stem = name.strip_suffix(ARCHIVE_CHECKSUM).unwrap_or(Format::split(name).0);
        name == ARCHIVE_MARKER || (stem != name && FileName::parse(stem).is_some())
    };
    Ok(names(dir)?.iter().any(|name| is_archives(name)))
}

/// A segment's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) name: WalFileName,
    /// Whether it is called `.partial`.
    pub(super) partial: bool,
    pub(super) path: PathBuf,
    pub(super) len: u64,
    /// `None` if its beginning is no WAL, or cannot be read.
    pub(super) head: Option<SegmentHead>,
}

impl Found {
    /// The file's name.
    pub(super) fn file(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether the first page is that of the segment that the file is called after.
    pub(super) fn has_begun(&self, id: WalIdentity) -> bool {
        self.head.is_some_and(|head| head.id == id && head.start == self.name.segno.start(id.seg_size))
    }
}

/// A file and what is wrong with it as a whole.
pub(super) type Bad = (String, String);

/// A directory that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// As it was given.
    pub(super) dir: PathBuf,
    /// The relay's or server's data directory that the segments are in, if that can be told.
    pub(super) data_dir: Option<PathBuf>,
    /// Where its segments are.
    pub(super) wal: PathBuf,
    pub(super) kind: Kind,
    pub(super) id: WalIdentity,
    /// Sorted by timeline and number; of one name the finished one only.
    pub(super) segments: Vec<Found>,
    pub(super) histories: BTreeMap<TimelineId, TimelineHistory>,
    /// History files and a relay's own files that cannot be used.
    pub(super) bad: Vec<Bad>,
    /// What a relay has left word of.
    pub(super) saved: SavedState,
}

impl Place {
    pub(super) fn look(dir: &Path) -> Result<Place, VerifyError> {
        let inside = dir.join("pg_wal");
        let wal = if inside.is_dir() { inside } else { dir.to_owned() };
        let data_dir = data_dir_of(dir);
        let kind = kind_of(data_dir.as_deref().unwrap_or(dir), &wal);
        let names = names(&wal).map_err(|source| VerifyError::Io { path: wal.clone(), source })?;
        let (saved, mut bad) = match kind {
            Kind::Relay => offline::read(data_dir.as_deref().unwrap_or(dir)),
            Kind::Server | Kind::Segments => (SavedState::default(), Vec::new()),
        };
        let files = names.iter().filter_map(|name| FileName::parse(name));
        let (mut heads, mut histories) = (Vec::new(), BTreeMap::from([first_history()]));
        for file in files {
            match file.kind() {
                FileKind::Segment | FileKind::Partial => {
                    heads.push((head_of(&wal.join(file.as_str())), file))
                }
                FileKind::History => match read_history(&wal, &file) {
                    Ok(history) => _ = histories.insert(file.tli(), history),
                    Err(reason) => bad.push((file.to_string(), reason)),
                },
                FileKind::Backup => {}
            }
        }
        let id = saved.identity.or_else(|| majority(heads.iter().filter_map(|((head, _), _)| *head)));
        let Some(id) = id else { return Err(VerifyError::Empty(dir.to_owned())) };
        let found = heads.into_iter().filter_map(|((head, len), file)| {
            let partial = file.kind() == FileKind::Partial;
            Some(Found { name: file.wal(id.seg_size)?, partial, path: wal.join(file.as_str()), len, head })
        });
        let mut segments: Vec<_> = found.collect();
        segments.sort_by_key(|found| (found.name, found.partial));
        segments.dedup_by_key(|found| found.name);
        Ok(Place { dir: dir.to_owned(), data_dir, wal, kind, id, segments, histories, bad, saved })
    }

    /// The same place with these files in it.
    pub(super) fn with(&self, files: &[Found]) -> Place {
        let mut with = self.clone();
        with.segments.retain(|found| files.iter().all(|file| file.name != found.name));
        with.segments.extend(files.iter().cloned());
        with.segments.sort_by_key(|found| found.name);
        with
    }

    /// The file of this name, if there is one.
    pub(super) fn find(&self, name: WalFileName) -> Option<&Found> {
        let at = self.segments.binary_search_by_key(&name, |found| found.name).ok()?;
        self.segments.get(at)
    }

    /// The file that holds the segment before this one on the way to its timeline.
    pub(super) fn before(&self, name: WalFileName) -> Option<&Found> {
        let segno = name.segno.prev()?;
        let last_byte = segno.end(self.id.seg_size).rewind(1);
        let history = self.histories.get(&name.tli);
        let tli = history.map_or(name.tli, |history| history.timeline_at(last_byte));
        self.find(WalFileName::new(tli, segno))
    }

    /// What comes before a segment, oldest first, back to where a record begins that may reach into it.
    pub(super) fn context(&self, name: WalFileName) -> Vec<&Found> {
        let mut context: Vec<&Found> = Vec::new();
        let mut at = name;
        while context.len() < MOST_CONTEXT
            && let Some(before) = self.before(at)
        {
            context.push(before);
            if !before.head.is_some_and(|head| head.is_middle_of_record()) {
                break;
            }
            at = before.name;
        }
        context.reverse();
        context
    }
}

/// The directory that has this one as its `pg_wal`, by the name given or behind links.
fn data_dir_of(dir: &Path) -> Option<PathBuf> {
    if dir.join("pg_wal").is_dir() {
        return Some(dir.to_owned());
    }
    let real = fs::canonicalize(dir).ok()?;
    let has_it = |parent: &PathBuf| fs::canonicalize(parent.join("pg_wal")).is_ok_and(|wal| wal == real);
    let by_name = std::path::absolute(dir).ok();
    let parents = [by_name.as_deref().and_then(Path::parent), real.parent()];
    parents.into_iter().flatten().map(Path::to_owned).find(has_it)
}

fn kind_of(dir: &Path, wal: &Path) -> Kind {
    let has = |dir: &Path, name: &str| dir.join(name).symlink_metadata().is_ok();
    if has(dir, "PG_VERSION") || has(wal, "archive_status") {
        Kind::Server
    } else if has(dir, "cluster.toml") || has(dir, "walrelay.lock") {
        Kind::Relay
    } else {
        Kind::Segments
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn first_history() -> (TimelineId, TimelineHistory) {
    (TimelineId::FIRST, TimelineHistory::first())
}

/// A file's beginning and its length; what cannot be read is found when the whole is.
fn head_of(path: &Path) -> (Option<SegmentHead>, u64) {
    let Ok(file) = File::open(path) else { return (None, 0) };
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let mut head = [0; SegmentHead::LEN];
    let read = file.read_exact_at(&mut head, 0);
    (read.ok().and_then(|()| SegmentHead::parse(&head)), len)
}

fn read_history(wal: &Path, file: &FileName) -> Result<TimelineHistory, String> {
    let text = fs::read(wal.join(file.as_str())).map_err(|error| error.to_string())?;
    TimelineHistory::parse(file.tli(), &text).map_err(|error| error.to_string())
}

/// The cluster of most segments: one of another among them is the one that is wrong.
fn majority(heads: impl Iterator<Item = SegmentHead>) -> Option<WalIdentity> {
    let mut votes: Vec<(WalIdentity, usize)> = Vec::new();
    for head in heads {
        match votes.iter_mut().find(|(id, _)| *id == head.id) {
            Some((_, count)) => *count += 1,
            None => votes.push((head.id, 1)),
        }
    }
    votes.into_iter().max_by_key(|(_, count)| *count).map(|(id, _)| id)
}
