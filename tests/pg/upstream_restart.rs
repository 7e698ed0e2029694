//! The upstream stops, or crashes, and comes back.

use walrelay_testkit::{Cluster, Scratch, Server, compare, on_every_version, on_one_version, wait_until};

use crate::relay_below;

on_every_version!(the_primary_restarts_and_crashes);
on_one_version!(who_asks_for_the_upstream_has_it_looked_for);

fn the_primary_restarts_and_crashes(server: &Server) {
    let mut primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("standby");
    let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();
    primary.pgbench_init(1);

    // A fast shutdown waits for the relay to confirm all of the WAL, so it must.
    primary.stop();
    // What the relay has, it serves meanwhile.
    let last = relay.flush_lsn();
    standby.wait_for_replay(last);
    primary.start();
    primary.pgbench(2, 50);

    primary.kill9();
    primary.start();
    primary.pgbench(2, 50);
    primary.stop_immediately();
    primary.start();
    primary.pgbench(2, 50);

    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_segments(&primary, &relay.wal_dir(), 5);
    standby.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &standby);
}

/// The receiver pauses between attempts, the longer the more it has made, and nobody is refused who comes meanwhile.
fn who_asks_for_the_upstream_has_it_looked_for(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).arg("--log-level").arg("debug").start();
    let scratch = Scratch::new("looked_for");
    for round in 0..3 {
        let mark = relay.log().mark();
        primary.stop();
        // None is there, which is said at once.
        let error = relay.psql("dbname=postgres", &["select count(*) > 0 from pg_class"]).unwrap_err();
        assert!(error.0.contains("the upstream server cannot be reached"), "{error}");
        wait_until("attempts with the longest pause between them", || {
            relay.log().lines_with("trying again in ", mark).len() > 5
        });
        primary.start();
        if round == 1 {
            let dir = scratch.join("backup").display().to_string();
            let args = ["-d", &relay.conninfo(), "-c", "fast", "--no-sync", "-X", "none", "-D", &dir];
            server.run("pg_basebackup", &args).unwrap();
        }
        assert_eq!(relay.sql("select count(*) > 0 from pg_class"), "t");
    }
}
