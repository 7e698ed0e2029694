//! The way of a text through the overlay.

use std::ops::Range;

use super::lex::{self, Kind, Statement};
use super::{Relay, Rewritten, SqlContext, literal, slot_functions, views};
use crate::wire::{PgError, sqlstate};

/// Most bytes put into one text: each statement gets all rows again, and a text may have very many statements.
const MOST: usize = 32 << 20;

/// A part of the text and what comes in its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Edit {
    pub(super) span: Range<usize>,
    pub(super) text: String,
}

/// Puts the relay's slots and consumers into the text of a Query or Parse message.
///
/// Every statement of the text is treated on its own; what lies between is left as it is. When a slot function
/// fails, the statements before it stay, and the text ends with one that raises the error, so that the
/// transaction fails as it must.
pub fn rewrite(text: &[u8], session: &SqlContext, relay: &mut dyn Relay) -> Rewritten {
    if !may_concern_us(text) {
        return Rewritten::Unchanged;
    }
    let (mut edits, mut inserted) = (Vec::new(), 0);
    for statement in lex::split(text, session.standard_conforming_strings) {
        match slot_functions::edits(text, &statement, session, relay) {
            Ok(more) => edits.extend(more),
            Err(error) => {
                let raise = match statement.tokens.iter().any(|token| token.kind == Kind::Parameter) {
                    true => literal::fail_to_parse(&error, session),
                    false => literal::raise(&error, session),
                };
                edits.push(Edit { span: first_byte(&statement)..text.len(), text: raise });
                break;
            }
        }
        if session.overlay {
            let views = views::edits(text, &statement, session, relay);
            inserted += views.iter().map(|edit| edit.text.len()).sum::<usize>();
            edits.extend(views);
        }
        if inserted > MOST {
            return Rewritten::Text(literal::raise(&too_long(), session).into_bytes());
        }
    }
    match edits.is_empty() {
        true => Rewritten::Unchanged,
        false => Rewritten::Text(apply(text, edits)),
    }
}

/// Whether [`rewrite`] may make, drop or move slots for this text, which waits for the disk.
pub fn may_change_slots(text: &[u8]) -> bool {
    may_concern_us(text) && slot_functions::may_be_called(text)
}

/// Instead of the whole text, none of which is run.
fn too_long() -> PgError {
    let text = "the text reads pg_replication_slots or pg_stat_replication too often";
    PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text).with_hint("Send its statements one by one.")
}

fn first_byte(statement: &Statement) -> usize {
    statement.tokens.first().map_or(statement.span.start, |token| token.span.start)
}

fn apply(text: &[u8], mut edits: Vec<Edit>) -> Vec<u8> {
    // Stable: what is inserted at one place stays in the order it came in.
    edits.sort_by_key(|edit| edit.span.start);
    let mut result = Vec::with_capacity(text.len() + edits.iter().map(|edit| edit.text.len()).sum::<usize>());
    let mut at = 0;
    for edit in edits {
        result.extend_from_slice(&text[at..edit.span.start.max(at)]);
        result.extend_from_slice(edit.text.as_bytes());
        at = edit.span.end.max(at);
    }
    result.extend_from_slice(&text[at..]);
    result
}

/// What all names of interest have in common.
const NEEDLE: &[u8] = b"replication";

/// Whether the text has one of the names in it, in whatever place: a search, without lexing.
fn may_concern_us(text: &[u8]) -> bool {
    occurrences(text).any(|at| {
        let has = |before: &[u8], after: &[u8]| {
            at.checked_sub(before.len()).is_some_and(|start| text[start..at].eq_ignore_ascii_case(before))
                && text[at + NEEDLE.len()..].get(..after.len()).is_some_and(|b| b.eq_ignore_ascii_case(after))
        };
        has(b"", b"_slot") || has(b"pg_stat_", b"")
    })
}

/// Where [`NEEDLE`] is, in any case (Horspool's search: most bytes are never looked at).
fn occurrences(text: &[u8]) -> impl Iterator<Item = usize> {
    let mut end = NEEDLE.len();
    std::iter::from_fn(move || {
        while let Some(window) = text.get(end.wrapping_sub(NEEDLE.len())..end) {
            let (at, last) = (end - NEEDLE.len(), window[NEEDLE.len() - 1].to_ascii_lowercase());
            // How far the needle can move: its last byte elsewhere in it under the byte seen.
            let before = &NEEDLE[..NEEDLE.len() - 1];
            end += before.iter().rev().position(|&byte| byte == last).map_or(NEEDLE.len(), |back| back + 1);
            if window.eq_ignore_ascii_case(NEEDLE) {
                return Some(at);
            }
        }
        None
    })
}
