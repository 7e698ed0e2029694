//! This machine: the data directory's disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::finding::{Finding, Findings, remedy, size};

/// Less than this is soon full, bytes.
const LITTLE: u64 = 1 << 30;
/// A sync that takes longer makes commits wait.
const SLOW: Duration = Duration::from_millis(20);
/// Syncs that are tried.
const SYNCS: usize = 20;
/// Where each takes long, no more of them after this time.
const ENOUGH: Duration = Duration::from_secs(4);

/// What was found out of the disk. Measured, nothing of it asked of others.
#[derive(Debug)]
pub(super) struct Facts {
    /// Free for the relay's user, and the size of the file system.
    pub(super) space: Result<(u64, u64), String>,
    /// The median of some syncs of 8 kB, and the longest.
    pub(super) sync: Result<(Duration, Duration), String>,
}

/// Looks at the disk that the data directory is or will be on. Blocks.
pub(super) fn look(data_dir: &Path) -> Facts {
    let there = data_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    Facts {
        space: space(there).map_err(|error| error.to_string()),
        sync: sync(there).map_err(|error| error.to_string()),
    }
}

fn space(dir: &Path) -> io::Result<(u64, u64)> {
    let there = rustix::fs::statvfs(dir)?;
    Ok((there.f_bavail * there.f_frsize, there.f_blocks * there.f_frsize))
}

/// In a file without a name, which nobody sees and no crash leaves.
fn sync(dir: &Path) -> io::Result<(Duration, Duration)> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?);
    let (mut took, first) = (Vec::new(), Instant::now());
    while took.is_empty() || (took.len() < SYNCS && first.elapsed() < ENOUGH) {
        let begun = Instant::now();
        file.write_all_at(&[1; 8192], took.len() as u64 * 8192)?;
        file.sync_data()?;
        took.push(begun.elapsed());
    }
    took.sort();
    Ok((took[took.len() / 2], took[took.len() - 1]))
}

/// What of that somebody should know; `None` if the disk has not answered in time.
pub(super) fn diagnose(data_dir: &Path, facts: Option<&Facts>) -> Vec<Finding> {
    let mut found = Findings::about("host");
    match facts {
        Some(facts) => disk(&mut found, data_dir, facts),
        None => {
            let text = format!("the disk of \"{}\" does not answer", data_dir.display());
            let look = ["dmesg; look at the disk or the server it is on"];
            found.error("disk_silent", text, remedy(look));
        }
    }
    found.into_inner()
}

fn disk(found: &mut Findings, data_dir: &Path, facts: &Facts) {
    let dir = data_dir.display();
    match &facts.space {
        Err(error) => {
            let text = format!("the disk of \"{dir}\" cannot be looked at: {error}");
            let look = [
                "df -h tells the same: is it mounted (findmnt), may this user enter its directories? dmesg tells of faults",
            ];
            found.error("disk_space", text, remedy(look));
        }
        Ok((free, all)) if *free < LITTLE => {
            let text = format!("only {} of {} are free on the disk of \"{dir}\"", size(*free), size(*all));
            found.error(
                "disk_space",
                text,
                remedy(["make room, or give the relay a larger disk (--data-dir)"]),
            );
        }
        Ok((free, all)) => {
            found.ok("disk_space", format!("{} of {} are free for \"{dir}\"", size(*free), size(*all)))
        }
    }
    match &facts.sync {
        Err(error) => {
            let text = format!(
                "the disk of \"{dir}\" cannot be written as this user, so its syncs were not measured: {error}"
            );
            found.warning("disk_sync", text, remedy(["run doctor as the relay's user"]));
        }
        Ok((usual, longest)) => {
            let (usual, longest) = (*usual, *longest);
            let text = format!(
                "a sync of 8 kB takes {:.1} ms on the disk of \"{dir}\", {:.1} ms at most",
                usual.as_secs_f64() * 1e3,
                longest.as_secs_f64() * 1e3
            );
            match usual > SLOW {
                true => found.warning(
                    "disk_sync",
                    text + "; a synchronous commit waits for one",
                    remedy(["put --data-dir on a faster disk"]),
                ),
                false => found.ok("disk_sync", text),
            }
        }
    }
}
