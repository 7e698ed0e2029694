//! Retention: which WAL is kept, and the thread that removes the rest.
//!
//! Kept is what a valid slot needs and what lies within `wal_keep_size` of the newest WAL. Slots that
//! would keep more than `max_slot_wal_keep_size` are marked lost first (PostgreSQL: `KeepLogSeg`,
//! `RemoveOldXlogFiles`). A slot's position is saved before WAL behind it is removed. What the archive has not
//! got yet is kept as well, as far as its targets ask for it.

use std::fs;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use walrelay_proto::{Lsn, SegNo, SegSize, SlotName};

use super::{SlotError, SlotPersistence, Store, Tip, lock};
use crate::parts::{PartEnded, Thread};

/// Slots move without telling; this often they are looked at anyway.
const INTERVAL: Duration = Duration::from_secs(5);

/// Wakes the retention thread.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<BellState>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct BellState {
    rung: bool,
    stop: bool,
}

impl Bell {
    pub(super) fn ring(&self) {
        lock(&self.state).rung = true;
        self.rung.notify_one();
    }

    /// Waits for a ring or for the interval; false when the thread shall stop.
    fn wait(&self) -> bool {
        let state = lock(&self.state);
        let quiet = |state: &mut BellState| !state.rung && !state.stop;
        let (mut state, _) =
            self.rung.wait_timeout_while(state, INTERVAL, quiet).unwrap_or_else(PoisonError::into_inner);
        state.rung = false;
        !state.stop
    }
}

/// What the archive has, and what it still needs.
#[derive(Debug, Default)]
pub(super) struct ArchiveFloor {
    state: Mutex<FloorState>,
}

#[derive(Clone, Copy, Debug, Default)]
struct FloorState {
    hold: Option<Lsn>,
    archived: Option<ArchivedWal>,
    /// There is an archive that WAL can be fetched back from.
    readable: bool,
    /// It has not said yet what it has.
    pending: bool,
}

impl FloorState {
    /// Whether WAL from `restart` on can be had, if here only that from `kept` on stays.
    fn covers(&self, restart: Lsn, kept: Lsn) -> bool {
        let archived = |wal: ArchivedWal| wal.from <= restart && kept <= wal.to;
        self.pending || (self.readable && (kept <= restart || self.archived.is_some_and(archived)))
    }
}

/// WAL that at least one target which can be read has without a gap, on the way to the newest timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArchivedWal {
    /// Its first byte.
    pub from: Lsn,
    /// The first byte after it.
    pub to: Lsn,
}

/// The retention thread.
#[derive(Debug)]
pub(super) struct Retention {
    thread: Thread<()>,
}

impl Retention {
    pub(super) fn start(store: Arc<Store>) -> Retention {
        let run = move || {
            while store.retention_bell.wait() {
                if let Err(error) = store.remove_old_wal() {
                    tracing::warn!("could not remove old WAL: {error}; will try again");
                }
            }
        };
        let thread = Thread::start("retention", run);
        Retention { thread: thread.expect("threads can be started when the process starts") }
    }

    /// Resolves when the thread has ended by itself. Cancel-safe.
    pub(super) async fn lost(&mut self) -> PartEnded {
        self.thread.lost().await
    }

    /// Ends the thread and saves the slots.
    pub(super) fn stop(self, store: &Store) -> Result<(), PartEnded> {
        lock(&store.retention_bell.state).stop = true;
        store.retention_bell.rung.notify_one();
        let ended = self.thread.join();
        if let Err(error) = store.slots.save() {
            tracing::error!("could not save replication slots: {error}");
        }
        ended
    }
}

impl Store {
    /// One pass: saves slots, marks those beyond the limit as lost, removes what nobody needs.
    pub(super) fn remove_old_wal(&self) -> io::Result<()> {
        self.senders.refresh_horizon();
        let (Some(identity), Some(tip)) = (self.identity(), self.tip()) else { return self.slots.save() };
        self.give_up_slots(tip, identity.seg_size);
        self.slots.save()?;
        let _choosing = self.slots.choose_wal();
        self.remove_segments_before(self.keep_from(tip, identity.seg_size).seg_at(identity.seg_size))
    }

    /// Marks slots beyond the limit as lost, unless the archive can bring back what is removed here.
    fn give_up_slots(&self, tip: Tip, size: SegSize) {
        let kept = self.keep_from(tip, size).seg_start(size);
        let archive = *lock(&self.archive.state);
        let covered = |restart| archive.covers(restart, kept);
        for slot in self.slots.invalidate_before(self.slots_keep_from(tip, size), covered) {
            let restart = slot.restart_lsn.unwrap_or_default();
            tracing::warn!(
                "invalidating slot \"{}\" because its restart_lsn {restart} exceeds max_slot_wal_keep_size",
                slot.name
            );
        }
    }

    /// Says that there is an archive that WAL can be fetched back from: until [`Store::set_archived`] is called, no
    /// slot is lost.
    pub fn expect_archive(&self) {
        let mut state = lock(&self.archive.state);
        (state.readable, state.pending) = (true, true);
    }

    /// Keeps all WAL from `from` on for the archive; `None` for none. Takes effect at once.
    pub fn hold_for_archive(&self, from: Option<Lsn>) {
        let before = std::mem::replace(&mut lock(&self.archive.state).hold, from);
        if before != from {
            self.retention_bell.ring();
        }
    }

    /// Says what the archive has.
    pub fn set_archived(&self, archived: Option<ArchivedWal>) {
        let mut state = lock(&self.archive.state);
        (state.archived, state.pending) = (archived, false);
    }

    /// What the archive has; `None` for nothing, or without an archive.
    pub fn archived(&self) -> Option<ArchivedWal> {
        lock(&self.archive.state).archived
    }

    /// What can be fetched back; everything, as long as the archive has not said what it has.
    pub fn recallable(&self) -> Option<ArchivedWal> {
        let state = *lock(&self.archive.state);
        let anything = ArchivedWal { from: Lsn::INVALID, to: Lsn::new(u64::MAX) };
        state.archived.filter(|_| state.readable).or(state.pending.then_some(anything))
    }

    /// Makes a slot that keeps all WAL held here, as there is no checkpoint of our own to start from; but no more
    /// than a slot may keep, else it would be lost at once. What it keeps is there when this returns.
    ///
    /// Waits for the disk. Fails as [`Slots::create`](super::Slots::create) does.
    pub fn create_reserving_slot(
        &self,
        name: &SlotName,
        persistence: SlotPersistence,
    ) -> Result<(), SlotError> {
        let _choosing = self.slots.choose_wal();
        self.slots.create(name, persistence, self.wal_to_reserve())
    }

    fn wal_to_reserve(&self) -> Option<Lsn> {
        let (oldest, tip, size) = (self.oldest()?, self.tip()?.write_lsn, self.identity()?.seg_size);
        let allowed = match self.config.max_slot_wal_keep_size {
            Some(most) => tip.rewind(most).advance(size.bytes()).seg_start(size),
            None => oldest,
        };
        Some(oldest.max(allowed).min(tip.seg_start(size)))
    }

    /// Oldest position that has to stay.
    fn keep_from(&self, tip: Tip, size: SegSize) -> Lsn {
        let Tip { write_lsn, flush_lsn, .. } = tip;
        let by_size = write_lsn.rewind(self.config.wal_keep_size);
        // The segment before the durable end stays in any case: recovery starts from it.
        let by_recovery = flush_lsn.rewind(1);
        let by_slots = self.slots.oldest_restart_lsn(self.slots_keep_from(tip, size)).unwrap_or(write_lsn);
        let by_archive = lock(&self.archive.state).hold.unwrap_or(write_lsn);
        by_size.min(by_recovery).min(by_slots).min(by_archive)
    }

    /// Slots keep nothing before this.
    fn slots_keep_from(&self, tip: Tip, size: SegSize) -> Lsn {
        let limit = self.config.max_slot_wal_keep_size;
        limit.map_or(Lsn::INVALID, |limit| tip.write_lsn.rewind(limit).seg_start(size))
    }

    fn remove_segments_before(&self, keep: SegNo) -> io::Result<()> {
        let Some(identity) = self.identity() else { return Ok(()) };
        let mut removed = 0;
        for found in self.dir.segments(identity.seg_size)? {
            if found.name.segno >= keep {
                continue;
            }
            let path = match found.partial {
                true => self.dir.partial(found.name, identity.seg_size),
                false => self.dir.segment(found.name, identity.seg_size),
            };
            fs::remove_file(path)?;
            removed += 1;
        }
        if removed > 0 {
            self.dir.sync_wal_dir()?;
            tracing::debug!("removed {removed} WAL segments before {}", keep.start(identity.seg_size));
        }
        Ok(())
    }
}
