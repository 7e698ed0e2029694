//! What was measured, and what was wanted.

use super::numbers::median;

/// Who was measured.
pub(crate) const WALRELAY: &str = "walrelay";
pub(crate) const CASCADE: &str = "cascading standby";
pub(crate) const RECEIVEWAL: &str = "pg_receivewal";
pub(crate) const NOTHING: &str = "a standby that stores nothing";
pub(crate) const STORING: &str = "bare loop that stores";
pub(crate) const FAN: &str = "bare fan-out";
pub(crate) const LOOP: &str = "bare sendfile loop";
pub(crate) const HAPROXY: &str = "haproxy";

/// Values in the order in which they came: of a row, of something measured in it, of somebody.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    values: Vec<(&'static str, &'static str, &'static str, f64)>,
    remarks: Vec<(&'static str, String)>,
}

impl Figures {
    pub(crate) fn add(&mut self, row: &'static str, metric: &'static str, who: &'static str, value: f64) {
        self.values.push((row, metric, who, value));
    }

    /// Something to be said below a row.
    pub(crate) fn remark(&mut self, row: &'static str, text: impl Into<String>) {
        self.remarks.push((row, text.into()));
    }

    pub(crate) fn remarks<'a>(&'a self, row: &'a str) -> impl Iterator<Item = &'a str> {
        self.remarks.iter().filter(move |(of, _)| *of == row).map(|(_, text)| text.as_str())
    }

    /// The median over the rounds.
    pub(crate) fn median(&self, row: &str, metric: &str, who: &str) -> Option<f64> {
        let wanted = self.values.iter().filter(|(r, m, w, _)| *r == row && *m == metric && *w == who);
        median(&wanted.map(|(.., value)| *value).collect::<Vec<_>>())
    }

    /// The least and the most of the rounds, where there were several that differ.
    pub(crate) fn range(&self, row: &str, metric: &str, who: &str) -> Option<(f64, f64)> {
        let wanted = self.values.iter().filter(|(r, m, w, _)| *r == row && *m == metric && *w == who);
        let ends = |(least, most): (f64, f64), value: f64| (least.min(value), most.max(value));
        let range = wanted.map(|(.., value)| *value).fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        (range.0 < range.1).then_some(range)
    }

    /// Who took part in a row, in the order of their coming.
    pub(crate) fn who(&self, row: &str) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (of, _, who, _) in &self.values {
            if *of == row && !names.contains(who) {
                names.push(*who);
            }
        }
        names
    }

    pub(crate) fn has(&self, row: &str) -> bool {
        self.values.iter().any(|(of, ..)| *of == row)
    }
}

/// A target of the relay.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    Most(f64),
    /// So many times what somebody else has in the same row.
    MostTimes(f64, &'static str),
    LeastTimes(f64, &'static str),
}

/// Whether a target was met, and by how much.
#[derive(Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) target: String,
    pub(crate) figure: String,
    pub(crate) met: bool,
}

impl Target {
    /// `None` where it was not measured.
    pub(crate) fn judge(self, figures: &Figures, row: &str, metric: &str, who: &str) -> Option<Verdict> {
        let ours = figures.median(row, metric, who)?;
        let times = |other| Some(ours / figures.median(row, metric, other)?);
        Some(match self {
            Target::Most(limit) => {
                Verdict { target: format!("≤ {limit} {metric}"), figure: show(ours), met: ours <= limit }
            }
            Target::MostTimes(limit, other) => {
                let (ratio, target) = (times(other)?, format!("{metric}: ≤ {limit} × {other}"));
                Verdict { target, figure: format!("{ratio:.2} ×"), met: ratio <= limit }
            }
            Target::LeastTimes(limit, other) => {
                let (ratio, target) = (times(other)?, format!("{metric}: ≥ {limit} × {other}"));
                Verdict { target, figure: format!("{ratio:.2} ×"), met: ratio >= limit }
            }
        })
    }
}

/// Three digits that matter.
pub(crate) fn show(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_rounds_and_targets() {
        let mut figures = Figures::default();
        for (ours, theirs) in [(90.0, 100.0), (110.0, 50.0), (100.0, 80.0)] {
            figures.add("row", "MB/s", WALRELAY, ours);
            figures.add("row", "MB/s", LOOP, theirs);
        }
        assert_eq!(figures.median("row", "MB/s", WALRELAY), Some(100.0));
        assert_eq!(figures.median("row", "MB/s", CASCADE), None);
        assert_eq!(figures.range("row", "MB/s", LOOP), Some((50.0, 100.0)));
        assert_eq!(figures.range("row", "MB/s", CASCADE), None);
        assert_eq!(figures.who("row"), [WALRELAY, LOOP]);
        let judge = |target: Target| target.judge(&figures, "row", "MB/s", WALRELAY);
        assert!(judge(Target::LeastTimes(1.25, LOOP)).unwrap().met);
        assert!(!judge(Target::MostTimes(1.2, LOOP)).unwrap().met);
        assert_eq!(judge(Target::MostTimes(1.2, HAPROXY)), None);
        let verdict = judge(Target::Most(99.0)).unwrap();
        assert_eq!(
            (verdict.target.as_str(), verdict.figure.as_str(), verdict.met),
            ("≤ 99 MB/s", "100", false)
        );
    }

    #[test]
    fn digits() {
        assert_eq!([1234.5, 99.94, 1.234, 0.01234].map(show), ["1234", "99.9", "1.23", "0.012"]);
    }
}
