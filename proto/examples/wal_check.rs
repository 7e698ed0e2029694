//! Checks WAL segment files: `cargo run --release --example wal_check -- pg_wal/0000000*`
//!
//! Files are taken in the order of their names. For each run of segments that follow one another it
//! prints where the first record starts, where the last valid one ends, and why nothing valid follows.

// A program may read files; the crate does not.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use walrelay_proto::{WalFileName, WalIdentity, WalVerifier};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let mut files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    files.sort_by_key(|file| file.file_name().map(ToOwned::to_owned));
    match check(&files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("wal_check: {failure}");
            ExitCode::FAILURE
        }
    }
}

struct Run {
    first: WalFileName,
    last: WalFileName,
    id: WalIdentity,
    walk: WalVerifier,
}

fn check(files: &[PathBuf]) -> Result<(), Failure> {
    let mut run: Option<Run> = None;
    for file in files {
        let bytes = std::fs::read(file)?;
        let Some((id, name)) = identify(file, &bytes) else {
            println!("{}: not a WAL segment of PostgreSQL 13 or later", file.display());
            continue;
        };
        let mut current = match run.take() {
            Some(mut run) if run.id == id && name.segno == run.last.segno.next() => {
                if run.last.tli != name.tli {
                    run.walk.switch_timeline(name.tli);
                }
                Run { last: name, ..run }
            }
            before => {
                before.iter().for_each(report);
                let walk = WalVerifier::at_segment_start(id, name.tli, name.segno.start(id.seg_size));
                Run { first: name, last: name, id, walk }
            }
        };
        match current.walk.push(&bytes) {
            Ok(()) => run = Some(current),
            Err(error) => {
                report(&current);
                println!("  {error}");
            }
        }
    }
    run.iter().for_each(report);
    Ok(())
}

fn identify(file: &Path, bytes: &[u8]) -> Option<(WalIdentity, WalFileName)> {
    let id = WalIdentity::of_segment(bytes)?;
    let name = file.file_name()?.to_str()?.trim_end_matches(".partial");
    Some((id, WalFileName::parse(name, id.seg_size)?))
}

fn report(run: &Run) {
    let (first, last) = (run.first.format(run.id.seg_size), run.last.format(run.id.seg_size));
    match run.walk.verified_end() {
        Some(end) => println!("{first} to {last}: valid up to {end}"),
        None => println!("{first} to {last}: no record starts here"),
    }
}
