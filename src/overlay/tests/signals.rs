//! Signals to consumers, in a cascade: what leaves this relay meets another one that numbers its consumers alike.

use super::*;

/// A relay with one consumer, which notes what is done to it.
struct OneConsumer {
    pid: u32,
    is_there: bool,
    signalled: Vec<Signal>,
}

impl OneConsumer {
    fn new(pid: u32) -> OneConsumer {
        OneConsumer { pid, is_there: true, signalled: Vec::new() }
    }
}

impl Relay for OneConsumer {
    fn slots(&mut self) -> Vec<Row> {
        Vec::new()
    }

    fn senders(&mut self) -> Vec<Row> {
        Vec::new()
    }

    fn has_slot(&mut self, _: &str) -> bool {
        false
    }

    fn consumer(&mut self, pid: u32) -> Option<String> {
        (pid == self.pid).then(|| "rep".to_owned())
    }

    fn signal(&mut self, pid: u32, user: &str, signal: Signal) -> bool {
        assert_eq!((pid, user), (self.pid, "rep"));
        self.signalled.push(signal);
        self.is_there
    }

    fn create_slot(&mut self, _: &str, _: bool, _: bool) -> Result<Option<Lsn>, PgError> {
        unreachable!("no slot is made")
    }

    fn drop_slot(&mut self, _: &str) -> Result<(), PgError> {
        unreachable!("no slot is dropped")
    }

    fn copy_slot(&mut self, _: &str, _: &str, _: Option<bool>) -> Result<(), PgError> {
        unreachable!("no slot is copied")
    }

    fn advance_slot(&mut self, _: &str, _: Lsn) -> Result<Lsn, PgError> {
        unreachable!("no slot is moved")
    }
}

const OURS: u32 = 4_194_310;
const OF_THE_RELAY_ABOVE: u32 = 4_194_400;

/// What an upstream says that has nothing against it: no other function, may execute, is a superuser.
const PERMITTED: [&str; 5] = ["f", "t", "t", "t", "t"];

fn answered(row: [&str; 5]) -> Vec<Option<Vec<u8>>> {
    row.map(|value| Some(value.into())).into()
}

/// What leaves the relay.
fn forwarded(text: &str, session: &SqlContext, row: [&str; 5], relay: &mut OneConsumer) -> String {
    let result = rewrite(text.as_bytes(), session, relay);
    let bytes = match (result.signal, result.text) {
        (Some(call), _) => call.act(&answered(row), relay),
        (None, Some(bytes)) => bytes,
        (None, None) => text.into(),
    };
    String::from_utf8(bytes).expect("ASCII")
}

/// Whether a relay above would execute the text on its own consumer.
fn is_executed_above(text: &str) -> bool {
    let both = [OURS, OF_THE_RELAY_ABOVE].map(OneConsumer::new);
    both.into_iter()
        .any(|mut above| rewrite(text.as_bytes(), &SqlContext::default(), &mut above).signal.is_some())
}

#[test]
fn a_consumer_of_ours_is_signalled_here() {
    let mut relay = OneConsumer::new(OURS);
    let text = format!("select pg_terminate_backend({OURS}, 5) as done");
    assert!(is_executed_above(&text), "the form is the one that is executed");
    let sent = forwarded(&text, &SqlContext::default(), PERMITTED, &mut relay);
    assert_eq!(sent, "select (SELECT true AS pg_terminate_backend) as done");
    assert_eq!(relay.signalled, [Signal::Terminate]);
}

#[test]
fn a_number_of_nobody_here_is_nobodys_above() {
    let settled = SqlContext::default();
    let unsettled = SqlContext { settled: false, ..settled };
    for (function, tail) in
        [("pg_terminate_backend", ""), ("pg_catalog.pg_terminate_backend", ", 0"), ("PG_CANCEL_BACKEND", "")]
    {
        let call = |pid: &str| format!("SELECT {function}({pid}{tail}) AS done;");
        let of = |pid: u32| call(&pid.to_string());
        let mut relay = OneConsumer::new(OURS);
        let disarmed = |pid: u32| call(&format!("({pid})"));
        let mut check = |pid: u32, session: &SqlContext, row| {
            let sent = forwarded(&of(pid), session, row, &mut relay);
            assert_eq!(sent, disarmed(pid));
            assert!(!is_executed_above(&sent), "{sent}");
        };
        // No consumer of this relay; not settled; another function is meant, or it may not be called.
        check(OF_THE_RELAY_ABOVE, &settled, PERMITTED);
        check(OURS, &unsettled, PERMITTED);
        check(OF_THE_RELAY_ABOVE, &unsettled, PERMITTED);
        check(OURS, &settled, ["t", "t", "t", "t", "t"]);
        check(OURS, &settled, ["f", "f", "t", "t", "t"]);
        assert_eq!(relay.signalled, []);
        // It has gone between question and answer.
        relay.is_there = false;
        let sent = forwarded(&of(OURS), &settled, PERMITTED, &mut relay);
        assert_eq!(sent, disarmed(OURS));
        assert_eq!(relay.signalled.len(), 1);
    }
}

#[test]
fn what_a_relay_above_does_not_execute_stays_as_it_is() {
    let settled = SqlContext::default();
    let without_overlay = SqlContext { overlay: false, ..settled };
    let mut relay = OneConsumer::new(OURS);
    let mut check = |text: &str, session: &SqlContext| {
        assert_eq!(forwarded(text, session, PERMITTED, &mut relay), text);
    };
    // A process of the server, and what is no number.
    check("select pg_terminate_backend(4194304)", &settled);
    check("select pg_terminate_backend(99999999999)", &settled);
    check("select pg_terminate_backend(pid) from pg_stat_activity", &settled);
    check(&format!("select pg_terminate_backend(({OF_THE_RELAY_ABOVE}))"), &settled);
    check(&format!("select pg_terminate_backend({OF_THE_RELAY_ABOVE}); select 1"), &settled);
    // The views are those of the relay above, and so are the numbers.
    check(&format!("select pg_terminate_backend({OF_THE_RELAY_ABOVE})"), &without_overlay);
}
