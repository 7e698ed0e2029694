//! Segments that somebody has removed from the data directory: told, and fetched again where the upstream has them.

use std::fs;

use walrelay_testkit::{Cluster, Port, Server, compare, on_one_version, wait_until};

use crate::relay_below;
use crate::status::metric;

on_one_version!(what_is_missing_is_fetched_again);

fn what_is_missing_is_fetched_again(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    primary.sql("alter system set wal_keep_size = '256MB'");
    primary.sql("select pg_reload_conf()");
    let port = Port::take();
    let mut relay = relay_below(&primary).arg("--http-listen").arg(&port.number().to_string()).start();
    primary.pgbench_init(1);
    let segments: Vec<String> = (0..4).map(|_| primary.switch_wal()).collect();
    relay.wait_for_segment(&segments[3]);
    relay.terminate();
    for name in &segments[..2] {
        fs::remove_file(relay.wal_dir().join(name)).expect("a finished segment");
    }
    relay.start();
    for name in &segments[..2] {
        wait_until(name, || relay.wal_dir().join(name).exists());
        relay.log().wait_for(&format!("missing WAL segment {name} is here again"));
    }
    relay.log().wait_for("is missing in the data directory");
    relay.wait_for_segment(&primary.switch_wal());
    compare::assert_segments(&primary, &relay.wal_dir(), 5);

    // What the upstream does not have either is said.
    relay.terminate();
    for dir in [relay.wal_dir(), primary.wal_dir()] {
        fs::remove_file(dir.join(&segments[2])).expect("a finished segment");
    }
    relay.start();
    relay.log().wait_for("cannot be fetched again from");
    let missing = || metric(&port, "walrelay_wal_missing_segments");
    wait_until("it to be counted", || missing() == Some(1.0));
    let troubles = relay.psql("dbname=walrelay", &["show troubles"]).expect("it is answered");
    assert!(troubles.contains("wal_missing||") && troubles.contains(&segments[2]), "{troubles}");
    relay.wait_for_segment(&primary.switch_wal());
}
