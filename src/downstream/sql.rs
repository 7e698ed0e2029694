//! SQL connections: a session upstream in the name of the same role, with bytes forwarded both ways.

use std::sync::Arc;

use super::Shared;
use super::forward::{self, SessionState, Side, Statement, Texts};
use super::registry::Registration;
use crate::conninfo::Credentials;
use crate::gateway::Attributes;
use crate::upstream::UpstreamConnection;
use crate::wire::{Connection, PgError, messages};

/// A connection that is logged in and wants SQL, or logical replication.
pub(super) struct SqlSession {
    pub(super) user: String,
    pub(super) database: String,
    /// `replication=database`
    #[expect(dead_code, reason = "the console comes next")]
    pub(super) is_logical: bool,
    /// The start-up message's parameters, `user` not among them.
    pub(super) parameters: Vec<(String, Vec<u8>)>,
    pub(super) credentials: Credentials,
    /// The role's, if known.
    #[expect(dead_code, reason = "the console comes next")]
    pub(super) attributes: Option<Attributes>,
    pub(super) shared: Arc<Shared>,
    #[expect(dead_code, reason = "the console comes next")]
    pub(super) registration: Registration,
}

impl SqlSession {
    /// Serves the client until one side ends it; then says why, for the log.
    pub(super) async fn run(mut self, mut conn: Connection) -> String {
        let gateway = self.shared.gateway.clone();
        let host = gateway.host();
        let parameters = std::mem::take(&mut self.parameters);
        let opened = tokio::select! {
            opened = gateway.open(&self.user, &self.credentials, parameters) => opened,
            gone = conn.gone() => return gone.to_string(),
        };
        let mut upstream = match opened {
            Ok(upstream) => upstream,
            Err(error) => return refuse(conn, error.client_error(&self.user, &self.credentials)).await,
        };
        let _cancellable = host.and_then(|host| gateway.cancellable(&upstream, host));
        welcome(&mut conn, &mut upstream);
        if let Err(error) = conn.flush().await {
            return format!("could not send data to client: {error}");
        }
        self.forward(conn, upstream).await
    }

    async fn forward(&mut self, conn: Connection, upstream: UpstreamConnection) -> String {
        let conforming = upstream.parameter("standard_conforming_strings") != Some("off");
        let state = SessionState::new(conforming);
        let (socket, read_already) = conn.into_parts();
        let (reader, writer) = tokio::io::split(socket);
        let client = Side { reader, writer, read_already };
        let parts = upstream.into_parts();
        let (reader, writer) = tokio::io::split(parts.stream);
        let server = Side { reader, writer, read_already: parts.buffered };
        let mut overlay = Overlay;
        forward::forward(client, server, &mut overlay, &state, &self.shared.shutdown).await
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
struct Overlay;

impl Texts for Overlay {
    fn rewrite(&mut self, _: Statement, _: &[u8], _: &SessionState) -> Option<Vec<u8>> {
        None
    }
}
