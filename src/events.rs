//! The newest lines of the log that somebody should read: warnings and errors, kept for whoever looks at the relay.
//!
//! They are kept and counted whatever `--log-level` shows: who turns the log off is to be alerted all the same.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::log::one_line;
use crate::moment::Moment;
use crate::redact::redact;

/// So many are kept.
const MOST: usize = 256;
/// The longest text that is kept, bytes.
const LONGEST: usize = 2000;

/// A line of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoggedEvent {
    /// When it was said.
    pub at: Moment,
    /// `WARN` or `ERROR`.
    pub level: &'static str,
    /// What was said, on one line.
    pub message: String,
}

/// The newest events. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Events {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    newest: VecDeque<LoggedEvent>,
    warnings: u64,
    errors: u64,
}

impl Events {
    /// Those that are kept, oldest first.
    pub fn list(&self) -> Vec<LoggedEvent> {
        self.lock().newest.iter().cloned().collect()
    }

    /// How many warnings and errors there were in all.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.warnings, state.errors)
    }

    fn note(&self, level: Level, message: String) {
        let event = LoggedEvent { at: Moment::now(), level: level.as_str(), message };
        let mut state = self.lock();
        match level {
            Level::ERROR => state.errors += 1,
            _ => state.warnings += 1,
        }
        if state.newest.len() == MOST {
            state.newest.pop_front();
        }
        state.newest.push_back(event);
    }

    /// For a moment: nothing is waited for under it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::WARN {
            return;
        }
        let mut words = Words::default();
        event.record(&mut words);
        self.note(level, cut(&one_line(&(words.message + &words.fields))));
    }
}

/// An event's message, and its fields as the log shows them.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // A String takes everything.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// What is cut first may not be known for a secret any more.
fn cut(text: &str) -> String {
    let mut text = redact(text);
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn the_newest_warnings_and_errors_are_kept() {
        let events = Events::default();
        let subscriber = tracing_subscriber::registry().with(events.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("no event");
            for number in 0..MOST {
                tracing::warn!(number, "late\nagain");
            }
            tracing::error!("{}", "é".repeat(LONGEST));
        });
        let list = events.list();
        assert_eq!((list.len(), events.counts()), (MOST, (MOST as u64, 1)));
        assert_eq!((list[0].level, list[0].message.as_str()), ("WARN", r"late\nagain number=1"));
        let last = list.last().unwrap();
        assert_eq!(last.level, "ERROR");
        assert!(last.message.len() <= LONGEST + '…'.len_utf8(), "{}", last.message.len());
    }
}
