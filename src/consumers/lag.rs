//! When WAL arrived: from that and a consumer's reports follows its lag in time.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use walrelay_proto::Lsn;

use super::lock;

/// When WAL arrived, by position: rings of samples from which lag in time is read, the same for all
/// consumers (PostgreSQL keeps one `LagTracker` per walsender). The first remembers the last seconds closely, the others
/// hours and days at the price of precision, which is always less than a fortieth of what is told.
#[derive(Debug)]
pub struct LagClock {
    samples: Mutex<Samples>,
}

#[derive(Debug)]
struct Samples {
    rings: [Ring; 3],
    /// Since when there are samples, and where WAL ended then: of what is older nobody knows when it came.
    since: Instant,
    from: Lsn,
}

#[derive(Debug)]
struct Ring {
    spacing: Duration,
    /// Positions rise.
    samples: VecDeque<(Lsn, Instant)>,
    /// The newest that came too soon behind a sample to be one. It becomes one if nothing comes for a while.
    skipped: Option<(Lsn, Instant)>,
    /// The newest of those there was no room for any more.
    forgotten: Option<Lsn>,
}

impl LagClock {
    /// Of each ring: 41 seconds, more than an hour, almost three days of WAL that comes without a pause.
    const SAMPLES: usize = 4096;
    const SPACINGS: [Duration; 3] =
        [Duration::from_millis(10), Duration::from_secs(1), Duration::from_secs(60)];

    /// One that begins with WAL up to `end` already there.
    pub(crate) fn new(end: Lsn) -> LagClock {
        LagClock { samples: Mutex::new(Samples::new(end)) }
    }

    /// WAL up to `end` became visible at `now`.
    pub(crate) fn arrived(&self, end: Lsn, now: Instant) {
        lock(&self.samples).rings.iter_mut().for_each(|ring| ring.note(end, now));
    }

    /// A timeline is left: what came beyond `common` is another's now, and of what is held from there to `end` nobody knows
    /// when it came.
    pub(crate) fn part(&self, common: Lsn, end: Lsn, now: Instant) {
        for ring in &mut lock(&self.samples).rings {
            ring.forget_beyond(common);
            ring.note(end, now);
        }
    }

    /// Forgets everything: positions begin anew from `end` on, maybe before those that were reached.
    pub(crate) fn reset(&self, end: Lsn) {
        *lock(&self.samples) = Samples::new(end);
    }

    /// How long ago the WAL before `lsn` arrived; `None` when no sample reaches that far back or forward.
    pub fn since_arrival(&self, lsn: Lsn, now: Instant) -> Option<Duration> {
        let samples = lock(&self.samples);
        let found = samples.rings[0].first(|reached| reached >= lsn);
        found.filter(|_| lsn != Lsn::INVALID).map(|(_, at)| now.saturating_duration_since(at))
    }

    /// How long the oldest WAL between `reached` and `end`, which is where WAL ends, has been there: the lag of who has
    /// reached that. Nothing for who has everything, however long ago that was; it grows while somebody who lacks something
    /// does not move. Of WAL that was there before this process, or for longer than the samples go back, the time that is
    /// known.
    pub fn waiting(&self, reached: Lsn, end: Lsn, now: Instant) -> Duration {
        if reached >= end {
            return Duration::ZERO;
        }
        let samples = lock(&self.samples);
        now.saturating_duration_since(samples.arrival_beyond(reached))
    }
}

impl Samples {
    fn new(end: Lsn) -> Samples {
        let rings = LagClock::SPACINGS.map(|spacing| Ring {
            spacing,
            samples: VecDeque::new(),
            skipped: None,
            forgotten: None,
        });
        Samples { rings, since: Instant::now(), from: end }
    }

    /// When the first byte from `lsn` on arrived.
    fn arrival_beyond(&self, lsn: Lsn) -> Instant {
        if lsn < self.from {
            return self.since;
        }
        let [.., coarsest] = &self.rings;
        let ring = self.rings.iter().find(|ring| ring.goes_back_to(lsn)).unwrap_or(coarsest);
        let beyond = ring.first(|reached| reached > lsn);
        // What came right behind the newest sample has none of its own.
        beyond.or(self.rings[0].newest()).map_or(self.since, |(_, at)| at)
    }
}

impl Ring {
    fn note(&mut self, end: Lsn, now: Instant) {
        let too_soon = |at: Instant| now.saturating_duration_since(at) < self.spacing;
        match self.newest() {
            Some((lsn, _)) if end <= lsn => return,
            Some((_, at)) if too_soon(at) => {
                self.skipped = Some((end, now));
                return;
            }
            _ => {}
        }
        // Else what came before a quiet time would seem to have come behind it.
        if let Some(skipped) = self.skipped.take().filter(|(_, at)| !too_soon(*at)) {
            self.push(skipped);
        }
        self.push((end, now));
    }

    fn push(&mut self, sample: (Lsn, Instant)) {
        if self.samples.len() >= LagClock::SAMPLES {
            self.forgotten = self.samples.pop_front().map(|(lsn, _)| lsn);
        }
        self.samples.push_back(sample);
    }

    fn newest(&self) -> Option<(Lsn, Instant)> {
        self.samples.back().copied()
    }

    fn forget_beyond(&mut self, end: Lsn) {
        let keep = self.samples.partition_point(|(lsn, _)| *lsn <= end);
        self.samples.truncate(keep);
        self.skipped = self.skipped.filter(|(lsn, _)| *lsn <= end);
    }

    /// Whether no sample that is needed for this position has been forgotten.
    fn goes_back_to(&self, lsn: Lsn) -> bool {
        self.forgotten.is_none_or(|forgotten| forgotten <= lsn)
    }

    /// The oldest sample that has reached what is wanted; `wanted` is true from some position on.
    fn first(&self, wanted: impl Fn(Lsn) -> bool) -> Option<(Lsn, Instant)> {
        self.samples.get(self.samples.partition_point(|(lsn, _)| !wanted(*lsn))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACING: Duration = LagClock::SPACINGS[0];
    const COUNT: u32 = LagClock::SAMPLES as u32;

    #[test]
    fn lag_is_read_from_the_sample_that_covers_the_position() {
        let clock = LagClock::new(Lsn::INVALID);
        let start = Instant::now();
        let at = |n: u32| start + SPACING * n;
        for n in 1..=(COUNT + 10) {
            clock.arrived(Lsn::new(u64::from(n) * 100), at(n));
        }
        let now = at(COUNT + 20);
        let lag = |lsn: u64| clock.since_arrival(Lsn::new(lsn), now);
        assert_eq!(lag(1_000_000), None, "not arrived yet");
        assert_eq!(lag(0), None, "nothing reported");
        assert_eq!(lag(50_000), Some(now - at(500)));
        assert_eq!(lag(49_901), Some(now - at(500)));
        assert_eq!(lag(1), Some(now - at(11)), "older than the ring: its oldest sample");
        // Back to an older position: what arrives there counts.
        clock.reset(Lsn::new(30_000));
        assert_eq!(lag(50_000), None);
        clock.arrived(Lsn::new(40_000), at(COUNT + 15));
        assert_eq!(lag(40_000), Some(SPACING * 5));
    }

    #[test]
    fn who_has_everything_does_not_wait_and_who_lacks_something_waits_ever_longer() {
        let clock = LagClock::new(Lsn::new(100));
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let waiting = |reached, end, seconds| {
            clock.waiting(Lsn::new(reached), Lsn::new(end), at(seconds)).as_secs_f64().round()
        };
        clock.arrived(Lsn::new(200), at(10));
        clock.arrived(Lsn::new(300), at(20));
        // Too soon after the last one for a sample of its own.
        clock.arrived(Lsn::new(310), at(20) + SPACING / 2);
        assert_eq!(waiting(310, 310, 1000), 0.0, "idle");
        assert_eq!(waiting(400, 310, 1000), 0.0, "ahead, as after a restart of the relay");
        assert_eq!(waiting(200, 310, 21), 1.0);
        assert_eq!(waiting(200, 310, 1000), 980.0, "it does not move");
        assert_eq!(waiting(199, 310, 1000), 990.0);
        assert_eq!(waiting(300, 310, 1000), 980.0, "what has no sample came right behind the newest");
        assert_eq!(waiting(50, 310, 1000), 1000.0, "there before the clock began");
        // After a quiet time: what came before it is as old as it is.
        clock.arrived(Lsn::new(400), at(2000));
        assert_eq!(waiting(300, 400, 2001), 1981.0);
        assert_eq!(waiting(310, 400, 2001), 1.0);
    }

    #[test]
    fn who_was_behind_when_a_timeline_was_left_still_is() {
        let clock = LagClock::new(Lsn::new(100));
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let waiting = |reached, end, seconds| {
            clock.waiting(Lsn::new(reached), Lsn::new(end), at(seconds)).as_secs_f64().round()
        };
        for (end, seconds) in [(200, 10), (300, 20), (400, 30)] {
            clock.arrived(Lsn::new(end), at(seconds));
        }
        clock.part(Lsn::new(310), Lsn::new(310), at(100));
        clock.arrived(Lsn::new(350), at(101));
        assert_eq!(waiting(150, 350, 110), 100.0);
        assert_eq!(waiting(310, 350, 110), 9.0, "the other timeline's 400 is gone");
    }

    #[test]
    fn lag_is_known_for_days_of_wal_without_a_pause() {
        let clock = LagClock::new(Lsn::INVALID);
        let start = Instant::now();
        let second = |n: u64| start + Duration::from_secs(n);
        let seconds = 3600 * 24;
        for n in 1..=seconds * 4 {
            clock.arrived(Lsn::new(n * 25), start + Duration::from_millis(n * 250));
        }
        let (end, now) = (Lsn::new(seconds * 100), second(seconds));
        for behind in [1, 30, 60, 600, 4000, 4200, 40_000, 86_000] {
            let reached = Lsn::new((seconds - behind) * 100);
            let told = clock.waiting(reached, end, now).as_secs_f64();
            let (least, most) = (behind as f64 * 0.975 - 0.3, behind as f64);
            assert!((least..=most).contains(&told), "{behind} s behind: {told}");
        }
    }
}
