//! A target that is an object store.

use std::future::Future;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{GetResult, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::sync::Semaphore;

use super::limit::Limit;
use super::place::ObjectPlace;
use super::upload::PARTS;
use super::{LISTING, OptionError, READING, StorageError, Stored, Trouble, options};
use crate::lane::{PATIENCE, SLOWEST};
use crate::pieces::Pieces;
use crate::pulse::Pulse;

/// After a failure credentials, authorities and the rest are read again, at most this often.
const REOPEN_EVERY: Duration = Duration::from_secs(10);
/// When the store has just refused them, this is enough: somebody may be about to write the new ones.
const REOPEN_REFUSED: Duration = Duration::from_secs(1);

/// How often everything was to be read again.
static RELOADS: AtomicU64 = AtomicU64::new(0);

/// Has every target's credentials, certificates and profile read again before it is used next.
pub(crate) fn reload() {
    RELOADS.fetch_add(1, Ordering::Relaxed);
}

/// Objects below a prefix of a bucket.
#[derive(Debug)]
pub(super) struct Objects {
    /// Where to read everything again; `None` for a store that was handed over.
    place: Option<ObjectPlace>,
    opened: RwLock<Opened>,
    prefix: ObjectPath,
    /// The bucket has answered once.
    is_there: AtomicBool,
    /// The store does not know "only if there is none".
    pub(super) replaces: AtomicBool,
    /// It does not know that for uploads in parts.
    pub(super) replaces_by_parts: AtomicBool,
    /// In memory, for parts of what is made while it is sent.
    pub(super) rooms: Arc<Semaphore>,
    pulse: Pulse,
}

/// The store with the credentials that were found at the time.
#[derive(Clone, Debug)]
struct Opened {
    store: Arc<dyn ObjectStore>,
    at: Instant,
    reloads: u64,
    /// Something has gone wrong since.
    doubtful: bool,
}

impl Opened {
    fn new(store: Arc<dyn ObjectStore>) -> Opened {
        let reloads = RELOADS.load(Ordering::Relaxed);
        Opened { store, at: Instant::now(), reloads, doubtful: false }
    }
}

impl Objects {
    pub(super) fn open(place: &ObjectPlace) -> Result<Objects, OptionError> {
        let (store, prefix) = options::store(place)?;
        // Google and Azure sign, or call, what says so in other ways than the library's.
        let replaces_by_parts = AtomicBool::new(place.url.scheme() != "s3");
        Ok(Objects { place: Some(place.clone()), replaces_by_parts, ..Objects::over(store, prefix) })
    }

    pub(super) fn over(store: Arc<dyn ObjectStore>, prefix: ObjectPath) -> Objects {
        let opened = RwLock::new(Opened::new(store));
        Objects {
            place: None,
            opened,
            prefix,
            is_there: AtomicBool::new(false),
            replaces: AtomicBool::new(false),
            replaces_by_parts: AtomicBool::new(true),
            rooms: Arc::new(Semaphore::new(PARTS)),
            pulse: Pulse::default(),
        }
    }

    /// Beats with each answer, and with each piece of one.
    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    pub(super) fn location(&self, path: &str) -> ObjectPath {
        match self.prefix.as_ref() {
            "" => ObjectPath::from(path),
            prefix => ObjectPath::from(format!("{prefix}/{path}")),
        }
    }

    /// The store, with credentials read again if there is a reason.
    pub(super) async fn store(&self) -> Arc<dyn ObjectStore> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner).clone();
        let told = opened.reloads != RELOADS.load(Ordering::Relaxed);
        if told || (opened.doubtful && opened.at.elapsed() > REOPEN_EVERY) {
            return self.reopen().await.unwrap_or(opened.store);
        }
        opened.store
    }

    /// Reads credentials, certificates and profile again; `None` if that fails, or if there is nothing to read.
    async fn reopen(&self) -> Option<Arc<dyn ObjectStore>> {
        let place = self.place.clone()?;
        let shown = place.url.to_string();
        let opened = tokio::task::spawn_blocking(move || options::store(&place)).await.ok()?;
        let store = match opened {
            Ok((store, _)) => Some(store),
            Err(error) => {
                tracing::error!(
                    "could not read the credentials for \"{shown}\" again, the old ones stay: {error}"
                );
                None
            }
        };
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        *opened = Opened::new(store.clone().unwrap_or_else(|| opened.store.clone()));
        store
    }

    /// Makes a request within its deadline, which allows for `size` bytes. If the store refuses the credentials, they
    /// are read again, and it is asked once more.
    pub(super) async fn request<T, F>(
        &self,
        size: u64,
        action: &'static str,
        path: &str,
        ask: impl Fn(Arc<dyn ObjectStore>) -> F,
    ) -> Result<object_store::Result<T>, StorageError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let answer = in_time(size, action, path, ask(self.store().await)).await;
        if answer.is_ok() {
            self.pulse.beat();
        }
        if !matches!(&answer, Ok(Err(error)) if refuses_credentials(error)) {
            if matches!(&answer, Err(_) | Ok(Err(object_store::Error::Generic { .. }))) {
                self.opened.write().unwrap_or_else(PoisonError::into_inner).doubtful = true;
            }
            return answer;
        }
        let age = self.opened.read().unwrap_or_else(PoisonError::into_inner).at.elapsed();
        if age < REOPEN_REFUSED {
            self.opened.write().unwrap_or_else(PoisonError::into_inner).doubtful = true;
            return answer;
        }
        match self.reopen().await {
            Some(store) => in_time(size, action, path, ask(store)).await,
            None => answer,
        }
    }

    /// Makes sure that an object is missing, and not the bucket: both are "not found", but only one means that there
    /// is no such file.
    async fn confirm_missing(&self, action: &'static str, path: &str) -> Result<(), StorageError> {
        if self.is_there.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Nothing is below an object that is not there.
        let below = self.location(path);
        let list = |store: Arc<dyn ObjectStore>| {
            let below = below.clone();
            async move { store.list(Some(&below)).try_next().await }
        };
        let listed = self.request(0, action, path, list).await?;
        listed.map_err(|error| failed(action, path, &error))?;
        self.is_there.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn get(&self, path: &str, limit: &Limit) -> Result<Option<Bytes>, StorageError> {
        let Some(mut coming) = self.begin_get(path, limit).await? else { return Ok(None) };
        let mut content = BytesMut::new();
        while let Some(piece) = coming.next(self, path).await? {
            content.extend_from_slice(&piece);
        }
        Ok(Some(content.freeze()))
    }

    /// Shows an object to `work` while it comes.
    pub(super) async fn read_through<T: Send + 'static>(
        &self,
        path: &str,
        limit: &Limit,
        work: impl FnOnce(&mut dyn Read) -> T + Send + 'static,
    ) -> Result<Option<T>, StorageError> {
        let Some(coming) = self.begin_get(path, limit).await? else { return Ok(None) };
        self.show(coming, path, work).await.map(Some)
    }

    async fn show<T: Send + 'static>(
        &self,
        mut coming: Coming,
        path: &str,
        work: impl FnOnce(&mut dyn Read) -> T + Send + 'static,
    ) -> Result<T, StorageError> {
        let (send, mut pieces) = Pieces::channel(1);
        let worker = tokio::task::spawn_blocking(move || work(&mut pieces));
        let come = loop {
            let next = tokio::select! {
                biased;
                // Its verdict is made: what is still to come changes nothing, and may never come.
                () = send.closed() => break Ok(()),
                next = coming.next(self, path) => next,
            };
            match next {
                Ok(Some(piece)) => {
                    if send.send(piece).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(send);
        let done = worker.await.map_err(|error| StorageError::new(READING, path, &error));
        // What it made of half an object is of no use.
        come.and(done)
    }

    async fn begin_get(&self, path: &str, limit: &Limit) -> Result<Option<Coming>, StorageError> {
        let location = self.location(path);
        let get = |store: Arc<dyn ObjectStore>| {
            let location = location.clone();
            async move { store.get(&location).await }
        };
        match self.request(0, READING, path, get).await? {
            Ok(found) => Coming::new(found, limit.clone(), path).map(Some),
            Err(object_store::Error::NotFound { .. }) => {
                self.confirm_missing(READING, path).await.map(|()| None)
            }
            Err(error) => Err(failed(READING, path, &error)),
        }
    }

    /// The next piece of an answer: however long all of it takes, it must not pause for long.
    async fn next<T>(
        &self,
        action: &'static str,
        path: &str,
        pieces: &mut (impl Stream<Item = object_store::Result<T>> + Unpin),
    ) -> Result<Option<T>, StorageError> {
        let next = in_time(0, action, path, pieces.try_next()).await?;
        self.pulse.beat();
        next.map_err(|error| failed(action, path, &error))
    }

    pub(super) async fn head(&self, path: &str) -> Result<Option<Stored>, StorageError> {
        let action = "could not look for";
        let location = self.location(path);
        let head = |store: Arc<dyn ObjectStore>| {
            let location = location.clone();
            async move { store.head(&location).await }
        };
        match self.request(0, action, path, head).await? {
            Ok(meta) => Ok(Some(stored(path.to_owned(), &meta))),
            Err(object_store::Error::NotFound { .. }) => {
                self.confirm_missing(action, path).await.map(|()| None)
            }
            Err(error) => Err(failed(action, path, &error)),
        }
    }

    /// Objects below a directory, or only those after a path.
    pub(super) async fn list(&self, dir: &str, after: Option<&str>) -> Result<Vec<Stored>, StorageError> {
        let mut found = Vec::new();
        self.visit(dir, after, |one| found.push(one)).await?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Shows each of them, in no order.
    pub(super) async fn visit(
        &self,
        dir: &str,
        after: Option<&str>,
        mut see: impl FnMut(Stored),
    ) -> Result<(), StorageError> {
        let action = LISTING;
        let below = self.location(dir);
        let after = after.map(|after| self.location(after));
        let prefix = self.prefix.as_ref();
        let skip = if prefix.is_empty() { 0 } else { prefix.len() + 1 };
        let relative = |meta: ObjectMeta| {
            let path = meta.location.as_ref().get(skip..).unwrap_or_default().to_owned();
            stored(path, &meta)
        };
        let store = self.store().await;
        let mut listing = match &after {
            Some(after) => store.list_with_offset(Some(&below), after),
            None => store.list(Some(&below)),
        };
        while let Some(one) = self.next(action, dir, &mut listing).await? {
            see(relative(one));
        }
        Ok(())
    }

    pub(super) async fn delete(&self, path: &str) -> Result<(), StorageError> {
        let action = "could not remove";
        let location = self.location(path);
        let delete = |store: Arc<dyn ObjectStore>| {
            let location = location.clone();
            async move { store.delete(&location).await }
        };
        match self.request(0, action, path, delete).await? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(action, path, &error)),
        }
    }
}

/// An object on its way here.
struct Coming {
    pieces: BoxStream<'static, object_store::Result<Bytes>>,
    limit: Limit,
    /// What the store says, and what has come of it.
    size: u64,
    come: u64,
    /// What is kept until it is known that it is not too large.
    beginning: Option<BytesMut>,
}

impl Coming {
    fn new(found: GetResult, limit: Limit, path: &str) -> Result<Coming, StorageError> {
        let size = found.range.end - found.range.start;
        let look = limit.must_look(size).map_err(|reason| too_large(path, &reason))?;
        let (pieces, beginning) = (found.into_stream(), look.then(BytesMut::new));
        Ok(Coming { pieces, limit, size, come: 0, beginning })
    }

    async fn next(&mut self, from: &Objects, path: &str) -> Result<Option<Bytes>, StorageError> {
        while let Some(piece) = from.next(READING, path, &mut self.pieces).await? {
            self.come += piece.len() as u64;
            if self.come > self.size {
                return Err(too_large(path, "it is longer than the store said"));
            }
            let Some(mut beginning) = self.beginning.take() else { return Ok(Some(piece)) };
            beginning.extend_from_slice(&piece);
            if beginning.len() >= self.limit.peek || self.come == self.size {
                self.limit.judge(&beginning, self.size).map_err(|reason| too_large(path, &reason))?;
                return Ok(Some(beginning.freeze()));
            }
            self.beginning = Some(beginning);
        }
        Ok(None)
    }
}

fn too_large(path: &str, reason: &str) -> StorageError {
    StorageError { kind: Trouble::TooLarge, ..StorageError::new(READING, path, &reason) }
}

fn stored(path: String, meta: &ObjectMeta) -> Stored {
    Stored { path, size: meta.size, modified: meta.last_modified.into() }
}

pub(super) fn failed(action: &'static str, path: &str, error: &object_store::Error) -> StorageError {
    StorageError::new(action, path, error)
}

/// Whether other credentials might help. Old session tokens are a bad request to S3.
fn refuses_credentials(error: &object_store::Error) -> bool {
    let expired = ["ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"];
    match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => true,
        object_store::Error::Generic { .. } => {
            let text = error.to_string();
            expired.iter().any(|code| text.contains(code))
        }
        _ => false,
    }
}

/// A request with its deadline, which allows for the bytes it moves.
pub(super) async fn in_time<T>(
    size: u64,
    action: &'static str,
    path: &str,
    request: impl Future<Output = T>,
) -> Result<T, StorageError> {
    let limit = PATIENCE + Duration::from_secs(size / SLOWEST);
    let late = |_| StorageError::new(action, path, &format_args!("no answer in {} s", limit.as_secs()));
    tokio::time::timeout(limit, request).await.map_err(late)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use futures_util::stream;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn what_is_still_to_come_is_not_waited_for_once_the_verdict_is_made() {
        let objects = Objects::over(Arc::new(InMemory::new()), ObjectPath::default());
        let first = stream::iter([Ok(Bytes::from_static(b"other"))]);
        let coming = Coming {
            pieces: first.chain(stream::pending()).boxed(),
            limit: Limit::most(100),
            size: 100,
            come: 0,
            beginning: None,
        };
        let look = |content: &mut dyn Read| {
            let mut begun = [0; 4];
            content.read_exact(&mut begun).map(|()| begun)
        };
        let shown = objects.show(coming, "a", look);
        let shown = tokio::time::timeout(PATIENCE / 2, shown).await.expect("it has been decided");
        assert_eq!(&shown.unwrap().unwrap(), b"othe");
    }
}
