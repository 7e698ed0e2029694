//! Targets that change while the archiver runs: added, removed, with other settings, keys or credentials.
//!
//! ```text
//! prepare: everything is read and checked, nothing changes ── apply: cannot fail ── each target's worker is told
//! ```
//!
//! A worker takes over new settings where it is: what is on its way arrives, what is done stays done. A target that has
//! become another place is ended in order, as at a stop, and begun anew.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::super::board::{Board, TargetSeen};
use super::super::floors::Floors;
use super::super::listing::Listing;
use super::super::worker::{Sink, Wanted, Worker};
use super::{Part, START_PATIENCE, lock, refuse_wrong_places, scan};
use crate::archive::repo::repository::{ArchiveError, Repository};
use crate::archive::repo::target::{Place, Target};
use crate::changeable::Changeable;
use crate::objects::{Places, reload};
use crate::store::Store;

/// Changes the targets of a running [`Archiver`](super::Archiver).
#[derive(Debug)]
pub struct ArchiveControl {
    store: Arc<Store>,
    floors: Arc<Floors>,
    places: Arc<Places>,
    pub(super) stop: CancellationToken,
    grace: Changeable<Duration>,
    /// What each target is to be, also those that are none any more.
    targets: Mutex<BTreeMap<String, watch::Sender<Option<Arc<Wanted>>>>>,
    listing: watch::Receiver<Option<Arc<Listing>>>,
    /// For the scanner, until there is a target.
    listings: Mutex<Option<watch::Sender<Option<Arc<Listing>>>>>,
    starts: mpsc::UnboundedSender<Part>,
}

/// Whether these could be the targets of a relay with that data directory: reads their key files, credentials and certificates
/// and looks at their places, for two seconds at most where one does not answer; writes nothing. Blocks.
///
/// # Errors
/// A file cannot be used, or a place must not be a target.
pub fn check_targets(targets: &[Target], data_dir: &Path) -> Result<(), ArchiveError> {
    refuse_wrong_places(&open_all(targets)?, data_dir)
}

/// Directories that are targets and not there, each with the target's name: as if they were not mounted. One that does not answer
/// within two seconds counts as there. Blocks.
pub fn missing_directories(targets: &[Target]) -> Vec<(String, PathBuf)> {
    let (report, answers) = std::sync::mpsc::channel();
    for target in targets {
        let Place::Objects(place) = &target.place else { continue };
        let Some(dir) = place.url.to_file_path().ok().filter(|_| place.url.scheme() == "file") else {
            continue;
        };
        let (name, report) = (target.name.clone(), report.clone());
        std::thread::spawn(move || {
            let found = dir.metadata();
            let is_missing = found.is_err_and(|error| error.kind() == ErrorKind::NotFound);
            let _ = report.send(is_missing.then_some((name, dir)));
        });
    }
    drop(report);
    let until = Instant::now() + START_PATIENCE;
    let next = || answers.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
    let mut missing: Vec<_> = std::iter::from_fn(next).flatten().collect();
    missing.sort();
    missing
}

fn open_all(targets: &[Target]) -> Result<Vec<(Target, Sink)>, ArchiveError> {
    let open = |target: &Target| match &target.place {
        Place::Objects(_) => Repository::open(target).map(Sink::Objects),
        Place::Command(command) => Ok(Sink::Command(command.clone())),
    };
    targets.iter().map(|target| Ok((target.clone(), open(target)?))).collect()
}

/// Targets that are read and checked; [`ArchiveControl::apply`] makes them the relay's.
#[derive(Debug)]
pub struct Prepared(Vec<Change>);

#[derive(Debug)]
struct Change {
    wanted: Arc<Wanted>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    New,
    OtherPlace,
    /// The names of the settings.
    Settings(Vec<String>),
    None,
}

impl ArchiveControl {
    pub(super) fn new(
        store: &Arc<Store>,
        grace: Changeable<Duration>,
        starts: mpsc::UnboundedSender<Part>,
    ) -> ArchiveControl {
        let (listings, listing) = watch::channel(None);
        ArchiveControl {
            store: store.clone(),
            floors: Arc::new(Floors::new(store.clone())),
            places: Arc::new(Places::new(store.data_dir())),
            stop: CancellationToken::new(),
            grace,
            targets: Mutex::default(),
            listing,
            listings: Mutex::new(Some(listings)),
            starts,
        }
    }

    /// Reads the key files, credentials and certificates of these targets and looks at their places; changes nothing. Blocks,
    /// for two seconds at most where a place does not answer.
    ///
    /// # Errors
    /// A file cannot be used, or a place must not be a target.
    pub fn prepare(&self, targets: &[Target]) -> Result<Prepared, ArchiveError> {
        let opened = open_all(targets)?;
        let is_known = |target: &Target| {
            self.current(&target.name).is_some_and(|now| now.target.identity() == target.identity())
        };
        if !targets.iter().all(is_known) {
            refuse_wrong_places(&opened, self.data_dir())?;
        }
        Ok(Prepared(opened.into_iter().map(|(target, sink)| self.change(target, sink)).collect()))
    }

    /// All targets with their places, and how each does. Waits for nothing.
    pub fn seen(&self) -> Vec<(String, String, TargetSeen)> {
        self.floors.seen()
    }

    /// Has nothing more begun for a target, or goes on with it; whether there is a target of that name. What is on its way
    /// arrives. WAL that it has not got stays here meanwhile, as ever; a restart of the relay ends a pause.
    pub fn set_paused(&self, name: &str, paused: bool) -> bool {
        let Some(is_new) = self.floors.set_paused(name, paused) else { return false };
        match (is_new, paused) {
            (true, true) => tracing::warn!(
                "archive target \"{name}\" is paused: it gets nothing, and all WAL that it needs is kept, until RESUME"
            ),
            (true, false) => tracing::info!("archive target \"{name}\" goes on"),
            (false, _) => {}
        }
        true
    }

    /// Somebody has looked at all conflicts; how many were open.
    pub fn dismiss_conflicts(&self) -> u64 {
        self.floors.dismiss(Board::dismiss_conflicts)
    }

    /// Somebody has looked at all gaps; how many were open.
    pub fn dismiss_gaps(&self) -> u64 {
        self.floors.dismiss(Board::dismiss_gaps)
    }

    fn data_dir(&self) -> &Path {
        self.store.data_dir()
    }

    fn current(&self, name: &str) -> Option<Arc<Wanted>> {
        lock(&self.targets).get(name).and_then(|order| order.borrow().clone())
    }

    fn change(&self, target: Target, sink: Sink) -> Change {
        let Some(now) = self.current(&target.name) else {
            return Change { wanted: Arc::new(Wanted { target, sink }), kind: Kind::New };
        };
        if now.target.identity() != target.identity() {
            return Change { wanted: Arc::new(Wanted { target, sink }), kind: Kind::OtherPlace };
        }
        let mut names = now.target.differences(&target);
        let has_old_keys = now.sink.has_keys_of(&sink);
        if !has_old_keys && now.target.key_file == target.key_file {
            names.push("the keys in encryption-key-file".to_owned());
        }
        if names.is_empty() {
            return Change { wanted: now, kind: Kind::None };
        }
        // What has been found out about the place stays with it.
        let same = has_old_keys && now.target.has_objects_of(&target);
        let sink = if same { now.sink.clone() } else { sink };
        Change { wanted: Arc::new(Wanted { target, sink }), kind: Kind::Settings(names) }
    }

    /// Makes these the targets from now on; the others are none any more. Says what has changed, a line each. Credentials
    /// and certificates of all are read again before they are used next.
    pub fn apply(self: &Arc<Self>, prepared: Prepared) -> Vec<String> {
        reload();
        let mut lines = Vec::new();
        let mut targets = lock(&self.targets);
        for (name, order) in targets.iter() {
            let stays = prepared.0.iter().any(|change| change.wanted.target.name == *name);
            if !stays && order.send_replace(None).is_some() {
                lines.push(format!(
                    "archive target \"{name}\" is no longer configured: no WAL is kept for it any more"
                ));
            }
        }
        for Change { wanted, kind } in prepared.0 {
            let name = wanted.target.name.clone();
            match kind {
                // It may fail for what only others know of: a profile, a store's policy. So it is told, too, and tries again.
                Kind::None => {}
                Kind::Settings(names) => lines.push(format!(
                    "archive target \"{name}\": {} changed, in effect for what is archived from now on",
                    names.join(", ")
                )),
                Kind::New | Kind::OtherPlace => {
                    // Before its worker runs, so that nothing is let go that it needs.
                    self.floors.expect(&name, wanted.target.identity());
                    // Two may change places.
                    self.places.release(&name);
                    let how = if matches!(kind, Kind::New) { "is new" } else { "is another place now" };
                    lines.push(format!(
                        "archive target \"{name}\" {how}: it gets all WAL that is on the relay's disk"
                    ));
                }
            }
            match targets.get(&name) {
                Some(order) => drop(order.send_replace(Some(wanted))),
                None => drop(targets.insert(name.clone(), self.start(name, wanted))),
            }
        }
        lines
    }

    fn start(self: &Arc<Self>, name: String, wanted: Arc<Wanted>) -> watch::Sender<Option<Arc<Wanted>>> {
        if let Some(listings) = lock(&self.listings).take() {
            let scan = Box::pin(scan(self.store.clone(), listings, self.stop.clone()));
            let _ = self.starts.send(("scanner of pg_wal for the archive".to_owned(), scan));
        }
        let (order, wanted) = watch::channel(Some(wanted));
        let part = format!("worker of archive target \"{name}\"");
        // Nobody is there any more only when the relay ends.
        let _ = self.starts.send((part, Box::pin(self.clone().keep(name, wanted))));
        order
    }

    /// Runs a worker for a target as long as it is one, until told to stop.
    async fn keep(self: Arc<Self>, name: String, mut wanted: watch::Receiver<Option<Arc<Wanted>>>) {
        loop {
            let is_wanted = self.stop.run_until_cancelled(wanted.wait_for(Option::is_some)).await;
            let Some(Ok(now)) = is_wanted.map(|now| now.map(|now| now.clone())) else { return };
            let Some(now) = now else { return };
            let (store, floors, places) = (self.store.clone(), self.floors.clone(), self.places.clone());
            let worker = Worker::new(now, wanted.clone(), store, floors, places, self.listing.clone());
            worker.run(self.stop.clone(), self.grace.clone()).await;
            if self.stop.is_cancelled() {
                return;
            }
            self.places.release(&name);
            // Not while somebody makes it one again.
            let _targets = lock(&self.targets);
            if wanted.borrow().is_none() {
                self.floors.remove(&name);
            }
        }
    }
}
