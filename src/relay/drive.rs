//! Who runs the work that receives: its own thread, which also makes durable what was written while there is nothing else to
//! do, and a deputy that runs the work meanwhile where that takes long.
//!
//! ```text
//!              Pending, a turn is offered             the sync is done
//!  Driven ────────────────────────────────> Syncing ────────────────────────> Driven
//!     ^                                        │ it takes long
//!     │                                        v              the sync is done
//!     └───────────────── Returned <──── TakenOver { wanted } <───────────────── (tells the deputy)
//! ```
//!
//! So a commit is received, stored, synced and reported by one thread, without waking another; and a disk that hangs keeps
//! nobody from being sent what is received, because the work is not in that thread's hands then. The deputy takes no turns:
//! those are the flusher's.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::parts::{BEAT, beat};
use crate::store::Store;

/// A sync that has taken so long may take for ever: the deputy goes on with the work.
const LONG: Duration = Duration::from_millis(20);
/// Looks at a thread that does not sync, before the deputy sleeps until it does.
const QUIET_LOOKS: u32 = 50;

/// Turns that the work's thread may take when the work waits.
pub trait Turns: Send + Sync {
    /// Whether turns are to be offered from now on.
    fn offer(&self, offer: bool);
    /// Whether one is.
    fn is_at_hand(&self) -> bool;
    /// Takes it, if it still is. May wait for ever.
    fn take(&self);
}

impl Turns for Store {
    fn offer(&self, offer: bool) {
        self.offer_turns_to_writer(offer);
    }

    fn is_at_hand(&self) -> bool {
        self.has_turn_at_hand()
    }

    fn take(&self) {
        self.take_turn();
    }
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The seat of whoever drives the work.
pub struct Driver<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// The work is wanted back from the deputy.
    wanted: Notify,
    turns: Arc<dyn Turns>,
    long: Duration,
}

struct State<T> {
    seat: Seat<T>,
    /// Syncs that were begun.
    syncs: u64,
    /// The deputy looks again and again, and need not be woken.
    deputy_looks: bool,
}

enum Seat<T> {
    /// The thread has the work.
    Driven,
    /// The thread syncs, and anybody may take the work.
    Syncing { work: Work<T>, since: Instant },
    /// The deputy has the work.
    TakenOver,
    /// The thread may have it back.
    Returned(Work<T>),
    /// It has ended in the deputy's hands.
    Finished(T),
    /// It is over, or the deputy is lost.
    Over,
}

impl<T: Send + 'static> Driver<T> {
    /// One that offers these turns to the thread that [runs](Self::run) the work.
    pub fn new(turns: Arc<dyn Turns>) -> Driver<T> {
        let state = State { seat: Seat::Driven, syncs: 0, deputy_looks: false };
        let (changed, wanted) = (Condvar::new(), Notify::new());
        Driver { state: Mutex::new(state), changed, wanted, turns, long: LONG }
    }

    /// Runs the work to its end; for the thread whose work it is.
    pub fn run(&self, runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
        let _end = End(self);
        let mut work: Work<T> = Box::pin(work);
        self.turns.offer(true);
        loop {
            if let Some(result) = runtime.block_on(self.until_turn(&mut work)) {
                return result;
            }
            match self.sync_beside(work) {
                Ok(back) => work = back,
                Err(result) => return result,
            }
        }
    }

    /// Drives the work until it has ended, or waits and a turn is offered.
    async fn until_turn(&self, work: &mut Work<T>) -> Option<T> {
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending if self.turns.is_at_hand() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Takes a turn; the work, or its end if it has come meanwhile.
    fn sync_beside(&self, work: Work<T>) -> Result<Work<T>, T> {
        let mut state = self.lock();
        state.seat = Seat::Syncing { work, since: Instant::now() };
        state.syncs += 1;
        if !state.deputy_looks {
            self.changed.notify_all();
        }
        drop(state);
        self.turns.take();
        beat();
        let mut state = self.lock();
        if matches!(state.seat, Seat::TakenOver) {
            self.wanted.notify_one();
        }
        loop {
            match std::mem::replace(&mut state.seat, Seat::Driven) {
                Seat::Syncing { work, .. } => return Ok(work),
                Seat::Returned(work) => {
                    self.turns.offer(true);
                    return Ok(work);
                }
                Seat::Finished(result) => return Err(result),
                Seat::TakenOver => state.seat = Seat::TakenOver,
                Seat::Driven | Seat::Over => panic!("the walreceiver's deputy is lost"),
            }
            beat();
            state = self.changed.wait_timeout(state, BEAT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the work over whenever a sync takes long, until all is over; for the deputy's thread.
    pub fn stand_by(&self, runtime: &Runtime) {
        let _end = Lost(self);
        let mut state = self.lock();
        let (mut seen, mut quiet) = (state.syncs, 0);
        loop {
            match std::mem::replace(&mut state.seat, Seat::TakenOver) {
                Seat::Over => {
                    state.seat = Seat::Over;
                    return;
                }
                Seat::Syncing { work, since } if since.elapsed() >= self.long => {
                    drop(state);
                    let seat = self.drive(runtime, work);
                    state = self.lock();
                    // The thread may have panicked meanwhile.
                    if !matches!(state.seat, Seat::Over) {
                        state.seat = seat;
                    }
                    self.changed.notify_all();
                }
                other => state.seat = other,
            }
            quiet = if state.syncs == seen { quiet + 1 } else { 0 };
            seen = state.syncs;
            let is_awake = quiet < QUIET_LOOKS || matches!(state.seat, Seat::Syncing { .. });
            state.deputy_looks = is_awake;
            state = match is_awake {
                true => self.changed.wait_timeout(state, self.long).unwrap_or_else(PoisonError::into_inner).0,
                false => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Until the work has ended or is wanted back.
    fn drive(&self, runtime: &Runtime, mut work: Work<T>) -> Seat<T> {
        self.turns.offer(false);
        let result = runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.wanted.notified() => None,
                result = &mut work => Some(result),
            }
        });
        result.map_or(Seat::Returned(work), Seat::Finished)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> std::fmt::Debug for Driver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

/// The end of the work, however it comes: the deputy has nothing to wait for.
struct End<'a, T: Send + 'static>(&'a Driver<T>);

impl<T: Send + 'static> Drop for End<'_, T> {
    fn drop(&mut self) {
        let seat = std::mem::replace(&mut self.0.lock().seat, Seat::Over);
        if matches!(seat, Seat::TakenOver) {
            self.0.wanted.notify_one();
        }
        self.0.changed.notify_all();
        self.0.turns.offer(false);
    }
}

/// Lets the thread not wait for a deputy that has panicked.
struct Lost<'a, T: Send + 'static>(&'a Driver<T>);

impl<T: Send + 'static> Drop for Lost<'_, T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if matches!(state.seat, Seat::TakenOver) {
            state.seat = Seat::Over;
        }
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::{self, ThreadId};

    use super::*;

    /// One turn at a time; each takes until it is let go.
    struct Scripted {
        offers: AtomicBool,
        at_hand: AtomicBool,
        taken: AtomicUsize,
        begun: Mutex<Sender<ThreadId>>,
        let_go: Mutex<Receiver<()>>,
    }

    struct Script {
        turns: Arc<Scripted>,
        begun: Receiver<ThreadId>,
        let_go: Sender<()>,
    }

    fn script() -> Script {
        let ((begin, begun), (let_go, go)) = (channel(), channel());
        let turns = Scripted {
            offers: AtomicBool::new(false),
            at_hand: AtomicBool::new(false),
            taken: AtomicUsize::new(0),
            begun: Mutex::new(begin),
            let_go: Mutex::new(go),
        };
        Script { turns: Arc::new(turns), begun, let_go }
    }

    impl Turns for Scripted {
        fn offer(&self, offer: bool) {
            self.offers.store(offer, Ordering::SeqCst);
        }

        fn is_at_hand(&self) -> bool {
            self.at_hand.load(Ordering::SeqCst)
        }

        fn take(&self) {
            self.at_hand.store(false, Ordering::SeqCst);
            let _ = self.begun.lock().unwrap().send(thread::current().id());
            let _ = self.let_go.lock().unwrap().recv();
            self.taken.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Runs the work with a deputy; the result, the thread that ran it and the deputy's end.
    fn start<T: Send + 'static>(
        turns: &Arc<Scripted>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> (thread::JoinHandle<T>, thread::JoinHandle<()>) {
        let driver = Driver { long: Duration::from_millis(1), ..Driver::new(turns.clone()) };
        let driver = Arc::new(driver);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let runtime = Arc::new(runtime);
        let deputy = {
            let (driver, runtime) = (driver.clone(), runtime.clone());
            thread::spawn(move || driver.stand_by(&runtime))
        };
        (thread::spawn(move || driver.run(&runtime, work)), deputy)
    }

    #[test]
    fn a_turn_is_taken_by_the_works_own_thread_when_the_work_waits() {
        let Script { turns, begun, let_go } = script();
        let offered = turns.clone();
        for _ in 0..3 {
            let_go.send(()).unwrap();
        }
        let work = async move {
            for _ in 0..3 {
                assert!(offered.offers.load(Ordering::SeqCst));
                offered.at_hand.store(true, Ordering::SeqCst);
                assert!(offered.is_at_hand(), "nobody takes it while there is something to do");
                tokio::task::yield_now().await;
            }
            thread::current().id()
        };
        let (run, deputy) = start(&turns, work);
        run.join().unwrap();
        deputy.join().unwrap();
        assert_eq!(turns.taken.load(Ordering::SeqCst), 3);
        let threads: Vec<_> = begun.try_iter().collect();
        assert!(threads.iter().all(|it| *it == threads[0]));
        assert!(!turns.offers.load(Ordering::SeqCst), "nobody is there to take one");
    }

    #[test]
    fn while_a_turn_hangs_the_work_goes_on_and_comes_back_then() {
        let Script { turns, begun, let_go } = script();
        let (tell, told) = channel();
        let (go, mut may_go) = tokio::sync::mpsc::channel(1);
        let offered = turns.clone();
        let work = async move {
            offered.at_hand.store(true, Ordering::SeqCst);
            loop {
                let word: Option<&str> = may_go.recv().await;
                tell.send((thread::current().id(), offered.offers.load(Ordering::SeqCst))).unwrap();
                if word != Some("more") {
                    return;
                }
            }
        };
        let (run, deputy) = start(&turns, work);
        let own = begun.recv().unwrap();
        go.blocking_send("more").unwrap();
        let (thread, offers) = told.recv().unwrap();
        assert!(thread != own && !offers, "the deputy runs it, and the flusher syncs");
        let_go.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !turns.offers.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "the thread has its work back");
            thread::yield_now();
        }
        go.blocking_send("end").unwrap();
        assert_eq!(told.recv().unwrap(), (own, true));
        run.join().unwrap();
        deputy.join().unwrap();
    }

    #[test]
    fn work_that_ends_while_a_turn_hangs_has_ended_when_it_does_not_any_more() {
        let Script { turns, begun, let_go } = script();
        let (end, ended) = tokio::sync::oneshot::channel();
        let offered = turns.clone();
        let work = async move {
            offered.at_hand.store(true, Ordering::SeqCst);
            ended.await.unwrap()
        };
        let (run, deputy) = start(&turns, work);
        begun.recv().unwrap();
        end.send(7).unwrap();
        let_go.send(()).unwrap();
        assert_eq!(run.join().unwrap(), 7);
        deputy.join().unwrap();
    }

    #[test]
    fn a_deputy_that_panics_is_not_waited_for() {
        let Script { turns, begun, let_go } = script();
        let (go, may_go) = tokio::sync::oneshot::channel::<()>();
        let offered = turns.clone();
        let work = async move {
            offered.at_hand.store(true, Ordering::SeqCst);
            may_go.await.unwrap();
            panic!("out of luck");
        };
        let (run, deputy) = start::<()>(&turns, work);
        begun.recv().unwrap();
        go.send(()).unwrap();
        // Whether the thread has its work back by then, or the deputy still has it.
        let_go.send(()).unwrap();
        assert!(run.join().is_err());
        drop(deputy.join());
    }
}
