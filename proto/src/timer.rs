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
        PeerTimer { timeout, last_heard: now, asked: false }
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
        let timeout = self.timeout?;
        Some(self.last_heard + if self.asked { timeout } else { timeout / 2 })
    }

    /// What is due at `now`.
    pub fn due(&mut self, now: Instant) -> PeerDue {
        let Some(timeout) = self.timeout else { return PeerDue::Nothing };
        let silence = now.saturating_duration_since(self.last_heard);
        if silence >= timeout {
            PeerDue::GiveUp
        } else if silence >= timeout / 2 && !self.asked {
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
}
