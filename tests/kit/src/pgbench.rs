//! pgbench as a source of WAL.

use rustix::process::Signal;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::server::Server;

/// A running pgbench. Killed when dropped.
#[derive(Debug)]
pub struct Pgbench {
    process: Process,
    _scratch: Scratch,
}

impl Pgbench {
    pub(crate) fn spawn(server: &Server, conninfo: &str, args: &[&str]) -> Pgbench {
        let scratch = Scratch::new("pgbench");
        let mut command = server.lasting("pgbench");
        command.arg("-n").args(args).arg(conninfo);
        Pgbench { process: Process::spawn("pgbench", command, &scratch.join("log")), _scratch: scratch }
    }

    /// Waits until it has done its work, and insists that nothing failed.
    #[track_caller]
    pub fn finish(mut self) {
        self.process.wait_success();
    }

    /// Ends it, after checking that it was writing until now.
    #[track_caller]
    pub fn stop(mut self) {
        assert!(self.process.is_running(), "pgbench gave up\n{}", self.process.log().tail());
        self.process.signal(Signal::TERM);
        self.process.wait();
    }
}
