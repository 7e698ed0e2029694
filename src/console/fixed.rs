//! Statements that are always written alike.
//!
//! They are compared token by token: white space, comments and the case of key words do not count.

use crate::overlay;
use crate::wire::PgError;
use crate::wire::messages::ColumnType;

use super::settings::in_own_unit;
use super::{Answer, Facts, Field, Statements, flag, normalized, single, unreachable_upstream};

/// What a statement asks for.
#[derive(Clone, Copy)]
enum Asked {
    SystemIdentifierAsText,
    SystemIdentifier,
    IsSuperuser,
    MayMonitor,
}

const STATEMENTS: [(&str, Asked); 4] = [
    ("SELECT system_identifier::text FROM pg_control_system()", Asked::SystemIdentifierAsText),
    ("SELECT system_identifier FROM pg_control_system()", Asked::SystemIdentifier),
    ("SELECT usesuper FROM pg_user WHERE usename = CURRENT_USER", Asked::IsSuperuser),
    (
        "SELECT (pg_has_role(CURRENT_USER, 'pg_monitor', 'USAGE') OR \
         (pg_has_role(CURRENT_USER, 'pg_read_all_settings', 'USAGE') \
         AND pg_has_role(CURRENT_USER, 'pg_read_all_stats', 'USAGE')))",
        Asked::MayMonitor,
    ),
];

/// Answers the statement if it is one of these, given as [`normalized`] has it.
pub(super) fn answer(statements: Statements<'_>, statement: &str) -> Result<Option<Answer>, PgError> {
    let facts = statements.facts;
    let plain = statement.replace("pg_catalog . ", "");
    match one_setting(&plain) {
        Some(Setting::Named(name)) => return pg_setting(name, facts).map(Some),
        Some(Setting::Parameter(number)) => {
            let name = statements.parameters.value(number, ColumnType::Text, facts)?;
            return name.map_or_else(|| Ok(no_setting()), |name| pg_setting(&name, facts)).map(Some);
        }
        None => {}
    }
    let known = STATEMENTS.iter().find(|(known, _)| normal(known) == plain);
    known.map(|(_, asked)| asked.answer(facts).ok_or_else(unreachable_upstream)).transpose()
}

fn normal(statement: &str) -> String {
    let text = statement.as_bytes();
    overlay::split(text, true).first().map(|only| normalized(text, &only.tokens)).unwrap_or_default()
}

impl Asked {
    fn answer(self, facts: &dyn Facts) -> Option<Answer> {
        let identifier = |column_type| {
            facts.system_identifier().map(|value| single("system_identifier", column_type, value))
        };
        let yes_or_no = |name, value: Option<bool>| Some(single(name, ColumnType::Bool, flag(value?)));
        match self {
            Asked::SystemIdentifierAsText => identifier(ColumnType::Text),
            Asked::SystemIdentifier => identifier(ColumnType::Int8),
            Asked::IsSuperuser => yes_or_no("usesuper", facts.is_superuser()),
            Asked::MayMonitor => yes_or_no("?column?", facts.may_monitor()),
        }
    }
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

fn pg_setting(name: &str, facts: &dyn Facts) -> Result<Answer, PgError> {
    let value = facts.setting(name).and_then(|shown| in_own_unit(name, &shown));
    match (value, facts.instead()) {
        (Some(value), _) => Ok(single("setting", ColumnType::Text, value)),
        (None, super::Instead::Upstream) => Err(unreachable_upstream()),
        (None, super::Instead::OwnDatabase) => Ok(no_setting()),
    }
}

fn no_setting() -> Answer {
    Answer::Rows {
        columns: vec![Field::new("setting", ColumnType::Text)],
        rows: Vec::new(),
        tag: "SELECT 0".to_owned(),
        changes: Vec::new(),
    }
}
