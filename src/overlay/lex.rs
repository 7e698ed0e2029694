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
    /// `U&'…'`
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

/// As the grammar sees them: what says how a name is escaped belongs to the name (PostgreSQL: `base_yylex`).
fn push(text: &[u8], tokens: &mut Vec<Token>, token: Token) {
    match (tokens.as_slice(), token.kind) {
        ([.., name, word], Kind::String(_))
            if name.kind == Kind::UnicodeQuoted && is_word(text, word, "uescape") =>
        {
            tokens.pop();
            let name = tokens.last_mut().expect("it is the one before");
            name.span.end = token.span.end;
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
        Kind::UnicodeQuoted => unicode_is(written, name).unwrap_or(false),
        _ => is_word(text, token, name),
    }
}

/// Whether `U&"…"`, perhaps with UESCAPE, is this name, which is in ASCII; `None` if the server will not have it
/// (PostgreSQL: `str_udeescape`).
fn unicode_is(written: &[u8], name: &str) -> Option<bool> {
    let body = &written[3..];
    let end = (0..body.len()).find(|&at| {
        // The last one of a row of quotes ends the name if the row is odd.
        let quotes = || body[..=at].iter().rev().take_while(|&&byte| byte == b'"').count();
        body[at] == b'"' && body.get(at + 1) != Some(&b'"') && quotes() % 2 == 1
    })?;
    let escape = escape_of(&body[end + 1..])?;
    let mut rest = &body[..end];
    let mut expected = name.bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let (character, behind) = match first {
            _ if first == escape => unescaped(behind, escape)?,
            b'"' => (u32::from(b'"'), behind.get(1..)?),
            _ => (u32::from(first), behind),
        };
        if expected.next().map(u32::from) != Some(character) {
            return Some(false);
        }
        rest = behind;
    }
    Some(expected.next().is_none())
}

/// What escapes: a backslash, if nothing is behind the name.
fn escape_of(behind: &[u8]) -> Option<u8> {
    let tokens = significant(behind, true);
    let Some(string) = tokens.last() else { return Some(b'\\') };
    match string_value(behind, string)?.as_bytes() {
        [escape] if !escape.is_ascii_hexdigit() && !b"+'\" \t\n\r\x0c\x0b".contains(escape) => Some(*escape),
        _ => None,
    }
}

/// The character behind an escape, and what follows: four digits, six behind a plus, or the escape itself.
fn unescaped(behind: &[u8], escape: u8) -> Option<(u32, &[u8])> {
    let (digits, rest) = match *behind.first()? {
        first if first == escape => return Some((escape.into(), &behind[1..])),
        b'+' => behind[1..].split_at_checked(6)?,
        _ => behind.split_at_checked(4)?,
    };
    let digits =
        std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    Some((u32::from_str_radix(digits, 16).ok()?, rest))
}

/// What a string holds; `None` for the kinds and escapes that take more than reading, and for what is not UTF-8.
pub fn string_value(text: &[u8], token: &Token) -> Option<String> {
    let written = &text[token.span.clone()];
    let bytes = match token.kind {
        Kind::String(StringKind::Plain) => unescape(&written[1..], false)?,
        Kind::String(StringKind::Escape) => {
            unescape(&written[if written.first() == Some(&b'\'') { 1 } else { 2 }..], true)?
        }
        Kind::String(StringKind::Dollar) => {
            let delimiter = 2 + written[1..].iter().position(|&byte| byte == b'$')?;
            written.get(delimiter..written.len().checked_sub(delimiter)?)?.to_vec()
        }
        _ => return None,
    };
    String::from_utf8(bytes).ok()
}

/// The contents of a string behind its opening quote; `None` if it has continuations or no end.
fn unescape(written: &[u8], backslashes: bool) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(written.len());
    let mut bytes = written.iter().copied();
    loop {
        match bytes.next()? {
            b'\'' => match bytes.next() {
                None => return Some(value),
                Some(b'\'') => value.push(b'\''),
                Some(_) => return None,
            },
            b'\\' if backslashes => match bytes.next()? {
                byte if byte.is_ascii_alphanumeric() => return None,
                byte => value.push(byte),
            },
            byte => value.push(byte),
        }
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
