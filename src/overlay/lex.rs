//! PostgreSQL's lexical structure, on bytes (PostgreSQL: `scan.l`).
//!
//! Enough to tell names from strings and comments, and where a statement ends; not enough to reject anything.
//! Tokens cover every byte of the text, so that whatever is not touched stays as it was. What never ends, a
//! string or a comment, is one token to the end.
//!
//! The text has to be in an encoding whose characters beyond ASCII have no bytes of ASCII in them; who calls has to see
//! to that (`rewrite::is_certain`).

use std::ops::Range;

/// What a token is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// White space.
    Space,
    /// `-- …` or `/* … */`
    Comment,
    /// A key word or an identifier without quotes.
    Word,
    /// `"…"`
    Quoted,
    /// `U&"…"`; in a [`Statement`] with the `UESCAPE '…'` behind it.
    UnicodeQuoted,
    /// A string of any kind, its continuations on further lines included.
    String(StringKind),
    /// Digits, perhaps with a fraction. What follows, like an exponent, is the next token.
    Number,
    /// `$1`
    Parameter,
    /// Operator characters in a row, `::`, or `:=`.
    Operator,
    /// `(`
    Open,
    /// `)`
    Close,
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// `.`
    Dot,
    /// Any other byte.
    Other,
}

/// How a string is written, which decides what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StringKind {
    /// `'…'`, backslashes being ordinary characters.
    Plain,
    /// `E'…'`, and `'…'` when `standard_conforming_strings` is off.
    Escape,
    /// `B'…'` or `X'…'`
    Bit,
    /// `U&'…'`; in a [`Statement`] with the `UESCAPE '…'` behind it.
    Unicode,
    /// `$tag$…$tag$`
    Dollar,
}

/// A piece of the text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Where it is, in bytes.
    pub span: Range<usize>,
}

/// Cuts a text into tokens that cover it without gaps.
pub fn lex(text: &[u8], standard_conforming_strings: bool) -> Lexer<'_> {
    Lexer { text, at: 0, backslashes: !standard_conforming_strings }
}

/// The tokens of a text, one after the other.
#[derive(Clone, Debug)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    /// Whether `'…'` has escapes.
    backslashes: bool,
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let start = self.at;
        let kind = self.token(*self.text.get(start)?);
        Some(Token { kind, span: start..self.at })
    }
}

impl Lexer<'_> {
    /// Moves behind the token that begins with `first`.
    fn token(&mut self, first: u8) -> Kind {
        match first {
            b'-' if self.peek(1) == Some(b'-') => self.line_comment(),
            b'/' if self.peek(1) == Some(b'*') => self.block_comment(),
            b'\'' => self.string(0, if self.backslashes { StringKind::Escape } else { StringKind::Plain }),
            b'e' | b'E' if self.peek(1) == Some(b'\'') => self.string(1, StringKind::Escape),
            b'b' | b'B' | b'x' | b'X' if self.peek(1) == Some(b'\'') => self.string(1, StringKind::Bit),
            b'u' | b'U' if self.peek(1) == Some(b'&') && self.peek(2) == Some(b'\'') => {
                self.string(2, StringKind::Unicode)
            }
            b'u' | b'U' if self.peek(1) == Some(b'&') && self.peek(2) == Some(b'"') => {
                self.quoted(2, Kind::UnicodeQuoted)
            }
            b'"' => self.quoted(0, Kind::Quoted),
            b'$' => self.dollar(),
            b'0'..=b'9' => self.number(),
            b':' if matches!(self.peek(1), Some(b':' | b'=')) => self.take(2, Kind::Operator),
            b'(' => self.take(1, Kind::Open),
            b')' => self.take(1, Kind::Close),
            b',' => self.take(1, Kind::Comma),
            b';' => self.take(1, Kind::Semicolon),
            b'.' => self.take(1, Kind::Dot),
            _ if is_space(first) => self.run(is_space, Kind::Space),
            _ if is_ident_start(first) => self.run(is_ident_cont, Kind::Word),
            _ if is_operator(first) => self.operator(),
            _ => self.take(1, Kind::Other),
        }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    fn take(&mut self, bytes: usize, kind: Kind) -> Kind {
        self.at += bytes;
        kind
    }

    fn run(&mut self, belongs: fn(u8) -> bool, kind: Kind) -> Kind {
        self.at += count(&self.text[self.at..], belongs);
        kind
    }

    fn skip_all(&mut self, kind: Kind) -> Kind {
        self.at = self.text.len();
        kind
    }

    fn line_comment(&mut self) -> Kind {
        self.run(|byte| !is_newline(byte), Kind::Comment)
    }

    fn block_comment(&mut self) -> Kind {
        let mut depth = 0_usize;
        while let Some(first) = self.peek(0) {
            match (first, self.peek(1)) {
                (b'/', Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Kind::Comment;
                    }
                }
                _ => self.at += 1,
            }
        }
        Kind::Comment
    }

    /// A string whose quote is `prefix` bytes ahead.
    fn string(&mut self, prefix: usize, kind: StringKind) -> Kind {
        self.at += prefix + 1;
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            match byte {
                b'\\' if kind == StringKind::Escape => self.at = (self.at + 1).min(self.text.len()),
                b'\'' if kind != StringKind::Bit && self.peek(0) == Some(b'\'') => self.at += 1,
                b'\'' => match continuation(&self.text[self.at..]) {
                    Some(bytes) => self.at += bytes,
                    None => return Kind::String(kind),
                },
                _ => {}
            }
        }
        Kind::String(kind)
    }

    fn quoted(&mut self, prefix: usize, kind: Kind) -> Kind {
        self.at += prefix + 1;
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            match byte {
                b'"' if self.peek(0) == Some(b'"') => self.at += 1,
                b'"' => return kind,
                _ => {}
            }
        }
        kind
    }

    /// `$1`, `$tag$…$tag$`, or a lone `$`.
    fn dollar(&mut self) -> Kind {
        let rest = &self.text[self.at..];
        let digits = count(&rest[1..], |byte| byte.is_ascii_digit());
        if digits > 0 {
            return self.take(1 + digits, Kind::Parameter);
        }
        let tag = match rest.get(1) {
            Some(&first) if is_ident_start(first) => {
                count(&rest[1..], |byte| is_ident_cont(byte) && byte != b'$')
            }
            _ => 0,
        };
        if rest.get(1 + tag) != Some(&b'$') {
            return self.take(1, Kind::Other);
        }
        let (delimiter, body) = rest.split_at(tag + 2);
        match find(body, delimiter) {
            Some(end) => self.take(2 * delimiter.len() + end, Kind::String(StringKind::Dollar)),
            None => self.skip_all(Kind::String(StringKind::Dollar)),
        }
    }

    fn number(&mut self) -> Kind {
        self.run(|byte| byte.is_ascii_digit(), Kind::Number);
        if self.peek(0) == Some(b'.') && self.peek(1).is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
            self.run(|byte| byte.is_ascii_digit(), Kind::Number);
        }
        Kind::Number
    }

    /// Operator characters up to a comment.
    fn operator(&mut self) -> Kind {
        while let Some(byte) = self.peek(0) {
            let comment = matches!((byte, self.peek(1)), (b'-', Some(b'-')) | (b'/', Some(b'*')));
            if comment || !is_operator(byte) {
                break;
            }
            self.at += 1;
        }
        Kind::Operator
    }
}

/// Length of what leads from a string's closing quote through a line break to the quote that continues it, if
/// that is there (PostgreSQL: `quotecontinue`).
fn continuation(rest: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut broken = false;
    loop {
        match *rest.get(at)? {
            b'\'' if broken => return Some(at + 1),
            b'-' if rest.get(at + 1) == Some(&b'-') => at += count(&rest[at..], |byte| !is_newline(byte)),
            byte if is_space(byte) => {
                broken |= is_newline(byte);
                at += 1;
            }
            _ => return None,
        }
    }
}

/// A statement of a text that may hold several.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statement {
    /// All of it, white space and comments included, without the semicolons around it.
    pub span: Range<usize>,
    /// Its tokens without white space and comments; never empty.
    pub tokens: Vec<Token>,
}

/// Splits a text at its top-level semicolons; empty statements are left out.
///
/// As in psql, semicolons in parentheses (CREATE RULE) and in a body that begins with BEGIN ATOMIC belong to
/// the statement.
pub fn split(text: &[u8], standard_conforming_strings: bool) -> Vec<Statement> {
    statements(text, standard_conforming_strings).collect()
}

/// The same, one after the other: a text may have more of them than anybody wants to hold.
pub fn statements(text: &[u8], standard_conforming_strings: bool) -> Statements<'_> {
    Statements { text, lexer: Some(lex(text, standard_conforming_strings)), start: 0 }
}

/// The statements of a text.
#[derive(Clone, Debug)]
pub struct Statements<'a> {
    text: &'a [u8],
    /// `None` behind the last one.
    lexer: Option<Lexer<'a>>,
    start: usize,
}

impl Iterator for Statements<'_> {
    type Item = Statement;

    fn next(&mut self) -> Option<Statement> {
        loop {
            let statement = self.cut()?;
            if !statement.tokens.is_empty() {
                return Some(statement);
            }
        }
    }
}

impl Statements<'_> {
    fn cut(&mut self) -> Option<Statement> {
        let lexer = self.lexer.as_mut()?;
        let mut tokens = Vec::new();
        let mut nesting = Nesting::default();
        for token in lexer {
            if token.kind == Kind::Semicolon && nesting.is_top_level() {
                let start = std::mem::replace(&mut self.start, token.span.end);
                return Some(Statement { span: start..token.span.start, tokens });
            }
            if !matches!(token.kind, Kind::Space | Kind::Comment) {
                nesting.step(self.text, &tokens, &token);
                push(self.text, &mut tokens, token);
            }
        }
        self.lexer = None;
        Some(Statement { span: self.start..self.text.len(), tokens })
    }
}

/// The tokens of a text without white space and comments.
pub(super) fn significant(text: &[u8], standard_conforming_strings: bool) -> Vec<Token> {
    let mut tokens = Vec::new();
    for token in lex(text, standard_conforming_strings) {
        if !matches!(token.kind, Kind::Space | Kind::Comment) {
            push(text, &mut tokens, token);
        }
    }
    tokens
}

/// As the grammar sees them: what says how a name or string is escaped belongs to it (PostgreSQL: `base_yylex`).
fn push(text: &[u8], tokens: &mut Vec<Token>, token: Token) {
    match (tokens.as_slice(), token.kind) {
        ([.., escaped, word], Kind::String(_))
            if matches!(escaped.kind, Kind::UnicodeQuoted | Kind::String(StringKind::Unicode))
                && is_word(text, word, "uescape") =>
        {
            tokens.pop();
            let escaped = tokens.last_mut().expect("it is the one before");
            escaped.span.end = token.span.end;
        }
        _ => tokens.push(token),
    }
}

/// How deep in parentheses and in a routine's body.
#[derive(Default)]
struct Nesting {
    parentheses: usize,
    blocks: usize,
}

impl Nesting {
    fn is_top_level(&self) -> bool {
        self.parentheses == 0 && self.blocks == 0
    }

    fn step(&mut self, text: &[u8], before: &[Token], token: &Token) {
        match token.kind {
            Kind::Open => self.parentheses += 1,
            Kind::Close => self.parentheses = self.parentheses.saturating_sub(1),
            Kind::Word if before.first().is_some_and(|first| is_word(text, first, "create")) => {
                self.step_block(text, before, token);
            }
            _ => {}
        }
    }

    fn step_block(&mut self, text: &[u8], before: &[Token], token: &Token) {
        let Some(last) = before.last() else { return };
        let is_label = last.kind == Kind::Dot || is_word(text, last, "as");
        if self.blocks == 0 {
            let begins = is_word(text, last, "begin") && is_word(text, token, "atomic");
            self.blocks = usize::from(begins);
        } else if is_word(text, token, "case") && !is_label {
            self.blocks += 1;
        } else if is_word(text, token, "end") && !is_label {
            self.blocks -= 1;
        }
    }
}

/// Whether a token is this key word, given in lower case.
pub fn is_word(text: &[u8], token: &Token, word: &str) -> bool {
    token.kind == Kind::Word && text[token.span.clone()].eq_ignore_ascii_case(word.as_bytes())
}

/// Whether a token is this identifier, given as PostgreSQL stores it: folded, or in quotes.
pub fn is_identifier(text: &[u8], token: &Token, name: &str) -> bool {
    let written = &text[token.span.clone()];
    match token.kind {
        Kind::Quoted => written.len() == name.len() + 2 && &written[1..written.len() - 1] == name.as_bytes(),
        Kind::UnicodeQuoted => unicode_value(written).is_some_and(|value| value == name.as_bytes()),
        _ => is_word(text, token, name),
    }
}

/// What a string holds; `None` for bits, for what the server will not have, and for what is not UTF-8.
pub fn string_value(text: &[u8], token: &Token) -> Option<String> {
    String::from_utf8(string_bytes(text, token)?).ok()
}

/// The same in bytes. Characters that are given by their number are in UTF-8.
pub(super) fn string_bytes(text: &[u8], token: &Token) -> Option<Vec<u8>> {
    let written = &text[token.span.clone()];
    match token.kind {
        Kind::String(StringKind::Plain) => Some(unquoted(&written[1..], b'\'')?.0),
        Kind::String(StringKind::Escape) => {
            escape_value(&written[if written.first() == Some(&b'\'') { 1 } else { 2 }..])
        }
        Kind::String(StringKind::Unicode) => unicode_value(written),
        Kind::String(StringKind::Dollar) => {
            let delimiter = 2 + written[1..].iter().position(|&byte| byte == b'$')?;
            Some(written.get(delimiter..written.len().checked_sub(delimiter)?)?.to_vec())
        }
        _ => None,
    }
}

/// What stands between quotes, given what is behind the first of them, and what follows the last: two in a row are one, and
/// strings go on in other lines. `None` if there is no end.
fn unquoted(mut rest: &[u8], quote: u8) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::with_capacity(rest.len());
    loop {
        let (&first, behind) = rest.split_first()?;
        rest = behind;
        if first != quote {
            value.push(first);
        } else if behind.first() == Some(&quote) {
            value.push(quote);
            rest = &behind[1..];
        } else {
            match continuation(behind) {
                Some(bytes) if quote == b'\'' => rest = &behind[bytes..],
                _ => return Some((value, behind)),
            }
        }
    }
}

/// What `E'…'` holds, given what is behind its first quote (PostgreSQL: `<xe>` and `unescape_single_char` in `scan.l`).
fn escape_value(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(rest.len());
    // The first half of a character in two.
    let mut half = None;
    loop {
        let (&first, behind) = rest.split_first()?;
        if half.is_some() && !(first == b'\\' && matches!(behind.first(), Some(b'u' | b'U'))) {
            return None;
        }
        rest = match (first, behind.first()) {
            (b'\'', Some(b'\'')) => {
                value.push(b'\'');
                &behind[1..]
            }
            (b'\'', _) => match continuation(behind) {
                Some(bytes) => &behind[bytes..],
                None => return Some(value).filter(|value| !value.contains(&0)),
            },
            (b'\\', _) => escape(behind, &mut value, &mut half)?,
            _ => {
                value.push(first);
                behind
            }
        };
    }
}

/// Adds what the escape stands for that is behind a backslash; returns what follows it.
fn escape<'a>(rest: &'a [u8], value: &mut Vec<u8>, half: &mut Option<u32>) -> Option<&'a [u8]> {
    let (&first, behind) = rest.split_first()?;
    let digits =
        |most: usize, is_digit: fn(u8) -> bool, from: &[u8]| count(&from[..from.len().min(most)], is_digit);
    match first {
        b'0'..=b'7' => {
            let (octal, behind) = rest.split_at(digits(3, |byte| matches!(byte, b'0'..=b'7'), rest));
            // Of more than a byte holds, it is cut.
            value.push(number(octal, 8)? as u8);
            return Some(behind);
        }
        b'x' => match behind.split_at(digits(2, |byte| byte.is_ascii_hexdigit(), behind)) {
            ([], behind) => {
                value.push(b'x');
                return Some(behind);
            }
            (hex, behind) => {
                value.push(number(hex, 16)? as u8);
                return Some(behind);
            }
        },
        b'u' | b'U' => {
            let (hex, behind) = behind.split_at_checked(if first == b'u' { 4 } else { 8 })?;
            push_character(number(hex, 16)?, value, half)?;
            return Some(behind);
        }
        b'b' => value.push(0x08),
        b'f' => value.push(0x0c),
        b'n' => value.push(b'\n'),
        b'r' => value.push(b'\r'),
        b't' => value.push(b'\t'),
        // Below PostgreSQL 16 it is the letter.
        b'v' => value.push(0x0b),
        other => value.push(other),
    }
    Some(behind)
}

/// A number without a sign.
fn number(digits: &[u8], radix: u32) -> Option<u32> {
    let digits = std::str::from_utf8(digits).ok()?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(())?;
    u32::from_str_radix(digits, radix).ok()
}

/// Adds a character by its number, which may be half of one: the other half has to follow (PostgreSQL: `addunicode`).
fn push_character(number: u32, value: &mut Vec<u8>, half: &mut Option<u32>) -> Option<()> {
    let number = match (half.take(), number) {
        (None, 0xd800..=0xdbff) => {
            *half = Some(number);
            return Some(());
        }
        (Some(high), 0xdc00..=0xdfff) => 0x10000 + ((high - 0xd800) << 10) + (number - 0xdc00),
        (None, 1..) => number,
        _ => return None,
    };
    let character = char::from_u32(number)?;
    value.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Some(())
}

/// What `U&'…'` holds or `U&"…"` is called, perhaps with UESCAPE; `None` if the server will not have it (PostgreSQL:
/// `str_udeescape`).
fn unicode_value(written: &[u8]) -> Option<Vec<u8>> {
    let (content, behind) = unquoted(written.get(3..)?, written[2])?;
    let escape = escape_of(behind)?;
    let mut value = Vec::with_capacity(content.len());
    let (mut rest, mut half) = (content.as_slice(), None);
    while let Some((&first, behind)) = rest.split_first() {
        rest = match behind.first() {
            Some(&second) if first == escape && second != escape => {
                let (start, length) = if second == b'+' { (1, 6) } else { (0, 4) };
                let (hex, behind) = behind[start..].split_at_checked(length)?;
                push_character(number(hex, 16)?, &mut value, &mut half)?;
                behind
            }
            _ if half.is_some() => return None,
            Some(_) if first == escape => {
                value.push(escape);
                &behind[1..]
            }
            None if first == escape => return None,
            _ => {
                value.push(first);
                behind
            }
        };
    }
    half.is_none().then_some(value)
}

/// What escapes: a backslash, if nothing is behind the name or string.
fn escape_of(behind: &[u8]) -> Option<u8> {
    let tokens = significant(behind, true);
    let Some(string) = tokens.last() else { return Some(b'\\') };
    let is_one = |value: &Vec<u8>| value.len() == 1;
    // Without standard_conforming_strings two backslashes are one; else the server refuses them, and nothing is lost.
    let value = string_bytes(behind, string).filter(is_one).or_else(|| {
        let with_escapes = Token { kind: Kind::String(StringKind::Escape), span: string.span.clone() };
        string_bytes(behind, &with_escapes).filter(is_one)
    })?;
    match value[..] {
        [escape] if !escape.is_ascii_hexdigit() && !b"+'\" \t\n\r\x0c\x0b".contains(&escape) => Some(escape),
        _ => None,
    }
}

/// What an identifier is called: folded to lower case, or as in its quotes. `None` for other tokens and what is
/// not UTF-8.
pub fn identifier(text: &[u8], token: &Token) -> Option<String> {
    let written = std::str::from_utf8(&text[token.span.clone()]).ok()?;
    match token.kind {
        Kind::Word => Some(written.to_ascii_lowercase()),
        Kind::Quoted => Some(written.strip_prefix('"')?.strip_suffix('"')?.replace("\"\"", "\"")),
        _ => None,
    }
}

fn count(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|&byte| !belongs(byte)).unwrap_or(bytes.len())
}

/// Where a dollar quote's delimiter comes again. It has a `$` at its ends only, so no byte is compared twice.
fn find(text: &[u8], delimiter: &[u8]) -> Option<usize> {
    let mut dollars = text.iter().enumerate().filter(|(_, byte)| **byte == b'$').map(|(at, _)| at);
    dollars.find(|&at| text[at..].starts_with(delimiter))
}

fn is_newline(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn is_ident_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_ident_cont(byte: u8) -> bool {
    is_ident_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn is_operator(byte: u8) -> bool {
    b"~!@#^&|`?+-*/%<>=".contains(&byte)
}
