//! WAL on its way into a socket: a few XLogData messages whose payload is the segment's memory map, or for large ones its
//! file, as long as that is open.
//!
//! The kernel copies out of the map, or sends the file's pages, so a page that cannot be read (a bad sector, a file that somebody has truncated) is
//! an error. TLS loads what it encrypts, which would be SIGBUS then; so it gets a copy that the kernel has made.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;

use walrelay_proto::sender::{MAX_MESSAGES, message_end};
use walrelay_proto::{Lsn, PgTimestamp, XLogDataHeader};

use crate::store::{COPIED, Segment, SegmentFile};
use crate::wire::Socket;

thread_local! {
    /// What is about to be encrypted: of use for one call, so not each consumer's own.
    static COPY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Messages of more bytes of WAL than this are sent by `sendfile`, two calls each, instead of one `writev` for all.
const LARGE: usize = 64 << 10;

/// Up to four messages of WAL from one segment, partly sent.
///
/// Messages end on a page boundary or at the end of what may be sent, which is a record's end, and never
/// reach beyond the segment: recovery relies on the first, some receivers on the second.
#[derive(Debug)]
pub(super) struct Batch {
    segment: Arc<Segment>,
    /// Where the kernel is to send from, if it is.
    file: Option<SegmentFile>,
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
        let mut batch = Batch { segment, file: None, messages: [blank; MAX_MESSAGES], count: 0, sent: 0 };
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
        if batch.messages[0].len > LARGE {
            batch.file = batch.segment.file_to_send();
        }
        batch
    }

    /// Gives the socket what it takes without waiting; whether all of it is sent.
    pub(super) fn send(&mut self, socket: &Socket) -> io::Result<bool> {
        while self.unsent().next().is_some() {
            let sent = match (socket.tls(), &self.file) {
                (Some(_), _) => self.send_copy(socket),
                (None, Some(file)) => self.send_file(socket, file),
                (None, None) => self.send_mapped(socket),
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => self.sent += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // Not every file system can do that.
                Err(error) if self.file.is_some() && cannot_send_files(&error) => self.file = None,
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

    /// The next part, the kernel's own pages if it is WAL. They never change, so what waits in the socket does not either.
    fn send_file(&self, socket: &Socket, file: &SegmentFile) -> io::Result<usize> {
        match self.unsent().next() {
            Some(Part::Header(bytes)) => socket.try_write_with_more(bytes),
            Some(Part::Wal { offset, len }) => match socket.try_send_file(file.as_fd(), offset, len) {
                Ok(0) => Err(self.complain(Segment::unreadable())),
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    Err(self.complain(Segment::unreadable()))
                }
                other => other,
            },
            None => Ok(0),
        }
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

fn cannot_send_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use tokio::net::{TcpListener, TcpStream};
    use walrelay_proto::generate::WalGenerator;
    use walrelay_proto::{SegNo, SegSize, SystemId, TimelineId, WalFileName, WalIdentity};

    use super::*;
    use crate::store::{Store, StoreConfig, WalWrite};

    const SEG: u64 = 1 << 20;
    const START: Lsn = Lsn::new(3 * SEG);

    /// A finished segment in a file, opened to be sent, and what is in it.
    fn segment(dir: &std::path::Path) -> (Arc<Store>, Arc<Segment>, Vec<u8>) {
        let config = StoreConfig {
            data_dir: dir.to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 1 << 40,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        };
        let identity =
            crate::store::Identity { system_id: SystemId(77), seg_size: SegSize::new(SEG).unwrap() };
        let mut stepped = Store::open_on(Arc::new(crate::disk::OsDisk), config).unwrap();
        stepped.store.attach(identity, crate::store::UpstreamParameters::default()).unwrap();
        stepped.writer.begin(identity, walrelay_proto::TimelineHistory::first(), START);
        let id = WalIdentity { system_id: identity.system_id, seg_size: identity.seg_size };
        let mut wal = WalGenerator::new(id, TimelineId::FIRST, START, 1);
        wal.fill(2 * SEG as usize);
        stepped.writer.append(START, wal.bytes()).unwrap();
        stepped.writer.commit();
        while stepped.flushing.step() {}
        let store = stepped.store.clone();
        drop(stepped);
        let segment = store.segment_to_send(&store.history(), TimelineId::FIRST, SegNo::new(3)).unwrap();
        assert!(segment.file_to_send().is_some());
        (store, segment, wal.bytes()[..SEG as usize].to_vec())
    }

    async fn pair() -> (Socket, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap().into_std().unwrap();
        peer.set_nonblocking(false).unwrap();
        (Socket::from(listener.accept().await.unwrap().0), peer)
    }

    async fn sent(batch: &mut Batch, socket: &Socket) -> io::Result<()> {
        while !batch.send(socket)? {
            socket.ready(tokio::io::Interest::WRITABLE).await?;
        }
        Ok(())
    }

    /// What the other end gets is the same, from the file and from the map.
    #[tokio::test]
    async fn messages_are_the_same_from_the_file_and_from_the_map() {
        let dir = crate::permissions::private_tempdir();
        let (_store, segment, wal) = segment(dir.path());
        let mut got = Vec::new();
        for from_file in [true, false] {
            if !from_file {
                segment.close_to_send();
            }
            let (socket, mut peer) = pair().await;
            let reader = std::thread::spawn(move || {
                let mut bytes = Vec::new();
                peer.read_to_end(&mut bytes).map(|_| bytes)
            });
            let mut at = START;
            while at < segment.end() {
                let to = (0..MAX_MESSAGES).fold(at, |at, _| message_end(at, segment.end()));
                let mut batch = Batch::new(segment.clone(), at, to, segment.end(), PgTimestamp::default());
                assert_eq!(batch.file.is_some(), from_file);
                sent(&mut batch, &socket).await.unwrap();
                at = to;
            }
            drop(socket);
            got.push(reader.join().unwrap().unwrap());
        }
        assert!(got[0] == got[1]);
        let payload: Vec<u8> = got[0]
            .chunks(XLogDataHeader::FRAME_LEN + 128 * 1024)
            .flat_map(|message| &message[XLogDataHeader::FRAME_LEN..])
            .copied()
            .collect();
        assert!(payload == wal);
        let name = WalFileName::new(TimelineId::FIRST, SegNo::new(3));
        assert_eq!(segment.name(), name);
    }

    #[tokio::test]
    async fn what_somebody_has_truncated_is_an_error_and_not_sent() {
        let dir = crate::permissions::private_tempdir();
        let (store, segment, wal) = segment(dir.path());
        let path = store.wal_path(&segment.file_name());
        std::fs::File::options().write(true).open(path).unwrap().set_len(100_000).unwrap();
        let (socket, mut peer) = pair().await;
        let to = message_end(START, segment.end());
        let mut batch = Batch::new(segment.clone(), START, to, segment.end(), PgTimestamp::default());
        let error = sent(&mut batch, &socket).await.unwrap_err().to_string();
        assert!(error.starts_with("could not read WAL segment 000000010000000000000003: "), "{error}");
        drop(socket);
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        assert!(bytes[XLogDataHeader::FRAME_LEN..] == wal[..100_000]);
    }
}
