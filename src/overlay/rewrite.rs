//! The way of a text through the overlay.

use std::ops::Range;

use super::lex::{self, Kind, Statement, Token};
use super::signals::{self, Form, SignalCall};
use super::slot_functions::{self, Calls};
use super::views::{self, Rows};
use super::{Message, Relay, Rewritten, SqlContext, literal, notices};
use crate::wire::{PgError, sqlstate};

/// A part of the text and what comes in its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Edit {
    pub(super) span: Range<usize>,
    pub(super) text: String,
}

/// What may be put into one text, in bytes: a hundred statements with the rows of a thousand consumers in them, and no
/// more, because it is held as a whole.
const MOST_INSERTED: usize = 32 << 20;

/// Puts the relay's slots and consumers into the text of a Query or Parse message.
///
/// Every statement of the text is treated on its own; what lies between is left as it is. When a call has to be
/// refused, the statements before it stay, and the text ends with one that raises the error, so that the transaction
/// fails as it must. Takes time in proportion to the text's length.
pub fn rewrite(text: &[u8], session: &SqlContext, relay: &mut dyn Relay) -> Rewritten {
    if !may_concern_us(text) {
        return Rewritten::default();
    }
    if !is_certain(text, session) {
        let notice = (has_names(text) || hides_names(text)).then(notices::uncertain);
        return Rewritten { notice, ..Rewritten::default() };
    }
    Rewriting {
        text,
        session,
        relay,
        rows: Rows::in_text(),
        edits: Vec::new(),
        inserted: 0,
        result: Rewritten::default(),
    }
    .run()
}

/// Whether the server will read the text as we do: what a backslash means depends on a setting, and in some encodings
/// characters have bytes that look like ASCII.
fn is_certain(text: &[u8], session: &SqlContext) -> bool {
    (session.ascii_safe || text.is_ascii())
        && (session.standard_conforming_strings.is_some() || !text.contains(&b'\\'))
}

struct Rewriting<'a> {
    text: &'a [u8],
    session: &'a SqlContext,
    relay: &'a mut dyn Relay,
    /// Made once for a text.
    rows: Rows,
    edits: Vec<Edit>,
    inserted: usize,
    result: Rewritten,
}

impl Rewriting<'_> {
    fn run(mut self) -> Rewritten {
        let conforming = self.session.standard_conforming_strings.unwrap_or(true);
        let mut statements = lex::statements(self.text, conforming).peekable();
        let mut is_first = true;
        while let Some(statement) = statements.next() {
            let is_only = std::mem::take(&mut is_first) && statements.peek().is_none();
            if let Err(error) = self.statement(&statement, is_only) {
                self.refuse(&statement, &error);
                break;
            }
            if self.result.call.is_some() || self.result.signal.is_some() {
                return self.result;
            }
        }
        if !self.edits.is_empty() {
            self.result.text = Some(apply(self.text, self.edits));
        }
        self.result
    }

    fn statement(&mut self, statement: &Statement, is_only: bool) -> Result<(), PgError> {
        if is_only
            && self.session.overlay
            && let Some(form) = Form::of(self.text, statement)
        {
            self.result.signal = SignalCall::new(self.text, &form, self.session, self.relay);
            if self.result.signal.is_none() {
                self.insert(form.disarm(self.text));
            }
            return Ok(());
        }
        let found = slot_functions::look(self.text, statement, is_only, self.session, self.relay)?;
        match found {
            Calls::One(call) => {
                self.result.call = Some(*call);
                return Ok(());
            }
            Calls::Guarded(edits) => edits.into_iter().for_each(|edit| self.insert(edit)),
            Calls::Hidden => self.result.notice = Some(notices::acts_upstream()),
        }
        if self.session.overlay {
            self.views(statement)?;
        }
        match self.inserted <= MOST_INSERTED {
            true => Ok(()),
            false => Err(too_long()),
        }
    }

    fn views(&mut self, statement: &Statement) -> Result<(), PgError> {
        let Some(reading) = views::look(self.text, &statement.tokens) else {
            let mut code = slot_functions::code_in(self.text, &statement.tokens, self.session);
            if code.any(|code| views::look(&code.text, &code.tokens).is_some()) {
                self.result.notice.get_or_insert_with(notices::rows_of_the_upstream);
            }
            return Ok(());
        };
        if signals::are_in(self.text, &statement.tokens) {
            self.result.notice.get_or_insert_with(notices::signals_nobody);
        }
        let Some(place) = &reading.place else {
            self.result.notice.get_or_insert_with(notices::rows_of_the_upstream);
            return Ok(());
        };
        match self.session.message {
            Message::Simple => {}
            // A COPY has no parameters, and its rows would be those of now for ever.
            Message::Parse { .. } if place.is_copy => {
                self.result.notice.get_or_insert_with(notices::rows_of_the_upstream);
                return Ok(());
            }
            Message::Parse { .. } if !self.session.takes_rows => {
                self.result.notice.get_or_insert_with(notices::too_many_statements);
                return Ok(());
            }
            Message::Parse { types } => {
                let number = highest_parameter(self.text, &statement.tokens).max(u32::from(types)) + 1;
                if number > u32::from(u16::MAX) {
                    return Err(too_long());
                }
                self.result.rows = Some(reading.parameter(self.session));
                self.rows = Rows::Parameter(number);
            }
        }
        let edits = reading.edits(place, &mut self.rows, self.session, self.relay);
        edits.into_iter().for_each(|edit| self.insert(edit));
        Ok(())
    }

    fn insert(&mut self, edit: Edit) {
        self.inserted += edit.text.len();
        self.edits.push(edit);
    }

    fn refuse(&mut self, statement: &Statement, error: &PgError) {
        let raise = match statement.tokens.iter().any(|token| token.kind == Kind::Parameter) {
            true => literal::fail_to_parse(error, self.session),
            false => literal::raise(error, self.session),
        };
        // Of a text that is too long as a whole, nothing is run.
        let is_whole = error.sqlstate == sqlstate::PROGRAM_LIMIT_EXCEEDED;
        let start = if is_whole { 0 } else { first_byte(statement) };
        self.edits.retain(|edit| edit.span.start < start);
        self.edits.push(Edit { span: start..self.text.len(), text: raise });
        self.result.rows = None;
    }
}

fn too_long() -> PgError {
    let text = "the text reads pg_replication_slots or pg_stat_replication too often";
    PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text).with_hint("Send its statements one by one.")
}

fn highest_parameter(text: &[u8], tokens: &[Token]) -> u32 {
    let parameters = tokens.iter().filter(|token| token.kind == Kind::Parameter);
    let number = |token: &Token| std::str::from_utf8(&text[token.span.start + 1..token.span.end]).ok();
    // What is no number here is none to the server, which says so.
    parameters
        .map(|token| number(token).and_then(|digits| digits.parse().ok()).unwrap_or(u32::MAX / 2))
        .max()
        .unwrap_or(0)
}

fn first_byte(statement: &Statement) -> usize {
    statement.tokens.first().map_or(statement.span.start, |token| token.span.start)
}

/// The text with all edits.
pub(super) fn apply(text: &[u8], mut edits: Vec<Edit>) -> Vec<u8> {
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
pub fn may_concern_us(text: &[u8]) -> bool {
    // Of a process, the number of which is short.
    if text.len() < SHORT && occurrences(text, signals::NEEDLE).next().is_some() {
        return true;
    }
    has_names(text) || may_be_escaped(text) || executes_code(text)
}

/// Whether it may be a DO, the code of which can be written in many ways.
fn executes_code(text: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..);
    occurrences(text, b"do").any(|at| {
        let behind = &text[at + 2..];
        let behind = &behind[behind.iter().take_while(|byte| b" \t\n\r\x0b\x0c".contains(byte)).count()..];
        // ON CONFLICT has something else behind it.
        let begins = |start: &[u8]| behind.get(..start.len()).is_some_and(|b| b.eq_ignore_ascii_case(start));
        !text[..at].last().is_some_and(is_part)
            && [&b"'"[..], b"e'", b"u&'", b"$", b"language", b"--", b"/*"].iter().any(|start| begins(start))
    })
}

fn has_names(text: &[u8]) -> bool {
    occurrences(text, NEEDLE).any(|at| {
        let has = |before: &[u8], after: &[u8]| {
            at.checked_sub(before.len()).is_some_and(|start| text[start..at].eq_ignore_ascii_case(before))
                && text[at + NEEDLE.len()..].get(..after.len()).is_some_and(|b| b.eq_ignore_ascii_case(after))
        };
        has(b"", b"_slot") || has(b"pg_stat_", b"")
    })
}

/// Whether there is a name that may have escapes in it.
fn may_be_escaped(text: &[u8]) -> bool {
    let first = occurrences(text, b"u&\"").next();
    // Once: what is not behind the first is behind none.
    first.is_some_and(|at| {
        text[at..].contains(&b'\\') || occurrences(&text[at..], b"uescape").next().is_some()
    })
}

/// Whether one of the names is written so, as far as that can be told.
fn hides_names(text: &[u8]) -> bool {
    let is_one = |token: &Token| {
        let names = views::names().into_iter().chain(slot_functions::names());
        token.kind == Kind::UnicodeQuoted
            && names.into_iter().any(|name| lex::is_identifier(text, token, name))
    };
    lex::statements(text, true).any(|statement| statement.tokens.iter().any(is_one))
}

/// Longest text that may be nothing but the signal to a consumer.
const SHORT: usize = 1000;

/// Where the needle is, in any case (Horspool's search: most bytes are never looked at).
fn occurrences<'a>(text: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let mut end = needle.len();
    std::iter::from_fn(move || {
        while let Some(window) = text.get(end.wrapping_sub(needle.len())..end) {
            let (at, last) = (end - needle.len(), window[needle.len() - 1].to_ascii_lowercase());
            // How far the needle can move: its last byte elsewhere in it under the byte seen.
            let before = &needle[..needle.len() - 1];
            end += before.iter().rev().position(|&byte| byte == last).map_or(needle.len(), |back| back + 1);
            if window.eq_ignore_ascii_case(needle) {
                return Some(at);
            }
        }
        None
    })
}
