//! SQL and replication commands through `psql`, the client everybody trusts.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, channel};

use crate::process::{Process, output};
use crate::scratch::Scratch;
use crate::server::Server;
use crate::wait::PATIENCE;

/// What psql said instead of a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SqlError(pub String);

/// Runs commands, one after the other on one connection, and returns their results' rows as lines with fields
/// separated by `|`.
pub(crate) fn run(server: &Server, conninfo: &str, commands: &[&str]) -> Result<String, SqlError> {
    let mut command = server.command("psql");
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", conninfo]);
    for sql in commands {
        command.args(["-c", sql]);
    }
    output(&mut command).map(|text| text.trim_end().to_owned()).map_err(SqlError)
}

/// A psql that stays connected: for transactions that stay open and for many small commits.
#[derive(Debug)]
pub struct Session {
    stdin: ChildStdin,
    lines: Receiver<String>,
    process: Process,
    _scratch: Scratch,
}

const END: &str = "--end-of-answer--";

impl Session {
    /// Connects.
    pub fn open(server: &Server, conninfo: &str) -> Session {
        let scratch = Scratch::new("psql");
        let mut command = server.lasting("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", conninfo]);
        let mut process = Process::spawn_piped("psql", command, &scratch.join("log"));
        let (stdin, stdout) = process.pipes();
        Session { stdin, lines: lines_of(stdout), process, _scratch: scratch }
    }

    /// Runs one statement and returns its rows; `Err` when it fails, which ends the session, or takes longer than
    /// [`PATIENCE`].
    ///
    /// psql shows a result only when the command is complete, so an answer means that a commit is acknowledged.
    pub fn run(&mut self, sql: &str) -> Result<String, SqlError> {
        self.send(sql)?;
        self.answer()
    }

    /// Sends a statement without waiting for it; [`Session::answer`] does that.
    pub fn send(&mut self, sql: &str) -> Result<(), SqlError> {
        let sent = writeln!(self.stdin, "{sql};\n\\echo {END}").and_then(|()| self.stdin.flush());
        sent.map_err(|_| self.failed())
    }

    /// The rows of the statement sent last.
    pub fn answer(&mut self) -> Result<String, SqlError> {
        let mut rows = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line == END => return Ok(rows.join("\n")),
                Ok(line) => rows.push(line),
                Err(_) => return Err(self.failed()),
            }
        }
    }

    fn failed(&mut self) -> SqlError {
        let state = if self.process.is_running() { "no answer in time" } else { "session ended" };
        SqlError(format!("{state}: {}", self.process.log().tail()))
    }
}

/// Reads on a thread of its own, which ends with the pipe: a pipe cannot be read with a deadline.
fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let mut read = BufReader::new(stdout).lines().map_while(Result::ok);
        read.try_for_each(|line| sender.send(line))
    });
    lines
}
