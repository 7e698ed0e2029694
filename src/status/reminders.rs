//! Has the log told of what somebody should look at, and again while it lasts, at growing intervals.
//!
//! Whoever meets a trouble tells the log once, or nobody does, because nothing happens that anybody could meet: a sync that does
//! not return, a slot that nobody uses. So this looks, every few seconds, at what everybody is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::now::Sources;
use super::troubles::{FEW, Trouble, TroubleKind};
use super::value::Status;
use crate::moment::Past;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(5);
/// When what was told is told again; each time after twice as long, up to the longest.
const AGAIN: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// Which trouble it is: its kind, and what it is about.
pub(super) type Key = (TroubleKind, String);

/// What lasts, and when that was told.
#[derive(Debug, Default)]
pub struct Reminders {
    lasting: BTreeMap<Key, Lasting>,
}

#[derive(Debug)]
struct Lasting {
    begun: Instant,
    /// How often it was told, and when it will be next.
    told: u32,
    next: Option<Instant>,
}

/// A line for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Line {
    Warning(String),
    Info(String),
}

impl Reminders {
    /// Looks now and then, until told to stop.
    pub async fn run(mut self, sources: Arc<Sources>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            // Of a thousand consumers it takes a while, which those whom the workers serve need not wait for.
            let of = sources.clone();
            let found = tokio::task::spawn_blocking(move || Status::now(&of).find_troubles()).await;
            let troubles = match found {
                Ok(troubles) => troubles,
                Err(ended) => match ended.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime ends.
                    Err(_) => continue,
                },
            };
            let keys = troubles.iter().map(|trouble| (trouble.kind, trouble.about.clone())).collect();
            sources.note_troubles(keys, Past::now());
            for line in self.look(troubles, Instant::now()) {
                match line {
                    Line::Warning(text) => tracing::warn!("{text}"),
                    Line::Info(text) => tracing::info!("{text}"),
                }
            }
        }
    }

    /// What there is to tell of what is so now: a line each, unless there are many of a kind, which must not fill the log.
    fn look(&mut self, troubles: Vec<Trouble>, now: Instant) -> Vec<Line> {
        let keys: BTreeSet<Key> =
            troubles.iter().map(|trouble| (trouble.kind, trouble.about.clone())).collect();
        let over = |key: &Key, lasting: &Lasting| {
            let (about, lasted) = (named(&key.1), now.duration_since(lasting.begun).as_secs());
            (key.0, format!("{}{about}, after {lasted} s", key.0.over()))
        };
        let ended = self.lasting.iter().filter(|(key, lasting)| lasting.told > 0 && !keys.contains(*key));
        let ended = ended.map(|(key, lasting)| over(key, lasting)).collect();
        let mut lines: Vec<Line> = few_of_a_kind(ended).into_iter().map(Line::Info).collect();
        self.lasting.retain(|key, _| keys.contains(key));
        let due = troubles.into_iter().filter_map(|trouble| self.due(trouble, now)).collect();
        lines.extend(few_of_a_kind(due).into_iter().map(Line::Warning));
        lines
    }

    /// What is to be told of it now.
    fn due(&mut self, trouble: Trouble, now: Instant) -> Option<(TroubleKind, String)> {
        let Trouble { kind, about, message } = trouble;
        let lasting = self.lasting.entry((kind, about)).or_insert_with(|| {
            let next = kind.told_after().map(|after| now + after);
            Lasting { begun: now, told: 0, next }
        });
        if lasting.next.is_none_or(|next| next > now) {
            return None;
        }
        lasting.next = Some(now + LONGEST.min(AGAIN * 2_u32.pow(lasting.told.min(6))));
        lasting.told += 1;
        let (times, lasted) = (lasting.told, now.duration_since(lasting.begun).as_secs());
        let line = match times {
            1 => message,
            _ => format!("{message} (told {times} times in {lasted} s)"),
        };
        Some((kind, line))
    }
}

/// The lines; where there are more of a kind than a few, one that counts the others.
fn few_of_a_kind(lines: Vec<(TroubleKind, String)>) -> Vec<String> {
    let mut counts = BTreeMap::<TroubleKind, usize>::new();
    lines.iter().for_each(|(kind, _)| *counts.entry(*kind).or_default() += 1);
    let mut told = BTreeSet::new();
    let line = |(kind, line): (TroubleKind, String)| match counts[&kind] {
        count if count <= FEW => Some(line),
        count => {
            told.insert(kind).then(|| format!("{line}; so it is with {} others (SHOW TROUBLES)", count - 1))
        }
    };
    lines.into_iter().filter_map(line).collect()
}

fn named(about: &str) -> String {
    if about.is_empty() { String::new() } else { format!(" \"{about}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(kind: TroubleKind, about: &str) -> Trouble {
        Trouble { kind, about: about.to_owned(), message: "it hangs".to_owned() }
    }

    /// What is said when it is looked at each five seconds from `from` on for so long; when and what.
    fn told(
        reminders: &mut Reminders,
        start: Instant,
        seconds: std::ops::Range<u64>,
        troubles: &[Trouble],
    ) -> Vec<(u64, Line)> {
        let at = |second| start + Duration::from_secs(second);
        let look = |second| {
            let lines = reminders.look(troubles.to_vec(), at(second));
            lines.into_iter().map(|line| (second, line)).collect::<Vec<_>>()
        };
        seconds.step_by(5).flat_map(look).collect()
    }

    #[test]
    fn what_lasts_is_told_soon_then_ever_more_rarely_and_its_end_once() {
        let (mut reminders, start) = (Reminders::default(), Instant::now());
        let hangs = [trouble(TroubleKind::NotFlushing, "")];
        let lines = told(&mut reminders, start, 0..500, &hangs);
        let times: Vec<u64> = lines.iter().map(|(second, _)| *second).collect();
        assert_eq!(times, [5, 65, 185, 425]);
        assert_eq!(lines[0].1, Line::Warning("it hangs".to_owned()));
        assert_eq!(lines[2].1, Line::Warning("it hangs (told 3 times in 185 s)".to_owned()));
        let lines = told(&mut reminders, start, 500..600, &[]);
        let end = Line::Info("received WAL is durable again, after 500 s".to_owned());
        assert_eq!(lines, [(500, end)]);
        let lines = told(&mut reminders, start, 600..20_000, &hangs);
        let last: Vec<u64> = lines.iter().rev().take(2).map(|(second, _)| *second).collect();
        assert_eq!(last[0] - last[1], 3600, "an hour at most");
    }

    #[test]
    fn what_a_thousand_have_in_common_is_one_line() {
        let (mut reminders, start) = (Reminders::default(), Instant::now());
        let behind = |count: usize| {
            let one = |number: usize| trouble(TroubleKind::ConsumerBehind, &format!("c{number}"));
            (0..count).map(one).collect::<Vec<_>>()
        };
        let mut all = behind(1000);
        all.push(trouble(TroubleKind::SlotUnused, "s"));
        let lines = told(&mut reminders, start, 0..60, &all);
        let expected = ["it hangs; so it is with 999 others (SHOW TROUBLES)", "it hangs"];
        assert_eq!(lines, expected.map(|line| (30, Line::Warning(line.to_owned()))));
        let lines = told(&mut reminders, start, 60..65, &all[995..]);
        assert!(lines.len() == 1 && format!("{lines:?}").contains("so it is with 994 others"), "{lines:?}");
        let mut reminders = Reminders::default();
        assert_eq!(told(&mut reminders, start, 0..60, &behind(FEW)).len(), FEW);
        let brief = super::super::in_brief(&all);
        assert_eq!(brief.len(), FEW + 2, "{brief:?}");
        assert_eq!(brief[FEW + 1], "990 more of the kind consumer_behind (SHOW TROUBLES has all)");
    }

    #[test]
    fn what_passes_within_a_moment_is_not_told_nor_what_others_tell() {
        let (mut reminders, start) = (Reminders::default(), Instant::now());
        let near = [trouble(TroubleKind::SlotNearLimit, "s")];
        assert_eq!(told(&mut reminders, start, 0..30, &near), []);
        assert_eq!(told(&mut reminders, start, 30..35, &[]), []);
        let both = [near[0].clone(), trouble(TroubleKind::SlotNearLimit, "t")];
        told(&mut reminders, start, 35..100, &near);
        let lines = told(&mut reminders, start, 100..155, &both);
        assert_eq!(lines.iter().map(|(second, _)| *second).collect::<Vec<_>>(), [125, 130]);
        let lines = told(&mut reminders, start, 155..160, &both[1..]);
        let end = "it is far from its limit again, lost, or dropped: slot \"s\", after 120 s".to_owned();
        assert_eq!(lines, [(155, Line::Info(end))]);
        let others = [trouble(TroubleKind::ArchiveFailing, "main"), trouble(TroubleKind::UpstreamAway, "")];
        assert_eq!(told(&mut reminders, start, 200..9000, &others).len(), 1, "the end of the other slot's");
    }
}
