//! TLS on a client's socket (PostgreSQL: `be-secure.c`, `be-secure-openssl.c`).
//!
//! A [`TlsSession`] encrypts and decrypts; the socket stays where it was. It has the same non-blocking primitives as
//! a plain socket, so that a walsender need not know which it has. What was accepted for sending is encrypted at
//! once; ciphertext that the socket does not take waits here, at most some 64 KiB of it, and goes out with the next
//! write, with a flush, or while somebody waits for the socket to become ready.

mod config;
mod verifier;

use std::fmt;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use tokio::io::{Interest, ReadBuf, Ready};
use tokio::net::TcpStream;
use tokio_rustls::rustls::{ProtocolVersion, ServerConfig, ServerConnection};

use crate::auth::certificate::ClientCertificate;

pub use config::{ServerTls, TlsError, TlsFiles};

/// The protocol name both sides agree on, mandatory for direct TLS.
const ALPN: &[u8] = b"postgresql";
/// What is spoken at `--http-listen`.
const HTTP_ALPN: &[u8] = b"http/1.1";

/// Reads of the socket for one read of ours. A peer that keeps sending records without content is asked to wait
/// like everybody else.
const ROUNDS: usize = 16;

/// An encrypted connection, after its handshake.
pub struct TlsSession {
    state: Mutex<State>,
    end_point: Option<Vec<u8>>,
    certificate: Option<ClientCertificate>,
    has_alpn: bool,
}

struct State {
    connection: ServerConnection,
    /// Decrypted bytes not yet read, or the end of them: a read would not have to wait.
    readable: bool,
    said_goodbye: bool,
}

impl fmt::Debug for TlsSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSession").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl TlsSession {
    /// Shakes hands. After an error, or when the future was dropped, the socket is of no more use.
    async fn accept(
        socket: &TcpStream,
        config: Arc<ServerConfig>,
        end_point: Option<Vec<u8>>,
    ) -> io::Result<TlsSession> {
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut state = State { connection, readable: false, said_goodbye: false };
        while state.connection.is_handshaking() || state.connection.wants_write() {
            if state.connection.wants_write() {
                if !state.flush(socket)? {
                    socket.writable().await?;
                }
                continue;
            }
            match state.fill(socket) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
                Err(error) => return Err(error),
            }
        }
        let certificate = state.connection.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.map(|der| ClientCertificate::parse(der)).transpose();
        let has_alpn = state.connection.alpn_protocol().is_some();
        Ok(TlsSession {
            state: Mutex::new(state),
            end_point,
            certificate: certificate.map_err(io::Error::other)?,
            has_alpn,
        })
    }

    /// `tls-server-end-point` of the certificate we have shown, for channel binding.
    pub fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    /// Who the client is by its certificate, which has been checked.
    pub fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref()
    }

    /// Version of the protocol, the cipher suite, and the bits of its key, as OpenSSL calls them.
    pub fn parameters(&self) -> (String, String, Option<u32>) {
        let state = self.lock();
        let version = match state.connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let suite = state.connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        let suite = suite.unwrap_or_default();
        let bits = match () {
            () if suite.contains("AES_128") => Some(128),
            () if suite.contains("AES_256") || suite.contains("CHACHA20") => Some(256),
            () => None,
        };
        let name =
            suite.strip_prefix("TLS13_").map_or_else(|| suite.to_owned(), |rest| format!("TLS_{rest}"));
        (version.to_owned(), name, bits)
    }

    /// Whether the client has named the protocol.
    pub fn has_alpn(&self) -> bool {
        self.has_alpn
    }

    /// As [`Socket::try_read_buf`](super::Socket::try_read_buf).
    pub(super) fn try_read_buf(&self, socket: &TcpStream, buffer: &mut impl BufMut) -> io::Result<usize> {
        self.lock().read(socket, buffer)
    }

    /// As [`Socket::try_write_vectored`](super::Socket::try_write_vectored). What it takes may be on its way only
    /// partly; nothing more is taken before that has gone.
    pub(super) fn try_write_vectored(&self, socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.lock().write(socket, slices)
    }

    /// As [`Socket::ready`](super::Socket::ready); sends what waits meanwhile. Cancel-safe.
    pub(super) async fn ready(&self, socket: &TcpStream, interest: Interest) -> io::Result<Ready> {
        loop {
            let idle = {
                let mut state = self.lock();
                let idle = state.flush(socket)?;
                if interest.is_readable() && state.readable {
                    return Ok(Ready::READABLE);
                }
                idle
            };
            let wanted = if idle { interest } else { interest | Interest::WRITABLE };
            let ready = socket.ready(wanted).await?;
            let readable = interest.is_readable() && ready.is_readable();
            let writable = idle && interest.is_writable() && ready.is_writable();
            if readable || writable {
                return Ok(ready);
            }
        }
    }

    pub(super) fn poll_read(
        &self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match self.try_read_buf(socket, buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(socket.poll_read_ready(cx))?;
                }
                result => return Poll::Ready(result.map(|_| ())),
            }
        }
    }

    pub(super) fn poll_write(
        &self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write_vectored(socket, &[IoSlice::new(buf)]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(socket.poll_write_ready(cx))?;
                }
                result => return Poll::Ready(result),
            }
        }
    }

    /// Ready when nothing waits here any more.
    pub(super) fn poll_flush(&self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.lock().flush(socket)? {
            ready!(socket.poll_write_ready(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Says good-bye in TLS's own way; the socket is shut down by its owner.
    pub(super) fn poll_goodbye(&self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.lock();
            if !state.said_goodbye {
                state.said_goodbye = true;
                state.connection.send_close_notify();
            }
        }
        self.poll_flush(socket, cx)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read(&mut self, socket: &TcpStream, buffer: &mut impl BufMut) -> io::Result<usize> {
        for _ in 0..ROUNDS {
            if let Some(taken) = self.take(buffer)? {
                return Ok(taken);
            }
            self.fill(socket)?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// What is decrypted already; 0 at the end, `None` if there is nothing.
    fn take(&mut self, buffer: &mut impl BufMut) -> io::Result<Option<usize>> {
        let mut reader = self.connection.reader();
        let taken = match reader.fill_buf() {
            Ok(chunk) => {
                let len = chunk.len().min(buffer.chunk_mut().len());
                buffer.put_slice(&chunk[..len]);
                Some(len)
            }
            // PG: an end without TLS's good-bye is an end like any other.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Some(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(error),
        };
        reader.consume(taken.unwrap_or(0));
        let waiting = reader.fill_buf().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.readable = !waiting;
        Ok(taken)
    }

    /// Reads from the socket, once.
    fn fill(&mut self, socket: &TcpStream) -> io::Result<()> {
        let read = self.connection.read_tls(&mut Raw(socket))?;
        if let Err(error) = self.connection.process_new_packets() {
            // The alert that tells the client why.
            let _ = self.flush(socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        match self.connection.is_handshaking() && read == 0 {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        }
    }

    fn write(&mut self, socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.flush(socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = self.connection.writer().write_vectored(slices)?;
        self.flush(socket)?;
        Ok(taken)
    }

    /// Gives the socket what waits; whether nothing is left.
    fn flush(&mut self, socket: &TcpStream) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Raw(socket)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The socket as rustls wants it: what would have to wait is [`io::ErrorKind::WouldBlock`].
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
