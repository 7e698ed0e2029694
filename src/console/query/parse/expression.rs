//! Expressions, by the strength of their operators.

use super::*;
use crate::console::query::ast::TypeName;

/// How strong an operator binds, the weakest first.
mod strength {
    pub(super) const OR: u8 = 1;
    pub(super) const AND: u8 = 2;
    pub(super) const NOT: u8 = 3;
    pub(super) const IS: u8 = 4;
    pub(super) const COMPARISON: u8 = 5;
    /// BETWEEN, IN, LIKE
    pub(super) const RANGE: u8 = 6;
    pub(super) const OTHER: u8 = 7;
    pub(super) const SUM: u8 = 8;
    pub(super) const PRODUCT: u8 = 9;
    pub(super) const POWER: u8 = 10;
    pub(super) const SIGN: u8 = 13;
}

fn strength_of(operator: &str) -> u8 {
    match operator {
        "=" | "<" | ">" | "<=" | ">=" | "<>" | "!=" => strength::COMPARISON,
        "+" | "-" => strength::SUM,
        "*" | "/" | "%" => strength::PRODUCT,
        "^" => strength::POWER,
        _ => strength::OTHER,
    }
}

/// Functions that are written without parentheses.
const WORDS: [&str; 12] = [
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_catalog",
    "current_schema",
    "current_timestamp",
    "current_date",
    "current_time",
    "localtimestamp",
    "localtime",
    "system_user",
];

/// What may be behind a value.
enum Infix {
    Or,
    And,
    Is,
    Range,
    Operator(String),
    /// `OPERATOR(pg_catalog.=)`
    Written,
}

impl Parser<'_> {
    /// An expression of operators that bind stronger than `least`.
    pub(super) fn expr(&mut self, least: u8) -> Result<Expr> {
        self.nested(|parser| {
            let mut left = parser.prefix()?;
            parser.grow()?;
            // Deeper than one level only where somebody has put it into the text.
            while let Some((infix, strength)) = parser.infix(least) {
                left = parser.with_infix(left, infix, strength)?;
                parser.grow_by(&left)?;
            }
            Ok(left)
        })
    }

    /// AND and OR have all their parts side by side, so they do not grow.
    fn grow_by(&mut self, made: &Expr) -> Result<()> {
        match made {
            Expr::And(parts) | Expr::Or(parts) if parts.len() > 2 => Ok(()),
            _ => self.grow(),
        }
    }

    fn infix(&self, least: u8) -> Option<(Infix, u8)> {
        let word = |words: &[&str]| self.is_one_of(words);
        let range = |ahead| {
            ["between", "in", "like", "ilike", "similar"].iter().any(|word| self.is_word_at(ahead, word))
        };
        let (infix, strength) = match self.next_operator() {
            Some("::") => return None,
            Some(operator) => (Infix::Operator(operator.to_owned()), strength_of(operator)),
            None if word(&["or"]) => (Infix::Or, strength::OR),
            None if word(&["and"]) => (Infix::And, strength::AND),
            None if word(&["is", "isnull", "notnull"]) => (Infix::Is, strength::IS),
            None if range(0) || self.is_word("not") && range(1) => (Infix::Range, strength::RANGE),
            None if self.is_word("operator") && self.is_kind_at(1, Kind::Open) => {
                (Infix::Written, strength::OTHER)
            }
            None => return None,
        };
        (strength > least).then_some((infix, strength))
    }

    fn with_infix(&mut self, left: Expr, infix: Infix, strength: u8) -> Result<Expr> {
        match infix {
            Infix::Or => {
                self.advance();
                let right = self.expr(strength)?;
                Ok(Expr::Or(joined(
                    left,
                    right,
                    |it| if let Expr::Or(parts) = it { Ok(parts) } else { Err(it) },
                )))
            }
            Infix::And => {
                self.advance();
                let right = self.expr(strength)?;
                Ok(Expr::And(joined(left, right, |it| {
                    if let Expr::And(parts) = it { Ok(parts) } else { Err(it) }
                })))
            }
            Infix::Is => self.is(left),
            Infix::Range => self.range(left),
            Infix::Operator(operator) => {
                self.take_operator(operator.len());
                self.binary(left, operator, strength)
            }
            Infix::Written => {
                let operator = self.written_operator()?;
                self.binary(left, operator, strength)
            }
        }
    }

    /// `OPERATOR(pg_catalog.=)`
    fn written_operator(&mut self) -> Result<String> {
        self.advance();
        self.expect(Kind::Open)?;
        if self.is_word("pg_catalog") && self.is_kind_at(1, Kind::Dot) {
            self.at += 2;
        }
        let operator = self.next_operator().map(str::to_owned).ok_or_else(|| self.unexpected())?;
        self.take_operator(operator.len());
        self.expect(Kind::Close)?;
        Ok(operator)
    }

    fn binary(&mut self, left: Expr, operator: String, strength: u8) -> Result<Expr> {
        let operator = if operator == "!=" { "<>".to_owned() } else { operator };
        if self.is_one_of(&["any", "some", "all"]) && self.is_kind_at(1, Kind::Open) {
            let all = self.is_word("all");
            self.at += 2;
            let quantified = self.quantified(left, operator, all)?;
            self.expect(Kind::Close)?;
            return Ok(quantified);
        }
        let right = self.expr(strength)?;
        Ok(Expr::Binary(operator, Box::new(left), Box::new(right)))
    }

    /// `= ANY (SELECT …)`, `= ANY (ARRAY['a', 'b'])`
    fn quantified(&mut self, value: Expr, operator: String, all: bool) -> Result<Expr> {
        let value = Box::new(value);
        if self.is_query_at(0) {
            let query = Box::new(self.query()?);
            return Ok(Expr::AnyOf { operator, value, query, all });
        }
        if !self.word("array") || !self.bracket("[") {
            return Err(unsupported("ANY and ALL of anything but a query or ARRAY[...]"));
        }
        let list = if self.bracket("]") {
            return Err(unsupported("an empty array"));
        } else {
            self.expr_list()?
        };
        if !self.bracket("]") {
            return Err(self.unexpected());
        }
        // Its type.
        while self.operator("::") {
            self.type_name()?;
        }
        Ok(Expr::AnyInList { operator, value, list, all })
    }

    /// `IS NULL` and its kin.
    fn is(&mut self, value: Expr) -> Result<Expr> {
        let value = Box::new(value);
        if self.word("isnull") {
            return Ok(Expr::IsNull { value, negated: false });
        }
        if self.word("notnull") {
            return Ok(Expr::IsNull { value, negated: true });
        }
        self.advance();
        let negated = self.word("not");
        if self.words(&["distinct", "from"]) {
            let right = Box::new(self.expr(strength::IS)?);
            return Ok(Expr::IsDistinct { left: value, right, negated });
        }
        let wanted = match () {
            () if self.word("null") => return Ok(Expr::IsNull { value, negated }),
            () if self.word("true") => Some(true),
            () if self.word("false") => Some(false),
            () if self.word("unknown") => None,
            () => return Err(self.unexpected()),
        };
        Ok(Expr::IsBool { value, wanted, negated })
    }

    /// BETWEEN, IN and LIKE.
    fn range(&mut self, value: Expr) -> Result<Expr> {
        let value = Box::new(value);
        let negated = self.word("not");
        if self.word("in") {
            return self.is_in(value, negated);
        }
        if self.word("between") {
            let symmetric = self.word("symmetric");
            if !symmetric {
                self.word("asymmetric");
            }
            let low = Box::new(self.expr(strength::RANGE)?);
            self.expect_word("and")?;
            let high = Box::new(self.expr(strength::RANGE)?);
            return Ok(Expr::Between { value, low, high, symmetric, negated });
        }
        if self.is_word("similar") {
            return Err(unsupported("SIMILAR TO"));
        }
        let any_case = self.is_word("ilike");
        self.advance();
        if self.is_one_of(&["any", "some", "all"]) && self.is_kind_at(1, Kind::Open) {
            let operator = match (any_case, negated) {
                (false, false) => "~~",
                (false, true) => "!~~",
                (true, false) => "~~*",
                (true, true) => "!~~*",
            };
            return self.binary(*value, operator.to_owned(), strength::RANGE);
        }
        let pattern = Box::new(self.expr(strength::RANGE)?);
        let escape = if self.word("escape") { Some(Box::new(self.expr(strength::RANGE)?)) } else { None };
        Ok(Expr::Like { value, pattern, escape, any_case, negated })
    }

    fn is_in(&mut self, value: Box<Expr>, negated: bool) -> Result<Expr> {
        self.expect(Kind::Open)?;
        let is_in = if self.is_query_at(0) {
            let query = Box::new(self.query()?);
            let operator = if negated { "<>" } else { "=" };
            Expr::AnyOf { operator: operator.to_owned(), value, query, all: negated }
        } else {
            Expr::InList { value, list: self.expr_list()?, negated }
        };
        self.expect(Kind::Close)?;
        Ok(is_in)
    }

    /// A value with what stands in front of it.
    fn prefix(&mut self) -> Result<Expr> {
        self.count()?;
        if self.word("not") {
            return Ok(Expr::Not(Box::new(self.expr(strength::NOT - 1)?)));
        }
        if let Some(operator) = self.next_operator().map(str::to_owned) {
            self.take_operator(operator.len());
            let strength =
                if matches!(operator.as_str(), "+" | "-") { strength::SIGN } else { strength::OTHER };
            let value = self.expr(strength)?;
            // PG: doNegate
            return Ok(match value {
                Expr::Number(digits) if operator == "-" && !digits.starts_with('-') => {
                    Expr::Number(format!("-{digits}"))
                }
                value => Expr::Unary(operator, Box::new(value)),
            });
        }
        let mut value = self.primary()?;
        loop {
            if self.operator("::") {
                let to = self.type_name()?;
                // What is of the type already stays as it is.
                if !matches!(&value, Expr::Cast(_, is) if *is == to) {
                    self.grow()?;
                    value = Expr::Cast(Box::new(value), to);
                }
            } else if self.is_word("collate") {
                return Err(unsupported("COLLATE"));
            } else if self.is_word_at(0, "at") && self.is_word_at(1, "time") {
                return Err(unsupported("AT TIME ZONE"));
            } else if self.bracket("[") {
                return Err(unsupported("an element of an array"));
            } else {
                return Ok(value);
            }
        }
    }

    fn primary(&mut self) -> Result<Expr> {
        let Some(token) = self.token() else { return Err(self.unexpected()) };
        match token.kind {
            Kind::Open => self.in_parentheses(),
            Kind::Parameter => {
                let number = self.written(token)[1..].parse().unwrap_or(usize::MAX);
                self.advance();
                Ok(Expr::Parameter(number))
            }
            Kind::Number => Ok(Expr::Number(self.number(String::new()))),
            Kind::Dot if self.is_kind_at(1, Kind::Number) => {
                self.advance();
                Ok(Expr::Number(self.number("0.".to_owned())))
            }
            Kind::String(_) => self.string().map(Expr::String).ok_or_else(|| self.unexpected()),
            Kind::Word => match self.keyword()? {
                Some(value) => Ok(value),
                None => self.named(),
            },
            Kind::Quoted => self.named(),
            _ => Err(self.unexpected()),
        }
    }

    /// Digits, and the exponent that may stand at them.
    fn number(&mut self, before: String) -> String {
        let Some(token) = self.token() else { return before };
        let (mut digits, end) = (before + self.written(token), token.span.end);
        self.advance();
        if self.is_kind_at(0, Kind::Dot) && self.token().is_some_and(|dot| dot.span.start == end) {
            self.advance();
        }
        let exponent = self.token().filter(|it| it.kind == Kind::Word && it.span.start == end);
        let exponent = exponent.map(|token| self.written(token).to_ascii_lowercase());
        match exponent.as_deref().and_then(|it| it.strip_prefix('e')) {
            Some(rest) if !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.push('e');
                digits.push_str(rest);
                self.advance();
            }
            Some("") => self.signed_exponent(&mut digits),
            _ => {}
        }
        digits
    }

    /// `1e-5` is four tokens.
    fn signed_exponent(&mut self, digits: &mut String) {
        let sign = self.tokens.get(self.at + 1).map(|token| self.written(token).to_owned());
        let power = self.tokens.get(self.at + 2).filter(|token| token.kind == Kind::Number);
        let power = power.map(|token| self.written(token).to_owned());
        if let (Some(sign), Some(power)) = (sign, power)
            && matches!(sign.as_str(), "+" | "-")
        {
            *digits += &format!("e{sign}{power}");
            self.at += 3;
        }
    }

    fn in_parentheses(&mut self) -> Result<Expr> {
        self.advance();
        if self.is_query_at(0) {
            let query = Box::new(self.query()?);
            self.expect(Kind::Close)?;
            return Ok(Expr::Scalar(query));
        }
        let value = self.expr(0)?;
        if self.is_kind_at(0, Kind::Comma) {
            return Err(unsupported("a row of values"));
        }
        self.expect(Kind::Close)?;
        Ok(value)
    }

    /// What begins with a word that has a meaning of its own.
    fn keyword(&mut self) -> Result<Option<Expr>> {
        let is_call = self.is_kind_at(1, Kind::Open);
        if self.is_kind_at(1, Kind::Dot) {
            return Ok(None);
        }
        Ok(Some(match () {
            () if self.word("null") => Expr::Null,
            () if self.word("true") => Expr::Bool(true),
            () if self.word("false") => Expr::Bool(false),
            () if self.word("case") => self.case()?,
            () if self.word("array") => return Err(unsupported("an array")),
            () if is_call && self.is_word("row") => return Err(unsupported("a row of values")),
            () if is_call && self.is_word("overlay") => return Err(unsupported("overlay()")),
            () if is_call && self.word("cast") => {
                self.advance();
                let value = Box::new(self.expr(0)?);
                self.expect_word("as")?;
                let to = self.type_name()?;
                self.expect(Kind::Close)?;
                Expr::Cast(value, to)
            }
            () if is_call && self.word("exists") => {
                self.advance();
                let query = Box::new(self.query()?);
                self.expect(Kind::Close)?;
                Expr::Exists(query)
            }
            () if is_call && self.word("extract") => self.extract()?,
            () if is_call && self.word("position") => self.position()?,
            () if is_call && self.word("trim") => self.trim()?,
            () if is_call && self.word("substring") => self.substring()?,
            () => match self.word_function()? {
                Some(value) => value,
                None => return self.typed_string(),
            },
        }))
    }

    fn word_function(&mut self) -> Result<Option<Expr>> {
        let Some(word) = WORDS.into_iter().find(|word| self.is_word(word)) else { return Ok(None) };
        if self.is_kind_at(1, Kind::Open) && word == "current_schema" {
            return Ok(None);
        }
        self.advance();
        if self.is_kind_at(0, Kind::Open) {
            return Err(unsupported("a precision of the time"));
        }
        Ok(Some(Expr::Word(word)))
    }

    /// `interval '5 min'`: the name of a type, and a string.
    fn typed_string(&mut self) -> Result<Option<Expr>> {
        let is_string =
            |at: usize| self.tokens.get(self.at + at).is_some_and(|it| matches!(it.kind, Kind::String(_)));
        let in_words = self.is_word("double")
            || self.is_word("timestamp")
            || self.is_word("time")
            || self.is_word("character");
        if self.is_reserved() || !(is_string(1) || in_words && self.is_kind_at(1, Kind::Word)) {
            return Ok(None);
        }
        let (at, to) = (self.at, self.type_name()?);
        let Some(value) = self.string() else {
            self.at = at;
            return Ok(None);
        };
        if self.is_one_of(&["second", "minute", "hour", "day", "month", "year"]) {
            return Err(unsupported("an interval with its fields behind it"));
        }
        Ok(Some(Expr::Cast(Box::new(Expr::String(value)), to)))
    }

    fn case(&mut self) -> Result<Expr> {
        let operand = if self.is_word("when") { None } else { Some(Box::new(self.expr(0)?)) };
        let mut branches = Vec::new();
        while self.word("when") {
            let condition = self.expr(0)?;
            self.expect_word("then")?;
            branches.push((condition, self.expr(0)?));
        }
        let otherwise = if self.word("else") { Some(Box::new(self.expr(0)?)) } else { None };
        self.expect_word("end")?;
        if branches.is_empty() {
            return Err(self.unexpected());
        }
        Ok(Expr::Case { operand, branches, otherwise })
    }

    /// `EXTRACT(epoch FROM value)`
    fn extract(&mut self) -> Result<Expr> {
        self.advance();
        let field = match self.string() {
            Some(field) => field,
            None => self.any_name()?,
        };
        self.expect_word("from")?;
        let value = self.expr(0)?;
        self.expect(Kind::Close)?;
        Ok(Expr::Call(Call::new("extract", vec![Expr::String(field), value])))
    }

    /// `POSITION(part IN whole)`
    fn position(&mut self) -> Result<Expr> {
        self.advance();
        let part = self.expr(strength::RANGE)?;
        self.expect_word("in")?;
        let whole = self.expr(strength::RANGE)?;
        self.expect(Kind::Close)?;
        Ok(Expr::Call(Call::new("position", vec![whole, part])))
    }

    /// `TRIM(BOTH 'x' FROM value)` and its shorter forms.
    fn trim(&mut self) -> Result<Expr> {
        self.advance();
        let name = match () {
            () if self.word("leading") => "ltrim",
            () if self.word("trailing") => "rtrim",
            () => {
                self.word("both");
                "btrim"
            }
        };
        if self.word("from") {
            let value = self.expr_list()?;
            self.expect(Kind::Close)?;
            return Ok(Expr::Call(Call::new(name, value)));
        }
        let mut arguments = self.expr_list()?;
        if self.word("from") {
            let characters = arguments;
            arguments = self.expr_list()?;
            arguments.extend(characters);
        }
        self.expect(Kind::Close)?;
        Ok(Expr::Call(Call::new(name, arguments)))
    }

    /// `SUBSTRING(value FROM start FOR length)`, or with commas like other functions.
    fn substring(&mut self) -> Result<Expr> {
        self.advance();
        let mut arguments = vec![self.expr(0)?];
        if self.kind(Kind::Comma) {
            arguments.extend(self.expr_list()?);
            self.expect(Kind::Close)?;
            return Ok(Expr::Call(Call::new("substring", arguments)));
        }
        let (mut start, mut length) = (None, None);
        loop {
            if start.is_none() && self.word("from") {
                start = Some(self.expr(0)?);
            } else if length.is_none() && self.word("for") {
                length = Some(self.expr(0)?);
            } else {
                break;
            }
        }
        self.expect(Kind::Close)?;
        arguments.push(start.unwrap_or_else(|| Expr::Number("1".to_owned())));
        arguments.extend(length);
        Ok(Expr::Call(Call::new("substring", arguments)))
    }

    /// A column, or a call.
    fn named(&mut self) -> Result<Expr> {
        let mut parts =
            vec![if self.is_kind_at(1, Kind::Open) { self.function_name()? } else { self.name()? }];
        while self.kind(Kind::Dot) {
            self.count()?;
            parts.push(self.any_name()?);
        }
        if !self.is_kind_at(0, Kind::Open) {
            return Ok(Expr::Column(parts));
        }
        let name = parts.pop().unwrap_or_default();
        match parts.pop() {
            None => self.call(name),
            Some(schema) if schema == "pg_catalog" => self.call(name),
            Some(schema) => {
                let text = format!("schema \"{schema}\" does not exist");
                Err(PgError::error(sqlstate::INVALID_SCHEMA_NAME, text))
            }
        }
    }

    /// Some functions are called like words that are reserved elsewhere.
    fn function_name(&mut self) -> Result<String> {
        if self.is_one_of(&["left", "right"]) { self.any_name() } else { self.name() }
    }

    fn call(&mut self, name: String) -> Result<Expr> {
        self.advance();
        let mut call = Call::new(name, Vec::new());
        if self.operator("*") {
            call.star = true;
        } else if !self.is_kind_at(0, Kind::Close) {
            call.distinct = self.word("distinct");
            if !call.distinct {
                self.word("all");
            }
            if self.is_word("variadic") {
                return Err(unsupported("VARIADIC"));
            }
            call.arguments = self.expr_list()?;
            if self.words(&["order", "by"]) {
                call.order = self.sort_list()?;
            }
        }
        self.expect(Kind::Close)?;
        if self.is_word("within") && self.is_word_at(1, "group") {
            return Err(unsupported("WITHIN GROUP"));
        }
        if self.is_word("filter") && self.is_kind_at(1, Kind::Open) {
            self.at += 2;
            self.expect_word("where")?;
            call.filter = Some(Box::new(self.expr(0)?));
            self.expect(Kind::Close)?;
        }
        if self.is_word("over") {
            return Err(unsupported("a window function"));
        }
        Ok(Expr::Call(call))
    }

    /// The name of a type, in one word or several.
    pub(super) fn type_name(&mut self) -> Result<TypeName> {
        if self.is_word("pg_catalog") && self.is_kind_at(1, Kind::Dot) {
            self.at += 2;
        }
        let mut name = self.any_name()?;
        match name.as_str() {
            "double" if self.word("precision") => name = "double precision".to_owned(),
            "character" if self.word("varying") => name = "character varying".to_owned(),
            _ => {}
        }
        let mut modifiers = Vec::new();
        if self.is_kind_at(0, Kind::Open) && self.is_kind_at(1, Kind::Number) {
            self.advance();
            loop {
                let number = self.token().and_then(|token| self.written(token).parse().ok());
                modifiers.push(number.ok_or_else(|| self.unexpected())?);
                self.advance();
                if !self.kind(Kind::Comma) {
                    break;
                }
            }
            self.expect(Kind::Close)?;
        }
        if matches!(name.as_str(), "timestamp" | "time") {
            for zone in ["with", "without"] {
                if self.words(&[zone, "time", "zone"]) {
                    name = format!("{name} {zone} time zone");
                    break;
                }
            }
        }
        let mut is_array = false;
        while self.bracket("[") {
            self.kind(Kind::Number);
            if !self.bracket("]") {
                return Err(self.unexpected());
            }
            is_array = true;
        }
        Ok(TypeName { name, modifiers, is_array })
    }
}

/// Both, with the parts of the left one if it is of the kind.
fn joined(
    left: Expr,
    right: Expr,
    parts: impl Fn(Expr) -> std::result::Result<Vec<Expr>, Expr>,
) -> Vec<Expr> {
    let mut all = parts(left).unwrap_or_else(|left| vec![left]);
    all.push(right);
    all
}
