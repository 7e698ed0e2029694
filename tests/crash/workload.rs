//! What a relay does with its store in its life, in short: receptions, switches of timeline and the way back, slots made,
//! moved and dropped, retention, a hole filled, history files, an archive target and its progress, WAL that comes back from it.
//!
//! Each step brings the store to a state, from wherever it is, so that a run goes on after a crash with the step that was
//! not done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use walrelay::archive::archiving::{self, SteppedTarget};
use walrelay::disk::Disk;
use walrelay::disk::sim::{OperationKind, SimDisk};
use walrelay::store::fence::{FencedBy, Order};
use walrelay::store::{
    Identity, SlotPersistence, Stepped, Store, StoreConfig, StoreError, UpstreamParameters, WalWrite,
};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{
    Lsn, SegNo, SegSize, SlotName, SystemId, TimelineHistory, TimelineId, TimelinePosition, WalFileName,
    WalIdentity,
};

use super::archive::{Archive, Sending, TARGET};
use super::promised::Promised;

/// The smallest there is.
pub(super) const SEG: u64 = 1 << 20;
/// Where WAL begins.
pub(super) const START: Lsn = Lsn::new(3 * SEG);
/// How often a step is tried again after an error.
const TRIES: usize = 4;

/// How a run has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// All is done, and found again.
    Done,
    /// The power is off, or the store has failed.
    Early,
}

/// A step of the workload.
#[derive(Clone, Copy, Debug)]
enum Step {
    Create(&'static str),
    Drop(&'static str),
    /// A consumer confirms so many bytes from the start on.
    Confirm(&'static str, u64),
    /// WAL of a timeline comes up to so many bytes from the start.
    Receive(u32, u64),
    /// The connection is lost: what is no whole record comes again.
    Reconnect,
    Retain,
    /// A timeline that forks off the present one.
    Switch(u32),
    /// Back to the first, on the way to a third.
    GoBack,
    /// The archive target gets so many files at most, and that is saved.
    Archive(usize),
    /// It gets all that there are, and nothing is saved.
    Take,
    /// A segment comes back from the archive.
    Recall(u64),
    /// Somebody removes a segment by hand.
    Lose(u64),
    Refill,
    /// A server on this timeline is followed.
    Head(u32),
    /// A fence of this number is ordered, and closed.
    Fence(u64),
    Unfence(u64),
}

const KB: u64 = 1000;

/// Files.
const ALL: usize = usize::MAX;

const STEPS: &[Step] = &[
    Step::Create("a"),
    Step::Receive(1, 250 * KB),
    Step::Create("b"),
    Step::Confirm("a", 200 * KB),
    Step::Retain,
    Step::Receive(1, 1_450 * KB),
    Step::Archive(1),
    Step::Confirm("a", 1_400 * KB),
    Step::Reconnect,
    Step::Receive(1, u64::MAX),
    Step::Confirm("a", 2_000 * KB),
    Step::Retain,
    Step::Head(2),
    Step::Fence(1),
    Step::Switch(2),
    Step::Receive(2, 2_300 * KB),
    Step::Create("c"),
    Step::Receive(2, u64::MAX),
    Step::Drop("b"),
    Step::GoBack,
    Step::Switch(3),
    Step::Receive(3, 1_900 * KB),
    Step::Archive(3),
    Step::Confirm("a", 1_500 * KB),
    Step::Confirm("c", 1_700 * KB),
    Step::Receive(3, 5_000 * KB),
    Step::Archive(ALL),
    Step::Retain,
    Step::Recall(3),
    Step::Lose(5),
    Step::Receive(3, 5_300 * KB),
    Step::Fence(4),
    Step::Refill,
    Step::Unfence(4),
    Step::Confirm("a", 3_500 * KB),
    Step::Confirm("c", 4_700 * KB),
    Step::Receive(3, 5_600 * KB),
    Step::Retain,
    Step::Drop("c"),
    Step::Confirm("a", 5_400 * KB),
    Step::Take,
    Step::Retain,
    Step::Recall(4),
    Step::Archive(ALL),
    Step::Retain,
    Step::Receive(3, u64::MAX),
];

/// A run of the workload, over as many processes as it takes.
#[derive(Debug)]
pub(super) struct Workload {
    tree: Arc<Tree>,
    promised: Promised,
    archive: Archive,
    next: usize,
    random: u64,
    /// Starts that were given up one after the other.
    refused: usize,
}

/// Three timelines: the first goes on where the others have left it.
#[derive(Debug)]
pub(super) struct Tree {
    wal: [WalGenerator; 3],
    /// Where 2 and 3 begin.
    forks: [Lsn; 2],
}

impl Tree {
    pub(super) fn new() -> Tree {
        let id = WalIdentity { system_id: identity().system_id, seg_size: identity().seg_size };
        let mut first = WalGenerator::new(id, TimelineId::FIRST, START, 7);
        first.fill(1_300_000);
        let (mut third, to_third) = (first.clone(), first.position());
        first.fill(300_000);
        let (mut second, to_second) = (first.clone(), first.position());
        first.fill(900_000);
        second.switch_timeline(tli(2));
        second.fill(1_300_000);
        third.switch_timeline(tli(3));
        third.fill(900_000);
        // Over the whole of a segment.
        third.record(1_300_000);
        third.fill(300_000);
        third.switch_segment();
        third.fill(1_500_000);
        Tree { wal: [first, second, third], forks: [to_second, to_third] }
    }

    /// All bytes of a timeline, from the start on.
    pub(super) fn bytes(&self, tli: TimelineId) -> &[u8] {
        self.wal[tli.as_u32() as usize - 1].bytes()
    }

    /// A segment of a timeline.
    pub(super) fn segment(&self, wal: WalFileName) -> &[u8] {
        let from = wal.segno.start(identity().seg_size).since(START) as usize;
        &self.bytes(wal.tli)[from..from + SEG as usize]
    }

    /// The end of the timeline's last record.
    fn end(&self, tli: TimelineId) -> Lsn {
        *self.wal[tli.as_u32() as usize - 1].record_ends().last().expect("there are some")
    }

    pub(super) fn history_file(&self, tli: TimelineId) -> String {
        format!("1\t{}\tno recovery target specified\n", self.forks[tli.as_u32() as usize - 2])
    }

    pub(super) fn history(&self, tli: TimelineId) -> TimelineHistory {
        match tli.as_u32() {
            1 => TimelineHistory::first(),
            _ => TimelineHistory::parse(tli, self.history_file(tli).as_bytes()).expect("it is one"),
        }
    }
}

impl Workload {
    pub(super) fn new(schedule: u64) -> Workload {
        // Made once: it takes longer than a run.
        static TREE: std::sync::OnceLock<Arc<Tree>> = std::sync::OnceLock::new();
        let tree = TREE.get_or_init(|| Arc::new(Tree::new())).clone();
        let (promised, archive) = (Promised::default(), Archive::default());
        Workload { promised, archive, tree, next: 0, random: schedule, refused: 0 }
    }

    /// What it does with a disk if nothing goes wrong.
    pub(super) fn operations(mut self) -> Vec<OperationKind> {
        let disk = SimDisk::new();
        disk.start_trace();
        assert_eq!(self.run(&disk), Ended::Done);
        disk.trace().into_iter().map(|operation| operation.kind).collect()
    }

    /// Goes on, as a process that finds this disk.
    pub(super) fn run(&mut self, disk: &SimDisk) -> Ended {
        let Some(mut relay) = self.start(disk) else { return Ended::Early };
        while let Some(step) = STEPS.get(self.next) {
            for tries in 1.. {
                let Err(error) = self.perform(*step, &mut relay) else { break };
                if disk.is_dead() || relay.has_failed() {
                    return Ended::Early;
                }
                assert!(tries < TRIES, "{step:?} is not done again: {error}");
                relay.it.writer.rewind();
            }
            self.next += 1;
        }
        let Relay { target, it, .. } = relay;
        drop(target);
        it.stop();
        if disk.is_dead() {
            return Ended::Early;
        }
        match self.start(disk) {
            Some(relay) => {
                let end = self.tree.end(tli(3));
                let tip = relay.it.store.tip().expect("there is WAL");
                assert_eq!((tip.tli, tip.write_lsn, tip.flush_lsn), (tli(3), end, end));
                Ended::Done
            }
            None => Ended::Early,
        }
    }

    /// Starts, and looks for all that was promised.
    fn start(&mut self, disk: &SimDisk) -> Option<Relay> {
        let mut relay = match Relay::open(disk) {
            Ok(relay) => relay,
            Err(_) if disk.is_dead() => return None,
            Err(error @ StoreError::Io { .. }) => {
                self.refused += 1;
                assert!(self.refused < TRIES, "it does not start again: {error}");
                return None;
            }
            Err(error) => panic!("it does not start: {error}"),
        };
        self.refused = 0;
        match self.promised.check(&self.tree, &self.archive, &mut relay.it) {
            Ok(()) => {}
            Err(_) if disk.is_dead() => return None,
            Err(broken) => panic!("before step {} ({:?}): {broken}", self.next, STEPS.get(self.next)),
        }
        match relay.begin(&self.tree, &mut self.archive) {
            Ok(()) => Some(relay),
            Err(_) if disk.is_dead() || relay.has_failed() => None,
            Err(_) => {
                // Whoever connects tries again.
                relay.begin(&self.tree, &mut self.archive).ok()?;
                Some(relay)
            }
        }
    }

    fn perform(&mut self, step: Step, relay: &mut Relay) -> Result<(), String> {
        let outcome = match step {
            Step::Create(name) => self.create(name, relay),
            Step::Drop(name) => self.drop_slot(name, relay),
            Step::Confirm(name, bytes) => self.confirm(name, START.advance(bytes), relay),
            Step::Receive(number, bytes) => self.receive(tli(number), bytes, relay),
            Step::Reconnect => {
                relay.it.writer.rewind();
                Ok(())
            }
            Step::Retain => self.retain(relay),
            Step::Switch(number) => self.switch(tli(number), relay),
            Step::GoBack => self.go_back(relay),
            Step::Archive(most) => self.archive(most, relay),
            Step::Take => self.take(relay),
            Step::Recall(segment) => self.recall(SegNo::new(segment), relay),
            Step::Lose(segment) => self.lose(SegNo::new(segment), relay),
            Step::Refill => self.refill(relay),
            Step::Head(number) => self.head(tli(number), relay),
            Step::Fence(epoch) => self.fence(epoch, relay),
            Step::Unfence(epoch) => self.unfence(epoch, relay),
        };
        self.promised.note_slots(&relay.it.store);
        outcome
    }

    fn create(&mut self, name: &str, relay: &Relay) -> Result<(), String> {
        let store = &relay.it.store;
        if store.slots().get(name).is_none() {
            self.promised.may_have(name);
            let slot = name.parse::<SlotName>().expect("it is one");
            store.create_reserving_slot(&slot, SlotPersistence::Persistent).map_err(text)?;
        }
        self.promised.has(name);
        Ok(())
    }

    fn drop_slot(&mut self, name: &str, relay: &Relay) -> Result<(), String> {
        let store = &relay.it.store;
        if store.slots().get(name).is_some() {
            self.promised.may_have(name);
            store.drop_slot(name, 1).map_err(text)?;
        }
        self.promised.has_not(name);
        Ok(())
    }

    fn confirm(&mut self, name: &str, to: Lsn, relay: &Relay) -> Result<(), String> {
        let store = &relay.it.store;
        let tip = store.tip().ok_or("there is no WAL")?;
        let guard = store.slots().acquire(name, 1).map_err(text)?;
        guard.confirm_flush(|| Some(to.min(tip.flush_lsn)));
        Ok(())
    }

    fn receive(&mut self, tli: TimelineId, bytes: u64, relay: &mut Relay) -> Result<(), String> {
        let tree = self.tree.clone();
        let end = START.advance(bytes.min(tree.bytes(tli).len() as u64));
        self.promised.may_follow(tli);
        relay.it.writer.note_followed().map_err(text)?;
        self.promised.follows(tli);
        loop {
            let at = relay.it.writer.position().ok_or("it has not begun")?;
            assert_eq!(at.tli, tli, "it has come off its timeline");
            if at.lsn >= end {
                break;
            }
            let piece = self.below(400_000).max(100).min(end.since(at.lsn));
            let from = at.lsn.since(START) as usize;
            relay.it.writer.append(at.lsn, &tree.bytes(tli)[from..from + piece as usize]).map_err(text)?;
            relay.it.writer.commit();
            // Sometimes the next segment is ready when this one is full, with or without zeros in it, and sometimes not.
            for _ in 0..self.below(4) {
                relay.it.making.step(Instant::now());
            }
            if self.below(2) == 0 {
                self.flush(relay)?;
            }
        }
        self.flush(relay)
    }

    /// Syncs what is written, and tells the upstream.
    fn flush(&mut self, relay: &mut Relay) -> Result<(), String> {
        while relay.it.flushing.step() {}
        self.promised.note_flushed(&relay.it.store);
        if relay.has_failed() { Err("a sync has failed".to_owned()) } else { Ok(()) }
    }

    fn retain(&mut self, relay: &mut Relay) -> Result<(), String> {
        relay.sending(&mut self.archive).look()?;
        self.promised.may_remove(&relay.it.store);
        if !relay.it.retaining.pass(Instant::now()) {
            return Err("retention could not do all".to_owned());
        }
        self.promised.slots_are_saved();
        Ok(())
    }

    fn switch(&mut self, tli: TimelineId, relay: &mut Relay) -> Result<(), String> {
        let store = relay.it.store.clone();
        self.promised.may_have_history(tli);
        store.save_history_file(tli, self.tree.history_file(tli).as_bytes()).map_err(text)?;
        self.promised.has_history(tli);
        let at = relay.it.writer.position().ok_or("it has not begun")?;
        if at.tli != tli {
            self.flush(relay)?;
            self.promised.may_follow(tli);
            let history = self.tree.history(tli);
            self.promised.may_come_back(&store, &history);
            match relay.it.writer.find(history.clone()).map_err(text)? {
                Some(begun) => relay.it.writer.take_up(begun, tli).map_err(text)?,
                None => relay.it.writer.switch_timeline(history).map_err(text)?,
            }
        }
        self.promised.follows(tli);
        self.flush(relay)
    }

    fn go_back(&mut self, relay: &mut Relay) -> Result<(), String> {
        let at = relay.it.writer.position().ok_or("it has not begun")?;
        if at.tli == tli(2) {
            self.flush(relay)?;
            self.promised.may_follow(TimelineId::FIRST);
            self.promised.may_come_back(&relay.it.store, &TimelineHistory::first());
            let held = relay.it.writer.find(TimelineHistory::first()).map_err(text)?;
            relay.it.writer.take_up(held.ok_or("the first timeline is gone")?, tli(3)).map_err(text)?;
        }
        self.promised.follows(TimelineId::FIRST);
        Ok(())
    }

    fn archive(&mut self, most: usize, relay: &mut Relay) -> Result<(), String> {
        let tree = self.tree.clone();
        relay.sending(&mut self.archive).look()?;
        for _ in 0..most {
            // Often another file is counted while one is on its way.
            let (is_on_its_way, is_there) = (self.below(3) == 0, self.below(2) == 0);
            let mut sending = relay.sending(&mut self.archive);
            if !sending.send(&tree, is_on_its_way)? {
                break;
            }
            if is_there {
                sending.save()?;
            }
        }
        relay.sending(&mut self.archive).save()
    }

    fn take(&mut self, relay: &mut Relay) -> Result<(), String> {
        let mut sending = relay.sending(&mut self.archive);
        sending.look()?;
        while sending.send(&self.tree, false)? {}
        // What it needs now is told, by what was saved.
        sending.look()
    }

    fn recall(&self, segno: SegNo, relay: &Relay) -> Result<(), String> {
        self.archive.recall(&relay.it.store, segno, &self.tree);
        Ok(())
    }

    fn lose(&mut self, segno: SegNo, relay: &Relay) -> Result<(), String> {
        self.promised.may_miss(segno);
        let name = WalFileName::new(tli(3), segno).format(identity().seg_size);
        let path = config().data_dir.join("pg_wal").join(name);
        match relay.disk.exists(&path) {
            true => relay.disk.remove(&path).map_err(text),
            false => Ok(()),
        }
    }

    fn refill(&mut self, relay: &Relay) -> Result<(), String> {
        for name in relay.it.store.missing_segments().map_err(text)? {
            let from = name.segno.start(identity().seg_size).since(START) as usize;
            let mut wal = &self.tree.bytes(name.tli)[from..from + SEG as usize];
            relay.it.store.fill_segment(name, &mut wal).map_err(text)?;
        }
        self.promised.misses_nothing();
        Ok(())
    }

    fn head(&mut self, tli: TimelineId, relay: &mut Relay) -> Result<(), String> {
        relay.it.writer.head_for(tli).map_err(text)?;
        self.promised.heads_for(tli);
        Ok(())
    }

    fn fence(&mut self, epoch: u64, relay: &mut Relay) -> Result<(), String> {
        let store = relay.it.store.clone();
        let order = Order { epoch: Some(epoch), reason: "workload".to_owned(), by: fenced_by() };
        self.promised.may_be_fenced(epoch, &store);
        store.order_fence(order).map_err(text)?;
        store.fences().save().map_err(text)?;
        self.promised.is_fenced(epoch);
        relay.it.writer.commit();
        self.flush(relay)?;
        let tip = store.tip().ok_or("there is no WAL")?;
        let end = TimelinePosition { tli: tip.tli, lsn: tip.flush_lsn };
        store.fences().close(end).map_err(text)?;
        let shown = store.fences().now();
        assert!(shown.is_settled(epoch) && shown.last.is_some_and(|fence| fence.position == Some(end.lsn)));
        self.promised.is_closed(end.lsn);
        Ok(())
    }

    fn unfence(&mut self, epoch: u64, relay: &Relay) -> Result<(), String> {
        self.promised.may_be_free(epoch);
        relay
            .it
            .store
            .fences()
            .lift(Some(epoch), &fenced_by(), relay.it.store.fences().orders())
            .map_err(text)?;
        self.promised.is_free(epoch);
        Ok(())
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % end
    }
}

/// A process.
struct Relay {
    disk: SimDisk,
    target: SteppedTarget,
    /// What that has got from it.
    taken: BTreeSet<String>,
    it: Stepped,
}

impl Relay {
    fn open(disk: &SimDisk) -> Result<Relay, StoreError> {
        let it = Store::open_on(Arc::new(disk.clone()), config())?;
        // Until it has said what it needs, all is held.
        let target = archiving::start(&it.store, &[TARGET.to_owned()]).pop().expect("one is started");
        Ok(Relay { disk: disk.clone(), target, taken: BTreeSet::new(), it })
    }

    /// As when it has found its upstream: what the archive needs stays, and WAL has a place to begin.
    fn begin(&mut self, tree: &Tree, archive: &mut Archive) -> Result<(), String> {
        let mut sending = self.sending(archive);
        sending.look()?;
        if sending.target.is_dirty() {
            sending.save()?;
        }
        self.it.store.attach(identity(), UpstreamParameters::default()).map_err(text)?;
        if self.it.writer.position().is_none() {
            self.it.writer.begin(identity(), tree.history(TimelineId::FIRST), START);
        }
        Ok(())
    }

    fn sending<'a>(&'a mut self, archive: &'a mut Archive) -> Sending<'a> {
        Sending { target: &mut self.target, archive, taken: &mut self.taken }
    }

    fn has_failed(&self) -> bool {
        self.it.store.failed().now_or_never().is_some()
    }
}

fn fenced_by() -> FencedBy {
    FencedBy { role: "admin".to_owned(), address: "[local]".to_owned() }
}

pub(super) fn identity() -> Identity {
    Identity { system_id: SystemId(77), seg_size: SegSize::new(SEG).expect("the smallest") }
}

pub(super) fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).expect("not 0")
}

pub(super) fn config() -> StoreConfig {
    StoreConfig {
        data_dir: PathBuf::from(Path::new("/relay")),
        wal_write: WalWrite::Pwrite,
        wal_keep_size: 0,
        max_slot_wal_keep_size: None,
        max_replication_slots: 10,
    }
}

pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
