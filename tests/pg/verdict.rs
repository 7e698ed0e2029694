//! Whether a promotion kept everything that the relay had acknowledged, and who is told.

use std::process::Command;

use walrelay_testkit::{
    Cluster, Mark, Relay, Scratch, Server, on_every_server, on_every_version, on_one_version, tied_command,
    wait_until,
};

use crate::output::at_a_terminal;
use crate::{relay_below, walrelay};

on_every_server!(a_promotion_that_kept_everything_says_so);
on_every_version!(what_a_promotion_has_left_is_an_error_and_listed);
on_one_version!(
    what_nobody_had_waited_for_is_a_warning_that_says_when_that_was_known,
    a_relay_below_a_relay_is_awaited_where_the_rules_of_that_name_it,
);

/// A primary that waits for the relay, and a standby of its own, which the relay follows next.
fn cluster(server: &Server) -> (Cluster, Cluster, Relay) {
    let primary = Cluster::builder(server).name("a").start();
    primary.sql("create table t (i int)");
    let next = primary.standby().name("b").start();
    let relay = relay_below(&primary).upstream(&Relay::hosts(&[&primary, &next])).start();
    primary.make_synchronous("walrelay");
    (primary, next, relay)
}

/// What `walrelay failovers` says, and its exit code.
fn failovers(relay: &Relay, options: &[&str]) -> (String, Option<i32>) {
    let dir = relay.data_dir();
    let output = Command::new(walrelay()).arg("failovers").arg("-D").arg(dir).args(options).output();
    let output = output.expect("the program is there");
    (String::from_utf8(output.stdout).expect("text"), output.status.code())
}

fn a_promotion_that_kept_everything_says_so(server: &Server) {
    let (mut primary, next, relay) = cluster(server);
    assert_eq!(failovers(&relay, &[]), (String::new(), Some(0)));
    primary.sql("insert into t values (1)");
    next.wait_for_replay(primary.settled_lsn());
    primary.stop();
    next.promote();
    relay.wait_for_timeline(2);
    relay.log().wait_for("promotion to timeline 2 at ");
    let said = relay.log().lines_with("kept everything acknowledged (up to ", Mark::default());
    assert_eq!(said.len(), 1, "{said:?}");
    let (listed, code) = failovers(&relay, &[]);
    assert!(listed.contains("timeline 1 to 2 at ") && listed.contains("  kept, "), "{listed}");
    assert_eq!((listed.lines().count(), code), (1, Some(0)));
}

fn what_a_promotion_has_left_is_an_error_and_listed(server: &Server) {
    let (mut primary, next, mut relay) = cluster(server);
    // It streamed when it was named, and is not connected again.
    let waits = "waits for this relay from now on: synchronous_standby_names = \"walrelay\"";
    relay.log().wait_for(waits);
    assert_eq!(relay.log().lines_with("started streaming WAL from ", Mark::default()).len(), 1);
    primary.sql("insert into t values (0)");
    next.wait_for_replay(primary.settled_lsn());
    primary.freeze_walsender("b");
    for row in 1..=5 {
        primary.sql(&format!("insert into t values ({row})"));
    }
    primary.kill9();
    next.promote();
    relay.wait_for_timeline(2);
    relay.log().wait_for("promotion to timeline 2 at ");
    let said = relay.log().lines_with("promotion to timeline 2 at ", Mark::default());
    assert_eq!(said.len(), 1, "{said:?}");
    let part = "left WAL of timeline 1 behind that was acknowledged, up to ";
    assert!(said[0].contains("ERROR") && said[0].contains(part), "{said:?}");
    assert!(said[0].contains(": 5 commits, made from 20"), "{said:?}");
    let how = format!("walrelay branch export 1 --to DIR -D \"{}\"", relay.data_dir().display());
    assert!(said[0].ends_with(&format!("; they are read with: {how}")), "{said:?}");
    let (listed, _) = failovers(&relay, &[]);
    assert!(listed.contains("  left, ") && listed.ends_with(&format!("; to read them: {how}\n")), "{listed}");
    assert_eq!(next.sql("select count(*) from t"), "1");
    let check = |relay: &Relay| {
        let (listed, code) = failovers(relay, &["--json"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        let only = &listed.as_array().expect("a list")[..];
        assert_eq!((only.len(), code), (1, Some(1)), "{only:?}");
        let shown = ["from_timeline", "to_timeline", "verdict", "commits_left", "upstream_waited"];
        let shown = shown.map(|name| only[0][name].to_string());
        assert_eq!(shown, ["1", "2", "\"left\"", "5", "true"]);
        assert!(only[0]["upstream_asked"].is_string(), "{only:?}");
    };
    check(&relay);
    what_was_left_can_be_read(server, &relay);
    relay.kill9();
    relay.start();
    check(&relay);
    // It is a trouble until somebody says that it was looked at, also over restarts.
    let ask = |relay: &Relay, sql: &str| relay.psql("dbname=walrelay", &[sql]).expect("it is answered");
    let row = ask(&relay, "show failovers");
    assert!(row.contains("|1|2|") && row.ends_with("|left|t|5|t"), "{row}");
    let troubles = ask(&relay, "show troubles");
    assert!(
        troubles.contains("wal_left_behind|1 to 2|") && troubles.contains("DISMISS FAILOVERS"),
        "{troubles}"
    );
    wait_until("the order to be taken", || relay.psql("dbname=walrelay", &["dismiss failovers"]).is_ok());
    relay.log().wait_for("has run DISMISS FAILOVERS");
    assert!(!ask(&relay, "show troubles").contains("wal_left_behind"));
    relay.kill9();
    relay.start();
    let row = ask(&relay, "show failovers");
    assert!(row.ends_with("|left|t|5|f"), "{row}");
    check(&relay);
}

fn what_nobody_had_waited_for_is_a_warning_that_says_when_that_was_known(server: &Server) {
    let mut primary = Cluster::builder(server).name("a").start();
    primary.sql("create table t (i int)");
    let next = primary.standby().name("b").start();
    let relay = relay_below(&primary).upstream(&Relay::hosts(&[&primary, &next])).start();
    next.wait_for_replay(primary.settled_lsn());
    primary.freeze_walsender("b");
    primary.sql("insert into t values (1)");
    relay.wait_for_flush(primary.settled_lsn());
    primary.kill9();
    next.promote();
    relay.log().wait_for("promotion to timeline 2 at ");
    let said = relay.log().lines_with("promotion to timeline 2 at ", Mark::default());
    let part = "the upstream did not wait for this relay when it was asked last, at 20";
    assert!(said.len() == 1 && said[0].contains("WARN") && said[0].contains(part), "{said:?}");
    let (listed, code) = failovers(&relay, &[]);
    assert!(code == Some(1) && listed.contains(part), "{listed}");
}

/// The primary names the one above only, and waits for the one below by that.
fn a_relay_below_a_relay_is_awaited_where_the_rules_of_that_name_it(server: &Server) {
    let mut primary = Cluster::builder(server).name("a").start();
    primary.sql("create table t (i int)");
    let next = primary.standby().name("b").start();
    let hosts = Relay::hosts(&[&primary, &next]);
    let above = relay_below(&primary).upstream(&hosts).arg("--ack-flush").arg("ANY 1 (lower)");
    let mut above = above.start();
    let mut lower = above.builder_below().name("lower").start();
    primary.make_synchronous("walrelay");
    // Each learns it when it connects.
    let mark = above.log().mark();
    above.restart();
    above.log().wait_for_after(mark, "started streaming WAL from ");
    let mark = lower.log().mark();
    lower.restart();
    lower.log().wait_for_after(mark, "started streaming WAL from ");
    primary.sql("insert into t values (0)");
    next.wait_for_replay(primary.settled_lsn());
    primary.freeze_walsender("b");
    primary.sql("insert into t values (1)");
    primary.kill9();
    next.promote();
    for relay in [&above, &lower] {
        relay.log().wait_for("promotion to timeline 2 at ");
        let said = relay.log().lines_with("promotion to timeline 2 at ", Mark::default());
        let part = "left WAL of timeline 1 behind that was acknowledged, up to ";
        assert!(said.len() == 1 && said[0].contains("ERROR") && said[0].contains(part), "{said:?}");
    }
}

/// Five commits, by PostgreSQL's own reader.
fn what_was_left_can_be_read(server: &Server, relay: &Relay) {
    let scratch = Scratch::new("branch");
    let run = |args: &[&str]| {
        let dir = relay.data_dir().display().to_string();
        let output = Command::new(walrelay()).arg("branch").args(args).args(["-D", &dir]).output();
        let output = output.expect("the program is there");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let listed = run(&["list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!((&listed[0]["timeline"], &listed[0]["commits"]), (&1.into(), &5.into()), "{listed}");
    let to = scratch.join("left").display().to_string();
    let said = run(&["export", "1", "--to", &to]);
    assert!(said.contains(&format!("pg_waldump -p {to} -t 1 -s ")), "{said}");
    // Who sits at a terminal sees how far it is.
    let (dir, again) = (relay.data_dir().display().to_string(), scratch.join("again").display().to_string());
    let shown = at_a_terminal(&["branch", "export", "1", "--to", &again, "-D", &dir]).output();
    let shown = String::from_utf8_lossy(&shown.expect("there is a script").stdout).into_owned();
    assert!(
        shown.contains("reading the branch: ") && shown.contains("copying: [") && !said.contains("copying"),
        "{shown:?}"
    );
    let from = listed[0]["from"].as_str().expect("a position");
    let mut dump = tied_command(server.program("pg_waldump"));
    // It ends with an error at the end of the WAL.
    let dumped = dump.args(["-p", &to, "-t", "1", "-s", from, "-r", "Transaction"]).output();
    let dumped = String::from_utf8_lossy(&dumped.expect("pg_waldump is installed").stdout).into_owned();
    assert_eq!(dumped.matches("desc: COMMIT ").count(), 5, "{dumped}");
}
