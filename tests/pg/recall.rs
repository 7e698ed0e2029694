//! WAL that has left the relay's disk comes back from the archive, by streaming alone.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walrelay_proto::{Lsn, TimelineId, WalFileName};
use walrelay_testkit::{
    Cluster, Moto, Receivewal, Relay, RelayBuilder, Scratch, Server, compare, on_every_version,
    on_one_version, on_one_version_mostly, wait_until,
};

use crate::relay_below;

on_every_version!(what_is_nowhere_has_been_removed, a_timeline_switch_in_archived_wal);
on_one_version_mostly!(
    consumers_catch_up_over_ten_times_the_quota,
    a_standby_catches_up_from_s3,
    a_target_that_is_down_is_waited_for,
    slots_do_not_count_on_what_retention_removes
);
on_one_version!(a_start_that_takes_its_time_loses_no_slot);

/// What the relay keeps for slots.
const QUOTA: &str = "4MB";
const QUOTA_BYTES: u64 = 4 << 20;

struct Setting {
    primary: Cluster,
    relay: Relay,
    archive: PathBuf,
    scratch: Scratch,
}

impl Setting {
    fn new(server: &Server) -> Setting {
        let scratch = Scratch::new("archive");
        let primary = Setting::primary(server, &scratch);
        let relay = Setting::relay(&primary, "--archive", &Setting::url(&scratch)).start();
        Setting { archive: scratch.join("wal"), primary, relay, scratch }
    }

    fn primary(server: &Server, scratch: &Scratch) -> Cluster {
        scratch.dir("wal");
        Cluster::builder(server).name("a").seg_mb(1).start()
    }

    fn url(scratch: &Scratch) -> String {
        format!("file://{}", scratch.join("wal").display())
    }

    /// `option` and `value` lead to the archive.
    fn relay(primary: &Cluster, option: &str, value: &str) -> RelayBuilder {
        let args = ["--wal-keep-size", "0", "--max-slot-wal-keep-size", QUOTA, option, value];
        args.into_iter().fold(relay_below(primary), |builder, arg| builder.arg(arg))
    }

    /// Writes much more than the relay keeps, and waits until what came before is in the archive only.
    fn write_beyond(&self, quotas: u64) {
        self.write_with(&self.primary, quotas);
    }

    fn write_with(&self, primary: &Cluster, quotas: u64) {
        let last = write_beyond(&self.relay, primary, quotas);
        self.wait_until_archived(&last);
    }

    fn wait_until_archived(&self, name: &str) {
        wait_until(format_args!("{name} in the archive"), || self.archive.join(name).exists());
    }

    fn name_at(&self, lsn: Lsn) -> String {
        let size = self.primary.seg_size();
        WalFileName::new(TimelineId::FIRST, lsn.seg_at(size)).format(size)
    }
}

/// Writes this many times what the relay keeps, and waits until it has let go of the oldest; the last segment.
fn write_beyond(relay: &Relay, primary: &Cluster, quotas: u64) -> String {
    let begin = primary.flush_lsn();
    while primary.flush_lsn().since(begin) < quotas * QUOTA_BYTES {
        primary.sql("create table filler as select generate_series(1, 40000) i; drop table filler");
    }
    primary.sql("create table if not exists t (i int); insert into t select generate_series(1, 1000)");
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    let first = WalFileName::new(primary.timeline(), begin.seg_at(primary.seg_size()));
    let first = relay.wal_dir().join(first.format(primary.seg_size()));
    wait_until("old WAL to be removed", || !first.exists());
    last
}

fn consumers_catch_up_over_ten_times_the_quota(server: &Server) {
    let mut it = Setting::new(server);
    it.relay.create_slots(&["b", "receivewal"]);
    let mut b = it.primary.standby().name("b").follow(&it.relay.conninfo()).slot("b").start();
    let mut c = it.primary.standby().name("c").follow(&it.relay.conninfo()).start();
    let begin = it.relay.slot_lsn("receivewal").expect("WAL is reserved");
    b.stop();
    c.stop();
    it.write_beyond(10);
    it.relay.restart();

    // Slots hold nothing here and are not lost for it.
    let status = it.relay.psql("dbname=walrelay", &["select wal_status from pg_replication_slots"]);
    assert_eq!(status.map_err(|error| error.0), Ok("extended\nextended".to_owned()));
    assert_eq!(it.relay.slot_lsn("receivewal"), Some(begin));
    b.start();
    c.start();
    for standby in [&b, &c] {
        standby.wait_for_replay(it.primary.settled_lsn());
        compare::assert_dumps(&it.primary, standby);
    }
    let receivewal = Receivewal::start(server, &it.relay.conninfo(), "receivewal");
    receivewal.wait_for_segment(&it.primary.switch_wal());
    compare::assert_segments(&it.primary, &receivewal.wal_dir(), 40);
    assert!(receivewal.wal_dir().join(it.name_at(begin)).exists());
    assert!(it.relay.log().lines_with("invalidating", Default::default()).is_empty());
    let recalled = it.relay.data_dir().join("recalled");
    let files = fs::read_dir(recalled).expect("made at the start").count();
    assert_eq!(files, 0, "segments fetched back have no names");
}

fn a_standby_catches_up_from_s3(server: &Server) {
    let (scratch, moto) = (Scratch::new("archive"), Moto::start("wal"));
    let target = "[archive.s3]\nurl = \"s3://wal/main\"\ncompression = \"zstd\"\n";
    let conf = scratch.secret("walrelay.toml", &(target.to_owned() + &moto.options()));
    let primary = Setting::primary(server, &scratch);
    let relay = Setting::relay(&primary, "--config", &conf.display().to_string()).start();
    relay.create_slot("b");
    let mut b = primary.standby().name("b").follow(&relay.conninfo()).slot("b").start();
    b.stop();
    write_beyond(&relay, &primary, 10);
    b.start();
    b.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &b);
    assert_eq!(b.sql("show restore_command"), "");
    assert!(b.log().lines_with("has already been removed", Default::default()).is_empty());
}

fn a_target_that_is_down_is_waited_for(server: &Server) {
    let it = Setting::new(server);
    it.relay.create_slots(&["b", "live"]);
    let mut b = it.primary.standby().name("b").follow(&it.relay.conninfo()).slot("b").start();
    let live = it.primary.standby().name("live").follow(&it.relay.conninfo()).slot("live").start();
    b.stop();
    it.write_beyond(5);
    let away = it.scratch.join("away");
    fs::rename(&it.archive, &away).expect("both are ours");
    let mark = it.relay.log().mark();
    b.start();
    it.relay.log().wait_for_after(mark, "will try again");

    // It holds up nobody, and is not given up itself.
    it.primary.sql("create table meanwhile as select 1");
    live.wait_for_replay(it.primary.flush_lsn());
    b.wait_for_sql("select status from pg_stat_wal_receiver", "streaming");
    fs::rename(&away, &it.archive).expect("both are ours");
    b.wait_for_replay(it.primary.settled_lsn());
    compare::assert_dumps(&it.primary, &b);
    assert!(b.log().lines_with("has already been removed", Default::default()).is_empty());
}

fn what_is_nowhere_has_been_removed(server: &Server) {
    let it = Setting::new(server);
    let mut b = it.primary.standby().name("b").follow(&it.relay.conninfo()).start();
    b.stop();
    let begin = it.primary.flush_lsn();
    it.write_beyond(5);
    let missing = it.name_at(begin.advance(3 * it.primary.seg_size().bytes()));
    let kept = remove(&it.archive, &missing, &it.scratch);
    b.start();
    b.log().wait_for(&format!("requested WAL segment {missing} has already been removed"));
    // It asks for ever, which nobody would see who does not look at its log.
    let ask = |what: &str| it.relay.psql("dbname=walrelay", &[what]).expect("it is answered");
    wait_until("the relay to tell of it", || ask("show troubles").contains("commands_refused|b|"));
    let told = ask("show troubles");
    assert!(
        told.contains(&format!("{missing} has already been removed; WAL that it needs is gone")),
        "{told}"
    );
    let stats = ask("show stats");
    let refused = stats.lines().find_map(|line| line.strip_prefix("command_refused_wal_removed|"));
    assert!(refused.is_some_and(|count| count.parse::<u64>().expect("a number") > 2), "{stats}");
    let fields = ask("show recalls");
    let fields: Vec<&str> = fields.split('|').collect();
    let [sources, in_flight, fetched, bytes, failures, error, at] = fields[..] else { panic!("{fields:?}") };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    assert!(number(sources) == 1 && number(in_flight) < 6 && number(failures) > 2, "{fields:?}");
    assert_eq!(number(bytes), number(fetched) * it.primary.seg_size().bytes());
    assert!(error.contains("has already been removed") && at.starts_with("20"), "{fields:?}");
    put_back(&it.archive, kept);
    b.wait_for_replay(it.primary.settled_lsn());
    wait_until("all to be well", || !ask("show troubles").contains("commands_refused"));
}

fn slots_do_not_count_on_what_retention_removes(server: &Server) {
    let scratch = Scratch::new("archive");
    let conf = scratch.join("walrelay.toml");
    let primary = Setting::primary(server, &scratch);
    let target = format!("[archive.main]\nurl = \"{}\"\nkeep-size = \"6MB\"\n", Setting::url(&scratch));
    fs::write(&conf, target).expect("the directory is ours");
    let mut relay = Setting::relay(&primary, "--config", &conf.display().to_string()).start();
    relay.create_slot("b");
    let mut b = primary.standby().name("b").follow(&relay.conninfo()).slot("b").start();
    b.stop();
    let status = |relay: &Relay| {
        let status = relay.psql("dbname=walrelay", &["select wal_status from pg_replication_slots"]);
        status.map_err(|error| error.0)
    };
    write_beyond(&relay, &primary, 5);
    assert_eq!(status(&relay), Ok("extended".to_owned()));

    // Retention is applied at the start, and then once an hour.
    relay.restart();
    relay.log().wait_for("old objects from archive target \"main\"");
    wait_until("the slot to be lost", || status(&relay) == Ok("lost".to_owned()));
    b.start();
    b.log().wait_for("can no longer access replication slot \"b\"");
}

/// Retention does not know who needs WAL before the archive has been opened, and that may take longer than it waits.
fn a_start_that_takes_its_time_loses_no_slot(server: &Server) {
    const KEY: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n";
    let scratch = Scratch::new("archive");
    let (conf, key) = (scratch.join("walrelay.toml"), scratch.secret("key", KEY));
    let primary = Setting::primary(server, &scratch);
    let url = Setting::url(&scratch);
    let target = format!("[archive.main]\nurl = \"{url}\"\nencryption-key-file = \"{}\"\n", key.display());
    fs::write(&conf, target).expect("the directory is ours");
    let mut relay = Setting::relay(&primary, "--config", &conf.display().to_string()).start();
    relay.create_slot("b");
    write_beyond(&relay, &primary, 5);
    relay.terminate();

    fs::remove_file(&key).expect("it is ours");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &key, rustix::fs::FileType::Fifo, mode, 0).expect("it is ours");
    relay.spawn();
    // Somebody reads it from here on, and gets nothing for twice as long as retention waits.
    let open = || fs::File::options().write(true).open(&key).expect("it is there");
    let (mut pipe, since) = (open(), Instant::now());
    wait_until("retention to have had its turns", || since.elapsed() > Duration::from_secs(11));
    pipe.write_all(KEY.as_bytes()).expect("it is read");
    fs::remove_file(&key).expect("it is ours");
    scratch.secret("key", KEY);
    drop(pipe);
    relay.wait_until_it_answers();
    let status = relay.psql("dbname=walrelay", &["select wal_status from pg_replication_slots"]);
    assert_eq!(status.map_err(|error| error.0), Ok("extended".to_owned()));
    assert!(relay.log().lines_with("invalidating", Default::default()).is_empty());
}

/// Takes a segment and its checksum away.
fn remove(archive: &Path, name: &str, scratch: &Scratch) -> Vec<(PathBuf, String)> {
    let files = [name.to_owned(), format!("{name}.sha256")];
    let there = files.into_iter().filter(|file| archive.join(file).exists());
    let taken = there.map(|file| (scratch.join(&file), file));
    taken.inspect(|(to, file)| fs::rename(archive.join(file), to).expect("both are ours")).collect()
}

fn put_back(archive: &Path, files: Vec<(PathBuf, String)>) {
    // The checksum last, as the archiver does it.
    for (from, file) in files {
        fs::rename(from, archive.join(file)).expect("both are ours");
    }
}

fn a_timeline_switch_in_archived_wal(server: &Server) {
    let scratch = Scratch::new("archive");
    let mut a = Setting::primary(server, &scratch);
    let b = a.standby().name("b").start();
    let relay =
        Setting::relay(&a, "--archive", &Setting::url(&scratch)).upstream(&Relay::hosts(&[&a, &b])).start();
    relay.create_slot("c");
    let mut c = a.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    c.stop();
    let mut it = Setting { archive: scratch.join("wal"), primary: b, relay, scratch };
    it.write_with(&a, 2);
    it.primary.wait_for_replay(a.settled_lsn());
    a.stop();
    it.primary.promote();
    it.relay.wait_for_timeline(2);
    it.write_beyond(5);
    c.start();
    c.wait_for_replay(it.primary.settled_lsn());
    compare::assert_dumps(&it.primary, &c);
    assert_eq!(c.sql("select received_tli from pg_stat_wal_receiver"), "2");
    it.primary.stop();
}
