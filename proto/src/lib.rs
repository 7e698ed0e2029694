//! PostgreSQL physical replication, without any I/O.
//!
//! This crate knows positions ([`Lsn`]), segments ([`SegNo`], [`SegSize`], [`WalFileName`]), timelines
//! ([`TimelineHistory`]), how WAL bytes are checked, and what replication messages and commands look
//! like. It never opens a file or a socket and never reads a clock: bytes and times go in, facts come out.
#![forbid(unsafe_code)]
#![warn(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]
// See clippy.toml. Tests may ask what time it is.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod ack;
mod command;
mod commit;
pub mod course;
mod feedback;
#[cfg(any(test, feature = "generate"))]
pub mod generate;
mod lost;
mod lsn;
mod message;
mod page;
pub mod receiver;
mod record;
mod segment;
pub mod sender;
mod slot_name;
mod timeline;
mod timer;
mod walk;

pub use command::{
    Command, CommandError, CommandOption, CreateSlot, FenceOrder, OptionValue, Parsed, SlotKind,
    StartReplication, Statement, Truncated,
};
pub use commit::CommitCounter;
pub use feedback::FeedbackHorizon;
pub use lost::{PAGE_HEAD, behind_lost_record};
pub use lsn::{Lsn, ParseLsnError};
pub use message::{
    ClientMessage, ClientMessageError, FullXid, HotStandbyFeedback, Keepalive, PgTimestamp, ServerMessage,
    ServerMessageError, StandbyStatusUpdate, XLogDataHeader,
};
pub use page::{
    NEWEST_MAJOR, differs_in_nothing, is_newer_wal_magic, wal_magic_of, wal_magic_of_page,
    wal_magic_of_segment,
};
pub use segment::{InvalidSegSize, SegNo, SegSize, WalFileName};
pub use slot_name::{SlotName, SlotNameError};
pub use timeline::{HistoryEntry, HistoryError, SystemId, TimelineHistory, TimelineId, TimelinePosition};
pub use timer::{PeerDue, PeerTimer};
pub use walk::{PaddingSeen, SegmentHead, WalError, WalIdentity, WalVerifier};
