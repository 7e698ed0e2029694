//! A short run of each drill; `make` has longer ones.

use std::sync::atomic::AtomicBool;

use walrelay_testkit::drill::{CrashDrill, FailoverDrill, Orders};
use walrelay_testkit::{Server, on_one_version};

use crate::walrelay;

on_one_version!(no_crash_loses_an_acknowledged_commit, no_failover_loses_an_acknowledged_commit);

fn no_crash_loses_an_acknowledged_commit(server: &Server) {
    let (seed, interrupted, binary) = (fastrand::u64(..), AtomicBool::new(false), walrelay());
    println!("seed {seed}");
    let orders = Orders { binary: &binary, server, seed, control: false, interrupted: &interrupted };
    let drill = CrashDrill { orders, rounds: 24 };
    let tally = drill.run();
    println!("{tally}");
    assert!(tally.held() && tally.rounds == 24 && tally.commits > 0 && tally.proofs == 1);
}

/// And the drill finds what is lost where the standbys do not drain the relay.
fn no_failover_loses_an_acknowledged_commit(server: &Server) {
    let (interrupted, binary) = (AtomicBool::new(false), walrelay());
    for (control, rounds, relays) in [(false, 5, 1), (false, 6, 2), (true, 4, 2)] {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let orders = Orders { binary: &binary, server, seed, control, interrupted: &interrupted };
        let tally = FailoverDrill { orders, rounds, relays }.run();
        println!("{tally}");
        match control {
            false => assert!(
                tally.held() && tally.rounds == rounds && tally.acknowledged() > 0 && tally.behind > 0
            ),
            true => assert!(!tally.lost.is_empty() && tally.problems.is_empty()),
        }
    }
}
