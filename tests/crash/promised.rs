//! What a relay has promised so far, and whether a store keeps it.

use std::collections::{BTreeMap, BTreeSet};

use walrelay::store::fence::{Fence, FenceState};
use walrelay::store::{SlotInfo, Stepped, Store};
use walrelay_proto::{Lsn, SegNo, TimelineHistory, TimelineId, WalFileName};

use super::archive::{Archive, held_for_targets};
use super::workload::{SEG, START, Tree, identity};

/// All that somebody has been told. What is under way may be there or not.
#[derive(Debug)]
pub(super) struct Promised {
    /// What the upstream was told is durable, by timeline.
    flushed: BTreeMap<TimelineId, Lsn>,
    /// Timelines that may be followed; the last is what was answered last.
    followed: Vec<TimelineId>,
    /// History files; whether that of each has been stored.
    histories: BTreeMap<TimelineId, bool>,
    slots: BTreeMap<String, Slot>,
    /// Segments that somebody has removed by hand.
    missing: BTreeSet<SegNo>,
    /// WAL before this may be gone: nothing needed it.
    removable: Lsn,
    /// What may be found of the fence: its number, and whether it is in force.
    fences: Vec<Option<(u64, bool)>>,
    /// The number of the last one that was ordered, and what the upstream had been told before.
    told_before_fence: (u64, Lsn),
    /// Where it was closed.
    closed: Option<Lsn>,
    /// A server on this timeline was followed; the same before the last fence was ordered.
    heading: Option<TimelineId>,
    heading_before_fence: Option<TimelineId>,
}

#[derive(Debug, Default)]
struct Slot {
    /// It may not be there.
    is_unsure: bool,
    /// Where it has stood since it was saved, each with the timeline of that moment.
    positions: Vec<(TimelineId, Option<Lsn>)>,
}

impl Default for Promised {
    fn default() -> Promised {
        Promised {
            flushed: BTreeMap::new(),
            followed: Vec::new(),
            histories: BTreeMap::new(),
            slots: BTreeMap::new(),
            missing: BTreeSet::new(),
            removable: Lsn::INVALID,
            fences: vec![None],
            told_before_fence: (0, Lsn::INVALID),
            closed: None,
            heading: None,
            heading_before_fence: None,
        }
    }
}

impl Promised {
    pub(super) fn note_flushed(&mut self, store: &Store) {
        let Some(tip) = store.tip().filter(|tip| tip.flush_lsn > START) else { return };
        let told = self.flushed.entry(tip.tli).or_default();
        assert!(tip.flush_lsn >= *told, "flush_lsn falls from {told} to {}", tip.flush_lsn);
        *told = tip.flush_lsn;
    }

    pub(super) fn may_follow(&mut self, tli: TimelineId) {
        self.followed.push(tli);
    }

    pub(super) fn follows(&mut self, tli: TimelineId) {
        self.followed = vec![tli];
    }

    pub(super) fn may_have_history(&mut self, tli: TimelineId) {
        self.histories.entry(tli).or_default();
    }

    pub(super) fn has_history(&mut self, tli: TimelineId) {
        self.histories.insert(tli, true);
    }

    pub(super) fn may_have(&mut self, slot: &str) {
        self.slots.entry(slot.to_owned()).or_default().is_unsure = true;
    }

    pub(super) fn has(&mut self, slot: &str) {
        self.slots.entry(slot.to_owned()).or_default().is_unsure = false;
    }

    pub(super) fn has_not(&mut self, slot: &str) {
        self.slots.remove(slot);
    }

    /// Looks where the slots stand.
    pub(super) fn note_slots(&mut self, store: &Store) {
        let tli = store.history().tli();
        for slot in store.slots().list() {
            if let Some(known) = self.slots.get_mut(&slot.name)
                && known.positions.last() != Some(&(tli, slot.restart_lsn))
            {
                known.positions.push((tli, slot.restart_lsn));
            }
        }
    }

    /// The relay is about to go over to a timeline with this history. What is saved of slots before that is noted ends where both
    /// part, whether it comes to the change or not.
    pub(super) fn may_come_back(&mut self, store: &Store, history: &TimelineHistory) {
        let present = store.history();
        let Some(end) = present.parting(history).and_then(|(_, at)| at) else { return };
        for slot in self.slots.values_mut() {
            if slot.positions.last().is_some_and(|(_, at)| at.is_some_and(|at| at > end)) {
                slot.positions.push((present.tli(), Some(end)));
            }
        }
    }

    pub(super) fn slots_are_saved(&mut self) {
        for slot in self.slots.values_mut() {
            slot.positions.drain(..slot.positions.len().saturating_sub(1));
        }
    }

    pub(super) fn may_miss(&mut self, segno: SegNo) {
        self.missing.insert(segno);
    }

    pub(super) fn misses_nothing(&mut self) {
        self.missing.clear();
    }

    pub(super) fn may_be_fenced(&mut self, epoch: u64, store: &Store) {
        if !self.fences.contains(&Some((epoch, true))) {
            self.told_before_fence = (epoch, store.tip().map(|tip| tip.flush_lsn).unwrap_or_default());
            self.closed = None;
            self.heading_before_fence = self.heading;
        }
        self.fences.push(Some((epoch, true)));
    }

    pub(super) fn heads_for(&mut self, tli: TimelineId) {
        self.heading = self.heading.max(Some(tli));
    }

    pub(super) fn is_fenced(&mut self, epoch: u64) {
        self.fences = vec![Some((epoch, true))];
    }

    pub(super) fn is_closed(&mut self, at: Lsn) {
        self.closed = Some(at);
    }

    pub(super) fn may_be_free(&mut self, epoch: u64) {
        self.fences.push(Some((epoch, false)));
    }

    pub(super) fn is_free(&mut self, epoch: u64) {
        self.fences = vec![Some((epoch, false))];
    }

    /// Retention is about to remove what nobody needs now.
    pub(super) fn may_remove(&mut self, store: &Store) {
        let Some(tip) = store.tip() else { return };
        let slots = store.slots().list().into_iter().filter_map(|slot| slot.restart_lsn);
        let needed = slots.chain([tip.flush_lsn.rewind(1), held_for_targets(store)]).min();
        self.removable = self.removable.max(needed.unwrap_or_default());
    }

    /// Looks for all of it in a store that has just been opened, and takes what was found for what is promised from now
    /// on: it is durable.
    pub(super) fn check(&mut self, tree: &Tree, archive: &Archive, it: &mut Stepped) -> Result<(), String> {
        self.check_end(it)?;
        check_bytes(tree, &it.store)?;
        self.check_histories(tree, &it.store)?;
        self.check_slots(&it.store)?;
        archive.check(&it.store, &self.missing)?;
        self.check_missing(&it.store)?;
        self.check_fence(&it.store)?;
        self.check_left_timelines(tree, it)
    }

    fn check_end(&mut self, it: &Stepped) -> Result<(), String> {
        let Some(tip) = it.store.tip() else {
            return if self.flushed.is_empty() { Ok(()) } else { Err("all WAL is gone".to_owned()) };
        };
        if !self.followed.is_empty() && !self.followed.contains(&tip.tli) {
            return Err(format!("timeline {} is followed, expected one of {:?}", tip.tli, self.followed));
        }
        let told = self.flushed.get(&tip.tli).copied().unwrap_or_default();
        if tip.flush_lsn < told || tip.write_lsn < told {
            return Err(format!("timeline {} ends at {tip:?}, and {told} was told", tip.tli));
        }
        if it.writer.position().map(|at| at.lsn) != Some(tip.write_lsn) {
            return Err(format!("the writer goes on at {:?}, WAL ends at {tip:?}", it.writer.position()));
        }
        self.followed = vec![tip.tli];
        Ok(())
    }

    fn check_histories(&mut self, tree: &Tree, store: &Store) -> Result<(), String> {
        for (&tli, is_sure) in &mut self.histories {
            let found = store.history_file(tli).map_err(|error| error.to_string())?;
            if found.is_none() && *is_sure {
                return Err(format!("the history file of timeline {tli} is gone"));
            }
            if found.as_ref().is_some_and(|found| found != tree.history_file(tli).as_bytes()) {
                return Err(format!("the history file of timeline {tli} is another: {found:?}"));
            }
            *is_sure = found.is_some();
        }
        Ok(())
    }

    fn check_slots(&mut self, store: &Store) -> Result<(), String> {
        let found: BTreeMap<_, _> =
            store.slots().list().into_iter().map(|slot| (slot.name.clone(), slot)).collect();
        if let Some(name) = found.keys().find(|name| !self.slots.contains_key(*name)) {
            return Err(format!("slot \"{name}\" is there again"));
        }
        self.slots.retain(|name, known| !known.is_unsure || found.contains_key(name));
        for (name, known) in &mut self.slots {
            let slot = found.get(name).ok_or_else(|| format!("slot \"{name}\" is gone"))?;
            known.check(slot, store)?;
            (known.is_unsure, known.positions) = (false, vec![(store.history().tli(), slot.restart_lsn)]);
        }
        Ok(())
    }

    fn check_missing(&self, store: &Store) -> Result<(), String> {
        let missing = store.missing_segments().map_err(|error| error.to_string())?;
        // Removals may reach the disk in another order than they were made: one that nobody needs may be back alone.
        let is_needed = |name: &&WalFileName| name.segno.end(identity().seg_size) > self.removable;
        match missing.iter().filter(is_needed).find(|name| !self.missing.contains(&name.segno)) {
            Some(name) => Err(format!("segment {name:?} is missing")),
            None => Ok(()),
        }
    }

    fn check_fence(&mut self, store: &Store) -> Result<(), String> {
        let shown = store.fences().now();
        if shown.heading < self.heading {
            let (found, told) = (shown.heading, self.heading);
            return Err(format!("the newest timeline that was followed is {found:?}, and was {told:?}"));
        }
        let (found, tip) = (shown.last, store.tip());
        let is_allowed = match &found {
            None => self.fences.contains(&None),
            // The workload goes on to other timelines without a word, and the start sees that.
            Some(Fence { epoch, state: FenceState::Passed { to }, timeline, .. }) => {
                self.fences.iter().flatten().any(|(known, _)| known == epoch)
                    && to > timeline
                    && tip.is_some()
            }
            Some(fence) => self.fences.contains(&Some((fence.epoch, fence.is_in_force()))),
        };
        if !is_allowed {
            return Err(format!("the fence is {found:?}, expected one of {:?}", self.fences));
        }
        let (last, told) = self.told_before_fence;
        if let Some(fence) = found.as_ref().filter(|fence| fence.epoch == last) {
            let at = fence.position.ok_or("the fence has no position")?;
            if at < told || self.closed.is_some_and(|closed| closed != at) {
                let closed = self.closed;
                return Err(format!("the {fence} came after {told} was told, and was closed at {closed:?}"));
            }
            if let Some(heading) = self.heading_before_fence.filter(|heading| fence.timeline < *heading) {
                return Err(format!("the {fence} came after a server on timeline {heading} was followed"));
            }
        }
        self.fences = vec![found.map(|fence| (fence.epoch, fence.is_in_force()))];
        Ok(())
    }

    /// What was received of timelines that were left is there as well, as long as nothing could remove it.
    fn check_left_timelines(&self, tree: &Tree, it: &mut Stepped) -> Result<(), String> {
        let Some(tip) = it.store.tip() else { return Ok(()) };
        for (&tli, &told) in self.flushed.iter().filter(|(tli, _)| **tli != tip.tli) {
            let segment = told.seg_before(identity().seg_size);
            if self.removable > segment.start(identity().seg_size) {
                continue;
            }
            let found = it.writer.find(tree.history(tli)).map_err(|error| error.to_string())?;
            let Some(held) = found.filter(|held| held.end().lsn >= told) else {
                return Err(format!("what was told of timeline {tli} up to {told} is gone"));
            };
            let tail = held.segment_before(&it.store, told).map_err(|error| error.to_string())?;
            let len = told.since(tail.start()) as usize;
            if tail.bytes(0, len) != &tree.bytes(tli)[tail.start().since(START) as usize..][..len] {
                return Err(format!("timeline {tli} is not what was received before {told}"));
            }
        }
        Ok(())
    }
}

impl Slot {
    fn check(&self, found: &SlotInfo, store: &Store) -> Result<(), String> {
        let (name, end) = (&found.name, store.tip().map(|tip| tip.write_lsn).unwrap_or_default());
        if found.invalidated {
            return Err(format!("slot \"{name}\" is lost"));
        }
        let counts =
            |&(tli, at): &(TimelineId, Option<Lsn>)| at.map(|at| common(&store.history(), tli, at).min(end));
        let stood: Vec<Option<Lsn>> = self.positions.iter().map(counts).collect();
        // It may have been made by a creation that was not answered.
        if !stood.is_empty() && !stood.contains(&found.restart_lsn) {
            return Err(format!(
                "slot \"{name}\" keeps WAL from {:?} on, it stood at {:?}, which is {stood:?} on this timeline",
                found.restart_lsn, self.positions
            ));
        }
        let Some(restart) = found.restart_lsn else { return Ok(()) };
        let oldest = store.oldest().unwrap_or_default();
        let is_there = restart >= oldest || !store.missing_segments().is_ok_and(|missing| missing.is_empty());
        if is_there {
            Ok(())
        } else {
            Err(format!("slot \"{name}\" needs {restart}, WAL begins at {oldest}"))
        }
    }
}

/// What a position on a timeline is on the way of another's history.
fn common(history: &TimelineHistory, tli: TimelineId, at: Lsn) -> Lsn {
    history.switch_point(tli).map_or(at, |(left_at, _)| left_at.min(at))
}

/// Whatever can be read is what the upstream has.
fn check_bytes(tree: &Tree, store: &Store) -> Result<(), String> {
    let size = identity().seg_size;
    let (Some(tip), Some(oldest)) = (store.tip(), store.oldest()) else { return Ok(()) };
    let (history, mut at) = (store.history(), oldest.max(START));
    while at < tip.write_lsn {
        let of = history.timeline_at(at);
        let segment = store.segment(of, at.seg_at(size)).map_err(|error| error.to_string())?;
        let to = segment.end().min(tip.write_lsn).min(segment.start().advance(segment.published()));
        if to <= at {
            return Err(format!("{at} on timeline {of} cannot be read"));
        }
        let expected = &tree.bytes(tip.tli)[at.since(START) as usize..to.since(START) as usize];
        if segment.bytes(at.since(segment.start()), expected.len()) != expected {
            return Err(format!("WAL from {at} to {to} is not the upstream's"));
        }
        at = to;
    }
    for file in store.wal_files().map_err(|error| error.to_string())? {
        let Some(name) = WalFileName::parse(&file, size) else { continue };
        let segment = store.finished_segment(name).map_err(|error| error.to_string())?;
        let from = segment.start().since(START) as usize;
        let expected = tree.bytes(name.tli).get(from..from + SEG as usize);
        if expected != Some(segment.bytes(0, SEG as usize)) {
            return Err(format!("segment {file} is not the upstream's"));
        }
    }
    Ok(())
}
