//! The disk as the store sees it: files, names, and what makes each of them durable.
//!
//! All that the store does on a disk goes through [`Disk`], so that the same code runs on the real one ([`OsDisk`])
//! and on one that loses power at any operation (`disk::sim`, for tests). The rules are those of POSIX, and no more:
//! content is durable when a sync of its file has returned, a name when a sync of its directory has.
//!
//! Everything here may wait for the disk, for ever if it hangs.

mod os;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::TryLockError;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

pub use os::OsDisk;

/// How a file is opened. What is made has mode 0600.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    ReadWrite,
    /// For reading and writing; made if it is missing.
    ReadWriteOrCreate,
    /// For reading and writing; made if it is missing, emptied if it is not.
    CreateEmpty,
}

/// What is known of a file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// Length, bytes.
    pub len: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Device and number of the inode: the same two, the same file, as long as it exists.
    pub inode: (u64, u64),
    /// When its inode has changed last: seconds since 1970, and nanoseconds.
    pub changed: (i64, i64),
}

/// A disk with one tree of names. Links are followed, but for what says that it does not.
pub trait Disk: Debug + Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a directory, for its syncs and the names in it.
    fn open_dir(&self, path: &Path) -> io::Result<Box<dyn DiskDir>>;

    /// Gives a file another name, also in another directory of the same file system, and takes that name from whatever
    /// has it. Durable when both directories are synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a file's name away. Its content stays for those who have it open or mapped.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory, mode 0700.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Names of what is in a directory, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// What is known of a file or directory.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;

    /// Whether there is such a name, be it a link to nowhere.
    fn has_name(&self, path: &Path) -> bool;

    /// The path without links.
    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf>;

    /// All of a small file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Whether files belong to accounts and have modes, so that others may have put something there.
    fn has_owners(&self) -> bool;

    /// Whether a call may never return. If not, nobody needs a thread to wait for it.
    fn may_hang(&self) -> bool;

    /// Bytes that are free to this process on the file system of a file or directory.
    fn free_space(&self, path: &Path) -> io::Result<u64>;

    /// Whether blocks of a file that were written once are written in place from then on, so that filling a file pays.
    fn writes_in_place(&self, path: &Path) -> bool;

    /// Whether the path leads to something.
    fn exists(&self, path: &Path) -> bool {
        self.metadata(path).is_ok()
    }

    /// Whether the path leads to a directory.
    fn is_dir(&self, path: &Path) -> bool {
        self.metadata(path).is_ok_and(|found| found.is_dir)
    }
}

/// An open directory: what is done here needs no further descriptor, but for the files that are opened.
pub trait DiskDir: Debug + Send + Sync {
    /// Opens a file in it for reading and writing; a link is refused.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Makes a file in it, for reading and writing, mode 0600. Fails if there is one.
    fn create_new(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file in it another name, and takes that from whatever has it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Exchanges the names of two files in it. Fails with EINVAL, ENOSYS or EOPNOTSUPP where that cannot be done.
    fn exchange(&self, one: &str, other: &str) -> io::Result<()>;

    /// Takes the name of a file in it away.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// What is known of the directory itself.
    fn metadata(&self) -> io::Result<Metadata>;

    /// What is known of a file in it; a link is not followed.
    fn metadata_of(&self, name: &str) -> io::Result<Metadata>;

    /// Makes all names in it durable.
    fn sync(&self) -> io::Result<()>;

    /// Makes everything on its file system durable, whoever has written it.
    fn sync_file_system(&self) -> io::Result<()>;
}

/// An open file. Several may have the same one open, also while its name goes.
pub trait DiskFile: Debug + Send + Sync {
    /// Reads up to `buffer.len()` bytes; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// All of a small file of which nothing was read yet.
    fn read_to_end(&self) -> io::Result<Vec<u8>>;

    /// Writes all of it. After an error nobody knows how much was written.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes the content durable, and the length. Says once if that failed: the next one says yes without having
    /// written anything.
    fn sync_data(&self) -> io::Result<()>;

    /// The same with all that is known of the file.
    fn sync_all(&self) -> io::Result<()>;

    /// What is known of the file.
    fn metadata(&self) -> io::Result<Metadata>;

    /// Makes an empty file this long, with all its blocks reserved and zero: a full disk is met here, and not later.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Copies all of it, as it is now, into a new file, mode 0600. Fails if there is one. For a file of which nothing
    /// was read yet.
    fn copy_to_new(&self, path: &Path) -> io::Result<()>;

    /// Locks it against other processes for as long as it is open.
    fn try_lock(&self) -> Result<(), TryLockError>;

    /// The descriptor, for maps and for what the kernel does by itself; `None` if there is none.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Whether a range is known to be nothing but zeros, and to be readable, without a look at it.
    fn is_hole(&self, _at: u64, _len: usize) -> bool {
        false
    }

    /// Fills the whole buffer. Fails with `UnexpectedEof` where the file ends before.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    buffer = &mut buffer[len..];
                    at += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What a call on a simulated disk that hangs returns in a world that is stepped by one thread: it has not happened, and
/// may happen later. A real disk never says so, it just does not return.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the simulated disk hangs")]
pub struct WouldHang;

/// Whether an error says that the call would not have returned.
pub fn would_hang(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<WouldHang>())
}
