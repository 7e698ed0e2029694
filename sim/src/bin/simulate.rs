//! Runs schedules: `simulate [--seeds N | --hours H | --seed S [--trace]] [--from S] [--threads N]`. Prints the seeds that
//! failed; exit status 1 if there is one.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use walrelay_sim::{Counts, Outcome, simulate};

const USAGE: &str = "usage: simulate [--seeds N | --hours H | --seed S [--trace]] [--from S] [--threads N]";
/// So many failures are enough to look at.
const MOST_FAILURES: usize = 20;

#[derive(Debug)]
struct Options {
    seeds: u64,
    until: Option<Instant>,
    seed: Option<u64>,
    is_traced: bool,
    from: u64,
    threads: usize,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match options.seed {
        Some(seed) => replay(seed, options.is_traced),
        None => run(&options),
    }
}

fn options() -> Result<Options, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options { seeds: 1000, until: None, seed: None, is_traced: false, from: 0, threads };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--trace" {
            options.is_traced = true;
            continue;
        }
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{word}: \"{text}\" is no number"));
        match word.as_str() {
            "--seeds" => options.seeds = number(&value)?,
            "--from" => options.from = number(&value)?,
            "--seed" => options.seed = Some(number(&value)?),
            "--threads" => options.threads = number(&value)?.max(1) as usize,
            "--hours" => {
                let hours = value.parse::<f64>().map_err(|_| format!("{word}: \"{value}\" is no number"))?;
                options.until = Some(Instant::now() + Duration::from_secs_f64(hours * 3600.0));
                options.seeds = u64::MAX;
            }
            _ => return Err(format!("{word} is unknown")),
        }
    }
    Ok(options)
}

fn replay(seed: u64, is_traced: bool) -> ExitCode {
    let outcome = simulate(seed, is_traced);
    println!("seed {seed}: {:?}, {} ms, hash {:016X}", outcome.counts, outcome.micros / 1000, outcome.hash);
    match outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("seed {seed} failed: {violation}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> ExitCode {
    let (began, next) = (Instant::now(), AtomicU64::new(options.from));
    let end = options.from.saturating_add(options.seeds);
    let results: Vec<_> = std::thread::scope(|scope| {
        let work = || work(&next, end, options.until);
        let threads: Vec<_> = (0..options.threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join()).collect()
    });
    let (mut total, mut schedules, mut failures) = (Counts::default(), 0, Vec::new());
    for (counts, count, failed) in results {
        total = total.plus(&counts);
        schedules += count;
        failures.extend(failed);
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{schedules} schedules from seed {} in {seconds:.1} s ({:.0} a second), {} failed",
        options.from,
        schedules as f64 / seconds,
        failures.len()
    );
    println!("{total:?}");
    for failure in &failures {
        println!("seed {} failed: {}", failure.seed, failure.violation.as_deref().unwrap_or_default());
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(next: &AtomicU64, end: u64, until: Option<Instant>) -> (Counts, u64, Vec<Outcome>) {
    let (mut total, mut count, mut failures) = (Counts::default(), 0, Vec::new());
    while failures.len() < MOST_FAILURES && until.is_none_or(|until| Instant::now() < until) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            break;
        }
        let outcome = simulate(seed, false);
        total = total.plus(&outcome.counts);
        count += 1;
        if outcome.violation.is_some() {
            failures.push(outcome);
        }
    }
    (total, count, failures)
}
