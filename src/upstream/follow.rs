//! Follows the cluster: finds a server to receive from, receives, and begins again when that ends.
//!
//! What is to be done is decided by a [`Course`], without any I/O: this performs its [`Step`]s, on the connection that is
//! there (`link.rs`), and tells it what came of each.
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

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use walrelay_proto::course::{Course, CourseSetup, Fact, Pause, Step};
use walrelay_proto::{SlotName, TimelineId};

use super::awaited::ask_again;
use super::board::Board;
use super::failure::{UpstreamError, explain};
use super::fenced::ordered;
use super::followed::Following;
use super::format;
use super::introduce::{SHUTDOWN_TIMEOUT, introduce, waits_for};
use super::link::{Link, switch, wait_until_durable};
use super::outage::Outages;
use super::refill::refill;
use crate::changeable::Changeable;
use crate::conninfo::{ConnInfo, HostSpec, TargetSessionAttrs};
use crate::pg::connect;
use crate::store::Writer;

/// Limit for one attempt to connect to a host, where `connect_timeout` sets none.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How often an upstream that is behind us is asked how far it has come.
const BEHIND_INTERVAL: Duration = Duration::from_millis(500);
/// Time to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// A stream that has lasted that long, or brought anything, ends an outage.
const STEADY: Duration = Duration::from_secs(10);

/// Where and how to receive.
#[derive(Debug)]
pub struct UpstreamConfig {
    /// `--upstream`.
    pub conninfo: ConnInfo,
    /// `--slot`.
    pub slot: SlotName,
    /// `--auth-dbname`: where a server is asked in SQL what it does not tell otherwise.
    pub dbname: String,
    /// `--wal-receiver-timeout`; `None` for never. For the next connection.
    pub wal_receiver_timeout: Changeable<Option<Duration>>,
    /// `--shutdown-timeout`: how long a stop waits for the last WAL to be synced, and for the upstream to take its
    /// confirmation.
    pub shutdown_timeout: Changeable<Duration>,
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
    let (followed, asked) = (config.followed.subscribe(), config.followed.subscribe());
    tokio::select! {
        result = follow_on(config, writer, stop) => result,
        () = refill(&info, &store, followed) => Ok(()),
        () = ask_again(&info, &store, asked) => Ok(()),
    }
}

async fn follow_on(
    config: UpstreamConfig,
    mut writer: Writer,
    stop: CancellationToken,
) -> Result<(), UpstreamError> {
    let mut follower = Follower::new(config, &writer, stop);
    loop {
        let covered = follower.config.followed.begin();
        let Err(Fruitless { error, pause }) = follower.round(&mut writer).await else { return Ok(()) };
        if follower.stop.is_cancelled() {
            return Ok(());
        }
        let Some(pause) = pause else { return Err(error) };
        if !follower.rest(&error, pause, covered, &writer).await {
            return Ok(());
        }
    }
}

/// Performs the steps of a course.
pub(super) struct Follower {
    config: UpstreamConfig,
    pub(super) stop: CancellationToken,
    course: Course<UpstreamError>,
    /// Which host is tried.
    host: usize,
    /// The connection to it, once it has said who it is.
    link: Option<Link>,
    outages: Outages,
    /// The server's limit for our last confirmation, as far as it was told.
    impatience: Option<String>,
    /// The newest timeline of the servers that were followed: ours may not have come so far.
    pub(super) newest: Option<TimelineId>,
}

/// No host can be followed.
#[derive(Debug)]
pub(super) struct Fruitless {
    pub(super) error: UpstreamError,
    /// What comes before the next round; `None` if there is to be none.
    pause: Option<Pause>,
}

impl Follower {
    pub(super) fn new(config: UpstreamConfig, writer: &Writer, stop: CancellationToken) -> Follower {
        let conninfo = &config.conninfo;
        let course = Course::new(CourseSetup {
            hosts: conninfo.hosts.len(),
            prefers_standby: conninfo.target_session_attrs == TargetSessionAttrs::PreferStandby,
            empty: writer.position().is_none(),
        });
        // Until one is followed it is as it was last: an upstream that died meanwhile may have waited for us.
        let (store, own_name) = (writer.store(), &conninfo.application_name);
        let acknowledgements = store.consumers().acknowledgements();
        acknowledgements.expect(&waits_for(&store.upstream_parameters()), own_name);
        let (outages, link) = (Outages::default(), None);
        Follower { config, stop, course, host: 0, link, outages, impatience: None, newest: None }
    }

    /// Tries the hosts in turn until we are to stop, or all have failed.
    pub(super) async fn round(&mut self, writer: &mut Writer) -> Result<(), Fruitless> {
        let (stop, limit) = (self.stop.clone(), self.config.shutdown_timeout.clone());
        let overdue = async move {
            stop.cancelled().await;
            tokio::time::sleep(limit.current()).await;
        };
        tokio::pin!(overdue);
        let mut fencing = writer.store().fences().watch();
        let mut fact = Fact::Done;
        loop {
            let step = match self.course.step(fact) {
                Step::Pause { error, pause } => return Err(Fruitless { error, pause: Some(pause) }),
                Step::Give(error) => {
                    self.hang_up();
                    return Err(Fruitless { error, pause: None });
                }
                Step::Over => {
                    self.say_goodbye().await;
                    return Ok(());
                }
                step => step,
            };
            let is_linked = self.link.is_some();
            let performed = tokio::select! {
                biased;
                // Whatever is under way: nothing more leaves for the server, not even what was decided.
                () = ordered(&mut fencing) => None,
                () = &mut overdue, if is_linked => Some(self.overdue()),
                fact = self.perform(step, writer) => Some(fact),
            };
            fact = match performed {
                Some(fact) => fact,
                None => self.leave_for_fence(writer).await,
            };
        }
    }

    /// Waits before the next round, and says why; whether there is to be one. `covered` are the questions for a server that
    /// the last round has answered.
    async fn rest(&mut self, error: &UpstreamError, pause: Pause, covered: u64, writer: &Writer) -> bool {
        self.board().failed(&error.to_string());
        self.board().waiting();
        let pause = pause.length(getrandom::u32().unwrap_or(u32::MAX / 2));
        match self.config.conninfo.hosts.len() {
            // Each host's reason has been told.
            2.. => self.outages.tell_all(pause),
            _ => self.outages.tell(error, pause),
        }
        let followed = &self.config.followed;
        followed.fail(covered);
        // A client that waits for the server ends the pause, but not before a part of it is over.
        let woken = async {
            tokio::time::sleep(Pause::least(pause)).await;
            followed.asked_beyond(covered).await;
        };
        let mut fencing = writer.store().fences().watch();
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = woken => true,
            () = ordered(&mut fencing) => true,
            () = self.stop.cancelled() => false,
        }
    }

    /// Does one thing, and says what came of it.
    async fn perform(&mut self, step: Step<UpstreamError>, writer: &mut Writer) -> Fact<UpstreamError> {
        let result = match step {
            Step::Connect { host, standby } => self.connect(host, standby, writer).await,
            Step::HangUp => Ok(self.give_up()),
            Step::WaitDurable => wait_until_durable(writer).await.map(|()| Fact::Done),
            Step::NoteFollowed => self.note_followed(writer).map(|()| Fact::Done),
            Step::Switch { to, .. } => switch(writer, to).map(|()| Fact::Done),
            Step::WaitBehind { ours, theirs, first } => {
                if first {
                    tracing::warn!(
                        "requested start point {} on timeline {} is ahead of the upstream's flush position {theirs}, waiting",
                        ours.lsn,
                        ours.tli
                    );
                }
                self.board().behind();
                Ok(self.wait_behind().await)
            }
            step => self.perform_linked(step, writer).await,
        };
        match result {
            Ok(fact) => fact,
            Err(_) if self.stop.is_cancelled() => {
                self.hang_up();
                Fact::Stopped
            }
            Err(error) => Fact::Failed(error),
        }
    }

    /// What takes a connection.
    async fn perform_linked(
        &mut self,
        step: Step<UpstreamError>,
        writer: &mut Writer,
    ) -> Result<Fact<UpstreamError>, UpstreamError> {
        let (config, stop) = (&self.config, &self.stop);
        let Some(link) = &mut self.link else {
            return Err(UpstreamError::Stream("there is no connection".into()));
        };
        Ok(match step {
            Step::Identify => Fact::Identified(link.identify().await?),
            Step::FetchHistory { tli } => Fact::History(link.fetch_history(tli).await?),
            Step::FetchHistories => link.fetch_histories(writer).await.map(|()| Fact::Done)?,
            Step::Look => Fact::Held(link.look(writer)?),
            Step::CreateSlot => link.create_slot(config, writer.store()).await.map(|_| Fact::Done)?,
            Step::ReadSlot => Fact::Slot(link.read_slot(config).await?),
            Step::ReadSlotInSql => Fact::Slot(link.read_slot_in_sql(config, writer.store()).await?),
            Step::Begin { at, tli } => link.begin(writer, at, tli).map(|()| Fact::Done)?,
            Step::Find { history } => Fact::Found(link.find(writer, history)?),
            Step::ReadSeam { at, found } => Fact::Seam(link.read_seam(writer, at, found)?),
            Step::Compare { tli, .. } => Fact::Compared(link.compare(tli).await?),
            Step::Accept => link.accept(config, writer).map(|()| Fact::Done)?,
            Step::TakeUp { newest } => link.take_up(writer, newest).map(|()| Fact::Done)?,
            Step::Stream(stream) => {
                let (streamed, lasted) = link.stream(config, stop, writer, stream).await?;
                if streamed.came || lasted >= STEADY {
                    self.outages.end();
                }
                Fact::Streamed(streamed)
            }
            // Performed elsewhere.
            Step::Connect { .. }
            | Step::HangUp
            | Step::WaitDurable
            | Step::NoteFollowed
            | Step::Switch { .. }
            | Step::WaitBehind { .. }
            | Step::Pause { .. }
            | Step::Give(_)
            | Step::Over => Fact::Done,
        })
    }

    async fn connect(
        &mut self,
        host: usize,
        standby: bool,
        writer: &Writer,
    ) -> Result<Fact<UpstreamError>, UpstreamError> {
        self.host = host;
        let mut info = self.config.conninfo.clone();
        if standby {
            info.target_session_attrs = TargetSessionAttrs::Standby;
        }
        let host = &info.hosts[host];
        self.board().connecting(&host.to_string());
        let deadline = tokio::time::Instant::now() + CONNECT_LIMIT;
        let attempt = async {
            let mut conn = connect(&info, host, deadline).await.map_err(|error| explain(host, error))?;
            let (identified, mut introduced) =
                introduce(&mut conn, writer.store(), &self.config.slot).await?;
            format::learn(&mut conn, writer, identified, &mut introduced).await?;
            Ok::<_, UpstreamError>((conn, identified, introduced))
        };
        let (conn, identified, introduced) = tokio::select! {
            result = attempt => result?,
            () = self.stop.cancelled() => return Ok(Fact::Stopped),
        };
        self.board().connected(conn.parameter("server_version"), identified.tli);
        let theirs = identified.tli;
        if let Some(fence) = writer.store().fences().against(theirs) {
            return Err(UpstreamError::Fenced { theirs, fence: Box::new(fence) });
        }
        // A relay keeps what it could not send, and comes back.
        let limit = introduced.parameters.settings.get(SHUTDOWN_TIMEOUT).filter(|_| !conn.is_a_relays());
        self.tell_impatience(host, limit);
        let link = self.link.insert(Link::new(conn, host.clone(), identified, introduced));
        Ok(Fact::Introduced(link.facts()))
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

    async fn wait_behind(&self) -> Fact<UpstreamError> {
        tokio::select! {
            () = tokio::time::sleep(BEHIND_INTERVAL) => Fact::Done,
            () = self.stop.cancelled() => Fact::Stopped,
        }
    }

    /// The stop has taken its time.
    fn overdue(&self) -> Fact<UpstreamError> {
        tracing::warn!(
            "the last WAL was not synced and confirmed to {} within {} s (shutdown-timeout); what is not confirmed will be fetched again",
            self.config.conninfo.hosts[self.host],
            self.config.shutdown_timeout.current().as_secs_f32()
        );
        Fact::Stopped
    }

    /// Nothing comes of this connection; says why.
    fn give_up(&mut self) -> Fact<UpstreamError> {
        self.hang_up();
        if self.stop.is_cancelled() {
            return Fact::Stopped;
        }
        let hosts = &self.config.conninfo.hosts;
        if let Some(error) = self.course.failure().filter(|_| hosts.len() > 1) {
            self.outages.tell_host(&hosts[self.host], error);
        }
        Fact::Done
    }

    pub(super) fn board(&self) -> &Board {
        self.config.followed.board()
    }

    pub(super) fn hang_up(&mut self) {
        let Some(link) = self.link.take() else { return };
        if self.config.followed.show(None).is_some() {
            self.newest = self.newest.max(Some(link.timeline()));
        }
    }

    /// Nobody waits for long for it.
    async fn say_goodbye(&mut self) {
        self.board().stopped();
        let Some(link) = self.link.take() else { return };
        self.config.followed.show(None);
        let _ = tokio::time::timeout(GOODBYE, link.conn.close()).await;
    }
}
