//! A relay that is fenced: behind its answer no commit is confirmed, what it holds is drained, and only a newer timeline is
//! followed.

use std::process::Command;

use walrelay_proto::Lsn;
use walrelay_testkit::{
    Cluster, Relay, RelayBuilder, Scratch, Server, Session, Signal, Writer, on_every_server, on_one_version,
    wait_for, wait_until,
};

use crate::restore::readable_binary;
use crate::{relay_below, walrelay};

on_every_server!(no_commit_returns_behind_a_fence_and_a_promotion_passes_it);

on_one_version!(
    who_may_fences_and_the_same_primary_comes_back,
    enough_relays_are_fenced_for_the_primarys_rule,
    a_disk_that_hangs_keeps_the_answer_and_not_the_fence,
    a_primary_that_was_frozen_meanwhile_confirms_nothing_more,
    a_fence_at_the_end_of_a_segment_is_promoted_from,
    a_fence_at_the_end_of_a_segment_is_drained_and_promoted_from,
);

/// What a command said, and its exit code.
fn run(args: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(walrelay()).args(args).output().expect("the program is there");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (said, output.status.code())
}

/// `walrelay fence` for one relay, as JSON, and its exit code.
fn fence(relay: &Relay, options: &[&str]) -> (serde_json::Value, Option<i32>) {
    let (conninfo, fixed) = (relay.conninfo(), ["fence", "--json", "--relay"]);
    let (said, code) = run(&[&fixed[..], &[&conninfo], options].concat());
    (serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}")), code)
}

fn position(fence: &serde_json::Value) -> Lsn {
    let text = fence["relays"][0]["fence"]["lsn"].as_str();
    text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no position in {fence}"))
}

/// Waits until the primary takes it for its synchronous standby.
fn make_synchronous(primary: &Cluster, names: &str, count: &str) {
    primary.make_synchronous(names);
    let waited_for = "select count(*) from pg_stat_replication where sync_state in ('sync', 'quorum')";
    primary.wait_for_sql(waited_for, count);
}

/// Sends a commit that is not acknowledged as things are; so many wait then.
fn commit_that_waits(primary: &Cluster, count: &str) -> Session {
    let mut session = primary.session();
    session.send("insert into t values (0)").expect("the session is open");
    primary.wait_for_sql("select count(*) from pg_stat_activity where wait_event = 'SyncRep'", count);
    session
}

fn no_commit_returns_behind_a_fence_and_a_promotion_passes_it(server: &Server) {
    let mut a = Cluster::builder(server).name("a").start();
    a.sql("create table t (i int)");
    let mut relay = relay_below(&a).start();
    relay.create_slot("b");
    let b = a.standby().name("b").follow(&relay.conninfo()).slot("b").start();
    relay.set_upstream(&Relay::hosts(&[&a, &b]));
    relay.restart();
    let writer = Writer::start(&a);
    make_synchronous(&a, "walrelay", "1");
    let before = a.settled_lsn();
    writer.wait_for_more(10);

    let (told, code) = fence(&relay, &["--epoch", "7", "--reason", "the drill"]);
    assert_eq!((code, told["enough"].as_bool()), (Some(0), Some(true)), "{told}");
    let end = position(&told);
    assert!(end > before);
    let fenced = &told["relays"][0]["fence"];
    let shown = ["state", "epoch", "timeline", "reason", "role", "address", "application_name"];
    let expected =
        ["\"in force\"", "7", "1", "\"the drill\"", "\"postgres\"", "\"127.0.0.1\"", "\"walrelay\""];
    assert_eq!(shown.map(|name| fenced[name].to_string()), expected);
    relay.log().wait_for("was ordered by role \"postgres\" from 127.0.0.1 (the drill)");

    // The writer's commit waits, and so does any other; the server is asked now and then, and left alone.
    let waiting = commit_that_waits(&a, "2");
    assert_eq!(a.sql("select count(*) from pg_stat_replication where state <> 'startup'"), "0");
    relay.log().wait_for("upstream is on timeline 1, and not followed because the relay is fenced");
    let acks = writer.acks();
    assert!(acks.iter().all(|ack| ack.before_commit < end), "{acks:?} {end}");

    // Consumers drain, and the fence outlives the relay, however that ends.
    b.wait_for_replay(end);
    assert_eq!(relay.flush_lsn(), end);
    let mark = relay.log().mark();
    relay.kill9();
    relay.start();
    relay.log().wait_for_after(mark, "the relay is fenced since ");
    let (again, code) = fence(&relay, &["--status"]);
    assert_eq!((code, &again["relays"][0]["fence"]), (Some(0), fenced), "{again}");
    assert_eq!(fence(&relay, &["--epoch", "7"]).0["relays"][0]["fence"], *fenced);

    // The old primary dies and comes back, and writes what nobody will ever confirm.
    drop(waiting);
    let mark = relay.log().mark();
    a.kill9();
    a.start();
    relay
        .log()
        .wait_for_after(mark, "upstream is on timeline 1, and not followed because the relay is fenced");
    let zombie = commit_that_waits(&a, "1");
    assert_eq!((relay.timeline(), relay.flush_lsn()), (1, end));

    // The promotion by whatever tool passes the fence, although the zombie is there.
    b.promote();
    relay.wait_for_timeline(2);
    relay.log().wait_for("is passed: timeline 2 is followed");
    relay.wait_for_flush(b.settled_lsn());
    let (told, code) = fence(&relay, &["--status"]);
    let state = told["relays"][0]["fence"]["state"].as_str();
    assert_eq!((state, code), (Some("passed"), Some(1)), "{told}");
    let acks = writer.acks().len().to_string();
    assert_eq!(b.sql(&format!("select count(*) from acked where id <= {acks}")), acks);
    drop(zombie);
    relay.log().wait_for("promotion to timeline 2 at ");
    let said = relay.log().lines_with("kept everything acknowledged", Default::default());
    assert_eq!(said.len(), 1, "{said:?}");
}

fn who_may_fences_and_the_same_primary_comes_back(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary
        .sql("create table t (i int); create role rep login replication; create role op login replication");
    let relay = relay_below(&primary).arg("--admin-role").arg("op").start();
    make_synchronous(&primary, "walrelay", "1");

    let error = relay.psql("replication=1 user=rep", &["FENCE"]).expect_err("it may not").0;
    assert!(error.contains("permission denied to fence the relay"), "{error}");
    relay.log().wait_for("role \"rep\" from 127.0.0.1 may not fence this relay");
    // Whatever is about physical replication has its own kind of connection.
    let error = relay.psql("replication=database dbname=postgres", &["FENCE"]).expect_err("not there").0;
    assert!(error.contains("replication=true"), "{error}");
    primary.sql("insert into t values (1)");

    let row = relay.psql("replication=1 user=op", &["FENCE EPOCH 5"]).expect("it may");
    assert!(row.starts_with("in force|5|1|"), "{row}");
    let mut waiting = commit_that_waits(&primary, "1");
    let (told, code) = fence(&relay, &["--epoch", "4"]);
    let error = told["relays"][0]["error"].as_str().expect("it is refused");
    assert!(error.contains("epoch 4 is lower than that of the fence of epoch 5"), "{error}");
    assert_eq!(code, Some(1));
    relay.log().wait_for("could not fence for role \"postgres\" from 127.0.0.1: epoch 4 is lower");
    let (said, code) = run(&["status", &relay.conninfo()]);
    assert!(said.contains("! the relay is fenced") && said.contains("epoch 5, timeline 1 at "), "{said}");
    assert_eq!(code, Some(1));

    let conninfo = relay.conninfo();
    let (said, code) = run(&["unfence", "--relay", &conninfo, "--epoch", "4"]);
    assert!(code == Some(1) && said.contains("and not one of epoch 4"), "{said}");
    let (said, code) = run(&["unfence", "--relay", &conninfo]);
    assert!(code == Some(0) && said.contains("no relay is fenced"), "{said}");
    waiting.answer().expect("the relay is back");
    relay.log().wait_for("was lifted by role \"postgres\" from 127.0.0.1");
    // The number stays.
    let (told, code) = fence(&relay, &[]);
    assert_eq!((told["relays"][0]["fence"]["epoch"].as_u64(), code), (Some(6), Some(0)), "{told}");
    assert_eq!(run(&["unfence", "--relay", &conninfo, "--epoch", "6"]).1, Some(0));
    primary.sql("insert into t values (2)");
}

fn enough_relays_are_fenced_for_the_primarys_rule(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table t (i int)");
    let start = |builder: RelayBuilder, name: &str| builder.name(name).start();
    let (one, mut two) = (start(relay_below(&primary), "r1"), start(relay_below(&primary), "r2"));
    let rule = "ANY 1 (r1, r2)";
    make_synchronous(&primary, rule, "2");
    two.terminate();
    let (first, second) = (one.conninfo(), two.conninfo());
    let both = ["fence", "--relay", &first, "--relay", &second];
    let (said, code) = run(&[&both[..], &["--sync-names", rule, "--timeout", "5s"]].concat());
    assert!(code == Some(1) && said.contains("not enough are fenced: r2 can confirm a commit"), "{said}");
    assert!(said.contains("(r1): fenced at ") && said.contains("could not connect"), "{said}");
    // For another rule it would be.
    let (said, code) = run(&[&both[..], &["--sync-names", "ANY 2 (r1, r2)", "--status"]].concat());
    assert!(code == Some(0) && said.contains("enough are fenced; the furthest is at "), "{said}");
    two.start();
    primary.sql("insert into t values (1)");
    let (said, code) = run(&[&both[..], &["--sync-names", rule]].concat());
    assert!(code == Some(0) && said.contains("enough are fenced"), "{said}");
    let _waiting = commit_that_waits(&primary, "1");
    let (said, code) = run(&["fence", "--relay", &first, "--sync-names", "ANY 1 (r1"]);
    assert!(code == Some(2) && said.contains("--sync-names"), "{said}");
    let primary_itself = primary.conninfo();
    let (said, code) = run(&["fence", "--relay", &primary_itself]);
    assert!(code == Some(1) && said.contains("this server knows no fences"), "{said}");
}

fn a_disk_that_hangs_keeps_the_answer_and_not_the_fence(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table t (i int)");
    let mut relay = relay_below(&primary).start();
    make_synchronous(&primary, "walrelay", "1");
    let hang = ["trace=fsync,fdatasync", "inject=fsync,fdatasync:delay_enter=600000000"];
    let hung = relay.trace(&hang);
    let (told, code) = fence(&relay, &["--timeout", "30s"]);
    let error = told["relays"][0]["error"].as_str().expect("it could not be done in time");
    assert!(error.contains("is not durable after 10 s") && code == Some(1), "{told}");
    // The upstream is left all the same.
    assert_eq!(primary.sql("select count(*) from pg_stat_replication where state <> 'startup'"), "0");
    drop(hung);
    let _waiting = commit_that_waits(&primary, "1");
    wait_until("a fence that is closed", || fence(&relay, &["--status"]).1 == Some(0));
    let before = fence(&relay, &["--status"]).0;
    relay.signal(Signal::KILL);
    relay.wait_exit();
    relay.start();
    assert_eq!(fence(&relay, &["--status"]).0, before);
}

/// What was on its way to it may let a commit return, which is covered.
fn a_primary_that_was_frozen_meanwhile_confirms_nothing_more(server: &Server) {
    let a = Cluster::builder(server).name("a").start();
    a.sql("create table t (i int)");
    let mut relay = relay_below(&a).start();
    relay.create_slot("b");
    let b = a.standby().name("b").follow(&relay.conninfo()).slot("b").start();
    // Its kernel still accepts connections.
    relay.set_upstream(&format!("{} connect_timeout=1", Relay::hosts(&[&a, &b])));
    relay.restart();
    let writer = Writer::start(&a);
    make_synchronous(&a, "walrelay", "1");
    writer.wait_for_more(10);
    a.signal_all(Signal::STOP);
    let (told, code) = fence(&relay, &[]);
    assert_eq!(code, Some(0), "{told}");
    let end = position(&told);
    b.wait_for_replay(end);
    b.promote();
    relay.wait_for_timeline(2);
    a.signal_all(Signal::CONT);
    let _waiting = commit_that_waits(&a, "2");
    let acks = writer.acks();
    assert!(acks.iter().all(|ack| ack.before_commit < end), "{acks:?} {end}");
    let count = acks.len().to_string();
    assert_eq!(b.sql(&format!("select count(*) from acked where id <= {count}")), count);
    b.sql("insert into t values (1)");
    relay.wait_for_flush(b.settled_lsn());
}

/// Fences a relay just where a segment ends, behind a switch: a server that is idle may log something itself meanwhile.
fn fence_at_the_end_of_a_segment(primary: &Cluster, relay: &Relay) -> Lsn {
    wait_for("a fence at the end of a segment", || {
        primary.sql("insert into t values (1)");
        relay.wait_for_segment(&primary.switch_wal());
        let (told, code) = fence(relay, &[]);
        assert_eq!(code, Some(0), "{told}");
        let end = position(&told);
        if end.offset_in_seg(primary.seg_size()) == 0 {
            return Some(end);
        }
        assert_eq!(run(&["unfence", "--relay", &relay.conninfo()]).1, Some(0));
        None
    })
}

fn a_fence_at_the_end_of_a_segment_is_promoted_from(server: &Server) {
    let primary = Cluster::builder(server).name("a").seg_mb(1).conf("autovacuum = off").start();
    primary.sql("create table t (i int)");
    let mut relay = relay_below(&primary).start();
    relay.create_slot("b");
    let b = primary.standby().name("b").follow(&relay.conninfo()).slot("b").start();
    relay.set_upstream(&Relay::hosts(&[&primary, &b]));
    relay.restart();
    let end = fence_at_the_end_of_a_segment(&primary, &relay);
    b.wait_for_receive(end);
    b.promote();
    assert_followed_from(end, &b, &relay);
}

/// The standby has nothing of it, and gets all there is by its `restore_command`: whole segments, and then none.
fn a_fence_at_the_end_of_a_segment_is_drained_and_promoted_from(server: &Server) {
    let scratch = Scratch::new("fence");
    let mut primary = Cluster::builder(server).name("a").seg_mb(1).conf("autovacuum = off").start();
    primary.sql("create table t (i int)");
    let mut relay = relay_below(&primary).start();
    let program = readable_binary(&scratch);
    let restore =
        format!("\"{}\" restore --require-relays 1 --from \"{}\"", program.display(), relay.conninfo());
    let b = primary.standby().name("b").conf(&format!("restore_command = '{restore} %f %p'")).start();
    relay.set_upstream(&Relay::hosts(&[&primary, &b]));
    relay.restart();
    primary.freeze_walsender("b");
    let end = fence_at_the_end_of_a_segment(&primary, &relay);
    let count = primary.sql("select count(*) from t");
    assert!(b.receive_lsn() < end);
    primary.kill9();
    b.promote();
    assert_eq!(b.sql("select count(*) from t"), count);
    assert_followed_from(end, &b, &relay);
    let said = relay.log().lines_with("kept everything acknowledged (up to ", Default::default());
    assert_eq!(said.len(), 1, "{said:?}");
}

/// The new timeline begins there, and the relay follows it.
fn assert_followed_from(end: Lsn, b: &Cluster, relay: &Relay) {
    relay.wait_for_timeline(2);
    relay.log().wait_for("is passed: timeline 2 is followed");
    assert_eq!(b.history().begin(), end);
    b.sql("insert into t values (2)");
    relay.wait_for_flush(b.settled_lsn());
}
