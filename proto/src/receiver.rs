//! The walreceiver, without a socket, a file or a clock: what came in, what is to be done.
//!
//! The caller reads into [`Receiver::room`] and tells what has happened ([`Input`]); then it asks for one [`Action`]
//! after the other and performs each, until there is none; then it waits, until [`Receiver::deadline`] at most.
//! WAL is not copied: an action names it in the receive buffer.
//!
//! ```text
//!              Compare ... Accept                 Append, Commit, reports, answers, feedback
//! COPY BOTH ──> comparing ──────────────────────> streaming ──┬─ 'C' ──────────────────> ServerStopped
//!                   │ ERROR                         │    │    └─ pings without an end ─> CopyDone, ServerStopped
//!                   v                               │    └─ Stop: until all is durable ─> report, Terminate, Stopped
//!                refused ── 'Z' ─> error            └─ CopyDone: CopyDone ─> leaving ── 'Z' ─> Timeline
//! ```
//!
//! **Invariants.** What is reported as flushed was told to be durable ([`Input::Positions`]), on this timeline, and to be
//! reported; as long as the stream's beginning was not found the same, nothing is stored or reported. Positions reported
//! never fall.
//! Whatever bytes come, each call ends, with an error at worst, and the buffer has room when bytes are asked for.

mod buffer;
mod cut;
mod error;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::buffer::Buffer;
use self::cut::{Cutter, Piece};
pub use self::error::ReceiverError;
use crate::ack::Positions;
use crate::feedback::FeedbackHorizon;
use crate::lsn::Lsn;
use crate::message::{HotStandbyFeedback, PgTimestamp, ServerMessage, StandbyStatusUpdate};
use crate::timeline::TimelineId;
use crate::timer::{PeerDue, PeerTimer};

/// Silence on our side after which a status update is due. Walsenders of 16 and later can sleep on WAL that is flushed
/// already until the standby says something.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
/// Pause before the first status update. A server that no longer has the WAL we ask for says so right behind its
/// CopyBoth, and an update sent before would move our slot back to WAL that is gone.
const FIRST_STATUS: Duration = Duration::from_millis(50);
/// Silence after which a server is asked for a sign of life at the latest, however long it may be silent: whoever looks at the relay
/// takes one that has said nothing for longer than this, and a little more, for cut off.
const ASK_AFTER: Duration = Duration::from_secs(30);
/// Silence after which a server that owes us a result is given up.
const RESULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Pings in a row for a position that we cannot confirm, after which we end the stream: see `Receiver::ping`.
const PATIENCE: u32 = 3;
/// How long a server that asks again and again waits for those whom our reports depend on, before we end the stream: see
/// `Receiver::ping`.
const GROUP_PATIENCE: Duration = Duration::from_secs(10);
/// Smallest receive buffer, bytes: the largest message that is not WAL twice.
const MIN_BUFFER: usize = 2 * (cut::MAX_SMALL + 5);

/// What a stream begins with.
#[derive(Clone, Copy, Debug)]
pub struct StreamStart {
    /// The timeline that was asked for.
    pub tli: TimelineId,
    /// The first byte that is not held yet.
    pub position: Lsn,
    /// Where the stream begins with what is held already, up to `position`, and has to be the same; `None` where what
    /// comes before `position` is nothing to be judged by.
    pub compare_from: Option<Lsn>,
    /// `wal_receiver_timeout`; `None` for never.
    pub timeout: Option<Duration>,
    /// What this server was told last of the feedback, in an earlier connection; `None` where that is not known: its slot
    /// may hold anything.
    pub told: Option<FeedbackHorizon>,
}

/// What has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// So many bytes were read into [`Receiver::room`].
    Arrived(usize),
    /// The socket has come to its end, or broke.
    Closed,
    /// The answer to [`Action::LookOnceMore`] where nothing has come.
    Silent,
    /// How far the store is: to be told after [`Action::Commit`] and [`Action::ShowStart`], and when `flush_lsn`, or what is
    /// to be reported, has moved. Of another timeline it is passed over.
    Positions {
        /// Their timeline.
        tli: TimelineId,
        /// End of what is verified, written and visible to consumers.
        write_lsn: Lsn,
        /// End of what survives a power cut.
        flush_lsn: Lsn,
        /// What of that is to be reported, and what consumers have replayed ([`Acknowledger::compose`]).
        ///
        /// [`Acknowledger::compose`]: crate::ack::Acknowledger::compose
        report: Positions,
    },
    /// The store has failed: nothing will become durable any more.
    StoreFailed,
    /// What standbys need. To be told at the beginning, and when it has changed.
    Feedback(FeedbackHorizon),
    /// The deadline is over.
    Timeout,
    /// We are to stop, once all that is written is durable and confirmed. Once is enough.
    Stop,
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Compare these bytes with what is held there; where they differ, the stream is over.
    Compare {
        /// Position of the first one.
        at: Lsn,
        /// For [`Receiver::wal`].
        wal: Range<usize>,
    },
    /// All of the beginning was the same: the server is one that we follow.
    Accept,
    /// Verify these bytes and store them. None lies behind a gap; what is held already is to be compared. Where they are
    /// refused, the stream is over.
    Append {
        /// Position of the first one.
        at: Lsn,
        /// For [`Receiver::wal`].
        wal: Range<usize>,
    },
    /// Show what was appended, as far as its records are whole, and have it synced. Then tell the
    /// [positions](Input::Positions).
    Commit,
    /// The server streams: it has sent something, or has had time to refuse.
    Announce,
    /// Show where WAL will begin, if none is held; an upstream with nothing to send must not keep consumers waiting, nor
    /// its slot from keeping WAL. Then tell the [positions](Input::Positions).
    ShowStart,
    /// Send this.
    Send(Message),
    /// The server has been silent for too long, if it was not us who were held up, by the disk or by a signal: what has
    /// come meanwhile lies in the socket. Look whether anything does, for a moment, and tell [`Input::Arrived`],
    /// [`Input::Closed`] or [`Input::Silent`].
    LookOnceMore,
    /// A message that is not about WAL: NoticeResponse, `N`, or ParameterStatus, `S`.
    Note {
        /// Its type.
        kind: u8,
        /// Its body.
        body: Bytes,
    },
    /// The stream is over. [`Receiver::unread`] is what came behind it.
    End(StreamEnd),
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamEnd {
    /// The timeline has ended. The connection is idle again.
    Timeline {
        /// The next one and where it begins, if the server said.
        next: Option<(TimelineId, Lsn)>,
    },
    /// The upstream is shutting down; the connection is over.
    ServerStopped,
    /// We were told to stop; the connection is over.
    Stopped,
}

/// What is sent to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Our positions.
    Status(StandbyStatusUpdate),
    /// What our standbys need.
    Feedback(HotStandbyFeedback),
    /// CopyDone.
    CopyDone,
    /// Terminate.
    Terminate,
}

impl Message {
    /// Appends the whole message.
    pub fn put(&self, to: &mut Vec<u8>) {
        match self {
            Message::Status(status) => to.extend(status.frame()),
            Message::Feedback(feedback) => to.extend(feedback.frame()),
            Message::CopyDone => to.extend(b"c\0\0\0\x04"),
            Message::Terminate => to.extend(b"X\0\0\0\x04"),
        }
    }
}

/// A stream being received, from CopyBothResponse to its end.
#[derive(Debug)]
pub struct Receiver {
    tli: TimelineId,
    state: State,
    buffer: Buffer,
    cutter: Cutter,
    /// What was decided and is not done yet.
    steps: VecDeque<Step>,
    /// Where what the stream has to begin with goes on; `None` when all of it was found the same.
    comparing: Option<Lsn>,
    /// End of what was received; the stream's first new byte at the beginning.
    received: Lsn,
    /// Whether anything was appended since the last commit.
    uncommitted: bool,
    /// What the store has of this timeline; `flush_lsn <= write_lsn`, and neither falls.
    write_lsn: Option<Lsn>,
    flush_lsn: Option<Lsn>,
    /// What of that is to be reported. `apply <= flush <= flush_lsn`, `flush <= write <= write_lsn`; none falls.
    confirmed: Positions,
    timer: PeerTimer,
    line: Line,
    /// Whether we were told to stop.
    stop: bool,
    store_failed: bool,
    /// Whether the server has begun to send.
    announced: bool,
    /// Positions in the last status update, and when the next is due at the latest.
    reported: Positions,
    next_report: Instant,
    /// Feedback that is to be sent.
    feedback: Option<FeedbackHorizon>,
    /// What the server was told last, if that is known, and whether it was told anything in this connection.
    told: Option<FeedbackHorizon>,
    feedback_sent: bool,
    unanswerable_pings: u32,
    /// Since when the server has asked for what those whom our reports depend on have not confirmed.
    asked_since: Option<Instant>,
    /// See [`Receiver::server_end`].
    server_end: Option<Lsn>,
}

#[derive(Debug)]
enum State {
    /// WAL comes; its beginning may be compared still.
    Streaming,
    /// All is received that will be: until it is durable.
    Stopping,
    /// The server has sent all of the timeline: its result.
    Leaving { next: Option<(TimelineId, Lsn)>, failure: Option<Bytes> },
    /// The server did not send what was asked for: its ReadyForQuery.
    Refused { response: Bytes },
    /// Nothing more will be done.
    Over,
}

/// What is known of the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line {
    Open,
    /// The server is given up unless something lies in the socket.
    Looking,
    /// Nothing did.
    Silent,
    Closed,
}

/// Something to do, some of it to be decided only when its turn has come: with the positions of that moment.
#[derive(Debug)]
enum Step {
    Do(Action),
    Message { kind: u8, body: Bytes },
    Ping { sent: Lsn },
    Report { reply_requested: bool },
    Feedback(FeedbackHorizon),
}

impl Receiver {
    /// The server has answered CopyBothResponse. `unread` is what came behind that; the receive buffer has `size` bytes, or
    /// more if that is too little.
    pub fn new(start: StreamStart, unread: &[u8], size: usize, now: Instant) -> Receiver {
        Receiver {
            tli: start.tli,
            state: State::Streaming,
            buffer: Buffer::new(unread, size.max(MIN_BUFFER)),
            cutter: Cutter::default(),
            steps: VecDeque::with_capacity(8),
            comparing: start.compare_from,
            received: start.position,
            uncommitted: false,
            write_lsn: None,
            flush_lsn: None,
            confirmed: Positions::default(),
            timer: PeerTimer::new(start.timeout, now).asking_after(ASK_AFTER),
            line: Line::Open,
            stop: false,
            store_failed: false,
            announced: false,
            reported: Positions::default(),
            next_report: now + FIRST_STATUS,
            feedback: None,
            told: start.told,
            feedback_sent: false,
            unanswerable_pings: 0,
            asked_since: None,
            server_end: None,
        }
    }

    /// Where to read to; never empty when [bytes are wanted](Self::wants_bytes) and there is nothing left to do. What was
    /// named in an action before is no longer there.
    pub fn room(&mut self) -> &mut [u8] {
        self.buffer.room()
    }

    /// WAL that an action names.
    pub fn wal(&self, range: &Range<usize>) -> &[u8] {
        self.buffer.taken(range.clone())
    }

    /// What was read and not taken: after [`StreamEnd::Timeline`] it is the beginning of the next answer.
    pub fn unread(&self) -> &[u8] {
        self.buffer.unread()
    }

    /// Where the server's WAL ended as far as it has told: with its WAL how far it could send, with a keepalive how far it had
    /// sent (PostgreSQL: `latest_end_lsn`). Not checked: it decides nothing.
    pub fn server_end(&self) -> Option<Lsn> {
        self.server_end
    }

    /// Whether to read. Not once we stop.
    pub fn wants_bytes(&self) -> bool {
        self.line != Line::Closed && !matches!(self.state, State::Stopping | State::Over)
    }

    /// Whether we only wait until what is written is durable, or the store [fails](Input::StoreFailed).
    pub fn waits_for_store(&self) -> bool {
        matches!(self.state, State::Stopping)
    }

    /// When to tell [`Input::Timeout`]; `None` for never.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            _ if self.line != Line::Open => None,
            State::Streaming => {
                Some(self.timer.deadline().map_or(self.next_report, |at| at.min(self.next_report)))
            }
            State::Leaving { .. } | State::Refused { .. } => self.timer.deadline(),
            State::Stopping | State::Over => None,
        }
    }

    /// Takes note of what has happened.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Arrived(count) => {
                self.buffer.filled(count);
                self.timer.heard(now);
                self.line = Line::Open;
            }
            Input::Closed => self.line = Line::Closed,
            Input::Silent if self.line == Line::Looking => self.line = Line::Silent,
            Input::Silent => {}
            Input::Positions { tli, write_lsn, flush_lsn, report } if tli == self.tli => {
                self.note_positions(write_lsn, flush_lsn, report);
            }
            Input::Positions { .. } => {}
            Input::StoreFailed => self.store_failed = true,
            Input::Feedback(horizon) => self.feedback = Some(horizon),
            Input::Timeout => self.handle_timeout(now),
            Input::Stop => self.stop = true,
        }
    }

    /// What is to be done next; `None` when there is nothing until something happens. `clock` is what the system clock
    /// shows.
    ///
    /// # Errors
    /// The stream is over.
    pub fn poll(&mut self, now: Instant, clock: PgTimestamp) -> Result<Option<Action>, ReceiverError> {
        if matches!(self.state, State::Over) {
            return Ok(None);
        }
        let next = self.next(now, clock);
        if matches!(next, Err(_) | Ok(Some(Action::End(_)))) {
            self.state = State::Over;
        }
        next
    }

    fn next(&mut self, now: Instant, clock: PgTimestamp) -> Result<Option<Action>, ReceiverError> {
        loop {
            match self.steps.pop_front() {
                Some(Step::Do(action)) => return Ok(Some(action)),
                Some(Step::Report { reply_requested }) => {
                    return Ok(Some(self.report(reply_requested, now, clock)));
                }
                Some(Step::Ping { sent }) => self.ping(sent, now),
                Some(Step::Feedback(horizon)) => {
                    let FeedbackHorizon { xmin, catalog_xmin } = horizon;
                    let feedback = HotStandbyFeedback { send_time: clock, xmin, catalog_xmin };
                    return Ok(Some(Action::Send(Message::Feedback(feedback))));
                }
                Some(Step::Message { kind, body }) => self.take_message(kind, body, now)?,
                None if self.take_input()? || self.settle()? => {}
                None => return Ok(None),
            }
        }
    }

    fn then(&mut self, action: Action) {
        self.steps.push_back(Step::Do(action));
    }

    /// Takes the next piece of the stream; whether there is one.
    fn take_input(&mut self) -> Result<bool, ReceiverError> {
        let expected = !matches!(self.state, State::Stopping | State::Over);
        match expected.then(|| self.cutter.cut(&mut self.buffer)).transpose()?.flatten() {
            Some(Piece::Wal { at, wal }) => {
                self.server_end = self.cutter.take_server_end().or(self.server_end);
                self.take_wal(at, wal)?;
            }
            Some(Piece::Message { kind, body }) => {
                // Positions in an answer cover what came before the question.
                self.commit();
                self.steps.push_back(Step::Message { kind, body });
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    fn take_wal(&mut self, at: Lsn, wal: Range<usize>) -> Result<(), ReceiverError> {
        if !matches!(self.state, State::Streaming) {
            // It may cross our CopyDone.
            return Ok(());
        }
        (self.unanswerable_pings, self.asked_since) = (0, None);
        let (at, wal) = self.take_known(at, wal)?;
        if self.comparing.is_some() {
            return Ok(());
        }
        self.announce();
        if at > self.received {
            return Err(ReceiverError::Gap { at, expected: self.received });
        }
        if !wal.is_empty() {
            self.received = self.received.max(at.advance(wal.len() as u64));
            self.uncommitted = true;
            self.then(Action::Append { at, wal });
        }
        Ok(())
    }

    /// Has what the stream begins with compared; what remains of the piece.
    fn take_known(&mut self, at: Lsn, wal: Range<usize>) -> Result<(Lsn, Range<usize>), ReceiverError> {
        let Some(next) = self.comparing else { return Ok((at, wal)) };
        if at != next {
            return Err(ReceiverError::Gap { at, expected: next });
        }
        let len = usize::try_from(self.received.since(at)).map_or(wal.len(), |len| len.min(wal.len()));
        let (middle, behind) = (wal.start + len, at.advance(len as u64));
        self.comparing = (behind < self.received).then_some(behind);
        if len > 0 {
            self.then(Action::Compare { at, wal: wal.start..middle });
        }
        if self.comparing.is_none() {
            self.then(Action::Accept);
        }
        Ok((behind, middle..wal.end))
    }

    fn announce(&mut self) {
        if !self.announced {
            self.announced = true;
            self.then(Action::Announce);
        }
    }

    fn commit(&mut self) {
        self.uncommitted = false;
        self.then(Action::Commit);
    }

    /// Everything that has come was taken; whether there is something to do now.
    fn settle(&mut self) -> Result<bool, ReceiverError> {
        if self.uncommitted {
            self.commit();
        } else if matches!(self.state, State::Stopping) {
            self.settle_stop();
        } else if matches!(self.line, Line::Closed | Line::Silent) {
            return Err(self.given_up());
        } else if matches!(self.state, State::Streaming) {
            self.settle_stream();
        }
        Ok(!self.steps.is_empty())
    }

    fn settle_stream(&mut self) {
        if self.stop {
            self.state = State::Stopping;
            return self.commit();
        }
        if self.comparing.is_none()
            && let Some(horizon) = self.feedback.take()
        {
            self.feed_back(horizon);
        }
        if self.announced && self.positions() != self.reported {
            self.steps.push_back(Step::Report { reply_requested: false });
        }
    }

    /// Everything written becomes durable and is confirmed before we leave. Where nothing is written, or nothing more
    /// will become durable, there is nothing to confirm.
    fn settle_stop(&mut self) {
        let durable = self.flush_lsn >= self.write_lsn;
        if !durable && !self.store_failed {
            return;
        }
        if durable && self.write_lsn.is_some() {
            self.steps.push_back(Step::Report { reply_requested: false });
        }
        self.then(Action::Send(Message::Terminate));
        self.then(Action::End(StreamEnd::Stopped));
    }

    fn given_up(&mut self) -> ReceiverError {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Refused { response } => ReceiverError::Server { response, idle: false },
            _ if self.line == Line::Silent => ReceiverError::Timeout,
            _ => ReceiverError::Closed,
        }
    }

    fn take_message(&mut self, kind: u8, body: Bytes, now: Instant) -> Result<(), ReceiverError> {
        match (kind, &mut self.state) {
            (b'N' | b'S', _) => self.then(Action::Note { kind, body }),
            (_, State::Leaving { .. } | State::Refused { .. }) => return self.take_result(kind, body),
            (b'd', _) => match ServerMessage::decode(&body)? {
                ServerMessage::Keepalive(keepalive) if keepalive.reply_requested => {
                    self.server_end = keepalive.end.valid().or(self.server_end);
                    self.steps.push_back(Step::Ping { sent: keepalive.end });
                }
                ServerMessage::Keepalive(keepalive) => {
                    self.server_end = keepalive.end.valid().or(self.server_end);
                }
                ServerMessage::XLogData(..) => {}
            },
            (b'c', _) => {
                self.then(Action::Send(Message::CopyDone));
                self.wait_for_result(State::Leaving { next: None, failure: None }, now);
            }
            (b'C', _) => self.then(Action::End(StreamEnd::ServerStopped)),
            // One that comes before anything was taken, such as WAL that is removed, is followed by its ReadyForQuery at
            // once.
            (b'E', _) if self.comparing.is_some() && error::severity(&body) == Some(b"ERROR") => {
                self.wait_for_result(State::Refused { response: body }, now);
            }
            (b'E', _) => return Err(ReceiverError::Server { response: body, idle: false }),
            (other, _) => return Err(ReceiverError::Unexpected(other)),
        }
        Ok(())
    }

    fn wait_for_result(&mut self, state: State, now: Instant) {
        self.state = state;
        self.timer = PeerTimer::new(Some(RESULT_TIMEOUT), now);
        // It owes us the result; there is nothing to ask.
        self.timer.asked();
    }

    /// What comes behind CopyDone, up to ReadyForQuery.
    fn take_result(&mut self, kind: u8, body: Bytes) -> Result<(), ReceiverError> {
        match (kind, &mut self.state) {
            (b'Z', _) => return self.take_ready(),
            (_, State::Leaving { next, .. }) if kind == b'D' => *next = next_timeline(&body),
            (_, State::Leaving { failure, .. }) if kind == b'E' => *failure = Some(body),
            // Keepalives may come after CopyDone.
            (b'd' | b'T' | b'C', _) | (_, State::Refused { .. }) => {}
            (other, _) => return Err(ReceiverError::Unexpected(other)),
        }
        Ok(())
    }

    fn take_ready(&mut self) -> Result<(), ReceiverError> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Refused { response } | State::Leaving { failure: Some(response), .. } => {
                Err(ReceiverError::Server { response, idle: true })
            }
            State::Leaving { .. } if self.comparing.is_some() => Err(ReceiverError::TooShort),
            State::Leaving { next, .. } => {
                self.then(Action::End(StreamEnd::Timeline { next }));
                Ok(())
            }
            State::Streaming | State::Stopping | State::Over => Ok(()),
        }
    }

    /// The upstream asks how far we are.
    ///
    /// A server that stops asks again and again until we have confirmed exactly what it has sent. If that
    /// ends inside a record (a standby stops at what it had received), we never can: only complete records
    /// are confirmed. Then we end the stream, which lets it go. So we do where all is here, and those whom our reports
    /// depend on do not confirm it for some time: they may be away.
    fn ping(&mut self, sent: Lsn, now: Instant) {
        let answer = Step::Report { reply_requested: false };
        let Positions { write, flush, .. } = self.positions();
        let all_is_durable = self.write_lsn == self.flush_lsn;
        // PG: WalSndDone; without a flush position write counts.
        if self.received != sent || flush.or(write) >= Some(sent) || !all_is_durable {
            self.asked_since = None;
            return self.steps.push_back(answer);
        }
        self.unanswerable_pings += 1;
        let since = *self.asked_since.get_or_insert(now);
        let waits_for_others = self.flush_lsn >= Some(sent);
        if self.unanswerable_pings < PATIENCE {
            self.steps.push_back(answer);
        } else if !waits_for_others || now.saturating_duration_since(since) >= GROUP_PATIENCE {
            self.steps.push_back(answer);
            self.then(Action::Send(Message::CopyDone));
            self.then(Action::End(StreamEnd::ServerStopped));
        }
        // Else the next report is the answer: one that comes at once would be asked for again at once.
    }

    fn report(&mut self, reply_requested: bool, now: Instant, clock: PgTimestamp) -> Action {
        self.reported = self.positions();
        self.next_report = now + STATUS_INTERVAL;
        let Positions { write, flush, apply } = self.reported;
        let status = StandbyStatusUpdate { write, flush, apply, send_time: clock, reply_requested };
        Action::Send(Message::Status(status))
    }

    /// What can be confirmed.
    fn positions(&self) -> Positions {
        match self.comparing {
            None => self.confirmed,
            Some(_) => Positions::default(),
        }
    }

    fn note_positions(&mut self, write_lsn: Lsn, flush_lsn: Lsn, report: Positions) {
        self.write_lsn = self.write_lsn.max(write_lsn.valid());
        self.flush_lsn = self.flush_lsn.max(flush_lsn.min(write_lsn).valid());
        let write = report.write.min(self.write_lsn);
        let flush = report.flush.min(self.flush_lsn).min(write);
        let apply = report.apply.min(flush);
        self.confirmed = self.confirmed.max(Positions { write, flush, apply });
    }

    // PG: XLogWalRcvSendHSFeedback: "none" is sent once, to clear what was sent before.
    fn feed_back(&mut self, horizon: FeedbackHorizon) {
        let none = FeedbackHorizon::default();
        if horizon == none && self.told == Some(none) && self.feedback_sent {
            return;
        }
        if horizon != none && self.told.is_none_or(|told| horizon.falls_behind(told)) {
            self.steps.push_back(Step::Feedback(none));
        }
        self.steps.push_back(Step::Feedback(horizon));
        (self.told, self.feedback_sent) = (Some(horizon), true);
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.timer.due(now) {
            PeerDue::GiveUp => {
                self.line = Line::Looking;
                self.then(Action::LookOnceMore);
            }
            // Behind our CopyDone nothing is said any more.
            _ if !matches!(self.state, State::Streaming) => {}
            PeerDue::Ask => self.steps.push_back(Step::Report { reply_requested: true }),
            PeerDue::Nothing => {
                if self.comparing.is_none() {
                    self.announce();
                    self.then(Action::ShowStart);
                }
                self.steps.push_back(Step::Report { reply_requested: false });
            }
        }
    }
}

/// The row `next_tli, next_tli_startpos` with which a server answers after the end of a timeline; `None` if it is none.
pub fn next_timeline(row: &[u8]) -> Option<(TimelineId, Lsn)> {
    let (_count, mut rest) = row.split_first_chunk::<2>()?;
    let mut text = || {
        let (len, behind) = rest.split_first_chunk()?;
        let (value, behind) = behind.split_at_checked(usize::try_from(i32::from_be_bytes(*len)).ok()?)?;
        rest = behind;
        std::str::from_utf8(value).ok()
    };
    Some((TimelineId::new(text()?.parse().ok()?)?, text()?.parse().ok()?))
}
