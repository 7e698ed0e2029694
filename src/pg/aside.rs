//! What a connection needs besides the network: certificates, keys, password files, user names, addresses.
//!
//! Any of it may lie in a home directory or come from a name service that does not answer, so no task waits for it
//! on its own thread, and none for long. The relay's own connections and those in clients' names have threads apart:
//! clients who come again and again do not take those that WAL is received with.

use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use super::error::ConnectError;
use crate::conninfo::{ConnInfo, Purpose};
use crate::lane::Lane;
use crate::permissions::read_limited;

/// How long such a call may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A name service that is asked in vain may take longer than a disk (resolv.conf: two servers, 5 s, twice).
const PATIENCE_FOR_NAMES: Duration = Duration::from_secs(30);

/// Threads for one kind of connections.
struct Lanes {
    files: Lane,
    names: Lane,
}

impl Lanes {
    fn new() -> Lanes {
        Lanes {
            files: Lane::new("connect-files", PATIENCE),
            names: Lane::new("connect-names", PATIENCE_FOR_NAMES),
        }
    }
}

static OWN: LazyLock<Lanes> = LazyLock::new(Lanes::new);
static SESSIONS: LazyLock<Lanes> = LazyLock::new(Lanes::new);

fn lanes(info: &ConnInfo) -> &'static Lanes {
    match info.purpose {
        Purpose::Replication => &OWN,
        Purpose::Session(_) => &SESSIONS,
    }
}

/// Reads files, and remembers which one it is at.
#[derive(Clone, Debug)]
pub(super) struct Files {
    at: Arc<Mutex<String>>,
}

impl Files {
    /// What is read next, for the error should it not come back: `private key file "/x/y"`.
    pub(super) fn at(&self, what: &str) {
        what.clone_into(&mut self.at.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A file's content; `what` names its kind.
    pub(super) fn read(&self, what: &str, path: &Path) -> io::Result<Vec<u8>> {
        self.at(&format!("{what} \"{}\"", path.display()));
        read_limited(path)
    }

    /// As [`Files::read`], `None` if there is no such file.
    pub(super) fn read_if_present(&self, what: &str, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match self.read(what, path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a file can be seen, as libpq looks for those that need not be there (`stat`).
    pub(super) fn is_there(&self, what: &str, path: &Path) -> bool {
        self.at(&format!("{what} \"{}\"", path.display()));
        fs::metadata(path).is_ok()
    }

    fn current(&self) -> String {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs `work`, which reads files or asks for users, on a thread of its own; `what` it begins with.
///
/// # Errors
/// [`ConnectError::Unread`]: it did not come back in time.
pub(super) async fn with_files<T: Send + 'static>(
    info: &ConnInfo,
    what: String,
    work: impl FnOnce(&Files) -> T + Send + 'static,
) -> Result<T, ConnectError> {
    let files = Files { at: Arc::new(Mutex::new(what)) };
    let theirs = files.clone();
    let done = lanes(info).files.run(0, move || work(&theirs)).await;
    done.map_err(|reason| ConnectError::Unread { what: files.current(), reason })
}

/// The addresses of a host (`getaddrinfo`).
pub(super) async fn addresses(
    info: &ConnInfo,
    name: &str,
    port: u16,
) -> io::Result<Vec<std::net::SocketAddr>> {
    let target = (name.to_owned(), port);
    let ask = move || std::net::ToSocketAddrs::to_socket_addrs(&target).map(Iterator::collect);
    lanes(info).names.run(0, ask).await.unwrap_or_else(|reason| Err(io::Error::other(reason)))
}
