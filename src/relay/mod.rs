//! The relay as a whole: puts the parts together, watches them, stops them in order.
//!
//! ```text
//! start:  HTTP ── lock and recover the store ── listen ── upstream thread, walsender tasks
//! run:    until a signal, or until a part ends by itself, which is an error whichever it is
//! stop:   walsenders: everything sent and confirmed ── upstream: last WAL synced and confirmed ── store: closed ── HTTP
//! ```
//!
//! A stop has one limit over everything, `--shutdown-timeout` and two seconds: what hangs then is named and left behind.

mod budget;
mod certificates;
pub mod drive;
mod receiver;
mod reload;
pub mod signals;
pub mod slow;
mod watchdog;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::archive::{
    ArchiveError, Archiver, Place, Recall, Source, Target, TargetSource, check_targets, missing_directories,
};
use crate::auth::hba::{Hba, Idents};
use crate::auth::users::Users;
use crate::changeable::Changeable;
use crate::config::{Config, ack_warnings};
use crate::descriptors::Descriptors;
use crate::downstream::{
    Access, BoundAddr, Downstream, DownstreamConfig, SessionRules, SharedAccess, SharedRules,
};
use crate::error::RelayError;
use crate::events::Events;
use crate::gateway::{Gateway, GatewayConfig};
use crate::http::{Door, Http};
use crate::log::LevelSwitch;
use crate::notify::Notifier;
use crate::parts::{PartEnded, Tasks, how_ended};
use crate::permissions;
use crate::restart::Successor;
use crate::sockets::Sockets;
use crate::status::{CertificateEnd, DiskGauge, History, Reminders, Sources, SourcesSetup, Watched};
use crate::store::{Background, FLUSHER, Store, offline};
use crate::upstream::Following;
use crate::wire::ServerTls;
use receiver::Receiver;
use reload::{At, Reload};
use signals::{Hangup, IgnoredSignals, Order, StopSignals};
use watchdog::Watchdog;

/// What a stop may take beyond `--shutdown-timeout`: good-byes, and saving state.
const GRACE: Duration = Duration::from_secs(2);
/// The least that confirming the last WAL to the upstream, and saving state, are given: more than the receiver waits for its server.
const LEAST: Duration = Duration::from_secs(1);

/// What a process gets from the one before it, and the next one from this.
#[derive(Clone, Debug)]
pub struct Handover {
    /// Sockets that listen.
    pub sockets: Arc<Sockets>,
    /// Who goes on when the relay is told to restart.
    pub successor: Arc<Successor>,
    /// How the log's level is changed.
    pub log_level: LevelSwitch,
}

/// What comes behind an end in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// The successor goes on.
    Successor,
}

/// Runs until a signal or an error ends it. Needs a multi-threaded runtime.
/// Warnings and errors of the log are kept in `events` for whoever looks.
pub async fn run(config: Config, events: Events, handover: Handover) -> Result<Next, RelayError> {
    let notifier = Notifier::of_process().unwrap_or_else(|error| {
        tracing::warn!(
            "could not reach the socket in NOTIFY_SOCKET: {error}; systemd is told nothing (unset the variable if it is another unit's)"
        );
        Notifier::default()
    });
    let signals = StopSignals::listen()?;
    let (hangup, ignored) = (Hangup::listen()?, IgnoredSignals::listen()?);
    let handle = Handle::current();
    // On a thread of its own: a disk that hangs must not keep a signal from being heard.
    let (told, sockets) = (notifier.clone(), handover.sockets.clone());
    let stopped = || {
        if !notifier.keeps_descriptors() {
            sockets.end_unused();
        }
        tracing::info!("stopped before the start was over");
    };
    // What has waited for this program goes before whatever it would begin.
    if signals.waiting().is_some() {
        stopped();
        return Ok(Next::Nothing);
    }
    let start = move || handle.block_on(Relay::start(config, events, hangup, ignored, told, handover));
    let mut relay = tokio::select! {
        started = tokio::task::spawn_blocking(start) => started.unwrap_or_else(|error| {
            Err(PartEnded { part: "start".to_owned(), how: how_ended(error) }.into())
        })?,
        _ = signals.recv_stop() => {
            stopped();
            return Ok(Next::Nothing);
        }
    };
    notifier.ready();
    let ended = relay.until_ended(&signals).await;
    relay.around.prepare_end(&ended);
    let next = relay.stop(&signals, ended).await?;
    // The next program feeds the watchdog from its start on.
    notifier.alive();
    Ok(next)
}

/// All parts, running.
struct Relay {
    timeouts: Timeouts,
    store: Arc<Store>,
    receiver: Receiver,
    archiver: Archiver,
    background: Background,
    tasks: Tasks,
    shutdown: CancellationToken,
    status: Arc<Sources>,
    watching: Watching,
    watchdog: Watchdog,
    around: Around,
}

/// Who answers those who watch the relay: from before its start to the end of its stop.
#[derive(Default)]
struct Watching {
    tasks: Tasks,
    end: CancellationToken,
}

impl Watching {
    /// Begins to answer, where that is wanted.
    async fn start(
        config: &Config,
        watched: &Arc<Watched>,
        door: &Door,
        sockets: &Sockets,
    ) -> Result<Watching, RelayError> {
        let mut watching = Watching::default();
        let Some(address) = &config.http_listen else { return Ok(watching) };
        let http = match Http::bind(address, watched.clone(), door.clone(), sockets).await {
            // Nobody looks for the address when it is another relay that has everything.
            Err(error) => {
                return Err(offline::in_use(&config.store.data_dir).map_or(error.into(), Into::into));
            }
            Ok(http) => http,
        };
        http.address().iter().for_each(|address| tracing::info!("listening on {address} for HTTP"));
        watching.tasks.spawn("HTTP listener", http.run(watching.end.clone()));
        Ok(watching)
    }

    async fn stop(mut self) -> Result<(), PartEnded> {
        self.end.cancel();
        self.tasks.finish().await
    }
}

/// Those that a reload changes.
#[derive(Clone)]
struct Timeouts {
    /// `--shutdown-timeout`
    shutdown: Changeable<Duration>,
    /// `--wal-receiver-timeout`
    wal_receiver: Changeable<Option<Duration>>,
}

/// Who was there before the relay, and whom it leaves things to.
struct Around {
    notifier: Notifier,
    handover: Handover,
}

impl Around {
    /// What becomes of the listening sockets, and what systemd is told.
    fn prepare_end(&self, ended: &Result<Order, RelayError>) {
        let sockets = &self.handover.sockets;
        match ended {
            // For systemd it is a reload: the same process goes on.
            Ok(Order::Restart) => {
                sockets.stay_for_next();
                self.notifier.reloading();
            }
            _ => self.notifier.stopping(),
        }
        if !sockets.will_stay() {
            sockets.let_go();
        }
    }

    /// A restart that cannot be leaves nothing for the next program.
    fn nobody_goes_on(&self, ended: &Result<Order, RelayError>) {
        if matches!(ended, Ok(Order::Restart)) {
            self.handover.sockets.stay_no_longer();
            self.notifier.stopping();
        }
    }

    /// Told to stop while a restart was under way: nobody goes on.
    fn turn_to_stop(&self, ended: &mut Result<Order, RelayError>, order: Order) {
        if matches!(ended, Ok(Order::Restart)) {
            tracing::info!("told to stop: not restarted");
            self.nobody_goes_on(ended);
        }
        if let Ok(ended) = ended {
            *ended = order;
        }
    }
}

impl Relay {
    async fn start(
        mut config: Config,
        events: Events,
        hangup: Hangup,
        ignored: IgnoredSignals,
        notifier: Notifier,
        handover: Handover,
    ) -> Result<Relay, RelayError> {
        let watched = Arc::new(Watched::new(events.clone()));
        let watchdog = Watchdog::start(notifier.clone(), &Handle::current())
            .map_err(|source| RelayError::System { action: "could not start the watchdog", source })?;
        let door = Door::new(config.http);
        let watching = Watching::start(&config, &watched, &door, &handover.sockets).await?;
        let (at, tell) = (At::default(), |line: &str| tracing::warn!("{line}"));
        let (access, certificates) =
            slow::told_of(slow::SLOW, || at.current(), tell, || load_access(&config, &config, &at))?;
        let access = Arc::new(SharedAccess::new(access));
        door.note_access(access.clone());
        let descriptors = raise_descriptors(&config);
        let opened = Store::open_telling(config.store.clone(), watched.opening().clone());
        let (store, writer, background) = opened?;
        watched.note_step("looking at what the archive has");
        // Places and credentials may take their time, and retention does not know yet who needs WAL.
        let starting = store.hold_for_start();
        // Before the archiver rings retention's bell: slots whose WAL is archived must not be lost at the start.
        let recall = start_recall(&config, &store)?;
        store.report_missing_wal();
        store.load_failovers();
        set_acknowledgements(&config, &store);
        budget::take_up(&store, &config.ack);
        let timeouts = Timeouts {
            shutdown: config.shutdown_timeout.into(),
            wal_receiver: config.wal_receiver_timeout.into(),
        };
        let archiver = Archiver::start(&store, &config.archive, timeouts.shutdown.clone(), starting)?;
        let (shutdown, mut tasks) = (CancellationToken::new(), Tasks::default());
        let (following, followed) = Following::channel();
        watched.note_step("beginning to listen");
        let sources = Sources::new(SourcesSetup {
            store: store.clone(),
            upstream: followed.board().clone(),
            conninfo: config.upstream.to_string(),
            slot: config.slot.to_string(),
            archive: archiver.control(),
            recall: recall.clone(),
            sessions: Arc::default(),
            events,
            disk: Arc::new(DiskGauge::new(store.clone())),
            settings: reload::settings(&config, None),
        });
        let status = Arc::new(sources.begun(watched.started()));
        status.set_certificates(certificates);
        let rules = Arc::new(SharedRules::new(session_rules(&config)));
        let gateway = Arc::new(Gateway::new(gateway_config(&config), followed, store.clone()));
        let downstream = Downstream::bind(
            downstream_config(&config, descriptors, &status, recall.clone(), &handover, &rules),
            access.clone(),
            store.clone(),
            gateway.clone(),
            shutdown.clone(),
        )
        .await?;
        door.note_doorkeeper(downstream.doorkeeper()?);
        for address in downstream.addresses() {
            tracing::info!("listening on {address}");
            match address {
                BoundAddr::Tcp(address) => config.upstream.own.tcp.push(address),
                BoundAddr::Unix(path) => config.upstream.own.unix.push(path),
            }
        }
        settle_sockets(&handover.sockets, &notifier)?;
        let (stop, history) = (|| shutdown.clone(), Arc::new(History::new(status.clone())));
        watched.note_running(status.clone(), history.clone());
        if config.http_listen.is_some() {
            tasks.spawn("history", history.run(stop()));
        }
        tasks.spawn("listener", async move {
            if let Err(error) = downstream.run().await {
                tracing::error!("{error}");
            }
        });
        let (stop_refresh, roles_of) = (stop(), gateway.clone());
        tasks.spawn("roles refresher", async move { roles_of.roles().run(stop_refresh).await });
        tasks.spawn("disk gauge", status.disk().clone().run(stop()));
        tasks.spawn("reminders", Reminders::default().run(status.clone(), stop()));
        tasks.spawn("cleaner of recalled WAL", recall.clone().keep_clean(stop()));
        tasks.spawn("keeper of the acknowledgements' budget", budget::keep(store.clone(), stop()));
        tasks.spawn("signal handler", ignored.tell(stop()));
        let receiver = Receiver::start(&config, &timeouts, writer, following)?;
        tracing::info!("walrelay {} started, upstream is {}", env!("CARGO_PKG_VERSION"), config.upstream);
        let reload = Reload::new(
            config,
            access,
            rules,
            handover.log_level.clone(),
            store.clone(),
            archiver.control(),
            recall,
            gateway,
            timeouts.clone(),
            door,
            status.clone(),
        );
        watchdog.watch(background.hearts().into_iter().chain([receiver.heart()]));
        tasks.spawn("configuration reloader", reload.run_on(hangup, notifier.clone(), stop()));
        Ok(Relay {
            timeouts,
            store,
            receiver,
            archiver,
            background,
            tasks,
            shutdown,
            status,
            watching,
            watchdog,
            around: Around { notifier, handover },
        })
    }

    /// Why the relay is to stop: it was told so, or a part has ended by itself. A restart that cannot be is refused.
    async fn until_ended(&mut self, signals: &StopSignals) -> Result<Order, RelayError> {
        let successor = self.around.handover.successor.clone();
        loop {
            let order = tokio::select! {
                order = signals.recv() => order,
                error = self.lost() => return Err(error),
            };
            if order != Order::Restart {
                return Ok(order);
            }
            let checked = tokio::select! {
                checked = successor.check() => checked,
                order = signals.recv_stop() => return Ok(order),
                error = self.lost() => return Err(error),
            };
            match checked {
                Ok(version) => {
                    tracing::info!(
                        "restarting: walrelay {version} of \"{}\" takes over",
                        successor.path().display()
                    );
                    return Ok(Order::Restart);
                }
                Err(error) => tracing::error!("not restarted, this process goes on: {error}"),
            }
        }
    }

    /// Resolves when a part has ended by itself, or the store has failed. Cancel-safe.
    async fn lost(&mut self) -> RelayError {
        tokio::select! {
            biased;
            // First, because the flusher ends after it has said why.
            reason = self.store.failed() => RelayError::Durability(reason),
            lost = self.background.lost() => lost.into(),
            error = self.receiver.lost() => error,
            lost = self.archiver.lost() => lost.into(),
            lost = self.tasks.lost() => lost.into(),
            lost = self.watching.tasks.lost() => lost.into(),
            lost = self.watchdog.lost() => lost.into(),
        }
    }

    /// Stops everything in order, as far as that goes within the limit. `ended` is what the stop is for.
    async fn stop(
        mut self,
        signals: &StopSignals,
        mut ended: Result<Order, RelayError>,
    ) -> Result<Next, RelayError> {
        match &ended {
            Err(RelayError::Part(lost)) => tracing::error!("{lost}; stopping"),
            _ => tracing::info!("stopping"),
        }
        self.status.note_stop();
        let began = Instant::now();
        let deadline = began + self.timeouts.shutdown.current() + GRACE;
        let mut farewell = Farewell::default();
        // Commits on the primary may wait for the relay: it goes on receiving and confirming while its consumers end, and leaves
        // the upstream last.
        let confirms = !ended.as_ref().is_err_and(forbids_confirming);
        if !confirms {
            // The receiver has nothing to wait for: what it has written will not become durable.
            self.receiver.abandon();
        }
        self.shutdown.cancel();
        let mut patient = !matches!(ended, Ok(Order::StopNow));
        if let Some(order) = self.stop_serving(signals, patient, deadline, &mut farewell).await {
            patient = false;
            self.around.turn_to_stop(&mut ended, order);
        }
        if confirms {
            let least = Instant::now() + LEAST;
            let stopped = self.receiver.stop(if patient { deadline.max(least) } else { least }).await;
            let stopped = farewell.note(stopped).unwrap_or(true);
            farewell.expect(stopped, "the walreceiver (the last WAL may not be confirmed to the upstream)");
        }
        let (background, store) = (self.background, self.store.clone());
        let stopping = tokio::task::spawn_blocking(move || {
            budget::keep_last(&store);
            background.stop()
        });
        match timeout_at(deadline.max(Instant::now() + LEAST), stopping).await {
            Ok(lost) => farewell.lost = farewell.lost.or(lost.ok().flatten()),
            Err(_) => farewell.expect(false, "the store (slots may not be saved)"),
        }
        // A sync that fails behind the order is no end in order either, and nobody goes on upon that disk by itself.
        if ended.is_ok()
            && let Some(reason) = self.store.failure()
        {
            self.around.nobody_goes_on(&ended);
            ended = Err(RelayError::Durability(reason));
        }
        match timeout_at(deadline.max(Instant::now() + LEAST), self.watching.stop()).await {
            Ok(stopped) => drop(farewell.note(stopped)),
            Err(_) => farewell.expect(false, "the HTTP listener"),
        }
        // From here on an order waits for the next program.
        if let Some(order) = signals.last_look() {
            self.around.turn_to_stop(&mut ended, order);
        }
        // What is cut off has let go of its sockets before the last of them is closed.
        self.tasks.cut().await;
        // All threads have ended, or hang and were named.
        self.watchdog.stop();
        match ended? {
            Order::Stop | Order::StopNow => farewell.say().map(|()| Next::Nothing),
            Order::Restart => {
                // Whatever hangs or has panicked here ends with this program.
                if let Err(error) = farewell.say() {
                    tracing::error!("{error}");
                }
                Ok(Next::Successor)
            }
        }
    }

    /// Consumers get everything and confirm it, the archive what is on its way. What was ordered meanwhile.
    async fn stop_serving(
        &mut self,
        signals: &StopSignals,
        patient: bool,
        deadline: Instant,
        farewell: &mut Farewell,
    ) -> Option<Order> {
        if !patient {
            self.archiver.abandon();
            return None;
        }
        let all = async { tokio::join!(self.tasks.finish(), self.archiver.stop()) };
        tokio::select! {
            (tasks, archiver) = all => {
                farewell.note(tasks);
                farewell.note(archiver);
            }
            order = signals.recv_stop() => {
                tracing::warn!("told again to stop: consumers and the archive are not waited for");
                return Some(order);
            }
            () = tokio::time::sleep_until(deadline) => {
                let names = self.tasks.running().into_iter().chain(self.archiver.running());
                names.for_each(|name| farewell.late.push(format!("the {name}")));
            }
        }
        None
    }
}

/// What went wrong while stopping.
#[derive(Default)]
struct Farewell {
    lost: Option<PartEnded>,
    late: Vec<String>,
}

impl Farewell {
    fn note<T>(&mut self, ended: Result<T, PartEnded>) -> Option<T> {
        match ended {
            Ok(value) => Some(value),
            Err(lost) => {
                self.lost.get_or_insert(lost);
                None
            }
        }
    }

    fn expect(&mut self, in_time: bool, part: &str) {
        if !in_time {
            self.late.push(part.to_owned());
        }
    }

    fn say(self) -> Result<(), RelayError> {
        if let Some(lost) = self.lost {
            return Err(lost.into());
        }
        if !self.late.is_empty() {
            return Err(RelayError::Late(self.late.join(", ")));
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Whether nothing may be confirmed to anybody any more.
fn forbids_confirming(error: &RelayError) -> bool {
    match error {
        RelayError::Durability(_) => true,
        RelayError::Part(lost) => lost.part == FLUSHER,
        _ => false,
    }
}

/// Whether a relay could be started with this, as far as files tell: reads and checks all of them, says what is doubtful in the
/// log, changes nothing and asks no server. Blocks.
///
/// # Errors
/// As a start's.
pub fn check(config: &Config) -> Result<(), RelayError> {
    load_access(config, config, &At::default())?;
    check_targets(&config.archive, &config.store.data_dir)?;
    for (target, dir) in missing_directories(&config.archive) {
        tracing::warn!(
            "archive target \"{target}\": directory \"{}\" does not exist; create or mount it: nothing is archived there before",
            dir.display()
        );
    }
    Ok(())
}

fn gateway_config(config: &Config) -> GatewayConfig {
    GatewayConfig {
        conninfo: config.upstream.clone(),
        auth_query: config.auth_query.clone(),
        auth_dbname: config.auth_dbname.clone(),
        base_backup_max_rate: config.base_backup_max_rate,
    }
}

/// For WAL that consumers want and that is only in the archive.
fn start_recall(config: &Config, store: &Arc<Store>) -> Result<Arc<Recall>, RelayError> {
    let sources = sources(&config.archive, store)?;
    if !sources.is_empty() {
        store.expect_archive();
    }
    let action = "could not prepare the directory for archived WAL";
    let recall = Recall::start(store.clone(), sources, config.recall_size);
    recall.map_err(|source| RelayError::System { action, source })
}

/// The targets that can be read.
fn sources(targets: &[Target], store: &Arc<Store>) -> Result<Vec<Arc<dyn Source>>, ArchiveError> {
    let readable = targets.iter().filter(|target| matches!(target.place, Place::Objects(_)));
    let source = |target| Ok(Arc::new(TargetSource::archived(target, store.clone())?) as Arc<dyn Source>);
    readable.map(source).collect()
}

fn downstream_config(
    config: &Config,
    descriptors: Arc<Descriptors>,
    status: &Arc<Sources>,
    recall: Arc<Recall>,
    handover: &Handover,
    rules: &Arc<SharedRules>,
) -> DownstreamConfig {
    DownstreamConfig {
        listen: config.listen.clone(),
        rules: rules.clone(),
        recall: Some(recall),
        application_name: config.upstream.application_name.clone(),
        descriptors,
        counts: status.sessions().clone(),
        status: Some(status.clone()),
        sockets: handover.sockets.clone(),
        successor: handover.successor.clone(),
    }
}

/// What holds for new connections.
fn session_rules(config: &Config) -> SessionRules {
    SessionRules {
        limits: config.limits,
        max_failed_logins: config.max_failed_logins,
        authentication_timeout: config.authentication_timeout,
        wal_sender_timeout: config.wal_sender_timeout,
        shutdown_timeout: config.shutdown_timeout,
        sql_overlay: config.sql_overlay,
        logged: config.logged,
    }
}

/// All listen: what was passed and fits nobody is closed or refused, and systemd keeps what the relay has made itself.
fn settle_sockets(sockets: &Sockets, notifier: &Notifier) -> Result<(), RelayError> {
    for name in sockets.settle()? {
        tracing::info!("closed a socket that is not configured any more ({name})");
        notifier.forget(&name);
    }
    if notifier.keeps_descriptors() {
        let action = "could not duplicate a listening socket";
        let own = sockets.own().map_err(|source| RelayError::System { action, source })?;
        own.into_iter().for_each(|(name, socket)| notifier.keep(&name, socket));
        sockets.stay();
    }
    Ok(())
}

fn raise_descriptors(config: &Config) -> Arc<Descriptors> {
    let of_http = config.http_listen.as_ref().map_or(0, |_| crate::http::CONNECTIONS);
    let descriptors = Descriptors::raise(config.archive.len(), of_http);
    if let Some(shortage) = descriptors.shortage(config.limits.connections, config.limits.wal_senders) {
        tracing::warn!("{shortage}");
    }
    Arc::new(descriptors)
}

/// Who must have WAL before it is reported upstream.
fn set_acknowledgements(config: &Config, store: &Store) {
    for warning in ack_warnings(&config.ack) {
        tracing::warn!("{warning}");
    }
    store.consumers().set_rules(config.ack.clone());
}

/// Not refused: in a container nobody else is there, and such directories are common.
fn warn_of_parents(config: &Config) {
    let ours = [&config.hba_file, &config.auth_file, &config.ident_file].map(Option::as_deref);
    let key = config.tls.as_ref().map(|tls| tls.key.as_path());
    let archive = config.archive.iter().filter_map(|target| target.key_file.as_deref());
    for path in ours.into_iter().chain([config.file(), key]).flatten().chain(archive) {
        if let Some(problem) = permissions::parent_problem(path) {
            tracing::warn!("file \"{}\" {problem}", path.display());
        }
    }
}

/// Where HTTP is served is as the relay was `started`, whatever the configuration says by now.
fn load_access(
    config: &Config,
    started: &Config,
    at: &At,
) -> Result<(Access, Vec<CertificateEnd>), RelayError> {
    let named = |what, path: &Option<PathBuf>| {
        path.as_deref().inspect(|path| at.file(what, path)).map(Path::to_owned)
    };
    let hba =
        named("--hba-file", &config.hba_file).map_or_else(|| Ok(Hba::builtin()), |path| Hba::load(&path))?;
    let users = named("--auth-file", &config.auth_file)
        .map_or_else(|| Ok(Users::default()), |path| Users::load(&path))?;
    let idents = named("--ident-file", &config.ident_file)
        .map_or_else(|| Ok(Idents::default()), |path| Idents::load(&path))?;
    at.note("the directories of the files that are named".to_owned());
    warn_of_parents(config);
    if let Some(exposed) = config.exposed_http_of(started) {
        tracing::warn!("{exposed}");
    }
    at.note("the TLS files".to_owned());
    let tls = config.tls.as_ref().map(ServerTls::load).transpose()?;
    for warning in hba.check_tls(tls.as_ref().map(ServerTls::verifies_clients))? {
        tracing::warn!("{warning}");
    }
    let (admin_roles, monitor_roles) = (config.admin_roles.clone(), config.monitor_roles.clone());
    Ok((Access { hba, users, idents, admin_roles, monitor_roles, tls }, certificates::ends(config)))
}
