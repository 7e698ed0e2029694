//! Physical replication slots of the relay (PostgreSQL: `slot.c`).
//!
//! A slot keeps WAL from its `restart_lsn` on. Consumers move it with their flush reports, in both
//! directions and unchecked, as in PostgreSQL. Slots live in memory and are saved whole to `slots.toml`: at
//! once when one is created or dropped, else by [`Slots::save`], which retention calls *before* it removes
//! WAL, so that a crash never leaves a slot whose WAL was removed since. What is gone does not come back for one whose consumer
//! reports less than before.
//!
//! ```text
//! saving   ── taken by whoever writes the file, over the disk's answers: only by threads that may wait
//!   table  ── the map: never held while anything waits
//!     slot ── one slot's state: likewise
//! ```
//!
//! So a disk that hangs holds up who makes or drops a slot, and nobody else. A slot that is being made or dropped
//! is in use by the relay meanwhile, and keeps its WAL.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use walrelay_proto::{FeedbackHorizon, FullXid, Lsn, SlotName};

use super::dir::DataDir;
use super::holds::{Hold, HoldKind, Holds};
use super::lock;
use crate::changeable::Changeable;
use crate::consumers::Remembered;
use crate::moment::Past;
use crate::mutation::{self, Former, Mutation};

/// File of the data directory that holds the slots.
pub(super) const FILE: &str = "slots.toml";
/// Changes of slots under way at a time: a disk that hangs must not take all threads that may wait for it.
const CHANGES: usize = 8;

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
    pub inactive_since: Option<Past>,
    /// What its first flush report said; `None` before that, and for a slot that is older than this run of the relay.
    pub begun_at: Option<Lsn>,
    /// It is older than this run of the relay, and nobody has come for it yet.
    pub is_awaited: bool,
}

#[derive(Debug)]
struct Slot {
    name: SlotName,
    owner: Option<u32>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    restart_lsn: Option<Lsn>,
    /// What the file says that it keeps, as far as this process has saved it.
    saved_lsn: Option<Lsn>,
    /// What it keeps.
    hold: Hold,
    /// The same as it was saved last, where that is another position.
    saved: Hold,
    active_pid: Option<u32>,
    invalidated: bool,
    /// Ends the connection that uses the slot when it is invalidated; one for each acquisition.
    evict: CancellationToken,
    feedback: FeedbackHorizon,
    inactive_since: Past,
    /// It was read at the start, so its first flush report may be long ago.
    is_old: bool,
    is_awaited: bool,
    begun_at: Option<Lsn>,
}

/// Where a slot stands in its life. Before and after it is used, only who makes or drops it has a say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Not saved yet; it keeps its WAL already.
    Creating,
    Usable,
    /// Still in the file; it keeps its WAL until it is not.
    Dropping,
}

/// All slots of the relay.
#[derive(Debug)]
pub struct Slots {
    limit: Changeable<usize>,
    table: Mutex<Table>,
    /// Held while the file is written. Taken before `table`, by blocking threads only.
    saving: Mutex<()>,
    dir: Arc<DataDir>,
    holds: Holds,
    /// Something moved since the last save.
    dirty: AtomicBool,
    /// What was read at the start may have been in memory only: nothing counts before it was written again.
    durable: AtomicBool,
    /// Steps at every release and drop, for who waits for one.
    released: watch::Sender<u64>,
    changes: Arc<Semaphore>,
    /// Of no consequence but for a mutation.
    former: Former,
}

#[derive(Debug, Default)]
struct Table {
    slots: BTreeMap<String, Arc<Slot>>,
}

/// The one who saves slots.
pub(super) struct Alone<'a> {
    slots: &'a Slots,
    _saving: MutexGuard<'a, ()>,
}

impl Alone<'_> {
    /// Saves positions that have moved since the last time. Waits for the disk.
    pub(super) fn save(&self) -> io::Result<()> {
        if self.slots.dirty.load(Ordering::Relaxed) { self.slots.write(None, None) } else { Ok(()) }
    }

    /// Saves no position beyond `end`, whatever consumers confirm meanwhile. Waits for the disk.
    pub(super) fn save_up_to(&self, end: Lsn) -> io::Result<()> {
        self.slots.write(None, Some(end))
    }
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

/// Understands the file's content: what others than a relay want to know of it.
pub(super) fn parse(text: &str) -> io::Result<Vec<super::offline::SavedSlot>> {
    let slot = |saved: SavedSlot| {
        let slot = Slot::from_saved(&saved, &Holds::default()).map_err(bad)?;
        let SlotInfo { name, restart_lsn, invalidated, .. } = slot.info();
        Ok(super::offline::SavedSlot { name, restart_lsn, invalidated })
    };
    saved_in(text)?.into_iter().map(slot).collect()
}

fn saved_in(text: &str) -> io::Result<Vec<SavedSlot>> {
    let saved = toml::from_str::<Saved>(text);
    saved.map(|saved| saved.slot).map_err(|error| bad(error.message().replace('\n', " ")))
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {what}"))
}

impl Slots {
    /// Reads the slots of a data directory, and makes room on the disk to save them when it is full.
    pub(super) fn open(dir: Arc<DataDir>, limit: usize, holds: Holds) -> io::Result<Arc<Slots>> {
        let text = dir.read(FILE)?.unwrap_or_default();
        let mut table = Table::default();
        for one in saved_in(&text)? {
            let slot = Slot::from_saved(&one, &holds).map_err(bad)?;
            table.slots.insert(one.name, Arc::new(slot));
        }
        dir.reserve(FILE, &text);
        Ok(Arc::new(Slots {
            limit: limit.into(),
            table: Mutex::new(table),
            saving: Mutex::default(),
            dir,
            holds,
            dirty: AtomicBool::new(true),
            durable: AtomicBool::new(false),
            released: watch::Sender::new(0),
            changes: Arc::new(Semaphore::new(CHANGES)),
            former: Former::default(),
        }))
    }

    /// Makes a slot that keeps WAL from `reserve` on, durably if it is persistent. A temporary one is
    /// in use by its owner from the start.
    ///
    /// Waits for the disk if the slot is persistent; nobody can use it before this returns.
    pub fn create(
        &self,
        name: &SlotName,
        persistence: SlotPersistence,
        reserve: Option<Lsn>,
    ) -> Result<(), SlotError> {
        self.create_at(name, persistence, |_, _| Ok(reserve))
    }

    /// Makes a slot that keeps WAL from `oldest` on, which was on disk a moment ago, or as much of it as is not
    /// being removed; but not beyond the `end` of now, which may have gone back. Where there is no WAL any more, because
    /// it begins anew, it keeps none, as one that is made before there is any. As [`Slots::create`].
    pub(super) fn create_reserving(
        &self,
        name: &SlotName,
        persistence: SlotPersistence,
        oldest: Option<Lsn>,
        end: impl FnOnce() -> Option<Lsn>,
    ) -> Result<(), SlotError> {
        self.create_at(name, persistence, |_, removed_before| {
            // Who moves slots back to an end does so after he has shown it, and waits for the table.
            let end_now = oldest.and_then(|_| end());
            Ok(oldest.zip(end_now).map(|(oldest, end)| oldest.max(removed_before).min(end)))
        })
    }

    /// Makes a slot that keeps what another one keeps. As [`Slots::create`].
    pub fn copy(&self, from: &str, to: &SlotName, persistence: SlotPersistence) -> Result<(), SlotError> {
        self.create_at(to, persistence, |table, _| {
            let source = lock(&table.find(from)?.state);
            match source.invalidated {
                true => Err(SlotError::Invalidated { name: from.to_owned() }),
                false => Ok(source.restart_lsn),
            }
        })
    }

    fn create_at(
        &self,
        name: &SlotName,
        persistence: SlotPersistence,
        reserve: impl FnOnce(&Table, Lsn) -> Result<Option<Lsn>, SlotError>,
    ) -> Result<(), SlotError> {
        let slot = {
            let mut table = lock(&self.table);
            if table.slots.contains_key(name.as_str()) {
                return Err(SlotError::Exists { name: name.to_string() });
            }
            if table.slots.len() >= self.limit.current() {
                return Err(SlotError::Full);
            }
            let slot = Slot::new(name.clone(), persistence, &self.holds);
            slot.reserve(|removed_before| {
                let reserved = reserve(&table, removed_before)?;
                Ok(self.former.position(name.as_str()).or(reserved))
            })?;
            let slot = Arc::new(slot);
            table.slots.insert(name.to_string(), slot.clone());
            slot
        };
        if slot.owner.is_some() {
            return Ok(());
        }
        let saving = lock(&self.saving);
        let saved = match mutation::is(Mutation::AnswerBeforeSlotSaved) {
            true => {
                self.dirty.store(true, Ordering::Relaxed);
                Ok(())
            }
            false => self.write(Some(&slot), None),
        };
        match &saved {
            Ok(()) => lock(&slot.state).phase = Phase::Usable,
            Err(_) => drop(lock(&self.table).slots.remove(name.as_str())),
        }
        drop(saving);
        self.note_release();
        Ok(saved?)
    }

    /// The slot, if there is one.
    pub fn get(&self, name: &str) -> Option<SlotInfo> {
        lock(&self.table).slots.get(name).map(|slot| slot.info())
    }

    /// All slots, by name.
    pub fn list(&self) -> Vec<SlotInfo> {
        lock(&self.table).slots.values().map(|slot| slot.info()).collect()
    }

    /// A place among those who change slots, to be kept while a function that waits for the disk runs. Cancel-safe.
    pub async fn may_change(&self) -> Option<OwnedSemaphorePermit> {
        // Closed it never is, and who could not get in for that reason may go on as well.
        self.changes.clone().acquire_owned().await.ok()
    }

    /// Takes a slot for streaming (PostgreSQL: `ReplicationSlotAcquire`).
    pub fn acquire(self: &Arc<Self>, name: &str, pid: u32) -> Result<SlotGuard, SlotError> {
        let table = lock(&self.table);
        let slot = table.find(name)?;
        let mut state = lock(&slot.state);
        state.check_free(&slot.name, pid)?;
        if state.invalidated {
            return Err(SlotError::Invalidated { name: name.to_owned() });
        }
        (state.active_pid, state.is_awaited) = (Some(pid), false);
        let evict = CancellationToken::new();
        state.evict = evict.clone();
        Ok(SlotGuard { slot: slot.clone(), slots: self.clone(), evict })
    }

    /// Drops a slot that nobody else uses. Waits for the disk unless the slot is temporary.
    pub fn drop_slot(&self, name: &str, pid: u32) -> Result<(), SlotError> {
        let slot = {
            let mut table = lock(&self.table);
            let slot = table.find(name)?.clone();
            let mut state = lock(&slot.state);
            state.check_free(&slot.name, pid)?;
            self.former.note(name, state.keeps());
            match slot.owner {
                Some(_) => drop(table.slots.remove(name)),
                None => state.phase = Phase::Dropping,
            }
            drop(state);
            slot
        };
        if slot.owner.is_some() {
            self.note_release();
            return Ok(());
        }
        let saving = lock(&self.saving);
        let saved = self.write(Some(&slot), None);
        match &saved {
            Ok(()) => drop(lock(&self.table).slots.remove(name)),
            Err(_) => lock(&slot.state).phase = Phase::Usable,
        }
        drop(saving);
        self.note_release();
        Ok(saved?)
    }

    /// Drops the temporary slots of a connection: at its end and at any error in it, as PostgreSQL does.
    pub fn drop_temporary_of(&self, pid: u32) {
        let mut table = lock(&self.table);
        let before = table.slots.len();
        table.slots.retain(|_, slot| slot.owner != Some(pid));
        if table.slots.len() != before {
            drop(table);
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

    /// Moves slots back that are beyond `end`, because WAL beyond it does not count any more; returns them as they
    /// were.
    pub fn clamp_to(&self, end: Lsn) -> Vec<SlotInfo> {
        let mut moved = Vec::new();
        for slot in lock(&self.table).slots.values() {
            let before = slot.info();
            let mut state = lock(&slot.state);
            if state.restart_lsn.is_some_and(|restart| restart > end) {
                state.restart_lsn = Some(end);
                state.tell();
                moved.push(before);
            }
        }
        if !moved.is_empty() {
            self.dirty.store(true, Ordering::Relaxed);
        }
        moved
    }

    /// Saves positions that have moved since the last time. Waits for the disk.
    pub(super) fn save(&self) -> io::Result<()> {
        // At first somebody else may be at it, and nothing counts before he is done.
        if !self.dirty.load(Ordering::Relaxed) && self.is_durable() {
            return Ok(());
        }
        self.alone().save()
    }

    /// Lets nobody else save slots, or make or drop one, as long as the result lives. Waits for the disk.
    pub(super) fn alone(&self) -> Alone<'_> {
        Alone { slots: self, _saving: lock(&self.saving) }
    }

    /// Whether the file holds what this process knows, so that positions in it count.
    pub(super) fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Relaxed)
    }

    /// How many there may be (`max_replication_slots`).
    pub fn limit(&self) -> usize {
        self.limit.current()
    }

    /// Changes that. Those that are there stay, also where they are more.
    pub fn set_limit(&self, limit: usize) {
        self.limit.replace(limit);
    }

    /// Marks slots as lost whose position is beyond what they may keep, and ends their connections; returns them as they
    /// were (PostgreSQL: `InvalidateObsoleteReplicationSlots`). `is_beyond` is asked while nobody else can move the slot, as in
    /// [`SlotGuard::confirm_flush`].
    pub(super) fn invalidate(&self, is_beyond: impl Fn(Lsn) -> bool) -> Vec<SlotInfo> {
        let slots: Vec<_> = lock(&self.table).slots.values().cloned().collect();
        let mut lost = Vec::new();
        for slot in slots {
            let before = slot.info();
            let mut state = lock(&slot.state);
            if state.keeps().is_some_and(&is_beyond) {
                self.former.note(&before.name, before.restart_lsn);
                (state.invalidated, state.restart_lsn) = (true, None);
                state.tell();
                if !mutation::is(Mutation::ForgetEviction) {
                    state.evict.cancel();
                }
                self.dirty.store(true, Ordering::Relaxed);
                lost.push(before);
            }
        }
        lost
    }

    /// Writes the file. The caller holds `saving`. `changed` is the slot that the caller makes or drops; what others
    /// are about to make is left out, and what they are about to drop stays. No position beyond `end` is written.
    fn write(&self, changed: Option<&Arc<Slot>>, end: Option<Lsn>) -> io::Result<()> {
        self.dirty.store(false, Ordering::Relaxed);
        let mut is_cut = false;
        let (saved, positions): (Vec<_>, Vec<_>) = lock(&self.table)
            .slots
            .values()
            .filter(|slot| slot.is_in_file(changed.is_some_and(|changed| Arc::ptr_eq(changed, slot))))
            .map(|slot| (slot, slot.info()))
            .map(|(slot, info)| {
                let restart_lsn = info.restart_lsn.map(|at| end.map_or(at, |end| at.min(end)));
                is_cut |= restart_lsn != info.restart_lsn;
                let info = SlotInfo { restart_lsn, ..info };
                let keeps = info.restart_lsn.filter(|_| !info.invalidated);
                (SavedSlot::from(info), (slot.clone(), keeps))
            })
            .unzip();
        let text = toml::to_string(&Saved { slot: saved }).map_err(io::Error::other);
        let written = text.and_then(|text| self.dir.replace(FILE, &text));
        if written.is_err() || is_cut {
            self.dirty.store(true, Ordering::Relaxed);
        }
        written?;
        for (slot, position) in positions {
            let mut state = lock(&slot.state);
            state.saved_lsn = position;
            state.tell();
        }
        self.durable.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// As a disk that hangs: whoever saves waits until the value is dropped.
    #[cfg(test)]
    pub(crate) fn hang(self: &Arc<Self>) -> std::sync::mpsc::Sender<()> {
        let (release, released) = std::sync::mpsc::channel();
        let (hangs, hung) = std::sync::mpsc::channel();
        let slots = self.clone();
        std::thread::spawn(move || {
            let _saving = lock(&slots.saving);
            let _ = hangs.send(());
            let _ = released.recv();
        });
        hung.recv().expect("it hangs before it ends");
        release
    }

    fn note_release(&self) {
        self.released.send_modify(|step| *step += 1);
    }
}

impl Remembered for Slots {
    /// What the slots' standbys still need the primary to keep.
    fn feedback(&self) -> FeedbackHorizon {
        lock(&self.table).slots.values().fold(FeedbackHorizon::default(), |merged, slot| {
            let state = lock(&slot.state);
            let is_left_out = state.invalidated || mutation::is(Mutation::ForgetFeedback);
            if is_left_out { merged } else { merged.merge(state.feedback) }
        })
    }
}

impl Table {
    fn find(&self, name: &str) -> Result<&Arc<Slot>, SlotError> {
        self.slots.get(name).ok_or_else(|| SlotError::Missing { name: name.to_owned() })
    }
}

impl Slot {
    /// Keeps all WAL until it is said what it keeps.
    fn new(name: SlotName, persistence: SlotPersistence, holds: &Holds) -> Slot {
        let (phase, owner) = match persistence {
            SlotPersistence::Persistent => (Phase::Creating, None),
            SlotPersistence::Temporary { owner } => (Phase::Usable, Some(owner)),
        };
        let state = State {
            phase,
            restart_lsn: None,
            saved_lsn: None,
            hold: holds.register(HoldKind::Slot, name.as_str()),
            saved: holds.register(HoldKind::SavedSlot, name.as_str()),
            active_pid: owner,
            invalidated: false,
            evict: CancellationToken::new(),
            feedback: FeedbackHorizon::default(),
            inactive_since: Past::now(),
            is_old: false,
            is_awaited: false,
            begun_at: None,
        };
        Slot { name, owner, state: Mutex::new(state) }
    }

    fn from_saved(saved: &SavedSlot, holds: &Holds) -> Result<Slot, String> {
        let name = saved.name.parse::<SlotName>().map_err(|error| error.to_string())?;
        let restart = saved.restart_lsn.as_deref().map(str::parse::<Lsn>).transpose();
        let restart = restart.map_err(|error| error.to_string())?.and_then(Lsn::valid);
        let slot = Slot::new(name, SlotPersistence::Persistent, holds);
        let full = |id: u64| FullXid::new((id >> 32) as u32, id as u32);
        let mut state = lock(&slot.state);
        state.phase = Phase::Usable;
        state.restart_lsn = restart;
        state.invalidated = saved.invalidated;
        (state.is_old, state.is_awaited) = (true, true);
        state.feedback = FeedbackHorizon {
            xmin: saved.xmin.and_then(full),
            catalog_xmin: saved.catalog_xmin.and_then(full),
        };
        state.tell();
        drop(state);
        Ok(slot)
    }

    /// Decides what it keeps at first, told which WAL may be gone; nothing more goes meanwhile.
    fn reserve(&self, from: impl FnOnce(Lsn) -> Result<Option<Lsn>, SlotError>) -> Result<(), SlotError> {
        let mut state = lock(&self.state);
        state.restart_lsn = from(state.hold.removed_before())?;
        state.tell();
        Ok(())
    }

    fn info(&self) -> SlotInfo {
        let state = lock(&self.state);
        let active_pid = state.user();
        SlotInfo {
            name: self.name.to_string(),
            restart_lsn: state.restart_lsn,
            active_pid,
            temporary: self.owner.is_some(),
            invalidated: state.invalidated,
            feedback: state.feedback,
            inactive_since: active_pid.is_none().then_some(state.inactive_since),
            begun_at: state.begun_at,
            is_awaited: state.is_awaited,
        }
    }

    fn is_in_file(&self, changed: bool) -> bool {
        let in_file = match lock(&self.state).phase {
            Phase::Creating => changed,
            Phase::Usable => true,
            Phase::Dropping => !changed,
        };
        in_file && self.owner.is_none()
    }
}

impl From<SlotInfo> for SavedSlot {
    fn from(info: SlotInfo) -> SavedSlot {
        let full = |id: FullXid| u64::from(id.epoch) << 32 | u64::from(id.xid);
        SavedSlot {
            name: info.name,
            restart_lsn: info.restart_lsn.map(|lsn| lsn.to_string()),
            invalidated: info.invalidated,
            xmin: info.feedback.xmin.map(full),
            catalog_xmin: info.feedback.catalog_xmin.map(full),
        }
    }
}

impl State {
    /// Where the WAL begins that it keeps.
    fn keeps(&self) -> Option<Lsn> {
        self.restart_lsn.filter(|_| !self.invalidated)
    }

    /// Tells retention what is to stay. A position that was not saved since is what a crash leaves; it counts even if it is to
    /// be given up.
    fn tell(&self) {
        let keeps = self.keeps();
        let is_other = |saved: &Lsn| Some(*saved) != keeps && !mutation::is(Mutation::ForgetSavedSlot);
        Hold::set_together([(&self.hold, keeps), (&self.saved, self.saved_lsn.filter(is_other))]);
    }

    /// Who uses it; the relay itself while it is made or dropped.
    fn user(&self) -> Option<u32> {
        match self.phase {
            Phase::Usable => self.active_pid,
            Phase::Creating | Phase::Dropping => Some(std::process::id()),
        }
    }

    fn check_free(&self, name: &SlotName, pid: u32) -> Result<(), SlotError> {
        match self.user() {
            None => Ok(()),
            Some(active) if active == pid && self.phase == Phase::Usable => Ok(()),
            Some(active) => Err(SlotError::Active { name: name.to_string(), pid: active }),
        }
    }
}

impl SlotGuard {
    /// The slot's name.
    pub fn name(&self) -> &str {
        self.slot.name.as_str()
    }

    /// From where the slot keeps WAL; `None` while it keeps none.
    pub fn restart_lsn(&self) -> Option<Lsn> {
        lock(&self.slot.state).restart_lsn
    }

    /// Takes a flush report: the slot keeps WAL from there on. `0/0` and `None` are no report
    /// (PostgreSQL: `PhysicalConfirmReceivedLocation`). A lost slot stays as it is.
    ///
    /// `flush` is asked while nobody else can move the slot. Where it goes by the history of the moment, a report of a
    /// timeline that is being left cannot overtake [`Slots::clamp_to`]: that comes after the other history is shown.
    pub fn confirm_flush(&self, flush: impl FnOnce() -> Option<Lsn>) {
        let mut state = lock(&self.slot.state);
        let Some(flush) = flush().and_then(Lsn::valid) else { return };
        if !state.is_old && state.begun_at.is_none() {
            state.begun_at = Some(flush);
        }
        if !state.invalidated && state.restart_lsn != Some(flush) {
            state.restart_lsn = Some(flush);
            state.tell();
            self.slots.dirty.store(true, Ordering::Relaxed);
        }
    }

    /// Resolves when the slot has been invalidated: the connection has to end. Cancel-safe.
    pub async fn evicted(&self) {
        self.evict.cancelled().await;
    }

    /// Cancelled when it has been.
    pub fn eviction(&self) -> CancellationToken {
        self.evict.clone()
    }

    pub(super) fn set_feedback(&self, feedback: FeedbackHorizon) {
        let mut state = lock(&self.slot.state);
        if state.feedback != feedback {
            state.feedback = feedback;
            self.slots.dirty.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for SlotGuard {
    /// A temporary slot stays with its connection; another becomes free.
    fn drop(&mut self) {
        let mut state = lock(&self.slot.state);
        (state.inactive_since, state.active_pid) = (Past::now(), self.slot.owner);
        drop(state);
        self.slots.note_release();
    }
}

#[cfg(test)]
mod tests {
    use walrelay_proto::SegSize;

    use super::super::holds::Ends;
    use super::*;
    use crate::disk::OsDisk;

    const SEG: u64 = 1 << 20;

    fn at(segment: u64) -> Lsn {
        Lsn::new(segment * SEG)
    }

    /// The segment that WAL stays from, where slots may hold what is from `from` on, and nobody but them any before `end`.
    fn decide(slots: &Slots, from: u64, end: u64) -> u64 {
        let ends = Ends { keep_size: at(end), recovery: at(end), slots: at(from) };
        slots.holds.decide(SegSize::new(SEG).unwrap(), || Some(ends)).unwrap().as_u64() / SEG
    }

    fn name(text: &str) -> SlotName {
        text.parse::<SlotName>().unwrap()
    }

    fn open(path: &std::path::Path) -> Arc<Slots> {
        Slots::open(Arc::new(DataDir::lock(Arc::new(OsDisk), path).unwrap()), 3, Holds::default()).unwrap()
    }

    #[test]
    fn slots_survive_a_restart_and_temporary_ones_do_not() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, Some(Lsn::new(0x100_0000))).unwrap();
        slots.create(&name("t"), SlotPersistence::Temporary { owner: 7 }, None).unwrap();
        slots.acquire("a", 5).unwrap().confirm_flush(|| Some(Lsn::new(0x200_0000)));
        slots.save().unwrap();
        drop(slots);
        let slots = open(dir.path());
        assert_eq!(slots.list().len(), 1);
        assert_eq!(slots.get("a").unwrap().restart_lsn, Some(Lsn::new(0x200_0000)));
    }

    #[test]
    fn a_new_slot_knows_where_its_consumer_began_and_an_old_one_whether_it_has_come_back() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        let seen = |slots: &Slots| slots.get("a").map(|it| (it.begun_at, it.is_awaited)).unwrap();
        slots.create(&name("a"), SlotPersistence::Persistent, Some(at(1))).unwrap();
        assert_eq!(seen(&slots), (None, false));
        slots.acquire("a", 5).unwrap().confirm_flush(|| Some(at(2)));
        slots.acquire("a", 5).unwrap().confirm_flush(|| Some(at(3)));
        assert_eq!(seen(&slots), (Some(at(2)), false));
        slots.save().unwrap();
        drop(slots);
        let slots = open(dir.path());
        assert_eq!(seen(&slots), (None, true));
        slots.acquire("a", 5).unwrap().confirm_flush(|| Some(at(4)));
        assert_eq!(seen(&slots), (None, false));
    }

    #[test]
    fn a_slot_knows_since_when_nobody_uses_it() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        let before = Past::now();
        slots.create(&name("a"), SlotPersistence::Persistent, None).unwrap();
        let created = slots.get("a").unwrap().inactive_since.unwrap();
        assert!(created >= before);
        let guard = slots.acquire("a", 5).unwrap();
        assert_eq!(slots.get("a").unwrap().inactive_since, None);
        let released_after = Past::now();
        drop(guard);
        assert!(slots.get("a").unwrap().inactive_since.unwrap() >= released_after);
    }

    #[test]
    fn one_user_at_a_time() {
        let dir = crate::permissions::private_tempdir();
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
        let dir = crate::permissions::private_tempdir();
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
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        for text in ["a", "b", "c"] {
            slots.create(&name(text), SlotPersistence::Persistent, None).unwrap();
        }
        let again = slots.create(&name("a"), SlotPersistence::Persistent, None);
        assert!(matches!(again, Err(SlotError::Exists { .. })));
        let fourth = slots.create(&name("d"), SlotPersistence::Persistent, None);
        assert!(matches!(fourth, Err(SlotError::Full)));
    }

    /// The writer goes back to a common ancestor just when the report is judged by the history of before.
    #[test]
    fn a_flush_report_does_not_overtake_a_clamp() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, Some(Lsn::new(100))).unwrap();
        let guard = slots.acquire("a", 5).unwrap();
        guard.confirm_flush(|| Some(Lsn::new(300)));
        let (done, clamped) = std::sync::mpsc::channel();
        std::thread::scope(|threads| {
            guard.confirm_flush(|| {
                threads.spawn(|| {
                    slots.clamp_to(Lsn::new(200));
                    done.send(()).unwrap();
                });
                // It would come to its end now if nothing held it up.
                let too_early = clamped.recv_timeout(std::time::Duration::from_millis(50));
                assert!(too_early.is_err(), "moved while a report is judged");
                Some(Lsn::new(900))
            });
            clamped.recv().unwrap();
        });
        assert_eq!(slots.get("a").unwrap().restart_lsn, Some(Lsn::new(200)));
        guard.confirm_flush(|| None);
        assert_eq!(slots.get("a").unwrap().restart_lsn, Some(Lsn::new(200)));
    }

    #[test]
    fn nothing_is_reserved_beyond_an_end_that_has_gone_back() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        let reserve = |text, end| {
            let (oldest, end) = (Some(Lsn::new(500)), move || Some(Lsn::new(end)));
            slots.create_reserving(&name(text), SlotPersistence::Persistent, oldest, end).unwrap();
            slots.get(text).unwrap().restart_lsn
        };
        assert_eq!((reserve("a", 900), reserve("b", 400)), (Some(Lsn::new(500)), Some(Lsn::new(400))));
    }

    #[test]
    fn flush_reports_move_a_slot_in_both_directions_and_zero_does_not() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, None).unwrap();
        let guard = slots.acquire("a", 5).unwrap();
        let restart = || slots.get("a").unwrap().restart_lsn;
        guard.confirm_flush(|| Some(Lsn::INVALID));
        assert_eq!(restart(), None);
        guard.confirm_flush(|| Some(Lsn::new(500)));
        guard.confirm_flush(|| Some(Lsn::new(400)));
        assert_eq!(restart(), Some(Lsn::new(400)));
    }

    #[tokio::test]
    async fn a_slot_that_falls_behind_the_limit_is_lost_and_its_user_told() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, Some(Lsn::new(100))).unwrap();
        slots.create(&name("b"), SlotPersistence::Persistent, Some(Lsn::new(200))).unwrap();
        let guard = slots.acquire("a", 5).unwrap();
        let lost = slots.invalidate(|restart| restart < Lsn::new(200));
        assert_eq!(lost.iter().map(|slot| slot.name.as_str()).collect::<Vec<_>>(), ["a"]);
        guard.evicted().await;
        drop(guard);
        assert!(matches!(slots.acquire("a", 5), Err(SlotError::Invalidated { .. })));
        assert_eq!(slots.holds.needed_by_slots(), Some(Lsn::new(200)));
        slots.acquire("b", 5).unwrap();
    }

    #[test]
    fn a_slot_that_is_served_otherwise_stays_and_keeps_nothing() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        for (text, segment) in [("a", 10), ("b", 15), ("c", 20)] {
            slots.create(&name(text), SlotPersistence::Persistent, Some(at(segment))).unwrap();
        }
        let lost = slots.invalidate(|restart| restart < at(15));
        assert_eq!(lost.iter().map(|slot| slot.name.as_str()).collect::<Vec<_>>(), ["a"]);
        slots.save().unwrap();
        assert_eq!((decide(&slots, 0, 30), decide(&slots, 20, 30)), (15, 20));
        assert_eq!(slots.holds.needed_by_slots(), Some(at(15)));
    }

    #[tokio::test]
    async fn waiting_for_a_slot_ends_with_its_user() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, None).unwrap();
        let guard = slots.acquire("a", 5).unwrap();
        let wait = slots.released("a");
        tokio::join!(wait, async { drop(guard) });
        slots.released("missing").await;
    }

    /// As a disk that hangs leaves it: somebody writes the file for ever.
    #[test]
    fn while_the_file_is_written_only_those_wait_who_write_it_too() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        for text in ["a", "b"] {
            slots.create(&name(text), SlotPersistence::Persistent, Some(Lsn::new(100))).unwrap();
        }
        let active = |error: SlotError| assert!(matches!(error, SlotError::Active { .. }), "{error}");
        let until = |what: &dyn Fn() -> bool| {
            while !what() {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|threads| {
            let writing = lock(&slots.saving);
            let create =
                threads.spawn(|| slots.create(&name("new"), SlotPersistence::Persistent, Some(Lsn::new(50))));
            let drops = threads.spawn(|| slots.drop_slot("b", 1));
            until(&|| slots.get("new").is_some() && slots.get("b").unwrap().active_pid.is_some());
            active(slots.acquire("new", 5).unwrap_err());
            active(slots.acquire("b", 5).unwrap_err());
            active(slots.drop_slot("b", 5).unwrap_err());
            let guard = slots.acquire("a", 5).unwrap();
            guard.confirm_flush(|| Some(Lsn::new(300)));
            guard.set_feedback(FeedbackHorizon { xmin: FullXid::new(0, 7), catalog_xmin: None });
            assert_eq!(slots.feedback().xmin, FullXid::new(0, 7));
            drop(guard);
            // Their WAL is kept: one has it already, the other one still.
            assert_eq!(slots.holds.needed_by_slots(), Some(Lsn::new(50)));
            assert!(matches!(slots.acquire("c", 5), Err(SlotError::Missing { .. })));
            assert!(!create.is_finished() && !drops.is_finished());
            drop(writing);
            create.join().unwrap().unwrap();
            drops.join().unwrap().unwrap();
        });
        slots.acquire("new", 5).unwrap();
        assert!(slots.get("b").is_none());
        drop(slots);
        let names: Vec<_> = open(dir.path()).list().into_iter().map(|slot| slot.name).collect();
        assert_eq!(names, ["a", "new"]);
    }

    #[test]
    fn what_could_not_be_saved_is_as_it_was() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, Some(at(1))).unwrap();
        std::fs::remove_dir_all(dir.path()).unwrap();
        let create = slots.create(&name("b"), SlotPersistence::Persistent, None);
        assert!(matches!(create, Err(SlotError::Io(_))));
        assert!(matches!(slots.drop_slot("a", 1), Err(SlotError::Io(_))));
        assert_eq!(slots.list().len(), 1);
        let guard = slots.acquire("a", 5).unwrap();
        guard.confirm_flush(|| Some(at(3)));
        slots.save().unwrap_err();
        assert_eq!(decide(&slots, 0, 9), 1, "that is what a crash leaves");
        slots.invalidate(|restart| restart < at(4));
        assert_eq!(decide(&slots, 4, 9), 1);
    }

    #[test]
    fn wal_goes_by_what_was_saved() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, Some(at(1))).unwrap();
        drop(slots);
        let slots = open(dir.path());
        assert!(!slots.is_durable(), "what was read may have been in memory only");
        slots.save().unwrap();
        assert!(slots.is_durable());
        let guard = slots.acquire("a", 5).unwrap();
        guard.confirm_flush(|| Some(at(3)));
        assert_eq!((decide(&slots, 0, 9), decide(&slots, 2, 9)), (1, 1));
        slots.save().unwrap();
        assert_eq!(decide(&slots, 0, 9), 3);
        guard.confirm_flush(|| Some(at(2)));
        assert_eq!(decide(&slots, 0, 9), 2, "consumers may go back");
        drop(guard);
        slots.drop_slot("a", 5).unwrap();
        assert_eq!(decide(&slots, 0, 9), 9);
    }

    #[test]
    fn a_new_slot_reserves_nothing_that_is_being_removed() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        assert_eq!((decide(&slots, 0, 5), decide(&slots, 0, 4)), (5, 4));
        let restart = |text: &str| slots.get(text).unwrap().restart_lsn;
        let persistent = SlotPersistence::Persistent;
        let anywhere = || Some(Lsn::new(u64::MAX));
        slots.create_reserving(&name("a"), persistent, Some(at(2)), anywhere).unwrap();
        slots.create_reserving(&name("b"), persistent, Some(at(6)), anywhere).unwrap();
        slots.copy("a", &name("c"), persistent).unwrap();
        assert_eq!(["a", "b", "c"].map(restart), [5, 6, 5].map(|segment| Some(at(segment))));
        slots.drop_slot("a", 1).unwrap();
        // What was there has been given up since it was looked at: nothing says where WAL will begin.
        slots.create_reserving(&name("a"), persistent, Some(at(6)), || None).unwrap();
        assert_eq!(restart("a"), None);
        assert_eq!(decide(&slots, 0, 9), 5);
    }

    /// A report that was sent before the timeline is left may be taken when slots have come back already.
    #[test]
    fn nothing_is_saved_beyond_an_end_that_a_consumer_confirms_meanwhile() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        slots.create(&name("a"), SlotPersistence::Persistent, Some(at(3))).unwrap();
        let guard = slots.acquire("a", 5).unwrap();
        let alone = slots.alone();
        slots.clamp_to(at(2));
        guard.confirm_flush(|| Some(at(3)));
        alone.save_up_to(at(2)).unwrap();
        drop(alone);
        assert_eq!(decide(&slots, 0, 9), 2, "that is what a crash leaves");
        // If nothing comes of it, what is confirmed is saved the next time.
        slots.save().unwrap();
        assert_eq!(decide(&slots, 0, 9), 3);
        slots.alone().save_up_to(at(2)).unwrap();
        drop((guard, slots));
        assert_eq!(open(dir.path()).get("a").unwrap().restart_lsn, Some(at(2)));
    }

    #[test]
    fn slots_beyond_an_end_move_back_to_it() {
        let dir = crate::permissions::private_tempdir();
        let slots = open(dir.path());
        for (text, at) in [("a", 100), ("b", 200)] {
            slots.create(&name(text), SlotPersistence::Persistent, Some(Lsn::new(at))).unwrap();
        }
        let moved = slots.clamp_to(Lsn::new(150));
        assert_eq!(moved.iter().map(|slot| slot.restart_lsn).collect::<Vec<_>>(), [Some(Lsn::new(200))]);
        slots.save().unwrap();
        drop(slots);
        let slots = open(dir.path());
        let restart = |text: &str| slots.get(text).unwrap().restart_lsn.unwrap();
        assert_eq!((restart("a"), restart("b")), (Lsn::new(100), Lsn::new(150)));
        assert!(slots.clamp_to(Lsn::new(150)).is_empty());
    }
}
