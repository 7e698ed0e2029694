//! Segments fetched ahead of recovery.
//!
//! ```text
//! <spool>/
//!   spool.lock                            locked while somebody is told what is wanted, or nobody may be
//!   <key>/                                of the places to ask
//!     wanted                              the segment asked for last, the segment size, and whether to fetch itself
//!     worker.lock                         locked by the worker while there is one
//!     worker.log                          what it complains about
//!     000000010000000000000005            fetched, checked, synced
//!     000000010000000000000006.fetching   on its way, locked by the worker
//!     000000010000000000000007.unfinished one that nobody has finished, as far as it goes
//! ```
//!
//! PostgreSQL waits for each `walrelay restore` to end, so a process of its own goes on fetching: the worker. There is
//! one per key. It keeps the `ahead` segments behind the one wanted last, removes all others, and ends, leaving
//! nothing, when nothing is on its way and nobody has wanted anything for a minute. Whoever takes a segment checks it
//! again: the files may have lain there over a crash.
//!
//! A worker asks the places that it was started with. When the arguments or the configuration file have changed, the key is
//! another one, and so are directory and worker: the two never meet. What nobody has used for a minute is removed when the
//! next worker starts.
//!
//! A standby that cannot wait for a segment leaves it to the worker, too: then that comes first, and alone.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;
use walrelay_proto::{SegSize, SystemId};

use super::fetch::{self, Fetched, Fetcher};
use super::restore::Role;
use super::temp::{TempFile, free_space, megabytes, put, told};
use crate::archive::repo::check;
use crate::objects::buffer;
use crate::objects::limit::Limit;
use crate::permissions::{Distrust, check_private_dir};
use crate::pulse::Pulse;

/// Where the disk is full.
const MAKE_ROOM: &str = "make room there, or give restore a --spool-dir on another disk";
/// How long a worker waits for the next segment to be wanted.
pub const LINGER: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);
/// Suffix of a segment on its way.
const FETCHING: &str = ".fetching";
/// Suffix of a segment that nobody has finished.
const UNFINISHED: &str = ".unfinished";
/// What is wanted is the segment itself, too.
const ITSELF: &str = "itself";
/// What the worker says on standard error.
pub const LOG: &str = "worker.log";
/// The file that the worker locks.
const WORKER_LOCK: &str = "worker.lock";
/// The file that says what is wanted.
const WANTED: &str = "wanted";
/// The file that is locked shared by whoever says what is wanted and sees to a worker, and for itself alone by a worker
/// that ends, and by whoever removes what is unused: else each would rely on the other.
const GATE: &str = "spool.lock";

/// Starts the worker; called by whoever has taken a segment.
pub type StartWorker = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A segment out of the spool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// It is at its place.
    Put(SegSize),
    /// Nobody has finished it: its beginning, and zeros.
    Unfinished(Bytes),
}

/// A directory of segments fetched ahead.
#[derive(Clone)]
pub struct Spool {
    /// Of its key.
    dir: PathBuf,
    start_worker: StartWorker,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Spool {
    /// The spool in `dir`, which need not exist yet. One cluster's only. `key` is a word that stands for the places that
    /// the started worker asks, and a file name: nothing is shared with another one.
    pub fn new(dir: &Path, key: &str, start_worker: StartWorker) -> Spool {
        Spool { dir: dir.join(key), start_worker }
    }

    /// Moves a segment that was fetched ahead to its place; waits for one that is on its way. `None`
    /// if it has to be fetched. Of one that nobody has finished, only a standby gets the beginning: it asks again. To a recovery that may
    /// be the end, and somebody may have more by now.
    pub(super) async fn take(
        &self,
        file: &str,
        target: &Path,
        system_id: Option<SystemId>,
        role: Role,
    ) -> Option<Taken> {
        if !fetch::is_segment(file) {
            return None;
        }
        wait_for(&self.dir.join(format!("{file}{FETCHING}"))).await;
        let (dir, file, target) = (self.dir.clone(), file.to_owned(), target.to_owned());
        let work = move || {
            trusted(&dir).ok()?;
            let path = dir.join(&file);
            let Ok(bytes) = read(&path) else {
                let path = dir.join(format!("{file}{UNFINISHED}"));
                let beginning = read(&path).ok()?;
                // More may have come until it is asked for again.
                let _ = fs::remove_file(&path);
                let usable = role == Role::Standby && fetch::is_beginning(&file, system_id, &beginning);
                return usable.then_some(Taken::Unfinished(beginning));
            };
            let size = check::identity_of(&bytes).ok()?.seg_size;
            let good = fetch::check_file(&file, system_id, &bytes).is_ok();
            let moved = good && (fs::rename(&path, &target).is_ok() || put(&bytes, &target).is_ok());
            if !moved {
                let _ = fs::remove_file(&path);
            }
            moved.then_some(Taken::Put(size))
        };
        tokio::task::spawn_blocking(work).await.ok().flatten()
    }

    /// Says what was wanted, and sees to it that there is a worker. Without one, nothing is fetched ahead.
    pub(super) fn go_on(&self, file: &str, size: SegSize) {
        if !fetch::is_segment(file) {
            return;
        }
        if let Err(error) = self.want(&format!("{file} {}\n", size.bytes())) {
            tracing::warn!("could not fetch segments ahead into \"{}\": {error}", self.dir.display());
        }
    }

    /// Leaves a segment to the worker.
    ///
    /// # Errors
    /// The spool cannot be used, or no worker be started: nobody fetches the segment.
    pub(super) fn leave(&self, file: &str, size: SegSize) -> io::Result<()> {
        // Somebody who asks once more wants it to be tried once more.
        let time = getrandom::u32().unwrap_or_default();
        self.want(&format!("{file} {} {ITSELF} {time:08x}\n", size.bytes()))
    }

    fn want(&self, text: &str) -> io::Result<()> {
        let spool = spool_of(&self.dir);
        make_dir(spool)?;
        is_private(spool)?;
        let gate = gate(&self.dir)?;
        gate.lock_shared()?;
        // From here on nobody takes it for unused.
        make_dir(&self.dir)?;
        trusted(&self.dir)?;
        let told = |error| told(error, &self.dir, text.len() as u64, MAKE_ROOM);
        let written =
            TempFile::create(&self.dir).and_then(|file| file.finish(text.as_bytes(), &self.dir.join(WANTED)));
        written.map_err(told)?;
        self.see_to_a_worker()
    }

    fn see_to_a_worker(&self) -> io::Result<()> {
        match try_lock(&self.dir)? {
            None => Ok(()),
            lock => {
                drop(lock);
                (self.start_worker)()
            }
        }
    }

    /// Waits for a segment that a standby has left to the worker; `None` if the worker has not got it.
    pub(super) async fn wait(&self, file: &str, target: &Path, system_id: Option<SystemId>) -> Option<Taken> {
        let role = Role::Standby;
        let (marker, mut was_there) = (self.dir.join(format!("{file}{FETCHING}")), false);
        loop {
            let is_there = marker.exists();
            if let Some(taken) = self.take(file, target, system_id, role).await {
                return Some(taken);
            }
            if was_there && !is_there {
                return None;
            }
            was_there |= is_there;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the worker says why it has not got something.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join(LOG)
    }
}

fn read(path: &Path) -> io::Result<Bytes> {
    buffer::read_to_end(open(path)?, &Limit::segment(), &Pulse::default())
}

/// The worker of the spool with this key: fetches ahead until nobody has wanted anything for `linger`. Returns at once if
/// there is another one.
pub async fn work(
    spool: &Path,
    key: &str,
    fetcher: Fetcher,
    ahead: usize,
    linger: Duration,
) -> io::Result<()> {
    let dir = &spool.join(key);
    trusted(dir)?;
    let Some(lock) = try_lock(dir)? else { return Ok(()) };
    remove_unused(spool, dir, linger)?;
    TempFile::remove_leftovers(dir);
    let mut worker = Worker {
        dir: dir.to_owned(),
        fetcher,
        ahead,
        wanted: String::new(),
        on_the_way: BTreeSet::new(),
        fetched: BTreeSet::new(),
        tasks: JoinSet::new(),
        end: None,
        is_full: false,
    };
    let mut last_change = Instant::now();
    let mut end = None;
    // Whoever removes the spool wants no worker either.
    while end.is_none() && dir.is_dir() {
        // What is on its way over a slow line is not given up because nobody has asked for anything else.
        if worker.look() || !worker.tasks.is_empty() {
            last_change = Instant::now();
        }
        if worker.tasks.is_empty() && last_change.elapsed() >= linger {
            end = worker.end_alone()?;
        }
        tokio::select! {
            done = worker.tasks.join_next(), if !worker.tasks.is_empty() => worker.note(done),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    worker.tasks.shutdown().await;
    worker.remove_others(&BTreeSet::new());
    // Whoever wants something from here on finds that there is no worker.
    drop(lock);
    drop(end);
    Ok(())
}

struct Worker {
    dir: PathBuf,
    fetcher: Fetcher,
    ahead: usize,
    wanted: String,
    on_the_way: BTreeSet<String>,
    /// Of those wanted next, what has been fetched: if it is not here, somebody has taken it and has not said so yet.
    fetched: BTreeSet<String>,
    tasks: JoinSet<(String, bool)>,
    /// The first segment that could not be had; those after it are not asked for until something else is wanted.
    end: Option<String>,
    /// It was said that there is no room.
    is_full: bool,
}

impl Worker {
    /// Looks what is wanted; whether that has changed. Starts fetching what is not here.
    fn look(&mut self) -> bool {
        let text = fs::read_to_string(self.dir.join(WANTED)).unwrap_or_default();
        let changed = text != self.wanted;
        if changed {
            self.wanted = text;
            self.end = None;
            let window = self.window().into_iter().collect();
            self.remove_others(&window);
            self.fetched.retain(|file| window.contains(file));
            if let Some(itself) = self.itself() {
                self.fetched.remove(&itself);
            }
        }
        let itself = self.itself();
        for file in self.window() {
            if self.end.as_ref() == Some(&file) {
                break;
            }
            let is_new = !self.on_the_way.contains(&file) && !self.fetched.contains(&file);
            let is_itself = itself.as_ref() == Some(&file);
            if is_new && !self.dir.join(&file).exists() {
                if !is_itself && !self.has_room() {
                    break;
                }
                self.start(file.clone(), is_itself);
            }
            if is_itself && self.on_the_way.contains(&file) {
                // Somebody waits for it: the line is for nothing else.
                break;
            }
        }
        changed
    }

    /// The gate, if nobody is just saying what is wanted, nor has said so.
    fn end_alone(&mut self) -> io::Result<Option<File>> {
        let Some(gate) = try_alone(&self.dir)? else { return Ok(None) };
        Ok((!self.look() && self.tasks.is_empty()).then_some(gate))
    }

    /// The segment that somebody has left to the worker.
    fn itself(&self) -> Option<String> {
        let mut words = self.wanted.split_whitespace();
        let file = words.next().filter(|file| fetch::is_segment(file))?;
        (words.nth(1) == Some(ITSELF)).then(|| file.to_owned())
    }

    /// Whether one more leaves room for those on their way, and for the one that recovery itself puts on its disk, which mostly is
    /// this one.
    fn has_room(&mut self) -> bool {
        let (Some(size), Some(free)) = (self.seg_size(), free_space(&self.dir)) else { return true };
        let wanted = (self.on_the_way.len() as u64 + 2) * size.bytes();
        if free < wanted && !self.is_full {
            tracing::warn!(
                "nothing is fetched ahead: {} are free on the disk of \"{}\", and {} have to be, so that recovery has room for what it \
                 asks for; {}",
                megabytes(free),
                self.dir.display(),
                megabytes(wanted),
                MAKE_ROOM
            );
        }
        self.is_full = free < wanted;
        !self.is_full
    }

    fn seg_size(&self) -> Option<SegSize> {
        let bytes = self.wanted.split_whitespace().nth(1)?.parse().ok()?;
        SegSize::new(bytes).ok()
    }

    fn window(&self) -> Vec<String> {
        let file = self.wanted.split_whitespace().next();
        let (Some(file), Some(size)) = (file, self.seg_size()) else { return Vec::new() };
        let next = |file: &String| fetch::successor(file, size);
        let ahead = std::iter::successors(next(&file.to_owned()), next).take(self.ahead);
        self.itself().into_iter().chain(ahead).collect()
    }

    fn start(&mut self, file: String, itself: bool) {
        let (dir, fetcher) = (self.dir.clone(), self.fetcher.clone());
        self.on_the_way.insert(file.clone());
        self.tasks.spawn(async move {
            let fetched = fetch_into(&dir, &fetcher, &file, itself).await;
            if let Err(error) = &fetched {
                tracing::warn!("could not put \"{file}\" into \"{}\": {error}", dir.display());
            }
            (file, fetched.unwrap_or(false))
        });
    }

    fn note(&mut self, done: Option<Result<(String, bool), tokio::task::JoinError>>) {
        let Some(Ok((file, fetched))) = done else { return };
        self.on_the_way.remove(&file);
        if fetched {
            self.fetched.insert(file);
        } else if self.end.as_ref().is_none_or(|end| file < *end) {
            self.end = Some(file);
        }
    }

    /// Removes segments that are not in the window. Those on their way end in vain.
    fn remove_others(&mut self, window: &BTreeSet<String>) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let segment = segment_of(&name);
            let busy = self.on_the_way.contains(segment);
            if fetch::is_segment(segment) && !window.contains(segment) && !busy {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// The segment that a file of this name holds, or is to hold.
fn segment_of(name: &str) -> &str {
    [FETCHING, UNFINISHED].into_iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// Removes what other keys have left in the spool, and what lies there from before there were keys. What cannot be
/// removed stays.
fn remove_unused(spool: &Path, own: &Path, age: Duration) -> io::Result<()> {
    // Else it is done by the next one.
    let Some(_alone) = try_alone(own)? else { return Ok(()) };
    let Ok(entries) = fs::read_dir(spool) else { return Ok(()) };
    let others = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let others = others.map(|entry| entry.path()).filter(|dir| dir != own);
    for dir in others.chain([spool.to_owned()]).filter(|dir| dir.join(WORKER_LOCK).exists()) {
        // Whoever has just wanted something is about to start a worker, which must not meet us with its lock.
        let is_unused = || is_older(&dir.join(WANTED), age);
        if !is_unused() {
            continue;
        }
        let Ok(Some(_lock)) = try_lock(&dir) else { continue };
        if !is_unused() {
            continue;
        }
        TempFile::remove_leftovers(&dir);
        for file in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if [WANTED, LOG, WORKER_LOCK].contains(&name.as_str()) || fetch::is_segment(segment_of(&name)) {
                let _ = fs::remove_file(file.path());
            }
        }
        if dir != spool {
            let _ = fs::remove_dir(&dir);
        }
    }
    Ok(())
}

/// Whether it was not changed for so long; also if it is not there.
fn is_older(path: &Path, age: Duration) -> bool {
    match fs::metadata(path).and_then(|found| found.modified()) {
        Ok(changed) => changed.elapsed().is_ok_and(|since| since >= age),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether the segment is there now. Of one that was asked for, a beginning will do.
async fn fetch_into(dir: &Path, fetcher: &Fetcher, file: &str, itself: bool) -> io::Result<bool> {
    let marker = dir.join(format!("{file}{FETCHING}"));
    let lock = own_file().truncate(true).open(&marker)?;
    lock.lock()?;
    let fetched = match itself {
        true => fetcher.look(file).await.into_answer(file).map_err(io::Error::other),
        false => Ok(fetcher.fetch_finished(file).await.map_or(Fetched::Missing, Fetched::Whole)),
    };
    let content = fetched.map(|fetched| match fetched {
        Fetched::Missing => None,
        Fetched::Whole(bytes) => Some((bytes, "")),
        Fetched::Unfinished { segment, .. } => Some((segment, UNFINISHED)),
    });
    let stored = match content {
        Err(error) => Err(error),
        Ok(None) => Ok(false),
        Ok(Some((bytes, suffix))) => {
            let (dir, path) = (dir.to_owned(), dir.join(format!("{file}{suffix}")));
            let store = move || {
                let stored = TempFile::create(&dir).and_then(|file| file.finish_synced(&bytes, &path));
                stored.map_err(|error| told(error, &dir, bytes.len() as u64, MAKE_ROOM))
            };
            tokio::task::spawn_blocking(store).await.unwrap_or_else(|error| Err(error.into())).map(|()| true)
        }
    };
    let _ = fs::remove_file(&marker);
    stored
}

/// Waits until nobody is fetching any more. Cancel-safe: a thread that waits for the lock would take the segment for
/// somebody who has gone.
async fn wait_for(marker: &Path) {
    let Ok(file) = open(marker) else { return };
    while matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        tokio::time::sleep(LOOK / 10).await;
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Segments that somebody else has put there would go into recovery, and files that we write would go where their links
/// lead. Nor may anybody else put another directory in its place.
fn trusted(dir: &Path) -> io::Result<()> {
    is_private(spool_of(dir)).and_then(|()| is_private(dir))
}

fn spool_of(dir: &Path) -> &Path {
    dir.parent().expect("it is named by a key")
}

fn is_private(dir: &Path) -> io::Result<()> {
    check_private_dir(dir).map_err(|error| match error {
        Distrust::Io(error) => error,
        Distrust::Wrong(problem) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it {problem}; give restore a --spool-dir that only its user can write"),
        ),
    })
}

/// Opens a file to be read, and nothing that a link leads to.
fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// For files that are written in place. Links are not followed.
fn own_file() -> OpenOptions {
    let mut options = File::options();
    options.write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
}

/// The file for what the worker of the spool with this key says.
pub(crate) fn worker_log(spool: &Path, key: &str) -> io::Result<File> {
    own_file().truncate(true).open(spool.join(key).join(LOG))
}

/// The worker's lock; `None` if somebody has it.
fn try_lock(dir: &Path) -> io::Result<Option<File>> {
    locked(own_file().truncate(false).open(dir.join(WORKER_LOCK))?)
}

/// The file at the gate of the spool that a key's directory is in.
fn gate(dir: &Path) -> io::Result<File> {
    own_file().truncate(false).open(spool_of(dir).join(GATE))
}

/// The gate, locked; `None` if somebody is just saying what is wanted.
fn try_alone(dir: &Path) -> io::Result<Option<File>> {
    locked(gate(dir)?)
}

fn locked(file: File) -> io::Result<Option<File>> {
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
