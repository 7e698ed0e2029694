//! The walsender without its socket: what a consumer is sent, asked and told, and what its answers mean.
//!
//! ```text
//!  start ──> CopyBoth ──> catchup ──> streaming ──> stopping (the relay stops) ──> Shutdown
//!               │            │            │
//!               │            └──── end of a left timeline reached ──> CopyDone given out, timeline ended
//!               │                                                           │ client's CopyDone
//!               └── client's CopyDone at any time ──> CopyDone ─────────────┴──> Done { next }
//! ```
//!
//! Whoever has the socket tells a [`Sender`] what happens ([`Sender::handle`]), then does what it says
//! ([`Sender::poll_output`]) until it says nothing more, and wakes it at [`Sender::deadline`]. It owns neither a clock
//! nor a byte of WAL: it gives out ranges, each once and in order, and one at a time. A range ends within its
//! segment and never beyond what is published on the timeline that is sent.
//!
//! What is to be said besides WAL is said between two ranges, and so are the ends that the client is told. A client
//! that does not take the range before such an end is cut off after [`Settings::grace`].
//!
//! Two departures from PostgreSQL: a start ahead of our WAL is not refused, it waits (the upstream has that WAL
//! and we shall), and messages never cross a segment boundary.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::ack::Positions;
use crate::lsn::Lsn;
use crate::message::{
    ClientMessage, ClientMessageError, HotStandbyFeedback, Keepalive, PgTimestamp, StandbyStatusUpdate,
};
use crate::segment::SegSize;
use crate::timeline::{TimelineHistory, TimelineId};
use crate::timer::{PeerDue, PeerTimer};

mod end;
#[cfg(test)]
mod tests;

pub use end::{Cut, End, NotStarted, Refusal};

/// Most WAL in one message, bytes (PostgreSQL: `MAX_SEND_SIZE`). Larger ones make a standby buffer more and gain
/// nothing.
pub const MAX_SEND_SIZE: u64 = 128 * 1024;
/// Most messages in one range of WAL.
pub const MAX_MESSAGES: usize = 4;

/// CopyBothResponse, whole: binary or not is not said, no columns.
const COPY_BOTH_RESPONSE: &[u8] = b"W\0\0\0\x07\0\0\0";
/// CopyDone, whole.
const COPY_DONE: &[u8] = b"c\0\0\0\x04";

/// Where a message that begins at `start` ends, if there is WAL up to `stop` and that is in the same segment: on a page
/// boundary, or at `stop`.
// PG: XLogSendPhysical, "if after advancing we go beyond, round down to page boundary"
pub fn message_end(start: Lsn, stop: Lsn) -> Lsn {
    let end = start.advance(MAX_SEND_SIZE);
    if end >= stop { stop } else { end.page_start() }
}

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long the client may be silent (`wal_sender_timeout`); `None` for ever.
    pub peer_timeout: Option<Duration>,
    /// How long a stop of the relay waits for the client to confirm the last WAL.
    pub shutdown_timeout: Duration,
    /// How long a client that is told to end may take to accept the message before.
    pub grace: Duration,
}

/// What the client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The timeline; `None` for the one that is followed.
    pub tli: Option<TimelineId>,
    /// The first byte wanted.
    pub lsn: Lsn,
    /// From where the client's slot keeps WAL; `None` without a slot, or while it keeps none.
    pub restart_lsn: Option<Lsn>,
}

/// End of what is published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// The timeline that is received.
    pub tli: TimelineId,
    /// End of what everybody may see of it.
    pub lsn: Lsn,
}

/// What the relay has.
#[derive(Clone, Debug)]
pub struct Wal {
    /// Size of its segments.
    pub seg_size: SegSize,
    /// History of the timeline that is followed.
    pub history: Arc<TimelineHistory>,
    /// How far it is there; `None` while there is nothing.
    pub published: Option<Published>,
}

/// What a stream can be told from outside; each counts once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The slot has been invalidated, or somebody has asked for it: the connection has to end.
    Evict,
    /// A client's cancel request: streaming has to end.
    Cancel,
    /// The relay stops: send everything that is published now, have it confirmed, end. What is published later is for the
    /// next stream: the relay goes on receiving until all its consumers have ended.
    Stop,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// The history that holds from now on; the same again is nothing. Where the timeline changes, history and position
    /// may come in any order: until both are there, nothing is given out on the timeline of either.
    History(Arc<TimelineHistory>),
    /// How far WAL is published now.
    Published(Option<Published>),
    /// A message of the client. Not after its CopyDone ([`Sender::is_listening`]).
    Frame {
        /// Its type.
        kind: u8,
        /// What follows type and length.
        body: &'a [u8],
    },
    /// The socket has taken everything that was given out.
    Sent,
    /// The WAL that was given out is not at hand: nothing of it was sent, and it is being fetched.
    Fetching,
    /// What was being fetched is at hand.
    Fetched,
    /// The WAL that was given out, or is being fetched, cannot be had.
    Unavailable,
    /// Somebody wants something of the stream.
    Order(Order),
    /// The time of [`Sender::deadline`] has come, and everything that the client has sent has been handed in.
    Timeout {
        /// But for what could not be read yet: it may be a sign of life.
        unheard: bool,
    },
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send this WAL, in messages that end at [`message_end`]. Answered by [`Input::Sent`], [`Input::Fetching`] or
    /// [`Input::Unavailable`].
    Wal {
        /// The timeline, whose segment is read as the newest history says.
        tli: TimelineId,
        /// The first byte.
        from: Lsn,
        /// The first byte that does not belong to it, in the same segment or at its end.
        to: Lsn,
        /// End of what may be sent at the moment, for the messages' headers.
        end: Lsn,
    },
    /// Send these messages, behind what is being sent. Answered by [`Input::Sent`].
    Bytes(Bytes),
    /// The client has reported its positions.
    Report(Report),
    /// The client's hot-standby feedback.
    Feedback(HotStandbyFeedback),
    /// What the stream is doing has changed.
    State(State),
    /// Another history holds: what was read ahead and what is being fetched is of no use any more.
    Forget,
    /// Streaming is over. Nothing follows.
    End(End),
}

/// Positions as a client reported them, unchecked; 0/0 where it told none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// End of what it has written.
    pub write: Lsn,
    /// End of what it has synced.
    pub flush: Lsn,
    /// End of what it has replayed.
    pub apply: Lsn,
    /// From where its slot has to keep WAL; `None` if the report moves nothing.
    pub confirm: Option<Lsn>,
    /// What of that counts for what the relay reports itself: of WAL that the client was sent, on the way to the timeline
    /// that is received. `None` where it has left that way.
    pub counts: Option<Positions>,
}

/// What a stream is doing, as `pg_stat_replication.state` says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Sends WAL that was there before.
    Catchup,
    /// Has sent everything there is at least once.
    Streaming,
    /// The relay stops.
    Stopping,
}

/// One consumer's stream, from CopyBothResponse to its end.
#[derive(Debug)]
pub struct Sender {
    tli: TimelineId,
    /// First byte that the client has not been sent.
    sent: Lsn,
    wal: Wal,
    settings: Settings,
    talk: Talk,
    flight: Flight,
    /// The next WAL is not at hand.
    fetching: bool,
    /// Our CopyDone is given out: no WAL after it.
    copy_done: bool,
    /// The client has sent its CopyDone; what follows is for somebody else.
    client_done: bool,
    timer: PeerTimer,
    parting: Option<Parting>,
    /// A keepalive is to be sent between two ranges, one however often the client has asked; whether it asks the
    /// client for a sign of life.
    owed: Option<bool>,
    /// What the client last reported: flush, or write if it reports no flush.
    confirmed: Lsn,
    /// From where the slot keeps WAL, as far as this stream has moved it.
    restart_lsn: Lsn,
    shown: State,
    /// What is to be done before everything else; what one input has brought.
    ready: VecDeque<Output>,
    life: Life,
}

/// Where the conversation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Talk {
    Streaming,
    /// The timeline is at its end and we have said so; the client's CopyDone is to come.
    TimelineEnded,
    /// The relay stops; the consumer has until then to confirm what was published up to `last`; `None` where its timeline
    /// was left, whose end is known.
    Stopping {
        until: Instant,
        last: Option<Lsn>,
    },
}

/// What the socket has not taken yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flight {
    Nothing,
    /// Whole messages, behind which others may be put.
    Words,
    /// WAL up to `to`, perhaps in the middle of a message.
    Wal {
        to: Lsn,
    },
}

/// Streaming ends between two ranges with this.
#[derive(Clone, Copy, Debug)]
struct Parting {
    why: Refusal,
    /// When the connection is cut if that place has not been reached.
    until: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Going,
    /// Decided, not said yet.
    Ending(End),
    Over,
}

/// What may be sent at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Limit {
    /// The timeline is being received: up to here, more to come.
    Live(Lsn),
    /// The timeline was left here.
    Left(Lsn, TimelineId),
    /// The timeline has just changed; the history that says how is to come.
    Unknown,
}

impl Sender {
    /// Begins the stream that a client asks for, or says why not; then no CopyBothResponse is sent.
    pub fn start(request: Request, settings: Settings, wal: Wal, now: Instant) -> Result<Sender, NotStarted> {
        if wal.published.is_none() {
            return Err(Refusal::NotReady.into());
        }
        let tli = request.tli.unwrap_or(wal.history.tli());
        if let Some((end, next)) = left(&wal.history, tli)? {
            check_start(tli, request.lsn, end, next)?;
        }
        Ok(Sender {
            tli,
            sent: request.lsn,
            wal,
            settings,
            talk: Talk::Streaming,
            flight: Flight::Words,
            fetching: false,
            copy_done: false,
            client_done: false,
            timer: PeerTimer::new(settings.peer_timeout, now),
            parting: None,
            owed: None,
            confirmed: Lsn::INVALID,
            restart_lsn: request.restart_lsn.unwrap_or_default(),
            shown: State::Catchup,
            ready: VecDeque::from([
                Output::State(State::Catchup),
                Output::Bytes(Bytes::from_static(COPY_BOTH_RESPONSE)),
            ]),
            life: Life::Going,
        })
    }

    /// The timeline that is sent.
    pub fn tli(&self) -> TimelineId {
        self.tli
    }

    /// The newest history that it was told.
    pub fn history(&self) -> &Arc<TimelineHistory> {
        &self.wal.history
    }

    /// First byte that the client has not been sent (`sent_lsn`).
    pub fn sent(&self) -> Lsn {
        self.sent
    }

    /// Whether messages of the client are for this stream. After its CopyDone they are not.
    pub fn is_listening(&self) -> bool {
        !self.client_done && self.life == Life::Going
    }

    /// When something is due, whatever happens until then; `None` for never.
    pub fn deadline(&self) -> Option<Instant> {
        if self.life != Life::Going {
            return None;
        }
        let stopping = match self.talk {
            Talk::Stopping { until, .. } => Some(until),
            Talk::Streaming | Talk::TimelineEnded => None,
        };
        let parting = self.parting.map(|parting| parting.until);
        [self.timer.deadline(), stopping, parting].into_iter().flatten().min()
    }

    /// Takes what has happened. Then [`poll_output`](Self::poll_output) is called until it returns nothing.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        if self.life != Life::Going {
            return;
        }
        match input {
            Input::History(history) => self.handle_history(history),
            Input::Published(published) => self.wal.published = published,
            Input::Frame { kind, body } => self.handle_frame(kind, body, now),
            Input::Sent => self.handle_sent(),
            Input::Fetching => self.handle_fetching(),
            Input::Fetched => self.fetching = false,
            Input::Unavailable => self.handle_unavailable(),
            Input::Order(order) => self.obey(order, now),
            Input::Timeout { unheard } => self.judge(unheard, now),
        }
    }

    /// The next thing to be done; `None` until something else happens. `wall` is what the clock on the wall shows.
    pub fn poll_output(&mut self, wall: PgTimestamp) -> Option<Output> {
        if let Some(output) = self.ready.pop_front() {
            return Some(output);
        }
        let decided = match self.life {
            Life::Going => self.decide(wall),
            Life::Ending(end) => Err(end),
            Life::Over => return None,
        };
        decided.unwrap_or_else(|end| {
            self.life = Life::Over;
            Some(Output::End(end))
        })
    }

    /// Where the timeline is followed anew, other files hold what comes next, and as far as they did not before: a
    /// timeline that was left is received again, or is none of ours any more.
    fn handle_history(&mut self, history: Arc<TimelineHistory>) {
        if Arc::ptr_eq(&history, &self.wal.history) {
            return;
        }
        self.wal.history = history;
        self.fetching = false;
        // What moves the slot was judged by the other history, and the slot has come back since.
        for waiting in &mut self.ready {
            if let Output::Report(report) = waiting {
                (report.confirm, report.counts) = (None, None);
            }
        }
        self.pass_on(Output::Forget);
    }

    fn handle_sent(&mut self) {
        if let Flight::Wal { to } = self.flight {
            self.sent = to;
        }
        self.flight = Flight::Nothing;
    }

    fn handle_fetching(&mut self) {
        if matches!(self.flight, Flight::Wal { .. }) {
            (self.flight, self.fetching) = (Flight::Nothing, true);
        }
    }

    fn handle_unavailable(&mut self) {
        if self.fetching || matches!(self.flight, Flight::Wal { .. }) {
            self.end(End::Refused(Refusal::Unavailable));
        }
    }

    fn handle_frame(&mut self, kind: u8, body: &[u8], now: Instant) {
        if self.client_done {
            return;
        }
        self.timer.heard(now);
        match kind {
            b'd' => self.handle_message(body, now),
            b'c' => self.client_done = true,
            // Terminate. Whoever cuts the messages lets nothing else through.
            _ => self.end(End::Cut(Cut::Left)),
        }
    }

    fn handle_message(&mut self, payload: &[u8], now: Instant) {
        match ClientMessage::decode(payload) {
            Ok(ClientMessage::Status(status)) => self.handle_status(&status),
            Ok(ClientMessage::Feedback(feedback)) => self.pass_on(Output::Feedback(feedback)),
            Err(error @ (ClientMessageError::NoData | ClientMessageError::Insufficient)) => {
                self.part_with(Refusal::Message(error), now);
            }
            Err(error @ ClientMessageError::UnknownType(_)) => self.end(End::Cut(Cut::Message(error))),
        }
    }

    fn handle_status(&mut self, status: &StandbyStatusUpdate) {
        let lsn = |position: Option<Lsn>| position.unwrap_or(Lsn::INVALID);
        let (write, flush, apply) = (lsn(status.write), lsn(status.flush), lsn(status.apply));
        self.confirmed = status.flush.unwrap_or(write);
        let confirm = status.flush.and_then(|flush| self.confirmable(flush));
        self.restart_lsn = confirm.unwrap_or(self.restart_lsn);
        let counts = self.counted(status);
        self.pass_on(Output::Report(Report { write, flush, apply, confirm, counts }));
        if status.reply_requested {
            self.owed.get_or_insert(false);
        }
    }

    /// Of several messages that were heard at once the last counts, but for where an earlier one has moved the slot.
    fn pass_on(&mut self, mut output: Output) {
        let is_same =
            |waiting: &&mut Output| std::mem::discriminant(*waiting) == std::mem::discriminant(&output);
        let Some(waiting) = self.ready.iter_mut().find(is_same) else { return self.ready.push_back(output) };
        if let (Output::Report(before), Output::Report(report)) = (&*waiting, &mut output) {
            report.confirm = report.confirm.or(before.confirm);
        }
        *waiting = output;
    }

    /// Where a flush report moves the slot: nowhere on a timeline that is none of ours any more, and not beyond the
    /// end of one that was left, because the slot keeps what is common. What it says of WAL beyond what the client was
    /// sent, and beyond what it had confirmed before, does not count.
    // PG: PhysicalConfirmReceivedLocation, which believes everything
    fn confirmable(&self, flush: Lsn) -> Option<Lsn> {
        let given = self.given();
        let within = |sent: Lsn| flush.min(sent.max(self.restart_lsn));
        match self.limit().ok()? {
            // Who begins ahead of our WAL was sent none of it.
            Limit::Live(end) => Some(within(given.min(end))),
            Limit::Left(end, _) => Some(within(given).min(end)),
            Limit::Unknown => None,
        }
    }

    /// End of what the client may have: a range that is on its way may have been taken in part.
    fn given(&self) -> Lsn {
        match self.flight {
            Flight::Wal { to } => to,
            Flight::Nothing | Flight::Words => self.sent,
        }
    }

    /// What of a report counts. Who has more of a timeline than what is common has left our way.
    fn counted(&self, status: &StandbyStatusUpdate) -> Option<Positions> {
        let (most, end) = match self.limit().ok()? {
            // Who begins ahead of our WAL was sent none of it.
            Limit::Live(end) => (self.given().min(end), end),
            Limit::Left(end, _) => (self.given(), end),
            Limit::Unknown => return None,
        };
        let sent = |position: Option<Lsn>| position.map(|lsn| lsn.min(most));
        let counts =
            Positions { write: sent(status.write), flush: sent(status.flush), apply: sent(status.apply) };
        let furthest = counts.write.max(counts.flush).max(counts.apply);
        furthest.is_none_or(|lsn| lsn <= end).then_some(counts)
    }

    /// Orders are obeyed here and nowhere else.
    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Stop => self.stop(now),
            Order::Cancel => self.part_with(Refusal::Cancelled, now),
            Order::Evict => self.part_with(Refusal::Evicted, now),
        }
    }

    fn stop(&mut self, now: Instant) {
        if !matches!(self.talk, Talk::Stopping { .. }) {
            let last = match self.limit() {
                Ok(Limit::Live(end)) => Some(end),
                Ok(Limit::Left(..)) => None,
                // Nothing is published, or another timeline before its history.
                Ok(Limit::Unknown) | Err(_) => Some(self.sent),
            };
            self.talk = Talk::Stopping { until: now + self.settings.shutdown_timeout, last };
            self.show(State::Stopping);
        }
    }

    /// Has streaming end with an error; one that ends the connection too goes before one that does not.
    fn part_with(&mut self, why: Refusal, now: Instant) {
        let until = self.parting.map_or_else(|| now + self.settings.grace, |parting| parting.until);
        if self.parting.is_none_or(|parting| !parting.why.is_fatal()) {
            self.parting = Some(Parting { why, until });
        }
    }

    fn judge(&mut self, unheard: bool, now: Instant) {
        if let Some(parting) = self.parting
            && now >= parting.until
        {
            return self.end(End::Cut(Cut::NotTaking(parting.why)));
        }
        if unheard {
            return;
        }
        if let Talk::Stopping { until, .. } = self.talk
            && now >= until
        {
            return self.end(End::Cut(Cut::Unconfirmed));
        }
        match self.timer.due(now) {
            PeerDue::Nothing => {}
            PeerDue::Ask => self.ask(),
            PeerDue::GiveUp => self.end(End::Cut(Cut::Silent)),
        }
    }

    /// Asks the client for a sign of life.
    fn ask(&mut self) {
        self.timer.asked();
        self.owed = Some(true);
    }

    fn show(&mut self, state: State) {
        if self.shown != state {
            self.shown = state;
            self.ready.push_back(Output::State(state));
        }
    }

    fn end(&mut self, end: End) {
        self.life = Life::Ending(end);
    }

    fn decide(&mut self, wall: PgTimestamp) -> Result<Option<Output>, End> {
        if matches!(self.flight, Flight::Wal { .. }) {
            return Ok(None);
        }
        // Between two ranges: the place for everything else we have to say.
        if let Some(parting) = self.parting {
            return Err(End::Refused(parting.why));
        }
        if self.client_done {
            return self.finish(wall).map(Some);
        }
        let limit = self.last_limit(self.limit()?);
        if self.flight == Flight::Nothing
            && let Some(output) = self.keepalive(wall).or_else(|| self.next_wal(limit))
        {
            return Ok(Some(output));
        }
        self.settle(limit, wall)
    }

    fn limit(&self) -> Result<Limit, Refusal> {
        let published = self.wal.published.ok_or(Refusal::NotReady)?;
        Ok(match left(&self.wal.history, self.tli)? {
            Some((end, next)) => Limit::Left(end, next),
            None if published.tli == self.tli => Limit::Live(published.lsn),
            None => Limit::Unknown,
        })
    }

    /// What comes behind the stop is not sent.
    fn last_limit(&self, limit: Limit) -> Limit {
        match (self.talk, limit) {
            (Talk::Stopping { last: Some(last), .. }, Limit::Live(end)) => Limit::Live(end.min(last)),
            (Talk::Stopping { last: Some(last), .. }, Limit::Left(end, next)) => {
                Limit::Left(end.min(last), next)
            }
            _ => limit,
        }
    }

    fn keepalive(&mut self, send_time: PgTimestamp) -> Option<Output> {
        let reply_requested = self.owed.take()?;
        let message = Keepalive { end: self.sent, send_time, reply_requested };
        Some(self.bytes(Bytes::copy_from_slice(&message.frame())))
    }

    fn bytes(&mut self, bytes: Bytes) -> Output {
        self.flight = Flight::Words;
        Output::Bytes(bytes)
    }

    fn next_wal(&mut self, limit: Limit) -> Option<Output> {
        let (Limit::Live(end) | Limit::Left(end, _)) = limit else { return None };
        if self.copy_done || self.fetching || self.sent >= end {
            return None;
        }
        let segno = self.sent.seg_at(self.wal.seg_size);
        let stop = end.min(segno.end(self.wal.seg_size));
        let to = (0..MAX_MESSAGES).fold(self.sent, |at, _| message_end(at, stop));
        self.flight = Flight::Wal { to };
        Some(Output::Wal { tli: self.tli, from: self.sent, to, end })
    }

    /// Looks whether something has been completed: what was there at the start, the timeline, or the last words of a
    /// stopping relay.
    fn settle(&mut self, limit: Limit, wall: PgTimestamp) -> Result<Option<Output>, End> {
        match (limit, self.talk) {
            (Limit::Unknown, _) => Ok(None),
            (Limit::Live(end) | Limit::Left(end, _), _) if self.sent < end => Ok(None),
            (_, Talk::Stopping { .. }) => self.part(wall),
            // The wait for the client's answer has the same limit as all others.
            (Limit::Left(..), Talk::Streaming) => {
                self.talk = Talk::TimelineEnded;
                Ok(Some(self.say_copy_done()))
            }
            (Limit::Live(_), Talk::Streaming) => {
                self.show(State::Streaming);
                Ok(self.ready.pop_front())
            }
            (_, Talk::TimelineEnded) => Ok(None),
        }
    }

    /// The relay stops and everything is sent: waits until the client has confirmed it.
    // PG: WalSndDone, but with >= and a limit in time, so that no consumer can hold up the stop
    fn part(&mut self, wall: PgTimestamp) -> Result<Option<Output>, End> {
        if self.confirmed >= self.sent {
            return Err(End::Shutdown);
        }
        if !self.timer.is_asking() {
            self.ask();
        }
        // What is owed waits for what is being sent.
        Ok(if self.flight == Flight::Nothing { self.keepalive(wall) } else { None })
    }

    fn say_copy_done(&mut self) -> Output {
        self.copy_done = true;
        self.bytes(Bytes::from_static(COPY_DONE))
    }

    /// The client has ended the stream, and what was begun is sent: our CopyDone, then the result.
    fn finish(&mut self, wall: PgTimestamp) -> Result<Output, End> {
        if !self.copy_done {
            return Ok(self.keepalive(wall).unwrap_or_else(|| self.say_copy_done()));
        }
        if matches!(self.talk, Talk::Stopping { .. }) {
            return Err(End::Cut(Cut::Finished));
        }
        Err(match self.limit()? {
            Limit::Live(_) | Limit::Unknown => End::Done { next: None },
            Limit::Left(end, next) => End::Done { next: Some((next, end)) },
        })
    }
}

/// Switch point and next timeline if `tli` has been left; an error if it is none of ours.
fn left(history: &TimelineHistory, tli: TimelineId) -> Result<Option<(Lsn, TimelineId)>, Refusal> {
    if tli == history.tli() {
        return Ok(None);
    }
    history.switch_point(tli).map(Some).ok_or(Refusal::UnknownTimeline(tli))
}

fn check_start(tli: TimelineId, start: Lsn, end: Lsn, next: TimelineId) -> Result<(), NotStarted> {
    if start > end {
        return Err(Refusal::BeyondTimeline { tli, start, end }.into());
    }
    if start == end { Err(NotStarted::AtEnd { next: (next, end) }) } else { Ok(()) }
}
