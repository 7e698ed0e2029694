//! The flusher: makes written WAL durable, as much as there is at each turn. A thread of its own takes the turns, or
//! whoever steps the store.
//!
//! While one sync runs, everything written meanwhile waits for the next: group commit. `flush_lsn` moves
//! after the sync returned. A failed sync ends the relay: the kernel may have dropped the pages, and a
//! second sync would claim success (PostgreSQL: `data_sync_retry = off`). Word of it is left for the next start.
//!
//! Whoever has written may also do the flusher's turn itself ([`Store::offer_turns_to_writer`]): where syncs were quick lately and
//! there is nothing special about it, it is *offered* first, to be taken when there is nothing else to do
//! ([`Store::take_turn`]), and no thread has to be woken for it. Turns exclude each other: who is at work has said so in the
//! queue, nobody waits for him there but the flusher, and what is left when he is done is the flusher's.
//! WAL that comes while whoever receives it syncs waits for him; where that happens, the next turns are the flusher's ([`Crowding`]),
//! so it is his turn where a sync is all there is to do, and the flusher's where the next commit does not wait for it.
//!
//! A complete segment gets its final name when everything up to its end is durable, the end of the record that reaches
//! beyond it included, so finished segments are durable by their name, and recovery never ends in front of one. If that name
//! cannot be given (a rename fails), the segment is as durable under the old one, and it is tried again.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::mapped::Segment;
use super::trouble::Trouble;
use super::{Store, TimelinePosition, lock};
use crate::disk;
use crate::mutation::{self, Mutation};
use crate::parts::{BEAT, Heart, PartEnded, Thread, beat};

/// What the flusher's thread is called.
pub(crate) const FLUSHER: &str = "flusher";

/// Full segments of an unfinished record that may wait for their sync, and so keep their files open.
const MOST_EARLY: usize = 8;
/// Pause before names are given again that could not be.
const NAMING_PAUSE: Duration = Duration::from_secs(1);
/// Where syncs take less than this, whoever has written may wait for one.
const QUICK: Duration = Duration::from_millis(2);
/// What counts at most of one that was slow: a disk that is quick again shall soon be known as such.
const SLOWEST: Duration = Duration::from_millis(16);
/// WAL that comes within this part of a usual sync after one was waiting meanwhile.
const SOON: u32 = 4;
/// Turns that the flusher gets, when WAL had to wait for whoever receives it.
const CROWDED: std::ops::RangeInclusive<u32> = 64..=1024;

/// What the writer has left for the flusher.
#[derive(Debug, Default)]
pub(super) struct FlushQueue {
    work: Mutex<Work>,
    changed: Condvar,
    /// A turn waits for whoever has written, and nobody was woken for it. Changes under the lock.
    offered: AtomicBool,
}

#[derive(Debug, Default)]
struct Work {
    /// Segments with bytes that are not durable, oldest first.
    dirty: Vec<Arc<Segment>>,
    /// What may be called durable once they are.
    target: Option<TimelinePosition>,
    /// Segments full of the middle of a record, not to be written again, whose file is to be synced and closed.
    early: Vec<Arc<Segment>>,
    /// How many of those are being synced.
    early_at_work: usize,
    stop: bool,
    /// Who makes durable what was written. Nobody else does meanwhile.
    at_work: Option<Who>,
    /// Whoever has written takes turns that are offered.
    writer_syncs: bool,
    /// A sync has failed: nothing is taken or confirmed any more.
    failing: bool,
    /// That is known to everybody: the flusher may end.
    failed: bool,
    pace: Pace,
    crowding: Crowding,
    /// Nobody takes anything any more, or only whoever steps the store, when it gets to it.
    takes_its_time: bool,
}

/// Who does the flusher's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Flusher,
    Writer,
}

/// How long syncs take, those of late above all.
#[derive(Debug, Default)]
struct Pace(Option<Duration>);

impl Pace {
    fn note(&mut self, took: Duration) {
        let took = took.min(SLOWEST);
        self.0 = Some(self.0.map_or(took, |before| (before * 7 + took) / 8));
    }

    /// Nothing is known of a disk that was not synced yet.
    fn is_quick(&self) -> bool {
        self.0.is_some_and(|usual| usual < QUICK)
    }
}

/// Whether WAL comes while whoever receives it syncs. A client that waits for each of its commits never has it so: the next
/// one comes a way there and back, and a sync of the server's, later.
#[derive(Debug, Default)]
struct Crowding {
    /// When whoever has written was done with the last turn, until more comes.
    done: Option<Instant>,
    /// Turns that are the flusher's.
    left: u32,
    /// How many those were; fewer, the longer nothing had to wait.
    last: u32,
}

impl Crowding {
    /// More has come.
    fn note(&mut self, came: Instant, syncs: bool, usual: Duration) {
        let done = self.done.take();
        match done.map(|done| came.saturating_duration_since(done) < usual / SOON) {
            Some(true) => self.crowd(),
            // Somebody else received it meanwhile, because it took so long.
            None if syncs => self.crowd(),
            Some(false) => self.last /= 2,
            None => {}
        }
    }

    fn crowd(&mut self) {
        self.left = (self.last * 2).clamp(*CROWDED.start(), *CROWDED.end());
        self.last = self.left;
    }

    /// Whether a turn can be left to whoever has written; counts it if not.
    fn leaves_one(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }
}

/// What the flusher does in one turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    dirty: Vec<Arc<Segment>>,
    target: Option<TimelinePosition>,
    early: Vec<Arc<Segment>>,
}

impl FlushQueue {
    /// Has the disk be known as one that takes so long: how long it really took is chance.
    #[cfg(test)]
    pub(super) fn set_pace(&self, usual: Duration) {
        lock(&self.work).pace = Pace(Some(usual));
    }

    /// Has the writer's last turn be known to have ended then.
    #[cfg(test)]
    pub(super) fn set_done(&self, done: Instant) {
        lock(&self.work).crowding.done = Some(done);
    }

    /// Asks for `segments` to be synced; then everything up to `target`, which came at `came`, is durable. Wakes the flusher, or
    /// offers the turn to whoever calls this; what was offered before and not taken is the flusher's, for there was something
    /// else to do.
    pub(super) fn push(
        &self,
        segments: impl Iterator<Item = Arc<Segment>>,
        target: TimelinePosition,
        came: Instant,
    ) {
        let mut work = lock(&self.work);
        work.note_arrival(came);
        for segment in segments {
            if !work.dirty.iter().any(|known| Arc::ptr_eq(known, &segment)) {
                work.dirty.push(segment);
            }
        }
        work.target = Some(target);
        let may_be = work.may_be_offered() && !self.offered.load(Ordering::Relaxed);
        let is_offer = may_be && work.crowding.leaves_one();
        self.offered.store(is_offer, Ordering::Relaxed);
        if !is_offer {
            self.changed.notify_all();
        }
    }

    /// Whether whoever writes takes turns. What is offered at the moment is the flusher's if not.
    fn set_writer_syncs(&self, writer_syncs: bool) {
        let mut work = lock(&self.work);
        work.writer_syncs = writer_syncs;
        if !writer_syncs && self.offered.swap(false, Ordering::Relaxed) {
            self.changed.notify_all();
        }
    }

    /// What is offered, if it still is. It is the caller's alone until it is [`done`](Self::done).
    pub(super) fn take_offered(&self) -> Option<Turn> {
        let mut work = lock(&self.work);
        if !self.offered.swap(false, Ordering::Relaxed) || work.at_work.is_some() || work.failing {
            return None;
        }
        let target = Some(work.target.take()?);
        work.at_work = Some(Who::Writer);
        Some(Turn { dirty: std::mem::take(&mut work.dirty), target, early: Vec::new() })
    }

    /// What was taken is durable, after so long.
    fn done(&self, took: Duration) {
        let mut work = lock(&self.work);
        if work.at_work.take() == Some(Who::Writer) {
            work.crowding.done = Some(Instant::now());
        }
        work.pace.note(took);
        // What has come meanwhile.
        if work.target.is_some() && !self.offered.load(Ordering::Relaxed) {
            self.changed.notify_all();
        }
    }

    /// A sync has failed; whether it is the first. From now on nobody begins one, and none that is under way counts.
    pub(super) fn begin_failing(&self) -> bool {
        !std::mem::replace(&mut lock(&self.work).failing, true)
    }

    /// Everybody knows that nobody knows what is durable: whoever is at work has met that, and stays it.
    fn fail(&self) {
        lock(&self.work).failed = true;
        self.changed.notify_all();
    }

    /// Has a segment that is full of the middle of a record synced and closed; waits while too many are. To be called
    /// by the writer, from a thread that may wait for the disk.
    pub(super) fn push_early(&self, segment: Arc<Segment>) {
        let mut work = lock(&self.work);
        work.early.push(segment);
        self.changed.notify_all();
        while work.early.len() + work.early_at_work > MOST_EARLY && !work.takes_its_time {
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for work, or, if `names_wait`, for a moment; false when there is none left and the flusher shall stop.
    fn wait(&self, names_wait: bool) -> bool {
        let mut work = lock(&self.work);
        loop {
            // Whether it has nothing to do, or never an end of it.
            beat();
            if work.failed {
                return false;
            }
            if work.can_be_taken() {
                return true;
            }
            if work.stop && !work.is_some() {
                return false;
            }
            work = match names_wait {
                false => self.changed.wait_timeout(work, BEAT).unwrap_or_else(PoisonError::into_inner).0,
                true => {
                    let (work, waited) =
                        self.changed.wait_timeout(work, NAMING_PAUSE).unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() {
                        return true;
                    }
                    work
                }
            };
        }
    }

    /// All there is to do, if that is anything.
    pub(super) fn take(&self) -> Option<Turn> {
        let mut work = lock(&self.work);
        if work.failing || !work.can_be_taken() {
            return None;
        }
        let early = std::mem::take(&mut work.early);
        work.early_at_work = early.len();
        let target = if work.at_work.is_some() { None } else { work.target.take() };
        if target.is_some() {
            work.at_work = Some(Who::Flusher);
            self.offered.store(false, Ordering::Relaxed);
        }
        let dirty = if target.is_some() { std::mem::take(&mut work.dirty) } else { Vec::new() };
        Some(Turn { dirty, target, early })
    }

    /// Whether the writer waits while much is to be done.
    fn set_takes_its_time(&self, takes_its_time: bool) {
        lock(&self.work).takes_its_time = takes_its_time;
        self.changed.notify_all();
    }

    fn early_are_done(&self) {
        lock(&self.work).early_at_work = 0;
        self.changed.notify_all();
    }
}

impl Work {
    fn note_arrival(&mut self, came: Instant) {
        let usual = self.pace.0.unwrap_or_default();
        self.crowding.note(came, self.at_work == Some(Who::Writer), usual);
    }

    fn is_some(&self) -> bool {
        self.target.is_some() || !self.early.is_empty()
    }

    /// Whether there is work that nobody else is at.
    fn can_be_taken(&self) -> bool {
        !self.failing && ((self.target.is_some() && self.at_work.is_none()) || !self.early.is_empty())
    }

    /// Whether the turn can be left to whoever has written: one sync of what lies in files that are there durably, and
    /// nothing else. What completes a segment takes a while.
    fn may_be_offered(&self) -> bool {
        let is_plain = |segment: &Arc<Segment>| segment.is_linked() && !segment.is_complete();
        let is_free = self.writer_syncs && self.at_work.is_none() && !self.failing && !self.stop;
        is_free && self.early.is_empty() && self.pace.is_quick() && self.dirty.iter().all(is_plain)
    }
}

/// Makes what is written durable, turn by turn, for whoever calls [`step`](Self::step): the store's own thread, or one that
/// steps all of the store.
#[derive(Debug)]
pub struct Flushing {
    store: Arc<Store>,
    naming: Naming,
    /// What could not be done yet, because the disk hangs.
    turn: Option<Turn>,
    /// A sync has: nobody knows what is durable.
    has_failed: bool,
}

impl Flushing {
    pub(super) fn new(store: Arc<Store>) -> Flushing {
        store.flush_queue.set_takes_its_time(true);
        Flushing { store, naming: Naming::default(), turn: None, has_failed: false }
    }

    /// The store whose WAL it is.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Makes durable what has been written up to now, and gives complete segments their names; whether there was
    /// anything to do, and it was done. Waits for the disk. Where a sync fails, the store has [failed](Store::failed), and
    /// nothing is done any more.
    ///
    /// On a simulated disk that hangs nothing counts as done, and the next step does it again.
    pub fn step(&mut self) -> bool {
        if self.has_failed {
            return false;
        }
        let taken = self.turn.take().or_else(|| self.store.flush_queue.take());
        if taken.is_none() && !self.naming.is_behind() {
            return false;
        }
        let (turn, behind) = (taken.unwrap_or_default(), self.naming.complete.len());
        match self.store.flush(&turn, &mut self.naming) {
            Ok(()) => !turn.is_empty() || self.naming.complete.len() < behind,
            Err(failure) if disk::would_hang(&failure.source) => {
                self.turn = Some(turn);
                false
            }
            Err(_) if mutation::is(Mutation::GoOnAfterFailedSync) => {
                self.turn = Some(turn);
                false
            }
            Err(failure) => {
                self.has_failed = true;
                self.store.meet_failure(&failure);
                false
            }
        }
    }

    /// Does so until it is told to stop and all is done, or a sync has failed. The writer may count on it meanwhile.
    fn run(&mut self) {
        let _end = EndOfRun(&self.store.clone().flush_queue);
        self.store.flush_queue.set_takes_its_time(false);
        while !self.has_failed && self.store.flush_queue.wait(self.naming.is_behind()) {
            self.step();
        }
    }

    /// Does a turn that somebody has taken.
    #[cfg(test)]
    pub(super) fn finish_turn(&mut self, turn: &Turn) {
        assert!(self.tries_turn(turn));
    }

    /// Whether such a turn counts.
    #[cfg(test)]
    pub(super) fn tries_turn(&mut self, turn: &Turn) -> bool {
        self.store.flush(turn, &mut self.naming).is_ok()
    }

    /// Does what is left.
    pub(super) fn finish(mut self) {
        while self.step() {}
    }
}

/// Lets nobody wait for a flusher that is gone, whatever ended it.
struct EndOfRun<'a>(&'a FlushQueue);

impl Drop for EndOfRun<'_> {
    fn drop(&mut self) {
        self.0.set_takes_its_time(true);
    }
}

/// The flusher's thread.
#[derive(Debug)]
pub(super) struct Flusher {
    thread: Thread<()>,
}

impl Flusher {
    pub(super) fn start(mut flushing: Flushing) -> Flusher {
        let run = move || flushing.run();
        let thread = Thread::start(FLUSHER, run);
        Flusher { thread: thread.expect("threads can be started when the process starts") }
    }

    pub(super) fn heart(&self) -> Heart {
        self.thread.heart()
    }

    /// Resolves when the thread has ended by itself. Cancel-safe.
    pub(super) async fn lost(&mut self) -> PartEnded {
        self.thread.lost().await
    }

    /// Syncs what is left and ends the thread.
    pub(super) fn stop(self, store: &Store) -> Result<(), PartEnded> {
        lock(&store.flush_queue.work).stop = true;
        store.flush_queue.changed.notify_all();
        self.thread.join()
    }
}

impl Turn {
    fn is_empty(&self) -> bool {
        self.target.is_none() && self.early.is_empty()
    }
}

/// A sync failed: nobody knows what is durable.
struct SyncFailure {
    what: String,
    source: io::Error,
}

impl Store {
    fn flush(&self, turn: &Turn, naming: &mut Naming) -> Result<(), SyncFailure> {
        for segment in &turn.early {
            let what =
                |source| SyncFailure { what: "could not sync WAL of an unfinished record".into(), source };
            segment.sync().map_err(what)?;
            segment.close();
        }
        self.flush_queue.early_are_done();
        if let Some(target) = turn.target {
            self.sync_written(&turn.dirty, target, naming)?;
        }
        let failed =
            |source| SyncFailure { what: "could not sync pg_wal for finished segments".into(), source };
        naming.give(self).map_err(failed)
    }

    fn sync_written(
        &self,
        dirty: &[Arc<Segment>],
        target: TimelinePosition,
        naming: &mut Naming,
    ) -> Result<(), SyncFailure> {
        let failed =
            |source| SyncFailure { what: format!("could not sync WAL up to {}", target.lsn), source };
        let begun = Instant::now();
        self.sync_all(dirty, target, naming).map_err(failed)?;
        let took = begun.elapsed();
        self.counts.syncs.note(took);
        self.flush_queue.done(took);
        Ok(())
    }

    /// Whether whoever writes takes turns of the flusher's that are offered, by [`take_turn`](Self::take_turn). It is to do so
    /// as soon as it has nothing else to do, or to say here that it does not any more.
    pub fn offer_turns_to_writer(&self, offer: bool) {
        self.flush_queue.set_writer_syncs(offer);
    }

    /// Whether a turn is offered: everything was written, it is not durable, and nobody does anything about it.
    pub fn has_turn_at_hand(&self) -> bool {
        self.flush_queue.offered.load(Ordering::Relaxed)
    }

    /// Makes durable what has been written, if that is still offered; nothing if not. Where it fails, the store has
    /// [failed](Self::failed). Waits for the disk.
    pub fn take_turn(&self) {
        let Some(Turn { dirty, target: Some(target), .. }) = self.flush_queue.take_offered() else { return };
        let mut naming = Naming::default();
        if let Err(failure) = self.sync_written(&dirty, target, &mut naming) {
            self.meet_failure(&failure);
        }
        debug_assert!(!naming.is_behind(), "what is offered completes no segment");
    }

    /// Nothing is confirmed from the moment on that a sync has failed, long before word of it is left.
    fn meet_failure(&self, failure: &SyncFailure) {
        if self.flush_queue.begin_failing() {
            self.fail_sync(&failure.what, &failure.source);
            self.flush_queue.fail();
        }
    }

    fn sync_all(
        &self,
        segments: &[Arc<Segment>],
        target: TimelinePosition,
        naming: &mut Naming,
    ) -> io::Result<()> {
        // What is complete now is synced whole below; what is completed meanwhile comes again. So does what a later commit
        // has completed: the record that ends it may end in a segment that is not among these.
        let is_durable = |segment: &Segment| segment.name().tli != target.tli || segment.end() <= target.lsn;
        let complete: Vec<_> =
            segments.iter().filter(|segment| segment.is_complete() && is_durable(segment)).cloned().collect();
        for segment in
            segments.iter().filter(|one| !mutation::is(Mutation::NameBeforeSync) || !one.is_complete())
        {
            segment.sync()?;
        }
        if !segments.iter().all(|segment| segment.is_linked()) {
            if !mutation::is(Mutation::ForgetDirectorySync) {
                self.dir.sync_wal_dir()?;
            }
            segments.iter().for_each(|segment| segment.note_link());
        }
        let (before, written) = (*self.flushed.borrow(), *self.written.borrow());
        let goes_on = |from: TimelinePosition| from.tli != target.tli || from.lsn <= target.lsn;
        assert!(before.is_none_or(goes_on), "the durable end falls from {before:?} to {target:?}");
        let reaches = |to: TimelinePosition| to.tli != target.tli || target.lsn <= to.lsn;
        assert!(written.is_none_or(reaches), "{target:?} is called durable and {written:?} written");
        let work = lock(&self.flush_queue.work);
        if work.failing {
            return Err(io::Error::other("another sync has failed"));
        }
        self.flushed.send_replace(Some(target));
        drop(work);
        complete.iter().for_each(|segment| segment.close());
        naming.complete.extend(complete);
        Ok(())
    }
}

/// Complete, durable segments that have not got their final names yet.
#[derive(Debug, Default)]
struct Naming {
    complete: Vec<Arc<Segment>>,
    trouble: Trouble,
}

impl Naming {
    fn is_behind(&self) -> bool {
        !self.complete.is_empty()
    }

    /// Gives them their names. A name that cannot be given now is given later; only a failed sync of the directory is an
    /// error.
    fn give(&mut self, store: &Store) -> io::Result<()> {
        let Some(identity) = store.identity().filter(|_| self.is_behind()) else { return Ok(()) };
        let mut named = 0;
        for segment in &self.complete {
            let (name, size) = (segment.name(), identity.seg_size);
            let partial = store.dir.partial(name, size);
            match store.dir.disk().rename(&partial, &store.dir.segment(name, size)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // It came twice: the second time it has its name.
                    if !store.dir.disk().exists(&store.dir.segment(name, size)) {
                        tracing::error!(
                            "complete WAL segment {} has vanished from the data directory: somebody has removed it",
                            partial.display()
                        );
                    }
                }
                Err(error) => {
                    if self.trouble.is_news(Instant::now()) {
                        tracing::error!(
                            "could not rename complete WAL segment {}: {error}; it is durable, and the relay tries again",
                            partial.display()
                        );
                    }
                    break;
                }
                Ok(()) => {}
            }
            named += 1;
        }
        if named == 0 {
            return Ok(());
        }
        store.dir.sync_wal_dir()?;
        self.complete.drain(..named);
        if self.complete.is_empty() && self.trouble.is_over() {
            tracing::info!("complete WAL segments have their names again");
        }
        store.retention_bell.ring();
        store.files.send_modify(|step| *step += 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use walrelay_proto::generate::WalGenerator;
    use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalIdentity};

    use super::super::{Identity, Stepped, StoreConfig, UpstreamParameters, WalWrite};
    use super::*;
    use crate::disk::OsDisk;

    const SEG: u64 = 1 << 20;

    /// A commit that comes while a turn is under way completes segments of that turn, by the end of a record that lies in a
    /// segment which is not of that turn: a crash behind their names would leave finished segments of an unfinished record.
    #[test]
    fn a_segment_gets_its_name_only_when_the_record_that_ends_it_is_durable() {
        let dir = crate::permissions::private_tempdir();
        let config = StoreConfig {
            data_dir: dir.path().to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 1 << 40,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        };
        let Stepped { store, mut writer, mut flushing, .. } =
            Store::open_on(Arc::new(OsDisk), config).unwrap();
        let identity = Identity { system_id: SystemId(77), seg_size: SegSize::new(SEG).unwrap() };
        store.attach(identity, UpstreamParameters::default()).unwrap();
        let start = Lsn::new(3 * SEG);
        writer.begin(identity, TimelineHistory::first(), start);
        let id = WalIdentity { system_id: identity.system_id, seg_size: identity.seg_size };
        let mut wal = WalGenerator::new(id, TimelineId::FIRST, start, 1);
        wal.fill(500_000);
        wal.record(3_000_000);
        let end = *wal.record_ends().last().unwrap();
        let finished =
            |segno: u64| dir.path().join(format!("pg_wal/00000001000000000000000{segno}")).exists();

        let (first, rest) = wal.bytes().split_at(2 * SEG as usize + 5000);
        writer.append(start, first).unwrap();
        writer.commit();
        let turn = store.flush_queue.take().unwrap();
        writer.append(start.advance(first.len() as u64), rest).unwrap();
        writer.commit();
        assert!(turn.dirty.iter().any(|segment| segment.is_complete()), "the later commit has completed it");
        assert!(store.flush(&turn, &mut flushing.naming).is_ok());
        assert!((3..=6).all(|segno| !finished(segno)));

        while flushing.step() {}
        assert_eq!(store.tip().unwrap().flush_lsn, end);
        assert!((3..=5).all(finished));
    }
}
