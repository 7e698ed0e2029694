//! WAL on its way back: sources that have it, and those who fetch it from them, for consumers and for recovery.

pub mod fetch;
#[cfg(test)]
pub(crate) mod memory;
pub(crate) mod recall;
pub(crate) mod relay_directory;
pub mod restore;
pub(crate) mod source;
pub mod spool;
pub(crate) mod streaming;
pub(crate) mod target_source;
mod temp;
