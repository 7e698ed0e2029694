//! `walrelay restore` with places that hang, that are slow, and that lack what the others come after.

use std::fs;
use std::path::{Path, PathBuf};

use walrelay_testkit::{
    Cluster, ClusterBuilder, Hung, Line, Scratch, Server, on_one_version, on_one_version_mostly, wait_until,
};

use crate::relay_below;
use crate::restore::{copy_dir, readable_binary};

on_one_version_mostly!(the_last_segment_before_a_fork_is_missing);
on_one_version!(a_hung_place_hides_no_other_and_no_primary, a_standby_on_a_slow_line);

/// A cluster that archives by itself.
fn archiving(server: &Server, archive: &Path) -> ClusterBuilder {
    let command = format!("archive_command = 'cp \"%p\" \"{}/%f\"'", archive.display());
    Cluster::builder(server).seg_mb(1).conf("archive_mode = on").conf(&command)
}

/// Its next segment, once that is in the archive.
fn next_segment(primary: &Cluster, archive: &Path) -> String {
    primary.sql("create table if not exists t (i int); insert into t select generate_series(1, 100)");
    let segment = primary.switch_wal();
    wait_until(format_args!("{segment} in the archive"), || archive.join(&segment).exists());
    segment
}

fn restore_command(binary: &Path, from: &[&str]) -> String {
    let places: Vec<_> = from.iter().map(|place| format!("--from \"{place}\"")).collect();
    format!("restore_command = '\"{}\" restore {} %f %p'", binary.display(), places.join(" "))
}

fn a_hung_place_hides_no_other_and_no_primary(server: &Server) {
    let scratch = Scratch::new("places");
    let (hung, good) = (scratch.dir("hung"), scratch.dir("good"));
    let primary = archiving(server, &good).start();
    let backup = scratch.join("backup");
    primary.base_backup_to(&backup);
    next_segment(&primary, &good);
    next_segment(&primary, &good);
    let _hung = Hung::over(&hung);
    let places = [hung, good].map(|dir| format!("file://{}", dir.display()));
    let command = restore_command(&readable_binary(&scratch), &places.each_ref().map(String::as_str));
    // All that it has comes from the second place.
    let standby = primary.standby().from_backup(backup).conf("primary_conninfo = ''").conf(&command).start();
    standby.wait_for_sql("select count(*) from t", "200");
    // What the second place has not got, the first one may have: that is said, and ends nothing.
    standby.log().wait_for("nothing has come from it for 10 s");
    primary.sql("insert into t values (1)");
    standby.append_conf(&format!("primary_conninfo = '{}'", primary.conninfo().replace('\'', "''")));
    standby.reload();
    standby.wait_for_replay(primary.settled_lsn());
    assert_eq!(standby.sql("select count(*) from t"), "201");
    assert!(!standby.log().text().contains("could not restore file"), "{}", standby.log().tail());
}

fn a_standby_on_a_slow_line(server: &Server) {
    let scratch = Scratch::new("places");
    let primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("keep");
    let backup = scratch.join("backup");
    primary.base_backup_to(&backup);
    primary.sql("create table t (i int)");
    primary.switch_wal();
    relay.wait_for_flush(primary.flush_lsn());
    let line = Line::to(relay.port(), 50_000_000);
    let place = format!("host=127.0.0.1 port={} user=postgres", line.port());
    let command = restore_command(&readable_binary(&scratch), &[&place]);
    let standby = primary.standby().from_backup(backup).conf("primary_conninfo = ''").conf(&command).start();
    standby.wait_for_sql("select count(*) from t", "0");
    // A segment takes longer than a standby is kept waiting by a place that is silent.
    line.set_rate(60_000);
    primary.sql("insert into t select generate_series(1, 12000)");
    primary.switch_wal();
    standby.wait_for_sql("select count(*) from t", "12000");
    let spool = standby.wal_dir().join("walrelay-spool");
    let logs =
        fs::read_dir(&spool).map(|keys| keys.flatten().any(|key| key.path().join("worker.log").exists()));
    assert!(logs.unwrap_or(false), "it was fetched in the background\n{}", standby.log().tail());
    line.set_rate(50_000_000);
    // The worker ends when its directory is gone.
    fs::remove_dir_all(spool).expect("we are root");
}

fn the_last_segment_before_a_fork_is_missing(server: &Server) {
    let scratch = Scratch::new("places");
    let archive = scratch.dir("wal");
    let mut old = archiving(server, &archive).name("a").start();
    let backup = scratch.join("backup");
    old.base_backup_to(&backup);
    next_segment(&old, &archive);
    let mut new = old.standby().name("b").start();
    next_segment(&old, &archive);
    new.wait_for_replay(old.settled_lsn());
    old.stop();
    new.promote();
    next_segment(&new, &archive);
    wait_until("the history in the archive", || archive.join("00000002.history").exists());
    new.stop();

    let names = fs::read_dir(&archive).expect("readable").map(|entry| entry.expect("readable").file_name());
    let of_old = names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("00000001"));
    let (partial, whole): (Vec<_>, Vec<_>) = of_old.partition(|name| name.ends_with(".partial"));
    // The new timeline's segment begins with the same bytes.
    partial.iter().for_each(|name| fs::remove_file(archive.join(name)).expect("we are root"));
    let last = whole.into_iter().max().expect("there are some");
    let away = scratch.join("away");
    fs::rename(archive.join(&last), &away).expect("we are root");
    let binary = readable_binary(&scratch);
    let recover = |name: &str| -> PathBuf {
        let dir = scratch.join(name);
        copy_dir(&backup, &dir);
        let url = format!("file://{}", archive.display());
        let conf = fs::read_to_string(dir.join("postgresql.conf")).expect("a backup has one");
        let conf = format!("{conf}\n{}\narchive_mode = off\n", restore_command(&binary, &[&url]));
        fs::write(dir.join("postgresql.conf"), conf).expect("it was readable");
        fs::write(dir.join("recovery.signal"), "").expect("the directory is ours");
        dir
    };
    let log = Cluster::fails_to_start(server, "stopped", &recover("stopped"));
    assert!(log.contains(&format!("\"{last}\" is missing in the archive although")), "{log}");
    assert!(log.contains("which descends from it by way of"), "{log}");
    fs::rename(&away, archive.join(&last)).expect("we are root");
    let recovered = Cluster::from_data_dir(server, "recovered", &recover("recovered"));
    recovered.wait_for_sql("select pg_is_in_recovery()", "f");
    assert_eq!(recovered.sql("select count(*) from t"), "300");
}
