//! Power cuts: a relay's disk forgets what was not flushed, again and again, under commits that wait for the relay.
//!
//! The disk ([`PowerDisk`]) logs what the file system writes and flushes. At a cut it stops answering, the relay is
//! killed, and what is mounted next is everything that was flushed and a random part of the rest, in sectors. What the
//! relay had confirmed is read from its slot upstream when it is dead, so nothing slips in between.

mod blocks;
mod disk;
mod recorder;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use fastrand::Rng;
use walrelay_proto::{Lsn, SegNo, SegSize, TimelineId, WalFileName};

pub use blocks::Fate;
pub use disk::{Cut, FileSystem, PowerDisk};
pub use recorder::Bad;

use crate::cluster::Cluster;
use crate::drill::Orders;
use crate::log::Mark;
use crate::pgbench::Pgbench;
use crate::psql::Session;
use crate::relay::Relay;
use crate::trace::Trace;
use crate::wait::{PATIENCE, wait_until, within};
use crate::writer::Writer;
use slots::SlotWorker;

/// Size of the disk; xfs takes no less.
const DISK_MB: u64 = 320;
/// Name of the relay, and of its slot upstream.
const RELAY: &str = "walrelay";
/// Lines with one of these say that something is lost. What cannot be reached while it is down is another matter.
const BAD: [&str; 6] = ["panicked", "damaged", "may not be durable", "bad WAL", "diverged", "missing"];

/// How to cut. As a control the relay's syncs do nothing: then WAL has to be lost.
#[derive(Debug)]
pub struct PowerCuts<'a> {
    /// With what, and until when.
    pub orders: Orders<'a>,
    /// Of the relay's disk.
    pub file_system: FileSystem,
    /// How many cuts.
    pub cuts: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many there were.
    pub cuts: u64,
    /// Those in the middle of a start after another one.
    pub in_starts: u64,
    /// Writes that no flush had followed when the power went.
    pub fate: Fate,
    /// Writes and flushes of the disk.
    pub writes: u64,
    /// See `writes`.
    pub flushes: u64,
    /// Commits that were acknowledged.
    pub commits: usize,
    /// Orders to make or drop a slot that were answered.
    pub slots: usize,
    /// Bytes of confirmed WAL that were compared with the primary's.
    pub compared: u64,
    /// What was confirmed and is not there, or is something else: WAL, positions, slots. These are problems, too.
    pub lost: u64,
    /// What must not be.
    pub problems: Vec<String>,
}

impl PowerCuts<'_> {
    /// Runs it.
    ///
    /// # Panics
    /// Where something of the kit fails, and when a relay does not start.
    #[track_caller]
    pub fn run(&self) -> Tally {
        let mut scene = Scene::set(self.orders, self.file_system);
        while scene.tally.cuts < self.cuts && scene.goes_on() {
            scene.next_cut();
        }
        scene.finish()
    }
}

/// Everything that runs, in the order in which it is ended.
struct Scene<'a> {
    orders: Orders<'a>,
    random: Rng,
    tally: Tally,
    slots: Option<SlotWorker>,
    /// What clients were told: name and position of each slot.
    promised: BTreeMap<String, Option<Lsn>>,
    /// Slots about which the last order was not answered.
    doubtful: BTreeSet<String>,
    confirmed: Lsn,
    writer: Writer,
    _pgbench: Pgbench,
    /// For bursts, after which much is on its way to the disk at once.
    burst: Session,
    trace: Option<Trace>,
    relay: Relay,
    mark: Mark,
    primary: Cluster,
    seg_size: SegSize,
    /// The last two cuts, and what was found after each so far.
    last: Vec<Cut>,
    trail: Vec<String>,
    disk: PowerDisk,
}

impl<'a> Scene<'a> {
    fn set(orders: Orders<'a>, file_system: FileSystem) -> Scene<'a> {
        let disk = PowerDisk::start(file_system, DISK_MB);
        let primary = Cluster::builder(orders.server).seg_mb(1).start();
        primary.pgbench_init(1);
        let relay = Relay::builder(orders.binary, &primary).data_dir(disk.join("data"));
        let relay = relay.arg("--wal-keep-size").arg("16MB").start();
        let writer = Writer::start(&primary);
        // Others do not wait for the relay, so that it is behind when it comes back.
        primary.sql("alter database postgres set synchronous_commit = off");
        primary.make_synchronous(RELAY);
        writer.wait_for_more(1);
        let seg_size = SegSize::new(1 << 20).expect("a power of two");
        Scene {
            orders,
            random: orders.random(),
            tally: Tally::default(),
            slots: None,
            promised: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            confirmed: Lsn::INVALID,
            writer,
            _pgbench: primary.spawn_pgbench(1),
            burst: primary.session(),
            trace: None,
            mark: relay.log().mark(),
            relay,
            primary,
            seg_size,
            last: Vec::new(),
            trail: Vec::new(),
            disk,
        }
    }

    /// Whether there is reason to do more.
    fn goes_on(&self) -> bool {
        self.tally.problems.is_empty() && !self.orders.is_over()
    }

    /// Lets the relay work and cuts the power, starts it on what is left.
    fn next_cut(&mut self) {
        // Half of these many: from within the first sync to hundreds of commits later. Without syncs the disk is not used more
        // than the file system does by itself, every few seconds.
        let size = self.random.u32(1..if self.orders.control { 4 } else { 11 });
        let mut count = self.random.u64(..1 << size);
        let start = !self.relay.is_running();
        let in_start = start && !self.orders.control && self.random.u8(..3) == 0;
        if in_start {
            self.tally.in_starts += 1;
            count = self.random.u64(..60);
            self.mark = self.relay.log().mark();
            self.relay.spawn();
        } else if !self.come_back(start) {
            return;
        }
        let size = self.random.u32(..3) * self.random.u32(..4_000_000);
        let sql = format!("select pg_logical_emit_message(false, 'burst', repeat('x', {size}))");
        self.burst.send(&sql).expect("the primary is there");
        let cut = self.lose_power(count);
        self.burst.answer().expect("it waits for nobody");
        let Some(cut) = cut else { return };
        self.last.push(cut.clone());
        self.last = self.last.split_off(self.last.len().saturating_sub(2));
        let fate = cut.fate;
        self.disk.power_on(cut);
        self.note(count, in_start, fate);
        self.look_at_files();
    }

    /// For those who have to find out what has happened.
    fn note(&mut self, count: u64, in_start: bool, fate: Fate) {
        let mut names: Vec<String> = fs::read_dir(self.relay.wal_dir())
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        let (cut, confirmed) = (self.tally.cuts, self.confirmed);
        let when = if in_start { "in a start" } else { "at work" };
        let names = names.join(" ");
        self.trail
            .push(format!("cut {cut}, {when}, at use {count}: {fate:?}, confirmed {confirmed}, {names}"));
    }

    /// Starts the relay if it does not run, and looks at what it says; false if it says nothing.
    fn come_back(&mut self, start: bool) -> bool {
        if start {
            self.mark = self.relay.log().mark();
            self.relay.spawn();
            let answers = within(PATIENCE, || {
                let running = self.relay.is_running();
                (!running || self.relay.try_command("IDENTIFY_SYSTEM").is_ok()).then_some(running)
            });
            if answers != Some(true) {
                self.problem(format!("the relay does not come back\n{}", self.relay.log().tail()));
                return false;
            }
        }
        self.ask_relay();
        if self.orders.control {
            let lie = "inject=fsync,fdatasync,syncfs,sync_file_range:retval=0";
            self.trace = Some(self.relay.trace(&[lie]));
        }
        self.slots = Some(SlotWorker::start(
            self.orders.server,
            &self.relay.conninfo(),
            self.tally.cuts,
            self.promised.clone(),
        ));
        true
    }

    /// At the `count`-th use of the disk from now. `None` and a problem if that does not come.
    fn lose_power(&mut self, count: u64) -> Option<Cut> {
        let cut = self.disk.cut_after(count, &mut self.random);
        self.relay.signal(crate::Signal::KILL);
        self.disk.let_go();
        self.relay.kill9();
        self.trace = None;
        self.stop_slots();
        let Some(cut) = cut else {
            self.problem(format!("the relay does not work\n{}", self.relay.log().tail()));
            return None;
        };
        self.tally.cuts += 1;
        self.tally.fate.kept += cut.fate.kept;
        self.tally.fate.torn += cut.fate.torn;
        self.tally.fate.lost += cut.fate.lost;
        self.confirmed = self.confirmed_upstream();
        Some(cut)
    }

    fn stop_slots(&mut self) {
        if let Some(worker) = self.slots.take() {
            let (answered, doubtful) = worker.stop(&mut self.promised);
            self.tally.slots += answered;
            self.doubtful.extend(doubtful);
        }
    }

    /// Everything that a relay that is dead has confirmed.
    fn confirmed_upstream(&self) -> Lsn {
        let query = |column| format!("select {column} from pg_replication_slots where slot_name = '{RELAY}'");
        self.primary.wait_for_sql(&query("active"), "f");
        let confirmed = self.primary.sql(&query("restart_lsn")).parse().expect("it keeps WAL");
        if let Some(ack) = self.writer.acks().last() {
            assert!(ack.before_commit < confirmed, "the primary did not wait for the relay");
        }
        confirmed
    }

    /// What was confirmed is in the files, whatever a relay makes of them.
    fn look_at_files(&mut self) {
        let kept = self.promised.values().flatten().min().copied().unwrap_or(self.confirmed);
        match self.compare(kept.min(self.confirmed), self.confirmed) {
            Ok(bytes) => self.tally.compared += bytes,
            Err(error) => self.lost(error),
        }
        let mut verify = Command::new(self.orders.binary);
        let verified =
            verify.arg("verify").arg(self.disk.join("data")).output().expect("walrelay can be run");
        if !verified.status.success() {
            let said = [verified.stdout, verified.stderr].concat();
            self.problem(format!(
                "walrelay verify: {}: {}",
                verified.status,
                String::from_utf8_lossy(&said).trim_end()
            ));
        }
    }

    /// The bytes that were the same.
    fn compare(&self, from: Lsn, to: Lsn) -> Result<u64, String> {
        let mut at = from;
        while at < to {
            let segno = at.seg_at(self.seg_size);
            let end = segno.end(self.seg_size).min(to);
            let range = at.offset_in_seg(self.seg_size) as usize..;
            let range = range.start..range.start + end.since(at) as usize;
            let theirs = self.segment(&self.primary.wal_dir(), segno)?;
            let ours = self.segment(&self.relay.wal_dir(), segno)?;
            if ours.get(range.clone()) != theirs.get(range) {
                return Err(format!("WAL from {at} to {end}, confirmed to {to}, is not the primary's"));
            }
            at = end;
        }
        Ok(to.since(from))
    }

    fn segment(&self, dir: &Path, segno: SegNo) -> Result<Vec<u8>, String> {
        let tli = TimelineId::new(1).expect("not zero");
        let name = WalFileName::new(tli, segno).format(self.seg_size);
        let path = dir.join(&name);
        let found = fs::read(&path).or_else(|_| fs::read(path.with_extension("partial")));
        found
            .map_err(|error| format!("confirmed to {}: {name} in {}: {error}", self.confirmed, dir.display()))
    }

    /// The relay that has come back keeps its promises.
    fn ask_relay(&mut self) {
        let flush_lsn = self.relay.flush_lsn();
        if flush_lsn < self.confirmed {
            self.lost(format!("the relay is at {flush_lsn}, and had confirmed {}", self.confirmed));
        }
        let rows = self.relay.sql("select slot_name, restart_lsn from pg_replication_slots");
        let found: BTreeMap<String, Option<Lsn>> = rows
            .lines()
            .filter_map(|row| row.split_once('|'))
            .map(|(name, lsn)| (name.to_owned(), lsn.parse().ok()))
            .collect();
        let differs = |(name, lsn): &(&String, &Option<Lsn>)| found.get(*name) != Some(lsn);
        let differing = self.promised.iter().filter(differs);
        let lost: Vec<String> = differing
            .map(|(name, lsn)| format!("slot {name} was made at {lsn:?} and is {:?}", found.get(name)))
            .collect();
        lost.into_iter().for_each(|text| self.lost(text));
        for (name, lsn) in found {
            // Orders that were not answered may have had their effect.
            if !self.promised.contains_key(&name) && !self.doubtful.contains(&name) {
                self.lost(format!("slot {name} was dropped and is back"));
            }
            self.promised.insert(name, lsn);
        }
        self.doubtful.clear();
        self.drop_old_slots();
        self.look_at_log();
    }

    /// On a busy machine the client that makes and drops slots is too slow, and they fill the disk.
    fn drop_old_slots(&mut self) {
        let oldest = self.confirmed.rewind((DISK_MB << 20) / 4);
        self.promised.retain(|name, lsn| {
            let keep = lsn.is_none_or(|lsn| lsn >= oldest);
            if !keep {
                self.relay.command(&format!("DROP_REPLICATION_SLOT {name}"));
            }
            keep
        });
    }

    fn look_at_log(&mut self) {
        for bad in BAD {
            self.tally.problems.extend(self.relay.log().lines_with(bad, self.mark));
        }
    }

    /// Something that was confirmed is not so.
    fn lost(&mut self, text: String) {
        self.tally.lost += 1;
        self.problem(text);
    }

    fn problem(&mut self, text: String) {
        self.tally.problems.push(format!("cut {}: {text}", self.tally.cuts));
    }

    /// The relay catches up, and is compared in full.
    fn finish(mut self) -> Tally {
        if self.tally.problems.is_empty() {
            let start = !self.relay.is_running();
            self.come_back(start);
        }
        if self.tally.problems.is_empty() && !self.orders.control {
            self.writer.wait_for_more(5);
            let end = self.primary.settled_lsn();
            wait_until("the relay to catch up", || self.relay.flush_lsn() >= end);
            self.relay.terminate();
            self.look_at_log();
            self.stop_slots();
            self.confirmed = end;
            self.look_at_files();
        }
        if !self.tally.problems.is_empty() && !self.orders.control {
            self.keep_evidence();
        }
        self.tally.commits = self.writer.acks().len();
        (self.tally.writes, self.tally.flushes) = self.disk.counts();
        self.tally
    }
}

impl Scene<'_> {
    /// Says what has happened, and keeps the disk as the last cuts have left it.
    fn keep_evidence(&self) {
        let dir = std::env::temp_dir();
        for (number, cut) in self.last.iter().enumerate() {
            let path = dir.join(format!("powercut-{}-{number}.image", std::process::id()));
            match cut.save(&path) {
                Ok(()) => eprintln!("kept {}", path.display()),
                Err(error) => eprintln!("could not keep {}: {error}", path.display()),
            }
        }
        let recent = self.trail.len().saturating_sub(5);
        self.trail[recent..].iter().for_each(|line| eprintln!("{line}"));
        eprintln!("{}", self.relay.log().tail());
    }
}
