//! Servers and clients of the bench that run in processes of their own: of this program, and programs of others.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use walrelay_proto::{Lsn, SegSize, TimelineId, WalFileName};

use super::stage::{Stage, local};
use crate::account::tied_command;
use crate::process::Process;
use crate::wait::wait_until;
use crate::{Cluster, Port, Scratch, tools};

/// [`super::sendfile`] at work.
pub(crate) struct SendfileLoop {
    process: Process,
    port: Port,
    _scratch: Scratch,
}

impl SendfileLoop {
    /// Serves what the relay has stored.
    pub(crate) fn start(stage: &Stage) -> SendfileLoop {
        let (port, scratch) = (Port::take(), Scratch::new("sendfile"));
        let (number, dir) = (port.number().to_string(), stage.relay.wal_dir());
        let mut command = this_program();
        command.args(["sendfile", &number]).arg(dir).arg(stage.wal.end.to_string());
        let process = Process::spawn("sendfile loop", command, &scratch.join("log"));
        wait_until("the sendfile loop to listen", || {
            std::net::TcpStream::connect(local(port.number())).is_ok()
        });
        SendfileLoop { process, port, _scratch: scratch }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        local(self.port.number())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The segment size that all servers of a bench have.
pub(crate) fn seg_size() -> SegSize {
    SegSize::new(16 << 20).expect("a power of two")
}

/// A standby of a primary that answers at once and stores nothing.
pub(crate) struct Answerer {
    process: Process,
    _scratch: Scratch,
}

impl Answerer {
    pub(crate) fn start(primary: &Cluster, name: &str) -> Answerer {
        let scratch = Scratch::new("answerer");
        let mut command = this_program();
        command.args(["nothing", &primary.port().to_string(), name, &primary.settled_lsn().to_string()]);
        Answerer { process: Process::spawn("standby", command, &scratch.join("log")), _scratch: scratch }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// [`super::storing`] at work, in a file that those after it may have again.
pub(crate) struct Storer {
    process: Process,
    _scratch: Scratch,
}

impl Storer {
    pub(crate) fn start(
        how: &str,
        file: &Path,
        bytes: u64,
        primary: &Cluster,
        name: &str,
        start: Lsn,
    ) -> Storer {
        let scratch = Scratch::new("storer");
        let mut command = this_program();
        command.arg(how).arg(file);
        command.args([&bytes.to_string(), &primary.port().to_string(), name, &start.to_string()]);
        Storer { process: Process::spawn("storer", command, &scratch.join("log")), _scratch: scratch }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// [`super::fan`] at work.
pub(crate) struct Fan {
    process: Process,
    port: Port,
    _scratch: Scratch,
}

impl Fan {
    /// With what the primary writes from now on.
    pub(crate) fn start(primary: &Cluster) -> Fan {
        let (port, scratch) = (Port::take(), Scratch::new("fan"));
        let mut command = this_program();
        command.args(["fan", &port.number().to_string(), &primary.port().to_string()]);
        command.arg(primary.settled_lsn().to_string());
        let process = Process::spawn("fan-out", command, &scratch.join("log"));
        wait_until("the fan-out to listen", || std::net::TcpStream::connect(local(port.number())).is_ok());
        Fan { process, port, _scratch: scratch }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        local(self.port.number())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn this_program() -> Command {
    tied_command(std::env::current_exe().expect("we were started from a file"))
}

/// `pg_receivewal` that writes into an empty directory.
pub(crate) struct Receivewal {
    process: Process,
    scratch: Scratch,
}

impl Receivewal {
    /// `args` come before those that say where from and where to.
    pub(crate) fn start(primary: &Cluster, args: &[&str], name: &str) -> Receivewal {
        let scratch = Scratch::new("receivewal");
        let dir = scratch.dir("wal");
        let mut command = primary.server().lasting("pg_receivewal");
        let conninfo = format!("{} application_name={name}", primary.conninfo());
        command.args(args).arg("-D").arg(dir).arg("-d").arg(conninfo);
        let process = Process::spawn("pg_receivewal", command, &scratch.join("log"));
        Receivewal { process, scratch }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn has(&self, segment: &str) -> bool {
        self.wal_dir().join(segment).exists()
    }

    /// Where it writes.
    pub(crate) fn wal_dir(&self) -> PathBuf {
        self.scratch.join("wal")
    }
}

/// A TCP proxy before a server.
pub(crate) struct Haproxy {
    _process: Process,
    port: Port,
    _scratch: Scratch,
}

impl Haproxy {
    /// `None` where it is not installed.
    pub(crate) fn start(server: SocketAddr) -> Option<Haproxy> {
        version("haproxy", "-v")?;
        let (port, scratch) = (Port::take(), Scratch::new("haproxy"));
        let text = format!(
            "global\n  maxconn 200\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             frontend f\n  bind 127.0.0.1:{}\n  default_backend b\nbackend b\n  server s {server}\n",
            port.number()
        );
        let conf = scratch.join("haproxy.cfg");
        std::fs::write(&conf, text).expect("the directory is ours");
        let program = tools::path("haproxy")?;
        let mut command = tied_command(program);
        command.arg("-db").arg("-f").arg(conf);
        let process = Process::spawn("haproxy", command, &scratch.join("log"));
        wait_until("haproxy to listen", || std::net::TcpStream::connect(local(port.number())).is_ok());
        Some(Haproxy { _process: process, port, _scratch: scratch })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        local(self.port.number())
    }
}

/// The first line of what a program says of itself; `None` where there is no such program.
pub(crate) fn version(program: &str, flag: &str) -> Option<String> {
    let path = tools::path(program)?;
    let output = Command::new(path).arg(flag).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned();
    output.status.success().then_some(said)
}

/// CRC-32C of all segments of this WAL, which a directory has whole.
pub(crate) fn crc_of_segments(dir: &Path, wal: &Range<Lsn>) -> u32 {
    let (size, mut at, mut crc) = (seg_size(), wal.start, 0);
    while at < wal.end {
        let segno = at.seg_at(size);
        let path = dir.join(WalFileName { tli: TimelineId::FIRST, segno }.format(size));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        crc = crc32c::crc32c_append(crc, &bytes);
        at = segno.end(size);
    }
    crc
}

/// Syncs a file, as recovery does with what it gets.
pub(crate) fn sync(path: &Path) {
    let synced = std::fs::File::open(path).and_then(|file| file.sync_all());
    synced.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
