//! The connections' tasks, and whose they are.

use std::collections::HashMap;

use tokio::task::{Id, JoinError, JoinSet};

use crate::parts::named;
use crate::wire::Peer;

/// One task for each connection; all are aborted when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    running: JoinSet<()>,
    peers: HashMap<Id, Peer>,
}

impl Tasks {
    pub(super) fn spawn(&mut self, peer: Peer, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(named(format!("connection of {peer}").into(), task)).id();
        self.peers.insert(id, peer);
    }

    /// Resolves when one has ended; pends while there is none. Cancel-safe.
    pub(super) async fn one_ended(&mut self) {
        match self.running.join_next_with_id().await {
            Some(ended) => self.note(ended.map(|(id, ())| id)),
            None => std::future::pending().await,
        }
    }

    /// Resolves when none is left. Cancel-safe.
    pub(super) async fn all_ended(&mut self) {
        while let Some(ended) = self.running.join_next_with_id().await {
            self.note(ended.map(|(id, ())| id));
        }
    }

    /// A task that does not end by itself has a fault of ours, which must not pass unnoticed.
    fn note(&mut self, ended: Result<Id, JoinError>) {
        match ended {
            Ok(id) => _ = self.peers.remove(&id),
            Err(error) => {
                let peer = self.peers.remove(&error.id()).map(|peer| peer.to_string()).unwrap_or_default();
                tracing::error!(peer, "connection task failed: {error}");
            }
        }
    }
}
