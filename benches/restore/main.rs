//! How fast WAL comes back: `walrelay restore` and other `restore_command`s, segment after segment as recovery asks
//! for them, from a directory and from S3; and streaming catch-up from both: `cargo bench --bench restore`
//!
//! As recovery does, each file is synced when the command has ended (`durable_rename`); the time for it is shown
//! beside the commands'.
//!
//! | variable | default | |
//! |---|---|---|
//! | `WALRELAY_BENCH_MB` | 256 | megabytes of WAL, at least 16; 4096 for the figures in docs/PERFORMANCE.md |
//! | `WALRELAY_BENCH_COMMAND` | none | another `restore_command` to measure, with %f and %p |
//!
//! S3 is moto's server on this machine, in Python. It and Barman are what `make setup` installs; pgBackRest is measured if
//! it is on the path and PostgreSQL 15 is there, whose `pg_control` it wants to see. Not criterion's: a run takes long,
//! and one figure each is enough.

#[path = "../common/mod.rs"]
mod common;
mod far;
mod others;
mod store;
mod wal;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use walrelay::archive::{Recall, Source, Target, TargetSource};
use walrelay::config::archive_targets;
use walrelay_proto::TimelineId;
use walrelay_proto::generate::WalGenerator;
use walrelay_testkit::{Consumer, Moto, Scratch};

use others::{BarmanServer, PgBackRest};
use wal::Wal;

/// Segments fetched ahead.
const PREFETCH: [usize; 3] = [0, 4, 8];
/// `--recall-size`, its default.
const RECALL_SIZE: u64 = 256 << 20;

fn main() {
    let pgbackrest = PgBackRest::find();
    let wal = Wal::generate(megabytes(), pgbackrest.as_ref().map(PgBackRest::system_id));
    let (moto, barman) = (Moto::start("wal"), BarmanServer::new());
    let bench = Bench::new(&wal, &moto, &barman);
    println!("{} segments of 16 MB; commands write files, streaming does not", wal.segments());
    bench.fill();
    barman.take();

    let copy = |name: &str, to: &Path| {
        let mut command = Command::new("cp");
        command.arg(wal.dir().join(name)).arg(to);
        command
    };
    bench.commands("cp, which checks nothing", copy);
    bench.restore("directory");
    bench.commands("barman-wal-restore, a shell for ssh", |name, to| barman.wal_restore(&[], name, to));
    let spool_dir = barman.spool_dir();
    let ahead = ["--parallel", "4", "--spool-dir", &spool_dir];
    bench.commands("... --parallel 4", |name, to| barman.wal_restore(&ahead, name, to));
    match &pgbackrest {
        Some(it) => {
            it.fill(&wal);
            bench.commands("pgbackrest archive-get", |name, to| it.archive_get(&[], name, to));
            let ahead = it.asynchronous();
            let ahead: Vec<&str> = ahead.iter().map(String::as_str).collect();
            bench
                .commands("... --archive-async --process-max=4", |name, to| it.archive_get(&ahead, name, to));
        }
        None => println!("(no pgBackRest, or no PostgreSQL 15, on this machine)"),
    }
    bench.stream("directory");

    bench.restore("s3");
    bench.commands("barman-cloud-wal-restore", |name, to| barman.cloud_wal_restore(&moto, name, to));
    bench.stream("s3");
    println!("the same S3 {} ms away, in each direction:", far::ONE_WAY.as_millis());
    bench.restore("far");
    bench.stream("far");
    store::archive(&bench.runtime, |s3| {
        let text = format!(
            "[archive.slow]\nurl = \"s3://wal/main\"\nendpoint = \"{}\"\nregion = \"x\"\n\
             options = {{ access-key-id = \"x\", secret-access-key = \"x\" }}\n",
            s3.endpoint()
        );
        let conf = bench.scratch.secret("slow.toml", &text);
        archive_targets(&conf).expect("it is a configuration").remove(0)
    });
    if let Ok(line) = std::env::var("WALRELAY_BENCH_COMMAND") {
        bench.commands(&line, |name, to| {
            let mut command = Command::new("sh");
            command.arg("-c").arg(line.replace("%f", name).replace("%p", &to.display().to_string()));
            command
        });
    }
}

fn megabytes() -> u64 {
    let text = std::env::var("WALRELAY_BENCH_MB").unwrap_or_default();
    text.parse().unwrap_or(256).max(16)
}

/// The same WAL in every place.
struct Bench<'a> {
    wal: &'a Wal,
    conf: PathBuf,
    scratch: Scratch,
    runtime: Runtime,
}

impl<'a> Bench<'a> {
    fn new(wal: &'a Wal, moto: &Moto, barman: &BarmanServer) -> Bench<'a> {
        let scratch = Scratch::new("restore");
        let runtime = Runtime::new().expect("threads can be started");
        let near = moto.endpoint();
        let address = near.trim_start_matches("http://").parse().expect("a host's address and a port");
        let far = format!("http://{}", far::away(&runtime, address));
        // Barman's layout, so that it reads what walrelay reads.
        let s3 = format!("url = \"{}\"\nlayout = \"barman\"\n{}", others::BUCKET_URL, moto.options());
        let text = format!(
            "[archive.directory]\nurl = \"file://{}\"\n\
             [archive.barman]\nurl = \"file://{}\"\nlayout = \"barman\"\n\
             [archive.s3]\n{s3}\n[archive.far]\n{}",
            wal.dir().display(),
            barman.wals_parent().display(),
            s3.replace(&near, &far),
        );
        let conf = scratch.secret("walrelay.toml", &text);
        Bench { wal, conf, scratch, runtime }
    }

    fn target(&self, name: &str) -> Target {
        let targets = archive_targets(&self.conf).expect("it is a configuration");
        targets.into_iter().find(|target| target.name == name).expect("it is configured")
    }

    fn fill(&self) {
        // The first has the files already, but not their checksums.
        for name in ["directory", "barman", "s3"] {
            self.runtime.block_on(self.wal.copy_to(&self.target(name)));
        }
    }

    fn restore(&self, from: &str) {
        for prefetch in PREFETCH {
            let spool = self.scratch.join(&format!("spool-{from}-{prefetch}"));
            self.commands(&format!("walrelay restore --from {from} --prefetch {prefetch}"), |name, to| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
                command.arg("restore").arg("--config").arg(&self.conf).args(["--from", from]);
                command.args(["--prefetch", &prefetch.to_string(), "--spool-dir"]).arg(&spool);
                command.arg(name).arg(to);
                command
            });
        }
    }

    /// All segments, one after another, by a command for each.
    fn commands(&self, what: &str, command: impl Fn(&str, &Path) -> Command) {
        let (target, kept) = (self.scratch.join("RECOVERYXLOG"), self.scratch.join("kept"));
        let (begun, mut syncing) = (Instant::now(), Duration::ZERO);
        for name in self.wal.names() {
            run(command(&name, &target));
            let ended = Instant::now();
            let file = File::open(&target).expect("the command has made it");
            file.sync_all().expect("the disk is well");
            fs::rename(&target, &kept).expect("the directory is ours");
            syncing += ended.elapsed();
        }
        self.say(what, begun.elapsed(), Some(syncing));
        let original = fs::read(self.wal.dir().join(self.wal.last())).expect("it is there");
        assert!(fs::read(&kept).expect("it was restored") == original, "{what}: other content");
    }

    /// All segments to a consumer that asks for them over the replication protocol, from a relay that has none.
    fn stream(&self, from: &str) {
        let (end, data) = (self.wal.end(), self.scratch.join(&format!("data-{from}")));
        let (store, mut writer, background) = common::new_store(&data, self.wal.id(), end, 0);
        let mut wal = WalGenerator::new(self.wal.id(), TimelineId::FIRST, end, 7);
        wal.fill(100_000);
        writer.append(end, &wal.take()).expect("it is good WAL");
        writer.commit();
        let source = TargetSource::open(&self.target(from)).expect("a target");
        let runtime = Runtime::new().expect("threads can be started");
        let _context = runtime.enter();
        let recall = Recall::start(store.clone(), vec![Arc::new(source) as Arc<dyn Source>], RECALL_SIZE);
        let recall = recall.expect("the directory is ours");
        let address = common::serve(&runtime, store, Some(recall));
        let mut consumer = Consumer::connect(address, "bench").expect("everybody is trusted");
        let begun = Instant::now();
        consumer.start(self.wal.start()).expect("the archive has it");
        consumer.drain(end).expect("the archive has all of it");
        self.say(&format!("streaming catch-up from {from}"), begun.elapsed(), None);
        drop(consumer);
        runtime.shutdown_background();
        background.stop();
    }

    /// `syncing` is part of `took`.
    fn say(&self, what: &str, took: Duration, syncing: Option<Duration>) {
        let segments = self.wal.segments() as f64;
        let each = |time: Duration| time.as_secs_f64() * 1000.0 / segments;
        let (seconds, rate) = (took.as_secs_f64(), segments * 16.0 / took.as_secs_f64());
        let synced = syncing.map(|time| format!(", {:.1} of them for the sync", each(time)));
        let (each, synced) = (each(took), synced.unwrap_or_default());
        println!("{what:<50} {seconds:>8.2} s {rate:>6.0} MB/s {each:>7.1} ms each{synced}");
    }
}

fn run(mut command: Command) {
    let output = command.output().expect("the program is there");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
