//! SQL connections: a session upstream in the name of the same role, with bytes forwarded both ways.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::Shared;
use super::commands;
use super::exchange::{Exchange, Moment};
use super::forward::{self, About, Fate, Question, Side, Talk, Texts};
use super::local::{LocalSession, OWN_DATABASE, told};
use super::login::no_descriptors;
use super::own::OwnRelay;
use super::patience::{ANSWER_LIMIT, Patience};
use super::registry::Registration;
use super::session::shutting_down;
use super::settings::Settings;
use crate::conninfo::Credentials;
use crate::console::Instead;
use crate::gateway::Attributes;
use crate::overlay::{self, Rewritten, RowsParameter, SlotCall, SqlContext};
use crate::pg::UpstreamConnection;
use crate::upstream::Return;
use crate::wire::{Connection, PgError, messages};

/// A connection that is logged in and wants SQL, or logical replication.
pub(super) struct SqlSession {
    pub(super) user: String,
    pub(super) database: String,
    /// `replication=database`
    pub(super) is_logical: bool,
    /// The start-up message's parameters, `user` not among them.
    pub(super) parameters: Vec<(String, Vec<u8>)>,
    /// What the parameters set, for sessions served here; forwarded ones are the upstream's to judge.
    pub(super) settings: Result<Settings, PgError>,
    /// What such a session is told of the server.
    pub(super) reported: Vec<(String, String)>,
    pub(super) credentials: Credentials,
    /// The role's, if known.
    pub(super) attributes: Option<Attributes>,
    /// See [`LocalSession::is_owner`].
    pub(super) is_owner: bool,
    pub(super) shared: Arc<Shared>,
    pub(super) registration: Registration,
}

impl SqlSession {
    /// Serves the client until one side ends it; then says why, for the log.
    pub(super) async fn run(mut self, mut conn: Connection) -> String {
        if self.database == OWN_DATABASE && !self.is_logical {
            return self.serve_here(conn, None).await;
        }
        let shared = self.shared.clone();
        if !shared.config.descriptors.has_room() {
            shared.config.descriptors.tell_refusal();
            return refuse(conn, no_descriptors()).await;
        }
        let parameters = std::mem::take(&mut self.parameters);
        let opened = tokio::select! {
            opened = shared.gateway.open(&self.user, &self.credentials, parameters) => opened,
            gone = conn.gone() => return gone.to_string(),
            () = shared.shutdown.cancelled() => return refuse(conn, shutting_down()).await,
        };
        let (mut upstream, _cancellable) = match opened {
            Ok(upstream) => upstream,
            Err(error) if error.is_outage() && !self.is_logical => {
                let upstream = shared.gateway.next_return(&error);
                return self.serve_here(conn, Some(upstream)).await;
            }
            Err(error) => return refuse(conn, error.client_error(&self.user, &self.credentials)).await,
        };
        welcome(&mut conn, &mut upstream);
        let patience = Patience { limit: Some(ANSWER_LIMIT), shutdown: &self.shared.shutdown, cancel: None };
        if let Err(error) = patience.flush(&mut conn).await {
            return format!("could not send data to client: {error}");
        }
        self.forward(conn, upstream).await
    }

    /// A session that needs no upstream, or one in place of `upstream`, which can do little until that is back.
    async fn serve_here(&self, mut conn: Connection, upstream: Option<Return>) -> String {
        let instead = if upstream.is_some() { Instead::Upstream } else { Instead::OwnDatabase };
        let settings = match (&self.settings, instead) {
            (Ok(settings), _) => settings.clone(),
            (Err(error), Instead::OwnDatabase) => return refuse(conn, error.clone()).await,
            (Err(_), Instead::Upstream) => Settings::default(),
        };
        let mut key = [0; 4];
        if let Err(error) = getrandom::fill(&mut key) {
            return format!("could not generate random cancel key: {error}");
        }
        for (name, value) in &self.reported {
            let value = told(name, &settings).unwrap_or(value);
            conn.put(&messages::parameter_status(name, value));
        }
        conn.put(&messages::backend_key_data(self.registration.pid, key));
        conn.put(&messages::ready_for_query());
        let first_name = settings.get("application_name").unwrap_or_default().to_owned();
        let session = LocalSession {
            shared: &self.shared,
            user: &self.user,
            database: &self.database,
            pid: self.registration.pid,
            settings,
            attributes: self.attributes,
            activity: self.registration.activity.clone(),
            is_owner: self.is_owner,
            instead,
            upstream,
            reported_name: first_name.clone(),
            first_name,
        };
        session.run(conn, &self.shared.shutdown).await
    }

    async fn forward(&self, conn: Connection, upstream: UpstreamConnection) -> String {
        let conforming = upstream.parameter("standard_conforming_strings") != Some("off");
        let encoding = upstream.parameter("server_encoding").map(str::to_owned);
        let talk = Talk::new(Exchange::new(conforming, upstream.parameter("client_encoding")));
        let (socket, read_already) = conn.into_parts();
        let (reader, writer) = tokio::io::split(socket);
        let client = Side { reader, writer, read_already };
        let parts = upstream.into_parts();
        let (reader, writer) = tokio::io::split(parts.stream);
        let server = Side { reader, writer, read_already: parts.buffered };
        let utf8 = encoding.is_none_or(|name| name == "UTF8");
        let is_on = self.shared.config.rules.current().sql_overlay;
        let mut overlay = Overlay { session: self, utf8, is_on };
        forward::forward(client, server, &mut overlay, &talk, &self.shared.shutdown).await
    }
}

/// The rest of the login's answer: what the upstream told, its PID and key.
fn welcome(conn: &mut Connection, upstream: &mut UpstreamConnection) {
    for notice in upstream.take_notices() {
        conn.put_error(&PgError::relayed_notice(&notice.severity, notice.sqlstate, notice.message));
    }
    for (name, value) in upstream.parameters() {
        conn.put(&messages::parameter_status(name, value));
    }
    if let (Some(pid), Ok(key)) = (upstream.backend_pid(), upstream.cancel_key().try_into()) {
        conn.put(&messages::backend_key_data(pid, key));
    }
    conn.put(&messages::ready_for_query());
}

async fn refuse(mut conn: Connection, error: PgError) -> String {
    let reason = error.to_string();
    conn.put_error(&error);
    conn.close().await;
    reason
}

/// What is done to statements on their way.
struct Overlay<'a> {
    session: &'a SqlSession,
    /// The database's encoding.
    utf8: bool,
    /// Whether the relay's rows are shown, as it was when the session began: what is prepared by then goes on.
    is_on: bool,
}

impl Overlay<'_> {
    fn relay(&self) -> OwnRelay {
        OwnRelay { shared: self.session.shared.clone(), pid: self.session.registration.pid }
    }

    fn context(&self, message: overlay::Message, moment: Moment) -> SqlContext {
        SqlContext {
            standard_conforming_strings: moment.standard_conforming_strings,
            ascii_safe: moment.ascii_safe,
            server_encoding_utf8: self.utf8,
            message,
            overlay: self.is_on,
            settled: moment.is_quiet && !moment.has_failed,
            takes_rows: moment.takes_rows,
        }
    }
}

impl Texts for Overlay<'_> {
    fn rewrite(&mut self, message: overlay::Message, text: &[u8], moment: Moment) -> Fate {
        if self.session.is_logical
            && let Some(fate) =
                commands::fate(text, moment, |name| self.session.shared.store.slots().get(name).is_some())
        {
            return fate;
        }
        if !overlay::may_concern_us(text) {
            return Fate::default();
        }
        let (context, mut relay) = (self.context(message, moment), self.relay());
        // The rows tell what is in a directory, and the text may be long.
        let rewritten = tokio::task::block_in_place(|| overlay::rewrite(text, &context, &mut relay));
        let Rewritten { text, rows, call, signal, notice } = rewritten;
        let question = call.map(|call| Question { text: call.question(), about: About::Call(call) });
        let signal = signal.map(|call| Question { text: call.question(), about: About::Signal(call) });
        let question = question.or(signal);
        Fate { text, rows, question, notice }
    }

    async fn act(&mut self, about: About, row: Vec<Option<Vec<u8>>>) -> Option<Vec<u8>> {
        match about {
            About::Call(call) => Some(act_beside(call, row, self.relay()).await),
            About::Signal(call) => Some(call.act(&row, &mut self.relay())),
            About::Slot(name) => commands::judged(&name, &row),
        }
    }

    fn rows(&mut self, rows: &RowsParameter) -> Vec<u8> {
        let mut relay = self.relay();
        tokio::task::block_in_place(|| rows.value(&mut relay))
    }
}

/// Executes a call on a thread that may wait for the disk. When the session ends first, the slots are changed all the
/// same, and temporary ones, which would come too late to be dropped with it, are dropped.
async fn act_beside(call: SlotCall, row: Vec<Option<Vec<u8>>>, mut relay: OwnRelay) -> Vec<u8> {
    let slots = relay.shared.store.slots().clone();
    let (place, pid) = (slots.may_change().await, relay.pid);
    let (told, outcome) = oneshot::channel();
    let task = spawn_blocking(move || {
        let _place = place;
        if told.send(call.act(&row, &mut relay)).is_err() {
            slots.drop_temporary_of(pid);
        }
    });
    match (outcome.await, task) {
        (Ok(text), _) => text,
        (Err(_), task) => match task.await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is going down, and the session with it.
            _ => pending().await,
        },
    }
}

impl Drop for SqlSession {
    fn drop(&mut self) {
        self.shared.store.slots().drop_temporary_of(self.registration.pid);
    }
}
