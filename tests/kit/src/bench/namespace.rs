//! A network of our own.
//!
//! Over loopback the TCP congestion control decides more than the servers do, and what the machine uses otherwise (bbr, say)
//! may pace. As root we start over in a network namespace where it is fixed.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The one that every namespace may choose.
const CONGESTION_CONTROL: &str = "reno";
/// Set when we are in our own network namespace.
const IN_NAMESPACE: &str = "WALRELAY_BENCH_NAMESPACE";

/// Starts this program over in a namespace, where that is possible and has not happened yet.
pub(crate) fn enter() {
    if std::env::var_os(IN_NAMESPACE).is_none() && can_isolate() {
        let mut command = in_namespace("exec \"$0\" \"$@\"");
        let error = command.args(std::env::args_os()).exec();
        eprintln!("could not start over in a network namespace: {error}");
    }
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

/// What the measured connections go through.
pub(crate) fn describe() -> String {
    let control = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    let whose = match std::env::var_os(IN_NAMESPACE) {
        Some(_) => "in a network namespace of its own",
        None => "the system's (run as root to fix it)",
    };
    format!("loopback, TCP congestion control {}, {whose}", control.trim())
}
