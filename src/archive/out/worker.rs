//! One target's worker: its queue, its failures, its pace.

mod send;
#[cfg(test)]
pub(super) mod tests;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use walrelay_proto::{Lsn, SegSize, WalFileName};

use super::backoff;
use super::board::Board;
use super::floors::Floors;
use super::listing::{self, Listing};
use super::outlook::{Pace, bytes, outlook};
use super::queue::{Queue, needed_from};
use super::saved;
use super::tail::Tail;
use crate::archive::repo::layout::Item;
use crate::archive::repo::name::{FileKind, FileName};
use crate::archive::repo::progress::{Progress, sent_file, state_file};
use crate::archive::repo::repository::{Entry, Repository, Written};
use crate::archive::repo::target::{OnQuota, Target};
use crate::archive::tend::cleanup::{self, Plan};
use crate::changeable::Changeable;
use crate::moment::Past;
use crate::objects::Places;
use crate::rate::RateLimit;
use crate::store::Store;

/// Progress is saved at most this often, for all files that arrived meanwhile together.
const SAVE_EVERY: Duration = Duration::from_millis(200);
/// A failure that lasts is told again after this time, and how far a target is behind after half of it.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// A pause is told again after so many of these times: it was ordered.
const PAUSES_PER_REPORT: u32 = 10;
/// What a file may take without a word, besides its bytes at `USUAL` bytes per second.
const SLOW: Duration = Duration::from_secs(10);
const USUAL: u64 = 1 << 20;
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

impl Sink {
    /// Whether what goes to both is encrypted with the same keys.
    pub(super) fn has_keys_of(&self, other: &Sink) -> bool {
        match (self, other) {
            (Sink::Objects(one), Sink::Objects(other)) => one.has_keys_of(other),
            _ => true,
        }
    }
}

/// What a target is to be.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) target: Target,
    pub(super) sink: Sink,
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
    /// What it is to be; `None` when it is no target any more.
    wanted: watch::Receiver<Option<Arc<Wanted>>>,
    store: Arc<Store>,
    floors: Arc<Floors>,
    places: Arc<Places>,
    listings: watch::Receiver<Option<Arc<Listing>>>,
    rate: Option<RateLimit>,
    health: Health,
    board: Board,
    /// Files on their way.
    sending: HashMap<FileName, Sending>,
    /// Files that somebody else is writing in the target, and when that was last told.
    unfinished: HashMap<FileName, Instant>,
    over_quota: Option<Instant>,
    /// When it was last told that it is paused.
    paused_told: Option<Instant>,
    unsaved_since: Option<Instant>,
    /// [`REPORT_EVERY`] but for tests.
    report_every: Duration,
}

/// A file on its way.
struct Sending {
    since: Instant,
    begun: Past,
    told: Option<Instant>,
    /// When it is time to wonder.
    late: Instant,
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
        /// Everything that was on its way to the target may be lost.
        not_synced: bool,
    },
    /// Somebody else is writing it there.
    Unfinished(String),
    /// It could not be read here, which is not the target's fault.
    Unreadable(String),
}

enum Event {
    Sent(FileName, Outcome),
    /// The target's retention is about to remove these.
    Retention(Plan),
    /// Work on the side is done.
    Aside,
    /// Somebody has changed what it is to be.
    Wanted,
    Listing,
    Time,
    Stop,
}

impl Worker {
    /// For the target that is wanted `now`; `wanted` tells when that changes.
    pub(super) fn new(
        now: Arc<Wanted>,
        wanted: watch::Receiver<Option<Arc<Wanted>>>,
        store: Arc<Store>,
        floors: Arc<Floors>,
        places: Arc<Places>,
        listings: watch::Receiver<Option<Arc<Listing>>>,
    ) -> Worker {
        let (target, sink) = (now.target.clone(), now.sink.clone());
        let board = floors.board(&target.name);
        let rate = target.rate.map(RateLimit::new);
        let health = Health { failures: 0, not_before: Instant::now(), told: None, pace: None };
        Worker {
            target,
            sink,
            wanted,
            store,
            floors,
            places,
            listings,
            rate,
            health,
            board,
            sending: HashMap::new(),
            unfinished: HashMap::new(),
            over_quota: None,
            paused_told: None,
            unsaved_since: None,
            report_every: REPORT_EVERY,
        }
    }

    /// Sends files until it is told to stop, or is no target or another one any more; then those in flight have `grace` to
    /// arrive.
    pub(super) async fn run(mut self, stop: CancellationToken, grace: Changeable<Duration>) {
        let first = tokio::select! {
            first = self.listings.wait_for(Option::is_some) => first.ok().and_then(|first| first.clone()),
            () = stop.cancelled() => None,
            _ = self.wanted.changed() => None,
        };
        let Some(mut listing) = first else { return };
        let loaded = self.load(listing.size).await;
        self.claim(&loaded);
        self.keep_sent().await;
        // What was read may be in memory only, and lost with it. WAL is let go after this process has saved it.
        let mut saved = Progress::new(listing.size, self.target.identity());
        let queue: SharedQueue = Arc::new(Mutex::new(Queue::new(loaded)));
        let (mut work, mut chores, mut retention) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        let stop_tail = stop.child_token();
        let mut tail = self.start_tail(&queue, &stop_tail);
        let mut tidy_at = Instant::now();
        self.observe(&queue, &listing).await;
        self.save(&queue, &mut saved, &listing).await;
        let board = self.board.clone();
        loop {
            // From here on a change of that is heard.
            let order = board.order();
            let looked_at = board.take_dismissal();
            if looked_at > 0 {
                lock(&queue).dismiss_gaps(looked_at);
                self.unsaved_since.get_or_insert(Instant::now());
            }
            self.begin(&queue, &mut work, &listing);
            self.report(&queue, &saved, &listing).await;
            if Instant::now() >= tidy_at && retention.is_empty() && !self.board.is_paused() {
                tidy_at = Instant::now() + TIDY_EVERY;
                self.tidy(&mut retention);
            }
            let wake = self.wake(&queue).min(tidy_at.max(Instant::now() + SAVE_EVERY));
            let event = tokio::select! {
                Some(done) = work.join_next() => done.unwrap_or_else(resume),
                Some(done) = chores.join_next() => done.unwrap_or_else(resume),
                Some(done) = retention.join_next() => done.unwrap_or_else(resume),
                // It ends before it is told to only by a panic, which is ours then: somebody watches us.
                Some(Err(error)) = tail.join_next(), if !stop.is_cancelled() => resume(error),
                changed = self.wanted.changed() => changed.map_or(Event::Stop, |()| Event::Wanted),
                () = order => Event::Aside,
                changed = self.listings.changed() => changed.map_or(Event::Stop, |()| Event::Listing),
                () = sleep_until(wake) => Event::Time,
                () = stop.cancelled() => Event::Stop,
            };
            match event {
                Event::Sent(name, outcome) => self.sent(&queue, &mut chores, name, outcome),
                Event::Listing => {
                    if let Some(found) = self.listings.borrow_and_update().clone() {
                        listing = found;
                    }
                    self.observe(&queue, &listing).await;
                    // More has come; what was saved may have to be let go.
                    self.publish(&queue, &saved, &listing);
                }
                // Made with settings that are none any more, or for a target that somebody has in hand.
                Event::Retention(_)
                    if self.wanted.has_changed().unwrap_or(true) || self.board.is_paused() => {}
                Event::Retention(plan) => {
                    self.removing(&queue, &plan, &listing);
                    // Before they are gone nobody counts on them any more.
                    if self.save(&queue, &mut saved, &listing).await {
                        self.remove(&mut retention, plan);
                    }
                }
                Event::Wanted => {
                    let wanted = self.wanted.borrow_and_update().clone();
                    let same = |wanted: &Arc<Wanted>| wanted.target.identity() == self.target.identity();
                    let Some(wanted) = wanted.filter(same) else { break };
                    if self.target != wanted.target {
                        // What the old settings would remove is not removed from here on.
                        retention = JoinSet::new();
                    }
                    self.take_over(&wanted, &queue);
                    self.keep_sent().await;
                    // Ended in the middle it leaves pieces that are good, or none; the new one looks what is there.
                    tail = self.start_tail(&queue, &stop_tail);
                    tidy_at = Instant::now();
                }
                Event::Time | Event::Aside => {}
                Event::Stop => break,
            }
            if self.unsaved_since.is_some_and(|since| since.elapsed() >= SAVE_EVERY) {
                self.save(&queue, &mut saved, &listing).await;
            }
        }
        drop(retention);
        stop_tail.cancel();
        let deadline = Instant::now() + grace.current();
        while let Ok(Some(done)) = timeout_at(deadline, work.join_next()).await {
            if let Ok(Event::Sent(name, outcome)) = done {
                self.sent(&queue, &mut JoinSet::new(), name, outcome);
            }
        }
        if !self.sending.is_empty() {
            let left = self.sending.len();
            // Whether their syncs say no will be said to nobody.
            lock(&queue).not_synced();
            let wanted = self.wanted.borrow().clone();
            let is_target = wanted.is_some_and(|wanted| wanted.target.identity() == self.target.identity());
            let until = match is_target {
                true => "by the end of the shutdown; they are offered again at the next start",
                false => "in time when it was taken out of the configuration or changed there",
            };
            tracing::warn!("archive target \"{}\" has not taken {left} files {until}", self.target.name);
        }
        let _ = timeout_at(deadline, tail.join_next()).await;
        self.save(&queue, &mut saved, &listing).await;
    }

    /// Tells the place whose it is.
    fn claim(&self, progress: &Progress) {
        let Sink::Objects(repository) = &self.sink else { return };
        repository.storage().claim(
            self.places.clone(),
            &self.target.name,
            progress.marker().map(str::to_owned),
            progress.has_anything(),
        );
    }

    fn start_tail(&self, queue: &SharedQueue, stop: &CancellationToken) -> JoinSet<()> {
        let mut tail = JoinSet::new();
        if let (Sink::Objects(repository), Some(interval)) = (&self.sink, self.target.partial_interval) {
            let parts = Tail::new(
                repository.clone(),
                self.store.clone(),
                queue.clone(),
                interval,
                self.board.clone(),
            );
            tail.spawn(parts.run(stop.clone()));
        }
        tail
    }

    /// Goes on with other settings: what is on its way ends as it began, what has failed is tried again at once.
    fn take_over(&mut self, wanted: &Wanted, queue: &SharedQueue) {
        self.note_marker(queue);
        if self.target.rate != wanted.target.rate {
            self.rate = wanted.target.rate.map(RateLimit::new);
        }
        (self.target, self.sink) = (wanted.target.clone(), wanted.sink.clone());
        self.health.not_before = Instant::now();
        lock(queue).retry_now();
        let progress = lock(queue).progress().clone();
        self.claim(&progress);
    }

    /// Has what is sent and cannot be read back known after a restart.
    async fn keep_sent(&self) {
        let Sink::Objects(repository) = &self.sink else { return };
        if !repository.only_writes() {
            return;
        }
        let (store, file) = (self.store.clone(), sent_file(&self.target.name));
        let (from, name) = (store.clone(), file.clone());
        let read = tokio::task::spawn_blocking(move || from.read_state(&name)).await;
        let kept = read.map_err(std::io::Error::from).flatten().unwrap_or_else(|error| {
            tracing::error!("could not read \"{file}\": {error}; what was sent before may be kept aside as somebody else's");
            None
        });
        let keep = move |text: &str| store.replace_state(&file, text);
        let repository = repository.clone();
        let done = tokio::task::spawn_blocking(move || {
            repository.keep_sent(&kept.unwrap_or_default(), Arc::new(keep))
        });
        if let Err(error) = done.await {
            tracing::error!("a task of the archive has ended: {error}");
        }
    }

    fn file(&self) -> String {
        state_file(&self.target.name)
    }

    /// What was saved.
    async fn load(&self, size: SegSize) -> Progress {
        let (store, name, identity) = (self.store.clone(), self.target.name.clone(), self.target.identity());
        let read = tokio::task::spawn_blocking(move || saved::read(&store, &name, size, &identity)).await;
        read.unwrap_or_else(|_| Progress::new(size, self.target.identity()))
    }

    /// Takes over what is in `pg_wal`, and says what is missing for good.
    async fn observe(&mut self, queue: &SharedQueue, listing: &Listing) {
        let doubts = lock(queue).doubts(listing);
        let (store, size) = (self.store.clone(), listing.size);
        let look = move || listing::missing(&store, doubts, size);
        let missing = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        let exists = |wal: WalFileName| !missing.contains(&wal);
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
        if self.board.is_paused() {
            return;
        }
        while self.health.not_before <= now && work.len() < most {
            let Some((name, again)) = lock(queue).next(now) else { return };
            let (sink, store, size) = (self.sink.clone(), self.store.clone(), listing.size);
            self.sending.insert(
                name.clone(),
                Sending { since: now, begun: Past::now(), told: None, late: now + self.slow_after(size) },
            );
            work.spawn(async move {
                // Not even a fault of ours may lose sight of the file: its WAL would be held for ever, silently.
                let sent =
                    AssertUnwindSafe(send::send(&sink, &store, &name, size, again)).catch_unwind().await;
                let fault = |_| Outcome::Unreadable("a fault of walrelay, see standard error".to_owned());
                let outcome = sent.unwrap_or_else(fault);
                Event::Sent(name, outcome)
            });
        }
    }

    fn sent(&mut self, queue: &SharedQueue, chores: &mut JoinSet<Event>, name: FileName, outcome: Outcome) {
        let now = Instant::now();
        self.sending.remove(&name);
        match outcome {
            Outcome::Taken(_) if !lock(queue).taken(&name, now) => {}
            Outcome::Taken(written) => {
                self.unsaved_since.get_or_insert(now);
                self.taken(&name, &written, now);
                self.remove_chunks(chores, &name);
            }
            Outcome::Gone => lock(queue).gone(&name),
            Outcome::Unreadable(reason) => {
                let pause = lock(queue).failed(name.clone(), now);
                self.board.failed(&name.to_string(), &reason);
                tracing::error!(
                    "could not read \"{name}\" for archive target \"{}\": {reason}; will try again in {} s",
                    self.target.name,
                    pause.as_secs().max(1),
                );
            }
            Outcome::Failed { reason, fatal, not_synced } => {
                if not_synced {
                    lock(queue).not_synced();
                    self.unsaved_since.get_or_insert(now);
                }
                lock(queue).failed(name.clone(), now);
                self.board.failed(&name.to_string(), &reason);
                self.failed(&name, &reason, fatal, now);
            }
            Outcome::Unfinished(reason) => {
                lock(queue).failed(name.clone(), now);
                let told = self.unfinished.get(&name);
                if told.is_none_or(|told| now.duration_since(*told) >= self.report_every) {
                    tracing::warn!("could not archive \"{name}\": {reason}; it is waited for");
                    self.unfinished.insert(name, now);
                }
            }
        }
    }

    fn taken(&mut self, name: &FileName, written: &Written, now: Instant) {
        let target = &self.target.name;
        self.board.archived(&name.to_string());
        if self.health.told.take().is_some() {
            tracing::info!("archive target \"{target}\" takes WAL again");
        }
        self.health.failures = 0;
        self.health.pace = None;
        self.unfinished.remove(name);
        match written {
            Written::New { size } => {
                tracing::debug!("archived \"{name}\" to \"{target}\"");
                if let Some(rate) = &self.rate {
                    self.health.not_before = rate.pass(*size as usize, now);
                }
            }
            Written::Same => tracing::debug!("archive target \"{target}\" has \"{name}\" already"),
            Written::Conflict { kept_aside } => {
                self.board.conflicted();
                tracing::error!(
                    "archive target \"{target}\" has another \"{name}\" with different content; ours is kept as \
                     \"{kept_aside}\": find out which cluster or timeline the other one belongs to"
                );
            }
        }
    }

    fn failed(&mut self, name: &FileName, reason: &str, fatal: bool, now: Instant) {
        let report_every = self.report_every;
        let health = &mut self.health;
        health.failures = health.failures.saturating_add(1);
        let pause = if fatal { FATAL_PAUSE } else { backoff::pause(health.failures) };
        health.not_before = now + pause;
        let end = self.store.tip().map_or(Lsn::INVALID, |tip| tip.write_lsn);
        health.pace.get_or_insert(Pace::starting(now, end));
        if health.told.is_none_or(|told| now.duration_since(told) >= report_every) {
            health.told = Some(now);
            tracing::warn!(
                "could not archive \"{name}\" to \"{}\": {reason}; will try again until it works",
                self.target.name
            );
        }
    }

    /// Says how far behind a target is that is beyond its quota, or has not taken anything for a while, and how
    /// long that can go on.
    async fn report(&mut self, queue: &SharedQueue, saved: &Progress, listing: &Listing) {
        let behind = behind(saved, listing);
        let target = &self.target.name;
        let (waiting, gaps) = {
            let queue = lock(queue);
            (queue.len(), queue.progress().open_gaps())
        };
        self.board.pending(waiting);
        self.board.limits(gaps, self.target.quota);
        let over = self.target.quota.is_some_and(|quota| behind > quota);
        if !over {
            self.over_quota = None;
        }
        let now = Instant::now();
        if over && self.over_quota.is_none_or(|told| now.duration_since(told) >= self.report_every) {
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
        self.report_slow(behind, now);
        self.report_pause(behind, now);
        let Some(pace) = self.health.pace.filter(|_| self.health.failures > 0 && !over) else { return };
        let due = self.health.told.is_some_and(|told| now.duration_since(told) >= self.report_every / 2);
        if due {
            self.health.told = Some(now);
            let (quota, store, end) = (self.target.quota, self.store.clone(), listing.end);
            let look = move || outlook(pace, quota, behind, store.data_dir(), end);
            let outlook = tokio::task::spawn_blocking(look).await.unwrap_or_default();
            tracing::warn!(
                "archive target \"{}\" is {} ({waiting} files) behind; the WAL is kept: {outlook}",
                self.target.name,
                bytes(behind)
            );
        }
    }

    /// How long a file may be on its way without a word.
    fn slow_after(&self, size: SegSize) -> Duration {
        (SLOW + Duration::from_secs(size.bytes() / USUAL)).min(self.report_every / 2)
    }

    /// Says which file a target has neither taken nor refused for long, again every half minute.
    fn report_slow(&mut self, behind: u64, now: Instant) {
        let half = self.report_every / 2;
        let due = |one: &Sending| one.told.map_or(one.late, |told| told + half) <= now;
        let Some((name, oldest)) = self.sending.iter_mut().min_by_key(|(_, one)| one.since) else {
            self.board.stalled(None);
            return;
        };
        // A slow line is late now and then; what takes twice as long as that hangs.
        let is_stalled = now.duration_since(oldest.since) >= self.report_every && oldest.late <= now;
        self.board.stalled(is_stalled.then_some(oldest.begun));
        if due(oldest) {
            oldest.told = Some(now);
            tracing::warn!(
                "archive target \"{}\" has not taken \"{name}\" for {} s, nor refused it; it is {} behind, and its WAL \
                 is kept",
                self.target.name,
                now.duration_since(oldest.since).as_secs(),
                bytes(behind)
            );
        }
    }

    /// When there is something to do without anything happening.
    /// A pause is not forgotten.
    fn report_pause(&mut self, behind: u64, now: Instant) {
        if !self.board.is_paused() {
            self.paused_told = None;
            return;
        }
        let told = *self.paused_told.get_or_insert(now);
        if now.duration_since(told) >= PAUSES_PER_REPORT * self.report_every {
            self.paused_told = Some(now);
            tracing::warn!(
                "archive target \"{}\" is paused and {} behind; RESUME lets it go on",
                self.target.name,
                bytes(behind)
            );
        }
    }

    fn wake(&self, queue: &SharedQueue) -> Instant {
        let now = Instant::now();
        let save = self.unsaved_since.map(|since| since + SAVE_EVERY);
        let ready = lock(queue).wake().map(|at| at.max(self.health.not_before));
        let half = self.report_every / 2;
        let slow = self.sending.values().map(|one| one.told.map_or(one.late, |told| told + half)).min();
        let waits = (self.health.not_before > now).then_some(self.health.not_before);
        let wake = [save, ready, waits, slow].into_iter().flatten().filter(|at| *at > now).min();
        wake.unwrap_or(now + self.report_every / 2).min(now + self.report_every / 2)
    }

    /// What arrived in pieces and is whole now needs them no more.
    fn remove_chunks(&self, chores: &mut JoinSet<Event>, name: &FileName) {
        let (Sink::Objects(repository), Some(_)) = (&self.sink, self.target.partial_interval) else { return };
        let about_wal = matches!(name.kind(), FileKind::Segment | FileKind::Partial);
        let Some(segment) = name.segment_digits().filter(|_| about_wal).and_then(FileName::parse) else {
            return;
        };
        let repository = repository.clone();
        chores.spawn(async move {
            if let Err(error) = repository.remove_all_chunks(&segment).await {
                tracing::debug!("could not remove the pieces of \"{segment}\": {error}");
            }
            Event::Aside
        });
    }

    /// House-keeping in the target: remains of uploads, and what its retention would remove.
    fn tidy(&self, retention: &mut JoinSet<Event>) {
        let Sink::Objects(repository) = &self.sink else { return };
        let repository = repository.clone();
        let (keep_age, keep_size) = (self.target.keep_age, self.target.keep_size);
        retention.spawn(async move {
            if let Err(error) = repository.storage().tidy().await {
                tracing::debug!("could not look for remains of uploads: {error}");
            }
            look_for_old(&repository, keep_age, keep_size).await
        });
    }

    /// Removes what retention has chosen, beside everything else, and looks for more if there is.
    fn remove(&self, retention: &mut JoinSet<Event>, plan: Plan) {
        let Sink::Objects(repository) = &self.sink else { return };
        let repository = repository.clone();
        let (keep_age, keep_size) = (self.target.keep_age, self.target.keep_size);
        retention.spawn(async move {
            let (name, count) = (repository.name(), plan.remove.len());
            match cleanup::remove(&repository, &plan, &crate::progress::Progress::default()).await {
                Ok(()) => tracing::info!("removed {count} old objects from archive target \"{name}\""),
                Err(error) => {
                    tracing::warn!("could not remove old WAL from archive target \"{name}\": {error}");
                    return Event::Aside;
                }
            }
            match plan.has_more {
                true => look_for_old(&repository, keep_age, keep_size).await,
                false => Event::Aside,
            }
        });
    }

    /// Slots cannot count on what retention removes.
    fn removing(&mut self, queue: &SharedQueue, plan: &Plan, listing: &Listing) {
        let names = plan.remove.iter().filter_map(wal_file).filter(|name| name.kind() == FileKind::Segment);
        let ends = names.filter_map(|name| Some(name.wal(listing.size)?.segno.end(listing.size)));
        if let Some(end) = ends.max() {
            lock(queue).removed_before(end);
            self.unsaved_since.get_or_insert_with(Instant::now);
        }
    }

    /// Saves what the target has got, and lets go of what it needs no more; whether it could.
    async fn save(&mut self, queue: &SharedQueue, saved: &mut Progress, listing: &Listing) -> bool {
        self.note_marker(queue);
        let progress = lock(queue).progress().clone();
        let (store, name, now) = (self.store.clone(), self.target.name.clone(), progress.clone());
        let written = tokio::task::spawn_blocking(move || saved::write(&store, &name, &now)).await;
        match written.map_err(std::io::Error::from).flatten() {
            Ok(()) => {
                *saved = progress;
                self.unsaved_since = None;
                self.publish(queue, saved, listing);
                true
            }
            Err(error) => {
                self.unsaved_since = Some(Instant::now() + FATAL_PAUSE / 10);
                tracing::error!("could not save how far archive target \"{}\" is: {error}", self.target.name);
                false
            }
        }
    }

    /// What the place is known by is kept with the progress.
    fn note_marker(&self, queue: &SharedQueue) {
        if let Sink::Objects(repository) = &self.sink
            && let Some(marker) = repository.storage().marker()
        {
            lock(queue).set_marker(marker);
        }
    }

    /// Tells retention what this target needs, and readers what it has.
    fn publish(&self, queue: &SharedQueue, saved: &Progress, listing: &Listing) {
        self.board.needs(needed_from(saved, listing));
        let quota = self.target.quota.filter(|_| self.target.on_quota == OnQuota::Drop);
        let readable = matches!(self.sink, Sink::Objects(_));
        let floor = lock(queue).floor(saved, listing, quota, readable);
        self.floors.set(&self.target.name, &self.target.identity(), floor);
    }
}

/// The end of a task becomes ours.
/// What a target's retention would remove.
async fn look_for_old(repository: &Repository, keep_age: Option<Duration>, keep_size: Option<u64>) -> Event {
    let name = repository.name();
    let plan = match cleanup::retention(repository, keep_age, keep_size).await {
        Ok(plan) => plan,
        Err(error) => {
            tracing::warn!("could not look for old WAL in archive target \"{name}\": {error}");
            return Event::Aside;
        }
    };
    if let Some(label) = plan.kept_for.as_ref().filter(|_| plan.held > 0) {
        tracing::warn!(
            "archive target \"{name}\" keeps {} more than keep-age and keep-size say, because \"{label}\" \
             keeps all WAL from its base backup on; when that backup is gone, remove its label \
             (walrelay archive-cleanup -b)",
            bytes(plan.held)
        );
    }
    match plan.remove.is_empty() {
        true => Event::Aside,
        false => Event::Retention(plan),
    }
}

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

fn wal_file(entry: &Entry) -> Option<&FileName> {
    match &entry.item {
        Item::File(name, _) => Some(name),
        _ => None,
    }
}
