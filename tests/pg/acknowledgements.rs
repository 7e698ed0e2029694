//! Who must have WAL before the relay, as a synchronous standby, says that it is there.

use walrelay_proto::Lsn;
use walrelay_testkit::{
    Cluster, Consumer, Mark, Receivewal, Relay, RelayBuilder, Scratch, Server, Session, Signal,
    on_every_server, on_one_version, on_versions, wait_until,
};

use crate::relay_below;

on_every_server!(
    remote_apply_is_visible_two_relays_below,
    any_one_of_two_and_one_is_frozen,
    names_come_and_go_and_nothing_falls,
    who_applies_nothing_confirms_nothing,
    a_server_stops_although_its_group_does_not_answer,
);

on_one_version!(it_degrades_within_its_budget, absurd_positions_confirm_no_more_than_was_sent);

// synchronized_standby_slots came with 17.
on_versions!([pg17 = 17, pg19 = 19; pg18 = 18] decoding_waits_for_those_who_are_named);

fn standby_of(primary: &Cluster, relay: &Relay, name: &str) -> Cluster {
    relay.create_slot(name);
    primary.standby().name(name).follow(&relay.conninfo()).slot(name).start()
}

/// A session whose commits wait for this.
fn session(primary: &Cluster, level: &str) -> Session {
    let mut session = primary.session();
    session.run(&format!("set synchronous_commit = {level}")).expect("it is a setting");
    session
}

/// Sends a commit that is not acknowledged as things are.
fn commit_that_waits(primary: &Cluster, session: &mut Session) {
    session.send("insert into t values (0)").expect("the session is open");
    primary.wait_for_sql("select count(*) from pg_stat_activity where wait_event = 'SyncRep'", "1");
}

/// What is acknowledged to this session is durable on one of those standbys at that moment.
fn assert_commits_are_on(session: &mut Session, standbys: &[&Cluster]) {
    for _ in 0..20 {
        let row = "with row as (insert into t values (1)) select pg_logical_emit_message(true, 'a', 'b')";
        let at: Lsn = session.run(row).expect("it is acknowledged").parse().expect("a position");
        assert!(standbys.iter().any(|standby| standby.receive_lsn() > at), "{at}");
    }
}

fn ack(relay: RelayBuilder, settings: &[(&str, &str)]) -> RelayBuilder {
    settings.iter().fold(relay, |relay, (name, value)| relay.arg(&format!("--ack-{name}")).arg(value))
}

fn remote_apply_is_visible_two_relays_below(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table t (i int)");
    let upper = relay_below(&primary).start();
    let near = standby_of(&primary, &upper, "near");
    let lower = upper.builder_below().name("lower").start();
    let far = standby_of(&primary, &lower, "far");
    upper.wait_for_sql("select count(*) from pg_stat_replication where replay_lsn is not null", "2");
    primary.make_synchronous("walrelay");
    let mut session = session(&primary, "remote_apply");
    for row in 1..=30 {
        session.run(&format!("insert into t values ({row})")).expect("it is acknowledged");
        for standby in [&near, &far] {
            assert_eq!(standby.sql("select max(i) from t"), row.to_string(), "{standby:?}");
        }
    }
    // The slowest is waited for, even two relays below.
    far.signal_all(Signal::STOP);
    commit_that_waits(&primary, &mut session);
    far.signal_all(Signal::CONT);
    session.answer().expect("it goes on");
    upper.assert_calm();
    lower.assert_calm();
}

/// Of a consumer that the rules name, and that says that it has everything there will ever be.
fn absurd_positions_confirm_no_more_than_was_sent(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table t (i int)");
    let relay = ack(relay_below(&primary), &[("flush", "ANY 1 (a)"), ("apply", "ANY 1 (a)")]).start();
    let start = primary.settled_lsn();
    relay.wait_for_flush(start);
    let address = ([127, 0, 0, 1], relay.port()).into();
    let mut consumer = Consumer::connect(address, "a").expect("the relay listens there");
    consumer.start(start).expect("it is there");
    consumer.report_at(Lsn::new(u64::MAX)).expect("it is connected");
    // It counts, for what it was sent by then.
    primary.make_synchronous("walrelay");
    let mut session = session(&primary, "on");
    commit_that_waits(&primary, &mut session);
    // What is shown of the consumer on the relay is what it says, as on a server.
    let check = || {
        let ahead = "select count(*) from pg_stat_replication where \
                     greatest(write_lsn, flush_lsn, replay_lsn) > pg_current_wal_flush_lsn()";
        assert_eq!(primary.sql(ahead), "0");
    };
    check();
    let flushed = || primary.sql("select pg_current_wal_flush_lsn()").parse::<Lsn>().expect("a position");
    consumer.drain(flushed()).expect("it comes");
    consumer.report().expect("it is connected");
    session.answer().expect("it is acknowledged");
    // What it takes back stays confirmed, and confirms nothing else.
    let confirmed = primary.sql("select flush_lsn from pg_stat_replication");
    consumer.report_at(Lsn::new(1)).expect("it is connected");
    commit_that_waits(&primary, &mut session);
    assert_eq!(primary.sql(&format!("select flush_lsn >= '{confirmed}' from pg_stat_replication")), "t");
    consumer.drain(flushed()).expect("it comes");
    consumer.report_at(Lsn::new(u64::MAX)).expect("it is connected");
    session.answer().expect("it is acknowledged");
    check();
}

fn any_one_of_two_and_one_is_frozen(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table t (i int)");
    let scratch = Scratch::new("ack");
    let config = scratch.join("walrelay.toml");
    std::fs::write(&config, "").expect("the directory is ours");
    let mut relay = relay_below(&primary).arg("--config").arg(&config.display().to_string()).start();
    let (near, far) = (standby_of(&primary, &relay, "near"), standby_of(&primary, &relay, "far"));
    primary.make_synchronous("walrelay");
    std::fs::write(&config, "[ack]\nflush = 'ANY 1 (Near, far)'\n").expect("the directory is ours");
    relay.reload();
    relay.log().wait_for("ack changed, in effect");
    relay.wait_for_sql("select count(*) from pg_stat_replication where sync_state = 'quorum'", "2");

    let mut session = session(&primary, "on");
    far.signal_all(Signal::STOP);
    assert_commits_are_on(&mut session, &[&near]);
    near.signal_all(Signal::STOP);
    commit_that_waits(&primary, &mut session);
    // Who keeps it back is told, by the names in the rule.
    let ack = || relay.psql("dbname=walrelay", &["show ack"]).expect("it is answered");
    let kept_back = |row: &str| row.contains("|ANY 1 (Near, far)|on|") && row.contains("|Near, far|");
    wait_until("both to be waited for", || {
        ack().lines().any(|row| row.starts_with("flush|") && kept_back(row))
    });
    let mut here = crate::acknowledgements::session(&primary, "remote_write");
    here.run("insert into t values (2)").expect("the relay has written it");
    far.signal_all(Signal::CONT);
    session.answer().expect("one of them has it");
    wait_until("nobody to be waited for", || !ack().lines().any(kept_back));
    assert_commits_are_on(&mut session, &[&far]);
    near.signal_all(Signal::CONT);
    relay.assert_calm();
}

fn it_degrades_within_its_budget(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table t (i int)");
    let settings = [("flush", "ALL (a)"), ("timeout", "1s"), ("degrade", "local"), ("budget", "12s per 1h")];
    let mut relay = ack(relay_below(&primary), &settings).start();
    let a = standby_of(&primary, &relay, "a");
    primary.make_synchronous("walrelay");
    let mut session = session(&primary, "on");
    assert_commits_are_on(&mut session, &[&a]);

    a.signal_all(Signal::STOP);
    session.run("insert into t values (2)").expect("the relay has it");
    relay.log().wait_for("flush = ALL (a) was not fulfilled in time");
    let troubles = || relay.psql("dbname=walrelay", &["show troubles"]).expect("it is answered");
    assert!(
        troubles().contains("ack_degraded|flush|") && troubles().contains("bring back a"),
        "{}",
        troubles()
    );
    assert_eq!(relay.sql("select sync_state from pg_stat_replication where application_name = 'a'"), "async");
    a.signal_all(Signal::CONT);
    relay.log().wait_for("flush = ALL (a) holds again");
    assert_eq!(troubles(), "");
    assert_commits_are_on(&mut session, &[&a]);

    a.signal_all(Signal::STOP);
    session.run("insert into t values (3)").expect("the relay has it");
    relay.log().wait_for("the budget for degraded acknowledgements is spent");
    assert!(troubles().contains("ack_budget_spent|"), "{}", troubles());
    commit_that_waits(&primary, &mut session);
    a.signal_all(Signal::CONT);
    session.answer().expect("it has it");
    assert_commits_are_on(&mut session, &[&a]);
    // Nor is there more of it after a restart.
    relay.restart();
    let part = " s of the 12.0 s for degraded acknowledgements were used before this start";
    relay.log().wait_for(part);
    let used = relay.log().lines_with(part, Mark::default()).concat();
    let seconds = used.split(part).next().and_then(|it| it.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(seconds >= Some(11.9), "{used}");
}

fn names_come_and_go_and_nothing_falls(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table t (i int)");
    let mut relay = ack(relay_below(&primary), &[("flush", "ANY 1 (a, b)"), ("apply", "ALL (a)")]).start();
    let (mut a, mut b) = (standby_of(&primary, &relay, "a"), standby_of(&primary, &relay, "b"));
    primary.make_synchronous("walrelay");
    let mut durable = session(&primary, "on");
    assert_commits_are_on(&mut durable, &[&a, &b]);

    a.stop();
    assert_commits_are_on(&mut durable, &[&b]);
    let mut visible = session(&primary, "remote_apply");
    commit_that_waits(&primary, &mut visible);
    a.start();
    visible.answer().expect("it came back");

    // A relay that comes again knows of nobody.
    assert_commits_are_on(&mut durable, &[&a, &b]);
    let shown = |column: &str| {
        format!("select {column} from pg_stat_replication where application_name = 'walrelay'")
    };
    let before = primary.sql(&shown("flush_lsn"));
    a.stop();
    b.stop();
    relay.restart();
    primary.wait_for_sql(&shown("flush_lsn is not null and sync_state = 'sync'"), "t");
    assert_eq!(primary.sql(&shown(&format!("flush_lsn >= '{before}'"))), "t");
    let mut here = session(&primary, "remote_write");
    here.run("insert into t values (3)").expect("the relay has written it");
    commit_that_waits(&primary, &mut durable);
    b.start();
    durable.answer().expect("it came back");
    assert_commits_are_on(&mut durable, &[&b]);
    let single = relay.log().lines_with("apply = ALL (a) waits for a alone", Mark::default());
    assert_eq!(single.len(), 2, "at each start");
}

fn who_applies_nothing_confirms_nothing(server: &Server) {
    let primary = Cluster::builder(server).conf("synchronous_standby_names = 'walrelay'").start();
    let mut unwaiting = session(&primary, "local");
    unwaiting.run("create table t (i int)").expect("it waits for nobody");
    let relay = relay_below(&primary).start();
    // A backup of later would have the commit that waits in it as one that runs.
    let scratch = Scratch::new("backup");
    primary.base_backup_to(&scratch.join("data"));
    relay.create_slot("receivewal");
    let receivewal = Receivewal::start(server, &relay.conninfo(), "receivewal");
    receivewal.wait_for_segment(&primary.switch_wal());
    relay.log().wait_for("no further apply position is reported to the upstream, which waits for this relay: no consumer that is connected");
    assert_eq!(primary.sql("select replay_lsn is null, flush_lsn is null from pg_stat_replication"), "t|f");
    let mut durable = session(&primary, "on");
    durable.run("insert into t values (1)").expect("the relay has it");
    let mut visible = session(&primary, "remote_apply");
    commit_that_waits(&primary, &mut visible);
    let standby = primary.standby().follow(&relay.conninfo()).from_backup(scratch.join("data")).start();
    visible.answer().expect("somebody applies it");
    assert_eq!(standby.sql("select count(*) from t"), "2");
    relay.log().wait_for("the apply position is reported to the upstream again");
    assert_eq!(relay.log().lines_with("WARN", Mark::default()).len(), 1);
}

/// It asks again and again for what is not going to come.
fn a_server_stops_although_its_group_does_not_answer(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    primary.sql("create table t (i int)");
    let relay = ack(relay_below(&primary), &[("flush", "ANY 1 (a, b)")]).start();
    let a = standby_of(&primary, &relay, "a");
    primary.make_synchronous("walrelay");
    let mut durable = session(&primary, "on");
    assert_commits_are_on(&mut durable, &[&a]);
    a.signal_all(Signal::STOP);
    commit_that_waits(&primary, &mut durable);
    primary.stop();
    a.signal_all(Signal::CONT);
    durable.answer().expect_err("the server has ended it");
    primary.start();
    primary.wait_for_sql("select state from pg_stat_replication", "streaming");
    assert_commits_are_on(&mut session(&primary, "on"), &[&a]);
}

fn decoding_waits_for_those_who_are_named(server: &Server) {
    let conf = ["wal_level = logical", "synchronized_standby_slots = 'walrelay'"].join("\n");
    let primary = Cluster::builder(server).conf(&conf).start();
    primary.sql("create table t (i int)");
    let relay = ack(relay_below(&primary), &[("flush", "ANY 1 (a, b)")]).start();
    let (a, b) = (standby_of(&primary, &relay, "a"), standby_of(&primary, &relay, "b"));
    primary.sql("select pg_create_logical_replication_slot('lf', 'pgoutput', false, false, true)");
    let decode = "select slot_name from pg_replication_slot_advance('lf', pg_current_wal_lsn())";
    primary.sql("insert into t values (1)");
    assert_eq!(primary.sql(decode), "lf", "they have it");
    for standby in [&a, &b] {
        standby.signal_all(Signal::STOP);
    }
    primary.sql("insert into t values (2)");
    let only_here = primary.flush_lsn();
    let mut decoder = primary.session();
    decoder.send(decode).expect("the session is open");
    let waits = "select count(*) from pg_stat_activity where wait_event = 'WaitForStandbyConfirmation'";
    primary.wait_for_sql(waits, "1");
    // So does the slot with which the server keeps WAL, whatever the relay has.
    let switched = primary.switch_wal();
    relay.wait_for_segment(&switched);
    primary.wait_for_sql(&format!("select write_lsn > '{only_here}' from pg_stat_replication"), "t");
    let has_passed =
        format!("select restart_lsn >= '{only_here}' from pg_replication_slots where slot_name = 'walrelay'");
    assert_eq!(primary.sql(&has_passed), "f");
    b.signal_all(Signal::CONT);
    assert_eq!(decoder.answer().as_deref(), Ok("lf"));
    primary.wait_for_sql(&has_passed, "t");
    a.signal_all(Signal::CONT);
    relay.assert_calm();
}
