//! What a process holds of the machine.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, park_timeout};
use std::time::Duration;

/// Between two looks.
const TICK: Duration = Duration::from_millis(50);

/// Memory, descriptors and threads of a process at a moment, or the most of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Anonymous memory, bytes: what nobody else has and no file could give back. Pages of mapped files that nobody else maps
    /// at the moment are "private" to the kernel, too, but they are the page cache's.
    pub private: u64,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Footprint {
    /// Of a process that we may look at; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Footprint> {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = smaps.lines().find_map(|line| line.strip_prefix("Anonymous:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        let entries = |name| Some(fs::read_dir(format!("/proc/{pid}/{name}")).ok()?.count());
        Some(Footprint { private: kilobytes << 10, descriptors: entries("fd")?, threads: entries("task")? })
    }

    /// Whether that is no more than `before` and so much on top.
    pub fn is_within(self, before: Footprint, on_top: Footprint) -> bool {
        self.private <= before.private + on_top.private
            && self.descriptors <= before.descriptors + on_top.descriptors
            && self.threads <= before.threads + on_top.threads
    }

    fn most(self, other: Footprint) -> Footprint {
        Footprint {
            private: self.private.max(other.private),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }
}

/// Looks at a process all the time, on a thread of its own, also at those that take its place.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    pid: AtomicU32,
    looks: AtomicUsize,
    most: Mutex<Footprint>,
    over: AtomicBool,
}

impl Watch {
    /// Begins with this process.
    pub fn start(pid: u32) -> Watch {
        let (looks, most) = (AtomicUsize::new(0), Mutex::default());
        let shared = Arc::new(Shared { pid: AtomicU32::new(pid), looks, most, over: AtomicBool::new(false) });
        let watcher = shared.clone();
        let thread = std::thread::spawn(move || watcher.watch());
        Watch { shared, thread: Some(thread) }
    }

    /// Goes on with another process.
    pub fn turn_to(&self, pid: u32) {
        self.shared.pid.store(pid, Ordering::Relaxed);
    }

    /// The most of each that was seen.
    ///
    /// # Panics
    /// When nothing was seen.
    pub fn most(&self) -> Footprint {
        assert!(self.shared.looks.load(Ordering::Relaxed) > 0, "nothing was seen of the process");
        *self.shared.most.lock().expect("nobody panics while holding the lock")
    }
}

impl Shared {
    fn watch(&self) {
        while !self.over.load(Ordering::Relaxed) {
            if let Some(now) = Footprint::of(self.pid.load(Ordering::Relaxed)) {
                self.looks.fetch_add(1, Ordering::Relaxed);
                let mut most = self.most.lock().expect("nobody panics while holding the lock");
                *most = most.most(now);
            }
            park_timeout(TICK);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::wait_until;

    #[test]
    fn more_than_comes_and_goes_is_left_behind() {
        let of = |private, descriptors, threads| Footprint { private, descriptors, threads };
        let (before, on_top) = (of(100, 10, 5), of(8, 2, 1));
        assert!(of(108, 12, 6).is_within(before, on_top) && of(0, 0, 0).is_within(before, on_top));
        for now in [of(109, 10, 5), of(100, 13, 5), of(100, 10, 7)] {
            assert!(!now.is_within(before, on_top), "{now:?}");
        }
    }

    #[test]
    fn memory_and_descriptors_are_seen() {
        let pid = std::process::id();
        let watch = Watch::start(pid);
        wait_until("a look", || watch.shared.looks.load(Ordering::Relaxed) > 0);
        let before = Footprint::of(pid).unwrap();
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/").unwrap()).collect();
        wait_until("more of both", || {
            let most = watch.most();
            most.private >= before.private + (60 << 20) && most.descriptors >= before.descriptors + 40
        });
        drop((memory, files));
    }
}
