//! What travels inside `CopyData` while WAL is streamed, both directions.
//!
//! PostgreSQL's documentation, "Streaming Replication Protocol". All numbers are big-endian; `0/0` is
//! "no position". Nothing here allocates: headers and messages are small arrays, WAL stays where it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::lsn::Lsn;

/// The server's or client's clock: microseconds since 2000-01-01 00:00 UTC (`TimestampTz`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct PgTimestamp(i64);

impl PgTimestamp {
    /// Seconds from 1970 to 2000.
    const UNIX_OFFSET: Duration = Duration::from_secs(946_684_800);

    /// The moment `micros` microseconds after 2000-01-01 UTC.
    pub const fn from_micros(micros: i64) -> PgTimestamp {
        PgTimestamp(micros)
    }

    /// Microseconds since 2000-01-01 UTC.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The moment a system clock showed; stops at the ends of the range, some 292,000 years away.
    pub fn from_system_time(time: SystemTime) -> PgTimestamp {
        let clamp = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        PgTimestamp(match time.duration_since(UNIX_EPOCH + PgTimestamp::UNIX_OFFSET) {
            Ok(after) => clamp(after),
            Err(before) => -clamp(before.duration()),
        })
    }

    /// As ISO 8601 writes it, in UTC and to the second.
    pub fn to_text(self) -> String {
        let seconds = self.0.div_euclid(1_000_000);
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// The same moment for a system clock; `None` if the platform cannot express it.
    pub fn to_system_time(self) -> Option<SystemTime> {
        let epoch = UNIX_EPOCH + PgTimestamp::UNIX_OFFSET;
        let distance = Duration::from_micros(self.0.unsigned_abs());
        if self.0 >= 0 { epoch.checked_add(distance) } else { epoch.checked_sub(distance) }
    }
}

/// Year, month and day of a number of days since 2000-01-01. Years begin in March here, so that the leap day comes
/// last.
fn civil(days: i64) -> (i64, i64, i64) {
    let since_march = days + 730_425;
    let (era, day) = (since_march.div_euclid(146_097), since_march.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, day)
}

/// A transaction id with its epoch, comparable for 2^64 transactions (`FullTransactionId`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FullXid {
    /// How often the 32-bit counter has wrapped around.
    pub epoch: u32,
    /// The 32-bit counter.
    pub xid: u32,
}

impl FullXid {
    /// Ids below this one never belong to a transaction (`FirstNormalTransactionId`).
    const FIRST_NORMAL: u32 = 3;

    /// The id; `None` for the three special ones, which mean "none" in feedback.
    pub fn new(epoch: u32, xid: u32) -> Option<FullXid> {
        (xid >= FullXid::FIRST_NORMAL).then_some(FullXid { epoch, xid })
    }

    fn put(this: Option<FullXid>, at: &mut Put<'_>) {
        at.bytes(this.map_or(0, |id| id.xid).to_be_bytes());
        at.bytes(this.map_or(0, |id| id.epoch).to_be_bytes());
    }
}

/// What stands before the WAL in an `XLogData` message.
///
/// | offset | type | field |
/// |---|---|---|
/// | 0 | Byte1 | `w` |
/// | 1 | Int64 | `start` |
/// | 9 | Int64 | `end` |
/// | 17 | Int64 | `send_time` |
/// | 25 | bytes | WAL |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XLogDataHeader {
    /// Position of the first byte of WAL in the message.
    pub start: Lsn,
    /// How far the server could send at this moment; *not* the end of this message.
    pub end: Lsn,
    /// The server's clock.
    pub send_time: PgTimestamp,
}

impl XLogDataHeader {
    /// Bytes before the WAL inside `CopyData`.
    pub const LEN: usize = 25;
    /// Bytes before the WAL on the wire: `CopyData`'s type and length, then this header.
    pub const FRAME_LEN: usize = XLogDataHeader::LEN + FRAME_PREFIX;

    /// Type, length and header of a whole `CopyData` message that carries `wal_len` bytes of WAL.
    ///
    /// `wal_len` must stay below 1 GB; walrelay sends at most 128 kB.
    pub fn frame(&self, wal_len: u32) -> [u8; XLogDataHeader::FRAME_LEN] {
        const REST: u32 = 4 + 25;
        let mut frame = [0; XLogDataHeader::FRAME_LEN];
        let mut at = Put(&mut frame);
        at.bytes([b'd']);
        at.bytes(wal_len.saturating_add(REST).to_be_bytes());
        at.bytes([b'w']);
        at.lsn(self.start);
        at.lsn(self.end);
        at.time(self.send_time);
        frame
    }
}

/// A sign of life from the server.
///
/// | offset | type | field |
/// |---|---|---|
/// | 0 | Byte1 | `k` |
/// | 1 | Int64 | `end` |
/// | 9 | Int64 | `send_time` |
/// | 17 | Byte1 | `reply_requested` |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// How far the server has sent.
    pub end: Lsn,
    /// The server's clock.
    pub send_time: PgTimestamp,
    /// The client shall answer at once, or be disconnected.
    pub reply_requested: bool,
}

impl Keepalive {
    /// Bytes inside `CopyData`, for this message exactly.
    pub const LEN: usize = 18;

    /// The whole `CopyData` message.
    pub fn frame(&self) -> [u8; Keepalive::LEN + FRAME_PREFIX] {
        let mut frame = copy_data(b'k');
        let mut at = Put::after_type(&mut frame);
        at.lsn(self.end);
        at.time(self.send_time);
        at.bytes([u8::from(self.reply_requested)]);
        frame
    }
}

/// The client's positions.
///
/// | offset | type | field |
/// |---|---|---|
/// | 0 | Byte1 | `r` |
/// | 1 | Int64 | `write` |
/// | 9 | Int64 | `flush` |
/// | 17 | Int64 | `apply` |
/// | 25 | Int64 | `send_time` |
/// | 33 | Byte1 | `reply_requested` |
///
/// The three positions are ends, and nothing relates them: `write < flush` occurs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StandbyStatusUpdate {
    /// End of what the client has written.
    pub write: Option<Lsn>,
    /// End of what it has synced; `None` from a client that does not tell.
    pub flush: Option<Lsn>,
    /// End of what it has replayed; `None` from a client that does not replay.
    pub apply: Option<Lsn>,
    /// The client's clock.
    pub send_time: PgTimestamp,
    /// The server shall answer with a [`Keepalive`] at once.
    pub reply_requested: bool,
}

impl StandbyStatusUpdate {
    /// Bytes inside `CopyData`.
    pub const LEN: usize = 34;

    /// The whole `CopyData` message.
    pub fn frame(&self) -> [u8; StandbyStatusUpdate::LEN + FRAME_PREFIX] {
        let mut frame = copy_data(b'r');
        let mut at = Put::after_type(&mut frame);
        for position in [self.write, self.flush, self.apply] {
            at.lsn(position.unwrap_or(Lsn::INVALID));
        }
        at.time(self.send_time);
        at.bytes([u8::from(self.reply_requested)]);
        frame
    }
}

/// The oldest transactions a standby still needs rows for.
///
/// | offset | type | field |
/// |---|---|---|
/// | 0 | Byte1 | `h` |
/// | 1 | Int64 | `send_time` |
/// | 9 | Int32 | `xmin` |
/// | 13 | Int32 | `xmin`'s epoch |
/// | 17 | Int32 | `catalog_xmin` |
/// | 21 | Int32 | `catalog_xmin`'s epoch |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HotStandbyFeedback {
    /// The client's clock.
    pub send_time: PgTimestamp,
    /// Oldest transaction whose rows the standby's queries may see.
    pub xmin: Option<FullXid>,
    /// The same for catalogs, from the standby's logical slots.
    pub catalog_xmin: Option<FullXid>,
}

impl HotStandbyFeedback {
    /// Bytes inside `CopyData`.
    pub const LEN: usize = 25;

    /// The whole `CopyData` message.
    pub fn frame(&self) -> [u8; HotStandbyFeedback::LEN + FRAME_PREFIX] {
        let mut frame = copy_data(b'h');
        let mut at = Put::after_type(&mut frame);
        at.time(self.send_time);
        FullXid::put(self.xmin, &mut at);
        FullXid::put(self.catalog_xmin, &mut at);
        frame
    }
}

/// A message from the server, with the WAL it carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServerMessage<'a> {
    /// `w`: a stretch of WAL, possibly empty.
    XLogData(XLogDataHeader, &'a [u8]),
    /// `k`.
    Keepalive(Keepalive),
}

/// A payload that a walreceiver would refuse; the texts are PostgreSQL's (`XLogWalRcvProcessMsg`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServerMessageError {
    /// No type byte.
    #[error("empty replication message received from upstream")]
    Empty,
    /// `w` shorter than its header.
    #[error("invalid WAL message received from upstream")]
    ShortXLogData,
    /// `k` of any length but 18.
    #[error("invalid keepalive message received from upstream")]
    KeepaliveLength,
    /// Neither `w` nor `k`.
    #[error("invalid replication message type {0}")]
    UnknownType(u8),
}

impl<'a> ServerMessage<'a> {
    /// Reads what the server put into one `CopyData`. A keepalive must be exact, as for a walreceiver.
    pub fn decode(payload: &'a [u8]) -> Result<ServerMessage<'a>, ServerMessageError> {
        let (&kind, body) = payload.split_first().ok_or(ServerMessageError::Empty)?;
        match kind {
            b'w' => xlog_data(body).ok_or(ServerMessageError::ShortXLogData),
            b'k' => keepalive(body).ok_or(ServerMessageError::KeepaliveLength),
            other => Err(ServerMessageError::UnknownType(other)),
        }
    }
}

fn xlog_data(body: &[u8]) -> Option<ServerMessage<'_>> {
    let mut from = Take(body);
    let header = XLogDataHeader { start: from.lsn()?, end: from.lsn()?, send_time: from.time()? };
    Some(ServerMessage::XLogData(header, from.0))
}

fn keepalive(body: &[u8]) -> Option<ServerMessage<'_>> {
    let mut from = Take(body);
    let message = Keepalive { end: from.lsn()?, send_time: from.time()?, reply_requested: from.flag()? };
    from.0.is_empty().then_some(ServerMessage::Keepalive(message))
}

/// A message from the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientMessage {
    /// `r`.
    Status(StandbyStatusUpdate),
    /// `h`.
    Feedback(HotStandbyFeedback),
}

/// A payload that a walsender would refuse (`ProcessStandbyMessage`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClientMessageError {
    /// No type byte: an ERROR `08P01`, the session goes on.
    #[error("no data left in message")]
    NoData,
    /// `r` or `h` cut short: an ERROR `08P01`, the session goes on.
    #[error("insufficient data left in message")]
    Insufficient,
    /// Neither `r` nor `h`: the connection is closed without a word.
    #[error("unexpected message type \"{}\"", .0.escape_ascii())]
    UnknownType(u8),
}

impl ClientMessage {
    /// Reads what the client put into one `CopyData`. Bytes beyond the message are ignored, as by a
    /// walsender.
    pub fn decode(payload: &[u8]) -> Result<ClientMessage, ClientMessageError> {
        let (&kind, body) = payload.split_first().ok_or(ClientMessageError::NoData)?;
        let mut from = Take(body);
        match kind {
            b'r' => status(&mut from).map(ClientMessage::Status),
            b'h' => feedback(&mut from).map(ClientMessage::Feedback),
            other => return Err(ClientMessageError::UnknownType(other)),
        }
        .ok_or(ClientMessageError::Insufficient)
    }
}

fn status(from: &mut Take<'_>) -> Option<StandbyStatusUpdate> {
    Some(StandbyStatusUpdate {
        write: from.lsn()?.valid(),
        flush: from.lsn()?.valid(),
        apply: from.lsn()?.valid(),
        send_time: from.time()?,
        reply_requested: from.flag()?,
    })
}

fn feedback(from: &mut Take<'_>) -> Option<HotStandbyFeedback> {
    Some(HotStandbyFeedback {
        send_time: from.time()?,
        xmin: from.full_xid()?,
        catalog_xmin: from.full_xid()?,
    })
}

/// `CopyData`'s type byte and length.
const FRAME_PREFIX: usize = 5;

/// A `CopyData` frame of `N` bytes whose payload starts with `kind`.
fn copy_data<const N: usize>(kind: u8) -> [u8; N] {
    let mut frame = [0; N];
    let mut at = Put(&mut frame);
    at.bytes([b'd']);
    at.bytes(u32::try_from(N - 1).unwrap_or(u32::MAX).to_be_bytes());
    at.bytes([kind]);
    frame
}

/// The unread rest of a payload; each step is `None` when too little is left.
struct Take<'a>(&'a [u8]);

impl Take<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn lsn(&mut self) -> Option<Lsn> {
        self.bytes().map(|b| Lsn::new(u64::from_be_bytes(b)))
    }

    fn time(&mut self) -> Option<PgTimestamp> {
        self.bytes().map(|b| PgTimestamp(i64::from_be_bytes(b)))
    }

    fn flag(&mut self) -> Option<bool> {
        self.bytes().map(|[b]| b != 0)
    }

    fn full_xid(&mut self) -> Option<Option<FullXid>> {
        let xid = u32::from_be_bytes(self.bytes()?);
        let epoch = u32::from_be_bytes(self.bytes()?);
        Some(FullXid::new(epoch, xid))
    }
}

/// The unwritten rest of a frame; the frames above are exactly as long as what is put into them.
struct Put<'a>(&'a mut [u8]);

impl<'a> Put<'a> {
    fn after_type(frame: &'a mut [u8]) -> Put<'a> {
        Put(frame.get_mut(FRAME_PREFIX + 1..).unwrap_or_default())
    }

    fn bytes<const N: usize>(&mut self, bytes: [u8; N]) {
        if let Some((head, rest)) = std::mem::take(&mut self.0).split_first_chunk_mut() {
            *head = bytes;
            self.0 = rest;
        }
    }

    fn lsn(&mut self, lsn: Lsn) {
        self.bytes(lsn.as_u64().to_be_bytes());
    }

    fn time(&mut self, time: PgTimestamp) {
        self.bytes(time.0.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
