//! WAL on its way out: the [`Archiver`](archiver::Archiver) looks what there is, each target's worker sends it.

pub(crate) mod archiver;
mod backoff;
pub(crate) mod board;
pub(crate) mod command;
mod listing;
mod outlook;
mod queue;
mod tail;
mod worker;
