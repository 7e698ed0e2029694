//! SQL sessions that the relay serves itself: its own database, and what backup tools need while the upstream is
//! away.

use tokio_util::sync::CancellationToken;

use super::Shared;
use super::settings::{self, Settings};
use super::shown::Shown;
use crate::console::{self, Answer, Change, Facts, Instead};
use crate::gateway::Attributes;
use crate::overlay::{Row, sender_rows, slot_rows};
use crate::wire::messages::{self, EmptyQueryResponse};
use crate::wire::{Connection, Frame, PgError, Phase, ReadError, sqlstate};

/// Name of the relay's own database.
pub(super) const OWN_DATABASE: &str = "walrelay";

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
        let mut skip_to_sync = false;
        loop {
            if let Err(error) = conn.flush().await {
                return format!("could not send data to client: {error}");
            }
            conn.set_phase(Phase::Command);
            let frame = tokio::select! {
                frame = conn.read_frame() => frame,
                () = shutdown.cancelled() => {
                    let text = "terminating connection due to administrator command";
                    return end(conn, PgError::fatal(sqlstate::ADMIN_SHUTDOWN, text)).await;
                }
            };
            match frame {
                Ok(frame) if frame.kind == b'X' => return "client has left".to_owned(),
                Ok(frame) => self.message(&mut conn, &frame, &mut skip_to_sync).await,
                Err(ReadError::Frame(error)) => {
                    let told = error.to_pg_error();
                    return match told {
                        Some(told) => end(conn, told).await,
                        None => error.to_string(),
                    };
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    async fn message(&mut self, conn: &mut Connection, frame: &Frame, skip_to_sync: &mut bool) {
        match frame.kind {
            b'S' => {
                *skip_to_sync = false;
                conn.put(&messages::ready_for_query());
            }
            _ if *skip_to_sync => {}
            b'Q' => {
                let text = frame.c_string();
                match text.map(|text| console::answer(text, self)) {
                    Some(Ok(answers)) => answers.into_iter().for_each(|answer| self.put(conn, answer)),
                    Some(Err(error)) => conn.put_error(&error),
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
    }

    fn put(&mut self, conn: &mut Connection, answer: Answer) {
        match answer {
            Answer::Empty => conn.put(&EmptyQueryResponse::new()),
            Answer::Done { tag, change } => {
                let name = match change {
                    Some(Change::ApplicationName(name)) => Some(name),
                    Some(Change::ResetApplicationName) => Some(self.first_name.clone()),
                    None => None,
                };
                if let Some(name) = name {
                    let upstream = self.shared.store.upstream_parameters();
                    if self.settings.set("application_name", name.as_bytes(), &upstream).is_ok() {
                        let name = self.settings.get("application_name").unwrap_or_default();
                        conn.put(&messages::parameter_status("application_name", name));
                    }
                }
                conn.put(&messages::command_complete(tag));
            }
            Answer::Rows { columns, rows, tag } => {
                let columns: Vec<_> = columns.iter().map(console::Field::column).collect();
                conn.put(&messages::row_description(&columns));
                for row in &rows {
                    let values: Vec<_> =
                        row.iter().map(|value| value.as_deref().map(str::as_bytes)).collect();
                    conn.put(&messages::data_row(&values));
                }
                conn.put(&messages::command_complete(&tag));
            }
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
        let upstream = self.shared.store.upstream_parameters();
        self.shown().setting(name, &upstream).map(|value| value.into_owned())
    }

    fn settings(&self) -> Vec<(String, String)> {
        let upstream = self.shared.store.upstream_parameters();
        let shown = self.shown();
        let all = settings::all_names();
        all.filter_map(|name| Some((name.to_owned(), shown.setting(name, &upstream)?.into_owned()))).collect()
    }

    fn system_identifier(&self) -> Option<String> {
        self.shared.store.identity().map(|identity| identity.system_id.to_string())
    }

    fn is_in_recovery(&self) -> Option<bool> {
        let upstream = self.shared.store.upstream_parameters();
        upstream.status("in_hot_standby").map(|value| value == "on")
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
