//! A relay as those see it who watch it from outside: from before it recovers its WAL to the end of its stop.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Serialize;

use super::history::History;
use super::now::Sources;
use crate::events::Events;
use crate::moment::{Clock, Moment, Past};
use crate::store::Opening;

/// What there is to see, whatever the relay is at. Waits for nothing.
#[derive(Debug)]
pub struct Watched {
    started: Past,
    /// What is done before there is a store, and after that; while a store is opened it tells more.
    step: Mutex<String>,
    opening: Arc<Opening>,
    events: Events,
    running: OnceLock<Running>,
}

/// All there is to see once the start is over.
#[derive(Debug)]
pub struct Running {
    /// What a [`Status`](super::Status) is made of.
    pub sources: Arc<Sources>,
    /// What it was in the last hours.
    pub history: Arc<History>,
}

/// A relay whose start is not over.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Starting {
    /// When that was seen.
    pub at: Moment,
    /// Version of walrelay.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it was started.
    pub started_at: Moment,
    /// What it is doing, and how far that is as far as is known.
    pub starting: String,
    /// Warnings in the log.
    pub warnings: u64,
    /// Errors in the log.
    pub errors: u64,
}

impl Watched {
    /// One that starts now.
    pub fn new(events: Events) -> Watched {
        Watched {
            started: Past::now(),
            step: Mutex::new("reading its configuration".to_owned()),
            opening: Arc::default(),
            events,
            running: OnceLock::new(),
        }
    }

    /// When it was started.
    pub fn started(&self) -> Past {
        self.started
    }

    /// What the start does from now on.
    pub fn note_step(&self, step: &str) {
        step.clone_into(&mut self.lock());
    }

    /// Where a store tells how far its opening is.
    pub fn opening(&self) -> &Arc<Opening> {
        &self.opening
    }

    /// The start is over. The first time counts.
    pub fn note_running(&self, sources: Arc<Sources>, history: Arc<History>) {
        let _ = self.running.set(Running { sources, history });
    }

    /// What there is to see once the start is over.
    pub fn running(&self) -> Option<&Running> {
        self.running.get()
    }

    /// What there is to see before that.
    pub fn starting(&self) -> Starting {
        let (clock, (warnings, errors)) = (Clock::now(), self.events.counts());
        let opening = self.opening.to_string();
        let starting = if opening.is_empty() { self.lock().clone() } else { opening };
        Starting {
            at: clock.at(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: clock.moment(self.started),
            starting,
            warnings,
            errors,
        }
    }

    /// For a moment: nothing is waited for under it.
    fn lock(&self) -> MutexGuard<'_, String> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Starting {
    /// A line for who asks whether it serves.
    pub fn line(&self) -> String {
        format!("the relay starts: {}", self.starting)
    }
}
