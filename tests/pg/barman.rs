//! Barman with the relay where the primary was in its configuration.

use std::cell::Cell;

use walrelay_testkit::{
    Barman, Cluster, Mark, Relay, Server, compare, on_every_version, on_one_version_mostly, wait_until,
};

use crate::relay_below;

on_every_version!(everything_through_the_relay);
on_one_version_mostly!(
    an_archive_without_gaps,
    receiving_starts_while_the_primary_is_down,
    wal_alone_through_the_relay,
    a_slot_barman_cannot_see
);

/// As in `.pgpass`.
const PASSWORDS: &str = "127.0.0.1:*:*:barman:bar man\\:1\n127.0.0.1:*:*:streaming_barman:str3am\n";

/// The relay's own role asks for the others' secrets; clients must show theirs.
const HBA: &str = "host replication postgres 127.0.0.1/32 trust\n\
                   host all,replication barman,streaming_barman 127.0.0.1/32 scram-sha-256\n";

const COMMON: &str = "backup_method = postgres\nstreaming_archiver = on\nslot_name = barman\n";

/// What docs/BARMAN.md grants, for a Barman that is no superuser.
const GRANTS: &str = "grant pg_monitor, pg_checkpoint to barman; \
                      grant execute on function pg_backup_start(text, boolean), pg_backup_stop(boolean), \
                      pg_switch_wal(), pg_create_restore_point(text) to barman; \
                      create role walrelay login replication password 'r3lay'; \
                      grant select on pg_authid to walrelay";

/// A primary that wants passwords, a relay that gets them from there, and Barman with the relay's port as `$L` and the
/// primary's as `$P` in its settings.
struct Stage {
    barman: Barman,
    relay: Relay,
    primary: Cluster,
    rows: Cell<u64>,
}

fn conninfos(port: &str, prefix: &str) -> String {
    let host = format!("host=127.0.0.1 port={port} passfile={{passfile}}");
    format!(
        "{prefix}conninfo = {host} user=barman dbname=postgres\n\
         {prefix}streaming_conninfo = {host} user=streaming_barman\n"
    )
}

impl Stage {
    /// With a superuser for Barman.
    fn new(server: &Server, settings: &str) -> Stage {
        Stage::with_roles(server, settings, "alter role barman superuser", None)
    }

    /// With roles that have what docs/BARMAN.md grants and no more.
    fn modest(server: &Server, settings: &str) -> Stage {
        Stage::with_roles(server, settings, GRANTS, Some("user=walrelay password=r3lay"))
    }

    fn with_roles(server: &Server, settings: &str, grants: &str, relay_role: Option<&str>) -> Stage {
        let mut primary = Cluster::builder(server).password("s3cret");
        if server.major() >= 17 {
            primary = primary.conf("summarize_wal = on");
        }
        let primary = primary.start();
        primary.sql("create role barman login password 'bar man:1'");
        primary.sql("create role streaming_barman replication login password 'str3am'");
        primary.sql(grants);
        primary.sql("create table acc (i bigint)");
        let upstream = format!("{} {}", primary.conninfo(), relay_role.unwrap_or_default());
        let relay = relay_below(&primary).upstream(&upstream).hba(HBA).arg("--auth-query").start();
        let settings = settings.replace("$L", &relay.port().to_string());
        let settings = settings.replace("$P", &primary.port().to_string());
        let barman = Barman::new(server, &settings, PASSWORDS);
        Stage { barman, relay, primary, rows: Cell::new(0) }
    }

    /// Commits a row: Barman takes a segment for finished when the next one has begun.
    fn insert(&self) {
        self.rows.set(self.rows.get() + 1);
        self.primary.sql(&format!("insert into acc values ({})", self.rows.get()));
    }

    /// Starts `receive-wal` as cron does, and waits until it streams.
    #[track_caller]
    fn cron(&self) {
        self.barman.ok(&["cron"]);
        self.wait_for_slot("t");
    }

    #[track_caller]
    fn wait_for_slot(&self, active: &str) {
        let question = "select active from pg_replication_slots where slot_name = 'barman'";
        wait_until(format_args!("active = {active} of Barman's slot"), || self.ask(question) == active);
    }

    /// Asks the relay, as Barman does.
    #[track_caller]
    fn ask(&self, sql: &str) -> String {
        let who = format!("user=barman dbname=postgres passfile={}", self.barman.passfile().display());
        self.relay.psql(&who, &[sql]).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    #[track_caller]
    fn switch_and_archive(&self) {
        let switch = ["switch-wal", "--force", "--archive", "--archive-timeout", "50", "acc"];
        let said = self.barman.ok_while(&switch, || self.insert());
        assert!(said.contains("has been closed"), "{said}");
    }

    /// Insists that every line of `check` is fine, these among them.
    #[track_caller]
    fn check(&self, lines: &[&str]) {
        let said = self.barman.ok(&["check", "acc"]);
        assert!(!said.contains("FAILED"), "{said}");
        assert!(said.matches(": OK").count() >= 20, "{said}");
        for line in lines {
            assert!(said.contains(&format!("\t{line}: OK")), "{line} in {said}");
        }
    }

    #[track_caller]
    fn stop_receiving(&self) {
        let said = self.barman.ok(&["receive-wal", "--stop", "acc"]);
        assert!(said.contains("Stopped process receive-wal"), "{said}");
        self.wait_for_slot("f");
    }

    /// Restores the newest full backup and everything after it into a server of its own; it must have all rows up to
    /// this one.
    #[track_caller]
    fn restore(&self, server: &Server, backup: &str, rows: u64) {
        let target = self.barman.home().join("restored");
        let (home, to) = (self.barman.home().display().to_string(), target.display().to_string());
        let words = ["restore", "acc", backup, &to, "--local-staging-path", &home];
        let words = if server.major() >= 17 { &words[..] } else { &words[..4] };
        let said = self.barman.ok(words);
        assert!(said.contains("Your PostgreSQL server has been successfully prepared"), "{said}");
        let restored = Cluster::from_data_dir(server, "restored", &target);
        restored.wait_for_sql("select pg_is_in_recovery()", "f");
        let found = restored.sql("select count(*), count(distinct i), min(i) from acc where i > 0");
        let found: Vec<u64> = found.split('|').map(|field| field.parse().expect("a number")).collect();
        assert!(found[0] >= rows && found[0] == found[1] && found[2] == 1, "{found:?}, expected {rows} rows");
    }
}

const BOTH_AT_THE_RELAY: &str = "create_slot = auto\n";

/// Case (c) of the compatibility reference, command by command.
fn everything_through_the_relay(server: &Server) {
    let settings = conninfos("$L", "") + COMMON + BOTH_AT_THE_RELAY;
    let stage = Stage::new(server, &settings);
    let barman = &stage.barman;
    creating_the_slot(&stage);
    stage.cron();
    stage.switch_and_archive();
    stage.check(&["replication slot", "receive-wal running", "systemid coherence", "PostgreSQL streaming"]);

    let said = barman.ok(&["replication-status", "acc"]);
    for part in ["Async WAL streamer", "Application name: barman_receive_wal", "Replication slot: barman"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(said.matches("Application name").count(), 1, "{said}");

    backups(&stage, server);
    let said = barman.ok(&["status", "acc"]);
    assert!(said.contains("Cluster state: in production"), "{said}");
    let system_id = stage.primary.sql("select system_identifier from pg_control_system()");
    let said = barman.ok(&["show-servers", "acc"]);
    assert!(said.contains(&system_id), "{said}");

    let committed = stage.rows.get();
    stage.switch_and_archive();
    stage.restore(server, "latest", committed);

    stage.stop_receiving();
    // Barman takes its own newest file for ahead of the server's position in the same segment, until pg_receivewal has
    // reported the end of the segment before, every 10 s: so the server goes on.
    stage.primary.switch_wal();
    stage.insert();
    barman.ok(&["receive-wal", "--reset", "acc"]);
    stage.cron();
    stage.switch_and_archive();
    stage.check(&["replication slot", "receive-wal running"]);
    compare::assert_segments(&stage.primary, &barman.wals("0000000100000000"), 3);
    stage.stop_receiving();
    let said = barman.ok(&["receive-wal", "--drop-slot", "acc"]);
    assert!(said.contains("Replication slot 'barman' dropped"), "{said}");
    assert_eq!(stage.ask("select count(*) from pg_replication_slots"), "0");
    let on_primary = "select string_agg(slot_name, ' ') from pg_replication_slots";
    assert_eq!(stage.primary.sql(on_primary), "walrelay", "nothing of this was the primary's business");
    let log = stage.relay.log();
    let alarms = ["WARN", "ERROR", "panicked"].map(|word| log.lines_with(word, Mark::default())).concat();
    // The two attempts to create the slot again.
    let odd = alarms.iter().filter(|line| !line.contains("already exists"));
    assert_eq!(odd.collect::<Vec<_>>(), Vec::<&String>::new());
}

fn creating_the_slot(stage: &Stage) {
    let barman = &stage.barman;
    let said = barman.ok(&["receive-wal", "--create-slot", "acc"]);
    assert!(said.contains("Replication slot 'barman' created"), "{said}");
    let again = barman.run(&["receive-wal", "--create-slot", "acc"]);
    assert_eq!((again.code, again.text.contains("already exists")), (Some(1), true), "{}", again.text);
    barman.ok(&["receive-wal", "--create-slot", "--if-not-exists", "acc"]);
}

/// A backup, and one on top of it where PostgreSQL can do that.
fn backups(stage: &Stage, server: &Server) {
    let barman = &stage.barman;
    let said = barman.ok_while(&["backup", "--wait", "acc"], || stage.insert());
    assert!(said.contains("Backup completed"), "{said}");
    let full = barman.ok(&["list-backups", "acc"]);
    assert_eq!((full.lines().count(), full.contains("FAILED")), (1, false), "{full}");
    if server.major() >= 17 {
        let words = ["backup", "--wait", "--incremental", "latest", "acc"];
        let said = barman.ok_while(&words, || stage.insert());
        assert!(said.contains("Backup completed"), "{said}");
        let both = barman.ok(&["list-backups", "acc"]);
        assert_eq!((both.lines().count(), both.contains("FAILED")), (2, false), "{both}");
        assert!(both.contains(" - I - ") && both.contains(" - F - "), "{both}");
    }
    barman.ok(&["check-backup", "acc", "latest"]);
    stage.check(&["failed backups"]);
}

/// The relay is restarted under Barman, whose receive-wal ends with it and is started again by cron.
fn an_archive_without_gaps(server: &Server) {
    let settings = conninfos("$L", "") + COMMON + BOTH_AT_THE_RELAY;
    let mut stage = Stage::new(server, &settings);
    // With create_slot = auto.
    stage.cron();
    stage.switch_and_archive();
    stage.barman.ok_while(&["backup", "--wait", "acc"], || stage.insert());
    for _ in 0..2 {
        stage.relay.terminate();
        stage.insert();
        stage.primary.switch_wal();
        stage.insert();
        stage.relay.start();
        stage.wait_for_slot("f");
        wait_until("the end of receive-wal", || !stage.barman.is_receiving());
        stage.cron();
        stage.insert();
    }
    let committed = stage.rows.get();
    stage.switch_and_archive();
    stage.check(&["replication slot", "receive-wal running"]);
    let archived = stage.barman.wals("0000000100000000");
    compare::assert_segments(&stage.primary, &archived, 4);
    stage.restore(server, "latest", committed);
}

/// What the relay has and Barman has not is archived in an outage, also by a Barman that is started in it.
fn receiving_starts_while_the_primary_is_down(server: &Server) {
    let settings = conninfos("$L", "") + COMMON + BOTH_AT_THE_RELAY;
    let mut stage = Stage::new(server, &settings);
    stage.cron();
    stage.switch_and_archive();
    stage.stop_receiving();
    stage.insert();
    let missed = stage.primary.switch_wal();
    stage.insert();
    stage.relay.wait_for_flush(stage.primary.settled_lsn());
    stage.primary.stop();

    stage.cron();
    let archived = stage.barman.wals(&missed[..16]).join(&missed);
    wait_until(format_args!("{missed} in the archive"), || {
        stage.barman.ok(&["archive-wal", "acc"]);
        archived.exists()
    });
    // Barman is content with what it needs for WAL, and cannot ask about backups.
    let check = stage.barman.run(&["check", "acc"]).text;
    assert!(
        check.contains("\treplication slot: OK") && check.contains("\treceive-wal running: OK"),
        "{check}"
    );
    assert!(!check.contains("backup privileges: OK"), "{check}");
    // A relay that comes back alone knows enough as well.
    stage.relay.restart();
    wait_until("the end of receive-wal", || !stage.barman.is_receiving());
    stage.cron();

    stage.primary.start();
    stage.insert();
    stage.relay.wait_for_flush(stage.primary.settled_lsn());
    stage.switch_and_archive();
    stage.check(&["replication slot", "receive-wal running"]);
    compare::assert_segments(&stage.primary, &stage.barman.wals(&missed[..16]), 3);
}

/// Case (d): only the WAL goes through the relay; backups are taken from the primary.
fn wal_alone_through_the_relay(server: &Server) {
    let settings = conninfos("$P", "") + &conninfos("$L", "wal_") + COMMON + BOTH_AT_THE_RELAY;
    let stage = Stage::modest(server, &settings);
    stage.cron();
    stage.switch_and_archive();
    stage.check(&[
        "has monitoring privileges (WAL streaming)",
        "PostgreSQL streaming (WAL streaming)",
        "wal_level (WAL streaming)",
        "replication slot (WAL streaming)",
        "systemid coherence (WAL streaming)",
        "receive-wal running",
    ]);
    let said = stage.barman.ok(&["replication-status", "--source", "wal-host", "acc"]);
    assert!(said.contains("Replication slot: barman"), "{said}");
    stage.barman.ok_while(&["backup", "--wait", "acc"], || stage.insert());
    stage.stop_receiving();
}

/// `conninfo` at the primary, where there is no slot of Barman's: the check fails in the one line that it should.
fn a_slot_barman_cannot_see(server: &Server) {
    let [sql, streaming] = [("$P", 0), ("$L", 1)].map(|(port, at)| {
        let both = conninfos(port, "");
        both.lines().nth(at).expect("there are two").to_owned() + "\n"
    });
    let stage = Stage::new(server, &(sql + &streaming + COMMON + BOTH_AT_THE_RELAY));
    stage.cron();
    stage.switch_and_archive();
    let answer = stage.barman.run(&["check", "acc"]);
    let failed: Vec<&str> = answer.text.lines().filter(|line| line.contains("FAILED")).collect();
    assert_eq!((answer.code, failed.len()), (Some(1), 1), "{}", answer.text);
    assert!(failed[0].starts_with("\treplication slot: FAILED"), "{failed:?}");
}
