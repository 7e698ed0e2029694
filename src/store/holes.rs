//! Holes: segments that are missing between the oldest WAL kept here and its end, and how they are filled.
//!
//! Nothing of walrelay makes holes; lost files, hands and broken disks do. What lies behind one was confirmed to the
//! upstream long ago, and the confirmed position stays: saying less would bring nothing back. So a hole is told
//! loudly, and filled by whoever finds its WAL elsewhere, before consumers meet it.

use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use walrelay_proto::{PaddingSeen, SegNo, WalError, WalFileName, WalIdentity, WalVerifier};

use super::path::WalPath;
use super::{Identity, Store, dir, lock};
use crate::disk::{DiskFile, Open};

/// Names that [`Store::missing_segments`] gives at most; more when these are filled.
const MOST: usize = 4096;
/// What is verified and written at a time, bytes.
const PIECE: usize = 1 << 20;

/// A missing segment cannot be filled with what was given.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// It is here, or nobody needs it.
    #[error("WAL segment {0} is not missing")]
    NotMissing(String),
    /// It ended too early.
    #[error("WAL segment {file} ended after {found} bytes, expected {expected}")]
    Length {
        /// The segment.
        file: String,
        /// Bytes given.
        found: u64,
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

impl FillError {
    /// Whether there is something behind an XLOG_SWITCH that may be right, and is taken when it comes again.
    pub fn is_doubtful(&self) -> bool {
        matches!(self, FillError::Invalid { source: WalError::SwitchPadding { .. }, .. })
    }
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

    /// Puts a missing segment in its place, durably, piece by piece as `wal` brings it: all of it and nothing more is read.
    /// It is verified as WAL of this cluster that goes on where the segment before ends and leads to the one behind, as
    /// far as those are here, before it gets its name. What is no zero behind an XLOG_SWITCH has to come twice, as from the
    /// stream ([`FillError::is_doubtful`]). Waits for the disk, and for `wal`.
    pub fn fill_segment(&self, name: WalFileName, wal: &mut dyn Read) -> Result<(), FillError> {
        let file = self.file_name(name);
        if self.has_failed() {
            return Err(FillError::Failed);
        }
        // One at a time: a fill that hangs on the disk may come after it was given up.
        let mut seen = lock(&self.filling);
        let now = self.wal_path_now().map_err(|source| FillError::Io { file: file.clone(), source })?;
        let missing = |path: &WalPath| self.holes(path).iter().any(|hole| hole.contains(&name.segno));
        let Some((path, identity)) =
            now.filter(|(path, _)| missing(path) && path.name_of(name.segno) == name)
        else {
            return Err(FillError::NotMissing(file));
        };
        let temporary = self.dir.new_file(&format!("fill.{file}"));
        let filled = Filling { store: self, path, identity, name }.run(wal, &temporary, &mut seen);
        if filled.is_err() {
            let _ = self.dir.disk().remove(&temporary);
        }
        filled?;
        if let Err(error) = self.dir.sync_wal_dir() {
            self.fail_sync(&format!("could not sync pg_wal for WAL segment {file}"), &error);
            return Err(FillError::Failed);
        }
        tracing::info!("missing WAL segment {file} is here again");
        self.files.send_modify(|step| *step += 1);
        Ok(())
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
        let kept_by_slots = self.holds.needed_by_slots();
        path.holes(kept_by_slots.filter(|_| self.recallable().is_none()), tip.write_lsn)
    }

    fn file_name(&self, name: WalFileName) -> String {
        self.identity().map_or_else(|| format!("{name:?}"), |identity| name.format(identity.seg_size))
    }
}

/// A hole that is being filled.
struct Filling<'a> {
    store: &'a Store,
    path: WalPath,
    identity: Identity,
    name: WalFileName,
}

impl Filling<'_> {
    /// Under a name of its own until it is durable: a finished segment is, by its name.
    fn run(&self, wal: &mut dyn Read, temporary: &Path, seen: &mut PaddingSeen) -> Result<(), FillError> {
        let (name, size) = (self.name, self.identity.seg_size);
        let mut verifier = self.verifier_before()?;
        let new = dir::preallocate(self.store.dir.disk(), temporary, size).map_err(self.io())?;
        verifier.accept_padding_that_comes_again(seen.clone());
        let stored = self.store_all(wal, &mut verifier, &*new);
        *seen = verifier.padding_seen();
        stored?;
        verifier.accept_any_padding(true);
        self.push_content(&mut verifier, name.segno.next())?;
        new.sync_data().map_err(self.io())?;
        let disk = self.store.dir.disk();
        disk.rename(temporary, &self.store.dir.segment(name, size)).map_err(self.io())
    }

    fn store_all(
        &self,
        wal: &mut dyn Read,
        verifier: &mut WalVerifier,
        new: &dyn DiskFile,
    ) -> Result<(), FillError> {
        let (size, mut piece, mut found) = (self.identity.seg_size, vec![0; PIECE], 0);
        while found < size.bytes() {
            let room = piece.len().min((size.bytes() - found) as usize);
            match wal.read(&mut piece[..room]) {
                Ok(0) => {
                    let (file, expected) = (self.file(), size.bytes());
                    return Err(FillError::Length { file, found, expected });
                }
                Ok(len) => {
                    verifier.push(&piece[..len]).map_err(self.invalid())?;
                    new.write_all_at(&piece[..len], found).map_err(self.io())?;
                    found += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io()(error)),
            }
        }
        Ok(())
    }

    /// Stands at the segment's start, behind the one before it if that is here.
    fn verifier_before(&self) -> Result<WalVerifier, FillError> {
        let Identity { system_id, seg_size } = self.identity;
        let (id, tli) = (WalIdentity { system_id, seg_size }, self.path.history().tli());
        let at = |segno: SegNo| {
            let mut verifier = WalVerifier::at_segment_start(id, tli, segno.start(seg_size));
            verifier.accept_any_padding(true);
            if let Some(magic) = self.store.upstream_parameters().expected_magic() {
                verifier.expect_magic(magic);
            }
            verifier
        };
        if let Some(before) = self.name.segno.prev() {
            let mut verifier = at(before);
            if self.push_content(&mut verifier, before)? {
                return Ok(verifier);
            }
        }
        Ok(at(self.name.segno))
    }

    /// Verifies what is final of a segment that is here; whether that was all of it. One that cannot be read says
    /// nothing.
    fn push_content(&self, verifier: &mut WalVerifier, segno: SegNo) -> Result<bool, FillError> {
        let (dir, size) = (&self.store.dir, self.identity.seg_size);
        let Some(found) = self.path.file_for(segno) else { return Ok(false) };
        let (path, len) = match found.partial {
            false => (dir.segment(found.name, size), size.bytes()),
            true => {
                let segment = self.store.mapped_segment(found.name.tli, segno);
                (dir.partial(found.name, size), segment.map_or(0, |segment| segment.published()))
            }
        };
        let Ok(file) = dir.disk().open(&path, Open::Read) else { return Ok(false) };
        let mut piece = vec![0; PIECE];
        for at in (0..len).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min((len - at) as usize)];
            if file.read_exact_at(piece, at).is_err() {
                return Ok(false);
            }
            verifier.push(piece).map_err(self.invalid())?;
        }
        Ok(len == size.bytes())
    }

    fn file(&self) -> String {
        self.name.format(self.identity.seg_size)
    }

    fn io(&self) -> impl Fn(io::Error) -> FillError + use<> {
        let file = self.file();
        move |source| FillError::Io { file: file.clone(), source }
    }

    fn invalid(&self) -> impl Fn(WalError) -> FillError + use<> {
        let file = self.file();
        move |source| FillError::Invalid { file: file.clone(), source }
    }
}

fn names(path: &WalPath, hole: Range<SegNo>) -> impl Iterator<Item = WalFileName> {
    let numbers = hole.start.as_u64()..hole.end.as_u64();
    numbers.map(|number| path.name_of(SegNo::new(number)))
}
