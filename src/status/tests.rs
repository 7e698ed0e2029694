//! The value, of stores with little in them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalIdentity};
use walrelay_testkit::wait_until;

use super::{DiskGauge, Setting, Sources, SourcesSetup, Status};
use crate::archive::{Archiver, Recall};
use crate::consumers::{ConsumerGuard, ConsumerIdentity};
use crate::events::Events;
use crate::store::{
    Background, Identity, SlotPersistence, Store, StoreConfig, UpstreamParameters, WalWrite, Writer,
};
use crate::upstream::Board;

const SEG: u64 = 1 << 20;
const START: Lsn = Lsn::new(3 * SEG);

/// A relay without an upstream, with some WAL.
pub(crate) struct Scene {
    pub(crate) sources: Arc<Sources>,
    store: Arc<Store>,
    writer: Writer,
    wal: WalGenerator,
    end: Lsn,
    _background: Background,
    _archiver: Archiver,
    _dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        let dir = crate::permissions::private_tempdir();
        let config = StoreConfig {
            data_dir: dir.path().join("data"),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 0,
            max_slot_wal_keep_size: None,
            max_replication_slots: 2000,
        };
        let (store, mut writer, background) = Store::open(config).unwrap();
        let identity = Identity { system_id: SystemId(77), seg_size: SegSize::new(SEG).unwrap() };
        let id = WalIdentity { system_id: identity.system_id, seg_size: identity.seg_size };
        store.attach(identity, UpstreamParameters::default()).unwrap();
        writer.begin(identity, TimelineHistory::first(), START);
        let wal = WalGenerator::new(id, TimelineId::FIRST, START, 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (archiver, recall) = runtime.block_on(async {
            let starting = store.hold_for_start();
            let archiver = Archiver::start(&store, &[], Duration::ZERO.into(), starting).unwrap();
            (archiver, Recall::start(store.clone(), Vec::new(), 0).unwrap())
        });
        let setting = Setting::new("slot", "walrelay");
        let sources = Sources::new(SourcesSetup {
            store: store.clone(),
            upstream: Arc::<Board>::default(),
            conninfo: "host=primary".to_owned(),
            slot: "walrelay".to_owned(),
            archive: archiver.control(),
            recall,
            sessions: Arc::default(),
            events: Events::default(),
            disk: Arc::new(DiskGauge::new(store.clone())),
            settings: vec![setting],
        });
        let mut scene = Scene {
            sources: Arc::new(sources),
            store,
            writer,
            wal,
            end: START,
            _background: background,
            _archiver: archiver,
            _dir: dir,
            _runtime: runtime,
        };
        scene.more_wal(50_000);
        scene
    }

    /// More WAL comes, and is flushed when this returns; its end.
    pub(crate) fn more_wal(&mut self, bytes: usize) -> Lsn {
        self.wal.fill(bytes);
        let wal = self.wal.take();
        self.writer.append(self.end, &wal).unwrap();
        self.writer.commit();
        self.end = self.end.advance(wal.len() as u64);
        let store = self.store.clone();
        wait_until("flushed", || store.tip().is_some_and(|tip| tip.flush_lsn == tip.write_lsn));
        self.store.tip().unwrap().write_lsn
    }

    pub(crate) fn consumer(&self, pid: u32, name: &str) -> ConsumerGuard {
        self.store.consumers().register(ConsumerIdentity {
            pid,
            user: "standby".to_owned(),
            application_name: name.to_owned(),
            client_addr: Some("10.0.0.1:5000".parse().unwrap()),
            backend_start: crate::moment::Past::now(),
        })
    }

    pub(crate) fn now(&self) -> Status {
        Status::now(&self.sources)
    }

    pub(crate) fn report(&self, consumer: &ConsumerGuard, lsn: Lsn) {
        consumer.set_reply(lsn, lsn, lsn, self.store.lag_clock());
    }
}

#[test]
fn lag_is_nothing_for_who_has_everything_and_grows_for_who_does_not_move() {
    let mut scene = Scene::new();
    let consumer = scene.consumer(7, "s1");
    assert_eq!(scene.now().consumers[0].safe(), None, "it has not begun");
    let half = scene.more_wal(10_000);
    consumer.start_at(half);
    scene.report(&consumer, half);
    let idle = scene.now().consumers[0].safe().unwrap();
    assert_eq!((idle.lsn, idle.lag_bytes, idle.lag_seconds), (half, 0, 0.0));
    let end = scene.more_wal(10_000);
    let lag = || scene.now().consumers[0].safe().unwrap();
    let first = lag();
    assert_eq!(first.lag_bytes, end.since(half));
    wait_until("its lag grows", || lag().lag_seconds > first.lag_seconds + 0.05);
    scene.report(&consumer, end);
    assert_eq!(lag().lag_seconds, 0.0);
}

#[test]
fn a_slot_whose_consumer_is_gone_is_ever_farther_behind() {
    let mut scene = Scene::new();
    let name = "gone".parse().unwrap();
    scene.store.create_reserving_slot(&name, SlotPersistence::Persistent).unwrap();
    let end = scene.more_wal(3 << 20);
    let slot = scene.now().slots.remove(0);
    let restart = slot.restart.unwrap();
    assert_eq!((restart.lag_bytes, slot.held_bytes), (end.since(restart.lsn), restart.lag_bytes));
    assert!(slot.inactive_since.is_some() && restart.lag_seconds > 0.0);
    let holders = scene.now().disk.holders;
    let held = holders.iter().find(|it| it.kind == "slot").map(|it| (it.name.as_str(), it.held_bytes));
    assert_eq!(held, Some(("gone", restart.lag_bytes)));
    assert!(scene.now().troubles()[0].starts_with("no WAL comes from the upstream"));
}

#[test]
fn the_value_comes_back_from_json() {
    let scene = Scene::new();
    let consumer = scene.consumer(7, "s1");
    consumer.start_at(START);
    scene._runtime.block_on(scene.sources.disk().look());
    let status = scene.now();
    assert!(status.disk.looked_at.is_some() && status.disk.size_bytes > 0, "{:?}", status.disk);
    assert_eq!(status.disk.segments.len(), 1);
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status, "{text}");
}

#[test]
fn whoever_looks_waits_for_no_disk_and_a_thousand_consumers_are_cheap() {
    let scene = Scene::new();
    let guards: Vec<_> = (1..=1000).map(|pid| scene.consumer(pid, &format!("standby{pid}"))).collect();
    guards.iter().for_each(|guard| guard.start_at(START));
    let begun = Instant::now();
    let text = crate::metrics::exposition(&scene.now());
    // Some milliseconds; the limit is for machines that do something else.
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let series = text.lines().filter(|line| line.starts_with("walrelay_consumer_lag_bytes{")).count();
    assert_eq!(series, crate::metrics::MOST_NAMED + 1);
    let other = text.lines().find(|line| line.starts_with("walrelay_consumers{application_name=\"other\"}"));
    assert_eq!(other, Some("walrelay_consumers{application_name=\"other\"} 900"));
}

/// Of a relay that streams and has nothing wrong.
pub(crate) fn well() -> Status {
    let mut status = Scene::new().now();
    "streaming".clone_into(&mut status.upstream.state);
    (status.upstream.lag_seconds, status.disk.size_bytes, status.disk.free_bytes) = (0.0, 100, 50);
    assert_eq!(status.troubles(), Vec::<String>::new());
    status
}

/// The kinds that are found when something is done to it, and what is said.
fn found(spoil: impl FnOnce(&mut Status)) -> Vec<(&'static str, String)> {
    let mut status = well();
    spoil(&mut status);
    let found = status.find_troubles().into_iter();
    found.map(|trouble| (trouble.kind.as_str(), trouble.message)).collect()
}

pub(crate) fn ago(status: &Status, seconds: u64) -> Option<crate::moment::Moment> {
    crate::moment::Moment::from_micros(status.at.as_micros() - seconds * 1_000_000)
}

#[test]
fn a_sync_that_does_not_return_is_told_behind_some_seconds() {
    let unflushed = |seconds: f64, bytes: u64| {
        found(|status| {
            (status.upstream.unflushed_seconds, status.upstream.unflushed_bytes) = (seconds, bytes)
        })
    };
    assert_eq!(unflushed(4.9, 100), []);
    let told = unflushed(12.0, 100);
    assert!(told[0].0 == "not_flushing" && told[0].1.contains("the oldest for 12 s"), "{told:?}");
    assert_eq!(found(|status| status.disk.sync_seconds = Some(0.09)), []);
    let told = found(|status| status.disk.sync_seconds = Some(0.2));
    assert!(told[0].0 == "slow_syncs" && told[0].1.contains("takes 200 ms"), "{told:?}");
}

#[test]
fn a_disk_is_told_before_it_is_full() {
    assert_eq!(found(|status| status.disk.full_in_seconds = Some(5.0 * 3600.0)), []);
    let told = found(|status| status.disk.full_in_seconds = Some(3.0 * 3600.0));
    assert!(told[0].0 == "disk_full_soon" && told[0].1.contains("180 min"), "{told:?}");
    assert_eq!(found(|status| status.disk.free_bytes = 10), []);
    let told = found(|status| status.disk.free_bytes = 9);
    assert!(told[0].0 == "disk_nearly_full" && told[0].1.contains("9.0 %"), "{told:?}");
    let told = found(|status| {
        (status.disk.missing_segments, status.disk.first_missing) = (2, Some("00000001".to_owned()));
    });
    assert!(told[0].0 == "wal_missing" && told[0].1.contains("2 WAL segments"), "{told:?}");
}

#[test]
fn slots_are_told_when_nobody_uses_them_and_before_they_are_lost() {
    let slot = |held: u64, safe: Option<i64>, unused: u64| {
        found(|status| {
            let inactive_since = ago(status, unused).filter(|_| unused > 0);
            status.slots.push(super::SlotStatus {
                name: "s".to_owned(),
                temporary: false,
                active_pid: None,
                restart: None,
                held_bytes: held,
                wal_status: Some("extended".to_owned()),
                safe_wal_size: safe,
                inactive_since,
                lost_because: None,
                begun_lsn: None,
                awaited: false,
            });
        })
    };
    assert_eq!(slot(80, Some(21), 3500), []);
    let told = slot(85, Some(15), 0);
    assert!(told[0].0 == "slot_near_limit" && told[0].1.contains("another 15 bytes"), "{told:?}");
    assert_eq!(slot(0, None, 9000), [], "it keeps nothing");
    let told = slot(80, None, 7200);
    assert!(told[0].0 == "slot_unused" && told[0].1.contains("for 2 h"), "{told:?}");
}

#[test]
fn who_syncs_whole_segments_is_behind_in_what_it_has_written_only() {
    let at = |lag_seconds: f64, lag_bytes: u64| Some(super::Distance { lsn: START, lag_bytes, lag_seconds });
    let consumer = |write, flush, replay| {
        found(|status| {
            status.consumers.push(super::ConsumerStatus {
                pid: 1,
                user: "u".to_owned(),
                application_name: "c".to_owned(),
                client_addr: None,
                connected_at: status.at,
                state: "streaming".to_owned(),
                slot: None,
                sent: at(0.0, 0),
                write,
                flush,
                replay,
                sent_bytes: 0,
                reply_at: None,
            });
        })
    };
    assert_eq!(consumer(at(0.0, 0), at(9000.0, 1 << 20), None), [], "its segment is not whole yet");
    for behind in [
        consumer(at(301.0, 1 << 20), at(9000.0, 1 << 20), None),
        consumer(at(0.0, 0), at(9000.0, 64 << 20), None),
        consumer(at(0.0, 0), at(301.0, 100), at(301.0, 100)),
    ] {
        assert!(behind.len() == 1 && behind[0].0 == "consumer_behind", "{behind:?}");
    }
    assert_eq!(consumer(at(0.0, 0), at(0.0, 0), at(9000.0, 1 << 30)), [], "one that replays late on purpose");
}

#[test]
fn who_is_refused_again_and_again_is_told_until_it_streams() {
    use crate::counts::CommandRefused;

    let scene = Scene::new();
    let refuse = |address: &str| {
        let (asker, now) = (("s1", Some(address.parse().unwrap())), Instant::now());
        let commands = &scene.sources.sessions().commands;
        commands.note(asker, CommandRefused::WalRemoved, "segment 3 has already been removed", now);
    };
    let told = || {
        let troubles = scene.now().find_troubles().into_iter();
        let refused = troubles.filter(|it| it.kind == super::TroubleKind::CommandsRefused);
        refused.map(|it| it.message).collect::<Vec<_>>()
    };
    (0..2).for_each(|_| refuse("10.0.0.1"));
    (0..2).for_each(|_| refuse("10.0.0.2"));
    assert_eq!(told(), Vec::<String>::new(), "it may have been a moment");
    refuse("10.0.0.1");
    let [one] = &told()[..] else { panic!("{:?}", told()) };
    assert!(one.contains("\"s1\" from 10.0.0.1 is refused") && one.contains("3 times since"), "{one}");
    assert!(one.contains("segment 3 has already been removed; WAL that it needs is gone"), "{one}");
    let counts = scene.now().counts.commands_refused;
    assert_eq!((counts["wal_removed"], counts["slot_lost"]), (5, 0));
    // As `consumer` has it, from 10.0.0.1.
    let consumer = scene.consumer(7, "s1");
    assert_eq!(told().len(), 1);
    consumer.start_at(START);
    consumer.set_state(crate::consumers::ConsumerState::Streaming);
    assert_eq!(told(), Vec::<String>::new());
}

#[test]
fn many_logins_that_fail_and_wal_that_does_not_come_back_are_told() {
    let logins =
        |cause: &str, count| found(|status| _ = status.counts.refused_lately.insert(cause.to_owned(), count));
    assert_eq!(logins("rules", 10), []);
    assert_eq!(logins("not_now", 1000), [], "the relay's own, which is told elsewhere");
    let told = logins("rules", 11);
    assert!(told[0].0 == "logins_failing" && told[0].1.contains("no line in the hba file"), "{told:?}");
    assert_eq!(found(|status| status.recalls.failures_lately = 3), []);
    let told = found(|status| {
        (status.recalls.failures_lately, status.recalls.last_error) = (4, Some("it is down".to_owned()));
    });
    assert!(
        told[0].0 == "recall_failing" && told[0].1.contains("4 times") && told[0].1.contains("it is down")
    );
    let scene = Scene::new();
    (0..11).for_each(|_| scene.sources.sessions().refused.note(crate::counts::Refused::TooMany));
    let found = scene.now().find_troubles();
    assert!(found.iter().any(|it| it.kind == super::TroubleKind::LoginsFailing && it.about == "too_many"));
}

#[test]
fn who_keeps_back_what_is_reported_is_told() {
    let ack = |spoil: fn(&mut super::AckStatus)| found(|status| spoil(&mut status.ack[1]));
    assert_eq!(ack(|flush| flush.waiting_seconds = Some(29.0)), []);
    let told = ack(|flush| {
        (flush.waiting_seconds, flush.waits_for, flush.is_awaited) = (Some(45.0), vec!["b".to_owned()], true);
    });
    assert!(
        told[0].0 == "ack_held_back" && told[0].1.contains("has waited for b for 45 s, and commits"),
        "{told:?}"
    );
    let told =
        ack(|flush| (flush.degraded_seconds, flush.degraded_to) = (Some(3.0), Some("local".to_owned())));
    assert!(told[0].0 == "ack_degraded" && told[0].1.contains("flush = local holds instead"), "{told:?}");
    let told = found(|status| status.ack[0].budget_left_seconds = Some(0.0));
    assert_eq!(told[0].0, "ack_budget_spent");
}

#[test]
fn what_does_not_end_by_itself_is_told_until_somebody_says_so() {
    let failover = |is_open| {
        found(|status| {
            status.failovers.push(super::FailoverStatus {
                seen: status.at,
                from_timeline: 1,
                to_timeline: 2,
                switch_lsn: START,
                acknowledged_lsn: START,
                verdict: "left".to_owned(),
                upstream_waited: true,
                commits_left: Some(3),
                is_open,
            });
        })
    };
    assert_eq!(failover(false), []);
    let told = failover(true);
    assert!(told[0].0 == "wal_left_behind" && told[0].1.contains("3 commits"), "{told:?}");
}

#[test]
fn a_certificate_is_told_two_weeks_before_it_ends_and_a_setting_that_waits_for_a_restart() {
    let ends_in = |file: &str, days: i64| {
        found(|status| {
            let micros = status.at.as_micros().saturating_add_signed(days * 86_400 * 1_000_000);
            let ends_at = crate::moment::Moment::from_micros(micros).unwrap();
            let (file, path) = (file.to_owned(), "/etc/it".to_owned());
            status.certificates.push(super::CertificateEnd { file, path, ends_at });
        })
    };
    assert_eq!(ends_in("cert", 15), []);
    let told = ends_in("cert", 3);
    assert!(told[0].0 == "certificate_ends" && told[0].1.contains("ends in 3 days"), "{told:?}");
    assert!(ends_in("cert", -1)[0].1.contains("has ended"));
    let told = ends_in("crl", 3);
    assert!(
        told[0].1.starts_with("the revocation list in --ssl-crl-file (\"/etc/it\") ends in 3"),
        "{told:?}"
    );
    let told = found(|status| status.settings[0].pending_restart = true);
    assert!(told[0].0 == "pending_restart" && told[0].1.contains(": slot ("), "{told:?}");
}

#[test]
fn an_archive_target_is_told_of_in_all_that_may_be_wrong_with_it() {
    let target = |spoil: fn(&mut super::ArchiveStatus, Option<crate::moment::Moment>)| {
        found(|status| {
            let since = ago(status, 60);
            let mut target = super::ArchiveStatus {
                name: "main".to_owned(),
                place: String::new(),
                archived_files: 0,
                last_archived_file: None,
                last_archived_at: None,
                failures: 0,
                last_failed_file: None,
                last_failed_at: None,
                last_error: None,
                failing_since: None,
                stalled_since: None,
                paused_since: None,
                conflicts: 1,
                open_conflicts: 0,
                open_gaps: 0,
                quota_bytes: None,
                pending_files: 0,
                pending_bytes: Some(85),
                at_risk_bytes: None,
                at_risk_seconds: None,
            };
            spoil(&mut target, since);
            status.archive.push(target);
        })
    };
    assert_eq!(target(|_, _| ()), []);
    let told = target(|target, since| (target.failing_since, target.stalled_since) = (since, since));
    assert!(told[0].0 == "archive_failing" && told[0].1.contains("neither taken nor refused"), "{told:?}");
    let kinds = |spoil| target(spoil).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    assert_eq!(kinds(|target, since| target.failing_since = since), ["archive_failing"]);
    assert_eq!(kinds(|target, since| target.paused_since = since), ["archive_paused"]);
    assert_eq!(kinds(|target, _| target.quota_bytes = Some(110)), [""; 0]);
    assert_eq!(kinds(|target, _| target.quota_bytes = Some(100)), ["archive_quota"]);
    assert_eq!(
        kinds(|target, _| target.at_risk_seconds = Some(901.0)),
        [""; 0],
        "a segment is open for long"
    );
    assert_eq!(
        kinds(|target, _| (target.at_risk_seconds, target.pending_files) = (Some(901.0), 2)),
        ["archive_behind"]
    );
    assert_eq!(
        kinds(|target, _| (target.at_risk_seconds, target.at_risk_bytes) = (Some(901.0), Some(1 << 30))),
        ["archive_behind"]
    );
    assert_eq!(kinds(|target, _| target.open_gaps = 1), ["archive_gap"]);
    assert_eq!(kinds(|target, _| target.open_conflicts = 1), ["archive_conflict"]);
}

/// A slot that is well.
pub(crate) fn slot(name: &str) -> super::SlotStatus {
    super::SlotStatus {
        name: name.to_owned(),
        temporary: false,
        active_pid: None,
        restart: None,
        held_bytes: 1 << 30,
        wal_status: Some("extended".to_owned()),
        safe_wal_size: None,
        inactive_since: None,
        lost_because: None,
        begun_lsn: None,
        awaited: false,
    }
}

/// A target that is well.
pub(crate) fn target(name: &str) -> super::ArchiveStatus {
    super::ArchiveStatus {
        name: name.to_owned(),
        place: String::new(),
        archived_files: 0,
        last_archived_file: None,
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
        pending_bytes: Some(0),
        at_risk_bytes: Some(0),
        at_risk_seconds: Some(0.0),
    }
}

/// Everything is wrong that can be at the same time.
pub(crate) fn all_wrong() -> Status {
    let mut status = well();
    let (long_ago, at) = (ago(&status, 7200), status.at);
    let far = Some(super::Distance { lsn: START, lag_bytes: 1 << 30, lag_seconds: 4000.0 });
    status.relay.failure = Some("a sync has failed".to_owned());
    "waiting".clone_into(&mut status.upstream.state);
    (status.upstream.failing_since, status.upstream.lag_seconds) = (long_ago, 7200.0);
    (status.upstream.unflushed_seconds, status.upstream.unflushed_bytes) = (60.0, 100);
    status.fence = Some(super::FenceStatus {
        state: "in force".to_owned(),
        epoch: 1,
        timeline: 1,
        lsn: Some(START),
        reason: "a test".to_owned(),
        since: at,
        role: "admin".to_owned(),
        address: String::new(),
        durable: true,
    });
    status.failovers.push(super::FailoverStatus {
        seen: at,
        from_timeline: 1,
        to_timeline: 2,
        switch_lsn: START,
        acknowledged_lsn: START,
        verdict: "left".to_owned(),
        upstream_waited: true,
        commits_left: Some(3),
        is_open: true,
    });
    let ends_at = crate::moment::Moment::from_micros(864_000_000_000).unwrap();
    let (file, path) = ("crl".to_owned(), "/etc/crl".to_owned());
    status.certificates.push(super::CertificateEnd { file, path, ends_at });
    (status.ack[0].degraded_seconds, status.ack[0].budget_left_seconds) = (Some(60.0), Some(0.0));
    status.ack[1].waiting_seconds = Some(600.0);
    status.disk.looked_at = Some(at);
    (status.disk.size_bytes, status.disk.free_bytes) = (100, 5);
    (status.disk.full_in_seconds, status.disk.error) = (Some(3600.0), Some("it is silent".to_owned()));
    (status.disk.missing_segments, status.disk.first_missing) = (3, Some("00000001".to_owned()));
    status.disk.sync_seconds = Some(1.0);
    status.slots.extend([
        super::SlotStatus { wal_status: Some("lost".to_owned()), ..slot("lost") },
        super::SlotStatus { safe_wal_size: Some(1000), ..slot("near") },
        super::SlotStatus { inactive_since: long_ago, ..slot("unused") },
    ]);
    status.consumers.push(super::ConsumerStatus {
        pid: 1,
        user: "u".to_owned(),
        application_name: "behind".to_owned(),
        client_addr: None,
        connected_at: at,
        state: "catchup".to_owned(),
        slot: None,
        sent: far,
        write: far,
        flush: far,
        replay: far,
        sent_bytes: 0,
        reply_at: None,
    });
    status.refused_commands.push(super::RefusedStatus {
        application_name: "asking".to_owned(),
        client_addr: None,
        cause: "wal_removed".to_owned(),
        message: "it has already been removed".to_owned(),
        times: 7,
        since: at,
        last: at,
    });
    _ = status.counts.refused_lately.insert("rules".to_owned(), 100);
    status.recalls.failures_lately = 100;
    let (quota, late) = (Some(1 << 30), Some(4000.0));
    status.archive.extend([
        super::ArchiveStatus { paused_since: long_ago, ..target("paused") },
        super::ArchiveStatus { failing_since: long_ago, open_gaps: 1, ..target("failing") },
        super::ArchiveStatus { at_risk_seconds: late, pending_files: 9, ..target("behind") },
        super::ArchiveStatus { pending_bytes: quota, quota_bytes: quota, ..target("full") },
        super::ArchiveStatus { open_conflicts: 1, conflicts: 1, ..target("shared") },
    ]);
    status.settings[0].pending_restart = true;
    status
}

/// What excludes something of that.
pub(crate) fn far_behind() -> Status {
    let mut status = well();
    (status.upstream.lag_seconds, status.upstream.unreceived_bytes) = (4000.0, Some(1 << 30));
    status
}

#[test]
fn each_kind_of_trouble_can_be_found() {
    let found = [all_wrong(), far_behind()].map(|status| status.find_troubles());
    let found: std::collections::BTreeSet<_> = found.iter().flatten().map(|trouble| trouble.kind).collect();
    assert_eq!(found, super::TroubleKind::ALL.iter().copied().collect());
}
