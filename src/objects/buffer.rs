//! Whole files in memory, and files that are looked at piece by piece.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

use bytes::Bytes;
use memmap2::{Advice, MmapMut};

use super::limit::Limit;
use crate::pulse::Pulse;

/// From this size on, huge pages are asked for: to get and give back 16 MB in small ones takes as long as to check
/// them.
const LARGE: usize = 1 << 20;
/// Bytes read at a time, each of which is a sign of life.
const STEP: usize = 128 << 10;

/// Reads an open file from its beginning to its end; each piece of it makes `pulse` beat.
///
/// # Errors
/// [`ErrorKind::FileTooLarge`] if it is larger than it may be; then next to nothing was read.
pub(crate) fn read_to_end(mut file: File, limit: &Limit, pulse: &Pulse) -> io::Result<Bytes> {
    let size = admitted(&mut file, limit, pulse)?;
    let size = usize::try_from(size).map_err(io::Error::other)?;
    if size < LARGE {
        let mut content = Vec::new();
        // It may grow while it is read.
        file.take(LARGE as u64).read_to_end(&mut content)?;
        return Ok(content.into());
    }
    let mut memory = MmapMut::map_anon(size)?;
    // The kernel may have none.
    let _ = memory.advise(Advice::HugePage);
    let filled = fill_heard(&mut file, &mut memory, pulse)?;
    Ok(Bytes::from_owner(memory).slice(..filled))
}

/// Shows an open file to `work`, from its beginning, little of it at a time; each piece makes `pulse` beat.
///
/// # Errors
/// As [`read_to_end`], and of reading, whatever `work` made of that.
pub(crate) fn read_through<T>(
    mut file: File,
    limit: &Limit,
    pulse: &Pulse,
    work: impl FnOnce(&mut dyn Read) -> T,
) -> io::Result<T> {
    admitted(&mut file, limit, pulse)?;
    let mut heard = Heard { file, pulse, error: None };
    let done = work(&mut heard);
    heard.error.map_or(Ok(done), Err)
}

/// A file whose pieces are signs of life, and that remembers that it could not be read.
struct Heard<'a> {
    file: File,
    pulse: &'a Pulse,
    error: Option<io::Error>,
}

impl Read for Heard<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(STEP);
        match self.file.read(&mut buffer[..most]) {
            Ok(read) => {
                self.pulse.beat();
                Ok(read)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.error = Some(error);
                Err(kind.into())
            }
        }
    }
}

/// The size of a file that may be read; then it is at its beginning.
fn admitted(file: &mut File, limit: &Limit, pulse: &Pulse) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let refused = |reason: String| io::Error::new(ErrorKind::FileTooLarge, reason);
    if limit.must_look(size).map_err(refused)? {
        // As with all of it: on a slow line each piece is a sign of life.
        let mut beginning = vec![0; limit.peek];
        let filled = fill_heard(file, &mut beginning, pulse)?;
        beginning.truncate(filled);
        limit.judge(&beginning, size).map_err(refused)?;
        file.seek(SeekFrom::Start(0))?;
    }
    Ok(size)
}

/// Fills the memory as far as there is something; how much there was.
pub(crate) fn fill(from: &mut (impl Read + ?Sized), memory: &mut [u8]) -> io::Result<usize> {
    fill_with(from, memory, || ())
}

/// The same, and each piece is a sign of life.
fn fill_heard(file: &mut impl Read, memory: &mut [u8], pulse: &Pulse) -> io::Result<usize> {
    fill_with(file, memory, || pulse.beat())
}

fn fill_with(from: &mut (impl Read + ?Sized), memory: &mut [u8], heard: impl Fn()) -> io::Result<usize> {
    let mut filled = 0;
    while filled < memory.len() {
        let end = memory.len().min(filled + STEP);
        match from.read(&mut memory[filled..end]) {
            Ok(0) => break,
            Ok(read) => {
                filled += read;
                heard();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn small_and_large_files_are_read_whole() {
        for size in [0, 1, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE + 5] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            file.write_all(&content).unwrap();
            let read =
                read_to_end(File::open(file.path()).unwrap(), &Limit::segment(), &Pulse::default()).unwrap();
            assert!(read == content, "{size}");
        }
    }

    /// Gives little at a time, and notes whether it was heard since.
    struct Pieces<'a> {
        pulse: &'a Pulse,
        heard: std::time::Instant,
        left: usize,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let now = self.pulse.last();
            assert!(now > self.heard || self.left == 3 * STEP, "nobody has heard of what came");
            self.heard = now;
            // A sign of life has a time, to the microsecond.
            while now.elapsed() < std::time::Duration::from_micros(10) {
                std::hint::spin_loop();
            }
            let given = buffer.len().min(self.left);
            assert!(given <= STEP, "{given}");
            self.left -= given;
            Ok(given)
        }
    }

    #[test]
    fn each_piece_is_a_sign_of_life() {
        let pulse = Pulse::default();
        let mut slow = Pieces { pulse: &pulse, heard: pulse.last(), left: 3 * STEP };
        assert_eq!(fill_heard(&mut slow, &mut vec![0; 4 * STEP], &pulse).unwrap(), 3 * STEP);
    }

    #[test]
    fn what_is_larger_than_it_should_be_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Sparse: nobody has this much memory to spare.
        file.as_file().set_len(1 << 40).unwrap();
        for limit in [Limit::most(4096), Limit::segment(), Limit::packed_segment(|_| None)] {
            let file = File::open(file.path()).unwrap();
            let error = read_to_end(file, &limit, &Pulse::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FileTooLarge, "{limit:?}");
            assert!(error.to_string().contains("1099511627776 bytes long"), "{error}");
        }
    }
}
