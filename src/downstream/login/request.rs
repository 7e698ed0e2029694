//! What a start-up message asks for (PostgreSQL: `ProcessStartupPacket`).

use crate::downstream::settings::parse_bool;
use crate::wire::startup::{InvalidLayout, StartupMessage};
use crate::wire::{PgError, sqlstate};

/// The kind of session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// No `replication`, or a false one.
    Sql,
    /// `replication=true`
    Physical,
    /// `replication=database`
    Database,
}

/// A start-up message, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::downstream) struct StartupRequest {
    /// Empty if the client named none.
    pub(in crate::downstream) user: String,
    /// The user's name unless the client named one; of bytes that are no UTF-8 something legible.
    pub(super) database: String,
    /// The same as the client wrote it, which is how the server knows it: names have the encoding of whoever made them.
    pub(super) database_bytes: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) options: Vec<u8>,
    /// Settings, in order.
    pub(super) parameters: Vec<(String, Vec<u8>)>,
    /// Names that begin with `_pq_.`.
    pub(super) unknown_extensions: Vec<String>,
}

/// Bytes in a role's or database's name (`NAMEDATALEN - 1`).
const MAX_NAME: usize = 63;

impl StartupRequest {
    pub(super) fn read(message: &StartupMessage) -> Result<StartupRequest, PgError> {
        let mut request = StartupRequest {
            user: String::new(),
            database: String::new(),
            database_bytes: Vec::new(),
            kind: Kind::Sql,
            options: Vec::new(),
            parameters: Vec::new(),
            unknown_extensions: Vec::new(),
        };
        for parameter in message.parameters() {
            let (name, value) = parameter.map_err(|InvalidLayout| {
                PgError::fatal(sqlstate::PROTOCOL_VIOLATION, InvalidLayout.to_string())
            })?;
            request.take(name, value)?;
        }
        if request.database.is_empty() {
            request.database = request.user.clone();
            request.database_bytes = request.user.clone().into_bytes();
        }
        Ok(request)
    }

    /// What a client would ask for that wants SQL in this database.
    pub(in crate::downstream) fn of_sql(user: &str, database: &str) -> StartupRequest {
        StartupRequest {
            user: truncated(user.as_bytes()),
            database: database.to_owned(),
            database_bytes: database.as_bytes().to_vec(),
            kind: Kind::Sql,
            options: Vec::new(),
            parameters: Vec::new(),
            unknown_extensions: Vec::new(),
        }
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), PgError> {
        match name {
            b"user" => self.user = truncated(value),
            b"database" => {
                self.database = truncated(value);
                self.database_bytes = kept_of(value).to_vec();
            }
            b"options" => self.options = value.to_vec(),
            b"replication" => self.kind = kind(value)?,
            _ if name.starts_with(b"_pq_.") => self.unknown_extensions.push(lossy(name)),
            _ => self.parameters.push((lossy(name), value.to_vec())),
        }
        Ok(())
    }
}

fn kind(value: &[u8]) -> Result<Kind, PgError> {
    match parse_bool(value) {
        _ if value == b"database" => Ok(Kind::Database),
        Some(true) => Ok(Kind::Physical),
        Some(false) => Ok(Kind::Sql),
        None => {
            let text = format!("invalid value for parameter \"replication\": \"{}\"", lossy(value));
            Err(PgError::fatal(sqlstate::INVALID_PARAMETER_VALUE, text)
                .with_hint("Valid values are: \"false\", 0, \"true\", 1, \"database\"."))
        }
    }
}

fn truncated(name: &[u8]) -> String {
    lossy(kept_of(name))
}

fn kept_of(name: &[u8]) -> &[u8] {
    name.get(..MAX_NAME).unwrap_or(name)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::startup::ProtocolVersion;

    #[test]
    fn a_databases_name_is_what_the_client_wrote() {
        let read = |body: &[u8]| {
            let message =
                StartupMessage { version: ProtocolVersion { major: 3, minor: 0 }, body: body.to_vec() };
            StartupRequest::read(&message).unwrap()
        };
        let latin1 = read(b"user\0me\0database\0caf\xe9\0\0");
        assert_eq!(latin1.database_bytes, b"caf\xe9");
        assert_eq!(latin1.database, "caf\u{fffd}");
        let long = [&b"user\0me\0database\0"[..], &[b'x'; 70], b"\0\0"].concat();
        assert_eq!(read(&long).database_bytes, [b'x'; MAX_NAME]);
        assert_eq!(read(b"user\0me\0database\0\0\0").database_bytes, b"me");
    }
}
