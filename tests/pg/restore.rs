//! `walrelay restore` as `restore_command`: point-in-time recovery, and what must stop recovery; and `archive verify`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use walrelay_proto::{Lsn, TimelineId, WalFileName};
use walrelay_testkit::{
    Cluster, Disk, Moto, Relay, Scratch, Server, on_every_version, on_one_version, tied_command, wait_until,
};

use crate::{relay_below, walrelay};

on_every_version!(
    recovery_to_every_kind_of_target_from_every_kind_of_place,
    missing_and_broken_are_told_apart,
    a_broken_archive_stops_recovery,
    the_last_commit_before_a_disaster,
    segments_are_fetched_ahead,
    verify_heal_list_and_cleanup,
);

on_one_version!(a_full_disk_is_told);

/// A base backup of a cluster, what was written after it, and places that have the WAL.
struct Setting {
    primary: Cluster,
    relay: Relay,
    archive: PathBuf,
    scratch: Scratch,
    binary: PathBuf,
    /// The relay's configuration: the archives `main`, a directory, and `s3`.
    conf: PathBuf,
    _moto: Moto,
}

impl Setting {
    fn new(server: &Server) -> Setting {
        let scratch = Scratch::new("archive");
        let archive = scratch.dir("wal");
        let primary = Cluster::builder(server).name("a").seg_mb(1).start();
        let moto = Moto::start("wal");
        let text = format!(
            "[archive.main]\nurl = \"file://{}\"\n[archive.s3]\nurl = \"s3://wal/main\"\n\
             compression = \"zstd\"\npartial-interval = \"500ms\"\n{}",
            archive.display(),
            moto.options()
        );
        let conf = scratch.shared_secret("walrelay.toml", &text);
        let relay = relay_below(&primary).arg("--config").arg(&conf.display().to_string()).start();
        relay.create_slot("keep");
        let binary = readable_binary(&scratch);
        Setting { primary, relay, archive, scratch, binary, conf, _moto: moto }
    }

    fn archive_url(&self) -> String {
        format!("file://{}", self.archive.display())
    }

    /// What `walrelay archive list` says that `s3` reaches to.
    fn archived_on_s3(&self) -> Lsn {
        let mut command = tied_command(&self.binary);
        command.args(["archive", "list", "--json", "--from", "s3", "--config"]).arg(&self.conf);
        let output = command.output().expect("the program is there");
        let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let stretches = listed[0]["stretches"].as_array().cloned().unwrap_or_default();
        let to = stretches.last().and_then(|stretch| stretch["to"].as_str()?.parse().ok());
        to.unwrap_or(Lsn::INVALID)
    }

    fn finish_segment(&self) -> String {
        let last = self.primary.switch_wal();
        self.relay.wait_for_segment(&last);
        wait_until(format_args!("{last} in the archive"), || self.archive.join(&last).exists());
        last
    }

    /// Lets the servers' account read the archive, which belongs to the relay's.
    fn open_archive(&self) {
        let mut command = tied_command("chmod");
        assert!(
            command.args(["-R", "a+rX"]).arg(&self.archive).status().expect("there is a chmod").success()
        );
    }

    /// Recovers a copy of the backup with WAL from `place`; returns it when it is up.
    fn recover(&self, backup: &Path, name: &str, place: &str, target: &str) -> Cluster {
        self.open_archive();
        let dir = self.scratch.join(&format!("recovered-{name}"));
        copy_dir(backup, &dir);
        let conf = dir.join("postgresql.conf");
        let old = fs::read_to_string(&conf).expect("a backup has one");
        let command = format!("\"{}\" restore {place} %f %p", self.binary.display());
        let new = format!("restore_command = '{command}'\n{target}\nrecovery_target_action = promote\n");
        fs::write(&conf, old + "\n" + &new).expect("it was readable");
        fs::write(dir.join("recovery.signal"), "").expect("the directory is ours");
        Cluster::from_data_dir(self.primary.server(), name, &dir)
    }

    fn restore(&self, place: &[&str], file: &str, to: &Path) -> Output {
        let mut command = tied_command(&self.binary);
        command.arg("restore").args(place).arg(file).arg(to);
        command.output().expect("the program is there")
    }
}

/// Servers run under another account, which need not be able to reach the build directory.
pub(crate) fn readable_binary(scratch: &Scratch) -> PathBuf {
    let (built, ours) = (walrelay(), scratch.join("walrelay"));
    fs::hard_link(&built, &ours)
        .or_else(|_| fs::copy(&built, &ours).map(drop))
        .expect("there is room for it");
    ours
}

/// Like `cp -a`, ownership included.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    let mut command = tied_command("cp");
    assert!(command.arg("-a").arg(from).arg(to).status().expect("there is a cp").success());
}

/// What a server's account may read.
fn readable_copy(from: &Path, to: &Path) {
    copy_dir(from, to);
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    open(to, 0o755);
    open(&to.join("pg_wal"), 0o755);
    let files = fs::read_dir(to.join("pg_wal")).expect("a relay's directory");
    files.for_each(|entry| open(&entry.expect("readable").path(), 0o644));
}

fn recovery_to_every_kind_of_target_from_every_kind_of_place(server: &Server) {
    let it = Setting::new(server);
    let backup = it.scratch.join("backup");
    it.primary.base_backup_to(&backup);
    it.primary.pgbench_init(1);
    it.primary.sql("create table steps (step text)");
    let step = |name: &str| it.primary.sql(&format!("insert into steps values ('{name}')"));
    step("named");
    it.primary.sql("select pg_create_restore_point('here')");
    step("lsn");
    let lsn = it.primary.settled_lsn();
    step("time");
    let time = it.primary.sql("select clock_timestamp()");
    // Inside one transaction, so that its id is the one that commits.
    let xid = it.primary.sql("begin; insert into steps values ('xid'); select pg_current_xact_id(); commit");
    let xid = xid.lines().find(|line| line.parse::<u64>().is_ok()).expect("an id").to_owned();
    step("mistake");
    let last = it.finish_segment();
    let last = WalFileName::parse(&last, it.primary.seg_size()).expect("a segment's name");
    let end = last.segno.end(it.primary.seg_size());
    wait_until("the last segment on S3", || it.archived_on_s3() >= end);

    let directory = it.scratch.join("relay-directory");
    readable_copy(&it.relay.data_dir(), &directory);
    let places = [
        format!("--from {} --prefetch 3", it.archive_url()),
        format!("--config {} --from s3 --prefetch 2", it.conf.display()),
        format!("--data-dir {}", directory.display()),
        format!("--from \"{}\"", it.relay.conninfo()),
    ];
    let targets = [
        ("named", "recovery_target_name = 'here'".to_owned(), 1),
        ("lsn", format!("recovery_target_lsn = '{lsn}'"), 2),
        ("time", format!("recovery_target_time = '{time}'"), 3),
        ("xid", format!("recovery_target_xid = '{xid}'"), 4),
    ];
    for (number, (name, target, steps)) in targets.iter().enumerate() {
        // Each target once, the places in turn, and the last target from all of them.
        let last = number + 1 == targets.len();
        let from = places.iter().enumerate().filter(|(place, _)| last || *place == number % places.len());
        for (place, options) in from {
            let recovered = it.recover(&backup, &format!("{name}{place}"), options, target);
            recovered.wait_for_sql("select pg_is_in_recovery()", "f");
            assert_eq!(
                recovered.sql("select count(*) from steps"),
                steps.to_string(),
                "{name} from {options}"
            );
            assert_eq!(recovered.sql("select count(*) from pgbench_accounts"), "100000");
        }
    }
}

fn missing_and_broken_are_told_apart(server: &Server) {
    let it = Setting::new(server);
    it.primary.pgbench_init(1);
    let last = it.finish_segment();
    let target = it.scratch.join("RECOVERYXLOG");
    let url = it.archive_url();
    let check = |place: &[&str], file: &str, code: i32, said: &str| {
        let output = it.restore(place, file, &target);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{place:?} {file}: {text}");
        // One line, and one that a wait has begun.
        assert!(text.contains(said) && text.lines().count() <= 2, "{text}");
        assert_eq!(target.exists(), code == 0);
        let _ = fs::remove_file(&target);
    };
    check(&["--from", &url], &last, 0, "");
    check(&["--from", &url], "00000002.history", 1, "");
    let relay = it.relay.conninfo();
    check(&["--from", &relay], &last, 0, "");
    check(&["--from", &relay], "00000002.history", 1, "");
    check(&["--from", &relay, "--from", &url], "0000000100000000000000EE", 1, "");
    // What nobody has finished comes from the relay, up to its last record.
    let current = it.primary.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    it.relay.wait_for_flush(it.primary.settled_lsn());
    check(&["--from", &url, "--from", &relay], &current, 0, "");

    check(&["--timeout", "1s", "--from", "file:///nonexistent/archive"], &last, 200, "does not exist");
    check(
        &["--timeout", "1s", "--from", "host=127.0.0.1 port=1 user=x", "--from", &url],
        "00000002.history",
        200,
        "cannot be reached",
    );
    check(&["--from", "nonsense"], &last, 200, "is no place to look in");
    // A bucket that does not exist is no archive that ends here.
    let conf = it.conf.display().to_string();
    let text = fs::read_to_string(&conf).expect("it was written").replace("s3://wal/main", "s3://wall/main");
    let mistyped = it.scratch.secret("mistyped.toml", &text).display().to_string();
    check(&["--config", &conf, "--from", "s3"], "0000000100000000000000EE", 1, "");
    let mistyped = ["--timeout", "1s", "--config", &mistyped, "--from", "s3"];
    check(&mistyped, "0000000100000000000000EE", 200, "NoSuchBucket");
    check(&mistyped, "00000002.history", 200, "NoSuchBucket");
    assert_eq!(it.restore(&["--no-such-option"], &last, &target).status.code(), Some(200));
    let spoiled = it.archive.join(&last);
    let mut bytes = fs::read(&spoiled).expect("it is there");
    bytes[5000] ^= 1;
    fs::write(&spoiled, &bytes).expect("ours");
    check(&["--from", &url], &last, 200, "is damaged");
    check(&["--from", &url, "--from", &relay], &last, 0, "");
    fs::remove_file(spoiled).expect("ours");
}

fn segments_are_fetched_ahead(server: &Server) {
    let it = Setting::new(server);
    it.primary.pgbench_init(1);
    it.finish_segment();
    let names: Vec<String> = it.primary.finished_segments();
    let names: Vec<&String> = names.iter().filter(|name| it.archive.join(name).exists()).collect();
    let (url, own) = (it.archive_url(), it.scratch.join("spool"));
    let beside = it.scratch.join("walrelay-spool");
    let target = it.scratch.join("RECOVERYXLOG");
    let own_text = own.display().to_string();
    for (spool, options) in [(&beside, vec![]), (&own, vec!["--spool-dir", own_text.as_str()])] {
        let place = [&["--from", url.as_str(), "--prefetch", "2"], &options[..]].concat();
        for asked in 0..4 {
            let output = it.restore(&place, names[asked], &target);
            assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
            let original = fs::read(it.primary.wal_dir().join(names[asked])).expect("the primary keeps it");
            assert!(fs::read(&target).expect("it was restored") == original, "{}", names[asked]);
            for ahead in &names[asked + 1..asked + 3] {
                wait_until(format_args!("{ahead} in {}", spool.display()), || {
                    dir_in(spool).join(ahead).exists()
                });
            }
        }
        assert_eq!(fs::read_to_string(dir_in(spool).join("worker.log")).expect("it was started"), "");
        // Nobody can look, and the worker ends.
        fs::remove_dir_all(spool).expect("ours");
    }
}

/// Which disk, how much there is and is wanted, and what to do; and what is fetched ahead does not take the room of what is wanted.
fn a_full_disk_is_told(server: &Server) {
    let it = Setting::new(server);
    it.primary.pgbench_init(1);
    it.finish_segment();
    let names: Vec<String> = it.primary.finished_segments();
    let names: Vec<&String> = names.iter().filter(|name| it.archive.join(name).exists()).collect();
    let (url, disk) = (it.archive_url(), Disk::tmpfs(8));
    let (target, spool) = (disk.join("RECOVERYXLOG"), disk.join("spool").display().to_string());
    disk.fill_but(200 << 10);
    let output = it.restore(&["--from", &url, "--prefetch", "0"], names[0], &target);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(200), "{text}");
    let said = format!("could not write \"{}\": there is no room: it takes 1.0 MB, and 0.", target.display());
    assert!(text.contains(&said) && text.contains("MB are free on its disk; make room there"), "{text}");
    // Room for one, and for no two.
    disk.empty();
    disk.fill_but(1900 << 10);
    let elsewhere = it.scratch.join("RECOVERYXLOG");
    let place = ["--from", url.as_str(), "--prefetch", "2", "--spool-dir", spool.as_str()];
    let output = it.restore(&place, names[0], &elsewhere);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let log = || fs::read_to_string(dir_in(Path::new(&spool)).join("worker.log")).unwrap_or_default();
    wait_until("the worker to say why it fetches nothing", || log().contains("nothing is fetched ahead: 1."));
    assert!(
        log().contains("and 2.0 MB have to be") && log().contains("--spool-dir on another disk"),
        "{}",
        log()
    );
    assert!(!dir_in(Path::new(&spool)).join(names[1]).exists());
    disk.empty();
    wait_until("it to fetch", || dir_in(Path::new(&spool)).join(names[1]).exists());
    fs::remove_dir_all(&spool).expect("ours");
}

/// The directory of the only key.
fn dir_in(spool: &Path) -> PathBuf {
    let keys = fs::read_dir(spool).expect("something was wanted").map(|key| key.expect("ours").path());
    let mut keys = keys.filter(|key| key.is_dir());
    let dir = keys.next().expect("something was wanted");
    assert_eq!(keys.next(), None, "the arguments are the same");
    dir
}

fn a_broken_archive_stops_recovery(server: &Server) {
    let it = Setting::new(server);
    let backup = it.scratch.join("backup");
    it.primary.base_backup_to(&backup);
    it.primary.pgbench_init(1);
    let end = it.primary.settled_lsn();
    it.finish_segment();
    let size = it.primary.seg_size();
    let before =
        |bytes: u64| WalFileName::new(TimelineId::FIRST, Lsn::seg_at(end.rewind(bytes), size)).format(size);
    // Two in a row: what lies next to the first one is missing, too.
    let (hole, next) = (before(4 * size.bytes()), before(3 * size.bytes()));
    for file in [&hole, &next].into_iter().flat_map(|name| [name.clone(), format!("{name}.sha256")]) {
        fs::rename(it.archive.join(&file), it.scratch.join(&file)).expect("both are ours");
    }

    it.open_archive();
    let dir = it.scratch.join("stopped");
    copy_dir(&backup, &dir);
    let command = format!("\"{}\" restore --from {} %f %p", it.binary.display(), it.archive_url());
    let conf = fs::read_to_string(dir.join("postgresql.conf")).expect("a backup has one");
    fs::write(dir.join("postgresql.conf"), format!("{conf}\nrestore_command = '{command}'\n"))
        .expect("it was readable");
    fs::write(dir.join("recovery.signal"), "").expect("the directory is ours");
    let log = Cluster::fails_to_start(server, "stopped", &dir);
    assert!(log.contains(&format!("\"{hole}\" is missing in the archive although")), "{log}");
    assert!(log.contains("FATAL") && log.contains("200"), "{log}");
}

fn the_last_commit_before_a_disaster(server: &Server) {
    let mut it = Setting::new(server);
    let backup = it.scratch.join("backup");
    it.primary.base_backup_to(&backup);
    it.primary.sql("create table t as select generate_series(1, 1000) as i");
    it.finish_segment();
    it.primary.sql("insert into t values (1001)");
    let committed = it.primary.flush_lsn();
    wait_until("the tail on S3", || it.archived_on_s3() >= committed);
    it.primary.kill9();
    it.relay.kill9();

    let place = format!("--config {} --from s3", it.conf.display());
    let recovered = it.recover(&backup, "last", &place, "recovery_target_timeline = latest");
    recovered.wait_for_sql("select pg_is_in_recovery()", "f");
    assert_eq!(recovered.sql("select max(i) from t"), "1001");
}

fn verify_heal_list_and_cleanup(server: &Server) {
    let it = Setting::new(server);
    it.primary.pgbench_init(1);
    let last = it.finish_segment();
    let url = it.archive_url();
    let run = |args: &[&str]| {
        let output = tied_command(&it.binary).args(args).output().expect("the program is there");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, said) = run(&["archive", "verify", "--from", &url]);
    assert_eq!(code, Some(0), "{said}");
    let (code, listed) = run(&["archive", "list", "--json", "--from", &url]);
    assert!(
        code == Some(0) && listed.contains("\"timeline\": 1") && listed.contains("\"last_commit\": \"20"),
        "{listed}"
    );

    let size = it.primary.seg_size();
    let end = WalFileName::parse(&last, size).expect("a segment's name").segno;
    let back = |n: u64| {
        WalFileName::new(TimelineId::FIRST, walrelay_proto::SegNo::new(end.as_u64() - n)).format(size)
    };
    let bad = it.archive.join(back(2));
    let mut bytes = fs::read(&bad).expect("it is there");
    bytes[100_000] ^= 1;
    fs::write(&bad, bytes).expect("ours");
    fs::remove_file(it.archive.join(back(3))).expect("ours");
    fs::remove_file(it.archive.join(back(3) + ".sha256")).expect("ours");
    let (code, said) = run(&["archive", "verify", "--from", &url]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("damaged: {}", back(2))), "{said}");
    assert!(said.contains(&format!("missing: {}", back(3))), "{said}");
    let data = it.relay.data_dir().display().to_string();
    let (code, said) = run(&["archive", "verify", "--heal", "--json", "--data-dir", &data, "--from", &url]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("healed_from") && said.contains(&back(2)), "{said}");
    let (code, said) = run(&["archive", "verify", "--from", &url]);
    assert_eq!(code, Some(0), "{said}");

    let (code, would) = run(&["archive-cleanup", "-n", "--from", &url, &back(2)]);
    assert!(code == Some(0) && would.contains(&back(3)) && !would.contains(&back(2)), "{would}");
    assert!(it.archive.join(back(3)).exists());
    let (code, said) = run(&["archive-cleanup", "--from", &url, &back(2)]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!it.archive.join(back(3)).exists() && it.archive.join(back(2)).exists());
    assert_eq!(run(&["archive", "verify", "--from", &url]).0, Some(0));
    assert_eq!(run(&["archive-cleanup", "--from", &url, "nonsense"]).0, Some(2));
}
