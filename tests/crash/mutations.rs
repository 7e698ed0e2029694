//! Stores that were broken on purpose: a crash at one of the operations has to show it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use walrelay::mutation::{self, Mutation};

use super::workload::Workload;
use super::{Case, Mishap, SCHEDULES, run};

/// So many cases are tried.
const BUDGET: usize = 1500;
/// From one operation to the next in a round through all of them: a fault shows at several in a row, as a rule.
const STRIDE: usize = 7;

/// A case finds a mutation if it fails because of it, and holds without it.
fn check(mutation: Mutation) {
    let operations = Workload::new(0).operations().len() as u64;
    let rounds = (1..=STRIDE as u64).flat_map(|first| (first..=operations).step_by(STRIDE));
    let cases = rounds.zip((0..SCHEDULES).cycle()).map(|(operation, seed)| Case {
        mishap: Mishap::Cut,
        operation,
        seed,
    });
    let broken = |case: &Case| {
        mutation::set(Some(mutation));
        let broken = catch_unwind(AssertUnwindSafe(|| run(*case))).is_err();
        mutation::set(None);
        broken
    };
    let found = cases.take(BUDGET).find(broken);
    let case = found.unwrap_or_else(|| panic!("{mutation:?} is not found by {BUDGET} cuts"));
    run(case);
    println!("{mutation:?} is found by {case:?} of {operations} operations");
}

/// Mutations with a test each, those of the archive last.
const TESTED: [Mutation; 5] = [
    Mutation::AckBeforeSync,
    Mutation::ForgetDirectorySync,
    Mutation::CountBeforeTaken,
    Mutation::LetGoBeforeSaved,
    Mutation::RecallUnverified,
];

#[test]
fn each_of_the_archive_is_tested() {
    assert_eq!(TESTED[2..], *Mutation::OF_ARCHIVE);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    check(Mutation::AckBeforeSync);
}

#[test]
fn a_forgotten_sync_of_the_directory_is_found() {
    check(Mutation::ForgetDirectorySync);
}

#[test]
fn counting_what_a_target_has_not_got_is_found() {
    check(Mutation::CountBeforeTaken);
}

#[test]
fn letting_go_of_what_is_not_saved_to_be_archived_is_found() {
    check(Mutation::LetGoBeforeSaved);
}

#[test]
fn passing_on_what_does_not_verify_is_found() {
    check(Mutation::RecallUnverified);
}
