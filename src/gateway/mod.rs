//! The server that the relay follows, for everything that is not WAL: who its roles are, SQL sessions in their
//! names, base backups, cancel requests.
//!
//! WAL never comes this way; it goes through the store. Nothing here is shared between two clients: each session
//! has an upstream connection of its own, which ends with it.

mod cancel;
mod roles;
mod scan;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::conninfo::{ConnInfo, Credentials, HostSpec, TargetSessionAttrs};
use crate::pg::{ConnectError, UpstreamConnection, connect};
use crate::rate::RateLimit;
use crate::store::Store;
use crate::upstream::{Followed, Return};
use crate::wire::{PgError, sqlstate};

pub use cancel::{CancelKey, Cancellable};
pub use roles::{Attributes, DEFAULT_AUTH_QUERY, Role, Roles};
pub use scan::{Scan, Scanner};

/// Time a login upstream may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// How long an attempt to follow a server is waited for, where none is followed.
const REACH_LIMIT: Duration = Duration::from_secs(3);

/// What the gateway is made from.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// `--upstream`.
    pub conninfo: ConnInfo,
    /// `--auth-query`; `None` if secrets are not asked for.
    pub auth_query: Option<String>,
    /// `--auth-dbname`: where the relay's own SQL runs.
    pub auth_dbname: String,
    /// `--base-backup-max-rate`, bytes per second over all backups; `None` for no limit.
    pub base_backup_max_rate: Option<u64>,
}

/// The way to the upstream server.
#[derive(Debug)]
pub struct Gateway {
    info: ConnInfo,
    followed: Followed,
    roles: Roles,
    running: cancel::Running,
    backup_rate: RateLimit,
}

/// More than any line has.
const NO_LIMIT: u64 = u64::MAX;

/// There is no session upstream.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No server is followed, and none could be just now.
    #[error("the upstream server cannot be reached")]
    Down,
    /// The server is there and this is what came of it.
    #[error("{0}")]
    Connect(ConnectError),
}

impl Gateway {
    /// `followed` tells which server WAL comes from.
    pub fn new(config: GatewayConfig, followed: Followed, store: Arc<Store>) -> Gateway {
        let sql = config.conninfo.for_sql(&config.auth_dbname);
        Gateway {
            roles: Roles::new(sql, config.auth_query, followed.clone(), store),
            info: config.conninfo,
            followed,
            running: cancel::Running::default(),
            backup_rate: RateLimit::new(config.base_backup_max_rate.unwrap_or(NO_LIMIT)),
        }
    }

    /// The server WAL comes from, if it can be reached.
    pub fn host(&self) -> Option<HostSpec> {
        self.followed.host()
    }

    /// Waits for the server that could not be reached with this error.
    pub fn next_return(&self, error: &OpenError) -> Return {
        self.followed.next_return(matches!(error, OpenError::Down))
    }

    /// What is known of the upstream's roles.
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// `--base-backup-max-rate`.
    pub fn backup_rate(&self) -> &RateLimit {
        &self.backup_rate
    }

    /// Changes it, for backups that run as well.
    pub fn set_backup_rate(&self, bytes_per_second: Option<u64>) {
        self.backup_rate.set(bytes_per_second.unwrap_or(NO_LIMIT));
    }

    /// Logs in at the followed server as `user`. `parameters` are those of the start-up message, `user` not among
    /// them. As long as the second value lives, clients may have the session cancelled; there is none if the server
    /// gave no key.
    ///
    /// # Errors
    /// [`OpenError::client_error`] says it to the client.
    pub async fn open(
        &self,
        user: &str,
        credentials: &Credentials,
        parameters: Vec<(String, Vec<u8>)>,
    ) -> Result<(UpstreamConnection, Option<Cancellable>), OpenError> {
        self.open_with(&self.info.in_the_name_of(user, credentials, parameters)).await
    }

    /// Logs in at the followed server as the relay's own role, for a physical replication connection.
    ///
    /// # Errors
    /// As [`Gateway::open`].
    pub async fn open_own(&self) -> Result<(UpstreamConnection, Option<Cancellable>), OpenError> {
        self.open_with(&ConnInfo { target_session_attrs: TargetSessionAttrs::Any, ..self.info.clone() }).await
    }

    async fn open_with(
        &self,
        info: &ConnInfo,
    ) -> Result<(UpstreamConnection, Option<Cancellable>), OpenError> {
        let host = self.followed.reach(REACH_LIMIT).await.ok_or(OpenError::Down)?;
        let connection = connect(info, &host, Instant::now() + CONNECT_LIMIT).await;
        let connection = connection.map_err(OpenError::Connect)?;
        let cancellable = self.cancellable(&connection, host);
        Ok((connection, cancellable))
    }
}

impl OpenError {
    /// Whether the server could not be reached at all, as opposed to: it said no.
    pub fn is_outage(&self) -> bool {
        match self {
            OpenError::Down => true,
            OpenError::Connect(error) => is_outage(error),
        }
    }

    /// Whether what we have to log in with is not what the server wants.
    pub fn is_about_credentials(&self) -> bool {
        match self {
            OpenError::Down => false,
            OpenError::Connect(error) => is_about_credentials(error),
        }
    }

    /// What the client is told. An answer of the server is passed on as it is.
    pub fn client_error(&self, user: &str, credentials: &Credentials) -> PgError {
        let OpenError::Connect(error) = self else {
            return PgError::fatal(sqlstate::CANNOT_CONNECT_NOW, self.to_string())
                .with_hint("WAL and replication commands are served as before; try again later.");
        };
        if is_about_credentials(error) {
            let text = format!("could not log in to the upstream server as user \"{user}\": {error}");
            return PgError::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text)
                .with_hint(credentials_hint(credentials));
        }
        match server_answer(error) {
            Some(answer) => {
                let mut told = PgError::fatal(answer.sqlstate.clone(), answer.message.clone());
                (told.detail, told.hint) = (answer.detail.clone(), answer.hint.clone());
                told
            }
            None => PgError::fatal(
                sqlstate::CONNECTION_FAILURE,
                format!("could not connect to the upstream server: {error}"),
            ),
        }
    }
}

fn server_answer(error: &ConnectError) -> Option<&crate::pg::ServerError> {
    match error {
        ConnectError::Server(answer) => Some(answer),
        ConnectError::Both { first, second, .. } => server_answer(second).or_else(|| server_answer(first)),
        _ => None,
    }
}

fn is_outage(error: &ConnectError) -> bool {
    match error {
        ConnectError::Server(answer) => answer.sqlstate == sqlstate::CANNOT_CONNECT_NOW,
        ConnectError::Both { first, second, .. } => is_outage(first) && is_outage(second),
        ConnectError::Resolve { .. }
        | ConnectError::Socket { .. }
        | ConnectError::Timeout { .. }
        | ConnectError::Io(_)
        | ConnectError::Unread { .. }
        | ConnectError::Closed => true,
        _ => false,
    }
}

fn is_about_credentials(error: &ConnectError) -> bool {
    match error {
        ConnectError::Server(answer) => answer.sqlstate == sqlstate::INVALID_PASSWORD,
        ConnectError::NoPassword { .. } | ConnectError::Scram(_) => true,
        ConnectError::Both { first, second, .. } => {
            is_about_credentials(first) || is_about_credentials(second)
        }
        _ => false,
    }
}

/// When forwarding a login works is told in docs/AUTHENTICATION.md.
fn credentials_hint(credentials: &Credentials) -> &'static str {
    match credentials {
        Credentials::None => {
            "The login here left no password to use there: have the client authenticate with scram-sha-256, or let \
             the upstream trust the relay's address for this role."
        }
        Credentials::Password(_) => "The password given here is not the one the upstream knows.",
        Credentials::Md5(_) => {
            "The MD5 hash stored here is good only if the upstream stores the same and asks for md5."
        }
        Credentials::Scram(_) => {
            "The SCRAM secret stored here must be the very one of the upstream's pg_authid; --auth-query fetches it."
        }
    }
}
