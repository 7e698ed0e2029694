//! The real disk: the system's calls, and nothing else.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Disk, DiskDir, DiskFile, Metadata, Open};

/// File systems that never write in place (btrfs, bcachefs, ZFS), and one that writes nowhere (tmpfs): `f_type`.
const WRITES_ELSEWHERE: [u64; 4] = [0x9123_683e, 0xca45_1a4e, 0x2fc1_2fc1, 0x0102_1994];

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

#[derive(Debug)]
struct OsFile(File);

#[derive(Debug)]
struct OsDir(File);

impl Disk for OsDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut options = File::options();
        options.read(true).mode(0o600);
        match how {
            Open::Read => {}
            Open::ReadWrite => _ = options.write(true),
            Open::ReadWriteOrCreate => _ = options.write(true).create(true).truncate(false),
            Open::CreateEmpty => _ = options.write(true).create(true).truncate(true),
        }
        Ok(Box::new(OsFile(options.open(path)?)))
    }

    fn open_dir(&self, path: &Path) -> io::Result<Box<dyn DiskDir>> {
        Ok(Box::new(OsDir(File::open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        fs::metadata(path).map(Metadata::from)
    }

    fn has_name(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn has_owners(&self) -> bool {
        true
    }

    fn may_hang(&self) -> bool {
        true
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(path)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn writes_in_place(&self, path: &Path) -> bool {
        rustix::fs::statfs(path).is_ok_and(|found| !WRITES_ELSEWHERE.contains(&(found.f_type as u64)))
    }
}

impl DiskDir for OsDir {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::empty())?;
        Ok(Box::new(OsFile(file.into())))
    }

    fn create_new(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Box::new(OsFile(file.into())))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    fn exchange(&self, one: &str, other: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(&self.0, one, &self.0, other, RenameFlags::EXCHANGE)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata().map(Metadata::from)
    }

    fn metadata_of(&self, name: &str) -> io::Result<Metadata> {
        let found = rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Metadata {
            len: found.st_size as u64,
            is_dir: rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir(),
            inode: (found.st_dev, found.st_ino),
            changed: (found.st_ctime as i64, found.st_ctime_nsec as i64),
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn sync_file_system(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }
}

impl DiskFile for OsFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(buffer, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata().map(Metadata::from)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::empty();
        match rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.0, flags, 0, len)) {
            // File systems and kernels without it: zeros take the place as well.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => fill_with_zeros(&self.0, len),
            other => other.map_err(io::Error::from),
        }
    }

    fn copy_to_new(&self, path: &Path) -> io::Result<()> {
        let mut to = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        // From file to file, so that the kernel may copy by itself.
        io::copy(&mut &self.0, &mut to).map(|_| ())
    }

    fn try_lock(&self) -> Result<(), TryLockError> {
        self.0.try_lock()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, at)
    }

    fn read_to_end(&self) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        (&self.0).read_to_end(&mut content)?;
        Ok(content)
    }
}

impl From<fs::Metadata> for Metadata {
    fn from(found: fs::Metadata) -> Metadata {
        Metadata {
            len: found.len(),
            is_dir: found.is_dir(),
            inode: (found.dev(), found.ino()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

fn fill_with_zeros(mut file: &File, len: u64) -> io::Result<()> {
    let zeros = vec![0u8; 1 << 20];
    for _ in 0..len / zeros.len() as u64 {
        file.write_all(&zeros)?;
    }
    Ok(())
}
