//! The small files of a data directory, with anything in them: a relay starts, or says which file is wrong.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bolero::check;
use walrelay::disk::sim::SimDisk;
use walrelay::disk::{Disk, Open};
use walrelay::store::fence::{FencedBy, Order};
use walrelay::store::{
    Identity, SlotPersistence, Stepped, Store, StoreConfig, StoreError, UpstreamParameters, WalWrite,
};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalIdentity};

use super::text;

const SEG: u64 = 1 << 20;
const START: Lsn = Lsn::new(3 * SEG);
const DIR: &str = "/relay";

fn identity() -> Identity {
    Identity { system_id: SystemId(77), seg_size: SegSize::new(SEG).expect("a power of two") }
}

fn open(disk: &SimDisk) -> Result<Stepped, StoreError> {
    let config = StoreConfig {
        data_dir: PathBuf::from(DIR),
        wal_write: WalWrite::Pwrite,
        wal_keep_size: 0,
        max_slot_wal_keep_size: Some(4 * SEG),
        max_replication_slots: 4,
    };
    Store::open_on(Arc::new(disk.clone()), config)
}

/// A data directory with WAL of two timelines, slots and a fence, whose process ended in order.
fn held() -> SimDisk {
    let Identity { system_id, seg_size } = identity();
    let disk = SimDisk::new();
    let mut relay = open(&disk).expect("an empty disk is well");
    let store = relay.store.clone();
    store.attach(identity(), UpstreamParameters::default()).expect("the disk is well");
    let mut wal = WalGenerator::new(WalIdentity { system_id, seg_size }, TimelineId::FIRST, START, 7);
    wal.fill(1_500_000);
    let (before, fork) = (wal.bytes().len(), wal.position());
    relay.writer.begin(identity(), TimelineHistory::first(), START);
    relay.writer.note_followed().expect("the disk is well");
    relay.writer.append(START, wal.bytes()).expect("it is sound");
    relay.writer.commit();
    while relay.flushing.step() {}
    for name in ["a", "b"] {
        let name = name.parse().expect("it is one");
        store.create_reserving_slot(&name, SlotPersistence::Persistent).expect("there is room");
    }
    let second = TimelineId::new(2).expect("not zero");
    let lines = format!("1\t{fork}\tx\n");
    store.save_history_file(second, lines.as_bytes()).expect("it is saved");
    let history = TimelineHistory::parse(second, lines.as_bytes()).expect("a history");
    relay.writer.switch_timeline(history).expect("the disk is well");
    wal.switch_timeline(second);
    wal.fill(200_000);
    relay.writer.append(fork, &wal.bytes()[before..]).expect("it is sound");
    relay.writer.commit();
    while relay.flushing.step() {}
    let by = FencedBy { role: "admin".to_owned(), address: "[local]".to_owned() };
    store.order_fence(Order { epoch: Some(3), reason: "drill".to_owned(), by }).expect("nothing is in force");
    store.fences().save().expect("the disk is well");
    drop(store);
    relay.stop();
    disk.restart(1)
}

/// Its small files, in the order of their names.
fn small_files(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.list(Path::new(DIR)).expect("it is there");
    let mut names: Vec<_> =
        names.into_iter().filter(|name| name.to_string_lossy().ends_with(".toml")).collect();
    names.sort();
    names.into_iter().map(|name| Path::new(DIR).join(name)).collect()
}

/// Puts this over the file's content from there on, or behind where that would be; the rest stays.
fn spoil(disk: &SimDisk, path: &Path, at: u16, bytes: &[u8]) {
    let file = disk.open(path, Open::ReadWrite).expect("it is there");
    let len = file.read_to_end().expect("the disk is well").len() as u64;
    file.write_all_at(bytes, u64::from(at) % (len + 1)).expect("there is room");
    file.sync_all().expect("the disk is well");
}

#[test]
fn fuzz_state_files() {
    let held = held();
    let files = small_files(&held);
    assert!(files.len() >= 5, "{files:?}");
    check!().with_type::<(u8, u16, bool, Vec<u8>)>().with_iterations(300).for_each(
        |(which, at, as_words, bytes)| {
            let disk = held.restart(2);
            let path = &files[usize::from(*which) % files.len()];
            let bytes = if *as_words { text(bytes).into_bytes() } else { bytes.clone() };
            spoil(&disk, path, *at, &bytes);
            let begun = open(&disk).and_then(|relay| {
                relay.store.attach(identity(), UpstreamParameters::default())?;
                Ok(relay)
            });
            match begun {
                // What it made of it, it takes the next time, too.
                Ok(relay) => {
                    relay.stop();
                    open(&disk.restart(3)).expect("it has written all of it itself").stop();
                }
                Err(error) => assert!(error.to_string().contains(DIR), "where is that? {error}"),
            }
        },
    );
}
