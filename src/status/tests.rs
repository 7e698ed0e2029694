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
