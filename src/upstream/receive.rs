//! The walreceiver's shell: performs what [`Receiver`] decides, on the upstream's socket and with the [`Writer`].
//!
//! WAL goes from the receive buffer to the writer as slices of it, as far as it has arrived, and is verified there.
//! Nothing is copied on the way, and a message may be longer than the buffer: only complete records are ever
//! published, so half a message does no harm.

use std::future::pending;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walrelay_proto::ack::Positions;
use walrelay_proto::receiver::{Action, Input, Message, Receiver, ReceiverError, StreamStart};
pub(super) use walrelay_proto::receiver::{StreamEnd, next_timeline};
use walrelay_proto::{FeedbackHorizon, Lsn, PgTimestamp, StandbyStatusUpdate};

use super::board::Board;
use super::failure::UpstreamError;
use super::seam::Entry;
use crate::pg::{QueryError, ServerError, UpstreamConnection};
use crate::store::{AppendError, Store, TimelinePosition, Writer};

/// Size of the receive buffer: two of the largest messages PostgreSQL sends.
const BUFFER: usize = 256 * 1024;
/// How long a server may take to end its side, once we have left in order.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long a socket is read once more before its server is given up.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// A stream failed. The connection is over, unless the server itself ended the stream with an error.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("could not receive data from WAL stream: {0}")]
    Server(ServerError),
    #[error("could not receive data from WAL stream: {0}")]
    Connection(#[from] QueryError),
    #[error("could not receive data from WAL stream: {0}")]
    Io(io::Error),
    /// The server breaks the rules of a stream, or is gone.
    #[error(transparent)]
    Stream(ReceiverError),
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
    /// Which server it is.
    pub(super) server: &'a str,
    /// Told what comes.
    pub(super) board: &'a Board,
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
    let mut shell = Shell::new(conn, writer, cx, &store, entry);
    let mut receiver = shell.begin()?;
    let result = shell.run(&mut receiver).await;
    if result.is_err() {
        // What was sent last may be lost with the connection.
        store.consumers().forget_reported();
    }
    // What was received before an error counts.
    shell.writer.commit();
    result
}

struct Shell<'a> {
    conn: &'a mut UpstreamConnection,
    writer: &'a mut Writer,
    cx: &'a ReceiveContext<'a>,
    store: &'a Store,
    /// What the stream begins with, until it was found the same.
    entry: Option<Entry<'a>>,
    flushed: watch::Receiver<Option<TimelinePosition>>,
    horizon: watch::Receiver<FeedbackHorizon>,
    /// Steps when consumers have moved what can be reported.
    acknowledged: watch::Receiver<u64>,
    /// Whether the receiver knows that it is to stop.
    stop_told: bool,
    /// Why the socket came to its end.
    broken: Option<io::Error>,
    /// The message that is sent.
    frame: Vec<u8>,
}

impl<'a> Shell<'a> {
    fn new(
        conn: &'a mut UpstreamConnection,
        writer: &'a mut Writer,
        cx: &'a ReceiveContext<'a>,
        store: &'a Store,
        entry: Option<Entry<'a>>,
    ) -> Shell<'a> {
        let mut horizon = store.consumers().horizon();
        // The first one is always told.
        horizon.mark_changed();
        Shell {
            conn,
            writer,
            cx,
            store,
            entry,
            flushed: store.flushed(),
            horizon,
            acknowledged: store.consumers().acknowledgements().moved(),
            stop_told: false,
            broken: None,
            frame: Vec::with_capacity(64),
        }
    }

    fn begin(&mut self) -> Result<Receiver, ReceiveError> {
        let nowhere = AppendError::Gap { at: Lsn::INVALID, expected: Lsn::INVALID };
        let TimelinePosition { tli, lsn: position } = self.writer.position().ok_or(nowhere)?;
        let start = StreamStart {
            tli,
            position: self.entry.as_ref().map_or(position, |entry| entry.until),
            compare_from: self.entry.as_ref().map(|entry| entry.held.from()),
            timeout: self.cx.wal_receiver_timeout,
            told: self.store.consumers().reported(self.cx.server),
        };
        Ok(Receiver::new(start, &self.conn.buffer.split(), BUFFER, Instant::now()))
    }

    async fn run(&mut self, receiver: &mut Receiver) -> Result<StreamEnd, ReceiveError> {
        loop {
            self.tell_positions(receiver);
            loop {
                match receiver.poll(Instant::now(), clock()) {
                    Ok(Some(Action::End(end))) => return Ok(self.end(end, receiver).await),
                    Ok(Some(action)) => self.perform(action, receiver).await?,
                    Ok(None) => break,
                    Err(error) => return Err(self.failure(error, receiver)),
                }
            }
            // What a server that has not been accepted sends is no WAL of ours.
            if self.entry.is_none() {
                self.cx.board.note_server_end(receiver.server_end());
            }
            if let Some(input) = self.wait(receiver).await {
                receiver.handle(input, Instant::now());
            }
        }
    }

    async fn perform(&mut self, action: Action, receiver: &mut Receiver) -> Result<(), ReceiveError> {
        match action {
            Action::Append { at, wal } => self.writer.append(at, receiver.wal(&wal))?,
            Action::Commit => {
                self.writer.commit();
                self.writer.check_commit()?;
                self.tell_positions(receiver);
            }
            Action::Send(message) => self.send(message).await?,
            Action::Compare { at, wal } => {
                if let Some(entry) = &self.entry {
                    entry.held.check(at, receiver.wal(&wal))?;
                }
            }
            Action::Accept => self.accept()?,
            Action::Announce => tracing::info!("{}", self.cx.announcement),
            Action::ShowStart => {
                self.writer.show_start();
                self.tell_positions(receiver);
            }
            Action::LookOnceMore => {
                let read = tokio::time::timeout(LAST_LOOK, self.conn.stream.read(receiver.room())).await;
                let input = read.map_or(Input::Silent, |read| self.arrived(read));
                receiver.handle(input, Instant::now());
            }
            Action::Note { kind, body } => self.conn.note_in_stream(kind, body)?,
            Action::End(_) => {}
        }
        Ok(())
    }

    /// The next thing that happens; `None` if positions have moved. Branches that are ready at once are taken in turn by
    /// chance, so that none of them can keep another waiting.
    async fn wait(&mut self, receiver: &mut Receiver) -> Option<Input> {
        let (deadline, waits_for_store) = (receiver.deadline(), receiver.waits_for_store());
        let timeout = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        let reads = receiver.wants_bytes();
        let read = tokio::select! {
            read = self.conn.stream.read(receiver.room()), if reads => read,
            Ok(()) = self.flushed.changed() => return None,
            Ok(()) = self.acknowledged.changed() => return None,
            Ok(()) = self.horizon.changed() => {
                return Some(Input::Feedback(*self.horizon.borrow_and_update()));
            }
            () = timeout => return Some(Input::Timeout),
            () = self.cx.stop.cancelled(), if !self.stop_told => {
                self.stop_told = true;
                return Some(Input::Stop);
            }
            _ = self.store.failed(), if waits_for_store => return Some(Input::StoreFailed),
        };
        Some(self.arrived(read))
    }

    fn arrived(&mut self, read: io::Result<usize>) -> Input {
        match read {
            Ok(0) => Input::Closed,
            Ok(count) => {
                self.cx.board.received(count as u64);
                Input::Arrived(count)
            }
            Err(error) => {
                self.broken = Some(error);
                Input::Closed
            }
        }
    }

    fn tell_positions(&mut self, receiver: &mut Receiver) {
        self.flushed.mark_unchanged();
        self.acknowledged.mark_unchanged();
        if let Some(tip) = self.store.tip() {
            let (tli, write_lsn, flush_lsn) = (tip.tli, tip.write_lsn, tip.flush_lsn);
            let mut report = self.store.consumers().acknowledgements().compose(write_lsn, flush_lsn);
            if self.store.has_turn_at_hand() {
                // It will be durable in a moment, by this thread: one report for both.
                report.write = report.write.min(flush_lsn.valid());
            }
            receiver.handle(Input::Positions { tli, write_lsn, flush_lsn, report }, Instant::now());
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), ReceiveError> {
        if let Message::Feedback(feedback) = message {
            let horizon = FeedbackHorizon { xmin: feedback.xmin, catalog_xmin: feedback.catalog_xmin };
            self.store.consumers().note_reported(self.cx.server, horizon);
        }
        if let Message::Status(StandbyStatusUpdate { write, flush, apply, .. }) = message {
            // Before it goes out: what may have arrived counts as told.
            self.store.consumers().acknowledgements().note_sent(Positions { write, flush, apply });
        }
        self.frame.clear();
        message.put(&mut self.frame);
        Ok(self.conn.send(&self.frame).await?)
    }

    fn accept(&mut self) -> Result<(), ReceiveError> {
        let accepted = self.entry.take().map_or(Ok(()), |entry| (entry.accept)(self.writer));
        accepted.map_err(|error| ReceiveError::Accept(Box::new(error)))
    }

    async fn end(&mut self, end: StreamEnd, receiver: &Receiver) -> StreamEnd {
        match end {
            StreamEnd::Timeline { .. } => self.conn.idle_again(receiver.unread()),
            StreamEnd::Stopped => {
                // Its walsender lets go of the slot before it closes: whoever comes next, our own next process above all, is
                // not told that the slot is active.
                let _ = tokio::time::timeout(FAREWELL, self.server_has_ended()).await;
            }
            StreamEnd::ServerStopped => {}
        }
        end
    }

    /// What still comes is WAL that nobody has asked for any more; a walsender may not hear us before it has got rid of it.
    async fn server_has_ended(&mut self) -> io::Result<()> {
        self.conn.stream.shutdown().await?;
        let mut rest = [0; 8192];
        while self.conn.stream.read(&mut rest).await? > 0 {}
        Ok(())
    }

    fn failure(&mut self, error: ReceiverError, receiver: &Receiver) -> ReceiveError {
        match error {
            ReceiverError::Server { response, idle } => {
                if idle {
                    self.conn.idle_again(receiver.unread());
                }
                ReceiveError::Server(ServerError::of_message(response))
            }
            ReceiverError::Gap { at, expected } => AppendError::Gap { at, expected }.into(),
            ReceiverError::Closed => {
                self.broken.take().map_or_else(|| QueryError::Closed.into(), ReceiveError::Io)
            }
            other => ReceiveError::Stream(other),
        }
    }
}

fn clock() -> PgTimestamp {
    PgTimestamp::from_system_time(SystemTime::now())
}
