//! Bytes per second from the store to 1, 8 and 32 consumers over loopback, all together:
//! `cargo bench --bench fanout`
//!
//! Relay and consumers share the machine, so this compares versions of the relay on one machine and says
//! nothing absolute. Loopback goes through the system's TCP congestion control; `make bench` fixes that one.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use walrelay::store::{Background, Store, Writer};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineId, WalIdentity};
use walrelay_testkit::Consumer;

const SIZE: u64 = 256 << 20;
const START: Lsn = Lsn::new(16 << 20);
const SEG: u64 = 16 << 20;
const CONSUMERS: [usize; 3] = [1, 8, 32];

/// The lower half of a relay, with WAL. Fields end in order: connections, then the store.
struct Served {
    address: SocketAddr,
    end: Lsn,
    _runtime: Runtime,
    _writer: Writer,
    _background: Background,
    _dir: tempfile::TempDir,
}

impl Served {
    fn start() -> Served {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (store, writer, background) = filled_store(dir.path());
        let end = store.tip().expect("it was filled").write_lsn;
        let runtime = Runtime::new().expect("threads can be started");
        let address = common::serve(&runtime, store, None);
        Served { address, end, _runtime: runtime, _writer: writer, _background: background, _dir: dir }
    }

    /// Time from the first request to the last byte of the slowest of `consumers`.
    fn drain(&self, consumers: usize) -> Duration {
        let connect = || Consumer::connect(self.address, "bench").expect("everybody is trusted");
        let ready: Vec<_> = (0..consumers).map(|_| connect()).collect();
        let barrier = Barrier::new(consumers + 1);
        std::thread::scope(|scope| {
            for mut consumer in ready {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    consumer.start(START).expect("the WAL is there");
                    consumer.drain(self.end).expect("the WAL is there");
                    barrier.wait();
                });
            }
            barrier.wait();
            let began = Instant::now();
            barrier.wait();
            began.elapsed()
        })
    }
}

fn filled_store(dir: &Path) -> (Arc<Store>, Writer, Background) {
    let seg_size = SegSize::new(SEG).expect("a power of two");
    let id = WalIdentity { system_id: SystemId(1), seg_size };
    let (store, mut writer, background) = common::new_store(&dir.join("data"), id, START, 1 << 40);
    let mut wal = WalGenerator::new(id, TimelineId::FIRST, START, 1);
    while wal.position() < START.advance(SIZE) {
        let at = wal.position();
        wal.fill(SEG as usize);
        writer.append(at, &wal.take()).expect("generated WAL is valid");
        writer.commit();
    }
    (store, writer, background)
}

fn benches(criterion: &mut Criterion) {
    let served = Served::start();
    let mut group = criterion.benchmark_group("fanout");
    group.sample_size(10);
    for consumers in CONSUMERS {
        group.throughput(Throughput::Bytes(served.end.since(START) * consumers as u64));
        group.bench_function(format!("{consumers} consumers"), |bench| {
            bench.iter_custom(|times| (0..times).map(|_| served.drain(consumers)).sum());
        });
    }
    group.finish();
}

criterion_group!(fan_out, benches);
criterion_main!(fan_out);
