//! strace at work on a running process: system calls that fail, or take long.

use std::path::Path;

use crate::account::tied_command;
use crate::process::Process;
use crate::wait::wait_until;

/// strace, attached to all threads of a process until this is dropped.
#[derive(Debug)]
pub struct Trace {
    process: Process,
}

impl Trace {
    /// Attaches with one `-e` for each expression, to calls that have to do with `path` if one is given; returns when it
    /// works. `log` gets the calls it saw.
    #[track_caller]
    pub(crate) fn attach(pid: u32, path: Option<&Path>, expressions: &[&str], log: &Path) -> Trace {
        let mut command = tied_command("strace");
        command.args(["-f", "-tt", "-p", &pid.to_string()]);
        if let Some(path) = path {
            command.arg("-P").arg(path);
        }
        for expression in expressions {
            command.args(["-e", expression]);
        }
        let _ = std::fs::remove_file(log);
        let mut process = Process::spawn("strace", command, log);
        wait_until(format_args!("strace at process {pid}: {}", process.log().tail()), || {
            assert!(process.is_running(), "strace ended\n{}", process.log().tail());
            process.log().text().contains("attached")
        });
        Trace { process }
    }

    /// What it has seen so far.
    pub fn text(&self) -> String {
        self.process.log().text()
    }

    /// Ends it at once: what it delays goes on no more, which only a process that is ending will not mind.
    pub fn cut(mut self) {
        self.process.kill9();
    }
}

impl Drop for Trace {
    /// Ended in order, so that what it has stopped goes on.
    fn drop(&mut self) {
        self.process.signal(rustix::process::Signal::INT);
        let _ = self.process.wait_at_most(crate::PATIENCE);
    }
}
