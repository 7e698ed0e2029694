//! A relay's data directory as a source: read as it lies there, whether a relay runs on it or not.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use walrelay_proto::{SegSize, TimelineId, WalIdentity};

use super::buffer;
use super::limit::{self, Limit};
use super::name::FileName;
use super::source::{FetchError, Fetching, Source};
use crate::lane::Lane;

/// The WAL in a relay's data directory.
#[derive(Debug)]
pub struct RelayDirectory {
    name: String,
    wal: PathBuf,
    lane: Lane,
}

impl RelayDirectory {
    /// Of the directory that is a relay's `--data-dir`.
    pub fn new(data_dir: &Path) -> RelayDirectory {
        RelayDirectory {
            name: format!("\"{}\"", data_dir.display()),
            wal: data_dir.join("pg_wal"),
            lane: Lane::default(),
        }
    }

    /// The cluster whose WAL it is; `None` if that cannot be read.
    pub fn identity(data_dir: &Path) -> Option<WalIdentity> {
        let text = fs::read_to_string(data_dir.join("cluster.toml")).ok()?;
        let state: toml::Table = text.parse().ok()?;
        let system_id = state.get("system_identifier")?.as_str()?.parse().ok()?;
        let size = u64::try_from(state.get("wal_segment_size")?.as_integer()?).ok()?;
        Some(WalIdentity { system_id, seg_size: SegSize::new(size).ok()? })
    }

    async fn get(&self, file: String) -> Result<Option<Bytes>, FetchError> {
        let limit = match TimelineId::from_history_file_name(&file) {
            Some(_) => Limit::most(limit::TEXT),
            None => Limit::segment(),
        };
        let (wal, place) = (self.wal.clone(), self.name.clone());
        let path = file.clone();
        let work = move || match File::open(wal.join(path)).and_then(|file| buffer::read_to_end(file, &limit))
        {
            Ok(content) => Ok(Some(content)),
            // A directory that is not mounted proves nothing about what is in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && wal.is_dir() => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(FetchError::Damaged { place, file, reason: error.to_string() })
            }
            Err(error) => Err(FetchError::Unreachable { place, reason: error.to_string() }),
        };
        self.run(limit::UNSEEN, work).await
    }

    async fn after(&self, segment: String) -> Result<Vec<FileName>, FetchError> {
        let (wal, place) = (self.wal.clone(), self.name.clone());
        let work = move || {
            let named = |entry: fs::DirEntry| {
                let name = entry.file_name().into_string().ok()?;
                FileName::parse(name.strip_suffix(".partial").unwrap_or(&name))
            };
            let list = || fs::read_dir(&wal)?.map(|entry| Ok(named(entry?))).collect::<io::Result<Vec<_>>>();
            let listed =
                list().map_err(|error| FetchError::Unreachable { place, reason: error.to_string() })?;
            Ok(listed.into_iter().flatten().filter(|file| file.as_str() > segment.as_str()).collect())
        };
        self.run(0, work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        size: u64,
        work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
    ) -> Result<T, FetchError> {
        let done = self.lane.run(size, work).await;
        done.unwrap_or_else(|reason| Err(FetchError::Unreachable { place: self.name.clone(), reason }))
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

    fn later<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<FileName>> {
        Box::pin(self.after(segment.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_read_and_a_missing_directory_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let source = RelayDirectory::new(dir.path());
        assert!(matches!(source.read("00000002.history").await, Err(FetchError::Unreachable { .. })));
        let state = "system_identifier = \"77\"\nwal_segment_size = 1048576\n[parameters]\n";
        assert_eq!(RelayDirectory::identity(dir.path()), None);
        fs::write(dir.path().join("cluster.toml"), state).unwrap();
        assert_eq!(RelayDirectory::identity(dir.path()).unwrap().system_id.0, 77);
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        assert_eq!(source.read("00000002.history").await, Ok(None));
        fs::write(dir.path().join("pg_wal/00000002.history"), "x").unwrap();
        fs::write(dir.path().join("pg_wal/000000010000000000000001.partial"), "y").unwrap();
        assert_eq!(source.read("00000002.history").await, Ok(Some(Bytes::from("x"))));
        let segment = "000000010000000000000001";
        assert_eq!(source.read(segment).await, Ok(None));
        assert_eq!(source.read_unfinished(segment).await, Ok(vec![Bytes::from("y")]));
        let later = source.later(segment).await.unwrap();
        assert_eq!(later.iter().map(FileName::as_str).collect::<Vec<_>>(), ["00000002.history"]);
        fs::write(dir.path().join("pg_wal/000000010000000000000002.partial"), "y").unwrap();
        assert_eq!(source.later(segment).await.unwrap().len(), 2);
        let huge = File::create(dir.path().join("pg_wal/000000010000000000000003")).unwrap();
        huge.set_len(1 << 40).unwrap();
        let read = source.read("000000010000000000000003").await;
        assert!(matches!(read, Err(FetchError::Damaged { .. })), "{read:?}");
    }
}
