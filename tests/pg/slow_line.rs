//! Between the relay and its upstream is a line that takes longer for everything than a server's patience lasts.

use walrelay_testkit::{Cluster, Line, Server, on_one_version, wait_until};

use crate::relay_below;

on_one_version!(wal_comes_at_once_over_a_slow_line);

fn wal_comes_at_once_over_a_slow_line(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).conf("wal_sender_timeout = 2s").start();
    let line = Line::to(primary.port(), 50_000_000);
    let upstream = format!("host=127.0.0.1 port={} user=postgres", line.port());
    let mut relay = relay_below(&primary).upstream(&upstream).start();
    primary.pgbench_init(1);
    let held = primary.settled_lsn();
    relay.wait_for_flush(held);
    relay.terminate();
    primary.sql("create table more as select generate_series(1, 60000)");
    let end = primary.settled_lsn();

    let (before, mark) = (line.carried(), relay.log().mark());
    line.set_rate(100_000);
    relay.start();
    wait_until("WAL to arrive", || relay.flush_lsn() >= held.advance(100_000));
    // What crossed the line is WAL that was missing, and what is in its buffers.
    let (carried, got) = (line.carried() - before, relay.flush_lsn().since(held));
    assert!(carried < got + 300_000, "{carried} bytes for {got} bytes of WAL");
    line.set_rate(50_000_000);
    relay.wait_for_flush(end);
    assert_eq!(relay.log().lines_with("started streaming WAL", mark).len(), 1, "no connection was lost");
    relay.assert_calm();
}
