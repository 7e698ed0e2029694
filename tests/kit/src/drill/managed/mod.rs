//! The failover drill with a tool that decides by itself: the primary is lost at random, and Patroni or repmgr promotes whom it likes,
//! mostly one that is behind. It fences and drains the relay as docs/FAILOVER.md sets it up.
//!
//! ```text
//! primary ──> r1             (commits wait for it)
//!        ├──> b, c           (each drains r1 when it is promoted)
//! ```

mod patroni;
mod repmgr;

use std::path::PathBuf;
use std::time::Instant;

use fastrand::Rng;
use rustix::process::Signal;
use walrelay_proto::Lsn;

use self::patroni::ByPatroni;
use self::repmgr::ByRepmgr;
use super::clients::Clients;
use super::failover::{FailoverTally, cut, mend, readable};
use super::{Orders, park_at_most, play};
use crate::link::Link;
use crate::log::Mark;
use crate::namespace::Firewall;
use crate::psql::{self, SqlError};
use crate::relay::Relay;
use crate::scratch::Scratch;
use crate::wait::{PATIENCE, within};

/// What clients ask for; the first ones wait for the relay. Nobody below it applies anything.
const LEVELS: [&str; 4] = ["on", "on", "remote_write", "local"];
const WAITING: usize = 3;
/// The nodes.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Who decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tool {
    /// With etcd.
    Patroni,
    /// With its daemons, on the one version that Debian has it for.
    Repmgr,
}

/// How to drill.
#[derive(Debug)]
pub struct ManagedDrill<'a> {
    /// With what, and until when. There is no control.
    pub orders: Orders<'a>,
    /// How many rounds.
    pub rounds: u64,
    /// Who promotes.
    pub tool: Tool,
}

impl ManagedDrill<'_> {
    /// Runs it.
    ///
    /// # Panics
    /// When somebody does not come back, or the tool is not there; what was counted until then is printed first.
    #[track_caller]
    pub fn run(&self) -> FailoverTally {
        let mut scene = Scene::set(self.orders, self.tool);
        let rounds = |scene: &mut Scene<'_>| {
            while scene.tally.rounds < self.rounds && scene.tally.held() && !self.orders.is_over() {
                scene.round();
            }
        };
        play(&mut scene, rounds, |scene| scene.count().to_string());
        scene.count();
        scene.tally
    }
}

/// What becomes of the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Strike {
    Killed,
    /// It stands still, and goes on when another one has been promoted.
    Stopped,
    /// It cannot ask who is the primary, and serves its clients until it notices.
    CutOff,
}

/// A cluster that a tool looks after. Nodes have numbers.
trait Manager {
    /// What it can be struck with.
    fn strikes(&self) -> &'static [Strike];
    fn conninfo(&self, number: usize) -> String;
    /// This standby gets nothing more from the primary.
    fn starve(&self, primary: usize, standby: usize);
    fn strike(&mut self, primary: usize, how: Strike);
    /// A lost primary comes back, by itself or by the tool's command, as a standby.
    fn bring_back(&mut self, lost: usize, how: Strike, primary: usize);
    /// What the tool says of a node.
    fn tail(&self, number: usize) -> String;
}

/// What all of them have in common: the relay, and how it is drained and fenced.
struct Tap {
    relay: Relay,
    links: Vec<Link>,
    restore_command: String,
    fence: PathBuf,
    firewall: Option<Firewall>,
    _scratch: Scratch,
}

impl Tap {
    /// A relay that is not started yet.
    fn set(orders: Orders<'_>) -> Tap {
        let scratch = Scratch::new("managed");
        let relay = Relay::builder_on(orders.binary, orders.server, "").arg("--wal-keep-size").arg("1GB");
        let relay = relay.prepare();
        let program = readable(&orders, &scratch);
        let (program, to) = (program.display(), relay.conninfo());
        let restore_command =
            format!("\"{program}\" restore --from \"{to}\" --require-relays 1 --require-timeout 0 %f %p");
        let fence = format!("\"{program}\" fence --relay \"{to}\" --sync-names walrelay --reason drill");
        // Whoever gives it a command to go on with tries once: it waits until the relay is fenced.
        let text = format!("[ $# = 0 ] && exec {fence}\nuntil {fence}; do sleep 1; done\nexec \"$@\"");
        let fence = crate::patroni::script(&scratch, "fence", &text);
        let firewall = Firewall::raise();
        Tap { relay, links: Vec::new(), restore_command, fence, firewall, _scratch: scratch }
    }

    /// Starts it, over a line of its own to each of these ports.
    fn follow(&mut self, ports: &[u16], seed: u64) {
        self.links = ports.iter().map(|port| Link::to(*port, seed)).collect();
        let ports: Vec<u16> = self.links.iter().map(Link::port).collect();
        self.relay.set_upstream(&to_primary(&ports));
        self.relay.start();
    }
}

/// How to connect to whichever of these is the primary.
fn to_primary(ports: &[u16]) -> String {
    let host = vec!["127.0.0.1"; ports.len()].join(",");
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!(
        "host={host} port={} user=postgres connect_timeout=2 target_session_attrs=primary",
        ports.join(",")
    )
}

/// What happens to the relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Killed,
    Stopped,
    CutOff,
}

struct Scene<'a> {
    orders: Orders<'a>,
    random: Rng,
    tally: FailoverTally,
    clients: Clients,
    marks: Vec<usize>,
    manager: Box<dyn Manager>,
    tap: Tap,
    primary: usize,
    trouble: Option<Trouble>,
    story: Vec<String>,
}

impl<'a> Scene<'a> {
    fn set(orders: Orders<'a>, tool: Tool) -> Scene<'a> {
        let mut tap = Tap::set(orders);
        let (manager, to): (Box<dyn Manager>, String) = match tool {
            Tool::Patroni => {
                let (manager, to) = ByPatroni::set(orders, &mut tap);
                (Box::new(manager), to)
            }
            Tool::Repmgr => {
                let (manager, to) = ByRepmgr::set(orders, &mut tap);
                (Box::new(manager), to)
            }
        };
        Scene {
            random: orders.random(),
            tally: FailoverTally::default(),
            clients: Clients::at_with_levels(orders.server, &to, &LEVELS),
            marks: vec![0; LEVELS.len()],
            orders,
            manager,
            tap,
            primary: 0,
            trouble: None,
            story: Vec::new(),
        }
    }

    fn sql(&self, number: usize, sql: &str) -> Result<String, SqlError> {
        psql::run(self.orders.server, &self.manager.conninfo(number), &[sql])
    }

    fn standbys(&self) -> Vec<usize> {
        (0..NAMES.len()).filter(|number| *number != self.primary).collect()
    }

    fn round(&mut self) {
        self.tally.rounds += 1;
        self.story.clear();
        if !self.get_more() {
            return;
        }
        let strikes = self.manager.strikes();
        let strike = strikes[self.random.usize(..strikes.len())];
        if self.random.bool() {
            self.begin_trouble();
            park_at_most(&mut self.random, 200);
            self.end_trouble(false);
        }
        self.starve(strike);
        if self.random.u8(..3) == 0 {
            // Nobody waits for it, since nobody is told where it ended.
            let _ = self.sql(self.primary, "select pg_switch_wal()");
        }
        if !self.get_more() {
            return;
        }
        if self.random.u8(..10) < 4 {
            self.begin_trouble();
        }
        let mark = self.tap.relay.log().mark();
        self.count_who_is_behind();
        let begun = Instant::now();
        self.tally.count(&format!("primaries: {strike:?}"));
        self.story.push(format!("{} {strike:?}", NAMES[self.primary]));
        self.manager.strike(self.primary, strike);
        park_at_most(&mut self.random, 3000);
        self.end_trouble(true);
        let Some(promoted) = within(PATIENCE * 2, || self.promoted()) else {
            return self.problem("nobody is promoted");
        };
        self.tally.slowest = self.tally.slowest.max(begun.elapsed());
        self.tally.count(&format!("promoted: {}", NAMES[promoted]));
        let lost = std::mem::replace(&mut self.primary, promoted);
        self.look();
        self.verdict(mark);
        self.manager.bring_back(lost, strike, promoted);
        self.tally.rejoined += 1;
        self.everybody_follows();
    }

    fn get_more(&mut self) -> bool {
        let wanted = self.random.usize(5..30);
        let has_come = self.clients.get_more_of(WAITING, wanted);
        if !has_come {
            self.problem("commits are not acknowledged any more");
        }
        has_come
    }

    /// Standbys get nothing more: mostly both. A primary that loses nothing but its tool goes in order, and waits for them.
    fn starve(&mut self, strike: Strike) {
        for standby in self.standbys() {
            if strike != Strike::CutOff && self.random.u8(..10) < 8 {
                self.tally.count("standbys cut off");
                self.story.push(format!("{} cut off", NAMES[standby]));
                self.manager.starve(self.primary, standby);
            }
        }
    }

    fn begin_trouble(&mut self) {
        let trouble = [Trouble::Killed, Trouble::Stopped, Trouble::CutOff][self.random.usize(..3)];
        self.tally.count(&format!("relays: {trouble:?}"));
        self.story.push(format!("relay {trouble:?}"));
        match trouble {
            Trouble::Killed => self.tap.relay.kill9(),
            Trouble::Stopped => self.tap.relay.signal(Signal::STOP),
            Trouble::CutOff => cut(self.tap.firewall.as_ref(), &self.tap.links),
        }
        self.trouble = Some(trouble);
    }

    fn end_trouble(&mut self, with_loss: bool) {
        match self.trouble.take() {
            Some(Trouble::Killed) => self.tap.relay.start(),
            Some(Trouble::Stopped) => self.tap.relay.signal(Signal::CONT),
            Some(Trouble::CutOff) => mend(self.tap.firewall.as_ref(), &self.tap.links, with_loss),
            None => {}
        }
    }

    /// The best of the standbys is behind the relay.
    fn count_who_is_behind(&mut self) {
        if matches!(self.trouble, Some(Trouble::Killed | Trouble::Stopped)) {
            return;
        }
        let received = "select coalesce(pg_last_wal_receive_lsn(), '0/0')";
        let standbys = self.standbys();
        let has = |number: &usize| self.sql(*number, received).ok()?.parse::<Lsn>().ok();
        let best = standbys.iter().filter_map(has).max();
        let end = self.tap.relay.flush_lsn();
        self.tally.behind += u64::from(best.is_some_and(|best| best < end));
    }

    fn promoted(&self) -> Option<usize> {
        let is_primary =
            |number: &usize| self.sql(*number, "select pg_is_in_recovery()").as_deref() == Ok("f");
        self.standbys().into_iter().find(is_primary)
    }

    /// Everything acknowledged is on the new primary.
    fn look(&mut self) {
        let marks = self.clients.marks();
        let missing = self.clients.missing_at(&self.manager.conninfo(self.primary), &self.marks, &marks);
        let client = |name: &String| name.split('|').next().and_then(|client| client.parse::<usize>().ok());
        let waits = |name: &String| client(name).is_some_and(|client| client < WAITING);
        let (lost, unpromised): (Vec<String>, Vec<String>) = missing.into_iter().partition(waits);
        let (round, story) = (self.tally.rounds, self.story.join("; "));
        self.tally.lost.extend(lost.iter().map(|name| format!("round {round}: {name} ({story})")));
        self.tally.unpromised += unpromised.len();
        self.marks = marks;
    }

    /// The relay was fenced, so everything was kept, and it says so.
    fn verdict(&mut self, mark: Mark) {
        let name = "select pg_walfile_name(pg_current_wal_lsn() + 1)";
        let name = self.sql(self.primary, name).unwrap_or_default();
        let Some(tli) = name.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()) else {
            return self.problem("the new primary has gone again");
        };
        self.tap.relay.wait_for_timeline(tli);
        let part = format!("promotion to timeline {tli} at ");
        let log = self.tap.relay.log();
        let said = within(PATIENCE, || Some(log.lines_with(&part, mark)).filter(|said| !said.is_empty()));
        let said = said.unwrap_or_default();
        let is_kept = said.len() == 1 && said[0].contains("kept everything acknowledged");
        self.tally.verdicts[usize::from(!is_kept)] += 1;
        if !is_kept {
            self.problem(&format!("the relay says {said:?}"));
        }
        let passed = || (!log.lines_with("is passed: timeline", mark).is_empty()).then_some(());
        if within(PATIENCE, passed).is_none() {
            self.problem("the relay was not fenced before the promotion");
        }
        for bad in ["panicked", "damaged", "bad WAL", "may not be durable"] {
            self.tally.problems.extend(log.lines_with(bad, mark));
        }
    }

    fn everybody_follows(&mut self) {
        let end = self.sql(
            self.primary,
            "set synchronous_commit = local; select pg_logical_emit_message(true, 'drill', 'all')",
        );
        let end: Option<Lsn> = end.ok().and_then(|end| end.lines().last()?.parse().ok());
        let Some(end) = end else { return self.problem("the new primary does not take commits") };
        for standby in self.standbys() {
            let replayed = "select coalesce(pg_last_wal_replay_lsn(), '0/0') where pg_is_in_recovery()";
            let at = || self.sql(standby, replayed).ok()?.parse::<Lsn>().ok().filter(|at| *at >= end);
            if within(PATIENCE * 2, at).is_none() {
                return self.problem(&format!("{} does not follow", NAMES[standby]));
            }
        }
    }

    fn count(&mut self) -> &FailoverTally {
        for (level, count) in LEVELS.iter().zip(self.clients.marks()) {
            *self.tally.commits.entry(level).or_default() += count;
        }
        &self.tally
    }

    fn problem(&mut self, text: &str) {
        let round = self.tally.rounds;
        let tails: Vec<String> = (0..NAMES.len()).map(|number| self.manager.tail(number)).collect();
        let story = self.story.join("; ");
        let relay = self.tap.relay.log().tail();
        self.tally.problems.push(format!("round {round}: {text}\n{story}\n{relay}\n{}", tails.join("\n")));
    }
}
