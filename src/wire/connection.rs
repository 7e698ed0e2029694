//! One client's connection: its socket, what was read but not cut yet, what is to be sent.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use pgwire::messages::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use super::error::{PgError, Severity};
use super::frame::{self, Frame, FrameError, Phase};
use super::socket::{Peer, Socket};
use super::startup::{self, InvalidLength, Offers, StartupPacket};
use super::tls::{ServerTls, TlsSession};

/// Bytes kept for reading between messages; a longer message borrows memory while it passes.
const INPUT_KEPT: usize = 8 * 1024;
/// The same of a client that is streamed to, and sends nothing but short reports: there may be thousands of them.
const STREAMING_KEPT: usize = 512;
/// Bytes kept for writing between answers.
const OUTPUT_KEPT: usize = 4 * 1024;
/// An answer of so many bytes is sent before it grows.
const OUTPUT_FULL: usize = 64 * 1024;

/// How long, and how much input, a client is given to read our last words.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
const FAREWELL_INPUT: u64 = 64 * 1024;

/// The socket with its two buffers. Nothing is lost when a future of it is dropped.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    peer: Peer,
    input: BytesMut,
    output: BytesMut,
    phase: Phase,
}

/// Nothing more can be read from a client.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The client has gone, perhaps in the middle of a message.
    #[error("client closed the connection")]
    Closed,
    /// The socket failed.
    #[error("could not receive data from client: {0}")]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The client does not speak the protocol at all.
    #[error(transparent)]
    Startup(#[from] InvalidLength),
}

impl Connection {
    /// Takes over a socket that has just been accepted.
    pub fn new(socket: Socket) -> io::Result<Connection> {
        let peer = socket.peer()?;
        Ok(Connection {
            socket,
            peer,
            input: BytesMut::new(),
            output: BytesMut::new(),
            phase: Phase::Authentication,
        })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The socket, for whoever writes past the buffer: [`Connection::flush`] first.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Encrypts the connection. Nothing may have been read that is not dealt with; see [`Socket::accept_tls`].
    pub async fn accept_tls(&mut self, tls: &ServerTls) -> io::Result<()> {
        debug_assert!(self.input.is_empty() && self.output.is_empty(), "TLS begins between two messages");
        self.socket.accept_tls(tls).await
    }

    /// How the connection is encrypted; `None` if it is not.
    pub fn tls(&self) -> Option<&TlsSession> {
        self.socket.tls()
    }

    /// Which messages the client may send from now on. One that is streamed to keeps no memory of what it asked before.
    pub fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
        if phase == Phase::Streaming {
            [&mut self.input, &mut self.output]
                .into_iter()
                .filter(|it| it.is_empty())
                .for_each(|it| *it = BytesMut::new());
        }
    }

    fn input_kept(&self) -> usize {
        if self.phase == Phase::Streaming { STREAMING_KEPT } else { INPUT_KEPT }
    }

    /// Waits for a start-up packet and reads not one byte more. Cancel-safe.
    pub async fn read_startup(&mut self, encryption: Offers) -> Result<StartupPacket, ReadError> {
        loop {
            let missing = startup::missing(&self.input)?;
            if missing == 0
                && let Some(packet) = startup::cut(&mut self.input, encryption)?
            {
                return Ok(packet);
            }
            self.input.reserve(missing);
            let mut exactly = (&mut self.socket).take(missing as u64);
            if exactly.read_buf(&mut self.input).await? == 0 {
                return Err(ReadError::Closed);
            }
        }
    }

    /// Waits for a message. Cancel-safe.
    pub async fn read_frame(&mut self) -> Result<Frame, ReadError> {
        loop {
            if let Some(frame) = self.buffered_frame()? {
                return Ok(frame);
            }
            self.make_room();
            if self.socket.read_buf(&mut self.input).await? == 0 {
                return Err(ReadError::Closed);
            }
        }
    }

    /// A message that has been read already.
    pub fn buffered_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        frame::cut(&mut self.input, self.phase)
    }

    /// Reads what the socket holds without waiting; returns the number of bytes, [`ReadError::Closed`] at the
    /// end, and 0 if there is nothing at the moment.
    pub fn try_fill(&mut self) -> Result<usize, ReadError> {
        self.make_room();
        match self.socket.try_read_buf(&mut self.input) {
            Ok(0) => Err(ReadError::Closed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => Ok(result?),
        }
    }

    /// Resolves when the client has gone, while nothing else is expected of it; what it sends meanwhile is kept
    /// for later, up to a limit. Cancel-safe.
    pub async fn gone(&mut self) -> ReadError {
        loop {
            if self.input.len() >= INPUT_KEPT {
                return std::future::pending().await;
            }
            if let Err(error) = self.socket.ready(Interest::READABLE).await {
                return error.into();
            }
            if let Err(error) = self.try_fill() {
                return error;
            }
        }
    }

    /// Room for a read, and no more memory than that when nothing is waiting to be completed.
    fn make_room(&mut self) {
        let kept = self.input_kept();
        if self.input.is_empty() && self.input.capacity() > kept {
            self.input = BytesMut::new();
        }
        if self.input.len() == self.input.capacity() || self.input.is_empty() {
            self.input.reserve(kept);
        }
    }

    /// Adds a message to the answer.
    pub fn put(&mut self, message: &impl Message) {
        let before = self.output.len();
        if let Err(error) = message.encode(&mut self.output) {
            // Only a message beyond libpq's limits gets here; half of it would desynchronise the client.
            tracing::error!("could not encode message for client: {error}");
            self.output.truncate(before);
        }
    }

    /// Adds an error or notice to the answer.
    pub fn put_error(&mut self, error: &PgError) {
        match error.severity {
            Severity::Notice | Severity::Warning => self.put(&error.notice_response()),
            Severity::Error | Severity::Fatal => self.put(&error.error_response()),
        }
    }

    /// Adds bytes to the answer.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Whether an answer waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether so much of an answer waits that it should be sent before more is added.
    pub fn is_full(&self) -> bool {
        self.output.len() >= OUTPUT_FULL
    }

    /// Sends the answer, in one write if the socket takes it. Waits as long as the client makes it wait. Cancel-safe:
    /// what is unsent stays.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.flush_within(None).await
    }

    /// As [`Connection::flush`], but gives up when the client takes nothing for `limit`; `None` for no limit.
    ///
    /// # Errors
    /// Of the socket, and [`io::ErrorKind::TimedOut`]; the client may have got a part of a message then.
    pub async fn flush_within(&mut self, limit: Option<Duration>) -> io::Result<()> {
        while !self.output.is_empty() {
            let sent = within(limit, self.socket.write(&self.output)).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.output.advance(sent);
        }
        within(limit, self.socket.flush()).await?;
        self.forget_output();
        Ok(())
    }

    fn forget_output(&mut self) {
        self.output.clear();
        if self.output.capacity() > OUTPUT_KEPT {
            self.output = BytesMut::new();
        }
    }

    /// Sends what fits of the answer without waiting; whether nothing is left.
    pub fn try_flush(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.socket.try_write_vectored(&[io::IoSlice::new(&self.output)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.output.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.forget_output();
        Ok(true)
    }

    /// Takes the connection apart for whoever passes bytes on: the socket, and what was read from it already.
    /// [`Connection::flush`] first.
    pub fn into_parts(self) -> (Socket, BytesMut) {
        (self.socket, self.input)
    }

    /// Says goodbye: sends what is left, closes the sending side, and reads on for a moment, because a socket
    /// closed with unread input is reset and the client would lose our last words.
    pub async fn close(mut self) {
        let farewell = async {
            self.flush().await?;
            self.socket.shutdown().await?;
            tokio::io::copy(&mut (&mut self.socket).take(FAREWELL_INPUT), &mut tokio::io::sink()).await
        };
        let _ = tokio::time::timeout(FAREWELL_TIME, farewell).await;
    }
}

/// What a write says, if it says something in time.
async fn within<T>(limit: Option<Duration>, write: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let Some(limit) = limit else { return write.await };
    tokio::time::timeout(limit, write).await.unwrap_or_else(|_| {
        let text = format!("it has taken nothing for {} ms", limit.as_millis());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// What a client that streams costs, for as long as it lasts, is not what its login and its questions were.
    #[tokio::test]
    async fn a_client_that_is_streamed_to_keeps_little_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut conn = Connection::new(Socket::from(listener.accept().await.unwrap().0)).unwrap();
        conn.set_phase(Phase::Command);
        client.write_all(b"Q\0\0\0\x06a\0").await.unwrap();
        assert_eq!(conn.read_frame().await.unwrap().kind, b'Q');
        conn.put_bytes(&[0; 2000]);
        conn.flush().await.unwrap();
        assert!(conn.input.capacity() > STREAMING_KEPT);
        conn.set_phase(Phase::Streaming);
        let (short, long) = (b"d\0\0\0\x05r", [&b"d\0\0\x27\x14"[..], &[0; 10_000]].concat());
        for message in [&short[..], &long, short, short] {
            assert!(conn.output.capacity() == 0);
            client.write_all(message).await.unwrap();
            assert_eq!(conn.read_frame().await.unwrap().body.len(), message.len() - 5);
        }
        assert!(conn.input.capacity() <= STREAMING_KEPT);
        // What has come already stays.
        client.write_all(b"d\0\0\0\x05").await.unwrap();
        while conn.try_fill().unwrap() == 0 {
            conn.socket.ready(Interest::READABLE).await.unwrap();
        }
        conn.set_phase(Phase::Streaming);
        client.write_all(b"h").await.unwrap();
        assert_eq!(conn.read_frame().await.unwrap().body[..], b"h"[..]);
    }
}
