//! One file on its way: read here, written there.

use std::io::ErrorKind::{InvalidData, QuotaExceeded, StorageFull};
use std::path::Path;
use std::sync::Arc;

use walrelay_proto::{SegSize, WalFileName};

use super::{Outcome, Sink};
use crate::archive::out::command;
use crate::archive::repo::content::Content;
use crate::archive::repo::name::{FileKind, FileName};
use crate::archive::repo::repository::{WriteError, Written};
use crate::objects::Trouble;
use crate::store::{ReadError, Store};

/// Sends one file. `again`: what the target has of it may be lost.
pub(super) async fn send(
    sink: &Sink,
    store: &Arc<Store>,
    name: &FileName,
    size: SegSize,
    again: bool,
) -> Outcome {
    match sink {
        Sink::Objects(repository) => {
            let (from, file) = (store.clone(), name.clone());
            let content = tokio::task::spawn_blocking(move || content(&from, &file, size)).await;
            let content = match content {
                Ok(Ok(Some(content))) => content,
                Ok(Ok(None)) => return Outcome::Gone,
                Ok(Err(error)) => return Outcome::Unreadable(error.to_string()),
                Err(error) => return Outcome::Unreadable(error.to_string()),
            };
            let written = repository.send(name, content, again).await;
            written.map_or_else(failure, Outcome::Taken)
        }
        Sink::Command(line) => {
            let path = store.wal_path(name.as_str());
            let path = std::path::absolute(&path).unwrap_or(path);
            let Ok(length) = tokio::fs::metadata(&path).await.map(|found| found.len()) else {
                return Outcome::Gone;
            };
            match command::run(line, store.data_dir(), &path, name).await {
                Ok(()) => Outcome::Taken(Written::New { size: length }),
                Err(failure) => {
                    Outcome::Failed { reason: failure.reason, fatal: failure.fatal, not_synced: false }
                }
            }
        }
    }
}

pub(super) fn failure(error: WriteError) -> Outcome {
    let reason = error.to_string();
    match error {
        WriteError::Unfinished { .. } => Outcome::Unfinished(reason),
        WriteError::Unreachable { source, .. } if source.kind == Trouble::Unreadable => {
            Outcome::Unreadable(source.reason)
        }
        WriteError::Unreachable { source, .. } => Outcome::Failed {
            reason,
            fatal: source.kind == Trouble::Refused,
            not_synced: source.kind == Trouble::NotSynced,
        },
    }
}

/// A file's content; `None` if it is not here any more. For blocking threads.
pub(super) fn content(store: &Store, name: &FileName, size: SegSize) -> std::io::Result<Option<Content>> {
    let wal = match (name.kind(), name.wal(size)) {
        (FileKind::Segment, Some(wal)) => wal,
        (FileKind::Partial, Some(wal)) => return unfinished(store, name, wal),
        _ => return read_file(&store.wal_path(name.as_str())),
    };
    match store.finished_segment(wal) {
        Ok(segment) => {
            // A bad sector is an error here; found while a store's client sends the bytes, it would be a signal.
            segment.populate(0, segment.published() as usize)?;
            Ok(Some(Content::of(segment)))
        }
        Err(ReadError::Removed(_)) => Ok(None),
        Err(ReadError::Io { source, .. }) => Err(source),
    }
}

/// The last segment of a timeline that was left. Up to 1 GB of it is in memory only where the disk has no room for a copy:
/// WAL that is held for the target may be what fills it.
fn unfinished(store: &Store, name: &FileName, wal: WalFileName) -> std::io::Result<Option<Content>> {
    match store.copy_of_unfinished(wal) {
        Ok(None) => Ok(None),
        Ok(Some(segment)) => {
            segment.populate(0, segment.published() as usize)?;
            Ok(Some(Content::of(segment)))
        }
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded | InvalidData) => {
            read_file(&store.wal_path(name.as_str()))
        }
        Err(error) => Err(error),
    }
}

/// Nobody else syncs what lies beside finished segments; what is archived must not be less after a crash.
fn read_file(path: &Path) -> std::io::Result<Option<Content>> {
    let read = || -> std::io::Result<Content> {
        let mut file = std::fs::File::open(path)?;
        file.sync_all()?;
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut content)?;
        Ok(content.into())
    };
    match read() {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
