//! A block device whose power can be cut: a loop device over a file that this process serves.
//!
//! Device-mapper targets made for this (dm-log-writes, dm-flakey), NBD and ublk are modules that many kernels lack, those of
//! containers and small virtual machines above all; FUSE and loop devices are nearly everywhere. The loop device passes
//! a flush of the file system on as an fsync of its file, and knows no other barrier: the block layer makes a flush
//! before and behind of a write with FUA. The file is opened for direct I/O, so no page cache lies between.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, Session, SessionACL, WriteFlags,
};

use super::blocks::{Blocks, Fate, Image};
use crate::process::output;
use crate::scratch::Scratch;
use crate::tools::program;
use crate::wait::{PATIENCE, wait_until};

/// Name of the only file.
const NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
/// How long the kernel may believe what it was told; nothing of it ever changes.
const TTL: Duration = Duration::from_secs(3600);

/// Serves the file. Unmounted when dropped; whoever uses the file has let go of it by then.
#[derive(Debug)]
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    /// Taken when this is dropped.
    session: Option<BackgroundSession>,
    scratch: Scratch,
}

#[derive(Debug)]
struct Shared {
    size: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    blocks: Blocks,
    /// Nothing is answered any more: the power is failing.
    frozen: bool,
    /// So many more writes and flushes until it does.
    fuse: Option<u64>,
    writes: u64,
    flushes: u64,
    /// What cannot be read, and what cannot be written: EIO.
    bad: [Vec<Range<u64>>; 2],
    /// Who has the file open.
    open: usize,
}

/// What cannot be done with a piece of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// It cannot be read.
    Reads,
    /// It cannot be written.
    Writes,
}

impl State {
    fn is_bad(&self, how: Bad, offset: u64, len: u64) -> bool {
        let meets = |bad: &Range<u64>| bad.start < offset + len && offset < bad.end;
        self.bad[how as usize].iter().any(meets)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the lock")
    }

    fn thawed(&self) -> MutexGuard<'_, State> {
        let frozen = |state: &mut State| state.frozen;
        self.changed.wait_while(self.lock(), frozen).expect("nobody panics while holding the lock")
    }

    /// As [`Shared::thawed`], for what changes the disk: this may be the moment of the cut, and then it comes too late.
    fn change(&self) -> MutexGuard<'_, State> {
        let mut state = self.thawed();
        if let Some(left) = &mut state.fuse {
            *left = left.saturating_sub(1);
            if *left == 0 {
                state.fuse = None;
                state.frozen = true;
                self.changed.notify_all();
                drop(state);
                return self.thawed();
            }
        }
        state
    }
}

impl Recorder {
    /// A disk of `megabytes`, all zeros.
    ///
    /// # Panics
    /// Without root or FUSE.
    #[track_caller]
    pub(crate) fn start(megabytes: u64) -> Recorder {
        let scratch = Scratch::new("recorder");
        let size = megabytes << 20;
        let state = State {
            blocks: Blocks::empty(size),
            frozen: false,
            fuse: None,
            writes: 0,
            flushes: 0,
            bad: Default::default(),
            open: 0,
        };
        let shared = Arc::new(Shared { size, state: Mutex::new(state), changed: Condvar::new() });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("walrelay-test".to_owned())];
        config.acl = SessionACL::All;
        let session = Session::new(Served(shared.clone()), scratch.dir("fuse"), &config);
        let session = session.and_then(Session::spawn);
        let session = session.unwrap_or_else(|error| {
            panic!("could not mount a FUSE file system: {error} (disks whose power is cut take root and /dev/fuse)")
        });
        Recorder { shared, session: Some(session), scratch }
    }

    fn file(&self) -> PathBuf {
        self.scratch.join("fuse").join(NAME)
    }

    /// A loop device over the file. It goes by itself when the last user of it does, see [`LoopDevice::release`].
    #[track_caller]
    pub(crate) fn attach(&self) -> LoopDevice {
        let mut losetup = program("losetup");
        losetup.args(["--find", "--show"]).arg(self.file());
        let name = output(&mut losetup).unwrap_or_else(|error| panic!("{error} (loop devices take root)"));
        LoopDevice { path: name.trim().into(), held: true }
    }

    /// Waits until nobody has the file open.
    #[track_caller]
    pub(crate) fn wait_until_let_go(&self) {
        wait_until("the loop device to let go of its file", || self.shared.lock().open == 0);
    }

    /// Freezes the disk at its `count`-th write or flush from now, which comes too late, and waits for it; false if the
    /// disk is not used so much within [`PATIENCE`]. It is frozen then as well.
    pub(crate) fn freeze_after(&self, count: u64) -> bool {
        let mut state = self.shared.lock();
        state.fuse = Some(count.max(1));
        let thawed = |state: &mut State| !state.frozen;
        let (mut state, waited) = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, thawed)
            .expect("nobody panics while holding the lock");
        (state.fuse, state.frozen) = (None, true);
        !waited.timed_out()
    }

    /// Goes on answering.
    pub(crate) fn thaw(&self) {
        let mut state = self.shared.lock();
        (state.fuse, state.frozen) = (None, false);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// What a power cut leaves of the disk now.
    pub(crate) fn cut(&self, random: &mut Rng) -> (Image, Fate) {
        self.shared.lock().blocks.cut(random)
    }

    /// Fails what touches these bytes.
    pub(crate) fn spoil(&self, bytes: Range<u64>, how: Bad) {
        self.shared.lock().bad[how as usize].push(bytes);
    }

    /// Takes that back.
    pub(crate) fn heal(&self) {
        self.shared.lock().bad = Default::default();
    }

    /// Another content; nobody may use the file meanwhile.
    pub(crate) fn replace(&self, image: Image) {
        let mut state = self.shared.lock();
        assert_eq!(state.open, 0, "somebody uses the disk");
        state.blocks = Blocks::holding(image);
    }

    /// Writes and flushes so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (state.writes, state.flushes)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.thaw();
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
        // In case somebody still had the file open.
        let mount_point = self.scratch.join("fuse");
        let _ = output(program("umount").arg("--lazy").arg(mount_point));
    }
}

/// A loop device, detached when dropped.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    path: PathBuf,
    held: bool,
}

impl LoopDevice {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// It goes when its last user, such as a mounted file system, does.
    pub(crate) fn release(mut self) {
        self.detach();
    }

    fn detach(&mut self) {
        if std::mem::take(&mut self.held) {
            let _ = output(program("losetup").arg("--detach").arg(&self.path));
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.detach();
    }
}

/// What the kernel sees.
struct Served(Arc<Shared>);

impl Served {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, size) =
            if ino == FILE { (FileType::RegularFile, self.0.size) } else { (FileType::Directory, 0) };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: if ino == FILE { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.0.lock().open += 1;
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().open -= 1;
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; u64::from(size).min(self.0.size.saturating_sub(offset)) as usize];
        let state = self.0.thawed();
        if state.is_bad(Bad::Reads, offset, bytes.len() as u64) {
            return reply.error(Errno::EIO);
        }
        state.blocks.read(offset, &mut bytes);
        drop(state);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if offset + data.len() as u64 > self.0.size {
            return reply.error(Errno::ENOSPC);
        }
        let mut state = self.0.change();
        if state.is_bad(Bad::Writes, offset, data.len() as u64) {
            return reply.error(Errno::EIO);
        }
        state.writes += 1;
        state.blocks.write(offset, data);
        drop(state);
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.0.change();
        state.flushes += 1;
        state.blocks.flush();
        drop(state);
        reply.ok();
    }

    /// Somebody has closed it, which makes nothing durable.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
