//! Which server is followed, for those who want something else of it than WAL, and their way to have it looked for now.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::board::Board;
use crate::conninfo::HostSpec;

/// The receiver's end: says whom it follows, and hears that somebody waits for it.
#[derive(Debug)]
pub struct Following {
    host: watch::Sender<Option<HostSpec>>,
    attempts: Arc<Attempts>,
    board: Arc<Board>,
}

/// Everybody else's end.
#[derive(Clone, Debug)]
pub struct Followed {
    host: watch::Receiver<Option<HostSpec>>,
    attempts: Arc<Attempts>,
    board: Arc<Board>,
}

/// Waits for a server to be followed again.
#[derive(Debug)]
pub struct Return {
    host: watch::Receiver<Option<HostSpec>>,
}

impl Return {
    /// Resolves when one is. Cancel-safe.
    pub async fn come(&mut self) {
        while self.host.changed().await.is_ok() {
            if self.host.borrow_and_update().is_some() {
                return;
            }
        }
        // Nobody will follow any more.
        std::future::pending().await
    }
}

/// Questions for a server to follow are counted. An attempt covers those that were asked before it began.
#[derive(Debug, Default)]
struct Attempts {
    asked: watch::Sender<u64>,
    /// The last one that ends a pause between two attempts.
    urgent: watch::Sender<u64>,
    /// Those that were answered by an attempt that has failed.
    failed: watch::Sender<u64>,
}

impl Following {
    /// Both ends; nobody is followed yet.
    pub fn channel() -> (Following, Followed) {
        let (sender, host) = watch::channel(None);
        let attempts = Arc::<Attempts>::default();
        let board = Arc::<Board>::default();
        let following = Following { host: sender, attempts: attempts.clone(), board: board.clone() };
        (following, Followed { host, attempts, board })
    }

    /// What there is to see of the receiver.
    pub(super) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Watches whom it follows.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<HostSpec>> {
        self.host.subscribe()
    }

    /// Says whom it follows; whom it had followed.
    pub(crate) fn show(&self, host: Option<HostSpec>) -> Option<HostSpec> {
        self.host.send_replace(host)
    }

    /// A way to say it later.
    pub(super) fn shower(&self) -> watch::Sender<Option<HostSpec>> {
        self.host.clone()
    }

    /// An attempt begins: which questions it covers.
    pub(super) fn begin(&self) -> u64 {
        *self.attempts.asked.borrow()
    }

    /// The attempt that covered these has failed.
    pub(super) fn fail(&self, covered: u64) {
        self.attempts.failed.send_replace(covered);
    }

    /// Resolves when somebody asks who may end a pause and whom the last attempt did not cover. Cancel-safe.
    pub(super) async fn asked_beyond(&self, covered: u64) {
        // The sender is ours.
        let _ = self.attempts.urgent.subscribe().wait_for(|asked| *asked > covered).await;
    }
}

impl Followed {
    /// What there is to see of the receiver.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// The server WAL comes from, if there is one at the moment.
    pub fn host(&self) -> Option<HostSpec> {
        self.host.borrow().clone()
    }

    /// Waits for a server to come. With `was_down` there was none when it was tried, and one that is there now has come;
    /// else the one that is there now could not be used, and another beginning is waited for.
    pub fn next_return(&self, was_down: bool) -> Return {
        let mut host = self.host.clone();
        if was_down {
            host.mark_changed()
        } else {
            host.mark_unchanged()
        }
        Return { host }
    }

    /// The same as [`Followed::host`], but where there is none the receiver, which may pause between two attempts, is woken, and what comes of
    /// its next attempt is waited for, `limit` at most. The receiver decides whether a server is one to be followed; so
    /// nothing is asked of one that it has not looked at. Cancel-safe.
    pub async fn reach(&self, limit: Duration) -> Option<HostSpec> {
        self.next(limit, true).await
    }

    /// The same for those of whom nothing is known yet: the receiver is not woken for them, so that nobody can keep it
    /// at attempts without logging in. Cancel-safe.
    pub async fn wait(&self, limit: Duration) -> Option<HostSpec> {
        self.next(limit, false).await
    }

    async fn next(&self, limit: Duration, urgent: bool) -> Option<HostSpec> {
        let (mut host, mut mine) = (self.host.clone(), 0);
        if host.borrow().is_some() {
            return self.host();
        }
        self.attempts.asked.send_modify(|asked| {
            *asked += 1;
            mine = *asked;
        });
        if urgent {
            self.attempts.urgent.send_modify(|last| *last = mine.max(*last));
        }
        let mut failed = self.attempts.failed.subscribe();
        tokio::select! {
            _ = host.wait_for(Option::is_some) => {}
            _ = failed.wait_for(|covered| *covered >= mine) => {}
            () = tokio::time::sleep(limit) => {}
        }
        self.host()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conninfo::{ConnInfo, Environment};

    const LONG: Duration = Duration::from_secs(3600);

    fn host() -> HostSpec {
        ConnInfo::parse("host=a", &Environment::of_user("x")).unwrap().hosts[0].clone()
    }

    #[tokio::test]
    async fn who_asks_wakes_the_receiver_and_hears_of_the_attempt_after() {
        let (following, followed) = Following::channel();
        // One is under way: the server may have come back behind it.
        let covered = following.begin();
        let asking = tokio::spawn(async move { followed.reach(LONG).await });
        following.asked_beyond(covered).await;
        following.fail(covered);
        tokio::task::yield_now().await;
        assert!(!asking.is_finished());
        let next = following.begin();
        assert_eq!(next, covered + 1);
        following.show(Some(host()));
        assert_eq!(asking.await.unwrap(), Some(host()));
    }

    #[tokio::test]
    async fn a_return_is_seen_whenever_it_was() {
        use futures_util::FutureExt;
        let (following, followed) = Following::channel();
        let mut early = followed.next_return(true);
        assert!(early.come().now_or_never().is_none());
        following.show(Some(host()));
        // It came between the attempt and the question.
        let mut late = followed.next_return(true);
        assert!(early.come().now_or_never().is_some());
        assert!(late.come().now_or_never().is_some());
        // It was there, and was of no use.
        let mut again = followed.next_return(false);
        assert!(again.come().now_or_never().is_none());
        following.show(None);
        assert!(again.come().now_or_never().is_none());
        following.show(Some(host()));
        assert!(again.come().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_is_not_known_waits_for_the_next_attempt_and_wakes_nobody() {
        let (following, followed) = Following::channel();
        let asking = tokio::spawn({
            let followed = followed.clone();
            async move { followed.wait(LONG).await }
        });
        while following.begin() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(futures_util::FutureExt::now_or_never(following.asked_beyond(0)).is_none());
        following.fail(following.begin());
        assert_eq!(asking.await.unwrap(), None);
        following.show(Some(host()));
        assert_eq!(followed.wait(Duration::ZERO).await, Some(host()));
    }

    #[tokio::test]
    async fn who_asks_is_refused_when_the_attempt_fails() {
        let (following, followed) = Following::channel();
        let asking = tokio::spawn({
            let followed = followed.clone();
            async move { followed.reach(LONG).await }
        });
        following.asked_beyond(0).await;
        following.fail(following.begin());
        assert_eq!(asking.await.unwrap(), None);
        // A server that is followed is there at once, and one that hangs is not waited for without end.
        assert_eq!(followed.reach(Duration::ZERO).await, None);
        following.show(Some(host()));
        assert_eq!(followed.reach(Duration::ZERO).await, Some(host()));
    }
}
