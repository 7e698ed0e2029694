//! What all nodes share: the clock, what is to happen, the lines, the truth, chance, and the trace.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use walrelay_proto::Lsn;
use walrelay_proto::{PgTimestamp, TimelineId};

use crate::model::{BranchId, Model, Place};
use crate::net::{ConnId, Lines, Side};
use crate::random::{Random, mixed};

pub(crate) type NodeId = usize;

/// What happens at its time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Event {
    /// A connection is asked for.
    Connect(ConnId),
    /// Bytes come, or the end of the connection, to this side.
    Deliver(ConnId, Side),
    /// A node's time has come.
    Wake(NodeId),
    /// A relay's flusher takes a turn. Of another life of the relay it is passed over.
    Flush(NodeId, u64),
    /// A relay's retention takes a pass.
    Retain(NodeId, u64),
    /// A process starts.
    Start(NodeId),
    /// A server writes.
    Work(NodeId),
    /// Something goes wrong.
    Fault,
    /// A relay loses its power, just behind something that is rare.
    Power(NodeId),
    /// A relay's disk is well again.
    Heal(NodeId),
    /// A line is.
    Mend(ConnId),
}

#[derive(Debug)]
pub(crate) struct Context {
    began: Instant,
    /// Microseconds since the beginning: what all monotonic clocks show.
    pub(crate) now: u64,
    /// How far each node's wall clock is from the right time, microseconds.
    off: BTreeMap<NodeId, i64>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    /// The next time that each node is woken at.
    wakes: BTreeMap<NodeId, u64>,
    pub(crate) chance: Random,
    pub(crate) lines: Lines,
    pub(crate) model: Model,
    /// The branch that each node is on, as far as it was taken for proven.
    pub(crate) branches: BTreeMap<NodeId, BranchId>,
    /// Which nodes are relays.
    pub(crate) relays: BTreeSet<NodeId>,
    /// What each relay has reported upstream as flushed, and what would do instead of it.
    pub(crate) expected: BTreeMap<NodeId, Vec<Place>>,
    /// The newest timeline of a server that each relay has followed.
    pub(crate) headings: BTreeMap<NodeId, TimelineId>,
    /// What the consumer of each slot of a relay has told it has, or has had reserved.
    pub(crate) confirmed: BTreeMap<(NodeId, String), Vec<Place>>,
    /// What the consumer of each slot has told its relay to be durable there, wherever that went.
    pub(crate) durable: BTreeMap<(NodeId, String), Vec<Place>>,
    /// Relays that report as flushed only what one of these has, by name.
    pub(crate) groups: BTreeMap<NodeId, Vec<String>>,
    /// Slots that came back with their relay to a timeline whose WAL nobody had needed meanwhile, and to where.
    pub(crate) came_back: BTreeSet<(NodeId, String, Lsn)>,
    /// Whether all faults have ended.
    pub(crate) is_healed: bool,
    /// What does not hold.
    pub(crate) violation: Option<String>,
    pub(crate) counts: Counts,
    hash: u64,
    pub(crate) is_traced: bool,
}

/// How much has happened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Events.
    pub events: u64,
    /// Relays that lost their power.
    pub crashes: u64,
    /// Relays that ended, and were started again, without that.
    pub restarts: u64,
    /// Servers that were promoted.
    pub promotions: u64,
    /// Commits that a primary has acknowledged.
    pub acknowledged: u64,
    /// Other faults.
    pub faults: u64,
    /// Consumers that had to begin anew.
    pub rebuilt: u64,
    /// Bytes of WAL that consumers have compared.
    pub compared: u64,
}

impl Counts {
    /// Both together.
    pub fn plus(&self, other: &Counts) -> Counts {
        Counts {
            events: self.events + other.events,
            crashes: self.crashes + other.crashes,
            restarts: self.restarts + other.restarts,
            promotions: self.promotions + other.promotions,
            acknowledged: self.acknowledged + other.acknowledged,
            faults: self.faults + other.faults,
            rebuilt: self.rebuilt + other.rebuilt,
            compared: self.compared + other.compared,
        }
    }
}

impl Context {
    pub(crate) fn new(seed: u64, is_traced: bool) -> Context {
        let mut chance = Random::new(seed);
        let start = Lsn::new(crate::model::SEG_SIZE * 3);
        let model = Model::new(start, chance.next());
        Context {
            began: Instant::now(),
            now: 0,
            off: BTreeMap::new(),
            events: BinaryHeap::new(),
            count: 0,
            wakes: BTreeMap::new(),
            chance,
            lines: Lines::default(),
            model,
            branches: BTreeMap::new(),
            relays: BTreeSet::new(),
            expected: BTreeMap::new(),
            headings: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            durable: BTreeMap::new(),
            groups: BTreeMap::new(),
            came_back: BTreeSet::new(),
            is_healed: false,
            violation: None,
            counts: Counts::default(),
            hash: seed,
            is_traced,
        }
    }

    pub(crate) fn instant(&self) -> Instant {
        self.began + Duration::from_micros(self.now)
    }

    /// When that is on the clock of this world, rounded up.
    pub(crate) fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_nanos().div_ceil(1000) as u64
    }

    /// What a node's wall clock shows.
    pub(crate) fn wall(&self, node: NodeId) -> PgTimestamp {
        let off = self.off.get(&node).copied().unwrap_or(0);
        PgTimestamp::from_micros(800_000_000_000_000 + self.now as i64 + off)
    }

    /// Somebody sets a node's wall clock, forwards or back.
    pub(crate) fn set_clock(&mut self, node: NodeId) {
        let most = self.chance.pick(&[1_000_000, 3_600_000_000, 700_000_000_000_000]).unwrap_or(0);
        let off = self.chance.below(2 * most) as i64 - most as i64;
        self.note("sets its clock", node as u64, off as u64);
        self.off.insert(node, off);
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at.max(self.now), self.count, event)));
    }

    /// In so many microseconds.
    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub(crate) fn wake(&mut self, node: NodeId, at: u64) {
        if self.wakes.get(&node).is_none_or(|earlier| at < *earlier) {
            self.wakes.insert(node, at);
            self.at(at, Event::Wake(node));
        }
    }

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        loop {
            let Reverse((at, _, event)) = self.events.pop()?;
            if let Event::Wake(node) = event {
                // Another one was wanted earlier, and has been.
                if self.wakes.get(&node) != Some(&at) {
                    continue;
                }
                self.wakes.remove(&node);
            }
            debug_assert!(at >= self.now, "time goes back");
            self.now = at;
            self.counts.events += 1;
            return Some(event);
        }
    }

    pub(crate) fn write(&mut self, conn: ConnId, from: Side, bytes: &[u8]) {
        self.lines.write(conn, from, bytes);
    }

    /// Has what is on the lines come some time.
    pub(crate) fn schedule_lines(&mut self) {
        for (conn, to, delay) in self.lines.take_due() {
            let jitter = self.chance.below(delay.max(1));
            self.after(delay + jitter, Event::Deliver(conn, to));
        }
    }

    /// Notes what has happened: two runs of the same seed have to note the same.
    pub(crate) fn note(&mut self, what: &'static str, a: u64, b: u64) {
        let word =
            what.bytes().fold(self.now, |word, byte| word.wrapping_mul(31).wrapping_add(u64::from(byte)));
        self.hash = mixed(self.hash ^ word ^ a.rotate_left(17) ^ b.rotate_left(41)).wrapping_add(self.hash);
        if self.is_traced {
            eprintln!("{:>10.3} ms {what} {a} {b:X}", self.now as f64 / 1000.0);
        }
    }

    /// More words for who reads the trace.
    pub(crate) fn say(&self, words: impl FnOnce() -> String) {
        if self.is_traced {
            eprintln!("{:>10.3} ms     {}", self.now as f64 / 1000.0, words());
        }
    }

    /// Something does not hold. The first such thing counts.
    pub(crate) fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            self.say(|| format!("VIOLATION: {what}"));
            self.violation = Some(what);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The consumer of a slot has told that it has this.
    pub(crate) fn tell_slot(&mut self, relay: NodeId, slot: &str, told: Place) {
        let Context { confirmed, model, .. } = self;
        let known = confirmed.entry((relay, slot.to_owned())).or_default();
        if !known.iter().any(|known| model.has(*known, told)) {
            known.retain(|known| !model.has(told, *known));
            known.push(told);
        }
    }

    /// What a consumer has on its way to the relay, it has.
    pub(crate) fn tell_durable(&mut self, relay: NodeId, name: &str, told: impl Iterator<Item = Place>) {
        let Context { durable, model, .. } = self;
        let known = durable.entry((relay, name.to_owned())).or_default();
        for told in told {
            if !known.iter().any(|known| model.has(*known, told)) {
                known.retain(|known| !model.has(told, *known));
                known.push(told);
            }
        }
    }

    /// A relay has reported this as flushed: where somebody else must have it, one of them has.
    pub(crate) fn check_group(&mut self, relay: NodeId, place: Place) {
        let Some(names) = self.groups.get(&relay) else { return };
        let has = |known: &Place| self.model.has(*known, place);
        let told = |name: &String| self.durable.get(&(relay, name.clone()));
        if !names.iter().filter_map(told).flatten().any(has) {
            let (names, known) = (names.clone(), names.iter().filter_map(told).cloned().collect::<Vec<_>>());
            self.fail(|| {
                format!("relay {relay} reported {place:?}, and {names:?} have no more than {known:?}")
            });
        }
    }

    /// A relay has reported this upstream.
    pub(crate) fn confirm(&mut self, relay: NodeId, place: Place) {
        if !self.relays.contains(&relay) {
            return;
        }
        let before = self.expected.entry(relay).or_default();
        if !before.is_empty() && !before.iter().any(|before| self.model.has(place, *before)) {
            let before = before.clone();
            // What an earlier process was told by those whom a rule names is the slot's to say, which is left out here.
            if self.groups.contains_key(&relay) && before.iter().any(|before| self.model.has(*before, place))
            {
                return;
            }
            return self.fail(|| format!("relay {relay} reported {before:?} as flushed, and then {place:?}"));
        }
        *before = vec![place];
    }
}
