//! A segment on its way into a file: verified and written while it comes, little of it in memory at a time.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use walrelay_proto::{TimelineHistory, WalIdentity};

use super::{Wanted, lock};
use crate::archive::repo::check::{Fault, Gradual};
use crate::mutation::{self, Mutation};
use crate::objects::buffer;
use crate::store::Segment;

/// Bytes verified and written in one go: whole pages, and more than the two that [`Gradual`] wants first.
const STEP: usize = 128 << 10;

/// A segment that is written to a file of its own. Nobody looks for the file's name: the segment is there when it is
/// mapped, after all of it was verified. Then, or when it is given up, the name goes.
#[derive(Debug)]
pub(super) struct Arriving {
    wanted: Wanted,
    id: WalIdentity,
    history: Arc<TimelineHistory>,
    path: PathBuf,
    /// What has come of it, once it was begun.
    taken: Mutex<Option<Result<(), Refusal>>>,
    /// The file's name may be there.
    is_named: AtomicBool,
    /// The disk has something to write, and has not done so.
    is_storing: AtomicBool,
}

/// Why it is no segment.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is not what was wanted.
    Damaged(Fault),
    /// It broke off, or its end has not come yet.
    Incomplete,
    /// The disk did not take it.
    Disk(io::Error),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        Refusal::Damaged(fault)
    }
}

impl Arriving {
    /// What is wanted of this cluster's WAL, on its way to this file.
    pub(super) fn new(
        wanted: Wanted,
        id: WalIdentity,
        history: Arc<TimelineHistory>,
        path: PathBuf,
    ) -> Arriving {
        let (taken, is_named, is_storing) =
            (Mutex::default(), AtomicBool::new(false), AtomicBool::new(false));
        Arriving { wanted, id, history, path, taken, is_named, is_storing }
    }

    /// Takes what comes, from the first byte on. False if there is no need for the rest: the disk does not take it.
    pub(super) fn take(&self, content: &mut dyn Read) -> bool {
        *lock(&self.taken) = Some(Err(Refusal::Incomplete));
        let taken = self.store(content);
        let goes_on = !matches!(taken, Err(Refusal::Disk(_)));
        *lock(&self.taken) = Some(taken);
        goes_on
    }

    /// Whether the disk is what is waited for.
    pub(super) fn is_storing(&self) -> bool {
        self.is_storing.load(Ordering::Relaxed)
    }

    /// Maps what was taken. For blocking threads.
    ///
    /// # Errors
    /// What was taken is not what was wanted, or the disk did not take it.
    pub(super) fn map(&self) -> Result<Segment, Refusal> {
        lock(&self.taken).take().unwrap_or(Err(Refusal::Incomplete))?;
        let (size, published) = (self.id.seg_size, self.len());
        let segment = Segment::open(&self.path, self.wanted.name, size, published).map_err(Refusal::Disk)?;
        fs::remove_file(&self.path).map_err(Refusal::Disk)?;
        self.is_named.store(false, Ordering::Relaxed);
        Ok(segment)
    }

    /// Bytes that count.
    fn len(&self) -> u64 {
        self.wanted.len.unwrap_or(self.id.seg_size.bytes())
    }

    fn store(&self, content: &mut dyn Read) -> Result<(), Refusal> {
        let mut file = self.storing(|| self.create())?;
        let mut put = |piece: &[u8]| self.storing(|| file.write_all(piece));
        verified(content, self.wanted, self.id, &self.history, &mut put)?;
        self.storing(|| file.set_len(self.id.seg_size.bytes()))
    }

    /// A new file, whatever an earlier attempt has left.
    fn create(&self) -> io::Result<File> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.is_named.store(true, Ordering::Relaxed);
        File::options().write(true).create_new(true).open(&self.path)
    }

    fn storing<T>(&self, work: impl FnOnce() -> io::Result<T>) -> Result<T, Refusal> {
        self.is_storing.store(true, Ordering::Relaxed);
        let done = work();
        self.is_storing.store(false, Ordering::Relaxed);
        done.map_err(Refusal::Disk)
    }
}

/// Gives `put` what comes of what is wanted, each piece after it was verified.
///
/// # Errors
/// It is not what was wanted, it broke off, or `put` has failed. What it has got is of no use then.
pub(super) fn verified(
    content: &mut dyn Read,
    wanted: Wanted,
    id: WalIdentity,
    history: &TimelineHistory,
    put: &mut dyn FnMut(&[u8]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let check = Gradual::new(id, wanted.name);
    // What lies behind the end of a part may be anything, as long as it is there.
    let (mut check, mut content) = match wanted.len {
        None => (check.on(Some(history)), content.take(u64::MAX)),
        Some(len) => (check.first(len), content.take(len)),
    };
    let mut piece = vec![0; STEP];
    loop {
        match buffer::fill(&mut content, &mut piece).map_err(|_| Refusal::Incomplete)? {
            0 => break,
            len => {
                let checked = check.push(&piece[..len]);
                if !mutation::is(Mutation::RecallUnverified) {
                    checked?;
                }
                put(&piece[..len])?;
            }
        }
    }
    Ok(check.finish()?)
}

impl Drop for Arriving {
    /// For blocking threads, if anything was begun. Whatever has come of it, a file that is not mapped is of no use.
    fn drop(&mut self) {
        if self.is_named.load(Ordering::Relaxed) {
            // What cannot be removed goes at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}
