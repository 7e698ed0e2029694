//! What a disk with a volatile write cache holds, and what a power cut makes of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;

/// What a disk writes whole or not at all, bytes.
pub(crate) const SECTOR: usize = 512;
/// Blocks are shared between images in pieces of this, bytes.
const CHUNK: usize = 4096;

/// The content of a disk; cheap to clone. Sectors never written are zeros.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    chunks: Vec<Option<Arc<[u8; CHUNK]>>>,
}

impl Image {
    fn empty(size: u64) -> Image {
        let chunks = usize::try_from(size.div_ceil(CHUNK as u64)).expect("a disk that fits into memory");
        Image { chunks: vec![None; chunks] }
    }

    /// Writes it to a file, which takes no room where the disk was never written.
    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len((self.chunks.len() * CHUNK) as u64)?;
        let mut written =
            self.chunks.iter().enumerate().filter_map(|(number, chunk)| Some((number, chunk.as_ref()?)));
        written.try_for_each(|(number, chunk)| file.write_all_at(&chunk[..], (number * CHUNK) as u64))
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        for (chunk, within, piece) in pieces(offset, into.len()) {
            let into = &mut into[piece];
            match self.chunks.get(chunk).and_then(Option::as_ref) {
                Some(content) => into.copy_from_slice(&content[within..][..into.len()]),
                None => into.fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (chunk, within, piece) in pieces(offset, data.len()) {
            let Some(chunk) = self.chunks.get_mut(chunk) else { return };
            let content = Arc::make_mut(chunk.get_or_insert_with(|| Arc::new([0; CHUNK])));
            let data = &data[piece];
            content[within..][..data.len()].copy_from_slice(data);
        }
    }
}

/// The chunks of a range: number, where in the chunk, which part of the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % CHUNK as u64) as usize;
        let count = (CHUNK - within).min(len - done);
        let piece = done..done + count;
        done += count;
        (count > 0).then(|| (usize::try_from(at / CHUNK as u64).unwrap_or(usize::MAX), within, piece))
    })
}

/// A write that no flush has followed: nobody knows whether it survives.
#[derive(Debug)]
struct Write {
    offset: u64,
    data: Vec<u8>,
}

/// A disk with a write cache: what was written is read at once, and durable from the next flush on.
#[derive(Debug)]
pub(crate) struct Blocks {
    live: Image,
    durable: Image,
    /// In the order in which they came.
    cached: Vec<Write>,
}

/// What a power cut did to the writes in the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fate {
    /// Reached the disk whole.
    pub kept: usize,
    /// Some of their sectors did.
    pub torn: usize,
    /// Did not.
    pub lost: usize,
}

impl Blocks {
    /// A disk of `size` bytes, all zeros.
    pub(crate) fn empty(size: u64) -> Blocks {
        let image = Image::empty(size);
        Blocks { live: image.clone(), durable: image, cached: Vec::new() }
    }

    /// A disk that holds this durably.
    pub(crate) fn holding(image: Image) -> Blocks {
        Blocks { live: image.clone(), durable: image, cached: Vec::new() }
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        self.live.read(offset, into);
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.live.write(offset, data);
        self.cached.push(Write { offset, data: data.to_vec() });
    }

    /// Makes everything written so far durable.
    pub(crate) fn flush(&mut self) {
        let ranges = self.cached.drain(..);
        let chunks: BTreeSet<usize> = ranges
            .flat_map(|write| pieces(write.offset, write.data.len()).map(|(chunk, ..)| chunk))
            .collect();
        for chunk in chunks {
            if let Some(durable) = self.durable.chunks.get_mut(chunk) {
                durable.clone_from(&self.live.chunks[chunk]);
            }
        }
    }

    /// What is found after a power cut now: all that was flushed, and what chance has kept of the writes behind the last
    /// flush. They were on their way in any order, so any of them may be there without those before it.
    pub(crate) fn cut(&self, random: &mut Rng) -> (Image, Fate) {
        let (mut image, mut fate) = (self.durable.clone(), Fate::default());
        // Nothing, everything and all between are each of interest.
        let likely = [0.0, 0.1, 0.5, 0.9, 1.0][random.usize(..5)];
        let tearing = [0.0, 0.3][random.usize(..2)];
        for write in &self.cached {
            if random.f64() < tearing {
                fate.torn += 1;
                tear(write, random, &mut image);
            } else if random.f64() < likely {
                fate.kept += 1;
                image.write(write.offset, &write.data);
            } else {
                fate.lost += 1;
            }
        }
        (image, fate)
    }
}

/// The beginning of the write, or any of its sectors.
fn tear(write: &Write, random: &mut Rng, image: &mut Image) {
    let sectors = write.data.len().div_ceil(SECTOR);
    let beginning = random.bool().then(|| random.usize(..=sectors));
    for (number, sector) in write.data.chunks(SECTOR).enumerate() {
        if beginning.map_or_else(|| random.bool(), |end| number < end) {
            image.write(write.offset + (number * SECTOR) as u64, sector);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(image: &Image, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xff; len];
        image.read(offset, &mut bytes);
        bytes
    }

    #[test]
    fn what_is_written_is_read_across_chunks() {
        let mut blocks = Blocks::empty(1 << 20);
        let data: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        blocks.write(3584, &data);
        let mut read = vec![0xff; 11_024];
        blocks.read(3072, &mut read);
        assert!(read[..512].iter().all(|byte| *byte == 0), "never written");
        assert_eq!(&read[512..10_512], &data);
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_and_any_part_of_the_rest() {
        let mut blocks = Blocks::empty(1 << 20);
        blocks.write(0, &[1; 2 * SECTOR]);
        blocks.flush();
        blocks.write(0, &[2; 2 * SECTOR]);
        blocks.write(8192, &[3; 4 * SECTOR]);
        let mut random = Rng::with_seed(1);
        let (mut olds, mut news, mut torn) = (0, 0, 0);
        for _ in 0..200 {
            let (image, fate) = blocks.cut(&mut random);
            assert_eq!(fate.kept + fate.torn + fate.lost, 2);
            let sectors = content(&image, 0, 2 * SECTOR);
            let values: Vec<u8> = sectors.chunks(SECTOR).map(|sector| sector[0]).collect();
            assert!(sectors.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            assert!(values.iter().all(|value| [1, 2].contains(value)), "flushed once: {values:?}");
            olds += usize::from(values == [1, 1]);
            news += usize::from(values == [2, 2]);
            torn += usize::from(values[0] != values[1]);
        }
        assert!(olds > 20 && news > 20 && torn > 5, "{olds} lost, {news} kept, {torn} torn");
    }

    #[test]
    fn a_flush_makes_everything_before_it_durable() {
        let mut blocks = Blocks::empty(1 << 20);
        blocks.write(512, &[7; SECTOR]);
        blocks.write(100 * 4096, &[8; 3 * SECTOR]);
        blocks.flush();
        let (image, fate) = blocks.cut(&mut Rng::with_seed(2));
        assert_eq!(fate, Fate::default());
        assert_eq!(content(&image, 512, SECTOR), [7; SECTOR]);
        assert_eq!(content(&image, 100 * 4096, 3 * SECTOR), [8; 3 * SECTOR]);
        let again = Blocks::holding(image);
        let mut read = vec![0; SECTOR];
        again.read(512, &mut read);
        assert_eq!(read, [7; SECTOR]);
    }
}
