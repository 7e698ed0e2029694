//! What one target gets next, and what the relay must keep for it. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use walrelay_proto::{Lsn, WalFileName};

use super::backoff;
use super::floors::Floor;
use super::listing::Listing;
use crate::archive::repo::name::{FileKind, FileName};
use crate::archive::repo::progress::{Gap, Progress};
use crate::mutation::{self, Mutation};
use crate::store::ArchivedWal;

/// Histories first, then by timeline and position: whoever has a segment can tell what it belongs to.
type Rank = (bool, FileName);

/// One target's queue.
#[derive(Debug)]
pub(super) struct Queue {
    progress: Progress,
    pending: BTreeSet<Rank>,
    /// Files on their way, and whether each is written whatever is there.
    in_flight: BTreeMap<FileName, bool>,
    /// Files that failed: how often, and when they may be tried again.
    failed: HashMap<FileName, (u32, Instant)>,
}

fn rank(name: &FileName) -> Rank {
    (name.kind() != FileKind::History, name.clone())
}

impl Queue {
    /// Goes on from what was saved.
    pub(super) fn new(progress: Progress) -> Queue {
        let (pending, in_flight) = (BTreeSet::new(), BTreeMap::new());
        Queue { progress, pending, in_flight, failed: HashMap::new() }
    }

    /// What the target has got.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Notes what tells the target from others in its place.
    pub(super) fn set_marker(&mut self, marker: String) {
        self.progress.set_marker(marker);
    }

    /// Somebody has looked at so many gaps.
    pub(super) fn dismiss_gaps(&mut self, looked_at: usize) {
        self.progress.dismiss_gaps(looked_at);
    }

    /// Files that [`Queue::observe`] may ask about.
    pub(super) fn doubts(&self, listing: &Listing) -> BTreeSet<WalFileName> {
        let asked = std::cell::RefCell::new(BTreeSet::new());
        let note = |wal| {
            asked.borrow_mut().insert(wal);
            true
        };
        Queue::new(self.progress.clone()).observe(listing, &note);
        asked.into_inner()
    }

    /// Notes that the target keeps nothing before this position any more.
    pub(super) fn removed_before(&mut self, lsn: Lsn) {
        self.progress.removed_before(lsn);
    }

    /// Takes over what is in `pg_wal`. What should be there and is not is given up, and told; `exists` looks
    /// again at the place itself, because a file that gets another name while a directory is read can be
    /// missed.
    pub(super) fn observe(&mut self, listing: &Listing, exists: &dyn Fn(WalFileName) -> bool) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for tli in listing.timelines() {
            let Some(lowest) = listing.first(tli, walrelay_proto::SegNo::new(0)) else { continue };
            if self.progress.next(tli).is_none() {
                let expected = self.expected_begin(listing, tli).filter(|first| *first < lowest);
                let first = expected.filter(|first| !exists(WalFileName::new(tli, *first)));
                self.progress.begin(WalFileName::new(tli, first.unwrap_or(lowest)));
            }
            let Some(next) = self.progress.next(tli) else { continue };
            let here = listing.first(tli, next);
            if here.is_some_and(|here| here > next) && !exists(WalFileName::new(tli, next)) {
                gaps.extend(self.progress.give_up(tli, here.unwrap_or(next)));
            }
        }
        for ancestor in listing.history.ancestors() {
            let tli = ancestor.tli;
            let end = listing.history.switch_point(tli).map(|(left_at, _)| left_at.seg_at(listing.size));
            let (Some(next), Some(end)) = (self.progress.next(tli), end) else { continue };
            let missing = next < end && listing.first(tli, next).is_none();
            if missing && !exists(WalFileName::new(tli, next)) {
                gaps.extend(self.progress.give_up(tli, end));
            }
        }
        let wanted = listing.files.iter().filter(|name| !self.progress.is_done(name));
        self.pending = wanted.filter(|name| !self.in_flight.contains_key(*name)).map(rank).collect();
        gaps
    }

    /// Where a timeline that follows one we know must begin.
    fn expected_begin(
        &self,
        listing: &Listing,
        tli: walrelay_proto::TimelineId,
    ) -> Option<walrelay_proto::SegNo> {
        let parent = listing.history.ancestors().last().filter(|_| listing.history.tli() == tli)?.tli;
        self.progress.next(parent)?;
        Some(listing.history.begin().seg_at(listing.size))
    }

    /// The next file to send, and whether it has to be written whatever is there; it is in flight from now on.
    pub(super) fn next(&mut self, now: Instant) -> Option<(FileName, bool)> {
        let ready = |name: &FileName| self.failed.get(name).is_none_or(|(_, at)| *at <= now);
        let found = self.pending.iter().find(|(_, name)| ready(name)).cloned()?;
        self.pending.remove(&found);
        let (_, name) = found;
        let again = self.progress.is_suspect(&name);
        self.in_flight.insert(name.clone(), again);
        if mutation::is(Mutation::CountBeforeTaken) {
            self.progress.mark(&name);
        }
        Some((name, again))
    }

    /// How many files wait or are in flight.
    pub(super) fn len(&self) -> usize {
        self.pending.len() + self.in_flight.len()
    }

    /// When a file that waits may be tried again, if all of them have to wait.
    pub(super) fn wake(&self) -> Option<Instant> {
        let at = |rank: &Rank| self.failed.get(&rank.1).map(|(_, at)| *at);
        self.pending.iter().map(at).min().flatten()
    }

    /// The target says that it has it. False if that does not count: a sync of another file has failed meanwhile, and this
    /// one's may have said yes for that reason; it is tried again.
    pub(super) fn taken(&mut self, name: &FileName, now: Instant) -> bool {
        let again = self.in_flight.get(name).copied().unwrap_or(false);
        if !again && self.progress.is_suspect(name) {
            self.failed(name.clone(), now);
            return false;
        }
        self.settled(name);
        true
    }

    /// A sync has failed in the target: what is in flight may be lost although its own sync says yes. It is written again,
    /// whatever the target says that it has.
    pub(super) fn not_synced(&mut self) {
        self.progress.suspect(self.in_flight.keys().cloned());
    }

    /// What the target needs kept, by its progress as it was saved, and what can be had back from it. Of WAL that it has not
    /// got it holds no more than `quota` bytes, if there is such. `readable`: whether anything can be read there.
    pub(super) fn floor(
        &self,
        saved: &Progress,
        listing: &Listing,
        quota: Option<u64>,
        readable: bool,
    ) -> Floor {
        let saved = if mutation::is(Mutation::LetGoBeforeSaved) { &self.progress } else { saved };
        let needed = needed_from(saved, listing);
        let dropped = quota.map_or(Lsn::INVALID, |quota| listing.end.rewind(quota).seg_start(listing.size));
        let archived = saved.since().filter(|since| readable && *since < needed);
        let archived = archived.map(|from| ArchivedWal { from, to: needed });
        Floor { hold: needed.max(dropped), way: listing.way, archived }
    }

    /// The target has it.
    fn settled(&mut self, name: &FileName) {
        self.in_flight.remove(name);
        self.failed.remove(name);
        self.progress.mark(name);
    }

    /// It has to be tried again.
    pub(super) fn failed(&mut self, name: FileName, now: Instant) -> Duration {
        self.in_flight.remove(&name);
        let failures = self.failed.get(&name).map_or(0, |(failures, _)| *failures) + 1;
        let pause = backoff::pause(failures);
        self.pending.insert(rank(&name));
        self.failed.insert(name, (failures, now + pause));
        pause
    }

    /// What has failed need not wait any longer.
    pub(super) fn retry_now(&mut self) {
        self.failed.clear();
    }

    /// It is not here any more; the next look at `pg_wal` tells what that means.
    pub(super) fn gone(&mut self, name: &FileName) {
        self.in_flight.remove(name);
    }
}

/// Where the WAL begins that a target with this progress still needs.
pub(super) fn needed_from(progress: &Progress, listing: &Listing) -> Lsn {
    let size = listing.size;
    let tli = listing.history.tli();
    let undone = listing.files.iter().filter(|name| !progress.is_done(name));
    let undone = undone.filter_map(|name| name.wal(size)).map(|wal| wal.segno.start(size));
    let receiving = progress.next(tli).map_or(Lsn::INVALID, |next| next.start(size));
    undone.min().map_or(receiving, |first| first.min(receiving))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use walrelay_proto::{SegNo, SegSize, TimelineHistory, TimelineId};

    fn size() -> SegSize {
        SegSize::new(1 << 20).unwrap()
    }

    fn segment(tli: u32, segno: u64) -> String {
        WalFileName::new(TimelineId::new(tli).unwrap(), SegNo::new(segno)).format(size())
    }

    /// Segments `from..to` of timeline 1, and the one after them unfinished.
    fn held(from: u64, to: u64) -> Listing {
        let mut names: Vec<_> = (from..to).map(|segno| segment(1, segno)).collect();
        names.push(format!("{}.partial", segment(1, to)));
        Listing::new(&names, size(), Arc::new(TimelineHistory::first()), SegNo::new(to).start(size()))
    }

    fn queue() -> Queue {
        Queue::new(Progress::new(size(), "test".to_owned()))
    }

    fn drain(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.next(Instant::now())).map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn histories_come_first_then_segments_in_order() {
        let two = TimelineId::new(2).unwrap();
        let history = TimelineHistory::parse(two, b"1\t0/400010\tx\n").unwrap();
        let names = ["000000020000000000000004", "000000010000000000000003", "00000002.history"];
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        let mut queue = queue();
        queue.observe(&Listing::new(&names, size(), Arc::new(history), Lsn::new(0x500_000)), &|_| false);
        assert_eq!(drain(&mut queue), ["00000002.history", names[1].as_str(), names[0].as_str()]);
    }

    #[test]
    fn what_failed_waits_and_does_not_hold_up_the_rest() {
        let mut queue = queue();
        queue.observe(&held(3, 6), &|_| false);
        let now = Instant::now();
        let first = queue.next(now).unwrap();
        let pause = queue.failed(first.0.clone(), now);
        assert_ne!(queue.next(now), Some(first.clone()));
        assert_eq!(queue.next(now + pause), Some(first.clone()));
        let first = first.0;
        assert!(queue.taken(&first, now));
        assert!(queue.progress().is_done(&first));
        assert_eq!(queue.wake(), None);
    }

    #[test]
    fn what_was_on_its_way_when_a_sync_failed_is_written_again() {
        let mut queue = queue();
        queue.observe(&held(3, 6), &|_| false);
        let now = Instant::now();
        let [(one, _), (other, _)] = [0, 1].map(|_| queue.next(now).unwrap());
        queue.not_synced();
        let pause = queue.failed(one, now);
        // Its own sync comes after the one that was told, and says yes.
        assert!(!queue.taken(&other, now) && !queue.progress().is_done(&other));
        let again: Vec<_> = std::iter::from_fn(|| queue.next(now + pause * 2)).collect();
        assert_eq!(again.iter().map(|(_, again)| *again).collect::<Vec<_>>(), [true, true, false]);
        assert!(queue.taken(&other, now) && queue.progress().is_done(&other));
    }

    #[test]
    fn what_was_removed_before_it_was_sent_is_a_gap() {
        let mut queue = queue();
        assert_eq!(queue.observe(&held(3, 6), &|_| false), []);
        let gaps = queue.observe(&held(5, 7), &|_| false);
        let ranges: Vec<_> = gaps.iter().map(|gap| (gap.from.as_u64(), gap.to.as_u64())).collect();
        assert_eq!(ranges, [(3, 5)]);
        assert_eq!(queue.observe(&held(5, 7), &|_| false), []);
    }

    #[test]
    fn a_file_that_was_only_missed_is_no_gap() {
        let mut queue = queue();
        queue.observe(&held(3, 6), &|_| false);
        assert_eq!(queue.observe(&held(4, 6), &|wal| wal.segno == SegNo::new(3)), []);
        assert_eq!(queue.observe(&held(3, 6), &|_| false), []);
        assert_eq!(queue.len(), 3);
    }

    #[test]
    fn a_timeline_that_was_left_can_have_a_gap_at_its_end() {
        let mut queue = queue();
        queue.observe(&held(3, 6), &|_| false);
        let two = TimelineId::new(2).unwrap();
        let history = Arc::new(TimelineHistory::parse(two, b"1\t0/800010\tx\n").unwrap());
        let names = [segment(2, 10), format!("{}.partial", segment(2, 11))];
        let listing = Listing::new(&names, size(), history, SegNo::new(11).start(size()));
        let gaps = queue.observe(&listing, &|_| false);
        let ranges: Vec<_> =
            gaps.iter().map(|gap| (gap.tli == two, gap.from.as_u64(), gap.to.as_u64())).collect();
        assert_eq!(ranges, [(true, 8, 10), (false, 3, 8)]);
    }

    proptest! {
        /// Whatever the order in which files arrive at the target, what it still needs is kept.
        #[test]
        fn nothing_that_is_needed_is_let_go(order in prop::collection::vec(0usize..8, 0..8)) {
            let listing = held(3, 11);
            let mut queue = queue();
            queue.observe(&listing, &|_| false);
            let names: Vec<_> = listing.files.iter().cloned().collect();
            for one in order {
                queue.settled(&names[one]);
                let keep = needed_from(queue.progress(), &listing);
                let undone = names.iter().filter(|name| !queue.progress().is_done(name));
                let first = undone.map(|name| name.wal(size()).unwrap().segno).min();
                prop_assert_eq!(keep, first.unwrap_or(SegNo::new(11)).start(size()));
            }
        }
    }

    #[test]
    fn everything_is_needed_as_long_as_nothing_is_known() {
        assert_eq!(needed_from(&Progress::new(size(), "test".to_owned()), &held(3, 3)), Lsn::INVALID);
    }
}
