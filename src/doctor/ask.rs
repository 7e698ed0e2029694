//! Questions to servers, in SQL and as a walsender's client.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use walrelay_proto::Lsn;

use super::certificates::{self, Dates};
use crate::conninfo::ConnInfo;
use crate::pg::{ConnectError, QueryError, QueryResult, UpstreamConnection, connect_any};

/// How long connecting, and each answer, may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What keeps somebody out, besides what a SQLSTATE says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Hurdle {
    /// The role has all the connections that it may have itself.
    LimitOfRole,
    /// TLS does not come about.
    Tls,
    /// There is no password, or the server does not know it either.
    Password,
    #[default]
    Other,
}

/// Why a server does not tell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Trouble {
    /// The server's own reason.
    pub(super) sqlstate: Option<String>,
    /// It does not even let one in.
    pub(super) is_login: bool,
    pub(super) hurdle: Hurdle,
    pub(super) text: String,
}

impl Trouble {
    fn silent(is_login: bool) -> Trouble {
        Trouble {
            is_login,
            text: format!("it has not answered within {} s", LIMIT.as_secs()),
            ..Trouble::default()
        }
    }

    /// Whether the server has said no with this SQLSTATE.
    pub(super) fn is(&self, sqlstate: &str) -> bool {
        self.sqlstate.as_deref() == Some(sqlstate)
    }
}

impl From<ConnectError> for Trouble {
    fn from(error: ConnectError) -> Trouble {
        let text = error.to_string();
        let (sqlstate, hurdle) = keeps_out(&error);
        Trouble { sqlstate, is_login: true, hurdle, text }
    }
}

/// The SQLSTATE of a server that says no, and what is in the way.
fn keeps_out(error: &ConnectError) -> (Option<String>, Hurdle) {
    match error {
        ConnectError::Server(error) if error.is_limit_of_role() => {
            (Some(error.sqlstate.clone()), Hurdle::LimitOfRole)
        }
        ConnectError::Server(error) => (Some(error.sqlstate.clone()), Hurdle::Other),
        // What it says without encryption is the last word, if it says anything.
        ConnectError::Both { first, second, .. } => match keeps_out(second) {
            (None, Hurdle::Other) => keeps_out(first),
            said => said,
        },
        ConnectError::ErrorBeforeTls
        | ConnectError::TlsRefused { .. }
        | ConnectError::TlsConfiguration { .. }
        | ConnectError::Tls(_)
        | ConnectError::TlsIo(_)
        | ConnectError::NoAlpn
        | ConnectError::CertificateNotRequested => (None, Hurdle::Tls),
        ConnectError::NoPassword { .. } | ConnectError::Scram(_) => (None, Hurdle::Password),
        _ => (None, Hurdle::Other),
    }
}

/// A connection on which questions are asked.
pub(super) struct Asking(UpstreamConnection);

impl Asking {
    pub(super) async fn connect(info: &ConnInfo) -> Result<Asking, Trouble> {
        match timeout(LIMIT, connect_any(info, Instant::now() + LIMIT)).await {
            Ok(connected) => Ok(Asking(connected?)),
            Err(_) => Err(Trouble::silent(true)),
        }
    }

    /// The rows of an answer, as texts.
    pub(super) async fn rows(&mut self, question: &str) -> Result<Vec<Row>, Trouble> {
        let answer = timeout(LIMIT, self.0.query(question)).await.map_err(|_| Trouble::silent(false))?;
        let QueryResult { rows, .. } = answer.map_err(|error| Trouble {
            text: error.to_string(),
            is_login: false,
            hurdle: Hurdle::Other,
            sqlstate: match error {
                QueryError::Server(error) => Some(error.sqlstate),
                _ => None,
            },
        })?;
        let text = |value: Option<bytes::Bytes>| value.map(|it| String::from_utf8_lossy(&it).into_owned());
        Ok(rows.into_iter().map(|row| Row(row.into_iter().map(text).collect())).collect())
    }

    /// The first row; an empty one if there is none.
    pub(super) async fn row(&mut self, question: &str) -> Result<Row, Trouble> {
        Ok(self.rows(question).await?.into_iter().next().unwrap_or(Row(Vec::new())))
    }

    /// These settings, as `pg_settings` has them, in its units.
    pub(super) async fn settings(&mut self, names: &[&str]) -> Result<BTreeMap<String, String>, Trouble> {
        let names: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
        let question = format!("select name, setting from pg_settings where name in ({})", names.join(", "));
        let rows = self.rows(&question).await?;
        Ok(rows.iter().filter_map(|row| Some((row.text(0)?.to_owned(), row.text(1)?.to_owned()))).collect())
    }

    /// What the server has shown of itself: its certificate, and those that it has sent with it.
    pub(super) fn certificates(&self) -> Vec<Dates> {
        self.0.peer_certificates().iter().filter_map(|der| certificates::dates_of(der).ok()).collect()
    }

    pub(super) async fn close(self) {
        let _ = timeout(LIMIT, self.0.close()).await;
    }
}

/// Values of one row, by their place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row(Vec<Option<String>>);

impl Row {
    /// A value; `None` for NULL, and for what is not there.
    pub(super) fn text(&self, column: usize) -> Option<&str> {
        self.0.get(column)?.as_deref()
    }

    pub(super) fn flag(&self, column: usize) -> bool {
        self.text(column) == Some("t")
    }

    pub(super) fn number<T: std::str::FromStr>(&self, column: usize) -> Option<T> {
        self.text(column)?.parse().ok()
    }

    pub(super) fn lsn(&self, column: usize) -> Option<Lsn> {
        self.number(column)
    }
}
