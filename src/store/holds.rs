//! Holds: who still needs WAL, and from where on. Retention removes what nobody holds.
//!
//! ```text
//! registered ── has not spoken: holds all that is there
//!     └─ set: Some(from) ── holds WAL from there on
//!             None ── needs nothing at the moment
//! dropped: let go
//! ```
//!
//! Where the relay goes over to another timeline, what archive targets have said of the way before does not count on the new one,
//! whose end may be far behind: they hold everything until they have spoken of that ([`Hold::set_on`]).
//!
//! Whoever needs WAL registers, under a name, before it knows how much that is, so nothing can go meanwhile. It never asks
//! what others hold, and whatever keeps WAL can be named, with its position ([`Holds::rows`]).
//!
//! [`Table`] is a value that decides, without a clock, a disk or a lock; [`Holds`] shares it. Its lock is held for a moment,
//! inside of those of the slots, and outside of the history's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use walrelay_proto::{Lsn, SegSize};

use super::lock;
use super::retention::Bell;

/// What a holder is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldKind {
    /// `--wal-keep-size`.
    KeepSize,
    /// What the next start begins with.
    Recovery,
    /// A replication slot. What it needs from before `--max-slot-wal-keep-size` it does not hold.
    Slot,
    /// A replication slot as it was saved last, where that is another position: a crash brings it back.
    SavedSlot,
    /// An archive target.
    ArchiveTarget,
    /// The relay, until all that will need WAL has registered.
    Start,
    /// The writer, while it goes over to files that may be far behind the present end.
    TimelineSwitch,
}

/// What is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// All that is there: the holder has not said yet what it needs.
    Everything,
    /// WAL from here on.
    From(Lsn),
    /// Nothing at the moment.
    Nothing,
}

/// A holder, and what it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HoldRow {
    /// What it is.
    pub kind: HoldKind,
    /// Its own name; among those of its kind it has it alone.
    pub name: String,
    /// What it holds.
    pub held: Held,
}

impl fmt::Display for HoldRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match self.kind {
            HoldKind::KeepSize | HoldKind::Recovery | HoldKind::Start => f.write_str(name),
            HoldKind::Slot => write!(f, "slot \"{name}\""),
            HoldKind::SavedSlot => write!(f, "slot \"{name}\" as it was saved last"),
            HoldKind::ArchiveTarget => write!(f, "archive target \"{name}\""),
            HoldKind::TimelineSwitch => write!(f, "the change to timeline {name}"),
        }
    }
}

/// Where WAL ends, for those who hold a part of it that goes with the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ends {
    /// What lies within `--wal-keep-size` of the end.
    pub(super) keep_size: Lsn,
    /// What the next start reads.
    pub(super) recovery: Lsn,
    /// Slots hold nothing before it.
    pub(super) slots: Lsn,
}

/// All holders of a store's WAL. Clones are the same.
#[derive(Clone, Debug)]
pub struct Holds {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// Rung when more may be removed than before.
    bell: Arc<Bell>,
}

/// Somebody's hold on WAL, let go when this is dropped.
#[derive(Debug)]
pub struct Hold {
    id: u64,
    removed_before: Lsn,
    shared: Arc<Shared>,
}

impl Holds {
    pub(super) fn new(bell: Arc<Bell>) -> Holds {
        Holds { shared: Arc::new(Shared { table: Mutex::new(Table::new()), bell }) }
    }

    /// Enters a holder. Until it has said what it needs, nothing more is removed.
    pub fn register(&self, kind: HoldKind, name: impl Into<String>) -> Hold {
        let mut table = lock(&self.shared.table);
        let id = table.register(kind, name.into());
        Hold { id, removed_before: table.removed_before, shared: self.shared.clone() }
    }

    /// All holders, and what each holds.
    pub fn rows(&self) -> Vec<HoldRow> {
        lock(&self.shared.table).rows()
    }

    /// Who holds the oldest WAL; whoever has not spoken yet, if there is such.
    pub fn oldest(&self) -> Option<HoldRow> {
        let by_need = |row: &HoldRow| match row.held {
            Held::Everything => Some(Lsn::INVALID),
            Held::From(from) => Some(from),
            Held::Nothing => None,
        };
        let rows = self.rows().into_iter();
        rows.filter_map(|row| Some((by_need(&row)?, row))).min_by_key(|(from, _)| *from).map(|(_, row)| row)
    }

    /// Whether somebody may still register who has not been heard of.
    pub(super) fn is_starting(&self) -> bool {
        let table = lock(&self.shared.table);
        table.holders.values().any(|holder| holder.kind == HoldKind::Start)
    }

    /// The oldest WAL that a slot needs, whether it holds it or not.
    pub(super) fn needed_by_slots(&self) -> Option<Lsn> {
        let table = lock(&self.shared.table);
        let of_slots = table.holders.values().filter(|holder| holder.kind == HoldKind::Slot);
        of_slots.filter_map(|holder| holder.from()).min()
    }

    /// What would stay if retention decided now and slots had just been saved.
    pub(super) fn would_keep(&self, ends: Ends) -> Lsn {
        let kinds = |kind| !matches!(kind, HoldKind::SavedSlot | HoldKind::TimelineSwitch);
        let mut table = lock(&self.shared.table);
        table.note_ends(ends);
        table.lowest(kinds).unwrap_or_default()
    }

    /// Decides from which segment on WAL stays, by where it ends at just this moment: its start. What lies before it is as
    /// good as gone when this returns. `ends` is asked while nobody can register or let go, so that it has to look at the end
    /// then, and not before: whoever goes back to another end holds everything from before that until it is shown. Nothing is
    /// decided without an end.
    pub(super) fn decide(&self, size: SegSize, ends: impl FnOnce() -> Option<Ends>) -> Option<Lsn> {
        let mut table = lock(&self.shared.table);
        table.note_ends(ends()?);
        Some(table.decide(size))
    }

    /// WAL begins anew, here, maybe before what has been removed. Nobody may be removing anything.
    pub(super) fn begin_anew(&self, start: Lsn) {
        let mut table = lock(&self.shared.table);
        table.removed_before = start;
        table.go_another_way();
    }

    /// WAL takes another way from here on, which is shown already. Called before anything may be removed of it.
    pub(super) fn go_another_way(&self) {
        lock(&self.shared.table).go_another_way();
    }

    /// The present way, for [`Hold::set_on`]. Whoever looks at the history, or at files, after this sees that way's, or one
    /// that is newer.
    pub fn way(&self) -> u64 {
        lock(&self.shared.table).way
    }
}

impl Hold {
    /// Says what is needed: WAL from there on, or nothing at the moment. What has been removed already does not come back.
    pub fn set(&self, from: Option<Lsn>) {
        let mut table = lock(&self.shared.table);
        let lets_go = table.set(self.id, from);
        drop(table);
        self.shared.note(lets_go);
    }

    /// The same by what was seen on this way ([`Holds::way`]); nothing is said if WAL takes another one by now.
    pub fn set_on(&self, way: u64, from: Option<Lsn>) {
        let mut table = lock(&self.shared.table);
        let lets_go = table.way == way && table.set(self.id, from);
        drop(table);
        self.shared.note(lets_go);
    }

    /// Says what two need who depend on each other, at once.
    pub(super) fn set_together(holds: [(&Hold, Option<Lsn>); 2]) {
        let shared = &holds[0].0.shared;
        let mut table = lock(&shared.table);
        let lets_go = holds.map(|(hold, from)| table.set(hold.id, from));
        drop(table);
        shared.note(lets_go.contains(&true));
    }

    /// WAL before this may have been gone, or going, when the hold began.
    pub(super) fn removed_before(&self) -> Lsn {
        self.removed_before
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let lets_go = lock(&self.shared.table).release(self.id);
        self.shared.note(lets_go);
    }
}

impl Shared {
    fn note(&self, lets_go: bool) {
        if lets_go {
            self.bell.ring();
        }
    }
}

/// Who holds what, and what has been decided.
#[derive(Debug)]
struct Table {
    holders: BTreeMap<u64, Holder>,
    /// The next number of a holder.
    next: u64,
    /// Slots hold nothing before it.
    slots_from: Lsn,
    /// WAL before this may have been removed.
    removed_before: Lsn,
    /// Steps with each way that WAL takes from one timeline to another.
    way: u64,
}

#[derive(Debug)]
struct Holder {
    kind: HoldKind,
    name: String,
    held: Held,
}

impl Holder {
    fn from(&self) -> Option<Lsn> {
        match self.held {
            Held::From(from) => Some(from),
            Held::Everything | Held::Nothing => None,
        }
    }
}

impl Table {
    const KEEP_SIZE: u64 = 0;
    const RECOVERY: u64 = 1;

    fn new() -> Table {
        let mut table = Table {
            holders: BTreeMap::new(),
            next: Table::KEEP_SIZE,
            slots_from: Lsn::INVALID,
            removed_before: Lsn::INVALID,
            way: 0,
        };
        table.register(HoldKind::KeepSize, "--wal-keep-size".to_owned());
        table.register(HoldKind::Recovery, "the next start".to_owned());
        table
    }

    fn register(&mut self, kind: HoldKind, name: String) -> u64 {
        let id = self.next;
        self.next += 1;
        self.holders.insert(id, Holder { kind, name, held: Held::Everything });
        id
    }

    /// Whether retention is to be told that it may remove more: of slots it finds out in time, they move all the time.
    fn set(&mut self, id: u64, from: Option<Lsn>) -> bool {
        let Some(holder) = self.holders.get_mut(&id) else { return false };
        let held = from.map_or(Held::Nothing, Held::From);
        let before = std::mem::replace(&mut holder.held, held);
        holder.kind == HoldKind::ArchiveTarget && before != held
    }

    fn release(&mut self, id: u64) -> bool {
        self.holders.remove(&id).is_some_and(|holder| holder.kind == HoldKind::ArchiveTarget)
    }

    fn go_another_way(&mut self) {
        self.way += 1;
        let targets = self.holders.values_mut().filter(|holder| holder.kind == HoldKind::ArchiveTarget);
        targets.for_each(|holder| holder.held = Held::Everything);
    }

    fn note_ends(&mut self, ends: Ends) {
        self.set(Table::KEEP_SIZE, Some(ends.keep_size));
        self.set(Table::RECOVERY, Some(ends.recovery));
        self.slots_from = ends.slots;
    }

    /// What a holder holds of what it needs.
    fn held(&self, holder: &Holder) -> Held {
        match holder.held {
            Held::From(from) if holder.kind == HoldKind::Slot && from < self.slots_from => Held::Nothing,
            held => held,
        }
    }

    /// The oldest that is held by these; 0/0 while one of them has not spoken.
    fn lowest(&self, counts: impl Fn(HoldKind) -> bool) -> Option<Lsn> {
        let held = self.holders.values().filter(|holder| counts(holder.kind)).map(|holder| self.held(holder));
        held.filter_map(|held| match held {
            Held::Everything => Some(Lsn::INVALID),
            Held::From(from) => Some(from),
            Held::Nothing => None,
        })
        .min()
    }

    fn decide(&mut self, size: SegSize) -> Lsn {
        if self.holders.values().any(|holder| holder.held == Held::Everything) {
            // What was decided before may still be there.
            return self.removed_before;
        }
        let kept = self.lowest(|_| true).unwrap_or_default().seg_start(size);
        self.removed_before = self.removed_before.max(kept);
        kept
    }

    fn rows(&self) -> Vec<HoldRow> {
        let row = |holder: &Holder| HoldRow {
            kind: holder.kind,
            name: holder.name.clone(),
            held: self.held(holder),
        };
        let is_said = |row: &HoldRow| row.kind != HoldKind::SavedSlot || row.held != Held::Nothing;
        self.holders.values().map(row).filter(is_said).collect()
    }
}

impl Default for Holds {
    /// Those of nobody's WAL.
    fn default() -> Holds {
        Holds::new(Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEG: u64 = 1 << 20;

    fn size() -> SegSize {
        SegSize::new(SEG).unwrap()
    }

    fn at(segment: u64) -> Lsn {
        Lsn::new(segment * SEG + 40)
    }

    /// WAL ends in this segment, and slots may hold all of it.
    fn end(segment: u64) -> Ends {
        Ends { keep_size: at(segment), recovery: at(segment), slots: Lsn::INVALID }
    }

    fn decide(holds: &Holds, ends: Ends) -> u64 {
        holds.decide(size(), || Some(ends)).unwrap().as_u64() / SEG
    }

    fn oldest(holds: &Holds) -> String {
        holds.oldest().unwrap().to_string()
    }

    #[test]
    fn nothing_goes_before_everybody_has_spoken() {
        let holds = Holds::default();
        assert_eq!(decide(&holds, end(5)), 5);
        let (one, two) =
            (holds.register(HoldKind::ArchiveTarget, "one"), holds.register(HoldKind::ArchiveTarget, "two"));
        assert_eq!((one.removed_before(), decide(&holds, end(9))), (Lsn::new(5 * SEG), 5));
        one.set(Some(at(8)));
        assert_eq!((decide(&holds, end(9)), oldest(&holds)), (5, "archive target \"two\"".to_owned()));
        two.set(None);
        assert_eq!((decide(&holds, end(9)), oldest(&holds)), (8, "archive target \"one\"".to_owned()));
        drop(one);
        assert_eq!((decide(&holds, end(9)), oldest(&holds)), (9, "--wal-keep-size".to_owned()));
    }

    #[test]
    fn what_a_slot_needs_from_before_the_limit_it_does_not_hold() {
        let holds = Holds::default();
        let (slot, saved) = (holds.register(HoldKind::Slot, "a"), holds.register(HoldKind::SavedSlot, "a"));
        Hold::set_together([(&slot, Some(at(3))), (&saved, None)]);
        let limited = |slots| Ends { slots: at(slots), ..end(9) };
        assert_eq!((holds.would_keep(limited(2)), decide(&holds, limited(2))), (at(3), 3));
        assert_eq!(holds.would_keep(limited(4)), at(9));
        // Saved is another matter: it is what a crash brings back.
        Hold::set_together([(&slot, Some(at(6))), (&saved, Some(at(3)))]);
        assert_eq!((holds.would_keep(limited(4)), decide(&holds, limited(4))), (at(6), 3));
        assert_eq!(oldest(&holds), "slot \"a\" as it was saved last");
        Hold::set_together([(&slot, Some(at(3))), (&saved, None)]);
        assert_eq!((decide(&holds, limited(4)), holds.needed_by_slots()), (9, Some(at(3))));
        let row = HoldRow { kind: HoldKind::Slot, name: "a".to_owned(), held: Held::Nothing };
        assert!(holds.rows().contains(&row) && holds.rows().len() == 3, "{:?}", holds.rows());
    }

    #[test]
    fn what_begins_anew_is_not_what_was_removed() {
        let holds = Holds::default();
        assert_eq!(decide(&holds, end(9)), 9);
        holds.begin_anew(Lsn::new(4 * SEG));
        assert_eq!(holds.register(HoldKind::Slot, "a").removed_before(), Lsn::new(4 * SEG));
        assert_eq!(decide(&holds, end(5)), 5);
    }

    #[test]
    fn what_a_target_said_of_another_way_does_not_count() {
        let holds = Holds::default();
        let target = holds.register(HoldKind::ArchiveTarget, "one");
        let way = holds.way();
        target.set_on(way, Some(at(8)));
        assert_eq!(decide(&holds, end(9)), 8);
        holds.go_another_way();
        // By what it saw before.
        target.set_on(way, Some(at(9)));
        assert_eq!((decide(&holds, end(12)), oldest(&holds)), (8, "archive target \"one\"".to_owned()));
        target.set_on(holds.way(), Some(at(10)));
        assert_eq!(decide(&holds, end(12)), 10);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Register(HoldKind),
        Set(usize, Option<u64>),
        Drop(usize),
        Decide { end: u64, keep_size: u64, slots: u64 },
    }

    fn op() -> impl Strategy<Value = Op> {
        const KINDS: &[HoldKind] =
            &[HoldKind::Slot, HoldKind::SavedSlot, HoldKind::ArchiveTarget, HoldKind::TimelineSwitch];
        prop_oneof![
            1 => prop::sample::select(KINDS).prop_map(Op::Register),
            4 => (0usize..8, prop::option::weighted(0.8, 0u64..40)).prop_map(|(who, to)| Op::Set(who, to)),
            1 => (0usize..8).prop_map(Op::Drop),
            4 => (0u64..40, 0u64..10, 0u64..40)
                .prop_map(|(end, keep_size, slots)| Op::Decide { end, keep_size, slots }),
        ]
    }

    /// A hold, and what it may count on.
    struct Holder {
        hold: Hold,
        kind: HoldKind,
        held: Held,
        /// What had been removed when it said so, or registered.
        gone: Lsn,
    }

    impl Holder {
        /// What is there for it.
        fn has_from(&self) -> Lsn {
            match self.held {
                Held::Everything => self.gone,
                Held::From(from) => from.seg_start(size()).max(self.gone),
                Held::Nothing => Lsn::new(u64::MAX),
            }
        }
    }

    proptest! {
        /// Whatever comes, nothing goes that somebody holds, all else may, and what is gone stays gone.
        #[test]
        fn no_hold_is_ever_broken(ops in prop::collection::vec(op(), 1..60)) {
            let holds = Holds::default();
            let (mut holders, mut gone) = (Vec::<Holder>::new(), Lsn::INVALID);
            for op in ops {
                match op {
                    Op::Register(kind) => {
                        let hold = holds.register(kind, format!("{}", holders.len()));
                        prop_assert_eq!(hold.removed_before(), gone);
                        holders.push(Holder { hold, kind, held: Held::Everything, gone });
                    }
                    Op::Set(who, to) => {
                        let Some(holder) = holders.get_mut(who) else { continue };
                        holder.hold.set(to.map(at));
                        (holder.held, holder.gone) = (to.map_or(Held::Nothing, |to| Held::From(at(to))), gone);
                    }
                    Op::Drop(who) if who < holders.len() => drop(holders.remove(who)),
                    Op::Drop(_) => {}
                    Op::Decide { end, keep_size, slots } => {
                        let keep_size = at(end.saturating_sub(keep_size));
                        let ends = Ends { keep_size, recovery: at(end), slots: at(slots) };
                        let kept = holds.decide(size(), || Some(ends)).unwrap();
                        let before = gone;
                        gone = gone.max(kept);
                        prop_assert_eq!(holds.register(HoldKind::Slot, "probe").removed_before(), gone);
                        let mut lowest = ends.keep_size.min(ends.recovery);
                        for holder in &mut holders {
                            match holder.held {
                                // Of what it needs from before the limit nobody promises anything any more.
                                Held::From(from) if holder.kind == HoldKind::Slot && from < ends.slots => {
                                    holder.gone = gone;
                                }
                                Held::From(from) => lowest = lowest.min(from),
                                Held::Everything | Held::Nothing => {}
                            }
                            prop_assert!(gone <= holder.has_from(), "{gone} is gone: {:?}", holder.held);
                        }
                        let is_silent = |holder: &Holder| holder.held == Held::Everything;
                        let stays = if holders.iter().any(is_silent) { before } else { lowest.seg_start(size()) };
                        prop_assert_eq!(kept, stays);
                    }
                }
            }
        }
    }
}
