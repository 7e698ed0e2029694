//! A relay's data directory as a source: read as it lies there, whether a relay runs on it or not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::source::{FetchError, Fetching, Source};

/// The WAL in a relay's data directory.
#[derive(Debug)]
pub struct RelayDirectory {
    name: String,
    wal: PathBuf,
}

impl RelayDirectory {
    /// Of the directory that is a relay's `--data-dir`.
    pub fn new(data_dir: &Path) -> RelayDirectory {
        RelayDirectory { name: format!("\"{}\"", data_dir.display()), wal: data_dir.join("pg_wal") }
    }

    /// Whether there is anything of a relay.
    pub fn exists(&self) -> bool {
        self.wal.is_dir()
    }

    async fn get(&self, file: String) -> Result<Option<Bytes>, FetchError> {
        let (wal, place) = (self.wal.clone(), self.name.clone());
        let work = move || match fs::read(wal.join(file)) {
            Ok(content) => Ok(Some(content.into())),
            // A directory that is not mounted proves nothing about what is in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && wal.is_dir() => Ok(None),
            Err(error) => Err(FetchError::Unreachable { place, reason: error.to_string() }),
        };
        let place = self.name.clone();
        let lost = |error| FetchError::Unreachable { place, reason: io::Error::from(error).to_string() };
        tokio::task::spawn_blocking(work).await.map_err(lost)?
    }
}

impl Source for RelayDirectory {
    fn name(&self) -> &str {
        &self.name
    }

    fn read<'a>(&'a self, file: &'a str) -> Fetching<'a, Option<Bytes>> {
        Box::pin(self.get(file.to_owned()))
    }

    fn read_unfinished<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<Bytes>> {
        Box::pin(async move { Ok(self.get(format!("{segment}.partial")).await?.into_iter().collect()) })
    }

    fn has<'a>(&'a self, file: &'a str) -> Fetching<'a, bool> {
        Box::pin(async move { Ok(self.wal.join(file).exists()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_read_and_a_missing_directory_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let source = RelayDirectory::new(dir.path());
        assert!(!source.exists());
        assert!(matches!(source.read("00000002.history").await, Err(FetchError::Unreachable { .. })));
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        assert_eq!(source.read("00000002.history").await, Ok(None));
        fs::write(dir.path().join("pg_wal/00000002.history"), "x").unwrap();
        fs::write(dir.path().join("pg_wal/000000010000000000000001.partial"), "y").unwrap();
        assert_eq!(source.read("00000002.history").await, Ok(Some(Bytes::from("x"))));
        let segment = "000000010000000000000001";
        assert_eq!(source.read(segment).await, Ok(None));
        assert_eq!(source.read_unfinished(segment).await, Ok(vec![Bytes::from("y")]));
        assert_eq!(source.has(segment).await, Ok(false));
        assert_eq!(source.has("00000002.history").await, Ok(true));
    }
}
