//! Pauses between attempts.

use std::time::Duration;

/// Shortest and longest pause before another attempt: a line that has healed is used again within a second.
const LIMITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(750));

/// A pause before the next attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pause {
    longest: Duration,
}

impl Pause {
    /// Its length, with jitter, so that relays do not come back in step: `random` is any number, all being equally likely.
    pub fn length(self, random: u32) -> Duration {
        let part = f64::from(random) / f64::from(u32::MAX);
        self.longest.mul_f64(0.5 + part / 2.0)
    }

    /// What is left of a pause of this `length` when somebody waits for the server: the longer it has been away, the more.
    pub fn least(length: Duration) -> Duration {
        (length / 4).max(LIMITS.0).min(length)
    }
}

/// Doubles the pauses.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// Begins with the shortest.
    pub(super) fn new() -> Backoff {
        Backoff { next: LIMITS.0 }
    }

    /// The next one, and doubles those to come.
    pub(super) fn pause(&mut self) -> Pause {
        let longest = self.next;
        self.next = (longest * 2).min(LIMITS.1);
        Pause { longest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_grows_to_its_limit_and_never_beyond() {
        for random in [0, 1, u32::MAX / 2, u32::MAX] {
            let mut backoff = Backoff::new();
            let pauses: Vec<_> = (0..12).map(|_| backoff.pause().length(random)).collect();
            assert!(pauses[0] >= LIMITS.0 / 2 && pauses[0] <= LIMITS.0);
            assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
            assert!(pauses[11] >= LIMITS.1 / 2 && pauses[11] <= LIMITS.1);
        }
    }

    #[test]
    fn who_waits_shortens_a_pause_less_the_longer_it_is() {
        let ms = Duration::from_millis;
        let shortened = [50, 100, 300, 1000, 2000].map(|pause| Pause::least(ms(pause)));
        assert_eq!(shortened, [50, 100, 100, 250, 500].map(ms));
    }
}
