//! What is to be done next, and what came of it.

use super::error::CourseError;
use super::pause::Pause;
use super::standing::Standing;
use crate::lsn::Lsn;
use crate::segment::SegSize;
use crate::timeline::{SystemId, TimelineHistory, TimelineId, TimelinePosition};
use crate::walk::WalError;

/// What is to be done. Each says which [`Fact`] answers it; [`Fact::Failed`] and [`Fact::Stopped`] answer any.
#[derive(PartialEq, Eq, Debug)]
#[must_use]
pub enum Step<E> {
    /// Connect to this host, the first being 0, and ask who it is; what was left of another connection is over.
    /// → [`Fact::Introduced`], once it belongs to the cluster that is held here.
    Connect {
        /// Which one.
        host: usize,
        /// Only a standby will do.
        standby: bool,
    },
    /// Ask where the server stands (IDENTIFY_SYSTEM). → [`Fact::Identified`]
    Identify,
    /// Ask for the history of the server's own timeline (TIMELINE_HISTORY). → [`Fact::History`]
    FetchHistory {
        /// The timeline.
        tli: TimelineId,
    },
    /// Fetch those history files up to the server's timeline that are not here, and store none of them yet.
    /// → [`Fact::Done`]
    FetchHistories,
    /// Forget what was received beyond the last complete record, and look what is here. → [`Fact::Held`]
    Look,
    /// Publish all that is complete and wait until it is durable. → [`Fact::Done`]
    WaitDurable,
    /// Make our slot; that there is one already is no failure. → [`Fact::Done`]
    CreateSlot,
    /// Ask for our slot. → [`Fact::Slot`]
    ReadSlot,
    /// The same of a server that can be asked in SQL only. Make it if there is none, also where that cannot be found out.
    /// → [`Fact::Slot`]
    ReadSlotInSql,
    /// Nothing is held: keep the server's settings, store the history files, and begin with the segment of this position.
    /// → [`Fact::Done`]
    Begin {
        /// The position.
        at: Lsn,
        /// The timeline.
        tli: TimelineId,
    },
    /// Look what is held of another timeline, which is to be gone on with. → [`Fact::Found`]
    Find {
        /// Its history.
        history: TimelineHistory,
    },
    /// The server has less than we do, and is the only one: wait a moment. → [`Fact::Done`]
    WaitBehind {
        /// The end of what is held.
        ours: TimelinePosition,
        /// The end of the server's WAL.
        theirs: Lsn,
        /// Whether this is the first time in a row.
        first: bool,
    },
    /// Look what is held right before this position. → [`Fact::Seam`]
    ReadSeam {
        /// The position.
        at: Lsn,
        /// Whether of the timeline that was found last, instead of the present one.
        found: bool,
    },
    /// Compare that with what the server has, on a stream without our slot. What the server has removed counts as the
    /// same, what differs is a failure. → [`Fact::Compared`]
    Compare {
        /// The timeline whose file has it there.
        tli: TimelineId,
        /// Where to begin.
        from: Lsn,
    },
    /// The server is one that is followed: keep its settings, store the history files that were fetched. → [`Fact::Done`]
    Accept,
    /// Go on with the timeline that was found last. → [`Fact::Done`]
    TakeUp {
        /// What it is to lead to.
        newest: TimelineId,
    },
    /// Go on along this timeline. All of the present one is durable. → [`Fact::Done`]
    Switch {
        /// The timeline.
        to: TimelineId,
        /// Where the present one was left for it.
        at: Lsn,
    },
    /// Note durably that the present timeline is followed. → [`Fact::Done`]
    NoteFollowed,
    /// Receive with our slot, from START_REPLICATION to the end of the stream. → [`Fact::Streamed`]
    Stream(Stream),
    /// The connection is over, be it there or not. [`Course::failure`](super::Course::failure) says why, unless another
    /// one to the same server is made at once. → [`Fact::Done`]
    HangUp,
    /// No server can be followed at the moment: wait. → [`Fact::Done`]
    Pause {
        /// Why not, if it is to be said in one line.
        error: E,
        /// How long.
        pause: Pause,
    },
    /// It makes no sense to go on. No fact answers this.
    Give(E),
    /// All is over as it was ordered. No fact answers this.
    Over,
}

/// A stream to receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stream {
    /// The timeline.
    pub tli: TimelineId,
    /// Where the stream begins.
    pub from: Lsn,
    /// The first position that is not held.
    pub until: Lsn,
    /// Whether it begins with what was read at the seam: until that has been found the same nothing is stored, kept or
    /// confirmed, and then the server is accepted, as for [`Step::Accept`].
    pub compares: bool,
}

/// What came of a step.
#[derive(Debug)]
pub enum Fact<E> {
    /// It is done. Also the first fact of all.
    Done,
    /// Who the server is.
    Introduced(Introduced),
    /// Where the server stands.
    Identified(Identified),
    /// The history of its timeline.
    History(TimelineHistory),
    /// What is held here; `None` if it was never begun.
    Held(Option<Standing>),
    /// Our slot on the server.
    Slot(Slot),
    /// The end of what is held of the timeline that was asked for, if anything is.
    Found(Option<Lsn>),
    /// What is held right before the seam, or why there is nothing.
    Seam(Result<Seam, String>),
    /// The WAL at the seam is the same.
    Compared(Compared),
    /// The stream has ended.
    Streamed(Streamed<E>),
    /// It could not be done. The connection is over.
    Failed(E),
    /// The relay is to stop.
    Stopped,
}

impl<E> Fact<E> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Fact::Done => "done",
            Fact::Introduced(_) => "introduced",
            Fact::Identified(_) => "identified",
            Fact::History(_) => "history",
            Fact::Held(_) => "held",
            Fact::Slot(_) => "slot",
            Fact::Found(_) => "found",
            Fact::Seam(_) => "seam",
            Fact::Compared(_) => "compared",
            Fact::Streamed(_) => "streamed",
            Fact::Failed(_) => "failed",
            Fact::Stopped => "stopped",
        }
    }
}

/// Where a server stands (PG: `IdentifySystem`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identified {
    /// Its cluster.
    pub system_id: SystemId,
    /// Its timeline.
    pub tli: TimelineId,
    /// The end of its WAL.
    pub xlogpos: Lsn,
}

/// Who a server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Introduced {
    /// Where it stands.
    pub identified: Identified,
    /// The size of its segments.
    pub seg_size: SegSize,
    /// Our slot there.
    pub slot: Slot,
}

/// Our slot on a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// There is one.
    There {
        /// Where its WAL begins, if it keeps any.
        reserved: Option<Reserved>,
    },
    /// There is none.
    Missing,
    /// Servers before 15 cannot be asked here, but in SQL; one that has none says so when it is to be used.
    Unknown,
}

/// Where a slot's WAL begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reserved {
    /// The position.
    pub lsn: Lsn,
    /// Its timeline, if the server tells.
    pub tli: Option<TimelineId>,
}

/// What is held right before a position, to be compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seam {
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends; behind it there may be zeros up to the position.
    pub end: Lsn,
}

/// What is left to do after a comparison on a stream of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    /// The connection is idle again.
    Idle,
    /// The server is sending more than is worth waiting for: hang up.
    MoreFollows,
}

/// How a stream went.
#[derive(Debug)]
pub struct Streamed<E> {
    /// Whether a record or a page of WAL came that was not here.
    pub came: bool,
    /// The end of what is verified of the present timeline, if anything is.
    pub verified: Option<Lsn>,
    /// How it ended.
    pub end: StreamEnd<E>,
}

/// How a stream ended.
#[derive(Debug)]
pub enum StreamEnd<E> {
    /// The server says that the timeline has ended; the connection is idle again.
    Timeline,
    /// The server shuts down.
    ServerStopped,
    /// The relay is to stop.
    Stopped,
    /// The slot is not there, in the server's words; the connection is idle again.
    NoSlot(E),
    /// The server no longer has the WAL that was asked for, in words that say what to do. The connection is idle again if
    /// nothing was taken.
    Removed(E),
    /// WAL that was not verified.
    Bad(WalError),
    /// Anything else. The connection is over.
    Failed(E),
}

/// What a course has to know of a failure that is not its own.
pub trait Cause: From<CourseError> {
    /// Whether trying again cannot help until somebody changes something.
    fn is_permanent(&self) -> bool;
    /// Whether the relay must not go on: nobody knows what is durable.
    fn is_fatal(&self) -> bool;
}
