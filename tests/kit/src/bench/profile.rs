//! `make bench-profile`: where the relay's CPU time goes, as `perf` sees it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::client::Client;
use super::latency::COMMIT;
use super::settings::Settings;
use super::stage::{ALL, Middle, RELAY_NAME, Stage, consumer};
use super::{head, helpers, poll, server};
use crate::account::tied_command;
use crate::process::Process;
use crate::{Scratch, Signal, tools};

const HEAD: &str = "Where the relay's CPU time goes (`make bench-profile`), the most first. Where there are no counters of the processor, as in \
                    most virtual machines, what runs with interrupts off is counted where they are switched on again.";
/// Between fields of a report.
const SEPARATOR: &str = "~";
/// Functions shown.
const MOST: usize = 15;
/// How long each is watched.
const SPAN: Duration = Duration::from_secs(6);

/// Writes a table of the functions that took most, for each kind of work.
///
/// # Errors
/// When there is no perf, or the tables cannot be written.
pub(crate) fn run() -> Result<(), String> {
    let settings = Settings::of_environment(true)?;
    let dir = settings.out.join("profiles");
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    helpers::version("perf", "--version").ok_or("perf is not installed (Debian: linux-perf)")?;
    let mut stage = Stage::set(&server()?, &settings);
    stage.bring(Middle::Relay);
    let wal = stage.wal.clone();
    let address = stage.relay_address();
    let stored = watch(stage.relay.pid(), |over| {
        while !over.load(Ordering::Relaxed) {
            let mut consumer = consumer(address);
            consumer.start(wal.start).expect("the relay has it");
            consumer.drain(wal.end).expect("the relay sends it");
        }
    })?;
    save(&dir, "stored", "Stored WAL to one consumer", &stored)?;
    stage.wait_for_commits_of(RELAY_NAME);
    let live = watch(stage.relay.pid(), |over| commit(&mut stage.client(), over))?;
    stage.wait_for_nobody();
    save(&dir, "live", "Synchronous commits, one after the other", &live)?;
    let mut relay = stage.new_relay(ALL).name("profiled").start();
    let (port, text) = (stage.primary.port(), "repeat(md5(random()::text), 30000)");
    let ingestion = watch(relay.pid(), |over| {
        let mut client = Client::connect(port).expect("the primary trusts us");
        while !over.load(Ordering::Relaxed) {
            client.run(&format!("select pg_logical_emit_message(false, 'bulk', {text})")).expect("it writes");
        }
    })?;
    relay.terminate();
    save(&dir, "ingestion", "Ingestion of as much as one client of the primary writes", &ingestion)
}

fn commit(client: &mut Client, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        client.run(COMMIT).expect("the primary commits");
    }
}

/// What perf reports of a process while there is work for it.
fn watch(pid: u32, work: impl FnOnce(&AtomicBool) + Send) -> Result<String, String> {
    let scratch = Scratch::new("perf");
    let data = scratch.join("perf.data");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| work(&over));
        let mut command = tied_command(tools::path("perf").unwrap_or_default());
        command.args(["record", "-q", "-F", "997", "-p", &pid.to_string(), "-o"]).arg(&data);
        let mut perf = Process::spawn("perf", command, &scratch.join("log"));
        let began = Instant::now();
        poll("enough to be seen", || (began.elapsed() >= SPAN || !perf.is_running()).then_some(()));
        perf.end_with(Signal::INT);
        over.store(true, Ordering::Relaxed);
    });
    let mut report = Command::new(tools::path("perf").unwrap_or_default());
    report.args([
        "report",
        "--stdio",
        "--no-children",
        "-q",
        "-F",
        "overhead,symbol,dso",
        "-t",
        SEPARATOR,
        "-i",
    ]);
    report.arg(&data);
    let output = report.output().map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn save(dir: &Path, name: &str, title: &str, report: &str) -> Result<(), String> {
    let path = dir.join(format!("{name}.md"));
    let text = format!("# {title}\n\nCommit {}. {HEAD}\n\n{}", head::commit(), table(report));
    println!("{text}");
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// The first lines of perf's report as a table.
fn table(report: &str) -> String {
    let mut text = "| % | function | in |\n|---|---|---|\n".to_owned();
    for line in report.lines().filter_map(line).take(MOST) {
        let _ = writeln!(text, "| {} | `{}` | {} |", line.0, line.1, line.2);
    }
    text
}

/// `12.34%~[k] function~object`
fn line(text: &str) -> Option<(&str, String, &str)> {
    let mut fields = text.split(SEPARATOR).map(str::trim);
    let part = fields.next()?.strip_suffix('%')?;
    let symbol = fields.next()?.trim_start_matches("[k] ").trim_start_matches("[.] ").replace('|', "\\|");
    Some((part, symbol, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_perf() {
        let report = "    41.50%~[k] rep_movs_alternative    ~[kernel.kallsyms]  \n\n     3.01%~[.] <a as b>::c~walrelay\nx\n";
        let shown = table(report);
        assert!(shown.contains("| 41.50 | `rep_movs_alternative` | [kernel.kallsyms] |"), "{shown}");
        assert!(shown.ends_with("| 3.01 | `<a as b>::c` | walrelay |\n"), "{shown}");
    }
}
