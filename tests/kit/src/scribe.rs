//! A consumer that writes down every byte it is sent, and comes back at once whenever it is cut off.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant, SystemTime};

use walrelay_proto::{Lsn, PgTimestamp, ServerMessage, StandbyStatusUpdate};

use crate::cluster::Cluster;
use crate::scratch::Scratch;

/// How soon it notices that it is to stop.
const TICK: Duration = Duration::from_millis(20);
/// How often it reports, and how long it waits for an answer to what it asks.
const REPORT: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(5);

/// Its thread; ended when dropped.
#[derive(Debug)]
pub struct Scribe {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    from: Lsn,
    scratch: Scratch,
}

#[derive(Debug)]
struct Shared {
    port: u16,
    received: AtomicU64,
    stop: AtomicBool,
    /// What no server may do.
    faults: Mutex<Vec<String>>,
}

impl Scribe {
    /// Streams from `from` on from the relay at this port, where `postgres` is trusted.
    pub fn start(port: u16, from: Lsn) -> Scribe {
        let scratch = Scratch::new("scribe");
        let file = File::create_new(scratch.join("wal")).expect("the directory is ours");
        let shared = Arc::new(Shared {
            port,
            received: AtomicU64::new(from.as_u64()),
            stop: AtomicBool::new(false),
            faults: Mutex::default(),
        });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || of_thread.receive(&file, from));
        Scribe { shared, thread: Some(thread), from, scratch }
    }

    /// How far it has come.
    pub fn received(&self) -> Lsn {
        Lsn::new(self.shared.received.load(Ordering::SeqCst))
    }

    /// What it was told that cannot be.
    pub fn faults(&self) -> Vec<String> {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Compares what it got with the primary's finished segments; how many there were.
    ///
    /// # Errors
    /// Says where it differs.
    pub fn compare(&self, primary: &Cluster) -> Result<usize, String> {
        let size = primary.seg_size();
        let file = File::open(self.scratch.join("wal")).map_err(|error| error.to_string())?;
        let mut compared = 0;
        for name in primary.finished_segments() {
            let Some(wal) = walrelay_proto::WalFileName::parse(&name, size) else { continue };
            let (start, end) = (wal.segno.start(size).max(self.from), wal.segno.end(size));
            if start >= end || end > self.received() {
                continue;
            }
            let theirs = read(&primary.wal_dir().join(&name))?;
            let mut ours = vec![0; end.since(start) as usize];
            file.read_exact_at(&mut ours, start.since(self.from)).map_err(|error| error.to_string())?;
            let theirs = &theirs[start.offset_in_seg(size) as usize..];
            if let Some(at) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
                return Err(format!("a consumer's WAL differs at {}", start.advance(at as u64)));
            }
            compared += 1;
        }
        Ok(compared)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn receive(&self, file: &File, from: Lsn) {
        while !self.stop.load(Ordering::SeqCst) {
            if let Err(error) = self.stream(file, from)
                && error.kind() == ErrorKind::InvalidData
            {
                self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
            }
            park_timeout(TICK);
        }
    }

    fn stream(&self, file: &File, from: Lsn) -> io::Result<()> {
        let socket = TcpStream::connect(("127.0.0.1", self.port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TICK))?;
        let mut conversation = Conversation { socket, input: Vec::new(), cut: 0 };
        let parameters = b"user\0postgres\0replication\0true\0application_name\0scribe\0\0";
        let body = [&(3_u32 << 16).to_be_bytes()[..], parameters].concat();
        conversation.send(&[&length(body.len()), &body[..]].concat())?;
        conversation.until(b'Z', &self.stop)?;
        let mut at = Lsn::new(self.received.load(Ordering::SeqCst));
        let query = format!("START_REPLICATION PHYSICAL {at}\0");
        conversation.send(&[b"Q", &length(query.len())[..], query.as_bytes()].concat())?;
        conversation.until(b'W', &self.stop)?;
        let mut reported = Instant::now();
        while !self.stop.load(Ordering::SeqCst) {
            let mut asked = false;
            if let Some((kind, body)) = conversation.message()? {
                match (kind, kind == b'd') {
                    (_, true) => match ServerMessage::decode(body) {
                        Ok(ServerMessage::XLogData(header, wal)) => {
                            if header.start != at {
                                return Err(fault(format!("WAL from {}, expected {at}", header.start)));
                            }
                            file.write_all_at(wal, at.since(from))?;
                            at = at.advance(wal.len() as u64);
                            self.received.store(at.as_u64(), Ordering::SeqCst);
                        }
                        Ok(ServerMessage::Keepalive(keepalive)) => asked = keepalive.reply_requested,
                        Err(error) => return Err(fault(error.to_string())),
                    },
                    (b'E', _) => return Err(refused(body)),
                    _ => return Err(ErrorKind::UnexpectedEof.into()),
                }
            }
            if asked || reported.elapsed() >= REPORT {
                reported = Instant::now();
                conversation.report(at)?;
            }
        }
        Ok(())
    }
}

struct Conversation {
    socket: TcpStream,
    input: Vec<u8>,
    /// Of the input, bytes that were taken.
    cut: usize,
}

impl Conversation {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    fn report(&mut self, at: Lsn) -> io::Result<()> {
        let send_time = PgTimestamp::from_system_time(SystemTime::now());
        let done = Some(at);
        let status =
            StandbyStatusUpdate { write: done, flush: done, apply: done, send_time, reply_requested: false };
        self.send(&status.frame())
    }

    /// The next message, if it comes soon.
    fn message(&mut self) -> io::Result<Option<(u8, &[u8])>> {
        self.input.drain(..std::mem::take(&mut self.cut));
        if self.whole().is_none() {
            let mut buffer = [0; 32 << 10];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(end) = self.whole() else { return Ok(None) };
        self.cut = end;
        Ok(Some((self.input[0], &self.input[5..end])))
    }

    fn whole(&self) -> Option<usize> {
        let word = self.input.get(1..5)?.first_chunk()?;
        let end = 1 + (u32::from_be_bytes(*word) as usize).max(4);
        (self.input.len() >= end).then_some(end)
    }

    fn until(&mut self, wanted: u8, stop: &AtomicBool) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            match self.message()? {
                Some((kind, _)) if kind == wanted => return Ok(()),
                Some((b'E', body)) => return Err(refused(body)),
                _ if stop.load(Ordering::SeqCst) || begun.elapsed() > PATIENCE => {
                    return Err(ErrorKind::TimedOut.into());
                }
                _ => {}
            }
        }
    }
}

fn length(body: usize) -> [u8; 4] {
    u32::try_from(body + 4).expect("we send short messages").to_be_bytes()
}

/// A refusal passes, but for one: WAL that is gone.
fn refused(body: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(body).replace('\0', " ");
    match text.contains("removed") {
        true => fault(text),
        false => io::Error::other(text),
    }
}

fn fault(text: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}
