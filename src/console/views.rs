//! The columns of the two views in each version (PostgreSQL: `system_views.sql`).

use walrelay_proto::Lsn;

use crate::overlay::Row;
use crate::wire::messages::ColumnType::{
    self, Bool, Inet, Int4, Int8, Interval, Name, Oid, PgLsn, Text, Timestamptz, Xid,
};

use super::{Facts, Instead, report};

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
        "pg_stat_wal_receiver" if facts.instead() == Instead::OwnDatabase => {
            Some(View { columns: RECEIVER_COLUMNS.to_vec(), rows: receiver_rows(facts) })
        }
        "pg_stat_archiver" if facts.instead() == Instead::OwnDatabase => {
            Some(View { columns: ARCHIVER_COLUMNS.to_vec(), rows: archiver_rows(facts) })
        }
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

const RECEIVER_COLUMNS: [(&str, ColumnType); 15] = [
    ("pid", Int4),
    ("status", Text),
    ("receive_start_lsn", PgLsn),
    ("receive_start_tli", Int4),
    ("written_lsn", PgLsn),
    ("flushed_lsn", PgLsn),
    ("received_tli", Int4),
    ("last_msg_send_time", Timestamptz),
    ("last_msg_receipt_time", Timestamptz),
    ("latest_end_lsn", PgLsn),
    ("latest_end_time", Timestamptz),
    ("slot_name", Text),
    ("sender_host", Text),
    ("sender_port", Int4),
    ("conninfo", Text),
];

/// One row, of which only the process is for everybody (PostgreSQL: `pg_stat_get_wal_receiver`). When a message was sent
/// is not noted.
fn receiver_rows(facts: &dyn Facts) -> Vec<Row> {
    let row = Row::default().with("pid", std::process::id().to_string());
    let Some(status) = report::visible(facts) else { return vec![row] };
    let (upstream, relay) = (&status.upstream, &status.relay);
    let (host, port) = upstream.host.as_deref().map(host_and_port).unwrap_or_default();
    vec![
        row.with("status", upstream.state.clone())
            .with("receive_start_lsn", upstream.stream_start_lsn.map(|lsn| lsn.to_string()))
            .with("receive_start_tli", upstream.stream_start_timeline.map(|tli| tli.to_string()))
            .with("written_lsn", relay.write_lsn.map(|lsn| lsn.to_string()))
            .with("flushed_lsn", relay.flush_lsn.map(|lsn| lsn.to_string()))
            .with("received_tli", relay.timeline.map(|tli| tli.to_string()))
            .with("last_msg_receipt_time", upstream.last_message_at.map(|at| at.to_string()))
            .with("latest_end_lsn", upstream.end_lsn.map(|lsn| lsn.to_string()))
            .with("latest_end_time", upstream.end_at.map(|at| at.to_string()))
            .with("slot_name", upstream.slot.clone())
            .with("sender_host", host)
            .with("sender_port", port)
            .with("conninfo", upstream.conninfo.clone()),
    ]
}

/// Of `"primary" (10.0.0.1), port 5432` and `/tmp/.s.PGSQL.5432`.
fn host_and_port(shown: &str) -> (Option<String>, Option<String>) {
    let parts = shown.rsplit_once(", port ").or_else(|| shown.rsplit_once("/.s.PGSQL."));
    let Some((host, port)) = parts else { return (Some(shown.to_owned()), None) };
    let name = host.strip_prefix('"').and_then(|host| host.split('"').next()).unwrap_or(host);
    (Some(name.to_owned()), Some(port.to_owned()))
}

const ARCHIVER_COLUMNS: [(&str, ColumnType); 7] = [
    ("archived_count", Int8),
    ("last_archived_wal", Text),
    ("last_archived_time", Timestamptz),
    ("failed_count", Int8),
    ("last_failed_wal", Text),
    ("last_failed_time", Timestamptz),
    ("stats_reset", Timestamptz),
];

/// All targets as one archiver: what the one has that has got least, the failures of all, and the last of them.
fn archiver_rows(facts: &dyn Facts) -> Vec<Row> {
    let Some(status) = report::visible(facts) else { return vec![Row::default()] };
    let slowest = status.archive.iter().min_by_key(|target| (target.last_archived_at, target.archived_files));
    let failed = status.archive.iter().max_by_key(|target| target.last_failed_at);
    let failures: u64 = status.archive.iter().map(|target| target.failures).sum();
    let row = Row::default()
        .with("archived_count", slowest.map_or(0, |target| target.archived_files).to_string())
        .with("last_archived_wal", slowest.and_then(|target| target.last_archived_file.clone()))
        .with("last_archived_time", slowest.and_then(|it| it.last_archived_at).map(|at| at.to_string()))
        .with("failed_count", failures.to_string())
        .with("last_failed_wal", failed.and_then(|target| target.last_failed_file.clone()))
        .with("last_failed_time", failed.and_then(|it| it.last_failed_at).map(|at| at.to_string()))
        .with("stats_reset", status.relay.started_at.to_string());
    vec![row]
}

#[cfg(test)]
mod tests {
    use super::host_and_port;

    #[test]
    fn hosts_and_ports_are_told_apart() {
        let check = |shown, host: &str, port: Option<&str>| {
            let expected = (Some(host.to_owned()), port.map(str::to_owned));
            assert_eq!(host_and_port(shown), expected, "{shown}");
        };
        check("\"primary\" (10.0.0.1), port 5432", "primary", Some("5432"));
        check("\"10.0.0.1\", port 5433", "10.0.0.1", Some("5433"));
        check("/tmp/.s.PGSQL.5434", "/tmp", Some("5434"));
        check("odd", "odd", None);
    }
}
