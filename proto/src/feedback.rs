//! What standbys need the primary to keep, beyond WAL.

use crate::message::FullXid;

/// What the standbys below still need the primary to keep: the oldest transaction id of each kind; `None`
/// when nobody needs any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FeedbackHorizon {
    /// Oldest transaction whose dead rows a standby's query may still see.
    pub xmin: Option<FullXid>,
    /// The same for system catalogs, needed by logical slots on a standby.
    pub catalog_xmin: Option<FullXid>,
}

impl FeedbackHorizon {
    /// The older of both, field by field.
    pub fn merge(self, other: FeedbackHorizon) -> FeedbackHorizon {
        let older = |a: Option<FullXid>, b: Option<FullXid>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        FeedbackHorizon {
            xmin: older(self.xmin, other.xmin),
            catalog_xmin: older(self.catalog_xmin, other.catalog_xmin),
        }
    }

    /// Whether this holds back more of either kind than `before` did. A slot of PostgreSQL that holds something back
    /// moves only forward (`PhysicalReplicationSlotNewXmin`), unless it is told "none" in between.
    pub fn falls_behind(self, before: FeedbackHorizon) -> bool {
        let falls =
            |now: Option<FullXid>, before: Option<FullXid>| now.zip(before).is_some_and(|(a, b)| a < b);
        falls(self.xmin, before.xmin) || falls(self.catalog_xmin, before.catalog_xmin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_horizon_is_the_oldest_of_each_kind() {
        let a = FeedbackHorizon { xmin: FullXid::new(1, 5), catalog_xmin: None };
        let b = FeedbackHorizon { xmin: FullXid::new(0, 700), catalog_xmin: FullXid::new(0, 9) };
        assert_eq!(a.merge(b), b);
        assert_eq!(a.merge(FeedbackHorizon::default()), a);
    }

    #[test]
    fn a_horizon_falls_only_behind_one_that_was_there() {
        let at = |xmin, catalog_xmin| FeedbackHorizon {
            xmin: FullXid::new(0, xmin),
            catalog_xmin: FullXid::new(0, catalog_xmin),
        };
        assert!(at(5, 0).falls_behind(at(6, 0)) && at(7, 3).falls_behind(at(6, 4)));
        assert!(!at(6, 0).falls_behind(at(6, 0)) && !at(7, 3).falls_behind(at(6, 0)));
        assert!(!at(5, 0).falls_behind(at(0, 4)) && !at(0, 0).falls_behind(at(6, 4)));
    }
}
