//! What a test process that was killed has left on the machine: mounts, loop devices, directories. It has no destructors
//! then, so the next one that makes such things, or a drill, cleans up behind it.
//!
//! All of them are below directories whose names hold the process id ([`Scratch`](crate::Scratch)); those of processes that
//! are there are left alone, and so is what a failed test has kept to be looked at.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::output;
use crate::scratch::Scratch;
use crate::tools::program;

/// Unmounts, detaches and removes what was left. What cannot be is left for the next one: somebody else may be at it.
pub(crate) fn sweep() {
    sweep_in(&std::env::temp_dir());
}

/// The same for directories in `temp`.
fn sweep_in(temp: &Path) {
    let is_left = |path: &Path| is_left(path, temp);
    // The newest first: one may lie on another.
    for mount in mounts().into_iter().rev().filter(|mount| is_left(mount)) {
        let _ = output(program("umount").arg("--lazy").arg(mount));
    }
    for (device, _) in loop_devices().into_iter().filter(|(_, file)| is_left(file)) {
        let _ = output(program("losetup").arg("--detach").arg(device));
    }
    let entries = fs::read_dir(temp).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| is_left(path) && !Scratch::is_kept(path)) {
        let _ = fs::remove_dir_all(path);
    }
}

/// Whether a path is below a directory of a process that is gone.
fn is_left(path: &Path, temp: &Path) -> bool {
    let owner = path.ancestors().find_map(|path| Scratch::owner(path, temp));
    owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn mounts() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).collect()
}

/// Each with its file.
fn loop_devices() -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let device = |entry: fs::DirEntry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let file = file.trim_end().trim_end_matches(" (deleted)");
        Some((Path::new("/dev").join(entry.file_name()), PathBuf::from(file)))
    };
    entries.filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;

    /// The number of a process that is gone.
    fn gone() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_others_have_stays() {
        // Of its own: tests beside this one sweep, too.
        let temp = Scratch::new("sweep");
        let (left, kept) =
            (temp.join(&format!("wr-{}-0-left", gone())), temp.join(&format!("wr-{}-1-kept", gone())));
        for dir in [&left, &kept] {
            fs::create_dir(dir).unwrap();
        }
        Scratch::keep(&kept);
        let mount_point = left.join("mnt");
        fs::create_dir(&mount_point).unwrap();
        let image = left.join("image");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        output(program("mkfs.ext4").args(["-q", "-F"]).arg(&image)).unwrap();
        output(program("mount").args(["-o", "loop"]).arg(&image).arg(&mount_point)).unwrap();
        let attached = left.join("attached");
        fs::File::create(&attached).unwrap().set_len(1 << 20).unwrap();
        output(program("losetup").arg("--find").arg(&attached)).unwrap();
        let ours = Disk::ext4(16);

        sweep_in(temp.path());
        assert!(!left.exists(), "it is gone");
        assert!(kept.exists(), "somebody wants to look at it");
        assert!(!mounts().contains(&mount_point));
        assert!(!loop_devices().iter().any(|(_, file)| file.starts_with(&left)), "{:?}", loop_devices());
        assert!(mounts().iter().any(|mount| mount == ours.path()), "this process is there");
        fs::remove_dir_all(kept).unwrap();
    }
}
