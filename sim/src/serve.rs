//! The side of a connection that sends WAL: a session that answers commands and has a [`Sender`] stream. Servers and
//! relays have the same; what they read from differs ([`Source`]).

use std::time::Duration;

use walrelay_proto::sender::{
    End, Input as Heard, NotStarted, Output, Published, Refusal, Report, Request, Sender, Settings, Wal,
    message_end,
};
use walrelay_proto::{Lsn, SegSize, TimelineHistory, TimelineId, XLogDataHeader};

use crate::context::Context;
use crate::frames::{Frame, Input, error, frame, next_timeline, ready};
use crate::net::{ConnId, Side};

pub(crate) const PEER_TIMEOUT: Duration = Duration::from_secs(4);

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
    /// What a stream holds while it has a slot.
    type Slot;

    /// Timeline and end of the WAL; `None` while there is none.
    fn identify(&self) -> Option<(TimelineId, Lsn)>;
    fn wal(&self) -> Option<Wal>;
    fn history_file(&self, tli: TimelineId) -> Option<Vec<u8>>;
    fn read(&self, cx: &Context, history: &TimelineHistory, tli: TimelineId, from: Lsn, to: Lsn) -> Read;
    fn slot(&self, name: &str) -> SlotState;
    fn create_slot(&mut self, cx: &mut Context, name: &str) -> Result<(), NoSlot>;
    fn drop_slot(&mut self, cx: &mut Context, name: &str) -> Result<(), NoSlot>;
    fn acquire(&mut self, name: &str) -> Result<Self::Slot, NoSlot>;
    fn restart_lsn(&self, slot: &Self::Slot) -> Option<Lsn>;
    /// A client has told its positions.
    fn report(
        &mut self,
        cx: &mut Context,
        who: Who,
        slot: Option<&Self::Slot>,
        sender: &Sender,
        report: Report,
    );
}

/// Whose report it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) client: usize,
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
}

#[derive(Debug)]
struct Stream<S> {
    sender: Sender,
    slot: Option<S>,
    /// WAL that is to be brought, once the disk gives it.
    fetching: Option<(TimelineId, Lsn, Lsn)>,
    /// Whether something was given out that [`Heard::Sent`] has to answer.
    is_sending: bool,
}

impl<S> Session<S> {
    pub(crate) fn new(conn: ConnId) -> Session<S> {
        Session {
            conn,
            input: Input::default(),
            out: Vec::new(),
            out_taken: 0,
            stream: None,
            waiting: None,
            is_over: false,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.input.push(bytes);
    }

    /// The slot that its stream has.
    pub(crate) fn slot(&self) -> Option<&S> {
        self.stream.as_ref().and_then(|stream| stream.slot.as_ref())
    }

    /// Does all that can be done now.
    pub(crate) fn run(&mut self, source: &mut impl Source<Slot = S>, cx: &mut Context) {
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

    fn step(&mut self, source: &mut impl Source<Slot = S>, cx: &mut Context) -> bool {
        match self.stream {
            Some(_) => self.step_stream(source, cx),
            None => self.step_command(source, cx),
        }
    }

    fn step_command(&mut self, source: &mut impl Source<Slot = S>, cx: &mut Context) -> bool {
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

    fn answer(&mut self, body: Vec<u8>, source: &mut impl Source<Slot = S>, cx: &mut Context) -> bool {
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
        source: &mut impl Source<Slot = S>,
        cx: &Context,
    ) {
        let slot = match slot.map(|name| source.acquire(name)).transpose() {
            Ok(slot) => slot,
            Err(why) => return self.refuse_slot(why),
        };
        let (Ok(lsn), Some(tli)) = (lsn.parse(), tli.parse().ok().and_then(TimelineId::new)) else {
            return self.refuse("42601", "syntax error");
        };
        let Some(wal) = source.wal() else { return self.refuse("57P03", "not ready") };
        let restart_lsn = slot.as_ref().and_then(|slot| source.restart_lsn(slot));
        let settings = Settings {
            peer_timeout: Some(PEER_TIMEOUT),
            shutdown_timeout: Duration::from_secs(5),
            grace: Duration::from_secs(1),
        };
        match Sender::start(Request { tli: Some(tli), lsn, restart_lsn }, settings, wal, cx.instant()) {
            Ok(sender) => {
                self.stream = Some(Stream { sender, slot, fetching: None, is_sending: true });
            }
            Err(NotStarted::AtEnd { next: (tli, at) }) => {
                self.say(&next_timeline(tli, at));
                self.say(&frame(b'C', b"START_STREAMING"));
                self.say(&ready());
            }
            Err(NotStarted::Refused(refusal)) => self.refuse(code_of(refusal), &refusal.to_string()),
        }
    }

    fn step_stream(&mut self, source: &mut impl Source<Slot = S>, cx: &mut Context) -> bool {
        let now = cx.instant();
        let Some(stream) = &mut self.stream else { return false };
        // The position first: one that is new belongs to a history that is there.
        if let Some(wal) = source.wal() {
            stream.sender.handle(Heard::History(wal.history), now);
            stream.sender.handle(Heard::Published(wal.published), now);
        }
        while stream.sender.is_listening() {
            match self.input.next() {
                Ok(Some((kind, body))) => stream.sender.handle(Heard::Frame { kind, body: &body }, now),
                Ok(None) => break,
                Err(_) => {
                    self.is_over = true;
                    return true;
                }
            }
        }
        if stream.sender.deadline().is_some_and(|at| at <= now) {
            stream.sender.handle(Heard::Timeout { unheard: false }, now);
        }
        if let Some((tli, from, to)) = stream.fetching {
            match source.read(cx, stream.sender.history(), tli, from, to) {
                Read::Later => {}
                Read::Bytes(_) => {
                    stream.fetching = None;
                    stream.sender.handle(Heard::Fetched, now);
                }
                Read::Gone | Read::Failed => {
                    stream.fetching = None;
                    stream.sender.handle(Heard::Unavailable, now);
                }
            }
        }
        self.perform(source, cx)
    }

    fn perform(&mut self, source: &mut impl Source<Slot = S>, cx: &mut Context) -> bool {
        let (now, wall) = (cx.instant(), cx.wall());
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
                        source.report(cx, Who { client }, stream.slot.as_ref(), &stream.sender, report);
                    }
                }
                Output::Forget => stream.fetching = None,
                Output::Feedback(_) | Output::State(_) => {}
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
    history: std::sync::Arc<TimelineHistory>,
    published: Option<(TimelineId, Lsn)>,
) -> Wal {
    Wal { seg_size, history, published: published.map(|(tli, lsn)| Published { tli, lsn }) }
}
