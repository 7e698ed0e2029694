//! A mounted file system whose disk loses its power.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use fastrand::Rng;

use super::blocks::{Fate, Image};
use super::recorder::{Bad, Recorder};
use crate::account;
use crate::leftovers;
use crate::process::output;
use crate::scratch::Scratch;
use crate::tools::program;
use crate::wait::{PATIENCE, within};

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4 with its journal, as it is mounted unless told otherwise.
    Ext4,
    /// xfs, which is never smaller than 300 MB.
    Xfs,
}

impl FileSystem {
    fn make(self, device: &Path) {
        let mut command = match self {
            FileSystem::Ext4 => program("mkfs.ext4"),
            FileSystem::Xfs => program("mkfs.xfs"),
        };
        command.args(match self {
            FileSystem::Ext4 => &["-q", "-F", "-E", "nodiscard", "-m", "0"][..],
            FileSystem::Xfs => &["-q", "-f", "-K"],
        });
        must(command.arg(device));
    }
}

impl FromStr for FileSystem {
    type Err = String;

    fn from_str(text: &str) -> Result<FileSystem, String> {
        match text {
            "ext4" => Ok(FileSystem::Ext4),
            "xfs" => Ok(FileSystem::Xfs),
            _ => Err(format!("file system {text:?} is neither ext4 nor xfs")),
        }
    }
}

impl Display for FileSystem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        })
    }
}

/// A mounted file system on a disk with a volatile write cache. Drop it after those who use it.
#[derive(Debug)]
pub struct PowerDisk {
    file_system: FileSystem,
    mount_point: PathBuf,
    recorder: Recorder,
    // Removed after the drop of this has unmounted.
    _scratch: Scratch,
}

/// The disk at the moment of a power cut; it answers nobody until it is [`PowerDisk::let_go`].
#[derive(Debug, Clone)]
pub struct Cut {
    image: Image,
    /// What became of the writes that no flush had followed.
    pub fate: Fate,
}

impl Cut {
    /// Writes an image of the disk to a file, to be looked at.
    ///
    /// # Errors
    /// Of the file.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        self.image.save(path)
    }
}

impl PowerDisk {
    /// A new file system of `megabytes`.
    ///
    /// # Panics
    /// Without root, FUSE, loop devices or this kind of file system, and says which.
    #[track_caller]
    pub fn start(file_system: FileSystem, megabytes: u64) -> PowerDisk {
        leftovers::sweep();
        let scratch = Scratch::new("powerdisk");
        let (recorder, mount_point) = (Recorder::start(megabytes), scratch.dir("mnt"));
        let disk = PowerDisk { file_system, mount_point, recorder, _scratch: scratch };
        disk.mount(true);
        account::give(&disk.mount_point).expect("root may give files away");
        disk
    }

    /// A path below its root.
    pub fn join(&self, name: &str) -> PathBuf {
        self.mount_point.join(name)
    }

    /// Cuts the power at the `count`-th write or flush from now, before that has any effect. From then on all calls that
    /// need the disk hang. `None` if the disk is not used so much within [`PATIENCE`].
    pub fn cut_after(&self, count: u64, random: &mut Rng) -> Option<Cut> {
        if !self.recorder.freeze_after(count) {
            self.recorder.thaw();
            return None;
        }
        let (image, fate) = self.recorder.cut(random);
        Some(Cut { image, fate })
    }

    /// Answers those who still wait for the disk. They have been sent SIGKILL by now, so nobody hears of it.
    pub fn let_go(&self) {
        self.recorder.thaw();
    }

    /// Makes a piece of a file bad that has its blocks already: what touches it fails with EIO. Of the disk, not of the
    /// file: who writes the file anew gets other blocks. What is read is not asked of the disk while it is in memory, see
    /// [`remount`](Self::remount).
    #[track_caller]
    pub fn spoil(&self, file: &Path, bytes: Range<u64>, bad: Bad) {
        // Of 1024 bytes, which the first line says, too.
        let text = output(program("filefrag").args(["-s", "-v", "-b1024"]).arg(file));
        let text = text.unwrap_or_else(|error| panic!("{error}"));
        let mut found = 0;
        for (at, on_disk) in text.lines().filter_map(extent) {
            let (from, to) = (at.start.max(bytes.start), at.end.min(bytes.end));
            if from < to {
                found += to - from;
                let start = on_disk + from - at.start;
                self.recorder.spoil(start..start + to - from, bad);
            }
        }
        assert_eq!(found, bytes.end - bytes.start, "blocks of {}: {text}", file.display());
    }

    /// Makes everything good again.
    pub fn heal(&self) {
        self.recorder.heal();
    }

    /// Unmounts the disk and mounts it again, so that nothing of it is in memory. Nobody may use it.
    #[track_caller]
    pub fn remount(&self) {
        self.unmount();
        self.mount(false);
    }

    /// Unmounts the disk and mounts it again as the cut has left it.
    ///
    /// # Panics
    /// When the file system cannot be mounted any more.
    #[track_caller]
    pub fn power_on(&self, cut: Cut) {
        self.unmount();
        self.recorder.replace(cut.image);
        self.mount(false);
    }

    #[track_caller]
    fn unmount(&self) {
        let mut umount = program("umount");
        umount.arg(&self.mount_point);
        let mut said = String::new();
        let unmounted = within(PATIENCE, || output(&mut umount).map_err(|error| said = error).ok());
        assert!(unmounted.is_some(), "the disk is still in use: {said}");
        self.recorder.wait_until_let_go();
    }

    #[track_caller]
    fn mount(&self, anew: bool) {
        let device = self.recorder.attach();
        if anew {
            self.file_system.make(device.path());
        }
        let kind = self.file_system.to_string();
        must(program("mount").args(["-t", &kind]).arg(device.path()).arg(&self.mount_point));
        device.release();
    }

    /// Writes and flushes so far.
    pub fn counts(&self) -> (u64, u64) {
        self.recorder.counts()
    }
}

/// A line of `filefrag -v`: which bytes of the file, and where on the disk they begin.
/// ` 0:   0..  255:   34816..  35071:  256:  last,eof`
fn extent(line: &str) -> Option<(Range<u64>, u64)> {
    let mut fields = line.split(':').map(str::trim);
    fields.next()?.parse::<u64>().ok()?;
    let mut range = || {
        let (first, last) = fields.next()?.split_once("..")?;
        Some((first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?))
    };
    let ((first, last), (on_disk, _)) = (range()?, range()?);
    Some((first << 10..(last + 1) << 10, on_disk << 10))
}

#[track_caller]
fn must(command: &mut Command) {
    output(command).unwrap_or_else(|error| panic!("{error} (file systems of a test's own take root)"));
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        self.recorder.thaw();
        let umount = |how: &[&str]| output(program("umount").args(how).arg(&self.mount_point));
        if umount(&[]).is_err() {
            let _ = umount(&["--lazy"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Syncs one more byte each time until the disk is gone; what it was told to be durable.
    fn append(path: PathBuf, done: &AtomicU64) {
        let mut file = File::create(path).unwrap();
        for byte in 0_u64.. {
            file.write_all(&[byte as u8]).unwrap();
            file.sync_all().unwrap();
            if done.load(Ordering::SeqCst) & STOP != 0 {
                return;
            }
            done.fetch_add(1, Ordering::SeqCst);
        }
    }

    const STOP: u64 = 1 << 63;

    #[test]
    fn a_bad_piece_of_a_file_fails_and_nothing_else_does() {
        let disk = PowerDisk::start(FileSystem::Ext4, 64);
        let (bad, good) = (disk.join("bad"), disk.join("good"));
        for path in [&bad, &good] {
            fs::write(path, vec![7; 1 << 20]).unwrap();
            File::open(path).unwrap().sync_all().unwrap();
        }
        disk.spoil(&bad, 500_000..500_001, Bad::Reads);
        disk.remount();
        assert_eq!(fs::read(&good).unwrap(), vec![7; 1 << 20]);
        assert_eq!(fs::read(&bad).unwrap_err().raw_os_error(), Some(5));
        disk.heal();
        assert_eq!(fs::read(&bad).unwrap(), vec![7; 1 << 20]);
        disk.spoil(&bad, 500_000..500_001, Bad::Writes);
        let mut file = File::options().write(true).open(&bad).unwrap();
        file.write_all(&vec![8; 1 << 20]).unwrap();
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(5));
    }

    #[test]
    fn what_was_synced_is_there_after_a_cut_and_what_was_not_may_be_lost() {
        let mut random = Rng::with_seed(3);
        for file_system in [FileSystem::Ext4, FileSystem::Xfs] {
            let disk = PowerDisk::start(file_system, 320);
            fs::write(disk.join("forgotten"), "never synced").unwrap();
            File::create(disk.join("synced")).unwrap().sync_all().unwrap();
            File::open(disk.join(".")).unwrap().sync_all().unwrap();
            for _ in 0..3 {
                let done = AtomicU64::new(0);
                let path = disk.join("synced");
                let (cut, durable) = std::thread::scope(|scope| {
                    scope.spawn(|| append(path, &done));
                    let cut = disk.cut_after(40, &mut random);
                    let durable = done.fetch_or(STOP, Ordering::SeqCst);
                    disk.let_go();
                    (cut, durable)
                });
                // Not before the writer has stopped: nobody could unmount the disk.
                disk.power_on(cut.expect("the disk is used"));
                let found = fs::read(disk.join("synced")).unwrap();
                assert!(found.len() as u64 >= durable, "{} of {durable} bytes on {file_system}", found.len());
            }
        }
    }
}
