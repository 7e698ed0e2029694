//! What there is to see of one target, for whoever looks: its worker writes, nobody waits for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, futures::Notified};
use walrelay_proto::{Lsn, TimelinePosition};

use crate::moment::Past;

/// How a target does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TargetSeen {
    /// Files that it has taken since the relay started, those that it had already included.
    pub archived_files: u64,
    /// The last of them, and when.
    pub last_archived: Option<(String, Past)>,
    /// Attempts that have failed since the relay started.
    pub failures: u64,
    /// The last file that could not be archived, when that was, and why.
    pub last_failed: Option<(String, Past, String)>,
    /// Since when nothing is begun for it, by somebody's order.
    pub paused_since: Option<Past>,
    /// Since when all whole files that were tried have failed, or all pieces of the unfinished one, or it is stalled.
    pub failing_since: Option<Past>,
    /// Since when it has neither taken nor refused a file that is on its way.
    pub stalled_since: Option<Past>,
    /// Files that wait for it or are on their way.
    pub pending_files: u64,
    /// Where the WAL begins that it has not got as whole files; `None` before it is known.
    pub needed_from: Option<Lsn>,
    /// Where the WAL ends that it has in pieces of the unfinished segment.
    pub tail_end: Option<TimelinePosition>,
    /// Files with another content that lay in the target under the name of one of ours.
    pub conflicts: u64,
    /// Those of them that nobody has looked at.
    pub open_conflicts: u64,
    /// Runs of segments that it will never get, and that nobody has looked at.
    pub open_gaps: u64,
    /// How much WAL may wait for it; `None` for as much as there is room for.
    pub quota: Option<u64>,
}

/// Where a worker says how its target does. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    state: Arc<Mutex<State>>,
    resumed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// What comes of whole files.
    seen: TargetSeen,
    /// Since when no piece has been taken.
    tail_failing_since: Option<Past>,
    /// Somebody has looked at so many gaps, which its worker has not noted yet.
    looked_at_gaps: u64,
}

impl Board {
    /// How it does.
    pub(super) fn seen(&self) -> TargetSeen {
        let state = self.lock();
        let all = [state.seen.failing_since, state.tail_failing_since, state.seen.stalled_since];
        TargetSeen { failing_since: all.into_iter().flatten().min(), ..state.seen.clone() }
    }

    /// It has a file now.
    pub(super) fn archived(&self, name: &str) {
        let seen = &mut self.lock().seen;
        seen.archived_files += 1;
        seen.last_archived = Some((name.to_owned(), Past::now()));
        seen.failing_since = None;
    }

    /// It lay there with another content.
    pub(super) fn conflicted(&self) {
        let seen = &mut self.lock().seen;
        seen.conflicts += 1;
        seen.open_conflicts += 1;
    }

    /// A file could not be archived.
    pub(super) fn failed(&self, name: &str, reason: &str) {
        let now = Past::now();
        let mut state = self.lock();
        state.seen.failing_since.get_or_insert(now);
        state.note_failure(name, now, reason);
    }

    /// A file is on its way for longer than any should be, since then; `None` if none is.
    pub(super) fn stalled(&self, since: Option<Past>) {
        self.lock().seen.stalled_since = since;
    }

    /// A piece of the unfinished file could not be.
    pub(super) fn tail_failed(&self, name: &str, reason: &str) {
        let now = Past::now();
        let mut state = self.lock();
        state.tail_failing_since.get_or_insert(now);
        state.note_failure(name, now, reason);
    }

    /// Somebody has looked at all conflicts; how many were open.
    pub(super) fn dismiss_conflicts(&self) -> u64 {
        std::mem::take(&mut self.lock().seen.open_conflicts)
    }

    /// So many gaps are open, and so much may wait.
    pub(super) fn limits(&self, open_gaps: usize, quota: Option<u64>) {
        let mut state = self.lock();
        let open_gaps = (open_gaps as u64).saturating_sub(state.looked_at_gaps);
        (state.seen.open_gaps, state.seen.quota) = (open_gaps, quota);
    }

    /// Somebody has looked at all gaps; how many were open. The worker notes it durably.
    pub(super) fn dismiss_gaps(&self) -> u64 {
        let mut state = self.lock();
        let open = std::mem::take(&mut state.seen.open_gaps);
        state.looked_at_gaps += open;
        self.resumed.notify_waiters();
        open
    }

    /// How many somebody has looked at since this was asked last: those that he was told of, and none that came since.
    pub(super) fn take_dismissal(&self) -> usize {
        std::mem::take(&mut self.lock().looked_at_gaps) as usize
    }

    /// So many files wait.
    pub(super) fn pending(&self, files: usize) {
        self.lock().seen.pending_files = files as u64;
    }

    /// Where the WAL begins that it needs.
    pub(super) fn needs(&self, from: Lsn) {
        self.lock().seen.needed_from = from.valid();
    }

    /// Where the WAL ends that it has in pieces.
    pub(super) fn tail_reaches(&self, end: TimelinePosition) {
        let mut state = self.lock();
        state.seen.tail_end = Some(end);
        state.tail_failing_since = None;
    }

    /// Nothing is begun for it any more, or again; whether that is another order than before.
    pub(super) fn set_paused(&self, paused: bool) -> bool {
        let seen = &mut self.lock().seen;
        if paused == seen.paused_since.is_some() {
            return false;
        }
        seen.paused_since = paused.then(Past::now);
        self.resumed.notify_waiters();
        true
    }

    /// Whether nothing is to be begun.
    pub(super) fn is_paused(&self) -> bool {
        self.lock().seen.paused_since.is_some()
    }

    /// Resolves when that changes. Cancel-safe.
    pub(super) fn order(&self) -> Notified<'_> {
        self.resumed.notified()
    }

    /// For a moment: nothing is waited for under it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note_failure(&mut self, name: &str, now: Past, reason: &str) {
        self.seen.failures += 1;
        self.seen.last_failed = Some((name.to_owned(), now, reason.to_owned()));
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

    #[test]
    fn what_hangs_is_failing_until_it_does_not_any_more() {
        let board = Board::default();
        let begun = Past::now();
        board.stalled(Some(begun));
        board.archived("another file");
        let seen = board.seen();
        assert_eq!((seen.stalled_since, seen.failing_since), (Some(begun), Some(begun)));
        board.stalled(None);
        assert_eq!(board.seen().failing_since, None);
    }

    #[test]
    fn what_was_looked_at_is_open_no_more() {
        let board = Board::default();
        board.conflicted();
        board.conflicted();
        assert_eq!((board.dismiss_conflicts(), board.dismiss_conflicts()), (2, 0));
        board.conflicted();
        assert_eq!((board.seen().conflicts, board.seen().open_conflicts), (3, 1));
        board.limits(2, None);
        assert_eq!((board.dismiss_gaps(), board.seen().open_gaps), (2, 0));
        board.limits(3, None);
        assert_eq!(board.seen().open_gaps, 1, "it came while its worker has not noted that yet");
        assert_eq!((board.take_dismissal(), board.take_dismissal()), (2, 0));
    }

    #[test]
    fn an_outage_of_the_tail_is_one_although_whole_files_arrive() {
        let board = Board::default();
        board.tail_failed("a", "full");
        board.archived("b");
        assert!(board.seen().failing_since.is_some());
        let end = TimelinePosition { tli: walrelay_proto::TimelineId::FIRST, lsn: Lsn::new(100) };
        board.tail_reaches(end);
        let seen = board.seen();
        assert_eq!((seen.failing_since, seen.failures, seen.tail_end), (None, 1, Some(end)));
    }
}
