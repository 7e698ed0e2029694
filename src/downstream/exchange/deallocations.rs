//! SQL's DEALLOCATE in the extended protocol: which prepared statements are one, and which portals run them.

use std::collections::HashMap;

use crate::overlay;

/// Of more statements or portals nothing is kept: what they drop is taken to be there.
const MOST: usize = 64;

/// Statements and portals of a session that drop one prepared statement and do nothing else.
#[derive(Debug, Default)]
pub(super) struct Deallocations {
    /// What each drops.
    statements: HashMap<Vec<u8>, Vec<u8>>,
    portals: HashMap<Vec<u8>, Vec<u8>>,
}

impl Deallocations {
    /// Whether Binds and Executes have to be looked at.
    pub(super) fn any(&self) -> bool {
        !self.statements.is_empty() || !self.portals.is_empty()
    }

    /// A Parse of this text is sent.
    pub(super) fn parse(&mut self, statement: &[u8], text: &[u8]) {
        match deallocated(text) {
            // The server refuses a second one of a name.
            Some(_) if !statement.is_empty() && self.statements.contains_key(statement) => {}
            target => note(&mut self.statements, statement, target),
        }
    }

    /// A Close of the statement is sent, or something that makes another one of it.
    pub(super) fn close(&mut self, statement: &[u8]) {
        self.statements.remove(statement);
    }

    /// A Bind is sent.
    pub(super) fn bind(&mut self, portal: &[u8], statement: &[u8]) {
        let target = self.statements.get(statement).cloned();
        note(&mut self.portals, portal, target);
    }

    /// What an Execute of the portal drops, once it has come to an end.
    pub(super) fn execute(&self, portal: &[u8]) -> Option<Vec<u8>> {
        self.portals.get(portal).cloned()
    }
}

fn note(known: &mut HashMap<Vec<u8>, Vec<u8>>, name: &[u8], target: Option<Vec<u8>>) {
    known.remove(name);
    if let Some(target) = target
        && known.len() < MOST
    {
        known.insert(name.to_owned(), target);
    }
}

/// The prepared statement that a text drops, if that is all it does and certain.
pub(in crate::downstream) fn deallocated(text: &[u8]) -> Option<Vec<u8>> {
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
    overlay::identifier(text, name).map(String::into_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deallocated_is_read_where_it_is_certain() {
        let name = |text: &str| deallocated(text.as_bytes()).map(|name| String::from_utf8(name).unwrap());
        assert_eq!(name("DEALLOCATE S1;").as_deref(), Some("s1"));
        assert_eq!(name(" deallocate prepare \"S 1\"").as_deref(), Some("S 1"));
        for text in
            ["deallocate a; select 1", "deallocate \"\\\"", "deallocate é", "deallocate", "deallocate a b"]
        {
            assert_eq!(name(text), None, "{text}");
        }
    }

    #[test]
    fn a_portal_drops_what_its_statement_did_when_it_was_bound() {
        let mut all = Deallocations::default();
        all.parse(b"d", b"deallocate a");
        all.parse(b"d", b"deallocate b");
        all.parse(b"", b"deallocate c");
        all.bind(b"one", b"d");
        all.bind(b"two", b"");
        all.bind(b"none", b"x");
        all.parse(b"", b"select 1");
        all.close(b"d");
        let dropped = |all: &Deallocations, portal: &[u8]| all.execute(portal);
        assert_eq!(dropped(&all, b"one").as_deref(), Some(&b"a"[..]), "the second was refused");
        assert_eq!(dropped(&all, b"two").as_deref(), Some(&b"c"[..]));
        assert_eq!(dropped(&all, b"none"), None);
        all.bind(b"one", b"d");
        all.bind(b"two", b"");
        assert!(!all.any());
        for number in 0..1000_u32 {
            all.parse(&number.to_be_bytes(), b"deallocate a");
        }
        assert_eq!(all.statements.len(), MOST);
    }
}
