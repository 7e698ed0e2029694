//! The thread that receives, with a runtime of its own, so that storing WAL, which may wait for the disk, holds up no
//! consumer.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::RelayError;
use crate::parts::{Heart, HowEnded, PartEnded, Thread, beat_for_ever};
use crate::store::Writer;
use crate::upstream::{self, Following, UpstreamConfig, UpstreamError};

const NAME: &str = "walreceiver";

/// The thread that receives.
#[derive(Debug)]
pub(super) struct Receiver {
    stop: CancellationToken,
    thread: Thread<Result<(), UpstreamError>>,
    over: bool,
}

impl Receiver {
    /// Begins to follow the upstream.
    pub(super) fn start(
        config: &Config,
        writer: Writer,
        followed: Following,
    ) -> Result<Receiver, RelayError> {
        let system = |source| RelayError::System { action: "could not start the upstream thread", source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
        let stop = CancellationToken::new();
        let upstream = UpstreamConfig {
            conninfo: config.upstream.clone(),
            slot: config.slot.clone(),
            dbname: config.auth_dbname.clone(),
            wal_receiver_timeout: config.wal_receiver_timeout,
            shutdown_timeout: config.shutdown_timeout,
            followed,
        };
        let follow = upstream::follow(upstream, writer, stop.clone());
        let run = move || {
            let result = runtime.block_on(async {
                tokio::select! {
                    result = follow => result,
                    () = beat_for_ever() => unreachable!("it beats for ever"),
                }
            });
            // A name look-up may still hang in one of the runtime's threads; nobody waits for it.
            runtime.shutdown_background();
            result
        };
        Ok(Receiver { stop, thread: Thread::start(NAME, run).map_err(system)?, over: false })
    }

    pub(super) fn heart(&self) -> Heart {
        self.thread.heart()
    }

    /// Resolves when it has ended by itself: why. Cancel-safe.
    pub(super) async fn lost(&mut self) -> RelayError {
        let ended = self.thread.ended().await;
        self.over = true;
        match ended {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) => PartEnded { part: NAME.to_owned(), how: HowEnded::Returned }.into(),
            Err(lost) => lost.into(),
        }
    }

    /// Has it confirm the last WAL and end, and waits for that until `deadline`: whether it has, or that it panicked.
    pub(super) async fn stop(&mut self, deadline: Instant) -> Result<bool, PartEnded> {
        self.abandon();
        if self.over {
            return Ok(true);
        }
        match tokio::time::timeout_at(deadline, self.thread.ended()).await {
            Ok(ended) => ended.map(|_| true),
            Err(_) => Ok(false),
        }
    }

    /// Tells it to end and does not wait.
    pub(super) fn abandon(&self) {
        self.stop.cancel();
    }
}
