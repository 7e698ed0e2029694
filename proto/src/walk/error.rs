//! What can be wrong with WAL.

use crate::lsn::Lsn;
use crate::timeline::{SystemId, TimelineId};

/// The bytes are not the WAL that belongs here.
///
/// Texts are PostgreSQL's (`xlogreader.c`), and so are the positions: those about a page name the page,
/// those about a record the record's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The page's magic number is none of PostgreSQL 13 to 19, nor above theirs: no WAL at all (zeros, say), or that of
    /// an old version, a beta, or a machine of another byte order.
    #[error("invalid magic number {found:04X} in WAL page at {lsn}: not WAL of PostgreSQL 13 or later")]
    UnknownMagic {
        /// The page.
        lsn: Lsn,
        /// Its number.
        found: u16,
    },
    /// The page was written by another major version than the server's, or the pages before it.
    #[error(
        "invalid magic number {found:04X} in WAL page at {lsn}: all WAL of this server has {expected:04X}"
    )]
    OtherMagic {
        /// The page.
        lsn: Lsn,
        /// Its number.
        found: u16,
        /// The number of the server's version.
        expected: u16,
    },
    /// Unknown bits, or a long header where a short one belongs, or the other way round.
    #[error("invalid info bits {found:04X} in WAL page at {lsn}")]
    InfoBits {
        /// The page.
        lsn: Lsn,
        /// `xlp_info`
        found: u16,
    },
    /// The segment belongs to another cluster.
    #[error(
        "WAL file is from different database system: system identifier in WAL page at {lsn} is {found}, expected {expected}"
    )]
    OtherSystem {
        /// The segment's first page.
        lsn: Lsn,
        /// The identifier there.
        found: SystemId,
        /// The identifier of the cluster that is followed.
        expected: SystemId,
    },
    /// The segment has another size.
    #[error(
        "WAL file is from different database system: segment size in WAL page at {lsn} is {found}, expected {expected}"
    )]
    OtherSegmentSize {
        /// The segment's first page.
        lsn: Lsn,
        /// Bytes per segment there.
        found: u32,
        /// Bytes per segment of the cluster that is followed.
        expected: u64,
    },
    /// The WAL has another page size than 8192 bytes.
    #[error(
        "WAL file is from different database system: XLOG_BLCKSZ in WAL page at {lsn} is {found}, expected 8192"
    )]
    OtherBlockSize {
        /// The segment's first page.
        lsn: Lsn,
        /// Bytes per page there.
        found: u32,
    },
    /// The page belongs elsewhere. Recycled segments look like this.
    #[error("unexpected pageaddr {found} in WAL page at {lsn}")]
    PageAddress {
        /// Where the page was found.
        lsn: Lsn,
        /// Where it says it belongs.
        found: Lsn,
    },
    /// The page is on an older timeline than the page before it.
    #[error("out-of-sequence timeline ID {found} (after {after}) in WAL page at {lsn}")]
    TimelineFell {
        /// The page.
        lsn: Lsn,
        /// Its timeline.
        found: u32,
        /// The timeline of the page before.
        after: u32,
    },
    /// The page is on a newer timeline than the one followed.
    #[error("unexpected timeline ID {found} in WAL page at {lsn}: following timeline {current}")]
    TimelineAhead {
        /// The page.
        lsn: Lsn,
        /// Its timeline.
        found: u32,
        /// The timeline followed.
        current: TimelineId,
    },
    /// The page says it begins with the rest of a record, but none is incomplete.
    #[error("contrecord is requested by {lsn}")]
    UnexpectedContrecord {
        /// Where a record should start.
        lsn: Lsn,
    },
    /// A record should go on in the next page, which does not say so.
    #[error("there is no contrecord flag at {lsn}")]
    MissingContrecord {
        /// The record; its page, if the walk began inside the record.
        lsn: Lsn,
    },
    /// The page disagrees about how much of the record is to come.
    #[error("invalid contrecord length {found} (expected {expected}) at {lsn}")]
    ContrecordLength {
        /// The record; the page, if no record's start was seen.
        lsn: Lsn,
        /// `xlp_rem_len`
        found: u32,
        /// What is missing from the record.
        expected: u32,
    },
    /// The walk was told to begin where no record can start.
    #[error("invalid record offset at {lsn}")]
    RecordOffset {
        /// Where it was to begin.
        lsn: Lsn,
    },
    /// Where a record should start there is none: zeros at the end of the WAL, for example.
    #[error("invalid record length at {lsn}: expected at least 24, got {found}")]
    RecordTooShort {
        /// The record.
        lsn: Lsn,
        /// `xl_tot_len`
        found: u32,
    },
    /// No record is that long.
    #[error("record length {found} at {lsn} too long")]
    RecordTooLong {
        /// The record.
        lsn: Lsn,
        /// `xl_tot_len`
        found: u32,
    },
    /// Neither a built-in resource manager nor one of an extension.
    #[error("invalid resource manager ID {rmid} at {lsn}")]
    ResourceManager {
        /// The record.
        lsn: Lsn,
        /// `xl_rmid`
        rmid: u8,
    },
    /// The record does not follow the one before it.
    #[error("record with incorrect prev-link {found} at {lsn}")]
    PrevLink {
        /// The record.
        lsn: Lsn,
        /// `xl_prev`
        found: Lsn,
    },
    /// The record is damaged.
    #[error("incorrect resource manager data checksum in record at {lsn}")]
    Checksum {
        /// The record.
        lsn: Lsn,
    },
    /// Between a record's end and the next multiple of eight, and at the end of a page's header, are zeros, but not here.
    #[error("invalid padding at {lsn}: expected zeros, got {found:02X}")]
    Padding {
        /// The first byte that is not zero.
        lsn: Lsn,
        /// That byte.
        found: u8,
    },
    /// Behind an XLOG_SWITCH record the rest of the segment is zero, but not here.
    #[error("invalid padding at {lsn}: expected zeros behind XLOG_SWITCH, got {found:02X}")]
    SwitchPadding {
        /// The first byte that is not zero.
        lsn: Lsn,
        /// That byte.
        found: u8,
    },
}

impl WalError {
    /// The page, record or byte that is wrong.
    pub fn lsn(&self) -> Lsn {
        match *self {
            WalError::UnknownMagic { lsn, .. }
            | WalError::OtherMagic { lsn, .. }
            | WalError::InfoBits { lsn, .. }
            | WalError::OtherSystem { lsn, .. }
            | WalError::OtherSegmentSize { lsn, .. }
            | WalError::OtherBlockSize { lsn, .. }
            | WalError::PageAddress { lsn, .. }
            | WalError::TimelineFell { lsn, .. }
            | WalError::TimelineAhead { lsn, .. }
            | WalError::UnexpectedContrecord { lsn }
            | WalError::MissingContrecord { lsn }
            | WalError::ContrecordLength { lsn, .. }
            | WalError::RecordOffset { lsn }
            | WalError::RecordTooShort { lsn, .. }
            | WalError::RecordTooLong { lsn, .. }
            | WalError::ResourceManager { lsn, .. }
            | WalError::PrevLink { lsn, .. }
            | WalError::Checksum { lsn }
            | WalError::Padding { lsn, .. }
            | WalError::SwitchPadding { lsn, .. } => lsn,
        }
    }
}
