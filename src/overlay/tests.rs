//! Texts in, texts out, with a relay made up for the purpose.

use walrelay_proto::Lsn;

use super::*;
use crate::wire::{PgError, sqlstate};

mod functions;
mod lexing;
mod properties;
mod reading;
mod rows;
mod signals;

/// A relay with a slot `mine` and whatever is made, which notes what it is asked for.
#[derive(Default)]
struct Fake {
    asked: Vec<String>,
    /// How often its slot is listed, at least once.
    copies: usize,
}

impl Fake {
    fn note(&mut self, what: String) {
        self.asked.push(what);
    }
}

impl Relay for Fake {
    fn slots(&mut self) -> Vec<Row> {
        self.note("slots".to_owned());
        let row =
            Row::default().with("slot_name", "mine".to_owned()).with("slot_type", "physical".to_owned());
        vec![row; self.copies.max(1)]
    }

    fn senders(&mut self) -> Vec<Row> {
        self.note("senders".to_owned());
        vec![Row::default().with("pid", "7".to_owned()).with("application_name", "o'$j$ä\\\"😀".to_owned())]
    }

    fn has_slot(&mut self, name: &str) -> bool {
        name == "mine"
    }

    fn create_slot(&mut self, name: &str, reserve: bool, temporary: bool) -> Result<Option<Lsn>, PgError> {
        if name == "mine" {
            let text = "replication slot \"mine\" already exists";
            return Err(PgError::error(sqlstate::DUPLICATE_OBJECT, text).with_hint("It's $there$."));
        }
        self.note(format!("create {name} {reserve} {temporary}"));
        Ok(reserve.then(|| Lsn::new(0x300_0000)))
    }

    fn drop_slot(&mut self, name: &str) -> Result<(), PgError> {
        self.note(format!("drop {name}"));
        Ok(())
    }

    fn copy_slot(&mut self, from: &str, to: &str, temporary: Option<bool>) -> Result<(), PgError> {
        self.note(format!("copy {from} {to} {temporary:?}"));
        Ok(())
    }

    fn advance_slot(&mut self, name: &str, upto: Lsn) -> Result<Lsn, PgError> {
        self.note(format!("advance {name} {upto}"));
        Ok(upto)
    }
}

/// What an upstream says that has nothing against a call.
const PERMITTED: [&str; 4] = ["f", "t", "t", "f"];

fn answer(row: [&str; 4]) -> Vec<Option<Vec<u8>>> {
    row.map(|value| Some(value.into())).into()
}

/// The text forwarded instead of `text`, and what the relay was asked for.
fn rewritten_in(text: &str, session: &SqlContext) -> (String, Vec<String>) {
    let (text, _, relay) = judged(text, session, PERMITTED);
    (text, relay.asked)
}

/// The same, with what the upstream answers if it is asked, and the notice.
fn judged(text: &str, session: &SqlContext, row: [&str; 4]) -> (String, Option<PgError>, Fake) {
    let mut relay = Fake::default();
    let result = rewrite(text.as_bytes(), session, &mut relay);
    let bytes = match (result.call, result.text) {
        (Some(call), _) => call.act(&answer(row), &mut relay),
        (None, Some(bytes)) => bytes,
        (None, None) => text.into(),
    };
    (String::from_utf8(bytes).expect("text and insertions are UTF-8"), result.notice, relay)
}

fn rewritten(text: &str) -> String {
    rewritten_in(text, &SqlContext::default()).0
}

#[test]
fn a_text_does_not_grow_beyond_measure() {
    let mut relay = Fake { copies: 1000, ..Fake::default() };
    let mut rewritten = |count| {
        let text = "select * from pg_replication_slots; ".repeat(count);
        let bytes = rewrite(text.as_bytes(), &SqlContext::default(), &mut relay).text;
        String::from_utf8(bytes.expect("it reads a view of ours")).expect("text and insertions are UTF-8")
    };
    assert!(rewritten(10).len() > 10 * 1000 * 10);
    let refused = rewritten(5000);
    assert!(refused.starts_with("DO $raise$") && refused.len() < 1000, "{} bytes", refused.len());
    assert!(refused.contains("too often") && refused.contains("54000"), "{refused}");
}
