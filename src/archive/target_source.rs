//! A target of the archive as a source.

use std::path::PathBuf;

use bytes::Bytes;

use super::name::{FileKind, FileName};
use super::repository::{ArchiveError, ReadError, Repository};
use super::source::{FetchError, Fetching, Source};
use super::target::{Place, Target};

/// Reads what the archiver, or another archiver with the same layout, has stored.
#[derive(Debug)]
pub struct TargetSource {
    repository: Repository,
    /// For a target that is a directory: nothing can be said to be missing while it does not exist.
    root: Option<PathBuf>,
}

impl TargetSource {
    /// Prepares access; reads nothing of the target.
    ///
    /// # Errors
    /// The target is a command, its options or keys are wrong.
    pub fn open(target: &Target) -> Result<TargetSource, ArchiveError> {
        let root = match &target.place {
            Place::Objects(place) if place.url.scheme() == "file" => place.url.to_file_path().ok(),
            _ => None,
        };
        Ok(TargetSource { repository: Repository::open(target)?, root })
    }

    /// Over a repository that is open already.
    pub fn over(repository: Repository) -> TargetSource {
        TargetSource { repository, root: None }
    }

    async fn get(&self, file: &str) -> Result<Option<Bytes>, FetchError> {
        let Some(name) = FileName::parse(file) else { return Ok(None) };
        let content = self.repository.read(&name).await.map_err(|error| self.error(file, error))?;
        if content.is_none() {
            self.must_exist()?;
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

    async fn holds(&self, file: &str) -> Result<bool, FetchError> {
        let Some(name) = FileName::parse(file) else { return Ok(false) };
        let described = self.repository.sidecar(&name).await.map_err(|error| self.error(file, error))?;
        // Another archiver writes no checksums.
        Ok(described.is_some() || self.get(file).await?.is_some())
    }

    fn must_exist(&self) -> Result<(), FetchError> {
        match &self.root {
            Some(root) if !root.is_dir() => {
                let reason = format!("directory \"{}\" does not exist", root.display());
                Err(FetchError::Unreachable { place: self.name().to_owned(), reason })
            }
            _ => Ok(()),
        }
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

    fn read<'a>(&'a self, file: &'a str) -> Fetching<'a, Option<Bytes>> {
        Box::pin(self.get(file))
    }

    fn read_unfinished<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<Bytes>> {
        Box::pin(self.beginnings(segment))
    }

    fn has<'a>(&'a self, file: &'a str) -> Fetching<'a, bool> {
        Box::pin(self.holds(file))
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
        assert_eq!(source.read(segment).await, Ok(None));
        assert_eq!(source.has(segment).await, Ok(false));
        assert_eq!(source.read("RECOVERYXLOG").await, Ok(None));
        let repository = Repository::open(&target).unwrap();
        repository.write(&name("00000002.history"), "1\t0/1\tx\n".into()).await.unwrap();
        assert_eq!(source.read("00000002.history").await, Ok(Some("1\t0/1\tx\n".into())));
        assert_eq!(source.has("00000002.history").await, Ok(true));
        repository.write_chunk(&name(segment), 0, "abc".into()).await.unwrap();
        repository.write_chunk(&name(segment), 3, "de".into()).await.unwrap();
        assert_eq!(source.read_unfinished(segment).await, Ok(vec![Bytes::from("abcde")]));
        std::fs::write(root.join("000000010000000000000002"), "by hand").unwrap();
        assert_eq!(source.has("000000010000000000000002").await, Ok(true));
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
