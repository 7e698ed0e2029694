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
use super::{flame, head, poll, programs, server};
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
    programs::version("perf", "--version").ok_or("perf is not installed (Debian: linux-perf)")?;
    let mut stage = Stage::set(&server()?, &settings);
    stage.bring(Middle::Relay);
    let wal = stage.wal.clone();
    let address = stage.relay_address();
    let stored = watch("Stored WAL to one consumer", stage.relay.pid(), |over| {
        while !over.load(Ordering::Relaxed) {
            let mut consumer = consumer(address);
            consumer.start(wal.start).expect("the relay has it");
            consumer.drain(wal.end).expect("the relay sends it");
        }
    })?;
    save(&dir, "stored", &stored)?;
    stage.wait_for_commits_of(RELAY_NAME);
    let live = watch("Synchronous commits, one after the other", stage.relay.pid(), |over| {
        commit(&mut stage.client(), over)
    })?;
    stage.wait_for_nobody();
    save(&dir, "live", &live)?;
    let mut relay = stage.new_relay(ALL).name("profiled").start();
    let (port, text) = (stage.primary.port(), "repeat(md5(random()::text), 30000)");
    let ingestion = watch("Ingestion of as much as one client of the primary writes", relay.pid(), |over| {
        let mut client = Client::connect(port).expect("the primary trusts us");
        while !over.load(Ordering::Relaxed) {
            client.run(&format!("select pg_logical_emit_message(false, 'bulk', {text})")).expect("it writes");
        }
    })?;
    relay.terminate();
    save(&dir, "ingestion", &ingestion)
}

fn commit(client: &mut Client, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        client.run(COMMIT).expect("the primary commits");
    }
}

/// What perf has seen.
struct Seen {
    title: &'static str,
    report: String,
    flames: String,
}

/// What perf sees of a process while there is work for it.
fn watch(title: &'static str, pid: u32, work: impl FnOnce(&AtomicBool) + Send) -> Result<Seen, String> {
    let scratch = Scratch::new("perf");
    let data = scratch.join("perf.data");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| work(&over));
        let mut command = tied_command(tools::path("perf").unwrap_or_default());
        // Most of the program has no frame pointers.
        let how = ["record", "-q", "-F", "997", "--call-graph", "dwarf,16384", "-p", &pid.to_string(), "-o"];
        command.args(how).arg(&data);
        let mut perf = Process::spawn("perf", command, &scratch.join("log"));
        let began = Instant::now();
        poll("enough to be seen", || (began.elapsed() >= SPAN || !perf.is_running()).then_some(()));
        perf.end_with(Signal::INT);
        over.store(true, Ordering::Relaxed);
    });
    let columns = ["--no-children", "-g", "none", "-F", "overhead,symbol,dso", "-t", SEPARATOR];
    let report = said(
        Command::new(tools::path("perf").unwrap_or_default())
            .arg("report")
            .args(["--stdio", "-q"])
            .args(columns)
            .arg("-i")
            .arg(&data),
    )?;
    let fields = ["script", "-F", "comm,ip,sym", "--no-inline", "-i"];
    let script = said(Command::new(tools::path("perf").unwrap_or_default()).args(fields).arg(&data))?;
    Ok(Seen { title, report, flames: flame::draw(title, &script) })
}

fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn save(dir: &Path, name: &str, seen: &Seen) -> Result<(), String> {
    let (title, commit) = (seen.title, head::commit());
    let text =
        format!("# {title}\n\nCommit {commit}. {HEAD}\n\n![{title}]({name}.svg)\n\n{}", table(&seen.report));
    println!("{text}");
    for (end, content) in [("md", &text), ("svg", &seen.flames)] {
        let path = dir.join(format!("{name}.{end}"));
        fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
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
