//! The two views, by common table expressions of their names.

use std::collections::BTreeSet;

use serde_json::Value;

use super::lex::{self, Kind, Token};
use super::rewrite::Edit;
use super::rows::Row;
use super::{Relay, SqlContext, literal};

/// What a statement reads that the relay has something to say about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum View {
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

    /// Its rows, as JSON.
    fn rows(self, relay: &mut dyn Relay) -> Value {
        let rows = match self {
            View::Slots => relay.slots(),
            View::Senders => relay.senders(),
        };
        rows.into_iter().map(Row::into_json).collect()
    }

    /// The common table expression with the rows of `source`, which is a `jsonb`, for names with these qualifications.
    fn expression(self, source: &str, qualifications: &BTreeSet<&str>) -> String {
        let guard: String = qualifications
            .iter()
            .map(|qualification| match *qualification {
                "" => self.guard(),
                qualification => self.read_as(qualification),
            })
            .collect();
        match self {
            View::Slots => slots_expression(source, &guard),
            View::Senders => senders_expression(source, &guard),
        }
    }

    /// A condition that fails if the name without a schema is that of another relation in the session, as a temporary
    /// table. It has no column in it, so it is judged before any row, and also when there is none.
    fn guard(self) -> String {
        let name = self.name();
        format!(
            " AND CASE WHEN pg_catalog.to_regclass('{name}') OPERATOR(pg_catalog.=) \
             'pg_catalog.{name}'::pg_catalog.regclass THEN true ELSE pg_catalog.concat('{name} is ', \
             pg_catalog.to_regclass('{name}')::pg_catalog.text, ' in this session, write pg_catalog.{name} or the \
             schema of the other')::pg_catalog.bool END"
        )
    }

    /// A condition that is true and names the view as the client did: whether a database in front is the current one is
    /// for the server to say (0A000 if it is not).
    fn read_as(self, qualification: &str) -> String {
        format!(" AND (true OR EXISTS (SELECT 1 FROM {qualification}{}))", self.name())
    }
}

/// What the views are called.
pub(super) fn names() -> [&'static str; 2] {
    View::ALL.map(View::name)
}

/// Where the rows of a text come from.
pub(super) enum Rows {
    /// The text itself.
    Text { slots: Option<String>, senders: Option<String> },
    /// The parameter of that number, a [`RowsParameter`].
    Parameter(u32),
}

impl Rows {
    pub(super) const fn in_text() -> Rows {
        Rows::Text { slots: None, senders: None }
    }

    fn source(&mut self, view: View, session: &SqlContext, relay: &mut dyn Relay) -> String {
        match self {
            Rows::Text { slots, senders } => {
                let rows = match view {
                    View::Slots => slots,
                    View::Senders => senders,
                };
                let make = || literal::json_string(&view.rows(relay), session) + "::pg_catalog.jsonb";
                rows.get_or_insert_with(make).clone()
            }
            Rows::Parameter(number) => {
                let key = view.name();
                format!("(${number}::pg_catalog.text::pg_catalog.jsonb OPERATOR(pg_catalog.->) '{key}')")
            }
        }
    }
}

/// What belongs into a Bind of a statement that reads the views, as its last parameter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowsParameter {
    slots: bool,
    senders: bool,
    session: SqlContext,
}

impl RowsParameter {
    /// The value, the same as text and in binary. Only what the statement reads is in it.
    pub fn value(&self, relay: &mut dyn Relay) -> Vec<u8> {
        let views = [(self.slots, View::Slots), (self.senders, View::Senders)];
        let object = views.into_iter().filter(|(wanted, _)| *wanted);
        let object = object.map(|(_, view)| (view.name().to_owned(), view.rows(relay))).collect();
        literal::json(&Value::Object(object), &self.session).into_bytes()
    }
}

/// What a statement reads, and where.
pub(super) struct Reading {
    /// Where common table expressions go; `None` if the statement takes none.
    pub(super) place: Option<Place>,
    slots: Vec<Reference>,
    senders: Vec<Reference>,
}

/// A name that means the view.
struct Reference {
    /// The qualification in front of it, `pg_catalog` with its dot, perhaps with the database.
    qualification: Option<std::ops::Range<usize>>,
    /// The database is in it, as it stands there.
    database: Option<String>,
}

impl Reference {
    /// What the server has to judge of its qualification: nothing if it is the schema alone.
    fn judged(&self) -> Option<&str> {
        match &self.qualification {
            None => Some(""),
            Some(_) => self.database.as_deref(),
        }
    }
}

/// Looks for the views in a statement; `None` if it has nothing to do with them. What the statement calls so itself is
/// not meant.
pub(super) fn look(text: &[u8], tokens: &[Token]) -> Option<Reading> {
    let references = |view: View| -> Vec<Reference> {
        let reads = (0..tokens.len()).filter(|&at| !is_made(text, &tokens[..at]));
        reads.filter_map(|at| reference(text, tokens, at, view.name())).collect()
    };
    let [mut slots, mut senders] = View::ALL.map(references);
    if slots.is_empty() && senders.is_empty() {
        return None;
    }
    let closes = closes(tokens);
    for (view, found) in [(View::Slots, &mut slots), (View::Senders, &mut senders)] {
        if (0..tokens.len()).any(|at| is_definition(text, tokens, &closes, at, view.name())) {
            found.clear();
        }
    }
    if slots.is_empty() && senders.is_empty() || names_only(text, tokens) {
        return None;
    }
    Some(Reading { place: place(text, tokens, &closes), slots, senders })
}

impl Reading {
    /// Puts the views' expressions in front.
    pub(super) fn edits(
        &self,
        place: &Place,
        rows: &mut Rows,
        session: &SqlContext,
        relay: &mut dyn Relay,
    ) -> Vec<Edit> {
        let mut edits = Vec::new();
        let mut expressions = Vec::new();
        for (view, references) in [(View::Slots, &self.slots), (View::Senders, &self.senders)] {
            if references.is_empty() {
                continue;
            }
            let judged = references.iter().filter_map(Reference::judged).collect();
            expressions.push(view.expression(&rows.source(view, session, relay), &judged));
            let qualifications = references.iter().filter_map(|reference| reference.qualification.clone());
            edits.extend(qualifications.map(|span| Edit { span, text: String::new() }));
        }
        edits.insert(0, place.insertion(&expressions.join(", ")));
        edits
    }

    /// What a Bind brings.
    pub(super) fn parameter(&self, session: &SqlContext) -> RowsParameter {
        RowsParameter { slots: !self.slots.is_empty(), senders: !self.senders.is_empty(), session: *session }
    }
}

/// Where common table expressions go.
pub(super) struct Place {
    at: usize,
    /// The query has some of its own.
    is_merged: bool,
    /// Parameters have no meaning there.
    pub(super) is_copy: bool,
}

impl Place {
    fn insertion(&self, expressions: &str) -> Edit {
        let text = match self.is_merged {
            true => format!(" {expressions},"),
            false => format!("WITH {expressions} "),
        };
        Edit { span: self.at..self.at, text }
    }
}

/// Whether the name behind these tokens is that of a table which the statement makes.
fn is_made(text: &[u8], before: &[Token]) -> bool {
    const WORDS: [&str; 9] =
        ["create", "global", "local", "temp", "temporary", "unlogged", "table", "if", "not"];
    let is = |token: &Token, word: &str| lex::is_word(text, token, word);
    let [first, .., last] = before else { return false };
    let begins = is(first, "create") && (is(last, "table") || is(last, "exists"));
    begins && before[..before.len() - 1].iter().all(|token| WORDS.iter().any(|word| is(token, word)))
}

/// Statements about names, which read nothing.
fn names_only(text: &[u8], tokens: &[Token]) -> bool {
    let words = ["grant", "revoke", "comment", "security", "alter", "drop"];
    tokens.first().is_some_and(|first| words.iter().any(|word| lex::is_word(text, first, word)))
}

/// The place in a query, or in the one that a statement consists of.
fn place(text: &[u8], tokens: &[Token], closes: &[usize]) -> Option<Place> {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| lex::is_word(text, token, word));
    if is(0, "copy") && tokens.get(1)?.kind == Kind::Open {
        let place = place_in_query(text, tokens, closes, 2, closes[1])?;
        return Some(Place { is_copy: true, ..place });
    }
    let start = if is(0, "declare") {
        let cursor = (2..tokens.len().min(7)).find(|&at| is(at, "cursor"))?;
        1 + (cursor + 1..tokens.len().min(cursor + 5)).find(|&at| is(at, "for"))?
    } else if is(0, "create") && (1..4).any(|at| is(at, "table")) {
        let mut at = 1;
        while at < tokens.len() && !is(at, "as") {
            at = if tokens[at].kind == Kind::Open { closes[at] } else { at } + 1;
        }
        at + 1
    } else {
        0
    };
    place_in_query(text, tokens, closes, start, tokens.len())
}

fn place_in_query(
    text: &[u8],
    tokens: &[Token],
    closes: &[usize],
    mut start: usize,
    mut end: usize,
) -> Option<Place> {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| lex::is_word(text, token, word));
    // A query in parentheses has its own WITH, if it is not a part of a larger one.
    while start < end && tokens[start].kind == Kind::Open {
        let close = closes[start];
        let is_whole = close + 1 == end
            || ["order", "limit", "offset", "fetch", "for"].iter().any(|word| is(close + 1, word));
        if close >= end || !is_whole {
            break;
        }
        (start, end) = (start + 1, close);
    }
    let first = tokens.get(start).filter(|_| start < end)?;
    let place = |at, is_merged| Some(Place { at, is_merged, is_copy: false });
    if is(start, "with") {
        // A table expression may be called "recursive"; then AS or its columns follow.
        let named = tokens.get(start + 2).is_some_and(|third| third.kind != Kind::Open);
        let recursive = is(start + 1, "recursive") && named && !is(start + 2, "as");
        return place(tokens[start + usize::from(recursive)].span.end, true);
    }
    const WORDS: [&str; 7] = ["select", "table", "values", "insert", "update", "delete", "merge"];
    let begins = first.kind == Kind::Open || WORDS.iter().any(|word| is(start, word));
    if begins { place(first.span.start, false) } else { None }
}

/// For each opening parenthesis the place of its closing one; the end where there is none.
pub(super) fn closes(tokens: &[Token]) -> Vec<usize> {
    let mut closes = vec![tokens.len(); tokens.len()];
    let mut open = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Open => open.push(at),
            Kind::Close => {
                if let Some(opened) = open.pop() {
                    closes[opened] = at;
                }
            }
            _ => {}
        }
    }
    closes
}

fn reference(text: &[u8], tokens: &[Token], at: usize, name: &str) -> Option<Reference> {
    if !lex::is_identifier(text, &tokens[at], name) {
        return None;
    }
    let start = qualified_from(text, tokens, at)?;
    // Behind a value it would be a label, and those have no schema: that is the server's to say.
    let before = start.and_then(|start| start.checked_sub(1));
    let is_column = tokens.get(at + 1).is_some_and(|next| next.kind == Kind::Dot);
    if before.is_some_and(|before| ends_value(text, &tokens[..=before], is_column)) {
        return None;
    }
    // The same behind a parenthesis, except for a column of it: DISTINCT ON (...) may stand in front of that.
    if before.is_some_and(|before| tokens[before].kind == Kind::Close) && !is_column {
        return None;
    }
    let qualification = start.map(|start| tokens[start].span.start..tokens[at].span.start);
    let has_database = start.is_some_and(|start| start + 4 == at);
    let database = qualification.clone().filter(|_| has_database);
    // In another encoding than UTF-8 it cannot be repeated.
    let database = database.map(|span| String::from_utf8(text[span].to_owned())).transpose().ok()?;
    Some(Reference { qualification, database })
}

/// Whether a value or a name may end with the last of the tokens, so that only a label can follow without anything in between: a
/// column has a dot behind it, which no label has.
fn ends_value(text: &[u8], tokens: &[Token], is_column: bool) -> bool {
    let words = if is_column { BEFORE_COLUMNS } else { BEFORE_RELATIONS };
    let [before @ .., token] = tokens else { return false };
    // Behind a dot every word is a name.
    let is_name = before.last().is_some_and(|before| before.kind == Kind::Dot);
    match token.kind {
        Kind::String(_) | Kind::Number | Kind::Parameter | Kind::Quoted | Kind::UnicodeQuoted => true,
        Kind::Other => text[token.span.clone()] == *b"]",
        Kind::Word => is_name || !words.iter().any(|word| lex::is_word(text, token, word)),
        _ => false,
    }
}

/// Words behind which a relation is read. None of them can be the name of a column, behind which a label could follow.
const BEFORE_RELATIONS: &[&str] = &["from", "into", "join", "only", "table", "using"];

/// Words behind which a value may begin, the name of a relation in front of a column's too. What is missing here is a view
/// that is not seen; what should not be here, a mistake of the client's, which stays one for the server.
const BEFORE_COLUMNS: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "asymmetric",
    "between",
    "both",
    "by",
    "call",
    "case",
    "concurrently",
    "content",
    "copy",
    "default",
    "delete",
    "distinct",
    "document",
    "else",
    "escape",
    "except",
    "execute",
    "exists",
    "for",
    "freeze",
    "from",
    "full",
    "groups",
    "having",
    "ilike",
    "in",
    "inner",
    "insert",
    "intersect",
    "into",
    "is",
    "join",
    "key",
    "lateral",
    "leading",
    "like",
    "limit",
    "lock",
    "merge",
    "not",
    "of",
    "offset",
    "on",
    "only",
    "operator",
    "or",
    "over",
    "overlaps",
    "passing",
    "placing",
    "range",
    "return",
    "returning",
    "row",
    "rows",
    "select",
    "set",
    "similar",
    "some",
    "symmetric",
    "table",
    "then",
    "to",
    "trailing",
    "truncate",
    "union",
    "update",
    "using",
    "vacuum",
    "value",
    "values",
    "variadic",
    "verbose",
    "view",
    "when",
    "where",
    "with",
    "zone",
];

/// The first token of the qualification of the name at `at`: `None` if that is of another schema, `Some(None)` if
/// there is none. Whether a database in front of the schema is the current one is for the server to say.
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
fn is_definition(text: &[u8], tokens: &[Token], closes: &[usize], at: usize, name: &str) -> bool {
    if !lex::is_identifier(text, &tokens[at], name) {
        return false;
    }
    let mut next = at + 1;
    if tokens.get(next).is_some_and(|token| token.kind == Kind::Open) {
        next = closes[next] + 1;
    }
    let mut word = |word: &str| {
        let found = tokens.get(next).is_some_and(|token| lex::is_word(text, token, word));
        next += usize::from(found);
        found
    };
    let named = word("as");
    word("not");
    word("materialized");
    named && tokens.get(next).is_some_and(|token| token.kind == Kind::Open)
}

/// The upstream's logical slots and the relay's physical ones.
fn slots_expression(source: &str, guard: &str) -> String {
    format!(
        "pg_replication_slots AS (SELECT * FROM pg_catalog.pg_replication_slots AS s \
         WHERE s.slot_type OPERATOR(pg_catalog.<>) 'physical'{guard} \
         UNION ALL SELECT * FROM pg_catalog.jsonb_populate_recordset(\
         NULL::pg_catalog.pg_replication_slots, {source}))"
    )
}

/// The relay's consumers, and who decodes upstream. Positions are for roles that may read all statistics, where
/// somebody comes from also for the role itself (PostgreSQL: `pg_stat_get_wal_senders`, `pg_stat_get_activity`). Whether
/// the view may be read at all is checked for the second part, and there is no first without it.
fn senders_expression(source: &str, guard: &str) -> String {
    format!(
        "pg_stat_replication AS (SELECT r.* FROM pg_catalog.jsonb_array_elements({source}) AS e(j) \
         LEFT JOIN pg_catalog.pg_roles AS u ON u.rolname OPERATOR(pg_catalog.=) \
         (e.j OPERATOR(pg_catalog.->>) 'usename')::pg_catalog.name \
         CROSS JOIN LATERAL pg_catalog.jsonb_populate_record(NULL::pg_catalog.pg_stat_replication, \
         (CASE WHEN pg_catalog.pg_has_role('pg_read_all_stats'::pg_catalog.name, 'USAGE') THEN e.j \
         WHEN pg_catalog.pg_has_role(u.oid, 'USAGE') THEN e.j OPERATOR(pg_catalog.-) '{{{POSITIONS}}}'::pg_catalog.text[] \
         ELSE e.j OPERATOR(pg_catalog.-) '{{{POSITIONS},{ORIGIN}}}'::pg_catalog.text[] END) \
         OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('usesysid', u.oid)) AS r \
         UNION ALL SELECT s.* FROM pg_catalog.pg_stat_replication AS s WHERE s.pid OPERATOR(pg_catalog.=) ANY (\
         SELECT l.active_pid FROM pg_catalog.pg_get_replication_slots() AS l \
         WHERE l.slot_type OPERATOR(pg_catalog.<>) 'physical'){guard})"
    )
}

const POSITIONS: &str = "state,sent_lsn,write_lsn,flush_lsn,replay_lsn,write_lag,flush_lag,replay_lag,\
                         sync_priority,sync_state,reply_time";
const ORIGIN: &str = "client_addr,client_hostname,client_port,backend_start,backend_xmin";
