//! A target that is a directory of this machine, or mounted on it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags};

use super::super::buffer;
use super::Stored;

/// Begins the names of files that are being written.
const NEW_FILE_PREFIX: &str = ".walrelay-new.";
/// After this time nobody writes such a file any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// The root must exist: a file system that is not mounted must not be taken for an empty archive, nor be
/// filled up below its mount point.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
}

impl Directory {
    pub(super) fn new(root: PathBuf) -> Directory {
        Directory { root }
    }

    /// A path for messages.
    pub(super) fn show(&self, path: &str) -> String {
        self.root.join(path).display().to_string()
    }

    /// Writes a file whole and durably under a name of its own, then gives it its name; tells whether it did.
    pub(super) fn write(&self, path: &str, content: &[u8], replace: bool) -> io::Result<bool> {
        let target = self.root.join(path);
        let parent = target.parent().unwrap_or(&self.root).to_owned();
        self.make_dirs(&parent)?;
        let temporary = parent.join(new_file_name());
        let named = write_synced(&temporary, content).and_then(|()| rename(&temporary, &target, replace));
        if !matches!(named, Ok(true)) {
            let _ = fs::remove_file(&temporary);
        }
        if named? {
            File::open(&parent)?.sync_all()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Makes what is missing of a directory, durably.
    fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        self.must_exist()?;
        let mut missing = Vec::new();
        let mut at = dir;
        while !at.is_dir() {
            missing.push(at);
            at = at.parent().ok_or(ErrorKind::NotFound)?;
        }
        for dir in missing.into_iter().rev() {
            match fs::DirBuilder::new().mode(0o750).create(dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => File::open(dir.parent().unwrap_or(dir))?.sync_all()?,
            }
        }
        Ok(())
    }

    /// Reads a file.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<Bytes>> {
        let Some(file) = self.if_found(File::open(self.root.join(path)))? else { return Ok(None) };
        match file.metadata()?.is_dir() {
            true => Ok(None),
            false => buffer::read_to_end(file).map(Some),
        }
    }

    pub(super) fn head(&self, path: &str) -> io::Result<Option<Stored>> {
        let found = self.if_found(fs::metadata(self.root.join(path)))?;
        found.filter(fs::Metadata::is_file).map(|meta| stored(path.to_owned(), &meta)).transpose()
    }

    pub(super) fn list(&self, path: &str) -> io::Result<Vec<Stored>> {
        self.must_exist()?;
        let mut found = Vec::new();
        walk(&self.root.join(path), path, &mut |path, entry| {
            match entry.metadata() {
                Ok(meta) if !is_new(entry) => found.push(stored(path, &meta)?),
                // Removed or renamed while we looked.
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            Ok(())
        })?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Removes a file, and its directory if that was the last one.
    pub(super) fn remove(&self, path: &str) -> io::Result<()> {
        let target = self.root.join(path);
        if self.if_found(fs::remove_file(&target))?.is_none() {
            return Ok(());
        }
        let parent = target.parent().unwrap_or(&self.root);
        if parent == self.root || fs::remove_dir(parent).is_err() {
            return File::open(parent)?.sync_all();
        }
        Ok(())
    }

    /// Removes files that were being written a day ago and more.
    pub(super) fn tidy(&self, _: &str) -> io::Result<()> {
        self.must_exist()?;
        walk(&self.root, "", &mut |_, entry| {
            let old = |meta: fs::Metadata| {
                let age = meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
                age.is_some_and(|age| age > ABANDONED)
            };
            match is_new(entry) && entry.metadata().is_ok_and(old) {
                true => fs::remove_file(entry.path()),
                false => Ok(()),
            }
        })
    }

    /// What is not found below a root that is there is certainly not there.
    fn if_found<T>(&self, result: io::Result<T>) -> io::Result<Option<T>> {
        match result {
            Ok(found) => Ok(Some(found)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                self.must_exist().map(|()| None)
            }
            Err(error) => Err(error),
        }
    }

    fn must_exist(&self) -> io::Result<()> {
        match self.root.is_dir() {
            true => Ok(()),
            false => {
                let text =
                    format!("directory \"{}\" does not exist; create or mount it", self.root.display());
                Err(io::Error::new(ErrorKind::NotFound, text))
            }
        }
    }
}

fn new_file_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Two machines may have the same pids and write to the same network file system.
    let random = getrandom::u32().unwrap_or_default();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{NEW_FILE_PREFIX}{}.{number}.{random:08x}", std::process::id())
}

fn is_new(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with(NEW_FILE_PREFIX)
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o640).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Gives a file its name; false if that is taken and may not be.
fn rename(from: &Path, to: &Path, replace: bool) -> io::Result<bool> {
    if replace {
        return fs::rename(from, to).map(|()| true);
    }
    let renamed = match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems that cannot: a second name is refused as well if it is taken.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to).and_then(|()| fs::remove_file(from))
        }
        other => other.map_err(io::Error::from),
    };
    match renamed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn stored(path: String, meta: &fs::Metadata) -> io::Result<Stored> {
    Ok(Stored { path, size: meta.len(), modified: meta.modified()? })
}

/// Shows every file below `dir`, whose path is `path`.
fn walk(
    dir: &Path,
    path: &str,
    show: &mut dyn FnMut(String, &fs::DirEntry) -> io::Result<()>,
) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        // Ours are all text; others' are nothing to us.
        let Some(name) = name.to_str() else { continue };
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        match entry.file_type()?.is_dir() {
            true => walk(&entry.path(), &path, show)?,
            false => show(path, &entry)?,
        }
    }
    Ok(())
}
