//! The crash drill: the relay is the only synchronous standby; it, the primary and a standby below are killed at random.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;

use super::clients::Clients;
use super::{Orders, park_at_most, play};
use crate::cluster::Cluster;
use crate::pgbench::Pgbench;
use crate::relay::Relay;
use crate::scratch::Scratch;
use crate::waldump;

/// Clients that wait for the relay.
const CLIENTS: usize = 3;
/// So often a standby is made of nothing but an old backup and the relay's WAL, rounds.
const PROOF_EACH: u64 = 100;

/// How to drill. As a control commits do not wait for the relay: then what was acknowledged may be missing from it.
#[derive(Debug)]
pub struct CrashDrill<'a> {
    /// With what, and until when.
    pub orders: Orders<'a>,
    /// How many rounds.
    pub rounds: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct CrashTally {
    /// Rounds.
    pub rounds: u64,
    /// Kills of the relay, the primary, the standby.
    pub kills: [u64; 3],
    /// Kills while it was starting, of any.
    pub in_starts: u64,
    /// Processes stopped for a while and let go on.
    pub stops: u64,
    /// Acknowledged commits.
    pub commits: usize,
    /// Standbys made of the relay's WAL.
    pub proofs: u64,
    /// The longest from the first kill of a round until everybody had caught up.
    pub slowest: Duration,
    /// Acknowledged commits that were not found.
    pub lost: Vec<String>,
    /// What else must not be.
    pub problems: Vec<String>,
}

impl CrashDrill<'_> {
    /// Runs it.
    ///
    /// # Panics
    /// When somebody does not come back; what was counted until then is printed first.
    #[track_caller]
    pub fn run(&self) -> CrashTally {
        let mut scene = Scene::set(self.orders);
        play(&mut scene, |scene| scene.play(self.rounds), |scene| scene.count().to_string());
        scene.count();
        scene.tally
    }
}

/// Who can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Relay,
    Primary,
    Standby,
}

const VICTIMS: [Victim; 3] = [Victim::Relay, Victim::Primary, Victim::Standby];

/// Everything that runs, in the order in which it is ended.
struct Scene<'a> {
    orders: Orders<'a>,
    random: Rng,
    tally: CrashTally,
    clients: Clients,
    /// What was looked for.
    marks: Vec<usize>,
    load: Option<Pgbench>,
    standby: Cluster,
    relay: Relay,
    primary: Cluster,
    backup: Scratch,
    /// What the backup does not have.
    backup_marks: Vec<usize>,
}

impl<'a> Scene<'a> {
    fn set(orders: Orders<'a>) -> Scene<'a> {
        let primary = Cluster::builder(orders.server).seg_mb(1).start();
        primary.pgbench_init(1);
        let relay = Relay::builder(orders.binary, &primary).start();
        relay.create_slots(&["standby", "witness"]);
        let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();
        let backup = Scratch::new("backup");
        primary.base_backup_to(&backup.join("data"));
        // Others do not wait for the relay, so that it is behind when it comes back.
        primary.sql("set synchronous_commit = local; alter database postgres set synchronous_commit = off");
        // What is acknowledged before counts as well, and need not be on the relay.
        primary.make_synchronous("walrelay");
        let clients = Clients::start(&primary, CLIENTS, if orders.control { "local" } else { "on" });
        let marks = vec![0; CLIENTS];
        Scene {
            orders,
            random: orders.random(),
            tally: CrashTally::default(),
            clients,
            backup_marks: marks.clone(),
            marks,
            load: None,
            standby,
            relay,
            primary,
            backup,
        }
    }

    fn goes_on(&self) -> bool {
        let well = self.tally.lost.is_empty() && self.tally.problems.is_empty();
        well && !self.orders.is_over()
    }

    fn round(&mut self) {
        self.tally.rounds += 1;
        self.load = Some(self.primary.spawn_pgbench(1));
        let wanted = self.random.usize(1..30);
        if !self.clients.get_more(wanted) {
            return self.problem("commits are not acknowledged any more");
        }
        let begun = Instant::now();
        let mut victims = self.victims();
        for victim in &victims {
            self.strike(*victim);
            park_at_most(&mut self.random, 100);
        }
        self.random.shuffle(&mut victims);
        for victim in victims {
            self.bring_back(victim);
        }
        self.look();
        self.tally.slowest = self.tally.slowest.max(begun.elapsed());
        if self.tally.rounds.is_multiple_of(PROOF_EACH) && self.goes_on() {
            self.prove();
            self.renew_backup();
        }
    }

    /// Mostly the relay, often more than one.
    fn victims(&mut self) -> Vec<Victim> {
        let likely = [6, 4, 3];
        let mut victims: Vec<Victim> = VICTIMS
            .into_iter()
            .zip(likely)
            .filter(|(_, likely)| self.random.u8(..10) < *likely)
            .map(|(v, _)| v)
            .collect();
        self.random.shuffle(&mut victims);
        if victims.is_empty() { vec![Victim::Relay] } else { victims }
    }

    /// Kills somebody, or stops them for a moment first.
    fn strike(&mut self, victim: Victim) {
        if self.random.u8(..4) == 0 {
            self.tally.stops += 1;
            self.signal(victim, Signal::STOP);
            park_at_most(&mut self.random, 300);
            if self.random.bool() {
                self.signal(victim, Signal::CONT);
                park_at_most(&mut self.random, 100);
            }
        }
        self.tally.kills[victim as usize] += 1;
        // What was acknowledged by now was confirmed by now.
        let acknowledged = self.clients.last();
        match victim {
            Victim::Relay => {
                self.relay.kill9();
                let kept = waldump::last_commit(self.orders.server, &self.relay.wal_dir());
                if kept < Some(acknowledged) {
                    let round = self.tally.rounds;
                    self.tally.lost.push(format!(
                        "round {round}: a commit behind {acknowledged} was acknowledged, and the relay's files end with that at {kept:?}"
                    ));
                }
            }
            Victim::Primary => {
                self.load = None;
                self.primary.kill9();
            }
            Victim::Standby => self.standby.kill9(),
        }
    }

    fn signal(&mut self, victim: Victim, signal: Signal) {
        match victim {
            Victim::Relay => self.relay.signal(signal),
            Victim::Primary => self.primary.signal_all(signal),
            Victim::Standby => self.standby.signal_all(signal),
        }
    }

    /// Starts somebody, now and then once in vain.
    fn bring_back(&mut self, victim: Victim) {
        if self.random.u8(..4) == 0 {
            self.tally.in_starts += 1;
            match victim {
                Victim::Relay => self.relay.spawn(),
                Victim::Primary => self.primary.spawn(),
                Victim::Standby => self.standby.spawn(),
            }
            park_at_most(&mut self.random, 200);
            match victim {
                Victim::Relay => self.relay.kill9(),
                Victim::Primary => self.primary.kill9(),
                Victim::Standby => self.standby.kill9(),
            }
        }
        match victim {
            Victim::Relay => self.relay.start(),
            Victim::Primary => self.primary.start(),
            Victim::Standby => self.standby.start(),
        }
    }

    /// Everybody catches up, and what was acknowledged is there.
    fn look(&mut self) {
        let marks = self.clients.marks();
        let end = self.primary.flush_lsn();
        self.relay.wait_for_flush(end);
        self.standby.wait_for_replay(end);
        for server in [&self.primary, &self.standby] {
            let missing = self.clients.missing_on(server, &self.marks, &marks);
            let round = self.tally.rounds;
            self.tally.lost.extend(missing.iter().map(|name| format!("round {round}: {name}")));
        }
        self.marks = marks;
        for bad in ["panicked", "damaged", "bad WAL", "diverged", "may not be durable"] {
            self.tally.problems.extend(self.relay.log().lines_with(bad, crate::Mark::default()));
        }
    }

    /// A standby from an old backup gets all else from the relay.
    fn prove(&mut self) {
        let marks = self.clients.marks();
        let backup = self.backup.join("data");
        let standby = self.primary.standby().name("proof").from_backup(backup);
        let standby = standby.follow(&self.relay.conninfo()).slot("witness").start();
        standby.wait_for_replay(self.relay.flush_lsn());
        let missing = self.clients.missing_on(&standby, &self.backup_marks, &marks);
        self.tally.lost.extend(missing.iter().map(|name| format!("in the relay's WAL: {name}")));
        self.tally.proofs += 1;
    }

    fn renew_backup(&mut self) {
        self.relay.command("DROP_REPLICATION_SLOT witness WAIT");
        self.relay.create_slot("witness");
        self.backup_marks = self.clients.marks();
        self.primary.base_backup_to(&self.backup.join("data"));
    }

    fn problem(&mut self, text: &str) {
        let round = self.tally.rounds;
        self.tally.problems.push(format!("round {round}: {text}\n{}", self.relay.log().tail()));
    }

    /// The primary is lost with all it had; what the relay has must do.
    fn play(&mut self, rounds: u64) {
        while self.tally.rounds < rounds && self.goes_on() {
            self.round();
        }
        if self.goes_on() && !self.orders.control {
            self.load = None;
            self.clients.stop();
            self.primary.kill9();
            self.prove();
        }
    }

    fn count(&mut self) -> &CrashTally {
        self.tally.commits = self.clients.acknowledged();
        &self.tally
    }
}

impl CrashTally {
    /// Whether nothing is missing.
    pub fn held(&self) -> bool {
        self.lost.is_empty() && self.problems.is_empty()
    }
}

impl Display for CrashTally {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for line in self.lost.iter().map(|lost| format!("lost: {lost}")).chain(self.problems.iter().cloned())
        {
            writeln!(f, "✗ {line}")?;
        }
        let [relay, primary, standby] = self.kills;
        let rows = [
            ("rounds", self.rounds.to_string()),
            ("kills of the relay", relay.to_string()),
            ("kills of the primary", primary.to_string()),
            ("kills of the standby", standby.to_string()),
            ("kills in a start", self.in_starts.to_string()),
            ("stopped for a while", self.stops.to_string()),
            ("acknowledged commits", self.commits.to_string()),
            ("standbys from the relay's WAL", self.proofs.to_string()),
            ("longest round", format!("{:.1} s", self.slowest.as_secs_f32())),
            ("lost", self.lost.len().to_string()),
        ];
        rows.iter().try_for_each(|(what, value)| writeln!(f, "  {what:<30} {value:>10}"))
    }
}
