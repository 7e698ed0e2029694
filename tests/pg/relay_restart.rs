//! The relay goes away in the middle of the stream and comes back.

use walrelay_testkit::{
    Cluster, Receivewal, Relay, Server, compare, on_every_version, on_one_version_mostly,
};

use crate::relay_below;

on_every_version!(an_orderly_stop_ends_streams_politely);
on_one_version_mostly!(killed_in_mid_stream);

fn an_orderly_stop_ends_streams_politely(server: &Server) {
    let mut around = Around::start(server);
    around.standby.wait_for_replay(around.primary.settled_lsn());
    let pgbench = around.primary.spawn_pgbench(2);
    around.relay.wait_for_flush(around.primary.flush_lsn());
    around.relay.terminate();
    around.archive.log().wait_for("replication stream was terminated before stop point");
    around.standby.log().wait_for("replication terminated by primary server");
    around.relay.start();
    around.relay.wait_for_flush(around.primary.flush_lsn());
    pgbench.stop();
    around.relay.assert_calm();
    around.assert_complete();
}

fn killed_in_mid_stream(server: &Server) {
    let mut around = Around::start(server);
    let pgbench = around.primary.spawn_pgbench(2);
    for _ in 0..5 {
        around.relay.wait_for_flush(around.primary.flush_lsn());
        around.relay.kill9();
        around.relay.start();
    }
    pgbench.stop();
    around.assert_complete();
}

/// A relay with a primary above, a standby and an archive below.
struct Around {
    primary: Cluster,
    relay: Relay,
    standby: Cluster,
    archive: Receivewal,
}

impl Around {
    fn start(server: &Server) -> Around {
        let primary = Cluster::builder(server).seg_mb(1).start();
        let relay = relay_below(&primary).start();
        relay.create_slots(&["standby", "archive"]);
        let archive = Receivewal::start(server, &relay.conninfo(), "archive");
        let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();
        primary.pgbench_init(1);
        Around { primary, relay, standby, archive }
    }

    /// Nothing is missing, and nothing differs, anywhere.
    #[track_caller]
    fn assert_complete(&self) {
        let last = self.primary.switch_wal();
        self.relay.wait_for_segment(&last);
        self.archive.wait_for_segment(&last);
        compare::assert_segments(&self.primary, &self.relay.wal_dir(), 10);
        compare::assert_segments(&self.primary, &self.archive.wal_dir(), 10);
        self.standby.wait_for_replay(self.primary.settled_lsn());
        compare::assert_dumps(&self.primary, &self.standby);
    }
}
