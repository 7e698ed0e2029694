//! A hundred faults in archives of a real cluster, half of them in a directory and half in S3: `archive verify`
//! finds each, `--heal` repairs each of which there is a good copy.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;
use walrelay::archive::{FileName, Repository};
use walrelay::config::archive_targets;
use walrelay::objects::Storage;
use walrelay_testkit::{
    Cluster, Moto, Relay, Scratch, Server, compare, on_one_version, tied_command, wait_until,
};

use crate::{relay_below, walrelay};

on_one_version!(a_hundred_faults_are_found_and_healed);

/// Faults in each of the two targets.
const FAULTS: usize = 50;
/// Segments that may be spoiled: most of them, because a swap takes two, are to be bad in one target only.
const SEGMENTS: usize = 90;
/// Segments of the other cluster; more than there are foreign objects in both targets.
const FOREIGN_SEGMENTS: usize = 35;

/// What can happen to an object.
#[derive(Clone, Copy, Debug)]
enum Fault {
    BitFlip,
    Truncation,
    /// Gone, its checksum is left.
    Missing,
    /// Gone without a trace.
    Vanished,
    /// It and another one have each other's name, checksums included.
    Swapped,
    /// The one of this name of another cluster, checksum included.
    Foreign,
}

const KINDS: [Fault; 6] =
    [Fault::BitFlip, Fault::Truncation, Fault::Missing, Fault::Vanished, Fault::Swapped, Fault::Foreign];

/// A cluster archived to a directory `main` and, compressed, to a prefix `s3`.
struct Archived {
    relay: Relay,
    conf: PathBuf,
    dir: PathBuf,
    scratch: Scratch,
}

impl Archived {
    fn new(name: &str, primary: &Cluster, upstream: &str, moto: &Moto) -> Archived {
        let scratch = Scratch::new("archive");
        let dir = scratch.dir("wal");
        let text = format!(
            "[archive.main]\nurl = \"file://{}\"\n[archive.s3]\nurl = \"s3://wal/{name}\"\n\
             compression = \"zstd\"\n{}",
            dir.display(),
            moto.options()
        );
        let conf = scratch.shared_secret("walrelay.toml", &text);
        let relay = relay_below(primary).name(name).upstream(upstream);
        let relay = relay.arg("--config").arg(&conf.display().to_string()).start();
        Archived { relay, conf, dir, scratch }
    }

    fn repository(&self, name: &str) -> Repository {
        let targets = archive_targets(&self.conf).expect("the relay takes it too");
        let target = targets.iter().find(|target| target.name == name).expect("it is configured");
        Repository::open(target).expect("it is no command")
    }

    fn wait_until_archived(&self, name: &str) {
        let file = FileName::parse(name).expect("a segment's name");
        for target in ["main", "s3"] {
            let (runtime, repository) = (runtime(), self.repository(target));
            wait_until(format_args!("{name} in {target}\n{}", self.relay.log().tail()), || {
                runtime.block_on(repository.read(&file)).is_ok_and(|read| read.is_some())
            });
        }
    }

    /// `walrelay archive verify`: its exit code, and for each target what was found, and what of it was healed.
    fn verify(&self, options: &[&str]) -> (Option<i32>, [Found; 2]) {
        let mut command = tied_command(walrelay());
        command.args(["archive", "verify", "--json", "--config"]).arg(&self.conf).args(options);
        let output = command.output().expect("the program is there");
        let reports: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), ["main", "s3"].map(|name| Found::by(&reports, name)))
    }
}

/// Names of files.
#[derive(PartialEq, Eq, Debug, Default)]
struct Found {
    bad: BTreeSet<String>,
    healed: BTreeSet<String>,
}

impl Found {
    fn by(reports: &Value, target: &str) -> Found {
        let reports = reports.as_array().expect("one report for each target");
        let report = reports.iter().find(|report| report["target"] == target).expect("it is an archive");
        let mut found = Found::default();
        for finding in report["findings"].as_array().expect("a list") {
            let file = finding["file"].as_str().expect("a name").to_owned();
            match finding["healed_from"].is_null() {
                true => found.bad.insert(file),
                false => found.healed.insert(file),
            };
        }
        found
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// Writes at least this many segments; the name of the last.
fn write_segments(primary: &Cluster, count: usize) -> String {
    let begin = primary.flush_lsn();
    while primary.flush_lsn().since(begin) < count as u64 * primary.seg_size().bytes() {
        primary.sql("create table filler as select generate_series(1, 40000) i; drop table filler");
    }
    primary.switch_wal()
}

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn shuffled(&mut self, mut names: Vec<String>) -> Vec<String> {
        (1..names.len()).rev().for_each(|last| names.swap(last, self.below(last + 1)));
        names
    }
}

/// Objects of one target, and those of another cluster's.
struct Vandal {
    storage: Storage,
    foreign: Storage,
    suffix: &'static str,
    random: Random,
}

impl Vandal {
    fn object(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    async fn get(storage: &Storage, path: &str) -> Bytes {
        storage.get(path).await.expect("the target answers").unwrap_or_else(|| panic!("{path} is not there"))
    }

    async fn put(&self, path: &str, content: Bytes) {
        self.storage.put(path, content).await.expect("the target takes it");
    }

    async fn delete(&self, path: &str) {
        self.storage.delete(path).await.expect("the target takes it");
    }

    /// Stores an object of `storage`, and its checksum, under the name of another.
    async fn put_as(&self, name: &str, object: Bytes, sidecar: Bytes) {
        self.put(&self.object(name), object).await;
        self.put(&format!("{name}.sha256"), sidecar).await;
    }

    async fn pair(&self, storage: &Storage, name: &str) -> (Bytes, Bytes) {
        let object = Vandal::get(storage, &self.object(name)).await;
        (object, Vandal::get(storage, &format!("{name}.sha256")).await)
    }

    /// Spoils the object of `name`, and of `other` if it is a swap; what is bad now.
    async fn spoil<'a>(&mut self, fault: Fault, name: &'a str, other: &'a str) -> Vec<&'a str> {
        let path = self.object(name);
        match fault {
            Fault::BitFlip => {
                let mut bytes = Vandal::get(&self.storage, &path).await.to_vec();
                let at = self.random.below(bytes.len());
                bytes[at] ^= 1 << self.random.below(8);
                self.put(&path, bytes.into()).await;
            }
            Fault::Truncation => {
                let bytes = Vandal::get(&self.storage, &path).await;
                let end = self.random.below(bytes.len());
                self.put(&path, bytes.slice(..end)).await;
            }
            Fault::Missing => self.delete(&path).await,
            Fault::Vanished => {
                self.delete(&path).await;
                self.delete(&format!("{name}.sha256")).await;
            }
            Fault::Swapped => {
                let (one, two) =
                    (self.pair(&self.storage, name).await, self.pair(&self.storage, other).await);
                self.put_as(name, two.0, two.1).await;
                self.put_as(other, one.0, one.1).await;
                return vec![name, other];
            }
            Fault::Foreign => {
                let (object, sidecar) = self.pair(&self.foreign, name).await;
                self.put_as(name, object, sidecar).await;
            }
        }
        vec![name]
    }

    /// The faults, each in objects of its own from these; the names of all that are bad now. `has_foreign`: the other
    /// cluster has a segment of this name.
    async fn spoil_all(
        &mut self,
        mut names: Vec<String>,
        has_foreign: impl Fn(&str) -> bool,
    ) -> BTreeSet<String> {
        let mut take = |fits: &dyn Fn(&str) -> bool| {
            let at = names.iter().position(|name| fits(name)).expect("there are enough");
            names.remove(at)
        };
        let mut bad = BTreeSet::new();
        for fault in KINDS.into_iter().cycle().take(FAULTS) {
            let name = match fault {
                Fault::Foreign => take(&has_foreign),
                _ => take(&|_| true),
            };
            let other = matches!(fault, Fault::Swapped).then(|| take(&|_| true));
            let spoilt = self.spoil(fault, &name, other.as_deref().unwrap_or(&name)).await;
            bad.extend(spoilt.into_iter().map(str::to_owned));
        }
        bad
    }
}

fn a_hundred_faults_are_found_and_healed(server: &Server) {
    let moto = Moto::start("wal");
    // Two timelines, because the chain goes over them.
    let mut a = Cluster::builder(server).name("a").seg_mb(1).fresh_initdb().start();
    let b = a.standby().name("b").start();
    let it = Archived::new("walrelay", &a, &Relay::hosts(&[&a, &b]), &moto);
    write_segments(&a, SEGMENTS + 5);
    b.wait_for_replay(a.settled_lsn());
    a.stop();
    b.promote();
    it.relay.wait_for_timeline(2);
    let last = write_segments(&b, 5);
    let other = Cluster::builder(server).name("other").seg_mb(1).fresh_initdb().start();
    let foreign = Archived::new("foreign", &other, &other.conninfo(), &moto);
    let foreign_last = write_segments(&other, FOREIGN_SEGMENTS);
    it.wait_until_archived(&last);
    foreign.wait_until_archived(&foreign_last);

    // The first and the last would be missed by nobody.
    let names = b.finished_segments().into_iter().filter(|name| it.dir.join(name).exists());
    let mut random = Random(2026);
    let names = random.shuffled(names.skip(1).take(SEGMENTS).collect());
    assert_eq!(names.len(), SEGMENTS);
    let mut spoil = |target: &str, suffix, names: Vec<String>| {
        let [storage, other] = [&it, &foreign].map(|it| it.repository(target).storage().clone());
        let random = Random(random.below(1 << 30) as u64);
        let mut vandal = Vandal { storage, foreign: other, suffix, random };
        runtime().block_on(vandal.spoil_all(names, |name| foreign.dir.join(name).exists()))
    };
    let in_dir = spoil("main", "", names.clone());
    let in_s3 = spoil("s3", ".zst", names.into_iter().rev().collect());
    let in_both: BTreeSet<String> = in_dir.intersection(&in_s3).cloned().collect();
    assert!((1..FAULTS).contains(&in_both.len()), "{}", in_both.len());

    // Exactly those are found, and healed from the other target, but for what is bad in both.
    let (code, [main, s3]) = it.verify(&["--heal"]);
    assert_eq!((code, &main.bad, &s3.bad), (Some(1), &in_both, &in_both));
    for (healed, bad) in [(&main.healed, &in_dir), (&s3.healed, &in_s3)] {
        assert_eq!(*healed, bad.difference(&in_both).cloned().collect());
    }
    // The relay still has those.
    let data = it.relay.data_dir().display().to_string();
    let (code, [main, s3]) = it.verify(&["--heal", "--data-dir", &data]);
    assert_eq!((code, main.healed, s3.healed), (Some(0), in_both.clone(), in_both));
    assert_eq!(it.verify(&[]), (Some(0), Default::default()));

    compare::assert_timelines(&b, &it.dir, 2);
    let (fetched, s3) = (it.scratch.dir("fetched"), it.repository("s3"));
    for name in b.finished_segments().into_iter().filter(|name| it.dir.join(name).exists()) {
        let file = FileName::parse(&name).expect("a segment's name");
        let content = runtime().block_on(s3.read(&file)).expect("S3 answers").expect("it is there");
        fs::write(fetched.join(name), content).expect("the directory is ours");
    }
    compare::assert_segments(&b, &fetched, SEGMENTS);
}
