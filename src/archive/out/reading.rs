//! What is to be archived, read from `pg_wal`. Waits for the disk.

use std::io::ErrorKind::{InvalidData, QuotaExceeded, StorageFull};

use walrelay_proto::{SegSize, WalFileName};

use crate::archive::repo::content::Content;
use crate::archive::repo::name::{FileKind, FileName};
use crate::store::{ReadError, Store};

/// A file's content; `None` if it is not here any more. For blocking threads.
pub(super) fn content(store: &Store, name: &FileName, size: SegSize) -> std::io::Result<Option<Content>> {
    let wal = match (name.kind(), name.wal(size)) {
        (FileKind::Segment, Some(wal)) => wal,
        (FileKind::Partial, Some(wal)) => return unfinished(store, wal),
        _ => return other(store, name),
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

/// The last segment of a timeline that was left: a copy of its file, or the file itself where the disk has no room for one, since
/// WAL that is held for the target may be what fills it.
fn unfinished(store: &Store, wal: WalFileName) -> std::io::Result<Option<Content>> {
    match store.copy_of_unfinished(wal) {
        Ok(None) => Ok(None),
        Ok(Some(segment)) => {
            segment.populate(0, segment.published() as usize)?;
            Ok(Some(Content::of(segment)))
        }
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded | InvalidData) => {
            Ok(store.unfinished_file(wal)?.map(Content::file))
        }
        Err(error) => Err(error),
    }
}

/// Nobody else syncs what lies beside finished segments; what is archived must not be less after a crash.
fn other(store: &Store, name: &FileName) -> std::io::Result<Option<Content>> {
    Ok(store.synced_wal_file(name.as_str())?.map(Content::from))
}
