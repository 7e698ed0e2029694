//! The primary is lost, a standby beside the relay takes over, and everybody below the relay comes along.

use std::time::Instant;

use walrelay_testkit::{Cluster, Receivewal, Relay, Server, compare, on_every_version, wait_until};

use crate::relay_below;

on_every_version!(the_primary_dies_and_a_standby_takes_over);

/// A primary with a standby, a relay that knows both, and a standby and an archive below it.
struct Around {
    a: Cluster,
    b: Cluster,
    relay: Relay,
    c: Cluster,
    archive: Receivewal,
}

impl Around {
    fn start(server: &Server) -> Around {
        let a = Cluster::builder(server).name("a").seg_mb(1).start();
        let b = a.standby().name("b").start();
        let relay = relay_below(&a).upstream(&Relay::hosts(&[&a, &b])).start();
        relay.create_slots(&["c", "archive"]);
        let archive = Receivewal::start(server, &relay.conninfo(), "archive");
        let c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
        a.pgbench_init(1);
        Around { a, b, relay, c, archive }
    }

    /// `B` gets everything that anybody has, then `A` is killed under load.
    fn lose_a(&mut self) {
        let pgbench = self.a.spawn_pgbench(2);
        let target = self.a.switch_wal();
        self.archive.wait_for_segment(&target);
        // Whoever is ahead of the server that is promoted has WAL of a future that never came: another story.
        self.a.freeze_walsender("walrelay");
        self.b.wait_for_receive(self.relay.flush_lsn());
        self.b.wait_for_receive(self.a.settled_lsn());
        self.a.kill9();
        drop(pgbench);
    }

    #[track_caller]
    fn assert_complete(&self) {
        let last = self.b.switch_wal();
        self.relay.wait_for_segment(&last);
        self.archive.wait_for_segment(&last);
        compare::assert_timelines(&self.b, &self.relay.wal_dir(), 2);
        compare::assert_timelines(&self.b, &self.archive.wal_dir(), 2);
        self.c.wait_for_replay(self.b.settled_lsn());
        compare::assert_dumps(&self.b, &self.c);
    }
}

fn the_primary_dies_and_a_standby_takes_over(server: &Server) {
    let mut around = Around::start(server);
    let walreceiver = around.c.sql("select pid from pg_stat_wal_receiver");
    around.lose_a();
    let lost = Instant::now();
    around.b.promote();
    let promoted = lost.elapsed();
    let first = around.b.settled_lsn();
    wait_until("WAL to flow again", || around.c.replay_lsn() >= first);
    println!(
        "PostgreSQL {}: {:.2} s without WAL flow, {:.2} s of them until the promotion was over",
        server.version(),
        lost.elapsed().as_secs_f32(),
        promoted.as_secs_f32()
    );
    around.b.pgbench(2, 300);
    around.assert_complete();
    // Nobody below noticed anything but an ordinary end of a timeline.
    assert_eq!(
        around.c.sql("select pid, received_tli from pg_stat_wal_receiver"),
        format!("{walreceiver}|2")
    );
    around.archive.stop();
}
