//! Schedules that have to hold.

use walrelay_sim::simulate;

/// Schedules from here on, each time the same ones. More of them: `make simulate`.
const SEEDS: std::ops::Range<u64> = 0..200;

#[test]
fn all_seeds_hold() {
    let failures: Vec<_> =
        SEEDS.map(|seed| simulate(seed, false)).filter(|outcome| outcome.violation.is_some()).collect();
    assert!(failures.is_empty(), "replay with `make simulate SEED=...`: {failures:#?}");
}

#[test]
fn a_seed_is_the_same_world_each_time() {
    for seed in SEEDS.take(20) {
        let [one, other] = [0, 1].map(|_| simulate(seed, false));
        assert_eq!((one.hash, one.counts), (other.hash, other.counts), "seed {seed}");
    }
}
