//! The small text beside each object: what its content must hash to.
//!
//! ```text
//! # walrelay 1 plain-sha256=<64 digits> plain-size=<bytes> size=<bytes>
//! <64 digits>  000000010000000000000003.zst
//! ```
//!
//! The second line is `sha256sum`'s, for the object as it is stored, so `sha256sum -c` checks it where the
//! object is; the first, a comment for that tool, is about the content before compression and encryption. So
//! "same name, same content" is decided without reading the object.

use std::fmt;
use std::io::{self, Read, Write};

use sha2::Digest;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// The digest of `bytes`. Takes about a second per gigabyte: not for the runtime's workers.
    pub fn of(bytes: &[u8]) -> Sha256 {
        Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// The first 8 bytes, for names.
    pub fn beginning(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        [a, b, c, d, e, f, g, h]
    }

    /// The first 16 digits, for names.
    pub fn short(&self) -> String {
        format!("{:016x}", u64::from_be_bytes(self.beginning()))
    }

    /// Reads 64 lower-case digits.
    pub fn parse(text: &str) -> Option<Sha256> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let digits = text.bytes().map(digit).collect::<Option<Vec<u8>>>()?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        (digits.len() == 64).then(|| bytes.try_into().ok().map(Sha256)).flatten()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Passes on what is written, and knows its digest and size.
pub(crate) struct Summing<W> {
    out: W,
    sum: sha2::Sha256,
    size: u64,
}

impl<W: Write> Summing<W> {
    pub(crate) fn new(out: W) -> Summing<W> {
        Summing { out, sum: sha2::Sha256::new(), size: 0 }
    }

    pub(crate) fn finish(self) -> (Sha256, u64) {
        (Sha256(self.sum.finalize().into()), self.size)
    }
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.out.write(bytes)?;
        self.sum.update(&bytes[..taken]);
        self.size += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Passes on what is read, and knows its digest and size.
pub(crate) struct Summed<R> {
    from: R,
    sum: Summing<io::Sink>,
}

impl<R: Read> Summed<R> {
    pub(crate) fn new(from: R) -> Summed<R> {
        Summed { from, sum: Summing::new(io::sink()) }
    }

    pub(crate) fn finish(self) -> (Sha256, u64) {
        self.sum.finish()
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.sum.write_all(&buffer[..read])?;
        Ok(read)
    }
}

/// What is known of an object without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sidecar {
    /// The object's own name: the last part of its path.
    pub object: String,
    /// Digest of the object as it is stored.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
    /// Digest of the content before compression and encryption.
    pub plain_sha256: Sha256,
    /// Size of that content in bytes.
    pub plain_size: u64,
}

impl Sidecar {
    /// What describes `stored`, which holds `plain` with this digest and is called `object`.
    #[cfg(test)]
    pub(crate) fn describe(object: &str, stored: &[u8], plain: &[u8], plain_sha256: Sha256) -> Sidecar {
        let same = std::ptr::eq(stored, plain);
        Sidecar {
            object: object.to_owned(),
            sha256: if same { plain_sha256 } else { Sha256::of(stored) },
            size: stored.len() as u64,
            plain_sha256,
            plain_size: plain.len() as u64,
        }
    }

    /// The text.
    pub fn format(&self) -> String {
        let Sidecar { object, sha256, size, plain_sha256, plain_size } = self;
        format!(
            "# walrelay 1 plain-sha256={plain_sha256} plain-size={plain_size} size={size}\n{sha256}  {object}\n"
        )
    }

    /// Reads the text; `None` if it is anything else. Fields that are not known are passed over.
    pub fn parse(bytes: &[u8]) -> Option<Sidecar> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines();
        let facts = lines.next()?.strip_prefix("# walrelay 1 ")?;
        let fact = |name: &str| {
            facts
                .split(' ')
                .find_map(|fact| fact.split_once('=').filter(|(key, _)| *key == name))
                .map(|it| it.1)
        };
        let (sum, object) = lines.next()?.split_once("  ")?;
        let named = !object.is_empty() && !object.contains('/') && lines.next().is_none();
        let sidecar = Sidecar {
            object: object.to_owned(),
            sha256: Sha256::parse(sum)?,
            size: fact("size")?.parse().ok()?,
            plain_sha256: Sha256::parse(fact("plain-sha256")?)?,
            plain_size: fact("plain-size")?.parse().ok()?,
        };
        named.then_some(sidecar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn describe(object: &str, stored: &[u8], plain: &[u8]) -> Sidecar {
        Sidecar::describe(object, stored, plain, Sha256::of(plain))
    }

    #[test]
    fn the_text_is_sha256sums() {
        let text = describe("a.zst", b"abc", b"plain").format();
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(text.lines().nth(1), Some(format!("{sum}  a.zst").as_str()));
        assert!(text.starts_with("# walrelay 1 plain-sha256="));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(object in "[0-9A-Za-z.-]{1,40}", stored: Vec<u8>, plain: Vec<u8>) {
            let sidecar = describe(&object, &stored, &plain);
            prop_assert_eq!(Sidecar::parse(sidecar.format().as_bytes()), Some(sidecar));
        }
    }

    #[test]
    fn fuzz_sidecar() {
        bolero::check!().for_each(|bytes: &[u8]| {
            if let Some(sidecar) = Sidecar::parse(bytes) {
                assert_eq!(Sidecar::parse(sidecar.format().as_bytes()), Some(sidecar));
            }
        });
    }

    #[test]
    fn half_a_text_is_no_sidecar() {
        let text = describe("a", b"abc", b"abc").format();
        for end in 0..text.len() - 2 {
            assert_eq!(Sidecar::parse(&text.as_bytes()[..end]).filter(|found| found.object == "a"), None);
        }
    }
}
