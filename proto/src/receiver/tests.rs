//! The receiver against scripted bytes, with virtual time.

use proptest::prelude::*;

use super::*;
use crate::message::{ClientMessage, FullXid, Keepalive, ServerMessageError, XLogDataHeader};

const START: Lsn = Lsn::new(0x300_0000);
const CLOCK: PgTimestamp = PgTimestamp::from_micros(7);
const IDLE: &[u8] = b"Z\0\0\0\x05I";
const COPY_DONE: &[u8] = b"c\0\0\0\x04";

/// A receiver, its clock, and a store that takes everything and syncs what it is told to.
struct Rig {
    receiver: Receiver,
    now: Instant,
    /// WAL from `START` on.
    held: Vec<u8>,
    /// What was compared, from `START` back.
    compared: Vec<(Lsn, Vec<u8>)>,
    /// Everything that was received up to here has its record's end; `None` for all of it.
    whole: Option<Lsn>,
    write_lsn: Option<Lsn>,
    flush_lsn: Option<Lsn>,
    /// Whether what is committed is durable at once.
    syncs: bool,
    /// What is to be reported; `None` for all that is held.
    report: Option<Positions>,
    /// The last `apply` that was sent.
    applied: std::cell::Cell<Option<Lsn>>,
}

/// What came of it, without what the rig does itself.
#[derive(Clone, PartialEq, Debug)]
enum Did {
    Status { write: Option<Lsn>, flush: Option<Lsn>, asks: bool },
    Feedback(u32),
    CopyDone,
    Terminate,
    Accept,
    Announce,
    ShowStart,
    LookOnceMore,
    Note(u8),
    End(StreamEnd),
    Failed(ReceiverError),
}

/// All that is held is reported.
fn all(write: Lsn, flush: Lsn) -> Positions {
    Positions { write: Some(write), flush: Some(flush), apply: None }
}

fn status(position: Lsn) -> Did {
    Did::Status { write: Some(position), flush: Some(position), asks: false }
}

const NO_POSITION: Did = Did::Status { write: None, flush: None, asks: false };

impl Rig {
    fn new() -> Rig {
        Rig::of(None, Some(Duration::from_secs(60)))
    }

    /// The stream has to begin with so many bytes that are held.
    fn comparing(len: u64) -> Rig {
        Rig::of(Some(START.rewind(len)), Some(Duration::from_secs(60)))
    }

    fn of(compare_from: Option<Lsn>, timeout: Option<Duration>) -> Rig {
        let now = Instant::now();
        let tli = TimelineId::FIRST;
        let told = Some(FeedbackHorizon::default());
        let start = StreamStart { tli, position: START, compare_from, timeout, told };
        Rig {
            receiver: Receiver::new(start, b"", 0, now),
            now,
            held: Vec::new(),
            compared: Vec::new(),
            whole: None,
            write_lsn: None,
            flush_lsn: None,
            syncs: true,
            report: None,
            applied: std::cell::Cell::default(),
        }
    }

    fn end(&self) -> Lsn {
        START.advance(self.held.len() as u64)
    }

    /// These bytes come, all at once as far as there is room.
    fn bytes(&mut self, bytes: &[u8]) -> Vec<Did> {
        let (mut rest, mut did) = (bytes, Vec::new());
        while !rest.is_empty() && self.receiver.wants_bytes() {
            let room = self.receiver.room();
            let len = room.len().min(rest.len());
            assert!(len > 0, "no room");
            room[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            did.extend(self.input(Input::Arrived(len)));
        }
        did
    }

    fn input(&mut self, input: Input) -> Vec<Did> {
        self.receiver.handle(input, self.now);
        self.settle()
    }

    /// The time of the next deadline comes.
    fn timeout(&mut self) -> Vec<Did> {
        self.now = self.receiver.deadline().expect("a deadline");
        self.input(Input::Timeout)
    }

    fn positions(&mut self) {
        if let Some(write_lsn) = self.write_lsn {
            let flush_lsn = self.flush_lsn.unwrap_or_default();
            let report = self.report.unwrap_or_else(|| all(write_lsn, flush_lsn));
            let tli = TimelineId::FIRST;
            self.receiver.handle(Input::Positions { tli, write_lsn, flush_lsn, report }, self.now);
        }
    }

    fn sync(&mut self) -> Vec<Did> {
        self.flush_lsn = self.write_lsn;
        self.positions();
        self.settle()
    }

    fn settle(&mut self) -> Vec<Did> {
        let mut did = Vec::new();
        for _ in 0..1_000_000 {
            match self.receiver.poll(self.now, CLOCK) {
                Ok(None) => return did,
                Ok(Some(action)) => did.extend(self.perform(action)),
                Err(error) => {
                    did.push(Did::Failed(error));
                    assert_eq!(self.receiver.poll(self.now, CLOCK), Ok(None), "over is over");
                    assert_eq!(self.receiver.deadline(), None);
                    return did;
                }
            }
        }
        panic!("no end: {:?}", self.receiver);
    }

    fn perform(&mut self, action: Action) -> Option<Did> {
        Some(match action {
            Action::Append { at, wal } => {
                let bytes = self.receiver.wal(&wal).to_vec();
                self.append(at, &bytes);
                return None;
            }
            Action::Compare { at, wal } => {
                self.compared.push((at, self.receiver.wal(&wal).to_vec()));
                return None;
            }
            Action::Commit => {
                let whole = self.whole.map_or(self.end(), |whole| whole.min(self.end()));
                if !self.held.is_empty() && whole > START {
                    self.write_lsn = Some(whole);
                }
                if self.syncs {
                    self.flush_lsn = self.write_lsn;
                }
                self.positions();
                return None;
            }
            Action::ShowStart => {
                if self.write_lsn.is_none() {
                    (self.write_lsn, self.flush_lsn) = (Some(START), Some(START));
                }
                self.positions();
                Did::ShowStart
            }
            Action::Send(message) => self.sent(&message),
            Action::Accept => Did::Accept,
            Action::Announce => Did::Announce,
            Action::LookOnceMore => Did::LookOnceMore,
            Action::Note { kind, .. } => Did::Note(kind),
            Action::End(end) => Did::End(end),
        })
    }

    fn append(&mut self, at: Lsn, wal: &[u8]) {
        assert!(!wal.is_empty() && self.receiver.comparing.is_none());
        assert!(at <= self.end(), "a gap: {at} behind {}", self.end());
        let known = (self.end().since(at) as usize).min(wal.len());
        self.held.extend(&wal[known..]);
    }

    fn sent(&self, message: &Message) -> Did {
        let mut frame = Vec::new();
        message.put(&mut frame);
        assert_eq!(frame[1..5], (frame.len() as u32 - 1).to_be_bytes());
        match message {
            Message::Status(status) => {
                assert_eq!(ClientMessage::decode(&frame[5..]), Ok(ClientMessage::Status(*status)));
                assert_eq!(status.send_time, CLOCK);
                assert!(status.write <= self.write_lsn && status.flush <= self.flush_lsn);
                assert!(status.apply <= status.flush && status.apply >= self.applied.replace(status.apply));
                Did::Status { write: status.write, flush: status.flush, asks: status.reply_requested }
            }
            Message::Feedback(feedback) => {
                assert_eq!(ClientMessage::decode(&frame[5..]), Ok(ClientMessage::Feedback(*feedback)));
                Did::Feedback(feedback.xmin.map_or(0, |id| id.xid))
            }
            Message::CopyDone => Did::CopyDone,
            Message::Terminate => Did::Terminate,
        }
    }
}

fn wal(at: Lsn, bytes: &[u8]) -> Vec<u8> {
    let header = XLogDataHeader { start: at, end: at.advance(bytes.len() as u64), send_time: CLOCK };
    [&header.frame(bytes.len() as u32)[..], bytes].concat()
}

fn keepalive(end: Lsn, reply_requested: bool) -> Vec<u8> {
    Keepalive { end, send_time: CLOCK, reply_requested }.frame().to_vec()
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn error(severity: &str) -> Vec<u8> {
    frame(b'E', format!("S{severity}\0V{severity}\0C58P01\0Mgone\0\0").as_bytes())
}

fn next_row() -> Vec<u8> {
    frame(b'D', b"\0\x02\0\0\0\x012\0\0\0\x080/D00170")
}

fn horizon(xmin: u32) -> FeedbackHorizon {
    FeedbackHorizon { xmin: FullXid::new(0, xmin), catalog_xmin: None }
}

fn response(severity: &str) -> Bytes {
    Bytes::copy_from_slice(&error(severity)[5..])
}

fn server(severity: &str, idle: bool) -> Did {
    Did::Failed(ReceiverError::Server { response: response(severity), idle })
}

// ---- pieces ----

/// Every kind of message that a server sends, some WAL longer than the buffer among them.
fn everything() -> Vec<(&'static str, Vec<u8>)> {
    let body: Vec<u8> = (0..40_000u32).map(|number| (number % 251) as u8).collect();
    let row_description = frame(b'T', b"\0\0");
    vec![
        ("keepalive", keepalive(START, false)),
        ("a little WAL", wal(START, &body[..100])),
        ("no WAL", wal(START.advance(100), b"")),
        ("a question", keepalive(START.advance(100), true)),
        ("a parameter", frame(b'S', b"in_hot_standby\0off\0")),
        ("a notice", frame(b'N', b"SNOTICE\0Mhello\0\0")),
        ("much WAL", wal(START.advance(100), &body)),
        ("the same WAL again", wal(START.advance(100), &body[..1000])),
        ("CopyDone", COPY_DONE.to_vec()),
        ("a late keepalive", keepalive(START, true)),
        ("late WAL", wal(START, &body)),
        ("columns", row_description),
        ("a row", next_row()),
        ("a notice at the end", frame(b'N', b"SNOTICE\0Mbye\0\0")),
        ("a tag", frame(b'C', b"SELECT\0")),
        ("another tag", frame(b'C', b"START_STREAMING\0")),
        ("ready", IDLE.to_vec()),
    ]
}

/// Reports of progress depend on how bytes come; nothing else does.
fn without_reports(did: Vec<Did>) -> Vec<Did> {
    did.into_iter().filter(|did| !matches!(did, Did::Status { .. })).collect()
}

#[test]
fn every_message_may_be_split_at_every_byte() {
    let messages = everything();
    let stream: Vec<u8> = messages.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let play = |pieces: &[&[u8]]| {
        let mut rig = Rig::new();
        let did = pieces.iter().flat_map(|piece| rig.bytes(piece)).collect();
        (without_reports(did), rig.held)
    };
    let whole = play(&[&stream]);
    let next = Some((TimelineId::new(2).unwrap(), "0/D00170".parse().unwrap()));
    let end = Did::End(StreamEnd::Timeline { next });
    let expected = [Did::Announce, Did::Note(b'S'), Did::Note(b'N'), Did::CopyDone, Did::Note(b'N'), end];
    assert_eq!((&whole.0[..], whole.1.len()), (&expected[..], 40_100));

    let mut begin = 0;
    for (name, message) in &messages {
        // The beginning and the end of each; what is between in a long one is all the same.
        for at in (0..message.len()).filter(|at| *at < 60 || message.len() - at < 3) {
            let (before, behind) = stream.split_at(begin + at);
            assert_eq!(play(&[before, behind]), whole, "{name} split at {at}");
        }
        begin += message.len();
    }
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(play(&bytes), whole, "byte by byte");
}

#[test]
fn impossible_lengths_end_the_stream() {
    let unexpected = |kind| vec![Did::Failed(ReceiverError::Unexpected(kind))];
    for kind in 0..=u8::MAX {
        for length in 0..4u32 {
            let mut rig = Rig::new();
            assert_eq!(rig.bytes(&[&[kind][..], &length.to_be_bytes()].concat()), unexpected(kind));
        }
        for length in [30_005, 1 << 30, u32::MAX] {
            let mut rig = Rig::new();
            let mut did = rig.bytes(&[&[kind][..], &length.to_be_bytes()].concat());
            did.extend(rig.bytes(b"x"));
            assert_eq!(did, unexpected(kind), "{length}");
        }
    }
}

/// Whatever length it says: WAL is taken as it comes.
#[test]
fn wal_of_any_length_is_taken() {
    let mut rig = Rig::new();
    let header = XLogDataHeader { start: START, end: START, send_time: CLOCK }.frame(0);
    let frame = [b"d", &u32::MAX.to_be_bytes()[..], &header[5..]].concat();
    assert_eq!(rig.bytes(&frame), []);
    let taken = rig.bytes(&[7; 100_000]);
    assert_eq!((&taken[0], rig.end()), (&Did::Announce, START.advance(100_000)));
    assert_eq!(*taken.last().unwrap(), status(rig.end()));
}

#[test]
fn unknown_kinds_end_the_stream() {
    for kind in (0..=u8::MAX).filter(|kind| !b"dcCENS".contains(kind)) {
        let did = Rig::new().bytes(&frame(kind, b""));
        assert_eq!(did, [Did::Failed(ReceiverError::Unexpected(kind))]);
    }
    for kind in (0..=u8::MAX).filter(|kind| !b"dTDCENSZ".contains(kind)) {
        let mut rig = Rig::new();
        assert_eq!(rig.bytes(COPY_DONE), [Did::CopyDone]);
        assert_eq!(rig.bytes(&frame(kind, b"")), [Did::Failed(ReceiverError::Unexpected(kind))]);
    }
}

#[test]
fn garbage_in_valid_framing_is_named() {
    let check = |payload: &[u8], error, text: &str| {
        let did = Rig::new().bytes(&frame(b'd', payload));
        let expected = ReceiverError::Message(error);
        assert_eq!(expected.to_string(), text);
        assert_eq!(did, [Did::Failed(expected)], "{text}");
    };
    check(b"", ServerMessageError::Empty, "empty replication message received from upstream");
    check(b"w", ServerMessageError::ShortXLogData, "invalid WAL message received from upstream");
    check(&[b'w'; 24], ServerMessageError::ShortXLogData, "invalid WAL message received from upstream");
    let keepalive = "invalid keepalive message received from upstream";
    check(&[b'k'; 17], ServerMessageError::KeepaliveLength, keepalive);
    check(&[b'k'; 19], ServerMessageError::KeepaliveLength, keepalive);
    check(b"xyz", ServerMessageError::UnknownType(b'x'), "invalid replication message type 120");
}

#[test]
fn wal_behind_a_gap_is_not_taken() {
    let mut rig = Rig::new();
    rig.bytes(&wal(START, &[1; 100]));
    let (at, expected) = (START.advance(101), START.advance(100));
    let did = rig.bytes(&wal(at, &[1; 100]));
    assert_eq!(did, [Did::Failed(ReceiverError::Gap { at, expected })]);
    assert_eq!(rig.held.len(), 100);
    let text = ReceiverError::Gap { at, expected }.to_string();
    assert_eq!(text, "received WAL at 0/3000065, expected 0/3000064");
    // At the beginning too.
    let did = Rig::new().bytes(&wal(START.advance(1), &[1]));
    let gap = ReceiverError::Gap { at: START.advance(1), expected: START };
    assert_eq!(did, [Did::Failed(gap)]);
    // And at the end of all positions.
    let did = Rig::new().bytes(&wal(Lsn::new(u64::MAX), &[1; 9]));
    assert!(matches!(did[..], [Did::Failed(ReceiverError::Gap { .. })]), "{did:?}");
}

#[test]
fn wal_that_comes_again_is_for_the_store_to_compare() {
    let mut rig = Rig::new();
    // From the page's beginning, as it is asked for.
    rig.bytes(&wal(START, &[1; 1000]));
    let before = rig.receiver.received;
    assert_eq!(rig.bytes(&wal(START, &[1; 500])), []);
    assert_eq!(rig.receiver.received, before, "what is received does not fall");
    let did = rig.bytes(&wal(START.advance(900), &[1; 200]));
    assert_eq!((did, rig.end()), (vec![status(START.advance(1100))], START.advance(1100)));
    let at = START.advance(1101);
    let did = rig.bytes(&wal(at, &[1]));
    assert_eq!(did, [Did::Failed(ReceiverError::Gap { at, expected: START.advance(1100) })]);
}

// ---- what the stream begins with ----

#[test]
fn nothing_is_stored_or_reported_before_the_beginning_is_the_same() {
    let mut rig = Rig::comparing(1000);
    (rig.write_lsn, rig.flush_lsn) = (Some(START), Some(START));
    rig.positions();
    rig.receiver.handle(Input::Feedback(horizon(7)), rig.now);
    assert_eq!(rig.settle(), []);
    assert_eq!(rig.bytes(&keepalive(START, true)), [NO_POSITION]);
    assert_eq!(rig.timeout(), [NO_POSITION], "neither announced nor shown");
    let at = START.rewind(1000);
    assert_eq!(rig.bytes(&wal(at, &[3; 400])), []);
    assert_eq!(rig.bytes(&keepalive(START, true)), [NO_POSITION]);
    // The message in which it ends brings new WAL.
    let did = rig.bytes(&wal(at.advance(400), &[3; 700]));
    let end = START.advance(100);
    assert_eq!(did, [Did::Accept, Did::Announce, Did::Feedback(7), status(end)]);
    let compared: Vec<_> = rig.compared.iter().map(|(at, wal)| (*at, wal.len())).collect();
    assert_eq!(compared, [(at, 400), (at.advance(400), 600)]);
    assert_eq!(rig.end(), end);
}

#[test]
fn the_beginning_has_to_be_where_it_was_asked_for() {
    for (from, at) in [(100, 99), (100, 101)] {
        let mut rig = Rig::comparing(from);
        let (expected, at) = (START.rewind(from), START.rewind(at));
        assert_eq!(rig.bytes(&wal(at, &[1])), [Did::Failed(ReceiverError::Gap { at, expected })]);
        assert_eq!(rig.compared, []);
    }
}

#[test]
fn a_refusal_before_the_end_of_the_beginning_leaves_the_connection_idle() {
    let mut rig = Rig::comparing(100);
    rig.bytes(&wal(START.rewind(100), &[1; 50]));
    assert_eq!(rig.bytes(&error("ERROR")), []);
    // What was on its way.
    assert_eq!(rig.bytes(&wal(START.rewind(50), &[1; 50])), []);
    let did = rig.bytes(&[IDLE, b"more"].concat());
    assert_eq!(did, [server("ERROR", true)]);
    assert_eq!(rig.receiver.unread(), b"more");
    assert!(rig.held.is_empty());

    // It ends, or says nothing more.
    for input in [Input::Closed, Input::Silent] {
        let mut rig = Rig::comparing(100);
        rig.bytes(&error("ERROR"));
        if input == Input::Silent {
            assert_eq!(rig.timeout(), [Did::LookOnceMore]);
        }
        assert_eq!(rig.input(input), [server("ERROR", false)]);
    }
    // Behind others nothing comes.
    assert_eq!(Rig::comparing(100).bytes(&error("FATAL")), [server("FATAL", false)]);
    let unread = Did::Failed(ReceiverError::Server { response: Bytes::from_static(b"x"), idle: false });
    assert_eq!(Rig::comparing(100).bytes(&frame(b'E', b"x")), [unread]);
    assert_eq!(Rig::new().bytes(&error("ERROR")), [server("ERROR", false)]);
}

#[test]
fn an_end_of_timeline_within_the_beginning_is_too_short() {
    let mut rig = Rig::comparing(100);
    rig.bytes(&wal(START.rewind(100), &[1; 99]));
    assert_eq!(rig.bytes(COPY_DONE), [Did::CopyDone]);
    let did = rig.bytes(&[&next_row()[..], IDLE].concat());
    assert_eq!(did, [Did::Failed(ReceiverError::TooShort)]);
}

// ---- reports ----

#[test]
fn the_first_status_leaves_time_to_refuse() {
    let mut rig = Rig::new();
    let begin = rig.now;
    assert_eq!(rig.bytes(&keepalive(START, false)), []);
    assert_eq!(rig.timeout(), [Did::Announce, Did::ShowStart, status(START)]);
    assert_eq!(rig.now, begin + FIRST_STATUS);
    // Then it speaks now and then.
    let shown = [Did::ShowStart, status(START)];
    assert_eq!((rig.timeout(), rig.now), (shown.to_vec(), begin + FIRST_STATUS + STATUS_INTERVAL));
}

#[test]
fn what_is_written_and_what_is_synced_are_reported_when_they_move() {
    let mut rig = Rig::new();
    rig.syncs = false;
    let end = START.advance(10);
    let written = Did::Status { write: Some(end), flush: None, asks: false };
    assert_eq!(rig.bytes(&wal(START, &[1; 10])), [Did::Announce, written.clone()]);
    assert_eq!(rig.bytes(&keepalive(end, false)), [], "nothing is new");
    assert_eq!(rig.bytes(&keepalive(end, true)), [written], "but it was asked");
    assert_eq!(rig.sync(), [status(end)]);
    assert_eq!(rig.sync(), []);
}

#[test]
fn an_answer_covers_what_came_before_the_question() {
    let mut rig = Rig::new();
    let end = START.advance(10);
    let did = rig.bytes(&[wal(START, &[1; 10]), keepalive(end, true)].concat());
    assert_eq!(did, [Did::Announce, status(end)]);
}

#[test]
fn positions_of_other_timelines_and_older_ones_are_passed_over() {
    let mut rig = Rig::new();
    let end = START.advance(1000);
    rig.bytes(&wal(START, &[1; 1000]));
    let mut told = |tli: u32, lsn: Lsn| {
        let tli = TimelineId::new(tli).unwrap();
        rig.receiver
            .handle(Input::Positions { tli, write_lsn: lsn, flush_lsn: lsn, report: all(lsn, lsn) }, rig.now);
        assert_eq!(rig.settle(), []);
        assert_eq!(rig.bytes(&keepalive(end, true)), [status(end)]);
    };
    told(2, end.advance(5));
    told(1, START);
    told(1, Lsn::INVALID);
}

#[test]
fn nothing_is_durable_beyond_what_is_written() {
    let mut rig = Rig::new();
    let (write_lsn, flush_lsn) = (START, START.advance(9));
    let (tli, report) = (TimelineId::FIRST, all(write_lsn, flush_lsn));
    rig.receiver.handle(Input::Positions { tli, write_lsn, flush_lsn, report }, rig.now);
    assert_eq!(rig.receiver.positions(), all(START, START));
}

#[test]
fn a_server_that_asks_for_ever_for_half_a_record_is_let_go() {
    let mut rig = Rig::new();
    let (whole, end) = (START.advance(50), START.advance(80));
    rig.whole = Some(whole);
    rig.bytes(&wal(START, &[1; 80]));
    // For other positions it may ask as often as it likes.
    for _ in 0..10 {
        assert_eq!(rig.bytes(&keepalive(whole, true)), [status(whole)]);
    }
    for _ in 1..PATIENCE {
        assert_eq!(rig.bytes(&keepalive(end, true)), [status(whole)]);
    }
    // WAL in between shows that it has not stopped.
    rig.bytes(&wal(end, &[1; 8]));
    let end = end.advance(8);
    for _ in 1..PATIENCE {
        assert_eq!(rig.bytes(&keepalive(end, true)), [status(whole)]);
    }
    let did = rig.bytes(&keepalive(end, true));
    assert_eq!(did, [status(whole), Did::CopyDone, Did::End(StreamEnd::ServerStopped)]);
}

/// What is not synced yet will be.
#[test]
fn a_server_that_asks_while_the_disk_is_busy_is_not_left() {
    let mut rig = Rig::new();
    (rig.whole, rig.syncs) = (Some(START.advance(50)), false);
    rig.bytes(&wal(START, &[1; 80]));
    for _ in 0..10 {
        let did = rig.bytes(&keepalive(START.advance(80), true));
        assert_eq!(did, [Did::Status { write: Some(START.advance(50)), flush: None, asks: false }]);
    }
}

// ---- feedback ----

#[test]
fn feedback_is_told_once_and_none_clears_it_once() {
    let mut rig = Rig::new();
    let mut told = |xmin| rig.input(Input::Feedback(horizon(xmin)));
    // A slot may have some of an earlier connection.
    assert_eq!(told(0), [Did::Feedback(0)]);
    assert_eq!(told(0), []);
    assert_eq!(told(500), [Did::Feedback(500)]);
    assert_eq!(told(600), [Did::Feedback(600)]);
    assert_eq!(told(300), [Did::Feedback(0), Did::Feedback(300)], "a slot moves forward only");
    assert_eq!(told(0), [Did::Feedback(0)]);
    assert_eq!(told(0), []);
}

#[test]
fn feedback_that_fell_between_two_connections_is_told_after_none() {
    let mut rig = Rig::new();
    rig.receiver.told = Some(horizon(500));
    assert_eq!(rig.input(Input::Feedback(horizon(300))), [Did::Feedback(0), Did::Feedback(300)]);
}

/// The slot may hold what another life of the relay has sent, and takes only younger feedback than that.
#[test]
fn the_first_feedback_to_a_slot_of_which_nothing_is_known_is_told_after_none() {
    let mut rig = Rig::new();
    rig.receiver.told = None;
    assert_eq!(rig.input(Input::Feedback(horizon(50))), [Did::Feedback(0), Did::Feedback(50)]);
    assert_eq!(rig.input(Input::Feedback(horizon(60))), [Did::Feedback(60)]);
    let mut rig = Rig::new();
    rig.receiver.told = None;
    assert_eq!(rig.input(Input::Feedback(horizon(0))), [Did::Feedback(0)]);
}

// ---- what others have to have ----

#[test]
fn what_is_to_be_reported_is_reported_when_it_moves() {
    let at = |len: u64| Some(START.advance(len));
    let mut rig = Rig::new();
    rig.report = Some(Positions { write: at(100), flush: at(40), apply: None });
    let did = rig.bytes(&wal(START, &[1; 100]));
    assert_eq!(did[1..], [Did::Status { write: at(100), flush: at(40), asks: false }]);
    rig.report = Some(Positions { write: at(100), flush: at(40), apply: at(30) });
    assert_eq!(rig.sync(), [Did::Status { write: at(100), flush: at(40), asks: false }]);
    assert_eq!(rig.applied.get(), at(30));
    assert_eq!(rig.sync(), [], "nothing has moved");
    // Less than before, and more than is here.
    rig.report = Some(Positions { write: at(900), flush: at(10), apply: at(900) });
    assert_eq!(rig.sync(), []);
    rig.report = Some(Positions { write: at(900), flush: at(900), apply: at(900) });
    assert_eq!(rig.sync(), [status(START.advance(100))]);
    assert_eq!(rig.applied.get(), at(100));
}

/// It stops, and those who are waited for are away: it is let go after some time, and not kept busy until then.
#[test]
fn a_server_that_asks_for_what_others_do_not_have_is_let_go() {
    let at = |len: u64| Some(START.advance(len));
    let mut rig = Rig::new();
    rig.report = Some(Positions { write: at(100), flush: at(40), apply: None });
    rig.bytes(&wal(START, &[1; 100]));
    let (began, mut answers, mut end) = (rig.now, 0, Vec::new());
    while end.is_empty() && rig.now < began + 2 * GROUP_PATIENCE {
        // It asks again whenever it was answered.
        let mut did = rig.bytes(&keepalive(START.advance(100), true));
        rig.now += Duration::from_millis(50);
        did.extend(rig.input(Input::Timeout));
        answers += did.iter().filter(|did| matches!(did, Did::Status { .. })).count();
        end = did.into_iter().filter(|did| !matches!(did, Did::Status { .. } | Did::ShowStart)).collect();
    }
    assert_eq!(end, [Did::CopyDone, Did::End(StreamEnd::ServerStopped)]);
    let lasted = rig.now - began;
    assert!(lasted >= GROUP_PATIENCE && lasted < GROUP_PATIENCE + Duration::from_millis(200), "{lasted:?}");
    assert!((40..60).contains(&answers), "{answers}");
    // Where they answer in time nothing is cut off.
    let mut rig = Rig::new();
    rig.report = Some(Positions { write: at(100), flush: at(40), apply: None });
    rig.bytes(&wal(START, &[1; 100]));
    for _ in 0..5 {
        rig.bytes(&keepalive(START.advance(100), true));
    }
    rig.report = None;
    assert_eq!(rig.sync(), [status(START.advance(100))]);
    rig.now += GROUP_PATIENCE;
    assert_eq!(rig.bytes(&keepalive(START.advance(100), true)), [status(START.advance(100))]);
}

/// A server takes a standby that reports no flush position by what it has written.
#[test]
fn without_a_flush_position_the_written_one_is_the_answer() {
    let mut rig = Rig::new();
    rig.report = Some(Positions { write: Some(START.advance(100)), ..Positions::default() });
    rig.bytes(&wal(START, &[1; 100]));
    for _ in 0..10 {
        let did = rig.bytes(&keepalive(START.advance(100), true));
        assert_eq!(did, [Did::Status { write: Some(START.advance(100)), flush: None, asks: false }]);
    }
}

// ---- silence ----

#[test]
fn a_silent_server_is_asked_once_and_given_up_after_a_last_look() {
    let mut rig = Rig::of(None, Some(Duration::from_secs(2)));
    let begin = rig.now;
    let mut asked = Vec::new();
    while rig.receiver.deadline().is_some() {
        let did = rig.timeout();
        asked.extend(did.iter().filter(|did| matches!(did, Did::Status { asks: true, .. })).map(|_| rig.now));
        assert!(rig.now < begin + Duration::from_secs(2) || did == [Did::LookOnceMore], "{did:?}");
    }
    assert_eq!((asked, rig.now), (vec![begin + Duration::from_secs(1)], begin + Duration::from_secs(2)));
    assert_eq!(rig.input(Input::Timeout), [], "the look comes first");
    assert_eq!(rig.input(Input::Silent), [Did::Failed(ReceiverError::Timeout)]);
}

#[test]
fn what_lies_in_the_socket_counts_before_silence_is_judged() {
    let mut rig = Rig::of(None, Some(Duration::from_secs(2)));
    for _ in 0..3 {
        // We were held up.
        rig.now += Duration::from_secs(5);
        assert_eq!(rig.input(Input::Timeout), [Did::LookOnceMore]);
        rig.bytes(&keepalive(START, false));
        assert!(rig.receiver.deadline().is_some(), "it is watched again");
    }
    rig.now += Duration::from_secs(5);
    assert_eq!(rig.input(Input::Timeout), [Did::LookOnceMore]);
    assert_eq!(rig.input(Input::Closed), [Did::Failed(ReceiverError::Closed)]);
}

#[test]
fn without_a_timeout_silence_is_no_fault() {
    let mut rig = Rig::of(None, None);
    let asks = |did: &[Did]| did.iter().filter(|did| matches!(did, Did::Status { asks: true, .. })).count();
    let mut asked = 0;
    for _ in 0..1000 {
        rig.now += Duration::from_secs(3600);
        let did = rig.input(Input::Timeout);
        assert!(matches!(did.last(), Some(Did::Status { .. })), "{did:?}");
        asked += asks(&did);
    }
    assert_eq!(asked, 1, "for a sign of life, once");
    rig.bytes(&keepalive(START, false));
    rig.now += ASK_AFTER - Duration::from_secs(1);
    assert_eq!(asks(&rig.input(Input::Timeout)), 0);
    rig.now += Duration::from_secs(1);
    assert_eq!(asks(&rig.input(Input::Timeout)), 1, "again, once it has answered");
}

#[test]
fn a_timeout_that_is_told_too_early_does_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.input(Input::Timeout), []);
    assert_eq!(rig.input(Input::Silent), []);
}

#[test]
fn a_server_that_hangs_up_is_heard_to_the_end() {
    let mut rig = Rig::new();
    rig.receiver.handle(Input::Closed, rig.now);
    let bytes = wal(START, &[1; 100]);
    rig.receiver.room()[..bytes.len()].copy_from_slice(&bytes);
    rig.receiver.buffer.filled(bytes.len());
    let did = rig.settle();
    assert_eq!((did.last(), rig.end()), (Some(&Did::Failed(ReceiverError::Closed)), START.advance(100)));
    assert_eq!(rig.write_lsn, Some(rig.end()));
}

// ---- the ends ----

#[test]
fn a_server_that_stops_ends_the_stream() {
    let mut rig = Rig::new();
    let did = rig.bytes(&[wal(START, &[1; 9]), frame(b'C', b"COPY 0\0")].concat());
    assert_eq!(did, [Did::Announce, Did::End(StreamEnd::ServerStopped)]);
    assert_eq!(rig.write_lsn, Some(START.advance(9)), "what came before counts");
}

#[test]
fn the_end_of_a_timeline_comes_with_its_successor_or_without() {
    let end = |next| [Did::End(StreamEnd::Timeline { next })];
    let mut rig = Rig::new();
    assert_eq!(rig.bytes(COPY_DONE), [Did::CopyDone]);
    assert_eq!(rig.bytes(&[next_row(), frame(b'C', b"x\0")].concat()), []);
    assert_eq!(rig.input(Input::Stop), [], "the result is waited for");
    assert_eq!(rig.input(Input::Feedback(horizon(7))), [], "the stream is over for us");
    let next = Some((TimelineId::new(2).unwrap(), "0/D00170".parse().unwrap()));
    assert_eq!(rig.bytes(&[IDLE, b"rest"].concat()), end(next));
    assert_eq!(rig.receiver.unread(), b"rest");

    let mut rig = Rig::new();
    assert_eq!(rig.bytes(&[COPY_DONE, IDLE].concat())[1..], end(None));
    let mut rig = Rig::new();
    rig.bytes(COPY_DONE);
    assert_eq!(rig.bytes(&[&error("ERROR")[..], IDLE].concat()), [server("ERROR", true)]);
}

#[test]
fn the_result_of_a_timeline_is_not_waited_for_for_ever() {
    let mut rig = Rig::of(None, None);
    let begin = rig.now;
    rig.bytes(COPY_DONE);
    assert_eq!((rig.timeout(), rig.now), (vec![Did::LookOnceMore], begin + RESULT_TIMEOUT));
    assert_eq!(rig.input(Input::Silent), [Did::Failed(ReceiverError::Timeout)]);
    let mut rig = Rig::of(None, None);
    rig.bytes(COPY_DONE);
    let begin = rig.now;
    rig.bytes(&next_row());
    assert_eq!(
        (rig.timeout(), rig.now),
        (vec![], begin + RESULT_TIMEOUT / 2),
        "nothing is sent behind CopyDone"
    );
    assert_eq!((rig.timeout(), rig.now), (vec![Did::LookOnceMore], begin + RESULT_TIMEOUT));
    let mut rig = Rig::new();
    rig.bytes(COPY_DONE);
    assert_eq!(rig.input(Input::Closed), [Did::Failed(ReceiverError::Closed)]);
}

#[test]
fn rows_that_name_no_timeline_name_none() {
    let row = next_row();
    assert!(next_timeline(&row[5..]).is_some());
    for len in 5..row.len() {
        assert_eq!(next_timeline(&row[5..len]), None, "{len}");
    }
    let other = |text: &[u8]| next_timeline(&[b"\0\x02\0\0\0\x01".as_slice(), text].concat());
    assert_eq!(other(b"0\0\0\0\x080/D00170"), None);
    assert_eq!(other(b"x\0\0\0\x080/D00170"), None);
    assert_eq!(other(b"2\0\0\0\x08nonsense"), None);
    assert_eq!(next_timeline(b"\0\x02\xff\xff\xff\xff\xff\xff\xff\xff"), None);
}

// ---- we stop ----

const STOPPED: [Did; 2] = [Did::Terminate, Did::End(StreamEnd::Stopped)];

#[test]
fn we_leave_when_all_is_durable_and_confirmed() {
    let mut rig = Rig::new();
    rig.syncs = false;
    rig.bytes(&wal(START, &[1; 100]));
    assert_eq!(rig.input(Input::Stop), []);
    assert!(rig.receiver.waits_for_store() && !rig.receiver.wants_bytes());
    assert_eq!(rig.receiver.deadline(), None);
    assert_eq!(rig.input(Input::Closed), [], "it is the disk that is waited for");
    assert_eq!(rig.input(Input::Timeout), []);
    let left = [&[status(START.advance(100))][..], &STOPPED].concat();
    assert_eq!(rig.sync(), left);
}

#[test]
fn we_leave_at_once_where_there_is_nothing_to_confirm() {
    assert_eq!(Rig::new().input(Input::Stop), STOPPED);
    assert_eq!(Rig::comparing(100).input(Input::Stop), STOPPED);
    // What is shown as the beginning is durable.
    let mut rig = Rig::new();
    rig.timeout();
    assert_eq!(rig.input(Input::Stop)[..], [&[status(START)][..], &STOPPED].concat());
}

#[test]
fn a_server_that_was_not_accepted_is_told_nothing_at_the_end() {
    let mut rig = Rig::comparing(100);
    (rig.write_lsn, rig.flush_lsn) = (Some(START), Some(START));
    rig.positions();
    assert_eq!(rig.input(Input::Stop), [&[NO_POSITION][..], &STOPPED].concat());
}

#[test]
fn a_store_that_failed_is_not_waited_for() {
    let mut rig = Rig::new();
    rig.syncs = false;
    rig.bytes(&wal(START, &[1; 100]));
    rig.input(Input::Stop);
    let did = rig.input(Input::StoreFailed);
    assert_eq!(did, STOPPED, "and nothing is confirmed");
}

#[test]
fn we_leave_while_a_look_is_due() {
    let mut rig = Rig::of(None, Some(Duration::from_secs(2)));
    rig.now += Duration::from_secs(2);
    assert_eq!(rig.input(Input::Timeout), [Did::LookOnceMore]);
    assert_eq!(rig.input(Input::Stop), STOPPED);
}

/// A frame is complete, and what came before it is done, before the order to stop counts.
#[test]
fn what_has_come_is_taken_before_we_leave() {
    let mut rig = Rig::new();
    rig.receiver.handle(Input::Stop, rig.now);
    let did = rig.bytes(&wal(START, &[1; 100]));
    assert_eq!(did[..2], [Did::Announce, status(START.advance(100))]);
    assert_eq!(did[2..], STOPPED);
}

// ---- all of it, at random ----

/// What a server and the world around do.
#[derive(Clone, Debug)]
enum Event {
    Wal(u16),
    Again(u16, u16),
    Jump(u16),
    Ping(bool),
    Note,
    Sync,
    Wait(u16),
    Feedback(u32),
    Cut(u8),
    Copy,
    Garbage(Vec<u8>),
    Stop,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        20 => any::<u16>().prop_map(Event::Wal),
        4 => any::<(u16, u16)>().prop_map(|(back, len)| Event::Again(back, len)),
        10 => any::<bool>().prop_map(Event::Ping),
        3 => Just(Event::Note),
        10 => Just(Event::Sync),
        10 => any::<u16>().prop_map(Event::Wait),
        3 => (0u32..9).prop_map(Event::Feedback),
        1 => any::<u16>().prop_map(Event::Jump),
        1 => (0u8..4).prop_map(Event::Cut),
        1 => Just(Event::Copy),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Event::Garbage),
        1 => Just(Event::Stop),
    ];
    prop::collection::vec(event, 0..80)
}

proptest! {
    /// However the stream is cut: the pieces are exactly what was sent; what is reported is what was told, and does not
    /// fall; there is always an end, a deadline or something to wait for.
    #[test]
    fn pieces_are_what_was_sent_and_reports_what_was_told(
        events in events(), cuts in prop::collection::vec(1usize..70_000, 1..20), compares in 0u64..3000,
    ) {
        let mut rig = match compares { 0 => Rig::new(), len => Rig::comparing(len) };
        rig.syncs = false;
        let begin = START.rewind(compares);
        // What the server has, from `begin` on, and how much of it was sent.
        let body: Vec<u8> = (0..200_000u32).map(|number| (number % 249) as u8).collect();
        let (mut sent, mut over, mut cuts) = (0usize, false, cuts.into_iter().cycle());
        let mut reported = (None, None);
        for event in events {
            let mut bytes = Vec::new();
            let mut did = Vec::new();
            let at = begin.advance(sent as u64);
            match event {
                Event::Wal(len) => {
                    let len = usize::from(len).min(body.len() - sent);
                    bytes = wal(at, &body[sent..sent + len]);
                    sent += len;
                }
                Event::Again(back, len) => {
                    let from = sent - usize::from(back).min(sent);
                    // A stream never begins again within what is compared.
                    if begin.advance(from as u64) >= START {
                        bytes = wal(begin.advance(from as u64), &body[from..sent.min(from + usize::from(len))]);
                    }
                }
                Event::Jump(by) => bytes = wal(at.advance(1 + u64::from(by)), &[1, 2, 3]),
                Event::Ping(asks) => bytes = keepalive(at, asks),
                Event::Note => bytes = frame(b'N', b"SNOTICE\0Mx\0\0"),
                Event::Sync => did = rig.sync(),
                Event::Wait(ms) => {
                    rig.now += Duration::from_millis(ms.into());
                    did = rig.input(Input::Timeout);
                }
                Event::Feedback(xmin) => did = rig.input(Input::Feedback(horizon(xmin))),
                Event::Cut(kind) => {
                    did = rig.input([Input::Closed, Input::Silent, Input::StoreFailed, Input::Timeout][usize::from(kind)]);
                }
                Event::Copy => bytes = [COPY_DONE, &next_row(), IDLE].concat(),
                Event::Garbage(garbage) => bytes = frame(b'd', &garbage),
                Event::Stop => did = rig.input(Input::Stop),
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                did.extend(rig.bytes(piece));
                rest = behind;
            }
            // What was taken is what was sent, each byte at its place.
            prop_assert_eq!(&rig.held[..], &body[compares as usize..][..rig.held.len()]);
            for (at, wal) in &rig.compared {
                let from = at.since(begin) as usize;
                prop_assert_eq!(&wal[..], &body[from..from + wal.len()]);
            }
            for did in did {
                prop_assert!(!over, "{:?} after the end", did);
                match did {
                    Did::Status { write, flush, .. } => {
                        prop_assert!(write >= reported.0 && flush >= reported.1 && flush <= write);
                        prop_assert!(write <= rig.write_lsn && flush <= rig.flush_lsn);
                        reported = (write, flush);
                    }
                    Did::End(_) | Did::Failed(_) => over = true,
                    _ => {}
                }
            }
            let waits = rig.receiver.wants_bytes() || rig.receiver.waits_for_store();
            prop_assert!(over || waits || rig.receiver.deadline().is_some());
            prop_assert!(!rig.receiver.wants_bytes() || !rig.receiver.room().is_empty());
        }
    }
}
