//! Lines of the log that clients can provoke: told at once, and then with a count, so that nobody fills the log, or hides in it what
//! others do. What is not told stands there at level debug.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::descriptors::Repeated;
use crate::wire::Source;

/// Different lines of one source; all further ones of it are one.
const OF_ONE: usize = 8;
/// Different lines altogether; all further ones are one.
const MOST: usize = 256;

/// What has been told lately, by who provoked it and what it says.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    lines: HashMap<(Option<Source>, Line), Repeated>,
    others: Repeated,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Line {
    /// The hash of its text.
    Of(u64),
    /// Those of a source that says something else each time.
    Other,
}

impl Repeats {
    /// Somebody from there has provoked this line; how often since it was told last, if it is to be told now.
    pub(super) fn note(&self, source: Option<Source>, text: &str, now: Instant) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(source, Line::Of(hasher.finish()), now)
    }
}

impl Seen {
    fn note(&mut self, source: Option<Source>, line: Line, now: Instant) -> Option<u64> {
        if let Some(known) = self.lines.get_mut(&(source, line)) {
            return known.note(now);
        }
        let of_it = self.lines.keys().filter(|(from, _)| *from == source).count();
        if of_it >= OF_ONE || self.lines.len() >= MOST {
            self.lines.retain(|_, known| !known.is_due(now));
        }
        let of_it = self.lines.keys().filter(|(from, _)| *from == source).count();
        match line {
            Line::Of(_) if of_it >= OF_ONE => self.note(source, Line::Other, now),
            _ if self.lines.len() >= MOST => self.others.note(now),
            _ => self.lines.entry((source, line)).or_default().note(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;

    fn source(number: u32) -> Option<Source> {
        Some(IpAddr::from(number.to_be_bytes()).into())
    }

    #[test]
    fn a_line_is_told_at_once_and_then_with_a_count_for_each_source_and_text() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        assert_eq!(repeats.note(source(1), "wrong", start), Some(1));
        assert_eq!(repeats.note(source(1), "wrong", start), None);
        assert_eq!(repeats.note(source(2), "wrong", start), Some(1), "somebody else");
        assert_eq!(repeats.note(source(1), "absent", start), Some(1), "something else");
        assert_eq!(repeats.note(source(1), "wrong", start + Duration::from_secs(30)), Some(2));
    }

    #[test]
    fn who_says_something_else_each_time_fills_no_log_and_hides_nobody() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        let told = (0..1000).filter(|n| repeats.note(source(1), &n.to_string(), start).is_some()).count();
        assert_eq!(told, OF_ONE + 1);
        assert_eq!(repeats.note(source(2), "wrong", start), Some(1));
        // From many addresses.
        let told = (0..100_000).filter(|n| repeats.note(source(*n), "wrong", start).is_some()).count();
        assert!(told <= MOST + 1, "{told}");
        let later = start + Duration::from_secs(30);
        assert_eq!(repeats.note(source(1), "new", later), Some(1), "what was told long ago makes room");
    }
}
