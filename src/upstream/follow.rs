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
use walrelay_proto::{Lsn, SlotName, TimelineHistory, TimelineId};

use super::connect::connect;
use super::connection::UpstreamConnection;
use super::error::QueryError;
use super::failure::{UpstreamError, explain};
use super::format;
use super::histories::{UpstreamHistory, next_timeline, read_history};
use super::introduce::{Identified, Introduced, answer, identify, introduce, major_version, read_slot};
use super::receive::{self, ReceiveContext, ReceiveError, StreamEnd};
use super::seam::{self, CompareError, Held};
use crate::conninfo::{ConnInfo, HostSpec, TargetSessionAttrs};
use crate::store::{AppendError, TimelinePosition, Writer};

/// Shortest and longest pause before another attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Limit for one attempt to connect to a host, where `connect_timeout` sets none.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How long a stop waits for the upstream to let us go.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How often an upstream that is behind us is asked how far it has come.
const BEHIND_INTERVAL: Duration = Duration::from_millis(500);
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
            _ if error.is_told() => tracing::debug!("{error}; trying again in {seconds:.1} s"),
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
        if self.told.get(&host) == Some(&text) || error.is_told() {
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
            let (identified, mut introduced) = introduce(&mut conn, writer.store()).await?;
            format::learn(&mut conn, writer, identified, &mut introduced).await?;
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
}
