//! What is true: every branch of the cluster's WAL, byte for byte, whoever holds it.

use std::sync::Arc;

use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalIdentity};

use crate::random::Random;

/// A branch: what one server has written between its promotion and the next. Two may have the same timeline.
pub(crate) type BranchId = usize;

/// The smallest segments there are: a schedule is to be cheap.
pub(crate) const SEG_SIZE: u64 = 1 << 20;

pub(crate) fn identity() -> WalIdentity {
    WalIdentity { system_id: SystemId(7), seg_size: SegSize::new(SEG_SIZE).expect("a power of two") }
}

/// A position on a branch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) branch: BranchId,
    pub(crate) lsn: Lsn,
}

#[derive(Debug)]
pub(crate) struct Branch {
    pub(crate) tli: TimelineId,
    pub(crate) history: Arc<TimelineHistory>,
    /// Content of its history file; empty for the first timeline.
    pub(crate) file: Vec<u8>,
    parent: Option<Place>,
    base: Lsn,
    wal: Vec<u8>,
    /// Where one may leave it: ends of records, each with the start of the record.
    ends: Vec<(Lsn, Lsn)>,
    /// What is left of records that a crash cut off, up to the page that says so: nobody can verify it.
    blind: Vec<(Lsn, Lsn)>,
    generator: WalGenerator,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) branches: Vec<Branch>,
    seed: u64,
}

/// Takes a piece of a branch that begins somewhere; whether to go on.
type Take<'a> = dyn FnMut(&Branch, Lsn, &[u8]) -> bool + 'a;

impl Branch {
    fn differs_blindly(&self, from: Lsn, one: &[u8], other: &[u8]) -> bool {
        let is_blind = |at: Lsn| self.blind.iter().any(|(from, to)| *from <= at && at < *to);
        let mut both = one.iter().zip(other).enumerate();
        both.all(|(offset, (one, other))| one == other || is_blind(from.advance(offset as u64)))
    }
}

impl Model {
    /// One branch, empty, that begins here.
    pub(crate) fn new(start: Lsn, seed: u64) -> Model {
        let generator = WalGenerator::new(identity(), TimelineId::FIRST, start, seed);
        let root = Branch {
            tli: TimelineId::FIRST,
            history: Arc::new(TimelineHistory::first()),
            file: Vec::new(),
            parent: None,
            base: generator.position(),
            wal: Vec::new(),
            ends: Vec::new(),
            blind: Vec::new(),
            generator,
        };
        Model { branches: vec![root], seed }
    }

    pub(crate) fn end(&self, branch: BranchId) -> Lsn {
        let branch = &self.branches[branch];
        branch.base.advance(branch.wal.len() as u64)
    }

    /// Where WAL begins.
    pub(crate) fn start(&self) -> Lsn {
        self.branches[0].base
    }

    /// Has the server of the branch write something.
    pub(crate) fn write(&mut self, branch: BranchId, write: impl FnOnce(&mut WalGenerator)) -> Lsn {
        let branch = &mut self.branches[branch];
        write(&mut branch.generator);
        branch.wal.extend(branch.generator.take());
        let (end, last) = (branch.generator.position(), branch.generator.last_record());
        branch.ends.push((end, last));
        end
    }

    /// The same with a record that a crash cuts off.
    pub(crate) fn abort_record(&mut self, branch: BranchId, len: usize) -> Lsn {
        let mut lost = Lsn::INVALID;
        let end = self.write(branch, |wal| lost = wal.abort_record(len, 1));
        self.branches[branch].blind.push((lost, lost.page_start().advance(8192)));
        end
    }

    /// The last place at or before this one where the branch may be left, with the start of the record before.
    pub(crate) fn end_before(&self, branch: BranchId, lsn: Lsn) -> Option<(Lsn, Lsn)> {
        let here = &self.branches[branch];
        let count = here.ends.partition_point(|(end, _)| *end <= lsn);
        match (count, here.parent) {
            (0, None) => None,
            (0, Some(parent)) => self.end_before(parent.branch, parent.lsn.min(lsn)),
            _ => here.ends.get(count - 1).copied(),
        }
    }

    /// Promotes somebody who has the branch up to here, an end of a record.
    pub(crate) fn fork(&mut self, from: BranchId, at: Lsn, tli: TimelineId) -> BranchId {
        let (end, last) =
            self.end_before(from, at).filter(|(end, _)| *end == at).expect("a record ends there");
        // Whoever had not come to the branch itself has been promoted from an earlier one.
        let mut from = from;
        while let Some(parent) = self.branches[from].parent.filter(|parent| at <= parent.lsn) {
            from = parent.branch;
        }
        let parent = &self.branches[from];
        let file = format!(
            "{}{}\t{at}\tno recovery target specified\n",
            String::from_utf8_lossy(&parent.file),
            parent.tli
        );
        let history = TimelineHistory::parse(tli, file.as_bytes()).expect("a history");
        self.seed = self.seed.wrapping_add(1);
        let seed = Random::new(self.seed).next();
        let mut generator = WalGenerator::behind(identity(), parent.tli, last, end, seed);
        generator.switch_timeline(tli);
        self.branches.push(Branch {
            tli,
            history: Arc::new(history),
            file: file.into_bytes(),
            parent: Some(Place { branch: from, lsn: at }),
            base: at,
            wal: Vec::new(),
            ends: Vec::new(),
            blind: Vec::new(),
            generator,
        });
        let branch = self.branches.len() - 1;
        self.write(branch, |_| {});
        branch
    }

    /// A server comes back from a crash: what lay behind this end of a record was not durable, and is written anew.
    pub(crate) fn truncate(&mut self, branch: BranchId, to: Lsn) -> Lsn {
        self.seed = self.seed.wrapping_add(1);
        let seed = Random::new(self.seed).next();
        let here = &mut self.branches[branch];
        let count = here.ends.partition_point(|(end, _)| *end <= to);
        let Some(&(end, last)) = count.checked_sub(1).and_then(|last| here.ends.get(last)) else {
            return self.end(branch);
        };
        here.ends.truncate(count);
        here.blind.retain(|(_, to)| *to <= end);
        here.wal.truncate(end.since(here.base) as usize);
        here.generator = WalGenerator::behind(identity(), here.tli, last, end, seed);
        end
    }

    /// Whether another branch was begun beyond this.
    pub(crate) fn is_left_beyond(&self, branch: BranchId, lsn: Lsn) -> bool {
        let begun =
            |other: &Branch| other.parent.is_some_and(|parent| parent.branch == branch && parent.lsn > lsn);
        self.branches.iter().any(begun)
    }

    /// WAL on the branch's way.
    pub(crate) fn bytes(&self, branch: BranchId, from: Lsn, to: Lsn) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(to.since(from) as usize);
        self.each(branch, from, to, &mut |_, _, part| {
            bytes.extend_from_slice(part);
            true
        });
        bytes
    }

    /// Whether that is what the branch's way has there, but for what cannot be verified.
    pub(crate) fn is(&self, branch: BranchId, at: Lsn, bytes: &[u8]) -> bool {
        let (mut rest, to) = (bytes, at.advance(bytes.len() as u64));
        let same = self.each(branch, at, to, &mut |here, from, part| {
            let (now, later) = rest.split_at(part.len());
            rest = later;
            now == part || here.differs_blindly(from, now, part)
        });
        same && rest.is_empty()
    }

    /// Whether it is that to the last bit.
    pub(crate) fn is_exactly(&self, branch: BranchId, at: Lsn, bytes: &[u8]) -> bool {
        self.bytes(branch, at, at.advance(bytes.len() as u64)) == bytes
    }

    /// Where it has something else, in words.
    pub(crate) fn differs(&self, branch: BranchId, at: Lsn, bytes: &[u8]) -> String {
        let theirs = self.bytes(branch, at, at.advance(bytes.len() as u64));
        let first = theirs.iter().zip(bytes).position(|(one, other)| one != other).unwrap_or(theirs.len());
        let count = theirs.iter().zip(bytes).filter(|(one, other)| one != other).count();
        let show = |of: &[u8]| format!("{:02X?}", of.get(first..).map(|of| &of[..of.len().min(16)]));
        format!(
            "{count} bytes differ, the first at {} of {at} to {}, {} instead of {}",
            at.advance(first as u64),
            at.advance(bytes.len() as u64),
            show(bytes),
            show(&theirs)
        )
    }

    fn each(&self, branch: BranchId, from: Lsn, to: Lsn, take: &mut Take<'_>) -> bool {
        let here = &self.branches[branch];
        if let Some(parent) = here.parent.filter(|parent| from < parent.lsn)
            && !self.each(parent.branch, from, to.min(parent.lsn), take)
        {
            return false;
        }
        let (from, to) = (from.max(here.base), to.min(self.end(branch)));
        from >= to
            || take(here, from, &here.wal[from.since(here.base) as usize..to.since(here.base) as usize])
    }

    /// Up to where two branches have the same WAL.
    pub(crate) fn common(&self, one: BranchId, other: BranchId) -> Lsn {
        let (mut one, mut other) = ((one, Lsn::new(u64::MAX)), (other, Lsn::new(u64::MAX)));
        // Parents have lower numbers.
        while one.0 != other.0 {
            let later = if one.0 > other.0 { &mut one } else { &mut other };
            let Some(parent) = self.branches[later.0].parent else { return Lsn::INVALID };
            *later = (parent.branch, later.1.min(parent.lsn));
        }
        one.1.min(other.1)
    }

    /// Whether who is at `at` has everything up to `what`.
    pub(crate) fn has(&self, at: Place, what: Place) -> bool {
        what.lsn <= at.lsn && what.lsn <= self.common(at.branch, what.branch)
    }

    /// The branch of this timeline on the way of `branch`.
    pub(crate) fn on_way(&self, branch: BranchId, tli: TimelineId) -> Option<BranchId> {
        let mut at = branch;
        loop {
            if self.branches[at].tli == tli {
                return Some(at);
            }
            at = self.branches[at].parent?.branch;
        }
    }

    /// All branches of a timeline.
    pub(crate) fn of_timeline(&self, tli: TimelineId) -> impl Iterator<Item = BranchId> {
        self.branches.iter().enumerate().filter(move |(_, branch)| branch.tli == tli).map(|(id, _)| id)
    }

    /// Whether timelines have a number each.
    pub(crate) fn has_siblings(&self) -> bool {
        self.branches
            .iter()
            .enumerate()
            .any(|(id, branch)| self.of_timeline(branch.tli).any(|other| other != id))
    }

    pub(crate) fn newest(&self) -> TimelineId {
        self.branches.iter().map(|branch| branch.tli).max().unwrap_or(TimelineId::FIRST)
    }
}
