//! Single rows of `pg_settings` while the upstream is away: of its settings the relay knows a few, and of the others it must not
//! say that they are not there.
//!
//! They are compared token by token: white space, comments and the case of key words do not count.

use crate::wire::PgError;
use crate::wire::messages::ColumnType;

use super::settings::in_own_unit;
use super::{Answer, Statements, single, unreachable_upstream};

/// Answers the statement if it is one of these, given as `normalized` has it.
pub(super) fn answer(statements: Statements<'_>, statement: &str) -> Result<Option<Answer>, PgError> {
    let plain = statement.replace("pg_catalog . ", "");
    let name = match one_setting(&plain) {
        Some(Setting::Named(name)) => Some(name),
        Some(Setting::Parameter(number)) => statements.parameters.of_text(number)?,
        None => return Ok(None),
    };
    // What is prepared has no value yet, and the column is the same for all.
    let Some(name) = name else { return Ok(Some(nothing())) };
    let value = statements.facts.setting(name).and_then(|shown| in_own_unit(name, &shown));
    let value = value.ok_or_else(unreachable_upstream)?;
    Ok(Some(single("setting", ColumnType::Text, value)))
}

/// The setting that is asked for.
enum Setting<'a> {
    Named(&'a str),
    Parameter(usize),
}

/// `SELECT setting FROM pg_settings WHERE name = '…'`
fn one_setting(statement: &str) -> Option<Setting<'_>> {
    let name = statement.strip_prefix("select setting from pg_settings where name ")?;
    let name = name.strip_prefix("= ").or_else(|| name.strip_prefix("operator ( = ) "))?;
    if let Some(number) = name.strip_prefix('$') {
        return number.parse().ok().map(Setting::Parameter);
    }
    let name = name.strip_prefix('\'')?.strip_suffix('\'')?;
    (!name.contains('\'')).then_some(Setting::Named(name))
}

/// Nothing has the name NULL.
fn nothing() -> Answer {
    match single("setting", ColumnType::Text, None) {
        Answer::Rows { columns, changes, .. } => {
            Answer::Rows { columns, rows: Vec::new(), tag: "SELECT 0".to_owned(), changes }
        }
        other => other,
    }
}
