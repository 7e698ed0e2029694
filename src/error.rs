//! What ends the relay, and with which exit code.

use std::io::ErrorKind;

use crate::archive::cleanup::CleanupError;
use crate::archive::restore::{BROKEN, RestoreError};
use crate::archive::{ArchiveError, ReadError, WriteError};
use crate::auth::hba::HbaError;
use crate::auth::users::UsersError;
use crate::branch::BranchError;
use crate::config::ConfigError;
use crate::downstream::ListenError;
use crate::http::HttpError;
use crate::init::InitError;
use crate::parts::PartEnded;
use crate::pg::ConnectError;
use crate::show::ShowError;
use crate::sockets::SocketsError;
use crate::store::StoreError;
use crate::upstream::UpstreamError;
use crate::verify::{RepairError, VerifyError};
use crate::wire::TlsError;

/// A fault of walrelay itself (`EX_SOFTWARE` of sysexits.h).
pub const FAULT: u8 = 70;
/// A mapped file could not be reached any more, SIGBUS (`EX_IOERR`).
pub const UNREADABLE: u8 = 74;
/// Stopped when told to, but not in order (`EX_TEMPFAIL`).
pub const LATE: u8 = 75;

/// The relay cannot start or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `--hba-file` is wrong.
    #[error(transparent)]
    Hba(#[from] HbaError),
    /// `--auth-file` is wrong.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// `--ssl-cert-file` or one of its kin is wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An archive target is wrong.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An address to listen on cannot be had.
    #[error(transparent)]
    Bind(#[from] ListenError),
    /// A socket that was passed is not one of ours.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// The address of `--http-listen` cannot be had.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The upstream will not have us.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// An archive cannot be read.
    #[error(transparent)]
    ArchiveRead(#[from] ReadError),
    /// An archive cannot be written.
    #[error(transparent)]
    ArchiveWrite(#[from] WriteError),
    /// WAL could not be removed from an archive.
    #[error(transparent)]
    Cleanup(#[from] CleanupError),
    /// A WAL file could not be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A relay does not say how it is.
    #[error(transparent)]
    Show(#[from] ShowError),
    /// A directory cannot be verified.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A directory cannot be repaired.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// A first configuration was not written.
    #[error(transparent)]
    Init(#[from] InitError),
    /// WAL that was left cannot be shown or copied.
    #[error(transparent)]
    Branch(#[from] BranchError),
    /// WAL could not be made durable.
    #[error("{0}; the relay stops because what it holds may not be durable")]
    Durability(String),
    /// A part of the relay has ended although nobody told it to.
    #[error("{0}")]
    Part(#[from] PartEnded),
    /// Told to stop, something did not end within the limit.
    #[error("stopped, but these did not end within --shutdown-timeout and were left behind: {0}")]
    Late(String),
    /// The operating system refused something basic.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl RelayError {
    /// The process's exit code; documented in docs/OPERATIONS.md.
    pub fn exit_code(&self) -> u8 {
        match self {
            RelayError::System { .. } | RelayError::Init(InitError::Write { .. } | InitError::Declined) => 1,
            RelayError::Cleanup(CleanupError::Name(_)) => 2,
            RelayError::ArchiveRead(_) | RelayError::ArchiveWrite(_) | RelayError::Cleanup(_) => 8,
            RelayError::Restore(_) => BROKEN,
            RelayError::Config(_)
            | RelayError::Archive(_)
            | RelayError::Sockets(_)
            | RelayError::Init(InitError::Exists(_) | InitError::Unanswered)
            | RelayError::Hba(_)
            | RelayError::Users(_)
            | RelayError::Tls(_) => 2,
            RelayError::Store(StoreError::InUse { .. })
            | RelayError::Repair(
                RepairError::InUse(_)
                | RepairError::NoDataDirectory(_)
                | RepairError::Store(StoreError::InUse { .. }),
            ) => 3,
            RelayError::Verify(_) | RelayError::Repair(_) | RelayError::Branch(_) | RelayError::Show(_) => 8,
            RelayError::Store(StoreError::OtherCluster { .. } | StoreError::OtherSegSize { .. })
            | RelayError::Upstream(UpstreamError::Store(_)) => 4,
            RelayError::Bind(_) | RelayError::Http(_) => 5,
            RelayError::Store(_) | RelayError::Upstream(UpstreamError::Append(_)) => 6,
            RelayError::Durability(_) => 6,
            RelayError::Part(_) => FAULT,
            RelayError::Late(_) => LATE,
            RelayError::Upstream(UpstreamError::Connect { source, .. }) if is_authentication(source) => 7,
            RelayError::Upstream(_) => 8,
        }
    }

    /// What to do, where the message does not say it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            RelayError::Part(_) => {
                Some("This is a fault of walrelay: please report it with the log. It can be started again.")
            }
            RelayError::Bind(ListenError::Bind { source, .. }) if source.kind() == ErrorKind::AddrInUse => {
                Some("Is another server running there? Choose another address with --listen.")
            }
            RelayError::Bind(ListenError::Bind { source, .. })
                if source.kind() == ErrorKind::PermissionDenied =>
            {
                Some("Ports below 1024 need a privilege. Choose another one with --listen.")
            }
            RelayError::Upstream(UpstreamError::Connect { source, .. }) if is_no_right(source) => {
                Some("Give the role the right: ALTER ROLE ... REPLICATION on the upstream.")
            }
            RelayError::Upstream(UpstreamError::Connect { source, .. }) if is_authentication(source) => Some(
                "Check user and password in --upstream, PGPASSWORD or ~/.pgpass (database \"replication\"), and the \
                 upstream's pg_hba.conf, which needs a line for database \"replication\".",
            ),
            _ => None,
        }
    }
}

fn is_authentication(error: &ConnectError) -> bool {
    match error {
        ConnectError::Server(error) => error.sqlstate.starts_with("28") || error.sqlstate == "42501",
        ConnectError::NoPassword { .. } | ConnectError::Scram(_) => true,
        ConnectError::Both { first, second, .. } => is_authentication(first) || is_authentication(second),
        _ => false,
    }
}

fn is_no_right(error: &ConnectError) -> bool {
    match error {
        ConnectError::Server(error) => error.sqlstate == "42501",
        ConnectError::Both { first, second, .. } => is_no_right(first) || is_no_right(second),
        _ => false,
    }
}
