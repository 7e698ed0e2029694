//! The archive: WAL in any number of targets, each at its own pace, and how it comes back.
//!
//! ```text
//! store ── finished segments, histories ──> Archiver ── one queue each ──> Repository ──> Storage
//!                                                                     └──> command
//! consumers <── Recall <──┐
//! PostgreSQL <── Restore <┴── Source: Repository, a relay's directory, a running relay
//! ```
//!
//! A [`Target`] is what was configured; a [`Repository`] its objects, whatever their layout, compression and
//! encryption. Getting WAL back knows places only as [`Source`]s: [`Recall`] brings segments that have left the
//! relay's disk back for consumers that still want them, [`restore`] is PostgreSQL's `restore_command`.
//!
//! Four rooms: `repo`, what lies in a target; `out` stores it there; `back` fetches it; `tend` looks after it.

mod back;
mod out;
mod repo;
mod tend;

pub use crate::pulse::Pulse;
#[cfg(test)]
pub(crate) use back::memory;
#[cfg(feature = "sim")]
pub use back::recall::stepped as recalling;
pub use back::recall::{Recall, RecallError, RecallSeen};
pub use back::relay_directory::RelayDirectory;
pub use back::source::{FetchError, Fetching, Look, Source};
pub use back::streaming::{Reach, Server};
pub use back::target_source::TargetSource;
pub use back::{fetch, restore, spool};
pub use out::archiver::{ArchiveControl, Archiver, Prepared, check_targets, missing_directories};
pub use out::board::TargetSeen;
pub use out::command::command_placeholders;
#[cfg(feature = "sim")]
pub use out::stepped as archiving;
pub use repo::chain::missing_segments;
pub use repo::check;
pub use repo::codec::{Codec, Compression, DecodeError, Format, KeyError, Keys, Packing};
pub use repo::content::Content;
pub use repo::layout::{Aside, Item, Layout};
pub use repo::name::{ChunkName, FileKind, FileName};
pub use repo::repository::{ArchiveError, Entry, ReadError, Repository, WriteError, Written};
pub use repo::sidecar::{Sha256, Sidecar};
pub use repo::target::{OnQuota, Place, Target};
pub use tend::{cleanup, list, probe, verify};
