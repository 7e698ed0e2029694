//! WAL that is held and not on the way on: whoever looks for lost commits is told where they are, and whether any of them was
//! acknowledged.

use std::path::Path;
use std::time::SystemTime;

use walrelay_proto::{Lsn, PgTimestamp, TimelineHistory, TimelineId, TimelinePosition};

use crate::store::Writer;
use crate::store::failovers::{Failover, Told, Verdict};

/// Commits are counted in so many bytes of WAL that is left; beyond that it would hold up what comes.
const MOST_COUNTED: u64 = 1 << 30;

/// WAL that is held and does not lead to where the relay goes on.
pub(super) struct Left {
    next: TimelineId,
    from: Lsn,
    end: Option<TimelinePosition>,
    commits: Option<u64>,
    /// What became of what was acknowledged; `None` where nothing was, or it was judged before.
    failover: Option<Failover>,
}

impl Left {
    /// What is left when the writer goes over to a timeline with this history, on the way to `next`. Judges what was
    /// acknowledged and leaves word of it: after a crash it is judged again, to the same end. Waits for the disk.
    pub(super) fn of(writer: &Writer, history: &TimelineHistory, next: TimelineId) -> Left {
        let end = writer.verified();
        let parting = writer.store().history().parting(history).and_then(|(_, at)| at);
        let from = parting.or(end.map(|end| end.lsn)).unwrap_or(Lsn::INVALID);
        // Who has gone back, to follow this one, has been judged then.
        let is_news = writer.newest() != Some(next);
        let failover = end.filter(|_| is_news).and_then(|held| judge(writer, held, from, next));
        if let Some(failover) = &failover
            && let Err(error) = writer.store().add_failover(failover)
        {
            tracing::warn!("could not leave word of the promotion in the data directory: {error}");
        }
        let end = end.filter(|end| end.lsn > from);
        // Mostly all of it was acknowledged, and is counted.
        let judged = failover.as_ref().filter(|it| end.is_some_and(|end| end.lsn == it.acknowledged));
        let commits = judged.and_then(|judged| judged.commits).or_else(|| {
            let counted = end.and_then(|end| writer.commits_between(from, end.lsn, MOST_COUNTED));
            counted.map(|counter| counter.commits())
        });
        Left { next, from, end, commits, failover }
    }

    /// Said once the other timeline is followed: who looks for lost commits finds them there.
    pub(super) fn tell(&self, writer: &Writer) {
        if let Some(TimelinePosition { tli, lsn }) = self.end {
            let (from, bytes, next) = (self.from, lsn.since(self.from), self.next);
            let commits =
                self.commits.map_or("an unknown number of".to_owned(), |commits| commits.to_string());
            tracing::warn!(
                "timeline {tli} was held up to {lsn}: {bytes} bytes with {commits} commits from {from} on are not on the \
                 way to timeline {next}; their files stay in \"{}\" for as long as WAL of that age is kept",
                writer.store().wal_path("").display()
            );
        }
        if let Some(failover) = &self.failover {
            tell(failover, writer.store().data_dir());
        }
    }
}

/// Whether what the upstream was told of the timeline that is left is on the next one.
fn judge(writer: &Writer, held: TimelinePosition, switch_point: Lsn, next: TimelineId) -> Option<Failover> {
    let acknowledgements = writer.store().consumers().acknowledgements();
    let found = writer.store().found().filter(|found| found.tli == held.tli).map(|found| found.lsn);
    let Told { acknowledged, is_certain } = Told::of(acknowledgements.reported(), found, held.lsn);
    acknowledged.valid()?;
    let is_left = acknowledged > switch_point;
    let commits = is_left.then(|| writer.commits_between(switch_point, acknowledged, MOST_COUNTED)).flatten();
    Some(Failover {
        seen: PgTimestamp::from_system_time(SystemTime::now()),
        from: held.tli,
        to: next,
        switch_point,
        held: held.lsn,
        acknowledged,
        is_certain,
        was_awaited: acknowledgements.was_awaited(),
        asked: acknowledgements.asked(),
        commits: commits.as_ref().map(|counter| counter.commits()),
        span: commits.and_then(|counter| counter.span()),
        is_dismissed: false,
    })
}

fn tell(failover: &Failover, data_dir: &Path) {
    let Failover { from, to, switch_point, acknowledged, was_awaited, asked, .. } = failover;
    let told = match failover.verdict() {
        Verdict::Kept => {
            tracing::info!(
                "promotion to timeline {to} at {switch_point} kept everything acknowledged (up to {acknowledged})"
            );
            return;
        }
        Verdict::Left => "was acknowledged",
        Verdict::Doubtful => "may have been acknowledged before this relay was started again",
    };
    let commits = match (failover.commits, failover.span) {
        (Some(commits), Some((first, last))) => {
            format!("{commits} commits, made from {} to {}", first.to_text(), last.to_text())
        }
        (Some(commits), None) => format!("{commits} commits"),
        (None, _) => "an unknown number of commits".to_owned(),
    };
    let line = format!(
        "promotion to timeline {to} at {switch_point} left WAL of timeline {from} behind that {told}, up to {acknowledged}: \
         {commits}; they are read with: walrelay branch export {from} --to DIR -D \"{}\"",
        data_dir.display()
    );
    match asked {
        _ if *was_awaited => tracing::error!("{line}"),
        Some(asked) => tracing::warn!(
            "{line}; the upstream did not wait for this relay when it was asked last, at {} (synchronous_standby_names)",
            asked.to_text()
        ),
        None => tracing::warn!(
            "{line}; the upstream is not known to have waited for this relay (synchronous_standby_names)"
        ),
    }
}
