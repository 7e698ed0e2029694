//! Strings of `keyword = value` pairs (PG: `conninfo_parse`).

use super::options::{Keyword, Settings};
use super::{ConnInfoError, is_space};

/// Reads all pairs of `text` into `settings`.
pub(super) fn parse(text: &str, settings: &mut Settings) -> Result<(), ConnInfoError> {
    let mut rest = text.trim_start_matches(is_space);
    let mut previous = None;
    while !rest.is_empty() {
        let (name, after) = read_name(rest, previous)?;
        let (value, after) = read_value(after)?;
        previous = Some(settings.store(name, value)?);
        rest = after.trim_start_matches(is_space);
    }
    Ok(())
}

fn read_name(text: &str, previous: Option<Keyword>) -> Result<(&str, &str), ConnInfoError> {
    let end = text.find(|c| c == '=' || is_space(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    match rest.trim_start_matches(is_space).strip_prefix('=') {
        Some(value) => Ok((name, value.trim_start_matches(is_space))),
        None => Err(missing_equals(name, previous)),
    }
}

/// A word without `=` is most likely the second word of the value before it, and that may be a password.
fn missing_equals(name: &str, previous: Option<Keyword>) -> ConnInfoError {
    match previous {
        Some(keyword) if keyword.is_secret() => ConnInfoError::SecretWithSpaces { keyword },
        _ => ConnInfoError::MissingEquals { name: name.to_owned() },
    }
}

fn read_value(text: &str) -> Result<(String, &str), ConnInfoError> {
    match text.strip_prefix('\'') {
        Some(quoted) => read_until(quoted, |c| c == '\'').ok_or(ConnInfoError::UnterminatedQuote),
        None => Ok(read_until(text, is_space).unwrap_or_else(|| (unescape(text), ""))),
    }
}

/// Value up to the first unescaped character that `ends` it, and what follows that; `None` if there is none.
fn read_until(text: &str, ends: impl Fn(char) -> bool) -> Option<(String, &str)> {
    let mut escaped = false;
    let end = text.find(|c| {
        let found = !escaped && ends(c);
        escaped = !escaped && c == '\\';
        found
    })?;
    let rest = text[end..].chars().next().map_or("", |c| &text[end + c.len_utf8()..]);
    Some((unescape(&text[..end]), rest))
}

/// A backslash makes the next character literal; a last one disappears.
fn unescape(text: &str) -> String {
    let mut escaped = false;
    let literal = text.chars().filter(|c| {
        escaped = !escaped && *c == '\\';
        !escaped
    });
    literal.collect()
}
