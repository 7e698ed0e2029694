//! What of the relay's `pg_wal` can be archived.

use std::collections::BTreeSet;
use std::sync::Arc;

use walrelay_proto::{Lsn, SegNo, SegSize, TimelineHistory, TimelineId, WalFileName};

use crate::archive::repo::name::{FileKind, FileName};
use crate::store::Store;

/// The files of `pg_wal` at a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Listing {
    pub(super) size: SegSize,
    /// History of the timeline being received.
    pub(super) history: Arc<TimelineHistory>,
    /// End of the WAL.
    pub(super) end: Lsn,
    /// The way that its history tells of, for holds.
    pub(super) way: u64,
    /// What is final.
    pub(super) files: BTreeSet<FileName>,
    /// Segments that still grow, or are about to get their final name.
    pub(super) unfinished: BTreeSet<WalFileName>,
}

impl Listing {
    /// Sorts out the names found in `pg_wal`. The unfinished segment of a timeline that was left is final: it
    /// is archived as `.partial`, as a promoted server does.
    pub(super) fn new(names: &[String], size: SegSize, history: Arc<TimelineHistory>, end: Lsn) -> Listing {
        let (files, unfinished) = (BTreeSet::new(), BTreeSet::new());
        let mut listing = Listing { size, history, end, way: 0, files, unfinished };
        for name in names.iter().filter_map(|name| FileName::parse(name)) {
            let wal = name.wal(size);
            match (name.kind(), wal) {
                (FileKind::Partial, Some(wal)) if !listing.is_left(wal) => {
                    listing.unfinished.insert(wal);
                }
                (FileKind::History, _) | (_, Some(_)) => {
                    listing.files.insert(name);
                }
                // No name of this segment size.
                (_, None) => {}
            }
        }
        listing
    }

    /// Whether an unfinished segment stays one: its timeline was left in it or before it. Where the timeline goes
    /// on behind it, it is complete and only waits for its name.
    fn is_left(&self, wal: WalFileName) -> bool {
        let goes_on = |(left_at, _): (Lsn, TimelineId)| wal.segno.end(self.size) <= left_at;
        wal.tli < self.history.tli() && !self.history.switch_point(wal.tli).is_some_and(goes_on)
    }

    /// Timelines that have segments here.
    pub(super) fn timelines(&self) -> BTreeSet<TimelineId> {
        let all = self.segments().chain(self.unfinished.iter().copied());
        all.map(|wal| wal.tli).collect()
    }

    /// The first segment of a timeline that is here, from `least` on.
    pub(super) fn first(&self, tli: TimelineId, least: SegNo) -> Option<SegNo> {
        let all = self.segments().chain(self.unfinished.iter().copied());
        all.filter(|wal| wal.tli == tli && wal.segno >= least).map(|wal| wal.segno).min()
    }

    fn segments(&self) -> impl Iterator<Item = WalFileName> {
        let finished = self.files.iter().filter(|name| name.kind() == FileKind::Segment);
        finished.filter_map(|name| name.wal(self.size))
    }
}

/// What a look at `pg_wal` gives.
pub(super) enum Look {
    /// No WAL yet.
    Nothing,
    /// A timeline switch is half done.
    Between,
    Listing(Listing),
}

/// Looks at it. Waits for the disk.
pub(super) fn look(store: &Store) -> std::io::Result<Look> {
    // The way first: what is seen behind it is of that one.
    let way = store.holds().way();
    let (Some(identity), Some(tip)) = (store.identity(), store.tip()) else { return Ok(Look::Nothing) };
    let history = store.history();
    if history.tli() != tip.tli {
        return Ok(Look::Between);
    }
    let names = store.wal_files()?;
    let listing = Listing::new(&names, identity.seg_size, history, tip.write_lsn);
    Ok(Look::Listing(Listing { way, ..listing }))
}

/// Which of these segments `pg_wal` does not have, under any name. Waits for the disk.
pub(super) fn missing(store: &Store, wanted: BTreeSet<WalFileName>, size: SegSize) -> BTreeSet<WalFileName> {
    let exists = |wal: &WalFileName| {
        let name = wal.format(size);
        // It may get its final name between the first two looks.
        store.has_wal_file(&name)
            || store.has_wal_file(&format!("{name}.partial"))
            || store.has_wal_file(&name)
    };
    wanted.into_iter().filter(|wal| !exists(wal)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str], history: TimelineHistory) -> Listing {
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        Listing::new(&names, SegSize::new(1 << 20).unwrap(), Arc::new(history), Lsn::new(0x500_000))
    }

    fn archived(listing: &Listing) -> Vec<&str> {
        listing.files.iter().map(FileName::as_str).collect()
    }

    #[test]
    fn what_is_being_received_is_not_archived() {
        let names =
            ["000000010000000000000003", "000000010000000000000004.partial", "walrelay.lock", "slots.toml"];
        let found = listing(&names, TimelineHistory::first());
        assert_eq!(archived(&found), ["000000010000000000000003"]);
        assert_eq!(found.unfinished.len(), 1);
        assert_eq!(found.first(TimelineId::FIRST, SegNo::new(4)), Some(SegNo::new(4)));
    }

    #[test]
    fn the_last_segment_of_a_timeline_that_was_left_is() {
        let two = TimelineId::new(2).unwrap();
        let history = TimelineHistory::parse(two, b"1\t0/400010\tpromoted\n").unwrap();
        let names = [
            // Complete, but not named yet.
            "000000010000000000000003.partial",
            "000000010000000000000004.partial",
            "000000020000000000000004.partial",
            "00000002.history",
        ];
        let found = listing(&names, history);
        assert_eq!(archived(&found), ["000000010000000000000004.partial", "00000002.history"]);
        assert_eq!(found.unfinished.len(), 2);
    }

    #[test]
    fn a_segment_of_a_timeline_not_yet_followed_waits() {
        let names = ["000000010000000000000004.partial", "000000020000000000000004.partial"];
        assert_eq!(archived(&listing(&names, TimelineHistory::first())), [""; 0]);
    }
}
