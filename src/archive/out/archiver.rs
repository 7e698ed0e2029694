//! The archiver: looks what `pg_wal` has, and runs a worker for each target.
//!
//! ```text
//! store: a file got its name ──> scan ── Listing ──> worker of each target ── done so far ──> its Hold ──> retention
//! ```
//!
//! Workers share nothing but the listing: one that waits for its target holds up nobody. All WAL is held until
//! every worker has said what it needs.

mod control;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::listing::{Listing, Look, look};
use super::worker::Sink;
use crate::archive::repo::repository::ArchiveError;
use crate::archive::repo::target::Target;
use crate::changeable::Changeable;
use crate::objects::Places;
use crate::parts::{PartEnded, Tasks};
use crate::store::{Hold, Store};
pub use control::{ArchiveControl, Prepared, check_targets, missing_directories};

/// How often `pg_wal` is looked at without a reason, for files that others put there.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long a directory may take to say what it is at the start.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// All targets' workers.
#[derive(Debug)]
pub struct Archiver {
    tasks: Tasks,
    /// Parts that the control starts; as many as there ever were targets.
    started: mpsc::UnboundedReceiver<Part>,
    control: Arc<ArchiveControl>,
}

/// A part to be watched, and its name.
type Part = (String, BoxFuture<'static, ()>);

impl Archiver {
    /// Opens the targets and starts their workers. A target that is down is no error; one that is not
    /// configured right is. `grace` is how long uploads may go on after [`Archiver::stop`].
    ///
    /// Must be called before WAL arrives, because it makes retention wait for the archive; until then `starting` does, which
    /// has been there since the store was opened ([`Store::hold_for_start`]).
    pub fn start(
        store: &Arc<Store>,
        targets: &[Target],
        grace: Changeable<Duration>,
        starting: Hold,
    ) -> Result<Archiver, ArchiveError> {
        let (starts, started) = mpsc::unbounded_channel();
        let control = Arc::new(ArchiveControl::new(store, grace, starts));
        let prepared = control.prepare(targets)?;
        let mut archiver = Archiver { tasks: Tasks::default(), started, control };
        archiver.control.apply(prepared);
        drop(starting);
        archiver.watch_started();
        Ok(archiver)
    }

    /// What changes the targets while the workers run.
    pub fn control(&self) -> Arc<ArchiveControl> {
        self.control.clone()
    }

    fn watch_started(&mut self) {
        while let Ok((name, part)) = self.started.try_recv() {
            self.tasks.spawn(name, part);
        }
    }

    /// Resolves when a worker has ended by itself; never, if there are none. Workers of new targets start only while this
    /// is waited for. Cancel-safe.
    pub async fn lost(&mut self) -> PartEnded {
        loop {
            tokio::select! {
                lost = self.tasks.lost() => return lost,
                Some((name, part)) = self.started.recv() => self.tasks.spawn(name, part),
            }
        }
    }

    /// Lets uploads end within the grace time and saves how far the targets have got. A worker that panicked instead.
    /// Cancel-safe.
    pub async fn stop(&mut self) -> Result<(), PartEnded> {
        self.control.stop.cancel();
        self.tasks.finish().await
    }

    /// Tells the workers to stop and does not wait.
    pub fn abandon(&self) {
        self.control.stop.cancel();
    }

    /// The names of workers that have not ended.
    pub fn running(&self) -> Vec<&str> {
        self.tasks.running()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Directories that must not be targets are refused before anything is written to them. One that does not answer, or
/// does not exist yet, is looked at when it is used first.
fn refuse_wrong_places(targets: &[(Target, Sink)], data_dir: &Path) -> Result<(), ArchiveError> {
    let (report, answers) = std::sync::mpsc::channel();
    let places = Arc::new(Places::new(data_dir));
    let mut asked = 0;
    for (target, sink) in targets {
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
            Ok(Look::Nothing) => {
                // Also what there was may be none of ours any more: a beginning that was given up. The next wait goes by it.
                listings.send_if_modified(|known| known.take().is_some());
                LOOK_AGAIN
            }
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

#[cfg(test)]
mod tests {
    use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId};
    use walrelay_testkit::wait_until;

    use super::*;
    use crate::store::{Identity, StoreConfig, UpstreamParameters, WalWrite};

    /// What was looked at last is what the next change is told from: else the scan would never wait.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_beginning_that_is_given_up_leaves_nothing_to_archive_until_there_is_another() {
        let dir = crate::permissions::private_tempdir();
        let (store, mut writer, _background) = Store::open(StoreConfig {
            data_dir: dir.path().to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 1 << 30,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        })
        .unwrap();
        let identity = Identity { system_id: SystemId(77), seg_size: SegSize::new(1 << 20).unwrap() };
        store.attach(identity, UpstreamParameters::default()).unwrap();
        let (listings, listing) = watch::channel(None::<Arc<Listing>>);
        let stop = CancellationToken::new();
        let scanning = tokio::spawn(scan(store.clone(), listings, stop.clone()));
        let listed = || listing.borrow().as_ref().map(|listing| listing.history.tli());
        writer.begin(identity, TimelineHistory::first(), Lsn::new(5 << 20));
        writer.show_start();
        wait_until("a listing", || listed() == Some(TimelineId::FIRST));
        let second = TimelineId::new(2).unwrap();
        let history = TimelineHistory::parse(second, b"1\t0/280000\tx\n").unwrap();
        writer.begin(identity, history, Lsn::new(3 << 20));
        wait_until("none", || listed().is_none());
        writer.show_start();
        wait_until("the other beginning", || listed() == Some(second));
        stop.cancel();
        scanning.await.unwrap();
    }
}
