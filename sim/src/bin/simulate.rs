//! Runs schedules: `simulate [--seeds N | --hours H | --seed S [--trace]] [--from S] [--threads N] [--mutation NAME]`.
//! Tells the seeds that failed, each at once; exit status 1 if there is one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use walrelay::mutation::{self, Mutation};
use walrelay_sim::{Counts, simulate};

const USAGE: &str =
    "usage: simulate [--seeds N | --hours H | --seed S [--trace]] [--from S] [--threads N] [--mutation NAME]";
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
    mutation: Option<Mutation>,
}

/// What one thread has come to.
#[derive(Debug, Default)]
struct Work {
    total: Counts,
    schedules: u64,
    failures: Vec<(u64, String)>,
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
        Some(seed) => replay(seed, &options),
        None => run(&options),
    }
}

fn options() -> Result<Options, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (seeds, until, seed, is_traced, from, mutation) = (1000, None, None, false, 0, None);
    let mut options = Options { seeds, until, seed, is_traced, from, threads, mutation };
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
            "--mutation" => options.mutation = Some(mutation_called(&value)?),
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

fn mutation_called(name: &str) -> Result<Mutation, String> {
    let known = Mutation::SIMULATED.iter().copied().find(|mutation| format!("{mutation:?}") == name);
    known.ok_or_else(|| format!("there is no such mutation, but these: {:?}", Mutation::SIMULATED))
}

fn replay(seed: u64, options: &Options) -> ExitCode {
    mutation::set(options.mutation);
    let outcome = simulate(seed, options.is_traced);
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
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads).map(|_| scope.spawn(|| work(&next, options))).collect();
        threads.into_iter().map(|thread| thread.join().expect("each schedule's panic is caught")).collect()
    });
    let (mut total, mut schedules, mut failures) = (Counts::default(), 0, Vec::new());
    for work in results {
        total = total.plus(&work.total);
        schedules += work.schedules;
        failures.extend(work.failures);
    }
    failures.sort();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{schedules} schedules from seed {} in {seconds:.1} s ({:.0} a second), {} failed",
        options.from,
        schedules as f64 / seconds,
        failures.len()
    );
    println!("{total:?}");
    for (seed, violation) in &failures {
        println!("seed {seed} failed: {violation}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(next: &AtomicU64, options: &Options) -> Work {
    mutation::set(options.mutation);
    let end = options.from.saturating_add(options.seeds);
    let is_early = || options.until.is_none_or(|until| Instant::now() < until);
    let mut work = Work::default();
    while work.failures.len() < MOST_FAILURES && is_early() {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            break;
        }
        work.schedules += 1;
        let violation = match catch_unwind(AssertUnwindSafe(|| simulate(seed, false))) {
            Ok(outcome) => {
                work.total = work.total.plus(&outcome.counts);
                outcome.violation
            }
            Err(_) => Some("panic when the world was over".to_owned()),
        };
        if let Some(violation) = violation {
            eprintln!("seed {seed} failed: {violation}");
            work.failures.push((seed, violation));
        }
    }
    work
}
