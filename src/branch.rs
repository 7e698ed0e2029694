//! WAL that is held and does not lead to the timeline that is followed: what there is, and a copy of it for whoever looks for
//! what was lost.
//!
//! A data directory is read as it lies there, whether a relay runs on it or not. Nothing in it is changed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use walrelay_proto::{
    CommitCounter, Lsn, PgTimestamp, SegNo, TimelineHistory, TimelineId, WalFileName, WalIdentity,
    WalVerifier,
};

use crate::progress::{Progress, Unit};
use crate::store::offline;

/// What is read at a time, bytes: whole pages.
const CHUNK: usize = 1 << 20;

/// WAL of a timeline that is not on the way to the one that is followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Branch {
    /// Its timeline.
    pub tli: TimelineId,
    /// The first position that is not on the way, as far as it is held.
    pub from: Lsn,
    /// End of its last complete record.
    pub end: Lsn,
    /// Its files, in their order, as they are called in `pg_wal`.
    pub files: Vec<String>,
    /// Commits in it; `None` where its beginning is not held any more.
    pub commits: Option<u64>,
    /// When the first and the last of them were made.
    pub span: Option<(PgTimestamp, PgTimestamp)>,
}

/// Branches cannot be shown or copied.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// The operating system refused something.
    #[error("{action} \"{}\": {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no relay's data directory, or holds nothing yet.
    #[error("\"{}\" does not say which cluster's WAL it holds, or which timeline is followed: is it a relay's data directory?", .0.display())]
    Unknown(PathBuf),
    /// Nothing is left of that timeline.
    #[error("no WAL of timeline {tli} is held that is not on the way to timeline {followed}")]
    NoSuch {
        /// The timeline asked for.
        tli: TimelineId,
        /// The one that is followed.
        followed: TimelineId,
    },
}

/// A relay's data directory.
#[derive(Debug)]
pub struct Held {
    wal: PathBuf,
    id: WalIdentity,
    followed: TimelineHistory,
    /// The files of each timeline, by number, as they are called.
    segments: BTreeMap<TimelineId, BTreeMap<SegNo, String>>,
}

impl Held {
    /// Looks what is there.
    pub fn read(data_dir: &Path) -> Result<Held, BranchError> {
        let unknown = || BranchError::Unknown(data_dir.to_owned());
        let (saved, _) = offline::read(data_dir);
        let id = saved.identity.ok_or_else(unknown)?;
        let wal = data_dir.join("pg_wal");
        let list = || -> io::Result<_> {
            let mut segments: BTreeMap<TimelineId, BTreeMap<SegNo, String>> = BTreeMap::new();
            for entry in fs::read_dir(&wal)? {
                let Ok(file) = entry?.file_name().into_string() else { continue };
                let name = file.strip_suffix(".partial").unwrap_or(&file);
                let Some(name) = WalFileName::parse(name, id.seg_size) else { continue };
                let of_timeline = segments.entry(name.tli).or_default();
                // A finished one goes before one in the making.
                if of_timeline.get(&name.segno).is_none_or(|other| other.len() > file.len()) {
                    of_timeline.insert(name.segno, file);
                }
            }
            Ok(segments)
        };
        let action = "could not list";
        let segments = list().map_err(|source| BranchError::Io { action, path: wal.clone(), source })?;
        // Where nothing says which is followed, it is the highest.
        let highest = || segments.keys().next_back().copied();
        let tli = saved.timeline.or_else(highest).ok_or_else(unknown)?;
        let followed = history(&wal, tli)?.ok_or_else(unknown)?;
        Ok(Held { wal, id, followed, segments })
    }

    /// All branches, by timeline. `progress` counts files.
    pub fn branches(&self, progress: &Progress) -> Result<Vec<Branch>, BranchError> {
        let mut branches = Vec::new();
        for (&tli, files) in &self.segments {
            branches.extend(self.branch(tli, files, progress)?);
        }
        Ok(branches)
    }

    /// One of them.
    pub fn branch_of(&self, tli: TimelineId, progress: &Progress) -> Result<Branch, BranchError> {
        let files = self.segments.get(&tli);
        let found = files.map(|files| self.branch(tli, files, progress)).transpose()?.flatten();
        found.ok_or(BranchError::NoSuch { tli, followed: self.followed.tli() })
    }

    fn branch(
        &self,
        tli: TimelineId,
        files: &BTreeMap<SegNo, String>,
        progress: &Progress,
    ) -> Result<Option<Branch>, BranchError> {
        let Some(history) = history(&self.wal, tli)? else { return Ok(None) };
        let parting = self.followed.parting(&history).and_then(|(_, at)| at);
        if tli == self.followed.tli() || parting.is_none() {
            return Ok(None);
        }
        let size = self.id.seg_size;
        let left_at = parting.unwrap_or_default().max(history.begin());
        let Some((&first, _)) = files.range(left_at.seg_at(size)..).next() else { return Ok(None) };
        let from = left_at.max(first.start(size));
        let mut walk = Walk {
            verifier: WalVerifier::at_segment_start(self.id, tli, first.start(size)),
            from,
            // Only where a record is known to begin can they be counted.
            counter: (from == left_at).then(|| CommitCounter::new(from, size)),
        };
        let mut taken = Vec::new();
        for ((segno, file), expected) in files.range(first..).zip(first.as_u64()..) {
            if segno.as_u64() != expected {
                break;
            }
            taken.push(file.clone());
            let path = self.wal.join(file);
            let goes_on = walk.file(&path).map_err(|source| could_not_read(&path, source))?;
            progress.did(1);
            if !goes_on {
                break;
            }
        }
        let Some(end) = walk.verifier.verified_end().filter(|end| *end > from) else { return Ok(None) };
        let counter = walk.counter;
        Ok(Some(Branch {
            tli,
            from,
            end,
            files: taken,
            commits: counter.as_ref().map(CommitCounter::commits),
            span: counter.and_then(|counter| counter.span()),
        }))
    }

    /// Copies a branch into a directory, which is made if it is not there: its segments, all under the names of finished
    /// ones, with zeros behind the last complete record, and its history file. Nothing is overwritten. Returns the names.
    /// `progress` counts files.
    pub fn export(
        &self,
        branch: &Branch,
        to: &Path,
        progress: &Progress,
    ) -> Result<Vec<String>, BranchError> {
        let could_not = |action, path: &Path| {
            let path = path.to_owned();
            move |source| BranchError::Io { action, path, source }
        };
        fs::create_dir_all(to).map_err(could_not("could not make", to))?;
        progress.expect(Unit::Files, branch.files.len() as u64);
        let mut names = Vec::new();
        for file in &branch.files {
            let name = file.strip_suffix(".partial").unwrap_or(file);
            let Some(parsed) = WalFileName::parse(name, self.id.seg_size) else { continue };
            let valid = branch
                .end
                .max(parsed.segno.start(self.id.seg_size))
                .since(parsed.segno.start(self.id.seg_size));
            let (source, target) = (self.wal.join(file), to.join(name));
            let from = File::open(&source).map_err(could_not("could not read", &source))?;
            let valid = valid.min(self.id.seg_size.bytes());
            copy(from, valid, self.id.seg_size.bytes(), &target)
                .map_err(could_not("could not write", &target))?;
            names.push(name.to_owned());
            progress.did(1);
        }
        if branch.tli != TimelineId::FIRST {
            let name = branch.tli.history_file_name();
            let (source, target) = (self.wal.join(&name), to.join(&name));
            let from = File::open(&source).map_err(could_not("could not read", &source))?;
            let len = from.metadata().map_err(could_not("could not read", &source))?.len();
            copy(from, len, len, &target).map_err(could_not("could not write", &target))?;
            names.push(name);
        }
        let directory = File::open(to).and_then(|directory| directory.sync_all());
        directory.map_err(could_not("could not sync", to))?;
        Ok(names)
    }
}

/// A timeline's WAL, read from a segment's beginning on.
struct Walk {
    verifier: WalVerifier,
    from: Lsn,
    counter: Option<CommitCounter>,
}

impl Walk {
    /// Reads a segment; whether the WAL goes on behind it.
    fn file(&mut self, path: &Path) -> io::Result<bool> {
        let mut file = File::open(path)?;
        let mut piece = vec![0; CHUNK];
        loop {
            let len = read_piece(&mut file, &mut piece)?;
            if len == 0 {
                return Ok(true);
            }
            let (at, bytes) = (self.verifier.position(), &piece[..len]);
            let pushed = self.verifier.push(bytes);
            let good = self.verifier.verified_end().unwrap_or(at).max(at).since(at).min(len as u64);
            self.count(at, &bytes[..if pushed.is_ok() { len } else { good as usize }]);
            if pushed.is_err() {
                return Ok(false);
            }
        }
    }

    fn count(&mut self, at: Lsn, bytes: &[u8]) {
        let skipped = (self.from.max(at).since(at) as usize).min(bytes.len());
        if let Some(counter) = &mut self.counter {
            counter.push(&bytes[skipped..]);
        }
    }
}

/// As much as there is, up to the whole piece.
fn read_piece(file: &mut File, piece: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < piece.len() {
        match file.read(&mut piece[len..])? {
            0 => break,
            count => len += count,
        }
    }
    Ok(len)
}

/// A timeline's history; `None` where its file is missing or no good.
fn history(wal: &Path, tli: TimelineId) -> Result<Option<TimelineHistory>, BranchError> {
    if tli == TimelineId::FIRST {
        return Ok(Some(TimelineHistory::first()));
    }
    let path = wal.join(tli.history_file_name());
    match fs::read(&path) {
        Ok(content) => Ok(TimelineHistory::parse(tli, &content).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(could_not_read(&path, source)),
    }
}

fn could_not_read(path: &Path, source: io::Error) -> BranchError {
    BranchError::Io { action: "could not read", path: path.to_owned(), source }
}

/// The first `valid` bytes, and zeros up to `len`, into a new file, durably.
fn copy(from: File, valid: u64, len: u64, to: &Path) -> io::Result<()> {
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let copied = io::copy(&mut from.take(valid), &mut target)?;
    if copied < valid {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than a segment"));
    }
    target.flush()?;
    target.set_len(len)?;
    target.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use walrelay_proto::generate::WalGenerator;
    use walrelay_proto::{SegSize, SystemId};

    use super::*;
    use crate::disk::OsDisk;
    use crate::store::{Identity, Stepped, Store, StoreConfig, UpstreamParameters, WalWrite};

    const SEG: u64 = 1 << 20;
    const START: Lsn = Lsn::new(3 * SEG);

    fn id() -> WalIdentity {
        WalIdentity { system_id: SystemId(9), seg_size: SegSize::new(SEG).unwrap() }
    }

    /// A relay that has held more of timeline 1 than timeline 2 took along, and follows that; all of 1, and where it was
    /// left.
    fn forked(dir: &Path) -> (WalGenerator, Lsn) {
        let config = StoreConfig {
            data_dir: dir.to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 1 << 30,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        };
        let mut stepped = Store::open_on(Arc::new(OsDisk), config).unwrap();
        let Stepped { store, writer, flushing, .. } = &mut stepped;
        let identity = Identity { system_id: id().system_id, seg_size: id().seg_size };
        store.attach(identity, UpstreamParameters::default()).unwrap();
        writer.begin(identity, TimelineHistory::first(), START);
        let mut wal = WalGenerator::new(id(), TimelineId::FIRST, START, 1);
        wal.fill(1_400_000);
        wal.commit_at(1);
        let fork = wal.position();
        for second in 10..17 {
            wal.fill(200_000);
            wal.commit_at(second * 1_000_000);
        }
        writer.append(START, wal.bytes()).unwrap();
        writer.commit();
        while flushing.step() {}
        let second = TimelineId::new(2).unwrap();
        let content = format!("1\t{fork}\tx\n");
        store.save_history_file(second, content.as_bytes()).unwrap();
        writer.switch_timeline(TimelineHistory::parse(second, content.as_bytes()).unwrap()).unwrap();
        while flushing.step() {}
        stepped.stop();
        (wal, fork)
    }

    #[test]
    fn what_was_left_is_found_and_copied() {
        let dir = crate::permissions::private_tempdir();
        let (wal, fork) = forked(dir.path());
        let held = Held::read(dir.path()).unwrap();
        let branches = held.branches(&Progress::default()).unwrap();
        let [branch] = &branches[..] else { panic!("{branches:?}") };
        let end = *wal.record_ends().last().unwrap();
        assert_eq!((branch.tli, branch.from, branch.end), (TimelineId::FIRST, fork, end));
        let span = [10_000_000, 16_000_000].map(PgTimestamp::from_micros);
        assert_eq!((branch.commits, branch.span), (Some(7), Some((span[0], span[1]))));

        // What lies behind the last record is nobody's.
        let last = dir.path().join("pg_wal").join(branch.files.last().unwrap());
        let behind = end.offset_in_seg(id().seg_size);
        let file = OpenOptions::new().write(true).open(&last).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 100], behind + 8).unwrap();
        let to = dir.path().join("copy/of/it");
        let names = held
            .export(
                &held.branch_of(TimelineId::FIRST, &Progress::default()).unwrap(),
                &to,
                &Progress::default(),
            )
            .unwrap();
        assert_eq!(names.len(), branch.files.len());
        for name in names {
            let start = WalFileName::parse(&name, id().seg_size).unwrap().segno.start(id().seg_size);
            let bytes = &wal.bytes()[start.since(START) as usize..];
            let mut expected = bytes[..bytes.len().min(SEG as usize)].to_vec();
            expected.resize(SEG as usize, 0);
            assert!(fs::read(to.join(&name)).unwrap() == expected, "{name}");
        }
        let again = held.export(branch, &to, &Progress::default()).unwrap_err().to_string();
        assert!(again.starts_with("could not write ") && again.contains("exists"), "{again}");
    }

    #[test]
    fn what_is_on_the_way_is_no_branch() {
        let dir = crate::permissions::private_tempdir();
        assert!(matches!(Held::read(dir.path()), Err(BranchError::Unknown(_))));
        forked(dir.path());
        let held = Held::read(dir.path()).unwrap();
        for number in [2, 3] {
            let error = held.branch_of(TimelineId::new(number).unwrap(), &Progress::default()).unwrap_err();
            assert!(matches!(error, BranchError::NoSuch { .. }), "{error}");
        }
    }

    /// Retention has removed where it began.
    #[test]
    fn what_is_left_of_a_branch_is_not_counted_but_shown() {
        let dir = crate::permissions::private_tempdir();
        let (_, fork) = forked(dir.path());
        let held = Held::read(dir.path()).unwrap();
        let first = held.branch_of(TimelineId::FIRST, &Progress::default()).unwrap().files[0].clone();
        fs::remove_file(dir.path().join("pg_wal").join(first)).unwrap();
        let branch =
            Held::read(dir.path()).unwrap().branch_of(TimelineId::FIRST, &Progress::default()).unwrap();
        assert_eq!(branch.from, fork.seg_at(id().seg_size).end(id().seg_size));
        assert_eq!((branch.commits, branch.span), (None, None));
    }
}
