//! The fence (`store::fence`) on the upstream side: the connection ends, whatever is under way, and what was received becomes
//! durable; a server that is not on a newer timeline is not followed; who follows one has passed it.

use tokio::sync::watch;
use walrelay_proto::course::Fact;
use walrelay_proto::{Lsn, TimelinePosition};

use super::failure::UpstreamError;
use super::follow::Follower;
use crate::store::fence::Fencing;
use crate::store::{AppendError, Store, Writer};

/// Resolves when a fence was ordered and waits for the upstream side. Cancel-safe.
pub(super) async fn ordered(fencing: &mut watch::Receiver<Fencing>) {
    let is_open = |shown: &Fencing| shown.last.as_ref().is_some_and(|fence| fence.is_open());
    if fencing.wait_for(is_open).await.is_err() {
        // The store has gone, and nobody orders anything.
        std::future::pending().await
    }
}

impl Follower {
    /// Ends the connection without another word, has all that was received synced, and closes the fence. Waits for the disk.
    pub(super) async fn leave_for_fence(&mut self, writer: &mut Writer) -> Fact<UpstreamError> {
        self.hang_up();
        self.board().waiting();
        let store = writer.store().clone();
        if let Some(newest) = self.newest {
            // A server that was promoted while it was followed, and not looked at again since.
            store.fences().heads_for(newest);
        }
        // What was sent last may be lost with the connection.
        store.consumers().forget_reported();
        // Not before the next look is what was received beyond the last whole record forgotten.
        writer.commit();
        let durable = tokio::select! {
            durable = wait_until_flushed(&store) => durable,
            () = self.stop.cancelled() => return Fact::Stopped,
        };
        if let Err(error) = durable {
            return Fact::Failed(error);
        }
        if let Err(error) = store.fences().close(end(&store)) {
            tracing::warn!("could not save the fence in the data directory: {error}; will try again");
        }
        match store.fences().now().last {
            Some(fence) => Fact::Failed(UpstreamError::Left(Box::new(fence))),
            None => Fact::Failed(UpstreamError::Stream("a fence has gone".to_owned())),
        }
    }

    /// Notes that the present timeline is followed. A fence before it is passed. Waits for the disk.
    pub(super) fn note_followed(&self, writer: &mut Writer) -> Result<(), UpstreamError> {
        writer.note_followed()?;
        let Some(position) = writer.position() else { return Ok(()) };
        if let Err(error) = writer.store().fences().pass(position.tli) {
            tracing::warn!(
                "could not note in the data directory that a fence is passed: {error}; will try again"
            );
        }
        Ok(())
    }
}

/// Resolves when all that is shown is durable. Cancel-safe.
async fn wait_until_flushed(store: &Store) -> Result<(), UpstreamError> {
    // Right behind a switch `flushed` still names the timeline before.
    let is_durable = || store.tip().is_none_or(|tip| tip.flush_lsn >= tip.write_lsn);
    let mut flushed = store.flushed();
    tokio::select! {
        _ = flushed.wait_for(|_| is_durable()) => Ok(()),
        _ = store.failed() => Err(AppendError::Failed.into()),
    }
}

/// Where the WAL held here ends.
fn end(store: &Store) -> TimelinePosition {
    match store.tip() {
        Some(tip) => TimelinePosition { tli: tip.tli, lsn: tip.flush_lsn },
        // It had begun, and is to begin elsewhere.
        None => TimelinePosition { tli: store.history().tli(), lsn: Lsn::INVALID },
    }
}
