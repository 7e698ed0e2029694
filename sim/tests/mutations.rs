//! Deliberately broken builds are caught: each promise broken in one place, and after how many schedules that shows.

use walrelay::mutation::{self, Mutation};
use walrelay_sim::simulate;

/// Within so many schedules each is found; far fewer than a minute of `make simulate` has.
const BUDGET: u64 = 2000;

fn check(mutation: Mutation) {
    mutation::set(Some(mutation));
    let found = (0..BUDGET)
        .map(|seed| simulate(seed, false))
        .find_map(|outcome| outcome.violation.map(|violation| (outcome.seed, violation)));
    mutation::set(None);
    let (seed, violation) =
        found.unwrap_or_else(|| panic!("{mutation:?} is not found in {BUDGET} schedules"));
    println!("{mutation:?} is found by schedule {}: {violation}", seed + 1);
}

macro_rules! found {
    ($($name:ident: $mutation:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                check(Mutation::$mutation);
            }
        )*

        #[test]
        fn each_has_its_test() {
            assert_eq!([$(Mutation::$mutation),*], Mutation::ALL);
        }
    };
}

found! {
    an_acknowledgement_before_the_sync: AckBeforeSync,
    a_forgotten_sync_of_the_directory: ForgetDirectorySync,
    a_name_before_the_sync: NameBeforeSync,
    forwarding_what_is_not_verified: ForwardUnverified,
    showing_an_unfinished_record: ShowUnfinished,
    removing_what_a_saved_slot_needs: ForgetSavedSlot,
    slots_that_are_not_saved_before_a_switch: ForgetSlotsAtSwitch,
    slots_that_stay_behind_a_switch: ForgetClamp,
    an_answer_before_a_slot_is_saved: AnswerBeforeSlotSaved,
    a_switch_that_is_not_noted: ForgetNote,
    going_on_after_a_failed_sync: GoOnAfterFailedSync,
    believing_what_was_not_synced: BelieveUnsynced,
}
