//! What may be reported: the rules, applied to what consumers have reported.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::expression::{Expression, MemberName, Pick, Term};
use super::lapse::{Budget, Spending, Spent};
use super::{Level, Positions, Rules};
use crate::lsn::Lsn;

/// The most that passes between two looks: who was held up for longer has heard nothing meanwhile, and nobody was silent.
const LARGEST_STEP: Duration = Duration::from_secs(1);
/// How long a position cannot be reported at all before that is told.
const SILENCE: Duration = Duration::from_secs(10);
/// How long nobody carries a name before that is told.
const ABSENCE: Duration = Duration::from_secs(60);
/// What the relay itself has to say of WAL: nothing against it.
const NO_LIMIT: u64 = u64::MAX;

/// Applies [`Rules`]: takes what consumers report, the relay's own positions and the time, and says what may be reported
/// upstream.
///
/// **Invariants.** What is reported is here, and was fulfilled by the rule, or by the one it has lapsed to, at one moment on
/// this timeline. It never falls on a timeline. `apply <= flush <= write`. Of a consumer nothing is known before its
/// first report, and of none after the timeline has changed.
#[derive(Debug)]
pub struct Acknowledger {
    rules: Rules,
    names: Vec<Name>,
    levels: [Watched; 3],
    /// What the rule is to be when it lapses.
    lapsed_to: Option<Compiled>,
    members: BTreeMap<u32, Member>,
    /// What is reported, at least.
    reported: Positions,
    /// Whether this timeline was reported of.
    /// What has gone out, of this process or of one before.
    sent: Option<Positions>,
    /// Whether the upstream waits for this relay, and whether one did on this timeline.
    is_awaited: bool,
    was_awaited: bool,
    clock: Clock,
    spending: Spending,
    events: VecDeque<Event>,
}

/// Something for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The rule was not fulfilled in time: the other one holds.
    Lapsed {
        /// Of which position.
        level: Level,
        /// How far the rule is fulfilled.
        reached: Option<Lsn>,
        /// How far WAL is that waits for it.
        wanted: Lsn,
        /// How long it may go on; `None` for ever.
        left: Option<Duration>,
    },
    /// It holds again.
    Returned {
        /// Of which position.
        level: Level,
        /// How long it did not.
        lasted: Duration,
    },
    /// It holds again although it is not fulfilled: it has not held for as long as it may.
    Spent {
        /// In how long it may lapse again.
        full_in: Duration,
    },
    /// Nothing can be reported, and the upstream waits for this relay.
    Silent {
        /// Of which position.
        level: Level,
    },
    /// Something can be reported again.
    Heard {
        /// Of which position.
        level: Level,
    },
    /// Nobody has carried a name for a minute.
    Absent {
        /// The name.
        name: MemberName,
    },
    /// Somebody carries it again.
    Came {
        /// The name.
        name: MemberName,
    },
    /// Two carry it; the one that came last counts, from its first report on.
    Shared {
        /// The name.
        name: MemberName,
    },
}

/// What is reported of a position, and what keeps that back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Of which position.
    pub level: Level,
    /// What can be reported by its rule, or the one it has lapsed to, were it not for the other positions.
    pub reached: Option<Lsn>,
    /// How much of what is here that is less.
    pub held_bytes: u64,
    /// How long the oldest WAL beyond it has waited for those whom the rule names; `None` while it names nobody, or nothing does.
    pub waiting: Option<Duration>,
    /// For whom: those that the rule names and that have not got that.
    pub waits_for: Vec<MemberName>,
    /// How long the rule has lapsed.
    pub lapsed: Option<Duration>,
}

/// What is left of the time that rules may have lapsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// So much.
    pub left: Duration,
    /// In how long there is all of it again.
    pub full_in: Duration,
}

/// How a consumer counts, as `pg_stat_replication` says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It does not.
    Async,
    /// It is one of those that all, or the first of which, are waited for; its place in the list.
    Sync(usize),
    /// It is one of those of which any are waited for.
    Quorum,
}

/// One that is connected.
#[derive(Debug, Default)]
struct Member {
    /// What it has of this timeline, by level, 0 for nothing; `None` while it does not count.
    has: Option<[u64; 3]>,
}

impl Member {
    fn at(&self, level: usize) -> u64 {
        self.has.and_then(|has| has.get(level).copied()).unwrap_or(0)
    }
}

/// A name of the rules.
#[derive(Debug)]
struct Name {
    name: MemberName,
    /// Who carries it, in the order in which they came.
    carriers: Vec<u32>,
    /// Since when nobody does.
    missed_since: Option<Duration>,
    is_told: bool,
}

/// An expression whose names are numbers.
#[derive(Debug, Default)]
struct Compiled(Vec<CompiledTerm>);

#[derive(Debug)]
enum CompiledTerm {
    Connected,
    Group { pick: Pick, names: Vec<usize> },
}

/// A level and what has come of its rule.
#[derive(Debug)]
struct Watched {
    level: Level,
    rule: Compiled,
    /// What the rule says, and the one it lapses to, the relay's own positions aside.
    strict: u64,
    loose: u64,
    /// How far the relay itself is.
    here: u64,
    /// What is waited for, and since when.
    wait: Option<(u64, Duration)>,
    /// What is not reported, and since when, whatever may lapse.
    held: Option<(u64, Duration)>,
    lapsed_since: Option<Duration>,
    silent_since: Option<Duration>,
    is_told: bool,
}

/// Time as far as it counts.
#[derive(Debug)]
struct Clock {
    looked: Instant,
    shown: Duration,
}

impl Acknowledger {
    /// Nobody is connected.
    pub fn new(rules: Rules, now: Instant) -> Acknowledger {
        let mut this = Acknowledger {
            rules: Rules::default(),
            names: Vec::new(),
            levels: Level::ALL.map(Watched::new),
            lapsed_to: None,
            members: BTreeMap::new(),
            reported: Positions::default(),
            sent: None,
            is_awaited: false,
            was_awaited: false,
            clock: Clock { looked: now, shown: Duration::ZERO },
            spending: Spending::default(),
            events: VecDeque::new(),
        };
        this.set_rules(rules, std::iter::empty());
        this
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Other rules hold from now on. `members` are those that are connected, in the order in which they came: number, role
    /// and name.
    pub fn set_rules<'a>(&mut self, rules: Rules, members: impl Iterator<Item = (u32, &'a str, &'a str)>) {
        self.names.clear();
        let names = &mut self.names;
        let lapses_to = |rules: &Rules| rules.lapse.as_ref().map(|lapse| lapse.to.clone());
        let is_lapse_same = lapses_to(&self.rules) == lapses_to(&rules);
        for watched in &mut self.levels {
            let level = watched.level;
            let before = std::mem::replace(watched, Watched::new(level));
            watched.rule = Compiled::of(rules.at(level), names);
            watched.here = before.here;
            if is_lapse_same && self.rules.at(level) == rules.at(level) {
                // A new limit or budget is no new beginning.
                (watched.wait, watched.lapsed_since) = (before.wait, before.lapsed_since);
                watched.held = before.held;
                (watched.silent_since, watched.is_told) = (before.silent_since, before.is_told);
            } else if let Some(since) = before.lapsed_since {
                let lasted = self.clock.shown.saturating_sub(since);
                self.events.push_back(Event::Returned { level, lasted });
            }
        }
        self.lapsed_to = rules.lapse.as_ref().map(|lapse| Compiled::of(&lapse.to, names));
        self.rules = rules;
        for name in &mut self.names {
            name.missed_since = Some(self.clock.shown);
        }
        for (id, role, name) in members {
            self.enter(id, role, name, false);
        }
        self.evaluate();
    }

    /// Whether the upstream waits for this relay's reports.
    pub fn set_awaited(&mut self, is_awaited: bool) {
        self.is_awaited = is_awaited;
        self.was_awaited |= is_awaited;
    }

    /// Whether an upstream has waited for this relay on this timeline.
    pub fn was_awaited(&self) -> bool {
        self.was_awaited
    }

    /// What was reported of this timeline at most, by this process or as far as it is known of one before; `None` if nothing
    /// was.
    pub fn reported(&self) -> Option<Positions> {
        self.sent
    }

    /// These positions go out to the upstream.
    pub fn note_sent(&mut self, sent: Positions) {
        if sent != Positions::default() {
            self.sent = Some(self.sent.unwrap_or_default().max(sent));
        }
    }

    /// A consumer has connected. Its number is nobody else's.
    pub fn connect(&mut self, id: u32, role: &str, name: &str) {
        self.disconnect(id);
        self.members.insert(id, Member::default());
        self.enter(id, role, name, true);
    }

    /// A consumer has reported its positions; `None` where they are not on the way to what is received. Whether that
    /// moves what can be reported.
    pub fn report(&mut self, id: u32, positions: Option<Positions>) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        let number = |position: Option<Lsn>| position.map_or(0, Lsn::as_u64);
        let has = positions.map(|at| [number(at.write), number(at.flush), number(at.apply)]);
        let had = std::mem::replace(&mut member.has, has);
        let matters = match (had, has) {
            (Some(had), Some(has)) => self.matters(had, has),
            (None, None) => false,
            _ => true,
        };
        matters && self.evaluate()
    }

    /// A consumer is gone. Whether that moves what can be reported.
    pub fn disconnect(&mut self, id: u32) -> bool {
        let Some(member) = self.members.remove(&id) else { return false };
        for name in &mut self.names {
            name.carriers.retain(|carrier| *carrier != id);
            if name.carriers.is_empty() && name.missed_since.is_none() {
                name.missed_since = Some(self.clock.shown);
            }
        }
        member.has.is_some() && self.evaluate()
    }

    /// Another timeline is received, or the same one anew: nothing is known of anybody.
    pub fn begin_timeline(&mut self) {
        for member in self.members.values_mut() {
            member.has = None;
        }
        (self.reported, self.sent) = (Positions::default(), None);
        self.was_awaited = false;
        for at in 0..self.levels.len() {
            self.return_to_rule(at);
        }
        for watched in &mut self.levels {
            (watched.here, watched.wait, watched.silent_since, watched.held) = (0, None, None, None);
        }
        self.evaluate();
    }

    /// The upstream was told of `flush` on this timeline before this process began.
    pub fn told_before(&mut self, flush: Lsn) {
        let told = Positions { write: flush.valid(), flush: flush.valid(), apply: None };
        self.reported = self.reported.max(told);
        self.note_sent(told);
    }

    /// What was used of the budget in the time for which it is, if anything was.
    pub fn spent(&self, now: Instant) -> Option<Spent> {
        self.spending.spent(now)
    }

    /// A process before this one has used so much of it.
    pub fn spent_before(&mut self, spent: Spent, now: Instant) {
        self.spending = Spending::of(spent, now);
    }

    /// What is to be reported with WAL written and durable up to here. To be asked at least every second while there is an
    /// upstream to report to.
    pub fn compose(&mut self, write: Lsn, flush: Lsn, now: Instant) -> Positions {
        let passed = self.clock.step(now);
        let (write, flush) = (write.as_u64(), flush.min(write).as_u64());
        for watched in &mut self.levels {
            watched.here = if watched.level == Level::Write { write } else { flush };
        }
        self.judge(passed, now);
        for watched in &mut self.levels {
            watched.note_held(self.clock.shown);
        }
        self.look_for_names();
        let mut value = NO_LIMIT;
        let mut composed = Positions::default();
        for watched in &self.levels {
            // What was told before this process began may be more than was found here.
            let told = self.reported.at(watched.level).map_or(0, Lsn::as_u64).min(watched.here);
            value = watched.value().min(value).max(told);
            composed.set(watched.level, Lsn::new(value).valid());
        }
        self.reported = self.reported.max(composed);
        composed
    }

    /// What is reported of each position, and what keeps that back, as of the last time that it was composed.
    pub fn reports(&self) -> Vec<Report> {
        let report = |(at, watched): (usize, &Watched)| {
            let named = watched.held.filter(|_| watched.rule.names_somebody());
            let since = |since: Duration| self.clock.shown.saturating_sub(since);
            // While it has lapsed, those who keep it from returning.
            let unanswered = watched.wait.filter(|_| watched.lapsed_since.is_some()).or(named);
            Report {
                level: watched.level,
                reached: Lsn::new(watched.value()).valid(),
                held_bytes: watched.here.saturating_sub(watched.value()),
                waiting: named.map(|(_, begun)| since(begun)),
                waits_for: unanswered
                    .map(|(wanted, _)| self.lacking(watched, at, wanted))
                    .unwrap_or_default(),
                lapsed: watched.lapsed_since.map(since),
            }
        };
        self.levels.iter().enumerate().map(report).collect()
    }

    /// Whether the upstream waits for this relay.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// What is left of the budget; `None` where there is none.
    pub fn allowance(&self, now: Instant) -> Option<Allowance> {
        let budget = self.rules.lapse.as_ref()?.budget;
        let left = self.spending.left(budget)?;
        Some(Allowance { left, full_in: self.spending.full_in(budget, now) })
    }

    /// Those whom a rule names that have less than what is wanted.
    fn lacking(&self, watched: &Watched, level: usize, wanted: u64) -> Vec<MemberName> {
        let mut lacking = Vec::new();
        for term in &watched.rule.0 {
            let CompiledTerm::Group { names, .. } = term else { continue };
            let names = names.iter().filter(|name| self.reached_by(**name, level) < wanted);
            for name in names.filter_map(|name| self.names.get(*name)) {
                if !lacking.contains(&name.name) {
                    lacking.push(name.name.clone());
                }
            }
        }
        lacking
    }

    /// The next thing that is for the log.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How a consumer counts for `flush`, or where that names nobody, for `apply`, or `write`. While that has lapsed, nobody
    /// does.
    pub fn standing(&self, id: u32) -> Standing {
        let order = [Level::Flush, Level::Apply, Level::Write];
        let watched = order.iter().filter_map(|level| self.levels.iter().find(|it| it.level == *level));
        let mut named = watched.filter(|watched| watched.rule.names_somebody());
        let Some(watched) = named.next().filter(|watched| watched.lapsed_since.is_none()) else {
            return Standing::Async;
        };
        let mut standing = Standing::Async;
        for term in &watched.rule.0 {
            let CompiledTerm::Group { pick, names } = term else { continue };
            let is_its = |name: &usize| self.names.get(*name).is_some_and(|name| name.carriers.contains(&id));
            match (names.iter().position(is_its), pick) {
                (Some(at), Pick::All | Pick::First(_)) => return Standing::Sync(at + 1),
                (Some(_), Pick::Any(_)) => standing = Standing::Quorum,
                (None, _) => {}
            }
        }
        standing
    }

    fn enter(&mut self, id: u32, role: &str, name: &str, is_new: bool) {
        for carried in self.names.iter_mut().filter(|carried| carried.name.is_of(role, name)) {
            if !carried.carriers.is_empty() && is_new {
                self.events.push_back(Event::Shared { name: carried.name.clone() });
            }
            carried.carriers.push(id);
            carried.missed_since = None;
            if std::mem::take(&mut carried.is_told) {
                self.events.push_back(Event::Came { name: carried.name.clone() });
            }
        }
    }

    /// Whether a rule could say something else. Besides who is there, it counts who has more than it says: those who had
    /// that before change nothing, nor those who still have not.
    fn matters(&self, had: [u64; 3], has: [u64; 3]) -> bool {
        self.levels.iter().zip(had.into_iter().zip(has)).any(|(watched, (had, has))| {
            let passes = |said: &u64| had <= *said && *said < has;
            has < had || (had == 0 && has > 0) || [watched.strict, watched.loose].iter().any(passes)
        })
    }

    /// Applies the rules anew; whether that moves what can be reported.
    fn evaluate(&mut self) -> bool {
        let mut moved = false;
        for at in 0..self.levels.len() {
            let Some(watched) = self.levels.get(at) else { continue };
            let strict = self.apply(&watched.rule, at);
            let loose = self.lapsed_to.as_ref().map_or(0, |rule| self.apply(rule, at));
            if let Some(watched) = self.levels.get_mut(at) {
                let before = watched.value();
                (watched.strict, watched.loose) = (strict, loose);
                moved |= watched.value() != before;
            }
        }
        moved
    }

    /// What a rule says of a level.
    fn apply(&self, rule: &Compiled, level: usize) -> u64 {
        let of_term = |term: &CompiledTerm| match term {
            CompiledTerm::Connected => {
                let has = self.members.values().map(|member| member.at(level));
                has.filter(|has| *has > 0).min().unwrap_or(0)
            }
            CompiledTerm::Group { pick, names } => {
                pick.of(names.iter().map(|name| self.reached_by(*name, level)))
            }
        };
        rule.0.iter().map(of_term).min().unwrap_or(NO_LIMIT)
    }

    /// How far the one of its carriers is that came last, of those who have reported.
    fn reached_by(&self, name: usize, level: usize) -> u64 {
        let carriers = self.names.get(name).map(|name| name.carriers.as_slice()).unwrap_or_default();
        let mut members = carriers.iter().rev().filter_map(|id| self.members.get(id));
        members.find(|member| member.has.is_some()).map_or(0, |member| member.at(level))
    }

    fn judge(&mut self, passed: Duration, now: Instant) {
        self.look_for_silence();
        let Some((timeout, budget)) = self.rules.lapse.as_ref().map(|it| (it.timeout, it.budget)) else {
            return;
        };
        if self.levels.iter().any(|watched| watched.lapsed_since.is_some()) {
            self.spending.spend(passed, now);
        }
        self.spending.look(budget, now);
        for at in 0..self.levels.len() {
            self.judge_level(at, timeout, budget);
        }
        let is_lapsed = self.levels.iter().any(|watched| watched.lapsed_since.is_some());
        if is_lapsed && self.spending.left(budget) == Some(Duration::ZERO) {
            self.levels.iter_mut().for_each(|watched| watched.lapsed_since = None);
            self.events.push_back(Event::Spent { full_in: self.spending.full_in(budget, now) });
        }
    }

    fn judge_level(&mut self, at: usize, timeout: Duration, budget: Option<Budget>) {
        let (now, left) = (self.clock.shown, self.spending.left(budget));
        // Where nobody is named, nobody is waited for in particular: one that replays late on purpose must not use up what
        // the others have.
        let Some(watched) = self.levels.get_mut(at).filter(|it| it.rule.names_somebody()) else { return };
        let is_prompt = watched.follow(now, timeout / 2);
        if watched.lapsed_since.is_some() {
            if is_prompt {
                self.return_to_rule(at);
            }
            return;
        }
        let is_late = watched.wait.is_some_and(|(_, since)| now.saturating_sub(since) >= timeout);
        if is_late && left != Some(Duration::ZERO) {
            watched.lapsed_since = Some(now);
            self.events.push_back(Event::Lapsed {
                level: watched.level,
                reached: Lsn::new(watched.strict).valid(),
                wanted: Lsn::new(watched.here),
                left,
            });
        }
    }

    fn return_to_rule(&mut self, at: usize) {
        let now = self.clock.shown;
        if let Some(watched) = self.levels.get_mut(at)
            && let Some(since) = watched.lapsed_since.take()
        {
            let lasted = now.saturating_sub(since);
            self.events.push_back(Event::Returned { level: watched.level, lasted });
        }
    }

    fn look_for_silence(&mut self) {
        let (now, is_awaited) = (self.clock.shown, self.is_awaited);
        for watched in &mut self.levels {
            let level = watched.level;
            if watched.value() > 0 || watched.here == 0 || !is_awaited {
                watched.silent_since = None;
                if std::mem::take(&mut watched.is_told) {
                    self.events.push_back(Event::Heard { level });
                }
                continue;
            }
            let since = *watched.silent_since.get_or_insert(now);
            if !watched.is_told && now.saturating_sub(since) >= SILENCE {
                watched.is_told = true;
                self.events.push_back(Event::Silent { level });
            }
        }
    }

    fn look_for_names(&mut self) {
        let now = self.clock.shown;
        for name in self.names.iter_mut().filter(|name| !name.is_told) {
            if name.missed_since.is_some_and(|since| now.saturating_sub(since) >= ABSENCE) {
                name.is_told = true;
                self.events.push_back(Event::Absent { name: name.name.clone() });
            }
        }
    }
}

impl Watched {
    fn new(level: Level) -> Watched {
        Watched {
            level,
            rule: Compiled::default(),
            strict: 0,
            loose: 0,
            here: 0,
            wait: None,
            held: None,
            lapsed_since: None,
            silent_since: None,
            is_told: false,
        }
    }

    /// What can be reported, were it not for the other levels.
    fn value(&self) -> u64 {
        let loose = if self.lapsed_since.is_some() { self.loose } else { 0 };
        self.strict.max(loose).min(self.here)
    }

    /// Looks how much of what is here can be reported.
    fn note_held(&mut self, now: Duration) {
        let value = self.value();
        self.held = match self.held {
            _ if value >= self.here => None,
            Some((wanted, since)) if value < wanted => Some((wanted, since)),
            _ => Some((self.here, now)),
        };
    }

    /// Looks how far the rule is fulfilled; whether all that is here is, or what was waited for was within this time.
    fn follow(&mut self, now: Duration, within: Duration) -> bool {
        if self.strict >= self.here {
            self.wait = None;
            return true;
        }
        match self.wait {
            Some((wanted, _)) if self.strict < wanted => false,
            before => {
                self.wait = Some((self.here, now));
                before.is_some_and(|(_, since)| now.saturating_sub(since) <= within)
            }
        }
    }
}

impl Clock {
    /// What has passed, as far as it counts.
    fn step(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.looked).min(LARGEST_STEP);
        self.looked = self.looked.max(now);
        self.shown += passed;
        passed
    }
}

impl Compiled {
    fn of(expression: &Expression, names: &mut Vec<Name>) -> Compiled {
        let mut number = |member: &MemberName| {
            names.iter().position(|name| name.name == *member).unwrap_or_else(|| {
                let name = member.clone();
                names.push(Name { name, carriers: Vec::new(), missed_since: None, is_told: false });
                names.len() - 1
            })
        };
        let term = |term: &Term| match term {
            Term::Local => None,
            Term::Connected => Some(CompiledTerm::Connected),
            Term::Group(group) => {
                let names = group.members.iter().map(&mut number).collect();
                Some(CompiledTerm::Group { pick: group.pick, names })
            }
        };
        Compiled(expression.terms().iter().filter_map(term).collect())
    }

    fn names_somebody(&self) -> bool {
        self.0.iter().any(|term| matches!(term, CompiledTerm::Group { .. }))
    }
}

impl Pick {
    /// How far so many of them are; 0 where one has nothing.
    fn of(self, has: impl Iterator<Item = u64>) -> u64 {
        match self {
            Pick::All => has.min().unwrap_or(0),
            // PG: SyncRepGetNthLatestSyncRecPtr
            Pick::Any(count) => {
                let mut has: Vec<u64> = has.collect();
                has.sort_unstable_by(|a, b| b.cmp(a));
                count.checked_sub(1).and_then(|at| has.get(at).copied()).unwrap_or(0)
            }
            // PG: SyncRepGetOldestSyncRecPtr
            Pick::First(count) => {
                let first: Vec<u64> = has.filter(|has| *has > 0).take(count).collect();
                if first.len() < count { 0 } else { first.into_iter().min().unwrap_or(0) }
            }
        }
    }
}
