//! A file shown while it comes: a segment may have 1 GB, and little of it is in memory at a time.

use std::io::{self, BufReader, Read};
use std::sync::Arc;

use super::*;
use crate::archive::repo::codec::MAX_PLAIN;
use crate::archive::repo::sidecar::Summed;

/// What is done with a file while it comes: reads its content, from the first byte on whenever it is called. False if
/// nobody has to know any more whether that was what had been stored.
///
/// Runs where it may take its time.
pub type Look = Arc<dyn Fn(&mut dyn Read) -> bool + Send + Sync>;

/// Bytes looked at in one go.
const STEP: usize = 128 << 10;

impl Repository {
    /// Shows the content of a file to `look` while it comes, at most a segment of this size; false if it is certainly not
    /// there. What `look` has seen counts only if this says true: then it matches its checksum.
    ///
    /// Errors are those of [`read`](Self::read). `look` may be called again after it has come to an end.
    pub async fn show(&self, name: &FileName, size: u64, look: &Look) -> Result<bool, ReadError> {
        match self.show_once(name, size, look).await {
            // It may have been replaced between the look at its checksum and the look at itself.
            Err(ReadError::Damaged { .. }) => self.show_once(name, size, look).await,
            other => other,
        }
    }

    async fn show_once(&self, name: &FileName, size: u64, look: &Look) -> Result<bool, ReadError> {
        let sidecar = self.sidecar(name).await?;
        let (path, format) = match &sidecar {
            Some(sidecar) => {
                let format = Format::split(&sidecar.object).1;
                (self.layout.file(name, format), format)
            }
            None => match self.locate(name).await? {
                Some((path, format, _)) => (path, format),
                None => return Ok(false),
            },
        };
        let is_described = sidecar.is_some();
        let (codec, look) = (self.codec.clone(), look.clone());
        let unpack = move |stored: &mut dyn Read| unpacked(stored, &codec, format, sidecar.as_ref(), &*look);
        let most = Limit::most(size + limit::overhead(size));
        match self.storage.read_through(&path, most, unpack).await {
            Ok(Some(Ok(()))) => Ok(true),
            Ok(Some(Err(reason))) => Err(self.damaged(&path, reason)),
            Ok(None) if is_described => {
                Err(self.damaged(&path, "its checksum is there, it is not".to_owned()))
            }
            Ok(None) => Ok(false),
            Err(source) if source.kind == Trouble::TooLarge => Err(self.damaged(&path, source.reason)),
            Err(source) => Err(self.unreachable(source)),
        }
    }
}

/// Shows what was `stored` in this format, and compares it with its checksum; an error says what is wrong with it.
fn unpacked(
    stored: &mut dyn Read,
    codec: &Codec,
    format: Format,
    expected: Option<&Sidecar>,
    look: &dyn Fn(&mut dyn Read) -> bool,
) -> Result<(), String> {
    let mut stored = Summed::new(stored);
    let plain = match looked_at(&mut stored, codec, format, look) {
        Ok(None) => return Ok(()),
        Ok(Some(plain)) => Ok(plain),
        Err(error) => Err(error.to_string()),
    };
    let Some(expected) = expected else { return plain.map(drop) };
    io::copy(&mut stored, &mut io::sink()).map_err(|error| error.to_string())?;
    if stored.finish().0 != expected.sha256 {
        return Err("it does not match its checksum".to_owned());
    }
    match plain? == expected.plain_sha256 {
        true => Ok(()),
        false => Err("its content does not match its checksum".to_owned()),
    }
}

/// The digest of the content that was shown; `None` if nobody has to know it.
fn looked_at(
    stored: impl Read,
    codec: &Codec,
    format: Format,
    look: &dyn Fn(&mut dyn Read) -> bool,
) -> Result<Option<Sha256>, DecodeError> {
    let content = codec.reader(BufReader::with_capacity(STEP, stored), format)?;
    let mut content = Summed::new(Broken { from: content.take(MAX_PLAIN), error: None });
    if !look(&mut content) {
        return Ok(None);
    }
    let rest = io::copy(&mut content, &mut io::sink());
    rest.map_err(|error| DecodeError::Damaged(error.to_string()))?;
    Ok(Some(content.finish().0))
}

/// Once something could not be read, nothing can be: nobody takes what comes behind it.
struct Broken<R> {
    from: R,
    error: Option<String>,
}

impl<R: Read> Read for Broken<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = &self.error {
            return Err(io::Error::other(error.clone()));
        }
        let read = self.from.read(buffer);
        if let Err(error) = &read
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.error = Some(error.to_string());
        }
        read
    }
}
