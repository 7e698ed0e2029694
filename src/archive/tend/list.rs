//! `walrelay archive list`: what can be restored from a target.

use std::collections::BTreeMap;

use serde::Serialize;
use walrelay_proto::{Lsn, PgTimestamp, SegSize, TimelineId, WalFileName};

use super::commits;
use crate::archive::repo::check;
use crate::archive::repo::layout::Item;
use crate::archive::repo::name::{FileKind, FileName};
use crate::archive::repo::repository::{ReadError, Repository};
use crate::progress::Progress;

/// Segments searched for a commit from either end; those in the middle of a bulk load have none.
const SEARCHED: usize = 64;

/// What a target holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Listing {
    /// The target's name.
    pub target: String,
    /// Decimal; `None` if there is no readable segment.
    pub system_identifier: Option<String>,
    /// Stretches of WAL without a gap, by timeline and position.
    pub stretches: Vec<Stretch>,
    /// Labels of base backups.
    pub backups: Vec<String>,
}

/// WAL without a gap on one timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stretch {
    /// The timeline.
    pub timeline: u32,
    /// First byte.
    pub from: String,
    /// First byte after it, pieces of an unfinished segment included.
    pub to: String,
    /// Finished segments.
    pub segments: usize,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// The first commit, ISO 8601 in UTC; `None` if none was found near the beginning.
    pub first_commit: Option<String>,
    /// The last commit in finished segments; `None` if none was found near the end.
    pub last_commit: Option<String>,
    /// Whether the timeline's history file is there, which all but the first have.
    pub history: bool,
}

struct Held {
    wal: WalFileName,
    name: FileName,
    size: u64,
}

/// Lists a target. What is damaged counts as there; [`verify`](super::verify) finds it. `progress` counts files that are read.
pub async fn list(repository: &Repository, progress: &Progress) -> Result<Listing, ReadError> {
    let entries = repository.list().await?;
    let mut listing = Listing {
        target: repository.name().to_owned(),
        system_identifier: None,
        stretches: Vec::new(),
        backups: Vec::new(),
    };
    let (mut files, mut unfinished) = (BTreeMap::new(), BTreeMap::<FileName, u64>::new());
    for entry in entries {
        match entry.item {
            Item::File(name, _) => _ = files.insert(name, entry.size),
            Item::Chunk(chunk, _) => {
                let end = unfinished.entry(chunk.segment).or_default();
                *end = chunk.end.max(*end);
            }
            _ => {}
        }
    }
    let of_kind = |kind| files.iter().filter(move |(name, _)| name.kind() == kind);
    listing.backups = of_kind(FileKind::Backup).map(|(name, _)| name.to_string()).collect();
    let Some((size, system)) = identity(repository, of_kind(FileKind::Segment).map(|(name, _)| name)).await?
    else {
        return Ok(listing);
    };
    listing.system_identifier = Some(system);
    let held = of_kind(FileKind::Segment)
        .filter_map(|(name, stored)| Some(Held { wal: name.wal(size)?, name: name.clone(), size: *stored }));
    let mut runs: Vec<Vec<Held>> = Vec::new();
    for one in held {
        match runs.last_mut().filter(|run| run.last().is_some_and(|last| is_next(last.wal, one.wal))) {
            Some(run) => run.push(one),
            None => runs.push(vec![one]),
        }
    }
    for run in runs {
        let tli = run[0].wal.tli;
        let history = tli == TimelineId::FIRST || files.contains_key(&FileName::history(tli));
        listing.stretches.push(stretch((repository, progress), &run, size, &unfinished, history).await?);
    }
    Ok(listing)
}

fn is_next(before: WalFileName, after: WalFileName) -> bool {
    after == WalFileName::new(before.tli, before.segno.next())
}

async fn identity(
    repository: &Repository,
    names: impl Iterator<Item = &FileName>,
) -> Result<Option<(SegSize, String)>, ReadError> {
    for name in names {
        match repository.read(name).await {
            Ok(Some(bytes)) => {
                if let Ok(id) = check::identity_of(&bytes) {
                    return Ok(Some((id.seg_size, id.system_id.to_string())));
                }
            }
            Ok(None) | Err(ReadError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

async fn stretch(
    from: (&Repository, &Progress),
    run: &[Held],
    size: SegSize,
    unfinished: &BTreeMap<FileName, u64>,
    history: bool,
) -> Result<Stretch, ReadError> {
    let (first, last) = (run[0].wal, run[run.len() - 1].wal);
    let next = FileName::segment(WalFileName::new(last.tli, last.segno.next()), size);
    let end: Lsn = last.segno.end(size).advance(unfinished.get(&next).copied().unwrap_or(0));
    let first_commit = find(from, run.iter(), size, |times| times.first().copied()).await?;
    let last_commit = find(from, run.iter().rev(), size, |times| times.last().copied()).await?;
    Ok(Stretch {
        timeline: first.tli.as_u32(),
        from: first.segno.start(size).to_string(),
        to: end.to_string(),
        segments: run.len(),
        stored_bytes: run.iter().map(|held| held.size).sum(),
        first_commit: first_commit.map(PgTimestamp::to_text),
        last_commit: last_commit.map(PgTimestamp::to_text),
        history,
    })
}

async fn find(
    (repository, progress): (&Repository, &Progress),
    segments: impl Iterator<Item = &Held>,
    size: SegSize,
    which: impl Fn(&[PgTimestamp]) -> Option<PgTimestamp>,
) -> Result<Option<PgTimestamp>, ReadError> {
    for held in segments.take(SEARCHED) {
        progress.did(1);
        match repository.read(&held.name).await {
            Ok(Some(bytes)) => {
                if let Some(time) = which(&commits::commit_times(&bytes, size)) {
                    return Ok(Some(time));
                }
            }
            Ok(None) | Err(ReadError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
