//! Bytes that nobody can verify: what is left of a record that a crash has cut off.

use crate::lsn::{Lsn, PAGE_SIZE};
use crate::page::{LONG_HEADER, PageHeader, SHORT_HEADER, flags};
use crate::record::RECORD_HEADER;

/// The beginning of a page that [`behind_lost_record`] has to see, bytes.
pub const PAGE_HEAD: usize = 80;

const RM_XLOG: u8 = 0;
const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;
/// Marks main data of less than 256 bytes; its length follows.
const SHORT_DATA: u8 = 0xFF;

/// Where WAL goes on if the byte at `at` belongs to a record that a crash has cut off, as the page behind it says: no
/// checksum covers such a byte, and nobody replays it. `None` if it does not, or that page is not at hand.
///
/// `page` gives the first bytes of the page at a position.
// PG: xl_overwrite_contrecord
pub fn behind_lost_record(at: Lsn, mut page: impl FnMut(Lsn) -> Option<[u8; PAGE_HEAD]>) -> Option<Lsn> {
    let mut next = at.page_start().advance(PAGE_SIZE);
    loop {
        let head = page(next)?;
        let header = PageHeader::parse(head.first_chunk::<SHORT_HEADER>()?);
        if header.pageaddr != next {
            return None;
        }
        if !header.has(flags::FIRST_IS_CONTRECORD) {
            let len = if header.has(flags::LONG_HEADER) { LONG_HEADER } else { SHORT_HEADER };
            return (overwritten(head.get(len..)?)? <= at).then_some(next);
        }
        next = next.advance(PAGE_SIZE);
    }
}

/// The record that an XLOG_OVERWRITE_CONTRECORD gives up.
fn overwritten(record: &[u8]) -> Option<Lsn> {
    let (header, data) = record.split_at_checked(RECORD_HEADER)?;
    let is_one =
        header.get(16..18)? == [XLOG_OVERWRITE_CONTRECORD, RM_XLOG] && data.first() == Some(&SHORT_DATA);
    let lsn = data.get(2..)?.first_chunk()?;
    is_one.then_some(Lsn::new(u64::from_le_bytes(*lsn)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::WalGenerator;
    use crate::segment::SegSize;
    use crate::timeline::{SystemId, TimelineId};
    use crate::walk::WalIdentity;

    #[test]
    fn only_what_a_later_page_gives_up_is_lost() {
        for (pages, magic) in [(1, 0xD118), (3, 0xD118), (1, 0xD122)] {
            let id = WalIdentity { system_id: SystemId(9), seg_size: SegSize::new(1 << 20).unwrap() };
            let start = Lsn::new(3 << 20);
            let mut wal = WalGenerator::new(id, TimelineId::FIRST, start, 1).with_magic(magic);
            wal.record(100);
            let lost = wal.abort_record(30_000, pages);
            wal.fill(20_000);
            let behind = lost.page_start().advance(8192 * pages as u64);
            let page = |at: Lsn| wal.bytes().get(at.since(start) as usize..)?.first_chunk().copied();
            let check = |at: Lsn, expected| assert_eq!(behind_lost_record(at, page), expected, "{at}");
            check(lost, Some(behind));
            check(behind.rewind(1), Some(behind));
            check(lost.rewind(1), None);
            check(behind, None);
            check(wal.position().rewind(1), None);
            assert_eq!(behind_lost_record(lost, |_| None), None);
        }
    }
}
