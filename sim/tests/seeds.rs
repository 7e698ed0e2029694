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

/// Schedules that once found a fault, of the relay or of the simulation, and how it is found today. A seed is another schedule
/// as soon as the simulation changes, so what stays of a fault is its mutation or its test; these are only more schedules.
const FOUND: [(u64, &str); 6] = [
    (227, "slots came back beyond a parting after a crash: Mutation::ForgetSlotsAtSwitch"),
    (882, "WAL went that a slot needed as it was saved last: Mutation::ForgetSavedSlot"),
    (
        1260,
        "a slot whose making was cut off by a crash was taken for the one before it, by the simulation itself",
    ),
    (
        6314,
        "what a failed sync had begun was gone to two starts later, and lost in a crash: tests/crash/begun.rs",
    ),
    (
        7411,
        "what was left of a lost record parted two histories where WAL ended behind it: tests/crash/lost_record.rs",
    ),
    (
        55559,
        "a segment that was begun had lost its length in a power cut, and the one behind it passed for the end of the WAL: \
         store::tests::lost_files",
    ),
];

#[test]
fn seeds_that_found_something_hold() {
    for (seed, what) in FOUND {
        assert_eq!(simulate(seed, false).violation, None, "seed {seed}: {what}");
    }
}

#[test]
fn a_seed_is_the_same_world_each_time() {
    for seed in SEEDS.take(20) {
        let [one, other] = [0, 1].map(|_| simulate(seed, false));
        assert_eq!((one.hash, one.counts), (other.hash, other.counts), "seed {seed}");
    }
}
