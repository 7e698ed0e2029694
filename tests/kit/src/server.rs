//! PostgreSQL's programs of one major version.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account;
use crate::install;
use crate::process::output;

/// An installed PostgreSQL server with its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    major: u32,
    /// As `postgres --version` says, such as `17.10`.
    version: String,
    bin: PathBuf,
    /// Where the clients are that are not in `bin`.
    clients: PathBuf,
}

/// What makes a server.
const SERVER: [&str; 3] = ["postgres", "initdb", "pg_ctl"];
/// Programs that read a data directory, which those of another version do not understand.
const OF_ONE_VERSION: [&str; 3] = ["pg_rewind", "pg_waldump", "pg_controldata"];

const NEEDED: [&str; 9] = [
    "postgres",
    "initdb",
    "psql",
    "pgbench",
    "pg_basebackup",
    "pg_receivewal",
    "pg_rewind",
    "pg_dump",
    "pg_waldump",
];

impl Server {
    /// The server of this major version.
    ///
    /// # Panics
    /// When there is none: a test that cannot run has failed.
    #[track_caller]
    pub fn require(major: u32) -> Server {
        install::find(major).unwrap_or_else(|| {
            panic!(
                "PostgreSQL {major} is missing: run `cargo run -p walrelay-testkit --bin setup`, \
                 or set WALRELAY_PG{major}_BIN to the directory of its programs"
            )
        })
    }

    /// Runs a story on the server of this major version; where that could not be installed, says so instead.
    ///
    /// # Panics
    /// As [`Server::require`], when nobody has tried to install it.
    #[track_caller]
    pub fn tell(major: u32, story: fn(&Server)) {
        match install::find(major).is_none().then(|| install::known_missing(major)).flatten() {
            Some(why) => eprintln!("NOT RUN on PostgreSQL {major}: {why}"),
            None => story(&Server::require(major)),
        }
    }

    /// The server whose programs are in `bin`; `None` if one is missing or cannot be run by the account that
    /// servers run under.
    pub fn in_dir(bin: &Path) -> Option<Server> {
        let runnable = |name: &str| is_executable(&bin.join(name));
        if !NEEDED.iter().all(|name| runnable(name)) {
            return None;
        }
        Server::with_clients_of(bin, bin)
    }

    /// The server whose programs are in `bin`, with the client programs in `clients`, of a newer version; without those
    /// that read a data directory.
    pub fn with_clients_of(bin: &Path, clients: &Path) -> Option<Server> {
        if !SERVER.iter().all(|name| is_executable(&bin.join(name))) {
            return None;
        }
        let said = output(account::command(bin.join("postgres")).arg("--version")).ok()?;
        let version = said.split_whitespace().nth(2)?.to_owned();
        let digits = |c: char| !c.is_ascii_digit();
        let major = version.split(digits).next()?.parse().ok()?;
        Some(Server { major, version, bin: bin.to_owned(), clients: clients.to_owned() })
    }

    /// Major version, such as 17.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The whole version, such as `17.10`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Directory of the programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// One of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        let own = self.bin.join(name);
        let lent = !own.exists() && !OF_ONE_VERSION.contains(&name);
        if lent { self.clients.join(name) } else { own }
    }

    /// A command that runs one of the programs to its end, under the servers' account.
    pub fn command(&self, program: &str) -> Command {
        account::command(self.program(program))
    }

    /// Runs one of the programs to its end and returns what it printed; `Err` holds what it said when it failed.
    ///
    /// # Errors
    /// The program could not be run, or its exit code is not 0.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        output(self.command(program).args(args))
    }

    /// A command for [`Process::spawn`](crate::Process::spawn), under the servers' account; killed with us.
    pub fn lasting(&self, program: &str) -> Command {
        account::lasting(&self.program(program), "KILL")
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
