//! The seam between the WAL held here and an upstream's: compared before the upstream is followed.
//!
//! A system identifier and a history prove little: a cluster restored from a plain copy of its files has both,
//! and so have two servers promoted at the same position. The bytes before the seam tell: the last record that begins
//! there names its predecessor's position and has a checksum, and the page before it says more.
//!
//! Where the server has our slot already, they are the first part of the stream itself, and nothing is stored, kept
//! or confirmed before they have been compared ([`Entry`]). Where it has none, and before a switch, they are asked for
//! with a START_REPLICATION of their own, without the slot ([`Held::compare`]), so that a server that turns out to be
//! another gets nothing of us.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use walrelay_proto::course::{Compared, Seam};
use walrelay_proto::{
    Lsn, PAGE_HEAD, PgTimestamp, ServerMessage, StandbyStatusUpdate, TimelineId, XLogDataHeader,
    behind_lost_record, differs_in_nothing,
};

use super::failure::UpstreamError;
use crate::pg::{QueryError, UpstreamConnection, message};
use crate::store::{AppendError, HeldTimeline, ReadError, Segment, Store, Writer};

/// WAL that is compared, bytes at most: a record may be longer, and its end alone says enough then.
const MOST: usize = 64 << 10;
/// What a server has still to send that is waited for, bytes. Rather than more, another connection is made.
const LITTLE: u64 = 256 << 10;
/// How often the server hears of us while we wait for it, so that it does not give us up.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
const PAGE: usize = 8192;

/// What is held here right before a position.
#[derive(Debug)]
pub struct Held {
    /// From `from` to `end`.
    bytes: Vec<u8>,
    /// The timeline on which the last byte lies.
    tli: TimelineId,
    from: Lsn,
    end: Lsn,
}

/// Notes, durably, that a server is one that we follow.
pub(super) type Accept<'a> = Box<dyn FnOnce(&mut Writer) -> Result<(), UpstreamError> + Send + 'a>;

/// How a stream begins with what is held already.
pub(super) struct Entry<'a> {
    /// What is compared.
    pub(super) held: Held,
    /// Where it ends: the first byte that is new.
    pub(super) until: Lsn,
    /// To be called once it has turned out the same: from then on the server is one that we follow.
    pub(super) accept: Accept<'a>,
}

/// An upstream cannot be compared with what is held.
#[derive(Debug, thiserror::Error)]
pub(super) enum CompareError {
    #[error("{command}: {source}")]
    Command { command: String, source: QueryError },
    #[error(transparent)]
    Diverged(AppendError),
}

impl Held {
    /// The last record that begins before `at` and the page before it, all in one segment: that of the last byte
    /// before `at`.
    ///
    /// Zeros at the end do not count. Behind an XLOG_SWITCH a server that received half of them has whatever was
    /// in its file before; and where they belong to a record, its checksum lies before them.
    pub fn before(store: &Store, at: Lsn) -> Result<Held, ReadError> {
        let unknown = || ReadError::Removed("of a cluster not known yet".to_owned());
        let size = store.identity().ok_or_else(unknown)?.seg_size;
        let tli = store.history().timeline_at(at.rewind(1));
        let segment = store.segment(tli, at.seg_before(size))?;
        Held::in_segment(&segment, tli, at)
    }

    /// The same of a timeline that is not the present one.
    pub fn before_on(store: &Store, held: &HeldTimeline, at: Lsn) -> Result<Held, ReadError> {
        let tli = held.history().timeline_at(at.rewind(1));
        let segment = held.segment_before(store, at)?;
        Held::in_segment(&segment, tli, at)
    }

    /// What lies before `at` in the segment of the last byte before it.
    fn in_segment(segment: &Segment, tli: TimelineId, at: Lsn) -> Result<Held, ReadError> {
        let len = at.since(segment.start()).min(segment.published()) as usize;
        let held = last_bytes(segment, len);
        let (mut bytes, base) = held.map_err(|source| ReadError::Io { file: segment.file_name(), source })?;
        if bytes.is_empty() {
            return Err(ReadError::Removed("of which nothing is held".to_owned()));
        }
        let end = segment.start().advance((base + bytes.len()) as u64);
        let doubt = start_of_doubt(&bytes, base);
        bytes.drain(..doubt - base);
        Ok(Held { bytes, tli, from: segment.start().advance(doubt as u64), end })
    }

    /// Where to begin to fetch.
    pub(super) fn from(&self) -> Lsn {
        self.from
    }

    /// Where it lies.
    pub fn seam(&self) -> Seam {
        Seam { from: self.from, end: self.end }
    }

    /// Compares what a server sends from `at` on; what lies beyond our end does not count.
    pub fn check(&self, at: Lsn, theirs: &[u8]) -> Result<(), AppendError> {
        let (from, to) = (at.max(self.from), at.advance(theirs.len() as u64).min(self.end));
        if from >= to {
            return Ok(());
        }
        let mut next = from;
        while next < to {
            let len = to.since(next) as usize;
            let ours = &self.bytes[next.since(self.from) as usize..][..len];
            let theirs = &theirs[next.since(at) as usize..][..len];
            let Some(differs) = ours.iter().zip(theirs).position(|(a, b)| a != b) else { return Ok(()) };
            let lsn = next.advance(differs as u64);
            if differs_in_nothing(lsn, ours[differs], theirs[differs]) {
                next = lsn.advance(1);
                continue;
            }
            // A crash may have left other bytes of a record that nobody could verify, nor will replay.
            next = behind_lost_record(lsn, |page| self.page(page))
                .ok_or(AppendError::Diverged { tli: self.tli, lsn })?;
        }
        Ok(())
    }

    /// The beginning of a page. Behind the end there is nothing yet.
    fn page(&self, at: Lsn) -> Option<[u8; PAGE_HEAD]> {
        let bytes = self.bytes.get(usize::try_from(at.since(self.from)).ok()?..)?;
        let (mut head, len) = ([0; PAGE_HEAD], bytes.len().min(PAGE_HEAD));
        head[..len].copy_from_slice(&bytes[..len]);
        Some(head)
    }

    /// Compares it with what an upstream has of timeline `tli`, without our slot. What the upstream has removed counts
    /// as the same; there, the first record behind the seam has to continue ours.
    pub(super) async fn compare(
        &self,
        conn: &mut UpstreamConnection,
        tli: TimelineId,
    ) -> Result<Compared, CompareError> {
        let command = format!("START_REPLICATION {} TIMELINE {tli}", self.from);
        match self.fetch(conn, &command).await {
            Err(CompareError::Command { source: QueryError::Server(error), .. })
                if error.is_wal_removed() =>
            {
                tracing::debug!("WAL at the seam cannot be compared: {error}");
                Ok(Compared::Idle)
            }
            result => result,
        }
    }

    async fn fetch(&self, conn: &mut UpstreamConnection, command: &str) -> Result<Compared, CompareError> {
        let failed = |source| CompareError::Command { command: command.to_owned(), source };
        conn.send_query(command).await.map_err(failed)?;
        let (mut next, mut leaving, mut failure) = (self.from, false, None);
        loop {
            let message = if leaving { conn.next_message().await } else { next_message(conn).await };
            let (kind, body) = message.map_err(failed)?;
            let mut follows = 0;
            match kind {
                b'd' if !leaving => {
                    if let Some((header, wal)) = xlog_data(&body, next).map_err(failed)? {
                        self.check(header.start, wal).map_err(CompareError::Diverged)?;
                        next = next.advance(wal.len() as u64);
                        follows = header.end.since(next.min(header.end));
                    }
                }
                b'E' => failure = Some(message::server_error(body).unwrap_or_default()),
                b'Z' => break,
                _ => {}
            }
            let over = next >= self.end || kind == b'c';
            if over && !leaving {
                if follows > LITTLE {
                    return Ok(Compared::MoreFollows);
                }
                leaving = true;
                conn.send(message::COPY_DONE).await.map_err(failed)?;
            }
        }
        failure.map_or(Ok(Compared::Idle), |error| Err(failed(QueryError::Server(error))))
    }
}

/// The last bytes before offset `len` of a segment, without zeros at their end, and the offset of the first: as many as
/// [`start_of_doubt`] looks at. None if all are zeros.
fn last_bytes(segment: &Segment, len: usize) -> std::io::Result<(Vec<u8>, usize)> {
    let (mut end, mut bytes) = (len, Vec::new());
    while end > 0 {
        let base = (end - 1) / MOST * MOST;
        bytes.resize(end - base, 0);
        segment.read(base as u64, &mut bytes)?;
        if let Some(last) = bytes.iter().rposition(|&byte| byte != 0) {
            end = base + last + 1;
            break;
        }
        end = base;
    }
    let base = end.saturating_sub(MOST) / PAGE * PAGE;
    bytes.resize(end - base, 0);
    segment.read(base as u64, &mut bytes)?;
    Ok((bytes, base))
}

/// Offset in the segment of the page before the last one in which a record begins. `bytes` lie in it from offset `base`,
/// which is a page's, up to its last that counts; they are [`MOST`] or all.
fn start_of_doubt(bytes: &[u8], base: usize) -> usize {
    let mut page = (bytes.len() - 1) / PAGE * PAGE;
    while base + page > 0 && !begins_record(bytes, base, page) && bytes.len() - page < MOST - 2 * PAGE {
        page -= PAGE;
    }
    (base + page).saturating_sub(PAGE)
}

/// Whether a record begins in the page at `page` of `bytes` (PG: `XLogPageHeaderData`, `xlp_rem_len`).
fn begins_record(bytes: &[u8], base: usize, page: usize) -> bool {
    const REM_LEN: usize = 16;
    let header: usize = if base + page == 0 { 40 } else { 24 };
    let Some(word) = bytes[page..].get(REM_LEN..).and_then(<[u8]>::first_chunk) else { return false };
    let continued = (u32::from_le_bytes(*word) as usize).next_multiple_of(8);
    header + continued < PAGE.min(bytes.len() - page)
}

/// The first `len` bytes of a stream; fewer if it ends before. The connection is idle again.
pub(super) async fn fetch(
    conn: &mut UpstreamConnection,
    command: &str,
    from: Lsn,
    len: usize,
) -> Result<Vec<u8>, QueryError> {
    conn.send_query(command).await?;
    let (mut wal, mut leaving, mut failure) = (Vec::with_capacity(len), false, None);
    loop {
        let message = if leaving { conn.next_message().await } else { next_message(conn).await };
        let (kind, body) = message?;
        match kind {
            b'd' if !leaving => {
                let expected = from.advance(wal.len() as u64);
                if let Some((_, bytes)) = xlog_data(&body, expected)? {
                    wal.extend_from_slice(bytes);
                }
            }
            b'E' => failure = Some(message::server_error(body).unwrap_or_default()),
            b'Z' => break,
            _ => {}
        }
        let over = wal.len() >= len || kind == b'c';
        if over && !leaving {
            leaving = true;
            conn.send(message::COPY_DONE).await?;
        }
    }
    failure.map_or(Ok(wal), |error| Err(QueryError::Server(error)))
}

/// The next message of a stream that we have not left: after CopyDone nothing may follow. However long the line takes for
/// it, the server hears of us meanwhile.
pub(super) async fn next_message(conn: &mut UpstreamConnection) -> Result<(u8, bytes::Bytes), QueryError> {
    let mut silent = 0;
    loop {
        let before = conn.buffer.len();
        match tokio::time::timeout(STATUS_INTERVAL, conn.next_message()).await {
            Ok(message) => return message,
            Err(_) => silent = if conn.buffer.len() == before { silent + 1 } else { 0 },
        }
        if STATUS_INTERVAL * silent >= crate::pg::SILENCE {
            return Err(QueryError::Io(std::io::ErrorKind::TimedOut.into()));
        }
        report(conn).await?;
    }
}

/// For a stream that takes long: what comes without a pause leaves [`next_message`] no moment to report in, and a server
/// that hears nothing for `wal_sender_timeout` hangs up, whatever it is sending.
#[derive(Debug)]
pub(super) struct Reports {
    next: Instant,
}

impl Reports {
    /// From now on.
    pub(super) fn new() -> Reports {
        Reports { next: Instant::now() + STATUS_INTERVAL }
    }

    /// The next message; a report first if one is due.
    pub(super) async fn next_message(
        &mut self,
        conn: &mut UpstreamConnection,
    ) -> Result<(u8, bytes::Bytes), QueryError> {
        if self.next <= Instant::now() {
            report(conn).await?;
            self.next = Instant::now() + STATUS_INTERVAL;
        }
        next_message(conn).await
    }
}

/// A sign of life. It tells no position.
async fn report(conn: &mut UpstreamConnection) -> Result<(), QueryError> {
    let send_time = PgTimestamp::from_system_time(SystemTime::now());
    let (write, flush, apply) = (None, None, None);
    let status = StandbyStatusUpdate { write, flush, apply, send_time, reply_requested: false };
    conn.send(&status.frame()).await
}

pub(super) fn xlog_data(body: &[u8], expected: Lsn) -> Result<Option<(XLogDataHeader, &[u8])>, QueryError> {
    let bad = |problem: String| QueryError::Protocol { problem };
    match ServerMessage::decode(body).map_err(|error| bad(error.to_string()))? {
        ServerMessage::XLogData(header, _) if header.start != expected => {
            Err(bad(format!("WAL at {}, expected {expected}", header.start)))
        }
        ServerMessage::XLogData(header, bytes) => Ok(Some((header, bytes))),
        ServerMessage::Keepalive(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use walrelay_proto::generate::WalGenerator;
    use walrelay_proto::{Keepalive, SegSize, SystemId, WalIdentity};

    use super::*;
    use crate::pg::Stream;

    fn connected(busy: bool) -> (UpstreamConnection, UnixStream) {
        let (client, server) = UnixStream::pair().unwrap();
        let conn = UpstreamConnection {
            stream: Stream::Unix(client),
            buffer: bytes::BytesMut::new(),
            parameters: Vec::new(),
            notices: Vec::new(),
            backend_pid: None,
            cancel_key: bytes::Bytes::new(),
            busy,
        };
        (conn, server)
    }

    async fn read_frame(server: &mut UnixStream) -> (u8, Vec<u8>) {
        let kind = server.read_u8().await.unwrap();
        let mut body = vec![0; server.read_u32().await.unwrap() as usize - 4];
        server.read_exact(&mut body).await.unwrap();
        (kind, body)
    }

    /// A server that takes its time between our end of the stream and its own.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_sent_behind_the_end_of_a_stream() {
        let (mut conn, mut server) = connected(false);
        let start = Lsn::new(3 << 20);
        let serving = async {
            assert_eq!(read_frame(&mut server).await.0, b'Q');
            server.write_all(b"W\0\0\0\x07\0\0\0").await.unwrap();
            // While it is silent within the stream it hears of us.
            assert_eq!(read_frame(&mut server).await.0, b'd');
            let header =
                XLogDataHeader { start, end: start.advance(4), send_time: PgTimestamp::from_micros(1) };
            server.write_all(&[&header.frame(4)[..], b"WAL!"].concat()).await.unwrap();
            while read_frame(&mut server).await.0 != b'c' {}
            tokio::time::sleep(10 * STATUS_INTERVAL).await;
            server.write_all(b"c\0\0\0\x04C\0\0\0\x06X\0Z\0\0\0\x05I").await.unwrap();
            server
        };
        let (fetched, mut server) = tokio::join!(fetch(&mut conn, "START_REPLICATION", start, 4), serving);
        assert_eq!(fetched.unwrap(), b"WAL!");
        drop(conn);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
    }

    #[tokio::test]
    async fn a_server_that_sends_without_a_pause_hears_of_us() {
        let (mut conn, mut server) = connected(true);
        let send_time = PgTimestamp::from_micros(1);
        let keepalive = Keepalive { end: Lsn::new(9), send_time, reply_requested: false }.frame();
        let sending = async move {
            let mut heard = [0; 200];
            loop {
                server.write_all(&keepalive).await.unwrap();
                if let Ok(len) = server.try_read(&mut heard) {
                    return heard[..len].to_vec();
                }
                tokio::task::yield_now().await;
            }
        };
        let receiving = async {
            let mut reports = Reports::new();
            while reports.next_message(&mut conn).await.is_ok() {}
        };
        let both = async { tokio::join!(sending, receiving).0 };
        let heard = tokio::time::timeout(Duration::from_secs(20), both).await.expect("a report");
        assert_eq!((heard[0], heard[5]), (b'd', b'r'));
    }

    #[test]
    fn a_flag_that_nothing_vouches_for_makes_no_other_history() {
        let id = WalIdentity { system_id: SystemId(9), seg_size: SegSize::new(1 << 20).unwrap() };
        let from = Lsn::new(3 << 20);
        let mut wal = WalGenerator::new(id, TimelineId::FIRST, from, 1);
        wal.fill(3 * PAGE);
        let bytes = wal.bytes().to_vec();
        let held = Held { end: from.advance(bytes.len() as u64), bytes, tli: TimelineId::FIRST, from };
        let flipped = |at: usize, bit: u8| {
            let mut theirs = wal.bytes().to_vec();
            theirs[at] ^= bit;
            held.check(from, &theirs)
        };
        flipped(PAGE + 2, 4).unwrap();
        for (at, bit) in [(PAGE + 2, 1), (PAGE + 2, 8), (PAGE + 3, 4), (PAGE + 10, 4), (2 * PAGE - 5, 4)] {
            assert!(matches!(flipped(at, bit), Err(AppendError::Diverged { .. })), "{at}");
        }
    }

    /// Where doubt about all these bytes begins; what is read of them is enough for the same answer.
    fn doubt_about(bytes: &[u8]) -> usize {
        let doubt = start_of_doubt(bytes, 0);
        let base = bytes.len().saturating_sub(MOST) / PAGE * PAGE;
        assert_eq!(start_of_doubt(&bytes[base..], base), doubt);
        doubt
    }

    #[test]
    fn the_last_record_that_begins_is_compared_with_the_page_before_it() {
        let id = WalIdentity { system_id: SystemId(9), seg_size: SegSize::new(1 << 20).unwrap() };
        let mut wal = WalGenerator::new(id, TimelineId::FIRST, Lsn::new(3 << 20), 1);
        wal.record(100);
        assert_eq!(doubt_about(wal.bytes()), 0);
        wal.record(3 * PAGE);
        wal.record(100);
        let page = (wal.bytes().len() - 1) / PAGE * PAGE;
        assert_eq!(doubt_about(wal.bytes()), page - PAGE);
        let begins = wal.bytes().len();
        wal.record(30_000);
        // Up to the page in which it begins, and one more.
        assert_eq!(doubt_about(wal.bytes()), begins / PAGE * PAGE - PAGE);
        wal.record(200_000);
        let compared = wal.bytes().len() - doubt_about(wal.bytes());
        assert!(compared > PAGE && compared <= MOST, "{compared}");
    }
}
