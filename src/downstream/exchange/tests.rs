//! Conversations with a server that is made up.

mod model;

use proptest::prelude::*;
use walrelay_proto::Lsn;

use super::*;
use crate::overlay;

fn session() -> Exchange {
    Exchange::new(true, Some("UTF8"))
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// What the client gets of these answers, and whether everything has been answered then.
fn answered(exchange: &mut Exchange, kinds: &[u8]) -> (Vec<u8>, bool) {
    let bytes: Vec<_> = kinds.iter().flat_map(|kind| message(*kind, b"I")).collect();
    let mut output = BytesMut::new();
    Filter::default().feed(&bytes, exchange, &mut output);
    (output.to_vec(), exchange.is_quiet())
}

#[test]
fn what_a_server_overlooks_does_not_stop_a_session() {
    let mut exchange = session();
    (0..=MOST_EXPECTED).for_each(|_| exchange.send(b'c'));
    assert!(!exchange.is_full() && exchange.is_quiet());
}

/// Whether a conversation is quiet behind it.
fn is_quiet(sent: &[u8], answers: &[u8]) -> bool {
    let mut exchange = session();
    sent.iter().for_each(|kind| exchange.send(*kind));
    answered(&mut exchange, answers).1
}

#[test]
fn quiet_is_when_everything_has_been_answered() {
    for (sent, answers, quiet) in [
        (&b""[..], &b""[..], true),
        (b"Q", b"", false),
        (b"Q", b"TDDCTDC", false),
        (b"Q", b"TDDCTDCNSZ", true),
        (b"QQ", b"EZ", false),
        (b"QQ", b"EZCZ", true),
        (b"PBDES", b"12TDCZ", true),
        (b"PBDE", b"12TDC", false),
        // Skipped up to the Sync, a Query among them.
        (b"PBQDES", b"EZ", true),
        (b"PBS", b"1EZ", true),
        (b"PBSPBES", b"1EZ", false),
        // The Sync among the data is overlooked, whenever it was sent.
        (b"PBESdcS", b"12GCZ", true),
        (b"PBESdfS", b"12GEZ", true),
        (b"Qdc", b"GCZ", true),
        (b"F", b"VZ", true),
    ] {
        assert_eq!(is_quiet(sent, answers), quiet, "{} {}", sent.escape_ascii(), answers.escape_ascii());
    }
}

#[test]
fn what_was_not_expected_makes_nothing_certain() {
    let mut exchange = session();
    assert!(!answered(&mut exchange, b"Z").1);
    exchange.send(b'Q');
    assert!(!answered(&mut exchange, b"Z").1);
}

#[test]
fn settings_are_those_reported() {
    let mut exchange = session();
    let mut output = BytesMut::new();
    let mut report = |exchange: &mut Exchange, body: &[u8]| {
        Filter::default().feed(&message(b'S', body), exchange, &mut output);
        let moment = exchange.moment(None);
        (moment.standard_conforming_strings, moment.ascii_safe)
    };
    assert_eq!(report(&mut exchange, b"client_encoding\0SJIS\0"), (Some(true), false));
    assert_eq!(report(&mut exchange, b"client_encoding\0EUC_JP\0"), (Some(true), true));
    assert_eq!(report(&mut exchange, b"standard_conforming_strings\0off\0"), (Some(false), true));
    exchange.send(b'Q');
    let moment = exchange.moment(None);
    assert_eq!((moment.standard_conforming_strings, moment.ascii_safe), (None, false));
}

#[test]
fn answers_to_questions_of_ours_are_not_passed_on() {
    let mut exchange = session();
    let mut answer = exchange.ask();
    let row = message(b'D', b"\0\x02\0\0\0\x01t\xff\xff\xff\xff");
    let bytes = [message(b'T', b""), row, message(b'N', b"notice"), message(b'Z', b"T")].concat();
    let mut output = BytesMut::new();
    Filter::default().feed(&bytes, &mut exchange, &mut output);
    assert_eq!(output, message(b'N', b"notice"));
    let answer = answer.try_recv().unwrap();
    assert_eq!((answer.row, answer.failed), (Some(vec![Some(b"t".to_vec()), None]), false));
    // But errors are, without the place in a text that is not the client's.
    let mut answer = exchange.ask();
    let bytes = [message(b'E', b"SERROR\0P7\0Mno\0\0"), message(b'Z', b"E")].concat();
    Filter::default().feed(&bytes, &mut exchange, &mut output);
    let told = [message(b'N', b"notice"), message(b'E', b"SERROR\0Mno\0\0"), message(b'Z', b"E")].concat();
    assert_eq!(output, told);
    assert!(answer.try_recv().unwrap().failed && exchange.moment(None).has_failed);
}

/// A parameter for the rows of a view.
fn rows() -> RowsParameter {
    struct Nothing;
    impl overlay::Relay for Nothing {
        fn slots(&mut self) -> Vec<overlay::Row> {
            Vec::new()
        }

        fn senders(&mut self) -> Vec<overlay::Row> {
            Vec::new()
        }

        fn has_slot(&mut self, _: &str) -> bool {
            false
        }

        fn create_slot(&mut self, _: &str, _: bool, _: bool) -> Result<Option<Lsn>, PgError> {
            Ok(None)
        }

        fn drop_slot(&mut self, _: &str) -> Result<(), PgError> {
            Ok(())
        }

        fn copy_slot(&mut self, _: &str, _: &str, _: Option<bool>) -> Result<(), PgError> {
            Ok(())
        }

        fn advance_slot(&mut self, _: &str, upto: Lsn) -> Result<Lsn, PgError> {
            Ok(upto)
        }
    }
    let message = overlay::Message::Parse { types: 0 };
    let context = overlay::SqlContext { message, ..overlay::SqlContext::default() };
    let rewritten = overlay::rewrite(b"table pg_replication_slots", &context, &mut Nothing);
    rewritten.rows.expect("it is read")
}

fn feed(exchange: &mut Exchange, messages: &[(u8, &[u8])]) {
    let bytes: Vec<_> = messages.iter().flat_map(|(kind, body)| message(*kind, body)).collect();
    let mut output = BytesMut::new();
    Filter::default().feed(&bytes, exchange, &mut output);
    assert_eq!(&output[..], bytes, "all of it passes");
}

#[test]
fn deallocated_statements_are_forgotten() {
    let with = |names: &[&str]| {
        let mut exchange = session();
        names.iter().for_each(|name| exchange.parse(name.as_bytes(), b"", Some(rows())));
        exchange.send(b'S');
        let mut answers: Vec<(u8, &[u8])> = vec![(b'1', b""); names.len()];
        answers.push((b'Z', b"I"));
        feed(&mut exchange, &answers);
        exchange
    };
    let known = |exchange: &Exchange| ["", "a", "b"].map(|name| exchange.rows_of(name.as_bytes()).is_some());
    for tag in [&b"DEALLOCATE ALL\0"[..], b"DISCARD ALL\0"] {
        let mut exchange = with(&["", "a", "b"]);
        exchange.send(b'Q');
        // It is parsed behind the other, and before the answer has come.
        exchange.parse(b"b", b"", Some(rows()));
        exchange.send(b'S');
        feed(&mut exchange, &[(b'C', tag), (b'Z', b"I")]);
        assert_eq!(known(&exchange), [true, false, true]);
        // It fails: there is no other any more.
        feed(&mut exchange, &[(b'E', b"\0"), (b'Z', b"I")]);
        assert_eq!(known(&exchange), [true, false, false]);
        assert!(exchange.is_quiet());
    }
    let mut exchange = with(&["a", "b"]);
    exchange.query(deallocated(b"deallocate a"));
    feed(&mut exchange, &[(b'C', b"DEALLOCATE\0"), (b'Z', b"I")]);
    assert_eq!(known(&exchange), [false, false, true]);
    // In the extended protocol, behind another command.
    let mut exchange = with(&["a", "b"]);
    exchange.parse(b"", b"deallocate a", None);
    exchange.bind(b"", b"");
    exchange.execute(b"");
    exchange.send(b'S');
    feed(&mut exchange, &[(b'1', b""), (b'2', b""), (b'C', b"DEALLOCATE\0"), (b'Z', b"I")]);
    assert_eq!(known(&exchange), [false, false, true]);
    assert!(exchange.is_quiet());
    // One that fails, and one that is not known.
    exchange.query(deallocated(b"deallocate b"));
    feed(&mut exchange, &[(b'E', b"\0"), (b'Z', b"I")]);
    exchange.send(b'Q');
    feed(&mut exchange, &[(b'C', b"DEALLOCATE\0"), (b'Z', b"I")]);
    assert_eq!(known(&exchange), [false, false, true]);
}

#[test]
fn a_bind_gets_a_parameter_more() {
    let with = |body: &[u8]| bind_with(&message(b'B', body), b"rows").map(|new| new.to_vec());
    let expected = |body: &[u8]| Some(message(b'B', body));
    assert_eq!(with(b"p\0s\0\0\0\0\0\0\0"), expected(b"p\0s\0\0\0\0\x01\0\0\0\x04rows\0\0"));
    assert_eq!(
        with(b"\0\0\0\x01\0\x01\0\x01\xff\xff\xff\xff\0\0"),
        expected(b"\0\0\0\x01\0\x01\0\x02\xff\xff\xff\xff\0\0\0\x04rows\0\0")
    );
    assert_eq!(
        with(b"\0\0\0\x02\0\x01\0\0\0\x02\0\0\0\x01a\0\0\0\0\0\x01\0\x01"),
        expected(b"\0\0\0\x03\0\x01\0\0\0\0\0\x03\0\0\0\x01a\0\0\0\0\0\0\0\x04rows\0\x01\0\x01")
    );
    assert_eq!(with(b"\0\0\0\0\0\x01\0\0\0\x09a"), None);
}

proptest! {
    #[test]
    fn cuts_make_no_difference(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1_usize..9) {
        let feed = |step: usize| {
            let (mut exchange, mut filter, mut output) = (session(), Filter::default(), BytesMut::new());
            b"QPBDESQ".iter().for_each(|kind| exchange.send(*kind));
            bytes.chunks(step).for_each(|part| filter.feed(part, &mut exchange, &mut output));
            (output, exchange.is_quiet())
        };
        prop_assert_eq!(feed(step), feed(200));
    }

    #[test]
    fn no_bind_is_too_strange(body in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = bind_with(&message(b'B', &body), b"rows");
    }
}

/// Bytes of all names that a session keeps.
fn bytes_kept(exchange: &Exchange) -> usize {
    let portals = exchange.portals.iter().map(|(portal, name)| portal.len() + name.len());
    let expected = exchange.expected.iter().map(|expected| match expected {
        Expected::Parse(name) | Expected::Close(name) => name.as_ref().map_or(0, |name| name.len()),
        Expected::Describe { statement: name } | Expected::Query { deallocates: name } => {
            name.as_ref().map_or(0, |name| name.len())
        }
        Expected::Execute { portal } => portal.as_ref().map_or(0, |name| name.len()),
        Expected::Bind(Some(bound)) => {
            bound.portal.len() + bound.statement.as_ref().map_or(0, |name| name.len())
        }
        _ => 0,
    });
    exchange.statements.bytes() + portals.sum::<usize>() + expected.sum::<usize>()
}

#[test]
fn long_names_cost_no_more_than_short_ones() {
    let long = "x".repeat(1 << 20);
    let most = 2 * 64 * MOST_EXPECTED;
    for text in [format!("deallocate {long}"), format!("deallocate {}", &long[..1000])] {
        let mut exchange = session();
        exchange.parse(long.as_bytes(), text.as_bytes(), None);
        exchange.bind(long.as_bytes(), long.as_bytes());
        while !exchange.is_full() {
            exchange.execute(long.as_bytes());
        }
        assert!(bytes_kept(&exchange) < most, "{} bytes", bytes_kept(&exchange));
    }
    for send in [
        |exchange: &mut Exchange, name: &[u8]| exchange.parse(name, b"deallocate a", None),
        |exchange: &mut Exchange, name: &[u8]| exchange.parse(name, b"", Some(rows())),
        |exchange: &mut Exchange, name: &[u8]| exchange.bind(name, name),
        |exchange: &mut Exchange, name: &[u8]| exchange.execute(name),
        |exchange: &mut Exchange, name: &[u8]| exchange.close_statement(name),
        |exchange: &mut Exchange, name: &[u8]| exchange.describe_statement(name),
    ] {
        let mut exchange = session();
        exchange.parse(b"d", b"deallocate a", None);
        for number in 0.. {
            let name = format!("{number:060}{long}", long = &long[..1000]);
            send(&mut exchange, name.as_bytes());
            if exchange.is_full() {
                break;
            }
        }
        assert!(bytes_kept(&exchange) < most, "{} bytes", bytes_kept(&exchange));
    }
}

#[test]
fn a_session_has_only_so_many_statements_of_interest() {
    let mut exchange = session();
    let takes_rows = |exchange: &Exchange, name: &str| exchange.moment(Some(name.as_bytes())).takes_rows;
    for number in 0..1000 {
        assert!(takes_rows(&exchange, "new"), "{number}");
        exchange.parse(format!("{number}").as_bytes(), b"", Some(rows()));
    }
    assert!(!takes_rows(&exchange, "new") && takes_rows(&exchange, "0"));
    exchange.parse(b"new", b"deallocate a", None);
    assert!(!exchange.has_deallocations());
    exchange.send(b'S');
    feed(&mut exchange, &[(b'E', b"\0"), (b'Z', b"I")]);
    assert!(takes_rows(&exchange, "new") && !exchange.has_statements());
}

#[test]
fn portals_of_deallocations_are_few() {
    let mut exchange = session();
    exchange.parse(b"d", b"deallocate a", None);
    feed(&mut exchange, &[(b'1', b"")]);
    for number in 0..1000_u32 {
        exchange.bind(&number.to_be_bytes(), b"d");
        feed(&mut exchange, &[(b'2', b"")]);
    }
    assert_eq!(exchange.portals.len(), MOST_PORTALS);
    exchange.send(b'S');
    feed(&mut exchange, &[(b'Z', b"I")]);
    assert!(exchange.portals.is_empty());
}
