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

/// What a segment that nobody has mapped yet is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Opened {
    /// Its map.
    Mapped,
    /// That, and its file stays open.
    ToSend,
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
        let first_choice = successors(size, history, name).first().copied().unwrap_or(name);
        lock(&self.mapped).get(&first_choice).and_then(Weak::upgrade)
    }

    /// The segment of just this name if somebody has it mapped. Never touches the disk.
    pub(super) fn in_use(&self, name: WalFileName) -> Option<Arc<Segment>> {
        lock(&self.mapped).get(&name).and_then(Weak::upgrade)
    }

    /// The segment for a reader of `name.tli`.
    ///
    /// The segment in which that timeline was left is read from the file of the timeline that goes on behind it, which begins
    /// with the same bytes and is the one that survives; from an older one if only that is here.
    pub(super) fn open(
        &self,
        dir: &DataDir,
        size: SegSize,
        history: &TimelineHistory,
        name: WalFileName,
        opened: Opened,
    ) -> Result<Arc<Segment>, ReadError> {
        for candidate in successors(size, history, name).into_iter().chain([name]) {
            if let Some(segment) = self.lookup(dir, size, history, candidate, opened)? {
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
        Ok(self.lookup(dir, size, history, name, Opened::Mapped)?.filter(|segment| segment.is_complete()))
    }

    fn lookup(
        &self,
        dir: &DataDir,
        size: SegSize,
        history: &TimelineHistory,
        name: WalFileName,
        opened: Opened,
    ) -> Result<Option<Arc<Segment>>, ReadError> {
        if let Some(segment) = lock(&self.mapped).get(&name).and_then(Weak::upgrade) {
            return Ok(Some(segment));
        }
        // The disk may take its time, and others look for other segments meanwhile.
        match open_file(dir, size, history, name, opened) {
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
    opened: Opened,
) -> io::Result<Segment> {
    let open = |path: &Path, len| match opened {
        Opened::Mapped => Segment::open_on(dir.disk(), path, name, size, len),
        Opened::ToSend => Segment::open_to_send(dir.disk(), path, name, size, len),
    };
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
    successors(size, history, name)
        .into_iter()
        .chain([name])
        .flat_map(files)
        .any(|path| dir.disk().exists(&path))
}

/// The files that go on in this segment where `name`'s timeline was left in it, the newest first: each begins with all
/// that the ones before it have up to its own beginning. Several, where timelines were left soon after they began.
pub(crate) fn successors(size: SegSize, history: &TimelineHistory, name: WalFileName) -> Vec<WalFileName> {
    let next = |tli| {
        let (left_at, next) = history.switch_point(tli)?;
        (left_at.seg_at(size) == name.segno).then_some(next)
    };
    let later = std::iter::successors(next(name.tli), |tli| next(*tli));
    let mut names: Vec<_> = later.map(|tli| WalFileName::new(tli, name.segno)).collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use walrelay_proto::{SegNo, TimelineId};

    use super::*;

    #[test]
    fn a_segment_is_looked_for_under_all_that_went_on_in_it() {
        let size = SegSize::new(1 << 20).unwrap();
        let tli = |number| TimelineId::new(number).unwrap();
        let content = "1\t0/380000\tx\n2\t0/390000\tx\n4\t0/3A0000\tx\n5\t0/400000\tx\n";
        let history = TimelineHistory::parse(tli(6), content.as_bytes()).unwrap();
        let found = |number, segment| {
            let names = successors(size, &history, WalFileName::new(tli(number), SegNo::new(segment)));
            names.into_iter().map(|name| name.tli.as_u32()).collect::<Vec<_>>()
        };
        assert_eq!(
            [1, 2, 4, 5, 6].map(|number| found(number, 3)),
            [vec![5, 4, 2], vec![5, 4], vec![5], vec![], vec![]]
        );
        assert_eq!(found(1, 2), [0; 0], "nothing was left there");
        assert_eq!(found(5, 4), [6], "it was left just before that segment, and may be asked for there");
    }
}
