//! Barman and PostgreSQL drivers in Python, in a directory of our own.
//!
//! psycopg2 is the one that needs no compiler.

use std::path::Path;
use std::process::Command;

use crate::account;
use crate::install::{InstallError, apt_install};
use crate::packages::Packages;
use crate::process::output;

/// Distribution and version.
const PACKAGES: [(&str, &str); 7] = [
    ("barman", "3.19.1"),
    ("psycopg", "3.3.6"),
    ("psycopg-binary", "3.3.6"),
    ("psycopg2-binary", "2.9.13"),
    ("python-dateutil", "2.9.0.post0"),
    ("six", "1.17.0"),
    ("typing-extensions", "4.15.0"),
];

/// Barman restores with it.
const RSYNC: &str = "rsync";

/// A Python interpreter with [Barman](https://pgbarman.org) and psycopg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    packages: Packages,
}

impl Python {
    /// What `make setup` has installed.
    ///
    /// # Panics
    /// When it has not: a test that cannot run has failed.
    #[track_caller]
    pub fn require() -> Python {
        find().unwrap_or_else(|| {
            panic!("Barman, psycopg or rsync is missing: run `cargo run -p walrelay-testkit --bin setup`")
        })
    }

    /// Version of Barman.
    pub fn barman_version(&self) -> &'static str {
        PACKAGES[0].1
    }

    /// Directory of the packages.
    pub fn packages(&self) -> &Path {
        self.packages.dir()
    }

    /// A command that runs a program text with these arguments, under the servers' account; killed with us.
    pub fn lasting(&self, program: &str, args: &[&str]) -> Command {
        let mut command = self.packages.interpreter();
        command.arg("-c").arg(program).args(args);
        command
    }

    /// The text of a script `barman`, for a directory of the `PATH`.
    pub fn barman_script(&self) -> String {
        self.packages.program("barman")
    }

    /// A command for Barman, which runs further ones of itself.
    pub(crate) fn barman(&self) -> Command {
        let mut command = self.packages.interpreter();
        command.arg(self.packages.dir().join("bin/barman"));
        command
    }

    fn is_complete(&self) -> bool {
        self.packages.are_complete() && self.packages.dir().join("bin/barman").is_file()
    }
}

/// What is installed, if all of it is.
pub fn find() -> Option<Python> {
    has_rsync().then(locate)?.filter(Python::is_complete)
}

/// Finds Barman, psycopg and rsync, or installs them.
///
/// # Errors
/// When they are neither there nor can be installed; the message says what to do.
pub fn ensure() -> Result<Python, InstallError> {
    let failed = |message| InstallError::Tool { name: "Barman", message };
    if !has_rsync() {
        need_package(RSYNC).map_err(failed)?;
    }
    if locate().is_none() {
        need_package("python3").map_err(failed)?;
    }
    let python = locate().ok_or_else(|| failed("no Python that the servers' account can run".to_owned()))?;
    if !python.is_complete() {
        println!("installing Barman {} and psycopg", python.barman_version());
        python.packages.ensure().map_err(failed)?;
    }
    match python.is_complete() {
        true => Ok(python),
        false => Err(failed("installed, but parts of it are missing".to_owned())),
    }
}

fn need_package(package: &str) -> Result<(), String> {
    match rustix::process::getuid().is_root() {
        true => apt_install(package),
        false => Err(format!("{package} is needed and installing packages takes root")),
    }
}

fn has_rsync() -> bool {
    output(account::command(RSYNC).arg("--version")).is_ok()
}

fn locate() -> Option<Python> {
    Packages::locate("python", &PACKAGES).map(|packages| Python { packages })
}
