//! Processes that end with the value that owns them.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};

use crate::log::Log;
use crate::wait::{PATIENCE, within};

/// A running child process, killed by its pid when this is dropped. Its output goes to a log file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Log,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    ///
    /// Make the command with [`tied_command`](crate::tied_command), so that the child does not outlive us even
    /// when we are killed.
    pub fn spawn(name: &str, command: Command, log: &Path) -> Process {
        Process::start(name, command, log, false)
    }

    /// Like [`Process::spawn`], with these descriptors passed as systemd passes them (`LISTEN_FDS`), but under higher numbers.
    pub(crate) fn spawn_with(name: &str, mut command: Command, passed: Vec<OwnedFd>, log: &Path) -> Process {
        let file = open_log(log);
        command.process_group(0).stderr(file.try_clone().expect("a file handle can be duplicated"));
        command.stdin(Stdio::null()).stdout(file);
        Process::made(name, spawn_for_good(command, passed), log)
    }

    /// Like [`Process::spawn`], but standard error goes elsewhere.
    pub(crate) fn spawn_saying(
        name: &str,
        mut command: Command,
        said: impl Into<Stdio>,
        log: &Path,
    ) -> Process {
        command.process_group(0).stdin(Stdio::null()).stdout(open_log(log)).stderr(said);
        Process::of(name, command, log)
    }

    /// Like [`Process::spawn`], but standard input and output are pipes, see [`Process::pipes`].
    pub(crate) fn spawn_piped(name: &str, command: Command, log: &Path) -> Process {
        Process::start(name, command, log, true)
    }

    fn start(name: &str, mut command: Command, log: &Path, pipes: bool) -> Process {
        let file = open_log(log);
        // Its own group: Ctrl-C in a terminal is for us, who then end the children in order.
        command.process_group(0).stderr(file.try_clone().expect("a file handle can be duplicated"));
        if pipes {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            command.stdin(Stdio::null()).stdout(file);
        }
        Process::of(name, command, log)
    }

    fn of(name: &str, command: Command, log: &Path) -> Process {
        Process::made(name, spawn_for_good(command, Vec::new()), log)
    }

    fn made(name: &str, child: std::io::Result<Child>, log: &Path) -> Process {
        let child = child.unwrap_or_else(|error| panic!("could not start {name}: {error}"));
        Process { name: name.to_owned(), child, log: Log::at(log.to_owned()), status: None }
    }

    pub(crate) fn pipes(&mut self) -> (ChildStdin, ChildStdout) {
        let stdin = self.child.stdin.take().expect("spawned with pipes, taken once");
        (stdin, self.child.stdout.take().expect("spawned with pipes, taken once"))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Whether it has not exited yet.
    pub fn is_running(&mut self) -> bool {
        self.poll().is_none()
    }

    fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the child is ours");
        }
        self.status
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        // Not reaped yet, so the pid cannot have gone to somebody else.
        if self.is_running() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal)
                .unwrap_or_else(|error| panic!("could not signal {}: {error}", self.name));
        }
    }

    /// Waits for its end; panics with its log when that takes longer than [`PATIENCE`].
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        match self.wait_at_most(PATIENCE) {
            Some(status) => status,
            None => panic!("{} (pid {}) does not end\n{}", self.name, self.pid(), self.log.tail()),
        }
    }

    /// Waits for its end, `None` if it still runs after `time`.
    pub fn wait_at_most(&mut self, time: Duration) -> Option<ExitStatus> {
        within(time, || self.poll())
    }

    /// Waits for its end and insists on exit code 0.
    #[track_caller]
    pub fn wait_success(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{} failed: {status}\n{}", self.name, self.log.tail());
    }

    /// Sends a signal and waits for the end. The exit code, or 128 + the number of the signal that ended it.
    #[track_caller]
    pub fn end_with(&mut self, signal: Signal) -> i32 {
        self.signal(signal);
        let status = self.wait();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
    }

    /// SIGKILL, then waits.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn open_log(path: &Path) -> File {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.unwrap_or_else(|error| panic!("could not open {}: {error}", path.display()))
}

type Order = (Command, Vec<OwnedFd>, Sender<std::io::Result<Child>>);

/// "Parent" in the parent death signal means the *thread* that forked: this one lives as long as we do.
static FORKER: LazyLock<Sender<Order>> = LazyLock::new(|| {
    let (sender, orders) = channel::<Order>();
    std::thread::spawn(move || {
        for (mut command, passed, reply) in orders {
            let passed = pass(&mut command, &passed);
            let _ = reply.send(command.spawn());
            drop(passed);
        }
    });
    sender
});

/// Only this thread starts what lasts, so nothing else that lasts inherits them.
fn pass(command: &mut Command, passed: &[OwnedFd]) -> Vec<OwnedFd> {
    let numbers = std::fs::read_dir("/proc/self/fd").expect("the kernel tells");
    let numbers = numbers.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // Above what other threads are given meanwhile.
    let first = numbers.max().expect("there are some") + 100;
    if !passed.is_empty() {
        command.env("LISTEN_FDS", passed.len().to_string()).env("LISTEN_FDS_FIRST_FD", first.to_string());
    }
    let socket = |(number, socket): (i32, &OwnedFd)| {
        let socket = fcntl_dupfd_cloexec(socket, number).expect("there are descriptors");
        assert_eq!(socket.as_raw_fd(), number, "nobody has it");
        fcntl_setfd(&socket, FdFlags::empty()).expect("it is ours");
        socket
    };
    (first..).zip(passed).map(socket).collect()
}

fn spawn_for_good(command: Command, passed: Vec<OwnedFd>) -> std::io::Result<Child> {
    let (reply, child) = channel();
    FORKER.send((command, passed, reply)).expect("the forking thread never ends");
    child.recv().expect("the forking thread answers every order")
}

/// Runs a command to its end and returns its standard output; `Err` holds what it said otherwise.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let program = PathBuf::from(command.get_program());
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{}: {e}", program.display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        Err(format!("{} failed, {}: {}", program.display(), output.status, said.trim_end()))
    }
}
