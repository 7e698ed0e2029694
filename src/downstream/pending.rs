//! Connections that are not logged in yet, or never are. There is room for some; who comes when it is full takes the place of the
//! oldest from the source that has the most, so that connections held open by a few lock nobody else out.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::wire::Source;

/// All of them, oldest first.
#[derive(Debug)]
pub struct Pending {
    room: usize,
    /// Which they are, for the log.
    which: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
    dropped: u64,
}

#[derive(Debug)]
struct Waiting {
    /// `None` for Unix-domain sockets.
    source: Option<Source>,
    dropped: CancellationToken,
}

/// A place; given up when this is dropped.
#[derive(Debug)]
pub struct Place {
    id: u64,
    /// Somebody else needs it.
    pub dropped: CancellationToken,
    pending: Arc<Pending>,
}

impl Pending {
    /// Room for so many; the log is told which they are (`that ...`) when there are more.
    pub fn new(room: usize, which: &'static str) -> Pending {
        Pending { room, which, state: Mutex::default() }
    }

    /// Closes the oldest from the source that has the most, if there is any: something is needed that it holds.
    pub(super) fn drop_one(&self) {
        self.lock().drop_one(self.which);
    }

    /// A place for a newcomer.
    pub fn admit(self: &Arc<Self>, source: Option<Source>) -> Place {
        let mut state = self.lock();
        if state.waiting.len() >= self.room {
            state.drop_one(self.which);
        }
        state.last += 1;
        let (id, dropped) = (state.last, CancellationToken::new());
        state.waiting.insert(id, Waiting { source, dropped: dropped.clone() });
        Place { id, dropped, pending: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_one(&mut self, which: &str) {
        let mut counts: HashMap<Option<Source>, usize> = HashMap::new();
        self.waiting.values().for_each(|waiting| *counts.entry(waiting.source).or_default() += 1);
        let most = counts.values().copied().max();
        let victim = self.waiting.iter().find(|(_, waiting)| counts.get(&waiting.source).copied() == most);
        let Some(id) = victim.map(|(id, _)| *id) else { return };
        if let Some(waiting) = self.waiting.remove(&id) {
            waiting.dropped.cancel();
        }
        self.dropped += 1;
        // An attack must not fill the log.
        if self.dropped.is_power_of_two() {
            let dropped = self.dropped;
            tracing::warn!(dropped, "too many connections {which}, dropping the oldest");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pending.lock().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> Option<Source> {
        Some(std::net::IpAddr::from([192, 0, 2, last]).into())
    }

    #[test]
    fn the_busiest_source_loses_its_oldest() {
        let pending = Arc::new(Pending::new(4, "that wait"));
        let lonely = pending.admit(source(1));
        let greedy = [(); 3].map(|()| pending.admit(source(2)));
        let dropped = |place: &Place| place.dropped.is_cancelled();
        let newcomer = pending.admit(source(3));
        assert!(dropped(&greedy[0]) && !dropped(&greedy[1]) && !dropped(&lonely));
        let _local = pending.admit(None);
        assert!(dropped(&greedy[1]) && !dropped(&newcomer) && !dropped(&lonely));
        // Each has one now: the oldest goes.
        let last = pending.admit(source(4));
        assert!(dropped(&lonely) && !dropped(&greedy[2]));
        drop((greedy, lonely, newcomer, last));
        assert_eq!(pending.lock().waiting.len(), 1);
    }
}
