//! Threads that are watched: whoever starts one learns how it ended, a panic included.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;

use super::heart::Heart;
use super::{HowEnded, PartEnded};

/// A thread with a name, and what becomes of it. Dropping this leaves the thread alone.
#[derive(Debug)]
pub(crate) struct Thread<T> {
    name: &'static str,
    heart: Heart,
    ended: oneshot::Receiver<Result<T, HowEnded>>,
    handle: std::thread::JoinHandle<()>,
}

impl<T: Send + 'static> Thread<T> {
    /// Starts it.
    pub(crate) fn start(
        name: &'static str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Thread<T>> {
        let (report, ended) = oneshot::channel();
        let heart = Heart::new(name);
        let own = heart.clone();
        let body = move || {
            own.adopt();
            let result = catch_unwind(AssertUnwindSafe(run));
            own.end();
            let _ = report.send(result.map_err(|payload| HowEnded::panicked(&*payload)));
        };
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Thread { name, heart, ended, handle })
    }

    /// What shows whether it is alive, if it beats.
    pub(crate) fn heart(&self) -> Heart {
        self.heart.clone()
    }

    /// Resolves when it has ended, once; never again after that. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> Result<T, PartEnded> {
        if self.ended.is_terminated() {
            return std::future::pending().await;
        }
        let ended = (&mut self.ended).await.unwrap_or(Err(HowEnded::Returned));
        ended.map_err(|how| PartEnded { part: self.name.to_owned(), how })
    }

    /// Resolves when it has ended, which it should not: in what way. Cancel-safe.
    pub(crate) async fn lost(&mut self) -> PartEnded {
        let how = |_| PartEnded { part: self.name.to_owned(), how: HowEnded::Returned };
        let returned = how(());
        self.ended().await.map_or_else(|lost| lost, |_| returned)
    }

    /// Waits for its end, however long that takes; says so if it was a panic that nobody has been told of.
    pub(crate) fn join(mut self) -> Result<(), PartEnded> {
        let _ = self.handle.join();
        match self.ended.try_recv() {
            Ok(Err(how)) => Err(PartEnded { part: self.name.to_owned(), how }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_thread_returns_arrives() {
        let mut thread = Thread::start("adder", || 1 + 1).unwrap();
        assert_eq!(thread.ended().await, Ok(2));
        assert_eq!(thread.join(), Ok(()));
    }

    #[tokio::test]
    async fn a_panic_is_told_with_its_words() {
        let mut thread: Thread<()> = Thread::start("flusher", || panic!("no {}", "luck")).unwrap();
        let lost = thread.ended().await.unwrap_err();
        let expected =
            "the flusher has ended unexpectedly (panic: no luck), and the relay cannot go on without it";
        assert_eq!(lost.to_string(), expected);
        // It is told once.
        assert_eq!(thread.join(), Ok(()));
    }

    #[test]
    fn a_panic_found_while_joining_is_told_there() {
        let thread: Thread<()> = Thread::start("flusher", || panic!("late")).unwrap();
        let how = HowEnded::Panicked("late".to_owned());
        assert_eq!(thread.join(), Err(PartEnded { part: "flusher".to_owned(), how }));
    }

    #[tokio::test]
    async fn an_end_that_nobody_ordered_is_told_too() {
        let mut thread = Thread::start("retention thread", || ()).unwrap();
        assert_eq!(thread.lost().await.how, HowEnded::Returned);
    }
}
