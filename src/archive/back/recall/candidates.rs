//! Which files are asked for. No I/O.

use walrelay_proto::{SegSize, TimelineHistory, WalFileName};

use super::Wanted;
use crate::store::successors;

/// The files that would do, best first: where a timeline was left, those of all that go on in the same segment begin with the
/// same bytes, and only the newest of them has been finished.
pub(super) fn candidates(history: &TimelineHistory, size: SegSize, name: WalFileName) -> Vec<Wanted> {
    let whole = |name| Wanted { name, len: None, is_partial: false };
    let successors = successors(size, history, name);
    let (Some((newest, others)), Some((left_at, _))) =
        (successors.split_first(), history.switch_point(name.tli))
    else {
        return vec![whole(name)];
    };
    let len = left_at.since(name.segno.start(size));
    let parts_of = |name| {
        let part = Wanted { len: Some(len), ..whole(name) };
        [part, Wanted { is_partial: true, ..part }]
    };
    let left = std::iter::once(name).chain(others.iter().copied()).filter(|_| len > 0);
    std::iter::once(whole(*newest)).chain(left.flat_map(parts_of)).collect()
}

#[cfg(test)]
mod tests {
    use walrelay_proto::{SegNo, TimelineId};

    use super::*;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    /// Files asked for by a reader of this timeline in segment 5, each with the bytes that count.
    fn asked(timeline: u32, segno: u64) -> Vec<(String, Option<u64>)> {
        let size = SegSize::new(1 << 20).unwrap();
        // Timelines 1, 2 and 3 were left in segment 5, and 4 in segment 7.
        let text = "1\t0/500100\tx\n2\t0/500200\tx\n3\t0/500300\tx\n4\t0/700000\tx\n";
        let history = TimelineHistory::parse(tli(6), text.as_bytes()).unwrap();
        let name = WalFileName::new(tli(timeline), SegNo::new(segno));
        let short = |wanted: Wanted| {
            let suffix = if wanted.is_partial { ".partial" } else { "" };
            (format!("{}{suffix}", wanted.name.tli.as_u32()), wanted.len)
        };
        candidates(&history, size, name).into_iter().map(short).collect()
    }

    #[test]
    fn whoever_goes_on_in_the_segment_has_what_was_before() {
        let part = |name: &str, len| (name.to_owned(), Some(len));
        let whole = |name: &str| (name.to_owned(), None);
        let first = [
            whole("4"),
            part("1", 0x100),
            part("1.partial", 0x100),
            part("3", 0x100),
            part("3.partial", 0x100),
            part("2", 0x100),
            part("2.partial", 0x100),
        ];
        assert_eq!(asked(1, 5), first);
        assert_eq!(asked(3, 5), [whole("4"), part("3", 0x300), part("3.partial", 0x300)]);
        assert_eq!(asked(4, 5), [whole("4")]);
        assert_eq!(asked(1, 4), [whole("1")]);
        // Left at the end of a segment: there are no bytes of it in the next one.
        assert_eq!(asked(4, 6), [whole("4")]);
        assert_eq!(asked(4, 7), [whole("6")]);
        assert_eq!(asked(9, 5), [whole("9")]);
    }
}
