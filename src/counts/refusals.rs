//! Replication commands that were refused, and who is refused again and again: a standby whose WAL is gone asks every five
//! seconds for ever, and nothing else shows that.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{ByCause, CommandRefused};
use crate::moment::Past;

/// Who has not been refused for so long asks no more, or has got what it wants: a standby tries each five seconds, what cron
/// starts each minute.
const FORGOTTEN: Duration = Duration::from_secs(150);
/// So many names are known; a new one takes the place of the one that was refused longest ago.
const MOST: usize = 256;
/// So much of what they were told.
const LONGEST: usize = 240;

/// Counts refused commands, and knows whose they were lately.
#[derive(Debug, Default)]
pub struct Refusals {
    /// How many, by cause.
    pub counts: ByCause<CommandRefused>,
    names: Mutex<HashMap<Asker, Refusal>>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Asker {
    application_name: String,
    address: Option<IpAddr>,
}

#[derive(Debug)]
struct Refusal {
    cause: CommandRefused,
    message: String,
    times: u64,
    since: Past,
    last: Past,
    last_seen: Instant,
}

/// Somebody who was refused lately.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusee {
    /// What it calls itself.
    pub application_name: String,
    /// Where it is; nothing for the Unix socket.
    pub address: Option<IpAddr>,
    /// Why, the last time.
    pub cause: CommandRefused,
    /// What it was told then.
    pub message: String,
    /// How often, without a longer pause.
    pub times: u64,
    /// The first of these times.
    pub since: Past,
    /// The last of them.
    pub last: Past,
}

impl Refusals {
    /// A command of this name was refused.
    pub fn note(
        &self,
        (application_name, address): (&str, Option<IpAddr>),
        cause: CommandRefused,
        message: &str,
        now: Instant,
    ) {
        self.counts.note(cause);
        let asker = Asker { application_name: application_name.to_owned(), address };
        let at = Past::now();
        let new = Refusal { cause, message: String::new(), times: 0, since: at, last: at, last_seen: now };
        let mut names = self.names();
        names.retain(|_, refusal| !refusal.is_forgotten(now));
        if names.len() >= MOST && !names.contains_key(&asker) {
            let oldest = names.iter().min_by_key(|(_, refusal)| refusal.last_seen);
            let oldest = oldest.map(|(asker, _)| asker.clone());
            oldest.into_iter().for_each(|asker| _ = names.remove(&asker));
        }
        let refusal = names.entry(asker).or_insert(new);
        let message = message.chars().take(LONGEST).collect();
        (refusal.cause, refusal.message) = (cause, message);
        (refusal.last, refusal.last_seen) = (at, now);
        refusal.times += 1;
    }

    /// Whoever was refused lately, by name.
    pub fn seen(&self, now: Instant) -> Vec<Refusee> {
        let names = self.names();
        let lately = names.iter().filter(|(_, refusal)| !refusal.is_forgotten(now));
        let mut seen: Vec<Refusee> = lately
            .map(|(asker, refusal)| Refusee {
                application_name: asker.application_name.clone(),
                address: asker.address,
                cause: refusal.cause,
                message: refusal.message.clone(),
                times: refusal.times,
                since: refusal.since,
                last: refusal.last,
            })
            .collect();
        seen.sort_by(|a, b| (&a.application_name, a.address).cmp(&(&b.application_name, b.address)));
        seen
    }

    fn names(&self) -> MutexGuard<'_, HashMap<Asker, Refusal>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refusal {
    fn is_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_seen) > FORGOTTEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_again_and_again_is_known_until_it_stops() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let address = Some("10.0.0.1".parse().unwrap());
        for second in [0, 5, 10] {
            refusals.note(("s1", address), CommandRefused::WalRemoved, "it is gone", at(second));
        }
        refusals.note(("s1", None), CommandRefused::Timeline, "no such timeline", at(10));
        let seen = refusals.seen(at(20));
        assert_eq!(
            seen.iter().map(|it| (it.address, it.times)).collect::<Vec<_>>(),
            [(None, 1), (address, 3)]
        );
        assert_eq!((seen[1].cause, &*seen[1].message), (CommandRefused::WalRemoved, "it is gone"));
        assert_eq!(refusals.seen(at(161)), []);
        refusals.note(("s1", address), CommandRefused::SlotLost, "lost", at(170));
        assert_eq!(refusals.seen(at(170))[0].times, 1, "from the beginning");
        assert_eq!(refusals.counts.get(CommandRefused::WalRemoved), 3);
    }

    #[test]
    fn names_without_end_take_no_memory_without_end() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let long = "x".repeat(100_000);
        for number in 0..10_000_u64 {
            let now = start + Duration::from_millis(number);
            refusals.note((&number.to_string(), None), CommandRefused::Other, &long, now);
        }
        let seen = refusals.seen(start + Duration::from_secs(10));
        assert_eq!((seen.len(), seen[0].message.len()), (MOST, LONGEST));
        assert!(seen.iter().any(|it| it.application_name == "9999"));
    }
}
