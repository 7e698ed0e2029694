//! The columns of the two views in each version (PostgreSQL: `system_views.sql`).

use walrelay_proto::Lsn;

use crate::overlay::Row;
use crate::wire::messages::ColumnType::{
    self, Bool, Inet, Int4, Int8, Interval, Name, Oid, PgLsn, Text, Timestamptz, Xid,
};

use super::Facts;

/// A view, the relay's rows in it.
pub(super) struct View {
    pub(super) columns: Vec<(&'static str, ColumnType)>,
    pub(super) rows: Vec<Row>,
}

/// The view of that name, with the columns the upstream's version has. It is taken for an old one until it is known.
pub(super) fn view(name: &str, facts: &dyn Facts) -> Option<View> {
    let mut view = columns_and_rows(name, facts)?;
    let (columns, major) = (&view.columns, major(facts));
    let is_position = |column: &str| columns.iter().any(|(name, kind)| *name == column && *kind == PgLsn);
    let written = |column: &str, value: String| match value.parse::<Lsn>() {
        Ok(lsn) if is_position(column) => lsn.text(major),
        _ => value,
    };
    view.rows = view.rows.into_iter().map(|row| row.map(written)).collect();
    Some(view)
}

fn columns_and_rows(name: &str, facts: &dyn Facts) -> Option<View> {
    match name {
        "pg_replication_slots" => Some(View { columns: slot_columns(major(facts)), rows: facts.slots() }),
        "pg_stat_replication" => Some(View { columns: SENDER_COLUMNS.to_vec(), rows: facts.senders() }),
        _ => None,
    }
}

/// The upstream's major version; 0 until it is known.
pub(super) fn major(facts: &dyn Facts) -> u32 {
    let version = facts.setting("server_version").unwrap_or_default();
    version.split(|c: char| !c.is_ascii_digit()).next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

fn slot_columns(major: u32) -> Vec<(&'static str, ColumnType)> {
    let mut columns = vec![
        ("slot_name", Name),
        ("plugin", Name),
        ("slot_type", Text),
        ("datoid", Oid),
        ("database", Name),
        ("temporary", Bool),
        ("active", Bool),
        ("active_pid", Int4),
        ("xmin", Xid),
        ("catalog_xmin", Xid),
        ("restart_lsn", PgLsn),
        ("confirmed_flush_lsn", PgLsn),
        ("wal_status", Text),
        ("safe_wal_size", Int8),
    ];
    let later = [
        (14.., ("two_phase", Bool)),
        (18.., ("two_phase_at", PgLsn)),
        (17.., ("inactive_since", Timestamptz)),
        (16.., ("conflicting", Bool)),
        (17.., ("invalidation_reason", Text)),
        (17.., ("failover", Bool)),
        (17.., ("synced", Bool)),
        (19.., ("slotsync_skip_reason", Text)),
    ];
    columns.extend(later.into_iter().filter(|(since, _)| since.contains(&major)).map(|(_, column)| column));
    columns
}

const SENDER_COLUMNS: [(&str, ColumnType); 20] = [
    ("pid", Int4),
    ("usesysid", Oid),
    ("usename", Name),
    ("application_name", Text),
    ("client_addr", Inet),
    ("client_hostname", Text),
    ("client_port", Int4),
    ("backend_start", Timestamptz),
    ("backend_xmin", Xid),
    ("state", Text),
    ("sent_lsn", PgLsn),
    ("write_lsn", PgLsn),
    ("flush_lsn", PgLsn),
    ("replay_lsn", PgLsn),
    ("write_lag", Interval),
    ("flush_lag", Interval),
    ("replay_lag", Interval),
    ("sync_priority", Int4),
    ("sync_state", Text),
    ("reply_time", Timestamptz),
];
