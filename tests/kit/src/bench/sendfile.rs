//! The least that serving stored WAL can take: one thread, a header with `MSG_MORE`, and `sendfile` of the segment file.
//!
//! No replication, no login to speak of, nothing checked, nobody waited for: a ceiling, not a server. It runs in a process of
//! its own, so that its CPU time can be told from the consumers'.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use walrelay_proto::{Lsn, PgTimestamp, SegNo, SegSize, TimelineId, WalFileName, XLogDataHeader};

/// WAL in one message: what PostgreSQL sends at most.
const MESSAGE: u64 = 128 << 10;

/// Serves WAL up to `end` from segment files, to as many consumers at a time as come, until the process is ended.
///
/// # Errors
/// Of files and sockets.
pub(crate) fn serve(port: u16, dir: PathBuf, seg_size: SegSize, end: Lsn) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let mut served: Vec<Served> = Vec::new();
    loop {
        let ready = wait(&listener, &served)?;
        if ready.first() == Some(&true) {
            let (socket, _) = listener.accept()?;
            // Who only looks whether we are there is no consumer.
            served.extend(Served::log_in(socket).ok());
            continue;
        }
        let mut ready = ready.into_iter().skip(1);
        // Who has gone is forgotten.
        served.retain_mut(|it| !ready.next().unwrap_or_default() || it.step(&dir, seg_size, end).is_ok());
    }
}

/// Who is ready: the listener, then those who are served.
fn wait(listener: &TcpListener, served: &[Served]) -> io::Result<Vec<bool>> {
    let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
    fds.extend(served.iter().map(|it| PollFd::new(&it.socket, it.wants())));
    poll(&mut fds, None)?;
    Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}

struct Served {
    socket: TcpStream,
    stream: Option<Stream>,
}

struct Stream {
    at: Lsn,
    file: File,
    segno: SegNo,
    /// Of the message under way: what is left of its header, and of its WAL.
    header: Vec<u8>,
    left: u64,
}

impl Served {
    fn log_in(mut socket: TcpStream) -> io::Result<Served> {
        let_in(&mut socket)?;
        Ok(Served { socket, stream: None })
    }

    /// A command before the stream, room in the socket while there is something to send, the end after it.
    fn wants(&self) -> PollFlags {
        match &self.stream {
            Some(stream) if !stream.header.is_empty() || stream.left > 0 => PollFlags::OUT,
            _ => PollFlags::IN,
        }
    }

    fn step(&mut self, dir: &std::path::Path, seg_size: SegSize, end: Lsn) -> io::Result<()> {
        match &mut self.stream {
            None => {
                self.stream = Some(begin(&mut self.socket, dir, seg_size, end)?);
                self.socket.set_nonblocking(true)
            }
            // It says something: that it is going.
            Some(stream) if stream.header.is_empty() && stream.left == 0 => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Some(stream) => stream.send(&self.socket, dir, seg_size, end),
        }
    }
}

/// Takes a start-up packet for what it is.
pub(crate) fn let_in(socket: &mut TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut len = [0; 4];
    socket.read_exact(&mut len)?;
    let mut startup = vec![0; (u32::from_be_bytes(len) as usize).saturating_sub(4)];
    socket.read_exact(&mut startup)?;
    socket.write_all(b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\0\0\0\0\0Z\0\0\0\x05I")
}

/// The position that START_REPLICATION names, which is granted.
pub(crate) fn asked_for(socket: &mut TcpStream) -> io::Result<Lsn> {
    let mut prefix = [0; 5];
    socket.read_exact(&mut prefix)?;
    let [_, len @ ..] = prefix;
    let mut query = vec![0; (u32::from_be_bytes(len) as usize).saturating_sub(4)];
    socket.read_exact(&mut query)?;
    let text = String::from_utf8_lossy(&query);
    let start = text.trim_end_matches('\0').rsplit(' ').next().and_then(|word| word.parse().ok());
    let at: Lsn = start.ok_or_else(|| io::Error::other(text.into_owned()))?;
    socket.write_all(b"W\0\0\0\x07\0\0\0")?;
    Ok(at)
}

fn begin(socket: &mut TcpStream, dir: &std::path::Path, seg_size: SegSize, end: Lsn) -> io::Result<Stream> {
    let at = asked_for(socket)?;
    let segno = at.seg_at(seg_size);
    let mut stream = Stream { at, file: open(dir, segno, seg_size)?, segno, header: Vec::new(), left: 0 };
    stream.next(dir, seg_size, end)?;
    Ok(stream)
}

fn open(dir: &std::path::Path, segno: SegNo, seg_size: SegSize) -> io::Result<File> {
    File::open(dir.join(WalFileName { tli: TimelineId::FIRST, segno }.format(seg_size)))
}

impl Stream {
    /// Begins with the next message, if there is one.
    fn next(&mut self, dir: &std::path::Path, seg_size: SegSize, end: Lsn) -> io::Result<()> {
        if self.at >= end {
            return Ok(());
        }
        let segno = self.at.seg_at(seg_size);
        if segno != self.segno {
            (self.file, self.segno) = (open(dir, segno, seg_size)?, segno);
        }
        self.left = MESSAGE.min(end.since(self.at)).min(segno.end(seg_size).since(self.at));
        let send_time = PgTimestamp::from_system_time(std::time::SystemTime::now());
        let header = XLogDataHeader { start: self.at, end, send_time };
        self.header = header.frame(self.left as u32).to_vec();
        Ok(())
    }

    /// As much as the socket takes, of one message at most, so that everybody has their turn.
    fn send(
        &mut self,
        socket: &TcpStream,
        dir: &std::path::Path,
        seg_size: SegSize,
        end: Lsn,
    ) -> io::Result<()> {
        if !self.header.is_empty() {
            match send(socket, &self.header, SendFlags::MORE | SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.header.drain(..sent)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        while self.header.is_empty() && self.left > 0 {
            let mut offset = self.at.offset_in_seg(seg_size);
            match rustix::fs::sendfile(socket, &self.file, Some(&mut offset), self.left as usize) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(sent) => (self.at, self.left) = (self.at.advance(sent as u64), self.left - sent as u64),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        if self.left == 0 { self.next(dir, seg_size, end) } else { Ok(()) }
    }
}
