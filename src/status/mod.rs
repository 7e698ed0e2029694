//! Everything there is to know of a running relay, as one value: [`Status::now`].
//!
//! ```text
//! store, consumers, upstream::Board, ArchiveControl, Recall, counts, Events ──┐
//!                     DiskGauge (looks at the disk now and then, by itself) ──┴─> Sources ──> Status
//!                                                                                              │
//!                          metrics  <──  SQL (console)  <──  JSON, `walrelay status`  <────────┤
//!                                                History (the last hours, in memory)  <────────┘
//! ```
//!
//! Whoever shows something of the relay shows a part of this, so that no two of them disagree. Making one takes locks that
//! are held for a moment only, and waits for no disk and no peer: it may be asked for each second, and while everything else
//! hangs.

mod disk;
mod history;
mod now;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod value;
mod watched;

pub use disk::DiskGauge;
pub use history::History;
pub use now::{Setting, Sources, SourcesSetup};
pub use value::{
    ArchiveStatus, ConsumerStatus, Counts, DiskStatus, Distance, Durations, EventStatus, FenceStatus,
    HolderStatus, RecallStatus, RelayStatus, SegmentsStatus, SlotStatus, Status, TimelineStatus,
    UpstreamStatus,
};
pub use watched::{Running, Starting, Watched};
