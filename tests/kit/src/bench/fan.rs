//! The least that sending live WAL to many can take: one connection to the server, and of each message that comes one plain `send`
//! to each consumer, one after the other, by one thread. It keeps in memory what has come, for those who come later. Nothing is
//! stored, nobody is waited for: a ceiling, not a server. In a process of its own, as [`sendfile`](super::sendfile).

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, poll};
use walrelay_proto::{Lsn, PgTimestamp, XLogDataHeader};

use super::sendfile::{asked_for, let_in};
use super::stage::local;
use crate::Consumer;

/// Sends what comes from `start` on to as many as come, until the process is ended.
///
/// # Errors
/// Of sockets.
pub(crate) fn serve(port: &str, upstream: &str, start: &str) -> Result<(), String> {
    let port = port.parse().map_err(|_| "no port")?;
    let upstream = upstream.parse().map_err(|_| "no port above")?;
    let start: Lsn = start.parse().map_err(|_| "no position")?;
    run(port, upstream, start).map_err(|error| error.to_string())
}

fn run(port: u16, upstream: u16, start: Lsn) -> io::Result<()> {
    let mut above = Consumer::connect(local(upstream), "fan")?.copying();
    above.start(start)?;
    let upstream = above.another_socket()?;
    let listener = TcpListener::bind(local(port))?;
    let mut fan = Fan { start, wal: Vec::new(), served: Vec::new() };
    loop {
        let mut fds = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&upstream, PollFlags::IN)];
        poll(&mut fds, None)?;
        let [newcomer, wal] = fds.map(|fd| !fd.revents().is_empty());
        if wal {
            fan.receive(&mut above)?;
        }
        // Who only looks whether we are there is no consumer.
        if newcomer && let Ok((socket, from)) = log_in(listener.accept()?.0) {
            while fan.end() < from {
                fan.receive(&mut above)?;
            }
            fan.take(socket, from)?;
        }
    }
}

fn log_in(mut socket: TcpStream) -> io::Result<(TcpStream, Lsn)> {
    let_in(&mut socket)?;
    let from = asked_for(&mut socket)?;
    Ok((socket, from))
}

struct Fan {
    start: Lsn,
    /// Everything since then.
    wal: Vec<u8>,
    served: Vec<TcpStream>,
}

impl Fan {
    fn end(&self) -> Lsn {
        self.start.advance(self.wal.len() as u64)
    }

    /// Sends the next message on, if it is WAL. Who has gone is forgotten.
    fn receive(&mut self, above: &mut Consumer) -> io::Result<()> {
        let (at, begun) = (self.end(), self.wal.len());
        if above.next_message_with(|piece| self.wal.extend_from_slice(piece))? {
            let message = message(at, &self.wal[begun..]);
            self.served.retain_mut(|socket| socket.write_all(&message).is_ok());
        }
        Ok(())
    }

    /// Serves somebody from now on, and what has come since `from` at once.
    fn take(&mut self, mut socket: TcpStream, from: Lsn) -> io::Result<()> {
        let behind =
            from.as_u64().checked_sub(self.start.as_u64()).and_then(|at| self.wal.get(at as usize..));
        let behind = behind.ok_or_else(|| io::Error::other(format!("{from} is before {}", self.start)))?;
        if !behind.is_empty() {
            socket.write_all(&message(from, behind))?;
        }
        self.served.push(socket);
        Ok(())
    }
}

fn message(at: Lsn, wal: &[u8]) -> Vec<u8> {
    let send_time = PgTimestamp::from_system_time(SystemTime::now());
    let header = XLogDataHeader { start: at, end: at.advance(wal.len() as u64), send_time };
    [&header.frame(wal.len() as u32)[..], wal].concat()
}
