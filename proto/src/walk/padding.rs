//! What has come behind an XLOG_SWITCH that is not zeros: what comes the same again is what the server has.

use std::sync::Arc;

use crate::lsn::{Lsn, PAGE_SIZE};
use crate::segment::SegSize;

/// What has come of one segment, 8 bytes for each page from the first odd one on. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PaddingSeen(Option<Arc<Pages>>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Pages {
    /// The page that `sums` begins with.
    first: Lsn,
    /// [`Odd::crc`] of each page as it came last; `None` if it has not come, or came as zeros only.
    sums: Vec<Option<u32>>,
}

/// What a page has that is not zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Odd {
    /// The first such byte.
    pub(super) lsn: Lsn,
    pub(super) found: u8,
    /// Of its place and all from there on, as far as it has come; in the end to the page's end.
    crc: u32,
}

impl Odd {
    pub(super) fn new(lsn: Lsn, found: u8) -> Odd {
        Odd { lsn, found, crc: crc32c::crc32c(&lsn.as_u64().to_le_bytes()) }
    }

    /// Takes what comes from its first byte on, piece by piece.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
    }
}

impl PaddingSeen {
    /// Notes a page; whether it is as it was before.
    pub(super) fn note(&mut self, odd: Odd, size: SegSize) -> bool {
        let page = odd.lsn.page_start();
        let is_of_it =
            |pages: &Arc<Pages>| pages.first <= page && pages.first.seg_start(size) == page.seg_start(size);
        let known = self.0.take().filter(is_of_it);
        let mut known = known.unwrap_or_else(|| Arc::new(Pages { first: page, sums: Vec::new() }));
        // A segment has at most 131,072.
        let number = usize::try_from(page.since(known.first) / PAGE_SIZE).unwrap_or_default();
        let is_known = known.sums.get(number) == Some(&Some(odd.crc));
        if !is_known {
            let sums = &mut Arc::make_mut(&mut known).sums;
            sums.resize(sums.len().max(number + 1), None);
            sums.iter_mut().skip(number).take(1).for_each(|sum| *sum = Some(odd.crc));
        }
        self.0 = Some(known);
        is_known
    }
}
