//! What PostgreSQL's own reader finds in a directory of WAL files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use walrelay_proto::Lsn;

use crate::account::clean_command;
use crate::scratch::Scratch;
use crate::server::Server;

/// Start of the last commit record in the newest two segments of `wal_dir`, the unfinished one
/// (`<name>.partial`) included. `None` if there is none.
pub fn last_commit(server: &Server, wal_dir: &Path) -> Option<Lsn> {
    let copy = Scratch::new("waldump");
    let newest = newest_two(wal_dir);
    for (name, path) in &newest {
        // The file shrinks or goes only when the relay runs, which it should not.
        fs::copy(path, copy.join(name)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let mut command = clean_command(&server.program("pg_waldump"));
    command.args(["-r", "Transaction", "-p"]).arg(copy.path());
    // The first and the last segment to read.
    command.args([&newest.first()?.0, &newest.last()?.0]);
    // It ends with an error at the end of the WAL, which is what we are after.
    let output = command.output().expect("pg_waldump is installed");
    String::from_utf8_lossy(&output.stdout).lines().filter_map(commit_in).next_back()
}

/// Transactions whose commit records are in the segments of `wal_dir` from this one on, the unfinished one included.
pub fn committed(server: &Server, wal_dir: &Path, from: &str) -> BTreeSet<u32> {
    let copy = Scratch::new("waldump");
    let files: BTreeMap<_, _> =
        segments(wal_dir).into_iter().filter(|(name, _)| name.as_str() >= from).collect();
    for (name, path) in &files {
        fs::copy(path, copy.join(name)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let (Some(first), Some(last)) = (files.keys().next(), files.keys().next_back()) else {
        return BTreeSet::new();
    };
    assert_eq!(first, from, "{}: it is kept", wal_dir.display());
    let mut command = clean_command(&server.program("pg_waldump"));
    command.args(["-r", "Transaction", "-p"]).arg(copy.path()).args([first, last]);
    // As above. A server has segments behind the last one that it will write: they hold nothing that is read.
    let output = command.output().expect("pg_waldump is installed");
    let xid = |line: &str| {
        commit_in(line)?;
        line.split_once(" tx: ")?.1.split(',').next()?.trim().parse().ok()
    };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(xid).collect()
}

fn newest_two(wal_dir: &Path) -> Vec<(String, PathBuf)> {
    let files = segments(wal_dir);
    let older = files.len().saturating_sub(2);
    files.into_iter().skip(older).collect()
}

/// By their names, the unfinished one by the name that it is going to have.
fn segments(wal_dir: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(wal_dir).unwrap_or_else(|error| panic!("{}: {error}", wal_dir.display()));
    let mut files = BTreeMap::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let segment = name.strip_suffix(".partial").unwrap_or(&name).to_owned();
        if segment.len() == 24 && (segment == name || !files.contains_key(&segment)) {
            files.insert(segment, path);
        }
    }
    files
}

/// `rmgr: Transaction len (rec/tot): 34/34, tx: 740, lsn: 0/01B2A3F8, prev 0/01B2A3B8, desc: COMMIT …`
fn commit_in(line: &str) -> Option<Lsn> {
    let (before, desc) = line.split_once(" desc: ")?;
    let lsn = before.split_once("lsn: ")?.1.split(',').next()?;
    desc.starts_with("COMMIT ").then(|| lsn.parse().ok())?
}
