//! The soak: everything that happens in years, at once, on one topology.
//!
//! ```text
//! clients → primary → relay (small disk, archive) → standby, which is the primary after the next promotion
//!                                                 → relay below → standby
//!                                                 → two pg_receivewal that stop reading now and then
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;

use super::clients::Clients;
use super::{Orders, park_at_most, play};
use crate::cluster::Cluster;
use crate::compare;
use crate::disk::Disk;
use crate::footprint::{Footprint, Watch};
use crate::pgbench::Pgbench;
use crate::receivewal::Receivewal;
use crate::relay::Relay;
use crate::scratch::Scratch;

const CLIENTS: usize = 2;
/// Of the relay's disk.
const DISK_MB: u64 = 320;
/// So many events lie between two looks at everything.
const LOOK_EACH: u64 = 12;
/// Private memory: what is promised, with some 20 consumers.
const MEMORY: u64 = (64 << 20) + 20 * (64 << 10);
/// What the relay may have on top of what it had after the first look: what comes and goes. More is a leak.
const ON_TOP: Footprint = Footprint { private: 8 << 20, descriptors: 16, threads: 8 };

/// How to soak. As a control commits do not wait for the relay: then a promotion loses some.
#[derive(Debug)]
pub struct Soak<'a> {
    /// With what, and until when.
    pub orders: Orders<'a>,
    /// How long.
    pub time: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct SoakTally {
    /// How often each thing happened.
    pub events: BTreeMap<&'static str, u64>,
    /// Acknowledged commits.
    pub commits: usize,
    /// The timeline in the end.
    pub timeline: u32,
    /// Bytes of WAL and of dumps that were the same.
    pub compared: u64,
    /// Of the relay, after the first look and in the end.
    pub footprints: [Footprint; 2],
    /// The most that was seen of it.
    pub most: Footprint,
    /// Acknowledged commits that were not found.
    pub lost: Vec<String>,
    /// What else must not be.
    pub problems: Vec<String>,
}

impl Soak<'_> {
    /// Runs it.
    ///
    /// # Panics
    /// When somebody does not come back; what was counted until then is printed first.
    #[track_caller]
    pub fn run(&self) -> SoakTally {
        let mut scene = Scene::set(self.orders);
        play(&mut scene, |scene| scene.play(self.time), |scene| scene.count().to_string());
        scene.count();
        scene.tally
    }
}

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Event {
    RelayRestart,
    RelayKill,
    RelayBelowKill,
    PrimaryKill,
    StandbyKill,
    Promotion,
    FullDisk,
    ArchiveAway,
    ConsumerHangs,
    LinkCut,
}

/// And how likely.
const EVENTS: [(Event, &str, u32); 10] = [
    (Event::RelayRestart, "restarts of the relay", 3),
    (Event::RelayKill, "kills of the relay", 3),
    (Event::RelayBelowKill, "kills of the relay below", 2),
    (Event::PrimaryKill, "kills of the primary", 2),
    (Event::StandbyKill, "kills of the standby", 2),
    (Event::Promotion, "promotions", 2),
    (Event::FullDisk, "full disks", 2),
    (Event::ArchiveAway, "archive outages", 2),
    (Event::ConsumerHangs, "consumers that hang", 3),
    (Event::LinkCut, "connections cut", 2),
];

/// What lasts for some events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    FullDisk,
    ArchiveAway,
    Hanging(usize),
}

/// Everything that runs, in the order in which it is ended.
struct Scene<'a> {
    orders: Orders<'a>,
    random: Rng,
    tally: SoakTally,
    events: u64,
    /// And after how many events it is over.
    troubles: Vec<(Trouble, u64)>,
    clients: Clients,
    marks: Vec<usize>,
    load: Option<Pgbench>,
    consumers: Vec<Receivewal>,
    watch: Watch,
    below: Cluster,
    relay_below: Relay,
    standby: Cluster,
    relay: Relay,
    primary: Cluster,
    archive: PathBuf,
    disk: Disk,
    _scratch: Scratch,
}

impl<'a> Scene<'a> {
    fn set(orders: Orders<'a>) -> Scene<'a> {
        let (scratch, disk) = (Scratch::new("archive"), Disk::ext4(DISK_MB));
        let archive = scratch.dir("wal");
        let target =
            format!("[archive.main]\nurl = \"file://{}\"\npartial-interval = \"1s\"\n", archive.display());
        let config = scratch.secret("walrelay.toml", &target);
        let primary = Cluster::builder(orders.server).name("a").seg_mb(1).conf("wal_log_hints = on").start();
        primary.pgbench_init(1);
        let settings = [
            ["--wal-keep-size", "16MB"],
            ["--max-slot-wal-keep-size", "64MB"],
            ["--recall-size", "16MB"],
            ["--config", &config.display().to_string()],
        ];
        let relay = Relay::builder(orders.binary, &primary).data_dir(disk.join("data"));
        let mut relay = settings.concat().into_iter().fold(relay, |relay, arg| relay.arg(arg)).start();
        relay.create_slots(&["standby", "below", "first", "second"]);
        let standby = primary.standby().name("b").follow(&relay.conninfo()).slot("standby").start();
        // It has to know both before the first of them is lost.
        // The one that is a standby gets its WAL from the relay, and must not be taken for the upstream.
        relay.set_upstream(&format!("{} target_session_attrs=primary", Relay::hosts(&[&primary, &standby])));
        relay.restart();
        let relay_below = relay.builder_below().name("below").start();
        relay_below.create_slot("standby");
        let below = primary.standby().name("c").follow(&relay_below.conninfo()).slot("standby").start();
        let consumers =
            ["first", "second"].map(|slot| Receivewal::start(orders.server, &relay.conninfo(), slot));
        let clients = Clients::start(&primary, CLIENTS, if orders.control { "local" } else { "on" });
        primary.sql("set synchronous_commit = local; alter database postgres set synchronous_commit = off");
        wait_for_relay(&primary);
        Scene {
            orders,
            random: orders.random(),
            tally: SoakTally::default(),
            events: 0,
            troubles: Vec::new(),
            marks: vec![0; CLIENTS],
            clients,
            load: None,
            consumers: consumers.into(),
            watch: Watch::start(relay.pid()),
            below,
            relay_below,
            standby,
            relay,
            primary,
            archive,
            disk,
            _scratch: scratch,
        }
    }

    fn play(&mut self, time: Duration) {
        self.look();
        self.tally.footprints[0] = self.footprint();
        let end = Instant::now() + time;
        while Instant::now() < end && self.goes_on() {
            self.event();
        }
        if self.goes_on() {
            self.look();
        }
        if self.goes_on() {
            self.load = None;
            self.clients.stop();
            self.tally.footprints[1] = self.footprint();
            self.compare();
            self.judge();
        }
    }

    fn goes_on(&self) -> bool {
        let well = self.tally.lost.is_empty() && self.tally.problems.is_empty();
        well && !self.orders.is_over()
    }

    fn is_in(&self, trouble: Trouble) -> bool {
        self.troubles.iter().any(|(other, _)| *other == trouble)
    }

    fn event(&mut self) {
        self.events += 1;
        if self.load.is_none() {
            self.load = Some(self.primary.spawn_pgbench(1));
        }
        self.end_troubles(self.events);
        self.revive_consumers();
        let all: u32 = EVENTS.iter().map(|(_, _, likely)| likely).sum();
        let at = self.random.u32(..all);
        let mut sum = 0;
        let (event, name, _) = EVENTS
            .into_iter()
            .find(|(_, _, likely)| {
                sum += likely;
                at < sum
            })
            .expect("it is less than the sum of all");
        if self.happens(event) {
            *self.tally.events.entry(name).or_default() += 1;
        }
        // Without room nothing can be acknowledged.
        if !self.is_in(Trouble::FullDisk) && !self.clients.get_more(3) {
            return self.problem(&format!("no commits after {name}"));
        }
        park_at_most(&mut self.random, 1500);
        if self.events.is_multiple_of(LOOK_EACH) {
            self.look();
        }
    }

    /// False if it cannot happen now.
    fn happens(&mut self, event: Event) -> bool {
        match event {
            Event::RelayRestart => {
                self.relay.terminate();
                self.start_relay();
            }
            Event::RelayKill => {
                self.relay.kill9();
                self.start_relay();
            }
            Event::RelayBelowKill => {
                self.relay_below.kill9();
                self.relay_below.start();
            }
            Event::PrimaryKill => {
                self.load = None;
                self.primary.kill9();
                self.primary.start();
            }
            Event::StandbyKill => {
                self.standby.kill9();
                self.standby.start();
            }
            Event::Promotion => return self.promote(),
            Event::FullDisk => return self.begin(Trouble::FullDisk),
            Event::ArchiveAway => return self.begin(Trouble::ArchiveAway),
            Event::ConsumerHangs => {
                let which = self.random.usize(..self.consumers.len());
                return self.begin(Trouble::Hanging(which));
            }
            Event::LinkCut => {
                self.primary.sql("select pg_terminate_backend(pid) from pg_stat_replication");
            }
        }
        true
    }

    fn start_relay(&mut self) {
        self.relay.start();
        self.watch.turn_to(self.relay.pid());
    }

    /// The standby gets what the relay has, and changes places with the primary, which is lost or stopped.
    fn promote(&mut self) -> bool {
        if self.is_in(Trouble::FullDisk) {
            return false;
        }
        self.load = None;
        if self.orders.control {
            self.lose_some();
        } else if self.random.bool() {
            self.primary.kill9();
        } else {
            self.primary.stop();
        }
        self.standby.wait_for_receive(self.relay.flush_lsn());
        self.standby.promote();
        wait_for_relay(&self.standby);
        self.clients.go_to(&self.standby);
        self.primary.rewind_to(&self.standby);
        self.relay.command("DROP_REPLICATION_SLOT standby WAIT");
        self.relay.create_slot("standby");
        self.primary.become_standby("b", &self.relay.conninfo(), Some("standby"));
        self.primary.start();
        std::mem::swap(&mut self.primary, &mut self.standby);
        true
    }

    /// Commits that did not wait for the relay are lost with the primary.
    fn lose_some(&mut self) {
        self.relay.signal(Signal::STOP);
        self.clients.get_more(3);
        self.primary.kill9();
        self.relay.signal(Signal::CONT);
    }

    fn begin(&mut self, trouble: Trouble) -> bool {
        if self.is_in(trouble) {
            return false;
        }
        match trouble {
            Trouble::FullDisk => self.disk.fill_but(0),
            Trouble::ArchiveAway => {
                fs::rename(&self.archive, self.archive.with_extension("away")).expect("both are ours");
            }
            Trouble::Hanging(which) => self.consumers[which].hold(),
        }
        let lasts = if trouble == Trouble::FullDisk { 1 } else { self.random.u64(1..6) };
        self.troubles.push((trouble, self.events + lasts));
        true
    }

    /// Those that are over by now.
    fn end_troubles(&mut self, now: u64) {
        let (over, left) = self.troubles.iter().partition(|(_, end)| *end <= now);
        self.troubles = left;
        let over: Vec<(Trouble, u64)> = over;
        for (trouble, _) in over {
            match trouble {
                Trouble::FullDisk => self.disk.empty(),
                Trouble::ArchiveAway => {
                    fs::rename(self.archive.with_extension("away"), &self.archive).expect("both are ours");
                }
                Trouble::Hanging(which) => self.consumers[which].go_on(),
            }
        }
    }

    fn revive_consumers(&mut self) {
        let ended = self.consumers.iter_mut().filter_map(|consumer| consumer.revive().then_some(())).count();
        if ended > 0 {
            *self.tally.events.entry("pg_receivewal started again").or_default() += ended as u64;
        }
    }

    /// All trouble ends, everybody catches up and has what was acknowledged.
    fn look(&mut self) {
        self.end_troubles(u64::MAX);
        if !self.clients.get_more(3) {
            return self.problem("no commits when all trouble was over");
        }
        let marks = self.clients.marks();
        let end = self.primary.settled_lsn();
        self.relay.wait_for_flush(end);
        for server in [&self.standby, &self.below] {
            server.wait_for_replay(end);
        }
        for server in [&self.primary, &self.standby, &self.below] {
            let missing = self.clients.missing_on(server, &self.marks, &marks);
            self.tally.lost.extend(missing.iter().map(|name| format!("event {}: {name}", self.events)));
        }
        self.marks = marks;
        for relay in [&self.relay, &self.relay_below] {
            for bad in ["panicked", "damaged", "bad WAL", "may not be durable"] {
                self.tally.problems.extend(relay.log().lines_with(bad, crate::Mark::default()));
            }
        }
    }

    fn footprint(&self) -> Footprint {
        Footprint::of(self.relay.pid()).expect("the relay runs")
    }

    fn problem(&mut self, text: &str) {
        let text = format!("event {}: {text}\n{}", self.events, self.relay.log().tail());
        self.tally.problems.push(text);
    }

    fn count(&mut self) -> &SoakTally {
        self.tally.most = self.watch.most();
        self.tally.commits = self.clients.acknowledged();
        if self.tally.most.private > MEMORY {
            self.tally.problems.push(format!("{} bytes of private memory", self.tally.most.private));
        }
        &self.tally
    }

    /// Byte for byte, everything that can be.
    fn compare(&mut self) {
        let last = self.primary.switch_wal();
        self.relay.wait_for_segment(&last);
        self.revive_consumers();
        for consumer in &self.consumers {
            consumer.wait_for_segment(&last);
        }
        self.tally.timeline = self.primary.timeline().as_u32();
        let end = self.primary.settled_lsn();
        for server in [&self.standby, &self.below] {
            server.wait_for_replay(end);
            match compare::dumps(&self.primary, server) {
                Ok(bytes) => self.tally.compared += bytes as u64,
                Err(error) => self.tally.problems.push(error),
            }
        }
        let size = self.primary.seg_size().bytes();
        let dirs = self.consumers.iter().map(Receivewal::wal_dir).chain([self.relay.wal_dir()]);
        for dir in dirs.collect::<Vec<_>>() {
            match compare::segments(&self.primary, &dir) {
                Ok(count) => self.tally.compared += count as u64 * size,
                Err(error) => self.tally.problems.push(error),
            }
        }
        crate::wait_until("the last segment in the archive", || self.archive.join(&last).exists());
        for place in [self.disk.join("data"), self.archive.clone()] {
            let mut verify = Command::new(self.orders.binary);
            let done = verify.arg("verify").arg(&place).output().expect("walrelay can be run");
            if !done.status.success() {
                let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
                self.tally.problems.push(format!("walrelay verify {}: {said}", place.display()));
            }
        }
    }

    /// Nothing is left behind.
    fn judge(&mut self) {
        let [start, end] = self.tally.footprints;
        if !end.is_within(start, ON_TOP) {
            self.tally.problems.push(format!("left behind: {start:?} at the start, {end:?} in the end"));
        }
    }
}

/// Commits on this server wait for the relay, from now on.
fn wait_for_relay(primary: &Cluster) {
    primary.make_synchronous("walrelay");
}

impl SoakTally {
    /// Whether all was well.
    pub fn held(&self) -> bool {
        self.lost.is_empty() && self.problems.is_empty()
    }
}

impl Display for SoakTally {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for line in self.lost.iter().map(|lost| format!("lost: {lost}")).chain(self.problems.iter().cloned())
        {
            writeln!(f, "✗ {line}")?;
        }
        let [start, end] = self.footprints;
        let memory = |footprint: Footprint| format!("{:.1} MB", footprint.private as f64 / (1 << 20) as f64);
        let mut rows: Vec<(&str, String)> =
            self.events.iter().map(|(event, count)| (*event, count.to_string())).collect();
        rows.extend([
            ("acknowledged commits", self.commits.to_string()),
            ("lost", self.lost.len().to_string()),
            ("timeline in the end", self.timeline.to_string()),
            ("compared", format!("{} MB", self.compared >> 20)),
            ("private memory, start", memory(start)),
            ("private memory, end", memory(end)),
            ("private memory, most", memory(self.most)),
            ("descriptors, start", start.descriptors.to_string()),
            ("descriptors, end", end.descriptors.to_string()),
            ("descriptors, most", self.most.descriptors.to_string()),
            ("problems", self.problems.len().to_string()),
        ]);
        rows.iter().try_for_each(|(what, value)| writeln!(f, "  {what:<30} {value:>10}"))
    }
}
