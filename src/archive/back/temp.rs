//! Files that get their name when they are whole, by processes that may be killed at any time.
//!
//! A file in the making is locked by its maker. One that nobody has locked is left over.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What names of files in the making begin with.
const PREFIX: &str = ".walrelay-restore.";

/// Names that recovery gives to what it asks for. It removes what it finds under them, and syncs what it takes over from
/// them (`KeepFileRestoredFromArchive` in PostgreSQL's `xlogarchive.c`); syncing here would only make it wait.
const OF_RECOVERY: [&str; 2] = ["RECOVERYXLOG", "RECOVERYHISTORY"];

/// A file in the making; removed if it is dropped before it is finished.
#[derive(Debug)]
pub(super) struct TempFile {
    path: PathBuf,
    file: File,
    finished: bool,
}

impl TempFile {
    /// Makes one in `dir`.
    pub(super) fn create(dir: &Path) -> io::Result<TempFile> {
        loop {
            let random = getrandom::u64().map_err(io::Error::other)?;
            let path = dir.join(format!("{PREFIX}{random:016x}"));
            let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.lock()?;
            // Somebody may have taken it for a leftover before it was locked.
            if is_at(&file, &path) {
                return Ok(TempFile { path, file, finished: false });
            }
        }
    }

    /// Writes it and gives it its name, in place of whatever has that name. Not durable: after a crash of the
    /// machine anything may be there.
    pub(super) fn finish(mut self, content: &[u8], name: &Path) -> io::Result<()> {
        self.file.write_all(content)?;
        self.name(name)
    }

    /// Like [`TempFile::finish`], and its content is durable before it has its name.
    pub(super) fn finish_synced(mut self, content: &[u8], name: &Path) -> io::Result<()> {
        self.file.write_all(content)?;
        self.file.sync_data()?;
        self.name(name)
    }

    fn name(&mut self, name: &Path) -> io::Result<()> {
        fs::rename(&self.path, name)?;
        self.finished = true;
        Ok(())
    }

    /// Removes what killed processes have left in `dir`. What cannot be removed stays.
    pub(super) fn remove_leftovers(dir: &Path) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        let named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
        for entry in named {
            let file = File::options().write(true).open(entry.path());
            if file.is_ok_and(|file| file.try_lock().is_ok()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Puts a file in its place, whole or not at all.
pub(super) fn put(content: &[u8], target: &Path) -> io::Result<()> {
    let file = TempFile::create(dir_of(target))?;
    match OF_RECOVERY.iter().any(|name| target.file_name() == Some(name.as_ref())) {
        true => file.finish(content, target),
        false => file.finish_synced(content, target),
    }
}

/// What the system said of a file of so many bytes that was to be written in `dir`: where there was no room, how much there is, and
/// what to do.
pub(super) fn told(error: io::Error, dir: &Path, size: u64, remedy: &str) -> io::Error {
    if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return error;
    }
    let free = free_space(dir)
        .map_or_else(|| "nobody knows how much is".to_owned(), |free| format!("{} are", megabytes(free)));
    let text =
        format!("there is no room: it takes {}, and {free} free on its disk; {remedy}", megabytes(size));
    io::Error::new(error.kind(), text)
}

/// What is free for whoever we are.
pub(super) fn free_space(dir: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(dir).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / f64::from(1 << 20))
}

/// The directory a file is in.
pub(super) fn dir_of(target: &Path) -> &Path {
    target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (held, named) = (file.metadata().map(id), fs::metadata(path).map(id));
    held.is_ok_and(|held| named.is_ok_and(|named| named == held))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn a_file_is_there_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("RECOVERYXLOG");
        fs::write(&name, "old").unwrap();
        let file = TempFile::create(dir.path()).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"old");
        file.finish(b"new", &name).unwrap();
        assert_eq!((fs::read(&name).unwrap(), files(dir.path())), (b"new".to_vec(), 1));
        drop(TempFile::create(dir.path()).unwrap());
        assert_eq!(files(dir.path()), 1);
    }

    #[test]
    fn leftovers_go_and_files_in_the_making_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!("{PREFIX}0123")), "half").unwrap();
        fs::write(dir.path().join("000000010000000000000001"), "").unwrap();
        let file = TempFile::create(dir.path()).unwrap();
        TempFile::remove_leftovers(dir.path());
        assert_eq!(files(dir.path()), 2);
        file.finish(b"x", &dir.path().join("y")).unwrap();
    }
}
