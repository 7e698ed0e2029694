//! When transactions committed, read from the WAL (`xactdesc.c`, `xlogrecord.h`).

use walrelay_proto::{PgTimestamp, SegSize};

const PAGE: usize = 8192;
/// Length of a page header, in a segment's first page and in others.
const LONG_HEADER: usize = 40;
const SHORT_HEADER: usize = 24;
/// Length of a record's header.
const RECORD_HEADER: usize = 24;
/// Resource manager of transactions, and its records of commits (`RM_XACT_ID`, `XLOG_XACT_OPMASK`).
const RM_XACT: u8 = 1;
const OPMASK: u8 = 0x70;
const COMMIT: u8 = 0x00;
const COMMIT_PREPARED: u8 = 0x30;
/// Block ids that stand for something else (`XLR_BLOCK_ID_*`).
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOPLEVEL_XID: u8 = 252;

/// Times of all commits whose records begin in a segment and are complete in it, in the order of the records. What is
/// no WAL gives none.
pub(super) fn commit_times(segment: &[u8], size: SegSize) -> Vec<PgTimestamp> {
    let payload = payload(&segment[..segment.len().min(size.bytes() as usize)]);
    let (mut rest, mut times) = (&payload[..], Vec::new());
    while let Some((length, record)) = next_record(rest) {
        times.extend(commit_time(record));
        let Some(after) = rest.get(length.next_multiple_of(8)..) else { break };
        rest = after;
    }
    times
}

/// The bytes between page headers, from the first record that begins here on.
fn payload(segment: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(segment.len());
    for (number, page) in segment.chunks(PAGE).enumerate() {
        let header = if number == 0 { LONG_HEADER } else { SHORT_HEADER };
        bytes.extend_from_slice(page.get(header..).unwrap_or_default());
    }
    // The first page says how much of it belongs to a record that began before.
    let continued =
        segment.get(16..20).and_then(|word| word.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word));
    let skip = (continued as usize).next_multiple_of(8).min(bytes.len());
    bytes.split_off(skip)
}

fn next_record(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    let record = bytes.get(..length).filter(|_| length >= RECORD_HEADER)?;
    Some((length, record))
}

fn commit_time(record: &[u8]) -> Option<PgTimestamp> {
    let (info, manager) = (*record.get(16)?, *record.get(17)?);
    let commits = manager == RM_XACT && matches!(info & OPMASK, COMMIT | COMMIT_PREPARED);
    let data = main_data(record.get(RECORD_HEADER..)?).filter(|_| commits)?;
    Some(PgTimestamp::from_micros(i64::from_le_bytes(*data.first_chunk()?)))
}

/// A transaction's record refers to no blocks: its data comes behind a few short headers.
fn main_data(mut headers: &[u8]) -> Option<&[u8]> {
    loop {
        let (&id, rest) = headers.split_first()?;
        headers = match id {
            DATA_SHORT => return rest.get(1..),
            DATA_LONG => return rest.get(4..),
            ORIGIN => rest.get(2..)?,
            TOPLEVEL_XID => rest.get(4..)?,
            _ => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> SegSize {
        SegSize::new(1 << 20).unwrap()
    }

    fn record(manager: u8, info: u8, headers: &[u8]) -> Vec<u8> {
        let mut record = vec![0; RECORD_HEADER];
        record[..4].copy_from_slice(&((RECORD_HEADER + headers.len()) as u32).to_le_bytes());
        (record[16], record[17]) = (info, manager);
        record.extend_from_slice(headers);
        record.resize(record.len().next_multiple_of(8), 0);
        record
    }

    /// A segment with these records behind the end of one that began before.
    fn segment(records: &[Vec<u8>]) -> Vec<u8> {
        let payload = [&[7; 16][..], &records.concat()].concat();
        let (mut segment, mut rest) = (Vec::new(), &payload[..]);
        for number in 0.. {
            let header = if number == 0 { LONG_HEADER } else { SHORT_HEADER };
            let taken = rest.len().min(PAGE - header);
            segment.resize(segment.len() + header, 0);
            segment.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if rest.is_empty() {
                break;
            }
        }
        segment[16..20].copy_from_slice(&13u32.to_le_bytes());
        segment.resize(1 << 20, 0);
        segment
    }

    #[test]
    fn commits_are_found_among_other_records() {
        let time = |micros: i64| micros.to_le_bytes();
        let records = [
            record(RM_XACT, 0x80, &[&[DATA_SHORT, 8][..], &time(111)].concat()),
            record(10, 0, &[0; 9000]),
            record(RM_XACT, 0x20, &[&[DATA_SHORT, 8][..], &time(222)].concat()),
            record(RM_XACT, 0x30, &[&[ORIGIN, 1, 0, DATA_LONG, 8, 0, 0, 0][..], &time(333)].concat()),
            record(RM_XACT, 0, &[&[TOPLEVEL_XID, 1, 0, 0, 0, DATA_SHORT, 8][..], &time(444)].concat()),
        ];
        let times = commit_times(&segment(&records), size());
        assert_eq!(times, [111, 333, 444].map(PgTimestamp::from_micros));
    }

    #[test]
    fn dates_are_right() {
        let day = 86_400_000_000;
        for (micros, text) in [
            (0, "2000-01-01T00:00:00Z"),
            (59 * day + 3_600_000_000, "2000-02-29T01:00:00Z"),
            (-day, "1999-12-31T00:00:00Z"),
            (9_556 * day - 1, "2026-02-28T23:59:59Z"),
            (36_583 * day, "2100-02-28T00:00:00Z"),
            (36_584 * day, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(PgTimestamp::from_micros(micros).to_text(), text);
        }
    }

    #[test]
    fn fuzz_commits() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let times = commit_times(bytes, size());
            times.into_iter().for_each(|time| _ = time.to_text());
        });
    }
}
