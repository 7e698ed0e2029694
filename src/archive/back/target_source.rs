//! A target of the archive as a source.

use std::sync::Arc;

use bytes::Bytes;

use super::source::{FetchError, Fetching, Look, Source};
use crate::archive::repo::name::{FileKind, FileName};
use crate::archive::repo::progress::{saved_marker, state_file};
use crate::archive::repo::repository::{ArchiveError, ReadError, Repository};
use crate::archive::repo::target::Target;
use crate::pulse::Pulse;
use crate::store::Store;

/// Reads what the archiver, or another archiver with the same layout, has stored.
#[derive(Debug)]
pub struct TargetSource {
    repository: Repository,
    archived: Option<Archived>,
}

/// What a relay remembers of a target that it archives to.
#[derive(Debug)]
struct Archived {
    store: Arc<Store>,
    file: String,
    identity: String,
}

impl TargetSource {
    /// Prepares access; reads nothing of the target.
    ///
    /// # Errors
    /// The target is a command, its options or keys are wrong.
    pub fn open(target: &Target) -> Result<TargetSource, ArchiveError> {
        Ok(TargetSource::over(Repository::open(target)?))
    }

    /// Over a repository that is open already.
    pub fn over(repository: Repository) -> TargetSource {
        TargetSource { repository, archived: None }
    }

    /// A target that the relay with this store archives to: what is in another one than that proves nothing.
    ///
    /// # Errors
    /// As for [`TargetSource::open`].
    pub fn archived(target: &Target, store: Arc<Store>) -> Result<TargetSource, ArchiveError> {
        let archived = Archived { store, file: state_file(&target.name), identity: target.identity() };
        Ok(TargetSource { archived: Some(archived), ..TargetSource::open(target)? })
    }

    async fn get(&self, file: &str) -> Result<Option<Bytes>, FetchError> {
        let Some(name) = FileName::parse(file) else { return Ok(None) };
        let content = self.repository.read(&name).await.map_err(|error| self.error(file, error))?;
        // A segment shows by itself what it is.
        if content.is_none() || name.kind() != FileKind::Segment {
            self.is_the_same().await.map_err(|error| self.error(file, error))?;
        }
        Ok(content)
    }

    async fn shown(&self, file: &str, size: u64, look: Look) -> Result<bool, FetchError> {
        let Some(name) = FileName::parse(file) else { return Ok(false) };
        let shown = self.repository.show(&name, size, &look).await;
        let shown = shown.map_err(|error| self.error(file, error))?;
        if !shown {
            self.is_the_same().await.map_err(|error| self.error(file, error))?;
        }
        Ok(shown)
    }

    /// Whether it is the archive that it should be: a mount point without its file system has no files either, and another
    /// file system has others.
    async fn is_the_same(&self) -> Result<(), ReadError> {
        self.repository.looks_used().await?;
        match self.marker().await {
            Some(marker) => self.repository.is_marked(marker).await,
            None => Ok(()),
        }
    }

    /// The marker that the relay has seen there, as it was saved.
    async fn marker(&self) -> Option<String> {
        let archived = self.archived.as_ref()?;
        let (store, file, identity) =
            (archived.store.clone(), archived.file.clone(), archived.identity.clone());
        let read = move || saved_marker(&store.read_state(&file).ok()??, &identity);
        tokio::task::spawn_blocking(read).await.ok()?
    }

    async fn beginnings(&self, segment: &str) -> Result<Vec<Bytes>, FetchError> {
        let Some(name) = FileName::parse(segment).filter(|name| name.kind() == FileKind::Segment) else {
            return Ok(Vec::new());
        };
        let pieces = self.repository.read_beginning(&name).await;
        let pieces = pieces.map_err(|error| self.error(segment, error))?;
        let partial = self.get(&format!("{segment}.partial")).await?;
        // It may have been finished since it was asked for as a whole one; its pieces go then.
        let whole = self.get(segment).await?;
        Ok([Bytes::from(pieces)]
            .into_iter()
            .filter(|bytes| !bytes.is_empty())
            .chain(partial)
            .chain(whole)
            .collect())
    }

    async fn after(&self, segment: &str) -> Result<Vec<FileName>, FetchError> {
        let Some(name) = FileName::parse(segment) else { return Ok(Vec::new()) };
        self.repository.later(&name).await.map_err(|error| self.error(segment, error))
    }

    fn error(&self, file: &str, error: ReadError) -> FetchError {
        let place = self.name().to_owned();
        match error {
            ReadError::Unreachable { source, .. } => {
                FetchError::Unreachable { place, reason: source.to_string() }
            }
            ReadError::Damaged { reason, .. } => FetchError::Damaged { place, file: file.to_owned(), reason },
        }
    }
}

impl Source for TargetSource {
    fn name(&self) -> &str {
        self.repository.name()
    }

    fn pulse(&self) -> &Pulse {
        self.repository.storage().pulse()
    }

    fn read<'a>(&'a self, file: &'a str) -> Fetching<'a, Option<Bytes>> {
        Box::pin(self.get(file))
    }

    fn show<'a>(&'a self, file: &'a str, size: u64, look: Look) -> Fetching<'a, bool> {
        Box::pin(self.shown(file, size, look))
    }

    fn read_unfinished<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<Bytes>> {
        Box::pin(self.beginnings(segment))
    }

    fn later<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<FileName>> {
        Box::pin(self.after(segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::DirBuilderExt;

    fn name(text: &str) -> FileName {
        FileName::parse(text).unwrap()
    }

    #[tokio::test]
    async fn a_target_is_read_and_a_missing_directory_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("archive");
        let target = Target::from_url(&format!("file://{}", root.display())).unwrap();
        let source = TargetSource::open(&target).unwrap();
        let segment = "000000010000000000000001";
        let error = source.read(segment).await.unwrap_err();
        assert!(error.to_string().contains("does not exist"), "{error}");
        std::fs::create_dir(&root).unwrap();
        let error = source.read(segment).await.unwrap_err();
        assert!(error.to_string().contains("is its file system mounted?"), "{error}");
        std::fs::write(root.join("lost"), "").unwrap();
        assert_eq!(source.read(segment).await, Ok(None));
        assert_eq!(source.read("RECOVERYXLOG").await, Ok(None));
        let repository = Repository::open(&target).unwrap();
        repository.write(&name("00000002.history"), "1\t0/1\tx\n".into()).await.unwrap();
        assert_eq!(source.read("00000002.history").await, Ok(Some("1\t0/1\tx\n".into())));
        repository.write_chunk(&name(segment), 0, "abc".into()).await.unwrap();
        repository.write_chunk(&name(segment), 3, "de".into()).await.unwrap();
        assert_eq!(source.read_unfinished(segment).await, Ok(vec![Bytes::from("abcde")]));
        std::fs::write(root.join("000000010000000000000002"), "by hand").unwrap();
        let finished = source.read_unfinished("000000010000000000000002").await;
        assert_eq!(finished, Ok(vec![Bytes::from("by hand")]), "it was finished meanwhile");
        let later = source.later("000000010000000000000001").await.unwrap();
        let later: Vec<_> = later.iter().map(FileName::as_str).collect();
        assert_eq!(later, ["000000010000000000000002", "00000002.history"]);
    }

    #[tokio::test]
    async fn another_place_than_the_one_archived_to_proves_nothing() {
        use crate::store::{StoreConfig, WalWrite};
        let dir = tempfile::tempdir().unwrap();
        let (root, data) = (dir.path().join("archive"), dir.path().join("relay"));
        for made in [&root, &data] {
            std::fs::DirBuilder::new().mode(0o700).create(made).unwrap();
        }
        let (store, _writer, _background) = Store::open(StoreConfig {
            data_dir: data,
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 0,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        })
        .unwrap();
        let target = Target::from_url(&format!("file://{}", root.display())).unwrap();
        let source = TargetSource::archived(&target, store.clone()).unwrap();
        let segment = "000000010000000000000001";
        // Whatever lies there, as long as nothing was archived.
        std::fs::write(root.join("00000002.history"), "1\t0/1\tx\n").unwrap();
        assert_eq!(source.read(segment).await, Ok(None));
        let saved = format!("target = \"{}\"\nmarker = \"0123\"\n", target.identity());
        store.replace_state(&state_file(&target.name), &saved).unwrap();
        for file in [segment, "00000002.history"] {
            let error = source.read(file).await.unwrap_err().to_string();
            assert!(error.contains("is its file system mounted?") && error.contains("0123"), "{error}");
        }
        std::fs::write(root.join(".walrelay-archive"), "4567\n").unwrap();
        let error = source.read(segment).await.unwrap_err().to_string();
        assert!(error.contains("says 4567, expected 0123"), "{error}");
        std::fs::write(root.join(".walrelay-archive"), "0123\n").unwrap();
        assert_eq!(source.read(segment).await, Ok(None));
        assert!(source.read("00000002.history").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn what_does_not_match_its_checksum_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::from_url(&format!("file://{}", dir.path().display())).unwrap();
        let source = TargetSource::open(&target).unwrap();
        let repository = Repository::open(&target).unwrap();
        repository.write(&name("00000002.history"), "1\t0/1\tx\n".into()).await.unwrap();
        std::fs::write(dir.path().join("00000002.history"), "1\t0/2\tx\n").unwrap();
        assert!(matches!(source.read("00000002.history").await, Err(FetchError::Damaged { .. })));
    }
}
