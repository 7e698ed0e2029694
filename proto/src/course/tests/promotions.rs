//! Trees of promotions: a model of servers and of a relay answers each step from a tree, and the course is held to it.
//!
//! WAL has no bytes here: two timelines have the same up to where their ways part in the tree, whatever their numbers and
//! histories say.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const START: Lsn = Lsn::new(3 * SEG);
/// Steps of one round that are never needed: a level of the tree takes about ten.
const MANY_STEPS: usize = 150;
/// Rounds that are never needed.
const MANY_ROUNDS: usize = 12;

/// A timeline, and how far it gets in the end.
#[derive(Clone, Debug)]
struct Node {
    parent: Option<usize>,
    history: TimelineHistory,
    end: Lsn,
}

#[derive(Clone, Debug)]
struct Tree(Vec<Node>);

impl Tree {
    fn root(len: u64) -> Tree {
        Tree(vec![Node { parent: None, history: TimelineHistory::first(), end: START.advance(len) }])
    }

    fn tli(&self, node: usize) -> TimelineId {
        self.0[node].history.tli()
    }

    /// Where a timeline begins.
    fn begin(&self, node: usize) -> Lsn {
        self.0[node].history.begin().max(START)
    }

    fn promote(&mut self, parent: usize, at: Lsn, number: u32, len: u64) {
        let history = &self.0[parent].history;
        let old = history.ancestors().iter().map(|entry| (entry.tli.as_u32(), entry.end.as_u64()));
        let ancestors: Vec<_> = old.chain([(history.tli().as_u32(), at.as_u64())]).collect();
        let history = super::history(number, &ancestors);
        self.0.push(Node { parent: Some(parent), history, end: at.advance(len) });
    }

    /// The way from the root, with where each is left.
    fn way(&self, node: usize) -> Vec<(usize, Lsn)> {
        let mut way = vec![(node, Lsn::new(u64::MAX))];
        let mut at = node;
        while let Some(parent) = self.0[at].parent {
            way.insert(0, (parent, self.0[at].history.begin()));
            at = parent;
        }
        way
    }

    /// Whether both have the same WAL up to here.
    fn same(&self, a: usize, b: usize, at: Lsn) -> bool {
        let (a, b) = (self.way(a), self.way(b));
        let parts = a.iter().zip(&b).take_while(|(a, b)| a.0 == b.0).map(|(a, b)| a.1.min(b.1)).last();
        parts.is_some_and(|parts| at <= parts)
    }

    /// Whose WAL a server of this node has of a timeline, and where that was left.
    fn owner(&self, node: usize, tli: TimelineId) -> Option<(usize, Lsn)> {
        self.way(node).into_iter().find(|(owner, _)| self.tli(*owner) == tli)
    }

    fn has_twins(&self) -> bool {
        let mut numbers: Vec<_> = (0..self.0.len()).map(|node| self.tli(node)).collect();
        numbers.sort();
        numbers.windows(2).any(|pair| pair[0] == pair[1])
    }
}

/// A server at a moment.
#[derive(Clone, Debug)]
struct Server {
    node: usize,
    end: Lsn,
    slot: Slot,
    /// It is old, and cannot be asked for its slot.
    old: bool,
    /// It has no WAL any more before the segment of what is asked for next.
    forgets: bool,
    /// It goes on to this when it is waited for.
    grows: Lsn,
    /// It dies when it has sent this part of a stream, of 256.
    cut: Option<u8>,
}

/// What is held of a timeline: the WAL of this node, up to here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Branch {
    node: usize,
    end: Lsn,
    durable: Lsn,
}

/// A relay's data directory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Relay {
    followed: Option<TimelineId>,
    newest: Option<TimelineId>,
    branches: BTreeMap<TimelineId, Branch>,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Begun, and nothing has come.
    bare: bool,
}

/// How a round has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
enum End {
    /// It is streaming, and has all that the server has.
    Streaming,
    /// Nothing more comes of a server that is behind.
    Waiting,
    Refused(CourseError),
    /// The server died.
    Lost(&'static str),
    /// The relay did.
    Crashed,
}

/// A relay that is connected to a server, or to nobody.
struct World<'a> {
    tree: &'a Tree,
    relay: Relay,
    server: Server,
    accepted: bool,
    found: Option<TimelineId>,
    /// How often the server was waited for.
    waits: u32,
    end: Option<End>,
}

impl World<'_> {
    /// The present timeline.
    fn present(&self) -> (TimelineId, Branch) {
        let followed = self.relay.followed.expect("begun");
        (followed, self.relay.branches[&followed])
    }

    fn theirs(&self) -> &TimelineHistory {
        &self.tree.0[self.server.node].history
    }

    fn history_here(&self, tli: TimelineId) -> Option<TimelineHistory> {
        match tli {
            TimelineId::FIRST => Some(TimelineHistory::first()),
            tli => self.relay.histories.get(&tli).cloned(),
        }
    }

    /// Whether a timeline that is held is on the server's way.
    fn leads_on(&self, tli: TimelineId) -> bool {
        self.history_here(tli) == self.theirs().up_to(tli)
    }

    /// What the server has of it, if it is not gone, is what is held up to here.
    fn is_same(&self, branch: Branch, at: Lsn) -> bool {
        self.server.forgets || self.tree.same(branch.node, self.server.node, at)
    }

    fn perform(&mut self, step: Step<Failure>) -> Fact<Failure> {
        match step {
            Step::Connect { .. } => {
                (self.accepted, self.found) = (false, None);
                let slot = if self.server.old { Slot::Unknown } else { self.server.slot };
                let seg_size = SegSize::new(SEG).unwrap();
                Fact::Introduced(Introduced { identified: self.identify(), seg_size, slot })
            }
            Step::Identify => Fact::Identified(self.identify()),
            Step::FetchHistory { tli } => {
                assert_eq!(tli, self.theirs().tli());
                Fact::History(self.theirs().clone())
            }
            Step::FetchHistories | Step::HangUp => Fact::Done,
            Step::Look => self.look(),
            Step::WaitDurable => {
                let followed = self.relay.followed.expect("begun");
                let branch = self.relay.branches.get_mut(&followed).expect("held");
                branch.durable = branch.end;
                Fact::Done
            }
            Step::CreateSlot => {
                assert!(self.accepted || self.relay.followed.is_none() || self.relay.bare);
                if self.server.slot == Slot::Missing {
                    let reserved = Reserved { lsn: self.server.end, tli: Some(self.theirs().tli()) };
                    self.server.slot = Slot::There { reserved: Some(reserved) };
                }
                Fact::Done
            }
            Step::ReadSlot => Fact::Slot(self.server.slot),
            Step::ReadSlotInSql => {
                let _ = self.perform(Step::CreateSlot);
                let Slot::There { reserved } = self.server.slot else { panic!("just made") };
                let reserved = reserved.map(|reserved| Reserved { tli: None, ..reserved });
                Fact::Slot(Slot::There { reserved })
            }
            Step::Begin { at, tli } => self.begin(at, tli),
            Step::Find { history } => {
                let (present, branch) = self.present();
                assert!(present != history.tli() && branch.durable == branch.end);
                let tli = history.tli();
                let branch =
                    self.relay.branches.get(&tli).filter(|_| self.history_here(tli) == Some(history));
                self.found = branch.map(|_| tli);
                Fact::Found(branch.map(|branch| branch.end))
            }
            Step::WaitBehind { ours, theirs, first } => {
                assert!(ours.tli == self.theirs().tli() && ours.lsn > theirs && theirs == self.server.end);
                assert_eq!(first, self.waits == 0);
                self.waits += 1;
                if self.server.end == self.server.grows {
                    self.end = Some(End::Waiting);
                    return Fact::Stopped;
                }
                self.server.end = self.server.grows;
                Fact::Done
            }
            Step::ReadSeam { at, found } => {
                let (present, _) = self.present();
                let tli = if found { self.found.expect("found") } else { present };
                assert!(at <= self.relay.branches[&tli].end);
                let from = at.rewind(9000).max(at.rewind(1).seg_start(SegSize::new(SEG).unwrap()));
                Fact::Seam(match at > START {
                    true => Ok(Seam { from, end: at }),
                    false => Err("nothing is held before".to_owned()),
                })
            }
            Step::Compare { tli, from } => self.compare(tli, from),
            Step::Accept => {
                self.accept();
                Fact::Done
            }
            Step::TakeUp { newest } => self.take_up(newest),
            Step::Switch { to, at } => self.switch(to, at),
            Step::NoteFollowed => {
                let (present, _) = self.present();
                self.relay.newest = self.relay.newest.max(Some(present));
                Fact::Done
            }
            Step::Stream(stream) => self.stream(stream),
            Step::Pause { .. } | Step::Give(_) | Step::Over => panic!("the end of a round"),
        }
    }

    fn identify(&self) -> Identified {
        Identified { system_id: SystemId(9), tli: self.theirs().tli(), xlogpos: self.server.end }
    }

    fn look(&mut self) -> Fact<Failure> {
        self.found = None;
        let Some(followed) = self.relay.followed else { return Fact::Held(None) };
        let newest = self.relay.newest.filter(|newest| *newest > followed);
        let here = self.relay.branches.keys().map(|&tli| (tli, self.history_here(tli))).collect();
        Fact::Held(Some(Standing {
            ours: self.history_here(followed).expect("its history is kept"),
            held: self.relay.branches[&followed].end,
            is_bare: self.relay.bare,
            newest: newest.and_then(|newest| self.history_here(newest)),
            here,
        }))
    }

    fn begin(&mut self, at: Lsn, tli: TimelineId) -> Fact<Failure> {
        assert!(self.relay.followed.is_none() || self.relay.bare);
        self.relay.branches.clear();
        self.save_histories();
        let (node, left_at) = self.tree.owner(self.server.node, tli).expect("the slot is on its way");
        let start = at.seg_start(SegSize::new(SEG).unwrap());
        assert!(start <= left_at.min(self.server.end));
        // Nothing of it is held before something comes.
        self.relay.branches = [(tli, Branch { node, end: start, durable: start })].into();
        (self.relay.followed, self.relay.newest, self.relay.bare) = (Some(tli), Some(tli), true);
        Fact::Done
    }

    fn save_histories(&mut self) {
        for tli in self.theirs().clone().way() {
            let history = self.theirs().up_to(tli).expect("on the way");
            // Else what is held of another one of that number could not be read any more.
            let is_other = self.history_here(tli).is_some_and(|here| here != history);
            assert!(!is_other || !self.relay.branches.contains_key(&tli), "the history of {tli} is lost");
            if tli != TimelineId::FIRST {
                self.relay.histories.insert(tli, history);
            }
        }
    }

    fn accept(&mut self) {
        self.save_histories();
        self.accepted = true;
    }

    /// As a walsender reads it: `from` and what follows lie on that timeline's files.
    fn compare(&mut self, tli: TimelineId, from: Lsn) -> Fact<Failure> {
        let left_at = self.tree.owner(self.server.node, tli).expect("asks for what is in its history").1;
        let end = left_at.min(self.server.end);
        assert!(from <= end, "START_REPLICATION ahead of the end");
        let branch = self.found.map_or_else(|| self.present().1, |found| self.relay.branches[&found]);
        let way = self.found.unwrap_or(self.present().0);
        let at = self.theirs().switch_point(way).map_or(branch.end, |(left_at, _)| left_at.min(branch.end));
        if !self.is_same(branch, at) {
            return Fact::Failed(Failure::Passing("diverged"));
        }
        let follows = self.server.end.since(at) > SEG && self.server.cut.is_some();
        Fact::Compared(if follows { Compared::MoreFollows } else { Compared::Idle })
    }

    fn take_up(&mut self, newest: TimelineId) -> Fact<Failure> {
        assert!(self.accepted);
        let (present, branch) = self.present();
        assert_eq!(branch.durable, branch.end);
        let found = self.found.take().expect("found");
        assert!(found != present && self.leads_on(found), "{found} is not on the way");
        let branch = self.relay.branches[&found];
        let left_at = self.theirs().switch_point(found).map_or(branch.end, |(left_at, _)| left_at);
        assert!(self.is_same(branch, left_at.min(branch.end)), "what is taken up was compared");
        self.head_for(newest.max(found));
        self.relay.followed = Some(found);
        Fact::Done
    }

    /// What was headed for is not forgotten for an older one, and no server is followed that is neither newer nor on the
    /// way there.
    fn head_for(&mut self, newest: TimelineId) {
        self.is_no_older();
        assert!(Some(newest) >= self.relay.newest, "{newest} is older than {:?}", self.relay.newest);
        self.relay.newest = Some(newest);
    }

    fn is_no_older(&self) {
        let theirs = self.theirs();
        let newest = self.relay.newest.filter(|newest| theirs.tli() < *newest);
        let Some(newest) = newest.and_then(|newest| self.history_here(newest)) else { return };
        assert_eq!(newest.up_to(theirs.tli()).as_ref(), Some(theirs), "was passed over for {newest:?}");
    }

    fn switch(&mut self, to: TimelineId, at: Lsn) -> Fact<Failure> {
        self.begin_file(to, at);
        self.relay.followed = Some(to);
        self.head_for(self.relay.newest.max(Some(to)).expect("one"));
        Fact::Done
    }

    /// The first half of a switch: a crash may leave no more.
    fn begin_file(&mut self, to: TimelineId, at: Lsn) {
        assert!(self.accepted);
        let (present, branch) = self.present();
        assert!(branch.durable == branch.end && at <= branch.end);
        assert!(!self.relay.branches.contains_key(&to), "files of {to} are held");
        assert!(self.leads_on(to) && self.leads_on(present), "{to} is not on the way");
        assert_eq!(self.theirs().switch_point(present), Some((at, to)));
        assert!(self.is_same(branch, at), "what is continued was compared");
        self.relay.branches.insert(to, Branch { node: branch.node, end: at, durable: at });
    }

    fn stream(&mut self, stream: Stream) -> Fact<Failure> {
        let Stream { tli, from, until, compares } = stream;
        let (present, branch) = self.present();
        assert!(tli == present && until == branch.end && from <= until);
        assert!(self.relay.newest >= Some(tli), "noted");
        self.is_no_older();
        if !compares {
            assert!(self.accepted);
        }
        let ended = |end| Fact::Streamed(Streamed { came: false, verified: Some(until), end });
        if self.server.slot == Slot::Missing {
            return ended(StreamEnd::NoSlot(Failure::Passing("no slot")));
        }
        assert!(self.leads_on(tli), "{tli} is not on the way");
        let (owner, left_at) = self.tree.owner(self.server.node, tli).expect("on the way");
        let end = left_at.min(self.server.end);
        assert!(until <= end, "START_REPLICATION at {until}, ahead of {end}");
        if compares {
            if self.server.forgets {
                return ended(StreamEnd::Removed(Failure::Passing("removed")));
            }
            if !self.is_same(branch, until) {
                return Fact::Failed(Failure::Passing("diverged"));
            }
            self.accept();
        }
        assert!(self.is_same(branch, until), "what is continued was compared");
        if !self.tree.same(branch.node, self.server.node, until) && end > until {
            let lsn = until;
            return ended(StreamEnd::Bad(WalError::UnknownMagic { lsn, found: 0 }));
        }
        let sent = self.server.cut.map_or(end, |cut| until.advance(end.since(until) * u64::from(cut) / 256));
        if sent > until {
            let durable = Lsn::new(until.as_u64().midpoint(sent.as_u64()));
            let durable = branch.durable.max(durable);
            self.relay.branches.insert(tli, Branch { node: owner, end: sent, durable });
            self.relay.bare = false;
        }
        let streamed = |end| Fact::Streamed(Streamed { came: sent > until, verified: Some(sent), end });
        if self.server.cut.is_some() {
            return streamed(StreamEnd::Failed(Failure::Passing("cut")));
        }
        if left_at < Lsn::new(u64::MAX) {
            return streamed(StreamEnd::Timeline);
        }
        self.end = Some(End::Streaming);
        streamed(StreamEnd::Stopped)
    }
}

impl Relay {
    /// What is found after a crash. `hard` loses all that is not durable.
    fn crash(&mut self, hard: bool) {
        if self.bare {
            // Not a single record is here.
            *self = Relay { histories: std::mem::take(&mut self.histories), ..Relay::default() };
        }
        if hard {
            for branch in self.branches.values_mut() {
                branch.end = branch.durable;
            }
        }
        for branch in self.branches.values_mut() {
            branch.durable = branch.end;
        }
    }
}

/// When the relay's process dies.
#[derive(Clone, Copy, Debug)]
struct Crash {
    /// Before this step of the round.
    at: usize,
    /// In the midst of it, where that leaves something else.
    within: bool,
    hard: bool,
}

/// One round; the server keeps what was made there.
fn round(
    tree: &Tree,
    relay: &mut Relay,
    server: &mut Server,
    hosts: usize,
    crash: Option<Crash>,
) -> (End, usize) {
    let empty = relay.followed.is_none();
    let mut course = Course::new(CourseSetup { hosts, prefers_standby: false, empty });
    let (accepted, found, waits, end) = (false, None, 0, None);
    let mut world = World { tree, relay: relay.clone(), server: server.clone(), accepted, found, waits, end };
    let (mut fact, mut steps) = (Fact::Done, 0);
    let end = loop {
        let step = course.step(fact);
        if let Some(crash) = crash.filter(|crash| crash.at == steps) {
            match step {
                Step::Switch { to, at } if crash.within => world.begin_file(to, at),
                Step::Accept if crash.within => world.save_histories(),
                _ => {}
            }
            world.relay.crash(crash.hard);
            break End::Crashed;
        }
        match step {
            Step::Over => break world.end.take().expect("an end"),
            Step::Pause { error: Failure::Own(error), .. } => break End::Refused(error),
            Step::Pause { error: Failure::Passing(why), .. } => break End::Lost(why),
            Step::Pause { .. } | Step::Give(_) => panic!("{step:?}"),
            step => fact = world.perform(step),
        }
        steps += 1;
        assert!(steps < MANY_STEPS, "no end of it");
    };
    (*relay, *server) = (world.relay, world.server);
    (end, steps)
}

/// Rounds until nothing more comes of this server.
fn come_to(tree: &Tree, relay: &mut Relay, server: &Server) -> End {
    let mut server = server.clone();
    for _ in 0..MANY_ROUNDS {
        let (end, _) = round(tree, relay, &mut server, 2, None);
        match end {
            End::Lost("diverged") | End::Refused(_) | End::Streaming | End::Waiting => return end,
            End::Lost(_) | End::Crashed => {}
        }
    }
    panic!("too many rounds");
}

/// What somebody sees who does not know what was tried on the way.
fn seen(relay: &Relay, end: &End) -> String {
    let held = relay.followed.map(|tli| (tli, relay.branches[&tli].end));
    match end {
        End::Streaming => format!("streaming, {held:?}"),
        End::Refused(error) => format!("refused: {:?}", std::mem::discriminant(error)),
        end => format!("{end:?}"),
    }
}

#[derive(Clone, Debug)]
struct Promotion {
    parent: prop::sample::Index,
    /// Where, as a part of the parent's WAL, of 256.
    part: u8,
    at_boundary: bool,
    len: u64,
    /// Whether it takes a number that nobody has.
    knows: bool,
    /// It is the other one of two that were promoted at the same position, unless that is the root.
    twin: bool,
}

fn trees() -> impl Strategy<Value = Tree> {
    let promotion = (
        any::<prop::sample::Index>(),
        any::<u8>(),
        prop::bool::weighted(0.3),
        (0u64..3 * SEG / 8).prop_map(|len| len * 8),
        prop::bool::weighted(0.85),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(parent, part, at_boundary, len, knows, twin)| Promotion {
            parent,
            part,
            at_boundary,
            len,
            knows,
            twin,
        });
    ((SEG / 8..3 * SEG / 8), prop::collection::vec(promotion, 0..7))
        .prop_map(|(len, promotions)| grow(len * 8, &promotions))
}

fn grow(len: u64, promotions: &[Promotion]) -> Tree {
    let mut tree = Tree::root(len);
    for promotion in promotions {
        let parent = promotion.parent.index(tree.0.len());
        if let (true, Some(grandparent)) = (promotion.twin, tree.0[parent].parent) {
            let number = tree.tli(parent).as_u32();
            tree.promote(grandparent, tree.0[parent].history.begin(), number, promotion.len);
            continue;
        }
        if tree.way(parent).len() > 5 {
            continue;
        }
        // Of a fork where all begins nothing common is held.
        let (begin, end) = (tree.begin(parent).max(START.advance(8)), tree.0[parent].end);
        let mid = begin.advance(end.since(begin) / 8 * u64::from(promotion.part) / 255 * 8);
        let boundary = mid.seg_start(SegSize::new(SEG).unwrap());
        let at = if promotion.at_boundary && boundary >= begin { boundary } else { mid };
        let highest = (0..tree.0.len()).map(|node| tree.tli(node)).max().expect("a root");
        let number = if promotion.knows { highest } else { tree.tli(parent) }.as_u32() + 1;
        tree.promote(parent, at, number, promotion.len);
    }
    tree
}

#[derive(Clone, Debug)]
struct Visit {
    node: prop::sample::Index,
    part: u8,
    slot: u8,
    forgets: bool,
    cut: Option<u8>,
    hosts: usize,
    crash: Option<Crash>,
}

fn crashes() -> impl Strategy<Value = Crash> {
    (0usize..30, any::<bool>(), any::<bool>()).prop_map(|(at, within, hard)| Crash { at, within, hard })
}

fn visits() -> impl Strategy<Value = Vec<Visit>> {
    let visit = (
        any::<prop::sample::Index>(),
        any::<u8>(),
        any::<u8>(),
        prop::bool::weighted(0.05),
        prop::option::of(any::<u8>()),
        1usize..3,
        prop::option::weighted(0.3, crashes()),
    )
        .prop_map(|(node, part, slot, forgets, cut, hosts, crash)| Visit {
            node,
            part,
            slot,
            forgets,
            cut,
            hosts,
            crash,
        });
    prop::collection::vec(visit, 0..7)
}

fn server(tree: &Tree, visit: &Visit) -> Server {
    let node = visit.node.index(tree.0.len());
    let (begin, end) = (tree.begin(node), tree.0[node].end);
    let at = begin.advance(end.since(begin) / 8 * u64::from(visit.part) / 255 * 8);
    // Where a slot is there it keeps all WAL, so that what is held begins at the same place.
    let reserved = Reserved { lsn: START, tli: Some(TimelineId::FIRST) };
    let slot = match visit.slot % 8 {
        0 => Slot::Missing,
        _ => Slot::There { reserved: Some(reserved) },
    };
    let (old, forgets, cut) = (visit.slot.is_multiple_of(3), visit.forgets, visit.cut);
    Server { node, end: at, slot, old, forgets, grows: end, cut }
}

fn wander(tree: &Tree, visits: &[Visit]) -> Relay {
    let mut relay = Relay::default();
    for visit in visits {
        let before = relay.clone();
        round(tree, &mut relay, &mut server(tree, visit), visit.hosts, visit.crash);
        kept(&before, &relay);
    }
    relay
}

/// What was durable is held, and what was headed for is no older.
fn kept(before: &Relay, after: &Relay) {
    if before.bare || before.followed.is_none() {
        return;
    }
    assert!(after.newest >= before.newest);
    for (tli, branch) in &before.branches {
        assert!(after.branches[tli].end >= branch.durable, "WAL of {tli} was lost");
    }
}

/// With the highest number, and all of its WAL.
fn newest(tree: &Tree) -> Server {
    let node = (0..tree.0.len()).max_by_key(|&node| tree.tli(node)).expect("a root");
    let reserved = Reserved { lsn: START, tli: Some(TimelineId::FIRST) };
    let (end, slot) = (tree.0[node].end, Slot::There { reserved: Some(reserved) });
    Server { node, end, slot, old: false, forgets: false, grows: end, cut: None }
}

/// Whether it is known from the start that the newest timeline can be reached: nobody took a number twice, no server had
/// WAL removed, and what is held begins where all begin.
fn is_plain(tree: &Tree, visits: &[Visit]) -> bool {
    !tree.has_twins() && visits.iter().all(|visit| !visit.forgets && visit.slot % 8 != 0)
}

/// `PROPTEST_CASES` makes it more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(2000), failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn everybody_ends_on_the_newest_timeline_or_hears_why_not(tree in trees(), visits in visits()) {
        let mut relay = wander(&tree, &visits);
        let (before, server) = (relay.clone(), newest(&tree));
        let end = come_to(&tree, &mut relay, &server);
        kept(&before, &relay);
        match end {
            End::Streaming => {
                let branch = relay.branches[&relay.followed.unwrap()];
                prop_assert_eq!(relay.followed, Some(tree.tli(server.node)));
                prop_assert_eq!(branch.end, server.end);
                prop_assert!(tree.same(branch.node, server.node, server.end) || !is_plain(&tree, &visits));
            }
            end => prop_assert!(!is_plain(&tree, &visits), "{:?}", end),
        }
    }

    #[test]
    fn a_crash_between_any_two_steps_changes_nothing_of_the_end(
        tree in trees(),
        visits in visits(),
        last in visits(),
        within: bool,
        hard: bool,
    ) {
        let mut relay = wander(&tree, &visits);
        // What is lost in the first crash is what came in this round.
        relay.crash(false);
        let servers = last.iter().take(1).map(|visit| Server { cut: None, forgets: false, ..server(&tree, visit) });
        for server in servers.chain([newest(&tree)]) {
            let mut calm = relay.clone();
            let expected = come_to(&tree, &mut calm, &server);
            let steps = round(&tree, &mut relay.clone(), &mut server.clone(), 2, None).1;
            for at in 0..=steps {
                let (mut relay, mut server) = (relay.clone(), server.clone());
                let crash = Crash { at, within, hard };
                round(&tree, &mut relay, &mut server, 2, Some(crash));
                let end = come_to(&tree, &mut relay, &server);
                prop_assert_eq!(seen(&relay, &end), seen(&calm, &expected), "{:?}", crash);
            }
        }
    }
}
