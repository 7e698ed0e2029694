//! The language, and the machine against one that computes everything anew.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn expression(text: &str) -> Expression {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

// ---- the language ----

#[test]
fn what_is_written_is_read() {
    let check = |text: &str, expected: &str| {
        let parsed = expression(text);
        assert_eq!(parsed.to_string(), expected, "{text}");
        assert_eq!(expression(expected), parsed, "{text}");
    };
    check("local", "local");
    check(" LOCAL and\tConnected\n", "local AND connected");
    check("any 1 (a,b)", "ANY 1 (a, b)");
    check("FIRST 2(a , B, c) AND local", "FIRST 2 (a, B, c) AND local");
    check("All ( repl/a, \"other role\"/\"b-1\" )", "ALL (repl/a, \"other role\"/\"b-1\")");
    check(
        "ALL (\"any\", \"Local\", \"say \"\"hi\"\"\", 2, é, _x$1)",
        "ALL (\"any\", \"Local\", \"say \"\"hi\"\"\", 2, é, _x$1)",
    );
    check("ANY 1 (a, b) AND ANY 1 (c, d) AND ALL (a)", "ANY 1 (a, b) AND ANY 1 (c, d) AND ALL (a)");
    check("ALL (one/a, two/a)", "ALL (one/a, two/a)");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let check = |text: &str, expected: &str| {
        let error = text.parse::<Expression>().map(|parsed| parsed.to_string()).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    };
    let term = "expected local, connected, ANY, FIRST or ALL, found";
    check("", &format!("{term} the end at character 1"));
    check("locl", &format!("{term} \"locl\" at character 1"));
    check("local AND", &format!("{term} the end at character 10"));
    check("1 (a)", &format!("{term} \"1\" at character 1"));
    check("local, connected", "expected AND or the end, found a comma at character 6");
    check("local connected", "expected AND or the end, found \"connected\" at character 7");
    check("ANY (a)", "expected how many, found \"(\" at character 5");
    check("ANY 0 (a)", "a group of 0 waits for nobody; leave it out at character 5");
    check("ANY 2 (a)", "2 of 1: so many are not named, it could never be fulfilled at character 5");
    let many = "99999999999999999999";
    check(
        &format!("ANY {many} (a)"),
        &format!("{many} of 1: so many are not named, it could never be fulfilled at character 5"),
    );
    check("ALL a", "expected (, found \"a\" at character 5");
    check("ALL ()", "expected a name, found \")\" at character 6");
    check("ALL (a", "expected a comma or ), found the end at character 7");
    check("ALL (a b)", "expected a comma or ), found \"b\" at character 8");
    check("ALL (a,)", "expected a name, found \")\" at character 8");
    check("ALL (a/)", "expected a name, found \")\" at character 8");
    check("ALL (\"\")", "empty name at character 6");
    check("ALL (\"a)", "unterminated quoted name at character 6");
    check("ALL (local)", "\"local\" is a word of the language; in double quotes it is a name at character 6");
    check(
        "ALL (*)",
        "\"*\" names nobody: write names, or \"connected\" for all that are connected at character 6",
    );
    check(
        "ALL (é, b-1)",
        "unexpected \"-\" (a name with other characters than letters, digits, _ and $ takes double quotes) at character 10",
    );
    check("ALL (a, \"A\")", "\"A\" is named twice, and has one vote at character 9");
    check("ANY 1 (r/a, a)", "\"a\" is named twice, and has one vote at character 13");
    check("ANY 1 (r/a, r/A)", "\"r/A\" is named twice, and has one vote at character 13");
}

#[test]
fn names_of_a_server_are_found_in_each_of_its_forms() {
    let check = |text: &str, expected: &[&str]| assert_eq!(names_of(text), expected, "{text}");
    check("", &[]);
    check("*", &[]);
    check("a, \"B-1\"", &["a", "B-1"]);
    check("2 (a, 3)", &["a", "3"]);
    check("ANY 1 (walrelay, b)", &["walrelay", "b"]);
    check("FIRST 1 (\"any\")", &["any"]);
    check("a, \"b", &[]);
    let waits = |text: &str| may_wait_for(text, "walrelay");
    assert!(waits("*") && waits("ANY 1 (a, WalRelay)") && waits("\"*\"") && waits("2 (a, *)"));
    assert!(!waits("") && !waits("a, walrelay2") && !waits("*, \"a"));
}

proptest! {
    /// Any text is understood or refused, at a place that is in it; what is understood is the same when it is written again.
    #[test]
    fn any_text_is_understood_or_refused(text in "[ a-cA-C0-2(),/\"*-]{0,20}|(ANY|FIRST|ALL|AND|local|[()a-c1-2, ]){0,12}|.{0,20}") {
        match text.parse::<Expression>() {
            Ok(parsed) => prop_assert_eq!(expression(&parsed.to_string()), parsed),
            Err(error) => prop_assert!((1..=text.chars().count() + 1).contains(&error.at), "{}", error),
        }
    }
}

// ---- the machine ----

const TIMEOUT: Duration = Duration::from_secs(10);

fn rules(write: &str, flush: &str, apply: &str) -> Rules {
    Rules { write: expression(write), flush: expression(flush), apply: expression(apply), lapse: None }
}

fn lsn(number: u64) -> Option<Lsn> {
    Lsn::new(number).valid()
}

fn positions(write: u64, flush: u64, apply: u64) -> Positions {
    Positions { write: lsn(write), flush: lsn(flush), apply: lsn(apply) }
}

/// An acknowledger and its clock.
struct Rig {
    machine: Acknowledger,
    now: Instant,
    here: u64,
}

impl Rig {
    fn new(rules: Rules) -> Rig {
        let now = Instant::now();
        Rig { machine: Acknowledger::new(rules, now), now, here: 100 }
    }

    fn lapsing(budget: Option<Budget>) -> Rig {
        let lapse = Lapse { timeout: TIMEOUT, to: Expression::local(), budget };
        Rig::new(Rules { lapse: Some(lapse), ..rules("local", "ALL (a)", "ALL (a)") })
    }

    fn connect(&mut self, id: u32, name: &str) {
        self.machine.connect(id, "repl", name);
    }

    fn report(&mut self, id: u32, at: u64) -> bool {
        self.machine.report(id, Some(positions(at, at, at)))
    }

    fn compose(&mut self) -> Positions {
        self.machine.compose(Lsn::new(self.here), Lsn::new(self.here), self.now)
    }

    /// Time passes, as it does for a relay that looks often.
    fn pass(&mut self, time: Duration) -> (Positions, Vec<Event>) {
        let (step, end) = (Duration::from_millis(200), self.now + time);
        let mut events = Vec::new();
        while self.now < end {
            self.now = (self.now + step).min(end);
            self.compose();
            events.extend(std::iter::from_fn(|| self.machine.poll_event()));
        }
        (self.compose(), events)
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.machine.poll_event()).collect()
    }
}

#[test]
fn out_of_the_box_apply_is_that_of_the_slowest_that_tells_one() {
    let mut rig = Rig::new(Rules::default());
    assert_eq!(rig.compose(), positions(100, 100, 0));
    rig.connect(1, "receivewal");
    assert!(!rig.machine.report(1, Some(positions(90, 90, 0))));
    rig.connect(2, "s1");
    assert!(rig.report(2, 80));
    rig.connect(3, "s2");
    assert_eq!(rig.compose().apply, lsn(80), "who has just come does not count");
    rig.report(3, 70);
    assert_eq!(rig.compose().apply, lsn(80), "it does not fall");
    assert!(!rig.report(2, 95));
    assert_eq!(rig.compose().apply, lsn(80));
    assert!(rig.report(3, 90));
    assert_eq!(rig.compose().apply, lsn(90));
    assert!(rig.machine.disconnect(3));
    assert_eq!(rig.compose().apply, lsn(95));
    rig.machine.disconnect(2);
    assert_eq!(rig.compose().apply, lsn(95));
}

#[test]
fn what_is_not_here_is_not_reported() {
    let mut rig = Rig::new(rules("ALL (a)", "ALL (a)", "ALL (a)"));
    rig.connect(1, "a");
    rig.report(1, u64::MAX);
    assert_eq!(rig.machine.compose(Lsn::new(100), Lsn::new(60), rig.now), positions(100, 60, 60));
}

#[test]
fn each_level_contains_those_below_it() {
    let mut rig = Rig::new(rules("local", "ALL (far)", "connected"));
    rig.connect(1, "near");
    rig.report(1, 90);
    assert_eq!(rig.compose(), positions(100, 0, 0), "visible here, and not durable where it has to be");
    rig.connect(2, "far");
    rig.machine.report(2, Some(positions(80, 80, 0)));
    assert_eq!(rig.compose(), positions(100, 80, 80));
}

#[test]
fn groups_are_counted_as_postgresql_counts_them() {
    let check = |rule: &str, has: [u64; 3], expected: u64| {
        let mut rig = Rig::new(rules("local", rule, "local"));
        for (at, (id, name)) in has.into_iter().zip([(1, "a"), (2, "b"), (3, "C")]) {
            rig.connect(id, name);
            if at > 0 {
                rig.report(id, at);
            }
        }
        assert_eq!(rig.compose().flush, lsn(expected), "{rule} {has:?}");
    };
    check("ANY 1 (a, b, c)", [10, 30, 20], 30);
    check("ANY 2 (a, b, c)", [10, 30, 20], 20);
    check("ANY 3 (a, b, c)", [10, 30, 20], 10);
    check("ANY 3 (a, b, c)", [10, 30, 0], 0);
    check("FIRST 1 (a, b, c)", [10, 30, 20], 10);
    check("FIRST 1 (a, b, c)", [0, 30, 20], 30);
    check("FIRST 2 (c, b, a)", [10, 30, 20], 20);
    check("FIRST 2 (a, b, c)", [0, 30, 0], 0);
    check("ALL (a, b)", [10, 30, 0], 10);
    check("ANY 1 (a, b) AND ALL (c)", [10, 30, 20], 20);
    check("ALL (repl/a)", [10, 0, 0], 10);
    check("ALL (other/a)", [10, 0, 0], 0);
    check("ALL (repl/a) AND local", [10, 0, 0], 10);
    check("connected", [10, 30, 0], 10);
}

#[test]
fn a_name_is_its_last_carriers() {
    let mut rig = Rig::new(rules("local", "ALL (a)", "local"));
    rig.connect(1, "a");
    rig.report(1, 50);
    rig.connect(2, "A");
    let name = MemberName { role: None, name: "a".to_owned() };
    assert_eq!(rig.events(), [Event::Shared { name }]);
    assert_eq!(rig.compose().flush, lsn(50));
    rig.report(2, 40);
    rig.report(1, 90);
    assert_eq!(rig.compose().flush, lsn(50), "the old connection counts no longer");
    rig.report(2, 60);
    assert_eq!(rig.compose().flush, lsn(60));
    rig.machine.disconnect(2);
    assert_eq!(rig.compose().flush, lsn(90));
}

#[test]
fn another_timeline_begins_with_nothing() {
    let mut rig = Rig::new(rules("local", "ALL (a)", "connected"));
    rig.connect(1, "a");
    rig.report(1, 50);
    assert_eq!(rig.compose(), positions(100, 50, 50));
    assert_eq!(rig.machine.reported(), None, "nothing has gone out yet");
    rig.machine.note_sent(positions(100, 50, 50));
    rig.machine.note_sent(positions(90, 60, 0));
    assert_eq!(rig.machine.reported(), Some(positions(100, 60, 50)));
    rig.machine.begin_timeline();
    assert_eq!(rig.machine.reported(), None);
    rig.here = 40;
    assert_eq!(rig.compose(), positions(40, 0, 0));
    rig.machine.report(1, None);
    assert_eq!(rig.compose(), positions(40, 0, 0));
    rig.report(1, 30);
    assert_eq!(rig.compose(), positions(40, 30, 30));
}

#[test]
fn what_was_told_by_an_earlier_process_stays() {
    let mut rig = Rig::new(rules("local", "ALL (a)", "connected"));
    rig.machine.told_before(Lsn::new(70));
    assert_eq!(rig.compose(), positions(100, 70, 0));
    rig.connect(1, "a");
    rig.report(1, 60);
    assert_eq!(rig.compose(), positions(100, 70, 60));
    // A copy of an older directory has less.
    let mut rig = Rig::new(rules("local", "local", "connected"));
    rig.machine.told_before(Lsn::new(170));
    assert_eq!(rig.compose(), positions(100, 100, 0));
}

#[test]
fn other_rules_take_over_and_nothing_falls() {
    let mut rig = Rig::new(rules("local", "ALL (a)", "connected"));
    rig.connect(1, "a");
    rig.connect(2, "b");
    rig.report(1, 50);
    rig.report(2, 40);
    assert_eq!(rig.compose(), positions(100, 50, 40));
    let members = [(1, "repl", "a"), (2, "repl", "b")];
    rig.machine.set_rules(rules("local", "ALL (b)", "ALL (a)"), members.into_iter());
    assert_eq!(rig.compose(), positions(100, 50, 50));
    rig.report(2, 60);
    assert_eq!(rig.compose(), positions(100, 60, 50));
}

#[test]
fn it_lapses_when_nobody_answers_and_returns_when_they_have_caught_up() {
    let mut rig = Rig::lapsing(None);
    rig.connect(1, "a");
    rig.report(1, 100);
    assert_eq!(rig.pass(TIMEOUT * 3), (positions(100, 100, 100), vec![]), "nothing is waited for");
    rig.here = 150;
    assert_eq!(rig.pass(TIMEOUT - Duration::from_millis(1)), (positions(150, 100, 100), vec![]));
    let (reported, events) = rig.pass(Duration::from_secs(1));
    let lapsed = |level| Event::Lapsed { level, reached: lsn(100), wanted: Lsn::new(150), left: None };
    assert_eq!(
        (reported, events),
        (positions(150, 150, 150), vec![lapsed(Level::Flush), lapsed(Level::Apply)])
    );
    rig.here = 200;
    rig.report(1, 190);
    assert_eq!(rig.pass(Duration::from_secs(1)).0, positions(200, 200, 200));
    rig.report(1, 200);
    let (reported, events) = rig.pass(Duration::from_millis(200));
    assert!(
        matches!(events[..], [Event::Returned { level: Level::Flush, .. }, Event::Returned { .. }]),
        "{events:?}"
    );
    rig.here = 250;
    assert_eq!((reported, rig.pass(TIMEOUT / 2).0), (positions(200, 200, 200), positions(250, 200, 200)));
}

#[test]
fn other_rules_are_no_end_of_a_lapse_unless_its_own_rule_is_another() {
    let mut rig = Rig::lapsing(None);
    rig.connect(1, "a");
    rig.report(1, 50);
    assert_eq!(rig.pass(TIMEOUT + Duration::from_secs(1)).1.len(), 2);
    let members = || [(1, "repl", "a")].into_iter();
    // A longer patience: what has lapsed stays so.
    let lapse = Lapse { timeout: TIMEOUT * 2, to: Expression::local(), budget: None };
    let patient = Rules { lapse: Some(lapse.clone()), ..rules("local", "ALL (a)", "ALL (a)") };
    rig.machine.set_rules(patient, members());
    rig.here = 150;
    assert_eq!(rig.pass(Duration::from_secs(1)), (positions(150, 150, 150), vec![]));
    // Somebody else is waited for now: his rule holds, and that is said.
    let other = Rules { lapse: Some(lapse), ..rules("local", "ALL (b)", "ALL (a)") };
    rig.machine.set_rules(other, members());
    assert!(matches!(rig.events()[..], [Event::Returned { level: Level::Flush, .. }]));
    rig.here = 200;
    assert_eq!(rig.compose(), positions(200, 150, 150));
}

/// WAL never stands still, and the group is always a little behind.
#[test]
fn who_keeps_up_has_caught_up() {
    let mut rig = Rig::lapsing(None);
    rig.connect(1, "a");
    rig.report(1, 50);
    assert_eq!(rig.pass(TIMEOUT + Duration::from_secs(1)).1.len(), 2);
    let mut events = Vec::new();
    for _ in 0..10 {
        let before = rig.here;
        rig.here += 10;
        events.extend(rig.pass(Duration::from_secs(1)).1);
        rig.report(1, before);
    }
    assert!(matches!(events[..], [Event::Returned { .. }, Event::Returned { .. }]), "{events:?}");
}

#[test]
fn a_budget_that_is_spent_leaves_it_strict_until_it_is_full_again() {
    let (time, per) = (Duration::from_secs(60), Duration::from_secs(600));
    let mut rig = Rig::lapsing(Some(Budget { time, per }));
    rig.connect(1, "a");
    let (_, events) = rig.pass(TIMEOUT + Duration::from_secs(1));
    assert!(matches!(events[..], [Event::Lapsed { left: Some(left), .. }, _] if left == time), "{events:?}");
    let (reported, events) = rig.pass(time);
    assert_eq!(reported, positions(100, 100, 100));
    assert!(matches!(events[..], [Event::Spent { .. }]), "{events:?}");
    rig.here = 150;
    assert_eq!(rig.pass(per - time - TIMEOUT * 3), (positions(150, 100, 100), vec![]));
    let (reported, events) = rig.pass(TIMEOUT * 3);
    assert_eq!((reported, events.len()), (positions(150, 150, 150), 2), "{events:?}");
}

#[test]
fn what_was_spent_before_a_restart_counts() {
    let (time, per) = (Duration::from_secs(60), Duration::from_secs(600));
    let budget = Some(Budget { time, per });
    let mut rig = Rig::lapsing(budget);
    assert_eq!(rig.machine.spent(rig.now), None);
    rig.connect(1, "a");
    rig.pass(TIMEOUT + time);
    let spent = rig.machine.spent(rig.now).unwrap();
    let about = time - Duration::from_secs(1);
    assert!(spent.time >= about && spent.ago >= about, "{spent:?}");
    // The time in between counts for its age.
    let mut next = Rig::lapsing(budget);
    let ago = per - TIMEOUT * 3;
    next.machine.spent_before(super::Spent { ago, time }, next.now);
    next.connect(1, "a");
    assert_eq!(next.pass(TIMEOUT * 2), (positions(100, 0, 0), vec![]));
    let (reported, events) = next.pass(TIMEOUT * 2);
    assert_eq!(reported, positions(100, 100, 100));
    assert!(matches!(events[..], [Event::Lapsed { left: Some(left), .. }, _] if left == time), "{events:?}");
}

/// A standby that replays late on purpose, or none at all.
#[test]
fn a_rule_that_names_nobody_does_not_lapse() {
    let lapse = Lapse { timeout: TIMEOUT, to: Expression::local(), budget: None };
    let mut rig = Rig::new(Rules { lapse: Some(lapse), ..Rules::default() });
    assert_eq!(rig.pass(TIMEOUT * 2), (positions(100, 100, 0), vec![]));
    rig.connect(1, "late");
    rig.report(1, 50);
    assert_eq!(rig.pass(TIMEOUT * 2), (positions(100, 100, 50), vec![]));
}

#[test]
fn who_was_held_up_has_heard_nothing() {
    let mut rig = Rig::lapsing(None);
    rig.here = 150;
    rig.compose();
    rig.now += TIMEOUT * 10;
    assert_eq!((rig.compose(), rig.events()), (positions(150, 0, 0), vec![]));
}

#[test]
fn that_nothing_can_be_reported_is_told_where_somebody_waits() {
    let mut rig = Rig::new(Rules::default());
    let minute = Duration::from_secs(60);
    assert_eq!(rig.pass(minute).1, [], "nobody waits for this relay");
    rig.machine.set_awaited(true);
    rig.machine.set_awaited(false);
    assert!(rig.machine.was_awaited());
    rig.machine.begin_timeline();
    assert!(!rig.machine.was_awaited());
    rig.machine.set_awaited(true);
    assert_eq!(rig.pass(minute).1, [Event::Silent { level: Level::Apply }]);
    rig.connect(1, "s");
    rig.machine.report(1, Some(positions(10, 10, 0)));
    assert_eq!(rig.pass(minute).1, []);
    rig.report(1, 10);
    assert_eq!(rig.pass(minute).1, [Event::Heard { level: Level::Apply }]);
    rig.machine.disconnect(1);
    assert_eq!(rig.pass(minute).1, [Event::Silent { level: Level::Apply }]);
}

#[test]
fn who_is_away_for_a_minute_is_named_once() {
    let mut rig = Rig::new(rules("local", "ANY 1 (a, b)", "ALL (a)"));
    rig.connect(1, "b");
    let name = MemberName { role: None, name: "a".to_owned() };
    assert_eq!(rig.pass(Duration::from_secs(59)).1, []);
    assert_eq!(rig.pass(Duration::from_secs(120)).1, [Event::Absent { name: name.clone() }]);
    rig.connect(2, "a");
    assert_eq!(rig.events(), [Event::Came { name: name.clone() }]);
    rig.machine.disconnect(2);
    assert_eq!(rig.pass(Duration::from_secs(120)).1, [Event::Absent { name }]);
}

#[test]
fn how_a_consumer_counts_is_shown() {
    let mut rig = Rig::lapsing(None);
    rig.connect(1, "a");
    rig.connect(2, "b");
    assert_eq!((rig.machine.standing(1), rig.machine.standing(2)), (Standing::Sync(1), Standing::Async));
    rig.pass(TIMEOUT * 2);
    assert_eq!(rig.machine.standing(1), Standing::Async, "it has lapsed");
    let members = [(1, "repl", "a"), (2, "repl", "b")];
    rig.machine.set_rules(rules("local", "local", "ANY 1 (a, b) AND FIRST 1 (c, b)"), members.into_iter());
    assert_eq!((rig.machine.standing(1), rig.machine.standing(2)), (Standing::Quorum, Standing::Sync(2)));
}

// ---- against a model ----

#[derive(Clone, Debug)]
enum Step {
    Connect(u32, usize),
    Disconnect(u32),
    Report(u32, Option<[u64; 3]>),
    Here(u64, u64),
    Timeline,
    Rules(usize),
    Told(u64),
}

const NAMES: [&str; 4] = ["a", "B", "c", "d"];

const RULES: [[&str; 3]; 8] = [
    ["local", "local", "connected"],
    ["connected", "connected", "connected"],
    ["local", "ANY 1 (a, b)", "ALL (a, c)"],
    ["ANY 2 (a, b, c)", "FIRST 1 (c, b, a)", "FIRST 2 (a, b, d)"],
    ["ALL (a)", "ANY 1 (a, b) AND ANY 1 (c, d)", "connected AND ALL (d)"],
    ["local AND connected", "ANY 3 (a, b, c, d)", "local"],
    ["ANY 1 (repl/a, other/b)", "ALL (repl/b)", "ANY 1 (a)"],
    ["FIRST 2 (d, c)", "FIRST 1 (a)", "ANY 1 (a, b, c, d) AND connected"],
];

fn step() -> impl Strategy<Value = Step> {
    let (id, at) = (0u32..6, || 0u64..30);
    let has = prop::option::weighted(0.9, [at(), at(), at()]);
    prop_oneof![
        3 => (id.clone(), 0..NAMES.len()).prop_map(|(id, name)| Step::Connect(id, name)),
        1 => id.clone().prop_map(Step::Disconnect),
        12 => (id, has).prop_map(|(id, has)| Step::Report(id, has)),
        6 => (0u64..4, 0u64..4).prop_map(|(write, flush)| Step::Here(write, flush)),
        1 => Just(Step::Timeline),
        1 => (0..RULES.len()).prop_map(Step::Rules),
        1 => (0u64..30).prop_map(Step::Told),
    ]
}

/// Who is connected, in the order in which they came, and what each has.
#[derive(Default)]
struct Model {
    members: Vec<(u32, &'static str, Option<[u64; 3]>)>,
    here: (u64, u64),
    reported: [u64; 3],
}

impl Model {
    fn known(&self, level: usize, name: Option<&MemberName>) -> Vec<u64> {
        let carries = |of: &&(u32, &str, Option<[u64; 3]>)| {
            of.2.is_some() && name.is_none_or(|name| name.is_of("repl", of.1))
        };
        let all: Vec<u64> = self.members.iter().filter(carries).map(|of| of.2.unwrap()[level]).collect();
        match name {
            Some(_) => all.last().copied().into_iter().filter(|has| *has > 0).collect(),
            None => all.into_iter().filter(|has| *has > 0).collect(),
        }
    }

    /// The last position that this term is fulfilled at.
    fn term(&self, term: &Term, level: usize) -> u64 {
        let fulfilled = |at: u64| match term {
            Term::Local => true,
            Term::Connected => {
                let known = self.known(level, None);
                !known.is_empty() && known.iter().all(|has| *has >= at)
            }
            Term::Group(group) => {
                let has = group.members.iter().map(|name| self.known(level, Some(name)).first().copied());
                let enough = |has: &Option<u64>| has.is_some_and(|has| has >= at);
                match group.pick {
                    Pick::All => has.clone().all(|has| enough(&has)),
                    Pick::Any(count) => has.filter(enough).count() >= count,
                    Pick::First(count) => {
                        let first: Vec<u64> = has.flatten().take(count).collect();
                        first.len() == count && first.iter().all(|has| *has >= at)
                    }
                }
            }
        };
        // It can end only where somebody does.
        let ends = self.members.iter().filter_map(|member| Some(member.2?[level]));
        ends.chain([1000]).filter(|at| fulfilled(*at)).max().unwrap_or(0)
    }

    fn compose(&mut self, rules: &Rules) -> Positions {
        let mut most = u64::MAX;
        for (number, level) in Level::ALL.into_iter().enumerate() {
            let here = if number == 0 { self.here.0 } else { self.here.1 };
            let terms = rules.at(level).terms();
            let value = terms.iter().map(|term| self.term(term, number)).min().unwrap();
            most = most.min(value).min(here).max(self.reported[number].min(here));
            self.reported[number] = self.reported[number].max(most);
        }
        let [write, flush, apply] = self.reported;
        positions(write.min(self.here.0), flush.min(self.here.1), apply.min(self.here.1))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever comes: what is reported is what the rules say of all that is known, and never falls on a timeline. Where
    /// nothing is said to have moved, nothing has.
    #[test]
    fn the_machine_is_the_model(first in 0..RULES.len(), steps in prop::collection::vec(step(), 1..80)) {
        let parsed: Vec<Rules> = RULES.iter().map(|[w, f, a]| rules(w, f, a)).collect();
        let mut current = first;
        let now = Instant::now();
        let (mut machine, mut model) = (Acknowledger::new(parsed[first].clone(), now), Model::default());
        let mut before = Positions::default();
        for step in steps {
            let mut may_move = true;
            match step {
                Step::Connect(id, name) => {
                    if model.members.iter().all(|member| member.0 != id) {
                        machine.connect(id, "repl", NAMES[name]);
                        model.members.push((id, NAMES[name], None));
                        may_move = false;
                    }
                }
                Step::Disconnect(id) => {
                    may_move = machine.disconnect(id);
                    model.members.retain(|member| member.0 != id);
                }
                Step::Report(id, has) => {
                    may_move = machine.report(id, has.map(|[w, f, a]| positions(w, f, a)));
                    if let Some(member) = model.members.iter_mut().find(|member| member.0 == id) {
                        member.2 = has;
                    }
                }
                Step::Here(write, flush) => {
                    let write = model.here.0 + write;
                    model.here = (write, (model.here.1 + flush).min(write));
                }
                Step::Timeline => {
                    machine.begin_timeline();
                    before = Positions::default();
                    model.members.iter_mut().for_each(|member| member.2 = None);
                    (model.here, model.reported) = ((0, 0), [0; 3]);
                }
                Step::Rules(number) => {
                    let members: Vec<_> = model.members.iter().map(|(id, name, _)| (*id, "repl", *name)).collect();
                    machine.set_rules(parsed[number].clone(), members.into_iter());
                    current = number;
                }
                Step::Told(at) => {
                    machine.told_before(Lsn::new(at));
                    for number in [0, 1] {
                        model.reported[number] = model.reported[number].max(at);
                    }
                }
            }
            let composed = machine.compose(Lsn::new(model.here.0), Lsn::new(model.here.1), now);
            prop_assert_eq!(composed, model.compose(&parsed[current]));
            prop_assert!(may_move || composed == before, "{:?} {:?}", composed, before);
            prop_assert_eq!(composed.max(before), composed);
            prop_assert!(composed.apply <= composed.flush && composed.flush <= composed.write);
            before = composed;
        }
    }
}

/// Whatever is to lapse or not: who keeps back what is reported is known, and since when.
#[test]
fn who_keeps_back_what_is_reported_is_told() {
    let mut rig = Rig::new(rules("local", "ANY 1 (a, b)", "connected"));
    rig.connect(1, "a");
    rig.report(1, 100);
    let flush = |rig: &Rig| rig.machine.reports().swap_remove(1);
    rig.pass(Duration::from_secs(3));
    let report = flush(&rig);
    assert_eq!((report.reached, report.held_bytes, report.waiting), (lsn(100), 0, None));
    rig.here = 150;
    rig.pass(Duration::from_secs(3));
    rig.here = 180;
    rig.pass(Duration::from_secs(4));
    let report = flush(&rig);
    assert_eq!((report.level, report.reached, report.held_bytes), (Level::Flush, lsn(100), 80));
    assert!(report.waiting.is_some_and(|waiting| waiting >= Duration::from_secs(6)), "{report:?}");
    let names: Vec<_> = report.waits_for.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a", "b"]);
    // The oldest of it is there: what came later has waited for a shorter time.
    rig.report(1, 160);
    rig.compose();
    let report = flush(&rig);
    assert!(
        report.held_bytes == 20 && report.waiting.is_some_and(|it| it < Duration::from_secs(5)),
        "{report:?}"
    );
    rig.report(1, 180);
    rig.compose();
    assert_eq!(flush(&rig).waiting, None);
    // Nobody in particular is waited for there.
    rig.here = 200;
    rig.pass(Duration::from_secs(3));
    let apply = rig.machine.reports().swap_remove(2);
    assert_eq!((apply.held_bytes, apply.waiting), (20, None));
    assert_eq!(rig.machine.allowance(rig.now), None);
}

#[test]
fn what_is_left_of_a_budget_and_who_keeps_a_rule_from_returning_are_told() {
    let budget = Budget { time: Duration::from_secs(10), per: Duration::from_secs(3600) };
    let mut rig = Rig::lapsing(Some(budget));
    rig.connect(1, "a");
    rig.report(1, 50);
    rig.pass(TIMEOUT + Duration::from_secs(2));
    let report = rig.machine.reports().swap_remove(1);
    assert!(report.lapsed.is_some() && report.held_bytes == 0, "{report:?}");
    assert_eq!(report.waits_for.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a"]);
    let left = rig.machine.allowance(rig.now).unwrap().left;
    assert!(left < Duration::from_secs(10) && left > Duration::ZERO, "{left:?}");
    rig.pass(Duration::from_secs(12));
    assert_eq!(rig.machine.allowance(rig.now).unwrap().left, Duration::ZERO);
}
