//! Everything there is to know of a running relay, as one value: [`Status::now`].
//!
//! ```text
//! store, consumers, upstream::Board, ArchiveControl, Recall, counts, Events ──┐
//!                     DiskGauge (looks at the disk now and then, by itself) ──┴─> Sources ──> Status
//!                                                                                              │
//!                          metrics  <──  SQL (console)  <──  JSON, `walrelay status`  <────────┤
//!                                                History (the last hours, in memory)  <────────┤
//!                                Reminders (the log is told of what lasts)  <── troubles <─────┘
//! ```
//!
//! Whoever shows something of the relay shows a part of this, so that no two of them disagree. Making one takes locks that
//! are held for a moment only, and waits for no disk and no peer: it may be asked for each second, and while everything else
//! hangs.

mod disk;
mod history;
mod now;
mod reminders;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod troubles;
mod value;
mod watched;

pub use disk::DiskGauge;
pub use history::History;
pub use now::{Setting, Sources, SourcesSetup};
pub use reminders::Reminders;
pub use troubles::{Trouble, TroubleKind, TroubleStatus, in_brief};
pub use value::{
    AckStatus, ArchiveStatus, CertificateEnd, ConsumerStatus, Counts, DiskStatus, Distance, Durations,
    EventStatus, FailoverStatus, FenceStatus, HolderStatus, RecallStatus, RefusedStatus, RelayStatus,
    SegmentsStatus, SlotStatus, Status, TimelineStatus, UpstreamStatus,
};
pub use watched::{Running, Starting, Watched};
