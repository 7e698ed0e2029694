//! The engine for SELECT in the relay's own database: views with PostgreSQL's columns and types, and what people, exporters and
//! drivers ask of them.
//!
//! ```text
//! text ── overlay::lex ──> tokens ── parse ──> ast::Query ── bind ──> plan::QueryPlan ── run ──> rows
//!                                                (names, types, errors)       (limits)
//! ```
//!
//! All tables are in memory and small, so a query is nested loops. What it may take is counted ([`context`]); how deep it may be is
//! counted where it is read ([`parse`]). Nothing is assumed of what is not had: it is refused by name, with 0A000.

mod aggregate;
mod ast;
mod bind;
mod context;
mod functions;
mod node;
mod numeric;
mod parse;
mod pattern;
mod plan;
mod run;
#[cfg(test)]
mod tests;
mod time;
mod value;

use std::rc::Rc;

use crate::overlay::{self, Row, Token};
use crate::wire::{PgError, sqlstate};

use self::context::Context;
use self::value::Type;
use super::parameters::Parameters;
use super::{Answer, Facts, Field, Statements, views};

type Result<T> = std::result::Result<T, PgError>;

/// Whether a statement is one for this engine.
pub(super) fn is_query(text: &[u8], tokens: &[Token]) -> bool {
    let first = tokens.iter().find(|token| token.kind != overlay::Kind::Open);
    first.is_some_and(|first| {
        ["select", "with", "values", "table"].iter().any(|word| overlay::is_word(text, first, word))
    })
}

/// The answer to a query; only its columns while it is being prepared.
pub(super) fn answer(statements: Statements<'_>, tokens: &[Token]) -> Result<Answer> {
    let Statements { text, facts, parameters } = statements;
    let query = parse::parse(text, tokens)?;
    let mut binder = bind::Binder::new(facts, parameters);
    let plan = binder.statement(&query)?;
    let columns = plan.outputs.iter().map(|it| Field::new(it.name.clone(), it.kind.column())).collect();
    if matches!(parameters, Parameters::Wanted(_)) {
        return Ok(Answer::Rows {
            columns,
            rows: Vec::new(),
            tag: "SELECT 0".to_owned(),
            changes: Vec::new(),
        });
    }
    let mut read = Vec::new();
    for name in &binder.views {
        read.push(Rc::new(rows_of(name, facts)?));
    }
    let mut cx = Context::new(facts, parameters, views::major(facts), read);
    let found = run::query(&plan, &mut cx, None)?;
    let mut rows = Vec::with_capacity(found.len());
    for row in &found {
        let mut texts = Vec::with_capacity(row.len());
        for value in row {
            let text = value.written(cx.major);
            cx.result(&text)?;
            texts.push(text);
        }
        rows.push(texts);
    }
    let tag = format!("SELECT {}", rows.len());
    Ok(Answer::Rows { columns, rows, tag, changes: cx.changes })
}

/// The rows of a view, as values of its columns' types.
fn rows_of(name: &str, facts: &dyn Facts) -> Result<Vec<plan::Row>> {
    let columns = views::columns_of_rows(name, facts);
    let value = |row: &Row, column: &str, kind: Type| match row.get(column) {
        Some(text) => value::read(text, kind),
        None => Ok(value::Value::Null),
    };
    let row = |row: Row| {
        let values = columns
            .iter()
            .map(|(column, kind)| value(&row, column, Type::of_oid(kind.oid()).unwrap_or(Type::Text)));
        values.collect()
    };
    views::rows(name, facts)?.into_iter().map(row).collect()
}

/// Something that PostgreSQL has and the relay has not.
fn unsupported(what: &str) -> PgError {
    let text = format!("{what} is not supported in the database \"walrelay\"");
    PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text).with_hint(
        "This database has the relay's views and a part of PostgreSQL's SELECT: docs/SQL.md says which.",
    )
}
