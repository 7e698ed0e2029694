//! Live WAL: consumers that have everything and wait are sent what is new where it is published.
//!
//! ```text
//!            nothing to do: lends its hand            takes it back, for whatever reason
//!  walsender ────────────────────────────> Line ────────────────────────────────────────> walsender
//!                                           │ whoever publishes, or a pass
//!                                           v
//!                              hears, writes what the socket takes; calls the walsender
//!                              for everything else
//! ```
//!
//! A walsender that waits *lends* what it sends with, its [`Hand`]. Whoever publishes ([`Audience`]) uses the hands of a few
//! and leaves the others to [passes](Live::pass) on the shared runtime: one task goes through many lines, and no task of a
//! consumer has to be woken. A hand that is in use, or not lent, is passed over, and its walsender called instead: it looks at
//! what is published before it lends again. So nobody waits for a consumer, and a consumer misses nothing.
//!
//! A lent hand does one thing: it sends a little WAL that was written a moment ago, as its [`Sender`] says. Whatever else the
//! sender wants, an error, WAL that the socket does not take whole: that stays in the line for the walsender.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Instant, SystemTime};

use tokio::sync::Notify;
use walrelay_proto::sender::{Input, Output, Published, Sender};
use walrelay_proto::{Lsn, PgTimestamp, SegSize, TimelineId};

use super::batch::Batch;
use crate::consumers::Consumer;
use crate::store::{Audience, Segment, Store, TimelinePosition};
use crate::wire::Socket;

/// Consumers that whoever publishes serves itself: each takes microseconds of its time, and waking somebody else takes as
/// many as some of them.
const DIRECT: usize = 8;
/// Lines that it looks at for them.
const LOOKED_AT: usize = 4 * DIRECT;
/// Most WAL that a lent hand sends at a time, bytes. More of it is for walsenders, which can do so side by side.
const LITTLE: u64 = 64 << 10;
/// Tasks that share the passes.
pub(super) const PASSES: usize = 2;
/// Lines of one pass before other tasks get their turn.
const TURN: usize = 32;
/// Closer than this to the newest WAL everything that this process has received was written a moment ago and is in
/// memory, bytes.
pub(super) const RECENT: u64 = 16 << 20;

/// What a walsender sends with.
#[derive(Debug)]
pub(super) struct Hand {
    pub(super) sender: Sender,
    /// To read from, by the history that `sender` knows.
    pub(super) segment: Option<Arc<Segment>>,
    /// What the socket has not taken yet.
    pub(super) batch: Option<Batch>,
}

/// A hand that is lent, and what came of it that its walsender has to see to.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) hand: Box<Hand>,
    /// What is to be done first.
    pub(super) output: Option<Output>,
    pub(super) error: Option<io::Error>,
}

/// One consumer, as whoever publishes sees it.
#[derive(Debug)]
pub(super) struct Line {
    lent: Mutex<Option<Lent>>,
    /// Wakes the walsender: there is something new, or something is left for it.
    called: Notify,
    /// `None` where writing takes more than a system call.
    socket: Option<Socket>,
    store: Arc<Store>,
    consumer: Arc<Consumer>,
    seg_size: SegSize,
    /// First byte of WAL that this process has received.
    received_from: Lsn,
}

impl Line {
    pub(super) fn new(
        socket: &Socket,
        store: Arc<Store>,
        consumer: Arc<Consumer>,
        seg_size: SegSize,
        received_from: Lsn,
    ) -> Line {
        let (lent, called, socket) = (Mutex::default(), Notify::new(), socket.share());
        Line { lent, called, socket, store, consumer, seg_size, received_from }
    }

    /// Whether a hand is of any use here.
    pub(super) fn takes_hands(&self) -> bool {
        self.socket.is_some()
    }

    /// Lends a hand with which nothing is being sent, and whose sender has said all it has to say.
    pub(super) fn lend(&self, hand: Box<Hand>) {
        *self.lock() = Some(Lent { hand, output: None, error: None });
    }

    /// Takes back what was lent. Whoever uses it at the moment is done in some microseconds.
    pub(super) fn take_back(&self) -> Option<Lent> {
        self.lock().take()
    }

    /// Waits for a call since the last one. Cancel-safe.
    pub(super) async fn called(&self) {
        self.called.notified().await;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Lent>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is new, or calls the walsender; whether it was sent.
    fn serve(&self, end: impl FnOnce() -> Option<TimelinePosition>, wall: PgTimestamp) -> bool {
        let served = match self.lent.try_lock() {
            // The position is read behind the lock: what somebody else has sent meanwhile is not behind it.
            Ok(mut lent) => lent.as_mut().and_then(|lent| self.send(lent, end(), wall)),
            Err(TryLockError::WouldBlock) => None,
            // Whoever used it has panicked, which has been told: its walsender sees what is left.
            Err(TryLockError::Poisoned(_)) => None,
        };
        if served.is_none() {
            self.called.notify_one();
        }
        served.unwrap_or(false)
    }

    /// Sends what is new, if that is little; `None` if something is left for the walsender.
    fn send(&self, lent: &mut Lent, end: Option<TimelinePosition>, wall: PgTimestamp) -> Option<bool> {
        let is_free = lent.hand.batch.is_none() && lent.output.is_none() && lent.error.is_none();
        // The position first: one that is new belongs to a history that is there.
        let socket = self.socket.as_ref().filter(|_| is_free)?;
        let hand = &mut *lent.hand;
        if !Arc::ptr_eq(hand.sender.history(), &self.store.history()) {
            return None;
        }
        let now = Instant::now();
        let published = end.map(|end| Published { tli: end.tli, lsn: end.lsn });
        hand.sender.handle(Input::Published(published), now);
        let Some(output) = hand.sender.poll_output(wall) else { return Some(false) };
        let Output::Wal { tli, from, to, end } = output else {
            lent.output = Some(output);
            return None;
        };
        let Some(segment) = self.segment(hand, tli, from, to, end) else {
            // By the time that the walsender comes to it another history may hold: as if it had not been given out.
            hand.sender.handle(Input::Fetching, now);
            hand.sender.handle(Input::Fetched, now);
            return None;
        };
        let mut batch = Batch::new(segment, from, to, end, wall);
        match batch.send(socket) {
            Ok(true) => {}
            Ok(false) => {
                hand.batch = Some(batch);
                return None;
            }
            Err(error) => {
                (hand.batch, lent.error) = (Some(batch), Some(error));
                return None;
            }
        }
        hand.sender.handle(Input::Sent, now);
        self.consumer.set_sent(hand.sender.sent());
        // Nothing, as a rule.
        match hand.sender.poll_output(wall) {
            None => return Some(true),
            // More WAL, of the next segment: as above.
            Some(Output::Wal { .. }) => {
                hand.sender.handle(Input::Fetching, now);
                hand.sender.handle(Input::Fetched, now);
            }
            other => lent.output = other,
        }
        None
    }

    /// The segment of WAL that a lent hand may send.
    fn segment(
        &self,
        hand: &mut Hand,
        tli: TimelineId,
        from: Lsn,
        to: Lsn,
        end: Lsn,
    ) -> Option<Arc<Segment>> {
        let is_recent = from >= self.received_from && end.since(from) <= RECENT;
        if !is_recent || to.since(from) > LITTLE {
            return None;
        }
        let segno = from.seg_at(self.seg_size);
        if hand.segment.as_ref().is_none_or(|segment| segment.name().segno != segno) {
            hand.segment = self.store.mapped_segment_on(hand.sender.history(), tli, segno);
        }
        hand.segment.clone().filter(|segment| to.since(segment.start()) <= segment.published())
    }
}

/// All lines.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Copied where somebody comes or goes, so that nobody holds the lock who writes to sockets.
    lines: Mutex<Arc<Vec<Arc<Line>>>>,
    passes: [Notify; PASSES],
}

/// A place among the lines; given up when this is dropped, with a hand that is lent.
#[derive(Debug)]
pub(super) struct Seat {
    line: Arc<Line>,
    live: Arc<Live>,
}

impl Live {
    /// A place for a line.
    pub(super) fn seat(self: &Arc<Self>, line: Line) -> Seat {
        let line = Arc::new(line);
        self.change(|lines| lines.push(line.clone()));
        Seat { line, live: self.clone() }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Line>>)) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut lines));
    }

    fn lines(&self) -> Arc<Vec<Arc<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves one part of the lines whenever something was published, for ever. There have to be [`PASSES`] of them. The last line
    /// comes first: whoever publishes begins at the other end, at the same time.
    pub(super) async fn pass(self: Arc<Self>, number: usize, store: Arc<Store>) {
        loop {
            self.passes[number].notified().await;
            let lines = self.lines();
            let written = store.written();
            for turn in lines.rchunks(TURN * PASSES) {
                let wall = clock();
                let mine = turn.iter().rev().skip(number).step_by(PASSES);
                mine.for_each(|line| _ = line.serve(|| *written.borrow(), wall));
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Audience for Live {
    fn hear(&self, end: Option<TimelinePosition>) {
        let lines = self.lines();
        // First of all: who is woken takes a while to come.
        if lines.len() > DIRECT {
            self.passes.iter().for_each(Notify::notify_one);
        }
        let (wall, mut served) = (clock(), 0);
        for line in lines.iter().take(LOOKED_AT) {
            if served == DIRECT {
                break;
            }
            served += usize::from(line.serve(|| end, wall));
        }
    }
}

impl std::ops::Deref for Seat {
    type Target = Line;

    fn deref(&self) -> &Line {
        &self.line
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.live.change(|lines| lines.retain(|line| !Arc::ptr_eq(line, &self.line)));
        drop(self.line.take_back());
    }
}

fn clock() -> PgTimestamp {
    PgTimestamp::from_system_time(SystemTime::now())
}
