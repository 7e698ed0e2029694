//! `make drill-network`: see [`walrelay_testkit::drill`].
//!
//! `drill-network [--flaps N] [--seed S]`. Exit code 0 when everything held.

use std::process::ExitCode;
use std::time::Instant;

use walrelay_testkit::drill::{self, NetworkDrill};
use walrelay_testkit::{install, powercut};

fn main() -> ExitCode {
    drill::main("drill-network", |interrupted| {
        let mut args = drill::Args::of_this_process();
        let flaps = args.number("--flaps", 1000)?;
        let seed = args.number("--seed", fastrand::u64(..))?;
        args.finish()?;
        let server = install::ensure_any().map_err(|error| error.to_string())?;
        println!("PostgreSQL {}, seed {seed}", server.version());
        let (binary, begun) = (powercut::built_relay(), Instant::now());
        let drill = NetworkDrill { binary: &binary, server: &server, flaps, seed, interrupted };
        let tally = drill.run();
        print!("{tally}");
        println!("in {} s", begun.elapsed().as_secs());
        Ok(tally.held())
    })
}
