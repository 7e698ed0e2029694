//! Places that WAL can be had from.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

use crate::archive::repo::name::FileName;
pub use crate::archive::repo::repository::Look;
use crate::pulse::Pulse;

/// What a [`Source`] answers, in time.
pub type Fetching<'a, T> = Pin<Box<dyn Future<Output = Result<T, FetchError>> + Send + 'a>>;

/// A place that holds copies of WAL files: a target of the archive, a relay's directory, a running relay.
///
/// Files are asked for by the names that PostgreSQL's archiver gives them, and come as PostgreSQL wrote them:
/// decrypted, decompressed, and checked against a checksum if the place keeps one. What they contain is for the
/// asker to check.
pub trait Source: Send + Sync + Debug {
    /// For messages.
    fn name(&self) -> &str;

    /// Signs of life: it beats with everything that comes from the place.
    fn pulse(&self) -> &Pulse;

    /// What is not covered when this place says that it has no such file.
    fn caveat(&self) -> Option<String> {
        None
    }

    /// A file, whole: a finished segment, a `.partial` one, or a `.history` file; `None` if it is certainly not
    /// there.
    fn read<'a>(&'a self, file: &'a str) -> Fetching<'a, Option<Bytes>>;

    /// Shows a segment of this size to `look` while it comes, finished or `.partial`; false if it is certainly not there.
    /// What `look` has seen counts only if this says true, and `look` may be called again after it has come to an end.
    fn show<'a>(&'a self, file: &'a str, size: u64, look: Look) -> Fetching<'a, bool>;

    /// What there is of a segment that is not finished: beginnings of it, each from its first byte on as far as it
    /// goes. They may end with bytes that mean nothing. One that was finished since [`read`](Self::read) had none is one of them:
    /// all of it.
    fn read_unfinished<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<Bytes>>;

    /// What is held of a segment of a timeline that was left, also behind the place where it was, whole or as far as it
    /// goes; beside what [`read`](Self::read) and [`read_unfinished`](Self::read_unfinished) give.
    fn read_branch<'a>(&'a self, _segment: &'a str) -> Fetching<'a, Option<Bytes>> {
        Box::pin(async { Ok(None) })
    }

    /// Names of files that come after this segment in the order of names: segments, finished or not, and histories, of
    /// its timeline and of all later ones. What is not listed may be there nevertheless if `read` gives it.
    fn later<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<FileName>>;
}

/// Shows what a source has read as a whole, as [`Source::show`] does.
pub(super) async fn show_whole(read: Fetching<'_, Option<Bytes>>, look: Look) -> Result<bool, FetchError> {
    let Some(content) = read.await? else { return Ok(false) };
    let shown = tokio::task::spawn_blocking(move || look(&mut &content[..]));
    shown.await.expect("a look does not panic, and the runtime waits for it");
    Ok(true)
}

/// A source has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody can say now whether the file is there: trying again may help.
    #[error("{place} cannot be reached: {reason}")]
    Unreachable {
        /// The source's name.
        place: String,
        /// What happened.
        reason: String,
    },
    /// The file is there and is not what it should be: trying again does not help.
    #[error("\"{file}\" in {place} is damaged: {reason}")]
    Damaged {
        /// The source's name.
        place: String,
        /// The file asked for.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
}
