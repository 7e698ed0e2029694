//! `make soak`: see [`walrelay_testkit::drill::Soak`].
//!
//! `soak [--minutes N] [--seed S] [--control]`. Exit code 0 when all held. With `--control`, where commits do not wait for the
//! relay, when some were lost.

use std::process::ExitCode;
use std::time::Duration;

use walrelay_testkit::drill::{self, Gear, Soak};

fn main() -> ExitCode {
    drill::main("soak", |interrupted| {
        let mut args = drill::Args::of_this_process();
        let minutes: u64 = args.number("--minutes", 10)?;
        let gear = Gear::of(args)?;
        let orders = gear.orders(interrupted);
        let tally = Soak { orders, time: Duration::from_secs(60 * minutes) }.run();
        print!("{tally}");
        if orders.control && tally.lost.is_empty() {
            println!("control: commits did not wait for the relay, and yet none was lost");
        }
        Ok(if orders.control { !tally.lost.is_empty() } else { tally.held() })
    })
}
