//! A target of the archive as a source.

use bytes::Bytes;

use super::name::{FileKind, FileName};
use super::repository::{ArchiveError, ReadError, Repository};
use super::source::{FetchError, Fetching, Source};
use super::target::Target;
use crate::pulse::Pulse;

/// Reads what the archiver, or another archiver with the same layout, has stored.
#[derive(Debug)]
pub struct TargetSource {
    repository: Repository,
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
        TargetSource { repository }
    }

    async fn get(&self, file: &str) -> Result<Option<Bytes>, FetchError> {
        let Some(name) = FileName::parse(file) else { return Ok(None) };
        let content = self.repository.read(&name).await.map_err(|error| self.error(file, error))?;
        if content.is_none() {
            // A mount point without its file system has no files either.
            self.repository.looks_used().await.map_err(|error| self.error(file, error))?;
        }
        Ok(content)
    }

    async fn beginnings(&self, segment: &str) -> Result<Vec<Bytes>, FetchError> {
        let Some(name) = FileName::parse(segment).filter(|name| name.kind() == FileKind::Segment) else {
            return Ok(Vec::new());
        };
        let pieces = self.repository.read_beginning(&name).await;
        let pieces = pieces.map_err(|error| self.error(segment, error))?;
        let partial = self.get(&format!("{segment}.partial")).await?;
        Ok([Bytes::from(pieces)].into_iter().filter(|bytes| !bytes.is_empty()).chain(partial).collect())
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
        let later = source.later("000000010000000000000001").await.unwrap();
        let later: Vec<_> = later.iter().map(FileName::as_str).collect();
        assert_eq!(later, ["000000010000000000000002", "00000002.history"]);
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
