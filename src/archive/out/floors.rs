//! What all targets need kept, and have: a hold of each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use walrelay_proto::Lsn;

use super::board::{Board, TargetSeen};
use crate::store::{ArchivedWal, Hold, HoldKind, Store};

/// What one target needs and has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    /// WAL from here on is to be kept.
    pub(super) hold: Lsn,
    /// On which way that is ([`Holds::way`](crate::store::Holds::way)).
    pub(super) way: u64,
    /// What can be read back from it.
    pub(super) archived: Option<ArchivedWal>,
}

/// What every target needs and has: a hold of each, and together what the store can have read back.
#[derive(Debug)]
pub(super) struct Floors {
    store: Arc<Store>,
    pub(super) floors: Mutex<BTreeMap<String, Need>>,
}

/// What a target needs in one place: what it said about another one does not count.
#[derive(Debug)]
pub(super) struct Need {
    /// Its [`Target::identity`].
    place: String,
    /// Holds everything until it has said what it needs.
    hold: Hold,
    archived: Option<ArchivedWal>,
    board: Board,
}

impl Floors {
    pub(super) fn new(store: Arc<Store>) -> Floors {
        Floors { store, floors: Mutex::default() }
    }

    /// Holds everything until this target has said what it needs in the place of this identity.
    pub(super) fn expect(&self, name: &str, place: String) {
        // Before that of the old place is let go.
        let hold = self.store.holds().register(HoldKind::ArchiveTarget, name);
        let mut floors = lock(&self.floors);
        let board = Board::default();
        // A pause is of the target, wherever it is.
        board.set_paused(floors.get(name).is_some_and(|need| need.board.is_paused()));
        floors.insert(name.to_owned(), Need { place, hold, archived: None, board });
    }

    /// Where the worker of this target says how it does.
    pub(super) fn board(&self, name: &str) -> Board {
        lock(&self.floors).get(name).map(|need| need.board.clone()).unwrap_or_default()
    }

    /// Pauses a target, or lets it go on; `None` if there is none of that name, else whether it is another order than before.
    pub(super) fn set_paused(&self, name: &str, paused: bool) -> Option<bool> {
        let board = lock(&self.floors).get(name).map(|need| need.board.clone());
        board.map(|board| board.set_paused(paused))
    }

    /// Somebody has looked at what `dismiss` takes off the boards of all targets; how many there were.
    pub(super) fn dismiss(&self, dismiss: impl Fn(&Board) -> u64) -> u64 {
        lock(&self.floors).values().map(|need| dismiss(&need.board)).sum()
    }

    /// All targets with their places, and how each does.
    pub(super) fn seen(&self) -> Vec<(String, String, TargetSeen)> {
        let floors = lock(&self.floors);
        floors.iter().map(|(name, need)| (name.clone(), need.place.clone(), need.board.seen())).collect()
    }

    /// What a target needs; nothing is done if another place is expected of it meanwhile, where less may be.
    pub(super) fn set(&self, name: &str, place: &str, floor: Floor) {
        let mut floors = lock(&self.floors);
        let Some(need) = floors.get_mut(name).filter(|need| need.place == place) else { return };
        need.archived = floor.archived;
        // First: a slot whose WAL goes must not be lost when the archive has it.
        self.tell(&floors);
        floors[name].hold.set_on(floor.way, Some(floor.hold));
    }

    /// Nothing is held for this target any more.
    pub(super) fn remove(&self, name: &str) {
        let mut floors = lock(&self.floors);
        let gone = floors.remove(name);
        self.tell(&floors);
        drop(gone);
    }

    fn tell(&self, floors: &BTreeMap<String, Need>) {
        let archived = floors.values().filter_map(|need| need.archived);
        self.store.set_archived(archived.max_by_key(|archived| archived.to));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
