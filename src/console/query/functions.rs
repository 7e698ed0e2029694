//! Functions and operators, by name and types of arguments.

mod facts;
mod numbers;
mod texts;
mod times;

use crate::wire::{PgError, sqlstate};

use super::Result;
use super::context::Context;
use super::value::{Type, Value};

type Run = fn(&mut Context<'_>, &[Value]) -> Result<Value>;

/// A function or operator of the engine.
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) arguments: &'static [Type],
    pub(super) returns: Type,
    /// Whether NULL among the arguments makes it NULL.
    pub(super) is_strict: bool,
    pub(super) run: Run,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for &'static Function {
    fn eq(&self, other: &&'static Function) -> bool {
        std::ptr::eq::<Function>(*self, *other)
    }
}

const fn function(name: &'static str, arguments: &'static [Type], returns: Type, run: Run) -> Function {
    Function { name, arguments, returns, is_strict: true, run }
}

fn all() -> impl Iterator<Item = &'static Function> {
    numbers::FUNCTIONS.iter().chain(times::FUNCTIONS).chain(texts::FUNCTIONS).chain(facts::FUNCTIONS)
}

/// Whether there is one of that name at all.
pub(super) fn is_known(name: &str) -> bool {
    all().any(|function| function.name == name)
}

/// The function that fits best (PostgreSQL: `func_select_candidate`): that of the types as they are, else the one that leaves most of
/// them alone, else the one whose types are preferred.
pub(super) fn find(name: &str, given: &[Type], is_operator: bool) -> Option<&'static Function> {
    let fits = |function: &&'static Function| {
        let pairs = given.iter().zip(function.arguments);
        function.name == name
            && function.arguments.len() == given.len()
            && pairs.clone().all(|(from, to)| from.becomes(*to))
    };
    let mut found: Vec<_> = all().filter(fits).collect();
    // What is not known of an operator is taken to be like the other side.
    if let (true, [left, right]) = (is_operator, given)
        && (*left == Type::Unknown) != (*right == Type::Unknown)
    {
        let known = if *left == Type::Unknown { *right } else { *left };
        if let Some(same) = found.iter().find(|it| it.arguments.iter().all(|argument| *argument == known)) {
            return Some(*same);
        }
    }
    let mut keep_best = |score: &dyn Fn(&Function) -> usize| {
        let best = found.iter().map(|function| score(function)).max().unwrap_or(0);
        found.retain(|function| score(function) == best);
    };
    let count = |function: &Function, counts: &dyn Fn(Type, Type) -> bool| {
        given.iter().zip(function.arguments).filter(|(from, to)| counts(**from, **to)).count()
    };
    keep_best(&|function| count(function, &|from, to| from == to));
    keep_best(&|function| count(function, &|from, to| from == to || is_preferred(to)));
    keep_best(&|function| count(function, &|from, to| from == Type::Unknown && to == Type::Text));
    found.first().copied()
}

/// `pg_type.typispreferred`
fn is_preferred(kind: Type) -> bool {
    matches!(kind, Type::Float8 | Type::Text | Type::Timestamptz | Type::Interval | Type::Bool | Type::Oid)
}

fn out_of_range(kind: Type) -> PgError {
    let text = match kind {
        Type::Numeric => "value overflows numeric format".to_owned(),
        Type::Timestamptz => "timestamp out of range".to_owned(),
        Type::Float8 => "value out of range: overflow".to_owned(),
        kind => format!("{} out of range", kind.shown()),
    };
    let code = match kind {
        Type::Timestamptz | Type::Interval => sqlstate::DATETIME_FIELD_OVERFLOW,
        _ => sqlstate::NUMERIC_VALUE_OUT_OF_RANGE,
    };
    PgError::error(code, text)
}

fn division_by_zero() -> PgError {
    PgError::error(sqlstate::DIVISION_BY_ZERO, "division by zero")
}

/// The binder gives a function what it takes: another kind of value is none.
fn nothing() -> Result<Value> {
    Ok(Value::Null)
}
