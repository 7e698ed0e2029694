//! Deliberately broken builds are caught: each promise broken in one place, and after how many schedules that shows.

use walrelay::mutation::{self, Mutation};
use walrelay_sim::{Outcome, simulate};

/// Within so many schedules each is found; some minutes of `make simulate` have as many.
const BUDGET: u64 = 12_000;

fn broken(mutation: Mutation, seed: u64) -> Outcome {
    mutation::set(Some(mutation));
    let outcome = simulate(seed, false);
    mutation::set(None);
    outcome
}

/// A schedule finds a mutation if it fails because of it: without it, it holds. `hint` is a schedule not long before the one
/// that has found it last, so that those before need not be gone through each time.
fn check(mutation: Mutation, hint: u64) {
    let finds = |seed: &u64| {
        broken(mutation, *seed).violation.is_some() && simulate(*seed, false).violation.is_none()
    };
    let seed = (hint..BUDGET).chain(0..hint).find(finds);
    let seed = seed.unwrap_or_else(|| panic!("{mutation:?} is not found in {BUDGET} schedules"));
    let violation = broken(mutation, seed).violation;
    println!("{mutation:?} is found by schedule {}: {}", seed + 1, violation.unwrap_or_default());
}

macro_rules! found {
    ($($name:ident: $mutation:ident from $hint:literal),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                check(Mutation::$mutation, $hint);
            }
        )*

        #[test]
        fn each_has_its_test() {
            assert_eq!([$(Mutation::$mutation),*], Mutation::SIMULATED);
        }
    };
}

found! {
    an_acknowledgement_before_the_sync: AckBeforeSync from 0,
    a_forgotten_sync_of_the_directory: ForgetDirectorySync from 0,
    a_name_before_the_sync: NameBeforeSync from 0,
    forwarding_what_is_not_verified: ForwardUnverified from 0,
    showing_an_unfinished_record: ShowUnfinished from 0,
    removing_what_a_saved_slot_needs: ForgetSavedSlot from 8700,
    slots_that_are_not_saved_before_a_switch: ForgetSlotsAtSwitch from 0,
    slots_that_stay_behind_a_switch: ForgetClamp from 0,
    an_answer_before_a_slot_is_saved: AnswerBeforeSlotSaved from 0,
    a_switch_that_is_not_noted: ForgetNote from 900,
    going_on_after_a_failed_sync: GoOnAfterFailedSync from 0,
    believing_what_was_not_synced: BelieveUnsynced from 300,
    feedback_that_leaves_a_consumer_out: ForgetFeedback from 0,
    a_walsender_that_goes_on_without_its_slot: ForgetEviction from 1600,
    members_that_count_for_the_next_timeline: KeepMembersAtSwitch from 0,
    a_slot_that_is_made_where_another_one_was: ReuseSlotPosition from 0,
}
