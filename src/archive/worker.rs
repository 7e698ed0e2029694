//! One target's worker: its queue, its failures, its pace.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use walrelay_proto::{Lsn, SegSize, WalFileName};

use super::archiver::{Floor, Floors};
use super::layout::Item;
use super::listing::Listing;
use super::name::{FileKind, FileName};
use super::outlook::{Pace, bytes, outlook};
use super::progress::Progress;
use super::queue::{Queue, needed_from};
use super::repository::{Entry, Repository, Written};
use super::tail::Tail;
use super::target::{OnQuota, Target};
use super::{backoff, cleanup, command};
use crate::rate::RateLimit;
use crate::store::{ArchivedWal, ReadError, Segment, Store};

/// Progress is saved at most this often, for all files that arrived meanwhile together.
const SAVE_EVERY: Duration = Duration::from_millis(200);
/// A failure that lasts is told again after this time.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// Pause after something that another attempt will not cure.
const FATAL_PAUSE: Duration = Duration::from_secs(60);
/// How often remains of uploads that were cut off are looked for in the target.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// What takes the files.
#[derive(Clone, Debug)]
pub(super) enum Sink {
    /// A directory or an object store.
    Objects(Repository),
    /// A command.
    Command(String),
}

/// A queue that the tail's task may look into.
pub(super) type SharedQueue = Arc<Mutex<Queue>>;

pub(super) fn lock(queue: &SharedQueue) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One target's worker.
pub(super) struct Worker {
    target: Target,
    sink: Sink,
    store: Arc<Store>,
    floors: Arc<Floors>,
    listings: watch::Receiver<Option<Arc<Listing>>>,
    rate: Option<RateLimit>,
    health: Health,
    over_quota: Option<Instant>,
    unsaved_since: Option<Instant>,
}

/// How the target does.
struct Health {
    /// Failures since the last success.
    failures: u32,
    /// Nothing is begun before.
    not_before: Instant,
    /// When it was last told, and how fast WAL has come since it fails.
    told: Option<Instant>,
    pace: Option<Pace>,
}

/// What has become of a file.
enum Outcome {
    Taken(Written),
    /// It is not here any more.
    Gone,
    Failed {
        reason: String,
        fatal: bool,
    },
    /// It could not be read here, which is not the target's fault.
    Unreadable(String),
}

enum Event {
    Sent(FileName, Outcome),
    /// The target's retention has removed these.
    Removed(Vec<FileName>),
    /// Work on the side is done.
    Aside,
    Listing,
    Time,
    Stop,
}

impl Worker {
    pub(super) fn new(
        target: Target,
        sink: Sink,
        store: Arc<Store>,
        floors: Arc<Floors>,
        listings: watch::Receiver<Option<Arc<Listing>>>,
    ) -> Worker {
        let rate = target.rate.map(RateLimit::new);
        let health = Health { failures: 0, not_before: Instant::now(), told: None, pace: None };
        Worker { target, sink, store, floors, listings, rate, health, over_quota: None, unsaved_since: None }
    }

    /// Sends files until it is told to stop; then those in flight have `grace` to arrive.
    pub(super) async fn run(mut self, stop: CancellationToken, grace: Duration) {
        let first = tokio::select! {
            first = self.listings.wait_for(Option::is_some) => first.ok().and_then(|first| first.clone()),
            () = stop.cancelled() => None,
        };
        let Some(mut listing) = first else { return };
        let mut saved = self.load(listing.size).await;
        let queue: SharedQueue = Arc::new(Mutex::new(Queue::new(saved.clone())));
        let mut work = JoinSet::new();
        let mut tail = JoinSet::new();
        if let (Sink::Objects(repository), Some(interval)) = (&self.sink, self.target.partial_interval) {
            let parts = Tail::new(repository.clone(), self.store.clone(), queue.clone(), interval);
            tail.spawn(parts.run(stop.clone()));
        }
        let mut tidy_at = Instant::now();
        self.observe(&queue, &listing);
        loop {
            self.begin(&queue, &mut work, &listing);
            self.report(&queue, &saved, &listing);
            if Instant::now() >= tidy_at {
                tidy_at = Instant::now() + TIDY_EVERY;
                self.tidy(&mut work);
            }
            let wake = self.wake(&queue).min(tidy_at);
            let event = tokio::select! {
                Some(done) = work.join_next() => done.unwrap_or(Event::Aside),
                // It ends before it is told to only by a panic, which is ours then: somebody watches us.
                Some(Err(error)) = tail.join_next(), if !stop.is_cancelled() => resume(error),
                changed = self.listings.changed() => changed.map_or(Event::Stop, |()| Event::Listing),
                () = sleep_until(wake) => Event::Time,
                () = stop.cancelled() => Event::Stop,
            };
            match event {
                Event::Sent(name, outcome) => self.sent(&queue, &mut work, name, outcome),
                Event::Listing => {
                    if let Some(found) = self.listings.borrow_and_update().clone() {
                        listing = found;
                    }
                    self.observe(&queue, &listing);
                    // More has come; what was saved may have to be let go.
                    self.publish(&saved, &listing);
                }
                Event::Removed(names) => self.removed(&queue, &names, &listing),
                Event::Time | Event::Aside => {}
                Event::Stop => break,
            }
            if self.unsaved_since.is_some_and(|since| since.elapsed() >= SAVE_EVERY) {
                self.save(&queue, &mut saved, &listing).await;
            }
        }
        let deadline = Instant::now() + grace;
        while let Ok(Some(done)) = timeout_at(deadline, work.join_next()).await {
            match done {
                Ok(Event::Sent(name, outcome)) => self.sent(&queue, &mut JoinSet::new(), name, outcome),
                Ok(Event::Removed(names)) => self.removed(&queue, &names, &listing),
                _ => {}
            }
        }
        let _ = timeout_at(deadline, tail.join_next()).await;
        self.save(&queue, &mut saved, &listing).await;
    }

    fn file(&self) -> String {
        format!("archive-{}.toml", self.target.name)
    }

    /// What was saved; from the beginning if that cannot be used, which is safe: the target knows what it has.
    async fn load(&self, size: SegSize) -> Progress {
        let (file, identity) = (self.file(), self.target.identity());
        let text = match self.store.read_state(&file) {
            Ok(Some(text)) => text,
            Ok(None) => return Progress::new(size, identity),
            Err(error) => {
                tracing::error!("could not read \"{file}\": {error}; everything is offered again");
                return Progress::new(size, identity);
            }
        };
        Progress::parse(&text, size, &identity).unwrap_or_else(|| {
            tracing::error!("\"{file}\" in the data directory is not usable; everything is offered again");
            Progress::new(size, identity)
        })
    }

    fn observe(&mut self, queue: &SharedQueue, listing: &Listing) {
        let exists = |wal: WalFileName| {
            let name = wal.format(listing.size);
            let at = |name: &str| self.store.wal_path(name).exists();
            // It may get its final name between the first two looks.
            at(&name) || at(&format!("{name}.partial")) || at(&name)
        };
        let mut queue = lock(queue);
        let before = queue.progress().clone();
        for gap in queue.observe(listing, &exists) {
            let name = |segno| WalFileName::new(gap.tli, segno).format(listing.size);
            tracing::error!(
                "archive target \"{}\" will never get WAL from {} to before {}: it was removed before the target took \
                 it; recorded in \"{}\"",
                self.target.name,
                name(gap.from),
                name(gap.to),
                self.file(),
            );
        }
        if *queue.progress() != before {
            self.unsaved_since.get_or_insert(Instant::now());
        }
    }

    /// Begins as many files as may be in flight; only one while the target fails.
    fn begin(&mut self, queue: &SharedQueue, work: &mut JoinSet<Event>, listing: &Listing) {
        let most = if self.health.failures > 0 { 1 } else { self.target.concurrency };
        let now = Instant::now();
        while self.health.not_before <= now && work.len() < most {
            let Some(name) = lock(queue).next(now) else { return };
            let (sink, store, size) = (self.sink.clone(), self.store.clone(), listing.size);
            work.spawn(async move {
                // Not even a fault of ours may lose sight of the file: its WAL would be held for ever, silently.
                let sent = AssertUnwindSafe(send(&sink, &store, &name, size)).catch_unwind().await;
                let fault = |_| Outcome::Unreadable("a fault of walrelay, see standard error".to_owned());
                let outcome = sent.unwrap_or_else(fault);
                Event::Sent(name, outcome)
            });
        }
    }

    fn sent(&mut self, queue: &SharedQueue, work: &mut JoinSet<Event>, name: FileName, outcome: Outcome) {
        let now = Instant::now();
        match outcome {
            Outcome::Taken(written) => {
                lock(queue).settled(&name);
                self.unsaved_since.get_or_insert(now);
                self.taken(&name, &written, now);
                self.remove_chunks(work, &name);
            }
            Outcome::Gone => lock(queue).gone(&name),
            Outcome::Unreadable(reason) => {
                let pause = lock(queue).failed(name.clone(), now);
                tracing::error!(
                    "could not read \"{name}\" for archive target \"{}\": {reason}; will try again in {} s",
                    self.target.name,
                    pause.as_secs().max(1),
                );
            }
            Outcome::Failed { reason, fatal } => {
                lock(queue).failed(name.clone(), now);
                self.failed(&name, &reason, fatal, now);
            }
        }
    }

    fn taken(&mut self, name: &FileName, written: &Written, now: Instant) {
        let target = &self.target.name;
        if self.health.told.take().is_some() {
            tracing::info!("archive target \"{target}\" takes WAL again");
        }
        self.health.failures = 0;
        self.health.pace = None;
        match written {
            Written::New { size } => {
                tracing::debug!("archived \"{name}\" to \"{target}\"");
                if let Some(rate) = &self.rate {
                    self.health.not_before = rate.pass(*size as usize, now);
                }
            }
            Written::Same => tracing::debug!("archive target \"{target}\" has \"{name}\" already"),
            Written::Conflict { kept_aside } => tracing::error!(
                "archive target \"{target}\" has another \"{name}\" with different content; ours is kept as \
                 \"{kept_aside}\": find out which cluster or timeline the other one belongs to"
            ),
        }
    }

    fn failed(&mut self, name: &FileName, reason: &str, fatal: bool, now: Instant) {
        let health = &mut self.health;
        health.failures = health.failures.saturating_add(1);
        let pause = if fatal { FATAL_PAUSE } else { backoff::pause(health.failures) };
        health.not_before = now + pause;
        let end = self.store.tip().map_or(Lsn::INVALID, |tip| tip.write_lsn);
        health.pace.get_or_insert(Pace::starting(now, end));
        if health.told.is_none_or(|told| now.duration_since(told) >= REPORT_EVERY) {
            health.told = Some(now);
            tracing::warn!(
                "could not archive \"{name}\" to \"{}\": {reason}; will try again until it works",
                self.target.name
            );
        }
    }

    /// Says how far behind a target is that is beyond its quota, or has not taken anything for a while, and how
    /// long that can go on.
    fn report(&mut self, queue: &SharedQueue, saved: &Progress, listing: &Listing) {
        let behind = behind(saved, listing);
        let target = &self.target.name;
        let waiting = lock(queue).len();
        let over = self.target.quota.is_some_and(|quota| behind > quota);
        if !over {
            self.over_quota = None;
        }
        let now = Instant::now();
        if over && self.over_quota.is_none_or(|told| now.duration_since(told) >= REPORT_EVERY) {
            self.over_quota = Some(now);
            let quota = bytes(self.target.quota.unwrap_or_default());
            let policy = match self.target.on_quota {
                OnQuota::Hold => "it is kept nevertheless (on-quota = hold), until the disk is full",
                OnQuota::Drop => "the oldest is let go (on-quota = drop)",
            };
            let behind = bytes(behind);
            tracing::error!(
                "archive target \"{target}\" needs {behind} of WAL, its quota is {quota}: {policy}"
            );
        }
        let Some(pace) = self.health.pace.filter(|_| self.health.failures > 0 && !over) else { return };
        let due = self.health.told.is_some_and(|told| now.duration_since(told) >= REPORT_EVERY / 2);
        if due {
            self.health.told = Some(now);
            let outlook = outlook(pace, self.target.quota, behind, self.store.data_dir(), listing.end);
            tracing::warn!(
                "archive target \"{target}\" is {} ({waiting} files) behind; the WAL is kept: {outlook}",
                bytes(behind)
            );
        }
    }

    /// When there is something to do without anything happening.
    fn wake(&self, queue: &SharedQueue) -> Instant {
        let now = Instant::now();
        let save = self.unsaved_since.map(|since| since + SAVE_EVERY);
        let ready = lock(queue).wake().map(|at| at.max(self.health.not_before));
        let waits = (self.health.not_before > now).then_some(self.health.not_before);
        let wake = [save, ready, waits].into_iter().flatten().filter(|at| *at > now).min();
        wake.unwrap_or(now + REPORT_EVERY / 2).min(now + REPORT_EVERY / 2)
    }

    /// What arrived in pieces and is whole now needs them no more.
    fn remove_chunks(&self, work: &mut JoinSet<Event>, name: &FileName) {
        let (Sink::Objects(repository), Some(_)) = (&self.sink, self.target.partial_interval) else { return };
        let about_wal = matches!(name.kind(), FileKind::Segment | FileKind::Partial);
        let Some(segment) = name.segment_digits().filter(|_| about_wal).and_then(FileName::parse) else {
            return;
        };
        let repository = repository.clone();
        work.spawn(async move {
            if let Err(error) = repository.remove_all_chunks(&segment).await {
                tracing::debug!("could not remove the pieces of \"{segment}\": {error}");
            }
            Event::Aside
        });
    }

    /// House-keeping in the target: remains of uploads, and its retention.
    fn tidy(&self, work: &mut JoinSet<Event>) {
        let Sink::Objects(repository) = &self.sink else { return };
        let repository = repository.clone();
        let (keep_age, keep_size) = (self.target.keep_age, self.target.keep_size);
        work.spawn(async move {
            if let Err(error) = repository.storage().tidy().await {
                tracing::debug!("could not look for remains of uploads: {error}");
            }
            let name = repository.name();
            match cleanup::retain(&repository, keep_age, keep_size).await {
                Ok(removed) if removed.is_empty() => Event::Aside,
                Ok(removed) => {
                    let count = removed.len();
                    tracing::info!("removed {count} old objects from archive target \"{name}\"");
                    Event::Removed(removed.into_iter().filter_map(wal_file).collect())
                }
                Err(error) => {
                    tracing::warn!("could not remove old WAL from archive target \"{name}\": {error}");
                    Event::Aside
                }
            }
        });
    }

    /// Slots cannot count on what retention has removed.
    fn removed(&mut self, queue: &SharedQueue, names: &[FileName], listing: &Listing) {
        let segments = names.iter().filter(|name| name.kind() == FileKind::Segment);
        let ends = segments.filter_map(|name| Some(name.wal(listing.size)?.segno.end(listing.size)));
        if let Some(end) = ends.max() {
            lock(queue).removed_before(end);
            self.unsaved_since.get_or_insert_with(Instant::now);
        }
    }

    /// Saves what the target has got, and lets go of what it needs no more.
    async fn save(&mut self, queue: &SharedQueue, saved: &mut Progress, listing: &Listing) {
        let progress = lock(queue).progress().clone();
        let (store, file, text) = (self.store.clone(), self.file(), progress.format());
        let written = tokio::task::spawn_blocking(move || store.replace_state(&file, &text)).await;
        match written {
            Ok(Ok(())) => {
                *saved = progress;
                self.unsaved_since = None;
                self.publish(saved, listing);
            }
            Ok(Err(error)) => {
                self.unsaved_since = Some(Instant::now() + FATAL_PAUSE / 10);
                tracing::error!("could not save how far archive target \"{}\" is: {error}", self.target.name);
            }
            Err(error) => tracing::error!("could not save archive progress: {error}"),
        }
    }

    /// Tells retention what this target needs, and readers what it has.
    fn publish(&self, saved: &Progress, listing: &Listing) {
        let needed = needed_from(saved, listing);
        let dropped = match (self.target.on_quota, self.target.quota) {
            (OnQuota::Drop, Some(quota)) => listing.end.rewind(quota).seg_start(listing.size),
            _ => Lsn::INVALID,
        };
        let readable = matches!(self.sink, Sink::Objects(_));
        let archived = saved.since().filter(|since| readable && *since < needed);
        let archived = archived.map(|from| ArchivedWal { from, to: needed });
        self.floors.set(&self.target.name, Floor { hold: needed.max(dropped), archived });
    }
}

/// The end of a task becomes ours.
fn resume(error: JoinError) -> Event {
    match error.try_into_panic() {
        Ok(payload) => std::panic::resume_unwind(payload),
        Err(_) => Event::Aside,
    }
}

fn behind(saved: &Progress, listing: &Listing) -> u64 {
    let needed = needed_from(saved, listing);
    if needed == Lsn::INVALID || needed > listing.end { 0 } else { listing.end.since(needed) }
}

fn wal_file(entry: Entry) -> Option<FileName> {
    match entry.item {
        Item::File(name, _) => Some(name),
        _ => None,
    }
}

/// Sends one file.
async fn send(sink: &Sink, store: &Arc<Store>, name: &FileName, size: SegSize) -> Outcome {
    match sink {
        Sink::Objects(repository) => {
            let (from, file) = (store.clone(), name.clone());
            let content = tokio::task::spawn_blocking(move || content(&from, &file, size)).await;
            let content = match content {
                Ok(Ok(Some(content))) => content,
                Ok(Ok(None)) => return Outcome::Gone,
                Ok(Err(error)) => return Outcome::Unreadable(error.to_string()),
                Err(error) => return Outcome::Unreadable(error.to_string()),
            };
            match repository.write(name, content).await {
                Ok(written) => Outcome::Taken(written),
                Err(error) => Outcome::Failed { reason: error.to_string(), fatal: false },
            }
        }
        Sink::Command(line) => {
            let path = store.wal_path(name.as_str());
            let path = std::path::absolute(&path).unwrap_or(path);
            let Ok(length) = std::fs::metadata(&path).map(|found| found.len()) else { return Outcome::Gone };
            match command::run(line, store.data_dir(), &path, name).await {
                Ok(()) => Outcome::Taken(Written::New { size: length }),
                Err(failure) => Outcome::Failed { reason: failure.reason, fatal: failure.fatal },
            }
        }
    }
}

/// A segment of the shared map, as bytes that keep it mapped.
struct Mapped(Arc<Segment>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes(0, self.0.published() as usize)
    }
}

/// A file's content; `None` if it is not here any more. For blocking threads.
fn content(store: &Store, name: &FileName, size: SegSize) -> std::io::Result<Option<Bytes>> {
    let Some(wal) = name.wal(size).filter(|_| name.kind() == FileKind::Segment) else {
        return read_file(&store.wal_path(name.as_str()));
    };
    match store.finished_segment(wal) {
        Ok(segment) => {
            // A bad sector is an error here; found later, when the bytes are looked at, it would be a signal.
            segment.populate(0, segment.published() as usize)?;
            Ok(Some(Bytes::from_owner(Mapped(segment))))
        }
        Err(ReadError::Removed(_)) => Ok(None),
        Err(ReadError::Io { source, .. }) => Err(source),
    }
}

/// The last segment of a timeline that was left is not synced by anybody else; what is archived must not be
/// less after a crash.
fn read_file(path: &Path) -> std::io::Result<Option<Bytes>> {
    let read = || -> std::io::Result<Bytes> {
        let mut file = std::fs::File::open(path)?;
        file.sync_all()?;
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut content)?;
        Ok(content.into())
    };
    match read() {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
