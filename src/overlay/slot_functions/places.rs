//! Places in a statement where a call is certain to be executed once, and what is put there instead.

use crate::overlay::lex::{self, Kind, Token};
use crate::overlay::rewrite::Edit;

use super::arguments::Call;
use super::{Function, Outcome, span};

/// A place of a call.
pub(super) struct Place {
    /// All that is replaced.
    span: std::ops::Range<usize>,
    form: Form,
}

enum Form {
    /// An item of a SELECT list.
    Item,
    /// `(call).column` there.
    Column(&'static str),
    /// `(call).*` there.
    AllColumns,
    /// An item of a FROM list, with the alias it has there unless that has a list of columns.
    Table { alias: Alias },
}

enum Alias {
    None,
    /// As it is written.
    Table(String),
    /// It names the columns too.
    Columns,
}

impl Function {
    /// The names of what it returns.
    fn columns(self) -> &'static [&'static str] {
        match self {
            Function::Create | Function::Copy => &["slot_name", "lsn"],
            Function::Advance => &["slot_name", "end_lsn"],
            Function::Drop => &[],
        }
    }
}

/// Words that may make a statement execute a function not at all or several times, or hide where its parts end.
const UNCERTAIN: [&str; 28] = [
    "where",
    "group",
    "having",
    "window",
    "union",
    "intersect",
    "except",
    "limit",
    "offset",
    "fetch",
    "for",
    "into",
    "join",
    "cross",
    "natural",
    "left",
    "right",
    "full",
    "inner",
    "lateral",
    "tablesample",
    "with",
    "and",
    "or",
    "case",
    "on",
    "using",
    "filter",
];

/// Where in a statement calls are.
pub(super) struct Places<'a> {
    text: &'a [u8],
    tokens: &'a [Token],
    calls: &'a [Call],
    /// Parentheses around each token; those themselves count as outside.
    depths: Vec<usize>,
    /// The FROM of the statement.
    from: Option<usize>,
    /// Whether it is a SELECT and has none of the uncertain words.
    is_plain: bool,
}

impl<'a> Places<'a> {
    pub(super) fn new(text: &'a [u8], tokens: &'a [Token], calls: &'a [Call]) -> Places<'a> {
        let depths = depths(tokens);
        let is = |at: usize, word: &str| depths[at] == 0 && lex::is_word(text, &tokens[at], word);
        let from = (0..tokens.len()).find(|&at| is(at, "from"));
        let uncertain = (1..tokens.len()).any(|at| UNCERTAIN.iter().any(|word| is(at, word)));
        let is_plain = is(0, "select") && !uncertain;
        Places { text, tokens, calls, depths, from, is_plain }
    }

    /// Where the call is, unless it may be skipped or repeated there.
    pub(super) fn of(&self, call: &Call) -> Option<Place> {
        if !self.is_plain {
            return None;
        }
        match self.from {
            Some(from) => self.in_from_list(call, from),
            None => self.in_select_list(call),
        }
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| lex::is_word(self.text, token, word))
    }

    /// Where the item of a list ends that goes on at `at`: its comma, or the end.
    fn end_of_item(&self, at: usize) -> usize {
        let ends = |&at: &usize| self.depths[at] == 0 && self.tokens[at].kind == Kind::Comma;
        (at..self.tokens.len()).find(ends).unwrap_or(self.tokens.len())
    }

    fn in_select_list(&self, call: &Call) -> Option<Place> {
        let (first, last, form) = match self.depths[call.first] {
            0 => (call.first, call.last, Form::Item),
            1 => self.column(call)?,
            _ => return None,
        };
        let before = first.checked_sub(1)?;
        let begins_item = self.tokens[before].kind == Kind::Comma
            || self.is(before, "select") && before == 0
            || self.is(before, "all") && before == 1;
        // Casts and a label.
        let rest = &self.tokens[last + 1..self.end_of_item(last + 1)];
        let harmless = |token: &Token| match token.kind {
            Kind::Word | Kind::Quoted | Kind::Dot => !lex::is_word(self.text, token, "order"),
            Kind::Operator => &self.text[token.span.clone()] == b"::",
            _ => false,
        };
        let place = Place { span: span(self.tokens, first, last), form };
        (begins_item && rest.iter().all(harmless)).then_some(place)
    }

    /// `(call).column`: its first and last token, and what it is.
    fn column(&self, call: &Call) -> Option<(usize, usize, Form)> {
        let first = call.first.checked_sub(1).filter(|&at| self.tokens[at].kind == Kind::Open)?;
        let [close, dot, column, ..] = &self.tokens[call.last + 1..] else { return None };
        if close.kind != Kind::Close || dot.kind != Kind::Dot {
            return None;
        }
        let names = |name: &&&str| lex::is_identifier(self.text, column, name);
        let form = match call.function.columns().iter().find(names) {
            Some(name) => Form::Column(name),
            None if &self.text[column.span.clone()] == b"*" => Form::AllColumns,
            None => return None,
        };
        (call.function != Function::Drop).then_some((first, call.last + 3, form))
    }

    fn in_from_list(&self, call: &Call, from: usize) -> Option<Place> {
        let mut at = from + 1;
        let mut place = None;
        loop {
            let item = self.calls.iter().find(|call| call.first == at)?;
            let (alias, next) = self.alias(item.last + 1);
            if item.first == call.first {
                let span = span(self.tokens, item.first, item.last);
                place = Some(Place { span, form: Form::Table { alias } });
            }
            match self.tokens.get(next).map(|token| token.kind) {
                Some(Kind::Comma) => at = next + 1,
                Some(_) if !self.is(next, "order") => return None,
                _ => return place,
            }
        }
    }

    /// The alias at a place, and what follows it.
    fn alias(&self, at: usize) -> (Alias, usize) {
        let name = at + usize::from(self.is(at, "as"));
        let Some(token) = self.tokens.get(name) else { return (Alias::None, at) };
        let is_name = matches!(token.kind, Kind::Word | Kind::Quoted) && !self.is(name, "order");
        if !is_name {
            return (Alias::None, at);
        }
        if self.tokens.get(name + 1).is_some_and(|token| token.kind == Kind::Open) {
            let close = (name + 2..self.tokens.len()).find(|&close| {
                self.tokens[close].kind == Kind::Close && self.depths[close] == self.depths[name + 1]
            });
            return (Alias::Columns, close.map_or(self.tokens.len(), |close| close + 1));
        }
        let written = String::from_utf8_lossy(&self.text[token.span.clone()]).into_owned();
        (Alias::Table(written), name + 1)
    }
}

fn depths(tokens: &[Token]) -> Vec<usize> {
    let mut depth = 0_usize;
    let step = |token: &Token| match token.kind {
        Kind::Open => {
            depth += 1;
            depth - 1
        }
        Kind::Close => {
            depth = depth.saturating_sub(1);
            depth
        }
        _ => depth,
    };
    tokens.iter().map(step).collect()
}

impl Place {
    /// The outcome in the call's place, with the columns the call would have.
    pub(super) fn put(self, outcome: &Outcome) -> Edit {
        let name = outcome.function.name();
        let columns = |renamed: Option<&str>| {
            let column = |(name, value): &(&str, String)| format!("{value} AS {}", renamed.unwrap_or(name));
            outcome.columns.iter().map(column).collect::<Vec<_>>()
        };
        let text = match &self.form {
            Form::Item => match outcome.columns.as_slice() {
                [(_, only)] => format!("(SELECT {only} AS {name})"),
                several => {
                    let values: Vec<_> = several.iter().map(|(_, value)| value.as_str()).collect();
                    format!("(SELECT ROW({}) AS {name})", values.join(", "))
                }
            },
            Form::Column(wanted) => {
                let value = outcome.columns.iter().find(|(name, _)| name == wanted);
                let value = value.map_or("NULL", |(_, value)| value);
                format!("(SELECT {value} AS {wanted})")
            }
            Form::AllColumns => {
                let each: Vec<_> = columns(None).iter().map(|column| format!("(SELECT {column})")).collect();
                each.join(", ")
            }
            Form::Table { alias: Alias::None } => format!("(SELECT {}) AS {name}", columns(None).join(", ")),
            // The column of a function that returns one value is called as its alias.
            Form::Table { alias: Alias::Table(alias) } if outcome.columns.len() == 1 => {
                format!("(SELECT {})", columns(Some(alias)).join(", "))
            }
            Form::Table { alias: Alias::Table(_) | Alias::Columns } => {
                format!("(SELECT {})", columns(None).join(", "))
            }
        };
        Edit { span: self.span, text }
    }
}
