//! What an expression is made of, and how it is written.

use std::fmt;
use std::str::FromStr;

use super::lexer::is_plain;
use super::parser::{ExpressionError, is_keyword, parse};

/// Who must have WAL: all of its terms together. At least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expression {
    pub(super) terms: Vec<Term>,
}

/// One condition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Term {
    /// The relay itself. It belongs to every expression, written or not: nothing is reported that is not here.
    Local,
    /// All consumers that are connected and report this position.
    Connected,
    /// Some of those that are named.
    Group(Group),
}

/// Consumers by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// How many of them.
    pub pick: Pick,
    /// Their names, none of which can be another's; at least one, and as many as are to be picked.
    pub members: Vec<MemberName>,
}

/// How many of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pick {
    /// Any so many of them (PostgreSQL: quorum).
    Any(usize),
    /// The first so many of the list that are there (PostgreSQL: priority).
    First(usize),
    /// Each of them.
    All,
}

/// Whose vote it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MemberName {
    /// The role it has to log in as, letter for letter; `None` for any.
    pub role: Option<String>,
    /// Its `application_name`, whatever the case of its ASCII letters.
    pub name: String,
}

impl MemberName {
    /// Whether a consumer carries this name.
    // PG: SyncRepGetStandbyPriority, pg_strcasecmp
    pub fn is_of(&self, role: &str, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name) && self.role.as_ref().is_none_or(|own| own == role)
    }

    /// Whether one consumer could carry both.
    pub(super) fn overlaps(&self, other: &MemberName) -> bool {
        let roles = self.role.as_ref().zip(other.role.as_ref());
        self.name.eq_ignore_ascii_case(&other.name) && roles.is_none_or(|(own, others)| own == others)
    }
}

impl Expression {
    /// `local`.
    pub fn local() -> Expression {
        Expression { terms: vec![Term::Local] }
    }

    /// `connected`.
    pub fn connected() -> Expression {
        Expression { terms: vec![Term::Connected] }
    }

    /// Its terms, all of which have to be fulfilled.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Whether it asks nobody but the relay.
    pub fn is_local(&self) -> bool {
        self.terms.iter().all(|term| *term == Term::Local)
    }

    /// Its groups.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.terms.iter().filter_map(|term| match term {
            Term::Group(group) => Some(group),
            Term::Local | Term::Connected => None,
        })
    }
}

impl FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Expression, ExpressionError> {
        parse(text)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, term) in self.terms.iter().enumerate() {
            let and = if at == 0 { "" } else { " AND " };
            write!(f, "{and}{term}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Local => f.write_str("local"),
            Term::Connected => f.write_str("connected"),
            Term::Group(group) => fmt::Display::fmt(group, f),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pick {
            Pick::Any(count) => write!(f, "ANY {count} (")?,
            Pick::First(count) => write!(f, "FIRST {count} (")?,
            Pick::All => f.write_str("ALL (")?,
        }
        for (at, member) in self.members.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{member}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(role) = &self.role {
            write_name(role, f)?;
            f.write_str("/")?;
        }
        write_name(&self.name, f)
    }
}

fn write_name(name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if is_plain(name) && !is_keyword(name) {
        return f.write_str(name);
    }
    write!(f, "\"{}\"", name.replace('"', "\"\""))
}
