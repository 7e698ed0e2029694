//! One file on its way: read here, written there.

use std::sync::Arc;

use walrelay_proto::SegSize;

use super::{Outcome, Sink};
use crate::archive::out::command;
use crate::archive::out::reading::content;
use crate::archive::repo::name::FileName;
use crate::archive::repo::repository::{WriteError, Written};
use crate::objects::Trouble;
use crate::store::Store;

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
