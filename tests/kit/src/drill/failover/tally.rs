//! What came of a failover drill.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// What came of it.
#[derive(Debug, Default)]
pub struct FailoverTally {
    /// Rounds.
    pub rounds: u64,
    /// How primaries were lost, how standbys were promoted, and what happened to others meanwhile.
    pub faults: BTreeMap<String, u64>,
    /// Candidates that were behind a relay when the primary was lost.
    pub behind: u64,
    /// Promotions that waited until a candidate whose stream had been broken had lost nothing.
    pub awaited: u64,
    /// Old primaries that came back as standbys with pg_rewind.
    pub rejoined: u64,
    /// Standbys that had WAL that nobody had acknowledged, and came back in the same way.
    pub ahead: u64,
    /// Verdicts of the relays: everything was kept, something was left.
    pub verdicts: [u64; 2],
    /// Acknowledged commits by `synchronous_commit`.
    pub commits: BTreeMap<&'static str, usize>,
    /// The longest from the loss of the primary until the other one was promoted.
    pub slowest: Duration,
    /// Acknowledged commits that were not found, of those that wait for relays.
    pub lost: Vec<String>,
    /// Those that wait for nobody.
    pub unpromised: usize,
    /// What else must not be.
    pub problems: Vec<String>,
}

impl FailoverTally {
    /// Whether nothing is missing.
    pub fn held(&self) -> bool {
        self.lost.is_empty() && self.problems.is_empty()
    }

    /// All acknowledged commits.
    pub fn acknowledged(&self) -> usize {
        self.commits.values().sum()
    }

    pub(in crate::drill) fn count(&mut self, what: &str) {
        *self.faults.entry(what.to_owned()).or_default() += 1;
    }
}

impl Display for FailoverTally {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for line in self.lost.iter().map(|lost| format!("lost: {lost}")).chain(self.problems.iter().cloned())
        {
            writeln!(f, "✗ {line}")?;
        }
        let [kept, left] = self.verdicts;
        let faults = self.faults.iter().map(|(what, count)| (what.clone(), count.to_string()));
        let commits =
            self.commits.iter().map(|(level, count)| (format!("acknowledged: {level}"), count.to_string()));
        let rows = [
            ("candidates behind a relay", self.behind.to_string()),
            ("promoted when nothing was lost", self.awaited.to_string()),
            ("old primaries back", self.rejoined.to_string()),
            ("standbys ahead, rewound", self.ahead.to_string()),
            ("verdicts: kept", kept.to_string()),
            ("verdicts: left", left.to_string()),
            ("longest loss to promotion", format!("{:.1} s", self.slowest.as_secs_f32())),
            ("lost of those that wait for nobody", self.unpromised.to_string()),
            ("lost", self.lost.len().to_string()),
        ];
        let rows = rows.into_iter().map(|(what, value)| (what.to_owned(), value));
        std::iter::once(("rounds".to_owned(), self.rounds.to_string()))
            .chain(faults)
            .chain(commits)
            .chain(rows)
            .try_for_each(|(what, value)| writeln!(f, "  {what:<36} {value:>10}"))
    }
}
