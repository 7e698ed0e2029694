//! The sockets a client may come through.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

use super::source::Source;
use super::tls::{ServerTls, TlsSession};

/// A connected socket, perhaps encrypted.
#[derive(Debug)]
pub struct Socket {
    stream: Arc<Stream>,
    tls: Option<Box<TlsSession>>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A process of this machine, with its user's id if the system tells it.
    Local {
        /// Effective user id when it connected.
        uid: Option<u32>,
    },
}

impl Peer {
    /// The IP address, with an IPv4 address mapped into IPv6 unwrapped.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address.ip().to_canonical()),
            Peer::Local { .. } => None,
        }
    }

    /// Whose share of everything it takes; `None` for those of this machine.
    pub fn source(&self) -> Option<Source> {
        self.ip().map(Source::from)
    }

    /// The address for the registry of consumers.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Peer::Tcp(address) => Some(*address),
            Peer::Local { .. } => None,
        }
    }
}

impl fmt::Display for Peer {
    /// As in PostgreSQL's log: an address or `[local]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Local { .. } => f.write_str("[local]"),
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Socket {
        Socket { stream: Arc::new(Stream::Tcp(socket)), tls: None }
    }
}

impl From<UnixStream> for Socket {
    fn from(socket: UnixStream) -> Socket {
        Socket { stream: Arc::new(Stream::Unix(socket)), tls: None }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &*self.stream {
            Stream::Tcp(socket) => socket.as_fd(),
            Stream::Unix(socket) => socket.as_fd(),
        }
    }
}

/// What to talk to: TLS goes over TCP only.
enum Route<'a> {
    Tcp(&'a TcpStream),
    Unix(&'a UnixStream),
    Tls(&'a TlsSession, &'a TcpStream),
}

impl Socket {
    fn route(&self) -> Route<'_> {
        match (&*self.stream, &self.tls) {
            (Stream::Tcp(socket), Some(tls)) => Route::Tls(tls, socket),
            (Stream::Tcp(socket), None) => Route::Tcp(socket),
            (Stream::Unix(socket), _) => Route::Unix(socket),
        }
    }

    /// The TCP socket below everything, for its options.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &*self.stream {
            Stream::Tcp(socket) => Some(socket),
            Stream::Unix(_) => None,
        }
    }

    /// How it is encrypted; `None` if it is not.
    pub fn tls(&self) -> Option<&TlsSession> {
        self.tls.as_deref()
    }

    /// The same socket for somebody else who writes to it, between two messages; `None` where that takes more than a system
    /// call, because it is encrypted.
    pub fn share(&self) -> Option<Socket> {
        self.tls.is_none().then(|| Socket { stream: self.stream.clone(), tls: None })
    }

    /// Encrypts a TCP socket. After an error, or if the future is dropped, the socket is of no more use.
    ///
    /// # Errors
    /// The handshake has failed; the client has been told in TLS's way.
    pub async fn accept_tls(&mut self, tls: &ServerTls) -> io::Result<()> {
        let Route::Tcp(socket) = self.route() else { return Err(io::ErrorKind::Unsupported.into()) };
        self.tls = Some(Box::new(tls.accept(socket).await?));
        Ok(())
    }

    /// The first byte that waits in a TCP socket, without taking it; `None` at the end. Cancel-safe.
    pub async fn peek(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        match &*self.stream {
            Stream::Tcp(socket) => Ok((socket.peek(&mut byte).await? > 0).then_some(byte[0])),
            Stream::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Whether something has come that nobody has read from the socket yet. Asks the system, without waiting: the
    /// runtime may not have heard of it.
    pub fn has_unread(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = match &*self.stream {
            Stream::Tcp(socket) => recv(socket, &mut [0; 1], flags),
            Stream::Unix(socket) => recv(socket, &mut [0; 1], flags),
        };
        peeked.is_ok_and(|(read, _)| read > 0)
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<Peer> {
        match &*self.stream {
            Stream::Tcp(socket) => socket.peer_addr().map(Peer::Tcp),
            Stream::Unix(socket) => Ok(Peer::Local { uid: socket.peer_cred().ok().map(|cred| cred.uid()) }),
        }
    }

    /// Waits until the socket may be read or written; encrypted bytes that wait to be sent go out meanwhile.
    /// Cancel-safe.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self.route() {
            Route::Tcp(socket) => socket.ready(interest).await,
            Route::Unix(socket) => socket.ready(interest).await,
            Route::Tls(tls, socket) => tls.ready(socket, interest).await,
        }
    }

    /// As the sockets' own reading, while they have two owners.
    fn poll_read_shared(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while buf.remaining() > 0 {
            match self.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(match &*self.stream {
                        Stream::Tcp(socket) => socket.poll_read_ready(cx),
                        Stream::Unix(socket) => socket.poll_read_ready(cx),
                    })?;
                }
                result => return Poll::Ready(result.map(|_| ())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The same for writing.
    fn poll_write_shared(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write_vectored(&[IoSlice::new(buf)]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(match &*self.stream {
                        Stream::Tcp(socket) => socket.poll_write_ready(cx),
                        Stream::Unix(socket) => socket.poll_write_ready(cx),
                    })?;
                }
                result => return Poll::Ready(result),
            }
        }
    }

    /// Writes what fits without waiting; [`io::ErrorKind::WouldBlock`] if nothing does.
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.route() {
            Route::Tcp(socket) => socket.try_write_vectored(slices),
            Route::Unix(socket) => socket.try_write_vectored(slices),
            Route::Tls(tls, socket) => tls.try_write_vectored(socket, slices),
        }
    }

    /// Writes what fits without waiting, and has the kernel wait for what comes behind it. Not where it is encrypted.
    pub fn try_write_with_more(&self, bytes: &[u8]) -> io::Result<usize> {
        use rustix::net::{SendFlags, send};
        let flags = SendFlags::MORE | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match self.route() {
            Route::Tcp(socket) => socket.try_io(Interest::WRITABLE, || Ok(send(socket, bytes, flags)?)),
            Route::Unix(socket) => socket.try_io(Interest::WRITABLE, || Ok(send(socket, bytes, flags)?)),
            Route::Tls(..) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Has the kernel send what fits of a file without waiting; 0 where the file has ended. Not where it is encrypted.
    pub fn try_send_file(&self, file: BorrowedFd<'_>, mut offset: u64, len: usize) -> io::Result<usize> {
        use rustix::fs::sendfile;
        match self.route() {
            Route::Tcp(socket) => {
                socket.try_io(Interest::WRITABLE, || Ok(sendfile(socket, file, Some(&mut offset), len)?))
            }
            Route::Unix(socket) => {
                socket.try_io(Interest::WRITABLE, || Ok(sendfile(socket, file, Some(&mut offset), len)?))
            }
            Route::Tls(..) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Reads what is there without waiting; 0 at the end, [`io::ErrorKind::WouldBlock`] if nothing is.
    pub fn try_read_buf(&self, buffer: &mut impl bytes::BufMut) -> io::Result<usize> {
        let room = buffer.chunk_mut().len();
        let mut read = Err(io::ErrorKind::WouldBlock.into());
        // What was known of the socket before the read counts, and not what epoll tells meanwhile.
        let _ = match self.route() {
            Route::Tcp(socket) => socket.try_io(Interest::READABLE, || {
                read = socket.try_read_buf(buffer);
                is_emptied(&read, room)
            }),
            Route::Unix(socket) => socket.try_io(Interest::READABLE, || {
                read = socket.try_read_buf(buffer);
                is_emptied(&read, room)
            }),
            Route::Tls(tls, socket) => return tls.try_read_buf(socket, buffer),
        };
        read
    }
}

/// A read that had more room than it got bytes has emptied the socket, and epoll tells of what comes after that: the runtime need
/// not look in vain. That is said as if there had been nothing.
fn is_emptied(read: &io::Result<usize>, room: usize) -> io::Result<()> {
    match read {
        Ok(count) if (1..room).contains(count) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Route::Tls(tls, socket) = this.route() {
            return tls.poll_read(socket, cx, buf);
        }
        match Arc::get_mut(&mut this.stream) {
            Some(Stream::Tcp(socket)) => Pin::new(socket).poll_read(cx, buf),
            Some(Stream::Unix(socket)) => Pin::new(socket).poll_read(cx, buf),
            None => this.poll_read_shared(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Route::Tls(tls, socket) = this.route() {
            return tls.poll_write(socket, cx, buf);
        }
        match Arc::get_mut(&mut this.stream) {
            Some(Stream::Tcp(socket)) => Pin::new(socket).poll_write(cx, buf),
            Some(Stream::Unix(socket)) => Pin::new(socket).poll_write(cx, buf),
            None => this.poll_write_shared(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.route() {
            Route::Tls(tls, socket) => tls.poll_flush(socket, cx),
            // What they take is gone.
            Route::Tcp(_) | Route::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Route::Tls(tls, socket) = self.route() {
            ready!(tls.poll_goodbye(socket, cx))?;
        }
        match rustix::net::shutdown(&*self, rustix::net::Shutdown::Write) {
            // The client was faster.
            Err(rustix::io::Errno::NOTCONN) | Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
