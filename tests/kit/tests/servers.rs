//! The kit itself, without a relay.

use walrelay_testkit::{Cluster, Receivewal, Server, Writer, compare, on_every_version, waldump};

on_every_version!(a_standby_of_the_primary, archive_and_writer, crash_and_restart);

fn a_standby_of_the_primary(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    primary.sql("select pg_create_physical_replication_slot('direct', true)");
    let standby = primary.standby().slot("direct").start();
    primary.pgbench_init(1);
    standby.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &standby);
    primary.sql("delete from pgbench_branches");
    standby.wait_for_replay(primary.settled_lsn());
    standby.promote();
    standby.sql("insert into pgbench_branches values (7, 0)");
    assert!(compare::dumps(&primary, &standby).is_err());
}

fn archive_and_writer(server: &Server) {
    let primary = Cluster::builder(server).password("secret").start();
    primary.sql("select pg_create_physical_replication_slot('archive', true)");
    let archive = Receivewal::start(server, &primary.conninfo(), "archive");
    let writer = Writer::start(&primary);
    writer.wait_for_more(10);
    let acks = writer.stop();
    assert_eq!(primary.sql("select max(id) from acked"), acks.len().to_string());
    let last = acks.last().expect("ten at least");
    assert!(waldump::last_commit(server, &primary.wal_dir()) >= Some(last.before_commit));
    for _ in 0..2 {
        archive.wait_for_segment(&primary.switch_wal());
    }
    compare::assert_segments(&primary, &archive.wal_dir(), 2);
    archive.stop();
}

fn crash_and_restart(server: &Server) {
    let mut primary = Cluster::builder(server).fresh_initdb().start();
    let other = Cluster::builder(server).start();
    let identifier = "select system_identifier from pg_control_system()";
    assert_ne!(primary.sql(identifier), other.sql(identifier));
    primary.sql("create table kept as select 1 as one");
    primary.kill9();
    primary.start();
    assert_eq!(primary.sql("select one from kept"), "1");
    primary.stop_immediately();
    primary.start();
    primary.restart();
    assert_eq!(primary.sql("select one from kept"), "1");
}
