//! Deliberate faults, to show that the simulation finds them: each is a promise broken in one place.
//!
//! They exist with the feature `sim` alone; without it nothing is ever broken, and the compiler leaves nothing of them.

macro_rules! mutations {
    (simulated { $($(#[$doc:meta])* $name:ident,)* } archive { $($(#[$of:meta])* $archive:ident,)* }) => {
        /// A promise that is broken.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutation {
            $($(#[$doc])* $name,)*
            $($(#[$of])* $archive,)*
        }

        impl Mutation {
            /// Those that the simulation has to find: all but [those of the archive](Self::OF_ARCHIVE).
            pub const SIMULATED: &[Mutation] = &[$(Mutation::$name),*];
            /// Those of the archive and of what is fetched back from it, which a crash at every operation has to find
            /// (`tests/crash`).
            pub const OF_ARCHIVE: &[Mutation] = &[$(Mutation::$archive),*];
        }
    };
}

mutations! {
    simulated {
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
        /// What consumers have of a timeline counts for the next one.
        KeepMembersAtSwitch,
        /// A slot that is made gets the position that another of its name had.
        ReuseSlotPosition,
    }
    archive {
        /// What an archive target gets is counted, and saved, before the target has it.
        CountBeforeTaken,
        /// WAL is let go for an archive target before it is saved that it has it.
        LetGoBeforeSaved,
        /// What comes back from an archive is sent to consumers although it does not verify.
        RecallUnverified,
    }
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

/// Where slots were that are no more, for [`Mutation::ReuseSlotPosition`].
#[derive(Debug, Default)]
pub(crate) struct Former {
    #[cfg(feature = "sim")]
    positions: std::sync::Mutex<std::collections::BTreeMap<String, walrelay_proto::Lsn>>,
}

#[cfg(feature = "sim")]
impl Former {
    /// A slot that kept WAL from there on is dropped, or lost.
    pub(crate) fn note(&self, slot: &str, position: Option<walrelay_proto::Lsn>) {
        let mut positions = self.positions.lock().expect("nothing panics that holds it");
        positions.extend(position.map(|position| (slot.to_owned(), position)));
    }

    /// Where the last one of this name was, if that is to count.
    pub(crate) fn position(&self, slot: &str) -> Option<walrelay_proto::Lsn> {
        let positions = self.positions.lock().expect("nothing panics that holds it");
        positions.get(slot).copied().filter(|_| is(Mutation::ReuseSlotPosition))
    }
}

#[cfg(not(feature = "sim"))]
impl Former {
    /// Nothing.
    pub(crate) fn note(&self, _: &str, _: Option<walrelay_proto::Lsn>) {}

    /// None.
    pub(crate) fn position(&self, _: &str) -> Option<walrelay_proto::Lsn> {
        None
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
