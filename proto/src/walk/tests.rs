use super::*;
use crate::generate::WalGenerator;

const START: Lsn = Lsn::new(3 << 20);
const PAGE: usize = 8192;
const SEGMENT: usize = 1 << 20;

fn id() -> WalIdentity {
    WalIdentity { system_id: SystemId(7_000_000_000_000_000_007), seg_size: SegSize::new(1 << 20).unwrap() }
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn at(offset: usize) -> Lsn {
    START.advance(offset as u64)
}

fn generator() -> WalGenerator {
    WalGenerator::new(id(), tli(2), START, 1)
}

fn verifier() -> WalVerifier {
    WalVerifier::at_segment_start(id(), tli(2), START)
}

/// | offset | |
/// |---|---|
/// | 40 | record of 100 bytes |
/// | 144 | record of 20000 bytes on three pages |
/// | 20192 | record that fills the third page |
/// | 24600 | record of 50 bytes, the first thing on the fourth page |
/// | 24656 | record of 30 bytes |
fn sample() -> Vec<u8> {
    let mut wal = generator();
    wal.record(100);
    wal.record(20_000);
    wal.fill_page();
    wal.record(50);
    wal.record(30);
    assert_eq!(wal.record_starts(), [40, 144, 20_192, 3 * PAGE + 24, 3 * PAGE + 80].map(at));
    assert_eq!(wal.record_ends(), [144, 20_192, 3 * PAGE, 3 * PAGE + 80, 3 * PAGE + 112].map(at));
    wal.take()
}

/// The error, and where the verified WAL ended, if `patch` overwrites the bytes at `offset`.
fn damaged(wal: &[u8], offset: usize, patch: &[u8]) -> (WalError, Option<Lsn>) {
    let mut bytes = wal.to_vec();
    bytes[offset..offset + patch.len()].copy_from_slice(patch);
    assert_ne!(bytes, wal, "the patch at {offset} changes nothing");
    let mut walk = verifier();
    let error = walk.push(&bytes).unwrap_err();
    assert_eq!(walk.push(&[0]), Err(error), "an error lasts until the walk is rewound");
    let end = walk.verified_end();

    walk.rewind();
    let rest = usize::try_from(walk.position().since(START)).unwrap();
    walk.push(&wal[rest..]).unwrap();
    assert_eq!(walk.verified_end(), Some(at(wal.len())), "the right bytes after the wrong ones");
    (error, end)
}

fn check(offset: usize, patch: &[u8], expected: WalError, verified: Option<usize>) {
    assert_eq!(damaged(&sample(), offset, patch), (expected, verified.map(at)), "at {offset}");
}

#[test]
fn pages_are_checked() {
    let page = at(PAGE);
    check(0, &[0, 0], WalError::UnknownMagic { lsn: START, found: 0 }, None);
    let other = WalError::OtherMagic { lsn: page, found: 0xD116, expected: 0xD118 };
    check(PAGE, &[0x16, 0xD1], other, Some(144));
    check(2, &[0x16], WalError::InfoBits { lsn: START, found: 0x16 }, None);
    check(2, &[0x04], WalError::InfoBits { lsn: START, found: 0x04 }, None);
    check(PAGE + 2, &[0x07], WalError::InfoBits { lsn: page, found: 0x07 }, Some(144));
    check(PAGE + 3, &[0x80], WalError::InfoBits { lsn: page, found: 0x8005 }, Some(144));
    check(PAGE + 10, &[0x40], WalError::PageAddress { lsn: page, found: Lsn::new(0x40_2000) }, Some(144));
    check(4, &[3], WalError::TimelineAhead { lsn: START, found: 3, current: tli(2) }, None);
    check(4, &[0], WalError::TimelineFell { lsn: START, found: 0, after: 1 }, None);
    check(PAGE + 4, &[1], WalError::TimelineFell { lsn: page, found: 1, after: 2 }, Some(144));
    check(PAGE + 4, &[3], WalError::TimelineAhead { lsn: page, found: 3, current: tli(2) }, Some(144));
}

#[test]
fn a_segments_first_page_must_be_this_clusters() {
    let expected = id().system_id;
    let other = WalError::OtherSystem { lsn: START, found: SystemId(8), expected };
    check(24, &8u64.to_le_bytes(), other, None);
    let other = WalError::OtherSegmentSize { lsn: START, found: 16 << 20, expected: 1 << 20 };
    check(32, &(16u32 << 20).to_le_bytes(), other, None);
    check(36, &4096u32.to_le_bytes(), WalError::OtherBlockSize { lsn: START, found: 4096 }, None);
}

#[test]
fn continuations_are_checked() {
    let (record, fresh) = (at(144), 3 * PAGE);
    let missing = WalError::MissingContrecord { lsn: record };
    check(PAGE + 2, &[4], missing, Some(144));
    check(2 * PAGE + 2, &[4], missing, Some(144));
    let lengths = |found, expected| WalError::ContrecordLength { lsn: record, found, expected };
    check(PAGE + 16, &11_951u32.to_le_bytes(), lengths(11_951, 11_952), Some(144));
    check(2 * PAGE + 16, &[0; 4], lengths(0, 3784), Some(144));
    check(fresh + 2, &[5], WalError::UnexpectedContrecord { lsn: at(fresh + 24) }, Some(fresh));
    let unexpected = WalError::ContrecordLength { lsn: at(fresh), found: 8, expected: 0 };
    check(fresh + 16, &[8], unexpected, Some(fresh));
    check(2, &[7], WalError::ContrecordLength { lsn: START, found: 0, expected: 1 }, None);
}

#[test]
fn records_are_checked() {
    let (first, second, last) = (at(40), at(144), at(3 * PAGE + 80));
    for len in [0, 23] {
        check(40, &[len], WalError::RecordTooShort { lsn: first, found: len.into() }, Some(40));
    }
    check(147, &[0x40], WalError::RecordTooLong { lsn: second, found: 0x4000_4E20 }, Some(144));
    for rmid in [22, 127] {
        check(57, &[rmid], WalError::ResourceManager { lsn: first, rmid }, Some(40));
    }
    check(152, &[0x30], WalError::PrevLink { lsn: second, found: at(0x30) }, Some(144));
    check(48, &at(40).as_u64().to_le_bytes(), WalError::PrevLink { lsn: first, found: first }, Some(40));
    // xl_xid, xl_info, padding, xl_crc, first and last byte of the body
    for offset in [4, 16, 18, 19, 20, 24, 99] {
        check(40 + offset, &[0xA5], WalError::Checksum { lsn: first }, Some(40));
    }
    for offset in [8191, PAGE + 24, 2 * PAGE - 1, 2 * PAGE + 24, 20_191] {
        let flipped = !sample()[offset];
        check(offset, &[flipped], WalError::Checksum { lsn: second }, Some(144));
    }
    check(3 * PAGE + 84, &[1, 2], WalError::Checksum { lsn: last }, Some(3 * PAGE + 80));
}

#[test]
fn built_in_and_custom_resource_managers_are_known() {
    for rmid in [1, 21, 128, 255] {
        // The checksum does not fit any more, which is found after the resource manager.
        check(57, &[rmid], WalError::Checksum { lsn: at(40) }, Some(40));
    }
}

#[test]
fn errors_read_as_postgresqls() {
    let text = |offset, patch: &[u8]| damaged(&sample(), offset, patch).0.to_string();
    assert_eq!(text(90, &[0xA5]), "incorrect resource manager data checksum in record at 0/300028");
    assert_eq!(text(152, &[0x30]), "record with incorrect prev-link 0/300030 at 0/300090");
    assert_eq!(text(40, &[0]), "invalid record length at 0/300028: expected at least 24, got 0");
    assert_eq!(text(PAGE + 10, &[0x40]), "unexpected pageaddr 0/402000 in WAL page at 0/302000");
    assert_eq!(text(57, &[99]), "invalid resource manager ID 99 at 0/300028");
    assert_eq!(damaged(&sample(), 57, &[99]).0.lsn(), at(40));
}

#[test]
fn zeros_where_a_record_should_start_end_the_wal() {
    let mut wal = sample();
    let end = wal.len();
    let mut walk = verifier();
    walk.push(&wal).unwrap();
    wal.resize(SEGMENT, 0);
    assert_eq!(walk.push(&wal[end..end + 3]), Ok(()));
    assert_eq!(walk.push(&wal[end + 3..]), Err(WalError::RecordTooShort { lsn: at(end), found: 0 }));
    assert_eq!(walk.verified_end(), Some(at(end)));
}

#[test]
fn a_record_counts_once_its_padding_is_there() {
    let mut wal = generator();
    wal.record(101);
    let mut walk = verifier();
    for (&byte, offset) in wal.bytes().iter().zip(1..) {
        walk.push(&[byte]).unwrap();
        let expected = if offset < 40 { None } else { Some(if offset < 144 { 40 } else { 144 }) };
        assert_eq!(walk.verified_end(), expected.map(at), "after {offset} bytes");
        assert_eq!(walk.last_record(), (offset >= 144).then_some(at(40)));
    }
}

#[test]
fn a_bit_flipped_at_the_end_of_a_page_header_is_found() {
    let mut wal = generator();
    wal.fill(3 * PAGE);
    for page in [0, PAGE, 2 * PAGE] {
        let (error, end) = damaged(wal.bytes(), page + 22, &[8]);
        assert_eq!(error, WalError::Padding { lsn: at(page + 22), found: 8 });
        assert!(end <= Some(at(page)), "{end:?}");
    }
}

/// No checksum covers it.
#[test]
fn a_bit_flipped_between_records_is_found() {
    let mut wal = generator();
    wal.record(101);
    wal.record(101);
    for offset in 141..144 {
        let padding = WalError::Padding { lsn: at(offset), found: 0x40 };
        assert_eq!(damaged(wal.bytes(), offset, &[0x40]), (padding, Some(at(40))));
        let mut bytes = wal.bytes().to_vec();
        bytes[offset] = 0x40;
        // Also where anything is taken behind an XLOG_SWITCH; and as it comes in pieces.
        for any in [false, true] {
            let mut walk = verifier();
            walk.accept_any_padding(any);
            assert_eq!(walk.push(&bytes), Err(padding));
            walk.rewind();
            let refused = bytes[40..].iter().find_map(|&byte| walk.push(&[byte]).err());
            assert_eq!((refused, walk.verified_end()), (Some(padding), Some(at(40))));
        }
    }
}

/// A 101-byte record, and then one whose header is split over two pages.
#[test]
fn a_header_may_be_split_over_pages() {
    for room in [8, 16] {
        let mut wal = generator();
        wal.record(PAGE - 40 - room);
        let start = wal.position();
        let end = wal.record(300);
        assert_eq!(start, at(PAGE - room));
        let mut walk = verifier();
        walk.push(wal.bytes()).unwrap();
        assert_eq!((walk.verified_end(), walk.last_record()), (Some(end), Some(start)));

        let (error, verified) = damaged(wal.bytes(), PAGE + 24 + 17 - room, &[99]);
        assert_eq!((error, verified), (WalError::ResourceManager { lsn: start, rmid: 99 }, Some(start)));
    }
}

#[test]
fn a_record_that_fills_its_page_ends_at_the_boundary() {
    let mut walk = verifier();
    let wal = sample();
    walk.push(&wal[..3 * PAGE]).unwrap();
    assert_eq!((walk.verified_end(), walk.last_record()), (Some(at(3 * PAGE)), Some(at(20_192))));
    walk.push(&wal[3 * PAGE..3 * PAGE + 30]).unwrap();
    assert_eq!(walk.verified_end(), Some(at(3 * PAGE)));
    walk.rewind();
    assert_eq!(walk.position(), at(3 * PAGE));
    walk.push(&wal[3 * PAGE..]).unwrap();
    assert_eq!(walk.verified_end(), Some(at(wal.len())));
}

#[test]
fn behind_a_switch_only_zeros_reach_the_segments_end() {
    let mut wal = generator();
    wal.record(100);
    wal.switch_segment();
    wal.record(60);
    let mut walk = verifier();
    walk.push(&wal.bytes()[..168]).unwrap();
    assert_eq!(walk.verified_end(), Some(at(168)));
    walk.push(&wal.bytes()[168..5 * PAGE + 1]).unwrap();
    assert_eq!(walk.verified_end(), Some(at(5 * PAGE)));
    walk.rewind();
    assert_eq!(walk.position(), at(5 * PAGE));
    walk.push(&wal.bytes()[5 * PAGE..SEGMENT]).unwrap();
    assert_eq!((walk.verified_end(), walk.last_record()), (Some(at(SEGMENT)), Some(at(144))));
    walk.push(&wal.bytes()[SEGMENT..]).unwrap();
    assert_eq!(walk.verified_end(), Some(wal.position()));

    for (offset, verified) in
        [(168, 168), (PAGE - 1, 168), (PAGE, PAGE), (PAGE + 5000, PAGE), (SEGMENT - 1, SEGMENT - PAGE)]
    {
        let padding = WalError::SwitchPadding { lsn: at(offset), found: 9 };
        assert_eq!(damaged(wal.bytes(), offset, &[9]), (padding, Some(at(verified))));
    }
}

#[test]
fn padding_may_be_anything_if_told_so() {
    let mut wal = generator();
    wal.record(100);
    wal.switch_segment();
    wal.record(60);
    let mut bytes = wal.bytes().to_vec();
    bytes[PAGE..3 * PAGE].fill(0xAA);
    let mut walk = verifier();
    walk.accept_any_padding(true);
    walk.push(&bytes).unwrap();
    assert_eq!(walk.verified_end(), Some(wal.position()));
}

/// What is in doubt when so much has come.
fn doubtful(walk: &WalVerifier, bytes: &[u8]) -> Option<Lsn> {
    let mut walk = walk.clone();
    walk.push(&bytes[usize::try_from(walk.position().since(START)).unwrap()..]).unwrap();
    walk.doubtful_from()
}

#[test]
fn what_is_no_zero_behind_a_switch_must_come_twice() {
    let mut wal = generator();
    wal.record(100);
    wal.switch_segment();
    wal.record(60);
    let stale = |fill: u8| {
        let mut bytes = wal.bytes().to_vec();
        bytes[2 * PAGE + 7..5 * PAGE].fill(fill);
        bytes
    };
    let refused = |found| Err(WalError::SwitchPadding { lsn: at(2 * PAGE + 7), found });
    let mut walk = verifier();
    walk.accept_padding_that_comes_twice();
    for cut in [SEGMENT, 1, 100, 9000] {
        let push = |walk: &mut WalVerifier, bytes: &[u8]| {
            let from = usize::try_from(walk.position().since(START)).unwrap();
            let pushed = bytes[from..].chunks(cut).find_map(|piece| walk.push(piece).err());
            let end = walk.verified_end();
            walk.rewind();
            (pushed.map_or(Ok(()), Err), end)
        };
        // A bit flipped on the way does not come again.
        let fill = 0x10 + u8::try_from(cut % 100).unwrap();
        assert_eq!(push(&mut walk, &stale(fill)), (refused(fill), Some(at(2 * PAGE))), "{cut}");
        if cut == 1 {
            assert_eq!(push(&mut walk, wal.bytes()), (Ok(()), Some(wal.position())));
            return;
        }
        assert_eq!(push(&mut walk, &stale(0x99)), (refused(0x99), Some(at(2 * PAGE))), "{cut}");
        // Also what has come before counts page by page.
        assert_eq!(doubtful(&walk, &stale(0x99)[..2 * PAGE + 500]), Some(at(2 * PAGE + 7)), "{cut}");
        assert_eq!(doubtful(&walk, &stale(0x99)[..3 * PAGE]), None, "{cut}");
        assert_eq!(doubtful(&walk, &stale(0x99)[..SEGMENT - 5]), None, "{cut}");
        assert_eq!(doubtful(&walk, &stale(0x98)[..SEGMENT - 5]), Some(at(2 * PAGE + 7)), "{cut}");
        assert_eq!(doubtful(&walk, wal.bytes()), None, "{cut}");
        // As far as the line went.
        assert_eq!(push(&mut walk, &stale(0x99)[..SEGMENT - 5]), (Ok(()), Some(at(SEGMENT - PAGE))), "{cut}");
        assert_eq!(push(&mut walk, &stale(0x99)), (Ok(()), Some(wal.position())), "{cut}");
        walk = verifier();
        walk.accept_padding_that_comes_twice();
    }
}

/// A switch in the first page, and behind it what a server that lost power has left, but for one page of zeros.
fn switched() -> (WalGenerator, Vec<u8>) {
    let mut wal = generator();
    wal.record(100);
    wal.switch_segment();
    wal.record(60);
    let mut bytes = wal.bytes().to_vec();
    bytes[2 * PAGE + 7..SEGMENT].fill(0x99);
    bytes[5 * PAGE..6 * PAGE].fill(0);
    (wal, bytes)
}

/// Pushes so much from where the walk has come to, and ends the attempt.
fn attempt(walk: &mut WalVerifier, bytes: &[u8], most: usize) -> Result<Option<Lsn>, WalError> {
    let from = usize::try_from(walk.position().since(START)).unwrap();
    let pushed = walk.push(&bytes[from..bytes.len().min(from + most)]);
    let end = walk.verified_end();
    walk.rewind();
    pushed.map(|()| end)
}

#[test]
fn what_is_no_zero_behind_a_switch_comes_over_a_line_that_breaks() {
    let (wal, bytes) = switched();
    let mut walk = verifier();
    walk.accept_padding_that_comes_twice();
    let mut attempts = 0;
    while walk.verified_end().is_none_or(|end| end < wal.position()) {
        // None of them comes from the first such page to the segment's end.
        let _ = attempt(&mut walk, &bytes, 40 * PAGE + 100);
        attempts += 1;
        assert!(attempts < 10, "{:?}", walk.verified_end());
    }
}

#[test]
fn a_page_behind_a_switch_counts_when_it_comes_the_same_again() {
    let (wal, bytes) = switched();
    let mut flipped = bytes.clone();
    flipped[3 * PAGE + 4000] ^= 4;
    let (mut walk, most) = (verifier(), 9 * PAGE);
    walk.accept_padding_that_comes_twice();
    assert_eq!(attempt(&mut walk, &flipped, most), Ok(Some(at(2 * PAGE))));
    assert_eq!(attempt(&mut walk, &bytes, most), Ok(Some(at(3 * PAGE))));
    assert_eq!(attempt(&mut walk, &bytes, most), Ok(Some(at(11 * PAGE))));
    // Somebody else goes on with what this one has seen, as far as it goes.
    let mut other = verifier();
    other.accept_padding_that_comes_again(walk.padding_seen());
    let refused = WalError::SwitchPadding { lsn: at(12 * PAGE), found: 0x99 };
    assert_eq!(attempt(&mut other, &bytes, SEGMENT), Err(refused));
    assert_eq!(other.verified_end(), Some(at(12 * PAGE)));
    assert_eq!(attempt(&mut other, &bytes, 2 * SEGMENT), Ok(Some(wal.position())));
    // The segment is done, and so is what was seen of it.
    assert_eq!(other.padding_seen(), PaddingSeen::default());
}

#[test]
fn a_page_that_says_that_a_record_was_lost_needs_the_one_that_says_which() {
    for (magic, flag) in [(0xD106, 8), (0xD118, 8), (0xD122, 4)] {
        let mut wal = generator().with_magic(magic);
        wal.record(PAGE - 40);
        wal.record(100);
        let mut bytes = wal.bytes().to_vec();
        bytes[PAGE + 2] |= flag;
        let mut walk = verifier();
        let error = WalError::MissingContrecord { lsn: at(PAGE) };
        assert_eq!((walk.push(&bytes), walk.verified_end()), (Err(error), Some(at(PAGE))), "{magic:04X}");
    }
}

#[test]
fn a_switch_may_be_split_or_end_with_its_segment() {
    for room in [8, 16, 24] {
        let mut wal = generator();
        let long = 127 * 8168 + 8152 - room;
        wal.record(long);
        assert_eq!(wal.position(), at(SEGMENT - room));
        wal.switch_segment();
        assert_eq!(wal.position(), at(if room < 24 { 2 * SEGMENT } else { SEGMENT }));
        wal.record(50);
        let mut walk = verifier();
        walk.push(wal.bytes()).unwrap();
        assert_eq!(walk.verified_end(), Some(wal.position()));
    }
}

#[test]
fn a_lost_record_is_dropped_for_the_one_that_overwrites_it() {
    let mut wal = generator();
    let kept = wal.record(100);
    let lost = wal.abort_record(2_000_000, 128);
    assert_eq!((kept, lost), (at(144), at(144)));
    wal.record(70);
    let mut walk = verifier();
    walk.push(&wal.bytes()[..SEGMENT + 50]).unwrap();
    assert_eq!((walk.verified_end(), walk.last_record()), (Some(kept), Some(at(40))));
    walk.push(&wal.bytes()[SEGMENT + 50..]).unwrap();
    assert_eq!(walk.verified_end(), Some(wal.position()));

    // From that segment on there is nothing to skip.
    let mut walk = WalVerifier::at_segment_start(id(), tli(2), at(SEGMENT));
    walk.push(&wal.bytes()[SEGMENT..]).unwrap();
    assert_eq!(walk.verified_end(), Some(wal.position()));

    let both = damaged(wal.bytes(), SEGMENT + 2, &[0x0F]);
    assert_eq!(both, (WalError::UnexpectedContrecord { lsn: at(SEGMENT + 40) }, Some(kept)));
}

#[test]
fn a_walk_may_begin_inside_a_record() {
    let mut wal = generator();
    wal.record(100);
    let end = wal.record(3 * SEGMENT);
    let last = wal.position();
    wal.record(300);
    let mut walk = WalVerifier::at_segment_start(id(), tli(2), at(SEGMENT).advance(77));
    assert_eq!(walk.position(), at(SEGMENT), "rounded down to the segment");
    walk.push(&wal.bytes()[SEGMENT..3 * SEGMENT + 30]).unwrap();
    assert_eq!(walk.verified_end(), None);
    walk.rewind();
    assert_eq!(walk.position(), at(SEGMENT));
    let until_end = usize::try_from(end.since(START)).unwrap();
    walk.push(&wal.bytes()[SEGMENT..until_end]).unwrap();
    assert_eq!((walk.verified_end(), walk.last_record()), (Some(end), None));
    walk.push(&wal.bytes()[until_end..]).unwrap();
    assert_eq!((walk.verified_end(), walk.last_record()), (Some(wal.position()), Some(last)));

    // The skipped record has no checksum we could check, but its pages must agree with each other.
    let mut bytes = wal.bytes()[SEGMENT..].to_vec();
    bytes[PAGE + 16] ^= 1;
    let mut walk = WalVerifier::at_segment_start(id(), tli(2), at(SEGMENT));
    let error = walk.push(&bytes).unwrap_err();
    assert!(matches!(error, WalError::ContrecordLength { .. }), "{error}");
    assert_eq!((error.lsn(), walk.verified_end()), (at(SEGMENT + PAGE), None));
}

#[test]
fn a_walk_may_begin_inside_a_record_that_is_lost() {
    let mut wal = generator();
    wal.abort_record(2_000_000, 130);
    let mut walk = WalVerifier::at_segment_start(id(), tli(2), at(SEGMENT));
    walk.push(&wal.bytes()[SEGMENT..]).unwrap();
    assert_eq!(walk.verified_end(), Some(wal.position()));
}

#[test]
fn a_walk_may_begin_at_any_record() {
    let wal = sample();
    let start = |offset: usize, prev: Option<usize>| {
        let mut walk = WalVerifier::at_record_start(id(), tli(2), at(offset), prev.map(at));
        assert_eq!((walk.verified_end(), walk.wal_magic()), (Some(at(offset)), None));
        walk.push(&wal[offset..])?;
        assert_eq!((walk.verified_end(), walk.wal_magic()), (Some(at(wal.len())), Some(0xD118)));
        Ok(())
    };
    for (offset, prev) in [(144, 40), (20_192, 144), (3 * PAGE, 20_192), (0, 0)] {
        assert_eq!(start(offset, None), Ok(()));
        let known = start(offset, Some(prev));
        assert_eq!(known.is_ok(), offset != 0, "{known:?}");
        assert!(matches!(start(offset, Some(prev + 8)), Err(WalError::PrevLink { .. })));
    }
    for offset in [1, 24, PAGE + 8, PAGE + 16, 20_196] {
        assert_eq!(start(offset, None), Err(WalError::RecordOffset { lsn: at(offset) }));
    }
}

#[test]
fn the_stream_may_go_on_on_a_newer_timeline() {
    let mut wal = generator();
    wal.record(100);
    let switched_at = wal.position();
    let mut walk = verifier();
    walk.push(wal.bytes()).unwrap();
    // The beginning of a record that the old timeline never finished.
    walk.push(&[50, 0, 0, 0, 0, 0]).unwrap();
    wal.switch_timeline(tli(5));
    wal.record(20_000);
    let new = wal.bytes()[144..].to_vec();

    let mut old = walk.clone();
    old.rewind();
    let error = old.push(&new).unwrap_err();
    assert_eq!(error, WalError::TimelineAhead { lsn: at(PAGE), found: 5, current: tli(2) });

    walk.switch_timeline(tli(5));
    assert_eq!(walk.position(), switched_at);
    walk.push(&new).unwrap();
    assert_eq!(walk.verified_end(), Some(wal.position()));
}

#[test]
fn every_version_is_known_and_newer_ones_are_taken() {
    for magic in [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118, 0xD122, 0xD123, 0xD200] {
        let mut wal = generator().with_magic(magic);
        wal.record(10_000);
        let mut walk = verifier();
        walk.push(wal.bytes()).unwrap();
        assert_eq!(walk.wal_magic(), Some(magic));
        assert_eq!(WalIdentity::of_segment(wal.bytes()), Some(id()));
    }
    // Of a beta, and of something between two versions.
    for magic in [0xD121, 0xD119, 0xD101, 0] {
        let mut other = generator().with_magic(magic);
        other.record(100);
        let error = verifier().push(other.bytes()).unwrap_err();
        assert_eq!(error, WalError::UnknownMagic { lsn: START, found: magic });
        assert_eq!(WalIdentity::of_segment(other.bytes()), None);
    }
    assert_eq!(WalIdentity::of_segment(&[0; PAGE]), None);
}

#[test]
fn of_a_known_server_only_its_own_number_is_taken() {
    let mut newer = generator().with_magic(0xD123);
    newer.record(100);
    let mut walk = verifier();
    walk.expect_magic(0xD122);
    let other = WalError::OtherMagic { lsn: START, found: 0xD123, expected: 0xD122 };
    assert_eq!(walk.push(newer.bytes()), Err(other));
    walk.rewind();
    assert_eq!(walk.push(newer.bytes()), Err(other), "expected for good");
}

/// Puts another byte into a record and gives it the checksum that it then has.
fn with_byte(bytes: &[u8], start: usize, len: usize, at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] = byte;
    let record = &bytes[start..start + len];
    let crc = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
    bytes[start + 20..start + 24].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn flags_and_resource_managers_of_newer_versions_are_taken_and_those_of_known_ones_are_not() {
    for (magic, taken) in [(0xD118, false), (0xD122, false), (0xD123, true)] {
        let mut wal = generator().with_magic(magic);
        wal.record(PAGE - 40);
        wal.record(100);
        let flag = [wal.bytes()[PAGE + 2] | 0x40];
        let mut flagged = wal.bytes().to_vec();
        flagged[PAGE + 2] = flag[0];
        assert_eq!(verifier().push(&flagged).is_ok(), taken, "{magic:04X}");
        let start = PAGE + 24;
        let managed = with_byte(wal.bytes(), start, 100, start + 17, 22);
        assert_eq!(verifier().push(&managed).is_ok(), taken, "{magic:04X}");
        // The first two flags mean the same everywhere.
        for flag in [1, 2] {
            let mut flagged = wal.bytes().to_vec();
            flagged[PAGE + 2] |= flag;
            verifier().push(&flagged).unwrap_err();
        }
    }
}

#[test]
fn a_lost_record_needs_the_one_that_says_so_in_every_version() {
    for magic in [0xD106, 0xD118, 0xD122, 0xD123] {
        let mut wal = generator().with_magic(magic);
        let kept = wal.record(100);
        let lost = wal.abort_record(20_000, 3);
        wal.record(70);
        let over = wal.record_starts()[1];
        for cut in 0..60 {
            let at = usize::try_from(over.since(START)).unwrap() - 24 + cut;
            let mut walk = verifier();
            walk.push(&wal.bytes()[..at]).unwrap();
            walk.push(&wal.bytes()[at..]).unwrap();
            assert_eq!(walk.verified_end(), Some(wal.position()), "{magic:04X}");
        }
        // It names another record, or is something else.
        let start = usize::try_from(over.since(START)).unwrap();
        for (at, byte) in [(start + 26, 7), (start + 16, 0x20)] {
            let wrong = with_byte(wal.bytes(), start, 42, at, byte);
            let mut walk = verifier();
            assert_eq!(walk.push(&wrong), Err(WalError::MissingContrecord { lsn: lost }), "{magic:04X}");
            assert_eq!(walk.verified_end(), Some(kept));
        }
    }
}

#[test]
fn the_flag_of_a_lost_record_is_that_of_the_version() {
    // What is 19's bit was on nearly all pages before, and 18's has no meaning in 19.
    for (magic, right, wrong) in [(0xD118, 0x0C, 0x04), (0xD122, 0x04, 0x08)] {
        let mut wal = generator().with_magic(magic);
        wal.abort_record(20_000, 3);
        let flags = 3 * PAGE + 2;
        assert_eq!(wal.bytes()[flags], right);
        let mut bytes = wal.bytes().to_vec();
        bytes[flags] = wrong;
        verifier().push(&bytes).unwrap_err();
    }
}

#[test]
fn the_end_of_the_address_space_is_no_panic() {
    let wal = sample();
    for back in [1, 8, 24, 8192, 1 << 20] {
        let mut walk = WalVerifier::at_record_start(id(), tli(2), Lsn::new(u64::MAX - back + 1), None);
        let _ = walk.push(&wal);
        assert!(walk.verified_end() <= Some(walk.position()));
    }
}

#[test]
fn the_time_of_the_newest_commit_is_known_however_the_wal_is_cut() {
    let mut wal = generator();
    let mut times = Vec::new();
    for round in 0..300 {
        wal.record(900 + round % 40);
        let time = 1_000_000 + round as i64;
        times.push((wal.commit_at(time), time));
    }
    wal.record(100);
    let bytes = wal.take();
    for piece in [7, 900, 100_000] {
        let mut walk = verifier();
        for bytes in bytes.chunks(piece) {
            walk.push(bytes).unwrap();
            // Such a record is of 34 bytes, and whole before its padding has come.
            let now = walk.position().advance(6);
            let newest = times.iter().rfind(|(at, _)| *at <= now).map(|(_, time)| *time);
            assert_eq!(walk.newest_commit().map(PgTimestamp::as_micros), newest, "{now}");
        }
        assert_eq!(walk.newest_commit().map(PgTimestamp::as_micros), times.last().map(|(_, time)| *time));
    }
}
