//! Follows the cluster: finds a server to receive from, receives, and begins again when that ends.
//!
//! ```text
//! connect ──> introduce ──> compare ───> compare ──> accept: keep its ──> START_REPLICATION ──> receive
//!   ^  (each  (system id)   histories    bytes       settings, history                             │
//!   │  host)                 ^    │                  files, make slot                              │
//!   │                        │    │ behind us,          │ ours was left at or      timeline ended │
//!   │                        │    │ only host: wait     │ before what we hold:                    │
//!   │                        │    │                     │ switch                                  │
//!   │                        +────+─────────────────────+─────────────────────────────────────────+
//!   +─ back-off ── any failure, refused: sibling, old timeline, other bytes, ...
//! ```
//!
//! docs/TIMELINES.md says which histories are followed.
//!
//! Whatever happens here, consumers are served from the store. A failure is permanent if trying again cannot
//! help (a wrong password, another cluster); it ends the relay only before the first success, when an
//! operator is looking. Later it is reported and tried again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walrelay_proto::{HistoryEntry, Lsn, SegSize, SlotName, SystemId, TimelineHistory, TimelineId, WalError};

use super::connect::connect;
use super::connection::UpstreamConnection;
use super::error::{ConnectError, QueryError, ServerError};
use super::receive::{self, ReceiveContext, ReceiveError, StreamEnd};
use super::seam::{self, CompareError, Held};
use crate::conninfo::{ConnInfo, HostSpec, TargetSessionAttrs};
use crate::store::{
    AppendError, Identity, SaveHistoryError, Store, StoreError, TimelinePosition, UpstreamParameters, Writer,
};

/// Shortest and longest pause before another attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Limit for one attempt to connect to a host, where `connect_timeout` sets none.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How long a stop waits for the upstream to let us go.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How often an upstream that is behind us is asked how far it has come.
const BEHIND_INTERVAL: Duration = Duration::from_millis(500);
/// What is asked of the server with SHOW, for consumers that ask us, and the first major version that has it.
const SETTINGS: [(&str, u32); 15] = [
    ("server_version_num", 0),
    ("wal_level", 0),
    ("block_size", 0),
    ("wal_block_size", 0),
    ("segment_size", 0),
    ("data_checksums", 0),
    ("max_connections", 0),
    ("hot_standby", 0),
    ("wal_log_hints", 0),
    // What backup tools ask in SQL before they start a receiver.
    ("archive_timeout", 0),
    ("checkpoint_timeout", 0),
    ("synchronous_standby_names", 0),
    ("archive_mode", 0),
    ("wal_compression", 0),
    ("summarize_wal", 17),
];

/// Where and how to receive.
#[derive(Debug)]
pub struct UpstreamConfig {
    /// `--upstream`.
    pub conninfo: ConnInfo,
    /// `--slot`.
    pub slot: SlotName,
    /// `--wal-receiver-timeout`; `None` for never.
    pub wal_receiver_timeout: Option<Duration>,
    /// Told which host is followed, while one is.
    pub followed: watch::Sender<Option<HostSpec>>,
}

/// Receiving has come to an end, or cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("{}{source}", connecting_to(host, source))]
    Connect {
        /// The upstream.
        host: String,
        /// Why.
        source: ConnectError,
    },
    /// A command failed.
    #[error("{command}: {source}")]
    Command {
        /// The command.
        command: String,
        /// Why.
        source: QueryError,
    },
    /// The server takes no walsender at all.
    #[error(
        "the upstream accepts no replication connections ({0}); set wal_level = replica and max_wal_senders > 0 there"
    )]
    NoWalSenders(String),
    /// An answer makes no sense.
    #[error("unexpected answer to {command}: {problem}")]
    Answer {
        /// The command.
        command: String,
        /// What is odd.
        problem: String,
    },
    /// The data directory and the upstream do not belong together, or the directory fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A history file is no good.
    #[error("timeline {tli}: {source}")]
    History {
        /// The timeline.
        tli: TimelineId,
        /// Why.
        source: SaveHistoryError,
    },
    /// The upstream's timeline does not descend from ours.
    #[error(
        "upstream is on {theirs}, which does not descend from {ours} that is held here up to {held}; it is not followed"
    )]
    Sibling {
        /// The upstream's timeline and how it came about.
        theirs: String,
        /// Ours.
        ours: String,
        /// The end of ours.
        held: Lsn,
    },
    /// The upstream has not seen a switch that we have.
    #[error("upstream is on timeline {theirs}, behind timeline {ours} that is held here; it is not followed")]
    OldTimeline {
        /// The upstream's timeline.
        theirs: TimelineId,
        /// Ours.
        ours: TimelineId,
    },
    /// The upstream has removed WAL that we need next.
    #[error(
        "{host} no longer has the WAL from {at} on that the relay needs next ({message}); consumers are served what is held; to go on, use an upstream that has it, or stop the relay, remove pg_wal in its data directory and the slot on the upstream, and set up its consumers anew"
    )]
    WalRemoved {
        /// The upstream.
        host: String,
        /// What was asked for.
        at: Lsn,
        /// What it said.
        message: String,
    },
    /// The upstream has less of our timeline than we do, and there are others to ask.
    #[error("upstream is on timeline {tli} at {theirs}, behind {ours} that is held here")]
    Behind {
        /// The timeline.
        tli: TimelineId,
        /// The end of the upstream's WAL.
        theirs: Lsn,
        /// The end of ours.
        ours: Lsn,
    },
    /// The first new bytes of a stream are no continuation of what is here.
    #[error(
        "the upstream's WAL does not continue timeline {tli} that is held here up to {held}: {source}; the histories of the two have diverged, or it sends damaged WAL"
    )]
    Seam {
        /// The timeline.
        tli: TimelineId,
        /// The end of ours.
        held: Lsn,
        /// What the verifier says.
        source: WalError,
    },
    /// The stream broke.
    #[error("{0}")]
    Stream(String),
    /// WAL could not be taken.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl UpstreamError {
    /// Whether trying again cannot help until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            UpstreamError::Connect { source, .. } => !source.is_transient(),
            UpstreamError::NoWalSenders(_) => true,
            UpstreamError::Command { source: QueryError::Server(error), .. } => !error.is_transient(),
            UpstreamError::Store(StoreError::OtherCluster { .. } | StoreError::OtherSegSize { .. }) => true,
            UpstreamError::Command { .. }
            | UpstreamError::Answer { .. }
            | UpstreamError::Store(_)
            | UpstreamError::History { .. }
            | UpstreamError::Sibling { .. }
            | UpstreamError::OldTimeline { .. }
            | UpstreamError::WalRemoved { .. }
            | UpstreamError::Behind { .. }
            | UpstreamError::Seam { .. }
            | UpstreamError::Stream(_)
            | UpstreamError::Append(_) => false,
        }
    }

    /// Whether somebody has to act: it will not pass by itself.
    fn needs_action(&self) -> bool {
        self.is_permanent()
            || matches!(
                self,
                UpstreamError::Sibling { .. }
                    | UpstreamError::Seam { .. }
                    | UpstreamError::WalRemoved { .. }
                    | UpstreamError::Append(
                        AppendError::Diverged { .. } | AppendError::Fork { .. } | AppendError::NoSpace { .. }
                    )
            )
    }

    /// Whether the relay must not go on: the store cannot be written.
    pub fn is_fatal(&self) -> bool {
        matches!(self, UpstreamError::Append(AppendError::Io { .. } | AppendError::Failed))
    }
}

/// Receives until `stop`. Returns the error that ends the relay: one that is permanent before anything has
/// been received, or one of the store.
pub async fn follow(
    config: UpstreamConfig,
    mut writer: Writer,
    stop: CancellationToken,
) -> Result<(), UpstreamError> {
    let mut follower = Follower::new(config, stop);
    loop {
        let Err(error) = follower.round(&mut writer).await else { return Ok(()) };
        if follower.stop.is_cancelled() {
            return Ok(());
        }
        if error.is_fatal() || error.is_permanent() && !follower.connected {
            return Err(error);
        }
        let pause = follower.next_pause();
        let seconds = pause.as_secs_f32();
        match follower.config.conninfo.hosts.len() {
            // Each host's reason has been told.
            2.. => tracing::info!("no upstream to follow; trying again in {seconds:.1} s"),
            _ if error.needs_action() => tracing::error!("{error}; trying again in {seconds:.1} s"),
            _ => tracing::warn!("{error}; trying again in {seconds:.1} s"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = follower.stop.cancelled() => return Ok(()),
        }
    }
}

pub(super) struct Follower {
    config: UpstreamConfig,
    stop: CancellationToken,
    /// Whether WAL has been streamed since the process started.
    connected: bool,
    backoff: Duration,
    /// What was last said of each host since one was streamed from, so that nothing is said twice in a row.
    told: HashMap<String, String>,
}

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, Copy, Debug)]
struct Identified {
    system_id: SystemId,
    tli: TimelineId,
    xlogpos: Lsn,
}

/// Who a server says that it is. Kept once it has turned out to be one that we follow.
struct Introduced {
    identity: Identity,
    parameters: UpstreamParameters,
}

impl Follower {
    pub(super) fn new(config: UpstreamConfig, stop: CancellationToken) -> Follower {
        Follower { config, stop, connected: false, backoff: BACKOFF.0, told: HashMap::new() }
    }

    /// Tries the hosts in turn until one has been streamed from, or all have failed.
    pub(super) async fn round(&mut self, writer: &mut Writer) -> Result<(), UpstreamError> {
        let prefers = self.config.conninfo.target_session_attrs == TargetSessionAttrs::PreferStandby;
        let mut rounds = vec![self.config.conninfo.clone()];
        if prefers {
            let strict = ConnInfo { target_session_attrs: TargetSessionAttrs::Standby, ..rounds[0].clone() };
            rounds.insert(0, strict);
        }
        let mut worst: Option<UpstreamError> = None;
        for info in &rounds {
            for host in &info.hosts {
                let error = match self.host(info, host, writer).await {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                };
                if error.is_fatal() || self.stop.is_cancelled() {
                    return Err(error);
                }
                if info.hosts.len() > 1 {
                    self.tell(host, &error);
                }
                // As long as one host may come back, the failure is not permanent.
                if worst.as_ref().is_none_or(UpstreamError::is_permanent) {
                    worst = Some(error);
                }
            }
        }
        Err(worst.expect("a connection string has at least one host"))
    }

    /// Why a host of several is not followed: a warning, unless it is still the same reason.
    fn tell(&mut self, host: &HostSpec, error: &UpstreamError) {
        let (host, text) = (host.to_string(), error.to_string());
        if self.told.get(&host) == Some(&text) {
            return tracing::debug!("{host}: {text}");
        }
        match error.needs_action() {
            true => tracing::error!("{host}: {text}"),
            false => tracing::warn!("{host}: {text}"),
        }
        self.told.insert(host, text);
    }

    async fn host(
        &mut self,
        info: &ConnInfo,
        host: &HostSpec,
        writer: &mut Writer,
    ) -> Result<(), UpstreamError> {
        let deadline = tokio::time::Instant::now() + CONNECT_LIMIT;
        let attempt = async {
            let mut conn = connect(info, host, deadline).await.map_err(|error| explain(host, error))?;
            let (identified, introduced) = introduce(&mut conn, writer.store()).await?;
            Ok::<_, UpstreamError>((conn, identified, introduced))
        };
        let (mut conn, identified, introduced) = tokio::select! {
            result = attempt => result?,
            () = self.stop.cancelled() => return Ok(()),
        };
        // Streaming ends by itself when told to stop; a server that hangs between two commands does not.
        let stop = self.stop.clone();
        let overdue = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_LIMIT).await;
        };
        let result = tokio::select! {
            result = self.stream_all(&mut conn, writer, identified, &introduced, host) => result,
            () = overdue => return Ok(()),
        };
        self.config.followed.send_replace(None);
        if result.is_ok() {
            conn.close().await;
        }
        result
    }

    /// Streams one timeline after the other, until the connection is over.
    async fn stream_all(
        &mut self,
        conn: &mut UpstreamConnection,
        writer: &mut Writer,
        mut identified: Identified,
        introduced: &Introduced,
        host: &HostSpec,
    ) -> Result<(), UpstreamError> {
        if writer.position().is_none() {
            self.begin(conn, writer, identified, introduced).await?;
        }
        // Up to here our WAL is known to be this server's.
        let mut same = Lsn::INVALID;
        loop {
            writer.rewind();
            let Some(position) = writer.position() else {
                return Err(answer("START_REPLICATION", "nowhere to start"));
            };
            let theirs = UpstreamHistory::fetch(conn, identified.tli).await?;
            let next = next_timeline(&writer.store().history(), position.lsn, &theirs.history)?;
            if identified.tli == position.tli && identified.xlogpos < position.lsn {
                match self.wait_until_reached(conn, position, identified).await? {
                    Some(now) => identified = now,
                    None => return Ok(()),
                }
                continue;
            }
            let left_at = theirs.history.switch_point(position.tli).map(|(left_at, _)| left_at);
            let at = left_at.map_or(position.lsn, |left_at| left_at.min(position.lsn));
            if at > same {
                compare(conn, writer, &theirs.history, at).await?;
                same = at;
            }
            // From here on it is one that we follow: only now it may leave, and get, anything.
            writer.store().attach(introduced.identity, introduced.parameters.clone())?;
            theirs.store_all(conn, writer.store()).await?;
            self.config.followed.send_replace(Some(host.clone()));
            if let Some(next) = next {
                self.switch(writer, read_history(writer.store(), next)?).await?;
                continue;
            }
            self.ensure_slot(conn).await?;
            match self.stream(conn, writer, position, host).await? {
                StreamEnd::Stopped => return Ok(()),
                StreamEnd::ServerStopped => {
                    return Err(UpstreamError::Stream("replication terminated by upstream server".into()));
                }
                StreamEnd::Timeline { next } => {
                    let shown = next.map_or("unknown".to_owned(), |(tli, at)| format!("{tli} from {at}"));
                    tracing::info!("upstream has ended timeline {}, next is {shown}", position.tli);
                    identified = identify(conn).await?;
                    same = writer.verified().map_or(same, |verified| verified.lsn);
                    if identified.tli == position.tli {
                        // Not an end of timeline at all: the other side has just stopped.
                        return Err(UpstreamError::Stream("upstream ended the stream".into()));
                    }
                }
            }
        }
    }

    /// From START_REPLICATION to the end of the stream.
    async fn stream(
        &mut self,
        conn: &mut UpstreamConnection,
        writer: &mut Writer,
        position: TimelinePosition,
        host: &HostSpec,
    ) -> Result<StreamEnd, UpstreamError> {
        let start = position.lsn.page_start();
        let slot = &self.config.slot;
        let command = format!("START_REPLICATION SLOT \"{slot}\" {start} TIMELINE {}", position.tli);
        let failed = |source| UpstreamError::Command { command: command.clone(), source };
        conn.send_query(&command).await.map_err(failed)?;
        let mut next = None;
        let mut failure = None;
        loop {
            let message = tokio::time::timeout(CONNECT_LIMIT, conn.next_message()).await;
            let late = |_| Err(QueryError::Io(std::io::ErrorKind::TimedOut.into()));
            match message.unwrap_or_else(late).map_err(failed)? {
                (b'W', _) => break,
                // The timeline ends just where we are: its successor comes without a stream.
                (b'D', body) => next = receive::next_timeline(&body),
                (b'E', body) => failure = Some(super::message::server_error(body).unwrap_or_default()),
                (b'Z', _) => match failure {
                    Some(error) => return Err(failed(QueryError::Server(error))),
                    None => return Ok(StreamEnd::Timeline { next }),
                },
                _ => {}
            }
        }
        let announcement =
            format!("started streaming WAL from {host} at {start} on timeline {}", position.tli);
        let held = writer.verified();
        let cx = ReceiveContext {
            wal_receiver_timeout: self.config.wal_receiver_timeout,
            stop: &self.stop,
            announcement: &announcement,
        };
        self.connected = true;
        self.told.clear();
        let result = receive::receive(conn, writer, &cx).await;
        if writer.verified() != held {
            self.backoff = BACKOFF.0;
        }
        result.map_err(|error| match error {
            ReceiveError::Append(AppendError::Bad(source)) if writer.verified() == held => {
                UpstreamError::Seam { tli: position.tli, held: position.lsn, source }
            }
            ReceiveError::Append(error) => UpstreamError::Append(error),
            ReceiveError::Server(error) if error.message.ends_with("has already been removed") => {
                UpstreamError::WalRemoved { host: host.to_string(), at: start, message: error.message }
            }
            other => UpstreamError::Stream(other.to_string()),
        })
    }

    /// Goes on along `history`'s timeline, once all of the present one is durable: what a crash leaves must
    /// never begin with the new timeline and lack the end of the old.
    async fn switch(&self, writer: &mut Writer, history: TimelineHistory) -> Result<(), UpstreamError> {
        let (tli, at) = (history.tli(), history.begin());
        writer.commit();
        let written = *writer.store().written().borrow();
        let mut flushed = writer.store().flushed();
        tokio::select! {
            _ = flushed.wait_for(|flushed| *flushed == written) => {}
            _ = writer.store().failed() => return Err(AppendError::Failed.into()),
        }
        let held = writer.position();
        writer.switch_timeline(history)?;
        tracing::info!("switched to timeline {tli} at {at}");
        if let Some(held) = held.filter(|held| held.lsn > at) {
            tracing::warn!(
                "timeline {} was held up to {}, {} bytes beyond the switch point; its files stay for as long as WAL of that age is kept",
                held.tli,
                held.lsn,
                held.lsn.since(at)
            );
        }
        Ok(())
    }

    /// Finds or makes our slot. Where its WAL begins, if the server can tell.
    async fn ensure_slot(
        &self,
        conn: &mut UpstreamConnection,
    ) -> Result<Option<(Lsn, TimelineId)>, UpstreamError> {
        let slot = &self.config.slot;
        if let Some(reserved) = read_slot(conn, slot).await? {
            return Ok(reserved);
        }
        let parenthesised = major_version(conn) >= 15;
        let option = if parenthesised { "PHYSICAL (RESERVE_WAL)" } else { "PHYSICAL RESERVE_WAL" };
        let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" {option}");
        match conn.query(&command).await {
            Ok(_) => tracing::info!("created replication slot \"{slot}\" on the upstream"),
            Err(QueryError::Server(error)) if error.sqlstate == "42710" => {}
            Err(source) => return Err(UpstreamError::Command { command, source }),
        }
        Ok(read_slot(conn, slot).await?.flatten())
    }

    /// Decides where an empty data directory begins: where the slot's WAL does.
    async fn begin(
        &self,
        conn: &mut UpstreamConnection,
        writer: &mut Writer,
        identified: Identified,
        introduced: &Introduced,
    ) -> Result<(), UpstreamError> {
        let identity = introduced.identity;
        let reserved = self.ensure_slot(conn).await?;
        let (at, tli) = reserved.unwrap_or((identified.xlogpos, identified.tli));
        writer.store().attach(identity, introduced.parameters.clone())?;
        let theirs = UpstreamHistory::fetch(conn, identified.tli).await?;
        theirs.store_all(conn, writer.store()).await?;
        writer.begin(identity, read_history(writer.store(), tli)?, at);
        tracing::info!(
            "the data directory is empty, starting at {} on timeline {tli}",
            at.seg_start(identity.seg_size)
        );
        Ok(())
    }

    /// Waits while the upstream is behind us on our timeline; `None` when we are to stop. Where there are other
    /// hosts, that is an error: one of them may have what we need.
    async fn wait_until_reached(
        &self,
        conn: &mut UpstreamConnection,
        position: TimelinePosition,
        mut identified: Identified,
    ) -> Result<Option<Identified>, UpstreamError> {
        let TimelinePosition { tli, lsn: ours } = position;
        if self.config.conninfo.hosts.len() > 1 {
            return Err(UpstreamError::Behind { tli, theirs: identified.xlogpos, ours });
        }
        tracing::warn!(
            "requested start point {ours} on timeline {tli} is ahead of the upstream's flush position {}, waiting",
            identified.xlogpos
        );
        while identified.tli == tli && identified.xlogpos < ours {
            tokio::select! {
                () = tokio::time::sleep(BEHIND_INTERVAL) => {}
                () = self.stop.cancelled() => return Ok(None),
            }
            identified = identify(conn).await?;
        }
        Ok(Some(identified))
    }

    /// The pause before the next attempt: doubling, with jitter, so that relays do not come back in step.
    fn next_pause(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
        let random = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
        pause.mul_f64(0.5 + random / 2.0)
    }
}

/// Errors of a socket say where they happened; what the server says does not.
fn connecting_to(host: &str, error: &ConnectError) -> String {
    match error {
        ConnectError::Resolve { .. }
        | ConnectError::Socket { .. }
        | ConnectError::Timeout { .. }
        | ConnectError::Both { .. } => String::new(),
        _ => format!("connection to {host} failed: "),
    }
}

fn explain(host: &HostSpec, error: ConnectError) -> UpstreamError {
    match &error {
        ConnectError::Server(ServerError { sqlstate, message, .. })
            if sqlstate == "53300" && message.contains("(currently 0)") =>
        {
            UpstreamError::NoWalSenders(message.clone())
        }
        _ => UpstreamError::Connect { host: host.to_string(), source: error },
    }
}

fn answer(command: &str, problem: impl Into<String>) -> UpstreamError {
    UpstreamError::Answer { command: command.to_owned(), problem: problem.into() }
}

/// Runs a command that answers with one row; its values as text.
async fn row(conn: &mut UpstreamConnection, command: &str) -> Result<Vec<Option<String>>, UpstreamError> {
    let failed = |source| UpstreamError::Command { command: command.to_owned(), source };
    let result = conn.query(command).await.map_err(failed)?;
    let row = result.rows.into_iter().next().ok_or_else(|| answer(command, "no row"))?;
    let text = |value: bytes::Bytes| String::from_utf8_lossy(&value).into_owned();
    Ok(row.into_iter().map(|value| value.map(text)).collect())
}

async fn identify(conn: &mut UpstreamConnection) -> Result<Identified, UpstreamError> {
    let command = "IDENTIFY_SYSTEM";
    let row = row(conn, command).await?;
    let field = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
    let parsed = (|| {
        Some(Identified {
            system_id: field(0).parse().ok()?,
            tli: TimelineId::new(field(1).parse().ok()?)?,
            xlogpos: field(2).parse().ok()?,
        })
    })();
    parsed.ok_or_else(|| answer(command, format!("{row:?}")))
}

/// Learns who the upstream is, and makes sure that the data directory is this cluster's.
async fn introduce(
    conn: &mut UpstreamConnection,
    store: &Store,
) -> Result<(Identified, Introduced), UpstreamError> {
    let identified = identify(conn).await?;
    let command = "SHOW wal_segment_size";
    let shown = row(conn, command).await?.into_iter().next().flatten().unwrap_or_default();
    let seg_size = SegSize::from_show(&shown).map_err(|error| answer(command, error.to_string()))?;
    let identity = Identity { system_id: identified.system_id, seg_size };
    store.check(identity)?;
    let mut parameters =
        UpstreamParameters { status: conn.parameters().to_vec(), ..UpstreamParameters::default() };
    let version = major_version(conn);
    for (name, _) in SETTINGS.into_iter().filter(|(_, first)| version >= *first) {
        match row(conn, &format!("SHOW {name}")).await {
            Ok(mut values) => {
                let value = values.pop().flatten().unwrap_or_default();
                parameters.settings.insert(name.to_owned(), value);
            }
            // Not every server has all of them or shows them to us.
            Err(UpstreamError::Command { source, .. }) if source.is_recoverable() => {}
            Err(error) => return Err(error),
        }
    }
    Ok((identified, Introduced { identity, parameters }))
}

fn major_version(conn: &UpstreamConnection) -> u32 {
    let version = conn.parameter("server_version").unwrap_or_default();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// `None` if the slot does not exist; inside, where its WAL begins, if the server can tell.
async fn read_slot(
    conn: &mut UpstreamConnection,
    slot: &SlotName,
) -> Result<Option<Option<(Lsn, TimelineId)>>, UpstreamError> {
    if major_version(conn) < 15 {
        // There is no way to ask; CREATE_REPLICATION_SLOT will tell whether it exists.
        return Ok(None);
    }
    let row = row(conn, &format!("READ_REPLICATION_SLOT \"{slot}\"")).await?;
    let field = |at: usize| row.get(at).and_then(Option::as_deref);
    if field(0).is_none() {
        return Ok(None);
    }
    let reserved = field(1)
        .and_then(|lsn| lsn.parse().ok())
        .zip(field(2).and_then(|tli| tli.parse().ok()).and_then(TimelineId::new));
    Ok(Some(reserved))
}

/// The history of the upstream's timeline, and the file it was read from.
struct UpstreamHistory {
    history: TimelineHistory,
    content: Vec<u8>,
}

impl UpstreamHistory {
    async fn fetch(conn: &mut UpstreamConnection, tli: TimelineId) -> Result<Self, UpstreamError> {
        if tli == TimelineId::FIRST {
            return Ok(UpstreamHistory { history: TimelineHistory::first(), content: Vec::new() });
        }
        let content = fetch_history(conn, tli).await?;
        let content = content.ok_or_else(|| answer("TIMELINE_HISTORY", "the current timeline has none"))?;
        let history = parse_history(tli, &content)?;
        Ok(UpstreamHistory { history, content })
    }

    /// Stores the history files of all numbers up to this timeline's that are not here yet.
    ///
    /// Standbys ask for every number, so all that the upstream has are taken. It need not have those of
    /// timelines outside its own history; one inside that is missing is a beginning of the newest.
    async fn store_all(&self, conn: &mut UpstreamConnection, store: &Store) -> Result<(), UpstreamError> {
        for tli in (2..=self.history.tli().as_u32()).filter_map(TimelineId::new) {
            let ancestor = self.history.contains(tli).then(|| lines_before(&self.content, tli));
            let expected = ancestor.as_deref().map(|lines| parse_history(tli, lines)).transpose()?;
            let ours = store.history_file(tli).map_err(|source| history_error(tli, source.into()))?;
            let usable = |ours: &Vec<u8>| {
                let Some(expected) = &expected else { return true };
                TimelineHistory::parse(tli, ours).as_ref() == Ok(expected)
            };
            if ours.as_ref().is_some_and(usable) {
                continue;
            }
            let sent = if tli == self.history.tli() { None } else { fetch_history(conn, tli).await? };
            if let Some(content) = sent.filter(usable).or(ancestor) {
                store.save_history_file(tli, &content).map_err(|source| history_error(tli, source))?;
                tracing::info!("fetched timeline history file for timeline {tli}");
            }
        }
        Ok(())
    }
}

/// The lines of a history file before the one about `tli`: what was known when `tli` began.
fn lines_before(content: &[u8], tli: TimelineId) -> Vec<u8> {
    let number = tli.to_string();
    let about = |line: &[u8]| String::from_utf8_lossy(line).split_whitespace().next() == Some(&number);
    let lines = content.split_inclusive(|&byte| byte == b'\n');
    lines.take_while(|line| !about(line)).flatten().copied().collect()
}

/// A timeline's history file; `None` if the upstream has none.
async fn fetch_history(
    conn: &mut UpstreamConnection,
    tli: TimelineId,
) -> Result<Option<Vec<u8>>, UpstreamError> {
    let command = format!("TIMELINE_HISTORY {tli}");
    let result = match conn.query(&command).await {
        Ok(result) => result,
        Err(QueryError::Server(error)) if error.sqlstate == "58P01" => return Ok(None),
        Err(source) => return Err(UpstreamError::Command { command, source }),
    };
    let row = result.rows.first();
    let name = row.and_then(|row| row.first()?.as_deref());
    let content = row.and_then(|row| row.get(1)?.clone());
    if name != Some(tli.history_file_name().as_bytes()) {
        return Err(answer(&command, "unexpected file name"));
    }
    content.map(|content| Some(content.to_vec())).ok_or_else(|| answer(&command, "no content"))
}

fn parse_history(tli: TimelineId, content: &[u8]) -> Result<TimelineHistory, UpstreamError> {
    TimelineHistory::parse(tli, content).map_err(|source| history_error(tli, source.into()))
}

fn history_error(tli: TimelineId, source: SaveHistoryError) -> UpstreamError {
    UpstreamError::History { tli, source }
}

fn read_history(store: &Store, tli: TimelineId) -> Result<TimelineHistory, UpstreamError> {
    if tli == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let content = store.history_file(tli).map_err(|source| history_error(tli, source.into()))?;
    parse_history(tli, &content.unwrap_or_default())
}

/// Whether an upstream can be followed by somebody who holds `ours` up to `held`: the timeline to switch to
/// now, because ours was left at or before that, or `None` to stream ours on.
fn next_timeline(
    ours: &TimelineHistory,
    held: Lsn,
    theirs: &TimelineHistory,
) -> Result<Option<TimelineId>, UpstreamError> {
    if theirs.tli() < ours.tli() {
        return Err(UpstreamError::OldTimeline { theirs: theirs.tli(), ours: ours.tli() });
    }
    // Numbers prove nothing: two promotions may choose the same. Both must have come the same way.
    let way = ours.ancestors();
    if !theirs.contains(ours.tli()) || theirs.ancestors().get(..way.len()) != Some(way) {
        return Err(UpstreamError::Sibling { theirs: describe(theirs), ours: describe(ours), held });
    }
    Ok(theirs.switch_point(ours.tli()).filter(|&(left_at, _)| left_at <= held).map(|(_, next)| next))
}

/// `timeline 3 (1 until 0/3000060, 2 until 0/4000028)`
fn describe(history: &TimelineHistory) -> String {
    let ancestor = |entry: &HistoryEntry| format!("{} until {}", entry.tli, entry.end);
    let way: Vec<_> = history.ancestors().iter().map(ancestor).collect();
    match way.is_empty() {
        true => format!("timeline {}", history.tli()),
        false => format!("timeline {} ({})", history.tli(), way.join(", ")),
    }
}

/// Compares what is held right before `at` with the WAL of an upstream that we are to continue with there.
async fn compare(
    conn: &mut UpstreamConnection,
    writer: &Writer,
    theirs: &TimelineHistory,
    at: Lsn,
) -> Result<(), UpstreamError> {
    let store = writer.store();
    let held = match Held::before(store, at) {
        Ok(held) => held,
        // Nothing that we hold would be WAL of both: its history may be ours, but nothing here shows it.
        Err(error) if writer.position().is_some_and(|position| at < position.lsn) => {
            let (tli, reason) = (theirs.timeline_at(at), error.to_string());
            return Err(AppendError::Fork { tli, at, reason }.into());
        }
        // We hold nothing yet.
        Err(_) => return Ok(()),
    };
    let at_boundary = store.identity().is_some_and(|identity| at.offset_in_seg(identity.seg_size) == 0);
    let tli = seam::timeline_before(theirs, at, at_boundary);
    held.compare(conn, tli).await.map_err(|error| match error {
        CompareError::Command { command, source } => UpstreamError::Command { command, source },
        CompareError::Diverged(error) => UpstreamError::Append(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_walsenders_is_explained() {
        let error = ServerError {
            sqlstate: "53300".into(),
            message: "number of requested standby connections exceeds max_wal_senders (currently 0)".into(),
            ..ServerError::default()
        };
        let info = ConnInfo::parse("host=a", &crate::conninfo::Environment::of_user("x")).unwrap();
        let explained = explain(&info.hosts[0], ConnectError::Server(error));
        assert!(explained.is_permanent() && explained.to_string().contains("wal_level = replica"));
    }

    #[test]
    fn a_pause_grows_to_its_limit_and_never_beyond() {
        let config = UpstreamConfig {
            conninfo: ConnInfo::parse("host=a", &crate::conninfo::Environment::of_user("x")).unwrap(),
            slot: "s".parse().unwrap(),
            wal_receiver_timeout: None,
            followed: watch::Sender::new(None),
        };
        let mut follower = Follower::new(config, CancellationToken::new());
        let pauses: Vec<_> = (0..12).map(|_| follower.next_pause()).collect();
        assert!(pauses[0] >= BACKOFF.0 / 2 && pauses[0] <= BACKOFF.0);
        assert!(pauses[11] >= BACKOFF.1 / 2 && pauses[11] <= BACKOFF.1);
    }

    fn history(tli: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        let lines: String =
            ancestors.iter().map(|(tli, end)| format!("{tli}\t0/{end:X}\treason\n\n")).collect();
        TimelineHistory::parse(TimelineId::new(tli).unwrap(), lines.as_bytes()).unwrap()
    }

    #[test]
    fn who_is_followed() {
        let check = |ours: &TimelineHistory, held: u64, theirs: &TimelineHistory, expected: &str| {
            let outcome = match next_timeline(ours, Lsn::new(held), theirs) {
                Ok(Some(next)) => format!("switch to {next}"),
                Ok(None) => "stream".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(outcome.starts_with(expected), "{ours:?} {held:X} {theirs:?}: {outcome}");
        };
        let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x100)]));
        check(&one, 0x100, &one, "stream");
        check(&one, 0xF8, &two, "stream");
        check(&one, 0x100, &two, "switch to 2");
        check(&one, 0x200, &two, "switch to 2");
        check(&two, 0x200, &two, "stream");
        check(&two, 0x200, &one, "upstream is on timeline 1, behind timeline 2");
        // Generations skipped: one step at a time.
        let four = history(4, &[(1, 0x100), (2, 0x300)]);
        check(&one, 0x100, &four, "switch to 2");
        check(&two, 0x200, &four, "stream");
        check(&two, 0x400, &four, "switch to 4");
        // Siblings, also those of the same number, and those that hide behind a later one.
        check(&two, 0x200, &history(3, &[(1, 0x80)]), "upstream is on timeline 3 (1 until 0/80), which");
        check(&two, 0x200, &history(2, &[(1, 0x80)]), "upstream is on timeline 2 (1 until 0/80), which");
        check(&two, 0x200, &history(3, &[(1, 0x80), (2, 0x300)]), "upstream is on timeline 3 (1 until");
    }

    #[test]
    fn an_ancestors_file_is_the_beginning_of_its_descendants() {
        let content = b"1\t0/100\tx\n\n2\t0/300\ty 4 z\n\n4\t0/400\tz\n";
        let lines = |tli| lines_before(content, TimelineId::new(tli).unwrap());
        assert_eq!(lines(2), b"1\t0/100\tx\n\n");
        assert_eq!(lines(4), b"1\t0/100\tx\n\n2\t0/300\ty 4 z\n\n");
        assert_eq!(lines(7), content);
    }
}
