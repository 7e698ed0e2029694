//! [Patroni](https://patroni.readthedocs.io), from Python packages, and the etcd it needs, Debian's, in directories of our own.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::account;
use crate::cluster::{children_of, signal_pid};
use crate::install::{InstallError, cache_dir, unpack_deb};
use crate::link::{Link, Weather};
use crate::log::Log;
use crate::packages::Packages;
use crate::port::Port;
use crate::process::Process;
use crate::psql::{self, SqlError};
use crate::scratch::Scratch;
use crate::server::Server;
use crate::wait::{wait_for, wait_until, within};

/// Distribution and version: Patroni, and what its daemon needs to run at all, to talk to etcd, and to a server.
const PACKAGES: [(&str, &str); 11] = [
    ("dnspython", "2.9.2"),
    ("patroni", "4.1.5"),
    ("psutil", "7.2.2"),
    ("psycopg", "3.3.6"),
    ("psycopg-binary", "3.3.6"),
    ("python-dateutil", "2.9.0.post0"),
    ("python-etcd", "0.4.5"),
    ("pyyaml", "6.0.3"),
    ("six", "1.17.0"),
    ("typing-extensions", "4.15.0"),
    ("urllib3", "2.8.0"),
];
/// Debian's package with etcd.
const ETCD: &str = "etcd-server";

/// What is installed.
#[derive(Debug, Clone)]
struct Programs {
    packages: Packages,
    etcd: PathBuf,
}

fn find() -> Option<Programs> {
    let packages = Packages::locate("patroni", &PACKAGES).filter(Packages::are_complete)?;
    let etcd = etcd_dir().join("usr/bin/etcd");
    etcd.is_file().then_some(Programs { packages, etcd })
}

fn etcd_dir() -> PathBuf {
    cache_dir().join("etcd")
}

/// Whether it is there: where it cannot be had, its story says so and does nothing.
pub fn is_here() -> bool {
    find().is_some()
}

/// Finds Patroni and etcd, or installs them; tells which version.
///
/// # Errors
/// When they are neither there nor can be installed; the message says what to do.
pub fn ensure() -> Result<&'static str, InstallError> {
    let failed = |message| InstallError::Tool { name: "Patroni", message };
    let nobody = || failed("no Python that the servers' account can run".to_owned());
    Packages::locate("patroni", &PACKAGES).ok_or_else(nobody)?.ensure().map_err(failed)?;
    if find().is_none() {
        unpack_deb(ETCD, &etcd_dir()).map_err(failed)?;
    }
    let version = PACKAGES.iter().find(|(name, _)| *name == "patroni").map_or("", |(_, version)| version);
    find().map(|_| version).ok_or_else(|| failed("installed, but parts of it are missing".to_owned()))
}

/// A cluster that Patroni manages: an etcd, and nodes, each with a Patroni and a server. All of them end with this value.
#[derive(Debug)]
pub struct Patroni {
    nodes: Vec<Node>,
    programs: Programs,
    etcd: Process,
    etcd_port: Port,
    /// YAML below `bootstrap: dcs:`.
    settings: String,
    server: Server,
    scratch: Scratch,
}

/// One of them.
#[derive(Debug)]
struct Node {
    name: &'static str,
    process: Option<Process>,
    port: Port,
    api: Port,
    /// Its line to etcd.
    line: Link,
    scratch: Scratch,
}

impl Patroni {
    /// Starts etcd. `settings` are lines of `bootstrap: dcs:`, without indentation.
    ///
    /// # Panics
    /// When something is missing.
    #[track_caller]
    pub fn start(server: &Server, settings: &str) -> Patroni {
        let programs = find().expect("whoever calls this has asked whether it is here");
        let (scratch, port, peer) = (Scratch::new("etcd"), Port::take(), Port::take());
        let [client, peers] = [&port, &peer].map(|port| format!("http://127.0.0.1:{}", port.number()));
        let mut command = account::lasting(&programs.etcd, "KILL");
        command.arg("--data-dir").arg(scratch.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("default={peers}"), "--unsafe-no-fsync"]);
        let etcd = Process::spawn("etcd", command, &scratch.join("log"));
        let address = ("127.0.0.1", port.number());
        wait_until("etcd", || TcpStream::connect(address).is_ok());
        let settings = settings.lines().map(|line| format!("    {line}\n")).collect();
        let server = server.clone();
        Patroni { nodes: Vec::new(), programs, etcd, etcd_port: port, settings, server, scratch }
    }

    /// Describes a further node, without starting it; its number. `sections` are lines of its `postgresql:`, without
    /// indentation.
    pub fn add(&mut self, name: &'static str, sections: &str) -> usize {
        let (scratch, port, api) = (Scratch::new(name), Port::take(), Port::take());
        let line = Link::to(self.etcd_port.number(), 0);
        let lines: String = sections.lines().map(|line| format!("  {line}\n")).collect();
        let conf = format!(
            "scope: demo\nname: {name}\n\
             restapi:\n  listen: 127.0.0.1:{api}\n  connect_address: 127.0.0.1:{api}\n\
             etcd3:\n  host: 127.0.0.1:{etcd}\n  use_proxies: true\n\
             bootstrap:\n  dcs:\n{settings}  initdb:\n  - encoding: UTF8\n  - locale: C\n  - wal-segsize: '1'\n  - no-sync\n\
             postgresql:\n  listen: 127.0.0.1:{port}\n  connect_address: 127.0.0.1:{port}\n  data_dir: {dir}/data\n\
             \x20 bin_dir: {bin}\n  pgpass: {dir}/pgpass\n\
             \x20 authentication:\n    superuser:\n      username: postgres\n    replication:\n      username: replicator\n\
             \x20 pg_hba:\n  - local all all trust\n  - host all,replication all 127.0.0.1/32 trust\n\
             \x20 parameters:\n    unix_socket_directories: {dir}\n\
             {lines}",
            api = api.number(),
            etcd = line.port(),
            settings = self.settings,
            port = port.number(),
            dir = scratch.path().display(),
            bin = self.server.bin().display(),
        );
        fs::write(scratch.join("patroni.yml"), conf).expect("the directory is ours");
        self.nodes.push(Node { name, process: None, port, api, line, scratch });
        self.nodes.len() - 1
    }

    /// Starts a node's Patroni, and waits until its server is what Patroni wants it to be.
    #[track_caller]
    pub fn run(&mut self, number: usize) {
        let mut command = self.programs.packages.interpreter_ended_by("TERM");
        let node = &mut self.nodes[number];
        command.args(["-m", "patroni"]).arg(node.scratch.join("patroni.yml"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        node.process = Some(Process::spawn("patroni", command, &node.scratch.join("log")));
        let running = within(crate::PATIENCE * 2, || self.state(number).filter(|state| state == "200"));
        assert!(running.is_some(), "{} does not run\n{}", self.nodes[number].name, self.log(number).tail());
    }

    /// What its interface says of its health.
    fn state(&self, number: usize) -> Option<String> {
        use std::io::{Read, Write};
        let mut stream = TcpStream::connect(("127.0.0.1", self.nodes[number].api.number())).ok()?;
        stream.set_read_timeout(Some(crate::PATIENCE)).ok()?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1).map(str::to_owned)
    }

    /// What its Patroni logs.
    pub fn log(&self, number: usize) -> Log {
        Log::at(self.nodes[number].scratch.join("log"))
    }

    /// The TCP port of its server.
    pub fn port(&self, number: usize) -> u16 {
        self.nodes[number].port.number()
    }

    /// How to connect to whichever server is the primary.
    pub fn to_primary(&self) -> String {
        let ports: Vec<String> = self.nodes.iter().map(|node| node.port.number().to_string()).collect();
        let host = vec!["127.0.0.1"; ports.len()].join(",");
        let ports = ports.join(",");
        format!("host={host} port={ports} user=postgres connect_timeout=2 target_session_attrs=primary")
    }

    /// How to connect to the server of a node.
    pub fn conninfo(&self, number: usize) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port(number))
    }

    /// Stops the walsenders of a node that serve other nodes in their tracks: these get nothing more.
    #[track_caller]
    pub fn freeze_walsenders(&self, number: usize) {
        let names: Vec<String> = self.nodes.iter().map(|node| format!("'{}'", node.name)).collect();
        let names = names.join(", ");
        let sql = format!("select pid from pg_stat_replication where application_name in ({names})");
        let pids = wait_for("walsenders of the other nodes", || {
            self.sql(number, &sql).ok().filter(|pids| pids.lines().count() + 1 == self.nodes.len())
        });
        for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
            signal_pid(pid, Signal::STOP);
        }
    }

    /// The same for the one that serves this node.
    #[track_caller]
    pub fn freeze_walsender(&self, number: usize, of: usize) {
        let name = self.nodes[of].name;
        let sql = format!("select pid from pg_stat_replication where application_name = '{name}'");
        let pid = wait_for(format_args!("a walsender for {name}"), || {
            self.sql(number, &sql).ok().and_then(|pid| pid.parse::<i32>().ok())
        });
        signal_pid(pid, Signal::STOP);
    }

    /// Runs SQL on the server of a node.
    ///
    /// # Errors
    /// With psql's message.
    pub fn sql(&self, number: usize, sql: &str) -> Result<String, SqlError> {
        psql::run(&self.server, &self.conninfo(number), &[sql])
    }

    /// The machine is gone, with Patroni and server.
    pub fn kill9(&mut self, number: usize) {
        self.nodes[number].end(Signal::KILL);
    }

    /// The machine hangs with SIGSTOP, with Patroni and server, or goes on with SIGCONT.
    pub fn signal(&mut self, number: usize, signal: Signal) {
        self.nodes[number].signal(signal);
    }

    /// The node loses etcd: what it sends there does not arrive.
    pub fn cut_off(&self, number: usize) {
        self.nodes[number].line.set(Weather::Hole);
    }

    /// It finds etcd again.
    pub fn connect_again(&self, number: usize) {
        self.nodes[number].line.reset();
        self.nodes[number].line.set(Weather::Fair);
    }
}

impl Node {
    fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.scratch.join("data/postmaster.pid")).ok()?;
        let pid: i32 = text.lines().next()?.parse().ok()?;
        let is_server = fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.contains(&self.scratch.path().display().to_string()));
        Pid::from_raw(pid).filter(|_| is_server)
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(patroni) = &mut self.process {
            patroni.signal(signal);
        }
        let Some(postmaster) = self.postmaster() else { return };
        let children = children_of(postmaster.as_raw_nonzero().get().unsigned_abs());
        for pid in children.into_iter().filter_map(Pid::from_raw).chain([postmaster]) {
            // It may be gone already.
            let _ = kill_process(pid, signal);
        }
    }

    fn end(&mut self, how: Signal) {
        if let Some(mut patroni) = self.process.take() {
            patroni.kill9();
        }
        let Some(postmaster) = self.postmaster() else { return };
        let children = children_of(postmaster.as_raw_nonzero().get().unsigned_abs());
        let all: Vec<Pid> =
            std::iter::once(postmaster).chain(children.into_iter().filter_map(Pid::from_raw)).collect();
        for pid in &all {
            // It may be gone already; and one that is stopped hears nothing else.
            let _ = kill_process(*pid, if *pid == postmaster { how } else { Signal::KILL });
        }
        let is_there = |pid: &Pid| Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists();
        wait_until("the end of a server", || !all.iter().any(is_there));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let log = Log::at(self.scratch.join("log"));
        if std::thread::panicking() {
            eprintln!("{}", log.tail());
        }
        self.end(Signal::QUIT);
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.etcd.log().tail());
            Scratch::keep(self.scratch.path());
        }
    }
}

/// A script that the servers' account can run.
///
/// # Panics
/// When it cannot be written.
#[track_caller]
pub fn script(scratch: &Scratch, name: &str, text: &str) -> PathBuf {
    let path = scratch.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("the directory is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("we just wrote it");
    path
}
