//! The calls of a simulated disk.

use std::ffi::OsString;
use std::fs::TryLockError;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::image::{Image, error};
use super::{OperationKind, SimDisk};
use crate::disk::{Disk, DiskDir, DiskFile, Metadata, Open};

/// An open file.
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
    /// The name it was opened by, for those who read a trace.
    name: String,
    has_lock: AtomicBool,
}

/// An open directory.
#[derive(Debug)]
struct SimDir {
    disk: SimDisk,
    inode: u64,
    name: String,
}

impl SimDisk {
    fn opened(&self, image: &mut Image, inode: u64, name: String) -> Box<dyn DiskFile> {
        image.open(inode);
        Box::new(SimFile { disk: self.clone(), inode, name, has_lock: AtomicBool::new(false) })
    }

    /// Looks at the live image, unless there is no power. Never hangs: names and pages are in memory.
    fn look<T>(&self, look: impl FnOnce(&Image) -> io::Result<T>) -> io::Result<T> {
        let state = self.state();
        match state.power {
            super::Power::On => look(&state.image),
            super::Power::Off => Err(super::no_power()),
        }
    }

    fn open_existing(&self, inode: u64, name: String) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.awake()?;
        if state.image.is_dir(inode) {
            return Err(error(libc::EISDIR));
        }
        Ok(self.opened(&mut state.image, inode, name))
    }

    fn create_in(&self, dir: u64, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.operate(OperationKind::Create, name, |state| {
            let inode = state.image.create(dir, name)?;
            Ok(self.opened(&mut state.image, inode, name.to_owned()))
        })
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let (dir, name) = self.look(|image| image.parent_of(path))?;
        let found = self.look(|image| image.lookup(dir, &name));
        match (how, found) {
            (Open::Read | Open::ReadWrite, found) => self.open_existing(found?, name),
            (Open::ReadWriteOrCreate, Ok(inode)) => self.open_existing(inode, name),
            (Open::CreateEmpty, Ok(inode)) => {
                let file = self.open_existing(inode, name.clone())?;
                self.operate(OperationKind::Create, &name, |state| state.image.empty(inode))?;
                Ok(file)
            }
            (Open::ReadWriteOrCreate | Open::CreateEmpty, Err(_)) => self.create_in(dir, &name),
        }
    }

    fn open_dir(&self, path: &Path) -> io::Result<Box<dyn DiskDir>> {
        let state = self.awake()?;
        let inode = state.image.resolve(path)?;
        if !state.image.is_dir(inode) {
            return Err(error(libc::ENOTDIR));
        }
        let name = path.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy());
        Ok(Box::new(SimDir { disk: self.clone(), inode, name: name.into_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = self.look(|image| Ok((image.parent_of(from)?, image.parent_of(to)?)))?;
        self.operate(OperationKind::Rename, &to.1, |state| {
            state.image.rename((from.0, &from.1), (to.0, &to.1))
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.look(|image| image.parent_of(path))?;
        // What is not there is no operation.
        self.look(|image| image.lookup(dir, &name))?;
        self.operate(OperationKind::Remove, &name, |state| state.image.remove(dir, &name))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.look(|image| image.parent_of(path))?;
        self.operate(OperationKind::Create, &name, |state| state.image.make_dir(dir, &name))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let names = self.look(|image| image.names(image.resolve(path)?))?;
        Ok(names.into_iter().map(OsString::from).collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.look(|image| image.metadata(image.resolve(path)?))
    }

    fn has_name(&self, path: &Path) -> bool {
        self.look(|image| image.resolve(path)).is_ok()
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.look(|image| image.resolve(path)).map(|_| path.to_owned())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.open(path, Open::Read)?.read_to_end()
    }

    fn has_owners(&self) -> bool {
        false
    }

    fn may_hang(&self) -> bool {
        self.shared.is_threaded
    }

    fn free_space(&self, _path: &Path) -> io::Result<u64> {
        self.look(|image| Ok(image.free_space()))
    }

    fn writes_in_place(&self, _path: &Path) -> bool {
        true
    }
}

impl DiskDir for SimDir {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.disk.look(|image| image.lookup(self.inode, name))?;
        self.disk.open_existing(inode, name.to_owned())
    }

    fn create_new(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        if self.disk.look(|image| image.lookup(self.inode, name)).is_ok() {
            return Err(error(libc::EEXIST));
        }
        self.disk.create_in(self.inode, name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.operate(OperationKind::Rename, to, |state| {
            state.image.rename((self.inode, from), (self.inode, to))
        })
    }

    fn exchange(&self, one: &str, other: &str) -> io::Result<()> {
        self.disk.operate(OperationKind::Rename, other, |state| state.image.exchange(self.inode, one, other))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.look(|image| image.lookup(self.inode, name))?;
        self.disk.operate(OperationKind::Remove, name, |state| state.image.remove(self.inode, name))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.disk.look(|image| image.metadata(self.inode))
    }

    fn metadata_of(&self, name: &str) -> io::Result<Metadata> {
        self.disk.look(|image| image.metadata(image.lookup(self.inode, name)?))
    }

    fn sync(&self) -> io::Result<()> {
        let (sync, lose) =
            (|image: &mut Image| image.sync_dir(self.inode), |image: &mut Image| image.lose_dir(self.inode));
        self.disk.sync(&self.name, sync, lose)
    }

    fn sync_file_system(&self) -> io::Result<()> {
        self.disk.sync("(all)", Image::sync_all, Image::lose_all)
    }
}

impl SimFile {
    fn sync(&self) -> io::Result<()> {
        let (sync, lose) = (
            |image: &mut Image| image.sync_file(self.inode),
            |image: &mut Image| image.lose_file(self.inode),
        );
        self.disk.sync(&self.name, sync, lose)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.state();
        if state.power == super::Power::Off {
            return Err(super::no_power());
        }
        state.check_range(self.inode, at..at + buffer.len() as u64, false)?;
        state.image.read(self.inode, buffer, at)
    }

    fn is_hole(&self, at: u64, len: usize) -> bool {
        let state = self.disk.state();
        let range = at..at + len as u64;
        let is_readable = state.check_range(self.inode, range.clone(), false).is_ok();
        is_readable && state.power == super::Power::On && state.image.is_hole(self.inode, range)
    }

    fn read_to_end(&self) -> io::Result<Vec<u8>> {
        let mut content = vec![0; self.metadata()?.len as usize];
        let len = self.read_at(&mut content, 0)?;
        content.truncate(len);
        Ok(content)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.disk.operate(OperationKind::Write, &self.name, |state| {
            state.check_range(self.inode, at..at + bytes.len() as u64, true)?;
            state.image.write(self.inode, bytes, at)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.disk.look(|image| image.metadata(self.inode))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.operate(OperationKind::Allocate, &self.name, |state| state.image.allocate(self.inode, len))
    }

    fn copy_to_new(&self, path: &Path) -> io::Result<()> {
        let content = self.read_to_end()?;
        let (dir, name) = self.disk.look(|image| image.parent_of(path))?;
        if self.disk.look(|image| image.lookup(dir, &name)).is_ok() {
            return Err(error(libc::EEXIST));
        }
        self.disk.create_in(dir, &name)?.write_all_at(&content, 0)
    }

    fn try_lock(&self) -> Result<(), TryLockError> {
        if self.has_lock.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !self.disk.state().image.lock(self.inode) {
            return Err(TryLockError::WouldBlock);
        }
        self.has_lock.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.state().image.close(self.inode, self.has_lock.load(Ordering::Relaxed));
    }
}
