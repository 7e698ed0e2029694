//! Physical replication slots of the relay (PostgreSQL: `slot.c`).
//!
//! A slot keeps WAL from its `restart_lsn` on. Consumers move it with their flush reports, in both
//! directions and unchecked, as in PostgreSQL. Slots live in memory and are saved whole to `slots.toml`: at
//! once when one is created or dropped, else by [`Slots::save`], which retention calls *before* it removes
//! WAL, so that a crash never leaves a slot that points to removed WAL.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walrelay_proto::{FullXid, Lsn, SlotName};

use super::dir::DataDir;
use super::lock;
use super::senders::FeedbackHorizon;

/// File of the data directory that holds the slots.
const FILE: &str = "slots.toml";

/// How long a slot lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotPersistence {
    /// Until it is dropped.
    Persistent,
    /// Until the connection with this PID ends.
    Temporary {
        /// The owner's PID.
        owner: u32,
    },
}

/// A command on a slot cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The name is taken.
    #[error("replication slot \"{name}\" already exists")]
    Exists {
        /// The slot.
        name: String,
    },
    /// There is no such slot.
    #[error("replication slot \"{name}\" does not exist")]
    Missing {
        /// The slot.
        name: String,
    },
    /// Another connection uses it.
    #[error("replication slot \"{name}\" is active for PID {pid}")]
    Active {
        /// The slot.
        name: String,
        /// Who uses it.
        pid: u32,
    },
    /// `max_replication_slots` is reached.
    #[error("all replication slots are in use")]
    Full,
    /// WAL it needs has been removed.
    #[error("can no longer access replication slot \"{name}\"")]
    Invalidated {
        /// The slot.
        name: String,
    },
    /// The slots could not be saved; nothing has changed.
    #[error("could not save replication slots: {0}")]
    Io(#[from] io::Error),
}

/// A slot as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotInfo {
    /// Its name.
    pub name: String,
    /// Oldest WAL it keeps; `None` until WAL is reserved or a flush has been reported.
    pub restart_lsn: Option<Lsn>,
    /// Connection that uses it.
    pub active_pid: Option<u32>,
    /// Whether it ends with its connection.
    pub temporary: bool,
    /// Whether it has lost WAL that it should have kept (`wal_status = lost`).
    pub invalidated: bool,
    /// The standby's feedback, kept across connections.
    pub feedback: FeedbackHorizon,
    /// Since when nobody uses it: its release, its creation, or the relay's start; `None` while it is in use.
    pub inactive_since: Option<SystemTime>,
}

#[derive(Debug)]
struct Slot {
    name: SlotName,
    owner: Option<u32>,
    /// 0 stands for none.
    restart_lsn: AtomicU64,
    /// 0 stands for nobody.
    active_pid: AtomicU32,
    invalidated: AtomicBool,
    /// Ends the connection that uses the slot when it is invalidated; one for each acquisition.
    evict: Mutex<CancellationToken>,
    feedback: Mutex<FeedbackHorizon>,
    inactive_since: Mutex<SystemTime>,
}

/// All slots of the relay.
#[derive(Debug)]
pub struct Slots {
    limit: usize,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    /// Held while WAL is chosen to be kept by a new slot, or to be removed. Taken before `slots`.
    choosing: Mutex<()>,
    dir: Arc<DataDir>,
    /// Something moved since the last save.
    dirty: AtomicBool,
    /// Steps at every release and drop, for who waits for one.
    released: watch::Sender<u64>,
}

/// A slot in use by one connection; released when this is dropped.
#[derive(Debug)]
pub struct SlotGuard {
    slot: Arc<Slot>,
    slots: Arc<Slots>,
    evict: CancellationToken,
}

#[derive(Serialize, Deserialize, Default)]
struct Saved {
    #[serde(default)]
    slot: Vec<SavedSlot>,
}

#[derive(Serialize, Deserialize)]
struct SavedSlot {
    name: String,
    restart_lsn: Option<String>,
    #[serde(default)]
    invalidated: bool,
    /// Epoch in the upper half.
    xmin: Option<u64>,
    catalog_xmin: Option<u64>,
}

impl Slots {
    /// Reads the slots of a data directory.
    pub(super) fn open(dir: Arc<DataDir>, limit: usize) -> io::Result<Arc<Slots>> {
        let text = dir.read(FILE)?.unwrap_or_default();
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {what}"));
        let saved: Saved = toml::from_str(&text)
            .map_err(|error: toml::de::Error| bad(error.message().replace('\n', " ")))?;
        let mut slots = BTreeMap::new();
        for one in saved.slot {
            let name = one.name.parse::<SlotName>().map_err(|error| bad(error.to_string()))?;
            let restart = one.restart_lsn.as_deref().map(str::parse::<Lsn>).transpose();
            let slot = Slot::new(name, None, restart.map_err(|error| bad(error.to_string()))?);
            slot.invalidated.store(one.invalidated, Ordering::Relaxed);
            let full = |id: u64| FullXid::new((id >> 32) as u32, id as u32);
            *lock(&slot.feedback) = FeedbackHorizon {
                xmin: one.xmin.and_then(full),
                catalog_xmin: one.catalog_xmin.and_then(full),
            };
            slots.insert(one.name, Arc::new(slot));
        }
        let released = watch::Sender::new(0);
        Ok(Arc::new(Slots {
            limit,
            slots: Mutex::new(slots),
            choosing: Mutex::default(),
            dir,
            dirty: AtomicBool::new(false),
            released,
        }))
    }

    /// As long as this is held, nobody else removes WAL or makes a slot that reserves some.
    pub(super) fn choose_wal(&self) -> MutexGuard<'_, ()> {
        lock(&self.choosing)
    }

    /// Makes a slot that keeps WAL from `reserve` on, durably if it is persistent. A temporary one is
    /// in use by its owner from the start.
    pub fn create(
        &self,
        name: &SlotName,
        persistence: SlotPersistence,
        reserve: Option<Lsn>,
    ) -> Result<(), SlotError> {
        let owner = match persistence {
            SlotPersistence::Persistent => None,
            SlotPersistence::Temporary { owner } => Some(owner),
        };
        let mut slots = lock(&self.slots);
        if slots.contains_key(name.as_str()) {
            return Err(SlotError::Exists { name: name.to_string() });
        }
        if slots.len() >= self.limit {
            return Err(SlotError::Full);
        }
        slots.insert(name.to_string(), Arc::new(Slot::new(name.clone(), owner, reserve)));
        if owner.is_none()
            && let Err(error) = self.save_locked(&slots)
        {
            slots.remove(name.as_str());
            return Err(error.into());
        }
        Ok(())
    }

    /// The slot, if there is one.
    pub fn get(&self, name: &str) -> Option<SlotInfo> {
        lock(&self.slots).get(name).map(|slot| slot.info())
    }

    /// All slots, by name.
    pub fn list(&self) -> Vec<SlotInfo> {
        lock(&self.slots).values().map(|slot| slot.info()).collect()
    }

    /// Takes a slot for streaming (PostgreSQL: `ReplicationSlotAcquire`).
    pub fn acquire(self: &Arc<Self>, name: &str, pid: u32) -> Result<SlotGuard, SlotError> {
        let slots = lock(&self.slots);
        let slot = slots.get(name).ok_or_else(|| SlotError::Missing { name: name.to_owned() })?;
        slot.check_free(pid)?;
        if slot.invalidated.load(Ordering::Relaxed) {
            return Err(SlotError::Invalidated { name: name.to_owned() });
        }
        slot.active_pid.store(pid, Ordering::Relaxed);
        let evict = CancellationToken::new();
        *lock(&slot.evict) = evict.clone();
        Ok(SlotGuard { slot: slot.clone(), slots: self.clone(), evict })
    }

    /// Drops a slot that nobody else uses.
    pub fn drop_slot(&self, name: &str, pid: u32) -> Result<(), SlotError> {
        let mut slots = lock(&self.slots);
        let slot = slots.get(name).ok_or_else(|| SlotError::Missing { name: name.to_owned() })?;
        slot.check_free(pid)?;
        let Some(removed) = slots.remove(name) else { return Ok(()) };
        if removed.owner.is_none()
            && let Err(error) = self.save_locked(&slots)
        {
            slots.insert(name.to_owned(), removed);
            return Err(error.into());
        }
        drop(slots);
        self.note_release();
        Ok(())
    }

    /// Drops the temporary slots of a connection: at its end and at any error in it, as PostgreSQL does.
    pub fn drop_temporary_of(&self, pid: u32) {
        let mut slots = lock(&self.slots);
        let before = slots.len();
        slots.retain(|_, slot| slot.owner != Some(pid));
        if slots.len() != before {
            drop(slots);
            self.note_release();
        }
    }

    /// Waits until the slot is free or gone. Cancel-safe.
    pub async fn released(&self, name: &str) {
        let mut changes = self.released.subscribe();
        while self.get(name).is_some_and(|slot| slot.active_pid.is_some()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Saves positions that have moved since the last time.
    pub(super) fn save(&self) -> io::Result<()> {
        if !self.dirty.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let slots = lock(&self.slots);
        self.save_locked(&slots).inspect_err(|_| self.dirty.store(true, Ordering::Relaxed))
    }

    /// Oldest WAL that a valid slot keeps, of those that need none before `from`.
    pub(super) fn oldest_restart_lsn(&self, from: Lsn) -> Option<Lsn> {
        let slots = lock(&self.slots);
        slots
            .values()
            .filter(|slot| !slot.info().invalidated)
            .filter_map(|slot| slot.info().restart_lsn)
            .filter(|restart| *restart >= from)
            .min()
    }

    /// Marks slots that would keep WAL before `limit` as lost and ends their connections; returns them as they
    /// were (PostgreSQL: `InvalidateObsoleteReplicationSlots`). Those whose position is `covered` are served
    /// otherwise, and stay.
    pub(super) fn invalidate_before(&self, limit: Lsn, covered: impl Fn(Lsn) -> bool) -> Vec<SlotInfo> {
        let slots = lock(&self.slots);
        let behind = |slot: &&Arc<Slot>| {
            let info = slot.info();
            !info.invalidated && info.restart_lsn.is_some_and(|restart| restart < limit && !covered(restart))
        };
        let lost: Vec<_> = slots.values().filter(behind).cloned().collect();
        drop(slots);
        let before = lost.iter().map(|slot| slot.info()).collect();
        for slot in &lost {
            slot.invalidated.store(true, Ordering::Relaxed);
            slot.restart_lsn.store(0, Ordering::Relaxed);
            lock(&slot.evict).cancel();
            self.dirty.store(true, Ordering::Relaxed);
        }
        before
    }

    /// What the slots' standbys still need the primary to keep.
    pub(super) fn feedback(&self) -> FeedbackHorizon {
        let slots = lock(&self.slots);
        let valid = slots.values().filter(|slot| !slot.invalidated.load(Ordering::Relaxed));
        valid.fold(FeedbackHorizon::default(), |merged, slot| merged.merge(*lock(&slot.feedback)))
    }

    fn save_locked(&self, slots: &BTreeMap<String, Arc<Slot>>) -> io::Result<()> {
        let persistent = slots.values().filter(|slot| slot.owner.is_none());
        let saved = Saved { slot: persistent.map(|slot| slot.saved()).collect() };
        let text = toml::to_string(&saved).map_err(io::Error::other)?;
        self.dir.replace(FILE, &text)
    }

    fn note_release(&self) {
        self.released.send_modify(|step| *step += 1);
    }
}

impl Slot {
    fn new(name: SlotName, owner: Option<u32>, restart: Option<Lsn>) -> Slot {
        Slot {
            name,
            owner,
            restart_lsn: AtomicU64::new(restart.unwrap_or_default().as_u64()),
            active_pid: AtomicU32::new(owner.unwrap_or(0)),
            invalidated: AtomicBool::new(false),
            evict: Mutex::default(),
            feedback: Mutex::default(),
            inactive_since: Mutex::new(SystemTime::now()),
        }
    }

    fn info(&self) -> SlotInfo {
        let pid = self.active_pid.load(Ordering::Relaxed);
        SlotInfo {
            name: self.name.to_string(),
            restart_lsn: Lsn::new(self.restart_lsn.load(Ordering::Relaxed)).valid(),
            active_pid: (pid != 0).then_some(pid),
            temporary: self.owner.is_some(),
            invalidated: self.invalidated.load(Ordering::Relaxed),
            feedback: *lock(&self.feedback),
            inactive_since: (pid == 0).then(|| *lock(&self.inactive_since)),
        }
    }

    fn saved(&self) -> SavedSlot {
        let info = self.info();
        let full = |id: FullXid| u64::from(id.epoch) << 32 | u64::from(id.xid);
        SavedSlot {
            name: info.name,
            restart_lsn: info.restart_lsn.map(|lsn| lsn.to_string()),
            invalidated: info.invalidated,
            xmin: info.feedback.xmin.map(full),
            catalog_xmin: info.feedback.catalog_xmin.map(full),
        }
    }

    fn check_free(&self, pid: u32) -> Result<(), SlotError> {
        match self.active_pid.load(Ordering::Relaxed) {
            0 => Ok(()),
            active if active == pid => Ok(()),
            active => Err(SlotError::Active { name: self.name.to_string(), pid: active }),
        }
    }
}

impl SlotGuard {
    /// The slot's name.
    pub fn name(&self) -> &str {
        self.slot.name.as_str()
    }

    /// Takes a flush report: the slot keeps WAL from there on. `0/0` is no report
    /// (PostgreSQL: `PhysicalConfirmReceivedLocation`).
    pub fn confirm_flush(&self, flush: Lsn) {
        let new = flush.as_u64();
        if new != 0 && self.slot.restart_lsn.swap(new, Ordering::Relaxed) != new {
            self.slots.dirty.store(true, Ordering::Relaxed);
        }
    }

    /// Resolves when the slot has been invalidated: the connection has to end. Cancel-safe.
    pub async fn evicted(&self) {
        self.evict.cancelled().await;
    }

    pub(super) fn set_feedback(&self, feedback: FeedbackHorizon) {
        let mut current = lock(&self.slot.feedback);
        if *current != feedback {
            *current = feedback;
            self.slots.dirty.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for SlotGuard {
    /// A temporary slot stays with its connection; another becomes free.
    fn drop(&mut self) {
        *lock(&self.slot.inactive_since) = SystemTime::now();
        self.slot.active_pid.store(self.slot.owner.unwrap_or(0), Ordering::Relaxed);
        self.slots.note_release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SlotName {
        text.parse::<SlotName>().unwrap()
    }

    fn open(path: &std::path::Path) -> Arc<Slots> {
        Slots::open(Arc::new(DataDir::lock(path).unwrap()), 3).unwrap()
    }

    #[test]
    fn slots_survive_a_restart_and_temporary_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, Some(Lsn::new(0x100_0000))).unwrap();
        slots.create(&name("t"), SlotPersistence::Temporary { owner: 7 }, None).unwrap();
        slots.acquire("a", 5).unwrap().confirm_flush(Lsn::new(0x200_0000));
        slots.save().unwrap();
        drop(slots);
        let slots = open(dir.path());
        assert_eq!(slots.list().len(), 1);
        assert_eq!(slots.get("a").unwrap().restart_lsn, Some(Lsn::new(0x200_0000)));
    }

    #[test]
    fn a_slot_knows_since_when_nobody_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let slots = open(dir.path());
        let before = SystemTime::now();
        slots.create(&name("a"), SlotPersistence::Persistent, None).unwrap();
        let created = slots.get("a").unwrap().inactive_since.unwrap();
        assert!(created >= before);
        let guard = slots.acquire("a", 5).unwrap();
        assert_eq!(slots.get("a").unwrap().inactive_since, None);
        let released_after = SystemTime::now();
        drop(guard);
        assert!(slots.get("a").unwrap().inactive_since.unwrap() >= released_after);
    }

    #[test]
    fn one_user_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, None).unwrap();
        let guard = slots.acquire("a", 5).unwrap();
        assert!(matches!(slots.acquire("a", 6), Err(SlotError::Active { pid: 5, .. })));
        assert!(matches!(slots.drop_slot("a", 6), Err(SlotError::Active { pid: 5, .. })));
        drop(guard);
        slots.drop_slot("a", 6).unwrap();
        assert!(matches!(slots.acquire("a", 6), Err(SlotError::Missing { .. })));
    }

    #[test]
    fn a_temporary_slot_belongs_to_its_connection() {
        let dir = tempfile::tempdir().unwrap();
        let slots = open(dir.path());
        slots.create(&name("t"), SlotPersistence::Temporary { owner: 7 }, None).unwrap();
        assert!(matches!(slots.acquire("t", 6), Err(SlotError::Active { pid: 7, .. })));
        drop(slots.acquire("t", 7).unwrap());
        assert!(matches!(slots.acquire("t", 6), Err(SlotError::Active { pid: 7, .. })));
        slots.drop_temporary_of(7);
        assert!(slots.get("t").is_none());
    }

    #[test]
    fn names_and_numbers_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let slots = open(dir.path());
        for text in ["a", "b", "c"] {
            slots.create(&name(text), SlotPersistence::Persistent, None).unwrap();
        }
        let again = slots.create(&name("a"), SlotPersistence::Persistent, None);
        assert!(matches!(again, Err(SlotError::Exists { .. })));
        let fourth = slots.create(&name("d"), SlotPersistence::Persistent, None);
        assert!(matches!(fourth, Err(SlotError::Full)));
    }

    #[test]
    fn flush_reports_move_a_slot_in_both_directions_and_zero_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, None).unwrap();
        let guard = slots.acquire("a", 5).unwrap();
        let restart = || slots.get("a").unwrap().restart_lsn;
        guard.confirm_flush(Lsn::INVALID);
        assert_eq!(restart(), None);
        guard.confirm_flush(Lsn::new(500));
        guard.confirm_flush(Lsn::new(400));
        assert_eq!(restart(), Some(Lsn::new(400)));
    }

    #[tokio::test]
    async fn a_slot_that_falls_behind_the_limit_is_lost_and_its_user_told() {
        let dir = tempfile::tempdir().unwrap();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, Some(Lsn::new(100))).unwrap();
        slots.create(&name("b"), SlotPersistence::Persistent, Some(Lsn::new(200))).unwrap();
        let guard = slots.acquire("a", 5).unwrap();
        let lost = slots.invalidate_before(Lsn::new(200), |_| false);
        assert_eq!(lost.iter().map(|slot| slot.name.as_str()).collect::<Vec<_>>(), ["a"]);
        guard.evicted().await;
        drop(guard);
        assert!(matches!(slots.acquire("a", 5), Err(SlotError::Invalidated { .. })));
        assert_eq!(slots.oldest_restart_lsn(Lsn::INVALID), Some(Lsn::new(200)));
        slots.acquire("b", 5).unwrap();
    }

    #[test]
    fn a_slot_that_is_served_otherwise_stays_and_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let slots = open(dir.path());
        for (text, at) in [("a", 100), ("b", 150), ("c", 200)] {
            slots.create(&name(text), SlotPersistence::Persistent, Some(Lsn::new(at))).unwrap();
        }
        let lost = slots.invalidate_before(Lsn::new(200), |restart| restart >= Lsn::new(150));
        assert_eq!(lost.iter().map(|slot| slot.name.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(slots.oldest_restart_lsn(Lsn::new(200)), Some(Lsn::new(200)));
        assert_eq!(slots.oldest_restart_lsn(Lsn::INVALID), Some(Lsn::new(150)));
    }

    #[tokio::test]
    async fn waiting_for_a_slot_ends_with_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, None).unwrap();
        let guard = slots.acquire("a", 5).unwrap();
        let wait = slots.released("a");
        tokio::join!(wait, async { drop(guard) });
        slots.released("missing").await;
    }
}
