//! Directories of their own for each cluster, relay and client.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::account;

/// A new directory that belongs to the servers' account and is removed with this value, unless the test is
/// failing: then it stays and its path is printed. The path is short enough for Unix sockets.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How the names of all of them begin; the process id follows.
const PREFIX: &str = "wr-";
/// A file in those that stay.
const KEPT: &str = "kept";

impl Scratch {
    /// Makes the directory; `name` ends its path, for people who look around.
    pub fn new(name: &str) -> Scratch {
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("{PREFIX}{}-{number}-{name}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Scratch::adopt(path),
                // Left by a killed process that had our pid.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => panic!("could not create {}: {error}", path.display()),
            }
        }
    }

    fn adopt(path: PathBuf) -> Scratch {
        let scratch = Scratch { path };
        fs::set_permissions(&scratch.path, fs::Permissions::from_mode(0o755)).expect("we just created it");
        account::give(&scratch.path).expect("root may give files away");
        scratch
    }

    /// The process that has made this directory in `temp`, if it is one of these.
    pub(crate) fn owner(path: &Path, temp: &Path) -> Option<u32> {
        if path.parent() != Some(temp) {
            return None;
        }
        let (pid, _) = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split_once('-')?;
        pid.parse().ok()
    }

    /// Whether it stays until somebody has looked at it.
    pub(crate) fn is_kept(path: &Path) -> bool {
        path.join(KEPT).exists()
    }

    /// Makes it stay.
    pub(crate) fn keep(path: &Path) {
        let _ = fs::write(path.join(KEPT), "");
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new directory below it, which also belongs to the servers' account.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.join(name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        account::give(&dir).expect("root may give files away");
        dir
    }

    /// A file below it that nobody else can read.
    pub fn secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("we just wrote it");
        path
    }

    /// A file below it that only the servers' group can read besides us.
    pub fn shared_secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.secret(name, content);
        let shared = account::give_group(&path)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o640)));
        shared.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// The same for the servers' account, which clients run as.
    pub fn their_secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.secret(name, content);
        account::give(&path).expect("root may give files away");
        path
    }

    /// A path below it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            Scratch::keep(&self.path);
            eprintln!("kept {}", self.path.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
