//! The primary fails, a standby is promoted for a moment, and the old primary comes back on a newer timeline whose history
//! knows nothing of that.

use std::fs;

use walrelay_proto::{Lsn, TimelineHistory, TimelineId};
use walrelay_testkit::{
    Cluster, Receivewal, Relay, Server, compare, on_every_version, on_one_version_mostly,
};

use crate::relay_below;

on_every_version!(what_it_alone_had_is_not_lost);
on_one_version_mostly!(everybody_comes_back_with_it);

/// A, its standby B, a relay that knows both, and a relay below that.
struct Around {
    a: Cluster,
    b: Cluster,
    relay: Relay,
    lower: Relay,
}

impl Around {
    fn start(server: &Server) -> Around {
        let a = Cluster::builder(server).name("a").seg_mb(1).conf("wal_log_hints = on").start();
        let b = a.standby().name("b").start();
        let relay = relay_below(&a).name("upper").upstream(&Relay::hosts(&[&a, &b])).start();
        let lower = relay.builder_below().name("lower").start();
        a.pgbench_init(1);
        b.wait_for_replay(a.settled_lsn());
        Around { a, b, relay, lower }
    }

    /// A fails, B is promoted, the relays follow and get more of it.
    fn b_takes_over(&mut self) {
        self.a.kill9();
        self.b.promote();
        // A standby knows of the new timeline for good, and so does pg_rewind, after a restartpoint on it.
        self.b.sql("checkpoint");
        self.b.sql("create table dead as select generate_series(1, 20000)");
        let last = self.b.switch_wal();
        self.b.sql("insert into dead select generate_series(1, 1000)");
        for relay in [&self.relay, &self.lower] {
            relay.wait_for_segment(&last);
            relay.wait_for_flush(self.b.settled_lsn());
        }
    }

    /// B fails; A comes back with what it had, and takes a number that is free.
    fn a_comes_back(&mut self) {
        self.b.kill9();
        self.tell_of_2(&self.a);
        self.a.become_standby("a", &self.b.conninfo(), None);
        self.a.append_conf("recovery_target_timeline = 'current'");
        self.a.start();
        self.a.promote();
        assert_eq!(self.a.timeline(), TimelineId::new(3).unwrap());
        assert!(!self.a.history().contains(TimelineId::new(2).unwrap()));
    }

    /// As an archive would, or whoever manages the cluster.
    fn tell_of_2(&self, server: &Cluster) {
        let known = "00000002.history";
        let content = fs::read(self.relay.wal_dir().join(known)).expect("the relay has it");
        fs::write(server.wal_dir().join(known), content).expect("the directory is there");
    }

    /// Where B's timeline began.
    fn fork(&self) -> Lsn {
        let two = TimelineId::new(2).unwrap();
        let content = fs::read(self.relay.wal_dir().join(two.history_file_name())).expect("it is kept");
        TimelineHistory::parse(two, &content).expect("PostgreSQL wrote it").begin()
    }

    #[track_caller]
    fn assert_followed(&self) {
        self.a.pgbench(2, 100);
        let last = self.a.switch_wal();
        for relay in [&self.relay, &self.lower] {
            relay.wait_for_timeline(3);
            relay.wait_for_segment(&last);
            compare::assert_segments(&self.a, &relay.wal_dir(), 3);
        }
    }
}

fn everybody_comes_back_with_it(server: &Server) {
    let mut around = Around::start(server);
    around.relay.create_slots(&["c", "d", "archive"]);
    let standby =
        |name: &str| around.a.standby().name(name).follow(&around.relay.conninfo()).slot(name).start();
    let (mut c, mut d) = (standby("c"), standby("d"));
    let end = around.a.settled_lsn();
    c.wait_for_replay(end);
    c.stop();
    around.relay.wait_for_flush(end);
    around.b_takes_over();
    d.wait_for_replay(around.b.settled_lsn());
    let left = files_of_timeline_2(&around.relay);
    assert!(!left.is_empty());

    // Killed at the moment when it would have to go back.
    around.relay.kill9();
    around.a_comes_back();
    around.relay.start();
    around.assert_followed();
    let fork = around.fork();
    for relay in [&around.relay, &around.lower] {
        relay.log().wait_for("timeline 2 was held up to");
        let said = &relay.log().lines_with("timeline 2 was held up to", Default::default())[0];
        let commits = said.split(" bytes with ").nth(1).and_then(|rest| rest.split(' ').next());
        let counted = commits.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count >= 2);
        assert!(
            counted && said.contains(&format!(" commits from {fork} on")) && said.contains("WARN"),
            "{said}"
        );
    }
    let kept = files_of_timeline_2(&around.relay);
    assert!(left.iter().all(|file| kept.contains(file)), "{} {}", left.len(), kept.len());

    // D has what never came to be, and is told so; its slot keeps what is common.
    d.log().wait_for("requested timeline 2 is not in this server's history");
    assert!(around.relay.slot_lsn("d").is_some_and(|lsn| lsn <= fork));
    d.stop();
    around.a.sql("checkpoint");
    let source = format!("{} dbname=postgres", around.relay.conninfo());
    d.rewind_from(&source).unwrap_or_else(|error| panic!("{error}\n{}", around.relay.log().tail()));
    d.become_standby("d", &around.relay.conninfo(), Some("d"));
    d.append_conf("recovery_target_timeline = 'latest'");
    d.start();

    // C was never on 2, but has heard of it: with only that to choose from at its start it goes there, and PostgreSQL
    // changes a target only for a child of it. It knows better at the next start.
    around.tell_of_2(&c);
    c.start();
    c.log().wait_for("new timeline 3 is not a child of database system timeline");
    c.restart();
    let archive = Receivewal::start(server, &around.relay.conninfo(), "archive");
    for standby in [&c, &d] {
        standby.wait_for_replay(around.a.settled_lsn());
        compare::assert_dumps(&around.a, standby);
        standby.wait_for_sql("select status, received_tli from pg_stat_wal_receiver", "streaming|3");
    }
    let last = around.a.switch_wal();
    archive.wait_for_segment(&last);
    compare::assert_segments(&around.a, &archive.wal_dir(), 3);
    archive.stop();

    // B, alone again, is not followed; whatever happens, it stays with 3.
    around.a.stop();
    let mark = around.relay.log().mark();
    around.b.start();
    around.relay.log().wait_for_after(mark, "its number is lower");
    around.relay.restart();
    assert_eq!(around.relay.timeline(), 3);
}

/// The relay had more of A than B had, and confirmed it: it stays confirmed.
fn what_it_alone_had_is_not_lost(server: &Server) {
    let mut around = Around::start(server);
    around.relay.create_slot("c");
    let c = around.a.standby().name("c").follow(&around.relay.conninfo()).slot("c").start();
    around.a.freeze_walsender("b");
    around.a.sql("create table kept as select generate_series(1, 20000)");
    around.a.switch_wal();
    around.a.sql("insert into kept select generate_series(1, 1000)");
    let end = around.a.settled_lsn();
    around.relay.wait_for_flush(end);
    around.lower.wait_for_flush(end);
    c.wait_for_replay(end);
    around.b_takes_over();
    assert!(around.fork() < end);
    c.log().wait_for("is not in this server's history");

    around.a_comes_back();
    around.assert_followed();
    assert!(around.a.history().begin() >= end);
    // It holds all that was on A's way, and comes along by itself.
    c.wait_for_replay(around.a.settled_lsn());
    compare::assert_dumps(&around.a, &c);
    assert_eq!(c.sql("select count(*) from kept"), "21000");
    around.relay.kill9();
    around.relay.start();
    assert_eq!(around.relay.timeline(), 3);
    compare::assert_segments(&around.a, &around.relay.wal_dir(), 3);
}

/// The finished ones.
fn files_of_timeline_2(relay: &Relay) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(relay.wal_dir()).expect("the relay has a pg_wal");
    let files = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?.to_owned();
        (name.starts_with("00000002") && name.len() == 24)
            .then(|| (name, fs::read(&path).expect("it is listed")))
    });
    files.collect()
}
