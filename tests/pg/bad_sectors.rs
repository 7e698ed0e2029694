//! A disk of which pieces cannot be read or written: who does not need them goes on, who does is told, and nothing that could
//! not be written is confirmed.

use std::fs;
use std::path::{Path, PathBuf};

use walrelay_proto::Lsn;
use walrelay_testkit::powercut::{Bad, FileSystem, PowerDisk};
use walrelay_testkit::{Cluster, Receivewal, Relay, Scratch, Server, compare, on_one_version, wait_until};

use crate::relay_below;

on_one_version!(
    what_cannot_be_written_ends_the_relay_and_a_restart_goes_on_from_what_is_durable,
    who_wants_what_cannot_be_read_is_cut_and_the_others_go_on,
    what_cannot_be_read_comes_from_the_archive,
    what_cannot_be_read_is_archived_when_it_can_be_and_the_others_before,
    slots_are_saved_elsewhere_when_their_place_is_bad,
    a_start_says_which_state_it_cannot_read_and_needs_what_it_cannot_do_without,
);

fn disk() -> PowerDisk {
    PowerDisk::start(FileSystem::Ext4, 160)
}

/// All of a file.
fn whole(file: &Path) -> std::ops::Range<u64> {
    0..fs::metadata(file).expect("it is there").len()
}

fn unfinished(relay: &Relay) -> PathBuf {
    let entries = fs::read_dir(relay.wal_dir()).expect("it is there").flatten().map(|entry| entry.path());
    let is_partial = |path: &PathBuf| path.extension().is_some_and(|end| end == "partial");
    entries.filter(is_partial).max().expect("a segment is being received")
}

/// What the primary was told.
fn confirmed(primary: &Cluster) -> Lsn {
    let slot = "select restart_lsn from pg_replication_slots where slot_name = 'walrelay'";
    primary.sql(slot).parse().expect("a position")
}

fn write(primary: &Cluster, rows: u32) {
    primary.sql(&format!("insert into t select i, repeat('x', 500) from generate_series(1, {rows}) i"));
}

fn what_cannot_be_written_ends_the_relay_and_a_restart_goes_on_from_what_is_durable(server: &Server) {
    let disk = disk();
    let mut primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).data_dir(disk.join("data")).start();
    primary.sql("create table t (i int, filler text)");
    primary.switch_wal();
    relay.wait_for_flush(primary.settled_lsn());
    let bad = unfinished(&relay);
    disk.spoil(&bad, 100_000..whole(&bad).end, Bad::Writes);
    write(&primary, 3000);
    assert_eq!(relay.wait_exit(), Some(6), "{}", relay.log().tail());
    relay.log().wait_for("could not sync");
    let before = confirmed(&primary);

    // The disk has other sectors for them, the primary is away: all there is comes from the disk.
    let end = primary.flush_lsn();
    primary.stop();
    disk.heal();
    relay.start();
    assert!(relay.flush_lsn() >= before, "{} was confirmed\n{}", before, relay.log().tail());
    relay.log().wait_for("because of a failed sync");
    primary.start();
    relay.wait_for_flush(end);
    write(&primary, 3000);
    relay.wait_for_segment(&primary.switch_wal());
    compare::assert_segments(&primary, &relay.wal_dir(), 4);
}

/// A stopped relay with some finished segments that nothing of is in memory, and their names.
fn with_segments(primary: &Cluster, disk: &PowerDisk, relay: &mut Relay) -> Vec<String> {
    primary.sql("create table if not exists t (i int, filler text)");
    let mut names = Vec::new();
    for _ in 0..6 {
        write(primary, 500);
        names.push(primary.switch_wal());
    }
    relay.wait_for_segment(&names[5]);
    relay.wait_for_flush(primary.settled_lsn());
    relay.terminate();
    disk.remount();
    names
}

fn who_wants_what_cannot_be_read_is_cut_and_the_others_go_on(server: &Server) {
    let disk = disk();
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).data_dir(disk.join("data")).start();
    relay.create_slots(&["late", "good"]);
    let good = Receivewal::start(server, &relay.conninfo(), "good");
    let names = with_segments(&primary, &disk, &mut relay);
    disk.spoil(&relay.wal_dir().join(&names[2]), 300_000..300_001, Bad::Reads);
    relay.start();
    good.wait_for_segment(&names[5]);
    let late = Receivewal::start(server, &relay.conninfo(), "late");
    relay.log().wait_for(&format!("could not read WAL segment {}", names[2]));
    late.wait_for_segment(&names[1]);
    // Neither the stream nor the others are held up, and the slot keeps what its consumer has not got.
    write(&primary, 500);
    let next = primary.switch_wal();
    good.wait_for_segment(&next);
    assert!(relay.slot_lsn("late") < relay.slot_lsn("good"));
    disk.heal();
    late.wait_for_segment(&next);
    compare::assert_segments(&primary, &late.wal_dir(), 7);
    compare::assert_segments(&primary, &good.wal_dir(), 7);
}

fn what_cannot_be_read_comes_from_the_archive(server: &Server) {
    let (disk, scratch) = (disk(), Scratch::new("archive"));
    let archive = scratch.dir("wal");
    let primary = Cluster::builder(server).seg_mb(1).start();
    let url = format!("file://{}", archive.display());
    let relay = relay_below(&primary).data_dir(disk.join("data")).arg("--archive").arg(&url);
    let mut relay = relay.start();
    relay.create_slot("late");
    let names = with_segments(&primary, &disk, &mut relay);
    wait_until("all in the archive", || names.iter().all(|name| archive.join(name).exists()));
    disk.spoil(&relay.wal_dir().join(&names[2]), 300_000..300_001, Bad::Reads);
    relay.start();
    let late = Receivewal::start(server, &relay.conninfo(), "late");
    late.wait_for_segment(&names[5]);
    relay.log().wait_for(&format!("could not read WAL segment {} here", names[2]));
    assert!(!late.log().text().contains("disconnected"), "{}", late.log().tail());
    compare::assert_segments(&primary, &late.wal_dir(), 6);
}

fn what_cannot_be_read_is_archived_when_it_can_be_and_the_others_before(server: &Server) {
    let (disk, scratch) = (disk(), Scratch::new("archive"));
    let archive = scratch.join("wal");
    let primary = Cluster::builder(server).seg_mb(1).start();
    let url = format!("file://{}", archive.display());
    let relay = relay_below(&primary).data_dir(disk.join("data")).arg("--archive").arg(&url);
    // The archive is not there yet.
    let mut relay = relay.start();
    let names = with_segments(&primary, &disk, &mut relay);
    let bad = relay.wal_dir().join(&names[2]);
    disk.spoil(&bad, 300_000..300_001, Bad::Reads);
    scratch.dir("wal");
    relay.start();
    for name in names.iter().filter(|name| **name != names[2]) {
        wait_until(format_args!("{name} in the archive"), || archive.join(name).exists());
    }
    relay.log().wait_for(&format!("could not read \"{}\" for archive target", names[2]));
    assert!(!archive.join(&names[2]).exists(), "nothing of it was archived");
    assert!(bad.exists(), "it is kept");
    relay.wait_for_flush(primary.settled_lsn());
    disk.heal();
    wait_until("it in the archive, too", || archive.join(&names[2]).exists());
    compare::assert_segments(&primary, &archive, 6);
}

fn slots_are_saved_elsewhere_when_their_place_is_bad(server: &Server) {
    let disk = disk();
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).data_dir(disk.join("data")).start();
    relay.create_slot("old");
    relay.wait_for_flush(primary.settled_lsn());
    let state = |name: &str| relay.data_dir().join(name);
    for name in ["slots.toml", "slots.toml.spare"] {
        disk.spoil(&state(name), whole(&state(name)), Bad::Writes);
    }
    let mut refused = Vec::new();
    wait_until("it to be saved elsewhere", || {
        let made = relay.try_command("CREATE_REPLICATION_SLOT new PHYSICAL RESERVE_WAL");
        refused.extend(made.as_ref().err().map(|error| error.0.clone()));
        made.is_ok()
    });
    // Somebody else may have met it first.
    let told = !relay.log().lines_with("could not save replication slots", Default::default()).is_empty();
    let is_that = |error: &String| error.contains("could not save replication slots");
    assert!((told || !refused.is_empty()) && refused.iter().all(is_that), "{refused:?}");
    relay.wait_for_segment(&primary.switch_wal());
    // What was answered is there for the next process, whatever was in memory.
    let confirmed = relay.slot_lsn("new");
    relay.kill9();
    disk.remount();
    relay.start();
    assert_eq!((relay.slot_lsn("new"), relay.slot_lsn("old").is_some()), (confirmed, true));
}

fn a_start_says_which_state_it_cannot_read_and_needs_what_it_cannot_do_without(server: &Server) {
    let (disk, scratch) = (disk(), Scratch::new("archive"));
    let primary = Cluster::builder(server).seg_mb(1).start();
    let archive = scratch.dir("wal");
    let url = format!("file://{}", archive.display());
    let relay = relay_below(&primary).data_dir(disk.join("data")).arg("--archive").arg(&url);
    let mut relay = relay.start();
    relay.create_slot("s");
    let first = primary.switch_wal();
    wait_until("it in the archive", || archive.join(&first).exists());
    let (slot, data) = (relay.slot_lsn("s"), relay.data_dir());
    let needed = [
        ("cluster.toml", "could not read cluster state in"),
        ("slots.toml", "could not read replication slots in"),
        ("timeline.toml", "could not read which timeline is followed in"),
    ];
    for (name, said) in needed {
        relay.terminate();
        disk.remount();
        disk.spoil(&data.join(name), 0..1, Bad::Reads);
        let mark = relay.log().mark();
        relay.spawn();
        assert_eq!(relay.wait_exit(), Some(6), "{name}\n{}", relay.log().tail());
        relay.log().wait_for_after(mark, said);
        disk.heal();
        relay.start();
        assert_eq!(relay.slot_lsn("s"), slot);
    }
    // What these say is found out another way.
    let is_progress = |name: &String| name.starts_with("archive-") && name.ends_with(".toml");
    let names = fs::read_dir(&data).expect("it is there").flatten().map(|entry| entry.file_name());
    let progress: Option<String> = names.filter_map(|name| name.into_string().ok()).find(is_progress);
    for name in ["last-run.toml".to_owned(), progress.expect("it is saved")] {
        relay.terminate();
        disk.remount();
        disk.spoil(&data.join(&name), 0..1, Bad::Reads);
        let mark = relay.log().mark();
        relay.start();
        relay.log().wait_for_after(mark, "could not read ");
        assert!(relay.log().lines_with(&name, mark).iter().any(|line| line.contains("could not read")));
        let next = primary.switch_wal();
        wait_until("it in the archive", || archive.join(&next).exists());
        disk.heal();
    }
    compare::assert_segments(&primary, &archive, 3);
}
