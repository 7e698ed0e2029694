//! Retention: which WAL is kept, and who removes the rest: a thread, or whoever steps the store.
//!
//! Kept is what a valid slot needs and what lies within `wal_keep_size` of the newest WAL. Slots that
//! would keep more than `max_slot_wal_keep_size` are marked lost first (PostgreSQL: `KeepLogSeg`,
//! `RemoveOldXlogFiles`). A slot's position is saved before WAL behind it is removed, and what was not saved counts as
//! saved last. What the archive has not got yet is kept as well, as far as its targets ask for it. All of them are holders
//! ([`holds`](super::holds)); here is who acts on it.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use walrelay_proto::{Lsn, SegNo, SegSize, SlotName};

use super::KeepSizes;
use super::holds::{Ends, Held, Hold, HoldKind, Holds};
use super::{Segment, SlotError, SlotPersistence, Store, Tip, lock};
use crate::parts::{Heart, PartEnded, Thread, beat};

/// Slots move without telling; this often they are looked at anyway.
const INTERVAL: Duration = Duration::from_secs(5);
/// What keeps WAL from being removed is said again after so long.
const SAY_AGAIN: Duration = Duration::from_secs(30);

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

/// What the archive has.
#[derive(Debug, Default)]
pub(super) struct Archived {
    state: Mutex<ArchiveState>,
}

#[derive(Clone, Copy, Debug, Default)]
struct ArchiveState {
    archived: Option<ArchivedWal>,
    /// There is an archive that WAL can be fetched back from.
    readable: bool,
    /// It has not said yet what it has.
    pending: bool,
}

impl ArchiveState {
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

/// Removes what nobody needs, pass by pass, for whoever calls [`pass`](Self::pass): the store's own thread, every few
/// seconds and when something has moved, or one that steps all of the store.
#[derive(Debug)]
pub struct Retaining {
    store: Arc<Store>,
    complaint: Complaint,
}

impl Retaining {
    pub(super) fn new(store: Arc<Store>) -> Retaining {
        Retaining { store, complaint: Complaint::default() }
    }

    /// Saves the slots, gives up those beyond their limit, removes WAL that nobody needs; whether all of that could be
    /// done. Waits for the disk. What could not is said, not each time, and done by a later pass.
    pub fn pass(&mut self, now: Instant) -> bool {
        let outcome = self.store.remove_old_wal();
        let is_done = outcome.is_ok();
        self.complaint.note(outcome, now);
        is_done
    }

    /// Does so until it is told to stop.
    fn run(&mut self) {
        while self.store.retention_bell.wait() {
            beat();
            self.pass(Instant::now());
        }
    }
}

/// The retention thread.
#[derive(Debug)]
pub(super) struct Retention {
    thread: Thread<()>,
}

impl Retention {
    pub(super) fn start(mut retaining: Retaining) -> Retention {
        let run = move || retaining.run();
        let thread = Thread::start("retention", run);
        Retention { thread: thread.expect("threads can be started when the process starts") }
    }

    pub(super) fn heart(&self) -> Heart {
        self.thread.heart()
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
        store.save_for_the_next_start();
        ended
    }
}

/// What keeps old WAL from being removed. It is tried again every few seconds.
#[derive(Debug, thiserror::Error)]
pub(super) enum RetentionError {
    #[error(
        "could not save replication slots: {0}; WAL stays that they needed when they were saved last, look at the data directory's file system"
    )]
    Save(io::Error),
    #[error(
        "could not save where the newest checkpoint begins: {0}; after a restart new slots may keep more WAL than they need, look at the data directory's file system"
    )]
    Checkpoint(io::Error),
    #[error("could not list pg_wal in the data directory, so no WAL is removed: {0}; {hint}", hint = hint(.0))]
    List(io::Error),
    /// The others were removed.
    #[error("could not remove old WAL: file \"{file}\": {source}{others}; {hint}", others = others(*.more), hint = hint(.source))]
    Remove { file: String, source: io::Error, more: usize },
    #[error("could not sync pg_wal after old WAL was removed: {0}; {hint}", hint = hint(.0))]
    Sync(io::Error),
}

fn others(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" (and {more} more files)") }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
            "raise the limit of open files or lower --max-connections"
        }
        Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
            "give the directory and its files to the relay's user"
        }
        _ => "look at the data directory's file system",
    }
}

/// What was said of it in the log: each reason at once, then now and then.
#[derive(Debug, Default)]
struct Complaint {
    said: Option<(String, Instant)>,
}

impl Complaint {
    fn note(&mut self, outcome: Result<(), RetentionError>, now: Instant) {
        let Err(error) = outcome else {
            if self.said.take().is_some() {
                tracing::info!("old WAL can be removed again");
            }
            return;
        };
        let text = error.to_string();
        if self.is_due(&text, now) {
            tracing::warn!("{text}");
            self.said = Some((text, now));
        }
    }

    fn is_due(&self, text: &str, now: Instant) -> bool {
        self.said.as_ref().is_none_or(|(said, at)| said != text || now.duration_since(*at) >= SAY_AGAIN)
    }
}

impl Store {
    /// One pass: saves slots, marks those beyond the limit as lost, removes what nobody needs. No lock is held while
    /// the disk is waited for.
    pub(super) fn remove_old_wal(&self) -> Result<(), RetentionError> {
        self.consumers.refresh_horizon();
        self.free_removed();
        let (Some(identity), Some(_)) = (self.identity(), self.tip()) else {
            return self.slots.save().map_err(RetentionError::Save);
        };
        let size = identity.seg_size;
        self.give_up_slots(size);
        self.consumers.refresh_horizon();
        let saved = self.slots.save().map_err(RetentionError::Save);
        // What was saved earlier tells what a crash leaves, so WAL can go, and make room.
        if self.slots.is_durable() {
            let _removing = lock(&self.removing);
            let Some(keep) = self.wal_to_keep(size) else { return saved };
            let removed = self.remove_segments_before(keep.seg_at(size), size);
            self.look_for_oldest();
            return removed.and(saved).and_then(|()| self.save_checkpoint());
        }
        saved.and_then(|()| self.save_checkpoint())
    }

    /// What retention saves now and then, as the last of it.
    pub(super) fn save_for_the_next_start(&self) {
        if let Err(error) = self.slots.save() {
            tracing::error!("could not save replication slots: {error}");
        }
        if let Err(error) = self.save_checkpoint() {
            tracing::warn!("{error}");
        }
    }

    fn save_checkpoint(&self) -> Result<(), RetentionError> {
        self.checkpoint.save(&self.dir).map_err(RetentionError::Checkpoint)
    }

    /// Decides from where on WAL stays, by the end of just this moment: the writer may have gone back meanwhile, to another
    /// timeline, and whoever has held WAL for that may have let go. `None` where there is no WAL: it begins anew.
    pub(super) fn wal_to_keep(&self, size: SegSize) -> Option<Lsn> {
        self.holds.decide(size, || Some(self.ends(self.tip()?, size)))
    }

    /// Marks slots beyond the limit as lost, unless the archive can bring back what is removed here. Each is judged by where WAL
    /// ends while nobody can move it: the writer moves slots back after the end has gone back, so no slot is judged by an end
    /// that it was moved back from.
    fn give_up_slots(&self, size: SegSize) {
        if self.holds.is_starting() {
            return;
        }
        for slot in self.slots.invalidate(|restart| self.is_beyond_limit(restart, size)) {
            let restart = slot.restart_lsn.unwrap_or_default();
            self.counts.slots_lost.note();
            tracing::warn!(
                "invalidating slot \"{}\" because its restart_lsn {restart} exceeds max_slot_wal_keep_size",
                slot.name
            );
        }
    }

    /// Whether a slot that needs WAL from `restart` on needs more than it may, and what it needs cannot be fetched back.
    fn is_beyond_limit(&self, restart: Lsn, size: SegSize) -> bool {
        let Some(ends) = self.tip().map(|tip| self.ends(tip, size)) else { return false };
        if restart >= ends.slots {
            return false;
        }
        let kept = self.holds.would_keep(ends).seg_start(size);
        let archive = *lock(&self.archive.state);
        !archive.covers(restart, kept)
    }

    /// Says that there is an archive that WAL can be fetched back from: until [`Store::set_archived`] is called, no
    /// slot is lost.
    pub fn expect_archive(&self) {
        let mut state = lock(&self.archive.state);
        (state.readable, state.pending) = (true, true);
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

    /// Makes a slot that keeps WAL from where replay from the newest checkpoint begins: no base backup that is begun from
    /// now on needs more. Below a standby, whose backups may begin at an older one, and before any checkpoint was seen, it
    /// keeps all that is here; but never more than a slot may keep, else it would be lost at once. What it keeps is
    /// there when this returns.
    ///
    /// Waits for the disk. Fails as [`Slots::create`](super::Slots::create) does.
    pub fn create_reserving_slot(
        &self,
        name: &SlotName,
        persistence: SlotPersistence,
    ) -> Result<(), SlotError> {
        let end = || self.tip().map(|tip| tip.write_lsn);
        self.slots.create_reserving(name, persistence, self.wal_to_reserve(), end)
    }

    /// Drops a slot; what it kept goes soon. Waits for the disk. Fails as [`Slots::drop_slot`](super::Slots::drop_slot)
    /// does.
    pub fn drop_slot(&self, name: &str, pid: u32) -> Result<(), SlotError> {
        self.slots.drop_slot(name, pid)?;
        self.consumers.refresh_horizon();
        self.retention_bell.ring();
        Ok(())
    }

    /// Where a new slot is to keep WAL from; `None` before there is any.
    pub(super) fn wal_to_reserve(&self) -> Option<Lsn> {
        let (oldest, tip, size) = (self.oldest()?, self.tip()?.write_lsn, self.identity()?.seg_size);
        let allowed = match self.keep_sizes().max_slot_wal_keep_size {
            Some(most) => tip.rewind(most).advance(size.bytes()).seg_start(size),
            None => oldest,
        };
        let at_least = oldest.max(allowed).min(tip.seg_start(size));
        let below_standby = self.upstream_parameters().status("in_hot_standby") == Some("on");
        let redo = self.checkpoint.redo(&self.history()).filter(|redo| !below_standby && *redo <= tip);
        Some(redo.map_or(at_least, |redo| redo.max(at_least)))
    }

    /// What goes with the end of the WAL.
    fn ends(&self, tip: Tip, size: SegSize) -> Ends {
        let Tip { write_lsn, flush_lsn, .. } = tip;
        let KeepSizes { wal_keep_size, max_slot_wal_keep_size } = self.keep_sizes();
        let slots = max_slot_wal_keep_size.map(|most| write_lsn.rewind(most).seg_start(size));
        Ends {
            keep_size: write_lsn.rewind(wal_keep_size),
            // The segment before the durable end stays in any case: recovery starts from it.
            recovery: flush_lsn.rewind(1),
            slots: slots.unwrap_or_default(),
        }
    }

    /// Who holds the oldest WAL, and how much that is, in words.
    pub(super) fn who_holds_wal(&self) -> Option<String> {
        let (tip, size) = (self.tip()?, self.identity()?.seg_size);
        let end = tip.write_lsn;
        // By where WAL ends now, also before the first pass.
        self.holds.would_keep(self.ends(tip, size));
        let row = self.holds.oldest()?;
        match row.held {
            Held::Everything => Some(format!("all WAL is kept until {row} has said what it needs")),
            Held::From(from) => {
                Some(format!("WAL from {from} on, {} MB, is kept for {row}", end.since(from.min(end)) >> 20))
            }
            Held::Nothing => None,
        }
    }

    /// Keeps all WAL, and has no slot lost, until the result is dropped: for a relay that starts, until all that will need WAL
    /// has registered.
    pub fn hold_for_start(&self) -> Hold {
        self.holds.register(HoldKind::Start, "the start")
    }

    /// Who needs which WAL. Whoever registers here before WAL arrives has all of it kept.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Lets go of removed segments that nobody else reads any more.
    fn free_removed(&self) {
        let unused = |segment: &mut Arc<Segment>| Arc::strong_count(segment) == 1;
        let free: Vec<_> = lock(&self.removed).extract_if(.., unused).collect();
        drop(free);
    }

    /// Removes them one by one: one that cannot be removed does not keep the others.
    fn remove_segments_before(&self, keep: SegNo, size: SegSize) -> Result<(), RetentionError> {
        let (mut removed, mut failed) = (0, Vec::new());
        for found in self.dir.segments(size).map_err(RetentionError::List)? {
            if found.name.segno >= keep {
                continue;
            }
            let path = match found.partial {
                true => self.dir.partial(found.name, size),
                false => self.dir.segment(found.name, size),
            };
            match self.dir.disk().remove(&path) {
                Ok(()) => {
                    removed += 1;
                    self.counts.segments_removed.note();
                    lock(&self.removed).extend(self.segments.in_use(found.name));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed.push((path, error)),
            }
        }
        if removed > 0 {
            let synced = self.dir.sync_wal_dir().inspect_err(|error| self.fail_if_names_are_lost(error));
            synced.map_err(RetentionError::Sync)?;
            let kept = self.who_holds_wal().unwrap_or_default();
            tracing::debug!("removed {removed} WAL segments before {}; {kept}", keep.start(size));
        }
        let more = failed.len().saturating_sub(1);
        match failed.into_iter().next() {
            Some((path, source)) => {
                Err(RetentionError::Remove { file: path.display().to_string(), source, more })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_wal_is_said_at_once_and_then_now_and_then() {
        let (mut complaint, start) = (Complaint::default(), Instant::now());
        let failure = |errno: rustix::io::Errno| Err(RetentionError::List(errno.into()));
        let said = |complaint: &Complaint| complaint.said.clone().map(|(_, at)| at);
        complaint.note(failure(rustix::io::Errno::MFILE), start);
        complaint.note(failure(rustix::io::Errno::MFILE), start + SAY_AGAIN / 2);
        assert_eq!(said(&complaint), Some(start));
        complaint.note(failure(rustix::io::Errno::MFILE), start + SAY_AGAIN);
        assert_eq!(said(&complaint), Some(start + SAY_AGAIN));
        complaint.note(failure(rustix::io::Errno::IO), start + SAY_AGAIN + INTERVAL);
        assert_eq!(said(&complaint), Some(start + SAY_AGAIN + INTERVAL));
        complaint.note(Ok(()), start + SAY_AGAIN * 2);
        assert_eq!(said(&complaint), None);
    }

    #[test]
    fn what_to_do_depends_on_the_reason() {
        let text = |errno: rustix::io::Errno| RetentionError::List(errno.into()).to_string();
        assert!(text(rustix::io::Errno::MFILE).contains("limit of open files"));
        assert!(text(rustix::io::Errno::ACCESS).contains("relay's user"));
        assert!(text(rustix::io::Errno::IO).contains("file system"));
    }
}
