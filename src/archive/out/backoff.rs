//! When to try again.

use std::time::Duration;

/// First pause after a failure.
const FIRST: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// The pause after so many failures in a row, 1 and more: doubling up to a minute, with jitter between half
/// and all of it, so that those who failed together do not come back together.
pub(super) fn pause(failures: u32) -> Duration {
    let full = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(LONGEST);
    let random = getrandom::u32().unwrap_or(u32::MAX);
    full / 2 + full.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        for (failures, full) in [(1, 250), (2, 500), (5, 4000), (9, 60_000), (1000, 60_000)] {
            let pause = pause(failures).as_millis();
            assert!((full / 2..=full).contains(&pause), "{failures}: {pause}");
        }
    }
}
