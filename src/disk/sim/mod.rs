//! A disk that can crash, for tests and simulations: what POSIX promises, and nothing beyond.
//!
//! There are two images. The *live* one is what the process sees. The *durable* one is what has been synced:
//! - The content of a file, with its length, by the sync of that file.
//! - A name (made, renamed, exchanged, removed) by the sync of its directory. A rename from one directory to another is
//!   two changes, one in each.
//!
//! [`SimDisk::crash`] gives what is found when power comes back. Of what was not synced, by a seed:
//! - Each block of 4 KiB is there, or lost (the old content, zeros where there was none), or torn at 512 bytes.
//! - A length is the new one or the old one.
//! - Of the changes of names in a directory there is any beginning, or all but one of those. Each is whole: a rename
//!   never leaves both names or none within a directory, as on every journaling file system.
//!
//! A sync that fails says so once. Its blocks are clean then: not written, and not written by the next sync either, which
//! says yes, as Linux does. [`SimDisk::restart`] is the end of the process alone; what a failed sync has left in memory
//! may be dropped from it then.
//!
//! No clock, no randomness but the seeds: the same calls give the same disk. Each change of the disk is an *operation*
//! with a number: [`SimDisk::die_at`] cuts the power at one, [`SimDisk::fail_at`] has one fail.
//!
//! **A disk that hangs** ([`SimDisk::hang`]): syncs, writes, opens and changes of names do not return. In a world of
//! threads ([`SimDisk::for_threads`]) the callers wait until [`SimDisk::release`]. In a world that is stepped by one thread
//! ([`SimDisk::new`]) nobody could ever release it, so the call does nothing and returns an error that
//! [`would_hang`](super::would_hang) knows: whoever steps the caller is to repeat that step later, and to take nothing that came of it for an
//! answer. [`SimDisk::is_hung`] tells beforehand.

mod access;
mod image;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::WouldHang;
use image::Image;

/// A simulated disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    released: Condvar,
    /// Whether calls on a disk that hangs wait.
    is_threaded: bool,
}

#[derive(Clone, Debug)]
struct State {
    image: Image,
    /// Operations so far.
    operations: u64,
    /// What they were, if somebody wants to know.
    trace: Option<Vec<Operation>>,
    power: Power,
    die_at: Option<u64>,
    failures: Vec<(u64, i32)>,
    fail_next_sync: bool,
    is_hung: bool,
    bad: Vec<BadRange>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Power {
    On,
    /// Somebody else has the disk now, or nobody.
    Off,
}

#[derive(Clone, Debug)]
struct BadRange {
    inode: u64,
    range: Range<u64>,
    reads: bool,
    writes: bool,
}

/// A change of the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Of which kind.
    pub kind: OperationKind,
    /// On which file or directory; for a change of names the new one.
    pub file: String,
}

/// What changes a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OperationKind {
    /// A file or directory is made, or a file emptied.
    Create,
    /// Blocks are reserved.
    Allocate,
    /// Bytes are written.
    Write,
    /// A file gets another name, or two exchange theirs.
    Rename,
    /// A name is removed.
    Remove,
    /// A file, directory or all of the disk is made durable.
    Sync,
}

/// What of a file cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bad {
    /// It cannot be read.
    Reads,
    /// It cannot be written.
    Writes,
    /// Neither.
    Both,
}

impl Default for SimDisk {
    fn default() -> SimDisk {
        SimDisk::new()
    }
}

impl SimDisk {
    /// An empty disk for a world that is stepped by one thread.
    pub fn new() -> SimDisk {
        SimDisk::with(State::new(Image::new()), false)
    }

    /// An empty disk for a world of threads, where calls wait while it hangs.
    pub fn for_threads() -> SimDisk {
        SimDisk::with(State::new(Image::new()), true)
    }

    fn with(state: State, is_threaded: bool) -> SimDisk {
        SimDisk {
            shared: Arc::new(Shared { state: Mutex::new(state), released: Condvar::new(), is_threaded }),
        }
    }

    /// Cuts the power, and gives what is found when it is back. Everybody who has this disk gets errors from now on.
    pub fn crash(&self, seed: u64) -> SimDisk {
        let mut state = self.state();
        state.power = Power::Off;
        let image = state.image.after_crash(&mut Random::new(seed));
        drop(state);
        self.shared.released.notify_all();
        SimDisk::with(State::new(image), self.shared.is_threaded)
    }

    /// Ends the process that has the disk, and gives it to the next: what is not synced is in memory still, but for
    /// what a failed sync has left there, which may have been dropped. Everybody who has this disk gets errors from now on.
    pub fn restart(&self, seed: u64) -> SimDisk {
        let mut state = self.state();
        state.power = Power::Off;
        let image = state.image.after_restart(&mut Random::new(seed));
        let bad = state.bad.clone();
        drop(state);
        self.shared.released.notify_all();
        SimDisk::with(State { bad, ..State::new(image) }, self.shared.is_threaded)
    }

    /// Operations that have been begun so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Notes from now on which operations there are.
    pub fn start_trace(&self) {
        self.state().trace = Some(Vec::new());
    }

    /// The operations since then, in order.
    pub fn trace(&self) -> Vec<Operation> {
        self.state().trace.clone().unwrap_or_default()
    }

    /// Cuts the power at the operation of this number (the first is 1): it is not made durable, and fails, and so does
    /// everything after it. What is left of it is for [`crash`](Self::crash) to say.
    pub fn die_at(&self, operation: u64) {
        self.state().die_at = Some(operation);
    }

    /// Whether the power is off.
    pub fn is_dead(&self) -> bool {
        self.state().power == Power::Off
    }

    /// Has the operation of this number fail with this error of the system (`libc::EIO`): nothing has happened then, but
    /// for a sync, whose blocks and names are taken for clean.
    pub fn fail_at(&self, operation: u64, errno: i32) {
        self.state().failures.push((operation, errno));
    }

    /// Has the next sync fail with EIO.
    pub fn fail_next_sync(&self) {
        self.state().fail_next_sync = true;
    }

    /// Has all calls hang that change something or open a file.
    pub fn hang(&self) {
        self.state().is_hung = true;
    }

    /// Ends that.
    pub fn release(&self) {
        self.state().is_hung = false;
        self.shared.released.notify_all();
    }

    /// Whether it hangs.
    pub fn is_hung(&self) -> bool {
        self.state().is_hung
    }

    /// Leaves this many bytes free, `None` for no end of them. Blocks of 4 KiB are taken by what is written and by what is
    /// allocated, and given back when the last name is removed and the last handle closed.
    pub fn set_free_space(&self, bytes: Option<u64>) {
        self.state().image.set_free_space(bytes);
    }

    /// Makes a range of the file's bytes bad: EIO, until [`heal`](Self::heal). Goes with the file, not with its name.
    ///
    /// # Errors
    /// There is no such file.
    pub fn make_bad(&self, path: &Path, range: Range<u64>, bad: Bad) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.image.resolve(path)?;
        let (reads, writes) = (bad != Bad::Writes, bad != Bad::Reads);
        state.bad.push(BadRange { inode, range, reads, writes });
        Ok(())
    }

    /// Makes all that is bad good again, and takes back all failures to come.
    pub fn heal(&self) {
        let mut state = self.state();
        state.bad.clear();
        state.failures.clear();
        state.fail_next_sync = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state as soon as something can be had from the disk.
    fn awake(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        loop {
            if state.power == Power::Off {
                return Err(no_power());
            }
            if !state.is_hung {
                return Ok(state);
            }
            if !self.shared.is_threaded {
                return Err(io::Error::other(WouldHang));
            }
            state = self.shared.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does what changes the disk, as the operation that it is. `change` must do nothing before it can fail.
    fn operate<T>(
        &self,
        kind: OperationKind,
        file: &str,
        change: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.awake()?;
        state.operations += 1;
        if let Some(trace) = &mut state.trace {
            trace.push(Operation { kind, file: file.to_owned() });
        }
        let number = state.operations;
        if let Some(&(_, errno)) = state.failures.iter().find(|(at, _)| *at == number) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let result = change(&mut state)?;
        if state.die_at == Some(number) {
            state.power = Power::Off;
            // A file that was opened is closed with the result.
            drop(state);
            return Err(no_power());
        }
        Ok(result)
    }

    /// A sync: `sync` makes durable, `lose` takes for clean what is not.
    fn sync(
        &self,
        file: &str,
        sync: impl FnOnce(&mut Image),
        lose: impl FnOnce(&mut Image),
    ) -> io::Result<()> {
        let mut state = self.awake()?;
        state.operations += 1;
        if let Some(trace) = &mut state.trace {
            trace.push(Operation { kind: OperationKind::Sync, file: file.to_owned() });
        }
        let number = state.operations;
        let failure = state.failures.iter().find(|(at, _)| *at == number).map(|(_, errno)| *errno);
        let at_once = std::mem::take(&mut state.fail_next_sync).then_some(libc::EIO);
        if let Some(errno) = failure.or(at_once) {
            lose(&mut state.image);
            return Err(io::Error::from_raw_os_error(errno));
        }
        if state.die_at == Some(number) {
            state.power = Power::Off;
            return Err(no_power());
        }
        sync(&mut state.image);
        Ok(())
    }
}

fn no_power() -> io::Error {
    io::Error::other("the simulated disk has no power")
}

impl State {
    fn new(image: Image) -> State {
        State {
            image,
            operations: 0,
            trace: None,
            power: Power::On,
            die_at: None,
            failures: Vec::new(),
            fail_next_sync: false,
            is_hung: false,
            bad: Vec::new(),
        }
    }

    /// Fails if anything of the range is bad for this.
    fn check_range(&self, inode: u64, range: Range<u64>, is_write: bool) -> io::Result<()> {
        let hits = |bad: &BadRange| {
            let kind = if is_write { bad.writes } else { bad.reads };
            bad.inode == inode && kind && bad.range.start < range.end && range.start < bad.range.end
        };
        match self.bad.iter().any(hits) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }
}

/// SplitMix64.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// `0 .. end`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// True in so many of 100 cases.
    fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}
