//! Disks that fail: what could not be synced is not confirmed later, and what failed before a sync is tried again.

use walrelay_proto::Lsn;
use walrelay_testkit::{Cluster, Disk, Relay, Server, on_one_version, wait_until};

use crate::relay_below;

on_one_version!(
    what_a_failed_sync_left_in_memory_is_not_confirmed,
    errors_before_a_sync_are_waited_out,
    a_disk_without_fallocate_is_filled_with_zeros,
    a_long_record_needs_few_descriptors
);

/// After the failed sync the kernel takes the pages for clean. They can be read until the file system is mounted anew.
fn what_a_failed_sync_left_in_memory_is_not_confirmed(server: &Server) {
    let backing = Disk::tmpfs(48);
    let disk = Disk::ext4_on(&backing, 160);
    let mut primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).data_dir(disk.join("data")).start();
    primary.sql("create table t (i int, filler text)");
    relay.wait_for_flush(primary.flush_lsn());

    backing.fill_but(0);
    primary.sql("insert into t select i, repeat('x', 500) from generate_series(1, 6000) i");
    assert_eq!(relay.wait_exit(), Some(6), "{}", relay.log().tail());
    let synced: Lsn = primary
        .sql("select restart_lsn from pg_replication_slots where slot_name = 'walrelay'")
        .parse()
        .expect("a position");
    primary.stop();

    // The disk is well again; the relay has nothing but what it left.
    backing.empty();
    relay.start();
    let confirmed = relay.flush_lsn();
    assert!(confirmed >= synced);
    relay.kill9();
    disk.unmount();
    disk.mount();
    relay.start();
    assert_eq!(relay.flush_lsn(), confirmed, "what was confirmed is on the disk\n{}", relay.log().tail());
    relay.log().wait_for("because of a failed sync");
}

fn errors_before_a_sync_are_waited_out(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).start();
    primary.sql("create table t (i int, filler text)");
    relay.wait_for_flush(primary.flush_lsn());
    let cases = [
        ("pwrite64:error=EIO", "could not write WAL segment"),
        ("/^rename:error=EIO", "could not name WAL segment"),
        ("fallocate:error=EDQUOT", "could not allocate WAL segment"),
        ("fallocate:error=ENOSPC", "could not allocate WAL segment"),
    ];
    for (injected, said) in cases {
        let mark = relay.log().mark();
        let trace = relay.trace(&[&format!("inject={injected}")]);
        // More segments than were made ahead.
        primary.sql("insert into t select i, repeat('x', 500) from generate_series(1, 10000) i");
        relay.log().wait_for_after(mark, said);
        drop(trace);
        relay.wait_for_flush(primary.flush_lsn());
        relay.log().wait_for_after(mark, "WAL is received again");
        let lines = relay.log().lines_with(said, mark);
        assert_eq!(lines.len(), 1, "it is said once, not at each attempt: {lines:#?}");
    }
    assert!(relay.is_running());
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    assert_eq!(trouble(&relay), Vec::<String>::new());
}

/// What a relay has no reason to say in these stories.
fn trouble(relay: &Relay) -> Vec<String> {
    let text = relay.log().text();
    let bad = |line: &&str| {
        ["panicked", "may not be durable", "bad WAL", "diverged"].iter().any(|word| line.contains(word))
    };
    text.lines().filter(bad).map(str::to_owned).collect()
}

fn a_disk_without_fallocate_is_filled_with_zeros(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).start();
    relay.wait_for_flush(primary.flush_lsn());
    for error in ["ENOSYS", "EOPNOTSUPP", "EINVAL"] {
        let trace = relay.trace(&[&format!("inject=fallocate:error={error}")]);
        primary.sql("select pg_logical_emit_message(false, 'x', repeat('x', 1500000))");
        relay.wait_for_segment(&primary.switch_wal());
        // The segments that were taken are made anew.
        wait_until(format_args!("{error}\n{}", trace.text()), || trace.text().contains(error));
        drop(trace);
    }
    relay.assert_calm();
}

fn a_long_record_needs_few_descriptors(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).limit("--nofile=140").start();
    relay.wait_for_flush(primary.flush_lsn());
    primary.sql("select pg_logical_emit_message(false, 'x', repeat('x', 130000000))");
    relay.wait_for_segment(&primary.switch_wal());
    assert_eq!(trouble(&relay), Vec::<String>::new());
    assert!(!relay.log().text().contains("Too many open files"), "{}", relay.log().tail());
}
