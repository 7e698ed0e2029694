//! Cuts the byte stream into frames: type, length, body.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest message before the server has proved to be one (PG: `pqGetErrorNotice3`'s caller, 30000).
pub(crate) const MAX_LOGIN_MESSAGE: usize = 30_000;
/// Largest message afterwards. We ask for nothing that is larger: WAL comes in messages of 16 pages (PG:
/// `MAX_SEND_SIZE`), and pages have 64 kB at most.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;
/// Silence after which a server that owes us an answer is given up. Only silence counts: how long an answer takes is
/// decided by the line.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);
/// Type byte and length word.
const HEADER: usize = 5;

/// Why there is no frame.
#[derive(Debug)]
pub(crate) enum FrameError {
    /// End of stream, perhaps within a frame.
    Closed,
    /// The socket broke.
    Io(io::Error),
    /// A length below 4 or above the limit.
    Length { kind: u8, len: u32 },
}

/// Takes a complete frame off the front of `buffer`; `None` if more bytes are needed.
pub(crate) fn cut(buffer: &mut BytesMut, limit: usize) -> Result<Option<(u8, Bytes)>, FrameError> {
    let Some((kind, len)) = buffer.first_chunk::<HEADER>().map(|header| {
        let [kind, len @ ..] = *header;
        (kind, u32::from_be_bytes(len))
    }) else {
        return Ok(None);
    };
    let body = usize::try_from(len).ok().and_then(|len| len.checked_sub(4)).filter(|body| *body <= limit);
    let body = body.ok_or(FrameError::Length { kind, len })?;
    if buffer.len() < HEADER + body {
        return Ok(None);
    }
    buffer.advance(HEADER);
    Ok(Some((kind, buffer.split_to(body).freeze())))
}

/// Reads until a frame is complete; [`SILENCE`] is [`io::ErrorKind::TimedOut`]. Cancel-safe: what was read so far
/// stays in `buffer`.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    limit: usize,
) -> Result<(u8, Bytes), FrameError> {
    loop {
        if let Some(frame) = cut(buffer, limit)? {
            return Ok(frame);
        }
        // Room for what is on its way, not for what a length word claims.
        buffer.reserve(8192);
        let read = tokio::time::timeout(SILENCE, stream.read_buf(buffer)).await;
        match read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(0) => return Err(FrameError::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(FrameError::Closed),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(FrameError::Closed),
            Err(error) => return Err(FrameError::Io(error)),
        }
    }
}
