//! Which file holds a segment for whom, and the maps in use.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use walrelay_proto::{SegSize, TimelineHistory, WalFileName};

use super::dir::DataDir;
use super::mapped::Segment;
use super::{ReadError, lock};

/// The segments that are mapped at the moment. Readers of the same segment share its map; it is unmapped
/// when the last one lets go.
#[derive(Debug, Default)]
pub(super) struct SegmentCache {
    mapped: Mutex<HashMap<WalFileName, Weak<Segment>>>,
}

impl SegmentCache {
    /// Lets readers find a segment that the writer has made.
    pub(super) fn insert(&self, segment: &Arc<Segment>) {
        let mut mapped = lock(&self.mapped);
        mapped.retain(|_, known| known.strong_count() > 0);
        mapped.insert(segment.name(), Arc::downgrade(segment));
    }

    /// The segment if somebody has it mapped, for a reader of `name.tli`. Never touches the disk.
    pub(super) fn mapped(
        &self,
        size: SegSize,
        history: &TimelineHistory,
        name: WalFileName,
    ) -> Option<Arc<Segment>> {
        let first_choice = successor(size, history, name).unwrap_or(name);
        lock(&self.mapped).get(&first_choice).and_then(Weak::upgrade)
    }

    /// The segment of just this name if somebody has it mapped. Never touches the disk.
    pub(super) fn in_use(&self, name: WalFileName) -> Option<Arc<Segment>> {
        lock(&self.mapped).get(&name).and_then(Weak::upgrade)
    }

    /// The segment for a reader of `name.tli`.
    ///
    /// The segment in which that timeline was left is read from the *next* timeline's file, which begins
    /// with the same bytes and is the one that survives; from its own file if only that is here.
    pub(super) fn open(
        &self,
        dir: &DataDir,
        size: SegSize,
        history: &TimelineHistory,
        name: WalFileName,
    ) -> Result<Arc<Segment>, ReadError> {
        for candidate in successor(size, history, name).into_iter().chain([name]) {
            if let Some(segment) = self.lookup(dir, size, history, candidate)? {
                return Ok(segment);
            }
        }
        Err(ReadError::Removed(name.format(size)))
    }

    /// The segment of just this name, if it is finished; `None` if it is not here.
    pub(super) fn exact(
        &self,
        dir: &DataDir,
        size: SegSize,
        history: &TimelineHistory,
        name: WalFileName,
    ) -> Result<Option<Arc<Segment>>, ReadError> {
        Ok(self.lookup(dir, size, history, name)?.filter(|segment| segment.is_complete()))
    }

    fn lookup(
        &self,
        dir: &DataDir,
        size: SegSize,
        history: &TimelineHistory,
        name: WalFileName,
    ) -> Result<Option<Arc<Segment>>, ReadError> {
        if let Some(segment) = lock(&self.mapped).get(&name).and_then(Weak::upgrade) {
            return Ok(Some(segment));
        }
        // The disk may take its time, and others look for other segments meanwhile.
        match open_file(dir, size, history, name) {
            Ok(segment) => Ok(Some(self.share(Arc::new(segment)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ReadError::Io { file: name.format(size), source }),
        }
    }

    /// What all readers of the segment use from now on: what somebody else has mapped meanwhile, or this.
    fn share(&self, opened: Arc<Segment>) -> Arc<Segment> {
        let mut mapped = lock(&self.mapped);
        if let Some(earlier) = mapped.get(&opened.name()).and_then(Weak::upgrade) {
            return earlier;
        }
        mapped.retain(|_, known| known.strong_count() > 0);
        mapped.insert(opened.name(), Arc::downgrade(&opened));
        opened
    }
}

fn open_file(
    dir: &DataDir,
    size: SegSize,
    history: &TimelineHistory,
    name: WalFileName,
) -> io::Result<Segment> {
    let open = |path: &Path, len| Segment::open_on(dir.disk(), path, name, size, len);
    let finished = || open(&dir.segment(name, size), size.bytes());
    let is_missing = |opened: &io::Result<Segment>| {
        opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let opened = finished();
    if !is_missing(&opened) {
        return opened;
    }
    // Not the writer's (that would have been in the cache): a timeline's last segment.
    let final_bytes =
        history.switch_point(name.tli).map_or(0, |(left_at, _)| left_at.since(name.segno.start(size)));
    let opened = open(&dir.partial(name, size), final_bytes);
    // It may have got its final name between the two looks.
    if is_missing(&opened) { finished() } else { opened }
}

/// Whether there is a file for a reader of `name.tli`.
pub(super) fn is_held(dir: &DataDir, size: SegSize, history: &TimelineHistory, name: WalFileName) -> bool {
    let files = |name| [dir.segment(name, size), dir.partial(name, size)];
    successor(size, history, name)
        .into_iter()
        .chain([name])
        .flat_map(files)
        .any(|path| dir.disk().exists(&path))
}

/// The file that goes on where `name`'s timeline was left, if that happened in this segment.
fn successor(size: SegSize, history: &TimelineHistory, name: WalFileName) -> Option<WalFileName> {
    let (left_at, next) = history.switch_point(name.tli)?;
    (left_at.seg_at(size) == name.segno).then(|| WalFileName::new(next, name.segno))
}
