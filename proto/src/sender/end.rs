//! How a stream ends, and why.

use crate::lsn::Lsn;
use crate::message::ClientMessageError;
use crate::timeline::TimelineId;

/// How a stream ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Both sides have said CopyDone; the session goes on.
    Done {
        /// The timeline that was sent has ended: the next one, and where it begins.
        next: Option<(TimelineId, Lsn)>,
    },
    /// The relay stops and the client has everything.
    Shutdown,
    /// The client is told why.
    Refused(Refusal),
    /// The connection ends without a word; why is for the log.
    Cut(Cut),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> End {
        End::Refused(refusal)
    }
}

/// Why there is no stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotStarted {
    /// The start is where the timeline was left: nothing is missing, and the session goes on.
    AtEnd {
        /// The next timeline, and where it begins.
        next: (TimelineId, Lsn),
    },
    /// The client is told why.
    Refused(Refusal),
}

impl From<Refusal> for NotStarted {
    fn from(refusal: Refusal) -> NotStarted {
        NotStarted::Refused(refusal)
    }
}

/// Why a client gets no more WAL; it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no WAL here.
    #[error("no WAL has been received from the upstream yet")]
    NotReady,
    /// The timeline is none of ours, or not any more.
    #[error("requested timeline {0} is not in this server's history")]
    UnknownTimeline(TimelineId),
    /// The timeline was left before the start.
    #[error("requested starting point {start} on timeline {tli} is not in this server's history")]
    BeyondTimeline {
        /// The timeline.
        tli: TimelineId,
        /// What was asked for.
        start: Lsn,
        /// Where the timeline was left.
        end: Lsn,
    },
    /// The client has sent what nobody understands.
    #[error(transparent)]
    Message(ClientMessageError),
    /// A cancel request.
    #[error("canceling statement due to user request")]
    Cancelled,
    /// The slot is lost, or somebody has asked for the connection's end.
    #[error("terminating connection due to administrator command")]
    Evicted,
    /// The WAL cannot be had; whoever looked for it knows why.
    #[error("requested WAL is not available")]
    Unavailable,
}

impl Refusal {
    /// Whether the connection ends with the stream.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Refusal::Evicted)
    }
}

/// Why a connection ends without a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Cut {
    /// The client has said that it goes.
    #[error("client has left")]
    Left,
    /// The client has sent what nobody understands, and what comes after it cannot be believed either.
    #[error(transparent)]
    Message(ClientMessageError),
    /// The client was silent for too long, although it was asked.
    #[error("terminating walsender process due to replication timeout")]
    Silent,
    /// The relay stops, and the client has not said in time that it has everything.
    #[error("consumer did not confirm the last WAL in time")]
    Unconfirmed,
    /// The client has ended the stream while the relay stops.
    #[error("client has ended the stream")]
    Finished,
    /// The client was to be told this, and does not take the message before it.
    #[error("{0}; client does not take what was being sent to it")]
    NotTaking(Refusal),
}
