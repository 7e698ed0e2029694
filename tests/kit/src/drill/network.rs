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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::{Orders, park, play};
use crate::cluster::Cluster;
use crate::compare;
use crate::footprint::Footprint;
use crate::link::{Bit, Link, Weather};
use crate::log::Mark;
use crate::receivewal::Receivewal;
use crate::relay::Relay;
use crate::scribe::Scribe;
use crate::wait::within;

/// How long is waited for WAL after a link has healed.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long WAL may need; what takes longer is late, and a failure.
const PROMISED: Duration = Duration::from_secs(1);
/// Of so many heals one may be late on a machine that has other things to do.
const LATE_WHERE_BUSY: u64 = 50;
/// How long the relays may need in the end to let go of what the flaps have left.
const SETTLING: Duration = Duration::from_secs(45);
/// Flaps before what the processes take is looked at for the first time.
const WARM_UP: usize = 40;
/// Private memory of a relay, bytes: what is promised is 64 MB and 64 KiB for each consumer.
const MEMORY: u64 = 65 << 20;
/// What a relay may have on top of what it had after the first flaps: what comes and goes. More is a leak.
const ON_TOP: Footprint = Footprint { private: 8 << 20, descriptors: 8, threads: 4 };
/// An outage in which attempts to connect are counted.
const OUTAGE: Duration = Duration::from_secs(3);
/// The shortest pauses of the back-off: half of the first, and half of the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(375));

/// How to drill. As a control bits are also flipped for the consumer that writes everything down, which looks at nothing: then
/// its copy has to be found different.
#[derive(Debug, Clone, Copy)]
pub struct NetworkDrill<'a> {
    /// With what, and until when.
    pub orders: Orders<'a>,
    /// How often a link goes bad.
    pub flaps: usize,
    /// The machine has other things to do meanwhile, so that WAL may now and then come late after a heal.
    pub is_busy: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct NetworkTally {
    /// How often a link went bad, by kind.
    pub flaps: BTreeMap<&'static str, usize>,
    /// Rounds.
    pub rounds: usize,
    /// From the heal to the first new WAL over each link.
    pub resumed: BTreeMap<&'static str, Resumed>,
    /// When that took longer than a second: over which link, what had happened to all of them, and what the relays said.
    pub late: Vec<String>,
    /// Bits flipped, and those that had to be noticed.
    pub flipped: (u64, u64),
    /// Attempts to connect to the primary in an outage, by kind, and how long it was.
    pub attempts: BTreeMap<&'static str, (u64, Duration)>,
    /// What the relays take, before and after.
    pub usage: Vec<(&'static str, Footprint, Footprint)>,
    /// Segments that were compared, of each copy.
    pub compared: BTreeMap<&'static str, usize>,
    /// Lines of the relays' logs that are no INFO, without numbers, and how often they came.
    pub lines: BTreeMap<String, usize>,
    /// Copies that are not the primary's.
    pub different: Vec<String>,
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

/// Which of the links.
const LINKS: [&str; 5] = ["first", "second", "third", "standby", "archive"];
/// Of what the relays said when WAL was late, at most so much is told.
const MOST_LINES: usize = 60;
/// What has to be noticed.
const FLIP: &str = "flipped bit";

impl<'a> NetworkDrill<'a> {
    /// Runs it.
    ///
    /// # Panics
    /// When something cannot be started, or never comes: the kit's waits are in vain.
    pub fn run(self) -> NetworkTally {
        let mut scene = Scene::set(self);
        let stages: [fn(&mut Scene<'a>); 5] =
            [Scene::flap, Scene::outages, Scene::settle, Scene::prove, Scene::judge];
        let drill = |scene: &mut Scene<'a>| {
            for stage in stages {
                // What was done is proved also when it was ended early.
                if scene.tally.held() {
                    stage(scene);
                }
            }
        };
        let told = |scene: &mut Scene<'a>| {
            scene.note_logs();
            scene.tally.to_string()
        };
        play(&mut scene, drill, told);
        scene.note_logs();
        scene.tally
    }
}

impl NetworkTally {
    /// Whether everything held.
    pub fn held(&self) -> bool {
        self.failures.is_empty() && self.different.is_empty()
    }
}

/// What is waited for on a link that has healed.
#[derive(Debug)]
struct Awaited {
    link: usize,
    /// When it healed.
    since: Instant,
    /// How much WAL had crossed by then; more is to come.
    wal: u64,
    /// A bit is to be flipped first, and that noticed: how many had been flipped before. It has healed then.
    flip: Option<u64>,
}

struct Scene<'a> {
    drill: NetworkDrill<'a>,
    random: Rng,
    tally: NetworkTally,
    before: Option<[Footprint; 2]>,
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
        let (server, mut random) = (drill.orders.server, drill.orders.random());
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
        // Each attempt to connect is to be seen, not only the first of an outage.
        let options = [&options[..], &["--log-level", "debug"]].concat();
        let first =
            Relay::builder(drill.orders.binary, &primary).name("first").upstream(&first_link.conninfo());
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

    /// Of the relays; one that has ended takes nothing.
    fn usage(&self) -> [Footprint; 2] {
        [0, 1].map(|relay| Footprint::of(self.relays[relay].pid()).unwrap_or_default())
    }

    fn flap(&mut self) {
        let (begun, mut told) = (Instant::now(), 0);
        let mut flaps = 0;
        while flaps < self.drill.flaps && self.tally.held() && !self.drill.orders.is_over() {
            self.tally.rounds += 1;
            flaps += self.round();
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
        let mut flips = BTreeMap::new();
        let mut kinds = Vec::new();
        for &link in &chosen {
            let flipped = self.links[link].flipped();
            let kind = self.spoil(link);
            *self.tally.flaps.entry(kind).or_default() += 1;
            kinds.push(format!("{}: {kind}", LINKS[link]));
            if kind == FLIP {
                flips.insert(link, flipped);
            }
        }
        let most = if one_in(&mut self.random, 20) { 400 } else { 30 };
        park(Duration::from_millis(1 + self.random.u64(..most)));
        let before: Vec<u64> = self.links.iter().map(Link::wal).collect();
        self.links.iter().for_each(|link| link.set(Weather::Fair));
        let (since, marks) = (Instant::now(), self.relays.each_ref().map(|relay| relay.log().mark()));
        let checked = if chosen.contains(&3) { 4 } else { 3 };
        let await_of = |link| Awaited { link, since, wal: before[link], flip: flips.get(&link).copied() };
        self.wait_for((0..checked).map(await_of).collect(), marks, &kinds.join(", "));
        chosen.len()
    }

    /// Something bad happens to a link; what.
    fn spoil(&mut self, link: usize) -> &'static str {
        let (name, name_of) = (LINKS[link], &self.links[link]);
        // pg_receivewal waits for five seconds after each cut, and stores what it gets without looking at it.
        let kinds = match name {
            "first" | "second" => 10,
            "third" if self.drill.orders.control => 10,
            "archive" if !one_in(&mut self.random, 10) => 6,
            _ => 9,
        };
        let (weather, kind) = match self.random.u64(..kinds) {
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
            _ if name == "third" => {
                name_of.flip_a_bit(Bit::OfWal);
                (Weather::Fair, "flipped bit that nobody looks at")
            }
            _ => {
                name_of.flip_a_bit(Bit::OfMessage);
                (Weather::Fair, FLIP)
            }
        };
        name_of.set(weather);
        kind
    }

    /// Waits for all of this, which comes in any order.
    fn wait_for(&mut self, mut awaited: Vec<Awaited>, marks: [Mark; 2], kinds: &str) {
        let late = self.tally.late.len();
        while !awaited.is_empty() {
            awaited.retain_mut(|awaited| !self.has_come(awaited, kinds));
            park(Duration::from_millis(1));
        }
        if (late + 1..=MOST_LINES * 5).contains(&self.tally.late.len()) {
            let said = self.relays.iter().zip(marks).map(|(relay, mark)| relay.log().lines_with("", mark));
            self.tally.late.extend(said.flatten().take(MOST_LINES).map(|line| format!("  {line}")));
        }
    }

    /// Whether nothing more is waited for on a link: the WAL has come, or has taken too long.
    fn has_come(&mut self, awaited: &mut Awaited, kinds: &str) -> bool {
        let (link, name, round) = (&self.links[awaited.link], LINKS[awaited.link], self.tally.rounds);
        let time = awaited.since.elapsed();
        if time > DEADLINE {
            let what = if awaited.flip.is_some() { "no end after a flipped bit" } else { "no WAL" };
            self.tally.failures.push(format!("round {round}: {what} on link {name} ({kinds})"));
            return true;
        }
        if let Some(flipped) = awaited.flip {
            // It is flipped in the next message with WAL, and whoever gets that ends the connection.
            if link.flipped() > flipped && link.unnoticed() == 0 {
                (awaited.flip, awaited.since, awaited.wal) = (None, Instant::now(), link.wal());
            }
            return false;
        }
        if link.wal() <= awaited.wal {
            return false;
        }
        let resumed = self.tally.resumed.entry(name).or_default();
        resumed.count += 1;
        resumed.sum += time;
        resumed.most = resumed.most.max(time);
        if time > PROMISED {
            resumed.late += 1;
            let time = time.as_millis();
            self.tally.late.push(format!("round {round}: {name} after {time} ms ({kinds})"));
        }
        true
    }

    /// The primary cannot be reached for seconds: nobody hammers at its door.
    fn outages(&mut self) {
        for (weather, name) in [(Weather::Refusing, "refusing"), (Weather::Hole, "hole")] {
            let link = &self.links[0];
            let (before, wal) = (link.connections(), link.wal());
            link.set(weather);
            link.reset();
            let begun = Instant::now();
            park(OUTAGE);
            // However long the machine has made it.
            let (attempts, lasted) = (link.connections() - before, begun.elapsed());
            self.tally.attempts.insert(name, (attempts, lasted));
            if attempts > most_attempts(lasted) {
                self.tally.failures.push(format!("{attempts} attempts to connect in {lasted:?} ({name})"));
            }
            self.links[0].set(Weather::Fair);
            let awaited = Awaited { link: 0, since: Instant::now(), wal, flip: None };
            let marks = self.relays.each_ref().map(|relay| relay.log().mark());
            self.wait_for(vec![awaited], marks, name);
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
        let lean = |before: Footprint, now: Footprint| now.is_within(before, ON_TOP) && now.private <= MEMORY;
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

    /// WAL has come in time.
    fn judge(&mut self) {
        let late = too_late(self.tally.resumed.values(), self.drill.is_busy);
        self.tally.failures.extend(late);
    }

    /// All copies are the primary's.
    fn prove(&mut self) {
        self.writer.stop();
        let last = self.primary.switch_wal();
        let end = self.primary.settled_lsn();
        self.relays.iter().for_each(|relay| relay.wait_for_flush(end));
        // It ends when its line does in the midst of its first questions.
        self.archive.revive();
        self.archive.wait_for_segment(&last);
        self.standby.wait_for_replay(end);
        crate::wait::wait_until("the scribe to have everything", || self.scribe.received() >= end);
        self.tally.failures.extend(self.scribe.faults());
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
                Err(difference) => self.tally.different.push(format!("{name}: {difference}")),
            }
        }
    }

    /// What the relays have said, and the links counted, however it has ended.
    fn note_logs(&mut self) {
        for relay in &mut self.relays {
            if !relay.is_running() {
                self.tally.failures.push(format!("a relay has ended\n{}", relay.log().tail()));
            }
            note_lines(&relay.log().text(), &mut self.tally.lines);
        }
        if self.tally.lines.keys().any(|line| line.contains("panicked")) {
            self.tally.failures.push("a relay has panicked".to_owned());
        }
        let sum = |count: fn(&Link) -> u64| self.links.iter().map(count).sum();
        self.tally.flipped = (sum(Link::flipped), sum(Link::harmful));
    }
}

/// What is wrong where WAL has come late after a heal.
fn too_late<'a>(resumed: impl Iterator<Item = &'a Resumed>, is_busy: bool) -> Option<String> {
    let (count, late) = resumed.fold((0, 0), |(count, late), link| (count + link.count, late + link.late));
    let allowed = if is_busy { count / LATE_WHERE_BUSY } else { 0 };
    let text =
        || format!("WAL came later than {PROMISED:?} after {late} of {count} heals, {allowed} allowed");
    (late > allowed).then(text)
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
        self.late.iter().try_for_each(|late| writeln!(f, "  {late}"))?;
        let (flipped, harmful) = self.flipped;
        writeln!(f, "{flipped} bits flipped, {harmful} of them had to be noticed")?;
        for (kind, (attempts, lasted)) in &self.attempts {
            let most = most_attempts(*lasted);
            writeln!(f, "{attempts} attempts to connect in {lasted:.1?} ({kind}), {most} allowed")?;
        }
        for (relay, before, after) in &self.usage {
            let Footprint { descriptors, threads, private } = after;
            let memory = private >> 10;
            writeln!(
                f,
                "{relay:<8} {descriptors} descriptors ({} before), {threads} threads ({}), {memory} kB private ({})",
                before.descriptors,
                before.threads,
                before.private >> 10
            )?;
        }
        for (copy, count) in &self.compared {
            writeln!(f, "{copy:<8} {count} segments are the primary's")?;
        }
        for (line, count) in &self.lines {
            writeln!(f, "{count:>7}  {line}")?;
        }
        let different = self.different.iter().map(|copy| format!("not the primary's: {copy}"));
        different.chain(self.failures.iter().cloned()).try_for_each(|failure| writeln!(f, "✗ {failure}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_a_failure_but_for_a_few_on_a_busy_machine() {
        let link = |count, late| Resumed { count, late, ..Resumed::default() };
        let check = |late, is_busy, expected: Option<&str>| {
            let found = too_late([link(60, 0), link(90, late)].iter(), is_busy);
            assert_eq!(found.as_deref(), expected);
        };
        check(0, false, None);
        check(1, false, Some("WAL came later than 1s after 1 of 150 heals, 0 allowed"));
        check(3, true, None);
        check(4, true, Some("WAL came later than 1s after 4 of 150 heals, 3 allowed"));
    }
}
