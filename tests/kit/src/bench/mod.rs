//! `make bench`: what the relay costs and how fast it is, beside others that do the same or less.
//!
//! One run measures every row of `table.rs`: a primary, a relay and a cascading standby with the same WAL on the same disk,
//! `pg_receivewal`, a TCP proxy where one is installed, and ceilings: a bare `sendfile` loop, and a standby that stores nothing.
//! They take turns, round after round; medians are shown, and what is compared is compared within one run. Nothing here insists
//! on a time: what falls short is said in the report.
//!
//! Whatever is started is ended with the value that owns it, by its pid.

mod client;
mod commits;
mod fan;
mod figures;
mod flame;
mod head;
mod herd;
mod ingestion;
mod latency;
mod levels;
mod numbers;
mod plot;
mod profile;
mod programs;
mod report;
mod restore;
mod sendfile;
mod settings;
mod silent;
mod stage;
mod start;
mod stored;
mod storing;
mod table;
mod thousand;
mod usage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::namespace;
use crate::wait::PATIENCE;
use crate::{Server, install};

use figures::Figures;
use settings::Settings;
use stage::Stage;

/// The version that is compared with, where it is there.
const MAJOR: u32 = 17;

/// A run: whom it measures, for how long, and what came out.
struct Bench {
    settings: Settings,
    stage: Stage,
    figures: Figures,
    /// Parts that could not be measured to their end.
    failed: Vec<&'static str>,
}

/// Runs what the arguments say: `full`, `quick` or `profile`, or one of the parts that run in processes of their own.
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["full"] => isolated(|| run(false)),
        ["quick"] => isolated(|| run(true)),
        ["profile"] => isolated(profile::run),
        ["sendfile", port, dir, end] => serve(port, dir, end),
        ["fan", port, upstream, start] => fan::serve(port, upstream, start),
        ["store", file, bytes, port, name, start] => storing::store(file, bytes, port, name, start, false),
        ["store-bulk", file, bytes, port, name, start] => {
            storing::store(file, bytes, port, name, start, true)
        }
        ["nothing", port, name, start] => silent::answer(port, name, start),
        _ => Err("bench full|quick|profile".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn isolated(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    namespace::enter();
    work()
}

fn serve(port: &str, dir: &str, end: &str) -> Result<(), String> {
    let port = port.parse().map_err(|_| "no port")?;
    let end = end.parse().map_err(|_| "no position")?;
    sendfile::serve(port, PathBuf::from(dir), programs::seg_size(), end).map_err(|error| error.to_string())
}

fn server() -> Result<Server, String> {
    install::find(MAJOR).map_or_else(install::ensure_any, Ok).map_err(|error| error.to_string())
}

fn run(quick: bool) -> Result<(), String> {
    let (began, settings) = (Instant::now(), Settings::of_environment(quick)?);
    raise_descriptors();
    let server = server()?;
    println!("PostgreSQL {}; {}", server.version(), namespace::describe());
    let stage = Stage::set(&server, &settings);
    println!("{:.0} s: {:.2} GiB of WAL made", began.elapsed().as_secs_f64(), stage.gib());
    let mut bench = Bench { settings, stage, figures: Figures::default(), failed: Vec::new() };
    for (id, measure) in PARTS {
        let is_quick = ["stored", "ingestion", "latency-1", "commit-1"].contains(&id);
        if bench.settings.wants(id) && (is_quick || !quick) {
            attempt(&mut bench, id, |bench| measure(bench, &server));
            println!("{:.0} s: {id} done", began.elapsed().as_secs_f64());
        }
    }
    print!("{}\n{}", report::rows(&bench.figures), report::targets(&bench.figures));
    if !quick {
        let head = head::text(&server, &bench, began.elapsed());
        let path = report::write(&bench.settings.out, &bench.settings.only.join("-"), &head, &bench.figures)?;
        println!("\n{} written", path.display());
    }
    println!("{:.0} s in all", began.elapsed().as_secs_f64());
    if bench.failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", bench.failed.join(", "))) }
}

/// A thousand consumers take more than the usual limit has.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Where that is not allowed, it may be enough all the same.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// What fails does not take the others' figures with it.
fn attempt(bench: &mut Bench, id: &'static str, measure: impl FnOnce(&mut Bench)) {
    if catch_unwind(AssertUnwindSafe(|| measure(bench))).is_err() {
        bench.failed.push(id);
        // Commits may be waiting for somebody who has gone.
        let _ = catch_unwind(AssertUnwindSafe(|| bench.stage.wait_for_nobody()));
    }
}

type Measure = fn(&mut Bench, &Server);

/// In this order: ingestion before any checkpoint, so that slots may begin where the WAL does.
const PARTS: [(&str, Measure); 12] = [
    ("stored", |bench, _| stored::measure(bench)),
    ("ingestion", |bench, _| ingestion::measure(bench)),
    ("latency-1", |bench, _| latency::measure(bench, "latency-1", 1)),
    ("latency-32", |bench, _| latency::measure(bench, "latency-32", 32)),
    ("live", |bench, _| latency::measure_live(bench)),
    ("commit-1", |bench, _| commits::measure(bench, "commit-1", 1)),
    ("commit-32", |bench, _| commits::measure(bench, "commit-32", 32)),
    ("levels", |bench, _| levels::measure(bench)),
    ("thousand", |bench, _| thousand::measure(bench)),
    ("stall", |bench, _| commits::measure_stall(bench)),
    ("restore", restore::measure),
    ("start", start::measure),
];

/// Calls `attempt` every other millisecond until it gives a value.
///
/// # Panics
/// When [`PATIENCE`] is over.
fn poll<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        park_timeout(Duration::from_millis(2));
    }
}
