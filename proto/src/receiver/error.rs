use crate::lsn::Lsn;
use crate::message::ServerMessageError;
use bytes::Bytes;

/// A stream failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The server refused, or gave up.
    #[error("could not receive data from WAL stream: {}", message(response))]
    Server {
        /// Body of its ErrorResponse.
        response: Bytes,
        /// Whether the connection is idle again. Else it is over, as after all other errors.
        idle: bool,
    },
    /// The server hung up.
    #[error("could not receive data from WAL stream: server closed the connection unexpectedly")]
    Closed,
    /// Nothing has come for `wal_receiver_timeout`, although it was asked for.
    #[error("terminating walreceiver due to timeout: the upstream has been silent for too long")]
    Timeout,
    /// A message of that type has no place here, or not with its length.
    #[error("unexpected message of type '{}' in WAL stream", .0.escape_ascii())]
    Unexpected(u8),
    /// What is inside CopyData is no message.
    #[error(transparent)]
    Message(#[from] ServerMessageError),
    /// The timeline ended within what is held already.
    #[error("the upstream ended the stream before the WAL that is held here")]
    TooShort,
    /// WAL is missing, or does not begin where it was asked for.
    #[error("received WAL at {at}, expected {expected}")]
    Gap {
        /// Start of what has come.
        at: Lsn,
        /// What should have come.
        expected: Lsn,
    },
}

/// Severity in an ErrorResponse, `V`, or its translation, `S`, if there is no other; `None` if the message is malformed.
pub(super) fn severity(response: &[u8]) -> Option<&[u8]> {
    let fields = fields(response)?;
    let of = |kind| fields.iter().find(|(field, _)| *field == kind).map(|(_, value)| *value);
    Some(of(b'V').or(of(b'S')).unwrap_or_default())
}

fn message(response: &[u8]) -> String {
    let found = fields(response).and_then(|fields| fields.into_iter().find(|(field, _)| *field == b'M'));
    String::from_utf8_lossy(found.map_or(b"", |(_, text)| text)).into_owned()
}

/// All fields: a type byte and a text that ends with a zero byte; a zero byte ends the last.
fn fields(mut rest: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut fields = Vec::new();
    loop {
        let (&kind, behind) = rest.split_first()?;
        if kind == 0 {
            return behind.is_empty().then_some(fields);
        }
        let end = behind.iter().position(|&byte| byte == 0)?;
        let (value, behind) = behind.split_at_checked(end)?;
        fields.push((kind, value));
        rest = behind.get(1..)?;
    }
}
