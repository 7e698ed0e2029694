//! A timeline that was begun when a sync failed, and is gone to only two starts later: what is confirmed on it is there after a
//! crash, whichever operation it was that failed.

use std::path::Path;
use std::sync::Arc;

use walrelay::disk::sim::SimDisk;
use walrelay::store::{Identity, Stepped, Store, StoreConfig, UpstreamParameters, WalWrite};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalIdentity};

const SEG: u64 = 1 << 20;
const START: Lsn = Lsn::new(3 * SEG);
const EIO: i32 = 5;
/// More operations than a switch has.
const OPERATIONS: u64 = 24;

fn identity() -> Identity {
    Identity { system_id: SystemId(77), seg_size: SegSize::new(SEG).expect("a power of two") }
}

/// A relay on this disk; `None` if it does not start.
fn open(disk: &SimDisk) -> Option<Stepped> {
    let config = StoreConfig {
        data_dir: Path::new("/relay").to_owned(),
        wal_write: WalWrite::Pwrite,
        wal_keep_size: 1 << 30,
        max_slot_wal_keep_size: None,
        max_replication_slots: 1,
    };
    let stepped = Store::open_on(Arc::new(disk.clone()), config).ok()?;
    stepped.store.attach(identity(), UpstreamParameters::default()).ok()?;
    Some(stepped)
}

fn take(stepped: &mut Stepped, at: Lsn, wal: &[u8]) {
    stepped.writer.append(at, wal).expect("WAL is taken");
    stepped.writer.commit();
    while stepped.flushing.step() {}
}

/// The first timeline up to a fork, and what comes behind that on the second.
fn wal() -> (Vec<u8>, TimelineHistory, Vec<u8>) {
    let Identity { system_id, seg_size } = identity();
    let mut wal = WalGenerator::new(WalIdentity { system_id, seg_size }, TimelineId::FIRST, START, 7);
    wal.fill(60_000);
    let (first, fork) = (wal.bytes().to_vec(), wal.position());
    let second = TimelineId::new(2).expect("not zero");
    wal.switch_timeline(second);
    wal.fill(60_000);
    let history = TimelineHistory::parse(second, format!("1\t{fork}\tx\n").as_bytes()).expect("a history");
    (first.clone(), history, wal.bytes()[first.len()..].to_vec())
}

#[test]
fn what_is_confirmed_on_a_timeline_that_a_failed_sync_has_begun_is_there_after_a_crash() {
    let (first, history, second) = wal();
    let (tli, fork) = (history.tli(), history.begin());
    let mut gone_back = 0;
    for operation in 1..=OPERATIONS {
        let disk = SimDisk::new();
        let mut relay = open(&disk).expect("an empty disk is well");
        relay.writer.begin(identity(), TimelineHistory::first(), START);
        relay.writer.note_followed().expect("the disk is well");
        take(&mut relay, START, &first);
        relay.store.save_history_file(tli, format!("1\t{fork}\tx\n").as_bytes()).expect("it is saved");
        disk.fail_at(disk.operations() + operation, EIO);
        let switched = relay.writer.switch_timeline(history.clone());
        drop(relay);
        // The process ends, the next one stops in order, and so the one after that believes what it finds.
        let disk = disk.restart(1);
        open(&disk).expect("the disk is well again").stop();
        let disk = disk.restart(2);
        let mut relay = open(&disk).expect("it has stopped in order");
        if relay.writer.position().map(|at| at.tli) != Some(tli) {
            match relay.writer.find(history.clone()).expect("the disk is well") {
                Some(begun) => {
                    gone_back += u64::from(switched.is_err());
                    relay.writer.take_up(begun, tli).expect("it is taken up");
                }
                None => relay.writer.switch_timeline(history.clone()).expect("the disk is well"),
            }
        }
        relay.writer.note_followed().expect("the disk is well");
        let at = relay.writer.position().expect("there is WAL");
        take(&mut relay, at.lsn, &second[at.lsn.since(fork) as usize..]);
        let confirmed = relay.store.tip().expect("there is WAL");
        assert_eq!((confirmed.tli, confirmed.flush_lsn), (tli, fork.advance(second.len() as u64)));
        drop(relay);
        for seed in 0..6 {
            let found = open(&disk.crash(seed)).expect("a crash leaves what was synced");
            let found = found.store.tip().expect("there is WAL");
            let place = (found.tli, found.flush_lsn);
            assert_eq!(place, (tli, confirmed.flush_lsn), "operation {operation}, crash {seed}");
        }
    }
    assert!(gone_back > 0, "nothing was begun when something failed");
}
