//! A short run of each drill; `make` has longer ones.

use std::sync::atomic::AtomicBool;

use walrelay_testkit::drill::CrashDrill;
use walrelay_testkit::{Server, on_one_version};

use crate::walrelay;

on_one_version!(no_crash_loses_an_acknowledged_commit);

fn no_crash_loses_an_acknowledged_commit(server: &Server) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let interrupted = AtomicBool::new(false);
    let binary = walrelay();
    let drill =
        CrashDrill { binary: &binary, server, rounds: 24, seed, control: false, interrupted: &interrupted };
    let tally = drill.run();
    println!("{tally}");
    assert!(tally.held() && tally.rounds == 24 && tally.commits > 0 && tally.proofs == 1);
}
