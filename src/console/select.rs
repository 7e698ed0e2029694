//! SELECT from the views, and of what needs no table.
//!
//! ```text
//! statement = TABLE view | SELECT item {, item} [FROM view [[AS] alias] [WHERE condition {AND condition}]
//!             [ORDER BY column [ASC | DESC] {, …}]]
//! item      = (* | count(*) | column | [NOT] constant) [::type] [[AS] label]
//! constant  = literal | $n | CAST (constant AS type) | function
//! condition = column (= | <> | !=) (literal | $n) [::type] | column IS [NOT] NULL | [NOT] column
//! ```

use std::cmp::Ordering;

use walrelay_proto::Lsn;

use crate::overlay::{self, Kind, Row, Token};
use crate::wire::messages::ColumnType;
use crate::wire::{PgError, sqlstate};

use super::parameters::written;
use super::views::{self, View};
use super::{Answer, Change, Facts, Field, Instead, Statements, cannot, flag, unreachable_upstream};

type Result<T> = std::result::Result<T, PgError>;

/// How deep constants may be in each other; each level takes a part of the stack, and nobody writes as many.
const MOST_LEVELS: usize = 50;

/// Columns of a result (PostgreSQL: `MaxTupleAttributeNumber`).
const MOST_COLUMNS: usize = 1664;

/// Bytes of a result, which is made before it is sent: every slot and consumer there may be, and no megabytes of text beside
/// each of them.
const MOST_RESULT: usize = 16 << 20;

/// An item of a SELECT list.
enum Item {
    All,
    Count { label: String },
    Column { name: String, cast: Option<ColumnType>, label: String },
    Constant { field: Field, value: Option<String> },
}

impl Statements<'_> {
    pub(super) fn select(self, tokens: &[Token]) -> Result<Answer> {
        let mut parser = Parser { tokens, statements: self, changes: Vec::new(), level: 0 };
        if parser.word("table") {
            let view = parser.view()?;
            parser.end()?;
            return result(&[Item::All], Some(view), self.facts);
        }
        parser.expect("select")?;
        let mut items = vec![parser.item()?];
        while parser.kind(Kind::Comma) {
            has_room(items.len() + 1)?;
            items.push(parser.item()?);
        }
        if !parser.word("from") {
            parser.end()?;
            return Ok(with(result(&items, None, self.facts)?, parser.changes));
        }
        let mut view = parser.view()?;
        if parser.word("where") {
            parser.condition(&mut view)?;
            while parser.word("and") {
                parser.condition(&mut view)?;
            }
        }
        if parser.word("order") {
            parser.order(&mut view)?;
        }
        parser.end()?;
        Ok(with(result(&items, Some(view), self.facts)?, parser.changes))
    }
}

fn with(answer: Answer, changes: Vec<Change>) -> Answer {
    match answer {
        Answer::Rows { columns, rows, tag, .. } => Answer::Rows { columns, rows, tag, changes },
        other => other,
    }
}

/// Reads tokens from the front.
struct Parser<'a> {
    tokens: &'a [Token],
    statements: Statements<'a>,
    /// What set_config() does.
    changes: Vec<Change>,
    /// How many constants the one that is read is in.
    level: usize,
}

impl Parser<'_> {
    fn facts(&self) -> &dyn Facts {
        self.statements.facts
    }

    fn cannot<T>(&self) -> Result<T> {
        Err(cannot(self.facts()))
    }

    /// Takes the next token if it is right.
    fn take_if(&mut self, right: impl FnOnce(&[u8], &Token) -> bool) -> bool {
        let Some((first, rest)) = self.tokens.split_first() else { return false };
        let found = right(self.statements.text, first);
        if found {
            self.tokens = rest;
        }
        found
    }

    fn word(&mut self, word: &str) -> bool {
        self.take_if(|text, token| overlay::is_word(text, token, word))
    }

    fn kind(&mut self, kind: Kind) -> bool {
        self.take_if(|_, token| token.kind == kind)
    }

    fn operator(&mut self, operator: &[u8]) -> bool {
        self.take_if(|text, token| token.kind == Kind::Operator && &text[token.span.clone()] == operator)
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        if self.word(word) { Ok(()) } else { self.cannot() }
    }

    fn end(&self) -> Result<()> {
        if self.tokens.is_empty() { Ok(()) } else { self.cannot() }
    }

    fn name(&mut self) -> Option<String> {
        let name = overlay::identifier(self.statements.text, self.tokens.first()?)?;
        self.tokens = &self.tokens[1..];
        Some(name)
    }

    fn view(&mut self) -> Result<View> {
        self.skip_catalog();
        let view = self.name().and_then(|name| views::view(&name, self.facts()));
        let Some(view) = view else { return self.cannot() };
        let more = ["where", "order"].iter().any(|word| self.is_next(word));
        if self.word("as") || !more && !self.tokens.is_empty() {
            self.name().ok_or_else(|| cannot(self.facts()))?;
        }
        Ok(view)
    }

    fn is_next(&self, word: &str) -> bool {
        self.tokens.first().is_some_and(|token| overlay::is_word(self.statements.text, token, word))
    }

    fn item(&mut self) -> Result<Item> {
        if self.operator(b"*") {
            return Ok(Item::All);
        }
        if let Some(constant) = self.constant()? {
            let (field, value) = self.casts(constant)?;
            let label = self.label()?;
            let field = Field { name: label.unwrap_or(field.name), ..field };
            return Ok(Item::Constant { field, value });
        }
        if self.call("count", true) {
            let label = self.label()?.unwrap_or_else(|| "count".to_owned());
            return Ok(Item::Count { label });
        }
        let name = self.column()?;
        let cast = self.cast()?.map(|(cast, _)| cast);
        let label = self.label()?.unwrap_or_else(|| name.clone());
        Ok(Item::Column { name, cast, label })
    }

    /// The constant with the casts that follow.
    fn casts(&mut self, mut constant: Constant) -> Result<Constant> {
        while let Some((cast, name)) = self.cast()? {
            constant = self.cast_to(constant, cast, name)?;
        }
        Ok(constant)
    }

    fn cast_to(&self, (field, value): Constant, cast: ColumnType, name: String) -> Result<Constant> {
        if !can_recast(field.column_type, cast) {
            return self.cannot();
        }
        let value = value.map(|value| recast(value, field.column_type, cast, self.facts())).transpose()?;
        // What has no name of its own is called as its type (PG: FigureColname).
        let is_weak = [UNNAMED, "text", "name", "bool", "int4", "int8", "oid", "pg_lsn"];
        let name = if is_weak.contains(&field.name.as_str()) { name } else { field.name };
        Ok((Field::new(name, cast), value))
    }

    /// `::type`, with the type's name.
    fn cast(&mut self) -> Result<Option<(ColumnType, String)>> {
        if !self.operator(b"::") {
            return Ok(None);
        }
        self.type_name().map(Some)
    }

    fn type_name(&mut self) -> Result<(ColumnType, String)> {
        self.skip_catalog();
        let name = self.name().unwrap_or_default();
        let (column_type, name) = match name.as_str() {
            "text" => (ColumnType::Text, "text"),
            "name" => (ColumnType::Name, "name"),
            "bool" | "boolean" => (ColumnType::Bool, "bool"),
            "int4" | "int" | "integer" => (ColumnType::Int4, "int4"),
            "int8" | "bigint" => (ColumnType::Int8, "int8"),
            "oid" => (ColumnType::Oid, "oid"),
            "pg_lsn" => (ColumnType::PgLsn, "pg_lsn"),
            _ => return self.cannot(),
        };
        Ok((column_type, name.to_owned()))
    }

    fn skip_catalog(&mut self) {
        if let [schema, dot, ..] = self.tokens
            && dot.kind == Kind::Dot
            && overlay::is_identifier(self.statements.text, schema, "pg_catalog")
        {
            self.tokens = &self.tokens[2..];
        }
    }

    /// `column`, or `view.column`.
    fn column(&mut self) -> Result<String> {
        let mut name = self.name();
        if self.kind(Kind::Dot) {
            name = self.name();
        }
        name.ok_or_else(|| cannot(self.facts()))
    }

    fn label(&mut self) -> Result<Option<String>> {
        if self.word("as") {
            return self.name().map(Some).ok_or_else(|| cannot(self.facts()));
        }
        if ["from", "where", "order"].iter().any(|word| self.is_next(word)) {
            return Ok(None);
        }
        Ok(self.name())
    }

    /// `name()` or `name(*)`
    fn call(&mut self, name: &str, star: bool) -> bool {
        let before = self.tokens;
        self.skip_catalog();
        let found = self.take_if(|text, token| overlay::is_identifier(text, token, name))
            && self.kind(Kind::Open)
            && (!star || self.operator(b"*"))
            && self.kind(Kind::Close);
        if !found {
            self.tokens = before;
        }
        found
    }

    /// What is known without a table. An unknown value is an error, NULL is one.
    fn constant(&mut self) -> Result<Option<Constant>> {
        if self.level > MOST_LEVELS {
            let text = "stack depth limit exceeded";
            return Err(PgError::error(sqlstate::STATEMENT_TOO_COMPLEX, text));
        }
        self.level += 1;
        let constant = self.constant_in_level();
        self.level -= 1;
        constant
    }

    fn constant_in_level(&mut self) -> Result<Option<Constant>> {
        if let Some(constant) = self.function()? {
            return Ok(Some(constant));
        }
        let before = self.tokens;
        if self.word("not")
            && let Some((field, value)) = self.constant()?
        {
            if field.column_type != ColumnType::Bool {
                return self.cannot();
            }
            let negated = value.map(|value| flag(value != "t"));
            return Ok(Some((Field::new(UNNAMED, ColumnType::Bool), negated)));
        }
        self.tokens = before;
        if self.word("cast") && self.kind(Kind::Open) {
            let Some((field, value)) = self.constant()? else { return self.cannot() };
            self.expect("as")?;
            let (cast, name) = self.type_name()?;
            if !self.kind(Kind::Close) {
                return self.cannot();
            }
            return self.cast_to((field, value), cast, name).map(Some);
        }
        self.tokens = before;
        self.value()
    }

    /// A literal or a parameter.
    fn value(&mut self) -> Result<Option<Constant>> {
        let text = self.statements.text;
        let Some((token, rest)) = self.tokens.split_first() else { return Ok(None) };
        let written = String::from_utf8_lossy(&text[token.span.clone()]).into_owned();
        let constant = match token.kind {
            Kind::Parameter => {
                self.tokens = rest;
                return self.parameter(&written).map(Some);
            }
            Kind::Number if written.parse::<i32>().is_ok() => Some((ColumnType::Int4, Some(written))),
            Kind::Word => match written.to_ascii_lowercase().as_str() {
                "true" => Some((ColumnType::Bool, Some(flag(true)))),
                "false" => Some((ColumnType::Bool, Some(flag(false)))),
                "null" => Some((ColumnType::Text, None)),
                _ => None,
            },
            _ => overlay::string_value(text, token).map(|value| (ColumnType::Text, Some(value))),
        };
        let Some((column_type, value)) = constant else { return Ok(None) };
        self.tokens = rest;
        Ok(Some((Field::new(UNNAMED, column_type), value)))
    }

    /// `$1`, of the type that is behind it, or that it has.
    fn parameter(&mut self, written: &str) -> Result<Constant> {
        let number = written[1..].parse().unwrap_or(usize::MAX);
        let before = self.tokens;
        let parameters = self.statements.parameters;
        let wanted = match self.cast()? {
            Some((cast, _)) => cast,
            None => parameters.own_type(number)?,
        };
        // The cast is to be seen by who asked, for the name.
        self.tokens = before;
        let value = parameters.value(number, wanted, self.facts())?;
        Ok((Field::new(UNNAMED, wanted), value))
    }

    /// A call of a function whose result is known.
    fn function(&mut self) -> Result<Option<Constant>> {
        let unknown = unreachable_upstream;
        let constant =
            |name: &str, column_type, value: String| Ok(Some((Field::new(name, column_type), Some(value))));
        if self.call("version", false) {
            let version = self.facts().setting("server_version").ok_or_else(unknown)?;
            let text = format!("PostgreSQL {version} (through walrelay {})", env!("CARGO_PKG_VERSION"));
            return constant("version", ColumnType::Text, text);
        }
        if self.call("pg_is_in_recovery", false) {
            let answer = self.facts().is_in_recovery().ok_or_else(unknown)?;
            return constant("pg_is_in_recovery", ColumnType::Bool, flag(answer));
        }
        if self.call("pg_backend_pid", false) {
            return constant("pg_backend_pid", ColumnType::Int4, self.facts().pid().to_string());
        }
        if self.call("pg_advisory_unlock_all", false) {
            return constant("pg_advisory_unlock_all", ColumnType::Void, String::new());
        }
        if self.call("current_database", false) {
            return constant("current_database", ColumnType::Name, self.facts().database());
        }
        // There is none in which something could be made.
        if self.call("current_schema", false) || self.word("current_schema") {
            return Ok(Some((Field::new("current_schema", ColumnType::Name), None)));
        }
        for name in ["current_user", "session_user", "user", "current_role"] {
            if self.word(name) {
                return constant(name, ColumnType::Name, self.facts().user());
            }
        }
        self.setting_function()
    }

    /// `current_setting(name [, missing_ok])` and `set_config(name, value, is_local)`
    fn setting_function(&mut self) -> Result<Option<Constant>> {
        let before = self.tokens;
        self.skip_catalog();
        let name = ["current_setting", "set_config"].into_iter().find(|name| {
            self.tokens.first().is_some_and(|first| overlay::is_identifier(self.statements.text, first, name))
        });
        let Some(name) = name.filter(|_| self.tokens.get(1).is_some_and(|open| open.kind == Kind::Open))
        else {
            self.tokens = before;
            return Ok(None);
        };
        self.tokens = &self.tokens[2..];
        let setting = self.argument(ColumnType::Text)?;
        let value = match name {
            "set_config" => {
                self.comma()?;
                let value = self.argument(ColumnType::Text)?;
                self.comma()?;
                let is_local = self.argument(ColumnType::Bool)?;
                if setting.as_deref() == Some("application_name") && is_local.as_deref() == Some("f") {
                    self.changes.extend(value.clone().map(Change::ApplicationName));
                }
                value
            }
            _ => {
                let missing_ok = match self.kind(Kind::Comma) {
                    true => self.argument(ColumnType::Bool)?.as_deref() == Some("t"),
                    false => false,
                };
                match setting {
                    Some(setting) => self.setting(&setting, missing_ok)?,
                    None => None,
                }
            }
        };
        if !self.kind(Kind::Close) {
            return self.cannot();
        }
        Ok(Some((Field::new(name, ColumnType::Text), value)))
    }

    fn setting(&self, name: &str, missing_ok: bool) -> Result<Option<String>> {
        match (self.facts().setting(name), self.facts().instead()) {
            (None, Instead::OwnDatabase) if missing_ok => Ok(None),
            (None, _) => Err(self.statements.unknown(name)),
            (known, _) => Ok(known),
        }
    }

    fn comma(&mut self) -> Result<()> {
        if self.kind(Kind::Comma) { Ok(()) } else { self.cannot() }
    }

    /// A constant of that type, or that can be read as one.
    fn argument(&mut self, column_type: ColumnType) -> Result<Option<String>> {
        if let Some(token) = self.tokens.first()
            && token.kind == Kind::Parameter
        {
            let number = &self.statements.text[token.span.start + 1..token.span.end];
            let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
            self.tokens = &self.tokens[1..];
            let cast = self.cast()?;
            if cast.is_some_and(|(cast, _)| cast != column_type) {
                return self.cannot();
            }
            return self.statements.parameters.value(number.unwrap_or(usize::MAX), column_type, self.facts());
        }
        let Some((field, value)) = self.value()? else { return self.cannot() };
        if field.column_type != column_type && field.column_type != ColumnType::Text {
            return self.cannot();
        }
        value.map(|value| written(&value, column_type, self.facts())).transpose()
    }

    /// Leaves the rows in the view that meet it.
    fn condition(&mut self, view: &mut View) -> Result<()> {
        let negated = self.word("not");
        let name = self.column()?;
        let column_type = view.column_type(&name)?;
        if self.word("is") && !negated {
            let wanted = self.word("not");
            self.expect("null")?;
            view.rows.retain(|row| row.get(&name).is_some() == wanted);
            return Ok(());
        }
        let equal = self.operator(b"=");
        if !negated && (equal || self.operator(b"<>") || self.operator(b"!=")) {
            // Nothing is equal to NULL, nor different from it.
            let wanted = self.literal(column_type)?;
            let holds = |value: &str| wanted.as_ref().is_some_and(|wanted| (value == wanted) == equal);
            view.rows.retain(|row| row.get(&name).is_some_and(holds));
            return Ok(());
        }
        if column_type != ColumnType::Bool {
            return self.cannot();
        }
        let wanted = flag(!negated);
        view.rows.retain(|row| row.get(&name) == Some(wanted.as_str()));
        Ok(())
    }

    /// A literal or a parameter, written as the rows have values of that type.
    fn literal(&mut self, column_type: ColumnType) -> Result<Option<String>> {
        let Some((first, rest)) = self.tokens.split_first() else { return self.cannot() };
        let text = self.statements.text;
        if first.kind == Kind::Parameter {
            let number = std::str::from_utf8(&text[first.span.start + 1..first.span.end]);
            let number = number.ok().and_then(|number| number.parse().ok()).unwrap_or(usize::MAX);
            self.tokens = rest;
            // Of a text and a name the longer is what both are compared as.
            let cast = self.cast()?.map_or(column_type, |(cast, _)| cast);
            let is_text = |kind| matches!(kind, ColumnType::Text | ColumnType::Name);
            if cast != column_type && !(is_text(cast) && is_text(column_type)) {
                return self.cannot();
            }
            // Refused whatever the value is.
            written("", column_type, self.facts()).or_else(|error| {
                let is_value = error.sqlstate == sqlstate::INVALID_TEXT_REPRESENTATION;
                if is_value { Ok(String::new()) } else { Err(error) }
            })?;
            return self.statements.parameters.value(number, cast, self.facts());
        }
        let as_it_is = || String::from_utf8_lossy(&text[first.span.clone()]).to_ascii_lowercase();
        let value = match first.kind {
            Kind::Number => Some(as_it_is()),
            Kind::Word => Some(as_it_is()).filter(|word| word == "true" || word == "false"),
            _ => overlay::string_value(text, first),
        };
        self.tokens = rest;
        let Some(value) = value else { return self.cannot() };
        let value = written(&value, column_type, self.facts())?;
        match self.cast()? {
            Some((cast, _)) if cast != column_type => self.cannot(),
            _ => Ok(Some(value)),
        }
    }

    fn order(&mut self, view: &mut View) -> Result<()> {
        self.expect("by")?;
        let mut keys: Vec<(String, ColumnType, bool)> = Vec::new();
        loop {
            let name = self.column()?;
            let column_type = view.column_type(&name)?;
            let descending = !self.word("asc") && self.word("desc");
            // Rows that a column has left equal are so for ever.
            if keys.iter().all(|(known, ..)| *known != name) {
                keys.push((name, column_type, descending));
            }
            if !self.kind(Kind::Comma) {
                break;
            }
        }
        view.rows.sort_by(|a, b| {
            let by = |(name, column_type, descending): &(String, ColumnType, bool)| {
                let order = compare(a.get(name), b.get(name), *column_type);
                if *descending { order.reverse() } else { order }
            };
            keys.iter().map(by).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        });
        Ok(())
    }
}

/// NULLs come last.
fn compare(a: Option<&str>, b: Option<&str>, column_type: ColumnType) -> Ordering {
    let (Some(a), Some(b)) = (a, b) else { return a.is_none().cmp(&b.is_none()) };
    match column_type {
        ColumnType::Int4 | ColumnType::Int8 | ColumnType::Oid | ColumnType::Xid => {
            a.parse::<i64>().ok().cmp(&b.parse().ok())
        }
        ColumnType::PgLsn => a.parse::<Lsn>().ok().cmp(&b.parse().ok()),
        // Hours may have more than two digits.
        ColumnType::Interval => (a.find(':'), a).cmp(&(b.find(':'), b)),
        _ => a.cmp(b),
    }
}

impl View {
    fn column_type(&self, name: &str) -> Result<ColumnType> {
        let found = self.columns.iter().find(|(column, _)| *column == name);
        found.map(|(_, column_type)| *column_type).ok_or_else(|| no_column(name))
    }
}

/// A constant of a SELECT list.
type Constant = (Field, Option<String>);

/// What a column without a name is called.
const UNNAMED: &str = "?column?";

/// Whether [`recast`] knows how.
fn can_recast(from: ColumnType, to: ColumnType) -> bool {
    use ColumnType::{Bool, Int4, Int8, Name, Oid, PgLsn, Text, Void};
    match (from, to) {
        (Void, _) | (_, Void) => false,
        (_, Text) | (Text | Name, Name | Bool | Int4 | Int8 | Oid | PgLsn) => true,
        (Int4 | Oid, Int8) | (Int4 | Int8, Oid | Int4) => true,
        _ => from == to,
    }
}

/// A value of a type as one of another.
fn recast(value: String, from: ColumnType, to: ColumnType, facts: &dyn Facts) -> Result<String> {
    match (from, to) {
        _ if from == to => Ok(value),
        (ColumnType::Bool, ColumnType::Text) => Ok(if value == "t" { "true" } else { "false" }.to_owned()),
        // The text of an address tells its bits.
        (ColumnType::Inet, ColumnType::Text) => {
            Ok(if value.contains(':') { value + "/128" } else { value + "/32" })
        }
        (_, ColumnType::Text) => Ok(value),
        _ => written(&value, to, facts),
    }
}

/// Whether a list of so many may be.
fn has_room(columns: usize) -> Result<()> {
    if columns <= MOST_COLUMNS {
        return Ok(());
    }
    let text = format!("target lists can have at most {MOST_COLUMNS} entries");
    Err(PgError::error(sqlstate::TOO_MANY_COLUMNS, text))
}

fn too_large() -> PgError {
    let text = format!("the result has more than {} MB", MOST_RESULT >> 20);
    PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text).with_hint("Select fewer columns, or rows.")
}

fn no_column(name: &str) -> PgError {
    PgError::error(sqlstate::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist"))
}

/// What is left in the view, as the items want it; without a view, one row of constants.
fn result(items: &[Item], view: Option<View>, facts: &dyn Facts) -> Result<Answer> {
    let mut outputs = Vec::new();
    for item in items {
        outputs.extend(item.outputs(view.as_ref(), facts)?);
        has_room(outputs.len())?;
    }
    let is_count = |output: &Output| matches!(output.source, Source::Count);
    let is_column = |output: &Output| matches!(output.source, Source::Column(..));
    let found = view.map_or_else(|| vec![Row::default()], |view| view.rows);
    let from = match outputs.iter().any(is_count) {
        true if outputs.iter().any(is_column) => {
            let text = "columns must appear in a GROUP BY clause or be used in an aggregate function";
            return Err(PgError::error(sqlstate::GROUPING_ERROR, text));
        }
        true => &[Row::default()][..],
        false => found.as_slice(),
    };
    let value = |row: &Row, output: &Output| match &output.source {
        Source::Column(name, kind) => {
            let value = row.get(name).map(str::to_owned);
            value.map(|value| recast(value, *kind, output.field.column_type, facts)).transpose()
        }
        Source::Count => Ok(Some(found.len().to_string())),
        Source::Constant(value) => Ok(value.clone()),
    };
    let mut room = MOST_RESULT;
    let mut limited = |row: &Row, output: &Output| {
        let value = value(row, output)?;
        let size = size_of_val(&value) + value.as_ref().map_or(0, String::len);
        room = room.checked_sub(size).ok_or_else(too_large)?;
        Ok(value)
    };
    let rows = from.iter().map(|row| outputs.iter().map(|output| limited(row, output)).collect());
    let rows: Vec<Vec<_>> = rows.collect::<Result<_>>()?;
    let tag = format!("SELECT {}", rows.len());
    let columns = outputs.into_iter().map(|output| output.field).collect();
    Ok(Answer::Rows { columns, rows, tag, changes: Vec::new() })
}

/// A column of the result.
#[derive(Clone)]
struct Output {
    field: Field,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Column(String, ColumnType),
    Count,
    Constant(Option<String>),
}

impl Item {
    fn outputs(&self, view: Option<&View>, facts: &dyn Facts) -> Result<Vec<Output>> {
        let column = |name: &str, label: &str, kind, shown| Output {
            field: Field::new(label, shown),
            source: Source::Column(name.to_owned(), kind),
        };
        Ok(match (self, view) {
            (Item::All, Some(view)) => {
                view.columns.iter().map(|&(name, kind)| column(name, name, kind, kind)).collect()
            }
            (Item::All, None) => {
                let text = "SELECT * with no tables specified is not valid";
                return Err(PgError::error(sqlstate::SYNTAX_ERROR, text));
            }
            (Item::Column { name, cast, label }, Some(view)) => {
                let kind = view.column_type(name)?;
                let shown = cast.unwrap_or(kind);
                if !can_recast(kind, shown) && kind != shown {
                    return Err(cannot(facts));
                }
                vec![column(name, label, kind, shown)]
            }
            (Item::Column { name, .. }, None) => return Err(no_column(name)),
            (Item::Count { label }, _) => {
                vec![Output { field: Field::new(label, ColumnType::Int8), source: Source::Count }]
            }
            (Item::Constant { field, value }, _) => {
                vec![Output { field: field.clone(), source: Source::Constant(value.clone()) }]
            }
        })
    }
}
