//! Targets that are a command, with the contract of PostgreSQL's `archive_command`.
//!
//! Exit code 0 is done. Anything else is tried again; above 125, or when a signal ended it, only after a
//! pause, because then something is wrong that another attempt will not cure (PostgreSQL: `pgarch.c` ends the
//! archiver, which comes back later). `%p` is the path, `%f` the name, `%%` a percent sign, and nothing is quoted.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::ChildStderr;

use crate::archive::repo::name::FileName;
use crate::children::hears_signals;
use crate::redact::redact;

/// How long after its end a command's last words may come.
const WORDS_LATE: Duration = Duration::from_secs(1);

/// How a command failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct CommandFailure {
    /// What happened, in one line.
    pub(super) reason: String,
    /// Whether only a person can help.
    pub(super) fatal: bool,
}

/// Puts values in for the placeholders `letter_of_path` and `letter_of_name`, each preceded by `%`.
///
/// Fails on other placeholders and on a lone `%` at the end (PostgreSQL: `percentrepl.c`).
pub fn command_placeholders(command: &str, path: &str, name: &str) -> Result<String, String> {
    let mut line = String::with_capacity(command.len() + path.len());
    let mut rest = command.chars();
    while let Some(c) = rest.next() {
        match (c, c == '%') {
            (c, false) => line.push(c),
            _ => match rest.next() {
                Some('p') => line.push_str(path),
                Some('f') => line.push_str(name),
                Some('%') => line.push('%'),
                Some(other) => return Err(format!("unknown placeholder %{other}; there are %p, %f and %%")),
                None => return Err("it ends in %; write %% for a percent sign".to_owned()),
            },
        }
    }
    Ok(line)
}

/// Runs the command for a file, in the data directory, as PostgreSQL does: by `sh -c`. Dropping this kills
/// the shell and what it runs.
pub(super) async fn run(
    command: &str,
    data_dir: &Path,
    path: &Path,
    name: &FileName,
) -> Result<(), CommandFailure> {
    let fatal = |reason: String| CommandFailure { reason, fatal: true };
    let line = command_placeholders(command, &path.display().to_string(), name.as_str()).map_err(fatal)?;
    let mut child = tokio::process::Command::new("sh");
    child.arg("-c").arg(&line).current_dir(data_dir).stdin(Stdio::null()).kill_on_drop(true);
    // A group of its own: a Ctrl-C for the relay must not cut off the copy it waits for.
    child.process_group(0);
    child.stdout(Stdio::null()).stderr(Stdio::piped());
    hears_signals(&mut child);
    let mut child = child.spawn().map_err(|error| fatal(format!("could not start a shell: {error}")))?;
    let said = tokio::spawn(last_words(child.stderr.take()));
    let group = Group(child.id());
    let status = child.wait().await;
    group.has_ended();
    let status = status.map_err(|error| fatal(format!("could not wait for the shell: {error}")))?;
    // What it left running in the background may keep its standard error for ever.
    let said = tokio::time::timeout(WORDS_LATE, said).await;
    judge(status, &said.ok().and_then(Result::ok).unwrap_or_default())
}

/// A command's processes, ended with it if nobody waits for it any more.
struct Group(Option<u32>);

impl Group {
    /// What it has left in the background goes on.
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

/// The end of what a command says on its standard error.
async fn last_words(from: Option<ChildStderr>) -> Vec<u8> {
    let mut said = Vec::new();
    let Some(mut from) = from else { return said };
    let mut buffer = [0u8; 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        said.extend_from_slice(&buffer[..length]);
        said.drain(..said.len().saturating_sub(4096));
    }
    said
}

fn judge(status: ExitStatus, said: &[u8]) -> Result<(), CommandFailure> {
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(said);
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    // Before it is cut: what is left of a secret could not be told from other words.
    let said = last.map(|line| redact(line).chars().take(200).collect::<String>());
    let said = said.map(|line| format!(": {line}")).unwrap_or_default();
    match (status.signal(), status.code()) {
        (Some(signal), _) => Err(CommandFailure {
            reason: format!("the command was ended by signal {signal}{said}"),
            fatal: true,
        }),
        (None, code) => {
            let code = code.unwrap_or_default();
            let reason = format!("the command failed with exit code {code}{said}");
            Err(CommandFailure { reason, fatal: code > 125 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> FileName {
        FileName::parse("000000010000000000000003").unwrap()
    }

    async fn outcome(command: &str) -> Result<(), (bool, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pg_wal/000000010000000000000003");
        run(command, dir.path(), &path, &name()).await.map_err(|failure| (failure.fatal, failure.reason))
    }

    #[test]
    fn placeholders_are_archive_commands() {
        let line = |command| command_placeholders(command, "/d/pg_wal/F", "F");
        assert_eq!(line("cp \"%p\" /a/%f").unwrap(), "cp \"/d/pg_wal/F\" /a/F");
        assert_eq!(line("date +%%s").unwrap(), "date +%s");
        assert!(line("cp %p %r").unwrap_err().contains("%r"));
        assert!(line("cp %").is_err());
    }

    #[tokio::test]
    async fn exit_codes_are_archive_commands() {
        assert_eq!(outcome("test %f = 000000010000000000000003").await, Ok(()));
        assert_eq!(outcome("test \"$PWD/pg_wal/%f\" = %p").await, Ok(()));
        let (fatal, reason) = outcome("echo no room >&2; exit 125").await.unwrap_err();
        assert!(!fatal && reason.contains("exit code 125: no room"), "{reason}");
        let trace = "echo '> Authorization: Bearer hunter2' >&2; exit 1";
        let (_, reason) = outcome(trace).await.unwrap_err();
        assert!(reason.ends_with(": > Authorization: ***"), "{reason}");
        assert!(outcome("exit 126").await.unwrap_err().0);
        assert!(outcome("/nonexistent/command").await.unwrap_err().0);
        assert!(outcome("kill -9 $$").await.unwrap_err().0);
        // Something that stays behind is not waited for.
        assert_eq!(outcome("tail -f /dev/null --pid=$$ & exit 0").await, Ok(()));
    }
}
