//! Small files of the data directory, replaced whole, also when the disk is full or no descriptor is left.
//!
//! What has to be written before something can be freed must not need room itself. So there are two copies of
//! each file, both at their full size on the disk and open:
//!
//! ```text
//! slots.toml             as it was saved last, filled up with newlines
//! slots.toml.spare       as long; its content does not matter
//! slots.toml.spare.new   a spare in the making, or left by a crash
//! ```
//!
//! Replacing writes the spare in place, syncs it, exchanges the two names (`RENAME_EXCHANGE`) and syncs the
//! directory. A crash leaves the old content or the new one under the file's name, whole, because the copy that
//! has the name is never written to, and a copy that lost it only after the directory was synced.
//!
//! A copy that could not be written or synced is not written again where a new one can be made: its sectors may be bad.
//!
//! Where names cannot be exchanged the spare takes the name and a new one is made afterwards. File systems that
//! never write in place (Btrfs, ZFS) may need room all the same; they keep some back for that.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{lock, steps};
use crate::disk::{Disk, DiskDir, DiskFile};

/// Files are multiples of this long: a block of nearly every file system.
const BLOCK: usize = 4096;

/// The small files of one directory. Everything here waits for the disk.
#[derive(Debug)]
pub(super) struct StateFiles {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    dir: Box<dyn DiskDir>,
    /// Each file has a lock of its own, which is held while it is written: for threads that may wait.
    files: Mutex<HashMap<String, Arc<Mutex<StateFile>>>>,
}

#[derive(Debug)]
struct StateFile {
    name: String,
    /// What has the name; `None` if there is none, or if it cannot be written in place.
    current: Option<Room>,
    /// What is written next.
    spare: Option<Room>,
    /// It could not be written the last time, for another reason than a full disk.
    spare_failed: bool,
    /// Whether names may be exchanged here, as far as is known.
    exchanges: bool,
    /// There is no spare, and that was told.
    told: bool,
}

/// A file whose blocks are on the disk.
#[derive(Debug)]
struct Room {
    file: Box<dyn DiskFile>,
    len: usize,
}

impl StateFiles {
    /// For the files of this directory, which must be the process's own.
    pub(super) fn open(disk: Arc<dyn Disk>, path: &Path) -> io::Result<StateFiles> {
        let dir = disk.open_dir(path)?;
        // An exchange of names by an earlier process may be in memory only, and its spare is written soon.
        dir.sync()?;
        Ok(StateFiles { disk, path: path.to_owned(), dir, files: Mutex::default() })
    }

    /// The file's content without what fills it up; `None` if there is no such file. It may not be durable: an
    /// earlier process may have ended before it was.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<String>> {
        let file = self.file(name);
        let Some(bytes) = lock(&file).read(&*self.disk, &*self.dir, &self.path)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|error| io::Error::other(error.to_string()))?;
        let filled = text.trim_end_matches('\n');
        Ok(Some(if filled.is_empty() { String::new() } else { format!("{filled}\n") }))
    }

    /// Replaces the file, whole and durably. After an error it has its old content or the new one.
    pub(super) fn replace(&self, name: &str, content: &str) -> io::Result<()> {
        let file = self.file(name);
        lock(&file).replace(&*self.dir, content.as_bytes())
    }

    /// Makes sure that the file can be replaced without room; it is written again if need be.
    pub(super) fn reserve(&self, name: &str, content: &str) {
        let file = self.file(name);
        let mut file = lock(&file);
        if file.is_short_of(content.len())
            && let Err(error) = file.replace(&*self.dir, content.as_bytes())
        {
            file.tell(&error);
        }
    }

    fn file(&self, name: &str) -> Arc<Mutex<StateFile>> {
        let new = || Arc::new(Mutex::new(StateFile::new(name)));
        lock(&self.files).entry(name.to_owned()).or_insert_with(new).clone()
    }
}

impl StateFile {
    fn new(name: &str) -> StateFile {
        StateFile {
            name: name.to_owned(),
            current: None,
            spare: None,
            spare_failed: false,
            exchanges: true,
            told: false,
        }
    }

    fn spare_name(&self) -> String {
        format!("{}.spare", self.name)
    }

    fn read(&mut self, disk: &dyn Disk, dir: &dyn DiskDir, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let file = match dir.open(&self.name) {
            Ok(file) => file,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => return Ok(None),
                // Not ours to write: read it, and put another in its place when the time comes.
                Some(libc::EACCES | libc::EPERM | libc::ELOOP) => {
                    return disk.read(&path.join(&self.name)).map(Some);
                }
                _ => return Err(error),
            },
        };
        let content = file.read_to_end()?;
        self.current = Some(Room { file, len: content.len() });
        if self.spare.is_none()
            && let Ok(file) = dir.open(&self.spare_name())
        {
            let len = usize::try_from(file.metadata()?.len).unwrap_or(0);
            self.spare = Some(Room { file, len });
        }
        Ok(Some(content))
    }

    fn replace(&mut self, dir: &dyn DiskDir, content: &[u8]) -> io::Result<()> {
        let spare = self.spare_for(dir, content.len())?;
        if let Err(error) = spare.fill(content) {
            // A failed sync says nothing about what is on the disk: all of it is written again the next time.
            self.spare = Some(spare);
            let is_full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
            self.spare_failed = !is_full;
            return Err(error);
        }
        steps::taken();
        self.swap(dir, spare)?;
        if self.is_short_of(content.len()) {
            match Room::make(dir, &self.spare_name(), content.len()) {
                Ok(spare) => (self.spare, self.told) = (Some(spare), false),
                Err(error) => self.tell(&error),
            }
        }
        Ok(())
    }

    /// What can be written, as long as this at least.
    fn spare_for(&mut self, dir: &dyn DiskDir, len: usize) -> io::Result<Room> {
        let name = self.spare_name();
        // Whoever works on the directory by hand may have put something else there.
        let old =
            self.spare.take().filter(|spare| spare.len >= len).filter(|spare| spare.has_name(dir, &name));
        let is_good = old.is_some() && !self.spare_failed;
        match (old, is_good) {
            (Some(old), true) => Ok(old),
            (old, _) => {
                let made = Room::make(dir, &name, len);
                self.spare_failed &= made.is_err();
                // There may be no room, and its sectors may be good again.
                made.or_else(|error| old.ok_or(error))
            }
        }
    }

    /// Gives a written and synced spare the file's name.
    fn swap(&mut self, dir: &dyn DiskDir, new: Room) -> io::Result<()> {
        let spare = self.spare_name();
        let exchanged = match self.exchanges && self.current.is_some() {
            true => dir.exchange(&spare, &self.name),
            false => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
        };
        let old = match exchanged {
            Ok(()) => self.current.replace(new),
            // No such thing here, or the first of its name.
            Err(error) => {
                let unknown =
                    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP));
                self.exchanges &= self.current.is_none() || !unknown;
                if let Err(error) = dir.rename(&spare, &self.name) {
                    self.spare = Some(new);
                    return Err(error);
                }
                self.current = Some(new);
                None
            }
        };
        steps::taken();
        // After an error nobody knows which of them has the name on the disk, and neither is written to again.
        dir.sync()?;
        self.spare = old;
        Ok(())
    }

    /// Whether a little more than `len` bytes could not be saved without room.
    fn is_short_of(&self, len: usize) -> bool {
        let enough = |room: &Room| room.len >= len + len / 2 + BLOCK / 4;
        !(self.spare.as_ref().is_some_and(enough) && self.current.is_some())
    }

    fn tell(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                "could not reserve room on disk for replacing \"{}\": {error}; when the disk is full it cannot be saved, \
                 make some room",
                self.name
            );
        }
    }
}

impl Room {
    /// A new file with room for more than `len` bytes, durably under this name.
    fn make(dir: &dyn DiskDir, name: &str, len: usize) -> io::Result<Room> {
        let temporary = format!("{name}.new");
        let _ = dir.remove(&temporary);
        let file = dir.create_new(&temporary)?;
        let room = Room { file, len: (2 * len + BLOCK).next_multiple_of(BLOCK) };
        let made =
            room.fill(b"").and_then(|()| room.file.sync_all()).and_then(|()| dir.rename(&temporary, name));
        if let Err(error) = made {
            let _ = dir.remove(&temporary);
            return Err(error);
        }
        Ok(room)
    }

    /// Writes all of it, and syncs.
    fn fill(&self, content: &[u8]) -> io::Result<()> {
        let mut bytes = content.to_vec();
        bytes.resize(self.len, b'\n');
        self.file.write_all_at(&bytes, 0)?;
        self.file.sync_data()
    }

    /// Whether this is the file of that name.
    fn has_name(&self, dir: &dyn DiskDir, name: &str) -> bool {
        let (named, ours) = (dir.metadata_of(name), self.file.metadata());
        named.is_ok_and(|named| ours.is_ok_and(|ours| ours.inode == named.inode))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::disk::OsDisk;
    use crate::disk::sim::{Bad, SimDisk};

    const NAME: &str = "slots.toml";

    fn open(dir: &Path) -> io::Result<StateFiles> {
        StateFiles::open(Arc::new(OsDisk), dir)
    }

    fn content(dir: &Path) -> String {
        fs::read_to_string(dir.join(NAME)).unwrap()
    }

    #[test]
    fn two_files_take_turns() {
        let dir = crate::permissions::private_tempdir();
        let files = open(dir.path()).unwrap();
        assert_eq!(files.read(NAME).unwrap(), None);
        let inode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
        let mut seen = Vec::new();
        for text in ["a = 1\n", "a = 2\n", "a = 3\n", ""] {
            files.replace(NAME, text).unwrap();
            assert_eq!(files.read(NAME).unwrap().as_deref(), Some(text));
            assert_eq!(content(dir.path()).trim(), text.trim());
            seen.push([inode(NAME), inode("slots.toml.spare")]);
        }
        seen.iter_mut().for_each(|pair| pair.sort_unstable());
        assert!(seen.windows(2).all(|two| two[0] == two[1]), "no new file is made: {seen:?}");
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 2);
    }

    #[test]
    fn what_an_earlier_process_left_is_used() {
        let dir = crate::permissions::private_tempdir();
        let first = open(dir.path()).unwrap();
        first.replace(NAME, "a = 1\n").unwrap();
        drop(first);
        // As after a crash while it was written.
        let spare = dir.path().join("slots.toml.spare");
        let before = fs::metadata(&spare).unwrap();
        File::options().write(true).open(&spare).unwrap().write_all(b"torn").unwrap();
        let files = open(dir.path()).unwrap();
        assert_eq!(files.read(NAME).unwrap().as_deref(), Some("a = 1\n"));
        files.replace(NAME, "a = 2\n").unwrap();
        assert_eq!(fs::metadata(dir.path().join(NAME)).unwrap().ino(), before.ino());
        assert_eq!(files.read(NAME).unwrap().as_deref(), Some("a = 2\n"));
    }

    #[test]
    fn files_of_earlier_versions_are_taken_over() {
        let dir = crate::permissions::private_tempdir();
        fs::write(dir.path().join(NAME), "a = 1\n").unwrap();
        let files = open(dir.path()).unwrap();
        let text = files.read(NAME).unwrap().unwrap();
        assert_eq!(text, "a = 1\n");
        files.reserve(NAME, &text);
        for name in [NAME, "slots.toml.spare"] {
            assert!(fs::metadata(dir.path().join(name)).unwrap().len() >= 4096, "{name}");
        }
        assert_eq!(files.read(NAME).unwrap().as_deref(), Some("a = 1\n"));
    }

    #[test]
    fn what_outgrows_its_room_gets_more() {
        let dir = crate::permissions::private_tempdir();
        let files = open(dir.path()).unwrap();
        let mut text = String::new();
        for line in 0..3000 {
            text += &format!("line {line}\n");
            if line % 100 == 0 {
                files.replace(NAME, &text).unwrap();
                assert_eq!(files.read(NAME).unwrap().as_deref(), Some(&*text));
            }
        }
        let spare = fs::metadata(dir.path().join("slots.toml.spare")).unwrap().len();
        assert!(spare as usize > text.len() && spare.is_multiple_of(4096));
    }

    /// A full disk must not come between a slot's drop and its file.
    #[test]
    fn replacing_needs_no_descriptor_and_no_new_file() {
        let dir = crate::permissions::private_tempdir();
        let files = open(dir.path()).unwrap();
        files.replace(NAME, "a = 1\n").unwrap();
        let held = || {
            let file = files.file(NAME);
            let file = lock(&file);
            let mut held = [&file.current, &file.spare]
                .map(|room| room.as_ref().unwrap().file.descriptor().unwrap().as_raw_fd());
            held.sort_unstable();
            held
        };
        let before = held();
        files.replace(NAME, &"b".repeat(2000)).unwrap();
        files.replace(NAME, "c = 1\n").unwrap();
        assert_eq!(held(), before);
    }

    #[test]
    fn without_exchange_the_spare_takes_the_name() {
        let dir = crate::permissions::private_tempdir();
        let files = open(dir.path()).unwrap();
        files.replace(NAME, "a = 1\n").unwrap();
        lock(&files.file(NAME)).exchanges = false;
        for text in ["a = 2\n", "a = 3\n"] {
            files.replace(NAME, text).unwrap();
            assert_eq!(files.read(NAME).unwrap().as_deref(), Some(text));
            assert!(dir.path().join("slots.toml.spare").exists());
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_is_left() {
        let (disk, root) = (SimDisk::new(), Path::new("/"));
        let files = StateFiles::open(Arc::new(disk.clone()), root).unwrap();
        let read = || files.read(NAME).unwrap().unwrap();
        let spoil = || disk.make_bad(&root.join("slots.toml.spare"), 0..1, Bad::Writes).unwrap();
        files.replace(NAME, "a = 1\n").unwrap();
        spoil();
        files.replace(NAME, "a = 2\n").unwrap_err();
        assert_eq!(read(), "a = 1\n");
        files.replace(NAME, "a = 3\n").unwrap();
        assert_eq!(read(), "a = 3\n");
        // Where there is no other, it may be good again.
        spoil();
        disk.set_free_space(Some(0));
        for _ in 0..2 {
            files.replace(NAME, "a = 4\n").unwrap_err();
        }
        disk.heal();
        files.replace(NAME, "a = 5\n").unwrap();
        assert_eq!(read(), "a = 5\n");
    }

    #[test]
    fn hands_in_the_directory_do_no_harm() {
        let dir = crate::permissions::private_tempdir();
        let files = open(dir.path()).unwrap();
        let path = |name: &str| dir.path().join(name);
        files.replace(NAME, "a = 1\n").unwrap();
        fs::remove_file(path("slots.toml.spare")).unwrap();
        files.replace(NAME, "a = 2\n").unwrap();
        fs::write(path("other"), "a = 0\n").unwrap();
        fs::rename(path("other"), path("slots.toml.spare")).unwrap();
        files.replace(NAME, "a = 3\n").unwrap();
        assert_eq!(content(dir.path()).trim(), "a = 3");
        fs::remove_file(path(NAME)).unwrap();
        files.replace(NAME, "a = 4\n").unwrap();
        fs::write(path("edited"), "a = 0\n").unwrap();
        fs::rename(path("edited"), path(NAME)).unwrap();
        for text in ["a = 5\n", "a = 6\n", "a = 7\n"] {
            files.replace(NAME, text).unwrap();
            assert_eq!(content(dir.path()), fs::read_to_string(path(NAME)).unwrap());
            assert_eq!(content(dir.path()).trim(), text.trim());
        }
    }
}
