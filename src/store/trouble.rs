//! A trouble that may pass: said once, and again now and then while it lasts, however often it is met.

use std::time::{Duration, Instant};

/// How often it is said again.
const REMINDER: Duration = Duration::from_secs(30);

/// Whether something works at the moment.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    said: Option<Instant>,
}

impl Trouble {
    /// It does not work; whether that is to be said now.
    pub(super) fn is_news(&mut self, now: Instant) -> bool {
        let news = self.said.is_none_or(|said| now.saturating_duration_since(said) >= REMINDER);
        if news {
            self.said = Some(now);
        }
        news
    }

    /// It works; whether it did not before.
    pub(super) fn is_over(&mut self) -> bool {
        self.said.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_once_then_every_half_minute_until_it_is_over() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        let news = |trouble: &mut Trouble, seconds| trouble.is_news(start + Duration::from_secs(seconds));
        assert!(!trouble.is_over());
        assert_eq!(
            [0, 1, 29, 30, 31, 60].map(|at| news(&mut trouble, at)),
            [true, false, false, true, false, true]
        );
        assert!(trouble.is_over() && !trouble.is_over());
        assert!(news(&mut trouble, 61));
    }
}
