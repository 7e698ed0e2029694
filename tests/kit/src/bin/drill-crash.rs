//! `make drill-crash`: see [`walrelay_testkit::drill`].
//!
//! `drill-crash [--rounds N] [--seed S] [--control]`. Exit code 0 when nothing that was acknowledged is missing. With
//! `--control`, where commits do not wait for the relay, when something was found missing from it.

use std::process::ExitCode;

use walrelay_testkit::drill::{self, CrashDrill};
use walrelay_testkit::{install, powercut};

fn main() -> ExitCode {
    drill::main("drill-crash", |interrupted| {
        let mut args = drill::Args::of_this_process();
        let rounds = args.number("--rounds", 100)?;
        let seed = args.number("--seed", fastrand::u64(..))?;
        let control = args.flag("--control");
        args.finish()?;
        let server = install::ensure_any().map_err(|error| error.to_string())?;
        println!("PostgreSQL {}, seed {seed}", server.version());
        let binary = powercut::built_relay();
        let drill = CrashDrill { binary: &binary, server: &server, rounds, seed, control, interrupted };
        let tally = drill.run();
        print!("{tally}");
        if control && tally.held() {
            println!("control: commits did not wait for the relay, and yet it had all of them");
        }
        Ok(tally.held() != control)
    })
}
