//! A PostgreSQL server as a relay sees it: it writes, streams, waits for its synchronous standby, crashes, and goes on as
//! if nothing had happened after somebody else has been promoted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use walrelay_proto::sender::{Report, Sender, Wal};
use walrelay_proto::{FeedbackHorizon, FullXid, Lsn, TimelineHistory, TimelineId};

use crate::context::{Context, Event, NodeId};
use crate::model::{BranchId, Place, identity};
use crate::net::{ConnId, Side};
use crate::serve::{NoSlot, Read, Session, SlotState, Source, Who, wal};

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) id: NodeId,
    pub(crate) is_up: bool,
    /// Whether it writes by itself.
    pub(crate) is_busy: bool,
    is_gone: bool,
    has: Has,
    sessions: BTreeMap<ConnId, Session<Option<String>>>,
}

/// A slot, of a relay.
#[derive(Debug)]
struct Slot {
    restart: Option<Lsn>,
    is_used: bool,
    /// What is kept for the standbys below.
    feedback: FeedbackHorizon,
}

/// What it has.
#[derive(Debug)]
struct Has {
    id: NodeId,
    branch: BranchId,
    history: Arc<TimelineHistory>,
    file: Vec<u8>,
    files: BTreeMap<TimelineId, Vec<u8>>,
    /// End of what is durable: what is sent.
    flushed: Lsn,
    slots: BTreeMap<String, Slot>,
    /// Ends of commits that wait for the relay.
    commits: VecDeque<Lsn>,
}

impl Server {
    /// One that is on this branch, from now on.
    pub(crate) fn new(id: NodeId, branch: BranchId, cx: &mut Context) -> Server {
        let model = &cx.model;
        let mut files = BTreeMap::new();
        for tli in model.branches[branch].history.way() {
            if let Some(on_way) = model.on_way(branch, tli) {
                files.insert(tli, model.branches[on_way].file.clone());
            }
        }
        let has = Has {
            id,
            branch,
            history: model.branches[branch].history.clone(),
            file: model.branches[branch].file.clone(),
            files,
            flushed: model.end(branch),
            slots: BTreeMap::new(),
            commits: VecDeque::new(),
        };
        cx.branches.insert(id, branch);
        Server { id, is_up: true, is_busy: true, is_gone: false, has, sessions: BTreeMap::new() }
    }

    pub(crate) fn branch(&self) -> BranchId {
        self.has.branch
    }

    pub(crate) fn connect(&mut self, conn: ConnId, cx: &Context) {
        self.sessions.insert(conn, Session::new(conn, cx.now));
    }

    pub(crate) fn take(&mut self, conn: ConnId, bytes: Vec<u8>, cx: &mut Context) {
        if let Some(session) = self.sessions.get_mut(&conn) {
            session.take(bytes, cx.now);
        }
        self.run(cx);
    }

    pub(crate) fn closed(&mut self, conn: ConnId, cx: &mut Context) {
        self.sessions.remove(&conn);
        cx.lines.close(conn, Side::Server);
    }

    pub(crate) fn run(&mut self, cx: &mut Context) {
        for session in self.sessions.values_mut() {
            session.run(&mut self.has, cx);
            session.check(self.id, false, cx);
        }
        self.sessions.retain(|_, session| !session.is_over());
        // Slots are free when nobody streams.
        self.has.free_slots(&self.sessions);
        let due = self.sessions.values().filter_map(|session| session.deadline(cx)).min();
        if let Some(due) = due {
            cx.wake(self.id, due);
        }
    }

    /// Writes something, and makes some of it durable.
    pub(crate) fn work(&mut self, cx: &mut Context, is_large: bool) {
        let has = &mut self.has;
        let mut is_whole = cx.chance.percent(70);
        for _ in 0..cx.chance.between(1, 5) {
            let (kind, len) = (cx.chance.below(100), cx.chance.between(26, 600));
            let is_commit = kind < 45;
            let long = cx.chance.between(9000, 30_000);
            let end = match kind {
                95..97 => cx.model.abort_record(has.branch, len as usize),
                _ => cx.model.write(has.branch, |wal| {
                    match kind {
                        0..45 => wal.commit(),
                        45..85 => wal.record(len as usize),
                        85..90 => wal.checkpoint(wal.last_record()),
                        90..95 => wal.record(long as usize),
                        98.. if is_large => {
                            wal.switch_segment();
                            wal.position()
                        }
                        _ => wal.record(8000),
                    };
                }),
            };
            // The zeros behind a switch come with it, also after a crash.
            is_whole |= kind >= 98;
            if is_commit {
                has.commits.push_back(end);
            }
        }
        let end = cx.model.end(has.branch);
        // A server may have synced the beginning of a record only: whole pages.
        has.flushed = match is_whole {
            true => end,
            false => {
                let to = has.flushed.advance(cx.chance.below(end.since(has.flushed) + 1));
                to.page_start().max(has.flushed)
            }
        };
        cx.note("writes", self.id as u64, has.flushed.as_u64());
        self.run(cx);
    }

    /// All is durable, for there is nothing more to come; and it is there, whatever has been.
    pub(crate) fn settle(&mut self, cx: &mut Context) {
        (self.is_up, self.is_gone, self.is_busy) = (true, false, false);
        self.has.flushed = cx.model.end(self.has.branch);
        self.run(cx);
    }

    /// Loses what it has not synced, and all connections.
    pub(crate) fn crash(&mut self, cx: &mut Context) {
        cx.note("server crashes", self.id as u64, self.has.flushed.as_u64());
        self.leave(cx, true);
        let has = &mut self.has;
        // What somebody has gone on from is not written anew.
        let end = cx.model.end_before(has.branch, has.flushed).map_or(Lsn::INVALID, |(end, _)| end);
        if !cx.model.is_left_beyond(has.branch, end) {
            has.flushed = cx.model.truncate(has.branch, has.flushed);
            has.commits.retain(|commit| *commit <= has.flushed);
        }
        let pause = cx.chance.between(1000, 400_000);
        cx.after(pause, Event::Start(self.id));
    }

    fn leave(&mut self, cx: &mut Context, with_a_word: bool) {
        self.is_up = false;
        for conn in std::mem::take(&mut self.sessions).into_keys() {
            match with_a_word {
                true => cx.lines.close(conn, Side::Server),
                false => cx.lines.vanish(conn, Side::Server),
            }
        }
        self.has.free_slots(&self.sessions);
    }

    /// Is gone for good.
    pub(crate) fn end(&mut self, cx: &mut Context) {
        self.leave(cx, false);
        (self.is_busy, self.is_gone) = (false, true);
    }

    pub(crate) fn start(&mut self, cx: &mut Context) {
        if !self.is_gone {
            cx.note("server starts", self.id as u64, self.has.flushed.as_u64());
            self.is_up = true;
        }
    }
}

impl Has {
    fn free_slots(&mut self, sessions: &BTreeMap<ConnId, Session<Option<String>>>) {
        for (name, slot) in &mut self.slots {
            slot.is_used =
                sessions.values().any(|session| session.seat().and_then(Option::as_ref) == Some(name));
        }
    }
}

impl Source for Has {
    type Seat = Option<String>;

    fn node(&self) -> NodeId {
        self.id
    }

    fn hears_one_by_one(&self) -> bool {
        true
    }

    fn identify(&self) -> Option<(TimelineId, Lsn)> {
        Some((self.history.tli(), self.flushed))
    }

    fn wal(&self) -> Option<Wal> {
        Some(wal(identity().seg_size, self.history.clone(), Some((self.history.tli(), self.flushed))))
    }

    fn history_file(&self, tli: TimelineId) -> Option<Vec<u8>> {
        if tli == self.history.tli() { Some(self.file.clone()) } else { self.files.get(&tli).cloned() }
    }

    fn read(
        &mut self,
        cx: &mut Context,
        _: &Arc<TimelineHistory>,
        _: TimelineId,
        from: Lsn,
        to: Lsn,
    ) -> Read {
        if from < cx.model.start() {
            return Read::Gone;
        }
        Read::Bytes(cx.model.bytes(self.branch, from, to))
    }

    fn slot(&self, name: &str) -> SlotState {
        self.slots.get(name).map_or(SlotState::Missing, |slot| SlotState::There(slot.restart))
    }

    fn create_slot(&mut self, _: &mut Context, name: &str) -> Result<(), NoSlot> {
        if self.slots.contains_key(name) {
            return Err(NoSlot::Exists);
        }
        let (restart, feedback) = (Some(self.flushed), FeedbackHorizon::default());
        self.slots.insert(name.to_owned(), Slot { restart, is_used: false, feedback });
        Ok(())
    }

    fn drop_slot(&mut self, _: &mut Context, name: &str) -> Result<(), NoSlot> {
        self.slots.remove(name).map(drop).ok_or(NoSlot::Missing)
    }

    fn sit(&mut self, _: ConnId, slot: Option<&str>) -> Result<Option<String>, NoSlot> {
        let Some(name) = slot else { return Ok(None) };
        let slot = self.slots.get_mut(name).ok_or(NoSlot::Missing)?;
        if std::mem::replace(&mut slot.is_used, true) {
            Err(NoSlot::InUse)
        } else {
            Ok(Some(name.to_owned()))
        }
    }

    fn restart_lsn(&self, seat: &Option<String>) -> Option<Lsn> {
        self.slots.get(seat.as_ref()?).and_then(|slot| slot.restart)
    }

    fn is_evicted(&self, _: &Option<String>) -> bool {
        false
    }

    // PG: PhysicalReplicationSlotNewXmin
    fn feedback(&mut self, seat: &Option<String>, feedback: FeedbackHorizon) {
        let Some(slot) = seat.as_ref().and_then(|name| self.slots.get_mut(name)) else { return };
        let takes = |held: Option<FullXid>, new: Option<FullXid>| match (held, new) {
            (Some(held), Some(new)) => Some(held.max(new)),
            (_, new) => new,
        };
        slot.feedback = FeedbackHorizon {
            xmin: takes(slot.feedback.xmin, feedback.xmin),
            catalog_xmin: takes(slot.feedback.catalog_xmin, feedback.catalog_xmin),
        };
    }

    fn report(&mut self, cx: &mut Context, _: Who, seat: &Option<String>, sender: &Sender, report: Report) {
        let Some(flush) = report.flush.valid() else { return };
        if let Some(slot) = seat.as_ref().and_then(|name| self.slots.get_mut(name)) {
            slot.restart = Some(flush);
        }
        cx.note("is told", self.id as u64, flush.as_u64());
        // What is durable at the synchronous standby is acknowledged; a client has seen it.
        while sender.tli() == self.history.tli()
            && self.commits.front().is_some_and(|commit| *commit <= flush)
        {
            self.commits.pop_front();
            cx.counts.acknowledged += 1;
        }
    }
}

impl Server {
    /// What is kept for the standbys below this slot.
    pub(crate) fn feedback_of(&self, slot: &str) -> Option<FeedbackHorizon> {
        self.has.slots.get(slot).map(|slot| slot.feedback)
    }

    /// Whose position that is.
    pub(crate) fn place(&self) -> Place {
        Place { branch: self.has.branch, lsn: self.has.flushed }
    }
}
