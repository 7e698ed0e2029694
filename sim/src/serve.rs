//! The side of a connection that sends WAL: a session that answers commands and has a [`Sender`] stream. Servers and
//! relays have the same; what they read from differs ([`Source`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use walrelay::store::Segment;
use walrelay_proto::sender::{
    End, Input as Heard, NotStarted, Order, Output, Published, Refusal, Report, Request, Sender, Settings,
    Wal, message_end,
};
use walrelay_proto::{
    FeedbackHorizon, HotStandbyFeedback, Lsn, SegSize, TimelineHistory, TimelineId, XLogDataHeader,
};

use crate::context::{Context, NodeId};
use crate::follow::SLACK;
use crate::frames::{Frame, Garbage, Input, error, frame, next_timeline, ready};
use crate::net::{ConnId, Delivery, Side};

const PEER_TIMEOUT: Duration = Duration::from_secs(4);
/// A client that is told to end has so long to take what comes before.
const GRACE: Duration = Duration::from_secs(1);

/// A slot as its owner tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SlotState {
    Missing,
    There(Option<Lsn>),
    /// It keeps nothing any more.
    Lost,
}

/// WAL that was asked for.
pub(crate) enum Read {
    Bytes(Vec<u8>),
    /// In a segment, from this offset on.
    Segment(Arc<Segment>, u64, usize),
    /// The disk hangs.
    Later,
    /// It is not there any more.
    Gone,
    /// It cannot be read now.
    Failed,
}

/// A slot that cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoSlot {
    Missing,
    Exists,
    InUse,
    Lost,
    /// The disk does not take it.
    Failed,
    /// Ask again later.
    Later,
}

/// Who has WAL and slots.
pub(crate) trait Source {
    /// What a stream has while it lasts: its place among the consumers, and its slot.
    type Seat;

    /// Whose it is.
    fn node(&self) -> NodeId;
    /// Whether each message of a client is answered for itself, as PostgreSQL does; a relay's walsender hears all of them
    /// first.
    fn hears_one_by_one(&self) -> bool;
    /// Timeline and end of the WAL; `None` while there is none.
    fn identify(&self) -> Option<(TimelineId, Lsn)>;
    fn wal(&self) -> Option<Wal>;
    fn history_file(&self, tli: TimelineId) -> Option<Vec<u8>>;
    fn read(
        &mut self,
        cx: &mut Context,
        history: &Arc<TimelineHistory>,
        tli: TimelineId,
        from: Lsn,
        to: Lsn,
    ) -> Read;
    fn slot(&self, name: &str) -> SlotState;
    fn create_slot(&mut self, cx: &mut Context, name: &str) -> Result<(), NoSlot>;
    fn drop_slot(&mut self, cx: &mut Context, name: &str) -> Result<(), NoSlot>;
    fn sit(&mut self, conn: ConnId, slot: Option<&str>) -> Result<Self::Seat, NoSlot>;
    fn restart_lsn(&self, seat: &Self::Seat) -> Option<Lsn>;
    /// Whether its slot is lost.
    fn is_evicted(&self, seat: &Self::Seat) -> bool;
    /// A client has told its positions.
    fn report(&mut self, cx: &mut Context, who: Who, seat: &Self::Seat, sender: &Sender, report: Report);
    /// A client has told what its queries need.
    fn feedback(&mut self, seat: &Self::Seat, feedback: FeedbackHorizon);
}

/// Whose report it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) client: NodeId,
}

#[derive(Debug)]
pub(crate) struct Session<S> {
    conn: ConnId,
    input: Input,
    out: Vec<u8>,
    out_taken: usize,
    stream: Option<Stream<S>>,
    /// A command that cannot be answered while the disk hangs.
    waiting: Option<Frame>,
    is_over: bool,
    /// When something came.
    heard_at: u64,
}

#[derive(Debug)]
struct Stream<S> {
    sender: Sender,
    seat: S,
    is_evicted: bool,
    /// Since when that is known to who looks at it from outside.
    lost_at: Option<u64>,
    /// What the client has told that it needs.
    feedback: FeedbackHorizon,
    /// WAL that is to be brought, once the disk gives it.
    fetching: Option<(TimelineId, Lsn, Lsn)>,
    /// Whether something was given out that [`Heard::Sent`] has to answer.
    is_sending: bool,
}

impl<S> Session<S> {
    pub(crate) fn new(conn: ConnId, now: u64) -> Session<S> {
        Session {
            conn,
            input: Input::default(),
            out: Vec::new(),
            out_taken: 0,
            stream: None,
            waiting: None,
            is_over: false,
            heard_at: now,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(crate) fn take(&mut self, bytes: Vec<u8>, now: u64) {
        self.heard_at = now;
        self.input.push_all(bytes);
    }

    /// What its stream has.
    pub(crate) fn seat(&self) -> Option<&S> {
        self.stream.as_ref().map(|stream| &stream.seat)
    }

    /// What its client needs, as it has told in this stream.
    pub(crate) fn feedback(&self) -> FeedbackHorizon {
        self.stream.as_ref().map(|stream| stream.feedback).unwrap_or_default()
    }

    /// A client that says nothing is given up, and so is one whose slot is lost.
    pub(crate) fn check(&mut self, node: NodeId, is_lost: bool, cx: &mut Context) {
        let Some(stream) = &mut self.stream else { return };
        let silent = cx.now > self.heard_at + PEER_TIMEOUT.as_micros() as u64 + SLACK;
        if silent && !cx.lines.has_unread(self.conn, Side::Server) {
            cx.fail(|| format!("node {node} goes on with a client that is silent"));
        }
        if is_lost && cx.now > *stream.lost_at.get_or_insert(cx.now) + GRACE.as_micros() as u64 + SLACK {
            cx.fail(|| format!("node {node} goes on sending to a client whose slot is lost"));
        }
    }

    /// Does all that can be done now.
    pub(crate) fn run(&mut self, source: &mut impl Source<Seat = S>, cx: &mut Context) {
        while !self.is_over && (self.step(source, cx) | self.write(cx)) {}
        if self.is_over {
            self.stream = None;
            self.write(cx);
            cx.lines.close(self.conn, Side::Server);
        }
    }

    /// When it has to be run at the latest.
    pub(crate) fn deadline(&self, cx: &Context) -> Option<u64> {
        self.stream.as_ref()?.sender.deadline().map(|at| cx.micros(at))
    }

    /// Gives the line what it takes; whether that was anything.
    fn write(&mut self, cx: &mut Context) -> bool {
        let rest = &self.out[self.out_taken..];
        let count = rest.len().min(cx.lines.room(self.conn, Side::Server));
        if count > 0 {
            cx.write(self.conn, Side::Server, &rest[..count]);
            self.out_taken += count;
        }
        if self.out_taken < self.out.len() {
            return false;
        }
        (self.out, self.out_taken) = (Vec::new(), 0);
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.is_sending) else { return false };
        stream.is_sending = false;
        stream.sender.handle(Heard::Sent, cx.instant());
        true
    }

    fn step(&mut self, source: &mut impl Source<Seat = S>, cx: &mut Context) -> bool {
        match self.stream {
            Some(_) => self.step_stream(source, cx),
            None => self.step_command(source, cx),
        }
    }

    fn step_command(&mut self, source: &mut impl Source<Seat = S>, cx: &mut Context) -> bool {
        let frame = match self.waiting.take() {
            Some(frame) => Ok(Some(frame)),
            None => self.input.next(),
        };
        match frame {
            Ok(None) => false,
            Ok(Some((b'Q', body))) => self.answer(body, source, cx),
            // What crosses our CopyDone.
            Ok(Some((b'd' | b'c', _))) => true,
            Ok(Some(_)) | Err(_) => {
                self.is_over = true;
                true
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn say_row(&mut self, row: &[u8]) {
        self.say(&frame(b'D', row));
        self.say(&ready());
    }

    fn refuse(&mut self, code: &str, text: &str) {
        self.say(&error(code, text));
        self.say(&ready());
    }

    fn answer(&mut self, body: Vec<u8>, source: &mut impl Source<Seat = S>, cx: &mut Context) -> bool {
        let text = String::from_utf8_lossy(&body).into_owned();
        let words: Vec<_> = text.split(' ').collect();
        let slot_row = |state| match state {
            SlotState::Missing => "missing".to_owned(),
            SlotState::Lost => "lost".to_owned(),
            SlotState::There(lsn) => format!("there {}", lsn.unwrap_or_default()),
        };
        match words[..] {
            ["INTRODUCE", slot] => match source.identify() {
                Some((tli, lsn)) => {
                    self.say_row(format!("{tli} {lsn} {}", slot_row(source.slot(slot))).as_bytes())
                }
                None => self.refuse("57P03", "not ready"),
            },
            ["IDENTIFY_SYSTEM"] => match source.identify() {
                Some((tli, lsn)) => self.say_row(format!("{tli} {lsn}").as_bytes()),
                None => self.refuse("57P03", "not ready"),
            },
            ["TIMELINE_HISTORY", tli] => {
                let file =
                    tli.parse().ok().and_then(TimelineId::new).and_then(|tli| source.history_file(tli));
                match file {
                    Some(file) => self.say_row(&file),
                    None => self.refuse("58P01", "no such file"),
                }
            }
            ["READ_REPLICATION_SLOT", slot] => self.say_row(slot_row(source.slot(slot)).as_bytes()),
            ["CREATE_REPLICATION_SLOT", slot] => match source.create_slot(cx, slot) {
                Ok(()) => self.say_row(b"made"),
                Err(NoSlot::Later) => return self.wait(body),
                Err(why) => self.refuse_slot(why),
            },
            ["DROP_REPLICATION_SLOT", slot] => match source.drop_slot(cx, slot) {
                Ok(()) => self.say_row(b"dropped"),
                Err(NoSlot::Later) => return self.wait(body),
                Err(why) => self.refuse_slot(why),
            },
            ["START_REPLICATION", lsn, tli] => self.start(None, lsn, tli, source, cx),
            ["START_REPLICATION", slot, lsn, tli] => self.start(Some(slot), lsn, tli, source, cx),
            _ => self.refuse("42601", "syntax error"),
        }
        true
    }

    fn wait(&mut self, body: Vec<u8>) -> bool {
        self.waiting = Some((b'Q', body));
        false
    }

    fn refuse_slot(&mut self, why: NoSlot) {
        let code = match why {
            NoSlot::Missing => "42704",
            NoSlot::Exists => "42710",
            NoSlot::InUse => "55006",
            NoSlot::Lost => "55000",
            NoSlot::Failed | NoSlot::Later => "58030",
        };
        self.refuse(code, "slot");
    }

    fn start(
        &mut self,
        slot: Option<&str>,
        lsn: &str,
        tli: &str,
        source: &mut impl Source<Seat = S>,
        cx: &Context,
    ) {
        let seat = match source.sit(self.conn, slot) {
            Ok(seat) => seat,
            Err(why) => return self.refuse_slot(why),
        };
        let (Ok(lsn), Some(tli)) = (lsn.parse(), tli.parse().ok().and_then(TimelineId::new)) else {
            return self.refuse("42601", "syntax error");
        };
        let Some(wal) = source.wal() else { return self.refuse("57P03", "not ready") };
        let restart_lsn = source.restart_lsn(&seat);
        let settings = Settings {
            peer_timeout: Some(PEER_TIMEOUT),
            shutdown_timeout: Duration::from_secs(5),
            grace: GRACE,
        };
        match Sender::start(Request { tli: Some(tli), lsn, restart_lsn }, settings, wal, cx.instant()) {
            Ok(sender) => {
                self.heard_at = cx.now;
                let (is_evicted, lost_at, feedback) = (false, None, FeedbackHorizon::default());
                let (fetching, is_sending) = (None, true);
                let stream = Stream { sender, seat, is_evicted, lost_at, feedback, fetching, is_sending };
                self.stream = Some(stream);
            }
            Err(NotStarted::AtEnd { next: (tli, at) }) => {
                self.say(&next_timeline(tli, at));
                self.say(&frame(b'C', b"START_STREAMING"));
                self.say(&ready());
            }
            Err(NotStarted::Refused(refusal)) => self.refuse(code_of(refusal), &refusal.to_string()),
        }
    }

    fn step_stream(&mut self, source: &mut impl Source<Seat = S>, cx: &mut Context) -> bool {
        let now = cx.instant();
        let Some(stream) = &mut self.stream else { return false };
        // The position first: one that is new belongs to a history that is there.
        if let Some(wal) = source.wal() {
            stream.sender.handle(Heard::History(wal.history), now);
            stream.sender.handle(Heard::Published(wal.published), now);
        }
        if !stream.is_evicted && source.is_evicted(&stream.seat) {
            stream.is_evicted = true;
            stream.sender.handle(Heard::Order(Order::Evict), now);
        }
        if stream.sender.deadline().is_some_and(|at| at <= now) {
            // What has come meanwhile is heard first: it may be us who were held up.
            if cx.lines.has_unread(self.conn, Side::Server) {
                self.heard_at = cx.now;
            }
            let unheard = read_what_lies_there(self.conn, &mut self.input, cx);
            if stream.hear(&mut self.input, usize::MAX, now).is_err() {
                self.is_over = true;
                return true;
            }
            stream.sender.handle(Heard::Timeout { unheard }, now);
        }
        let most = if source.hears_one_by_one() { 1 } else { usize::MAX };
        let Ok(heard) = stream.hear(&mut self.input, most, now) else {
            self.is_over = true;
            return true;
        };
        if let Some((tli, from, to)) = stream.fetching {
            match source.read(cx, stream.sender.history(), tli, from, to) {
                Read::Later => {}
                Read::Bytes(_) | Read::Segment(..) => {
                    stream.fetching = None;
                    stream.sender.handle(Heard::Fetched, now);
                }
                Read::Gone | Read::Failed => {
                    stream.fetching = None;
                    stream.sender.handle(Heard::Unavailable, now);
                }
            }
        }
        self.perform(source, cx) || heard > 0
    }

    fn perform(&mut self, source: &mut impl Source<Seat = S>, cx: &mut Context) -> bool {
        let (now, wall) = (cx.instant(), cx.wall(source.node()));
        let mut has_done = false;
        loop {
            let Some(stream) = &mut self.stream else { return has_done };
            let Some(output) = stream.sender.poll_output(wall) else { return has_done };
            has_done = true;
            match output {
                Output::Wal { tli, from, to, end } => {
                    match source.read(cx, stream.sender.history(), tli, from, to) {
                        Read::Bytes(bytes) => {
                            put_wal(&mut self.out, from, end, &bytes, wall);
                            stream.is_sending = true;
                        }
                        Read::Segment(segment, offset, len) => {
                            put_wal(&mut self.out, from, end, segment.bytes(offset, len), wall);
                            stream.is_sending = true;
                        }
                        Read::Later => {
                            stream.fetching = Some((tli, from, to));
                            stream.sender.handle(Heard::Fetching, now);
                        }
                        Read::Gone | Read::Failed => stream.sender.handle(Heard::Unavailable, now),
                    }
                }
                Output::Bytes(bytes) => {
                    self.out.extend_from_slice(&bytes);
                    stream.is_sending = true;
                }
                Output::Report(report) => {
                    let client = cx.lines.get(self.conn).map(|conn| conn.client);
                    if let Some(client) = client {
                        source.report(cx, Who { client }, &stream.seat, &stream.sender, report);
                    }
                }
                Output::Forget => stream.fetching = None,
                Output::Feedback(HotStandbyFeedback { xmin, catalog_xmin, .. }) => {
                    stream.feedback = FeedbackHorizon { xmin, catalog_xmin };
                    source.feedback(&stream.seat, stream.feedback);
                }
                Output::State(_) => {}
                Output::End(end) => self.end(end),
            }
        }
    }

    fn end(&mut self, end: End) {
        // The slot is free before the client can know that the stream is over.
        self.stream = None;
        match end {
            End::Done { next } => {
                if let Some((tli, at)) = next {
                    self.say(&next_timeline(tli, at));
                    self.say(&frame(b'C', b"SELECT 1"));
                }
                self.say(&frame(b'C', b"START_STREAMING"));
                self.say(&ready());
            }
            End::Shutdown => {
                self.say(&frame(b'C', b"COPY 0"));
                self.is_over = true;
            }
            End::Refused(refusal) => {
                self.refuse(code_of(refusal), &refusal.to_string());
                self.is_over = refusal.is_fatal();
            }
            End::Cut(_) => self.is_over = true,
        }
    }
}

/// Reads what has come, as far as a walsender does before it takes its client for silent; whether there is more.
fn read_what_lies_there(conn: ConnId, input: &mut Input, cx: &mut Context) -> bool {
    const LOOKS: usize = 16;
    for _ in 0..LOOKS {
        let Context { lines, chance, .. } = &mut *cx;
        if !lines.has_unread(conn, Side::Server) {
            return false;
        }
        match lines.deliver(conn, Side::Server, chance) {
            Delivery::Bytes(bytes) => input.push_all(bytes),
            // Its end is told by itself.
            Delivery::Closed | Delivery::Nothing => return false,
        }
    }
    cx.lines.has_unread(conn, Side::Server)
}

impl<S> Stream<S> {
    /// Tells the sender the messages that are whole, so many of them at most; how many there were.
    fn hear(&mut self, input: &mut Input, most: usize, now: Instant) -> Result<usize, Garbage> {
        let mut heard = 0;
        while self.sender.is_listening() && heard < most {
            let Some((kind, body)) = input.next()? else { break };
            self.sender.handle(Heard::Frame { kind, body: &body }, now);
            heard += 1;
        }
        Ok(heard)
    }
}

fn code_of(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotReady => "57P03",
        Refusal::Unavailable => "58P01",
        Refusal::Evicted => "57P01",
        Refusal::Cancelled => "57014",
        Refusal::Message(_) => "08P01",
        Refusal::UnknownTimeline(_) | Refusal::BeyondTimeline { .. } => "XX000",
    }
}

fn put_wal(out: &mut Vec<u8>, from: Lsn, end: Lsn, mut bytes: &[u8], send_time: walrelay_proto::PgTimestamp) {
    let (mut at, to) = (from, from.advance(bytes.len() as u64));
    while at < to {
        let behind = message_end(at, to);
        let (now, later) = bytes.split_at(behind.since(at) as usize);
        let header = XLogDataHeader { start: at, end, send_time };
        out.extend_from_slice(&header.frame(now.len() as u32));
        out.extend_from_slice(now);
        (at, bytes) = (behind, later);
    }
}

/// End of what is published, for a [`Wal`].
pub(crate) fn wal(
    seg_size: SegSize,
    history: Arc<TimelineHistory>,
    published: Option<(TimelineId, Lsn)>,
) -> Wal {
    Wal { seg_size, history, published: published.map(|(tli, lsn)| Published { tli, lsn }) }
}
