//! A short network drill; `make drill-network FLAPS=10000` is the long one.

use std::sync::atomic::AtomicBool;

use walrelay_testkit::drill::{NetworkDrill, Orders};
use walrelay_testkit::{Server, on_one_version};

use crate::walrelay;

on_one_version!(lines_go_bad_and_heal);

const FLAPS: usize = 80;

fn lines_go_bad_and_heal(server: &Server) {
    let (seed, interrupted, binary) = (fastrand::u64(..), AtomicBool::new(false), walrelay());
    let orders = Orders { binary: &binary, server, seed, control: false, interrupted: &interrupted };
    let drill = NetworkDrill { orders, flaps: FLAPS, is_busy: true };
    let tally = drill.run();
    println!("seed {seed}\n{tally}");
    assert!(tally.held(), "seed {seed}: {:#?}", tally.failures);
}
