//! Promotions in which more goes wrong than that the primary is lost: two at once, a relay that dies in the middle, a candidate
//! that has more than the relay, one whose replay is paused or late, an archive that is away, a relay that follows another one.

use std::process::Command;

use walrelay_testkit::{Cluster, Mark, Scratch, Server, Signal, Writer, on_every_server};

use crate::drain::Scene;
use crate::restore::readable_binary;
use crate::{relay_below, walrelay};

on_every_server!(
    two_are_promoted_at_once,
    the_relay_dies_while_it_is_drained,
    the_candidate_is_ahead_of_the_relay,
    the_archive_is_away_during_the_promotion,
    a_standby_whose_replay_is_paused_or_late_is_promoted,
    a_relay_of_another_history_is_no_help,
);

/// Each gets all that was acknowledged, and the relay follows the one that it was told of.
fn two_are_promoted_at_once(server: &Server) {
    let mut it = Scene::set(server, Some("--require-relays 1"));
    let command = it.candidate.sql("show restore_command").replace('\'', "''");
    let second = it.primary.standby().name("c").conf(&format!("restore_command = '{command}'")).start();
    it.writer.wait_for_more(3);
    it.primary.freeze_walsender("c");
    it.commit_without_candidate();
    let acks = it.lose_primary();
    it.candidate.sql("select pg_promote(false)");
    second.sql("select pg_promote(false)");
    it.wait_for_promotion();
    second.wait_for_sql("select pg_is_in_recovery()", "f");
    it.assert_kept(&acks);
    let last = acks.last().expect("there are some").id;
    assert_eq!(second.sql(&format!("select count(*) from acked where id <= {last}")), acks.len().to_string());
    // What either does from now on is its own.
    second.sql("create table of_the_second as select 1 as n");
    it.candidate.sql("create table of_the_first as select 1 as n");
    it.relay.wait_for_flush(it.candidate.flush_lsn());
    let said = it.relay.log().lines_with("diverged", Mark::default());
    assert!(said.is_empty(), "{said:?}");
}

/// It has taken the question, and gives no answer any more.
fn the_relay_dies_while_it_is_drained(server: &Server) {
    let mut it = Scene::set(server, Some("--require-relays 1 --require-timeout 0"));
    it.commit_without_candidate();
    it.relay.signal(Signal::STOP);
    let acks = it.lose_primary();
    it.candidate.sql("select pg_promote(false)");
    it.candidate.log().wait_for("waits for who is required: ");
    assert!(it.in_recovery());
    it.relay.kill9();
    it.relay.start();
    it.wait_for_promotion();
    it.assert_kept(&acks);
}

/// It was sent what the relay has not confirmed. Nobody was told of that, and it is not lost all the same.
fn the_candidate_is_ahead_of_the_relay(server: &Server) {
    let mut it = Scene::set(server, Some("--require-relays 1"));
    it.writer.wait_for_more(10);
    it.primary.freeze_walsender("walrelay");
    it.primary.sql("set synchronous_commit = local; create table ahead as select 1 as n");
    it.candidate.wait_for_replay(it.primary.flush_lsn());
    assert!(it.relay.flush_lsn() < it.candidate.replay_lsn());
    it.primary.kill9();
    let acks = it.writer.acks();
    let (relay, candidate) = (it.relay.conninfo(), it.candidate.conninfo());
    let weighed = Command::new(walrelay())
        .args(["promotable", "--relay", &relay, "--candidate", &candidate])
        .output()
        .expect("the program is there");
    let said = String::from_utf8_lossy(&[weighed.stdout, weighed.stderr].concat()).into_owned();
    assert_eq!(weighed.status.code(), Some(0), "{said}");
    it.candidate.promote();
    it.assert_kept(&acks);
    assert_eq!(it.candidate.sql("select n from ahead"), "1");
    it.relay.wait_for_flush(it.candidate.flush_lsn());
}

/// One place that cannot be reached does not keep it from what the others have, or from being promoted.
fn the_archive_is_away_during_the_promotion(server: &Server) {
    let mut it = Scene::set(server, Some("--from \"file:///nowhere/archive\" --require-relays 1"));
    it.commit_without_candidate();
    let acks = it.lose_primary();
    it.candidate.promote();
    it.assert_kept(&acks);
    it.candidate.log().wait_for("does not exist");
}

fn a_standby_whose_replay_is_paused_or_late_is_promoted(server: &Server) {
    for is_paused in [true, false] {
        let mut it = Scene::set(server, Some("--require-relays 1"));
        it.writer.wait_for_more(3);
        if is_paused {
            it.candidate.sql("select pg_wal_replay_pause()");
            it.candidate.wait_for_sql("select pg_get_wal_replay_pause_state()", "paused");
        } else {
            it.candidate.append_conf("recovery_min_apply_delay = '1h'");
            it.candidate.reload();
            it.candidate.wait_for_sql("show recovery_min_apply_delay", "1h");
        }
        it.commit_without_candidate();
        let acks = it.lose_primary();
        it.candidate.promote();
        it.assert_kept(&acks);
    }
}

/// Two were promoted to timeline 2, in different places, and a relay follows each. A standby of the one asks the other one's relay
/// first: that has whole what its own has only begun.
fn a_relay_of_another_history_is_no_help(server: &Server) {
    let scratch = Scratch::new("history");
    let a = Cluster::builder(server).name("a").seg_mb(1).start();
    a.sql("create table t as select 1 as n");
    let [mut b, c] = ["b", "c"].map(|name| a.standby().name(name).start());
    b.wait_for_replay(a.settled_lsn());
    b.promote();
    a.sql("insert into t values (2)");
    c.wait_for_replay(a.settled_lsn());
    c.promote();
    let [ours, others] =
        [(&b, "ours"), (&c, "others")].map(|(server, name)| relay_below(server).name(name).start());
    let standby = b.standby().name("s").start();
    // It has come to its timeline by streaming, and knows its history.
    standby.wait_for_replay(b.settled_lsn());
    let command = format!(
        "\"{}\" restore --require-relays 2 --from \"{}\" --from \"{}\" %f %p",
        readable_binary(&scratch).display(),
        others.conninfo(),
        ours.conninfo(),
    );
    standby.append_conf(&format!("restore_command = '{command}'"));
    standby.reload();
    standby.wait_for_sql("select setting <> '' from pg_settings where name = 'restore_command'", "t");
    let writer = Writer::start(&b);
    b.make_synchronous("ours");
    writer.wait_for_more(3);
    b.freeze_walsender("s");
    writer.wait_for_more(10);
    let name = "select pg_walfile_name(pg_current_wal_lsn())";
    let segment = b.sql(name);
    while c.sql(name) <= segment {
        c.switch_wal();
    }
    others.wait_for_segment(&segment);
    b.kill9();
    let acks = writer.acks();
    standby.sql("select pg_promote(false)");
    standby.wait_for_sql("select pg_is_in_recovery()", "f");
    let last = acks.last().expect("there are some").id;
    assert_eq!(
        standby.sql(&format!("select count(*) from acked where id <= {last}")),
        acks.len().to_string()
    );
    standby.log().wait_for("is of another history and is not taken");
}
