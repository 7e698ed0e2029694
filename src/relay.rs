//! The relay as a whole: puts the parts together, runs them, stops them in order.
//!
//! ```text
//! start:  lock and recover the store ── listen ── upstream thread, walsender tasks
//! stop:   upstream: last WAL synced and confirmed ── walsenders: everything sent and confirmed ── store: closed
//! ```
//!
//! The upstream side runs on a thread of its own, so that storing WAL, which may wait for the disk, holds up
//! no consumer.

use std::sync::Arc;
use std::thread;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::archive::{ArchiveError, Archiver, Place, Recall, Source, TargetSource};
use crate::auth::hba::{Hba, Idents};
use crate::auth::users::Users;
use crate::config::Config;
use crate::conninfo::HostSpec;
use crate::downstream::{Access, Downstream, DownstreamConfig, ListenAddr, SharedAccess};
use crate::error::RelayError;
use crate::gateway::{Gateway, GatewayConfig};
use crate::store::{Store, Writer};
use crate::upstream::{self, UpstreamConfig, UpstreamError};
use crate::wire::ServerTls;

/// Runs until a signal or an error ends it. Needs a multi-threaded runtime.
pub async fn run(config: Config) -> Result<(), RelayError> {
    let mut signals = StopSignals::listen()?;
    let mut hangup = on_signal(SignalKind::hangup())?;
    let listen = config.listen.iter().map(|text| text.parse()).collect::<Result<Vec<ListenAddr>, _>>()?;
    let access = Arc::new(SharedAccess::new(load_access(&config)?));
    let (store, writer, background) = Store::open(config.store.clone())?;
    // Before the archiver rings retention's bell: slots whose WAL is archived must not be lost at the start.
    let recall = start_recall(&config, &store)?;
    let archiver = Archiver::start(&store, &config.archive, config.shutdown_timeout)?;
    let shutdown = CancellationToken::new();
    let (followed, host) = watch::channel(None);
    let gateway = Arc::new(Gateway::new(gateway_config(&config), host, store.clone()));
    let downstream = Downstream::bind(
        downstream_config(&config, listen, recall),
        access.clone(),
        store.clone(),
        gateway.clone(),
        shutdown.clone(),
    )
    .await?;
    for address in downstream.addresses() {
        tracing::info!("listening on {address}");
    }
    let mut downstream = tokio::spawn(downstream.run());
    let stop_refresh = shutdown.clone();
    tokio::spawn(async move { gateway.roles().refresh(stop_refresh).await });
    let mut upstream = UpstreamThread::start(&config, writer, followed)?;
    tracing::info!("walrelay {} started, upstream is {}", env!("CARGO_PKG_VERSION"), config.upstream);

    let outcome = loop {
        tokio::select! {
            _ = signals.recv() => break Ok(()),
            _ = hangup.recv() => reload(&config, &access),
            ended = &mut upstream.ended => break ended.unwrap_or(Ok(())).map_err(RelayError::from),
            reason = store.failed() => break Err(RelayError::Durability(reason)),
        }
    };
    if matches!(outcome, Err(RelayError::Durability(_))) {
        // Nothing may be confirmed to anybody any more.
        return outcome;
    }
    tracing::info!("stopping");
    upstream.stop();
    shutdown.cancel();
    tokio::select! {
        _ = &mut downstream => {}
        _ = signals.recv() => tracing::warn!("told again to stop: consumers are not waited for"),
    }
    tokio::select! {
        () = archiver.stop() => {}
        _ = signals.recv() => tracing::warn!("told again to stop: the archive is not waited for"),
    }
    let _ = tokio::task::spawn_blocking(move || background.stop()).await;
    if outcome.is_ok() {
        tracing::info!("stopped");
    }
    outcome
}

fn gateway_config(config: &Config) -> GatewayConfig {
    GatewayConfig {
        conninfo: config.upstream.clone(),
        auth_query: config.auth_query.clone(),
        auth_dbname: config.auth_dbname.clone(),
        base_backup_max_rate: config.base_backup_max_rate,
    }
}

/// For WAL that consumers want and that is only in the archive; `None` if nothing can be read there.
fn start_recall(config: &Config, store: &Arc<Store>) -> Result<Option<Arc<Recall>>, RelayError> {
    let readable = config.archive.iter().filter(|target| matches!(target.place, Place::Objects(_)));
    let sources = readable.map(|target| Ok(Arc::new(TargetSource::open(target)?) as Arc<dyn Source>));
    let sources = sources.collect::<Result<Vec<_>, ArchiveError>>()?;
    if sources.is_empty() {
        return Ok(None);
    }
    store.expect_archive();
    let action = "could not prepare the directory for archived WAL";
    let recall = Recall::start(store.clone(), sources, config.recall_size);
    recall.map(Some).map_err(|source| RelayError::System { action, source })
}

fn downstream_config(
    config: &Config,
    listen: Vec<ListenAddr>,
    recall: Option<Arc<Recall>>,
) -> DownstreamConfig {
    DownstreamConfig {
        listen,
        limits: config.limits,
        max_failed_logins: config.max_failed_logins,
        authentication_timeout: config.authentication_timeout,
        wal_sender_timeout: config.wal_sender_timeout,
        shutdown_timeout: config.shutdown_timeout,
        sql_overlay: config.sql_overlay,
        recall,
    }
}

fn load_access(config: &Config) -> Result<Access, RelayError> {
    let hba = config.hba_file.as_deref().map_or_else(|| Ok(Hba::builtin()), Hba::load)?;
    let users = config.auth_file.as_deref().map_or_else(|| Ok(Users::default()), Users::load)?;
    let idents = config.ident_file.as_deref().map_or_else(|| Ok(Idents::default()), Idents::load)?;
    let tls = config.tls.as_ref().map(ServerTls::load).transpose()?;
    for warning in hba.check_tls(tls.as_ref().map(ServerTls::verifies_clients))? {
        tracing::warn!("{warning}");
    }
    Ok(Access { hba, users, idents, tls })
}

/// SIGHUP: files that cannot be used leave everything as it was.
fn reload(config: &Config, access: &SharedAccess) {
    match load_access(config) {
        Ok(new) => {
            access.replace(new);
            tracing::info!("configuration reloaded");
        }
        Err(error) => tracing::error!("configuration not reloaded, the old one stays: {error}"),
    }
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn listen() -> Result<StopSignals, RelayError> {
        Ok(StopSignals {
            terminate: on_signal(SignalKind::terminate())?,
            interrupt: on_signal(SignalKind::interrupt())?,
        })
    }

    /// Either of them. Cancel-safe.
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn on_signal(kind: SignalKind) -> Result<Signal, RelayError> {
    signal(kind).map_err(|source| RelayError::System { action: "could not install signal handler", source })
}

/// The thread that receives.
struct UpstreamThread {
    stop: CancellationToken,
    ended: oneshot::Receiver<Result<(), UpstreamError>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl UpstreamThread {
    fn start(
        config: &Config,
        writer: Writer,
        followed: watch::Sender<Option<HostSpec>>,
    ) -> Result<UpstreamThread, RelayError> {
        let system = |source| RelayError::System { action: "could not start the upstream thread", source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
        let stop = CancellationToken::new();
        let (report, ended) = oneshot::channel();
        let upstream = UpstreamConfig {
            conninfo: config.upstream.clone(),
            slot: config.slot.clone(),
            wal_receiver_timeout: config.wal_receiver_timeout,
            followed,
        };
        let follow = upstream::follow(upstream, writer, stop.clone());
        let run = move || {
            let _ = report.send(runtime.block_on(follow));
            // A name look-up may still hang in one of the runtime's threads; nobody waits for it.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("walreceiver".into()).spawn(run).map_err(system)?;
        Ok(UpstreamThread { stop, ended, thread: Some(thread) })
    }

    /// Has it confirm the last WAL and end.
    fn stop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::block_in_place(|| thread.join());
        }
    }
}
