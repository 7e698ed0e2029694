//! Counts the commits in WAL that was verified before, and finds when they were made (PostgreSQL: `xact.h`,
//! `xlogrecord.h`).

use crate::lsn::Lsn;
use crate::message::PgTimestamp;
use crate::page::{self, PageHeader, SHORT_HEADER, flags, part};
use crate::record::{RECORD_HEADER, RecordHeader, alignment_padding};
use crate::segment::SegSize;

/// Block ids that stand for something else (`XLR_BLOCK_ID_*`).
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOPLEVEL_XID: u8 = 252;
/// The time of a commit lies within so many bytes behind the record's header.
const TIME_WITHIN: usize = 3 + 5 + 5 + 8;

/// Counts commits, page after page.
///
/// Only headers are looked at, so a record may be as long as it likes.
#[derive(Clone, Debug)]
pub struct CommitCounter {
    size: SegSize,
    position: Lsn,
    /// The header of the record being read, as far as it has come.
    header: Vec<u8>,
    /// Bytes of that record, its padding included, still to come behind its header.
    left: usize,
    /// Behind an XLOG_SWITCH record: nothing counts up to here.
    skip_to: Lsn,
    commits: u64,
    /// What follows the header of a commit, as far as it has come and is looked at; `None` behind all other headers.
    body: Option<Vec<u8>>,
    /// When the first commit and the last were made.
    span: Option<(PgTimestamp, PgTimestamp)>,
}

impl CommitCounter {
    /// Begins at `at`, where a record may start.
    pub fn new(at: Lsn, size: SegSize) -> CommitCounter {
        let header = Vec::with_capacity(RECORD_HEADER);
        CommitCounter {
            size,
            position: at,
            header,
            left: 0,
            skip_to: Lsn::INVALID,
            commits: 0,
            body: None,
            span: None,
        }
    }

    /// Takes the WAL that follows. No piece but the last ends inside a page's header.
    pub fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (on_page, behind) = rest.split_at(rest.len().min(page::room_on_page(self.position)));
            if self.position >= self.skip_to {
                self.page(on_page);
            }
            self.position = self.position.advance(on_page.len() as u64);
            rest = behind;
        }
    }

    /// Commits found, those of two-phase transactions among them.
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// When the first of them and the last were made, by the order of their records.
    pub fn span(&self) -> Option<(PgTimestamp, PgTimestamp)> {
        self.span
    }

    fn page(&mut self, on_page: &[u8]) {
        let mut rest = on_page;
        if self.position == self.position.page_start() {
            let Some(header) = rest.first_chunk::<SHORT_HEADER>() else { return };
            if !PageHeader::parse(header).has(flags::FIRST_IS_CONTRECORD) {
                // A record that should go on here was lost.
                (self.left, self.header, self.body) = (0, Vec::new(), None);
            }
            rest = rest.get(page::header_len(self.position, self.size)..).unwrap_or_default();
        }
        while !rest.is_empty() {
            let missing = if self.left > 0 { self.left } else { RECORD_HEADER - self.header.len() };
            let (now, behind) = rest.split_at(rest.len().min(missing));
            rest = behind;
            if self.left > 0 {
                self.left -= now.len();
                self.look_for_time(now);
                continue;
            }
            self.header.extend_from_slice(now);
            if self.header.len() == RECORD_HEADER && !self.record() {
                return;
            }
        }
    }

    /// A record's header has come; false where nothing follows it on this page.
    fn record(&mut self) -> bool {
        let raw: [u8; RECORD_HEADER] = part(&std::mem::take(&mut self.header), 0);
        let header = RecordHeader::parse(&raw);
        let aligned = header.tot_len as usize + alignment_padding(header.tot_len.into());
        if header.is_commit() {
            self.commits += 1;
            self.body = Some(Vec::with_capacity(TIME_WITHIN));
        } else {
            self.body = None;
        }
        // A length below this is no record: verified WAL has none.
        self.left = aligned.saturating_sub(RECORD_HEADER);
        if header.is_switch() || aligned < RECORD_HEADER {
            self.left = 0;
            self.skip_to = self.position.seg_at(self.size).end(self.size);
            return false;
        }
        true
    }

    /// Takes what follows a commit's header until its time is there.
    fn look_for_time(&mut self, bytes: &[u8]) {
        let Some(body) = &mut self.body else { return };
        let missing = TIME_WITHIN - body.len();
        body.extend(bytes.iter().take(missing));
        if let Some(time) = commit_time(body) {
            self.span = Some((self.span.map_or(time, |(first, _)| first), time));
        } else if body.len() < TIME_WITHIN {
            return;
        }
        self.body = None;
    }
}

/// The time in what follows a commit's header, once it is there. Such a record refers to no blocks: its data comes behind a
/// few short headers, and begins with it.
pub(crate) fn commit_time(mut body: &[u8]) -> Option<PgTimestamp> {
    loop {
        let (&id, rest) = body.split_first()?;
        let data = match id {
            DATA_SHORT => rest.get(1..)?,
            DATA_LONG => rest.get(4..)?,
            ORIGIN => {
                body = rest.get(2..)?;
                continue;
            }
            TOPLEVEL_XID => {
                body = rest.get(4..)?;
                continue;
            }
            _ => return None,
        };
        return Some(PgTimestamp::from_micros(i64::from_le_bytes(*data.first_chunk()?)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::WalGenerator;
    use crate::timeline::{SystemId, TimelineId};
    use crate::walk::WalIdentity;

    #[test]
    fn commits_are_counted_from_any_record_on_and_in_any_pieces() {
        let seg_size = SegSize::new(1 << 20).unwrap();
        let start = Lsn::new(3 << 20);
        let id = WalIdentity { system_id: SystemId(1), seg_size };
        let mut wal = WalGenerator::new(id, TimelineId::FIRST, start, 7);
        let mut from = [start; 2];
        let mut times = Vec::new();
        for round in 0..60u32 {
            wal.fill(30_000);
            times.push(i64::from(round) * 1000);
            wal.commit_at(times[times.len() - 1]);
            match round {
                10 => drop(wal.abort_record(50_000, 2)),
                20 => wal.switch_segment(),
                30 => from[1] = wal.position(),
                _ => {}
            }
        }
        wal.record(2_000_000);
        times.push(99_999);
        wal.commit_at(99_999);
        for (from, expected) in from.into_iter().zip([61usize, 30]) {
            let bytes = wal.bytes().get(usize::try_from(from.since(start)).unwrap()..).unwrap();
            for pages in [1, 5, 10_000] {
                let mut counter = CommitCounter::new(from, seg_size);
                let first = page::room_on_page(from).min(bytes.len());
                counter.push(&bytes[..first]);
                bytes[first..].chunks(pages * 8192).for_each(|piece| counter.push(piece));
                assert_eq!(counter.commits(), expected as u64, "from {from}, {pages} pages at a time");
                let (first, last) = counter.span().unwrap();
                assert_eq!((first.as_micros(), last.as_micros()), (times[61 - expected], times[60]));
            }
        }
    }

    #[test]
    fn the_time_lies_behind_short_headers() {
        let time = 77i64.to_le_bytes();
        let check = |headers: &[u8], expected: Option<i64>| {
            let found = commit_time(&[headers, &time].concat()).map(PgTimestamp::as_micros);
            assert_eq!(found, expected, "{headers:?}");
        };
        check(&[255, 8], Some(77));
        check(&[254, 8, 0, 0, 0], Some(77));
        check(&[253, 1, 2, 252, 1, 2, 3, 4, 254, 8, 0, 0, 0], Some(77));
        check(&[0], None);
        assert_eq!(commit_time(&[255, 8, 1, 2, 3]), None, "not all of it is there yet");
    }

    #[test]
    fn fuzz_commit_record() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let mut counter = CommitCounter::new(Lsn::new(3 << 20), SegSize::new(1 << 20).unwrap());
            counter.push(bytes);
            counter.push(bytes);
        });
    }
}
