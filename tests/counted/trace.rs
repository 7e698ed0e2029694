//! System calls of the relay's threads, as strace sees them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

/// Files that are not there: whoever asks for them marks a place in a trace.
const BEGIN: &str = "/walrelay-counted/begin";
const END: &str = "/walrelay-counted/end";

/// Does the work between two marks. The calls of this thread, which plays the primary and the consumer, do not count.
pub(crate) fn marked(work: impl FnOnce()) {
    let mark = |path: &str| assert!(!Path::new(path).exists());
    mark(BEGIN);
    work();
    mark(END);
}

/// Calls with which threads wait for each other: how many there are of them is a matter of who is faster.
const WAITING: [&str; 4] = ["futex", "epoll_wait", "write", "sched_yield"];

/// How often each system call was made.
pub(crate) struct Calls(BTreeMap<String, usize>);

impl Calls {
    pub(crate) fn total(&self) -> f64 {
        self.0.values().sum::<usize>() as f64
    }

    /// Without those that wait, and wake.
    pub(crate) fn of_work(mut self) -> Calls {
        self.0.retain(|name, _| !WAITING.contains(&name.as_str()));
        self
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut calls: Vec<_> = self.0.iter().collect();
        calls.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let text: Vec<_> = calls.iter().take(8).map(|(name, count)| format!("{name} {count}")).collect();
        f.write_str(&text.join(", "))
    }
}

/// The calls of the relay's threads between the marks of another test of this program, which is run again under strace.
pub(crate) fn of(test: &str) -> Calls {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("trace");
    let program = std::env::current_exe().expect("we were started from a file");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-s", "64", "-o"]).arg(&log).arg("--").arg(program).args(["--exact", test]);
    let output = strace.output().expect("strace is installed: see docs/HACKING.md");
    assert!(output.status.success(), "{output:?}");
    parse(&std::fs::read_to_string(&log).expect("strace has written it"))
}

fn parse(trace: &str) -> Calls {
    let call_of = |line: &'_ str| -> Option<(String, String)> {
        let (pid, rest) = line.split_once(' ')?;
        let (name, _) = rest.trim_start().split_once('(')?;
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.chars().all(is_name).then(|| (pid.to_owned(), name.to_owned()))
    };
    let begin = trace.lines().find(|line| line.contains(BEGIN)).and_then(call_of);
    let (marker, _) = begin.expect("the work is marked");
    let mut calls = BTreeMap::new();
    let inside =
        trace.lines().skip_while(|line| !line.contains(BEGIN)).take_while(|line| !line.contains(END));
    for (pid, name) in inside.filter_map(call_of) {
        if pid != marker {
            *calls.entry(name).or_default() += 1;
        }
    }
    Calls(calls)
}

#[test]
fn what_counts_in_a_trace() {
    let trace = "7 read(0, \"\", 1) = 0\n\
        8 statx(AT_FDCWD, \"/walrelay-counted/begin\", 0) = -1 ENOENT\n\
        7 futex(0x1, FUTEX_WAIT <unfinished ...>\n8 write(1, \"a\", 1) = 1\n7 <... futex resumed>) = 0\n\
        9 futex(0x1, FUTEX_WAKE) = 1\n9 --- SIGCHLD {si_signo=SIGCHLD} ---\n\
        8 statx(AT_FDCWD, \"/walrelay-counted/end\", 0) = -1 ENOENT\n7 read(0, \"\", 1) = 0\n";
    let calls = parse(trace);
    assert_eq!((calls.total(), calls.to_string().as_str()), (2.0, "futex 2"));
    assert_eq!(calls.of_work().total(), 0.0);
}
