//! Who must have WAL before the relay reports it upstream: an expression for each of the three positions, and what comes of
//! the consumers' reports.
//!
//! ```text
//! expression := term { AND term }
//! term       := local | connected | ANY n ( names ) | FIRST n ( names ) | ALL ( names )
//! names      := name { , name }           name := [ role / ] application name
//! ```
//!
//! Names are written as in `synchronous_standby_names` (PostgreSQL: `syncrep_scanner.l`, `syncrep_gram.y`): words as they
//! are, everything else in double quotes; they are compared without regard to case. What the words of the language mean is
//! said at [`Term`].
//!
//! [`Acknowledger`] takes the consumers' reports, the relay's own positions and the time, and answers with what may be
//! reported.

mod acknowledger;
mod expression;
mod lapse;
mod lexer;
mod parser;
mod standbys;
#[cfg(test)]
mod tests;

pub use acknowledger::{Acknowledger, Allowance, Event, Report, Standing};
pub use expression::{Expression, Group, MemberName, Pick, Term};
pub use lapse::{Budget, Lapse, Spent};
pub use lexer::{may_wait_for, names_of};
pub use parser::{ExpressionError, Problem};
pub use standbys::SynchronousStandbys;

use crate::lsn::Lsn;

/// One of the three positions that a standby reports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// End of what is written: what `synchronous_commit = remote_write` waits for.
    Write,
    /// End of what is durable: what `on` waits for.
    Flush,
    /// End of what is replayed, and so can be seen: what `remote_apply` waits for.
    Apply,
}

impl Level {
    /// All of them; each contains those before it.
    pub const ALL: [Level; 3] = [Level::Write, Level::Flush, Level::Apply];

    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Write => "write",
            Level::Flush => "flush",
            Level::Apply => "apply",
        }
    }

    /// The value of `synchronous_commit` that waits for it.
    pub fn waited_for_by(self) -> &'static str {
        match self {
            Level::Write => "remote_write",
            Level::Flush => "on",
            Level::Apply => "remote_apply",
        }
    }
}

/// Positions as they are reported; `None` where there is none to report.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Positions {
    /// End of what is written.
    pub write: Option<Lsn>,
    /// End of what is durable.
    pub flush: Option<Lsn>,
    /// End of what is replayed.
    pub apply: Option<Lsn>,
}

impl Positions {
    /// One of them.
    pub fn at(&self, level: Level) -> Option<Lsn> {
        match level {
            Level::Write => self.write,
            Level::Flush => self.flush,
            Level::Apply => self.apply,
        }
    }

    pub(crate) fn set(&mut self, level: Level, position: Option<Lsn>) {
        match level {
            Level::Write => self.write = position,
            Level::Flush => self.flush = position,
            Level::Apply => self.apply = position,
        }
    }

    /// Each at what it is in the one of the two where that is more.
    #[must_use]
    pub fn max(self, other: Positions) -> Positions {
        Positions {
            write: self.write.max(other.write),
            flush: self.flush.max(other.flush),
            apply: self.apply.max(other.apply),
        }
    }
}

/// What is to be reported, and when not to wait for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Who must have written WAL.
    pub write: Expression,
    /// Who must have it durably.
    pub flush: Expression,
    /// Who must have replayed it.
    pub apply: Expression,
    /// What happens when they do not answer; `None`: it is waited for ever.
    pub lapse: Option<Lapse>,
}

impl Rules {
    /// The expression of a position.
    pub fn at(&self, level: Level) -> &Expression {
        match level {
            Level::Write => &self.write,
            Level::Flush => &self.flush,
            Level::Apply => &self.apply,
        }
    }
}

impl Default for Rules {
    /// The relay's own positions, and for `apply` the least of all that are connected and report one.
    fn default() -> Rules {
        Rules {
            write: Expression::local(),
            flush: Expression::local(),
            apply: Expression::connected(),
            lapse: None,
        }
    }
}
