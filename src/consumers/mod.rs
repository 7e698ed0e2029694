//! The consumers: who is connected, how far each is, and what their standbys still need.
//!
//! Every walsender owns one [`Consumer`] and writes its fields; whoever displays or aggregates reads them. Hot-standby
//! feedback is merged here and watched by the upstream side, and so is what their reports allow the relay to report
//! ([`Acknowledgements`]).
//!
//! What a standby left with its slot counts while it is not connected, so it is asked for whenever the horizon is made
//! ([`Remembered`]). That is the whole of what is known here of the store.

mod acknowledgements;
mod consumer;
mod lag;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use walrelay_proto::FeedbackHorizon;
use walrelay_proto::ack::Rules;

use crate::counts::Counter;
pub use acknowledgements::{AckSeen, Acknowledgements};
pub use consumer::{Consumer, ConsumerIdentity, ConsumerState, ConsumerStatus};
pub use lag::LagClock;

/// What standbys still need of the primary that need not be connected: what they left with their slots.
pub trait Remembered: Debug + Send + Sync {
    /// All of it, merged. Asked for under a lock: takes a moment.
    fn feedback(&self) -> FeedbackHorizon;
}

/// All consumers of the relay.
#[derive(Debug)]
pub struct Consumers {
    remembered: Arc<dyn Remembered>,
    live: Mutex<BTreeMap<u32, Arc<Consumer>>>,
    /// Bytes sent to those that have left.
    sent_before: Counter,
    horizon: watch::Sender<FeedbackHorizon>,
    /// The server that was told last, and what.
    reported: Mutex<Option<(String, FeedbackHorizon)>>,
    acknowledgements: Acknowledgements,
}

/// A consumer's place in the registry; it leaves when this is dropped.
#[derive(Debug)]
pub struct ConsumerGuard {
    consumer: Arc<Consumer>,
    registry: Arc<Consumers>,
}

impl ConsumerGuard {
    /// The consumer, for whoever sends in its walsender's place.
    pub fn consumer(&self) -> &Arc<Consumer> {
        &self.consumer
    }
}

impl std::ops::Deref for ConsumerGuard {
    type Target = Consumer;

    fn deref(&self) -> &Consumer {
        &self.consumer
    }
}

impl Drop for ConsumerGuard {
    fn drop(&mut self) {
        let pid = self.consumer.identity().pid;
        let mut live = lock(&self.registry.live);
        // At once, so that the sum never falls.
        live.remove(&pid);
        self.registry.sent_before.add(self.consumer.sent_bytes());
        self.registry.acknowledgements.disconnect(pid);
        drop(live);
        self.registry.refresh_horizon();
    }
}

impl Consumers {
    /// Nobody yet, but for what is remembered of earlier connections.
    pub fn new(remembered: Arc<dyn Remembered>) -> Arc<Consumers> {
        let horizon = watch::Sender::new(remembered.feedback());
        Arc::new(Consumers {
            remembered,
            live: Mutex::default(),
            sent_before: Counter::default(),
            horizon,
            reported: Mutex::default(),
            acknowledgements: Acknowledgements::new(),
        })
    }

    /// Enters a consumer.
    pub fn register(self: &Arc<Self>, identity: ConsumerIdentity) -> ConsumerGuard {
        let consumer = Arc::new(Consumer::new(identity));
        let mut live = lock(&self.live);
        self.acknowledgements.connect(consumer.identity());
        live.insert(consumer.identity().pid, consumer.clone());
        drop(live);
        ConsumerGuard { consumer, registry: self.clone() }
    }

    /// Bytes of WAL sent to all consumers, also to those that have left.
    pub fn sent_bytes(&self) -> u64 {
        let live = lock(&self.live);
        self.sent_before.get() + live.values().map(|consumer| consumer.sent_bytes()).sum::<u64>()
    }

    /// Everybody connected, by PID.
    pub fn list(&self) -> Vec<ConsumerStatus> {
        let status = |consumer: &Arc<Consumer>| ConsumerStatus {
            standing: self.acknowledgements.standing(consumer.identity().pid),
            ..consumer.status()
        };
        lock(&self.live).values().map(status).collect()
    }

    /// What may be reported upstream of what they have.
    pub fn acknowledgements(&self) -> &Acknowledgements {
        &self.acknowledgements
    }

    /// Who must have WAL before it is reported, from now on.
    pub fn set_rules(&self, rules: Rules) {
        // Held, so that nobody comes or goes meanwhile.
        let live = lock(&self.live);
        let mut connected: Vec<_> = live.values().map(|consumer| consumer.identity()).collect();
        connected.sort_by_key(|identity| identity.backend_start);
        self.acknowledgements.set_rules(rules, &connected);
    }

    /// The merged feedback of all consumers, and of those that have left theirs with a slot.
    pub fn horizon(&self) -> watch::Receiver<FeedbackHorizon> {
        self.horizon.subscribe()
    }

    /// What this server was told last of the horizon, perhaps in another connection; `None` where it was none of ours, or
    /// another server's was told since.
    pub fn reported(&self, server: &str) -> Option<FeedbackHorizon> {
        lock(&self.reported).as_ref().filter(|(told, _)| told == server).map(|(_, horizon)| *horizon)
    }

    /// Notes what a server is told of the horizon.
    pub fn note_reported(&self, server: &str, horizon: FeedbackHorizon) {
        let mut reported = lock(&self.reported);
        match &mut *reported {
            Some((told, before)) if told == server => *before = horizon,
            other => *other = Some((server.to_owned(), horizon)),
        }
    }

    /// Nobody knows what the server has heard of what it was told last.
    pub fn forget_reported(&self) {
        *lock(&self.reported) = None;
    }

    /// Takes a consumer's feedback, which ends with its connection.
    pub fn set_feedback(&self, consumer: &Consumer, feedback: FeedbackHorizon) {
        consumer.set_feedback(feedback);
        self.refresh_horizon();
    }

    /// Computes the merged horizon anew, after a change of consumers or of what is remembered.
    pub fn refresh_horizon(&self) {
        // Held until it is published: what was computed later must not be followed by something older.
        let live = lock(&self.live);
        let all = live.values().map(|consumer| consumer.feedback());
        let merged = all.fold(self.remembered.feedback(), FeedbackHorizon::merge);
        self.horizon.send_if_modified(|current| {
            let changed = *current != merged;
            *current = merged;
            changed
        });
    }
}

/// For a moment. What is behind these locks is valid after every single assignment, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use walrelay_proto::{FullXid, Lsn};

    use super::*;

    /// What slots keep of their standbys.
    #[derive(Debug, Default)]
    struct Kept(Mutex<FeedbackHorizon>);

    impl Remembered for Kept {
        fn feedback(&self) -> FeedbackHorizon {
            *lock(&self.0)
        }
    }

    fn xmin(xid: u32) -> FeedbackHorizon {
        FeedbackHorizon { xmin: FullXid::new(0, xid), catalog_xmin: None }
    }

    fn identity(pid: u32) -> ConsumerIdentity {
        ConsumerIdentity {
            pid,
            user: "u".into(),
            application_name: String::new(),
            client_addr: None,
            backend_start: crate::moment::Past::now(),
        }
    }

    /// However they race: what is published last is what holds then.
    #[test]
    fn the_published_horizon_is_never_older_than_the_feedback() {
        let consumers = Consumers::new(Arc::new(Kept::default()));
        let guards: Vec<_> = (1..=2).map(|pid| consumers.register(identity(pid))).collect();
        for round in 1..2000 {
            std::thread::scope(|threads| {
                for guard in &guards {
                    let feedback = xmin(round * 10 + guard.identity().pid);
                    let consumers = &consumers;
                    threads.spawn(move || consumers.set_feedback(guard, feedback));
                }
            });
            assert_eq!(*consumers.horizon().borrow(), xmin(round * 10 + 1), "round {round}");
        }
    }

    #[test]
    fn what_is_remembered_counts_with_what_the_connected_need() {
        let kept = Arc::new(Kept::default());
        let consumers = Consumers::new(kept.clone());
        let horizon = || *consumers.horizon().borrow();
        let guard = consumers.register(identity(1));
        consumers.set_feedback(&guard, xmin(7));
        assert_eq!(horizon(), xmin(7));
        *lock(&kept.0) = xmin(5);
        consumers.refresh_horizon();
        assert_eq!(horizon(), xmin(5));
        *lock(&kept.0) = xmin(9);
        drop(guard);
        assert_eq!(horizon(), xmin(9), "its feedback has gone with it");
    }

    #[test]
    fn who_has_replayed_everything_has_no_lag() {
        let consumer = Consumers::new(Arc::new(Kept::default())).register(identity(1));
        let (clock, start) = (LagClock::new(Lsn::INVALID), Instant::now());
        let at = |lsn| Lsn::new(lsn);
        clock.arrived(at(100), start);
        clock.arrived(at(200), start + Duration::from_secs(1));
        consumer.set_sent(at(200));
        consumer.set_reply(at(200), at(100), at(0), &clock);
        let lags = || {
            let status = consumer.status();
            [status.write_lag, status.flush_lag, status.replay_lag].map(|lag| lag.is_some())
        };
        assert_eq!(lags(), [true, true, false]);
        // Nothing new, but not everything is replayed.
        consumer.set_reply(at(200), at(100), at(0), &clock);
        assert_eq!(lags(), [true, true, false]);
        consumer.set_reply(at(200), at(200), at(200), &clock);
        assert_eq!(lags(), [true; 3]);
        consumer.set_reply(at(200), at(200), at(200), &clock);
        assert_eq!(lags(), [false; 3]);
    }
}
