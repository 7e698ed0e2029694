//! The archive: WAL in any number of targets, each at its own pace.
//!
//! ```text
//! store ── finished segments, histories ──> Archiver ── one queue each ──> Repository ──> Storage
//!                                                                     └──> command
//! ```
//!
//! A [`Target`] is what was configured; a [`Repository`] its objects, whatever their layout, compression and
//! encryption.

mod archiver;
mod backoff;
mod codec;
mod command;
mod layout;
mod listing;
mod name;
mod outlook;
mod profile;
mod progress;
mod queue;
mod repository;
mod sidecar;
mod storage;
mod tail;
mod target;
mod worker;

pub use archiver::Archiver;
pub use codec::{Codec, Compression, DecodeError, Format, KeyError, Keys, Packing};
pub use command::command_placeholders;
pub use layout::{Aside, Item, Layout};
pub use name::{ChunkName, FileKind, FileName};
pub use repository::{ArchiveError, Entry, ReadError, Repository, WriteError, Written};
pub use sidecar::{Sha256, Sidecar};
pub use storage::{OptionError, Storage, StorageError, Stored};
pub use target::{ObjectPlace, OnQuota, Place, Target, TargetError};
