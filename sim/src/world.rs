//! A world: servers, relays and consumers, what befalls them, and what has to hold in the end.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use walrelay_proto::{FeedbackHorizon, Lsn, TimelineId};

use crate::consumer::{Consumer, Manner};
use crate::context::{Context, Counts, Event, NodeId};
use crate::model::Place;
use crate::net::{ConnId, Delivery, Side};
use crate::random::Random;
use crate::relay::{Relay, Setup, keep_size};
use crate::server::Server;

/// Places for servers: the first one, and those that may be promoted.
const SERVERS: usize = 3;
/// When everything is well, all have come to the end within this, microseconds.
const PATIENCE: u64 = 180_000_000;
/// Nothing is on its way any more that was sent before.
const SETTLED: u64 = 3_000_000;
/// No schedule has so many events, unless somebody goes round in circles.
const MOST_EVENTS: u64 = 500_000;

/// In one of so many worlds a relay reports what one of its consumers has, by name.
const GROUPS: u64 = 4;

/// What became of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What did not hold, if anything.
    pub violation: Option<String>,
    /// What has happened.
    pub counts: Counts,
    /// The same for the same seed.
    pub hash: u64,
    /// How long it took in the world, microseconds.
    pub micros: u64,
}

/// Lives through one schedule. With `is_traced` all that happens is written to standard error.
pub fn simulate(seed: u64, is_traced: bool) -> Outcome {
    let mut world = match catch_unwind(|| World::new(seed, is_traced)) {
        Ok(world) => world,
        Err(panic) => return Outcome::panicked(seed, &*panic),
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        world.cx.fail(|| said(&*panic));
        // What is half done is not to be tidied up.
        std::mem::forget(std::mem::take(&mut world.nodes));
    }
    let Context { violation, counts, now, .. } = &world.cx;
    Outcome { seed, violation: violation.clone(), counts: *counts, hash: world.cx.hash(), micros: *now }
}

impl Outcome {
    fn panicked(seed: u64, panic: &dyn Any) -> Outcome {
        Outcome { seed, violation: Some(said(panic)), counts: Counts::default(), hash: 0, micros: 0 }
    }
}

/// What a panic says.
fn said(panic: &dyn Any) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    format!("panic: {}", text.unwrap_or_default())
}

#[derive(Debug)]
enum Node {
    Server(Box<Server>),
    Relay(Box<Relay>),
    Consumer(Box<Consumer>),
}

#[derive(Debug)]
struct World {
    cx: Context,
    nodes: Vec<Option<Node>>,
    weather: Weather,
    ends_at: u64,
    /// See [`World::is_tainted`], once it was looked at.
    is_tainted: Option<bool>,
    /// Processes that get no time, until when.
    frozen: BTreeMap<NodeId, u64>,
}

/// What may happen, and how often.
#[derive(Clone, Debug)]
struct Weather {
    faults: Vec<Fault>,
    /// Microseconds between faults, and between writes, at most.
    every: u64,
    work_every: u64,
    /// Whether segments are filled.
    is_large: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    PowerAtOperation,
    Power,
    Exit,
    Stop,
    Hang,
    Full,
    FailSync,
    FailOperation,
    Cut,
    BlackHole,
    Pause,
    Flip,
    ServerCrash,
    PromoteConsumer,
    PromoteStandby,
    DropSlot,
    ConsumerCrash,
    ConsumerRebuild,
    /// A wall clock is set.
    Clock,
    /// A process gets no time.
    Freeze,
}

const FAULTS: [Fault; 20] = [
    Fault::PowerAtOperation,
    Fault::Power,
    Fault::Exit,
    Fault::Stop,
    Fault::Hang,
    Fault::Full,
    Fault::FailSync,
    Fault::FailOperation,
    Fault::Cut,
    Fault::BlackHole,
    Fault::Pause,
    Fault::Flip,
    Fault::ServerCrash,
    Fault::PromoteConsumer,
    Fault::PromoteStandby,
    Fault::DropSlot,
    Fault::ConsumerCrash,
    Fault::ConsumerRebuild,
    Fault::Clock,
    Fault::Freeze,
];

/// Of each relay the consumers with a slot, but for those who tell nonsense.
fn groups(nodes: &[Option<Node>]) -> BTreeMap<NodeId, Vec<String>> {
    let mut groups: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    for node in nodes.iter().flatten() {
        if let Node::Consumer(consumer) = node
            && let Some(slot) = consumer.named()
        {
            groups.entry(consumer.host).or_default().push(slot.to_owned());
        }
    }
    groups
}

impl World {
    fn new(seed: u64, is_traced: bool) -> World {
        let mut cx = Context::new(seed, is_traced);
        let weather = Weather::new(&mut cx.chance);
        let is_large = weather.is_large;
        let mut nodes: Vec<Option<Node>> = (0..SERVERS).map(|_| None).collect();
        cx.model.write(0, |wal| {
            wal.record(100);
        });
        nodes[0] = Some(Node::Server(Box::new(Server::new(0, 0, &mut cx))));
        let chance = &mut cx.chance;
        let relays = if chance.percent(35) { 2 } else { 1 };
        for number in 0..relays {
            let id = nodes.len();
            let mut hosts: Vec<NodeId> = (0..SERVERS).collect();
            if number > 0 && chance.percent(75) {
                hosts = vec![id - 1];
            }
            let wal_keep_size = keep_size(chance.below(4));
            // What a relay's slot has lost nobody brings back.
            let is_last = number + 1 == relays;
            let max_slot_wal_keep_size =
                (chance.percent(if is_large { 50 } else { 5 }) && is_last).then(|| keep_size(1));
            cx.relays.insert(id);
            let setup = Setup { hosts, wal_keep_size, max_slot_wal_keep_size };
            nodes.push(Some(Node::Relay(Box::new(Relay::new(id, setup)))));
        }
        for number in 0..chance.pick(&[1, 1, 1, 2, 2, 3]).unwrap_or(1) {
            let id = nodes.len();
            let host = SERVERS + chance.below(relays) as usize;
            let (manner, name) = match chance.below(10) {
                0 => (Manner::Absurd, "absurd"),
                1..4 => (Manner::Slow, "slow"),
                _ => (Manner::Honest, "honest"),
            };
            let slot = chance.percent(75).then(|| format!("{name}_{number}"));
            let (by_segment, feeds_back) = (chance.percent(30), chance.percent(50));
            let consumer = Consumer::new(id, host, slot, manner, by_segment, feeds_back);
            nodes.push(Some(Node::Consumer(Box::new(consumer))));
        }
        if seed % GROUPS == 1 {
            cx.groups = groups(&nodes);
        }
        let ends_at = cx.chance.between(1_000_000, 6_000_000);
        let mut world = World { cx, nodes, weather, ends_at, is_tainted: None, frozen: BTreeMap::new() };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for (id, node) in self.nodes.iter().enumerate() {
            match node {
                Some(Node::Server(_)) => self.cx.after(1000, Event::Work(id)),
                Some(Node::Relay(_)) => self.cx.after(100, Event::Start(id)),
                Some(Node::Consumer(_)) => self.cx.wake(id, 50_000),
                None => {}
            }
        }
        let first = self.cx.chance.between(1000, 500_000);
        self.cx.after(first, Event::Fault);
    }

    fn run(&mut self) {
        while self.cx.violation.is_none() && !self.is_over() {
            self.cx.schedule_lines();
            let Some(event) = self.cx.next_event() else {
                return self.cx.fail(|| "nothing is to happen any more".to_owned());
            };
            if self.cx.counts.events > MOST_EVENTS {
                return self.cx.fail(|| "somebody goes round in circles".to_owned());
            }
            if !self.cx.is_healed && self.cx.now >= self.ends_at {
                self.heal();
            }
            self.happen(event);
        }
    }

    fn is_over(&mut self) -> bool {
        if !self.cx.is_healed {
            return false;
        }
        if self.cx.model.has_siblings() {
            // Which of them is right nobody knows: who has gone along the other one stays there.
            return self.cx.now > self.ends_at + SETTLED;
        }
        if self.behind().next().is_none() {
            return true;
        }
        // Who has taken what nobody can verify takes its upstream for another one for good.
        if self.cx.now > self.ends_at + SETTLED && self.is_tainted() {
            return true;
        }
        if self.cx.now > self.ends_at + PATIENCE {
            let behind: Vec<_> = self
                .behind()
                .map(|(id, at)| format!("node {id} at {at:?}, needs and has told {:?}", self.feedback(id)))
                .collect();
            self.cx.fail(|| format!("all is well, and these do not come to the end: {}", behind.join(", ")));
            return true;
        }
        false
    }

    /// Whether a relay has WAL that differs from what was written where nobody can tell.
    fn is_tainted(&mut self) -> bool {
        let World { is_tainted, nodes, cx, .. } = self;
        *is_tainted.get_or_insert_with(|| {
            let taints = |node: &Node| matches!(node, Node::Relay(relay) if relay.is_tainted(cx));
            nodes.iter().flatten().any(taints)
        })
    }

    /// Who has not come to the end, and where they are.
    fn behind(&self) -> impl Iterator<Item = (NodeId, Option<Lsn>)> {
        let last = self.last_server().and_then(|last| self.nodes[last].as_ref());
        let end = last.and_then(|node| match node {
            Node::Server(server) => Some(server.place()),
            Node::Relay(_) | Node::Consumer(_) => None,
        });
        self.nodes.iter().enumerate().filter_map(move |(id, node)| {
            let (relay, at) = match node {
                Some(Node::Relay(relay)) => (id, relay.flushed()),
                Some(Node::Consumer(consumer)) => (consumer.host, consumer.place().map(|place| place.lsn)),
                _ => return None,
            };
            let end = end.filter(|end| at != Some(end.lsn) || !self.is_heard(id))?;
            (!self.cannot_follow(relay, end)).then_some((id, at))
        })
    }

    /// Whether what a node needs, by its own feedback or that of its consumers, is known to who is above it.
    fn is_heard(&self, id: NodeId) -> bool {
        let (needed, heard) = self.feedback(id);
        needed == heard
    }

    /// What a node needs, and what of that is known to who is above it.
    fn feedback(&self, id: NodeId) -> (Option<FeedbackHorizon>, Option<FeedbackHorizon>) {
        match &self.nodes[id] {
            Some(Node::Relay(relay)) => {
                let name = format!("relay_{id}");
                let above = relay.upstream(&self.cx).and_then(|above| self.nodes[above].as_ref());
                let heard = match above {
                    Some(Node::Server(server)) => server.feedback_of(&name),
                    Some(Node::Relay(above)) => above.feedback_of(id, Some(&name), &self.cx),
                    _ => None,
                };
                (relay.needed(), heard)
            }
            Some(Node::Consumer(consumer)) => {
                let host = self.nodes[consumer.host].as_ref();
                let heard = host.and_then(|host| match host {
                    Node::Relay(host) => host.feedback_of(id, consumer.slot.as_deref(), &self.cx),
                    Node::Server(_) | Node::Consumer(_) => None,
                });
                let needs = consumer.needs();
                (needs, needs.and(heard))
            }
            Some(Node::Server(_)) | None => (None, None),
        }
    }

    /// Whether the place where the relay's branch was left is not held by it any more, or by the one above it.
    fn cannot_follow(&self, relay: NodeId, end: Place) -> bool {
        let Some(Node::Relay(node)) = &self.nodes[relay] else { return false };
        let above = node.above().filter(|above| *above >= SERVERS);
        let Some(branch) = self.cx.branches.get(&relay).copied() else { return false };
        let common = self.cx.model.common(branch, end.branch);
        // Also where it has begun behind that place: what lies before is in a file of the timeline that it came from only.
        let left = self.cx.model.branches[branch].history.timeline_at(common.rewind(1));
        let lacks = || branch != end.branch && node.lacks(left);
        let has_removed = node.oldest().is_some_and(|oldest| common <= oldest);
        has_removed || lacks() || above.is_some_and(|above| self.cannot_follow(above, end))
    }

    /// The server on the newest timeline.
    fn last_server(&self) -> Option<NodeId> {
        let tli = |id: &NodeId| match &self.nodes[*id] {
            Some(Node::Server(server)) => Some(self.cx.model.branches[server.branch()].tli),
            _ => None,
        };
        (0..SERVERS).filter(|id| tli(id).is_some()).max_by_key(tli)
    }

    /// All faults end, and all servers but the one that has won.
    fn heal(&mut self) {
        self.cx.is_healed = true;
        self.cx.note("heals", 0, 0);
        let last = self.last_server();
        for id in self.cx.lines.ids() {
            self.cx.lines.set_black_hole(id, false);
            self.cx.lines.set_flips(id, 0);
            self.cx.lines.pause(id, Side::Client, false);
        }
        for id in 0..self.nodes.len() {
            let cx = &mut self.cx;
            match &mut self.nodes[id] {
                Some(Node::Relay(relay)) => relay.heal(),
                Some(Node::Server(server)) if Some(id) == last => {
                    server.settle(cx);
                }
                Some(Node::Server(server)) => server.end(cx),
                _ => {}
            }
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some((id, until)) = self.frozen_for(event) {
            return match event {
                Event::Wake(_) => self.cx.wake(id, until),
                _ => self.cx.at(until, event),
            };
        }
        match event {
            Event::Connect(conn) => self.connect(conn),
            Event::Deliver(conn, to) => self.deliver(conn, to),
            Event::Wake(id) => self.at_node(id, Node::run),
            Event::Flush(id, life) => self.at_node(id, |node, cx| {
                if let Node::Relay(relay) = node {
                    relay.flush(life, cx);
                }
            }),
            Event::Retain(id, life) => self.at_node(id, |node, cx| {
                if let Node::Relay(relay) = node {
                    relay.retain(life, cx);
                }
            }),
            Event::Start(id) => self.at_node(id, |node, cx| match node {
                Node::Relay(relay) => relay.start(cx),
                Node::Server(server) => server.start(cx),
                Node::Consumer(_) => {}
            }),
            Event::Power(id) => {
                self.frozen.remove(&id);
                self.at_node(id, |node, cx| {
                    if let Node::Relay(relay) = node
                        && relay.is_up()
                    {
                        relay.lose_power(cx);
                    }
                });
            }
            Event::Heal(id) => self.at_node(id, |node, cx| match node {
                Node::Relay(relay) => {
                    relay.heal();
                    cx.wake(id, cx.now);
                }
                Node::Server(_) | Node::Consumer(_) => {}
            }),
            Event::Mend(conn) => {
                self.cx.lines.set_black_hole(conn, false);
                self.cx.lines.set_flips(conn, 0);
                self.cx.lines.pause(conn, Side::Client, false);
            }
            Event::Work(id) => self.work(id),
            Event::Fault => self.fault(),
        }
    }

    /// The process that would do something and gets no time, and when it will.
    fn frozen_for(&self, event: Event) -> Option<(NodeId, u64)> {
        let id = match event {
            Event::Wake(id) | Event::Flush(id, _) | Event::Retain(id, _) => id,
            Event::Connect(conn) => self.cx.lines.get(conn)?.server,
            Event::Deliver(conn, to) => self.cx.lines.get(conn)?.node(to),
            _ => return None,
        };
        let until = self.frozen.get(&id).copied()?;
        (until > self.cx.now).then_some((id, until))
    }

    /// Has a node do something. What it sends goes out if it lives on.
    fn at_node(&mut self, id: NodeId, act: impl FnOnce(&mut Node, &mut Context)) {
        let Some(mut node) = self.nodes[id].take() else { return };
        let cx = &mut self.cx;
        cx.lines.hold();
        act(&mut node, cx);
        if let Node::Relay(relay) = &mut node {
            let is_dead = relay.is_up() && relay.disk.is_dead();
            cx.lines.release(!is_dead);
            if is_dead {
                relay.lose_power(cx);
            } else if relay.has_ended() {
                relay.exit(cx);
            }
        } else {
            cx.lines.release(true);
        }
        self.nodes[id] = Some(node);
    }

    fn connect(&mut self, conn: ConnId) {
        let Some((client, server)) = self.cx.lines.get(conn).map(|line| (line.client, line.server)) else {
            return;
        };
        let is_up = match &self.nodes[server] {
            Some(Node::Server(server)) => server.is_up,
            Some(Node::Relay(relay)) => relay.is_up(),
            _ => false,
        };
        if !is_up {
            return self.cx.lines.close(conn, Side::Server);
        }
        self.at_node(server, |node, cx| match node {
            Node::Server(server) => server.connect(conn, cx),
            Node::Relay(relay) => relay.connect(conn, cx),
            Node::Consumer(_) => {}
        });
        self.at_node(client, |node, cx| match node {
            Node::Relay(relay) => relay.connected(conn, cx),
            Node::Consumer(consumer) => consumer.connected(conn, cx),
            Node::Server(_) => {}
        });
    }

    fn deliver(&mut self, conn: ConnId, to: Side) {
        let Some(id) = self.cx.lines.get(conn).map(|line| line.node(to)) else { return };
        let delivery = self.cx.lines.deliver(conn, to, &mut self.cx.chance);
        match delivery {
            Delivery::Nothing => {}
            Delivery::Bytes(bytes) => {
                self.cx.note("bytes", conn, bytes.len() as u64);
                self.at_node(id, |node, cx| node.take(conn, to, bytes, cx));
            }
            Delivery::Closed => {
                self.cx.note("closed", conn, id as u64);
                self.at_node(id, |node, cx| node.closed(conn, to, cx));
            }
        }
        // There is room again.
        let sender = self.cx.lines.get(conn).map(|line| line.node(to.other()));
        if let Some(sender) = sender {
            self.cx.wake(sender, self.cx.now);
        }
    }

    fn work(&mut self, id: NodeId) {
        let is_large = self.weather.is_large;
        let pause = self.cx.chance.between(1000, self.weather.work_every);
        let mut goes_on = false;
        self.at_node(id, |node, cx| {
            if let Node::Server(server) = node {
                goes_on = server.is_busy;
                if server.is_up && server.is_busy {
                    server.work(cx, is_large);
                }
            }
        });
        if goes_on {
            self.cx.after(pause, Event::Work(id));
        }
    }

    fn fault(&mut self) {
        if self.cx.is_healed {
            return;
        }
        let pause = self.cx.chance.between(1000, self.weather.every);
        self.cx.after(pause, Event::Fault);
        if let Some(fault) = self.cx.chance.pick(&self.weather.faults.clone()) {
            self.cx.counts.faults += 1;
            self.cx.note("fault", fault as u64, 0);
            self.cx.say(|| format!("{fault:?}"));
            self.befall(fault);
        }
    }

    fn befall(&mut self, fault: Fault) {
        match fault {
            Fault::PowerAtOperation
            | Fault::Power
            | Fault::Exit
            | Fault::Stop
            | Fault::Hang
            | Fault::Full
            | Fault::FailSync
            | Fault::FailOperation => self.befall_relay(fault),
            Fault::Cut | Fault::BlackHole | Fault::Pause | Fault::Flip => self.befall_line(fault),
            Fault::ServerCrash => {
                let id = self.cx.chance.below(SERVERS as u64) as usize;
                self.at_node(id, |node, cx| {
                    if let Node::Server(server) = node
                        && server.is_up
                    {
                        server.crash(cx);
                    }
                });
            }
            Fault::PromoteConsumer => self.promote_consumer(),
            Fault::PromoteStandby => self.promote_standby(),
            Fault::DropSlot | Fault::ConsumerCrash | Fault::ConsumerRebuild => {
                let consumers = self.all(|node| matches!(node, Node::Consumer(_)));
                let Some(id) = self.cx.chance.pick(&consumers) else { return };
                self.at_node(id, |node, cx| {
                    let Node::Consumer(consumer) = node else { return };
                    match fault {
                        Fault::DropSlot => consumer.drop_slot(cx),
                        Fault::ConsumerCrash => consumer.crash(cx),
                        _ => consumer.begin_anew(cx),
                    }
                });
            }
            Fault::Clock => {
                let id = self.cx.chance.below(self.nodes.len() as u64) as NodeId;
                self.cx.set_clock(id);
            }
            Fault::Freeze => {
                let relays = self.all(|node| matches!(node, Node::Relay(relay) if relay.is_up()));
                let Some(id) = self.cx.chance.pick(&relays) else { return };
                let until = self.cx.now + self.cx.chance.between(10_000, 15_000_000);
                self.cx.note("freezes", id as u64, until);
                let known = self.frozen.entry(id).or_default();
                *known = until.max(*known);
            }
        }
    }

    fn all(&self, is: impl Fn(&Node) -> bool) -> Vec<NodeId> {
        (0..self.nodes.len()).filter(|id| self.nodes[*id].as_ref().is_some_and(&is)).collect()
    }

    fn befall_relay(&mut self, fault: Fault) {
        let relays = self.all(|node| matches!(node, Node::Relay(relay) if relay.is_up()));
        let Some(id) = self.cx.chance.pick(&relays) else { return };
        let lasts = self.cx.chance.between(10_000, 1_500_000);
        if matches!(fault, Fault::Power | Fault::Exit | Fault::Stop) {
            self.frozen.remove(&id);
        }
        self.at_node(id, |node, cx| {
            let Node::Relay(relay) = node else { return };
            let next = relay.disk.operations() + 1 + cx.chance.below(40);
            match fault {
                Fault::PowerAtOperation => relay.disk.die_at(next),
                Fault::Power => relay.lose_power(cx),
                Fault::Exit => relay.exit(cx),
                Fault::Stop if !relay.disk.is_hung() => relay.stop(cx),
                Fault::Hang => relay.disk.hang(),
                Fault::Full => {
                    relay.is_disk_ill = true;
                    relay.disk.set_free_space(Some(cx.chance.below(1 << 20)));
                }
                Fault::FailSync => {
                    relay.is_disk_ill = true;
                    relay.disk.fail_next_sync();
                }
                Fault::FailOperation => {
                    relay.is_disk_ill = true;
                    relay.disk.fail_at(next, EIO);
                }
                _ => {}
            }
            if matches!(fault, Fault::Hang | Fault::Full | Fault::FailSync | Fault::FailOperation) {
                cx.after(lasts, Event::Heal(id));
            }
        });
    }

    fn befall_line(&mut self, fault: Fault) {
        let lines = self.cx.lines.ids();
        let Some(conn) = self.cx.chance.pick(&lines) else { return };
        let is_relays = self.cx.lines.get(conn).is_some_and(|line| self.cx.relays.contains(&line.client));
        match fault {
            Fault::Cut => self.cx.lines.cut(conn, &mut self.cx.chance),
            Fault::BlackHole => self.cx.lines.set_black_hole(conn, true),
            Fault::Pause => self.cx.lines.pause(conn, Side::Client, true),
            // Zeros behind an XLOG_SWITCH have no checksum.
            Fault::Flip if is_relays && !self.weather.is_large => self.cx.lines.set_flips(conn, 8),
            _ => {}
        }
        let lasts = self.cx.chance.between(1000, 6_000_000);
        if fault != Fault::Cut {
            self.cx.after(lasts, Event::Mend(conn));
        }
    }

    /// The number of a new timeline: usually the next, sometimes one that somebody else has chosen, too.
    fn next_timeline(&mut self, from: TimelineId) -> TimelineId {
        let next = |tli: TimelineId| TimelineId::new(tli.as_u32() + 1).expect("not zero");
        if self.cx.chance.percent(10) { next(from) } else { next(self.cx.model.newest()) }
    }

    fn promote_consumer(&mut self) {
        let consumers =
            self.all(|node| matches!(node, Node::Consumer(consumer) if consumer.place().is_some()));
        let Some(id) = self.cx.chance.pick(&consumers) else { return };
        let Some(Node::Consumer(consumer)) = &self.nodes[id] else { return };
        let Some(place) = consumer.place() else { return };
        self.promote(place);
        self.at_node(id, |node, cx| {
            if let Node::Consumer(consumer) = node {
                consumer.begin_anew(cx);
            }
        });
    }

    /// Somebody who follows the first server, and may be behind what the relay has.
    fn promote_standby(&mut self) {
        let servers = self.all(|node| matches!(node, Node::Server(_)));
        let Some(id) = self.cx.chance.pick(&servers) else { return };
        let Some(Node::Server(server)) = &self.nodes[id] else { return };
        let Place { branch, lsn } = server.place();
        let behind = if self.cx.chance.percent(50) { 0 } else { self.cx.chance.below(20_000) };
        self.promote(Place { branch, lsn: lsn.rewind(behind) });
    }

    fn promote(&mut self, place: Place) {
        let Some(free) = (0..SERVERS).find(|id| self.nodes[*id].is_none()) else { return };
        let Some((at, _)) = self.cx.model.end_before(place.branch, place.lsn) else { return };
        if at <= self.cx.model.start() {
            return;
        }
        let tli = self.next_timeline(self.cx.model.branches[place.branch].tli);
        if tli <= self.cx.model.branches[place.branch].tli {
            return;
        }
        let branch = self.cx.model.fork(place.branch, at, tli);
        self.cx.counts.promotions += 1;
        self.cx.note("promotes", free as u64, at.as_u64());
        self.nodes[free] = Some(Node::Server(Box::new(Server::new(free, branch, &mut self.cx))));
        self.cx.after(1000, Event::Work(free));
        // The one before is a zombie, unless it is dead.
        if self.cx.chance.percent(50) {
            let others: Vec<_> = (0..SERVERS).filter(|id| *id != free).collect();
            for id in others {
                self.at_node(id, |node, cx| {
                    if let Node::Server(server) = node {
                        server.end(cx);
                    }
                });
            }
        }
    }
}

/// `EIO`
const EIO: i32 = 5;

impl Node {
    fn run(&mut self, cx: &mut Context) {
        match self {
            Node::Server(server) => server.run(cx),
            Node::Relay(relay) => relay.run(cx),
            Node::Consumer(consumer) => consumer.run(cx),
        }
    }

    fn take(&mut self, conn: ConnId, side: Side, bytes: Vec<u8>, cx: &mut Context) {
        match self {
            Node::Server(server) => server.take(conn, bytes, cx),
            Node::Relay(relay) => relay.take(conn, side, bytes, cx),
            Node::Consumer(consumer) => consumer.take(conn, bytes, cx),
        }
    }

    fn closed(&mut self, conn: ConnId, side: Side, cx: &mut Context) {
        match self {
            Node::Server(server) => server.closed(conn, cx),
            Node::Relay(relay) => relay.closed(conn, side, cx),
            Node::Consumer(consumer) => consumer.closed(conn, cx),
        }
    }
}

impl Weather {
    fn new(chance: &mut Random) -> Weather {
        // Few kinds of faults in each world, so that each kind meets the others in some, and is alone in some. What is worst
        // in a switch of timelines, or while WAL is removed, gets worlds of its own.
        let theme = chance.below(10);
        let mut faults = match theme {
            0 | 1 => vec![Fault::PromoteStandby, Fault::PromoteConsumer, Fault::PowerAtOperation],
            2 | 3 => vec![Fault::PowerAtOperation, Fault::Power, Fault::ConsumerCrash],
            _ => Vec::new(),
        };
        let kinds = if faults.is_empty() { chance.between(1, 7) } else { chance.below(3) };
        faults.extend((0..kinds).filter_map(|_| chance.pick(&FAULTS)));
        if chance.percent(60) {
            faults.push(Fault::PowerAtOperation);
        }
        let is_large = matches!(theme, 2 | 3) || chance.percent(8);
        let (every, work_every) = (chance.between(20_000, 1_500_000), chance.between(10_000, 400_000));
        Weather { faults, every, work_every, is_large }
    }
}
