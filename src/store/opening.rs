//! How far the opening of a store has come, for whoever looks meanwhile: it may take as long as WAL has to be read and synced.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Written by who opens, read by anybody. Each is right by itself; all together are right in the end.
#[derive(Debug, Default)]
pub struct Opening {
    step: AtomicU8,
    /// Which segment of this step it is at, and how many there are for it; 0 where nobody has counted them.
    done: AtomicU64,
    all: AtomicU64,
}

/// What is done at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub(super) enum OpeningStep {
    /// Nothing has begun.
    #[default]
    NotYet,
    /// The directory is locked, and its small files are read.
    Directory,
    /// All of its files are synced.
    Sync,
    /// The end of the WAL is looked for.
    Verify,
    /// What may have been in memory only is written again.
    WriteAgain,
    /// It is open.
    Open,
}

impl OpeningStep {
    const ALL: [OpeningStep; 6] = [
        OpeningStep::NotYet,
        OpeningStep::Directory,
        OpeningStep::Sync,
        OpeningStep::Verify,
        OpeningStep::WriteAgain,
        OpeningStep::Open,
    ];
}

impl Opening {
    /// Another step begins, with so many segments to go through; 0 if it has none, or they are not counted.
    pub(super) fn enter(&self, step: OpeningStep, segments: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.all.store(segments, Ordering::Relaxed);
        self.step.store(step as u8, Ordering::Relaxed);
    }

    /// The next segment of it begins.
    pub(super) fn advance(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    fn step(&self) -> OpeningStep {
        let number = usize::from(self.step.load(Ordering::Relaxed));
        OpeningStep::ALL.get(number).copied().unwrap_or_default()
    }
}

/// What is done at the moment, and how far that is; nothing before it has begun and after it is over.
impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.step() {
            OpeningStep::NotYet | OpeningStep::Open => return Ok(()),
            OpeningStep::Directory => "opening the data directory",
            OpeningStep::Sync => "recovering: syncing the files of the data directory",
            OpeningStep::Verify => "recovering: verifying WAL",
            OpeningStep::WriteAgain => "recovering: writing WAL again, to be sure that it is on the disk",
        })?;
        let (done, all) = (self.done.load(Ordering::Relaxed), self.all.load(Ordering::Relaxed));
        if all == 0 || done == 0 { Ok(()) } else { write!(f, ", segment {} of {all}", done.min(all)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_what_is_done_and_how_far() {
        let opening = Opening::default();
        assert_eq!(opening.to_string(), "");
        opening.enter(OpeningStep::Directory, 0);
        assert_eq!(opening.to_string(), "opening the data directory");
        opening.enter(OpeningStep::Verify, 3);
        opening.advance();
        assert_eq!(opening.to_string(), "recovering: verifying WAL, segment 1 of 3");
        opening.enter(OpeningStep::Open, 0);
        assert_eq!(opening.to_string(), "");
        for step in OpeningStep::ALL {
            opening.enter(step, 0);
            assert_eq!(opening.step(), step);
        }
    }
}
