//! Proving who someone is, in both directions: walrelay logs in upstream and lets others log in below.
//!
//! Everything here is computation: messages and secrets in, messages and verdicts out. Sockets belong to
//! [`upstream`](crate::upstream) and the listener.

pub mod certificate;
pub mod hba;
pub mod md5;
pub mod scram;
pub mod users;
pub mod version_1;
