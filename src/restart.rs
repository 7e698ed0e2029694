//! Another binary in the place of this one: the same process, arguments and environment, a new program (exec).
//!
//! ```text
//! RESTART, SIGUSR2 ──> does the new one run, does it take the configuration? ──no──> an ERROR, and the old one goes on
//!                                          │ yes
//!                                          └──> stop in order, listening sockets stay ──> exec
//! ```

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::children::hears_signals;
use crate::redact::redact;
use crate::sockets::Passed;

/// How long the new binary may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(30);
/// The program that runs.
const SAME: &str = "/proc/self/exe";
/// What a process is called that was run as that.
const SAME_COMM: &[u8] = b"exe";
/// What this process, its first thread, is called.
const COMM: &str = "/proc/self/comm";

/// The new binary will not do.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// There is none, or it cannot be run.
    #[error("could not run \"{}\": {source}", path.display())]
    Run {
        /// The binary.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not answer.
    #[error("\"{} {what}\" has not ended in {} s", path.display(), PATIENCE.as_secs())]
    Silent {
        /// The binary.
        path: PathBuf,
        /// What it was asked.
        what: &'static str,
    },
    /// It is something else.
    #[error("\"{} --version\" does not answer as walrelay does", path.display())]
    Stranger {
        /// The binary.
        path: PathBuf,
    },
    /// It would not start with what is configured.
    #[error("walrelay {version} does not take the configuration: {reason}")]
    Configuration {
        /// Its version.
        version: String,
        /// What it said.
        reason: String,
    },
}

/// What takes over: whatever lies at the time where this process's program was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Successor {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Successor {
    /// As this process was called. To be asked early: what `/proc/self/exe` says is of no use once the file was replaced.
    pub fn of_process() -> Successor {
        let mut arguments = env::args_os();
        let called = arguments.next().map(PathBuf::from).unwrap_or_default();
        Successor { program: program(&called), arguments: arguments.collect() }
    }

    /// Whether it runs and would start, as far as its files tell. Its version.
    ///
    /// # Errors
    /// It does not, or does not answer.
    pub async fn check(&self) -> Result<String, RestartError> {
        let (is_well, said) = self.ask("--version", &["--version".into()]).await?;
        let version = said.lines().next().and_then(|line| line.strip_prefix("walrelay "));
        let version = version.filter(|_| is_well).map(|version| version.trim().to_owned());
        let version = version.ok_or_else(|| RestartError::Stranger { path: self.program.clone() })?;
        let check = [&["check-config".into()], &self.arguments[..]].concat();
        match self.ask("check-config", &check).await? {
            (true, _) => Ok(version),
            (false, said) => Err(RestartError::Configuration { version, reason: reason(&said) }),
        }
    }

    /// Whether it has ended well, and what it said.
    async fn ask(&self, what: &'static str, arguments: &[OsString]) -> Result<(bool, String), RestartError> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        // It has nothing to tell systemd.
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("LISTEN_FDS");
        hears_signals(&mut command);
        match tokio::time::timeout(PATIENCE, command.output()).await {
            Ok(Ok(output)) => {
                let said = [output.stdout, output.stderr].concat();
                Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
            }
            Ok(Err(source)) => Err(RestartError::Run { path: self.program.clone(), source }),
            Err(_) => Err(RestartError::Silent { path: self.program.clone(), what }),
        }
    }

    /// Becomes it, with these sockets and with the signals that this thread holds back. Returns only if that failed.
    pub fn exec(&self, sockets: &Passed) -> io::Error {
        self.exec_from(&self.program, sockets)
    }

    /// Becomes the program that runs, whatever lies by now where it was found.
    pub fn exec_same(&self, sockets: &Passed) -> io::Error {
        self.exec_from(Path::new(SAME), sockets)
    }

    /// With the mask of this thread and no other: signals that have come wait for the new program.
    fn exec_from(&self, file: &Path, sockets: &Passed) -> io::Error {
        let called = || {
            let mut environment: BTreeMap<OsString, OsString> = env::vars_os().collect();
            environment.extend(sockets.variables().map(|(name, value)| (name.into(), value.into())));
            let variable = |(mut name, value): (OsString, OsString)| {
                name.push("=");
                name.push(value);
                c_string(&name)
            };
            let arguments =
                [self.program.as_os_str()].into_iter().chain(self.arguments.iter().map(|it| &**it));
            Ok::<_, io::Error>((
                c_string(file.as_os_str())?,
                arguments.map(c_string).collect::<io::Result<Vec<_>>>()?,
                environment.into_iter().map(variable).collect::<io::Result<Vec<_>>>()?,
            ))
        };
        called().map_or_else(
            |error| error,
            |(file, arguments, environment)| match nix::unistd::execve(&file, &arguments, &environment) {
                Ok(never) => match never {},
                Err(error) => error.into(),
            },
        )
    }

    /// Has this process called as its program is called: run as `/proc/self/exe`, it is called `exe`, and nobody would find it.
    pub fn name_process(&self) {
        if fs::read(COMM).is_ok_and(|name| name.trim_ascii_end() == SAME_COMM)
            && let Some(name) = self.program.file_name()
        {
            // The kernel cuts off what is too long, as it does at an exec. A name is worth no error.
            let _ = fs::write(COMM, name.as_bytes());
        }
    }

    /// Where it is looked for.
    pub fn path(&self) -> &Path {
        &self.program
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// Where a shell has found, and will find, a program that is called like this. A symbolic link stays one: an upgrade may change
/// where it leads.
fn program(called: &Path) -> PathBuf {
    if called.components().count() > 1 {
        return std::path::absolute(called).unwrap_or_else(|_| called.to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(called)).find(|path| is_executable(path));
    found.or_else(|| env::current_exe().ok()).unwrap_or_else(|| called.to_owned())
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The error in what a command said.
fn reason(said: &str) -> String {
    let mut errors = said.lines().filter_map(|line| line.split_once("error: ").map(|(_, error)| error));
    let line = errors.next_back().or_else(|| said.lines().rfind(|line| !line.trim().is_empty()));
    redact(line.unwrap_or("it gives no reason"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program in the shell's language.
    fn script(dir: &Path, text: &str) -> Successor {
        let path = dir.join("walrelay");
        // The file is not open for writing in a child that another test starts just now: it is renamed when it is closed.
        let new = dir.join("new");
        std::fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &path).unwrap();
        Successor { program: path, arguments: vec!["--slot".into(), "a b".into()] }
    }

    async fn checked(successor: &Successor) -> Result<String, String> {
        loop {
            match successor.check().await {
                Err(RestartError::Run { source, .. }) if source.raw_os_error() == Some(libc::ETXTBSY) => {}
                other => return other.map_err(|error| error.to_string()),
            }
        }
    }

    #[tokio::test]
    async fn a_binary_that_runs_and_takes_the_arguments_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"test "$1" = --version && echo walrelay 9.8.7 && exit
                      test "$1,$2,$3,$#" = "check-config,--slot,a b,3""#;
        assert_eq!(checked(&script(dir.path(), text)).await, Ok("9.8.7".to_owned()));
    }

    #[tokio::test]
    async fn any_other_will_not_and_it_is_said_why() {
        let dir = tempfile::tempdir().unwrap();
        let error = async |text: &str| checked(&script(dir.path(), text)).await.unwrap_err();
        assert!(error("echo postgres 18").await.contains("does not answer as walrelay does"));
        assert!(error("echo walrelay 1; exit 1").await.contains("does not answer as walrelay does"));
        let refused = "test \"$1\" = --version && echo walrelay 1.2 && exit
                       echo 'walrelay: error: invalid value for --slot: nonsense' >&2; echo 'HINT:  try' >&2; exit 2";
        assert_eq!(
            error(refused).await,
            "walrelay 1.2 does not take the configuration: invalid value for --slot: nonsense"
        );
        let gone = Successor { program: dir.path().join("gone"), arguments: Vec::new() };
        assert!(checked(&gone).await.unwrap_err().contains("could not run"));
    }

    #[test]
    fn a_program_is_found_where_the_shell_finds_it() {
        assert_eq!(program(Path::new("/usr/bin/../bin/walrelay")), Path::new("/usr/bin/../bin/walrelay"));
        assert!(program(Path::new("./walrelay")).is_absolute());
        let sh = program(Path::new("sh"));
        assert!(sh.is_absolute() && is_executable(&sh), "{sh:?}");
    }
}
