//! Tasks that are watched.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};

use super::{HowEnded, PartEnded, named};

/// How long those that are cut off are waited for.
const CUT_PATIENCE: Duration = Duration::from_millis(500);

/// Tasks that are to run until they are told to stop. Dropping this ends them at once.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, String>,
}

impl Tasks {
    /// Starts one. Has to be called in a runtime.
    pub(crate) fn spawn(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let name = name.into();
        let id = self.set.spawn(named(name.as_str().into(), task)).id();
        self.names.insert(id, name);
    }

    /// Resolves when one of them has ended, which none should before it is told to; never, if there are none.
    /// Cancel-safe.
    pub(crate) async fn lost(&mut self) -> PartEnded {
        match self.next().await {
            Some((part, how)) => PartEnded { part, how: how.unwrap_or(HowEnded::Returned) },
            None => std::future::pending().await,
        }
    }

    /// Waits until all have ended, after they were told to. The first that panicked instead. Cancel-safe.
    pub(crate) async fn finish(&mut self) -> Result<(), PartEnded> {
        let mut result = Ok(());
        while let Some((part, how)) = self.next().await {
            if let Some(how) = how.filter(|_| result.is_ok()) {
                result = Err(PartEnded { part, how });
            }
        }
        result
    }

    /// Ends those that still run, and waits for a moment until what they hold is gone.
    pub(crate) async fn cut(&mut self) {
        self.set.abort_all();
        let gone = async { while self.set.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(CUT_PATIENCE, gone).await;
    }

    /// The names of those that run.
    pub(crate) fn running(&self) -> Vec<&str> {
        self.names.values().map(String::as_str).collect()
    }

    async fn next(&mut self) -> Option<(String, Option<HowEnded>)> {
        let (id, how) = match self.set.join_next_with_id().await? {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(how_ended(error))),
        };
        Some((self.names.remove(&id).unwrap_or_default(), how))
    }
}

/// What became of a task that did not end by itself.
pub(crate) fn how_ended(error: JoinError) -> HowEnded {
    match error.try_into_panic() {
        Ok(payload) => HowEnded::panicked(&*payload),
        Err(_) => HowEnded::Returned,
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_told_by_name() {
        let mut tasks = Tasks::default();
        tasks.spawn("roles refresher", std::future::pending());
        tasks.spawn("listener", async { panic!("out of luck") });
        let lost = tasks.lost().await;
        assert_eq!(lost.part, "listener");
        assert_eq!(lost.how, HowEnded::Panicked("out of luck".to_owned()));
        assert_eq!(tasks.running(), ["roles refresher"]);
    }

    #[tokio::test]
    async fn a_task_that_is_over_too_early_is_told_too() {
        let mut tasks = Tasks::default();
        tasks.spawn("listener", async {});
        assert_eq!(tasks.lost().await.how, HowEnded::Returned);
    }

    #[tokio::test]
    async fn an_end_that_was_ordered_is_no_loss() {
        let (mut tasks, stop) = (Tasks::default(), CancellationToken::new());
        for name in ["one", "two"] {
            let stop = stop.clone();
            tasks.spawn(name, async move { stop.cancelled().await });
        }
        stop.cancel();
        assert_eq!(tasks.finish().await, Ok(()));
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn a_panic_while_stopping_is_told_when_all_have_ended() {
        let mut tasks = Tasks::default();
        tasks.spawn("one", async { panic!("late") });
        tasks.spawn("two", async {});
        assert_eq!(tasks.finish().await.unwrap_err().part, "one");
        assert!(tasks.running().is_empty());
    }
}
