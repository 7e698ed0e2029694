//! Signs of life of a place: what counts is silence, not how long something takes.
//!
//! A slow line is no fault, and a file system that does not answer is one, whatever the size of the file. So whoever
//! waits for a place waits as long as anything comes from it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When something was heard last; copies share it.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Heard>);

#[derive(Debug)]
struct Heard {
    base: Instant,
    /// Microseconds since `base`.
    last: AtomicU64,
    /// A sign of life of a part is one of the whole.
    whole: Option<Pulse>,
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse::new(None)
    }
}

impl Pulse {
    fn new(whole: Option<Pulse>) -> Pulse {
        Pulse(Arc::new(Heard { base: Instant::now(), last: AtomicU64::new(0), whole }))
    }

    /// That of one operation at this place.
    pub(crate) fn part(&self) -> Pulse {
        Pulse::new(Some(self.clone()))
    }

    /// Something has come, or gone well.
    pub fn beat(&self) {
        let now = u64::try_from(self.0.base.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.last.fetch_max(now, Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.beat();
        }
    }

    /// Since when nothing has been heard.
    pub(crate) fn last(&self) -> Instant {
        self.0.base + Duration::from_micros(self.0.last.load(Ordering::Relaxed))
    }

    /// Resolves when nothing has been heard for so long, from now on. Cancel-safe.
    pub(crate) async fn silence(&self, limit: Duration) {
        let begun = Instant::now();
        loop {
            let until = self.last().max(begun) + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until.into()).await;
        }
    }

    /// Waits for work at this place as long as anything is heard of it; `None` after `limit` of silence.
    pub(crate) async fn heed<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.silence(limit) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn work_may_take_as_long_as_it_shows_signs_of_life() {
        let whole = Pulse::default();
        let part = whole.part();
        let work = async {
            for _ in 0..20 {
                tokio::time::sleep(LIMIT / 8).await;
                part.beat();
            }
            7
        };
        assert_eq!(whole.heed(LIMIT, work).await, Some(7));
        assert_eq!(part.heed(LIMIT, std::future::pending::<()>()).await, None);
        // Another's life is not its own.
        let other = whole.part();
        let beats = async {
            loop {
                tokio::time::sleep(LIMIT / 8).await;
                other.beat();
            }
        };
        let dead = part.heed(LIMIT, std::future::pending::<()>());
        tokio::select! {
            none = dead => assert_eq!(none, None),
            () = beats => {}
        }
    }
}
