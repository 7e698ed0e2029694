//! The relay's rows of `pg_replication_slots` and `pg_stat_replication`.
//!
//! Values are texts as PostgreSQL's input functions take them, whatever the session's settings are. A column the
//! upstream's version does not have is left out there.

use serde_json::{Map, Value};
use walrelay_proto::ack::Standing;
use walrelay_proto::{FullXid, Lsn, SegSize};

use crate::consumers::ConsumerStatus;
use crate::moment::interval;
use crate::store::{ArchivedWal, SlotInfo, Store};

/// Columns of `pg_replication_slots` that the relay has values for.
pub const SLOT_COLUMNS: [&str; 17] = [
    "slot_name",
    "slot_type",
    "temporary",
    "active",
    "active_pid",
    "xmin",
    "catalog_xmin",
    "restart_lsn",
    "wal_status",
    "safe_wal_size",
    "two_phase",
    "inactive_since",
    "invalidation_reason",
    "failover",
    "synced",
    "plugin",
    "database",
];

/// Columns of `pg_stat_replication` that the relay has values for; `usesysid` is the upstream's.
pub const SENDER_COLUMNS: [&str; 18] = [
    "pid",
    "usename",
    "application_name",
    "client_addr",
    "client_port",
    "backend_start",
    "backend_xmin",
    "state",
    "sent_lsn",
    "write_lsn",
    "flush_lsn",
    "replay_lsn",
    "write_lag",
    "flush_lag",
    "replay_lag",
    "sync_priority",
    "sync_state",
    "reply_time",
];

/// A row of a view: its columns' values by name; what is not there is NULL.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Row {
    values: Vec<(&'static str, String)>,
}

impl Row {
    /// The value of a column; `None` is NULL.
    pub fn get(&self, column: &str) -> Option<&str> {
        self.values.iter().find(|(name, _)| *name == column).map(|(_, value)| value.as_str())
    }

    /// The same with a column set; NULL leaves it as it was.
    #[must_use]
    pub fn with(mut self, column: &'static str, value: impl Into<Option<String>>) -> Row {
        self.values.extend(value.into().map(|value| (column, value)));
        self
    }

    /// The same with each value replaced by what `change` makes of it and its column's name.
    #[must_use]
    pub fn map(mut self, change: impl Fn(&str, String) -> String) -> Row {
        for (column, value) in &mut self.values {
            *value = change(column, std::mem::take(value));
        }
        self
    }

    pub(super) fn into_json(self) -> Value {
        let fields = self.values.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value)));
        Value::Object(fields.collect::<Map<_, _>>())
    }
}

/// How much WAL is held and how much may be: what a slot's `wal_status` depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holdings {
    /// End of the WAL.
    pub write_lsn: Lsn,
    /// Start of the oldest segment.
    pub oldest: Lsn,
    /// The cluster's segment size.
    pub seg_size: SegSize,
    /// Bytes kept without any slot.
    pub wal_keep_size: u64,
    /// Bytes slots may keep; `None` for no limit.
    pub max_slot_wal_keep_size: Option<u64>,
    /// What the archive can bring back.
    pub archived: Option<ArchivedWal>,
}

impl Holdings {
    /// What a store has now, as far as is known without the disk; `None` before it has any WAL.
    pub fn of(store: &Store) -> Option<Holdings> {
        Some(Holdings {
            write_lsn: store.tip()?.write_lsn,
            oldest: store.oldest_kept()?,
            seg_size: store.identity()?.seg_size,
            wal_keep_size: store.keep_sizes().wal_keep_size,
            max_slot_wal_keep_size: store.keep_sizes().max_slot_wal_keep_size,
            archived: store.recallable(),
        })
    }

    /// PostgreSQL: `GetWALAvailability`, with the relay's `wal_keep_size` where the server has `max_wal_size`.
    fn wal_status(&self, restart_lsn: Lsn) -> &'static str {
        let within = |bytes: u64| restart_lsn >= self.write_lsn.rewind(bytes).seg_start(self.seg_size);
        if restart_lsn < self.oldest {
            if self.is_archived(restart_lsn) { "extended" } else { "lost" }
        } else if within(self.wal_keep_size.max(self.seg_size.bytes())) {
            "reserved"
        } else if self.max_slot_wal_keep_size.is_none_or(within) || self.is_archived(restart_lsn) {
            "extended"
        } else {
            "unreserved"
        }
    }

    /// Whether the archive has all that is not here.
    fn is_archived(&self, restart_lsn: Lsn) -> bool {
        self.archived.is_some_and(|wal| wal.from <= restart_lsn && self.oldest <= wal.to)
    }

    /// Bytes of WAL that can come until the slot may lose what it needs; `None` if that cannot happen
    /// (PostgreSQL: `safe_wal_size`). Below zero when it may happen any moment.
    fn safe_wal_size(&self, restart_lsn: Lsn) -> Option<i64> {
        let limit = self.max_slot_wal_keep_size.filter(|_| !self.is_archived(restart_lsn))?;
        let fails = restart_lsn.seg_at(self.seg_size).end(self.seg_size).advance(limit);
        // Consumers may report any position; the column is an int8.
        let bytes = i128::from(fails.as_u64()) - i128::from(self.write_lsn.as_u64());
        Some(bytes.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
    }
}

/// The rows of all slots.
pub fn slot_rows(store: &Store) -> Vec<Row> {
    let holdings = Holdings::of(store);
    store.slots().list().iter().map(|slot| slot_row(slot, holdings.as_ref())).collect()
}

/// The rows of all consumers.
pub fn sender_rows(store: &Store) -> Vec<Row> {
    store.consumers().list().iter().map(sender_row).collect()
}

/// A slot's row (PostgreSQL: `pg_get_replication_slots`).
pub fn slot_row(slot: &SlotInfo, holdings: Option<&Holdings>) -> Row {
    let held = || holdings.zip(slot.restart_lsn);
    let status = match slot.invalidated {
        true => Some("lost"),
        false => held().map(|(holdings, lsn)| holdings.wal_status(lsn)),
    };
    // Somebody who still streams from what is removed has a file open that may save the slot.
    let status = match status {
        Some("lost") if slot.active_pid.is_some() && !slot.invalidated => Some("unreserved"),
        status => status,
    };
    let safe = held().filter(|_| status != Some("lost")).and_then(|(held, lsn)| held.safe_wal_size(lsn));
    let lost = slot.invalidated.then(|| "wal_removed".to_owned());
    Row::default()
        .with("slot_name", slot.name.clone())
        .with("slot_type", "physical".to_owned())
        .with("temporary", flag(slot.temporary))
        .with("active", flag(slot.active_pid.is_some()))
        .with("active_pid", slot.active_pid.map(|pid| pid.to_string()))
        .with("xmin", slot.feedback.xmin.map(xid))
        .with("catalog_xmin", slot.feedback.catalog_xmin.map(xid))
        .with("restart_lsn", slot.restart_lsn.map(|lsn| lsn.to_string()))
        .with("wal_status", status.map(str::to_owned))
        .with("safe_wal_size", safe.map(|bytes| bytes.to_string()))
        .with("two_phase", flag(false))
        .with("inactive_since", slot.inactive_since.map(|since| since.moment().to_string()))
        .with("invalidation_reason", lost)
        .with("failover", flag(false))
        .with("synced", flag(false))
}

/// A consumer's row (PostgreSQL: `pg_stat_get_wal_senders`, `pg_stat_get_activity`).
pub fn sender_row(sender: &ConsumerStatus) -> Row {
    let identity = &sender.identity;
    let lsn = |lsn: Option<Lsn>| lsn.and_then(Lsn::valid).map(|lsn| lsn.to_string());
    let (priority, state) = match sender.standing {
        Standing::Async => (0, "async"),
        Standing::Sync(place) => (place, "sync"),
        Standing::Quorum => (1, "quorum"),
    };
    let port = identity.client_addr.map_or(-1, |addr| i32::from(addr.port()));
    Row::default()
        .with("pid", identity.pid.to_string())
        .with("usename", identity.user.clone())
        .with("application_name", identity.application_name.clone())
        .with("client_addr", identity.client_addr.map(|addr| addr.ip().to_canonical().to_string()))
        .with("client_port", port.to_string())
        .with("backend_start", identity.backend_start.moment().to_string())
        .with("backend_xmin", sender.feedback.xmin.map(xid))
        .with("state", sender.state.as_str().to_owned())
        .with("sent_lsn", lsn(sender.sent_lsn))
        .with("write_lsn", lsn(sender.write_lsn))
        .with("flush_lsn", lsn(sender.flush_lsn))
        .with("replay_lsn", lsn(sender.replay_lsn))
        .with("write_lag", sender.write_lag.map(interval))
        .with("flush_lag", sender.flush_lag.map(interval))
        .with("replay_lag", sender.replay_lag.map(interval))
        .with("sync_priority", priority.to_string())
        .with("sync_state", state.to_owned())
        .with("reply_time", sender.reply_time.map(|at| at.moment().to_string()))
}

fn flag(value: bool) -> String {
    if value { "t" } else { "f" }.to_owned()
}

fn xid(id: FullXid) -> String {
    id.xid.to_string()
}
