//! When WAL arrived: from that and a consumer's reports follows its lag in time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use walrelay_proto::Lsn;

use super::lock;

/// When WAL arrived, by position: a ring of samples from which lag in time is read, the same for all
/// consumers (PostgreSQL keeps one `LagTracker` per walsender).
#[derive(Debug)]
pub struct LagClock {
    samples: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    /// Positions rise; the oldest sample is at `next` once the ring is full.
    samples: Vec<(Lsn, Instant)>,
    next: usize,
}

impl LagClock {
    const SAMPLES: usize = 4096;
    const SPACING: Duration = Duration::from_millis(10);

    pub(crate) fn new() -> LagClock {
        LagClock { samples: Mutex::new(Ring { samples: Vec::new(), next: 0 }) }
    }

    /// WAL up to `end` became visible at `now`.
    pub(crate) fn arrived(&self, end: Lsn, now: Instant) {
        let mut ring = lock(&self.samples);
        let newest = ring.newest();
        if newest.is_some_and(|(lsn, at)| end <= lsn || now.duration_since(at) < LagClock::SPACING) {
            return;
        }
        if ring.samples.len() < LagClock::SAMPLES {
            ring.samples.push((end, now));
        } else {
            let next = ring.next;
            ring.samples[next] = (end, now);
        }
        ring.next = (ring.next + 1) % LagClock::SAMPLES;
    }

    /// Forgets everything: positions begin anew, before those that were reached.
    pub(crate) fn reset(&self) {
        *lock(&self.samples) = Ring { samples: Vec::new(), next: 0 };
    }

    /// How long ago the WAL before `lsn` arrived; `None` when no sample reaches that far back or forward.
    pub fn since_arrival(&self, lsn: Lsn, now: Instant) -> Option<Duration> {
        let ring = lock(&self.samples);
        let (newer, older) = ring.samples.split_at(ring.next.min(ring.samples.len()));
        let (a, b) = (older, newer);
        let in_order = |at: usize| if at < a.len() { a[at] } else { b[at - a.len()] };
        let (mut low, mut high) = (0, ring.samples.len());
        while low < high {
            let middle = (low + high) / 2;
            if in_order(middle).0 < lsn { low = middle + 1 } else { high = middle }
        }
        (low < ring.samples.len() && lsn != Lsn::INVALID)
            .then(|| now.saturating_duration_since(in_order(low).1))
    }
}

impl Ring {
    fn newest(&self) -> Option<(Lsn, Instant)> {
        let last = self.next.checked_sub(1).unwrap_or(LagClock::SAMPLES - 1);
        self.samples.get(last).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_read_from_the_sample_that_covers_the_position() {
        let clock = LagClock::new();
        let start = Instant::now();
        let at = |n: u32| start + LagClock::SPACING * n;
        for n in 1..=(LagClock::SAMPLES as u32 + 10) {
            clock.arrived(Lsn::new(u64::from(n) * 100), at(n));
        }
        let now = at(LagClock::SAMPLES as u32 + 20);
        let lag = |lsn: u64| clock.since_arrival(Lsn::new(lsn), now);
        assert_eq!(lag(1_000_000), None, "not arrived yet");
        assert_eq!(lag(0), None, "nothing reported");
        assert_eq!(lag(50_000), Some(now - at(500)));
        assert_eq!(lag(49_901), Some(now - at(500)));
        assert_eq!(lag(1), Some(now - at(11)), "older than the ring: its oldest sample");
        // Back to an older position: what arrives there counts.
        clock.reset();
        assert_eq!(lag(50_000), None);
        clock.arrived(Lsn::new(40_000), at(LagClock::SAMPLES as u32 + 15));
        assert_eq!(lag(40_000), Some(LagClock::SPACING * 5));
    }
}
