//! Replication commands typed by people, with psql.

use walrelay_testkit::{Cluster, Relay, Server, on_every_version, on_one_version};

use crate::relay_below;

on_every_version!(psql_speaks_replication);
on_one_version!(a_slot_reserves_from_the_newest_checkpoint);

fn psql_speaks_replication(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();

    identifies_as_the_primary(&primary, &relay);
    slots_come_and_go(&relay);
    refuses(&relay, "SELECT 1", "cannot execute SQL commands in WAL sender for physical replication");
    refuses(&relay, "SHOW no_such_setting", "no_such_setting");
    refuses(&relay, "TIMELINE_HISTORY 2", "00000002.history");
    refuses(&relay, "IDENTIFY_SYSTEMS", "");
}

fn identifies_as_the_primary(primary: &Cluster, relay: &Relay) {
    let identity = relay.command("IDENTIFY_SYSTEM");
    let fields: Vec<&str> = identity.split('|').collect();
    let system = primary.sql("select system_identifier from pg_control_system()");
    assert_eq!((fields.len(), fields[0], fields[1], fields[3]), (4, system.as_str(), "1", ""));
    relay.wait_for_flush(primary.flush_lsn());
    assert_eq!(relay.command("SHOW wal_segment_size"), "16MB");
    assert_eq!(relay.command("SHOW server_version"), primary.sql("show server_version"));
    let read_write = relay.psql("replication=1 target_session_attrs=read-write", &["IDENTIFY_SYSTEM"]);
    assert!(read_write.expect("the relay never says it is read-only").starts_with(&system));
}

fn slots_come_and_go(relay: &Relay) {
    assert_eq!(relay.command("READ_REPLICATION_SLOT acc_a"), "||");
    let life = ["CREATE_REPLICATION_SLOT acc_a PHYSICAL RESERVE_WAL", "READ_REPLICATION_SLOT acc_a"];
    let rows = relay.psql("replication=1", &life).expect("both are commands");
    let (created, read) = rows.split_once('\n').expect("one row each");
    // 19 prints eight digits.
    assert!(["acc_a|0/0||", "acc_a|0/00000000||"].contains(&created), "{created}");
    assert!(read.starts_with("physical|") && read.ends_with("|1"), "{read}");
    assert!(relay.slot_lsn("acc_a") <= Some(relay.flush_lsn()));
    refuses(relay, life[0], "replication slot \"acc_a\" already exists");
    relay.command("DROP_REPLICATION_SLOT acc_a");
    refuses(relay, "DROP_REPLICATION_SLOT acc_a", "replication slot \"acc_a\" does not exist");
    refuses(relay, "CREATE_REPLICATION_SLOT \"no-good\" PHYSICAL", "invalid character");
}

/// As on a server, and not from the oldest WAL that is kept.
fn a_slot_reserves_from_the_newest_checkpoint(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).start();
    for _ in 0..3 {
        primary.switch_wal();
        primary.sql("checkpoint");
    }
    relay.wait_for_flush(primary.settled_lsn());
    let redo = primary.sql("select redo_lsn from pg_control_checkpoint()");
    relay.command("CREATE_REPLICATION_SLOT reserved PHYSICAL RESERVE_WAL");
    assert_eq!(relay.slot_lsn("reserved").map(|lsn| lsn.to_string()), Some(redo));
}

#[track_caller]
fn refuses(relay: &Relay, command: &str, reason: &str) {
    let error = relay.try_command(command).expect_err("the command is wrong");
    assert!(error.0.contains(reason), "{command}: {error}");
}
