//! Statements of the extended protocol: prepared once, executed with values (PostgreSQL: `exec_parse_message`).

use std::cell::RefCell;

use crate::overlay::{self, Statement};
use crate::wire::{PgError, sqlstate};

use super::parameters::{self, Parameters};
use super::transaction::{Command, Transaction};
use super::{Answer, Facts, Field, Statements, query};

/// A statement whose columns and parameters are known.
#[derive(Debug)]
pub struct Prepared {
    text: Vec<u8>,
    /// `None` for a text without one.
    statement: Option<Statement>,
    types: Vec<u32>,
    columns: Option<Vec<Field>>,
}

impl Prepared {
    /// Takes the text of a Parse message with the types it gives, 0 being one that is not given.
    ///
    /// # Errors
    /// Those of the statement, as far as they do not depend on values; more than one statement.
    pub fn new(
        text: &[u8],
        types: &[u32],
        facts: &dyn Facts,
        transaction: &Transaction,
    ) -> Result<Prepared, PgError> {
        let mut statements = overlay::statements(text, true);
        let statement = statements.next();
        if statements.next().is_some() {
            let text = "cannot insert multiple commands into a prepared statement";
            return Err(PgError::error(sqlstate::SYNTAX_ERROR, text));
        }
        let mut prepared =
            Prepared { text: text.to_owned(), statement, types: types.to_vec(), columns: None };
        let Some(statement) = &prepared.statement else { return Ok(prepared) };
        if let Some(command) = Command::of(text, statement) {
            transaction.check_command(&command)?;
            return Ok(prepared);
        }
        transaction.check()?;
        let parameters = Parameters::Wanted(RefCell::new(types.to_vec()));
        let answer = Statements { text, facts, parameters: &parameters }.answer(statement, transaction)?;
        if let Parameters::Wanted(types) = parameters {
            prepared.types = types.into_inner();
        }
        if let Some(at) = prepared.types.iter().position(|oid| *oid == 0) {
            let text = format!("could not determine data type of parameter ${}", at + 1);
            return Err(PgError::error(sqlstate::INDETERMINATE_DATATYPE, text));
        }
        if let Answer::Rows { columns, .. } = answer {
            prepared.columns = Some(columns);
        }
        Ok(prepared)
    }

    /// The text of the Parse message.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Numbers of the parameters' types.
    pub fn types(&self) -> &[u32] {
        &self.types
    }

    /// The result's columns; `None` if there is none.
    pub fn columns(&self) -> Option<&[Field]> {
        self.columns.as_deref()
    }

    /// Bytes that it takes, about.
    pub fn size(&self) -> usize {
        let tokens = self.statement.as_ref().map_or(0, |statement| statement.tokens.len());
        let columns = self.columns.iter().flatten().map(|field| size_of::<Field>() + field.name.len());
        let columns = columns.sum::<usize>();
        self.text.len() + tokens * size_of::<overlay::Token>() + self.types.len() * 4 + columns
    }

    /// Whether it may be bound and executed at present.
    ///
    /// # Errors
    /// The transaction has failed, and it does not end it.
    pub fn check(&self, transaction: &Transaction) -> Result<(), PgError> {
        match self.command() {
            Some(command) => transaction.check_command(&command),
            None if self.statement.is_none() => Ok(()),
            None => transaction.check(),
        }
    }

    /// Whether it may be described at present: what has a result may not in a transaction that has failed.
    ///
    /// # Errors
    /// It may not.
    pub fn check_description(&self, transaction: &Transaction) -> Result<(), PgError> {
        if self.columns.is_some() { transaction.check() } else { Ok(()) }
    }

    /// Whether it is a query, which may take its time.
    pub fn is_query(&self) -> bool {
        self.statement.as_ref().is_some_and(|statement| query::is_query(&self.text, &statement.tokens))
    }

    /// Whether it begins or ends a transaction.
    pub fn is_about_transactions(&self) -> bool {
        self.command().is_some()
    }

    fn command(&self) -> Option<Command> {
        Command::of(&self.text, self.statement.as_ref()?)
    }

    /// A parameter's value in a Bind: its number from 1, the format code, and the bytes.
    ///
    /// # Errors
    /// It is none of its type, or in a format that is not known.
    pub fn read(&self, number: usize, format: i16, bytes: &[u8]) -> Result<String, PgError> {
        parameters::read(number, self.types.get(number - 1).copied().unwrap_or_default(), format, bytes)
    }

    /// Executes it.
    ///
    /// # Errors
    /// Those of the statement; the result has got other columns since.
    pub fn run(
        &self,
        values: &[Option<String>],
        facts: &dyn Facts,
        transaction: &mut Transaction,
    ) -> Result<Answer, PgError> {
        let Some(statement) = &self.statement else { return Ok(Answer::Empty) };
        if let Some(command) = self.command() {
            return transaction.run(&command);
        }
        transaction.check()?;
        let parameters = Parameters::Given { types: &self.types, values };
        let statements = Statements { text: &self.text, facts, parameters: &parameters };
        let answer = statements.answer(statement, transaction)?;
        match (&answer, &self.columns) {
            // The upstream is of another version now.
            (Answer::Rows { columns, .. }, Some(promised)) if columns != promised => {
                let text = "cached plan must not change result type";
                Err(PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text))
            }
            _ => Ok(answer),
        }
    }
}
