//! The parts of the relay that run by themselves, threads and tasks: each has a name, and none ends unnoticed.

mod heart;
mod polled;
mod tasks;
mod thread;
mod workers;

use std::any::Any;
use std::fmt;

pub(crate) use heart::{BEAT, Heart, beat, beat_for_ever, stuck, waits_for_disk};
pub(crate) use polled::{named, polled_for};
pub(crate) use tasks::{Tasks, how_ended};
pub(crate) use thread::Thread;
pub(crate) use workers::Workers;

/// A part of the relay has ended although nobody told it to: a fault of walrelay.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the {part} has ended unexpectedly ({how}), and the relay cannot go on without it")]
pub struct PartEnded {
    /// Which one.
    pub part: String,
    /// In which way.
    pub how: HowEnded,
}

/// How a part came to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HowEnded {
    /// It panicked, with these words.
    Panicked(String),
    /// Its work was over too early.
    Returned,
}

impl fmt::Display for HowEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // One line, whatever an assertion printed.
            HowEnded::Panicked(words) => write!(f, "panic: {}", words.replace('\n', " ")),
            HowEnded::Returned => f.write_str("nothing told it to"),
        }
    }
}

impl HowEnded {
    /// From what a panic carries.
    pub fn panicked(payload: &(dyn Any + Send)) -> HowEnded {
        HowEnded::Panicked(words(payload).to_owned())
    }
}

/// What was said in a panic.
pub(crate) fn words(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
