//! Which files are asked for. No I/O.

use walrelay_proto::{SegSize, TimelineHistory, WalFileName};

use super::Wanted;

/// The files that would do, best first: where a timeline was left, its successor's begins with the same bytes.
pub(super) fn candidates(history: &TimelineHistory, size: SegSize, name: WalFileName) -> Vec<Wanted> {
    let whole = |name| Wanted { name, len: None, is_partial: false };
    match history.switch_point(name.tli) {
        Some((left_at, next)) if left_at.seg_at(size) == name.segno => {
            let own = Wanted { len: Some(left_at.since(name.segno.start(size))), ..whole(name) };
            vec![whole(WalFileName::new(next, name.segno)), own, Wanted { is_partial: true, ..own }]
        }
        _ => vec![whole(name)],
    }
}
