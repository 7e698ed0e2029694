//! [repmgr](https://www.repmgr.org), Debian's for PostgreSQL 15.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account;
use crate::cluster::Cluster;
use crate::install::{InstallError, apt_install};
use crate::log::Log;
use crate::process::{Process, output};
use crate::psql;
use crate::scratch::Scratch;
use crate::wait::wait_until;

/// The version of PostgreSQL that it is for.
pub const MAJOR: u32 = 15;
const PACKAGE: &str = "postgresql-15-repmgr";
const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Whether it is there: where it cannot be had, its story says so and does nothing.
pub fn is_here() -> bool {
    ["repmgr", "repmgrd"].iter().all(|name| Path::new(BIN).join(name).is_file())
}

/// Finds it, or installs it; tells for which version.
///
/// # Errors
/// When it is neither there nor can be installed; the message says what to do.
pub fn ensure() -> Result<&'static str, InstallError> {
    let failed = |message| InstallError::Tool { name: "repmgr", message };
    if !is_here() {
        match rustix::process::getuid().is_root() {
            true => apt_install(PACKAGE).map_err(failed)?,
            false => return Err(failed(format!("{PACKAGE} is needed and installing packages takes root"))),
        }
    }
    if is_here() { Ok("for 15") } else { Err(failed("installed, but its programs are missing".to_owned())) }
}

/// What repmgr knows of a server, and the daemon that watches over it.
#[derive(Debug)]
pub struct Repmgr {
    daemon: Option<Process>,
    scratch: Scratch,
}

impl Repmgr {
    /// The configuration of a node, whose name is the server's `application_name`. `more` are further lines; `{conf}` in them
    /// becomes the path of the file, `{bin}` the directory of the programs.
    pub fn new(cluster: &Cluster, number: u32, name: &str, more: &str) -> Repmgr {
        let scratch = Scratch::new(&format!("repmgr-{name}"));
        let conf = scratch.join("repmgr.conf");
        let more = more.replace("{conf}", &conf.display().to_string()).replace("{bin}", BIN);
        let text = format!(
            "node_id={number}\nnode_name='{name}'\nconninfo='{}'\ndata_directory='{}'\npg_bindir='{BIN}'\n{more}\n",
            Repmgr::conninfo(cluster),
            cluster.data_dir().display()
        );
        fs::write(&conf, text).expect("the directory is ours");
        Repmgr { daemon: None, scratch }
    }

    /// How its database is reached there.
    pub fn conninfo(cluster: &Cluster) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=repmgr connect_timeout=2", cluster.port())
    }

    /// Waits until this server knows itself as the primary of whom repmgr watches over: that comes after its promotion.
    #[track_caller]
    pub fn wait_for_primary(cluster: &Cluster, name: &str) {
        let sql = "select node_name from repmgr.nodes where type = 'primary' and active";
        let conninfo = Repmgr::conninfo(cluster);
        wait_until(format_args!("repmgr to register {name} as the primary"), || {
            psql::run(cluster.server(), &conninfo, &[sql]).as_deref() == Ok(name)
        });
    }

    /// The configuration file.
    pub fn conf(&self) -> PathBuf {
        self.scratch.join("repmgr.conf")
    }

    /// Runs a command that must succeed; what it said.
    ///
    /// # Panics
    /// With its message when it fails.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        let mut command: Command = account::command(Path::new(BIN).join("repmgr"));
        // It keeps what its commands say in a temporary file.
        command.env("TMPDIR", self.scratch.path());
        output(command.arg("-f").arg(self.conf()).args(args)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts the daemon.
    pub fn watch(&mut self) {
        let mut command = account::lasting(&Path::new(BIN).join("repmgrd"), "KILL");
        command.arg("-f").arg(self.conf()).args(["--daemonize=false", "--no-pid-file"]);
        command.env("TMPDIR", self.scratch.path());
        self.daemon = Some(Process::spawn("repmgrd", command, self.log().path()));
    }

    /// The machine is gone: its daemon as well.
    pub fn forget(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill9();
        }
    }

    /// What the daemon logs.
    pub fn log(&self) -> Log {
        Log::at(self.scratch.join("log"))
    }
}

impl Drop for Repmgr {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log().tail());
        }
    }
}
