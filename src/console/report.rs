//! `SHOW CONSUMERS` and its kin, in the manner of PgBouncer: the relay's [`Status`] as rows.
//!
//! They are there in the relay's own database only, for members of `pg_monitor`; everybody may ask for the version and for
//! help. A column that is not known is NULL.

use std::time::Duration;

use crate::moment::interval;
use crate::status::{Distance, Status};
use crate::wire::messages::ColumnType::{self, Bool, Inet, Int4, Int8, Interval, PgLsn, Text, Timestamptz};
use crate::wire::{PgError, sqlstate};

use super::{Answer, Facts, Field, Instead, flag, orders};

/// What can be shown.
pub(super) struct Report {
    /// The word behind SHOW.
    pub(super) name: &'static str,
    /// What it tells.
    about: &'static str,
    columns: &'static [(&'static str, ColumnType)],
    rows: fn(&Status) -> Vec<Vec<Value>>,
}

type Value = Option<String>;

/// All there are.
pub(super) const REPORTS: &[Report] = &[
    Report {
        name: "troubles",
        about: "What somebody should look at, and what to do about it",
        columns: &[
            ("kind", Text),
            ("about", Text),
            ("since", Timestamptz),
            ("message", Text),
            ("alert", Text),
        ],
        rows: |status| {
            let rows = status.trouble_details.iter().map(|it| {
                vec![
                    some(&it.kind),
                    Some(it.about.clone()).filter(|about| !about.is_empty()),
                    text(it.since),
                    some(&it.message),
                    some(&it.alert),
                ]
            });
            rows.collect()
        },
    },
    Report {
        name: "ack",
        about: "Who must have WAL before it is reported upstream, and who keeps it back",
        columns: &[
            ("level", Text),
            ("rule", Text),
            ("synchronous_commit", Text),
            ("awaited", Bool),
            ("reached_lsn", PgLsn),
            ("held_bytes", Int8),
            ("waiting", Interval),
            ("waits_for", Text),
            ("degraded", Interval),
            ("degraded_to", Text),
            ("budget_left", Interval),
            ("budget_full_in", Interval),
        ],
        rows: |status| {
            let rows = status.ack.iter().map(|it| {
                vec![
                    some(&it.level),
                    some(&it.rule),
                    some(&it.synchronous_commit),
                    Some(flag(it.is_awaited)),
                    text(it.reached_lsn),
                    some(it.held_bytes),
                    seconds(it.waiting_seconds),
                    Some(it.waits_for.join(", ")).filter(|names| !names.is_empty()),
                    seconds(it.degraded_seconds),
                    it.degraded_to.clone(),
                    seconds(it.budget_left_seconds),
                    seconds(it.budget_full_in_seconds),
                ]
            });
            rows.collect()
        },
    },
    Report {
        name: "consumers",
        about: "Who receives from the relay, and what they lack",
        columns: &[
            ("pid", Int4),
            ("usename", Text),
            ("application_name", Text),
            ("client_addr", Inet),
            ("state", Text),
            ("slot_name", Text),
            ("sent_lsn", PgLsn),
            ("write_lsn", PgLsn),
            ("flush_lsn", PgLsn),
            ("replay_lsn", PgLsn),
            ("lag_bytes", Int8),
            ("lag", Interval),
            ("replay_lag_bytes", Int8),
            ("replay_lag", Interval),
            ("sent_bytes", Int8),
            ("backend_start", Timestamptz),
            ("reply_time", Timestamptz),
        ],
        rows: |status| {
            let lsn = |distance: Option<Distance>| text(distance.map(|it| it.lsn));
            let rows = status.consumers.iter().map(|it| {
                let safe = it.safe();
                vec![
                    some(it.pid),
                    some(&it.user),
                    some(&it.application_name),
                    it.client_addr.clone(),
                    some(&it.state),
                    it.slot.clone(),
                    lsn(it.sent),
                    lsn(it.write),
                    lsn(it.flush),
                    lsn(it.replay),
                    text(safe.map(|it| it.lag_bytes)),
                    seconds(safe.map(|it| it.lag_seconds)),
                    text(it.replay.map(|it| it.lag_bytes)),
                    seconds(it.replay.map(|it| it.lag_seconds)),
                    some(it.sent_bytes),
                    some(it.connected_at),
                    text(it.reply_at),
                ]
            });
            rows.collect()
        },
    },
    Report {
        name: "slots",
        about: "Replication slots, what each keeps, and whether it is lost",
        columns: &[
            ("slot_name", Text),
            ("temporary", Bool),
            ("active_pid", Int4),
            ("restart_lsn", PgLsn),
            ("wal_status", Text),
            ("held_bytes", Int8),
            ("safe_wal_size", Int8),
            ("lag_bytes", Int8),
            ("lag", Interval),
            ("inactive_since", Timestamptz),
            ("lost_because", Text),
        ],
        rows: |status| {
            let rows = status.slots.iter().map(|it| {
                vec![
                    some(&it.name),
                    Some(flag(it.temporary)),
                    text(it.active_pid),
                    text(it.restart.map(|it| it.lsn)),
                    it.wal_status.clone(),
                    some(it.held_bytes),
                    text(it.safe_wal_size),
                    text(it.restart.map(|it| it.lag_bytes)),
                    seconds(it.restart.map(|it| it.lag_seconds)),
                    text(it.inactive_since),
                    it.lost_because.clone(),
                ]
            });
            rows.collect()
        },
    },
    Report {
        name: "upstream",
        about: "Whom the relay receives from, and what would be lost with the power",
        columns: &[
            ("state", Text),
            ("since", Timestamptz),
            ("host", Text),
            ("conninfo", Text),
            ("slot_name", Text),
            ("server_version", Text),
            ("server_timeline", Int4),
            ("server_end_lsn", PgLsn),
            ("server_end_time", Timestamptz),
            ("unreceived_bytes", Int8),
            ("lag", Interval),
            ("last_commit_time", Timestamptz),
            ("unflushed_bytes", Int8),
            ("unflushed", Interval),
            ("last_message", Timestamptz),
            ("failing_since", Timestamptz),
            ("last_error", Text),
            ("last_error_time", Timestamptz),
        ],
        rows: |status| {
            let it = &status.upstream;
            vec![vec![
                some(&it.state),
                some(it.since),
                it.host.clone(),
                some(&it.conninfo),
                some(&it.slot),
                it.server_version.clone(),
                text(it.server_timeline),
                text(it.end_lsn),
                text(it.end_at),
                text(it.unreceived_bytes),
                seconds(Some(it.lag_seconds)),
                text(it.last_commit_at),
                some(it.unflushed_bytes),
                seconds(Some(it.unflushed_seconds)),
                text(it.last_message_at),
                text(it.failing_since),
                it.last_error.clone(),
                text(it.last_error_at),
            ]]
        },
    },
    Report {
        name: "failovers",
        about: "What became of acknowledged WAL where timelines were left",
        columns: &[
            ("time", Timestamptz),
            ("from_timeline", Int4),
            ("to_timeline", Int4),
            ("switch_lsn", PgLsn),
            ("acknowledged_lsn", PgLsn),
            ("verdict", Text),
            ("upstream_waited", Bool),
            ("commits_left", Int8),
            ("open", Bool),
        ],
        rows: |status| {
            let rows = status.failovers.iter().map(|it| {
                vec![
                    some(it.seen),
                    some(it.from_timeline),
                    some(it.to_timeline),
                    some(it.switch_lsn),
                    some(it.acknowledged_lsn),
                    some(&it.verdict),
                    Some(flag(it.upstream_waited)),
                    text(it.commits_left),
                    Some(flag(it.is_open)),
                ]
            });
            rows.collect()
        },
    },
    Report {
        name: "timelines",
        about: "The timelines on the way to the one that is followed",
        columns: &[("timeline", Int4), ("begin_lsn", PgLsn), ("end_lsn", PgLsn)],
        rows: |status| {
            let rows = status.timelines.iter();
            rows.map(|it| vec![some(it.timeline), text(it.begin_lsn), text(it.end_lsn)]).collect()
        },
    },
    Report {
        name: "segments",
        about: "Segments on the disk, by timeline",
        columns: &[
            ("timeline", Int4),
            ("first", Text),
            ("last", Text),
            ("complete", Int8),
            ("unfinished", Int8),
            ("bytes", Int8),
        ],
        rows: |status| {
            let rows = status.disk.segments.iter().map(|it| {
                vec![
                    some(it.timeline),
                    some(&it.first),
                    some(&it.last),
                    some(it.complete),
                    some(it.unfinished),
                    some(it.bytes),
                ]
            });
            rows.collect()
        },
    },
    Report {
        name: "disk",
        about: "The disk that the WAL is on, and when it is full",
        columns: &[
            ("looked_at", Timestamptz),
            ("size_bytes", Int8),
            ("free_bytes", Int8),
            ("wal_bytes", Int8),
            ("wal_files", Int8),
            ("full_in", Interval),
            ("sync_time", Interval),
            ("missing_segments", Int8),
            ("first_missing", Text),
            ("error", Text),
        ],
        rows: |status| {
            let it = &status.disk;
            vec![vec![
                text(it.looked_at),
                some(it.size_bytes),
                some(it.free_bytes),
                some(it.wal_bytes),
                some(it.wal_files),
                seconds(it.full_in_seconds),
                seconds(it.sync_seconds),
                some(it.missing_segments),
                it.first_missing.clone(),
                it.error.clone(),
            ]]
        },
    },
    Report {
        name: "holders",
        about: "What keeps WAL on the disk, and how much",
        columns: &[("kind", Text), ("name", Text), ("from_lsn", PgLsn), ("held_bytes", Int8)],
        rows: |status| {
            let rows = status.disk.holders.iter();
            rows.map(|it| vec![some(&it.kind), some(&it.name), text(it.from_lsn), some(it.held_bytes)])
                .collect()
        },
    },
    Report {
        name: "archive",
        about: "Archive targets, and what each has not got",
        columns: &[
            ("name", Text),
            ("place", Text),
            ("archived_files", Int8),
            ("last_archived_file", Text),
            ("last_archived_time", Timestamptz),
            ("pending_files", Int8),
            ("pending_bytes", Int8),
            ("at_risk_bytes", Int8),
            ("at_risk", Interval),
            ("failures", Int8),
            ("paused_since", Timestamptz),
            ("failing_since", Timestamptz),
            ("stalled_since", Timestamptz),
            ("last_failed_file", Text),
            ("last_failed_time", Timestamptz),
            ("last_error", Text),
            ("conflicts", Int8),
            ("gaps", Int8),
            ("quota_bytes", Int8),
        ],
        rows: |status| {
            let rows = status.archive.iter().map(|it| {
                vec![
                    some(&it.name),
                    some(&it.place),
                    some(it.archived_files),
                    it.last_archived_file.clone(),
                    text(it.last_archived_at),
                    some(it.pending_files),
                    text(it.pending_bytes),
                    text(it.at_risk_bytes),
                    seconds(it.at_risk_seconds),
                    some(it.failures),
                    text(it.paused_since),
                    text(it.failing_since),
                    text(it.stalled_since),
                    it.last_failed_file.clone(),
                    text(it.last_failed_at),
                    it.last_error.clone(),
                    some(it.conflicts),
                    some(it.open_gaps),
                    text(it.quota_bytes),
                ]
            });
            rows.collect()
        },
    },
    Report {
        name: "recalls",
        about: "WAL that is brought back from the archive for consumers",
        columns: &[
            ("sources", Int8),
            ("in_flight", Int8),
            ("fetched_segments", Int8),
            ("fetched_bytes", Int8),
            ("failures", Int8),
            ("last_error", Text),
            ("last_error_time", Timestamptz),
        ],
        rows: |status| {
            let it = &status.recalls;
            vec![vec![
                some(it.sources),
                some(it.in_flight),
                some(it.fetched_segments),
                some(it.fetched_bytes),
                some(it.failures),
                it.last_error.clone(),
                text(it.last_error_at),
            ]]
        },
    },
    Report {
        name: "config",
        about: "Settings in effect",
        columns: &[("name", Text), ("setting", Text), ("pending_restart", Bool)],
        rows: |status| {
            let rows = status.settings.iter();
            rows.map(|it| vec![some(&it.name), some(&it.value), Some(flag(it.pending_restart))]).collect()
        },
    },
    Report {
        name: "stats",
        about: "What has happened so often since the relay started",
        columns: &[("name", Text), ("value", Int8)],
        rows: stats,
    },
    Report {
        name: "events",
        about: "The newest warnings and errors of the log",
        columns: &[("time", Timestamptz), ("level", Text), ("message", Text)],
        rows: |status| {
            status.events.iter().map(|it| vec![some(it.at), some(&it.level), some(&it.message)]).collect()
        },
    },
    Report {
        name: "status",
        about: "All of this as one JSON document",
        columns: &[("status", Text)],
        rows: |status| vec![vec![serde_json::to_string(status).ok()]],
    },
];

fn stats(status: &Status) -> Vec<Vec<Value>> {
    let it = &status.counts;
    let numbers = [
        ("received_bytes", it.received_bytes),
        ("sent_bytes", it.sent_bytes),
        ("upstream_streams", it.upstream_streams),
        ("upstream_failures", it.upstream_failures),
        ("syncs", it.syncs.counts.iter().sum()),
        ("sync_microseconds", (it.syncs.total_seconds * 1e6) as u64),
        ("segments_made", it.segments_made),
        ("segments_removed", it.segments_removed),
        ("slots_lost", it.slots_lost),
        ("connections", it.connections),
        ("replication_sessions", it.replication_sessions),
        ("sql_sessions", it.sql_sessions),
        ("sql_sessions_open", it.sql_sessions_open),
        ("log_warnings", it.warnings),
        ("log_errors", it.errors),
    ];
    let numbers = numbers.into_iter().map(|(name, number)| (name.to_owned(), number));
    let ended = it.ended.iter().map(|(cause, count)| (format!("ended_{cause}"), *count));
    let refused = it.refused.iter().map(|(cause, count)| (format!("refused_{cause}"), *count));
    numbers.chain(ended).chain(refused).map(|(name, number)| vec![Some(name), some(number)]).collect()
}

/// The answer, if it is one of these that is asked for.
pub(super) fn answer(name: &str, facts: &dyn Facts) -> Option<Result<Answer, PgError>> {
    if facts.instead() != Instead::OwnDatabase {
        return None;
    }
    match name {
        "help" => return Some(Ok(help())),
        "version" => return Some(Ok(version())),
        _ => {}
    }
    let report = REPORTS.iter().find(|report| report.name == name)?;
    Some(monitored(facts).map(|status| report.answer(&status)))
}

/// What a monitoring role may see.
fn monitored(facts: &dyn Facts) -> Result<Status, PgError> {
    if !facts.sees_all() {
        return Err(not_for_you());
    }
    let unknown = || PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, "there is nothing to see of this relay");
    facts.status().ok_or_else(unknown)
}

/// For everybody else.
pub(crate) fn not_for_you() -> PgError {
    let text = "permission denied to examine the relay";
    let detail = "Only roles with privileges of the \"pg_monitor\" role may do so.";
    let hint = "GRANT pg_monitor TO the role on the upstream, or name it with --monitor-role; on the relay's machine its own system user may connect over the Unix socket.";
    PgError::error(sqlstate::INSUFFICIENT_PRIVILEGE, text).with_detail(detail).with_hint(hint)
}

/// What a session here knows of the status without being refused: nothing where it may not.
pub(super) fn visible(facts: &dyn Facts) -> Option<Status> {
    (facts.instead() == Instead::OwnDatabase && facts.sees_all()).then(|| facts.status()).flatten()
}

impl Report {
    fn answer(&self, status: &Status) -> Answer {
        rows(self.columns, (self.rows)(status))
    }
}

fn rows(columns: &[(&'static str, ColumnType)], rows: Vec<Vec<Value>>) -> Answer {
    let columns = columns.iter().map(|(name, kind)| Field::new(*name, *kind)).collect();
    Answer::Rows { columns, rows, tag: "SHOW".to_owned(), changes: Vec::new() }
}

fn help() -> Answer {
    let own = [
        ("SHOW VERSION", "Version of walrelay"),
        ("SHOW HELP", "This list"),
        ("SHOW ALL", "PostgreSQL's settings as this session has them"),
    ];
    let reports = REPORTS.iter().map(|it| (format!("SHOW {}", it.name.to_ascii_uppercase()), it.about));
    let fixed = own.into_iter().chain(orders::usages());
    let all = reports.chain(fixed.map(|(command, about)| (command.to_owned(), about)));
    let lines = all.map(|(command, about)| vec![Some(command), some(about)]).collect();
    rows(&[("command", Text), ("about", Text)], lines)
}

fn version() -> Answer {
    rows(&[("version", Text)], vec![vec![Some(format!("walrelay {}", env!("CARGO_PKG_VERSION")))]])
}

fn some(value: impl ToString) -> Value {
    Some(value.to_string())
}

fn text(value: Option<impl ToString>) -> Value {
    value.map(|value| value.to_string())
}

fn seconds(value: Option<f64>) -> Value {
    value.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).map(interval)
}
