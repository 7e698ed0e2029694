//! Segment files and their memory maps: with [`fault`], which is about them too, the only unsafe code of walrelay.
//!
//! A [`Segment`] is one file of `pg_wal`, at its full size from the first moment, mapped shared and
//! read-only. What reads, sends or archives takes slices of that map; the one writer puts bytes into the
//! file by `pwrite`, or through a second, writable map (`--wal-write mmap`). Both show in the shared map
//! at once.
//!
//! What makes a slice sound, and who keeps it so:
//! - **Nothing below `published` ever changes.** Only the writer moves it, after the bytes are in place,
//!   and it writes at or above it ([`Segment::write`] asserts that). Readers get nothing above it.
//! - **The file keeps its size while mapped.** Files are preallocated before they are mapped, and nothing
//!   in walrelay truncates or rewrites a segment file: they are removed and created anew. The lock on the
//!   data directory keeps other relays out.
//!
//! A file that somebody else truncates all the same, and a bad sector, are SIGBUS for whoever *loads* from the map; who
//! has the kernel copy out of it gets an error. So nothing of ours loads where it can be helped:
//! - sending: the kernel copies into the socket, or answers EFAULT. TLS, which has to load, gets a copy
//!   ([`Segment::read`]), and so does whoever compares or counts. The recovery scan reads by `pread`.
//! - archiving: what is compared, compressed, encrypted, summed up or written gets copies, too. What is left is a segment that
//!   the client of an object store sends as it lies there, in one request: a copy would be as long as the segment. It is
//!   brought into memory first ([`Segment::populate`]), so that a bad sector is an error; a file that is truncated between
//!   that and the upload ends the process, and [`fault`] says why. So does an I/O error under `--wal-write mmap`.

mod fault;
mod heap;
#[cfg(test)]
mod shared;

use std::fs::File;
use std::io;
use std::io::ErrorKind::{NotFound, PermissionDenied};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use walrelay_proto::{Lsn, SegSize, WalFileName};

use crate::disk::{Disk, DiskFile, Open, OsDisk};

pub use fault::explain_bus_errors;
pub use heap::map_large_blocks;

/// What is copied out of a map at a time, bytes.
pub const COPIED: usize = 64 << 10;

/// How the writer stores WAL into a segment (`--wal-write`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum WalWrite {
    /// `pwrite(2)`: no page faults, and an I/O error is an error. The default.
    #[default]
    Pwrite,
    /// Stores through a writable shared map: an I/O error while storing is SIGBUS, which ends the process.
    Mmap,
}

/// One segment of WAL: its file, its map, and how far it may be read.
pub struct Segment {
    name: WalFileName,
    size: SegSize,
    /// The writer's file, for as long as it is written or synced; readers need none.
    file: Mutex<Option<Arc<dyn DiskFile>>>,
    /// The file of a segment that is read only, for the kernel to send from.
    sent_from: Mutex<Option<Arc<dyn DiskFile>>>,
    memory: Memory,
    /// Bytes from the segment's start that are final. Moves up only.
    published: AtomicU64,
    /// Whether the file's directory entry is durable.
    linked: AtomicBool,
}

/// The file of a segment, for the kernel to send from; it has a descriptor.
#[derive(Clone, Debug)]
pub struct SegmentFile(Arc<dyn DiskFile>);

impl AsFd for SegmentFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.descriptor().expect("only files that have one are given out")
    }
}

/// Where a segment's bytes are read.
enum Memory {
    /// In the file itself.
    Mapped {
        map: MmapRaw,
        /// The writer's map under `--wal-write mmap`; `None` for segments that are only read.
        writable: Option<MmapRaw>,
    },
    /// In a copy, of a file that has no descriptor: what was there when it was opened, and what has been written here
    /// since. Nothing below `published` changes, so no reader sees a difference.
    Heap {
        copy: MmapRaw,
        /// To be asked whether it can be read.
        file: Arc<dyn DiskFile>,
    },
}

impl Segment {
    /// Maps a file of full size for reading; its first `published` bytes are final.
    ///
    /// Fails with `InvalidData` if the file is not exactly one segment long.
    pub(crate) fn open(path: &Path, name: WalFileName, size: SegSize, published: u64) -> io::Result<Segment> {
        Segment::open_on(&OsDisk, path, name, size, published)
    }

    /// The same on any disk.
    pub(super) fn open_on(
        disk: &dyn Disk,
        path: &Path,
        name: WalFileName,
        size: SegSize,
        published: u64,
    ) -> io::Result<Segment> {
        Segment::map(disk.open(path, Open::Read)?.into(), name, size, published, false)
    }

    /// The same, with the file kept open, for the kernel to send from.
    pub(super) fn open_to_send(
        disk: &dyn Disk,
        path: &Path,
        name: WalFileName,
        size: SegSize,
        published: u64,
    ) -> io::Result<Segment> {
        let file: Arc<dyn DiskFile> = disk.open(path, Open::Read)?.into();
        let segment = Segment::map(file.clone(), name, size, published, false)?;
        Ok(Segment { sent_from: Mutex::new(Some(file)), ..segment })
    }

    /// Maps a preallocated file for the writer; its first `published` bytes are final already.
    pub(super) fn for_writer(
        file: Box<dyn DiskFile>,
        name: WalFileName,
        size: SegSize,
        published: u64,
        how: WalWrite,
    ) -> io::Result<Segment> {
        let file: Arc<dyn DiskFile> = file.into();
        let segment = Segment::map(file.clone(), name, size, published, how == WalWrite::Mmap)?;
        Ok(Segment { file: Mutex::new(Some(file)), ..segment })
    }

    fn map(
        file: Arc<dyn DiskFile>,
        name: WalFileName,
        size: SegSize,
        published: u64,
        writable: bool,
    ) -> io::Result<Segment> {
        let found = file.metadata()?.len;
        if found != size.bytes() {
            let text = format!("segment file is {found} bytes long, expected {}", size.bytes());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Segment {
            name,
            size,
            file: Mutex::new(None),
            sent_from: Mutex::new(None),
            memory: Memory::of(file, size, writable)?,
            published: AtomicU64::new(published.min(size.bytes())),
            linked: AtomicBool::new(false),
        })
    }

    /// Timeline and number of the segment.
    pub fn name(&self) -> WalFileName {
        self.name
    }

    /// First byte of the segment.
    pub fn start(&self) -> Lsn {
        self.name.segno.start(self.size)
    }

    /// First byte after the segment.
    pub fn end(&self) -> Lsn {
        self.name.segno.end(self.size)
    }

    /// Bytes from the segment's start that are final, `0 ..= seg_size`.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Whether all of the segment is final.
    pub fn is_complete(&self) -> bool {
        self.published() == self.size.bytes()
    }

    /// Its file's name.
    pub fn file_name(&self) -> String {
        self.name.format(self.size)
    }

    /// Final bytes of the segment, straight from the shared map: for the kernel to copy, and for whoever is prepared to
    /// die of loading them (module comment).
    ///
    /// # Panics
    /// If the range reaches beyond [`published`](Self::published): the caller's bug, never a peer's doing.
    pub fn bytes(&self, offset: u64, len: usize) -> &[u8] {
        self.expect_published(offset, len);
        // SAFETY: the range lies inside the map (published <= seg_size == length of the map), the file is
        // never truncated while mapped, and bytes below `published` never change (module comment).
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(offset as usize), len) }
    }

    fn expect_published(&self, offset: u64, len: usize) {
        let end = offset.checked_add(len as u64);
        assert!(end.is_some_and(|end| end <= self.published()), "read beyond the published end");
    }

    /// Copies final bytes of the segment, waiting for the disk if they are not in memory.
    ///
    /// # Errors
    /// They cannot be read: somebody has truncated the file, or the disk has failed.
    ///
    /// # Panics
    /// As [`bytes`](Self::bytes).
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.expect_published(offset, bytes.len());
        match &self.memory {
            Memory::Mapped { .. } => self.copy(offset as usize, bytes),
            Memory::Heap { file, .. } => {
                file.read_exact_at(&mut vec![0; bytes.len()], offset)?;
                self.load(offset as usize, bytes)
            }
        }
    }

    /// What to say where the kernel has found a page that it cannot copy.
    pub fn unreadable() -> io::Error {
        io::Error::other("a page cannot be read, the file was truncated or its disk has failed")
    }

    /// Stores `bytes` at `offset`. For the one writer.
    ///
    /// # Panics
    /// If the range begins below `published` or ends beyond the segment.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        assert!(end.is_some_and(|end| end <= self.size.bytes()), "write beyond the segment");
        assert!(offset >= self.published(), "write below the published end");
        let map = match &self.memory {
            Memory::Mapped { writable: None, .. } => return self.write_to_file(offset, bytes),
            Memory::Mapped { writable: Some(map), .. } => map,
            Memory::Heap { copy, .. } => {
                self.write_to_file(offset, bytes)?;
                copy
            }
        };
        // SAFETY: the range lies inside the writable map (checked above; the map is one segment long). No
        // reference to it exists: readers get slices below `published` only, and there is one writer.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.as_mut_ptr().add(offset as usize), bytes.len());
        }
        Ok(())
    }

    /// Whether each [`write`](Self::write) is a system call.
    pub(super) fn is_written_by_calls(&self) -> bool {
        !matches!(self.memory, Memory::Mapped { writable: Some(_), .. })
    }

    fn write_to_file(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.file().ok_or_else(|| io::Error::other("the segment is closed"))?;
        file.write_all_at(bytes, offset)
    }

    /// Lets readers see the first `end` bytes. For the one writer; never moves down.
    pub(super) fn publish(&self, end: u64) {
        assert!(end <= self.size.bytes(), "published beyond the segment");
        self.published.fetch_max(end, Ordering::Release);
    }

    /// Makes everything written so far durable. A failure must never be retried: the kernel may have
    /// dropped the dirty pages and would report success.
    pub(super) fn sync(&self) -> io::Result<()> {
        // Closed is what has been synced whole.
        self.file().map_or(Ok(()), |file| file.sync_data())
    }

    /// Lets go of the file of a segment that is full and synced: nothing more is written to it.
    pub(super) fn close(&self) {
        *self.lock_file() = None;
    }

    /// The file, for the kernel to send final bytes from, as long as it is open. They are never written again, so what has not
    /// left the socket yet does not change (module comment).
    pub fn file_to_send(&self) -> Option<SegmentFile> {
        let kept = self.sent_from.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let file = kept.or_else(|| self.file()).filter(|file| file.descriptor().is_some())?;
        Some(SegmentFile(file))
    }

    /// Lets go of a file that is only sent from: it is sent from the map then.
    pub fn close_to_send(&self) {
        *self.sent_from.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether the file has been let go of.
    pub(super) fn is_closed(&self) -> bool {
        self.lock_file().is_none()
    }

    /// Nobody waits for the disk while this is locked.
    fn lock_file(&self) -> MutexGuard<'_, Option<Arc<dyn DiskFile>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> Option<Arc<dyn DiskFile>> {
        self.lock_file().clone()
    }

    /// Whether the file's directory entry is durable.
    pub(super) fn is_linked(&self) -> bool {
        self.linked.load(Ordering::Relaxed)
    }

    /// It is now.
    pub(super) fn note_link(&self) {
        self.linked.store(true, Ordering::Relaxed);
    }

    /// Whether a range is in the page cache, so that sending it will not wait for the disk. Where the kernel does not say (a filter of
    /// system calls), it is not.
    pub fn is_resident(&self, offset: u64, len: usize) -> bool {
        const PAGE: usize = 4096;
        let Memory::Mapped { map, .. } = &self.memory else { return true };
        let first = offset as usize / PAGE * PAGE;
        let last = (offset as usize + len).min(self.size.bytes() as usize);
        let mut pages = [0u8; 256];
        (first..last).step_by(pages.len() * PAGE).all(|at| {
            let span = (last - at).min(pages.len() * PAGE);
            // SAFETY: `at` is a multiple of the page size inside the map, `span` ends inside it, and
            // `pages` has one byte for each page of the span. A larger page size needs fewer bytes.
            let answer = unsafe { libc::mincore(map.as_ptr().add(at) as *mut _, span, pages.as_mut_ptr()) };
            answer == 0 && pages[..span.div_ceil(PAGE)].iter().all(|page| page & 1 == 1)
        })
    }

    /// Reads a range into the page cache, waiting for the disk. For blocking threads only.
    pub fn populate(&self, offset: u64, len: usize) -> io::Result<()> {
        let (offset, len) = (offset as usize, len.min((self.size.bytes() - offset) as usize));
        let map = match &self.memory {
            Memory::Mapped { map, .. } => map,
            Memory::Heap { file, .. } => return file.read_exact_at(&mut vec![0; len], offset as u64),
        };
        match map.advise_range(Advice::PopulateRead, offset / 4096 * 4096, len + offset % 4096) {
            // Kernels before 5.14 do not know the advice: read the range the plain way.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.read_through(offset, len),
            other => other,
        }
    }

    fn read_through(&self, offset: usize, len: usize) -> io::Result<()> {
        let mut buffer = [0u8; 16384];
        (offset..offset + len).step_by(buffer.len()).try_for_each(|at| {
            let wanted = buffer.len().min(offset + len - at);
            self.copy(at, &mut buffer[..wanted])
        })
    }

    /// Has the kernel copy a range out of the map: a page that cannot be read is an error, where a load would be SIGBUS.
    fn copy(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // Only the address: the kernel reads, and checks it.
        let remote = libc::iovec {
            iov_base: self.memory.as_ptr().wrapping_add(offset).cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: `local` is one buffer that nobody else uses; the kernel reads `remote` itself and fails where it cannot.
        let copied = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        if copied == bytes.len() as isize {
            return Ok(());
        }
        let error = if copied < 0 { io::Error::last_os_error() } else { io::ErrorKind::UnexpectedEof.into() };
        match error.raw_os_error() {
            // A container's rules may forbid the call.
            Some(libc::EPERM | libc::ENOSYS) => self.copy_as_file(offset, bytes),
            Some(libc::EFAULT) | None => Err(Segment::unreadable()),
            _ => Err(error),
        }
    }

    /// The same by reading this process's memory as a file, which needs no right to look at processes. It is opened once, and
    /// stays open.
    fn copy_as_file(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        static MEMORY: OnceLock<File> = OnceLock::new();
        let memory = match MEMORY.get() {
            Some(memory) => memory,
            None => match File::open("/proc/self/mem") {
                Ok(memory) => MEMORY.get_or_init(|| memory),
                // Then nobody can copy it who does not die of a page that cannot be read.
                Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => {
                    return self.load(offset, bytes);
                }
                Err(error) => return Err(error),
            },
        };
        let at = self.memory.as_ptr().wrapping_add(offset).addr() as u64;
        memory.read_exact_at(bytes, at).map_err(|_| Segment::unreadable())
    }

    fn load(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len());
        assert!(end.is_some_and(|end| end as u64 <= self.size.bytes()), "read beyond the segment");
        // SAFETY: the range lies inside the map. Bytes above `published` may change meanwhile, but those are only touched,
        // for `populate`, and not looked at.
        unsafe {
            std::ptr::copy_nonoverlapping(self.memory.as_ptr().add(offset), bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }
}

impl Memory {
    fn of(file: Arc<dyn DiskFile>, size: SegSize, writable: bool) -> io::Result<Memory> {
        let Some(descriptor) = file.descriptor() else {
            let copy = MmapRaw::from(copy_of(&*file, size)?);
            return Ok(Memory::Heap { copy, file });
        };
        let map = MmapOptions::new().map_raw_read_only(&descriptor)?;
        let writable = writable.then(|| MmapOptions::new().map_raw(&descriptor)).transpose()?;
        Ok(Memory::Mapped { map, writable })
    }

    fn as_ptr(&self) -> *const u8 {
        match self {
            Memory::Mapped { map, .. } | Memory::Heap { copy: map, .. } => map.as_ptr(),
        }
    }
}

/// The file's content in memory of its own. What cannot be read is zero, until somebody asks for it by `populate`.
fn copy_of(file: &dyn DiskFile, size: SegSize) -> io::Result<MmapMut> {
    const PIECE: usize = 1 << 14;
    let mut copy = MmapMut::map_anon(size.bytes() as usize)?;
    let mut piece = [0; PIECE];
    for (into, at) in copy.chunks_mut(PIECE).zip((0..).step_by(PIECE)) {
        // Nothing is put where zeros are: that costs no memory.
        if !file.is_hole(at, PIECE) && file.read_exact_at(&mut piece, at).is_ok() && piece != [0; PIECE] {
            into.copy_from_slice(&piece);
        }
    }
    Ok(copy)
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("name", &self.name.format(self.size))
            .field("published", &self.published())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walrelay_proto::{SegNo, TimelineId};

    fn segment(how: WalWrite) -> (tempfile::TempDir, Segment) {
        let dir = crate::permissions::private_tempdir();
        let size = SegSize::new(1 << 20).unwrap();
        let path = dir.path().join("segment");
        let file = OsDisk.open(&path, Open::CreateEmpty).unwrap();
        file.allocate(size.bytes()).unwrap();
        let name = WalFileName::new(TimelineId::FIRST, SegNo::new(1));
        (dir, Segment::for_writer(file, name, size, 0, how).unwrap())
    }

    #[test]
    fn what_is_written_either_way_shows_in_the_map_once_published() {
        for how in [WalWrite::Pwrite, WalWrite::Mmap] {
            let (_dir, segment) = segment(how);
            segment.write(8190, b"abcd").unwrap();
            segment.publish(8194);
            assert_eq!(segment.bytes(8190, 4), b"abcd");
            segment.sync().unwrap();
            assert!(segment.is_resident(8190, 4));
            segment.populate(5000, 9000).unwrap();
            segment.read_through(5000, 40_000).unwrap();
        }
    }

    #[test]
    fn a_closed_segment_is_read_and_counts_as_synced_but_takes_nothing() {
        let (_dir, segment) = segment(WalWrite::Pwrite);
        segment.write(0, b"abcd").unwrap();
        segment.publish(4);
        segment.sync().unwrap();
        segment.close();
        segment.sync().unwrap();
        assert_eq!(segment.bytes(0, 4), b"abcd");
        assert!(segment.write(4, b"e").is_err());
    }

    #[test]
    #[should_panic(expected = "beyond the published end")]
    fn bytes_above_the_published_end_cannot_be_read() {
        let (_dir, segment) = segment(WalWrite::Pwrite);
        segment.publish(10);
        segment.bytes(5, 6);
    }

    #[test]
    #[should_panic(expected = "below the published end")]
    fn published_bytes_cannot_be_written_again() {
        let (_dir, segment) = segment(WalWrite::Pwrite);
        segment.publish(10);
        let _ = segment.write(9, b"x");
    }

    #[test]
    fn what_was_truncated_is_an_error_for_who_has_it_copied() {
        let (dir, segment) = segment(WalWrite::Pwrite);
        segment.write(0, &[7; 20_000]).unwrap();
        segment.publish(20_000);
        let mut copy = [0; 5000];
        segment.read(10_000, &mut copy).unwrap();
        assert_eq!(copy, [7; 5000]);
        let file = std::fs::File::options().write(true).open(dir.path().join("segment")).unwrap();
        file.set_len(8192).unwrap();
        segment.read(3000, &mut copy).unwrap();
        for offset in [5000, 8192, 12_000] {
            let error = segment.read(offset, &mut copy).unwrap_err().to_string();
            assert!(error.contains("truncated"), "{error}");
            // Where the kernel may not copy from one process to another.
            let error = segment.copy_as_file(offset as usize, &mut copy).unwrap_err().to_string();
            assert!(error.contains("truncated"), "{error}");
        }
        assert!(segment.populate(0, 20_000).is_err());
    }

    #[test]
    fn where_the_kernel_may_not_copy_memory_is_read_as_a_file_or_loaded() {
        let (_dir, segment) = segment(WalWrite::Pwrite);
        segment.write(100, b"abcd").unwrap();
        for copy in [Segment::copy_as_file, Segment::load] {
            let mut into = [0; 4];
            copy(&segment, 100, &mut into).unwrap();
            assert_eq!(&into, b"abcd");
        }
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let (dir, segment) = segment(WalWrite::Pwrite);
        let size = SegSize::new(2 << 20).unwrap();
        let error = Segment::open(&dir.path().join("segment"), segment.name(), size, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
