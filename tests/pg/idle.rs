//! An upstream that writes nothing: the relay's place in its WAL is known all the same, to it and to consumers.

use walrelay_proto::Lsn;
use walrelay_testkit::{Cluster, Receivewal, Server, on_one_version};

use crate::relay_below;

on_one_version!(an_idle_upstream_keeps_nobody_waiting);

fn an_idle_upstream_keeps_nobody_waiting(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).conf("autovacuum = off").start();
    // Reserves nothing until a position is confirmed.
    primary.sql("select pg_create_physical_replication_slot('walrelay')");
    primary.switch_wal();
    let mut relay = relay_below(&primary).start();
    let begin = relay.flush_lsn();
    primary.wait_for_sql("select restart_lsn is not null from pg_replication_slots", "t");
    let restart: Lsn = primary.sql("select restart_lsn from pg_replication_slots").parse().unwrap();
    assert!(restart >= begin);
    relay.create_slot("archive");
    assert_eq!(relay.slot_lsn("archive"), Some(begin));
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    relay.wait_for_sql("select count(*) from pg_stat_replication", "1");
    // Nothing was held, so nothing is missed.
    relay.restart();
    primary.pgbench_init(1);
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    archive.wait_for_segment(&last);
    relay.assert_calm();
}
