//! What is stored for what is archived: compression, then encryption; both optional, both of formats that
//! common tools undo (`zstd`, `lz4`, `gzip`; `age`).

use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::x25519::{Identity, Recipient};
use bytes::Bytes;
use memmap2::MmapMut;

use super::content::Content;
use super::sidecar::Sha256;
use crate::objects::buffer;
use crate::objects::limit::{self, HEADER};
use crate::permissions::{Distrust, check_shared_secret, read_rules};

/// No content is longer than the largest segment.
pub(crate) const MAX_PLAIN: u64 = 1 << 30;

/// How a target compresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 frames.
    Lz4,
    /// Zstandard, level 1 to 22.
    Zstd(i32),
    /// Gzip, level 1 to 9.
    Gzip(u32),
}

impl Compression {
    /// The kind, without the level.
    pub fn kind(self) -> Packing {
        match self {
            Compression::None => Packing::None,
            Compression::Lz4 => Packing::Lz4,
            Compression::Zstd(_) => Packing::Zstd,
            Compression::Gzip(_) => Packing::Gzip,
        }
    }
}

/// A compression's format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Packing {
    /// Not compressed.
    None,
    /// LZ4 frames.
    Lz4,
    /// Zstandard frames.
    Zstd,
    /// Gzip members.
    Gzip,
}

impl Packing {
    const ALL: [Packing; 4] = [Packing::None, Packing::Zstd, Packing::Lz4, Packing::Gzip];

    fn suffix(self) -> &'static str {
        match self {
            Packing::None => "",
            Packing::Lz4 => ".lz4",
            Packing::Zstd => ".zst",
            Packing::Gzip => ".gz",
        }
    }

    /// What a file's first bytes say; WAL, histories and labels begin with none of these.
    fn detect(bytes: &[u8]) -> Packing {
        match bytes {
            [0x28, 0xB5, 0x2F, 0xFD, ..] => Packing::Zstd,
            [0x04, 0x22, 0x4D, 0x18, ..] => Packing::Lz4,
            [0x1F, 0x8B, 0x08, ..] => Packing::Gzip,
            _ => Packing::None,
        }
    }
}

/// How an object is stored, as its name says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Format {
    /// Its compression.
    pub packing: Packing,
    /// Whether it is encrypted, outermost.
    pub encrypted: bool,
}

impl Format {
    /// Neither compressed nor encrypted.
    pub const PLAIN: Format = Format { packing: Packing::None, encrypted: false };

    /// All there are.
    pub fn all() -> impl Iterator<Item = Format> {
        let with = |encrypted| move |packing| Format { packing, encrypted };
        Packing::ALL.into_iter().map(with(false)).chain(Packing::ALL.into_iter().map(with(true)))
    }

    /// What it adds to a name: `.zst`, `.lz4`, `.gz`, then `.age`.
    pub fn suffix(self) -> String {
        let age = if self.encrypted { ".age" } else { "" };
        format!("{}{age}", self.packing.suffix())
    }

    /// Splits a name from its suffix.
    pub fn split(name: &str) -> (&str, Format) {
        let (rest, encrypted) = name.strip_suffix(".age").map_or((name, false), |rest| (rest, true));
        let known = [Packing::Zstd, Packing::Lz4, Packing::Gzip];
        let found = known.into_iter().find_map(|it| rest.strip_suffix(it.suffix()).map(|stem| (stem, it)));
        let (stem, packing) = found.unwrap_or((rest, Packing::None));
        (stem, Format { packing, encrypted })
    }
}

/// A key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read, or others could have read or changed it.
    #[error("key file \"{}\" {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Distrust,
    },
    /// A line is not a key.
    #[error(
        "key file \"{}\", line {line}: expected AGE-SECRET-KEY-1... or age1..., as age-keygen writes them", path.display()
    )]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// It holds no key.
    #[error("key file \"{}\" holds no key; make one with age-keygen", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Keys of a target: whom to encrypt for, and with what to decrypt.
#[derive(Clone, Default)]
pub struct Keys {
    recipients: Vec<Recipient>,
    identities: Vec<Identity>,
    /// Of the file's text.
    digest: Option<Sha256>,
}

impl Keys {
    /// Reads a file of age identities (`AGE-SECRET-KEY-1...`) or recipients (`age1...`). With recipients
    /// alone, what is archived cannot be read back with this file.
    pub fn load(path: &Path) -> Result<Keys, KeyError> {
        let fail = |source| KeyError::File { path: path.to_owned(), source };
        let text = read_rules(path).map_err(fail)?;
        let mut keys = Keys { digest: Some(Sha256::of(text.as_bytes())), ..Keys::default() };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Ok(identity) = Identity::from_str(line) {
                keys.recipients.push(identity.to_public());
                keys.identities.push(identity);
            } else if let Ok(recipient) = Recipient::from_str(line) {
                keys.recipients.push(recipient);
            } else {
                return Err(KeyError::Syntax { path: path.to_owned(), line: number + 1 });
            }
        }
        if !keys.identities.is_empty() {
            check_shared_secret(path).map_err(fail)?;
        }
        match keys.recipients.is_empty() {
            true => Err(KeyError::Empty { path: path.to_owned() }),
            false => Ok(keys),
        }
    }
}

impl Keys {
    /// Whether both were read from the same text.
    pub(crate) fn are(&self, other: &Keys) -> bool {
        self.digest.is_some() && self.digest == other.digest
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({} recipients, {} identities)", self.recipients.len(), self.identities.len())
    }
}

/// Stored bytes are not what they should be, or cannot be read with the keys at hand.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There is no key that opens it.
    #[error("it is encrypted, and no key at hand opens it: {0}")]
    Key(String),
    /// Decompression or decryption failed.
    #[error("its content is damaged: {0}")]
    Damaged(String),
    /// It is not what its checksum says.
    #[error("{0}")]
    Mismatch(String),
    /// Nothing is wrong with it, but the system has no room for it now.
    #[error("there is no memory for its content: {0}")]
    Memory(io::Error),
}

/// Turns plain bytes into stored ones and back. Everything here takes processor time or more.
#[derive(Clone, Debug, Default)]
pub struct Codec {
    compression: Compression,
    keys: Option<Keys>,
    /// Names carry no suffix for the compression; it is found by content.
    nameless: bool,
}

impl Codec {
    /// Compresses so, and encrypts if there are keys. With `nameless`, the compression is not in the name.
    pub fn new(compression: Compression, keys: Option<Keys>, nameless: bool) -> Codec {
        Codec { compression, keys, nameless }
    }

    /// The keys that it encrypts with.
    pub(crate) fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }

    /// How new objects are stored, as far as their names show it.
    pub fn format(&self) -> Format {
        let packing = if self.nameless { Packing::None } else { self.compression.kind() };
        Format { packing, encrypted: self.keys.is_some() }
    }

    /// Whether what is stored is what is archived, byte for byte.
    pub fn stores_plain(&self) -> bool {
        self.compression == Compression::None && self.keys.is_none()
    }

    /// Whether nobody here can read what it writes: there are recipients only.
    pub fn only_writes(&self) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.identities.is_empty())
    }

    /// Writes what to store for `plain` to `out`, as it goes: little of it is in memory at a time.
    pub fn encode_to<W: Write>(&self, plain: &Content, out: W) -> io::Result<W> {
        let Some(keys) = &self.keys else { return self.pack(plain, out) };
        let recipients = keys.recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        self.pack(plain, encryptor.wrap_output(out)?)?.finish()
    }

    fn pack<W: Write>(&self, plain: &Content, mut out: W) -> io::Result<W> {
        match self.compression {
            Compression::None => {
                plain.write_to(&mut out)?;
                Ok(out)
            }
            Compression::Lz4 => {
                // Else they are of 4 MB, and so is the memory for each that is on its way, here and when it is read.
                let size = lz4_flex::frame::BlockSize::Max256KB;
                let info = lz4_flex::frame::FrameInfo::new().block_size(size).content_checksum(true);
                let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, out);
                plain.write_to(&mut encoder)?;
                encoder.finish().map_err(io::Error::other)
            }
            Compression::Zstd(level) => {
                let mut encoder = zstd::Encoder::new(out, level)?;
                encoder.include_checksum(true)?;
                // The window need not be larger, here and when it is read.
                encoder.set_pledged_src_size(Some(plain.len()))?;
                plain.write_to(&mut encoder)?;
                encoder.finish()
            }
            Compression::Gzip(level) => {
                let level = flate2::Compression::new(level);
                let mut encoder = flate2::write::GzEncoder::new(out, level);
                plain.write_to(&mut encoder)?;
                encoder.finish()
            }
        }
    }

    /// What to store for `plain`; the same bytes, not copied, if it is stored as it is.
    pub fn encode(&self, plain: &Bytes) -> io::Result<Bytes> {
        match self.stores_plain() {
            true => Ok(plain.clone()),
            false => self.encode_to(&plain.clone().into(), Vec::new()).map(Bytes::from),
        }
    }

    /// The plain bytes of an object that was stored in this format: a segment's, up to the size that its first page
    /// says, or up to 16 MB of anything else.
    pub fn decode(&self, stored: Bytes, format: Format) -> Result<Bytes, DecodeError> {
        self.decode_up_to(None, stored, format)
    }

    /// The same for something that may be so long, if that is known.
    pub(crate) fn decode_up_to(
        &self,
        most: Option<u64>,
        stored: Bytes,
        format: Format,
    ) -> Result<Bytes, DecodeError> {
        if !format.encrypted && self.packing(format, &stored) == Packing::None {
            return Ok(stored);
        }
        limited(self.reader(&stored[..], format)?, most)
    }

    /// The first bytes of what was stored in this format, from the first bytes that are stored; `None` if they are not
    /// in there.
    pub(crate) fn header(&self, beginning: &[u8], format: Format) -> Option<Vec<u8>> {
        let mut header = vec![0; HEADER];
        self.reader(beginning, format).ok()?.read_exact(&mut header).ok()?;
        Some(header)
    }

    fn packing(&self, format: Format, packed: &[u8]) -> Packing {
        match self.nameless && format.packing == Packing::None {
            true => Packing::detect(packed),
            false => format.packing,
        }
    }

    /// What was stored in this format, unpacked as it is read.
    pub(crate) fn reader<'a>(
        &self,
        stored: impl BufRead + 'a,
        format: Format,
    ) -> Result<Box<dyn Read + 'a>, DecodeError> {
        let mut packed: Box<dyn Read + 'a> = match (format.encrypted, &self.keys) {
            (false, _) => Box::new(stored),
            (true, Some(keys)) => decrypt(keys, stored)?,
            (true, None) => return Err(DecodeError::Key("no key file is given".to_owned())),
        };
        let mut first = Vec::new();
        packed.by_ref().take(4).read_to_end(&mut first).map_err(damaged)?;
        let packing = self.packing(format, &first);
        let packed = io::Cursor::new(first).chain(packed);
        Ok(match packing {
            Packing::None => Box::new(packed),
            Packing::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
            Packing::Zstd => Box::new(zstd::Decoder::new(packed).map_err(damaged)?),
            Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
        })
    }
}

fn damaged(error: io::Error) -> DecodeError {
    DecodeError::Damaged(error.to_string())
}

fn limited(mut from: impl Read, most: Option<u64>) -> Result<Bytes, DecodeError> {
    let mut beginning = Vec::new();
    from.by_ref().take(HEADER as u64).read_to_end(&mut beginning).map_err(damaged)?;
    let says = if most.is_some() { "its name" } else { "its first page" };
    let most = most.or_else(|| limit::segment_size(&beginning)).unwrap_or(limit::UNSEEN).min(MAX_PLAIN);
    let most = most.max(beginning.len() as u64);
    // In pages of its own, which go back to the system as soon as it is let go; an allocator keeps what is that large.
    let mut plain =
        MmapMut::map_anon(usize::try_from(most).unwrap_or(usize::MAX)).map_err(DecodeError::Memory)?;
    plain[..beginning.len()].copy_from_slice(&beginning);
    let len = beginning.len() + buffer::fill(&mut from, &mut plain[beginning.len()..]).map_err(damaged)?;
    match from.take(1).read_to_end(&mut Vec::new()).map_err(damaged)? {
        0 => Ok(Bytes::from_owner(plain).slice(..len)),
        _ => Err(DecodeError::Damaged(format!("it is longer than {says} says"))),
    }
}

fn decrypt<'a>(keys: &Keys, stored: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>, DecodeError> {
    if keys.identities.is_empty() {
        return Err(DecodeError::Key("the key file holds recipients only".to_owned()));
    }
    let fail = |error: age::DecryptError| match error {
        age::DecryptError::NoMatchingKeys => DecodeError::Key(error.to_string()),
        other => DecodeError::Damaged(other.to_string()),
    };
    let decryptor = age::Decryptor::new_buffered(stored).map_err(fail)?;
    let identities = keys.identities.iter().map(|identity| identity as &dyn age::Identity);
    Ok(Box::new(decryptor.decrypt(identities).map_err(fail)?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use proptest::prelude::*;
    use rustix::process::Rlimit;

    fn codecs() -> Vec<Codec> {
        let identity = Identity::generate();
        let keys = Keys { recipients: vec![identity.to_public()], identities: vec![identity], digest: None };
        let compressions = [Compression::None, Compression::Lz4, Compression::Zstd(3), Compression::Gzip(6)];
        let with = |keys: Option<Keys>| {
            compressions.into_iter().map(move |one| Codec::new(one, keys.clone(), false))
        };
        with(None).chain(with(Some(keys))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_stored_is_read_back(plain in prop::collection::vec(0u8..4, 0..20_000)) {
            for codec in codecs() {
                let plain = Bytes::from(plain.clone());
                let stored = codec.encode(&plain).unwrap();
                prop_assert_eq!(codec.decode(stored, codec.format()).unwrap(), plain);
            }
        }
    }

    /// In a process of its own, which may have little memory.
    #[test]
    fn where_there_is_no_memory_nothing_is_damaged() {
        const ALONE: &str = "WALRELAY_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let this = module_path!().split_once("::").expect("it is in a module").1;
            let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
            alone.args(["--exact", &format!("{this}::where_there_is_no_memory_nothing_is_damaged")]);
            let ended = alone.env(ALONE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&ended.stdout);
            assert!(ended.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let codec = Codec::new(Compression::Zstd(3), None, false);
        let stored = codec.encode(&Bytes::from(vec![1; 100_000])).unwrap();
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
        let limit = Some(pages * 4096 + MAX_PLAIN / 4);
        rustix::process::setrlimit(rustix::process::Resource::As, Rlimit { current: limit, maximum: limit })
            .unwrap();
        let decoded = codec.decode_up_to(Some(MAX_PLAIN), stored, codec.format());
        assert!(matches!(decoded, Err(DecodeError::Memory(_))), "{decoded:?}");
    }

    #[test]
    fn a_changed_byte_shows() {
        // Nothing that repeats: a wrong distance back would find the same bytes.
        let plain: Bytes = (0u32..10_000).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for codec in codecs().into_iter().filter(|codec| codec.format() != Format::PLAIN) {
            let stored = codec.encode(&plain).unwrap();
            let at = stored.len() * 2 / 3;
            let mut changed = stored.to_vec();
            changed[at] ^= 0x10;
            let read = codec.decode(changed.into(), codec.format());
            assert!(read.is_err(), "{:?}", codec.format());
            let cut = stored.slice(..stored.len() - 1);
            // The last bytes of LZ4's frame are its end mark and checksum.
            assert!(codec.decode(cut, codec.format()).is_err(), "{:?}", codec.format());
        }
    }

    #[test]
    fn what_unpacks_to_more_than_a_segment_is_refused_before_it_is_in_memory() {
        // 1 GB of zeros in some kilobytes.
        let mut bomb = zstd::Encoder::new(Vec::new(), 3).unwrap();
        (0..1024).for_each(|_| bomb.write_all(&[0; 1 << 20]).unwrap());
        let bomb = Bytes::from(bomb.finish().unwrap());
        let codec = Codec::default();
        let format = Format { packing: Packing::Zstd, encrypted: false };
        let error = codec.decode(bomb.clone(), format).unwrap_err();
        assert!(error.to_string().contains("longer than its first page says"), "{error}");
        assert_eq!(codec.header(&bomb, format), Some(vec![0; HEADER]));
        assert_eq!(codec.header(&bomb[..8], format), None);
    }

    #[test]
    fn suffixes_name_the_format() {
        for format in Format::all() {
            let name = format!("000000010000000000000001{}", format.suffix());
            assert_eq!(Format::split(&name), ("000000010000000000000001", format));
        }
        assert_eq!(Format::all().count(), 8);
    }

    #[test]
    fn compression_without_a_suffix_is_found_by_content() {
        let plain = Bytes::from_static(&[0x18, 0xD1, 5, 0, 1, 0, 0, 0]);
        for codec in codecs().into_iter().filter(|codec| codec.keys.is_none()) {
            let nameless = Codec { nameless: true, ..codec };
            assert_eq!(nameless.format(), Format::PLAIN);
            let stored = nameless.encode(&plain).unwrap();
            assert_eq!(nameless.decode(stored, Format::PLAIN).unwrap(), plain);
        }
    }

    #[test]
    fn key_files_are_ages() {
        use age::secrecy::ExposeSecret;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let identity = Identity::generate();
        let secret = identity.to_string().expose_secret().to_owned();
        fs::write(&path, format!("# created: today\n\n{secret}\n")).unwrap();
        let set =
            |mode| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        set(0o644);
        let error = Keys::load(&path).unwrap_err().to_string();
        assert!(error.contains("holds secrets and is open to others"), "{error}");
        set(0o640);
        let both = Codec::new(Compression::Lz4, Some(Keys::load(&path).unwrap()), false);
        fs::write(&path, identity.to_public().to_string()).unwrap();
        set(0o644);
        let only_write = Codec::new(Compression::Lz4, Some(Keys::load(&path).unwrap()), false);
        let plain = Bytes::from_static(b"WAL");
        let stored = only_write.encode(&plain).unwrap();
        assert!(stored.starts_with(b"age-encryption.org/v1"));
        assert_eq!(both.decode(stored.clone(), both.format()).unwrap(), plain);
        assert!(matches!(only_write.decode(stored, both.format()), Err(DecodeError::Key(_))));
        fs::write(&path, "secret\n").unwrap();
        assert!(matches!(Keys::load(&path), Err(KeyError::Syntax { line: 1, .. })));
        fs::write(&path, "\n").unwrap();
        assert!(matches!(Keys::load(&path), Err(KeyError::Empty { .. })));
    }

    #[test]
    fn fuzz_object() {
        let codecs = codecs();
        bolero::check!().for_each(|bytes: &[u8]| {
            for codec in &codecs {
                let _ = codec.decode(Bytes::copy_from_slice(bytes), codec.format());
            }
        });
    }
}
