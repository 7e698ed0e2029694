//! WAL on its way out: the [`Archiver`](archiver::Archiver) looks what there is, each target's worker sends it.

pub(crate) mod archiver;
mod backoff;
pub(crate) mod board;
pub(crate) mod command;
mod floors;
mod listing;
mod outlook;
mod queue;
pub(crate) mod reading;
mod saved;
#[cfg(feature = "sim")]
pub mod stepped;
mod tail;
mod worker;
