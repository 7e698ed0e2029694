//! [Barman](https://pgbarman.org), the backup manager.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use crate::account;
use crate::log::Log;
use crate::process::{Process, output};
use crate::python::Python;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::wait::wait_until;

/// A Barman installation with one server, `acc`, that has PostgreSQL's programs of one version. Commands run under
/// the servers' account. What they leave running is killed when this is dropped.
#[derive(Debug)]
pub struct Barman {
    python: Python,
    server: Server,
    commands: AtomicU32,
    scratch: Scratch,
}

/// How a command ended, and what it said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Both its outputs.
    pub text: String,
}

impl Barman {
    /// Configures the server with these lines of `barman.conf`. Each `{passfile}` in them becomes the path of a
    /// file with the lines `passwords`, in the form of `.pgpass`.
    pub fn new(server: &Server, settings: &str, passwords: &str) -> Barman {
        let scratch = Scratch::new("barman");
        scratch.dir("home");
        let (python, commands) = (Python::require(), AtomicU32::new(0));
        let barman = Barman { python, server: server.clone(), commands, scratch };
        barman.write("passfile", passwords);
        barman.configure(settings);
        barman
    }

    /// Replaces the server's configuration.
    pub fn configure(&self, settings: &str) {
        let user = output(account::command("id").arg("-un")).expect("the servers' account has a name");
        let settings = settings.replace("{passfile}", &self.passfile().display().to_string());
        let conf = format!(
            "[barman]\nbarman_home = {home}\nbarman_user = {user}\nlog_file = {log}\nlog_level = DEBUG\n\
             [acc]\ndescription = acceptance\npath_prefix = {bin}\n{settings}\n",
            home = self.home().display(),
            user = user.trim(),
            log = self.log().path().display(),
            bin = self.server.bin().display(),
        );
        self.write("barman.conf", &conf);
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.scratch.join(name);
        fs::write(&path, text).expect("the directory is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("we just wrote it");
        account::give(&path).expect("root may give files away");
    }

    /// Starts a command and does not wait.
    pub fn spawn(&self, args: &[&str]) -> Process {
        let mut command = self.python.barman();
        command.arg("-c").arg(self.conf()).args(args);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [self.server.bin().as_os_str(), &path].join(":".as_ref());
        command.env("PATH", path).env("HOME", self.scratch.path());
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        Process::spawn("barman", command, &self.scratch.join(&format!("{number}-{}", args[0])))
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Answer {
        answer(self.spawn(args))
    }

    /// Runs a command that must succeed; what it said.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.must(args, self.run(args))
    }

    /// Like [`Barman::ok`], with `meanwhile` called over and over as long as the command runs.
    #[track_caller]
    pub fn ok_while(&self, args: &[&str], mut meanwhile: impl FnMut()) -> String {
        let mut process = self.spawn(args);
        wait_until(format_args!("barman {}", args.join(" ")), || {
            meanwhile();
            !process.is_running()
        });
        self.must(args, answer(process))
    }

    #[track_caller]
    fn must(&self, args: &[&str], answer: Answer) -> String {
        let args = args.join(" ");
        assert_eq!(answer.code, Some(0), "barman {args}: {}\n{}", answer.text, self.log().tail());
        answer.text
    }

    /// `barman_home`.
    pub fn home(&self) -> PathBuf {
        self.scratch.join("home")
    }

    /// Its `barman.conf`, which only the servers' account can read.
    pub fn conf(&self) -> PathBuf {
        self.scratch.join("barman.conf")
    }

    /// The file with the passwords.
    pub fn passfile(&self) -> PathBuf {
        self.scratch.join("passfile")
    }

    /// Where archived segments of this timeline and log are: the first 16 digits of their names.
    pub fn wals(&self, prefix: &str) -> PathBuf {
        self.home().join("acc/wals").join(prefix)
    }

    /// Whether `receive-wal` runs: cron starts no second one.
    pub fn is_receiving(&self) -> bool {
        let receives = |pid: &Pid| {
            let command_line = command_line(pid.as_raw_nonzero().get());
            command_line.split('\0').any(|arg| arg == "receive-wal")
        };
        self.processes().iter().any(receives)
    }

    /// What it logs.
    pub fn log(&self) -> Log {
        Log::at(self.scratch.join("barman.log"))
    }

    /// Processes of this installation that run at the moment.
    fn processes(&self) -> Vec<Pid> {
        let listed = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        let pids = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // No two installations have a path in common.
        let path = self.scratch.path().display().to_string();
        pids.filter(|pid| command_line(*pid).contains(&path)).filter_map(Pid::from_raw).collect()
    }
}

fn answer(mut process: Process) -> Answer {
    let code = process.wait().code();
    Answer { code, text: process.log().text() }
}

/// A process's arguments, each with a NUL behind it; nothing if it has ended.
fn command_line(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
}

impl Drop for Barman {
    fn drop(&mut self) {
        let all_gone = || {
            let left = self.processes();
            for pid in &left {
                // It may have ended by itself.
                let _ = kill_process(*pid, Signal::KILL);
            }
            left.is_empty()
        };
        if std::thread::panicking() {
            all_gone();
            eprintln!("{}", self.log().tail());
        } else {
            wait_until("the end of Barman's processes", all_gone);
        }
    }
}
