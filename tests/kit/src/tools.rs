//! Programs and devices of the system that stories make disks and system calls fail with, or check what is installed with.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::install::{InstallError, apt_install, cache_dir, unpack_deb};

/// A program, and Debian's package that has it.
const NEEDED: [(&str, &str); 8] = [
    ("strace", "strace"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mount", "mount"),
    ("losetup", "mount"),
    ("prlimit", "util-linux"),
    ("nft", "nftables"),
    ("systemd-analyze", "systemd"),
];
/// Where they are on machines whose PATH has no place for administrators.
const MORE: [&str; 2] = ["/usr/sbin", "/sbin"];
/// What the kernel has to have, and what for.
const DEVICES: [(&str, &str); 2] = [
    ("/dev/fuse", "disks that hang or lose their power (FUSE)"),
    ("/dev/loop-control", "file systems in a file"),
];
const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "tmpfs"];

/// Finds or installs them; their names.
///
/// # Errors
/// When one is missing and cannot be installed, or the kernel lacks what they are used with.
pub fn ensure() -> Result<Vec<&'static str>, InstallError> {
    let failed = |message| InstallError::Tool { name: "programs for failing disks", message };
    for (program, package) in NEEDED {
        if !is_there(program) {
            apt_install(package).map_err(failed)?;
        }
    }
    kernel_has_what_is_needed().map_err(failed)?;
    Ok(NEEDED.map(|(program, _)| program).to_vec())
}

/// A program of the system, also where our PATH does not lead to it.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(MORE.iter().map(Into::into));
    // It is looked for in what the child gets.
    command.env("PATH", std::env::join_paths(dirs).unwrap_or(OsString::from(MORE.join(":"))));
    command
}

/// Where a program of the system is, also where our PATH does not lead to it; `None` if it is not installed.
pub(crate) fn path(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(MORE.iter().map(Into::into));
    dirs.map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// Prometheus's tool that checks metrics and rules, on the path or from Debian's package; where it cannot be had, what it checks
/// is not checked, and that is said.
pub fn promtool() -> Option<std::path::PathBuf> {
    path("promtool").or_else(|| Some(prometheus_dir().join("usr/bin/promtool")).filter(|it| it.is_file()))
}

/// Finds it, or unpacks it: the package, installed, would start a server.
///
/// # Errors
/// When it is neither there nor can be had; the message says what to do.
pub fn ensure_promtool() -> Result<String, InstallError> {
    let failed = |message| InstallError::Tool { name: "promtool", message };
    if promtool().is_none() {
        unpack_deb("prometheus", &prometheus_dir()).map_err(failed)?;
    }
    let found = promtool().ok_or_else(|| failed("unpacked, but the program is missing".to_owned()))?;
    Ok(found.display().to_string())
}

fn prometheus_dir() -> std::path::PathBuf {
    cache_dir().join("prometheus")
}

/// The exporter of Debian that looks at servers, on the path or from its package; the same where it cannot be had.
pub fn postgres_exporter() -> Option<std::path::PathBuf> {
    let unpacked = exporter_dir().join("usr/bin").join(EXPORTER);
    path(EXPORTER).or_else(|| Some(unpacked).filter(|it| it.is_file()))
}

/// Finds it, or unpacks it.
///
/// # Errors
/// When it is neither there nor can be had; the message says what to do.
pub fn ensure_postgres_exporter() -> Result<String, InstallError> {
    let failed = |message| InstallError::Tool { name: EXPORTER, message };
    if postgres_exporter().is_none() {
        unpack_deb(EXPORTER, &exporter_dir()).map_err(failed)?;
    }
    let found =
        postgres_exporter().ok_or_else(|| failed("unpacked, but the program is missing".to_owned()))?;
    Ok(found.display().to_string())
}

/// Its program, and its package.
const EXPORTER: &str = "prometheus-postgres-exporter";

fn exporter_dir() -> std::path::PathBuf {
    cache_dir().join("postgres-exporter")
}

/// Programs that check files of the repository. Without them the rest is tested all the same.
const CHECKERS: [&str; 2] = ["shellcheck", "ruby"];

/// Finds or installs them; each that could not be had, with the reason.
pub fn ensure_checkers() -> Vec<(&'static str, String)> {
    let wanted = missing_checkers().map(|program| (program, apt_install(program)));
    wanted.filter_map(|(program, done)| Some((program, done.err()?))).collect()
}

/// Those that are not here.
pub fn missing_checkers() -> impl Iterator<Item = &'static str> {
    CHECKERS.into_iter().filter(|program| !is_there(program))
}

/// What packages are made and taken with: a program, what is not tested without it, and how to get it. They are large, or take long to
/// build, and no story needs them: nobody installs them unasked.
const PACKAGERS: [(&str, &str, &str); 5] = [
    ("dpkg-deb", "THE DEBIAN PACKAGE IS", "apt-get install dpkg"),
    (
        "cargo-deb",
        "WHAT cargo-deb MAKES OF ITS LIST IS",
        "cargo install --locked cargo-deb; make deb packages-test",
    ),
    ("rpm", "THE RPM IS", "apt-get install rpm"),
    ("cargo-generate-rpm", "THE RPM IS", "cargo install --locked cargo-generate-rpm"),
    ("kubectl", "WHAT kustomize MAKES OF THE KUBERNETES MANIFESTS IS", "make packages-test says more"),
];

/// Those of them that are not here.
pub fn missing_packagers() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    PACKAGERS.into_iter().filter(|(program, ..)| !is_there(program))
}

/// One of them, where it is installed; else it is said that nothing was checked with it, here and behind all tests.
pub fn checker(name: &str) -> Option<std::path::PathBuf> {
    let found = path(name);
    if found.is_none() {
        eprintln!("NOT CHECKED: {name} is not installed");
    }
    found
}

fn is_there(program: &str) -> bool {
    path(program).is_some()
}

/// Of all that is missing, so that nobody finds out one after the other.
fn kernel_has_what_is_needed() -> Result<(), String> {
    // What is a module is loaded when it is first used.
    for module in ["fuse", "loop", "ext4", "xfs"] {
        let _ = program("modprobe").arg("--quiet").arg(module).output();
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let missing = missing_in(&known, |device| Path::new(device).exists());
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join("; ");
    Err(format!(
        "{missing}: stories with disks of their own fail here (a container needs these devices, and CAP_SYS_ADMIN)"
    ))
}

fn missing_in(known: &str, is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let devices = DEVICES.iter().filter(|(device, _)| !is_there(device));
    let devices = devices.map(|(device, what)| format!("there is no {device}, for {what}"));
    let knows = |name: &str| known.lines().any(|line| line.split_whitespace().last() == Some(name));
    let systems = FILE_SYSTEMS.iter().filter(|name| !knows(name));
    devices.chain(systems.map(|name| format!("the kernel has no {name}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let all = "nodev\ttmpfs\n\text4\n\txfs\nnodev\tfuse\n";
        assert_eq!(missing_in(all, |_| true), Vec::<String>::new());
        let missing = missing_in("nodev\ttmpfs\n\text2\n\txfs\n", |device| device != "/dev/fuse");
        let fuse = "there is no /dev/fuse, for disks that hang or lose their power (FUSE)";
        assert_eq!(missing, [fuse, "the kernel has no ext4"]);
    }

    #[test]
    fn programs_of_administrators_are_found() {
        let found = program("mkfs.ext4").arg("-V").output().expect("it is installed, wherever that is");
        assert!(found.status.success());
    }
}
