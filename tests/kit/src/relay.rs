//! The relay under test.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use walrelay_proto::Lsn;

use crate::account::tied_command;
use crate::certificates::Certificates;
use crate::cluster::Cluster;
use crate::log::Log;
use crate::port::Port;
use crate::process::Process;
use crate::psql::{self, Session, SqlError};
use crate::scratch::Scratch;
use crate::server::Server;
use crate::trace::Trace;
use crate::wait::within;

/// Name of the relay's upstream slot, and its `application_name`, unless set.
const DEFAULT_NAME: &str = "walrelay";

const TRUST_HBA: &str = "host all,replication all 127.0.0.1/32 trust\n";

/// How to run a relay.
#[derive(Debug, Clone)]
pub struct RelayBuilder {
    binary: PathBuf,
    server: Server,
    upstream: String,
    name: String,
    hba: String,
    args: Vec<String>,
    /// Set for its process only, such as `--nofile=128`: options of prlimit.
    limits: Vec<String>,
    environment: Vec<(String, String)>,
    data_dir: Option<PathBuf>,
}

impl RelayBuilder {
    /// Name of its slot upstream, of its directory, and its `application_name`; `walrelay` unless set.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Another upstream than the cluster: a relay, or a connection with special options.
    pub fn upstream(mut self, conninfo: &str) -> Self {
        self.upstream = conninfo.to_owned();
        self
    }

    /// Contents of its host-based authentication file; without it, everybody on this machine is trusted.
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = lines.to_owned();
        self
    }

    /// One more command line argument; a flag and its value are two.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// A limit of its process, as an option of `prlimit`: `--nofile=128`.
    pub fn limit(mut self, option: &str) -> Self {
        self.limits.push(option.to_owned());
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A data directory of the test's choice, on a disk of its own.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// Encryption with these certificates, and client certificates of their authority.
    pub fn tls(self, certificates: &Certificates) -> Self {
        let files = [("cert", "server.crt"), ("key", "server.key"), ("ca", "root.crt")];
        files.iter().fold(self, |builder, (flag, name)| {
            builder.arg(&format!("--ssl-{flag}-file")).arg(&certificates.file(name))
        })
    }

    /// Starts it and waits until it answers `IDENTIFY_SYSTEM`.
    #[track_caller]
    pub fn start(self) -> Relay {
        let mut relay = self.prepare();
        relay.start();
        relay
    }

    /// Everything but starting it, for those who want it to fail.
    pub fn prepare(self) -> Relay {
        let (scratch, port) = (Scratch::new(&self.name), Port::take());
        fs::write(scratch.join("hba.conf"), &self.hba).expect("the directory is ours");
        Relay { process: None, settings: self, port, scratch, passed: Vec::new() }
    }
}

/// A walrelay process with its data directory, port and log. Killed, and its directory removed, when dropped.
#[derive(Debug)]
pub struct Relay {
    process: Option<Process>,
    settings: RelayBuilder,
    port: Port,
    scratch: Scratch,
    /// For the next process.
    passed: Vec<(String, OwnedFd)>,
}

impl Relay {
    /// How to connect to whichever of these clusters comes first, in libpq's way.
    pub fn hosts(clusters: &[&Cluster]) -> String {
        let hosts = vec!["127.0.0.1"; clusters.len()].join(",");
        let ports: Vec<String> = clusters.iter().map(|cluster| cluster.port().to_string()).collect();
        format!("host={hosts} port={} user=postgres", ports.join(","))
    }

    /// Starts describing a relay, run from `binary`, below this cluster.
    pub fn builder(binary: impl AsRef<Path>, upstream: &Cluster) -> RelayBuilder {
        Relay::builder_on(binary, upstream.server(), &upstream.conninfo())
    }

    /// The same below whatever this leads to.
    pub fn builder_on(binary: impl AsRef<Path>, server: &Server, upstream: &str) -> RelayBuilder {
        let binary = std::path::absolute(binary.as_ref()).expect("the path is not empty");
        RelayBuilder {
            binary,
            server: server.clone(),
            upstream: upstream.to_owned(),
            name: DEFAULT_NAME.to_owned(),
            hba: TRUST_HBA.to_owned(),
            args: Vec::new(),
            limits: Vec::new(),
            environment: Vec::new(),
            data_dir: None,
        }
    }

    /// A description of a relay below this one, with the same binary and clients.
    pub fn builder_below(&self) -> RelayBuilder {
        let settings = RelayBuilder {
            hba: TRUST_HBA.to_owned(),
            args: Vec::new(),
            limits: Vec::new(),
            environment: Vec::new(),
            data_dir: None,
            ..self.settings.clone()
        };
        settings.upstream(&self.conninfo())
    }

    /// Starts the process, on the same port and data directory as before, and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        self.wait_until_it_answers();
    }

    /// Waits until it answers `IDENTIFY_SYSTEM`.
    #[track_caller]
    pub fn wait_until_it_answers(&mut self) {
        let ready = within(crate::PATIENCE, || {
            let running = self.is_running();
            (!running || self.try_command("IDENTIFY_SYSTEM").is_ok()).then_some(running)
        });
        match ready {
            Some(true) => {}
            Some(false) => panic!("the relay ended at once\n{}", self.log().tail()),
            None => panic!("the relay does not answer\n{}", self.log().tail()),
        }
    }

    /// Listening sockets that the next process gets as systemd would pass them.
    pub fn pass(&mut self, sockets: Vec<(String, OwnedFd)>) {
        self.passed = sockets;
    }

    /// Starts the process and does not wait.
    pub fn spawn(&mut self) {
        let mut command = self.command_to_start();
        let passed = std::mem::take(&mut self.passed);
        let names: Vec<&str> = passed.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDNAMES", names.join(":"));
        let sockets: Vec<OwnedFd> = passed.into_iter().map(|(_, socket)| socket).collect();
        self.process = Some(Process::spawn_with("walrelay", command, sockets, self.log().path()));
    }

    /// The same with standard error, where it logs, going elsewhere.
    pub fn spawn_saying(&mut self, said: impl Into<Stdio>) {
        let command = self.command_to_start();
        self.process = Some(Process::spawn_saying("walrelay", command, said, self.log().path()));
    }

    fn command_to_start(&self) -> Command {
        let command_line = self.command_line();
        let mut command = match self.settings.limits.as_slice() {
            [] if !self.passed.is_empty() => {
                // The number of its process is known there only.
                let mut command = tied_command("sh");
                command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(&self.settings.binary);
                command
            }
            [] => tied_command(&self.settings.binary),
            limits => {
                let mut command = tied_command("prlimit");
                command.args(limits).arg("--").arg(&self.settings.binary);
                command
            }
        };
        command.args(command_line).envs(self.settings.environment.iter().cloned());
        command
    }

    /// SIGTERM or another signal; the exit code, or 128 + the number of the signal that ended it.
    #[track_caller]
    pub fn end_with(&mut self, signal: Signal) -> i32 {
        self.process.take().expect("the relay was started").end_with(signal)
    }

    /// Its arguments.
    pub fn command_line(&self) -> Vec<String> {
        let path = |name: &str| self.scratch.join(name).display().to_string();
        let upstream = format!("{} application_name={}", self.settings.upstream, self.settings.name);
        let listen = format!("127.0.0.1:{}", self.port());
        let fixed = [
            ["--upstream", &upstream],
            ["--data-dir", &self.data_dir().display().to_string()],
            ["--listen", &listen],
            ["--slot", &self.settings.name],
            ["--hba-file", &path("hba.conf")],
        ];
        fixed
            .concat()
            .into_iter()
            .chain(self.settings.args.iter().map(String::as_str))
            .map(str::to_owned)
            .collect()
    }

    /// The TCP port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// How to connect to it.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port())
    }

    /// Another upstream, from the next start on.
    pub fn set_upstream(&mut self, conninfo: &str) {
        self.settings.upstream = conninfo.to_owned();
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.settings.data_dir.clone().unwrap_or_else(|| self.scratch.join("data"))
    }

    /// Where its WAL segments are.
    pub fn wal_dir(&self) -> PathBuf {
        self.data_dir().join("pg_wal")
    }

    /// What it logs.
    pub fn log(&self) -> Log {
        Log::at(self.scratch.join("log"))
    }

    /// Its host-based authentication file.
    pub fn hba_file(&self) -> PathBuf {
        self.scratch.join("hba.conf")
    }

    /// Replaces the host-based authentication file; takes effect on [`Relay::reload`].
    pub fn set_hba(&self, lines: &str) {
        fs::write(self.hba_file(), lines).expect("the directory is ours");
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Has strace interfere with its system calls, such as `inject=fdatasync:error=EIO`, until the value is dropped.
    #[track_caller]
    pub fn trace(&self, expressions: &[&str]) -> Trace {
        Trace::attach(self.pid(), None, expressions, &self.scratch.join("strace"))
    }

    /// The same with calls that have to do with this path only.
    #[track_caller]
    pub fn trace_at(&self, path: &Path, expressions: &[&str]) -> Trace {
        Trace::attach(self.pid(), Some(path), expressions, &self.scratch.join("strace"))
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the relay was started")
    }

    /// Sends it a signal: SIGHUP for a reload, SIGSTOP and SIGCONT to hold it.
    pub fn signal(&mut self, signal: Signal) {
        self.process.as_mut().expect("the relay was started").signal(signal);
    }

    /// SIGHUP.
    pub fn reload(&mut self) {
        self.signal(Signal::HUP);
    }

    /// SIGTERM; insists on exit code 0.
    #[track_caller]
    pub fn terminate(&mut self) {
        let mut process = self.process.take().expect("the relay was started");
        assert_eq!(process.end_with(Signal::TERM), 0, "exit code of the relay\n{}", self.log().tail());
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.take().expect("the relay was started").kill9();
    }

    /// Waits for the process to end by itself; its exit code.
    #[track_caller]
    pub fn wait_exit(&mut self) -> Option<i32> {
        self.process.take().expect("the relay was started").wait().code()
    }

    /// SIGTERM and start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.terminate();
        self.start();
    }

    /// Runs a replication command and returns its rows, fields separated by `|`.
    ///
    /// # Panics
    /// With psql's message when it fails.
    #[track_caller]
    pub fn command(&self, command: &str) -> String {
        let failed = |error: SqlError| panic!("{command}: {error}\n{}", self.log().tail());
        self.try_command(command).unwrap_or_else(failed)
    }

    /// Runs a replication command.
    ///
    /// # Errors
    /// With psql's message.
    pub fn try_command(&self, command: &str) -> Result<String, SqlError> {
        self.psql("replication=1", &[command])
    }

    /// Runs commands on one connection with these options added to [`Relay::conninfo`].
    ///
    /// # Errors
    /// With psql's message; those after the failing one are not run.
    pub fn psql(&self, options: &str, commands: &[&str]) -> Result<String, SqlError> {
        psql::run(&self.settings.server, &format!("{} {options}", self.conninfo()), commands)
    }

    /// A psql that stays connected, with these options added to [`Relay::conninfo`].
    pub fn session(&self, options: &str) -> Session {
        Session::open(&self.settings.server, &format!("{} {options}", self.conninfo()))
    }

    /// Runs SQL in the database `postgres` through the relay.
    ///
    /// # Panics
    /// With psql's message when it fails.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let failed = |error: SqlError| panic!("{sql}: {error}\n{}", self.log().tail());
        self.psql("dbname=postgres", &[sql]).unwrap_or_else(failed)
    }

    /// Waits until SQL through the relay answers this.
    #[track_caller]
    pub fn wait_for_sql(&self, sql: &str, expected: &str) {
        let reached = within(crate::PATIENCE, || {
            (self.psql("dbname=postgres", &[sql]).as_deref() == Ok(expected)).then_some(())
        });
        assert!(
            reached.is_some(),
            "{sql} never gives {expected}, but {}\n{}",
            self.sql(sql),
            self.log().tail()
        );
    }

    /// Creates a physical slot that keeps WAL from now on.
    #[track_caller]
    pub fn create_slot(&self, name: &str) {
        self.command(&format!("CREATE_REPLICATION_SLOT {name} PHYSICAL RESERVE_WAL"));
    }

    /// Creates several such slots.
    #[track_caller]
    pub fn create_slots(&self, names: &[&str]) {
        for name in names {
            self.create_slot(name);
        }
    }

    /// The position a slot keeps WAL from, which is what its user reported as flushed.
    pub fn slot_lsn(&self, name: &str) -> Option<Lsn> {
        let row = self.command(&format!("READ_REPLICATION_SLOT {name}"));
        row.split('|').nth(1)?.parse().ok()
    }

    /// The end of what the relay has durably, as `IDENTIFY_SYSTEM` tells.
    #[track_caller]
    pub fn flush_lsn(&self) -> Lsn {
        let row = self.command("IDENTIFY_SYSTEM");
        let position = row.split('|').nth(2).and_then(|text| text.parse().ok());
        position.unwrap_or_else(|| panic!("IDENTIFY_SYSTEM answered {row:?}"))
    }

    /// The timeline the relay is on, as `IDENTIFY_SYSTEM` tells.
    #[track_caller]
    pub fn timeline(&self) -> u32 {
        let row = self.command("IDENTIFY_SYSTEM");
        let timeline = row.split('|').nth(1).and_then(|text| text.parse().ok());
        timeline.unwrap_or_else(|| panic!("IDENTIFY_SYSTEM answered {row:?}"))
    }

    /// Waits until the relay is on this timeline.
    #[track_caller]
    pub fn wait_for_timeline(&self, tli: u32) {
        let reached = within(crate::PATIENCE, || (self.timeline() == tli).then_some(()));
        assert!(reached.is_some(), "the relay stays on timeline {}\n{}", self.timeline(), self.log().tail());
    }

    /// Waits until the relay has everything up to `lsn` durably.
    #[track_caller]
    pub fn wait_for_flush(&self, lsn: Lsn) {
        let reached = within(crate::PATIENCE, || (self.flush_lsn() >= lsn).then_some(()));
        assert!(
            reached.is_some(),
            "the relay stays at {}, before {lsn}\n{}",
            self.flush_lsn(),
            self.log().tail()
        );
    }

    /// Waits until this segment is complete.
    #[track_caller]
    pub fn wait_for_segment(&self, name: &str) {
        let path = self.wal_dir().join(name);
        let complete = within(crate::PATIENCE, || path.exists().then_some(()));
        assert!(complete.is_some(), "the relay does not finish {name}\n{}", self.log().tail());
    }

    /// Insists that it found nothing to warn about.
    #[track_caller]
    pub fn assert_calm(&self) {
        self.assert_calm_but(&[]);
    }

    /// The same, but for lines that have one of these texts: what a story has done to it is to be told.
    #[track_caller]
    pub fn assert_calm_but(&self, told: &[&str]) {
        let text = self.log().text();
        // How full the disk is that tests run on is nobody's fault here.
        let machine = ["of the data directory's disk are free", "the disk is full in"];
        let is_told = |line: &str| told.iter().chain(&machine).any(|text| line.contains(text));
        let words = ["WARN", "ERROR", "panicked"];
        let alarming = |line: &&str| words.iter().any(|word| line.contains(word)) && !is_told(line);
        let lines: Vec<&str> = text.lines().filter(alarming).collect();
        assert!(lines.is_empty(), "unexpected in the relay's log: {lines:#?}");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log().tail());
        }
    }
}
