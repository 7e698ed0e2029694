//! A consumer that speaks the streaming replication protocol and keeps nothing, for benches.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use rustix::net::RecvFlags;
use walrelay_proto::{Keepalive, Lsn, PgTimestamp, ServerMessage, StandbyStatusUpdate, XLogDataHeader};

/// Type and length of a message.
const PREFIX: usize = 5;
/// WAL is discarded in pieces of at most this, bytes.
const PIECE: usize = 256 << 10;
/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A replication connection. WAL is dropped in the kernel (`MSG_TRUNC`) unless told otherwise, so that on a
/// shared machine the server's work is measured and not ours.
#[derive(Debug)]
pub struct Consumer {
    socket: TcpStream,
    backend_pid: u32,
    scratch: Vec<u8>,
    received: Lsn,
    /// How WAL is taken from the socket.
    flags: RecvFlags,
}

/// What came before a message's WAL.
enum Head {
    /// A stretch of WAL: its start and length.
    Wal(Lsn, usize),
    Keepalive(Keepalive),
}

impl Consumer {
    /// Connects and logs in as `postgres`, who must be trusted; `name` is the `application_name`.
    ///
    /// # Errors
    /// Of the socket, and `InvalidData` with what the server said if it refuses.
    pub fn connect(address: SocketAddr, name: &str) -> io::Result<Consumer> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut consumer = Consumer {
            socket,
            backend_pid: 0,
            scratch: Vec::new(),
            received: Lsn::INVALID,
            flags: RecvFlags::WAITALL | RecvFlags::TRUNC,
        };
        consumer.log_in(name)?;
        Ok(consumer)
    }

    fn log_in(&mut self, name: &str) -> io::Result<()> {
        let parameters = ["user", "postgres", "replication", "true", "application_name", name];
        let mut body = (3_u32 << 16).to_be_bytes().to_vec();
        parameters.iter().for_each(|word| body.extend([word.as_bytes(), b"\0"].concat()));
        body.push(0);
        self.socket.write_all(&[&len_word(body.len()), &body[..]].concat())?;
        loop {
            let (kind, body) = self.message()?;
            match kind {
                b'K' => self.backend_pid = body.first_chunk().map_or(0, |word| u32::from_be_bytes(*word)),
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    /// Copies the WAL into memory before it is dropped, as real consumers do; much of what is measured is then
    /// the consumer.
    pub fn copying(mut self) -> Consumer {
        self.flags = RecvFlags::WAITALL;
        self
    }

    /// The process that serves us, if the server is PostgreSQL.
    pub fn backend_pid(&self) -> u32 {
        self.backend_pid
    }

    /// Asks for WAL from `start` on and waits until the server agrees.
    ///
    /// # Errors
    /// As [`Consumer::connect`].
    pub fn start(&mut self, start: Lsn) -> io::Result<()> {
        let query = format!("START_REPLICATION PHYSICAL {start}\0");
        self.socket.write_all(&[b"Q", &len_word(query.len())[..], query.as_bytes()].concat())?;
        loop {
            if self.message()?.0 == b'W' {
                self.received = start;
                return Ok(());
            }
        }
    }

    /// Receives until everything before `end` is there; returns the bytes of WAL.
    ///
    /// # Errors
    /// Of the socket, and `InvalidData` for WAL that does not follow on what came before.
    pub fn drain(&mut self, end: Lsn) -> io::Result<u64> {
        let from = self.received;
        while self.received < end {
            self.next_wal()?;
        }
        Ok(self.received.since(from))
    }

    /// Receives the next message with WAL; the end of what has been received. Answers keepalives that ask for it.
    ///
    /// # Errors
    /// As [`Consumer::drain`].
    pub fn next_wal(&mut self) -> io::Result<Lsn> {
        self.next_wal_with(|_| {})
    }

    /// Receives until everything before `end` is there, which needs a consumer that is [`copying`](Consumer::copying); the
    /// CRC-32C of it.
    ///
    /// # Errors
    /// As [`Consumer::drain`].
    pub fn checksum(&mut self, end: Lsn) -> io::Result<u32> {
        let mut crc = 0;
        while self.received < end {
            self.next_wal_with(|piece| crc = crc32c::crc32c_append(crc, piece))?;
        }
        Ok(crc)
    }

    /// As [`Consumer::next_wal`], and shows its WAL, piece by piece, which needs a consumer that is
    /// [`copying`](Consumer::copying).
    ///
    /// # Errors
    /// As [`Consumer::drain`].
    pub fn next_wal_with(&mut self, mut look: impl FnMut(&[u8])) -> io::Result<Lsn> {
        while !self.next_message_with(&mut look)? {}
        Ok(self.received)
    }

    /// The same of the next message, whatever it is; whether it was WAL.
    ///
    /// # Errors
    /// As [`Consumer::drain`].
    pub fn next_message_with(&mut self, look: impl FnMut(&[u8])) -> io::Result<bool> {
        self.scratch.resize(PIECE, 0);
        match self.head()? {
            Head::Wal(start, len) => {
                if start != self.received {
                    let text = format!("WAL from {start}, expected {}", self.received);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                self.discard(len, look)?;
                self.received = self.received.advance(len as u64);
                return Ok(true);
            }
            Head::Keepalive(keepalive) if keepalive.reply_requested => self.report()?,
            Head::Keepalive(_) => {}
        }
        Ok(false)
    }

    /// Up to where WAL has come.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Whether something has come that was not received yet.
    ///
    /// # Errors
    /// Of the socket.
    pub fn has_more(&self) -> io::Result<bool> {
        match rustix::net::recv(&self.socket, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Its connection once more, to wait at, or to report on.
    ///
    /// # Errors
    /// Of the socket.
    pub fn another_socket(&self) -> io::Result<TcpStream> {
        self.socket.try_clone()
    }

    /// Its connection, with the stream that was started.
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }

    fn head(&mut self) -> io::Result<Head> {
        let mut head = [0; PREFIX + XLogDataHeader::LEN];
        let (short, rest) = head.split_at_mut(PREFIX + Keepalive::LEN);
        self.socket.read_exact(short)?;
        if short[0] != b'd' {
            return Err(refused(short[0], &short[PREFIX..]));
        }
        let len = usize::try_from(u32::from_be_bytes([short[1], short[2], short[3], short[4]]));
        let payload = len.unwrap_or_default().saturating_sub(4);
        if short[PREFIX] == b'w' && payload >= XLogDataHeader::LEN {
            self.socket.read_exact(rest)?;
        }
        let is_keepalive = short[PREFIX] == b'k' && payload == Keepalive::LEN;
        let decoded = &head[PREFIX..][..if is_keepalive { Keepalive::LEN } else { XLogDataHeader::LEN }];
        match ServerMessage::decode(decoded) {
            Ok(ServerMessage::XLogData(header, _)) => {
                Ok(Head::Wal(header.start, payload - XLogDataHeader::LEN))
            }
            Ok(ServerMessage::Keepalive(keepalive)) => Ok(Head::Keepalive(keepalive)),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }

    fn discard(&mut self, mut len: usize, mut look: impl FnMut(&[u8])) -> io::Result<()> {
        while len > 0 {
            let piece = &mut self.scratch[..len.min(PIECE)];
            match rustix::net::recv(&self.socket, piece, self.flags) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, dropped)) => {
                    look(&self.scratch[..dropped.min(PIECE)]);
                    len -= dropped;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Says that everything received is written and flushed.
    ///
    /// # Errors
    /// Of the socket.
    pub fn report(&mut self) -> io::Result<()> {
        self.report_at(self.received)
    }

    /// Says that everything up to there is written, flushed and applied, whatever was received.
    ///
    /// # Errors
    /// Of the socket.
    pub fn report_at(&mut self, lsn: Lsn) -> io::Result<()> {
        Consumer::report_on(&self.socket, lsn)
    }

    /// Says so on a connection of its, of everything before `done`.
    ///
    /// # Errors
    /// Of the socket.
    pub fn report_on(mut socket: &TcpStream, done: Lsn) -> io::Result<()> {
        let send_time = PgTimestamp::from_system_time(SystemTime::now());
        let done = Some(done);
        let status =
            StandbyStatusUpdate { write: done, flush: done, apply: done, send_time, reply_requested: false };
        socket.write_all(&status.frame())
    }

    /// A message of the conversation before the stream.
    fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut prefix = [0; PREFIX];
        self.socket.read_exact(&mut prefix)?;
        let [kind, len @ ..] = prefix;
        let mut body = vec![0; (u32::from_be_bytes(len) as usize).saturating_sub(4)];
        self.socket.read_exact(&mut body)?;
        if kind == b'E' { Err(refused(kind, &body)) } else { Ok((kind, body)) }
    }
}

fn len_word(body: usize) -> [u8; 4] {
    u32::try_from(body + 4).expect("we send short messages").to_be_bytes()
}

fn refused(kind: u8, body: &[u8]) -> io::Error {
    let text = format!("server sent '{}': {}", kind.escape_ascii(), body.escape_ascii());
    io::Error::new(io::ErrorKind::InvalidData, text)
}
