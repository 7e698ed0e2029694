//! `pg_terminate_backend()` and `pg_cancel_backend()` of a consumer.
//!
//! Consumers' numbers are none that a process of the server can have, so whatever passes signals nobody there. A call with the
//! number of a consumer as a constant, alone in a Query, is executed here if the upstream has nothing against it, by the
//! rules of `pg_signal_backend` for the role of the consumer. Such a call with a number that is no consumer's of this relay
//! may be meant for none of a relay above, which numbers its own alike: it passes in a form that no relay executes.

use std::ops::Range;

use super::lex::{self, Kind, Statement, Token};
use super::rewrite::{Edit, apply};
use super::views::qualified_from;
use super::{Message, Relay, SqlContext, literal};
use crate::wire::{PgError, sqlstate};

/// What both names have in common.
pub(super) const NEEDLE: &[u8] = b"_backend";

/// The highest number that a process of a server can have (Linux: `PID_MAX_LIMIT`; other systems do not even count as far).
/// Those of consumers are above it.
pub const LAST_PROCESS: u32 = 1 << 22;

/// What is done to a consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// What it does ends; the connection goes on.
    Cancel,
    /// The connection ends.
    Terminate,
}

impl Signal {
    const ALL: [Signal; 2] = [Signal::Cancel, Signal::Terminate];

    fn function(self) -> &'static str {
        match self {
            Signal::Cancel => "pg_cancel_backend",
            Signal::Terminate => "pg_terminate_backend",
        }
    }

    fn of(text: &[u8], token: &Token) -> Option<Signal> {
        Signal::ALL.into_iter().find(|signal| lex::is_identifier(text, token, signal.function()))
    }
}

/// Whether one of the functions is called in a statement.
pub(super) fn are_in(text: &[u8], tokens: &[Token]) -> bool {
    tokens.windows(2).any(|two| two[1].kind == Kind::Open && Signal::of(text, &two[0]).is_some())
}

/// A text that is one call, in the only form that is executed on consumers: whatever session it is read in, it is one or it
/// is not.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Form {
    signal: Signal,
    pid: u32,
    /// Where the number is.
    number: Range<usize>,
    /// Where the call is.
    call: Range<usize>,
    is_qualified: bool,
}

impl Form {
    /// `SELECT [pg_catalog.]function(number [, number]) [[AS] label]`, of a number that no process has.
    pub(super) fn of(text: &[u8], statement: &Statement) -> Option<Form> {
        if !text.is_ascii() || text.contains(&b'\\') {
            return None;
        }
        let tokens = &statement.tokens;
        let at = [1, 3]
            .into_iter()
            .find(|&at| tokens.get(at).is_some_and(|name| Signal::of(text, name).is_some()))?;
        let signal = Signal::of(text, &tokens[at])?;
        let start = qualified_from(text, tokens, at)?;
        if !lex::is_word(text, &tokens[0], "select") || start.unwrap_or(at) != 1 {
            return None;
        }
        let is = |token: &Token, kind| token.kind == kind;
        let (pid, rest) = match &tokens[at + 1..] {
            [open, pid, close, rest @ ..] if is(open, Kind::Open) && is(close, Kind::Close) => (pid, rest),
            [open, pid, comma, timeout, close, rest @ ..]
                if is(open, Kind::Open)
                    && is(comma, Kind::Comma)
                    && is(timeout, Kind::Number)
                    && is(close, Kind::Close)
                    && signal == Signal::Terminate =>
            {
                (pid, rest)
            }
            _ => return None,
        };
        let is_label = match rest {
            [] => true,
            [name] => matches!(name.kind, Kind::Word | Kind::Quoted),
            [as_, name] => lex::is_word(text, as_, "as") && matches!(name.kind, Kind::Word | Kind::Quoted),
            _ => false,
        };
        if pid.kind != Kind::Number || !is_label {
            return None;
        }
        let number = pid.span.clone();
        let pid = std::str::from_utf8(&text[number.clone()]).ok()?.parse().ok()?;
        let last = tokens.len() - rest.len() - 1;
        let call = tokens[1].span.start..tokens[last].span.end;
        (pid > LAST_PROCESS).then_some(Form { signal, pid, number, call, is_qualified: start.is_some() })
    }

    /// Makes it mean the same to a server, and nothing to a relay: the number in parentheses.
    pub(super) fn disarm(&self, text: &[u8]) -> Edit {
        let number = String::from_utf8_lossy(&text[self.number.clone()]);
        Edit { span: self.number.clone(), text: format!("({number})") }
    }
}

/// A text that signals one consumer and does nothing else.
#[derive(Clone, PartialEq, Debug)]
pub struct SignalCall {
    form: Form,
    /// The consumer's role.
    user: String,
    /// The whole text.
    text: Vec<u8>,
    session: SqlContext,
}

impl SignalCall {
    /// The call in a Query, everything in front of which has been answered, if the number is a consumer's.
    pub(super) fn new(
        text: &[u8],
        form: &Form,
        session: &SqlContext,
        relay: &mut dyn Relay,
    ) -> Option<SignalCall> {
        if session.message != Message::Simple || !session.settled {
            return None;
        }
        let user = relay.consumer(form.pid)?;
        Some(SignalCall { form: form.clone(), user, text: text.to_owned(), session: *session })
    }

    /// The text for the upstream, if nobody is signalled here.
    fn disarmed(&self) -> Vec<u8> {
        apply(&self.text, vec![self.form.disarm(&self.text)])
    }

    /// What the upstream is asked, in the session: statements without an effect, of which the first returns one row for
    /// [`SignalCall::act`]. An error is the answer to the call. A role that the upstream does not know is taken for a
    /// superuser.
    pub fn question(&self) -> Vec<u8> {
        let this = format!(
            "p.proname OPERATOR(pg_catalog.=) '{}'::pg_catalog.name AND p.pronamespace OPERATOR",
            self.form.signal.function()
        );
        let other = match self.form.is_qualified {
            true => "false".to_owned(),
            false => {
                format!("EXISTS (SELECT 1 FROM pg_catalog.pg_proc AS p WHERE {this}(pg_catalog.<>) 11)")
            }
        };
        let user = literal::string(&self.user, &self.session);
        let whose = format!(
            "FROM pg_catalog.pg_roles AS u WHERE u.rolname OPERATOR(pg_catalog.=) {user}::pg_catalog.name"
        );
        let question = format!(
            "SELECT {other}, (SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) \
             FROM pg_catalog.pg_proc AS p WHERE {this}(pg_catalog.=) 11), \
             (SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname OPERATOR(pg_catalog.=) current_user), \
             COALESCE((SELECT u.rolsuper {whose}), true), \
             COALESCE((SELECT pg_catalog.pg_has_role(u.oid, 'USAGE') {whose}), false) \
             OR pg_catalog.pg_has_role('pg_signal_backend'::pg_catalog.name, 'USAGE');\nEXPLAIN\n"
        );
        [question.as_bytes(), &self.text].concat()
    }

    /// Signals the consumer if the upstream has nothing against it, and returns the text to be forwarded: the client's with
    /// the result in the place of the call, or one that fails as the call would. `answer` is the row.
    pub fn act(&self, answer: &[Option<Vec<u8>>], relay: &mut dyn Relay) -> Vec<u8> {
        let yes = |at: usize| answer.get(at).is_some_and(|value| value.as_deref() == Some(b"t"));
        let [other, may_execute, is_superuser, of_superuser, has_role] = [0, 1, 2, 3, 4].map(yes);
        // Another function may be meant, or none may be called: there the number is nobody's, and the upstream says what is.
        if answer.len() != 5 || other || !may_execute {
            return self.disarmed();
        }
        if !is_superuser && (of_superuser || !has_role) {
            return literal::raise(&self.denied(of_superuser), &self.session).into_bytes();
        }
        // It has gone meanwhile: as of any number that is nobody's, the upstream says so.
        if !relay.signal(self.form.pid, &self.user, self.form.signal) {
            return self.disarmed();
        }
        let text = format!("(SELECT true AS {})", self.form.signal.function());
        apply(&self.text, vec![Edit { span: self.form.call.clone(), text }])
    }

    /// PG: `pg_terminate_backend`, `pg_cancel_backend`
    fn denied(&self, of_superuser: bool) -> PgError {
        let (text, verb) = match self.form.signal {
            Signal::Cancel => ("permission denied to cancel query", "cancel queries of"),
            Signal::Terminate => ("permission denied to terminate process", "terminate processes of"),
        };
        let detail = match of_superuser {
            true => format!(
                "Only roles with the SUPERUSER attribute may {verb} roles with the SUPERUSER attribute."
            ),
            false => format!(
                "Only roles with privileges of the role whose session it is or with privileges of the \
                 \"pg_signal_backend\" role may {verb} this role."
            ),
        };
        PgError::error(sqlstate::INSUFFICIENT_PRIVILEGE, text).with_detail(detail)
    }
}
