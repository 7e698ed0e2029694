//! Follows the cluster: finds a server to receive from, receives, and begins again when that ends.
//!
//! ```text
//!             +--> connect ──> identify ──> choose ──> START_REPLICATION ──> receive
//!             |    (each host) (attach,     (timeline,        ^                 │
//!             |                 settings)    slot, position)  │  timeline ended │
//!   back-off  |                                               +── switch <──────┤
//!             +------------- any failure <──────────────────────────────────────+
//! ```
//!
//! Whatever happens here, consumers are served from the store. A failure is permanent if trying again cannot
//! help (a wrong password, another cluster); it ends the relay only before the first success, when an
//! operator is looking. Later it is reported and tried again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use walrelay_proto::{Lsn, SegSize, SlotName, SystemId, TimelineHistory, TimelineId};

use super::connect::connect;
use super::connection::UpstreamConnection;
use super::error::{ConnectError, QueryError, ServerError};
use super::receive::{self, ReceiveContext, ReceiveError, StreamEnd};
use crate::conninfo::{ConnInfo, HostSpec, TargetSessionAttrs};
use crate::store::{
    AppendError, Identity, SaveHistoryError, Store, StoreError, TimelinePosition, UpstreamParameters, Writer,
};

/// Shortest and longest pause before another attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Limit for one attempt to connect to a host, where `connect_timeout` sets none.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How often an upstream that is behind us is asked how far it has come.
const BEHIND_INTERVAL: Duration = Duration::from_millis(500);
/// WAL that is fetched again at each connection and compared with ours, bytes at most.
const OVERLAP: u64 = 1 << 20;
/// What is asked of the server with SHOW, for consumers that ask us.
const SETTINGS: [&str; 9] = [
    "server_version_num",
    "wal_level",
    "block_size",
    "wal_block_size",
    "segment_size",
    "data_checksums",
    "max_connections",
    "hot_standby",
    "wal_log_hints",
];

/// Where and how to receive.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// `--upstream`.
    pub conninfo: ConnInfo,
    /// `--slot`.
    pub slot: SlotName,
    /// `--wal-receiver-timeout`; `None` for never.
    pub wal_receiver_timeout: Option<Duration>,
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
        "upstream is on timeline {theirs}, whose history does not contain timeline {ours} that is held here up to {held}; the two have diverged"
    )]
    Sibling {
        /// The upstream's timeline.
        theirs: TimelineId,
        /// Ours.
        ours: TimelineId,
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
                    | UpstreamError::WalRemoved { .. }
                    | UpstreamError::Append(AppendError::Diverged { .. } | AppendError::NoSpace { .. })
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
    let mut follower = Follower { config, stop, connected: false, backoff: BACKOFF.0 };
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
        match error.needs_action() {
            true => tracing::error!("{error}; trying again in {seconds:.1} s"),
            false => tracing::warn!("{error}; trying again in {seconds:.1} s"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = follower.stop.cancelled() => return Ok(()),
        }
    }
}

struct Follower {
    config: UpstreamConfig,
    stop: CancellationToken,
    /// Whether WAL has been streamed since the process started.
    connected: bool,
    backoff: Duration,
}

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, Copy, Debug)]
struct Identified {
    system_id: SystemId,
    tli: TimelineId,
    xlogpos: Lsn,
}

impl Follower {
    /// Tries the hosts in turn until one has been streamed from, or all have failed.
    async fn round(&mut self, writer: &mut Writer) -> Result<(), UpstreamError> {
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
                    tracing::info!("{host}: {error}");
                }
                // As long as one host may come back, the failure is not permanent.
                if worst.as_ref().is_none_or(UpstreamError::is_permanent) {
                    worst = Some(error);
                }
            }
        }
        Err(worst.expect("a connection string has at least one host"))
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
            let identified = attach(&mut conn, writer.store()).await?;
            Ok::<_, UpstreamError>((conn, identified))
        };
        let (mut conn, identified) = tokio::select! {
            result = attempt => result?,
            () = self.stop.cancelled() => return Ok(()),
        };
        let result = self.stream_all(&mut conn, writer, identified, host).await;
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
        host: &HostSpec,
    ) -> Result<(), UpstreamError> {
        self.ensure_slot(conn, writer, identified).await?;
        loop {
            writer.rewind();
            fetch_histories(conn, writer.store(), identified.tli).await?;
            let Some(position) = writer.position() else {
                return Err(answer("START_REPLICATION", "nowhere to start"));
            };
            if let Some(next) = next_timeline_for(writer.store(), position, identified.tli)? {
                self.switch(writer, next)?;
                continue;
            }
            if !self.wait_until_reached(conn, position, &mut identified).await? {
                return Ok(());
            }
            match self.stream(conn, writer, position, host).await? {
                StreamEnd::Stopped => return Ok(()),
                StreamEnd::ServerStopped => {
                    return Err(UpstreamError::Stream("replication terminated by upstream server".into()));
                }
                StreamEnd::Timeline { next } => {
                    let shown = next.map_or("unknown".to_owned(), |(tli, at)| format!("{tli} from {at}"));
                    tracing::info!("upstream has ended timeline {}, next is {shown}", position.tli);
                    identified = identify(conn).await?;
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
        let start = start_position(writer.store(), position.lsn);
        let slot = &self.config.slot;
        let command = format!("START_REPLICATION SLOT \"{slot}\" {start} TIMELINE {}", position.tli);
        let failed = |source| UpstreamError::Command { command: command.clone(), source };
        conn.send_query(&command).await.map_err(failed)?;
        let mut next = None;
        let mut failure = None;
        loop {
            match conn.next_message().await.map_err(failed)? {
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
        let before = writer.position();
        let cx = ReceiveContext {
            wal_receiver_timeout: self.config.wal_receiver_timeout,
            stop: &self.stop,
            announcement: &announcement,
        };
        self.connected = true;
        let result = receive::receive(conn, writer, &cx).await;
        if writer.position() != before {
            self.backoff = BACKOFF.0;
        }
        result.map_err(|error| match error {
            ReceiveError::Append(error) => UpstreamError::Append(error),
            ReceiveError::Server(error) if error.message.ends_with("has already been removed") => {
                UpstreamError::WalRemoved { host: host.to_string(), at: start, message: error.message }
            }
            other => UpstreamError::Stream(other.to_string()),
        })
    }

    fn switch(&self, writer: &mut Writer, history: TimelineHistory) -> Result<(), UpstreamError> {
        let (tli, at) = (history.tli(), history.begin());
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

    /// Finds or makes our slot; on an empty data directory also decides where to begin.
    async fn ensure_slot(
        &self,
        conn: &mut UpstreamConnection,
        writer: &mut Writer,
        identified: Identified,
    ) -> Result<(), UpstreamError> {
        let slot = &self.config.slot;
        let mut reserved = read_slot(conn, slot).await?;
        if reserved.is_none() {
            let parenthesised = major_version(conn) >= 15;
            let option = if parenthesised { "PHYSICAL (RESERVE_WAL)" } else { "PHYSICAL RESERVE_WAL" };
            let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" {option}");
            match conn.query(&command).await {
                Ok(_) => tracing::info!("created replication slot \"{slot}\" on the upstream"),
                Err(QueryError::Server(error)) if error.sqlstate == "42710" => {}
                Err(source) => return Err(UpstreamError::Command { command, source }),
            }
            reserved = read_slot(conn, slot).await?;
        }
        if writer.position().is_some() {
            return Ok(());
        }
        let (restart, tli) = reserved.flatten().unwrap_or((identified.xlogpos, identified.tli));
        self.begin(conn, writer, identified, restart, tli).await
    }

    async fn begin(
        &self,
        conn: &mut UpstreamConnection,
        writer: &mut Writer,
        identified: Identified,
        at: Lsn,
        tli: TimelineId,
    ) -> Result<(), UpstreamError> {
        fetch_histories(conn, writer.store(), identified.tli).await?;
        let Some(identity) = writer.store().identity() else {
            return Err(answer("IDENTIFY_SYSTEM", "no identity"));
        };
        writer.begin(identity, read_history(writer.store(), tli)?, at);
        tracing::info!(
            "the data directory is empty, starting at {} on timeline {tli}",
            at.seg_start(identity.seg_size)
        );
        Ok(())
    }

    /// Waits while the upstream is behind us on our timeline; false when we are to stop.
    async fn wait_until_reached(
        &self,
        conn: &mut UpstreamConnection,
        position: TimelinePosition,
        identified: &mut Identified,
    ) -> Result<bool, UpstreamError> {
        let mut said = false;
        while identified.tli == position.tli && identified.xlogpos < position.lsn {
            if !said {
                tracing::warn!(
                    "requested start point {} on timeline {} is ahead of the upstream's flush position {}, waiting",
                    position.lsn,
                    position.tli,
                    identified.xlogpos
                );
                said = true;
            }
            tokio::select! {
                () = tokio::time::sleep(BEHIND_INTERVAL) => {}
                () = self.stop.cancelled() => return Ok(false),
            }
            *identified = identify(conn).await?;
        }
        Ok(true)
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
async fn attach(conn: &mut UpstreamConnection, store: &Store) -> Result<Identified, UpstreamError> {
    let identified = identify(conn).await?;
    let command = "SHOW wal_segment_size";
    let shown = row(conn, command).await?.into_iter().next().flatten().unwrap_or_default();
    let seg_size = SegSize::from_show(&shown).map_err(|error| answer(command, error.to_string()))?;
    let mut parameters =
        UpstreamParameters { status: conn.parameters().to_vec(), ..UpstreamParameters::default() };
    for name in SETTINGS {
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
    store.attach(Identity { system_id: identified.system_id, seg_size }, parameters)?;
    Ok(identified)
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

/// Fetches and stores the history files up to `newest` that are not here yet.
///
/// Standbys ask for every number, so all that the upstream has are taken; it need not have those of
/// timelines outside its own history.
async fn fetch_histories(
    conn: &mut UpstreamConnection,
    store: &Store,
    newest: TimelineId,
) -> Result<(), UpstreamError> {
    for number in 2..=newest.as_u32() {
        let Some(tli) = TimelineId::new(number) else { continue };
        let ours = store.history_file(tli).map_err(|source| history_error(tli, source.into()))?;
        if ours.is_some() {
            continue;
        }
        let command = format!("TIMELINE_HISTORY {tli}");
        let result = match conn.query(&command).await {
            Ok(result) => result,
            Err(QueryError::Server(error)) if error.sqlstate == "58P01" && tli != newest => continue,
            Err(source) => return Err(UpstreamError::Command { command, source }),
        };
        let row = result.rows.first();
        let name = row.and_then(|row| row.first()?.as_deref());
        let content = row.and_then(|row| row.get(1)?.clone());
        if name != Some(tli.history_file_name().as_bytes()) {
            return Err(answer(&command, "unexpected file name"));
        }
        let content = content.ok_or_else(|| answer(&command, "no content"))?;
        store.save_history_file(tli, &content).map_err(|source| history_error(tli, source))?;
        tracing::info!("fetched timeline history file for timeline {tli}");
    }
    Ok(())
}

fn history_error(tli: TimelineId, source: SaveHistoryError) -> UpstreamError {
    UpstreamError::History { tli, source }
}

fn read_history(store: &Store, tli: TimelineId) -> Result<TimelineHistory, UpstreamError> {
    if tli == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let content = store.history_file(tli).map_err(|source| history_error(tli, source.into()))?;
    let parsed = TimelineHistory::parse(tli, &content.unwrap_or_default());
    parsed.map_err(|source| history_error(tli, source.into()))
}

/// What to do about the timeline: `None` to stream ours on, or the one to switch to now, because ours
/// reaches to the switch point or beyond.
fn next_timeline_for(
    store: &Store,
    position: TimelinePosition,
    theirs: TimelineId,
) -> Result<Option<TimelineHistory>, UpstreamError> {
    let ours = position.tli;
    if theirs == ours {
        return Ok(None);
    }
    if theirs < ours {
        return Err(UpstreamError::OldTimeline { theirs, ours });
    }
    let history = read_history(store, theirs)?;
    let Some((left_at, next)) = history.switch_point(ours) else {
        return Err(UpstreamError::Sibling { theirs, ours, held: position.lsn });
    };
    if position.lsn < left_at {
        return Ok(None);
    }
    read_history(store, next).map(Some)
}

/// A little of what we have is fetched again and compared, within the segment, which the upstream still has.
fn start_position(store: &Store, position: Lsn) -> Lsn {
    let Some(identity) = store.identity() else { return position };
    let oldest = position.seg_start(identity.seg_size);
    position.rewind(OVERLAP).page_start().max(oldest)
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
        let mut follower = Follower {
            config: UpstreamConfig {
                conninfo: ConnInfo::parse("host=a", &crate::conninfo::Environment::of_user("x")).unwrap(),
                slot: "s".parse().unwrap(),
                wal_receiver_timeout: None,
            },
            stop: CancellationToken::new(),
            connected: false,
            backoff: BACKOFF.0,
        };
        let pauses: Vec<_> = (0..12).map(|_| follower.next_pause()).collect();
        assert!(pauses[0] >= BACKOFF.0 / 2 && pauses[0] <= BACKOFF.0);
        assert!(pauses[11] >= BACKOFF.1 / 2 && pauses[11] <= BACKOFF.1);
    }
}
