//! What lies in a target: names, layouts, codecs and checksums; what is good WAL; how far a target has got.
//!
//! A [`Target`] is what was configured; a [`Repository`] its objects. Nobody here knows who stores and who reads.

pub(crate) mod chain;
pub mod check;
pub(crate) mod codec;
pub(crate) mod content;
pub(crate) mod layout;
pub(crate) mod name;
pub(crate) mod progress;
pub(crate) mod repository;
pub(crate) mod sidecar;
pub(crate) mod target;
