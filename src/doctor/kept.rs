//! What a relay has left in its data directory, for whoever cannot ask it.

use std::io::ErrorKind;
use std::path::Path;

use walrelay_proto::{Lsn, SegSize, TimelineId, WalFileName};

use crate::store::offline::{self, SavedState};

/// That.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// It has run: there is WAL, or what may not be looked into.
    pub(super) has_run: bool,
    pub(super) state: SavedState,
    /// The newest segment of the timeline that it follows that is complete.
    pub(super) newest: Option<WalFileName>,
}

impl Kept {
    /// The timeline that it has followed, and the end of what it surely holds of it.
    pub(super) fn held(&self) -> Option<(TimelineId, Option<Lsn>)> {
        let timeline = self.state.timeline?;
        let segment = self.newest.zip(self.seg_size()).map(|(newest, size)| newest.segno.end(size));
        let confirmed = self.state.confirmed.filter(|at| at.tli == timeline).map(|at| at.lsn);
        Some((timeline, segment.max(confirmed)))
    }

    /// Of its cluster.
    pub(super) fn seg_size(&self) -> Option<SegSize> {
        self.state.identity.map(|identity| identity.seg_size)
    }
}

/// Reads it. Blocks.
pub(super) fn look(data_dir: &Path) -> Kept {
    let wal_dir = data_dir.join("pg_wal");
    let missing = std::fs::metadata(&wal_dir).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let (state, _) = offline::read(data_dir);
    let newest = state.identity.and_then(|identity| {
        let names = std::fs::read_dir(&wal_dir).ok()?.flatten();
        let segment = |entry: std::fs::DirEntry| {
            WalFileName::parse(entry.file_name().to_str()?, identity.seg_size)
                .filter(|name| state.timeline.is_none_or(|timeline| name.tli == timeline))
        };
        names.filter_map(segment).max_by_key(|name| (name.tli, name.segno))
    });
    Kept { has_run: !missing, state, newest }
}
