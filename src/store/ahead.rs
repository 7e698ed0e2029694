//! Segments made ahead: files of full size that are ready before WAL needs them, so that no commit waits for one at a
//! segment's end.
//!
//! ```text
//!               Making::step                                       Writer, at a segment's end
//! no file ── made, allocated, synced ──> spare ── filled with zeros, piece by piece ──> taken: renamed to .partial
//! ```
//!
//! The first sync of each block of an allocated file pays for a change of metadata, as the block was never written; in one
//! that is full of zeros it does not (PostgreSQL: `wal_init_zero`). Filling is work for quiet times: it is done in small pieces
//! with long pauses, never while a file is missing, and one that is not full yet is taken as it is.
//!
//! Nothing depends on a spare: where there is none the writer makes its own. It has a name of those in the making, which
//! nobody takes for WAL and the next start removes, and it is nothing but zeros, however much of that is on the disk. So its
//! syncs, should they fail, say nothing of WAL: the file is thrown away. Spares take room only where there is plenty, and
//! give it back when that is over.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use walrelay_proto::SegSize;

use super::dir::{self, DataDir};
use super::trouble::Trouble;
use super::{Store, lock};
use crate::disk::{self, DiskFile};
use crate::parts::{BEAT, Heart, PartEnded, Thread, beat};

/// How many there are at most.
const MOST: usize = 2;
/// Room that has to be left behind a new one, in segments; where less than half of it is left the spares go.
const ROOM: u64 = 16;
/// What is filled at a time, bytes: as much as a disk writes in the time of a sync.
const PIECE: usize = 256 << 10;
/// Pause behind each piece, in times of what it took.
const EASE: u32 = 9;
/// How often the room is looked at, and pause after an error.
const LOOK: Duration = Duration::from_secs(5);

/// A file that is ready.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn DiskFile>,
    /// Bytes from the start that were written; of the others the blocks are only reserved.
    filled: u64,
}

/// The spares, between who makes and who takes them.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What was needed last; `None` until WAL comes.
    size: Option<SegSize>,
    /// Without the one that is being filled.
    spares: Vec<Spare>,
    /// The name of the next one: one that was taken keeps its own until the writer has renamed it.
    next: u64,
    stop: bool,
}

impl State {
    fn is_missing(&self) -> bool {
        self.size.is_some() && self.spares.len() < MOST
    }
}

/// What is to be done next.
#[derive(Debug)]
enum Job {
    Make {
        number: u64,
        size: SegSize,
    },
    /// Its file is nobody else's until it is put back.
    Fill(Spare),
}

impl Ahead {
    /// A spare for a segment, as full as there is one. From now on they are made.
    pub(super) fn take(&self, size: SegSize) -> Option<Spare> {
        let mut state = lock(&self.state);
        state.size = Some(size);
        let fullest = (0..state.spares.len()).max_by_key(|at| state.spares[*at].filled);
        let taken = fullest.map(|at| state.spares.swap_remove(at));
        self.changed.notify_one();
        taken
    }

    /// Waits for `pause`, or only until one is missing; false when it is time to stop.
    fn wait(&self, pause: Duration) -> bool {
        let state = lock(&self.state);
        // After an error one may be missing for longer.
        let was_missing = state.is_missing();
        let quiet = |state: &mut State| !state.stop && (was_missing || !state.is_missing());
        let (state, _) =
            self.changed.wait_timeout_while(state, pause, quiet).unwrap_or_else(PoisonError::into_inner);
        !state.stop
    }

    /// The next thing to do, if there is any.
    fn job(&self, may_fill: bool) -> Option<Job> {
        let mut state = lock(&self.state);
        let size = state.size?;
        if state.is_missing() {
            state.next += 1;
            return Some(Job::Make { number: state.next, size });
        }
        let is_unfilled = |spare: &Spare| spare.filled < size.bytes();
        let at = state.spares.iter().position(is_unfilled).filter(|_| may_fill)?;
        Some(Job::Fill(state.spares.swap_remove(at)))
    }

    fn put(&self, spare: Spare) {
        lock(&self.state).spares.push(spare);
    }

    fn is_missing(&self) -> bool {
        lock(&self.state).is_missing()
    }

    fn size(&self) -> Option<SegSize> {
        lock(&self.state).size
    }

    fn take_all(&self) -> Vec<Spare> {
        std::mem::take(&mut lock(&self.state).spares)
    }
}

/// Makes segments ahead, piece of work by piece of work, for whoever calls [`step`](Self::step): the store's own thread, or
/// one that steps all of the store.
#[derive(Debug)]
pub struct Making {
    store: Arc<Store>,
    trouble: Trouble,
    /// Whether there is room for more, when that was looked at last.
    room: Option<(bool, Instant)>,
    /// Whether it was said that there is none.
    said_no_room: bool,
    /// Nothing is tried before, after an error.
    not_before: Option<Instant>,
}

impl Making {
    pub(super) fn new(store: Arc<Store>) -> Making {
        Making { store, trouble: Trouble::default(), room: None, said_no_room: false, not_before: None }
    }

    /// Makes a file, or fills a piece of one; whether there was anything to do, and it was done. Waits for the disk. Once
    /// nothing is to be done, nothing is until WAL has needed a segment. What fails is said, not each time, and tried again
    /// after a while.
    pub fn step(&mut self, now: Instant) -> bool {
        let Some(size) = self.store.ahead.size() else { return false };
        if self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        self.not_before = None;
        match self
            .has_room(size, now)
            .and_then(|has_room| if has_room { self.work() } else { self.give_up() })
        {
            Ok(done) => {
                if done && self.trouble.is_over() {
                    tracing::info!("WAL segments are made ahead again");
                }
                done
            }
            Err(error) if disk::would_hang(&error) => false,
            Err(error) => {
                self.not_before = Some(now + LOOK);
                if self.trouble.is_news(now) {
                    tracing::warn!(
                        "could not make WAL segments ahead: {error}; each is made when it is needed until then"
                    );
                }
                false
            }
        }
    }

    fn work(&self) -> io::Result<bool> {
        let (ahead, dir) = (&self.store.ahead, &self.store.dir);
        match ahead.job(dir.disk().writes_in_place(dir.wal())) {
            None => return Ok(false),
            Some(Job::Make { number, size }) => ahead.put(make(dir, number, size)?),
            Some(Job::Fill(mut spare)) => {
                let filled = fill(&mut spare);
                if filled.as_ref().is_err_and(|error| !disk::would_hang(error)) {
                    drop(dir.disk().remove(&spare.path));
                    return filled.map(|()| false);
                }
                ahead.put(spare);
                filled?;
            }
        }
        Ok(true)
    }

    /// Whether the file system has room for spares; looked at now and then.
    fn has_room(&mut self, size: SegSize, now: Instant) -> io::Result<bool> {
        if let Some((room, at)) = self.room
            && now.saturating_duration_since(at) < LOOK
        {
            return Ok(room);
        }
        let had = self.room.is_some_and(|(room, _)| room);
        let free = self.store.dir.disk().free_space(self.store.dir.wal())?;
        let room = free >= size.bytes() * if had { ROOM / 2 } else { ROOM };
        if !room && !std::mem::replace(&mut self.said_no_room, true) {
            tracing::info!(
                "no WAL segments are made ahead: {} MB are free on the file system of pg_wal",
                free >> 20
            );
        }
        self.said_no_room &= !room;
        self.room = Some((room, now));
        Ok(room)
    }

    /// Gives all room back that spares take. There is nothing else to do.
    fn give_up(&self) -> io::Result<bool> {
        let spares = self.store.ahead.take_all();
        let removed = spares.iter().map(|spare| self.store.dir.disk().remove(&spare.path));
        removed.fold(Ok(()), io::Result::and).map(|()| false)
    }

    /// Does so until it is told to stop.
    fn run(&mut self) {
        let mut pause = BEAT;
        while self.store.ahead.wait(pause) {
            beat();
            let began = Instant::now();
            pause = match self.step(began) {
                true if self.store.ahead.is_missing() => Duration::ZERO,
                true => (began.elapsed() * EASE).min(BEAT),
                false => BEAT,
            };
        }
    }

    /// Leaves nothing behind.
    pub(super) fn finish(self) {
        if let Err(error) = self.give_up() {
            tracing::warn!(
                "could not remove WAL segments that were made ahead: {error}; the next start does"
            );
        }
    }
}

/// A new file of full size, durable as it is.
fn make(dir: &DataDir, number: u64, size: SegSize) -> io::Result<Spare> {
    let path = dir.new_file(&format!("ahead-{number}"));
    let file = dir::preallocate(dir.disk(), &path, size)?;
    // Its length and its blocks: else the first sync of WAL in it would have to.
    match file.sync_all() {
        Ok(()) => Ok(Spare { path, file, filled: 0 }),
        Err(error) => {
            drop(dir.disk().remove(&path));
            Err(error)
        }
    }
}

/// Fills the next piece of it.
fn fill(spare: &mut Spare) -> io::Result<()> {
    static ZEROS: [u8; PIECE] = [0; PIECE];
    spare.file.write_all_at(&ZEROS, spare.filled)?;
    spare.file.sync_data()?;
    spare.filled += PIECE as u64;
    Ok(())
}

/// The thread that makes them.
#[derive(Debug)]
pub(super) struct Maker {
    thread: Thread<()>,
}

impl Maker {
    pub(super) fn start(mut making: Making) -> Maker {
        let run = move || making.run();
        let thread = Thread::start("segment maker", run);
        Maker { thread: thread.expect("threads can be started when the process starts") }
    }

    pub(super) fn heart(&self) -> Heart {
        self.thread.heart()
    }

    /// Resolves when the thread has ended by itself. Cancel-safe.
    pub(super) async fn lost(&mut self) -> PartEnded {
        self.thread.lost().await
    }

    /// Ends the thread and removes the spares.
    pub(super) fn stop(self, store: &Arc<Store>) -> Result<(), PartEnded> {
        lock(&store.ahead.state).stop = true;
        store.ahead.changed.notify_one();
        let ended = self.thread.join();
        Making::new(store.clone()).finish();
        ended
    }
}
