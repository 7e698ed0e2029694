//! This machine: the data directory's disk, and the certificates.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Mode, OFlags};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::finding::{Finding, Findings, remedy, size, time};
use crate::auth::version_1;

/// Less than this is soon full, bytes.
const LITTLE: u64 = 1 << 30;
/// A sync that takes longer makes commits wait.
const SLOW: Duration = Duration::from_millis(20);
/// Syncs that are tried.
const SYNCS: usize = 20;
/// A certificate that ends within this is to be renewed, seconds.
const ENDS_SOON: i64 = 14 * 86_400;

/// What was found out. Measured, nothing of it asked of others.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) data_dir: PathBuf,
    /// Free for the relay's user, and the size of the file system.
    pub(super) space: Result<(u64, u64), String>,
    /// The median of some syncs of 8 kB, and the longest.
    pub(super) sync: Result<(Duration, Duration), String>,
    pub(super) certificates: Vec<Certificate>,
    pub(super) now: i64,
}

#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) path: PathBuf,
    /// Seconds since 1970 from which on, and to which, it is good.
    pub(super) valid: Result<(i64, i64), String>,
}

/// Looks at the disk that the data directory is or will be on, and at these certificates. Blocks.
pub(super) fn look(data_dir: &Path, certificates: &[PathBuf]) -> Facts {
    let there = data_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Facts {
        data_dir: data_dir.to_owned(),
        space: space(there).map_err(|error| error.to_string()),
        sync: sync(there).map_err(|error| error.to_string()),
        certificates: certificates.iter().map(|path| certificate(path)).collect(),
        now: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
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
    let mut took: Vec<Duration> = (0..SYNCS)
        .map(|n| {
            let begun = Instant::now();
            file.write_all_at(&[1; 8192], n as u64 * 8192)?;
            file.sync_data()?;
            Ok(begun.elapsed())
        })
        .collect::<io::Result<_>>()?;
    took.sort();
    Ok((took[SYNCS / 2], took[SYNCS - 1]))
}

fn certificate(path: &Path) -> Certificate {
    let valid = CertificateDer::from_pem_file(path).map_err(|error| error.to_string()).and_then(|der| {
        let parsed = version_1::parse(&der).map_err(|error| error.to_string())?;
        let validity = parsed.validity();
        Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
    });
    Certificate { path: path.to_owned(), valid }
}

/// What of that somebody should know.
pub(super) fn diagnose(facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("host");
    let dir = facts.data_dir.display();
    match &facts.space {
        Err(error) => found.error(
            "disk_space",
            format!("the disk of \"{dir}\" cannot be looked at: {error}"),
            Vec::new(),
        ),
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
    facts.certificates.iter().for_each(|one| dates(&mut found, one, facts.now));
    found.into_inner()
}

fn dates(found: &mut Findings, certificate: &Certificate, now: i64) {
    let path = certificate.path.display();
    let renew = || remedy(["renew it, and RELOAD the relay"]);
    match &certificate.valid {
        Err(error) => {
            found.error("certificate", format!("certificate \"{path}\" cannot be read: {error}"), Vec::new())
        }
        Ok((from, _)) if now < *from => {
            let text = format!("certificate \"{path}\" is good only in {}", time((from - now) as f64));
            found.error("certificate_dates", text, remedy(["compare the clocks"]));
        }
        Ok((_, to)) if now > *to => {
            found.error(
                "certificate_dates",
                format!("certificate \"{path}\" has ended {} ago", time((now - to) as f64)),
                renew(),
            );
        }
        Ok((_, to)) if to - now < ENDS_SOON => {
            found.warning(
                "certificate_dates",
                format!("certificate \"{path}\" ends in {}", time((to - now) as f64)),
                renew(),
            );
        }
        Ok((_, to)) => found.ok(
            "certificate_dates",
            format!("certificate \"{path}\" is good for {}", time((to - now) as f64)),
        ),
    }
}
