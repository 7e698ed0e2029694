//! Bytes per second of the WAL verifier, which sees every byte received: `cargo bench --bench verify`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineId, WalIdentity, WalVerifier};

const SIZE: usize = 64 << 20;
const START: Lsn = Lsn::new(16 << 20);
/// What a walsender sends in one message at most.
const MESSAGE: usize = 128 << 10;

fn identity() -> WalIdentity {
    WalIdentity { system_id: SystemId(1), seg_size: SegSize::new(16 << 20).expect("a power of two") }
}

fn generated(mut record: impl FnMut(&mut WalGenerator)) -> Vec<u8> {
    let mut wal = WalGenerator::new(identity(), TimelineId::FIRST, START, 1);
    while wal.bytes().len() < SIZE {
        record(&mut wal);
    }
    wal.take()
}

fn verify(wal: &[u8], push: usize) -> Option<Lsn> {
    let mut walk = WalVerifier::at_segment_start(identity(), TimelineId::FIRST, START);
    wal.chunks(push).for_each(|chunk| walk.push(chunk).expect("generated WAL is valid"));
    walk.verified_end()
}

fn benches(criterion: &mut Criterion) {
    let mixed = generated(|wal| wal.fill(1 << 20));
    let small = generated(|wal| _ = wal.record(100));
    let pages = generated(|wal| _ = wal.record(8300));
    let mut group = criterion.benchmark_group("verify");
    group.sample_size(20);
    for (name, wal, push) in [
        ("mixed records, messages of 128 kB", &mixed, MESSAGE),
        ("mixed records, messages of 8 kB", &mixed, 8 << 10),
        ("mixed records, messages of 500 bytes", &mixed, 500),
        ("records of 100 bytes, messages of 128 kB", &small, MESSAGE),
        ("records of a page, messages of 128 kB", &pages, MESSAGE),
    ] {
        group.throughput(Throughput::Bytes(wal.len() as u64));
        group.bench_function(name, |bench| bench.iter(|| verify(black_box(wal), push)));
    }
    group.bench_function("checksum alone", |bench| bench.iter(|| crc32c::crc32c(black_box(&mixed))));
    group.finish();
}

criterion_group!(verify_wal, benches);
criterion_main!(verify_wal);
