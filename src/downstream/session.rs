//! A walsender between commands: reads queries, answers them, hands the connection to the stream
//! (PostgreSQL: `PostgresMain`, `exec_replication_command`).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use walrelay_proto::{Command, Lsn, Parsed, StartReplication, Statement, TimelineId, Truncated};

use super::answers::{self, Answer};
use super::backup::{self, Backup};
use super::live::Live;
use super::parting::{self, LEFT, Parting};
use super::patience::Patience;
use super::registry::{Cancel, Registration};
use super::settings::Settings;
use super::{Shared, walsender};
use crate::archive::Recall;
use crate::conninfo::Credentials;
use crate::consumers::ConsumerGuard;
use crate::counts::EndCause;
use crate::descriptors::Descriptors;
use crate::redact::redact;
use crate::store::Store;
use crate::wire::{Connection, Frame, Peer, PgError, Phase, ReadError, messages, sqlstate};

/// What a stream needs to know of its session.
#[derive(Debug)]
pub struct SessionContext {
    /// Unique among live connections; owner of temporary slots.
    pub pid: u32,
    /// Who logged in.
    pub user: String,
    /// As the client gave it, cleaned.
    pub application_name: String,
    /// Where the client is.
    pub peer: Peer,
    /// How long the client may be silent while it streams; `None` for ever.
    pub wal_sender_timeout: Option<Duration>,
    /// How long a stop of the relay waits for the client to confirm the last WAL.
    pub shutdown_timeout: Duration,
    /// Asks to end the running command with `57014`.
    pub cancel: Cancel,
    /// The relay is stopping.
    pub shutdown: CancellationToken,
    /// The WAL.
    pub store: Arc<Store>,
    /// WAL that is not in the store any more; `None` without an archive.
    pub recall: Option<Arc<Recall>>,
    /// First byte of WAL that this process has received; what is before it may not be in memory.
    pub received_from: Lsn,
    /// Who may have a file descriptor.
    pub descriptors: Arc<Descriptors>,
    /// Who is sent live WAL where it is published.
    pub(super) live: Arc<Live>,
    /// The session's line among the consumers.
    pub consumer: ConsumerGuard,
}

impl SessionContext {
    /// How long the client may take to accept an answer: as long as it may be silent while it streams.
    pub(super) fn patience(&self) -> Patience<'_> {
        Patience { limit: self.wal_sender_timeout, shutdown: &self.shutdown, cancel: Some(&self.cancel) }
    }
}

/// How a stream ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamEnd {
    /// Both sides have sent CopyDone, or there was nothing to stream; the session goes on.
    Done {
        /// The timeline streamed has ended: the next one, and where it begins.
        next: Option<(TimelineId, Lsn)>,
    },
    /// The relay is stopping and the client has everything: `COPY 0` and good-bye.
    Shutdown,
}

/// How a stream ended otherwise.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The client is told; a FATAL ends the connection, an ERROR does not.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// The connection ends without a word: the client has gone, has been silent for too long, or has sent what
    /// nobody understands. The text is for the log.
    #[error("{0}")]
    Closed(Parting),
}

/// A logged-in connection's state.
pub(super) struct Session {
    context: SessionContext,
    settings: Settings,
    /// To log in upstream as the same role.
    credentials: Credentials,
    /// A walsender upstream that a manifest was uploaded to.
    backup: Option<Backup>,
    shared: Arc<Shared>,
    /// After an error in an extended-protocol message everything up to Sync is skipped.
    skip_to_sync: bool,
    /// The place in the registry, given up last.
    _registration: Registration,
}

/// A command has failed.
pub(super) enum Failure {
    /// The client is told.
    Pg(PgError),
    /// The connection ends without a word.
    Closed(Parting),
}

impl From<PgError> for Failure {
    fn from(error: PgError) -> Failure {
        Failure::Pg(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Closed(Parting::unsent(&error))
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Failure {
        match error {
            StreamError::Pg(error) => Failure::Pg(error),
            StreamError::Closed(parting) => Failure::Closed(parting),
        }
    }
}

/// Whether the connection goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Message,
    Close,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.context.store.slots().drop_temporary_of(self.context.pid);
    }
}

impl Session {
    pub(super) fn new(
        context: SessionContext,
        registration: Registration,
        settings: Settings,
        credentials: Credentials,
        shared: Arc<Shared>,
    ) -> Session {
        Session {
            context,
            settings,
            credentials,
            backup: None,
            shared,
            skip_to_sync: false,
            _registration: registration,
        }
    }

    pub(super) fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Serves the client until one of both ends it; then says why, for the log.
    pub(super) async fn run(mut self, mut conn: Connection) -> Parting {
        let parting = match self.serve(&mut conn).await {
            Ok(()) => self.good_bye(),
            Err(Failure::Closed(parting)) => return parting,
            Err(Failure::Pg(error)) => {
                conn.put_error(&error);
                self.parting_with(&error)
            }
        };
        // The slot and the place are free before the client learns that it is alone.
        drop(self);
        conn.close().await;
        parting
    }

    /// Nothing went wrong.
    fn good_bye(&self) -> Parting {
        match self.context.shutdown.is_cancelled() {
            true => Parting::new(EndCause::Shutdown, LEFT),
            false => Parting::left(),
        }
    }

    /// The error is the same for a relay that stops and for a session that somebody has ended.
    fn parting_with(&self, error: &PgError) -> Parting {
        match Parting::told(error) {
            told if told.cause == EndCause::Shutdown && !self.context.shutdown.is_cancelled() => {
                Parting::new(EndCause::Terminated, error.to_string())
            }
            told => told,
        }
    }

    async fn serve(&mut self, conn: &mut Connection) -> Result<(), Failure> {
        loop {
            self.context.patience().flush(conn).await?;
            conn.set_phase(Phase::Command);
            let frame = tokio::select! {
                frame = conn.read_frame() => frame,
                () = self.context.shutdown.cancelled() => return Err(shutting_down().into()),
                () = self.context.cancel.ended() => return Err(shutting_down().into()),
            };
            match self.message(conn, frame.map_err(read_failure)?).await {
                Ok(Next::Message) => {}
                Ok(Next::Close) => return Ok(()),
                Err(Failure::Pg(error)) if !error.is_fatal() => self.recover(conn, &error),
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn message(&mut self, conn: &mut Connection, frame: Frame) -> Result<Next, Failure> {
        match frame.kind {
            b'X' => return Ok(Next::Close),
            b'S' => {
                self.skip_to_sync = false;
                conn.put(&messages::ready_for_query());
            }
            _ if self.skip_to_sync => {}
            b'Q' => return self.query(conn, &frame).await,
            b'P' | b'B' | b'E' | b'C' | b'D' => {
                self.skip_to_sync = true;
                let text = "extended query protocol not supported in a replication connection";
                return Err(PgError::error(sqlstate::PROTOCOL_VIOLATION, text).into());
            }
            b'F' => {
                let text = "fastpath function calls not supported in a replication connection";
                return Err(PgError::error(sqlstate::PROTOCOL_VIOLATION, text).into());
            }
            // Flush has nothing to flush; what belongs to a COPY that has ended is ignored.
            _ => {}
        }
        Ok(Next::Message)
    }

    /// After an ERROR: temporary slots go, as in PostgreSQL, and the client may ask for something else.
    fn recover(&mut self, conn: &mut Connection, error: &PgError) {
        self.context.store.slots().drop_temporary_of(self.context.pid);
        let (pid, application_name) = (self.context.pid, &self.context.application_name);
        let (sqlstate, reason) = (&*error.sqlstate, &error.message);
        if let Some(cause) = parting::command_refused(error) {
            let asker = (&**application_name, self.context.peer.ip());
            self.shared.config.counts.commands.note(asker, cause, &redact(reason), Instant::now());
        }
        match self.shared.repeats.note(self.context.peer.source(), reason, Instant::now()) {
            Some(count) => tracing::warn!(pid, application_name, sqlstate, count, "command failed: {reason}"),
            None => tracing::debug!(pid, application_name, sqlstate, "command failed again: {reason}"),
        }
        conn.put_error(error);
        if !self.skip_to_sync {
            conn.put(&messages::ready_for_query());
        }
    }

    async fn query(&mut self, conn: &mut Connection, frame: &Frame) -> Result<Next, Failure> {
        let text = frame
            .c_string()
            .ok_or_else(|| PgError::error(sqlstate::PROTOCOL_VIOLATION, "invalid message format"))?;
        if backup::is_backup_command(text) {
            return self.backup(conn, text).await;
        }
        let parsed = Parsed::parse(text);
        for notice in &parsed.notices {
            conn.put_error(&PgError::notice(Truncated::SQLSTATE, notice.to_string()));
        }
        let statement =
            parsed.statement.map_err(|error| PgError::error(error.sqlstate(), error.to_string()))?;
        let Statement::Command(command) = statement else { return Err(answers::no_sql().into()) };
        self.tell_command(&command);
        self.context.cancel.arm();
        match command {
            Command::StartReplication(start) => return self.stream(conn, start).await,
            command => {
                let answer = Answer {
                    context: &self.context,
                    settings: &self.settings,
                    shared: &self.shared,
                    credentials: &self.credentials,
                };
                // They change nothing, and may wait for an archive or the upstream.
                let interruptible = matches!(
                    command,
                    Command::TimelineHistory(_) | Command::Show { .. } | Command::BranchWal { .. }
                );
                tokio::select! {
                    biased;
                    answered = answer.command(conn, command) => answered?,
                    error = told_to_end(&self.context), if interruptible => return Err(error.into()),
                }
            }
        }
        conn.put(&messages::ready_for_query());
        Ok(Next::Message)
    }

    // PG: exec_replication_command
    fn tell_command(&self, command: &dyn std::fmt::Display) {
        let (pid, user, name) = (self.context.pid, &self.context.user, &self.context.application_name);
        match self.shared.logged().replication_commands {
            true => {
                tracing::info!(pid, user, application_name = name, "received replication command: {command}")
            }
            false => {
                tracing::debug!(pid, user, application_name = name, "received replication command: {command}")
            }
        }
    }

    /// The upstream ends the answer itself. A connection that a backup was taken through is of no more use.
    async fn backup(&mut self, conn: &mut Connection, text: &[u8]) -> Result<Next, Failure> {
        self.tell_command(&text.escape_ascii());
        self.context.cancel.arm();
        let mut backup = match self.backup.take() {
            Some(backup) => backup,
            None => tokio::select! {
                opened = Backup::open(&self.context, &self.shared, &self.credentials) => opened?,
                error = told_to_end(&self.context) => return Err(error.into()),
                gone = conn.gone() => return Err(Failure::Closed(gone.into())),
            },
        };
        backup.run(conn, &self.context, &self.shared, text).await?;
        if text.trim_ascii_start().starts_with(b"UPLOAD_MANIFEST") {
            self.backup = Some(backup);
        }
        Ok(Next::Message)
    }

    async fn stream(&mut self, conn: &mut Connection, start: StartReplication) -> Result<Next, Failure> {
        match walsender::stream(conn, &self.context, start).await? {
            StreamEnd::Done { next } => {
                answers::stream_done(conn, next, &self.context.store);
                conn.put(&messages::ready_for_query());
                Ok(Next::Message)
            }
            StreamEnd::Shutdown => {
                conn.put(&messages::command_complete("COPY 0"));
                Ok(Next::Close)
            }
        }
    }
}

/// Resolves when the running command shall be given up: with what the client is told. Cancel-safe.
pub(super) async fn told_to_end(cx: &SessionContext) -> PgError {
    tokio::select! {
        () = cx.cancel.requested() => answers::canceled(),
        () = cx.shutdown.cancelled() => shutting_down(),
        () = cx.cancel.ended() => shutting_down(),
    }
}

pub(super) fn shutting_down() -> PgError {
    PgError::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}

fn read_failure(error: ReadError) -> Failure {
    match error {
        ReadError::Frame(frame) => match frame.to_pg_error() {
            Some(error) => Failure::Pg(error),
            None => Failure::Closed(ReadError::Frame(frame).into()),
        },
        other => Failure::Closed(other.into()),
    }
}
