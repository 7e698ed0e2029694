//! Base backups through the relay: taken from the upstream, with the WAL from the relay.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use walrelay_testkit::{
    Cluster, Process, Relay, Scratch, Server, compare, on_every_version, on_one_version, wait_until,
};

use crate::relay_below;

on_every_version!(
    every_form_is_complete,
    a_standby_is_made_through_the_relay,
    several_at_once_and_one_killed,
    rewound_through_the_relay,
);
on_one_version!(access_for_the_group_is_the_upstreams);

fn backup(server: &Server, relay: &Relay, dir: &Path, options: &str) {
    let (conninfo, dir) = (relay.conninfo(), dir.display().to_string());
    let mut args = vec!["-d", &conninfo, "-c", "fast", "--no-sync"];
    if !options.contains("--target") {
        args.extend(["-D", &dir]);
    }
    args.extend(options.split_whitespace());
    server
        .run("pg_basebackup", &args)
        .unwrap_or_else(|error| panic!("{options}: {error}\n{}", relay.log().tail()));
}

fn verify(server: &Server, dir: &Path) {
    server.run("pg_verifybackup", &[&dir.display().to_string()]).unwrap_or_else(|error| panic!("{error}"));
}

fn every_form_is_complete(server: &Server) {
    let summaries = if server.major() >= 17 { "summarize_wal = on" } else { "" };
    let primary = Cluster::builder(server).conf(summaries).start();
    let scratch = Scratch::new("backup");
    let space = scratch.dir("space");
    primary.sql(&format!("create tablespace elsewhere location '{}'", space.display()));
    primary.sql("create table t tablespace elsewhere as select generate_series(1, 10000) i");
    let relay = relay_below(&primary).start();
    let moved = format!("-T {}={}", space.display(), scratch.join("moved").display());
    let forms = [
        ("-X none", false),
        ("-X fetch", true),
        ("-X stream", true),
        ("-X stream -Ft -z", false),
        ("-X fetch -Ft --compress=server-gzip:1", false),
        ("-X stream -C -S acc_bb -R", true),
        ("-X stream --no-slot --manifest-checksums=SHA256 -P", true),
        ("-X stream --no-manifest -r 100M", false),
        ("--target=blackhole -X none", false),
    ];
    for (n, (form, verified)) in forms.into_iter().enumerate() {
        let dir = scratch.join(&format!("backup{n}"));
        backup(server, &relay, &dir, &format!("{form} {moved}"));
        if verified {
            verify(server, &dir);
        }
        let _ = std::fs::remove_dir_all(scratch.join("moved"));
    }
    let there = scratch.dir("there").join("backup");
    backup(server, &relay, Path::new(""), &format!("--target=server:{} -X none", there.display()));
    assert!(there.join("base.tar").exists());
    assert_eq!(relay.sql("select slot_name from pg_replication_slots"), "acc_bb");
    if server.major() >= 17 {
        incremental_chain(&primary, &relay, &scratch, &moved);
    }
}

/// pg_basebackup asks whether the group may read, and makes the files so.
fn access_for_the_group_is_the_upstreams(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    primary.stop();
    let open = std::fs::Permissions::from_mode(0o750);
    std::fs::set_permissions(primary.data_dir(), open).expect("it is ours, or we are root");
    primary.start();
    let relay = relay_below(&primary).start();
    let scratch = Scratch::new("backup");
    let dir = scratch.join("backup");
    backup(server, &relay, &dir, "-X none");
    let mode = |path: &Path| std::fs::metadata(path).expect("it was made").permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join("backup_manifest"))), (0o750, 0o640));
}

fn incremental_chain(primary: &Cluster, relay: &Relay, scratch: &Scratch, moved: &str) {
    let server = primary.server();
    let [full, first, second, whole] = ["full", "first", "second", "whole"].map(|name| scratch.join(name));
    let manifest = |dir: &Path| format!("--incremental={}", dir.join("backup_manifest").display());
    let clear = || std::fs::remove_dir_all(scratch.join("moved"));
    backup(server, relay, &full, moved);
    std::fs::rename(scratch.join("moved"), scratch.join("moved0")).expect("it is there");
    relink(&full, &scratch.join("moved0"));
    primary.sql("insert into t select generate_series(1, 1000)");
    backup(server, relay, &first, &format!("{} {moved}", manifest(&full)));
    std::fs::rename(scratch.join("moved"), scratch.join("moved1")).expect("it is there");
    relink(&first, &scratch.join("moved1"));
    primary.sql("delete from t where i < 10");
    backup(server, relay, &second, &format!("{} {moved}", manifest(&first)));
    let paths = [&full, &first, &second, &whole].map(|path| path.display().to_string());
    let mapping = format!("{}={}", scratch.join("moved").display(), scratch.join("moved2").display());
    let combined = server.run(
        "pg_combinebackup",
        &["--no-sync", &paths[0], &paths[1], &paths[2], "-o", &paths[3], "-T", &mapping],
    );
    combined.unwrap_or_else(|error| panic!("{error}"));
    verify(server, &whole);
    let expected = primary.sql("select count(*), sum(i) from t");
    let restored = Cluster::from_data_dir(server, "combined", &whole);
    assert_eq!(restored.sql("select count(*), sum(i) from t"), expected);
    let _ = clear();
}

/// The tablespace's place has moved with its backup.
fn relink(backup: &Path, space: &Path) {
    let links = std::fs::read_dir(backup.join("pg_tblspc")).expect("it is a backup");
    for link in links.map(|entry| entry.expect("it is readable").path()) {
        std::fs::remove_file(&link).expect("it is a link");
        std::os::unix::fs::symlink(space, &link).expect("the directory is ours");
    }
}

fn a_standby_is_made_through_the_relay(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    primary.pgbench_init(1);
    let scratch = Scratch::new("standby");
    let dir = scratch.join("data");
    // The relay gets the WAL late: what the backup's second connection asks for is still to come.
    let frozen = primary.freeze_walsender("walrelay");
    let conninfo = format!("{} dbname=postgres", relay.conninfo());
    let mut command = server.lasting("pg_basebackup");
    command
        .args([
            "-d",
            &conninfo,
            "-c",
            "fast",
            "--no-sync",
            "-P",
            "-R",
            "-X",
            "stream",
            "-C",
            "-S",
            "s1",
            "-D",
        ])
        .arg(&dir);
    let mut process = Process::spawn("pg_basebackup", command, &scratch.join("log"));
    relay.wait_for_sql("select count(*) from pg_replication_slots where slot_name = 's1'", "1");
    primary.thaw(frozen);
    process.wait_success();

    let standby = primary.standby().from_backup(dir).start();
    standby.wait_for_sql(
        "select status, slot_name, sender_port from pg_stat_wal_receiver",
        &format!("streaming|s1|{}", relay.port()),
    );
    relay.wait_for_sql("select active from pg_replication_slots where slot_name = 's1'", "t");
    assert_eq!(primary.sql("select count(*) from pg_replication_slots where slot_name = 's1'"), "0");
    primary.pgbench(2, 100);
    standby.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &standby);
    primary.stop();
    let refused = server.run(
        "pg_basebackup",
        &["-d", &relay.conninfo(), "-D", &scratch.join("refused").display().to_string()],
    );
    assert!(refused.expect_err("there is no upstream").contains("the upstream server cannot be reached"));
}

fn several_at_once_and_one_killed(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.pgbench_init(2);
    let relay = relay_below(&primary).start();
    let scratch = Scratch::new("several");
    let start = |name: &str, method: &str, more: &[&str]| {
        let mut command = server.lasting("pg_basebackup");
        command
            .args(["-d", &relay.conninfo(), "-c", "fast", "--no-sync", "-X", method, "-D"])
            .arg(scratch.join(name));
        command.args(more);
        Process::spawn("pg_basebackup", command, &scratch.join(&format!("{name}.log")))
    };
    // Without a second process, which would keep the connection of a killed one.
    let mut killed = start("killed", "none", &["-r", "32k"]);
    let progress = "select count(*) from pg_stat_progress_basebackup";
    primary.wait_for_sql(progress, "1");
    let mut others = ["a", "b", "c"].map(|name| start(name, "stream", &[]));
    for other in &mut others {
        other.wait_success();
    }
    for name in ["a", "b", "c"] {
        verify(server, &scratch.join(name));
    }
    killed.kill9();
    primary.wait_for_sql(progress, "0");
    // Temporary slots end with their connections.
    relay.wait_for_sql("select count(*) from pg_replication_slots", "0");
    wait_until("the end of all sessions", || relay.sql("select count(*) from pg_stat_replication") == "0");

    let limited = relay_below(&primary).name("limited").arg("--base-backup-max-rate").arg("32kB").start();
    let mut slow = {
        let mut command = server.lasting("pg_basebackup");
        command
            .args(["-d", &limited.conninfo(), "-c", "fast", "--no-sync", "-X", "none", "-D"])
            .arg(scratch.join("slow"));
        Process::spawn("pg_basebackup", command, &scratch.join("slow.log"))
    };
    primary.wait_for_sql(progress, "1");
    // A relay that stops does not wait for a backup.
    drop(limited);
    primary.wait_for_sql(progress, "0");
    assert!(!slow.wait().success());
}

fn rewound_through_the_relay(server: &Server) {
    let primary = Cluster::builder(server).conf("wal_log_hints = on").start();
    let relay = relay_below(&primary).start();
    relay.create_slot("s");
    let mut standby = primary.standby().follow(&relay.conninfo()).slot("s").start();
    primary.sql("create table t as select generate_series(1, 1000) i");
    standby.wait_for_replay(primary.settled_lsn());
    standby.promote();
    standby.sql("create table diverged as select 1");
    standby.sql("checkpoint");
    standby.stop();
    primary.sql("insert into t select 1");
    primary.sql("checkpoint");
    let source = format!("{} dbname=postgres", relay.conninfo());
    standby.rewind_from(&source).unwrap_or_else(|error| panic!("{error}\n{}", relay.log().tail()));
    standby.become_standby("standby", &relay.conninfo(), Some("s"));
    standby.start();
    standby.wait_for_replay(primary.settled_lsn());
    assert_eq!(
        standby.sql("select count(*), to_regclass('diverged') is null, pg_is_in_recovery() from t"),
        "1001|t|t"
    );
}
