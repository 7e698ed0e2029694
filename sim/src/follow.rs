//! A relay's receiving side: performs the steps of a [`Course`] and the actions of a [`Receiver`], as the relay's own shell
//! does, on a line of the simulation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use walrelay::store::{AppendError, HeldTimeline, Identity, Stepped, Store, StoreError, UpstreamParameters};
use walrelay::upstream::Held;
use walrelay_proto::course::{
    Cause, Compared, Course, CourseError, CourseSetup, Fact, Identified, Introduced, Reserved, Slot,
    Standing, Step, Stream, StreamEnd, Streamed,
};
use walrelay_proto::receiver::{
    Action, Input as Heard, Message, Receiver, ReceiverError, StreamEnd as ReceiverEnd, StreamStart,
};
use walrelay_proto::{
    FeedbackHorizon, HotStandbyFeedback, Lsn, ServerMessage, StandbyStatusUpdate, TimelineHistory, TimelineId,
};

use crate::context::{Context, Event, NodeId};
use crate::frames::{Garbage, Input, code_of, frame, query};
use crate::model::{Place, identity};
use crate::net::{ConnId, Delivery, Side};

/// A server that asks no more is given up.
const TIMEOUT: Duration = Duration::from_secs(4);
/// An answer or a connection that does not come.
const LIMIT: u64 = 4_000_000;
/// A peer that is silent is given up within this, microseconds.
pub(crate) const SLACK: u64 = 200_000;
const BUFFER: usize = 64 << 10;
/// See `upstream::seam`.
const LITTLE: u64 = 256 << 10;

/// Why a step was of no use.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Course(#[from] CourseError),
    #[error("the line: {0}")]
    Line(&'static str),
    #[error("the server says {0}")]
    Server(String),
    #[error("{text}")]
    Store { text: String, is_fatal: bool },
}

impl Cause for Failure {
    fn is_permanent(&self) -> bool {
        false
    }

    fn is_fatal(&self) -> bool {
        matches!(self, Failure::Store { is_fatal: true, .. })
    }
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Failure {
        Failure::Store { text: error.to_string(), is_fatal: matches!(error, AppendError::Failed) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store { text: error.to_string(), is_fatal: false }
    }
}

impl From<Garbage> for Failure {
    fn from(_: Garbage) -> Failure {
        Failure::Line("garbage")
    }
}

/// The row of an answer, and the SQLSTATE of a refusal.
type Answer = (Vec<u8>, Option<String>);

/// What came, if anything.
type Came = Result<Option<Fact<Failure>>, Failure>;

#[derive(Debug)]
pub(crate) struct Follower {
    id: NodeId,
    hosts: Vec<NodeId>,
    slot: String,
    course: Course<Failure>,
    conn: Option<ConnId>,
    host: usize,
    input: Input,
    is_closed: bool,
    theirs: Option<TimelineHistory>,
    files: Vec<(TimelineId, Vec<u8>)>,
    found: Option<HeldTimeline>,
    held: Option<Held>,
    doing: Doing,
    /// The relay gives up.
    pub(crate) is_over: bool,
    /// What all consumers need, as far as the relay has heard.
    pub(crate) needed: FeedbackHorizon,
}

#[derive(Debug)]
enum Doing {
    Nothing,
    Connecting { until: u64 },
    Introducing { until: u64 },
    Asking { what: Question, until: u64 },
    Histories { missing: Vec<TimelineId>, until: u64 },
    Waiting { until: u64 },
    WaitingForDisk,
    Comparing(Comparison),
    Starting { stream: Stream, until: u64 },
    Streaming(Box<Streaming>),
}

#[derive(Clone, Copy, Debug)]
enum Question {
    Identify,
    History(TimelineId),
    Slot,
    CreateSlot,
}

#[derive(Debug)]
struct Comparison {
    next: Lsn,
    is_leaving: bool,
    failure: Option<String>,
    until: u64,
}

#[derive(Debug)]
struct Streaming {
    receiver: Receiver,
    stream: Stream,
    before: Option<(TimelineId, Lsn)>,
    /// What was read and has no room yet.
    rest: Vec<u8>,
    /// When something came.
    heard_at: u64,
    /// The server has been found to be ours.
    is_accepted: bool,
    /// We have said CopyDone.
    is_leaving: bool,
    /// What the receiver was told of what standbys need, and what it has passed on.
    feedback: Option<FeedbackHorizon>,
    fed: Option<FeedbackHorizon>,
}

impl Streaming {
    /// Gives the receiver what it has room for.
    fn read(&mut self, cx: &Context) {
        self.heard_at = cx.now;
        let room = self.receiver.room();
        let count = room.len().min(self.rest.len());
        room[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        self.receiver.handle(Heard::Arrived(count), cx.instant());
    }
}

impl Follower {
    pub(crate) fn new(id: NodeId, hosts: Vec<NodeId>, stepped: &Stepped) -> Follower {
        let empty = stepped.writer.position().is_none();
        let course = Course::new(CourseSetup { hosts: hosts.len(), prefers_standby: false, empty });
        Follower {
            id,
            hosts,
            slot: format!("relay_{id}"),
            course,
            conn: None,
            host: 0,
            input: Input::default(),
            is_closed: false,
            theirs: None,
            files: Vec::new(),
            found: None,
            held: None,
            doing: Doing::Waiting { until: 0 },
            is_over: false,
            needed: FeedbackHorizon::default(),
        }
    }

    pub(crate) fn conn(&self) -> Option<ConnId> {
        self.conn
    }

    /// The line is there.
    pub(crate) fn connected(&mut self, conn: ConnId, cx: &mut Context) {
        if self.conn == Some(conn) && matches!(self.doing, Doing::Connecting { .. }) {
            let text = format!("INTRODUCE {}", self.slot);
            cx.write(conn, Side::Client, &query(&text));
            self.doing = Doing::Introducing { until: cx.now + LIMIT };
        }
    }

    pub(crate) fn take(&mut self, conn: ConnId, bytes: Vec<u8>) {
        if self.conn == Some(conn) {
            match &mut self.doing {
                Doing::Streaming(streaming) if streaming.rest.is_empty() => streaming.rest = bytes,
                Doing::Streaming(streaming) => streaming.rest.extend(bytes),
                _ => self.input.push_all(bytes),
            }
        }
    }

    pub(crate) fn closed(&mut self, conn: ConnId) {
        self.is_closed |= self.conn == Some(conn);
    }

    /// Does all that can be done now. The disk must not hang.
    pub(crate) fn run(&mut self, stepped: &mut Stepped, cx: &mut Context) {
        while !self.is_over {
            let fact = match self.look(stepped, cx) {
                Ok(Some(fact)) => fact,
                Ok(None) => break,
                Err(failure) => Fact::Failed(failure),
            };
            let mut next = Some(fact);
            while let Some(fact) = next {
                let step = self.course.step(fact);
                cx.say(|| format!("relay {}: {step:?}", self.id));
                next = self.begin(step, stepped, cx).unwrap_or_else(|failure| Some(Fact::Failed(failure)));
            }
        }
        if let Some(due) = self.due(cx) {
            cx.wake(self.id, due);
        }
    }

    fn due(&self, cx: &Context) -> Option<u64> {
        match &self.doing {
            Doing::Nothing | Doing::WaitingForDisk => None,
            Doing::Connecting { until }
            | Doing::Introducing { until }
            | Doing::Asking { until, .. }
            | Doing::Histories { until, .. }
            | Doing::Waiting { until }
            | Doing::Starting { until, .. } => Some(*until),
            Doing::Comparing(comparison) => Some(comparison.until),
            Doing::Streaming(streaming) => streaming.receiver.deadline().map(|at| cx.micros(at)),
        }
    }

    fn hang_up(&mut self, cx: &mut Context) {
        if let Some(conn) = self.conn.take() {
            cx.lines.close(conn, Side::Client);
        }
        (self.input, self.is_closed) = (Input::default(), false);
        (self.theirs, self.files, self.found, self.held) = (None, Vec::new(), None, None);
    }

    fn ask(&mut self, text: &str, cx: &mut Context) -> Result<(), Failure> {
        let conn = self.conn.ok_or(Failure::Line("none"))?;
        cx.say(|| format!("relay {} asks {text}", self.id));
        cx.write(conn, Side::Client, &query(text));
        Ok(())
    }

    fn question(&mut self, what: Question, text: &str, cx: &mut Context) -> Came {
        self.ask(text, cx)?;
        self.doing = Doing::Asking { what, until: cx.now + LIMIT };
        Ok(None)
    }

    /// Begins a step; the fact, if that is all.
    fn begin(&mut self, step: Step<Failure>, stepped: &mut Stepped, cx: &mut Context) -> Came {
        self.doing = Doing::Nothing;
        let slot = self.slot.clone();
        let writer = &mut stepped.writer;
        match step {
            Step::Connect { host, .. } => {
                self.host = host;
                let server = self.hosts[host];
                let (delay, flips) = (cx.chance.between(50, 3000), 0);
                let conn = cx.lines.open(self.id, server, delay, flips);
                self.conn = Some(conn);
                cx.after(delay, Event::Connect(conn));
                self.doing = Doing::Connecting { until: cx.now + LIMIT };
                return Ok(None);
            }
            Step::Identify => return self.question(Question::Identify, "IDENTIFY_SYSTEM", cx),
            Step::FetchHistory { tli } if tli == TimelineId::FIRST => {
                self.theirs = Some(TimelineHistory::first());
                return Ok(Some(Fact::History(TimelineHistory::first())));
            }
            Step::FetchHistory { tli } => {
                return self.question(Question::History(tli), &format!("TIMELINE_HISTORY {tli}"), cx);
            }
            Step::FetchHistories => return self.fetch_histories(stepped, cx),
            Step::Look => return self.held_now(stepped).map(|held| Some(Fact::Held(held))),
            Step::WaitDurable => {
                writer.commit();
                self.doing = Doing::WaitingForDisk;
                return Ok(None);
            }
            Step::CreateSlot => {
                return self.question(Question::CreateSlot, &format!("CREATE_REPLICATION_SLOT {slot}"), cx);
            }
            Step::ReadSlot | Step::ReadSlotInSql => {
                return self.question(Question::Slot, &format!("READ_REPLICATION_SLOT {slot}"), cx);
            }
            Step::Begin { at, tli } => {
                self.save_files(stepped)?;
                let history = read_history(stepped, tli)?;
                stepped.writer.begin(ours(), history, at);
                cx.expected.remove(&self.id);
                self.slots_begin(at, tli, cx);
            }
            Step::Find { history } => {
                self.found = writer.find(history)?;
                return Ok(Some(Fact::Found(self.found.as_ref().map(|found| found.end().lsn))));
            }
            Step::WaitBehind { .. } => {
                self.doing = Doing::Waiting { until: cx.now + 500_000 };
                return Ok(None);
            }
            Step::ReadSeam { at, found } => {
                let held = match self.found.as_ref().filter(|_| found) {
                    Some(timeline) => Held::before_on(&stepped.store, timeline, at),
                    None => Held::before(&stepped.store, at),
                };
                let seam = held.map_err(|error| error.to_string()).map(|held| self.held.insert(held).seam());
                return Ok(Some(Fact::Seam(seam)));
            }
            Step::Compare { tli, from } => {
                self.ask(&format!("START_REPLICATION {from} {tli}"), cx)?;
                let until = cx.now + LIMIT;
                self.doing =
                    Doing::Comparing(Comparison { next: from, is_leaving: false, failure: None, until });
                return Ok(None);
            }
            Step::Accept => {
                self.save_files(stepped)?;
                self.head(stepped, cx)?;
            }
            Step::TakeUp { newest } => {
                let found = self.found.take().ok_or(AppendError::Failed)?;
                let (to, end) = (found.end().tli, found.end().lsn);
                let place = self.may_go_to(to, end, cx);
                let before = slots(&stepped.store);
                let taken = stepped.writer.take_up(found, newest);
                let back: Vec<_> = slots(&stepped.store).difference(&before).cloned().collect();
                cx.came_back.extend(back.into_iter().map(|(name, restart)| (self.id, name, restart)));
                taken?;
                self.went_to(to, place, cx);
                if !cx.is_healed && cx.chance.percent(30) {
                    let soon = cx.chance.below(30_000);
                    cx.after(soon, Event::Power(self.id));
                }
            }
            Step::Switch { to, at } => {
                let history = read_history(stepped, to)?;
                let place = self.may_go_to(to, at, cx);
                stepped.writer.switch_timeline(history)?;
                self.went_to(to, place, cx);
            }
            Step::NoteFollowed => writer.note_followed()?,
            Step::Stream(stream) => {
                self.ask(&format!("START_REPLICATION {slot} {} {}", stream.from, stream.tli), cx)?;
                self.doing = Doing::Starting { stream, until: cx.now + LIMIT };
                return Ok(None);
            }
            Step::HangUp => self.hang_up(cx),
            Step::Pause { pause, .. } => {
                let pause = pause.length(cx.chance.next() as u32);
                self.doing = Doing::Waiting { until: cx.now + pause.as_micros() as u64 };
                return Ok(None);
            }
            Step::Give(failure) => {
                cx.say(|| format!("relay {} gives up: {failure}", self.id));
                self.is_over = true;
                return Ok(None);
            }
            Step::Over => {
                self.is_over = true;
                return Ok(None);
            }
        }
        Ok(Some(Fact::Done))
    }

    /// Slots keep WAL from where it begins on, wherever their consumers had come to.
    fn slots_begin(&self, at: Lsn, tli: TimelineId, cx: &mut Context) {
        let upstream = cx.branches.get(&self.hosts[self.host]).copied();
        let Some(branch) = upstream.and_then(|upstream| cx.model.on_way(upstream, tli)) else { return };
        let lsn = at.seg_start(identity().seg_size);
        let ours: Vec<_> = cx.confirmed.keys().filter(|(relay, _)| *relay == self.id).cloned().collect();
        ours.into_iter().for_each(|(relay, slot)| cx.tell_slot(relay, &slot, Place { branch, lsn }));
    }

    /// The branch that is gone to, from where, and what of the confirmed WAL is on it; a crash may leave either.
    fn may_go_to(&self, to: TimelineId, at: Lsn, cx: &mut Context) -> Option<Place> {
        let upstream = cx.branches.get(&self.hosts[self.host]).copied()?;
        let branch = cx.model.on_way(upstream, to)?;
        let expected = cx.expected.get_mut(&self.id)?;
        let common =
            expected.iter().map(|place| cx.model.common(place.branch, branch).min(place.lsn)).max()?;
        let place = Place { branch, lsn: common.min(at) };
        expected.push(place);
        Some(place)
    }

    fn went_to(&self, to: TimelineId, place: Option<Place>, cx: &mut Context) {
        cx.expected.remove(&self.id);
        // Also where nothing was reported yet.
        self.announce(to, cx);
        if let Some(place) = place {
            cx.note("goes to", self.id as u64, place.lsn.as_u64());
            cx.expected.insert(self.id, vec![place]);
            cx.branches.insert(self.id, place.branch);
        }
    }

    fn held_now(&mut self, stepped: &mut Stepped) -> Result<Option<Standing>, Failure> {
        (self.found, self.held) = (None, None);
        stepped.writer.rewind();
        let Some(position) = stepped.writer.position() else { return Ok(None) };
        let store = &stepped.store;
        let ours = store.history();
        let newest = stepped.writer.newest().filter(|newest| *newest > ours.tli());
        let newest = newest.and_then(|newest| read_history(stepped, newest).ok());
        let here = store.held_timelines().map_err(io)?;
        let is_bare = stepped.writer.is_bare();
        Ok(Some(Standing { ours: (*ours).clone(), held: position.lsn, is_bare, newest, here }))
    }

    fn fetch_histories(&mut self, stepped: &Stepped, cx: &mut Context) -> Came {
        let mut missing = Vec::new();
        let Some(theirs) = &self.theirs else { return Ok(Some(Fact::Done)) };
        for tli in theirs.way().filter(|tli| *tli != TimelineId::FIRST) {
            let ours = stepped.store.history_file(tli).map_err(io)?;
            let ours = ours.and_then(|content| TimelineHistory::parse(tli, &content).ok());
            if ours != theirs.up_to(tli) {
                missing.push(tli);
            }
        }
        self.files.clear();
        self.next_history(missing, cx)
    }

    fn next_history(&mut self, missing: Vec<TimelineId>, cx: &mut Context) -> Came {
        let Some(tli) = missing.last() else { return Ok(Some(Fact::Done)) };
        self.ask(&format!("TIMELINE_HISTORY {tli}"), cx)?;
        self.doing = Doing::Histories { missing, until: cx.now + LIMIT };
        Ok(None)
    }

    /// A server is followed: the next start knows how new it was, whatever becomes of this one.
    fn head(&self, stepped: &mut Stepped, cx: &mut Context) -> Result<(), Failure> {
        let Some(theirs) = &self.theirs else { return Ok(()) };
        stepped.writer.head_for(theirs.tli())?;
        let heading = cx.headings.entry(self.id).or_insert(theirs.tli());
        *heading = theirs.tli().max(*heading);
        Ok(())
    }

    fn save_files(&mut self, stepped: &Stepped) -> Result<(), Failure> {
        save_files(std::mem::take(&mut self.files), stepped)
    }

    /// Looks whether what is under way has come to its end.
    fn look(&mut self, stepped: &mut Stepped, cx: &mut Context) -> Came {
        let over = |until: u64| if cx.now >= until { Err(Failure::Line("silent")) } else { Ok(None) };
        match &mut self.doing {
            Doing::Nothing => Ok(None),
            Doing::Waiting { until } => Ok((cx.now >= *until).then_some(Fact::Done)),
            Doing::WaitingForDisk => {
                let store = &stepped.store;
                Ok((*store.flushed().borrow() == *store.written().borrow()).then_some(Fact::Done))
            }
            Doing::Connecting { .. } if self.is_closed => Err(Failure::Line("refused")),
            Doing::Connecting { until } => over(*until),
            Doing::Introducing { until } => {
                let until = *until;
                let Some(answer) = self.answer(until, cx)? else { return Ok(None) };
                Ok(Some(Fact::Introduced(introduced(&answer, &stepped.store)?)))
            }
            Doing::Asking { what, until } => {
                let (what, until) = (*what, *until);
                self.answered(what, until, cx)
            }
            Doing::Histories { missing, until } => {
                let (mut missing, until) = (missing.clone(), *until);
                let Some(content) = self.answer(until, cx)? else { return Ok(None) };
                if let Some(tli) = missing.pop() {
                    self.files.push((tli, content));
                }
                self.next_history(missing, cx)
            }
            Doing::Comparing(_) => self.compare(cx),
            Doing::Starting { stream, until } => {
                let (stream, until) = (*stream, *until);
                self.started(stream, until, stepped, cx)
            }
            Doing::Streaming(_) => self.receive(stepped, cx),
        }
    }

    /// The row of an answer, once ReadyForQuery has come.
    fn answer(&mut self, until: u64, cx: &Context) -> Result<Option<Vec<u8>>, Failure> {
        match self.whole_answer(until, cx)? {
            None => Ok(None),
            Some((_, Some(code))) => Err(Failure::Server(code)),
            Some((row, None)) => Ok(Some(row)),
        }
    }

    fn whole_answer(&mut self, until: u64, cx: &Context) -> Result<Option<Answer>, Failure> {
        // An answer is short: it is looked at from its beginning until it is whole.
        let mut whole = self.input.clone();
        let (mut row, mut failure) = (Vec::new(), None);
        while let Some((kind, body)) = whole.next()? {
            match kind {
                b'D' => row = body,
                b'E' => failure = Some(code_of(&body)),
                b'Z' => {
                    self.input = whole;
                    return Ok(Some((row, failure)));
                }
                _ => {}
            }
        }
        if self.is_closed {
            return Err(Failure::Line("closed"));
        }
        if cx.now >= until { Err(Failure::Line("silent")) } else { Ok(None) }
    }

    fn answered(&mut self, what: Question, until: u64, cx: &Context) -> Came {
        let row = match self.whole_answer(until, cx)? {
            None => return Ok(None),
            Some((_, Some(code))) if code == "42710" => return Ok(Some(Fact::Done)),
            Some((_, Some(code))) => return Err(Failure::Server(code)),
            Some((row, None)) => row,
        };
        let text = String::from_utf8_lossy(&row).into_owned();
        let mut words = text.split(' ');
        Ok(Some(match what {
            Question::Identify => Fact::Identified(identified(&mut words)?),
            Question::History(tli) => {
                let history = TimelineHistory::parse(tli, &row).map_err(|_| Failure::Line("history"))?;
                self.theirs = Some(history.clone());
                Fact::History(history)
            }
            Question::Slot => Fact::Slot(slot_of(&mut words)?),
            Question::CreateSlot => Fact::Done,
        }))
    }

    /// As `Held::compare` in the relay's shell.
    fn compare(&mut self, cx: &mut Context) -> Came {
        let Some(held) = &self.held else { return Ok(Some(Fact::Compared(Compared::Idle))) };
        let Doing::Comparing(comparison) = &mut self.doing else { return Ok(None) };
        while let Some((kind, body)) = self.input.next()? {
            let mut follows = 0;
            comparison.until = cx.now + LIMIT;
            match kind {
                b'd' if !comparison.is_leaving => {
                    if let Ok(ServerMessage::XLogData(header, wal)) = ServerMessage::decode(&body) {
                        if header.start != comparison.next {
                            return Err(Failure::Line("gap"));
                        }
                        held.check(header.start, wal)?;
                        comparison.next = comparison.next.advance(wal.len() as u64);
                        follows = header.end.since(comparison.next.min(header.end));
                    }
                }
                b'E' => comparison.failure = Some(code_of(&body)),
                b'Z' => {
                    return match comparison.failure.take() {
                        Some(code) if code != "58P01" => Err(Failure::Server(code)),
                        _ => Ok(Some(Fact::Compared(Compared::Idle))),
                    };
                }
                _ => {}
            }
            let is_over = comparison.next >= held.seam().end || kind == b'c';
            if is_over && !comparison.is_leaving {
                if follows > LITTLE {
                    return Ok(Some(Fact::Compared(Compared::MoreFollows)));
                }
                comparison.is_leaving = true;
                if let Some(conn) = self.conn {
                    cx.write(conn, Side::Client, &frame(b'c', b""));
                }
            }
        }
        if self.is_closed {
            return Err(Failure::Line("closed"));
        }
        if cx.now >= comparison.until { Err(Failure::Line("silent")) } else { Ok(None) }
    }

    fn started(&mut self, stream: Stream, until: u64, stepped: &mut Stepped, cx: &mut Context) -> Came {
        let mut ahead = self.input.clone();
        if let Some((b'W', _)) = ahead.next()? {
            self.input = ahead;
            return self.begin_stream(stream, stepped, cx);
        }
        let Some((_, failure)) = self.whole_answer(until, cx)? else { return Ok(None) };
        let end = match failure {
            None => StreamEnd::Timeline,
            Some(code) if code == "42704" => StreamEnd::NoSlot(Failure::Server(code)),
            Some(code) => return Err(Failure::Server(code)),
        };
        let verified = stepped.writer.verified().map(|end| end.lsn);
        Ok(Some(Fact::Streamed(Streamed { came: false, verified, end })))
    }

    fn begin_stream(&mut self, stream: Stream, stepped: &mut Stepped, cx: &mut Context) -> Came {
        let position = stepped.writer.position().ok_or(Failure::Line("nowhere"))?;
        let held = self.held.as_ref().filter(|_| stream.compares);
        let start = StreamStart {
            tli: position.tli,
            position: held.map_or(position.lsn, |_| stream.until),
            compare_from: held.map(|held| held.seam().from),
            timeout: Some(TIMEOUT),
            told: None,
        };
        let receiver = Receiver::new(start, &self.input.take_rest(), BUFFER, cx.instant());
        let before = stepped.writer.verified().map(|end| (end.tli, end.lsn));
        let is_accepted = held.is_none();
        self.doing = Doing::Streaming(Box::new(Streaming {
            receiver,
            stream,
            before,
            rest: Vec::new(),
            heard_at: cx.now,
            is_accepted,
            is_leaving: false,
            feedback: None,
            fed: None,
        }));
        cx.note("streams", self.id as u64, stream.from.as_u64());
        self.receive(stepped, cx)
    }

    fn receive(&mut self, stepped: &mut Stepped, cx: &mut Context) -> Came {
        let Doing::Streaming(mut streaming) = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            return Ok(None);
        };
        let end = match self.drive(&mut streaming, stepped, cx) {
            Ok(None) => {
                self.doing = Doing::Streaming(streaming);
                return Ok(None);
            }
            Ok(Some(end)) => end,
            Err(failure) => failure,
        };
        // What was received before an error counts.
        stepped.writer.commit();
        let rest = std::mem::take(&mut streaming.rest);
        self.input.push(streaming.receiver.unread());
        self.input.push(&rest);
        let verified = stepped.writer.verified();
        let came = verified.map(|end| (end.tli, end.lsn)) != streaming.before;
        cx.note("stream ends", self.id as u64, verified.map_or(0, |end| end.lsn.as_u64()));
        Ok(Some(Fact::Streamed(Streamed { came, verified: verified.map(|end| end.lsn), end })))
    }

    /// Until there is nothing to do, or the stream is over: by itself or by a failure, which is told as an end all the same.
    fn drive(
        &mut self,
        streaming: &mut Streaming,
        stepped: &mut Stepped,
        cx: &mut Context,
    ) -> Result<Option<StreamEnd<Failure>>, StreamEnd<Failure>> {
        tell_positions(&mut streaming.receiver, stepped, cx);
        let horizon = *stepped.store.consumers().horizon().borrow();
        if streaming.feedback.replace(horizon) != Some(horizon) {
            streaming.receiver.handle(Heard::Feedback(horizon), cx.instant());
        }
        loop {
            loop {
                let (now, wall) = (cx.instant(), cx.wall(self.id));
                match streaming.receiver.poll(now, wall) {
                    Ok(Some(Action::End(end))) => return Ok(Some(ended(end))),
                    Ok(Some(action)) => self.perform(action, streaming, stepped, cx)?,
                    Ok(None) => break,
                    Err(error) => return Err(failed(error)),
                }
            }
            let now = cx.instant();
            let receiver = &mut streaming.receiver;
            if receiver.wants_bytes() && !streaming.rest.is_empty() {
                streaming.read(cx);
            } else if receiver.wants_bytes() && self.is_closed {
                receiver.handle(Heard::Closed, now);
            } else if receiver.deadline().is_some_and(|at| at <= now) {
                receiver.handle(Heard::Timeout, now);
            } else {
                self.check_stream(streaming, cx);
                return Ok(None);
            }
        }
    }

    fn perform(
        &mut self,
        action: Action,
        streaming: &mut Streaming,
        stepped: &mut Stepped,
        cx: &mut Context,
    ) -> Result<(), StreamEnd<Failure>> {
        let receiver = &mut streaming.receiver;
        match action {
            Action::Append { at, wal } => {
                stepped.writer.append(at, receiver.wal(&wal)).map_err(|error| match error {
                    AppendError::Bad(source) => StreamEnd::Bad(source),
                    other => StreamEnd::Failed(other.into()),
                })?;
            }
            Action::Commit => {
                stepped.writer.commit();
                stepped.writer.check_commit().map_err(|error| StreamEnd::Failed(error.into()))?;
                tell_positions(receiver, stepped, cx);
            }
            Action::ShowStart => {
                stepped.writer.show_start();
                tell_positions(receiver, stepped, cx);
            }
            Action::Send(message) => {
                streaming.is_leaving |= message == Message::CopyDone;
                if let Message::Feedback(told) = message {
                    self.check_feedback(streaming, &told, cx);
                }
                self.send(&message, streaming.stream.tli, stepped, cx);
            }
            Action::Compare { at, wal } => {
                if let Some(held) = &self.held {
                    held.check(at, receiver.wal(&wal)).map_err(|error| StreamEnd::Failed(error.into()))?;
                }
            }
            Action::Accept => {
                let files = std::mem::take(&mut self.files);
                save_files(files, stepped).map_err(StreamEnd::Failed)?;
                self.head(stepped, cx).map_err(StreamEnd::Failed)?;
                streaming.is_accepted = true;
            }
            Action::LookOnceMore => self.look_once_more(streaming, cx),
            Action::Announce => self.announce(streaming.stream.tli, cx),
            Action::Note { .. } | Action::End(_) => {}
        }
        Ok(())
    }

    /// What is passed on is what all consumers need, or "none", which lets a slot go back.
    fn check_feedback(&self, streaming: &mut Streaming, told: &HotStandbyFeedback, cx: &mut Context) {
        let HotStandbyFeedback { xmin, catalog_xmin, .. } = *told;
        let (told, needed) = (FeedbackHorizon { xmin, catalog_xmin }, self.needed);
        if told != needed && told != FeedbackHorizon::default() {
            cx.fail(|| {
                format!("relay {} says that {told:?} is needed, and its consumers need {needed:?}", self.id)
            });
        }
        streaming.fed = Some(told);
        cx.note("feeds back", self.id as u64, told.xmin.map_or(0, |xmin| u64::from(xmin.xid)));
    }

    /// What has to be so whenever there is nothing to do.
    fn check_stream(&self, streaming: &Streaming, cx: &mut Context) {
        let goes_on = streaming.is_accepted && !streaming.is_leaving;
        if goes_on && streaming.fed != Some(self.needed) {
            let (told, needed) = (streaming.fed, self.needed);
            cx.fail(|| {
                format!("relay {} has passed on {told:?}, and its consumers need {needed:?}", self.id)
            });
        }
        if goes_on && cx.now > streaming.heard_at + TIMEOUT.as_micros() as u64 + SLACK {
            cx.fail(|| format!("relay {} goes on with a server that is silent", self.id));
        }
    }

    /// What lies in the socket has not been read yet: a process that got no time has heard nothing.
    fn look_once_more(&mut self, streaming: &mut Streaming, cx: &mut Context) {
        let Context { lines, chance, .. } = cx;
        let delivery = match self.conn.filter(|conn| lines.has_unread(*conn, Side::Client)) {
            Some(conn) => lines.deliver(conn, Side::Client, chance),
            None => Delivery::Nothing,
        };
        match delivery {
            Delivery::Bytes(bytes) => {
                streaming.rest.extend_from_slice(&bytes);
                streaming.read(cx);
            }
            Delivery::Closed => {
                self.is_closed = true;
                streaming.receiver.handle(Heard::Closed, cx.instant());
            }
            Delivery::Nothing => streaming.receiver.handle(Heard::Silent, cx.instant()),
        }
    }

    /// The upstream is taken for one of our cluster's: what it is on, we are on.
    fn announce(&self, tli: TimelineId, cx: &mut Context) {
        let upstream = cx.branches.get(&self.hosts[self.host]).copied();
        if let Some(branch) = upstream.and_then(|branch| cx.model.on_way(branch, tli)) {
            cx.branches.insert(self.id, branch);
        }
    }

    fn send(&self, message: &Message, tli: TimelineId, stepped: &Stepped, cx: &mut Context) {
        let Some(conn) = self.conn else { return };
        // Where WAL will begin that has not come yet says nothing of WAL that is held.
        if let Message::Status(StandbyStatusUpdate { flush: Some(lsn), .. }) = message
            && Some(*lsn) != stepped.store.begun_at()
        {
            let upstream = cx.branches.get(&self.hosts[self.host]).copied();
            if let Some(branch) = upstream.and_then(|branch| cx.model.on_way(branch, tli)) {
                cx.confirm(self.id, Place { branch, lsn: *lsn });
                cx.check_group(self.id, Place { branch, lsn: *lsn });
            }
        }
        let mut bytes = Vec::new();
        message.put(&mut bytes);
        cx.write(conn, Side::Client, &bytes);
    }
}

fn tell_positions(receiver: &mut Receiver, stepped: &Stepped, cx: &Context) {
    if let Some(tip) = stepped.store.tip() {
        let (tli, write_lsn, flush_lsn) = (tip.tli, tip.write_lsn, tip.flush_lsn);
        let acknowledgements = stepped.store.consumers().acknowledgements();
        let report = acknowledgements.compose_at(write_lsn, flush_lsn, cx.instant());
        receiver.handle(Heard::Positions { tli, write_lsn, flush_lsn, report }, cx.instant());
    }
}

fn ended(end: ReceiverEnd) -> StreamEnd<Failure> {
    match end {
        ReceiverEnd::Timeline { .. } => StreamEnd::Timeline,
        ReceiverEnd::ServerStopped => StreamEnd::ServerStopped,
        ReceiverEnd::Stopped => StreamEnd::Stopped,
    }
}

fn failed(error: ReceiverError) -> StreamEnd<Failure> {
    match error {
        ReceiverError::Server { response, .. } => match code_of(&response) {
            code if code == "58P01" => StreamEnd::Removed(Failure::Server(code)),
            code => StreamEnd::Failed(Failure::Server(code)),
        },
        other => StreamEnd::Failed(Failure::Server(other.to_string())),
    }
}

fn save_files(files: Vec<(TimelineId, Vec<u8>)>, stepped: &Stepped) -> Result<(), Failure> {
    stepped.store.attach(ours(), UpstreamParameters::default())?;
    for (tli, content) in files {
        stepped
            .store
            .save_history_file(tli, &content)
            .map_err(|error| Failure::Store { text: error.to_string(), is_fatal: false })?;
    }
    Ok(())
}

fn slots(store: &Store) -> BTreeSet<(String, Lsn)> {
    store.slots().list().into_iter().filter_map(|slot| Some((slot.name, slot.restart_lsn?))).collect()
}

fn read_history(stepped: &Stepped, tli: TimelineId) -> Result<TimelineHistory, Failure> {
    if tli == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let content = stepped.store.history_file(tli).map_err(io)?.ok_or(Failure::Line("no history"))?;
    TimelineHistory::parse(tli, &content).map_err(|_| Failure::Line("history"))
}

fn ours() -> Identity {
    let id = identity();
    Identity { system_id: id.system_id, seg_size: id.seg_size }
}

fn io(error: std::io::Error) -> Failure {
    Failure::Store { text: error.to_string(), is_fatal: false }
}

fn identified<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<Identified, Failure> {
    let tli = words.next().and_then(|word| TimelineId::new(word.parse().ok()?));
    let xlogpos = words.next().and_then(|word| word.parse().ok());
    match (tli, xlogpos) {
        (Some(tli), Some(xlogpos)) => Ok(Identified { system_id: identity().system_id, tli, xlogpos }),
        _ => Err(Failure::Line("garbage")),
    }
}

fn slot_of<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<Slot, Failure> {
    match (words.next(), words.next().map(str::parse::<Lsn>)) {
        (Some("missing"), _) => Ok(Slot::Missing),
        (Some("lost"), _) => Ok(Slot::There { reserved: None }),
        (Some("there"), Some(Ok(lsn))) => {
            Ok(Slot::There { reserved: lsn.valid().map(|lsn| Reserved { lsn, tli: None }) })
        }
        _ => Err(Failure::Line("garbage")),
    }
}

fn introduced(row: &[u8], store: &Arc<walrelay::store::Store>) -> Result<Introduced, Failure> {
    store.check(ours())?;
    let text = String::from_utf8_lossy(row).into_owned();
    let mut words = text.split(' ');
    let identified = identified(&mut words)?;
    Ok(Introduced { identified, seg_size: identity().seg_size, slot: slot_of(&mut words)? })
}
