//! Which task each thread of a runtime is polling, by name: who keeps a worker from the others.
//!
//! A task gives way at each await. One that does not (it computes, it waits at a lock) shows here, with the time since it
//! began. Reading is for whoever has reason to ask; a poll costs two uncontended locks.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What a thread is polling.
type Slot = Mutex<Option<Poll>>;

#[derive(Clone, Debug)]
struct Poll {
    task: Arc<str>,
    since: Instant,
}

/// Of every thread that has ever polled a task with a name.
static SLOTS: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

/// The same task, known by a name while it is polled. Cancel-safe if the task is.
pub(crate) fn named<F: Future + Send + 'static>(
    name: Arc<str>,
    task: F,
) -> impl Future<Output = F::Output> + Send + 'static {
    // On the heap: a future inside of another would take its room twice.
    let mut task = Box::pin(task);
    poll_fn(move |cx| {
        let _polled = Polled::begin(&name);
        task.as_mut().poll(cx)
    })
}

/// The tasks that have been polled for so long without giving way.
pub(crate) fn polled_for(limit: Duration) -> Vec<Arc<str>> {
    let now = Instant::now();
    let slots = lock(&SLOTS).iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
    let polls = slots.iter().filter_map(|slot| lock(slot).clone());
    polls.filter(|poll| now.saturating_duration_since(poll.since) >= limit).map(|poll| poll.task).collect()
}

/// As long as a task is polled.
struct Polled {
    slot: Arc<Slot>,
    /// One may poll another.
    outer: Option<Poll>,
}

impl Polled {
    fn begin(task: &Arc<str>) -> Polled {
        let slot = OWN.with_borrow_mut(|own| own.get_or_insert_with(enter).clone());
        let poll = Poll { task: task.clone(), since: Instant::now() };
        let outer = lock(&slot).replace(poll);
        Polled { slot, outer }
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        *lock(&self.slot) = self.outer.take();
    }
}

/// Enters the calling thread.
fn enter() -> Arc<Slot> {
    let (slot, mut slots) = (Arc::new(Slot::default()), lock(&SLOTS));
    slots.retain(|slot| slot.strong_count() > 0);
    slots.push(Arc::downgrade(&slot));
    slot
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_polled(name: &str) -> bool {
        polled_for(Duration::ZERO).iter().any(|task| **task == *name)
    }

    #[tokio::test]
    async fn a_task_has_its_name_while_it_is_polled_and_no_longer() {
        let inner = async {
            tokio::task::yield_now().await;
            is_polled("outer task") || !is_polled("inner task")
        };
        let outer = async {
            let wrong = named("inner task".into(), inner).await;
            (wrong, is_polled("outer task"), is_polled("inner task"))
        };
        assert_eq!(named("outer task".into(), outer).await, (false, true, false));
        assert!(!is_polled("outer task"));
        assert!(!polled_for(Duration::from_secs(1000)).iter().any(|task| **task == *"outer task"));
    }
}
