//! How often something has happened lately, where a number that only rises says too little.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What happens within this after another counts as of the same moment.
const BUCKET: Duration = Duration::from_secs(60);
/// So many of them are known: what may be asked for is a quarter of an hour.
const KEPT: usize = 16;

/// How often something has happened in the last minutes. Takes a lock for a moment.
#[derive(Debug, Default)]
pub struct Lately(Mutex<VecDeque<(Instant, u64)>>);

impl Lately {
    /// Once more.
    pub fn note(&self, now: Instant) {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match buckets.back_mut() {
            Some((begun, count)) if now.saturating_duration_since(*begun) < BUCKET => *count += 1,
            _ => buckets.push_back((now, 1)),
        }
        if buckets.len() > KEPT {
            buckets.pop_front();
        }
    }

    /// How often within so long before now, to a minute.
    pub fn within(&self, window: Duration, now: Instant) -> u64 {
        let buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = |(begun, _): &&(Instant, u64)| now.saturating_duration_since(*begun) <= window;
        buckets.iter().filter(is_late).map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_ago_counts_no_more() {
        let (lately, start) = (Lately::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (ten, fifteen) = (Duration::from_secs(600), Duration::from_secs(900));
        assert_eq!(lately.within(ten, start), 0);
        (0..100).for_each(|_| lately.note(at(0)));
        lately.note(at(59));
        lately.note(at(300));
        assert_eq!(lately.within(ten, at(300)), 102);
        assert_eq!((lately.within(ten, at(700)), lately.within(fifteen, at(700))), (1, 102));
        assert_eq!(lately.within(fifteen, at(2000)), 0);
        (0..100_000).for_each(|second| lately.note(at(3000 + second)));
        assert_eq!(lately.0.lock().unwrap().len(), KEPT);
    }
}
