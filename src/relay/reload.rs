//! SIGHUP: the configuration file, and the files that it names, are read again.
//!
//! All of it is read and checked before anything is changed: a file that cannot be used leaves everything as it was, and so does
//! one that does not answer, which is given up and holds up no later signal. Who may
//! connect and how many, timeouts, how many slots there may be, how much WAL is kept, who must have WAL before it is reported, the archive's targets and
//! the log's level change while the relay runs; for anything else that differs the log says that it takes a restart.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::signals::Hangup;
use super::{Timeouts, load_access, session_rules, set_acknowledgements, sources};
use crate::archive::{ArchiveControl, Prepared, Recall, Source, check_targets};
use crate::config::Config;
use crate::downstream::{Access, SharedAccess, SharedRules};
use crate::error::RelayError;
use crate::gateway::Gateway;
use crate::http::Door;
use crate::lane::{Lane, PATIENCE};
use crate::log::LevelSwitch;
use crate::notify::Notifier;
use crate::status::{CertificateEnd, Setting, Sources};
use crate::store::{KeepSizes, Store, StoreConfig};

/// Settings that are in effect at once, for new connections.
const ACCESS: [&str; 19] = [
    "http-ssl",
    "http-auth",
    "max-connections",
    "max-user-connections",
    "max-wal-senders",
    "max-failed-logins",
    "authentication-timeout",
    "wal-sender-timeout",
    "wal-receiver-timeout",
    "sql-overlay",
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

/// Those that are in effect at once, for everybody.
const ACKNOWLEDGEMENTS: &str = "ack";
const ADMINS: &str = "admin-role";
const MONITORS: &str = "monitor-role";
const AT_ONCE: [&str; 12] = [
    ADMINS,
    MONITORS,
    "log-level",
    "log-connections",
    "log-disconnections",
    "log-replication-commands",
    "wal-keep-size",
    "max-slot-wal-keep-size",
    "max-replication-slots",
    "recall-size",
    "base-backup-max-rate",
    "shutdown-timeout",
];

/// What is read at the moment, for the message should it not come back.
#[derive(Clone, Default, Debug)]
pub(super) struct At(Arc<Mutex<String>>);

impl At {
    /// A file of which `what` names the kind.
    pub(super) fn file(&self, what: &str, path: &Path) {
        self.note(format!("{what} \"{}\"", path.display()));
    }

    /// Several files.
    pub(super) fn note(&self, what: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    pub(super) fn current(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All that was read, checked, and not in effect yet.
struct Fresh {
    config: Config,
    access: Access,
    certificates: Vec<CertificateEnd>,
    targets: Prepared,
    sources: Vec<Arc<dyn Source>>,
}

/// What can be changed, and what it was made of.
pub(super) struct Reload {
    /// What everything else runs with.
    started: Config,
    /// What was read last.
    read: Mutex<Config>,
    access: Arc<SharedAccess>,
    rules: Arc<SharedRules>,
    log_level: LevelSwitch,
    store: Arc<Store>,
    archive: Arc<ArchiveControl>,
    recall: Arc<Recall>,
    gateway: Arc<Gateway>,
    timeouts: Timeouts,
    door: Door,
    status: Arc<Sources>,
}

impl Reload {
    #[expect(clippy::too_many_arguments, reason = "each is another part of the relay")]
    pub(super) fn new(
        config: Config,
        access: Arc<SharedAccess>,
        rules: Arc<SharedRules>,
        log_level: LevelSwitch,
        store: Arc<Store>,
        archive: Arc<ArchiveControl>,
        recall: Arc<Recall>,
        gateway: Arc<Gateway>,
        timeouts: Timeouts,
        door: Door,
        status: Arc<Sources>,
    ) -> Arc<Reload> {
        let (started, read) = (config.clone(), Mutex::new(config));
        Arc::new(Reload {
            started,
            read,
            access,
            rules,
            log_level,
            store,
            archive,
            recall,
            gateway,
            timeouts,
            door,
            status,
        })
    }

    /// At each signal, until told to stop. The files are read on threads of their own: they may lie on a disk that hangs.
    pub(super) async fn run_on(self: Arc<Self>, hangup: Hangup, notifier: Notifier, stop: CancellationToken) {
        let lane = Lane::new("reload", PATIENCE);
        while stop.run_until_cancelled(hangup.recv()).await.is_some() {
            notifier.reloading();
            if stop.run_until_cancelled(self.reload(&lane)).await.is_some() {
                notifier.ready();
            }
        }
    }

    async fn reload(self: &Arc<Self>, lane: &Lane) {
        let this = self.clone();
        match within(lane, move |at| this.read_again(at)).await {
            Ok(fresh) => {
                let this = self.clone();
                // A panic has been told of.
                let _ = tokio::task::spawn_blocking(move || this.apply(fresh)).await;
            }
            Err(reason) => tracing::error!("configuration not reloaded, the old one stays: {reason}"),
        }
    }

    /// Changes nothing, so that it can be given up.
    fn read_again(&self, at: &At) -> Result<Fresh, RelayError> {
        if let Some(path) = self.started.file() {
            at.file("configuration file", path);
        }
        let config = self.started.read_again()?;
        let (access, certificates) = load_access(&config, &self.started, at)?;
        at.note("the archive targets' files".to_owned());
        // What the next start would refuse is refused now: the targets have to fit the directory that it would have, too.
        if config.store.data_dir != self.started.store.data_dir {
            check_targets(&config.archive, &config.store.data_dir)?;
        }
        let (targets, sources) =
            (self.archive.prepare(&config.archive)?, sources(&config.archive, &self.store)?);
        Ok(Fresh { config, access, certificates, targets, sources })
    }

    /// Nothing fails here.
    fn apply(&self, fresh: Fresh) {
        let Fresh { config: new, access, certificates, targets, sources } = fresh;
        self.status.set_certificates(certificates);
        // One after the other: a connection between the two finds no certificate, and is closed.
        self.access.replace(access);
        self.door.set_rules(new.http);
        self.rules.replace(session_rules(&new));
        self.timeouts.shutdown.replace(new.shutdown_timeout);
        self.timeouts.wal_receiver.replace(new.wal_receiver_timeout);
        self.gateway.set_backup_rate(new.base_backup_max_rate);
        self.recall.set_budget(new.recall_size);
        self.store.slots().set_limit(new.store.max_replication_slots);
        let StoreConfig { wal_keep_size, max_slot_wal_keep_size, .. } = new.store;
        let keep = KeepSizes { wal_keep_size, max_slot_wal_keep_size };
        // Nothing is let go before new archive targets hold what they need, nor when old ones no longer do.
        self.store.set_keep_sizes(self.store.keep_sizes().most(keep));
        if !sources.is_empty() && !self.recall.has_sources() {
            self.store.expect_archive();
        }
        self.recall.set_sources(sources);
        let changes = self.archive.apply(targets);
        self.store.set_keep_sizes(keep);
        let old =
            std::mem::replace(&mut *self.read.lock().unwrap_or_else(PoisonError::into_inner), new.clone());
        // The report itself is told by the more talkative of both levels.
        self.log_level.set(old.log_level.max(new.log_level));
        for name in old.differences(&new) {
            if ACCESS.contains(&name.as_str()) {
                tracing::info!("{name} changed, in effect for new connections");
            } else if AT_ONCE.contains(&name.as_str()) {
                tracing::info!("{name} changed, in effect");
            }
        }
        if old.ack != new.ack {
            set_acknowledgements(&new, &self.store);
            tracing::info!("ack changed, in effect");
        }
        for line in changes {
            tracing::info!("{line}");
        }
        let at_once = |name: &&String| {
            ACCESS.contains(&name.as_str()) || AT_ONCE.contains(&name.as_str()) || *name == ACKNOWLEDGEMENTS
        };
        for name in self.started.differences(&new).iter().filter(|name| !at_once(name)) {
            tracing::warn!("{name} changed, which takes a restart; until then the old value stays in effect");
        }
        self.status.set_settings(settings(&self.started, Some(&new)));
        tracing::info!("configuration reloaded");
        self.log_level.set(new.log_level);
    }
}

/// What is in effect of what the relay was `started` with, and of what was read since.
pub(super) fn settings(started: &Config, read: Option<&Config>) -> Vec<Setting> {
    let (latest, about) = (read.unwrap_or(started), crate::config::descriptions());
    let (before, now) = (started.shown(), latest.shown());
    let setting = |((name, before), (_, now)): ((&'static str, String), (_, String))| {
        let is_of_ack = name.strip_prefix(ACKNOWLEDGEMENTS).is_some_and(|rest| rest.starts_with('-'));
        let takes_effect = ACCESS.contains(&name)
            || is_of_ack
            || AT_ONCE.contains(&name)
            || ["archive", "ssl"].contains(&name);
        let pending_restart = !takes_effect && before != now;
        let (source, source_file) = (if takes_effect { latest } else { started }).source_of(name);
        Setting {
            pending_restart,
            context: if takes_effect { "sighup" } else { "postmaster" }.to_owned(),
            source: source.to_owned(),
            source_file: source_file.map(|path| path.display().to_string()),
            description: about.get(name).cloned().unwrap_or_default(),
            ..Setting::new(name, if takes_effect { now } else { before })
        }
    };
    before.into_iter().zip(now).map(setting).collect()
}

/// Reads on a thread of the lane; the error says at what it was if it did not come back.
async fn within<T: Send + 'static>(
    lane: &Lane,
    read: impl FnOnce(&At) -> Result<T, RelayError> + Send + 'static,
) -> Result<T, String> {
    let at = At::default();
    // Threads that hang may be so many that this one is not begun.
    at.note("the configuration".to_owned());
    let theirs = at.clone();
    match lane.run(0, move || read(&theirs)).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(reason) => Err(format!("could not read {}: {reason}", at.current())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::auth::hba::Hba;

    #[test]
    fn what_takes_effect_at_once_is_shown_as_it_is_now() {
        let dir = crate::permissions::private_tempdir();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let config = |args: &[&str]| {
            let first = ["walrelay", "--upstream", "host=h user=u", "--data-dir", "/d"];
            let cli = crate::config::Cli::try_parse_from([&first[..], args].concat()).unwrap();
            Config::resolve(cli, &crate::conninfo::Environment::of_user("tester")).unwrap()
        };
        let (hba, auth) = (file("hba", ""), file("auth", ""));
        let old = config(&[]);
        let new = config(&[
            "--hba-file",
            &hba,
            "--auth-file",
            &auth,
            "--admin-role",
            "op",
            "--monitor-role",
            "mon",
            "--ack-write",
            "ALL (a)",
            "--ack-flush",
            "ANY 1 (a, b)",
            "--ack-apply",
            "local",
            "--wal-keep-size",
            "3GB",
            "--max-wal-senders",
            "3",
            "--max-replication-slots",
            "3",
            "--recall-size",
            "1GB",
            "--base-backup-max-rate",
            "10MB",
            "--shutdown-timeout",
            "3s",
            "--wal-receiver-timeout",
            "7s",
            "--sql-overlay",
            "off",
            "--http-auth",
            "on",
            "--log-level",
            "warn",
            "--log-connections",
            "off",
            "--log-disconnections",
            "off",
            "--log-replication-commands",
            "on",
            "--slot",
            "other",
        ]);
        let shown = settings(&old, Some(&new));
        let setting = |name: &str| shown.iter().find(|setting| setting.name == name).unwrap();
        for (name, now) in new.shown() {
            let (before, seen) =
                (old.shown().into_iter().find(|(it, _)| *it == name).unwrap().1, setting(name));
            if before != now {
                let is_late = name == "slot";
                assert_eq!(seen.pending_restart, is_late, "{name}");
                assert_eq!(seen.value, if is_late { before } else { now }, "{name}");
            }
        }
        assert_eq!(setting("ack-flush").value, "ANY 1 (a, b)");
    }

    /// A FIFO that nobody writes to is read like a file on a dead mount.
    #[tokio::test]
    async fn a_file_that_hangs_is_named_and_given_up_and_the_next_signal_counts() {
        let dir = crate::permissions::private_tempdir();
        let path = dir.path().join("hba");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        let lane = Lane::new("reload", PATIENCE);
        let hanging = path.clone();
        let (reached, is_there) = tokio::sync::oneshot::channel();
        let read = move |at: &At| {
            at.file("hba file", &hanging);
            let _ = reached.send(());
            Ok(Hba::load(&hanging)?)
        };
        let others = async {
            is_there.await.unwrap();
            tokio::time::pause();
        };
        let (error, ()) = tokio::join!(within(&lane, read), others);
        tokio::time::resume();
        let shown = path.display();
        assert_eq!(error.unwrap_err(), format!("could not read hba file \"{shown}\": no answer in 30 s"));

        let good = dir.path().join("good");
        std::fs::write(&good, "local all all peer\n").unwrap();
        assert!(within(&lane, move |_| Ok(Hba::load(&good)?)).await.is_ok());
        // Lets the thread go.
        std::fs::File::options().read(true).write(true).open(&path).unwrap();
    }
}
