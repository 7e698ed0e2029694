//! The relay's disk forgets what was not flushed: nothing that was confirmed goes with it.

use std::sync::atomic::AtomicBool;

use walrelay_testkit::drill::Orders;
use walrelay_testkit::powercut::{Fate, FileSystem, PowerCuts, Tally};
use walrelay_testkit::{Server, on_one_version};

use crate::walrelay;

on_one_version!(
    ext4_keeps_what_was_confirmed,
    xfs_keeps_what_was_confirmed,
    syncs_that_do_nothing_are_found_out
);

/// `make powercut` has more.
const CUTS: u64 = 15;
/// So many times at most.
const TIMES: usize = 6;

fn cut(server: &Server, file_system: FileSystem, control: bool) -> Tally {
    let (seed, interrupted, binary) = (fastrand::u64(..), AtomicBool::new(false), walrelay());
    println!("seed {seed}");
    let orders = Orders { binary: &binary, server, seed, control, interrupted: &interrupted };
    let tally = PowerCuts { orders, file_system, cuts: CUTS }.run();
    println!("{tally:?}");
    tally
}

fn ext4_keeps_what_was_confirmed(server: &Server) {
    all_is_there(server, FileSystem::Ext4);
}

fn xfs_keeps_what_was_confirmed(server: &Server) {
    all_is_there(server, FileSystem::Xfs);
}

/// Whether a cut meets writes that were not flushed, and slots were made between two, is chance: more is cut until both were so.
fn all_is_there(server: &Server, file_system: FileSystem) {
    let (mut fate, mut slots) = (Fate::default(), 0);
    for _ in 0..TIMES {
        let tally = cut(server, file_system, false);
        assert_eq!(tally.problems, Vec::<String>::new());
        assert!(tally.cuts == CUTS && tally.commits > 0 && tally.compared > 0, "{tally:?}");
        (fate, slots) = (if fate == Fate::default() { tally.fate } else { fate }, slots + tally.slots);
        if fate != Fate::default() && slots > 0 {
            return;
        }
    }
    panic!("{TIMES} times {CUTS} cuts: on its way was {fate:?}, and {slots} slots were made or dropped");
}

/// Of a relay that says so without having synced, something is missing: these cuts do cut.
fn syncs_that_do_nothing_are_found_out(server: &Server) {
    let tally = cut(server, FileSystem::Ext4, true);
    assert!(tally.lost > 0, "{tally:?}");
}
