//! A client of a PostgreSQL server: connecting as libpq does, logging in, asking, streaming.
//!
//! [`connect`] and [`connect_any`] turn a [`ConnInfo`](crate::conninfo::ConnInfo) into an
//! [`UpstreamConnection`] that is logged in and idle. Nothing here retries by itself beyond what libpq does within
//! one attempt; [`ConnectError::is_transient`] tells the caller whether trying again makes sense.
//!
//! It knows nothing of WAL or of what the relay wants from the server: the receiving side, the gateway and the archive
//! use it alike.

mod aside;
mod connect;
mod connection;
mod error;
mod frame;
mod key;
mod login;
pub(crate) mod message;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod tls;

pub use connect::{connect, connect_any, send_cancel};
pub use connection::{Parts, QueryResult, UpstreamConnection};
pub use error::{ConnectError, QueryError, ServerError};
pub(crate) use frame::SILENCE;
pub use stream::Stream;
