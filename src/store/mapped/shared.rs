//! Tests of a segment that is written and read by several threads, on a simulated disk: its map is memory of the process's own
//! then, which an interpreter can look at (`make miri`).

use std::path::Path;
use std::sync::Arc;
use std::thread;

use walrelay_proto::{SegNo, SegSize, TimelineId, WalFileName};

use super::{Segment, WalWrite};
use crate::disk::sim::SimDisk;
use crate::disk::{Disk, Open};

/// Bytes that are written, in pieces that are no divisor of it.
const WRITTEN: u64 = 6000;
const PIECE: usize = 700;

fn segment() -> Segment {
    let size = SegSize::new(1 << 20).unwrap();
    let file = SimDisk::for_threads().open(Path::new("/segment"), Open::CreateEmpty).unwrap();
    file.allocate(size.bytes()).unwrap();
    let name = WalFileName::new(TimelineId::FIRST, SegNo::new(1));
    Segment::for_writer(file, name, size, 0, WalWrite::Pwrite).unwrap()
}

/// What belongs at this offset; never zero.
fn byte_at(offset: u64) -> u8 {
    (offset % 251 + 1) as u8
}

fn write_all(segment: &Segment) {
    let bytes: Vec<u8> = (0..WRITTEN).map(byte_at).collect();
    let mut at = 0;
    for piece in bytes.chunks(PIECE) {
        segment.write(at, piece).unwrap();
        at += piece.len() as u64;
        segment.publish(at);
    }
}

/// Reads what is published, as it comes, to its end.
fn read_all(segment: &Segment) {
    let mut seen = 0;
    while seen < WRITTEN {
        let published = segment.published();
        let bytes = segment.bytes(seen, (published - seen) as usize);
        assert!(bytes.iter().zip(seen..).all(|(&byte, at)| byte == byte_at(at)));
        let mut copy = vec![0; bytes.len()];
        segment.read(seen, &mut copy).unwrap();
        assert_eq!(copy, bytes);
        seen = published;
        thread::yield_now();
    }
}

#[test]
fn readers_find_what_is_published_while_more_is_written() {
    let segment = Arc::new(segment());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| read_all(&segment));
        }
        scope.spawn(|| write_all(&segment));
    });
    // A slice that somebody has stays good when the writer has let go of the file.
    let slice = segment.bytes(0, WRITTEN as usize);
    segment.sync().unwrap();
    segment.close();
    assert!(slice.iter().zip(0..).all(|(&byte, at)| byte == byte_at(at)));
}

#[test]
fn a_segment_that_is_opened_again_has_the_same_bytes() {
    let disk = SimDisk::for_threads();
    let (path, size) = (Path::new("/segment"), SegSize::new(1 << 20).unwrap());
    let name = WalFileName::new(TimelineId::FIRST, SegNo::new(1));
    let file = disk.open(path, Open::CreateEmpty).unwrap();
    file.allocate(size.bytes()).unwrap();
    let written = Segment::for_writer(file, name, size, 0, WalWrite::Pwrite).unwrap();
    write_all(&written);
    let found = Segment::open_on(&disk, path, name, size, WRITTEN).unwrap();
    drop(written);
    read_all(&found);
}
