//! `make drill-crash`: see [`walrelay_testkit::drill`].
//!
//! `drill-crash [--rounds N] [--seed S] [--control]`. Exit code 0 when nothing that was acknowledged is missing. With
//! `--control`, where commits do not wait for the relay, when something was found missing from it.

use std::process::ExitCode;

use walrelay_testkit::drill::{self, CrashDrill, Gear};

fn main() -> ExitCode {
    drill::main("drill-crash", |interrupted| {
        let mut args = drill::Args::of_this_process();
        let rounds = args.number("--rounds", 100)?;
        let gear = Gear::of(args)?;
        let orders = gear.orders(interrupted);
        let tally = CrashDrill { orders, rounds }.run();
        print!("{tally}");
        if orders.control && tally.lost.is_empty() {
            println!("control: commits did not wait for the relay, and yet it had all of them");
        }
        Ok(if orders.control { !tally.lost.is_empty() } else { tally.held() })
    })
}
