//! SQL that the relay answers itself, without an upstream: in its own database, which is about the relay, and in
//! place of an upstream that cannot be reached.
//!
//! It is a handful of statements, not a database: the two views with simple conditions, SHOW, what clients ask
//! to get started, and SET and transaction commands, which do nothing. While the upstream is away this is just
//! what backup tools need to start their receivers; the values are the last ones the upstream has told.
//!
//! Text in, results out; what there is to know comes from [`Facts`].

mod fixed;
mod select;
mod settings;
#[cfg(test)]
mod tests;
mod views;

use crate::overlay::{self, Row, Statement, Token, is_word};
use crate::wire::messages::{Column, ColumnType};
use crate::wire::{PgError, sqlstate};

/// Where the statement was meant to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instead {
    /// To the relay: its own database.
    OwnDatabase,
    /// To the upstream, which cannot be reached.
    Upstream,
}

/// What the answers are made of. `None` is for what is not known, as before the first contact with an upstream.
pub trait Facts {
    /// Whose place the answers take.
    fn instead(&self) -> Instead;

    /// A setting as SHOW shows it, with its unit. The name is as it was typed, folded to lower case unless in
    /// quotes.
    fn setting(&self, name: &str) -> Option<String>;

    /// All settings known, as SHOW ALL shows them: name and value, sorted.
    fn settings(&self) -> Vec<(String, String)>;

    /// `pg_control_system().system_identifier`
    fn system_identifier(&self) -> Option<String>;

    /// What `pg_is_in_recovery()` returns.
    fn is_in_recovery(&self) -> Option<bool>;

    /// The session's role.
    fn user(&self) -> String;

    /// Whether the upstream has this role as a superuser.
    fn is_superuser(&self) -> Option<bool>;

    /// Whether the role has the privileges of `pg_monitor`, or of those roles that are members of it.
    fn may_monitor(&self) -> Option<bool>;

    /// Rows of `pg_replication_slots`.
    fn slots(&self) -> Vec<Row>;

    /// Rows of `pg_stat_replication`, as the role may see them.
    fn senders(&self) -> Vec<Row>;
}

/// What comes back from a statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A result.
    Rows {
        /// Its columns.
        columns: Vec<Field>,
        /// Values as texts, as many in each row as there are columns.
        rows: Vec<Vec<Option<String>>>,
        /// `CommandComplete`
        tag: String,
    },
    /// Done, without a result.
    Done {
        /// `CommandComplete`
        tag: &'static str,
        /// What the session has to take over.
        change: Option<Change>,
    },
    /// The text has no statement: `EmptyQueryResponse`.
    Empty,
}

/// `application_name` is to be another: the value, or what it was at the session's start. To be reported by a
/// ParameterStatus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// SET
    ApplicationName(String),
    /// RESET
    ResetApplicationName,
}

/// A column of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    /// Its name or alias.
    pub name: String,
    /// Its type.
    pub column_type: ColumnType,
}

impl Field {
    fn new(name: impl Into<String>, column_type: ColumnType) -> Field {
        Field { name: name.into(), column_type }
    }

    /// For the RowDescription.
    pub fn column(&self) -> Column<'_> {
        Column::new(&self.name, self.column_type)
    }
}

/// The text of a Query message, answered statement by statement, so that nobody has to hold all the answers. After an
/// error the rest is not run, as in PostgreSQL.
#[derive(Debug)]
pub struct Script<'a> {
    text: &'a [u8],
    rest: std::vec::IntoIter<Statement>,
    is_empty: bool,
}

impl<'a> Script<'a> {
    /// Takes a text apart; nothing is answered yet.
    pub fn new(text: &'a [u8]) -> Script<'a> {
        let statements = overlay::split(text, true);
        Script { text, is_empty: statements.is_empty(), rest: statements.into_iter() }
    }

    /// The next statement's answer; `None` when there is none left.
    pub fn answer_next(&mut self, facts: &dyn Facts) -> Option<Result<Answer, PgError>> {
        if std::mem::take(&mut self.is_empty) {
            return Some(Ok(Answer::Empty));
        }
        let statement = self.rest.next()?;
        let answer = Statements { text: self.text, facts }.answer(&statement);
        if answer.is_err() {
            self.rest = Vec::new().into_iter();
        }
        Some(answer)
    }
}

/// What every statement is answered with.
#[derive(Clone, Copy)]
struct Statements<'a> {
    text: &'a [u8],
    facts: &'a dyn Facts,
}

impl Statements<'_> {
    fn answer(self, statement: &Statement) -> Result<Answer, PgError> {
        let tokens = statement.tokens.as_slice();
        let words: Vec<_> = tokens.iter().map_while(|token| overlay::identifier(self.text, token)).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        if let Some(answer) = fixed::answer(&normalized(self.text, tokens), self.facts)? {
            return Ok(answer);
        }
        match words.as_slice() {
            ["show", ..] => self.show(&tokens[1..]),
            ["set", ..] => Ok(Answer::Done { tag: "SET", change: self.set(&tokens[1..]) }),
            ["reset", name @ ..] => {
                let change =
                    matches!(name, ["application_name" | "all"]).then_some(Change::ResetApplicationName);
                Ok(Answer::Done { tag: "RESET", change })
            }
            _ => match transaction(&words) {
                Some(tag) => Ok(Answer::Done { tag, change: None }),
                None => self.select(tokens),
            },
        }
    }

    fn is(self, token: &Token, word: &str) -> bool {
        is_word(self.text, token, word)
    }
}

/// The tag of a transaction command. There are no transactions to command.
fn transaction(words: &[&str]) -> Option<&'static str> {
    Some(match words.first()? {
        &"begin" => "BEGIN",
        &"start" if words.get(1) == Some(&"transaction") => "START TRANSACTION",
        &"commit" | &"end" => "COMMIT",
        &"rollback" | &"abort" => "ROLLBACK",
        &"discard" if words.get(1) == Some(&"all") => "DISCARD ALL",
        _ => return None,
    })
}

/// Tokens with a blank between any two, key words and identifiers folded: what two writings of one statement have
/// in common.
fn normalized(text: &[u8], tokens: &[Token]) -> String {
    let written = |token: &Token| {
        let as_it_is = || String::from_utf8_lossy(&text[token.span.clone()]).into_owned();
        overlay::identifier(text, token).unwrap_or_else(as_it_is)
    };
    tokens.iter().map(written).collect::<Vec<_>>().join(" ")
}

/// One row of one value.
fn single(name: &str, column_type: ColumnType, value: impl Into<Option<String>>) -> Answer {
    let columns = vec![Field::new(name, column_type)];
    Answer::Rows { columns, rows: vec![vec![value.into()]], tag: "SELECT 1".to_owned() }
}

fn flag(value: bool) -> String {
    if value { "t" } else { "f" }.to_owned()
}

/// The statement is not one of those that can be answered.
fn cannot(facts: &dyn Facts) -> PgError {
    match facts.instead() {
        Instead::Upstream => unreachable_upstream(),
        Instead::OwnDatabase => {
            let text = "this statement is not one of those that walrelay answers";
            PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text).with_hint(
                "This database is about the relay: use SHOW, or SELECT from pg_replication_slots or \
                 pg_stat_replication. Any other database is the upstream's.",
            )
        }
    }
}

/// What was asked for is known to the upstream only.
fn unreachable_upstream() -> PgError {
    PgError::error(sqlstate::CANNOT_CONNECT_NOW, "the upstream server cannot be reached").with_hint(
        "Until it is back, walrelay answers SHOW and SELECT from pg_replication_slots and pg_stat_replication; \
         replication connections are served as ever.",
    )
}
