//! The walsender: START_REPLICATION from its checks to its end.
//!
//! What is sent and said, and when, [`Sender`] decides; here is what it needs for that, the socket and the WAL.
//!
//! One task per consumer. It holds one segment's map and a batch of headers; WAL goes from the map to the
//! socket. While it has nothing to do, others send with what it has for that ([`live`](super::live)). It waits for the socket, new WAL, its timer and orders to end, all at once, and never for the
//! disk: what is not in memory is brought there by a blocking thread while it goes on listening, and what is not on
//! disk any more by [`Recall`].
//!
//! Nothing wakes it twice for the same reason: an order is taken once ([`Orders`]), whether WAL flows or not. Silence is
//! judged only after everything that has come was read, so that a relay that was held up does not take it for its
//! consumers' silence.

use std::future::pending;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Sleep;
use walrelay_proto::sender::{
    Cut, End, Input, NotStarted, Order, Output, Published, Refusal, Report, Request, Sender, Settings, State,
    Wal,
};
use walrelay_proto::{
    HotStandbyFeedback, Lsn, PgTimestamp, SegNo, SegSize, StartReplication, TimelineHistory, TimelineId,
};

use super::answers::slot_error;
use super::batch::Batch;
use super::live::{Hand, Line, Live, RECENT, Seat};
use super::orders::Orders;
use super::parting::Parting;
use super::patience::GRACE;
use super::session::{SessionContext, StreamEnd, StreamError};
use crate::archive::{Recall, RecallError};
use crate::consumers::ConsumerState;
use crate::counts::EndCause;
use crate::descriptors::Descriptors;
use crate::store::{FeedbackHorizon, ReadError as SegmentError, Segment, SlotGuard, Store, TimelinePosition};
use crate::wire::{Connection, FrameError, PgError, Phase, ReadError, sqlstate};

/// WAL read ahead from the disk for a consumer that is far behind, bytes.
const READ_AHEAD: usize = 4 << 20;
/// So much before a segment's end the next one is opened, bytes: a consumer that is far behind does not wait for that.
const OPEN_AHEAD: u64 = 4 << 20;
/// Batches sent in a row before other tasks get their turn.
const TURN: u32 = 4;
/// Reads of what has come before silence is judged; together longer than any message of a client's.
const LAST_LOOKS: usize = 16;

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> StreamError {
        StreamError::Closed(Parting::unsent(&error))
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> StreamError {
        match error {
            ReadError::Frame(error) => error.into(),
            other => StreamError::Closed(other.into()),
        }
    }
}

impl From<FrameError> for StreamError {
    fn from(error: FrameError) -> StreamError {
        match error.to_pg_error() {
            Some(told) => StreamError::Pg(told),
            None => StreamError::Closed(ReadError::Frame(error).into()),
        }
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
    let (sender, seg_size) = match start(cx, slot.as_ref(), &command) {
        Ok(started) => started,
        Err(NotStarted::AtEnd { next }) => return Ok(StreamEnd::Done { next: Some(next) }),
        Err(NotStarted::Refused(refusal)) => return Err(refused(refusal).into()),
    };
    conn.set_phase(Phase::Streaming);
    // PG: StartReplication; who has been sent nothing yet is shown where it starts.
    cx.consumer.start_at(sender.sent());
    let result = Walsender::new(conn, cx, slot, sender, seg_size, &cx.live).run().await;
    conn.set_phase(Phase::Command);
    cx.consumer.set_state(ConsumerState::Startup);
    result
}

fn acquire(cx: &SessionContext, name: &str) -> Result<SlotGuard, PgError> {
    cx.store.slots().acquire(name, cx.pid).map_err(slot_error)
}

fn start(
    cx: &SessionContext,
    slot: Option<&SlotGuard>,
    command: &StartReplication,
) -> Result<(Sender, SegSize), NotStarted> {
    let seg_size = cx.store.identity().ok_or(Refusal::NotReady)?.seg_size;
    // The position first: one that is new belongs to a history that is there.
    let published = published(*cx.store.written().borrow());
    let wal = Wal { seg_size, history: cx.store.history(), published };
    let restart_lsn = slot.and_then(SlotGuard::restart_lsn);
    let request = Request { tli: command.tli, lsn: command.lsn, restart_lsn };
    let settings =
        Settings { peer_timeout: cx.wal_sender_timeout, shutdown_timeout: cx.shutdown_timeout, grace: GRACE };
    Ok((Sender::start(request, settings, wal, Instant::now())?, seg_size))
}

fn published(position: Option<TimelinePosition>) -> Option<Published> {
    position.map(|position| Published { tli: position.tli, lsn: position.lsn })
}

/// What the client is told.
fn refused(refusal: Refusal) -> PgError {
    let text = refusal.to_string();
    match refusal {
        Refusal::NotReady => PgError::error(sqlstate::CANNOT_CONNECT_NOW, text),
        Refusal::UnknownTimeline(_) => PgError::error(sqlstate::INTERNAL_ERROR, text),
        Refusal::BeyondTimeline { tli, end, .. } => PgError::error(sqlstate::INTERNAL_ERROR, text)
            .with_detail(format!("This server's history forked from timeline {tli} at {end}.")),
        Refusal::Message(_) => PgError::error(sqlstate::PROTOCOL_VIOLATION, text),
        Refusal::Cancelled => PgError::error(sqlstate::QUERY_CANCELED, text),
        Refusal::Evicted => PgError::fatal(sqlstate::ADMIN_SHUTDOWN, text),
        Refusal::Unavailable => PgError::error(sqlstate::IO_ERROR, text),
    }
}

fn shown(state: State) -> ConsumerState {
    match state {
        State::Catchup => ConsumerState::Catchup,
        State::Streaming => ConsumerState::Streaming,
        State::Stopping => ConsumerState::Stopping,
    }
}

/// A segment cannot be had.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Here(#[from] SegmentError),
    #[error(transparent)]
    Elsewhere(#[from] RecallError),
    /// Of another life of this timeline, and still in use: whoever has it lets go soon.
    #[error("WAL segment {0} is not readable up to {1}")]
    Unreadable(String, Lsn),
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
            OpenError::Here(_) | OpenError::Elsewhere(_) | OpenError::Unreadable(..) => sqlstate::IO_ERROR,
        };
        PgError::error(sqlstate, error.to_string())
    }
}

/// What woke the walsender.
enum Event {
    Socket,
    NewWal,
    Timer,
    Fetched(Result<Arc<Segment>, OpenError>),
    Order(Order),
}

type Fetch = JoinHandle<Result<Arc<Segment>, OpenError>>;

struct Walsender<'a> {
    hand: Held,
    seat: Seat,
    conn: &'a mut Connection,
    cx: &'a SessionContext,
    slot: Option<SlotGuard>,
    written: watch::Receiver<Option<TimelinePosition>>,
    seg_size: SegSize,
    /// What was left to be done by whoever had the hand.
    left: Option<Output>,
    fetch: Option<Fetch>,
    /// The segment behind the one that is sent from, about to be opened, or kept so that the store has it mapped when it is needed:
    /// it is asked for there, by the history of that moment.
    next: Option<(SegNo, Fetch)>,
    /// Why WAL cannot be had.
    unavailable: Option<OpenError>,
    /// In memory up to here, as far as this walsender has looked.
    resident_to: Lsn,
    orders: Orders,
    alarm: Alarm,
}

impl<'a> Walsender<'a> {
    fn new(
        conn: &'a mut Connection,
        cx: &'a SessionContext,
        slot: Option<SlotGuard>,
        sender: Sender,
        seg_size: SegSize,
        live: &Arc<Live>,
    ) -> Walsender<'a> {
        let orders = Orders::new(cx, slot.as_ref());
        let consumer = cx.consumer.consumer().clone();
        let line = Line::new(conn.socket(), cx.store.clone(), consumer, seg_size, cx.received_from);
        Walsender {
            hand: Held(Some(Box::new(Hand { sender, segment: None, batch: None }))),
            seat: live.seat(line),
            conn,
            cx,
            slot,
            written: cx.store.written(),
            seg_size,
            left: None,
            fetch: None,
            next: None,
            unavailable: None,
            resident_to: Lsn::INVALID,
            orders,
            alarm: Alarm::default(),
        }
    }

    async fn run(mut self) -> Result<StreamEnd, StreamError> {
        let mut turns = 0;
        loop {
            // What was heard counts, whatever has come behind it.
            let heard = self.hear();
            let end = self.perform();
            heard?;
            if let Some(end) = end {
                return self.ended(end);
            }
            let event = match self.write()? {
                true => {
                    turns += 1;
                    self.go_on(turns).await?
                }
                false => Some(self.wait().await?),
            };
            if let Some(event) = event
                && let Err(error) = self.handle(event).await
            {
                self.perform();
                return Err(error);
            }
        }
    }

    /// Tells `sender` everything that has happened.
    fn hear(&mut self) -> Result<(), StreamError> {
        // The position first: one that is new belongs to a history that is there. What is published from here on wakes
        // `wait`.
        let position = *self.written.borrow_and_update();
        self.tell(Input::History(self.cx.store.history()));
        self.tell(Input::Published(published(position)));
        self.handle_frames()?;
        if let Some(order) = self.orders.given() {
            self.tell(Input::Order(order));
        }
        Ok(())
    }

    fn tell(&mut self, input: Input<'_>) {
        self.hand.sender.handle(input, Instant::now());
    }

    /// Does what `sender` says, until it says nothing more or the end.
    fn perform(&mut self) -> Option<End> {
        let wall = PgTimestamp::from_system_time(SystemTime::now());
        while let Some(output) = self.left.take().or_else(|| self.hand.sender.poll_output(wall)) {
            match output {
                Output::Wal { tli, from, to, end } => self.begin_batch(tli, from, to, end, wall),
                Output::Bytes(bytes) => self.conn.put_bytes(&bytes),
                Output::Report(report) => self.take_report(report),
                Output::Feedback(feedback) => self.take_feedback(feedback),
                Output::State(state) => self.cx.consumer.set_state(shown(state)),
                Output::Forget => self.forget(),
                Output::End(end) => return Some(end),
            }
        }
        None
    }

    /// Gives the socket what it takes without waiting; whether it has taken all, and there was something.
    fn write(&mut self) -> Result<bool, StreamError> {
        if !self.is_sending() {
            return Ok(false);
        }
        if let Some(batch) = &mut self.hand.batch
            && !batch.send(self.conn.socket())?
        {
            return Ok(false);
        }
        self.hand.batch = None;
        if self.conn.has_output() && !self.conn.try_flush()? {
            return Ok(false);
        }
        self.tell(Input::Sent);
        self.cx.consumer.set_sent(self.hand.sender.sent());
        Ok(true)
    }

    /// More can be sent at once, perhaps: looks after the client and the timer now and then, and lets others run.
    async fn go_on(&mut self, turns: u32) -> Result<Option<Event>, StreamError> {
        if !turns.is_multiple_of(TURN) {
            return Ok(None);
        }
        self.conn.try_fill()?;
        tokio::task::yield_now().await;
        Ok(self.hand.sender.deadline().is_some_and(|at| at <= Instant::now()).then_some(Event::Timer))
    }

    /// Prepares the messages that carry this WAL, if it is in memory; else has it brought there.
    fn begin_batch(&mut self, tli: TimelineId, from: Lsn, to: Lsn, end: Lsn, wall: PgTimestamp) {
        match self.segment_in_memory(tli, from, to, end) {
            Ok(Some(segment)) => {
                self.open_next(tli, &segment, to, end);
                self.hand.batch = Some(Batch::new(segment, from, to, end, wall));
            }
            Ok(None) => self.tell(Input::Fetching),
            Err(error) => self.give_up(error),
        }
    }

    fn give_up(&mut self, error: OpenError) {
        self.unavailable = Some(error);
        self.tell(Input::Unavailable);
    }

    /// The segment to read from, if the WAL is in memory; else has it brought there.
    fn segment_in_memory(
        &mut self,
        tli: TimelineId,
        from: Lsn,
        to: Lsn,
        limit: Lsn,
    ) -> Result<Option<Arc<Segment>>, OpenError> {
        let segno = from.seg_at(self.seg_size);
        if self.hand.segment.as_ref().is_none_or(|segment| segment.name().segno != segno) {
            self.hand.segment = self.cx.store.mapped_segment_on(self.hand.sender.history(), tli, segno);
            self.resident_to = Lsn::INVALID;
            self.forget_next();
        }
        let Some(segment) = self.hand.segment.clone() else {
            self.fetch(tli, from, segno, None);
            return Ok(None);
        };
        if to.since(segment.start()) > segment.published() {
            return Err(OpenError::Unreadable(segment.name().format(self.seg_size), to));
        }
        let recent = from >= self.cx.received_from && limit.since(from) <= RECENT;
        let offset = from.since(segment.start());
        if recent || to <= self.resident_to || segment.is_resident(offset, to.since(from) as usize) {
            return Ok(Some(segment));
        }
        self.fetch(tli, from, segno, Some(segment));
        Ok(None)
    }

    /// Has a segment opened, or fetched back if it is not here any more, and read ahead.
    fn fetch(&mut self, tli: TimelineId, at: Lsn, segno: SegNo, open: Option<Arc<Segment>>) {
        let descriptors = self.cx.descriptors.clone();
        let (store, recall) = (self.cx.store.clone(), self.cx.recall.clone());
        let history = self.hand.sender.history().clone();
        self.fetch = Some(tokio::spawn(async move {
            let segment = match open {
                Some(segment) => segment,
                None => open_segment(&descriptors, store, recall.clone(), history, tli, segno).await?,
            };
            match (read_ahead(segment.clone(), at).await, recall) {
                (Ok(Err(_)), Some(recall)) if recall.has_sources() && segment.is_complete() => {
                    Ok(elsewhere(segment, recall, tli).await)
                }
                // What could not be read fails again where it is sent, with an error that ends the stream.
                _ => Ok(segment),
            }
        }));
    }

    /// Has the next segment opened and read ahead, if it is here, whole, and needed soon.
    fn open_next(&mut self, tli: TimelineId, segment: &Segment, at: Lsn, end: Lsn) {
        let (start, segno) = (segment.end(), segment.name().segno.next());
        let is_wanted = start.since(at) <= OPEN_AHEAD && segno.end(self.seg_size) <= end;
        if !is_wanted || self.next.as_ref().is_some_and(|(known, _)| *known == segno) {
            return;
        }
        let (store, descriptors) = (self.cx.store.clone(), self.cx.descriptors.clone());
        let history = self.hand.sender.history().clone();
        let opening = async move {
            let segment = open_here(&descriptors, store, history, tli, segno).await?;
            // What cannot be read is found out when it is needed.
            let _ = read_ahead(segment.clone(), start).await;
            Ok(segment)
        };
        self.next = Some((segno, tokio::spawn(opening)));
    }

    fn forget_next(&mut self) {
        self.next.take().into_iter().for_each(|(_, fetch)| fetch.abort());
    }

    fn forget(&mut self) {
        (self.hand.segment, self.resident_to) = (None, Lsn::INVALID);
        self.forget_next();
        if let Some(fetch) = self.fetch.take() {
            fetch.abort();
        }
    }

    /// Whether something is to be written as soon as the socket takes it.
    fn is_sending(&self) -> bool {
        self.hand.batch.is_some() || self.conn.has_output()
    }

    /// Waits for the next event. While there is nothing to do but to wait, the hand is lent.
    async fn wait(&mut self) -> Result<Event, StreamError> {
        let sending = self.is_sending();
        let interest = match (sending, self.hand.sender.is_listening()) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::WRITABLE,
            (false, _) => Interest::READABLE,
        };
        let deadline = self.hand.sender.deadline();
        let is_idle = !sending && self.left.is_none() && self.fetch.is_none();
        if is_idle && self.hand.sender.is_listening() && self.seat.takes_hands() {
            self.hand.0.take().into_iter().for_each(|hand| self.seat.lend(hand));
        }
        let event = tokio::select! {
            ready = self.conn.socket().ready(interest) => ready.map(|_| Event::Socket),
            () = self.seat.called(), if !sending => Ok(Event::NewWal),
            () = self.alarm.wait(deadline) => Ok(Event::Timer),
            fetched = join(&mut self.fetch) => Ok(Event::Fetched(fetched)),
            order = self.orders.next() => Ok(Event::Order(order)),
        };
        self.take_back()?;
        Ok(event?)
    }

    /// Goes on with what was lent, as whoever had it has left it.
    fn take_back(&mut self) -> io::Result<()> {
        let Some(lent) = self.seat.take_back() else { return Ok(()) };
        (self.hand.0, self.left) = (Some(lent.hand), lent.output);
        lent.error.map_or(Ok(()), Err)
    }

    async fn handle(&mut self, event: Event) -> Result<(), StreamError> {
        match event {
            Event::Socket if !self.hand.sender.is_listening() => {}
            Event::Socket => {
                self.conn.try_fill()?;
            }
            Event::NewWal => {}
            Event::Timer => self.handle_timer().await?,
            Event::Fetched(segment) => self.handle_fetched(segment),
            Event::Order(order) => self.tell(Input::Order(order)),
        }
        Ok(())
    }

    fn handle_fetched(&mut self, segment: Result<Arc<Segment>, OpenError>) {
        self.fetch = None;
        match segment {
            Ok(segment) => {
                self.resident_to = self.hand.sender.sent().advance(READ_AHEAD as u64).min(segment.end());
                self.hand.segment = Some(segment);
                self.tell(Input::Fetched);
            }
            Err(error) => self.give_up(error),
        }
    }

    /// Something seems to be due. What has come meanwhile is heard first: the relay may have been held up, and not
    /// its clients silent.
    async fn handle_timer(&mut self) -> Result<(), StreamError> {
        // Lets the runtime look at its sockets.
        tokio::task::yield_now().await;
        for _ in 0..LAST_LOOKS {
            if !self.hand.sender.is_listening() || self.conn.try_fill()? == 0 {
                break;
            }
            self.handle_frames()?;
        }
        let unheard = self.hand.sender.is_listening() && self.conn.socket().has_unread();
        self.tell(Input::Timeout { unheard });
        Ok(())
    }

    fn handle_frames(&mut self) -> Result<(), StreamError> {
        while self.hand.sender.is_listening()
            && let Some(frame) = self.conn.buffered_frame()?
        {
            self.tell(Input::Frame { kind: frame.kind, body: &frame.body });
        }
        Ok(())
    }

    fn take_report(&self, report: Report) {
        let store = &self.cx.store;
        self.cx.consumer.set_reply(report.write, report.flush, report.apply, store.lag_clock());
        // What was decided by another history than the one that moves slots back counts for nothing; the next
        // report will.
        let is_current = || Arc::ptr_eq(&store.history(), self.hand.sender.history());
        store.consumers().acknowledgements().report(self.cx.pid, || report.counts.filter(|_| is_current()));
        if let Some(slot) = &self.slot {
            slot.confirm_flush(|| report.confirm.filter(|_| is_current()));
        }
    }

    fn take_feedback(&self, feedback: HotStandbyFeedback) {
        let horizon = FeedbackHorizon { xmin: feedback.xmin, catalog_xmin: feedback.catalog_xmin };
        self.cx.store.take_feedback(&self.cx.consumer, self.slot.as_ref(), horizon);
    }

    fn refused(&mut self, refusal: Refusal) -> PgError {
        match (refusal, self.unavailable.take()) {
            (Refusal::Unavailable, Some(error)) => error.into(),
            _ => refused(refusal),
        }
    }

    /// The slot is free before the client can know that the stream is over.
    fn ended(mut self, end: End) -> Result<StreamEnd, StreamError> {
        self.slot = None;
        match end {
            End::Done { next } => Ok(StreamEnd::Done { next }),
            End::Shutdown => Ok(StreamEnd::Shutdown),
            End::Refused(refusal) => Err(self.refused(refusal).into()),
            End::Cut(cut) => {
                if cut == Cut::Finished {
                    self.conn.try_flush()?;
                }
                Err(StreamError::Closed(Parting::new(cause(cut), cut.to_string())))
            }
        }
    }
}

fn cause(cut: Cut) -> EndCause {
    match cut {
        Cut::Left => EndCause::ClientLeft,
        Cut::Message(_) => EndCause::Protocol,
        Cut::Silent => EndCause::Timeout,
        Cut::Unconfirmed | Cut::Finished => EndCause::Shutdown,
        Cut::NotTaking(_) => EndCause::NotTaken,
    }
}

/// The hand of a walsender that is awake.
struct Held(Option<Box<Hand>>);

impl Deref for Held {
    type Target = Hand;

    fn deref(&self) -> &Hand {
        self.0.as_ref().expect("it is lent only while its walsender waits")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Hand {
        self.0.as_mut().expect("it is lent only while its walsender waits")
    }
}

impl Drop for Walsender<'_> {
    fn drop(&mut self) {
        if let Some(fetch) = &self.fetch {
            fetch.abort();
        }
        self.forget_next();
    }
}

/// Wakes a walsender when something is due. Each report moves that a little further, so the timer is set again only when it goes
/// off too early.
#[derive(Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Waits until then; for ever if it is never. Cancel-safe.
    async fn wait(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline.map(tokio::time::Instant::from) else { return pending().await };
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            if sleep.deadline() > deadline || sleep.is_elapsed() {
                sleep.as_mut().reset(deadline);
            }
            sleep.as_mut().await;
            if sleep.deadline() >= deadline {
                return;
            }
        }
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

/// From the relay's disk.
async fn open_here(
    descriptors: &Descriptors,
    store: Arc<Store>,
    history: Arc<TimelineHistory>,
    tli: TimelineId,
    segno: SegNo,
) -> Result<Arc<Segment>, OpenError> {
    let turn = descriptors.for_a_moment().await;
    let opened = blocking(move || Ok(store.segment_to_send(&history, tli, segno)?)).await;
    if let Ok(segment) = &opened {
        // The last descriptors are the relay's own.
        if segment.file_to_send().is_some_and(|file| !descriptors.permit(file)) {
            segment.close_to_send();
        }
    }
    drop(turn);
    opened
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
    match (open_here(descriptors, store, history, tli, segno).await, recall) {
        (Err(OpenError::Here(SegmentError::Removed(_))), Some(recall)) => {
            Ok(recall.segment(tli, segno).await?)
        }
        (opened, _) => opened,
    }
}

/// A segment that cannot be read here, from wherever else it is; if it is nowhere, the one that is here.
async fn elsewhere(here: Arc<Segment>, recall: Arc<Recall>, tli: TimelineId) -> Arc<Segment> {
    tracing::error!(
        "could not read WAL segment {} here: {}; look at the disk, and restore the file from a copy; it is fetched from \
         the archive meanwhile",
        here.file_name(),
        Segment::unreadable()
    );
    recall.segment(tli, here.name().segno).await.unwrap_or(here)
}

/// Brings WAL into memory that is not there: where it is, its pages would be put into the map for nothing.
async fn read_ahead(segment: Arc<Segment>, at: Lsn) -> Result<io::Result<()>, JoinError> {
    let read = move || {
        let offset = at.since(segment.start());
        if segment.is_resident(offset, READ_AHEAD) { Ok(()) } else { segment.populate(offset, READ_AHEAD) }
    };
    tokio::task::spawn_blocking(read).await
}

async fn blocking(
    work: impl FnOnce() -> Result<Arc<Segment>, OpenError> + Send + 'static,
) -> Result<Arc<Segment>, OpenError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(OpenError::lost(error)))
}

#[cfg(test)]
mod tests {
    use walrelay_proto::TimelineId;

    use super::*;
    use crate::counts::CommandRefused;
    use crate::downstream::answers;
    use crate::downstream::parting::command_refused;
    use crate::store::SlotError;

    #[test]
    fn what_a_consumer_is_refused_has_a_cause_for_counts() {
        let (tli, file, name) = (TimelineId::new(7).unwrap(), "0000".to_owned(), "s1".to_owned());
        let beyond = Refusal::BeyondTimeline { tli, start: Lsn::new(2), end: Lsn::new(1) };
        let slot = |error| answers::slot_error(error);
        for (error, cause) in [
            (OpenError::from(SegmentError::Removed(file.clone())).into(), Some(CommandRefused::WalRemoved)),
            (OpenError::from(RecallError::Nowhere(file)).into(), Some(CommandRefused::WalRemoved)),
            (refused(Refusal::UnknownTimeline(tli)), Some(CommandRefused::Timeline)),
            (refused(beyond), Some(CommandRefused::Timeline)),
            (slot(SlotError::Invalidated { name: name.clone() }), Some(CommandRefused::SlotLost)),
            (slot(SlotError::Active { name: name.clone(), pid: 1 }), Some(CommandRefused::SlotInUse)),
            (slot(SlotError::Missing { name }), Some(CommandRefused::SlotMissing)),
            (slot(SlotError::Full), Some(CommandRefused::Other)),
            (refused(Refusal::NotReady), Some(CommandRefused::Other)),
            (refused(Refusal::Cancelled), None),
            (refused(Refusal::Evicted), None),
        ] {
            assert_eq!(command_refused(&error), cause, "{error}");
        }
    }
}
