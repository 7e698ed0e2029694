//! Transaction blocks. Nothing is read in one that could be taken back; but clients look at the state, and rely on what
//! comes behind an error being overlooked (PostgreSQL: `xact.c`).

use crate::overlay::{self, Statement};
use crate::wire::messages::TransactionStatus;
use crate::wire::{PgError, sqlstate};

use super::Answer;

/// A session's transaction block.
#[derive(Debug, Default)]
pub struct Transaction {
    state: State,
    /// Names of 63 bytes at most, the newest last.
    savepoints: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Idle,
    Open,
    Failed,
}

/// More than anybody nests.
const MOST_SAVEPOINTS: usize = 1000;

/// A command about transactions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// With the tag, and whether it is to be READ WRITE.
    Begin {
        tag: &'static str,
        writes: bool,
    },
    /// Both may begin another one at once.
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
}

impl Command {
    /// The command that a statement is.
    pub(super) fn of(text: &[u8], statement: &Statement) -> Option<Command> {
        let words: Vec<_> =
            statement.tokens.iter().filter_map(|token| overlay::identifier(text, token)).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        // The modes of a transaction may have commas between them.
        let has_modes = matches!(words.as_slice(), ["begin" | "start", ..]);
        (has_modes || words.len() == statement.tokens.len()).then(|| Command::of_words(&words))?
    }

    fn of_words(words: &[&str]) -> Option<Command> {
        let chain = |rest: &[&str]| rest.contains(&"chain") && !rest.contains(&"no");
        let name = |rest: &[&str]| match rest {
            ["savepoint", name] | [name] => Some(cut(name)),
            _ => None,
        };
        Some(match words {
            ["begin", modes @ ..] => Command::Begin { tag: "BEGIN", writes: writes(modes) },
            ["start", "transaction", modes @ ..] => {
                Command::Begin { tag: "START TRANSACTION", writes: writes(modes) }
            }
            ["commit" | "rollback", "prepared", ..] => return None,
            ["commit" | "end", rest @ ..] => Command::Commit { chain: chain(rest) },
            ["rollback", "to", rest @ ..] | ["rollback", "work" | "transaction", "to", rest @ ..] => {
                Command::RollbackTo(name(rest)?)
            }
            ["rollback" | "abort", rest @ ..] => Command::Rollback { chain: chain(rest) },
            ["savepoint", name] => Command::Savepoint(cut(name)),
            ["release", rest @ ..] => Command::Release(name(rest)?),
            _ => return None,
        })
    }

    /// Whether it is taken in a transaction that has failed.
    fn ends_failure(&self) -> bool {
        matches!(self, Command::Commit { .. } | Command::Rollback { .. } | Command::RollbackTo(_))
    }
}

impl Transaction {
    /// For ReadyForQuery.
    pub fn status(&self) -> TransactionStatus {
        match self.state {
            State::Idle => TransactionStatus::Idle,
            State::Open => TransactionStatus::Transaction,
            State::Failed => TransactionStatus::Error,
        }
    }

    /// Whether a block is open.
    pub fn is_open(&self) -> bool {
        self.state != State::Idle
    }

    /// A statement has failed.
    pub fn fail(&mut self) {
        if self.state == State::Open {
            self.state = State::Failed;
        }
    }

    /// Whether statements are executed at present.
    ///
    /// # Errors
    /// In a block that has failed.
    pub fn check(&self) -> Result<(), PgError> {
        if self.state != State::Failed {
            return Ok(());
        }
        let text = "current transaction is aborted, commands ignored until end of transaction block";
        Err(PgError::error(sqlstate::IN_FAILED_SQL_TRANSACTION, text))
    }

    pub(super) fn check_command(&self, command: &Command) -> Result<(), PgError> {
        if command.ends_failure() { Ok(()) } else { self.check() }
    }

    pub(super) fn run(&mut self, command: &Command) -> Result<Answer, PgError> {
        self.check_command(command)?;
        let (was, mut notice) = (self.state, None);
        let tag = match command {
            Command::Begin { writes: true, .. } => return Err(read_only()),
            Command::Begin { tag, .. } => {
                if was != State::Idle {
                    let text = "there is already a transaction in progress";
                    notice = Some(PgError::warning(sqlstate::ACTIVE_SQL_TRANSACTION, text));
                }
                self.state = State::Open;
                tag
            }
            Command::Commit { chain } | Command::Rollback { chain } => {
                if was == State::Idle {
                    notice = no_transaction(command)?;
                }
                self.savepoints.clear();
                self.state = if *chain { State::Open } else { State::Idle };
                let commits = matches!(command, Command::Commit { .. }) && was != State::Failed;
                if commits { "COMMIT" } else { "ROLLBACK" }
            }
            Command::Savepoint(name) => {
                self.needs_block("SAVEPOINT")?;
                if self.savepoints.len() >= MOST_SAVEPOINTS {
                    let text = "too many savepoints for walrelay";
                    return Err(PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text));
                }
                self.savepoints.push(name.clone());
                "SAVEPOINT"
            }
            Command::Release(name) => {
                self.needs_block("RELEASE SAVEPOINT")?;
                let at = self.savepoint(name)?;
                self.savepoints.truncate(at);
                "RELEASE"
            }
            Command::RollbackTo(name) => {
                self.needs_block("ROLLBACK TO SAVEPOINT")?;
                let at = self.savepoint(name)?;
                self.savepoints.truncate(at + 1);
                self.state = State::Open;
                "ROLLBACK"
            }
        };
        Ok(Answer::Done { tag, changes: Vec::new(), notice })
    }

    /// PG: `PreventInTransactionBlock`
    pub(super) fn must_be_idle(&self, what: &str) -> Result<(), PgError> {
        if self.state == State::Idle {
            return Ok(());
        }
        let text = format!("{what} cannot run inside a transaction block");
        Err(PgError::error(sqlstate::ACTIVE_SQL_TRANSACTION, text))
    }

    /// PG: `RequireTransactionBlock`
    fn needs_block(&self, what: &str) -> Result<(), PgError> {
        if self.state != State::Idle {
            return Ok(());
        }
        let text = format!("{what} can only be used in transaction blocks");
        Err(PgError::error(sqlstate::NO_ACTIVE_SQL_TRANSACTION, text))
    }

    fn savepoint(&self, name: &str) -> Result<usize, PgError> {
        self.savepoints.iter().rposition(|savepoint| savepoint == name).ok_or_else(|| {
            let text = format!("savepoint \"{name}\" does not exist");
            PgError::error(sqlstate::INVALID_SAVEPOINT_SPECIFICATION, text)
        })
    }
}

/// What counts of an identifier (PostgreSQL: `truncate_identifier`).
fn cut(name: &str) -> String {
    const MOST: usize = 63;
    let end = (0..=name.len().min(MOST)).rev().find(|&end| name.is_char_boundary(end));
    name[..end.unwrap_or_default()].to_owned()
}

/// Whether modes of a transaction have READ WRITE among them.
pub(super) fn writes(modes: &[&str]) -> bool {
    modes.windows(2).any(|two| two == ["read", "write"])
}

/// PG: `check_transaction_read_only`
pub(super) fn read_only() -> PgError {
    let text = "cannot set transaction read-write mode during recovery";
    PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
}

/// COMMIT or ROLLBACK outside of a block.
fn no_transaction(command: &Command) -> Result<Option<PgError>, PgError> {
    let chain = match command {
        Command::Commit { chain: true } => Some("COMMIT AND CHAIN"),
        Command::Rollback { chain: true } => Some("ROLLBACK AND CHAIN"),
        _ => None,
    };
    if let Some(chain) = chain {
        let text = format!("{chain} can only be used in transaction blocks");
        return Err(PgError::error(sqlstate::NO_ACTIVE_SQL_TRANSACTION, text));
    }
    let text = "there is no transaction in progress";
    Ok(Some(PgError::warning(sqlstate::NO_ACTIVE_SQL_TRANSACTION, text)))
}
