//! `pg_receivewal`, which archives what it streams.

use std::path::PathBuf;

use rustix::process::Signal;

use crate::log::Log;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::wait::within;

/// A running pg_receivewal, ended when dropped.
#[derive(Debug)]
pub struct Receivewal {
    process: Process,
    scratch: Scratch,
    server: Server,
    conninfo: String,
    slot: String,
}

impl Receivewal {
    /// Streams from `conninfo` with this slot, syncing each burst and reporting it.
    pub fn start(server: &Server, conninfo: &str, slot: &str) -> Receivewal {
        let scratch = Scratch::new("receivewal");
        scratch.dir("wal");
        let process = spawn(server, conninfo, slot, &scratch);
        let (server, conninfo, slot) = (server.clone(), conninfo.to_owned(), slot.to_owned());
        Receivewal { process, scratch, server, conninfo, slot }
    }

    /// Starts it again if it has ended, as it does when a server ends in the midst of its first questions; whether it had.
    pub fn revive(&mut self) -> bool {
        let ended = !self.process.is_running();
        if ended {
            self.process = spawn(&self.server, &self.conninfo, &self.slot, &self.scratch);
        }
        ended
    }

    /// Where it puts segments.
    pub fn wal_dir(&self) -> PathBuf {
        self.scratch.join("wal")
    }

    /// What it says.
    pub fn log(&self) -> &Log {
        self.process.log()
    }

    /// Waits until this segment is complete.
    #[track_caller]
    pub fn wait_for_segment(&self, name: &str) {
        let path = self.wal_dir().join(name);
        let complete = within(crate::PATIENCE, || path.exists().then_some(()));
        assert!(complete.is_some(), "pg_receivewal does not finish {name}\n{}", self.log().tail());
    }

    /// Stops it from running, as a hung client: it reads nothing and answers nothing.
    pub fn hold(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn go_on(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// SIGINT, on which it ends with exit code 0. (Version 15 knows no SIGTERM.)
    #[track_caller]
    pub fn stop(mut self) {
        assert_eq!(self.process.end_with(Signal::INT), 0, "{}", self.process.log().tail());
    }
}

fn spawn(server: &Server, conninfo: &str, slot: &str, scratch: &Scratch) -> Process {
    let mut command = server.lasting("pg_receivewal");
    command
        .args(["--synchronous", "-v", "-s", "1", "-S", slot, "-d", conninfo, "-D"])
        .arg(scratch.join("wal"));
    Process::spawn("pg_receivewal", command, &scratch.join("log"))
}
