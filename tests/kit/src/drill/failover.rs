//! The failover drill: the primary waits for any of one or two relays, whoever is in trouble; it is lost at random, and a random
//! standby, mostly one that is behind, is promoted in a random way.

mod site;
mod tally;

use std::process::Command;
use std::time::Instant;

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;
use walrelay_proto::Lsn;

use self::site::{How, Site, Trouble, Who};
pub(in crate::drill) use self::site::{cut, mend, readable};
pub use self::tally::FailoverTally;
use super::clients::Clients;
use super::{Orders, park_at_most, play};
use crate::cluster::Cluster;
use crate::log::Mark;
use crate::process::output;
use crate::wait::{PATIENCE, within};

/// What clients ask for. The first ones wait for a relay.
const LEVELS: [&str; 6] = ["on", "on", "remote_write", "remote_apply", "local", "off"];
const WAITING: usize = 4;
/// The one whose commits are visible on a standby as soon as they are acknowledged.
const APPLIED: usize = 3;

/// How to drill. As a control the standbys have no `restore_command`: then what was acknowledged is missing.
#[derive(Debug)]
pub struct FailoverDrill<'a> {
    /// With what, and until when.
    pub orders: Orders<'a>,
    /// How many rounds.
    pub rounds: u64,
    /// How many relays: one or two.
    pub relays: usize,
}

impl FailoverDrill<'_> {
    /// Runs it.
    ///
    /// # Panics
    /// When somebody does not come back; what was counted until then is printed first.
    #[track_caller]
    pub fn run(&self) -> FailoverTally {
        let mut scene = Scene::set(self.orders, self.relays);
        let rounds = |scene: &mut Scene<'_>| {
            while scene.tally.rounds < self.rounds && scene.goes_on() {
                scene.round();
            }
        };
        play(&mut scene, rounds, |scene| scene.count().to_string());
        scene.count();
        scene.tally
    }
}

/// What becomes of the primary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strike {
    Killed,
    Stopped,
    /// From everybody but its clients.
    Cut,
    /// It lives on, but the relays are fenced.
    Alive,
}

impl Strike {
    fn name(self) -> &'static str {
        match self {
            Strike::Killed => "killed",
            Strike::Stopped => "stopped",
            Strike::Cut => "cut off",
            Strike::Alive => "alive, and fenced off",
        }
    }
}

/// Whether the positions of a line of `walrelay failovers --json` say the same as its verdict, and how loudly it was told, too:
/// the primary of this drill always waits.
fn is_borne_out(listed: &Value, said: &[String]) -> bool {
    let position = |name: &str| listed[name].as_str().and_then(|text| text.parse::<Lsn>().ok());
    let ends = position("acknowledged").zip(position("switch_point"));
    let is_left = ends.is_some_and(|(acknowledged, switch_point)| acknowledged > switch_point);
    let severity = if is_left { "ERROR" } else { "INFO" };
    let is_told = said.iter().all(|line| line.contains(severity));
    ends.is_some() && is_left == (listed["verdict"] != "kept") && listed["upstream_waited"] == true && is_told
}

struct Scene<'a> {
    orders: Orders<'a>,
    random: Rng,
    tally: FailoverTally,
    clients: Clients,
    /// What was looked for.
    marks: Vec<usize>,
    site: Site,
    /// What is not healed yet.
    troubles: Vec<Trouble>,
    /// What has happened in this round.
    story: Vec<String>,
}

impl<'a> Scene<'a> {
    fn set(orders: Orders<'a>, relays: usize) -> Scene<'a> {
        let site = Site::set(orders, relays);
        Scene {
            random: orders.random(),
            orders,
            tally: FailoverTally::default(),
            clients: Clients::with_levels(site.server(), &LEVELS),
            marks: vec![0; LEVELS.len()],
            site,
            troubles: Vec::new(),
            story: Vec::new(),
        }
    }

    fn goes_on(&self) -> bool {
        self.tally.held() && !self.orders.is_over()
    }

    fn round(&mut self) {
        self.tally.rounds += 1;
        self.story.clear();
        if !self.get_more() {
            return;
        }
        self.look_at_what_is_applied();
        let standbys = self.site.standbys();
        let candidate = standbys[self.random.usize(..standbys.len())];
        self.passing_trouble(candidate);
        self.lasting_trouble(candidate);
        if self.random.u8(..3) == 0 {
            self.site.server().switch_wal();
        }
        let steady = self.receiver(candidate);
        if !self.get_more() {
            return;
        }
        let marks: Vec<Mark> = self.site.taps.iter().map(|tap| tap.relay.log().mark()).collect();
        let is_fenced = !self.orders.control && self.random.u8(..3) == 0;
        let begun = Instant::now();
        let mut strike = self.strike(candidate, is_fenced);
        let is_steady = steady.is_some() && self.receiver(candidate) == steady;
        self.trouble_meanwhile();
        self.ready(candidate, is_fenced, is_steady, &mut strike);
        self.promote(candidate);
        park_at_most(&mut self.random, 400);
        self.heal(|_| true);
        let server = &self.site.nodes[candidate].server;
        let is_over = || server.try_sql("select pg_is_in_recovery()").is_ok_and(|answer| answer == "f");
        if within(PATIENCE, || is_over().then_some(())).is_none() {
            let tail = server.log().tail();
            return self.problem(&format!("the promotion does not end\n{tail}"));
        }
        self.tally.slowest = self.tally.slowest.max(begun.elapsed());
        self.end_of_primary(candidate, strike, is_fenced);
        let is_kept = self.look(candidate);
        self.take_over(candidate);
        self.verdicts(&marks, is_kept, is_fenced);
        self.rejoin(is_fenced);
    }

    /// Waits for acknowledged commits, if any can be now.
    fn get_more(&mut self) -> bool {
        let wanted = self.random.usize(3..15);
        let is_away = |number: usize| self.troubles.iter().any(|it| it.who == Who::Relay(number));
        if (0..self.site.taps.len()).all(is_away) {
            park_at_most(&mut self.random, 300);
            return true;
        }
        let has_come = self.clients.get_more_of(WAITING, wanted);
        if !has_come {
            self.problem("commits are not acknowledged any more");
        }
        has_come
    }

    /// All is well: what was acknowledged as applied can be seen on a standby at once.
    fn look_at_what_is_applied(&mut self) {
        let to = self.clients.marks();
        let mut from = to.clone();
        from[APPLIED] = self.marks[APPLIED];
        let on = |number: usize| self.clients.missing_on(&self.site.nodes[number].server, &from, &to);
        let [first, second] = [0, 1].map(|which| on(self.site.standbys()[which]));
        let nowhere: Vec<&String> = first.iter().filter(|name| second.contains(name)).collect();
        if !nowhere.is_empty() {
            self.problem(&format!("acknowledged by remote_apply and nowhere to be seen: {nowhere:?}"));
        }
    }

    fn begin(&mut self, who: Who, how: How) {
        let name = match who {
            Who::Relay(_) => "relays",
            Who::Standby(_) => "standbys",
        };
        self.tally.count(&format!("{name} {}", how.name()));
        let trouble = Trouble { who, how };
        self.story.push(format!("{trouble:?}"));
        self.site.begin(trouble);
        self.troubles.push(trouble);
    }

    fn heal(&mut self, which: impl Fn(&Trouble) -> bool) {
        let (mut healed, stay): (Vec<Trouble>, Vec<Trouble>) =
            self.troubles.drain(..).partition(|it| which(it));
        self.troubles = stay;
        // A standby that starts waits for them.
        healed.sort_by_key(|it| matches!(it.who, Who::Standby(_)));
        for trouble in healed {
            self.story.push(format!("healed: {trouble:?}"));
            self.site.heal(trouble, true);
        }
    }

    fn any_relay(&mut self) -> Who {
        Who::Relay(self.random.usize(..self.site.taps.len()))
    }

    fn any_how(&mut self) -> How {
        How::ALL[self.random.usize(..How::ALL.len())]
    }

    /// Something that is over before the primary is lost.
    fn passing_trouble(&mut self, candidate: usize) {
        if self.orders.control || self.random.bool() {
            return;
        }
        let who = if self.random.bool() { self.any_relay() } else { Who::Standby(candidate) };
        let how = self.any_how();
        self.begin(who, how);
        park_at_most(&mut self.random, 200);
        let trouble = self.troubles.pop().expect("it was just begun");
        self.site.heal(trouble, false);
    }

    /// From now on some get nothing more: mostly the one that is promoted next.
    fn lasting_trouble(&mut self, candidate: usize) {
        for standby in self.site.standbys() {
            let is_candidate = standby == candidate;
            let how = if is_candidate { How::Cut } else { self.any_how() };
            let of_ten = if is_candidate { 8 } else { 3 };
            if self.orders.control && is_candidate || self.random.u8(..10) < of_ten {
                self.begin(Who::Standby(standby), how);
            }
        }
        if !self.orders.control && self.random.u8(..10) < 4 {
            let (who, how) = (self.any_relay(), self.any_how());
            self.begin(who, how);
        }
    }

    /// Whom it streams with.
    fn receiver(&self, standby: usize) -> Option<String> {
        let sql = "select pid from pg_stat_wal_receiver where status = 'streaming'";
        self.site.nodes[standby].server.try_sql(sql).ok().filter(|pid| !pid.is_empty())
    }

    /// The primary is lost.
    fn strike(&mut self, candidate: usize, is_fenced: bool) -> Strike {
        park_at_most(&mut self.random, 50);
        let of = if is_fenced { 4 } else { 3 };
        let strike = [Strike::Killed, Strike::Stopped, Strike::Cut, Strike::Alive][self.random.usize(..of)];
        let primary = &mut self.site.nodes[self.site.primary].server;
        match strike {
            Strike::Killed => primary.kill9(),
            Strike::Stopped => primary.signal_all(Signal::STOP),
            Strike::Cut => self.site.cut_primary(),
            Strike::Alive => {}
        }
        let what = format!("primaries {}", strike.name());
        self.tally.count(&what);
        let has = self.site.nodes[candidate].server.receive_lsn();
        let end = self.site.furthest(&self.troubles);
        self.story.push(format!("{what}; a relay has {end:?}, candidate {candidate} {has}"));
        self.tally.behind += u64::from(end.is_some_and(|end| has < end));
        strike
    }

    /// A relay is in trouble just when it is drained.
    fn trouble_meanwhile(&mut self) {
        let is_well = self.troubles.iter().all(|it| matches!(it.who, Who::Standby(_)));
        if !self.orders.control && is_well && self.random.u8(..4) == 0 {
            let who = self.any_relay();
            let how = [How::Killed, How::Stopped][self.random.usize(..2)];
            self.begin(who, how);
        }
    }

    /// What docs/FAILOVER.md demands before a promotion.
    fn ready(&mut self, candidate: usize, is_fenced: bool, is_steady: bool, strike: &mut Strike) {
        if self.orders.control || !is_fenced && is_steady {
            return;
        }
        // Somebody sees to the relays, since they have to answer.
        park_at_most(&mut self.random, 200);
        self.heal(|it| matches!(it.who, Who::Relay(_)));
        if is_fenced {
            self.fence();
        }
        if !is_steady {
            // It may have asked the relays when they had less; it asks again.
            self.tally.awaited += 1;
            if matches!(*strike, Strike::Stopped | Strike::Cut) {
                // Else a standby that starts now waits for its answer, for which PostgreSQL has no limit.
                self.tally.count(&format!("of the {}, powered off before", strike.name()));
                self.power_off();
                *strike = Strike::Killed;
            }
            self.heal(|it| it.who == Who::Standby(candidate));
        }
        let loses_nothing = || {
            let (code, said) = self.promotable(candidate);
            // Who streams asks in the promotion. It may stream from the relay that has less.
            let asks_then = is_steady || self.receiver(candidate).is_some();
            let is_told = code == Some(0) || code == Some(1) && asks_then;
            is_told.then_some(()).ok_or(said)
        };
        let mut said = String::new();
        let told = within(PATIENCE, || loses_nothing().map_err(|error| said = error).ok());
        if told.is_none() {
            self.problem(&format!("walrelay promotable: {said}"));
        }
    }

    fn relays(&self) -> Vec<String> {
        self.site.taps.iter().flat_map(|tap| ["--relay".to_owned(), tap.relay.conninfo()]).collect()
    }

    fn fence(&mut self) {
        let mut said = String::new();
        let fenced = within(PATIENCE, || {
            let mut fence = Command::new(self.orders.binary);
            fence.arg("fence").args(self.relays()).args(["--timeout", "5s", "--reason", "drill"]);
            let output = fence.args(["--sync-names", &self.site.rule()]).output().expect("it can be run");
            said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            output.status.success().then_some(())
        });
        self.tally.count("promotions behind a fence");
        self.story.push("fenced".to_owned());
        if fenced.is_none() {
            self.problem(&format!("walrelay fence: {said}"));
        }
    }

    /// The exit code, and what was said.
    fn promotable(&self, candidate: usize) -> (Option<i32>, String) {
        let mut promotable = Command::new(self.orders.binary);
        let candidate = self.site.nodes[candidate].server.conninfo();
        promotable.arg("promotable").args(self.relays()).args(["--candidate", &candidate]);
        let output = promotable.output().expect("it can be run");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), said)
    }

    fn promote(&mut self, candidate: usize) {
        let server = &self.site.nodes[candidate].server;
        let by_command = self.random.bool() && server.server().program("pg_ctl").exists();
        let how = if by_command { "pg_ctl promote" } else { "pg_promote()" };
        self.tally.count(how);
        self.story.push(how.to_owned());
        let asked = match by_command {
            true => {
                let mut command = server.server().command("pg_ctl");
                output(command.args(["promote", "-s", "-W", "-D"]).arg(server.data_dir())).map(drop)
            }
            false => server.try_sql("select pg_promote(false)").map(drop).map_err(|error| error.to_string()),
        };
        if let Err(error) = asked {
            self.problem(&format!("could not promote: {error}"));
        }
    }

    /// What is left of the old primary. Where it is fenced off it mostly comes back to itself while the other one is the primary
    /// already, finds the lines well again, and goes on acknowledging whatever it can.
    fn end_of_primary(&mut self, candidate: usize, strike: Strike, is_fenced: bool) {
        if strike == Strike::Killed {
            return;
        }
        if is_fenced && self.random.u8(..4) > 0 {
            self.tally.count(&format!("of the {}, back while another one was the primary", strike.name()));
            self.story.push("the old primary is back".to_owned());
            self.site.mend_primary(false);
            if strike == Strike::Stopped {
                self.site.server().signal_all(Signal::CONT);
            }
            let tli = self.site.nodes[candidate].server.timeline().as_u32();
            for tap in &self.site.taps {
                tap.relay.wait_for_timeline(tli);
            }
            park_at_most(&mut self.random, 500);
        }
        self.power_off();
    }

    fn power_off(&mut self) {
        self.site.nodes[self.site.primary].server.kill9();
        self.site.mend_primary(true);
    }

    /// Everything acknowledged is on the new primary; whether that is so.
    fn look(&mut self, candidate: usize) -> bool {
        let marks = self.clients.marks();
        let server = &self.site.nodes[candidate].server;
        let missing = self.clients.missing_on(server, &self.marks, &marks);
        let client = |name: &String| name.split('|').next().and_then(|client| client.parse::<usize>().ok());
        let waits = |name: &String| client(name).is_some_and(|client| client < WAITING);
        let (lost, unpromised): (Vec<String>, Vec<String>) = missing.into_iter().partition(waits);
        let round = self.tally.rounds;
        let is_kept = lost.is_empty();
        self.tally.lost.extend(lost.iter().map(|name| format!("round {round}: {name}")));
        self.tally.unpromised += unpromised.len();
        self.marks = marks;
        is_kept
    }

    /// The candidate is the primary from now on.
    fn take_over(&mut self, candidate: usize) {
        self.site.primary = candidate;
        self.clients.go_to(self.site.server());
        let tli = self.site.server().timeline().as_u32();
        for tap in &self.site.taps {
            tap.relay.wait_for_timeline(tli);
        }
    }

    /// What the relays say about it is so.
    fn verdicts(&mut self, marks: &[Mark], is_kept: bool, is_fenced: bool) {
        let part = format!("promotion to timeline {} at ", self.site.server().timeline());
        let mut somebody_says_left = false;
        for (number, mark) in marks.iter().enumerate() {
            let relay = &self.site.taps[number].relay;
            relay.log().wait_for_after(*mark, &part);
            let said = relay.log().lines_with(&part, *mark);
            let says_kept = said.iter().all(|line| line.contains("kept everything acknowledged"));
            let mut failovers = Command::new(self.orders.binary);
            let listed = failovers.args(["failovers", "--json", "-D"]).arg(relay.data_dir()).output();
            let listed = listed.expect("walrelay can be run").stdout;
            let listed: Vec<Value> = serde_json::from_slice(&listed).unwrap_or_default();
            let listed = listed.into_iter().next_back().unwrap_or_default();
            let lists_kept = listed["verdict"] == "kept";
            let is_in_order = is_borne_out(&listed, &said);
            for bad in ["panicked", "damaged", "bad WAL", "may not be durable"] {
                self.tally.problems.extend(relay.log().lines_with(bad, Mark::default()));
            }
            self.tally.verdicts[usize::from(!says_kept)] += 1;
            somebody_says_left |= !says_kept;
            // Behind a fence nothing comes any more. Else what was on its way may come after a relay was drained: that is
            // reported to a primary that is dead.
            let is_right = says_kept || self.orders.control || !is_fenced;
            if said.len() != 1 || says_kept != lists_kept || !is_in_order || !is_right {
                self.problem(&format!(
                    "r{}: kept {is_kept}, it says {said:?} and lists {listed}",
                    number + 1
                ));
            }
        }
        // More than commits may be left; but commits that are missing were left, by whoever had acknowledged them.
        if !is_kept && !somebody_says_left {
            self.problem("commits are missing, and no relay says so");
        }
    }

    /// The old primary comes back, and the other standby follows the new one by itself.
    fn rejoin(&mut self, is_fenced: bool) {
        let tli = self.site.server().timeline();
        // An asynchronous standby may have what the relay had not yet, and nobody was told of.
        let ahead = format!("new timeline {tli} forked off ");
        let standbys = self.site.standbys();
        for &standby in &standbys {
            if self.site.nodes[standby].server.try_sql("select 1").is_err() {
                self.tally.rejoined += 1;
                self.site.rewind(standby);
            }
        }
        let end = self.site.server().settled_lsn();
        for &standby in &standbys {
            let is_ahead = |server: &Cluster| !server.log().lines_with(&ahead, Mark::default()).is_empty();
            let server = &self.site.nodes[standby].server;
            within(PATIENCE, || (server.replay_lsn() >= end || is_ahead(server)).then_some(()));
            if is_ahead(server) {
                self.tally.ahead += 1;
                if is_fenced && !self.site.may_be_ahead(standby) {
                    self.problem("a standby below the relays is ahead of a fence");
                }
                self.site.nodes[standby].server.stop();
                self.site.rewind(standby);
            }
            let server = &self.site.nodes[standby].server;
            if within(PATIENCE, || (server.replay_lsn() >= end).then_some(())).is_none() {
                let (name, tail) = (self.site.name(standby), server.log().tail());
                return self.problem(&format!("{name} does not follow the new primary\n{tail}"));
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
        let tails: Vec<String> = self.site.taps.iter().map(|tap| tap.relay.log().tail()).collect();
        let story = self.story.join("; ");
        self.tally.problems.push(format!("round {round}: {text}\n{story}\n{}", tails.join("\n")));
    }
}
