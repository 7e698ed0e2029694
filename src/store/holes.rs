//! Holes: segments that are missing between the oldest WAL kept here and its end, and how they are filled.
//!
//! Nothing of walrelay makes holes; lost files, hands and broken disks do. What lies behind one was confirmed to the
//! upstream long ago, and the confirmed position stays: saying less would bring nothing back. So a hole is told
//! loudly, and filled by whoever finds its WAL elsewhere, before consumers meet it.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use walrelay_proto::{SegNo, SegSize, WalError, WalFileName, WalIdentity, WalVerifier};

use super::path::WalPath;
use super::{Identity, Store, dir, lock};

/// Names that [`Store::missing_segments`] gives at most; more when these are filled.
const MOST: usize = 4096;

/// A missing segment cannot be filled with what was given.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// It is here, or nobody needs it.
    #[error("WAL segment {0} is not missing")]
    NotMissing(String),
    /// It is not as long as a segment.
    #[error("WAL segment {file} is {found} bytes long, expected {expected}")]
    Length {
        /// The segment.
        file: String,
        /// Bytes given.
        found: usize,
        /// Bytes of a segment.
        expected: u64,
    },
    /// It is no WAL of this cluster, or not what belongs between its neighbours.
    #[error("WAL segment {file} does not belong between what is here: {source}")]
    Invalid {
        /// The segment.
        file: String,
        /// What the verifier says.
        source: WalError,
    },
    /// The disk does not take it now; it may later.
    #[error("could not store missing WAL segment {file}: {source}")]
    Io {
        /// The segment.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The store has failed.
    #[error("the store has failed")]
    Failed,
}

impl Store {
    /// The segments on the way to the present timeline that should be here and are not, oldest first, the first few
    /// thousand of them: between the oldest one held and the tail, and, if WAL cannot be had from an archive, from
    /// the oldest position that a slot keeps. Waits for the disk.
    pub fn missing_segments(&self) -> io::Result<Vec<WalFileName>> {
        let Some((path, _)) = self.wal_path_now()? else { return Ok(Vec::new()) };
        let names = self.holes(&path).into_iter().flat_map(|hole| names(&path, hole));
        Ok(names.take(MOST).collect())
    }

    /// Puts a missing segment in its place, durably: `wal` is all of it. It is verified as WAL of this cluster that
    /// goes on where the segment before ends and leads to the one behind, as far as those are here. Waits for the
    /// disk.
    pub fn fill_segment(&self, name: WalFileName, wal: &[u8]) -> Result<(), FillError> {
        let file = self.file_name(name);
        let io = |source| FillError::Io { file: file.clone(), source };
        if self.has_failed() {
            return Err(FillError::Failed);
        }
        // One at a time: a fill that hangs on the disk may come after it was given up.
        let _filling = lock(&self.filling);
        let now = self.wal_path_now().map_err(io)?;
        let missing = |path: &WalPath| self.holes(path).iter().any(|hole| hole.contains(&name.segno));
        let Some((path, identity)) =
            now.filter(|(path, _)| missing(path) && path.name_of(name.segno) == name)
        else {
            return Err(FillError::NotMissing(file));
        };
        let size = identity.seg_size;
        if wal.len() as u64 != size.bytes() {
            return Err(FillError::Length { file, found: wal.len(), expected: size.bytes() });
        }
        self.check_fit(&path, identity, name, wal)
            .map_err(|source| FillError::Invalid { file: file.clone(), source })?;
        self.put_in_place(name, size, wal).map_err(io)?;
        if let Err(error) = self.dir.sync_wal_dir() {
            self.fail_sync(&format!("could not sync pg_wal for WAL segment {file}"), &error);
            return Err(FillError::Failed);
        }
        tracing::info!("missing WAL segment {file} is here again");
        self.files.send_modify(|step| *step += 1);
        Ok(())
    }

    /// Under a name of its own until it is durable: a finished segment is, by its name.
    fn put_in_place(&self, name: WalFileName, size: SegSize, wal: &[u8]) -> io::Result<()> {
        let temporary = self.dir.new_file(&format!("fill.{}", name.format(size)));
        let made = dir::preallocate(&temporary, size).and_then(|new| {
            new.write_all_at(wal, 0)?;
            new.sync_data()?;
            fs::rename(&temporary, self.dir.segment(name, size))
        });
        if made.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        made
    }

    /// Verifies the segment together with its neighbours.
    fn check_fit(
        &self,
        path: &WalPath,
        identity: Identity,
        name: WalFileName,
        wal: &[u8],
    ) -> Result<(), WalError> {
        let Identity { system_id, seg_size } = identity;
        let before = name.segno.prev().and_then(|before| self.content(path, seg_size, before));
        let behind = self.content(path, seg_size, name.segno.next());
        let first = if before.is_some() { name.segno.prev().unwrap_or(name.segno) } else { name.segno };
        let id = WalIdentity { system_id, seg_size };
        let mut verifier = WalVerifier::at_segment_start(id, path.history().tli(), first.start(seg_size));
        verifier.accept_any_padding(true);
        [before.as_deref(), Some(wal), behind.as_deref()]
            .into_iter()
            .flatten()
            .try_for_each(|wal| verifier.push(wal))
    }

    /// What is final of a segment that is here; `None` if it cannot be read.
    fn content(&self, path: &WalPath, size: SegSize, segno: SegNo) -> Option<Vec<u8>> {
        let found = path.file_for(segno)?;
        let len = match found.partial {
            false => size.bytes(),
            true => self.mapped_segment(found.name.tli, segno)?.published(),
        };
        let path = if found.partial {
            self.dir.partial(found.name, size)
        } else {
            self.dir.segment(found.name, size)
        };
        let mut content = vec![0; len as usize];
        File::open(path).and_then(|file| file.read_exact_at(&mut content, 0)).ok()?;
        Some(content)
    }

    /// Says which WAL is missing. To be called when it is known whether an archive can be read back.
    pub fn report_missing_wal(&self) {
        let (path, identity) = match self.wal_path_now() {
            Ok(Some(now)) => now,
            Ok(None) => return,
            Err(error) => return tracing::error!("could not look for missing WAL segments: {error}"),
        };
        for hole in self.holes(&path) {
            let name = |segno| path.name_of(segno).format(identity.seg_size);
            let last = hole.end.prev().unwrap_or(hole.start);
            tracing::error!(
                "WAL from {} to {} is missing in the data directory (segments {} to {}), although it was received and confirmed \
                 once; it is fetched again where an upstream or archive has it, until then consumers and slots that need it \
                 wait or are refused",
                hole.start.start(identity.seg_size),
                hole.end.start(identity.seg_size),
                name(hole.start),
                name(last),
            );
            for slot in self.slots.list().iter().filter(|slot| !slot.invalidated) {
                let Some(restart) = slot.restart_lsn.filter(|&at| at < hole.end.start(identity.seg_size))
                else {
                    continue;
                };
                tracing::warn!(
                    "slot \"{}\" needs WAL from {restart} on, some of which is missing",
                    slot.name
                );
            }
        }
    }

    /// The files on the way to the timeline that is followed, as they are now. Waits for the disk.
    pub(super) fn wal_path_now(&self) -> io::Result<Option<(WalPath, Identity)>> {
        let Some(identity) = self.identity() else { return Ok(None) };
        let path = WalPath::read(&self.dir, identity.seg_size, (*self.history()).clone())?;
        Ok(Some((path, identity)))
    }

    fn holes(&self, path: &WalPath) -> Vec<Range<SegNo>> {
        let Some(tip) = self.tip() else { return Vec::new() };
        let kept_by_slots = self.slots.oldest_restart_lsn(walrelay_proto::Lsn::INVALID);
        path.holes(kept_by_slots.filter(|_| self.recallable().is_none()), tip.write_lsn)
    }

    fn file_name(&self, name: WalFileName) -> String {
        self.identity().map_or_else(|| format!("{name:?}"), |identity| name.format(identity.seg_size))
    }
}

fn names(path: &WalPath, hole: Range<SegNo>) -> impl Iterator<Item = WalFileName> {
    let numbers = hole.start.as_u64()..hole.end.as_u64();
    numbers.map(|number| path.name_of(SegNo::new(number)))
}
