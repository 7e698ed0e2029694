//! Bytes per second from the receive buffer into the store, verified and written, while the flusher syncs:
//! `cargo bench --bench append`
//!
//! The disk's part is in it only as far as syncing slows down writing: `commit` does not wait for it.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walrelay::store::{Background, Identity, Store, StoreConfig, UpstreamParameters, WalWrite, Writer};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalIdentity};

const SIZE: usize = 128 << 20;
const START: Lsn = Lsn::new(16 << 20);
/// What a walsender sends in one message at most, when it has much to send.
const BULK: usize = 128 << 10;
/// What it sends for a small commit.
const COMMIT: usize = 512;

fn identity() -> Identity {
    Identity { system_id: SystemId(1), seg_size: SegSize::new(16 << 20).expect("a power of two") }
}

fn wal(size: usize) -> Vec<u8> {
    let id = WalIdentity { system_id: identity().system_id, seg_size: identity().seg_size };
    let mut wal = WalGenerator::new(id, TimelineId::FIRST, START, 1);
    while wal.bytes().len() < size {
        wal.fill(1 << 20);
    }
    wal.take()
}

fn empty_store(dir: &tempfile::TempDir, wal_write: WalWrite) -> (Writer, Background) {
    let config = StoreConfig {
        data_dir: dir.path().join("data"),
        wal_write,
        wal_keep_size: 1 << 40,
        max_slot_wal_keep_size: None,
        max_replication_slots: 1,
    };
    let (store, mut writer, background) = Store::open(config).expect("the directory is new");
    store.attach(identity(), UpstreamParameters::default()).expect("the directory is new");
    writer.begin(identity(), TimelineHistory::first(), START);
    (writer, background)
}

/// Appends and publishes piece by piece, into a fresh data directory.
fn append(wal: &[u8], piece: usize, wal_write: WalWrite) -> Duration {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut writer, background) = empty_store(&dir, wal_write);
    let began = Instant::now();
    for (at, bytes) in (0..).step_by(piece).zip(wal.chunks(piece)) {
        writer.append(START.advance(at), bytes).expect("generated WAL is valid");
        writer.commit();
    }
    let took = began.elapsed();
    drop(writer);
    background.stop();
    took
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    for (name, piece, size) in [("128 kB", BULK, SIZE), ("512 bytes", COMMIT, SIZE / 4)] {
        let wal = wal(size);
        for wal_write in [WalWrite::Pwrite, WalWrite::Mmap] {
            let name = format!("{wal_write:?}, pieces of {name}").to_lowercase();
            group.throughput(Throughput::Bytes(wal.len() as u64));
            group.bench_function(name, |bench| {
                bench.iter_custom(|times| (0..times).map(|_| append(&wal, piece, wal_write)).sum());
            });
        }
    }
    group.finish();
}

criterion_group!(append_wal, benches);
criterion_main!(append_wal);
