//! The account servers and their clients run under.
//!
//! PostgreSQL refuses to run as root. As root everything is run as `postgres`, or `nobody` where that does not
//! exist; otherwise as ourselves.

use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ids {
    uid: u32,
    gid: u32,
}

/// `None`: ourselves.
static SERVERS: LazyLock<Option<Ids>> = LazyLock::new(|| {
    rustix::process::getuid().is_root().then(|| {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = ["postgres", "nobody"].iter().find_map(|name| ids_of(&passwd, name));
        found.unwrap_or(Ids { uid: 65534, gid: 65534 })
    })
});

fn ids_of(passwd: &str, name: &str) -> Option<Ids> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut numbers = line.split(':').skip(2).map(str::parse);
    Some(Ids { uid: numbers.next()?.ok()?, gid: numbers.next()?.ok()? })
}

/// Whether servers run under another account than we do, which then needs access to every file involved.
pub(crate) fn is_another() -> bool {
    SERVERS.is_some()
}

/// A command run under the servers' account, with nothing of our environment that could steer libpq.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = clean_command(program.as_ref());
    if let Some(ids) = *SERVERS {
        command.uid(ids.uid).gid(ids.gid);
    }
    command
}

/// A lasting command under the servers' account: the kernel signals it when our process dies.
pub(crate) fn lasting(program: &Path, on_parent_death: &str) -> Command {
    let mut command = tied(on_parent_death);
    if let Some(Ids { uid, gid }) = *SERVERS {
        command.args(["--clear-groups", "--reuid", &uid.to_string(), "--regid", &gid.to_string()]);
    }
    command.arg("--").arg(program);
    command
}

/// A command run as ourselves that the kernel kills when our process dies, with nothing in its environment that
/// could steer libpq.
pub fn tied_command(program: impl AsRef<Path>) -> Command {
    let mut command = tied("KILL");
    command.arg("--").arg(program.as_ref());
    command
}

/// `setpriv` sets the signal between fork and exec: doing it ourselves would take `unsafe`.
fn tied(on_parent_death: &str) -> Command {
    let mut command = clean_command(Path::new("setpriv"));
    command.args(["--pdeathsig", on_parent_death]);
    command
}

/// A command run as ourselves, with the same clean environment.
pub(crate) fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    // The present directory may be closed to the servers' account, and initdb insists on reading it. A home may hold
    // passwords and certificates, and libpq fails on those it may not read.
    command.env("LC_ALL", "C").env("PGCONNECT_TIMEOUT", "20").env("HOME", "/nonexistent").current_dir("/");
    command
}

/// Gives a file or directory to the servers' account.
pub(crate) fn give(path: &Path) -> io::Result<()> {
    match *SERVERS {
        Some(ids) => chown(path, Some(ids.uid), Some(ids.gid)),
        None => Ok(()),
    }
}

/// Gives a file to the group of the servers' account.
pub(crate) fn give_group(path: &Path) -> io::Result<()> {
    (*SERVERS).map_or(Ok(()), |ids| chown(path, None, Some(ids.gid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_lines() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533:nobody:/:/bin/false\n";
        assert_eq!(ids_of(passwd, "nobody"), Some(Ids { uid: 65534, gid: 65533 }));
        assert_eq!(ids_of(passwd, "postgres"), None);
    }
}
