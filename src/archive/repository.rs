//! One target's objects: WAL files in and out, whatever the layout, compression and encryption.
//!
//! An object is stored first, then its checksum; they are removed in the other order. So a checksum always
//! has, or had, its object, and an object without one is somebody else's, or a crash came between: its content
//! is compared the long way. Nothing is ever replaced by other content, except by [`Repository::replace`].

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::codec::{Codec, DecodeError, Format, KeyError, Keys};
use super::layout::{Aside, Item, Layout};
use super::name::{ChunkName, FileName};
use super::sidecar::{Sha256, Sidecar};
use super::storage::{OptionError, Storage, StorageError};
use super::target::{Place, Target};

/// A target cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Its options.
    #[error("archive target \"{target}\": {source}")]
    Options {
        /// The target.
        target: String,
        /// What is wrong.
        source: OptionError,
    },
    /// Its keys.
    #[error("archive target \"{target}\": {source}")]
    Keys {
        /// The target.
        target: String,
        /// What is wrong.
        source: KeyError,
    },
    /// Nothing can be read from a command.
    #[error("archive target \"{target}\" is a command; only directories and object stores can be read")]
    Command {
        /// The target.
        target: String,
    },
}

/// A file cannot be had from a target although it may be there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The target did not answer as it should.
    #[error("archive target \"{target}\": {source}")]
    Unreachable {
        /// The target.
        target: String,
        /// What happened.
        source: StorageError,
    },
    /// The object is there and is not what was stored.
    #[error("archive target \"{target}\": \"{path}\" cannot be used: {reason}")]
    Damaged {
        /// The target.
        target: String,
        /// The object.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A file could not be stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The target did not take it.
    #[error("archive target \"{target}\": {source}")]
    Unreachable {
        /// The target.
        target: String,
        /// What happened.
        source: StorageError,
    },
    /// It could not be compressed or encrypted.
    #[error("archive target \"{target}\": could not prepare \"{file}\": {reason}")]
    Prepare {
        /// The target.
        target: String,
        /// The file.
        file: String,
        /// Why not.
        reason: String,
    },
}

/// What has become of a file that was to be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Written {
    /// It is there now.
    New {
        /// Bytes sent, after compression.
        size: u64,
    },
    /// It was there already, with the same content.
    Same,
    /// Another content is there. Both are kept.
    Conflict {
        /// Where ours is.
        kept_aside: String,
    },
}

/// An object of a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What it is.
    pub item: Item,
    /// Its path in the target.
    pub path: String,
    /// Its size there, in bytes.
    pub size: u64,
    /// When it was stored.
    pub modified: SystemTime,
}

/// One target's objects.
#[derive(Clone, Debug)]
pub struct Repository {
    name: String,
    storage: Storage,
    layout: Layout,
    codec: Arc<Codec>,
}

/// What is known about the object of a name.
enum Found {
    Nothing,
    /// It holds the content with this digest.
    Content(Sha256),
    /// Something is there that cannot be read.
    Unreadable,
}

impl Repository {
    /// Prepares access to a target; reads its key file, and nothing of the target.
    pub fn open(target: &Target) -> Result<Repository, ArchiveError> {
        let name = || target.name.clone();
        let Place::Objects(place) = &target.place else {
            return Err(ArchiveError::Command { target: name() });
        };
        let storage =
            Storage::open(place).map_err(|source| ArchiveError::Options { target: name(), source })?;
        let keys = target.key_file.as_deref().map(Keys::load).transpose();
        let keys = keys.map_err(|source| ArchiveError::Keys { target: name(), source })?;
        let codec = Codec::new(target.compression, keys, target.layout.hides_compression());
        Ok(Repository::over(storage, &target.name, target.layout, codec))
    }

    /// Objects in any storage.
    pub fn over(storage: Storage, name: &str, layout: Layout, codec: Codec) -> Repository {
        Repository { name: name.to_owned(), storage, layout, codec: Arc::new(codec) }
    }

    /// The target's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The objects as they lie there.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Where they lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The content of a file, whatever compression it was stored with; `None` if it is certainly not there.
    ///
    /// What does not match its checksum is [`ReadError::Damaged`], as is a checksum without its object.
    /// Cancel-safe.
    pub async fn read(&self, name: &FileName) -> Result<Option<Bytes>, ReadError> {
        match self.read_once(name).await {
            // It may have been replaced between the look at its checksum and the look at itself.
            Err(ReadError::Damaged { .. }) => self.read_once(name).await,
            other => other,
        }
    }

    async fn read_once(&self, name: &FileName) -> Result<Option<Bytes>, ReadError> {
        let Some(sidecar) = self.sidecar(name).await? else { return self.read_unchecked(name).await };
        let format = Format::split(&sidecar.object).1;
        let path = self.layout.file(name, format);
        let Some(stored) = self.get(&path).await? else {
            return Err(self.damaged(&path, "its checksum is there, it is not".to_owned()));
        };
        let codec = self.codec.clone();
        let decoded = blocking(move || {
            if Sha256::of(&stored) != sidecar.sha256 {
                return Err("it does not match its checksum".to_owned());
            }
            let plain = codec.decode(stored, format).map_err(|error| error.to_string())?;
            // Without compression and encryption this has just been checked.
            let checked = format == Format::PLAIN && sidecar.sha256 == sidecar.plain_sha256;
            match checked || Sha256::of(&plain) == sidecar.plain_sha256 {
                true => Ok(plain),
                false => Err("its content does not match its checksum".to_owned()),
            }
        });
        decoded.await.map(Some).map_err(|reason| self.damaged(&path, reason))
    }

    /// Reads a file that has no checksum.
    async fn read_unchecked(&self, name: &FileName) -> Result<Option<Bytes>, ReadError> {
        let Some((path, format)) = self.locate(name).await? else { return Ok(None) };
        let Some(stored) = self.get(&path).await? else { return Ok(None) };
        let decoded = self.decode(stored, format).await;
        decoded.map(Some).map_err(|error| self.damaged(&path, error.to_string()))
    }

    /// What is said about a file without reading it; `None` if there is nothing usable.
    pub async fn sidecar(&self, name: &FileName) -> Result<Option<Sidecar>, ReadError> {
        let text = self.get(&self.layout.sidecar(name)).await?;
        let stem = |sidecar: &Sidecar| Format::split(&sidecar.object).0 == name.as_str();
        Ok(text.and_then(|text| Sidecar::parse(&text)).filter(stem))
    }

    /// Path and format of the object under any of the names a file may have here.
    async fn locate(&self, name: &FileName) -> Result<Option<(String, Format)>, ReadError> {
        let own = self.codec.format();
        let formats = std::iter::once(own).chain(Format::all().filter(|format| *format != own));
        let heads = formats.map(async |format| {
            let path = self.layout.file(name, format);
            let found = self.storage.head(&path).await?;
            Ok(found.map(|_| (path, format)))
        });
        let found = try_join_all(heads).await.map_err(|source| self.unreachable(source))?;
        Ok(found.into_iter().flatten().next())
    }

    /// Stores a file, unless it is there already. Content that differs is kept aside.
    ///
    /// Safe to drop or to be killed at any moment, and to be done again: what was stored stays.
    pub async fn write(&self, name: &FileName, plain: Bytes) -> Result<Written, WriteError> {
        let sha256 = digest(&plain).await;
        for _ in 0..2 {
            match self.look(name).await.map_err(from_read)? {
                Found::Content(there) if there == sha256 => return Ok(Written::Same),
                Found::Content(_) | Found::Unreadable => return self.keep_aside(name, plain, sha256).await,
                Found::Nothing => {}
            }
            let prepared = self.prepare(name, plain.clone(), sha256).await?;
            let path = self.layout.file(name, self.codec.format());
            if self.storage.put_new(&path, prepared.stored).await.map_err(|error| self.not_written(error))? {
                self.put_sidecar(name, &prepared.sidecar).await?;
                return Ok(Written::New { size: prepared.sidecar.size });
            }
            // Somebody else was faster: compare.
        }
        let path = self.layout.file(name, self.codec.format());
        let source =
            StorageError::new("could not write", &path, &"it comes and goes; is somebody removing it?");
        Err(self.not_written(source))
    }

    /// What is there under this name. Makes a missing checksum good.
    async fn look(&self, name: &FileName) -> Result<Found, ReadError> {
        if let Some(sidecar) = self.sidecar(name).await? {
            let path = self.layout.file(name, Format::split(&sidecar.object).1);
            let there = self.storage.head(&path).await.map_err(|source| self.unreachable(source))?;
            return Ok(match there {
                Some(there) if there.size == sidecar.size => Found::Content(sidecar.plain_sha256),
                Some(_) => Found::Unreadable,
                None => Found::Nothing,
            });
        }
        let Some((path, format)) = self.locate(name).await? else { return Ok(Found::Nothing) };
        let Some(stored) = self.get(&path).await? else { return Ok(Found::Nothing) };
        let Ok(plain) = self.decode(stored.clone(), format).await else { return Ok(Found::Unreadable) };
        let object = path.rsplit('/').next().unwrap_or(&path).to_owned();
        let describe = move || Sidecar::describe(&object, &stored, &plain, Sha256::of(&plain));
        let sidecar = blocking(describe).await;
        let put = self.storage.put(&self.layout.sidecar(name), sidecar.format().into()).await;
        put.map_err(|source| self.unreachable(source))?;
        Ok(Found::Content(sidecar.plain_sha256))
    }

    async fn keep_aside(&self, name: &FileName, plain: Bytes, sha256: Sha256) -> Result<Written, WriteError> {
        let path = self.layout.aside(name, Aside::Conflict, &sha256.short(), self.codec.format());
        let prepared = self.prepare(name, plain, sha256).await?;
        self.storage.put(&path, prepared.stored).await.map_err(|error| self.not_written(error))?;
        Ok(Written::Conflict { kept_aside: path })
    }

    /// Stores a file in place of a damaged one, which is kept aside first if it is there.
    pub async fn replace(&self, name: &FileName, plain: Bytes) -> Result<(), WriteError> {
        let described = self.sidecar(name).await.map_err(from_read)?;
        let described = described.map(|sidecar| Format::split(&sidecar.object).1);
        let mut old = described.map(|format| (self.layout.file(name, format), format));
        if old.is_none() {
            old = self.locate(name).await.map_err(from_read)?;
        }
        if let Some((path, format)) = &old {
            self.copy_aside(name, path, *format).await?;
        }
        let sha256 = digest(&plain).await;
        let prepared = self.prepare(name, plain, sha256).await?;
        let path = self.layout.file(name, self.codec.format());
        self.storage.put(&path, prepared.stored).await.map_err(|error| self.not_written(error))?;
        self.put_sidecar(name, &prepared.sidecar).await?;
        if let Some((old, _)) = old.filter(|(old, _)| *old != path) {
            self.storage.delete(&old).await.map_err(|error| self.not_written(error))?;
        }
        Ok(())
    }

    async fn copy_aside(&self, name: &FileName, path: &str, format: Format) -> Result<(), WriteError> {
        let Some(stored) = self.get(path).await.map_err(from_read)? else { return Ok(()) };
        let sum = digest(&stored).await.short();
        let aside = self.layout.aside(name, Aside::Damaged, &sum, format);
        self.storage.put(&aside, stored).await.map_err(|error| self.not_written(error))
    }

    /// Stores a piece of an unfinished segment, `bytes` from its offset `start` on. The same piece again is
    /// the same object.
    pub async fn write_chunk(
        &self,
        segment: &FileName,
        start: u64,
        bytes: Bytes,
    ) -> Result<ChunkName, WriteError> {
        let (codec, segment) = (self.codec.clone(), segment.clone());
        let file = segment.to_string();
        let encoded = blocking(move || {
            let chunk = ChunkName::of(&segment, start, &bytes);
            codec.encode(&bytes).map(|stored| (chunk, stored))
        });
        let (chunk, stored) = encoded.await.map_err(|error| self.not_prepared(&file, &error))?;
        let path = self.layout.chunk(&chunk, self.chunk_format());
        self.storage.put(&path, stored).await.map_err(|error| self.not_written(error))?;
        Ok(chunk)
    }

    /// The pieces of a segment that are here, by their start.
    pub async fn chunks(&self, segment: &FileName) -> Result<Vec<ChunkName>, ReadError> {
        let listed = self.storage.list(&self.layout.chunk_dir(segment)).await;
        let listed = listed.map_err(|source| self.unreachable(source))?;
        let chunk = |path: &str| match self.layout.parse(path) {
            Item::Chunk(chunk, _) => Some(chunk),
            _ => None,
        };
        let mut chunks: Vec<_> = listed.iter().filter_map(|one| chunk(&one.path)).collect();
        chunks.sort();
        chunks.dedup();
        Ok(chunks)
    }

    /// The content of a piece; `None` if it is gone.
    pub async fn read_chunk(&self, chunk: &ChunkName) -> Result<Option<Bytes>, ReadError> {
        let own = self.chunk_format();
        for format in std::iter::once(own).chain(Format::all().filter(|format| *format != own)) {
            let path = self.layout.chunk(chunk, format);
            let Some(stored) = self.get(&path).await? else { continue };
            let plain = self.decode(stored, format).await;
            let plain = plain.map_err(|error| self.damaged(&path, error.to_string()))?;
            let (chunk, start, segment) = (chunk.clone(), chunk.start, chunk.segment.clone());
            let (plain, same) = blocking(move || {
                let same = ChunkName::of(&segment, start, &plain) == chunk;
                (plain, same)
            })
            .await;
            return match same {
                true => Ok(Some(plain)),
                false => Err(self.damaged(&path, "it does not match the checksum in its name".to_owned())),
            };
        }
        Ok(None)
    }

    /// The beginning of an unfinished segment, as far as its pieces reach without a gap; empty if there are
    /// none. Damaged pieces are passed over where others hold the same bytes.
    pub async fn read_beginning(&self, segment: &FileName) -> Result<Vec<u8>, ReadError> {
        let mut beginning = Vec::new();
        let chunks = self.chunks(segment).await?;
        loop {
            let held = beginning.len() as u64;
            let mut next: Vec<_> =
                chunks.iter().filter(|chunk| chunk.start <= held && chunk.end > held).collect();
            next.sort_by_key(|chunk| std::cmp::Reverse(chunk.end));
            let mut failure = None;
            for chunk in next {
                match self.read_chunk(chunk).await {
                    Ok(Some(bytes)) => {
                        beginning.extend_from_slice(&bytes[(held - chunk.start) as usize..]);
                        break;
                    }
                    Ok(None) => {}
                    Err(error) => failure = Some(error),
                }
            }
            match failure {
                _ if beginning.len() as u64 > held => {}
                Some(error) => return Err(error),
                None => return Ok(beginning),
            }
        }
    }

    /// Removes pieces of a segment.
    pub async fn remove_chunks(&self, chunks: &[ChunkName]) -> Result<(), WriteError> {
        let format = self.chunk_format();
        let removals = chunks.iter().map(|chunk| self.layout.chunk(chunk, format));
        let removals = removals.map(async |path| self.storage.delete(&path).await);
        try_join_all(removals).await.map(|_| ()).map_err(|error| self.not_written(error))
    }

    /// Removes all pieces of a segment, whatever their format.
    pub async fn remove_all_chunks(&self, segment: &FileName) -> Result<(), WriteError> {
        let listed = self.storage.list(&self.layout.chunk_dir(segment)).await;
        let listed = listed.map_err(|error| self.not_written(error))?;
        let ours = listed.iter().filter(|one| matches!(self.layout.parse(&one.path), Item::Chunk(..)));
        let removals = ours.map(async |one| self.storage.delete(&one.path).await);
        try_join_all(removals).await.map(|_| ()).map_err(|error| self.not_written(error))
    }

    /// Everything in the target, by path.
    pub async fn list(&self) -> Result<Vec<Entry>, ReadError> {
        let listed = self.storage.list("").await.map_err(|source| self.unreachable(source))?;
        let entry = |one: super::storage::Stored| Entry {
            item: self.layout.parse(&one.path),
            path: one.path,
            size: one.size,
            modified: one.modified,
        };
        Ok(listed.into_iter().map(entry).collect())
    }

    /// Removes an object; the checksum of a file goes with it, first.
    pub async fn remove(&self, entry: &Entry) -> Result<(), WriteError> {
        if let Item::File(name, _) = &entry.item {
            let sidecar = self.layout.sidecar(name);
            self.storage.delete(&sidecar).await.map_err(|error| self.not_written(error))?;
        }
        self.storage.delete(&entry.path).await.map_err(|error| self.not_written(error))
    }

    /// In the layout that hides compression, pieces hide it too; else names show it.
    fn chunk_format(&self) -> Format {
        self.codec.format()
    }

    async fn prepare(&self, name: &FileName, plain: Bytes, sha256: Sha256) -> Result<Prepared, WriteError> {
        let codec = self.codec.clone();
        let object = format!("{name}{}", codec.format().suffix());
        let prepared = blocking(move || {
            let stored = codec.encode(&plain)?;
            let sidecar = Sidecar::describe(&object, &stored, &plain, sha256);
            Ok(Prepared { stored, sidecar })
        });
        prepared.await.map_err(|error: std::io::Error| self.not_prepared(name.as_str(), &error))
    }

    async fn put_sidecar(&self, name: &FileName, sidecar: &Sidecar) -> Result<(), WriteError> {
        let put = self.storage.put(&self.layout.sidecar(name), sidecar.format().into()).await;
        put.map_err(|error| self.not_written(error))
    }

    async fn get(&self, path: &str) -> Result<Option<Bytes>, ReadError> {
        self.storage.get(path).await.map_err(|source| self.unreachable(source))
    }

    async fn decode(&self, stored: Bytes, format: Format) -> Result<Bytes, DecodeError> {
        let codec = self.codec.clone();
        blocking(move || codec.decode(stored, format)).await
    }

    fn unreachable(&self, source: StorageError) -> ReadError {
        ReadError::Unreachable { target: self.name.clone(), source }
    }

    fn damaged(&self, path: &str, reason: String) -> ReadError {
        ReadError::Damaged { target: self.name.clone(), path: path.to_owned(), reason }
    }

    fn not_written(&self, source: StorageError) -> WriteError {
        WriteError::Unreachable { target: self.name.clone(), source }
    }

    fn not_prepared(&self, file: &str, reason: &std::io::Error) -> WriteError {
        WriteError::Prepare { target: self.name.clone(), file: file.to_owned(), reason: reason.to_string() }
    }
}

struct Prepared {
    stored: Bytes,
    sidecar: Sidecar,
}

pub(super) fn from_read(error: ReadError) -> WriteError {
    match error {
        ReadError::Unreachable { target, source } => WriteError::Unreachable { target, source },
        ReadError::Damaged { target, path, reason } => {
            let source = StorageError::new("could not use", &path, &reason);
            WriteError::Unreachable { target, source }
        }
    }
}

async fn digest(bytes: &Bytes) -> Sha256 {
    let bytes = bytes.clone();
    blocking(move || Sha256::of(&bytes)).await
}

/// Hashing, compression and encryption are not for the runtime's workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic, and the runtime waits for it")
}

#[cfg(test)]
mod tests;
