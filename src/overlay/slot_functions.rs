//! Functions on replication slots: executed on the relay's slots, and replaced by their results.
//!
//! A call can be executed here only if it is certain that PostgreSQL would execute it exactly once, and with which
//! arguments: it stands in a Query message, its arguments are constants, and nothing in its statement could skip
//! or repeat it. Any other call is refused; it must not reach the upstream's slots. Names that are no slots of the
//! relay may be logical slots of the upstream, which the relay shows: calls on them pass, with a guard that lets
//! them meet nothing but logical slots.

mod arguments;
mod places;

use std::ops::Range;

use walrelay_proto::{Lsn, SlotName};

use crate::wire::{PgError, sqlstate};

use self::arguments::{Argument, Call};
use self::places::Place;
use super::lex::{self, Kind, Statement, Token};
use super::rewrite::Edit;
use super::views::qualified_from;
use super::{Relay, SqlContext, literal};

/// The functions of interest. Those on logical slots alone are the upstream's business.
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
                "Send it as a simple query with constant arguments, or use CREATE_REPLICATION_SLOT on a replication \
                 connection."
            }
            Function::Drop => {
                "Send it as a simple query with constant arguments, or use DROP_REPLICATION_SLOT on a replication \
                 connection."
            }
            Function::Advance => "Send it as a simple query with constant arguments.",
        }
    }

    fn refuse(self, why: &str) -> PgError {
        let text = format!("{}() cannot be executed by walrelay {why}", self.name());
        PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text).with_hint(self.hint())
    }
}

/// What a function has returned: the columns with their values as SQL expressions.
struct Outcome {
    function: Function,
    columns: Vec<(&'static str, String)>,
}

/// Executes the calls in a statement and returns what comes in their place, or the error of the first that fails.
pub(super) fn edits(
    text: &[u8],
    statement: &Statement,
    session: &SqlContext,
    relay: &mut dyn Relay,
) -> Result<Vec<Edit>, PgError> {
    let tokens = &statement.tokens;
    let found = calls(text, tokens);
    if found.is_empty() || only_names_functions(text, tokens) {
        return Ok(Vec::new());
    }
    let mut edits = Vec::new();
    let places = places::Places::new(text, tokens, &found);
    for call in &found {
        if !session.overlay {
            return Err(call.function.refuse("because its slots are not shown here"));
        }
        edits.push(match guarded(call, session, relay) {
            Some(edit) => edit,
            None => {
                let place = executable(call, session, &places)?;
                let outcome = execute(call, session, relay)?;
                place.put(&outcome)
            }
        });
    }
    Ok(edits)
}

/// Whether one of the functions is named in the text, in whatever place.
pub(super) fn may_be_called(text: &[u8]) -> bool {
    Function::ALL.iter().any(|function| {
        let name = function.name().as_bytes();
        text.windows(name.len()).any(|window| window.eq_ignore_ascii_case(name))
    })
}

/// Calls in the order in which they stand, which is the one in which PostgreSQL executes them.
fn calls(text: &[u8], tokens: &[Token]) -> Vec<Call> {
    let call = |at: usize| {
        let is = |function: &Function| lex::is_identifier(text, &tokens[at], function.name());
        let function = Function::ALL.into_iter().find(is)?;
        (tokens.get(at + 1)?.kind == Kind::Open).then_some(())?;
        let start = qualified_from(text, tokens, at)?.unwrap_or(at);
        Some(arguments::parse(text, tokens, function, start, at + 1))
    };
    (0..tokens.len()).filter_map(call).collect()
}

/// Statements about functions, which execute none.
fn only_names_functions(text: &[u8], tokens: &[Token]) -> bool {
    let is_first = |word: &str| tokens.first().is_some_and(|first| lex::is_word(text, first, word));
    ["grant", "revoke", "comment"].iter().any(|word| is_first(word))
}

/// Where the call stands, if it can be executed.
fn executable(call: &Call, session: &SqlContext, places: &places::Places<'_>) -> Result<Place, PgError> {
    if !session.simple_query {
        return Err(call.function.refuse("in a statement that is prepared"));
    }
    if call.arguments.is_none() {
        return Err(call.function.refuse("unless its arguments are constants"));
    }
    if session.transaction_failed {
        return Err(call.function.refuse("in a transaction that has failed"));
    }
    places
        .of(call)
        .ok_or_else(|| call.function.refuse("except as an item of a plain SELECT list or FROM list"))
}

/// A call on a name that is no slot of ours, made safe for the upstream.
fn guarded(call: &Call, session: &SqlContext, relay: &mut dyn Relay) -> Option<Edit> {
    let name = call.slot.as_ref().filter(|_| call.function.knows_logical_slots())?;
    if relay.has_slot(&name.value) {
        return None;
    }
    // No slot can have such a name, and none is made: the error that follows is the right one.
    const BEHIND: &str = " (logical, of the upstream)";
    let nobody = format!("{}{BEHIND}", cut(&name.value, SlotName::MAX_LEN - BEHIND.len()));
    let [wanted, nobody] = [&name.value, &nobody].map(|name| literal::string(name, session));
    let guard = format!(
        "(SELECT CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots AS s \
         WHERE s.slot_name OPERATOR(pg_catalog.=) {wanted}::pg_catalog.name \
         AND s.slot_type OPERATOR(pg_catalog.<>) 'physical') \
         THEN {wanted} ELSE {nobody} END::pg_catalog.name)"
    );
    Some(Edit { span: name.span.clone(), text: guard })
}

fn execute(call: &Call, session: &SqlContext, relay: &mut dyn Relay) -> Result<Outcome, PgError> {
    let name = |name: &str| format!("{}::pg_catalog.name", literal::string(name, session));
    let lsn = |lsn: Option<Lsn>| match lsn {
        Some(lsn) => format!("'{lsn}'::pg_catalog.pg_lsn"),
        None => "NULL::pg_catalog.pg_lsn".to_owned(),
    };
    let unusable = || call.function.refuse("unless its arguments are constants");
    let columns = match call.arguments.as_ref().ok_or_else(unusable)? {
        Argument::Create { name: slot, reserve, temporary } => {
            let start = relay.create_slot(slot, *reserve, *temporary)?;
            vec![("slot_name", name(slot)), ("lsn", lsn(start.filter(|_| *reserve)))]
        }
        Argument::Drop { name: slot } => {
            relay.drop_slot(slot)?;
            vec![(Function::Drop.name(), "''::pg_catalog.void".to_owned())]
        }
        Argument::Copy { from, to, temporary } => {
            relay.copy_slot(from, to, *temporary)?;
            // PG: copy_replication_slot shows the confirmed_flush_lsn, which a physical slot does not have.
            vec![("slot_name", name(to)), ("lsn", lsn(None))]
        }
        Argument::Advance { name: slot, upto } => {
            let end = relay.advance_slot(slot, upto.clone()?)?;
            vec![("slot_name", name(slot)), ("end_lsn", lsn(Some(end)))]
        }
    };
    Ok(Outcome { function: call.function, columns })
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
