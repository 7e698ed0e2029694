//! Archive targets for a simulation that takes their steps: what the worker does in its loop, with the same queue,
//! progress, listing, hold and reading, without its waiting and without what is between it and the target.

use std::io;
use std::sync::Arc;

use tokio::time::Instant;
use walrelay_proto::SegSize;

use super::floors::Floors;
use super::listing::{Listing, Look, look, missing};
use super::queue::Queue;
use super::{reading, saved};
use crate::archive::repo::name::FileName;
use crate::archive::repo::progress::Progress;
use crate::store::Store;

/// What has become of a file on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The target says that it has it.
    Taken,
    /// It is not here any more.
    Gone,
    /// The target has not taken it, or it could not be read here.
    Failed,
    /// A sync has failed there.
    NotSynced,
}

/// A target of a relay, from one start to the next.
#[derive(Debug)]
pub struct SteppedTarget {
    name: String,
    store: Arc<Store>,
    floors: Arc<Floors>,
    /// Since the first look that has found WAL.
    work: Option<Work>,
}

#[derive(Debug)]
struct Work {
    queue: Queue,
    /// As this process has saved it.
    saved: Progress,
    listing: Listing,
}

/// What the data directory says that a target has.
#[derive(Debug)]
pub struct Claims {
    progress: Progress,
}

/// The targets of these names. WAL is held for each from here on. To be called before WAL arrives.
pub fn start(store: &Arc<Store>, names: &[String]) -> Vec<SteppedTarget> {
    let floors = Arc::new(Floors::new(store.clone()));
    if !names.is_empty() {
        store.expect_archive();
    }
    let target = |name: &String| {
        floors.expect(name, identity(name));
        SteppedTarget { name: name.clone(), store: store.clone(), floors: floors.clone(), work: None }
    };
    names.iter().map(target).collect()
}

fn identity(target: &str) -> String {
    format!("plain sim://{target}")
}

impl SteppedTarget {
    /// Looks at `pg_wal` and takes over what is there. WAL that will never reach the target is told, in words.
    ///
    /// # Errors
    /// The disk does not list it, or does not take the progress: another look.
    pub fn look(&mut self) -> io::Result<Vec<String>> {
        let listing = match look(&self.store)? {
            Look::Listing(listing) => listing,
            Look::Nothing | Look::Between => return Ok(Vec::new()),
        };
        match &mut self.work {
            Some(work) => work.listing = listing,
            None => {
                let (size, identity) = (listing.size, identity(&self.name));
                let queue = Queue::new(saved::read(&self.store, &self.name, size, &identity));
                // What was read may be in memory only: WAL is let go after this process has saved it.
                let saved = Progress::new(size, identity);
                self.work = Some(Work { queue, saved, listing });
            }
        }
        let told = self.observe();
        self.publish();
        Ok(told)
    }

    fn observe(&mut self) -> Vec<String> {
        let Some(Work { queue, listing, .. }) = &mut self.work else { return Vec::new() };
        let missing = missing(&self.store, queue.doubts(listing), listing.size);
        let gaps = queue.observe(listing, &|wal| !missing.contains(&wal));
        gaps.into_iter().map(|gap| format!("{gap:?}")).collect()
    }

    /// The next file to send, and whether it is to be written whatever is there. What has failed does not wait.
    pub fn next_file(&mut self) -> Option<(String, bool)> {
        let queue = &mut self.work.as_mut()?.queue;
        queue.retry_now();
        queue.next(Instant::now()).map(|(name, again)| (name.to_string(), again))
    }

    /// Content of a file; `None` if it is not here any more.
    ///
    /// # Errors
    /// The disk does not give it.
    pub fn content(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some((name, size)) = FileName::parse(name).zip(self.seg_size()) else { return Ok(None) };
        let Some(content) = reading::content(&self.store, &name, size)? else { return Ok(None) };
        let mut bytes = Vec::with_capacity(content.len() as usize);
        content.write_to(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn seg_size(&self) -> Option<SegSize> {
        self.store.identity().map(|identity| identity.seg_size)
    }

    /// What has become of one that was given out.
    pub fn sent(&mut self, name: &str, fate: Fate) {
        let Some((name, work)) = FileName::parse(name).zip(self.work.as_mut()) else { return };
        let (queue, now) = (&mut work.queue, Instant::now());
        match fate {
            Fate::Taken => drop(queue.taken(&name, now)),
            Fate::Gone => queue.gone(&name),
            Fate::NotSynced => {
                queue.not_synced();
                queue.failed(name, now);
            }
            Fate::Failed => drop(queue.failed(name, now)),
        }
    }

    /// Saves how far the target is, and lets go of what it needs no more.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn save(&mut self) -> io::Result<()> {
        let Some(work) = &mut self.work else { return Ok(()) };
        let progress = work.queue.progress().clone();
        saved::write(&self.store, &self.name, &progress)?;
        work.saved = progress;
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        let Some(Work { queue, saved, listing }) = &self.work else { return };
        let floor = queue.floor(saved, listing, None, true);
        self.floors.set(&self.name, &identity(&self.name), floor);
    }

    /// Whether something is to be saved.
    pub fn is_dirty(&self) -> bool {
        self.work.as_ref().is_some_and(|work| *work.queue.progress() != work.saved)
    }

    /// Whether the target has all that was seen last, and that was saved.
    pub fn is_idle(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.queue.len() == 0) && !self.is_dirty()
    }
}

impl Claims {
    /// Reads them. Waits for the disk.
    pub fn read(store: &Store, target: &str) -> Option<Claims> {
        let size = store.identity()?.seg_size;
        Some(Claims { progress: saved::read(store, target, size, &identity(target)) })
    }

    /// Whether the target is said to have this file, and nothing says that it may be lost there.
    pub fn has(&self, name: &str) -> bool {
        let name = FileName::parse(name);
        name.is_some_and(|name| self.progress.is_done(&name) && !self.progress.is_suspect(&name))
    }
}
