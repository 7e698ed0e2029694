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

mod archiver;
mod backoff;
mod buffer;
mod chain;
pub mod check;
pub mod cleanup;
mod codec;
mod command;
mod commits;
mod directory;
pub mod fetch;
mod layout;
mod limit;
pub mod list;
mod listing;
#[cfg(test)]
pub(crate) mod memory;
mod name;
mod outlook;
mod profile;
mod progress;
mod queue;
mod recall;
mod repository;
pub mod restore;
mod sidecar;
mod source;
pub mod spool;
mod storage;
mod streaming;
mod tail;
mod target;
mod target_source;
mod temp;
pub mod verify;
mod worker;

pub use crate::pulse::Pulse;
pub use archiver::{ArchiveControl, Archiver, Prepared};
pub use chain::missing_segments;
pub use codec::{Codec, Compression, DecodeError, Format, KeyError, Keys, Packing};
pub use command::command_placeholders;
pub use directory::RelayDirectory;
pub use layout::{Aside, Item, Layout};
pub use name::{ChunkName, FileKind, FileName};
pub use recall::{Recall, RecallError};
pub use repository::{ArchiveError, Entry, ReadError, Repository, WriteError, Written};
pub use sidecar::{Sha256, Sidecar};
pub use source::{FetchError, Fetching, Source};
pub use storage::{OptionError, Storage, StorageError, Stored, Trouble};
pub use streaming::Server;
pub use target::{ObjectPlace, OnQuota, Place, Target, TargetError};
pub use target_source::TargetSource;
