//! Messages on the lines: PostgreSQL's frames around commands and answers that are only as long as the model needs.

use std::ops::Range;

use walrelay_proto::{Lsn, TimelineId};

/// A message: its type, and what follows the length.
pub(crate) type Frame = (u8, Vec<u8>);

/// Longest message that anybody here sends, bytes.
const MOST: usize = 1 << 20;

/// Bytes that come in pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Input {
    bytes: Vec<u8>,
    taken: usize,
}

/// What came is no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Garbage;

impl Input {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.tidy();
        self.bytes.extend_from_slice(bytes);
    }

    /// The same without a copy, if all that came before was taken.
    pub(crate) fn push_all(&mut self, bytes: Vec<u8>) {
        self.tidy();
        match self.bytes.is_empty() {
            true => self.bytes = bytes,
            false => self.bytes.extend(bytes),
        }
    }

    fn tidy(&mut self) {
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        }
    }

    /// The next whole message.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Garbage> {
        Ok(self.next_range()?.map(|(kind, body)| (kind, self.bytes[body].to_vec())))
    }

    /// The same where it lies, for [`at`](Self::at).
    pub(crate) fn next_range(&mut self) -> Result<Option<(u8, Range<usize>)>, Garbage> {
        let rest = &self.bytes[self.taken..];
        let Some((head, behind)) = rest.split_first_chunk::<5>() else { return Ok(None) };
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let len = len.checked_sub(4).filter(|len| *len <= MOST).ok_or(Garbage)?;
        if behind.len() < len {
            return Ok(None);
        }
        let (kind, from) = (head[0], self.taken + 5);
        self.taken = from + len;
        Ok(Some((kind, from..from + len)))
    }

    /// A message that was found.
    pub(crate) fn at(&self, body: Range<usize>) -> &[u8] {
        &self.bytes[body]
    }

    /// All that was not taken.
    pub(crate) fn take_rest(&mut self) -> Vec<u8> {
        let rest = self.bytes.split_off(self.taken);
        (self.bytes, self.taken) = (Vec::new(), 0);
        rest
    }
}

pub(crate) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    frame.extend((body.len() as u32 + 4).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

pub(crate) fn query(text: &str) -> Vec<u8> {
    frame(b'Q', text.as_bytes())
}

pub(crate) fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

pub(crate) fn error(code: &str, text: &str) -> Vec<u8> {
    frame(b'E', format!("SERROR\0VERROR\0C{code}\0M{text}\0\0").as_bytes())
}

/// The SQLSTATE of an error.
pub(crate) fn code_of(body: &[u8]) -> String {
    let mut fields = body.split(|byte| *byte == 0);
    let code = fields.find(|field| field.first() == Some(&b'C'));
    String::from_utf8_lossy(code.and_then(|code| code.get(1..)).unwrap_or_default()).into_owned()
}

/// The row with which a server names the next timeline.
pub(crate) fn next_timeline(tli: TimelineId, at: Lsn) -> Vec<u8> {
    let mut body = 2u16.to_be_bytes().to_vec();
    for text in [tli.to_string(), at.to_string()] {
        body.extend((text.len() as u32).to_be_bytes());
        body.extend(text.as_bytes());
    }
    frame(b'D', &body)
}
