//! WAL goes to many targets, each at its own pace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walrelay::archive::{FileName, Repository};
use walrelay::config::archive_targets;
use walrelay_proto::{Lsn, TimelineId, WalFileName};
use walrelay_testkit::{
    Barman, Cluster, Moto, Process, Python, Relay, RelayBuilder, Scratch, Server, compare, on_every_version,
    on_one_version, on_one_version_mostly, wait_for, wait_until,
};

use crate::relay_below;

on_every_version!(a_promotion_is_archived, a_barman_servers_directory_is_a_target);
on_one_version_mostly!(
    bad_targets_hold_up_nobody,
    the_tail_arrives_within_the_interval,
    a_target_that_takes_nothing_and_may_be_dropped,
    other_content_is_kept_aside,
    barman_cloud_restores_what_is_archived
);
on_one_version!(killed_fifty_times);

/// Directories, and a configuration file that names them.
struct Targets {
    scratch: Scratch,
    config: String,
}

impl Targets {
    fn new() -> Targets {
        Targets { scratch: Scratch::new("archive"), config: String::new() }
    }

    /// A directory that is a target, with these lines besides.
    fn directory(mut self, name: &str, lines: &str) -> Targets {
        let dir = self.scratch.dir(name);
        self.config += &format!("[archive.{name}]\nurl = \"file://{}\"\n{lines}\n", dir.display());
        self
    }

    /// A prefix in the bucket `wal`.
    fn s3(mut self, moto: &Moto, lines: &str) -> Targets {
        self.config += &format!("[archive.s3]\nurl = \"s3://wal/main\"\n{}{lines}\n", moto.options());
        self
    }

    /// A command that copies into a directory of this name; `first` comes before.
    fn command(mut self, first: &str) -> Targets {
        let dir = self.scratch.dir("command").display().to_string();
        let copy =
            "if test -e {dir}/%f; then cmp %p {dir}/%f; else cp %p {dir}/.%f && mv {dir}/.%f {dir}/%f; fi";
        let line = format!("{first}{}", copy.replace("{dir}", &dir));
        self.config += &format!("[archive.command]\ncommand = '{line}'\n");
        self
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn file(&self) -> PathBuf {
        let path = self.scratch.join("walrelay.toml");
        fs::write(&path, &self.config).expect("the directory is ours");
        // The keys of the object store stand in it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        path
    }

    fn archiving(&self, relay: RelayBuilder) -> RelayBuilder {
        relay.arg("--config").arg(&self.file().display().to_string())
    }

    fn repository(&self, name: &str) -> Repository {
        let targets = archive_targets(&self.file()).expect("the relay takes it too");
        let target = targets.iter().find(|target| target.name == name).expect("it is configured");
        Repository::open(target).expect("it is no command")
    }

    /// Every file of a target by its own means, as plain files in a new directory.
    fn fetch(&self, name: &str, names: &[String]) -> PathBuf {
        let dir = self.scratch.dir(&format!("{name}-fetched"));
        let repository = self.repository(name);
        runtime().block_on(async {
            for name in names {
                let file = FileName::parse(name).expect("a segment's name");
                let read = repository.read(&file).await.expect("the target answers");
                if let Some(content) = read {
                    fs::write(dir.join(name), content).expect("the directory is ours");
                }
            }
        });
        dir
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// A line of a target whose objects are encrypted with a new key.
fn encrypted(scratch: &Scratch) -> String {
    use age::secrecy::ExposeSecret;
    let secret = age::x25519::Identity::generate().to_string();
    let path = scratch.secret("archive.key", secret.expose_secret());
    format!("encryption-key-file = \"{}\"", path.display())
}

fn wait_for_file(dir: &Path, name: &str, relay: &Relay) {
    let arrived = || dir.join(name).exists().then_some(());
    wait_for(format_args!("{name} in {}\n{}", dir.display(), relay.log().tail()), arrived);
}

/// Waits until a target can give a file back.
fn wait_for_object(repository: &Repository, name: &str) {
    let file = FileName::parse(name).expect("a segment's name");
    let runtime = runtime();
    wait_until(format_args!("{name} in {}", repository.name()), || {
        runtime.block_on(repository.read(&file)).is_ok_and(|read| read.is_some())
    });
}

/// A primary that keeps all its WAL to compare with.
fn primary(server: &Server) -> Cluster {
    Cluster::builder(server).seg_mb(1).conf("wal_keep_size = '1GB'").start()
}

fn bad_targets_hold_up_nobody(server: &Server) {
    let primary = primary(server);
    let mut moto = Moto::start("wal");
    let flag = Scratch::new("flag");
    let repaired = flag.join("repaired");
    let targets = Targets::new()
        .directory("good", "")
        .directory("slow", &format!("rate = \"1MB\"\ncompression = \"lz4\"\n{}", encrypted(&flag)))
        .s3(&moto, "compression = \"zstd\"")
        .command(&format!("test -e {} || exit 1; ", repaired.display()));
    let relay = targets.archiving(relay_below(&primary)).arg("--wal-keep-size").arg("0").start();
    primary.pgbench_init(1);
    let first = primary.switch_wal();
    wait_for_file(&targets.dir("good"), &first, &relay);
    wait_for_object(&targets.repository("s3"), &first);

    // One stopped, one slow, one returning errors: the others are current, and the primary keeps nothing.
    moto.hold();
    primary.pgbench_init(2);
    let last = primary.switch_wal();
    wait_for_file(&targets.dir("good"), &last, &relay);
    relay.log().wait_for("could not archive");
    let kept = "select pg_current_wal_lsn() - restart_lsn <= 2 * 1024 * 1024 from pg_replication_slots";
    primary.wait_for_sql(kept, "t");
    assert!(!targets.dir("command").join(&first).exists());
    let finished = primary.finished_segments();
    let here = |name: &String| relay.wal_dir().join(name).exists();
    assert!(here(&last) && here(&first), "what targets still need is kept");

    moto.go_on();
    fs::write(&repaired, "").expect("the directory is ours");
    wait_for_object(&targets.repository("s3"), &last);
    wait_for_object(&targets.repository("slow"), &last);
    wait_for_file(&targets.dir("command"), &last, &relay);
    let fetched = [targets.fetch("s3", &finished), targets.fetch("slow", &finished)];
    for dir in [&targets.dir("good"), &targets.dir("command"), &fetched[0], &fetched[1]] {
        wait_until(format_args!("all of {}", dir.display()), || compare::segments(&primary, dir).is_ok());
        compare::assert_segments(&primary, dir, 10);
    }
    // Nobody needs it any more.
    wait_until("the relay to let go of what is archived", || !relay.wal_dir().join(&first).exists());
}

fn killed_fifty_times(server: &Server) {
    let primary = primary(server);
    let moto = Moto::start("wal");
    let targets = Targets::new()
        .directory("plain", "")
        .s3(&moto, "compression = \"zstd\"\nconcurrency = 2")
        .command("");
    let mut relay = targets.archiving(relay_below(&primary)).arg("--wal-keep-size").arg("0").start();
    primary.pgbench_init(1);
    let first = primary.finished_segments().first().cloned().expect("pgbench wrote more than a segment");
    let pgbench = primary.spawn_pgbench(2);
    for round in 0..50 {
        match round % 5 {
            0 => relay.wait_for_flush(primary.flush_lsn()),
            1 | 2 => {
                let count = || fs::read_dir(targets.dir("plain")).map_or(0, Iterator::count);
                let before = count();
                wait_until("another file in the archive", || count() > before);
            }
            _ => {}
        }
        relay.kill9();
        relay.start();
    }
    pgbench.stop();
    let last = primary.switch_wal();
    wait_for_file(&targets.dir("plain"), &last, &relay);
    wait_for_file(&targets.dir("command"), &last, &relay);
    wait_for_object(&targets.repository("s3"), &last);
    assert!(targets.dir("plain").join(&first).exists() || !relay.wal_dir().join(&first).exists());
    let finished = primary.finished_segments();
    let fetched = targets.fetch("s3", &finished);
    for dir in [&targets.dir("plain"), &targets.dir("command"), &fetched] {
        wait_until(format_args!("all of {}", dir.display()), || compare::segments(&primary, dir).is_ok());
        compare::assert_segments(&primary, dir, 10);
    }
    for target in ["plain", "s3"] {
        let entries = runtime().block_on(targets.repository(target).list()).expect("the target answers");
        let aside = entries.iter().find(|entry| entry.path.contains("conflict"));
        assert_eq!(aside, None, "nothing is uploaded twice with a different result");
    }
}

fn the_tail_arrives_within_the_interval(server: &Server) {
    let primary = primary(server);
    let moto = Moto::start("wal");
    let targets = Targets::new().s3(&moto, "partial-interval = \"1s\"\ncompression = \"lz4\"");
    let mut relay = targets.archiving(relay_below(&primary)).start();
    let repository = targets.repository("s3");
    let runtime = runtime();
    let reach = |at: Lsn| {
        let size = primary.seg_size();
        let wal = WalFileName::new(TimelineId::FIRST, at.seg_before(size));
        let segment = FileName::segment(wal, size);
        let held = runtime.block_on(repository.read_beginning(&segment)).unwrap_or_default().len() as u64;
        let there = at.since(wal.segno.start(size));
        held >= there || runtime.block_on(repository.read(&segment)).is_ok_and(|read| read.is_some())
    };
    primary.sql("create table t (n int)");
    // A machine that has other things to do may be late now and then, but not always.
    let in_time = (0..20).any(|round| {
        primary.sql(&format!("insert into t values ({round})"));
        let (committed, begin) = (primary.flush_lsn(), Instant::now());
        wait_until(format_args!("{committed} in the archive\n{}", relay.log().tail()), || reach(committed));
        begin.elapsed() <= Duration::from_secs(1)
    });
    assert!(in_time, "none of twenty commits was in the archive within a second");
    // Killed with a part of a segment sent, it goes on where it was.
    relay.kill9();
    relay.start();
    primary.sql("insert into t values (10)");
    let committed = primary.flush_lsn();
    wait_until(format_args!("{committed} in the archive\n{}", relay.log().tail()), || reach(committed));

    let whole = primary.switch_wal();
    wait_for_object(&repository, &whole);
    let segment = FileName::parse(&whole).expect("a segment's name");
    wait_until("the pieces of a whole segment to go", || {
        runtime.block_on(repository.chunks(&segment)).is_ok_and(|chunks| chunks.is_empty())
    });
}

fn a_promotion_is_archived(server: &Server) {
    let a = Cluster::builder(server).name("a").seg_mb(1).conf("wal_keep_size = '1GB'").start();
    let b = a.standby().name("b").start();
    let targets = Targets::new().directory("plain", "").command("");
    let relay = targets.archiving(relay_below(&b)).start();
    a.pgbench_init(1);
    b.wait_for_replay(a.settled_lsn());
    b.promote();
    b.pgbench(2, 100);
    let last = b.switch_wal();
    for dir in [targets.dir("plain"), targets.dir("command")] {
        wait_for_file(&dir, &last, &relay);
        wait_for_file(&dir, "00000002.history", &relay);
        wait_until(format_args!("all of {}", dir.display()), || compare::segments(&b, &dir).is_ok());
        compare::assert_timelines(&b, &dir, 2);
        let partial = |path: PathBuf| path.extension().is_some_and(|extension| extension == "partial");
        wait_until("the segment in which timeline 1 was left", || {
            let found = fs::read_dir(&dir).expect("the directory is ours");
            found.filter_map(Result::ok).any(|entry| partial(entry.path()))
        });
    }
    relay.assert_calm();
}

fn a_target_that_takes_nothing_and_may_be_dropped(server: &Server) {
    let primary = primary(server);
    let mut targets = Targets::new().directory("good", "");
    targets.config += "[archive.never]\ncommand = \"exit 1\"\nquota = \"4MB\"\non-quota = \"drop\"\n";
    let mut relay = targets.archiving(relay_below(&primary)).arg("--wal-keep-size").arg("0").start();
    let first = primary.switch_wal();
    relay.wait_for_segment(&first);
    primary.pgbench_init(1);
    let last = primary.switch_wal();
    wait_for_file(&targets.dir("good"), &last, &relay);
    relay.log().wait_for("its quota is 4 MB: the oldest is let go");
    relay.log().wait_for("archive target \"never\" will never get WAL from");
    let state = relay.data_dir().join("archive-never.toml");
    wait_until("the gap to be recorded", || {
        fs::read_to_string(&state).is_ok_and(|state| state.contains("[[gap]]"))
    });
    compare::assert_segments(&primary, &targets.dir("good"), 5);

    // It is a trouble until somebody says that it was looked at, also over restarts. Others may come: it drops as it takes nothing.
    wait_until("the trouble", || shown(&relay, "troubles").contains("archive_gap|never|"));
    relay.psql("dbname=walrelay", &["dismiss gaps"]).expect("it is obeyed");
    let (all, dismissed) = (
        |text: &str| text.matches("[[gap]]").count(),
        |text: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix("dismissed-gaps = "));
            line.map_or(0, |number| number.parse::<usize>().expect("a number"))
        },
    );
    let saved = || fs::read_to_string(&state).expect("it was there");
    wait_until("that to be noted", || dismissed(&saved()) > 0);
    relay.restart();
    wait_until("the others, and not that one", || {
        let row = shown(&relay, "archive").lines().find(|row| row.starts_with("never|")).map(str::to_owned);
        let gaps = row.and_then(|row| row.split('|').nth(17)?.parse::<usize>().ok());
        let text = saved();
        dismissed(&text) > 0 && gaps == Some(all(&text) - dismissed(&text))
    });
}

fn shown(relay: &Relay, what: &str) -> String {
    relay.psql("dbname=walrelay", &[&format!("show {what}")]).expect("it is answered")
}

/// Somebody sees the trouble, and gives the order that ends it.
fn dismiss(relay: &Relay, trouble: &str, order: &str) {
    wait_until("the trouble", || shown(relay, "troubles").contains(trouble));
    relay.psql("dbname=walrelay", &[order]).expect("it is obeyed");
    assert!(!shown(relay, "troubles").contains(trouble), "{}", shown(relay, "troubles"));
}

fn other_content_is_kept_aside(server: &Server) {
    let primary = primary(server);
    let targets = Targets::new().directory("plain", "");
    let foreign = primary.switch_wal();
    let next = WalFileName::parse(&foreign, primary.seg_size()).expect("a segment's name");
    let next = WalFileName::new(next.tli, next.segno.next()).format(primary.seg_size());
    // Nobody has written to it for long.
    let other = fs::File::create(targets.dir("plain").join(&next)).expect("the directory is ours");
    std::io::Write::write_all(&mut &other, b"another cluster's").expect("there is room");
    other.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).expect("it is ours");
    let relay = targets.archiving(relay_below(&primary)).start();
    assert_eq!(primary.switch_wal(), next);
    primary.sql("create table t as select 1");
    let last = primary.switch_wal();
    wait_for_file(&targets.dir("plain"), &last, &relay);
    relay.log().wait_for("with different content; ours is kept as");
    let aside = fs::read_dir(targets.dir("plain")).expect("the directory is ours").filter_map(Result::ok);
    let aside =
        aside.map(|entry| entry.path()).find(|path| path.display().to_string().contains(".conflict-"));
    let ours = fs::read(aside.expect("the log says so")).expect("it is ours");
    assert!(ours == fs::read(primary.wal_dir().join(&next)).expect("the primary keeps it"));
    assert_eq!(fs::read(targets.dir("plain").join(&next)).expect("it stays"), b"another cluster's");
    dismiss(&relay, "archive_conflict|plain|", "dismiss conflicts");
}

fn barman_cloud_restores_what_is_archived(server: &Server) {
    let primary = primary(server);
    let moto = Moto::start("wal");
    let python = Python::require();
    let mut targets = Targets::new();
    let place = "url = \"s3://wal/backups/main\"\nlayout = \"barman\"\ncompression = \"gzip\"";
    targets.config += &format!("[archive.barman]\n{place}\n{}", moto.options());
    let relay = targets.archiving(relay_below(&primary)).start();
    primary.pgbench_init(1);
    let last = primary.switch_wal();
    wait_for_object(&targets.repository("barman"), &last);

    let restored = targets.scratch.dir("restored");
    let finished = primary.finished_segments();
    for name in &finished[finished.len() - 3..] {
        let (endpoint, path) = (moto.endpoint(), restored.join(name).display().to_string());
        let place = ["--cloud-provider", "aws-s3", "--endpoint-url", &endpoint, "s3://wal/backups", "main"];
        let args = [&place[..], &[name.as_str(), &path]].concat();
        let mut command = python.lasting("from barman.clients.cloud_walrestore import main\nmain()", &args);
        let packages = format!("{}:{}", python.packages().display(), moto.packages().display());
        command.env("PYTHONPATH", packages).env("AWS_DEFAULT_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        Process::spawn("barman-cloud-wal-restore", command, &targets.scratch.join("log")).wait_success();
    }
    compare::assert_segments(&primary, &restored, 3);
    relay.assert_calm();
}

fn a_barman_servers_directory_is_a_target(server: &Server) {
    let primary = primary(server);
    let settings = format!("conninfo = {}\nbackup_method = postgres\narchiver = on\n", primary.conninfo());
    let barman = Barman::new(server, &settings, "");
    let home = barman.home().join("acc");
    fs::create_dir(&home).expect("Barman's home is ours");
    let mut targets = Targets::new();
    let place = format!("url = \"file://{}\"\nlayout = \"barman\"\ncompression = \"gzip\"", home.display());
    targets.config += &format!("[archive.barman]\n{place}\n");
    let relay = targets.archiving(relay_below(&primary)).start();
    primary.pgbench_init(1);
    let last = primary.switch_wal();
    wait_for_object(&targets.repository("barman"), &last);

    // Barman runs under another account than the relay, and takes what is its own.
    let mut give = walrelay_testkit::tied_command("chmod");
    assert!(give.args(["-R", "a+rwX"]).arg(&home).status().expect("there is a chmod").success());
    let restored = targets.scratch.dir("restored");
    let finished = primary.finished_segments();
    for name in &finished[finished.len() - 3..] {
        barman.ok(&["get-wal", "acc", name, "-o", &restored.display().to_string()]);
    }
    compare::assert_segments(&primary, &restored, 3);
    barman.ok(&["rebuild-xlogdb", "acc"]);
    let wals = fs::read_dir(home.join("wals")).expect("it is there").filter_map(Result::ok);
    let database =
        wals.map(|entry| entry.path()).find(|path| path.display().to_string().ends_with("xlog.db"));
    let listed = fs::read_to_string(database.expect("Barman has made it")).expect("it is a text");
    assert!(listed.contains(&last) && !listed.contains("sha256"), "{listed}");
    relay.assert_calm();
}
