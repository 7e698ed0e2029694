//! What was found out, and what to do about it.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Looked at, and as it should be.
    Ok,
    /// It works, and will not for ever, or not as somebody may think.
    Warning,
    /// It does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is called by programs; does not change between versions.
    pub code: &'static str,
    /// Whom it is about: `upstream`, `relay`, `host`, `archive NAME` or `consumer NAME`.
    pub about: String,
    /// The cause, for people.
    pub message: String,
    /// What to type, or to look at, in this order; nothing where all is well.
    pub remedy: Vec<String>,
}

/// What was found about one of them.
#[derive(Debug)]
pub(super) struct Findings {
    about: String,
    all: Vec<Finding>,
}

impl Findings {
    pub(super) fn about(about: impl Into<String>) -> Findings {
        Findings { about: about.into(), all: Vec::new() }
    }

    pub(super) fn ok(&mut self, code: &'static str, message: impl Into<String>) {
        self.add(Severity::Ok, code, message.into(), Vec::new());
    }

    pub(super) fn warning(&mut self, code: &'static str, message: impl Into<String>, remedy: Vec<String>) {
        self.add(Severity::Warning, code, message.into(), remedy);
    }

    pub(super) fn error(&mut self, code: &'static str, message: impl Into<String>, remedy: Vec<String>) {
        self.add(Severity::Error, code, message.into(), remedy);
    }

    fn add(&mut self, severity: Severity, code: &'static str, message: String, remedy: Vec<String>) {
        // What is not well is of use only with what to do about it.
        debug_assert!(severity == Severity::Ok || !remedy.is_empty(), "{code}: {message}");
        let about = self.about.clone();
        self.all.push(Finding { severity, code, about, message, remedy });
    }

    pub(super) fn into_inner(self) -> Vec<Finding> {
        self.all
    }
}

/// Remedies from texts.
pub(super) fn remedy<const N: usize>(lines: [&str; N]) -> Vec<String> {
    lines.map(str::to_owned).to_vec()
}

/// A size for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];
    let unit = UNITS.into_iter().find(|(_, unit)| bytes >= *unit);
    unit.map_or_else(
        || format!("{bytes} bytes"),
        |(name, unit)| format!("{:.1} {name}", bytes as f64 / unit as f64),
    )
}

/// A time for people.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// As an identifier or a string of SQL wants it.
pub(super) fn quoted(text: &str, quote: char) -> String {
    format!("{quote}{}{quote}", text.replace(quote, &format!("{quote}{quote}")))
}
