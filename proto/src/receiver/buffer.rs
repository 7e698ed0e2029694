//! The receive buffer: what was read and is not taken yet.

use std::ops::Range;

/// One allocation, used again and again. Bytes `start..end` are unread.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Holds what was read already, with at least `size` bytes in all and half of them free.
    pub(super) fn new(unread: &[u8], size: usize) -> Buffer {
        let mut bytes = vec![0; size.max(unread.len() + size / 2)].into_boxed_slice();
        bytes.iter_mut().zip(unread).for_each(|(to, &from)| *to = from);
        Buffer { bytes, start: 0, end: unread.len() }
    }

    pub(super) fn unread(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// What [`take`](Self::take) has given, until the next [`room`](Self::room).
    pub(super) fn taken(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Takes `len` bytes, as many as are unread at most.
    pub(super) fn take(&mut self, len: usize) -> Range<usize> {
        let from = self.start;
        self.start = (from + len).min(self.end);
        from..self.start
    }

    /// Where to read to. What is unread, part of a header or of a small message, moves to the front.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were read to there.
    pub(super) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }
}
