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
    /// Where the expression of the slot's name stands, of whatever kind.
    pub(super) name_span: Option<Range<usize>>,
    /// `pg_catalog` stands in front.
    pub(super) is_qualified: bool,
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
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Argument {
    Create { name: String, reserve: bool, temporary: bool },
    Drop { name: String },
    Copy { from: String, to: String, temporary: Option<bool> },
    Advance { name: String, upto: Result<Lsn, PgError> },
}

impl Argument {
    /// The slot that is there or is not there afterwards.
    pub(super) fn makes_or_changes(&self) -> &str {
        match self {
            Argument::Create { name, .. } | Argument::Drop { name } | Argument::Advance { name, .. } => name,
            Argument::Copy { to, .. } => to,
        }
    }
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

    /// Types that their constants may be cast to; what another one does is the server's to say.
    fn types(self) -> &'static [&'static [&'static str]] {
        const NAME: &[&str] = &["name", "text"];
        const FLAG: &[&str] = &["bool", "boolean"];
        match self {
            Function::Create => &[NAME, FLAG, FLAG],
            Function::Drop => &[NAME],
            Function::Copy => &[NAME, NAME, FLAG],
            Function::Advance => &[NAME, &["pg_lsn"]],
        }
    }
}

/// Reads the call whose name, with its qualification, are the tokens `named`, and whose parentheses are the next one
/// and `close`, which is the number of tokens if there is none.
pub(super) fn parse(
    text: &[u8],
    tokens: &[Token],
    function: Function,
    named: Range<usize>,
    close: usize,
    is_qualified: bool,
) -> Call {
    let first = named.start;
    let mut call = Call {
        function,
        first,
        last: close.min(tokens.len() - 1),
        slot: None,
        name_span: None,
        is_qualified,
        arguments: None,
    };
    if close == tokens.len() {
        return call;
    }
    let Some(bound) = bind(text, tokens, function, &split(tokens, named.end + 1..close)) else { return call };
    if let Some(name) = bound.first().cloned().flatten() {
        let span = span(tokens, name.start, name.end - 1);
        let value = constant(text, &tokens[name], &["name", "text"]).and_then(|value| name_of(&value));
        call.slot = value.map(|value| Name { value, span: span.clone() });
        call.name_span = Some(span);
    }
    let types = function.types();
    let values = bound.into_iter().zip(types).map(|(range, types)| match range {
        Some(range) => constant(text, &tokens[range], types).map(Some),
        None => Some(None),
    });
    call.arguments = values.collect::<Option<Vec<_>>>().and_then(|values| argument(function, values));
    call
}

/// The constant, if it is one, that a call's parameter of this place and name has; the call's parentheses are the tokens
/// around `between`.
pub(super) fn name_argument(
    text: &[u8],
    tokens: &[Token],
    between: Range<usize>,
    (place, parameter): (usize, &str),
) -> Option<String> {
    let arguments = split(tokens, between);
    let named = |argument: &&Range<usize>| match &tokens[(*argument).clone()] {
        [name, arrow, ..] => is_arrow(text, arrow) && lex::is_identifier(text, name, parameter),
        _ => false,
    };
    let value = match arguments.iter().find(named) {
        Some(argument) => argument.start + 2..argument.end,
        None => arguments.get(place)?.clone(),
    };
    name_of(&constant(text, &tokens[value], &["name", "text"])?)
}

/// The arguments between two parentheses. None are many if there are more than any of the functions takes.
fn split(tokens: &[Token], between: Range<usize>) -> Vec<Range<usize>> {
    const MOST: usize = 8;
    let mut arguments = Vec::new();
    let (mut depth, mut start) = (0_usize, between.start);
    for at in between.clone() {
        match tokens[at].kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            Kind::Comma if depth == 0 => {
                arguments.push(start..at);
                start = at + 1;
                if arguments.len() > MOST {
                    return arguments;
                }
            }
            _ => {}
        }
    }
    if !between.is_empty() {
        arguments.push(start..between.end);
    }
    arguments
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

/// `'…'`, TRUE or FALSE, perhaps with a cast to one of the types, which changes nothing.
fn constant(text: &[u8], tokens: &[Token], types: &[&str]) -> Option<Constant> {
    let (first, cast) = tokens.split_first()?;
    let is_type = |token: &Token| types.iter().any(|name| lex::is_identifier(text, token, name));
    match cast {
        [] => {}
        [operator, rest @ ..] if &text[operator.span.clone()] == b"::" => match rest {
            [name] if is_type(name) => {}
            [schema, dot, name]
                if lex::is_identifier(text, schema, "pg_catalog")
                    && dot.kind == Kind::Dot
                    && is_type(name) => {}
            _ => return None,
        },
        _ => return None,
    }
    match first.kind {
        Kind::Word if lex::is_word(text, first, "true") => Some(Constant::Boolean(true)),
        Kind::Word if lex::is_word(text, first, "false") => Some(Constant::Boolean(false)),
        _ => lex::string_value(text, first).map(Constant::String),
    }
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
