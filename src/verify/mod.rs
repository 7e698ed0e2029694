//! `walrelay verify DIR`: whether the WAL in a directory is what it should be, without a server.
//!
//! ```text
//! Place: what kind of directory, which files ── Chain: which belong together, which are missing
//!                                                        │ stretches of neighbours
//!                               Report <── findings ── scan: page headers, records, checksums
//! ```
//!
//! Read are data directories of relays and of PostgreSQL, and directories of segments, such as pg_receivewal's. They
//! are never written to, except by [`repair`]. Archives with checksums, compression or encryption of their own are
//! [`archive::verify`](crate::archive::verify)'s.
//!
//! Records that reach over segments are checked over all of them. Where the WAL may end, in a `.partial` file and in
//! the last files of a server, the end of the last complete record is no fault, unless it is known that more was
//! confirmed or more follows.

mod chain;
mod place;
mod repair;
mod report;
mod scan;

use std::io;
use std::path::{Path, PathBuf};

pub use place::{Kind, is_archive};
pub use repair::{RepairError, repair};
pub use report::{Finding, Problem, Report, Stretch};

use chain::Chain;
use place::Place;

use crate::progress::{Progress, Unit};

/// A directory cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file system does not answer as it should.
    #[error("could not read \"{}\": {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing that could be verified.
    #[error("\"{}\" holds no WAL segment of PostgreSQL 13 or later", .0.display())]
    Empty(PathBuf),
}

/// Verifies a directory with this many threads. Waits for the disk, for as long as it takes to read everything. `progress` counts
/// bytes.
///
/// # Errors
/// The directory cannot be listed, or holds no WAL. A file that cannot be read is a finding.
pub fn verify(dir: &Path, threads: usize, progress: &Progress) -> Result<Report, VerifyError> {
    let place = Place::look(dir)?;
    let chain = Chain::of(&place);
    progress.expect(Unit::Bytes, place.segments.iter().map(|found| found.len).sum());
    let scanned = scan::scan(&place, &chain, threads, progress);
    Ok(report::report(&place, &chain, scanned))
}

#[cfg(test)]
mod tests;
