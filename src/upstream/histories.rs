//! Timeline histories of an upstream, and which of them is a continuation of ours.

use std::cmp::Ordering;

use walrelay_proto::{HistoryEntry, Lsn, TimelineHistory, TimelineId};

use super::failure::UpstreamError;
use super::introduce::answer;
use crate::pg::{QueryError, UpstreamConnection};
use crate::store::{SaveHistoryError, Store};

/// The history of the upstream's timeline, and the file it was read from.
pub(super) struct UpstreamHistory {
    pub(super) history: TimelineHistory,
    content: Vec<u8>,
}

impl UpstreamHistory {
    /// Asks for it.
    pub(super) async fn fetch(conn: &mut UpstreamConnection, tli: TimelineId) -> Result<Self, UpstreamError> {
        if tli == TimelineId::FIRST {
            return Ok(UpstreamHistory { history: TimelineHistory::first(), content: Vec::new() });
        }
        let content = fetch_history(conn, tli).await?;
        let content = content.ok_or_else(|| answer("TIMELINE_HISTORY", "the current timeline has none"))?;
        let history = parse_history(tli, &content)?;
        Ok(UpstreamHistory { history, content })
    }

    /// Fetches the history files of all numbers up to this timeline's that are not here yet.
    ///
    /// Standbys ask for every number, so all that the upstream has are taken. It need not have those of
    /// timelines outside its own history; one inside that is missing is a beginning of the newest.
    pub(super) async fn fetch_all(
        &self,
        conn: &mut UpstreamConnection,
        store: &Store,
    ) -> Result<HistoryFiles, UpstreamError> {
        let mut files = Vec::new();
        for tli in (2..=self.history.tli().as_u32()).filter_map(TimelineId::new) {
            let ancestor = self.history.contains(tli).then(|| lines_before(&self.content, tli));
            let expected = ancestor.as_deref().map(|lines| parse_history(tli, lines)).transpose()?;
            let ours = store.history_file(tli).map_err(|source| history_error(tli, source.into()))?;
            let usable = |ours: &Vec<u8>| {
                let Some(expected) = &expected else { return true };
                TimelineHistory::parse(tli, ours).as_ref() == Ok(expected)
            };
            if ours.as_ref().is_some_and(usable) {
                continue;
            }
            let sent = if tli == self.history.tli() { None } else { fetch_history(conn, tli).await? };
            if let Some(content) = sent.filter(usable).or(ancestor) {
                files.push((tli, content));
            }
        }
        Ok(HistoryFiles(files))
    }
}

/// History files of an upstream that are not stored here yet.
#[derive(Default)]
pub(super) struct HistoryFiles(Vec<(TimelineId, Vec<u8>)>);

impl HistoryFiles {
    /// Stores them.
    pub(super) fn save(&self, store: &Store) -> Result<(), UpstreamError> {
        for (tli, content) in &self.0 {
            store.save_history_file(*tli, content).map_err(|source| history_error(*tli, source))?;
            tracing::info!("fetched timeline history file for timeline {tli}");
        }
        Ok(())
    }
}

/// The lines of a history file before the one about `tli`: what was known when `tli` began.
fn lines_before(content: &[u8], tli: TimelineId) -> Vec<u8> {
    let number = tli.to_string();
    let about = |line: &[u8]| String::from_utf8_lossy(line).split_whitespace().next() == Some(&number);
    let lines = content.split_inclusive(|&byte| byte == b'\n');
    lines.take_while(|line| !about(line)).flatten().copied().collect()
}

/// A timeline's history file; `None` if the upstream has none.
async fn fetch_history(
    conn: &mut UpstreamConnection,
    tli: TimelineId,
) -> Result<Option<Vec<u8>>, UpstreamError> {
    let command = format!("TIMELINE_HISTORY {tli}");
    let result = match conn.query(&command).await {
        Ok(result) => result,
        Err(QueryError::Server(error)) if error.is_wal_removed() => return Ok(None),
        Err(source) => return Err(UpstreamError::Command { command, source }),
    };
    let row = result.rows.first();
    let name = row.and_then(|row| row.first()?.as_deref());
    let content = row.and_then(|row| row.get(1)?.clone());
    if name != Some(tli.history_file_name().as_bytes()) {
        return Err(answer(&command, "unexpected file name"));
    }
    content.map(|content| Some(content.to_vec())).ok_or_else(|| answer(&command, "no content"))
}

fn parse_history(tli: TimelineId, content: &[u8]) -> Result<TimelineHistory, UpstreamError> {
    TimelineHistory::parse(tli, content).map_err(|source| history_error(tli, source.into()))
}

fn history_error(tli: TimelineId, source: SaveHistoryError) -> UpstreamError {
    UpstreamError::History { tli, source }
}

/// The history of a timeline whose file is here.
pub(super) fn read_history(store: &Store, tli: TimelineId) -> Result<TimelineHistory, UpstreamError> {
    if tli == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let content = store.history_file(tli).map_err(|source| history_error(tli, source.into()))?;
    parse_history(tli, &content.unwrap_or_default())
}

/// What is to be done to follow an upstream.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Course {
    /// Ours is streamed on.
    Stream,
    /// Ours was left at or before the end of what we hold: begin this one.
    Switch(TimelineId),
    /// Another timeline on their way is held here: go on with that one.
    TakeUp(TimelineHistory),
}

/// Where we stand.
pub(super) struct Standing<'a> {
    pub(super) ours: &'a TimelineHistory,
    /// The end of what is held of it.
    pub(super) held: Lsn,
    /// The history of the newest timeline that was ever gone to, if it is another than ours.
    pub(super) newest: Option<&'a TimelineHistory>,
    /// Timelines of which there are segments here, each with the history that is kept of it.
    pub(super) here: &'a [(TimelineId, Option<TimelineHistory>)],
}

impl Standing<'_> {
    /// Whether and how an upstream with this history can be followed.
    pub(super) fn course(&self, theirs: &TimelineHistory) -> Result<Course, UpstreamError> {
        let common = self.common(theirs)?;
        self.check_newest(theirs)?;
        let later = self.last_held(theirs, common)?;
        let along = common == self.ours.tli();
        let next =
            theirs.switch_point(common).filter(|&(left_at, _)| left_at <= self.held).map(|(_, next)| next);
        Ok(match (later, next) {
            // Nothing later counts before ours is here up to where they left it.
            (_, None) if along => Course::Stream,
            (Some(history), _) => Course::TakeUp(history),
            (None, Some(next)) if along => Course::Switch(next),
            (None, _) => theirs.up_to(common).map_or(Course::Stream, Course::TakeUp),
        })
    }

    /// The last timeline that we and they have come through. An error if they have not gone further than we have.
    ///
    /// Numbers prove nothing: two promotions may choose the same. A higher one was chosen by somebody who knew of the
    /// lower one, or by chance; it is what PostgreSQL's standbys go by (`recovery_target_timeline = latest`).
    fn common(&self, theirs: &TimelineHistory) -> Result<TimelineId, UpstreamError> {
        let ours = self.ours.tli();
        let Some((common, _)) = self.ours.parting(theirs) else {
            return Err(self.refusal(theirs, "they have no timeline in common"));
        };
        match theirs.tli().cmp(&ours) {
            _ if common == ours => Ok(common),
            _ if common == theirs.tli() => Err(UpstreamError::OldTimeline { theirs: common, ours }),
            Ordering::Greater => Ok(common),
            Ordering::Equal => {
                Err(self.refusal(theirs, "they have the same number, so neither is known to be newer"))
            }
            Ordering::Less => {
                Err(self.refusal(theirs, "its number is lower, so it is taken for the older one"))
            }
        }
    }

    /// While WAL is missing on the way to the newest timeline, no other one is gone to that is older than that.
    fn check_newest(&self, theirs: &TimelineHistory) -> Result<(), UpstreamError> {
        let passed_over = |newest: &&TimelineHistory| {
            theirs.tli() < newest.tli() && newest.up_to(theirs.tli()).as_ref() != Some(theirs)
        };
        match self.newest.filter(passed_over) {
            Some(newest) => Err(UpstreamError::PassedOver { theirs: theirs.tli(), newest: newest.tli() }),
            None => Ok(()),
        }
    }

    /// The last of their timelines behind `common` of which there is WAL here; an error if some of it is another one's
    /// with the same number.
    fn last_held(
        &self,
        theirs: &TimelineHistory,
        common: TimelineId,
    ) -> Result<Option<TimelineHistory>, UpstreamError> {
        let mut last = None;
        for tli in theirs.way().skip_while(|&tli| tli != common).skip(1) {
            let Some((_, kept)) = self.here.iter().find(|(held, _)| *held == tli) else { continue };
            let history = theirs.up_to(tli);
            if *kept != history {
                let why = format!(
                    "files of another timeline {tli} are held here; to follow it nevertheless, stop the relay and move \
                     them out of its pg_wal"
                );
                return Err(self.refusal(theirs, &why));
            }
            last = history;
        }
        Ok(last)
    }

    fn refusal(&self, theirs: &TimelineHistory, why: &str) -> UpstreamError {
        let (theirs, ours) = (describe(theirs), describe(self.ours));
        UpstreamError::Sibling { theirs, ours, held: self.held, why: why.to_owned() }
    }
}

/// `timeline 3 (1 until 0/3000060, 2 until 0/4000028)`
fn describe(history: &TimelineHistory) -> String {
    let ancestor = |entry: &HistoryEntry| format!("{} until {}", entry.tli, entry.end);
    let way: Vec<_> = history.ancestors().iter().map(ancestor).collect();
    match way.is_empty() {
        true => format!("timeline {}", history.tli()),
        false => format!("timeline {} ({})", history.tli(), way.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(tli: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        let lines: String =
            ancestors.iter().map(|(tli, end)| format!("{tli}\t0/{end:X}\treason\n\n")).collect();
        TimelineHistory::parse(TimelineId::new(tli).unwrap(), lines.as_bytes()).unwrap()
    }

    /// What is said of `theirs` by somebody on `ours` who holds these as well, and was on the way to `newest`.
    fn said(
        ours: &TimelineHistory,
        held: u64,
        here: &[&TimelineHistory],
        newest: Option<&TimelineHistory>,
        theirs: &TimelineHistory,
    ) -> String {
        let here: Vec<_> = here.iter().chain([&ours]).map(|&one| (one.tli(), Some(one.clone()))).collect();
        match (Standing { ours, held: Lsn::new(held), newest, here: &here }).course(theirs) {
            Ok(Course::Switch(next)) => format!("switch to {next}"),
            Ok(Course::Stream) => "stream".to_owned(),
            Ok(Course::TakeUp(history)) => format!("take up {}", describe(&history)),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn who_is_followed() {
        let check = |ours: &TimelineHistory, held: u64, theirs: &TimelineHistory, expected: &str| {
            let outcome = said(ours, held, &[], None, theirs);
            assert!(outcome.contains(expected), "{ours:?} {held:X} {theirs:?}: {outcome}");
        };
        let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x100)]));
        check(&one, 0x100, &one, "stream");
        check(&one, 0xF8, &two, "stream");
        check(&one, 0x100, &two, "switch to 2");
        check(&one, 0x200, &two, "switch to 2");
        check(&two, 0x200, &two, "stream");
        check(&two, 0x200, &one, "upstream is on timeline 1, behind timeline 2");
        // Generations skipped: one step at a time.
        let four = history(4, &[(1, 0x100), (2, 0x300)]);
        check(&one, 0x100, &four, "switch to 2");
        check(&two, 0x200, &four, "stream");
        check(&two, 0x400, &four, "switch to 4");
        // Newer siblings: back to what is common.
        for left_at in [0x80, 0x100, 0x180] {
            check(&two, 0x200, &history(3, &[(1, left_at)]), "take up timeline 1");
        }
        check(&history(3, &[(1, 0x100), (2, 0x180)]), 0x200, &four, "take up timeline 2 (1 until 0/100)");
        check(&four, 0x400, &history(5, &[(1, 0x80)]), "take up timeline 1");
        // Those of which nobody knows, and older ones.
        check(&two, 0x200, &history(2, &[(1, 0x80)]), "upstream is on timeline 2 (1 until 0/80), which");
        check(&two, 0x200, &history(2, &[(1, 0x80)]), "they have the same number");
        check(&four, 0x400, &history(3, &[(1, 0x100), (2, 0x200)]), "its number is lower");
        check(&four, 0x400, &two, "upstream is on timeline 2, behind timeline 4");
        check(&four, 0x400, &history(5, &[(2, 0x80)]), "no timeline in common");
        // One that hides behind a later one: files of both would have the same names.
        let hidden = history(3, &[(1, 0x80), (2, 0x300)]);
        check(&two, 0x200, &hidden, "files of another timeline 2 are held here");
    }

    #[test]
    fn what_is_held_of_their_way_is_gone_on_with() {
        let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x100)]));
        let three = history(3, &[(1, 0x180)]);
        let four = history(4, &[(1, 0x100), (2, 0x300)]);
        let check = |ours: &TimelineHistory,
                     held: u64,
                     here: &[&TimelineHistory],
                     theirs: &TimelineHistory,
                     expected: &str| {
            let outcome = said(ours, held, here, None, theirs);
            assert!(outcome.contains(expected), "{ours:?} {held:X} {here:?} {theirs:?}: {outcome}");
        };
        // The other sibling was right after all.
        check(&three, 0x400, &[&one, &two], &four, "take up timeline 2 (1 until 0/100)");
        check(&three, 0x400, &[&one, &two, &four], &four, "take up timeline 4 (1 until 0/100, 2 until");
        check(&three, 0x400, &[&one], &four, "take up timeline 1");
        // A crash between its first file and the note that it is followed.
        check(&one, 0x200, &[&two], &two, "take up timeline 2");
        check(&one, 0x200, &[&two], &four, "take up timeline 2");
        // Not before what leads there is here.
        check(&one, 0xF8, &[&two], &four, "stream");
        // Another one of that number: not even what leads there is taken, for its history would be lost.
        check(&one, 0xF8, &[&history(2, &[(1, 0x80)])], &four, "files of another timeline 2");
    }

    #[test]
    fn what_was_passed_over_is_not_followed_on_the_way_to_the_newest() {
        let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x100)]));
        let (three, five) = (history(3, &[(1, 0x200)]), history(5, &[(1, 0x200), (3, 0x300)]));
        let check = |theirs: &TimelineHistory, expected: &str| {
            let outcome = said(&one, 0x180, &[&two], Some(&five), theirs);
            assert!(outcome.starts_with(expected), "{theirs:?}: {outcome}");
        };
        check(&two, "upstream is on timeline 2, which is older than timeline 5");
        check(
            &history(4, &[(1, 0x200), (3, 0x280)]),
            "upstream is on timeline 4, which is older than timeline 5",
        );
        for on_the_way in [&one, &three, &five, &history(6, &[(1, 0x200), (3, 0x300), (5, 0x400)])] {
            check(on_the_way, "stream");
        }
        check(&history(6, &[(1, 0x100), (2, 0x300)]), "take up timeline 2");
    }

    #[test]
    fn an_ancestors_file_is_the_beginning_of_its_descendants() {
        let content = b"1\t0/100\tx\n\n2\t0/300\ty 4 z\n\n4\t0/400\tz\n";
        let lines = |tli| lines_before(content, TimelineId::new(tli).unwrap());
        assert_eq!(lines(2), b"1\t0/100\tx\n\n");
        assert_eq!(lines(4), b"1\t0/100\tx\n\n2\t0/300\ty 4 z\n\n");
        assert_eq!(lines(7), content);
    }
}
