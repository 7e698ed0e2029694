//! SQL's DEALLOCATE: which texts are one, and of which statement.

use super::statements::{Name, cut};
use crate::overlay;

/// Longest text that is taken for one.
const LONGEST: usize = 1024;

/// The prepared statement that a text drops, if that is all it does and certain.
pub(in crate::downstream) fn deallocated(text: &[u8]) -> Option<Name> {
    if text.len() > LONGEST {
        return None;
    }
    let word = text.trim_ascii_start().get(..10)?;
    if !word.eq_ignore_ascii_case(b"deallocate") || !text.is_ascii() || text.contains(&b'\\') {
        return None;
    }
    let mut statements = overlay::statements(text, true);
    let (statement, None) = (statements.next()?, statements.next()) else { return None };
    let name = match statement.tokens.as_slice() {
        [_, prepare, name] if overlay::is_word(text, prepare, "prepare") => name,
        [_, name] => name,
        _ => return None,
    };
    // In ASCII the server cuts identifiers where it cuts names.
    overlay::identifier(text, name).map(|name| cut(name.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deallocated_is_read_where_it_is_certain() {
        let name = |text: &str| {
            deallocated(text.as_bytes()).map(|name| std::str::from_utf8(&name).unwrap().to_owned())
        };
        assert_eq!(name("DEALLOCATE S1;").as_deref(), Some("s1"));
        assert_eq!(name(" deallocate prepare \"S 1\"").as_deref(), Some("S 1"));
        for text in
            ["deallocate a; select 1", "deallocate \"\\\"", "deallocate é", "deallocate", "deallocate a b"]
        {
            assert_eq!(name(text), None, "{text}");
        }
        let long = "x".repeat(100);
        assert_eq!(name(&format!("deallocate {long}")).as_deref(), Some(&long[..63]));
        assert_eq!(name(&format!("deallocate {}", "x".repeat(LONGEST))), None);
    }
}
