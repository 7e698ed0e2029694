//! The primary is restored to an earlier state.

use std::fs;
use std::path::Path;

use walrelay_proto::{Lsn, TimelineId, WalFileName};
use walrelay_testkit::{Cluster, Scratch, Server, compare, on_every_version, wait_until};

use crate::relay_below;

on_every_version!(
    recovery_to_a_point_in_the_past,
    recovery_to_before_all_that_is_held,
    an_old_backup_on_the_same_timeline
);

fn recovery_to_a_point_in_the_past(server: &Server) {
    let scratch = Scratch::new("restored");
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let relay = relay_below(&a).start();
    relay.create_slot("c");
    let c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    let backup = scratch.join("data");
    a.base_backup_to(&backup);
    a.pgbench_init(1);
    let target = a.settled_lsn();
    a.pgbench(2, 200);
    a.switch_wal();
    a.sql("create table mistake as select generate_series(1, 50000)");
    let end = a.settled_lsn();
    relay.wait_for_flush(end);
    c.wait_for_replay(end);

    a.kill9();
    recover_to(&mut a, &backup, &scratch.join("archive"), target);
    assert!(a.history().begin() <= end);

    // The relay held all of timeline 1, from long before the fork: it goes on from there.
    relay.wait_for_timeline(2);
    relay.log().wait_for("timeline 1 was held up to");
    c.log().wait_for("is not in this server's history");
    a.pgbench(2, 100);
    let last = a.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_timelines(&a, &relay.wal_dir(), 2);

    // Somebody new gets the restored cluster, and nothing of the mistake.
    relay.create_slot("d");
    let d = a.standby().name("d").follow(&relay.conninfo()).slot("d");
    let d = d.conf("recovery_target_lsn = ''").conf("restore_command = ''").start();
    d.wait_for_replay(a.settled_lsn());
    compare::assert_dumps(&a, &d);
}

/// Restores a killed server and has it replay its old WAL up to `target`, which makes a new timeline.
#[track_caller]
fn recover_to(a: &mut Cluster, backup: &Path, archive: &Path, target: Lsn) {
    a.restore(backup, archive);
    a.append_conf(&format!("restore_command = 'cp \"{}/%f\" \"%p\"'", archive.display()));
    a.append_conf(&format!("recovery_target_lsn = '{target}'\nrecovery_target_action = promote"));
    fs::write(a.data_dir().join("recovery.signal"), "").expect("the data directory is there");
    a.start();
    a.wait_for_sql("select pg_is_in_recovery()", "f");
}

fn recovery_to_before_all_that_is_held(server: &Server) {
    let scratch = Scratch::new("restored");
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let mut relay = relay_below(&a).arg("--wal-keep-size").arg("0").start();
    relay.create_slot("c");
    let mut c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    let backup = scratch.join("data");
    a.base_backup_to(&backup);
    a.pgbench_init(1);
    let target = a.settled_lsn();
    let size = a.seg_size();
    let forked = WalFileName::new(TimelineId::FIRST, target.seg_at(size)).format(size);
    relay.wait_for_segment(&a.switch_wal());
    a.sql("create table mistake as select generate_series(1, 50000)");
    let last = a.switch_wal();
    relay.wait_for_segment(&last);
    let end = a.settled_lsn();
    relay.wait_for_flush(end);
    c.wait_for_replay(end);
    wait_until("old WAL to be removed", || !relay.wal_dir().join(&forked).exists());

    a.kill9();
    recover_to(&mut a, &backup, &scratch.join("archive"), target);
    let refusal = format!("timeline 2 cannot begin at {}", a.history().begin());
    relay.log().wait_for(&refusal);
    let said = &relay.log().lines_with(&refusal, Default::default())[0];
    assert!(said.contains("ERROR") && said.contains("has already been removed"), "{said}");

    // Whatever it writes, nothing of it is taken, and it gets nothing of ours.
    while a.flush_lsn() <= end {
        a.sql("create table other as select generate_series(1, 5000) as i; drop table other");
    }
    let mark = relay.log().mark();
    relay.restart();
    relay.log().wait_for_after(mark, &refusal);
    assert!(relay.flush_lsn() >= end && relay.timeline() == 1);
    assert!(!relay.wal_dir().join("00000002.history").exists());
    assert_eq!(a.sql("select count(*) from pg_replication_slots"), "0");
    c.restart();
    c.wait_for_sql("select status from pg_stat_wal_receiver", "streaming");
    assert_eq!(c.sql("select count(*) from mistake"), "50000");

    // An empty data directory, as docs/TIMELINES.md advises, takes the restored cluster.
    let anew = relay_below(&a).name("anew").start();
    a.pgbench(1, 50);
    let last = a.switch_wal();
    anew.wait_for_segment(&last);
    compare::assert_segments(&a, &anew.wal_dir(), 1);
}

fn an_old_backup_on_the_same_timeline(server: &Server) {
    let scratch = Scratch::new("restored");
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let backup = scratch.join("data");
    let mut relay = relay_below(&a).start();
    relay.create_slot("c");
    let c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);
    // A backup as by `cp` of a stopped server: it starts without recovery, hence without a new timeline.
    a.stop();
    a.copy_data_to(&backup);
    a.start();
    a.sql("create table mistake as select generate_series(1, 50000)");
    let end = a.settled_lsn();
    relay.wait_for_flush(end);
    c.wait_for_replay(end);
    let newest = a.sql(&format!("select pg_walfile_name('{end}')")) + ".partial";
    let newest = relay.wal_dir().join(newest);
    a.kill9();
    let before = fs::read(&newest).expect("the relay writes it");

    a.restore(&backup, &scratch.join("lost"));
    a.start();
    relay.log().wait_for("is ahead of the upstream's flush position");
    // It overtakes with other content.
    while a.flush_lsn() <= end {
        a.sql("create table other as select generate_series(1, 5000) as i; drop table other");
    }
    relay.log().wait_for("the histories of the two have diverged");
    let said = &relay.log().lines_with("have diverged", Default::default())[0];
    assert!(said.contains("ERROR") && said.contains("timeline 1"), "{said}");

    // Nothing of it was taken or confirmed, and all there was is served, also after a restart.
    relay.restart();
    assert_eq!(relay.flush_lsn(), end);
    assert!(fs::read(&newest).expect("it is still being written") == before);
    let confirmed = "select coalesce(max(flush_lsn), '0/0') from pg_stat_replication";
    assert!(a.sql(confirmed).parse::<Lsn>().expect("a position") <= end);
    c.wait_for_sql("select status from pg_stat_wal_receiver", "streaming");
    assert_eq!((c.sql("select count(*) from mistake").as_str(), c.replay_lsn()), ("50000", end));
}
