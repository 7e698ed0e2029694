//! SELECT from the views, and of what needs no table.
//!
//! ```text
//! statement = TABLE view | SELECT item {, item} [FROM view [[AS] alias] [WHERE condition {AND condition}]
//!             [ORDER BY column [ASC | DESC] {, …}]]
//! item      = (* | count(*) | column | constant) [[AS] label]
//! condition = column (= | <> | !=) literal | column IS [NOT] NULL | [NOT] column
//! ```

use std::cmp::Ordering;

use walrelay_proto::Lsn;

use crate::overlay::{self, Kind, Row, Token};
use crate::wire::messages::ColumnType;
use crate::wire::{PgError, sqlstate};

use super::views::{self, View};
use super::{Answer, Facts, Field, Statements, cannot, flag, unreachable_upstream};

type Result<T> = std::result::Result<T, PgError>;

/// An item of a SELECT list.
enum Item {
    All,
    Count { label: String },
    Column { name: String, label: String },
    Constant { field: Field, value: String },
}

impl Statements<'_> {
    pub(super) fn select(self, tokens: &[Token]) -> Result<Answer> {
        let mut parser = Parser { tokens, statements: self };
        if parser.word("table") {
            let view = parser.view()?;
            parser.end()?;
            return result(&[Item::All], Some(view));
        }
        parser.expect("select")?;
        let mut items = vec![parser.item()?];
        while parser.kind(Kind::Comma) {
            items.push(parser.item()?);
        }
        if !parser.word("from") {
            parser.end()?;
            return result(&items, None);
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
        result(&items, Some(view))
    }
}

/// Reads tokens from the front.
struct Parser<'a> {
    tokens: &'a [Token],
    statements: Statements<'a>,
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
        if let [schema, dot, ..] = self.tokens
            && dot.kind == Kind::Dot
            && overlay::is_identifier(self.statements.text, schema, "pg_catalog")
        {
            self.tokens = &self.tokens[2..];
        }
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
        if let Some((field, value)) = self.constant()? {
            let label = self.label()?;
            let field = Field { name: label.unwrap_or(field.name), ..field };
            return Ok(Item::Constant { field, value });
        }
        if self.call("count", true) {
            let label = self.label()?.unwrap_or_else(|| "count".to_owned());
            return Ok(Item::Count { label });
        }
        let name = self.column()?;
        let label = self.label()?.unwrap_or_else(|| name.clone());
        Ok(Item::Column { name, label })
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
        if let [schema, dot, ..] = before
            && dot.kind == Kind::Dot
            && overlay::is_identifier(self.statements.text, schema, "pg_catalog")
        {
            self.tokens = &before[2..];
        }
        let found = self.take_if(|text, token| overlay::is_identifier(text, token, name))
            && self.kind(Kind::Open)
            && (!star || self.operator(b"*"))
            && self.kind(Kind::Close);
        if !found {
            self.tokens = before;
        }
        found
    }

    /// What is known without a table.
    fn constant(&mut self) -> Result<Option<(Field, String)>> {
        let unknown = unreachable_upstream;
        if self.call("version", false) {
            let version = self.facts().setting("server_version").ok_or_else(unknown)?;
            let text = format!("PostgreSQL {version} (through walrelay {})", env!("CARGO_PKG_VERSION"));
            return Ok(Some((Field::new("version", ColumnType::Text), text)));
        }
        if self.call("pg_is_in_recovery", false) {
            let answer = self.facts().is_in_recovery().ok_or_else(unknown)?;
            return Ok(Some((Field::new("pg_is_in_recovery", ColumnType::Bool), flag(answer))));
        }
        for name in ["current_user", "session_user", "user"] {
            if self.word(name) {
                return Ok(Some((Field::new(name, ColumnType::Name), self.facts().user())));
            }
        }
        let text = self.statements.text;
        let Some(token) = self.tokens.first() else { return Ok(None) };
        let written = String::from_utf8_lossy(&text[token.span.clone()]).into_owned();
        let constant = match token.kind {
            Kind::Number if written.parse::<i32>().is_ok() => Some((ColumnType::Int4, written)),
            _ => overlay::string_value(text, token).map(|value| (ColumnType::Text, value)),
        };
        let Some((column_type, value)) = constant else { return Ok(None) };
        self.tokens = &self.tokens[1..];
        Ok(Some((Field::new("?column?", column_type), value)))
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
            let wanted = self.literal(column_type)?;
            view.rows.retain(|row| row.get(&name).is_some_and(|value| (value == wanted) == equal));
            return Ok(());
        }
        if column_type != ColumnType::Bool {
            return self.cannot();
        }
        let wanted = flag(!negated);
        view.rows.retain(|row| row.get(&name) == Some(wanted.as_str()));
        Ok(())
    }

    /// A literal, written as the rows have values of that type.
    fn literal(&mut self, column_type: ColumnType) -> Result<String> {
        let Some((first, rest)) = self.tokens.split_first() else { return self.cannot() };
        let text = self.statements.text;
        let written = || String::from_utf8_lossy(&text[first.span.clone()]).to_ascii_lowercase();
        let value = match first.kind {
            Kind::Number => Some(written()),
            Kind::Word => Some(written()).filter(|word| word == "true" || word == "false"),
            _ => overlay::string_value(text, first),
        };
        let value = value.and_then(|value| match column_type {
            ColumnType::PgLsn => value.parse::<Lsn>().ok().map(|lsn| lsn.text(views::major(self.facts()))),
            ColumnType::Bool => match value.as_str() {
                "t" | "true" | "on" => Some(flag(true)),
                "f" | "false" | "off" => Some(flag(false)),
                _ => None,
            },
            // Not worth comparing as what they are.
            ColumnType::Timestamptz | ColumnType::Interval | ColumnType::Inet => None,
            _ => Some(value),
        });
        self.tokens = rest;
        value.ok_or_else(|| cannot(self.facts()))
    }

    fn order(&mut self, view: &mut View) -> Result<()> {
        self.expect("by")?;
        let mut keys = Vec::new();
        loop {
            let name = self.column()?;
            let column_type = view.column_type(&name)?;
            let descending = !self.word("asc") && self.word("desc");
            keys.push((name, column_type, descending));
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

fn no_column(name: &str) -> PgError {
    PgError::error(sqlstate::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist"))
}

/// What is left in the view, as the items want it; without a view, one row of constants.
fn result(items: &[Item], view: Option<View>) -> Result<Answer> {
    let outputs: Vec<_> = items.iter().map(|item| item.outputs(view.as_ref())).collect::<Result<_>>()?;
    let outputs = outputs.concat();
    let is_count = |output: &Output| matches!(output.source, Source::Count);
    let is_column = |output: &Output| matches!(output.source, Source::Column(_));
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
        Source::Column(name) => row.get(name).map(str::to_owned),
        Source::Count => Some(found.len().to_string()),
        Source::Constant(value) => Some(value.clone()),
    };
    let rows: Vec<Vec<_>> =
        from.iter().map(|row| outputs.iter().map(|output| value(row, output)).collect()).collect();
    let tag = format!("SELECT {}", rows.len());
    Ok(Answer::Rows { columns: outputs.into_iter().map(|output| output.field).collect(), rows, tag })
}

/// A column of the result.
#[derive(Clone)]
struct Output {
    field: Field,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Column(String),
    Count,
    Constant(String),
}

impl Item {
    fn outputs(&self, view: Option<&View>) -> Result<Vec<Output>> {
        let column = |name: &str, label: &str, column_type| Output {
            field: Field::new(label, column_type),
            source: Source::Column(name.to_owned()),
        };
        Ok(match (self, view) {
            (Item::All, Some(view)) => {
                view.columns.iter().map(|&(name, kind)| column(name, name, kind)).collect()
            }
            (Item::All, None) => {
                let text = "SELECT * with no tables specified is not valid";
                return Err(PgError::error(sqlstate::SYNTAX_ERROR, text));
            }
            (Item::Column { name, label }, Some(view)) => vec![column(name, label, view.column_type(name)?)],
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
