//! The main drill, on every version: what a cluster with a relay goes through in its life.

use std::path::Path;

use walrelay_testkit::{Cluster, Relay, Scratch, Server, compare, on_versions, wait_until};

use crate::{relay_below, walrelay};

// Its subject is the version.
on_versions!(
    [pg14 = 14, pg15 = 15, pg16 = 16, pg17 = 17, pg18 = 18, pg19 = 19]
    the_main_drill,
    killed_in_mid_record
);
// New in it.
on_versions!([pg19 = 19] a_primary_that_will_not_wait_is_told);

fn the_main_drill(server: &Server) {
    let scratch = Scratch::new("drill");
    let archive = scratch.dir("archive");
    let primary = Cluster::builder(server).name("a").seg_mb(1).start();
    // Beside the relay, to take over later.
    let beside = primary.standby().name("b").start();
    let archive_url = format!("file://{}", archive.display());
    let relay = relay_below(&primary)
        .upstream(&Relay::hosts(&[&primary, &beside]))
        .arg("--archive")
        .arg(&archive_url)
        .start();

    // A backup through the relay, with a slot of the relay's, becomes a standby; another one joins.
    let backup = scratch.join("backup");
    backup_through(&relay, server, &backup, "c");
    let copy = scratch.join("copy");
    backup_through(&relay, server, &copy, "kept");
    let c = primary.standby().name("c").follow(&relay.conninfo()).slot("c").from_backup(backup).start();
    relay.create_slot("d");
    let d = primary.standby().name("d").follow(&relay.conninfo()).slot("d").start();

    // Load, with commits that wait for the relay, and equal content everywhere.
    primary.append_conf("synchronous_standby_names = 'walrelay'\nsynchronous_commit = on");
    primary.reload();
    primary.wait_for_sql(
        "select sync_state from pg_stat_replication where application_name = 'walrelay'",
        "sync",
    );
    primary.pgbench_init(1);
    primary.pgbench(2, 200);
    for standby in [&c, &d] {
        standby.wait_for_replay(primary.settled_lsn());
        compare::assert_dumps(&primary, standby);
    }
    views(&relay, server);
    recovery_from(&archive, &primary, &relay, &copy);

    // The primary is lost, the standby beside takes over, relay and standbys follow.
    primary.append_conf("synchronous_standby_names = ''");
    primary.reload();
    primary.wait_for_sql("show synchronous_standby_names", "");
    beside.wait_for_receive(primary.settled_lsn());
    relay.wait_for_flush(primary.settled_lsn());
    let mut primary = primary;
    primary.freeze_walsender("walrelay");
    beside.wait_for_receive(relay.flush_lsn());
    primary.kill9();
    beside.promote();
    relay.wait_for_timeline(2);
    beside.pgbench(2, 100);
    for standby in [&c, &d] {
        standby.wait_for_replay(beside.settled_lsn());
        compare::assert_dumps(&beside, standby);
    }
}

fn backup_through(relay: &Relay, server: &Server, dir: &Path, slot: &str) {
    let (conninfo, dir) = (relay.conninfo(), dir.display().to_string());
    let args = ["-d", &conninfo, "-c", "fast", "--no-sync", "-X", "stream", "-C", "-S", slot, "-D", &dir];
    server.run("pg_basebackup", &args).unwrap_or_else(|error| panic!("{error}\n{}", relay.log().tail()));
}

/// The relay's consumers and slots, as its SQL clients see them.
fn views(relay: &Relay, server: &Server) {
    relay.wait_for_sql("select string_agg(application_name, ' ' order by 1) from pg_stat_replication", "c d");
    relay.wait_for_sql("select string_agg(slot_name, ' ' order by 1) from pg_replication_slots", "c d kept");
    // The same on the relay's own database, with all columns of the version.
    let columns = |database: &str| {
        let rows = relay.psql(&format!("dbname={database}"), &["table pg_replication_slots"]).unwrap();
        rows.lines().next().unwrap_or_default().matches('|').count()
    };
    assert_eq!(columns("walrelay"), columns("postgres"));
    // Positions are written as the version writes them.
    let position = relay.command("IDENTIFY_SYSTEM");
    let low = position.split('|').nth(2).and_then(|lsn| lsn.split('/').nth(1)).unwrap_or_default().len();
    assert!(if server.major() >= 19 { low == 8 } else { low < 8 }, "{position}");
    // A setting that only the upstream knows.
    assert_eq!(relay.command("SHOW work_mem"), "4MB");
    if server.major() >= 19 {
        let limited =
            relay.psql("replication=1 options='-c wal_sender_shutdown_timeout=5s'", &["IDENTIFY_SYSTEM"]);
        limited.unwrap();
    }
}

/// A backup recovers from what the relay has archived.
fn recovery_from(archive: &Path, primary: &Cluster, relay: &Relay, backup: &Path) {
    primary.sql("create table archived as select 42 as answer");
    let last = primary.switch_wal();
    wait_until(format_args!("{last} in the archive"), || archive.join(&last).exists());
    let checked = std::process::Command::new(walrelay())
        .args(["archive", "verify", "--from"])
        .arg(format!("file://{}", archive.display()))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}\n{}", relay.log().tail());
    // The servers' account can read neither the build directory nor what belongs to the relay's.
    let binary = backup.with_file_name("walrelay");
    std::fs::hard_link(walrelay(), &binary)
        .or_else(|_| std::fs::copy(walrelay(), &binary).map(drop))
        .unwrap();
    let opened = std::process::Command::new("chmod").args(["-R", "a+rX"]).arg(archive).status().unwrap();
    assert!(opened.success());
    let restore = format!(
        "restore_command = '\"{}\" restore --from \"file://{}\" %f %p'",
        binary.display(),
        archive.display()
    );
    let restored = primary
        .standby()
        .name("restored")
        .follow("host=127.0.0.1 port=1")
        .conf(&restore)
        .from_backup(backup.to_owned())
        .start();
    restored.wait_for_sql("select answer from archived", "42");
}

fn killed_in_mid_record(server: &Server) {
    let mut primary = Cluster::builder(server).seg_mb(1).conf("max_wal_size = 2GB").start();
    let relay = relay_below(&primary).start();
    relay.create_slot("standby");
    let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();
    let mark = standby.log().mark();
    let mut lost = 0;
    for round in 0..20 {
        let before = relay.flush_lsn();
        let mut session = primary.session();
        // One record of many segments; its middle is on its way to the relay when the server dies.
        session.send("select pg_logical_emit_message(false, 'x', repeat('x', 200000000))").unwrap();
        let segments = std::fs::read_dir(relay.wal_dir()).unwrap().count();
        wait_until("part of the record at the relay", || {
            std::fs::read_dir(relay.wal_dir()).unwrap().count() > segments + 2
        });
        primary.kill9();
        drop(session);
        primary.start();
        primary.sql(&format!("create table t{round} as select 1"));
        relay.wait_for_flush(primary.flush_lsn());
        assert!(relay.flush_lsn() > before);
        standby.wait_for_replay(primary.flush_lsn());
        lost = standby.log().lines_with("successfully skipped missing contrecord", mark).len();
        if lost >= 3 {
            break;
        }
    }
    assert!(lost >= 3, "records were lost {lost} times");
}

fn a_primary_that_will_not_wait_is_told(server: &Server) {
    let primary = Cluster::builder(server).conf("wal_sender_shutdown_timeout = 5s").start();
    let words = "has wal_sender_shutdown_timeout = 5s";
    let mut relay = relay_below(&primary).start();
    relay.log().wait_for(words);
    let mark = relay.log().mark();
    primary.sql("select pg_terminate_backend(pid) from pg_stat_replication");
    relay.log().wait_for_after(mark, "started streaming WAL");
    assert_eq!(relay.log().lines_with(words, mark), [""; 0], "once is enough");
    // For the relay it is another.
    relay.set_upstream(&format!("{} options='-c wal_sender_shutdown_timeout=-1'", primary.conninfo()));
    let mark = relay.log().mark();
    relay.restart();
    relay.wait_for_flush(primary.settled_lsn());
    assert_eq!(relay.log().lines_with("wal_sender_shutdown_timeout =", mark), [""; 0]);
}
