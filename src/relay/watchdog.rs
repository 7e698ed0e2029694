//! Feeds systemd's watchdog as long as the relay makes progress.
//!
//! No progress is: the shared runtime runs no tasks any more (this is one of them), or a thread of the relay is silent
//! although nothing waits for a disk. A thread that is lost ends the relay at once and needs no watchdog. A disk that
//! hangs is no reason: the relay serves what it can meanwhile, and a restart would have to read that disk first.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::notify::Notifier;
use crate::parts::{BEAT, Heart, stuck, waits_for_disk};

/// The least silence that counts: three beats that did not come.
const LEAST: Duration = BEAT.saturating_mul(3);

/// Until told to stop. Does nothing where nobody watches.
pub(super) async fn feed(notifier: Notifier, hearts: Vec<Heart>, stop: CancellationToken) {
    let Some(limit) = notifier.watchdog() else { return stop.cancelled().await };
    feed_while_alive(&notifier, hearts, (limit, limit.max(LEAST)), waits_for_disk, stop).await;
}

/// `limit` is the watchdog's, `silence` how long a thread may be without a sign of life while nothing waits for a disk.
async fn feed_while_alive(
    notifier: &Notifier,
    hearts: Vec<Heart>,
    (limit, silence): (Duration, Duration),
    waits_for_disk: fn() -> bool,
    stop: CancellationToken,
) {
    let mut told = false;
    loop {
        let silent = hearts.iter().any(|heart| heart.is_silent(silence));
        let found = if silent { look(&hearts, limit / 3, silence, waits_for_disk).await } else { None };
        match found {
            None => {
                notifier.alive();
                told = false;
            }
            Some(name) if !told => {
                tracing::error!(
                    "the {name} has shown no sign of life for {} s and waits for no disk: a fault of walrelay; systemd's \
                     watchdog is not fed until it does",
                    silence.as_secs_f32()
                );
                told = true;
            }
            Some(_) => {}
        }
        // Twice as often as needed, and once more.
        if stop.run_until_cancelled(tokio::time::sleep(limit / 3)).await.is_none() {
            return;
        }
    }
}

/// Who is stuck. Asked on a thread that others use for their disks: one that is not to be had in time means that those
/// wait, and so says that there is a disk to wait for.
async fn look(
    hearts: &[Heart],
    patience: Duration,
    silence: Duration,
    waits_for_disk: fn() -> bool,
) -> Option<&'static str> {
    let hearts = hearts.to_vec();
    // What it reads is no disk, but it is not nothing either.
    let looked =
        tokio::task::spawn_blocking(move || stuck(&hearts, silence, waits_for_disk).map(Heart::name));
    tokio::time::timeout(patience, looked).await.ok()?.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::notify::tests::{heard, pair};
    use crate::parts::{Thread, beat};

    const LIMIT: Duration = Duration::from_millis(150);

    /// The fault is a thread that waits for what never comes.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_stuck_thread_is_fed_no_longer_and_a_live_one_is() {
        let dir = crate::permissions::private_tempdir();
        let (listener, notifier) = pair(dir.path(), "1000");
        let (hang, told_to_hang) = channel::<()>();
        let (go_on, hung) = channel::<()>();
        let run = move || {
            while told_to_hang.recv_timeout(LIMIT / 10).is_err() {
                beat();
            }
            let _ = hung.recv();
            for _ in told_to_hang.iter() {
                beat();
            }
        };
        let thread = Thread::start("flusher", run).unwrap();
        let stop = CancellationToken::new();
        let (hearts, told) = (vec![thread.heart()], stop.clone());
        let feeding = tokio::spawn(async move {
            feed_while_alive(&notifier, hearts, (LIMIT / 10, LIMIT), || false, told).await
        });
        let listen = move || {
            for _ in 0..20 {
                assert_eq!(heard(&listener).unwrap(), "WATCHDOG=1");
            }
            hang.send(()).unwrap();
            // What was sent before, and then nothing more.
            listener.set_read_timeout(Some(4 * LIMIT)).unwrap();
            while heard(&listener).is_ok() {}
            go_on.send(()).unwrap();
            listener.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            hang.send(()).unwrap();
            assert_eq!(heard(&listener).unwrap(), "WATCHDOG=1");
        };
        tokio::task::spawn_blocking(listen).await.unwrap();
        stop.cancel();
        feeding.await.unwrap();
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn where_nobody_watches_nothing_is_done() {
        let stop = CancellationToken::new();
        stop.cancel();
        feed(Notifier::default(), Vec::new(), stop).await;
    }
}
