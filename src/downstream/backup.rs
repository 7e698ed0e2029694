//! BASE_BACKUP and UPLOAD_MANIFEST: run by the upstream on a connection of their own, passed on byte for byte.
//!
//! The relay has no database; what it adds is the WAL, which `pg_basebackup -X stream` takes from it on a second
//! connection. Both must show the same cluster and timeline, so a backup waits until the relay has followed the
//! upstream to its timeline.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use walrelay_proto::{Command, OptionValue, Parsed, Statement, TimelineId};

use super::Shared;
use super::answers::canceled;
use super::parting::Parting;
use super::patience::Patience;
use super::session::{Failure, SessionContext, told_to_end};
use crate::conninfo::Credentials;
use crate::consumers::ConsumerState;
use crate::gateway::{Cancellable, OpenError, Scan, Scanner};
use crate::pg::{Stream, UpstreamConnection};
use crate::wire::{Connection, Frame, PgError, ReadError, sqlstate};

/// Read from the upstream at a time.
const BUFFER: usize = 64 * 1024;
/// How long a backup waits for the relay to be on the upstream's timeline.
const TIMELINE_LIMIT: Duration = Duration::from_secs(60);
/// How long a client may take nothing of a backup, unless `wal_sender_timeout` is longer. PostgreSQL has no limit; a
/// client may have to wait for its tape.
const STALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Whether a query is for here. The word must be in upper case, as for PostgreSQL; what follows is the upstream's
/// to understand, so that the grammar of every version passes.
pub(super) fn is_backup_command(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    ["BASE_BACKUP", "UPLOAD_MANIFEST"].iter().any(|word| {
        text.strip_prefix(word.as_bytes())
            .is_some_and(|rest| !rest.first().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_'))
    })
}

/// A session's walsender upstream. UPLOAD_MANIFEST leaves its manifest there for the next BASE_BACKUP.
#[derive(Debug)]
pub(super) struct Backup {
    stream: Stream,
    buffer: BytesMut,
    cancel: Option<Cancellable>,
    /// As whom: the client's role, or the relay's.
    own_role: bool,
}

/// What woke the loop.
enum Event {
    Server(std::io::Result<usize>),
    Client(Result<Frame, ReadError>),
    Gone(ReadError),
    Cancel,
    Stop,
    Paid,
}

impl Backup {
    /// Connects upstream as the client's role. If what the client has proved is no good there, as the relay's.
    pub(super) async fn open(
        cx: &SessionContext,
        shared: &Shared,
        credentials: &Credentials,
    ) -> Result<Backup, PgError> {
        let (mut connection, cancel, own_role) = open(cx, shared, credentials).await?;
        same_cluster(&mut connection, cx).await?;
        let parts = connection.into_parts();
        Ok(Backup { stream: parts.stream, buffer: parts.buffered, cancel, own_role })
    }

    /// Runs a command, from its text to its `ReadyForQuery`, all of which the client gets.
    pub(super) async fn run(
        &mut self,
        conn: &mut Connection,
        cx: &SessionContext,
        shared: &Shared,
        text: &[u8],
    ) -> Result<(), Failure> {
        if self.own_role && has_target(text) {
            let text = "a base backup with a target other than \"client\" or \"blackhole\" must run as the client's own role on the upstream";
            return Err(PgError::error(sqlstate::INSUFFICIENT_PRIVILEGE, text)
                .with_hint("Log in to the relay with scram-sha-256, so that it can log in upstream as the same role.")
                .into());
        }
        cx.consumer.set_state(ConsumerState::Backup);
        let query = [text, b"\0"].concat();
        let sent = tokio::select! {
            sent = send(&mut self.stream, b'Q', &query) => sent.map_err(|error| lost(&error)),
            error = told_to_end(cx) => Err(error),
        };
        let result = match sent {
            Ok(()) => self.pass(conn, cx, shared).await,
            Err(error) => Err(error.into()),
        };
        cx.consumer.set_state(ConsumerState::Startup);
        result
    }

    async fn pass(
        &mut self,
        conn: &mut Connection,
        cx: &SessionContext,
        shared: &Shared,
    ) -> Result<(), Failure> {
        let mut scanner = Scanner::default();
        let (mut copy_in, mut done) = (false, false);
        let mut paid_at: Option<Instant> = None;
        loop {
            if !self.buffer.is_empty() {
                scanner.feed(&self.buffer, |seen| match seen {
                    Scan::Ready(_) => done = true,
                    Scan::Header { kind } => copy_in = kind == b'G' || copy_in && kind == b'N',
                    Scan::Parameter(_) => {}
                });
                let now = Instant::now();
                let until = shared.gateway.backup_rate().pass(self.buffer.len(), now);
                // What costs nothing waits for no timer, whose steps are milliseconds.
                paid_at = (until > now).then_some(until);
                conn.put_bytes(&self.buffer);
                self.buffer.clear();
            }
            patience(cx).flush(conn).await?;
            if done {
                return Ok(());
            }
            match self.wait(conn, cx, copy_in, paid_at).await {
                Event::Paid => paid_at = None,
                Event::Server(Ok(1..)) => {}
                Event::Server(Ok(0)) => {
                    return Err(ended(&scanner, lost(&std::io::ErrorKind::UnexpectedEof.into())));
                }
                Event::Server(Err(error)) => return Err(ended(&scanner, lost(&error))),
                Event::Client(Ok(frame)) => {
                    // What follows the end of the manifest is a command.
                    copy_in = !matches!(frame.kind, b'c' | b'f');
                    tokio::select! {
                        taken = self.take(frame) => taken?,
                        error = told_to_end(cx) => return Err(error.into()),
                        gone = conn.gone() => return Err(Failure::Closed(gone.into())),
                    }
                }
                Event::Client(Err(error)) | Event::Gone(error) => {
                    return Err(Failure::Closed(error.into()));
                }
                Event::Cancel => self.cancel(cx, shared).await?,
                Event::Stop => {
                    let text = "terminating connection due to administrator command";
                    return Err(ended(&scanner, PgError::fatal(sqlstate::ADMIN_SHUTDOWN, text)));
                }
            }
        }
    }

    /// A backup that has been passed on too fast is paid for before more is read.
    async fn wait(
        &mut self,
        conn: &mut Connection,
        cx: &SessionContext,
        copy_in: bool,
        paid_at: Option<Instant>,
    ) -> Event {
        self.buffer.reserve(BUFFER);
        let from_client = async {
            match copy_in {
                true => Event::Client(conn.read_frame().await),
                // What a client sends ahead is for later.
                false => Event::Gone(conn.gone().await),
            }
        };
        tokio::select! {
            read = self.stream.read_buf(&mut self.buffer), if paid_at.is_none() => Event::Server(read),
            () = tokio::time::sleep_until(paid_at.unwrap_or_else(Instant::now)), if paid_at.is_some() => Event::Paid,
            event = from_client => event,
            () = cx.cancel.requested() => Event::Cancel,
            () = cx.shutdown.cancelled() => Event::Stop,
        }
    }

    /// A manifest on its way up.
    async fn take(&mut self, frame: Frame) -> Result<(), Failure> {
        match frame.kind {
            b'X' => return Err(Failure::Closed(Parting::left())),
            // PG: CopyGetData ignores these two
            b'H' | b'S' => {}
            kind => send(&mut self.stream, kind, &frame.body).await.map_err(|error| lost(&error))?,
        }
        Ok(())
    }

    /// The upstream answers with the error that a cancelled command gets, or has finished already.
    async fn cancel(&self, cx: &SessionContext, shared: &Shared) -> Result<(), Failure> {
        cx.cancel.arm();
        match &self.cancel {
            Some(session) => shared.gateway.cancel_session(session).await,
            None => return Err(canceled().into()),
        }
        Ok(())
    }
}

fn patience(cx: &SessionContext) -> Patience<'_> {
    Patience { limit: cx.wal_sender_timeout.map(|timeout| timeout.max(STALL_LIMIT)), ..cx.patience() }
}

async fn send(stream: &mut Stream, kind: u8, body: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(body.len() + 4).map_err(std::io::Error::other)?;
    let mut message = BytesMut::with_capacity(body.len() + 5);
    message.put_u8(kind);
    message.put_u32(length);
    message.put_slice(body);
    stream.write_all(&message).await?;
    stream.flush().await
}

fn not_opened(error: &OpenError, cx: &SessionContext, credentials: &Credentials) -> PgError {
    PgError { severity: crate::wire::Severity::Error, ..error.client_error(&cx.user, credentials) }
}

/// An error can only be told between two messages of the upstream's.
fn ended(scanner: &Scanner, error: PgError) -> Failure {
    match scanner.at_boundary() {
        true => Failure::Pg(error),
        false => Failure::Closed(Parting::told(&error)),
    }
}

fn lost(error: &std::io::Error) -> PgError {
    let text = format!("the connection to the upstream server was lost: {error}");
    PgError::fatal(sqlstate::CONNECTION_FAILURE, text)
}

/// Whether the backup does more than be sent to the client: targets write on the server or run commands there, with the
/// rights of whoever asks. Extensions add targets, so that only those are let pass that are known to do neither.
fn has_target(text: &[u8]) -> bool {
    let harmless = |value: &Option<OptionValue>| matches!(value, Some(OptionValue::Text(value)) if value == "client" || value == "blackhole");
    match Parsed::parse(text).statement {
        Ok(Statement::Command(Command::BaseBackup { options })) => options
            .iter()
            .any(|option| option.name.eq_ignore_ascii_case("target") && !harmless(&option.value)),
        Ok(_) => false,
        // Grammars without parentheses are older than targets.
        Err(_) => text.contains(&b'('),
    }
}

/// A walsender's connection upstream as the client's role, or, if what the client has proved is no good there, as the
/// relay's: then the last value is true.
pub(super) async fn open(
    cx: &SessionContext,
    shared: &Shared,
    credentials: &Credentials,
) -> Result<(UpstreamConnection, Option<Cancellable>, bool), PgError> {
    let parameter = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let parameters = vec![
        parameter("database", crate::conninfo::REPLICATION_DATABASE),
        parameter("replication", "true"),
        parameter("application_name", &cx.application_name),
    ];
    if !shared.config.descriptors.has_room() {
        shared.config.descriptors.tell_refusal();
        return Err(PgError::error(sqlstate::TOO_MANY_CONNECTIONS, "out of file descriptors"));
    }
    let gateway = &shared.gateway;
    let (opened, own_role) = match gateway.open(&cx.user, credentials, parameters).await {
        Err(error) if error.is_about_credentials() => (gateway.open_own().await, true),
        opened => (opened, false),
    };
    let (connection, cancel) = opened.map_err(|error| not_opened(&error, cx, credentials))?;
    Ok((connection, cancel, own_role))
}

/// Both of a client's connections must show one cluster and one timeline.
async fn same_cluster(connection: &mut UpstreamConnection, cx: &SessionContext) -> Result<(), PgError> {
    let odd = |what: String| PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, what);
    let answer = tokio::time::timeout(TIMELINE_LIMIT, connection.query("IDENTIFY_SYSTEM")).await;
    let answer = answer.map_err(|_| odd("the upstream does not identify itself".to_owned()))?;
    let answer = answer.map_err(|error| odd(format!("the upstream did not identify itself: {error}")))?;
    let field = |at: usize| {
        let value = answer.rows.first().and_then(|row| row.get(at)?.as_ref());
        value.map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    };
    let ours = cx.store.identity().map(|identity| identity.system_id.to_string()).unwrap_or_default();
    if field(0) != ours {
        return Err(odd(format!(
            "the upstream is cluster {}, the relay holds WAL of cluster {ours}",
            field(0)
        )));
    }
    let theirs = field(1).parse().ok().and_then(TimelineId::new);
    let theirs =
        theirs.ok_or_else(|| odd(format!("the upstream has an invalid timeline \"{}\"", field(1))))?;
    let mut written = cx.store.written();
    let reached = written.wait_for(|position| position.is_some_and(|position| position.tli >= theirs));
    match tokio::time::timeout(TIMELINE_LIMIT, reached).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(odd(format!("the upstream is on timeline {theirs}, which the relay has not reached"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_commands_are_known_by_their_first_word() {
        for text in
            ["BASE_BACKUP", " BASE_BACKUP ( LABEL 'x')", "BASE_BACKUP(LABEL 'x');", "UPLOAD_MANIFEST;"]
        {
            assert!(is_backup_command(text.as_bytes()), "{text}");
        }
        for text in
            ["", "base_backup", "BASE_BACKUPS", "BASE_BACKUP_X", "IDENTIFY_SYSTEM", "SELECT 'BASE_BACKUP'"]
        {
            assert!(!is_backup_command(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn targets_are_let_pass_only_if_they_do_nothing_on_the_server() {
        assert!(has_target(b"BASE_BACKUP ( LABEL 'x', TARGET 'server', TARGET_DETAIL '/x')"));
        assert!(has_target(b"BASE_BACKUP (target 'SERVER')"));
        assert!(has_target(b"BASE_BACKUP (TARGET 'shell', TARGET_DETAIL 'x')"));
        assert!(has_target(b"BASE_BACKUP (TARGET 'client', TARGET 'shell')"));
        assert!(has_target(b"BASE_BACKUP (TARGET shell"));
        for text in [
            "BASE_BACKUP (TARGET 'client')",
            "BASE_BACKUP (TARGET 'blackhole')",
            "BASE_BACKUP LABEL 'server' FAST",
            "BASE_BACKUP (LABEL 'server')",
        ] {
            assert!(!has_target(text.as_bytes()), "{text}");
        }
    }
}
