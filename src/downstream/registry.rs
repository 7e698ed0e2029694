//! Who is connected: PIDs, and the keys with which a command can be cancelled from another connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;
use tokio::sync::watch;

/// A request to cancel the running command. It has no effect on a session that is idle.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Cancel {
    fn new() -> Cancel {
        Cancel(Arc::new(watch::Sender::new(false)))
    }

    /// Forgets earlier requests: a new command begins.
    pub(super) fn arm(&self) {
        self.0.send_replace(false);
    }

    fn request(&self) {
        self.0.send_replace(true);
    }

    /// Resolves when the running command shall be cancelled. Cancel-safe.
    pub async fn requested(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|requested| *requested).await;
    }
}

/// All replication connections.
#[derive(Debug)]
pub struct Registry {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    live: BTreeMap<u32, Entry>,
    last_pid: u32,
}

#[derive(Debug)]
struct Entry {
    key: [u8; 4],
    cancel: Cancel,
}

/// A connection's place; given up when this is dropped.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) pid: u32,
    pub(super) key: [u8; 4],
    pub(super) cancel: Cancel,
    registry: Arc<Registry>,
}

impl Registry {
    pub(super) fn new(limit: usize) -> Registry {
        // PIDs look like those of a server's processes, and do not start over when the relay does: clients
        // make names of temporary slots out of them.
        let state = State { live: BTreeMap::new(), last_pid: std::process::id() };
        Registry { limit, state: Mutex::new(state) }
    }

    /// A place for a new connection, with a PID that no other has; `None` if all are taken.
    pub(super) fn register(self: &Arc<Self>, key: [u8; 4]) -> Option<Registration> {
        let mut state = self.lock();
        if state.live.len() >= self.limit {
            return None;
        }
        let pid = state.next_pid();
        let cancel = Cancel::new();
        state.live.insert(pid, Entry { key, cancel: cancel.clone() });
        Some(Registration { pid, key, cancel, registry: self.clone() })
    }

    /// Cancels what the connection with this PID does, if the key is right. Says nothing either way.
    pub(super) fn cancel(&self, pid: u32, key: &[u8]) {
        if let Some(entry) = self.lock().live.get(&pid)
            && bool::from(entry.key.ct_eq(key))
        {
            entry.cancel.request();
        }
    }

    /// Connections at the moment.
    pub fn len(&self) -> usize {
        self.lock().live.len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many may be connected.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_pid(&mut self) -> u32 {
        loop {
            // Positive as an int4, which is how clients read it.
            self.last_pid = if self.last_pid >= i32::MAX.cast_unsigned() { 1 } else { self.last_pid + 1 };
            if !self.live.contains_key(&self.last_pid) {
                return self.last_pid;
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.lock().live.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_are_unique_and_positive() {
        let registry = Arc::new(Registry::new(3));
        registry.lock().last_pid = i32::MAX.cast_unsigned() - 1;
        let first = registry.register([0; 4]).unwrap();
        let second = registry.register([0; 4]).unwrap();
        assert_eq!((first.pid, second.pid), (i32::MAX.cast_unsigned(), 1));
        registry.lock().last_pid = 0;
        assert_eq!(registry.register([0; 4]).unwrap().pid, 2);
        let third = registry.register([0; 4]).unwrap();
        assert!(registry.register([0; 4]).is_none());
        drop(third);
        assert!(registry.register([0; 4]).is_some());
    }

    #[test]
    fn a_cancel_needs_the_key() {
        let registry = Arc::new(Registry::new(3));
        let one = registry.register([1, 2, 3, 4]).unwrap();
        let requested = || *one.cancel.0.borrow();
        for (pid, key) in [
            (one.pid, &[1, 2, 3, 5][..]),
            (one.pid, &[1, 2, 3]),
            (one.pid, &[]),
            (one.pid + 1, &[1, 2, 3, 4]),
        ] {
            registry.cancel(pid, key);
            assert!(!requested());
        }
        registry.cancel(one.pid, &[1, 2, 3, 4]);
        assert!(requested());
        one.cancel.arm();
        assert!(!requested());
    }
}
