//! Follows a server's messages in a stream of bytes that is passed on as it is.
//!
//! Only headers are looked at, and the bodies of two small messages: `ReadyForQuery` and `ParameterStatus`.

/// What was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scan {
    /// `ReadyForQuery`: `I`, `T` or `E`.
    Ready(u8),
    /// `ParameterStatus`: name, NUL, value, NUL.
    Parameter(Vec<u8>),
    /// The header of any other message; its body follows.
    Header {
        /// Its type.
        kind: u8,
    },
}

/// Where in the messages the stream stands.
#[derive(Debug, Default)]
pub struct Scanner {
    header: Vec<u8>,
    /// Bytes of the present body still to come.
    body: u64,
    /// The body, of those that are kept.
    kept: Option<Vec<u8>>,
    kind: u8,
}

/// Longer than any ParameterStatus that matters; a longer one passes unread.
const KEPT: u64 = 1024;

impl Scanner {
    /// Takes the next bytes; `seen` learns of what they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Scan)) {
        while !bytes.is_empty() {
            if self.body > 0 {
                let part = bytes.len().min(usize::try_from(self.body).unwrap_or(usize::MAX));
                if let Some(kept) = &mut self.kept {
                    kept.extend_from_slice(&bytes[..part]);
                }
                self.body -= part as u64;
                bytes = &bytes[part..];
            } else {
                let part = bytes.len().min(5 - self.header.len());
                self.header.extend_from_slice(&bytes[..part]);
                bytes = &bytes[part..];
                let Some(&[kind, a, b, c, d]) = self.header.first_chunk() else { return };
                self.header.clear();
                self.begin(kind, u32::from_be_bytes([a, b, c, d]), &mut seen);
            }
            if self.body == 0
                && let Some(kept) = self.kept.take()
            {
                seen(if self.kind == b'Z' {
                    Scan::Ready(kept.first().copied().unwrap_or(b'I'))
                } else {
                    Scan::Parameter(kept)
                });
            }
        }
    }

    /// Whether the stream stands between two messages.
    pub fn at_boundary(&self) -> bool {
        self.body == 0 && self.header.is_empty()
    }

    fn begin(&mut self, kind: u8, len: u32, seen: &mut impl FnMut(Scan)) {
        // A length below 4 is nonsense; what follows it is the client's to judge.
        self.body = u64::from(len.saturating_sub(4));
        self.kind = kind;
        match kind {
            b'Z' | b'S' if self.body <= KEPT => self.kept = Some(Vec::new()),
            _ => seen(Scan::Header { kind }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(parts: &[&[u8]]) -> Vec<Scan> {
        let (mut scanner, mut seen) = (Scanner::default(), Vec::new());
        for part in parts {
            scanner.feed(part, |event| seen.push(event));
        }
        seen
    }

    #[test]
    fn what_matters_is_seen() {
        let bytes = b"S\0\0\0\x08a\0b\0D\0\0\0\x06Z!C\0\0\0\x04Z\0\0\0\x05T";
        let expected = vec![
            Scan::Parameter(b"a\0b\0".to_vec()),
            Scan::Header { kind: b'D' },
            Scan::Header { kind: b'C' },
            Scan::Ready(b'T'),
        ];
        assert_eq!(scan(&[bytes]), expected);
    }

    #[test]
    fn a_long_parameter_passes_unread() {
        let mut bytes = b"S\0\x01\0\0".to_vec();
        bytes.resize(1 + 0x10000, b'x');
        bytes.extend(b"Z\0\0\0\x05I");
        assert_eq!(scan(&[&bytes]), vec![Scan::Header { kind: b'S' }, Scan::Ready(b'I')]);
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1_usize..9) {
            prop_assert_eq!(scan(&bytes.chunks(step).collect::<Vec<_>>()), scan(&[&bytes]));
        }
    }
}
