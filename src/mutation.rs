//! Deliberate faults, to show that the simulation finds them: each is a promise broken in one place.
//!
//! They exist with the feature `sim` alone; without it nothing is ever broken, and the compiler leaves nothing of them.

/// A promise that is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// What is written is confirmed before it is synced.
    AckBeforeSync,
    /// The directory is not synced after a new segment.
    ForgetDirectorySync,
    /// A segment that is complete gets its final name before it is synced.
    NameBeforeSync,
    /// WAL whose checksum is wrong is forwarded.
    ForwardUnverified,
    /// Bytes of a record that is not complete are shown.
    ShowUnfinished,
    /// WAL goes that a slot needs as it was saved last: a crash brings that back.
    ForgetSavedSlot,
    /// Slots are not saved before the timeline that they are on is left: a crash brings their positions on it back.
    ForgetSlotsAtSwitch,
    /// A slot stays beyond the place where its timeline was left.
    ForgetClamp,
    /// Who has a slot made is answered before that is saved.
    AnswerBeforeSlotSaved,
    /// A new timeline is gone over to before the note of it is durable.
    ForgetNote,
    /// After a failed sync the store goes on, and the next one says yes.
    GoOnAfterFailedSync,
    /// A start believes what it finds, although nobody has synced it.
    BelieveUnsynced,
    /// What one consumer's queries need is left out of what the upstream is told.
    ForgetFeedback,
    /// A walsender hears nothing of it when its slot is lost.
    ForgetEviction,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 14] = [
        Mutation::AckBeforeSync,
        Mutation::ForgetDirectorySync,
        Mutation::NameBeforeSync,
        Mutation::ForwardUnverified,
        Mutation::ShowUnfinished,
        Mutation::ForgetSavedSlot,
        Mutation::ForgetSlotsAtSwitch,
        Mutation::ForgetClamp,
        Mutation::AnswerBeforeSlotSaved,
        Mutation::ForgetNote,
        Mutation::GoOnAfterFailedSync,
        Mutation::BelieveUnsynced,
        Mutation::ForgetFeedback,
        Mutation::ForgetEviction,
    ];
}

#[cfg(feature = "sim")]
mod switch {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static BROKEN: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Breaks a promise for all that this thread does from now on, or none.
    pub fn set(mutation: Option<Mutation>) {
        BROKEN.set(mutation);
    }

    /// Whether this one is broken.
    pub(crate) fn is(mutation: Mutation) -> bool {
        BROKEN.get() == Some(mutation)
    }
}

#[cfg(feature = "sim")]
pub(crate) use switch::is;
#[cfg(feature = "sim")]
pub use switch::set;

/// Never.
#[cfg(not(feature = "sim"))]
pub(crate) const fn is(_: Mutation) -> bool {
    false
}
