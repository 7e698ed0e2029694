//! The network drill: everything that can happen to a line happens to those of a cascade, again and again.
//!
//! ```text
//! primary ──first──> relay ──second──> relay ──third──> consumer that writes everything down
//!                                            ├─standby─> standby
//!                                            └─archive─> pg_receivewal
//! ```
//!
//! A round makes some links bad for a moment and heals them all at once. What must hold: WAL flows again, nobody gets a byte
//! that differs, a flipped bit is noticed, nothing is left behind (descriptors, threads, memory, slots, sessions), and
//! nobody knocks more often than the back-off allows.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::cluster::Cluster;
use crate::compare;
use crate::link::{Link, Weather};
use crate::receivewal::Receivewal;
use crate::relay::Relay;
use crate::scribe::Scribe;
use crate::server::Server;
use crate::wait::within;

/// How long WAL may need after a link has healed before the drill calls that a failure; what is promised is a second.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long the relays may need in the end to let go of what the flaps have left.
const SETTLING: Duration = Duration::from_secs(45);
/// Flaps before what the processes take is looked at for the first time.
const WARM_UP: usize = 40;
/// Private memory of a relay, bytes: what is promised is 64 MB and 64 KiB for each consumer.
const MEMORY: u64 = 65 << 20;
/// An outage in which attempts to connect are counted.
const OUTAGE: Duration = Duration::from_secs(3);
/// The shortest pauses of the back-off: half of the first, and half of the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(375));

/// How to drill.
#[derive(Debug, Clone, Copy)]
pub struct NetworkDrill<'a> {
    /// The relay's program.
    pub binary: &'a Path,
    /// Of primary and standby.
    pub server: &'a Server,
    /// How often a link goes bad.
    pub flaps: usize,
    /// Decides which, and how.
    pub seed: u64,
    /// Ends it early.
    pub interrupted: &'a AtomicBool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct NetworkTally {
    /// How often a link went bad, by kind.
    pub flaps: BTreeMap<&'static str, usize>,
    /// Rounds.
    pub rounds: usize,
    /// From the heal to the first new WAL over each link, in milliseconds: the largest, and the mean.
    pub resumed: BTreeMap<&'static str, Resumed>,
    /// Bits flipped, and those that had to be noticed.
    pub flipped: (u64, u64),
    /// Attempts to connect to the primary in an outage of three seconds, by kind.
    pub attempts: BTreeMap<&'static str, u64>,
    /// What the relays take, before and after.
    pub usage: Vec<(&'static str, Usage, Usage)>,
    /// Segments that were compared, of each copy.
    pub compared: BTreeMap<&'static str, usize>,
    /// Lines of the relays' logs that are no INFO, without numbers, and how often they came.
    pub lines: BTreeMap<String, usize>,
    /// What did not hold.
    pub failures: Vec<String>,
}

/// How soon WAL came after a heal.
#[derive(Debug, Default, Clone, Copy)]
pub struct Resumed {
    /// How often that was measured.
    pub count: u64,
    /// The longest.
    pub most: Duration,
    /// All together.
    pub sum: Duration,
    /// How often it took longer than a second.
    pub late: u64,
}

/// What a process takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// File descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Private memory, bytes.
    pub memory: u64,
}

impl Usage {
    fn of(pid: u32) -> Usage {
        let entries = |name| fs::read_dir(format!("/proc/{pid}/{name}")).map_or(0, Iterator::count);
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = rollup.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        // Clean pages of the program's file are the kernel's to drop.
        let memory = field("Private_Dirty:") << 10;
        Usage { descriptors: entries("fd"), threads: entries("task"), memory }
    }
}

/// Which of the links.
const LINKS: [&str; 5] = ["first", "second", "third", "standby", "archive"];

impl NetworkDrill<'_> {
    /// Runs it.
    ///
    /// # Panics
    /// When something cannot be started, or never comes: the kit's waits are in vain.
    pub fn run(self) -> NetworkTally {
        let mut scene = Scene::set(self);
        scene.flap();
        scene.outages();
        scene.settle();
        scene.prove();
        scene.tally
    }
}

impl NetworkTally {
    /// Whether everything held.
    pub fn held(&self) -> bool {
        self.failures.is_empty()
    }
}

struct Scene<'a> {
    drill: NetworkDrill<'a>,
    random: Rng,
    tally: NetworkTally,
    before: Option<[Usage; 2]>,
    writer: Writer,
    scribe: Scribe,
    archive: Receivewal,
    standby: Cluster,
    links: [Link; 5],
    relays: [Relay; 2],
    primary: Cluster,
}

impl<'a> Scene<'a> {
    fn set(drill: NetworkDrill<'a>) -> Scene<'a> {
        let (server, mut random) = (drill.server, Rng::with_seed(drill.seed));
        let primary = Cluster::builder(server).seg_mb(1);
        let primary = ["wal_keep_size = '8GB'", "max_wal_size = '8GB'", "checkpoint_timeout = '1h'"]
            .into_iter()
            .chain(["wal_sender_timeout = '4s'", "max_wal_senders = 20"])
            .fold(primary, |primary, line| primary.conf(line))
            .start();
        primary.sql("create table t (i bigint)");
        let mut link = |port| Link::to(port, random.u64(..));
        let first_link = link(primary.port());
        let options =
            ["--wal-keep-size", "8GB", "--wal-sender-timeout", "4s", "--wal-receiver-timeout", "4s"];
        let first = Relay::builder(drill.binary, &primary).name("first").upstream(&first_link.conninfo());
        let first = options.iter().fold(first, |relay, option| relay.arg(option)).start();
        let second_link = link(first.port());
        let second = first.builder_below().name("second").upstream(&second_link.conninfo());
        let second = options.iter().fold(second, |relay, option| relay.arg(option)).start();
        second.create_slots(&["standby", "archive"]);
        let links = [first_link, second_link, link(second.port()), link(second.port()), link(second.port())];
        let [_, _, third, to_standby, to_archive] = &links;
        let standby = primary.standby().follow(&to_standby.conninfo()).slot("standby");
        let standby =
            standby.conf("wal_retrieve_retry_interval = '100ms'").conf("wal_receiver_timeout = '4s'");
        let standby = standby.start();
        let archive = Receivewal::start(server, &to_archive.conninfo(), "archive");
        let from = second.flush_lsn().seg_start(primary.seg_size());
        let scribe = Scribe::start(third.port(), from);
        let writer = Writer::start(&primary);
        Scene {
            drill,
            random,
            tally: NetworkTally::default(),
            before: None,
            writer,
            scribe,
            archive,
            standby,
            links,
            relays: [first, second],
            primary,
        }
    }

    fn usage(&self) -> [Usage; 2] {
        [0, 1].map(|relay| Usage::of(self.relays[relay].pid()))
    }

    fn flap(&mut self) {
        let (begun, mut told) = (Instant::now(), 0);
        let mut flaps = 0;
        let interrupted = self.drill.interrupted;
        while flaps < self.drill.flaps && self.tally.held() && !interrupted.load(Ordering::Relaxed) {
            flaps += self.round();
            self.tally.rounds += 1;
            if self.before.is_none() && flaps >= WARM_UP.min(self.drill.flaps / 2) {
                self.before = Some(self.usage());
            }
            if flaps / 500 > told {
                told = flaps / 500;
                let seconds = begun.elapsed().as_secs_f32();
                println!("{flaps} flaps in {seconds:.0} s");
            }
        }
    }

    /// Which links go bad in a round. The standby and pg_receivewal take their time to come back, and are asked less.
    fn chosen(&mut self) -> Vec<usize> {
        loop {
            let random = &mut self.random;
            let chosen: Vec<usize> = (0..5)
                .filter(|link| match link {
                    0..3 => !one_in(random, 3),
                    3 => one_in(random, 8),
                    _ => one_in(random, 8),
                })
                .collect();
            if !chosen.is_empty() {
                return chosen;
            }
        }
    }

    /// Makes some links bad for a moment; how many.
    fn round(&mut self) -> usize {
        let chosen = self.chosen();
        let mut flips = Vec::new();
        for &link in &chosen {
            if let Some(flip) = self.spoil(link) {
                flips.push(flip);
            }
        }
        let most = if one_in(&mut self.random, 20) { 400 } else { 30 };
        park(Duration::from_millis(1 + self.random.u64(..most)));
        for (link, before) in flips {
            self.wait_for_flip(link, before);
        }
        let before: Vec<u64> = self.links.iter().map(Link::wal).collect();
        self.links.iter().for_each(|link| link.set(Weather::Fair));
        let healed = Instant::now();
        let checked = if chosen.contains(&3) { 4 } else { 3 };
        for (link, before) in before.into_iter().enumerate().take(checked) {
            self.wait_for_wal(link, before, healed);
        }
        chosen.len()
    }

    /// Something bad happens to a link. For a flipped bit, how many had been flipped before, and connections made.
    fn spoil(&mut self, link: usize) -> Option<(usize, [u64; 3])> {
        let (name, name_of) = (LINKS[link], &self.links[link]);
        // pg_receivewal waits for five seconds after each cut, and stores what it gets without looking at it.
        let kinds = match name {
            "first" | "second" => 10,
            "archive" if !one_in(&mut self.random, 10) => 6,
            _ => 9,
        };
        let mut flip = None;
        let kind = match self.random.u64(..kinds) {
            0 => (Weather::Slow, "slow"),
            1 => (Weather::Crumbs, "crumbs"),
            2 => (Weather::HoleDown, "hole towards the client"),
            3 => (Weather::HoleUp, "hole towards the server"),
            4 => (Weather::Hole, "hole"),
            5 => (Weather::Refusing, "refusing"),
            6 => {
                name_of.reset();
                (Weather::Fair, "reset")
            }
            7 => {
                name_of.reset();
                (Weather::Refusing, "reset, then refusing")
            }
            8 => {
                name_of.half_close();
                (Weather::Fair, "half closed")
            }
            _ => {
                flip = Some((link, [name_of.flipped(), name_of.harmful(), name_of.connections()]));
                name_of.flip_a_bit();
                (Weather::Fair, "flipped bit")
            }
        };
        name_of.set(kind.0);
        *self.tally.flaps.entry(kind.1).or_default() += 1;
        flip
    }

    /// The bit is flipped in the next message; whoever gets it begins anew.
    fn wait_for_flip(&mut self, link: usize, [flipped, harmful, connections]: [u64; 3]) {
        let shown = &self.links[link];
        let noticed = within(DEADLINE, || {
            let over = shown.flipped() > flipped
                && (shown.harmful() == harmful || shown.connections() > connections);
            // In bad weather elsewhere no WAL may come to be flipped; it is, when that is over.
            (over || self.links.iter().any(|other| other.is_bad())).then_some(over)
        });
        if noticed.is_none() {
            self.tally.failures.push(format!("a flipped bit on link {} was not noticed", LINKS[link]));
        }
    }

    fn wait_for_wal(&mut self, link: usize, before: u64, healed: Instant) {
        let link_name = LINKS[link];
        let flowed = loop {
            if self.links[link].wal() > before {
                break Some(healed.elapsed());
            }
            if healed.elapsed() > DEADLINE {
                break None;
            }
            park(Duration::from_millis(1));
        };
        let resumed = self.tally.resumed.entry(link_name).or_default();
        match flowed {
            Some(time) => {
                resumed.count += 1;
                resumed.sum += time;
                resumed.most = resumed.most.max(time);
                resumed.late += u64::from(time > Duration::from_secs(1));
            }
            None => {
                let round = self.tally.rounds;
                self.tally.failures.push(format!("no WAL over link {link_name} after round {round}"));
            }
        }
    }

    /// The primary cannot be reached for seconds: nobody hammers at its door.
    fn outages(&mut self) {
        for (weather, name) in [(Weather::Refusing, "refusing"), (Weather::Hole, "hole")] {
            let link = &self.links[0];
            let (before, wal) = (link.connections(), link.wal());
            link.set(weather);
            link.reset();
            park(OUTAGE);
            let attempts = link.connections() - before;
            self.tally.attempts.insert(name, attempts);
            if attempts > most_attempts(OUTAGE) {
                self.tally.failures.push(format!("{attempts} attempts to connect in {OUTAGE:?} ({name})"));
            }
            self.links[0].set(Weather::Fair);
            self.wait_for_wal(0, wal, Instant::now());
        }
    }

    /// What the flaps have left goes: sessions, descriptors, threads, memory.
    fn settle(&mut self) {
        let walsenders = "select count(*) from pg_stat_replication";
        let slots = "select count(*) from pg_replication_slots";
        let ask = |relay: &Relay, sql: &str| relay.psql("dbname=walrelay", &[sql]).unwrap_or_default();
        let settled = within(SETTLING, || {
            let primary = self.primary.sql(walsenders) == "1" && self.primary.sql(slots) == "1";
            let first = ask(&self.relays[0], walsenders) == "1" && ask(&self.relays[0], slots) == "1";
            let second = ask(&self.relays[1], walsenders) == "3" && ask(&self.relays[1], slots) == "2";
            (primary && first && second).then_some(())
        });
        if settled.is_none() {
            let counts = [
                self.primary.sql(walsenders),
                ask(&self.relays[0], walsenders),
                ask(&self.relays[1], walsenders),
            ];
            let text = format!("consumers of primary, first and second relay: {counts:?}, expected 1, 1, 3");
            self.tally.failures.push(text);
        }
        let before = self.before.unwrap_or_else(|| self.usage());
        let lean = |before: Usage, now: Usage| {
            now.descriptors <= before.descriptors + 8
                && now.threads <= before.threads + 4
                && now.memory <= MEMORY
        };
        let settled = within(SETTLING, || {
            let now = self.usage();
            (lean(before[0], now[0]) && lean(before[1], now[1])).then_some(now)
        });
        let now = settled.unwrap_or_else(|| self.usage());
        if settled.is_none() {
            self.tally.failures.push(format!("left behind: {before:?} before, {now:?} now"));
        }
        self.tally.usage = vec![("first", before[0], now[0]), ("second", before[1], now[1])];
    }

    /// All copies are the primary's.
    fn prove(&mut self) {
        self.writer.stop();
        let last = self.primary.switch_wal();
        let end = self.primary.settled_lsn();
        self.relays.iter().for_each(|relay| relay.wait_for_flush(end));
        self.archive.wait_for_segment(&last);
        self.standby.wait_for_replay(end);
        crate::wait::wait_until("the scribe to have everything", || self.scribe.received() >= end);
        let mut failures = self.scribe.faults();
        let copies = [
            ("first", compare::segments(&self.primary, &self.relays[0].wal_dir())),
            ("second", compare::segments(&self.primary, &self.relays[1].wal_dir())),
            ("third", self.scribe.compare(&self.primary)),
            ("archive", compare::segments(&self.primary, &self.archive.wal_dir())),
            ("standby", compare::dumps(&self.primary, &self.standby).map(|_| 0)),
        ];
        for (name, compared) in copies {
            match compared {
                Ok(count) => _ = self.tally.compared.insert(name, count),
                Err(difference) => failures.push(format!("{name}: {difference}")),
            }
        }
        for relay in &mut self.relays {
            if !relay.is_running() {
                failures.push("a relay has ended".to_owned());
            }
            note_lines(&relay.log().text(), &mut self.tally.lines);
        }
        if self.tally.lines.keys().any(|line| line.contains("panicked")) {
            failures.push("a relay has panicked".to_owned());
        }
        self.tally.failures.extend(failures);
        let sum = |count: fn(&Link) -> u64| self.links.iter().map(count).sum();
        self.tally.flipped = (sum(Link::flipped), sum(Link::harmful));
    }
}

/// How many attempts the back-off allows in this time.
fn most_attempts(time: Duration) -> u64 {
    let (mut pause, longest) = PAUSES;
    // Two that were under way, and the last, which is not waited for.
    let (mut attempts, mut at) = (3, Duration::ZERO);
    while at < time {
        at += pause;
        pause = (pause * 2).min(longest);
        attempts += 1;
    }
    attempts
}

/// Lines that are no INFO, without their time and numbers.
fn note_lines(text: &str, lines: &mut BTreeMap<String, usize>) {
    for line in text.lines() {
        let Some(at) = ["WARN", "ERROR", "panicked"].iter().find_map(|word| line.find(word)) else {
            continue;
        };
        let mut shown = String::new();
        for word in line[at..].split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let number = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            match number.contains(|c: char| c.is_ascii_digit()) {
                true => shown.extend(["#", &word[number.len()..]]),
                false => shown.push_str(word),
            }
        }
        shown.truncate(shown.char_indices().nth(140).map_or(shown.len(), |(at, _)| at));
        *lines.entry(shown).or_default() += 1;
    }
}

fn one_in(random: &mut Rng, chances: u64) -> bool {
    random.u64(..chances) == 0
}

fn park(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// A thread that commits without a pause worth the name.
#[derive(Debug)]
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(primary: &Cluster) -> Writer {
        let stop = Arc::<AtomicBool>::default();
        let (mut session, told) = (primary.session(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let sql = "insert into t values (1); \
                           select pg_logical_emit_message(true, 'drill', repeat('x', (random() * 6000)::int))";
                if session.run(sql).is_err() {
                    return;
                }
                park_timeout(Duration::from_millis(2));
            }
        });
        Writer { stop, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Display for NetworkTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flaps: usize = self.flaps.values().sum();
        writeln!(f, "{flaps} flaps in {} rounds", self.rounds)?;
        for (kind, count) in &self.flaps {
            writeln!(f, "  {count:>7}  {kind}")?;
        }
        writeln!(f, "from the heal to new WAL:")?;
        for (link, resumed) in &self.resumed {
            let mean = resumed.sum / u32::try_from(resumed.count.max(1)).unwrap_or(u32::MAX);
            let (most, late) = (resumed.most.as_millis(), resumed.late);
            let mean = mean.as_millis();
            writeln!(
                f,
                "  {link:<8} {most:>6} ms at most, {mean} ms on average, {late} times more than a second"
            )?;
        }
        let (flipped, harmful) = self.flipped;
        writeln!(f, "{flipped} bits flipped, {harmful} of them had to be noticed")?;
        for (kind, attempts) in &self.attempts {
            let most = most_attempts(OUTAGE);
            writeln!(f, "{attempts} attempts to connect in {OUTAGE:?} ({kind}), {most} allowed")?;
        }
        for (relay, before, after) in &self.usage {
            let Usage { descriptors, threads, memory } = after;
            let memory = memory >> 10;
            writeln!(
                f,
                "{relay:<8} {descriptors} descriptors ({} before), {threads} threads ({}), {memory} kB private ({})",
                before.descriptors,
                before.threads,
                before.memory >> 10
            )?;
        }
        for (copy, count) in &self.compared {
            writeln!(f, "{copy:<8} {count} segments are the primary's")?;
        }
        for (line, count) in &self.lines {
            writeln!(f, "{count:>7}  {line}")?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "FAILED: {failure}"))
    }
}
