//! Puts good copies of segments in the place of missing and damaged ones.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walrelay_proto::{SegmentHead, TimelineHistory, TimelineId, WalFileName};

use super::VerifyError;
use super::place::{Found, Kind, Place};
use super::report::Report;
use super::scan::check_fit;
use crate::archive::Source;
use crate::progress::{Progress, Unit};
use crate::store::StoreError;
use crate::store::offline::OfflineLock;

/// Name of files that are not yet what they will be; a relay removes them at its start.
const NEW_FILE_PREFIX: &str = "walrelay-new.repair.";

/// A directory cannot be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Somebody is using it.
    #[error("\"{}\" belongs to a running server: stop it first", .0.display())]
    InUse(PathBuf),
    /// It may be that somebody is.
    #[error(
        "\"{}\" is pg_wal of a PostgreSQL server, and nothing says whether that runs: give its data directory", .0.display()
    )]
    NoDataDirectory(PathBuf),
    /// A relay runs on it, or the directory cannot be taken.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be read.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// It cannot be written.
    #[error("could not write \"{}\": {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Fetches what `report` found missing or damaged from the sources, in their order. A copy takes the place of a file only
/// if it is verified and fits between its neighbours; what was there is kept, in `aside` beside a relay's `pg_wal`, else
/// under its name with `.damaged`. Waits for the disk between the sources' answers. `progress` counts faults as files.
///
/// # Errors
/// A server or relay runs on the directory, or it cannot be written. What no source has stays as it is in the report.
pub async fn repair(
    dir: &Path,
    report: &mut Report,
    sources: &[Arc<dyn Source>],
    progress: &Progress,
) -> Result<(), RepairError> {
    if report.is_good() {
        return Ok(());
    }
    let place = Place::look(dir)?;
    let mut repair = Repair { lock: lock(&place)?, place, mended: HashSet::new() };
    repair.histories(report, sources).await?;
    progress.expect(Unit::Files, report.findings.len() as u64);
    for finding in &mut report.findings {
        progress.did(1);
        if finding.segments.is_empty() || finding.repaired_from.is_some() {
            continue;
        }
        for source in sources {
            if repair.segments(&finding.segments, &**source).await? {
                finding.repaired_from = Some(source.name().to_owned());
                break;
            }
        }
    }
    Ok(())
}

fn lock(place: &Place) -> Result<Option<OfflineLock>, RepairError> {
    let data_dir = place.data_dir.as_deref();
    match (place.kind, data_dir) {
        (Kind::Relay, _) => Ok(Some(OfflineLock::take(data_dir.unwrap_or(&place.dir))?)),
        (Kind::Server, None) => Err(RepairError::NoDataDirectory(place.dir.clone())),
        (Kind::Server, Some(dir)) if dir.join("postmaster.pid").exists() => {
            Err(RepairError::InUse(dir.to_owned()))
        }
        (Kind::Server | Kind::Segments, _) => Ok(None),
    }
}

struct Repair {
    place: Place,
    lock: Option<OfflineLock>,
    /// What is good by now: several findings may be about one segment.
    mended: HashSet<WalFileName>,
}

impl Repair {
    async fn histories(
        &mut self,
        report: &mut Report,
        sources: &[Arc<dyn Source>],
    ) -> Result<(), RepairError> {
        for finding in &mut report.findings {
            let Some(tli) = TimelineId::from_history_file_name(&finding.file) else { continue };
            for source in sources {
                let Ok(Some(text)) = source.read(&finding.file).await else { continue };
                if TimelineHistory::parse(tli, &text).is_err() {
                    continue;
                }
                let new = self.write_new(&finding.file, &text)?;
                self.put(&new, &finding.file, Some(self.place.wal.join(&finding.file)))?;
                finding.repaired_from = Some(source.name().to_owned());
                break;
            }
        }
        self.look_again()
    }

    /// Whether all of them are good now. They are fetched and checked together: one that is right does not fit to a
    /// neighbour that is not.
    async fn segments(&mut self, names: &[WalFileName], source: &dyn Source) -> Result<bool, RepairError> {
        let mut candidates = Vec::new();
        for &name in names.iter().filter(|name| !self.mended.contains(name)) {
            match self.fetch(name, source).await {
                Ok(Some(candidate)) => candidates.push(candidate),
                other => {
                    remove(&candidates);
                    return other.map(|_| false);
                }
            }
        }
        let with_them = self.place.with(&candidates);
        if !candidates.iter().all(|candidate| check_fit(&with_them, candidate).is_ok()) {
            remove(&candidates);
            return Ok(false);
        }
        for candidate in candidates {
            let file = candidate.name.format(self.place.id.seg_size);
            let old = self.place.find(candidate.name).map(|found| found.path.clone());
            self.put(&candidate.path, &file, old)?;
            self.mended.insert(candidate.name);
        }
        self.look_again()?;
        Ok(true)
    }

    async fn fetch(&self, name: WalFileName, source: &dyn Source) -> Result<Option<Found>, RepairError> {
        let file = name.format(self.place.id.seg_size);
        let Ok(Some(content)) = source.read(&file).await else { return Ok(None) };
        let path = self.write_new(&file, &content)?;
        let (len, head) = (content.len() as u64, SegmentHead::parse(&content));
        Ok(Some(Found { name, partial: false, path, len, head }))
    }

    fn look_again(&mut self) -> Result<(), RepairError> {
        self.place = Place::look(&self.place.dir)?;
        Ok(())
    }

    /// Writes a file beside the others, durably, as its neighbours' owner.
    fn write_new(&self, file: &str, content: &[u8]) -> Result<PathBuf, RepairError> {
        let path = self.place.wal.join(format!("{NEW_FILE_PREFIX}{file}"));
        let written = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = written.and_then(|mut new| {
            new.write_all(content)?;
            let (dir, own) = (fs::metadata(&self.place.wal)?, new.metadata()?);
            if (dir.uid(), dir.gid()) != (own.uid(), own.gid()) {
                chown(&path, Some(dir.uid()), Some(dir.gid()))?;
            }
            new.sync_all()
        });
        match written {
            Ok(()) => Ok(path),
            Err(source) => {
                let _ = fs::remove_file(&path);
                Err(RepairError::Io { path, source })
            }
        }
    }

    /// Gives a new file its name. What was there, perhaps under another name, goes out of the way first.
    fn put(&self, new: &Path, file: &str, old: Option<PathBuf>) -> Result<(), RepairError> {
        let path = self.place.wal.join(file);
        let failed = |source| RepairError::Io { path: path.clone(), source };
        if let Some(old) = old.filter(|old| old.exists()) {
            self.set_aside(&old).map_err(failed)?;
        }
        fs::rename(new, &path).and_then(|()| File::open(&self.place.wal)?.sync_all()).map_err(failed)
    }

    fn set_aside(&self, old: &Path) -> io::Result<()> {
        if let Some(lock) = &self.lock {
            return lock.set_aside(old).map(drop);
        }
        let named = |number: u32| match number {
            0 => PathBuf::from(format!("{}.damaged", old.display())),
            _ => PathBuf::from(format!("{}.damaged.{number}", old.display())),
        };
        let free = (0..).map(named).find(|path| !path.exists()).unwrap_or_else(|| named(0));
        fs::rename(old, free)
    }
}

/// What was written for nothing.
fn remove(candidates: &[Found]) {
    for candidate in candidates {
        let _ = fs::remove_file(&candidate.path);
    }
}
