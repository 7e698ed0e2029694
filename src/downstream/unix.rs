//! A Unix-domain socket's name on disk: `.s.PGSQL.<port>` and its lock file (PostgreSQL: `pqcomm.c`, `miscinit.c`
//! `CreateLockFile`).
//!
//! The directory may be everybody's, `/tmp` for one. So nothing there is followed, truncated or written over: the lock
//! file is made anew or not at all, one that exists is only read, and nothing but a socket is removed to make room for
//! ours.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, getpid, getppid, test_kill_process};
use tokio::net::UnixListener;

use crate::sockets::{For, Sockets};

/// Second line of a relay's lock file. Its owner holds a lock on it as long as it lives, so there is no doubt about one
/// that is left over.
const OURS: &str = "walrelay";
/// Tries to make the lock file, while others come and go.
const TRIES: usize = 100;
/// Looks at a lock file without content, whose owner may be about to write it.
const LOOKS: usize = 10;
const PAUSE: Duration = Duration::from_millis(50);
/// How often a lock is tried for, and the time between: three tenths of a second.
const LOCK_TRIES: usize = 30;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A bound socket; its files go when this is dropped, but for the name of a socket that stays open or is somebody else's.
#[derive(Debug)]
pub(super) struct BoundUnix {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
    _lock: LockFile,
    /// Whether a socket unit has made it.
    is_given: bool,
    sockets: Arc<Sockets>,
}

/// The socket in `dir` for `port`, one that was passed to this process if there is one. Whoever still uses it keeps it; what a
/// crash left is replaced. Waits for the disk.
pub(super) fn bind(dir: &Path, port: u16, sockets: &Arc<Sockets>) -> io::Result<BoundUnix> {
    let path = dir.join(format!(".s.PGSQL.{port}"));
    let lock = LockFile::acquire(dir.join(format!(".s.PGSQL.{port}.lock")))?;
    let (listener, given) = match sockets.take_unix(For::Consumers, &path) {
        Some(given) => {
            let (listener, name) = given.into_parts();
            (UnixListener::from_std(listener)?, name)
        }
        None => {
            make_way(&path)?;
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o777))?;
            (listener, None)
        }
    };
    let is_given = given.is_some();
    sockets.note(For::Consumers, &listener, &path.to_string_lossy(), given)?;
    Ok(BoundUnix { listener, path, _lock: lock, is_given, sockets: sockets.clone() })
}

/// Removes a socket at which nobody answers.
fn make_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => Err(refused(format!(
            "\"{}\" exists and is not a socket; remove it or choose another port",
            path.display()
        ))),
        // Servers older than lock files for sockets, or without them.
        Ok(_) if somebody_answers(path)? => Err(in_use(path, None)),
        Ok(_) => fs::remove_file(path),
    }
}

fn somebody_answers(path: &Path) -> io::Result<bool> {
    use rustix::io::Errno;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        // Or so many wait there already that there is no room.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A lock file that is ours. It goes when this is dropped.
#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    /// Locked as long as it is open.
    file: File,
}

impl LockFile {
    fn acquire(path: PathBuf) -> io::Result<LockFile> {
        let mut looks = LOOKS;
        for _ in 0..TRIES {
            match LockFile::create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => return created,
            }
            match Found::at(&path)? {
                Found::Gone => {}
                Found::Stale(left) if is_at(&left, &path) => fs::remove_file(&path)?,
                Found::Stale(_) => {}
                Found::Empty(left) => {
                    // It may have been looked at as often as that before, and be another file by now.
                    looks = looks.saturating_sub(1);
                    if looks == 0 && is_at(&left, &path) {
                        fs::remove_file(&path)?;
                        looks = LOOKS;
                    }
                    // Its owner is about to lock it.
                    drop(left);
                    std::thread::sleep(PAUSE);
                }
                Found::Used(pid) => return Err(in_use(&path, pid)),
                Found::Odd(what) => {
                    let text = format!("\"{}\" {what}; remove it if no server runs there", path.display());
                    return Err(refused(text));
                }
            }
        }
        Err(in_use(&path, None))
    }

    fn create(path: &Path) -> io::Result<LockFile> {
        // O_EXCL: a symbolic link is something that exists.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let written = match try_for_a_moment(&file) {
            Ok(()) => writeln!(file, "{}\n{OURS}", std::process::id()),
            Err(error) => Err(error.into()),
        };
        let lock = LockFile { path: path.to_owned(), file };
        written.map(|()| lock)
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A lock file that exists.
enum Found {
    Gone,
    /// Its owner has gone.
    Stale(File),
    /// It may be in the making.
    Empty(File),
    Used(Option<i32>),
    /// Not what it should be.
    Odd(&'static str),
}

impl Found {
    /// Only reads.
    fn at(path: &Path) -> io::Result<Found> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Gone),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return Ok(Found::Odd("is a symbolic link"));
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Ok(Found::Odd("is another user's"));
            }
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Ok(Found::Odd("is not a regular file"));
        }
        // Some file systems cannot tell.
        let is_free = match try_for_a_moment(&file) {
            Ok(()) => true,
            Err(fs::TryLockError::WouldBlock) => return Ok(Found::Used(None)),
            Err(fs::TryLockError::Error(_)) => false,
        };
        let mut content = Vec::new();
        (&file).take(1024).read_to_end(&mut content)?;
        let content = String::from_utf8_lossy(&content);
        let mut lines = content.lines();
        let pid = lines.next().and_then(|line| line.trim().parse::<i32>().ok());
        Ok(match pid {
            _ if is_free && lines.next() == Some(OURS) => Found::Stale(file),
            _ if content.trim().is_empty() => Found::Empty(file),
            // PG: a server in single-user mode writes its PID with a minus
            Some(pid) if is_alive(pid.saturating_abs()) => Found::Used(Some(pid.saturating_abs())),
            Some(1.. | ..0) => Found::Stale(file),
            Some(0) | None => Found::Odd("is not a lock file"),
        })
    }
}

/// Somebody who only looks, as [`Found::at`] does, holds the lock a moment, and is no owner.
fn try_for_a_moment(file: &File) -> Result<(), fs::TryLockError> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            tried => return tried,
        }
    }
    file.try_lock()
}

/// Whether there is such a process, other than we and who started us: after a reboot, or in a container, their PIDs are
/// often those of the ones before (PostgreSQL: `CreateLockFile`).
fn is_alive(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return false };
    let is_us = pid == getpid() || Some(pid) == getppid();
    !is_us && test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

/// Whether the path still leads to this file.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |there: fs::Metadata| {
        file.metadata().is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
    };
    fs::symlink_metadata(path).is_ok_and(same)
}

fn in_use(path: &Path, pid: Option<i32>) -> io::Error {
    let pid = pid.map(|pid| format!(" (PID {pid})")).unwrap_or_default();
    let text =
        format!("\"{}\" is in use by another server{pid}; stop it or choose another port", path.display());
    io::Error::new(ErrorKind::AddrInUse, text)
}

fn refused(text: String) -> io::Error {
    io::Error::new(ErrorKind::AlreadyExists, text)
}

impl Drop for BoundUnix {
    fn drop(&mut self) {
        if !self.is_given {
            self.sockets.end_name(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdUnixListener;

    use super::*;

    const SOCKET: &str = ".s.PGSQL.5432";
    const LOCK: &str = ".s.PGSQL.5432.lock";

    fn bind_at(dir: &tempfile::TempDir, port: u16) -> io::Result<BoundUnix> {
        bind(dir.path(), port, &Arc::default())
    }

    #[tokio::test]
    async fn the_name_of_a_socket_that_stays_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let bound = bind_at(&dir, 5432).unwrap();
        let handle = bound.sockets.into_next();
        bound.sockets.stay();
        drop(bound);
        assert!(dir.path().join(SOCKET).exists() && !dir.path().join(LOCK).exists());
        // Who connects now waits for the next process.
        std::os::unix::net::UnixStream::connect(dir.path().join(SOCKET)).unwrap();
        drop(handle);
        // And where there is none, the name is free.
        drop(bind_at(&dir, 5432).unwrap());
    }

    #[tokio::test]
    async fn a_socket_has_one_owner_and_survives_a_crash_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let bound = bind_at(&dir, 5432).unwrap();
        assert_eq!(bind_at(&dir, 5432).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(bind_at(&dir, 5433).unwrap());
        let lock = fs::read_to_string(dir.path().join(LOCK)).unwrap();
        assert_eq!(lock, format!("{}\nwalrelay\n", std::process::id()));
        drop(bound);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // A crash leaves both files, and nobody answers. Some other process has got the PID meanwhile.
        for left in
            ["1\nwalrelay\n".to_owned(), "999999999\n".to_owned(), format!("{}\n", std::process::id())]
        {
            fs::write(dir.path().join(LOCK), left).unwrap();
            drop(StdUnixListener::bind(dir.path().join(SOCKET)).unwrap());
            drop(bind_at(&dir, 5432).unwrap());
        }
        // A server that has no lock file, but answers.
        let _server = StdUnixListener::bind(dir.path().join(SOCKET)).unwrap();
        assert_eq!(bind_at(&dir, 5432).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    /// Of starts at the same time each looks at what the other has; all would end.
    #[tokio::test]
    async fn who_only_looks_is_not_taken_for_an_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK);
        let end = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    drop(Found::at(&path));
                }
            });
            let taken = (0..200).map(|_| {
                fs::write(&path, format!("999999999\n{OURS}\n")).unwrap();
                LockFile::acquire(path.clone()).map(drop).map_err(|error| error.to_string())
            });
            let taken: Vec<_> = taken.collect();
            end.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(taken, vec![Ok(()); 200]);
        });
    }

    /// Of servers that come and go each leaves an empty one behind, or is about to write it.
    #[tokio::test]
    async fn lock_files_that_are_empty_again_and_again_are_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        let (path, next) = (dir.path().join(LOCK), dir.path().join("next"));
        fs::write(&path, "").unwrap();
        let end = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::write(&next, "").unwrap();
                    fs::rename(&next, &path).unwrap();
                }
            });
            let taken = LockFile::acquire(path.clone()).map(drop).map_err(|error| error.kind());
            end.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(matches!(taken, Ok(()) | Err(ErrorKind::AddrInUse)), "{taken:?}");
        });
    }

    #[tokio::test]
    async fn a_lock_file_of_a_server_that_lives_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK);
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let theirs = format!("{}\n/var/lib/postgresql\n1767225600\n5432\n", other.id());
        fs::write(&path, &theirs).unwrap();
        let error = bind_at(&dir, 5432).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&format!("(PID {})", other.id())), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
        other.kill().unwrap();
        other.wait().unwrap();
        drop(bind_at(&dir, 5432).unwrap());
        // Made by a crash between two steps, or about to be written.
        fs::write(&path, "").unwrap();
        drop(bind_at(&dir, 5432).unwrap());
    }

    #[tokio::test]
    async fn nothing_of_somebody_elses_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "content").unwrap();
        for name in [LOCK, SOCKET] {
            let path = dir.path().join(name);
            let refused = |what: &str| {
                let error = bind_at(&dir, 5432).unwrap_err();
                assert!(error.to_string().contains(what), "{error}");
                fs::remove_file(&path).unwrap();
            };
            std::os::unix::fs::symlink(&precious, &path).unwrap();
            refused(if name == LOCK { "is a symbolic link" } else { "is not a socket" });
            fs::write(&path, "a letter\n").unwrap();
            refused(if name == LOCK { "is not a lock file" } else { "is not a socket" });
            assert_eq!(fs::read_to_string(&precious).unwrap(), "content");
        }
        drop(bind_at(&dir, 5432).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
