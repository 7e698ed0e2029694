//! Heartbeats of a runtime's workers, seen from outside: a worker beats by sleeping, or by having done something.
//!
//! One that is kept by a single task (it computes, it waits at a lock) does neither, while the others go on: nobody on the
//! runtime would notice, but for those whose tasks that worker has.

use std::time::Duration;

use tokio::runtime::{Handle, RuntimeMetrics};

use super::heart::Heart;

/// The workers of a runtime.
#[derive(Debug)]
pub(crate) struct Workers {
    metrics: RuntimeMetrics,
    workers: Vec<(Heart, Seen)>,
}

/// What a worker has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// How often it has gone to sleep and been woken: odd while it sleeps.
    sleeps: u64,
    /// How long it has worked, as far as it has told: now and then, between two tasks.
    busy: Duration,
}

impl Workers {
    /// Those of this runtime, called after what it is for.
    pub(crate) fn of(runtime: &Handle, purpose: &str) -> Workers {
        let metrics = runtime.metrics();
        let worker = |number| {
            let heart = Heart::new(&format!("worker {number} of {purpose}"));
            (heart, Seen::now(&metrics, number))
        };
        let workers = (0..metrics.num_workers()).map(worker).collect();
        Workers { metrics, workers }
    }

    /// Looks at all of them: those beat that sleep, or have done something since the last look.
    pub(crate) fn look(&mut self) {
        for (number, (heart, before)) in self.workers.iter_mut().enumerate() {
            let now = Seen::now(&self.metrics, number);
            if now != *before || now.sleeps % 2 == 1 {
                heart.give_sign();
            }
            *before = now;
        }
    }

    /// Their hearts.
    pub(crate) fn hearts(&self) -> impl Iterator<Item = &Heart> {
        self.workers.iter().map(|(heart, _)| heart)
    }
}

impl Seen {
    fn now(metrics: &RuntimeMetrics, worker: usize) -> Seen {
        let sleeps = metrics.worker_park_unpark_count(worker);
        Seen { sleeps, busy: metrics.worker_total_busy_duration(worker) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;

    /// Tasks come and go on the other worker meanwhile.
    #[test]
    fn the_worker_that_a_task_keeps_is_silent_and_no_other_is() {
        const LIMIT: Duration = Duration::from_millis(100);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut workers = Workers::of(runtime.handle(), "test");
        let (let_go, kept) = channel::<()>();
        runtime.spawn(async move { kept.recv().is_ok() });
        let silent = |workers: &mut Workers| {
            runtime.block_on(async { tokio::spawn(tokio::task::yield_now()).await.unwrap() });
            workers.look();
            workers.hearts().filter(|heart| heart.is_silent(LIMIT)).count()
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while silent(&mut workers) != 1 {
            assert!(Instant::now() < deadline, "nobody is silent, or all are");
        }
        drop(let_go);
        while silent(&mut workers) > 0 {
            assert!(Instant::now() < deadline, "it does not beat again");
        }
    }
}
