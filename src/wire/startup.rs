//! What comes before the first typed message: `Int32 length, Int32 code, …`
//! (PostgreSQL: `ProcessStartupPacket`).

use bytes::{Buf, BytesMut};

/// The first packet of a connection, or one after a refused encryption request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StartupPacket {
    /// `SSLRequest`, answered with one byte.
    SslRequest,
    /// `GSSENCRequest`, answered with one byte.
    GssEncRequest,
    /// `CancelRequest`, never answered.
    Cancel(CancelRequest),
    /// Anything else: a protocol version and what follows it.
    Startup(StartupMessage),
}

/// Who shall be cancelled, and the proof that one may.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CancelRequest {
    /// As told in `BackendKeyData`.
    pub pid: u32,
    /// Any length.
    pub key: Vec<u8>,
}

/// A start-up message before its parameters are looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartupMessage {
    /// The protocol version asked for, or nonsense.
    pub version: ProtocolVersion,
    /// Names and values, each ended by a NUL, and one more NUL.
    pub body: Vec<u8>,
}

/// A version of the protocol as it stands in a start-up message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ProtocolVersion {
    /// 3 since PostgreSQL 7.4.
    pub major: u16,
    /// 0, or 2 since PostgreSQL 18.
    pub minor: u16,
}

impl std::fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A length that no start-up packet has: TLS without being asked, HTTP, noise. The connection is closed
/// without a word, as by PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid length of startup packet")]
pub struct InvalidLength;

/// The final NUL of a start-up message is missing or not its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid startup packet layout: expected terminator as last byte")]
pub struct InvalidLayout;

/// The code of an encryption or cancel request; a major version no protocol will have.
const REQUEST: u16 = 1234;
const CANCEL: u16 = 5678;
const SSL: u16 = 5679;
const GSS_ENC: u16 = 5680;

/// Bytes that must be read before a packet can be cut; 0 if `input` begins with a whole one.
///
/// Reading no more than that leaves what follows an encryption request in the socket, for TLS.
pub fn missing(input: &[u8]) -> Result<usize, InvalidLength> {
    let Some(word) = input.first_chunk() else { return Ok(8 - input.len()) };
    let len = usize::try_from(u32::from_be_bytes(*word)).map_err(|_| InvalidLength)?;
    // PG: at least the protocol version, at most MAX_STARTUP_PACKET_LENGTH behind the length word.
    if !(8..=10_004).contains(&len) {
        return Err(InvalidLength);
    }
    Ok(len.saturating_sub(input.len()))
}

/// Takes a whole packet off `input`. `encryption` names the requests that may still be made; one made again
/// is read as a protocol version, as PostgreSQL reads it.
pub fn cut(input: &mut BytesMut, encryption: Offers) -> Result<Option<StartupPacket>, InvalidLength> {
    if missing(input)? > 0 {
        return Ok(None);
    }
    let len = input.get_u32() as usize;
    let mut body = input.split_to(len - 4);
    let version = ProtocolVersion { major: body.get_u16(), minor: body.get_u16() };
    Ok(Some(match (version.major, version.minor) {
        (REQUEST, CANCEL) => StartupPacket::Cancel(cancel_request(&body)),
        (REQUEST, SSL) if encryption.ssl => StartupPacket::SslRequest,
        (REQUEST, GSS_ENC) if encryption.gss_enc => StartupPacket::GssEncRequest,
        _ => StartupPacket::Startup(StartupMessage { version, body: body.to_vec() }),
    }))
}

/// Which encryption requests are still awaited: each may be made once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offers {
    /// `SSLRequest`
    pub ssl: bool,
    /// `GSSENCRequest`
    pub gss_enc: bool,
}

/// A packet too short for a PID names PID 0, which nobody has.
fn cancel_request(body: &[u8]) -> CancelRequest {
    match body.split_first_chunk() {
        Some((pid, key)) => CancelRequest { pid: u32::from_be_bytes(*pid), key: key.to_vec() },
        None => CancelRequest { pid: 0, key: Vec::new() },
    }
}

impl StartupMessage {
    /// Names and values in order, up to the empty name that ends them. Bytes that are no UTF-8 stay what
    /// they are.
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters { rest: &self.body }
    }
}

/// See [`StartupMessage::parameters`]. After an `Err` there is nothing more.
#[derive(Clone, Debug)]
pub struct Parameters<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Parameters<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), InvalidLayout>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest == [0] {
            return None;
        }
        let whole = std::mem::take(&mut self.rest);
        let pair = c_string(whole)
            .filter(|(name, _)| !name.is_empty())
            .and_then(|(name, rest)| c_string(rest).map(|(value, rest)| (name, value, rest)))
            // Without a byte left there is no terminator.
            .filter(|(_, _, rest)| !rest.is_empty());
        let Some((name, value, rest)) = pair else {
            self.rest = &[0];
            return Some(Err(InvalidLayout));
        };
        self.rest = rest;
        Some(Ok((name, value)))
    }
}

fn c_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&b| b == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Offers = Offers { ssl: true, gss_enc: true };

    fn packet(code: u32, body: &[u8]) -> BytesMut {
        let len = u32::try_from(body.len() + 8).unwrap();
        BytesMut::from(&[&len.to_be_bytes()[..], &code.to_be_bytes(), body].concat()[..])
    }

    type Pair<'a> = (&'a [u8], &'a [u8]);

    fn pairs(body: &[u8]) -> Result<Vec<Pair<'_>>, InvalidLayout> {
        Parameters { rest: body }.collect()
    }

    #[test]
    fn requests_are_told_apart_by_their_code() {
        let cut = |mut input, offers| cut(&mut input, offers).unwrap().unwrap();
        assert_eq!(cut(packet(80_877_103, b""), ALL), StartupPacket::SslRequest);
        assert_eq!(cut(packet(80_877_104, b""), ALL), StartupPacket::GssEncRequest);
        let cancel = CancelRequest { pid: 7, key: vec![1, 2, 3, 4] };
        assert_eq!(cut(packet(80_877_102, &[0, 0, 0, 7, 1, 2, 3, 4]), ALL), StartupPacket::Cancel(cancel));
        let short = CancelRequest { pid: 0, key: vec![] };
        assert_eq!(cut(packet(80_877_102, &[0, 0]), ALL), StartupPacket::Cancel(short));
        let again = cut(packet(80_877_103, b""), Offers { ssl: false, gss_enc: true });
        assert!(matches!(again, StartupPacket::Startup(m) if m.version.to_string() == "1234.5679"));
    }

    #[test]
    fn lengths_are_8_to_10004() {
        for bad in [0, 7, 10_005, 0x4745_5420, 0x1603_0102_u32] {
            assert_eq!(missing(&bad.to_be_bytes()), Err(InvalidLength), "{bad}");
        }
        assert_eq!(missing(&8_u32.to_be_bytes()), Ok(4));
        assert_eq!(missing(&10_004_u32.to_be_bytes()), Ok(10_000));
        assert_eq!(missing(b""), Ok(8));
        assert_eq!(missing(&[0]), Ok(7));
    }

    #[test]
    fn parameters_end_with_the_packet() {
        assert_eq!(pairs(b"\0"), Ok(vec![]));
        assert_eq!(pairs(b"user\0a\0x\0\0\0"), Ok(vec![(&b"user"[..], &b"a"[..]), (b"x", b"")]));
        for bad in
            [&b""[..], b"user\0a\0", b"user\0a", b"user\0", b"user", b"user\0a\0\0\0", b"\0user\0a\0\0"]
        {
            assert_eq!(pairs(bad), Err(InvalidLayout), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), len in 0_u32..64) {
            let mut noise = BytesMut::from(&bytes[..]);
            let _ = cut(&mut noise, ALL);
            let mut framed = BytesMut::from(&[&len.to_be_bytes()[..], &bytes].concat()[..]);
            if let Ok(Some(StartupPacket::Startup(message))) = cut(&mut framed, ALL) {
                let _ = message.parameters().count();
            }
            let _ = pairs(&bytes);
        }
    }
}
