//! Files into a target.
//!
//! In an object store a new file costs two requests: itself and its checksum, both "only if there is none". What is
//! there is looked at only if that says so; if others write to the same target, before it is sent.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::compare::{self, Compared};
use super::*;
use crate::archive::repo::content::Content;
use crate::archive::repo::layout::Aside;
use crate::archive::repo::sidecar::Summing;
use crate::pieces::Pieces;

/// What nobody has changed for this time, nobody is writing.
const SETTLED: Duration = Duration::from_secs(60);

/// Bytes that go from one object to another at a time, and how many such pieces may be under way.
const PIECE: usize = 128 << 10;
const PIECES: usize = 4;

/// What is there under a name.
enum Found {
    Nothing,
    /// Our content, in this object.
    Same {
        path: String,
        size: u64,
    },
    /// Other content.
    Other,
    /// What may be left of our content that was lost, or nothing that anybody could use.
    Left {
        path: String,
        format: Format,
    },
    /// Something that somebody is still writing, or has left half.
    Unfinished {
        path: String,
        reason: String,
    },
}

/// Digest and size of what is read.
fn summed(stored: &mut dyn io::Read) -> io::Result<(Sha256, u64)> {
    let mut sum = Summing::new(io::sink());
    io::copy(stored, &mut sum).map(|_| sum.finish())
}

impl Repository {
    /// Stores a file, unless it is there already. Content that differs is kept aside.
    ///
    /// Safe to drop or to be killed at any moment, and to be done again: what was stored stays.
    ///
    /// # Errors
    /// [`WriteError::Unfinished`] as long as somebody else is writing it.
    pub async fn write(&self, name: &FileName, plain: Bytes) -> Result<Written, WriteError> {
        self.send(name, plain.into(), false).await
    }

    /// Like [`write`](Self::write), for a file that could not be synced: where its content is there it is stored once more,
    /// because what can be read may be lost nevertheless.
    pub async fn write_again(&self, name: &FileName, plain: Bytes) -> Result<Written, WriteError> {
        self.send(name, plain.into(), true).await
    }

    /// Like [`write`](Self::write), or, `again`, like [`write_again`](Self::write_again), for what need not be in memory.
    pub async fn send(&self, name: &FileName, plain: Content, again: bool) -> Result<Written, WriteError> {
        let sha256 = self.digest(name, &plain).await?;
        let looks = || self.storage.is_directory() || self.has_others.load(Ordering::Relaxed);
        for _ in 0..3 {
            if looks() || again {
                match self.look(name, &plain, sha256, again).await.map_err(from_read)? {
                    Found::Same { path, .. } if again => {
                        self.put_again(name, &path, plain, sha256).await?;
                        return Ok(Written::Same);
                    }
                    Found::Left { path, format } => {
                        // Nothing tells for certain that it is no one else's.
                        self.copy_aside(name, &path, format).await?;
                        self.put_again(name, &path, plain, sha256).await?;
                        return Ok(Written::Same);
                    }
                    Found::Same { path, size } => {
                        self.make_durable(name, &path, size).await?;
                        return Ok(Written::Same);
                    }
                    Found::Other => return self.keep_aside(name, plain, sha256).await,
                    Found::Unfinished { path, reason } => {
                        return Err(WriteError::Unfinished { target: self.name.clone(), path, reason });
                    }
                    Found::Nothing => {}
                }
            }
            let path = self.layout.file(name, self.codec.format());
            if let Some(sidecar) = self.put_file(name, &path, plain.clone(), sha256, true).await? {
                let is_ours = self.put_sidecar_of_new(name, &path, &sidecar).await?;
                if is_ours {
                    self.has_others.store(self.storage.is_directory(), Ordering::Relaxed);
                    return Ok(Written::New { size: sidecar.size });
                }
            }
            // Somebody else was faster: compare.
            self.has_others.store(true, Ordering::Relaxed);
        }
        let path = self.layout.file(name, self.codec.format());
        let source =
            StorageError::new("could not write", &path, &"it comes and goes; is somebody removing it?");
        Err(self.not_written(source))
    }

    /// What others have written, or we before a crash, counts when it is on the disk, its name and checksum included.
    async fn make_durable(&self, name: &FileName, path: &str, size: u64) -> Result<(), WriteError> {
        for (object, size) in [(path, size), (&self.layout.sidecar(name), 0)] {
            self.storage.sync(object, size).await.map_err(|error| self.not_written(error))?;
        }
        Ok(())
    }

    /// What can be read of it may be in memory only, and something else on the disk: nothing of it is used.
    async fn put_again(
        &self,
        name: &FileName,
        found: &str,
        plain: Content,
        sha256: Sha256,
    ) -> Result<(), WriteError> {
        let path = self.layout.file(name, self.codec.format());
        if let Some(sidecar) = self.put_file(name, &path, plain, sha256, false).await? {
            self.put_sidecar(name, &sidecar).await?;
        }
        if found != path {
            self.storage.delete(found).await.map_err(|error| self.not_written(error))?;
        }
        Ok(())
    }

    /// What is there under this name. Makes a missing or wrong checksum of our content good. `lost`: of what should be
    /// our content anything may be left.
    async fn look(
        &self,
        name: &FileName,
        plain: &Content,
        sha256: Sha256,
        lost: bool,
    ) -> Result<Found, ReadError> {
        let Some(sidecar) = self.sidecar(name).await? else {
            return match self.locate(name).await? {
                Some((path, format, stored)) if lost && self.storage.is_directory() => {
                    self.look_at_rest(name, path, format, stored.size, plain).await
                }
                Some((path, format, stored)) => {
                    self.compare(name, path, format, stored, plain, sha256, None).await
                }
                None => Ok(Found::Nothing),
            };
        };
        let format = Format::split(&sidecar.object).1;
        let path = self.layout.file(name, format);
        match self.storage.head(&path).await.map_err(|source| self.unreachable(source))? {
            None => Ok(Found::Nothing),
            Some(there) if sidecar.plain_sha256 == sha256 && (lost || there.size == sidecar.size) => {
                Ok(Found::Same { path, size: there.size })
            }
            Some(there) => self.compare(name, path, format, there, plain, sha256, Some(sidecar)).await,
        }
    }

    /// What is there, without a checksum, in place of what may be lost: short, full of zeros, or somebody else's. Only
    /// that is left alone, if it is whole.
    async fn look_at_rest(
        &self,
        name: &FileName,
        path: String,
        format: Format,
        size: u64,
        plain: &Content,
    ) -> Result<Found, ReadError> {
        Ok(match self.compared(name, &path, format, plain, true).await? {
            None => Found::Nothing,
            Some(Compared::Same { .. } | Compared::Beginning { .. }) => Found::Same { path, size },
            Some(Compared::Other { is_good: true }) => Found::Other,
            Some(Compared::Other { is_good: false }) => Found::Left { path, format },
        })
    }

    /// Compares what is there byte for byte, while it comes; `None` if there is certainly nothing. `judged`: whether
    /// other content is good, too.
    async fn compared(
        &self,
        name: &FileName,
        path: &str,
        format: Format,
        plain: &Content,
        judged: bool,
    ) -> Result<Option<Compared>, ReadError> {
        let (codec, of, file) = (self.codec.clone(), plain.clone(), name.clone());
        let look = move |stored: &mut dyn io::Read| compare::with(stored, &codec, format, &of, &file, judged);
        // Its beginning need not be WAL: what a failed sync has left may be zeros.
        let most = plain.len().max(limit::UNSEEN);
        let most = Limit::most(most + limit::overhead(most));
        match self.storage.read_through(path, most, look).await {
            Ok(compared) => {
                let compared = compared.transpose();
                compared
                    .map_err(|error| self.unreachable(StorageError::of_io("could not compare", path, &error)))
            }
            // Whose it is does not matter: it is no file of ours.
            Err(error) if error.kind == Trouble::TooLarge => Ok(Some(Compared::Other { is_good: true })),
            Err(source) => Err(self.unreachable(source)),
        }
    }

    /// What is there, and what that means.
    #[expect(clippy::too_many_arguments, reason = "one place, and all of them are known only there")]
    async fn compare(
        &self,
        name: &FileName,
        path: String,
        format: Format,
        there: Stored,
        plain: &Content,
        sha256: Sha256,
        described: Option<Sidecar>,
    ) -> Result<Found, ReadError> {
        // A store shows whole objects only, and a checksum that fits was made of a whole file.
        let whole =
            !self.storage.is_directory() || described.is_some_and(|sidecar| sidecar.size == there.size);
        let compared = match self.sent_before(&path, there.size, sha256).await? {
            Some(sidecar) => Some(Compared::Same { sha256: sidecar.sha256, size: sidecar.size }),
            None => self.compared(name, &path, format, plain, !whole).await?,
        };
        let Some(compared) = compared else { return Ok(Found::Nothing) };
        if let Compared::Same { sha256: stored, size } = compared {
            // Before its checksum says that it is there, it is.
            self.storage.sync(&path, there.size).await.map_err(|source| self.unreachable(source))?;
            let object = path.rsplit('/').next().unwrap_or(&path).to_owned();
            let plain_size = plain.len();
            let sidecar = Sidecar { object, sha256: stored, size, plain_sha256: sha256, plain_size };
            let put = self.storage.put(&self.layout.sidecar(name), sidecar.format().into()).await;
            put.map_err(|source| self.unreachable(source))?;
            self.sent.forget(&path);
            return Ok(Found::Same { path, size });
        }
        if whole {
            return Ok(Found::Other);
        }
        let unfinished = |reason: String| Found::Unfinished { path: path.clone(), reason };
        let (held, all) = (there.size, plain.len());
        Ok(match compared {
            Compared::Beginning { len } => {
                unfinished(format!("{len} of {all} bytes; remove it if nobody does"))
            }
            Compared::Other { is_good: true } => Found::Other,
            _ if there.modified.elapsed().is_ok_and(|age| age > SETTLED) => Found::Other,
            _ => unfinished(format!("{held} bytes, no whole file, changed less than a minute ago")),
        })
    }

    /// What we have sent ourselves without an answer, if that is what is there.
    async fn sent_before(
        &self,
        path: &str,
        size: u64,
        plain_sha256: Sha256,
    ) -> Result<Option<Sidecar>, ReadError> {
        let is_it = |sidecar: &Sidecar| sidecar.size == size && sidecar.plain_sha256 == plain_sha256;
        let attempts: Vec<_> = self.sent.attempts(path).into_iter().filter(is_it).collect();
        if attempts.is_empty() {
            return Ok(None);
        }
        let read = self.storage.read_through(path, Limit::most(size), summed).await;
        let Some(Ok(found)) = read.map_err(|source| self.unreachable(source))? else { return Ok(None) };
        Ok(attempts.into_iter().find(|sidecar| (sidecar.sha256, sidecar.size) == found))
    }

    async fn keep_aside(
        &self,
        name: &FileName,
        plain: Content,
        sha256: Sha256,
    ) -> Result<Written, WriteError> {
        let path = self.layout.aside(name, Aside::Conflict, &sha256.short(), self.codec.format());
        self.put_file(name, &path, plain, sha256, false).await?;
        Ok(Written::Conflict { kept_aside: path })
    }

    /// Stores a file in place of a damaged one, which is kept aside first if it is there.
    pub async fn replace(&self, name: &FileName, plain: Bytes) -> Result<(), WriteError> {
        let described = self.sidecar(name).await.map_err(from_read)?;
        let described = described.map(|sidecar| Format::split(&sidecar.object).1);
        let mut old = described.map(|format| (self.layout.file(name, format), format));
        if old.is_none() {
            old = self.locate(name).await.map_err(from_read)?.map(|(path, format, _)| (path, format));
        }
        if let Some((path, format)) = &old {
            self.copy_aside(name, path, *format).await?;
        }
        let plain = plain.into();
        let sha256 = self.digest(name, &plain).await?;
        let path = self.layout.file(name, self.codec.format());
        if let Some(sidecar) = self.put_file(name, &path, plain, sha256, false).await? {
            self.put_sidecar(name, &sidecar).await?;
        }
        if let Some((old, _)) = old.filter(|(old, _)| *old != path) {
            self.storage.delete(&old).await.map_err(|error| self.not_written(error))?;
        }
        Ok(())
    }

    /// What is too large to be looked at is not kept: it is no file of PostgreSQL's. Little of it is in memory at a time, and
    /// it is read twice: its digest is in the copy's name.
    async fn copy_aside(&self, name: &FileName, path: &str, format: Format) -> Result<(), WriteError> {
        let limit = self.limit(name, format);
        let (sum, size) = match self.storage.read_through(path, limit.clone(), summed).await {
            Ok(Some(Ok(found))) => found,
            Ok(None) => return Ok(()),
            Err(error) if error.kind == Trouble::TooLarge => return Ok(()),
            Err(error) => return Err(self.not_written(error)),
            Ok(Some(Err(error))) => {
                return Err(self.not_written(StorageError::new("could not read", path, &error)));
            }
        };
        let aside = self.layout.aside(name, Aside::Damaged, &sum.short(), format);
        let (send, mut pieces) = Pieces::channel(PIECES);
        let hand_over = move |stored: &mut dyn io::Read| {
            let mut piece = vec![0; PIECE];
            while let Ok(len @ 1..) = stored.read(&mut piece) {
                if send.blocking_send(Bytes::copy_from_slice(&piece[..len])).is_err() {
                    return;
                }
            }
        };
        let take = move |out: &mut dyn io::Write| match io::copy(&mut pieces, out)? {
            // Of a source that breaks off, no half is left.
            copied if copied == size => Ok(()),
            _ => Err(io::Error::other("what was to be copied has changed, or broke off")),
        };
        let reading = self.storage.read_through(path, limit, hand_over);
        let writing = self.storage.put_made(&aside, size, false, take);
        let (read, written) = tokio::join!(reading, writing);
        read.map_err(|error| self.not_written(error))?;
        written.map(drop).map_err(|error| self.not_written(error))
    }

    /// Stores a piece of an unfinished segment, `bytes` from its offset `start` on. The same piece again is
    /// the same object.
    pub async fn write_chunk(
        &self,
        segment: &FileName,
        start: u64,
        bytes: Bytes,
    ) -> Result<ChunkName, WriteError> {
        self.send_chunk(segment, start, bytes.into()).await
    }

    /// The same, for what need not be in memory.
    pub async fn send_chunk(
        &self,
        segment: &FileName,
        start: u64,
        content: Content,
    ) -> Result<ChunkName, WriteError> {
        let sum = self.digest(segment, &content).await?;
        let chunk = ChunkName::with(segment, start, content.len(), sum);
        let path = self.layout.chunk(&chunk, self.chunk_format());
        let (codec, about) = (self.codec.clone(), content.len());
        let put = match self.in_one_request(&content) {
            Some(whole) => self.storage.put(&path, whole).await,
            None => {
                let make = move |out: &mut dyn io::Write| codec.encode_to(&content, out).map(drop);
                self.storage.put_made(&path, about, false, make).await.map(drop)
            }
        };
        put.map_err(|error| self.not_written(error))?;
        Ok(chunk)
    }

    /// What an object store takes as it lies there.
    fn in_one_request(&self, content: &Content) -> Option<Bytes> {
        let as_it_is = self.codec.stores_plain() && !self.storage.is_directory();
        if as_it_is { content.whole() } else { None }
    }

    /// The digest of what is to be stored for a file.
    async fn digest(&self, name: &FileName, content: &Content) -> Result<Sha256, WriteError> {
        let content = content.clone();
        let sum = blocking(move || content.digest()).await;
        sum.map_err(|error| self.not_written(StorageError::of_io("could not write", name.as_str(), &error)))
    }

    /// Stores a file under a path; `None` if it should be new and is there.
    async fn put_file(
        &self,
        name: &FileName,
        path: &str,
        plain: Content,
        sha256: Sha256,
        create: bool,
    ) -> Result<Option<Sidecar>, WriteError> {
        let object = format!("{name}{}", self.codec.format().suffix());
        let plain_size = plain.len();
        if let Some(whole) = self.in_one_request(&plain) {
            let put = match create {
                true => self.storage.put_new(path, whole).await,
                false => self.storage.put(path, whole).await.map(|()| true),
            };
            let is_new = put.map_err(|error| self.not_written(error))?;
            let sidecar = Sidecar { object, sha256, size: plain_size, plain_sha256: sha256, plain_size };
            return Ok(is_new.then_some(sidecar));
        }
        let (codec, sent, at) = (self.codec.clone(), self.sent.clone(), path.to_owned());
        let make = move |out: &mut dyn io::Write| {
            if codec.stores_plain() {
                plain.write_to(out)?;
                return Ok(Sidecar { object, sha256, size: plain_size, plain_sha256: sha256, plain_size });
            }
            let mut out = Summing::new(out);
            codec.encode_to(&plain, &mut out)?;
            let (sum, size) = out.finish();
            let sidecar = Sidecar { object, sha256: sum, size, plain_sha256: sha256, plain_size };
            if codec.only_writes() {
                let noted = sent.note(&at, &sidecar);
                noted.map_err(|error| {
                    io::Error::other(format!("could not note in the data directory what is sent: {error}"))
                })?;
            }
            Ok(sidecar)
        };
        let put = self.storage.put_made(path, plain_size, create, make).await;
        if let Ok(Some(_)) = put {
            self.sent.forget(path);
        }
        put.map_err(|error| self.not_written(error))
    }

    async fn put_sidecar(&self, name: &FileName, sidecar: &Sidecar) -> Result<(), WriteError> {
        let put = self.storage.put(&self.layout.sidecar(name), sidecar.format().into()).await;
        put.map_err(|error| self.not_written(error))
    }

    /// Stores the checksum of a file that was just stored at `path`. If there is one of another object, which was
    /// there before, the new file is taken back: false.
    async fn put_sidecar_of_new(
        &self,
        name: &FileName,
        path: &str,
        sidecar: &Sidecar,
    ) -> Result<bool, WriteError> {
        let text = Bytes::from(sidecar.format());
        let put = self.storage.put_new(&self.layout.sidecar(name), text).await;
        if put.map_err(|error| self.not_written(error))? {
            return Ok(true);
        }
        let known = self.sidecar(name).await.map_err(from_read)?;
        let other = known.map(|known| self.layout.file(name, Format::split(&known.object).1));
        if let Some(other) = other.filter(|other| other != path) {
            let there = self.storage.head(&other).await.map_err(|error| self.not_written(error))?;
            if there.is_some() {
                self.storage.delete(path).await.map_err(|error| self.not_written(error))?;
                return Ok(false);
            }
        }
        // It describes nothing that is there.
        self.put_sidecar(name, sidecar).await?;
        Ok(true)
    }
}
