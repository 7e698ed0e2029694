//! A relay: the real store on a simulated disk, the real machines on simulated lines.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as Task, Waker};
use std::time::SystemTime;

use walrelay::consumers::{ConsumerGuard, ConsumerIdentity};
use walrelay::disk::sim::SimDisk;
use walrelay::store::{
    ReadError, Segment, SlotError, SlotGuard, SlotPersistence, Stepped, Store, StoreConfig, StoreError,
    WalWrite,
};
use walrelay_proto::ack::Rules;
use walrelay_proto::sender::{MAX_MESSAGES, MAX_SEND_SIZE, Report, Sender, Wal};
use walrelay_proto::{FeedbackHorizon, Lsn, SegNo, TimelineHistory, TimelineId};

use crate::context::{Context, Event, NodeId};
use crate::follow::Follower;
use crate::model::{BranchId, Place, SEG_SIZE, identity};
use crate::net::{ConnId, Side};
use crate::serve::{NoSlot, Read, Session, SlotState, Source, Who, wal};

/// How a relay is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) hosts: Vec<NodeId>,
    pub(crate) wal_keep_size: u64,
    pub(crate) max_slot_wal_keep_size: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) id: NodeId,
    pub(crate) disk: SimDisk,
    setup: Setup,
    life: Option<Life>,
    lives: u64,
    /// What is known of its slots, after answers that a client has got.
    slots: BTreeMap<String, Known>,
    /// Whether its disk may refuse things at the moment.
    pub(crate) is_disk_ill: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    There,
    Gone,
    /// The disk has refused something.
    Doubtful,
}

/// From one start to the next.
#[derive(Debug)]
struct Life {
    number: u64,
    stepped: Stepped,
    follower: Follower,
    has: Has,
    sessions: BTreeMap<ConnId, Session<Seat>>,
    is_flush_due: bool,
}

/// What a stream has while it lasts.
#[derive(Debug)]
struct Seat {
    slot: Option<SlotGuard>,
    consumer: ConsumerGuard,
}

/// What its consumers get.
#[derive(Debug)]
struct Has {
    id: NodeId,
    store: Arc<Store>,
    disk: SimDisk,
    news: Vec<(String, Known)>,
    /// What the standbys of slots need, as they have told, or as a start has found it.
    needs: BTreeMap<String, FeedbackHorizon>,
    /// What was read last, and by which history it was found: a walsender keeps its segment, too.
    open: Vec<(TimelineId, SegNo, Arc<TimelineHistory>, Arc<Segment>)>,
}

/// Segments that are kept open.
const OPEN: usize = 3;

impl Life {
    /// What all consumers need, those that are connected and those that have a slot.
    fn needed(&self) -> FeedbackHorizon {
        let valid = self.stepped.store.slots().list().into_iter().filter(|slot| !slot.invalidated);
        let of_slots = valid.filter_map(|slot| self.has.needs.get(&slot.name).copied());
        let without_slot = |session: &&Session<Seat>| session.seat().is_some_and(|seat| seat.slot.is_none());
        let of_others = self.sessions.values().filter(without_slot).map(Session::feedback);
        of_slots.chain(of_others).fold(FeedbackHorizon::default(), FeedbackHorizon::merge)
    }
}

impl Relay {
    pub(crate) fn new(id: NodeId, setup: Setup) -> Relay {
        let disk = SimDisk::new();
        Relay { id, disk, setup, life: None, lives: 0, slots: BTreeMap::new(), is_disk_ill: false }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// End of what is durable here.
    pub(crate) fn flushed(&self) -> Option<Lsn> {
        self.life.as_ref()?.stepped.store.tip().map(|tip| tip.flush_lsn)
    }

    /// Whom it follows first.
    pub(crate) fn above(&self) -> Option<NodeId> {
        self.setup.hosts.first().copied()
    }

    /// Whether it holds WAL, and no segment of this timeline's own.
    pub(crate) fn lacks(&self, tli: TimelineId) -> bool {
        let held = self.life.as_ref().and_then(|life| life.stepped.store.held_timelines().ok());
        held.is_some_and(|held| !held.is_empty() && held.iter().all(|(here, _)| *here != tli))
    }

    pub(crate) fn oldest(&self) -> Option<Lsn> {
        self.life.as_ref()?.stepped.store.oldest()
    }

    /// What it passes on upstream, and to whom, if it is up.
    pub(crate) fn needed(&self) -> Option<FeedbackHorizon> {
        self.life.as_ref().map(Life::needed)
    }

    /// Whom it is connected to.
    pub(crate) fn upstream(&self, cx: &Context) -> Option<NodeId> {
        let conn = self.life.as_ref()?.follower.conn()?;
        cx.lines.get(conn).map(|line| line.server)
    }

    /// What it has heard of a consumer's needs: by its slot, or by who is connected.
    pub(crate) fn feedback_of(
        &self,
        consumer: NodeId,
        slot: Option<&str>,
        cx: &Context,
    ) -> Option<FeedbackHorizon> {
        let life = self.life.as_ref()?;
        if let Some(slot) = slot {
            return life.has.needs.get(slot).copied();
        }
        let is_its =
            |(conn, _): &(&ConnId, _)| cx.lines.get(**conn).is_some_and(|line| line.client == consumer);
        life.sessions.iter().filter(is_its).map(|(_, session)| session.feedback()).next_back()
    }

    /// Whether it has taken WAL that differs from what was written where nobody can verify it.
    pub(crate) fn is_tainted(&self, cx: &Context) -> bool {
        let (Some(life), Some(branch)) = (&self.life, cx.branches.get(&self.id)) else { return false };
        let mut is_tainted = false;
        let _ = each_segment(&life.stepped.store, &mut |at, bytes| {
            is_tainted |= !cx.model.is_exactly(*branch, at, bytes);
        });
        is_tainted
    }

    /// Its disk is well again.
    pub(crate) fn heal(&mut self) {
        self.is_disk_ill = false;
        self.disk.heal();
        self.disk.set_free_space(None);
        self.disk.release();
    }

    fn config(&self) -> StoreConfig {
        StoreConfig {
            data_dir: PathBuf::from("/relay"),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: self.setup.wal_keep_size,
            max_slot_wal_keep_size: self.setup.max_slot_wal_keep_size,
            max_replication_slots: 8,
        }
    }

    /// Starts, or finds that it cannot.
    pub(crate) fn start(&mut self, cx: &mut Context) {
        if self.life.is_some() {
            return;
        }
        if self.disk.is_hung() {
            return cx.after(50_000, Event::Start(self.id));
        }
        let opened = Store::open_on(Arc::new(self.disk.clone()), self.config());
        if self.disk.is_dead() {
            drop(opened);
            return self.lose_power(cx);
        }
        let stepped = match opened {
            Ok(stepped) => stepped,
            Err(error) => return self.cannot_start(&error, cx),
        };
        self.lives += 1;
        let recovered = stepped.store.tip();
        cx.note("relay starts", self.id as u64, recovered.map_or(0, |tip| tip.write_lsn.as_u64()));
        if let Some(place) = self.check_found(&stepped.store, cx) {
            cx.branches.insert(self.id, place.branch);
            let Context { expected, model, .. } = &mut *cx;
            // Which of them it is is decided now.
            if let Some(expected) = expected.get_mut(&self.id) {
                expected.retain(|expected| model.has(place, *expected));
            }
        }
        if let Some(names) = cx.groups.get(&self.id) {
            let flush = format!("ANY 1 ({})", names.join(", "));
            let flush = flush.parse().expect("names of consumers are names");
            stepped.store.consumers().set_rules(Rules { flush, ..Rules::default() });
        }
        let (number, store) = (self.lives, stepped.store.clone());
        let follower = Follower::new(self.id, self.setup.hosts.clone(), &stepped);
        let needs = store.slots().list().into_iter().map(|slot| (slot.name, slot.feedback)).collect();
        let has =
            Has { id: self.id, store, needs, disk: self.disk.clone(), news: Vec::new(), open: Vec::new() };
        self.life =
            Some(Life { number, stepped, follower, has, sessions: BTreeMap::new(), is_flush_due: false });
        let pause = cx.chance.between(50_000, 1_000_000);
        cx.after(pause, Event::Retain(self.id, number));
        cx.wake(self.id, cx.now);
    }

    fn cannot_start(&mut self, error: &StoreError, cx: &mut Context) {
        cx.note("relay cannot start", self.id as u64, 0);
        cx.say(|| format!("relay {}: {error}", self.id));
        if !self.is_disk_ill {
            return cx.fail(|| format!("relay {} does not start on a disk that is well: {error}", self.id));
        }
        self.disk = self.disk.restart(cx.chance.next());
        let pause = cx.chance.between(50_000, 500_000);
        cx.after(pause, Event::Start(self.id));
    }

    /// The power is off.
    pub(crate) fn lose_power(&mut self, cx: &mut Context) {
        cx.counts.crashes += 1;
        cx.note("relay loses power", self.id as u64, self.disk.operations());
        self.end(cx);
        // What else might be found.
        if !self.is_disk_ill && cx.chance.percent(25) {
            let other = self.disk.crash(cx.chance.next());
            match Store::open_on(Arc::new(other), self.config()) {
                Ok(stepped) => drop(self.check_found(&stepped.store, cx)),
                Err(error) => cx.fail(|| format!("relay {} would not start after a crash: {error}", self.id)),
            }
        }
        self.disk = self.disk.crash(cx.chance.next());
        self.heal();
        let pause = cx.chance.between(1000, 800_000);
        cx.after(pause, Event::Start(self.id));
    }

    /// The process ends without a word, and the machine goes on.
    pub(crate) fn exit(&mut self, cx: &mut Context) {
        cx.counts.restarts += 1;
        cx.note("relay ends", self.id as u64, 0);
        self.end(cx);
        self.disk = self.disk.restart(cx.chance.next());
        let pause = cx.chance.between(1000, 800_000);
        cx.after(pause, Event::Start(self.id));
    }

    /// Stops as it is told to.
    pub(crate) fn stop(&mut self, cx: &mut Context) {
        cx.counts.restarts += 1;
        cx.note("relay stops", self.id as u64, 0);
        let Some(life) = self.life.take() else { return };
        let Life { stepped, follower, sessions, has, .. } = life;
        hang_up(&follower, sessions.keys(), false, cx);
        drop((follower, sessions, has));
        stepped.stop();
        if self.disk.is_dead() {
            return self.lose_power(cx);
        }
        self.disk = self.disk.restart(cx.chance.next());
        let pause = cx.chance.between(1000, 300_000);
        cx.after(pause, Event::Start(self.id));
    }

    fn end(&mut self, cx: &mut Context) {
        if let Some(life) = self.life.take() {
            let silently = cx.chance.percent(50);
            hang_up(&life.follower, life.sessions.keys(), silently, cx);
        }
    }

    pub(crate) fn connect(&mut self, conn: ConnId, cx: &mut Context) {
        match &mut self.life {
            Some(life) => drop(life.sessions.insert(conn, Session::new(conn, cx.now))),
            None => cx.lines.close(conn, Side::Server),
        }
    }

    pub(crate) fn connected(&mut self, conn: ConnId, cx: &mut Context) {
        if let Some(life) = &mut self.life {
            life.follower.connected(conn, cx);
        }
    }

    pub(crate) fn take(&mut self, conn: ConnId, side: Side, bytes: Vec<u8>, cx: &mut Context) {
        let Some(life) = &mut self.life else { return };
        match side {
            Side::Client => life.follower.take(conn, bytes),
            Side::Server => {
                if let Some(session) = life.sessions.get_mut(&conn) {
                    session.take(bytes, cx.now);
                }
            }
        }
        self.run(cx);
    }

    pub(crate) fn closed(&mut self, conn: ConnId, side: Side, cx: &mut Context) {
        let Some(life) = &mut self.life else { return };
        match side {
            Side::Client => life.follower.closed(conn),
            Side::Server => {
                life.sessions.remove(&conn);
                cx.lines.close(conn, Side::Server);
            }
        }
        self.run(cx);
    }

    pub(crate) fn run(&mut self, cx: &mut Context) {
        let is_hung = self.disk.is_hung();
        let Some(life) = &mut self.life else { return };
        if is_hung {
            // Whoever waits for the disk waits; consumers are served.
            cx.wake(self.id, cx.now + 20_000);
        } else {
            life.follower.needed = life.needed();
            life.follower.run(&mut life.stepped, cx);
        }
        for session in life.sessions.values_mut() {
            session.run(&mut life.has, cx);
            let slot = session.seat().and_then(|seat| seat.slot.as_ref());
            let is_lost = slot.is_some_and(|slot| life.has.slot(slot.name()) == SlotState::Lost);
            session.check(self.id, is_lost, cx);
        }
        life.sessions.retain(|_, session| !session.is_over());
        if !is_hung && life.needed() != life.follower.needed {
            cx.wake(self.id, cx.now);
        }
        if let Some(due) = life.sessions.values().filter_map(|session| session.deadline(cx)).min() {
            cx.wake(self.id, due);
        }
        self.slots.extend(life.has.news.drain(..));
        let store = &life.stepped.store;
        if !life.is_flush_due && *store.written().borrow() != *store.flushed().borrow() {
            life.is_flush_due = true;
            let (number, pause) = (life.number, cx.chance.between(50, 8000));
            cx.after(pause, Event::Flush(self.id, number));
        }
    }

    pub(crate) fn flush(&mut self, number: u64, cx: &mut Context) {
        let is_hung = self.disk.is_hung();
        let Some(life) = self.life.as_mut().filter(|life| life.number == number) else { return };
        if is_hung {
            return cx.after(20_000, Event::Flush(self.id, number));
        }
        life.is_flush_due = false;
        life.stepped.flushing.step();
        cx.note("flushes", self.id as u64, self.disk.operations());
        self.run(cx);
    }

    pub(crate) fn retain(&mut self, number: u64, cx: &mut Context) {
        let is_hung = self.disk.is_hung();
        let Some(life) = self.life.as_mut().filter(|life| life.number == number) else { return };
        let pause = cx.chance.between(100_000, 2_000_000);
        cx.after(pause, Event::Retain(self.id, number));
        if is_hung {
            return;
        }
        life.stepped.flushing.step();
        let is_done = life.stepped.retaining.pass(cx.instant());
        cx.note("retains", self.id as u64, u64::from(is_done));
        let store = life.stepped.store.clone();
        if !self.disk.is_dead() {
            self.check_kept(&store, cx);
            let place = cx.branches.get(&self.id).map(|branch| Place { branch: *branch, lsn: Lsn::INVALID });
            if let Some(place) = place {
                self.check_slots(&store, place, cx);
            }
        }
        self.run(cx);
    }

    /// Whether the process has to end.
    pub(crate) fn has_ended(&self) -> bool {
        let Some(life) = &self.life else { return false };
        let failed = pin!(life.stepped.store.failed());
        life.follower.is_over || failed.poll(&mut Task::from_waker(Waker::noop())).is_ready()
    }

    // What has to hold.

    /// What a start has found.
    fn check_found(&self, store: &Store, cx: &mut Context) -> Option<Place> {
        let place = self.check_content(store, cx)?;
        let expected = cx.expected.get(&self.id).cloned().unwrap_or_default();
        if !expected.is_empty() && !expected.iter().any(|expected| cx.model.has(place, *expected)) {
            cx.fail(|| {
                format!("relay {} has reported {expected:?} as flushed, and a start finds {place:?}", self.id)
            });
        }
        // A fence that is ordered now is one of that timeline.
        let heading = store.fences().heading().max(store.tip().map(|tip| tip.tli));
        if let Some(followed) =
            cx.headings.get(&self.id).copied().filter(|followed| heading < Some(*followed))
        {
            cx.fail(|| {
                format!(
                    "relay {} has followed timeline {followed}, and a start knows of {heading:?}",
                    self.id
                )
            });
        }
        self.check_slots(store, place, cx);
        self.check_kept(store, cx);
        Some(place)
    }

    /// That all WAL from the oldest to the end is some branch's; the position. Nothing is held where WAL begins.
    fn check_content(&self, store: &Store, cx: &mut Context) -> Option<Place> {
        let start = Place { branch: 0, lsn: cx.model.start() };
        let Some(tip) = store.tip() else { return Some(start) };
        let history = store.history();
        let same = |branch: &BranchId| *cx.model.branches[*branch].history == *history;
        let mut branches: Vec<_> = cx.model.of_timeline(tip.tli).filter(same).collect();
        let held = each_segment(store, &mut |at, bytes| {
            for branch in branches.iter().filter(|branch| !cx.model.is(**branch, at, bytes)) {
                cx.say(|| format!("not branch {branch}: {}", cx.model.differs(*branch, at, bytes)));
            }
            branches.retain(|branch| cx.model.is(*branch, at, bytes));
        });
        let id = self.id;
        if let Err(missing) = held {
            cx.fail(|| format!("relay {id} does not have all before its end {tip:?}: {missing}"));
            return None;
        }
        let Some(branch) = branches.first() else {
            cx.fail(|| format!("relay {id} has WAL up to {tip:?} that nobody has written"));
            return None;
        };
        // Between siblings that are the same up to here, the one that was reported.
        let expected = cx.expected.get(&self.id).into_iter().flatten();
        let reported = expected.map(|place| place.branch).find(|branch| branches.contains(branch));
        Some(Place { branch: reported.unwrap_or(*branch), lsn: tip.write_lsn })
    }

    fn check_slots(&self, store: &Store, place: Place, cx: &mut Context) {
        for (name, known) in &self.slots {
            let found = store.slots().get(name);
            match (known, &found) {
                (Known::There, None) => cx.fail(|| format!("slot {name} of relay {} is lost", self.id)),
                (Known::Gone, Some(_)) => cx.fail(|| format!("slot {name} of relay {} is back", self.id)),
                _ => {}
            }
            if let Some(restart) = found.and_then(|slot| slot.restart_lsn) {
                check_confirmed(self.id, name, Place { branch: place.branch, lsn: restart }, cx);
            }
        }
    }

    /// That what slots keep is there.
    fn check_kept(&self, store: &Store, cx: &mut Context) {
        let (Some(tip), Some(oldest)) = (store.tip(), store.oldest()) else { return };
        // Who tells nonsense may have its slot at WAL that is gone.
        for slot in store.slots().list().into_iter().filter(|slot| !slot.invalidated && is_honest(&slot.name))
        {
            let Some(restart) = slot.restart_lsn.filter(|restart| *restart <= tip.write_lsn) else {
                continue;
            };
            if oldest > restart.seg_start(identity().seg_size) && restart < tip.write_lsn {
                let name = &slot.name;
                if cx.came_back.contains(&(self.id, name.clone(), restart)) {
                    continue;
                }
                cx.fail(|| {
                    format!(
                        "slot {name} of relay {} keeps {restart}, and {oldest} is the oldest WAL",
                        self.id
                    )
                });
            }
        }
    }
}

/// Takes all WAL that is held, from the oldest to the end. An error where some of it is missing.
fn each_segment(store: &Store, take: &mut dyn FnMut(Lsn, &[u8])) -> Result<(), ReadError> {
    let Some(tip) = store.tip() else { return Ok(()) };
    let (history, size) = (store.history(), identity().seg_size);
    let mut at = store.oldest().unwrap_or(tip.write_lsn);
    while at < tip.write_lsn {
        let (segno, tli) = (at.seg_at(size), history.timeline_at(at));
        let left_at = history.switch_point(tli).map_or(tip.write_lsn, |(left_at, _)| left_at);
        let to = segno.end(size).min(tip.write_lsn).min(left_at);
        // A segment in which a timeline was left is its successor's.
        let segment = store.segment(tli, segno)?;
        take(at, segment.bytes(at.offset_in_seg(size), to.since(at).min(segment.published()) as usize));
        at = to;
    }
    Ok(())
}

fn hang_up<'a>(
    follower: &Follower,
    sessions: impl Iterator<Item = &'a ConnId>,
    silently: bool,
    cx: &mut Context,
) {
    let mut leave = |conn, side| match silently {
        true => cx.lines.vanish(conn, side),
        false => cx.lines.close(conn, side),
    };
    sessions.for_each(|conn| leave(*conn, Side::Server));
    if let Some(conn) = follower.conn() {
        leave(conn, Side::Client);
    }
}

/// That a slot is not beyond what its consumer has of the WAL that is held.
fn check_confirmed(id: NodeId, name: &str, restart: Place, cx: &mut Context) {
    // Who tells nonsense is believed as far as it was sent something.
    let known = cx.confirmed.get(&(id, name.to_owned())).filter(|_| is_honest(name));
    let has = |known: &Place| cx.model.has(*known, restart);
    if let Some(known) = known.filter(|known| !known.iter().any(has)).cloned() {
        cx.fail(|| format!("slot {name} of relay {id} is at {restart:?}, and its consumer has {known:?}"));
    }
}

fn is_honest(slot: &str) -> bool {
    !slot.starts_with("absurd")
}

impl Has {
    fn know(&mut self, name: &str, known: Known) {
        self.news.push((name.to_owned(), known));
    }

    /// A slot was made or dropped, or not; what is known of it from the answer on.
    fn answered(&mut self, name: &str, answer: Result<(), SlotError>, known: Known) -> Result<(), NoSlot> {
        let why = answer.as_ref().map_err(refused).err();
        match why {
            None => self.know(name, known),
            Some(NoSlot::Failed) => self.know(name, Known::Doubtful),
            Some(_) => {}
        }
        why.map_or(Ok(()), Err)
    }
}

fn refused(error: &SlotError) -> NoSlot {
    match error {
        SlotError::Missing { .. } => NoSlot::Missing,
        SlotError::Exists { .. } => NoSlot::Exists,
        SlotError::Active { .. } => NoSlot::InUse,
        SlotError::Invalidated { .. } => NoSlot::Lost,
        _ => NoSlot::Failed,
    }
}

impl Source for Has {
    type Seat = Seat;

    fn node(&self) -> NodeId {
        self.id
    }

    fn hears_one_by_one(&self) -> bool {
        false
    }

    fn identify(&self) -> Option<(TimelineId, Lsn)> {
        self.store.tip().map(|tip| (tip.tli, tip.write_lsn))
    }

    fn wal(&self) -> Option<Wal> {
        // The position first: one that is new belongs to a history that is there.
        let published = *self.store.written().borrow();
        Some(wal(
            identity().seg_size,
            self.store.history(),
            published.map(|position| (position.tli, position.lsn)),
        ))
    }

    fn history_file(&self, tli: TimelineId) -> Option<Vec<u8>> {
        self.store.history_file(tli).ok().flatten()
    }

    fn read(
        &mut self,
        cx: &mut Context,
        history: &Arc<TimelineHistory>,
        tli: TimelineId,
        from: Lsn,
        to: Lsn,
    ) -> Read {
        let segno = from.seg_at(identity().seg_size);
        self.open.retain(|(.., found_by, _)| Arc::ptr_eq(found_by, history));
        let known = self.open.iter().find(|(known, number, ..)| (*known, *number) == (tli, segno));
        let known = known.map(|(.., segment)| segment.clone());
        let segment = match known.or_else(|| self.store.mapped_segment_on(history, tli, segno)) {
            Some(segment) => segment,
            None if self.disk.is_hung() => return Read::Later,
            None => match self.store.segment_on(history, tli, segno) {
                Ok(segment) => segment,
                Err(error) => {
                    cx.say(|| format!("relay {}: {error}", self.id));
                    let is_gone = matches!(error, ReadError::Removed(_));
                    return if is_gone { Read::Gone } else { Read::Failed };
                }
            },
        };
        self.open.retain(|(.., known)| !Arc::ptr_eq(known, &segment));
        self.open.truncate(OPEN - 1);
        self.open.insert(0, (tli, segno, history.clone(), segment.clone()));
        let (offset, len) = (from.since(segment.start()), to.since(from));
        if offset + len > segment.published() {
            // What is given out is published, and nobody has a segment of an earlier life of the timeline here.
            let (id, name, readable) = (self.id, segment.name(), segment.published());
            cx.fail(|| {
                format!("relay {id} is to send up to {to} of {name:?}, which is readable up to {readable:X}")
            });
            return Read::Failed;
        }
        Read::Segment(segment, offset, len as usize)
    }

    fn slot(&self, name: &str) -> SlotState {
        match self.store.slots().get(name) {
            None => SlotState::Missing,
            Some(slot) if slot.invalidated => SlotState::Lost,
            Some(slot) => SlotState::There(slot.restart_lsn),
        }
    }

    fn create_slot(&mut self, cx: &mut Context, name: &str) -> Result<(), NoSlot> {
        if self.disk.is_hung() {
            return Err(NoSlot::Later);
        }
        let parsed = name.parse().map_err(|_| NoSlot::Failed)?;
        // Where it begins is not known to anybody if the power goes before the answer.
        if self.slot(name) == SlotState::Missing {
            cx.confirmed.remove(&(self.id, name.to_owned()));
        }
        let held = self.store.oldest().zip(self.store.tip().map(|tip| tip.write_lsn));
        let made = self.store.create_reserving_slot(&parsed, SlotPersistence::Persistent);
        let reserved = self.store.slots().get(name).and_then(|slot| slot.restart_lsn);
        if let (Some(lsn), Ok(()), Some((oldest, end))) = (reserved, &made, held)
            && !(oldest..=end).contains(&lsn)
        {
            let id = self.id;
            cx.fail(|| {
                format!("slot {name} of relay {id} is made at {lsn}, WAL is held from {oldest} to {end}")
            });
        }
        if let (Some(lsn), Ok(()), Some(branch)) = (reserved, &made, cx.branches.get(&self.id)) {
            cx.confirmed.insert((self.id, name.to_owned()), vec![Place { branch: *branch, lsn }]);
        }
        self.answered(name, made, Known::There)
    }

    fn drop_slot(&mut self, _: &mut Context, name: &str) -> Result<(), NoSlot> {
        if self.disk.is_hung() {
            return Err(NoSlot::Later);
        }
        let dropped = self.store.drop_slot(name, 0);
        if dropped.is_ok() {
            self.needs.remove(name);
        }
        self.answered(name, dropped, Known::Gone)
    }

    fn sit(&mut self, conn: ConnId, slot: Option<&str>) -> Result<Seat, NoSlot> {
        let acquire = |name| self.store.slots().acquire(name, conn as u32).map_err(|error| refused(&error));
        let slot = slot.map(acquire).transpose()?;
        let consumer = self.store.consumers().register(ConsumerIdentity {
            pid: conn as u32,
            user: String::new(),
            application_name: slot.as_ref().map(|slot| slot.name().to_owned()).unwrap_or_default(),
            client_addr: None,
            backend_start: SystemTime::UNIX_EPOCH.into(),
        });
        Ok(Seat { slot, consumer })
    }

    fn restart_lsn(&self, seat: &Seat) -> Option<Lsn> {
        self.store.slots().get(seat.slot.as_ref()?.name()).and_then(|slot| slot.restart_lsn)
    }

    fn is_evicted(&self, seat: &Seat) -> bool {
        let Some(slot) = &seat.slot else { return false };
        pin!(slot.evicted()).poll(&mut Task::from_waker(Waker::noop())).is_ready()
    }

    fn feedback(&mut self, seat: &Seat, feedback: FeedbackHorizon) {
        if let Some(slot) = &seat.slot {
            self.needs.insert(slot.name().to_owned(), feedback);
        }
        self.store.take_feedback(&seat.consumer, seat.slot.as_ref(), feedback);
    }

    fn report(&mut self, cx: &mut Context, who: Who, seat: &Seat, sender: &Sender, report: Report) {
        let branch = cx.branches.get(&self.id).and_then(|branch| cx.model.on_way(*branch, sender.tli()));
        if let (Some(branch), Some(lsn)) = (branch, report.flush.valid())
            && let Some(slot) = seat.slot.as_ref().filter(|_| cx.relays.contains(&who.client))
        {
            cx.tell_slot(self.id, slot.name(), Place { branch, lsn });
        }
        let is_present = Arc::ptr_eq(&self.store.history(), sender.history());
        let (pid, acknowledgements) =
            (seat.consumer.identity().pid, self.store.consumers().acknowledgements());
        acknowledgements.report(pid, || report.counts.filter(|_| is_present));
        let Some(slot) = &seat.slot else { return };
        let before = self.restart_lsn(seat);
        slot.confirm_flush(|| report.confirm.filter(|_| is_present));
        let after = self.restart_lsn(seat);
        let most = sender.sent().advance(MAX_SEND_SIZE * MAX_MESSAGES as u64);
        if after > before && after > Some(most) {
            let (name, sent) = (slot.name(), sender.sent());
            cx.fail(|| format!("slot {name} of relay {} went to {after:?}, and {sent} was sent", self.id));
        }
        if let (Some(lsn), Some(branch)) = (after, cx.branches.get(&self.id).copied()) {
            check_confirmed(self.id, slot.name(), Place { branch, lsn }, cx);
        }
    }
}

/// How much WAL a relay keeps, bytes: segments are of one size.
pub(crate) fn keep_size(segments: u64) -> u64 {
    segments * SEG_SIZE
}
