//! Bytes per second from the store to 1, 8 and 32 consumers over loopback, all together:
//! `cargo bench --bench fanout`
//!
//! Relay and consumers share the machine, so this compares versions of the relay on one machine and says
//! nothing absolute. Loopback goes through the system's TCP congestion control; `make bench` fixes that one.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use walrelay::auth::hba::{Hba, Idents};
use walrelay::auth::users::Users;
use walrelay::conninfo::{ConnInfo, Environment};
use walrelay::downstream::{
    Access, BoundAddr, Downstream, DownstreamConfig, Limits, ListenAddr, SharedAccess,
};
use walrelay::gateway::{Gateway, GatewayConfig};
use walrelay::store::{Background, Identity, Store, StoreConfig, UpstreamParameters, WalWrite, Writer};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalIdentity};
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
        let downstream = runtime.block_on(listen(store));
        let Some(BoundAddr::Tcp(address)) = downstream.addresses().first().cloned() else {
            unreachable!("it listens on one TCP address")
        };
        runtime.spawn(downstream.run());
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
    let config = StoreConfig {
        data_dir: dir.join("data"),
        wal_write: WalWrite::Pwrite,
        wal_keep_size: 1 << 40,
        max_slot_wal_keep_size: None,
        max_replication_slots: 1,
    };
    let identity = Identity { system_id: SystemId(1), seg_size: SegSize::new(SEG).expect("a power of two") };
    let (store, mut writer, background) = Store::open(config).expect("the directory is new");
    let status = [("server_version".to_owned(), "17.0".to_owned())].to_vec();
    let parameters = UpstreamParameters { status, settings: Default::default() };
    store.attach(identity, parameters).expect("the directory is new");
    writer.begin(identity, TimelineHistory::first(), START);
    let id = WalIdentity { system_id: identity.system_id, seg_size: identity.seg_size };
    let mut wal = WalGenerator::new(id, TimelineId::FIRST, START, 1);
    while wal.position() < START.advance(SIZE) {
        let at = wal.position();
        wal.fill(SEG as usize);
        writer.append(at, &wal.take()).expect("generated WAL is valid");
        writer.commit();
    }
    (store, writer, background)
}

async fn listen(store: Arc<Store>) -> Downstream {
    let config = DownstreamConfig {
        listen: vec![ListenAddr::Tcp { host: "127.0.0.1".to_owned(), port: 0 }],
        limits: Limits { connections: 100, user_connections: 0, wal_senders: 100 },
        max_failed_logins: 0,
        authentication_timeout: Duration::from_secs(60),
        wal_sender_timeout: None,
        shutdown_timeout: Duration::ZERO,
        sql_overlay: true,
        recall: None,
    };
    let hba = "host all,replication all 127.0.0.1/32 trust";
    let hba = Hba::parse(Path::new("hba"), hba).expect("one valid line");
    let access =
        SharedAccess::new(Access { hba, users: Users::default(), idents: Idents::default(), tls: None });
    let bound = Downstream::bind(
        config,
        Arc::new(access),
        store.clone(),
        no_upstream(&store),
        CancellationToken::new(),
    )
    .await;
    bound.expect("a free port")
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

/// A gateway that knows no server.
fn no_upstream(store: &Arc<Store>) -> Arc<Gateway> {
    let conninfo = ConnInfo::parse("host=localhost user=nobody", &Environment::of_user("nobody"));
    let config = GatewayConfig {
        conninfo: conninfo.expect("the connection string is well-formed"),
        auth_query: None,
        auth_dbname: "postgres".to_owned(),
        base_backup_max_rate: None,
    };
    Arc::new(Gateway::new(config, tokio::sync::watch::channel(None).1, store.clone()))
}
