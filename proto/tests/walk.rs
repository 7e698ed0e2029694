//! Properties of the WAL verifier, on generated WAL.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineId, WalError, WalIdentity, WalVerifier};

const START: Lsn = Lsn::new(3 << 20);
const PAGE: usize = 8192;
const SEGMENT: usize = 1 << 20;
/// Above any timeline in the generated WAL.
const LAST_TLI: u32 = 20;

fn id() -> WalIdentity {
    WalIdentity { system_id: SystemId(42), seg_size: SegSize::new(1 << 20).unwrap() }
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn at(offset: usize) -> Lsn {
    START.advance(offset as u64)
}

fn offset(lsn: Lsn) -> usize {
    usize::try_from(lsn.since(START)).unwrap()
}

fn verifier() -> WalVerifier {
    WalVerifier::at_segment_start(id(), tli(LAST_TLI), START)
}

/// What happens to a server.
#[derive(Clone, Debug)]
enum Event {
    Records(usize),
    Record(usize),
    FullPage,
    Switch,
    Crash { len: usize, pages: usize },
    Promotion,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..50_000usize).prop_map(Event::Records),
        6 => (24..9000usize).prop_map(Event::Record),
        1 => (500_000..3_000_000usize).prop_map(Event::Record),
        3 => Just(Event::FullPage),
        1 => Just(Event::Switch),
        1 => (24..300_000usize, 1..40usize).prop_map(|(len, pages)| Event::Crash { len, pages }),
        1 => Just(Event::Promotion),
    ]
}

fn generate(seed: u64, events: Vec<Event>) -> WalGenerator {
    let mut wal = WalGenerator::new(id(), tli(1), START, seed);
    let mut timelines = (2..LAST_TLI).map(tli);
    wal.record(30);
    for event in events {
        match event {
            Event::Records(bytes) => wal.fill(bytes),
            Event::FullPage => wal.fill_page(),
            Event::Switch => wal.switch_segment(),
            Event::Promotion => wal.switch_timeline(timelines.next().unwrap()),
            Event::Record(len) => {
                wal.record(len);
            }
            Event::Crash { len, pages } => {
                wal.abort_record(len, pages);
            }
        }
    }
    wal
}

fn wal() -> impl Strategy<Value = WalGenerator> {
    (any::<u64>(), vec(event(), 1..16)).prop_map(|(seed, events)| generate(seed, events))
}

/// Lengths of pushes: some tiny, some of pages, some of segments.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..40usize, 1..9000usize, 100_000..900_000usize], 1..20)
}

fn pieces<'a>(bytes: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    cuts.iter().cycle().map_while(move |&cut| {
        let (piece, behind) = rest.split_at(cut.min(rest.len()));
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

const WHOLE: &[usize] = &[usize::MAX];

/// Up to where the WAL is valid if only the bytes up to `pushed` are there.
fn expected_end(wal: &WalGenerator, pushed: Lsn) -> Option<Lsn> {
    let ends = wal.record_ends();
    let complete = ends.partition_point(|&end| end <= pushed);
    let first_start = (pushed >= at(40)).then_some(at(40));
    complete.checked_sub(1).map_or(first_start, |last| Some(ends[last]))
}

/// Everything a caller can see.
fn outcome(bytes: &[u8], cuts: &[usize]) -> (Option<WalError>, Option<Lsn>, Option<Lsn>) {
    let mut walk = verifier();
    let error = pieces(bytes, cuts).find_map(|piece| walk.push(piece).err());
    (error, walk.verified_end(), walk.last_record())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cuts_change_nothing(wal in wal(), cuts in cuts()) {
        let mut walk = verifier();
        let mut pushed = START;
        for piece in pieces(wal.bytes(), &cuts) {
            walk.push(piece).unwrap();
            pushed = pushed.advance(piece.len() as u64);
            prop_assert_eq!(walk.position(), pushed);
            prop_assert_eq!(walk.verified_end(), expected_end(&wal, pushed));
        }
        prop_assert_eq!(walk.verified_end(), Some(wal.position()));
        prop_assert_eq!(walk.last_record(), Some(wal.last_record()));
    }

    #[test]
    fn cuts_do_not_change_errors(
        wal in wal(),
        cuts in cuts(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = wal.bytes().to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert_eq!(outcome(&bytes, &cuts), outcome(&bytes, WHOLE));
    }

    #[test]
    fn cuts_do_not_change_errors_of_headers(
        wal in wal(),
        cuts in cuts(),
        header in any::<Index>(),
        is_page in any::<bool>(),
        byte in 0..24usize,
        bit in 0..8u32,
    ) {
        let mut bytes = wal.bytes().to_vec();
        let start = if is_page {
            header.index(bytes.len().div_ceil(PAGE)) * PAGE
        } else {
            offset(*header.get(wal.record_starts()))
        };
        let at = (start + byte).min(bytes.len() - 1);
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(outcome(&bytes, &cuts), outcome(&bytes, WHOLE));
    }

    #[test]
    fn what_is_fetched_again_gives_the_same(wal in wal(), cuts in cuts(), garbage in vec(any::<u8>(), 0..9000)) {
        let mut walk = verifier();
        let mut cuts = cuts.iter().cycle();
        while walk.verified_end() != Some(wal.position()) {
            let before = walk.verified_end();
            let mut len = *cuts.next().unwrap();
            // Twice as much each time, for records longer than any cut.
            while walk.verified_end() == before {
                let from = offset(walk.position());
                walk.push(&wal.bytes()[from..(from + len).min(wal.bytes().len())]).unwrap();
                len *= 2;
                let end = walk.verified_end();
                if end != Some(wal.position()) {
                    // Half a record, perhaps wrong bytes behind it: whatever they do, it is undone.
                    let mut astray = walk.clone();
                    if astray.push(&garbage).is_err() {
                        astray.rewind();
                        prop_assert!(astray.verified_end() >= end);
                    }
                }
                walk.rewind();
                prop_assert_eq!(walk.verified_end(), end);
                prop_assert_eq!(walk.position(), end.unwrap_or(START));
            }
        }
        prop_assert_eq!(walk.last_record(), Some(wal.last_record()));
    }

    #[test]
    fn any_record_is_a_start(wal in wal(), cuts in cuts(), record in any::<Index>(), prev_known in any::<bool>()) {
        let starts = wal.record_starts();
        let record = record.index(starts.len());
        let prev = record.checked_sub(1).map(|before| starts[before]).filter(|_| prev_known);
        let mut walk = WalVerifier::at_record_start(id(), tli(LAST_TLI), starts[record], prev);
        for piece in pieces(&wal.bytes()[offset(starts[record])..], &cuts) {
            walk.push(piece).unwrap();
        }
        prop_assert_eq!(walk.verified_end(), Some(wal.position()));
    }

    #[test]
    fn any_segment_is_a_start(wal in wal(), cuts in cuts(), segment in any::<Index>()) {
        let from = segment.index(wal.bytes().len().div_ceil(SEGMENT)) * SEGMENT;
        prop_assume!(!splits_a_header(&wal, from));
        let mut walk = WalVerifier::at_segment_start(id(), tli(LAST_TLI), at(from));
        let outcome = pieces(&wal.bytes()[from..], &cuts).try_for_each(|piece| walk.push(piece));
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(walk.verified_end(), Some(wal.position()));
    }

    #[test]
    fn a_record_with_a_flipped_bit_is_never_verified(wal in wal(), byte in any::<Index>(), bit in 0..8u32) {
        let mut bytes = wal.bytes().to_vec();
        let byte = byte.index(bytes.len());
        bytes[byte] ^= 1 << bit;
        let (_, end, _) = outcome(&bytes, WHOLE);
        if let Some(record) = record_at(&wal, byte) {
            prop_assert!(end <= Some(record), "{:?} beyond {} with {} wrong", end, record, at(byte));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..20_000), start in any::<u64>(), cuts in cuts()) {
        for mut walk in [
            WalVerifier::at_segment_start(id(), tli(1), Lsn::new(start)),
            WalVerifier::at_record_start(id(), tli(1), Lsn::new(start & !7), None),
        ] {
            let _ = pieces(&bytes, &cuts).try_for_each(|piece| walk.push(piece));
            walk.rewind();
            let _ = walk.push(&bytes);
        }
    }
}

/// The start of the record that has `byte`; `None` in page headers and padding.
fn record_at(wal: &WalGenerator, byte: usize) -> Option<Lsn> {
    let starts = wal.record_starts();
    let record = starts[starts.partition_point(|&start| start <= at(byte)).checked_sub(1)?];
    let mut here = offset(record);
    let length = wal.bytes()[here..here + 4].try_into().unwrap();
    let mut left = u32::from_le_bytes(length) as usize;
    while left > 0 && here <= byte {
        here += match here % SEGMENT {
            0 => 40,
            in_segment if in_segment % PAGE == 0 => 24,
            _ => 0,
        };
        let part = left.min(PAGE - here % PAGE);
        if (here..here + part).contains(&byte) {
            return Some(record);
        }
        (here, left) = (here + part, left - part);
    }
    None
}

/// Whether a record of nothing but a header is split at `byte`. If it was an XLOG_SWITCH, what follows can
/// only be understood from its beginning.
fn splits_a_header(wal: &WalGenerator, byte: usize) -> bool {
    let starts = wal.record_starts();
    let before =
        starts.partition_point(|&start| start < at(byte)).checked_sub(1).map(|last| offset(starts[last]));
    before.is_some_and(|start| byte - start < 24 && wal.bytes()[start..start + 4] == [24, 0, 0, 0])
}

/// Bits that may be wrong without anybody noticing, PostgreSQL included.
fn nobody_cares(byte: usize, bit: u32) -> bool {
    // BKP_REMOVABLE
    byte % PAGE == 2 && bit == 2
}

#[test]
fn every_flipped_bit_is_found_unless_nobody_cares() {
    let mut wal = WalGenerator::new(id(), tli(1), START, 5);
    wal.record(45);
    wal.record(PAGE - 40 - 48 - 16);
    wal.record(3001);
    wal.fill_page();
    wal.record(4000);
    wal.record(24);
    let mut bytes = wal.bytes().to_vec();
    let mut ignored = 0;
    for byte in 0..bytes.len() {
        for bit in 0..8 {
            bytes[byte] ^= 1 << bit;
            let mut walk = WalVerifier::at_segment_start(id(), tli(1), START);
            let error = walk.push(&bytes).err();
            let found = walk.verified_end() != Some(wal.position());
            assert_eq!(found, !nobody_cares(byte, bit), "bit {bit} of byte {byte}: {error:?}");
            ignored += usize::from(!found);
            bytes[byte] ^= 1 << bit;
        }
    }
    // A bit of each of three page headers.
    assert_eq!(ignored, 3);
}
