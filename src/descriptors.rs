//! File descriptors: how many there may be, and who gets the last ones (PostgreSQL: `set_max_safe_fds`).
//!
//! The system gives the lowest free number. So a client whose socket has a number at or beyond
//! [`Descriptors::for_clients`] is one of those that would take the last descriptors, and it is refused before anything
//! the relay needs for itself can fail: the next WAL segment, the connection upstream, the files of its state.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Kept for the relay itself: its upstream, the segments being written and synced, state files, directories.
const RESERVED: u64 = 64;
/// Segments opened for consumers at the same time; they are closed as soon as they are mapped.
const PASSING: usize = 8;
/// Kept for each archive target: connections, files on their way.
const RESERVED_FOR_TARGET: u64 = 16;
/// More than this is not asked for: what the kernel allows by default (`fs.nr_open`). Programs that the relay starts
/// inherit the limit, and some of them close every descriptor there might be.
const MOST: u64 = 1 << 20;
/// After the first refusal they are told together.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// The limit of the process, divided between clients and the relay itself.
#[derive(Debug)]
pub struct Descriptors {
    limit: u64,
    reserved: u64,
    refused: Mutex<Repeated>,
    /// For files that are open for a moment only.
    passing: Semaphore,
}

/// The settings allow more connections than there are descriptors for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "open files are limited to {limit}, but --max-connections {connections} and --max-wal-senders {wal_senders} may \
     need {needed}, two for each and some for the relay; raise the limit (LimitNOFILE= of systemd, ulimit -n) to \
     {needed}, or lower {setting}; until then clients beyond it are refused"
)]
pub struct Shortage {
    /// `RLIMIT_NOFILE`.
    pub limit: u64,
    /// `--max-connections`.
    pub connections: usize,
    /// `--max-wal-senders`.
    pub wal_senders: usize,
    /// What all of them would need.
    pub needed: u64,
    /// The flag that asks for most.
    pub setting: &'static str,
}

impl Descriptors {
    /// Raises the process's soft limit to the hard one and keeps some for a relay with so many archive targets and places for
    /// who watches it.
    pub fn raise(archive_targets: usize, watchers: usize) -> Descriptors {
        let before = getrlimit(Resource::Nofile);
        let most = before.maximum.unwrap_or(MOST).min(MOST);
        if before.current.is_some_and(|current| current < most) {
            let raised = Rlimit { current: Some(most), maximum: before.maximum };
            if let Err(error) = setrlimit(Resource::Nofile, raised) {
                tracing::debug!("could not raise the limit of open files to {most}: {error}");
            }
        }
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let reserved = RESERVED + RESERVED_FOR_TARGET * archive_targets as u64 + watchers as u64;
        Descriptors::new(limit, reserved)
    }

    /// `limit` descriptors, of which `reserved` are the relay's, but no more than half of them.
    pub fn new(limit: u64, reserved: u64) -> Descriptors {
        let (reserved, passing) = (reserved.min(limit / 2), Semaphore::new(PASSING));
        Descriptors { limit, reserved, refused: Mutex::default(), passing }
    }

    /// A turn to open, for a client, a file that is closed again soon; such files are opened out of what is reserved,
    /// a few at a time. Cancel-safe.
    pub async fn for_a_moment(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.passing.acquire().await.ok()
    }

    /// Numbers below this one may be had by clients.
    pub fn for_clients(&self) -> u64 {
        self.limit - self.reserved
    }

    /// Whether a descriptor that was opened for a client is one that clients may have.
    pub fn permit(&self, descriptor: impl AsFd) -> bool {
        u64::try_from(descriptor.as_fd().as_raw_fd()).is_ok_and(|number| number < self.for_clients())
    }

    /// Whether the next descriptor would be one that clients may have. Opens one to see its number.
    pub fn has_room(&self) -> bool {
        let probe =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        probe.is_ok_and(|probe| self.permit(&probe))
    }

    /// Says in the log that a client was refused: the first one at once, then how many there were.
    pub fn tell_refusal(&self) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = refused.note(Instant::now()) else { return };
        let (limit, reserved) = (self.limit, self.reserved);
        tracing::warn!(
            count,
            limit,
            reserved,
            "out of file descriptors for clients, refusing them; raise the limit of open files (LimitNOFILE= of \
             systemd, ulimit -n) or close connections"
        );
    }

    /// Compares with what the settings allow. A forwarded SQL session takes two descriptors, a consumer its socket and
    /// the segment it reads.
    pub fn shortage(&self, connections: usize, wal_senders: usize) -> Option<Shortage> {
        let needed =
            (connections as u64 + wal_senders as u64).saturating_mul(2).saturating_add(self.reserved);
        let setting = if wal_senders > connections { "--max-wal-senders" } else { "--max-connections" };
        let limit = self.limit;
        (needed > limit).then_some(Shortage { limit, connections, wal_senders, needed, setting })
    }
}

/// Something that may happen very often: told when it happens first, then each half minute with a count.
#[derive(Debug, Default)]
pub struct Repeated {
    told_at: Option<Instant>,
    count: u64,
}

impl Repeated {
    /// It has happened; how often since it was told last, if it is to be told now.
    pub fn note(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if !self.is_due(now) {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.count))
    }

    /// Whether it would be told if it happened now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_not_for_clients() {
        let descriptor = std::fs::File::open("/dev/null").unwrap();
        let number = u64::try_from(descriptor.as_raw_fd()).unwrap();
        assert!(Descriptors::new(2 * number + 2, number + 1).permit(&descriptor));
        assert!(!Descriptors::new(2 * number, number).permit(&descriptor));
        assert!(Descriptors::new(1 << 20, 64).has_room());
        assert!(!Descriptors::new(4, 64).has_room(), "at least 0 to 2 and the file are open");
        assert_eq!(Descriptors::new(128, 1000).for_clients(), 64, "clients get half in any case");
    }

    #[test]
    fn settings_beyond_the_limit_are_named() {
        let short =
            |limit, connections, wal_senders| Descriptors::new(limit, 64).shortage(connections, wal_senders);
        assert_eq!(short(4064, 1000, 1000), None);
        let text = short(1024, 1000, 500).unwrap().to_string();
        assert!(
            text.contains("limited to 1024") && text.contains("to 3064, or lower --max-connections"),
            "{text}"
        );
        assert_eq!(short(1024, 500, 1000).unwrap().setting, "--max-wal-senders");
    }

    #[test]
    fn what_happens_often_is_told_with_a_count() {
        let (mut repeated, start) = (Repeated::default(), Instant::now());
        assert_eq!(repeated.note(start), Some(1));
        for second in 1..30 {
            assert_eq!(repeated.note(start + Duration::from_secs(second)), None);
        }
        assert_eq!(repeated.note(start + TELL_EVERY), Some(30));
        assert_eq!(repeated.note(start + TELL_EVERY), None);
    }
}
