//! The walsender's state machine under whatever may happen, in any order. Bytes decide: proptest and bolero draw them,
//! and every pair is a step, see [`World::step`].
// See clippy.toml. Tests may ask what time it is.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use walrelay_proto::sender::{
    Cut, End, Input, MAX_MESSAGES, MAX_SEND_SIZE, NotStarted, Order, Output, Published, Refusal, Report,
    Request, Sender, Settings, State, Wal,
};
use walrelay_proto::{FullXid, HotStandbyFeedback, Lsn, PgTimestamp, SegSize, StandbyStatusUpdate};
use walrelay_proto::{TimelineHistory, TimelineId};

const WALL: PgTimestamp = PgTimestamp::from_micros(1);
const PAGE: u64 = 8192;
/// More outputs than any input can bring.
const MANY: usize = 8;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_wal_is_offered_in_order_and_the_stream_ends(steps in vec(any::<(u8, u8)>(), 0..80)) {
        let bytes: Vec<u8> = steps.into_iter().flat_map(|(step, how)| [step, how]).collect();
        play(&bytes);
    }
}

#[test]
fn fuzz_sender() {
    bolero::check!().with_max_len(400).for_each(play);
}

fn play(bytes: &[u8]) {
    let (Some(&first), Some(&second)) = (bytes.first(), bytes.get(1)) else { return };
    let Some(mut world) = World::start(first, second) else { return };
    world.perform();
    for step in bytes[2..].chunks(2) {
        if world.end.is_some() {
            break;
        }
        world.step(step[0], step.get(1).copied().unwrap_or(0));
    }
    world.bring_to_an_end();
}

fn seg_size() -> SegSize {
    SegSize::new(1 << 20).unwrap()
}

fn settings(bits: u8) -> Settings {
    Settings {
        peer_timeout: (bits & 1 == 0).then_some(Duration::from_secs(60)),
        shutdown_timeout: Duration::from_secs(20),
        grace: Duration::from_secs(1),
    }
}

/// A relay, a client and what is between them.
struct World {
    sender: Sender,
    now: Instant,
    settings: Settings,
    tli: TimelineId,
    /// Every timeline there has been, and how far it was received.
    timelines: BTreeMap<TimelineId, (Arc<TimelineHistory>, Lsn)>,
    followed: TimelineId,
    /// What the sender was told of that.
    history: Arc<TimelineHistory>,
    published: Option<Published>,
    /// First byte not sent.
    next: Lsn,
    /// First byte not given out.
    given: Lsn,
    restart_lsn: Lsn,
    flight: Flight,
    fetching: bool,
    begun: bool,
    copy_done: bool,
    client_done: bool,
    stopped: bool,
    /// How far the timeline was published when the relay began to stop; `None` where its end was known.
    last: Option<Lsn>,
    /// Somebody has asked for an end that is said between two ranges.
    parting: bool,
    confirmed: Lsn,
    state: Option<State>,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flight {
    Nothing,
    Words,
    Wal,
}

impl World {
    /// Timelines 1, 3 and 4, received up to somewhere, and a client that asks for one of them.
    fn start(first: u8, second: u8) -> Option<World> {
        let number = |number| TimelineId::new(number).unwrap();
        let histories = [
            (1, "", 0x38_0000),
            (3, "1\t0/380000\n", 0x51_2000),
            (4, "1\t0/380000\n3\t0/500300\n", 0x62_0100),
        ];
        let timelines: BTreeMap<_, _> = histories
            .into_iter()
            .map(|(tli, lines, end)| {
                let history = TimelineHistory::parse(number(tli), lines.as_bytes()).unwrap();
                (number(tli), (Arc::new(history), Lsn::new(end)))
            })
            .collect();
        let followed = number([1, 3, 4, 4][usize::from(first >> 6)]);
        let (history, end) = timelines[&followed].clone();
        let published = (first & 0x20 == 0).then_some(Published { tli: followed, lsn: end });
        let settings = settings(first);
        let request = Request {
            tli: TimelineId::new(u32::from(first >> 1) % 6),
            lsn: Lsn::new(0x30_0000 + u64::from(second & 0x3f) * 0xD345),
            restart_lsn: (second >> 6 != 0).then_some(Lsn::new(0x30_0000 + u64::from(second) * 0x3000)),
        };
        let now = Instant::now();
        let wal = Wal { seg_size: seg_size(), history: history.clone(), published };
        let sender = match Sender::start(request, settings, wal, now) {
            Ok(sender) => sender,
            Err(why) => {
                check_not_started(why, request, &history, published);
                return None;
            }
        };
        Some(World {
            tli: sender.tli(),
            sender,
            now,
            settings,
            timelines,
            followed,
            history,
            published,
            next: request.lsn,
            given: request.lsn,
            restart_lsn: request.restart_lsn.unwrap_or_default(),
            flight: Flight::Nothing,
            fetching: false,
            begun: false,
            copy_done: false,
            client_done: false,
            stopped: false,
            last: None,
            parting: false,
            confirmed: Lsn::INVALID,
            state: None,
            end: None,
        })
    }

    fn step(&mut self, step: u8, how: u8) {
        match step % 20 {
            0..=2 => self.receive(u64::from(how) * [1, 700, 9000][usize::from(step % 20)]),
            3 => self.promote(how),
            4 => self.take_up(how),
            5 => self.tell_history(),
            6 => self.tell_published(),
            7..=9 => self.sent(),
            10 => self.fetching(),
            11 => self.fetched(),
            12 if how < 40 => self.unavailable(),
            12 => self.forget_all(how),
            13 | 14 => self.status(how),
            15 => self.feedback(how),
            16 => self.frame(how),
            17 => self.order(how),
            18 => self.now += Duration::from_millis(u64::from(how) * 200),
            _ => self.timeout(how & 1 == 1),
        }
        self.perform();
    }

    /// More WAL on the timeline that is followed, and the sender is told.
    fn receive(&mut self, bytes: u64) {
        let (_, end) = self.timelines.get_mut(&self.followed).unwrap();
        *end = end.advance(bytes);
        self.tell_history();
        self.tell_published();
    }

    /// A timeline begins where this one is, or a little before; nobody is told yet.
    fn promote(&mut self, how: u8) {
        let (history, end) = self.timelines[&self.followed].clone();
        let last = self.timelines.keys().next_back().unwrap();
        if last.as_u32() > 40 {
            return;
        }
        let tli = TimelineId::new(last.as_u32() + 1).unwrap();
        let at = end.rewind(u64::from(how & 0xf) * 0x9000).max(history.begin());
        let mut lines: String =
            history.ancestors().iter().map(|entry| format!("{}\t{}\n", entry.tli, entry.end)).collect();
        lines.push_str(&format!("{}\t{at}\n", self.followed));
        let history = TimelineHistory::parse(tli, lines.as_bytes()).unwrap();
        self.timelines.insert(tli, (Arc::new(history), at.advance(u64::from(how) * 0x100)));
        self.followed = tli;
        self.tell_some(how);
    }

    /// Another timeline is followed, an older one perhaps.
    fn take_up(&mut self, how: u8) {
        self.followed = *self.timelines.keys().nth(usize::from(how >> 2) % self.timelines.len()).unwrap();
        self.tell_some(how);
    }

    fn tell_some(&mut self, how: u8) {
        if how & 1 == 0 {
            self.tell_published();
        }
        if how & 2 == 0 {
            self.tell_history();
        }
    }

    fn tell_history(&mut self) {
        let history = self.timelines[&self.followed].0.clone();
        if !Arc::ptr_eq(&history, &self.history) {
            self.history = history.clone();
            self.fetching = false;
        }
        self.tell(Input::History(history));
    }

    fn tell_published(&mut self) {
        self.published = Some(Published { tli: self.followed, lsn: self.timelines[&self.followed].1 });
        self.tell(Input::Published(self.published));
    }

    fn forget_all(&mut self, how: u8) {
        if how > 200 {
            self.published = None;
            self.tell(Input::Published(None));
        }
    }

    fn sent(&mut self) {
        if self.flight == Flight::Wal {
            self.next = self.given;
        }
        self.flight = Flight::Nothing;
        self.tell(Input::Sent);
    }

    fn fetching(&mut self) {
        if self.flight == Flight::Wal {
            (self.flight, self.fetching, self.given) = (Flight::Nothing, true, self.next);
        }
        self.tell(Input::Fetching);
    }

    fn fetched(&mut self) {
        self.fetching = false;
        self.tell(Input::Fetched);
    }

    fn unavailable(&mut self) {
        self.tell(Input::Unavailable);
    }

    /// A report, mostly absurd.
    fn status(&mut self, how: u8) {
        let position = |how: u8| match how & 7 {
            0 => Lsn::INVALID,
            1 => self.given,
            2 => self.next,
            3 => self.given.advance(1),
            4 => self.next.rewind(0x777),
            5 => Lsn::new(u64::MAX),
            6 => self.restart_lsn,
            _ => self.next.advance(MAX_SEND_SIZE / 2),
        };
        let (write, flush) = (position(how), position(how >> 3));
        let update = StandbyStatusUpdate {
            write: write.valid(),
            flush: flush.valid(),
            apply: position(how >> 5).valid(),
            send_time: WALL,
            reply_requested: how >> 6 == 3,
        };
        if !self.client_done {
            self.confirmed = flush.valid().unwrap_or(write);
        }
        self.tell_frame(b'd', &update.frame()[5..]);
    }

    fn feedback(&mut self, how: u8) {
        let xmin = FullXid::new(0, u32::from(how));
        let feedback = HotStandbyFeedback { send_time: WALL, xmin, catalog_xmin: None };
        self.tell_frame(b'd', &feedback.frame()[5..]);
    }

    /// CopyDone, what is cut short, and what nobody sends.
    fn frame(&mut self, how: u8) {
        match how {
            0..=99 => {
                self.tell_frame(b'c', b"");
                self.client_done = true;
            }
            100..=139 => {
                self.parting |= !self.client_done;
                self.tell_frame(b'd', &[b"r"[..].to_vec(), vec![how; usize::from(how - 100) / 2]].concat());
            }
            140..=149 => {
                self.parting |= !self.client_done;
                self.tell_frame(b'd', b"");
            }
            150..=170 => self.tell_frame(b'd', &[how]),
            _ => self.tell_frame(how, b"whatever"),
        }
    }

    fn tell_frame(&mut self, kind: u8, body: &[u8]) {
        self.tell(Input::Frame { kind, body });
    }

    fn order(&mut self, how: u8) {
        let order = [Order::Stop, Order::Cancel, Order::Evict][usize::from(how) % 3];
        match order {
            Order::Stop => {
                if !std::mem::replace(&mut self.stopped, true) {
                    self.last = self.published_now();
                }
            }
            Order::Cancel | Order::Evict => self.parting = true,
        }
        self.tell(Input::Order(order));
    }

    fn timeout(&mut self, unheard: bool) {
        if let Some(deadline) = self.sender.deadline() {
            self.now = self.now.max(deadline);
        }
        self.tell(Input::Timeout { unheard });
        let deadline = self.sender.deadline();
        assert!(unheard || deadline.is_none_or(|at| at > self.now), "it would be woken for ever");
    }

    fn tell(&mut self, input: Input<'_>) {
        self.sender.handle(input, self.now);
    }

    fn perform(&mut self) {
        let mut count = 0;
        while let Some(output) = self.sender.poll_output(WALL) {
            count += 1;
            assert!(count < MANY, "no end: {output:?}");
            assert_eq!(self.end, None, "{output:?} behind the end");
            match output {
                Output::Wal { tli, from, to, end } => self.take_wal(tli, from, to, end),
                Output::Bytes(bytes) => self.take_bytes(&bytes),
                Output::Report(report) => self.take_report(report),
                Output::State(state) => self.take_state(state),
                Output::Feedback(_) => {}
                Output::Forget => self.fetching = false,
                Output::End(end) => self.take_end(end),
            }
        }
        self.check_at_rest();
    }

    /// Where the timeline's WAL ends by what the sender was told.
    fn limit(&self) -> Option<Lsn> {
        match self.history.tli() == self.tli {
            true => {
                self.published.filter(|published| published.tli == self.tli).map(|published| published.lsn)
            }
            false => self.history.switch_point(self.tli).map(|(end, _)| end),
        }
    }

    /// How far it sends: what comes behind the stop is for the next stream.
    fn last_limit(&self) -> Option<Lsn> {
        self.limit().map(|end| self.last.map_or(end, |last| end.min(last)))
    }

    /// How far the timeline is published while it is followed; nothing of it where nothing or another is.
    fn published_now(&self) -> Option<Lsn> {
        if self.published.is_none() {
            return Some(self.next);
        }
        self.history.switch_point(self.tli).is_none().then(|| self.limit().unwrap_or(self.next))
    }

    fn take_wal(&mut self, tli: TimelineId, from: Lsn, to: Lsn, end: Lsn) {
        assert!(self.begun && !self.copy_done && !self.client_done && !self.fetching);
        assert_eq!((self.flight, tli, from), (Flight::Nothing, self.tli, self.next), "no gap, no overlap");
        assert_eq!(Some(end), self.last_limit());
        assert!(from < to && to <= end);
        assert_eq!(from.seg_at(seg_size()), to.seg_before(seg_size()), "one segment");
        assert!(to == end || to.as_u64().is_multiple_of(PAGE), "{to} is no place to cut");
        assert!(to.since(from) <= MAX_SEND_SIZE * MAX_MESSAGES as u64);
        (self.flight, self.given) = (Flight::Wal, to);
    }

    fn take_bytes(&mut self, bytes: &[u8]) {
        assert_ne!(self.flight, Flight::Wal, "in the middle of a message");
        match bytes {
            b"W\0\0\0\x07\0\0\0" => assert!(!std::mem::replace(&mut self.begun, true)),
            b"c\0\0\0\x04" => assert!(self.begun && !std::mem::replace(&mut self.copy_done, true)),
            keepalive => {
                assert_eq!(keepalive[..6], *b"d\0\0\0\x16k");
                assert_eq!(keepalive[6..14], self.next.as_u64().to_be_bytes());
                assert!(self.flight == Flight::Nothing || self.client_done, "one at a time");
            }
        }
        self.flight = Flight::Words;
    }

    fn take_report(&mut self, report: Report) {
        let Some(confirm) = report.confirm else { return };
        let end = self.limit().expect("nothing moves before it is known where the timeline ends");
        assert!(confirm <= report.flush);
        assert!(confirm <= self.given.min(end).max(self.restart_lsn), "{report:?}, given {}", self.given);
        let left = self.history.switch_point(self.tli);
        assert!(left.is_none_or(|(end, _)| confirm <= end), "{report:?}, left {left:?}");
        assert!(confirm >= report.flush.min(self.restart_lsn).min(end), "an absurd report moves it back");
        self.restart_lsn = confirm;
    }

    fn take_state(&mut self, state: State) {
        let number =
            |state| [State::Catchup, State::Streaming, State::Stopping].iter().position(|s| *s == state);
        assert!(self.state.is_none_or(|before| number(before) < number(state)));
        assert!(self.state.is_some() || state == State::Catchup);
        match state {
            State::Catchup => {}
            State::Streaming => assert!(self.limit().is_some_and(|end| self.next >= end)),
            State::Stopping => assert!(self.stopped),
        }
        self.state = Some(state);
    }

    fn take_end(&mut self, end: End) {
        match end {
            End::Done { next } => {
                assert!(self.copy_done && self.client_done && !self.stopped);
                assert_eq!(next, self.history.switch_point(self.tli).map(|(at, next)| (next, at)));
            }
            End::Shutdown => {
                assert!(self.stopped && self.confirmed >= self.next && !self.client_done);
                assert!(self.last_limit().is_some_and(|end| self.next >= end), "not everything was sent");
            }
            End::Refused(Refusal::Unavailable) => assert!(self.flight == Flight::Wal || self.fetching),
            End::Refused(why) => {
                assert_ne!(self.flight, Flight::Wal, "in the middle of a message");
                match why {
                    Refusal::NotReady => assert_eq!(self.published, None),
                    Refusal::UnknownTimeline(tli) => assert!(tli == self.tli && !self.history.contains(tli)),
                    _ => assert!(self.parting),
                }
            }
            End::Cut(Cut::NotTaking(_)) => assert!(self.parting && self.flight == Flight::Wal),
            End::Cut(Cut::Silent) => assert!(self.settings.peer_timeout.is_some()),
            End::Cut(Cut::Unconfirmed) => assert!(self.stopped),
            End::Cut(Cut::Finished) => assert!(self.stopped && self.client_done && self.copy_done),
            End::Cut(Cut::Left | Cut::Message(_)) => assert!(!self.client_done),
        }
        self.end = Some(end);
    }

    /// Nothing is to be done: then there is something that it waits for.
    fn check_at_rest(&self) {
        if self.end.is_some() {
            assert_eq!((self.sender.deadline(), self.sender.is_listening()), (None, false));
            return;
        }
        assert_eq!(self.sender.is_listening(), !self.client_done);
        assert_eq!(self.sender.sent(), self.next);
        if self.flight == Flight::Wal {
            return;
        }
        assert!(!self.parting && !self.client_done, "it is time to end");
        if self.flight == Flight::Nothing && !self.fetching && !self.copy_done {
            assert!(self.last_limit().is_none_or(|end| self.next >= end), "there is WAL to send");
        }
        assert!(!self.stopped || self.sender.deadline().is_some());
    }

    /// The socket takes everything and the relay stops: whatever has happened, it ends, and soon.
    fn bring_to_an_end(&mut self) {
        for turn in 0.. {
            if self.end.is_some() {
                return;
            }
            assert!(turn < 1000, "it does not end");
            self.order(0);
            match self.flight {
                Flight::Nothing if self.fetching => self.fetched(),
                Flight::Nothing => self.timeout(false),
                Flight::Words | Flight::Wal => self.sent(),
            }
            self.perform();
        }
    }
}

fn check_not_started(
    why: NotStarted,
    request: Request,
    history: &TimelineHistory,
    published: Option<Published>,
) {
    let tli = request.tli.unwrap_or(history.tli());
    let left = history.switch_point(tli);
    match why {
        NotStarted::Refused(Refusal::NotReady) => assert_eq!(published, None),
        NotStarted::Refused(Refusal::UnknownTimeline(_)) => assert!(!history.contains(tli)),
        NotStarted::Refused(Refusal::BeyondTimeline { .. }) => assert!(left.unwrap().0 < request.lsn),
        NotStarted::AtEnd { next: (next, at) } => {
            assert_eq!((left, at), (Some((at, next)), request.lsn));
        }
        NotStarted::Refused(why) => panic!("{why}"),
    }
}
