//! Sockets, addresses, encryption: everything before the StartupMessage (PG: `PQconnectPoll`).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Once;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use super::aside;
use super::connection::UpstreamConnection;
use super::error::ConnectError;
use super::login::{Failure, log_in};
use super::message::{SSL_REQUEST, cancel_request};
use super::stream::{Stream, open_tcp, open_unix};
use super::tls::Tls;
use crate::conninfo::{ConnInfo, HostAddress, HostSpec, SslMode, SslNegotiation, TargetSessionAttrs};

/// Connects to the first host that takes us, in the order given, or a random one with `load_balance_hosts`.
///
/// Goes on to the next host after transient errors, as libpq does; a wrong password ends the search. With
/// `target_session_attrs=prefer-standby`, a second round takes any server.
///
/// Cancel-safe in so far as a drop just hangs up.
///
/// # Errors
/// That of the last host tried.
pub async fn connect_any(info: &ConnInfo, deadline: Instant) -> Result<UpstreamConnection, ConnectError> {
    if info.target_session_attrs == TargetSessionAttrs::PreferStandby {
        let strict = ConnInfo { target_session_attrs: TargetSessionAttrs::Standby, ..info.clone() };
        match connect_in_turn(&strict, deadline).await {
            Err(error) if error.is_transient() => {}
            result => return result,
        }
    }
    connect_in_turn(info, deadline).await
}

async fn connect_in_turn(info: &ConnInfo, deadline: Instant) -> Result<UpstreamConnection, ConnectError> {
    let mut hosts: Vec<&HostSpec> = info.hosts.iter().collect();
    if info.load_balance_hosts {
        shuffle(&mut hosts);
    }
    let mut last = None;
    for host in hosts {
        match connect(info, host, deadline).await {
            Err(error) if error.is_transient() => last = Some(error),
            result => return result,
        }
    }
    Err(last.expect("a connection string has at least one host"))
}

/// Connects to one host and logs in as a physical replication client.
///
/// All addresses of the host are tried in turn, each for `connect_timeout` at most and none past `deadline`. With
/// `sslmode=prefer` and `allow`, an address that fails one way is tried the other way, as libpq does it.
///
/// Cancel-safe in so far as a drop just hangs up.
///
/// # Errors
/// [`ConnectError::is_transient`] tells whether to try again.
pub async fn connect(
    info: &ConnInfo,
    host: &HostSpec,
    deadline: Instant,
) -> Result<UpstreamConnection, ConnectError> {
    let mut result = Err(ConnectError::Timeout { target: host.to_string() });
    for target in resolve(info, host, deadline).await? {
        let limit = info.connect_timeout.map_or(deadline, |timeout| deadline.min(Instant::now() + timeout));
        let attempt = connect_to(info, host, &target);
        result = match tokio::time::timeout_at(limit, attempt).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::Timeout { target: target.describe(host) }),
        };
        if !result.as_ref().is_err_and(ConnectError::is_about_address) {
            break;
        }
    }
    result
}

/// Asks a server to cancel what a session runs. The server does not say whether it did.
///
/// Encrypted as the session is by `sslmode`, since the key is a secret.
///
/// # Errors
/// The server could not be reached, or not as `sslmode` wants it.
pub async fn send_cancel(
    info: &ConnInfo,
    host: &HostSpec,
    pid: u32,
    key: &[u8],
    deadline: Instant,
) -> Result<(), ConnectError> {
    let request = cancel_request(pid, key);
    let send = async {
        for target in resolve(info, host, deadline).await? {
            let mut stream = match &target {
                Target::Unix(path) => Stream::Unix(open_unix(path).await.map_err(ConnectError::Io)?),
                Target::Tcp(address) => match open_for_cancel(info, host, *address).await {
                    Err(failure) if failure.error.is_about_address() => continue,
                    result => result.map_err(|failure| failure.error)?,
                },
            };
            stream.write_all(&request).await.map_err(ConnectError::Io)?;
            stream.flush().await.map_err(ConnectError::Io)?;
            // The server closes the connection once it has acted.
            let _ = stream.read(&mut [0; 1]).await;
            return Ok(());
        }
        Err(ConnectError::Timeout { target: host.to_string() })
    };
    let sent = tokio::time::timeout_at(deadline, send).await;
    sent.unwrap_or_else(|_| Err(ConnectError::Timeout { target: host.to_string() }))
}

async fn open_for_cancel(info: &ConnInfo, host: &HostSpec, address: SocketAddr) -> Result<Stream, Failure> {
    let stream = open_tcp(address, &info.tcp)
        .await
        .map_err(|source| ConnectError::Socket { target: Target::Tcp(address).describe(host), source })?;
    match info.tls.mode {
        SslMode::Disable | SslMode::Allow => Ok(Stream::Tcp(stream)),
        _ => encrypt(stream, info, host).await,
    }
}

/// Where to open a socket.
enum Target {
    Tcp(SocketAddr),
    Unix(std::path::PathBuf),
}

impl Target {
    /// As libpq writes it: `"localhost" (127.0.0.1), port 5432`.
    fn describe(&self, host: &HostSpec) -> String {
        match self {
            Target::Unix(path) => format!("socket \"{}\"", path.display()),
            Target::Tcp(address) => {
                let name = host.name.as_deref().filter(|name| *name != address.ip().to_string());
                let shown = name.map_or_else(
                    || format!("\"{}\"", address.ip()),
                    |name| format!("\"{name}\" ({})", address.ip()),
                );
                format!("{shown}, port {}", address.port())
            }
        }
    }
}

async fn resolve(info: &ConnInfo, host: &HostSpec, deadline: Instant) -> Result<Vec<Target>, ConnectError> {
    let name = match &host.address {
        HostAddress::UnixDirectory(directory) => {
            return Ok(vec![Target::Unix(directory.join(format!(".s.PGSQL.{}", host.port)))]);
        }
        HostAddress::Ip(address) => return Ok(vec![Target::Tcp(SocketAddr::new(*address, host.port))]),
        HostAddress::Name(name) => name,
    };
    let lookup = tokio::time::timeout_at(deadline, aside::addresses(info, name, host.port)).await;
    let lookup = lookup.map_err(|_| ConnectError::Timeout { target: host.to_string() })?;
    let failed = |source| ConnectError::Resolve { host: name.clone(), source };
    let mut targets: Vec<_> = lookup.map_err(failed)?.into_iter().map(Target::Tcp).collect();
    if targets.is_empty() {
        return Err(failed(std::io::Error::other("no address")));
    }
    if info.load_balance_hosts {
        shuffle(&mut targets);
    }
    Ok(targets)
}

/// Fisher and Yates. Without random bytes the order stays, which is as good as any.
fn shuffle<T>(list: &mut [T]) {
    for last in (1..list.len()).rev() {
        let Ok(random) = getrandom::u32() else { return };
        list.swap(last, random as usize % (last + 1));
    }
}

async fn connect_to(
    info: &ConnInfo,
    host: &HostSpec,
    target: &Target,
) -> Result<UpstreamConnection, ConnectError> {
    match target {
        Target::Unix(path) => connect_unix(info, host, path).await,
        Target::Tcp(address) => connect_tcp(info, host, *address).await,
    }
}

/// Unix sockets are never encrypted, whatever `sslmode` says.
async fn connect_unix(
    info: &ConnInfo,
    host: &HostSpec,
    path: &Path,
) -> Result<UpstreamConnection, ConnectError> {
    let target = || format!("socket \"{}\"", path.display());
    if info.own.unix.iter().any(|own| own == path) {
        return Err(ConnectError::Itself { target: target() });
    }
    let stream = open_unix(path).await.map_err(|source| ConnectError::Socket { target: target(), source })?;
    if let Some(required) = &info.require_peer {
        check_peer(&stream, required, info).await?;
    }
    log_in(Stream::Unix(stream), info, host).await.map_err(|failure| failure.error)
}

async fn check_peer(stream: &UnixStream, required: &str, info: &ConnInfo) -> Result<(), ConnectError> {
    let uid = stream.peer_cred().map_err(ConnectError::Io)?.uid();
    let what = format!("the entry of user {uid} in the user database");
    let look_up = move |_: &aside::Files| nix::unistd::User::from_uid(uid.into()).ok().flatten();
    let user = aside::with_files(info, what, look_up).await?;
    let actual = user.map_or_else(|| uid.to_string(), |user| user.name);
    if actual == required {
        return Ok(());
    }
    Err(ConnectError::Peer { required: required.to_owned(), actual })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Plain,
    Tls,
}

async fn connect_tcp(
    info: &ConnInfo,
    host: &HostSpec,
    address: SocketAddr,
) -> Result<UpstreamConnection, ConnectError> {
    let (first, second) = match info.tls.mode {
        SslMode::Disable => (Encryption::Plain, None),
        SslMode::Allow => (Encryption::Plain, Some(Encryption::Tls)),
        SslMode::Prefer => (Encryption::Tls, Some(Encryption::Plain)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Encryption::Tls, None),
    };
    let failure = match connect_with(info, host, address, first).await {
        Ok(connection) => return Ok(connection),
        Err(failure) => failure,
    };
    match second.filter(|_| failure.negotiable) {
        None => Err(failure.error),
        Some(second) => connect_with(info, host, address, second).await.map_err(|again| ConnectError::Both {
            first: Box::new(failure.error),
            second_how: if second == Encryption::Tls { "with SSL" } else { "without SSL" },
            second: Box::new(again.error),
        }),
    }
}

async fn connect_with(
    info: &ConnInfo,
    host: &HostSpec,
    address: SocketAddr,
    encryption: Encryption,
) -> Result<UpstreamConnection, Failure> {
    let stream = open_tcp(address, &info.tcp)
        .await
        .map_err(|source| ConnectError::Socket { target: Target::Tcp(address).describe(host), source })?;
    if stream.local_addr().is_ok_and(|local| info.own.is_own(local, address)) {
        return Err(ConnectError::Itself { target: Target::Tcp(address).describe(host) }.into());
    }
    let (stream, fell_back) = match encryption {
        Encryption::Plain => (Stream::Tcp(stream), false),
        Encryption::Tls => {
            let stream = encrypt(stream, info, host).await?;
            let fell_back = !stream.is_encrypted();
            (stream, fell_back)
        }
    };
    log_in(stream, info, host).await.map_err(|failure| Failure {
        // Without encryption was tried now, by the server's own choice.
        negotiable: failure.negotiable && !fell_back,
        ..failure
    })
}

/// Said once that `sslmode=prefer` goes without.
static UNUSABLE: Once = Once::new();

/// The encrypted stream; with `sslmode=prefer` the same socket in clear text if the server has no TLS, or our own files
/// cannot be used for it.
async fn encrypt(mut stream: TcpStream, info: &ConnInfo, host: &HostSpec) -> Result<Stream, Failure> {
    let (options, target) = (info.tls.clone(), host.clone());
    let prepare = move |files: &aside::Files| Tls::prepare(&options, &target, files);
    let tls = match aside::with_files(info, "certificates and keys".to_owned(), prepare).await? {
        Err(error) if info.tls.mode == SslMode::Prefer => {
            UNUSABLE.call_once(|| {
                tracing::warn!(
                    "connecting without SSL, as sslmode=prefer allows, because of our own files: {error}"
                );
            });
            return Ok(Stream::Tcp(stream));
        }
        prepared => prepared?,
    };
    let direct = info.tls.negotiation == SslNegotiation::Direct;
    if !direct && !request_tls(&mut stream).await? {
        return match info.tls.mode {
            SslMode::Prefer => Ok(Stream::Tcp(stream)),
            mode => Err(ConnectError::TlsRefused { mode }.into()),
        };
    }
    match tls.handshake(stream, direct).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(error) => Err(Failure { error, negotiable: true }),
    }
}

/// Sends SSLRequest and reads exactly one byte: what an attacker stuffed behind it must reach the TLS layer, where
/// it breaks the handshake, and never a buffer of ours (CVE-2021-23214 and its kin).
async fn request_tls(stream: &mut TcpStream) -> Result<bool, Failure> {
    stream.write_all(&SSL_REQUEST).await.map_err(ConnectError::Io)?;
    match stream.read_u8().await {
        Ok(b'S') => Ok(true),
        Ok(b'N') => Ok(false),
        Ok(b'E') => Err(Failure { error: ConnectError::ErrorBeforeTls, negotiable: true }),
        Ok(other) => {
            let problem = format!("'{}' in answer to SSLRequest", other.escape_ascii());
            Err(ConnectError::Protocol { problem }.into())
        }
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(ConnectError::Closed.into()),
        Err(error) => Err(ConnectError::Io(error).into()),
    }
}
