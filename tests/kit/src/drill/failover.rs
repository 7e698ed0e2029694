//! The failover drill: the relay is the only synchronous standby; the primary is lost at random, and a random standby, mostly
//! one that is behind, is promoted.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;

use super::clients::Clients;
use super::{Orders, park_at_most};
use crate::cluster::Cluster;
use crate::log::Mark;
use crate::process::output;
use crate::relay::Relay;
use crate::scratch::Scratch;
use crate::wait::{PATIENCE, within};

/// Clients that wait for the relay.
const CLIENTS: usize = 3;
/// The three servers.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// How to drill. As a control the standbys have no `restore_command`: then what was acknowledged is missing.
#[derive(Debug)]
pub struct FailoverDrill<'a> {
    /// With what, and until when.
    pub orders: Orders<'a>,
    /// How many rounds.
    pub rounds: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct FailoverTally {
    /// Rounds.
    pub rounds: u64,
    /// Primaries killed, and stopped in their tracks until the other one was promoted.
    pub strikes: [u64; 2],
    /// Promotions by `pg_promote()` and by `pg_ctl promote`.
    pub promotions: [u64; 2],
    /// Candidates that were behind the relay when the primary was lost.
    pub behind: u64,
    /// Old primaries that came back as standbys with pg_rewind.
    pub rejoined: u64,
    /// Standbys that had WAL that nobody had acknowledged, and came back in the same way.
    pub ahead: u64,
    /// Verdicts of the relay: everything was kept, something was left.
    pub verdicts: [u64; 2],
    /// Acknowledged commits.
    pub commits: usize,
    /// The longest from the loss of the primary until the other one was promoted.
    pub slowest: Duration,
    /// Acknowledged commits that were not found.
    pub lost: Vec<String>,
    /// What else must not be.
    pub problems: Vec<String>,
}

impl FailoverDrill<'_> {
    /// Runs it.
    ///
    /// # Panics
    /// When somebody does not come back.
    #[track_caller]
    pub fn run(&self) -> FailoverTally {
        let mut scene = Scene::set(self.orders);
        while scene.tally.rounds < self.rounds && scene.goes_on() {
            scene.round();
        }
        scene.tally.commits = scene.clients.acknowledged();
        scene.tally
    }
}

/// Everything that runs, in the order in which it is ended.
struct Scene<'a> {
    orders: Orders<'a>,
    random: Rng,
    tally: FailoverTally,
    clients: Clients,
    /// What was looked for.
    marks: Vec<usize>,
    /// The first one is the primary.
    servers: Vec<Cluster>,
    names: Vec<&'static str>,
    relay: Relay,
    _scratch: Scratch,
}

impl<'a> Scene<'a> {
    fn set(orders: Orders<'a>) -> Scene<'a> {
        let scratch = Scratch::new("failover");
        let primary = Cluster::builder(orders.server)
            .name(NAMES[0])
            .seg_mb(1)
            .conf("wal_log_hints = on")
            .conf("synchronous_standby_names = 'walrelay'")
            .start();
        let mut relay = Relay::builder(orders.binary, &primary).start();
        if !orders.control {
            let command = format!(
                "\"{}\" restore --require-relays 1 --require-timeout 0 --from \"{}\" %f %p",
                readable(&orders, &scratch).display(),
                relay.conninfo()
            );
            primary.append_conf(&format!("restore_command = '{command}'"));
        }
        let standbys = NAMES[1..].iter().map(|name| {
            let standby = primary.standby().name(name);
            standby.conf("synchronous_standby_names = 'walrelay'").start()
        });
        let standbys: Vec<Cluster> = standbys.collect();
        let servers: Vec<Cluster> = std::iter::once(primary).chain(standbys).collect();
        let all: Vec<&Cluster> = servers.iter().collect();
        relay.set_upstream(&to_primary(&all));
        relay.restart();
        for (standby, name) in servers.iter().zip(NAMES).skip(1) {
            standby.append_conf(&follow(&all, name));
            standby.reload();
        }
        let clients = Clients::start(&servers[0], CLIENTS, "on");
        Scene {
            random: orders.random(),
            orders,
            tally: FailoverTally::default(),
            clients,
            marks: vec![0; CLIENTS],
            servers,
            names: NAMES.to_vec(),
            relay,
            _scratch: scratch,
        }
    }

    fn goes_on(&self) -> bool {
        let well = self.tally.lost.is_empty() && self.tally.problems.is_empty();
        well && !self.orders.is_over()
    }

    fn round(&mut self) {
        self.tally.rounds += 1;
        let wanted = self.random.usize(3..15);
        if !self.clients.get_more(wanted) {
            return self.problem("commits are not acknowledged any more");
        }
        let candidate = self.random.usize(1..self.servers.len());
        self.leave_behind(candidate);
        if !self.clients.get_more(wanted) {
            return self.problem("commits are not acknowledged any more");
        }
        let mark = self.relay.log().mark();
        let begun = Instant::now();
        let is_killed = self.strike(candidate);
        self.promote(candidate);
        self.tally.slowest = self.tally.slowest.max(begun.elapsed());
        if !is_killed {
            self.servers[0].kill9();
        }
        let is_kept = self.look(candidate);
        self.take_over(candidate);
        self.verdict(mark, is_kept);
        self.rejoin();
    }

    /// From now on some standbys get nothing more: mostly the one that is promoted next.
    fn leave_behind(&mut self, candidate: usize) {
        for standby in 1..self.servers.len() {
            let of_ten = if standby == candidate { 8 } else { 3 };
            if self.orders.control && standby == candidate || self.random.u8(..10) < of_ten {
                self.servers[0].freeze_walsender(self.names[standby]);
            }
        }
        if self.random.u8(..3) == 0 {
            self.servers[0].switch_wal();
        }
    }

    /// The primary is lost; whether it is dead.
    fn strike(&mut self, candidate: usize) -> bool {
        park_at_most(&mut self.random, 50);
        let is_killed = self.random.bool();
        match is_killed {
            true => self.servers[0].kill9(),
            false => self.servers[0].signal_all(Signal::STOP),
        }
        self.tally.strikes[usize::from(!is_killed)] += 1;
        if self.servers[candidate].receive_lsn() < self.relay.flush_lsn() {
            self.tally.behind += 1;
        }
        is_killed
    }

    fn promote(&mut self, candidate: usize) {
        let server = &self.servers[candidate];
        let by_command = self.random.bool() && server.server().program("pg_ctl").exists();
        self.tally.promotions[usize::from(by_command)] += 1;
        match by_command {
            true => {
                let mut command = server.server().command("pg_ctl");
                let promoted = output(command.args(["promote", "-s", "-D"]).arg(server.data_dir()));
                if let Err(error) = promoted {
                    self.problem(&format!("pg_ctl promote: {error}"));
                }
            }
            false => server.promote(),
        }
    }

    /// Everything acknowledged is on the new primary; whether that is so.
    fn look(&mut self, candidate: usize) -> bool {
        let marks = self.clients.marks();
        let missing = self.clients.missing_on(&self.servers[candidate], &self.marks, &marks);
        let round = self.tally.rounds;
        self.tally.lost.extend(missing.iter().map(|name| format!("round {round}: {name}")));
        self.marks = marks;
        missing.is_empty()
    }

    /// The candidate is the primary from now on.
    fn take_over(&mut self, candidate: usize) {
        self.servers.swap(0, candidate);
        self.names.swap(0, candidate);
        self.clients.go_to(&self.servers[0]);
        self.relay.wait_for_timeline(self.servers[0].timeline().as_u32());
    }

    /// What the relay says about it is so.
    fn verdict(&mut self, mark: Mark, is_kept: bool) {
        let part = format!("promotion to timeline {} at ", self.servers[0].timeline());
        self.relay.log().wait_for_after(mark, &part);
        let said = self.relay.log().lines_with(&part, mark);
        let says_kept = said.iter().all(|line| line.contains("kept everything acknowledged"));
        self.tally.verdicts[usize::from(!says_kept)] += 1;
        let mut failovers = Command::new(self.orders.binary);
        failovers.arg("failovers").arg("-D").arg(self.relay.data_dir());
        let listed = failovers.output().expect("walrelay can be run");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let lists_kept = listed.lines().last().is_some_and(|line| line.contains("  kept, "));
        // More than commits may be left; but commits that are missing were left.
        let is_right = says_kept == lists_kept && (is_kept || !says_kept);
        if said.len() != 1 || !is_right || !(says_kept || self.orders.control) {
            self.problem(&format!("kept: {is_kept}, and the relay says {said:?} and lists {listed}"));
        }
        for bad in ["panicked", "damaged", "bad WAL", "may not be durable"] {
            self.tally.problems.extend(self.relay.log().lines_with(bad, Mark::default()));
        }
    }

    /// The old primary comes back, and the other standby follows the new one by itself.
    fn rejoin(&mut self) {
        let tli = self.servers[0].timeline();
        // An asynchronous standby may have what the relay had not yet, and nobody was told of.
        let ahead = format!("new timeline {tli} forked off ");
        for standby in 1..self.servers.len() {
            if self.servers[standby].try_sql("select 1").is_err() {
                self.tally.rejoined += 1;
                self.rewind(standby);
            }
        }
        let end = self.servers[0].settled_lsn();
        for standby in 1..self.servers.len() {
            let is_ahead = |server: &Cluster| !server.log().lines_with(&ahead, Mark::default()).is_empty();
            let server = &self.servers[standby];
            within(PATIENCE, || (server.replay_lsn() >= end || is_ahead(server)).then_some(()));
            if is_ahead(server) {
                self.tally.ahead += 1;
                self.servers[standby].stop();
                self.rewind(standby);
            }
            let server = &self.servers[standby];
            if within(PATIENCE, || (server.replay_lsn() >= end).then_some(())).is_none() {
                let (name, tail) = (self.names[standby], server.log().tail());
                return self.problem(&format!("{name} does not follow the new primary\n{tail}"));
            }
        }
    }

    /// Makes a server that is down a standby of the new primary.
    fn rewind(&mut self, standby: usize) {
        let all: Vec<&Cluster> = self.servers.iter().collect();
        let primary = to_primary(&all);
        self.servers[standby].rewind_to(&self.servers[0]);
        self.servers[standby].become_standby(self.names[standby], &primary, None);
        self.servers[standby].append_conf("synchronous_standby_names = 'walrelay'");
        self.servers[standby].start();
    }

    fn problem(&mut self, text: &str) {
        let round = self.tally.rounds;
        self.tally.problems.push(format!("round {round}: {text}\n{}", self.relay.log().tail()));
    }
}

/// Whichever of them is the primary.
fn to_primary(all: &[&Cluster]) -> String {
    Relay::hosts(all) + " target_session_attrs=primary"
}

fn follow(all: &[&Cluster], name: &str) -> String {
    format!("primary_conninfo = '{} application_name={name}'", to_primary(all))
}

/// The relay's program where the servers' account can run it.
fn readable(orders: &Orders<'_>, scratch: &Scratch) -> PathBuf {
    let ours = scratch.join("walrelay");
    std::fs::hard_link(orders.binary, &ours)
        .or_else(|_| std::fs::copy(orders.binary, &ours).map(drop))
        .expect("there is room for it");
    ours
}

impl FailoverTally {
    /// Whether nothing is missing.
    pub fn held(&self) -> bool {
        self.lost.is_empty() && self.problems.is_empty()
    }
}

impl Display for FailoverTally {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for line in self.lost.iter().map(|lost| format!("lost: {lost}")).chain(self.problems.iter().cloned())
        {
            writeln!(f, "✗ {line}")?;
        }
        let ([killed, stopped], [function, command]) = (self.strikes, self.promotions);
        let [kept, left] = self.verdicts;
        let rows = [
            ("rounds", self.rounds.to_string()),
            ("primaries killed", killed.to_string()),
            ("primaries stopped", stopped.to_string()),
            ("pg_promote()", function.to_string()),
            ("pg_ctl promote", command.to_string()),
            ("candidates behind the relay", self.behind.to_string()),
            ("old primaries back", self.rejoined.to_string()),
            ("standbys ahead, rewound", self.ahead.to_string()),
            ("verdicts: kept", kept.to_string()),
            ("verdicts: left", left.to_string()),
            ("acknowledged commits", self.commits.to_string()),
            ("longest loss to promotion", format!("{:.1} s", self.slowest.as_secs_f32())),
            ("lost", self.lost.len().to_string()),
        ];
        rows.iter().try_for_each(|(what, value)| writeln!(f, "  {what:<30} {value:>10}"))
    }
}
