//! A look at a target from outside of the relay, for `walrelay doctor`: whether it is there, whether it takes anything, whether it
//! has what it was given. Nothing is changed there, and what is written to try it is gone again.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use walrelay_proto::{SegNo, SegSize, TimelineId, WalFileName};

use crate::archive::repo::name::{FileKind, FileName};
use crate::archive::repo::progress::{Progress, saved_marker, state_file};
use crate::archive::repo::repository::{ArchiveError, Repository};
use crate::archive::repo::target::{Place, Target};

/// So many of the newest segments that it has taken are looked for.
const LOOKED_FOR: u64 = 64;

/// How long it may take to remove what was written to try it.
const REMOVED_WITHIN: Duration = Duration::from_secs(3);

/// What the relay has saved about its targets, and of which WAL.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// Its data directory.
    pub data_dir: &'a Path,
    /// Of its segments; `None` before it has run.
    pub seg_size: Option<SegSize>,
    /// The timeline that it follows.
    pub timeline: Option<TimelineId>,
}

/// What such a look has shown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Probed {
    /// Why it cannot be used at all, or is not the one that was archived to.
    pub missing: Option<String>,
    /// It has not answered in time, to this.
    pub silent: Option<&'static str>,
    /// Why nothing can be written.
    pub unwritable: Option<String>,
    /// Why what was written there could not be removed.
    pub left_behind: Option<String>,
    /// Why it does not say what is there.
    pub unreadable: Option<String>,
    /// Segments that it has taken and has no more although it has older ones, or it has none of them; oldest first.
    pub lacks: Vec<String>,
    /// The first segment that it has not got, as far as is known; `None` where it was never given any.
    pub next: Option<WalFileName>,
}

/// Looks at a target; `None` for a command, which can only be given WAL. Each question may take `limit`.
///
/// # Errors
/// It cannot be used as it is configured.
pub async fn probe(target: &Target, kept: Kept<'_>, limit: Duration) -> Result<Option<Probed>, ArchiveError> {
    if matches!(target.place, Place::Command(_)) {
        return Ok(None);
    }
    let saved = kept.data_dir.join(state_file(&target.name));
    let saved = tokio::task::spawn_blocking(move || std::fs::read_to_string(saved).ok());
    // A data directory that does not answer is somebody else's trouble.
    let saved = timeout(limit, saved).await.ok().and_then(Result::ok).flatten().unwrap_or_default();
    let repository = Repository::open(target)?;
    Ok(Some(looked_at(&repository, &saved, &target.identity(), kept, limit).await))
}

async fn looked_at(
    repository: &Repository,
    saved: &str,
    identity: &str,
    kept: Kept<'_>,
    limit: Duration,
) -> Probed {
    let (storage, mut probed) = (repository.storage(), Probed::default());
    let is_there = async {
        match saved_marker(saved, identity) {
            Some(marker) => storage.is_marked(marker).await,
            None => storage.is_there().await,
        }
    };
    match timeout(limit, is_there).await {
        Err(_) => return Probed { silent: Some("whether it is there"), ..probed },
        Ok(Err(error)) => return Probed { missing: Some(error.reason), ..probed },
        Ok(Ok(())) => {}
    }
    let tried = timeout(limit, storage.try_write(repository.layout().dir_of_files())).await;
    // Also what was not answered may have arrived; what was refused has not.
    if !matches!(tried, Ok(Err(_))) {
        probed.left_behind =
            storage.remove_tried(limit.min(REMOVED_WITHIN)).await.err().map(|error| error.to_string());
    }
    match tried {
        Err(_) => return Probed { silent: Some("a write"), ..probed },
        Ok(Err(error)) => probed.unwritable = Some(error.to_string()),
        Ok(Ok(())) => {}
    }
    let progress = kept.seg_size.and_then(|size| Some((Progress::parse(saved, size, identity)?, size)));
    let Some(((progress, size), tli)) = progress.zip(kept.timeline) else { return probed };
    let Some(next) = progress.next(tli) else { return probed };
    let begun = progress.since().map_or(next, |since| since.seg_at(size));
    let first = begun.max(SegNo::new(next.as_u64().saturating_sub(LOOKED_FOR)));
    let name = |segno: SegNo| FileName::segment(WalFileName::new(tli, segno), size);
    // Names after this one.
    let before = name(SegNo::new(first.as_u64().saturating_sub(1)));
    match timeout(limit, repository.later(&before)).await {
        Err(_) => probed.silent = Some("a listing"),
        Ok(Err(error)) => probed.unreadable = Some(error.to_string()),
        Ok(Ok(files)) => {
            let segment = |file: &FileName| {
                let wal = file.wal(size).filter(|wal| wal.tli == tli && file.kind() == FileKind::Segment);
                wal.map(|wal| wal.segno.as_u64())
            };
            let there: Vec<u64> = files.iter().filter_map(segment).collect();
            let (first, next) = (first.as_u64(), next.as_u64());
            // The oldest may have been removed because nobody needs them.
            let oldest = there.iter().copied().filter(|segno| (first..next).contains(segno)).min();
            let missing = (oldest.unwrap_or(first)..next).filter(|segno| !there.contains(segno));
            probed.lacks = missing.map(|segno| name(SegNo::new(segno)).to_string()).collect();
            let newest = there.iter().copied().max().map_or(next, |newest| next.max(newest + 1));
            probed.next = Some(WalFileName::new(tli, SegNo::new(newest)));
        }
    }
    probed
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn size() -> SegSize {
        SegSize::new(SIZE).unwrap()
    }

    fn wal(number: u64) -> WalFileName {
        WalFileName::new(TimelineId::FIRST, SegNo::new(number))
    }

    /// A target that has taken segments 3 to 9, of which these are there.
    async fn with(there: &[u64], change: impl FnOnce(&Path)) -> Probed {
        let dir = tempfile::tempdir().unwrap();
        let (data_dir, archive) = (dir.path().join("data"), dir.path().join("archive"));
        fs::create_dir_all(&data_dir).unwrap();
        fs::create_dir_all(&archive).unwrap();
        let target = Target::from_url(&format!("file://{}", archive.display())).unwrap();
        let mut progress = Progress::new(size(), target.identity());
        progress.begin(wal(3));
        (3..10).for_each(|number| progress.mark(&FileName::segment(wal(number), size())));
        progress.set_marker("0123".to_owned());
        fs::write(data_dir.join(state_file(&target.name)), progress.format()).unwrap();
        fs::write(archive.join(".walrelay-archive"), "0123\n").unwrap();
        let name = |number: &u64| archive.join(wal(*number).format(size()));
        there.iter().for_each(|number| fs::write(name(number), "wal").unwrap());
        change(&archive);
        let kept = Kept { data_dir: &data_dir, seg_size: Some(size()), timeline: Some(TimelineId::FIRST) };
        let before: Vec<_> = fs::read_dir(dir.path().join("archive")).into_iter().flatten().collect();
        let probed = probe(&target, kept, Duration::from_secs(10)).await.unwrap().unwrap();
        let after: Vec<_> = fs::read_dir(dir.path().join("archive")).into_iter().flatten().collect();
        assert_eq!(before.len(), after.len(), "{after:?}");
        probed
    }

    #[tokio::test]
    async fn what_was_taken_is_there_but_for_the_oldest() {
        let lacks = async |there: &[u64]| with(there, |_| {}).await.lacks;
        let names = |numbers: &[u64]| numbers.iter().map(|it| wal(*it).format(size())).collect::<Vec<_>>();
        assert_eq!(lacks(&[3, 4, 5, 6, 7, 8, 9]).await, names(&[]));
        assert_eq!(lacks(&[6, 7, 8, 9]).await, names(&[]));
        assert_eq!(lacks(&[3, 4, 6, 7, 8]).await, names(&[5, 9]));
        assert_eq!(lacks(&[]).await, names(&[3, 4, 5, 6, 7, 8, 9]));
    }

    #[tokio::test]
    async fn what_came_after_the_progress_was_saved_counts() {
        let probed = with(&[3, 4, 5, 6, 7, 8, 9, 10], |_| {}).await;
        assert_eq!((probed.next, probed.lacks), (Some(wal(11)), vec![]));
    }

    #[tokio::test]
    async fn another_directory_is_not_taken_for_the_target() {
        let gone = with(&[9], |archive| fs::remove_dir_all(archive).unwrap()).await;
        assert!(gone.missing.is_some_and(|why| why.contains("does not exist")));
        let empty = with(&[], |archive| fs::remove_file(archive.join(".walrelay-archive")).unwrap()).await;
        assert!(empty.missing.is_some_and(|why| why.contains("is its file system mounted")));
    }
}
