//! Who is connected and what they do, for `pg_stat_activity` and `pg_stat_ssl` of the relay's own database.
//!
//! Of a session that is forwarded the relay knows only that it is there: what it does is in the upstream's view, under another
//! number.

use std::sync::{Arc, Mutex, PoisonError};

use super::registry::{Registry, SessionKind};
use crate::moment::Past;
use crate::overlay::Row;
use crate::wire::{Peer, TlsSession};

/// Bytes of a query that are shown (PostgreSQL: `track_activity_query_size`).
const MOST_OF_QUERY: usize = 1024;

/// What is known of a connection from its login on.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) database: Option<String>,
    pub(super) application_name: String,
    pub(super) peer: Peer,
    pub(super) started_at: Past,
    pub(super) tls: Option<Tls>,
}

/// How it is encrypted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tls {
    version: String,
    cipher: String,
    bits: Option<u32>,
    client_dn: Option<String>,
    client_serial: Option<String>,
    issuer_dn: Option<String>,
}

impl Tls {
    pub(super) fn of(session: &TlsSession) -> Tls {
        let (version, cipher, bits) = session.parameters();
        let certificate = session.client_certificate();
        Tls {
            version,
            cipher,
            bits,
            client_dn: certificate.map(|it| it.distinguished_name.clone()),
            client_serial: certificate.and_then(|it| it.serial.clone()),
            issuer_dn: certificate.map(|it| it.issuer.clone()),
        }
    }
}

/// What a session that the relay answers itself is doing; shared with its line in the registry.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Arc<Mutex<Option<Doing>>>);

#[derive(Clone, Debug)]
pub(super) struct Doing {
    application_name: String,
    state: &'static str,
    query: String,
    query_start: Option<Past>,
    state_change: Past,
    xact_start: Option<Past>,
}

impl Activity {
    /// A text is answered.
    pub(super) fn runs(&self, text: &[u8], application_name: &str) {
        let now = Past::now();
        let text = String::from_utf8_lossy(&text[..text.len().min(MOST_OF_QUERY)]);
        // Half a character at the end is none.
        let query = text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned();
        let mut doing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let xact_start = doing.as_ref().and_then(|doing| doing.xact_start).or(Some(now));
        *doing = Some(Doing {
            application_name: application_name.to_owned(),
            state: "active",
            query,
            query_start: Some(now),
            state_change: now,
            xact_start,
        });
    }

    /// The client is waited for.
    pub(super) fn waits(&self, state: &'static str, application_name: &str) {
        let mut doing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Past::now();
        let doing = doing.get_or_insert_with(|| Doing {
            application_name: String::new(),
            state: "",
            query: String::new(),
            query_start: None,
            state_change: now,
            xact_start: None,
        });
        application_name.clone_into(&mut doing.application_name);
        if doing.state != state {
            (doing.state, doing.state_change) = (state, now);
        }
        if state == "idle" {
            doing.xact_start = None;
        }
    }

    fn seen(&self) -> Option<Doing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Rows of both views in one. Of whom `sees` is not true only that they are there is shown (PostgreSQL:
/// `pg_stat_get_activity`).
pub(super) fn rows(registry: &Registry, sees: impl Fn(&str) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for seen in registry.seen() {
        let Some(client) = seen.client else { continue };
        let doing = seen.activity.seen();
        let name = doing.as_ref().map_or(&client.application_name, |doing| &doing.application_name);
        let row = Row::default()
            .with("pid", seen.pid.to_string())
            .with("usename", seen.user.clone())
            .with("datname", client.database.clone())
            .with("application_name", name.clone());
        rows.push(match sees(&seen.user) {
            true => detailed(row, &client, doing, seen.kind),
            false => row.with("query", "<insufficient privilege>".to_owned()),
        });
    }
    rows
}

fn detailed(row: Row, client: &Client, doing: Option<Doing>, kind: SessionKind) -> Row {
    let time = |past: Past| past.moment().to_string();
    let backend_type = match kind {
        SessionKind::Walsender | SessionKind::Logical => "walsender",
        SessionKind::Sql | SessionKind::Console | SessionKind::Superuser => "client backend",
    };
    let port = client.peer.address().map_or(-1, |address| i32::from(address.port()));
    let row = row
        .with("client_addr", client.peer.ip().map(|ip| ip.to_string()))
        .with("client_port", port.to_string())
        .with("backend_start", time(client.started_at))
        .with("backend_type", backend_type.to_owned())
        .with("ssl", if client.tls.is_some() { "t" } else { "f" }.to_owned());
    let row = match doing {
        Some(doing) => row
            .with("state", doing.state.to_owned())
            .with("query", doing.query)
            .with("query_start", doing.query_start.map(time))
            .with("state_change", time(doing.state_change))
            .with("xact_start", doing.xact_start.map(time)),
        None => row,
    };
    match &client.tls {
        Some(tls) => row
            .with("version", tls.version.clone())
            .with("cipher", tls.cipher.clone())
            .with("bits", tls.bits.map(|bits| bits.to_string()))
            .with("client_dn", tls.client_dn.clone())
            .with("client_serial", tls.client_serial.clone())
            .with("issuer_dn", tls.issuer_dn.clone()),
        None => row,
    }
}
