//! The consumers' side: a listener, and for each connection a walsender as PostgreSQL's clients know it.
//!
//! ```text
//! listener ── socket ──> login ── SessionContext ──> session ── START_REPLICATION ──> walsender
//!                          │                            │
//!                      Access (hba, users)          answers (everything else)
//! ```
//!
//! A connection is one task. It lives in the [`Registry`] from the end of its login to its own end, and is
//! cancelled through it. Stopping: idle sessions end at once, streaming ones when their consumer has everything;
//! who connects meanwhile is told that the server is shutting down.

mod activity;
mod admin;
mod answers;
mod backup;
mod batch;
mod commands;
mod doorkeeper;
mod exchange;
mod fence;
mod forward;
mod listener;
mod live;
mod local;
mod login;
mod orders;
mod own;
mod parting;
mod patience;
mod pending;
mod registry;
mod repeats;
mod rules;
mod session;
mod settings;
mod shown;
mod sql;
mod tasks;
mod unix;
mod walsender;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use tokio_util::sync::CancellationToken;
use walrelay_proto::Lsn;

use crate::archive::Recall;
use crate::auth::hba::{Hba, Idents};
use crate::auth::scram::server::MockSecret;
use crate::auth::users::Users;
use crate::counts::SessionCounts;
use crate::descriptors::Descriptors;
use crate::gateway::Gateway;
use crate::lane::Lane;
use crate::restart::Successor;
use crate::sockets::Sockets;
use crate::status::Sources;
use crate::store::Store;
use crate::wire::ServerTls;
use live::Live;
use login::Failures;
use repeats::Repeats;

pub use doorkeeper::{Doorkeeper, Visitor};
pub use listener::{BoundAddr, Downstream, ListenError, ServeError};
pub use pending::{Pending, Place};
pub use registry::{Cancel, Limits, Registry};
pub use rules::{Logged, SessionRules, SharedRules};
pub use session::{SessionContext, StreamEnd, StreamError};

/// What the consumers' side needs to know; nothing of it changes while it runs.
#[derive(Clone, Debug)]
pub struct DownstreamConfig {
    /// Where to listen, at least one.
    pub listen: Vec<ListenAddr>,
    /// What holds for new connections.
    pub rules: Arc<SharedRules>,
    /// Where WAL comes from that is not in the store any more; `None` without an archive.
    pub recall: Option<Arc<Recall>>,
    /// What the relay is called upstream, and in `synchronous_standby_names` there.
    pub application_name: String,
    /// Who may have a file descriptor.
    pub descriptors: Arc<Descriptors>,
    /// What has become of connections.
    pub counts: Arc<SessionCounts>,
    /// What there is to see of the relay; `None` where nobody looks.
    pub status: Option<Arc<Sources>>,
    /// Listening sockets that were passed to this process, and those that the next one gets.
    pub sockets: Arc<Sockets>,
    /// Who takes over when an administrator says so.
    pub successor: Arc<Successor>,
}

/// A place to listen at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListenAddr {
    /// TCP: an address or host name, or `*` for every address; port 0 takes a free one.
    Tcp {
        /// Without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A directory for the Unix-domain socket `.s.PGSQL.<port>`.
    Unix {
        /// The directory, which must exist.
        dir: PathBuf,
        /// Number in the socket's name; `None` takes the first TCP address's, or 5432.
        port: Option<u16>,
    },
}

/// A `--listen` value that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\": expected ADDRESS:PORT, [IPv6]:PORT, *:PORT or an absolute directory, perhaps with :PORT")]
pub struct ParseListenAddrError(String);

impl ListenAddr {
    /// As it was given.
    pub fn port(&self) -> Option<u16> {
        match self {
            ListenAddr::Tcp { port, .. } => Some(*port),
            ListenAddr::Unix { port, .. } => *port,
        }
    }
}

/// As it is typed.
impl std::fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenAddr::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            ListenAddr::Tcp { host, port } => write!(f, "{host}:{port}"),
            ListenAddr::Unix { dir, port: Some(port) } => write!(f, "{}:{port}", dir.display()),
            ListenAddr::Unix { dir, port: None } => write!(f, "{}", dir.display()),
        }
    }
}

impl std::str::FromStr for ListenAddr {
    type Err = ParseListenAddrError;

    fn from_str(text: &str) -> Result<ListenAddr, ParseListenAddrError> {
        let bad = || ParseListenAddrError(text.to_owned());
        let with_port =
            text.rsplit_once(':').and_then(|(place, port)| Some((place, port.parse::<u16>().ok()?)));
        if text.starts_with('/') {
            let (dir, port) = with_port.map_or((text, None), |(dir, port)| (dir, Some(port)));
            return Ok(ListenAddr::Unix { dir: dir.into(), port });
        }
        let (host, port) = with_port.ok_or_else(bad)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(bad)?,
            None if host.contains(':') => return Err(bad()),
            None => host,
        };
        if host.is_empty() {
            return Err(bad());
        }
        Ok(ListenAddr::Tcp { host: host.to_owned(), port })
    }
}

/// Who may log in and how, and who may fence.
#[derive(Debug)]
pub struct Access {
    /// `--hba-file`, or the built-in rules.
    pub hba: Hba,
    /// `--auth-file`, or nobody.
    pub users: Users,
    /// `--ident-file`, or no maps.
    pub idents: Idents,
    /// `--admin-role`: who may fence the relay, besides superusers.
    pub admin_roles: Vec<String>,
    /// `--monitor-role`: who may see everything, besides members of `pg_monitor`.
    pub monitor_roles: Vec<String>,
    /// TLS for clients; `None` if it is off.
    pub tls: Option<ServerTls>,
}

/// [`Access`] that can be replaced while connections come in (SIGHUP). Who is logged in stays.
#[derive(Debug)]
pub struct SharedAccess(RwLock<Arc<Access>>);

impl SharedAccess {
    /// Rules to begin with.
    pub fn new(access: Access) -> SharedAccess {
        SharedAccess(RwLock::new(Arc::new(access)))
    }

    /// Rules for the connections that come from now on.
    pub fn replace(&self, access: Access) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(access);
    }

    /// Those that hold now.
    pub fn current(&self) -> Arc<Access> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What all connections share.
struct Shared {
    config: DownstreamConfig,
    access: Arc<SharedAccess>,
    store: Arc<Store>,
    live: Arc<Live>,
    registry: Arc<Registry>,
    gateway: Arc<Gateway>,
    mock: MockSecret,
    failures: Failures,
    /// What clients have provoked in the log.
    repeats: Repeats,
    /// Threads for what the fence has the disk do.
    fence_lane: Lane,
    /// Where the WAL ended when this process began to listen.
    received_from: Lsn,
    shutdown: CancellationToken,
}

impl Shared {
    /// What the log tells, as it was changed last.
    fn logged(&self) -> Logged {
        self.config.rules.current().logged
    }
}

#[cfg(test)]
pub(crate) mod tests;
