//! Cuts typed messages out of a client's bytes: `Byte1 type, Int32 length (itself included), body`.
//!
//! The type is judged before the length is waited for, and the length before the body, as PostgreSQL does
//! (`SocketBackend`, `ProcessRepliesIfAny`, `recv_password_packet`).

use bytes::{Buf, BytesMut};

use super::error::{PgError, sqlstate};

/// What a connection is doing, which decides what it may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Passwords and SASL responses.
    Authentication,
    /// Queries.
    Command,
    /// Inside COPY BOTH.
    Streaming,
}

/// One message, without its type and length.
#[derive(PartialEq, Eq, Debug)]
pub struct Frame {
    /// The type.
    pub kind: u8,
    /// Everything behind the length word.
    pub body: BytesMut,
}

/// The bytes are no message that this phase allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A type that does not belong here. PostgreSQL tells the client, see [`FrameError::to_pg_error`].
    #[error("unexpected message type \"{}\" in phase {phase:?}", kind.escape_ascii())]
    Type {
        /// Where it came.
        phase: Phase,
        /// The type.
        kind: u8,
    },
    /// A length below 4 or beyond the type's limit. PostgreSQL closes the connection without a word.
    #[error("invalid length {len} of message type \"{}\"", kind.escape_ascii())]
    Length {
        /// The type.
        kind: u8,
        /// The length word.
        len: u32,
    },
}

impl FrameError {
    /// What the client is told before the connection is closed.
    pub fn to_pg_error(self) -> Option<PgError> {
        let FrameError::Type { phase, kind } = self else { return None };
        let text = match phase {
            Phase::Authentication => format!("expected password response, got message type {kind}"),
            Phase::Command => format!("invalid frontend message type {kind}"),
            Phase::Streaming => format!("invalid standby message type \"{}\"", kind.escape_ascii()),
        };
        Some(PgError::fatal(sqlstate::PROTOCOL_VIOLATION, text))
    }
}

impl Phase {
    /// Length a message of this type may have; `None` for types that do not belong here.
    ///
    /// The limits are below PostgreSQL's where walrelay has no use for more: a consumer costs little memory,
    /// whatever it sends.
    fn limit(self, kind: u8) -> Option<usize> {
        const SMALL: usize = 10_000;
        const LARGE: usize = 1 << 20;
        const PASSWORD: usize = 65_535;
        match (self, kind) {
            (Phase::Authentication, b'p') => Some(PASSWORD),
            (Phase::Command, b'Q' | b'P' | b'B' | b'F' | b'd') => Some(LARGE),
            (Phase::Command, b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f') => Some(SMALL),
            (Phase::Streaming, b'd') => Some(PASSWORD),
            (Phase::Streaming, b'c' | b'X') => Some(SMALL),
            _ => None,
        }
    }
}

/// Takes the first message off `input`; `None` if it is not complete yet.
///
/// After an error the stream is out of step for good.
pub fn cut(input: &mut BytesMut, phase: Phase) -> Result<Option<Frame>, FrameError> {
    let Some((&kind, rest)) = input.split_first() else { return Ok(None) };
    let limit = phase.limit(kind).ok_or(FrameError::Type { phase, kind })?;
    let Some(word) = rest.first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes(*word);
    let total = usize::try_from(len).ok().filter(|len| (4..=limit).contains(len));
    let total = total.ok_or(FrameError::Length { kind, len })?;
    if rest.len() < total {
        input.reserve(total - rest.len());
        return Ok(None);
    }
    let mut body = input.split_to(1 + total);
    body.advance(5);
    Ok(Some(Frame { kind, body }))
}

impl Frame {
    /// The body as one C string, which must fill it: the text of a `Query`, a password.
    pub fn c_string(&self) -> Option<&[u8]> {
        let end = self.body.iter().position(|&b| b == 0)?;
        self.body.get(..end).filter(|text| text.len() + 1 == self.body.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn input(bytes: &[u8]) -> BytesMut {
        BytesMut::from(bytes)
    }

    #[test]
    fn one_message_is_taken_and_the_next_left() {
        let mut bytes = input(b"Q\0\0\0\x06a\0X\0\0\0\x04");
        let query = cut(&mut bytes, Phase::Command).unwrap().unwrap();
        assert_eq!((query.kind, query.c_string()), (b'Q', Some(&b"a"[..])));
        assert_eq!(cut(&mut bytes, Phase::Command).unwrap().unwrap().kind, b'X');
        assert_eq!(cut(&mut bytes, Phase::Command), Ok(None));
    }

    #[test]
    fn a_string_must_fill_its_message() {
        for bad in [&b"Q\0\0\0\x04"[..], b"Q\0\0\0\x05a", b"Q\0\0\0\x07a\0b", b"Q\0\0\0\x06\0\0"] {
            assert_eq!(cut(&mut input(bad), Phase::Command).unwrap().unwrap().c_string(), None, "{bad:?}");
        }
    }

    #[test]
    fn a_wrong_type_is_refused_before_its_length_arrives() {
        let check = |phase, kind: u8, text: &str| {
            let error = cut(&mut input(&[kind]), phase).unwrap_err().to_pg_error().unwrap();
            assert_eq!((&*error.sqlstate, error.message.as_str()), ("08P01", text));
        };
        check(Phase::Command, b'z', "invalid frontend message type 122");
        check(Phase::Command, b'p', "invalid frontend message type 112");
        check(Phase::Streaming, b'Q', "invalid standby message type \"Q\"");
        check(Phase::Streaming, b'f', "invalid standby message type \"f\"");
        check(Phase::Authentication, b'Q', "expected password response, got message type 81");
    }

    #[test]
    fn lengths_have_limits() {
        let check = |phase, kind: u8, len: u32, allowed| {
            let bytes = [&[kind][..], &len.to_be_bytes()].concat();
            let result = cut(&mut input(&bytes), phase);
            match allowed {
                true => assert!(result.is_ok(), "{kind} {len}"),
                false => assert_eq!(result, Err(FrameError::Length { kind, len })),
            }
        };
        for len in [0, 3, u32::MAX, i32::MAX as u32] {
            check(Phase::Command, b'Q', len, false);
            check(Phase::Streaming, b'd', len, false);
        }
        check(Phase::Authentication, b'p', 65_535, true);
        check(Phase::Authentication, b'p', 65_536, false);
        check(Phase::Command, b'X', 10_001, false);
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_makes_no_difference(
            messages in proptest::collection::vec((proptest::sample::select(&b"QPdcXS"[..]), proptest::collection::vec(any::<u8>(), 0..40)), 1..5),
            cuts in proptest::collection::vec(1_usize..9, 1..40)) {
            let mut bytes = Vec::new();
            for (kind, body) in &messages {
                bytes.push(*kind);
                bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
                bytes.extend(body);
            }
            let (mut buffer, mut rest, mut seen) = (BytesMut::new(), &bytes[..], Vec::new());
            for step in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*step));
                buffer.extend_from_slice(now);
                rest = later;
                while let Some(frame) = cut(&mut buffer, Phase::Command).unwrap() {
                    seen.push((frame.kind, frame.body.to_vec()));
                }
                if rest.is_empty() { break }
            }
            prop_assert_eq!(seen, messages);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for phase in [Phase::Authentication, Phase::Command, Phase::Streaming] {
                let mut buffer = input(&bytes);
                while let Ok(Some(_)) = cut(&mut buffer, phase) {}
            }
        }
    }
}
