//! Words, as `synchronous_standby_names` has them (PostgreSQL: `syncrep_scanner.l`), and the slash behind a role.

use std::iter::Peekable;
use std::vec::IntoIter;

use super::parser::{ExpressionError, Problem};

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Token {
    /// A word as it is; may be one of the language's.
    Word(String),
    /// A word in quotes.
    Quoted(String),
    /// Digits.
    Number(String),
    Star,
    Comma,
    Slash,
    Open,
    Close,
}

/// A token, and which character it begins with, counted from 1.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Placed {
    token: Token,
    at: usize,
}

/// The tokens of a text, one after the other.
pub(super) struct Tokens {
    ahead: Peekable<IntoIter<Placed>>,
    /// Where the text ends.
    end: usize,
}

impl Tokens {
    pub(super) fn of(text: &str) -> Result<Tokens, ExpressionError> {
        let end = text.chars().count() + 1;
        Ok(Tokens { ahead: tokens(text)?.into_iter().peekable(), end })
    }

    /// What comes next and where.
    pub(super) fn next(&mut self) -> (Option<Token>, usize) {
        match self.ahead.next() {
            Some(Placed { token, at }) => (Some(token), at),
            None => (None, self.end),
        }
    }

    /// Whether the next one is like that; then it is taken.
    pub(super) fn accept(&mut self, is_it: impl Fn(&Token) -> bool) -> bool {
        self.ahead.next_if(|placed| is_it(&placed.token)).is_some()
    }

    /// Whether these come next; they stay.
    pub(super) fn are_ahead(&self, are_they: [fn(&Token) -> bool; 2]) -> bool {
        let mut ahead = self.ahead.clone();
        are_they.into_iter().all(|is_it| ahead.next().is_some_and(|placed| is_it(&placed.token)))
    }
}

/// Cuts the text.
fn tokens(text: &str) -> Result<Vec<Placed>, ExpressionError> {
    let mut rest = text.chars().enumerate().peekable();
    let mut tokens = Vec::new();
    while let Some((before, c)) = rest.next() {
        let at = before + 1;
        let mut more = |first: char, goes_on: fn(char) -> bool| {
            let mut word = String::from(first);
            while let Some((_, c)) = rest.next_if(|(_, c)| goes_on(*c)) {
                word.push(c);
            }
            word
        };
        let token = match c {
            ' ' | '\t' | '\n' | '\r' | '\x0c' | '\x0b' => continue,
            ',' => Token::Comma,
            '/' => Token::Slash,
            '(' => Token::Open,
            ')' => Token::Close,
            '*' => Token::Star,
            '"' => Token::Quoted(
                quoted(&mut rest).ok_or(ExpressionError { at, problem: Problem::Unterminated })?,
            ),
            c if c.is_ascii_digit() => Token::Number(more(c, |c| c.is_ascii_digit())),
            c if begins_word(c) => Token::Word(more(c, goes_on_in_word)),
            c => return Err(ExpressionError { at, problem: Problem::Unquoted(c) }),
        };
        tokens.push(Placed { token, at });
    }
    Ok(tokens)
}

/// What stands up to the closing quote, which is taken; two of them are one that belongs to it.
fn quoted(rest: &mut Peekable<impl Iterator<Item = (usize, char)>>) -> Option<String> {
    let mut word = String::new();
    loop {
        match rest.next()?.1 {
            '"' if rest.next_if(|(_, c)| *c == '"').is_some() => word.push('"'),
            '"' => return Some(word),
            c => word.push(c),
        }
    }
}

// PG: ident_start, ident_cont
fn begins_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn goes_on_in_word(c: char) -> bool {
    begins_word(c) || c.is_ascii_digit() || c == '$'
}

/// Whether a name can be written without quotes, as far as its letters go.
pub(super) fn is_plain(name: &str) -> bool {
    let is_word = name.chars().next().is_some_and(begins_word) && name.chars().all(goes_on_in_word);
    is_word || (!name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a server with this value of `synchronous_standby_names` may wait for who carries this name.
pub fn may_wait_for(synchronous_standby_names: &str, name: &str) -> bool {
    let names_all = |placed: &Placed| match &placed.token {
        Token::Star => true,
        Token::Quoted(name) => name == "*",
        _ => false,
    };
    tokens(synchronous_standby_names).is_ok_and(|tokens| tokens.iter().any(names_all))
        || names_of(synchronous_standby_names).iter().any(|named| named.eq_ignore_ascii_case(name))
}

/// The names in a value of `synchronous_standby_names`; none where it is no good, or names everybody.
pub fn names_of(synchronous_standby_names: &str) -> Vec<String> {
    let tokens = tokens(synchronous_standby_names).unwrap_or_default();
    let counts = |at: usize| {
        // A number in front of the list says how many.
        matches!(tokens.get(at + 1), Some(Placed { token: Token::Open, .. }))
    };
    let name = |(at, placed): (usize, &Placed)| match &placed.token {
        Token::Word(word) => {
            let is_keyword = ["any", "first"].iter().any(|keyword| word.eq_ignore_ascii_case(keyword));
            (!is_keyword).then(|| word.clone())
        }
        Token::Quoted(name) => Some(name.clone()),
        Token::Number(number) if !counts(at) => Some(number.clone()),
        _ => None,
    };
    tokens.iter().enumerate().filter_map(name).collect()
}
