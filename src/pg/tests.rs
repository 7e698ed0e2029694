//! Scripted servers on loopback: what real ones never do, and what they do at bad moments.

use std::future::Future;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::auth::scram::server::{MockSecret, ScramServer, ServerSecret, mechanisms};
use crate::auth::scram::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, Verifier};
use crate::conninfo::{ConnInfo, Environment};

mod encryption;
mod fuzz;
mod hanging;
mod login;
mod query;

/// A listener and its port.
pub(crate) async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Runs `script` on the first connection; the handle gives its result.
pub(crate) async fn serve<F: Future<Output: Send + 'static> + Send + 'static>(
    script: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (u16, JoinHandle<F::Output>) {
    let (listener, port) = listen().await;
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        script(stream).await
    });
    (port, task)
}

pub(crate) fn info(port: u16, more: &str) -> ConnInfo {
    let text = format!("host=127.0.0.1 port={port} user=rep password=secret {more}");
    let environment = Environment::of_user("rep").with("HOME", "/nonexistent");
    ConnInfo::parse(&text, &environment).unwrap()
}

pub(crate) async fn try_connect(port: u16, more: &str) -> Result<UpstreamConnection, ConnectError> {
    let info = info(port, more);
    connect(&info, &info.hosts[0], deadline()).await
}

pub(crate) fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(crate) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.put_u32(u32::try_from(body.len() + 4).unwrap());
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn request(code: u32, rest: &[u8]) -> Vec<u8> {
    frame(b'R', &[&code.to_be_bytes(), rest].concat())
}

pub(crate) fn error(severity: &str, sqlstate: &str, message: &str) -> Vec<u8> {
    frame(b'E', format!("S{severity}\0V{severity}\0C{sqlstate}\0M{message}\0\0").as_bytes())
}

/// AuthenticationOk and what follows it.
pub(crate) fn welcome() -> Vec<u8> {
    [
        request(0, b""),
        frame(b'S', b"server_version\x0018.1\0"),
        frame(b'S', b"in_hot_standby\0off\0"),
        frame(b'K', &[0, 0, 0, 42, 1, 2, 3, 4]),
        frame(b'Z', b"I"),
    ]
    .concat()
}

/// Parameters of a StartupMessage of protocol 3.0.
pub(crate) async fn read_startup(stream: &mut (impl AsyncRead + Unpin)) -> Vec<String> {
    let len = stream.read_u32().await.unwrap();
    assert_eq!(stream.read_u32().await.unwrap(), 3 << 16, "protocol version");
    let mut body = vec![0; usize::try_from(len).unwrap() - 8];
    stream.read_exact(&mut body).await.unwrap();
    let text = String::from_utf8(body).unwrap();
    text.strip_suffix("\0\0").unwrap().split('\0').map(str::to_owned).collect()
}

pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    let kind = stream.read_u8().await.unwrap();
    let len = stream.read_u32().await.unwrap();
    let mut body = vec![0; usize::try_from(len).unwrap() - 4];
    stream.read_exact(&mut body).await.unwrap();
    (kind, body)
}

/// Everything the client still sends until it hangs up.
pub(crate) async fn read_rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    // However the client ends the connection, what it sent before is here.
    let _ = stream.read_to_end(&mut rest).await;
    rest
}

pub(crate) async fn read_ssl_request(stream: &mut TcpStream) {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(bytes, [0, 0, 0, 8, 4, 210, 22, 47]);
}

/// The server's side of SCRAM with the password `secret`, up to and without the final message.
pub(crate) async fn serve_scram<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    password: &[u8],
    end_point: Option<Vec<u8>>,
) -> (String, Result<Vec<u8>, String>) {
    let offer: Vec<u8> =
        mechanisms(end_point.is_some()).iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
    stream.write_all(&request(10, &[&offer[..], b"\0"].concat())).await.unwrap();
    let (kind, body) = read_frame(stream).await;
    assert_eq!(kind, b'p');
    let zero = body.iter().position(|byte| *byte == 0).unwrap();
    let mechanism = String::from_utf8(body[..zero].to_vec()).unwrap();
    let verifier = Verifier::from_password(password, b"salt", std::num::NonZeroU32::new(2).unwrap());
    let mock = MockSecret::random().unwrap();
    let secret = ServerSecret::Verifier(verifier);
    let server = ScramServer::new(&mechanism, "rep", secret, end_point, &mock).unwrap();
    let challenged = server.client_first(&body[zero + 5..]).unwrap();
    stream.write_all(&request(11, challenged.message())).await.unwrap();
    let (_, body) = read_frame(stream).await;
    let verdict = challenged.client_final(&body).map(|accepted| accepted.message);
    (mechanism, verdict.map_err(|error| error.to_string()))
}
