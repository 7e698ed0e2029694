//! A short network drill; `make drill-network FLAPS=10000` is the long one.

use std::sync::atomic::AtomicBool;

use walrelay_testkit::drill::NetworkDrill;
use walrelay_testkit::{Server, on_one_version};

use crate::walrelay;

on_one_version!(lines_go_bad_and_heal);

const FLAPS: usize = 80;

fn lines_go_bad_and_heal(server: &Server) {
    let seed = u64::from(std::process::id());
    let interrupted = AtomicBool::new(false);
    let binary = walrelay();
    let drill = NetworkDrill { binary: &binary, server, flaps: FLAPS, seed, interrupted: &interrupted };
    let tally = drill.run();
    println!("seed {seed}\n{tally}");
    assert!(tally.held(), "seed {seed}: {:#?}", tally.failures);
}
