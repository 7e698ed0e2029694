use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use walrelay_proto::{Lsn, SegNo, SegSize, TimelineHistory, TimelineId, WalFileName};

use super::ask::{Hurdle, Trouble};
use super::certificates::{Dates, Kind, Paper};
use super::consumer::{self, Expected, Receiver};
use super::finding::{Finding, Severity};
use super::restore::{self, Outcome, Tried};
use super::upstream::{self, Facts, Identity, Sender, Slot, Told, Wanted};
use super::{archive, certificates, hba, host, relay};
use crate::archive::ArchiveError;
use crate::archive::probe::Probed;
use crate::auth::hba::{Facts as Known, Hba};
use crate::conninfo::SslMode;
use crate::moment::Moment;
use crate::pg::{ConnectError, ServerError};
use crate::status::{ArchiveStatus, ConsumerStatus, Distance, FenceStatus, Setting, SlotStatus, Status};

/// Codes of what is not well, the worst first.
fn bad(findings: &[Finding]) -> Vec<&'static str> {
    let mut bad: Vec<_> = findings.iter().filter(|it| it.severity != Severity::Ok).collect();
    bad.sort_by_key(|it| std::cmp::Reverse(it.severity));
    let silent =
        |it: &&&Finding| it.message.is_empty() || it.remedy.iter().all(|line| line.trim().is_empty());
    assert_eq!(bad.iter().find(silent), None, "each says what it is and what to do");
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
        ..Wanted::default()
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
        ..Told::default()
    }
}

fn upstream(told: Told, wanted: &Wanted) -> Vec<&'static str> {
    let identity = Ok(Identity { system_id: "7".to_owned(), timeline: 1, ..Identity::default() });
    bad(&upstream::diagnose(&Facts { identity, sql: Ok(told) }, wanted))
}

#[test]
fn a_primary_where_all_is_well_is_told_so() {
    assert_eq!(upstream(told(), &wanted()), [""; 0]);
}

#[test]
fn who_refuses_is_answered_with_what_to_type() {
    let refused = |sqlstate: Option<&str>, text: &str| {
        let trouble = Trouble {
            sqlstate: sqlstate.map(str::to_owned),
            is_login: true,
            text: text.to_owned(),
            ..Trouble::default()
        };
        let facts = Facts { identity: Err(trouble.clone()), sql: Err(trouble) };
        let findings = upstream::diagnose(&facts, &wanted());
        assert_eq!(bad(&findings).len(), 1, "{findings:?}");
        findings.into_iter().next().unwrap()
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
    assert_eq!(refused(Some("57P03"), "the database system is starting up").code, "upstream_refuses");
    assert_eq!(refused(None, "Connection refused").code, "upstream_unreachable");
    let without = |hurdle| {
        let trouble = Trouble { is_login: true, hurdle, text: "no".to_owned(), ..Trouble::default() };
        upstream::diagnose(&Facts { identity: Err(trouble.clone()), sql: Err(trouble) }, &wanted())
            .remove(0)
            .code
    };
    assert_eq!(without(Hurdle::Tls), "upstream_tls");
    assert_eq!(without(Hurdle::Password), "upstream_password");
    let server = |sqlstate: &str, routine: &str| {
        let routine = Some(routine.to_owned());
        ConnectError::Server(ServerError { sqlstate: sqlstate.to_owned(), routine, ..ServerError::default() })
    };
    // sslmode=prefer: the server has said no twice.
    let twice = ConnectError::Both {
        first: Box::new(server("28000", "ClientAuthentication")),
        second_how: "without SSL",
        second: Box::new(server("28000", "ClientAuthentication")),
    };
    assert_eq!(Trouble::from(twice).sqlstate.as_deref(), Some("28000"));
    let limit = |routine: &str| Trouble::from(server("53300", routine)).hurdle;
    assert_eq!(
        (limit("InitProcess"), limit("InitializeSessionUserId")),
        (Hurdle::Other, Hurdle::LimitOfRole)
    );
}

#[test]
fn a_relay_that_has_its_connection_lacks_nothing_yet_where_no_place_is_left() {
    let full = |hurdle: Hurdle, sql: Option<Told>, streams: Option<bool>| {
        let text = "in welcher Sprache auch immer".to_owned();
        let trouble = Trouble { sqlstate: Some("53300".to_owned()), is_login: true, hurdle, text };
        let facts = Facts { identity: Err(trouble.clone()), sql: sql.ok_or(trouble) };
        let mut found = upstream::diagnose(&facts, &Wanted { streams, ..wanted() });
        found.retain(|it| it.severity != Severity::Ok && it.code != "upstream_slot_taken");
        assert_eq!(found.len(), 1, "{found:?}");
        (found[0].severity, found[0].code, found[0].remedy[0].clone())
    };
    let mut all_used = told();
    all_used.settings.insert("max_wal_senders".to_owned(), "1".to_owned());
    let full_server = |severity| {
        (
            severity,
            "upstream_max_wal_senders",
            "ALTER SYSTEM SET max_wal_senders = 20;   -- takes a restart of the server".to_owned(),
        )
    };
    assert_eq!(full(Hurdle::Other, Some(all_used.clone()), Some(true)), full_server(Severity::Warning));
    // A relay that does not say how it is: its name is there.
    assert_eq!(full(Hurdle::Other, Some(all_used.clone()), None), full_server(Severity::Warning));
    assert_eq!(full(Hurdle::Other, Some(all_used), Some(false)), full_server(Severity::Error));
    assert_eq!(full(Hurdle::Other, None, Some(false)), full_server(Severity::Error));
    let (severity, code, alter) = full(Hurdle::LimitOfRole, None, Some(false));
    assert_eq!((severity, code), (Severity::Error, "upstream_role_limit"));
    assert!(alter.contains("ALTER ROLE \"relay\" CONNECTION LIMIT"), "{alter}");
    assert_eq!(full(Hurdle::LimitOfRole, Some(told()), Some(true)).0, Severity::Warning);
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
        identity: Ok(Identity { system_id: "7".to_owned(), timeline: 1, ..Identity::default() }),
        sql: Ok(below.clone()),
    };
    let said =
        upstream::diagnose(&facts, &fenced).into_iter().find(|it| it.code == "upstream_nobody_confirms");
    assert!(
        said.is_some_and(
            |it| it.severity == Severity::Warning && !it.remedy.concat().contains("ALTER SYSTEM")
        )
    );
    let relay = Identity { system_id: "7".to_owned(), timeline: 1, is_relay: true, ..Identity::default() };
    let facts = Facts { identity: Ok(relay), sql: Ok(below.clone()) };
    assert_eq!(bad(&upstream::diagnose(&facts, &wanted())), [""; 0]);
    below.in_recovery = true;
    assert_eq!(upstream(below, &wanted()), [""; 0]);
    // A relay that does not run cannot be who uses the slot.
    assert_eq!(upstream(told(), &Wanted { streams: Some(false), ..wanted() }), ["upstream_slot_taken"]);
}

#[test]
fn what_will_go_wrong_upstream_is_found_before_it_does() {
    let with = |change: fn(&mut Told)| {
        let mut told = told();
        change(&mut told);
        upstream(told, &wanted())
    };
    let set = |told: &mut Told, name: &str, value: &str| {
        drop(told.settings.insert(name.to_owned(), value.to_owned()))
    };
    let mut full = told();
    set(&mut full, "max_replication_slots", "1");
    full.slots[0].name = "other".to_owned();
    assert_eq!(upstream(full, &wanted()), ["upstream_max_replication_slots"]);
    assert_eq!(with(|it| it.sees_all = false), ["upstream_monitor"]);
    let no_sql = |is_login, text: &str| {
        let trouble = Trouble {
            sqlstate: Some("28000".to_owned()),
            is_login,
            text: text.to_owned(),
            ..Trouble::default()
        };
        let identity = Ok(Identity { system_id: "7".to_owned(), timeline: 1, ..Identity::default() });
        bad(&upstream::diagnose(&Facts { identity, sql: Err(trouble) }, &wanted()))
    };
    assert_eq!(no_sql(true, "no pg_hba.conf entry"), ["upstream_sql"]);
    assert_eq!(no_sql(false, "permission denied"), ["upstream_sql"]);

    // Of two that are waited for one is enough, and nobody sees that the other is gone.
    let mut lonely = told();
    set(&mut lonely, "synchronous_standby_names", "FIRST 1 (r1, r2)");
    assert_eq!(upstream(lonely.clone(), &wanted()), ["upstream_standby_missing"]);
    let other = |pid| Sender { pid: Some(pid), name: "R2".to_owned(), address: None };
    lonely.senders.push(other(11));
    assert_eq!(upstream(lonely.clone(), &wanted()), [""; 0]);
    lonely.senders.push(other(12));
    assert_eq!(upstream(lonely, &wanted()), ["upstream_name_twice"]);

    let archiving = |command: &str, fails: Option<&str>, backup| {
        let mut told = told();
        set(&mut told, "archive_mode", "on");
        set(&mut told, "archive_command", command);
        (told.archiver_fails, told.waiting_backup) = (fails.map(str::to_owned), backup);
        upstream(told, &wanted())
    };
    assert_eq!(archiving("cp %p /wal/%f", None, Some(99)), [""; 0], "it waits for a moment");
    assert_eq!(archiving("cp %p /wal/%f", Some("000000010000000000000003"), None), ["upstream_archiver"]);
    assert_eq!(archiving("", None, None), ["upstream_archiver"]);
    assert_eq!(archiving("false", Some("000000010000000000000003"), Some(99)), ["upstream_backup_waits"]);
    assert_eq!(with(|it| it.archiver_fails = Some("long ago".to_owned())), [""; 0], "it archives no more");

    let of_16_mb = Wanted { seg_size: SegSize::new(16 << 20).ok(), ..wanted() };
    let mut reset = told();
    set(&mut reset, "wal_segment_size", "16777216");
    assert_eq!(upstream(reset.clone(), &of_16_mb), [""; 0]);
    set(&mut reset, "wal_segment_size", "67108864");
    assert_eq!(upstream(reset, &of_16_mb), ["upstream_segment_size"]);

    let mut dropped = told();
    dropped.slots.clear();
    assert_eq!(upstream(dropped.clone(), &wanted()), [""; 0]);
    let stopped = Wanted { streams: Some(false), has_run: true, ..wanted() };
    dropped.senders.clear();
    set(&mut dropped, "synchronous_standby_names", "");
    assert_eq!(upstream(dropped.clone(), &stopped), ["upstream_slot_missing"]);
    assert_eq!(upstream(dropped, &Wanted { has_run: false, ..stopped }), [""; 0]);
}

#[test]
fn a_relay_that_does_not_run_is_told_what_it_will_make_of_the_timeline() {
    let tli = |number| TimelineId::new(number).unwrap();
    let parsed = |number, text: &str| TimelineHistory::parse(tli(number), text.as_bytes()).unwrap();
    let with = |history: TimelineHistory, ours: u32, end: u64| {
        let timeline = history.tli().as_u32();
        let identity =
            Identity { system_id: "7".to_owned(), timeline, history: Some(history), ..Identity::default() };
        let held = Some((tli(ours), Some(Lsn::new(end))));
        bad(&upstream::diagnose(
            &Facts { identity: Ok(identity), sql: Ok(told()) },
            &Wanted { held, ..wanted() },
        ))
    };
    assert_eq!(with(TimelineHistory::first(), 1, 0x300_0000), [""; 0]);
    let promoted = "1\t0/4000000\tno recovery target specified\n";
    assert_eq!(with(parsed(2, promoted), 1, 0x300_0000), [""; 0]);
    assert_eq!(with(parsed(2, promoted), 2, 0x500_0000), [""; 0]);
    assert_eq!(with(parsed(2, promoted), 1, 0x500_0000), ["upstream_other_branch"]);
    assert_eq!(with(parsed(3, promoted), 2, 0x500_0000), ["upstream_other_branch"]);
    assert_eq!(with(TimelineHistory::first(), 2, 0x500_0000), ["upstream_older_timeline"]);
}

#[test]
fn a_target_is_judged_by_what_was_seen_of_it() {
    let seg_size = SegSize::new(16 << 20).ok();
    let wal = |number| WalFileName::new(TimelineId::FIRST, SegNo::new(number));
    let probed = || Probed { next: Some(wal(10)), ..Probed::default() };
    let judged = |probed: Probed, newest: u64, status: Option<ArchiveStatus>| {
        let expected = archive::Expected { seg_size, newest: Some(wal(newest)), status };
        bad(&archive::diagnose("main", &Ok(Some(probed)), &expected))
    };
    let why = || Some("because".to_owned());
    assert_eq!(judged(probed(), 9, None), [""; 0]);
    assert_eq!(judged(Probed { missing: why(), ..probed() }, 9, None), ["archive_missing"]);
    let refused = Err(ArchiveError::Command { target: "main".to_owned() });
    assert_eq!(bad(&archive::diagnose("main", &refused, &archive::Expected::default())), ["archive_missing"]);
    assert_eq!(judged(Probed { silent: Some("a write"), ..probed() }, 9, None), ["archive_silent"]);
    assert_eq!(judged(Probed { unwritable: why(), ..probed() }, 9, None), ["archive_unwritable"]);
    assert_eq!(judged(Probed { unreadable: why(), ..probed() }, 9, None), ["archive_unreadable"]);
    assert_eq!(judged(Probed { left_behind: why(), ..probed() }, 9, None), ["archive_cannot_remove"]);
    let lacks = vec!["000000010000000000000003".to_owned()];
    assert_eq!(judged(Probed { lacks, ..probed() }, 9, None), ["archive_hole"]);
    // A relay that does not run sends nothing after it.
    assert_eq!(judged(probed(), 10, None), ["archive_behind"]);
    let late = |seconds| Some(ArchiveStatus { at_risk_seconds: Some(seconds), ..target() });
    assert_eq!(judged(probed(), 11, late(300.0)), [""; 0]);
    assert_eq!(judged(probed(), 20, late(1.0)), [""; 0]);
    assert_eq!(judged(probed(), 20, late(300.0)), ["archive_behind"]);
    let paused = late(300.0).map(|it| ArchiveStatus { paused_since: Some(Moment::now()), ..it });
    assert_eq!(judged(probed(), 20, paused), [""; 0]);
}

const DAY: i64 = 86_400;

#[test]
fn all_of_a_chain_has_to_be_good_and_one_of_many_that_are_trusted() {
    let now = 2_000_000_000;
    let ends = |days: &[i64]| {
        let dates =
            |days: &i64| Dates { subject: "CN=x".to_owned(), from: now - 400 * DAY, to: now + days * DAY };
        Ok(days.iter().map(dates).collect::<Vec<_>>())
    };
    let judged = |kind, dates: Result<Vec<Dates>, String>| {
        let file = certificates::File {
            setting: "ssl-cert-file".to_owned(),
            kind,
            path: "/etc/server.crt".into(),
            is_optional: false,
        };
        bad(&certificates::diagnose(Some(&[Paper { file, dates }]), now))
    };
    assert_eq!(judged(Kind::Chain, ends(&[90, 900])), [""; 0]);
    assert_eq!(judged(Kind::Chain, ends(&[90, 5])), ["certificate_dates"]);
    assert_eq!(judged(Kind::Chain, ends(&[90, -1])), ["certificate_dates"]);
    assert_eq!(judged(Kind::Trusted, ends(&[900, -1])), ["certificate_dates"]);
    let system: Vec<i64> = (0..100).map(|n| n * 10 - 100).collect();
    assert_eq!(judged(Kind::Trusted, ends(&system)), [""; 0]);
    assert_eq!(judged(Kind::Trusted, ends(&[-1; 20])), ["certificate_dates"]);
    assert_eq!(judged(Kind::Revoked, ends(&[-1])), ["certificate_revocations"]);
    assert_eq!(judged(Kind::Chain, Err("no such file".to_owned())), ["certificate"]);
    assert_eq!(bad(&certificates::diagnose(None, now)), ["certificate"]);
    let mut found = super::finding::Findings::about("upstream");
    certificates::shown(&mut found, &ends(&[3]).unwrap(), now);
    assert_eq!(bad(&found.into_inner()), ["certificate_dates"]);
}

#[test]
fn certificates_and_revocation_lists_are_read_whole() {
    use rcgen::{
        CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
        SerialNumber,
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_after = rcgen::date_time_ymd(2031, 5, 6);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2021, 1, 1),
        next_update: rcgen::date_time_ymd(2021, 2, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).unwrap().pem().unwrap();
    let dir = crate::permissions::private_tempdir();
    let file = |setting: &str, kind, content: Option<&str>, is_optional| {
        let path = dir.path().join(setting);
        content.into_iter().for_each(|text| std::fs::write(&path, text).unwrap());
        certificates::File { setting: setting.to_owned(), kind, path, is_optional }
    };
    let two = issuer.pem() + &issuer.pem();
    let papers = certificates::read(vec![
        file("chain", Kind::Chain, Some(&two), false),
        file("list", Kind::Revoked, Some(&list), false),
        file("may be there", Kind::Chain, None, true),
        file("has to be", Kind::Trusted, None, false),
        file("noise", Kind::Trusted, Some("noise"), false),
    ]);
    let of = |n: usize| papers[n].dates.clone();
    let may_2031 = 1_935_792_000;
    assert_eq!(of(0).unwrap().iter().map(|it| it.to).collect::<Vec<_>>(), [may_2031; 2]);
    assert_eq!(of(1).unwrap().iter().map(|it| it.to).collect::<Vec<_>>(), [1_612_137_600]);
    assert!(papers.len() == 4 && of(2).is_err() && of(3).is_err(), "{papers:?}");
    let found = bad(&certificates::diagnose(Some(&papers[1..2]), certificates::now()));
    assert_eq!(found, ["certificate_revocations"]);
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
    status.disk.full_in_seconds = None;
    // For weeks the disk was quick.
    let syncs = &mut status.counts.syncs;
    (syncs.counts, syncs.total_seconds) = (vec![50_000_000], 50_000.0);
    syncs.late_seconds = Some(0.001);
    assert_eq!(bad_of(&status), [""; 0]);
    status.counts.syncs.late_seconds = Some(0.2);
    assert_eq!(bad_of(&status), ["relay_slow_sync"]);
    status.counts.syncs.late_seconds = None;
    let silent = relay::Seen::Silent("nobody listens".to_owned());
    assert_eq!(bad(&relay::diagnose(&silent, None)), ["relay_not_running"]);
    let refusing = relay::Seen::Refusing("no such role".to_owned());
    assert_eq!(bad(&relay::diagnose(&refusing, None)), ["relay_refuses"]);
    assert_eq!(bad(&relay::diagnose(&relay::Seen::New, None)), [""; 0]);
}

/// So many seconds before.
fn before(at: Moment, seconds: u64) -> Moment {
    Moment::from_micros(at.as_micros() - seconds * 1_000_000).unwrap()
}

/// A relay where all is well, with one standby.
fn relay_with_a_standby() -> Status {
    let scene = crate::status::tests::Scene::new();
    let mut status = scene.now();
    status.upstream.state = "streaming".to_owned();
    status.settings.push(Setting::new("wal-sender-timeout", "1min"));
    let here = |lag_seconds| Some(Distance { lsn: Lsn::new(1 << 24), lag_bytes: 0, lag_seconds });
    status.consumers.push(ConsumerStatus {
        pid: 7,
        user: "standby".to_owned(),
        application_name: "s1".to_owned(),
        client_addr: Some("10.0.0.1".to_owned()),
        connected_at: before(status.at, 3600),
        state: "streaming".to_owned(),
        slot: None,
        sent: here(0.0),
        write: here(0.0),
        flush: here(0.0),
        replay: here(0.0),
        sent_bytes: 1 << 24,
        reply_at: Some(status.at),
    });
    status
}

fn found_in(status: &Status, newest: u32) -> Vec<&'static str> {
    bad(&relay::diagnose(&relay::Seen::Running(Box::new(status.clone())), Some(newest)))
}

/// What is found in such a relay with this change.
fn relay_where(change: impl FnOnce(&mut Status)) -> Vec<&'static str> {
    let mut status = relay_with_a_standby();
    change(&mut status);
    found_in(&status, 1)
}

#[test]
fn what_a_relay_says_of_itself_is_judged() {
    assert_eq!(relay_where(|_| {}), [""; 0]);
    assert_eq!(relay_where(|it| it.relay.failure = Some("could not sync".to_owned())), ["relay_failed"]);
    let mut stuck = relay_with_a_standby();
    stuck.upstream.state = "waiting".to_owned();
    assert_eq!(found_in(&stuck, 2), ["relay_not_receiving", "relay_old_timeline"]);
    let fence = |at: Moment| FenceStatus {
        state: "in force".to_owned(),
        epoch: 3,
        timeline: 1,
        lsn: Some(Lsn::new(1 << 24)),
        reason: "failover".to_owned(),
        since: at,
        role: "admin".to_owned(),
        address: "[local]".to_owned(),
        durable: true,
    };
    assert_eq!(relay_where(|it| it.fence = Some(fence(it.at))), ["relay_fenced"]);
    assert_eq!(relay_where(|it| it.settings[0].pending_restart = true), ["relay_pending_restart"]);
    assert_eq!(relay_where(|it| it.disk.error = Some("no answer in 30 s".to_owned())), ["disk_silent"]);
}

#[test]
fn who_is_behind_is_told_by_the_first_of_his_lags() {
    let of = |change: fn(&mut ConsumerStatus, Moment)| {
        relay_where(|it| {
            let at = it.at;
            change(&mut it.consumers[0], at);
        })
    };
    let behind = |lag_bytes, lag_seconds| Some(Distance { lsn: Lsn::new(1 << 20), lag_bytes, lag_seconds });
    // At half of wal-sender-timeout it is asked, at the end its connection is ended.
    assert_eq!(of(|it, at| it.reply_at = Some(before(at, 31))), [""; 0]);
    assert_eq!(of(|it, at| it.reply_at = Some(before(at, 40))), ["consumer_silent"]);
    let patient = relay_where(|it| {
        it.settings.last_mut().unwrap().value = "0".to_owned();
        it.consumers[0].reply_at = Some(before(it.at, 40));
    });
    assert_eq!(patient, [""; 0]);
    assert_eq!(relay_where(|it| it.consumers[0].sent = behind(1 << 30, 45.0)), ["consumer_slow_line"]);
    assert_eq!(relay_where(|it| it.consumers[0].flush = behind(1 << 28, 45.0)), ["consumer_slow_disk"]);
    assert_eq!(relay_where(|it| it.consumers[0].replay = behind(1 << 28, 45.0)), ["consumer_slow_replay"]);
    // A receiver that syncs whole segments.
    let receiver = |unflushed| {
        relay_where(|it| {
            it.consumers[0].replay = None;
            it.consumers[0].flush = behind(unflushed, 4000.0);
        })
    };
    assert_eq!(receiver(15 << 20), [""; 0]);
    assert_eq!(receiver(100 << 20), ["consumer_slow_disk"]);
    assert_eq!(relay_where(|it| it.consumers.push(it.consumers[0].clone())), ["consumer_name_twice"]);
}

fn slot() -> SlotStatus {
    SlotStatus {
        name: "s1".to_owned(),
        temporary: false,
        active_pid: Some(7),
        restart: Some(Distance { lsn: Lsn::new(1 << 24), lag_bytes: 0, lag_seconds: 0.0 }),
        held_bytes: 0,
        wal_status: Some("reserved".to_owned()),
        safe_wal_size: None,
        inactive_since: None,
        lost_because: None,
        begun_lsn: None,
        awaited: false,
    }
}

/// Its relay has run for a day.
fn slot_where(change: impl FnOnce(&mut SlotStatus, Moment)) -> Vec<&'static str> {
    relay_where(|it| {
        it.relay.uptime_seconds = 86_400.0;
        let mut slot = slot();
        change(&mut slot, it.at);
        it.slots.push(slot);
    })
}

#[test]
fn slots_that_nobody_uses_or_can_use_are_named() {
    assert_eq!(slot_where(|_, _| {}), [""; 0]);
    assert_eq!(slot_where(|it, _| it.wal_status = Some("lost".to_owned())), ["slot_lost"]);
    let unused = |it: &mut SlotStatus, since| (it.active_pid, it.inactive_since) = (None, Some(since));
    assert_eq!(slot_where(|it, at| unused(it, before(at, 120))), [""; 0]);
    assert_eq!(slot_where(|it, at| unused(it, before(at, 700))), ["slot_unused"]);
    assert_eq!(slot_where(|it, _| (it.active_pid, it.restart) = (None, None)), ["slot_not_initialised"]);
}

#[test]
fn a_receiver_that_has_not_come_back_since_the_relay_was_started_is_named_soon() {
    let unused = |it: &mut SlotStatus, since| (it.active_pid, it.inactive_since) = (None, Some(since));
    let awaited = |awaited, seconds| {
        slot_where(|it, at| {
            unused(it, before(at, seconds));
            it.awaited = awaited;
        })
    };
    assert_eq!(awaited(true, 10), [""; 0], "who asks again every few seconds");
    assert_eq!(awaited(true, 45), ["slot_unused"]);
    assert_eq!(awaited(false, 45), [""; 0], "it was there after the start, or is new");
}

#[test]
fn a_receiver_that_has_not_finished_a_segment_has_archived_nothing() {
    let where_ = |begun: u64, restart: u64, replays: bool| {
        relay_where(|it| {
            let mut slot = slot();
            slot.begun_lsn = Some(Lsn::new(begun));
            slot.restart = Some(Distance { lsn: Lsn::new(restart), lag_bytes: 0, lag_seconds: 0.0 });
            it.slots.push(slot);
            it.consumers[0].slot = Some("s1".to_owned());
            if !replays {
                it.consumers[0].replay = None;
            }
        })
    };
    assert_eq!(where_(1 << 24, 1 << 24, false), ["slot_no_segment"]);
    assert_eq!(where_(1 << 24, 2 << 24, false), [""; 0]);
    assert_eq!(where_(1 << 24, 1 << 24, true), [""; 0], "a standby that has all");
}

/// A target that has all.
fn target() -> ArchiveStatus {
    ArchiveStatus {
        name: "main".to_owned(),
        place: "file:///archive".to_owned(),
        archived_files: 40,
        last_archived_file: Some("000000010000000000000028".to_owned()),
        last_archived_at: None,
        failures: 0,
        last_failed_file: None,
        last_failed_at: None,
        last_error: None,
        failing_since: None,
        stalled_since: None,
        paused_since: None,
        conflicts: 0,
        open_conflicts: 0,
        open_gaps: 0,
        quota_bytes: None,
        pending_files: 0,
        pending_bytes: Some(100),
        at_risk_bytes: Some(100),
        at_risk_seconds: Some(1.0),
    }
}

#[test]
fn a_target_that_says_why_it_takes_nothing_is_believed() {
    let with = |change: fn(&mut ArchiveStatus, Moment)| {
        relay_where(|it| {
            let mut target = target();
            change(&mut target, it.at);
            it.archive.push(target);
        })
    };
    assert_eq!(with(|_, _| {}), [""; 0]);
    assert_eq!(with(|it, at| it.paused_since = Some(at)), ["archive_paused"]);
    assert_eq!(with(|it, at| it.failing_since = Some(at)), ["archive_failing"]);
    assert_eq!(with(|it, _| it.conflicts = 2), ["archive_conflicts"]);
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
        seg_size: SegSize::new(16 << 20).ok(),
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
    assert_eq!(
        consumer(|it| drop(it.settings.insert("wal_segment_size".to_owned(), "1048576".to_owned()))),
        ["consumer_segment_size"]
    );
    assert_eq!(
        bad(&consumer::diagnose("s1", &Err(Trouble::default()), &Expected::default())),
        ["consumer_unreachable"]
    );
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

#[test]
fn a_standby_that_the_relays_rules_keep_out_is_told_the_line_that_is_missing() {
    let coming = || hba::Coming {
        user: "standby".to_owned(),
        ip: Some("10.0.0.5".parse().unwrap()),
        mode: SslMode::Prefer,
        facts: Known {
            host_name: Some(None),
            member_of: Some(vec!["standby".to_owned(), "standbys".to_owned()]),
        },
        streams: false,
    };
    let judged = |lines: &str, tls: bool, coming: &hba::Coming| {
        let rules = Hba::parse(Path::new("/etc/hba.conf"), lines).unwrap();
        let found = hba::judge("s1", &rules, Some("/etc/hba.conf"), tls, coming).remove(0);
        (found.severity, found.message.clone(), found.remedy.first().cloned().unwrap_or_default())
    };
    let check = |lines: &str, tls: bool, coming: &hba::Coming, message: &str, first: &str| {
        let (severity, text, remedy) = judged(lines, tls, coming);
        assert!(severity == Severity::Error && text.contains(message), "{lines}: {text}");
        assert_eq!(remedy, first, "{lines}");
    };
    let add = "add to \"/etc/hba.conf\": host  replication  standby  10.0.0.5/32  scram-sha-256";
    // `all` is no database for replication.
    check(
        "host all all all md5",
        false,
        &coming(),
        "no line of \"/etc/hba.conf\" lets role \"standby\" from 10.0.0.5 in",
        add,
    );
    check("host replication other all md5", false, &coming(), "no line", add);
    check("host replication all 10.0.1.0/24 md5", false, &coming(), "no line", add);
    check("hostssl replication all all md5", false, &coming(), "no line", add);
    check("local replication all peer", false, &coming(), "no line", add);
    let before = add.replace("add to", "put before line 2 of");
    let rejecting =
        "local all all peer\nhost replication +standbys 10.0.0.0/8 reject\nhost replication all all md5";
    check(rejecting, false, &coming(), "/etc/hba.conf:2 rejects role", &before);
    // With TLS it comes twice, and once is enough.
    let mixed = "hostssl replication all all reject\nhostnossl replication all all md5";
    for (lines, tls) in [("hostssl replication all all md5", true), (mixed, true), (mixed, false)] {
        let (severity, text, _) = judged(lines, tls, &coming());
        assert_eq!((severity, text.contains("lets role \"standby\"")), (Severity::Ok, true), "{text}");
    }
    let encrypted = hba::Coming { mode: SslMode::VerifyFull, ..coming() };
    let ssl = add.replace("host  ", "hostssl  ");
    check("hostnossl replication all all md5", true, &encrypted, "from 10.0.0.5 with TLS in", &ssl);
    let (severity, text, _) = judged("host replication all all md5", false, &encrypted);
    assert!(severity == Severity::Error && text.contains("sslmode is verify-full"), "{text}");
    let rules = Hba::parse(Path::new("/etc/hba.conf"), "host replication all all md5").unwrap();
    let codes =
        |tls| hba::judge("s1", &rules, None, tls, &encrypted).iter().map(|it| it.code).collect::<Vec<_>>();
    assert_eq!((codes(false), codes(true)), (vec!["consumer_tls"], vec!["consumer_hba"]));
    let local = hba::Coming { ip: None, user: "my standby".to_owned(), ..coming() };
    let line = "add to \"/etc/hba.conf\": local  replication  \"my standby\"  scram-sha-256";
    check("host replication all all md5", true, &local, "over its Unix socket", line);
    // One that streams may come from elsewhere, and a name that nobody knows decides nothing.
    let streaming = hba::Coming { streams: true, ..coming() };
    assert_eq!(judged("host all all all md5", false, &streaming).0, Severity::Warning);
    let nameless = hba::Coming { facts: Known::default(), ..coming() };
    assert_eq!(judged("host replication all .example.org md5", false, &nameless).0, Severity::Ok);
    let builtin = hba::judge("s1", &Hba::builtin(), None, false, &coming()).remove(0);
    assert!(
        builtin.message.contains("without --hba-file") && builtin.remedy[0].ends_with("scram-sha-256"),
        "{builtin:?}"
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
    let failed =
        |seconds| Outcome::Failed { code: 1, said: String::new(), took: Duration::from_secs(seconds) };
    let told = |nowhere, away| {
        let tried = Tried { newest: None, nowhere, away };
        let mut found = super::finding::Findings::about("c");
        tried.tell(&mut found, "sleep inf");
        bad(&found.into_inner())
    };
    assert_eq!(told(Outcome::Stalled, None), ["restore_stalls"]);
    assert_eq!(told(failed(0), Some(failed(0))), [""; 0]);
    assert_eq!(told(failed(8), None), ["restore_slow"]);
    assert_eq!(told(Outcome::NotRun("no shell".to_owned()), None), ["restore_command"]);
    assert_eq!(told(failed(0), Some(failed(8))), ["restore_away"]);
    assert_eq!(told(failed(0), Some(Outcome::Stalled)), ["restore_away"]);
    assert_eq!(told(failed(0), Some(Outcome::Nothing)), ["restore_away"]);
}

#[tokio::test]
async fn a_restore_command_is_tried_with_its_archive_away() {
    let elsewhere = |command: &str| restore::elsewhere(command, "/away");
    assert_eq!(elsewhere("cp /mnt/wal/%f %p").as_deref(), Some("cp /away/%f %p"));
    assert_eq!(elsewhere("cp \"/mnt/w\"/%f \"%p\"").as_deref(), None, "only part of it is seen");
    assert_eq!(
        elsewhere("test -e '/mnt/wal/%f' && gunzip < /mnt/wal/%f.gz > %p").as_deref(),
        Some("test -e '/away/%f' && gunzip < /away/%f.gz > %p")
    );
    assert_eq!(
        elsewhere("\"/usr/bin/walrelay\" restore --from s3://b/wal --from=file:///mnt/wal %f %p").as_deref(),
        Some("\"/usr/bin/walrelay\" restore --from file:///away --from=file:///away %f %p")
    );
    assert_eq!(elsewhere("pgbackrest --stanza=a archive-get %f \"%p\""), None);
    let away = async |command: &str| restore::attempt(command, None).await.away;
    let dir = crate::permissions::private_tempdir();
    let with = |command: &str| command.replace("DIR", &dir.path().display().to_string());
    assert!(matches!(away(&with("cp DIR/%f %p")).await, Some(Outcome::Failed { code: 1, .. })));
    // It ends a standby only then.
    let command = with("ls $(dirname DIR/%f) || exit 200; exit 1");
    assert!(matches!(restore::attempt(&command, None).await.nowhere, Outcome::Failed { code: 1, .. }));
    assert!(matches!(away(&command).await, Some(Outcome::Fatal { .. })));
}

#[test]
fn this_machine_is_measured() {
    let dir = crate::permissions::private_tempdir();
    let data_dir = dir.path().join("not/there/yet");
    let facts = host::look(&data_dir);
    assert!(facts.space.as_ref().is_ok_and(|(free, all)| free <= all), "{facts:?}");
    assert!(facts.sync.as_ref().is_ok_and(|(usual, longest)| usual <= longest), "{facts:?}");
    assert!(!bad(&host::diagnose(&data_dir, Some(&facts))).contains(&"disk_silent"), "{facts:?}");
    assert_eq!(bad(&host::diagnose(&data_dir, None)), ["disk_silent"]);
    let with = |space, sync| bad(&host::diagnose(&data_dir, Some(&host::Facts { space, sync })));
    let millis = |usual, longest| Ok((Duration::from_millis(usual), Duration::from_millis(longest)));
    assert_eq!(with(Ok((1 << 40, 1 << 41)), millis(1, 900)), [""; 0]);
    assert_eq!(with(Ok((1 << 20, 1 << 41)), millis(1, 2)), ["disk_space"]);
    assert_eq!(with(Err("permission denied".to_owned()), millis(1, 2)), ["disk_space"]);
    assert_eq!(with(Ok((1 << 40, 1 << 41)), millis(40, 90)), ["disk_sync"]);
}

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/");

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}{path}")).unwrap()
}

/// Those that the manual lists.
fn listed() -> Vec<String> {
    let manual = read("docs/MONITORING.md");
    let section =
        manual.split("## walrelay doctor").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let code = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
    section.lines().filter_map(code).collect()
}

/// Each code that is given away for something that is not well stands in the manual, and none that is not.
#[test]
fn the_manual_lists_the_codes() {
    let mut given = std::collections::BTreeSet::new();
    // As the second argument of `found.error` and its kin, and where those are chosen.
    let code = regex::Regex::new(r#""([a-z_]+)""#).unwrap();
    let families =
        "archive_ certificate clock_ configuration consumer_ disk_ http_ relay_ restore_ slot_ upstream_";
    for part in std::fs::read_dir(format!("{ROOT}src/doctor")).unwrap() {
        let name = part.unwrap().file_name().into_string().unwrap();
        if name == "tests.rs" {
            continue;
        }
        let source = read(&format!("src/doctor/{name}"));
        for literal in code.captures_iter(&source).map(|found| found[1].to_owned()) {
            if families.split(' ').any(|family| literal.starts_with(family)) {
                given.insert(literal);
            }
        }
    }
    // What is well; settings and columns of the server's.
    let others = [
        "relay_new",
        "relay_receiving",
        "upstream_login",
        "upstream_slot",
        "consumer_streaming",
        "archive_target",
        "archive_command",
        "archive_library",
        "archive_mode",
    ];
    let listed = listed();
    for code in given.iter().filter(|code| !others.contains(&code.as_str())) {
        assert!(listed.contains(code), "{code} is not in docs/MONITORING.md");
    }
    for code in &listed {
        assert!(given.contains(code), "{code} is in docs/MONITORING.md, and nobody gives it away");
    }
}

/// Each of them is expected by a test, of a judging function or with real servers.
#[test]
fn each_code_of_the_manual_is_expected_by_a_test() {
    let tests = read("src/doctor/tests.rs") + &read("tests/pg/doctor.rs");
    let untested: Vec<_> =
        listed().into_iter().filter(|code| !tests.contains(&format!("\"{code}\""))).collect();
    assert_eq!(untested, [""; 0]);
}
