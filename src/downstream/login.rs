//! From the first byte of a connection to its `ReadyForQuery` (PostgreSQL: `backend_startup.c`, `postinit.c`).

mod authenticate;
mod failures;
mod mock;
mod names;
mod request;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use pgwire::messages::startup::Authentication;

use super::Shared;
use super::activity::{Client, Tls};
use super::local::OWN_DATABASE;
use super::registry::{Full, SessionKind};
use super::session::{Session, SessionContext};
use super::settings::{self, Settings};
use super::sql::SqlSession;
use crate::conninfo::Credentials;
use crate::consumers::ConsumerIdentity;
use crate::gateway::{Attributes, Role};
use crate::moment::Past;
use crate::store::UpstreamParameters;
use crate::wire::startup::{Offers, StartupMessage, StartupPacket};
use crate::wire::{
    Connection, Peer, PgError, Phase, ReadError, ServerTls, Source, TlsSession, messages, sqlstate,
};
use request::Kind;

use authenticate::Authenticated;
pub(super) use authenticate::{Caller, authenticate_with};
pub(super) use failures::Failures;
pub(super) use mock::secret as mock_secret;
pub(super) use request::StartupRequest;

/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// The connection ends before a session begins.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginError {
    /// The client is told why.
    #[error(transparent)]
    Refused(#[from] PgError),
    /// The client speaks version 2 or older and is told in its way.
    #[error("unsupported frontend protocol {0}")]
    Ancient(crate::wire::startup::ProtocolVersion),
    /// Nobody is there to be told, or nobody who would understand.
    #[error(transparent)]
    Unread(#[from] ReadError),
    /// TLS was not agreed upon.
    #[error("could not accept SSL connection: {0}")]
    Handshake(io::Error),
    /// TLS was, but not what is spoken over it.
    #[error("received direct SSL connection request without ALPN protocol negotiation extension")]
    NoAlpn,
    /// The socket failed.
    #[error("could not send data to client: {0}")]
    Unsent(#[from] io::Error),
}

/// What a connection wanted.
pub(super) enum LoggedIn {
    /// A walsender.
    Session(Box<Session>),
    /// SQL, or logical replication.
    Sql(Box<SqlSession>),
    /// To cancel another one; done.
    Cancel,
}

/// Logs a client in; its answer, `ReadyForQuery` included, waits in the connection to be sent in one write.
pub(super) async fn log_in(conn: &mut Connection, shared: &Arc<Shared>) -> Result<LoggedIn, LoginError> {
    let message = match read_startup(conn, shared).await? {
        StartupPacket::Cancel(cancel) => {
            shared.registry.cancel(cancel.pid, &cancel.key);
            shared.gateway.cancel(cancel.pid, &cancel.key).await;
            return Ok(LoggedIn::Cancel);
        }
        StartupPacket::Startup(message) => message,
        StartupPacket::SslRequest | StartupPacket::GssEncRequest => {
            // `read_startup` answers these itself.
            return Err(ReadError::Closed.into());
        }
    };
    let request = read_request(conn, &message)?;
    check_ready(shared, request.kind)?;
    let source = conn.peer().source();
    check_failures(shared, source)?;
    let attempt = shared.failures.attempt(source);
    let Authenticated { credentials, role, in_auth_file } =
        authenticate::authenticate(conn, shared, &request).await?;
    attempt.succeeded();
    check_role(&request, &role, in_auth_file, &shared.store.upstream_parameters())?;
    conn.put(&Authentication::Ok);
    conn.set_phase(Phase::Command);
    Ok(match request.kind {
        Kind::Physical => LoggedIn::Session(Box::new(begin_session(conn, shared, request, credentials)?)),
        Kind::Sql | Kind::Database => {
            LoggedIn::Sql(Box::new(begin_sql(conn, shared, request, credentials, role.attributes)?))
        }
    })
}

/// What the upstream would check when the session begins (PostgreSQL: `InitializeSessionUserId`, `InitPostgres`).
/// Of whom it could never be asked, nobody knows what they may: they receive WAL only by a line of `--auth-file`, not because a
/// rule lets everybody in.
pub(super) fn check_role(
    request: &StartupRequest,
    role: &Role,
    in_auth_file: bool,
    upstream: &UpstreamParameters,
) -> Result<(), PgError> {
    if role.absent {
        let text = format!("role \"{}\" does not exist", request.user);
        return Err(PgError::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text));
    }
    let Some(attributes) = role.attributes else {
        return if request.kind == Kind::Sql || in_auth_file {
            Ok(())
        } else {
            Err(never_known(&request.user))
        };
    };
    if !attributes.can_login {
        let text = format!("role \"{}\" is not permitted to log in", request.user);
        return Err(PgError::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text));
    }
    if request.kind == Kind::Sql || attributes.may_replicate() {
        return Ok(());
    }
    if settings::server_version_num(upstream) < 160_000 {
        let text = "must be superuser or replication role to start walsender";
        return Err(PgError::fatal(sqlstate::INSUFFICIENT_PRIVILEGE, text));
    }
    let text = "permission denied to start WAL sender";
    let detail = "Only roles with the REPLICATION attribute may start a WAL sender process.";
    Err(PgError::fatal(sqlstate::INSUFFICIENT_PRIVILEGE, text).with_detail(detail))
}

fn never_known(user: &str) -> PgError {
    let text = format!("the upstream server cannot be asked for role \"{user}\"");
    PgError::fatal(sqlstate::CANNOT_CONNECT_NOW, text)
        .with_detail("A role that it could never be asked for receives no WAL.")
        .with_hint("Let the relay's role connect to the database --auth-dbname, or give the role a line in --auth-file.")
}

/// The first packet that is no encryption request; each kind of those may be made once (PostgreSQL:
/// `ProcessSSLStartup`, `ProcessStartupPacket`).
async fn read_startup(conn: &mut Connection, shared: &Shared) -> Result<StartupPacket, LoginError> {
    let tls = shared.access.current().tls.clone().filter(|_| conn.peer().ip().is_some());
    let mut offers = Offers { ssl: true, gss_enc: true };
    if let Some(tls) = &tls
        && conn.socket().peek().await.map_err(ReadError::Io)? == Some(TLS_HANDSHAKE)
    {
        direct_tls(conn, tls).await?;
        offers = Offers { ssl: false, gss_enc: false };
    }
    loop {
        match (conn.read_startup(offers).await?, &tls) {
            (StartupPacket::SslRequest, Some(tls)) => {
                requested_tls(conn, tls).await?;
                offers = Offers { ssl: false, gss_enc: false };
                continue;
            }
            (StartupPacket::SslRequest, None) => offers.ssl = false,
            (StartupPacket::GssEncRequest, _) => offers.gss_enc = false,
            (packet, _) => return Ok(packet),
        }
        conn.put_bytes(b"N");
        conn.flush().await?;
    }
}

/// The client begins with its handshake. Without ALPN it might be talking to anybody.
async fn direct_tls(conn: &mut Connection, tls: &ServerTls) -> Result<(), LoginError> {
    conn.accept_tls(tls).await.map_err(LoginError::Handshake)?;
    if conn.tls().is_some_and(TlsSession::has_alpn) { Ok(()) } else { Err(LoginError::NoAlpn) }
}

/// What came before the client knew that it may begin was not encrypted, and somebody on the way may have put it
/// there (CVE-2021-23222).
async fn requested_tls(conn: &mut Connection, tls: &ServerTls) -> Result<(), LoginError> {
    if conn.socket().has_unread() {
        let text = "received unencrypted data after SSL request";
        let detail = "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.";
        return Err(PgError::fatal(sqlstate::PROTOCOL_VIOLATION, text).with_detail(detail).into());
    }
    conn.put_bytes(b"S");
    conn.flush().await?;
    conn.accept_tls(tls).await.map_err(LoginError::Handshake)
}

/// Who has failed too often is not even asked.
pub(super) fn check_failures(shared: &Shared, source: Option<Source>) -> Result<(), PgError> {
    if source.is_none_or(|source| shared.failures.permit(source, Instant::now())) {
        return Ok(());
    }
    let text = "too many failed logins from this address";
    Err(PgError::fatal(sqlstate::TOO_MANY_CONNECTIONS, text).with_hint("Try again in a few seconds."))
}

fn read_request(conn: &mut Connection, message: &StartupMessage) -> Result<StartupRequest, LoginError> {
    if message.version.major != 3 {
        // PG: clients older than version 3 get an error they can read, except for what is no version at all.
        return match message.version.major {
            1 | 2 => Err(LoginError::Ancient(message.version)),
            _ => Err(unsupported_protocol(message).into()),
        };
    }
    let request = StartupRequest::read(message)?;
    if message.version.minor > 0 || !request.unknown_extensions.is_empty() {
        conn.put(&messages::negotiate_protocol_version(request.unknown_extensions.clone()));
    }
    if request.user.is_empty() {
        let text = "no PostgreSQL user name specified in startup packet";
        return Err(PgError::fatal(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION, text).into());
    }
    Ok(request)
}

fn unsupported_protocol(message: &StartupMessage) -> PgError {
    let text = format!("unsupported frontend protocol {}: server supports 3.0 to 3.0", message.version);
    PgError::fatal(sqlstate::FEATURE_NOT_SUPPORTED, text)
}

/// The error of a server that speaks version 2: no length word, no fields.
pub(super) fn ancient_error(version: crate::wire::startup::ProtocolVersion) -> Vec<u8> {
    format!("EFATAL:  unsupported frontend protocol {version}: server supports 3.0 to 3.0\n\0").into_bytes()
}

fn check_ready(shared: &Shared, kind: Kind) -> Result<(), PgError> {
    let not_now = |text: &str| Err(PgError::fatal(sqlstate::CANNOT_CONNECT_NOW, text));
    if shared.shutdown.is_cancelled() {
        return not_now("the database system is shutting down");
    }
    if kind != Kind::Physical {
        return Ok(());
    }
    if shared.store.identity().is_none() || shared.store.tip().is_none() {
        return not_now("the database system is starting up");
    }
    Ok(())
}

fn begin_session(
    conn: &mut Connection,
    shared: &Arc<Shared>,
    request: StartupRequest,
    credentials: Credentials,
) -> Result<Session, LoginError> {
    let mut key = [0; 4];
    getrandom::fill(&mut key).map_err(|error| {
        PgError::fatal(sqlstate::INTERNAL_ERROR, format!("could not generate random cancel key: {error}"))
    })?;
    let registration = shared.registry.register(SessionKind::Walsender, &request.user, key);
    let registration = registration.map_err(|full| too_many(full, shared))?;
    let upstream = shared.store.upstream_parameters();
    let settings = request.settings(&upstream)?;
    for (name, value) in reported(&request.user, &settings, &upstream) {
        conn.put(&messages::parameter_status(&name, &value));
    }
    conn.put(&messages::backend_key_data(registration.pid, registration.key));
    conn.put(&messages::ready_for_query());
    let application_name = settings.get("application_name").unwrap_or_default().to_owned();
    let client = client(conn, None, &application_name);
    let backend_start = client.started_at;
    registration.tell(client);
    let consumer = shared.store.consumers().register(ConsumerIdentity {
        pid: registration.pid,
        user: request.user.clone(),
        application_name: application_name.clone(),
        client_addr: conn.peer().address(),
        backend_start,
    });
    let rules = shared.config.rules.current();
    let context = SessionContext {
        pid: registration.pid,
        user: request.user,
        application_name,
        peer: conn.peer(),
        wal_sender_timeout: settings.wal_sender_timeout().unwrap_or(rules.wal_sender_timeout),
        shutdown_timeout: settings
            .wal_sender_shutdown_timeout()
            .map_or(rules.shutdown_timeout, |limit| limit.min(rules.shutdown_timeout)),
        cancel: registration.cancel.clone(),
        shutdown: shared.shutdown.clone(),
        store: shared.store.clone(),
        recall: shared.config.recall.clone(),
        received_from: shared.received_from,
        descriptors: shared.config.descriptors.clone(),
        live: shared.live.clone(),
        consumer,
    };
    Ok(Session::new(context, registration, settings, credentials, shared.clone()))
}

/// What is shown of a connection.
fn client(conn: &Connection, database: Option<String>, application_name: &str) -> Client {
    Client {
        database,
        application_name: application_name.to_owned(),
        peer: conn.peer(),
        started_at: Past::now(),
        tls: conn.tls().map(Tls::of),
    }
}

/// Whoever runs as the relay's own system user, or as root, could read all of its memory.
fn is_owner(peer: Peer) -> bool {
    let Peer::Local { uid: Some(uid) } = peer else { return false };
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn begin_sql(
    conn: &Connection,
    shared: &Arc<Shared>,
    request: StartupRequest,
    credentials: Credentials,
    attributes: Option<Attributes>,
) -> Result<SqlSession, LoginError> {
    let kind = match (request.kind, attributes) {
        // PG: as many as max_wal_senders allows, physical ones included.
        (Kind::Database, _) => SessionKind::Logical,
        (_, Some(Attributes { superuser: true, .. })) => SessionKind::Superuser,
        _ if request.database == OWN_DATABASE => SessionKind::Console,
        _ => SessionKind::Sql,
    };
    let registration = shared.registry.register(kind, &request.user, [0; 4]);
    let registration = registration.map_err(|full| too_many(full, shared))?;
    let upstream = shared.store.upstream_parameters();
    let settings = request.settings(&upstream);
    let name = settings.as_ref().ok().and_then(|settings| settings.get("application_name"));
    registration.tell(client(conn, Some(request.database.clone()), name.unwrap_or_default()));
    Ok(SqlSession {
        reported: reported(&request.user, settings.as_ref().unwrap_or(&Settings::default()), &upstream),
        settings,
        parameters: request.for_upstream(),
        user: request.user,
        database: request.database,
        is_logical: request.kind == Kind::Database,
        credentials,
        attributes,
        is_owner: is_owner(conn.peer()),
        shared: shared.clone(),
        registration,
    })
}

/// What a client is told for whom there is no file descriptor.
pub(super) fn no_descriptors() -> PgError {
    PgError::fatal(sqlstate::TOO_MANY_CONNECTIONS, Full::Connections.to_string())
}

fn too_many(full: Full, shared: &Shared) -> PgError {
    let text = match full {
        Full::Reserved if settings::server_version_num(&shared.store.upstream_parameters()) < 160_000 => {
            "remaining connection slots are reserved for non-replication superuser connections".to_owned()
        }
        full => full.to_string(),
    };
    PgError::fatal(sqlstate::TOO_MANY_CONNECTIONS, text)
}

/// What the server reports of itself: the upstream's values, except those that belong to the session.
fn reported(user: &str, settings: &Settings, upstream: &UpstreamParameters) -> Vec<(String, String)> {
    /// Every client of PostgreSQL's family works with these, should the upstream not have told.
    const DEFAULTS: &[(&str, &str)] = &[
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("server_encoding", "SQL_ASCII"),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "GMT"),
    ];
    let session = [
        ("application_name", ""),
        ("client_encoding", "SQL_ASCII"),
        ("session_authorization", user),
        ("is_superuser", "off"),
    ];
    let is_session = |name: &str| session.iter().any(|(own, _)| *own == name);
    let mut all: Vec<(String, String)> =
        upstream.status.iter().filter(|(name, _)| !is_session(name)).cloned().collect();
    for (name, value) in DEFAULTS.iter().copied().chain(session) {
        if !all.iter().any(|(known, _)| known == name) {
            all.push((name.to_owned(), value.to_owned()));
        }
    }
    for (name, value) in &mut all {
        if let Some(chosen) = settings.get(name) {
            chosen.clone_into(value);
        }
    }
    all
}

impl StartupRequest {
    /// The same request for the upstream, without the user.
    fn for_upstream(&self) -> Vec<(String, Vec<u8>)> {
        let mut parameters = vec![("database".to_owned(), self.database_bytes.clone())];
        if self.kind == Kind::Database {
            parameters.push(("replication".to_owned(), b"database".to_vec()));
        }
        if !self.options.is_empty() {
            parameters.push(("options".to_owned(), self.options.clone()));
        }
        parameters.extend(self.parameters.iter().cloned());
        parameters
    }

    /// The settings of `options`, then those given by name, as the server applies them.
    fn settings(&self, upstream: &UpstreamParameters) -> Result<Settings, PgError> {
        let mut settings = Settings::default();
        for (name, value) in settings::options(&self.options)?.iter().chain(&self.parameters) {
            settings.set(name, value, upstream)?;
        }
        Ok(settings)
    }
}
