//! Work that may never come back: on a file system that hangs, with a name service that does not answer.
//!
//! A call into a hung network file system cannot be taken back: its thread is lost until the file system answers. So
//! such calls have threads of their own, a bounded number for each place, and whoever waits for one waits for a limited
//! time. Neither the runtime's workers nor its blocking threads, which everything else shares, can run out for it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use crate::pulse::Pulse;

/// Least bytes per second that a healthy place takes or gives; slower is as good as gone.
pub(crate) const SLOWEST: u64 = 64 << 10;
/// What a call may take besides its bytes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Most calls into one place at a time, those that hang included.
const THREADS: usize = 16;

/// The threads of one place.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    name: &'static str,
    free: Arc<Semaphore>,
    patience: Duration,
    /// Bytes per second.
    slowest: u64,
}

impl Default for Lane {
    fn default() -> Lane {
        Lane::new("archive-io", PATIENCE)
    }
}

impl Lane {
    /// Threads with this name. A call is given up after `patience`, and the time its bytes take.
    pub(crate) fn new(name: &'static str, patience: Duration) -> Lane {
        Lane { name, free: Arc::new(Semaphore::new(THREADS)), patience, slowest: SLOWEST }
    }

    /// A call is given up after `patience`, whatever it moves.
    #[cfg(test)]
    pub(crate) fn hasty(patience: Duration) -> Lane {
        Lane { slowest: u64::MAX, ..Lane::new("hasty-io", patience) }
    }

    /// How long a call that moves `size` bytes may take.
    pub(crate) fn limit(&self, size: u64) -> Duration {
        self.patience + Duration::from_secs(size / self.slowest)
    }

    /// Runs `work`, which moves about `size` bytes. When its time is over it goes on without anybody waiting.
    ///
    /// # Errors
    /// It did not end in time, or not in order.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        size: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let limit = self.limit(size);
        let done = tokio::time::timeout(limit, self.start(work)).await;
        done.unwrap_or_else(|_| Err(format!("no answer in {} s", limit.as_secs_f32().round())))
    }

    /// Runs `work` as long as it shows signs of life, whatever it moves. When it has been silent for too long it goes on
    /// without anybody waiting.
    ///
    /// # Errors
    /// It was silent, or did not end in order.
    pub(crate) async fn run_alive<T: Send + 'static>(
        &self,
        whole: &Pulse,
        work: impl FnOnce(&Pulse) -> T + Send + 'static,
    ) -> Result<T, String> {
        let pulse = whole.part();
        let alive = pulse.clone();
        let work = move || {
            let done = work(&alive);
            alive.beat();
            done
        };
        let done = pulse.heed(self.patience, self.start(work)).await;
        let silent = || format!("no answer in {} s", self.patience.as_secs_f32().round());
        done.unwrap_or_else(|| Err(silent()))
    }

    async fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let place = self.free.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let (report, done) = oneshot::channel();
        let run = move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(work));
            // Free again only now: a thread that hangs keeps its place.
            drop(place);
            let _ = report.send(result);
        };
        let thread = std::thread::Builder::new().name(self.name.to_owned()).spawn(run);
        thread.map_err(|error| format!("could not start a thread: {error}"))?;
        match done.await {
            Ok(Ok(result)) => Ok(result),
            _ => Err("a fault of walrelay, see standard error".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn calls_that_hang_cost_a_bounded_number_of_threads_and_nobodys_time() {
        let lane = Lane::new("test", Duration::from_millis(20));
        let mut hung = Vec::new();
        for _ in 0..THREADS {
            let (go_on, wait) = mpsc::channel::<()>();
            hung.push(go_on);
            let error = lane.run(0, move || wait.recv()).await.unwrap_err();
            assert!(error.contains("no answer"), "{error}");
        }
        // Nobody is left to do it.
        assert!(lane.run(0, || 1).await.is_err());
        hung.clear();
        while lane.run(0, || 1).await.is_err() {}
        assert_eq!(lane.run(0, || 2).await, Ok(2));
    }

    #[tokio::test]
    async fn slow_work_is_waited_for_and_silent_work_is_not() {
        let (lane, pulse) = (Lane::new("test", Duration::from_millis(300)), Pulse::default());
        let slow = |alive: &Pulse| {
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(700) {
                alive.beat();
                std::thread::yield_now();
            }
            1
        };
        assert_eq!(lane.run_alive(&pulse, slow).await, Ok(1));
        let (_go_on, wait) = mpsc::channel::<()>();
        let error = lane.run_alive(&pulse, move |_| wait.recv().is_ok()).await.unwrap_err();
        assert!(error.contains("no answer"), "{error}");
    }

    #[tokio::test]
    async fn a_fault_is_an_error() {
        let lane = Lane::default();
        let error = lane.run(0, || -> u8 { panic!("on purpose") }).await.unwrap_err();
        assert!(error.contains("fault of walrelay"), "{error}");
        assert_eq!(lane.run(0, || 1).await, Ok(1));
    }
}
