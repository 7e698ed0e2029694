//! The metrics.

use super::Kind::{Counter, Gauge, Histogram, Info};
use super::Measure::{Bytes, None as Count, Seconds};
use super::named::{consumers, slots};
use super::{Kind, Label, Measure, Metric, Number, Samples};
use crate::moment::Moment;
use crate::status::{ArchiveStatus, FenceStatus, SlotStatus, Starting, Status};
use crate::upstream::Phase;

const fn metric(
    name: &'static str,
    measure: Measure,
    kind: Kind,
    help: &'static str,
    read: fn(&Status, &mut Samples),
) -> Metric {
    Metric { name, measure, kind, help, read }
}

/// All metrics, in the order in which they are shown.
pub const METRICS: &[Metric] = &[
    metric("build", Count, Info, "Version of walrelay", |status, out| {
        out.whole(vec![("version", status.relay.version.clone())], 1);
    }),
    metric("start_time", Seconds, Gauge, "When the relay started, seconds since 1970", |status, out| {
        out.real(vec![], status.relay.started_at.as_seconds());
    }),
    metric("ready", Count, Gauge, "Whether consumers can be served", |status, out| {
        out.whole(vec![], status.unready().is_none().into());
    }),
    metric("troubles", Count, Gauge, "Things that somebody should look at now", |status, out| {
        out.whole(vec![], status.find_troubles().len() as u64);
    }),
    metric("trouble", Count, Gauge, "Things that somebody should look at now, by kind", |status, out| {
        for (kind, count) in status.count_troubles() {
            out.whole(vec![("kind", kind.as_str().to_owned())], count);
        }
    }),
    metric(
        "fenced",
        Count,
        Gauge,
        "Whether a fence is in force: only a newer timeline is followed",
        |status, out| {
            out.whole(vec![], status.fence.as_ref().is_some_and(FenceStatus::is_in_force).into());
        },
    ),
    metric(
        "failovers_left_behind",
        Count,
        Gauge,
        "Promotions that have left acknowledged WAL behind, and that nobody has dismissed",
        |status, out| {
            out.whole(vec![], status.failovers.iter().filter(|failover| failover.is_open).count() as u64);
        },
    ),
    metric(
        "certificate_end_time",
        Seconds,
        Gauge,
        "When the first of the certificates or revocation lists in that file ends, seconds since 1970; absent without TLS",
        |status, out| {
            for end in &status.certificates {
                out.real(vec![("file", end.file.clone())], end.ends_at.as_seconds());
            }
        },
    ),
    metric("timeline", Count, Gauge, "Timeline that is followed", |status, out| {
        out.0.extend(status.relay.timeline.map(|tli| (vec![], Number::Whole(tli.into()))));
    }),
    metric("write_position", Bytes, Gauge, "End of the WAL that consumers can have", |status, out| {
        out.0.extend(status.relay.write_lsn.map(|lsn| (vec![], Number::Whole(lsn.as_u64()))));
    }),
    metric("flush_position", Bytes, Gauge, "End of the WAL that survives a power cut", |status, out| {
        out.0.extend(status.relay.flush_lsn.map(|lsn| (vec![], Number::Whole(lsn.as_u64()))));
    }),
    metric("oldest_position", Bytes, Gauge, "Beginning of the WAL that is on the disk", |status, out| {
        out.0.extend(status.relay.oldest_lsn.map(|lsn| (vec![], Number::Whole(lsn.as_u64()))));
    }),
    metric(
        "upstream_state",
        Count,
        Gauge,
        "1 for the state that the receiver is in, 0 for the others",
        |status, out| {
            for state in Phase::ALL.map(Phase::as_str) {
                out.whole(vec![("state", state.to_owned())], (status.upstream.state == state).into());
            }
        },
    ),
    metric(
        "upstream_failing",
        Seconds,
        Gauge,
        "How long no WAL could be received; 0 while it can",
        |status, out| {
            out.real(vec![], lasting(status, status.upstream.failing_since));
        },
    ),
    metric(
        "upstream_silent",
        Seconds,
        Gauge,
        "How long ago something came from the upstream",
        |status, out| {
            let last = status.upstream.last_message_at;
            out.0.extend(last.map(|_| (vec![], Number::Real(lasting(status, last)))));
        },
    ),
    metric(
        "upstream_unreceived",
        Bytes,
        Gauge,
        "WAL that the upstream has told of and the relay has not",
        |status, out| {
            out.0.extend(status.upstream.unreceived_bytes.map(|bytes| (vec![], Number::Whole(bytes))));
        },
    ),
    metric(
        "upstream_lag",
        Seconds,
        Gauge,
        "For how long the upstream may have had WAL that the relay has not; grows while the line is cut",
        |status, out| {
            out.real(vec![], status.upstream.lag_seconds);
        },
    ),
    metric(
        "last_commit_time",
        Seconds,
        Gauge,
        "When the newest commit was made that has come, by its server's clock, seconds since 1970",
        |status, out| {
            let last = status.upstream.last_commit_at;
            out.0.extend(last.map(|last| (vec![], Number::Real(last.as_seconds()))));
        },
    ),
    metric(
        "unflushed",
        Bytes,
        Gauge,
        "WAL that is received and would be lost with the power",
        |status, out| {
            out.whole(vec![], status.upstream.unflushed_bytes);
        },
    ),
    metric(
        "unflushed_age",
        Seconds,
        Gauge,
        "How long the oldest WAL that is not flushed has been here",
        |status, out| {
            out.real(vec![], status.upstream.unflushed_seconds);
        },
    ),
    metric(
        "ack_held",
        Bytes,
        Gauge,
        "WAL that is here and not reported to the upstream as the position of that level",
        |status, out| {
            for level in &status.ack {
                out.whole(vec![("level", level.level.clone())], level.held_bytes);
            }
        },
    ),
    metric(
        "ack_waiting",
        Seconds,
        Gauge,
        "How long the oldest of it has waited for those whom [ack] names; 0 while none does",
        |status, out| {
            for level in &status.ack {
                out.real(vec![("level", level.level.clone())], level.waiting_seconds.unwrap_or_default());
            }
        },
    ),
    metric(
        "ack_degraded",
        Seconds,
        Gauge,
        "How long the rule of [ack] has lapsed; 0 while it holds",
        |status, out| {
            for level in &status.ack {
                out.real(vec![("level", level.level.clone())], level.degraded_seconds.unwrap_or_default());
            }
        },
    ),
    metric(
        "ack_budget_left",
        Seconds,
        Gauge,
        "How long rules of [ack] may lapse until the budget is spent; absent where there is none",
        |status, out| {
            let left = status.ack.first().and_then(|level| level.budget_left_seconds);
            out.0.extend(left.map(|left| (vec![], Number::Real(left))));
        },
    ),
    metric("upstream_streams", Count, Counter, "Streams from an upstream that have begun", |status, out| {
        out.whole(vec![], status.counts.upstream_streams);
    }),
    metric(
        "upstream_failures",
        Count,
        Counter,
        "Attempts to follow an upstream that have failed",
        |status, out| {
            out.whole(vec![], status.counts.upstream_failures);
        },
    ),
    metric("received", Bytes, Counter, "Bytes that came from upstream servers", |status, out| {
        out.whole(vec![], status.counts.received_bytes);
    }),
    metric("sent", Bytes, Counter, "Bytes of WAL that went to consumers", |status, out| {
        out.whole(vec![], status.counts.sent_bytes);
    }),
    metric("consumers", Count, Gauge, "Connected consumers, by application_name", |status, out| {
        for (name, group) in consumers(status) {
            out.whole(vec![("application_name", name)], group.count);
        }
    }),
    metric(
        "consumer_lag",
        Bytes,
        Gauge,
        "WAL that the consumer of that name that is farthest behind lacks, by position",
        |status, out| {
            for (name, group) in consumers(status) {
                for (position, (bytes, _)) in group.lags {
                    out.whole(of_consumer(&name, position), bytes);
                }
            }
        },
    ),
    metric(
        "consumer_lag",
        Seconds,
        Gauge,
        "How long the oldest WAL that it lacks has been here; 0 for who has everything",
        |status, out| {
            for (name, group) in consumers(status) {
                for (position, (_, seconds)) in group.lags {
                    out.real(of_consumer(&name, position), seconds);
                }
            }
        },
    ),
    metric("slot_active", Count, Gauge, "Whether somebody uses the slot", |status, out| {
        of_slots(status, out, |slots| Some(u64::from(slots.iter().any(|slot| slot.active_pid.is_some()))));
    }),
    metric("slot_held", Bytes, Gauge, "WAL on the disk that the slot keeps there", |status, out| {
        of_slots(status, out, |slots| slots.iter().map(|slot| slot.held_bytes).max());
    }),
    metric(
        "slot_lag",
        Seconds,
        Gauge,
        "How long the oldest WAL that the slot's consumer lacks has been here",
        |status, out| {
            for (name, slots) in slots(status) {
                let lags = slots.iter().filter_map(|slot| Some(slot.restart?.lag_seconds));
                out.0.extend(lags.reduce(f64::max).map(|lag| (vec![("slot_name", name)], Number::Real(lag))));
            }
        },
    ),
    metric(
        "slot_safe",
        Bytes,
        Gauge,
        "WAL that can come until the slot may be lost, where it can be",
        |status, out| {
            let safe = |slot: &&SlotStatus| slot.safe_wal_size.map(|bytes| u64::try_from(bytes).unwrap_or(0));
            of_slots(status, out, |slots| slots.iter().filter_map(safe).min());
        },
    ),
    metric("slot_lost", Count, Gauge, "Whether WAL that the slot needs is gone", |status, out| {
        let is_lost = |slot: &&SlotStatus| slot.wal_status.as_deref() == Some("lost");
        of_slots(status, out, |slots| Some(u64::from(slots.iter().any(is_lost))));
    }),
    metric(
        "slot_inactive",
        Seconds,
        Gauge,
        "How long nobody has used the slot; 0 while somebody does",
        |status, out| {
            for (name, slots) in slots(status) {
                let longest =
                    slots.iter().map(|slot| lasting(status, slot.inactive_since)).fold(0.0, f64::max);
                out.real(vec![("slot_name", name)], longest);
            }
        },
    ),
    metric("disk_size", Bytes, Gauge, "Size of the data directory's file system", |status, out| {
        of_disk(status, out, |status| Some(Number::Whole(status.disk.size_bytes)));
    }),
    metric("disk_free", Bytes, Gauge, "What is free there for the relay", |status, out| {
        of_disk(status, out, |status| Some(Number::Whole(status.disk.free_bytes)));
    }),
    metric(
        "disk_full_in",
        Seconds,
        Gauge,
        "When it is used up at the last hour's rate; absent while it is not",
        |status, out| {
            of_disk(status, out, |status| status.disk.full_in_seconds.map(Number::Real));
        },
    ),
    metric("disk_answers", Count, Gauge, "Whether the disk could be looked at", |status, out| {
        out.whole(vec![], status.disk.error.is_none().into());
    }),
    metric(
        "wal_missing_segments",
        Count,
        Gauge,
        "Segments that are missing between the oldest WAL and the newest",
        |status, out| {
            of_disk(status, out, |status| Some(Number::Whole(status.disk.missing_segments)));
        },
    ),
    metric("wal_directory", Bytes, Gauge, "What the files of pg_wal take", |status, out| {
        of_disk(status, out, |status| Some(Number::Whole(status.disk.wal_bytes)));
    }),
    metric("wal_files", Count, Gauge, "Files in pg_wal", |status, out| {
        of_disk(status, out, |status| Some(Number::Whole(status.disk.wal_files)));
    }),
    metric(
        "wal_kept",
        Bytes,
        Gauge,
        "WAL that is kept on the disk, by what for: the most that one holder of that kind keeps",
        |status, out| {
            let mut kinds = std::collections::BTreeMap::<&str, u64>::new();
            for holder in &status.disk.holders {
                let most = kinds.entry(&holder.kind).or_default();
                *most = (*most).max(holder.held_bytes);
            }
            for (kind, bytes) in kinds {
                out.whole(vec![("holder", kind.to_owned())], bytes);
            }
        },
    ),
    metric("segments_made", Count, Counter, "Segments that were begun", |status, out| {
        out.whole(vec![], status.counts.segments_made);
    }),
    metric(
        "segments_removed",
        Count,
        Counter,
        "Segments that were removed because nobody needs them",
        |status, out| {
            out.whole(vec![], status.counts.segments_removed);
        },
    ),
    metric("slots_lost", Count, Counter, "Slots that were lost", |status, out| {
        out.whole(vec![], status.counts.slots_lost);
    }),
    metric("sync_duration", Seconds, Histogram, "How long syncs of written WAL took", |status, out| {
        let syncs = &status.counts.syncs;
        let ends = syncs.classes.iter().copied().chain([f64::INFINITY]);
        let classes = ends.zip(syncs.counts.iter().copied()).collect();
        out.0.push((vec![], Number::Durations { sum: syncs.total_seconds, classes }));
    }),
    metric("archive_pending_files", Count, Gauge, "Files that wait for the target", |status, out| {
        of_targets(status, out, |target| Some(Number::Whole(target.pending_files)));
    }),
    metric(
        "archive_pending",
        Bytes,
        Gauge,
        "WAL that the target has not got as whole files",
        |status, out| {
            of_targets(status, out, |target| target.pending_bytes.map(Number::Whole));
        },
    ),
    metric("archive_at_risk", Bytes, Gauge, "WAL that the target has not got at all", |status, out| {
        of_targets(status, out, |target| target.at_risk_bytes.map(Number::Whole));
    }),
    metric(
        "archive_at_risk",
        Seconds,
        Gauge,
        "How long the oldest WAL that the target has not got at all has been here",
        |status, out| {
            of_targets(status, out, |target| target.at_risk_seconds.map(Number::Real));
        },
    ),
    metric(
        "archive_failing",
        Seconds,
        Gauge,
        "How long the target has taken nothing, or is stalled; 0 while it takes WAL",
        |status, out| {
            of_targets(status, out, |target| Some(Number::Real(lasting(status, target.failing_since))));
        },
    ),
    metric(
        "archive_stalled",
        Seconds,
        Gauge,
        "How long the target has neither taken nor refused a file; 0 while it does",
        |status, out| {
            of_targets(status, out, |target| Some(Number::Real(lasting(status, target.stalled_since))));
        },
    ),
    metric(
        "archive_paused",
        Seconds,
        Gauge,
        "How long the target has been paused by somebody's order; 0 while it is not",
        |status, out| {
            of_targets(status, out, |target| Some(Number::Real(lasting(status, target.paused_since))));
        },
    ),
    metric("archived_files", Count, Counter, "Files that the target has taken", |status, out| {
        of_targets(status, out, |target| Some(Number::Whole(target.archived_files)));
    }),
    metric(
        "archive_failures",
        Count,
        Counter,
        "Attempts to archive a file that have failed",
        |status, out| {
            of_targets(status, out, |target| Some(Number::Whole(target.failures)));
        },
    ),
    metric(
        "archive_conflicts",
        Count,
        Counter,
        "Files of ours that lay in the target with another content",
        |status, out| {
            of_targets(status, out, |target| Some(Number::Whole(target.conflicts)));
        },
    ),
    metric(
        "archive_quota",
        Bytes,
        Gauge,
        "How much WAL may wait for the target; absent where there is no quota",
        |status, out| {
            of_targets(status, out, |target| target.quota_bytes.map(Number::Whole));
        },
    ),
    metric(
        "archive_gaps",
        Count,
        Gauge,
        "Runs of segments that the target will never get, and that nobody has dismissed",
        |status, out| {
            of_targets(status, out, |target| Some(Number::Whole(target.open_gaps)));
        },
    ),
    metric("recall_in_flight", Count, Gauge, "Segments on their way back from the archive", |status, out| {
        out.whole(vec![], status.recalls.in_flight);
    }),
    metric("recalled_segments", Count, Counter, "Segments that came back from the archive", |status, out| {
        out.whole(vec![], status.recalls.fetched_segments);
    }),
    metric("recalled", Bytes, Counter, "Bytes of segments that came back from the archive", |status, out| {
        out.whole(vec![], status.recalls.fetched_bytes);
    }),
    metric(
        "recall_failures",
        Count,
        Counter,
        "Rounds through all archives that came to nothing",
        |status, out| {
            out.whole(vec![], status.recalls.failures);
        },
    ),
    metric("connections", Count, Counter, "Connections that were accepted", |status, out| {
        out.whole(vec![], status.counts.connections);
    }),
    metric("sessions", Count, Counter, "Clients that have logged in, by what they want", |status, out| {
        out.whole(vec![("kind", "replication".to_owned())], status.counts.replication_sessions);
        out.whole(vec![("kind", "sql".to_owned())], status.counts.sql_sessions);
    }),
    metric("sessions_open", Count, Gauge, "Clients that are logged in", |status, out| {
        out.whole(vec![("kind", "replication".to_owned())], status.consumers.len() as u64);
        out.whole(vec![("kind", "sql".to_owned())], status.counts.sql_sessions_open);
    }),
    metric(
        "sessions_ended",
        Count,
        Counter,
        "Replication connections that have ended, by cause",
        |status, out| {
            for (cause, count) in &status.counts.ended {
                out.whole(vec![("cause", cause.clone())], *count);
            }
        },
    ),
    metric("connections_refused", Count, Counter, "Clients that were not let in, by cause", |status, out| {
        for (cause, count) in &status.counts.refused {
            out.whole(vec![("cause", cause.clone())], *count);
        }
    }),
    metric(
        "commands_refused",
        Count,
        Counter,
        "Commands of replication connections that were refused, by cause",
        |status, out| {
            for (cause, count) in &status.counts.commands_refused {
                out.whole(vec![("cause", cause.clone())], *count);
            }
        },
    ),
    metric(
        "log_events",
        Count,
        Counter,
        "Warnings and errors, whether the log shows them or not",
        |status, out| {
            log_events(status.counts.warnings, status.counts.errors, out);
        },
    ),
];

/// What is known of a metric before the relay has recovered; `None` where nothing is.
pub(super) fn at_start(metric: &Metric, starting: &Starting) -> Option<Samples> {
    let mut out = Samples::default();
    match metric.name {
        "build" => out.whole(vec![("version", starting.version.clone())], 1),
        "start_time" => out.real(vec![], starting.started_at.as_seconds()),
        "ready" => out.whole(vec![], 0),
        "log_events" => log_events(starting.warnings, starting.errors, &mut out),
        _ => return None,
    }
    Some(out)
}

fn log_events(warnings: u64, errors: u64, out: &mut Samples) {
    out.whole(vec![("level", "warning".to_owned())], warnings);
    out.whole(vec![("level", "error".to_owned())], errors);
}

fn lasting(status: &Status, since: Option<Moment>) -> f64 {
    since.map_or(0.0, |since| status.at.since(since).as_secs_f64())
}

fn of_consumer(name: &str, position: &str) -> Vec<Label> {
    vec![("application_name", name.to_owned()), ("position", position.to_owned())]
}

fn of_slots(status: &Status, out: &mut Samples, read: impl Fn(&[&SlotStatus]) -> Option<u64>) {
    for (name, slots) in slots(status) {
        out.0.extend(read(&slots).map(|number| (vec![("slot_name", name)], Number::Whole(number))));
    }
}

/// Nothing before the first look.
fn of_disk(status: &Status, out: &mut Samples, read: impl Fn(&Status) -> Option<Number>) {
    let number = status.disk.looked_at.and_then(|_| read(status));
    out.0.extend(number.map(|number| (vec![], number)));
}

fn of_targets(status: &Status, out: &mut Samples, read: impl Fn(&ArchiveStatus) -> Option<Number>) {
    for target in &status.archive {
        out.0.extend(read(target).map(|number| (vec![("target", target.name.clone())], number)));
    }
}
