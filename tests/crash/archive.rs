//! An archive target of the workload, which no crash of the relay touches, and what comes back from it.

use std::collections::{BTreeMap, BTreeSet};

use walrelay::archive::archiving::{Claims, Fate, SteppedTarget};
use walrelay::archive::recalling::{self, Round, Said};
use walrelay::store::{Held, HoldKind, Store};
use walrelay_proto::{Lsn, SegNo, WalFileName};

use super::workload::{SEG, START, Tree, identity, text};

/// Its name.
pub(super) const TARGET: &str = "main";

/// What a target has got, and been offered.
#[derive(Debug, Default)]
pub(super) struct Archive {
    files: BTreeMap<String, Vec<u8>>,
    offered: BTreeSet<String>,
    /// What was saved to be there.
    counted: BTreeSet<String>,
}

impl Archive {
    /// A relay offers a file. None of a segment, or of a history, may be another than before.
    pub(super) fn take(&mut self, name: &str, content: Vec<u8>, tree: &Tree) {
        if let Some(wal) = WalFileName::parse(name, identity().seg_size) {
            assert!(content == tree.segment(wal), "{name} is archived, and not the upstream's");
        }
        if let Some(before) = self.files.get(name).filter(|_| !name.ends_with(".partial")) {
            assert!(*before == content, "{name} is archived a second time, and another");
        }
        self.files.insert(name.to_owned(), content);
    }

    /// One is about to be sent.
    pub(super) fn is_offered(&mut self, name: &str) {
        self.offered.insert(name.to_owned());
    }

    /// The target's progress has been saved, which had these files before.
    pub(super) fn are_counted(&mut self, taken: &BTreeSet<String>) {
        self.counted.extend(taken.iter().cloned());
    }

    /// Whether a relay that has just been started says of the target what is so, and has all WAL that it does not say the
    /// target has.
    pub(super) fn check(&self, store: &Store, missing: &BTreeSet<SegNo>) -> Result<(), String> {
        let claims = Claims::read(store, TARGET);
        let says = |name: &str| claims.as_ref().is_some_and(|claims| claims.has(name));
        if let Some(name) = self.counted.iter().find(|name| !says(name)) {
            return Err(format!("the target's progress does not know any more of {name}"));
        }
        if let Some(name) = self.offered.iter().find(|name| says(name) && !self.files.contains_key(*name)) {
            return Err(format!("the target's progress has {name}, and the target has not"));
        }
        let (Some(oldest), size) = (store.oldest(), identity().seg_size) else { return Ok(()) };
        // Behind a hole nobody says which WAL is here.
        let gone = START.seg_at(size).as_u64()..oldest.seg_at(size).as_u64();
        for segno in gone.map(SegNo::new).filter(|_| missing.is_empty()) {
            let tli = store.history().timeline_at(segno.end(size).rewind(1));
            let name = WalFileName::new(tli, segno).format(size);
            if !says(&name) {
                return Err(format!("{name} is gone, and nothing says that the target has it"));
            }
        }
        Ok(())
    }

    /// A segment comes back for a reader of the timeline that is followed, from two sources; the first has a copy that has gone
    /// bad.
    pub(super) fn recall(&self, store: &Store, segno: SegNo, tree: &Tree) {
        let mut ask = |source: usize, name: &str| {
            let Some(mut content) = self.files.get(name).cloned() else { return Said::None };
            if source == 0 {
                content[SEG as usize / 3] ^= 1;
            }
            Said::Content(content)
        };
        let (history, start) = (store.history(), segno.start(identity().seg_size));
        let round = recalling::round(store, history.timeline_at(start), segno, 2, &mut ask);
        let Round::Found(found) = round else { panic!("segment {segno:?} does not come back: {round:?}") };
        let from = start.since(START) as usize;
        let expected = &tree.bytes(history.tli())[from..][..found.len()];
        assert!(found == expected, "what has come back is not the upstream's");
    }
}

/// What a relay sends to the target, one file after the other, and when it saves that.
#[derive(Debug)]
pub(super) struct Sending<'a> {
    pub(super) target: &'a mut SteppedTarget,
    pub(super) archive: &'a mut Archive,
    /// What the target has got from this process.
    pub(super) taken: &'a mut BTreeSet<String>,
}

impl Sending<'_> {
    /// Sees what there is.
    pub(super) fn look(&mut self) -> Result<(), String> {
        let told = self.target.look().map_err(text)?;
        assert!(told.is_empty(), "there is WAL that the target will never get: {told:?}");
        Ok(())
    }

    /// Sends the next file; false if there is none. `saves`: the progress is saved while it is on its way.
    pub(super) fn send(&mut self, tree: &Tree, saves: bool) -> Result<bool, String> {
        let Some((name, _)) = self.target.next_file() else { return Ok(false) };
        self.archive.is_offered(&name);
        let saved = if saves { self.save() } else { Ok(()) };
        let content = saved.and_then(|()| self.target.content(&name).map_err(text));
        let fate = match &content {
            Ok(Some(_)) => Fate::Taken,
            Ok(None) => Fate::Gone,
            Err(_) => Fate::Failed,
        };
        // The target has it before anybody says so.
        if let Ok(Some(content)) = &content {
            self.archive.take(&name, content.clone(), tree);
            self.taken.insert(name.clone());
        }
        self.target.sent(&name, fate);
        content.map(|_| true)
    }

    pub(super) fn save(&mut self) -> Result<(), String> {
        self.target.save().map_err(text)?;
        self.archive.are_counted(self.taken);
        Ok(())
    }
}

/// What is held for targets; all of it, where one has not spoken.
pub(super) fn held_for_targets(store: &Store) -> Lsn {
    let rows = store.holds().rows().into_iter().filter(|row| row.kind == HoldKind::ArchiveTarget);
    let from = rows.map(|row| match row.held {
        Held::Everything => Lsn::INVALID,
        Held::From(from) => from,
        Held::Nothing => Lsn::new(u64::MAX),
    });
    from.min().unwrap_or(Lsn::new(u64::MAX))
}
