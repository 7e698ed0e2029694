//! Waiting for a condition, with a deadline.

use std::fmt::Display;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

/// How long tests wait for what must happen soon. Generous: a loaded machine is slow, a correct wait is short.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Calls `attempt` until it gives a value; panics with `what` when [`PATIENCE`] is over.
#[track_caller]
pub fn wait_for<T>(what: impl Display, attempt: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, attempt).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Calls `condition` until it holds; panics with `what` when [`PATIENCE`] is over.
#[track_caller]
pub fn wait_until(what: impl Display, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Calls `attempt` until it gives a value or the time is over, ever less often.
pub(crate) fn within<T>(time: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        park_timeout(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
