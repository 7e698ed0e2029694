//! Constants to put into SQL texts, safe with every setting and encoding.

use std::fmt::Write;

use crate::wire::PgError;

use super::SqlContext;

/// A string constant. It means the same whatever `standard_conforming_strings` and `backslash_quote` are, and
/// has neither `$` nor bytes beyond ASCII.
pub(super) fn string(value: &str, session: &SqlContext) -> String {
    let mut text = String::from("E'");
    for character in value.chars().filter(|&c| c != '\0') {
        match character {
            '\'' => text.push_str("''"),
            '\\' => text.push_str("\\\\"),
            '$' => text.push_str("\\x24"),
            ' '..='~' => text.push(character),
            '\u{1}'..='\u{7f}' => push(&mut text, format_args!("\\x{:02x}", u32::from(character))),
            _ if session.server_encoding_utf8 => {
                push(&mut text, format_args!("\\U{:08x}", u32::from(character)));
            }
            _ => text.push('?'),
        }
    }
    text.push('\'');
    text
}

/// JSON as a dollar-quoted string.
pub(super) fn json_string(value: &serde_json::Value, session: &SqlContext) -> String {
    format!("$j${}$j$", json(value, session))
}

/// JSON that has neither `$` nor bytes beyond ASCII.
pub(super) fn json(value: &serde_json::Value, session: &SqlContext) -> String {
    let mut text = String::new();
    // Outside of its strings, JSON has neither of what is escaped here.
    for character in value.to_string().chars() {
        match character {
            '$' => text.push_str("\\u0024"),
            '\0'..='\u{7f}' => text.push(character),
            _ if session.server_encoding_utf8 => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    push(&mut text, format_args!("\\u{unit:04x}"));
                }
            }
            _ => text.push('?'),
        }
    }
    text
}

/// A statement that raises the error when it is executed.
pub fn raise(error: &PgError, session: &SqlContext) -> String {
    let mut text = format!(
        "DO $raise$ BEGIN RAISE EXCEPTION USING MESSAGE = {}, ERRCODE = '{}'",
        string(&error.message, session),
        error.sqlstate
    );
    for (field, value) in [("DETAIL", &error.detail), ("HINT", &error.hint)] {
        if let Some(value) = value {
            push(&mut text, format_args!(", {field} = {}", string(value, session)));
        }
    }
    text.push_str("; END $raise$");
    text
}

/// A statement that fails when it is parsed, for where one without parameters would be in the way of the message.
pub(super) fn fail_to_parse(error: &PgError, session: &SqlContext) -> String {
    let hint = error.hint.iter().map(|hint| format!("; {hint}")).collect::<String>();
    format!("SELECT {}::pg_catalog.pg_lsn", string(&format!("{}{hint}", error.message), session))
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes everything");
}
