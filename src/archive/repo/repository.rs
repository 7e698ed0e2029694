//! One target's objects: WAL files in and out, whatever the layout, compression and encryption.
//!
//! An object is stored first, then its checksum; they are removed in the other order. So a checksum always
//! has, or had, its object, and an object without one is somebody else's, or a crash came between: its content
//! is compared the long way. Nothing is ever replaced by other content, except by [`Repository::replace`].

mod compare;
mod sent;
mod show;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::codec::{Codec, DecodeError, Format, KeyError, Keys};
use super::layout::{Item, Layout};
use super::name::{ChunkName, FileKind, FileName};
use super::sidecar::{Sha256, Sidecar};
use super::target::{Place, Target};
use crate::objects::limit::{self, Limit};
use crate::objects::{OptionError, Storage, StorageError, Stored, Trouble};
pub(crate) use sent::Keep;
use sent::Sent;
pub use show::Look;

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
    /// It is no place for an archive.
    #[error("archive target \"{target}\": {reason}")]
    Refused {
        /// The target.
        target: String,
        /// Why not.
        reason: String,
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
    /// Something is there under this name that is not finished.
    #[error("archive target \"{target}\": \"{path}\" is being written by somebody else ({reason})")]
    Unfinished {
        /// The target.
        target: String,
        /// The object.
        path: String,
        /// What shows it.
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

impl Entry {
    fn of(layout: Layout, one: Stored) -> Entry {
        Entry { item: layout.parse(&one.path), path: one.path, size: one.size, modified: one.modified }
    }
}

/// One target's objects.
#[derive(Clone, Debug)]
pub struct Repository {
    name: String,
    storage: Storage,
    layout: Layout,
    codec: Arc<Codec>,
    /// Whether files turn up here that others have written: then it is cheaper to look before a file is sent.
    has_others: Arc<AtomicBool>,
    sent: Sent,
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
        Repository {
            name: name.to_owned(),
            storage,
            layout,
            codec: Arc::new(codec),
            has_others: Arc::new(AtomicBool::new(true)),
            sent: Sent::default(),
        }
    }

    /// Whether both encrypt with the same keys.
    pub(crate) fn has_keys_of(&self, other: &Repository) -> bool {
        match (self.codec.keys(), other.codec.keys()) {
            (None, None) => true,
            (Some(one), Some(other)) => one.are(other),
            _ => false,
        }
    }

    /// The target's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The objects as they lie there.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Whether what it stores cannot be read back with the keys at hand.
    pub(crate) fn only_writes(&self) -> bool {
        self.codec.only_writes()
    }

    /// Goes on with what was kept of objects that were sent without an answer, and has `keep` keep what comes: where they
    /// cannot be read back, nothing else tells them from somebody else's after a restart.
    pub(crate) fn keep_sent(&self, kept: &str, keep: Keep) {
        self.sent.keep(kept, keep);
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
        let Some(stored) = self.get(&path, self.limit(name, format)).await? else {
            return Err(self.damaged(&path, "its checksum is there, it is not".to_owned()));
        };
        let codec = self.codec.clone();
        let decoded = self.ours(move || {
            if Sha256::of(&stored) != sidecar.sha256 {
                return Err(DecodeError::Mismatch("it does not match its checksum".to_owned()));
            }
            let plain = codec.decode(stored, format)?;
            // Without compression and encryption this has just been checked.
            let checked = format == Format::PLAIN && sidecar.sha256 == sidecar.plain_sha256;
            match checked || Sha256::of(&plain) == sidecar.plain_sha256 {
                true => Ok(plain),
                false => Err(DecodeError::Mismatch("its content does not match its checksum".to_owned())),
            }
        });
        decoded.await.map(Some).map_err(|error| self.undecoded(&path, error))
    }

    /// Work on what has come from the place, during which it owes us nothing: its silence is not counted meanwhile.
    async fn ours<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let mut done = std::pin::pin!(blocking(work));
        loop {
            match tokio::time::timeout(AT_WORK, &mut done).await {
                Ok(done) => return done,
                Err(_) => self.storage.pulse().beat(),
            }
        }
    }

    /// Reads a file that has no checksum.
    async fn read_unchecked(&self, name: &FileName) -> Result<Option<Bytes>, ReadError> {
        let Some((path, format, _)) = self.locate(name).await? else { return Ok(None) };
        let Some(stored) = self.get(&path, self.limit(name, format)).await? else { return Ok(None) };
        let decoded = self.decode(None, stored, format).await;
        decoded.map(Some).map_err(|error| self.undecoded(&path, error))
    }

    /// What is said about a file without reading it; `None` if there is nothing usable.
    pub async fn sidecar(&self, name: &FileName) -> Result<Option<Sidecar>, ReadError> {
        let text = self.get(&self.layout.sidecar(name), Limit::most(limit::LINE)).await?;
        let stem = |sidecar: &Sidecar| Format::split(&sidecar.object).0 == name.as_str();
        Ok(text.and_then(|text| Sidecar::parse(&text)).filter(stem))
    }

    /// How large what is stored for a file may be.
    fn limit(&self, name: &FileName, format: Format) -> Limit {
        match name.kind() {
            FileKind::Segment | FileKind::Partial => self.limit_of_segment(format),
            FileKind::History | FileKind::Backup => Limit::most(limit::TEXT),
        }
    }

    fn limit_of_segment(&self, format: Format) -> Limit {
        if format == Format::PLAIN && !self.layout.hides_compression() {
            return Limit::segment();
        }
        let codec = self.codec.clone();
        Limit::packed_segment(move |beginning| codec.header(beginning, format))
    }

    /// Path and format of the object under any of the names a file may have here, and how a listing shows it.
    async fn locate(&self, name: &FileName) -> Result<Option<(String, Format, Stored)>, ReadError> {
        let own = self.codec.format();
        let formats = std::iter::once(own).chain(Format::all().filter(|format| *format != own));
        let heads = formats.map(async |format| {
            let path = self.layout.file(name, format);
            let found = self.storage.head(&path).await?;
            Ok(found.map(|found| (path, format, found)))
        });
        let found = try_join_all(heads).await.map_err(|source| self.unreachable(source))?;
        Ok(found.into_iter().flatten().next())
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
            let Some(stored) = self.get(&path, self.limit_of_chunk(chunk, format)).await? else { continue };
            // Only the first one begins as a segment does; others may be almost as long.
            let len = (chunk.start > 0).then_some(chunk.end - chunk.start);
            let plain = self.decode(len, stored, format).await;
            let plain = plain.map_err(|error| self.undecoded(&path, error))?;
            let (chunk, start, segment) = (chunk.clone(), chunk.start, chunk.segment.clone());
            let (plain, same) = self
                .ours(move || {
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

    /// A piece is as long as its name says; the first one may say more than there is of a segment.
    fn limit_of_chunk(&self, chunk: &ChunkName, format: Format) -> Limit {
        let len = chunk.end - chunk.start;
        match len + limit::overhead(len) {
            most if most <= limit::UNSEEN || chunk.start > 0 => Limit::most(most),
            _ => self.limit_of_segment(format),
        }
    }

    /// The beginning of an unfinished segment, as far as its pieces reach without a gap; empty if there are
    /// none. Damaged pieces are passed over where others hold the same bytes.
    pub async fn read_beginning(&self, segment: &FileName) -> Result<Vec<u8>, ReadError> {
        let mut beginning = Vec::new();
        let chunks = self.chunks(segment).await?;
        loop {
            let held = beginning.len() as u64;
            let segment = limit::segment_size(&beginning).unwrap_or(limit::UNSEEN);
            let is_there = |chunk: &&ChunkName| {
                chunk.start <= held && chunk.end > held && (held == 0 || chunk.end <= segment)
            };
            let mut next: Vec<_> = chunks.iter().filter(is_there).collect();
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
        Ok(listed.into_iter().map(|one| Entry::of(self.layout, one)).collect())
    }

    /// Shows everything in the target to `see`, in no order; what it has made of that. Only that is in memory.
    pub(crate) async fn visit<T: Send + 'static>(
        &self,
        seen: T,
        see: impl Fn(&mut T, Entry) + Send + 'static,
    ) -> Result<T, ReadError> {
        let layout = self.layout;
        let visited = self.storage.visit("", seen, move |seen, one| see(seen, Entry::of(layout, one)));
        visited.await.map_err(|source| self.unreachable(source))
    }

    /// Files that come after this one in the order of their names, those included of which there are only pieces: of
    /// its timeline and of all later ones.
    pub async fn later(&self, name: &FileName) -> Result<Vec<FileName>, ReadError> {
        let mut later = BTreeSet::new();
        for (dir, after) in self.layout.places_after(name) {
            let listed = self.storage.names_after(dir, &after).await;
            let listed = listed.map_err(|source| self.unreachable(source))?;
            let file = |path: String| match self.layout.parse(&path) {
                Item::File(file, _) => Some(file),
                Item::Chunk(chunk, _) => Some(chunk.segment),
                _ => None,
            };
            later.extend(listed.into_iter().filter_map(file).filter(|file| file > name));
        }
        Ok(later.into_iter().collect())
    }

    /// Nothing is missing where there never was anything: see [`Storage::looks_used`].
    pub async fn looks_used(&self) -> Result<(), ReadError> {
        self.storage.looks_used().await.map_err(|source| self.unreachable(source))
    }

    /// It is the one that was archived to: see [`Storage::is_marked`].
    pub(crate) async fn is_marked(&self, marker: String) -> Result<(), ReadError> {
        self.storage.is_marked(marker).await.map_err(|source| self.unreachable(source))
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

    async fn get(&self, path: &str, limit: Limit) -> Result<Option<Bytes>, ReadError> {
        self.storage.get_within(path, limit).await.map_err(|source| match source.kind {
            Trouble::TooLarge => self.damaged(path, source.reason),
            _ => self.unreachable(source),
        })
    }

    async fn decode(&self, most: Option<u64>, stored: Bytes, format: Format) -> Result<Bytes, DecodeError> {
        let codec = self.codec.clone();
        self.ours(move || codec.decode_up_to(most, stored, format)).await
    }

    fn unreachable(&self, source: StorageError) -> ReadError {
        ReadError::Unreachable { target: self.name.clone(), source }
    }

    fn damaged(&self, path: &str, reason: String) -> ReadError {
        ReadError::Damaged { target: self.name.clone(), path: path.to_owned(), reason }
    }

    /// What is wrong with an object, or with us.
    fn undecoded(&self, path: &str, error: DecodeError) -> ReadError {
        match error {
            DecodeError::Memory(error) => {
                self.unreachable(StorageError::of_io("could not unpack", path, &error))
            }
            other => self.damaged(path, other.to_string()),
        }
    }

    fn not_written(&self, source: StorageError) -> WriteError {
        WriteError::Unreachable { target: self.name.clone(), source }
    }
}

pub(crate) fn from_read(error: ReadError) -> WriteError {
    match error {
        ReadError::Unreachable { target, source } => WriteError::Unreachable { target, source },
        ReadError::Damaged { target, path, reason } => {
            let source = StorageError::new("could not use", &path, &reason);
            WriteError::Unreachable { target, source }
        }
    }
}

/// How often work of our own is heard of.
const AT_WORK: Duration = Duration::from_millis(250);

/// Hashing, compression and encryption are not for the runtime's workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic, and the runtime waits for it")
}

#[cfg(test)]
mod s3_tests;
#[cfg(test)]
mod tests;
