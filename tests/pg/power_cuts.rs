//! The relay's disk forgets what was not flushed: nothing that was confirmed goes with it.

use std::sync::atomic::AtomicBool;

use walrelay_testkit::drill::Orders;
use walrelay_testkit::powercut::{FileSystem, PowerCuts, Tally};
use walrelay_testkit::{Server, on_one_version};

use crate::walrelay;

on_one_version!(
    ext4_keeps_what_was_confirmed,
    xfs_keeps_what_was_confirmed,
    syncs_that_do_nothing_are_found_out
);

/// `make powercut` has more.
const CUTS: u64 = 15;

fn cut(server: &Server, file_system: FileSystem, control: bool) -> Tally {
    let (seed, interrupted, binary) = (fastrand::u64(..), AtomicBool::new(false), walrelay());
    println!("seed {seed}");
    let orders = Orders { binary: &binary, server, seed, control, interrupted: &interrupted };
    let tally = PowerCuts { orders, file_system, cuts: CUTS }.run();
    println!("{tally:?}");
    tally
}

fn ext4_keeps_what_was_confirmed(server: &Server) {
    all_is_there(&cut(server, FileSystem::Ext4, false));
}

fn xfs_keeps_what_was_confirmed(server: &Server) {
    all_is_there(&cut(server, FileSystem::Xfs, false));
}

fn all_is_there(tally: &Tally) {
    assert_eq!(tally.problems, Vec::<String>::new());
    assert!(tally.cuts == CUTS && tally.commits > 0 && tally.slots > 0 && tally.compared > 0, "{tally:?}");
    assert_ne!(tally.fate, walrelay_testkit::powercut::Fate::default(), "something was on its way at a cut");
}

/// Of a relay that says so without having synced, something is missing: these cuts do cut.
fn syncs_that_do_nothing_are_found_out(server: &Server) {
    let tally = cut(server, FileSystem::Ext4, true);
    assert!(tally.lost > 0, "{tally:?}");
}
