//! The walsender: START_REPLICATION from its checks to its end.
//!
//! ```text
//!  checks ──> CopyBoth ──> catchup ──> streaming ──> stopping (the relay stops) ──> COPY 0, close
//!                │            │            │
//!                │            └──── end of a historic timeline reached ──> CopyDone sent
//!                │                                                           │ client's CopyDone
//!                └── client's CopyDone at any time ──> CopyDone ─────────────┴──> [next timeline], tags
//! ```
//!
//! One task per consumer. It holds one segment's map and a batch of headers; WAL goes from the map to the
//! socket. It waits for the socket, new WAL, its timer and orders to end, all at once, and never for the
//! disk: what is not in memory is brought there by a blocking thread while it goes on listening, and what is not on
//! disk any more by [`Recall`].
//!
//! Nothing wakes it twice for the same reason: an order is taken once ([`Orders`]) and obeyed in one place
//! ([`Walsender::obey`]), whether WAL flows or not. An order to end is said between two messages; a client that does
//! not take the message before it within [`GRACE`] is cut off in the middle. Silence is judged only after everything
//! that has come was read, so that a relay that was held up does not take it for its consumers' silence.
//!
//! Two departures from PostgreSQL: a start ahead of our WAL is not refused, it waits (the upstream has that WAL
//! and we shall), and messages never cross a segment boundary.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use walrelay_proto::{
    ClientMessage, ClientMessageError, Keepalive, Lsn, PeerDue, PeerTimer, PgTimestamp, SegNo,
    StandbyStatusUpdate, StartReplication, TimelineHistory, TimelineId,
};

use super::answers::{canceled, slot_error};
use super::batch::Batch;
use super::orders::{Order, Orders};
use super::patience::GRACE;
use super::session::{SessionContext, StreamEnd, StreamError};
use crate::archive::{Recall, RecallError};
use crate::descriptors::Descriptors;
use crate::store::{
    FeedbackHorizon, ReadError as SegmentError, Segment, SenderState, SlotGuard, Store, TimelinePosition,
};
use crate::wire::messages::copy_both_response;
use crate::wire::{Connection, Frame, FrameError, PgError, Phase, ReadError, sqlstate};

/// WAL read ahead from the disk for a consumer that is far behind, bytes.
const READ_AHEAD: usize = 4 << 20;
/// Closer than this to the newest WAL everything that this process has received was written a moment ago and is in
/// memory, bytes.
const RECENT: u64 = 16 << 20;
/// CopyDone, whole.
const COPY_DONE: &[u8] = b"c\0\0\0\x04";
/// Batches sent in a row before other tasks get their turn.
const TURN: u32 = 4;
/// Reads of what has come before silence is judged; together longer than any message of a client's.
const LAST_LOOKS: usize = 16;

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> StreamError {
        StreamError::Closed(format!("could not send data to client: {error}"))
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> StreamError {
        match error {
            ReadError::Frame(error) => error.into(),
            other => StreamError::Closed(other.to_string()),
        }
    }
}

impl From<FrameError> for StreamError {
    fn from(error: FrameError) -> StreamError {
        error.to_pg_error().map_or_else(|| StreamError::Closed(error.to_string()), StreamError::Pg)
    }
}

/// Runs START_REPLICATION on a connection. Not cancel-safe: it ends when the client, the relay's
/// shutdown or an error ends it.
pub(super) async fn stream(
    conn: &mut Connection,
    cx: &SessionContext,
    command: StartReplication,
) -> Result<StreamEnd, StreamError> {
    let slot = command.slot.as_deref().map(|name| acquire(cx, name)).transpose()?;
    if cx.store.tip().is_none() {
        return Err(not_ready().into());
    }
    let history = cx.store.history();
    let tli = command.tli.unwrap_or(history.tli());
    if let Some((end, next)) = historic(&history, tli)? {
        check_start(tli, command.lsn, end)?;
        if command.lsn == end {
            return Ok(StreamEnd::Done { next: Some((next, end)) });
        }
    }
    conn.set_phase(Phase::Streaming);
    conn.put(&copy_both_response());
    cx.sender.set_state(SenderState::Catchup);
    // PG: StartReplication; who has been sent nothing yet is shown where it starts.
    cx.sender.set_sent(command.lsn);
    let result = Walsender::new(conn, cx, slot, tli, command.lsn).run().await;
    conn.set_phase(Phase::Command);
    cx.sender.set_state(SenderState::Startup);
    result
}

fn acquire(cx: &SessionContext, name: &str) -> Result<SlotGuard, PgError> {
    cx.store.slots().acquire(name, cx.pid).map_err(slot_error)
}

fn not_ready() -> PgError {
    PgError::error(sqlstate::CANNOT_CONNECT_NOW, "no WAL has been received from the upstream yet")
}

/// Switch point and next timeline if `tli` has been left; an error if it is none of ours.
fn historic(history: &TimelineHistory, tli: TimelineId) -> Result<Option<(Lsn, TimelineId)>, PgError> {
    if tli == history.tli() {
        return Ok(None);
    }
    let text = || format!("requested timeline {tli} is not in this server's history");
    let left = history.switch_point(tli);
    left.map(Some).ok_or_else(|| PgError::error(sqlstate::INTERNAL_ERROR, text()))
}

fn check_start(tli: TimelineId, start: Lsn, end: Lsn) -> Result<(), PgError> {
    if start <= end {
        return Ok(());
    }
    let text = format!("requested starting point {start} on timeline {tli} is not in this server's history");
    let detail = format!("This server's history forked from timeline {tli} at {end}.");
    Err(PgError::error(sqlstate::INTERNAL_ERROR, text).with_detail(detail))
}

/// A segment cannot be had.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Here(#[from] SegmentError),
    #[error(transparent)]
    Elsewhere(#[from] RecallError),
}

impl OpenError {
    fn lost(error: JoinError) -> OpenError {
        SegmentError::Io { file: "segment".to_owned(), source: error.into() }.into()
    }
}

impl From<OpenError> for PgError {
    fn from(error: OpenError) -> PgError {
        let sqlstate = match &error {
            OpenError::Here(SegmentError::Removed(_)) => sqlstate::UNDEFINED_FILE,
            OpenError::Elsewhere(RecallError::Nowhere(_)) => sqlstate::UNDEFINED_FILE,
            OpenError::Here(_) | OpenError::Elsewhere(_) => sqlstate::IO_ERROR,
        };
        PgError::error(sqlstate, error.to_string())
    }
}

/// What may be sent at the moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// The timeline is being received: up to here, more to come.
    Live(Lsn),
    /// The timeline was left here.
    Left(Lsn, TimelineId),
}

/// Where the conversation stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Talk {
    Streaming,
    /// The timeline is at its end and we have said so; the client's CopyDone is to come.
    TimelineEnded,
    /// The relay stops; the consumer has until then to confirm.
    Stopping {
        until: Instant,
    },
}

/// What woke the walsender.
enum Event {
    Socket,
    NewWal,
    Timer,
    Fetched(Result<Arc<Segment>, OpenError>),
    Order(Order),
}

/// Streaming ends at the next message boundary with this error.
struct Parting {
    error: PgError,
    /// When the connection is cut if the boundary has not been reached.
    until: Instant,
}

type Fetch = JoinHandle<Result<Arc<Segment>, OpenError>>;

struct Walsender<'a> {
    conn: &'a mut Connection,
    cx: &'a SessionContext,
    slot: Option<SlotGuard>,
    tli: TimelineId,
    sent: Lsn,
    talk: Talk,
    timer: PeerTimer,
    written: watch::Receiver<Option<TimelinePosition>>,
    /// What `segment` and `fetch` go by.
    history: Arc<TimelineHistory>,
    segment: Option<Arc<Segment>>,
    batch: Option<Batch>,
    fetch: Option<Fetch>,
    /// The client has sent its CopyDone; what follows in the input is for the session.
    client_done: bool,
    /// In memory up to here, as far as this walsender has looked.
    resident_to: Lsn,
    /// What the client last reported: flush, or write if it reports no flush.
    confirmed: Lsn,
    parting: Option<Parting>,
    /// A keepalive is to be sent at the next message boundary, one however often the client has asked; whether it
    /// asks the client for a sign of life.
    owed: Option<bool>,
    orders: Orders,
}

impl<'a> Walsender<'a> {
    fn new(
        conn: &'a mut Connection,
        cx: &'a SessionContext,
        slot: Option<SlotGuard>,
        tli: TimelineId,
        start: Lsn,
    ) -> Walsender<'a> {
        Walsender {
            conn,
            cx,
            slot,
            tli,
            sent: start,
            talk: Talk::Streaming,
            timer: PeerTimer::new(cx.wal_sender_timeout, Instant::now()),
            written: cx.store.written(),
            history: cx.store.history(),
            segment: None,
            batch: None,
            fetch: None,
            client_done: false,
            resident_to: Lsn::INVALID,
            confirmed: Lsn::INVALID,
            parting: None,
            owed: None,
            orders: Orders::default(),
        }
    }

    async fn run(mut self) -> Result<StreamEnd, StreamError> {
        let mut turns = 0;
        loop {
            self.handle_frames()?;
            if let Some(order) = self.orders.given(self.cx, self.slot.as_ref()) {
                self.obey(order);
            }
            let flowing = self.send()?;
            if let Some(end) = self.settle()? {
                return Ok(end);
            }
            let event = match flowing {
                true => {
                    turns += 1;
                    self.go_on(turns).await?
                }
                false => Some(self.wait().await?),
            };
            if let Some(event) = event {
                self.handle(event).await?;
            }
        }
    }

    /// More can be sent at once: looks after the client and the timer now and then, and lets others run.
    async fn go_on(&mut self, turns: u32) -> Result<Option<Event>, StreamError> {
        if !turns.is_multiple_of(TURN) {
            return Ok(None);
        }
        self.conn.try_fill()?;
        tokio::task::yield_now().await;
        Ok(self.deadline().is_some_and(|at| at <= Instant::now()).then_some(Event::Timer))
    }

    /// Sends what can be sent without waiting; whether there is more to send at once.
    fn send(&mut self) -> Result<bool, StreamError> {
        if let Some(batch) = &mut self.batch {
            if !batch.send(self.conn.socket())? {
                return Ok(false);
            }
            self.sent = batch.end();
            self.cx.sender.set_sent(self.sent);
            self.batch = None;
        }
        // Between two messages: the place for everything else we have to say.
        if let Some(parting) = self.parting.take() {
            return Err(parting.error.into());
        }
        if self.conn.has_output() && !self.conn.try_flush()? {
            return Ok(false);
        }
        self.put_keepalive();
        if self.conn.has_output() && !self.conn.try_flush()? {
            return Ok(false);
        }
        self.next_batch()
    }

    /// Prepares the next messages; whether there are any.
    fn next_batch(&mut self) -> Result<bool, StreamError> {
        // First: what is being fetched may be of no use any more, and has to be fetched anew.
        self.look_at_history();
        if self.talk == Talk::TimelineEnded || self.client_done || self.fetch.is_some() {
            return Ok(false);
        }
        // What is published from here on wakes `wait`.
        self.written.mark_unchanged();
        let end = match self.limit()? {
            Limit::Live(end) => end,
            Limit::Left(end, _) => end,
        };
        if self.sent >= end {
            return Ok(false);
        }
        let Some(segment) = self.segment_in_memory(end)? else { return Ok(false) };
        let now = PgTimestamp::from_system_time(SystemTime::now());
        self.batch = Some(Batch::new(segment, self.sent, end, now));
        Ok(true)
    }

    fn limit(&mut self) -> Result<Limit, StreamError> {
        self.look_at_history();
        let Some(position) = *self.written.borrow() else { return Err(not_ready().into()) };
        match historic(&self.history, self.tli)? {
            Some((end, next)) => Ok(Limit::Left(end, next)),
            None if position.tli == self.tli => Ok(Limit::Live(position.lsn)),
            // The timeline has just changed; the next look shows how.
            None => Ok(Limit::Live(self.sent)),
        }
    }

    /// Where the relay follows another timeline, other files hold what comes next, and as far as they did not before:
    /// a timeline that was left is received again, or is none of ours any more.
    fn look_at_history(&mut self) {
        let history = self.cx.store.history();
        if Arc::ptr_eq(&history, &self.history) {
            return;
        }
        self.history = history;
        (self.segment, self.resident_to) = (None, Lsn::INVALID);
        if let Some(fetch) = self.fetch.take() {
            fetch.abort();
        }
    }

    /// The segment to read from, if the next batch is in memory; else has it brought there.
    fn segment_in_memory(&mut self, limit: Lsn) -> Result<Option<Arc<Segment>>, StreamError> {
        let Some(identity) = self.cx.store.identity() else { return Err(not_ready().into()) };
        let segno = self.sent.seg_at(identity.seg_size);
        if self.segment.as_ref().is_none_or(|segment| segment.name().segno != segno) {
            self.segment = self.cx.store.mapped_segment_on(&self.history, self.tli, segno);
            self.resident_to = Lsn::INVALID;
        }
        let Some(segment) = self.segment.clone() else {
            self.fetch(segno, None);
            return Ok(None);
        };
        let end = self.sent.advance(Batch::MAX_LEN).min(limit).min(segment.end());
        if end.since(segment.start()) > segment.published() {
            // Of another life of this timeline, and still in use: whoever has it lets go soon.
            let text = format!(
                "WAL segment {} is not readable up to {end}",
                segment.name().format(identity.seg_size)
            );
            return Err(PgError::error(sqlstate::IO_ERROR, text).into());
        }
        let recent = self.sent >= self.cx.received_from && limit.since(self.sent) <= RECENT;
        let offset = self.sent.since(segment.start());
        if recent || end <= self.resident_to || segment.is_resident(offset, end.since(self.sent) as usize) {
            return Ok(Some(segment));
        }
        self.fetch(segno, Some(segment));
        Ok(None)
    }

    /// Has a segment opened, or fetched back if it is not here any more, and read ahead.
    fn fetch(&mut self, segno: SegNo, open: Option<Arc<Segment>>) {
        let descriptors = self.cx.descriptors.clone();
        let (store, recall, tli, at) = (self.cx.store.clone(), self.cx.recall.clone(), self.tli, self.sent);
        let history = self.history.clone();
        self.fetch = Some(tokio::spawn(async move {
            let segment = match open {
                Some(segment) => segment,
                None => open_segment(&descriptors, store, recall, history, tli, segno).await?,
            };
            blocking(move || {
                let offset = at.since(segment.start());
                // What cannot be read fails again where it is sent, with an error that ends the stream.
                if let Err(error) = segment.populate(offset, READ_AHEAD) {
                    tracing::debug!("could not read ahead in {segment:?}: {error}");
                }
                Ok(segment)
            })
            .await
        }));
    }

    /// Looks whether something has been completed: the timeline, or the last words of a stopping relay.
    fn settle(&mut self) -> Result<Option<StreamEnd>, StreamError> {
        if self.batch.is_some() {
            return Ok(None);
        }
        if self.client_done {
            return self.finish().map(Some);
        }
        let (end, left) = match self.limit()? {
            Limit::Live(end) => (end, false),
            Limit::Left(end, _) => (end, true),
        };
        match self.talk {
            _ if self.sent < end => {}
            Talk::Stopping { .. } => return Ok(self.part()),
            Talk::Streaming if left => {
                // The wait for the client's answer is subject to wal_sender_timeout like all others.
                self.conn.put_bytes(COPY_DONE);
                self.conn.try_flush()?;
                self.talk = Talk::TimelineEnded;
            }
            Talk::Streaming => self.cx.sender.set_state(SenderState::Streaming),
            Talk::TimelineEnded => {}
        }
        Ok(None)
    }

    /// The relay stops and everything is sent: wait until the client has confirmed it, then end.
    // PG: WalSndDone, but with >= and a limit in time, so that no consumer can hold up the stop
    fn part(&mut self) -> Option<StreamEnd> {
        if self.confirmed >= self.sent {
            return Some(StreamEnd::Shutdown);
        }
        if !self.timer.is_asking() {
            self.ask();
        }
        None
    }

    /// Whether something is to be written as soon as the socket takes it.
    fn is_sending(&self) -> bool {
        self.batch.is_some() || self.conn.has_output() || self.owed.is_some()
    }

    /// When something is due, whatever happens until then.
    fn deadline(&self) -> Option<Instant> {
        let stopping = match self.talk {
            Talk::Stopping { until } => Some(until),
            Talk::Streaming | Talk::TimelineEnded => None,
        };
        let parting = self.parting.as_ref().map(|parting| parting.until);
        [self.timer.deadline(), stopping, parting].into_iter().flatten().min()
    }

    async fn wait(&mut self) -> Result<Event, StreamError> {
        let sending = self.is_sending();
        let interest = match (sending, self.client_done) {
            (true, false) => Interest::READABLE | Interest::WRITABLE,
            (true, true) => Interest::WRITABLE,
            (false, _) => Interest::READABLE,
        };
        let deadline = self.deadline();
        let event = tokio::select! {
            ready = self.conn.socket().ready(interest) => { ready?; Event::Socket }
            _ = self.written.changed(), if !sending => Event::NewWal,
            () = sleep_until(deadline) => Event::Timer,
            fetched = join(&mut self.fetch) => Event::Fetched(fetched),
            order = self.orders.next(self.cx, self.slot.as_ref()) => Event::Order(order),
        };
        Ok(event)
    }

    async fn handle(&mut self, event: Event) -> Result<(), StreamError> {
        match event {
            Event::Socket if self.client_done => {}
            Event::Socket => {
                self.conn.try_fill()?;
            }
            Event::NewWal => {}
            Event::Timer => self.handle_timer().await?,
            Event::Fetched(segment) => {
                self.fetch = None;
                let segment = segment.map_err(PgError::from)?;
                self.resident_to = self.sent.advance(READ_AHEAD as u64).min(segment.end());
                self.segment = Some(segment);
            }
            Event::Order(order) => self.obey(order),
        }
        Ok(())
    }

    /// Orders are obeyed here and nowhere else.
    fn obey(&mut self, order: Order) {
        match order {
            Order::Stop => self.stop(),
            Order::Cancel => self.part_with(canceled()),
            Order::Evict => {
                let text = "terminating connection due to administrator command";
                self.part_with(PgError::fatal(sqlstate::ADMIN_SHUTDOWN, text));
            }
        }
    }

    /// Has streaming end with an error; one that ends the connection too goes before one that does not.
    fn part_with(&mut self, error: PgError) {
        let until = self.parting.as_ref().map_or_else(|| Instant::now() + GRACE, |parting| parting.until);
        if self.parting.as_ref().is_none_or(|parting| !parting.error.is_fatal()) {
            self.parting = Some(Parting { error, until });
        }
    }

    fn stop(&mut self) {
        self.talk = Talk::Stopping { until: Instant::now() + self.cx.shutdown_timeout };
        self.cx.sender.set_state(SenderState::Stopping);
    }

    /// Something seems to be due. What has come meanwhile is heard first: the relay may have been held up, and not
    /// its clients silent.
    async fn handle_timer(&mut self) -> Result<(), StreamError> {
        // Lets the runtime look at its sockets.
        tokio::task::yield_now().await;
        for _ in 0..LAST_LOOKS {
            if self.client_done || self.conn.try_fill()? == 0 {
                break;
            }
            self.handle_frames()?;
        }
        let unheard = !self.client_done && self.conn.socket().has_unread();
        self.judge(Instant::now(), unheard)
    }

    /// `unheard`: the client has sent something that could not be read yet.
    fn judge(&mut self, now: Instant, unheard: bool) -> Result<(), StreamError> {
        if let Some(parting) = &self.parting
            && now >= parting.until
        {
            let text = format!("{}; client does not take what was being sent to it", parting.error.message);
            return Err(StreamError::Closed(text));
        }
        if unheard {
            return Ok(());
        }
        if let Talk::Stopping { until } = self.talk
            && now >= until
        {
            return Err(StreamError::Closed("consumer did not confirm the last WAL in time".to_owned()));
        }
        match self.timer.due(now) {
            PeerDue::Nothing => {}
            PeerDue::Ask => self.ask(),
            PeerDue::GiveUp => {
                let text = "terminating walsender process due to replication timeout";
                return Err(StreamError::Closed(text.to_owned()));
            }
        }
        Ok(())
    }

    /// Asks the client for a sign of life.
    fn ask(&mut self) {
        self.timer.asked();
        self.owed = Some(true);
    }

    /// Puts the keepalive that is owed, if any, behind what waits to be sent. At message boundaries only.
    fn put_keepalive(&mut self) {
        let Some(reply_requested) = self.owed.take() else { return };
        let send_time = PgTimestamp::from_system_time(SystemTime::now());
        let message = Keepalive { end: self.sent, send_time, reply_requested };
        self.conn.put_bytes(&message.frame());
    }

    fn handle_frames(&mut self) -> Result<(), StreamError> {
        while !self.client_done
            && let Some(frame) = self.conn.buffered_frame()?
        {
            self.handle_frame(&frame)?;
        }
        Ok(())
    }

    fn handle_frame(&mut self, frame: &Frame) -> Result<(), StreamError> {
        self.timer.heard(Instant::now());
        match frame.kind {
            b'd' => self.handle_message(&frame.body)?,
            b'c' => self.client_done = true,
            // Terminate. Phase::Streaming allows nothing else.
            _ => return Err(StreamError::Closed("client has left".to_owned())),
        }
        Ok(())
    }

    fn handle_message(&mut self, payload: &[u8]) -> Result<(), StreamError> {
        let message = match ClientMessage::decode(payload) {
            Ok(message) => message,
            Err(error @ (ClientMessageError::NoData | ClientMessageError::Insufficient)) => {
                self.part_with(PgError::error(sqlstate::PROTOCOL_VIOLATION, error.to_string()));
                return Ok(());
            }
            Err(error) => return Err(StreamError::Closed(error.to_string())),
        };
        match message {
            ClientMessage::Status(status) => self.handle_status(status),
            ClientMessage::Feedback(feedback) => {
                let horizon = FeedbackHorizon { xmin: feedback.xmin, catalog_xmin: feedback.catalog_xmin };
                self.cx.store.senders().set_feedback(&self.cx.sender, self.slot.as_ref(), horizon);
            }
        }
        Ok(())
    }

    fn handle_status(&mut self, status: StandbyStatusUpdate) {
        let lsn = |position: Option<Lsn>| position.unwrap_or(Lsn::INVALID);
        let (write, flush) = (lsn(status.write), lsn(status.flush));
        self.cx.sender.set_reply(write, flush, lsn(status.apply), self.cx.store.lag_clock());
        self.confirmed = status.flush.unwrap_or(write);
        if let Some(slot) = &self.slot {
            // Who begins ahead of our WAL was sent none of it.
            let written = self.written.borrow().map_or(Lsn::INVALID, |written| written.lsn);
            slot.confirm_flush_within(self.sent.min(written), || self.confirmable(flush));
        }
        if status.reply_requested {
            self.owed.get_or_insert(false);
        }
    }

    /// What of a flush report moves the slot: nothing on a timeline that is none of ours any more, and nothing beyond
    /// the end of one that was left. The slot keeps what is common.
    fn confirmable(&self, flush: Lsn) -> Option<Lsn> {
        let left = historic(&self.cx.store.history(), self.tli).ok()?;
        Some(left.map_or(flush, |(end, _)| flush.min(end)))
    }

    /// The client has ended the stream, and what was begun is sent: our CopyDone and the result.
    fn finish(&mut self) -> Result<StreamEnd, StreamError> {
        if self.talk != Talk::TimelineEnded {
            self.put_keepalive();
            self.conn.put_bytes(COPY_DONE);
        }
        if matches!(self.talk, Talk::Stopping { .. }) {
            self.conn.try_flush()?;
            return Err(StreamError::Closed("client has ended the stream".to_owned()));
        }
        let next = match self.limit()? {
            Limit::Live(_) => None,
            Limit::Left(end, next) => Some((next, end)),
        };
        // The slot is free before the client can know that the stream is over.
        self.slot = None;
        Ok(StreamEnd::Done { next })
    }
}

impl Drop for Walsender<'_> {
    fn drop(&mut self) {
        if let Some(fetch) = &self.fetch {
            fetch.abort();
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}

async fn join(fetch: &mut Option<Fetch>) -> Result<Arc<Segment>, OpenError> {
    match fetch {
        Some(fetch) => fetch.await.unwrap_or_else(|error| {
            if error.is_panic() {
                tracing::error!("task that opens a WAL segment failed: {error}");
            }
            Err(OpenError::lost(error))
        }),
        None => pending().await,
    }
}

/// From the relay's disk, or if it has been removed there, from wherever else it is.
async fn open_segment(
    descriptors: &Descriptors,
    store: Arc<Store>,
    recall: Option<Arc<Recall>>,
    history: Arc<TimelineHistory>,
    tli: TimelineId,
    segno: SegNo,
) -> Result<Arc<Segment>, OpenError> {
    let turn = descriptors.for_a_moment().await;
    let opened = blocking(move || Ok(store.segment_on(&history, tli, segno)?)).await;
    drop(turn);
    match (opened, recall) {
        (Err(OpenError::Here(SegmentError::Removed(_))), Some(recall)) => {
            Ok(recall.segment(tli, segno).await?)
        }
        (opened, _) => opened,
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<Arc<Segment>, OpenError> + Send + 'static,
) -> Result<Arc<Segment>, OpenError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(OpenError::lost(error)))
}
