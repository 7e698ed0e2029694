//! Work that may never come back: on a file system that hangs, with a name service that does not answer.
//!
//! A call into a hung network file system cannot be taken back: its thread is lost until the file system answers. So
//! such calls have threads of their own, a bounded number for each place, and whoever waits for one waits for a limited
//! time. Neither the runtime's workers nor its blocking threads, which everything else shares, can run out for it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::pulse::Pulse;

/// Least bytes per second that a healthy place takes or gives; slower is as good as gone.
pub(crate) const SLOWEST: u64 = 64 << 10;
/// What a call may take besides its bytes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Most calls into one place at a time, those that hang included.
const THREADS: usize = 16;

/// The threads of one place.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    name: &'static str,
    free: Arc<Semaphore>,
    patience: Duration,
    /// Bytes per second.
    slowest: u64,
    /// Calls that end, and whatever comes of those under way: for whoever waits for a thread.
    life: Pulse,
}

impl Default for Lane {
    fn default() -> Lane {
        Lane::new("archive-io", PATIENCE)
    }
}

/// Whether a call is given up: it runs on then, and must not undo what others do meanwhile.
#[derive(Clone, Debug, Default)]
pub(crate) struct GivenUp(Arc<AtomicBool>);

impl GivenUp {
    /// Whether nobody waits for it any more.
    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Who waits for a call, or drops the wait.
struct Waiter(GivenUp);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::SeqCst);
    }
}

/// A call did not end in time, or not in order.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// Why, for people.
    pub(crate) reason: String,
    /// It has begun, and may go on.
    pub(crate) is_begun: bool,
}

impl Unanswered {
    fn before(reason: String) -> Unanswered {
        Unanswered { reason, is_begun: false }
    }
}

impl Lane {
    /// Threads with this name. A call is given up after `patience`, and the time its bytes take.
    pub(crate) fn new(name: &'static str, patience: Duration) -> Lane {
        let (free, life) = (Arc::new(Semaphore::new(THREADS)), Pulse::default());
        Lane { name, free, patience, slowest: SLOWEST, life }
    }

    /// A call is given up after `patience`, whatever it moves.
    #[cfg(test)]
    pub(crate) fn hasty(patience: Duration) -> Lane {
        Lane { slowest: u64::MAX, ..Lane::new("hasty-io", patience) }
    }

    /// A pulse for calls of one kind: their signs of life are some of the lane's.
    pub(crate) fn pulse(&self) -> Pulse {
        self.life.part()
    }

    /// How long a call that moves `size` bytes may take.
    pub(crate) fn limit(&self, size: u64) -> Duration {
        self.patience + Duration::from_secs(size / self.slowest)
    }

    /// Runs `work`, which moves about `size` bytes. When its time is over it goes on without anybody waiting.
    ///
    /// # Errors
    /// It did not end in time, or not in order.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        size: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        self.run_told(size, move |_| work()).await.map_err(|error| error.reason)
    }

    /// Like [`run`](Self::run); `work` can tell whether it was given up. Its time begins when a thread is free, which is
    /// waited for as long as those who have one show signs of life.
    ///
    /// # Errors
    /// It did not begin, or not end, in time, or not end in order.
    pub(crate) async fn run_told<T: Send + 'static>(
        &self,
        size: u64,
        work: impl FnOnce(&GivenUp) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        let limit = self.limit(size);
        let place = self.place(limit, &self.life).await.map_err(Unanswered::before)?;
        let waiter = Waiter(GivenUp::default());
        let given_up = waiter.0.clone();
        let done = self.start(place, move || work(&given_up)).map_err(Unanswered::before)?;
        let done = tokio::time::timeout(limit, end(done)).await;
        done.unwrap_or_else(|_| Err(silent(limit))).map_err(|reason| Unanswered { reason, is_begun: true })
    }

    /// Runs `work` as long as it shows signs of life, whatever it moves. When it has been silent for too long it goes on
    /// without anybody waiting. A free thread is waited for as long as there are signs of life of `whole`, the place.
    ///
    /// # Errors
    /// The place or the work was silent, or it did not end in order.
    pub(crate) async fn run_alive<T: Send + 'static>(
        &self,
        whole: &Pulse,
        work: impl FnOnce(&Pulse) -> T + Send + 'static,
    ) -> Result<T, String> {
        let pulse = whole.part();
        let alive = pulse.clone();
        let work = move || {
            let done = work(&alive);
            alive.beat();
            done
        };
        let place = self.place(self.patience, whole).await?;
        let done = self.start(place, work)?;
        let done = pulse.heed(self.patience, end(done)).await;
        done.unwrap_or_else(|| Err(silent(self.patience)))
    }

    /// Waits for a free thread as long as something comes of those that have the threads, or of the whole place: so they
    /// end.
    async fn place(&self, limit: Duration, whole: &Pulse) -> Result<OwnedSemaphorePermit, String> {
        let mut free = std::pin::pin!(self.free.clone().acquire_owned());
        loop {
            tokio::select! {
                biased;
                free = &mut free => return free.map_err(|error| error.to_string()),
                () = self.life.silence(limit) => {
                    if whole.last().elapsed() >= limit {
                        return Err(not_begun(limit));
                    }
                }
            }
        }
    }

    /// Starts `work` on a thread; what it ends with is for [`end`].
    fn start<T: Send + 'static>(
        &self,
        place: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<std::thread::Result<T>>, String> {
        let (report, done) = oneshot::channel();
        let life = self.life.clone();
        let run = move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(work));
            life.beat();
            // Free again only now: a thread that hangs keeps its place.
            drop(place);
            let _ = report.send(result);
        };
        let thread = std::thread::Builder::new().name(self.name.to_owned()).spawn(run);
        thread.map_err(|error| format!("could not start a thread: {error}"))?;
        Ok(done)
    }

    /// Whether all threads are at work, or hang.
    #[cfg(test)]
    pub(crate) fn is_full(&self) -> bool {
        self.free.available_permits() == 0
    }

    /// Whether no call is under way, those that were given up included.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.free.available_permits() == THREADS
    }
}

/// The end of a call.
async fn end<T>(done: oneshot::Receiver<std::thread::Result<T>>) -> Result<T, String> {
    match done.await {
        Ok(Ok(result)) => Ok(result),
        _ => Err("a fault of walrelay, see standard error".to_owned()),
    }
}

fn not_begun(limit: Duration) -> String {
    let limit = limit.as_secs_f32().round();
    format!("not begun in {limit} s: {THREADS} calls before it have not been answered")
}

fn silent(limit: Duration) -> String {
    format!("no answer in {} s", limit.as_secs_f32().round())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn calls_that_hang_cost_a_bounded_number_of_threads_and_nobodys_time() {
        let lane = Lane::new("test", Duration::from_millis(20));
        let mut hung = Vec::new();
        for _ in 0..THREADS {
            let (go_on, wait) = mpsc::channel::<()>();
            hung.push(go_on);
            let error = lane.run(0, move || wait.recv()).await.unwrap_err();
            assert!(error.contains("no answer"), "{error}");
        }
        // Nobody is left to do it.
        let error = lane.run_told(0, |_| 1).await.unwrap_err();
        assert!(!error.is_begun && error.reason.contains("not begun in"), "{error:?}");
        hung.clear();
        while lane.run(0, || 1).await.is_err() {}
        assert_eq!(lane.run(0, || 2).await, Ok(2));
    }

    #[tokio::test]
    async fn slow_work_is_waited_for_and_silent_work_is_not() {
        let (lane, pulse) = (Lane::new("test", Duration::from_millis(300)), Pulse::default());
        let slow = |alive: &Pulse| {
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(700) {
                alive.beat();
                std::thread::yield_now();
            }
            1
        };
        assert_eq!(lane.run_alive(&pulse, slow).await, Ok(1));
        let (_go_on, wait) = mpsc::channel::<()>();
        let error = lane.run_alive(&pulse, move |_| wait.recv().is_ok()).await.unwrap_err();
        assert!(error.contains("no answer"), "{error}");
    }

    #[tokio::test]
    async fn work_waits_for_a_thread_as_long_as_something_comes_of_those_before_it() {
        let lane = Lane::new("test", Duration::from_millis(100));
        let (pulse, begun) = (Pulse::default(), std::time::Instant::now());
        let busy = lane.free.clone().acquire_many_owned(THREADS as u32).await.unwrap();
        let coming = async {
            while begun.elapsed() < Duration::from_millis(500) {
                pulse.beat();
                tokio::task::yield_now().await;
            }
            drop(busy);
        };
        let (done, ()) = tokio::join!(lane.run_alive(&pulse, |_| 1), coming);
        assert_eq!(done, Ok(1));
        // Also for work that is not heard of itself.
        let (life, begun) = (lane.pulse(), std::time::Instant::now());
        let busy = lane.free.clone().acquire_many_owned(THREADS as u32).await.unwrap();
        let coming = async {
            while begun.elapsed() < Duration::from_millis(500) {
                life.beat();
                tokio::task::yield_now().await;
            }
            drop(busy);
        };
        let (done, ()) = tokio::join!(lane.run(0, || 1), coming);
        assert_eq!(done, Ok(1));
        // Of those nothing comes.
        let _hung = lane.free.clone().acquire_many_owned(THREADS as u32).await.unwrap();
        let error = lane.run_alive(&pulse, |_| 1).await.unwrap_err();
        assert!(error.contains("not begun in"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_thread_costs_a_call_none_of_its_time() {
        let lane = Lane::new("test", Duration::from_secs(10));
        // As long as a blocking thread is at work the clock stands.
        let (end, ended) = mpsc::channel::<()>();
        let clock = tokio::task::spawn_blocking(move || ended.recv());
        let busy = lane.free.clone().acquire_many_owned(THREADS as u32).await.unwrap();
        let (go_on, wait) = mpsc::channel::<()>();
        let other = lane.clone();
        let call = tokio::spawn(async move { other.run_told(0, move |_| wait.recv().is_ok()).await });
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(9)).await;
        drop(busy);
        while lane.is_idle() {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(Duration::from_secs(9)).await;
        go_on.send(()).unwrap();
        assert!(call.await.unwrap().unwrap());
        drop(end);
        assert!(clock.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn who_is_waited_for_no_longer_knows() {
        let lane = Lane::new("test", Duration::from_millis(20));
        let ((go_on, wait), (say, told)) = (mpsc::channel::<()>(), mpsc::channel());
        let work = move |given_up: &GivenUp| {
            let before = given_up.is_so();
            let _ = wait.recv();
            say.send((before, given_up.is_so())).unwrap();
        };
        assert!(lane.run_told(0, work).await.unwrap_err().is_begun);
        drop(go_on);
        assert_eq!(told.recv().unwrap(), (false, true));
    }

    #[tokio::test]
    async fn a_fault_is_an_error() {
        let lane = Lane::default();
        let error = lane.run(0, || -> u8 { panic!("on purpose") }).await.unwrap_err();
        assert!(error.contains("fault of walrelay"), "{error}");
        assert_eq!(lane.run(0, || 1).await, Ok(1));
    }
}
