//! Follows the cluster: finds a server to receive from, receives, and begins again when that ends.
//!
//! ```text
//! connect ──> introduce ──> compare ──────────> compare ──> accept: keep its ──> START_REPLICATION ──> receive
//!   ^  (each  (system id,   histories ──┐       bytes       settings, history                             │
//!   │  host)   settings,     ^    │     │                   files, make slot                              │
//!   │          slot)         │    │     │ our slot is there:      │ ours was left at or    timeline ended │
//!   │                        │    │     │ bytes and acceptance    │ before what we hold:                  │
//!   │             behind us, │    │     │ are the stream's first  │ switch                                │
//!   │        only host: wait │    │     └ part                    │                                       │
//!   │                        +────+───────────────────────────────+───────────────────────────────────────+
//!   +─ back-off ── any failure, refused: sibling, old timeline, other bytes, ...
//! ```
//!
//! docs/TIMELINES.md says which histories are followed.
//!
//! Whatever happens here, consumers are served from the store. A failure is permanent if trying again cannot
//! help (a wrong password, another cluster); it ends the relay only while its data directory is empty, when an
//! operator is looking and nobody loses anything. A relay that holds WAL may hold the only copy: it serves that, says
//! what is wrong, and tries again.
//!
//! There is no limit on how long anything takes, for the line decides that; only on silence.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use walrelay_proto::{Lsn, SlotName, TimelineHistory, TimelineId};

use super::failure::{UpstreamError, explain};
use super::followed::Following;
use super::format;
use super::histories::{Course, Standing, UpstreamHistory, read_history};
use super::introduce::{
    Identified, Introduced, SHUTDOWN_TIMEOUT, Slot, answer, identify, introduce, major_version, read_slot,
    slot_in_sql,
};
use super::outage::Outages;
use super::receive::{self, ReceiveContext, ReceiveError, StreamEnd};
use super::refill::refill;
use super::seam::{self, CompareError, Compared, Entry, Held};
use crate::conninfo::{ConnInfo, HostSpec, TargetSessionAttrs};
use crate::pg::{QueryError, UpstreamConnection, connect};
use crate::store::{AppendError, HeldTimeline, Identity, ReadError, StoreError, TimelinePosition, Writer};

/// Shortest and longest pause before another attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Limit for one attempt to connect to a host, where `connect_timeout` sets none.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How often an upstream that is behind us is asked how far it has come.
const BEHIND_INTERVAL: Duration = Duration::from_millis(500);
/// Time to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// A stream that has lasted that long, or brought anything, ends an outage.
const STEADY: Duration = Duration::from_secs(10);
/// Commits are counted in so many bytes of WAL that is left; beyond that it would hold up what comes.
const MOST_COUNTED: u64 = 1 << 30;

/// Where and how to receive.
#[derive(Debug)]
pub struct UpstreamConfig {
    /// `--upstream`.
    pub conninfo: ConnInfo,
    /// `--slot`.
    pub slot: SlotName,
    /// `--auth-dbname`: where a server is asked in SQL what it does not tell otherwise.
    pub dbname: String,
    /// `--wal-receiver-timeout`; `None` for never.
    pub wal_receiver_timeout: Option<Duration>,
    /// `--shutdown-timeout`: how long a stop waits for the last WAL to be synced, and for the upstream to take its
    /// confirmation.
    pub shutdown_timeout: Duration,
    /// Told which host is followed, while one is; tells that somebody waits for one.
    pub followed: Following,
}

/// Receives until `stop`. Returns the error that ends the relay: one that is permanent while the data directory is
/// empty, or one of the store.
pub async fn follow(
    config: UpstreamConfig,
    writer: Writer,
    stop: CancellationToken,
) -> Result<(), UpstreamError> {
    let (info, store) = (config.conninfo.clone(), writer.store().clone());
    let followed = config.followed.subscribe();
    tokio::select! {
        result = follow_on(config, writer, stop) => result,
        () = refill(&info, &store, followed) => Ok(()),
    }
}

async fn follow_on(
    config: UpstreamConfig,
    mut writer: Writer,
    stop: CancellationToken,
) -> Result<(), UpstreamError> {
    let mut follower = Follower::new(config, stop);
    loop {
        let covered = follower.config.followed.begin();
        let Err(error) = follower.round(&mut writer).await else { return Ok(()) };
        if follower.stop.is_cancelled() {
            return Ok(());
        }
        let empty = writer.position().is_none() && !follower.connected;
        if error.is_fatal() || error.is_permanent() && empty {
            return Err(error);
        }
        let pause = follower.next_pause();
        match follower.config.conninfo.hosts.len() {
            // Each host's reason has been told.
            2.. => follower.outages.tell_all(pause),
            _ => follower.outages.tell(&error, pause),
        }
        let followed = &follower.config.followed;
        followed.fail(covered);
        // A client that waits for the server ends the pause, but not before a part of it is over.
        let woken = async {
            tokio::time::sleep(least(pause)).await;
            followed.asked_beyond(covered).await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = woken => {}
            () = follower.stop.cancelled() => return Ok(()),
        }
    }
}

/// What is left of a pause when somebody waits for the server: the longer it has been away, the more.
fn least(pause: Duration) -> Duration {
    (pause / 4).max(BACKOFF.0).min(pause)
}

pub(super) struct Follower {
    config: UpstreamConfig,
    stop: CancellationToken,
    /// Whether WAL has been streamed since the process started.
    connected: bool,
    backoff: Duration,
    outages: Outages,
    /// The server's limit for our last confirmation, as far as it was told.
    impatience: Option<String>,
    /// What the last connection found out, before it was given up for the sake of it.
    compared: Option<Proof>,
}

/// A server's WAL was compared with ours and found the same.
#[derive(Clone, PartialEq, Eq)]
struct Proof {
    host: String,
    identity: Identity,
    tli: TimelineId,
    /// Up to here.
    at: Lsn,
}

/// What comes after a connection.
enum Next {
    /// It has ended as it should.
    Over,
    /// Another one to the same server, at once: this one is busy with what nobody waits for.
    Again,
}

/// What has come of a START_REPLICATION.
enum Streamed {
    Ended(StreamEnd),
    /// The slot is not there.
    NoSlot,
    /// The server no longer has the segment of what was to be compared.
    SeamRemoved,
}

impl Follower {
    pub(super) fn new(config: UpstreamConfig, stop: CancellationToken) -> Follower {
        let outages = Outages::default();
        Follower {
            config,
            stop,
            connected: false,
            backoff: BACKOFF.0,
            outages,
            impatience: None,
            compared: None,
        }
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
                    self.outages.tell_host(host, &error);
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
        self.compared = None;
        loop {
            let proof = self.compared.take();
            let again = proof.is_some();
            match self.connection(info, host, writer, proof).await? {
                Next::Over => return Ok(()),
                Next::Again if again => {
                    return Err(UpstreamError::Stream(
                        "the upstream sends more than is asked for, again".into(),
                    ));
                }
                Next::Again => {}
            }
        }
    }

    async fn connection(
        &mut self,
        info: &ConnInfo,
        host: &HostSpec,
        writer: &mut Writer,
        proof: Option<Proof>,
    ) -> Result<Next, UpstreamError> {
        let deadline = tokio::time::Instant::now() + CONNECT_LIMIT;
        let attempt = async {
            let mut conn = connect(info, host, deadline).await.map_err(|error| explain(host, error))?;
            let (identified, mut introduced) =
                introduce(&mut conn, writer.store(), &self.config.slot).await?;
            format::learn(&mut conn, writer, identified, &mut introduced).await?;
            Ok::<_, UpstreamError>((conn, identified, introduced))
        };
        let (mut conn, identified, introduced) = tokio::select! {
            result = attempt => result?,
            () = self.stop.cancelled() => return Ok(Next::Over),
        };
        // A relay keeps what it could not send, and comes back.
        let limit = introduced.parameters.settings.get(SHUTDOWN_TIMEOUT).filter(|_| !conn.is_a_relays());
        self.tell_impatience(host, limit);
        let (stop, limit) = (self.stop.clone(), self.config.shutdown_timeout);
        let overdue = async {
            stop.cancelled().await;
            tokio::time::sleep(limit).await;
        };
        let result = tokio::select! {
            result = self.stream_all(&mut conn, writer, identified, &introduced, host, proof) => result,
            () = overdue => {
                tracing::warn!(
                    "the last WAL was not synced and confirmed to {host} within {} s (shutdown-timeout); what is not confirmed will be fetched again",
                    limit.as_secs_f32()
                );
                Ok(Next::Over)
            }
        };
        self.config.followed.show(None);
        if matches!(result, Ok(Next::Over)) {
            // Nobody waits for long for a goodbye.
            let _ = tokio::time::timeout(GOODBYE, conn.close()).await;
        }
        result
    }

    /// Says, when it is news, that the server may stop before we have confirmed its last WAL.
    fn tell_impatience(&mut self, host: &HostSpec, limit: Option<&String>) {
        let limit = limit.filter(|limit| *limit != "-1").cloned();
        if let Some(limit) = limit.as_ref().filter(|_| limit != self.impatience) {
            tracing::warn!(
                "{host} has {SHUTDOWN_TIMEOUT} = {limit}: when it stops, it may not wait until the relay has its last WAL, which a \
                 failover then loses; set it to -1 there, or for the relay with options='-c {SHUTDOWN_TIMEOUT}=-1' in --upstream"
            );
        }
        self.impatience = limit;
    }

    /// Streams one timeline after the other, until the connection is over.
    async fn stream_all(
        &mut self,
        conn: &mut UpstreamConnection,
        writer: &mut Writer,
        mut identified: Identified,
        introduced: &Introduced,
        host: &HostSpec,
        proof: Option<Proof>,
    ) -> Result<Next, UpstreamError> {
        let mut slot = introduced.slot;
        if writer.position().is_none() {
            self.begin(conn, writer, identified, introduced, host).await?;
            slot = Slot::There { reserved: None };
        }
        let proved = |tli, at| Proof { host: host.to_string(), identity: introduced.identity, tli, at };
        // Up to here our WAL is known to be this server's.
        let mut same = proof
            .filter(|proof| *proof == proved(identified.tli, proof.at))
            .map_or(Lsn::INVALID, |proof| proof.at);
        let mut compared = same;
        let mut began = false;
        loop {
            writer.rewind();
            let Some(position) = writer.position() else {
                return Err(answer("START_REPLICATION", "nowhere to start"));
            };
            let theirs = UpstreamHistory::fetch(conn, identified.tli).await?;
            if !began && begins_elsewhere(writer, &theirs.history) {
                self.wait_until_durable(writer).await?;
                self.begin(conn, writer, identified, introduced, host).await?;
                (slot, began) = (Slot::There { reserved: None }, true);
                continue;
            }
            let (next, taken) = match course(writer, position.lsn, &theirs.history)? {
                Course::Stream => (None, None),
                Course::Switch(next) => (Some(next), None),
                Course::TakeUp(history) => (None, Some(self.find(writer, history, &theirs.history).await?)),
            };
            // Where we are going to go on.
            let position = taken.as_ref().map_or(position, HeldTimeline::end);
            if identified.tli == position.tli && identified.xlogpos < position.lsn {
                match self.wait_until_reached(conn, position, identified).await? {
                    Some(now) => identified = now,
                    None => return Ok(Next::Over),
                }
                continue;
            }
            let left_at = theirs.history.switch_point(position.tli).map(|(left_at, _)| left_at);
            let at = left_at.map_or(position.lsn, |left_at| left_at.min(position.lsn));
            // Of a timeline that is taken up nothing is known by what was streamed of another.
            let known = if taken.is_some() { compared } else { same };
            let held =
                if at > known { held_before(writer, taken.as_ref(), &theirs.history, at)? } else { None };
            let files = theirs.fetch_all(conn, writer.store()).await?;
            // From then on it is one that we follow: only now it may leave, and get, anything.
            let store = writer.store().clone();
            let followed = self.config.followed.shower();
            let accept = move || {
                store.attach(introduced.identity, introduced.parameters.clone())?;
                files.save(&store)?;
                followed.send_replace(Some(host.clone()));
                Ok(())
            };
            let in_stream = |held: &Held| {
                next.is_none() && taken.is_none() && slot != Slot::Missing && held.is_near(position.lsn)
            };
            let entry = match held {
                Some(held) if in_stream(&held) => {
                    Some(Entry { held, until: position.lsn, accept: Box::new(accept) })
                }
                held => {
                    if let Some(held) = held {
                        (same, compared) = (at, at);
                        if compare(conn, writer, &theirs.history, at, &held).await? == Compared::MoreFollows {
                            self.compared = Some(proved(identified.tli, at));
                            return Ok(Next::Again);
                        }
                    }
                    accept()?;
                    if let Some(taken) = taken {
                        take_up(writer, taken, identified.tli)?;
                        same = at;
                        continue;
                    }
                    if let Some(next) = next {
                        self.switch(writer, read_history(writer.store(), next)?).await?;
                        continue;
                    }
                    if slot == Slot::Missing {
                        self.create_slot(conn).await?;
                        slot = Slot::There { reserved: None };
                    }
                    None
                }
            };
            writer.note_followed()?;
            match self.stream(conn, writer, position, host, entry).await? {
                Streamed::Ended(StreamEnd::Stopped) => return Ok(Next::Over),
                Streamed::Ended(StreamEnd::ServerStopped) => {
                    return Err(UpstreamError::Stream("replication terminated by upstream server".into()));
                }
                Streamed::Ended(StreamEnd::Timeline { next }) => {
                    let shown = next.map_or("unknown".to_owned(), |(tli, at)| format!("{tli} from {at}"));
                    tracing::info!("upstream has ended timeline {}, next is {shown}", position.tli);
                    identified = identify(conn).await?;
                    same = writer.verified().map_or(same, |verified| verified.lsn);
                    if identified.tli == position.tli {
                        // Not an end of timeline at all: the other side has just stopped.
                        return Err(UpstreamError::Stream("upstream ended the stream".into()));
                    }
                }
                Streamed::NoSlot => slot = Slot::Missing,
                Streamed::SeamRemoved => same = at,
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
        entry: Option<Entry<'_>>,
    ) -> Result<Streamed, UpstreamError> {
        let start = entry.as_ref().map_or(position.lsn.page_start(), |entry| entry.held.from());
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
                (b'E', body) => failure = Some(crate::pg::message::server_error(body).unwrap_or_default()),
                (b'Z', _) => match failure {
                    Some(error) if error.is_no_such_object() => return Ok(Streamed::NoSlot),
                    Some(error) => return Err(failed(QueryError::Server(error))),
                    None => return Ok(Streamed::Ended(StreamEnd::Timeline { next })),
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
        let began = Instant::now();
        let seg_size = writer.store().identity().map(|identity| identity.seg_size);
        let in_segment_before =
            entry.is_some() && seg_size.is_some_and(|size| start.seg_at(size) < position.lsn.seg_at(size));
        let result = receive::receive(conn, writer, &cx, entry).await;
        if writer.verified() != held {
            self.backoff = BACKOFF.0;
        }
        if writer.verified() != held || began.elapsed() >= STEADY {
            self.outages.end();
        }
        match result {
            Ok(end) => Ok(Streamed::Ended(end)),
            Err(ReceiveError::Server(error)) if in_segment_before && error.is_wal_removed() => {
                tracing::debug!("WAL at the seam cannot be compared: {error}");
                Ok(Streamed::SeamRemoved)
            }
            Err(ReceiveError::Append(AppendError::Bad(source))) if writer.verified() == held => {
                Err(UpstreamError::Seam { tli: position.tli, held: position.lsn, source })
            }
            Err(ReceiveError::Append(error)) => Err(UpstreamError::Append(error)),
            Err(ReceiveError::Accept(error)) => Err(*error),
            Err(ReceiveError::Server(error)) if error.is_wal_removed() => {
                let (host, at) = (host.to_string(), position.lsn.page_start());
                Err(UpstreamError::WalRemoved { host, at, message: error.message })
            }
            Err(other) => Err(UpstreamError::Stream(other.to_string())),
        }
    }

    /// Goes on along `history`'s timeline, once all of the present one is durable: what a crash leaves must
    /// never begin with the new timeline and lack the end of the old.
    async fn switch(&self, writer: &mut Writer, history: TimelineHistory) -> Result<(), UpstreamError> {
        let (tli, at) = (history.tli(), history.begin());
        self.wait_until_durable(writer).await?;
        let left = Left::of(writer, &history);
        writer.switch_timeline(history)?;
        tracing::info!("switched to timeline {tli} at {at}");
        left.tell(writer, tli);
        Ok(())
    }

    /// What is held of another timeline on the way to theirs. All of the present one is durable then.
    async fn find(
        &self,
        writer: &mut Writer,
        history: TimelineHistory,
        theirs: &TimelineHistory,
    ) -> Result<HeldTimeline, UpstreamError> {
        self.wait_until_durable(writer).await?;
        let tli = history.tli();
        let (at, next) = theirs.switch_point(tli).unwrap_or((theirs.begin(), tli));
        let reason = format!("nothing of timeline {tli} is held here any more");
        writer.find(history)?.ok_or_else(|| AppendError::Fork { tli: next, at, reason }.into())
    }

    async fn wait_until_durable(&self, writer: &mut Writer) -> Result<(), UpstreamError> {
        writer.commit();
        let written = *writer.store().written().borrow();
        let mut flushed = writer.store().flushed();
        tokio::select! {
            _ = flushed.wait_for(|flushed| *flushed == written) => Ok(()),
            _ = writer.store().failed() => Err(AppendError::Failed.into()),
        }
    }

    /// Makes our slot; whether there was none.
    async fn create_slot(&self, conn: &mut UpstreamConnection) -> Result<bool, UpstreamError> {
        let slot = &self.config.slot;
        let parenthesised = major_version(conn) >= 15;
        let option = if parenthesised { "PHYSICAL (RESERVE_WAL)" } else { "PHYSICAL RESERVE_WAL" };
        let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" {option}");
        match conn.query(&command).await {
            Ok(_) => tracing::info!("created replication slot \"{slot}\" on the upstream"),
            Err(QueryError::Server(error)) if error.is_duplicate_object() => return Ok(false),
            Err(source) => return Err(UpstreamError::Command { command, source }),
        }
        Ok(true)
    }

    /// Where our slot's WAL begins, if it keeps any and the server can tell; makes it if there is none.
    async fn reserved(
        &self,
        conn: &mut UpstreamConnection,
        slot: Slot,
        identified: Identified,
        host: &HostSpec,
        theirs: &TimelineHistory,
    ) -> Result<Option<(Lsn, TimelineId)>, UpstreamError> {
        let slot = match slot {
            Slot::There { .. } => slot,
            Slot::Missing => {
                self.create_slot(conn).await?;
                read_slot(conn, &self.config.slot).await?
            }
            Slot::Unknown => {
                let restart = self.reserved_in_sql(conn, identified, host).await?;
                Slot::There { reserved: restart.map(|lsn| (lsn, theirs.timeline_at(lsn))) }
            }
        };
        Ok(match slot {
            Slot::There { reserved } => reserved,
            Slot::Missing | Slot::Unknown => None,
        })
    }

    /// The same of a server before 15. If it cannot be asked and the slot was there before, WAL may be passed over, and
    /// somebody has to know.
    async fn reserved_in_sql(
        &self,
        conn: &mut UpstreamConnection,
        identified: Identified,
        host: &HostSpec,
    ) -> Result<Option<Lsn>, UpstreamError> {
        let UpstreamConfig { conninfo, dbname, slot, .. } = &self.config;
        let asked = match slot_in_sql(conninfo, dbname, host, slot).await {
            Ok(None) => {
                self.create_slot(conn).await?;
                slot_in_sql(conninfo, dbname, host, slot).await
            }
            asked => asked,
        };
        let error = match asked {
            Ok(restart) => return Ok(restart.flatten()),
            Err(error) => error,
        };
        if !self.create_slot(conn).await? {
            tracing::warn!(
                "slot \"{slot}\" on {host} was there before, and from where on it keeps WAL cannot be found out ({error}): WAL \
                 from its restart_lsn up to {} is not fetched; if it is needed, stop the relay, let role \"{}\" log in to \
                 database \"{dbname}\" there, and start again with an empty data directory before the slot has moved",
                identified.xlogpos,
                conninfo.user
            );
        }
        Ok(None)
    }

    /// Decides where an empty data directory begins: where the slot's WAL does.
    async fn begin(
        &self,
        conn: &mut UpstreamConnection,
        writer: &mut Writer,
        identified: Identified,
        introduced: &Introduced,
        host: &HostSpec,
    ) -> Result<(), UpstreamError> {
        let identity = introduced.identity;
        let theirs = UpstreamHistory::fetch(conn, identified.tli).await?;
        let reserved = self.reserved(conn, introduced.slot, identified, host, &theirs.history).await?;
        let (at, tli) = reserved.unwrap_or((identified.xlogpos, identified.tli));
        writer.store().attach(identity, introduced.parameters.clone())?;
        theirs.fetch_all(conn, writer.store()).await?.save(writer.store())?;
        writer.begin(identity, read_history(writer.store(), tli)?, at);
        tracing::info!(
            "the data directory holds no WAL, starting at {} on timeline {tli}",
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

/// Whether nothing is held yet and what was waited for does not come from a server with this history: it has gone
/// another way before. Older servers than the one that was waited for are not gone to.
fn begins_elsewhere(writer: &Writer, theirs: &TimelineHistory) -> bool {
    let Some(start) = writer.position().filter(|start| writer.is_bare() && start.tli <= theirs.tli()) else {
        return false;
    };
    let comes_from_ours = theirs.up_to(start.tli).as_ref() == Some(&*writer.store().history());
    !comes_from_ours || theirs.switch_point(start.tli).is_some_and(|(left_at, _)| left_at < start.lsn)
}

/// What is to be done to follow a server with this history.
fn course(writer: &Writer, held: Lsn, theirs: &TimelineHistory) -> Result<Course, UpstreamError> {
    let store = writer.store();
    let ours = store.history();
    let newest = writer.newest().filter(|newest| *newest > ours.tli());
    // Without its history it leads nowhere.
    let newest = newest.and_then(|newest| read_history(store, newest).ok());
    let here = store.held_timelines().map_err(|source| StoreError::Io {
        action: "could not list WAL in",
        path: store.data_dir().to_owned(),
        source,
    })?;
    Standing { ours: &ours, held, newest: newest.as_ref(), here: &here }.course(theirs)
}

/// Goes on with a timeline that is held, on the way to `newest`; the present one is left.
fn take_up(writer: &mut Writer, held: HeldTimeline, newest: TimelineId) -> Result<(), UpstreamError> {
    let (left, end) = (Left::of(writer, held.history()), held.end());
    writer.take_up(held, newest)?;
    tracing::info!("went back to timeline {}, held up to {}, to follow timeline {newest}", end.tli, end.lsn);
    left.tell(writer, newest);
    Ok(())
}

/// WAL that is held and does not lead to where the relay goes on.
struct Left {
    from: Lsn,
    end: Option<TimelinePosition>,
    commits: Option<u64>,
}

impl Left {
    /// What is left when the writer goes over to a timeline with this history.
    fn of(writer: &Writer, next: &TimelineHistory) -> Left {
        let end = writer.verified();
        let parting = writer.store().history().parting(next).and_then(|(_, at)| at);
        let from = parting.or(end.map(|end| end.lsn)).unwrap_or(Lsn::INVALID);
        let end = end.filter(|end| end.lsn > from);
        Left { from, end, commits: end.and_then(|_| writer.commits_since(from, MOST_COUNTED)) }
    }

    /// Said once the other timeline is followed: who looks for lost commits finds them there.
    fn tell(&self, writer: &Writer, next: TimelineId) {
        let Some(TimelinePosition { tli, lsn }) = self.end else { return };
        let (from, bytes) = (self.from, lsn.since(self.from));
        let commits = self.commits.map_or("an unknown number of".to_owned(), |commits| commits.to_string());
        tracing::warn!(
            "timeline {tli} was held up to {lsn}: {bytes} bytes with {commits} commits from {from} on are not on the way \
             to timeline {next}; their files stay in \"{}\" for as long as WAL of that age is kept",
            writer.store().wal_path("").display()
        );
    }
}

/// What is held right before `at`, to be compared with the WAL of an upstream that we are to continue with there; `taken`
/// is the timeline that we continue with, if that is not the present one. `None` if we hold nothing yet.
fn held_before(
    writer: &Writer,
    taken: Option<&HeldTimeline>,
    theirs: &TimelineHistory,
    at: Lsn,
) -> Result<Option<Held>, UpstreamError> {
    let found = match taken {
        Some(timeline) => Held::before_on(writer.store(), timeline, at),
        None => Held::before(writer.store(), at),
    };
    let is_required = taken.is_some() || writer.position().is_some_and(|position| at < position.lsn);
    match found {
        Ok(held) => Ok(Some(held)),
        // It is there, so it has to be the same.
        Err(error @ ReadError::Io { .. }) => Err(UpstreamError::Unreadable(error)),
        // Nothing that we hold would be WAL of both: its history may be ours, but nothing here shows it.
        Err(error) if is_required => {
            let (tli, reason) = (theirs.timeline_at(at), error.to_string());
            Err(AppendError::Fork { tli, at, reason }.into())
        }
        Err(_) => Ok(None),
    }
}

/// Compares it on a stream of its own.
async fn compare(
    conn: &mut UpstreamConnection,
    writer: &Writer,
    theirs: &TimelineHistory,
    at: Lsn,
    held: &Held,
) -> Result<Compared, UpstreamError> {
    let identity = writer.store().identity();
    let at_boundary = identity.is_some_and(|identity| at.offset_in_seg(identity.seg_size) == 0);
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
            dbname: "postgres".to_owned(),
            wal_receiver_timeout: None,
            shutdown_timeout: Duration::from_secs(10),
            followed: Following::channel().0,
        };
        let mut follower = Follower::new(config, CancellationToken::new());
        let pauses: Vec<_> = (0..12).map(|_| follower.next_pause()).collect();
        assert!(pauses[0] >= BACKOFF.0 / 2 && pauses[0] <= BACKOFF.0);
        assert!(pauses[11] >= BACKOFF.1 / 2 && pauses[11] <= BACKOFF.1);
    }

    #[test]
    fn who_waits_shortens_a_pause_less_the_longer_it_is() {
        let ms = Duration::from_millis;
        let shortened = [50, 100, 300, 1000, 2000].map(|pause| least(ms(pause)));
        assert_eq!(shortened, [50, 100, 100, 250, 500].map(ms));
    }
}
