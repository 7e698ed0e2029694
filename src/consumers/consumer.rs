//! One consumer: what its walsender knows of it, for whoever displays or aggregates it.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use walrelay_proto::ack::Standing;
use walrelay_proto::{FeedbackHorizon, Lsn};

use super::{LagClock, lock};
use crate::counts::Counter;
use crate::moment::Past;

/// `pg_stat_replication.state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ConsumerState {
    /// Connected, between commands.
    Startup = 0,
    /// A base backup is passing through.
    Backup = 1,
    /// Sending WAL that was there before.
    Catchup = 2,
    /// Has been sent everything there is at least once.
    Streaming = 3,
    /// The relay is shutting down.
    Stopping = 4,
}

impl ConsumerState {
    /// The word PostgreSQL shows.
    pub fn as_str(self) -> &'static str {
        match self {
            ConsumerState::Startup => "startup",
            ConsumerState::Backup => "backup",
            ConsumerState::Catchup => "catchup",
            ConsumerState::Streaming => "streaming",
            ConsumerState::Stopping => "stopping",
        }
    }

    fn from_u8(value: u8) -> ConsumerState {
        match value {
            1 => ConsumerState::Backup,
            2 => ConsumerState::Catchup,
            3 => ConsumerState::Streaming,
            4 => ConsumerState::Stopping,
            _ => ConsumerState::Startup,
        }
    }
}

/// Who a consumer is; fixed for the life of its connection.
#[derive(Clone, Debug)]
pub struct ConsumerIdentity {
    /// The number clients see as their backend's PID; unique among live connections.
    pub pid: u32,
    /// Role the connection authenticated as.
    pub user: String,
    /// `application_name`.
    pub application_name: String,
    /// Where it comes from, `None` on a Unix socket.
    pub client_addr: Option<SocketAddr>,
    /// When it connected.
    pub backend_start: Past,
}

/// One consumer's line in `pg_stat_replication`. Its walsender writes, anybody reads.
///
/// Positions are as the consumer reported them, unchecked, as in PostgreSQL: they may move back, and
/// `write` may be below `flush`. 0/0 stands for "not known".
#[derive(Debug)]
pub struct Consumer {
    identity: ConsumerIdentity,
    state: AtomicU8,
    sent: AtomicU64,
    /// Bytes of WAL sent in this connection.
    sent_bytes: Counter,
    write: AtomicU64,
    flush: AtomicU64,
    replay: AtomicU64,
    /// Microseconds; 0 stands for "no sample".
    lag: [AtomicU64; 3],
    /// The last reply told that everything sent is replayed.
    fully_applied: AtomicBool,
    /// As [`Past`] has it, 0 before the first reply.
    reply_time: AtomicU64,
    feedback: Mutex<FeedbackHorizon>,
}

/// A copy of a [`Consumer`]'s fields.
#[derive(Clone, Debug)]
pub struct ConsumerStatus {
    /// Who it is.
    pub identity: ConsumerIdentity,
    /// What it is doing.
    pub state: ConsumerState,
    /// First byte not sent yet.
    pub sent_lsn: Option<Lsn>,
    /// Bytes of WAL sent in this connection.
    pub sent_bytes: u64,
    /// As the consumer reported: first byte not written.
    pub write_lsn: Option<Lsn>,
    /// First byte not flushed.
    pub flush_lsn: Option<Lsn>,
    /// First byte not replayed.
    pub replay_lsn: Option<Lsn>,
    /// Time between the WAL's arrival here and the consumer's report of writing, flushing, replaying it.
    pub write_lag: Option<Duration>,
    /// See `write_lag`.
    pub flush_lag: Option<Duration>,
    /// See `write_lag`.
    pub replay_lag: Option<Duration>,
    /// When the consumer last reported.
    pub reply_time: Option<Past>,
    /// Its hot-standby feedback.
    pub feedback: FeedbackHorizon,
    /// How it counts for what the relay reports.
    pub standing: Standing,
}

impl Consumer {
    /// One that has just connected.
    pub(super) fn new(identity: ConsumerIdentity) -> Consumer {
        Consumer {
            identity,
            state: AtomicU8::new(ConsumerState::Startup as u8),
            sent: AtomicU64::default(),
            sent_bytes: Counter::default(),
            write: AtomicU64::default(),
            flush: AtomicU64::default(),
            replay: AtomicU64::default(),
            lag: Default::default(),
            fully_applied: AtomicBool::default(),
            reply_time: AtomicU64::default(),
            feedback: Mutex::default(),
        }
    }

    /// Who it is.
    pub fn identity(&self) -> &ConsumerIdentity {
        &self.identity
    }

    /// Sets what it is doing.
    pub fn set_state(&self, state: ConsumerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// A stream begins: the first byte that it will send.
    pub fn start_at(&self, lsn: Lsn) {
        self.sent.store(lsn.as_u64(), Ordering::Relaxed);
    }

    /// Sets the first byte that has not been sent; what lies between it and the one before counts as sent.
    pub fn set_sent(&self, lsn: Lsn) {
        let before = self.sent.swap(lsn.as_u64(), Ordering::Relaxed);
        self.sent_bytes.add(lsn.as_u64().saturating_sub(before));
    }

    /// Bytes of WAL sent in this connection.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.get()
    }

    /// Takes over what the consumer reported, and the lag that follows from it. Who has replayed everything for two
    /// replies in a row is idle and has no lag (PostgreSQL: `ProcessStandbyReplyMessage`).
    pub fn set_reply(&self, write: Lsn, flush: Lsn, replay: Lsn, lag: &LagClock) {
        let now = Instant::now();
        let positions = [(&self.write, write), (&self.flush, flush), (&self.replay, replay)];
        let applied = replay.as_u64() == self.sent.load(Ordering::Relaxed);
        let is_idle = self.fully_applied.swap(applied, Ordering::Relaxed) && applied;
        for ((cell, lsn), lag_cell) in positions.into_iter().zip(&self.lag) {
            let moved = cell.swap(lsn.as_u64(), Ordering::Relaxed) != lsn.as_u64();
            match lag.since_arrival(lsn, now).filter(|_| moved) {
                Some(lag) => lag_cell.store((lag.as_micros() as u64).max(1), Ordering::Relaxed),
                None if is_idle => lag_cell.store(0, Ordering::Relaxed),
                None => {}
            }
        }
        self.reply_time.store(Past::now().to_bits(), Ordering::Relaxed);
    }

    pub(super) fn feedback(&self) -> FeedbackHorizon {
        *lock(&self.feedback)
    }

    pub(super) fn set_feedback(&self, feedback: FeedbackHorizon) {
        *lock(&self.feedback) = feedback;
    }

    /// Everything at once, but for its standing, which depends on others.
    pub(super) fn status(&self) -> ConsumerStatus {
        let lsn = |cell: &AtomicU64| Lsn::new(cell.load(Ordering::Relaxed)).valid();
        let lag = |cell: &AtomicU64| {
            let micros = cell.load(Ordering::Relaxed);
            (micros != 0).then(|| Duration::from_micros(micros))
        };
        ConsumerStatus {
            identity: self.identity.clone(),
            state: ConsumerState::from_u8(self.state.load(Ordering::Relaxed)),
            sent_lsn: lsn(&self.sent),
            sent_bytes: self.sent_bytes(),
            write_lsn: lsn(&self.write),
            flush_lsn: lsn(&self.flush),
            replay_lsn: lsn(&self.replay),
            write_lag: lag(&self.lag[0]),
            flush_lag: lag(&self.lag[1]),
            replay_lag: lag(&self.lag[2]),
            reply_time: Past::from_bits(self.reply_time.load(Ordering::Relaxed)),
            feedback: self.feedback(),
            standing: Standing::Async,
        }
    }
}
