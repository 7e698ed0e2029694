//! How fast WAL comes back: `walrelay restore`, segment after segment as recovery asks for them, and streaming
//! catch-up from the archive: `cargo bench --bench restore`
//!
//! | variable | default | |
//! |---|---|---|
//! | `WALRELAY_BENCH_MB` | 256 | megabytes of WAL; 4096 for the figures in docs/PERFORMANCE.md |
//! | `WALRELAY_BENCH_S3` | none | `s3://bucket/prefix` to measure as well, which is filled first; credentials and `AWS_ENDPOINT_URL` as for any client |
//! | `WALRELAY_BENCH_COMMAND` | none | another `restore_command` to measure, with %f and %p |
//!
//! Beside it `cp`, which checks nothing. Not criterion's: a run takes long, and one figure each is enough.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Runtime;
use walrelay::archive::{FileName, Recall, Repository, Source, Target, TargetSource};
use walrelay::store::{Identity, Store, StoreConfig, UpstreamParameters, WalWrite};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegNo, SegSize, SystemId, TimelineHistory, TimelineId, WalFileName, WalIdentity};

const SEG: u64 = 16 << 20;
const FIRST: u64 = 1;

fn id() -> WalIdentity {
    WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SEG).expect("PostgreSQL's default") }
}

fn main() {
    let megabytes: u64 =
        std::env::var("WALRELAY_BENCH_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(256);
    let segments = (megabytes << 20) / SEG;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bench = Bench { segments, dir: dir.path().to_owned(), runtime: Runtime::new().expect("threads") };
    let archive = dir.path().join("archive");
    std::fs::create_dir(&archive).expect("ours");
    let url = format!("file://{}", archive.display());
    bench.fill(&url, true);
    bench.cp(&archive);
    for prefetch in [0, 4, 8] {
        bench.restore(&url, prefetch);
    }
    bench.stream(&url);
    if let Ok(command) = std::env::var("WALRELAY_BENCH_COMMAND") {
        bench.command(&command);
    }
    if let Ok(url) = std::env::var("WALRELAY_BENCH_S3") {
        bench.fill(&url, false);
        for prefetch in [0, 4, 8] {
            bench.restore(&url, prefetch);
        }
        bench.stream(&url);
    }
}

struct Bench {
    segments: u64,
    dir: PathBuf,
    runtime: Runtime,
}

impl Bench {
    fn names(&self) -> impl Iterator<Item = String> {
        (FIRST..FIRST + self.segments).map(name)
    }

    /// The same WAL in every place, once with an eye on the local disk for those who read files.
    fn fill(&self, url: &str, say: bool) {
        let target = Target::from_url(url).expect("a URL");
        let repository = Repository::open(&target).expect("a target");
        let mut wal = WalGenerator::new(id(), TimelineId::FIRST, Lsn::new(FIRST * SEG), 7);
        let mut rest = Vec::new();
        for name in self.names() {
            wal.fill((SEG as usize).saturating_sub(rest.len()));
            rest.extend(wal.take());
            let segment: Vec<u8> = rest.drain(..SEG as usize).collect();
            let name = FileName::parse(&name).expect("a segment's name");
            self.runtime
                .block_on(repository.write(&name, Bytes::from(segment)))
                .expect("the target takes it");
        }
        if say {
            println!("{} segments of 16 MB", self.segments);
        }
    }

    fn cp(&self, archive: &Path) {
        let target = self.dir.join("RECOVERYXLOG");
        self.time("cp", || {
            for name in self.names() {
                run(Command::new("cp").arg(archive.join(name)).arg(&target));
            }
        });
    }

    fn restore(&self, url: &str, prefetch: usize) {
        let target = self.dir.join("RECOVERYXLOG");
        let spool = self.dir.join(format!("spool-{}-{prefetch}", url.len()));
        let what = format!("walrelay restore --from {} --prefetch {prefetch}", scheme(url));
        self.time(&what, || {
            for name in self.names() {
                let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
                command.args(["restore", "--from", url, "--prefetch", &prefetch.to_string()]);
                run(command.arg("--spool-dir").arg(&spool).arg(name).arg(&target));
            }
        });
    }

    /// Somebody else's: `barman-wal-restore`, `pgbackrest archive-get`, ...
    fn command(&self, command: &str) {
        let target = self.dir.join("RECOVERYXLOG");
        self.time(command, || {
            for name in self.names() {
                let line = command.replace("%f", &name).replace("%p", &target.display().to_string());
                run(Command::new("sh").arg("-c").arg(line));
            }
        });
    }

    /// All segments through the relay's way back, as a walsender reads them.
    fn stream(&self, url: &str) {
        let data = self.dir.join(format!("data-{}", url.len()));
        let store = StoreConfig {
            data_dir: data,
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 0,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        };
        let (store, mut writer, background) = Store::open(store).expect("a new directory");
        let identity = Identity { system_id: id().system_id, seg_size: id().seg_size };
        store.attach(identity, UpstreamParameters::default()).expect("it is empty");
        let end = Lsn::new((FIRST + self.segments) * SEG);
        writer.begin(identity, TimelineHistory::first(), end);
        let mut wal = WalGenerator::new(id(), TimelineId::FIRST, end, 7);
        wal.fill(100_000);
        writer.append(end, &wal.take()).expect("it is good WAL");
        writer.commit();
        let source = TargetSource::open(&Target::from_url(url).expect("a URL")).expect("a target");
        let source = Arc::new(source) as Arc<dyn Source>;
        self.time(&format!("streaming catch-up from {}", scheme(url)), || {
            self.runtime.block_on(async {
                let recall = Recall::start(store.clone(), vec![source.clone()], 256 << 20).expect("ours");
                for segno in FIRST..FIRST + self.segments {
                    let segment =
                        recall.segment(TimelineId::FIRST, SegNo::new(segno)).await.expect("it is there");
                    assert!(segment.is_complete());
                }
            });
        });
        background.stop();
    }

    fn time(&self, what: &str, work: impl FnOnce()) {
        let begun = Instant::now();
        work();
        self.say(what, begun.elapsed());
    }

    fn say(&self, what: &str, took: Duration) {
        let megabytes = ((self.segments * SEG) >> 20) as f64;
        let (seconds, rate) = (took.as_secs_f64(), megabytes / took.as_secs_f64());
        let each = took.as_secs_f64() * 1000.0 / self.segments as f64;
        println!("{what:<60} {seconds:>8.2} s  {rate:>8.0} MB/s  {each:>7.1} ms each");
    }
}

fn scheme(url: &str) -> &str {
    url.split(':').next().unwrap_or(url)
}

fn name(segno: u64) -> String {
    WalFileName::new(TimelineId::FIRST, SegNo::new(segno)).format(id().seg_size)
}

fn run(command: &mut Command) {
    let status = command.status().expect("the program is there");
    assert!(status.success(), "{command:?}: {status}");
}
