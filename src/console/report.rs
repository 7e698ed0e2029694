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
    columns: &'static [Column],
    rows: fn(&Status) -> Vec<Vec<Value>>,
}

/// Name, type, and what it means, which docs/REFERENCE.md shows.
type Column = (&'static str, ColumnType, &'static str);

type Value = Option<String>;

/// All there are.
pub(super) const REPORTS: &[Report] = &[
    Report {
        name: "troubles",
        about: "What somebody should look at, and what to do about it",
        columns: &[
            ("kind", Text, "Which trouble it is, as in metrics and in docs/MONITORING.md"),
            ("about", Text, "The slot, consumer or target it is about; NULL where that is the relay"),
            ("since", Timestamptz, "Since when, as far as it was seen; NULL if it is new"),
            ("message", Text, "What is wrong, and what to do"),
            ("alert", Text, "The alert rule that tells of it"),
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
            ("level", Text, "The position: `write`, `flush` or `apply`"),
            ("rule", Text, "Who must have WAL, as in `[ack]`"),
            ("synchronous_commit", Text, "The `synchronous_commit` that waits for it"),
            ("awaited", Bool, "Whether the upstream waits for this relay"),
            ("reached_lsn", PgLsn, "How far the rule, or the one it has lapsed to, is fulfilled"),
            ("held_bytes", Int8, "WAL that is here and not reported yet"),
            (
                "waiting",
                Interval,
                "How long the oldest of it has waited for those whom the rule names; NULL where nothing does",
            ),
            ("waits_for", Text, "For whom it waits"),
            ("degraded", Interval, "How long the rule has lapsed; NULL while it holds"),
            ("degraded_to", Text, "The rule that holds instead"),
            (
                "budget_left",
                Interval,
                "How long rules may lapse until the budget is spent; NULL where there is none",
            ),
            ("budget_full_in", Interval, "In how long the budget is whole again"),
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
            ("pid", Int4, "The PID that it knows as its backend's; DISCONNECT takes it"),
            ("usename", Text, "Its role"),
            ("application_name", Text, "As it calls itself"),
            ("client_addr", Inet, "Where it comes from; NULL on a Unix socket"),
            (
                "state",
                Text,
                "As in `pg_stat_replication`: `startup`, `catchup`, `streaming`, `backup`, `stopping`",
            ),
            ("slot_name", Text, "The slot that it streams from"),
            ("sent_lsn", PgLsn, "End of what it was sent"),
            ("write_lsn", PgLsn, "End of what it has written, as it says"),
            ("flush_lsn", PgLsn, "End of what it has flushed, as it says"),
            ("replay_lsn", PgLsn, "End of what it has replayed, as it says"),
            (
                "lag_bytes",
                Int8,
                "WAL of the relay's that it has not flushed, as far as it says that, else not written or sent",
            ),
            ("lag", Interval, "How long the oldest of that has been here; 0 for who has everything"),
            ("replay_lag_bytes", Int8, "WAL of the relay's that it has not replayed"),
            ("replay_lag", Interval, "How long the oldest of that has been here"),
            ("sent_bytes", Int8, "Bytes of WAL sent in this connection"),
            ("backend_start", Timestamptz, "When it connected"),
            ("reply_time", Timestamptz, "When it last reported"),
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
            ("slot_name", Text, "Its name"),
            ("temporary", Bool, "Whether it ends with its connection"),
            ("active_pid", Int4, "PID of the consumer that uses it"),
            ("restart_lsn", PgLsn, "Oldest WAL that it needs"),
            (
                "wal_status",
                Text,
                "As in `pg_replication_slots`: `reserved`, `extended`, `unreserved`, `lost`",
            ),
            ("held_bytes", Int8, "WAL on the disk that it keeps there"),
            ("safe_wal_size", Int8, "WAL that can come until it may be lost; NULL where that cannot be"),
            ("lag_bytes", Int8, "WAL from restart_lsn to the end of the relay's"),
            ("lag", Interval, "How long the oldest of that has been here"),
            ("inactive_since", Timestamptz, "Since when nobody uses it"),
            ("lost_because", Text, "Why it is lost, if it is"),
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
            ("state", Text, "`connecting`, `comparing`, `behind`, `streaming`, `waiting` or `stopped`"),
            ("since", Timestamptz, "Since when"),
            ("host", Text, "The server that is followed, or was tried last"),
            ("conninfo", Text, "How the relay connects, without what is secret"),
            ("slot_name", Text, "The relay's slot there"),
            ("server_version", Text, "Its `server_version`"),
            ("server_timeline", Int4, "The timeline that it was on when it was asked last"),
            ("server_end_lsn", PgLsn, "Where its WAL ended as far as it has told"),
            ("server_end_time", Timestamptz, "When it told that"),
            ("unreceived_bytes", Int8, "WAL that it has and the relay has not, as far as it has told"),
            ("lag", Interval, "For how long it may be that it has WAL which the relay has not"),
            (
                "last_commit_time",
                Timestamptz,
                "When the newest commit that has come was made, by the server's clock",
            ),
            ("unflushed_bytes", Int8, "WAL that is received and would be lost with the power"),
            ("unflushed", Interval, "How long the oldest of that has been here"),
            ("last_message", Timestamptz, "When something came from there last"),
            ("failing_since", Timestamptz, "Since when no WAL can be received"),
            ("last_error", Text, "Why the last attempt failed, kept when it works again"),
            ("last_error_time", Timestamptz, "When that was"),
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
            ("time", Timestamptz, "When the relay saw it"),
            ("from_timeline", Int4, "The timeline that was left"),
            ("to_timeline", Int4, "The timeline that was begun"),
            ("switch_lsn", PgLsn, "Where their ways part"),
            ("acknowledged_lsn", PgLsn, "What the upstream was told of the one that was left"),
            ("verdict", Text, "`kept`, `left` or `doubtful`"),
            ("upstream_waited", Bool, "Whether the upstream waited for this relay"),
            (
                "commits_left",
                Int8,
                "Commits that were acknowledged and are not on the new timeline; NULL if they could not be counted",
            ),
            (
                "open",
                Bool,
                "Whether somebody should look at it: commits were acknowledged, are not there, and nobody has said that this was looked at",
            ),
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
        columns: &[
            ("timeline", Int4, "Its number"),
            ("begin_lsn", PgLsn, "Where it began; NULL for the first one"),
            ("end_lsn", PgLsn, "Where it was left; NULL for the one that is followed"),
        ],
        rows: |status| {
            let rows = status.timelines.iter();
            rows.map(|it| vec![some(it.timeline), text(it.begin_lsn), text(it.end_lsn)]).collect()
        },
    },
    Report {
        name: "segments",
        about: "Segments on the disk, by timeline",
        columns: &[
            ("timeline", Int4, "The timeline"),
            ("first", Text, "Name of the oldest file"),
            ("last", Text, "Name of the newest"),
            ("complete", Int8, "Complete segments"),
            ("unfinished", Int8, "Segments that are being written, or were left in the middle"),
            ("bytes", Int8, "What they take on the disk"),
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
            ("looked_at", Timestamptz, "When it was looked at last"),
            ("size_bytes", Int8, "Size of the file system"),
            ("free_bytes", Int8, "What is free for the relay's user"),
            ("wal_bytes", Int8, "What the files of `pg_wal` take"),
            ("wal_files", Int8, "How many there are"),
            ("full_in", Interval, "When it is full at the last hour's rate; NULL where it does not fill up"),
            ("sync_time", Interval, "How long a sync of written WAL took on average in the last ten minutes"),
            (
                "missing_segments",
                Int8,
                "Segments that are missing between the oldest WAL that is held and the newest",
            ),
            ("first_missing", Text, "The first of them"),
            ("error", Text, "Why it could not be looked at since"),
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
        columns: &[
            (
                "kind",
                Text,
                "What it is: `wal_keep_size`, `recovery`, `slot`, `saved_slot`, `archive_target`, `start` or `timeline_switch`",
            ),
            ("name", Text, "Its name"),
            (
                "from_lsn",
                PgLsn,
                "The oldest WAL that it keeps; NULL if that is all there is, because it has not said what it needs",
            ),
            ("held_bytes", Int8, "WAL on the disk that it keeps there; the same may be kept by several"),
        ],
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
            ("name", Text, "Its name"),
            ("place", Text, "Where it is, without what is secret"),
            ("archived_files", Int8, "Files that it has taken since the start"),
            ("last_archived_file", Text, "The last of those"),
            ("last_archived_time", Timestamptz, "When that was"),
            ("pending_files", Int8, "Files that wait for it"),
            ("pending_bytes", Int8, "WAL that it has not got as whole files; NULL before that is known"),
            ("at_risk_bytes", Int8, "WAL that it has not got at all: lost if only the archive is left"),
            ("at_risk", Interval, "How long the oldest of that has been here"),
            ("failures", Int8, "Attempts that have failed since the start"),
            (
                "paused_since",
                Timestamptz,
                "Since when nothing is begun for it, because somebody has paused it",
            ),
            (
                "failing_since",
                Timestamptz,
                "Since when everything that was tried has failed, or a file was neither taken nor refused",
            ),
            ("stalled_since", Timestamptz, "Since when it has neither taken nor refused a file"),
            ("last_failed_file", Text, "The last file that could not be archived"),
            ("last_failed_time", Timestamptz, "When that was"),
            ("last_error", Text, "Why that failed, kept when it works again"),
            ("conflicts", Int8, "Files with another content that lay there under the name of one of ours"),
            ("gaps", Int8, "Runs of segments that it will never get, and that nobody has looked at"),
            (
                "quota_bytes",
                Int8,
                "How much WAL may wait for it; NULL where that is as much as there is room for",
            ),
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
            ("sources", Int8, "Places that are asked"),
            ("in_flight", Int8, "Segments on their way"),
            ("fetched_segments", Int8, "Segments that came since the start"),
            ("fetched_bytes", Int8, "The same in bytes"),
            ("failures", Int8, "Rounds through all places that came to nothing"),
            ("last_error", Text, "Why the last of them did"),
            ("last_error_time", Timestamptz, "When that was"),
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
        columns: &[
            ("name", Text, "As in the configuration file"),
            ("setting", Text, "Its value, without what is secret"),
            ("pending_restart", Bool, "The file has another value by now, which takes a restart"),
        ],
        rows: |status| {
            let rows = status.settings.iter();
            rows.map(|it| vec![some(&it.name), some(&it.value), Some(flag(it.pending_restart))]).collect()
        },
    },
    Report {
        name: "stats",
        about: "What has happened so often since the relay started",
        columns: &[
            ("name", Text, "What is counted; `ended_...` and `refused_...` by cause"),
            ("value", Int8, "How often, or how much, since the start"),
        ],
        rows: stats,
    },
    Report {
        name: "events",
        about: "The newest warnings and errors of the log",
        columns: &[
            ("time", Timestamptz, "When it was logged"),
            ("level", Text, "`WARN` or `ERROR`"),
            ("message", Text, "The line"),
        ],
        rows: |status| {
            status.events.iter().map(|it| vec![some(it.at), some(&it.level), some(&it.message)]).collect()
        },
    },
    Report {
        name: "status",
        about: "All of this as one JSON document",
        columns: &[("status", Text, "The document of `walrelay status --json`")],
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
    let commands = it.commands_refused.iter();
    let commands = commands.map(|(cause, count)| (format!("command_refused_{cause}"), *count));
    let numbers = numbers.chain(ended).chain(refused).chain(commands);
    numbers.map(|(name, number)| vec![Some(name), some(number)]).collect()
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

fn rows(columns: &[Column], rows: Vec<Vec<Value>>) -> Answer {
    let columns = columns.iter().map(|(name, kind, _)| Field::new(*name, *kind)).collect();
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
    rows(&[("command", Text, "What is typed"), ("about", Text, "What it does")], lines)
}

fn version() -> Answer {
    rows(
        &[("version", Text, "`walrelay`, and its version")],
        vec![vec![Some(format!("walrelay {}", env!("CARGO_PKG_VERSION")))]],
    )
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
