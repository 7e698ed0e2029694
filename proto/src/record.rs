//! The header of a WAL record (PostgreSQL: `XLogRecord`).
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `xl_tot_len`, header included |
//! | 4 | 4 | `xl_xid` |
//! | 8 | 8 | `xl_prev`, start of the record before |
//! | 16 | 1 | `xl_info` |
//! | 17 | 1 | `xl_rmid` |
//! | 18 | 2 | padding |
//! | 20 | 4 | `xl_crc` |
//!
//! The checksum (CRC-32C) covers the body first, then the header up to the checksum itself.

use crate::commit::commit_time;
use crate::lsn::Lsn;
use crate::message::PgTimestamp;
use crate::page::part;
use crate::walk::WalError;

/// Length of a record's header, and of the shortest record.
pub(crate) const RECORD_HEADER: usize = 24;
/// No server can hold a longer record in memory (`MaxAllocSize`); from 16 on the limit is 1020 MB.
pub(crate) const MAX_RECORD: u32 = 0x3FFF_FFFF;

/// Bytes from `end`, a length or a position, to the next multiple of eight, where records start.
pub(crate) fn alignment_padding(end: u64) -> usize {
    usize::from(end.wrapping_neg().to_le_bytes()[0] & 7)
}

/// A record's header as found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) tot_len: u32,
    prev: Lsn,
    info: u8,
    rmid: u8,
    crc: u32,
}

impl RecordHeader {
    pub(crate) fn parse(bytes: &[u8; RECORD_HEADER]) -> RecordHeader {
        RecordHeader {
            tot_len: u32::from_le_bytes(part(bytes, 0)),
            prev: Lsn::new(u64::from_le_bytes(part(bytes, 8))),
            info: bytes[16],
            rmid: bytes[17],
            crc: u32::from_le_bytes(part(bytes, 20)),
        }
    }

    /// Everything that can be said of the header alone; `prev` is the record before, if it is known, `newer` whether
    /// the version is newer than those that are known.
    // PG: ValidXLogRecordHeader
    pub(crate) fn check(&self, lsn: Lsn, prev: Option<Lsn>, newer: bool) -> Result<(), WalError> {
        check_length(self.tot_len, lsn)?;
        // Built-in resource managers have not changed in number from 13 to 19; extensions use 128 and up.
        if !newer && !matches!(self.rmid, 0..=21 | 128..=255) {
            return Err(WalError::ResourceManager { lsn, rmid: self.rmid });
        }
        if prev.map_or(self.prev >= lsn, |prev| self.prev != prev) {
            return Err(WalError::PrevLink { lsn, found: self.prev });
        }
        Ok(())
    }

    /// Compares the checksum, given that of the body.
    // PG: ValidXLogRecord
    pub(crate) fn check_crc(
        &self,
        body_crc: u32,
        header: &[u8; RECORD_HEADER],
        lsn: Lsn,
    ) -> Result<(), WalError> {
        let crc = crc32c::crc32c_append(body_crc, &header[..20]);
        if crc == self.crc { Ok(()) } else { Err(WalError::Checksum { lsn }) }
    }

    /// Whether it is an XLOG_SWITCH, behind which the rest of the segment is padding.
    pub(crate) fn is_switch(&self) -> bool {
        self.rmid == 0 && self.info & 0xF0 == 0x40
    }

    /// If it is an XLOG_OVERWRITE_CONTRECORD, the start of the record that it says was lost; `body` is at least the
    /// first [`OVERWRITE_BODY`] bytes behind the header (`xl_overwrite_contrecord` as short main data).
    pub(crate) fn overwritten(&self, body: &[u8]) -> Option<Lsn> {
        let is_overwrite = self.rmid == 0 && self.info & 0xF0 == 0xD0;
        first_position(body).filter(|_| is_overwrite)
    }

    /// Whether it is that of a commit, also of a two-phase transaction (`RM_XACT_ID`, `XLOG_XACT_OPMASK`).
    pub(crate) fn is_commit(&self) -> bool {
        self.rmid == 1 && matches!(self.info & 0x70, 0x00 | 0x30)
    }

    /// If it is that of a commit, when that was made; `body` is what follows the header, or as much of it as for
    /// [`overwritten`](Self::overwritten): that is enough for a commit that has no origin.
    pub(crate) fn commit_time(&self, body: &[u8]) -> Option<PgTimestamp> {
        if self.is_commit() { commit_time(body) } else { None }
    }

    /// If it is a checkpoint (XLOG_CHECKPOINT_SHUTDOWN or XLOG_CHECKPOINT_ONLINE), where replay from it begins
    /// (`CheckPoint.redo`); of `body` as much is needed as for [`overwritten`](Self::overwritten).
    pub(crate) fn redo(&self, body: &[u8]) -> Option<Lsn> {
        let is_checkpoint = self.rmid == 0 && matches!(self.info & 0xF0, 0x00 | 0x10);
        if is_checkpoint { first_position(body) } else { None }
    }
}

/// The position that short main data begins with.
fn first_position(body: &[u8]) -> Option<Lsn> {
    let body = body.first_chunk::<OVERWRITE_BODY>().filter(|body| body[0] == DATA_SHORT)?;
    Some(Lsn::new(u64::from_le_bytes(part(body, 2))))
}

/// `XLR_BLOCK_ID_DATA_SHORT`.
const DATA_SHORT: u8 = 255;
/// What of an XLOG_OVERWRITE_CONTRECORD's body has to be known: the header of its data, and a position.
pub(crate) const OVERWRITE_BODY: usize = 10;

/// The length is known before the rest of the header when the header is split over two pages.
pub(crate) fn check_length(tot_len: u32, lsn: Lsn) -> Result<(), WalError> {
    if (tot_len as usize) < RECORD_HEADER {
        Err(WalError::RecordTooShort { lsn, found: tot_len })
    } else if tot_len > MAX_RECORD {
        Err(WalError::RecordTooLong { lsn, found: tot_len })
    } else {
        Ok(())
    }
}
