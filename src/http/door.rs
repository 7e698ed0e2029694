//! How one gets in: encrypted or not (`--http-ssl`), with a login or without (`--http-auth`).
//!
//! A login is one to the relay's own database, sent with each request (Basic). While the relay starts nobody can be known, and there is
//! nothing to see but how far the start is, which everybody is told.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::net::TcpStream;
use tokio::sync::SetOnce;
use tokio_rustls::server::TlsStream;

use super::page;
use crate::auth::certificate::ClientCertificate;
use crate::changeable::Changeable;
use crate::descriptors::Repeated;
use crate::downstream::{Doorkeeper, SharedAccess, Visitor};
use crate::wire::{PgError, sqlstate};

/// How long a handshake may take, its first byte included.
pub(super) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// `--http-ssl` and `--http-auth`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HttpRules {
    /// TLS is spoken, and nothing else.
    pub ssl: bool,
    /// More than health is shown only to those who log in and may examine the relay.
    pub auth: bool,
}

/// What holds for who comes in, and who is asked about them. The listener is there before anything is read, so it learns that
/// later; clones are the same one.
#[derive(Clone, Debug)]
pub struct Door {
    rules: Changeable<HttpRules>,
    access: Arc<SetOnce<Arc<SharedAccess>>>,
    doorkeeper: Arc<OnceLock<Doorkeeper>>,
    told: Arc<Mutex<Told>>,
}

/// What strangers can make happen as often as they like.
#[derive(Debug, Default)]
struct Told {
    unencrypted: Repeated,
    handshake: Repeated,
}

/// A connection that has begun.
pub(super) enum Entered {
    /// As it is to be, and who has come.
    Tls(Box<TlsStream<TcpStream>>, Option<ClientCertificate>),
    /// In clear text.
    Plain(TcpStream),
}

impl Door {
    /// With these rules to begin with.
    pub fn new(rules: HttpRules) -> Door {
        Door { rules: rules.into(), access: Arc::default(), doorkeeper: Arc::default(), told: Arc::default() }
    }

    /// From now on these hold, for new connections.
    pub fn set_rules(&self, rules: HttpRules) {
        self.rules.replace(rules);
    }

    /// Certificates and rules have been read; handshakes wait for that. The first time counts.
    pub fn note_access(&self, access: Arc<SharedAccess>) {
        let _ = self.access.set(access);
    }

    /// Logins can be looked at, which has to be so before there is more to see than a start. The first time counts.
    pub fn note_doorkeeper(&self, doorkeeper: Doorkeeper) {
        let _ = self.doorkeeper.set(doorkeeper);
    }

    pub(super) fn rules(&self) -> HttpRules {
        self.rules.current()
    }

    /// Looks how a connection begins, and shakes hands. `None` if nothing came of it, which has been told where it may be news.
    pub(super) async fn enter(&self, socket: TcpStream) -> Option<Entered> {
        let entered = tokio::time::timeout(HANDSHAKE_LIMIT, self.shake_hands(socket)).await;
        match entered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(entered) => Some(entered),
            // Probes of load balancers and port scanners are no news.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => {
                if let Some(count) = self.told(|told| &mut told.handshake) {
                    tracing::info!(count, "could not accept an SSL connection for HTTP: {error}");
                }
                None
            }
        }
    }

    async fn shake_hands(&self, socket: TcpStream) -> io::Result<Entered> {
        let mut first = [0];
        if socket.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[0] != TLS_HANDSHAKE {
            return Ok(Entered::Plain(socket));
        }
        let access = self.access.wait().await.current();
        let tls = access.tls.as_ref().ok_or_else(|| io::Error::other("there is no certificate"))?;
        let stream = tls.for_http().accept(socket).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.map(|der| ClientCertificate::parse(der)).transpose();
        let certificate = certificate.map_err(io::Error::other)?;
        Ok(Entered::Tls(Box::new(stream), certificate))
    }

    /// Somebody speaks HTTP where TLS is spoken.
    pub(super) fn note_unencrypted(&self, visitor: &Visitor) {
        if let Some(count) = self.told(|told| &mut told.unencrypted) {
            let peer = visitor.address;
            tracing::info!(%peer, count, "refused HTTP without TLS, which --http-ssl demands");
        }
    }

    fn told(&self, which: impl FnOnce(&mut Told) -> &mut Repeated) -> Option<u64> {
        which(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner)).note(Instant::now())
    }

    /// Whether whoever asks may see more than how far the start is.
    ///
    /// # Errors
    /// What is answered to them instead.
    pub(super) async fn admit(&self, visitor: &Visitor, headers: &HeaderMap) -> Result<bool, Response> {
        if !self.rules().auth {
            return Ok(true);
        }
        let Some(doorkeeper) = self.doorkeeper.get() else { return Ok(false) };
        let Some((user, password)) = credentials(headers) else {
            return Err(unknown("this takes a login to the relay's database \"walrelay\"\n".to_owned()));
        };
        doorkeeper.admit(visitor, &user, &password).await.map_err(refusal).map(|()| true)
    }
}

/// RFC 7617. A name that is no text is nobody's.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let (scheme, sent) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let sent = BASE64_STANDARD.decode(sent.trim()).ok()?;
    let end = sent.iter().position(|&byte| byte == b':')?;
    Some((String::from_utf8(sent[..end].to_vec()).ok()?, sent[end + 1..].to_vec()))
}

/// A browser asks its user then.
fn unknown(text: String) -> Response {
    let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"walrelay\", charset=\"UTF-8\"")];
    (StatusCode::UNAUTHORIZED, challenge, told(text)).into_response()
}

/// What is told of a login that was refused, in the words of one over the wire.
fn refusal(error: PgError) -> Response {
    let lines = [Some(error.message), error.detail, error.hint];
    let text: String = lines.into_iter().flatten().map(|line| line + "\n").collect();
    let later = [(header::RETRY_AFTER, "2")];
    match &*error.sqlstate {
        sqlstate::INSUFFICIENT_PRIVILEGE => (StatusCode::FORBIDDEN, told(text)).into_response(),
        sqlstate::TOO_MANY_CONNECTIONS => (StatusCode::TOO_MANY_REQUESTS, later, told(text)).into_response(),
        sqlstate::CANNOT_CONNECT_NOW | sqlstate::QUERY_CANCELED => {
            (StatusCode::SERVICE_UNAVAILABLE, later, told(text)).into_response()
        }
        _ => unknown(text),
    }
}

/// A text that nobody keeps.
pub(super) fn told(text: impl Into<String>) -> impl IntoResponse {
    let head = [(header::CONTENT_TYPE, super::answers::TEXT), (header::CACHE_CONTROL, "no-store")];
    (page::GUARDS, head, text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_read_as_it_was_sent() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            credentials(&headers)
        };
        let sent = |text: &[u8]| read(&format!("Basic {}", BASE64_STANDARD.encode(text)));
        let login = |user: &str, password: &[u8]| Some((user.to_owned(), password.to_vec()));
        assert_eq!(sent(b"me:secret"), login("me", b"secret"));
        assert_eq!(sent("mé:a:b é".as_bytes()), login("mé", "a:b é".as_bytes()));
        assert_eq!(sent(b":"), login("", b""));
        assert_eq!(sent(b"me:\xff"), login("me", b"\xff"));
        assert_eq!(read("bAsIc bWU6c2VjcmV0"), login("me", b"secret"));
        for wrong in ["", "Basic", "Basic !", "Basic bWU=", "Bearer bWU6c2VjcmV0", "Basic //86eA=="] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(credentials(&HeaderMap::new()), None);
    }

    #[test]
    fn each_refusal_has_its_code() {
        let code = |sqlstate: &'static str| refusal(PgError::fatal(sqlstate, "no")).status().as_u16();
        assert_eq!(code(sqlstate::INVALID_PASSWORD), 401);
        assert_eq!(code(sqlstate::INVALID_AUTHORIZATION_SPECIFICATION), 401);
        assert_eq!(code(sqlstate::INSUFFICIENT_PRIVILEGE), 403);
        assert_eq!(code(sqlstate::TOO_MANY_CONNECTIONS), 429);
        assert_eq!((code(sqlstate::CANNOT_CONNECT_NOW), code(sqlstate::QUERY_CANCELED)), (503, 503));
    }
}
