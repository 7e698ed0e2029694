//! Views about what a server does and a relay does not: background writing, transactions, locks, conflicts. They are there because
//! exporters ask for them with everything else; what is counted in them has happened 0 times.

use super::{Columns, DATABASE, Facts, database_of_sessions, major};
use crate::overlay::Row;
use crate::wire::messages::ColumnType::{
    self, Bool, Float8, Int2, Int4, Int8, Name, Oid, Text, Timestamptz, Xid,
};

/// Names of these views.
pub(super) const DATABASES: &str = "pg_stat_database";
pub(super) const CONFLICTS: &str = "pg_stat_database_conflicts";
pub(super) const WRITER: &str = "pg_stat_bgwriter";
pub(super) const CHECKPOINTER: &str = "pg_stat_checkpointer";
pub(super) const LOCKS: &str = "pg_locks";

/// The columns, as the upstream's version has them; `None` for another view, or one that it has not.
pub(super) fn columns(name: &str, facts: &dyn Facts) -> Option<Columns> {
    let major = major(facts);
    let of_version = |columns: &[(u32, &'static str, ColumnType)]| {
        let known = columns.iter().filter(|(since, ..)| *since <= major);
        known.map(|(_, name, kind)| (*name, *kind)).collect::<Columns>()
    };
    Some(match name {
        DATABASES => of_version(&DATABASE_COLUMNS),
        CONFLICTS => of_version(&CONFLICT_COLUMNS),
        WRITER if major < 17 => OLD_WRITER_COLUMNS.to_vec(),
        WRITER => WRITER_COLUMNS.to_vec(),
        CHECKPOINTER if major >= 17 => of_version(&CHECKPOINTER_COLUMNS),
        LOCKS => LOCK_COLUMNS.to_vec(),
        _ => return None,
    })
}

/// The rows of a view that [`columns`] knows.
pub(super) fn rows(name: &str, facts: &dyn Facts) -> Vec<Row> {
    let zeros = |row: Row| {
        let counted = columns(name, facts).unwrap_or_default().into_iter().filter(|(column, kind)| {
            matches!(kind, Int8 | Float8) && !["checksum_failures"].contains(column)
        });
        counted.fold(row, |row, (column, _)| row.with(column, "0".to_owned()))
    };
    let since = |row: Row| row.with("stats_reset", facts.started_at());
    let database = || Row::default().with("datid", DATABASE.to_string()).with("datname", facts.database());
    match name {
        DATABASES => {
            let sessions = database_of_sessions(facts).filter(|name| *name == facts.database()).count();
            // PG: what belongs to no database is of the one with the number 0. Pages have no checksums here.
            let shared = Row::default().with("datid", "0".to_owned()).with("numbackends", "0".to_owned());
            [shared, database().with("numbackends", sessions.to_string())].map(|row| since(zeros(row))).into()
        }
        CONFLICTS => vec![since(zeros(database()))],
        WRITER | CHECKPOINTER => vec![since(zeros(Row::default()))],
        _ => Vec::new(),
    }
}

const DATABASE_COLUMNS: [(u32, &str, ColumnType); 30] = [
    (0, "datid", Oid),
    (0, "datname", Name),
    (0, "numbackends", Int4),
    (0, "xact_commit", Int8),
    (0, "xact_rollback", Int8),
    (0, "blks_read", Int8),
    (0, "blks_hit", Int8),
    (0, "tup_returned", Int8),
    (0, "tup_fetched", Int8),
    (0, "tup_inserted", Int8),
    (0, "tup_updated", Int8),
    (0, "tup_deleted", Int8),
    (0, "conflicts", Int8),
    (0, "temp_files", Int8),
    (0, "temp_bytes", Int8),
    (0, "deadlocks", Int8),
    (0, "checksum_failures", Int8),
    (0, "checksum_last_failure", Timestamptz),
    (0, "blk_read_time", Float8),
    (0, "blk_write_time", Float8),
    (0, "session_time", Float8),
    (0, "active_time", Float8),
    (0, "idle_in_transaction_time", Float8),
    (0, "sessions", Int8),
    (0, "sessions_abandoned", Int8),
    (0, "sessions_fatal", Int8),
    (0, "sessions_killed", Int8),
    (18, "parallel_workers_to_launch", Int8),
    (18, "parallel_workers_launched", Int8),
    (0, "stats_reset", Timestamptz),
];

const CONFLICT_COLUMNS: [(u32, &str, ColumnType); 9] = [
    (0, "datid", Oid),
    (0, "datname", Name),
    (0, "confl_tablespace", Int8),
    (0, "confl_lock", Int8),
    (0, "confl_snapshot", Int8),
    (0, "confl_bufferpin", Int8),
    (0, "confl_deadlock", Int8),
    (16, "confl_active_logicalslot", Int8),
    (19, "stats_reset", Timestamptz),
];

const OLD_WRITER_COLUMNS: [(&str, ColumnType); 11] = [
    ("checkpoints_timed", Int8),
    ("checkpoints_req", Int8),
    ("checkpoint_write_time", Float8),
    ("checkpoint_sync_time", Float8),
    ("buffers_checkpoint", Int8),
    ("buffers_clean", Int8),
    ("maxwritten_clean", Int8),
    ("buffers_backend", Int8),
    ("buffers_backend_fsync", Int8),
    ("buffers_alloc", Int8),
    ("stats_reset", Timestamptz),
];

const WRITER_COLUMNS: [(&str, ColumnType); 4] = [
    ("buffers_clean", Int8),
    ("maxwritten_clean", Int8),
    ("buffers_alloc", Int8),
    ("stats_reset", Timestamptz),
];

const CHECKPOINTER_COLUMNS: [(u32, &str, ColumnType); 11] = [
    (17, "num_timed", Int8),
    (17, "num_requested", Int8),
    (18, "num_done", Int8),
    (17, "restartpoints_timed", Int8),
    (17, "restartpoints_req", Int8),
    (17, "restartpoints_done", Int8),
    (17, "write_time", Float8),
    (17, "sync_time", Float8),
    (17, "buffers_written", Int8),
    (18, "slru_written", Int8),
    (17, "stats_reset", Timestamptz),
];

const LOCK_COLUMNS: [(&str, ColumnType); 16] = [
    ("locktype", Text),
    ("database", Oid),
    ("relation", Oid),
    ("page", Int4),
    ("tuple", Int2),
    ("virtualxid", Text),
    ("transactionid", Xid),
    ("classid", Oid),
    ("objid", Oid),
    ("objsubid", Int2),
    ("virtualtransaction", Text),
    ("pid", Int4),
    ("mode", Text),
    ("granted", Bool),
    ("fastpath", Bool),
    ("waitstart", Timestamptz),
];
