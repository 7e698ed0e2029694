//! Servers that are not followed, while everything stored goes on being served.

use std::fs::File;
use std::os::unix::fs::FileExt;

use walrelay_proto::{Lsn, SegSize, TimelineId, WalFileName};
use walrelay_testkit::{Cluster, Relay, Scratch, Server, compare, on_every_version, on_one_version_mostly};

use crate::relay_below;

on_every_version!(
    a_zombie_is_not_followed,
    a_server_behind_is_passed_over_until_it_has_caught_up,
    the_only_server_comes_back_older_and_is_waited_for
);
on_one_version_mostly!(another_cluster_is_not_followed, damaged_wal_is_not_taken);

/// Nobody is asked for a password, and user `relay` is not let in.
const NO_RELAY: &str = "
local all,replication all trust
host all,replication relay 127.0.0.1/32 reject
host all,replication all 127.0.0.1/32 trust
";

fn a_zombie_is_not_followed(server: &Server) {
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let mut b = a.standby().name("b").start();
    let mut relay = relay_below(&a).upstream(&Relay::hosts(&[&a, &b])).start();
    relay.create_slot("c");
    let c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);
    a.freeze_walsender("walrelay");
    b.wait_for_receive(a.settled_lsn());
    a.kill9();
    b.promote();
    relay.wait_for_timeline(2);
    b.pgbench(1, 50);
    let end = b.settled_lsn();
    relay.wait_for_flush(end);

    // The old primary comes back by itself, writes more than the new one has, and the new one goes.
    a.start();
    a.sql("drop table if exists pgbench_history; create table zombie as select generate_series(1, 100000)");
    b.stop();
    relay.log().wait_for("upstream is on timeline 1, behind timeline 2 that is held here");
    let mark = relay.log().mark();
    relay.restart();
    relay.log().wait_for_after(mark, "upstream is on timeline 1, behind timeline 2 that is held here");
    // Connections that have just been refused may still be seen.
    assert_eq!(a.sql("select count(*) from pg_stat_replication where state <> 'startup'"), "0");
    // Refused, it is left without a slot that would keep WAL for nobody: the one it has is from before.
    assert_eq!(a.sql("select active from pg_replication_slots"), "f");

    // All there is is served to everybody, also to a newcomer.
    c.wait_for_replay(end);
    assert!(relay.flush_lsn() >= end && relay.timeline() == 2);

    b.start();
    b.pgbench(1, 50);
    let last = b.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_timelines(&b, &relay.wal_dir(), 2);
    c.wait_for_replay(b.settled_lsn());
    compare::assert_dumps(&b, &c);
}

fn another_cluster_is_not_followed(server: &Server) {
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let other = Cluster::builder(server).name("other").seg_mb(1).fresh_initdb().start();
    let relay = relay_below(&a).upstream(&Relay::hosts(&[&a, &other])).start();
    relay.create_slot("c");
    let c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);
    let end = a.settled_lsn();
    relay.wait_for_flush(end);
    a.stop();

    let id = "select system_identifier from pg_control_system()";
    relay.log().wait_for(&format!("the upstream's is {}", other.sql(id)));
    let line = relay.log().lines_with("belongs to another cluster", Default::default());
    assert!(line[0].contains(&c.sql(id)), "{line:?}");
    assert_eq!(other.sql("select count(*) from pg_replication_slots"), "0");
    c.wait_for_replay(end);
    assert_eq!(relay.timeline(), 1);

    a.start();
    a.pgbench(1, 50);
    c.wait_for_replay(a.settled_lsn());
    compare::assert_dumps(&a, &c);
}

fn a_server_behind_is_passed_over_until_it_has_caught_up(server: &Server) {
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    a.sql("create role relay login replication");
    let b = a.standby().name("b").start();
    let upstream = Relay::hosts(&[&a, &b]).replace("user=postgres", "user=relay");
    let relay = relay_below(&a).upstream(&upstream).start();
    relay.create_slot("c");
    let mut c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);
    b.wait_for_receive(a.settled_lsn());
    a.freeze_walsender("b");
    a.sql("create table more as select generate_series(1, 20000)");
    let end = a.settled_lsn();
    relay.wait_for_flush(end);
    c.wait_for_replay(end);
    a.kill9();

    relay.log().wait_for("upstream is on timeline 1 at ");
    let held = relay.flush_lsn();
    let said = &relay.log().lines_with("upstream is on timeline 1 at ", Default::default())[0];
    let both =
        said.contains(&format!("{}: ", b.port())) && said.contains(&format!("behind {held} that is held"));
    assert!(both, "{said}");
    assert_eq!(b.sql("select count(*) from pg_replication_slots"), "0");
    c.restart();
    c.wait_for_sql("select status from pg_stat_wal_receiver", "streaming");

    // B gets the rest from A, which the relay cannot use: then the relay goes on with B.
    a.set_hba(NO_RELAY);
    a.start();
    a.pgbench(1, 50);
    let last = a.switch_wal();
    relay.wait_for_segment(&last);
    b.wait_for_sql("select application_name from pg_stat_replication", "walrelay");
    compare::assert_segments(&a, &relay.wal_dir(), 3);
    c.wait_for_replay(a.settled_lsn());
    compare::assert_dumps(&a, &c);
}

fn the_only_server_comes_back_older_and_is_waited_for(server: &Server) {
    let scratch = Scratch::new("copy");
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let mut b = a.standby().name("b").start();
    let relay = relay_below(&b).start();
    relay.create_slot("c");
    let mut c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);
    b.wait_for_replay(a.settled_lsn());
    b.stop();
    b.copy_data_to(&scratch.join("data"));
    b.start();
    a.sql("create table more as select generate_series(1, 20000)");
    let end = a.settled_lsn();
    relay.wait_for_flush(end);
    a.stop();
    b.stop();

    b.restore(&scratch.join("data"), &scratch.join("lost"));
    b.start();
    relay.log().wait_for("is ahead of the upstream's flush position");
    let held = relay.flush_lsn();
    c.restart();
    c.wait_for_replay(held);
    assert_eq!(c.sql("select count(*) from more"), "20000");
    assert!(b.receive_lsn() < held);

    a.start();
    a.pgbench(1, 50);
    let last = a.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_segments(&a, &relay.wal_dir(), 3);
    c.wait_for_replay(a.settled_lsn());
    compare::assert_dumps(&a, &c);
}

fn damaged_wal_is_not_taken(server: &Server) {
    let mut a = Cluster::builder(server).name("a").seg_mb(1).start();
    let mut relay = relay_below(&a).start();
    relay.create_slot("c");
    let mut c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    a.pgbench_init(1);
    c.wait_for_replay(a.settled_lsn());
    relay.terminate();
    // What the relay confirmed when it left.
    a.wait_for_sql("select count(*) from pg_stat_replication", "0");
    let slot = "select restart_lsn from pg_replication_slots";
    let held: Lsn = a.sql(slot).parse().expect("the slot has a position");
    let size = a.seg_size();
    a.sql("create table more as select generate_series(1, 5000)");
    a.stop();
    let damage = Damage::at(&a, checksum_of_record_at(held, size), size);
    a.start();

    relay.start();
    relay.log().wait_for("the histories of the two have diverged, or it sends damaged WAL");
    let about = format!("does not continue timeline 1 that is held here up to {held}");
    let said = relay.log().lines_with(&about, Default::default());
    assert!(said[0].contains("WARN") && said[0].contains("is looked at once more"), "{said:?}");
    assert!(said[1].contains("ERROR"), "{said:?}");
    assert_eq!((relay.flush_lsn(), a.sql(slot).parse()), (held, Ok(held)));
    c.restart();
    c.wait_for_sql("select status from pg_stat_wal_receiver", "streaming");

    damage.repair();
    a.pgbench(1, 50);
    let last = a.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_segments(&a, &relay.wal_dir(), 3);
    c.wait_for_replay(a.settled_lsn());
    compare::assert_dumps(&a, &c);
}

/// Where the checksum of the record is that begins at or right behind the page header at `lsn`.
fn checksum_of_record_at(lsn: Lsn, size: SegSize) -> Lsn {
    let behind_header = |lsn: Lsn| match (lsn.offset_in_seg(size), lsn == lsn.page_start()) {
        (0, _) => lsn.advance(40),
        (_, true) => lsn.advance(24),
        _ => lsn,
    };
    // Records begin at multiples of 8, so no word of the record is split.
    (0..5).fold(behind_header(lsn), |at, _| behind_header(at.advance(4)))
}

/// A byte of a stopped server's WAL that is not as it was.
struct Damage {
    file: File,
    offset: u64,
}

impl Damage {
    fn at(server: &Cluster, lsn: Lsn, size: SegSize) -> Damage {
        let name = WalFileName::new(TimelineId::FIRST, lsn.seg_at(size)).format(size);
        let file = File::options().read(true).write(true).open(server.wal_dir().join(name));
        let damage = Damage { file: file.expect("the server keeps it"), offset: lsn.offset_in_seg(size) };
        damage.repair();
        damage
    }

    /// Turning its bits once more restores it.
    fn repair(&self) {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, self.offset).expect("it lies in the file");
        self.file.write_all_at(&[!byte[0]], self.offset).expect("the file is writable");
    }
}
