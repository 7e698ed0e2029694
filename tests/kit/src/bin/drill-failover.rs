//! `make drill-failover`: see [`walrelay_testkit::drill`].
//!
//! `drill-failover [--rounds N] [--relays 1|2] [--tool patroni|repmgr] [--pg MAJOR] [--seed S] [--control]`. Exit code 0 when nothing that
//! was acknowledged is missing. With `--control`, where standbys do not drain the relay, when something was found missing. With
//! `--tool` that promotes by itself, and there is one relay. As root all of it happens in a network namespace.

use std::process::ExitCode;

use walrelay_testkit::drill::{self, FailoverDrill, FailoverTally, Gear, ManagedDrill, Tool};
use walrelay_testkit::{namespace, repmgr};

fn main() -> ExitCode {
    namespace::enter();
    drill::main("drill-failover", |interrupted| {
        let mut args = drill::Args::of_this_process();
        let rounds = args.number("--rounds", 100)?;
        let relays = args.number("--relays", 1)?;
        if !(1..=2).contains(&relays) {
            return Err(format!("--relays {relays}: one or two"));
        }
        let tool = match args.value("--tool").as_deref() {
            None => None,
            Some("patroni") => Some(Tool::Patroni),
            Some("repmgr") => Some(Tool::Repmgr),
            Some(other) => return Err(format!("--tool {other}: patroni or repmgr")),
        };
        let major = args.number("--pg", if tool == Some(Tool::Repmgr) { repmgr::MAJOR } else { 0 })?;
        let gear = if major == 0 { Gear::of(args)? } else { Gear::on_version(args, major)? };
        let orders = gear.orders(interrupted);
        if orders.control && tool.is_some() {
            return Err("there is no control with a tool".to_owned());
        }
        let tally = match tool {
            None => FailoverDrill { orders, rounds, relays }.run(),
            Some(tool) => ManagedDrill { orders, rounds, tool }.run(),
        };
        print!("{tally}");
        tell_of_control(orders.control, &tally);
        Ok(if orders.control { !tally.lost.is_empty() } else { tally.held() })
    })
}

fn tell_of_control(control: bool, tally: &FailoverTally) {
    if control && tally.lost.is_empty() {
        println!("control: standbys did not drain the relay, and yet they had everything");
    }
}
