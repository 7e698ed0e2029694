//! A Unix-domain socket's name on disk: `.s.PGSQL.<port>` and its lock file (PostgreSQL: `pqcomm.c`,
//! `CreateSocketLockFile`).

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A bound socket; its files go when this is dropped.
#[derive(Debug)]
pub(super) struct BoundUnix {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
    lock_path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// The socket in `dir` for `port`. Whoever still answers there keeps it; what a crash left is replaced.
pub(super) fn bind(dir: &Path, port: u16) -> io::Result<BoundUnix> {
    let path = dir.join(format!(".s.PGSQL.{port}"));
    let lock_path = dir.join(format!(".s.PGSQL.{port}.lock"));
    let mut lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path)?;
    lock.try_lock().map_err(|_| in_use(&lock_path))?;
    // A PostgreSQL server does not lock its file; it answers.
    if StdUnixStream::connect(&path).is_ok() {
        return Err(in_use(&path));
    }
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o777))?;
    Ok(BoundUnix { listener, path, lock_path, _lock: lock })
}

fn in_use(path: &Path) -> io::Error {
    let text = format!("\"{}\" is in use by another server; stop it or choose another port", path.display());
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

impl Drop for BoundUnix {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_has_one_owner_and_survives_a_crash_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let bound = bind(dir.path(), 5432).unwrap();
        assert_eq!(bind(dir.path(), 5432).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(bind(dir.path(), 5433).unwrap());
        let lock = fs::read_to_string(&bound.lock_path).unwrap();
        assert_eq!(lock, format!("{}\n", std::process::id()));
        drop(bound);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // A crash leaves both files, and nobody answers.
        fs::write(dir.path().join(".s.PGSQL.5432.lock"), "1\n").unwrap();
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap());
        drop(bind(dir.path(), 5432).unwrap());
        // A server that does not lock its file, but answers.
        let _server = std::os::unix::net::UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
        assert_eq!(bind(dir.path(), 5432).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
