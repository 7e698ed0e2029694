//! Rows by names that others choose: as many as there is room for, and one for the rest.

use std::collections::BTreeMap;

use crate::status::{ConsumerStatus, Distance, SlotStatus, Status};

/// So many consumers' and slots' names have rows of their own.
pub const MOST_NAMED: usize = 100;
/// Whose row is that of those for whom there is no room. A consumer may have that name, too, and is one of them then.
const OTHER: &str = "other";

/// What consumers of one `application_name` have in common.
#[derive(Default)]
pub(super) struct ConsumerGroup {
    /// How many there are.
    pub(super) count: u64,
    /// Of each kind of position, the lag of the one that is farthest behind.
    pub(super) lags: BTreeMap<&'static str, (u64, f64)>,
}

/// Consumers by their names.
pub(super) fn consumers(status: &Status) -> BTreeMap<String, ConsumerGroup> {
    let mut groups: BTreeMap<String, ConsumerGroup> = BTreeMap::new();
    for consumer in &status.consumers {
        let name = room_for(&groups, &consumer.application_name);
        groups.entry(name).or_default().add(consumer);
    }
    groups
}

impl ConsumerGroup {
    fn add(&mut self, consumer: &ConsumerStatus) {
        self.count += 1;
        let ConsumerStatus { sent, write, flush, replay, .. } = consumer;
        for (position, distance) in [("sent", sent), ("write", write), ("flush", flush), ("replay", replay)] {
            let Some(Distance { lag_bytes, lag_seconds, .. }) = distance else { continue };
            let (bytes, seconds) = self.lags.entry(position).or_default();
            (*bytes, *seconds) = ((*bytes).max(*lag_bytes), seconds.max(*lag_seconds));
        }
    }
}

/// Slots by their names; those for whom there is no room together.
pub(super) fn slots(status: &Status) -> BTreeMap<String, Vec<&SlotStatus>> {
    let mut groups: BTreeMap<String, Vec<&SlotStatus>> = BTreeMap::new();
    // Temporary ones have a name for each connection.
    for slot in status.slots.iter().filter(|slot| !slot.temporary) {
        let name = room_for(&groups, &slot.name);
        groups.entry(name).or_default().push(slot);
    }
    groups
}

fn room_for<T>(groups: &BTreeMap<String, T>, name: &str) -> String {
    let has_room = groups.contains_key(name) || groups.len() < MOST_NAMED;
    if has_room { name } else { OTHER }.to_owned()
}
