//! What a statement runs with, and how much it may do: a query of an administrator's, or of a monitoring program gone wild, must
//! not take a worker for long, nor much memory.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use regex::Regex;

use crate::console::parameters::Parameters;
use crate::console::{Change, Facts};
use crate::wire::{PgError, sqlstate};

use super::plan::Row;
use super::time::Timestamp;
use super::value::{self, Type, Value};
use super::{Result, pattern};

/// Nodes evaluated and rows looked at: a join of a thousand consumers with a thousand slots is four millions of them, and
/// takes part of a second.
const MOST_STEPS: u64 = 20_000_000;

/// Bytes of rows that are kept on the way to the result.
const MOST_KEPT: usize = 64 << 20;

/// Bytes of a result, which is made before it is sent: every slot and consumer there may be, and no megabytes of text beside
/// each of them. No value in it is longer.
const MOST_RESULT: usize = 16 << 20;

/// Bytes of a text that a function makes: the longest that one step may have to go through.
const MOST_TEXT: usize = 1 << 20;

/// Bytes of a regular expression.
const MOST_PATTERN: usize = 10_000;

/// How long a query may take, whatever its steps are like.
const MOST_TIME: Duration = Duration::from_secs(10);

/// Of the texts that a function makes, so many bytes count as a step.
const BYTES_OF_STEP: usize = 64;

/// Regular expressions that are kept, of those that a statement makes as it goes.
const MOST_EXPRESSIONS: usize = 16;

pub(super) struct Context<'a> {
    pub(super) facts: &'a dyn Facts,
    pub(super) now: Timestamp,
    pub(super) major: u32,
    parameters: &'a Parameters<'a>,
    /// What set_config() does.
    pub(super) changes: Vec<Change>,
    /// Rows of the views that are read.
    pub(super) views: Vec<Rc<Vec<Row>>>,
    /// Rows of common table expressions, by number.
    pub(super) ctes: HashMap<usize, Rc<Vec<Row>>>,
    /// Rows of subqueries that are the same for each row.
    pub(super) subqueries: HashMap<usize, Rc<Vec<Row>>>,
    expressions: BTreeMap<String, Rc<Regex>>,
    steps: u64,
    /// Calls of `step`, which looks at the clock now and then.
    calls: u64,
    began: Instant,
    kept: usize,
    result: usize,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        facts: &'a dyn Facts,
        parameters: &'a Parameters<'a>,
        major: u32,
        views: Vec<Rc<Vec<Row>>>,
    ) -> Context<'a> {
        Context {
            facts,
            now: Timestamp::now(),
            major,
            parameters,
            changes: Vec::new(),
            views,
            ctes: HashMap::new(),
            subqueries: HashMap::new(),
            expressions: BTreeMap::new(),
            steps: 0,
            calls: 0,
            began: Instant::now(),
            kept: 0,
            result: 0,
        }
    }

    pub(super) fn parameter(&self, number: usize, kind: Type) -> Result<Value> {
        match self.parameters.text(number) {
            Some(text) => value::read(text, kind),
            None => Ok(Value::Null),
        }
    }

    /// Something is done.
    pub(super) fn step(&mut self, steps: u64) -> Result<()> {
        self.steps += steps;
        self.calls += 1;
        if self.calls.is_multiple_of(64) && self.began.elapsed() > MOST_TIME {
            let text = format!("the query takes more than {} seconds", MOST_TIME.as_secs());
            return Err(PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text));
        }
        if self.steps <= MOST_STEPS {
            return Ok(());
        }
        let text = format!("the query takes more than {} million steps", MOST_STEPS / 1_000_000);
        Err(PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text)
            .with_hint("Join on columns, and fewer of the views at once."))
    }

    /// So many bytes are gone through.
    pub(super) fn step_bytes(&mut self, bytes: usize) -> Result<()> {
        self.step((bytes / BYTES_OF_STEP) as u64)
    }

    /// Two values are compared, as far as the shorter one goes.
    pub(super) fn comparing(&mut self, a: &Value, b: &Value) -> Result<()> {
        match (a, b) {
            (Value::Text(a), Value::Text(b)) => self.step_bytes(a.len().min(b.len())),
            _ => Ok(()),
        }
    }

    /// Rows are sorted, or put where they belong among those that are there, by values of which all together have so many
    /// bytes: each is compared about as often as there are bits in the number of rows.
    pub(super) fn sorting(&mut self, rows: usize, among: usize, bytes: usize) -> Result<()> {
        let rounds = u64::from(usize::BITS - among.leading_zeros());
        self.step((rows as u64 + (bytes / BYTES_OF_STEP) as u64).saturating_mul(rounds))
    }

    /// A function has made a value.
    pub(super) fn made(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::Text(text) => {
                self.check_length(text.len())?;
                self.step_bytes(text.len())
            }
            _ => Ok(()),
        }
    }

    /// Whether a text may be so long.
    pub(super) fn check_length(&self, bytes: usize) -> Result<()> {
        if bytes <= MOST_TEXT {
            return Ok(());
        }
        let text = format!("a text has more than {} MB", MOST_TEXT >> 20);
        Err(PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text))
    }

    /// A row is kept until the query is done.
    pub(super) fn keep(&mut self, row: &[Value]) -> Result<()> {
        self.keep_bytes(size_of::<Row>() + row.iter().map(Value::size).sum::<usize>())
    }

    /// The same for one that is there already: its texts are not made again.
    pub(super) fn keep_shared(&mut self, row: &[Value]) -> Result<()> {
        self.keep_bytes(size_of::<Row>() + size_of_val(row))
    }

    /// So much is kept until the query is done.
    pub(super) fn keep_bytes(&mut self, bytes: usize) -> Result<()> {
        self.kept += bytes;
        if self.kept <= MOST_KEPT {
            return Ok(());
        }
        let text = format!("the query takes more than {} MB of memory", MOST_KEPT >> 20);
        Err(PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text)
            .with_hint("Select fewer columns, or rows."))
    }

    /// Text goes into the result.
    pub(super) fn result(&mut self, text: &Option<String>) -> Result<()> {
        self.result += size_of_val(text) + text.as_ref().map_or(0, String::len);
        if self.result <= MOST_RESULT { Ok(()) } else { Err(too_large()) }
    }

    /// A regular expression, made once if possible.
    pub(super) fn regex(&mut self, pattern: &str, any_case: bool) -> Result<Rc<Regex>> {
        let key = format!("{}{pattern}", if any_case { 'i' } else { 'c' });
        if let Some(known) = self.expressions.get(&key) {
            return Ok(known.clone());
        }
        if pattern.len() > MOST_PATTERN {
            let text = format!("a regular expression has more than {MOST_PATTERN} bytes");
            return Err(PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text));
        }
        // Making one costs far more than using it.
        self.step(1000 + 10 * pattern.len() as u64)?;
        let made = Rc::new(pattern::regex(pattern, any_case)?);
        if self.expressions.len() >= MOST_EXPRESSIONS {
            self.expressions.clear();
        }
        self.expressions.insert(key, made.clone());
        Ok(made)
    }
}

fn too_large() -> PgError {
    let text = format!("the result has more than {} MB", MOST_RESULT >> 20);
    PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text).with_hint("Select fewer columns, or rows.")
}
