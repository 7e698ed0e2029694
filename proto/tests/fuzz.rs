//! Fuzz targets, one per decoder. `cargo test` gives each some random input; `cargo bolero test <name>`
//! (cargo-bolero, in this directory) looks for input that reaches new code.
// Tests may ask what time it is.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use bolero::check;
use walrelay_proto::ack::{Acknowledger, Expression, Level, Positions, Rules, SynchronousStandbys};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::receiver::{Action, Input, Message, Receiver, StreamStart};
use walrelay_proto::{
    ClientMessage, FeedbackHorizon, FullXid, Keepalive, Lsn, Parsed, PgTimestamp, SegSize, ServerMessage,
    SlotName, Statement, SystemId, TimelineHistory, TimelineId, WalFileName, WalIdentity, WalVerifier,
    XLogDataHeader,
};

/// Random text seldom looks like the real thing, so digits and separators are drawn more often.
fn text(bytes: &[u8]) -> String {
    const COMMON: &[u8] = b"0123456789ABCDEFabcdef//\t\n #.x+-";
    let pick = |&byte: &u8| COMMON.get(usize::from(byte)).copied().unwrap_or(byte);
    String::from_utf8_lossy(&bytes.iter().map(pick).collect::<Vec<_>>()).into_owned()
}

#[test]
fn fuzz_names() {
    check!().with_type::<(Vec<u8>, u64, u8)>().for_each(|(bytes, number, size)| {
        let lsn = Lsn::new(*number);
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
        let words = text(bytes);
        if let Ok(lsn) = words.parse::<Lsn>() {
            assert_eq!(lsn.to_string().parse(), Ok(lsn), "{words:?}");
        }
        let _ = (words.parse::<SystemId>(), words.parse::<SlotName>());
        let size = SegSize::new(1 << (20 + size % 11)).unwrap();
        let digit = |&byte: &u8| char::from(b"0123456789ABCDEFg"[usize::from(byte % 17)]);
        for name in [words, bytes.iter().map(digit).take(24).collect()] {
            if let Some(parsed) = WalFileName::parse(&name, size) {
                assert_eq!(parsed.format(size), name);
            }
        }
    });
}

#[test]
fn fuzz_commands() {
    const WORDS: [&str; 24] = [
        "START_REPLICATION ",
        "SLOT ",
        "PHYSICAL ",
        "TIMELINE ",
        "0/3000000 ",
        "CREATE_REPLICATION_SLOT ",
        "TEMPORARY ",
        "RESERVE_WAL",
        "DROP_REPLICATION_SLOT ",
        "WAIT",
        "BASE_BACKUP ",
        "(",
        ")",
        "LABEL '",
        "'",
        "\"",
        ", ",
        ";",
        "READ_REPLICATION_SLOT ",
        "TIMELINE_HISTORY ",
        "SHOW ",
        "IDENTIFY_SYSTEM",
        "MANIFEST ",
        "-- ",
    ];
    check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let _ = Parsed::parse(bytes);
        let piece =
            |&byte: &u8| WORDS.get(usize::from(byte)).map_or(vec![byte], |word| word.as_bytes().to_vec());
        let parsed = Parsed::parse(&bytes.iter().flat_map(piece).collect::<Vec<u8>>());
        if let Ok(Statement::Command(command)) = parsed.statement {
            let written = command.to_string();
            // What was no text is longer as one, and may be cut the second time.
            if !written.contains(char::REPLACEMENT_CHARACTER) {
                let again = Parsed::parse(written.as_bytes());
                assert_eq!(again.statement, Ok(Statement::Command(command)), "{written}");
            }
        }
    });
}

#[test]
fn fuzz_messages_of_a_stream() {
    check!().with_type::<Vec<u8>>().for_each(|payload| {
        for kind in [None, Some(b'w'), Some(b'k'), Some(b'r'), Some(b'h')] {
            let message: Vec<u8> = kind.into_iter().chain(payload.iter().copied()).collect();
            let _ = ServerMessage::decode(&message);
            if let Ok(ClientMessage::Status(status)) = ClientMessage::decode(&message) {
                let frame = status.frame();
                assert_eq!(ClientMessage::decode(&frame[5..]), Ok(ClientMessage::Status(status)));
            }
        }
    });
}

#[test]
fn fuzz_history_file() {
    check!().with_type::<(u32, Vec<u8>)>().for_each(|(tli, bytes)| {
        let Some(tli) = TimelineId::new(*tli) else { return };
        for content in [bytes.clone(), text(bytes).into_bytes()] {
            let Ok(history) = TimelineHistory::parse(tli, &content) else { continue };
            assert!(history.contains(tli));
            assert!(history.ancestors().iter().all(|entry| entry.tli < tli && history.contains(entry.tli)));
            assert!(history.ancestors().windows(2).all(|pair| pair[0].end <= pair[1].end));
            let _ = history.timeline_at(history.begin());
        }
    });
}

const START: Lsn = Lsn::new(1 << 20);

fn identity() -> WalIdentity {
    WalIdentity { system_id: SystemId(1), seg_size: SegSize::new(1 << 20).unwrap() }
}

/// Valid WAL of some pages, with everything in it that can be.
fn sample() -> Vec<u8> {
    let mut wal = WalGenerator::new(identity(), TimelineId::FIRST, START, 7);
    wal.record(100);
    wal.fill_page();
    wal.abort_record(9000, 1);
    wal.record(20_000);
    wal.switch_timeline(TimelineId::new(2).unwrap());
    wal.record(40);
    wal.take()
}

/// Walks over damaged WAL twice, cut and whole, and expects no difference.
fn walk(wal: &[u8], damage: &[(u16, u8)], cuts: &[u8], start: Option<u16>) {
    let mut bytes = wal.to_vec();
    for &(at, byte) in damage {
        let at = usize::from(at) % bytes.len();
        bytes[at] = byte;
    }
    let tli = TimelineId::new(2).unwrap();
    let offset = start.map_or(0, |start| usize::from(start) % bytes.len());
    let mut whole = match start {
        Some(_) => WalVerifier::at_record_start(identity(), tli, START.advance(offset as u64), None),
        None => WalVerifier::at_segment_start(identity(), tli, START),
    };
    let mut cut = whole.clone();
    let error = whole.push(&bytes[offset..]).err();
    let mut rest = &bytes[offset..];
    let mut lengths = cuts.iter().map(|&len| usize::from(len) + 1).cycle();
    let mut failed = None;
    while failed.is_none() && !rest.is_empty() {
        let (piece, behind) = rest.split_at(lengths.next().unwrap_or(rest.len()).min(rest.len()));
        failed = cut.push(piece).err();
        rest = behind;
    }
    assert_eq!(failed, error);
    assert_eq!(cut.verified_end(), whole.verified_end());
    assert_eq!(cut.last_record(), whole.last_record());
    cut.rewind();
    assert_eq!(Some(cut.position()), cut.verified_end().or(Some(START)));
}

#[test]
fn fuzz_walk() {
    let wal = sample();
    check!().with_type::<(Vec<(u16, u8)>, Vec<u8>, Option<u16>)>().with_iterations(2000).for_each(
        |(damage, cuts, start)| {
            walk(&wal, damage, cuts, None);
            walk(&wal, damage, cuts, *start);
        },
    );
}

#[test]
fn the_first_of_two_faults_is_the_same_however_the_wal_is_cut() {
    // The page claims that its first record replaces one that was lost, which the record does not say; and there is something
    // behind that record. Found by the fuzz target.
    let damage = [(2, 0x0A), (0x8E, 33)];
    walk(&sample(), &damage, &[0], None);
    walk(&sample(), &damage, &[0x8C - 1, 0], None);
}

#[test]
fn fuzz_walk_of_nonsense() {
    check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(bytes, cuts)| {
        if !bytes.is_empty() {
            walk(bytes, &[], cuts, None);
            walk(bytes, &[], cuts, Some(0));
        }
    });
}

/// A walreceiver, and a store that takes what it is given and syncs when the input says so.
struct Receiving {
    receiver: Receiver,
    now: Instant,
    /// WAL from `START` on.
    held: Vec<u8>,
    write_lsn: Lsn,
    flush_lsn: Lsn,
    /// What was reported last.
    reported: Positions,
    accepted: bool,
    over: bool,
}

impl Receiving {
    fn new(compares: u64) -> Receiving {
        let now = Instant::now();
        let start = StreamStart {
            tli: TimelineId::FIRST,
            position: START,
            compare_from: (compares > 0).then(|| START.rewind(compares)),
            timeout: Some(Duration::from_secs(1)),
            told: None,
        };
        Receiving {
            receiver: Receiver::new(start, b"", 0, now),
            now,
            held: Vec::new(),
            write_lsn: START,
            flush_lsn: Lsn::INVALID,
            reported: Positions::default(),
            accepted: compares == 0,
            over: false,
        }
    }

    fn bytes(&mut self, mut bytes: &[u8], piece: usize) {
        while !bytes.is_empty() && self.receiver.wants_bytes() {
            let room = self.receiver.room();
            let len = room.len().min(bytes.len()).min(piece.max(1));
            assert!(len > 0, "no room");
            room[..len].copy_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
            self.input(Input::Arrived(len));
        }
    }

    fn input(&mut self, input: Input) {
        self.receiver.handle(input, self.now);
        // A message of five bytes may mean a handful of actions.
        for _ in 0..1_000_000 {
            match self.receiver.poll(self.now, PgTimestamp::from_micros(1)) {
                Ok(Some(action)) => self.perform(action),
                Ok(None) => {
                    let waits = self.receiver.wants_bytes() || self.receiver.waits_for_store();
                    assert!(self.over || waits || self.receiver.deadline().is_some());
                    return;
                }
                Err(_) => self.over = true,
            }
        }
        panic!("no end");
    }

    fn perform(&mut self, action: Action) {
        assert!(!self.over, "{action:?} behind the end");
        match action {
            Action::Compare { wal, .. } => assert!(!self.accepted && !self.receiver.wal(&wal).is_empty()),
            Action::Accept => self.accepted = true,
            Action::Append { at, wal } => {
                assert!(self.accepted, "stored before it was compared");
                let wal = self.receiver.wal(&wal);
                let end = START.advance(self.held.len() as u64);
                assert!(at <= end && !wal.is_empty(), "a gap at {at}");
                let known = usize::try_from(end.since(at)).unwrap_or(wal.len()).min(wal.len());
                self.held.extend_from_slice(&wal[known..]);
            }
            Action::Commit => {
                self.write_lsn = START.advance(self.held.len() as u64 / 8 * 8);
                self.tell();
            }
            Action::ShowStart => {
                assert!(self.accepted, "shown before it was compared");
                self.tell();
            }
            Action::Send(Message::Status(status)) => {
                assert!(status.write.is_none_or(|lsn| self.accepted && lsn <= self.write_lsn));
                assert!(status.flush.is_none_or(|lsn| lsn <= self.flush_lsn && Some(lsn) <= status.write));
                assert!(status.apply <= status.flush);
                let Positions { write, flush, apply } = self.reported;
                assert!(status.write >= write && status.flush >= flush && status.apply >= apply, "it falls");
                self.reported = Positions { write: status.write, flush: status.flush, apply: status.apply };
            }
            Action::Send(Message::Feedback(_)) => assert!(self.accepted),
            Action::Send(_) | Action::Announce | Action::LookOnceMore | Action::Note { .. } => {}
            Action::End(_) => self.over = true,
        }
    }

    fn tell(&mut self) {
        let (tli, write_lsn, flush_lsn) = (TimelineId::FIRST, self.write_lsn, self.flush_lsn);
        let report = wanted(write_lsn);
        self.receiver.handle(Input::Positions { tli, write_lsn, flush_lsn, report }, self.now);
    }

    /// What one byte of a script and those behind it mean; how many those are.
    fn step(&mut self, what: u8, rest: &[u8], piece: usize) -> usize {
        let at = |index: usize| rest.get(index).copied().unwrap_or_default();
        let end = START.advance(self.held.len() as u64);
        let wal = |from: Lsn, len: u8| {
            let bytes: Vec<u8> =
                (0..u64::from(len) * 200).map(|at| from.advance(at).as_u64() as u8).collect();
            let header = XLogDataHeader { start: from, end, send_time: PgTimestamp::from_micros(1) };
            [&header.frame(bytes.len() as u32)[..], &bytes].concat()
        };
        match what % 16 {
            0 => self.bytes(&wal(end, at(0)), piece),
            1 => self.bytes(&wal(end.rewind(at(1).into()), at(0)), piece),
            2 => self.bytes(&wal(end.advance(at(1).into()), at(0)), piece),
            3 => {
                let send_time = PgTimestamp::from_micros(1);
                let end = end.rewind(u64::from(at(1) % 16));
                self.bytes(&Keepalive { end, send_time, reply_requested: at(0) % 2 == 1 }.frame(), piece);
            }
            4 | 5 => {
                let body = rest.get(2..).unwrap_or_default();
                let body = &body[..body.len().min(at(1).into())];
                let kind = if what % 16 == 4 { b"dcCENSTDZ"[usize::from(at(0) % 9)] } else { at(0) };
                self.bytes(&[&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat(), piece);
                return 2 + body.len();
            }
            6 => {
                let raw = &rest[1.min(rest.len())..];
                let raw = &raw[..raw.len().min(at(0).into())];
                self.bytes(raw, piece);
                return 1 + raw.len();
            }
            7 | 8 => {
                self.flush_lsn = self.write_lsn;
                let (tli, write_lsn, flush_lsn) = (TimelineId::FIRST, self.write_lsn, self.flush_lsn);
                let report = wanted(write_lsn);
                self.input(Input::Positions { tli, write_lsn, flush_lsn, report });
                return 0;
            }
            9 => {
                self.now = self.receiver.deadline().unwrap_or(self.now);
                self.input(Input::Timeout);
                return 0;
            }
            10 => self.now += Duration::from_millis(u64::from(at(0)) * 10),
            11 => self.input(Input::Feedback(FeedbackHorizon {
                xmin: FullXid::new(0, at(0).into()),
                catalog_xmin: FullXid::new(0, at(1).into()),
            })),
            12 => self.input(Input::Timeout),
            13 => self.input([Input::Closed, Input::Silent, Input::StoreFailed][usize::from(at(0) % 3)]),
            14 => self.input(Input::Stop),
            _ => {
                let tli = TimelineId::new(1 + u32::from(at(0) % 2)).unwrap();
                let (write_lsn, flush_lsn) = (end.rewind(at(1).into()), self.flush_lsn);
                // Of ours the store never says more than it has.
                let write_lsn = write_lsn.min(self.write_lsn);
                let report = wanted(end.advance(at(0).into()));
                self.input(Input::Positions { tli, write_lsn, flush_lsn, report });
            }
        }
        2
    }
}

/// More than is held is to be reported, and of `apply` too.
fn wanted(at: Lsn) -> Positions {
    let lsn = Some(at.advance(7));
    Positions { write: lsn, flush: lsn, apply: lsn }
}

/// A script decides what comes and what happens: nothing is stored, shown or told before the beginning was compared,
/// nothing reported that is not so, and nothing comes behind the end.
#[test]
fn fuzz_receiver() {
    check!().with_max_len(400).with_iterations(5000).for_each(|script: &[u8]| {
        let [compares, piece, steps @ ..] = script else { return };
        let mut receiving = Receiving::new(u64::from(compares % 4) * 300);
        let piece = [1, 7, 100, usize::MAX][usize::from(piece % 4)];
        let mut rest = steps;
        while let [what, behind @ ..] = rest {
            let taken = receiving.step(*what, behind, piece);
            rest = &behind[taken.min(behind.len())..];
        }
    });
}

/// What an expression is made of, and what it is not.
const WORDS: [&str; 24] = [
    "local",
    "connected",
    "ANY",
    "first",
    "All",
    "AND",
    "(",
    ")",
    ",",
    "/",
    "1",
    "2",
    "3",
    "0",
    " ",
    "\"",
    "\"\"",
    "a",
    "b",
    "c",
    "\"d e\"",
    "*",
    "99999999999999999999",
    "é",
];

/// Words, where the bytes name some, and the bytes themselves: an expression or an error that says where. What is read is
/// the same when it is written.
#[test]
fn fuzz_ack_expression() {
    check!().with_max_len(80).with_iterations(5000).for_each(|bytes: &[u8]| {
        let words: String = bytes.iter().map(|&byte| WORDS[usize::from(byte) % WORDS.len()]).collect();
        for text in [words, String::from_utf8_lossy(bytes).into_owned()] {
            match text.parse::<Expression>() {
                Ok(parsed) => assert_eq!(parsed.to_string().parse(), Ok(parsed), "{text}"),
                Err(error) => assert!((1..=text.chars().count() + 1).contains(&error.at), "{text}: {error}"),
            }
            match text.parse::<SynchronousStandbys>() {
                // All that can be named are what it takes, and none is what it does not.
                Ok(standbys) => {
                    let all: Vec<_> = standbys.names.iter().map(String::as_str).collect();
                    assert_eq!(standbys.is_stopped_by(&all), !standbys.is_any, "{text}");
                    assert_eq!(standbys.left(&[]), all, "{text}");
                }
                Err(error) => assert!((1..=text.chars().count() + 1).contains(&error.at), "{text}: {error}"),
            }
        }
    });
}

/// What members say is anything at all. Nothing that is not here is reported, and nothing falls.
#[test]
fn fuzz_acknowledger() {
    let parse = |text: &str| text.parse().unwrap();
    let rules = Rules {
        write: parse("connected"),
        flush: parse("ANY 2 (a, b, c) AND connected"),
        apply: parse("FIRST 1 (c, a) AND ALL (b)"),
        lapse: None,
    };
    check!().with_max_len(400).with_iterations(5000).for_each(|script: &[u8]| {
        let mut now = Instant::now();
        let mut machine = Acknowledger::new(rules.clone(), now);
        let (mut here, mut reported) = (START, Positions::default());
        for step in script.chunks(6) {
            let at = |index: usize| step.get(index).copied().unwrap_or_default();
            let near = |index: usize| START.rewind(100).advance(10 * u64::from(at(index))).valid();
            let id = u32::from(at(1) % 5);
            match at(0) % 9 {
                0 => machine.connect(id, "r", ["a", "b", "c", "d", "B"][usize::from(at(2) % 5)]),
                1 => _ = machine.disconnect(id),
                2 => _ = machine.report(id, None),
                3 => here = here.advance(10 * u64::from(at(1))),
                4 => now += Duration::from_millis(10 * u64::from(at(1))),
                5 => {
                    let far =
                        Lsn::new(u64::from_le_bytes([at(2), at(3), at(4), at(5), at(1), 255, 255, 255]))
                            .valid();
                    _ = machine.report(id, Some(Positions { write: far, flush: far, apply: far }));
                }
                _ => {
                    let positions = Positions { write: near(2), flush: near(3), apply: near(4) };
                    _ = machine.report(id, Some(positions));
                }
            }
            let composed = machine.compose(here, here, now);
            for level in Level::ALL {
                let at = composed.at(level);
                assert!(at >= reported.at(level) && at <= Some(here), "{level:?} {at:?}");
            }
            assert!(composed.apply <= composed.flush && composed.flush <= composed.write);
            reported = composed;
            while machine.poll_event().is_some() {}
        }
    });
}
