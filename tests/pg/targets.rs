//! Targets that hang, are gone, are something else than they seem, or change their keys; and servers that want WAL back
//! from one that is away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use walrelay_testkit::{
    Cluster, Disk, Hung, Relay, S3, Scratch, Server, Signal, on_every_version, on_one_version, tied_command,
    wait_for, wait_until,
};

use crate::restore::{copy_dir, readable_binary};
use crate::{relay_below, walrelay};

on_every_version!(a_hot_standby_outlives_its_archive, a_recovery_waits_for_its_archive);
on_one_version!(
    directories_that_are_no_targets,
    a_mount_point_without_its_file_system,
    a_hung_target_is_told_and_holds_up_nobody,
    rotated_keys_are_read_again,
    targets_change_at_a_reload,
    a_directory_whose_sync_fails,
    the_primary_copies_slowly_into_the_same_directory,
    retention_says_what_it_cannot_do,
    what_is_there_already_is_synced_before_it_counts,
    a_copy_that_is_still_being_made_is_waited_for,
);

fn primary(server: &Server) -> Cluster {
    Cluster::builder(server).seg_mb(1).start()
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

/// The next segment of the primary, once the relay has it.
fn next_segment(primary: &Cluster, relay: &Relay) -> String {
    primary.sql("create table if not exists t (i int); insert into t select generate_series(1, 100)");
    let segment = primary.switch_wal();
    relay.wait_for_flush(primary.flush_lsn());
    segment
}

fn wait_for_file(path: &Path, relay: &Relay) {
    let exists = || path.exists().then_some(());
    wait_for(format_args!("{}\n{}", path.display(), relay.log().tail()), exists);
}

fn restore(options: &[&str], file: &str, to: &Path) -> Output {
    let mut command = tied_command(walrelay());
    command.arg("restore").args(options).arg(file).arg(to).output().expect("the program is there")
}

fn a_hot_standby_outlives_its_archive(server: &Server) {
    let scratch = Scratch::new("archive");
    let primary = primary(server);
    let (binary, archive) = (readable_binary(&scratch), scratch.join("not-mounted"));
    let command = format!("\"{}\" restore --from {} %f %p", binary.display(), url(&archive));
    let mut standby = primary.standby().name("b").conf(&format!("restore_command = '{command}'")).start();
    primary.sql("create table t as select 1 as i");
    standby.wait_for_replay(primary.settled_lsn());
    standby.log().wait_for("does not exist");
    // It asks whenever its stream breaks.
    let mark = standby.log().mark();
    primary.sql("select pg_terminate_backend(pid) from pg_stat_replication");
    standby.log().wait_for_after(mark, "does not exist");
    primary.sql("insert into t values (2)");
    standby.wait_for_replay(primary.settled_lsn());
    // A command that cannot work at all must not end it either.
    let wrong = command.replace("--from", "--form");
    standby.append_conf(&format!("restore_command = '{wrong}'"));
    let mark = standby.log().mark();
    standby.restart();
    standby.log().wait_for_after(mark, "--form");
    primary.sql("insert into t values (3)");
    standby.wait_for_replay(primary.settled_lsn());
    assert_eq!(standby.sql("select count(*) from t"), "3");
    assert!(!standby.log().text().contains("could not restore file"), "{}", standby.log().tail());
}

fn a_recovery_waits_for_its_archive(server: &Server) {
    let scratch = Scratch::new("archive");
    let (archive, away) = (scratch.dir("wal"), scratch.join("away"));
    let primary = Cluster::builder(server).name("a").seg_mb(1).start();
    let relay = relay_below(&primary).arg("--archive").arg(&url(&archive)).start();
    let backup = scratch.join("backup");
    primary.base_backup_to(&backup);
    let last = next_segment(&primary, &relay);
    // Its checksum comes last.
    wait_for_file(&archive.join(format!("{last}.sha256")), &relay);
    let open = tied_command("chmod").args(["-R", "a+rX"]).arg(&archive).status();
    assert!(open.expect("there is a chmod").success());
    fs::rename(&archive, &away).expect("both are ours");

    let (dir, said) = (scratch.join("recovered"), scratch.dir("said").join("said"));
    copy_dir(&backup, &dir);
    let (binary, conf) = (readable_binary(&scratch), dir.join("postgresql.conf"));
    let command =
        format!("\"{}\" restore --from {} %f %p 2>>{}", binary.display(), url(&archive), said.display());
    let old = fs::read_to_string(&conf).expect("a backup has one");
    fs::write(&conf, format!("{old}\nrestore_command = '{command}'\n")).expect("it was readable");
    fs::write(dir.join("recovery.signal"), "").expect("the directory is ours");
    let mounting = std::thread::spawn(move || {
        wait_until("a word about the wait", || {
            fs::read_to_string(&said).is_ok_and(|text| text.contains("recovery waits for it"))
        });
        fs::rename(&away, &archive).expect("both are ours");
    });
    let recovered = Cluster::from_data_dir(server, "recovered", &dir);
    mounting.join().expect("it waits only");
    recovered.wait_for_sql("select pg_is_in_recovery()", "f");
    assert_eq!(recovered.sql("select count(*) from t"), "100");
}

fn directories_that_are_no_targets(server: &Server) {
    let primary = primary(server);
    let scratch = Scratch::new("data");
    let data = scratch.join("relay");
    let archive = scratch.dir("archive");
    std::os::unix::fs::symlink(&archive, scratch.join("link")).expect("ours");
    let refuses = |targets: &[PathBuf], expected: &str| {
        let relay = relay_below(&primary).data_dir(&data);
        let args = targets.iter().map(|dir| url(dir));
        let mut relay = args.fold(relay, |relay, url| relay.arg("--archive").arg(&url)).prepare();
        relay.spawn();
        let code = relay.wait_exit();
        let log = relay.log().text();
        assert!(code.is_some_and(|code| code != 0) && log.contains(expected), "{code:?}: {log}");
    };
    let mut relay = relay_below(&primary).data_dir(&data).start();
    relay.wait_for_flush(primary.flush_lsn());
    relay.terminate();
    let files = |dir: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").file_name()).collect();
        names.sort();
        names
    };
    let wal = primary.wal_dir();
    let before = (files(&data.join("pg_wal")), files(&wal));
    refuses(&[data.join("pg_wal")], "is, or lies in, the relay's data directory");
    refuses(&[scratch.path().to_owned()], "contains the relay's data directory");
    refuses(std::slice::from_ref(&wal), "pg_wal of a PostgreSQL server");
    refuses(&[primary.data_dir()], "is a data directory of a PostgreSQL server");
    refuses(&[archive.clone(), scratch.join("link")], "already");
    refuses(&[data.join("not-yet")], "is, or lies in, the relay's data directory");
    // Which of the two is placed first is chance.
    refuses(&[archive.clone(), archive.join("not/yet")], "that of archive target");
    assert_eq!((files(&data.join("pg_wal")), files(&wal)), before);
    assert!(files(&archive).is_empty(), "{:?}", files(&archive));
}

fn a_mount_point_without_its_file_system(server: &Server) {
    let primary = primary(server);
    let disk = Disk::ext4(64);
    let relay = relay_below(&primary).arg("--archive").arg(&url(disk.path()));
    let relay = relay.arg("--wal-keep-size").arg("0").start();
    let first = next_segment(&primary, &relay);
    wait_for_file(&disk.join(&format!("{first}.sha256")), &relay);
    disk.unmount();
    let second = next_segment(&primary, &relay);
    let below = || fs::read_dir(disk.path()).expect("it is there").count();
    let said = || relay.log().text().contains("is its file system mounted?");
    wait_until("the target to be looked at", || said() || below() > 0);
    // Nothing went below the mount point, and nothing was let go.
    assert_eq!(below(), 0);
    assert!(relay.wal_dir().join(&second).exists());
    let scratch = Scratch::new("restored");
    let to = scratch.join("RECOVERYXLOG");
    let output = restore(&["--timeout", "1s", "--from", &url(disk.path())], &first, &to);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(200) && said.contains("is its file system mounted?"), "{said}");
    disk.mount();
    wait_for_file(&disk.join(&second), &relay);
    let output = restore(&["--from", &url(disk.path())], &first, &to);
    assert_eq!(output.status.code(), Some(0));
    // A call that PostgreSQL never makes.
    let output = restore(&["--from", &url(disk.path())], "pg_wal/RECOVERYXLOG", &scratch.join(&first));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(200) && said.contains("%f %p"), "{said}");
}

fn a_hung_target_is_told_and_holds_up_nobody(server: &Server) {
    let primary = primary(server);
    let scratch = Scratch::new("targets");
    let (good, bad) = (scratch.dir("good"), scratch.dir("bad"));
    let relay = relay_below(&primary).arg("--archive").arg(&url(&good)).arg("--archive").arg(&url(&bad));
    let mut relay = relay.arg("--shutdown-timeout").arg("2s").start();
    let first = next_segment(&primary, &relay);
    wait_for_file(&good.join(&first), &relay);
    wait_for_file(&bad.join(&first), &relay);
    let hung = Hung::over(&bad);
    let second = next_segment(&primary, &relay);
    wait_for_file(&good.join(&second), &relay);
    relay.log().wait_for("has not taken");
    let third = next_segment(&primary, &relay);
    wait_for_file(&good.join(&third), &relay);
    relay.terminate();
    drop(hung);
    assert!(relay.wal_dir().join(&second).exists());
}

fn rotated_keys_are_read_again(server: &Server) {
    let primary = primary(server);
    let (scratch, s3) = (Scratch::new("keys"), S3::start());
    let (keys, conf) = (scratch.secret("credentials", ""), scratch.join("walrelay.toml"));
    let rotate = |key: &str| {
        let text = format!("[wal]\naws_access_key_id = {key}\naws_secret_access_key = s\n");
        fs::write(&keys, text).expect("ours");
        s3.behave(|it| it.key = Some(key.to_owned()));
    };
    rotate("first");
    let text = format!(
        "[archive.s3]\nurl = \"s3://wal/main\"\nendpoint = \"{}\"\nregion = \"x\"\nprofile = \"wal\"\n",
        s3.endpoint()
    );
    fs::write(&conf, text).expect("ours");
    let relay = relay_below(&primary).arg("--config").arg(&conf.display().to_string());
    let mut relay = relay.env("AWS_SHARED_CREDENTIALS_FILE", &keys.display().to_string()).start();
    let wait_for_object = |segment: &str, relay: &Relay| {
        let there = || s3.objects().contains_key(&format!("main/{segment}"));
        wait_until(format_args!("{segment}\n{}", relay.log().tail()), there);
    };
    let first = next_segment(&primary, &relay);
    wait_for_object(&first, &relay);
    rotate("second");
    let second = next_segment(&primary, &relay);
    wait_for_object(&second, &relay);
    rotate("third");
    relay.reload();
    let third = next_segment(&primary, &relay);
    wait_for_object(&third, &relay);
}

fn targets_change_at_a_reload(server: &Server) {
    let primary = primary(server);
    let scratch = Scratch::new("targets");
    let (one, two, conf) = (scratch.dir("one"), scratch.dir("two"), scratch.join("walrelay.toml"));
    let write = |text: String| fs::write(&conf, text).expect("ours");
    let section = |name: &str, dir: &Path| format!("[archive.{name}]\nurl = \"{}\"\n", url(dir));
    write(section("one", &one));
    let mut relay = relay_below(&primary).arg("--config").arg(&conf.display().to_string()).start();
    let first = next_segment(&primary, &relay);
    wait_for_file(&one.join(&first), &relay);
    let reload = |relay: &mut Relay, expected: &str| {
        let mark = relay.log().mark();
        relay.reload();
        relay.log().wait_for_after(mark, expected);
    };
    // A mistake changes nothing, whatever else is in the file.
    write(format!(
        "auth-dbname = \"template1\"\n{}[archive.bad]\nurl = \"{}\"\nlayout = \"x\"\n",
        section("two", &two),
        url(&one)
    ));
    reload(&mut relay, "line 4: archive target \"bad\": layout: ");
    let second = next_segment(&primary, &relay);
    wait_for_file(&one.join(&second), &relay);
    assert_eq!(fs::read_dir(&two).expect("ours").count(), 0);

    write(format!(
        "auth-dbname = \"template1\"\n{}compression = \"lz4\"\n{}",
        section("one", &one),
        section("two", &two)
    ));
    reload(&mut relay, "configuration reloaded");
    let log = relay.log().text();
    for line in [
        "archive target \"one\": compression changed, in effect",
        "archive target \"two\" is new",
        "auth-dbname changed, which takes a restart",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    let third = next_segment(&primary, &relay);
    wait_for_file(&one.join(format!("{third}.lz4")), &relay);
    for segment in [&first, &second, &third] {
        wait_for_file(&two.join(segment), &relay);
    }
    write(section("two", &two));
    reload(&mut relay, "archive target \"one\" is no longer configured");
    let fourth = next_segment(&primary, &relay);
    wait_for_file(&two.join(&fourth), &relay);
    assert!(!one.join(format!("{fourth}.lz4")).exists());
}

fn a_directory_whose_sync_fails(server: &Server) {
    use std::os::unix::fs::MetadataExt;
    let primary = primary(server);
    let (scratch, data) = (Scratch::new("archive"), Scratch::new("data"));
    let archive = scratch.dir("wal");
    let relay =
        relay_below(&primary).data_dir(data.join("relay")).arg("--archive").arg(&url(&archive)).start();
    let first = next_segment(&primary, &relay);
    wait_for_file(&archive.join(format!("{first}.sha256")), &relay);
    let failing = relay.trace_at(&archive, &["trace=fsync", "inject=fsync:error=EIO"]);
    let mark = relay.log().mark();
    let second = next_segment(&primary, &relay);
    relay.log().wait_for_after(mark, "could not sync");
    // Its content is there, and does not count.
    let state = || {
        let files =
            fs::read_dir(relay.data_dir()).expect("ours").map(|entry| entry.expect("readable").path());
        // The spare beside it holds what was saved before.
        let is_state = |path: &PathBuf| {
            path.display().to_string().contains("/archive-") && path.extension() != Some("spare".as_ref())
        };
        let mut states = files.filter(is_state);
        fs::read_to_string(states.next().expect("there is one target")).expect("readable")
    };
    wait_until("a suspect", || state().contains(&format!("write-again = [\"{second}\"")));
    let before = fs::metadata(archive.join(&second)).expect("it has got its name").ino();
    drop(failing);
    wait_until("it to count", || state().contains("write-again = []"));
    let after = fs::metadata(archive.join(&second)).expect("it is there").ino();
    assert_ne!(after, before, "it is written again");
    assert!(archive.join(format!("{second}.sha256")).exists());
    // Its own disk is not the archive's.
    let third = next_segment(&primary, &relay);
    wait_for_file(&archive.join(&third), &relay);
}

fn the_primary_copies_slowly_into_the_same_directory(server: &Server) {
    let scratch = Scratch::new("archive");
    let (archive, slow, conf) = (scratch.dir("wal"), scratch.join("slow"), scratch.join("walrelay.toml"));
    let copy = format!(
        "head -c 300000 %p > {0}/%f; while test -e {1}; do sleep 0.1; done; tail -c +300001 %p >> {0}/%f",
        archive.display(),
        slow.display()
    );
    let primary = Cluster::builder(server).seg_mb(1).conf("archive_mode = on");
    let primary = primary.conf(&format!("archive_command = '{}'", copy)).start();
    fs::write(&conf, "").expect("ours");
    let mut relay = relay_below(&primary).arg("--config").arg(&conf.display().to_string()).start();
    next_segment(&primary, &relay);
    primary.wait_for_sql("select count(*) from pg_ls_archive_statusdir() where name like '%.ready'", "0");
    fs::write(&slow, "").expect("ours");
    let segment = next_segment(&primary, &relay);
    relay.wait_for_segment(&segment);
    // The relay comes to a directory in which half a file lies.
    let size = || fs::metadata(archive.join(&segment)).map_or(0, |found| found.len());
    wait_until("half a file", || size() == 300_000);
    fs::write(&conf, format!("[archive.shared]\nurl = \"{}\"\n", url(&archive))).expect("ours");
    relay.reload();
    relay.log().wait_for(&format!("could not archive \"{segment}\""));
    relay.log().wait_for("is being written by somebody else");
    assert!(!archive.join(format!("{segment}.sha256")).exists());
    fs::remove_file(&slow).expect("ours");
    wait_for_file(&archive.join(format!("{segment}.sha256")), &relay);
    let to = scratch.join("restored");
    let output = restore(&["--from", &url(&archive)], &segment, &to);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let same = fs::read(&to).expect("restored") == fs::read(relay.wal_dir().join(&segment)).expect("kept");
    assert!(same && !relay.log().text().contains("with different content"));
}

fn retention_says_what_it_cannot_do(server: &Server) {
    let primary = primary(server);
    let scratch = Scratch::new("retention");
    let (archive, conf) = (scratch.dir("wal"), scratch.join("walrelay.toml"));
    // A base backup long ago, and what came after it.
    let label = "0000000100000000000000A0.00000028.backup";
    fs::write(archive.join(label), "START WAL LOCATION: ...\n").expect("ours");
    for segment in 0xA0..0xA8 {
        let file = archive.join(format!("0000000100000000000000{segment:02X}"));
        fs::write(file, vec![1; 1 << 20]).expect("ours");
    }
    fs::write(
        &conf,
        format!("[archive.main]\nurl = \"{}\"\nkeep-size = \"2MB\"\nkeep-age = \"30d\"\n", url(&archive)),
    )
    .expect("ours");
    let relay = relay_below(&primary).arg("--config").arg(&conf.display().to_string()).start();
    primary.switch_wal();
    relay.log().wait_for(&format!("because \"{label}\" keeps all WAL"));
    assert!(archive.join("0000000100000000000000A0").exists());
}

/// A segment that the relay is about to archive, while it is held: the primary's `archive_command` was faster.
fn next_segment_while_held(primary: &Cluster, relay: &mut Relay) -> (String, Vec<u8>) {
    relay.signal(Signal::STOP);
    primary.sql("create table if not exists t (i int); insert into t select generate_series(1, 100)");
    let segment = primary.switch_wal();
    let content = fs::read(primary.wal_dir().join(&segment)).expect("the primary keeps it");
    (segment, content)
}

fn what_is_there_already_is_synced_before_it_counts(server: &Server) {
    let primary = primary(server);
    let scratch = Scratch::new("archive");
    let archive = scratch.dir("wal");
    let mut relay = relay_below(&primary).arg("--archive").arg(&url(&archive)).start();
    let first = next_segment(&primary, &relay);
    wait_for_file(&archive.join(format!("{first}.sha256")), &relay);
    let trace = relay.trace(&["trace=fsync,fdatasync", "decode-fds=path"]);
    let (segment, content) = next_segment_while_held(&primary, &mut relay);
    fs::write(archive.join(&segment), content).expect("there is room");
    relay.signal(Signal::CONT);
    wait_for_file(&archive.join(format!("{segment}.sha256")), &relay);
    let synced = |path: &Path| trace.text().contains(&format!("<{}>", path.display()));
    assert!(synced(&archive.join(&segment)) && synced(&archive), "{}", trace.text());
}

fn a_copy_that_is_still_being_made_is_waited_for(server: &Server) {
    let primary = primary(server);
    let scratch = Scratch::new("archive");
    let archive = scratch.dir("wal");
    let mut relay = relay_below(&primary).arg("--archive").arg(&url(&archive)).start();
    let first = next_segment(&primary, &relay);
    wait_for_file(&archive.join(format!("{first}.sha256")), &relay);
    let (segment, content) = next_segment_while_held(&primary, &mut relay);
    fs::write(archive.join(&segment), &content[..300_000]).expect("there is room");
    let mark = relay.log().mark();
    relay.signal(Signal::CONT);
    wait_until("the copy to be found", || !relay.log().lines_with(&segment, mark).is_empty());
    fs::write(archive.join(&segment), &content).expect("there is room");
    wait_for_file(&archive.join(format!("{segment}.sha256")), &relay);
    let to = scratch.join("RECOVERYXLOG");
    let output = restore(&["--from", &url(&archive)], &segment, &to);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(&to).expect("it was restored") == content);
}
