//! Why a connection has ended: what the log says, and what is counted.

use std::fmt;
use std::io;

use crate::counts::{CommandRefused, EndCause, Refused};
use crate::wire::{PgError, ReadError, sqlstate};

use super::login::LoginError;

/// The client has said good-bye.
pub(super) const LEFT: &str = "client has left";
/// Of a SQL session: the upstream has ended it, as it does when the client has said good-bye.
pub(super) const ENDED_UPSTREAM: &str = "the upstream server has ended the session";
/// Of a SQL session.
pub(super) const STOPPING: &str = "the relay is stopping";

/// Whether a SQL session that ended for this reason has ended as it should.
pub(super) fn is_in_order(reason: &str) -> bool {
    [LEFT, ENDED_UPSTREAM, STOPPING].contains(&reason) || reason == ReadError::Closed.to_string()
}

/// The end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parting {
    /// For counts.
    pub cause: EndCause,
    /// For the log.
    words: String,
}

impl Parting {
    /// For this reason, and in these words.
    pub(super) fn new(cause: EndCause, words: impl Into<String>) -> Parting {
        Parting { cause, words: words.into() }
    }

    /// The client has said good-bye.
    pub(super) fn left() -> Parting {
        Parting::new(EndCause::ClientLeft, LEFT)
    }

    /// Nobody was cut off, and nothing has failed.
    pub(super) fn is_in_order(&self) -> bool {
        matches!(self.cause, EndCause::ClientLeft | EndCause::Shutdown)
    }

    /// It could not be sent what was for it.
    pub(super) fn unsent(error: &io::Error) -> Parting {
        let cause = match error.kind() {
            io::ErrorKind::TimedOut => EndCause::NotTaken,
            _ => EndCause::ConnectionLost,
        };
        Parting::new(cause, format!("could not send data to client: {error}"))
    }

    /// It was told an error that ends the connection.
    pub(super) fn told(error: &PgError) -> Parting {
        let cause = match &*error.sqlstate {
            sqlstate::ADMIN_SHUTDOWN => EndCause::Shutdown,
            sqlstate::PROTOCOL_VIOLATION => EndCause::Protocol,
            _ => EndCause::Error,
        };
        Parting::new(cause, error.to_string())
    }
}

impl From<ReadError> for Parting {
    fn from(error: ReadError) -> Parting {
        let cause = match &error {
            ReadError::Closed => EndCause::ClientLeft,
            ReadError::Io(_) => EndCause::ConnectionLost,
            ReadError::Frame(_) | ReadError::Startup(_) => EndCause::Protocol,
        };
        Parting::new(cause, error.to_string())
    }
}

impl fmt::Display for Parting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// Why a client was not let in; `None` for who has left by himself before he said what he wants.
pub(super) fn refused(error: &LoginError) -> Option<Refused> {
    match error {
        LoginError::Refused(error) => Some(refused_with(&error.sqlstate)),
        LoginError::Ancient(_) | LoginError::Handshake(_) | LoginError::NoAlpn => Some(Refused::Protocol),
        LoginError::Unread(ReadError::Frame(_) | ReadError::Startup(_)) => Some(Refused::Protocol),
        LoginError::Unread(ReadError::Closed | ReadError::Io(_)) | LoginError::Unsent(_) => None,
    }
}

pub(super) fn refused_with(code: &str) -> Refused {
    match code {
        sqlstate::INVALID_PASSWORD => Refused::Authentication,
        sqlstate::INVALID_AUTHORIZATION_SPECIFICATION => Refused::Rules,
        sqlstate::TOO_MANY_CONNECTIONS => Refused::TooMany,
        sqlstate::INSUFFICIENT_PRIVILEGE => Refused::Rights,
        sqlstate::CANNOT_CONNECT_NOW => Refused::NotNow,
        sqlstate::QUERY_CANCELED => Refused::Timeout,
        sqlstate::PROTOCOL_VIOLATION | sqlstate::FEATURE_NOT_SUPPORTED => Refused::Protocol,
        _ => Refused::Other,
    }
}

/// Why a replication command was refused; `None` where somebody had it ended. Codes do not tell all of them apart.
pub(super) fn command_refused(error: &PgError) -> Option<CommandRefused> {
    let message = &*error.message;
    Some(match &*error.sqlstate {
        sqlstate::QUERY_CANCELED | sqlstate::ADMIN_SHUTDOWN => return None,
        sqlstate::UNDEFINED_FILE if message.starts_with("requested WAL segment") => {
            CommandRefused::WalRemoved
        }
        sqlstate::INTERNAL_ERROR if message.ends_with("is not in this server's history") => {
            CommandRefused::Timeline
        }
        sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE if message.starts_with("can no longer access") => {
            CommandRefused::SlotLost
        }
        sqlstate::OBJECT_IN_USE => CommandRefused::SlotInUse,
        sqlstate::UNDEFINED_OBJECT if message.starts_with("replication slot") => CommandRefused::SlotMissing,
        _ => CommandRefused::Other,
    })
}
