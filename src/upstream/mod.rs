//! The server above: which one is followed, from where, and what it sends.
//!
//! [`follow`] finds a server and asks; `receive` takes the WAL. Connections are [`pg`](crate::pg)'s.

mod awaited;
mod board;
mod failure;
mod fenced;
mod follow;
mod followed;
mod format;
mod histories;
mod introduce;
mod left;
mod link;
mod made;
mod outage;
mod receive;
mod refill;
mod seam;
#[cfg(test)]
mod tests;

pub use board::{Board, Phase, Seen};
pub use failure::UpstreamError;
pub use follow::{UpstreamConfig, follow};
pub use followed::{Followed, Following, Return};
pub use seam::Held;
