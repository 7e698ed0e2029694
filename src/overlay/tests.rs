//! Texts in, texts out, with a relay made up for the purpose.

use walrelay_proto::Lsn;

use super::*;
use crate::wire::sqlstate;

mod functions;
mod lexing;
mod properties;
mod reading;
mod rows;

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

/// The text forwarded instead of `text`, and what the relay was asked for.
fn rewritten_in(text: &str, session: &SqlContext) -> (String, Vec<String>) {
    let mut relay = Fake::default();
    let result = match rewrite(text.as_bytes(), session, &mut relay) {
        Rewritten::Unchanged => text.to_owned(),
        Rewritten::Text(bytes) => String::from_utf8(bytes).expect("text and insertions are UTF-8"),
    };
    (result, relay.asked)
}

fn rewritten(text: &str) -> String {
    rewritten_in(text, &SqlContext::default()).0
}

#[test]
fn a_text_does_not_grow_beyond_measure() {
    let mut relay = Fake { copies: 1000, ..Fake::default() };
    let mut rewritten = |count| match rewrite(
        "select * from pg_replication_slots; ".repeat(count).as_bytes(),
        &SqlContext::default(),
        &mut relay,
    ) {
        Rewritten::Text(bytes) => String::from_utf8(bytes).expect("text and insertions are UTF-8"),
        Rewritten::Unchanged => panic!("it reads a view of ours"),
    };
    assert!(rewritten(10).len() > 10 * 1000 * 10);
    let refused = rewritten(5000);
    assert!(refused.starts_with("DO $raise$") && refused.len() < 1000, "{} bytes", refused.len());
    assert!(refused.contains("too often") && refused.contains("54000"), "{refused}");
}
