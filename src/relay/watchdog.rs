//! Watches what the relay's threads and workers do, says who is stuck, and feeds systemd's watchdog as long as nobody is.
//!
//! Stuck is who shows no sign of life although nothing waits for a disk: a thread of the relay that does not beat, or a
//! worker of the shared runtime that is kept by one task while its others wait. A thread that is lost ends the relay at once
//! and needs no watchdog. A disk that hangs is no reason: the relay serves what it can meanwhile, and a restart would have
//! to read that disk first.
//!
//! This is a thread of its own, so that nothing it looks at can keep it from looking.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::notify::Notifier;
use crate::parts::{BEAT, Heart, PartEnded, Thread, Workers, polled_for, stuck, waits_for_disk};

/// The least silence that counts: three beats that did not come.
const LEAST: Duration = BEAT.saturating_mul(3);

/// The thread, running: from before the start's first step until the stop's last, for systemd counts the time of both.
#[derive(Debug)]
pub(super) struct Watchdog {
    thread: Thread<()>,
    /// Whom to watch from now on. It ends when this is dropped.
    more: Sender<Heart>,
}

impl Watchdog {
    /// Begins to watch the workers of this runtime.
    pub(super) fn start(notifier: Notifier, runtime: &Handle) -> io::Result<Watchdog> {
        // Twice as often as systemd needs, and once more. Where it does not ask, there is the log.
        let limit = notifier.watchdog();
        let pause = limit.map_or(BEAT, |limit| (limit / 3).min(BEAT));
        let silence = limit.unwrap_or(LEAST).max(LEAST);
        Watch::new(notifier, runtime, pause, silence, waits_for_disk).start()
    }

    /// These threads, too, until each has ended.
    pub(super) fn watch(&self, hearts: impl IntoIterator<Item = Heart>) {
        for heart in hearts {
            // A thread that is lost has told of it.
            let _ = self.more.send(heart);
        }
    }

    /// Resolves when the thread is lost. Cancel-safe.
    pub(super) async fn lost(&mut self) -> PartEnded {
        self.thread.lost().await
    }

    /// Nobody is watched any more.
    pub(super) fn stop(self) {
        drop(self.more);
        // It looks at everybody first, which takes no time. A panic was told of.
        let _ = self.thread.join();
    }
}

/// What the thread does.
#[derive(Debug)]
struct Watch {
    notifier: Notifier,
    hearts: Vec<Heart>,
    workers: Workers,
    /// How often it looks.
    pause: Duration,
    /// How long somebody may be without a sign of life while nothing waits for a disk.
    silence: Duration,
    waits_for_disk: fn() -> bool,
    /// Who was told of to be stuck.
    told: Option<String>,
}

impl Watch {
    fn new(
        notifier: Notifier,
        runtime: &Handle,
        pause: Duration,
        silence: Duration,
        waits_for_disk: fn() -> bool,
    ) -> Watch {
        let workers = Workers::of(runtime, "the runtime that serves clients");
        Watch { notifier, hearts: Vec::new(), workers, pause, silence, waits_for_disk, told: None }
    }

    fn start(mut self) -> io::Result<Watchdog> {
        let (more, added) = channel();
        let thread = Thread::start("watchdog", move || self.watch(&added))?;
        Ok(Watchdog { thread, more })
    }

    fn watch(&mut self, added: &Receiver<Heart>) {
        let mut looked = Instant::now();
        loop {
            let was_stopped = looked.elapsed() > self.silence;
            self.workers.look();
            // Who was kept from looking (the process was stopped) knows nothing of others, who were kept, too.
            let found = if was_stopped { None } else { self.who_is_stuck() };
            self.tell(found);
            looked = Instant::now();
            match added.recv_timeout(self.pause) {
                Ok(heart) => self.hearts.push(heart),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn who_is_stuck(&self) -> Option<String> {
        let hearts = self.hearts.iter().chain(self.workers.hearts());
        stuck(hearts, self.silence, self.waits_for_disk).map(|heart| heart.name().to_owned())
    }

    /// Feeds systemd's watchdog, or says why not, once.
    fn tell(&mut self, found: Option<String>) {
        match &found {
            None => {
                if let Some(name) = &self.told {
                    tracing::info!("the {name} shows signs of life again");
                }
                if self.notifier.watchdog().is_some() {
                    self.notifier.alive();
                }
            }
            Some(name) if self.told.as_ref() != Some(name) => {
                let tasks = polled_for(self.silence);
                let tasks = tasks.iter().map(|task| format!(", kept by the {task}")).collect::<String>();
                let fed = match self.notifier.watchdog() {
                    Some(_) => "; systemd's watchdog is not fed until it does",
                    None => "",
                };
                tracing::error!(
                    "the {name} has shown no sign of life for {} s and waits for no disk{tasks}: a fault of walrelay{fed}",
                    self.silence.as_secs_f32()
                );
            }
            Some(_) => {}
        }
        self.told = found;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::notify::tests::{heard, pair};
    use crate::parts::beat;

    const LIMIT: Duration = Duration::from_millis(150);

    fn watch(notifier: Notifier, hearts: Vec<Heart>) -> Watchdog {
        let watch = Watch::new(notifier, &Handle::current(), LIMIT / 10, LIMIT, || false);
        let watchdog = watch.start().unwrap();
        watchdog.watch(hearts);
        watchdog
    }

    /// It is fed; when `hang` has been called no longer, and again behind `go_on`.
    fn starves_between(listener: &UnixDatagram, hang: impl FnOnce(), go_on: impl FnOnce()) {
        for _ in 0..20 {
            assert_eq!(heard(listener).unwrap(), "WATCHDOG=1");
        }
        hang();
        // What was sent before, and then nothing more.
        listener.set_read_timeout(Some(4 * LIMIT)).unwrap();
        while heard(listener).is_ok() {}
        go_on();
        listener.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(heard(listener).unwrap(), "WATCHDOG=1");
    }

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
        let watchdog = watch(notifier, vec![thread.heart()]);
        let listen = move || {
            let last = hang.clone();
            let let_go = || {
                go_on.send(()).unwrap();
                last.send(()).unwrap();
            };
            starves_between(&listener, || hang.send(()).unwrap(), let_go);
        };
        tokio::task::spawn_blocking(listen).await.unwrap();
        watchdog.stop();
        thread.join().unwrap();
    }

    /// The others would go on for ever.
    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn a_worker_that_one_task_keeps_is_fed_no_longer() {
        let dir = crate::permissions::private_tempdir();
        let (listener, notifier) = pair(dir.path(), "1000");
        let watchdog = watch(notifier, Vec::new());
        let runtime = Handle::current();
        let (go_on, kept) = channel::<()>();
        let listen = move || {
            let keeps = async move {
                let _ = kept.recv();
            };
            let hang = || drop(runtime.spawn(crate::parts::named("keeper".into(), keeps)));
            starves_between(&listener, hang, || drop(go_on));
        };
        let listening = tokio::task::spawn_blocking(listen);
        listening.await.unwrap();
        watchdog.stop();
    }

    /// During a stop threads end one after the other, and what is left may take its time.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_has_ended_is_not_silent() {
        let dir = crate::permissions::private_tempdir();
        let (listener, notifier) = pair(dir.path(), "1000");
        let thread = Thread::start("flusher", || ()).unwrap();
        let heart = thread.heart();
        thread.join().unwrap();
        let watchdog = watch(notifier, vec![heart]);
        let listen = move || {
            let begun = Instant::now();
            while begun.elapsed() < 4 * LIMIT {
                assert_eq!(heard(&listener).unwrap(), "WATCHDOG=1");
            }
        };
        tokio::task::spawn_blocking(listen).await.unwrap();
        watchdog.stop();
    }
}
