//! SQL sessions that the relay serves itself: its own database, and what backup tools need while the upstream is
//! away. In both protocols, as drivers have no other.

mod extended;

use std::io;
use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::extended::{Extended, Progress, Target, execution, target};
use super::Shared;
use super::activity::{self, Activity};
use super::admin::{is_admin, is_monitor};
use super::parting::LEFT;
use super::patience::{ANSWER_LIMIT, Patience};
use super::session::shutting_down;
use super::settings::{self, Settings};
use super::shown::Shown;
use crate::console::{Answer, Change, Facts, Field, Instead, Script, Transaction};
use crate::gateway::Attributes;
use crate::overlay::{Row, sender_rows, slot_rows};
use crate::status::Status;
use crate::upstream::Return;
use crate::wire::messages::{
    self, BindComplete, CloseComplete, EmptyQueryResponse, NoData, ParameterDescription, ParseComplete,
    PortalSuspended, TransactionStatus,
};
use crate::wire::{Connection, Frame, PgError, Phase, ReadError, binary, sqlstate};

/// Name of the relay's own database.
pub(super) const OWN_DATABASE: &str = "walrelay";

/// What a session that is served here says of itself, whatever the upstream last said: nothing can be written in it, and
/// texts are in UTF-8, where a walsender's have no encoding.
pub(super) fn told(name: &str, settings: &Settings) -> Option<&'static str> {
    match name {
        "in_hot_standby" | "transaction_read_only" => Some("on"),
        "server_encoding" => Some("UTF8"),
        "client_encoding" if settings.get(name).is_none() => Some("UTF8"),
        _ => None,
    }
}

/// Whether a role sees all of the relay, whatever way it asks.
pub(super) fn may_examine(shared: &Shared, user: &str, attributes: Option<Attributes>) -> bool {
    attributes.is_some_and(|known| known.superuser || known.monitor)
        || is_admin(shared, user)
        || is_monitor(shared, user)
}

/// A session answered from what the relay knows.
pub(super) struct LocalSession<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) user: &'a str,
    pub(super) database: &'a str,
    /// The session's number among the relay's connections.
    pub(super) pid: u32,
    pub(super) settings: Settings,
    pub(super) attributes: Option<Attributes>,
    /// What the session does, for whoever looks.
    pub(super) activity: Activity,
    /// It runs as the same system user as the relay, or as root.
    pub(super) is_owner: bool,
    pub(super) instead: Instead,
    /// Whose place it takes until that is back.
    pub(super) upstream: Option<Return>,
    /// `application_name` as the session began.
    pub(super) first_name: String,
    /// The same as the client was told last.
    pub(super) reported_name: String,
}

/// How far the conversation has come.
#[derive(Default)]
struct Dialogue {
    transaction: Transaction,
    extended: Extended,
    /// After an error in a message of the extended protocol everything up to Sync is skipped.
    skip_to_sync: bool,
    /// Messages of the extended protocol have come, and no Sync yet.
    is_open: bool,
}

impl Dialogue {
    /// Whether nothing is under way that the client would miss.
    fn is_idle(&self) -> bool {
        !self.is_open && !self.transaction.is_open()
    }

    /// PG: `pg_stat_activity.state`, while the client is waited for.
    fn state(&self) -> &'static str {
        match self.transaction.status() {
            TransactionStatus::Transaction => "idle in transaction",
            TransactionStatus::Error => "idle in transaction (aborted)",
            TransactionStatus::Idle => "idle",
        }
    }

    fn fail(&mut self, conn: &mut Connection, error: &PgError) {
        self.transaction.fail();
        self.skip_to_sync = true;
        conn.put_error(error);
    }
}

/// A message has not come to its end.
enum Stop {
    /// The client is told.
    Error(PgError),
    /// The client does not take what is sent.
    Gone(io::Error),
    /// The relay stops, which is told where the next message is waited for.
    Stopping,
}

impl From<PgError> for Stop {
    fn from(error: PgError) -> Stop {
        Stop::Error(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Gone(error)
    }
}

impl LocalSession<'_> {
    /// Serves the client until one side ends it; then says why, for the log.
    pub(super) async fn run(mut self, mut conn: Connection, shutdown: &CancellationToken) -> String {
        let patience = Patience { limit: Some(ANSWER_LIMIT), shutdown, cancel: None };
        let mut dialogue = Dialogue::default();
        loop {
            self.activity.waits(dialogue.state(), self.settings.get("application_name").unwrap_or_default());
            if let Err(error) = patience.flush(&mut conn).await {
                return format!("could not send data to client: {error}");
            }
            conn.set_phase(Phase::Command);
            let frame = tokio::select! {
                biased;
                () = shutdown.cancelled() => return end(conn, shutting_down()).await,
                frame = conn.read_frame() => frame,
                () = come(&mut self.upstream), if dialogue.is_idle() => return end(conn, upstream_is_back()).await,
            };
            let answered = match frame {
                Ok(frame) if frame.kind == b'X' => return LEFT.to_owned(),
                Ok(frame) => self.message(&mut conn, &patience, &frame, &mut dialogue).await,
                Err(ReadError::Frame(error)) => {
                    let told = error.to_pg_error();
                    return match told {
                        Some(told) => end(conn, told).await,
                        None => error.to_string(),
                    };
                }
                Err(error) => return error.to_string(),
            };
            if let Err(error) = answered {
                return format!("could not send data to client: {error}");
            }
        }
    }

    /// The end of a Query, or what Sync asks for.
    fn ready(&mut self, conn: &mut Connection, dialogue: &mut Dialogue) {
        dialogue.skip_to_sync = false;
        dialogue.is_open = false;
        // Outside of a block, a transaction ends with what was sent in one go.
        if !dialogue.transaction.is_open() {
            dialogue.extended.close_portals();
        }
        let name = self.settings.get("application_name").unwrap_or_default();
        if name != self.reported_name {
            conn.put(&messages::parameter_status("application_name", name));
            self.reported_name = name.to_owned();
        }
        conn.put(&messages::ready_for_query_in(dialogue.transaction.status()));
    }

    async fn message(
        &mut self,
        conn: &mut Connection,
        patience: &Patience<'_>,
        frame: &Frame,
        dialogue: &mut Dialogue,
    ) -> io::Result<()> {
        dialogue.is_open = true;
        let done = match frame.kind {
            b'S' => {
                self.ready(conn, dialogue);
                return Ok(());
            }
            _ if dialogue.skip_to_sync => return Ok(()),
            b'Q' => {
                match frame.c_string() {
                    Some(text) => match self.query(conn, patience, text, dialogue).await {
                        Err(Stop::Gone(error)) => return Err(error),
                        Err(Stop::Stopping) => return Ok(()),
                        Err(Stop::Error(error)) => dialogue.fail(conn, &error),
                        Ok(()) => {}
                    },
                    None => {
                        let text = "invalid message format";
                        dialogue.fail(conn, &PgError::error(sqlstate::PROTOCOL_VIOLATION, text));
                    }
                }
                self.ready(conn, dialogue);
                return Ok(());
            }
            b'F' => {
                let text = "walrelay itself does not support fastpath function calls";
                dialogue.fail(conn, &PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text));
                self.ready(conn, dialogue);
                return Ok(());
            }
            b'P' => {
                let parse = || dialogue.extended.parse(&frame.body, self, &dialogue.transaction);
                let parsed = aside(&frame.body, parse);
                parsed.map(|()| conn.put(&ParseComplete::new())).map_err(Stop::from)
            }
            b'B' => {
                let bound = dialogue.extended.bind(&frame.body, &dialogue.transaction);
                bound.map(|()| conn.put(&BindComplete::new())).map_err(Stop::from)
            }
            b'D' => describe(conn, &frame.body, dialogue).map_err(Stop::from),
            b'C' => target(&frame.body, "CLOSE").map_err(Stop::from).map(|target| {
                dialogue.extended.close(&target);
                conn.put(&CloseComplete::new());
            }),
            b'E' => self.execute(conn, patience, &frame.body, dialogue).await,
            // Everything is sent before the next message is read, so Flush has nothing to do; what belongs to a COPY
            // is overlooked.
            _ => Ok(()),
        };
        match done {
            Ok(()) => Ok(()),
            Err(Stop::Error(error)) => {
                dialogue.fail(conn, &error);
                Ok(())
            }
            Err(Stop::Gone(error)) => Err(error),
            Err(Stop::Stopping) => Ok(()),
        }
    }

    /// Sends answers as they are made: a text may have thousands of statements.
    async fn query(
        &mut self,
        conn: &mut Connection,
        patience: &Patience<'_>,
        text: &[u8],
        dialogue: &mut Dialogue,
    ) -> Result<(), Stop> {
        self.activity.runs(text, self.settings.get("application_name").unwrap_or_default());
        dialogue.extended.forget_unnamed();
        let mut script = aside(text, || Script::new(text));
        loop {
            let is_query = script.is_query_next();
            let answer = || script.answer_next(self, &mut dialogue.transaction);
            let Some(answer) = answered(is_query, patience.shutdown, answer).await? else { break };
            // Those who have a socket that is always ready give way too.
            tokio::task::consume_budget().await;
            match answer {
                Ok(Answer::Empty) => conn.put(&EmptyQueryResponse::new()),
                Ok(answer) => self.answer(conn, patience, answer, dialogue).await?,
                Err(error) => conn.put_error(&error),
            }
            if conn.is_full() {
                patience.flush(conn).await?;
            }
        }
        Ok(())
    }

    /// The answer to a statement of a Query.
    async fn answer(
        &mut self,
        conn: &mut Connection,
        patience: &Patience<'_>,
        answer: Answer,
        dialogue: &mut Dialogue,
    ) -> Result<(), Stop> {
        match answer {
            Answer::Rows { columns, rows, tag, changes } => {
                self.take_over(changes, dialogue)?;
                let described: Vec<_> = columns.iter().map(Field::column).collect();
                conn.put(&messages::row_description(&described));
                for row in &rows {
                    put_row(conn, &columns, &[], row)?;
                    if conn.is_full() {
                        patience.flush(conn).await?;
                    }
                }
                conn.put(&messages::command_complete(&tag));
            }
            Answer::Done { tag, changes, notice } => {
                self.take_over(changes, dialogue)?;
                if let Some(notice) = notice {
                    conn.put_error(&notice);
                }
                conn.put(&messages::command_complete(tag));
            }
            Answer::Order(order) => {
                self.perform(conn, &order).await?;
                conn.put(&messages::command_complete(order.tag()));
            }
            Answer::Empty => conn.put(&EmptyQueryResponse::new()),
        }
        if !dialogue.transaction.is_open() {
            dialogue.extended.close_portals();
        }
        Ok(())
    }

    async fn execute(
        &mut self,
        conn: &mut Connection,
        patience: &Patience<'_>,
        body: &[u8],
        dialogue: &mut Dialogue,
    ) -> Result<(), Stop> {
        let (name, most) = execution(body)?;
        let mut portal = dialogue.extended.take(name)?;
        if let Progress::New = portal.progress {
            let prepared = portal.prepared.clone();
            self.activity.runs(prepared.text(), self.settings.get("application_name").unwrap_or_default());
            let run = || prepared.run(&portal.values, self, &mut dialogue.transaction);
            match answered(prepared.is_query(), patience.shutdown, run).await?? {
                Answer::Rows { rows, tag, changes, .. } => {
                    self.take_over(changes, dialogue)?;
                    portal.progress = Progress::Rows { rest: rows.into_iter(), tag };
                }
                Answer::Order(order) => {
                    self.perform(conn, &order).await?;
                    conn.put(&messages::command_complete(order.tag()));
                    portal.progress = Progress::Done;
                    dialogue.extended.put_back(name, portal)?;
                    return Ok(());
                }
                other => {
                    let ends = matches!(other, Answer::Done { .. }) && !dialogue.transaction.is_open();
                    self.answer_without_rows(conn, other, dialogue)?;
                    portal.progress = Progress::Done;
                    // The end of a transaction is the end of its portals, this one among them.
                    match ends && portal.prepared.is_about_transactions() {
                        true => dialogue.extended.close_portals(),
                        false => dialogue.extended.put_back(name, portal)?,
                    }
                    return Ok(());
                }
            }
        }
        let Progress::Rows { rest, tag } = &mut portal.progress else {
            let text = format!("portal \"{}\" cannot be run", String::from_utf8_lossy(name));
            return Err(PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text).into());
        };
        let columns = portal.prepared.columns().unwrap_or_default();
        let mut sent = 0;
        while most == 0 || sent < most {
            let Some(row) = rest.next() else { break };
            put_row(conn, columns, &portal.formats, &row)?;
            sent += 1;
            if conn.is_full() {
                patience.flush(conn).await?;
            }
        }
        let tag = tag.clone();
        dialogue.extended.put_back(name, portal)?;
        // Like PostgreSQL, who has got as many as were asked for does not know yet whether there are more.
        if most > 0 && sent == most {
            conn.put(&PortalSuspended::new());
        } else if tag.starts_with("SELECT") {
            conn.put(&messages::command_complete(&format!("SELECT {sent}")));
        } else {
            conn.put(&messages::command_complete(&tag));
        }
        Ok(())
    }

    fn answer_without_rows(
        &mut self,
        conn: &mut Connection,
        answer: Answer,
        dialogue: &mut Dialogue,
    ) -> Result<(), PgError> {
        if let Answer::Done { tag, changes, notice } = answer {
            self.take_over(changes, dialogue)?;
            if let Some(notice) = notice {
                conn.put_error(&notice);
            }
            conn.put(&messages::command_complete(tag));
        } else {
            conn.put(&EmptyQueryResponse::new());
        }
        Ok(())
    }

    fn take_over(&mut self, changes: Vec<Change>, dialogue: &mut Dialogue) -> Result<(), PgError> {
        for change in changes {
            match change {
                Change::ApplicationName(name) => self.set_application_name(&name),
                Change::ResetApplicationName => self.set_application_name(&self.first_name.clone()),
                Change::Deallocate(name) => dialogue.extended.deallocate(name.as_deref())?,
                Change::ClosePortals => dialogue.extended.close_portals(),
            }
        }
        Ok(())
    }

    fn set_application_name(&mut self, name: &str) {
        let upstream = self.shared.store.upstream_parameters();
        // Any name is taken; what does not fit is cut.
        let _ = self.settings.set("application_name", name.as_bytes(), &upstream);
    }

    fn shown(&self) -> Shown<'_> {
        let timeout = self.settings.wal_sender_timeout();
        Shown {
            settings: &self.settings,
            shared: self.shared,
            user: self.user,
            wal_sender_timeout: timeout
                .unwrap_or_else(|| self.shared.config.rules.current().wal_sender_timeout),
        }
    }
}

/// Without pg_monitor a role sees of others only that they are there, and of itself where it comes from, but no positions
/// (PostgreSQL: `pg_stat_get_activity`, `pg_stat_get_wal_senders`).
fn masked(row: &Row, user: &str) -> Row {
    const OF_ALL: [&str; 4] = ["pid", "usesysid", "usename", "application_name"];
    const OF_OWN: [&str; 5] =
        ["client_addr", "client_hostname", "client_port", "backend_start", "backend_xmin"];
    let own = if row.get("usename") == Some(user) { &OF_OWN[..] } else { &[] };
    let shown = OF_ALL.iter().chain(own);
    shown.fold(Row::default(), |kept, name| kept.with(name, row.get(name).map(str::to_owned)))
}

/// Resolves when the upstream is back, if one is waited for. Cancel-safe.
async fn come(upstream: &mut Option<Return>) {
    match upstream {
        Some(upstream) => upstream.come().await,
        None => std::future::pending().await,
    }
}

fn upstream_is_back() -> PgError {
    let text = "terminating connection because the upstream server can be reached again";
    PgError::fatal(sqlstate::ADMIN_SHUTDOWN, text)
        .with_hint("walrelay has answered in its place; connect again to be connected to it.")
}

/// Queries of all sessions that are answered at the same time: each may take a second of a processor, and a thread.
static AT_WORK: Semaphore = Semaphore::const_new(2);

/// Does some work on a text: a long one may take a while, and not from a thread that serves WAL.
fn aside<T>(text: &[u8], work: impl FnOnce() -> T) -> T {
    /// About a millisecond.
    const SHORT: usize = 16 << 10;
    if text.len() > SHORT { tokio::task::block_in_place(work) } else { work() }
}

/// Answers a statement beside the threads that serve WAL. A query, of which even a short one may take a while, waits for those of
/// other sessions; orders and all else do not. Cancel-safe before it has begun.
async fn answered<T>(
    is_query: bool,
    shutdown: &CancellationToken,
    work: impl FnOnce() -> T,
) -> Result<T, Stop> {
    let _permit = match is_query {
        // It is never closed.
        true => shutdown.run_until_cancelled(AT_WORK.acquire()).await.ok_or(Stop::Stopping)?.ok(),
        false => None,
    };
    Ok(match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    })
}

fn describe(conn: &mut Connection, body: &[u8], dialogue: &Dialogue) -> Result<(), PgError> {
    let columns = |columns: &[Field], formats: &[bool]| {
        let is_binary = |at: usize| formats.get(at).copied().unwrap_or_default();
        let columns = columns.iter().enumerate();
        columns.map(|(at, field)| (field.clone(), is_binary(at))).collect::<Vec<_>>()
    };
    let described = match target(body, "DESCRIBE")? {
        Target::Statement(name) => {
            let prepared = dialogue.extended.statement(name)?;
            prepared.check_description(&dialogue.transaction)?;
            conn.put(&ParameterDescription::new(prepared.types().to_vec()));
            prepared.columns().map(|fields| columns(fields, &[]))
        }
        Target::Portal(name) => {
            let portal = dialogue.extended.portal(name)?;
            portal.prepared.check_description(&dialogue.transaction)?;
            portal.prepared.columns().map(|fields| columns(fields, &portal.formats))
        }
    };
    match described {
        Some(fields) => {
            let columns = fields.iter().map(|(field, is_binary)| field.column().in_binary(*is_binary));
            conn.put(&messages::row_description(&columns.collect::<Vec<_>>()));
        }
        None => conn.put(&NoData::new()),
    }
    Ok(())
}

/// A row, each value in its format; those are all text if there are none.
fn put_row(
    conn: &mut Connection,
    columns: &[Field],
    formats: &[bool],
    row: &[Option<String>],
) -> Result<(), PgError> {
    let value = |at: usize| -> Result<Option<Vec<u8>>, PgError> {
        let (Some(Some(text)), Some(field)) = (row.get(at), columns.get(at)) else { return Ok(None) };
        if !formats.get(at).copied().unwrap_or_default() {
            return Ok(Some(text.as_bytes().to_vec()));
        }
        binary::encode(field.column_type, text).map(Some).ok_or_else(|| {
            let text = format!("could not send column \"{}\" in binary format", field.name);
            PgError::error(sqlstate::INTERNAL_ERROR, text)
        })
    };
    let values = (0..columns.len()).map(value).collect::<Result<Vec<_>, _>>()?;
    let values: Vec<_> = values.iter().map(Option::as_deref).collect();
    conn.put(&messages::data_row(&values));
    Ok(())
}

async fn end(mut conn: Connection, error: PgError) -> String {
    conn.put_error(&error);
    conn.close().await;
    error.to_string()
}

impl Facts for LocalSession<'_> {
    fn instead(&self) -> Instead {
        self.instead
    }

    fn setting(&self, name: &str) -> Option<String> {
        let name = settings::canonical_name(name).unwrap_or(name);
        if let Some(value) = told(name, &self.settings) {
            return Some(value.to_owned());
        }
        let upstream = self.shared.store.upstream_parameters();
        self.shown().setting(name, &upstream).map(|value| value.into_owned())
    }

    fn settings(&self) -> Vec<(String, String)> {
        let upstream = self.shared.store.upstream_parameters();
        let shown = self.shown();
        let value = |name: &str| match told(name, &self.settings) {
            Some(value) => Some(value.to_owned()),
            None => shown.setting(name, &upstream).map(|value| value.into_owned()),
        };
        settings::all_names().filter_map(|name| Some((name.to_owned(), value(name)?))).collect()
    }

    fn system_identifier(&self) -> Option<String> {
        self.shared.store.identity().map(|identity| identity.system_id.to_string())
    }

    /// Nothing can be written here, whatever the upstream was: who looks for the primary must not take this for it.
    fn is_in_recovery(&self) -> Option<bool> {
        Some(true)
    }

    fn user(&self) -> String {
        self.user.to_owned()
    }

    fn database(&self) -> String {
        self.database.to_owned()
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    fn is_superuser(&self) -> Option<bool> {
        self.attributes.map(|known| known.superuser)
    }

    fn may_monitor(&self) -> Option<bool> {
        self.attributes.map(|known| known.monitor)
    }

    fn slots(&self) -> Vec<Row> {
        slot_rows(&self.shared.store)
    }

    fn senders(&self) -> Vec<Row> {
        let rows = sender_rows(&self.shared.store);
        if self.sees_all() { rows } else { rows.iter().map(|row| masked(row, self.user)).collect() }
    }

    /// What is not known, because the upstream could never be asked, is no right.
    fn sees_all(&self) -> bool {
        self.is_owner || may_examine(self.shared, self.user, self.attributes)
    }

    fn sessions(&self) -> Vec<Row> {
        let sees_all = self.sees_all();
        activity::rows(&self.shared.registry, |user| sees_all || user == self.user)
    }

    fn write_lsn(&self) -> Option<String> {
        self.shared.store.tip().map(|tip| tip.write_lsn.to_string())
    }

    fn flush_lsn(&self) -> Option<String> {
        self.shared.store.tip().map(|tip| tip.flush_lsn.to_string())
    }

    fn started_at(&self) -> Option<String> {
        self.shared.config.status.as_ref().map(|sources| sources.started_at().to_string())
    }

    fn configured_at(&self) -> Option<String> {
        self.shared.config.status.as_ref().map(|sources| sources.configured_at().to_string())
    }

    fn status(&self) -> Option<Status> {
        self.shared.config.status.as_ref().map(|sources| Status::now(sources))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::overlay::SENDER_COLUMNS;

    /// Others are at work, and one asks for more than their places.
    #[tokio::test(flavor = "multi_thread")]
    async fn only_queries_wait_for_queries_and_none_holds_up_a_stop() {
        let (shutdown, places) = (CancellationToken::new(), AT_WORK.acquire_many(2).await.unwrap());
        assert!(matches!(answered(false, &shutdown, || 7).await, Ok(7)));
        let mut waits = Box::pin(answered(true, &shutdown, || 7));
        assert!((&mut waits).now_or_never().is_none());
        shutdown.cancel();
        assert!(matches!(waits.await, Err(Stop::Stopping)));
        drop(places);
        assert!(matches!(answered(true, &CancellationToken::new(), || 7).await, Ok(7)));
    }

    #[test]
    fn a_role_sees_of_rows_what_postgresql_shows() {
        let with = |row: Row, name: &&'static str| row.with(name, "x".to_owned());
        let row = SENDER_COLUMNS.iter().filter(|name| **name != "usename").fold(Row::default(), with);
        let row = row.with("usename", "rep".to_owned());
        let seen = |user: &str| {
            let row = masked(&row, user);
            SENDER_COLUMNS.into_iter().filter(|name| row.get(name).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(seen("other"), ["pid", "usename", "application_name"]);
        let own = ["client_addr", "client_port", "backend_start", "backend_xmin"];
        assert_eq!(seen("rep"), [&["pid", "usename", "application_name"][..], &own].concat());
    }
}
