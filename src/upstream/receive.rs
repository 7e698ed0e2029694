//! The walreceiver's hot loop: bytes from the upstream's socket to the writer, positions back.
//!
//! One reused buffer. Frames are cut in it; the WAL in them goes to the [`Writer`] as slices of it, as far
//! as it has arrived, and is verified there. Nothing is copied on the way, and a message may be longer than
//! the buffer: only complete records are ever published, so half a message does no harm.
//!
//! Reports go up when the end of what is written or synced has moved, at once when the upstream asks, and
//! every [`STATUS_INTERVAL`] besides: walsenders of 16 and later can sleep on WAL that is flushed already
//! until the standby says something.

use std::future::pending;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walrelay_proto::{
    HotStandbyFeedback, Lsn, PeerDue, PeerTimer, PgTimestamp, ServerMessage, ServerMessageError,
    StandbyStatusUpdate, TimelineId, XLogDataHeader,
};

use super::failure::UpstreamError;
use super::seam::Entry;
use crate::pg::{QueryError, SILENCE, ServerError, UpstreamConnection, message};
use crate::store::{AppendError, FeedbackHorizon, Store, TimelinePosition, Writer};

/// Size of the receive buffer: two of the largest messages PostgreSQL sends.
const BUFFER: usize = 256 * 1024;
/// Silence on our side after which a status update is due.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
/// Pause before the first status update. A server that no longer has the WAL we ask for says so right behind its
/// CopyBoth, and an update sent before would move our slot back to WAL that is gone.
const FIRST_STATUS: Duration = Duration::from_millis(50);
/// Largest message that is not WAL: errors, results.
const MAX_SMALL: usize = 30_000;
/// How long a socket is read once more before its server is given up.
const LAST_LOOK: Duration = Duration::from_millis(100);
/// Pings in a row for a position that we cannot confirm, after which we end the stream: see `Receiver::ping`.
const PATIENCE: u32 = 3;

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StreamEnd {
    /// The timeline has ended. The connection is idle again.
    Timeline {
        /// The next one and where it begins, if the server said.
        next: Option<(TimelineId, Lsn)>,
    },
    /// The upstream is shutting down; the connection is over.
    ServerStopped,
    /// We were told to stop; the connection is over.
    Stopped,
}

/// A stream failed. The connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("could not receive data from WAL stream: {0}")]
    Server(ServerError),
    #[error("could not receive data from WAL stream: {0}")]
    Connection(#[from] QueryError),
    #[error("could not receive data from WAL stream: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Message(#[from] ServerMessageError),
    #[error("unexpected message of type '{0}' in WAL stream")]
    Unexpected(String),
    #[error("terminating walreceiver due to timeout: the upstream has been silent for too long")]
    Timeout,
    #[error("the upstream ended the stream before the WAL that is held here")]
    TooShort,
    #[error(transparent)]
    Append(#[from] AppendError),
    /// What has to be kept of an upstream that is followed cannot be.
    #[error(transparent)]
    Accept(Box<UpstreamError>),
}

/// What a stream needs besides its connection.
pub(super) struct ReceiveContext<'a> {
    pub(super) wal_receiver_timeout: Option<Duration>,
    pub(super) stop: &'a CancellationToken,
    /// Logged when the server has begun to send.
    pub(super) announcement: &'a str,
}

/// Receives until the stream ends. `conn` is in COPY BOTH. Where there is an `entry`, the stream begins with it, and
/// until it has been found the same nothing is stored, and no position or feedback is reported. After an error of the
/// server the connection is idle again if that came before the end of the entry. Not cancel-safe.
pub(super) async fn receive(
    conn: &mut UpstreamConnection,
    writer: &mut Writer,
    cx: &ReceiveContext<'_>,
    entry: Option<Entry<'_>>,
) -> Result<StreamEnd, ReceiveError> {
    let store = writer.store().clone();
    let mut receiver = Receiver::new(conn, writer, cx, &store, entry);
    let result = receiver.run().await;
    // What was received before an error counts.
    receiver.writer.commit();
    result
}

/// A receive buffer: bytes `start..end` are unread.
struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// A piece of the stream.
enum Piece {
    /// WAL at this position, in the buffer.
    Wal { at: Lsn, from: usize, to: usize },
    /// A message other than WAL.
    Message { kind: u8, body: Bytes },
}

struct Receiver<'a> {
    conn: &'a mut UpstreamConnection,
    writer: &'a mut Writer,
    cx: &'a ReceiveContext<'a>,
    store: &'a Store,
    /// What the stream begins with, and how far it has come.
    entry: Option<(Entry<'a>, Lsn)>,
    input: Input,
    /// WAL of the message being cut that has not arrived yet: its position and length.
    pending: Option<(Lsn, usize)>,
    timer: PeerTimer,
    flushed: watch::Receiver<Option<TimelinePosition>>,
    horizon: watch::Receiver<FeedbackHorizon>,
    /// Whether the server has begun to send.
    announced: bool,
    /// Positions in the last status update, and when the next is due at the latest.
    reported: (Option<Lsn>, Option<Lsn>),
    next_report: Instant,
    /// Whether the upstream has feedback of ours that is not "none".
    feedback_sent: bool,
    unanswerable_pings: u32,
}

enum Event {
    Read(usize),
    Flushed,
    Feedback,
    Timer,
    Stop,
}

impl<'a> Receiver<'a> {
    fn new(
        conn: &'a mut UpstreamConnection,
        writer: &'a mut Writer,
        cx: &'a ReceiveContext<'a>,
        store: &'a Store,
        entry: Option<Entry<'a>>,
    ) -> Receiver<'a> {
        let now = Instant::now();
        let mut horizon = store.senders().horizon();
        horizon.mark_changed();
        Receiver {
            entry: entry.map(|entry| {
                let from = entry.held.from();
                (entry, from)
            }),
            input: Input::new(&conn.buffer.split()),
            conn,
            writer,
            cx,
            store,
            pending: None,
            timer: PeerTimer::new(cx.wal_receiver_timeout, now),
            flushed: store.flushed(),
            horizon,
            announced: false,
            reported: (None, None),
            next_report: now + FIRST_STATUS,
            // A slot of ours may still hold what an earlier connection sent.
            feedback_sent: true,
            unanswerable_pings: 0,
        }
    }

    async fn run(&mut self) -> Result<StreamEnd, ReceiveError> {
        loop {
            if let Some(end) = self.take_input().await? {
                return Ok(end);
            }
            if self.announced {
                self.report_progress().await?;
            }
            match self.wait().await? {
                Event::Read(0) => return Err(QueryError::Closed.into()),
                Event::Read(count) => {
                    self.input.end += count;
                    self.timer.heard(Instant::now());
                }
                Event::Flushed => {}
                Event::Feedback => self.send_feedback().await?,
                Event::Timer => self.handle_timer().await?,
                Event::Stop => return self.stop().await,
            }
        }
    }

    /// The next thing to do. Branches that are ready at once are taken in turn by chance, so that none of them can
    /// keep another waiting.
    async fn wait(&mut self) -> Result<Event, ReceiveError> {
        let deadline = self.timer.deadline().map_or(self.next_report, |at| at.min(self.next_report));
        self.input.make_room();
        Ok(tokio::select! {
            count = self.conn.stream.read(&mut self.input.buffer[self.input.end..]) => Event::Read(count?),
            changed = self.flushed.changed() => match changed {
                Ok(()) => Event::Flushed,
                Err(_) => pending().await,
            },
            changed = self.horizon.changed(), if self.entry.is_none() => match changed {
                Ok(()) => Event::Feedback,
                Err(_) => pending().await,
            },
            () = tokio::time::sleep_until(deadline.into()) => Event::Timer,
            () = self.cx.stop.cancelled() => Event::Stop,
        })
    }

    /// Takes everything in the buffer that is complete enough, then publishes it.
    async fn take_input(&mut self) -> Result<Option<StreamEnd>, ReceiveError> {
        loop {
            match self.cut()? {
                Some(Piece::Wal { at, from, to }) => {
                    self.unanswerable_pings = 0;
                    let wal = &self.input.buffer[from..to];
                    let known = compare(&mut self.entry, at, wal)?;
                    if self.entry.is_none() {
                        self.announce();
                        self.writer.append(at.advance(known as u64), &self.input.buffer[from + known..to])?;
                    }
                }
                Some(Piece::Message { kind, body }) => {
                    // Positions in an answer cover what came before the question.
                    self.writer.commit();
                    if let Some(end) = self.handle_message(kind, body).await? {
                        return Ok(Some(end));
                    }
                }
                None => break,
            }
        }
        self.writer.commit();
        Ok(None)
    }

    /// The next piece of the stream, `None` if more bytes are needed.
    fn cut(&mut self) -> Result<Option<Piece>, ReceiveError> {
        if let Some((at, missing)) = self.pending {
            let len = missing.min(self.input.unread().len());
            if len == 0 {
                return Ok(None);
            }
            let left = missing - len;
            self.pending = (left > 0).then(|| (at.advance(len as u64), left));
            return Ok(Some(self.input.wal(at, len)));
        }
        let Some(&[kind, a, b, c, d]) = self.input.unread().first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some(body_len) = length.checked_sub(4) else { return Err(unexpected(kind)) };
        let Some(body) = self.input.unread().get(5..) else { return Ok(None) };
        if kind == b'd' && body_len >= XLogDataHeader::LEN && body.first() == Some(&b'w') {
            let Some(header) = body.get(..XLogDataHeader::LEN) else { return Ok(None) };
            let ServerMessage::XLogData(header, _) = ServerMessage::decode(header)? else {
                return Err(unexpected(kind));
            };
            self.input.start += 5 + XLogDataHeader::LEN;
            let wal = body_len - XLogDataHeader::LEN;
            self.pending = (wal > 0).then_some((header.start, wal));
            return self.cut();
        }
        if body_len > MAX_SMALL {
            return Err(unexpected(kind));
        }
        let Some(body) = body.get(..body_len) else { return Ok(None) };
        let body = Bytes::copy_from_slice(body);
        self.input.start += 5 + body_len;
        Ok(Some(Piece::Message { kind, body }))
    }

    async fn handle_message(&mut self, kind: u8, body: Bytes) -> Result<Option<StreamEnd>, ReceiveError> {
        match kind {
            b'd' => match ServerMessage::decode(&body)? {
                ServerMessage::Keepalive(keepalive) if keepalive.reply_requested => {
                    return self.ping(keepalive.end).await;
                }
                ServerMessage::Keepalive(_) | ServerMessage::XLogData(..) => {}
            },
            b'c' => return self.end_of_timeline().await.map(Some),
            b'C' => return Ok(Some(StreamEnd::ServerStopped)),
            b'E' => return Err(self.refused(server_error(body)).await),
            b'N' => tracing::info!("upstream: {}", server_error(body)),
            // ParameterStatus: read again at the next connection.
            b'S' => {}
            other => return Err(unexpected(other)),
        }
        Ok(None)
    }

    /// An error of the server. One that comes before anything was taken, such as WAL that is removed, is followed by
    /// its ReadyForQuery at once.
    async fn refused(&mut self, error: ServerError) -> ReceiveError {
        if self.entry.is_some() && error.severity == "ERROR" {
            self.give_back();
            while let Ok((kind, _)) = self.conn.next_message().await {
                if kind == b'Z' {
                    break;
                }
            }
        }
        ReceiveError::Server(error)
    }

    /// Unread input is the connection's again.
    fn give_back(&mut self) {
        self.conn.buffer.extend_from_slice(self.input.unread());
        self.input.start = self.input.end;
    }

    /// The upstream asks how far we are.
    ///
    /// A server that stops asks again and again until we have confirmed exactly what it has sent. If that
    /// ends inside a record (a standby stops at what it had received), we never can: only complete records
    /// are confirmed. Then we end the stream, which lets it go.
    async fn ping(&mut self, sent: Lsn) -> Result<Option<StreamEnd>, ReceiveError> {
        self.report(false).await?;
        let received = self.writer.position().map(|position| position.lsn);
        let (write, flush) = self.reported;
        if received == Some(sent) && write < received && write == flush {
            self.unanswerable_pings += 1;
        }
        if self.unanswerable_pings >= PATIENCE {
            self.send(message::COPY_DONE).await?;
            return Ok(Some(StreamEnd::ServerStopped));
        }
        Ok(None)
    }

    /// The server has sent all of this timeline: our CopyDone, then its result.
    async fn end_of_timeline(&mut self) -> Result<StreamEnd, ReceiveError> {
        self.send(message::COPY_DONE).await?;
        self.give_back();
        let (mut next, mut failure) = (None, None);
        loop {
            match self.conn.next_message().await? {
                (b'D', body) => next = next_timeline(&body),
                (b'E', body) => failure = Some(server_error(body)),
                (b'Z', _) => break,
                // Keepalives may come after CopyDone.
                (b'd' | b'T' | b'C' | b'S' | b'N', _) => {}
                (other, _) => return Err(unexpected(other)),
            }
        }
        match failure {
            Some(error) => Err(ReceiveError::Server(error)),
            None if self.entry.is_some() => Err(ReceiveError::TooShort),
            None => Ok(StreamEnd::Timeline { next }),
        }
    }

    /// The server streams: it has sent something, or has had time to refuse.
    fn announce(&mut self) {
        if !self.announced {
            self.announced = true;
            tracing::info!("{}", self.cx.announcement);
        }
    }

    /// What can be confirmed: end of what is written and verified, end of what is synced.
    fn positions(&self) -> (Option<Lsn>, Option<Lsn>) {
        let tip = self.store.tip().filter(|_| self.entry.is_none());
        (tip.map(|tip| tip.write_lsn), tip.map(|tip| tip.flush_lsn))
    }

    async fn report_progress(&mut self) -> Result<(), ReceiveError> {
        self.flushed.mark_unchanged();
        if self.positions() == self.reported { Ok(()) } else { self.report(false).await }
    }

    async fn report(&mut self, reply_requested: bool) -> Result<(), ReceiveError> {
        let (write, flush) = self.positions();
        let status = StandbyStatusUpdate { write, flush, apply: None, send_time: now(), reply_requested };
        self.send(&status.frame()).await?;
        self.reported = (write, flush);
        self.next_report = Instant::now() + STATUS_INTERVAL;
        Ok(())
    }

    /// PG: XLogWalRcvSendHSFeedback: "none" is sent once, to clear what was sent before.
    async fn send_feedback(&mut self) -> Result<(), ReceiveError> {
        let FeedbackHorizon { xmin, catalog_xmin } = *self.horizon.borrow_and_update();
        let none = xmin.is_none() && catalog_xmin.is_none();
        if none && !self.feedback_sent {
            return Ok(());
        }
        let next = FeedbackHorizon { xmin, catalog_xmin };
        let frame = |FeedbackHorizon { xmin, catalog_xmin }| {
            HotStandbyFeedback { send_time: now(), xmin, catalog_xmin }.frame()
        };
        let mut bytes = frame(next).to_vec();
        if next.falls_behind(self.store.senders().note_reported(next)) {
            bytes.splice(0..0, frame(FeedbackHorizon::default()).to_vec());
        }
        self.send(&bytes).await?;
        self.feedback_sent = !none;
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        Ok(self.conn.send(bytes).await?)
    }

    async fn handle_timer(&mut self) -> Result<(), ReceiveError> {
        let now = Instant::now();
        match self.timer.due(now) {
            PeerDue::GiveUp => self.look_once_more().await,
            PeerDue::Ask => self.report(true).await,
            PeerDue::Nothing if now >= self.next_report => {
                if self.entry.is_none() {
                    self.announce();
                    // An upstream with nothing to send must not keep consumers waiting, nor its slot from keeping WAL.
                    self.writer.show_start();
                }
                self.report(false).await
            }
            PeerDue::Nothing => Ok(()),
        }
    }

    /// The time is over, but it may have been us who were held up, by the disk or by a signal: what has come
    /// meanwhile lies in the socket.
    async fn look_once_more(&mut self) -> Result<(), ReceiveError> {
        let read = self.conn.stream.read(&mut self.input.buffer[self.input.end..]);
        match tokio::time::timeout(LAST_LOOK, read).await {
            Ok(Ok(count @ 1..)) => {
                self.input.end += count;
                self.timer.heard(Instant::now());
            }
            Ok(Ok(0)) => return Err(QueryError::Closed.into()),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(ReceiveError::Timeout),
        }
        Ok(())
    }

    /// We stop: everything written becomes durable and is confirmed before we leave.
    async fn stop(&mut self) -> Result<StreamEnd, ReceiveError> {
        self.writer.commit();
        let Some(written) = self.store.tip() else { return Ok(StreamEnd::Stopped) };
        let target = Some(TimelinePosition { tli: written.tli, lsn: written.write_lsn });
        tokio::select! {
            _ = self.flushed.wait_for(|flushed| *flushed == target) => {}
            _ = self.store.failed() => return Ok(StreamEnd::Stopped),
        }
        self.report(false).await?;
        self.send(&message::terminate()).await?;
        let _ = tokio::time::timeout(SILENCE, self.conn.stream.shutdown()).await;
        Ok(StreamEnd::Stopped)
    }
}

/// Compares WAL at `at` with what the stream has to begin with; how many bytes of it are known. `entry` is taken away
/// when all of it has been found the same and the server was accepted.
fn compare(entry: &mut Option<(Entry<'_>, Lsn)>, at: Lsn, wal: &[u8]) -> Result<usize, ReceiveError> {
    let Some((known, next)) = entry else { return Ok(0) };
    if at != *next {
        return Err(AppendError::Gap { at, expected: *next }.into());
    }
    let len = known.until.since(at).min(wal.len() as u64) as usize;
    known.held.check(at, &wal[..len])?;
    *next = at.advance(len as u64);
    if *next == known.until
        && let Some((known, _)) = entry.take()
    {
        (known.accept)().map_err(|error| ReceiveError::Accept(Box::new(error)))?;
    }
    Ok(len)
}

impl Input {
    fn new(leftover: &[u8]) -> Input {
        let mut buffer = vec![0; BUFFER.max(leftover.len() + BUFFER / 2)].into_boxed_slice();
        buffer[..leftover.len()].copy_from_slice(leftover);
        Input { buffer, start: 0, end: leftover.len() }
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Moves what is unread, part of a header or of a small message, to the front.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    fn wal(&mut self, at: Lsn, len: usize) -> Piece {
        let from = self.start;
        self.start += len;
        Piece::Wal { at, from, to: from + len }
    }
}

fn now() -> PgTimestamp {
    PgTimestamp::from_system_time(SystemTime::now())
}

fn unexpected(kind: u8) -> ReceiveError {
    ReceiveError::Unexpected(kind.escape_ascii().to_string())
}

fn server_error(body: Bytes) -> ServerError {
    message::server_error(body).unwrap_or_default()
}

/// The row `next_tli, next_tli_startpos`.
pub(super) fn next_timeline(body: &Bytes) -> Option<(TimelineId, Lsn)> {
    let row = message::data_row(body.clone()).ok()?;
    let text = |at: usize| std::str::from_utf8(row.get(at)?.as_deref()?).ok();
    Some((TimelineId::new(text(0)?.parse().ok()?)?, text(1)?.parse().ok()?))
}
