//! LIKE and regular expressions.

use regex::{Regex, RegexBuilder};

use crate::wire::{PgError, sqlstate};

use super::Result;
use super::context::Context;

/// Bytes that a regular expression may become.
const MOST_PROGRAM: usize = 1 << 20;

enum Part {
    /// `%`
    Any,
    /// `_`
    One,
    Character(char),
}

/// PG: `MatchText`. The escape is empty where there is none.
pub(super) fn like(
    text: &str,
    pattern: &str,
    escape: &str,
    any_case: bool,
    cx: &mut Context<'_>,
) -> Result<bool> {
    let mut escapes = escape.chars();
    let escape = escapes.next();
    if escapes.next().is_some() {
        let text = "invalid escape string";
        return Err(PgError::error(sqlstate::INVALID_ESCAPE_SEQUENCE, text)
            .with_hint("Escape string must be empty or one character."));
    }
    let (lower_text, lower_pattern);
    let (text, pattern) = match any_case {
        true => {
            (lower_text, lower_pattern) = (text.to_lowercase(), pattern.to_lowercase());
            (lower_text.as_str(), lower_pattern.as_str())
        }
        false => (text, pattern),
    };
    let mut parts = Vec::new();
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        parts.push(match character {
            _ if Some(character) == escape => match characters.next() {
                Some(escaped) => Part::Character(escaped),
                None => {
                    let text = "LIKE pattern must not end with escape character";
                    return Err(PgError::error(sqlstate::INVALID_ESCAPE_SEQUENCE, text));
                }
            },
            '%' => Part::Any,
            '_' => Part::One,
            character => Part::Character(character),
        });
    }
    cx.step_bytes(text.len() + 16 * pattern.len())?;
    matches(text, &parts, cx)
}

/// Goes back only to the last `%`: what an earlier one could do, it can do as well.
fn matches(text: &str, parts: &[Part], cx: &mut Context<'_>) -> Result<bool> {
    let (mut rest, mut at) = (text.chars(), 0);
    let mut back = None;
    let mut looked = 0_u32;
    loop {
        looked += 1;
        if looked.is_multiple_of(64) {
            cx.step(1)?;
        }
        let mut ahead = rest.clone();
        match (parts.get(at), ahead.next()) {
            (Some(Part::Any), _) => {
                at += 1;
                back = Some((rest.clone(), at));
                continue;
            }
            (None, None) => return Ok(true),
            (Some(Part::One), Some(_)) => {
                (rest, at) = (ahead, at + 1);
                continue;
            }
            (Some(Part::Character(wanted)), Some(found)) if *wanted == found => {
                (rest, at) = (ahead, at + 1);
                continue;
            }
            _ => {}
        }
        let Some((tried, behind)) = &mut back else { return Ok(false) };
        if tried.next().is_none() {
            return Ok(false);
        }
        (rest, at) = (tried.clone(), *behind);
    }
}

pub(super) fn regex(pattern: &str, any_case: bool) -> Result<Regex> {
    let built = RegexBuilder::new(pattern)
        .case_insensitive(any_case)
        .size_limit(MOST_PROGRAM)
        .dfa_size_limit(MOST_PROGRAM)
        .nest_limit(50)
        .build();
    built.map_err(|error| {
        let whole = error.to_string();
        let reason = whole.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        PgError::error(sqlstate::INVALID_REGULAR_EXPRESSION, format!("invalid regular expression: {reason}"))
    })
}
