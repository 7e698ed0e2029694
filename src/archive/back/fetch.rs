//! One WAL file from whichever source has it, checked: what `walrelay restore` hands to PostgreSQL.
//!
//! Recovery takes "no such file" for the end of the archive, and ends. So [`Fetched::Missing`] is said only if every
//! source has said it, and if nothing says that the file should be there: everything else is an error.
//!
//! Sources are asked in turn, and the next one also while one is silent. One that stays silent cannot be reached; one from
//! which anything comes is waited for, however long it takes.
//!
//! Two servers may have begun a timeline with the same number, in different places. What a source has of a timeline that began
//! elsewhere than the asker's is not there for the asker, whole or not: recovery would refuse it, and end.
//!
//! A standby asks again, and is better off with what somebody has than with an error about somebody else: for it there is
//! [`Fetcher::look`], which also says who has not answered.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use walrelay_proto::{
    Lsn, SegNo, SegSize, SystemId, TimelineHistory, TimelineId, TimelinePosition, WalFileName, WalIdentity,
};

use super::source::{FetchError, Fetching, Source};
use crate::archive::repo::check;
use crate::archive::repo::name::{FileKind, FileName};

/// After this silence of a source the next one is asked, too.
const MEANWHILE: Duration = Duration::from_secs(1);
/// After this silence a source cannot be reached.
pub const SILENCE: Duration = Duration::from_secs(30);

/// What became of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fetched {
    /// A file, whole and checked.
    Whole(Bytes),
    /// A segment that nobody has finished, with zeros behind its last complete record.
    Unfinished {
        /// The segment at its full size.
        segment: Bytes,
        /// Bytes before the zeros.
        good: u64,
    },
    /// No source has it.
    Missing,
}

/// What there is, whoever has not answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Looked {
    /// The first whole copy, else the longest beginning; "missing" is the answer of those only who have given one.
    pub found: Fetched,
    /// Who has not answered, by its number in the order of the sources, and why.
    pub unanswered: Vec<(usize, FetchError)>,
}

impl Looked {
    /// For who takes what there is: an error only if nobody has anything, and somebody has not answered.
    pub fn into_answer(self, file: &str) -> Result<Fetched, Failure> {
        match (self.found, self.unanswered.is_empty()) {
            (Fetched::Missing, false) => {
                Err(Unanswered { file: file.to_owned(), by: self.unanswered }.into())
            }
            (found, _) => Ok(found),
        }
    }
}

/// What whoever asks has itself: what contradicts it is of another history.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Own {
    /// Where the histories of timelines are.
    pub wal_dir: Option<PathBuf>,
    /// The timeline that it has been on for certain. A history of a later one may be left from a promotion that came to nothing.
    pub tli: Option<TimelineId>,
    /// How far it has come on a timeline for certain, durably: it can go no other way before that.
    pub replayed: Vec<TimelinePosition>,
    /// The beginning of the segment asked for: whole records.
    pub beginning: Bytes,
}

impl Own {
    /// The history of a timeline, if there is a file of it.
    pub fn history(&self, tli: TimelineId) -> Option<TimelineHistory> {
        let content = std::fs::read(self.wal_dir.as_ref()?.join(tli.history_file_name())).ok()?;
        TimelineHistory::parse(tli, &content).ok()
    }

    /// Whether it has come beyond a position on a timeline: whoever has left that there has gone another way, which is not
    /// the asker's. `start` is that of the segment asked for.
    fn is_beyond(&self, tli: TimelineId, left_at: Lsn, start: Lsn) -> bool {
        let is_beyond = |it: &TimelinePosition| it.tli == tli && it.lsn > left_at;
        let has_more = !self.beginning.is_empty() && start.advance(self.beginning.len() as u64) > left_at;
        has_more || self.replayed.iter().any(is_beyond)
    }

    /// The first place at which a beginning of the same segment says something else.
    fn contradicted_at(&self, bytes: &[u8]) -> Option<usize> {
        self.beginning.iter().zip(bytes).position(|(ours, theirs)| ours != theirs)
    }
}

/// Sources that have not answered about a file; there is one at least.
struct Unanswered {
    file: String,
    by: Vec<(usize, FetchError)>,
}

impl From<Unanswered> for Failure {
    /// Who cannot be reached may have a good copy, and is waited for, whatever the others have.
    fn from(unanswered: Unanswered) -> Failure {
        let is_away = |error: &FetchError| matches!(error, FetchError::Unreachable { .. });
        let Unanswered { file, by } = unanswered;
        let away = by.iter().find(|(_, error)| is_away(error)).or(by.first());
        let source = away.map(|(_, error)| error.clone());
        let source = source.expect("somebody has not answered");
        Failure::Source { file, source }
    }
}

/// The question has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// A source that may have the file did not give it, and no other has it.
    #[error("could not get \"{file}\": {source}")]
    Source {
        /// The file.
        file: String,
        /// What happened; the first such error.
        source: FetchError,
    },
    /// WAL after it is there.
    #[error("\"{file}\" is missing in the archive although \"{next}\", {how}, is there")]
    Hole {
        /// The file.
        file: String,
        /// The first one after it.
        next: String,
        /// What the one has to do with the other.
        how: String,
    },
}

/// Asks sources in turn.
#[derive(Clone, Debug)]
pub struct Fetcher {
    places: Vec<Arc<Place>>,
    system_id: Option<SystemId>,
    seg_size: Option<SegSize>,
    own: Arc<Own>,
    /// A timeline of which all that anybody has is wanted, also behind the place where it was left.
    branch: Option<TimelineId>,
    /// [`MEANWHILE`] and [`SILENCE`] but for tests and for those in a hurry.
    meanwhile: Duration,
    silence: Duration,
    hurry: Option<Hurry>,
}

/// Who asks has not much time.
#[derive(Clone, Copy, Debug)]
struct Hurry {
    /// Silence is over by then.
    until: Instant,
    /// But this much of it is allowed in any case.
    least: Duration,
}

#[derive(Debug)]
struct Place {
    /// In the order of the sources.
    number: usize,
    source: Arc<dyn Source>,
    /// It was silent when it was asked last: the next one is asked at once.
    silent: AtomicBool,
    asked: Mutex<Asked>,
    /// A timeline which began where the asker's of that number has begun.
    on_ours: Mutex<Option<TimelineId>>,
}

/// How it stands with a place's answers.
#[derive(Debug, Default)]
struct Asked {
    /// Since when one is waited for.
    since: Option<Instant>,
    /// Why there was none the last time.
    error: Option<String>,
}

impl Place {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked_since(&self) -> Option<Instant> {
        self.asked().since
    }

    /// Why nothing is known of it now.
    fn missing(&self) -> Option<String> {
        let asked = self.asked();
        let (name, since) = (self.source.name(), asked.since);
        let waits =
            || since.map(|since| format!("{name} has not answered for {} s", since.elapsed().as_secs()));
        asked.error.clone().or_else(waits)
    }

    fn set_on_ours(&self, tli: TimelineId) {
        *self.on_ours.lock().unwrap_or_else(PoisonError::into_inner) = Some(tli);
    }

    fn is_on_ours(&self, tli: TimelineId) -> bool {
        *self.on_ours.lock().unwrap_or_else(PoisonError::into_inner) == Some(tli)
    }

    /// An answer of the source; silence is one.
    async fn answer<T>(&self, limit: Duration, asked: Fetching<'_, T>) -> Result<T, FetchError> {
        self.asked().since = Some(Instant::now());
        let answer = self.source.pulse().heed(limit, asked).await;
        self.silent.store(answer.is_none(), Ordering::Relaxed);
        let answer = answer.unwrap_or_else(|| {
            let reason = format!("nothing has come from it for {} s", limit.as_secs_f32().round());
            Err(FetchError::Unreachable { place: self.source.name().to_owned(), reason })
        });
        *self.asked() = Asked { since: None, error: answer.as_ref().err().map(ToString::to_string) };
        answer
    }
}

impl Fetcher {
    /// Asks `sources` in this order. WAL of another cluster than `system_id` is refused, if that is known.
    pub fn new(sources: Vec<Arc<dyn Source>>, system_id: Option<SystemId>) -> Fetcher {
        let place = |(number, source)| {
            let (silent, asked, on_ours) = (AtomicBool::new(false), Mutex::default(), Mutex::default());
            Arc::new(Place { number, source, silent, asked, on_ours })
        };
        let places = sources.into_iter().enumerate().map(place).collect();
        let (seg_size, own) = (None, Arc::default());
        Fetcher {
            places,
            system_id,
            seg_size,
            own,
            branch: None,
            meanwhile: MEANWHILE,
            silence: SILENCE,
            hurry: None,
        }
    }

    /// Takes nothing that contradicts what the asker has.
    pub fn with_own(self, own: Own) -> Fetcher {
        Fetcher { own: Arc::new(own), ..self }
    }

    /// Takes what there is of this timeline beside the way to newer ones, too.
    pub fn with_branch(self, branch: Option<TimelineId>) -> Fetcher {
        Fetcher { branch, ..self }
    }

    /// Takes so long a silence of a source for an answer.
    pub fn with_silence(self, silence: Duration) -> Fetcher {
        Fetcher { silence, meanwhile: self.meanwhile.min(silence / 2), ..self }
    }

    /// Takes no silence that lasts longer than until then for an answer, and so much in any case.
    pub(super) fn with_silence_until(self, until: Instant, least: Duration) -> Fetcher {
        Fetcher { hurry: Some(Hurry { until, least }), ..self }
    }

    /// The longest silence of a source that is asked now.
    fn silence(&self) -> Duration {
        let left = |hurry: Hurry| hurry.until.saturating_duration_since(Instant::now()).max(hurry.least);
        self.hurry.map_or(self.silence, |hurry| left(hurry).min(self.silence))
    }

    /// Sources of which nothing is known at the moment, by their numbers, and why: they have not answered yet, or did not
    /// the last time.
    pub(super) fn missing(&self) -> Vec<(usize, String)> {
        self.places.iter().filter_map(|place| Some((place.number, place.missing()?))).collect()
    }

    /// Whether a source whose answer has been waited for for most of this time goes on sending something.
    pub(super) fn is_coming(&self, time: Duration) -> bool {
        // One that was asked just now, because another one is silent, will have answered in a moment.
        let is_asked = |place: &Place| place.asked_since().is_some_and(|since| since.elapsed() >= time / 2);
        let is_coming = |place: &Arc<Place>| is_asked(place) && place.source.pulse().last().elapsed() < time;
        self.places.iter().any(is_coming)
    }

    /// The cluster whose WAL is fetched, if that is known.
    pub(super) fn system_id(&self) -> Option<SystemId> {
        self.system_id
    }

    /// The cluster's segment size, if that is known.
    pub(super) fn seg_size(&self) -> Option<SegSize> {
        self.seg_size
    }

    /// What "no such file" does not cover.
    pub(super) fn caveats(&self) -> impl Iterator<Item = String> {
        self.places.iter().filter_map(|place| place.source.caveat())
    }

    /// For a cluster with this segment size, if that is known.
    pub fn with_seg_size(self, seg_size: Option<SegSize>) -> Fetcher {
        Fetcher { seg_size, ..self }
    }

    /// Fetches a file by the name that PostgreSQL asks for.
    ///
    /// Cancel-safe.
    pub async fn fetch(&self, file: &str) -> Result<Fetched, Failure> {
        match self.finished(file).await? {
            Some(bytes) => Ok(Fetched::Whole(bytes)),
            None if !is_segment(file) => Ok(Fetched::Missing),
            None => Ok(self.unfinished(file).await?),
        }
    }

    /// Fetches what there is of a file, whoever does not answer: all sources are asked, unless one has it whole.
    ///
    /// Cancel-safe.
    pub async fn look(&self, file: &str) -> Looked {
        let mut unanswered = match self.finished(file).await {
            Ok(Some(bytes)) => return Looked { found: Fetched::Whole(bytes), unanswered: Vec::new() },
            Ok(None) => Vec::new(),
            Err(error) => error.by,
        };
        if !is_segment(file) {
            return Looked { found: Fetched::Missing, unanswered };
        }
        // Whoever has not answered once is not asked a second time.
        loop {
            match self.without(&unanswered).unfinished(file).await {
                Ok(found) => return Looked { found, unanswered },
                Err(error) => unanswered.extend(error.by),
            }
        }
    }

    /// The same with some sources less.
    fn without(&self, others: &[(usize, FetchError)]) -> Fetcher {
        let stays = |place: &&Arc<Place>| others.iter().all(|(number, _)| *number != place.number);
        Fetcher { places: self.places.iter().filter(stays).cloned().collect(), ..self.clone() }
    }

    /// Fetches a file only if it is whole; anything else is none.
    pub async fn fetch_finished(&self, file: &str) -> Option<Bytes> {
        self.finished(file).await.ok().flatten()
    }

    /// Whether WAL that follows this segment is there, on its timeline or on one that descends from it: then it is no
    /// end that nobody has the segment.
    ///
    /// # Errors
    /// [`Failure::Hole`], and [`Failure::Source`] if nobody can say.
    pub async fn check_hole(&self, file: &str) -> Result<(), Failure> {
        let Some(name) = FileName::parse(file).filter(|name| name.kind() == FileKind::Segment) else {
            return Ok(());
        };
        let later = self.later(file).await?;
        let hole = |next: &FileName, how: String| {
            Err(Failure::Hole { file: file.to_owned(), next: next.to_string(), how })
        };
        if let Some(next) = later.iter().find(|next| next.tli() == name.tli()) {
            return hole(next, "which follows it".to_owned());
        }
        let descends: BTreeSet<_> = later.iter().map(FileName::tli).collect();
        for tli in descends {
            let of_it: Vec<_> = later.iter().filter(|file| file.tli() == tli).collect();
            let history = tli.history_file_name();
            let history = self.finished(&history).await?;
            let history = history.and_then(|content| TimelineHistory::parse(tli, &content).ok());
            let Some(history) = history else {
                // Whatever it descends from, nobody can follow it; and nobody may be told that there is nothing.
                match of_it.iter().find(|next| number(next) > number(&name)) {
                    Some(next) => {
                        return hole(next, format!("of timeline {tli} whose history file is missing"));
                    }
                    None => continue,
                }
            };
            let Some((left_at, _)) = history.switch_point(name.tli()) else { continue };
            let size = self.size_of_segments(&later).await;
            let Some(wal) = name.wal(size) else { continue };
            let how = || format!("which descends from it by way of {left_at}");
            if wal.segno.end(size) <= left_at {
                return hole(of_it[0], how());
            }
            // Where the timeline was left in this very segment, its successor's begins with the same bytes.
            let is_left_here = wal.segno.start(size) < left_at;
            let goes_on = later.iter().any(|file| number(file) == number(&name));
            let next = of_it.iter().find(|next| number(next) > number(&name));
            if let Some(next) = next.filter(|_| is_left_here && !goes_on) {
                return hole(next, how());
            }
        }
        Ok(())
    }

    /// The first history file after a missing one: recovery to the latest timeline does not find it.
    pub async fn history_after(&self, file: &str) -> Option<String> {
        let later = self.later(file).await.ok()?;
        later.into_iter().find(|file| file.kind() == FileKind::History).map(|file| file.to_string())
    }

    async fn later(&self, file: &str) -> Result<BTreeSet<FileName>, Failure> {
        let mut later = BTreeSet::new();
        for (_, found) in self.all(file, |source| source.later(file)).await? {
            later.extend(found);
        }
        // An unfinished beginning of the segment itself does not follow it.
        let follows = |found: &FileName| {
            found.kind() != FileKind::Backup && found.segment_digits().is_none_or(|digits| digits != file)
        };
        later.retain(follows);
        Ok(later)
    }

    /// The cluster's segment size: its own word, else that of a segment in the archive, else PostgreSQL's default.
    async fn size_of_segments(&self, known: &BTreeSet<FileName>) -> SegSize {
        if let Some(size) = self.seg_size {
            return size;
        }
        for file in known.iter().filter(|file| file.kind() == FileKind::Segment) {
            if let Ok(Some(content)) = self.finished(file.as_str()).await
                && let Ok(id) = check::identity_of(&content)
            {
                return id.seg_size;
            }
        }
        default_size()
    }

    /// The first good copy; `None` if all have said that there is none.
    async fn finished(&self, file: &str) -> Result<Option<Bytes>, Unanswered> {
        let (mut by, mut asked) = (Vec::new(), FuturesUnordered::new());
        for (number, place) in self.places.iter().enumerate() {
            let patience = match place.silent.load(Ordering::Relaxed) {
                true => Duration::ZERO,
                false => self.meanwhile,
            };
            asked.push(async move { (number, self.read_ours(place, file).await) });
            let mut silence = std::pin::pin!(place.source.pulse().silence(patience));
            loop {
                let answer = tokio::select! {
                    biased;
                    answer = asked.next() => answer,
                    () = &mut silence => {
                        place.silent.store(true, Ordering::Relaxed);
                        break;
                    }
                };
                let Some((who, answer)) = answer else { break };
                match answer {
                    Ok(Some(bytes)) => return Ok(Some(bytes)),
                    Ok(None) => {}
                    Err(error) => by.push((self.places[who].number, error)),
                }
                if who == number {
                    break;
                }
            }
        }
        while let Some((who, answer)) = asked.next().await {
            match answer {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => {}
                Err(error) => by.push((self.places[who].number, error)),
            }
        }
        answered(file, by).map(|()| None)
    }

    /// One source's copy, checked.
    async fn read(&self, place: &Place, file: &str) -> Result<Option<Bytes>, FetchError> {
        match place.answer(self.silence(), place.source.read(file)).await? {
            Some(bytes) => self.check(file, place.source.name(), bytes).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same, if it is of the asker's history.
    async fn read_ours(&self, place: &Place, file: &str) -> Result<Option<Bytes>, FetchError> {
        let Some(bytes) = self.read(place, file).await? else { return Ok(None) };
        let is_ours = match (timeline_of(file), TimelineId::from_history_file_name(file)) {
            (Some(tli), _) => self.is_on_ours(place, file, tli).await?,
            (None, Some(tli)) if self.own.tli >= Some(tli) => self.is_ours(place, file, tli, &bytes),
            (None, Some(_)) => true,
            (None, None) => true,
        };
        Ok(is_ours.then_some(bytes))
    }

    /// Whether a place's WAL of this timeline is of the one that the asker has.
    async fn is_on_ours(&self, place: &Place, file: &str, tli: TimelineId) -> Result<bool, FetchError> {
        if place.is_on_ours(tli) || self.own.history(tli).is_none() {
            return Ok(true);
        }
        // Its WAL may have come without one.
        let Some(theirs) = self.read(place, &tli.history_file_name()).await? else { return Ok(true) };
        let is_ours = self.is_ours(place, file, tli, &theirs);
        if is_ours {
            place.set_on_ours(tli);
        }
        Ok(is_ours)
    }

    /// Whether a timeline with this history is the one that the asker has under that number.
    fn is_ours(&self, place: &Place, file: &str, tli: TimelineId, history: &[u8]) -> bool {
        let theirs = TimelineHistory::parse(tli, history).ok();
        let Some((ours, theirs)) = self.own.history(tli).zip(theirs) else { return true };
        let is_ours = theirs.ancestors() == ours.ancestors();
        if !is_ours {
            let place = place.source.name();
            tracing::error!(
                "what {place} has of \"{file}\" is of another history and is not taken: its timeline {tli} began \
                 elsewhere than the one here"
            );
        }
        is_ours
    }

    /// All sources' answers to a question about a file, in their order.
    async fn all<'a, T>(
        &'a self,
        file: &str,
        ask: impl Fn(&'a dyn Source) -> Fetching<'a, T>,
    ) -> Result<Vec<(&'a Place, T)>, Unanswered> {
        let asked = self.places.iter().map(|place| place.answer(self.silence(), ask(&*place.source)));
        let (mut answers, mut by) = (Vec::new(), Vec::new());
        for (place, answer) in self.places.iter().zip(join_all(asked).await) {
            match answer {
                Ok(answer) => answers.push((&**place, answer)),
                Err(error) => by.push((place.number, error)),
            }
        }
        answered(file, by).map(|()| answers)
    }

    /// Checks a file as far as its name says what it should be.
    async fn check(&self, file: &str, place: &str, bytes: Bytes) -> Result<Bytes, FetchError> {
        let (name, system_id) = (file.to_owned(), self.system_id);
        let work = move || {
            let checked = check_file(&name, system_id, &bytes);
            checked.map(|()| bytes)
        };
        let checked = tokio::task::spawn_blocking(work).await;
        let checked = checked.unwrap_or_else(|error| Err(error.to_string()));
        checked.map_err(|reason| FetchError::Damaged {
            place: place.to_owned(),
            file: file.to_owned(),
            reason,
        })
    }

    /// The longest beginning that anybody has, and that is of the asker's history.
    async fn unfinished(&self, file: &str) -> Result<Fetched, Unanswered> {
        let mut longest: Option<(Bytes, WalIdentity, u64)> = None;
        let mut answers = self.all(file, |source| source.read_unfinished(file)).await?;
        let is_of_branch = self.branch.is_some() && self.branch == timeline_of(file);
        if is_of_branch {
            let more = self.all(file, |source| source.read_branch(file)).await?;
            answers.extend(more.into_iter().map(|(place, found)| (place, Vec::from_iter(found))));
        }
        for (place, found) in answers {
            for bytes in found {
                let Some((id, good)) = self.good_length(file, &bytes) else {
                    self.tell_foreign(place, file, &bytes);
                    continue;
                };
                // It was finished while it was asked for: what there is of its last record is part of it.
                if bytes.len() as u64 == id.seg_size.bytes()
                    && check_file(file, self.system_id, &bytes).is_ok()
                    && let Some(whole) = self.finished_there(place, file).await?
                {
                    return Ok(Fetched::Whole(whole));
                }
                if longest.as_ref().is_none_or(|(_, _, best)| good > *best)
                    && self.fits(place, file, &bytes[..good as usize]).await?
                {
                    longest = Some((bytes, id, good));
                }
            }
        }
        let Some((bytes, id, good)) = longest.filter(|(_, _, good)| *good > 0) else {
            return Ok(Fetched::Missing);
        };
        let good = if is_of_branch { good } else { self.before_the_fork(file, id, good).await? };
        if good == 0 {
            return Ok(Fetched::Missing);
        }
        let mut segment = bytes[..good as usize].to_vec();
        segment.resize(id.seg_size.bytes() as usize, 0);
        Ok(Fetched::Unfinished { segment: segment.into(), good })
    }

    /// What a place has of a segment by now, if that is all of it.
    async fn finished_there(&self, place: &Place, file: &str) -> Result<Option<Bytes>, Unanswered> {
        let read = self.read_ours(place, file).await;
        read.map_err(|error| Unanswered { file: file.to_owned(), by: vec![(place.number, error)] })
    }

    /// Of another cluster it is nothing, and whoever has named the place has to hear of that.
    fn tell_foreign(&self, place: &Place, file: &str, bytes: &[u8]) {
        let theirs = check::identity_of(bytes).ok().map(|id| id.system_id);
        if let (Some(theirs), Some(ours)) = (theirs, self.system_id)
            && theirs != ours
        {
            tracing::error!(
                "what {} has of \"{file}\" is not taken: it is of another cluster, whose system identifier is {theirs}, \
                 ours is {ours}",
                place.source.name()
            );
        }
    }

    /// Whether a beginning agrees with what the asker has: one of another history is no continuation, however long it is.
    async fn fits(&self, place: &Place, file: &str, bytes: &[u8]) -> Result<bool, Unanswered> {
        let name = place.source.name();
        if let Some(at) = self.own.contradicted_at(bytes) {
            tracing::error!(
                "what {name} has of \"{file}\" is of another history and is not taken: from byte {at} on it is not \
                 what pg_wal has"
            );
            return Ok(false);
        }
        let Some(tli) = timeline_of(file) else { return Ok(true) };
        let fits = self.is_on_ours(place, file, tli).await;
        fits.map_err(|error| Unanswered { file: file.to_owned(), by: vec![(place.number, error)] })
    }

    fn good_length(&self, file: &str, bytes: &[u8]) -> Option<(WalIdentity, u64)> {
        good_length(file, self.system_id, bytes)
    }

    /// How much of a segment lies before the place where its timeline was left, if the archive knows a newer one:
    /// recovery would replay what the old primary wrote after that, on the way to the newer timeline. Who is beyond that place
    /// is not on that way: the newer timeline may be one of a promotion that was undone.
    async fn before_the_fork(&self, file: &str, id: WalIdentity, good: u64) -> Result<u64, Unanswered> {
        let Some(name) = WalFileName::parse(file, id.seg_size) else { return Ok(0) };
        let Some(newest) = self.newest_history(name.tli).await? else { return Ok(good) };
        let Some((left_at, _)) = newest.switch_point(name.tli) else { return Ok(good) };
        let start = name.segno.start(id.seg_size);
        let before = good.min(left_at.since(start));
        if before == good {
            return Ok(good);
        }
        let (tli, by, behind) = (name.tli, newest.tli(), good - before);
        let history = by.history_file_name();
        if self.own.is_beyond(tli, left_at, start) {
            tracing::warn!(
                "\"{history}\" says that timeline {tli} was left at {left_at}, which this server is beyond: all that there is \
                 of \"{file}\" is taken; if the promotion to timeline {by} was undone, remove that file from the archive"
            );
            return Ok(good);
        }
        tracing::error!(
            "{behind} bytes of \"{file}\" are not taken: \"{history}\" says that timeline {tli} was left at {left_at}; if the \
             promotion to timeline {by} was undone, that is wrong: remove that file from the archive, and what is cut off here \
             is taken"
        );
        Ok(before)
    }

    /// History of the newest timeline after `tli`, found as PostgreSQL does: one after the other, until one is
    /// missing.
    async fn newest_history(&self, tli: TimelineId) -> Result<Option<TimelineHistory>, Unanswered> {
        let (mut newest, mut next): (Option<TimelineHistory>, _) = (None, tli);
        while let Some(tli) = next.as_u32().checked_add(1).and_then(TimelineId::new) {
            let file = tli.history_file_name();
            let Some(content) = self.finished(&file).await? else { break };
            newest = TimelineHistory::parse(tli, &content).ok();
            next = tli;
        }
        // Of others who have the same number it does not tell where the asker's timeline was left.
        let ours = self.own.history(tli);
        let is_of_others = |newest: &TimelineHistory| {
            let theirs = newest.up_to(tli);
            ours.as_ref().zip(theirs).is_some_and(|(ours, theirs)| ours.ancestors() != theirs.ancestors())
        };
        Ok(newest.filter(|newest| !is_of_others(newest)))
    }
}

fn answered(file: &str, by: Vec<(usize, FetchError)>) -> Result<(), Unanswered> {
    match by.is_empty() {
        true => Ok(()),
        false => Err(Unanswered { file: file.to_owned(), by }),
    }
}

/// Checks a file as far as its name says what it should be.
pub(super) fn check_file(file: &str, system_id: Option<SystemId>, bytes: &[u8]) -> Result<(), String> {
    if let Some(tli) = TimelineId::from_history_file_name(file) {
        return TimelineHistory::parse(tli, bytes).map(drop).map_err(|error| error.to_string());
    }
    if !is_segment(file) {
        return Ok(());
    }
    let id = check::identity_of(bytes).map_err(|error| error.to_string())?;
    if let Some(ours) = system_id.filter(|ours| *ours != id.system_id) {
        return Err(format!(
            "it belongs to another cluster: its system identifier is {}, ours is {ours}",
            id.system_id
        ));
    }
    let name = WalFileName::parse(file, id.seg_size);
    let name = name.ok_or_else(|| format!("its segments are {} long", id.seg_size.to_show()))?;
    check::whole_segment(id, name, None, bytes).map_err(|fault| fault.to_string())
}

/// Whether these bytes begin as the segment does.
pub(super) fn is_beginning(file: &str, system_id: Option<SystemId>, bytes: &[u8]) -> bool {
    good_length(file, system_id, bytes).is_some_and(|(_, good)| good > 0)
}

/// How much of a segment's beginning is good; `None` if it is not ours.
fn good_length(file: &str, system_id: Option<SystemId>, bytes: &[u8]) -> Option<(WalIdentity, u64)> {
    let id = check::identity_of(bytes).ok()?;
    let name = WalFileName::parse(file, id.seg_size)?;
    let ours = system_id.is_none_or(|ours| ours == id.system_id);
    ours.then(|| (id, check::good_length(id, name, bytes)))
}

/// Whether this is a segment's name, of whatever size.
pub(super) fn is_segment(file: &str) -> bool {
    let smallest = SegSize::new(1 << 20).expect("PostgreSQL's smallest segment size");
    WalFileName::parse(file, smallest).is_some()
}

/// The timeline of a segment, whatever the size of segments is.
fn timeline_of(file: &str) -> Option<TimelineId> {
    FileName::parse(file).filter(|name| name.kind() == FileKind::Segment).map(|name| name.tli())
}

/// PostgreSQL's default segment size.
pub(super) fn default_size() -> SegSize {
    SegSize::new(16 << 20).expect("a power of two in its range")
}

/// The place of a file's segment, whatever its timeline; sorts by position. None for a history.
fn number(file: &FileName) -> Option<&str> {
    file.segment_digits().map(|digits| &digits[8..])
}

/// The name of the next segment.
pub(super) fn successor(file: &str, size: SegSize) -> Option<String> {
    let name = WalFileName::parse(file, size)?;
    let next = SegNo::new(name.segno.as_u64().checked_add(1)?);
    Some(WalFileName::new(name.tli, next).format(size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::back::memory::Memory;
    use proptest::prelude::*;
    use walrelay_proto::generate::WalGenerator;

    const SEG: usize = 1 << 20;
    const THIRD: &str = "000000010000000000000003";
    const FOURTH: &str = "000000010000000000000004";

    fn id(system: u64) -> WalIdentity {
        WalIdentity { system_id: SystemId(system), seg_size: SegSize::new(SEG as u64).unwrap() }
    }

    /// Segment 3 and the beginning of segment 4, which ends with a record.
    fn wal(system: u64) -> Vec<u8> {
        let start = Lsn::new(3 * SEG as u64);
        let mut wal = WalGenerator::new(id(system), TimelineId::FIRST, start, 5);
        wal.fill(SEG + 300_000);
        wal.take()
    }

    fn fetcher(sources: &[&Arc<Memory>]) -> Fetcher {
        let sources = sources.iter().map(|source| Arc::clone(source) as Arc<dyn Source>).collect();
        Fetcher::new(sources, Some(SystemId(77)))
    }

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::new("memory"))
    }

    #[tokio::test]
    async fn the_first_good_copy_is_taken() {
        let wal = wal(77);
        let (empty, bad, foreign, good) = (memory(), memory(), memory(), memory());
        bad.put(THIRD, wal[..SEG - 1].to_vec());
        foreign.put(THIRD, self::wal(78)[..SEG].to_vec());
        good.put(THIRD, wal[..SEG].to_vec());
        let found = fetcher(&[&empty, &bad, &foreign, &good]).fetch(THIRD).await;
        assert!(found == Ok(Fetched::Whole(wal[..SEG].to_vec().into())));
        let error = fetcher(&[&foreign]).fetch(THIRD).await.unwrap_err().to_string();
        assert!(error.contains("its system identifier is 78, ours is 77"), "{error}");
        fetcher(&[&bad, &empty]).fetch(THIRD).await.unwrap_err();
    }

    #[tokio::test]
    async fn missing_is_said_only_if_every_source_says_it() {
        let (one, other) = (memory(), memory());
        for file in [THIRD, "00000002.history", "000000010000000000000003.00000028.backup"] {
            assert_eq!(fetcher(&[&one, &other]).fetch(file).await, Ok(Fetched::Missing), "{file}");
        }
        other.set_down(true);
        for file in [THIRD, "00000002.history"] {
            let error = fetcher(&[&one, &other]).fetch(file).await.unwrap_err();
            assert!(error.to_string().contains("cannot be reached"), "{error}");
        }
        one.put("00000002.history", "rubbish");
        fetcher(&[&one]).fetch("00000002.history").await.unwrap_err();
    }

    fn hasty(sources: &[&Arc<Memory>]) -> Fetcher {
        fetcher(sources).with_silence(Duration::from_millis(100))
    }

    #[tokio::test]
    async fn a_silent_source_hides_no_other() {
        let wal = wal(77);
        let (silent, good) = (memory(), memory());
        silent.set_open(false);
        good.put(THIRD, wal[..SEG].to_vec());
        let fetcher = hasty(&[&silent, &good]);
        let patient = Fetcher { silence: Duration::from_secs(3600), ..fetcher.clone() };
        assert!(matches!(patient.fetch(THIRD).await, Ok(Fetched::Whole(_))));
        // From then on the others need not wait for it.
        let patient = Fetcher { meanwhile: Duration::from_secs(3600), ..patient };
        assert!(matches!(patient.fetch(THIRD).await, Ok(Fetched::Whole(_))));
        assert_eq!(silent.asked(THIRD), 2);
        // What only it may have is waited for, and it cannot be reached.
        for file in [FOURTH, "00000002.history"] {
            let error = fetcher.fetch(file).await.unwrap_err();
            assert!(error.to_string().contains("nothing has come from it"), "{error}");
        }
        assert!(matches!(fetcher.check_hole(THIRD).await, Err(Failure::Source { .. })));
        let missing = fetcher.missing();
        let of_silent =
            |(number, reason): &(usize, String)| *number == 0 && reason.contains("nothing has come");
        assert!(missing.len() == 1 && missing.iter().all(of_silent), "{missing:?}");
    }

    #[tokio::test]
    async fn a_slow_source_is_waited_for() {
        let wal = wal(77);
        let (slow, other) = (memory(), memory());
        slow.set_open(false);
        slow.put(THIRD, wal[..SEG].to_vec());
        let fetcher = fetcher(&[&slow, &other]).with_silence(Duration::from_secs(1));
        let coming = async {
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(1300) {
                slow.pulse().beat();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            slow.set_open(true);
        };
        let (found, ()) = tokio::join!(fetcher.fetch(THIRD), coming);
        assert!(matches!(found, Ok(Fetched::Whole(_))), "{found:?}");
        assert_eq!((slow.asked(THIRD), other.asked(THIRD)), (1, 0));
    }

    #[tokio::test]
    async fn one_that_is_away_is_waited_for_whatever_the_others_have() {
        let (away, damaged) = (memory(), memory());
        away.set_down(true);
        damaged.put(THIRD, "rubbish");
        for sources in [[&away, &damaged], [&damaged, &away]] {
            let error = fetcher(&sources).fetch(THIRD).await.unwrap_err().to_string();
            assert!(error.contains("cannot be reached"), "{error}");
        }
        away.set_down(false);
        let error = fetcher(&[&away, &damaged]).fetch(THIRD).await.unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");
    }

    #[tokio::test]
    async fn of_an_unfinished_segment_the_longest_beginning_counts() {
        let wal = wal(77);
        let (short, long) = (memory(), memory());
        short.put(&format!("{FOURTH}.partial"), wal[SEG..SEG + 100_000].to_vec());
        // The preallocated rest of a relay's own file may hold anything.
        long.put(&format!("{FOURTH}.partial"), [&wal[SEG..], &[0xEE; 50_000][..]].concat());
        let found = fetcher(&[&short, &long]).fetch(FOURTH).await.unwrap();
        let Fetched::Unfinished { segment, good } = found else { panic!("{found:?}") };
        assert_eq!((segment.len(), good as usize), (SEG, wal.len() - SEG));
        assert!(segment[..good as usize] == wal[SEG..]);
        assert!(segment[good as usize..].iter().all(|&byte| byte == 0));
        long.set_down(true);
        fetcher(&[&short, &long]).fetch(FOURTH).await.unwrap_err();
    }

    #[tokio::test]
    async fn who_asks_again_takes_what_there_is() {
        let wal = wal(77);
        let (away, short, long) = (memory(), memory(), memory());
        away.set_down(true);
        short.put(&format!("{FOURTH}.partial"), wal[SEG..SEG + 100_000].to_vec());
        long.put(&format!("{FOURTH}.partial"), wal[SEG..].to_vec());
        let fetcher = fetcher(&[&short, &away, &long]);
        let looked = fetcher.look(FOURTH).await;
        let numbers: Vec<_> = looked.unanswered.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1]);
        let longest = wal.len() - SEG;
        assert!(matches!(looked.found, Fetched::Unfinished { good, .. } if good as usize == longest));
        assert!(looked.into_answer(FOURTH).is_ok());
        for file in ["00000002.history", "000000010000000000000009"] {
            let looked = fetcher.look(file).await;
            assert_eq!((&looked.found, looked.unanswered.len()), (&Fetched::Missing, 1), "{file}");
            assert!(looked.into_answer(file).unwrap_err().to_string().contains("cannot be reached"));
        }
        away.set_down(false);
        assert_eq!(fetcher.look("00000002.history").await.into_answer(""), Ok(Fetched::Missing));
    }

    #[tokio::test]
    async fn a_timeline_that_began_elsewhere_is_another() {
        let second = TimelineId::new(2).unwrap();
        let start = Lsn::new(4 * SEG as u64);
        let mut wal = WalGenerator::new(id(77), second, start, 5);
        wal.fill(100_000);
        let file = "000000020000000000000004";
        let (ours, theirs) = (memory(), memory());
        let wal = wal.take();
        theirs.put(&format!("{file}.partial"), wal.clone());
        let dir = tempfile::tempdir().unwrap();
        let own = |text: &str| {
            std::fs::write(dir.path().join("00000002.history"), text).unwrap();
            Own { wal_dir: Some(dir.path().to_owned()), ..Own::default() }
        };
        let check = async |own: Own| fetcher(&[&ours, &theirs]).with_own(own).look(file).await.found;
        // It may have come without one.
        assert!(matches!(check(own("1\t0/3F0000\tx\n")).await, Fetched::Unfinished { .. }));
        theirs.put("00000002.history", "1\t0/3F0000\tfor another reason\n");
        assert!(matches!(check(own("1\t0/3F0000\tx\n")).await, Fetched::Unfinished { .. }));
        assert_eq!(check(own("1\t0/3E0000\tx\n")).await, Fetched::Missing);
        // Nor does what has come of it say where ours was left.
        ours.put(&format!("{file}.partial"), wal.clone());
        ours.put("00000002.history", "1\t0/3E0000\tx\n");
        theirs.put("00000003.history", "1\t0/3F0000\tx\n2\t0/404000\tx\n");
        let found = check(own("1\t0/3E0000\tx\n")).await;
        assert!(matches!(found, Fetched::Unfinished { good, .. } if good > 0x4000), "{found:?}");
        let found = check(own("1\t0/3F0000\tx\n")).await;
        assert!(matches!(found, Fetched::Unfinished { good: 0x4000, .. }), "{found:?}");
    }

    /// Whole ones, too, and the history itself: recovery would refuse both, and end with less than another one has.
    #[tokio::test]
    async fn whole_segments_of_another_history_are_not_there() {
        let second = TimelineId::new(2).unwrap();
        let mut wal = WalGenerator::new(id(77), second, Lsn::new(4 * SEG as u64), 5);
        wal.fill(SEG);
        let wal = wal.take();
        let file = "000000020000000000000004";
        let (other, away, ours) = (memory(), memory(), memory());
        other.put(file, wal[..SEG].to_vec());
        other.put("00000002.history", "1\t0/3F0000\tx\n");
        let dir = tempfile::tempdir().unwrap();
        let own = Own { wal_dir: Some(dir.path().to_owned()), tli: Some(second), ..Own::default() };
        let fetcher = fetcher(&[&other, &ours]).with_own(own.clone());
        // Who knows nothing better takes it.
        assert!(matches!(fetcher.look(file).await.found, Fetched::Whole(_)));
        std::fs::write(dir.path().join("00000002.history"), "1\t0/3E0000\tx\n").unwrap();
        for file in [file, "00000002.history"] {
            assert_eq!(fetcher.fetch(file).await, Ok(Fetched::Missing), "{file}");
            assert_eq!(fetcher.look(file).await.found, Fetched::Missing, "{file}");
            assert_eq!(fetcher.fetch_finished(file).await, None, "{file}");
        }
        // Who was never on it may have the history of a promotion that came to nothing: it has to take another one.
        let before = Own { tli: Some(TimelineId::FIRST), ..own.clone() };
        let before = self::fetcher(&[&other]).with_own(before);
        assert!(matches!(before.fetch("00000002.history").await, Ok(Fetched::Whole(_))));
        assert_eq!(before.fetch(file).await, Ok(Fetched::Missing));
        // What somebody else has of ours counts, however little it is.
        ours.put(&format!("{file}.partial"), wal[..10_000].to_vec());
        assert!(matches!(fetcher.look(file).await.found, Fetched::Unfinished { .. }));
        ours.put(file, wal[..SEG].to_vec());
        ours.put("00000002.history", "1\t0/3E0000\tx\n");
        let before = ours.asked("00000002.history");
        for _ in 0..2 {
            assert!(matches!(fetcher.fetch(file).await, Ok(Fetched::Whole(_))));
        }
        assert_eq!(ours.asked("00000002.history"), before + 1, "one answer is enough");
        // Who has it and does not say of which history may not be believed.
        away.put(file, wal[..SEG].to_vec());
        away.set_down_for("00000002.history");
        let looked = self::fetcher(&[&away]).with_own(own).look(file).await;
        assert_eq!((&looked.found, looked.unanswered.len()), (&Fetched::Missing, 1));
    }

    #[tokio::test]
    async fn a_finished_segment_comes_before_any_beginning() {
        let wal = wal(77);
        let (beginning, finished) = (memory(), memory());
        beginning.put(&format!("{THIRD}.partial"), wal[..SEG].to_vec());
        finished.put(THIRD, wal[..SEG].to_vec());
        let found = fetcher(&[&beginning, &finished]).fetch(THIRD).await;
        assert!(matches!(found, Ok(Fetched::Whole(_))));
    }

    #[tokio::test]
    async fn a_timeline_that_was_left_is_given_up_to_there() {
        let wal = wal(77);
        let source = memory();
        source.put(&format!("{FOURTH}.partial"), wal[SEG..].to_vec());
        source.put("00000002.history", "1\t0/420000\tx\n");
        let found = fetcher(&[&source]).fetch(FOURTH).await.unwrap();
        let Fetched::Unfinished { segment, good } = found else { panic!("{found:?}") };
        assert_eq!(good, 0x20000);
        assert!(segment[0x20000..].iter().all(|&byte| byte == 0));
        source.put("00000002.history", "1\t0/400000\tx\n");
        assert_eq!(fetcher(&[&source]).fetch(FOURTH).await, Ok(Fetched::Missing));
        // The newest history counts, and it may have come another way.
        source.put("00000003.history", "2\t0/500000\tx\n");
        let found = fetcher(&[&source]).fetch(FOURTH).await;
        assert!(matches!(found, Ok(Fetched::Unfinished { good, .. }) if good as usize == wal.len() - SEG));
    }

    /// B was promoted by mistake at 0/420000, its history was archived, and it was rewound: the cluster has gone on.
    #[tokio::test]
    async fn a_promotion_that_was_undone_cuts_nothing_from_who_is_beyond_it() {
        let wal = wal(77);
        let source = memory();
        source.put(&format!("{FOURTH}.partial"), wal[SEG..].to_vec());
        source.put("00000002.history", "1\t0/420000\tx\n");
        let good = async |own: Own| match fetcher(&[&source]).with_own(own).fetch(FOURTH).await {
            Ok(Fetched::Unfinished { good, .. }) => good,
            Ok(Fetched::Missing) => 0,
            other => panic!("{other:?}"),
        };
        let all = (wal.len() - SEG) as u64;
        let beginning =
            |bytes: usize| Own { beginning: wal[SEG..SEG + bytes].to_vec().into(), ..Own::default() };
        let at = |tli: u32, lsn: u64| Own {
            replayed: vec![TimelinePosition { tli: TimelineId::new(tli).unwrap(), lsn: Lsn::new(lsn) }],
            ..Own::default()
        };
        assert_eq!(good(Own::default()).await, 0x20000);
        assert_eq!(good(beginning(0x10000)).await, 0x20000);
        assert_eq!(good(beginning(0x30000)).await, all);
        for (own, expected) in
            [(at(1, 0x420000), 0x20000), (at(2, 0x430000), 0x20000), (at(1, 0x420008), all)]
        {
            assert_eq!(good(own.clone()).await, expected, "{own:?}");
        }
        // Before this segment: then all of it.
        source.put("00000002.history", "1\t0/380000\tx\n");
        assert_eq!((good(Own::default()).await, good(at(1, 0x3F0000)).await), (0, all));
        assert_eq!(good(beginning(0x10000)).await, all);
    }

    /// The relay goes on while it is asked: first it has no such segment, then no beginning of it any more.
    #[tokio::test]
    async fn a_segment_that_is_finished_between_two_questions_is_there() {
        let wal = wal(77);
        for is_standby in [false, true] {
            let source = memory();
            source.put(&format!("{THIRD}.partial"), wal[..SEG - 8192].to_vec());
            source.finish_when_asked(THIRD, wal[..SEG].to_vec());
            let fetcher = fetcher(&[&source]);
            let found = match is_standby {
                true => fetcher.look(THIRD).await.found,
                false => fetcher.fetch(THIRD).await.unwrap(),
            };
            assert!(found == Fetched::Whole(wal[..SEG].to_vec().into()), "{is_standby}");
        }
    }

    #[tokio::test]
    async fn a_hole_is_no_end() {
        let source = memory();
        fetcher(&[&source]).check_hole(THIRD).await.unwrap();
        let hole = async |expected: &str| match fetcher(&[&source]).check_hole(THIRD).await {
            Err(Failure::Hole { file, next, .. }) if file == THIRD => assert_eq!(next, expected),
            other => panic!("{other:?}"),
        };
        // However many are missing, and whether the first one that is there is finished.
        source.put("000000010000000000000009.partial", "whatever");
        hole("000000010000000000000009").await;
        source.put("000000010000000000000007", "whatever");
        hole("000000010000000000000007").await;
        source.set_down(true);
        assert!(matches!(fetcher(&[&source]).check_hole(THIRD).await, Err(Failure::Source { .. })));
    }

    #[tokio::test]
    async fn what_descends_from_a_timeline_shows_that_it_has_not_ended() {
        let check = async |history: &str, files: &[&str]| {
            let source = memory();
            if !history.is_empty() {
                source.put("00000002.history", history.to_owned());
            }
            files.iter().for_each(|file| source.put(file, "whatever"));
            let fetcher = fetcher(&[&source]).with_seg_size(SegSize::new(SEG as u64).ok());
            fetcher.check_hole(THIRD).await.map_err(|error| error.to_string())
        };
        let behind = "000000020000000000000005";
        // Timeline 1 was left behind segment 3: all of that is missing.
        let error = check("1\t0/400000\tx\n", &[behind]).await.unwrap_err();
        assert!(
            error.contains(THIRD) && error.contains("00000002.history") && error.contains("0/400000"),
            "{error}"
        );
        check("1\t0/480000\tx\n", &[]).await.unwrap_err();
        // In it: the successor's has its bytes, or is missing, too.
        check("1\t0/380000\tx\n", &[behind, "000000020000000000000003"]).await.unwrap();
        let error = check("1\t0/380000\tx\n", &[behind]).await.unwrap_err();
        assert!(error.contains(behind), "{error}");
        // Before it: this is where timeline 1 ends.
        check("1\t0/300000\tx\n", &[behind, "000000020000000000000003"]).await.unwrap();
        // Of one that nobody knows.
        let error = check("", &[behind]).await.unwrap_err();
        assert!(error.contains("history file is missing"), "{error}");
        // Of another descent.
        let source = memory();
        source.put("00000003.history", "2\t0/480000\tx\n");
        source.put("000000030000000000000005", "whatever");
        fetcher(&[&source]).check_hole(THIRD).await.unwrap();
    }

    #[tokio::test]
    async fn the_size_of_segments_is_learnt_from_the_archive() {
        let source = memory();
        let start = Lsn::new(5 * SEG as u64);
        let mut wal = WalGenerator::new(id(77), TimelineId::new(2).unwrap(), start, 5);
        wal.fill(SEG);
        source.put("000000020000000000000005", wal.take()[..SEG].to_vec());
        source.put("00000002.history", "1\t0/400000\tx\n");
        fetcher(&[&source]).check_hole(THIRD).await.unwrap_err();
        // With 16 MB this would be the segment in which timeline 1 was left.
        source.put("00000002.history", "1\t0/300000\tx\n");
        fetcher(&[&source]).check_hole(THIRD).await.unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Whatever a source gives, the answer is a file, none or an error.
        #[test]
        fn nothing_a_source_gives_does_harm(bytes in prop::collection::vec(any::<u8>(), 0..20_000), flip in 0usize..SEG) {
            let mut damaged = wal(77)[..SEG].to_vec();
            damaged[flip] ^= 0x10;
            for content in [bytes, damaged] {
                let _ = check_file(THIRD, Some(SystemId(77)), &content);
                let _ = check_file("00000002.history", None, &content);
                let _ = fetcher(&[]).good_length(THIRD, &content);
            }
        }
    }
}
