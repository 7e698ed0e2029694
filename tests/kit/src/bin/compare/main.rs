//! `make bench`: the relay beside a cascading standby, both serving the same stored WAL to the same consumers.
//!
//! `compare [PATH OF walrelay]`. `BENCH_GIB` sets how much WAL is made (default 1), `BENCH_ROUNDS` how often
//! everything is measured (default 3; medians are shown). Consumers drop the WAL in the kernel; with
//! `BENCH_COPY=1` they copy it into their memory first.
//!
//! As root it runs in a network namespace of its own, with a fixed TCP congestion control: over loopback that
//! decides more than the servers do, and what the machine uses otherwise (bbr, say) may pace.

mod drain;
mod report;
mod stage;
mod usage;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use walrelay_testkit::install;

use drain::{copying, drain, memory, memory_of_idle};
use report::Report;
use stage::Stage;

/// Which consumers are served, all at a time.
const CONSUMERS: [usize; 3] = [1, 8, 32];
/// Consumers that wait for WAL, for the memory they take.
const IDLE: usize = 200;
/// The one that every namespace may choose.
const CONGESTION_CONTROL: &str = "reno";
/// Set when we are in our own network namespace.
const IN_NAMESPACE: &str = "WALRELAY_BENCH_NAMESPACE";

fn main() -> ExitCode {
    if std::env::var_os(IN_NAMESPACE).is_none() && can_isolate() {
        let error = isolated().exec();
        eprintln!("could not start over in a network namespace: {error}");
        return ExitCode::FAILURE;
    }
    let server = match install::ensure_any() {
        Ok(server) => server,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("PostgreSQL {}; {}", server.version(), network());
    println!(
        "consumers {}",
        if copying() { "copy the WAL and drop it" } else { "drop the WAL in the kernel" }
    );
    let stage = Stage::set(&server, &binary(), setting("BENCH_GIB", 1.0));
    println!("{:.2} GiB of WAL in {} and {}", stage.gib(), stage.cascade.name, stage.relay.name);
    let mut report = Report::default();
    let rounds = setting("BENCH_ROUNDS", 3.0) as usize;
    for round in 1..=rounds {
        for consumers in CONSUMERS {
            for target in [&stage.cascade, &stage.relay] {
                report.add(target.name, consumers, drain(target, consumers, stage.wal.clone()));
            }
        }
        println!("round {round} of {rounds} done");
    }
    report.show_speed(&CONSUMERS);
    for consumers in CONSUMERS {
        for target in [&stage.cascade, &stage.relay] {
            let name = format!("{}, {consumers} catching up", target.name);
            report::show_memory(&name, consumers, memory(target, consumers, stage.wal.clone()));
        }
    }
    let idle = memory_of_idle(&stage.relay, IDLE, stage.wal.end, || stage.write_a_little());
    report::show_memory(&format!("{}, {IDLE} live", stage.relay.name), IDLE, idle);
    ExitCode::SUCCESS
}

fn setting(name: &str, default: f64) -> f64 {
    let text = std::env::var(name).unwrap_or_default();
    text.parse().ok().filter(|&value| value > 0.0).unwrap_or(default)
}

fn binary() -> PathBuf {
    let built = || install::target_dir().join("release/walrelay");
    std::env::args_os().nth(1).map_or_else(built, PathBuf::from)
}

/// Runs a script in a new network namespace with loopback and our congestion control.
fn in_namespace(script: &str) -> Command {
    let sysctl = "/proc/sys/net/ipv4/tcp_congestion_control";
    let script = format!("ip link set lo up && echo {CONGESTION_CONTROL} > {sysctl} && {script}");
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sh", "-c", &script]).env(IN_NAMESPACE, "1");
    command
}

fn can_isolate() -> bool {
    let tried = in_namespace("true").stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

fn isolated() -> Command {
    let mut command = in_namespace("exec \"$0\" \"$@\"");
    command.args(std::env::args_os());
    command
}

fn network() -> String {
    let control = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    let whose = match std::env::var_os(IN_NAMESPACE) {
        Some(_) => "in a network namespace of our own",
        None => "the system's (run as root to fix it)",
    };
    format!("loopback, TCP congestion control {}, {whose}", control.trim())
}
