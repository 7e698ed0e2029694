//! Fuzz targets, one per decoder. `cargo test` gives each some random input; `cargo bolero test <name>`
//! (cargo-bolero, in this directory) looks for input that reaches new code.

use bolero::check;
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{
    Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalFileName, WalIdentity, WalVerifier,
};

/// Random text seldom looks like the real thing, so digits and separators are drawn more often.
fn text(bytes: &[u8]) -> String {
    const COMMON: &[u8] = b"0123456789ABCDEFabcdef//\t\n #.x+-";
    let pick = |&byte: &u8| COMMON.get(usize::from(byte)).copied().unwrap_or(byte);
    String::from_utf8_lossy(&bytes.iter().map(pick).collect::<Vec<_>>()).into_owned()
}

#[test]
fn fuzz_lsn() {
    check!().with_type::<Vec<u8>>().with_max_len(20).for_each(|bytes| {
        let text = text(bytes);
        if let Ok(lsn) = text.parse::<Lsn>() {
            assert_eq!(lsn.to_string().parse(), Ok(lsn), "{text:?}");
        }
    });
}

#[test]
fn fuzz_lsn_of_number() {
    check!().with_type::<u64>().for_each(|&number| {
        let lsn = Lsn::new(number);
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    });
}

#[test]
fn fuzz_wal_file_name() {
    check!().with_type::<(Vec<u8>, u8)>().for_each(|(bytes, size)| {
        let size = SegSize::new(1 << (20 + size % 11)).unwrap();
        let digit = |&byte: &u8| char::from(b"0123456789ABCDEFg"[usize::from(byte % 17)]);
        for name in [text(bytes), bytes.iter().map(digit).take(24).collect()] {
            if let Some(parsed) = WalFileName::parse(&name, size) {
                assert_eq!(parsed.format(size), name);
            }
        }
    });
}

#[test]
fn fuzz_history_file() {
    check!().with_type::<(u32, Vec<u8>)>().for_each(|(tli, bytes)| {
        let Some(tli) = TimelineId::new(*tli) else { return };
        for content in [bytes.clone(), text(bytes).into_bytes()] {
            let Ok(history) = TimelineHistory::parse(tli, &content) else { continue };
            assert!(history.contains(tli));
            assert!(history.ancestors().iter().all(|entry| entry.tli < tli && history.contains(entry.tli)));
            assert!(history.ancestors().windows(2).all(|pair| pair[0].end <= pair[1].end));
            let _ = history.timeline_at(history.begin());
        }
    });
}

const START: Lsn = Lsn::new(1 << 20);

fn identity() -> WalIdentity {
    WalIdentity { system_id: SystemId(1), seg_size: SegSize::new(1 << 20).unwrap() }
}

/// Valid WAL of some pages, with everything in it that can be.
fn sample() -> Vec<u8> {
    let mut wal = WalGenerator::new(identity(), TimelineId::FIRST, START, 7);
    wal.record(100);
    wal.fill_page();
    wal.abort_record(9000, 1);
    wal.record(20_000);
    wal.switch_timeline(TimelineId::new(2).unwrap());
    wal.record(40);
    wal.take()
}

/// Walks over damaged WAL twice, cut and whole, and expects no difference.
fn walk(wal: &[u8], damage: &[(u16, u8)], cuts: &[u8], start: Option<u16>) {
    let mut bytes = wal.to_vec();
    for &(at, byte) in damage {
        let at = usize::from(at) % bytes.len();
        bytes[at] = byte;
    }
    let tli = TimelineId::new(2).unwrap();
    let offset = start.map_or(0, |start| usize::from(start) % bytes.len());
    let mut whole = match start {
        Some(_) => WalVerifier::at_record_start(identity(), tli, START.advance(offset as u64), None),
        None => WalVerifier::at_segment_start(identity(), tli, START),
    };
    let mut cut = whole.clone();
    let error = whole.push(&bytes[offset..]).err();
    let mut rest = &bytes[offset..];
    let mut lengths = cuts.iter().map(|&len| usize::from(len) + 1).cycle();
    let mut failed = None;
    while failed.is_none() && !rest.is_empty() {
        let (piece, behind) = rest.split_at(lengths.next().unwrap_or(rest.len()).min(rest.len()));
        failed = cut.push(piece).err();
        rest = behind;
    }
    assert_eq!(failed, error);
    assert_eq!(cut.verified_end(), whole.verified_end());
    assert_eq!(cut.last_record(), whole.last_record());
    cut.rewind();
    assert_eq!(Some(cut.position()), cut.verified_end().or(Some(START)));
}

#[test]
fn fuzz_walk() {
    let wal = sample();
    check!().with_type::<(Vec<(u16, u8)>, Vec<u8>, Option<u16>)>().with_iterations(2000).for_each(
        |(damage, cuts, start)| {
            walk(&wal, damage, cuts, None);
            walk(&wal, damage, cuts, *start);
        },
    );
}

#[test]
fn fuzz_walk_of_nonsense() {
    check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(bytes, cuts)| {
        if !bytes.is_empty() {
            walk(bytes, &[], cuts, None);
            walk(bytes, &[], cuts, Some(0));
        }
    });
}
