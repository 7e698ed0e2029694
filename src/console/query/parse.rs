//! From tokens to a [`Query`]: the grammar of PostgreSQL's SELECT, as far as the engine has it (PostgreSQL: `gram.y`).
//!
//! The tokens are those of `overlay::lex`, which knows strings, names and operators as the server does; here is only what
//! may stand where. What is SQL and is not had is refused by name. How deep an expression becomes is counted while it is read, so
//! that whatever walks through it afterwards needs no limit of its own.

mod expression;

use crate::overlay::{self, Kind, Token};
use crate::wire::{PgError, sqlstate};

use super::ast::{
    Alias, Body, Call, Cte, Distinct, Expr, From, Item, JoinKind, On, Query, Select, SetOperator, Sort,
};
use super::{Result, unsupported};

/// How deep the parser may be in itself; each level takes a part of the stack.
const MOST_LEVELS: usize = 60;

/// How high an expression, or a chain of joins or UNIONs, may grow: `1 + 1 + 1` is three.
const MOST_HEIGHT: usize = 150;

/// Parts that a statement may have altogether.
const MOST_PARTS: usize = 50_000;

/// Columns of a result (PostgreSQL: `MaxTupleAttributeNumber`).
const MOST_COLUMNS: usize = 1664;

/// Reads a whole statement.
pub(super) fn parse(text: &[u8], tokens: &[Token]) -> Result<Query> {
    let mut parser = Parser { text, tokens, at: 0, skip: 0, level: 0, height: 0, parts: 0 };
    let query = parser.query()?;
    if parser.at < tokens.len() { Err(parser.unexpected()) } else { Ok(query) }
}

/// Whether a list of so many columns may be.
pub(super) fn has_room(columns: usize) -> Result<()> {
    if columns <= MOST_COLUMNS {
        return Ok(());
    }
    let text = format!("target lists can have at most {MOST_COLUMNS} entries");
    Err(PgError::error(sqlstate::TOO_MANY_COLUMNS, text))
}

pub(super) fn too_deep() -> PgError {
    PgError::error(sqlstate::STATEMENT_TOO_COMPLEX, "stack depth limit exceeded")
        .with_hint("walrelay takes statements that are nested less deeply.")
}

/// Reads tokens from the front.
struct Parser<'a> {
    text: &'a [u8],
    tokens: &'a [Token],
    at: usize,
    /// Bytes of the token that are taken already: operators may stand together.
    skip: usize,
    level: usize,
    /// Of the highest expression that was read within the one that is being read.
    height: usize,
    parts: usize,
}

/// What may follow a value without AS and is no label.
const NO_LABELS: &str = "and as between except fetch filter for from group having ilike in intersect into is isnull like \
    limit notnull offset on operator or order over similar union where window with";

/// Words that name no table or column unless in quotes.
const RESERVED: &str = "all analyse analyze and any array as asc asymmetric authorization between both case cast check \
    collate column constraint create cross current_catalog current_date current_role current_time \
    current_timestamp current_user default desc distinct do else end except false fetch for foreign from \
    full grant group having ilike in initially inner intersect into is isnull join lateral leading left \
    like limit localtime localtimestamp natural not notnull null offset on only or order outer placing \
    primary references returning right select session_user similar some symmetric table tablesample then \
    to trailing true union unique user using variadic when where with";

impl Parser<'_> {
    // What is next.

    fn token(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn is_word_at(&self, ahead: usize, word: &str) -> bool {
        self.tokens.get(self.at + ahead).is_some_and(|token| overlay::is_word(self.text, token, word))
    }

    fn is_word(&self, word: &str) -> bool {
        self.is_word_at(0, word)
    }

    fn is_one_of(&self, words: &[&str]) -> bool {
        let token = self.token().filter(|token| token.kind == Kind::Word);
        let word = token.and_then(|token| overlay::identifier(self.text, token));
        word.is_some_and(|word| words.contains(&word.as_str()))
    }

    fn is_listed(&self, words: &str) -> bool {
        let token = self.token().filter(|token| token.kind == Kind::Word);
        let word = token.and_then(|token| overlay::identifier(self.text, token));
        word.is_some_and(|word| words.split_ascii_whitespace().any(|known| known == word))
    }

    fn is_reserved(&self) -> bool {
        self.is_listed(RESERVED)
    }

    fn is_no_label(&self) -> bool {
        self.is_listed(NO_LABELS)
    }

    fn is_kind_at(&self, ahead: usize, kind: Kind) -> bool {
        self.tokens.get(self.at + ahead).is_some_and(|token| token.kind == kind)
    }

    /// Whether a query begins so many tokens ahead.
    fn is_query_at(&self, ahead: usize) -> bool {
        ["select", "with", "values", "table"].iter().any(|word| self.is_word_at(ahead, word))
    }

    fn written(&self, token: &Token) -> &str {
        std::str::from_utf8(&self.text[token.span.clone()]).unwrap_or_default()
    }

    /// The operator that is next: what stands together ends before a sign, unless it has a character in it that only
    /// operators of PostgreSQL's own making have.
    fn next_operator(&self) -> Option<&str> {
        let token = self.token().filter(|token| token.kind == Kind::Operator)?;
        let whole = self.written(token).get(self.skip..)?;
        if whole.contains(['~', '!', '@', '#', '%', '^', '&', '|', '`', '?']) {
            return Some(whole);
        }
        let end = whole.trim_end_matches(['+', '-']).len().max(1);
        whole.get(..end)
    }

    // Taking it.

    fn advance(&mut self) {
        self.at += 1;
        self.skip = 0;
    }

    fn word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.advance();
        }
        found
    }

    fn words(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(ahead, word)| self.is_word_at(ahead, word));
        if found {
            self.at += words.len();
        }
        found
    }

    fn kind(&mut self, kind: Kind) -> bool {
        let found = self.is_kind_at(0, kind);
        if found {
            self.advance();
        }
        found
    }

    fn operator(&mut self, operator: &str) -> bool {
        let found = self.next_operator() == Some(operator);
        if found {
            self.take_operator(operator.len());
        }
        found
    }

    fn take_operator(&mut self, bytes: usize) {
        self.skip += bytes;
        let length = self.token().map_or(0, |token| token.span.len());
        if self.skip >= length {
            self.advance();
        }
    }

    fn bracket(&mut self, bracket: &str) -> bool {
        let found = self.token().is_some_and(|it| it.kind == Kind::Other && self.written(it) == bracket);
        if found {
            self.advance();
        }
        found
    }

    fn expect_word(&mut self, word: &str) -> Result<()> {
        if self.word(word) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn expect(&mut self, kind: Kind) -> Result<()> {
        if self.kind(kind) { Ok(()) } else { Err(self.unexpected()) }
    }

    /// Any identifier.
    fn any_name(&mut self) -> Result<String> {
        let name = self.token().and_then(|token| match token.kind {
            // What it is called in another way.
            Kind::UnicodeQuoted => None,
            _ => overlay::identifier(self.text, token),
        });
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| self.unexpected())?;
        self.advance();
        Ok(name)
    }

    /// One that is no reserved word.
    fn name(&mut self) -> Result<String> {
        if self.is_reserved() { Err(self.unexpected()) } else { self.any_name() }
    }

    fn string(&mut self) -> Option<String> {
        let token = self.token()?;
        let string = overlay::string_value(self.text, token)?;
        self.advance();
        Some(string)
    }

    // Errors and limits.

    fn unexpected(&self) -> PgError {
        let text = match self.token() {
            Some(token) => {
                let written =
                    String::from_utf8_lossy(&self.text[token.span.start + self.skip..token.span.end]);
                let mut shown: String = written.chars().take(100).collect();
                if shown.len() < written.len() {
                    shown.push('…');
                }
                format!("syntax error at or near \"{shown}\"")
            }
            None => "syntax error at end of input".to_owned(),
        };
        PgError::error(sqlstate::SYNTAX_ERROR, text)
    }

    /// One more part is read.
    fn count(&mut self) -> Result<()> {
        self.parts += 1;
        if self.parts <= MOST_PARTS {
            return Ok(());
        }
        let text = format!("the statement has more than {MOST_PARTS} parts");
        Err(PgError::error(sqlstate::STATEMENT_TOO_COMPLEX, text))
    }

    /// What was read last becomes a part of something.
    fn grow(&mut self) -> Result<()> {
        self.height += 1;
        if self.height > MOST_HEIGHT { Err(too_deep()) } else { Ok(()) }
    }

    /// Reads something within something.
    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.level >= MOST_LEVELS {
            return Err(too_deep());
        }
        self.level += 1;
        let around = std::mem::take(&mut self.height);
        let done = read(self);
        self.height = self.height.max(around);
        self.level -= 1;
        done
    }

    // Queries.

    fn query(&mut self) -> Result<Query> {
        self.nested(Self::query_in_level)
    }

    fn query_in_level(&mut self) -> Result<Query> {
        self.grow()?;
        let mut with = Vec::new();
        if self.word("with") {
            if self.is_word("recursive") {
                return Err(unsupported("WITH RECURSIVE"));
            }
            loop {
                with.push(self.cte()?);
                if !self.kind(Kind::Comma) {
                    break;
                }
            }
        }
        let body = self.body(0)?;
        let order = if self.words(&["order", "by"]) { self.sort_list()? } else { Vec::new() };
        let (mut limit, mut offset) = (None, None);
        loop {
            if limit.is_none() && self.word("limit") {
                limit = Some(if self.word("all") { Expr::Null } else { self.expr(0)? });
            } else if offset.is_none() && self.word("offset") {
                offset = Some(self.expr(0)?);
                let _ = self.word("row") || self.word("rows");
            } else if limit.is_none() && self.word("fetch") {
                limit = Some(self.fetch()?);
            } else {
                break;
            }
        }
        if self.is_word("for") {
            return Err(unsupported("row locking (FOR UPDATE and its kin)"));
        }
        Ok(Query { with, body, order, limit, offset })
    }

    /// `FIRST 10 ROWS ONLY`, behind FETCH.
    fn fetch(&mut self) -> Result<Expr> {
        if !self.word("first") {
            self.expect_word("next")?;
        }
        let is_one = self.is_word("row") || self.is_word("rows");
        let count = if is_one { Expr::Number("1".to_owned()) } else { self.expr(0)? };
        if !self.word("row") {
            self.expect_word("rows")?;
        }
        if self.is_word("with") {
            return Err(unsupported("FETCH ... WITH TIES"));
        }
        self.expect_word("only")?;
        Ok(count)
    }

    fn cte(&mut self) -> Result<Cte> {
        self.count()?;
        let name = self.name()?;
        let columns = self.column_names()?;
        self.expect_word("as")?;
        if self.word("not") {
            self.expect_word("materialized")?;
        } else {
            self.word("materialized");
        }
        self.expect(Kind::Open)?;
        let query = self.query()?;
        self.expect(Kind::Close)?;
        Ok(Cte { alias: Alias { name, columns }, query })
    }

    /// `(a, b)`, which need not be there.
    fn column_names(&mut self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        if self.kind(Kind::Open) {
            loop {
                self.count()?;
                names.push(self.name()?);
                if !self.kind(Kind::Comma) {
                    break;
                }
            }
            self.expect(Kind::Close)?;
        }
        Ok(names)
    }

    /// INTERSECT binds closer than UNION and EXCEPT.
    fn body(&mut self, least: u8) -> Result<Body> {
        let mut left = self.simple_body()?;
        loop {
            let (operator, strength) = match () {
                () if self.is_word("union") => (SetOperator::Union, 1),
                () if self.is_word("except") => (SetOperator::Except, 1),
                () if self.is_word("intersect") => (SetOperator::Intersect, 2),
                () => break,
            };
            if strength <= least {
                break;
            }
            self.advance();
            let all = self.word("all");
            if !all {
                self.word("distinct");
            }
            let right = self.nested(|parser| parser.body(strength))?;
            self.grow()?;
            left = Body::Set { operator, all, left: Box::new(left), right: Box::new(right) };
        }
        Ok(left)
    }

    fn simple_body(&mut self) -> Result<Body> {
        self.count()?;
        if self.kind(Kind::Open) {
            let query = self.query()?;
            self.expect(Kind::Close)?;
            return Ok(Body::Nested(Box::new(query)));
        }
        if self.word("values") {
            return self.values();
        }
        if self.word("table") {
            let from = vec![self.named_table()?];
            return Ok(Body::Select(Box::new(Select { items: vec![Item::Star], from, ..Select::default() })));
        }
        self.expect_word("select")?;
        self.select().map(|select| Body::Select(Box::new(select)))
    }

    fn values(&mut self) -> Result<Body> {
        let mut rows = Vec::new();
        loop {
            self.expect(Kind::Open)?;
            rows.push(self.expr_list()?);
            self.expect(Kind::Close)?;
            if !self.kind(Kind::Comma) {
                return Ok(Body::Values(rows));
            }
        }
    }

    fn select(&mut self) -> Result<Select> {
        let mut select = Select::default();
        if self.word("distinct") {
            select.distinct = Distinct::Yes;
            if self.word("on") {
                self.expect(Kind::Open)?;
                select.distinct = Distinct::On(self.expr_list()?);
                self.expect(Kind::Close)?;
            }
        } else {
            self.word("all");
        }
        let is_empty =
            self.at == self.tokens.len() || self.is_one_of(&["from", "where", "union", "order", "limit"]);
        if !is_empty && !self.is_kind_at(0, Kind::Close) {
            select.items = self.items()?;
        }
        if self.is_word("into") {
            return Err(unsupported("SELECT INTO"));
        }
        if self.word("from") {
            loop {
                select.from.push(self.source()?);
                if !self.kind(Kind::Comma) {
                    break;
                }
            }
        }
        if self.word("where") {
            select.condition = Some(self.expr(0)?);
        }
        if self.words(&["group", "by"]) {
            self.word("all");
            if self.is_one_of(&["grouping", "rollup", "cube"]) {
                return Err(unsupported("grouping sets"));
            }
            select.group = Some(self.expr_list()?);
        }
        if self.word("having") {
            select.having = Some(self.expr(0)?);
        }
        if self.is_word("window") {
            return Err(unsupported("a window function"));
        }
        Ok(select)
    }

    fn items(&mut self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        loop {
            has_room(items.len() + 1)?;
            items.push(self.item()?);
            if !self.kind(Kind::Comma) {
                return Ok(items);
            }
        }
    }

    fn item(&mut self) -> Result<Item> {
        self.count()?;
        if self.operator("*") {
            return Ok(Item::Star);
        }
        if let Some(table) = self.star_of()? {
            return Ok(Item::StarOf(table));
        }
        let value = self.expr(0)?;
        let is_label = self.token().is_some_and(|it| matches!(it.kind, Kind::Word | Kind::Quoted));
        let label = match self.word("as") || is_label && !self.is_no_label() {
            true => Some(self.any_name()?),
            false => None,
        };
        Ok(Item::Value { value, label })
    }

    /// `table.*`
    fn star_of(&mut self) -> Result<Option<String>> {
        let star = |at: usize| {
            let token = self.tokens.get(self.at + at);
            self.is_kind_at(at - 1, Kind::Dot) && token.is_some_and(|it| &self.text[it.span.clone()] == b"*")
        };
        let with_schema = match () {
            () if star(2) => false,
            () if star(4) && self.is_kind_at(1, Kind::Dot) => true,
            () => return Ok(None),
        };
        if with_schema {
            self.any_name()?;
            self.advance();
        }
        let table = self.name()?;
        self.at += 2;
        Ok(Some(table))
    }

    fn sort_list(&mut self) -> Result<Vec<Sort>> {
        let mut sorts: Vec<Sort> = Vec::new();
        loop {
            let parts = self.parts;
            let sort = self.sort()?;
            // What sorts once does not sort again.
            if sorts.iter().any(|known| known.value == sort.value) {
                self.parts = parts;
            } else {
                sorts.push(sort);
            }
            if !self.kind(Kind::Comma) {
                return Ok(sorts);
            }
        }
    }

    fn sort(&mut self) -> Result<Sort> {
        let value = self.expr(0)?;
        let descending = self.word("desc");
        if !descending {
            self.word("asc");
        }
        if self.is_word("using") {
            return Err(unsupported("ORDER BY ... USING"));
        }
        let nulls_first = match self.word("nulls") {
            true if self.word("first") => true,
            true => {
                self.expect_word("last")?;
                false
            }
            false => descending,
        };
        Ok(Sort { value, descending, nulls_first })
    }

    // FROM.

    fn source(&mut self) -> Result<From> {
        self.nested(|parser| {
            let mut left = parser.source_part()?;
            while let Some((kind, is_natural, is_cross)) = parser.join_kind()? {
                let right = parser.source_part()?;
                let on = match () {
                    () if is_cross => On::Nothing,
                    () if is_natural => On::Natural,
                    () if parser.word("on") => On::Condition(parser.expr(0)?),
                    () if parser.word("using") => {
                        let names = parser.column_names()?;
                        if names.is_empty() {
                            return Err(parser.unexpected());
                        }
                        On::Using(names)
                    }
                    () => return Err(parser.unexpected()),
                };
                parser.grow()?;
                left = From::Join { kind, left: Box::new(left), right: Box::new(right), on };
            }
            Ok(left)
        })
    }

    /// The kind, and whether it is NATURAL or CROSS.
    fn join_kind(&mut self) -> Result<Option<(JoinKind, bool, bool)>> {
        if self.words(&["cross", "join"]) {
            return Ok(Some((JoinKind::Inner, false, true)));
        }
        let is_natural = self.word("natural");
        let outer = [("left", JoinKind::Left), ("right", JoinKind::Right), ("full", JoinKind::Full)];
        let kind = match outer.into_iter().find(|(word, _)| self.is_word(word)) {
            Some((_, kind)) => {
                self.advance();
                self.word("outer");
                kind
            }
            None if self.word("inner") || is_natural || self.is_word("join") => JoinKind::Inner,
            None => return Ok(None),
        };
        self.expect_word("join")?;
        Ok(Some((kind, is_natural, false)))
    }

    fn source_part(&mut self) -> Result<From> {
        self.count()?;
        if self.is_word("lateral") {
            return Err(unsupported("LATERAL"));
        }
        self.word("only");
        if self.is_kind_at(0, Kind::Open) {
            self.advance();
            if !self.is_query_at(0) {
                let inner = self.source()?;
                self.expect(Kind::Close)?;
                return Ok(inner);
            }
            let query = self.query()?;
            self.expect(Kind::Close)?;
            let alias = self.alias()?;
            return Ok(From::Query { query: Box::new(query), alias });
        }
        let is_call = self.is_kind_at(1, Kind::Open)
            || self.is_kind_at(1, Kind::Dot) && self.is_kind_at(3, Kind::Open)
            || self.is_one_of(&["current_user", "session_user", "current_timestamp", "current_database"])
                && !self.is_kind_at(1, Kind::Dot);
        if !is_call {
            return self.named_table();
        }
        let call = self.expr(u8::MAX)?;
        if self.words(&["with", "ordinality"]) {
            return Err(unsupported("WITH ORDINALITY"));
        }
        let alias = self.alias()?;
        Ok(From::Function { call, alias })
    }

    fn named_table(&mut self) -> Result<From> {
        let mut parts = vec![self.name()?];
        while self.kind(Kind::Dot) {
            parts.push(self.any_name()?);
        }
        let name = parts.pop().unwrap_or_default();
        // A database in front can only be this one.
        let schema = parts.pop();
        self.operator("*");
        let alias = self.alias()?;
        if self.is_word("tablesample") {
            return Err(unsupported("TABLESAMPLE"));
        }
        Ok(From::Table { schema, name, alias })
    }

    fn alias(&mut self) -> Result<Option<Alias>> {
        let is_name = self.token().is_some_and(|it| matches!(it.kind, Kind::Word | Kind::Quoted));
        let is_alias = self.word("as") || is_name && !self.is_reserved() && !self.is_no_label();
        if !is_alias {
            return Ok(None);
        }
        let name = self.name()?;
        Ok(Some(Alias { name, columns: self.column_names()? }))
    }

    fn expr_list(&mut self) -> Result<Vec<Expr>> {
        let mut list = Vec::new();
        loop {
            list.push(self.expr(0)?);
            if !self.kind(Kind::Comma) {
                return Ok(list);
            }
        }
    }
}
