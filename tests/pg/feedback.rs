//! What standbys still read, the primary must not vacuum away.

use walrelay_testkit::{Cluster, Server, on_every_version};

use crate::relay_below;

on_every_version!(hot_standby_feedback_reaches_the_primary, who_lags_is_heard_although_another_was_first);

fn hot_standby_feedback_reaches_the_primary(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table t as select generate_series(1, 1000) as i");
    let relay = relay_below(&primary).start();
    relay.create_slot("standby");
    let feedback = ["hot_standby_feedback = on", "max_standby_streaming_delay = 0"].join("\n");
    let standby = primary.standby().follow(&relay.conninfo()).slot("standby").conf(&feedback).start();

    let mut reader = standby.session();
    reader.run("begin isolation level repeatable read").expect("a hot standby takes readers");
    assert_eq!(reader.run("select count(*) from t").as_deref(), Ok("1000"));
    primary.wait_for_sql(&slot_xmin("is not null"), "t");

    let deleter = primary.sql("with gone as (delete from t where i = 1) select txid_current()");
    primary.sql("delete from t");
    // Without truncation, whose lock would cancel the reader in any case.
    primary.sql("vacuum (truncate off) t");
    standby.wait_for_replay(primary.settled_lsn());
    // Without feedback the vacuum would have taken the rows, and cancelled the reader.
    assert_eq!(reader.run("select count(*) from t").as_deref(), Ok("1000"));
    assert_eq!(primary.sql(&slot_xmin(&format!("::text::bigint <= {deleter}"))), "t");

    reader.run("commit").expect("it was not cancelled");
    primary.wait_for_sql(&slot_xmin(&format!("::text::bigint > {deleter}")), "t");
    standby.append_conf("hot_standby_feedback = off");
    standby.reload();
    primary.wait_for_sql(&slot_xmin("is null"), "t");
}

/// The primary's slot takes an older xmin only behind none.
fn who_lags_is_heard_although_another_was_first(server: &Server) {
    let primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).start();
    let standby = |name: &str, feedback: &str| {
        relay.create_slot(name);
        let standby = primary.standby().name(name).follow(&relay.conninfo()).slot(name);
        standby.conf(&format!("hot_standby_feedback = {feedback}")).start()
    };
    let (_first, lagging) = (standby("first", "on"), standby("lagging", "off"));
    let mut reader = lagging.session();
    reader.run("begin isolation level repeatable read").expect("a hot standby takes readers");
    let held = reader.run("select txid_snapshot_xmin(txid_current_snapshot())").expect("it has a snapshot");
    let younger = slot_xmin(&format!("::text::bigint > {held}"));
    // The first one has nothing to hold on to, and goes on with the primary.
    for _ in 0..3 {
        primary.sql("select txid_current()");
    }
    primary.wait_for_sql(&younger, "t");
    lagging.append_conf("hot_standby_feedback = on");
    lagging.reload();
    let older = slot_xmin(&format!("::text::bigint <= {held}"));
    primary.wait_for_sql(&older, "t");
    // Nor is it lost when the relay comes again, and hears of the other first.
    relay.restart();
    primary.wait_for_sql(&older, "t");
    reader.run("commit").expect("it was not cancelled");
    primary.wait_for_sql(&younger, "t");
}

/// A query about the `xmin` of the relay's slot.
fn slot_xmin(condition: &str) -> String {
    format!("select xmin {condition} from pg_replication_slots where slot_name = 'walrelay'")
}
