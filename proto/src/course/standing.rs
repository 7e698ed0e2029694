//! Which timelines of a server are a continuation of ours.

use std::cmp::Ordering;

use super::error::CourseError;
use crate::lsn::Lsn;
use crate::timeline::{HistoryEntry, TimelineHistory, TimelineId};

/// What is to be done to follow a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heading {
    /// Ours is streamed on.
    Stream,
    /// Ours was left at or before the end of what we hold: begin this one.
    Switch(TimelineId),
    /// Another timeline on their way is held here: go on with that one.
    TakeUp(TimelineHistory),
}

/// Where we stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The timeline that is received.
    pub ours: TimelineHistory,
    /// The end of what is held of it: the next byte to fetch.
    pub held: Lsn,
    /// Whether it was decided where WAL begins, and not a single record has come since.
    pub is_bare: bool,
    /// The history of the newest timeline that was ever gone to, if it is another than ours.
    pub newest: Option<TimelineHistory>,
    /// Timelines of which there are segments here, each with the history that is kept of it.
    pub here: Vec<(TimelineId, Option<TimelineHistory>)>,
}

impl Standing {
    /// Whether and how a server with this history can be followed.
    pub fn heading(&self, theirs: &TimelineHistory) -> Result<Heading, CourseError> {
        let common = self.common(theirs)?;
        self.check_newest(theirs)?;
        let later = self.last_held(theirs, common)?;
        let along = common == self.ours.tli();
        let next =
            theirs.switch_point(common).filter(|&(left_at, _)| left_at <= self.held).map(|(_, next)| next);
        Ok(match (later, next) {
            // Nothing later counts before ours is here up to where they left it.
            (_, None) if along => Heading::Stream,
            (Some(history), _) => Heading::TakeUp(history),
            (None, Some(next)) if along => Heading::Switch(next),
            (None, _) => theirs.up_to(common).map_or(Heading::Stream, Heading::TakeUp),
        })
    }

    /// Whether nothing is held yet and what was waited for does not come from a server with this history: it has gone
    /// another way before. Older servers than the one that was waited for are not gone to.
    pub(super) fn begins_elsewhere(&self, theirs: &TimelineHistory) -> bool {
        let tli = self.ours.tli();
        if !self.is_bare || tli > theirs.tli() {
            return false;
        }
        let comes_from_ours = theirs.up_to(tli).as_ref() == Some(&self.ours);
        !comes_from_ours || theirs.switch_point(tli).is_some_and(|(left_at, _)| left_at < self.held)
    }

    /// The last timeline that we and they have come through. An error if they have not gone further than we have.
    ///
    /// Numbers prove nothing: two promotions may choose the same. A higher one was chosen by somebody who knew of the
    /// lower one, or by chance; it is what PostgreSQL's standbys go by (`recovery_target_timeline = latest`).
    fn common(&self, theirs: &TimelineHistory) -> Result<TimelineId, CourseError> {
        let ours = self.ours.tli();
        let Some((common, _)) = self.ours.parting(theirs) else {
            return Err(self.refusal(theirs, "they have no timeline in common"));
        };
        match theirs.tli().cmp(&ours) {
            _ if common == ours => Ok(common),
            _ if common == theirs.tli() => Err(CourseError::OldTimeline { theirs: common, ours }),
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
    fn check_newest(&self, theirs: &TimelineHistory) -> Result<(), CourseError> {
        let passed_over = |newest: &&TimelineHistory| {
            theirs.tli() < newest.tli() && newest.up_to(theirs.tli()).as_ref() != Some(theirs)
        };
        match self.newest.as_ref().filter(passed_over) {
            Some(newest) => Err(CourseError::PassedOver { theirs: theirs.tli(), newest: newest.tli() }),
            None => Ok(()),
        }
    }

    /// The last of their timelines behind `common` of which there is WAL here; an error if some of it is another one's
    /// with the same number.
    fn last_held(
        &self,
        theirs: &TimelineHistory,
        common: TimelineId,
    ) -> Result<Option<TimelineHistory>, CourseError> {
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

    fn refusal(&self, theirs: &TimelineHistory, why: &str) -> CourseError {
        let (theirs, ours) = (describe(theirs), describe(&self.ours));
        CourseError::Sibling { theirs, ours, held: self.held, why: why.to_owned() }
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

    /// We are on `ours` and hold these as well.
    fn standing(ours: &TimelineHistory, held: u64, here: &[&TimelineHistory]) -> Standing {
        let here: Vec<_> = here.iter().chain([&ours]).map(|&one| (one.tli(), Some(one.clone()))).collect();
        Standing { ours: ours.clone(), held: Lsn::new(held), is_bare: false, newest: None, here }
    }

    /// What is said of `theirs`.
    fn said(standing: &Standing, theirs: &TimelineHistory) -> String {
        match standing.heading(theirs) {
            Ok(Heading::Switch(next)) => format!("switch to {next}"),
            Ok(Heading::Stream) => "stream".to_owned(),
            Ok(Heading::TakeUp(history)) => format!("take up {}", describe(&history)),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn who_is_followed() {
        let check = |ours: &TimelineHistory, held: u64, theirs: &TimelineHistory, expected: &str| {
            let outcome = said(&standing(ours, held, &[]), theirs);
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
            let outcome = said(&standing(ours, held, here), theirs);
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
        let standing = Standing { newest: Some(five.clone()), ..standing(&one, 0x180, &[&two]) };
        let check = |theirs: &TimelineHistory, expected: &str| {
            let outcome = said(&standing, theirs);
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
    fn who_holds_nothing_begins_elsewhere_where_its_beginning_is_on_no_way() {
        let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x100)]));
        let check = |ours: &TimelineHistory, at: u64, theirs: &TimelineHistory, expected: bool| {
            let bare = Standing { is_bare: true, ..standing(ours, at, &[]) };
            assert_eq!(bare.begins_elsewhere(theirs), expected, "{ours:?} {at:X} {theirs:?}");
            assert!(!Standing { is_bare: false, ..bare }.begins_elsewhere(theirs));
        };
        check(&one, 0x100, &one, false);
        check(&one, 0x100, &two, false);
        check(&one, 0x108, &two, true);
        check(&two, 0x200, &history(3, &[(1, 0x180)]), true);
        check(&two, 0x200, &history(2, &[(1, 0x80)]), true);
        // An older one is not gone to.
        check(&two, 0x200, &one, false);
    }
}
