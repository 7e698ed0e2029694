//! The HTTP listener of `--http-listen`: `/metrics`, whether the relay lives and can serve, and a page that shows it, for whoever
//! watches it.
//!
//! ```text
//! accept loop ──> connection: handshake, head within 5 s each, at most 16 kB ──> login ──> Watched: Status, History ──> one answer
//!                 closed after a minute, whatever it does, or when it is the oldest of those who have too many
//! ```
//!
//! It is there before anything is recovered, and until everything else has stopped; a restart passes its socket on. It answers from
//! memory only, so it answers while disks, the upstream and archives hang. It can hold up nobody: there are few connections, each for
//! one request and a limited time, whose descriptors are out of those that the relay keeps for itself, and nothing else waits for
//! them. Whoever comes gets a place, so that those who only hold theirs keep nobody out. Nothing can be changed through it. Without
//! being told so it asks for no login and speaks no TLS ([`Door`]), so it listens on the loopback interface unless it is told another
//! address.

mod address;
mod answers;
mod door;
mod front;
mod page;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::descriptors::Repeated;
use crate::downstream::{Pending, Visitor};
use crate::sockets::{For, Sockets};
use crate::status::Watched;
use door::Entered;
use front::{Asked, Front};

pub use address::{HttpAddr, ParseHttpAddrError};
pub use door::{Door, HttpRules};

/// Connections at a time; where there would be more, the oldest of the address with the most goes.
pub const CONNECTIONS: usize = 32;
/// How long the head of a request may take, also of the first one.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection may last: whoever comes regularly connects again.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a request that are read before its head has to be over.
const HEAD_SIZE: usize = 16 << 10;
/// Lines of a request's head.
const HEADERS: usize = 64;
/// What those who are being answered get when the listener ends: answers come from memory. Nothing waits for it but the end of a
/// stop, or a restart.
const FAREWELL: Duration = Duration::from_millis(50);
/// Pause after an error of accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address} for HTTP: {source}")]
pub struct HttpError {
    /// The address.
    pub address: String,
    /// What the system said.
    pub source: io::Error,
}

/// The listening socket.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
    front: Front,
}

impl Http {
    /// Begins to listen, at a socket that was passed to this process if one fits.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(
        address: &HttpAddr,
        watched: Arc<Watched>,
        door: Door,
        sockets: &Sockets,
    ) -> Result<Http, HttpError> {
        let failed = |source| HttpError { address: address.to_string(), source };
        let listener = listen(address, sockets).await.map_err(failed)?;
        let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let front = Front::new(watched, door, is_local.then_some(address.host.as_str()));
        Ok(Http { listener, front })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until told to stop; connections that are open then are closed after a moment.
    pub async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let open = Arc::new(Pending::new(CONNECTIONS, "over HTTP"));
        let mut failed = Repeated::default();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(ended) = connections.join_next() => {
                    match ended {
                        Err(error) if !error.is_cancelled() => {
                            tracing::error!("an HTTP connection's task failed: {error}");
                        }
                        _ => {}
                    }
                    continue;
                }
                () = stop.cancelled() => {
                    // Each is for one request, which was answered unless it came just now.
                    let all = async { while connections.join_next().await.is_some() {} };
                    let _ = tokio::time::timeout(FAREWELL, all).await;
                    return;
                }
            };
            match accepted {
                Ok((socket, address)) => {
                    let (place, front) = (open.admit(Some(address.ip().into())), self.front.clone());
                    connections.spawn(async move {
                        place.dropped.run_until_cancelled(serve(socket, address, front)).await;
                    });
                }
                Err(error) => {
                    if let Some(count) = failed.note(std::time::Instant::now()) {
                        tracing::warn!(count, "could not accept an HTTP connection: {error}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn listen(address: &HttpAddr, sockets: &Sockets) -> io::Result<TcpListener> {
    let addresses: Vec<_> = tokio::net::lookup_host((address.host.as_str(), address.port)).await?.collect();
    let taken = addresses.iter().find_map(|address| sockets.take_tcp(For::Http, *address));
    let (listener, given) = match taken {
        Some(given) => {
            let (listener, name) = given.into_parts();
            (TcpListener::from_std(listener)?, name)
        }
        None => (TcpListener::bind(&*addresses).await?, None),
    };
    sockets.note(For::Http, &listener, &listener.local_addr()?.to_string(), given)?;
    Ok(listener)
}

async fn serve(socket: TcpStream, address: SocketAddr, front: Front) {
    let visitor = Visitor { address, ssl: false, certificate: None };
    if !front.door.rules().ssl {
        return answer(socket, answers::router(Asked::new(front, visitor))).await;
    }
    match front.door.enter(socket).await {
        Some(Entered::Tls(stream, certificate)) => {
            let visitor = Visitor { ssl: true, certificate, ..visitor };
            answer(stream, answers::router(Asked::new(front, visitor))).await;
        }
        Some(Entered::Plain(socket)) => {
            front.door.note_unencrypted(&visitor);
            answer(socket, answers::unencrypted()).await;
        }
        None => {}
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send, router: Router) {
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .keep_alive(false)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_SIZE);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(LIMIT, connection).await {
        tracing::debug!("an HTTP connection failed: {error}");
    }
}
