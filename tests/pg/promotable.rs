//! `walrelay promotable`: who has what, what a promotion would lose now, and who would drain the relay.

use serde_json::Value;
use walrelay_testkit::{
    Cluster, Process, Scratch, Server, Signal, on_every_server, tied_command, wait_until,
};

use crate::restore::readable_binary;
use crate::{relay_below, walrelay};

on_every_server!(whoever_may_be_promoted_is_weighed);

/// What it says about these, and its exit code.
fn promotable(relays: &[String], candidates: &[&Cluster], json: bool) -> (String, Option<i32>) {
    let mut command = tied_command(walrelay());
    command.arg("promotable").arg("--relay").args(relays);
    command.arg("--candidate").args(candidates.iter().map(|it| it.conninfo()));
    command.args(json.then_some("--json"));
    let output = command.output().expect("the program is there");
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8(said).expect("text"), output.status.code())
}

fn in_json(relays: &[String], candidates: &[&Cluster]) -> (Value, Option<i32>) {
    let (said, code) = promotable(relays, candidates, true);
    (serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}")), code)
}

fn name(cluster: &Cluster) -> String {
    format!("127.0.0.1:{}", cluster.port())
}

fn whoever_may_be_promoted_is_weighed(server: &Server) {
    let scratch = Scratch::new("promotable");
    let mut primary = Cluster::builder(server).name("a").seg_mb(1).start();
    primary.sql("create table t (i int)");
    let mut relay = relay_below(&primary).start();
    let command = format!(
        "restore_command = '\"{}\" restore --require-relays 1 --from \"{}\" %f %p'",
        readable_binary(&scratch).display(),
        relay.conninfo()
    );
    let behind = primary.standby().name("b").conf(&command).start();
    let level = primary.standby().name("c").start();
    primary.append_conf("synchronous_standby_names = 'walrelay'");
    primary.reload();
    primary.wait_for_sql(
        "select sync_state from pg_stat_replication where application_name = 'walrelay'",
        "sync",
    );
    behind.wait_for_replay(primary.settled_lsn());
    primary.freeze_walsender("b");
    for row in 1..=3 {
        primary.sql(&format!("insert into t values ({row})"));
    }
    primary.sql("select pg_switch_wal()");
    for row in 4..=5 {
        primary.sql(&format!("insert into t values ({row})"));
    }
    relay.wait_for_flush(primary.flush_lsn());
    let relays = [relay.conninfo()];
    watched(&relays[0], &level, &scratch);

    // Somebody has everything, whatever the other one lacks.
    let weighed = || in_json(&relays, &[&behind, &level]);
    wait_until("the other standby to be level with the relay", || weighed().1 == Some(0));
    let (said, _) = weighed();
    assert_eq!((&said["best"], &said["loses"]), (&name(&level).into(), &"nothing".into()), "{said}");
    let [first, second] = [0, 1].map(|number| said["candidates"][number].clone());
    assert_eq!((&first["name"], &first["restore_command_drains"]), (&name(&level).into(), &"no".into()));
    assert_eq!(second["lost"]["commits"], 5, "{second}");
    assert!(second["lost"]["bytes"].as_u64() > Some(1 << 20), "a segment was finished: {second}");
    let end = second["end_lsn"].as_str().expect("a position").to_owned();
    assert_eq!(second["lost"]["from_lsn"], end.as_str(), "{second}");
    assert_eq!(
        (&second["restore_command_drains"], &second["restore_command_waits"]),
        (&"yes".into(), &true.into())
    );
    let positions = ["receive_lsn", "replay_lsn"].map(|it| second[it].as_str().expect("told").to_owned());
    assert!(positions.contains(&end), "{second}");

    // Where there is only the one that lacks something, that is what is said.
    let (said, code) = promotable(&relays, &[&behind], false);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(": 5 commits, made from 20") && said.contains("and waits for them"), "{said}");
    // A relay that cannot be asked may have anything.
    let (said, code) = in_json(&[relays[0].clone(), "host=127.0.0.1 port=1 user=x".to_owned()], &[&level]);
    assert_eq!((code, &said["loses"]), (Some(2), &"unknown".into()), "{said}");
    assert!(said["relays"][1]["error"].as_str().expect("a reason").contains("refused"), "{said}");
    // A primary is no candidate.
    let (said, code) = promotable(&relays, &[&primary], false);
    assert!(code == Some(2) && said.contains("it is no standby"), "{said}");

    // The primary is gone. With the stream the standby has lost its way past the relay: it has asked that.
    primary.kill9();
    behind.wait_for_replay(relay.flush_lsn());
    assert_eq!(in_json(&relays, &[&behind]).1, Some(0));
    relay.kill9();
    assert_eq!(in_json(&relays, &[&behind]).1, Some(2));
}

/// With `--watch` it is shown again and again.
fn watched(relay: &str, candidate: &Cluster, scratch: &Scratch) {
    let mut command = tied_command(walrelay());
    command.args(["promotable", "--relay", relay, "--candidate", &candidate.conninfo(), "--watch=0.2"]);
    let mut watching = Process::spawn("promotable", command, &scratch.join("watched"));
    let log = watching.log().clone();
    wait_until("two pictures", || log.text().matches("\x1b[H\x1b[2J").count() >= 2);
    assert!(watching.is_running() && log.text().contains(&name(candidate)), "{}", log.text());
    assert_eq!(watching.end_with(Signal::TERM), 128 + 15);
}
