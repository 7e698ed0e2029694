//! Functions on replication slots.
//!
//! A call is executed here only if there is no doubt about it: its text is a Query of its own, in ASCII and without
//! backslashes, so that no setting and no encoding can give it another meaning; it is that call alone, with constants;
//! everything in front of it has been answered; and the upstream, asked in the same session and transaction, finds
//! nothing wrong with the text and nothing that keeps the role from calling that very function ([`SlotCall`]).
//!
//! Any other call is refused where the text is certain to be executed: it must not reach the upstream's slots. Names that are
//! no slots of the relay may be logical slots of the upstream, which the relay shows: calls on them pass, with a guard
//! that lets them meet nothing but logical slots.

mod arguments;
mod call;

use std::ops::Range;

use walrelay_proto::SlotName;

use crate::wire::{PgError, sqlstate};

use self::arguments::Call;
pub use self::call::SlotCall;
use super::lex::{self, Kind, Statement, Token};
use super::rewrite::Edit;
use super::views::{closes, qualified_from};
use super::{Message, Relay, SqlContext, literal};

/// The functions of interest. Of those on logical slots alone only the names that they make matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Function {
    Create,
    Drop,
    Copy,
    Advance,
}

impl Function {
    const ALL: [Function; 4] = [Function::Create, Function::Drop, Function::Copy, Function::Advance];

    fn name(self) -> &'static str {
        match self {
            Function::Create => "pg_create_physical_replication_slot",
            Function::Drop => "pg_drop_replication_slot",
            Function::Copy => "pg_copy_physical_replication_slot",
            Function::Advance => "pg_replication_slot_advance",
        }
    }

    /// Whether the function is also for logical slots.
    fn knows_logical_slots(self) -> bool {
        matches!(self, Function::Drop | Function::Advance)
    }

    fn hint(self) -> &'static str {
        match self {
            Function::Create | Function::Copy => {
                "Send it alone as a simple query with constant arguments, or use CREATE_REPLICATION_SLOT on a \
                 replication connection."
            }
            Function::Drop => {
                "Send it alone as a simple query with constant arguments, or use DROP_REPLICATION_SLOT on a \
                 replication connection."
            }
            Function::Advance => "Send it alone as a simple query with constant arguments.",
        }
    }

    fn refuse(self, why: &str) -> PgError {
        let text = format!("{}() cannot be executed by walrelay {why}", self.name());
        PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text).with_hint(self.hint())
    }
}

/// What the functions are called.
pub(super) fn names() -> [&'static str; 4] {
    Function::ALL.map(Function::name)
}

/// What is to be done about the calls in a statement.
pub(super) enum Calls {
    /// It is one that may be executed here.
    One(Box<SlotCall>),
    /// They pass, with these changes.
    Guarded(Vec<Edit>),
    /// It makes a routine that calls them, some day.
    Hidden,
}

/// Looks for calls in a statement; the error is that of the first which has to be refused. `is_only`: there is nothing else
/// in the text.
pub(super) fn look(
    text: &[u8],
    statement: &Statement,
    is_only: bool,
    session: &SqlContext,
    relay: &mut dyn Relay,
) -> Result<Calls, PgError> {
    let tokens = &statement.tokens;
    if let Some(name) = made_logical(text, tokens, relay) {
        return Err(already_exists(&name));
    }
    let found = calls(text, tokens);
    if found.is_empty() {
        return body(text, tokens, session);
    }
    if executes_nothing(text, tokens) {
        return Ok(Calls::Guarded(Vec::new()));
    }
    if found.len() == MOST_CALLS {
        return Err(found[0].function.refuse("together with other statements or calls"));
    }
    let mut edits = Vec::new();
    for call in &found {
        if !session.overlay {
            return Err(call.function.refuse("because its slots are not shown here"));
        }
        if call.is_guarded(text, session) {
            continue;
        }
        match guarded(call, session, relay) {
            Some(edit) => edits.push(edit),
            None if found.len() == 1 && is_only => {
                return executable(text, statement, call, session).map(|call| Calls::One(Box::new(call)));
            }
            None => return Err(call.function.refuse("together with other statements or calls")),
        }
    }
    Ok(Calls::Guarded(edits))
}

/// Calls in the order in which they stand.
fn calls(text: &[u8], tokens: &[Token]) -> Vec<Call> {
    let mut closing = None;
    let mut call = |at: usize| {
        let is = |function: &Function| lex::is_identifier(text, &tokens[at], function.name());
        let function = Function::ALL.into_iter().find(is)?;
        (tokens.get(at + 1)?.kind == Kind::Open).then_some(())?;
        let start = qualified_from(text, tokens, at)?;
        let first = start.unwrap_or(at);
        // `… FUNCTION name(…)` is the name of one.
        let named = ["function", "routine", "procedure"];
        let before = first.checked_sub(1).map(|before| &tokens[before]);
        if before.is_some_and(|before| named.iter().any(|word| lex::is_word(text, before, word))) {
            return None;
        }
        let close = closing.get_or_insert_with(|| closes(tokens))[at + 1];
        Some(arguments::parse(text, tokens, function, first..at + 1, close, start.is_some()))
    };
    (0..tokens.len()).filter_map(&mut call).take(MOST_CALLS).collect()
}

/// Functions that make logical slots, with the parameter that is the new one's name.
const MAKERS: [(&str, (usize, &str)); 2] = [
    ("pg_create_logical_replication_slot", (0, "slot_name")),
    ("pg_copy_logical_replication_slot", (1, "dst_slot_name")),
];

/// The name of a slot of the relay that a logical slot is to be made with, if that is certain.
fn made_logical(text: &[u8], tokens: &[Token], relay: &mut dyn Relay) -> Option<String> {
    let maker = |at: usize| {
        let (_, parameter) = MAKERS.iter().find(|(name, _)| lex::is_identifier(text, &tokens[at], name))?;
        let is_call = tokens.get(at + 1).is_some_and(|open| open.kind == Kind::Open);
        (is_call && qualified_from(text, tokens, at).is_some()).then_some((at, *parameter))
    };
    let mut makers = (0..tokens.len()).filter_map(maker).take(MOST_CALLS).peekable();
    if makers.peek().is_none() || executes_nothing(text, tokens) {
        return None;
    }
    let closes = closes(tokens);
    let name = |(at, parameter)| {
        let close = closes[at + 1];
        (close < tokens.len()).then(|| arguments::name_argument(text, tokens, at + 2..close, parameter))?
    };
    makers.filter_map(name).find(|name| relay.has_slot(name))
}

/// PG: `ReplicationSlotCreate`
pub(super) fn already_exists(name: &str) -> PgError {
    PgError::error(sqlstate::DUPLICATE_OBJECT, format!("replication slot \"{name}\" already exists"))
}

/// Each call costs time in proportion to the statement, so there must not be any number of them.
const MOST_CALLS: usize = 64;

/// Statements about functions, and plans that are only shown.
fn executes_nothing(text: &[u8], tokens: &[Token]) -> bool {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| lex::is_word(text, token, word));
    ["grant", "revoke", "comment"].iter().any(|word| is(0, word)) || is(0, "explain") && is(1, "select")
}

/// What the code in a statement calls. Without a string of code in it there is nothing to find.
fn body(text: &[u8], tokens: &[Token], session: &SqlContext) -> Result<Calls, PgError> {
    let is_do = tokens.first().is_some_and(|first| lex::is_word(text, first, "do"));
    for code in code_in(text, tokens, session) {
        match code.called() {
            Some(function) if is_do => return Err(function.refuse("inside of a DO block")),
            Some(_) => return Ok(Calls::Hidden),
            None => {}
        }
    }
    Ok(Calls::Guarded(Vec::new()))
}

/// A string of code.
pub(super) struct Code {
    pub(super) text: Vec<u8>,
    pub(super) tokens: Vec<Token>,
    conforming: bool,
}

impl Code {
    /// A function that it calls.
    fn called(&self) -> Option<Function> {
        let called = |text: &[u8], tokens: &[Token]| calls(text, tokens).first().map(|call| call.function);
        called(&self.text, &self.tokens).or_else(|| {
            let mut strings = self.executed();
            strings.find_map(|text| called(&text, &lex::significant(&text, self.conforming)))
        })
    }

    /// The strings that may be a part of what it executes as texts of SQL.
    fn executed(&self) -> impl Iterator<Item = Vec<u8>> + use<'_> {
        let executes = self.tokens.iter().any(|token| lex::is_word(&self.text, token, "execute"));
        let tokens = if executes { &self.tokens[..] } else { &[] };
        tokens.iter().filter_map(|token| lex::string_bytes(&self.text, token))
    }
}

/// The strings of a DO, which executes them, or of a CREATE FUNCTION or PROCEDURE, which does not yet. With settings that are
/// not certain, in every way that the server may read them.
pub(super) fn code_in<'a>(
    text: &'a [u8],
    tokens: &'a [Token],
    session: &SqlContext,
) -> impl Iterator<Item = Code> + use<'a> {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| lex::is_word(text, token, word));
    let makes = is(0, "create") && (1..4).any(|at| is(at, "function") || is(at, "procedure"));
    let tokens = if is(0, "do") || makes { tokens } else { &[] };
    let readings = match session.standard_conforming_strings {
        Some(true) => &[true][..],
        Some(false) => &[false],
        None => &[true, false],
    };
    tokens.iter().filter_map(|token| lex::string_bytes(text, token)).flat_map(|text| {
        readings.iter().map(move |&conforming| {
            let tokens = lex::significant(&text, conforming);
            Code { text: text.clone(), tokens, conforming }
        })
    })
}

/// The call, if it can be executed.
fn executable(
    text: &[u8],
    statement: &Statement,
    call: &Call,
    session: &SqlContext,
) -> Result<SlotCall, PgError> {
    let function = call.function;
    if session.message != Message::Simple {
        return Err(function.refuse("in a statement that is prepared"));
    }
    if call.arguments.is_none() {
        return Err(function.refuse("unless its arguments are constants"));
    }
    if !text.is_ascii() || text.contains(&b'\\') {
        return Err(function.refuse("in a text with characters beyond ASCII or with backslashes"));
    }
    if !session.settled {
        return Err(function.refuse("behind statements that have failed or have not been answered"));
    }
    SlotCall::new(text, statement, call, session)
        .ok_or_else(|| function.refuse("except as the only item of a plain SELECT list or FROM list"))
}

/// A call on a name that is no slot of ours, made safe for the upstream.
fn guarded(call: &Call, session: &SqlContext, relay: &mut dyn Relay) -> Option<Edit> {
    let name = call.slot.as_ref().filter(|_| call.function.knows_logical_slots())?;
    if relay.has_slot(&name.value) {
        return None;
    }
    Some(Edit { span: name.span.clone(), text: guard(&name.value, session) })
}

/// How a guard begins, up to the name.
const GUARD: &str = "(SELECT CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots AS s \
                     WHERE s.slot_name OPERATOR(pg_catalog.=) ";

/// The name if it is that of a logical slot, else one that no slot can have: the error that follows is the right one.
fn guard(name: &str, session: &SqlContext) -> String {
    const BEHIND: &str = " (logical, of the upstream)";
    let nobody = format!("{}{BEHIND}", cut(name, SlotName::MAX_LEN - BEHIND.len()));
    let [wanted, nobody] = [name, &nobody].map(|name| literal::string(name, session));
    format!(
        "{GUARD}{wanted}::pg_catalog.name AND s.slot_type OPERATOR(pg_catalog.<>) 'physical') \
         THEN {wanted} ELSE {nobody} END::pg_catalog.name)"
    )
}

impl Call {
    /// Whether a relay below has put its guard there: then it can meet nothing but logical slots already.
    fn is_guarded(&self, text: &[u8], session: &SqlContext) -> bool {
        let Some(span) = &self.name_span else { return false };
        let Some(rest) = text[span.clone()].strip_prefix(GUARD.as_bytes()) else { return false };
        let literal = lex::lex(rest, true).next();
        let name = literal.and_then(|token| lex::string_value(rest, &token));
        name.is_some_and(|name| guard(&name, session).as_bytes() == &text[span.clone()])
    }
}

/// The first bytes of a text, cut between characters.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or_default()]
}

/// The bytes from one token to another, both included.
fn span(tokens: &[Token], first: usize, last: usize) -> Range<usize> {
    tokens[first].span.start..tokens[last].span.end
}
