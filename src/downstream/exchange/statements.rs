//! What the names of prepared statements stand for: as of the server's last answer, and as it will be when everything on
//! its way has been answered and nothing of it has failed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::overlay::RowsParameter;

/// Names of which something is kept in a session, at most.
const MOST: usize = 1000;
/// What a server keeps of a name (PostgreSQL: `NAMEDATALEN`).
const NAME_LENGTH: usize = 63;

/// The name of a prepared statement or portal, no longer than the server keeps it.
pub(in crate::downstream) type Name = Arc<[u8]>;

/// What the server tells names of the protocol apart by: bytes, not characters (PostgreSQL: `string_compare`).
pub(super) fn cut(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME_LENGTH)]
}

/// What is known of a prepared statement. Of most there is nothing to know.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Kept {
    /// It has a parameter more than the client knows of.
    Rows(RowsParameter),
    /// It is nothing but the DEALLOCATE of the statement of that name.
    Deallocates(Name),
}

impl Kept {
    fn deallocates(kept: Option<&Kept>) -> bool {
        matches!(kept, Some(Kept::Deallocates(_)))
    }
}

/// The prepared statements of a session of which something is known. All names may be longer than what is kept of them.
#[derive(Debug, Default)]
pub(super) struct Statements {
    /// As of the last answer.
    settled: HashMap<Name, Kept>,
    /// What each Parse and Close that has not been answered makes of its name, in order.
    sent: HashMap<Name, VecDeque<Option<Kept>>>,
    /// How many in both are DEALLOCATEs.
    deallocating: usize,
}

impl Statements {
    /// What is known of a statement as of the last answer.
    pub(super) fn settled(&self, name: &[u8]) -> Option<&Kept> {
        self.settled.get(cut(name))
    }

    /// What it will be for a message that is sent now.
    pub(super) fn expected(&self, name: &[u8]) -> Option<&Kept> {
        match self.sent.get(cut(name)) {
            Some(sent) => sent.back()?.as_ref(),
            None => self.settled(name),
        }
    }

    /// The name as it is kept, if something is known of it or may have been when the server gets there.
    pub(super) fn known(&self, name: &[u8]) -> Option<Name> {
        let name = cut(name);
        let sent = || self.sent.get_key_value(name).map(|(name, _)| name);
        self.settled.get_key_value(name).map(|(name, _)| name).or_else(sent).cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.settled.is_empty() && self.sent.is_empty()
    }

    /// Whether one of them is a DEALLOCATE.
    pub(super) fn deallocate(&self) -> bool {
        self.deallocating > 0
    }

    /// Whether something may be kept of a name.
    pub(super) fn has_room_for(&self, name: &[u8]) -> bool {
        self.settled.len() + self.sent.len() < MOST || self.known(name).is_some()
    }

    /// A Parse or Close is sent, which makes this of the name. Returns the name if its answer is of interest.
    pub(super) fn send(&mut self, name: &[u8], kept: Option<Kept>) -> Option<Name> {
        let name = match self.known(name) {
            Some(name) => name,
            None if kept.is_none() => return None,
            None => cut(name).into(),
        };
        self.deallocating += usize::from(Kept::deallocates(kept.as_ref()));
        self.sent.entry(name.clone()).or_default().push_back(kept);
        Some(name)
    }

    /// The first Parse or Close of the name that has not been answered has succeeded.
    pub(super) fn confirm(&mut self, name: &Name) {
        let kept = self.answered(name);
        self.forget(name);
        if let Some(kept) = kept {
            self.settled.insert(name.clone(), kept);
        }
    }

    /// It has failed, or was skipped.
    pub(super) fn withdraw(&mut self, name: &Name) {
        let kept = self.answered(name);
        self.deallocating -= usize::from(Kept::deallocates(kept.as_ref()));
    }

    fn answered(&mut self, name: &Name) -> Option<Kept> {
        let sent = self.sent.get_mut(name)?;
        let kept = sent.pop_front();
        if sent.is_empty() {
            self.sent.remove(name);
        }
        kept.flatten()
    }

    /// The server has dropped the statement.
    pub(super) fn forget(&mut self, name: &[u8]) {
        let kept = self.settled.remove(cut(name));
        self.deallocating -= usize::from(Kept::deallocates(kept.as_ref()));
    }

    /// The server has dropped all that have names (PostgreSQL: `DropAllPreparedStatements`, which leaves the other).
    pub(super) fn forget_named(&mut self) {
        let unnamed = self.settled.remove_entry(&b""[..]);
        let dropped = self.settled.values().filter(|kept| Kept::deallocates(Some(kept))).count();
        self.deallocating -= dropped;
        self.settled = unnamed.into_iter().collect();
    }

    /// Bytes of all names.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let deallocated = |kept: Option<&Kept>| match kept {
            Some(Kept::Deallocates(name)) => name.len(),
            _ => 0,
        };
        let settled = self.settled.iter().map(|(name, kept)| name.len() + deallocated(Some(kept)));
        let sent = self.sent.iter().map(|(name, sent)| {
            name.len() + sent.iter().map(|kept| deallocated(kept.as_ref())).sum::<usize>()
        });
        settled.chain(sent).sum()
    }
}
