//! The relay has more of a timeline than the server that is promoted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use walrelay_testkit::{Cluster, Relay, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(the_relay_is_ahead_of_the_new_primary, the_relay_is_segments_ahead);

fn the_relay_is_ahead_of_the_new_primary(server: &Server) {
    let said = "forked off current database system timeline 1 before current recovery point";
    forks(server, said, |a| {
        a.sql("create table void as select 1");
    });
}

fn the_relay_is_segments_ahead(server: &Server) {
    let said = "is not in this server's history";
    forks(server, said, |a| {
        a.sql("create table void as select generate_series(1, 20000)");
        a.switch_wal();
        a.sql("insert into void select generate_series(1, 20000)");
    });
}

/// `void` writes what `B` never gets; `said` is what a standby says that has it.
fn forks(server: &Server, said: &str, void: impl Fn(&Cluster)) {
    let hints = "wal_log_hints = on";
    let mut a = Cluster::builder(server).name("a").seg_mb(1).conf(hints).start();
    let b = a.standby().name("b").start();
    let mut relay = relay_below(&a).upstream(&Relay::hosts(&[&a, &b])).start();
    relay.create_slot("c");
    let mut c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);
    b.wait_for_replay(a.settled_lsn());

    a.freeze_walsender("b");
    void(&a);
    let end = a.settled_lsn();
    relay.wait_for_flush(end);
    c.wait_for_replay(end);
    a.kill9();
    let abandoned = files_of_timeline(&relay.wal_dir(), "00000001");
    b.promote();
    relay.wait_for_timeline(2);
    relay.log().wait_for("timeline 1 was held up to");

    // C has what never came to be for B, and is told so as PostgreSQL would tell it.
    c.log().wait_for(said);
    b.pgbench(2, 200);
    let last = b.switch_wal();
    relay.wait_for_segment(&last);
    // The abandoned branch is there, untouched, beside the new one; a restart changes nothing about that.
    relay.restart();
    let kept = files_of_timeline(&relay.wal_dir(), "00000001");
    let same = abandoned.iter().all(|(name, bytes)| {
        let finished = name.trim_end_matches(".partial");
        kept.get(name).or_else(|| kept.get(finished)) == Some(bytes)
    });
    assert!(same, "had {:?}, has {:?}", abandoned.keys(), kept.keys());
    compare::assert_timelines(&b, &relay.wal_dir(), 2);

    c.stop();
    c.rewind_to(&b);
    c.become_standby("c", &relay.conninfo(), Some("c"));
    c.start();
    c.wait_for_replay(b.settled_lsn());
    compare::assert_dumps(&b, &c);
    c.wait_for_sql("select status, received_tli from pg_stat_wal_receiver", "streaming|2");
}

fn files_of_timeline(dir: &Path, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("the relay has a pg_wal");
    let files = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?.to_owned();
        name.starts_with(prefix).then(|| (name, fs::read(&path).expect("it is listed")))
    });
    files.collect()
}
