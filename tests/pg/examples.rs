//! The examples, run as a reader would run them. Each ends with a comparison, and with exit code 1 if something differs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use walrelay_testkit::{Moto, Python, Scratch, Server, ansible, on_one_version, tools};

use crate::walrelay;

on_one_version!(
    hot_standby,
    barman_behind_the_relay,
    archive_in_a_directory,
    archive_in_s3,
    switchover,
    synchronous,
    two_sites,
    playbook
);

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// The script of an example, ended with us: it then ends what it has started.
fn example(name: &str, server: &Server) -> Command {
    script(&examples().join(name), server)
}

fn script(dir: &Path, server: &Server) -> Command {
    let mut command = Command::new("setpriv");
    // What a reader would end by hand, because it waits for ever, ends too.
    command.args(["--pdeathsig", "TERM", "--", "timeout", "-k", "30", "300", "bash"]).arg(dir.join("run.sh"));
    command.env("PATIENCE", "120");
    command.env("PG_BIN", server.bin()).env("WALRELAY", walrelay()).env_remove("S3_ENDPOINT");
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Runs one to its end; what it printed.
#[track_caller]
fn succeeds(mut command: Command) -> String {
    let output = command.output().expect("it can be run");
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    said(&output)
}

/// Runs a script that is made as those of the examples are, and lies in a directory like theirs.
#[track_caller]
pub(crate) fn succeeds_below(examples: &Path, name: &str, server: &Server) -> String {
    succeeds(script(&examples.join(name), server))
}

fn hot_standby(server: &Server) {
    let said = succeeds(example("hot-standby", server));
    assert!(said.contains("standby2 ") && said.contains("compared byte for byte: the same"), "{said}");
}

/// Programs that are not installed where a reader has them; they are found while the directory is there.
fn with_programs(command: &mut Command, programs: &[(&str, String)]) -> Scratch {
    let scratch = Scratch::new("bin");
    for (name, text) in programs {
        fs::write(scratch.join(name), text).expect("the directory is ours");
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(scratch.join(name), everybody).expect("we just wrote it");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env("PATH", [scratch.path().as_os_str(), &path].join(":".as_ref()));
    scratch
}

fn barman_behind_the_relay(server: &Server) {
    let mut command = example("barman", server);
    let _programs = with_programs(&mut command, &[("barman", Python::require().barman_script())]);
    let said = succeeds(command);
    assert!(said.contains("replication slot: OK") && said.contains("Backup completed"), "{said}");
}

fn archive_in_a_directory(server: &Server) {
    let said = succeeds(example("archive-pitr", server));
    assert!(said.contains("600 rows are there again"), "{said}");
}

fn archive_in_s3(server: &Server) {
    let moto = Moto::start("bucket");
    let mut command = example("archive-pitr", server);
    command.env("S3_ENDPOINT", moto.endpoint());
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    let said = succeeds(command);
    assert!(said.contains("walrelay-s3.toml") && said.contains("600 rows are there again"), "{said}");
}

fn switchover(server: &Server) {
    let said = succeeds(example("switchover", server));
    assert!(said.contains("can be promoted, and loses nothing"), "{said}");
}

fn synchronous(server: &Server) {
    let said = succeeds(example("synchronous", server));
    assert!(said.contains(", 0 missing"), "{said}");
}

fn two_sites(server: &Server) {
    let said = succeeds(example("two-sites", server));
    assert!(said.contains("segments of relay-b/var/lib/walrelay/pg_wal"), "{said}");
}

fn playbook(server: &Server) {
    let Some(script) = ansible::playbook_script() else {
        eprintln!("NOT RUN: Ansible could not be installed");
        return;
    };
    let mut command = example("ansible", server);
    let programs = [("barman", Python::require().barman_script()), ("ansible-playbook", script)];
    let _programs = with_programs(&mut command, &programs);
    let said = succeeds(command);
    assert!(said.contains("receive-wal running: OK") && said.contains("changed=0"), "{said}");
}

#[test]
fn the_vagrantfile_is_ruby() {
    let Some(ruby) = tools::checker("ruby") else { return };
    let vagrantfile = examples().join("ansible/Vagrantfile");
    let output = Command::new(ruby).arg("-c").arg(vagrantfile).output().expect("it is here");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn scripts_are_clean() {
    let Some(shellcheck) = tools::checker("shellcheck") else { return };
    let runs = fs::read_dir(examples()).expect("it is in the repository").flatten();
    let scripts = runs.map(|entry| entry.path().join("run.sh")).filter(|script| script.is_file());
    let output = Command::new(shellcheck)
        .args(scripts)
        .arg(examples().join("common.sh"))
        .output()
        .expect("it is here");
    assert!(output.status.success(), "{}", said(&output));
}
