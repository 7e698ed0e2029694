//! Accepts connections and gives each its task.
//!
//! The loop never waits for one client: who is refused gets what its socket takes at once. After an error of accept it
//! pauses, and goes on looking after its tasks and the stop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use walrelay_proto::Lsn;

use super::doorkeeper::Doorkeeper;
use super::live::{Live, PASSES};
use super::login::{self, Failures, LoggedIn, LoginError};
use super::parting;
use super::pending::{Pending, Place};
use super::registry::Registry;
use super::repeats::Repeats;
use super::sql::SqlSession;
use super::tasks::Tasks;
use super::unix::{self, BoundUnix};
use super::{DownstreamConfig, ListenAddr, Shared, SharedAccess};
use crate::counts::Refused;
use crate::descriptors::Repeated;
use crate::gateway::Gateway;
use crate::parts::{self, PartEnded};
use crate::permissions::socket_dir_problem;
use crate::sockets::{For, Sockets};
use crate::store::Store;
use crate::wire::{Connection, PgError, ReadError, Socket, sqlstate};

/// Port when nothing names one.
const DEFAULT_PORT: u16 = 5432;
/// Connections that are not logged in: logins under way, cancel requests, those turned away.
const LOGINS: usize = 256;
/// Pause when the system cannot give a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the last good-byes may take at the end; a session that is told to end while its client does not read takes
/// a second.
const FAREWELL: Duration = Duration::from_millis(1500);

/// The relay cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address cannot be used.
    #[error("could not listen on {address}: {source}")]
    Bind {
        /// As it was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The operating system gave no random bytes.
    #[error("could not generate random bytes: {0}")]
    Random(getrandom::Error),
}

/// The relay cannot listen any more. It has not been told to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listening socket is of no more use.
    #[error("could not accept connections any more: {0}")]
    Accept(io::Error),
    /// What sends live WAL is gone.
    #[error(transparent)]
    Lost(#[from] PartEnded),
}

/// Where the relay listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BoundAddr {
    /// An address and port.
    Tcp(SocketAddr),
    /// A socket's path.
    Unix(PathBuf),
}

impl std::fmt::Display for BoundAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BoundAddr::Tcp(address) => address.fmt(f),
            BoundAddr::Unix(path) => path.display().fmt(f),
        }
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(BoundUnix),
}

/// The consumers' side, listening. [`Downstream::run`] serves until it is told to stop.
pub struct Downstream {
    listeners: Vec<Listener>,
    pending: Arc<Pending>,
    shared: Arc<Shared>,
}

impl Downstream {
    /// Binds all addresses. Clients may connect from now on; they are answered once [`Downstream::run`] runs.
    pub async fn bind(
        config: DownstreamConfig,
        access: Arc<SharedAccess>,
        store: Arc<Store>,
        gateway: Arc<Gateway>,
        shutdown: CancellationToken,
    ) -> Result<Downstream, ListenError> {
        let mut listeners = Vec::new();
        let mut first_port = None;
        for address in &config.listen {
            if let ListenAddr::Tcp { host, port } = address {
                listeners.extend(bind_tcp(host, *port, &config.sockets).await?);
            }
            first_port = first_port.or_else(|| listeners.first().and_then(tcp_port));
        }
        for address in &config.listen {
            if let ListenAddr::Unix { dir, port } = address {
                let port = port.or(first_port).unwrap_or(DEFAULT_PORT);
                if let Some(problem) = socket_dir_problem(dir) {
                    tracing::warn!(
                        "directory \"{}\" {problem}: somebody else may put their socket in the place of the relay's, and be \
                         told passwords; listen in a directory of the relay's user",
                        dir.display()
                    );
                }
                let bound = unix::bind(dir, port, &config.sockets);
                let address = dir.display().to_string();
                listeners
                    .push(Listener::Unix(bound.map_err(|source| ListenError::Bind { address, source })?));
            }
        }
        let registry = Arc::new(Registry::new(config.rules.clone()));
        let mock = login::mock_secret(&store).map_err(ListenError::Random)?;
        let failures = Failures::new(config.rules.clone());
        let pending =
            Arc::new(Pending::new(room_for_logins(config.descriptors.for_clients()), "that do not log in"));
        let received_from = store.written().borrow().map_or(Lsn::INVALID, |position| position.lsn);
        let live = Arc::new(Live::default());
        store.seat(&live);
        let shared = Shared {
            config,
            access,
            store,
            live,
            registry,
            gateway,
            mock,
            failures,
            repeats: Repeats::default(),
            fence_lane: super::fence::lane(),
            received_from,
            shutdown,
        };
        Ok(Downstream { listeners, pending, shared: Arc::new(shared) })
    }

    /// Where it listens, TCP first.
    pub fn addresses(&self) -> Vec<BoundAddr> {
        let address = |listener: &Listener| match listener {
            Listener::Tcp(tcp) => tcp.local_addr().ok().map(BoundAddr::Tcp),
            Listener::Unix(unix) => Some(BoundAddr::Unix(unix.path.clone())),
        };
        self.listeners.iter().filter_map(address).collect()
    }

    /// Who lets in those that ask for the relay's own database in another way.
    ///
    /// # Errors
    /// The operating system gave no random bytes.
    pub fn doorkeeper(&self) -> Result<Doorkeeper, ListenError> {
        Doorkeeper::new(self.shared.clone()).map_err(ListenError::Random)
    }

    /// Who is connected.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.shared.registry
    }

    /// Serves connections until the shutdown token is cancelled and every session has ended, for which there is
    /// `--shutdown-timeout`; meanwhile newcomers are told so, or wait where the sockets stay open for the next process. Sessions that have not ended then are cut. Dropping the
    /// future closes all connections at once.
    ///
    /// # Errors
    /// The relay cannot listen any more although it was not told to stop. All connections are closed then.
    pub async fn run(self) -> Result<(), ServeError> {
        let mut tasks = Tasks::default();
        let mut passes = parts::Tasks::default();
        for number in 0..PASSES {
            let (live, store) = (self.shared.live.clone(), self.shared.store.clone());
            passes.spawn("sender of live WAL", live.pass(number, store));
        }
        let mut door = Door::default();
        let mut stop_by: Option<Instant> = None;
        while !(stop_by.is_some() && self.shared.registry.is_empty()) {
            tokio::select! {
                accepted = accept(&self.listeners, door.turn),
                    if door.closed_until.is_none() && !(stop_by.is_some() && self.shared.config.sockets.will_stay()) =>
                {
                    door.turn = door.turn.wrapping_add(1);
                    match accepted {
                        Ok(socket) => self.admit(socket, &mut tasks),
                        Err(error) => door.close_for_a_moment(error)?,
                    }
                }
                () = sleep_until(door.closed_until) => door.closed_until = None,
                () = tasks.one_ended() => {}
                lost = passes.lost() => return Err(lost.into()),
                () = self.shared.shutdown.cancelled(), if stop_by.is_none() => {
                    stop_by = Some(Instant::now() + self.shared.config.rules.current().shutdown_timeout);
                }
                () = sleep_until(stop_by) => break,
            }
        }
        // Sessions have given up their places; some still say good-bye. Logins that hang are not waited for.
        let _ = tokio::time::timeout(FAREWELL, tasks.all_ended()).await;
        for (pid, user) in self.shared.registry.sessions() {
            tracing::warn!(pid, user, "closing a connection that did not end within --shutdown-timeout");
        }
        Ok(())
    }

    fn admit(&self, socket: Socket, tasks: &mut Tasks) {
        self.shared.config.counts.accepted.note();
        if !self.shared.config.descriptors.permit(&socket) {
            return self.refuse(&socket);
        }
        let Ok(conn) = Connection::new(socket) else { return };
        let peer = conn.peer();
        let place = self.pending.admit(peer.source());
        tasks.spawn(peer, serve(conn, place, self.shared.clone()));
    }

    /// The last descriptors are the relay's own. Whoever only holds one open makes room for the next client.
    fn refuse(&self, socket: &Socket) {
        self.shared.config.counts.refused.note(Refused::TooMany);
        self.shared.config.descriptors.tell_refusal();
        self.pending.drop_one();
        let error = login::no_descriptors().encoded();
        // A new socket takes this much, or the client has gone.
        let _ = socket.try_write_vectored(&[io::IoSlice::new(&error)]);
    }
}

/// Where connections come in.
#[derive(Default)]
struct Door {
    /// Which listener is asked first.
    turn: usize,
    /// Accept has failed: nobody is let in until then.
    closed_until: Option<Instant>,
    failed: Repeated,
}

impl Door {
    /// Most errors pass: no descriptors or memory at the moment, a client that has gone already. Trying again at once
    /// would be a busy loop.
    fn close_for_a_moment(&mut self, error: io::Error) -> Result<(), ServeError> {
        use rustix::io::Errno;
        let errno = Errno::from_io_error(&error);
        if matches!(errno, Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP)) {
            return Err(ServeError::Accept(error));
        }
        let now = Instant::now();
        self.closed_until = Some(now + ACCEPT_PAUSE);
        if let Some(count) = self.failed.note(now) {
            tracing::warn!(count, "could not accept connection: {error}");
        }
        Ok(())
    }
}

/// Connections that only hold a descriptor never take more than a part of those that clients may have.
fn room_for_logins(descriptors: u64) -> usize {
    usize::try_from(descriptors / 4).unwrap_or(LOGINS).clamp(4, LOGINS)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn tcp_port(listener: &Listener) -> Option<u16> {
    match listener {
        Listener::Tcp(tcp) => tcp.local_addr().ok().map(|address| address.port()),
        Listener::Unix(_) => None,
    }
}

/// One listener for each address of a host; at least one must work (PostgreSQL: `ListenServerPort`).
async fn bind_tcp(host: &str, port: u16, sockets: &Sockets) -> Result<Vec<Listener>, ListenError> {
    let failed = |source| ListenError::Bind { address: format!("{host}:{port}"), source };
    let addresses = match host {
        "*" => vec![SocketAddr::from(([0_u16; 8], port)), SocketAddr::from(([0_u8; 4], port))],
        _ => tokio::net::lookup_host((host, port)).await.map_err(failed)?.collect(),
    };
    let mut listeners = Vec::new();
    let mut last_error = None;
    for address in addresses {
        match listen_or_take(address, sockets) {
            Ok(listener) => listeners.push(Listener::Tcp(listener)),
            Err(error) => last_error = Some(error),
        }
    }
    match last_error {
        Some(error) if listeners.is_empty() => Err(failed(error)),
        _ => Ok(listeners),
    }
}

/// At a socket that was passed to this process, or one of our own.
fn listen_or_take(address: SocketAddr, sockets: &Sockets) -> io::Result<TcpListener> {
    let (listener, given) = match sockets.take_tcp(For::Consumers, address) {
        Some(given) => {
            let (listener, name) = given.into_parts();
            (TcpListener::from_std(listener)?, name)
        }
        None => (listen(address)?, None),
    };
    sockets.note(For::Consumers, &listener, &listener.local_addr()?.to_string(), given)?;
    Ok(listener)
}

/// IPv6 sockets take IPv6 only, so that `*` can have both families, as in PostgreSQL.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 1024)?;
    TcpListener::from_std(socket.into())
}

/// The next connection of any listener, beginning with the one at `first`, so that a flood at one does not hide the
/// others. Cancel-safe.
async fn accept(listeners: &[Listener], first: usize) -> io::Result<Socket> {
    std::future::poll_fn(|cx| {
        for listener in listeners.iter().cycle().skip(first % listeners.len()).take(listeners.len()) {
            let accepted = match listener {
                Listener::Tcp(tcp) => tcp.poll_accept(cx).map_ok(|(socket, _)| Socket::from(socket)),
                Listener::Unix(unix) => {
                    unix.listener.poll_accept(cx).map_ok(|(socket, _)| Socket::from(socket))
                }
            };
            if accepted.is_ready() {
                return accepted;
            }
        }
        std::task::Poll::Pending
    })
    .await
}

async fn serve(conn: Connection, place: Place, shared: Arc<Shared>) {
    let peer = conn.peer();
    let logged_in = tokio::select! {
        logged_in = authenticate(conn, &shared) => logged_in,
        () = place.dropped.cancelled() => {
            shared.config.counts.refused.note(Refused::Dropped);
            return tracing::debug!(%peer, "connection dropped");
        }
    };
    let (conn, session) = match logged_in {
        None | Some((_, LoggedIn::Cancel)) => return,
        Some((conn, LoggedIn::Session(session))) => (conn, session),
        Some((conn, LoggedIn::Sql(sql))) => {
            drop(place);
            shared.config.counts.sql.note();
            serve_sql(conn, *sql, &shared).await;
            return shared.config.counts.sql_ended.note();
        }
    };
    drop(place);
    shared.config.counts.replication.note();
    let (pid, user) = (session.context().pid, session.context().user.clone());
    let name = session.context().application_name.clone();
    if shared.logged().connections {
        tracing::info!(pid, %peer, user, application_name = name, "replication connection authorized");
    }
    let parting = session.run(conn).await;
    shared.config.counts.ended.note(parting.cause);
    if shared.logged().disconnections || !parting.is_in_order() {
        tracing::info!(pid, %peer, user, application_name = name, "disconnection: {parting}");
    }
}

/// Logs in; `None` if the client was turned away.
async fn authenticate(mut conn: Connection, shared: &Arc<Shared>) -> Option<(Connection, LoggedIn)> {
    if let Err(error) = set_options(conn.socket()) {
        tracing::debug!("could not set socket options: {error}");
    }
    match log_in(&mut conn, shared).await {
        Ok(logged_in) => Some((conn, logged_in)),
        Err(error) => {
            parting::refused(&error).into_iter().for_each(|cause| shared.config.counts.refused.note(cause));
            turn_away(conn, error, &shared.repeats).await;
            None
        }
    }
}

async fn log_in(conn: &mut Connection, shared: &Arc<Shared>) -> Result<LoggedIn, LoginError> {
    let limit = shared.config.rules.current().authentication_timeout;
    let timely = tokio::time::timeout(limit, login::log_in(conn, shared)).await;
    timely.unwrap_or_else(|_| {
        let text = "canceling authentication due to timeout";
        Err(PgError::fatal(sqlstate::QUERY_CANCELED, text).into())
    })
}

async fn serve_sql(conn: Connection, session: SqlSession, shared: &Shared) {
    let (peer, user, database) = (conn.peer(), session.user.clone(), session.database.clone());
    if shared.logged().connections {
        tracing::info!(%peer, user, database, "connection authorized");
    }
    let reason = session.run(conn).await;
    if shared.logged().disconnections || !parting::is_in_order(&reason) {
        tracing::info!(%peer, user, database, "disconnection: {reason}");
    }
}

fn set_options(socket: &Socket) -> io::Result<()> {
    let Some(socket) = socket.tcp() else { return Ok(()) };
    socket.set_nodelay(true)?;
    // An idle client that vanished would keep its place for ever.
    Ok(rustix::net::sockopt::set_socket_keepalive(socket, true)?)
}

async fn turn_away(mut conn: Connection, error: LoginError, repeats: &Repeats) {
    let peer = conn.peer();
    let refused =
        |sqlstate: Option<&str>, reason: &str| match repeats.note(peer.source(), reason, Instant::now()) {
            Some(count) => tracing::info!(%peer, sqlstate, count, "connection refused: {reason}"),
            None => tracing::debug!(%peer, sqlstate, "connection refused again: {reason}"),
        };
    match error {
        LoginError::Refused(error) => {
            refused(Some(&error.sqlstate), &error.message);
            conn.put_error(&error);
        }
        LoginError::Ancient(version) => {
            refused(None, &format!("protocol {version}"));
            conn.put_bytes(&login::ancient_error(version));
        }
        LoginError::Unread(ReadError::Frame(frame)) => match frame.to_pg_error() {
            Some(error) => conn.put_error(&error),
            None => return tracing::debug!(%peer, "{frame}"),
        },
        error @ (LoginError::Handshake(_) | LoginError::NoAlpn) => {
            return refused(None, &error.to_string());
        }
        // Probes of load balancers and port scanners are no news.
        LoginError::Unread(error) => return tracing::debug!(%peer, "{error}"),
        LoginError::Unsent(error) => return tracing::debug!(%peer, "could not send data to client: {error}"),
    }
    conn.close().await;
}
