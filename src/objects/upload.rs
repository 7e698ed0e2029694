//! Objects on their way into a store: small ones in one request, large ones in parts.
//!
//! What is compressed or encrypted is sent while it is made: in memory are the part being made, the next one and the one
//! on its way, and no more than [`PARTS`] of one target.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::bucket::{Objects, failed, in_time};
use super::connect::only_if_none;
use super::{StorageError, WRITING};

/// Bytes of a part of what lies ready. S3 takes 5 MB and more, and 10000 of them.
const READY: usize = 16 << 20;
/// From this size on, that is sent in parts, too.
const LARGE: usize = 4 * READY;
/// Bytes of a part of what is made while it is sent.
const PART: usize = 6 << 20;
/// Parts of a target that may be in memory, whatever is on its way there.
pub(super) const PARTS: usize = 4;
/// How long the store is asked to forget an upload that failed.
const ABORT: Duration = Duration::from_secs(5);

/// Stores an object; with `create` only if there is none, and tells whether it did.
pub(super) async fn put(
    objects: &Objects,
    path: &str,
    content: Bytes,
    create: bool,
) -> Result<bool, StorageError> {
    if content.len() <= LARGE {
        return single(objects, path, content, create).await;
    }
    let starts = (0..content.len()).step_by(READY);
    let parts = starts.map(|start| content.slice(start..content.len().min(start + READY)));
    multipart(objects, path, create, stream::iter(parts.map(|part| Ok(Part::ready(part))))).await
}

/// Stores what `make` writes while it is written.
pub(super) async fn put_made<T: Send + 'static>(
    objects: &Objects,
    path: &str,
    create: bool,
    make: impl FnOnce(&mut dyn Write) -> io::Result<T> + Send + 'static,
) -> Result<Option<T>, StorageError> {
    let (send, mut parts) = mpsc::channel(1);
    let mut out = Parts { part: BytesMut::new(), room: None, rooms: objects.rooms.clone(), send };
    let maker = tokio::task::spawn_blocking(move || {
        let made = make(&mut out)?;
        out.send_part(true)?;
        Ok(made)
    });
    let not_made = |error: io::Error| StorageError::of_io(WRITING, path, &error);
    let first = match parts.recv().await {
        Some(first) if !first.is_last => first,
        only => {
            // All there is; whether it is whole the maker knows.
            let made = maker.await.map_err(io::Error::from).flatten().map_err(not_made)?;
            let only = only.unwrap_or_else(|| Part::ready(Bytes::new()));
            let is_new = single(objects, path, only.bytes.clone(), create).await?;
            return Ok(is_new.then_some(made));
        }
    };
    let rest = stream::unfold(parts, async |mut parts| Some((parts.recv().await?, parts)));
    let all = stream::iter([first]).chain(rest).map(Ok);
    // The last word is the maker's: it comes before the upload is complete.
    let mut made = None;
    let last = stream::once(async {
        match maker.await.map_err(io::Error::from).flatten() {
            Ok(done) => {
                made = Some(done);
                Ok(Part::ready(Bytes::new()))
            }
            Err(error) => Err(error),
        }
    });
    let is_new = multipart(objects, path, create, all.chain(last)).await?;
    Ok(made.filter(|_| is_new))
}

/// A part on its way.
struct Part {
    bytes: Bytes,
    is_last: bool,
    /// Room in memory, until it is sent.
    _room: Option<OwnedSemaphorePermit>,
}

impl Part {
    /// One that takes no memory of its own.
    fn ready(bytes: Bytes) -> Part {
        Part { bytes, is_last: false, _room: None }
    }
}

/// Collects parts for [`put_made`].
struct Parts {
    part: BytesMut,
    /// For the part that is begun.
    room: Option<OwnedSemaphorePermit>,
    rooms: Arc<Semaphore>,
    send: mpsc::Sender<Part>,
}

impl Parts {
    fn send_part(&mut self, is_last: bool) -> io::Result<()> {
        let part = Part { bytes: std::mem::take(&mut self.part).freeze(), is_last, _room: self.room.take() };
        // Nobody takes it any more when the upload has failed.
        self.send.blocking_send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Waits until there is room for one more part. Each that has some gets rid of it without more.
    fn begin_part(&mut self) -> io::Result<()> {
        let room = tokio::runtime::Handle::current().block_on(self.rooms.clone().acquire_owned());
        self.room = Some(room.map_err(io::Error::other)?);
        Ok(())
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.part.len() >= PART {
            self.send_part(false)?;
        }
        if self.room.is_none() {
            self.begin_part()?;
        }
        let taken = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn single(objects: &Objects, path: &str, content: Bytes, create: bool) -> Result<bool, StorageError> {
    let conditional = create && !objects.replaces.load(Ordering::Relaxed);
    if create && !conditional && objects.head(path).await?.is_some() {
        return Ok(false);
    }
    let answer = send(objects, path, &content, conditional).await?;
    match answer {
        Ok(_) => Ok(true),
        Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })
            if create =>
        {
            Ok(false)
        }
        Err(error) if conditional && knows_no_conditions(&error) => {
            if !objects.replaces.swap(true, Ordering::Relaxed) {
                warn_of_replacing(&super::one_line(&error.to_string()));
            }
            Box::pin(single(objects, path, content, create)).await
        }
        Err(error) => Err(failed(WRITING, path, &error)),
    }
}

async fn send(
    objects: &Objects,
    path: &str,
    content: &Bytes,
    conditional: bool,
) -> Result<object_store::Result<object_store::PutResult>, StorageError> {
    let location = objects.location(path);
    let put = |store: Arc<dyn ObjectStore>| {
        let (location, content) = (location.clone(), content.clone());
        let mode = if conditional { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        async move { store.put_opts(&location, content.into(), options).await }
    };
    objects.request(content.len() as u64, WRITING, path, put).await
}

/// 501, and what the library says of stores that it knows to be so.
fn knows_no_conditions(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => true,
        object_store::Error::Generic { .. } => {
            let text = error.to_string();
            text.contains("status code: 501") || text.contains("NotImplemented")
        }
        _ => false,
    }
}

fn warn_of_replacing(how: &str) {
    tracing::warn!(
        "the object store does not know If-None-Match ({how}): objects are looked for before they are written, and of two \
         relays that write one at the same moment the later one replaces the other's"
    );
}

/// Stores an object in parts.
async fn multipart(
    objects: &Objects,
    path: &str,
    create: bool,
    parts: impl Stream<Item = io::Result<Part>>,
) -> Result<bool, StorageError> {
    // Before all its bytes are sent in vain.
    if create && objects.head(path).await?.is_some() {
        return Ok(false);
    }
    let location = objects.location(path);
    let begin = |store: Arc<dyn ObjectStore>| {
        let location = location.clone();
        async move { store.put_multipart(&location).await }
    };
    let begun = objects.request(0, WRITING, path, begin).await?;
    let mut upload = begun.map_err(|error| failed(WRITING, path, &error))?;
    let sent = send_parts(&mut upload, path, parts).await;
    let done = match sent {
        Ok(()) if create => complete_new(objects, &mut upload, path).await,
        Ok(()) => complete(&mut upload, path).await.map(|()| true),
        Err(error) => Err(error),
    };
    if !matches!(done, Ok(true)) {
        // Else they lie there, unseen and paid for, until a rule of the bucket removes them.
        let _ = tokio::time::timeout(ABORT, upload.abort()).await;
    }
    done
}

async fn send_parts(
    upload: &mut Box<dyn MultipartUpload>,
    path: &str,
    parts: impl Stream<Item = io::Result<Part>>,
) -> Result<(), StorageError> {
    let mut parts = std::pin::pin!(parts);
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| StorageError::of_io(WRITING, path, &error))?;
        if part.bytes.is_empty() {
            continue;
        }
        let (len, bytes) = (part.bytes.len() as u64, part.bytes.clone());
        let sent = in_time(len, WRITING, path, upload.put_part(bytes.into())).await?;
        sent.map_err(|error| failed(WRITING, path, &error))?;
    }
    Ok(())
}

async fn complete(upload: &mut Box<dyn MultipartUpload>, path: &str) -> Result<(), StorageError> {
    let completed = in_time(0, WRITING, path, upload.complete()).await?;
    completed.map(drop).map_err(|error| failed(WRITING, path, &error))
}

/// Only if there is no such object; tells whether there was none.
async fn complete_new(
    objects: &Objects,
    upload: &mut Box<dyn MultipartUpload>,
    path: &str,
) -> Result<bool, StorageError> {
    if objects.replaces_by_parts.load(Ordering::Relaxed) {
        // The upload may have taken long.
        return match objects.head(path).await? {
            Some(_) => Ok(false),
            None => complete(upload, path).await.map(|()| true),
        };
    }
    let completed = in_time(0, WRITING, path, only_if_none(upload.complete())).await?;
    let (completed, is_known) = completed;
    if !is_known && !objects.replaces_by_parts.swap(true, Ordering::Relaxed) {
        warn_of_replacing("501 for an upload in parts");
    }
    match completed {
        Ok(_) => Ok(true),
        Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
            Ok(false)
        }
        Err(error) => Err(failed(WRITING, path, &error)),
    }
}
