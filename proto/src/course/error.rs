//! Why a server is not followed, or no longer.

use crate::lsn::Lsn;
use crate::timeline::TimelineId;
use crate::walk::WalError;

/// A server is not followed, or not any more. All of it may pass: the server may be another one, or elsewhere, next time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CourseError {
    /// The server's timeline does not descend from ours, and is not known to be newer.
    #[error(
        "upstream is on {theirs}, which does not descend from {ours} that is held here up to {held}: {why}; it is not followed"
    )]
    Sibling {
        /// The server's timeline and how it came about.
        theirs: String,
        /// Ours.
        ours: String,
        /// The end of ours.
        held: Lsn,
        /// Why it is not gone over to.
        why: String,
    },
    /// The server's timeline was passed over for a newer one, which is not reached yet.
    #[error(
        "upstream is on timeline {theirs}, which is older than timeline {newest} that the relay is going to; it is not followed"
    )]
    PassedOver {
        /// The server's timeline.
        theirs: TimelineId,
        /// The one that is gone to.
        newest: TimelineId,
    },
    /// The server has not seen a switch that we have.
    #[error("upstream is on timeline {theirs}, behind timeline {ours} that is held here; it is not followed")]
    OldTimeline {
        /// The server's timeline.
        theirs: TimelineId,
        /// Ours.
        ours: TimelineId,
    },
    /// The server has less of our timeline than we do, and there are others to ask.
    #[error("upstream is on timeline {tli} at {theirs}, behind {ours} that is held here")]
    Behind {
        /// The timeline.
        tli: TimelineId,
        /// The end of the server's WAL.
        theirs: Lsn,
        /// The end of ours.
        ours: Lsn,
    },
    /// Nothing that is held here would be WAL of both.
    #[error("timeline {tli} cannot begin at {at}: {reason}")]
    Fork {
        /// The timeline that is not gone on with.
        tli: TimelineId,
        /// Where it leaves what is held.
        at: Lsn,
        /// Why not.
        reason: String,
    },
    /// The first new bytes of a stream are no continuation of what is here.
    #[error(
        "the upstream's WAL does not continue timeline {tli} that is held here up to {held}: {source}; the histories of the two have diverged, or it sends damaged WAL"
    )]
    Seam {
        /// The timeline.
        tli: TimelineId,
        /// The end of ours.
        held: Lsn,
        /// What the verifier says.
        source: WalError,
    },
    /// Later bytes of a stream are no WAL.
    #[error("received bad WAL: {0}")]
    BadWal(WalError),
    /// The server shuts down.
    #[error("replication terminated by upstream server")]
    ServerStopped,
    /// The server has ended a stream that its history continues.
    #[error("upstream ended the stream")]
    StreamEnded,
    /// What is asked of the server is followed by so much more that another connection was made, once.
    #[error("the upstream sends more than is asked for, again")]
    SendsMore,
    /// It was not decided where WAL begins.
    #[error("unexpected answer to START_REPLICATION: nowhere to start")]
    Nowhere,
    /// A fact was told that does not answer the last step: a fault of whoever performs the steps.
    #[error("\"{fact}\" is no answer to what was to be done")]
    OutOfTurn {
        /// The fact, in a word.
        fact: &'static str,
    },
}

impl CourseError {
    /// Whether somebody has to act: it will not pass by itself.
    pub fn needs_action(&self) -> bool {
        matches!(self, CourseError::Sibling { .. } | CourseError::Seam { .. } | CourseError::Fork { .. })
    }
}
