//! File systems of a test's own: small ones that fill up, and images whose blocks a test can get at.
//!
//! They are mounted, which takes root and a kernel that lets it; where that is impossible the test fails and says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account;
use crate::leftovers;
use crate::process::output;
use crate::scratch::Scratch;
use crate::tools::program;

/// A mounted file system; unmounted and removed when this is dropped, by then nobody may use it.
#[derive(Debug)]
pub struct Disk {
    mount_point: PathBuf,
    /// The file that holds its blocks; `None` for tmpfs.
    image: Option<PathBuf>,
    // Removed after the drop of this has unmounted.
    scratch: Scratch,
}

impl Disk {
    /// An ext4 file system in an image file of `megabytes`.
    #[track_caller]
    pub fn ext4(megabytes: u64) -> Disk {
        Disk::formatted(
            megabytes,
            "mkfs.ext4",
            &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0"],
        )
    }

    /// An ext4 file system of `megabytes`, whose blocks take room of `backing` when they are first written: when that is
    /// full, writing them back fails with EIO. It has no journal, which would give up the whole file system. Drop it
    /// before `backing`.
    #[track_caller]
    pub fn ext4_on(backing: &Disk, megabytes: u64) -> Disk {
        let disk = Disk::unmounted();
        let image = backing.join("image");
        disk.formatted_at(image, megabytes, "mkfs.ext4", &["-q", "-O", "^has_journal", "-m", "0"])
    }

    /// An xfs file system in an image file of `megabytes`, at least 300. Needs `mkfs.xfs`.
    #[track_caller]
    pub fn xfs(megabytes: u64) -> Disk {
        Disk::formatted(megabytes, "mkfs.xfs", &["-q"])
    }

    /// A tmpfs of `megabytes`.
    #[track_caller]
    pub fn tmpfs(megabytes: u64) -> Disk {
        let disk = Disk::unmounted();
        let size = format!("size={megabytes}M,mode=0755");
        disk.run("mount", &["-t", "tmpfs", "-o", &size, "walrelay-test"]);
        disk.adopt()
    }

    #[track_caller]
    fn formatted(megabytes: u64, mkfs: &str, options: &[&str]) -> Disk {
        let disk = Disk::unmounted();
        let image = disk.scratch.join("image");
        disk.formatted_at(image, megabytes, mkfs, options)
    }

    #[track_caller]
    fn formatted_at(mut self, image: PathBuf, megabytes: u64, mkfs: &str, options: &[&str]) -> Disk {
        let file = fs::File::create(&image).expect("the directory is ours");
        file.set_len(megabytes << 20).expect("a sparse file takes no room");
        run(program(mkfs).args(options).arg(&image));
        self.image = Some(image);
        self.mount();
        self.adopt()
    }

    fn unmounted() -> Disk {
        leftovers::sweep();
        let scratch = Scratch::new("disk");
        let mount_point = scratch.join("mnt");
        fs::create_dir(&mount_point).expect("the directory is ours");
        Disk { mount_point, image: None, scratch }
    }

    /// The root of the file system belongs to the servers' account, as directories of tests do.
    fn adopt(self) -> Disk {
        account::give(&self.mount_point).expect("root may give files away");
        self
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// A path below its root.
    pub fn join(&self, name: &str) -> PathBuf {
        self.mount_point.join(name)
    }

    /// The file that holds its blocks, with what has reached the disk. Not for tmpfs.
    pub fn image(&self) -> &Path {
        self.image.as_deref().expect("this file system has an image")
    }

    /// Mounts an image again after [`Disk::unmount`].
    #[track_caller]
    pub fn mount(&self) {
        let image = self.image().display().to_string();
        self.run("mount", &["-o", "loop", &image]);
    }

    /// Unmounts it: what somebody still uses goes when they let go of it.
    #[track_caller]
    pub fn unmount(&self) {
        run(program("umount").arg("--lazy").arg(&self.mount_point));
    }

    /// Takes all the room that is left, but for `spare` bytes, with a file called `filler`, which grows when it is called again.
    #[track_caller]
    pub fn fill_but(&self, spare: u64) {
        let mut options = fs::OpenOptions::new();
        let file = options.append(true).create(true).open(self.join("filler"));
        let file = file.expect("a full disk still has a directory entry");
        let held = file.metadata().expect("it is open").len();
        let mut size = self.free().saturating_sub(spare);
        // Metadata takes some of it.
        while size > 0
            && rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), held, size).is_err()
        {
            size = size.saturating_sub(64 << 10);
        }
    }

    /// Gives back what [`Disk::fill_but`] took.
    pub fn empty(&self) {
        let _ = fs::remove_file(self.join("filler"));
    }

    /// Bytes left for those who are not root.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mount_point).expect("it is mounted");
        stat.f_bavail * stat.f_frsize
    }

    #[track_caller]
    fn run(&self, name: &str, args: &[&str]) {
        run(program(name).args(args).arg(&self.mount_point));
    }
}

#[track_caller]
fn run(command: &mut Command) {
    output(command).unwrap_or_else(|error| panic!("{error} (file systems of a test's own take root)"));
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = program("umount").arg("--lazy").arg(&self.mount_point).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_fills_and_empties() {
        for disk in [Disk::ext4(16), Disk::tmpfs(2)] {
            disk.fill_but(0);
            let refused = fs::write(disk.join("file"), vec![0; 256 << 10]).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
            disk.empty();
            fs::write(disk.join("file"), vec![0; 256 << 10]).unwrap();
        }
    }
}
