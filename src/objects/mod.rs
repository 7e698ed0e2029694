//! Objects by path: a directory of this machine, or an object store.
//!
//! Nobody ever reads half an object: a store shows an upload when it is whole, a directory when it is synced
//! and renamed.

mod bucket;
pub(crate) mod buffer;
mod connect;
mod directory;
pub(crate) mod limit;
mod options;
pub(crate) mod place;
mod profile;
mod root;
mod sync;
mod upload;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;

use crate::lane::{GivenUp, Lane};
use crate::pulse::Pulse;
use crate::redact::redact;
use bucket::Objects;
pub(crate) use bucket::reload;
use directory::Directory;
use limit::Limit;
pub use options::OptionError;
pub use place::{ObjectPlace, PlaceError};
pub(crate) use root::Places;
use root::Refused;
#[cfg(test)]
pub(crate) use sync::Fault;
use sync::NotSynced;

/// Where one target's objects are. Paths are relative to it and separated by `/`.
///
/// Nothing here waits for ever: what writes has a deadline, which allows for the bytes it moves, what reads and lists has
/// one for silence. A directory's calls run on threads of the target's own.
#[derive(Clone, Debug)]
pub struct Storage {
    kind: Kind,
    /// Signs of life of whatever is read and listed.
    pulse: Pulse,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory(Arc<Directory>, Lane),
    Objects(Arc<Objects>),
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
    /// What it means.
    pub kind: Trouble,
}

/// What a [`StorageError`] means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trouble {
    /// It may go away.
    #[default]
    Passing,
    /// The object is larger than it should be, and was not read.
    TooLarge,
    /// What was written can be read, and may be lost nevertheless: it has to be written again.
    NotSynced,
    /// The place must not be used as an archive.
    Refused,
    /// What was to be written cannot be read, which is not the place's fault.
    Unreadable,
}

/// What was to be written cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("what is to be written cannot be read: {0}")]
pub(crate) struct Unreadable(pub(crate) io::Error);

impl StorageError {
    pub(crate) fn new(action: &'static str, path: &str, reason: &dyn std::fmt::Display) -> StorageError {
        let reason = one_line(&reason.to_string());
        StorageError { action, path: path.to_owned(), reason, kind: Trouble::Passing }
    }

    pub(crate) fn of_io(action: &'static str, path: &str, error: &io::Error) -> StorageError {
        let inner = |error: &io::Error| match error.get_ref() {
            Some(inner) if inner.is::<NotSynced>() => Trouble::NotSynced,
            Some(inner) if inner.is::<Refused>() => Trouble::Refused,
            Some(inner) if inner.is::<Unreadable>() => Trouble::Unreadable,
            _ => Trouble::Passing,
        };
        let kind = match error.kind() {
            // Writing too large a file has the same name, and is no judgement of ours.
            ErrorKind::FileTooLarge if action == READING => Trouble::TooLarge,
            _ => inner(error),
        };
        StorageError { kind, ..StorageError::new(action, path, error) }
    }
}

const READING: &str = "could not read";
const WRITING: &str = "could not write";
const SYNCING: &str = "could not sync";
const REMOVING: &str = "could not remove";
/// What syncs, so that its end matters.
const SYNCS: [&str; 2] = [WRITING, SYNCING];
const LISTING: &str = "could not list";
/// What is written into a store to see whether that works.
const TRIED: &str = ".walrelay-doctor";

fn one_line(text: &str) -> String {
    // Stores quote requests, and these may be signed. What is cut first is not known for a secret any more.
    let mut line = redact(text).split_whitespace().collect::<Vec<_>>().join(" ");
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
            let lane = Lane::default();
            let pulse = lane.pulse();
            return Ok(Storage { kind: Kind::Directory(Arc::new(Directory::new(root)), lane), pulse });
        }
        let objects = Objects::open(place)?;
        let pulse = objects.pulse().clone();
        Ok(Storage { kind: Kind::Objects(Arc::new(objects)), pulse })
    }

    /// Objects below `prefix` of any store.
    pub fn over(store: Arc<dyn ObjectStore>, prefix: &str) -> Storage {
        let objects = Objects::over(store, ObjectPath::from(prefix));
        let pulse = objects.pulse().clone();
        Storage { kind: Kind::Objects(Arc::new(objects)), pulse }
    }

    /// Signs of life of whatever is read and listed.
    pub(crate) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Gives up each call after this time, whatever it moves.
    #[cfg(test)]
    pub(crate) fn patient_for(mut self, patience: std::time::Duration) -> Storage {
        if let Kind::Directory(_, lane) = &mut self.kind {
            *lane = Lane::hasty(patience);
        }
        self
    }

    /// Has `fault` decide about each sync of a directory before it is done.
    #[cfg(test)]
    pub(crate) fn with_fault(self, fault: Fault) -> Storage {
        if let Kind::Directory(dir, _) = &self.kind {
            dir.root().syncs().faults.set(fault);
        }
        self
    }

    /// Has `fault` decide about each file that is begun in a directory.
    #[cfg(test)]
    pub(crate) fn with_write_fault(self, fault: Fault) -> Storage {
        if let Kind::Directory(dir, _) = &self.kind {
            dir.root().syncs().writes.set(fault);
        }
        self
    }

    /// Whether it is a directory: others may write there in their own ways, and looking costs little.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(..))
    }

    /// Makes it the relay's target `name`, which has this marker if one is known. Reads and writes nothing yet.
    /// `used`: something was archived to it before.
    pub(crate) fn claim(&self, places: Arc<Places>, name: &str, marker: Option<String>, used: bool) {
        if let Kind::Directory(dir, _) = &self.kind {
            dir.root().claim(places, name, marker, used);
        }
    }

    /// Whether it may be the relay's target `name`; an error only if it must not. Reads, and may hang.
    pub(crate) fn place(&self, places: &Arc<Places>, name: &str) -> Result<(), String> {
        match &self.kind {
            Kind::Directory(dir, _) => dir.root().place(places, name),
            Kind::Objects(_) => Ok(()),
        }
    }

    /// The marker that a directory was last seen with, once it is claimed.
    pub(crate) fn marker(&self) -> Option<String> {
        match &self.kind {
            Kind::Directory(dir, _) => dir.root().marker(),
            Kind::Objects(_) => None,
        }
    }

    /// Whether it may be written to, and is the place that it was. A directory gets its marker.
    pub async fn admit(&self) -> Result<(), StorageError> {
        let Kind::Directory(dir, lane) = &self.kind else { return Ok(()) };
        on(lane, dir, 0, "could not use", "", |dir, _, _| dir.root().admit(root::Access::Write)).await
    }

    /// Whether anything shows that there ever was an archive: a mount point without its file system is no empty one.
    pub async fn looks_used(&self) -> Result<(), StorageError> {
        let Kind::Directory(dir, lane) = &self.kind else { return Ok(()) };
        let look = |dir: &Directory, _: &str, _: &Pulse| dir.root().looks_used();
        on_alive(lane, dir, &self.pulse, READING, "", look).await
    }

    /// Whether it is the one that was archived to: a directory with this marker.
    pub(crate) async fn is_marked(&self, expected: String) -> Result<(), StorageError> {
        let Kind::Directory(dir, lane) = &self.kind else { return Ok(()) };
        let look = move |dir: &Directory, _: &str, _: &Pulse| dir.root().is_marked(&expected);
        on_alive(lane, dir, &self.pulse, READING, "", look).await
    }

    /// Whether it is there at all, as far as that can be told without asking for anything. Makes nothing.
    pub(crate) async fn is_there(&self) -> Result<(), StorageError> {
        let Kind::Directory(dir, lane) = &self.kind else { return Ok(()) };
        let look = |dir: &Directory, _: &str, _: &Pulse| dir.root().is_there();
        on_alive(lane, dir, &self.pulse, "could not use", "", look).await
    }

    /// Writes something and makes it durable: in `dir` if that is there. In a directory it has no name that
    /// counts, and the directory gets no marker; in a store it is an object that nobody looks for, for
    /// [`remove_tried`](Self::remove_tried) to remove.
    pub(crate) async fn try_write(&self, dir: &str) -> Result<(), StorageError> {
        match &self.kind {
            Kind::Directory(root, lane) => {
                on(lane, root, 0, WRITING, dir, |root, dir, _| root.try_write(dir)).await
            }
            Kind::Objects(_) => {
                let text = b"walrelay doctor has tried whether it may write here\n";
                self.put(TRIED, Bytes::from_static(text)).await
            }
        }
    }

    /// Removes what that has left, within so long; why it could not be removed.
    pub(crate) async fn remove_tried(&self, limit: Duration) -> Result<(), StorageError> {
        match &self.kind {
            Kind::Directory(..) => Ok(()),
            Kind::Objects(_) => match tokio::time::timeout(limit, self.delete(TRIED)).await {
                Ok(done) => done,
                Err(_) => {
                    let reason = format!("no answer within {} s", limit.as_secs());
                    Err(StorageError::new(REMOVING, TRIED, &reason))
                }
            },
        }
    }

    /// Stores an object whole and durably; one that is there already is replaced.
    pub async fn put(&self, path: &str, content: Bytes) -> Result<(), StorageError> {
        self.put_as(path, content, false).await.map(drop)
    }

    /// Stores an object only if there is none; tells whether it did. Where the store cannot promise that (other than S3:
    /// for objects that are uploaded in parts), one that appears at the same moment is replaced.
    pub async fn put_new(&self, path: &str, content: Bytes) -> Result<bool, StorageError> {
        self.put_as(path, content, true).await
    }

    async fn put_as(&self, path: &str, content: Bytes, create: bool) -> Result<bool, StorageError> {
        let size = content.len() as u64;
        match &self.kind {
            Kind::Directory(dir, lane) => {
                let write = move |dir: &Directory, path: &str, given_up: &GivenUp| {
                    let done = dir.write(path, !create, given_up, |file| file.write_all(&content));
                    done.map(|done| done.is_some())
                };
                on(lane, dir, size, WRITING, path, write).await
            }
            Kind::Objects(objects) => upload::put(objects, path, content, create).await,
        }
    }

    /// Stores what `make` writes, `about` so many bytes, as it is written; `None` if it should be new and is there,
    /// else what `make` has to say.
    pub(crate) async fn put_made<T: Send + 'static>(
        &self,
        path: &str,
        about: u64,
        create: bool,
        make: impl FnOnce(&mut dyn Write) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, StorageError> {
        match &self.kind {
            Kind::Directory(dir, lane) => {
                let pulse = self.pulse.clone();
                let write = move |dir: &Directory, path: &str, given_up: &GivenUp| {
                    dir.write(path, !create, given_up, |file| make(&mut Heard { file, pulse: &pulse }))
                };
                on(lane, dir, about, WRITING, path, write).await
            }
            Kind::Objects(objects) => upload::put_made(objects, path, create, make).await,
        }
    }

    /// Makes durable what somebody else has written. A store's objects are.
    pub(crate) async fn sync(&self, path: &str, size: u64) -> Result<(), StorageError> {
        let Kind::Directory(dir, lane) = &self.kind else { return Ok(()) };
        on(lane, dir, size, SYNCING, path, |dir, path, _| dir.sync(path)).await
    }

    /// Reads an object that is no larger than a segment of 16 MB; `None` if there is certainly none.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>, StorageError> {
        self.get_within(path, Limit::most(limit::UNSEEN)).await
    }

    /// Reads an object; `None` if there is certainly none.
    pub(crate) async fn get_within(&self, path: &str, limit: Limit) -> Result<Option<Bytes>, StorageError> {
        match &self.kind {
            Kind::Directory(dir, lane) => {
                let read = move |dir: &Directory, path: &str, pulse: &Pulse| dir.read(path, &limit, pulse);
                on_alive(lane, dir, &self.pulse, READING, path, read).await
            }
            Kind::Objects(objects) => objects.get(path, &limit).await,
        }
    }

    /// Shows an object to `work` while it comes, little of it at a time; `None` if there is certainly none. `work` need
    /// not read to the end, and runs where it may take its time.
    pub(crate) async fn read_through<T: Send + 'static>(
        &self,
        path: &str,
        limit: Limit,
        work: impl FnOnce(&mut dyn Read) -> T + Send + 'static,
    ) -> Result<Option<T>, StorageError> {
        match &self.kind {
            Kind::Directory(dir, lane) => {
                let read = move |dir: &Directory, path: &str, pulse: &Pulse| {
                    dir.read_through(path, &limit, pulse, work)
                };
                on_alive(lane, dir, &self.pulse, READING, path, read).await
            }
            Kind::Objects(objects) => objects.read_through(path, &limit, work).await,
        }
    }

    /// Size and time of an object; `None` if there is certainly none.
    pub async fn head(&self, path: &str) -> Result<Option<Stored>, StorageError> {
        match &self.kind {
            Kind::Directory(dir, lane) => {
                let head = |dir: &Directory, path: &str, _: &Pulse| dir.head(path);
                on_alive(lane, dir, &self.pulse, "could not look for", path, head).await
            }
            Kind::Objects(objects) => objects.head(path).await,
        }
    }

    /// All objects below a directory, sorted by path; the empty path is everything.
    pub async fn list(&self, dir: &str) -> Result<Vec<Stored>, StorageError> {
        match &self.kind {
            Kind::Directory(root, lane) => {
                on_alive(lane, root, &self.pulse, LISTING, dir, Directory::list).await
            }
            Kind::Objects(objects) => objects.list(dir, None).await,
        }
    }

    /// Shows all objects below a directory to `see`, in no order; what it has made of them. Only that is in memory, however
    /// many they are.
    pub(crate) async fn visit<T: Send + 'static>(
        &self,
        dir: &str,
        mut seen: T,
        see: impl Fn(&mut T, Stored) + Send + 'static,
    ) -> Result<T, StorageError> {
        match &self.kind {
            Kind::Directory(root, lane) => {
                let visit = move |root: &Directory, dir: &str, pulse: &Pulse| {
                    root.visit(dir, pulse, &mut |one| see(&mut seen, one))?;
                    Ok(seen)
                };
                on_alive(lane, root, &self.pulse, LISTING, dir, visit).await
            }
            Kind::Objects(objects) => {
                objects.visit(dir, None, |one| see(&mut seen, one)).await?;
                Ok(seen)
            }
        }
    }

    /// Paths of all objects below a directory that sort after this path, sorted: as much as names tell, and nothing of
    /// what comes before is looked at that need not be. The empty directory is everything.
    pub(crate) async fn names_after(&self, dir: &str, after: &str) -> Result<Vec<String>, StorageError> {
        match &self.kind {
            Kind::Directory(root, lane) => {
                let after = after.to_owned();
                let names =
                    move |root: &Directory, dir: &str, pulse: &Pulse| root.names_after(dir, &after, pulse);
                on_alive(lane, root, &self.pulse, LISTING, dir, names).await
            }
            Kind::Objects(objects) => {
                let found = objects.list(dir, Some(after)).await?;
                Ok(found.into_iter().map(|one| one.path).collect())
            }
        }
    }

    /// Removes an object; one that is not there is fine.
    pub async fn delete(&self, path: &str) -> Result<(), StorageError> {
        match &self.kind {
            Kind::Directory(dir, lane) => on(lane, dir, 0, REMOVING, path, Directory::remove).await,
            Kind::Objects(objects) => objects.delete(path).await,
        }
    }

    /// Removes what uploads have left that were cut off long ago.
    pub async fn tidy(&self) -> Result<(), StorageError> {
        match &self.kind {
            Kind::Directory(dir, lane) => {
                on(lane, dir, 0, "could not tidy", "", |dir, _, _| dir.tidy()).await
            }
            // A store shows no part of an upload, and removes parts by rules of the bucket.
            Kind::Objects(_) => Ok(()),
        }
    }
}

/// A file that is written: what it takes are signs of life.
struct Heard<'a> {
    file: &'a mut File,
    pulse: &'a Pulse,
}

impl Write for Heard<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.pulse.beat();
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Reads or lists in a directory, on one of its target's own threads, as long as it shows signs of life.
async fn on_alive<T: Send + 'static>(
    lane: &Lane,
    dir: &Arc<Directory>,
    pulse: &Pulse,
    action: &'static str,
    path: &str,
    work: impl FnOnce(&Directory, &str, &Pulse) -> io::Result<T> + Send + 'static,
) -> Result<T, StorageError> {
    let (at, owned) = (dir.clone(), path.to_owned());
    let done = lane.run_alive(pulse, move |alive| {
        work(&at, &owned, alive).map_err(|error| StorageError::of_io(action, &at.show(&owned), &error))
    });
    done.await.unwrap_or_else(|reason| Err(StorageError::new(action, &dir.show(path), &reason)))
}

/// Works on a directory, on one of its target's own threads.
async fn on<T: Send + 'static>(
    lane: &Lane,
    dir: &Arc<Directory>,
    size: u64,
    action: &'static str,
    path: &str,
    work: impl FnOnce(&Directory, &str, &GivenUp) -> io::Result<T> + Send + 'static,
) -> Result<T, StorageError> {
    let (at, owned) = (dir.clone(), path.to_owned());
    let done = lane.run_told(size, move |given_up| {
        work(&at, &owned, given_up).map_err(|error| StorageError::of_io(action, &at.show(&owned), &error))
    });
    done.await.unwrap_or_else(|error| {
        // Once begun it goes on, and whether its sync says no will be said to nobody.
        let is_lost = error.is_begun && SYNCS.contains(&action);
        let kind = if is_lost { Trouble::NotSynced } else { Trouble::Passing };
        Err(StorageError { kind, ..StorageError::new(action, &dir.show(path), &error.reason) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
        let after = async |dir: &str, path: &str| storage.names_after(dir, path).await.unwrap();
        assert_eq!(after("", "").await, ["a/b", "a/c/d", "ab"]);
        assert_eq!(after("", "a/b").await, ["a/c/d", "ab"]);
        assert_eq!(after("", "a/c/d").await, ["ab"]);
        assert_eq!(after("a", "a/b").await, ["a/c/d"]);
        assert_eq!(after("nothing", "a").await, [""; 0]);
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

    /// A directory whose syncs of files of one byte hang until what is returned is dropped; how many do is counted.
    fn hanging(dir: &std::path::Path) -> (Storage, std::sync::mpsc::Sender<()>, Arc<AtomicUsize>) {
        let (go_on, wait) = std::sync::mpsc::channel();
        let wait = std::sync::Mutex::new(wait);
        let hung = Arc::new(AtomicUsize::new(0));
        let count = hung.clone();
        let fault = move |file: &std::fs::File| {
            let meta = file.metadata()?;
            if !meta.is_dir() && meta.len() == 1 {
                count.fetch_add(1, Ordering::SeqCst);
                let _: Result<(), _> = wait.lock().unwrap().recv();
            }
            Ok(())
        };
        let url = format!("file://{}", dir.display());
        let storage = Storage::open(&ObjectPlace::parse(&url).unwrap()).unwrap();
        let patience = std::time::Duration::from_millis(50);
        (storage.patient_for(patience).with_fault(Box::new(fault)), go_on, hung)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_that_was_given_up_replaces_nothing_later() {
        let dir = tempfile::tempdir().unwrap();
        let (hasty, go_on, _) = hanging(dir.path());
        let error = hasty.put("a", Bytes::from_static(b"1")).await.unwrap_err();
        assert!(error.reason.contains("no answer in"), "{error}");
        let url = format!("file://{}", dir.path().display());
        let other = Storage::open(&ObjectPlace::parse(&url).unwrap()).unwrap();
        other.put("a", Bytes::from_static(b"newer")).await.unwrap();
        drop(go_on);
        let Kind::Directory(_, lane) = &hasty.kind else { panic!("it is a directory") };
        while !lane.is_idle() {
            tokio::task::yield_now().await;
        }
        assert_eq!(other.get("a").await.unwrap(), Some(Bytes::from_static(b"newer")));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left of it");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_that_never_began_puts_nothing_in_doubt() {
        let dir = tempfile::tempdir().unwrap();
        let (hasty, go_on, hung) = hanging(dir.path());
        let all = async |count: u8| {
            let put = async |n: u8| hasty.put(&n.to_string(), Bytes::from_static(b"1")).await.unwrap_err();
            let puts: Vec<_> = (0..count).map(put).collect();
            futures_util::future::join_all(puts).await
        };
        let kinds = async |count| all(count).await.into_iter().map(|error| error.kind).collect::<Vec<_>>();
        // One that is given up before it hangs ends.
        while hung.load(Ordering::SeqCst) < 16 {
            assert_eq!(kinds(1).await, [Trouble::NotSynced]);
        }
        assert_eq!(kinds(4).await, [Trouble::Passing; 4]);
        drop(go_on);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_sync_that_fails_after_it_was_given_up_puts_those_under_way_in_doubt() {
        use std::sync::mpsc;
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let open = || Storage::open(&ObjectPlace::parse(&url).unwrap()).unwrap();
        let (fail, failing) = mpsc::channel::<()>();
        let (go_on, waiting) = mpsc::channel::<()>();
        let (say, reached) = mpsc::channel();
        let waits = std::sync::Mutex::new((Some(failing), Some(waiting)));
        // The directory's sync of "a" fails late, and meanwhile the file's of "b" waits.
        let fault = move |file: &std::fs::File| {
            let meta = file.metadata()?;
            let (fails, wait) = match &mut *waits.lock().unwrap() {
                (failing, _) if meta.is_dir() => (true, failing.take()),
                (_, waiting) if meta.len() == 2 => (false, waiting.take()),
                _ => return Ok(()),
            };
            let Some(wait) = wait else { return Ok(()) };
            say.send(()).unwrap();
            wait.recv().unwrap();
            if fails { Err(ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
        };
        let hasty = open().patient_for(std::time::Duration::from_millis(50)).with_fault(Box::new(fault));
        // One that is given up before it has come to the directory's sync ends.
        let mut attempts = 0..;
        while reached.try_recv().is_err() {
            let path = format!("a{}", attempts.next().unwrap());
            let Err(error) = hasty.put_new(&path, Bytes::from_static(b"a")).await else { continue };
            assert_eq!(error.kind, Trouble::NotSynced, "{error}");
            assert!(error.reason.contains("no answer in"), "{error}");
        }
        let Storage { kind: Kind::Directory(at, _), pulse } = hasty else { panic!("it is a directory") };
        let none = at.root().syncs().failures();
        let patient = Storage { kind: Kind::Directory(at.clone(), Lane::default()), pulse };
        let other = tokio::spawn(async move { patient.put_new("b", Bytes::from_static(b"bb")).await });
        reached.recv().unwrap();
        fail.send(()).unwrap();
        while at.root().syncs().failures() == none {
            tokio::task::yield_now().await;
        }
        go_on.send(()).unwrap();
        let error = other.await.unwrap().unwrap_err();
        assert_eq!(error.kind, Trouble::NotSynced, "{error}");
        assert!(error.reason.contains("has failed meanwhile"), "{error}");
    }

    #[test]
    fn a_secret_is_hidden_before_the_text_is_cut() {
        let text = format!("{} https://me:hunter2hunter2@store/wal does not answer", "x".repeat(375));
        let error = StorageError::new(WRITING, "a", &text);
        assert!(!error.reason.contains("hunter"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_to_try_a_store_is_named_when_it_cannot_be_removed() {
        use object_store::throttle::{ThrottleConfig, ThrottledStore};

        let slow = |wait_delete_per_call| {
            let config = ThrottleConfig { wait_delete_per_call, ..ThrottleConfig::default() };
            Storage::over(Arc::new(ThrottledStore::new(InMemory::new(), config)), "")
        };
        for (takes, is_removed) in [(Duration::from_secs(1), true), (Duration::from_secs(3600), false)] {
            let storage = slow(takes);
            storage.try_write("").await.unwrap();
            let removed = storage.remove_tried(Duration::from_secs(3)).await;
            assert_eq!(removed.is_ok(), is_removed, "{removed:?}");
            let text = removed.map_or_else(|error| error.to_string(), |()| String::new());
            assert!(
                is_removed || text.contains(".walrelay-doctor") && text.contains("no answer within 3 s"),
                "{text}"
            );
            assert_eq!(storage.get(TRIED).await.unwrap().is_none(), is_removed);
        }
    }
}
