//! What may be reported upstream of what the relay and its consumers have: [`Acknowledger`] for many threads, and its words
//! in the log.

use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use tokio::sync::watch;
use walrelay_proto::ack::{
    Acknowledger, Allowance, Event, Level, Positions, Report, Rules, Spent, Standing, may_wait_for, names_of,
};
use walrelay_proto::{Lsn, PgTimestamp};

use super::{ConsumerIdentity, lock};
use crate::mutation::{self, Mutation};

/// Who must have WAL before it is reported, and how far that is so.
#[derive(Debug)]
pub struct Acknowledgements {
    machine: Mutex<Acknowledger>,
    /// Steps when a consumer has moved what can be reported.
    moved: watch::Sender<u64>,
    upstream: Mutex<Upstream>,
}

/// What is reported upstream, and what keeps that back, for whoever looks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AckSeen {
    /// Who must have WAL, and what happens if they do not answer.
    pub rules: Rules,
    /// Of each position.
    pub reports: Vec<Report>,
    /// Whether the upstream waits for this relay.
    pub is_awaited: bool,
    /// What is left of the budget; `None` where there is none.
    pub allowance: Option<Allowance>,
}

/// What the upstream waits for.
#[derive(Debug, Default)]
struct Upstream {
    /// Its `synchronous_standby_names`.
    waits_for: String,
    /// Our name there.
    own_name: String,
    /// When that was learned; `None` if a process before this one did.
    asked: Option<PgTimestamp>,
    /// Whether this process has followed any.
    is_followed: bool,
    /// What was warned of.
    told: Vec<String>,
}

impl Acknowledgements {
    pub(super) fn new() -> Acknowledgements {
        Acknowledgements {
            machine: Mutex::new(Acknowledger::new(Rules::default(), Instant::now())),
            moved: watch::Sender::new(0),
            upstream: Mutex::default(),
        }
    }

    /// Other rules hold; those who are connected, in the order in which they came.
    pub(super) fn set_rules(&self, rules: Rules, connected: &[&ConsumerIdentity]) {
        let members = connected
            .iter()
            .map(|identity| (identity.pid, identity.user.as_str(), identity.application_name.as_str()));
        self.change(|machine| machine.set_rules(rules, members));
        self.step();
        self.compare_names();
    }

    /// Steps when a consumer has moved what can be reported.
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    pub(super) fn connect(&self, identity: &ConsumerIdentity) {
        self.change(|machine| machine.connect(identity.pid, &identity.user, &identity.application_name));
    }

    pub(super) fn disconnect(&self, pid: u32) {
        if self.change(|machine| machine.disconnect(pid)) {
            self.step();
        }
    }

    /// Takes what a consumer has reported; `None` where that is not on the way to what is received. It is asked for while no
    /// other timeline can be shown (`begin_timeline`), and takes a moment.
    pub fn report(&self, pid: u32, positions: impl FnOnce() -> Option<Positions>) {
        if self.change(|machine| machine.report(pid, positions())) {
            self.step();
        }
    }

    /// Another timeline is shown by `show`, or the same one anew: what is known of consumers is of no use any more.
    pub(crate) fn begin_timeline(&self, show: impl FnOnce()) {
        self.change(|machine| {
            show();
            if !mutation::is(Mutation::KeepMembersAtSwitch) {
                machine.begin_timeline();
            }
        });
    }

    /// The upstream was told of `flush` on this timeline before this process began, says its slot.
    pub(crate) fn told_before(&self, flush: Lsn) {
        self.change(|machine| machine.told_before(flush));
    }

    /// What was reported of this timeline, by this process or as far as it is known of one before; `None` if nothing was.
    pub(crate) fn reported(&self) -> Option<Positions> {
        lock(&self.machine).reported()
    }

    /// Whether an upstream has waited for this relay on this timeline, as far as is known.
    pub(crate) fn was_awaited(&self) -> bool {
        lock(&self.machine).was_awaited()
    }

    /// Whether the upstream waits for this relay, as far as is known.
    pub(crate) fn is_awaited(&self) -> bool {
        let upstream = lock(&self.upstream);
        may_wait_for(&upstream.waits_for, &upstream.own_name)
    }

    /// When this process has asked the upstream last whom it waits for.
    pub(crate) fn asked(&self) -> Option<PgTimestamp> {
        lock(&self.upstream).asked
    }

    /// What is to be reported, with WAL written and durable up to here.
    pub fn compose(&self, write: Lsn, flush: Lsn) -> Positions {
        self.compose_at(write, flush, Instant::now())
    }

    /// The same at a time of the caller's clock.
    pub fn compose_at(&self, write: Lsn, flush: Lsn, now: Instant) -> Positions {
        self.change(|machine| machine.compose(write, flush, now))
    }

    /// What was used of the budget for degraded acknowledgements, if anything was.
    pub(crate) fn spent(&self) -> Option<Spent> {
        lock(&self.machine).spent(Instant::now())
    }

    /// The process before this one has used so much of it.
    pub(crate) fn spent_before(&self, spent: Spent) {
        lock(&self.machine).spent_before(spent, Instant::now());
    }

    /// How far what is reported is, and what keeps it back.
    pub fn seen(&self) -> AckSeen {
        let machine = lock(&self.machine);
        AckSeen {
            rules: machine.rules().clone(),
            reports: machine.reports(),
            is_awaited: machine.is_awaited(),
            allowance: machine.allowance(Instant::now()),
        }
    }

    /// Whom the rules name, as `synchronous_standby_names` would say it, for relays below: nobody while the upstream does not
    /// wait for this relay, since then nothing is acknowledged by what they have.
    pub(crate) fn names_awaited(&self) -> String {
        let machine = lock(&self.machine);
        match machine.is_awaited() {
            true => names_in(machine.rules()),
            false => String::new(),
        }
    }

    /// How a consumer counts.
    pub fn standing(&self, pid: u32) -> Standing {
        lock(&self.machine).standing(pid)
    }

    /// An upstream is followed that has these `synchronous_standby_names`, and knows us by this name. Whether it is the first
    /// one of this process.
    pub(crate) fn follow(&self, waits_for: &str, own_name: &str) -> bool {
        self.learn(waits_for, own_name);
        !std::mem::replace(&mut lock(&self.upstream).is_followed, true)
    }

    /// The upstream that is followed says that these are its `synchronous_standby_names`.
    pub(crate) fn learn(&self, waits_for: &str, own_name: &str) {
        self.expect(waits_for, own_name);
        lock(&self.upstream).asked = Some(PgTimestamp::from_system_time(SystemTime::now()));
    }

    /// An upstream that was followed before this process began had these.
    pub(crate) fn expect(&self, waits_for: &str, own_name: &str) {
        let mut upstream = lock(&self.upstream);
        (upstream.waits_for, upstream.own_name) = (waits_for.to_owned(), own_name.to_owned());
        drop(upstream);
        let is_awaited = may_wait_for(waits_for, own_name);
        self.change(|machine| machine.set_awaited(is_awaited));
        self.compare_names();
    }

    /// These positions go out to the upstream.
    pub(crate) fn note_sent(&self, sent: Positions) {
        lock(&self.machine).note_sent(sent);
    }

    fn step(&self) {
        self.moved.send_modify(|step| *step = step.wrapping_add(1));
    }

    /// Does something, and tells what came of it when nobody is kept waiting by that.
    fn change<T>(&self, change: impl FnOnce(&mut Acknowledger) -> T) -> T {
        let mut machine = lock(&self.machine);
        let result = change(&mut machine);
        let mut events = Vec::new();
        while let Some(event) = machine.poll_event() {
            events.push(event);
        }
        let has_spoken = !events.is_empty();
        let rules = has_spoken.then(|| machine.rules().clone());
        drop(machine);
        if let Some(rules) = rules {
            events.iter().for_each(|event| tell(event, &rules));
        }
        result
    }

    /// Warns, once, of names that are those of the upstream but for their case: whoever compares the two will wonder.
    fn compare_names(&self) {
        let rules = lock(&self.machine).rules().clone();
        let mut upstream = lock(&self.upstream);
        for name in similar_names(&rules, &upstream.waits_for) {
            if upstream.told.contains(&name) {
                continue;
            }
            tracing::warn!(
                "the name {name} in [ack] stands in the upstream's synchronous_standby_names with other case; both \
                 are compared without regard to case, here and there"
            );
            upstream.told.push(name);
        }
    }
}

/// Each name of the rules once; a role that is demanded besides is left out, since the relay that asks does not know what it is
/// to others.
fn names_in(rules: &Rules) -> String {
    let groups = Level::ALL.iter().flat_map(|level| rules.at(*level).groups());
    let mut names: Vec<String> =
        groups.flat_map(|group| &group.members).map(|member| member.name.replace('"', "\"\"")).collect();
    names.sort();
    names.dedup();
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// Names of the rules that the upstream writes with other letters of the same alphabet.
fn similar_names(rules: &Rules, waits_for: &str) -> Vec<String> {
    let theirs = names_of(waits_for);
    let ours = Level::ALL.iter().flat_map(|level| rules.at(*level).groups()).flat_map(|group| &group.members);
    let differs = |name: &str| theirs.iter().any(|it| it.eq_ignore_ascii_case(name) && it != name);
    let mut names: Vec<String> =
        ours.filter(|member| differs(&member.name)).map(|member| member.to_string()).collect();
    names.sort();
    names.dedup();
    names
}

fn tell(event: &Event, rules: &Rules) {
    match event {
        Event::Lapsed { level, reached, wanted, left } => {
            let (name, rule) = (level.as_str(), rules.at(*level));
            let reached = reached.map_or_else(|| "nothing".to_owned(), |lsn| format!("up to {lsn}"));
            let to = rules.lapse.as_ref().map(|lapse| lapse.to.to_string()).unwrap_or_default();
            let left = left.map(|left| format!(", {:.1} s of the budget are left", left.as_secs_f32()));
            tracing::error!(
                "{name} = {rule} was not fulfilled in time ({reached} of {wanted}): {name} = {to} holds until it is{}",
                left.unwrap_or_default()
            );
        }
        Event::Returned { level, lasted } => {
            let (name, rule) = (level.as_str(), rules.at(*level));
            tracing::warn!("{name} = {rule} holds again, after {:.1} s", lasted.as_secs_f32());
        }
        Event::Spent { full_in } => tracing::error!(
            "the budget for degraded acknowledgements is spent: commits wait for those who are named in [ack], \
             whether they answer or not; it is full again in {:.0} s",
            full_in.as_secs_f32()
        ),
        Event::Silent { level } => {
            let (name, rule, waits) = (level.as_str(), rules.at(*level), level.waited_for_by());
            let who = match level {
                Level::Apply if rule.groups().next().is_none() => {
                    "no consumer that is connected reports what it has applied"
                }
                _ => "those who are named have reported nothing",
            };
            tracing::warn!(
                "no further {name} position is reported to the upstream, which waits for this relay: {who} ({name} = {rule}); \
                 commits with synchronous_commit = {waits} wait"
            );
        }
        Event::Heard { level } => {
            tracing::info!("the {} position is reported to the upstream again", level.as_str());
        }
        Event::Absent { name } => tracing::warn!(
            "nobody is connected whose name is {name}, which [ack] waits for; see application_name in the standby's primary_conninfo"
        ),
        Event::Came { name } => tracing::info!("{name}, which [ack] waits for, is connected again"),
        Event::Shared { name } => tracing::info!(
            "two consumers are connected whose name is {name}: the one that came last has its vote, from its first report on"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_below_is_told_whom_the_rules_name() {
        let acknowledgements = Acknowledgements::new();
        let flush = "ANY 1 (r2, admin/\"o\"\"dd\") AND ALL (r2)".parse().unwrap();
        acknowledgements.set_rules(Rules { flush, ..Rules::default() }, &[]);
        assert_eq!(acknowledgements.names_awaited(), "", "nobody waits for what they have");
        acknowledgements.learn("ANY 1 (r1)", "r1");
        let names = acknowledgements.names_awaited();
        assert!(
            may_wait_for(&names, "r2") && may_wait_for(&names, "o\"dd") && !may_wait_for(&names, "r3"),
            "{names}"
        );
    }

    #[test]
    fn names_that_differ_in_case_are_found() {
        let rules = Rules { flush: "ANY 1 (Boston, berlin)".parse().unwrap(), ..Rules::default() };
        assert_eq!(similar_names(&rules, "FIRST 1 (boston, berlin)"), ["Boston"]);
        assert_eq!(similar_names(&rules, "*"), [""; 0]);
    }

    #[test]
    fn who_waits_is_woken_when_something_has_moved_and_only_then() {
        let acks = Acknowledgements::new();
        let identity = |pid| ConsumerIdentity {
            pid,
            user: "u".into(),
            application_name: "s".into(),
            client_addr: None,
            backend_start: crate::moment::Past::now(),
        };
        let at = |lsn: u64| Positions { write: None, flush: None, apply: Lsn::new(lsn).valid() };
        let mut moved = acks.moved();
        let mut has_moved = || {
            let changed = moved.has_changed().unwrap();
            moved.mark_unchanged();
            changed
        };
        acks.compose(Lsn::new(100), Lsn::new(100));
        acks.connect(&identity(1));
        acks.connect(&identity(2));
        acks.report(1, || Some(at(50)));
        assert!(has_moved());
        acks.report(2, || Some(at(40)));
        has_moved();
        acks.report(1, || Some(at(60)));
        acks.report(2, || Some(at(40)));
        assert!(!has_moved(), "the other one is the slower");
        acks.report(2, || Some(at(55)));
        assert!(has_moved());
        acks.disconnect(2);
        assert!(has_moved());
    }
}
