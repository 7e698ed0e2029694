//! What a report begins with: when, on what, and of what.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::{Bench, programs};
use crate::Server;
use crate::namespace;

/// Lines in Markdown.
pub(crate) fn text(server: &Server, bench: &Bench, took: Duration) -> String {
    let settings = &bench.settings;
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let facts = [
        ("Date", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("Commit", commit()),
        ("walrelay", said(&settings.binary.display().to_string(), &["--version"]) + whose()),
        ("Machine", format!("{cpus} CPUs, {}; {}", cpu_model(), memory())),
        ("Kernel", said("uname", &["-srm"])),
        ("Load, with that of the run", format!("{} (last minute, 5, 15)", load())),
        ("Network", namespace::describe()),
        ("File system", said("df", &["--output=fstype", &std::env::temp_dir().display().to_string()])),
        ("PostgreSQL", server.version().to_owned()),
        ("haproxy", programs::version("haproxy", "-v").unwrap_or("not installed".to_owned())),
        ("pgBackRest", programs::version("pgbackrest", "version").unwrap_or("not installed".to_owned())),
        (
            "WAL",
            format!(
                "{:.2} GiB of pgbench's: bulk loads, index builds, small transactions; in the page cache unless said otherwise",
                bench.stage.gib()
            ),
        ),
        (
            "Command",
            format!(
                "`make bench` (BENCH_GIB={}, BENCH_ROUNDS={}, BENCH_SECONDS={}, BENCH_STALL_MINUTES={}); took {} s",
                settings.gib,
                settings.rounds,
                settings.span.as_secs_f64(),
                settings.stall.as_secs_f64() / 60.0,
                took.as_secs()
            ),
        ),
    ];
    let failed = match &bench.failed[..] {
        [] => String::new(),
        parts => format!("\n**Failed, and not measured to the end: {}.**\n", parts.join(", ")),
    };
    let lines = facts.map(|(what, is)| format!("| {what} | {is} |\n"));
    format!(
        "| | |\n|---|---|\n{}\nMedians of all rounds; who is compared takes turns. Servers, consumers and clients share the machine. CPU: user and \
         system time of the server's whole process tree.\n{failed}",
        lines.concat()
    )
}

/// What was built, if that was built here.
pub(crate) fn commit() -> String {
    said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude", "*"])
}

fn whose() -> &'static str {
    match std::env::var_os("WALRELAY_BIN") {
        Some(_) => "; the program of WALRELAY_BIN, which may be of another commit",
        None => "",
    }
}

/// The last line of what a program says.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().last().map_or("unknown".to_owned(), |line| line.trim().to_owned())
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown".to_owned(), |(_, model)| model.to_owned())
}

fn memory() -> String {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    total.map_or("memory unknown".to_owned(), |kilobytes| format!("{} GB", kilobytes / 1_000_000))
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(", ")
}
