//! A target that is a directory of this machine, or mounted on it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::Stored;
use super::buffer;
use super::limit::Limit;
use super::root::{Access, MARKER, Root};
use super::sync::{NotSynced, Syncs};
use crate::lane::GivenUp;
use crate::pulse::Pulse;

/// Begins the names of files that are being written.
const NEW_FILE_PREFIX: &str = ".walrelay-new.";
/// After this time nobody writes such a file any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// How long a name may be in other hands before that is an error. Longer only where the file system hangs.
const HANDED_OVER: Duration = Duration::from_secs(1);

/// The root must exist: a file system that is not mounted must not be taken for an empty archive, nor be
/// filled up below its mount point.
#[derive(Debug)]
pub(super) struct Directory {
    root: Root,
}

impl Directory {
    pub(super) fn new(root: PathBuf) -> Directory {
        Directory { root: Root::new(root) }
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// A path for messages.
    pub(super) fn show(&self, path: &str) -> String {
        self.at(path).display().to_string()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Writes a file whole and durably under a name of its own, then gives it its name; `None` if that is taken and
    /// may not be, else what `fill` has to say.
    pub(super) fn write<T>(
        &self,
        path: &str,
        replace: bool,
        given_up: &GivenUp,
        fill: impl FnOnce(&mut File) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        self.root.admit(Access::Write)?;
        self.write_here(path, replace, given_up, fill).map_err(|error| self.explained(error))
    }

    fn write_here<T>(
        &self,
        path: &str,
        replace: bool,
        given_up: &GivenUp,
        fill: impl FnOnce(&mut File) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        let target = self.at(path);
        if !replace && fs::symlink_metadata(&target).is_ok() {
            return Ok(None);
        }
        let parent = target.parent().unwrap_or(self.root.path()).to_owned();
        let before = self.syncs().failures();
        self.make_dirs(path)?;
        let temporary = parent.join(new_file_name());
        let named = write_synced(&temporary, self.syncs(), fill).and_then(|made| {
            let _name = NameInHand::take(&target, given_up)?;
            let is_named = rename(&temporary, &target, replace)?;
            Ok(is_named.then_some(made))
        });
        if !matches!(named, Ok(Some(_))) {
            let _ = fs::remove_file(&temporary);
        }
        let Some(made) = named? else { return Ok(None) };
        self.sync_dirs(path)?;
        self.syncs().none_failed_since(before)?;
        self.root.is_unchanged()?;
        Ok(Some(made))
    }

    /// Writes and syncs a file that nobody sees, in the directory `path` if there is one.
    pub(super) fn try_write(&self, path: &str) -> io::Result<()> {
        let dir = Some(self.at(path)).filter(|dir| dir.is_dir());
        let dir = dir.as_deref().unwrap_or(self.root.path());
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(nameless) => fill(&mut File::from(nameless)),
            // Network file systems mostly.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => try_named(dir),
            Err(error) => Err(error.into()),
        }
    }

    fn syncs(&self) -> &Syncs {
        self.root.syncs()
    }

    /// Makes what is missing between the root and a file, and never the root.
    fn make_dirs(&self, path: &str) -> io::Result<()> {
        let mut dir = self.root.path().to_owned();
        for part in Path::new(path).parent().into_iter().flat_map(Path::iter) {
            dir.push(part);
            match fs::DirBuilder::new().mode(0o750).create(&dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the name of a file durable, and those of the directories it is in, whoever has made them.
    fn sync_dirs(&self, path: &str) -> io::Result<()> {
        for dir in Path::new(path).ancestors().skip(1) {
            self.syncs().sync(&File::open(self.root.path().join(dir))?)?;
        }
        Ok(())
    }

    /// A root that has gone meanwhile says more than a file that cannot be made; a sync that has failed comes first.
    fn explained(&self, error: io::Error) -> io::Error {
        match error.get_ref().is_some_and(|inner| inner.is::<NotSynced>()) {
            true => error,
            false => self.root.admit(Access::Write).err().unwrap_or(error),
        }
    }

    /// Makes durable what somebody has written, its name included.
    pub(super) fn sync(&self, path: &str) -> io::Result<()> {
        self.root.admit(Access::Write)?;
        let before = self.syncs().failures();
        self.syncs().sync(&File::open(self.at(path))?)?;
        self.sync_dirs(path)?;
        self.syncs().none_failed_since(before)?;
        self.root.is_unchanged()
    }

    /// Reads a file.
    pub(super) fn read(&self, path: &str, limit: &Limit, pulse: &Pulse) -> io::Result<Option<Bytes>> {
        let Some(file) = self.if_found(File::open(self.at(path)))? else { return Ok(None) };
        pulse.beat();
        match file.metadata()?.is_dir() {
            true => Ok(None),
            false => buffer::read_to_end(file, limit, pulse).map(Some),
        }
    }

    /// Shows a file to `work`, little of it at a time.
    pub(super) fn read_through<T>(
        &self,
        path: &str,
        limit: &Limit,
        pulse: &Pulse,
        work: impl FnOnce(&mut dyn Read) -> T,
    ) -> io::Result<Option<T>> {
        let Some(file) = self.if_found(File::open(self.at(path)))? else { return Ok(None) };
        pulse.beat();
        match file.metadata()?.is_dir() {
            true => Ok(None),
            false => buffer::read_through(file, limit, pulse, work).map(Some),
        }
    }

    pub(super) fn head(&self, path: &str) -> io::Result<Option<Stored>> {
        let found = self.if_found(fs::metadata(self.at(path)))?;
        found.filter(fs::Metadata::is_file).map(|meta| stored(path.to_owned(), &meta)).transpose()
    }

    /// Paths of files below a directory that sort after `after`. Looks at names only, and into no directory that cannot
    /// have any.
    pub(super) fn names_after(&self, path: &str, after: &str, pulse: &Pulse) -> io::Result<Vec<String>> {
        self.root.admit(Access::Read)?;
        let mut found = Vec::new();
        let descend = |path: &str| path.as_bytes() >= &after.as_bytes()[..path.len().min(after.len())];
        walk(&self.at(path), path, &descend, pulse, &mut |path, entry| {
            if path.as_str() > after && !is_new(entry) && path != MARKER {
                found.push(path);
            }
            Ok(())
        })?;
        found.sort();
        Ok(found)
    }

    pub(super) fn list(&self, path: &str, pulse: &Pulse) -> io::Result<Vec<Stored>> {
        let mut found = Vec::new();
        self.visit(path, pulse, &mut |one| found.push(one))?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Shows every file below a path, in no order.
    pub(super) fn visit(&self, path: &str, pulse: &Pulse, see: &mut dyn FnMut(Stored)) -> io::Result<()> {
        self.root.admit(Access::Read)?;
        walk(&self.at(path), path, &|_| true, pulse, &mut |path, entry| {
            match entry.metadata() {
                Ok(meta) if !is_new(entry) && path != MARKER => see(stored(path, &meta)?),
                // Removed or renamed while we looked.
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            Ok(())
        })
    }

    /// Removes a file, and its directory if that was the last one.
    pub(super) fn remove(&self, path: &str, given_up: &GivenUp) -> io::Result<()> {
        self.root.admit(Access::Write)?;
        let target = self.at(path);
        let name = NameInHand::take(&target, given_up)?;
        if self.if_found(fs::remove_file(&target))?.is_none() {
            return Ok(());
        }
        drop(name);
        let parent = target.parent().unwrap_or(self.root.path());
        if parent == self.root.path() || fs::remove_dir(parent).is_err() {
            return self.syncs().sync(&File::open(parent)?);
        }
        Ok(())
    }

    /// Removes files that were being written a day ago and more.
    pub(super) fn tidy(&self) -> io::Result<()> {
        self.root.admit(Access::Write)?;
        walk(self.root.path(), "", &|_| true, &Pulse::default(), &mut |_, entry| {
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
                self.root.admit(Access::Read).map(|()| None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Names that are being given or taken away, in whatever target.
static IN_HAND: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static LAID_DOWN: Condvar = Condvar::new();

/// The right to give a name or take it away: a call that hangs in that, and was given up, has it still, so that what it
/// does at last is not done to what is newer.
struct NameInHand(PathBuf);

impl NameInHand {
    /// Only for a call that somebody waits for.
    fn take(name: &Path, given_up: &GivenUp) -> io::Result<NameInHand> {
        let names = IN_HAND.lock().unwrap_or_else(PoisonError::into_inner);
        let is_taken = |names: &mut BTreeSet<PathBuf>| names.contains(name);
        let waited = LAID_DOWN.wait_timeout_while(names, HANDED_OVER, is_taken);
        let (mut names, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            let reason = "a call about this name that was given up has not ended yet";
            return Err(io::Error::new(ErrorKind::ResourceBusy, reason));
        }
        if given_up.is_so() {
            return Err(io::Error::new(ErrorKind::TimedOut, "it was given up"));
        }
        names.insert(name.to_owned());
        Ok(NameInHand(name.to_owned()))
    }
}

impl Drop for NameInHand {
    fn drop(&mut self) {
        IN_HAND.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        LAID_DOWN.notify_all();
    }
}

pub(super) fn new_file_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Two machines may have the same pids and write to the same network file system.
    let random = getrandom::u32().unwrap_or_default();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{NEW_FILE_PREFIX}{}.{number}.{random:08x}", std::process::id())
}

fn is_new(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with(NEW_FILE_PREFIX)
}

/// With a name that is not counted, where there are no files without one.
fn try_named(dir: &Path) -> io::Result<()> {
    let path = dir.join(new_file_name());
    let mut file = File::options().write(true).create_new(true).mode(0o640).open(&path)?;
    let filled = fill(&mut file);
    fs::remove_file(&path)?;
    filled
}

fn fill(file: &mut File) -> io::Result<()> {
    file.write_all(&[1; 8192])?;
    file.sync_data()
}

fn write_synced<T>(
    path: &Path,
    syncs: &Syncs,
    fill: impl FnOnce(&mut File) -> io::Result<T>,
) -> io::Result<T> {
    let mut file = File::options().write(true).create_new(true).mode(0o640).open(path)?;
    #[cfg(test)]
    syncs.writes.next(&file)?;
    let made = fill(&mut file)?;
    syncs.sync(&file)?;
    Ok(made)
}

/// Gives a file its name; false if that is taken and may not be.
pub(super) fn rename(from: &Path, to: &Path, replace: bool) -> io::Result<bool> {
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

/// Shows every file below `dir`, whose path is `path`; looks into directories if `descend` says so.
fn walk(
    dir: &Path,
    path: &str,
    descend: &dyn Fn(&str) -> bool,
    pulse: &Pulse,
    show: &mut dyn FnMut(String, &fs::DirEntry) -> io::Result<()>,
) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        pulse.beat();
        let name = entry.file_name();
        // Ours are all text; others' are nothing to us.
        let Some(name) = name.to_str() else { continue };
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        match entry.file_type()?.is_dir() {
            true if descend(&path) => walk(&entry.path(), &path, descend, pulse, show)?,
            true => {}
            false => show(path, &entry)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_to_try_a_directory_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let at = Directory::new(dir.path().to_owned());
        at.try_write("").unwrap();
        at.try_write("not/there/yet").unwrap();
        try_named(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let gone = Directory::new(dir.path().join("gone"));
        assert_eq!(gone.try_write("").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(try_named(&dir.path().join("gone")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn nothing_is_done_to_a_name_while_another_call_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = Directory::new(dir.path().to_owned());
        let waited = GivenUp::default();
        let write = |text: &[u8]| at.write("a", true, &waited, |file| io::Write::write_all(file, text));
        write(b"first").unwrap();
        let hangs = NameInHand::take(&dir.path().join("a"), &waited).unwrap();
        assert_eq!(write(b"second").unwrap_err().kind(), ErrorKind::ResourceBusy);
        assert_eq!(at.remove("a", &waited).unwrap_err().kind(), ErrorKind::ResourceBusy);
        at.write("b", false, &waited, |_| Ok(())).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"first");
        drop(hangs);
        write(b"third").unwrap();
        at.remove("a", &waited).unwrap();
    }
}
