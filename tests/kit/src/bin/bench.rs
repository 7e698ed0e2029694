//! `make bench`, `make bench-quick`, `make bench-profile`: see docs/PERFORMANCE.md.
//!
//! `bench full` writes docs/benchmarks/report.md, `bench quick` prints a table, `bench profile` writes docs/benchmarks/profiles.

use std::process::ExitCode;

fn main() -> ExitCode {
    walrelay_testkit::bench::main()
}
