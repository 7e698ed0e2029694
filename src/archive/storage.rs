//! Objects by path: a directory of this machine, or an object store.
//!
//! Nobody ever reads half an object: a store shows an upload when it is whole, a directory when it is synced
//! and renamed.

mod directory;
mod options;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::target::ObjectPlace;
use directory::Directory;
pub use options::OptionError;

/// Least bytes per second that a healthy store takes or gives; slower is as good as gone.
const SLOWEST: u64 = 64 << 10;
/// What a request may take besides its bytes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where one target's objects are. Paths are relative to it and separated by `/`.
#[derive(Clone, Debug)]
pub struct Storage {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory(Arc<Directory>),
    Objects(Objects),
}

#[derive(Clone, Debug)]
struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    /// The bucket has answered once.
    is_there: Arc<AtomicBool>,
}

impl Objects {
    fn new(store: Arc<dyn ObjectStore>, prefix: ObjectPath) -> Objects {
        Objects { store, prefix, is_there: Arc::default() }
    }

    fn location(&self, path: &str) -> ObjectPath {
        location(&self.prefix, path)
    }

    /// Makes sure that an object is missing, and not the bucket: both are "not found", but only one means that there
    /// is no such file.
    async fn confirm_missing(&self, action: &'static str, path: &str) -> Result<(), StorageError> {
        if self.is_there.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Nothing is below an object that is not there.
        let below = self.location(path);
        let mut listing = self.store.list(Some(&below));
        let listed = in_time(0, action, path, listing.try_next()).await?;
        listed.map_err(|error| failed(action, path, &error))?;
        self.is_there.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// An object, as a listing shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Its path.
    pub path: String,
    /// Bytes as stored.
    pub size: u64,
    /// When it was written.
    pub modified: SystemTime,
}

/// A target did not do what was asked. Trying again later may help, unless somebody has to change
/// permissions or configuration first.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{action} \"{path}\": {reason}")]
pub struct StorageError {
    /// What was tried.
    pub action: &'static str,
    /// On which object.
    pub path: String,
    /// What the system or the store said, in one line.
    pub reason: String,
}

impl StorageError {
    pub(super) fn new(action: &'static str, path: &str, reason: &dyn std::fmt::Display) -> StorageError {
        StorageError { action, path: path.to_owned(), reason: one_line(&reason.to_string()) }
    }
}

fn one_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(400) {
        line.truncate(end);
    }
    line
}

impl Storage {
    /// Prepares access; nothing is read or written, so a target that is down is no error here.
    pub fn open(place: &ObjectPlace) -> Result<Storage, OptionError> {
        if place.url.scheme() == "file" {
            let root = place.url.to_file_path().expect("checked when the target was made");
            options::none_but_known(&place.options, &[])?;
            return Ok(Storage { kind: Kind::Directory(Arc::new(Directory::new(root))) });
        }
        let (store, prefix) = options::store(place)?;
        Ok(Storage { kind: Kind::Objects(Objects::new(store, prefix)) })
    }

    /// Objects below `prefix` of any store.
    pub fn over(store: Arc<dyn ObjectStore>, prefix: &str) -> Storage {
        Storage { kind: Kind::Objects(Objects::new(store, ObjectPath::from(prefix))) }
    }

    /// Stores an object whole and durably; one that is there already is replaced.
    pub async fn put(&self, path: &str, content: Bytes) -> Result<(), StorageError> {
        self.put_as(path, content, PutMode::Overwrite).await.map(|_| ())
    }

    /// Stores an object only if there is none; tells whether it did. Where the store cannot promise that, an
    /// object that appears at the same moment is replaced.
    pub async fn put_new(&self, path: &str, content: Bytes) -> Result<bool, StorageError> {
        self.put_as(path, content, PutMode::Create).await
    }

    async fn put_as(&self, path: &str, content: Bytes, mode: PutMode) -> Result<bool, StorageError> {
        let action = "could not write";
        let (store, location) = match &self.kind {
            Kind::Directory(dir) => {
                let replace = mode == PutMode::Overwrite;
                let write = move |dir: &Directory, path: &str| dir.write(path, &content, replace);
                return blocking(dir, action, path, write).await;
            }
            Kind::Objects(objects) => (&objects.store, objects.location(path)),
        };
        let size = content.len() as u64;
        let create = mode == PutMode::Create;
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = store.put_opts(&location, content.clone().into(), options);
        match in_time(size, action, path, put).await? {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })
                if create =>
            {
                Ok(false)
            }
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. })
                if create =>
            {
                let put = store.put(&location, content.into());
                in_time(size, action, path, put).await?.map_err(|error| failed(action, path, &error))?;
                Ok(true)
            }
            Err(error) => Err(failed(action, path, &error)),
        }
    }

    /// Reads an object; `None` if there is certainly none.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>, StorageError> {
        let action = "could not read";
        let objects = match &self.kind {
            Kind::Directory(dir) => {
                return blocking(dir, action, path, Directory::read).await;
            }
            Kind::Objects(objects) => objects,
        };
        let location = objects.location(path);
        let found = match in_time(0, action, path, objects.store.get(&location)).await? {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => {
                return objects.confirm_missing(action, path).await.map(|()| None);
            }
            Err(error) => return Err(failed(action, path, &error)),
        };
        let size = found.range.end - found.range.start;
        let content = in_time(size, action, path, found.bytes()).await?;
        content.map(Some).map_err(|error| failed(action, path, &error))
    }

    /// Size and time of an object; `None` if there is certainly none.
    pub async fn head(&self, path: &str) -> Result<Option<Stored>, StorageError> {
        let action = "could not look for";
        match &self.kind {
            Kind::Directory(dir) => blocking(dir, action, path, Directory::head).await,
            Kind::Objects(objects) => {
                match in_time(0, action, path, objects.store.head(&objects.location(path))).await? {
                    Ok(meta) => Ok(Some(stored(path.to_owned(), &meta))),
                    Err(object_store::Error::NotFound { .. }) => {
                        objects.confirm_missing(action, path).await.map(|()| None)
                    }
                    Err(error) => Err(failed(action, path, &error)),
                }
            }
        }
    }

    /// All objects below a directory, sorted by path; the empty path is everything.
    pub async fn list(&self, dir: &str) -> Result<Vec<Stored>, StorageError> {
        let action = "could not list";
        let (store, prefix) = match &self.kind {
            Kind::Directory(root) => return blocking(root, action, dir, Directory::list).await,
            Kind::Objects(objects) => (&objects.store, &objects.prefix),
        };
        let below = location(prefix, dir);
        let skip = if prefix.as_ref().is_empty() { 0 } else { prefix.as_ref().len() + 1 };
        let relative = |meta: ObjectMeta| {
            let path = meta.location.as_ref().get(skip..).unwrap_or_default().to_owned();
            stored(path, &meta)
        };
        let mut listing = store.list(Some(&below)).map_ok(relative);
        let mut found = Vec::new();
        while let Some(one) =
            in_time(0, action, dir, listing.try_next()).await?.map_err(|error| failed(action, dir, &error))?
        {
            found.push(one);
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Removes an object; one that is not there is fine.
    pub async fn delete(&self, path: &str) -> Result<(), StorageError> {
        let action = "could not remove";
        match &self.kind {
            Kind::Directory(dir) => blocking(dir, action, path, Directory::remove).await,
            Kind::Objects(objects) => {
                match in_time(0, action, path, objects.store.delete(&objects.location(path))).await? {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(failed(action, path, &error)),
                }
            }
        }
    }

    /// Removes what uploads have left that were cut off long ago.
    pub async fn tidy(&self) -> Result<(), StorageError> {
        match &self.kind {
            Kind::Directory(dir) => blocking(dir, "could not tidy", "", Directory::tidy).await,
            // A store shows no part of an upload, and removes parts by rules of the bucket.
            Kind::Objects(_) => Ok(()),
        }
    }
}

fn location(prefix: &ObjectPath, path: &str) -> ObjectPath {
    match prefix.as_ref() {
        "" => ObjectPath::from(path),
        prefix => ObjectPath::from(format!("{prefix}/{path}")),
    }
}

fn stored(path: String, meta: &ObjectMeta) -> Stored {
    Stored { path, size: meta.size, modified: meta.last_modified.into() }
}

fn failed(action: &'static str, path: &str, error: &object_store::Error) -> StorageError {
    StorageError::new(action, path, error)
}

/// A request with its deadline, which allows for the bytes it moves.
async fn in_time<T>(
    size: u64,
    action: &'static str,
    path: &str,
    request: impl Future<Output = T>,
) -> Result<T, StorageError> {
    let limit = PATIENCE + Duration::from_secs(size / SLOWEST);
    let late = |_| StorageError::new(action, path, &format_args!("no answer in {} s", limit.as_secs()));
    tokio::time::timeout(limit, request).await.map_err(late)
}

/// File system calls may take long, on network file systems for ever: not on the runtime's workers.
async fn blocking<T: Send + 'static>(
    dir: &Arc<Directory>,
    action: &'static str,
    path: &str,
    work: impl FnOnce(&Directory, &str) -> std::io::Result<T> + Send + 'static,
) -> Result<T, StorageError> {
    let (dir, owned) = (dir.clone(), path.to_owned());
    let done = tokio::task::spawn_blocking(move || {
        work(&dir, &owned).map_err(|error| StorageError::new(action, &dir.show(&owned), &error))
    });
    done.await.unwrap_or_else(|error| Err(StorageError::new(action, path, &error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    async fn behaves(storage: Storage) {
        let bytes = Bytes::from_static;
        assert_eq!(storage.get("a/b").await.unwrap(), None);
        assert_eq!(storage.head("a/b").await.unwrap(), None);
        assert_eq!(storage.list("").await.unwrap(), []);
        assert!(storage.put_new("a/b", bytes(b"first")).await.unwrap());
        assert!(!storage.put_new("a/b", bytes(b"second")).await.unwrap());
        assert_eq!(storage.get("a/b").await.unwrap(), Some(bytes(b"first")));
        storage.put("a/b", bytes(b"third")).await.unwrap();
        storage.put("a/c/d", bytes(b"x")).await.unwrap();
        storage.put("ab", bytes(b"y")).await.unwrap();
        assert_eq!(storage.head("a/b").await.unwrap().unwrap().size, 5);
        let paths = async |dir: &str| {
            let found = storage.list(dir).await.unwrap();
            found.into_iter().map(|one| one.path).collect::<Vec<_>>()
        };
        assert_eq!(paths("").await, ["a/b", "a/c/d", "ab"]);
        assert_eq!(paths("a").await, ["a/b", "a/c/d"]);
        assert_eq!(paths("nothing").await, [""; 0]);
        storage.delete("a/b").await.unwrap();
        storage.delete("a/b").await.unwrap();
        assert_eq!(paths("").await, ["a/c/d", "ab"]);
    }

    #[tokio::test]
    async fn stores_and_directories_behave_alike() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        behaves(Storage::over(store.clone(), "deep/prefix")).await;
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        behaves(Storage::open(&ObjectPlace::parse(&url).unwrap()).unwrap()).await;
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/not-mounted", dir.path().display());
        let storage = Storage::open(&ObjectPlace::parse(&url).unwrap()).unwrap();
        assert!(storage.get("a").await.is_err());
        assert!(storage.head("a").await.is_err());
        assert!(storage.list("").await.is_err());
        assert!(storage.put("a", Bytes::new()).await.is_err());
    }
}
