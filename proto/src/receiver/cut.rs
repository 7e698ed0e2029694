//! Cuts the stream's bytes into pieces.

use std::ops::Range;

use bytes::Bytes;

use super::ReceiverError;
use super::buffer::Buffer;
use crate::lsn::Lsn;
use crate::message::{ServerMessage, XLogDataHeader};

/// Largest message that is not WAL: errors, results.
pub(super) const MAX_SMALL: usize = 30_000;
/// Type byte and length word.
const PREFIX: usize = 5;

/// A piece of the stream.
pub(super) enum Piece {
    /// WAL at this position, in the buffer: as much of a message as has arrived.
    Wal { at: Lsn, wal: Range<usize> },
    /// A whole message other than WAL.
    Message { kind: u8, body: Bytes },
}

/// Where in the stream we are.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    /// WAL of the message being cut that has not arrived yet: its position and length.
    missing: Option<(Lsn, usize)>,
    /// How far the server could send, as its last WAL told.
    server_end: Option<Lsn>,
}

impl Cutter {
    /// How far the server could send when it sent its last WAL; told once.
    pub(super) fn take_server_end(&mut self) -> Option<Lsn> {
        self.server_end.take()
    }

    /// The next piece, `None` if more bytes are needed.
    pub(super) fn cut(&mut self, buffer: &mut Buffer) -> Result<Option<Piece>, ReceiverError> {
        loop {
            if let Some((at, missing)) = self.missing {
                let wal = buffer.take(missing);
                let left = missing - wal.len();
                self.missing = (left > 0).then(|| (at.advance(wal.len() as u64), left));
                return Ok((!wal.is_empty()).then_some(Piece::Wal { at, wal }));
            }
            let Some((kind, length)) = prefix(buffer.unread()) else { return Ok(None) };
            let Some(body_len) = length.checked_sub(4) else { return Err(ReceiverError::Unexpected(kind)) };
            let body = buffer.unread().get(PREFIX..).unwrap_or_default();
            if !is_wal(kind, body_len, body) {
                return small(buffer, kind, body_len);
            }
            let Some(header) = body.get(..XLogDataHeader::LEN) else { return Ok(None) };
            let ServerMessage::XLogData(header, _) = ServerMessage::decode(header)? else {
                return Err(ReceiverError::Unexpected(kind));
            };
            buffer.take(PREFIX + XLogDataHeader::LEN);
            self.server_end = header.end.valid();
            // Without any WAL it says nothing.
            let wal = body_len - XLogDataHeader::LEN;
            self.missing = (wal > 0).then_some((header.start, wal));
        }
    }
}

fn prefix(unread: &[u8]) -> Option<(u8, usize)> {
    let &[kind, a, b, c, d] = unread.first_chunk::<PREFIX>()?;
    Some((kind, u32::from_be_bytes([a, b, c, d]) as usize))
}

/// Whether it is an XLogData message that can be one. `body` is what has arrived of it.
fn is_wal(kind: u8, body_len: usize, body: &[u8]) -> bool {
    kind == b'd' && body_len >= XLogDataHeader::LEN && body.first() == Some(&b'w')
}

fn small(buffer: &mut Buffer, kind: u8, body_len: usize) -> Result<Option<Piece>, ReceiverError> {
    if buffer.unread().len() == PREFIX && kind == b'd' && body_len > MAX_SMALL {
        // What it is, the next byte tells.
        return Ok(None);
    }
    if body_len > MAX_SMALL {
        return Err(ReceiverError::Unexpected(kind));
    }
    if buffer.unread().len() < PREFIX + body_len {
        return Ok(None);
    }
    buffer.take(PREFIX);
    let body = buffer.take(body_len);
    Ok(Some(Piece::Message { kind, body: Bytes::copy_from_slice(buffer.taken(body)) }))
}
