use std::collections::BTreeMap;

use walrelay_proto::Lsn;

use super::ask::Trouble;
use super::consumer::{self, Expected, Receiver};
use super::finding::{Finding, Severity};
use super::restore::{self, Outcome, Tried};
use super::upstream::{self, Facts, Identity, Sender, Slot, Told, Wanted};
use super::{host, relay};

/// Codes of what is not well, the worst first.
fn bad(findings: &[Finding]) -> Vec<&'static str> {
    let mut bad: Vec<_> = findings.iter().filter(|it| it.severity != Severity::Ok).collect();
    bad.sort_by_key(|it| std::cmp::Reverse(it.severity));
    assert!(bad.iter().all(|it| !it.message.is_empty()));
    bad.into_iter().map(|it| it.code).collect()
}

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn wanted() -> Wanted {
    Wanted {
        user: "relay".to_owned(),
        slot: "walrelay".to_owned(),
        application_name: "r1".to_owned(),
        streams: Some(true),
        system_id: Some("7".to_owned()),
        somebody_applies: false,
        is_fenced: false,
    }
}

/// A primary where all is well.
fn told() -> Told {
    let ours = Slot {
        name: "walrelay".to_owned(),
        kind: "physical".to_owned(),
        active_pid: Some(10),
        wal_status: Some("reserved".to_owned()),
        ..Slot::default()
    };
    let sender = Sender { pid: Some(10), name: "r1".to_owned(), address: Some("10.0.0.9".to_owned()) };
    Told {
        version: 170_004,
        in_recovery: false,
        may_replicate: true,
        sees_all: true,
        settings: settings(&[
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            ("max_slot_wal_keep_size", "-1"),
            ("synchronous_standby_names", "r1"),
            ("synchronous_commit", "on"),
        ]),
        slots: vec![ours],
        senders: vec![sender],
        skew: Some(0.0),
    }
}

fn upstream(told: Told, wanted: &Wanted) -> Vec<&'static str> {
    let identity = Ok(Identity { system_id: "7".to_owned(), timeline: 1, is_relay: false });
    bad(&upstream::diagnose(&Facts { identity, sql: Ok(told) }, wanted))
}

#[test]
fn a_primary_where_all_is_well_is_told_so() {
    assert_eq!(upstream(told(), &wanted()), [""; 0]);
}

#[test]
fn who_refuses_is_answered_with_what_to_type() {
    let refused = |sqlstate: Option<&str>, text: &str| {
        let trouble =
            Trouble { sqlstate: sqlstate.map(str::to_owned), is_login: true, text: text.to_owned() };
        let facts = Facts { identity: Err(trouble.clone()), sql: Err(trouble) };
        upstream::diagnose(&facts, &wanted()).remove(0)
    };
    // Whatever the language of the server is.
    let hba = refused(Some("28000"), "kein pg_hba.conf-Eintrag für Host »10.0.0.9«");
    assert_eq!(hba.code, "upstream_hba");
    assert!(hba.remedy[0].contains("host  replication  relay"), "{hba:?}");
    let role = refused(Some("42501"), "must be superuser or replication role to start walsender");
    assert!(
        role.code == "upstream_role"
            && role.remedy.join(" ").contains("ALTER ROLE \"relay\" LOGIN REPLICATION;")
    );
    assert_eq!(refused(Some("28P01"), "password authentication failed").code, "upstream_password");
    assert_eq!(refused(Some("53300"), "too many").code, "upstream_max_wal_senders");
    assert_eq!(refused(None, "Connection refused").code, "upstream_unreachable");
}

#[test]
fn what_keeps_wal_from_coming_is_found_upstream() {
    let with = |change: fn(&mut Told)| {
        let mut told = told();
        change(&mut told);
        upstream(told, &wanted())
    };
    assert_eq!(with(|it| it.version = 130_000), ["upstream_version"]);
    assert_eq!(with(|it| it.may_replicate = false), ["upstream_role"]);
    assert_eq!(
        with(|it| drop(it.settings.insert("wal_level".to_owned(), "minimal".to_owned()))),
        ["upstream_wal_level"]
    );
    assert_eq!(
        with(|it| drop(it.settings.insert("max_wal_senders".to_owned(), "1".to_owned()))),
        ["upstream_max_wal_senders"]
    );
    assert_eq!(with(|it| it.slots[0].kind = "logical".to_owned()), ["upstream_slot_kind"]);
    assert_eq!(with(|it| it.slots[0].wal_status = Some("lost".to_owned())), ["upstream_slot_lost"]);
    assert_eq!(
        with(|it| it.senders[0].name = "r2".to_owned()),
        ["upstream_slot_taken", "upstream_nobody_confirms"]
    );
    assert_eq!(with(|it| it.senders.push(it.senders[0].clone())), ["upstream_name_twice"]);
    assert_eq!(with(|it| it.skew = Some(-7.0)), ["clock_skew"]);
    assert_eq!(
        with(|it| {
            it.slots[0].safe_wal_size = Some(5 << 20);
            it.settings.insert("max_slot_wal_keep_size".to_owned(), "64".to_owned());
        }),
        ["upstream_slot_at_risk"]
    );
    assert_eq!(
        with(|it| {
            let keeps = Some(5 << 30);
            it.slots.push(Slot {
                name: "old".to_owned(),
                kind: "physical".to_owned(),
                keeps,
                ..Slot::default()
            });
        }),
        ["upstream_slot_orphaned"]
    );
    assert_eq!(
        with(|it| drop(
            it.settings.insert("synchronous_standby_names".to_owned(), "ANY 2 (r1, r2)".to_owned())
        )),
        ["upstream_nobody_confirms"]
    );
    assert_eq!(
        with(|it| drop(it.settings.insert("synchronous_commit".to_owned(), "remote_apply".to_owned()))),
        ["upstream_remote_apply"]
    );
    let other = Wanted { system_id: Some("8".to_owned()), ..wanted() };
    assert_eq!(upstream(told(), &other), ["upstream_other_cluster"]);
    // A standby waits for nobody, and a relay tells the primary's settings beside its own consumers.
    let mut below = told();
    below.settings.insert("synchronous_standby_names".to_owned(), "other".to_owned());
    assert_eq!(upstream(below.clone(), &wanted()), ["upstream_nobody_confirms"]);
    let fenced = Wanted { is_fenced: true, ..wanted() };
    let facts = Facts {
        identity: Ok(Identity { system_id: "7".to_owned(), timeline: 1, is_relay: false }),
        sql: Ok(below.clone()),
    };
    let said =
        upstream::diagnose(&facts, &fenced).into_iter().find(|it| it.code == "upstream_nobody_confirms");
    assert!(
        said.is_some_and(
            |it| it.severity == Severity::Warning && !it.remedy.concat().contains("ALTER SYSTEM")
        )
    );
    let relay = Identity { system_id: "7".to_owned(), timeline: 1, is_relay: true };
    let facts = Facts { identity: Ok(relay), sql: Ok(below.clone()) };
    assert_eq!(bad(&upstream::diagnose(&facts, &wanted())), [""; 0]);
    below.in_recovery = true;
    assert_eq!(upstream(below, &wanted()), [""; 0]);
    // A relay that does not run cannot be who uses the slot.
    assert_eq!(upstream(told(), &Wanted { streams: Some(false), ..wanted() }), ["upstream_slot_taken"]);
}

#[test]
fn a_running_relay_tells_what_is_wrong_with_it() {
    let scene = crate::status::tests::Scene::new();
    let mut status = scene.now();
    status.upstream.state = "streaming".to_owned();
    let bad_of = |status: &crate::status::Status| {
        bad(&relay::diagnose(&relay::Seen::Running(Box::new(status.clone())), Some(1)))
    };
    assert_eq!(bad_of(&status), [""; 0]);
    status.upstream.state = "waiting".to_owned();
    assert_eq!(bad_of(&status), ["relay_not_receiving"]);
    status.upstream.state = "streaming".to_owned();
    status.disk.full_in_seconds = Some(60.0);
    assert_eq!(bad_of(&status), ["disk_full_soon"]);
    let silent = relay::Seen::Silent("nobody listens".to_owned());
    assert_eq!(bad(&relay::diagnose(&silent, None)), ["relay_not_running"]);
    let refusing = relay::Seen::Refusing("no such role".to_owned());
    assert_eq!(bad(&relay::diagnose(&refusing, None)), ["relay_refuses"]);
    assert_eq!(bad(&relay::diagnose(&relay::Seen::New, None)), [""; 0]);
}

fn standby() -> consumer::Told {
    consumer::Told {
        is_standby: true,
        sees_all: true,
        system_id: Some("7".to_owned()),
        timeline: Some(2),
        receiver: Some(Receiver {
            status: "streaming".to_owned(),
            host: Some("relay".to_owned()),
            port: Some(5433),
        }),
        replayed: Some(Lsn::new(1 << 30)),
        received: Some(Lsn::new(1 << 30)),
        pause_state: Some("not paused".to_owned()),
        settings: settings(&[
            ("primary_conninfo", "host=relay"),
            ("primary_slot_name", "s1"),
            ("recovery_target_timeline", "latest"),
            ("recovery_min_apply_delay", "0"),
        ]),
        ..consumer::Told::default()
    }
}

fn restore(told: &mut consumer::Told, version: &str, command: &str) {
    told.settings.insert("server_version_num".to_owned(), version.to_owned());
    told.settings.insert("restore_command".to_owned(), command.to_owned());
}

fn consumer(change: fn(&mut consumer::Told)) -> Vec<&'static str> {
    let expected = Expected {
        system_id: Some("7".to_owned()),
        timeline: Some(2),
        ports: vec![5433],
        consumers: Some(vec!["s1".to_owned()]),
        slots: Some([("s1".to_owned(), false), ("s2".to_owned(), true)].into()),
    };
    let mut told = standby();
    change(&mut told);
    bad(&consumer::diagnose("s1", &Ok(told), &expected))
}

#[test]
fn a_standby_is_told_why_it_does_not_follow() {
    assert_eq!(consumer(|_| {}), [""; 0]);
    assert_eq!(consumer(|it| it.is_standby = false), ["consumer_no_standby"]);
    assert_eq!(
        consumer(|it| {
            it.sees_all = false;
            it.settings.clear();
            it.receiver = None;
        }),
        ["consumer_monitor"]
    );
    assert_eq!(consumer(|it| it.system_id = Some("9".to_owned())), ["consumer_other_cluster"]);
    assert_eq!(consumer(|it| it.receiver = None), ["consumer_not_streaming"]);
    assert_eq!(
        consumer(|it| {
            it.receiver = None;
            it.timeline = Some(1);
        }),
        ["consumer_old_timeline", "consumer_not_streaming"]
    );
    assert_eq!(consumer(|it| it.pause_state = Some("paused".to_owned())), ["consumer_paused"]);
    assert_eq!(
        consumer(|it| drop(it.settings.insert("primary_slot_name".to_owned(), "s2".to_owned()))),
        ["consumer_slot_lost"]
    );
    assert_eq!(
        consumer(|it| drop(it.settings.insert("primary_slot_name".to_owned(), "s3".to_owned()))),
        ["consumer_slot_missing"]
    );
    assert_eq!(
        consumer(|it| drop(it.settings.insert("primary_slot_name".to_owned(), String::new()))),
        ["consumer_no_slot"]
    );
    assert_eq!(
        consumer(|it| drop(it.settings.insert("primary_conninfo".to_owned(), String::new()))),
        ["consumer_no_conninfo"]
    );
    assert_eq!(
        consumer(|it| drop(it.settings.insert("recovery_target_timeline".to_owned(), "1".to_owned()))),
        ["consumer_target_timeline"]
    );
    assert_eq!(
        consumer(|it| drop(it.settings.insert("recovery_min_apply_delay".to_owned(), "60000".to_owned()))),
        ["consumer_delayed"]
    );
    assert_eq!(consumer(|it| restore(it, "160000", "date +%d; cp /a/%f %p")), ["restore_kills"]);
    assert_eq!(consumer(|it| restore(it, "180003", "cp /a/%f %p; echo 100%")), ["restore_kills"]);
    assert_eq!(consumer(|it| restore(it, "180003", "echo 100%% %r; cp /a/%f %p")), [""; 0]);
    assert_eq!(consumer(|it| restore(it, "150018", "date +%d; cp /a/%f %p")), [""; 0]);
    assert_eq!(
        consumer(|it| it.waits_for = Some("RecoveryConflictSnapshot".to_owned())),
        ["consumer_conflict"]
    );
    assert_eq!(consumer(|it| it.replayed = Some(Lsn::new(1 << 20))), ["consumer_slow_replay"]);
    assert_eq!(
        consumer(|it| it.receiver = Some(Receiver { port: Some(5432), ..it.receiver.clone().unwrap() })),
        ["consumer_other_source"]
    );
}

#[tokio::test]
async fn a_restore_command_is_judged_by_what_a_server_makes_of_it() {
    let judged = async |command: &str| {
        let tried = restore::attempt(command, Some("000000010000000000000001".to_owned())).await;
        let mut found = super::finding::Findings::about("c");
        tried.tell(&mut found, command);
        bad(&found.into_inner())
    };
    let dir = crate::permissions::private_tempdir();
    std::fs::write(dir.path().join("000000010000000000000001"), b"wal").unwrap();
    let good = format!("cp {}/%f %p", dir.path().display());
    assert_eq!(judged(&good).await, [""; 0]);
    // What is older than the file that a server needs last may be removed: nothing is.
    let cleaning = format!("test %r = 000000000000000000000000 && cp {}/%f %p", dir.path().display());
    assert_eq!(judged(&cleaning).await, [""; 0]);
    assert_eq!(
        judged("test -e standby.signal && test %p = pg_wal/RECOVERYXLOG || kill -9 $$; false").await,
        ["restore_not_found"]
    );
    assert_eq!(judged("true").await, ["restore_lies", "restore_lies"]);
    assert_eq!(judged("cp /nowhere/%f %p").await, ["restore_not_found"]);
    assert_eq!(judged("/nowhere/restore %f %p").await, ["restore_kills", "restore_kills"]);
    assert_eq!(judged("kill -9 $$").await, ["restore_kills", "restore_kills"]);
    let stalled = Tried { newest: None, nowhere: Outcome::Stalled };
    let mut found = super::finding::Findings::about("c");
    stalled.tell(&mut found, "sleep inf");
    assert_eq!(bad(&found.into_inner()), ["restore_stalls"]);
}

#[test]
fn this_machine_is_measured() {
    let dir = crate::permissions::private_tempdir();
    let facts = host::look(&dir.path().join("not/there/yet"), &[dir.path().join("missing.pem")]);
    assert!(facts.space.as_ref().is_ok_and(|(free, all)| free <= all), "{facts:?}");
    assert!(facts.sync.as_ref().is_ok_and(|(usual, longest)| usual <= longest), "{facts:?}");
    let findings = host::diagnose(&facts);
    assert!(bad(&findings).contains(&"certificate"), "{findings:?}");
}

/// Each code that is given away for something that is not well stands in the manual, and none that is not.
#[test]
fn the_manual_lists_the_codes() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let parts = ["consumer", "host", "mod", "relay", "restore", "upstream"];
    let read = |path: &str| std::fs::read_to_string(format!("{root}{path}")).unwrap();
    let mut given = std::collections::BTreeSet::new();
    let code = regex::Regex::new(r#""([a-z_]+)""#).unwrap();
    let families = [
        "archive_",
        "certificate",
        "clock_",
        "configuration",
        "consumer_",
        "disk_",
        "relay_",
        "restore_",
        "slot_",
        "upstream_",
    ];
    for part in parts {
        let source = read(&format!("src/doctor/{part}.rs"));
        for literal in code.captures_iter(&source).map(|found| found[1].to_owned()) {
            if families.iter().any(|family| literal.starts_with(family)) {
                given.insert(literal);
            }
        }
    }
    let manual = read("docs/MONITORING.md");
    let well = ["relay_new", "relay_receiving", "upstream_login", "upstream_slot", "consumer_streaming"];
    for code in given.iter().filter(|code| !well.contains(&code.as_str())) {
        assert!(manual.contains(&format!("| `{code}` |")), "{code} is not in docs/MONITORING.md");
    }
    let section =
        manual.split("## walrelay doctor").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    for code in section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()) {
        assert!(given.contains(code), "{code} is in docs/MONITORING.md, and nobody gives it away");
    }
}
