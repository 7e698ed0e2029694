//! How long a client may take to accept what is sent to it.
//!
//! A client that does not read must neither keep its place for ever nor hold up anybody: every wait for it has a
//! limit, and ends when the relay stops or the command is cancelled.

use std::io;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::registry::Cancel;
use crate::wire::Connection;

/// How long a client that was told to end is given to take what is on its way to it. Then the connection is cut, in
/// the middle of a message if need be.
// PG: ProcessClientWriteInterrupt, which gives no time at all
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// How long a SQL client may take nothing of an answer that the relay made itself.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What ends a wait for a client that does not read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience<'a> {
    /// Longest time in which the client takes not one byte; `None` for no limit.
    pub(super) limit: Option<Duration>,
    /// The relay stops.
    pub(super) shutdown: &'a CancellationToken,
    /// The command's cancel request; `None` where there is no way to make one.
    pub(super) cancel: Option<&'a Cancel>,
}

impl Patience<'_> {
    /// Sends the answer. After an error the connection is of no more use: a message may have been cut.
    ///
    /// # Errors
    /// Of the socket, and [`io::ErrorKind::TimedOut`] if the client does not take it.
    pub(super) async fn flush(&self, conn: &mut Connection) -> io::Result<()> {
        tokio::select! {
            biased;
            sent = conn.flush_within(self.limit) => sent,
            () = self.told_to_end() => {
                let text = "it was told to end and does not take what was being sent to it";
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }

    /// Resolves a moment after an order to end, so that a client that reads gets everything.
    async fn told_to_end(&self) {
        let cancelled = async {
            match self.cancel {
                Some(cancel) => tokio::select! {
                    () = cancel.requested() => {}
                    () = cancel.ended() => {}
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = cancelled => {}
        }
        tokio::time::sleep(GRACE).await;
    }
}
