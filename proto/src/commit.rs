//! Counts the commits in WAL that was verified before (PostgreSQL: `xact.h`, `xlogrecord.h`).

use crate::lsn::Lsn;
use crate::page::{self, PageHeader, SHORT_HEADER, flags, part};
use crate::record::{RECORD_HEADER, RecordHeader, alignment_padding};
use crate::segment::SegSize;

/// Resource manager of transactions, and its records of commits (`RM_XACT_ID`, `XLOG_XACT_OPMASK`).
const RM_XACT: u8 = 1;
const OPMASK: u8 = 0x70;
const COMMIT: u8 = 0x00;
const COMMIT_PREPARED: u8 = 0x30;

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
}

impl CommitCounter {
    /// Begins at `at`, where a record may start.
    pub fn new(at: Lsn, size: SegSize) -> CommitCounter {
        let header = Vec::with_capacity(RECORD_HEADER);
        CommitCounter { size, position: at, header, left: 0, skip_to: Lsn::INVALID, commits: 0 }
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

    fn page(&mut self, on_page: &[u8]) {
        let mut rest = on_page;
        if self.position == self.position.page_start() {
            let Some(header) = rest.first_chunk::<SHORT_HEADER>() else { return };
            if !PageHeader::parse(header).has(flags::FIRST_IS_CONTRECORD) {
                // A record that should go on here was lost.
                (self.left, self.header) = (0, Vec::new());
            }
            rest = rest.get(page::header_len(self.position, self.size)..).unwrap_or_default();
        }
        while !rest.is_empty() {
            let missing = if self.left > 0 { self.left } else { RECORD_HEADER - self.header.len() };
            let (now, behind) = rest.split_at(rest.len().min(missing));
            rest = behind;
            if self.left > 0 {
                self.left -= now.len();
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
        if raw[17] == RM_XACT && matches!(raw[16] & OPMASK, COMMIT | COMMIT_PREPARED) {
            self.commits += 1;
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
        for round in 0..60u32 {
            wal.fill(30_000);
            wal.commit();
            match round {
                10 => drop(wal.abort_record(50_000, 2)),
                20 => wal.switch_segment(),
                30 => from[1] = wal.position(),
                _ => {}
            }
        }
        wal.record(2_000_000);
        wal.commit();
        for (from, expected) in from.into_iter().zip([61, 30]) {
            let bytes = wal.bytes().get(usize::try_from(from.since(start)).unwrap()..).unwrap();
            for pages in [1, 5, 10_000] {
                let mut counter = CommitCounter::new(from, seg_size);
                let first = page::room_on_page(from).min(bytes.len());
                counter.push(&bytes[..first]);
                bytes[first..].chunks(pages * 8192).for_each(|piece| counter.push(piece));
                assert_eq!(counter.commits(), expected, "from {from}, {pages} pages at a time");
            }
        }
    }

    #[test]
    fn no_bytes_do_harm() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let mut counter = CommitCounter::new(Lsn::new(3 << 20), SegSize::new(1 << 20).unwrap());
            counter.push(bytes);
            counter.push(bytes);
        });
    }
}
