//! Cancel requests for what runs upstream.
//!
//! A forwarded session's client knows the upstream's own PID and key. A request with them comes to the relay,
//! which passes it on to the server the session runs at, and only if there is such a session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use subtle::ConstantTimeEq;
use tokio::time::Instant;

use super::{CONNECT_LIMIT, Gateway};
use crate::conninfo::{ConnInfo, HostSpec};
use crate::pg::{UpstreamConnection, send_cancel};

/// What it takes to cancel a session's command at the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CancelKey {
    pid: u32,
    key: Vec<u8>,
    host: HostSpec,
}

/// The sessions that can be cancelled, by PID; two servers may have given the same one.
pub(super) type Running = Arc<Mutex<HashMap<u32, Vec<CancelKey>>>>;

/// A session's place among those that can be cancelled, until it is dropped.
#[derive(Debug)]
pub struct Cancellable {
    key: CancelKey,
    running: Running,
}

impl Gateway {
    /// Makes the session known to [`Gateway::cancel`]. `None` if the server gave no key.
    pub(super) fn cancellable(&self, connection: &UpstreamConnection, host: HostSpec) -> Option<Cancellable> {
        let key = CancelKey { pid: connection.backend_pid()?, key: connection.cancel_key().to_vec(), host };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.entry(key.pid).or_default().push(key.clone());
        Some(Cancellable { key, running: self.running.clone() })
    }

    /// Passes a client's cancel request on if the session is one of ours. Says nothing either way.
    pub async fn cancel(&self, pid: u32, key: &[u8]) {
        let found = {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let candidates = running.get(&pid).map(Vec::as_slice).unwrap_or_default();
            candidates.iter().find(|known| bool::from(known.key.ct_eq(key))).cloned()
        };
        if let Some(found) = found {
            request(&self.info, &found).await;
        }
    }

    /// Cancels what a session runs at its server.
    pub async fn cancel_session(&self, session: &Cancellable) {
        request(&self.info, &session.key).await;
    }
}

async fn request(info: &ConnInfo, key: &CancelKey) {
    let deadline = Instant::now() + CONNECT_LIMIT;
    if let Err(error) = send_cancel(info, &key.host, key.pid, &key.key, deadline).await {
        tracing::warn!(pid = key.pid, "could not pass on a cancel request: {error}");
    }
}

impl Drop for Cancellable {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = running.get_mut(&self.key.pid) {
            if let Some(at) = keys.iter().position(|known| *known == self.key) {
                keys.swap_remove(at);
            }
            if keys.is_empty() {
                running.remove(&self.key.pid);
            }
        }
    }
}
