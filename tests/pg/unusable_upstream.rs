//! The upstream is there and is of no use: it refuses the login, is another cluster, has no walsenders. Whoever holds
//! WAL may hold the only copy of it, so a relay that starts then serves what it has, and goes on trying.

use walrelay_proto::Lsn;
use walrelay_testkit::{Cluster, Relay, Server, on_one_version};

use crate::relay_below;

on_one_version!(a_relay_that_holds_wal_serves_it_whatever_the_upstream_says);

/// Nobody is let in as `relay`.
const NO_RELAY: &str = "
local all,replication all trust
host all,replication relay 127.0.0.1/32 reject
host all,replication all 127.0.0.1/32 trust
";

fn a_relay_that_holds_wal_serves_it_whatever_the_upstream_says(server: &Server) {
    let mut primary = Cluster::builder(server).seg_mb(1).start();
    primary.sql("create role relay login replication");
    let upstream = primary.conninfo().replace("user=postgres", "user=relay");
    let mut relay = relay_below(&primary).upstream(&upstream).start();
    relay.create_slot("standby");
    let mut standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();
    primary.pgbench_init(1);
    let end = primary.settled_lsn();
    relay.wait_for_flush(end);
    standby.stop();

    primary.set_hba(NO_RELAY);
    primary.reload();
    serves(&mut relay, "pg_hba.conf rejects", end);
    // What a consumer gets has not to come from the upstream.
    standby.start();
    standby.wait_for_replay(end);

    primary.stop();
    let mut other = Cluster::builder(server).name("other").fresh_initdb().start();
    relay.set_upstream(&other.conninfo());
    serves(&mut relay, "belongs to another cluster", end);
    assert_eq!(other.sql("select count(*) from pg_replication_slots"), "0");

    if server.major() >= 17 {
        other.append_conf("summarize_wal = off");
    }
    other.append_conf("wal_level = minimal\nmax_wal_senders = 0");
    other.restart();
    serves(&mut relay, "set wal_level = replica and max_wal_senders > 0 there", end);

    // And it takes the upstream when that is right again.
    primary.set_hba(&NO_RELAY.replace("reject", "trust"));
    primary.start();
    relay.set_upstream(&upstream);
    relay.restart();
    primary.sql("create table more as select 1");
    standby.wait_for_replay(primary.settled_lsn());
}

/// Started anew, it says what is wrong once, as an error, and serves all the same.
#[track_caller]
fn serves(relay: &mut Relay, words: &str, end: Lsn) {
    relay.terminate();
    let mark = relay.log().mark();
    relay.start();
    relay.log().wait_for_after(mark, words);
    assert!(relay.flush_lsn() >= end);
    let said = relay.log().lines_with(words, mark);
    let once = said.len() == 1 && said[0].contains("ERROR") && said[0].contains("trying again in");
    assert!(once, "{said:#?}");
}
