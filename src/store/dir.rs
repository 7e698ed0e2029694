//! The data directory: its layout, its lock, and small files that are replaced whole.
//!
//! ```text
//! <data-dir>/
//!   walrelay.lock             locked while a relay runs; holds its pid
//!   cluster.toml              which cluster this is, and what its server last said of itself
//!   slots.toml                replication slots
//!   timeline.toml             the timeline that is followed
//!   *.toml.spare              room for replacing the file of that name
//!   last-run.toml             how the last run ended, see `last_run`
//!   aside/                    files that were of no use, for people to look at; nothing here is read, and nothing is removed
//!                             but old copies of torn segments, `*.torn*`
//!   pg_wal/
//!     000000010000000000000003            finished: complete, verified, synced
//!     000000010000000000000004.partial    being received, at full size from the start
//!     00000002.history                    timeline history, as the upstream sent it
//!     walrelay-new.*                      being preallocated, or made ahead of its need; removed at start
//! ```

use std::ffi::OsString;
use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use walrelay_proto::{SegSize, TimelineId, WalFileName};

use super::state_file::StateFiles;
use super::{Opening, Segment, StoreError, ownership, steps};
use crate::disk::{self, Disk, DiskDir, DiskFile, Metadata, Open};

/// Name of files that are not yet what they will be.
const NEW_FILE_PREFIX: &str = "walrelay-new.";
/// Where files are put that are of no use but to people.
const ASIDE: &str = "aside";
/// What the name of a copy of a torn segment goes on with there.
const TORN: &str = ".torn";
/// Copies of torn segments that are kept, bytes; the newest in any case.
const TORN_KEPT: u64 = 256 << 20;
/// How often the directory's lock is tried for, and the time between: three tenths of a second.
const LOCK_TRIES: usize = 30;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A data directory that this process has locked.
#[derive(Debug)]
pub(super) struct DataDir {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    wal: PathBuf,
    state: StateFiles,
    /// Open for as long as this lives: a sync of the directory must not need a descriptor.
    wal_dir: Box<dyn DiskDir>,
    /// Whether a sync of it has failed: nothing that was renamed since the last one is known to be durable.
    sync_failed: AtomicBool,
    /// Copies that were made of unfinished segments.
    copies: AtomicU64,
    /// Who opens it tells here how far that is.
    opening: Arc<Opening>,
    /// Holds the lock for as long as it is open.
    _lock: Box<dyn DiskFile>,
}

/// A segment file found in `pg_wal`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FoundSegment {
    pub(super) name: WalFileName,
    pub(super) partial: bool,
}

/// The file of a segment that its timeline was left with. It is written to if that is taken up again.
#[derive(Debug)]
pub struct UnfinishedFile {
    file: Box<dyn DiskFile>,
    size: u64,
}

impl UnfinishedFile {
    /// Its length when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills the whole buffer with what is there now. Waits for the disk.
    pub fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, at)
    }
}

impl DataDir {
    /// Makes the directory if it is missing (mode 0700) and locks it. One that is not the relay's is refused before
    /// anything in it is touched.
    pub(super) fn lock(disk: Arc<dyn Disk>, root: &Path) -> Result<DataDir, StoreError> {
        let wal = root.join("pg_wal");
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { action: "could not open data directory", path, source }
        };
        ownership::check(&*disk, root)?;
        make_dir(&*disk, &wal).map_err(fail(&wal))?;
        // Somebody else may have made it meanwhile.
        ownership::check_permissions(&*disk, root, &wal)?;
        let path = root.join("walrelay.lock");
        let lock = disk.open(&path, Open::ReadWriteOrCreate).map_err(fail(&path))?;
        match try_for_a_moment(&*lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = String::from_utf8(lock.read_to_end().unwrap_or_default()).unwrap_or_default();
                return Err(StoreError::InUse { dir: root.to_owned(), pid: pid.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(fail(&path)(source)),
        }
        // In place and as long as any: giving back the block and taking another fails on a full disk.
        lock.write_all_at(format!("{:<10}\n", std::process::id()).as_bytes(), 0).map_err(fail(&path))?;
        let state = StateFiles::open(disk.clone(), root).map_err(fail(root))?;
        let wal_dir = disk.open_dir(&wal).map_err(fail(&wal))?;
        // What an earlier process made or renamed may be in memory only.
        wal_dir.sync().map_err(fail(&wal))?;
        let dir = DataDir {
            disk,
            root: root.to_owned(),
            wal,
            state,
            wal_dir,
            sync_failed: AtomicBool::new(false),
            copies: AtomicU64::default(),
            opening: Arc::default(),
            _lock: lock,
        };
        dir.remove_leftovers().map_err(fail(&dir.wal))?;
        Ok(dir)
    }

    /// Whoever opens it tells there how far that is.
    pub(super) fn telling(self, opening: Arc<Opening>) -> DataDir {
        DataDir { opening, ..self }
    }

    /// How far the opening is.
    pub(super) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// What all of it is on.
    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// `pg_wal`.
    pub(super) fn wal(&self) -> &Path {
        &self.wal
    }

    /// Path of a finished segment.
    pub(super) fn segment(&self, name: WalFileName, size: SegSize) -> PathBuf {
        self.wal.join(name.format(size))
    }

    /// Path of a segment that is not finished.
    pub(super) fn partial(&self, name: WalFileName, size: SegSize) -> PathBuf {
        self.wal.join(format!("{}.partial", name.format(size)))
    }

    /// A copy of an unfinished segment, whose name is gone once it is mapped; `None` if there is none.
    pub(super) fn copy_of_partial(&self, name: WalFileName, size: SegSize) -> io::Result<Option<Segment>> {
        let Some(UnfinishedFile { file: from, .. }) = self.partial_file(name, size)? else { return Ok(None) };
        let path = self.new_file(&format!("copy-{}", self.copies.fetch_add(1, Ordering::Relaxed)));
        let made = from
            .copy_to_new(&path)
            .and_then(|()| Segment::open_on(&*self.disk, &path, name, size, size.bytes()));
        let removed = self.disk.remove(&path);
        made.and_then(|segment| removed.map(|()| Some(segment)))
    }

    /// An unfinished segment's file, synced.
    pub(super) fn partial_file(
        &self,
        name: WalFileName,
        size: SegSize,
    ) -> io::Result<Option<UnfinishedFile>> {
        let file = match self.disk.open(&self.partial(name, size), Open::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        file.sync_all()?;
        let size = file.metadata()?.len;
        Ok(Some(UnfinishedFile { file, size }))
    }

    /// Path of a timeline's history file.
    pub(super) fn history(&self, tli: TimelineId) -> PathBuf {
        self.wal.join(tli.history_file_name())
    }

    /// Path of a segment file in the making.
    pub(super) fn new_file(&self, label: &str) -> PathBuf {
        self.wal.join(format!("{NEW_FILE_PREFIX}{label}"))
    }

    /// Makes changes of names in `pg_wal` durable.
    pub(super) fn sync_wal_dir(&self) -> io::Result<()> {
        // Told once only: whoever asked first must not be the only one who knows.
        if self.sync_has_failed() {
            return Err(io::Error::other("an earlier sync of it has failed"));
        }
        self.wal_dir.sync().inspect_err(|error| {
            // One that has not come back yet has not failed.
            self.sync_failed.fetch_or(!disk::would_hang(error), Ordering::Relaxed);
        })
    }

    /// Whether that has failed once: nobody knows any more which names are durable.
    pub(super) fn sync_has_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }

    /// Which directory `pg_wal` is, as long as its file system keeps its number.
    pub(super) fn place(&self) -> io::Result<String> {
        self.wal_dir.metadata().map(|wal| format!("{}:{}", wal.inode.0, wal.inode.1))
    }

    /// When the entries of `pg_wal` have changed last. Copies do not keep it.
    pub(super) fn changed(&self) -> io::Result<String> {
        self.wal_dir.metadata().map(|wal| format!("{}.{:09}", wal.changed.0, wal.changed.1))
    }

    /// Makes all files of `pg_wal` durable, whoever has written them. One call, however many they are; it waits for
    /// whatever else is written to the file system.
    pub(super) fn sync_file_system(&self) -> io::Result<()> {
        self.wal_dir.sync_file_system()
    }

    /// Moves a file of `pg_wal` that is of no use out of the way, durably; where it is then. Removes nothing.
    pub(super) fn set_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let to = self.place_aside(path, "")?;
        self.disk.rename(path, &to)?;
        steps::taken();
        self.sync_aside()?;
        self.sync_wal_dir()?;
        Ok(to)
    }

    /// Puts a copy of a torn segment there, durably; where that is. The oldest such copies go when there are many.
    pub(super) fn copy_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let to = self.place_aside(path, TORN)?;
        self.make_room_aside(self.disk.metadata(path)?.len)?;
        let copied = self.disk.open(path, Open::Read)?.copy_to_new(&to);
        let copied = copied.and_then(|()| self.disk.open(&to, Open::ReadWrite)?.sync_all());
        if let Err(error) = copied.and_then(|()| self.sync_aside()) {
            // Half a copy helps nobody.
            let _ = self.disk.remove(&to);
            return Err(error);
        }
        Ok(to)
    }

    /// Every start that has met a torn segment leaves a copy. It was told then, and at each start since
    /// ([`report_aside`](Self::report_aside)).
    fn make_room_aside(&self, len: u64) -> io::Result<()> {
        let mut torn = self.files_aside()?;
        torn.retain(|(name, _)| name.contains(TORN));
        let mut kept = len;
        for (name, found) in torn.iter().rev() {
            kept += found.len;
            if kept > TORN_KEPT {
                self.disk.remove(&self.root.join(ASIDE).join(name))?;
                tracing::warn!(
                    "removed \"{ASIDE}/{name}\", an old copy of a torn WAL segment: newer ones take its room"
                );
            }
        }
        Ok(())
    }

    /// What is there, oldest first.
    fn files_aside(&self) -> io::Result<Vec<(String, Metadata)>> {
        let aside = self.root.join(ASIDE);
        let names = match self.disk.list(&aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let found = |name: OsString| {
            let found = self.disk.metadata(&aside.join(&name))?;
            Ok((name.to_string_lossy().into_owned(), found))
        };
        let mut files = names.into_iter().map(found).collect::<io::Result<Vec<_>>>()?;
        files.sort_by(|(one, a), (other, b)| (a.changed, one).cmp(&(b.changed, other)));
        Ok(files)
    }

    /// Says that there is something, and what to do.
    pub(super) fn report_aside(&self) {
        let files = match self.files_aside() {
            Ok(files) => files,
            Err(error) => {
                return tracing::warn!("could not look into \"{ASIDE}\" of the data directory: {error}");
            }
        };
        let Some((newest, _)) = files.last() else { return };
        tracing::warn!(
            "\"{}\" has {} files of {} MB, the newest is \"{newest}\": WAL that was put there at earlier starts for people to \
             look at; remove them when nobody needs them any more",
            self.root.join(ASIDE).display(),
            files.len(),
            files.iter().map(|(_, found)| found.len).sum::<u64>() >> 20
        );
    }

    /// A name beside `pg_wal` that nothing has.
    fn place_aside(&self, path: &Path, suffix: &str) -> io::Result<PathBuf> {
        let aside = self.root.join(ASIDE);
        make_dir(&*self.disk, &aside)?;
        let name = format!("{}{suffix}", path.file_name().unwrap_or_default().to_string_lossy());
        let free = (0..).map(|number| match number {
            0 => aside.join(&name),
            _ => aside.join(format!("{name}.{number}")),
        });
        Ok(free.into_iter().find(|to| !self.disk.exists(to)).unwrap_or_else(|| aside.join(&name)))
    }

    fn sync_aside(&self) -> io::Result<()> {
        self.disk.open_dir(&self.root.join(ASIDE))?.sync()
    }

    /// All segment files of this size, sorted by timeline, then number; finished before partial.
    pub(super) fn segments(&self, size: SegSize) -> io::Result<Vec<FoundSegment>> {
        let mut found = Vec::new();
        for file_name in self.disk.list(&self.wal)? {
            let Some(text) = file_name.to_str() else { continue };
            let (stem, partial) = match text.strip_suffix(".partial") {
                Some(stem) => (stem, true),
                None => (text, false),
            };
            if let Some(name) = WalFileName::parse(stem, size) {
                found.push(FoundSegment { name, partial });
            }
        }
        found.sort();
        Ok(found)
    }

    /// Names of all files of `pg_wal` but those in the making.
    pub(super) fn wal_files(&self) -> io::Result<Vec<String>> {
        let names = self.disk.list(&self.wal)?.into_iter().filter_map(|name| name.into_string().ok());
        Ok(names.filter(|name| !name.starts_with(NEW_FILE_PREFIX)).collect())
    }

    /// Reads a small file of the data directory; `None` if it does not exist.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<String>> {
        self.state.read(name)
    }

    /// Replaces a small file of the data directory, whole and durably, also on a full disk.
    pub(super) fn replace(&self, name: &str, content: &str) -> io::Result<()> {
        self.state.replace(name, content)
    }

    /// Makes sure that a small file with this content can be replaced on a full disk.
    pub(super) fn reserve(&self, name: &str, content: &str) {
        self.state.reserve(name, content);
    }

    /// Stores a history file durably.
    pub(super) fn write_history(&self, tli: TimelineId, content: &[u8]) -> io::Result<()> {
        let temporary = self.new_file(&tli.history_file_name());
        let file = self.disk.open(&temporary, Open::CreateEmpty)?;
        file.write_all_at(content, 0)?;
        file.sync_all()?;
        steps::taken();
        self.disk.rename(&temporary, &self.history(tli))?;
        steps::taken();
        self.sync_wal_dir()
    }

    fn remove_leftovers(&self) -> io::Result<()> {
        for name in self.disk.list(&self.wal)? {
            if name.to_string_lossy().starts_with(NEW_FILE_PREFIX) {
                self.disk.remove(&self.wal.join(name))?;
            }
        }
        Ok(())
    }
}

/// The file's content, `None` if there is no such file.
pub(super) fn read_if_present(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    match disk.read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a directory and what is missing above it (mode 0700), each entry durable.
fn make_dir(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.metadata(path) {
        Ok(found) if found.is_dir => return Ok(()),
        // Only what is missing is made: a disk that fails does not say whether it is there.
        Err(error) if error.kind() != io::ErrorKind::NotFound || path == Path::new(".") => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(disk, parent)?;
    match disk.make_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && disk.is_dir(path) => {}
        other => other?,
    }
    match disk.open_dir(parent) {
        Ok(parent) => parent.sync(),
        // One that may be written and not read: it cannot be synced, nor would it have to be another day.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::warn!("could not sync directory \"{}\": {error}", parent.display());
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Makes a file of one segment's size with all its blocks reserved, so that a full disk is met here.
pub(super) fn preallocate(disk: &dyn Disk, path: &Path, size: SegSize) -> io::Result<Box<dyn DiskFile>> {
    let file = disk.open(path, Open::CreateEmpty)?;
    if let Err(error) = file.allocate(size.bytes()) {
        let _ = disk.remove(path);
        return Err(error);
    }
    Ok(file)
}

/// A child that its last holder was about to start (fork, and not yet exec) may hold the lock a moment longer.
fn try_for_a_moment(lock: &dyn DiskFile) -> Result<(), TryLockError> {
    for _ in 0..LOCK_TRIES {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(LOCK_PAUSE),
            tried => return tried,
        }
    }
    lock.try_lock()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::disk::OsDisk;

    fn lock(root: &Path) -> Result<DataDir, StoreError> {
        DataDir::lock(Arc::new(OsDisk), root)
    }

    #[test]
    fn a_second_relay_is_told_who_holds_the_directory() {
        let dir = crate::permissions::private_tempdir();
        let held = lock(dir.path()).unwrap();
        let Err(StoreError::InUse { pid, .. }) = lock(dir.path()) else { panic!("locked twice") };
        assert_eq!(pid, Some(std::process::id()));
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn segments_are_told_from_everything_else() {
        let temp = crate::permissions::private_tempdir();
        let dir = lock(temp.path()).unwrap();
        let size = SegSize::new(1 << 20).unwrap();
        for name in
            ["000000010000000000000002.partial", "000000010000000000000001", "00000002.history", "x", "0"]
        {
            fs::write(dir.wal().join(name), "").unwrap();
        }
        let found: Vec<_> =
            dir.segments(size).unwrap().iter().map(|s| (s.name.segno.as_u64(), s.partial)).collect();
        assert_eq!(found, [(1, false), (2, true)]);
    }

    #[test]
    fn old_copies_of_torn_segments_make_room_for_new_ones() {
        let temp = crate::permissions::private_tempdir();
        let dir = lock(temp.path()).unwrap();
        let (wal, aside) = (dir.wal().join("x.partial"), temp.path().join("aside"));
        fs::write(&wal, "torn").unwrap();
        let names = || {
            let names = fs::read_dir(&aside).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        for _ in 0..3 {
            dir.copy_aside(&wal).unwrap();
        }
        assert_eq!(names(), ["x.partial.torn", "x.partial.torn.1", "x.partial.torn.2"]);
        // Sparse.
        for number in ["", ".1", ".2"] {
            let copy = File::options().write(true).open(aside.join(format!("x.partial.torn{number}")));
            copy.unwrap().set_len(TORN_KEPT / 5 * 2).unwrap();
        }
        let whole = aside.join("y.partial");
        File::create(&whole).unwrap().set_len(TORN_KEPT).unwrap();
        dir.copy_aside(&wal).unwrap();
        assert_eq!(names(), ["x.partial.torn.1", "x.partial.torn.2", "x.partial.torn.3", "y.partial"]);
        // The newest one stays, however large it is, and what is no copy in any case.
        File::options().write(true).open(&wal).unwrap().set_len(2 * TORN_KEPT).unwrap();
        dir.make_room_aside(2 * TORN_KEPT).unwrap();
        assert_eq!(names(), ["y.partial"]);
    }

    #[test]
    fn leftovers_are_removed() {
        let temp = crate::permissions::private_tempdir();
        let dir = lock(temp.path()).unwrap();
        let leftover = dir.new_file("segment");
        preallocate(&OsDisk, &leftover, SegSize::new(1 << 20).unwrap()).unwrap();
        assert_eq!(fs::metadata(&leftover).unwrap().len(), 1 << 20);
        drop(dir);
        lock(temp.path()).unwrap();
        assert!(!leftover.exists());
    }
}
