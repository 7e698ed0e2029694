//! Medians and percentiles.

use std::time::Duration;

/// The median; of an even count the upper one of the two in the middle. `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    at(values, 0.5)
}

/// The value below which this part of all lies, `0.0..=1.0`.
pub(crate) fn at(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * part) as usize;
    sorted.get(rank.min(sorted.len().saturating_sub(1))).copied()
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 3.0, 4.0]), Some(3.0));
        let hundred: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert_eq!(
            (at(&hundred, 0.99), at(&hundred, 1.0), at(&hundred, 0.0)),
            (Some(99.0), Some(99.0), Some(0.0))
        );
    }
}
