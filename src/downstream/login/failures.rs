//! Failed logins use up a source's credit, so that passwords cannot be guessed in bulk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::downstream::SharedRules;
use crate::wire::Source;

/// Time in which all of the credit comes back.
const REFILL: Duration = Duration::from_secs(10);
/// Sources remembered at most, some hundred kilobytes.
const MOST: usize = 10_000;

/// Who has failed lately, by address.
///
/// A token bucket for each source: full for those not in the map. It is kept as the time at which it will be full
/// again, which is all there is to know.
#[derive(Debug)]
pub(in crate::downstream) struct Failures {
    /// Among them the failures at once and within [`REFILL`]; 0 for no limit.
    rules: Arc<SharedRules>,
    full_at: Mutex<HashMap<Source, Instant>>,
}

impl Failures {
    pub(in crate::downstream) fn new(rules: Arc<SharedRules>) -> Failures {
        Failures { rules, full_at: Mutex::new(HashMap::new()) }
    }

    /// Whether a login from there may be tried.
    pub(super) fn permit(&self, source: Source, now: Instant) -> bool {
        let full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = full_at.get(&source).map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        self.limit() == 0 || missing + self.cost() <= REFILL
    }

    /// A login from there has failed.
    pub(super) fn note(&self, source: Source, now: Instant) {
        if self.limit() == 0 {
            return;
        }
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= MOST && !full_at.contains_key(&source) {
            full_at.retain(|_, at| *at > now);
            // All have failed within seconds: any may go.
            if full_at.len() >= MOST
                && let Some(any) = full_at.keys().next().copied()
            {
                full_at.remove(&any);
            }
        }
        let at = full_at.entry(source).or_insert(now);
        // Logins under way when the credit ended do not add to the debt.
        *at = ((*at).max(now) + self.cost()).min(now + REFILL);
    }

    /// A login from there begins. It counts as failed unless it is said to have succeeded, however it ends: a client
    /// that goes away when it is asked for its password has cost as much as one with a wrong password.
    pub(in crate::downstream) fn attempt(&self, source: Option<Source>) -> Attempt<'_> {
        Attempt { failures: self, source }
    }

    fn limit(&self) -> u32 {
        self.rules.current().max_failed_logins
    }

    fn cost(&self) -> Duration {
        REFILL / self.limit().max(1)
    }
}

/// See [`Failures::attempt`].
#[derive(Debug)]
#[must_use]
pub(in crate::downstream) struct Attempt<'a> {
    failures: &'a Failures,
    source: Option<Source>,
}

impl Attempt<'_> {
    pub(in crate::downstream) fn succeeded(mut self) {
        self.source = None;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(source) = self.source {
            self.failures.note(source, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::downstream::{Limits, SessionRules};

    fn failures(max_failed_logins: u32) -> Failures {
        Failures::new(Arc::new(SharedRules::new(SessionRules {
            limits: Limits { connections: 1, user_connections: 0, wal_senders: 1 },
            max_failed_logins,
            authentication_timeout: Duration::from_secs(1),
            wal_sender_timeout: None,
            shutdown_timeout: Duration::ZERO,
            sql_overlay: true,
            logged: crate::downstream::Logged::default(),
        })))
    }

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn credit_is_used_up_and_comes_back() {
        let (failures, start) = (failures(10), Instant::now());
        let evil = source("192.0.2.1");
        for _ in 0..10 {
            assert!(failures.permit(evil, start));
            failures.note(evil, start);
        }
        assert!(!failures.permit(evil, start));
        assert!(failures.permit(source("192.0.2.2"), start));
        assert!(!failures.permit(evil, start + Duration::from_millis(999)));
        assert!(failures.permit(evil, start + Duration::from_secs(1)));
        failures.note(evil, start + Duration::from_secs(1));
        assert!(!failures.permit(evil, start + Duration::from_secs(1)));
        assert!(failures.permit(evil, start + Duration::from_secs(60)));
    }

    #[test]
    fn many_failures_at_once_are_forgiven_in_time() {
        let (failures, start) = (failures(1), Instant::now());
        (0..1000).for_each(|_| failures.note(source("192.0.2.1"), start));
        assert!(failures.permit(source("192.0.2.1"), start + REFILL));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let (failures, now) = (failures(1), Instant::now());
        failures.note(source("2001:db8:0:1::1"), now);
        assert!(!failures.permit(source("2001:db8:0:1:ffff::2"), now));
        assert!(failures.permit(source("2001:db8:0:2::1"), now));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
    }

    #[test]
    fn zero_is_no_limit() {
        let (failures, now) = (failures(0), Instant::now());
        (0..1000).for_each(|_| failures.note(source("192.0.2.1"), now));
        assert!(failures.permit(source("192.0.2.1"), now));
        assert!(failures.full_at.lock().unwrap().is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let (failures, now) = (failures(5), Instant::now());
        for n in 0..2 * MOST as u32 {
            failures.note(IpAddr::from(n.to_be_bytes()).into(), now);
        }
        assert_eq!(failures.full_at.lock().unwrap().len(), MOST);
        failures.note(source("2001:db8::"), now + REFILL);
        assert_eq!(failures.full_at.lock().unwrap().len(), 1);
    }
}
