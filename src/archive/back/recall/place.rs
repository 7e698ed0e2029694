//! The sources as a recall sees them: whose turn it is, and who has not answered lately.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::arriving::Arriving;
use super::lock;
use crate::archive::back::source::{FetchError, Look, Source};

/// Segments on their way from a source at a time. What unpacks them may hold some megabytes of each.
pub(super) const AT_A_TIME: usize = 4;
/// How long a source, or its turn, is waited for where another can be asked meanwhile.
const MOMENT: Duration = Duration::from_secs(1);
/// A source that failed, or was silent for a moment, is asked after the others for the first of these; each time it is no
/// better then, for twice as long, up to the second.
const IN_DISGRACE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

#[derive(Debug)]
pub(super) struct Place {
    source: Arc<dyn Source>,
    /// What is left of [`AT_A_TIME`].
    turns: Arc<Semaphore>,
    disgrace: Mutex<Disgrace>,
}

/// Since when and how long a source is asked last; never, before it has failed.
#[derive(Clone, Copy, Default, Debug)]
struct Disgrace(Option<(Instant, Duration)>);

impl Disgrace {
    fn lasts(self) -> bool {
        self.0.is_some_and(|(since, length)| since.elapsed() < length)
    }

    /// What happens while it lasts has happened to those who were asked before it began, or last.
    fn begin(&mut self) {
        if self.lasts() {
            return;
        }
        let length = self.0.map_or(IN_DISGRACE.0, |(_, length)| (2 * length).min(IN_DISGRACE.1));
        self.0 = Some((Instant::now(), length));
    }

    /// An answer: it counts if it was not waited for.
    fn end(&mut self) {
        if !self.lasts() {
            self.0 = None;
        }
    }
}

impl Place {
    pub(super) fn new(source: Arc<dyn Source>) -> Place {
        Place { source, turns: Arc::new(Semaphore::new(AT_A_TIME)), disgrace: Mutex::default() }
    }

    /// For messages.
    pub(super) fn name(&self) -> &str {
        self.source.name()
    }

    /// The right to ask the source; `None` if others keep it for longer than that. Cancel-safe.
    pub(super) async fn turn(&self, patience: Option<Duration>) -> Option<OwnedSemaphorePermit> {
        let turn = self.turns.clone().acquire_owned();
        let turn = match patience {
            None => turn.await,
            Some(patience) => tokio::time::timeout(patience, turn).await.ok()?,
        };
        Some(turn.expect("nobody closes it"))
    }

    #[cfg(test)]
    pub(super) fn free_turns(&self) -> usize {
        self.turns.available_permits()
    }

    pub(super) async fn read(&self, file: &str) -> Result<Option<Bytes>, FetchError> {
        self.note(self.source.read(file).await)
    }

    /// Shows a segment to one that arrives; false if there certainly is none.
    pub(super) async fn show(
        &self,
        file: &str,
        size: u64,
        arriving: &Arc<Arriving>,
    ) -> Result<bool, FetchError> {
        let taking = arriving.clone();
        let look: Look = Arc::new(move |content| taking.take(content));
        let answer = self.source.show(file, size, look).await;
        match answer {
            Err(FetchError::Unreachable { .. }) if arriving.is_storing() => {
                let reason = "the relay's disk has not taken what came from it".to_owned();
                Err(FetchError::Unreachable { place: self.source.name().to_owned(), reason })
            }
            answer => self.note(answer),
        }
    }

    fn note<T>(&self, answer: Result<T, FetchError>) -> Result<T, FetchError> {
        match &answer {
            Err(FetchError::Unreachable { .. }) => lock(&self.disgrace).begin(),
            _ => lock(&self.disgrace).end(),
        }
        answer
    }

    /// Whether it is to be asked after the others.
    pub(super) fn is_in_disgrace(&self) -> bool {
        lock(&self.disgrace).lasts()
    }
}

/// Asks places in this order, and the next one also while one is silent, until `hear` has made something of an answer.
/// `None` when all have answered. Who has no turn for somebody in time (`ask` gives `None`) is asked again behind the others,
/// then for as long as it takes.
///
/// Cancel-safe if `ask` is: it is given up as soon as somebody else has what is asked for.
pub(super) async fn in_turn<Q: Clone, T, R, A: Future<Output = Option<T>>>(
    questions: impl IntoIterator<Item = (Arc<Place>, Q)>,
    ask: impl Fn(Arc<Place>, Q, Option<Duration>) -> A,
    mut hear: impl FnMut(T) -> Option<R>,
) -> Option<R> {
    let mut questions: VecDeque<_> =
        questions.into_iter().map(|(place, question)| (place, question, Some(MOMENT))).collect();
    let (mut asked, mut number) = (FuturesUnordered::new(), 0);
    loop {
        let (newest, silence) = match questions.pop_front() {
            None if asked.is_empty() => return None,
            None => (None, None),
            Some((place, question, patience)) => {
                number += 1;
                // Where there is nobody else to ask it takes as long as it takes.
                let others = questions.iter().any(|(other, ..)| !Arc::ptr_eq(other, &place));
                let answer = ask(place.clone(), question.clone(), patience.filter(|_| others));
                let silence = others.then(|| place.clone());
                asked.push(async move { (number, place, question, answer.await) });
                (Some(number), silence)
            }
        };
        let mut silence = std::pin::pin!(async {
            match &silence {
                Some(place) => {
                    place.source.pulse().silence(MOMENT).await;
                    lock(&place.disgrace).begin();
                }
                None => std::future::pending().await,
            }
        });
        loop {
            let (who, place, question, answer) = tokio::select! {
                biased;
                Some(answer) = asked.next() => answer,
                () = &mut silence => break,
            };
            match answer {
                None => questions.push_back((place, question, None)),
                Some(answer) => {
                    if let Some(done) = hear(answer) {
                        return Some(done);
                    }
                }
            }
            if newest.is_none_or(|newest| newest == who) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_no_better_is_asked_last_for_twice_as_long() {
        let mut disgrace = Disgrace::default();
        let over = |disgrace: &mut Disgrace| {
            let (since, length) = disgrace.0.as_mut().expect("it has begun");
            *since = since.checked_sub(*length).expect("the machine runs for longer than that");
            *length
        };
        disgrace.begin();
        let first = over(&mut disgrace);
        assert!(!disgrace.lasts());
        disgrace.begin();
        disgrace.begin();
        // An answer that somebody who asked it last has waited for changes nothing.
        disgrace.end();
        assert!(disgrace.lasts());
        assert_eq!(over(&mut disgrace), 2 * first);
        disgrace.end();
        disgrace.begin();
        assert_eq!(over(&mut disgrace), first);
    }
}
