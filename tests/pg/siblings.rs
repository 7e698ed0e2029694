//! Two servers promoted from the same timeline, neither knowing of the other.

use walrelay_testkit::{Cluster, Relay, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(siblings_that_forked_apart, siblings_that_forked_at_the_same_position);

fn siblings_that_forked_apart(server: &Server) {
    let lose = |a: &mut Cluster, b: &Cluster, c: &Cluster| {
        c.wait_for_receive(a.settled_lsn());
        a.freeze_walsender("c");
        a.sql("create table between as select generate_series(1, 100)");
        b.wait_for_receive(a.settled_lsn());
        a.kill9();
    };
    siblings(server, lose, |said| {
        let held = said.split("does not descend from timeline 2 (1 until ").nth(1);
        assert!(said.contains("upstream is on timeline 2 (1 until ") && held.is_some(), "{said}");
    });
}

/// Their histories are the same: only what they wrote afterwards tells them apart.
fn siblings_that_forked_at_the_same_position(server: &Server) {
    // A clean stop: both get everything.
    let lose = |a: &mut Cluster, _: &Cluster, _: &Cluster| a.stop();
    siblings(server, lose, |said| {
        let differs = "the upstream's WAL differs from what was received before";
        assert!(said.contains("timeline 2 at ") && said.contains(differs), "{said}");
    });
}

/// `lose` ends A; `check` looks at what the relay says of C when only that one is left.
fn siblings(server: &Server, lose: impl Fn(&mut Cluster, &Cluster, &Cluster), check: impl Fn(&str)) {
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let mut b = a.standby().name("b").start();
    let c = a.standby().name("c").conf("max_connections = 77").start();
    let mut relay = relay_below(&a).upstream(&Relay::hosts(&[&a, &b, &c])).start();
    relay.create_slot("d");
    let mut d = a.standby().name("d").follow(&relay.conninfo()).slot("d").start();
    a.pgbench_init(1);
    lose(&mut a, &b, &c);
    b.promote();
    relay.wait_for_timeline(2);
    b.pgbench(1, 50);
    relay.wait_for_flush(b.settled_lsn());

    c.promote();
    while c.flush_lsn() <= b.flush_lsn() {
        c.sql("create table sibling as select generate_series(1, 20000); drop table sibling");
    }
    b.stop();
    refused(&relay, &c, &check, 0);
    let end = relay.flush_lsn();
    d.wait_for_replay(end);

    // After a restart it is no different, and all there is is served to those who come anew.
    let mark = relay.log().text().len();
    relay.restart();
    refused(&relay, &c, &check, mark);
    d.restart();
    d.wait_for_sql("select status, received_tli from pg_stat_wal_receiver", "streaming|2");
    assert_eq!((relay.flush_lsn(), relay.timeline()), (end, 2));
    assert_eq!(relay.command("SHOW max_connections"), "60");
    assert_eq!(c.sql("select count(*) from pg_replication_slots"), "0");

    b.start();
    b.pgbench(1, 50);
    let last = b.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_timelines(&b, &relay.wal_dir(), 2);
    d.wait_for_replay(b.settled_lsn());
    compare::assert_dumps(&b, &d);
}

/// Waits for what is said of `host` in the log from `mark` on: an error.
#[track_caller]
fn refused(relay: &Relay, host: &Cluster, check: &impl Fn(&str), mark: usize) {
    let about = format!("{}: ", host.port());
    let said = walrelay_testkit::wait_for("a refusal", || {
        let text = relay.log().text();
        let mut lines = text.get(mark..)?.lines();
        lines.find(|line| line.contains("ERROR") && line.contains(&about)).map(str::to_owned)
    });
    check(&said);
}
