//! Calls and their arguments.

use std::ops::Range;

use walrelay_proto::{Lsn, SlotName};

use crate::overlay::lex::{self, Kind, Token};
use crate::wire::{PgError, sqlstate};

use super::{Function, cut, span};

/// A call of a function of interest.
pub(super) struct Call {
    pub(super) function: Function,
    /// Tokens: the first of its qualification or name, and its closing parenthesis.
    pub(super) first: usize,
    pub(super) last: usize,
    /// The slot's name, when it is a constant.
    pub(super) slot: Option<Name>,
    /// The arguments, when they are constants, and as many and called as they should be.
    pub(super) arguments: Option<Argument>,
}

/// A slot's name in a call.
pub(super) struct Name {
    pub(super) value: String,
    /// Where its expression stands, without its parameter's name.
    pub(super) span: Range<usize>,
}

/// What a function is called with.
pub(super) enum Argument {
    Create { name: String, reserve: bool, temporary: bool },
    Drop { name: String },
    Copy { from: String, to: String, temporary: Option<bool> },
    Advance { name: String, upto: Result<Lsn, PgError> },
}

impl Function {
    /// Names of its parameters.
    fn parameters(self) -> &'static [&'static str] {
        match self {
            Function::Create => &["slot_name", "immediately_reserve", "temporary"],
            // The only one has no name.
            Function::Drop => &[""],
            Function::Copy => &["src_slot_name", "dst_slot_name", "temporary"],
            Function::Advance => &["slot_name", "upto_lsn"],
        }
    }
}

/// Reads the call that begins at token `first` and whose parenthesis is token `open`.
pub(super) fn parse(text: &[u8], tokens: &[Token], function: Function, first: usize, open: usize) -> Call {
    let Some(written) = split(tokens, open) else {
        return Call { function, first, last: tokens.len() - 1, slot: None, arguments: None };
    };
    let last = written.last;
    let bound = bind(text, tokens, function, &written.arguments);
    let slot = bound.as_ref().and_then(|bound| {
        let tokens_of = bound.first()?.clone()?;
        let value = name_of(&constant(text, &tokens[tokens_of.clone()])?)?;
        Some(Name { value, span: span(tokens, tokens_of.start, tokens_of.end - 1) })
    });
    let arguments = bound.and_then(|bound| {
        let values = bound.into_iter().map(|range| match range {
            Some(range) => constant(text, &tokens[range]).map(Some),
            None => Some(None),
        });
        argument(function, values.collect::<Option<Vec<_>>>()?)
    });
    Call { function, first, last, slot, arguments }
}

struct Written {
    /// Tokens of each argument.
    arguments: Vec<Range<usize>>,
    /// The closing parenthesis.
    last: usize,
}

fn split(tokens: &[Token], open: usize) -> Option<Written> {
    let mut arguments = Vec::new();
    let (mut depth, mut start) = (0_usize, open + 1);
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close if depth == 1 => {
                if at > open + 1 {
                    arguments.push(start..at);
                }
                return Some(Written { arguments, last: at });
            }
            Kind::Close => depth -= 1,
            Kind::Comma if depth == 1 => {
                arguments.push(start..at);
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

/// The tokens of each parameter's value, by position or by name.
fn bind(
    text: &[u8],
    tokens: &[Token],
    function: Function,
    arguments: &[Range<usize>],
) -> Option<Vec<Option<Range<usize>>>> {
    let parameters = function.parameters();
    let mut bound = vec![None; parameters.len()];
    for (position, argument) in arguments.iter().enumerate() {
        let (at, value) = match tokens[argument.clone()] {
            [ref name, ref arrow, _, ..] if is_arrow(text, arrow) => {
                let named = |parameter: &str| lex::is_identifier(text, name, parameter);
                (parameters.iter().position(|parameter| named(parameter))?, argument.start + 2..argument.end)
            }
            [] => return None,
            _ => (position, argument.clone()),
        };
        let place = bound.get_mut(at).filter(|place| place.is_none())?;
        *place = Some(value);
    }
    Some(bound)
}

fn is_arrow(text: &[u8], token: &Token) -> bool {
    token.kind == Kind::Operator && [b"=>".as_slice(), b":="].contains(&&text[token.span.clone()])
}

/// A constant: a string, or a key word in lower case.
enum Constant {
    String(String),
    Boolean(bool),
}

/// `'…'`, TRUE or FALSE, with a type in front or casts behind, where that changes nothing.
fn constant(text: &[u8], tokens: &[Token]) -> Option<Constant> {
    let tokens = match type_name(text, tokens) {
        Some(rest) if rest.first().is_some_and(|next| matches!(next.kind, Kind::String(_))) => rest,
        _ => tokens,
    };
    let (first, mut casts) = tokens.split_first()?;
    while let Some((operator, rest)) = casts.split_first() {
        let is_cast = operator.kind == Kind::Operator && &text[operator.span.clone()] == b"::";
        casts = type_name(text, rest).filter(|_| is_cast)?;
    }
    match first.kind {
        Kind::Word if lex::is_word(text, first, "true") => Some(Constant::Boolean(true)),
        Kind::Word if lex::is_word(text, first, "false") => Some(Constant::Boolean(false)),
        _ => lex::string_value(text, first).map(Constant::String),
    }
}

/// What follows a type's name, if it is one of those that arguments are written with.
fn type_name<'a>(text: &[u8], tokens: &'a [Token]) -> Option<&'a [Token]> {
    const TYPES: [&str; 6] = ["text", "name", "varchar", "pg_lsn", "bool", "boolean"];
    let tokens = match tokens {
        [schema, dot, rest @ ..] if dot.kind == Kind::Dot => {
            lex::is_identifier(text, schema, "pg_catalog").then_some(rest)?
        }
        _ => tokens,
    };
    let (first, rest) = tokens.split_first()?;
    TYPES.iter().any(|name| lex::is_identifier(text, first, name)).then_some(rest)
}

fn argument(function: Function, values: Vec<Option<Constant>>) -> Option<Argument> {
    let [first, second, third] = {
        let mut values =
            values.into_iter().map(Some).chain(std::iter::repeat_with(|| None)).map(Option::flatten);
        [values.next()?, values.next()?, values.next()?]
    };
    let name = name_of(&first?)?;
    let flag =
        |value: Option<Constant>| value.map(|value| boolean(&value)).map_or(Some(None), |b| b.map(Some));
    Some(match function {
        Function::Create => Argument::Create {
            name,
            reserve: flag(second)?.unwrap_or(false),
            temporary: flag(third)?.unwrap_or(false),
        },
        Function::Drop => Argument::Drop { name },
        Function::Copy => Argument::Copy { from: name, to: name_of(&second?)?, temporary: flag(third)? },
        Function::Advance => match second? {
            Constant::String(upto) => Argument::Advance { name, upto: lsn(&upto) },
            Constant::Boolean(_) => return None,
        },
    })
}

/// Names are cut to what fits into a `name`, as PostgreSQL does.
fn name_of(value: &Constant) -> Option<String> {
    match value {
        Constant::String(name) => Some(cut(name, SlotName::MAX_LEN).to_owned()),
        Constant::Boolean(_) => None,
    }
}

/// PostgreSQL: `parse_bool`; a word may be shortened as long as it stays distinct.
fn boolean(value: &Constant) -> Option<bool> {
    let text = match value {
        Constant::Boolean(value) => return Some(*value),
        Constant::String(text) => text.trim_ascii().to_ascii_lowercase(),
    };
    let means = |words: &[&str]| words.iter().any(|word| word.starts_with(&text));
    match text.as_str() {
        "" | "o" => None,
        "1" | "on" => Some(true),
        "0" => Some(false),
        _ if means(&["true", "yes"]) => Some(true),
        _ if means(&["false", "no", "off"]) => Some(false),
        _ => None,
    }
}

fn lsn(text: &str) -> Result<Lsn, PgError> {
    let invalid = || {
        let message = format!("invalid input syntax for type pg_lsn: \"{text}\"");
        PgError::error(sqlstate::INVALID_TEXT_REPRESENTATION, message)
    };
    text.parse().map_err(|_| invalid())
}
