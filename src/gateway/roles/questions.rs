//! Roles that the upstream is to be asked about, in the order in which it is.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::wire::Source;

/// Above this many, those that nobody waits for any more are looked for and forgotten.
const TIDY_ABOVE: usize = 1024;

/// Questions of many clients. Each source has its turn, however many questions another one has.
#[derive(Debug)]
pub(super) struct Questions {
    /// From one source at a time; more are not taken.
    most: usize,
    /// Whether a question is of use when nobody waits for the answer.
    outlive: bool,
    turns: Mutex<VecDeque<Turn>>,
    more: Notify,
}

/// What one source wants to know. Never empty.
#[derive(Debug)]
struct Turn {
    source: Option<Source>,
    waiting: VecDeque<Question>,
}

/// A role's name, and who waits for the answer. Dropping it tells them that there will be no other.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) name: String,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Question {
    fn is_waited_for(&self) -> bool {
        self.waiters.iter().any(|waiter| !waiter.is_closed())
    }
}

impl Questions {
    /// Each source may have `most` at a time.
    pub(super) fn new(most: usize, outlive: bool) -> Questions {
        Questions { most, outlive, turns: Mutex::default(), more: Notify::new() }
    }

    /// Asks for a role. The future resolves when there is an answer, or when there will be none; at once if this source
    /// has asked for too much already. Dropping it withdraws a question that is not to outlive it.
    pub(super) fn ask(&self, name: &str, source: Option<Source>) -> impl Future<Output = ()> + use<> {
        let answer = self.put(name, source);
        self.more.notify_one();
        async move {
            if let Some(answer) = answer {
                let _ = answer.await;
            }
        }
    }

    fn put(&self, name: &str, source: Option<Source>) -> Option<oneshot::Receiver<()>> {
        let mut turns = self.lock();
        if !self.outlive && turns.iter().map(|turn| turn.waiting.len()).sum::<usize>() >= TIDY_ABOVE {
            turns.iter_mut().for_each(|turn| turn.waiting.retain(Question::is_waited_for));
            turns.retain(|turn| !turn.waiting.is_empty());
        }
        let at = turns.iter().position(|turn| turn.source == source).unwrap_or_else(|| {
            turns.push_back(Turn { source, waiting: VecDeque::new() });
            turns.len() - 1
        });
        let waiting = &mut turns[at].waiting;
        let (waiter, answer) = oneshot::channel();
        if let Some(question) = waiting.iter_mut().find(|question| question.name == name) {
            question.waiters.retain(|waiter| !waiter.is_closed());
            question.waiters.push(waiter);
            return Some(answer);
        }
        if waiting.len() >= self.most {
            waiting.retain(|question| self.outlive || question.is_waited_for());
        }
        if waiting.len() >= self.most {
            return None;
        }
        waiting.push_back(Question { name: name.to_owned(), waiters: vec![waiter] });
        Some(answer)
    }

    /// Resolves when there is a question. Cancel-safe.
    pub(super) async fn any(&self) {
        while self.lock().is_empty() {
            self.more.notified().await;
        }
    }

    /// The next ones, `most` at most, one of each source in turn.
    pub(super) fn take(&self, most: usize) -> Vec<Question> {
        let mut turns = self.lock();
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(mut turn) = turns.pop_front()
        {
            let next = turn.waiting.pop_front();
            if !turn.waiting.is_empty() {
                turns.push_back(turn);
            }
            taken.extend(next.filter(|question| self.outlive || question.is_waited_for()));
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Turn>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> Option<Source> {
        Some(std::net::IpAddr::from([192, 0, 2, last]).into())
    }

    fn names(questions: &Questions, most: usize) -> Vec<String> {
        questions.take(most).into_iter().map(|question| question.name).collect()
    }

    #[test]
    fn each_source_has_its_turn() {
        let questions = Questions::new(100, false);
        let mut asked: Vec<_> =
            (0..50).map(|n| questions.ask(&format!("evil{n}"), source(1))).map(Box::pin).collect();
        asked.push(Box::pin(questions.ask("good", source(2))));
        asked.push(Box::pin(questions.ask("fair", None)));
        assert_eq!(names(&questions, 4), ["evil0", "good", "fair", "evil1"]);
        assert_eq!(names(&questions, 100).len(), 48);
    }

    #[test]
    fn one_name_is_asked_for_once() {
        let questions = Questions::new(1, false);
        let _asked = [questions.ask("a", source(1)), questions.ask("a", source(1))];
        assert_eq!(names(&questions, 9), ["a"]);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_withdrawn_unless_it_is_of_use() {
        for (outlive, expected) in [(false, &["b"][..]), (true, &["a", "b"])] {
            let questions = Questions::new(100, outlive);
            drop(questions.ask("a", None));
            let waiting = questions.ask("b", None);
            assert_eq!(names(&questions, 9), expected);
            waiting.await;
        }
    }

    #[tokio::test]
    async fn a_source_with_too_many_is_not_kept_waiting() {
        let questions = Questions::new(2, false);
        let waiting = [questions.ask("a", source(1)), questions.ask("b", source(1))];
        questions.ask("c", source(1)).await;
        drop(waiting);
        let _waiting = questions.ask("d", source(1));
        assert_eq!(names(&questions, 9), ["d"]);
    }

    #[test]
    fn questions_of_those_who_left_do_not_pile_up() {
        let questions = Questions::new(2, false);
        for n in 0..100_000_u32 {
            drop(questions.ask("a", Some(std::net::IpAddr::from(n.to_be_bytes()).into())));
        }
        assert!(questions.lock().len() <= TIDY_ABOVE);
    }
}
