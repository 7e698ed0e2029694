//! `make drill-failover`: see [`walrelay_testkit::drill`].
//!
//! `drill-failover [--rounds N] [--relays 1|2] [--seed S] [--control]`. Exit code 0 when nothing that was acknowledged is missing. With
//! `--control`, where standbys do not drain the relay, when something was found missing.

use std::process::ExitCode;

use walrelay_testkit::drill::{self, FailoverDrill, Gear};

fn main() -> ExitCode {
    drill::main("drill-failover", |interrupted| {
        let mut args = drill::Args::of_this_process();
        let rounds = args.number("--rounds", 100)?;
        let relays = args.number("--relays", 1)?;
        if !(1..=2).contains(&relays) {
            return Err(format!("--relays {relays}: one or two"));
        }
        let gear = Gear::of(args)?;
        let orders = gear.orders(interrupted);
        let tally = FailoverDrill { orders, rounds, relays }.run();
        print!("{tally}");
        if orders.control && tally.lost.is_empty() {
            println!("control: standbys did not drain the relay, and yet they had everything");
        }
        Ok(if orders.control { !tally.lost.is_empty() } else { tally.held() })
    })
}
