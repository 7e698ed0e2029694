//! WAL on its way into a socket: a few XLogData messages whose payload is the segment's memory map.
//!
//! The kernel copies out of the map, so a page that cannot be read (a bad sector, a file that somebody has truncated) is
//! an error. TLS loads what it encrypts, which would be SIGBUS then; so it gets a copy that the kernel has made.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::sync::Arc;

use walrelay_proto::sender::{MAX_MESSAGES, message_end};
use walrelay_proto::{Lsn, PgTimestamp, XLogDataHeader};

use crate::store::{COPIED, Segment};
use crate::wire::Socket;

thread_local! {
    /// What is about to be encrypted: of use for one call, so not each consumer's own.
    static COPY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Up to four messages of WAL from one segment, partly sent.
///
/// Messages end on a page boundary or at the end of what may be sent, which is a record's end, and never
/// reach beyond the segment: recovery relies on the first, some receivers on the second.
#[derive(Debug)]
pub(super) struct Batch {
    segment: Arc<Segment>,
    messages: [Message; MAX_MESSAGES],
    count: usize,
    /// Bytes of all messages, headers included, that the socket has taken.
    sent: usize,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    header: [u8; XLogDataHeader::FRAME_LEN],
    offset: u64,
    len: usize,
}

impl Batch {
    /// The WAL from `start` to `stop`, which lies in the segment; each message says that there is WAL up to `limit`.
    pub(super) fn new(segment: Arc<Segment>, start: Lsn, stop: Lsn, limit: Lsn, now: PgTimestamp) -> Batch {
        let blank = Message { header: [0; XLogDataHeader::FRAME_LEN], offset: 0, len: 0 };
        let mut batch = Batch { segment, messages: [blank; MAX_MESSAGES], count: 0, sent: 0 };
        let mut at = start;
        for message in &mut batch.messages {
            if at >= stop {
                break;
            }
            let end = message_end(at, stop);
            let len = end.since(at) as usize;
            let header = XLogDataHeader { start: at, end: limit, send_time: now }.frame(len as u32);
            *message = Message { header, offset: at.since(batch.segment.start()), len };
            batch.count += 1;
            at = end;
        }
        batch
    }

    /// Gives the socket what it takes without waiting; whether all of it is sent.
    pub(super) fn send(&mut self, socket: &Socket) -> io::Result<bool> {
        while self.unsent().next().is_some() {
            let sent = match socket.tls() {
                Some(_) => self.send_copy(socket),
                None => self.send_mapped(socket),
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => self.sent += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn send_mapped(&self, socket: &Socket) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); 2 * MAX_MESSAGES];
        let mut count = 0;
        for part in self.unsent() {
            slices[count] = IoSlice::new(match part {
                Part::Header(bytes) => bytes,
                Part::Wal { offset, len } => self.segment.bytes(offset, len),
            });
            count += 1;
        }
        let sent = socket.try_write_vectored(&slices[..count]);
        sent.map_err(|error| match error.raw_os_error() {
            Some(libc::EFAULT) => self.complain(Segment::unreadable()),
            _ => error,
        })
    }

    fn send_copy(&self, socket: &Socket) -> io::Result<usize> {
        COPY.with_borrow_mut(|copy| {
            copy.clear();
            for part in self.unsent() {
                let room = COPIED.saturating_sub(copy.len());
                match part {
                    Part::Header(bytes) => copy.extend_from_slice(bytes),
                    Part::Wal { offset, len } => {
                        let from = copy.len();
                        copy.resize(from + len.min(room), 0);
                        let read = self.segment.read(offset, &mut copy[from..]);
                        read.map_err(|error| self.complain(error))?;
                    }
                }
                if copy.len() >= COPIED {
                    break;
                }
            }
            socket.try_write_vectored(&[IoSlice::new(copy)])
        })
    }

    /// The consumer is cut off in the middle of a message, so it cannot be told.
    fn complain(&self, error: io::Error) -> io::Error {
        let text = format!("could not read WAL segment {}: {error}", self.segment.file_name());
        tracing::error!("{text}; look at the disk, and restore the file from a copy");
        io::Error::other(text)
    }

    /// What the socket has not taken yet.
    fn unsent(&self) -> impl Iterator<Item = Part<'_>> {
        let mut skip = self.sent;
        self.messages[..self.count]
            .iter()
            .flat_map(|message| {
                let wal = Part::Wal { offset: message.offset, len: message.len };
                [Part::Header(&message.header), wal]
            })
            .filter_map(move |part| {
                let skipped = skip.min(part.len());
                skip -= skipped;
                (skipped < part.len()).then(|| part.behind(skipped))
            })
    }
}

/// A piece of a message.
#[derive(Clone, Copy)]
enum Part<'a> {
    Header(&'a [u8]),
    Wal { offset: u64, len: usize },
}

impl<'a> Part<'a> {
    fn len(self) -> usize {
        match self {
            Part::Header(bytes) => bytes.len(),
            Part::Wal { len, .. } => len,
        }
    }

    fn behind(self, skipped: usize) -> Part<'a> {
        match self {
            Part::Header(bytes) => Part::Header(&bytes[skipped..]),
            Part::Wal { offset, len } => Part::Wal { offset: offset + skipped as u64, len: len - skipped },
        }
    }
}
