//! WAL that is elsewhere: archived, and got back.
//!
//! Getting it back: [`Recall`] brings segments that have left the relay's disk back for consumers that still want
//! them. It knows places only as [`Source`]s.

pub mod check;
pub mod directory;
pub mod fetch;
#[cfg(test)]
pub(crate) mod memory;
pub mod recall;
pub mod restore;
pub mod source;
pub mod spool;
pub mod streaming;
mod temp;

pub use recall::{Recall, RecallError};
pub use source::{FetchError, Source};
