//! SIGHUP: the configuration file, and the files that it names, are read again.
//!
//! All of it is read and checked before anything is changed: a file that cannot be used leaves everything as it was. Who may
//! connect and the archive's targets change while the relay runs; for anything else that differs the log says that it takes a
//! restart.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use super::{load_access, sources};
use crate::archive::{ArchiveControl, Recall};
use crate::config::Config;
use crate::downstream::SharedAccess;
use crate::error::RelayError;
use crate::store::Store;

/// Settings that are in effect at once, for new connections.
const ACCESS: [&str; 9] = [
    "hba-file",
    "auth-file",
    "ident-file",
    "ssl-cert-file",
    "ssl-key-file",
    "ssl-ca-file",
    "ssl-crl-file",
    "ssl-min-protocol-version",
    "ssl-max-protocol-version",
];

/// What can be changed, and what it was made of.
pub(super) struct Reload {
    /// What everything else runs with.
    started: Config,
    /// What was read last.
    read: Mutex<Config>,
    access: Arc<SharedAccess>,
    store: Arc<Store>,
    archive: Arc<ArchiveControl>,
    recall: Arc<Recall>,
}

impl Reload {
    pub(super) fn new(
        config: Config,
        access: Arc<SharedAccess>,
        store: Arc<Store>,
        archive: Arc<ArchiveControl>,
        recall: Arc<Recall>,
    ) -> Arc<Reload> {
        Arc::new(Reload { started: config.clone(), read: Mutex::new(config), access, store, archive, recall })
    }

    /// At each signal, until told to stop. The files are read on another thread: they may lie on a disk that hangs.
    pub(super) async fn run_on(self: Arc<Self>, mut hangup: Signal, stop: CancellationToken) {
        while stop.run_until_cancelled(hangup.recv()).await.flatten().is_some() {
            let this = self.clone();
            let reading = tokio::task::spawn_blocking(move || {
                if let Err(error) = this.read_again() {
                    tracing::error!("configuration not reloaded, the old one stays: {error}");
                }
            });
            // A panic has been told of; the old configuration stays.
            let _ = stop.run_until_cancelled(reading).await;
        }
    }

    fn read_again(&self) -> Result<(), RelayError> {
        let new = self.started.read_again()?;
        let access = load_access(&new)?;
        let (targets, sources) = (self.archive.prepare(&new.archive)?, sources(&new.archive, &self.store)?);
        // Nothing fails from here on.
        self.access.replace(access);
        if !sources.is_empty() && !self.recall.has_sources() {
            self.store.expect_archive();
        }
        self.recall.set_sources(sources);
        let changes = self.archive.apply(targets);
        let old =
            std::mem::replace(&mut *self.read.lock().unwrap_or_else(PoisonError::into_inner), new.clone());
        for name in old.differences(&new).iter().filter(|name| ACCESS.contains(&name.as_str())) {
            tracing::info!("{name} changed, in effect for new connections");
        }
        for line in changes {
            tracing::info!("{line}");
        }
        for name in self.started.differences(&new).iter().filter(|name| !ACCESS.contains(&name.as_str())) {
            tracing::warn!("{name} changed, which takes a restart; until then the old value stays in effect");
        }
        tracing::info!("configuration reloaded");
        Ok(())
    }
}
