//! A connection that is logged in.

use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio_rustls::rustls::pki_types::CertificateDer;
use walrelay_proto::{PgTimestamp, StandbyStatusUpdate};

use super::error::{QueryError, ServerError};
use super::frame::{self, FrameError, MAX_MESSAGE};
use super::message::{self, Malformed};
use super::stream::Stream;

/// Largest result of a command, bytes with what it costs to keep them. A history file is the largest that we ask for.
const MAX_RESULT: usize = 4 << 20;
/// What it costs to keep a value of a row, or a row.
const OVERHEAD: usize = 64;
/// Notices that are kept until somebody takes them; any more are passed over.
const MAX_NOTICES: usize = 32;
/// Bytes of all parameters that a server may report.
const MAX_PARAMETERS: usize = 256 << 10;

/// A walsender at the other end, ready for replication commands.
///
/// Idle after login; [`UpstreamConnection::query`] runs a command from start to end, and
/// [`UpstreamConnection::send_query`] with [`UpstreamConnection::next_message`] leaves the reading to the caller,
/// as START_REPLICATION needs it. To close politely call [`UpstreamConnection::close`]; dropping just hangs up.
#[derive(Debug)]
pub struct UpstreamConnection {
    pub(crate) stream: Stream,
    pub(crate) buffer: BytesMut,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) notices: Vec<ServerError>,
    pub(crate) backend_pid: Option<u32>,
    pub(crate) cancel_key: Bytes,
    /// A command was sent and its ReadyForQuery not yet seen.
    pub(crate) busy: bool,
}

/// What [`UpstreamConnection::into_parts`] takes a connection apart into.
#[derive(Debug)]
pub struct Parts {
    /// The socket.
    pub stream: Stream,
    /// Bytes already read and not yet handed out; they come before what the socket delivers next.
    pub buffered: BytesMut,
    /// As of [`UpstreamConnection::parameters`].
    pub parameters: Vec<(String, String)>,
}

/// Result of a command: its last set of rows, and its last command tag.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QueryResult {
    /// Column names; empty if the command returns no rows.
    pub columns: Vec<String>,
    /// Values in text format, `None` for NULL. Every row has as many as there are columns.
    pub rows: Vec<Vec<Option<Bytes>>>,
    /// Such as `IDENTIFY_SYSTEM`; empty for an empty query.
    pub tag: String,
}

impl UpstreamConnection {
    /// What the server reported, in the order first reported, with the newest values.
    pub fn parameters(&self) -> &[(String, String)] {
        &self.parameters
    }

    /// The newest value of one parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Process id of the walsender.
    pub fn backend_pid(&self) -> Option<u32> {
        self.backend_pid
    }

    /// Whether it is a relay like us: its numbers are above those of any process (`overlay::LAST_PROCESS`).
    pub(crate) fn is_a_relays(&self) -> bool {
        self.backend_pid.is_some_and(|pid| pid > 1 << 22)
    }

    /// Key for a CancelRequest, 4 bytes in protocol 3.0.
    pub fn cancel_key(&self) -> &[u8] {
        &self.cancel_key
    }

    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.stream.is_encrypted()
    }

    /// The certificate that the server has shown, and those that it has sent with it; none without encryption.
    pub(crate) fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        match &self.stream {
            Stream::Tls(stream) => stream.get_ref().1.peer_certificates().unwrap_or_default(),
            Stream::Tcp(_) | Stream::Unix(_) => &[],
        }
    }

    /// Notices received since the last call.
    pub fn take_notices(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.notices)
    }

    /// Runs a command and collects its result. Several commands in one text: the last result counts. A server that
    /// says nothing for a minute is given up.
    ///
    /// Not cancel-safe: dropped half-way, the answer is still to come, and further commands fail with
    /// [`QueryError::Busy`].
    ///
    /// # Errors
    /// After [`QueryError::Server`] with severity `ERROR` the connection is idle again; after anything else it is
    /// of no more use.
    pub async fn query(&mut self, sql: &str) -> Result<QueryResult, QueryError> {
        self.send_query(sql).await?;
        self.answer(MAX_RESULT).await?.map_err(QueryError::Server)
    }

    /// Runs commands that do not depend on each other's answers, all sent at once, so that they cost one round trip.
    /// Each has a result of `most` bytes at most, or the error that the server answered it with.
    ///
    /// Not cancel-safe, as [`query`](Self::query).
    ///
    /// # Errors
    /// All are final for the connection.
    pub async fn query_each(
        &mut self,
        commands: &[String],
        most: usize,
    ) -> Result<Vec<Result<QueryResult, ServerError>>, QueryError> {
        let messages: Vec<u8> = commands.iter().flat_map(|command| message::query(command)).collect();
        self.send_command(&messages).await?;
        let mut answers = Vec::new();
        for _ in commands {
            self.busy = true;
            match self.answer(most).await? {
                Err(error) if error.severity != "ERROR" => return Err(QueryError::Server(error)),
                answer => answers.push(answer),
            }
        }
        Ok(answers)
    }

    /// Everything up to ReadyForQuery.
    async fn answer(&mut self, most: usize) -> Result<Result<QueryResult, ServerError>, QueryError> {
        let (mut result, mut failure) = (QueryResult::default(), None);
        let mut room = most;
        loop {
            let (kind, body) = match self.next_message().await {
                // A FATAL error explains the end of the connection better than the end itself.
                Err(QueryError::Closed) if failure.is_some() => (b'Z', Bytes::new()),
                message => message?,
            };
            match (kind, failure) {
                (b'Z', None) => return Ok(Ok(result)),
                (b'Z', Some(error)) => return Ok(Err(error)),
                (b'E', earlier) => {
                    failure = Some(earlier.unwrap_or(decode(kind, message::server_error(body))?));
                }
                (_, earlier) => {
                    failure = earlier;
                    room = result.take(kind, body, room)?;
                }
            }
        }
    }

    /// Sends a command; what comes back is for [`UpstreamConnection::next_message`].
    ///
    /// Not cancel-safe: dropped half-way, part of the command may be sent, and the connection is of no more use.
    ///
    /// # Errors
    /// [`QueryError::Busy`] if an earlier command has not seen its ReadyForQuery, else I/O errors.
    pub async fn send_query(&mut self, sql: &str) -> Result<(), QueryError> {
        self.send_command(&message::query(sql)).await
    }

    async fn send_command(&mut self, messages: &[u8]) -> Result<(), QueryError> {
        if self.busy {
            return Err(QueryError::Busy);
        }
        self.busy = true;
        self.send(messages).await
    }

    /// Tells a walsender that somebody takes its stream: one that hears nothing for `wal_sender_timeout` hangs up, however much
    /// it is sending. No position is reported, so that no commit is confirmed by it, at whatever level.
    ///
    /// Not cancel-safe, as [`send_query`](Self::send_query).
    ///
    /// # Errors
    /// I/O errors; final for the connection.
    pub async fn send_sign_of_life(&mut self) -> Result<(), QueryError> {
        let send_time = PgTimestamp::from_system_time(SystemTime::now());
        let (write, flush, apply) = (None, None, None);
        let status = StandbyStatusUpdate { write, flush, apply, send_time, reply_requested: false };
        self.send(&status.frame()).await
    }

    /// Sends a few bytes; a server that does not take them for a minute is given up.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), QueryError> {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        let sent = tokio::time::timeout(frame::SILENCE, sending).await;
        sent.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(QueryError::Io)
    }

    /// The next message: its type byte and its body. ParameterStatus is noted and NoticeResponse kept for
    /// [`UpstreamConnection::take_notices`] before they are handed out too. A minute without a byte is an error.
    ///
    /// Cancel-safe: no byte is lost, the next call goes on.
    ///
    /// # Errors
    /// All are final for the connection. An ErrorResponse is a message here, not an error.
    pub async fn next_message(&mut self) -> Result<(u8, Bytes), QueryError> {
        let (kind, body) = frame::read(&mut self.stream, &mut self.buffer, MAX_MESSAGE).await?;
        match kind {
            b'S' => self.note_parameter(body.clone())?,
            b'N' => self.keep_notice(decode(kind, message::server_error(body.clone()))?),
            b'Z' => self.busy = false,
            _ => {}
        }
        Ok((kind, body))
    }

    fn note_parameter(&mut self, body: Bytes) -> Result<(), QueryError> {
        let (name, value) = decode(b'S', message::parameter_status(body))?;
        self.set_parameter(name, value).map_err(|problem| QueryError::Protocol { problem })
    }

    /// Takes a NoticeResponse or a ParameterStatus that was read in the middle of a stream. A stream may last for months:
    /// its notices are logged when they come.
    pub(crate) fn note_in_stream(&mut self, kind: u8, body: Bytes) -> Result<(), QueryError> {
        match kind {
            b'S' => self.note_parameter(body)?,
            _ => tracing::info!("upstream: {}", ServerError::of_message(body)),
        }
        Ok(())
    }

    /// A stream whose messages were read elsewhere has ended with ReadyForQuery; `unread` came behind it.
    pub(crate) fn idle_again(&mut self, unread: &[u8]) {
        self.buffer.extend_from_slice(unread);
        self.busy = false;
    }

    /// Says goodbye and hangs up. Errors no longer matter.
    pub async fn close(mut self) {
        if self.send(&message::terminate()).await.is_ok() {
            let _ = tokio::time::timeout(frame::SILENCE, self.stream.shutdown()).await;
        }
    }

    /// Takes the connection apart, for whoever reads the socket with their own buffers.
    pub fn into_parts(self) -> Parts {
        Parts { stream: self.stream, buffered: self.buffer, parameters: self.parameters }
    }

    /// Fails where a server reports more than any does, so that one which has not proved anything cannot fill the
    /// memory.
    pub(crate) fn set_parameter(&mut self, name: String, value: String) -> Result<(), String> {
        match self.parameters.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => self.parameters.push((name, value)),
        }
        let size: usize =
            self.parameters.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD).sum();
        if size > MAX_PARAMETERS {
            return Err(format!("{} parameters with {size} bytes", self.parameters.len()));
        }
        Ok(())
    }

    /// The first ones are kept: they say what is wrong.
    pub(crate) fn keep_notice(&mut self, notice: ServerError) {
        if self.notices.len() < MAX_NOTICES {
            self.notices.push(notice);
        } else {
            tracing::debug!("passed over: {notice}");
        }
    }
}

impl QueryResult {
    /// Takes a message; the room that is left of `room` bytes.
    fn take(&mut self, kind: u8, body: Bytes, room: usize) -> Result<usize, QueryError> {
        let mut left = room;
        match kind {
            b'T' => {
                self.columns = decode(kind, message::row_description(body))?;
                self.rows.clear();
            }
            b'D' => {
                let size = body.len() + (self.columns.len() + 1) * OVERHEAD;
                let too_much = || QueryError::Protocol { problem: "a result larger than any".to_owned() };
                left = room.checked_sub(size).ok_or_else(too_much)?;
                // Its own copy: a value would keep the whole buffer that it was read into.
                let row = decode(kind, message::data_row(Bytes::copy_from_slice(&body)))?;
                if row.len() != self.columns.len() {
                    return Err(QueryError::Protocol { problem: "row of a different width".to_owned() });
                }
                self.rows.push(row);
            }
            b'C' => self.tag = decode(kind, message::command_complete(body))?,
            // EmptyQueryResponse, NotificationResponse; the others were taken note of.
            b'I' | b'A' | b'S' | b'N' => {}
            other => return Err(unexpected(other)),
        }
        Ok(left)
    }
}

fn unexpected(kind: u8) -> QueryError {
    QueryError::Protocol { problem: format!("type '{}' during a simple query", kind.escape_ascii()) }
}

fn decode<T>(kind: u8, result: Result<T, Malformed>) -> Result<T, QueryError> {
    result.map_err(|Malformed| QueryError::Protocol {
        problem: format!("malformed message of type '{}'", kind.escape_ascii()),
    })
}

impl From<FrameError> for QueryError {
    fn from(error: FrameError) -> QueryError {
        match error {
            FrameError::Closed => QueryError::Closed,
            FrameError::Io(error) => QueryError::Io(error),
            FrameError::Length { kind, len } => {
                QueryError::Protocol { problem: format!("type '{}' with length {len}", kind.escape_ascii()) }
            }
        }
    }
}
