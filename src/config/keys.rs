//! Keys of the configuration file: `-` and `_` are the same, as PostgreSQL people write the one and the command line the
//! other, and an unknown key is refused with the known one nearest to it.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::DeserializeOwned;
use serde::de::Error as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, Error};

/// Why a text cannot be used, and where in it.
pub(super) struct Fault {
    pub(super) reason: String,
    pub(super) span: Option<Range<usize>>,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let reason = error.message().trim().replace('\n', " ");
        Fault { reason: without_value(&with_nearest(&reason)), span: error.span() }
    }
}

/// Reads a configuration file.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    let root = DeTable::parse(text)?;
    let span = root.span();
    let mut root = with_dashes(root.into_inner())?;
    if let Some(archives) = root.get_mut("archive") {
        // The names of archives are their owner's; so are the options of an object store, which are read elsewhere.
        if let DeValue::Table(archives) = archives.get_mut() {
            for (_, archive) in archives.iter_mut() {
                if let DeValue::Table(keys) = archive.get_mut() {
                    *keys = with_dashes(std::mem::take(keys))?;
                }
            }
        }
    }
    T::deserialize(Deserializer::from(Spanned::new(span, root))).map_err(Fault::from)
}

fn with_dashes(table: DeTable<'_>) -> Result<DeTable<'_>, Fault> {
    let mut renamed = DeTable::new();
    for (key, value) in table {
        let (span, name) = (key.span(), key.get_ref().replace('_', "-"));
        let key = Spanned::new(span.clone(), Cow::Owned(name.clone()));
        if renamed.insert(key, value).is_some() {
            let error = Error::custom(format_args!("key `{name}` is given twice, with - and with _"));
            return Err(Fault { reason: error.message().to_owned(), span: Some(span) });
        }
    }
    Ok(renamed)
}

/// "unknown field `x`, expected one of `a`, `b`", cut to what helps.
fn with_nearest(reason: &str) -> String {
    let mut words = reason.split('`').skip(1).step_by(2);
    let Some(unknown) = words.next().filter(|_| reason.starts_with("unknown field")) else {
        return reason.to_owned();
    };
    match words.min_by_key(|known| distance(unknown, known)) {
        Some(nearest) => format!("unknown field `{unknown}`; the nearest known one is `{nearest}`"),
        None => format!("unknown field `{unknown}`"),
    }
}

/// "invalid type: string "x", expected a boolean" without the value, which may be a secret in the wrong place.
fn without_value(reason: &str) -> String {
    let kinds = ["invalid type: ", "invalid value: ", "unknown variant "];
    let Some(kind) = kinds.iter().find(|kind| reason.starts_with(**kind)) else { return reason.to_owned() };
    let (given, expected) =
        reason[kind.len()..].rsplit_once(", expected ").unwrap_or((&reason[kind.len()..], ""));
    // serde writes the value behind what it is, in quotes of one kind or the other.
    let what = given.split(['"', '`']).next().unwrap_or_default().trim_end();
    let separator = if what.is_empty() { "" } else { ", " };
    format!(
        "{}{what}{separator}expected {expected}",
        if what.is_empty() {
            kind.trim_end_matches([':', ' ']).to_owned() + ", "
        } else {
            (*kind).to_owned()
        }
    )
}

/// How many letters have to be added, taken away or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_counted() {
        let check = |a, b, expected| assert_eq!(distance(a, b), expected, "{a} {b}");
        check("", "", 0);
        check("abc", "", 3);
        check("partial-intervall", "partial-interval", 1);
        check("keep-sise", "keep-size", 1);
        check("kitten", "sitting", 3);
    }

    #[test]
    fn values_are_left_out() {
        let check = |reason: &str, expected: &str| assert_eq!(without_value(reason), expected);
        check(
            "invalid type: string \"a, expected b\", expected usize",
            "invalid type: string, expected usize",
        );
        check("invalid type: integer `5`, expected a string", "invalid type: integer, expected a string");
        check("invalid type: map, expected a string", "invalid type: map, expected a string");
        check("unknown variant `x`, expected `on` or `off`", "unknown variant, expected `on` or `off`");
        check("string values must be quoted", "string values must be quoted");
    }

    #[test]
    fn the_nearest_known_key_is_named() {
        let known = "unknown field `keep-sze`, expected one of `keep-age`, `keep-size`, `quota`";
        assert!(with_nearest(known).ends_with("`keep-sze`; the nearest known one is `keep-size`"));
        assert_eq!(with_nearest("something else"), "something else");
    }
}
