//! `make soak`: see [`walrelay_testkit::drill::Soak`].
//!
//! `soak [--minutes N] [--seed S]`. Exit code 0 when all held.

use std::process::ExitCode;
use std::time::Duration;

use walrelay_testkit::drill::{self, Soak};
use walrelay_testkit::{install, powercut};

fn main() -> ExitCode {
    drill::main("soak", |interrupted| {
        let mut args = drill::Args::of_this_process();
        let minutes: u64 = args.number("--minutes", 10)?;
        let seed = args.number("--seed", fastrand::u64(..))?;
        args.finish()?;
        let server = install::ensure_any().map_err(|error| error.to_string())?;
        println!("PostgreSQL {}, {minutes} minutes, seed {seed}", server.version());
        let time = Duration::from_secs(60 * minutes);
        let binary = powercut::built_relay();
        let tally = Soak { binary: &binary, server: &server, time, seed, interrupted }.run();
        print!("{tally}");
        Ok(tally.held())
    })
}
