//! What there is to see of the upstream side, for whoever looks: the receiver writes, nobody waits for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walrelay_proto::{Lsn, TimelineId, TimelinePosition};

use crate::consumers::LagClock;
use crate::counts::Counter;
use crate::moment::Past;

/// A server that has nothing to send is asked to say so after 30 s at the latest, whatever the timeouts of both sides are
/// (`walrelay_proto::Receiver`): who is silent for longer may be cut off.
const SILENCE: Duration = Duration::from_secs(40);

/// What the receiver is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// Connecting to a server.
    #[default]
    Connecting,
    /// Connected: finding out who it is, comparing histories and the end of the WAL.
    Comparing,
    /// The server is behind what is held here, and waited for.
    Behind,
    /// WAL comes.
    Streaming,
    /// No server can be followed; the next attempt comes after a pause.
    Waiting,
    /// Told to stop.
    Stopped,
}

impl Phase {
    /// All there are.
    pub const ALL: [Phase; 6] = [
        Phase::Connecting,
        Phase::Comparing,
        Phase::Behind,
        Phase::Streaming,
        Phase::Waiting,
        Phase::Stopped,
    ];

    /// What it is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Connecting => "connecting",
            Phase::Comparing => "comparing",
            Phase::Behind => "behind",
            Phase::Streaming => "streaming",
            Phase::Waiting => "waiting",
            Phase::Stopped => "stopped",
        }
    }
}

/// Everything at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// What the receiver is doing.
    pub phase: Phase,
    /// Since when.
    pub since: Past,
    /// The server it is about, or was last: host and port.
    pub host: Option<String>,
    /// `server_version` of the server that was connected to last.
    pub server_version: Option<String>,
    /// The timeline that the server was on when it was asked last.
    pub server_timeline: Option<TimelineId>,
    /// Where the stream began, while there is one.
    pub started_at: Option<TimelinePosition>,
    /// Since when nothing has come although it was tried; `None` while WAL comes.
    pub failing_since: Option<Past>,
    /// Why the last attempt failed, and when; kept after that.
    pub last_error: Option<(String, Past)>,
    /// When the server was heard of last.
    pub last_message: Option<Past>,
    /// Where the server's WAL ended as far as it has told, and when it did.
    pub server_end: Option<(Lsn, Past)>,
    /// Bytes read from servers while they streamed.
    pub received_bytes: u64,
    /// Streams that have begun.
    pub streams: u64,
    /// Attempts that have failed.
    pub failures: u64,
}

/// What there is to see of the upstream side.
#[derive(Debug)]
pub struct Board {
    state: Mutex<State>,
    last_message: AtomicU64,
    server_end: AtomicU64,
    server_end_at: AtomicU64,
    /// When it was told of which end.
    told: LagClock,
    /// Nothing was told yet since the server was connected to.
    is_new: AtomicBool,
    begun: Past,
    received: Counter,
    streams: Counter,
    failures: Counter,
    /// Whether `failing_since` is set, for who looks at each message.
    failing: AtomicBool,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    since: Past,
    host: Option<String>,
    server_version: Option<String>,
    server_timeline: Option<TimelineId>,
    started_at: Option<TimelinePosition>,
    failing_since: Option<Past>,
    last_error: Option<(String, Past)>,
}

impl Default for Board {
    fn default() -> Board {
        let state = State {
            phase: Phase::Connecting,
            since: Past::now(),
            host: None,
            server_version: None,
            server_timeline: None,
            started_at: None,
            failing_since: None,
            last_error: None,
        };
        Board {
            state: Mutex::new(state),
            last_message: AtomicU64::default(),
            server_end: AtomicU64::default(),
            server_end_at: AtomicU64::default(),
            told: LagClock::new(Lsn::INVALID),
            is_new: AtomicBool::new(true),
            begun: Past::now(),
            received: Counter::default(),
            streams: Counter::default(),
            failures: Counter::default(),
            failing: AtomicBool::new(false),
        }
    }
}

impl Board {
    /// Everything there is to see.
    pub fn seen(&self) -> Seen {
        let state = self.lock();
        let past = |cell: &AtomicU64| Past::from_bits(cell.load(Ordering::Relaxed));
        let end = Lsn::new(self.server_end.load(Ordering::Relaxed)).valid();
        Seen {
            phase: state.phase,
            since: state.since,
            host: state.host.clone(),
            server_version: state.server_version.clone(),
            server_timeline: state.server_timeline,
            started_at: state.started_at,
            failing_since: state.failing_since,
            last_error: state.last_error.clone(),
            last_message: past(&self.last_message),
            server_end: end.zip(past(&self.server_end_at)),
            received_bytes: self.received.get(),
            streams: self.streams.get(),
            failures: self.failures.get(),
        }
    }

    /// For how long it may be that there is WAL which is not held here up to `held`: nothing for who has all that the server has
    /// told of, as long as it streams and is heard of. Grows while a line is cut, whether that was noticed or not: what the server
    /// has meanwhile nobody knows, so this is from when it was heard of last. Of servers that were followed by earlier processes
    /// nothing is known.
    pub fn lag(&self, held: Lsn) -> Duration {
        let now = Instant::now();
        let end = Lsn::new(self.server_end.load(Ordering::Relaxed));
        let lacks = self.told.waiting(held, end, now);
        let heard = Past::from_bits(self.server_end_at.load(Ordering::Relaxed)).unwrap_or(self.begun);
        let silent = heard.elapsed();
        let is_heard = self.lock().phase == Phase::Streaming && end != Lsn::INVALID && silent < SILENCE;
        if is_heard { lacks } else { lacks.max(silent) }
    }

    /// A server is connected to.
    pub(super) fn connecting(&self, host: &str) {
        self.lock().enter(Phase::Connecting).host = Some(host.to_owned());
    }

    /// It is there, and has said who it is. Where its WAL ends is told again on its timeline.
    pub(super) fn connected(&self, version: Option<&str>, tli: TimelineId) {
        self.server_end.store(0, Ordering::Relaxed);
        self.told.reset(Lsn::INVALID);
        self.is_new.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        let state = state.enter(Phase::Comparing);
        (state.server_version, state.server_timeline) = (version.map(str::to_owned), Some(tli));
    }

    /// It has less than is held here.
    pub(super) fn behind(&self) {
        self.lock().enter(Phase::Behind);
    }

    /// It streams.
    pub(super) fn streaming(&self, from: TimelinePosition) {
        self.streams.note();
        self.lock().enter(Phase::Streaming).started_at = Some(from);
    }

    /// Nothing came of it.
    pub(super) fn failed(&self, reason: &str) {
        let now = Past::now();
        self.failures.note();
        self.failing.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        state.failing_since.get_or_insert(now);
        state.last_error = Some((reason.to_owned(), now));
    }

    /// The next attempt comes later.
    pub(super) fn waiting(&self) {
        self.lock().enter(Phase::Waiting);
    }

    /// There will be none.
    pub(super) fn stopped(&self) {
        self.lock().enter(Phase::Stopped);
    }

    /// So many bytes have come while it streams.
    pub(super) fn received(&self, bytes: u64) {
        self.received.add(bytes);
        self.last_message.store(Past::now().to_bits(), Ordering::Relaxed);
    }

    /// The server has told, in this stream, where its WAL ends: what was wrong is over.
    pub(super) fn note_server_end(&self, end: Option<Lsn>) {
        let Some(end) = end else { return };
        if self.failing.swap(false, Ordering::Relaxed) {
            self.lock().failing_since = None;
        }
        let heard = self.last_message.load(Ordering::Relaxed);
        let before = self.server_end_at.swap(heard, Ordering::Relaxed);
        if self.server_end.swap(end.as_u64(), Ordering::Relaxed) == end.as_u64() {
            return;
        }
        // What it has had before may have come at any time since it was heard of last.
        let is_new = self.is_new.swap(false, Ordering::Relaxed);
        let since = Past::from_bits(if is_new { before } else { heard });
        let now = Instant::now();
        let since = since.and_then(|since| now.checked_sub(since.elapsed()));
        self.told.arrived(end, since.unwrap_or(now));
    }

    /// For a moment: nothing is waited for under it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enter(&mut self, phase: Phase) -> &mut State {
        if self.phase != phase {
            (self.phase, self.since) = (phase, Past::now());
        }
        if phase != Phase::Streaming {
            self.started_at = None;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use walrelay_testkit::wait_until;

    use super::*;

    #[test]
    fn an_outage_begins_with_its_first_failure_and_ends_when_wal_comes() {
        let board = Board::default();
        board.connecting("a");
        board.failed("refused");
        let begun = board.seen().failing_since;
        board.waiting();
        board.failed("still refused");
        let seen = board.seen();
        assert_eq!((seen.phase, seen.failures, seen.failing_since), (Phase::Waiting, 2, begun));
        assert_eq!(seen.last_error.unwrap().0, "still refused");
        let at = TimelinePosition { tli: TimelineId::FIRST, lsn: Lsn::new(100) };
        board.connected(Some("17.2"), TimelineId::FIRST);
        board.streaming(at);
        board.received(10);
        board.note_server_end(Some(Lsn::new(200)));
        let seen = board.seen();
        assert_eq!((seen.phase, seen.failing_since, seen.started_at), (Phase::Streaming, None, Some(at)));
        assert_eq!(seen.server_end.map(|(lsn, _)| lsn), Some(Lsn::new(200)));
        assert_eq!(seen.last_error.unwrap().0, "still refused", "why it was so stays to be read");
        board.waiting();
        assert_eq!(board.seen().started_at, None);
        // Another server: what the last one had says nothing of it.
        board.connected(None, TimelineId::FIRST);
        assert_eq!(board.seen().server_end, None);
    }

    #[test]
    fn lag_grows_from_when_the_server_was_heard_of_last_until_all_that_it_has_then_is_held() {
        let (board, lsn) = (Board::default(), Lsn::new);
        let grows = |held: Lsn| {
            let before = board.lag(held);
            wait_until("it to grow", || board.lag(held) > before + Duration::from_millis(20));
        };
        grows(lsn(100));
        let stream = || {
            board.connected(None, TimelineId::FIRST);
            board.streaming(TimelinePosition { tli: TimelineId::FIRST, lsn: lsn(100) });
        };
        let tell = |end: u64| {
            board.received(1);
            board.note_server_end(Some(lsn(end)));
        };
        stream();
        tell(200);
        assert_eq!(board.lag(lsn(200)), Duration::ZERO, "it has everything");
        grows(lsn(150));
        assert_eq!(board.lag(lsn(200)), Duration::ZERO, "however long ago that was");
        // The line is cut.
        board.waiting();
        grows(lsn(200));
        let cut = board.lag(lsn(200));
        stream();
        assert!(board.lag(lsn(200)) >= cut, "nothing was told yet");
        tell(500);
        assert!(board.lag(lsn(200)) >= cut, "it may be as old as that");
        assert_eq!(board.lag(lsn(500)), Duration::ZERO);
        tell(600);
        let newest = board.lag(lsn(500));
        assert!(newest < board.lag(lsn(200)), "of that it is known when it was told");
    }
}
