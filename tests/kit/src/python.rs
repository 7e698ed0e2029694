//! Barman and PostgreSQL drivers in Python, in a directory of our own.
//!
//! Everything is pinned and comes as wheels, without their dependencies: what is needed is named here, and so
//! psycopg2 can be the one that needs no compiler. The interpreter is one that the servers' account can run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account;
use crate::install::{InstallError, apt_install, cache_dir, python_with_pip};
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
    interpreter: PathBuf,
    packages: PathBuf,
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
        &self.packages
    }

    /// A command that runs a program text with these arguments, under the servers' account; killed with us.
    pub fn lasting(&self, program: &str, args: &[&str]) -> Command {
        let mut command = self.interpreter();
        command.arg("-c").arg(program).args(args);
        command
    }

    /// A command for Barman, which runs further ones of itself.
    pub(crate) fn barman(&self) -> Command {
        let mut command = self.interpreter();
        command.arg(self.packages.join("bin/barman"));
        command
    }

    fn interpreter(&self) -> Command {
        let mut command = account::lasting(&self.interpreter, "KILL");
        command.env("PYTHONPATH", &self.packages).env("PYTHONNOUSERSITE", "1");
        command
    }

    fn is_complete(&self) -> bool {
        let installed = |(name, version): (&str, &str)| {
            self.packages.join(format!("{}-{version}.dist-info", name.replace('-', "_"))).is_dir()
        };
        PACKAGES.into_iter().all(installed) && self.packages.join("bin/barman").is_file()
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
        install(&python).map_err(failed)?;
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

/// The interpreter and where its packages belong: compiled ones fit one minor version only.
fn locate() -> Option<Python> {
    let version = |interpreter: &str| {
        let ask = "import sys; print('%d.%d' % sys.version_info[:2])";
        output(account::command(interpreter).args(["-c", ask])).ok()
    };
    // One on the path may be in somebody's home.
    ["/usr/bin/python3", "python3"].into_iter().find_map(|interpreter| {
        let packages = cache_dir().join(format!("python{}", version(interpreter)?.trim()));
        Some(Python { interpreter: interpreter.into(), packages })
    })
}

fn install(python: &Python) -> Result<(), String> {
    println!("installing Barman {} and psycopg", python.barman_version());
    let aside = python.packages.with_extension(format!("new-{}", std::process::id()));
    let installed = install_into(python, &aside).and_then(|()| {
        let _ = fs::remove_dir_all(&python.packages);
        fs::rename(&aside, &python.packages).map_err(|error| format!("{}: {error}", aside.display()))
    });
    let _ = fs::remove_dir_all(&aside);
    installed
}

fn install_into(python: &Python, dir: &Path) -> Result<(), String> {
    let name = python.packages.file_name().unwrap_or_default().to_string_lossy();
    let mut pip = Command::new(python_with_pip()?);
    pip.args(["-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", "--retries", "5"]);
    // pip may belong to another interpreter than the one that is to run this.
    pip.args(["--implementation", "cp", "--python-version", name.trim_start_matches("python")]);
    pip.arg("--target").arg(dir);
    pip.args(PACKAGES.map(|(name, version)| format!("{name}=={version}")));
    output(&mut pip)?;
    output(Command::new("chmod").args(["-R", "a+rX"]).arg(dir)).map(drop)
}
