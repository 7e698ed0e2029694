//! A short run of each drill; `make` has longer ones.

use std::sync::atomic::AtomicBool;

use walrelay_testkit::drill::{CrashDrill, FailoverDrill, FailoverTally, Orders};
use walrelay_testkit::{Server, on_one_version};

use crate::walrelay;

on_one_version!(
    no_crash_loses_an_acknowledged_commit,
    no_failover_loses_an_acknowledged_commit,
    no_failover_with_two_relays_loses_one,
    failovers_without_the_drain_do,
);

fn no_crash_loses_an_acknowledged_commit(server: &Server) {
    let (seed, interrupted, binary) = (fastrand::u64(..), AtomicBool::new(false), walrelay());
    println!("seed {seed}");
    let orders = Orders { binary: &binary, server, seed, control: false, interrupted: &interrupted };
    let drill = CrashDrill { orders, rounds: 24 };
    let tally = drill.run();
    println!("{tally}");
    assert!(tally.held() && tally.rounds == 24 && tally.commits > 0 && tally.proofs == 1);
}

fn failovers(server: &Server, rounds: u64, relays: usize, control: bool) -> FailoverTally {
    let (seed, interrupted, binary) = (fastrand::u64(..), AtomicBool::new(false), walrelay());
    println!("seed {seed}");
    let orders = Orders { binary: &binary, server, seed, control, interrupted: &interrupted };
    let tally = FailoverDrill { orders, rounds, relays }.run();
    println!("{tally}");
    tally
}

fn no_failover_loses_an_acknowledged_commit(server: &Server) {
    let tally = failovers(server, 12, 1, false);
    assert!(tally.held() && tally.rounds == 12 && tally.acknowledged() > 0 && tally.behind > 0);
}

fn no_failover_with_two_relays_loses_one(server: &Server) {
    let tally = failovers(server, 12, 2, false);
    assert!(tally.held() && tally.rounds == 12 && tally.acknowledged() > 0 && tally.behind > 0);
}

/// The drill finds what is lost where the standbys do not drain the relay.
fn failovers_without_the_drain_do(server: &Server) {
    let tally = failovers(server, 4, 2, true);
    assert!(!tally.lost.is_empty() && tally.problems.is_empty());
}
