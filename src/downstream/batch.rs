//! WAL on its way into a socket: a few XLogData messages whose payload is the segment's memory map.

use std::io::{self, IoSlice};
use std::sync::Arc;

use walrelay_proto::{Lsn, PgTimestamp, XLogDataHeader};

use crate::store::Segment;
use crate::wire::Socket;

/// Most WAL in one message (`MAX_SEND_SIZE`). Larger ones make a standby buffer more and gain nothing.
const MESSAGE: u64 = 128 * 1024;
/// Messages given to the kernel in one call.
const MESSAGES: usize = 4;

/// Up to four messages of WAL from one segment, partly sent.
///
/// Messages end on a page boundary or at the end of what may be sent, which is a record's end, and never
/// reach beyond the segment: recovery relies on the first, some receivers on the second.
#[derive(Debug)]
pub(super) struct Batch {
    segment: Arc<Segment>,
    messages: [Message; MESSAGES],
    count: usize,
    /// Bytes of all messages, headers included, that the socket has taken.
    sent: usize,
    end: Lsn,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    header: [u8; XLogDataHeader::FRAME_LEN],
    offset: u64,
    len: usize,
}

impl Batch {
    /// Most WAL in a batch, bytes.
    pub(super) const MAX_LEN: u64 = MESSAGE * MESSAGES as u64;

    /// Messages from `start`, which lies in the segment, towards `limit`, which lies behind it.
    pub(super) fn new(segment: Arc<Segment>, start: Lsn, limit: Lsn, now: PgTimestamp) -> Batch {
        let blank = Message { header: [0; XLogDataHeader::FRAME_LEN], offset: 0, len: 0 };
        let mut batch = Batch { segment, messages: [blank; MESSAGES], count: 0, sent: 0, end: start };
        let stop = limit.min(batch.segment.end());
        while batch.count < MESSAGES && batch.end < stop {
            let end = message_end(batch.end, stop);
            let len = end.since(batch.end) as usize;
            let header = XLogDataHeader { start: batch.end, end: limit, send_time: now }.frame(len as u32);
            let offset = batch.end.since(batch.segment.start());
            batch.messages[batch.count] = Message { header, offset, len };
            batch.count += 1;
            batch.end = end;
        }
        batch
    }

    /// End of the last message.
    pub(super) fn end(&self) -> Lsn {
        self.end
    }

    /// Gives the socket what it takes without waiting; whether all of it is sent.
    pub(super) fn send(&mut self, socket: &Socket) -> io::Result<bool> {
        loop {
            let mut slices = [IoSlice::new(&[]); 2 * MESSAGES];
            let count = self.unsent(&mut slices);
            if count == 0 {
                return Ok(true);
            }
            match socket.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => self.sent += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    fn unsent<'a>(&'a self, slices: &mut [IoSlice<'a>; 2 * MESSAGES]) -> usize {
        let (mut skip, mut count) = (self.sent, 0);
        for message in &self.messages[..self.count] {
            let wal = self.segment.bytes(message.offset, message.len);
            for part in [&message.header[..], wal] {
                if skip < part.len() {
                    slices[count] = IoSlice::new(&part[skip..]);
                    count += 1;
                    skip = 0;
                } else {
                    skip -= part.len();
                }
            }
        }
        count
    }
}

// PG: XLogSendPhysical, "if after advancing we go beyond, round down to page boundary"
fn message_end(start: Lsn, stop: Lsn) -> Lsn {
    let end = start.advance(MESSAGE);
    if end >= stop { stop } else { end.page_start() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_on_pages_or_at_the_end() {
        let check = |start: u64, stop: u64, end: u64| {
            assert_eq!(message_end(Lsn::new(start), Lsn::new(stop)), Lsn::new(end), "{start:X}");
        };
        check(0x61EDA0, 0x900000, 0x61EDA0 + 127_584);
        check(0x600000, 0x900000, 0x620000);
        check(0x600000, 0x600128, 0x600128);
        check(0x600005, 0x620005, 0x620005);
        check(0x600005, 0x620006, 0x620000);
    }
}
