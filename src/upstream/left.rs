//! WAL that is held and not on the way on: whoever looks for lost commits is told where they are.

use walrelay_proto::{Lsn, TimelineHistory, TimelineId, TimelinePosition};

use crate::store::Writer;

/// Commits are counted in so many bytes of WAL that is left; beyond that it would hold up what comes.
const MOST_COUNTED: u64 = 1 << 30;

/// WAL that is held and does not lead to where the relay goes on.
pub(super) struct Left {
    from: Lsn,
    end: Option<TimelinePosition>,
    commits: Option<u64>,
}

impl Left {
    /// What is left when the writer goes over to a timeline with this history.
    pub(super) fn of(writer: &Writer, next: &TimelineHistory) -> Left {
        let end = writer.verified();
        let parting = writer.store().history().parting(next).and_then(|(_, at)| at);
        let from = parting.or(end.map(|end| end.lsn)).unwrap_or(Lsn::INVALID);
        let end = end.filter(|end| end.lsn > from);
        Left { from, end, commits: end.and_then(|_| writer.commits_since(from, MOST_COUNTED)) }
    }

    /// Said once the other timeline is followed: who looks for lost commits finds them there.
    pub(super) fn tell(&self, writer: &Writer, next: TimelineId) {
        let Some(TimelinePosition { tli, lsn }) = self.end else { return };
        let (from, bytes) = (self.from, lsn.since(self.from));
        let commits = self.commits.map_or("an unknown number of".to_owned(), |commits| commits.to_string());
        tracing::warn!(
            "timeline {tli} was held up to {lsn}: {bytes} bytes with {commits} commits from {from} on are not on the way \
             to timeline {next}; their files stay in \"{}\" for as long as WAL of that age is kept",
            writer.store().wal_path("").display()
        );
    }
}
