//! What has happened, counted: numbers that only rise, for whoever watches the relay.
//!
//! Each part counts in values of its own, which it owns; nothing here is global. Counting is an addition to an atomic, and
//! reading one waits for nobody.

mod lately;
mod refusals;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use lately::Lately;
pub use refusals::{Refusals, Refusee};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn note(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper ends of the classes of [`Durations`], in seconds: from a fast NVMe's sync to a disk that hangs.
pub const CLASSES: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// So many of the last times are known one by one.
const LATE: usize = 64;

/// How long something took, each time: a histogram, and the last times.
#[derive(Debug)]
pub struct Durations {
    /// One for each of [`CLASSES`], and one for what took longer.
    classes: [AtomicU64; CLASSES.len() + 1],
    micros: AtomicU64,
    /// How often there was one.
    noted: AtomicU64,
    /// The last of them, microseconds, each at its number modulo the length.
    late: [AtomicU32; LATE],
}

impl Default for Durations {
    fn default() -> Durations {
        Durations {
            classes: Default::default(),
            micros: AtomicU64::default(),
            noted: AtomicU64::default(),
            late: std::array::from_fn(|_| AtomicU32::default()),
        }
    }
}

impl Durations {
    /// It took so long this time.
    pub fn note(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let class = CLASSES.iter().position(|end| seconds <= *end).unwrap_or(CLASSES.len());
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        let number = self.noted.fetch_add(1, Ordering::Relaxed);
        let late = &self.late[(number % LATE as u64) as usize];
        late.store(u32::try_from(micros).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// How often it fell into each of [`CLASSES`], and behind them all.
    pub fn classes(&self) -> [u64; CLASSES.len() + 1] {
        std::array::from_fn(|class| self.classes[class].load(Ordering::Relaxed))
    }

    /// How long it took altogether.
    pub fn total(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    /// The median of the last of them: what it takes now, whatever it took before, and one that was late is none of it. `None`
    /// before there was any.
    pub fn of_late(&self) -> Option<Duration> {
        let known = self.noted.load(Ordering::Relaxed).min(LATE as u64) as usize;
        let mut late: Vec<_> = self.late[..known].iter().map(|it| it.load(Ordering::Relaxed)).collect();
        late.sort_unstable();
        late.get(known / 2).map(|micros| Duration::from_micros(u64::from(*micros)))
    }
}

/// One of a few reasons: the values of an enum, each with a word for labels.
pub trait Cause: Copy + Eq + 'static {
    /// All there are.
    const ALL: &'static [Self];
    /// What it is called in a label.
    fn word(self) -> &'static str;
}

/// A counter for each cause.
#[derive(Debug)]
pub struct ByCause<C> {
    counts: Vec<(Counter, Lately)>,
    of: PhantomData<C>,
}

impl<C: Cause> Default for ByCause<C> {
    fn default() -> ByCause<C> {
        ByCause { counts: C::ALL.iter().map(|_| Default::default()).collect(), of: PhantomData }
    }
}

impl<C: Cause> ByCause<C> {
    /// Once more for this reason.
    pub fn note(&self, cause: C) {
        let (counter, lately) = self.of(cause);
        counter.note();
        lately.note(Instant::now());
    }

    /// How often for this reason.
    pub fn get(&self, cause: C) -> u64 {
        self.of(cause).0.get()
    }

    /// How often for each reason within so long before now, those that were not left out.
    pub fn within(&self, window: Duration, now: Instant) -> impl Iterator<Item = (&'static str, u64)> {
        let late = C::ALL.iter().zip(&self.counts);
        let late = late.map(move |(cause, (_, lately))| (cause.word(), lately.within(window, now)));
        late.filter(|(_, count)| *count > 0)
    }

    /// All causes, with their words, those that never were included.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        C::ALL.iter().zip(&self.counts).map(|(cause, (count, _))| (cause.word(), count.get()))
    }

    fn of(&self, cause: C) -> &(Counter, Lately) {
        let at = C::ALL.iter().position(|known| *known == cause);
        &self.counts[at.expect("ALL names every cause")]
    }
}

macro_rules! causes {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl Cause for $name {
            const ALL: &'static [$name] = &[$($name::$variant),*];

            fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }
    };
}

causes! {
    /// Why a replication connection has ended.
    pub enum EndCause {
        /// The client said good-bye, or closed the connection between two messages.
        ClientLeft = "client_left",
        /// The socket failed.
        ConnectionLost = "connection_lost",
        /// The client was silent for longer than `wal_sender_timeout`.
        Timeout = "timeout",
        /// The client did not take what was sent to it.
        NotTaken = "not_taken",
        /// The client sent what nobody understands.
        Protocol = "protocol_violation",
        /// Somebody had it ended.
        Terminated = "terminated",
        /// The relay stops.
        Shutdown = "shutdown",
        /// It was told an error that ends a connection.
        Error = "error",
    }
}

causes! {
    /// Why a client was not let in.
    pub enum Refused {
        /// Its proof is wrong: password, certificate, system user.
        Authentication = "authentication",
        /// There is no line for it in the hba file, or one that rejects it.
        Rules = "rules",
        /// It has failed too often, or all places are taken.
        TooMany = "too_many",
        /// The role may not do what it wants.
        Rights = "rights",
        /// The relay starts or stops, or an upstream that would have to be asked is away.
        NotNow = "not_now",
        /// It did not log in within `authentication_timeout`.
        Timeout = "timeout",
        /// It had not logged in when there were too many like it.
        Dropped = "dropped",
        /// It does not speak the protocol, or not that of TLS.
        Protocol = "protocol_violation",
        /// Anything else.
        Other = "other",
    }
}

causes! {
    /// Why a replication command was refused.
    pub enum CommandRefused {
        /// WAL that it wants is neither here nor in an archive.
        WalRemoved = "wal_removed",
        /// It wants a timeline, or a position on one, that is not on the way to the one that is followed.
        Timeline = "timeline",
        /// Its slot is lost.
        SlotLost = "slot_lost",
        /// Somebody else uses its slot.
        SlotInUse = "slot_in_use",
        /// There is no such slot.
        SlotMissing = "slot_missing",
        /// Anything else.
        Other = "other",
    }
}

/// What has become of clients' connections.
#[derive(Debug, Default)]
pub struct SessionCounts {
    /// Connections that were taken from a listener.
    pub accepted: Counter,
    /// Replication connections that have logged in.
    pub replication: Counter,
    /// SQL sessions that have logged in.
    pub sql: Counter,
    /// SQL sessions that have ended.
    pub sql_ended: Counter,
    /// Replication connections that have ended.
    pub ended: ByCause<EndCause>,
    /// Clients that were not let in.
    pub refused: ByCause<Refused>,
    /// Commands of replication connections that were refused.
    pub commands: Refusals,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_classes() {
        let durations = Durations::default();
        let at = |class: usize| durations.classes()[class];
        for micros in [1, 100, 101, 30_000_000, 30_000_001] {
            durations.note(Duration::from_micros(micros));
        }
        assert_eq!((at(0), at(1), at(CLASSES.len() - 1), at(CLASSES.len())), (2, 1, 1, 1));
        assert_eq!(durations.total(), Duration::from_micros(60_000_203));
    }

    #[test]
    fn what_something_takes_of_late_is_not_what_it_took_for_weeks() {
        let durations = Durations::default();
        assert_eq!(durations.of_late(), None);
        let note = |times: u32, millis: u64| {
            (0..times).for_each(|_| durations.note(Duration::from_millis(millis)));
            durations.of_late().map(|late| late.as_millis())
        };
        assert_eq!(note(100_000, 1), Some(1));
        assert_eq!(note(1, 30_000), Some(1), "one that was late");
        assert_eq!(note(64, 80), Some(80));
        assert_eq!(note(40, 2), Some(2));
    }

    #[test]
    fn causes_are_counted_apart() {
        let ends = ByCause::<EndCause>::default();
        ends.note(EndCause::Timeout);
        ends.note(EndCause::Timeout);
        assert_eq!((ends.get(EndCause::Timeout), ends.get(EndCause::Error)), (2, 0));
        let words: Vec<_> = ends.all().collect();
        assert_eq!(words.len(), EndCause::ALL.len());
        assert!(words.contains(&("timeout", 2)), "{words:?}");
    }
}
