//! `walrelay init`: from nothing to a relay that serves a consumer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use walrelay_testkit::{
    Cluster, Port, Process, Receivewal, Scratch, Server, on_one_version, tied_command, wait_until,
};

use crate::walrelay;

on_one_version!(a_first_relay_is_a_command_and_a_script);

fn init(args: &[&str]) -> Output {
    // Nobody sits there.
    let mut command = Command::new(walrelay());
    command.arg("init").args(args).stdin(std::process::Stdio::null()).output().expect("walrelay can be run")
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn a_first_relay_is_a_command_and_a_script(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let (scratch, port) = (Scratch::new("init"), Port::take());
    let path = |name: &str| scratch.join(name).display().to_string();
    let (config, data) = (path("etc/walrelay.toml"), path("data"));
    let (upstream, listen) = (
        format!("host=127.0.0.1 port={} user=walrelay", primary.port()),
        format!("127.0.0.1:{}", port.number()),
    );
    let flags = ["--upstream", &upstream, "--config", &config, "-D", &data, "--listen", &listen];
    let all = [&flags[..], &["--consumer-role", "standby"]].concat();
    let first = init(&all);
    let (script, told) = (said(&first.stdout), said(&first.stderr));
    assert_eq!(first.status.code(), Some(0), "{told}");
    // The role is not there yet, and that is said.
    assert!(
        told.contains(&format!("wrote \"{config}\"")) && told.contains("role \"walrelay\" does not exist"),
        "{told}"
    );
    let mode = fs::metadata(&config).expect("it is written").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let again = init(&all);
    assert_eq!(again.status.code(), Some(2));
    assert!(said(&again.stderr).contains("walrelay.toml\" exists; edit it"), "{}", said(&again.stderr));
    let forced = init(&[&all[..], &["--force", "--no-check"]].concat());
    assert_eq!((forced.status.code(), said(&forced.stdout)), (Some(0), script.clone()));
    let secret = init(&["--upstream", "host=h password=x", "--config", &path("other.toml")]);
    assert_eq!(secret.status.code(), Some(2));
    assert!(said(&secret.stderr).contains("holds a password") && !scratch.join("other.toml").exists());
    let new = path("new/w.toml");
    let wrong = init(&["--upstream", &upstream, "--config", &new, "-D", &data, "--slot", "Not A Slot"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", said(&wrong.stderr));
    let left = fs::read_dir(scratch.join("new")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "what cannot be used is not written");

    // Nor does it replace anything.
    let rules = scratch.join("etc/hba.conf");
    fs::write(&rules, "# somebody's own\n").expect("it is ours");
    let forced = init(&[&all[..], &["--force", "--no-check", "--slot", "Not A Slot"]].concat());
    assert_eq!(forced.status.code(), Some(2), "{}", said(&forced.stderr));
    assert_eq!(fs::read_to_string(&rules).expect("it is there"), "# somebody's own\n");
    let mut left: Vec<_> = fs::read_dir(scratch.join("etc"))
        .expect("it is there")
        .map(|entry| entry.expect("it is ours").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["hba.conf", "walrelay.toml"]);
    let forced = init(&[&all[..], &["--force", "--no-check"]].concat());
    assert_eq!(forced.status.code(), Some(0), "{}", said(&forced.stderr));

    // The script, as it is.
    let path = scratch.join("init.sql");
    fs::write(&path, &script).expect("it is ours");
    primary.sql(&script);
    primary.sql("alter role standby password 'secret'");
    let checked = Command::new(walrelay()).args(["check-config", "--config", &config]).output();
    assert!(checked.expect("walrelay can be run").status.success());
    let mut command = tied_command(walrelay());
    command.args(["--config", &config]);
    let mut relay = Process::spawn("walrelay", command, &scratch.join("log"));
    let conninfo = format!("host=127.0.0.1 port={} user=standby password=secret", port.number());
    let make = "CREATE_REPLICATION_SLOT archive PHYSICAL RESERVE_WAL";
    let replicating = format!("{conninfo} replication=1");
    wait_until("a slot below the relay", || {
        let made = server.command("psql").args(["-XAtqc", make, "-d", &replicating]).output();
        made.expect("psql can be run").status.success()
    });
    let archive = Receivewal::start(server, &conninfo, "archive");
    primary.sql("create table t as select 1");
    archive.wait_for_segment(&primary.switch_wal());
    archive.stop();
    assert_eq!(relay.end_with(walrelay_testkit::Signal::TERM), 0);
}
