//! A file system that never answers, as a network file system does whose server is gone.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::io::{FdFlags, fcntl_setfd};

use crate::leftovers;
use crate::process::output;
use crate::tools::program;

/// Every call below its mount point hangs until this is dropped: a FUSE file system that nobody serves. Needs root, as
/// other mounts do.
#[derive(Debug)]
pub struct Hung {
    mount_point: PathBuf,
    /// The kernel's side of it; closing it fails all calls that hang.
    device: Option<File>,
}

impl Hung {
    /// Covers an existing directory.
    ///
    /// # Panics
    /// When this kernel or this user cannot mount FUSE file systems: a test that cannot run has failed.
    #[track_caller]
    pub fn over(mount_point: &Path) -> Hung {
        leftovers::sweep();
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.unwrap_or_else(|error| panic!("/dev/fuse: {error}"));
        fcntl_setfd(&device, FdFlags::empty()).expect("the descriptor is open");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let mut mount = program("mount");
        mount.args(["-i", "-t", "fuse", "-o", &options, "walrelay-hung"]).arg(mount_point);
        output(&mut mount).unwrap_or_else(|error| panic!("could not mount a FUSE file system: {error}"));
        fcntl_setfd(&device, FdFlags::CLOEXEC).expect("the descriptor is open");
        Hung { mount_point: mount_point.to_owned(), device: Some(device) }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.device = None;
        let _ = output(program("umount").arg("--lazy").arg(&self.mount_point));
        // By now what lies below shows again.
        let _ = fs::metadata(&self.mount_point);
    }
}
