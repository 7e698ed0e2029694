//! The consumers: who is connected, how far each is, and what their standbys still need.
//!
//! Every walsender owns one [`Sender`] and writes its fields; whoever displays or aggregates reads them.
//! Hot-standby feedback is merged here and watched by the upstream side.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use walrelay_proto::{FeedbackHorizon, Lsn};

use super::lock;
use super::slots::{SlotGuard, Slots};

/// `pg_stat_replication.state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SenderState {
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

impl SenderState {
    /// The word PostgreSQL shows.
    pub fn as_str(self) -> &'static str {
        match self {
            SenderState::Startup => "startup",
            SenderState::Backup => "backup",
            SenderState::Catchup => "catchup",
            SenderState::Streaming => "streaming",
            SenderState::Stopping => "stopping",
        }
    }

    fn from_u8(value: u8) -> SenderState {
        match value {
            1 => SenderState::Backup,
            2 => SenderState::Catchup,
            3 => SenderState::Streaming,
            4 => SenderState::Stopping,
            _ => SenderState::Startup,
        }
    }
}

/// Who a consumer is; fixed for the life of its connection.
#[derive(Clone, Debug)]
pub struct SenderIdentity {
    /// The number clients see as their backend's PID; unique among live connections.
    pub pid: u32,
    /// Role the connection authenticated as.
    pub user: String,
    /// `application_name`.
    pub application_name: String,
    /// Where it comes from, `None` on a Unix socket.
    pub client_addr: Option<SocketAddr>,
    /// When it connected.
    pub backend_start: SystemTime,
}

/// One consumer's line in `pg_stat_replication`. Its walsender writes, anybody reads.
///
/// Positions are as the consumer reported them, unchecked, as in PostgreSQL: they may move back, and
/// `write` may be below `flush`. 0/0 stands for "not known".
#[derive(Debug)]
pub struct Sender {
    identity: SenderIdentity,
    state: AtomicU8,
    sent: AtomicU64,
    write: AtomicU64,
    flush: AtomicU64,
    replay: AtomicU64,
    /// Microseconds; 0 stands for "no sample".
    lag: [AtomicU64; 3],
    /// The last reply told that everything sent is replayed.
    fully_applied: AtomicBool,
    /// Milliseconds since the Unix epoch, 0 before the first reply.
    reply_time: AtomicU64,
    feedback: Mutex<FeedbackHorizon>,
}

/// A copy of a [`Sender`]'s fields.
#[derive(Clone, Debug)]
pub struct SenderStatus {
    /// Who it is.
    pub identity: SenderIdentity,
    /// What it is doing.
    pub state: SenderState,
    /// First byte not sent yet.
    pub sent_lsn: Option<Lsn>,
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
    pub reply_time: Option<SystemTime>,
    /// Its hot-standby feedback.
    pub feedback: FeedbackHorizon,
}

impl Sender {
    /// Who it is.
    pub fn identity(&self) -> &SenderIdentity {
        &self.identity
    }

    /// Sets what it is doing.
    pub fn set_state(&self, state: SenderState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Sets the first byte that has not been sent.
    pub fn set_sent(&self, lsn: Lsn) {
        self.sent.store(lsn.as_u64(), Ordering::Relaxed);
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
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.reply_time.store(since_epoch.as_millis() as u64, Ordering::Relaxed);
    }

    /// Everything at once.
    pub fn status(&self) -> SenderStatus {
        let lsn = |cell: &AtomicU64| Lsn::new(cell.load(Ordering::Relaxed)).valid();
        let lag = |cell: &AtomicU64| {
            let micros = cell.load(Ordering::Relaxed);
            (micros != 0).then(|| Duration::from_micros(micros))
        };
        let reply_time = self.reply_time.load(Ordering::Relaxed);
        SenderStatus {
            identity: self.identity.clone(),
            state: SenderState::from_u8(self.state.load(Ordering::Relaxed)),
            sent_lsn: lsn(&self.sent),
            write_lsn: lsn(&self.write),
            flush_lsn: lsn(&self.flush),
            replay_lsn: lsn(&self.replay),
            write_lag: lag(&self.lag[0]),
            flush_lag: lag(&self.lag[1]),
            replay_lag: lag(&self.lag[2]),
            reply_time: (reply_time != 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(reply_time)),
            feedback: *lock(&self.feedback),
        }
    }
}

/// All consumers of the relay.
#[derive(Debug)]
pub struct Senders {
    slots: Arc<Slots>,
    live: Mutex<BTreeMap<u32, Arc<Sender>>>,
    horizon: watch::Sender<FeedbackHorizon>,
    /// The server that was told last, and what.
    reported: Mutex<Option<(String, FeedbackHorizon)>>,
}

/// A consumer's place in the registry; it leaves when this is dropped.
#[derive(Debug)]
pub struct SenderGuard {
    sender: Arc<Sender>,
    registry: Arc<Senders>,
}

impl std::ops::Deref for SenderGuard {
    type Target = Sender;

    fn deref(&self) -> &Sender {
        &self.sender
    }
}

impl Drop for SenderGuard {
    fn drop(&mut self) {
        lock(&self.registry.live).remove(&self.sender.identity.pid);
        self.registry.refresh_horizon();
    }
}

impl Senders {
    pub(super) fn new(slots: Arc<Slots>) -> Arc<Senders> {
        let horizon = watch::Sender::new(slots.feedback());
        Arc::new(Senders { slots, live: Mutex::default(), horizon, reported: Mutex::default() })
    }

    /// Enters a consumer.
    pub fn register(self: &Arc<Self>, identity: SenderIdentity) -> SenderGuard {
        let sender = Arc::new(Sender {
            state: AtomicU8::new(SenderState::Startup as u8),
            sent: AtomicU64::default(),
            write: AtomicU64::default(),
            flush: AtomicU64::default(),
            replay: AtomicU64::default(),
            lag: Default::default(),
            fully_applied: AtomicBool::default(),
            reply_time: AtomicU64::default(),
            feedback: Mutex::default(),
            identity,
        });
        lock(&self.live).insert(sender.identity.pid, sender.clone());
        SenderGuard { sender, registry: self.clone() }
    }

    /// Everybody connected, by PID.
    pub fn list(&self) -> Vec<SenderStatus> {
        lock(&self.live).values().map(|sender| sender.status()).collect()
    }

    /// The merged feedback of all consumers, slots included.
    pub fn horizon(&self) -> watch::Receiver<FeedbackHorizon> {
        self.horizon.subscribe()
    }

    /// What this server was told last of the horizon, perhaps in another connection; `None` where it was none of ours, or
    /// another server's was told since.
    pub fn reported(&self, server: &str) -> Option<FeedbackHorizon> {
        lock(&self.reported).as_ref().filter(|(told, _)| told == server).map(|(_, horizon)| *horizon)
    }

    /// Notes what a server is told of the horizon.
    pub fn note_reported(&self, server: &str, horizon: FeedbackHorizon) {
        let mut reported = lock(&self.reported);
        match &mut *reported {
            Some((told, before)) if told == server => *before = horizon,
            other => *other = Some((server.to_owned(), horizon)),
        }
    }

    /// Takes a consumer's feedback. What streams from a slot leaves its feedback with the slot, where it
    /// outlives the connection; else it ends with the connection (PG: `ProcessStandbyHSFeedbackMessage`).
    pub fn set_feedback(&self, sender: &Sender, slot: Option<&SlotGuard>, feedback: FeedbackHorizon) {
        match slot {
            Some(slot) => slot.set_feedback(feedback),
            None => *lock(&sender.feedback) = feedback,
        }
        self.refresh_horizon();
    }

    /// Computes the merged horizon anew, after a change of slots or consumers.
    pub fn refresh_horizon(&self) {
        // Held until it is published: what was computed later must not be followed by something older.
        let live = lock(&self.live);
        let merged =
            live.values().fold(self.slots.feedback(), |merged, sender| merged.merge(*lock(&sender.feedback)));
        self.horizon.send_if_modified(|current| {
            let changed = *current != merged;
            *current = merged;
            changed
        });
    }
}

/// When WAL arrived, by position: a ring of samples from which lag in time is read, the same for all
/// consumers (PostgreSQL keeps one `LagTracker` per walsender).
#[derive(Debug)]
pub struct LagClock {
    samples: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    /// Positions rise; the oldest sample is at `next` once the ring is full.
    samples: Vec<(Lsn, Instant)>,
    next: usize,
}

impl LagClock {
    const SAMPLES: usize = 4096;
    const SPACING: Duration = Duration::from_millis(10);

    pub(super) fn new() -> LagClock {
        LagClock { samples: Mutex::new(Ring { samples: Vec::new(), next: 0 }) }
    }

    /// WAL up to `end` became visible at `now`.
    pub(super) fn arrived(&self, end: Lsn, now: Instant) {
        let mut ring = lock(&self.samples);
        let newest = ring.newest();
        if newest.is_some_and(|(lsn, at)| end <= lsn || now.duration_since(at) < LagClock::SPACING) {
            return;
        }
        if ring.samples.len() < LagClock::SAMPLES {
            ring.samples.push((end, now));
        } else {
            let next = ring.next;
            ring.samples[next] = (end, now);
        }
        ring.next = (ring.next + 1) % LagClock::SAMPLES;
    }

    /// Forgets everything: positions begin anew, before those that were reached.
    pub(super) fn reset(&self) {
        *lock(&self.samples) = Ring { samples: Vec::new(), next: 0 };
    }

    /// How long ago the WAL before `lsn` arrived; `None` when no sample reaches that far back or forward.
    pub fn since_arrival(&self, lsn: Lsn, now: Instant) -> Option<Duration> {
        let ring = lock(&self.samples);
        let (newer, older) = ring.samples.split_at(ring.next.min(ring.samples.len()));
        let (a, b) = (older, newer);
        let in_order = |at: usize| if at < a.len() { a[at] } else { b[at - a.len()] };
        let (mut low, mut high) = (0, ring.samples.len());
        while low < high {
            let middle = (low + high) / 2;
            if in_order(middle).0 < lsn { low = middle + 1 } else { high = middle }
        }
        (low < ring.samples.len() && lsn != Lsn::INVALID)
            .then(|| now.saturating_duration_since(in_order(low).1))
    }
}

impl Ring {
    fn newest(&self) -> Option<(Lsn, Instant)> {
        let last = self.next.checked_sub(1).unwrap_or(LagClock::SAMPLES - 1);
        self.samples.get(last).copied()
    }
}

#[cfg(test)]
mod tests {
    use walrelay_proto::FullXid;

    use super::*;
    use crate::disk::OsDisk;

    /// However they race: what is published last is what holds then.
    #[test]
    fn the_published_horizon_is_never_older_than_the_feedback() {
        let dir = crate::permissions::private_tempdir();
        let dir = Arc::new(super::super::dir::DataDir::lock(Arc::new(OsDisk), dir.path()).unwrap());
        let senders = Senders::new(Slots::open(dir, 1).unwrap());
        let guards: Vec<_> = (1..=2).map(|pid| senders.register(identity(pid))).collect();
        for round in 1..2000 {
            std::thread::scope(|threads| {
                for guard in &guards {
                    let xmin = FullXid::new(0, round * 10 + guard.identity().pid);
                    let feedback = FeedbackHorizon { xmin, catalog_xmin: None };
                    let senders = &senders;
                    threads.spawn(move || senders.set_feedback(guard, None, feedback));
                }
            });
            assert_eq!(senders.horizon().borrow().xmin, FullXid::new(0, round * 10 + 1), "round {round}");
        }
    }

    #[test]
    fn who_has_replayed_everything_has_no_lag() {
        let dir = crate::permissions::private_tempdir();
        let dir = Arc::new(super::super::dir::DataDir::lock(Arc::new(OsDisk), dir.path()).unwrap());
        let sender = Senders::new(Slots::open(dir, 1).unwrap()).register(identity(1));
        let (clock, start) = (LagClock::new(), Instant::now());
        let at = |lsn| Lsn::new(lsn);
        clock.arrived(at(100), start);
        clock.arrived(at(200), start + Duration::from_secs(1));
        sender.set_sent(at(200));
        sender.set_reply(at(200), at(100), at(0), &clock);
        let lags = || {
            let status = sender.status();
            [status.write_lag, status.flush_lag, status.replay_lag].map(|lag| lag.is_some())
        };
        assert_eq!(lags(), [true, true, false]);
        // Nothing new, but not everything is replayed.
        sender.set_reply(at(200), at(100), at(0), &clock);
        assert_eq!(lags(), [true, true, false]);
        sender.set_reply(at(200), at(200), at(200), &clock);
        assert_eq!(lags(), [true; 3]);
        sender.set_reply(at(200), at(200), at(200), &clock);
        assert_eq!(lags(), [false; 3]);
    }

    fn identity(pid: u32) -> SenderIdentity {
        SenderIdentity {
            pid,
            user: "u".into(),
            application_name: String::new(),
            client_addr: None,
            backend_start: SystemTime::now(),
        }
    }

    #[test]
    fn lag_is_read_from_the_sample_that_covers_the_position() {
        let clock = LagClock::new();
        let start = Instant::now();
        let at = |n: u32| start + LagClock::SPACING * n;
        for n in 1..=(LagClock::SAMPLES as u32 + 10) {
            clock.arrived(Lsn::new(u64::from(n) * 100), at(n));
        }
        let now = at(LagClock::SAMPLES as u32 + 20);
        let lag = |lsn: u64| clock.since_arrival(Lsn::new(lsn), now);
        assert_eq!(lag(1_000_000), None, "not arrived yet");
        assert_eq!(lag(0), None, "nothing reported");
        assert_eq!(lag(50_000), Some(now - at(500)));
        assert_eq!(lag(49_901), Some(now - at(500)));
        assert_eq!(lag(1), Some(now - at(11)), "older than the ring: its oldest sample");
        // Back to an older position: what arrives there counts.
        clock.reset();
        assert_eq!(lag(50_000), None);
        clock.arrived(Lsn::new(40_000), at(LagClock::SAMPLES as u32 + 15));
        assert_eq!(lag(40_000), Some(LagClock::SPACING * 5));
    }
}
