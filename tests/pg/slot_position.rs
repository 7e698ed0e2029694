//! Where an empty data directory begins: where the slot's WAL does. Servers before 15 tell that in SQL only.

use std::path::Path;

use walrelay_testkit::{Cluster, Server, compare, on_versions};

use crate::relay_below;

// The subject is how the oldest version is asked.
on_versions!(
    [pg14 = 14]
    an_empty_relay_begins_where_its_slot_does,
    a_slot_that_cannot_be_asked_is_told,
    a_slot_that_is_there_is_no_error_in_the_servers_log
);

/// The relay's role may replicate, and nothing else.
const NO_SQL: &str = "
local all,replication all trust
host replication relay 127.0.0.1/32 trust
host all,replication postgres 127.0.0.1/32 trust
";

fn an_empty_relay_begins_where_its_slot_does(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    // By the administrator, long before the relay.
    primary.sql("select pg_create_physical_replication_slot('walrelay', true)");
    let segment = primary.sql("select pg_walfile_name(restart_lsn + 1) from pg_replication_slots");
    write_segments(&primary);
    let mut relay = relay_below(&primary).start();
    relay.wait_for_flush(primary.settled_lsn());
    assert_eq!(oldest(&relay.wal_dir()), segment);

    // It loses its data directory, and the primary writes on.
    relay.kill9();
    std::fs::remove_dir_all(relay.data_dir()).unwrap();
    let segment = primary.sql("select pg_walfile_name(restart_lsn + 1) from pg_replication_slots");
    write_segments(&primary);
    relay.start();
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    assert_eq!(oldest(&relay.wal_dir()), segment);
    compare::assert_segments(&primary, &relay.wal_dir(), 3);
    relay.assert_calm();
}

fn a_slot_that_cannot_be_asked_is_told(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    primary.sql("create role relay login replication");
    primary.set_hba(NO_SQL);
    primary.reload();
    let upstream = primary.conninfo().replace("user=postgres", "user=relay");
    // Its own slot is new: nothing can be missed.
    let mut relay = relay_below(&primary).upstream(&upstream).prepare();
    relay.spawn();
    relay.log().wait_for("started streaming WAL");
    assert!(!relay.log().text().contains("was there before"), "{}", relay.log().text());
    relay.kill9();
    std::fs::remove_dir_all(relay.data_dir()).unwrap();
    write_segments(&primary);
    let mark = relay.log().mark();
    relay.spawn();
    relay.log().wait_for_after(mark, "started streaming WAL");
    let told = relay.log().lines_with("was there before", mark);
    let names_it =
        told.len() == 1 && told[0].contains("WARN") && told[0].contains("WAL from its restart_lsn up to 0/");
    assert!(names_it, "{told:#?}");
}

/// A server of 14 has no command to look for it; the relay does not try to make it each time.
fn a_slot_that_is_there_is_no_error_in_the_servers_log(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).start();
    for _ in 0..2 {
        relay.restart();
        primary.switch_wal();
        relay.wait_for_flush(primary.settled_lsn());
    }
    let said = primary.log().text();
    assert!(!said.contains("already exists"), "{said}");
    relay.assert_calm();
}

fn write_segments(primary: &Cluster) {
    for round in 0..3 {
        primary.sql(&format!("select pg_logical_emit_message(false, 'x', repeat('x', 1000)), {round}"));
        primary.switch_wal();
    }
}

/// The first segment's name.
fn oldest(dir: &Path) -> String {
    let names = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let segments = names.filter(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    segments.min().expect("there are finished segments")
}
