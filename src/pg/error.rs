//! What can go wrong upstream, split by whether trying again can help.

use std::fmt;
use std::io;

use crate::auth::scram::client::ClientError;
use crate::conninfo::SslMode;

/// ErrorResponse or NoticeResponse of a server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING` ...; not translated if the server says so.
    pub severity: String,
    /// Five characters.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// The function in the server that said so, which is not translated.
    pub routine: Option<String>,
}

impl ServerError {
    /// Reads the body of an ErrorResponse; of one that cannot be read nothing is known.
    pub fn of_message(body: bytes::Bytes) -> ServerError {
        super::message::server_error(body).unwrap_or_default()
    }

    /// Whether a file of WAL or a history is not there (any more).
    ///
    /// By SQLSTATE, which is the same in every language of `lc_messages`. Where a segment vanishes while it is read,
    /// the SQLSTATE is that of whatever failed before, mostly of nothing (PG: `CheckXLogRemoval`), and the segment's name
    /// tells: of all internal errors of a walsender only this one has it.
    pub fn is_wal_removed(&self) -> bool {
        self.sqlstate == "58P01" || self.is_internal() && self.names_a_segment()
    }

    /// Whether the server does not know a command that only a relay has: it takes it for SQL, which a walsender does not execute.
    pub fn is_unknown_command(&self) -> bool {
        ["42601", "0A000"].contains(&&*self.sqlstate)
    }

    /// Whether nobody thought of a SQLSTATE for it: that a position lies on a timeline that the server never was on, or
    /// behind where it left it, or where its own WAL ends (PG: `StartReplication`).
    pub fn is_internal(&self) -> bool {
        self.sqlstate == "XX000"
    }

    fn names_a_segment(&self) -> bool {
        let is_name = |word: &str| word.len() == 24 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.message.split(|letter: char| !letter.is_ascii_alphanumeric()).any(is_name)
    }

    /// Whether there is no such slot.
    pub fn is_no_such_object(&self) -> bool {
        self.sqlstate == "42704"
    }

    /// Whether there is such a slot already.
    pub fn is_duplicate_object(&self) -> bool {
        self.sqlstate == "42710"
    }

    /// Whether the server has no places for walsenders at all. The name of the setting and the number are not
    /// translated.
    pub fn is_without_walsenders(&self) -> bool {
        let digits: String = self.message.chars().filter(char::is_ascii_digit).collect();
        self.sqlstate == "53300" && self.message.contains("max_wal_senders") && digits == "0"
    }

    /// Whether the role has all the connections that it may have itself (`CONNECTION LIMIT`). That has the SQLSTATE of a server
    /// without places, and only the place in its code tells one from the other in every language.
    pub fn is_limit_of_role(&self) -> bool {
        self.sqlstate == "53300" && self.routine.as_deref() == Some("InitializeSessionUserId")
    }

    /// Whether the server may answer differently in a while: it starts, stops, is full or out of resources.
    pub fn is_transient(&self) -> bool {
        // 08 connection, 40 rollback, 53 resources, 55 object not in state, 57 operator intervention, 58 system.
        ["08", "40", "53", "55", "57", "58", "XX"].iter().any(|class| self.sqlstate.starts_with(class))
    }
}

/// On one line: severity, message, SQLSTATE, detail, hint.
impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message.replace('\n', " ");
        write!(f, "{}: {message} (SQLSTATE {})", self.severity, self.sqlstate)?;
        for (label, text) in [("DETAIL", &self.detail), ("HINT", &self.hint)] {
            if let Some(text) = text {
                write!(f, "; {label}: {}", text.replace('\n', " "))?;
            }
        }
        Ok(())
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host name has no address, or no name server answered.
    #[error("could not translate host name \"{host}\" to address: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody listens, no route, no socket file.
    #[error("connection to server at {target} failed: {source}")]
    Socket {
        /// Host, address and port, or socket file.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// We listen there ourselves.
    #[error(
        "connection to server at {target} leads back to this relay itself; point --upstream at the server or relay above it"
    )]
    Itself {
        /// Host, address and port, or socket file.
        target: String,
    },
    /// `connect_timeout` or the caller's deadline passed.
    #[error("connection to server at {target} failed: timeout expired")]
    Timeout {
        /// Host, address and port, or socket file.
        target: String,
    },
    /// The socket broke during login.
    #[error("could not communicate with the server during login: {0}")]
    Io(#[source] io::Error),
    /// The server hung up during login.
    #[error("server closed the connection unexpectedly during login")]
    Closed,
    /// This is no PostgreSQL server, or it is broken.
    #[error("unexpected answer during login: {problem}; is this a PostgreSQL server?")]
    Protocol {
        /// What was odd.
        problem: String,
    },
    /// The server said no.
    #[error("{0}")]
    Server(ServerError),
    /// An error message instead of the answer to SSLRequest. It is not shown: nobody vouches for it.
    #[error("server sent an error response during SSL exchange")]
    ErrorBeforeTls,
    /// No TLS there, but it is required here.
    #[error("server does not support SSL, but sslmode={} requires it", mode.as_str())]
    TlsRefused {
        /// `sslmode`.
        mode: SslMode,
    },
    /// Our own certificates, keys or host names are unusable.
    #[error("{problem}")]
    TlsConfiguration {
        /// Which, and why.
        problem: String,
    },
    /// A file of ours, or the user database, did not answer.
    #[error("could not read {what}: {reason}")]
    Unread {
        /// Which.
        what: String,
        /// How long it was waited for.
        reason: String,
    },
    /// TLS failed, by what the server sent or is.
    #[error("SSL error: {0}")]
    Tls(#[source] tokio_rustls::rustls::Error),
    /// TLS failed, for the socket broke.
    #[error("SSL SYSCALL error: {0}")]
    TlsIo(#[source] io::Error),
    /// Direct TLS without the agreement that this is PostgreSQL's protocol.
    #[error("direct SSL connection was established without ALPN protocol negotiation extension")]
    NoAlpn,
    /// `sslcertmode=require`.
    #[error("server did not request an SSL certificate")]
    CertificateNotRequested,
    /// The socket's owner is somebody else.
    #[error("requirepeer specifies \"{required}\", but actual peer user name is \"{actual}\"")]
    Peer {
        /// `requirepeer`.
        required: String,
        /// Who it is, a number if the user has no name.
        actual: String,
    },
    /// The server wants a password and there is none.
    #[error("no password supplied{}", hint.as_ref().map(|hint| format!(": {hint}")).unwrap_or_default())]
    NoPassword {
        /// Why the password file was not used.
        hint: Option<String>,
    },
    /// A method that is not spoken here.
    #[error("server requested {method} authentication, which is not supported")]
    UnsupportedMethod {
        /// Its name or number.
        method: String,
    },
    /// No SASL mechanism in common.
    #[error("none of the server's SASL authentication mechanisms are supported")]
    NoMechanism,
    /// `require_auth` rules the server's choice out.
    #[error("authentication method requirement \"{required}\" failed: {reason}")]
    Requirement {
        /// `require_auth`.
        required: String,
        /// What the server did.
        reason: String,
    },
    /// `channel_binding=require` cannot be met.
    #[error("channel binding required, but {reason}")]
    ChannelBinding {
        /// Why not.
        reason: &'static str,
    },
    /// An offer that only TLS could back, without TLS.
    #[error("server offered SCRAM-SHA-256-PLUS authentication over a non-SSL connection")]
    PlusWithoutTls,
    /// The server does not know the password either, or broke the exchange.
    #[error("{0}")]
    Scram(#[source] ClientError),
    /// `target_session_attrs` wants another kind of server.
    #[error("{problem}")]
    SessionAttrs {
        /// What it is, or is not.
        problem: &'static str,
    },
    /// Both with and without encryption.
    #[error("{first}; then, {second_how}: {second}")]
    Both {
        /// What came of the first try.
        first: Box<ConnectError>,
        /// `with SSL` or `without SSL`.
        second_how: &'static str,
        /// What came of the second.
        second: Box<ConnectError>,
    },
}

impl ConnectError {
    /// Whether the same connection string may work later with nobody changing a configuration.
    ///
    /// Name resolution counts as transient: name servers fail, and names move when a primary fails over.
    pub fn is_transient(&self) -> bool {
        match self {
            ConnectError::Resolve { .. }
            | ConnectError::Timeout { .. }
            | ConnectError::Io(_)
            | ConnectError::Closed
            | ConnectError::ErrorBeforeTls
            | ConnectError::TlsIo(_)
            | ConnectError::Unread { .. }
            | ConnectError::SessionAttrs { .. } => true,
            ConnectError::Socket { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            ConnectError::Server(error) => error.is_transient(),
            ConnectError::Both { first, second, .. } => first.is_transient() || second.is_transient(),
            ConnectError::Itself { .. }
            | ConnectError::Protocol { .. }
            | ConnectError::TlsRefused { .. }
            | ConnectError::TlsConfiguration { .. }
            | ConnectError::Tls(_)
            | ConnectError::NoAlpn
            | ConnectError::CertificateNotRequested
            | ConnectError::Peer { .. }
            | ConnectError::NoPassword { .. }
            | ConnectError::UnsupportedMethod { .. }
            | ConnectError::NoMechanism
            | ConnectError::Requirement { .. }
            | ConnectError::ChannelBinding { .. }
            | ConnectError::PlusWithoutTls
            | ConnectError::Scram(_) => false,
        }
    }

    /// Whether this address is the problem, so that the host's next one is worth a try.
    pub(crate) fn is_about_address(&self) -> bool {
        matches!(self, ConnectError::Socket { .. } | ConnectError::Timeout { .. })
    }
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The server refused the command. After severity `ERROR` the connection stays usable.
    #[error("{0}")]
    Server(ServerError),
    /// The server hung up.
    #[error("server closed the connection unexpectedly")]
    Closed,
    /// The socket broke.
    #[error("could not communicate with the server: {0}")]
    Io(#[source] io::Error),
    /// The server breaks the protocol.
    #[error("unexpected message from server: {problem}")]
    Protocol {
        /// What was odd.
        problem: String,
    },
    /// An earlier command is not finished: its future was dropped, or its messages are still to be read.
    #[error("another command is already in progress")]
    Busy,
}

impl QueryError {
    /// Whether the connection can be used for another command.
    pub fn is_recoverable(&self) -> bool {
        matches!(self, QueryError::Server(error) if error.severity == "ERROR")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Test = fn(&ServerError) -> bool;

    /// What servers with `lc_messages = 'de_DE.UTF-8'` say, and one in no language at all.
    #[test]
    fn answers_are_understood_in_whatever_language() {
        let cases: [(&str, &str, Test, bool); 11] = [
            (
                "58P01",
                "das angeforderte WAL-Segment 000000010000000000000003 wurde schon entfernt",
                ServerError::is_wal_removed,
                true,
            ),
            (
                "XX000",
                "das angeforderte WAL-Segment »000000010000000000000003« wurde schon entfernt",
                ServerError::is_wal_removed,
                true,
            ),
            (
                "XX000",
                "angeforderter Startpunkt 0/3000000 auf Zeitleiste 1 ist nicht in der History dieses Servers",
                |error| error.is_internal() && !error.is_wal_removed(),
                true,
            ),
            ("42704", "Replikations-Slot »r« existiert nicht", ServerError::is_no_such_object, false),
            ("42710", "Replikations-Slot »r« existiert bereits", ServerError::is_duplicate_object, false),
            (
                "55006",
                "Replikations-Slot »r« ist aktiv für PID 4711",
                |error| error.sqlstate == "55006",
                true,
            ),
            (
                "42501",
                "keine Berechtigung, um WAL-Sender zu starten",
                |error| error.sqlstate == "42501",
                false,
            ),
            ("57P03", "das Datenbanksystem startet", |error| error.sqlstate == "57P03", true),
            (
                "28000",
                "kein pg_hba.conf-Eintrag für Replikationsverbindung von Host »::1«",
                |error| error.sqlstate == "28000",
                false,
            ),
            (
                "53300",
                "Anzahl angeforderter Standby-Verbindungen überschreitet »max_wal_senders« (aktuell 0)",
                ServerError::is_without_walsenders,
                true,
            ),
            (
                "53300",
                "Anzahl angeforderter Standby-Verbindungen überschreitet »max_wal_senders« (aktuell 10)",
                |error| !error.is_without_walsenders(),
                true,
            ),
        ];
        for (sqlstate, message, is_it, transient) in cases {
            let error = |message: &str| ServerError {
                severity: "ERROR".into(),
                sqlstate: sqlstate.into(),
                message: message.into(),
                ..ServerError::default()
            };
            assert!(is_it(&error(message)), "{message}");
            assert_eq!(error(message).is_transient(), transient, "{message}");
            let others = [
                ServerError::is_wal_removed as Test,
                ServerError::is_no_such_object,
                ServerError::is_duplicate_object,
                ServerError::is_without_walsenders,
            ];
            let kinds = others.iter().filter(|is_it| is_it(&error(message))).count();
            assert!(kinds <= 1, "{message}: {kinds} kinds");
            // The words count for nothing where the code tells.
            if !["max_wal_senders", "000000010000000000000003"].iter().any(|word| message.contains(word)) {
                assert!(is_it(&error("")), "{sqlstate}");
            }
        }
    }
}
