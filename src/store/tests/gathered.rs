//! Small pieces that are written together.

use super::*;
use crate::disk::sim::{OperationKind, SimDisk};

struct Small {
    disk: SimDisk,
    it: Stepped,
    wal: WalGenerator,
}

impl Small {
    /// Its first segment is there, with one record.
    fn new(len: usize) -> Small {
        let disk = SimDisk::new();
        let config = config(Path::new("/relay"), WalWrite::Pwrite);
        let mut it = Store::open_on(Arc::new(disk.clone()), config).unwrap();
        it.store.attach(identity(), UpstreamParameters::default()).unwrap();
        it.writer.begin(identity(), TimelineHistory::first(), START);
        let mut wal = generator(73);
        wal.fill(len);
        let mut small = Small { disk, it, wal };
        small.append(0, 1000, 1000).unwrap();
        small.it.writer.commit();
        while small.it.flushing.step() {}
        small
    }

    /// Takes bytes in pieces, up to the first that is refused.
    fn append(&mut self, from: usize, to: usize, piece: usize) -> Result<(), AppendError> {
        for at in (from..to).step_by(piece) {
            let bytes = &self.wal.bytes()[at..to.min(at + piece)];
            self.it.writer.append(START.advance(at as u64), bytes)?;
        }
        Ok(())
    }

    fn writes(&self) -> usize {
        self.disk.trace().iter().filter(|done| done.kind == OperationKind::Write).count()
    }

    fn end(&self) -> Lsn {
        *self.wal.record_ends().last().unwrap()
    }

    /// All of it is there, and after a power cut, too.
    fn check(mut self) {
        self.it.writer.commit();
        while self.it.flushing.step() {}
        let (end, bytes) = (self.end(), self.wal.bytes());
        let all = bytes[..end.since(START) as usize].to_vec();
        assert!(read_back(&self.it.store, TimelineId::FIRST, end) == all);
        let config = config(Path::new("/relay"), WalWrite::Pwrite);
        let again = Store::open_on(Arc::new(self.disk.crash(5)), config).unwrap();
        assert_eq!(again.store.tip().unwrap().flush_lsn, end);
        assert!(read_back(&again.store, TimelineId::FIRST, end) == all);
    }
}

#[test]
fn many_small_pieces_take_few_writes_also_where_segments_end() {
    let mut small = Small::new(2_500_000);
    let len = small.wal.bytes().len();
    small.disk.start_trace();
    small.append(1000, len, 512).unwrap();
    let (writes, pieces) = (small.writes(), len / 512);
    assert!(writes * 100 < pieces, "{writes} writes for {pieces} pieces");
    let tip = small.it.store.tip().unwrap();
    assert!(tip.write_lsn < START.advance(1001), "nothing is shown before a commit");
    small.check();
}

#[test]
fn a_commit_writes_what_was_gathered_before_it_is_shown() {
    let mut small = Small::new(100_000);
    let len = small.wal.bytes().len();
    for at in (1000..len).step_by(5003) {
        small.append(at, len.min(at + 5003), 100).unwrap();
        small.it.writer.commit();
        let written = small.it.store.tip().unwrap().write_lsn;
        let expected = &small.wal.bytes()[..written.since(START) as usize];
        assert!(read_back(&small.it.store, TimelineId::FIRST, written) == expected);
    }
    small.check();
}

#[test]
fn pieces_of_every_size_come_out_in_their_order() {
    let mut small = Small::new(1_500_000);
    let (mut at, len) = (1000, small.wal.bytes().len());
    for piece in [100, 20_000, 7, 16_383, 16_384, 3, 300_000, 500].into_iter().cycle() {
        small.append(at, len.min(at + piece), piece).unwrap();
        at += piece;
        if at >= len {
            break;
        }
    }
    small.check();
}

/// Who commits is told at once, and not when more comes.
#[test]
fn a_commit_that_could_not_write_says_so() {
    let mut small = Small::new(100_000);
    small.append(1000, 3000, 500).unwrap();
    small.disk.fail_at(small.disk.operations() + 1, libc::EIO);
    small.it.writer.commit();
    assert!(matches!(small.it.writer.check_commit(), Err(AppendError::Disk { .. })));
    small.it.writer.check_commit().unwrap();
    let from = small.it.writer.position().unwrap().lsn.since(START) as usize;
    assert!(from <= 1000, "it comes again");
    let all = small.wal.bytes().len();
    small.append(from, all, 700).unwrap();
    small.check();
}

#[test]
fn what_could_not_be_written_is_refused_and_comes_again() {
    let mut small = Small::new(300_000);
    let len = small.wal.bytes().len();
    let published = small.it.store.tip().unwrap().write_lsn;
    small.append(1000, 41_000, 500).unwrap();
    small.disk.fail_at(small.disk.operations() + 1, libc::EIO);
    small.it.writer.commit();
    assert_eq!(small.it.store.tip().unwrap().write_lsn, published, "nothing is shown that is not there");
    let error = small.append(41_000, 42_000, 500).unwrap_err();
    assert!(matches!(error, AppendError::Disk { action: "write", .. }), "{error}");
    small.it.writer.rewind();
    let again = small.it.writer.position().unwrap().lsn.since(START) as usize;
    assert!(again <= 1000);
    // As it fills up.
    small.append(again, 50_000, 500).unwrap();
    small.disk.fail_at(small.disk.operations() + 1, libc::ENOSPC);
    let error = small.append(50_000, len, 500).unwrap_err();
    assert!(matches!(error, AppendError::Disk { action: "write", .. }), "{error}");
    small.it.writer.rewind();
    let again = small.it.writer.position().unwrap().lsn.since(START) as usize;
    small.append(again, len, 500).unwrap();
    small.check();
}

#[test]
fn a_bad_record_behind_small_good_ones_leaves_those() {
    let mut small = Small::new(200_000);
    let len = small.wal.bytes().len();
    let good: Vec<u8> = small.wal.bytes().to_vec();
    let mut bad = good.clone();
    bad[60_000] ^= 1;
    let mut refused = None;
    for at in (1000..len).step_by(300) {
        let piece = &bad[at..len.min(at + 300)];
        if let Err(error) = small.it.writer.append(START.advance(at as u64), piece) {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(AppendError::Bad(_))), "{refused:?}");
    small.it.writer.commit();
    let shown = small.it.store.tip().unwrap().write_lsn.since(START) as usize;
    assert!((1001..=60_000).contains(&shown), "{shown}");
    small.it.writer.rewind();
    let again = small.it.writer.position().unwrap().lsn.since(START) as usize;
    assert_eq!(again, shown);
    small.append(again, len, 300).unwrap();
    small.check();
}
