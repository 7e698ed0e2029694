//! The tail of the unfinished segment, in pieces: what a disaster can take is an interval, not a segment.
//!
//! A piece goes out half an interval after the last one at most, and only if there are new bytes; all of them
//! are durable here. Sixteen pieces in a row are replaced by one, sixteen of those by a larger one, and so on: a
//! segment that fills slowly is sent a few times over, and never lies in more than a few dozen pieces.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use walrelay_proto::{SegSize, TimelinePosition, WalFileName};

use super::backoff;
use super::board::Board;
use super::worker::{SharedQueue, lock};
use crate::archive::repo::content::Content;
use crate::archive::repo::name::{ChunkName, FileName};
use crate::archive::repo::repository::{Repository, WriteError, from_read};
use crate::store::{ReadError, Store};

/// A failure that lasts is told again after this time.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// So many pieces of a kind become one.
const MERGE: usize = 16;

/// Why the tail does not reach the target.
#[derive(Debug, thiserror::Error)]
enum TailError {
    #[error(transparent)]
    Target(#[from] WriteError),
    #[error("could not read \"{file}\" in the data directory: {source}")]
    Read { file: String, source: io::Error },
}

/// Sends one target the tail.
pub(super) struct Tail {
    repository: Repository,
    store: Arc<Store>,
    queue: SharedQueue,
    interval: Duration,
    board: Board,
    current: Option<Current>,
}

/// The segment that pieces are sent of.
struct Current {
    wal: WalFileName,
    name: FileName,
    pieces: Pieces,
}

/// Pieces of a segment that lie in the target, without gap or overlap from its start.
#[derive(Default, Debug)]
struct Pieces {
    /// Each with its level: how many times it was merged.
    pieces: Vec<(u32, ChunkName)>,
}

impl Pieces {
    fn end(&self) -> u64 {
        self.pieces.last().map_or(0, |(_, chunk)| chunk.end)
    }

    /// Where the next piece begins: it may replace some of those before it. Also which level it gets.
    fn next_start(&self) -> (u64, u32) {
        let (mut keep, mut level) = (self.pieces.len(), 0);
        loop {
            let run = self.pieces[..keep].iter().rev().take_while(|(other, _)| *other == level).count();
            if run + 1 < MERGE {
                let start = self.pieces[..keep].last().map_or(0, |(_, chunk)| chunk.end);
                return (start, level);
            }
            keep -= run;
            level += 1;
        }
    }

    /// Takes a new piece in; gives back those it replaces.
    fn add(&mut self, chunk: ChunkName, level: u32) -> Vec<ChunkName> {
        let keep = self.pieces.iter().take_while(|(_, old)| old.end <= chunk.start).count();
        let replaced = self.pieces.drain(keep..).map(|(_, old)| old).collect();
        self.pieces.push((level, chunk));
        replaced
    }
}

impl Tail {
    pub(super) fn new(
        repository: Repository,
        store: Arc<Store>,
        queue: SharedQueue,
        interval: Duration,
        board: Board,
    ) -> Tail {
        Tail { repository, store, queue, interval, board, current: None }
    }

    /// Until it is told to stop; then what is durable by that time goes out.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut flushed = self.store.flushed();
        let mut failures = 0;
        let mut failing: Option<(Instant, Instant)> = None;
        let mut last = Instant::now();
        while !stop.is_cancelled() {
            let pause = if failures > 0 { backoff::pause(failures) } else { self.interval / 2 };
            tokio::select! {
                () = sleep_until(last + pause) => {}
                () = stop.cancelled() => {}
            }
            if failures == 0 {
                tokio::select! {
                    changed = flushed.changed() => if changed.is_err() { return },
                    () = stop.cancelled() => {}
                }
            }
            while self.board.is_paused() && !stop.is_cancelled() {
                tokio::select! {
                    () = self.board.order() => {}
                    () = sleep_until(Instant::now() + self.interval) => {}
                    () = stop.cancelled() => {}
                }
            }
            if self.board.is_paused() {
                return;
            }
            last = Instant::now();
            match self.send().await {
                Ok(()) => {
                    failures = 0;
                    if failing.take().is_some() {
                        tracing::info!(
                            "the tail of the WAL reaches archive target \"{}\" again",
                            self.repository.name()
                        );
                    }
                }
                Err(error) => {
                    failures += 1;
                    let file = self.current.as_ref().map_or_else(String::new, |it| it.name.to_string());
                    self.board.tail_failed(&file, &error.to_string());
                    let (since, told) = *failing.get_or_insert((last, last));
                    if failures == 1 || told.elapsed() >= REPORT_EVERY {
                        failing = Some((since, Instant::now()));
                        tracing::warn!(
                            "the tail of the WAL does not reach the archive: {error}; {} s so far",
                            since.elapsed().as_secs()
                        );
                    }
                }
            }
        }
    }

    /// Sends what is durable and not there yet.
    async fn send(&mut self) -> Result<(), TailError> {
        let (Some(identity), Some(tip)) = (self.store.identity(), self.store.tip()) else { return Ok(()) };
        let size = identity.seg_size;
        let Some(end) = tip.flush_lsn.valid().filter(|end| Some(*end) != self.store.begun_at()) else {
            return Ok(());
        };
        let wal = WalFileName::new(tip.tli, end.seg_before(size));
        if self.current.as_ref().is_none_or(|current| current.wal != wal) {
            self.finish_last(wal, size).await?;
            self.current = Some(self.open(wal, size).await?);
        }
        let offset = end.since(wal.segno.start(size));
        // Else another timeline has begun meanwhile, and is next.
        if self.send_up_to(offset).await? {
            self.board.tail_reaches(TimelinePosition { tli: tip.tli, lsn: end });
        }
        Ok(())
    }

    /// The rest of the segment before, unless it is there whole already.
    async fn finish_last(&mut self, now: WalFileName, size: SegSize) -> Result<(), TailError> {
        let Some(last) = &self.current else { return Ok(()) };
        let is_next = last.wal.tli == now.tli && last.wal.segno.next() == now.segno;
        if !is_next || last.pieces.pieces.is_empty() {
            return Ok(());
        }
        self.send_up_to(size.bytes()).await.map(|_| ())
    }

    /// What lies in the target of a segment, if it is really ours.
    async fn open(&self, wal: WalFileName, size: SegSize) -> Result<Current, TailError> {
        let name = FileName::segment(wal, size);
        let mut current = Current { wal, name: name.clone(), pieces: Pieces::default() };
        let first_time = self.current.is_none();
        if !first_time {
            return Ok(current);
        }
        let mut found = self.repository.chunks(&name).await.map_err(from_read)?;
        // The longest first: a piece and those it replaced may lie there together after a crash.
        found.sort_by_key(|chunk| (chunk.start, std::cmp::Reverse(chunk.end)));
        for chunk in found {
            let held = current.pieces.end();
            if chunk.start == held && self.is_ours(wal, &chunk).await {
                let level = (chunk.end - chunk.start).ilog2().saturating_sub(16) / 4;
                current.pieces.pieces.push((level, chunk));
            }
        }
        Ok(current)
    }

    async fn is_ours(&self, wal: WalFileName, chunk: &ChunkName) -> bool {
        let Ok(Some(content)) = self.read(wal, chunk.start, chunk.end).await else { return false };
        let chunk = chunk.clone();
        let same = move || {
            let sum = content.digest().ok();
            sum.is_some_and(|sum| ChunkName::with(&chunk.segment, chunk.start, content.len(), sum) == chunk)
        };
        tokio::task::spawn_blocking(same).await.unwrap_or(false)
    }

    /// Whether all of the segment up to `end` is in the target now.
    async fn send_up_to(&mut self, end: u64) -> Result<bool, TailError> {
        let Some(current) = &self.current else { return Ok(false) };
        if current.pieces.end() >= end || lock(&self.queue).progress().is_done(&current.name) {
            return Ok(true);
        }
        let (start, level) = current.pieces.next_start();
        let (wal, name) = (current.wal, current.name.clone());
        let read = self.read(wal, start, end).await;
        let read = read.map_err(|source| TailError::Read { file: name.to_string(), source })?;
        let Some(content) = read else { return Ok(false) };
        let chunk = self.repository.send_chunk(&name, start, content).await?;
        let replaced = self.current.as_mut().map(|current| current.pieces.add(chunk, level));
        if lock(&self.queue).progress().is_done(&name) {
            // It has arrived whole meanwhile, and its pieces were removed before this one came.
            self.repository.remove_all_chunks(&name).await?;
        } else {
            self.repository.remove_chunks(&replaced.unwrap_or_default()).await?;
        }
        Ok(true)
    }

    /// Bytes of a segment here; `None` if they are not here any more, or not published.
    async fn read(&self, wal: WalFileName, start: u64, end: u64) -> io::Result<Option<Content>> {
        let store = self.store.clone();
        let read = move || {
            let segment = match store.segment(wal.tli, wal.segno) {
                Ok(segment) => segment,
                Err(ReadError::Removed(_)) => return Ok(None),
                Err(ReadError::Io { source, .. }) => return Err(source),
            };
            if segment.name() != wal || segment.published() < end {
                return Ok(None);
            }
            segment.populate(start, (end - start) as usize)?;
            // Not a copy: merged pieces may be as long as the segment, 1 GB that is.
            Ok(Some(Content::part(segment, start, end)))
        };
        tokio::task::spawn_blocking(read).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_merged_and_never_overlap() {
        let segment = FileName::parse("000000010000000000000003").unwrap();
        let mut pieces = Pieces::default();
        let mut sent = 0;
        for end in 1u64..=4096 {
            let (start, level) = pieces.next_start();
            let bytes = vec![0u8; (end - start) as usize];
            sent += end - start;
            pieces.add(ChunkName::of(&segment, start, &bytes), level);
            assert_eq!(pieces.end(), end);
            assert!(pieces.pieces.windows(2).all(|pair| pair[0].1.end == pair[1].1.start));
            assert_eq!(pieces.pieces[0].1.start, 0);
            assert!(pieces.pieces.len() <= 3 * MERGE);
        }
        // 4096 is 16 to the third: each byte is sent once, and at most once more for each merge.
        assert!(sent < 4 * 4096, "{sent}");
    }

    #[test]
    fn a_piece_tells_which_ones_it_replaces() {
        let segment = FileName::parse("000000010000000000000003").unwrap();
        let chunk = |start: u64, end: u64| ChunkName::of(&segment, start, &vec![0; (end - start) as usize]);
        let mut pieces = Pieces::default();
        assert_eq!(pieces.add(chunk(0, 10), 0), []);
        assert_eq!(pieces.add(chunk(10, 15), 0), []);
        assert_eq!(pieces.add(chunk(10, 20), 1), [chunk(10, 15)]);
        assert_eq!(pieces.end(), 20);
    }
}
