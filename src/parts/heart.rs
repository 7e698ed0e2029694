//! Heartbeats of threads that run as long as the relay: each beats while it waits for work and while it does it.
//!
//! Silence alone proves nothing: a thread that waits for a disk is silent for as long as the disk hangs, and a relay
//! goes on serving what it can meanwhile. So silence counts only while no thread of the process is in a call that may wait
//! for a disk: others may wait, at a lock or for a result, for the one that is.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::pulse::Pulse;

/// How often a thread that has nothing to do beats.
pub(crate) const BEAT: Duration = Duration::from_secs(5);

/// System calls in which threads wait for each other, for the time or for a peer, and not for a disk.
const NO_DISK: &[libc::c_long] = &[
    libc::SYS_futex,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // A call with a time limit that was stopped and goes on.
    libc::SYS_restart_syscall,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
];

/// That of one thread.
#[derive(Clone, Debug)]
pub(crate) struct Heart {
    name: Arc<str>,
    pulse: Pulse,
    has_ended: Arc<AtomicBool>,
}

thread_local! {
    static OWN: RefCell<Option<Heart>> = const { RefCell::new(None) };
}

/// A sign of life of this thread, if anybody asks for it.
pub(crate) fn beat() {
    OWN.with_borrow(|own| {
        if let Some(heart) = own {
            heart.pulse.beat();
        }
    });
}

/// Beats as long as the runtime of this thread runs tasks. Cancel-safe.
pub(crate) async fn beat_for_ever() {
    loop {
        beat();
        tokio::time::sleep(BEAT).await;
    }
}

impl Heart {
    pub(super) fn new(name: &str) -> Heart {
        Heart { name: name.into(), pulse: Pulse::default(), has_ended: Arc::default() }
    }

    /// A sign of life that somebody else has seen.
    pub(super) fn give_sign(&self) {
        self.pulse.beat();
    }

    /// From now on this is the heart of this thread.
    pub(super) fn adopt(&self) {
        OWN.with_borrow_mut(|own| *own = Some(self.clone()));
        beat();
    }

    /// Its thread ends, which whoever has started that hears of: there is nothing more to listen for.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    /// Whose it is.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it should have beaten and has not for so long.
    pub(crate) fn is_silent(&self, limit: Duration) -> bool {
        let is_silent = Instant::now().saturating_duration_since(self.pulse.last()) > limit;
        is_silent && !self.has_ended.load(Ordering::Relaxed)
    }
}

/// The thread that nobody waits for, and that may wait for ever: for the log's reader.
const WAITED_FOR_BY_NOBODY: &str = "log";

/// Whether a thread of this process is in a system call, or has touched a page of a file, that may wait for a disk. Where the
/// system does not tell, that may be so.
pub(crate) fn waits_for_disk() -> bool {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return true };
    // The calling thread is reading just this.
    let own = fs::read_link("/proc/thread-self").ok();
    let own = own.as_ref().and_then(|path| path.file_name());
    let mut others = threads.flatten().filter(|thread| Some(&*thread.file_name()) != own);
    others.any(|thread| match fs::read_to_string(thread.path().join("syscall")) {
        Ok(call) => is_of_disk(&call) && !is_nobodys(&thread.path()),
        // It has just ended.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => false,
        Err(_) => thread.path().exists(),
    })
}

fn is_nobodys(thread: &Path) -> bool {
    fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim_end() == WAITED_FOR_BY_NOBODY)
}

/// `/proc/PID/syscall`: `running`, the number of the call and its arguments, or -1 for a thread that waits in the kernel
/// without a call, as for a page.
fn is_of_disk(call: &str) -> bool {
    let number = call.split_whitespace().next().and_then(|word| word.parse().ok());
    number.is_some_and(|number| !NO_DISK.contains(&number))
}

/// The first that has been silent for so long although nothing [`waits_for_disk`].
pub(crate) fn stuck<'a>(
    hearts: impl IntoIterator<Item = &'a Heart>,
    limit: Duration,
    waits_for_disk: fn() -> bool,
) -> Option<&'a Heart> {
    let silent = hearts.into_iter().find(|heart| heart.is_silent(limit))?;
    // It may have begun to beat again since.
    (!waits_for_disk() && silent.is_silent(limit)).then_some(silent)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::parts::Thread;

    const LIMIT: Duration = Duration::from_millis(100);

    fn until(what: &str, condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed().as_secs() < 20, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_call_is_judged_by_its_number() {
        let fsync = format!("{} 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffe 0x7f\n", libc::SYS_fdatasync);
        let futex = format!("{} 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffe 0x7f\n", libc::SYS_futex);
        assert!(is_of_disk(&fsync) && is_of_disk("-1 0x7ffe 0x7f\n"));
        assert!(!is_of_disk(&futex) && !is_of_disk("running\n"));
    }

    #[test]
    fn a_thread_that_waits_at_a_lock_for_ever_is_stuck_and_one_at_a_disk_is_not() {
        let (go_on, wait) = channel::<()>();
        let thread = Thread::start("flusher", move || wait.recv().is_ok()).unwrap();
        let hearts = [thread.heart()];
        assert!(!hearts[0].is_silent(Duration::from_secs(20)), "it has just begun");
        until("silence is told", || {
            stuck(&hearts, LIMIT, waits_for_disk).is_some_and(|heart| heart.name() == "flusher")
        });
        // Somebody waits for a file, as on a dead mount: the first may be waiting for that.
        let dir = crate::permissions::private_tempdir();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        let path = fifo.clone();
        let hung = std::thread::spawn(move || std::fs::File::open(path).is_ok());
        until("the file is waited for", waits_for_disk);
        assert!(stuck(&hearts, LIMIT, waits_for_disk).is_none());
        drop(std::fs::File::options().write(true).open(fifo).unwrap());
        assert!(hung.join().unwrap());
        until("silence counts again", || stuck(&hearts, LIMIT, waits_for_disk).is_some());
        drop(go_on);
        thread.join().unwrap();
    }

    #[test]
    fn a_thread_that_beats_is_not_silent() {
        let (go_on, wait) = channel::<()>();
        let run = move || {
            while wait.recv_timeout(LIMIT / 10) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                beat();
            }
        };
        let thread = Thread::start("retention", run).unwrap();
        let heart = thread.heart();
        let begun = Instant::now();
        until("the beat of the start to be long ago", || begun.elapsed() > 2 * LIMIT);
        until("it beats", || !heart.is_silent(LIMIT));
        drop(go_on);
        thread.join().unwrap();
    }
}
