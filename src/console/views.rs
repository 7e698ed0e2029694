//! The views: their columns in each version (PostgreSQL: `system_views.sql`), and the relay's rows.

mod server;
mod settings;

use crate::overlay::Row;
use crate::wire::PgError;
use crate::wire::messages::ColumnType::{
    self, Bool, Inet, Int4, Int8, Interval, Name, Numeric, Oid, PgLsn, Text, TextArray, Timestamptz, Xid,
};

use super::{Facts, Instead, flag, report, unreachable_upstream};

/// A view's columns.
pub(super) type Columns = Vec<(&'static str, ColumnType)>;

/// All there are in the relay's own database. In the place of the upstream it is the first two, and what is asked about the role.
pub(super) const NAMES: [&str; 14] = [
    "pg_replication_slots",
    "pg_stat_replication",
    "pg_stat_wal_receiver",
    "pg_stat_archiver",
    "pg_stat_activity",
    "pg_stat_ssl",
    "pg_settings",
    "pg_database",
    "pg_user",
    server::DATABASES,
    server::CONFLICTS,
    server::WRITER,
    server::CHECKPOINTER,
    server::LOCKS,
];

/// By its whole name, as nothing else of that schema is there.
pub(super) const INFORMATION: &str = "information_schema.columns";

/// A function that returns rows.
const CONTROL_SYSTEM: &str = "pg_control_system";

/// The columns of the view of that name, as the upstream's version has them. It is taken for an old one until it is known.
pub(super) fn columns(name: &str, facts: &dyn Facts) -> Option<Columns> {
    let is_own = facts.instead() == Instead::OwnDatabase;
    Some(match name {
        "pg_replication_slots" => slot_columns(major(facts)),
        "pg_stat_replication" => SENDER_COLUMNS.to_vec(),
        "pg_user" => USER_COLUMNS.to_vec(),
        "pg_stat_wal_receiver" if is_own => RECEIVER_COLUMNS.to_vec(),
        "pg_stat_archiver" if is_own => ARCHIVER_COLUMNS.to_vec(),
        "pg_stat_activity" if is_own => ACTIVITY_COLUMNS.to_vec(),
        "pg_stat_ssl" if is_own => SSL_COLUMNS.to_vec(),
        "pg_settings" if is_own => settings::COLUMNS.to_vec(),
        "pg_database" if is_own => database_columns(major(facts)),
        INFORMATION if is_own => INFORMATION_COLUMNS.to_vec(),
        name if is_own => return server::columns(name, facts),
        _ => return None,
    })
}

/// What a function of that name returns, if that is rows: the name that [`rows`] has for them, and their columns.
pub(super) fn function(name: &str, facts: &dyn Facts) -> Option<(&'static str, Columns)> {
    match name {
        CONTROL_SYSTEM => Some((CONTROL_SYSTEM, CONTROL_COLUMNS.to_vec())),
        "pg_show_all_settings" => columns("pg_settings", facts).map(|columns| ("pg_settings", columns)),
        _ => None,
    }
}

/// The rows of a view or function.
pub(super) fn rows(name: &str, facts: &dyn Facts) -> Result<Vec<Row>, PgError> {
    Ok(match name {
        "pg_replication_slots" => facts.slots(),
        "pg_stat_replication" => facts.senders(),
        "pg_user" => vec![user_row(facts)?],
        "pg_stat_wal_receiver" => receiver_rows(facts),
        "pg_stat_archiver" => archiver_rows(facts),
        "pg_stat_activity" => activity_rows(facts),
        // PG: of those about whom the role may know nothing there is no row.
        "pg_stat_ssl" => facts.sessions().into_iter().filter(|row| row.get("ssl").is_some()).collect(),
        "pg_settings" => settings::rows(facts),
        "pg_database" => vec![database_row(facts)],
        CONTROL_SYSTEM => vec![control_row(facts)?],
        INFORMATION => information_rows(facts),
        name => server::rows(name, facts),
    })
}

/// The columns of a result must be known to [`columns`] too: what a function returns is.
pub(super) fn columns_of_rows(name: &str, facts: &dyn Facts) -> Columns {
    let of_function = || function(name, facts).map(|(_, columns)| columns);
    columns(name, facts).or_else(of_function).unwrap_or_default()
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

const ACTIVITY_COLUMNS: [(&str, ColumnType); 22] = [
    ("datid", Oid),
    ("datname", Name),
    ("pid", Int4),
    ("leader_pid", Int4),
    ("usesysid", Oid),
    ("usename", Name),
    ("application_name", Text),
    ("client_addr", Inet),
    ("client_hostname", Text),
    ("client_port", Int4),
    ("backend_start", Timestamptz),
    ("xact_start", Timestamptz),
    ("query_start", Timestamptz),
    ("state_change", Timestamptz),
    ("wait_event_type", Text),
    ("wait_event", Text),
    ("state", Text),
    ("backend_xid", Xid),
    ("backend_xmin", Xid),
    ("query_id", Int8),
    ("query", Text),
    ("backend_type", Text),
];

const SSL_COLUMNS: [(&str, ColumnType); 8] = [
    ("pid", Int4),
    ("ssl", Bool),
    ("version", Text),
    ("cipher", Text),
    ("bits", Int4),
    ("client_dn", Text),
    ("client_serial", Numeric),
    ("issuer_dn", Text),
];

/// Sessions, and what receives, which has the process as its own.
fn activity_rows(facts: &dyn Facts) -> Vec<Row> {
    let database = facts.database();
    let with_number = |row: Row| match row.get("datname") == Some(database.as_str()) {
        true => row.with("datid", DATABASE.to_string()),
        false => row,
    };
    let mut rows: Vec<_> = facts.sessions().into_iter().map(with_number).collect();
    let receiver = Row::default().with("pid", std::process::id().to_string());
    rows.push(match facts.sees_all() {
        true => {
            receiver.with("backend_type", "walreceiver".to_owned()).with("backend_start", facts.started_at())
        }
        false => receiver.with("query", HIDDEN.to_owned()),
    });
    rows
}

/// Of each session the database that it is in, if it is in one.
fn database_of_sessions(facts: &dyn Facts) -> impl Iterator<Item = String> {
    facts.sessions().into_iter().filter_map(|row| row.get("datname").map(str::to_owned))
}

/// PG: `pg_stat_get_activity`
const HIDDEN: &str = "<insufficient privilege>";

/// The number of the one database, as that of the first which a server makes.
const DATABASE: u32 = 16_384;

/// From which version on and before which each is there. What has a type that there is not here is left out.
const DATABASE_COLUMNS: [(u32, u32, &str, ColumnType); 20] = [
    (0, u32::MAX, "oid", Oid),
    (0, u32::MAX, "datname", Name),
    (0, u32::MAX, "datdba", Oid),
    (0, u32::MAX, "encoding", Int4),
    (0, 15, "datcollate", Name),
    (0, 15, "datctype", Name),
    (0, u32::MAX, "datistemplate", Bool),
    (0, u32::MAX, "datallowconn", Bool),
    (17, u32::MAX, "dathasloginevt", Bool),
    (0, u32::MAX, "datconnlimit", Int4),
    (0, 15, "datlastsysoid", Oid),
    (0, u32::MAX, "datfrozenxid", Xid),
    (0, u32::MAX, "datminmxid", Xid),
    (0, u32::MAX, "dattablespace", Oid),
    (15, u32::MAX, "datcollate", Text),
    (15, u32::MAX, "datctype", Text),
    (15, 17, "daticulocale", Text),
    (17, u32::MAX, "datlocale", Text),
    (16, u32::MAX, "daticurules", Text),
    (15, u32::MAX, "datcollversion", Text),
];

fn database_columns(major: u32) -> Columns {
    let of_version =
        DATABASE_COLUMNS.into_iter().filter(|(since, until, ..)| (*since..*until).contains(&major));
    of_version.map(|(_, _, name, kind)| (name, kind)).collect()
}

fn database_row(facts: &dyn Facts) -> Row {
    // PG_UTF8
    let (utf8, no) = ("6".to_owned(), flag(false));
    Row::default()
        .with("oid", DATABASE.to_string())
        .with("datname", facts.database())
        .with("encoding", utf8)
        .with("datistemplate", no.clone())
        .with("datallowconn", flag(true))
        .with("dathasloginevt", no)
        .with("datconnlimit", "-1".to_owned())
        .with("datcollate", "C".to_owned())
        .with("datctype", "C".to_owned())
}

const USER_COLUMNS: [(&str, ColumnType); 9] = [
    ("usename", Name),
    ("usesysid", Oid),
    ("usecreatedb", Bool),
    ("usesuper", Bool),
    ("userepl", Bool),
    ("usebypassrls", Bool),
    ("passwd", Text),
    ("valuntil", Timestamptz),
    ("useconfig", TextArray),
];

/// Of the session's role, as nothing is known of others.
fn user_row(facts: &dyn Facts) -> Result<Row, PgError> {
    let is_superuser = facts.is_superuser().ok_or_else(unreachable_upstream)?;
    Ok(Row::default().with("usename", facts.user()).with("usesuper", flag(is_superuser)))
}

const INFORMATION_COLUMNS: [(&str, ColumnType); 5] = [
    ("table_catalog", Name),
    ("table_schema", Name),
    ("table_name", Name),
    ("column_name", Name),
    ("ordinal_position", Int4),
];

/// Which columns there are: who works with servers of many versions asks.
fn information_rows(facts: &dyn Facts) -> Vec<Row> {
    let of_view = |name: &'static str| {
        let columns = columns(name, facts).unwrap_or_default().into_iter().zip(1..);
        columns.map(move |((column, _), at): (_, u32)| (name, column, at))
    };
    let row = |(view, column, at): (&str, &str, u32)| {
        Row::default()
            .with("table_catalog", facts.database())
            .with("table_schema", "pg_catalog".to_owned())
            .with("table_name", view.to_owned())
            .with("column_name", column.to_owned())
            .with("ordinal_position", at.to_string())
    };
    NAMES.into_iter().flat_map(of_view).map(row).collect()
}

const CONTROL_COLUMNS: [(&str, ColumnType); 4] = [
    ("pg_control_version", Int4),
    ("catalog_version_no", Int4),
    ("system_identifier", Int8),
    ("pg_control_last_modified", Timestamptz),
];

fn control_row(facts: &dyn Facts) -> Result<Row, PgError> {
    let identifier = facts.system_identifier().ok_or_else(unreachable_upstream)?;
    Ok(Row::default().with("system_identifier", identifier))
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
