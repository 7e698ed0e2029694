//! Row `restore`: one segment after the other from a directory, as recovery asks for them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::Bench;
use super::figures::WALRELAY;
use super::programs::{sync, version};
use super::stage::{ALL, relay};
use super::table::MS;
use crate::wait::wait_until;
use crate::{Cluster, Scratch, Server, install, tools};

const ROW: &str = "restore";
const CP: &str = "cp, which checks nothing";
const PGBACKREST: &str = "pgBackRest archive-get";
/// How many.
const SEGMENTS: usize = 16;
/// The newest version whose WAL Debian's pgBackRest takes.
const PGBACKREST_TAKES: u32 = 15;

pub(crate) fn measure(bench: &mut Bench, server: &Server) {
    let theirs = install::find(PGBACKREST_TAKES).filter(|_| version("pgbackrest", "version").is_some());
    let server = theirs.as_ref().unwrap_or(server);
    let primary = Cluster::builder(server).start();
    let scratch = Scratch::new("restore");
    let archive = scratch.dir("archive");
    let url = format!("file://{}", archive.display());
    let mut relay = relay(&bench.settings, &primary, ALL).arg("--archive").arg(&url).start();
    let names = write(&primary);
    let last = names.last().expect("there are some");
    wait_until("the last segment to be archived", || find(&archive, last).is_some());
    let pgbackrest = theirs.as_ref().map(|_| PgBackRest::fill(&primary, &scratch, &names));
    relay.terminate();
    let target = scratch.join("restored");
    for (turn, name) in names.iter().enumerate() {
        let archived = find(&archive, name).expect("all are archived");
        let original = crc(&primary.wal_dir().join(name));
        let mut walrelay = Command::new(&bench.settings.binary);
        walrelay.args(["restore", "--from", &url, name]).arg(&target);
        let mut cp = Command::new("cp");
        cp.arg(archived).arg(&target);
        let mut commands = vec![(WALRELAY, walrelay), (CP, cp)];
        commands.extend(pgbackrest.as_ref().map(|it| (PGBACKREST, it.get(name, &target))));
        // Who comes first finds the segment as the one before has left it.
        let first = turn % commands.len();
        commands.rotate_left(first);
        for (who, command) in commands {
            let took = time(command, &target);
            bench.figures.add(ROW, MS, who, took);
            assert_eq!(crc(&target), original, "{who} restores {name}");
            std::fs::remove_file(&target).expect("it was restored");
        }
    }
    match &pgbackrest {
        Some(_) => {}
        None => {
            bench.figures.remark(ROW, "pgBackRest, or PostgreSQL 15 for it, is not installed: not measured.")
        }
    }
    let text = format!(
        "{} segments of 16 MB, PostgreSQL {}; from the start of the command to the sync.",
        names.len(),
        server.version()
    );
    bench.figures.remark(ROW, text);
}

/// Runs a command that puts a file there, and syncs that; ms.
fn time(mut command: Command, target: &Path) -> f64 {
    let began = Instant::now();
    let output = command.output().expect("the program is there");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    sync(target);
    began.elapsed().as_secs_f64() * 1000.0
}

/// Segments of a load; their names.
fn write(primary: &Cluster) -> Vec<String> {
    primary.switch_wal();
    while primary.finished_segments().len() < SEGMENTS + 2 {
        primary.pgbench_init(10);
    }
    primary.switch_wal();
    let finished = primary.finished_segments();
    finished[finished.len() - SEGMENTS - 1..][..SEGMENTS].to_vec()
}

/// Where a segment lies in an archive, whatever its layout.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| match entry.file_type().ok()?.is_dir() {
        true => find(&entry.path(), name),
        false => (entry.file_name().to_str()? == name).then(|| entry.path()),
    })
}

fn crc(path: &Path) -> u32 {
    crc32c::crc32c(&std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// pgBackRest with a repository in a directory.
struct PgBackRest {
    options: Vec<String>,
}

impl PgBackRest {
    /// With these segments of the primary, uncompressed, as the others have them.
    fn fill(primary: &Cluster, scratch: &Scratch, names: &[String]) -> PgBackRest {
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let mut options: Vec<String> =
            ["--config=/dev/null", "--stanza=bench", "--log-level-file=off"].map(str::to_owned).to_vec();
        options.push(option("pg1-path", &primary.data_dir()));
        for (name, dir) in [("repo1-path", "repo"), ("log-path", "log"), ("lock-path", "lock")] {
            options.push(option(name, &scratch.dir(dir)));
        }
        let it = PgBackRest { options };
        it.run(&["--no-online", "stanza-create"], None);
        for name in names {
            it.run(&["--compress-type=none", "archive-push"], Some(&primary.wal_dir().join(name)));
        }
        it
    }

    fn command(&self) -> Command {
        let mut command = Command::new(tools::path("pgbackrest").expect("it was found"));
        command.args(&self.options);
        command
    }

    fn run(&self, args: &[&str], file: Option<&Path>) {
        let output = self.command().args(args).args(file).output().expect("the program is there");
        assert!(output.status.success(), "pgbackrest: {}", String::from_utf8_lossy(&output.stdout));
    }

    fn get(&self, name: &str, target: &Path) -> Command {
        let mut command = self.command();
        command.arg("archive-get").arg(name).arg(target);
        command
    }
}
