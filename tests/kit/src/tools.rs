//! Programs of the system that stories make disks and system calls fail with.

use std::path::Path;

use crate::install::{InstallError, apt_install};

/// A program, and Debian's package that has it.
const NEEDED: [(&str, &str); 6] = [
    ("strace", "strace"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mount", "mount"),
    ("losetup", "mount"),
    ("prlimit", "util-linux"),
];
/// Where they are on machines whose PATH has no place for administrators.
const MORE: &str = "/usr/sbin:/sbin";

/// Finds or installs them; their names.
///
/// # Errors
/// When one is missing and cannot be installed.
pub fn ensure() -> Result<Vec<&'static str>, InstallError> {
    for (program, package) in NEEDED {
        if !is_there(program) {
            let name = "programs for failing disks";
            apt_install(package).map_err(|message| InstallError::Tool { name, message })?;
        }
    }
    Ok(NEEDED.map(|(program, _)| program).to_vec())
}

fn is_there(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(MORE.split(':')).any(|dir| Path::new(dir).join(program).is_file())
}
