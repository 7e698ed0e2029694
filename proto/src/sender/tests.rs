//! The walsender's decisions, one by one, with a clock that goes when it is told to.

use super::*;
use crate::message::FullXid;

const MB: u64 = 1 << 20;
const START: u64 = 0x300000;
const TIMEOUT: Duration = Duration::from_secs(60);
const SHUTDOWN: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(1);
const WALL: PgTimestamp = PgTimestamp::from_micros(1);

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn history(number: u32, lines: &str) -> Arc<TimelineHistory> {
    Arc::new(TimelineHistory::parse(tli(number), lines.as_bytes()).unwrap())
}

fn published(number: u32, lsn: u64) -> Option<Published> {
    Some(Published { tli: tli(number), lsn: Lsn::new(lsn) })
}

/// Timeline 1 up to `end`.
fn wal(end: u64) -> Wal {
    let seg_size = SegSize::new(MB).unwrap();
    Wal { seg_size, history: history(1, ""), published: published(1, end) }
}

fn request(number: u32, lsn: u64) -> Request {
    Request { tli: TimelineId::new(number), lsn: Lsn::new(lsn), restart_lsn: None }
}

fn settings() -> Settings {
    Settings { peer_timeout: Some(TIMEOUT), shutdown_timeout: SHUTDOWN, grace: GRACE }
}

/// A stream and its clock.
struct Stream {
    sender: Sender,
    now: Instant,
}

impl Stream {
    /// CopyBothResponse is on its way.
    fn begun(request: Request, wal: Wal) -> (Stream, Vec<String>) {
        let now = Instant::now();
        let sender = Sender::start(request, settings(), wal, now).unwrap();
        let mut stream = Stream { sender, now };
        let outputs = stream.outputs();
        (stream, outputs)
    }

    /// CopyBothResponse is sent.
    fn of(request: Request, wal: Wal) -> (Stream, Vec<String>) {
        let (mut stream, outputs) = Stream::begun(request, wal);
        assert_eq!(outputs[..2], ["catchup", "CopyBothResponse"]);
        let first = stream.sent();
        (stream, [outputs[2..].to_vec(), first].concat())
    }

    /// Everything up to `end` is sent.
    fn streaming(end: u64) -> Stream {
        let (mut stream, outputs) = Stream::of(request(1, START), wal(end));
        assert!(outputs[0].starts_with("WAL"), "{outputs:?}");
        while stream.sender.sent() < Lsn::new(end) {
            stream.sent();
        }
        stream
    }

    /// In the middle of a range that the client does not take.
    fn blocked() -> Stream {
        Stream::of(request(1, START), wal(START + 100)).0
    }

    fn outputs(&mut self) -> Vec<String> {
        let mut outputs = Vec::new();
        while let Some(output) = self.sender.poll_output(WALL) {
            outputs.push(words(&output));
            assert!(outputs.len() < 100, "no end: {outputs:?}");
        }
        outputs
    }

    fn give(&mut self, input: Input<'_>) -> Vec<String> {
        self.sender.handle(input, self.now);
        self.outputs()
    }

    fn sent(&mut self) -> Vec<String> {
        self.give(Input::Sent)
    }

    fn publish(&mut self, number: u32, lsn: u64) -> Vec<String> {
        self.give(Input::Published(published(number, lsn)))
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> Vec<String> {
        self.give(Input::Frame { kind, body })
    }

    fn status(&mut self, write: u64, flush: u64, reply_requested: bool) -> Vec<String> {
        let lsn = |position| Lsn::new(position).valid();
        let update = StandbyStatusUpdate {
            write: lsn(write),
            flush: lsn(flush),
            apply: None,
            send_time: WALL,
            reply_requested,
        };
        self.frame(b'd', &update.frame()[5..])
    }

    fn copy_done(&mut self) -> Vec<String> {
        self.frame(b'c', b"")
    }

    fn order(&mut self, order: Order) -> Vec<String> {
        self.give(Input::Order(order))
    }

    /// The clock goes to the next deadline, `after` from now.
    fn until_deadline(&mut self, after: Duration) -> Vec<String> {
        assert_eq!(self.sender.deadline(), Some(self.now + after));
        self.now += after;
        self.give(Input::Timeout { unheard: false })
    }

    /// Nothing follows, whatever happens.
    fn assert_over(mut self) {
        assert_eq!((self.sender.deadline(), self.sender.is_listening()), (None, false));
        assert_eq!(self.order(Order::Evict), [""; 0]);
        assert_eq!(self.sent(), [""; 0]);
        assert_eq!(self.publish(1, 1 << 40), [""; 0]);
    }
}

fn words(output: &Output) -> String {
    match output {
        Output::Wal { tli, from, to, end } => format!("WAL {tli} {from} to {to} of {end}"),
        Output::Bytes(bytes) => message(bytes),
        Output::Report(Report { write, flush, confirm, .. }) => match confirm {
            Some(confirm) => format!("report {write} {flush}, confirmed {confirm}"),
            None => format!("report {write} {flush}"),
        },
        Output::Feedback(feedback) => format!("feedback {}", feedback.xmin.map_or(0, |id| id.xid)),
        Output::State(state) => format!("{state:?}").to_lowercase(),
        Output::Forget => "forget".to_owned(),
        Output::End(End::Done { next: None }) => "done".to_owned(),
        Output::End(End::Done { next: Some((tli, lsn)) }) => format!("done, {tli} from {lsn}"),
        Output::End(End::Shutdown) => "shutdown".to_owned(),
        Output::End(End::Refused(why)) => format!("refused: {why}"),
        Output::End(End::Cut(why)) => format!("cut: {why}"),
    }
}

fn message(bytes: &[u8]) -> String {
    match (bytes[0], bytes.get(5)) {
        (b'W', _) => "CopyBothResponse".to_owned(),
        (b'c', None) => "CopyDone".to_owned(),
        (b'd', Some(b'k')) => {
            let end = Lsn::new(u64::from_be_bytes(bytes[6..14].try_into().unwrap()));
            format!("keepalive {end}{}", if bytes[22] == 1 { ", reply" } else { "" })
        }
        other => panic!("{other:?}"),
    }
}

fn not_started(request: Request, wal: Wal) -> NotStarted {
    Sender::start(request, settings(), wal, Instant::now()).unwrap_err()
}

#[test]
fn messages_end_on_pages_or_at_the_end() {
    let check = |start: u64, stop: u64, end: u64| {
        assert_eq!(message_end(Lsn::new(start), Lsn::new(stop)), Lsn::new(end), "{start:X}");
    };
    check(0x61EDA0, 0x900000, 0x61EDA0 + 127_584);
    check(0x600000, 0x900000, 0x620000);
    check(0x600000, 0x600128, 0x600128);
    check(0x600005, 0x620005, 0x620005);
    check(0x600005, 0x620006, 0x620000);
}

#[test]
fn what_cannot_be_streamed_is_refused_before_copy_both() {
    let left = || Wal { history: history(3, "1\t0/380000\n"), published: published(3, 0x400000), ..wal(0) };
    let beyond = Refusal::BeyondTimeline { tli: tli(1), start: Lsn::new(0x380001), end: Lsn::new(0x380000) };
    for (number, lsn, wal, expected) in [
        (1, START, Wal { published: None, ..wal(0) }, NotStarted::Refused(Refusal::NotReady)),
        (2, START, left(), NotStarted::Refused(Refusal::UnknownTimeline(tli(2)))),
        (4, START, left(), NotStarted::Refused(Refusal::UnknownTimeline(tli(4)))),
        (1, 0x380001, left(), NotStarted::Refused(beyond)),
        (1, 0x380000, left(), NotStarted::AtEnd { next: (tli(3), Lsn::new(0x380000)) }),
    ] {
        assert_eq!(not_started(request(number, lsn), wal), expected);
    }
    assert!(Stream::of(request(0, START), left()).1[0].starts_with("WAL 3 "), "the one that is followed");
}

#[test]
fn nothing_is_sent_before_copy_both_is() {
    let (mut stream, outputs) = Stream::begun(request(1, START), wal(START + 100));
    assert_eq!(outputs, ["catchup", "CopyBothResponse"]);
    assert_eq!(stream.status(0, 0, true), ["report 0/0 0/0"]);
    assert_eq!(stream.sent(), ["keepalive 0/300000"]);
    assert_eq!(stream.sent(), ["WAL 1 0/300000 to 0/300064 of 0/300064"]);
}

#[test]
fn ranges_end_with_a_few_messages_the_segment_or_what_there_is() {
    let end = 0x0048_0005;
    let (mut stream, mut outputs) = Stream::of(request(1, START + 5), wal(START + end));
    let mut ranges = Vec::new();
    while outputs != ["streaming"] {
        ranges.extend(outputs);
        outputs = stream.sent();
    }
    let of = Lsn::new(START + end);
    // The first message of the first range ends on a page, which costs it some.
    for (range, (from, to)) in ranges.iter().zip([
        (START + 5, START + 0x80000),
        (START + 0x80000, START + MB),
        (START + MB, START + MB + 0x80000),
    ]) {
        assert_eq!(*range, format!("WAL 1 {} to {} of {of}", Lsn::new(from), Lsn::new(to)));
    }
    assert_eq!(ranges.len(), 10);
    let near_end = START + MB - 0x28000;
    let (_, outputs) = Stream::of(request(1, near_end), wal(START + 2 * MB));
    assert_eq!(outputs, ["WAL 1 0/3D8000 to 0/400000 of 0/500000"]);
}

#[test]
fn new_wal_is_given_out_when_everything_before_it_was_sent() {
    let mut stream = Stream::streaming(START + 100);
    assert_eq!(stream.publish(1, START + 300), ["WAL 1 0/300064 to 0/30012C of 0/30012C"]);
    assert_eq!(stream.publish(1, START + 400), [""; 0], "one at a time");
    assert_eq!(stream.sent(), ["WAL 1 0/30012C to 0/300190 of 0/300190"]);
    assert_eq!(stream.sent(), [""; 0], "streaming is said once");
}

#[test]
fn a_start_ahead_of_the_end_waits() {
    let (mut stream, outputs) = Stream::of(request(1, START + 500), wal(START + 100));
    assert_eq!(outputs, ["streaming"]);
    assert_eq!(stream.publish(1, START + 500), [""; 0]);
    assert_eq!(
        stream.status(START + 500, START + 500, true),
        ["report 0/3001F4 0/3001F4, confirmed 0/3001F4", "keepalive 0/3001F4"]
    );
    stream.sent();
    assert_eq!(stream.publish(1, START + 501), ["WAL 1 0/3001F4 to 0/3001F5 of 0/3001F5"]);
}

#[test]
fn wal_that_is_being_fetched_holds_up_nothing_else() {
    let (mut stream, outputs) = Stream::of(request(1, START), wal(START + 100));
    assert_eq!(outputs, ["WAL 1 0/300000 to 0/300064 of 0/300064"]);
    assert_eq!(stream.give(Input::Fetching), [""; 0]);
    assert_eq!(stream.status(0, 0, true), ["report 0/0 0/0", "keepalive 0/300000"]);
    assert_eq!(stream.sent(), [""; 0]);
    assert_eq!(stream.publish(1, START + 200), [""; 0]);
    assert_eq!(stream.give(Input::Fetched), ["WAL 1 0/300000 to 0/3000C8 of 0/3000C8"]);
    assert_eq!(stream.sent(), ["streaming"]);
    stream.publish(1, START + 300);
    stream.give(Input::Fetching);
    assert_eq!(stream.give(Input::Unavailable), ["refused: requested WAL is not available"]);
    stream.assert_over();
}

#[test]
fn another_history_makes_what_was_being_fetched_useless() {
    let (mut stream, _) = Stream::of(request(1, START), wal(START + 100));
    stream.give(Input::Fetching);
    let left = history(2, "1\t0/300040\n");
    assert_eq!(
        stream.give(Input::History(left.clone())),
        ["forget", "WAL 1 0/300000 to 0/300040 of 0/300040"]
    );
    stream.give(Input::Fetching);
    assert_eq!(stream.give(Input::History(left)), [""; 0], "it is the same");
    assert_eq!(stream.give(Input::Fetched), ["WAL 1 0/300000 to 0/300040 of 0/300040"]);
}

#[test]
fn a_switch_in_mid_stream_ends_the_timeline_where_it_was_left() {
    for left_at in [START + 100, START + 700, START + MB] {
        let mut stream = Stream::streaming(START + 100);
        let text = format!("1\t{}\n", Lsn::new(left_at));
        // The position may be seen before the history that belongs to it.
        assert_eq!(stream.publish(2, left_at + 5000), [""; 0]);
        let mut outputs = stream.give(Input::History(history(2, &text)));
        assert_eq!(outputs.remove(0), "forget");
        while outputs != ["CopyDone"] {
            assert!(outputs[0].starts_with("WAL 1 "), "{outputs:?}");
            outputs = stream.sent();
        }
        assert_eq!(stream.sender.sent(), Lsn::new(left_at), "not a byte beyond");
        assert_eq!(stream.sent(), [""; 0]);
        assert_eq!(stream.copy_done(), [format!("done, 2 from {}", Lsn::new(left_at))]);
        stream.assert_over();
    }
}

#[test]
fn a_consumer_ahead_of_the_switch_is_sent_to_the_end_of_its_timeline() {
    let (mut stream, _) = Stream::of(request(1, START + 500), wal(START + 100));
    let outputs = stream.give(Input::History(history(2, "1\t0/300100\n")));
    assert_eq!(outputs, ["forget", "CopyDone"]);
    assert_eq!(
        stream.status(START + 500, START + 500, false),
        ["report 0/3001F4 0/3001F4, confirmed 0/300100"],
        "the slot keeps what is common"
    );
    stream.sent();
    assert_eq!(stream.copy_done(), ["done, 2 from 0/300100"]);
}

#[test]
fn a_timeline_that_is_none_of_ours_any_more_ends_with_an_error_between_two_ranges() {
    let wal = || Wal { history: history(2, "1\t0/300000\n"), published: published(2, START + 500), ..wal(0) };
    let (mut stream, _) = Stream::of(request(2, START), wal());
    assert_eq!(stream.give(Input::History(history(1, ""))), ["forget"], "in the middle of a message");
    assert_eq!(stream.status(START + 9, START + 9, false), ["report 0/300009 0/300009"], "moves no slot");
    let refused = "refused: requested timeline 2 is not in this server's history";
    assert_eq!(stream.sent(), [refused]);
    // The same when nothing is on its way, when WAL is being fetched, and when the client has ended the stream.
    let (mut stream, _) = Stream::of(request(2, START), wal());
    stream.give(Input::Fetching);
    assert_eq!(stream.give(Input::History(history(1, ""))), ["forget", refused]);
    let (mut stream, _) = Stream::of(request(2, START), wal());
    stream.give(Input::History(history(1, "")));
    stream.copy_done();
    assert_eq!(stream.sent(), ["CopyDone", refused]);
    stream.assert_over();
}

#[test]
fn a_timeline_that_is_taken_up_again_goes_on_unless_its_end_was_said() {
    let two = || Wal { history: history(2, "1\t0/300200\n"), published: published(2, START + 900), ..wal(0) };
    let (mut stream, outputs) = Stream::of(request(1, START), two());
    assert_eq!(outputs, ["WAL 1 0/300000 to 0/300200 of 0/300200"]);
    stream.publish(1, START + 0x300);
    stream.give(Input::History(history(1, "")));
    assert_eq!(stream.sent(), ["WAL 1 0/300200 to 0/300300 of 0/300300"]);
    let (mut stream, _) = Stream::of(request(1, START), two());
    assert_eq!(stream.sent(), ["CopyDone"]);
    stream.publish(1, START + 0x300);
    assert_eq!(stream.give(Input::History(history(1, ""))), ["forget"]);
    assert_eq!(stream.sent(), [""; 0], "no WAL behind CopyDone");
    assert_eq!(stream.copy_done(), ["done"]);
}

#[test]
fn no_wal_at_all_any_more_ends_the_stream() {
    let mut stream = Stream::streaming(START + 100);
    assert_eq!(
        stream.give(Input::Published(None)),
        ["refused: no WAL has been received from the upstream yet"]
    );
}

#[test]
fn the_client_may_end_the_stream_at_any_point() {
    let wal_first = "WAL 1 0/300000 to 0/300064 of 0/300064";
    // Before CopyBothResponse is sent.
    let (mut stream, _) = Stream::begun(request(1, START), wal(START + 100));
    assert_eq!(stream.copy_done(), ["CopyDone", "done"]);
    // In the middle of a message: what was begun is sent.
    let (mut stream, outputs) = Stream::of(request(1, START), wal(START + 100));
    assert_eq!(outputs, [wal_first]);
    stream.status(0, 0, true);
    assert_eq!(stream.copy_done(), [""; 0]);
    assert!(!stream.sender.is_listening());
    assert_eq!(stream.publish(1, START + 200), [""; 0]);
    assert_eq!(stream.sent(), ["keepalive 0/300064", "CopyDone", "done"], "what was asked for is answered");
    stream.assert_over();
    // While WAL is fetched, while there is none, and twice.
    let (mut stream, _) = Stream::of(request(1, START), wal(START + 100));
    stream.give(Input::Fetching);
    assert_eq!(stream.copy_done(), ["CopyDone", "done"]);
    let mut stream = Stream::streaming(START + 100);
    assert_eq!(stream.copy_done(), ["CopyDone", "done"]);
    let mut stream = Stream::blocked();
    stream.copy_done();
    assert_eq!(stream.copy_done(), [""; 0]);
    assert_eq!(stream.frame(b'Q', b"what is for the session"), [""; 0]);
    // Of a timeline that was left, before its end.
    let left = Wal { history: history(2, "1\t0/310000\n"), published: published(2, 0x320000), ..wal(0) };
    let (mut stream, _) = Stream::of(request(1, START), left);
    stream.give(Input::Fetching);
    assert_eq!(stream.copy_done(), ["CopyDone", "done, 2 from 0/310000"]);
    // While the relay stops.
    let mut stream = Stream::streaming(START + 100);
    assert_eq!(stream.order(Order::Stop), ["stopping", "keepalive 0/300064, reply"]);
    assert_eq!(stream.copy_done(), ["CopyDone", "cut: client has ended the stream"]);
}

#[test]
fn a_client_that_does_not_take_copy_done_is_given_up() {
    let mut stream = Stream::blocked();
    stream.copy_done();
    assert_eq!(stream.until_deadline(TIMEOUT / 2), [""; 0]);
    let silent = "cut: terminating walsender process due to replication timeout";
    assert_eq!(stream.until_deadline(TIMEOUT / 2), [silent]);
}

#[test]
fn reports_are_taken_as_they_are_but_move_the_slot_only_to_what_was_sent() {
    let mut stream = Stream::streaming(START + 0x200);
    for (write, flush, expected) in [
        (START + 0x100, 0, "report 0/300100 0/0"),
        (START + 0x100, START + 0x80, "report 0/300100 0/300080, confirmed 0/300080"),
        (START + 0x200, START + 0x10, "report 0/300200 0/300010, confirmed 0/300010"),
        (1, u64::MAX, "report 0/1 FFFFFFFF/FFFFFFFF, confirmed 0/300200"),
        (u64::MAX, u64::MAX, "report FFFFFFFF/FFFFFFFF FFFFFFFF/FFFFFFFF, confirmed 0/300200"),
        (START + 0x300, START + 0x201, "report 0/300300 0/300201, confirmed 0/300200"),
        (START, START, "report 0/300000 0/300000, confirmed 0/300000"),
        (0, 0, "report 0/0 0/0"),
    ] {
        assert_eq!(stream.status(write, flush, false), [expected]);
    }
    // A range that is on its way may have been taken in part, and its first messages confirmed.
    stream.publish(1, START + 0x400);
    let confirmed = "report 0/300300 0/300300, confirmed 0/300300";
    assert_eq!(stream.status(START + 0x300, START + 0x300, false), [confirmed]);
}

#[test]
fn what_a_consumer_has_from_before_does_not_move_its_slot_back() {
    let slot = Request { restart_lsn: Some(Lsn::new(START + 0x5000)), ..request(1, START) };
    let (mut stream, _) = Stream::of(slot, wal(START + 0x8000));
    stream.give(Input::Fetching);
    let flush = START + 0x6000;
    assert_eq!(stream.status(flush, flush, false), ["report 0/306000 0/306000, confirmed 0/305000"]);
    let less = START + 0x4000;
    assert_eq!(stream.status(less, less, false), ["report 0/304000 0/304000, confirmed 0/304000"], "honest");
    assert_eq!(stream.status(flush, flush, false), ["report 0/306000 0/306000, confirmed 0/304000"]);
    stream.give(Input::Fetched);
    stream.sent();
    assert_eq!(stream.status(flush, flush, false), ["report 0/306000 0/306000, confirmed 0/306000"]);
}

#[test]
fn a_report_counts_as_far_as_the_client_was_sent_wal_on_our_way() {
    let counts = |stream: &mut Stream, at: [u64; 3]| {
        let [write, flush, apply] = at.map(|lsn| Lsn::new(lsn).valid());
        let update = StandbyStatusUpdate { write, flush, apply, send_time: WALL, reply_requested: false };
        stream.sender.handle(Input::Frame { kind: b'd', body: &update.frame()[5..] }, stream.now);
        let mut found = None;
        while let Some(output) = stream.sender.poll_output(WALL) {
            if let Output::Report(report) = output {
                found = report.counts;
            }
        }
        found.map(|at| [at.write, at.flush, at.apply].map(|lsn| lsn.unwrap_or_default().as_u64()))
    };
    let mut stream = Stream::streaming(START + 100);
    assert_eq!(counts(&mut stream, [START + 90, START + 80, 0]), Some([START + 90, START + 80, 0]));
    assert_eq!(counts(&mut stream, [u64::MAX, START + 101, u64::MAX]), Some([START + 100; 3]), "absurd");
    // Who begins ahead of our WAL was sent none of it.
    let (mut ahead, _) = Stream::of(request(1, START + 500), wal(START + 100));
    assert_eq!(counts(&mut ahead, [START + 500; 3]), Some([START + 100; 3]));
    // The timeline changes.
    stream.publish(2, START + 90);
    assert_eq!(counts(&mut stream, [START + 80; 3]), None, "how is not known yet");
    stream.give(Input::History(history(2, "1\t0/30005A\n")));
    assert_eq!(
        counts(&mut stream, [START + 90, START + 80, START + 80]),
        Some([START + 90, START + 80, START + 80])
    );
    assert_eq!(counts(&mut stream, [START + 91, START + 80, START + 80]), None, "it has what is left");
    stream.give(Input::History(history(3, "2\t0/300000\n")));
    assert_eq!(counts(&mut stream, [START + 80; 3]), None, "it is none of ours");
}

#[test]
fn a_consumer_ahead_of_our_wal_confirms_no_more_than_there_is() {
    let (mut stream, _) = Stream::of(request(1, START + 500), wal(START + 100));
    let flush = START + 500;
    assert_eq!(stream.status(flush, flush, false), ["report 0/3001F4 0/3001F4, confirmed 0/300064"]);
    // Unless its slot was there before.
    let slot = Request { restart_lsn: Some(Lsn::new(START + 300)), ..request(1, START + 500) };
    let (mut stream, _) = Stream::of(slot, wal(START + 100));
    assert_eq!(stream.status(flush, flush, false), ["report 0/3001F4 0/3001F4, confirmed 0/30012C"]);
}

#[test]
fn a_report_moves_no_slot_while_it_is_not_known_how_the_timeline_ended() {
    let mut stream = Stream::streaming(START + 0x200);
    stream.publish(2, START + 0x900);
    assert_eq!(stream.status(START + 0x200, START + 0x200, false), ["report 0/300200 0/300200"]);
}

/// Heard and not passed on yet, as where a timer has the socket read.
fn update(flush: u64) -> StandbyStatusUpdate {
    StandbyStatusUpdate {
        write: Some(Lsn::new(START)),
        flush: Lsn::new(flush).valid(),
        apply: None,
        send_time: WALL,
        reply_requested: false,
    }
}

#[test]
fn what_was_judged_by_a_history_that_is_gone_moves_no_slot() {
    let mut stream = Stream::streaming(START + 0x200);
    let body = &update(START + 0x180).frame()[5..];
    stream.sender.handle(Input::Frame { kind: b'd', body }, stream.now);
    let outputs = stream.give(Input::History(history(2, "1\t0/300040\n")));
    assert!(outputs.contains(&"report 0/300000 0/300180".to_owned()), "{outputs:?}");
}

#[test]
fn of_what_is_heard_at_once_the_last_counts() {
    let mut stream = Stream::streaming(START + 0x200);
    for flush in [START + 0x80, START + 0x100, 0] {
        let body = &update(flush).frame()[5..];
        stream.sender.handle(Input::Frame { kind: b'd', body }, stream.now);
    }
    assert_eq!(stream.outputs(), ["report 0/300000 0/0, confirmed 0/300100"]);
}

#[test]
fn feedback_is_passed_on() {
    let feedback = HotStandbyFeedback { send_time: WALL, xmin: FullXid::new(0, 700), catalog_xmin: None };
    let mut stream = Stream::blocked();
    assert_eq!(stream.frame(b'd', &feedback.frame()[5..]), ["feedback 700"]);
}

#[test]
fn what_is_no_message_ends_the_stream() {
    for (payload, text) in [
        (&b""[..], "refused: no data left in message"),
        (b"r\0\0", "refused: insufficient data left in message"),
        (b"h", "refused: insufficient data left in message"),
    ] {
        let mut stream = Stream::streaming(START + 100);
        assert_eq!(stream.frame(b'd', payload), [text]);
        stream.assert_over();
        let mut stream = Stream::blocked();
        assert_eq!(stream.frame(b'd', payload), [""; 0], "not in the middle of a message");
        assert_eq!(stream.sent(), [text]);
    }
    for (kind, body, text) in
        [(b'd', &b"z"[..], "cut: unexpected message type \"z\""), (b'X', b"", "cut: client has left")]
    {
        let mut stream = Stream::blocked();
        assert_eq!(stream.frame(kind, body), [text], "at once");
        stream.assert_over();
    }
}

#[test]
fn a_thousand_requests_for_an_answer_are_owed_one() {
    let mut stream = Stream::blocked();
    for _ in 0..1000 {
        assert_eq!(stream.status(0, 0, true), ["report 0/0 0/0"]);
    }
    assert_eq!(stream.sent(), ["keepalive 0/300064", "streaming"]);
    for _ in 0..1000 {
        assert!(stream.status(0, 0, true).len() <= 2);
    }
    assert_eq!(stream.sent(), ["keepalive 0/300064"]);
    assert_eq!(stream.sent(), [""; 0]);
}

#[test]
fn a_silent_client_is_asked_once_and_then_given_up() {
    let silent = "cut: terminating walsender process due to replication timeout";
    let mut stream = Stream::streaming(START + 100);
    assert_eq!(stream.until_deadline(TIMEOUT / 2), ["keepalive 0/300064, reply"]);
    stream.sent();
    // What is sent to it does not count.
    stream.publish(1, START + 200);
    stream.sent();
    assert_eq!(stream.until_deadline(TIMEOUT / 2), [silent]);
    stream.assert_over();
    // In the middle of a message, while WAL is fetched, at the end of a timeline.
    let mut stream = Stream::blocked();
    assert_eq!(stream.until_deadline(TIMEOUT / 2), [""; 0]);
    assert_eq!(stream.until_deadline(TIMEOUT / 2), [silent]);
    let mut stream = Stream::blocked();
    stream.give(Input::Fetching);
    assert_eq!(stream.until_deadline(TIMEOUT / 2), ["keepalive 0/300000, reply"]);
    assert_eq!(stream.until_deadline(TIMEOUT / 2), [silent]);
    let mut stream = Stream::streaming(START + 100);
    stream.give(Input::History(history(2, "1\t0/300064\n")));
    stream.sent();
    stream.until_deadline(TIMEOUT / 2);
    assert_eq!(stream.until_deadline(TIMEOUT / 2), [silent]);
}

#[test]
fn an_answer_starts_the_time_anew_and_what_was_not_read_is_no_silence() {
    let mut stream = Stream::streaming(START + 100);
    for _ in 0..3 {
        assert_eq!(stream.until_deadline(TIMEOUT / 2), ["keepalive 0/300064, reply"]);
        stream.sent();
        stream.now += TIMEOUT / 4;
        stream.status(0, 0, false);
    }
    stream.now += 2 * TIMEOUT;
    assert_eq!(stream.give(Input::Timeout { unheard: true }), [""; 0]);
    stream.status(0, 0, false);
    assert_eq!(stream.give(Input::Timeout { unheard: false }), [""; 0], "too early is nothing");
}

#[test]
fn who_may_be_silent_for_ever_is_never_asked() {
    let settings = Settings { peer_timeout: None, ..settings() };
    let sender = Sender::start(request(1, START), settings, wal(START), Instant::now()).unwrap();
    let mut stream = Stream { sender, now: Instant::now() + 1000 * TIMEOUT };
    assert_eq!(stream.outputs(), ["catchup", "CopyBothResponse", "streaming"]);
    assert_eq!(stream.sender.deadline(), None);
    assert_eq!(stream.give(Input::Timeout { unheard: false }), [""; 0]);
}

#[test]
fn a_stopping_relay_sends_what_is_there_and_has_it_confirmed() {
    let (mut stream, _) = Stream::of(request(1, START), wal(START + 100));
    assert_eq!(stream.publish(1, START + 200), [""; 0]);
    assert_eq!(stream.order(Order::Stop), ["stopping"]);
    // Behind the stop: for the next stream.
    assert_eq!(stream.publish(1, START + 300), [""; 0]);
    assert_eq!(stream.sent(), ["WAL 1 0/300064 to 0/3000C8 of 0/3000C8"]);
    assert_eq!(stream.sent(), ["keepalive 0/3000C8, reply"]);
    stream.sent();
    let early = stream.status(START + 200, START + 199, false);
    assert_eq!(early, ["report 0/3000C8 0/3000C7, confirmed 0/3000C7", "keepalive 0/3000C8, reply"]);
    assert_eq!(
        stream.status(START + 200, START + 200, false),
        ["report 0/3000C8 0/3000C8, confirmed 0/3000C8", "shutdown"]
    );
    stream.assert_over();
    // Who tells no flush position is believed what it has written.
    let mut stream = Stream::streaming(START + 100);
    stream.status(START + 100, 0, false);
    assert_eq!(stream.order(Order::Stop), ["stopping", "shutdown"]);
}

#[test]
fn a_stopping_relay_waits_its_time_and_no_longer() {
    let unconfirmed = "cut: consumer did not confirm the last WAL in time";
    let mut stream = Stream::streaming(START + 100);
    stream.order(Order::Stop);
    stream.now += SHUTDOWN / 2;
    assert_eq!(stream.order(Order::Stop), [""; 0], "the time is not begun anew");
    assert_eq!(stream.until_deadline(SHUTDOWN / 2), [unconfirmed]);
    let mut stream = Stream::blocked();
    stream.order(Order::Stop);
    assert_eq!(stream.until_deadline(SHUTDOWN), [unconfirmed]);
    let mut stream = Stream::blocked();
    stream.give(Input::Fetching);
    stream.order(Order::Stop);
    assert_eq!(stream.until_deadline(SHUTDOWN), [unconfirmed]);
}

#[test]
fn a_stop_behind_the_end_of_a_timeline_says_copy_done_no_second_time() {
    let ended = || {
        let mut stream = Stream::streaming(START + 100);
        assert_eq!(stream.give(Input::History(history(2, "1\t0/300064\n"))), ["forget", "CopyDone"]);
        stream.sent();
        stream
    };
    let mut stream = ended();
    assert_eq!(stream.order(Order::Stop), ["stopping", "keepalive 0/300064, reply"]);
    assert_eq!(stream.copy_done(), ["cut: client has ended the stream"]);
    let mut stream = ended();
    stream.status(START + 100, START + 100, false);
    assert_eq!(stream.order(Order::Stop), ["stopping", "shutdown"]);
    // The other way round no CopyDone is said at all.
    let mut stream = Stream::streaming(START + 100);
    stream.order(Order::Stop);
    assert_eq!(stream.give(Input::History(history(2, "1\t0/300064\n"))), ["forget"]);
}

#[test]
fn orders_to_end_are_said_between_two_ranges() {
    let ended = |stream: &mut Stream| stream.give(Input::History(history(2, "1\t0/300064\n")));
    let orders = [
        (Order::Cancel, "canceling statement due to user request"),
        (Order::Evict, "terminating connection due to administrator command"),
    ];
    for (order, text) in orders {
        let refused = format!("refused: {text}");
        // Before CopyBothResponse is sent, streaming, fetching, at a timeline's end, stopping, with the client done.
        let (mut stream, _) = Stream::begun(request(1, START), wal(START + 100));
        assert_eq!(stream.order(order), [&*refused]);
        let mut stream = Stream::streaming(START + 100);
        assert_eq!(stream.order(order), [&*refused]);
        stream.assert_over();
        let mut stream = Stream::blocked();
        stream.give(Input::Fetching);
        assert_eq!(stream.order(order), [&*refused]);
        let mut stream = Stream::streaming(START + 100);
        ended(&mut stream);
        assert_eq!(stream.order(order), [&*refused]);
        let mut stream = Stream::streaming(START + 100);
        stream.order(Order::Stop);
        assert_eq!(stream.order(order), [&*refused]);
        let mut stream = Stream::blocked();
        stream.copy_done();
        assert_eq!(stream.order(order), [""; 0]);
        assert_eq!(stream.sent(), [&*refused]);
        // Who does not take the message before it is cut off, whatever it says meanwhile.
        let mut stream = Stream::blocked();
        assert_eq!(stream.order(order), [""; 0]);
        stream.now += GRACE / 2;
        stream.status(0, 0, true);
        stream.order(order);
        assert_eq!(
            stream.until_deadline(GRACE / 2),
            [format!("cut: {text}; client does not take what was being sent to it")]
        );
    }
}

#[test]
fn an_order_that_ends_the_connection_goes_before_one_that_does_not() {
    for orders in [[Order::Cancel, Order::Evict], [Order::Evict, Order::Cancel]] {
        let mut stream = Stream::blocked();
        for order in orders {
            stream.order(order);
        }
        assert_eq!(stream.sent(), ["refused: terminating connection due to administrator command"]);
    }
}
