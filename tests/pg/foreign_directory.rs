//! Data directories that are somebody else's, or whose own state is lost, are refused before anything is changed.

use std::fs;
use std::path::{Path, PathBuf};

use walrelay_testkit::{Cluster, Server, on_one_version};

use crate::relay_below;

on_one_version!(a_servers_directory_is_refused, wal_without_its_cluster_is_refused);

fn a_servers_directory_is_refused(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    primary.switch_wal();
    primary.stop();
    let before = files(&primary.data_dir());
    let mut relay = relay_below(&primary).data_dir(primary.data_dir()).prepare();
    relay.spawn();
    assert_eq!(relay.wait_exit(), Some(6));
    relay.log().wait_for("belongs to a PostgreSQL server (it has ");
    assert_eq!(files(&primary.data_dir()), before);
    primary.start();
}

fn wal_without_its_cluster_is_refused(server: &Server) {
    let primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).start();
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    relay.terminate();
    let (cluster, away) = (relay.data_dir().join("cluster.toml"), relay.data_dir().join("away.toml"));
    fs::rename(&cluster, &away).expect("the relay has stopped");
    let before = files(&relay.wal_dir());
    relay.spawn();
    assert_eq!(relay.wait_exit(), Some(6));
    relay.log().wait_for("restore cluster.toml, or move pg_wal away");
    assert_eq!(files(&relay.wal_dir()), before);
    fs::rename(&away, &cluster).expect("the relay has stopped");
    relay.start();
    relay.wait_for_flush(primary.flush_lsn());
}

/// Everything below a directory, with its size.
fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("it is there") {
        let path = entry.expect("it is there").path();
        let kind = path.symlink_metadata().expect("it is there");
        if kind.is_dir() {
            found.extend(files(&path));
        }
        found.push((path, kind.len()));
    }
    found.sort();
    found
}
