//! `make powercut`: see [`walrelay_testkit::powercut`].
//!
//! `powercut [--cuts N] [--fs ext4|xfs] [--seed S] [--control]`, both file systems in turn unless one is named. Exit code 0
//! when all that was confirmed was found; with `--control`, where the relay's syncs do nothing, when some of it was lost.

use std::process::ExitCode;

use walrelay_testkit::drill::{self, Gear};
use walrelay_testkit::powercut::{FileSystem, PowerCuts, Tally};

fn main() -> ExitCode {
    drill::main("powercut", |interrupted| {
        let mut args = drill::Args::of_this_process();
        let cuts = args.number("--cuts", 100)?;
        let one: Option<FileSystem> = args.value("--fs").map(|name| name.parse()).transpose()?;
        let gear = Gear::of(args)?;
        let orders = gear.orders(interrupted);
        let mut held = true;
        for file_system in [FileSystem::Ext4, FileSystem::Xfs] {
            if one.is_some_and(|one| one != file_system) {
                continue;
            }
            let tally = PowerCuts { orders, file_system, cuts }.run();
            tell(file_system, &tally);
            held &= if orders.control { tally.lost > 0 } else { tally.problems.is_empty() };
        }
        Ok(held)
    })
}

fn tell(file_system: FileSystem, tally: &Tally) {
    let Tally { cuts, in_starts, fate, writes, flushes, commits, slots, compared, lost, problems } = tally;
    for problem in problems {
        println!("✗ {problem}");
    }
    println!(
        "{file_system}: {cuts} power cuts, {in_starts} of them during a start; {writes} writes and {flushes} flushes of the \
         disk; of the writes not flushed at a cut {} kept, {} torn, {} lost; {commits} acknowledged commits, {slots} slots \
         made or dropped, {} MB compared; {lost} of what was confirmed lost, {} problems",
        fate.kept,
        fate.torn,
        fate.lost,
        compared >> 20,
        problems.len()
    );
}
