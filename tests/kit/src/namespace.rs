//! A network of our own, for a whole program and all that it starts.
//!
//! Over loopback the TCP congestion control decides more than the servers do, and what the machine uses otherwise (bbr, say)
//! may pace. As root we start over in a network namespace where it is fixed, and where packets can be dropped.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::tools;

/// The one that every namespace may choose.
const CONGESTION_CONTROL: &str = "reno";
/// Set when we are in our own network namespace.
const IN_NAMESPACE: &str = "WALRELAY_NAMESPACE";

/// Starts this program over in a namespace, where that is possible and has not happened yet.
pub fn enter() {
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

/// Table and set of the packet filter.
const TABLE: &str = "inet walrelay";
const SET: &str = "inet walrelay dark";

/// The namespace's packet filter: packets to and from a port are dropped, and nobody is told. (nftables)
#[derive(Debug)]
pub(crate) struct Firewall(());

impl Firewall {
    /// `None` where we are not in a namespace of our own, or it has no packet filter.
    pub(crate) fn raise() -> Option<Firewall> {
        std::env::var_os(IN_NAMESPACE)?;
        let rules = format!(
            "add table {TABLE}; delete table {TABLE}; add table {TABLE}; add set {SET} {{ type inet_service; }}; \
             add chain {TABLE} input {{ type filter hook input priority 0; }}; \
             add rule {TABLE} input tcp dport @dark drop; add rule {TABLE} input tcp sport @dark drop"
        );
        nft(&rules).then_some(Firewall(()))
    }

    /// Nothing passes from or to this port any more.
    pub(crate) fn drop_all(&self, port: u16) {
        let dropped = nft(&format!("add element {SET} {{ {port} }}"));
        assert!(dropped, "nft does not take a port any more");
    }

    /// It does again.
    pub(crate) fn pass(&self, port: u16) {
        // Adding first: it is no error that it is there, and one to delete what is not.
        let passes = nft(&format!("add element {SET} {{ {port} }}; delete element {SET} {{ {port} }}"));
        assert!(passes, "nft does not give a port back");
    }
}

fn nft(rules: &str) -> bool {
    let mut command = tools::program("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let given = child.stdin.take().is_some_and(|mut stdin| stdin.write_all(rules.as_bytes()).is_ok());
    child.wait().is_ok_and(|status| status.success()) && given
}
