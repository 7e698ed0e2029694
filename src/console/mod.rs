//! SQL that the relay answers itself, without an upstream: in its own database, which is about the relay, and in
//! place of an upstream that cannot be reached.
//!
//! It is no database: an engine for SELECT from the relay's views (`query`), SHOW, what clients send by themselves, SET, which
//! does nothing, and transaction blocks, which have a state but nothing to take back. As simple queries or prepared. While the upstream is away this is just
//! what backup tools need to start their receivers; the values are the last ones the upstream has told.
//!
//! Text in, results out; what there is to know comes from [`Facts`].

mod fixed;
mod orders;
mod parameters;
mod prepared;
mod query;
mod report;
mod settings;
#[cfg(test)]
mod tests;
mod transaction;
mod views;

pub use orders::{Dismissal, Order};
pub use prepared::Prepared;
pub(crate) use report::not_for_you;
pub use transaction::Transaction;

use self::parameters::Parameters;
use self::transaction::Command;
use crate::overlay::{self, Row, Statement, Token, is_word};
use crate::status::Status;
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

    /// The database that the session is for.
    fn database(&self) -> String;

    /// The number the session knows as its backend's.
    fn pid(&self) -> u32;

    /// Whether the upstream has this role as a superuser.
    fn is_superuser(&self) -> Option<bool>;

    /// Whether the role has the privileges of `pg_monitor`, or of those roles that are members of it.
    fn may_monitor(&self) -> Option<bool>;

    /// Rows of `pg_replication_slots`.
    fn slots(&self) -> Vec<Row>;

    /// Rows of `pg_stat_replication`, as the role may see them.
    fn senders(&self) -> Vec<Row>;

    /// Whether the role may see everything: a superuser, one with the privileges of `pg_monitor`, an administrator, or the
    /// relay's own system user over a Unix socket.
    fn sees_all(&self) -> bool;

    /// Rows of `pg_stat_activity` and `pg_stat_ssl` in one, as the role may see them: consumers and sessions, not the
    /// walreceiver.
    fn sessions(&self) -> Vec<Row>;

    /// End of the WAL that consumers may get, and those that have it are never beyond.
    fn write_lsn(&self) -> Option<String>;

    /// End of the WAL that survives a power cut.
    fn flush_lsn(&self) -> Option<String>;

    /// When the relay started.
    fn started_at(&self) -> Option<String>;

    /// When the settings in effect were read.
    fn configured_at(&self) -> Option<String>;

    /// The relay, whoever asks; `None` where nobody has it looked at.
    fn status(&self) -> Option<Status>;
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
        /// What the session has to take over.
        changes: Vec<Change>,
    },
    /// Done, without a result.
    Done {
        /// `CommandComplete`
        tag: &'static str,
        /// What the session has to take over.
        changes: Vec<Change>,
        /// For the client.
        notice: Option<PgError>,
    },
    /// To be done by whoever has asked, if the role may.
    Order(Order),
    /// The text has no statement: `EmptyQueryResponse`.
    Empty,
}

impl Answer {
    fn done(tag: &'static str, changes: Vec<Change>) -> Answer {
        Answer::Done { tag, changes, notice: None }
    }
}

/// What a statement changes about the session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// `application_name` is to be this. To be reported by a ParameterStatus.
    ApplicationName(String),
    /// `application_name` is to be what it was at the session's start. To be reported as well.
    ResetApplicationName,
    /// This prepared statement, or all, are to be forgotten.
    Deallocate(Option<String>),
    /// All portals are to be closed.
    ClosePortals,
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

    /// Whether the next statement is a query, which may take its time.
    pub fn is_query_next(&self) -> bool {
        self.rest.as_slice().first().is_some_and(|statement| query::is_query(self.text, &statement.tokens))
    }

    /// The next statement's answer; `None` when there is none left.
    pub fn answer_next(
        &mut self,
        facts: &dyn Facts,
        transaction: &mut Transaction,
    ) -> Option<Result<Answer, PgError>> {
        if std::mem::take(&mut self.is_empty) {
            return Some(Ok(Answer::Empty));
        }
        let statement = self.rest.next()?;
        let answer = self.answer(&statement, facts, transaction);
        if answer.is_err() {
            transaction.fail();
            self.rest = Vec::new().into_iter();
        }
        Some(answer)
    }

    fn answer(
        &self,
        statement: &Statement,
        facts: &dyn Facts,
        transaction: &mut Transaction,
    ) -> Result<Answer, PgError> {
        if let Some(command) = Command::of(self.text, statement) {
            return transaction.run(&command);
        }
        transaction.check()?;
        let statements = Statements { text: self.text, facts, parameters: &Parameters::None };
        statements.answer(statement, transaction)
    }
}

/// What every statement is answered with.
#[derive(Clone, Copy)]
struct Statements<'a> {
    text: &'a [u8],
    facts: &'a dyn Facts,
    parameters: &'a Parameters<'a>,
}

impl Statements<'_> {
    /// The answer to anything but a command about transactions.
    fn answer(self, statement: &Statement, transaction: &Transaction) -> Result<Answer, PgError> {
        let tokens = statement.tokens.as_slice();
        let words: Vec<_> = tokens.iter().map_while(|token| overlay::identifier(self.text, token)).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        if self.facts.instead() == Instead::Upstream
            && let Some(answer) = fixed::answer(self, &normalized(self.text, tokens))?
        {
            return Ok(answer);
        }
        if self.facts.instead() == Instead::OwnDatabase
            && let Some(order) = Order::of(self.text, tokens, transaction)?
        {
            return Ok(Answer::Order(order));
        }
        let is_whole = words.len() == tokens.len();
        Ok(match words.as_slice() {
            ["show", ..] => self.show(&tokens[1..])?,
            ["set", "transaction", modes @ ..] if transaction::writes(modes) => {
                return Err(transaction::read_only());
            }
            ["set", ..] => Answer::done("SET", self.set(&tokens[1..]).into_iter().collect()),
            ["reset", "application_name" | "all"] if is_whole => {
                Answer::done("RESET", vec![Change::ResetApplicationName])
            }
            ["reset", ..] => Answer::done("RESET", Vec::new()),
            ["deallocate", rest @ ..] if is_whole => deallocate(rest).ok_or_else(|| cannot(self.facts))?,
            ["close", "all"] if is_whole => Answer::done("CLOSE CURSOR ALL", vec![Change::ClosePortals]),
            ["unlisten", ..] => Answer::done("UNLISTEN", Vec::new()),
            ["discard", what] if is_whole => {
                if *what == "all" {
                    transaction.must_be_idle("DISCARD ALL")?;
                }
                discard(what).ok_or_else(|| cannot(self.facts))?
            }
            _ if query::is_query(self.text, tokens) => {
                query::answer(self, tokens).map_err(|error| self.error(error))?
            }
            _ => return Err(cannot(self.facts)),
        })
    }

    /// In the place of the upstream what is not known here, or not understood, is not known at all.
    fn error(self, error: PgError) -> PgError {
        let is_theirs = [
            sqlstate::FEATURE_NOT_SUPPORTED,
            sqlstate::INVALID_SCHEMA_NAME,
            sqlstate::UNDEFINED_FUNCTION,
            sqlstate::UNDEFINED_OBJECT,
            sqlstate::UNDEFINED_TABLE,
        ];
        match self.facts.instead() {
            Instead::Upstream if is_theirs.contains(&&*error.sqlstate) => unreachable_upstream(),
            // PostgreSQL's grammar is larger.
            Instead::Upstream if error.message.starts_with("syntax error ") => unreachable_upstream(),
            _ => error,
        }
    }

    fn is(self, token: &Token, word: &str) -> bool {
        is_word(self.text, token, word)
    }
}

fn deallocate(words: &[&str]) -> Option<Answer> {
    match words {
        ["all"] | ["prepare", "all"] => Some(Answer::done("DEALLOCATE ALL", vec![Change::Deallocate(None)])),
        ["prepare", name] | [name] => {
            Some(Answer::done("DEALLOCATE", vec![Change::Deallocate(Some((*name).to_owned()))]))
        }
        _ => None,
    }
}

/// There is little that a session here could have.
fn discard(what: &str) -> Option<Answer> {
    Some(match what {
        "all" => Answer::done(
            "DISCARD ALL",
            vec![Change::ResetApplicationName, Change::Deallocate(None), Change::ClosePortals],
        ),
        "plans" => Answer::done("DISCARD PLANS", Vec::new()),
        "sequences" => Answer::done("DISCARD SEQUENCES", Vec::new()),
        "temp" | "temporary" => Answer::done("DISCARD TEMP", Vec::new()),
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
    let rows = vec![vec![value.into()]];
    Answer::Rows { columns, rows, tag: "SELECT 1".to_owned(), changes: Vec::new() }
}

/// PG: `parse_bool`
fn boolean(text: &str) -> Option<bool> {
    match text.trim_ascii().to_ascii_lowercase().as_str() {
        "t" | "true" | "on" | "yes" | "y" | "1" => Some(true),
        "f" | "false" | "off" | "no" | "n" | "0" => Some(false),
        _ => None,
    }
}

fn flag(value: bool) -> String {
    if value { "t" } else { "f" }.to_owned()
}

fn unknown_setting(name: &str, facts: &dyn Facts) -> PgError {
    match facts.instead() {
        Instead::Upstream => unreachable_upstream(),
        Instead::OwnDatabase => {
            let text = format!("unrecognized configuration parameter \"{name}\"");
            PgError::error(sqlstate::UNDEFINED_OBJECT, text)
        }
    }
}

/// The statement is not one of those that can be answered.
fn cannot(facts: &dyn Facts) -> PgError {
    match facts.instead() {
        Instead::Upstream => unreachable_upstream(),
        Instead::OwnDatabase => {
            let text = "this statement is not one of those that walrelay answers";
            PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text).with_hint(
                "This database is about the relay: SHOW HELP lists what it shows; SELECT reads its views, \
                 pg_replication_slots, pg_stat_replication, pg_stat_activity, pg_settings and others; RELOAD, DISCONNECT, DROP SLOT, PAUSE, RESUME \
                 and SHUTDOWN are for administrators. Any other database is the upstream's.",
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
