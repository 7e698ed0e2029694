//! Replication commands that end with their answer (PostgreSQL: `walsender.c`).
//!
//! Column types follow the upstream's version, so that nobody can tell the relay from it.

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use walrelay_proto::{
    Command, CommandOption, CreateSlot, Lsn, SlotKind, SlotName, SlotNameError, TimelineId,
};

use super::Shared;
use super::backup;
use super::session::{Failure, SessionContext, told_to_end};
use super::settings::{self, Settings};
use super::shown::Shown;
use crate::archive::Recall;
use crate::conninfo::Credentials;
use crate::pg::QueryError;
use crate::store::{SlotError, SlotPersistence, Store, UpstreamParameters};
use crate::wire::messages::{Column, command_complete, data_row, row_description};
use crate::wire::{Connection, PgError, sqlstate};

/// Bytes of a branch in one answer.
const PIECE: usize = 1 << 20;
/// How long the upstream may take to answer a question that is passed on.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to say whether it has a logical slot of a name. A slot must be made without it, too.
const NAME_LIMIT: Duration = Duration::from_secs(2);

type Result<T> = std::result::Result<T, PgError>;

/// What an answer is made of.
pub(super) struct Answer<'a> {
    pub(super) context: &'a SessionContext,
    pub(super) settings: &'a Settings,
    pub(super) shared: &'a Shared,
    pub(super) credentials: &'a Credentials,
}

impl Answer<'_> {
    /// Puts the answer to any command but START_REPLICATION into the connection, without `ReadyForQuery`.
    pub(super) async fn command(
        &self,
        conn: &mut Connection,
        command: Command,
    ) -> std::result::Result<(), Failure> {
        let upstream = self.context.store.upstream_parameters();
        let version = settings::server_version_num(&upstream);
        match command {
            Command::IdentifySystem => self.identify_system(conn, version)?,
            Command::Show { name } => self.show(conn, &name, &upstream).await?,
            Command::TimelineHistory(tli) => self.timeline_history(conn, tli).await?,
            Command::CreateReplicationSlot(slot) => self.create_slot(conn, slot).await?,
            Command::ReadReplicationSlot { slot } => {
                since(version, 150_000)?;
                self.read_slot(conn, &slot).await?;
            }
            Command::DropReplicationSlot { slot, wait } => self.drop_slot(conn, slot, wait).await?,
            Command::AlterReplicationSlot { slot, options } => {
                since(version, 170_000)?;
                self.alter_slot(&slot, &options)?;
            }
            Command::Fence(order) => self.fence(conn, order).await?,
            Command::Unfence { epoch } => self.unfence(conn, epoch).await?,
            Command::FenceStatus => self.fence_status(conn),
            Command::BranchWal { lsn, tli } => self.branch_wal(conn, lsn, tli).await?,
            Command::StartLogicalReplication { .. } => return Err(no_logical().into()),
            // The session hands these on, to the walsender and to the upstream.
            Command::StartReplication(_) | Command::BaseBackup { .. } | Command::UploadManifest => {}
        }
        Ok(())
    }

    fn identify_system(&self, conn: &mut Connection, version: u32) -> Result<()> {
        let store = &self.context.store;
        let (Some(identity), Some(tip)) = (store.identity(), store.tip()) else { return Err(nothing_yet()) };
        let timeline = if version < 160_000 { Column::int4("timeline") } else { Column::int8("timeline") };
        let columns = [Column::text("systemid"), timeline, Column::text("xlogpos"), Column::text("dbname")];
        conn.put(&row_description(&columns));
        put_row(
            conn,
            &[
                Some(&identity.system_id.to_string()),
                Some(&tip.tli.to_string()),
                Some(&tip.flush_lsn.text(version / 10_000)),
                None,
            ],
        );
        conn.put(&command_complete("IDENTIFY_SYSTEM"));
        Ok(())
    }

    fn shown(&self) -> Shown<'_> {
        Shown {
            settings: self.settings,
            shared: self.shared,
            user: &self.context.user,
            wal_sender_timeout: self.context.wal_sender_timeout,
        }
    }

    async fn show(&self, conn: &mut Connection, name: &str, upstream: &UpstreamParameters) -> Result<()> {
        if name.eq_ignore_ascii_case("all") {
            self.show_all(conn, upstream);
        } else {
            let canonical = settings::canonical_name(name).unwrap_or(name);
            let shown = self.shown();
            let value = match shown.setting(canonical, upstream) {
                Some(value) => value.into_owned(),
                None => self.ask_upstream(name).await?,
            };
            conn.put(&row_description(&[Column::text(canonical)]));
            put_row(conn, &[Some(&value)]);
        }
        conn.put(&command_complete("SHOW"));
        Ok(())
    }

    /// What only the upstream knows, as it tells the client's role, or else the relay's.
    async fn ask_upstream(&self, name: &str) -> Result<String> {
        let asking = backup::open(self.context, self.shared, self.credentials);
        let Ok(Ok((mut upstream, ..))) = timeout(ASK_LIMIT, asking).await else {
            return Err(unknown_setting(name));
        };
        let answer = upstream.query(&format!("SHOW \"{}\"", name.replace('"', "\"\""))).await;
        upstream.close().await;
        match answer {
            Ok(result) => {
                let value = result.rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
                value
                    .map(|text| String::from_utf8_lossy(&text).into_owned())
                    .ok_or_else(|| unknown_setting(name))
            }
            Err(QueryError::Server(error)) => Err(PgError::error(error.sqlstate, error.message)),
            Err(_) => Err(unknown_setting(name)),
        }
    }

    fn show_all(&self, conn: &mut Connection, upstream: &UpstreamParameters) {
        let columns = [Column::text("name"), Column::text("setting"), Column::text("description")];
        conn.put(&row_description(&columns));
        let shown = self.shown();
        for name in settings::all_names() {
            if let Some(value) = shown.setting(name, upstream) {
                put_row(conn, &[Some(name), Some(&value), Some("")]);
            }
        }
    }

    async fn timeline_history(&self, conn: &mut Connection, tli: TimelineId) -> Result<()> {
        let name = tli.history_file_name();
        conn.put(&row_description(&[Column::text("filename"), Column::text("content")]));
        let store = self.context.store.clone();
        let content = blocking(move || store.history_file(tli)).await?.map_err(|error| {
            PgError::error(sqlstate::IO_ERROR, format!("could not read file \"pg_wal/{name}\": {error}"))
        })?;
        let content = match (content, &self.context.recall) {
            (None, Some(recall)) => recalled_history(recall, tli).await?,
            (content, _) => content,
        };
        let content = content.ok_or_else(|| {
            let text = format!("could not open file \"pg_wal/{name}\": No such file or directory");
            PgError::error(sqlstate::UNDEFINED_FILE, text)
        })?;
        conn.put(&data_row(&[Some(name.as_bytes()), Some(&content)]));
        conn.put(&command_complete("TIMELINE_HISTORY"));
        Ok(())
    }

    /// One row with the bytes from there on that the segment's file has, at most [`PIECE`] of them; none at its end.
    async fn branch_wal(&self, conn: &mut Connection, lsn: Lsn, tli: TimelineId) -> Result<()> {
        conn.put(&row_description(&[Column::text("content")]));
        let store = self.context.store.clone();
        let content = blocking(move || store.branch_wal(tli, lsn, PIECE)).await?.map_err(|error| {
            let text = format!("could not read WAL of timeline {tli} at {lsn}: {error}");
            PgError::error(sqlstate::IO_ERROR, text)
        })?;
        let content = content.ok_or_else(|| {
            let text =
                format!("no WAL of timeline {tli} at {lsn} is held beside the timeline that is followed");
            PgError::error(sqlstate::UNDEFINED_FILE, text)
        })?;
        conn.put(&data_row(&[Some(&content)]));
        conn.put(&command_complete("BRANCH_WAL"));
        Ok(())
    }

    async fn create_slot(&self, conn: &mut Connection, slot: CreateSlot) -> std::result::Result<(), Failure> {
        let SlotKind::Physical { reserve_wal } = slot.kind else { return Err(no_logical().into()) };
        let name = SlotName::new(&slot.name).map_err(slot_name_error)?;
        if self.context.store.slots().get(&slot.name).is_none() && self.is_logical(conn, &slot.name).await? {
            return Err(slot_error(SlotError::Exists { name: slot.name }).into());
        }
        let persistence = match slot.temporary {
            true => SlotPersistence::Temporary { owner: self.context.pid },
            false => SlotPersistence::Persistent,
        };
        let (store, undo, pid) = (self.context.store.clone(), self.context.store.clone(), self.context.pid);
        let unheard = name.clone();
        let create = move || match reserve_wal {
            true => store.create_reserving_slot(&name, persistence),
            false => store.slots().create(&name, persistence, None),
        };
        // Nobody knows of it, so nobody would ever drop it.
        let undo = move |created: std::result::Result<(), SlotError>| {
            if let Err(error) = created.and_then(|()| undo.drop_slot(unheard.as_str(), pid)) {
                tracing::info!("slot \"{unheard}\", whose creation was given up: {error}");
            }
        };
        self.change(conn, create, undo).await?.map_err(slot_error)?;
        let columns = ["slot_name", "consistent_point", "snapshot_name", "output_plugin"].map(Column::text);
        conn.put(&row_description(&columns));
        put_row(
            conn,
            &[
                Some(&slot.name),
                Some(&Lsn::INVALID.text(self.context.store.upstream_parameters().major_version())),
                None,
                None,
            ],
        );
        conn.put(&command_complete("CREATE_REPLICATION_SLOT"));
        Ok(())
    }

    /// Whether the upstream has a logical slot of that name, as far as it can be asked: names are unique over its logical
    /// slots and the relay's, as on one server.
    async fn is_logical(&self, conn: &mut Connection, name: &str) -> std::result::Result<bool, Failure> {
        // Before that it has no command to ask with.
        if settings::server_version_num(&self.context.store.upstream_parameters()) < 150_000 {
            return Ok(false);
        }
        let ask = async {
            let (mut upstream, ..) = backup::open(self.context, self.shared, self.credentials).await.ok()?;
            let text = format!("READ_REPLICATION_SLOT \"{}\"", name.replace('"', "\"\""));
            let answer = upstream.query(&text).await;
            upstream.close().await;
            Some(
                matches!(answer, Err(QueryError::Server(error)) if error.sqlstate == sqlstate::FEATURE_NOT_SUPPORTED),
            )
        };
        tokio::select! {
            answer = timeout(NAME_LIMIT, ask) => Ok(matches!(answer, Ok(Some(true)))),
            reason = self.given_up(conn) => Err(reason),
        }
    }

    async fn read_slot(&self, conn: &mut Connection, name: &str) -> std::result::Result<(), Failure> {
        let store = &self.context.store;
        if store.slots().get(name).is_none() && self.is_logical(conn, name).await? {
            let text = "cannot use READ_REPLICATION_SLOT with a logical replication slot";
            return Err(PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text).into());
        }
        let columns = [Column::text("slot_type"), Column::text("restart_lsn"), Column::int8("restart_tli")];
        conn.put(&row_description(&columns));
        let slot = store.slots().get(name);
        let restart = slot.as_ref().and_then(|slot| slot.restart_lsn);
        let tli = restart.map(|lsn| store.history().timeline_at(lsn).to_string());
        let restart = restart.map(|lsn| lsn.text(store.upstream_parameters().major_version()));
        put_row(conn, &[slot.map(|_| "physical"), restart.as_deref(), tli.as_deref()]);
        conn.put(&command_complete("READ_REPLICATION_SLOT"));
        Ok(())
    }

    async fn drop_slot(
        &self,
        conn: &mut Connection,
        name: String,
        wait: bool,
    ) -> std::result::Result<(), Failure> {
        let pid = self.context.pid;
        loop {
            let (store, slot) = (self.context.store.clone(), name.clone());
            match self.change(conn, move || store.drop_slot(&slot, pid), drop).await? {
                Ok(()) => break,
                Err(SlotError::Active { .. }) if wait => self.wait_for_release(conn, &name).await?,
                Err(error) => return Err(slot_error(error).into()),
            }
        }
        conn.put(&command_complete("DROP_REPLICATION_SLOT"));
        Ok(())
    }

    async fn wait_for_release(&self, conn: &mut Connection, name: &str) -> std::result::Result<(), Failure> {
        let slots = self.context.store.slots();
        tokio::select! {
            () = slots.released(name) => Ok(()),
            reason = self.given_up(conn) => Err(reason),
        }
    }

    /// Changes slots on a thread that may wait for the disk. When the client gives up first, the change is made all
    /// the same once it has begun, and its outcome goes to `unheard`.
    async fn change<T: Send + 'static>(
        &self,
        conn: &mut Connection,
        work: impl FnOnce() -> T + Send + 'static,
        unheard: impl FnOnce(T) + Send + 'static,
    ) -> std::result::Result<T, Failure> {
        let place = tokio::select! {
            place = self.context.store.slots().may_change() => place,
            reason = self.given_up(conn) => return Err(reason),
        };
        let (told, mut outcome) = oneshot::channel();
        spawn_blocking(move || {
            let _place = place;
            if let Err(outcome) = told.send(work()) {
                unheard(outcome);
            }
        });
        let reason = tokio::select! {
            done = &mut outcome => return done.map_err(|_| broken().into()),
            reason = self.given_up(conn) => reason,
        };
        // Either it is done by now, or whoever does it learns that nobody waits for it.
        outcome.close();
        outcome.try_recv().map_err(|_| reason)
    }

    /// Why the running command is not waited for any more. Cancel-safe.
    pub(super) async fn given_up(&self, conn: &mut Connection) -> Failure {
        tokio::select! {
            error = told_to_end(self.context) => error.into(),
            error = conn.gone() => Failure::Closed(error.into()),
        }
    }

    /// A physical slot has nothing to alter.
    fn alter_slot(&self, name: &str, options: &[CommandOption]) -> Result<()> {
        if let Some(unknown) = options.iter().find(|o| !matches!(o.name.as_str(), "failover" | "two_phase")) {
            let text = format!("unrecognized option: {}", unknown.name);
            return Err(PgError::error(sqlstate::INTERNAL_ERROR, text));
        }
        if self.context.store.slots().get(name).is_none() {
            return Err(slot_error(SlotError::Missing { name: name.to_owned() }));
        }
        let text = "cannot use ALTER_REPLICATION_SLOT with a physical replication slot";
        Err(PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text))
    }
}

async fn recalled_history(recall: &Recall, tli: TimelineId) -> Result<Option<Vec<u8>>> {
    let content = recall.history_file(tli).await;
    let content = content.map_err(|error| {
        let text = format!("could not fetch file \"{}\": {error}", tli.history_file_name());
        PgError::error(sqlstate::IO_ERROR, text)
    })?;
    Ok(content.map(|content| content.to_vec()))
}

/// The end of a stream: which timeline comes next, if the one streamed is over, and both tags.
pub(super) fn stream_done(conn: &mut Connection, next: Option<(TimelineId, Lsn)>, store: &Store) {
    if let Some((tli, begin)) = next {
        conn.put(&row_description(&[Column::int8("next_tli"), Column::text("next_tli_startpos")]));
        let begin = begin.text(store.upstream_parameters().major_version());
        put_row(conn, &[Some(&tli.to_string()), Some(&begin)]);
    }
    conn.put(&command_complete("START_STREAMING"));
    conn.put(&command_complete("START_REPLICATION"));
}

/// What a query gets that is no replication command.
pub(super) fn no_sql() -> PgError {
    let text = "cannot execute SQL commands in WAL sender for physical replication";
    PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
}

/// A name that no slot can have.
pub(super) fn slot_name_error(error: SlotNameError) -> PgError {
    let refusal = PgError::error(error.sqlstate(), error.to_string());
    match error.hint() {
        Some(hint) => refusal.with_hint(hint),
        None => refusal,
    }
}

/// A slot's refusal in PostgreSQL's words.
pub(super) fn slot_error(error: SlotError) -> PgError {
    let sqlstate = match &error {
        SlotError::Exists { .. } => sqlstate::DUPLICATE_OBJECT,
        SlotError::Missing { .. } => sqlstate::UNDEFINED_OBJECT,
        SlotError::Active { .. } => sqlstate::OBJECT_IN_USE,
        SlotError::Full => sqlstate::CONFIGURATION_LIMIT_EXCEEDED,
        SlotError::Invalidated { .. } => sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SlotError::Io(_) => sqlstate::IO_ERROR,
    };
    let refusal = PgError::error(sqlstate, error.to_string());
    match error {
        SlotError::Full => refusal.with_hint("Free one or increase \"max_replication_slots\"."),
        SlotError::Invalidated { .. } => {
            refusal.with_detail("This replication slot has been invalidated due to \"wal_removed\".")
        }
        _ => refusal,
    }
}

/// A command that the running one's cancel request has ended.
pub(super) fn canceled() -> PgError {
    PgError::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request")
}

/// A command that the upstream's version does not have is SQL to it.
fn since(version: u32, first: u32) -> Result<()> {
    if version >= first { Ok(()) } else { Err(no_sql()) }
}

fn no_logical() -> PgError {
    let text = "logical decoding requires a database connection";
    PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text)
}

fn nothing_yet() -> PgError {
    PgError::error(sqlstate::CANNOT_CONNECT_NOW, "the database system is starting up")
}

fn unknown_setting(name: &str) -> PgError {
    if settings::canonical_name(name).is_some() {
        let text = format!("walrelay does not know the upstream's value of parameter \"{name}\"");
        return PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text).with_hint("Ask the upstream server.");
    }
    let text = format!("unrecognized configuration parameter \"{name}\"");
    PgError::error(sqlstate::UNDEFINED_OBJECT, text)
}

fn broken() -> PgError {
    PgError::error(sqlstate::INTERNAL_ERROR, "a fault of walrelay, see its standard error")
}

/// Runs what waits for the disk beside the threads that serve others.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let failed = |error| PgError::error(sqlstate::INTERNAL_ERROR, io::Error::from(error).to_string());
    spawn_blocking(work).await.map_err(failed)
}

pub(super) fn put_row(conn: &mut Connection, values: &[Option<&str>]) {
    let values: Vec<_> = values.iter().map(|value| value.map(str::as_bytes)).collect();
    conn.put(&data_row(&values));
}
