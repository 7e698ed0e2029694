//! The connection to the server above: a physical replication client.
//!
//! [`connect`] and [`connect_any`] turn a [`ConnInfo`](crate::conninfo::ConnInfo) into an
//! [`UpstreamConnection`] that is logged in and idle. Nothing here retries by itself beyond what libpq does within
//! one attempt; [`ConnectError::is_transient`] tells the caller whether trying again makes sense.

mod aside;
mod connect;
mod connection;
mod error;
mod failure;
mod follow;
mod followed;
mod format;
mod frame;
mod histories;
mod introduce;
mod key;
mod login;
mod message;
mod outage;
mod receive;
mod refill;
mod seam;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use connect::{connect, connect_any, send_cancel};
pub use connection::{Parts, QueryResult, UpstreamConnection};
pub use error::{ConnectError, QueryError, ServerError};
pub use failure::UpstreamError;
pub use follow::{UpstreamConfig, follow};
pub use followed::{Followed, Following, Return};
pub use stream::Stream;
