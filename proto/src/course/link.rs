//! One connection: from what a server says of itself to its streams.

use super::step::{
    Cause, Compared, Fact, Identified, Introduced, Reserved, Seam, Slot, Step, Stream, StreamEnd, Streamed,
};
use super::{CourseError, CourseSetup, Heading, Standing};
use crate::lsn::Lsn;
use crate::segment::SegSize;
use crate::timeline::{SystemId, TimelineHistory, TimelineId, TimelinePosition};

/// Of WAL that is not compared so little may lie before the seam that it is fetched along, bytes.
const NEAR: u64 = 64 << 10;

/// A server's WAL was compared with ours and found the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Proof {
    system_id: SystemId,
    seg_size: SegSize,
    tli: TimelineId,
    /// Up to here.
    at: Lsn,
}

/// What comes after a fact.
#[derive(Debug)]
pub(super) enum Turn<E> {
    /// This is to be done.
    Do(Step<E>),
    /// Another connection to the same server, at once: this one is busy with what nobody waits for.
    Again(Proof),
    /// The server is not followed.
    Fail(E),
    /// All is over.
    Over,
}

/// A connection that is there.
#[derive(Debug)]
pub(super) struct Link {
    /// Whether there are other hosts.
    has_others: bool,
    who: Introduced,
    /// Where the server stands now.
    now: Identified,
    slot: Slot,
    /// Whether something is held, or at least begun.
    begun: bool,
    /// Whether it was decided here where WAL begins. That is not done twice.
    began_here: bool,
    /// Whether the slot was made here. That is not done twice.
    made_slot: bool,
    /// Whether this connection is the second one, made because of a proof.
    again: bool,
    /// Up to here our WAL is known to be this server's.
    same: Lsn,
    /// Up to here something of it was compared, on whatever timeline.
    compared: Lsn,
    /// Where the last stream ended, if nothing came.
    ended: Option<TimelinePosition>,
    awaits: Awaits,
}

/// What is under way.
#[derive(Debug)]
enum Awaits {
    /// The history of the server's timeline.
    History,
    /// The present timeline, of which nothing is held, is to be durable before it is begun elsewhere.
    Bare(TimelineHistory),
    /// The slot for WAL that is to begin.
    BeginSlot(TimelineHistory),
    /// Its position.
    BeginRead(TimelineHistory),
    /// The files for it.
    BeginHistories(TimelineHistory, TimelinePosition),
    Begin(TimelineHistory),
    /// What is held.
    Look(TimelineHistory),
    /// All is to be durable before another timeline is looked for.
    FindDurable(TimelineHistory, Found),
    Find(TimelineHistory, Found),
    /// A moment, for a server that is behind.
    Behind(TimelineHistory, TimelinePosition),
    /// Where that server is now.
    BehindIdentify(TimelineHistory, TimelinePosition),
    Seam(Plan),
    Histories(Plan, Option<Seam>),
    Compare(Plan),
    Accept(Plan),
    TakeUp(Plan),
    SwitchDurable(Plan, TimelineId),
    Switch(Plan),
    Slot(Plan),
    Note(Plan, Option<Seam>),
    Streamed(Plan, Stream),
    /// Where the server is, now that a timeline has ended.
    EndIdentify(TimelineHistory, TimelinePosition),
    /// Nothing any more.
    Nothing,
}

/// Another timeline that is to be taken up.
#[derive(Debug)]
struct Found {
    history: TimelineHistory,
    present: Present,
}

/// How a server is to be followed.
#[derive(Debug)]
struct Plan {
    theirs: TimelineHistory,
    going: Going,
    /// Where it is gone on.
    from: TimelinePosition,
    /// Where we are: elsewhere only where a timeline is taken up.
    present: Present,
    /// Up to here both have the same WAL, if the server is right.
    at: Lsn,
}

/// The present position, and the newest timeline that is gone to.
#[derive(Clone, Copy, Debug)]
struct Present {
    position: TimelinePosition,
    newest: TimelineId,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Going {
    Stream,
    Switch(TimelineId),
    TakeUp,
}

impl Link {
    /// With the first thing that is to be done.
    pub(super) fn new<E>(setup: CourseSetup, who: Introduced, proof: Option<Proof>) -> (Link, Turn<E>) {
        let again = proof.is_some();
        let mut link = Link {
            has_others: setup.hosts > 1,
            who,
            now: who.identified,
            slot: who.slot,
            begun: !setup.empty,
            began_here: false,
            made_slot: false,
            again,
            same: Lsn::INVALID,
            compared: Lsn::INVALID,
            ended: None,
            awaits: Awaits::Nothing,
        };
        // It may be another server now.
        let same =
            proof.filter(|proof| *proof == link.proof(proof.at)).map_or(Lsn::INVALID, |proof| proof.at);
        (link.same, link.compared) = (same, same);
        let turn = link.fetch_history();
        (link, turn)
    }

    /// Whether anything was begun in the data directory.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn step<E: Cause>(&mut self, fact: Fact<E>) -> Turn<E> {
        match (std::mem::replace(&mut self.awaits, Awaits::Nothing), fact) {
            (Awaits::History, Fact::History(theirs)) => self.history(theirs),
            (Awaits::Bare(theirs), Fact::Done) => self.begin(theirs),
            (Awaits::BeginSlot(theirs), Fact::Done) => {
                self.await_do(Awaits::BeginRead(theirs), Step::ReadSlot)
            }
            (Awaits::BeginRead(theirs), Fact::Slot(slot)) => self.begin_where(theirs, slot),
            (Awaits::BeginHistories(theirs, TimelinePosition { tli, lsn }), Fact::Done) => {
                self.await_do(Awaits::Begin(theirs), Step::Begin { at: lsn, tli })
            }
            (Awaits::Begin(theirs), Fact::Done) => self.has_begun_at(theirs),
            (Awaits::Look(theirs), Fact::Held(held)) => self.judge(theirs, held),
            (Awaits::FindDurable(theirs, found), Fact::Done) => {
                let history = found.history.clone();
                self.await_do(Awaits::Find(theirs, found), Step::Find { history })
            }
            (Awaits::Find(theirs, found), Fact::Found(end)) => self.found(theirs, found, end),
            (Awaits::Behind(theirs, ours), Fact::Done) => {
                self.await_do(Awaits::BehindIdentify(theirs, ours), Step::Identify)
            }
            (Awaits::BehindIdentify(theirs, ours), Fact::Identified(now)) => {
                self.now = now;
                if self.is_behind(ours) { self.wait(theirs, ours, false) } else { self.again_with(theirs) }
            }
            (Awaits::Seam(plan), Fact::Seam(seam)) => self.seam(plan, seam),
            (Awaits::Histories(plan, seam), Fact::Done) => self.compare(plan, seam),
            (Awaits::Compare(plan), Fact::Compared(Compared::Idle)) => self.accept(plan),
            (Awaits::Compare(plan), Fact::Compared(Compared::MoreFollows)) => self.more_follows(&plan),
            (Awaits::Accept(plan), Fact::Done) => self.accepted(plan),
            (Awaits::TakeUp(plan), Fact::Done) => {
                self.same = plan.at;
                self.look(plan.theirs)
            }
            (Awaits::SwitchDurable(plan, to), Fact::Done) => {
                let at = plan.at;
                self.await_do(Awaits::Switch(plan), Step::Switch { to, at })
            }
            (Awaits::Switch(plan), Fact::Done) => self.look(plan.theirs),
            (Awaits::Slot(plan), Fact::Done) => {
                (self.slot, self.made_slot) = (Slot::There { reserved: None }, true);
                self.note(plan, None)
            }
            (Awaits::Note(plan, seam), Fact::Done) => self.stream(plan, seam),
            (Awaits::Streamed(plan, stream), Fact::Streamed(streamed)) => self.ended(plan, stream, streamed),
            (Awaits::EndIdentify(theirs, ours), Fact::Identified(now)) => {
                self.next_timeline(theirs, ours, now)
            }
            (_, fact) => fail(CourseError::OutOfTurn { fact: fact.name() }),
        }
    }

    fn await_do<E>(&mut self, awaits: Awaits, step: Step<E>) -> Turn<E> {
        self.awaits = awaits;
        Turn::Do(step)
    }

    fn proof(&self, at: Lsn) -> Proof {
        let Introduced { identified, seg_size, .. } = self.who;
        Proof { system_id: identified.system_id, seg_size, tli: self.now.tli, at }
    }

    // What the server is on.

    fn fetch_history<E>(&mut self) -> Turn<E> {
        self.await_do(Awaits::History, Step::FetchHistory { tli: self.now.tli })
    }

    fn history<E: Cause>(&mut self, theirs: TimelineHistory) -> Turn<E> {
        if theirs.tli() != self.now.tli {
            return fail(CourseError::OutOfTurn { fact: "history" });
        }
        if self.begun { self.look(theirs) } else { self.begin(theirs) }
    }

    /// Where the server is on the same timeline still, its history is the same.
    fn again_with<E>(&mut self, theirs: TimelineHistory) -> Turn<E> {
        if theirs.tli() == self.now.tli { self.look(theirs) } else { self.fetch_history() }
    }

    fn look<E>(&mut self, theirs: TimelineHistory) -> Turn<E> {
        self.await_do(Awaits::Look(theirs), Step::Look)
    }

    // Nothing is held: WAL begins where the slot's does.

    fn begin<E>(&mut self, theirs: TimelineHistory) -> Turn<E> {
        self.began_here = true;
        match self.who.slot {
            Slot::There { .. } => self.begin_where(theirs, self.who.slot),
            Slot::Missing => self.await_do(Awaits::BeginSlot(theirs), Step::CreateSlot),
            Slot::Unknown => self.await_do(Awaits::BeginRead(theirs), Step::ReadSlotInSql),
        }
    }

    fn begin_where<E>(&mut self, theirs: TimelineHistory, slot: Slot) -> Turn<E> {
        let reserved = match slot {
            Slot::There { reserved } => reserved,
            Slot::Missing | Slot::Unknown => None,
        };
        let Reserved { lsn, tli } =
            reserved.unwrap_or(Reserved { lsn: self.now.xlogpos, tli: Some(self.now.tli) });
        let tli = tli.unwrap_or_else(|| theirs.timeline_at(lsn));
        self.await_do(Awaits::BeginHistories(theirs, TimelinePosition { tli, lsn }), Step::FetchHistories)
    }

    fn has_begun_at<E>(&mut self, theirs: TimelineHistory) -> Turn<E> {
        (self.begun, self.slot) = (true, Slot::There { reserved: None });
        self.look(theirs)
    }

    // Where to.

    fn judge<E: Cause>(&mut self, theirs: TimelineHistory, held: Option<Standing>) -> Turn<E> {
        let Some(standing) = held else { return fail(CourseError::Nowhere) };
        if !self.began_here && standing.begins_elsewhere(&theirs) {
            return self.await_do(Awaits::Bare(theirs), Step::WaitDurable);
        }
        let position = TimelinePosition { tli: standing.ours.tli(), lsn: standing.held };
        // A server on the way to the newest one does not make that forgotten.
        let newest = standing.newest.as_ref().map_or(self.now.tli, |newest| newest.tli().max(self.now.tli));
        let present = Present { position, newest };
        match standing.heading(&theirs) {
            Ok(Heading::Stream) => self.go_on(theirs, Going::Stream, position, present),
            Ok(Heading::Switch(next)) => self.go_on(theirs, Going::Switch(next), position, present),
            Ok(Heading::TakeUp(history)) => {
                self.await_do(Awaits::FindDurable(theirs, Found { history, present }), Step::WaitDurable)
            }
            Err(error) => fail(error),
        }
    }

    fn found<E: Cause>(&mut self, theirs: TimelineHistory, found: Found, end: Option<Lsn>) -> Turn<E> {
        let tli = found.history.tli();
        let Some(lsn) = end else {
            let (at, next) = theirs.switch_point(tli).unwrap_or((theirs.begin(), tli));
            let reason = format!("nothing of timeline {tli} is held here any more");
            return fail(CourseError::Fork { tli: next, at, reason });
        };
        self.go_on(theirs, Going::TakeUp, TimelinePosition { tli, lsn }, found.present)
    }

    fn go_on<E: Cause>(
        &mut self,
        theirs: TimelineHistory,
        going: Going,
        from: TimelinePosition,
        present: Present,
    ) -> Turn<E> {
        if self.is_behind(from) {
            return match self.has_others {
                true => {
                    let TimelinePosition { tli, lsn: ours } = from;
                    fail(CourseError::Behind { tli, theirs: self.now.xlogpos, ours })
                }
                false => self.wait(theirs, from, true),
            };
        }
        let left_at = theirs.switch_point(from.tli).map(|(left_at, _)| left_at);
        let at = left_at.map_or(from.lsn, |left_at| left_at.min(from.lsn));
        let plan = Plan { theirs, going, from, present, at };
        // Of a timeline that is taken up nothing is known by what was streamed of another.
        let found = going == Going::TakeUp;
        let known = if found { self.compared } else { self.same };
        match at > known {
            true => self.await_do(Awaits::Seam(plan), Step::ReadSeam { at, found }),
            false => self.await_do(Awaits::Histories(plan, None), Step::FetchHistories),
        }
    }

    /// Whether the server has less of the timeline than this.
    fn is_behind(&self, ours: TimelinePosition) -> bool {
        self.now.tli == ours.tli && self.now.xlogpos < ours.lsn
    }

    fn wait<E>(&mut self, theirs: TimelineHistory, ours: TimelinePosition, first: bool) -> Turn<E> {
        let step = Step::WaitBehind { ours, theirs: self.now.xlogpos, first };
        self.await_do(Awaits::Behind(theirs, ours), step)
    }

    // Is it the same WAL?

    fn seam<E: Cause>(&mut self, plan: Plan, seam: Result<Seam, String>) -> Turn<E> {
        let is_required = plan.going == Going::TakeUp || plan.at < plan.present.position.lsn;
        match seam {
            Ok(seam) => self.await_do(Awaits::Histories(plan, Some(seam)), Step::FetchHistories),
            // Nothing that we hold would be WAL of both: its history may be ours, but nothing here shows it.
            Err(reason) if is_required => {
                fail(CourseError::Fork { tli: plan.theirs.timeline_at(plan.at), at: plan.at, reason })
            }
            Err(_) => self.await_do(Awaits::Histories(plan, None), Step::FetchHistories),
        }
    }

    fn compare<E>(&mut self, plan: Plan, seam: Option<Seam>) -> Turn<E> {
        let Some(seam) = seam else { return self.accept(plan) };
        let is_near = plan.from.lsn.since(seam.end) <= NEAR;
        if plan.going == Going::Stream && self.slot != Slot::Missing && is_near {
            return self.note(plan, Some(seam));
        }
        (self.same, self.compared) = (plan.at, plan.at);
        let tli = timeline_before(&plan.theirs, plan.at, self.who.seg_size);
        self.await_do(Awaits::Compare(plan), Step::Compare { tli, from: seam.from })
    }

    fn more_follows<E: Cause>(&self, plan: &Plan) -> Turn<E> {
        match self.again {
            true => fail(CourseError::SendsMore),
            false => Turn::Again(self.proof(plan.at)),
        }
    }

    // From here on it is one that is followed: only now it may leave, and get, anything.

    fn accept<E>(&mut self, plan: Plan) -> Turn<E> {
        self.await_do(Awaits::Accept(plan), Step::Accept)
    }

    fn accepted<E>(&mut self, plan: Plan) -> Turn<E> {
        match plan.going {
            Going::TakeUp => {
                let newest = plan.present.newest;
                self.await_do(Awaits::TakeUp(plan), Step::TakeUp { newest })
            }
            // What a crash leaves must never begin with the new timeline and lack the end of the old.
            Going::Switch(to) => self.await_do(Awaits::SwitchDurable(plan, to), Step::WaitDurable),
            Going::Stream if self.slot == Slot::Missing => {
                self.await_do(Awaits::Slot(plan), Step::CreateSlot)
            }
            Going::Stream => self.note(plan, None),
        }
    }

    fn note<E>(&mut self, plan: Plan, seam: Option<Seam>) -> Turn<E> {
        self.await_do(Awaits::Note(plan, seam), Step::NoteFollowed)
    }

    fn stream<E: Cause>(&mut self, plan: Plan, seam: Option<Seam>) -> Turn<E> {
        let TimelinePosition { tli, lsn: until } = plan.from;
        // A server that ends there each time what its history continues would be asked for ever.
        if self.ended == Some(plan.from) {
            return fail(CourseError::StreamEnded);
        }
        let from = seam.map_or(until.page_start(), |seam| seam.from);
        let stream = Stream { tli, from, until, compares: seam.is_some() };
        self.await_do(Awaits::Streamed(plan, stream), Step::Stream(stream))
    }

    // What came of it.

    fn ended<E: Cause>(&mut self, plan: Plan, stream: Stream, streamed: Streamed<E>) -> Turn<E> {
        let size = self.who.seg_size;
        let in_segment_before = stream.compares && stream.from.seg_at(size) < stream.until.seg_at(size);
        self.ended = (!streamed.came).then_some(plan.from);
        match streamed.end {
            StreamEnd::Stopped => Turn::Over,
            StreamEnd::ServerStopped => fail(CourseError::ServerStopped),
            StreamEnd::Timeline => {
                self.same = streamed.verified.unwrap_or(self.same);
                self.await_do(Awaits::EndIdentify(plan.theirs, plan.from), Step::Identify)
            }
            StreamEnd::NoSlot(error) if self.made_slot => Turn::Fail(error),
            StreamEnd::NoSlot(_) => {
                (self.slot, self.ended) = (Slot::Missing, None);
                self.look(plan.theirs)
            }
            // The server may have removed it as soon as the boundary was confirmed. The first new record decides.
            StreamEnd::Removed(_) if in_segment_before && !streamed.came => {
                (self.same, self.ended) = (plan.at, None);
                self.look(plan.theirs)
            }
            StreamEnd::Bad(source) if !streamed.came => {
                let TimelinePosition { tli, lsn: held } = plan.from;
                fail(CourseError::Seam { tli, held, source })
            }
            StreamEnd::Bad(source) => fail(CourseError::BadWal(source)),
            StreamEnd::Removed(error) | StreamEnd::Failed(error) => Turn::Fail(error),
        }
    }

    fn next_timeline<E: Cause>(
        &mut self,
        theirs: TimelineHistory,
        ours: TimelinePosition,
        now: Identified,
    ) -> Turn<E> {
        self.now = now;
        if now.tli == ours.tli {
            // Not an end of timeline at all: the other side has just stopped.
            return fail(CourseError::StreamEnded);
        }
        self.again_with(theirs)
    }
}

fn fail<E: Cause>(error: CourseError) -> Turn<E> {
    Turn::Fail(error.into())
}

/// The timeline of a server with history `theirs` whose file holds the last bytes before `at`: a segment in which
/// a timeline was left is read from its successor's.
fn timeline_before(theirs: &TimelineHistory, at: Lsn, size: SegSize) -> TimelineId {
    let at_boundary = at.offset_in_seg(size) == 0;
    theirs.timeline_at(if at_boundary { at.rewind(1) } else { at })
}
