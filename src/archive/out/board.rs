//! What there is to see of one target, for whoever looks: its worker writes, nobody waits for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use walrelay_proto::Lsn;

use crate::moment::Moment;

/// How a target does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TargetSeen {
    /// Files that it has taken since the relay started, those that it had already included.
    pub archived_files: u64,
    /// The last of them, and when.
    pub last_archived: Option<(String, Moment)>,
    /// Attempts that have failed since the relay started.
    pub failures: u64,
    /// The last file that could not be archived, when that was, and why.
    pub last_failed: Option<(String, Moment, String)>,
    /// Since when everything that was tried has failed.
    pub failing_since: Option<Moment>,
    /// Files that wait for it or are on their way.
    pub pending_files: u64,
    /// Where the WAL begins that it has not got as whole files; `None` before it is known.
    pub needed_from: Option<Lsn>,
    /// Where the WAL ends that it has in pieces of the unfinished segment.
    pub tail_end: Option<Lsn>,
    /// Files with another content that lay in the target under the name of one of ours.
    pub conflicts: u64,
}

/// Where a worker says how its target does. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    seen: Arc<Mutex<TargetSeen>>,
}

impl Board {
    /// How it does.
    pub(super) fn seen(&self) -> TargetSeen {
        self.lock().clone()
    }

    /// It has a file now.
    pub(super) fn archived(&self, name: &str) {
        let mut seen = self.lock();
        seen.archived_files += 1;
        seen.last_archived = Some((name.to_owned(), Moment::now()));
        seen.failing_since = None;
    }

    /// It lay there with another content.
    pub(super) fn conflicted(&self) {
        self.lock().conflicts += 1;
    }

    /// A file could not be archived.
    pub(super) fn failed(&self, name: &str, reason: &str) {
        let (now, mut seen) = (Moment::now(), self.lock());
        seen.failures += 1;
        seen.failing_since.get_or_insert(now);
        seen.last_failed = Some((name.to_owned(), now, reason.to_owned()));
    }

    /// So many files wait.
    pub(super) fn pending(&self, files: usize) {
        self.lock().pending_files = files as u64;
    }

    /// Where the WAL begins that it needs.
    pub(super) fn needs(&self, from: Lsn) {
        self.lock().needed_from = from.valid();
    }

    /// Where the WAL ends that it has in pieces.
    pub(super) fn tail_reaches(&self, end: Lsn) {
        self.lock().tail_end = end.valid();
    }

    /// For a moment: nothing is waited for under it.
    fn lock(&self) -> MutexGuard<'_, TargetSeen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_from_its_first_failure_to_the_next_file_that_is_taken() {
        let board = Board::default();
        board.failed("a", "full");
        let begun = board.seen().failing_since;
        assert!(begun.is_some());
        board.failed("a", "still full");
        let seen = board.seen();
        assert_eq!((seen.failures, seen.failing_since), (2, begun));
        board.archived("a");
        let seen = board.seen();
        assert_eq!((seen.archived_files, seen.failing_since), (1, None));
        assert_eq!(seen.last_failed.unwrap().2, "still full");
    }
}
