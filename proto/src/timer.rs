//! When to ask a silent peer for a sign of life, and when to give it up.

use std::time::{Duration, Instant};

/// Watches for silence, the same way on both sides of a replication connection: after half the timeout the
/// peer is asked once to answer, after all of it the connection is over (PostgreSQL:
/// `WalSndKeepaliveIfNecessary`, `WalSndCheckTimeOut`, `WalReceiverMain`).
///
/// Only what the peer sends counts. A busy stream to a peer that never answers ends all the same.
#[derive(Clone, Debug)]
pub struct PeerTimer {
    /// `None` for never.
    timeout: Option<Duration>,
    /// The peer is asked after that, however long it may be silent.
    ask_after: Option<Duration>,
    last_heard: Instant,
    asked: bool,
}

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerDue {
    /// Nothing yet.
    Nothing,
    /// Send something that asks for an answer. Said once for each silence.
    Ask,
    /// The peer is gone.
    GiveUp,
}

impl PeerTimer {
    /// Starts counting at `now`.
    pub fn new(timeout: Option<Duration>, now: Instant) -> PeerTimer {
        PeerTimer { timeout, ask_after: None, last_heard: now, asked: false }
    }

    /// The same, and the peer is asked after `ask_after` at the latest, also if it may be silent for ever.
    pub fn asking_after(self, ask_after: Duration) -> PeerTimer {
        PeerTimer { ask_after: Some(ask_after), ..self }
    }

    /// The peer has sent something.
    pub fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.asked = false;
    }

    /// The peer has been asked for another reason; it need not be asked again before it answers.
    pub fn asked(&mut self) {
        self.asked = true;
    }

    /// Whether the peer has been asked and has not answered yet.
    pub fn is_asking(&self) -> bool {
        self.asked
    }

    /// When to call [`due`](Self::due); `None` for never.
    pub fn deadline(&self) -> Option<Instant> {
        let silence = if self.asked { self.timeout } else { self.until_asked() };
        silence.map(|silence| self.last_heard + silence)
    }

    /// How long it may be silent before it is asked.
    fn until_asked(&self) -> Option<Duration> {
        let half = self.timeout.map(|timeout| timeout / 2);
        half.into_iter().chain(self.ask_after).min()
    }

    /// What is due at `now`.
    pub fn due(&mut self, now: Instant) -> PeerDue {
        let silence = now.saturating_duration_since(self.last_heard);
        if self.timeout.is_some_and(|timeout| silence >= timeout) {
            PeerDue::GiveUp
        } else if !self.asked && self.until_asked().is_some_and(|until| silence >= until) {
            self.asked = true;
            PeerDue::Ask
        } else {
            PeerDue::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_asked_at_half_and_given_up_at_the_end() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut timer = PeerTimer::new(Some(Duration::from_secs(2)), start);
        assert_eq!(timer.deadline(), Some(at(1000)));
        assert_eq!(timer.due(at(999)), PeerDue::Nothing);
        assert_eq!(timer.due(at(1000)), PeerDue::Ask);
        assert_eq!(timer.due(at(1500)), PeerDue::Nothing);
        assert_eq!(timer.deadline(), Some(at(2000)));
        assert_eq!(timer.due(at(2000)), PeerDue::GiveUp);
    }

    #[test]
    fn any_answer_starts_the_time_anew() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut timer = PeerTimer::new(Some(Duration::from_secs(2)), start);
        assert_eq!(timer.due(at(1000)), PeerDue::Ask);
        timer.heard(at(1500));
        assert_eq!(timer.due(at(2400)), PeerDue::Nothing);
        assert_eq!(timer.due(at(2500)), PeerDue::Ask);
        assert_eq!(timer.due(at(3500)), PeerDue::GiveUp);
    }

    #[test]
    fn zero_means_never() {
        let start = Instant::now();
        let mut timer = PeerTimer::new(None, start);
        assert_eq!(timer.deadline(), None);
        assert_eq!(timer.due(start + Duration::from_secs(1_000_000)), PeerDue::Nothing);
    }

    #[test]
    fn a_peer_that_may_be_silent_for_long_is_asked_all_the_same() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let ask = Duration::from_secs(30);
        let mut timer = PeerTimer::new(None, start).asking_after(ask);
        assert_eq!((timer.deadline(), timer.due(at(29))), (Some(at(30)), PeerDue::Nothing));
        assert_eq!((timer.due(at(30)), timer.deadline()), (PeerDue::Ask, None));
        assert_eq!(timer.due(at(1_000_000)), PeerDue::Nothing, "it is not given up");
        timer.heard(at(1_000_000));
        assert_eq!(timer.deadline(), Some(at(1_000_030)));
        let mut timer = PeerTimer::new(Some(Duration::from_secs(1200)), start).asking_after(ask);
        assert_eq!((timer.due(at(30)), timer.deadline()), (PeerDue::Ask, Some(at(1200))));
        assert_eq!(timer.due(at(1200)), PeerDue::GiveUp);
        let timer = PeerTimer::new(Some(Duration::from_secs(2)), start).asking_after(ask);
        assert_eq!(timer.deadline(), Some(at(1)), "no later than without that");
    }
}
