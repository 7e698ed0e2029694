//! The relay is the only synchronous standby, and is killed again and again.

use walrelay_testkit::{Cluster, Relay, Scratch, Server, Writer, on_every_version, waldump};

use crate::relay_below;

on_every_version!(no_acknowledged_commit_is_lost);

const KILLS: usize = 24;

fn no_acknowledged_commit_is_lost(server: &Server) {
    let mut primary = Cluster::builder(server).seg_mb(1).start();
    primary.pgbench_init(1);
    let mut relay = relay_below(&primary).start();
    relay.create_slot("witness");
    let scratch = Scratch::new("backup");
    let backup = scratch.join("data");
    primary.base_backup_to(&backup);

    let writer = Writer::start(&primary);
    // Others do not wait for the relay, so that it is always behind when it comes back.
    primary.sql("alter database postgres set synchronous_commit = off");
    primary.make_synchronous("walrelay");
    let pgbench = primary.spawn_pgbench(1);
    for kill in 1..=KILLS {
        writer.wait_for_more(5);
        relay.kill9();
        holds_what_was_acknowledged(server, &relay, &writer, kill);
        relay.start();
    }
    writer.wait_for_more(5);
    let acknowledged = writer.stop().len().to_string();
    pgbench.stop();

    // The primary is lost, with all it had. What the relay has must do.
    primary.kill9();
    let standby = primary.standby().from_backup(backup).follow(&relay.conninfo()).slot("witness").start();
    let kept = format!("select count(*) from acked where id <= {acknowledged}");
    standby.wait_for_sql("select to_regclass('acked') is not null", "t");
    standby.wait_for_sql(&kept, &acknowledged);
}

/// PostgreSQL's own reader finds the last acknowledged commit in the files of the dead relay.
fn holds_what_was_acknowledged(server: &Server, relay: &Relay, writer: &Writer, kill: usize) {
    let last = *writer.acks().last().expect("waited for some");
    let kept = waldump::last_commit(server, &relay.wal_dir());
    assert!(
        kept >= Some(last.before_commit),
        "kill {kill}: commit {} after {} was acknowledged, but the relay's WAL ends with that at {kept:?}",
        last.id,
        last.before_commit
    );
}
