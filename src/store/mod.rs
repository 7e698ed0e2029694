//! The store: WAL on disk, how far it reaches, and what must be kept.
//!
//! ```text
//! upstream ── bytes ──> Writer ── verified, written ──> written() ──> walsenders read Segments
//!                         │
//!                         └── dirty segments ──> flusher thread ── synced ──> flushed() ──> upstream reports
//! retention thread: slots + wal_keep_size ──> removes segments
//! segment maker: the next segments ──> taken by the Writer, which else makes its own
//! ```
//!
//! One owner for each piece of state: only the [`Writer`] moves `write_lsn` and the timeline, only the
//! flusher moves `flush_lsn`, only retention removes files. Threads take their turns ([`Store::open`]), or somebody who
//! steps all of it by one thread, on any disk ([`Store::open_on`]).
//!
//! Invariants:
//! - `flush_lsn <= write_lsn`, and both are ends of verified records (or page boundaries in the zeros behind
//!   an XLOG_SWITCH). Nothing published is ever taken back or changed.
//! - What is reported upstream as flushed survives a crash: `flush_lsn` moves after the sync returned.
//! - A timeline's history file is durable before the timeline is shown to anybody, and so is the note that it is
//!   followed (`followed`), before anything is written on it.
//! - No WAL is removed that a slot needs, or needed when it was saved last, but for a slot that is lost. So its saved
//!   `restart_lsn` points before the oldest WAL only if it has gone back there since: with a consumer that reports less than it
//!   did before, as it may to a server, too, or with the relay, to a timeline whose WAL nobody needed meanwhile.

mod ahead;
mod audience;
mod checkpoint;
mod cluster;
mod dir;
pub mod failovers;
pub mod fence;
mod flusher;
mod followed;
mod holds;
mod holes;
mod last_run;
// The one place: what lies in maps is read without a copy.
#[allow(unsafe_code)]
mod mapped;
pub mod offline;
mod opening;
mod ownership;
mod path;
mod recovery;
mod retention;
mod segments;
mod slots;
mod state_file;
mod steps;
#[cfg(test)]
mod tests;
mod trouble;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use walrelay_proto::{
    HistoryError, Lsn, PaddingSeen, PgTimestamp, SegNo, SegSize, TimelineHistory, TimelineId, WalError,
    WalFileName,
};

pub use ahead::Making;
pub use audience::Audience;
pub use cluster::{Identity, UpstreamParameters};
pub use dir::UnfinishedFile;
pub use flusher::Flushing;
pub use holds::{Held, Hold, HoldKind, HoldRow, Holds};
pub use holes::FillError;
pub use mapped::{COPIED, Segment, SegmentFile, WalWrite, explain_bus_errors, map_large_blocks};
pub use opening::Opening;
pub use retention::{ArchivedWal, Retaining};
pub use slots::{SlotError, SlotGuard, SlotInfo, SlotPersistence, Slots};
pub use walrelay_proto::{FeedbackHorizon, TimelinePosition};
pub use writer::{AppendError, HeldTimeline, Writer};

pub(crate) use flusher::FLUSHER;
pub(crate) use segments::successors;

use crate::consumers::{Consumer, Consumers, LagClock};
use crate::counts::{Counter, Durations};
use crate::disk::{Disk, Open, OsDisk};
use crate::mutation::{self, Mutation};
use crate::parts::{Heart, PartEnded};
use crate::permissions::Distrust;
use ahead::{Ahead, Maker};
use dir::DataDir;
use failovers::Failover;
use fence::Fences;
use flusher::{FlushQueue, Flusher};
use last_run::{Files, LastRun};
use opening::OpeningStep;
use recovery::RecoveryPlan;
use retention::Retention;
use segments::{Opened, SegmentCache};

/// How long a failing store waits for its disk to take word of the failure.
const MARK_LIMIT: Duration = Duration::from_secs(2);

/// How much WAL is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeepSizes {
    /// `--wal-keep-size`, bytes: WAL kept behind the newest even if no slot needs it.
    pub wal_keep_size: u64,
    /// `--max-slot-wal-keep-size`, bytes: how much WAL slots may keep; `None` for no limit.
    pub max_slot_wal_keep_size: Option<u64>,
}

impl KeepSizes {
    /// As much as either of them keeps.
    pub fn most(self, other: KeepSizes) -> KeepSizes {
        let slots = self.max_slot_wal_keep_size.zip(other.max_slot_wal_keep_size);
        KeepSizes {
            wal_keep_size: self.wal_keep_size.max(other.wal_keep_size),
            max_slot_wal_keep_size: slots.map(|(one, another)| one.max(another)),
        }
    }
}

/// How a store is kept.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// `--wal-write`.
    pub wal_write: WalWrite,
    /// `--wal-keep-size`, bytes: WAL kept behind the newest even if no slot needs it.
    pub wal_keep_size: u64,
    /// `--max-slot-wal-keep-size`, bytes: how much WAL slots may keep; `None` for no limit.
    pub max_slot_wal_keep_size: Option<u64>,
    /// `--max-replication-slots`.
    pub max_replication_slots: usize,
}

/// What a store has done since it was opened.
#[derive(Debug, Default)]
pub struct StoreCounts {
    /// Syncs of written WAL, and how long each took: of the segments of one turn together, their directory included.
    pub syncs: Durations,
    /// Segments that were begun.
    pub segments_made: Counter,
    /// Files of segments that were removed because nobody needs them.
    pub segments_removed: Counter,
    /// Slots that were lost: they needed more than `--max-slot-wal-keep-size`.
    pub slots_lost: Counter,
}

/// The end of the WAL held here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tip {
    /// Timeline that is being received.
    pub tli: TimelineId,
    /// End of what is verified, written and visible to consumers.
    pub write_lsn: Lsn,
    /// End of what is durable; not beyond `write_lsn` on the same timeline.
    pub flush_lsn: Lsn,
}

/// The store cannot be opened or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another relay runs on the directory.
    #[error(
        "data directory \"{}\" is in use by another walrelay{}; stop it, or give this one another --data-dir",
        dir.display(), pid.map(|pid| format!(" (PID {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The other process, if it could be read.
        pid: Option<u32>,
    },
    /// The operating system refused something.
    #[error("{action} \"{}\": {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could have changed what is in the directory.
    #[error("data directory \"{}\" {source}", dir.display())]
    Distrust {
        /// The data directory, or pg_wal in it.
        dir: PathBuf,
        /// What is wrong with it.
        source: Distrust,
    },
    /// The directory belongs to a PostgreSQL server.
    #[error(
        "directory \"{}\" belongs to a PostgreSQL server (it has \"{}\"), nothing was changed in it; give the relay a --data-dir of its own",
        dir.display(), found.display()
    )]
    Server {
        /// The directory, resolved.
        dir: PathBuf,
        /// What shows it.
        found: PathBuf,
    },
    /// There is WAL in the directory, and nothing says whose.
    #[error(
        "data directory \"{}\" holds WAL (\"{found}\" in pg_wal) but no cluster.toml, which says of which cluster; restore cluster.toml, or move pg_wal away to begin anew",
        dir.display()
    )]
    NoState {
        /// The directory, resolved.
        dir: PathBuf,
        /// A file of pg_wal.
        found: String,
    },
    /// The directory is not empty, and no relay has ever used it.
    #[error(
        "directory \"{}\" is not empty (it has \"{found}\") and not a relay's data directory, nothing was changed in it; give the relay a new or empty --data-dir",
        dir.display()
    )]
    Foreign {
        /// The directory, resolved.
        dir: PathBuf,
        /// A file in it.
        found: String,
    },
    /// A finished segment does not verify.
    #[error(
        "WAL file \"{file}\" in the data directory is damaged: {source}; restore it from another copy, or move it and all later segments away to fetch them again"
    )]
    Damaged {
        /// The segment.
        file: String,
        /// What is wrong with it.
        source: WalError,
    },
    /// The history file of the newest timeline is missing or unreadable.
    #[error("timeline {tli} is in the data directory but its history file is not usable: {reason}")]
    History {
        /// The timeline.
        tli: TimelineId,
        /// Why not.
        reason: String,
    },
    /// The directory holds another cluster's WAL.
    #[error(
        "data directory belongs to another cluster: its system identifier is {ours}, the upstream's is {theirs}; point --upstream at the right server, or give this cluster a --data-dir of its own"
    )]
    OtherCluster {
        /// Identifier in the data directory.
        ours: walrelay_proto::SystemId,
        /// The upstream's.
        theirs: walrelay_proto::SystemId,
    },
    /// Segment sizes differ although the identifier is the same.
    #[error("WAL segment size of the data directory is {}, the upstream's is {}", ours.to_show(), theirs.to_show())]
    OtherSegSize {
        /// Size in the data directory.
        ours: SegSize,
        /// The upstream's.
        theirs: SegSize,
    },
}

/// WAL cannot be read here.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such segment (any more).
    #[error("requested WAL segment {0} has already been removed")]
    Removed(String),
    /// The operating system refused it.
    #[error("could not read WAL segment {file}: {source}")]
    Io {
        /// The segment.
        file: String,
        /// What the system said.
        source: io::Error,
    },
}

/// WAL on disk, shared by everybody. The one [`Writer`] comes with it from [`Store::open`].
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    /// What of it may change.
    keep_sizes: Mutex<KeepSizes>,
    dir: Arc<DataDir>,
    cluster: RwLock<Option<(Identity, Arc<UpstreamParameters>)>>,
    /// Whether this process has saved `cluster`; held while it does.
    cluster_saved: Mutex<bool>,
    /// Held by who fills a hole, over the disk: what came behind an XLOG_SWITCH when it was tried before.
    filling: Mutex<PaddingSeen>,
    history: Mutex<Arc<TimelineHistory>>,
    written: watch::Sender<Option<TimelinePosition>>,
    audience: audience::Seats,
    flushed: watch::Sender<Option<TimelinePosition>>,
    segments: SegmentCache,
    ahead: Ahead,
    flush_queue: FlushQueue,
    retention_bell: Arc<retention::Bell>,
    holds: Holds,
    /// Held while WAL is removed, over the disk: by retention, and by the writer where WAL begins anew.
    removing: Mutex<()>,
    archive: retention::Archived,
    /// Steps when a file of `pg_wal` gets its final name.
    files: watch::Sender<u64>,
    /// Segments whose files are gone and that somebody still reads. The last to let go has the file system free
    /// the blocks, which may take time, so that is retention and no reader.
    removed: Mutex<Vec<Arc<Segment>>>,
    /// See [`Store::oldest_kept`]; moved by retention.
    oldest_kept: AtomicU64,
    /// See [`Store::begun_at`].
    begun_at: AtomicU64,
    checkpoint: checkpoint::Checkpoint,
    slots: Arc<Slots>,
    consumers: Arc<Consumers>,
    fences: Fences,
    /// See [`Store::newest_commit`]; microseconds since 2000, `i64::MIN` for none.
    newest_commit: AtomicI64,
    /// See [`Store::failovers`]; the file is written under the other one.
    failovers: Mutex<Arc<Vec<Failover>>>,
    failovers_saved: Mutex<()>,
    lag: LagClock,
    /// See [`Store::found`].
    found: Option<TimelinePosition>,
    counts: StoreCounts,
    failure: watch::Sender<Option<String>>,
}

/// A store without threads, for whoever steps it: [`Background::start`] gives it some, [`Stepped::stop`] ends it in order.
/// Dropping it is a crash of the process.
#[derive(Debug)]
pub struct Stepped {
    /// WAL on disk, as everybody sees it.
    pub store: Arc<Store>,
    /// Takes WAL. Never waits for the other two.
    pub writer: Writer,
    /// Makes it durable: nothing is called flushed but by its steps.
    pub flushing: Flushing,
    /// Removes what is not needed: nothing is removed but by its passes.
    pub retaining: Retaining,
    /// Makes segments before they are needed. Nobody waits for its steps: without them each is made when it is.
    pub making: Making,
}

impl Stepped {
    /// Saves the slots, syncs what is written, and leaves word of that for the next start.
    pub fn stop(self) {
        let Stepped { store, writer, flushing, making, .. } = self;
        drop(writer);
        store.save_for_the_next_start();
        flushing.finish();
        making.finish();
        store.end_in_order();
    }
}

/// The store's threads; [`Background::stop`] ends them in order.
#[derive(Debug)]
pub struct Background {
    flusher: Flusher,
    retention: Retention,
    maker: Maker,
    store: Arc<Store>,
}

impl Background {
    /// Starts them.
    pub fn start(flushing: Flushing, retaining: Retaining, making: Making) -> Background {
        let store = flushing.store().clone();
        let (flusher, retention) = (Flusher::start(flushing), Retention::start(retaining));
        Background { flusher, retention, maker: Maker::start(making), store }
    }

    /// The heartbeats of the threads.
    pub(crate) fn hearts(&self) -> [Heart; 3] {
        [self.flusher.heart(), self.retention.heart(), self.maker.heart()]
    }

    /// Resolves when one of the threads has ended by itself, which it does only by a fault or after
    /// [`Store::failed`] has told why. Cancel-safe.
    pub async fn lost(&mut self) -> PartEnded {
        tokio::select! {
            lost = self.flusher.lost() => lost,
            lost = self.retention.lost() => lost,
            lost = self.maker.lost() => lost,
        }
    }

    /// Saves the slots, syncs what is written, ends the threads. The writer must be gone or idle. A thread that had
    /// panicked, if nobody has been told of it.
    pub fn stop(self) -> Option<PartEnded> {
        // The slots first: a sync of WAL that hangs must not keep them from being saved.
        let retention = self.retention.stop(&self.store);
        let flusher = self.flusher.stop(&self.store);
        // What is noted next is what pg_wal is left like.
        let maker = self.maker.stop(&self.store);
        if flusher.is_ok() {
            self.store.end_in_order();
        }
        flusher.and(retention).and(maker).err()
    }
}

impl Store {
    /// Locks a data directory, recovers what a crash left, and starts the store's threads.
    pub fn open(config: StoreConfig) -> Result<(Arc<Store>, Writer, Background), StoreError> {
        Store::open_telling(config, Arc::default())
    }

    /// The same, telling meanwhile how far that is.
    ///
    /// # Errors
    /// As [`open`](Store::open).
    pub fn open_telling(
        config: StoreConfig,
        opening: Arc<Opening>,
    ) -> Result<(Arc<Store>, Writer, Background), StoreError> {
        let Stepped { store, writer, flushing, retaining, making } =
            Store::open_with(Arc::new(OsDisk), config, opening)?;
        let background = Background::start(flushing, retaining, making);
        Ok((store, writer, background))
    }

    /// Locks a data directory on any disk and recovers what a crash left. Nothing runs by itself: who calls this takes
    /// the steps.
    pub fn open_on(disk: Arc<dyn Disk>, config: StoreConfig) -> Result<Stepped, StoreError> {
        Store::open_with(disk, config, Arc::default())
    }

    fn open_with(
        disk: Arc<dyn Disk>,
        config: StoreConfig,
        opening: Arc<Opening>,
    ) -> Result<Stepped, StoreError> {
        opening.enter(OpeningStep::Directory, 0);
        let dir = Arc::new(DataDir::lock(disk, &config.data_dir)?.telling(opening.clone()));
        let io = |action| {
            let path = config.data_dir.clone();
            move |source| StoreError::Io { action, path, source }
        };
        // What this start puts there is told where it does so.
        dir.report_aside();
        let cluster = cluster::load(&dir).map_err(io("could not read cluster state in"))?;
        let bell = Arc::new(retention::Bell::default());
        let holds = Holds::new(bell.clone());
        let slots = Slots::open(dir.clone(), config.max_replication_slots, holds.clone())
            .map_err(io("could not read replication slots in"))?;
        let (last_run, files) = LastRun::load(&dir);
        let files = match files {
            Files::Others => {
                opening.enter(OpeningStep::Sync, 0);
                sync_others(&dir, &last_run, DataDir::sync_file_system)?
            }
            known => known,
        };
        let followed = followed::load(&dir).map_err(io("could not read which timeline is followed in"))?;
        let plan = RecoveryPlan {
            how: config.wal_write,
            magic: cluster.as_ref().and_then(|(_, parameters)| parameters.expected_magic()),
            timeline: followed.map(|followed| followed.tli),
            durable: last_run.durable().filter(|_| files == Files::AsLeft),
            confirmed: last_run.confirmed(),
            unsynced: files == Files::Unsynced,
        };
        let recovered = match &cluster {
            Some((identity, _)) => recovery::recover(&dir, *identity, &plan)?,
            None => None,
        };
        let history = recovered.as_ref().map_or_else(TimelineHistory::first, |found| found.history.clone());
        let end = recovered.as_ref().and_then(|found| {
            let tli = found.history.tli();
            found.verifier.verified_end().map(|lsn| TimelinePosition { tli, lsn })
        });
        last_run.report(end.map(|end| (end, &history)));
        match last_run::begin(&dir) {
            // Nobody is misled by what is there already.
            Err(error) if last_run.durable().is_none() => {
                tracing::warn!("could not note in the data directory that a run has begun: {error}");
            }
            other => other.map_err(io("could not note that a run has begun in"))?,
        }
        if let Some(end) = end {
            // A crash may have come before slots were saved that were moved back with the timeline.
            slots.clamp_to(end.lsn);
        }
        let is_followed = |followed: &followed::Followed| end.is_some_and(|end| end.tli == followed.tli);
        let newest = followed.filter(is_followed).map(|followed| followed.newest);
        let heading = followed.map(|followed| followed.heading);
        let fences = Fences::load(dir.clone(), end, heading).map_err(io("could not read the fence in"))?;
        let consumers = Consumers::new(slots.clone());
        let checkpoint = checkpoint::Checkpoint::load(&dir);
        let store = Arc::new(Store {
            keep_sizes: Mutex::new(KeepSizes {
                wal_keep_size: config.wal_keep_size,
                max_slot_wal_keep_size: config.max_slot_wal_keep_size,
            }),
            config,
            dir,
            cluster: RwLock::new(cluster.map(|(identity, parameters)| (identity, Arc::new(parameters)))),
            cluster_saved: Mutex::new(false),
            filling: Mutex::default(),
            history: Mutex::new(Arc::new(history)),
            written: watch::Sender::new(end),
            audience: audience::Seats::default(),
            flushed: watch::Sender::new(end),
            segments: SegmentCache::default(),
            ahead: Ahead::default(),
            flush_queue: FlushQueue::default(),
            retention_bell: bell,
            holds,
            removing: Mutex::default(),
            archive: retention::Archived::default(),
            files: watch::Sender::new(0),
            removed: Mutex::default(),
            oldest_kept: AtomicU64::default(),
            begun_at: AtomicU64::default(),
            checkpoint,
            slots,
            consumers,
            fences,
            newest_commit: AtomicI64::new(i64::MIN),
            failovers: Mutex::default(),
            failovers_saved: Mutex::new(()),
            found: end,
            lag: LagClock::new(end.map_or(Lsn::INVALID, |end| end.lsn)),
            counts: StoreCounts::default(),
            failure: watch::Sender::new(None),
        });
        store.look_for_oldest();
        let writer = Writer::new(store.clone(), recovered, newest);
        let (flushing, retaining) = (Flushing::new(store.clone()), Retaining::new(store.clone()));
        let making = Making::new(store.clone());
        opening.enter(OpeningStep::Open, 0);
        Ok(Stepped { store, writer, flushing, retaining, making })
    }

    /// Which cluster this is; `None` before the first contact with an upstream.
    pub fn identity(&self) -> Option<Identity> {
        let cluster = self.cluster.read().unwrap_or_else(PoisonError::into_inner);
        cluster.as_ref().map(|(identity, _)| *identity)
    }

    /// What the upstream said of itself; empty before the first contact.
    pub fn upstream_parameters(&self) -> Arc<UpstreamParameters> {
        let cluster = self.cluster.read().unwrap_or_else(PoisonError::into_inner);
        cluster.as_ref().map(|(_, parameters)| parameters.clone()).unwrap_or_default()
    }

    /// Checks an upstream against the data directory. An empty directory takes any.
    pub fn check(&self, identity: Identity) -> Result<(), StoreError> {
        match self.identity() {
            Some(ours) if ours.system_id != identity.system_id => {
                Err(StoreError::OtherCluster { ours: ours.system_id, theirs: identity.system_id })
            }
            Some(ours) if ours.seg_size != identity.seg_size => {
                Err(StoreError::OtherSegSize { ours: ours.seg_size, theirs: identity.seg_size })
            }
            _ => Ok(()),
        }
    }

    /// Takes an upstream that is followed: makes a new directory its cluster's, and keeps what it says of itself,
    /// durably. Waits for the disk. Fails as [`Store::check`] does, and when the file cannot be written.
    pub fn attach(&self, identity: Identity, parameters: UpstreamParameters) -> Result<(), StoreError> {
        // Nobody who looks at the cluster waits for the disk.
        let mut saved = lock(&self.cluster_saved);
        self.check(identity)?;
        let known = self.identity().is_some() && *self.upstream_parameters() == parameters;
        if *saved && known {
            return Ok(());
        }
        match cluster::save(&self.dir, identity, &parameters) {
            Ok(()) => {}
            // What was read at the start may have been in memory only, but here it is again.
            Err(error) if known => {
                tracing::warn!(
                    "could not save cluster state again: {error}; will try at the next connection"
                );
                return Ok(());
            }
            Err(source) => {
                let path = self.config.data_dir.clone();
                return Err(StoreError::Io { action: "could not save cluster state in", path, source });
            }
        }
        *saved = true;
        let mut cluster = self.cluster.write().unwrap_or_else(PoisonError::into_inner);
        *cluster = Some((identity, Arc::new(parameters)));
        Ok(())
    }

    /// Some settings of the upstream have changed since it was attached with the parameters `of`: keeps that, durably. Nothing if
    /// another one was attached meanwhile. Waits for the disk.
    ///
    /// # Errors
    /// The file cannot be written, and nothing has changed.
    pub fn note_settings(
        &self,
        of: &Arc<UpstreamParameters>,
        settings: &[(&str, String)],
    ) -> Result<(), StoreError> {
        let mut saved = lock(&self.cluster_saved);
        let now = self.upstream_parameters();
        if !Arc::ptr_eq(&now, of) {
            return Ok(());
        }
        let mut parameters = (*now).clone();
        for (name, value) in settings {
            parameters.settings.insert((*name).to_owned(), value.clone());
        }
        let Some(identity) = self.identity().filter(|_| parameters != *now) else {
            return Ok(());
        };
        cluster::save(&self.dir, identity, &parameters).map_err(|source| {
            let path = self.config.data_dir.clone();
            StoreError::Io { action: "could not save cluster state in", path, source }
        })?;
        *saved = true;
        let mut cluster = self.cluster.write().unwrap_or_else(PoisonError::into_inner);
        *cluster = Some((identity, Arc::new(parameters)));
        Ok(())
    }

    /// Reads a small file that somebody else keeps in the data directory; `None` if there is none. Waits for the disk.
    /// It may not be durable: an earlier process may have ended before it was.
    pub fn read_state(&self, name: &str) -> io::Result<Option<String>> {
        self.dir.read(name)
    }

    /// Replaces such a file, whole and durably, also on a full disk; only the relay's user may read it. Waits for the
    /// disk.
    pub fn replace_state(&self, name: &str, content: &str) -> io::Result<()> {
        self.dir.replace(name, content)
    }

    /// Keeps what became of acknowledged WAL where a timeline was left, durably. Waits for the disk.
    pub fn add_failover(&self, failover: &Failover) -> io::Result<()> {
        let _saving = lock(&self.failovers_saved);
        let known = self.failovers();
        let (all, saved) = match failovers::add(self, failover, &known) {
            Ok(all) => (all, Ok(())),
            // It is so all the same.
            Err(error) => (failovers::with(known.to_vec(), failover), Err(error)),
        };
        *lock(&self.failovers) = Arc::new(all);
        saved
    }

    /// When the newest commit was made that has come since the start, by the clock of the server that it was made on.
    pub fn newest_commit(&self) -> Option<PgTimestamp> {
        let micros = self.newest_commit.load(Ordering::Relaxed);
        (micros != i64::MIN).then(|| PgTimestamp::from_micros(micros))
    }

    /// What became of acknowledged WAL where timelines were left, as far as it was [read](Self::load_failovers), oldest first.
    /// Waits for nothing.
    pub fn failovers(&self) -> Arc<Vec<Failover>> {
        lock(&self.failovers).clone()
    }

    /// Reads what earlier runs have left of that. Waits for the disk.
    pub fn load_failovers(&self) {
        let _saving = lock(&self.failovers_saved);
        match failovers::load(self) {
            Ok(all) => *lock(&self.failovers) = Arc::new(all),
            Err(error) => tracing::warn!("could not read what became of earlier promotions: {error}"),
        }
    }

    /// Somebody has looked at all of them; how many were open. Waits for the disk.
    pub fn dismiss_failovers(&self) -> io::Result<usize> {
        let _saving = lock(&self.failovers_saved);
        let all = Arc::new(failovers::dismiss(self, &self.failovers())?);
        let before = std::mem::replace(&mut *lock(&self.failovers), all);
        Ok(before.iter().filter(|failover| failover.is_open()).count())
    }

    /// Where the WAL held here ends; `None` before the first record, unless the upstream streams and has none yet: then
    /// where it will begin, [`begun_at`](Self::begun_at).
    pub fn tip(&self) -> Option<Tip> {
        // The three change together where the timeline does.
        let history = lock(&self.history);
        let written = (*self.written.borrow())?;
        let flushed = *self.flushed.borrow();
        let flush_lsn = flushed.map_or(Lsn::INVALID, |flushed| match flushed.tli == written.tli {
            true => flushed.lsn,
            // What was held beyond the switch point does not count on the new timeline.
            false => history.switch_point(flushed.tli).map_or(Lsn::INVALID, |(at, _)| at.min(flushed.lsn)),
        });
        drop(history);
        Some(Tip { tli: written.tli, write_lsn: written.lsn, flush_lsn: flush_lsn.min(written.lsn) })
    }

    /// Watches timeline and `write_lsn`.
    pub fn written(&self) -> watch::Receiver<Option<TimelinePosition>> {
        self.written.subscribe()
    }

    /// Tells `audience` from now on, at once and by whoever publishes, when [`written`](Self::written) or the history has
    /// changed. One at a time; it is not kept alive.
    pub fn seat(&self, audience: &Arc<impl Audience + 'static>) {
        self.audience.seat(audience);
    }

    /// Watches timeline and `flush_lsn`. After a timeline switch it names the old timeline until the new
    /// one's first bytes are durable.
    pub fn flushed(&self) -> watch::Receiver<Option<TimelinePosition>> {
        self.flushed.subscribe()
    }

    /// History of the timeline being received.
    pub fn history(&self) -> Arc<TimelineHistory> {
        lock(&self.history).clone()
    }

    /// Shows another timeline: history and positions at once. `flushed` as well if it was found durable.
    fn show_timeline(&self, history: TimelineHistory, written: TimelinePosition, is_durable: bool) {
        self.consumers.acknowledgements().begin_timeline(|| {
            let mut current = lock(&self.history);
            *current = Arc::new(history);
            if is_durable {
                self.flushed.send_replace(Some(written));
            }
            self.written.send_replace(Some(written));
        });
        self.audience.tell(Some(written));
        self.holds.go_another_way();
        self.files.send_modify(|step| *step += 1);
    }

    /// Shows where WAL begins of which there is none yet.
    fn show_start(&self, start: TimelinePosition) {
        let current = lock(&self.history);
        self.begun_at.store(start.lsn.as_u64(), Ordering::Relaxed);
        self.oldest_kept.store(start.lsn.as_u64(), Ordering::Relaxed);
        self.flushed.send_replace(Some(start));
        self.written.send_replace(Some(start));
        drop(current);
        self.audience.tell(Some(start));
    }

    /// Moves slots back that wait for WAL of another timeline beyond `common`.
    fn clamp_slots(&self, common: Lsn) {
        if mutation::is(Mutation::ForgetClamp) {
            return;
        }
        for slot in self.slots.clamp_to(common) {
            let (name, was) = (slot.name, slot.restart_lsn.unwrap_or_default());
            tracing::info!(
                "slot \"{name}\" keeps WAL from {common} on: {was} was on a timeline that is left"
            );
        }
    }

    /// A timeline that was left and is taken up again may have lost WAL that no slot needed meanwhile. Waits for the disk.
    fn tell_of_slots_without_wal(&self) {
        let Some(oldest) = self.oldest() else { return };
        for slot in self.slots.list().into_iter().filter(|slot| !slot.invalidated) {
            if let Some(restart) = slot.restart_lsn.filter(|restart| *restart < oldest) {
                tracing::warn!(
                    "slot \"{}\" needs WAL from {restart} on, and on the timeline that is taken up again {oldest} is the \
                     oldest here: unless an archive target has it, its consumer has to be built anew",
                    slot.name
                );
            }
        }
    }

    /// Takes that back, because WAL will begin elsewhere.
    fn forget_start(&self) {
        self.consumers.acknowledgements().begin_timeline(|| {
            let current = lock(&self.history);
            self.begun_at.store(0, Ordering::Relaxed);
            self.oldest_kept.store(0, Ordering::Relaxed);
            self.flushed.send_replace(None);
            self.written.send_replace(None);
            drop(current);
        });
        self.audience.tell(None);
        self.lag.reset(Lsn::INVALID);
    }

    /// Timelines of which there are segments here, each with the history in its file; `None` if that is missing or no
    /// good. Waits for the disk.
    pub fn held_timelines(&self) -> io::Result<Vec<(TimelineId, Option<TimelineHistory>)>> {
        let Some(identity) = self.identity() else { return Ok(Vec::new()) };
        let mut timelines: Vec<_> =
            self.dir.segments(identity.seg_size)?.into_iter().map(|found| found.name.tli).collect();
        timelines.dedup();
        let with_history = |tli| {
            let content = if tli == TimelineId::FIRST { Some(Vec::new()) } else { self.history_file(tli)? };
            Ok((tli, content.and_then(|content| TimelineHistory::parse(tli, &content).ok())))
        };
        timelines.into_iter().map(with_history).collect()
    }

    /// Content of a timeline's history file; `None` if there is none here. Waits for the disk.
    pub fn history_file(&self, tli: TimelineId) -> io::Result<Option<Vec<u8>>> {
        dir::read_if_present(self.dir.disk(), &self.dir.history(tli))
    }

    /// Stores a history file, durably, after checking that PostgreSQL could read it.
    pub fn save_history_file(&self, tli: TimelineId, content: &[u8]) -> Result<(), SaveHistoryError> {
        TimelineHistory::parse(tli, content)?;
        self.dir.write_history(tli, content).inspect_err(|error| self.fail_if_names_are_lost(error))?;
        self.files.send_modify(|step| *step += 1);
        Ok(())
    }

    /// The segment that holds `segno` for a reader of timeline `tli`; chosen as PostgreSQL chooses it
    /// (`WalSndSegmentOpen`).
    ///
    /// Waits for the disk: it opens and maps a file that is not in use.
    pub fn segment(&self, tli: TimelineId, segno: SegNo) -> Result<Arc<Segment>, ReadError> {
        self.segment_on(&self.history(), tli, segno)
    }

    /// The same for a reader who goes by this history, whatever timeline is followed.
    pub fn segment_on(
        &self,
        history: &TimelineHistory,
        tli: TimelineId,
        segno: SegNo,
    ) -> Result<Arc<Segment>, ReadError> {
        let name = WalFileName::new(tli, segno);
        let Some(identity) = self.identity() else { return Err(ReadError::Removed(format!("{name:?}"))) };
        self.segments.open(&self.dir, identity.seg_size, history, name, Opened::Mapped)
    }

    /// The same for a reader who sends it: its file stays open if nobody had it mapped, until the last one lets go or
    /// [closes](Segment::close_to_send) it.
    pub fn segment_to_send(
        &self,
        history: &TimelineHistory,
        tli: TimelineId,
        segno: SegNo,
    ) -> Result<Arc<Segment>, ReadError> {
        let name = WalFileName::new(tli, segno);
        let Some(identity) = self.identity() else { return Err(ReadError::Removed(format!("{name:?}"))) };
        self.segments.open(&self.dir, identity.seg_size, history, name, Opened::ToSend)
    }

    /// The same segment if it is mapped already, without touching the disk.
    pub fn mapped_segment(&self, tli: TimelineId, segno: SegNo) -> Option<Arc<Segment>> {
        self.mapped_segment_on(&self.history(), tli, segno)
    }

    /// The same for a reader who goes by this history.
    pub fn mapped_segment_on(
        &self,
        history: &TimelineHistory,
        tli: TimelineId,
        segno: SegNo,
    ) -> Option<Arc<Segment>> {
        let identity = self.identity()?;
        self.segments.mapped(identity.seg_size, history, WalFileName::new(tli, segno))
    }

    /// Whether [`Store::segment`] would find the segment here. Waits for the disk.
    pub fn holds_segment(&self, tli: TimelineId, segno: SegNo) -> bool {
        let name = WalFileName::new(tli, segno);
        self.identity()
            .is_some_and(|identity| segments::is_held(&self.dir, identity.seg_size, &self.history(), name))
    }

    /// The finished segment of just this name, whatever its timeline's history says.
    ///
    /// Waits for the disk, as [`segment`](Self::segment) does.
    pub fn finished_segment(&self, name: WalFileName) -> Result<Arc<Segment>, ReadError> {
        let Some(identity) = self.identity() else { return Err(ReadError::Removed(format!("{name:?}"))) };
        let found = self.segments.exact(&self.dir, identity.seg_size, &self.history(), name)?;
        found.ok_or_else(|| ReadError::Removed(name.format(identity.seg_size)))
    }

    /// The unfinished segment of a timeline that was left, all of its file as it is now, made durable first; `None` if it
    /// is not here. It is a copy without a name: the file itself is written to when its timeline is taken up again. Waits
    /// for the disk.
    ///
    /// # Errors
    /// `InvalidData` if the file is not one segment long; `StorageFull` if there is no room for the copy.
    pub fn copy_of_unfinished(&self, name: WalFileName) -> io::Result<Option<Arc<Segment>>> {
        let Some(identity) = self.identity() else { return Ok(None) };
        self.dir.copy_of_partial(name, identity.seg_size).map(|copy| copy.map(Arc::new))
    }

    /// The same file itself, made durable first, for whoever has no room for a copy; `None` if it is not here. Waits for the
    /// disk.
    pub fn unfinished_file(&self, name: WalFileName) -> io::Result<Option<UnfinishedFile>> {
        let Some(identity) = self.identity() else { return Ok(None) };
        self.dir.partial_file(name, identity.seg_size)
    }

    /// Bytes of a timeline that is not followed, as its files have them, from `lsn` to the end of the segment, `most` of them;
    /// `None` if there is no file. They may mean nothing: nobody has looked at what lies behind the last record. Waits for the
    /// disk.
    pub fn branch_wal(&self, tli: TimelineId, lsn: Lsn, most: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(size) = self.identity().map(|identity| identity.seg_size) else { return Ok(None) };
        if tli == self.history().tli() {
            return Ok(None);
        }
        let name = WalFileName::new(tli, lsn.seg_at(size));
        for path in [self.dir.segment(name, size), self.dir.partial(name, size)] {
            let file = match self.dir.disk().open(&path, Open::Read) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let at = lsn.offset_in_seg(size);
            let left = usize::try_from(size.bytes() - at).unwrap_or(most);
            let (mut bytes, mut len) = (vec![0; most.min(left)], 0);
            while len < bytes.len() {
                match file.read_at(&mut bytes[len..], at + len as u64)? {
                    0 => break,
                    count => len += count,
                }
            }
            bytes.truncate(len);
            return Ok(Some(bytes));
        }
        Ok(None)
    }

    /// Names of all files of `pg_wal`, in no order; those in the making have no final name and are left out.
    /// Waits for the disk.
    pub fn wal_files(&self) -> io::Result<Vec<String>> {
        self.dir.wal_files()
    }

    /// Path of a file of `pg_wal`.
    pub fn wal_path(&self, name: &str) -> PathBuf {
        self.dir.wal().join(name)
    }

    /// Whether `pg_wal` has a file of this name. Waits for the disk.
    pub fn has_wal_file(&self, name: &str) -> bool {
        self.dir.disk().exists(&self.wal_path(name))
    }

    /// Content of a small file of `pg_wal`, synced first; `None` if there is none. Waits for the disk.
    pub fn synced_wal_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.dir.disk().open(&self.wal_path(name), Open::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        file.sync_all()?;
        file.read_to_end().map(Some)
    }

    /// Steps whenever [`wal_files`](Self::wal_files) has more to show.
    pub fn wal_files_changed(&self) -> watch::Receiver<u64> {
        self.files.subscribe()
    }

    /// Where WAL begins that has been waited for since before there was any, while an idle upstream streamed. A position
    /// that is no more than this says nothing of WAL that is held.
    pub fn begun_at(&self) -> Option<Lsn> {
        Lsn::new(self.begun_at.load(Ordering::Relaxed)).valid()
    }

    /// Oldest WAL on disk that leads to the tip without a gap, as the start of its segment; the tip if there is none.
    /// Waits for the disk.
    pub fn oldest(&self) -> Option<Lsn> {
        let (tip, (path, identity)) = (self.tip()?, self.wal_path_now().ok()??);
        if Some(tip.write_lsn) == self.begun_at() {
            return Some(tip.write_lsn);
        }
        let oldest = path.oldest_before(tip.write_lsn.seg_before(identity.seg_size));
        Some(oldest.start(identity.seg_size))
    }

    /// The same as retention has seen it last, some seconds ago at most, without touching the disk; 0/0 before its
    /// first look, `None` before the first record.
    pub fn oldest_kept(&self) -> Option<Lsn> {
        self.tip().map(|_| Lsn::new(self.oldest_kept.load(Ordering::Relaxed)))
    }

    fn look_for_oldest(&self) {
        let oldest = self.oldest().unwrap_or_default();
        self.oldest_kept.store(oldest.as_u64(), Ordering::Relaxed);
    }

    /// The relay's own replication slots.
    pub fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// The consumers.
    pub fn consumers(&self) -> &Arc<Consumers> {
        &self.consumers
    }

    /// Takes a consumer's feedback. What streams from a slot leaves it with the slot, where it outlives the connection; else
    /// it ends with that (PostgreSQL: `ProcessStandbyHSFeedbackMessage`).
    pub fn take_feedback(&self, consumer: &Consumer, slot: Option<&SlotGuard>, feedback: FeedbackHorizon) {
        match slot {
            Some(slot) => {
                slot.set_feedback(feedback);
                self.consumers.refresh_horizon();
            }
            None => self.consumers.set_feedback(consumer, feedback),
        }
    }

    /// Where the WAL ended that an earlier process has left here: nothing beyond that was reported by it.
    pub fn found(&self) -> Option<TimelinePosition> {
        self.found
    }

    /// When WAL arrived, for lag in time.
    pub fn lag_clock(&self) -> &LagClock {
        &self.lag
    }

    /// What has been done so often.
    pub fn counts(&self) -> &StoreCounts {
        &self.counts
    }

    /// Where the data is.
    pub fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    /// How the store is kept.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// How much WAL is kept now: what [`config`](Store::config) says until it is [changed](Store::set_keep_sizes).
    pub fn keep_sizes(&self) -> KeepSizes {
        *self.keep_sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has so much WAL kept from now on.
    pub fn set_keep_sizes(&self, sizes: KeepSizes) {
        *self.keep_sizes.lock().unwrap_or_else(PoisonError::into_inner) = sizes;
        self.retention_bell.ring();
    }

    /// Resolves with the reason when the store cannot go on (a failed sync); the process has to end.
    /// Cancel-safe.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let reason = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Ends everything: nothing more is taken or confirmed, and [`failed`](Self::failed) resolves. For faults that leave
    /// nobody knowing what is durable.
    pub fn fail(&self, reason: String) {
        tracing::error!("{reason}");
        self.failure.send_modify(|failure| {
            failure.get_or_insert(reason);
        });
    }

    /// A sync failed: what was written may be lost although it can be read. Leaves word for the next start first.
    fn fail_sync(&self, what: &str, error: &dyn std::fmt::Display) {
        let (dir, confirmed) = (self.dir.clone(), self.flushed.borrow().filter(|at| self.holds_before(*at)));
        let reason = format!("{what}: {error}");
        let mark = reason.clone();
        let may_hang = dir.disk().may_hang();
        let leave = move || last_run::end_with_failure(&dir, confirmed, &mark);
        // A disk that fails may also hang; the mark is worth a moment.
        let left = if may_hang { in_time(leave).unwrap_or(Ok(())) } else { leave() };
        if let Err(error) = left {
            tracing::warn!("could not leave word of it in the data directory: {error}");
        }
        self.fail(reason);
    }

    /// The same where something has failed that may have been a sync of `pg_wal`: that is told once, and whoever comes to
    /// need it later would try for ever.
    fn fail_if_names_are_lost(&self, error: &dyn std::fmt::Display) {
        if self.dir.sync_has_failed() && !self.has_failed() {
            self.fail_sync("could not sync pg_wal", error);
        }
    }

    /// Says durably that everything written is on the disk, if it is.
    fn end_in_order(&self) {
        let (written, flushed) = (*self.written.borrow(), *self.flushed.borrow());
        // Whoever met a failed sync may still be leaving word of it.
        let is_sound = !self.has_failed() && !self.dir.sync_has_failed();
        let in_order = |end: &TimelinePosition| written == flushed && self.holds_before(*end) && is_sound;
        let Some(durable) = flushed.filter(in_order) else { return };
        if let Err(error) = last_run::end_in_order(&self.dir, durable) {
            tracing::warn!(
                "could not note that all WAL is on the disk: {error}; the next start writes its end again"
            );
        }
    }

    /// Whether there is WAL here that this is the end of.
    fn holds_before(&self, end: TimelinePosition) -> bool {
        Some(end.lsn) != self.begun_at()
    }

    /// Why it cannot go on, if that is so.
    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }
}

/// The result of what may never return, if it comes in time.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = std::sync::mpsc::channel();
    let work = move || {
        let _ = done.send(work());
    };
    std::thread::Builder::new().name("failure mark".into()).spawn(work).ok()?;
    result.recv_timeout(MARK_LIMIT).ok()
}

/// Syncs files that the last run may not have left so: finished segments count as durable from then on, unfinished ones
/// are written again. Where the sync fails, so are all of them, now or at a later start: word of it is left first.
fn sync_others(
    dir: &DataDir,
    last_run: &LastRun,
    sync: impl FnOnce(&DataDir) -> io::Result<()>,
) -> Result<Files, StoreError> {
    let fail = |source| StoreError::Io { action: "could not sync", path: dir.wal().to_owned(), source };
    if dir.wal_files().map_err(fail)?.is_empty() {
        return Ok(Files::Others);
    }
    tracing::info!(
        "the last run did not end in order, or files of \"{}\" were copied or changed since, or the disk has another number: all \
         are synced before any of them counts",
        dir.wal().display()
    );
    let Err(error) = sync(dir) else { return Ok(Files::Others) };
    // The same sync says yes the next time, so nobody must start again without knowing.
    let what = format!("could not sync all files of pg_wal: {error}");
    if let Err(unmarked) = last_run::files_are_unsynced(dir, last_run, &what) {
        tracing::error!(
            "could not leave word of a failed sync in the data directory ({unmarked}): the next start will believe what is in \
             pg_wal; look at the disk first, then check the directory with \"walrelay verify\""
        );
        return Err(fail(error));
    }
    tracing::error!("{what}; look at the disk");
    Ok(Files::Unsynced)
}

/// A history file cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum SaveHistoryError {
    /// PostgreSQL could not read it.
    #[error(transparent)]
    Invalid(#[from] HistoryError),
    /// The operating system refused.
    #[error("could not store timeline history file: {0}")]
    Io(#[from] io::Error),
}

/// For a moment: no disk and no peer is waited for under a lock of the store, but for those that say so.
///
/// The data behind the store's locks is valid after every single assignment, so a panic elsewhere spoils
/// nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
