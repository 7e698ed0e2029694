//! Names of replication slots (PostgreSQL: `slot.c`, `ReplicationSlotValidateName`).

use std::fmt;
use std::str::FromStr;

/// Name of a replication slot: 1 to 63 characters out of `a-z`, `0-9` and `_`, so that it can be a
/// directory's name anywhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotName(Box<str>);

/// A name no slot can have; the texts are PostgreSQL's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotNameError {
    /// The empty name.
    #[error("replication slot name \"\" is too short")]
    TooShort,
    /// More than 63 bytes.
    #[error("replication slot name \"{0}\" is too long")]
    TooLong(String),
    /// A character that is not allowed.
    #[error("replication slot name \"{0}\" contains invalid character")]
    InvalidCharacter(String),
}

impl SlotNameError {
    /// PostgreSQL's SQLSTATE for this refusal.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            SlotNameError::TooLong(_) => "42622",
            SlotNameError::TooShort | SlotNameError::InvalidCharacter(_) => "42602",
        }
    }

    /// PostgreSQL's hint, where it has one.
    pub fn hint(&self) -> Option<&'static str> {
        matches!(self, SlotNameError::InvalidCharacter(_)).then_some(
            "Replication slot names may only contain lower case letters, numbers, and the underscore character.",
        )
    }
}

impl SlotName {
    /// Bytes a name may have at most (`NAMEDATALEN - 1`).
    pub const MAX_LEN: usize = 63;

    /// The name, if a slot can have it.
    pub fn new(name: &str) -> Result<SlotName, SlotNameError> {
        let allowed = |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
        match name {
            "" => Err(SlotNameError::TooShort),
            _ if name.len() > SlotName::MAX_LEN => Err(SlotNameError::TooLong(name.to_owned())),
            _ if !name.bytes().all(allowed) => Err(SlotNameError::InvalidCharacter(name.to_owned())),
            _ => Ok(SlotName(name.into())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SlotName {
    type Err = SlotNameError;

    fn from_str(name: &str) -> Result<SlotName, SlotNameError> {
        SlotName::new(name)
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_postgresqls() {
        let check = |name: &str, sqlstate, text: &str, hinted| {
            let error = name.parse::<SlotName>().unwrap_err();
            assert_eq!(
                (error.sqlstate(), error.to_string(), error.hint().is_some()),
                (sqlstate, text.into(), hinted)
            );
        };
        check("", "42602", "replication slot name \"\" is too short", false);
        check("S3", "42602", "replication slot name \"S3\" contains invalid character", true);
        check("s-3", "42602", "replication slot name \"s-3\" contains invalid character", true);
        check("../x", "42602", "replication slot name \"../x\" contains invalid character", true);
        let long = "a".repeat(64);
        check(&long, "42622", &format!("replication slot name \"{long}\" is too long"), false);
        assert_eq!("a".repeat(63).parse::<SlotName>().unwrap().as_str().len(), 63);
        assert_eq!("17".parse::<SlotName>().unwrap().to_string(), "17");
    }
}
