//! Finds or installs the PostgreSQL servers that the tests run on, and prints where they are.
//!
//! `setup` does so for all tested versions, `setup 17 18` for these.

use std::process::ExitCode;

use walrelay_testkit::install::{self, InstallError};

fn main() -> ExitCode {
    let wanted: Result<Vec<u32>, _> = std::env::args().skip(1).map(|arg| arg.parse()).collect();
    let Ok(mut wanted) = wanted else {
        eprintln!("usage: setup [MAJOR VERSION]...");
        return ExitCode::FAILURE;
    };
    if wanted.is_empty() {
        wanted.extend(install::TESTED);
    }
    // All of them, so that one run tells everything that is missing.
    let missing =
        wanted.into_iter().filter_map(|major| report(major).err()).inspect(|error| eprintln!("{error}"));
    if missing.count() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(major: u32) -> Result<(), InstallError> {
    let server = install::ensure(major)?;
    println!("PostgreSQL {:<7} {}", server.version(), server.bin().display());
    Ok(())
}
