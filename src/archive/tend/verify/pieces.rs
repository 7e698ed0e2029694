//! Pieces of segments that nobody has finished: whether what they make up is WAL, without a hole, and good copies for those
//! that are not.

use super::*;

/// A piece that is damaged, or that there should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    segment: FileName,
    start: u64,
    end: u64,
    /// What is there.
    chunk: Option<ChunkName>,
}

impl Piece {
    pub(super) fn of(chunk: &ChunkName) -> Piece {
        let ChunkName { segment, start, end, .. } = chunk;
        Piece { segment: segment.clone(), start: *start, end: *end, chunk: Some(chunk.clone()) }
    }

    /// What a finding calls it.
    pub(super) fn file(&self) -> String {
        let Piece { segment, start, end, chunk } = self;
        match chunk {
            Some(chunk) => format!("{segment}.chunks/{}", chunk.file_name()),
            None => format!("{segment}.chunks/{start:08x}-{end:08x}"),
        }
    }

    /// Reads what [`file`](Self::file) writes.
    pub(super) fn parse(file: &str) -> Option<Piece> {
        let (segment, name) = file.split_once(".chunks/")?;
        let segment = FileName::parse(segment)?;
        if let Some(chunk) = ChunkName::parse(&segment, name) {
            return Some(Piece::of(&chunk));
        }
        let (start, end) = name.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Piece { segment, start: number(start)?, end: number(end)?, chunk: None })
    }

    /// Replaces it by what a source has of the segment; which one that was. Only WAL that verifies from the segment's start on
    /// to the end of the piece will do.
    ///
    /// # Errors
    /// The target cannot be written.
    pub(super) async fn heal(
        &self,
        repository: &Repository,
        id: Option<WalIdentity>,
        sources: &[Arc<dyn Source>],
    ) -> Result<Option<String>, WriteError> {
        for source in sources {
            let segment = self.segment.as_str();
            let unfinished = source.read_unfinished(segment).await.unwrap_or_default();
            let whole = source.read(segment).await.ok().flatten();
            let Some(good) = unfinished.into_iter().chain(whole).find(|bytes| self.is_in(bytes, id)) else {
                continue;
            };
            let bytes = good.slice(self.start as usize..self.end as usize);
            let written = repository.write_chunk(&self.segment, self.start, bytes).await?;
            if let Some(bad) = self.chunk.as_ref().filter(|bad| **bad != written) {
                repository.remove_chunks(std::slice::from_ref(bad)).await?;
            }
            return Ok(Some(source.name().to_owned()));
        }
        Ok(None)
    }

    /// Whether these bytes of the segment have it, and are good up to its end.
    fn is_in(&self, bytes: &[u8], id: Option<WalIdentity>) -> bool {
        let Some(bytes) = bytes.get(..self.end as usize) else { return false };
        let Ok(found) = check::identity_of(bytes) else { return false };
        id.is_none_or(|id| id == found) && fault_in(found, &self.segment, bytes).is_none()
    }
}

/// The first fault in the beginning of a segment, and where that is, as far as it can be said. What its last record lacks
/// is none.
fn fault_in(id: WalIdentity, segment: &FileName, bytes: &[u8]) -> Option<(String, Option<Lsn>)> {
    let Some(wal) = segment.wal(id.seg_size) else {
        return Some((format!("there is no such segment of {}", id.seg_size.to_show()), None));
    };
    let pushed = check::Gradual::new(id, wal).push(bytes);
    pushed.err().map(|fault| (fault.to_string(), fault.lsn()))
}

impl Check<'_> {
    /// Each by itself, and what those of a segment that is not finished make up. Names say what pieces contain.
    pub(super) async fn read_pieces(&mut self) -> Result<(), ReadError> {
        let mut segments: BTreeMap<FileName, Vec<ChunkName>> = BTreeMap::new();
        for piece in self.pieces.clone() {
            self.progress.did(1);
            segments.entry(piece.segment.clone()).or_default().push(piece.clone());
            let reason = match self.repository.read_chunk(&piece).await {
                Ok(_) => continue,
                Err(ReadError::Damaged { reason, .. }) => reason,
                Err(error) => return Err(error),
            };
            let lsn = self.lsn_in(&piece.segment, piece.start);
            self.note_at(&Piece::of(&piece).file(), Problem::Damaged, reason, lsn);
        }
        // Where the whole segment is there nobody needs them any more, and they go.
        segments.retain(|segment, _| !self.files.contains(segment));
        for (segment, pieces) in segments {
            self.check_beginning(&segment, &pieces).await?;
        }
        Ok(())
    }

    fn lsn_in(&self, segment: &FileName, offset: u64) -> Option<Lsn> {
        let size = self.id?.seg_size;
        Some(segment.wal(size)?.segno.start(size).advance(offset))
    }

    /// All that can be restored of a segment by its pieces is WAL, and no piece lies behind a hole.
    async fn check_beginning(&mut self, segment: &FileName, pieces: &[ChunkName]) -> Result<(), ReadError> {
        let beginning = match self.repository.read_beginning(segment).await {
            Ok(beginning) => beginning,
            // That is told, and nothing can be said of those behind it.
            Err(ReadError::Damaged { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let reach = beginning.len() as u64;
        let behind = pieces.iter().filter(|piece| piece.start > reach).map(|piece| piece.start).min();
        // Whoever archives removes them when the whole segment is there.
        if let Some(end) = behind
            && matches!(self.repository.read(segment).await, Ok(None))
        {
            let hole = Piece { segment: segment.clone(), start: reach, end, chunk: None };
            let reason = "there are pieces of the segment before and after it".to_owned();
            let reason = if reach == 0 { "there are later pieces of the segment".to_owned() } else { reason };
            self.note_at(&hole.file(), Problem::Missing, reason, self.lsn_in(segment, reach));
        }
        if reach == 0 {
            return Ok(());
        }
        let fault = match check::identity_of(&beginning) {
            Err(fault) => Some((fault.to_string(), None)),
            Ok(found) if self.id.is_some_and(|id| id != found) => Some((
                format!("it belongs to another cluster, whose system identifier is {}", found.system_id),
                None,
            )),
            Ok(found) => fault_in(found, segment, &beginning),
        };
        if let Some((reason, lsn)) = fault {
            let size = self.id.map(|id| id.seg_size);
            let at = lsn.zip(size).map_or(0, |(lsn, size)| lsn.offset_in_seg(size));
            let has = |piece: &&ChunkName| (piece.start..piece.end).contains(&at);
            // The longest is what is taken.
            let piece = pieces.iter().filter(has).max_by_key(|piece| piece.end).unwrap_or(&pieces[0]);
            let lsn = lsn.or_else(|| self.lsn_in(segment, 0));
            self.note_at(&Piece::of(piece).file(), Problem::Damaged, reason, lsn);
        }
        Ok(())
    }
}
