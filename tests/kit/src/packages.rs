//! Python packages in a directory of our own, pinned.
//!
//! They come as wheels, but for a few, without their dependencies: whoever wants them names all that is needed. The interpreter is one
//! that the servers' account can run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account;
use crate::install::{cache_dir, python_with_pip};
use crate::process::output;

/// Those of which there is nothing but the source; pure Python.
const WITHOUT_WHEEL: [&str; 1] = ["python-etcd"];

/// A directory of packages and the interpreter they fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packages {
    wanted: &'static [(&'static str, &'static str)],
    interpreter: PathBuf,
    /// Minor version of the interpreter; compiled packages fit one only.
    version: String,
    dir: PathBuf,
}

impl Packages {
    /// Where packages, by distribution and version, are or belong; `None` without an interpreter.
    pub(crate) fn locate(name: &str, wanted: &'static [(&'static str, &'static str)]) -> Option<Packages> {
        // One on the path may be in somebody's home.
        ["/usr/bin/python3", "python3"].into_iter().find_map(|interpreter| {
            let ask = "import sys; print('%d.%d' % sys.version_info[:2])";
            let version = output(account::command(interpreter).args(["-c", ask])).ok()?.trim().to_owned();
            let dir = cache_dir().join(format!("{name}-{version}"));
            Some(Packages { wanted, interpreter: interpreter.into(), version, dir })
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn are_complete(&self) -> bool {
        let installed = |(name, version): &(&str, &str)| {
            self.dir.join(format!("{}-{version}.dist-info", name.replace('-', "_"))).is_dir()
        };
        self.wanted.iter().all(installed)
    }

    /// The interpreter with these packages, under the servers' account; killed with us.
    pub(crate) fn interpreter(&self) -> Command {
        self.interpreter_ended_by("KILL")
    }

    /// The same, with another signal from the kernel when our process dies: it may have others to end then.
    pub(crate) fn interpreter_ended_by(&self, signal: &str) -> Command {
        let mut command = account::lasting(&self.interpreter, signal);
        command.env("PYTHONPATH", &self.dir).env("PYTHONNOUSERSITE", "1");
        command
    }

    /// A shell script that runs one of their programs as somebody who has installed them would.
    pub(crate) fn program(&self, name: &str) -> String {
        format!(
            "#!/bin/sh\nPYTHONPATH='{dir}' PYTHONNOUSERSITE=1 exec '{interpreter}' '{dir}/bin/{name}' \"$@\"\n",
            dir = self.dir.display(),
            interpreter = self.interpreter.display(),
        )
    }

    /// Puts them there unless they are.
    ///
    /// # Errors
    /// What the failing step said.
    pub(crate) fn ensure(&self) -> Result<(), String> {
        if self.are_complete() {
            return Ok(());
        }
        // Aside first, so that nobody ever finds half of them.
        let aside = self.dir.with_extension(format!("new-{}", std::process::id()));
        let installed = self.install_into(&aside).and_then(|()| {
            let _ = fs::remove_dir_all(&self.dir);
            fs::rename(&aside, &self.dir).map_err(|error| format!("{}: {error}", aside.display()))
        });
        let _ = fs::remove_dir_all(&aside);
        installed?;
        match self.are_complete() {
            true => Ok(()),
            false => Err("installed, but parts of it are missing".to_owned()),
        }
    }

    fn install_into(&self, dir: &Path) -> Result<(), String> {
        let mut pip = Command::new(python_with_pip()?);
        pip.args(["-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", "--retries", "5"]);
        // pip may belong to another interpreter than the one that is to run this.
        pip.args(["--implementation", "cp", "--python-version", &self.version]);
        for name in WITHOUT_WHEEL.iter().filter(|name| self.wanted.iter().any(|(wanted, _)| wanted == *name))
        {
            pip.arg(format!("--no-binary={name}"));
        }
        pip.arg("--target").arg(dir);
        pip.args(self.wanted.iter().map(|(name, version)| format!("{name}=={version}")));
        output(&mut pip)?;
        output(Command::new("chmod").args(["-R", "a+rX"]).arg(dir)).map(drop)
    }
}
