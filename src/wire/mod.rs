//! PostgreSQL's wire protocol on one socket: frames are cut here, messages are pgwire's types.
//!
//! pgwire's decoders trust the length word they find, so they never see the socket: [`frame`] and [`startup`]
//! cut exactly one message out of the input, with a limit for each type, and what clients send is read here,
//! byte by byte. What walrelay sends is encoded by pgwire ([`messages`]). A [`Connection`] keeps unread and
//! unsent bytes, so that dropping one of its futures loses nothing.

pub mod binary;
mod connection;
mod error;
pub mod frame;
pub mod messages;
mod socket;
mod source;
pub mod startup;
mod tls;

pub use connection::{Connection, ReadError};
pub use error::{PgError, Severity, sqlstate};
pub use frame::{Frame, FrameError, Phase};
pub use socket::{Peer, Socket};
pub use source::Source;
pub use tls::{ServerTls, TlsError, TlsFiles, TlsSession};
