//! Whom to follow, along which timeline, and from where: every decision of the receiving side between two streams,
//! without any I/O.
//!
//! ```text
//! connect ──> introduced ──> histories ──> what is held ──> seam ──> accept ──> slot ──> stream
//!   ^                            ^              │            │         │                   │
//!   │                            │              │ behind us, │         │ switch, take up   │ timeline ended
//!   │                            │              │ only host  │         │                   │
//!   │                            +──────────────+────────────│─────────+───────────────────+
//!   │                                                        │ our slot is there: the comparison and the acceptance are
//!   │                                                        └ the stream's first part
//!   +── next host; after the last one a pause ── any failure, refused: sibling, old timeline, other bytes, ...
//! ```
//!
//! A [`Course`] says a [`Step`] and is told the [`Fact`] that came of it. One step is under way at a time. Nothing is
//! kept here that a crash could lose: what was decided before is in what is held ([`Standing`]), so a course that is
//! thrown away between any two steps and begun anew comes to the same end.
//!
//! docs/TIMELINES.md says which histories are followed.

mod error;
mod link;
mod pause;
mod standing;
mod step;
#[cfg(test)]
mod tests;

pub use error::CourseError;
pub use pause::Pause;
pub use standing::{Heading, Standing};
pub use step::{
    Cause, Compared, Fact, Identified, Introduced, Reserved, Seam, Slot, Step, Stream, StreamEnd, Streamed,
};

use link::{Link, Proof, Turn};
use pause::Backoff;

/// What a course is told at its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CourseSetup {
    /// How many hosts there are, at least one.
    pub hosts: usize,
    /// Whether all of them are tried for a standby first (`target_session_attrs=prefer-standby`).
    pub prefers_standby: bool,
    /// Whether nothing was ever begun in the data directory. Only then does a permanent failure end the relay: an operator
    /// is looking and nobody loses anything. One that holds WAL may hold the only copy.
    pub empty: bool,
}

/// Decides whom to follow. `E` is what the steps fail with.
///
/// ```text
/// idle ──> connecting ──> linked ──> hanging up ──> connecting (the same host once more, the next one)
///   ^                                    │
///   └──────────── pausing <──────────────┘ after the last host
/// ```
#[derive(Debug)]
pub struct Course<E> {
    setup: CourseSetup,
    backoff: Backoff,
    /// Which attempt of the round is under way, over all hosts, twice where standbys are preferred.
    attempt: usize,
    /// Why those before it were of no use.
    failures: Vec<E>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing is under way: before the first round, and in a pause.
    Idle,
    Connecting {
        /// What the last connection found out, before it was given up for the sake of it.
        proof: Option<Proof>,
    },
    Linked(Box<Link>),
    HangingUp {
        /// Why another connection to the same host is made at once.
        proof: Option<Proof>,
    },
    Over,
}

impl<E: Cause> Course<E> {
    /// Begins. The first fact to tell is [`Fact::Done`].
    pub fn new(setup: CourseSetup) -> Course<E> {
        Course { setup, backoff: Backoff::new(), attempt: 0, failures: Vec::new(), state: State::Idle }
    }

    /// Why the last attempt was of no use, while its connection is [hung up](Step::HangUp).
    pub fn failure(&self) -> Option<&E> {
        match self.state {
            State::HangingUp { proof: None } => self.failures.last(),
            _ => None,
        }
    }

    /// What is to be done after this.
    pub fn step(&mut self, fact: Fact<E>) -> Step<E> {
        match (std::mem::replace(&mut self.state, State::Over), fact) {
            (State::Over, _) | (_, Fact::Stopped) => Step::Over,
            (State::Idle, Fact::Done) => self.begin_round(),
            (State::HangingUp { proof }, Fact::Done) => self.hung_up(proof),
            (State::Connecting { proof }, Fact::Introduced(who)) => {
                let (link, turn) = Link::new(self.setup, who, proof);
                self.turn(Box::new(link), turn)
            }
            (State::Connecting { .. } | State::Linked(_), Fact::Failed(error)) => self.fail(error),
            (State::Linked(mut link), fact) => {
                if matches!(&fact, Fact::Streamed(streamed) if streamed.came) {
                    self.backoff = Backoff::new();
                }
                let turn = link.step(fact);
                self.turn(link, turn)
            }
            (_, fact) => self.fail(CourseError::OutOfTurn { fact: fact.name() }.into()),
        }
    }

    fn turn(&mut self, link: Box<Link>, turn: Turn<E>) -> Step<E> {
        self.setup.empty &= !link.has_begun();
        match turn {
            Turn::Do(step) => {
                self.state = State::Linked(link);
                step
            }
            Turn::Again(proof) => {
                self.state = State::HangingUp { proof: Some(proof) };
                Step::HangUp
            }
            Turn::Fail(error) => self.fail(error),
            Turn::Over => Step::Over,
        }
    }

    fn begin_round(&mut self) -> Step<E> {
        (self.attempt, self.failures) = (0, Vec::new());
        self.connect(None)
    }

    fn connect(&mut self, proof: Option<Proof>) -> Step<E> {
        self.state = State::Connecting { proof };
        let CourseSetup { hosts, prefers_standby, .. } = self.setup;
        Step::Connect { host: self.attempt % hosts.max(1), standby: prefers_standby && self.attempt < hosts }
    }

    /// Nothing comes of this host.
    fn fail(&mut self, error: E) -> Step<E> {
        if error.is_fatal() {
            return Step::Give(error);
        }
        self.failures.push(error);
        self.state = State::HangingUp { proof: None };
        Step::HangUp
    }

    fn hung_up(&mut self, proof: Option<Proof>) -> Step<E> {
        if proof.is_some() {
            return self.connect(proof);
        }
        self.attempt += 1;
        let rounds = if self.setup.prefers_standby { 2 } else { 1 };
        match self.worst().filter(|_| self.attempt >= self.setup.hosts * rounds) {
            None => self.connect(None),
            Some(worst) => self.end_round(worst),
        }
    }

    /// As long as one host may come back, the failure is not permanent.
    fn worst(&self) -> Option<usize> {
        let passes = self.failures.iter().position(|error| !error.is_permanent());
        passes.or(self.failures.len().checked_sub(1))
    }

    fn end_round(&mut self, worst: usize) -> Step<E> {
        let error = self.failures.swap_remove(worst);
        self.failures.clear();
        if self.setup.empty && error.is_permanent() {
            return Step::Give(error);
        }
        self.state = State::Idle;
        Step::Pause { error, pause: self.backoff.pause() }
    }
}
