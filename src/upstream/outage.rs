//! What is said of an upstream that cannot be followed: at once, when the reason changes, and every half minute how
//! long it has lasted. Attempts come more than once a second, and a log with a line for each tells nobody anything.
//!
//! That the histories of two have diverged is said when the same difference was seen twice: a bit that was flipped on the
//! way looks like that, too, and is right the next time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::Level;
use walrelay_proto::Lsn;

use super::failure::UpstreamError;
use crate::conninfo::HostSpec;

/// How often what stays the same is said again.
const REPEAT: Duration = Duration::from_secs(30);

/// What was said of each host since one was streamed from.
#[derive(Default)]
pub(super) struct Outages {
    of: HashMap<String, Outage>,
    /// Differences to a host's WAL that were seen once.
    doubts: HashMap<String, String>,
}

struct Outage {
    since: Instant,
    /// What was said last, and when.
    reason: String,
    told: Instant,
}

/// Whom a line is about that is about all.
const ALL: &str = "";

impl Outages {
    /// The upstream works.
    pub(super) fn end(&mut self) {
        self.of.clear();
        self.doubts.clear();
    }

    /// Why the only host is not followed.
    pub(super) fn tell(&mut self, error: &UpstreamError, pause: Duration) {
        let (text, is_certain) = self.said_of(ALL, error);
        let news = self.news(ALL, &text, Instant::now());
        let again = again(news, pause);
        match level(error, is_certain, news) {
            Level::ERROR => tracing::error!("{text}; {again}"),
            Level::WARN => tracing::warn!("{text}; {again}"),
            _ => tracing::debug!("{text}; {again}"),
        }
    }

    /// Why one of several hosts is not followed.
    pub(super) fn tell_host(&mut self, host: &HostSpec, error: &UpstreamError) {
        let host = host.to_string();
        let (text, is_certain) = self.said_of(&host, error);
        let news = self.news(&host, &text, Instant::now());
        let lasting = lasting(news);
        match level(error, is_certain, news) {
            Level::ERROR => tracing::error!("{host}: {text}{lasting}"),
            Level::WARN => tracing::warn!("{host}: {text}{lasting}"),
            _ => tracing::debug!("{host}: {text}"),
        }
    }

    /// None of several hosts is followed; each one's reason was told.
    pub(super) fn tell_all(&mut self, pause: Duration) {
        let text = "no upstream to follow";
        let news = self.news(ALL, text, Instant::now());
        let again = again(news, pause);
        match news {
            Some(_) => tracing::warn!("{text}; {again}"),
            None => tracing::debug!("{text}; {again}"),
        }
    }

    /// The text, and whether it is certain: a difference that was seen before, or anything else.
    fn said_of(&mut self, whom: &str, error: &UpstreamError) -> (String, bool) {
        let text = error.to_string();
        match error.doubt() {
            Some(doubt) if self.doubts.insert(whom.to_owned(), text.clone()).as_ref() != Some(&text) => {
                (doubt, false)
            }
            _ => (text, true),
        }
    }

    /// How long it has lasted, if it is to be said now.
    fn news(&mut self, whom: &str, text: &str, now: Instant) -> Option<Duration> {
        let reason = without_positions(text);
        let Some(known) = self.of.get_mut(whom) else {
            self.of.insert(whom.to_owned(), Outage { since: now, reason, told: now });
            return Some(Duration::ZERO);
        };
        if known.reason == reason && now.duration_since(known.told) < REPEAT {
            return None;
        }
        (known.reason, known.told) = (reason, now);
        Some(now.duration_since(known.since))
    }
}

fn level(error: &UpstreamError, is_certain: bool, news: Option<Duration>) -> Level {
    match news {
        None => Level::DEBUG,
        Some(_) if error.is_told() => Level::DEBUG,
        Some(_) if is_certain && error.needs_action() => Level::ERROR,
        Some(_) => Level::WARN,
    }
}

fn again(news: Option<Duration>, pause: Duration) -> String {
    let seconds = pause.as_secs_f32();
    match lasting(news) {
        now if now.is_empty() => format!("trying again in {seconds:.1} s"),
        lasting => format!("trying again in {seconds:.1} s{lasting}"),
    }
}

/// `, for 60 s now`
fn lasting(news: Option<Duration>) -> String {
    match news.map(|lasted| lasted.as_secs()) {
        None | Some(0..10) => String::new(),
        Some(seconds) => format!(", for {seconds} s now"),
    }
}

/// A server that moves on while it is not followed gives no new reason with each of its positions.
fn without_positions(text: &str) -> String {
    let is_position = |word: &&str| {
        word.contains('/') && word.trim_end_matches([',', ';', ':', ')']).parse::<Lsn>().is_ok()
    };
    let words: Vec<&str> = text.split(' ').filter(|word| !is_position(word)).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::AppendError;
    use walrelay_proto::TimelineId;

    #[test]
    fn that_histories_have_diverged_is_said_when_it_was_seen_twice() {
        let mut outages = Outages::default();
        let differs = |lsn| {
            let (tli, lsn) = (TimelineId::FIRST, Lsn::new(lsn));
            UpstreamError::Append(AppendError::Diverged { tli, lsn })
        };
        let level_of = |outages: &mut Outages, error: &UpstreamError| {
            let (text, is_certain) = outages.said_of("a", error);
            assert_eq!(text.contains("diverged"), is_certain && error.doubt().is_some(), "{text}");
            level(error, is_certain, Some(Duration::ZERO))
        };
        // Two bits flipped on the way are no divergence either.
        assert_eq!(level_of(&mut outages, &differs(100)), Level::WARN);
        assert_eq!(level_of(&mut outages, &differs(200)), Level::WARN);
        // What comes between changes nothing.
        assert_eq!(level_of(&mut outages, &UpstreamError::Stream("closed".into())), Level::WARN);
        assert_eq!(level_of(&mut outages, &differs(200)), Level::ERROR);
        assert_eq!(level_of(&mut outages, &differs(200)), Level::ERROR);
        outages.end();
        assert_eq!(level_of(&mut outages, &differs(200)), Level::WARN);
    }

    #[test]
    fn what_stays_the_same_is_said_every_half_minute() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        let mut at = |seconds, text| {
            outages.news("a", text, start + Duration::from_secs(seconds)).map(|d| d.as_secs())
        };
        assert_eq!(at(0, "refused"), Some(0));
        assert_eq!(at(2, "refused"), None);
        assert_eq!(at(3, "behind at 0/1F0000, sorry"), Some(3));
        assert_eq!(at(4, "behind at 0/200000, sorry"), None);
        assert_eq!(at(32, "behind at 0/200000, sorry"), None);
        assert_eq!(at(33, "behind at 0/200000, sorry"), Some(33));
        assert_eq!(at(35, "behind at 0/200000, sorry"), None);
    }

    #[test]
    fn how_long_it_lasts_is_said() {
        let (short, long) = (Some(Duration::from_secs(1)), Some(Duration::from_secs(61)));
        assert_eq!(again(short, Duration::from_millis(100)), "trying again in 0.1 s");
        assert_eq!(again(long, Duration::from_secs(2)), "trying again in 2.0 s, for 61 s now");
    }
}
