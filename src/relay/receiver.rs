//! The thread that receives, with a runtime of its own, so that storing WAL, which may wait for the disk, holds up no
//! consumer; and its deputy ([`Driver`]).

use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Timeouts;
use super::drive::Driver;
use crate::config::Config;
use crate::error::RelayError;
use crate::parts::{Heart, HowEnded, PartEnded, Thread, beat_for_ever};
use crate::store::Writer;
use crate::upstream::{self, Following, UpstreamConfig, UpstreamError};

const NAME: &str = "walreceiver";
const DEPUTY: &str = "walreceiver's deputy";

/// The thread that receives.
#[derive(Debug)]
pub(super) struct Receiver {
    stop: CancellationToken,
    thread: Thread<Result<(), UpstreamError>>,
    deputy: Thread<()>,
    over: bool,
}

impl Receiver {
    /// Begins to follow the upstream.
    pub(super) fn start(
        config: &Config,
        timeouts: &Timeouts,
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
            wal_receiver_timeout: timeouts.wal_receiver.clone(),
            shutdown_timeout: timeouts.shutdown.clone(),
            followed,
        };
        let (driver, runtime) = (Arc::new(Driver::new(writer.store().clone())), Arc::new(runtime));
        let follow = upstream::follow(upstream, writer, stop.clone());
        let work = async {
            tokio::select! {
                result = follow => result,
                () = beat_for_ever() => unreachable!("it beats for ever"),
            }
        };
        let stand_by = {
            let (driver, runtime) = (driver.clone(), runtime.clone());
            move || {
                driver.stand_by(&runtime);
                end(runtime);
            }
        };
        let run = move || {
            let result = driver.run(&runtime, work);
            end(runtime);
            result
        };
        let deputy = Thread::start(DEPUTY, stand_by).map_err(system)?;
        Ok(Receiver { stop, thread: Thread::start(NAME, run).map_err(system)?, deputy, over: false })
    }

    pub(super) fn heart(&self) -> Heart {
        self.thread.heart()
    }

    /// Resolves when it has ended by itself: why. Cancel-safe.
    pub(super) async fn lost(&mut self) -> RelayError {
        let ended = tokio::select! {
            biased;
            ended = self.thread.ended() => ended,
            lost = self.deputy.lost() => match lost.how {
                // Behind the thread itself.
                HowEnded::Returned => self.thread.ended().await,
                HowEnded::Panicked(_) => return lost.into(),
            },
        };
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
            Ok(ended) => {
                if let Ok(Err(error)) = &ended {
                    tracing::error!("the walreceiver has ended with an error while it was stopped: {error}");
                }
                ended.map(|_| true)
            }
            Err(_) => Ok(false),
        }
    }

    /// Tells it to end and does not wait.
    pub(super) fn abandon(&self) {
        self.stop.cancel();
    }
}

/// A name look-up may still hang in one of the runtime's threads; whoever is the last to leave does not wait for it.
fn end(runtime: Arc<Runtime>) {
    if let Some(runtime) = Arc::into_inner(runtime) {
        runtime.shutdown_background();
    }
}
