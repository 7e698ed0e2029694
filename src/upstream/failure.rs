//! Why nothing is received, and whether it will pass.

use walrelay_proto::course::{Cause, CourseError};
use walrelay_proto::{Lsn, TimelineId};

use crate::conninfo::HostSpec;
use crate::pg::{ConnectError, QueryError};
use crate::store::fence::Fence;
use crate::store::{AppendError, ReadError, SaveHistoryError, StoreError};

/// Receiving has come to an end, or cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("{}{source}", connecting_to(host, source))]
    Connect {
        /// The upstream.
        host: String,
        /// Why.
        source: ConnectError,
    },
    /// A command failed.
    #[error("{command}: {source}")]
    Command {
        /// The command.
        command: String,
        /// Why.
        source: QueryError,
    },
    /// The server takes no walsender at all.
    #[error(
        "the upstream accepts no replication connections ({0}); set wal_level = replica and max_wal_senders > 0 there"
    )]
    NoWalSenders(String),
    /// Its WAL cannot be read.
    #[error(
        "the upstream runs PostgreSQL {server}, but walrelay {} reads the WAL of PostgreSQL 13 to {newest} and later ({problem}); use a release of the server, or another walrelay",
        env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// `server_version` of the upstream.
        server: String,
        /// The newest major version that is known.
        newest: u32,
        /// What is wrong with its WAL.
        problem: String,
    },
    /// An answer makes no sense.
    #[error("unexpected answer to {command}: {problem}")]
    Answer {
        /// The command.
        command: String,
        /// What is odd.
        problem: String,
    },
    /// The data directory and the upstream do not belong together, or the directory fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data directory does not take the note that a slot is made on the upstream.
    #[error(
        "could not leave word in the data directory of slot \"{slot}\", which is made on the upstream: {source}"
    )]
    NotNoted {
        /// The slot.
        slot: String,
        /// Why.
        source: std::io::Error,
    },
    /// A history file is no good.
    #[error("timeline {tli}: {source}")]
    History {
        /// The timeline.
        tli: TimelineId,
        /// Why.
        source: SaveHistoryError,
    },
    /// The upstream has removed WAL that we need next.
    #[error(
        "{host} no longer has the WAL from {at} on that the relay needs next ({message}); consumers are served what is held; to go on, use an upstream that has it, or stop the relay, remove pg_wal in its data directory and the slot on the upstream, and set up its consumers anew"
    )]
    WalRemoved {
        /// The upstream.
        host: String,
        /// What was asked for.
        at: Lsn,
        /// What it said.
        message: String,
    },
    /// The relay is fenced, and just leaves its upstream.
    #[error("the relay is fenced: {0}; only a newer timeline is followed")]
    Left(Box<Fence>),
    /// The relay is fenced, and this server is not on a newer timeline.
    #[error(
        "upstream is on timeline {theirs}, and not followed because the relay is fenced: {fence}; only a newer timeline is followed, until the fence is lifted with \"walrelay unfence\""
    )]
    Fenced {
        /// The server's timeline.
        theirs: TimelineId,
        /// The fence.
        fence: Box<Fence>,
    },
    /// It is not one to be followed.
    #[error(transparent)]
    Course(#[from] CourseError),
    /// What is to be compared with the upstream's WAL cannot be read here.
    #[error(
        "{0}; the end of what is held has to be compared with the upstream's WAL, which is not followed before that; look at the disk, and restore the file from a copy"
    )]
    Unreadable(ReadError),
    /// The stream broke.
    #[error("{0}")]
    Stream(String),
    /// WAL could not be taken.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl UpstreamError {
    /// Whether trying again cannot help until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            UpstreamError::Connect { source, .. } => !source.is_transient(),
            UpstreamError::NoWalSenders(_) | UpstreamError::Version { .. } => true,
            UpstreamError::Command { source: QueryError::Server(error), .. } => !error.is_transient(),
            UpstreamError::Store(StoreError::OtherCluster { .. } | StoreError::OtherSegSize { .. }) => true,
            UpstreamError::Command { .. }
            | UpstreamError::Answer { .. }
            | UpstreamError::Store(_)
            | UpstreamError::NotNoted { .. }
            | UpstreamError::History { .. }
            | UpstreamError::WalRemoved { .. }
            | UpstreamError::Left(_)
            | UpstreamError::Fenced { .. }
            | UpstreamError::Course(_)
            | UpstreamError::Unreadable(_)
            | UpstreamError::Stream(_)
            | UpstreamError::Append(_) => false,
        }
    }

    /// Whether somebody has to act: it will not pass by itself.
    pub(super) fn needs_action(&self) -> bool {
        match self {
            UpstreamError::Course(error) => error.needs_action(),
            UpstreamError::WalRemoved { .. }
            | UpstreamError::Unreadable(_)
            | UpstreamError::Append(
                AppendError::Diverged { .. } | AppendError::Fork { .. } | AppendError::NotNoted { .. },
            ) => true,
            _ => self.is_permanent(),
        }
    }

    /// What is said of a difference to the upstream's WAL that was seen once: a bit may have been flipped on the way.
    pub(super) fn doubt(&self) -> Option<String> {
        let differs = match self {
            UpstreamError::Append(AppendError::Diverged { tli, lsn }) => {
                format!("timeline {tli} at {lsn}: the upstream's WAL differs from what was received before")
            }
            UpstreamError::Course(CourseError::Seam { tli, held, source }) => format!(
                "the upstream's WAL does not continue timeline {tli} that is held here up to {held}: {source}"
            ),
            _ => return None,
        };
        Some(format!("{differs}; it may have been changed on the way, and is looked at once more"))
    }

    /// Whether the relay must not go on: nobody knows what is durable.
    pub fn is_fatal(&self) -> bool {
        matches!(self, UpstreamError::Append(AppendError::Failed))
    }

    /// Whether the store says it itself, as often as it is to be said.
    pub(super) fn is_told(&self) -> bool {
        matches!(self, UpstreamError::Append(AppendError::Disk { .. }))
    }
}

impl Cause for UpstreamError {
    fn is_permanent(&self) -> bool {
        UpstreamError::is_permanent(self)
    }

    fn is_fatal(&self) -> bool {
        UpstreamError::is_fatal(self)
    }
}

/// Errors of a socket say where they happened; what the server says does not.
fn connecting_to(host: &str, error: &ConnectError) -> String {
    match error {
        ConnectError::Resolve { .. }
        | ConnectError::Socket { .. }
        | ConnectError::Timeout { .. }
        | ConnectError::Both { .. } => String::new(),
        _ => format!("connection to {host} failed: "),
    }
}

/// What the server says in words of ours, where there is more to say.
pub(super) fn explain(host: &HostSpec, error: ConnectError) -> UpstreamError {
    match &error {
        ConnectError::Server(error) if error.is_without_walsenders() => {
            UpstreamError::NoWalSenders(error.message.clone())
        }
        _ => UpstreamError::Connect { host: host.to_string(), source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conninfo::{ConnInfo, Environment};
    use crate::pg::ServerError;

    #[test]
    fn a_server_without_walsenders_is_explained_in_whatever_language() {
        let info = ConnInfo::parse("host=a", &Environment::of_user("x")).unwrap();
        let check = |message: &str, expected: bool| {
            let (sqlstate, message) = ("53300".into(), message.into());
            let error = ServerError { sqlstate, message, ..ServerError::default() };
            let explained = explain(&info.hosts[0], ConnectError::Server(error));
            let said = explained.is_permanent() && explained.to_string().contains("wal_level = replica");
            assert_eq!(said, expected, "{explained}");
        };
        check("number of requested standby connections exceeds max_wal_senders (currently 0)", true);
        check("Anzahl angeforderter Standby-Verbindungen überschreitet »max_wal_senders« (aktuell 0)", true);
        check("number of requested standby connections exceeds \"max_wal_senders\" (currently 10)", false);
        check("sorry, too many clients already", false);
    }
}
