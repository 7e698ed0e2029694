//! The two views, by common table expressions of their names.

use serde_json::Value;

use super::lex::{self, Kind, Statement, Token};
use super::rewrite::Edit;
use super::rows::Row;
use super::{Relay, SqlContext, literal};

/// What a statement reads that the relay has something to say about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum View {
    Slots,
    Senders,
}

impl View {
    const ALL: [View; 2] = [View::Slots, View::Senders];

    fn name(self) -> &'static str {
        match self {
            View::Slots => "pg_replication_slots",
            View::Senders => "pg_stat_replication",
        }
    }

    fn expression(self, session: &SqlContext, relay: &mut dyn Relay) -> String {
        match self {
            View::Slots => slots_expression(relay.slots(), session),
            View::Senders => senders_expression(relay.senders(), session),
        }
    }
}

/// Puts the views' expressions in front of a statement that reads them.
pub(super) fn edits(
    text: &[u8],
    statement: &Statement,
    session: &SqlContext,
    relay: &mut dyn Relay,
) -> Vec<Edit> {
    let tokens = &statement.tokens;
    let Some(place) = place_of_expressions(text, tokens) else { return Vec::new() };
    let mut edits = Vec::new();
    let mut expressions = Vec::new();
    for view in View::ALL {
        let references: Vec<_> =
            (0..tokens.len()).filter_map(|at| reference(text, tokens, at, view.name())).collect();
        if references.is_empty() || (0..tokens.len()).any(|at| is_definition(text, tokens, at, view.name())) {
            continue;
        }
        expressions.push(view.expression(session, relay));
        edits.extend(references.into_iter().flatten());
    }
    if !expressions.is_empty() {
        edits.insert(0, place.insertion(&expressions.join(", ")));
    }
    edits
}

/// Where common table expressions go.
enum Place {
    /// Before the statement, which has none.
    First(usize),
    /// Before the statement's own.
    Merged(usize),
}

impl Place {
    fn insertion(&self, expressions: &str) -> Edit {
        match *self {
            Place::First(at) => Edit { span: at..at, text: format!("WITH {expressions} ") },
            Place::Merged(at) => Edit { span: at..at, text: format!(" {expressions},") },
        }
    }
}

fn place_of_expressions(text: &[u8], tokens: &[Token]) -> Option<Place> {
    let first = tokens.first()?;
    let is = |token: &Token, word| lex::is_word(text, token, word);
    if is(first, "with") {
        // A table expression may be called "recursive"; then AS or its columns follow.
        let recursive = tokens.get(1).is_some_and(|second| is(second, "recursive"));
        let named = tokens.get(2).is_some_and(|third| third.kind != Kind::Open && !is(third, "as"));
        let last = if recursive && named { &tokens[1] } else { first };
        return Some(Place::Merged(last.span.end));
    }
    let begins = first.kind == Kind::Open || ["select", "table", "values"].iter().any(|word| is(first, word));
    begins.then_some(Place::First(first.span.start))
}

/// A name that means the view: `Some(None)` if it stands alone, with the edit that drops `pg_catalog` otherwise.
fn reference(text: &[u8], tokens: &[Token], at: usize, name: &str) -> Option<Option<Edit>> {
    if !lex::is_identifier(text, &tokens[at], name) {
        return None;
    }
    let Some(start) = qualified_from(text, tokens, at)? else { return Some(None) };
    let span = tokens[start].span.start..tokens[at].span.start;
    Some(Some(Edit { span, text: String::new() }))
}

/// The first token of the qualification of the name at `at`: `None` if that is of another schema, `Some(None)` if
/// there is none. A database in front of the schema can only be the current one.
pub(super) fn qualified_from(text: &[u8], tokens: &[Token], at: usize) -> Option<Option<usize>> {
    let is_dot = |back: usize| at.checked_sub(back).is_some_and(|at| tokens[at].kind == Kind::Dot);
    if !is_dot(1) {
        return Some(None);
    }
    let schema =
        at.checked_sub(2).filter(|&schema| lex::is_identifier(text, &tokens[schema], "pg_catalog"))?;
    if !is_dot(3) {
        return Some(Some(schema));
    }
    let database = at.checked_sub(4)?;
    let is_name = matches!(tokens[database].kind, Kind::Word | Kind::Quoted | Kind::UnicodeQuoted);
    (is_name && !is_dot(5)).then_some(Some(database))
}

/// Whether the statement itself defines a table expression of that name: `name [(columns)] AS [[NOT]
/// MATERIALIZED] (`. Nothing else in SQL looks like that.
fn is_definition(text: &[u8], tokens: &[Token], at: usize, name: &str) -> bool {
    if !lex::is_identifier(text, &tokens[at], name) {
        return false;
    }
    let mut rest = &tokens[at + 1..];
    if rest.first().is_some_and(|token| token.kind == Kind::Open) {
        let Some(close) = rest.iter().position(|token| token.kind == Kind::Close) else { return false };
        rest = &rest[close + 1..];
    }
    let mut next = |word: &str| {
        let found = rest.first().is_some_and(|token| lex::is_word(text, token, word));
        rest = &rest[usize::from(found)..];
        found
    };
    let named = next("as");
    next("not");
    next("materialized");
    named && rest.first().is_some_and(|token| token.kind == Kind::Open)
}

/// The upstream's logical slots and the relay's physical ones.
fn slots_expression(rows: Vec<Row>, session: &SqlContext) -> String {
    let rows = literal::json(&rows.into_iter().map(Row::into_json).collect(), session);
    format!(
        "pg_replication_slots AS (SELECT * FROM pg_catalog.pg_replication_slots AS s \
         WHERE s.slot_type OPERATOR(pg_catalog.<>) 'physical' \
         UNION ALL SELECT * FROM pg_catalog.jsonb_populate_recordset(\
         NULL::pg_catalog.pg_replication_slots, {rows}::pg_catalog.jsonb))"
    )
}

/// The relay's consumers. Positions are for roles that may read all statistics, where somebody comes from also
/// for the role itself (PostgreSQL: `pg_stat_get_wal_senders`, `pg_stat_get_activity`).
fn senders_expression(rows: Vec<Row>, session: &SqlContext) -> String {
    let rows: Value = rows.into_iter().map(Row::into_json).collect();
    let rows = literal::json(&rows, session);
    format!(
        "pg_stat_replication AS (SELECT r.* FROM pg_catalog.jsonb_array_elements({rows}::pg_catalog.jsonb) AS e(j) \
         LEFT JOIN pg_catalog.pg_roles AS u ON u.rolname OPERATOR(pg_catalog.=) \
         (e.j OPERATOR(pg_catalog.->>) 'usename')::pg_catalog.name \
         CROSS JOIN LATERAL pg_catalog.jsonb_populate_record(NULL::pg_catalog.pg_stat_replication, \
         (CASE WHEN pg_catalog.pg_has_role('pg_read_all_stats'::pg_catalog.name, 'USAGE') THEN e.j \
         WHEN pg_catalog.pg_has_role(u.oid, 'USAGE') THEN e.j OPERATOR(pg_catalog.-) '{{{POSITIONS}}}'::pg_catalog.text[] \
         ELSE e.j OPERATOR(pg_catalog.-) '{{{POSITIONS},{ORIGIN}}}'::pg_catalog.text[] END) \
         OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('usesysid', u.oid)) AS r)"
    )
}

const POSITIONS: &str = "state,sent_lsn,write_lsn,flush_lsn,replay_lsn,write_lag,flush_lag,replay_lag,\
                         sync_priority,sync_state,reply_time";
const ORIGIN: &str = "client_addr,client_hostname,client_port,backend_start,backend_xmin";
