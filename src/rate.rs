//! Limits in bytes per second: of all base backups together, of an archive target.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::changeable::Changeable;

/// Lets bytes pass at a rate. What has passed is paid for by waiting afterwards (PostgreSQL:
/// `basebackup_throttle.c`), so a short pause is not caught up with a burst.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: Changeable<u64>,
    /// When everything that has passed is paid for.
    paid: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// At least 1 byte per second.
    pub fn new(bytes_per_second: u64) -> RateLimit {
        RateLimit { bytes_per_second: bytes_per_second.into(), paid: Mutex::new(None) }
    }

    /// What passes from now on has this rate.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.replace(bytes_per_second);
    }

    /// Counts bytes that pass now; whoever sends them must wait until the instant returned before the next.
    pub fn pass(&self, bytes: usize, now: Instant) -> Instant {
        let rate = self.bytes_per_second.current().max(1);
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let until = paid.map_or(now, |at| at.max(now)) + cost;
        *paid = Some(until);
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_all_senders_add_up_and_pauses_are_not_caught_up() {
        let limit = RateLimit::new(1000);
        let start = Instant::now();
        assert_eq!(limit.pass(500, start), start + Duration::from_millis(500));
        assert_eq!(limit.pass(250, start), start + Duration::from_millis(750));
        let later = start + Duration::from_secs(9);
        assert_eq!(limit.pass(1000, later), later + Duration::from_secs(1));
        // Where there is no limit nobody waits.
        let none = RateLimit::new(u64::MAX);
        assert_eq!(none.pass(1 << 20, start), start);
        // What has passed costs what it did.
        limit.set(500);
        assert_eq!(limit.pass(1000, later), later + Duration::from_secs(3));
    }
}
