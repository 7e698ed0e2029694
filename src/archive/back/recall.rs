//! WAL that has left the relay's disk, for consumers that still want it.
//!
//! ```text
//! walsender ── segment() ──> cache ── hit ──────────────────────────> Segment, mapped
//!                              │ miss                                    ▲
//!                              └─ a task: sources in turn ── verify ── <data-dir>/recalled/… , unlinked once mapped
//! ```
//!
//! A segment is fetched once however many want it, verified and written to a file while it comes, and mapped: from there
//! on it is read like any other. The file has no name any more when it is mapped, so that its space is free as
//! soon as the last reader lets go, also after a crash. Behind the segment asked for, the next ones are fetched
//! before they are asked for.
//!
//! On disk are at most `budget` bytes of segments kept for somebody to come, plus the one that each consumer
//! is reading. In memory is a piece of each that is on its way, packed and unpacked: however many are wanted, [`AT_A_TIME`]
//! are fetched from a source at a time, and the others wait for their turn, those that nobody has asked for yet longest.
//! A source that is silent for a moment keeps nobody: the next one is asked meanwhile, and for a while it is asked last.

mod arriving;
mod candidates;
mod place;
#[cfg(feature = "sim")]
pub mod stepped;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use walrelay_proto::{Lsn, SegNo, SegSize, TimelineHistory, TimelineId, WalFileName, WalIdentity};

use super::source::{FetchError, Source};
use crate::changeable::Changeable;
use crate::counts::{Counter, Lately};
use crate::moment::Past;
use crate::store::{Segment, Store};
use arriving::{Arriving, Refusal};
use candidates::candidates;
use place::{AT_A_TIME, Place, in_turn};

/// Directory below the data directory for segments on their way into a map.
const DIRECTORY: &str = "recalled";
/// Of these, segments that nobody has asked for yet.
const AHEAD_AT_A_TIME: usize = AT_A_TIME - 1;
/// Segments fetched ahead of a reader.
const AHEAD: u64 = 4;
/// Fewest segments to hold, however large they are: one that is read and those ahead of it.
const FEWEST: u64 = AHEAD + 1;
/// How long a segment is kept that was read, in case another reader comes the same way.
const KEEP_READ: Duration = Duration::from_secs(30);
/// How long a segment is kept that was fetched ahead and that nobody has asked for.
const KEEP_UNREAD: Duration = Duration::from_secs(300);
/// What counts as lately, for whoever looks.
const LATELY: Duration = Duration::from_secs(900);
/// First and longest pause between attempts while sources cannot be reached.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// WAL cannot be had back.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecallError {
    /// No source has it.
    #[error("requested WAL segment {0} has already been removed")]
    Nowhere(String),
    /// Copies exist, and none is good.
    #[error("requested WAL segment {file} cannot be read back: {reason}")]
    Damaged {
        /// The segment.
        file: String,
        /// What is wrong, with the place.
        reason: String,
    },
    /// The relay's own disk refused it.
    #[error("could not store WAL segment {file} read back: {reason}")]
    Disk {
        /// The segment.
        file: String,
        /// What the system said.
        reason: String,
    },
}

/// What one round through the sources came to.
#[derive(Clone, Debug)]
enum Outcome {
    Found(Arc<Segment>),
    /// Some source could not be asked, and no other has it.
    Unknown(FetchError),
    Not(RecallError),
}

/// Brings segments back; shared by all consumers.
#[derive(Debug)]
pub struct Recall {
    store: Arc<Store>,
    places: RwLock<Vec<Arc<Place>>>,
    dir: PathBuf,
    /// Bytes.
    budget: Changeable<u64>,
    cache: Mutex<HashMap<WalFileName, Entry>>,
    /// By which the files in the cache were chosen.
    history: Mutex<Arc<TimelineHistory>>,
    files: AtomicU64,
    /// What is left of [`AHEAD_AT_A_TIME`].
    ahead: Semaphore,
    pauses: (Duration, Duration),
    tally: Tally,
}

/// What was brought back so far.
#[derive(Debug, Default)]
struct Tally {
    begun: Counter,
    fetched: Counter,
    fetched_bytes: Counter,
    failed: Counter,
    failed_lately: Lately,
    last_error: Mutex<Option<(String, Past)>>,
}

/// How segments are brought back, for whoever looks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecallSeen {
    /// Places that are asked.
    pub sources: usize,
    /// Segments on their way.
    pub in_flight: u64,
    /// Segments that were brought back since the relay started.
    pub fetched: u64,
    /// The same in bytes.
    pub fetched_bytes: u64,
    /// Rounds through the places that came to nothing.
    pub failed: u64,
    /// The same within the last quarter of an hour.
    pub failed_lately: u64,
    /// Why the last of them did, and when.
    pub last_error: Option<(String, Past)>,
}

/// A segment that is here or on its way.
#[derive(Debug)]
struct Entry {
    /// Reports the end of the fetch; `None` when it is over.
    fetch: Option<watch::Receiver<Option<Outcome>>>,
    /// The segment, once it is here; kept after `kept` has been given up, for as long as somebody reads it.
    live: Weak<Segment>,
    kept: Option<Arc<Segment>>,
    /// Whether anybody has asked for it.
    wanted: bool,
    /// Told when somebody does.
    hurry: Arc<Notify>,
    touched: Instant,
}

impl Tally {
    fn note(&self, outcome: &Outcome) {
        let error = match outcome {
            Outcome::Found(segment) => {
                self.fetched_bytes.add(segment.end().since(segment.start()));
                return self.fetched.note();
            }
            Outcome::Unknown(error) => error.to_string(),
            Outcome::Not(error) => error.to_string(),
        };
        self.failed.note();
        self.failed_lately.note(Instant::now());
        *lock(&self.last_error) = Some((error, Past::now()));
    }
}

impl Entry {
    /// Keeps it no more. Whoever reads it may go on; else its map goes where that may take its time: it is the last of the file.
    fn give_up(&mut self) {
        if let Some(segment) = self.kept.take() {
            tokio::task::spawn_blocking(move || drop(segment));
        }
    }

    /// Whether it counts against the budget.
    fn counts(&self) -> bool {
        self.fetch.is_some() || self.kept.is_some()
    }

    fn is_here_or_coming(&self) -> bool {
        self.fetch.is_some() || self.live.strong_count() > 0
    }
}

impl Recall {
    /// Prepares to fetch from `sources`, best first, and removes what a former process left. Has to be called in a
    /// runtime. `budget` is in bytes (`--recall-size`).
    ///
    /// # Errors
    /// The directory for fetched segments cannot be made.
    pub fn start(store: Arc<Store>, sources: Vec<Arc<dyn Source>>, budget: u64) -> io::Result<Arc<Recall>> {
        Recall::with_pauses(store, sources, budget, PAUSES)
    }

    fn with_pauses(
        store: Arc<Store>,
        sources: Vec<Arc<dyn Source>>,
        budget: u64,
        pauses: (Duration, Duration),
    ) -> io::Result<Arc<Recall>> {
        let dir = store.data_dir().join(DIRECTORY);
        make_empty(&dir)?;
        let places = RwLock::new(places(sources));
        let (cache, files, history) = (Mutex::default(), AtomicU64::new(0), Mutex::new(store.history()));
        let ahead = Semaphore::new(AHEAD_AT_A_TIME);
        let recall = Recall {
            store,
            places,
            dir,
            budget: budget.into(),
            cache,
            history,
            files,
            ahead,
            pauses,
            tally: Tally::default(),
        };
        Ok(Arc::new(recall))
    }

    /// How it does. Waits for nothing.
    pub fn seen(&self) -> RecallSeen {
        let Tally { begun, fetched, fetched_bytes, failed, failed_lately, last_error } = &self.tally;
        let (fetched, failed) = (fetched.get(), failed.get());
        RecallSeen {
            sources: self.places.read().unwrap_or_else(PoisonError::into_inner).len(),
            in_flight: begun.get().saturating_sub(fetched + failed),
            fetched,
            fetched_bytes: fetched_bytes.get(),
            failed,
            failed_lately: failed_lately.within(LATELY, Instant::now()),
            last_error: lock(last_error).clone(),
        }
    }

    /// Whether there is anywhere to fetch from.
    pub fn has_sources(&self) -> bool {
        !self.places.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// From now on it fetches from these; fetches that are under way end as they began.
    pub fn set_sources(&self, sources: Vec<Arc<dyn Source>>) {
        *self.places.write().unwrap_or_else(PoisonError::into_inner) = places(sources);
    }

    /// Forgets now and then what nobody reads any more, until told to stop. Whoever has started it runs this too.
    pub async fn keep_clean(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(KEEP_READ / 3)).await.is_some() {
            self.clean();
        }
    }

    /// The segment that holds `segno` for a reader of `tli`, from whatever source has it; the file is chosen as
    /// [`Store::segment`] chooses it. Waits as long as a source that might have it cannot be reached.
    ///
    /// Cancel-safe.
    pub async fn segment(
        self: &Arc<Self>,
        tli: TimelineId,
        segno: SegNo,
    ) -> Result<Arc<Segment>, RecallError> {
        let name = WalFileName::new(tli, segno);
        let mut pause = self.pauses.0;
        loop {
            match self.round(name).await {
                Outcome::Found(segment) => {
                    let ahead = self.clone();
                    tokio::task::spawn_blocking(move || ahead.fetch_ahead(name));
                    return Ok(segment);
                }
                Outcome::Not(error) => return Err(error),
                Outcome::Unknown(error) => {
                    let file = self.file_name(name);
                    tracing::warn!(
                        "could not read back WAL segment {file}: {error}; will try again in {pause:?}"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(self.pauses.1);
                }
            }
        }
    }

    /// A timeline's history file; `None` if no source has one that can be used.
    ///
    /// # Errors
    /// No source has it, and one of them could not be asked.
    pub async fn history_file(&self, tli: TimelineId) -> Result<Option<Bytes>, FetchError> {
        let name = tli.history_file_name();
        let mut unknown = None;
        let questions = self.best_first().into_iter().map(|place| (place, ()));
        let ask = |place: Arc<Place>, (), _| {
            let name = name.clone();
            async move { Some((place.read(&name).await, place)) }
        };
        let found = in_turn(questions, ask, |(answer, place)| match answer {
            Ok(Some(content)) if TimelineHistory::parse(tli, &content).is_ok() => Some(content),
            Ok(Some(_)) => {
                tracing::error!("\"{name}\" in {} is no history file", place.name());
                None
            }
            Ok(None) => None,
            Err(error @ FetchError::Unreachable { .. }) => {
                unknown = Some(error);
                None
            }
            Err(error) => {
                tracing::error!("{error}");
                None
            }
        });
        match (found.await, unknown) {
            (None, Some(error)) => Err(error),
            (found, _) => Ok(found),
        }
    }

    /// Waits for one round through the sources, one that is under way already or a new one.
    async fn round(self: &Arc<Self>, name: WalFileName) -> Outcome {
        let mut outcome = {
            let mut cache = lock(&self.cache);
            self.forget_other_histories(&mut cache);
            if let Some(entry) = cache.get_mut(&name) {
                entry.wanted = true;
                entry.hurry.notify_one();
                entry.touched = Instant::now();
                if let Some(segment) = entry.live.upgrade() {
                    return Outcome::Found(segment);
                }
            }
            match cache.get(&name).and_then(|entry| entry.fetch.clone()) {
                Some(fetch) => fetch,
                None => self.start_fetch(&mut cache, name, true),
            }
        };
        let done = outcome.wait_for(Option::is_some).await.ok().and_then(|done| done.clone());
        done.unwrap_or_else(|| {
            let is_dead =
                |entry: &Entry| entry.fetch.as_ref().is_some_and(|fetch| fetch.has_changed().is_err());
            // Else nobody would ever fetch it again.
            lock(&self.cache).retain(|other, entry| *other != name || !is_dead(entry));
            let reason = "the task that fetched it has ended".to_owned();
            Outcome::Not(RecallError::Disk { file: self.file_name(name), reason })
        })
    }

    fn start_fetch(
        self: &Arc<Self>,
        cache: &mut HashMap<WalFileName, Entry>,
        name: WalFileName,
        wanted: bool,
    ) -> watch::Receiver<Option<Outcome>> {
        let (report, outcome) = watch::channel(None);
        let hurry = Arc::new(Notify::new());
        let entry = Entry {
            fetch: Some(outcome.clone()),
            live: Weak::new(),
            kept: None,
            wanted,
            hurry: hurry.clone(),
            touched: Instant::now(),
        };
        cache.insert(name, entry);
        self.make_room(cache);
        self.tally.begun.note();
        let recall = self.clone();
        tokio::spawn(async move {
            let outcome = match wanted {
                true => recall.fetch(name).await,
                false => recall.fetch_when_idle(name, &hurry).await,
            };
            recall.tally.note(&outcome);
            recall.note(name, &outcome, &report);
            report.send_replace(Some(outcome));
        });
        outcome
    }

    /// A timeline that was left may go on: what was another's segment for its readers is its own then.
    fn forget_other_histories(&self, cache: &mut HashMap<WalFileName, Entry>) {
        let (now, mut chosen_by) = (self.store.history(), lock(&self.history));
        if !Arc::ptr_eq(&now, &chosen_by) {
            *chosen_by = now;
            cache.drain().for_each(|(_, mut entry)| entry.give_up());
        }
    }

    /// Keeps what was found, forgets what was not; nothing of it if the fetch is none of the cache's any more.
    fn note(&self, name: WalFileName, outcome: &Outcome, report: &watch::Sender<Option<Outcome>>) {
        let mut cache = lock(&self.cache);
        let fetch = cache.get(&name).and_then(|entry| entry.fetch.as_ref());
        if !fetch.is_some_and(|fetch| fetch.same_channel(&report.subscribe())) {
            return;
        }
        match (outcome, cache.get_mut(&name)) {
            (Outcome::Found(segment), Some(entry)) => {
                entry.fetch = None;
                entry.live = Arc::downgrade(segment);
                entry.kept = Some(segment.clone());
                entry.touched = Instant::now();
            }
            _ => {
                cache.remove(&name);
            }
        }
    }

    /// The same for nobody in particular, until somebody is in a hurry.
    async fn fetch_when_idle(self: &Arc<Self>, name: WalFileName, hurry: &Notify) -> Outcome {
        // Nobody closes it.
        let turn = async { self.ahead.acquire().await.ok() };
        let _turn = tokio::select! {
            turn = turn => turn,
            () = hurry.notified() => None,
        };
        self.fetch(name).await
    }

    /// One round through the sources.
    async fn fetch(self: &Arc<Self>, name: WalFileName) -> Outcome {
        let file = self.file_name(name);
        let Some(identity) = self.store.identity() else { return Outcome::Not(RecallError::Nowhere(file)) };
        let id = WalIdentity { system_id: identity.system_id, seg_size: identity.seg_size };
        let (mut unknown, mut damaged) = (None, None);
        let places = self.best_first();
        let candidates = self.candidates(name).into_iter();
        let questions: Vec<_> =
            candidates.flat_map(|wanted| places.iter().map(move |place| (place.clone(), wanted))).collect();
        let ask = |place: Arc<Place>, wanted, patience| {
            let recall = self.clone();
            async move {
                let turn = place.turn(patience).await?;
                // It ends by itself, and what it may have to remove goes where that may take its time.
                let fetched = tokio::spawn(async move {
                    let _turn = turn;
                    recall.fetch_from(&place, wanted, id).await
                });
                Some(fetched.await.unwrap_or_else(|error| Err(TakeError::Disk(error.into()))))
            }
        };
        let hear = |answer| match answer {
            Ok(None) => None,
            Ok(Some(segment)) => Some(Outcome::Found(segment)),
            Err(TakeError::Source(error @ FetchError::Unreachable { .. })) => {
                unknown = Some(error);
                None
            }
            Err(TakeError::Source(error)) => {
                damaged = Some(error);
                None
            }
            Err(TakeError::Disk(error)) => {
                let (file, reason) = (file.clone(), error.to_string());
                Some(Outcome::Not(RecallError::Disk { file, reason }))
            }
        };
        if let Some(outcome) = in_turn(questions, ask, hear).await {
            return outcome;
        }
        if let Some(error) = &damaged {
            tracing::error!("{error}");
        }
        match (unknown, damaged) {
            (Some(error), _) => Outcome::Unknown(error),
            (None, Some(error)) => Outcome::Not(RecallError::Damaged { file, reason: error.to_string() }),
            (None, None) => Outcome::Not(RecallError::Nowhere(file)),
        }
    }

    /// The files that would do, best first: where a timeline was left, its successor's begins with the same bytes.
    fn candidates(&self, name: WalFileName) -> Vec<Wanted> {
        let size = self.store.identity().map(|identity| identity.seg_size);
        size.map(|size| candidates(&self.store.history(), size, name)).unwrap_or_default()
    }

    /// One source's copy, verified while it comes, and mapped; `None` if it has none.
    async fn fetch_from(
        &self,
        place: &Place,
        wanted: Wanted,
        id: WalIdentity,
    ) -> Result<Option<Arc<Segment>>, TakeError> {
        let path = self.dir.join(self.files.fetch_add(1, Ordering::Relaxed).to_string());
        let arriving = Arc::new(Arriving::new(wanted, id, self.store.history(), path));
        let file = wanted.text(id.seg_size);
        let shown = place.show(&file, id.seg_size.bytes(), &arriving).await;
        let place = place.name().to_owned();
        let work = move || {
            // Whatever has come of it, what there is of a file goes here, and not on a worker.
            let arriving = arriving;
            if !shown.map_err(TakeError::Source)? {
                return Ok(None);
            }
            let damaged = |reason| Err(TakeError::Source(FetchError::Damaged { place, file, reason }));
            match arriving.map() {
                Ok(segment) => Ok(Some(Arc::new(segment))),
                Err(Refusal::Damaged(fault)) => damaged(fault.to_string()),
                Err(Refusal::Incomplete) => damaged("it broke off".to_owned()),
                Err(Refusal::Disk(error)) => Err(TakeError::Disk(error)),
            }
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(TakeError::Disk(error.into())))
    }

    /// Starts to fetch what the reader of `name` will want next, as far as there is room and it is not here. Waits for the disk.
    fn fetch_ahead(self: &Arc<Self>, name: WalFileName) {
        let Some(identity) = self.store.identity() else { return };
        let mut next = name;
        for _ in 0..AHEAD {
            next = self.after(next);
            let held = self.store.mapped_segment(next.tli, next.segno).is_some()
                || self.store.holds_segment(next.tli, next.segno);
            let mut cache = lock(&self.cache);
            if held || next.segno.end(identity.seg_size) > self.end() {
                return;
            }
            if cache.get(&next).is_some_and(Entry::is_here_or_coming) {
                continue;
            }
            if !self.has_room(&mut cache) {
                return;
            }
            self.start_fetch(&mut cache, next, false);
        }
    }

    /// The segment that a reader comes to after `name`, on the timeline on which it will be then.
    fn after(&self, name: WalFileName) -> WalFileName {
        let (history, segno) = (self.store.history(), name.segno.next());
        let tli = match (history.switch_point(name.tli), self.store.identity()) {
            (Some((left_at, _)), Some(identity)) if left_at <= segno.start(identity.seg_size) => {
                history.timeline_at(segno.start(identity.seg_size))
            }
            _ => name.tli,
        };
        WalFileName::new(tli, segno)
    }

    fn end(&self) -> Lsn {
        self.store.tip().map_or(Lsn::INVALID, |tip| tip.write_lsn)
    }

    /// Segments that may be kept or on their way at a time.
    fn capacity(&self) -> usize {
        let size = self.store.identity().map_or(1, |identity| identity.seg_size.bytes());
        (self.budget.current() / size).max(FEWEST) as usize
    }

    /// Has so many bytes at most kept from now on.
    pub fn set_budget(&self, budget: u64) {
        self.budget.replace(budget);
        self.make_room(&mut lock(&self.cache));
    }

    /// Whether one more may be fetched for nobody in particular.
    fn has_room(&self, cache: &mut HashMap<WalFileName, Entry>) -> bool {
        if cache.values().filter(|entry| entry.counts()).count() < self.capacity() {
            return true;
        }
        give_up(cache, |entry| entry.wanted)
    }

    /// Gives up what is kept beyond the budget: first what was read, longest ago, then what was fetched ahead.
    fn make_room(&self, cache: &mut HashMap<WalFileName, Entry>) {
        while cache.values().filter(|entry| entry.counts()).count() > self.capacity() {
            if !give_up(cache, |entry| entry.wanted) && !give_up(cache, |_| true) {
                return;
            }
        }
    }

    fn clean(&self) {
        lock(&self.cache).retain(|_, entry| {
            let patience = if entry.wanted { KEEP_READ } else { KEEP_UNREAD };
            if entry.touched.elapsed() > patience {
                entry.give_up();
            }
            entry.is_here_or_coming()
        });
    }

    /// Those that have failed lately come last.
    fn best_first(&self) -> Vec<Arc<Place>> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (bad, good): (Vec<_>, Vec<_>) = places.into_iter().partition(|place| place.is_in_disgrace());
        good.into_iter().chain(bad).collect()
    }

    fn file_name(&self, name: WalFileName) -> String {
        self.store.identity().map_or_else(|| format!("{name:?}"), |identity| name.format(identity.seg_size))
    }
}

fn places(sources: Vec<Arc<dyn Source>>) -> Vec<Arc<Place>> {
    sources.into_iter().map(|source| Arc::new(Place::new(source))).collect()
}

/// A file that may be asked for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    name: WalFileName,
    /// Bytes that count; `None` for all.
    len: Option<u64>,
    is_partial: bool,
}

impl Wanted {
    fn text(self, size: SegSize) -> String {
        let suffix = if self.is_partial { ".partial" } else { "" };
        self.name.format(size) + suffix
    }
}

enum TakeError {
    Source(FetchError),
    Disk(io::Error),
}

/// Gives up the longest untouched of the segments kept for nobody in particular; false if there is none.
fn give_up(cache: &mut HashMap<WalFileName, Entry>, which: impl Fn(&Entry) -> bool) -> bool {
    let kept = cache.iter_mut().filter(|(_, entry)| entry.kept.is_some() && which(entry));
    match kept.min_by_key(|(_, entry)| entry.touched) {
        Some((_, entry)) => {
            entry.give_up();
            true
        }
        None => false,
    }
}

fn make_empty(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::read_dir(dir)?.try_for_each(|entry| fs::remove_file(entry?.path()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
