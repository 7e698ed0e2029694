//! Whole files in memory.

use std::fs::File;
use std::io::{self, ErrorKind, Read};

use bytes::Bytes;
use memmap2::{Advice, MmapMut};

/// From this size on, huge pages are asked for: to get and give back 16 MB in small ones takes as long as to check
/// them.
const LARGE: usize = 1 << 20;

/// Reads an open file from where it stands to its end.
pub(super) fn read_to_end(mut file: File) -> io::Result<Bytes> {
    let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if size < LARGE {
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        return Ok(content.into());
    }
    let mut memory = MmapMut::map_anon(size)?;
    // The kernel may have none.
    let _ = memory.advise(Advice::HugePage);
    let filled = fill(&mut file, &mut memory)?;
    Ok(Bytes::from_owner(memory).slice(..filled))
}

/// How much there was.
fn fill(file: &mut impl Read, memory: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < memory.len() {
        match file.read(&mut memory[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
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
            let read = read_to_end(File::open(file.path()).unwrap()).unwrap();
            assert!(read == content, "{size}");
        }
    }
}
