//! What happens when a group does not answer, and how long that may go on.

use std::time::{Duration, Instant};

use super::Expression;

/// Who is asked instead when a rule that names somebody was not fulfilled in time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lapse {
    /// How long WAL waits for those whom the rule names.
    pub timeout: Duration,
    /// Who has to have it then.
    pub to: Expression,
    /// How long that may go on; `None` for ever.
    pub budget: Option<Budget>,
}

/// Some time in each longer one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// How long, all taken together.
    pub time: Duration,
    /// Counted from the first lapse: as long as this the time is for; then there is all of it again.
    pub per: Duration,
}

/// What of a budget was used, for a process that goes on where another one has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spent {
    /// How long ago the first lapse was that counts.
    pub ago: Duration,
    /// How long it has lapsed since, all taken together.
    pub time: Duration,
}

/// What of a budget was used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spending {
    /// When the first lapse was that counts, and how long before that it was: in another process.
    began: Option<(Instant, Duration)>,
    spent: Duration,
}

impl Spending {
    /// Goes on where another process has ended.
    pub(super) fn of(spent: Spent, now: Instant) -> Spending {
        Spending { began: Some((now, spent.ago)), spent: spent.time }
    }

    /// What was used, if anything was.
    pub(super) fn spent(&self, now: Instant) -> Option<Spent> {
        Some(Spent { ago: age(self.began?, now), time: self.spent })
    }

    /// Forgets what is too long ago.
    pub(super) fn look(&mut self, budget: Option<Budget>, now: Instant) {
        let is_over = |began| budget.is_none_or(|budget| age(began, now) >= budget.per);
        if self.began.is_some_and(is_over) {
            *self = Spending::default();
        }
    }

    /// So much of it is used.
    pub(super) fn spend(&mut self, time: Duration, now: Instant) {
        self.began.get_or_insert((now, Duration::ZERO));
        self.spent += time;
    }

    /// What is left; `None` where there is no limit.
    pub(super) fn left(&self, budget: Option<Budget>) -> Option<Duration> {
        budget.map(|budget| budget.time.saturating_sub(self.spent))
    }

    /// In how long all of it is there again.
    pub(super) fn full_in(&self, budget: Option<Budget>, now: Instant) -> Duration {
        let over = self.began.zip(budget).map(|(began, budget)| budget.per.saturating_sub(age(began, now)));
        over.unwrap_or_default()
    }
}

fn age((began, before): (Instant, Duration), now: Instant) -> Duration {
    now.saturating_duration_since(began).saturating_add(before)
}
