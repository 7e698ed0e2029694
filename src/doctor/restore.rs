//! A standby's `restore_command`, tried here: whether it finds WAL that there is, and how it says that there is none. By its exit
//! code the server decides whether to go on, to ask again, or to end (PostgreSQL: `RestoreArchivedFile`).

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::time::timeout;

use super::finding::{Findings, remedy, time};
use crate::redact::redact;

/// A standby waits for its command, and does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is late for a file that is not there: a standby asks for one whenever it has all.
const LATE: Duration = Duration::from_secs(5);
/// Where a server wants the file, from its data directory.
const TARGET: &str = "pg_wal/RECOVERYXLOG";
/// A name that no archive has: the last segment of a timeline that nobody is on.
/// PG: `RestoreArchivedFile`, where cleanup is not allowed.
const NOTHING_KNOWN: &str = "000000000000000000000000";
const NOWHERE: &str = "FFFFFFFFFFFFFFFFFFFFFFFF";

/// What became of it.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    /// The file that there is, or should be, and what came of asking for it; `None` where no segment is complete yet.
    pub(super) newest: Option<(String, Outcome)>,
    /// What came of asking for a file that nobody has.
    pub(super) nowhere: Outcome,
    /// What came of asking while the archive is away: the command with another place in it, where there is nothing; `None` where
    /// it does not show which words of it are the place.
    pub(super) away: Option<Outcome>,
}

/// How a command has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Exit code 0, and a file of so many bytes.
    Came(u64),
    /// Exit code 0, and no file.
    Nothing,
    /// Another exit code, what it has said, and how long that took.
    Failed { code: i32, said: String, took: Duration },
    /// A signal, or a shell that could not run it: the server ends.
    Fatal { said: String },
    /// It has not ended in time.
    Stalled,
    /// It cannot be run here.
    NotRun(String),
}

/// A directory of our own, gone when this is.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> io::Result<Scratch> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("walrelay-doctor-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        // Fails if somebody has one of that name there.
        DirBuilder::new().mode(0o700).create(&path)?;
        let scratch = Scratch(path);
        // What a command sees of a standby.
        DirBuilder::new().mode(0o700).create(scratch.0.join("pg_wal"))?;
        std::fs::write(scratch.0.join("standby.signal"), "")?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs it for the newest segment, and for one that does not exist, as this user, in a directory of its own.
pub(super) async fn attempt(command: &str, newest: Option<String>) -> Tried {
    let scratch = match Scratch::make() {
        Ok(scratch) => scratch,
        Err(error) => {
            let nowhere = Outcome::NotRun(error.to_string());
            return Tried { newest: None, nowhere, away: None };
        }
    };
    let dir = scratch.0.as_path();
    let newest = match newest {
        Some(name) => {
            let outcome = run(command, &name, dir).await;
            Some((name, outcome))
        }
        None => None,
    };
    let nowhere = run(command, NOWHERE, dir).await;
    let file = newest.as_ref().map_or(NOWHERE, |(name, _)| name.as_str());
    let away = match elsewhere(command, &dir.join("away").display().to_string()) {
        Some(command) => Some(run(&command, file, dir).await),
        None => None,
    };
    Tried { newest, nowhere, away }
}

/// The command with `place`, a directory, where it has its archive: what `--from` names (`walrelay restore`), and the directories
/// that `%f` lies in. `None` where it has neither.
pub(super) fn elsewhere(command: &str, place: &str) -> Option<String> {
    let ends_word = |c: char| c.is_whitespace() || "\"'=<>;|&()".contains(c);
    let (mut line, mut rest, mut is_changed) = (String::new(), command, false);
    while let Some((before, behind)) = rest.split_once("--from") {
        line.push_str(before);
        line.push_str("--from");
        let value = behind.trim_start_matches(|c: char| c.is_whitespace() || "=\"'".contains(c));
        let end = value.find(|c: char| c.is_whitespace() || "\"';|&".contains(c)).unwrap_or(value.len());
        line.push_str(&behind[..behind.len() - value.len()]);
        line.push_str(&format!("file://{place}"));
        (rest, is_changed) = (&value[end..], true);
    }
    line.push_str(rest);
    let mut moved = String::new();
    let mut rest = line.as_str();
    while let Some((before, behind)) = rest.split_once("/%f") {
        let word = before
            .rfind(ends_word)
            .map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
        match before[word..].starts_with('/') {
            true => {
                moved.push_str(&before[..word]);
                moved.push_str(place);
                is_changed = true;
            }
            false => moved.push_str(before),
        }
        moved.push_str("/%f");
        rest = behind;
    }
    moved.push_str(rest);
    is_changed.then_some(moved)
}

async fn run(command: &str, file: &str, dir: &Path) -> Outcome {
    let to = dir.join(TARGET);
    let _ = std::fs::remove_file(&to);
    let line = substituted(command, file, TARGET);
    let begun = Instant::now();
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(&line).current_dir(dir).kill_on_drop(true);
    // With all that it has started.
    shell.process_group(0);
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = match shell.spawn() {
        Ok(child) => child,
        Err(error) => return Outcome::NotRun(error.to_string()),
    };
    let group = child.id();
    let ended = match timeout(PATIENCE, child.wait_with_output()).await {
        Err(_) => {
            end_group(group);
            return Outcome::Stalled;
        }
        Ok(Err(error)) => return Outcome::NotRun(error.to_string()),
        Ok(Ok(ended)) => ended,
    };
    let heard = redact(&String::from_utf8_lossy(&ended.stderr)).to_string();
    let said = heard.trim().lines().last().unwrap_or_default().to_owned();
    match ended.status.code() {
        Some(0) => std::fs::metadata(&to).map_or(Outcome::Nothing, |file| Outcome::Came(file.len())),
        Some(code) if code <= 125 => Outcome::Failed { code, said, took: begun.elapsed() },
        _ => Outcome::Fatal { said },
    }
}

fn end_group(group: Option<u32>) {
    let group = group.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// What a server from 16 on does not know of it.
pub(super) fn unknown_placeholder(command: &str) -> Option<String> {
    let mut rest = command.chars();
    while rest.any(|c| c == '%') {
        match rest.next() {
            Some('f' | 'p' | 'r' | '%') => {}
            Some(other) => return Some(format!("%{other}")),
            None => return Some("a % at its end".to_owned()),
        }
    }
    None
}

/// PG: `BuildRestoreCommand`; 15 passes on what it does not know, 16 and later end there. `%r` is what a server says that does not know yet which file it needs last.
fn substituted(command: &str, file: &str, to: &str) -> String {
    let (mut line, mut rest) = (String::new(), command.chars());
    while let Some(c) = rest.next() {
        match (c, c == '%') {
            (_, true) => match rest.next() {
                Some('f') => line.push_str(file),
                // Whatever a command removes before that file, it is nothing.
                Some('r') => line.push_str(NOTHING_KNOWN),
                Some('p') => line.push_str(to),
                Some('%') => line.push('%'),
                Some(other) => line.extend(['%', other]),
                None => line.push('%'),
            },
            (c, false) => line.push(c),
        }
    }
    line
}

impl Tried {
    /// What of that somebody should know.
    pub(super) fn tell(&self, found: &mut Findings, command: &str) {
        let command = &redact(command).to_string();
        if let Some((file, outcome)) = &self.newest {
            self.found_it(found, command, file, outcome);
        }
        match &self.nowhere {
            Outcome::Came(_) | Outcome::Nothing => {
                let text = format!("its restore_command says yes for a file that does not exist: {command}");
                found.error(
                    "restore_lies",
                    text,
                    remedy(["a command must fail, with an exit code of 1 to 125, where there is no file"]),
                );
            }
            Outcome::Failed { took, .. } if *took > LATE => {
                let text = format!(
                    "its restore_command takes {} to say that a file does not exist: the standby does not stream meanwhile",
                    time(took.as_secs_f64())
                );
                found.warning(
                    "restore_slow",
                    text,
                    remedy(["look why the archive answers so late; walrelay restore has --timeout"]),
                );
            }
            Outcome::Failed { .. } => {}
            other => self.bad(found, command, other),
        }
        self.without_archive(found, command);
    }

    /// What it does to a standby whose archive is away.
    fn without_archive(&self, found: &mut Findings, command: &str) {
        match &self.away {
            None => found.ok(
                "restore_away",
                format!("what its restore_command does when the archive is away was not tried, because it does not show where that is: {command}"),
            ),
            Some(Outcome::Came(_)) => {}
            Some(Outcome::Nothing) => {
                let text = format!(
                    "its restore_command says that a file has come when its archive is away, and it has not: {command}"
                );
                let fail = ["a command must fail, with an exit code of 1 to 125, where it has brought no file"];
                found.error("restore_away", text, remedy(fail));
            }
            Some(Outcome::Failed { took, .. }) if *took > LATE => {
                let text = format!(
                    "its restore_command takes {} when its archive is away: the standby does not stream meanwhile",
                    time(took.as_secs_f64())
                );
                found.warning("restore_away", text, remedy(["give it a limit: timeout 10 ..., or walrelay restore --timeout 10s"]));
            }
            Some(Outcome::Failed { code, .. }) => found.ok(
                "restore_away",
                format!("when its archive is away its restore_command says so (exit code {code}), and the standby goes on"),
            ),
            Some(Outcome::Fatal { said }) => {
                let text = format!(
                    "its restore_command ends the standby when its archive is away: by a signal or with a code above 125 ({said}): {command}"
                );
                let fail = ["a command must fail with an exit code of 1 to 125; walrelay restore does"];
                found.error("restore_away", text, remedy(fail));
            }
            Some(Outcome::Stalled) => {
                let text = format!(
                    "its restore_command has not ended after {} when its archive is away: the standby stands still meanwhile: {command}",
                    time(PATIENCE.as_secs_f64())
                );
                found.error("restore_away", text, remedy(["give it a limit: timeout 60 ..., or walrelay restore --timeout 60s"]));
            }
            Some(Outcome::NotRun(_)) => {}
        }
    }

    fn found_it(&self, found: &mut Findings, command: &str, file: &str, outcome: &Outcome) {
        match outcome {
            Outcome::Came(_) => found.ok("restore_command", format!("its restore_command finds {file}")),
            Outcome::Nothing => {
                let text =
                    format!("its restore_command says that {file} has come, and it has not: {command}");
                found.error("restore_lies", text, remedy(["%p is where the file has to go"]));
            }
            Outcome::Failed { code, said, .. } => {
                let text = format!(
                    "its restore_command does not find {file}, which is complete (exit code {code}: {said})"
                );
                let look = [
                    "is the archive complete and fresh (SHOW ARCHIVE), and does the command run as the server's user?",
                ];
                found.warning("restore_not_found", text, remedy(look));
            }
            other => self.bad(found, command, other),
        }
    }

    /// What would end or stop a standby.
    fn bad(&self, found: &mut Findings, command: &str, outcome: &Outcome) {
        match outcome {
            Outcome::Fatal { said } => {
                let text = format!(
                    "its restore_command ends the standby: it ends by a signal or with a code above 125 ({said}): {command}"
                );
                found.error("restore_kills", text, remedy(["is the program there, and may this user run it? a code above 125 is FATAL for the whole server"]));
            }
            Outcome::Stalled => {
                let text = format!(
                    "its restore_command has not ended after {}: the standby stands still meanwhile: {command}",
                    time(PATIENCE.as_secs_f64())
                );
                found.error(
                    "restore_stalls",
                    text,
                    remedy(["give it a limit: timeout 60 ..., or walrelay restore --timeout 60s"]),
                );
            }
            Outcome::NotRun(why) => {
                let text = format!("its restore_command could not be tried: {why}");
                let look = [
                    "doctor needs /bin/sh, a directory that it can make below $TMPDIR or /tmp, and a process more: is one full or forbidden (df -h, ulimit -u)?",
                ];
                found.warning("restore_command", text, remedy(look));
            }
            Outcome::Came(_) | Outcome::Nothing | Outcome::Failed { .. } => {}
        }
    }
}
