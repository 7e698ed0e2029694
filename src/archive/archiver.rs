//! The archiver: looks what `pg_wal` has, and runs a worker for each target.
//!
//! ```text
//! store: a file got its name ──> scan ── Listing ──> worker of each target ── done so far ──> Floors ──> retention
//! ```
//!
//! Workers share nothing but the listing: one that waits for its target holds up nobody. All WAL is held until
//! every worker has said what it needs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walrelay_proto::Lsn;

use super::listing::Listing;
use super::repository::{ArchiveError, Repository};
use super::storage::Places;
use super::target::{Place, Target};
use super::worker::{Sink, Worker};
use crate::parts::{PartEnded, Tasks};
use crate::store::{ArchivedWal, Store};

/// How often `pg_wal` is looked at without a reason, for files that others put there.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long a directory may take to say what it is at the start.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// All targets' workers.
#[derive(Debug)]
pub struct Archiver {
    tasks: Tasks,
    stop: CancellationToken,
}

/// What one target needs and has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    /// WAL from here on is to be kept.
    pub(super) hold: Lsn,
    /// What can be read back from it.
    pub(super) archived: Option<ArchivedWal>,
}

/// Every target's floor; together they are the store's.
#[derive(Debug)]
pub(super) struct Floors {
    store: Arc<Store>,
    floors: Mutex<BTreeMap<String, Option<Floor>>>,
}

impl Floors {
    /// Holds everything until all of `names` have a floor.
    pub(super) fn new(store: Arc<Store>, names: impl Iterator<Item = String>) -> Floors {
        Floors { store, floors: Mutex::new(names.map(|name| (name, None)).collect()) }
    }

    pub(super) fn set(&self, name: &str, floor: Floor) {
        let mut floors = self.floors.lock().unwrap_or_else(PoisonError::into_inner);
        floors.insert(name.to_owned(), Some(floor));
        let hold = floors.values().map(|floor| floor.map_or(Lsn::INVALID, |floor| floor.hold)).min();
        let archived = floors.values().flatten().filter_map(|floor| floor.archived);
        self.store.set_archived(archived.max_by_key(|archived| archived.to));
        self.store.hold_for_archive(hold);
    }
}

impl Archiver {
    /// Opens the targets and starts their workers. A target that is down is no error; one that is not
    /// configured right is. `grace` is how long uploads may go on after [`Archiver::stop`].
    ///
    /// Must be called before WAL arrives, because it makes retention wait for the archive.
    pub fn start(store: &Arc<Store>, targets: &[Target], grace: Duration) -> Result<Archiver, ArchiveError> {
        let stop = CancellationToken::new();
        let mut archiver = Archiver { tasks: Tasks::default(), stop: stop.clone() };
        if targets.is_empty() {
            return Ok(archiver);
        }
        let sinks = targets.iter().map(|target| match &target.place {
            Place::Objects(_) => Repository::open(target).map(Sink::Objects),
            Place::Command(command) => Ok(Sink::Command(command.clone())),
        });
        let sinks = sinks.collect::<Result<Vec<_>, _>>()?;
        let places = Arc::new(Places::new(store.data_dir()));
        refuse_wrong_places(targets, &sinks, &places)?;
        store.hold_for_archive(Some(Lsn::INVALID));
        let floors = Arc::new(Floors::new(store.clone(), targets.iter().map(|target| target.name.clone())));
        let (listings, listing) = watch::channel(None);
        for (target, sink) in targets.iter().zip(sinks) {
            let (store, places) = (store.clone(), places.clone());
            let worker = Worker::new(target.clone(), sink, store, floors.clone(), places, listing.clone());
            let name = format!("worker of archive target \"{}\"", target.name);
            archiver.tasks.spawn(name, worker.run(stop.clone(), grace));
        }
        archiver.tasks.spawn("scanner of pg_wal for the archive", scan(store.clone(), listings, stop));
        Ok(archiver)
    }

    /// Resolves when a worker has ended by itself; never, if there are none. Cancel-safe.
    pub async fn lost(&mut self) -> PartEnded {
        self.tasks.lost().await
    }

    /// Lets uploads end within the grace time and saves how far the targets have got. A worker that panicked instead.
    /// Cancel-safe.
    pub async fn stop(&mut self) -> Result<(), PartEnded> {
        self.stop.cancel();
        self.tasks.finish().await
    }

    /// Tells the workers to stop and does not wait.
    pub fn abandon(&self) {
        self.stop.cancel();
    }

    /// The names of workers that have not ended.
    pub fn running(&self) -> Vec<&str> {
        self.tasks.running()
    }
}

/// Has every target's credentials and certificates read again before it is used next.
pub fn reload() {
    super::storage::reload();
}

/// Directories that must not be targets end the start, before anything is written to them. One that does not answer, or
/// does not exist yet, is looked at when it is used first.
fn refuse_wrong_places(targets: &[Target], sinks: &[Sink], places: &Arc<Places>) -> Result<(), ArchiveError> {
    let (report, answers) = std::sync::mpsc::channel();
    let mut asked = 0;
    for (target, sink) in targets.iter().zip(sinks) {
        let Sink::Objects(repository) = sink else { continue };
        let (name, storage) = (target.name.clone(), repository.storage().clone());
        let (places, report) = (places.clone(), report.clone());
        asked += 1;
        std::thread::spawn(move || report.send((name.clone(), storage.place(&places, &name))));
    }
    let until = Instant::now() + START_PATIENCE;
    for _ in 0..asked {
        let Ok((target, answer)) = answers.recv_timeout(until.saturating_duration_since(Instant::now()))
        else {
            return Ok(());
        };
        if let Err(reason) = answer {
            return Err(ArchiveError::Refused { target, reason });
        }
    }
    Ok(())
}

/// Tells the workers what there is, whenever that changes.
async fn scan(store: Arc<Store>, listings: watch::Sender<Option<Arc<Listing>>>, stop: CancellationToken) {
    let mut changed = store.wal_files_changed();
    let mut written = store.written();
    loop {
        changed.borrow_and_update();
        let from = store.clone();
        let found = tokio::task::spawn_blocking(move || look(&from)).await;
        let again = match found.map_err(std::io::Error::other).flatten() {
            Ok(Look::Listing(listing)) => {
                listings.send_replace(Some(Arc::new(listing)));
                LOOK_AGAIN
            }
            Ok(Look::Nothing) => LOOK_AGAIN,
            Ok(Look::Between) => Duration::from_millis(20),
            Err(error) => {
                tracing::error!("could not list the relay's pg_wal for the archive: {error}");
                Duration::from_secs(5)
            }
        };
        if again < LOOK_AGAIN {
            tokio::select! {
                () = tokio::time::sleep(again) => continue,
                () = stop.cancelled() => return,
            }
        }
        let known = listings.borrow().as_ref().map(|listing| listing.history.tli());
        tokio::select! {
            _ = changed.changed() => {}
            // Its first WAL, or another timeline: the unfinished segment of the old one is final.
            _ = written.wait_for(|tip| tip.map(|tip| tip.tli) != known) => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What a look at `pg_wal` gives.
enum Look {
    /// No WAL yet.
    Nothing,
    /// A timeline switch is half done.
    Between,
    Listing(Listing),
}

fn look(store: &Store) -> std::io::Result<Look> {
    let (Some(identity), Some(tip)) = (store.identity(), store.tip()) else { return Ok(Look::Nothing) };
    let history = store.history();
    if history.tli() != tip.tli {
        return Ok(Look::Between);
    }
    let names = store.wal_files()?;
    Ok(Look::Listing(Listing::new(&names, identity.seg_size, history, tip.write_lsn)))
}
