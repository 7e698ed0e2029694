//! `make drill-network`: see [`walrelay_testkit::drill`].
//!
//! `drill-network [--flaps N] [--seed S] [--control]`. Exit code 0 when everything held. With `--control`, where bits are
//! also flipped for a consumer that looks at nothing, when it was found to have other bytes.

use std::process::ExitCode;
use std::time::Instant;

use walrelay_testkit::drill::{self, Gear, NetworkDrill};

fn main() -> ExitCode {
    drill::main("drill-network", |interrupted| {
        let mut args = drill::Args::of_this_process();
        let flaps = args.number("--flaps", 1000)?;
        let gear = Gear::of(args)?;
        let (orders, begun) = (gear.orders(interrupted), Instant::now());
        let tally = NetworkDrill { orders, flaps, is_busy: false }.run();
        print!("{tally}");
        println!("in {} s", begun.elapsed().as_secs());
        if orders.control && tally.different.is_empty() {
            println!("control: flipped bits reached a consumer, and yet its copy was the same");
        }
        Ok(if orders.control { !tally.different.is_empty() } else { tally.held() })
    })
}
