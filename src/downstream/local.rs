//! SQL sessions that the relay serves itself: its own database, and what backup tools need while the upstream is
//! away.

use std::io;

use tokio_util::sync::CancellationToken;

use super::Shared;
use super::patience::{ANSWER_LIMIT, Patience};
use super::session::shutting_down;
use super::settings::{self, Settings};
use super::shown::Shown;
use crate::console::{self, Answer, Change, Facts, Instead, Script};
use crate::gateway::Attributes;
use crate::overlay::{Row, sender_rows, slot_rows};
use crate::wire::messages::{self, EmptyQueryResponse};
use crate::wire::{Connection, Frame, PgError, Phase, ReadError, sqlstate};

/// Name of the relay's own database.
pub(super) const OWN_DATABASE: &str = "walrelay";

/// What a session that is served here says of itself, whatever the upstream last said.
pub(super) const READ_ONLY: [&str; 2] = ["in_hot_standby", "transaction_read_only"];

/// A session answered from what the relay knows.
pub(super) struct LocalSession<'a> {
    pub(super) shared: &'a Shared,
    pub(super) user: &'a str,
    pub(super) settings: Settings,
    pub(super) attributes: Option<Attributes>,
    pub(super) instead: Instead,
    /// `application_name` as the session began.
    pub(super) first_name: String,
}

impl LocalSession<'_> {
    /// Serves the client until one side ends it; then says why, for the log.
    pub(super) async fn run(mut self, mut conn: Connection, shutdown: &CancellationToken) -> String {
        let patience = Patience { limit: Some(ANSWER_LIMIT), shutdown, cancel: None };
        let mut skip_to_sync = false;
        loop {
            if let Err(error) = patience.flush(&mut conn).await {
                return format!("could not send data to client: {error}");
            }
            conn.set_phase(Phase::Command);
            let frame = tokio::select! {
                frame = conn.read_frame() => frame,
                () = shutdown.cancelled() => return end(conn, shutting_down()).await,
            };
            let answered = match frame {
                Ok(frame) if frame.kind == b'X' => return "client has left".to_owned(),
                Ok(frame) => self.message(&mut conn, &patience, &frame, &mut skip_to_sync).await,
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

    async fn message(
        &mut self,
        conn: &mut Connection,
        patience: &Patience<'_>,
        frame: &Frame,
        skip_to_sync: &mut bool,
    ) -> io::Result<()> {
        match frame.kind {
            b'S' => {
                *skip_to_sync = false;
                conn.put(&messages::ready_for_query());
            }
            _ if *skip_to_sync => {}
            b'Q' => {
                match frame.c_string() {
                    Some(text) => self.query(conn, patience, text).await?,
                    None => {
                        let text = "invalid message format";
                        conn.put_error(&PgError::error(sqlstate::PROTOCOL_VIOLATION, text));
                    }
                }
                conn.put(&messages::ready_for_query());
            }
            b'P' | b'B' | b'E' | b'C' | b'D' | b'F' => {
                *skip_to_sync = frame.kind != b'F';
                let text = "the extended query protocol is not supported by the relay itself";
                conn.put_error(
                    &PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
                        .with_hint("Send the statement as a simple query, as psql does."),
                );
                if !*skip_to_sync {
                    conn.put(&messages::ready_for_query());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends answers as they are made: a text may have thousands of statements.
    async fn query(&mut self, conn: &mut Connection, patience: &Patience<'_>, text: &[u8]) -> io::Result<()> {
        let mut script = aside(text, || Script::new(text));
        while let Some(answer) = aside(text, || script.answer_next(self)) {
            // Those who have a socket that is always ready give way too.
            tokio::task::consume_budget().await;
            match answer {
                Ok(Answer::Rows { columns, rows, tag }) => {
                    put_rows(conn, patience, &columns, &rows).await?;
                    conn.put(&messages::command_complete(&tag));
                }
                Ok(Answer::Done { tag, change }) => {
                    self.take_over(conn, change);
                    conn.put(&messages::command_complete(tag));
                }
                Ok(Answer::Empty) => conn.put(&EmptyQueryResponse::new()),
                Err(error) => conn.put_error(&error),
            }
            if conn.is_full() {
                patience.flush(conn).await?;
            }
        }
        Ok(())
    }

    fn take_over(&mut self, conn: &mut Connection, change: Option<Change>) {
        let name = match change {
            Some(Change::ApplicationName(name)) => name,
            Some(Change::ResetApplicationName) => self.first_name.clone(),
            None => return,
        };
        let upstream = self.shared.store.upstream_parameters();
        if self.settings.set("application_name", name.as_bytes(), &upstream).is_ok() {
            let name = self.settings.get("application_name").unwrap_or_default();
            conn.put(&messages::parameter_status("application_name", name));
        }
    }

    fn shown(&self) -> Shown<'_> {
        let timeout = self.settings.wal_sender_timeout();
        Shown {
            settings: &self.settings,
            shared: self.shared,
            user: self.user,
            wal_sender_timeout: timeout.unwrap_or(self.shared.config.wal_sender_timeout),
        }
    }

    /// Without pg_monitor a role sees of others only that they are there (PostgreSQL: `pg_stat_get_activity`). Where
    /// roles could never be asked for, the hba file has let in whom it trusts.
    fn masked(&self, row: Row) -> Row {
        let sees_all = self.attributes.is_none_or(|known| known.superuser || known.monitor);
        if sees_all || row.get("usename") == Some(self.user) {
            return row;
        }
        ["pid", "usesysid", "usename", "application_name"]
            .into_iter()
            .fold(Row::default(), |kept, name| kept.with(name, row.get(name).map(str::to_owned)))
    }
}

/// Does some work on a text: a long one may take a while, and not from a thread that serves WAL.
fn aside<T>(text: &[u8], work: impl FnOnce() -> T) -> T {
    /// About a millisecond.
    const SHORT: usize = 16 << 10;
    if text.len() > SHORT { tokio::task::block_in_place(work) } else { work() }
}

async fn put_rows(
    conn: &mut Connection,
    patience: &Patience<'_>,
    columns: &[console::Field],
    rows: &[Vec<Option<String>>],
) -> io::Result<()> {
    let columns: Vec<_> = columns.iter().map(console::Field::column).collect();
    conn.put(&messages::row_description(&columns));
    for row in rows {
        let values: Vec<_> = row.iter().map(|value| value.as_deref().map(str::as_bytes)).collect();
        conn.put(&messages::data_row(&values));
        if conn.is_full() {
            patience.flush(conn).await?;
        }
    }
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
        if READ_ONLY.contains(&name) {
            return Some("on".to_owned());
        }
        let upstream = self.shared.store.upstream_parameters();
        self.shown().setting(name, &upstream).map(|value| value.into_owned())
    }

    fn settings(&self) -> Vec<(String, String)> {
        let upstream = self.shared.store.upstream_parameters();
        let shown = self.shown();
        let value = |name: &str| match READ_ONLY.contains(&name) {
            true => Some("on".to_owned()),
            false => shown.setting(name, &upstream).map(|value| value.into_owned()),
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
        sender_rows(&self.shared.store).into_iter().map(|row| self.masked(row)).collect()
    }
}
