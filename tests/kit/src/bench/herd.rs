//! Very many live consumers on one thread.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use walrelay_proto::{Lsn, ServerMessage};

use super::latency::Log;
use super::stage::consumer;

/// A look at whether it is over, when nothing comes.
const LOOK: Duration = Duration::from_millis(100);

/// Consumers that wait for WAL.
pub(crate) struct Herd {
    members: Vec<Member>,
}

struct Member {
    socket: TcpStream,
    /// The beginning of a message.
    input: Vec<u8>,
    at: Lsn,
    log: Log,
}

impl Herd {
    pub(crate) fn connect(address: SocketAddr, count: usize, start: Lsn) -> Herd {
        let member = |_| {
            let mut consumer = consumer(address);
            consumer.start(start).expect("it is there");
            Member { socket: consumer.into_socket(), input: Vec::new(), at: start, log: Vec::new() }
        };
        Herd { members: (0..count).map(member).collect() }
    }

    /// Receives until everybody is past `last`; when what came to whom.
    pub(crate) fn log_until(mut self, last: &AtomicU64) -> io::Result<Vec<Log>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (number, member) in (0_u64..).zip(&self.members) {
            epoll::add(&epoll, &member.socket, EventData::new_u64(number), EventFlags::IN)?;
        }
        let (mut events, mut scratch) = (Vec::<Event>::with_capacity(256), vec![0; 64 << 10]);
        let look = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
        while self.members.iter().any(|member| member.at.as_u64() <= last.load(Ordering::Relaxed)) {
            events.clear();
            epoll::wait(&epoll, spare_capacity(&mut events), Some(&look))?;
            for event in &events {
                if let Some(member) = self.members.get_mut(event.data.u64() as usize) {
                    member.receive(&mut scratch)?;
                }
            }
        }
        Ok(self.members.into_iter().map(|member| member.log).collect())
    }
}

impl Member {
    fn receive(&mut self, scratch: &mut [u8]) -> io::Result<()> {
        let count = self.socket.read(scratch)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.input.extend_from_slice(&scratch[..count]);
        let before = self.at;
        while let Some((frame, rest)) = split(&self.input) {
            if let Ok(ServerMessage::XLogData(header, wal)) = ServerMessage::decode(frame) {
                self.at = header.start.advance(wal.len() as u64);
            }
            self.input = rest.to_vec();
        }
        if self.at > before {
            self.log.push((self.at, Instant::now()));
        }
        Ok(())
    }
}

/// The payload of the first message, if it is all there, and what is behind it.
fn split(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u32::from_be_bytes(*input.get(1..)?.first_chunk()?) as usize;
    let (message, rest) = input.split_at_checked(1 + len)?;
    Some((message.get(5..)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut() {
        assert_eq!(split(b"d\0\0\0\x06abd\0"), Some((&b"ab"[..], &b"d\0"[..])));
        assert_eq!(split(b"d\0\0\0\x06a"), None);
        assert_eq!(split(b"d\0\0"), None);
    }
}
