//! The value. Sizes are bytes, times seconds, positions texts as PostgreSQL writes them; what is not known is absent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use walrelay_proto::Lsn;

use super::now::Setting;
use super::text;
use super::troubles::TroubleStatus;
use crate::moment::Moment;

/// A running relay at one moment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// When that was.
    pub at: Moment,
    /// Whether consumers can be served.
    #[serde(default)]
    pub ready: bool,
    /// What somebody should look at now, a line each; nothing when all is well.
    #[serde(default)]
    pub troubles: Vec<String>,
    /// The same with their kinds, and since when they are known.
    #[serde(default)]
    pub trouble_details: Vec<TroubleStatus>,
    /// The relay itself, and the WAL that it holds.
    pub relay: RelayStatus,
    /// Whom it receives from.
    pub upstream: UpstreamStatus,
    /// Its last fence, in force or not; absent if there was never one.
    #[serde(default)]
    pub fence: Option<FenceStatus>,
    /// What became of acknowledged WAL where timelines were left, oldest first.
    #[serde(default)]
    pub failovers: Vec<FailoverStatus>,
    /// When certificates and revocation lists end.
    #[serde(default)]
    pub certificates: Vec<CertificateEnd>,
    /// Who must have WAL before it is reported upstream, and how far that is so, for each position.
    #[serde(default)]
    pub ack: Vec<AckStatus>,
    /// Who receives from it.
    pub consumers: Vec<ConsumerStatus>,
    /// Who was refused a replication command within the last minutes, and has not come to stream since.
    #[serde(default)]
    pub refused_commands: Vec<RefusedStatus>,
    /// Its replication slots.
    pub slots: Vec<SlotStatus>,
    /// The timelines on the way to the one that is followed.
    pub timelines: Vec<TimelineStatus>,
    /// The disk that the WAL is on.
    pub disk: DiskStatus,
    /// Archive targets.
    pub archive: Vec<ArchiveStatus>,
    /// WAL that is brought back from there.
    pub recalls: RecallStatus,
    /// Settings in effect.
    pub settings: Vec<Setting>,
    /// The newest warnings and errors, oldest first.
    pub events: Vec<EventStatus>,
    /// What has happened so often since the start.
    pub counts: Counts,
}

/// The relay itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Version of walrelay.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started_at: Moment,
    /// How long ago that was, by a clock that nobody sets.
    pub uptime_seconds: f64,
    /// Where its data is.
    pub data_dir: String,
    /// The cluster whose WAL it holds; absent before the first contact with an upstream.
    pub system_identifier: Option<String>,
    /// The timeline that it follows.
    pub timeline: Option<u32>,
    /// Oldest WAL that leads to the newest without a gap.
    #[serde(with = "text::optional")]
    pub oldest_lsn: Option<Lsn>,
    /// End of what is verified, written and visible to consumers.
    #[serde(with = "text::optional")]
    pub write_lsn: Option<Lsn>,
    /// End of what survives a power cut.
    #[serde(with = "text::optional")]
    pub flush_lsn: Option<Lsn>,
    /// It was told to stop.
    pub stopping: bool,
    /// Why it cannot go on, when that is so.
    pub failure: Option<String>,
}

/// When a file ends that certificates or revocation lists are in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CertificateEnd {
    /// `cert`, `ca` and `crl` for clients; `upstream_cert` and `archive_ca` for the relay itself.
    pub file: String,
    /// Where it is.
    pub path: String,
    /// When the first of what is needed in it ends.
    pub ends_at: Moment,
}

/// Whom a relay receives from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// How it connects, without what is secret.
    pub conninfo: String,
    /// The relay's slot there.
    pub slot: String,
    /// `connecting`, `comparing`, `behind`, `streaming`, `waiting` or `stopped`.
    pub state: String,
    /// Since when.
    pub since: Moment,
    /// The server that is followed, or was tried last.
    pub host: Option<String>,
    /// `server_version` of that server.
    pub server_version: Option<String>,
    /// The timeline that it was on when it was asked last.
    pub server_timeline: Option<u32>,
    /// Where the stream began.
    #[serde(with = "text::optional")]
    pub stream_start_lsn: Option<Lsn>,
    /// The timeline that it began on.
    pub stream_start_timeline: Option<u32>,
    /// When something came from there last.
    pub last_message_at: Option<Moment>,
    /// Where its WAL ended as far as it has told.
    #[serde(with = "text::optional")]
    pub end_lsn: Option<Lsn>,
    /// When it told that.
    pub end_at: Option<Moment>,
    /// Since when no WAL can be received.
    pub failing_since: Option<Moment>,
    /// Why the last attempt failed, kept when it works again.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<Moment>,
    /// WAL that the server has and the relay has not, as far as the server has told.
    pub unreceived_bytes: Option<u64>,
    /// For how long it may be that the server has WAL which the relay has not: 0 while it streams, is heard of, and has told of no
    /// more; growing while the line is cut.
    #[serde(default)]
    pub lag_seconds: f64,
    /// When the newest commit was made that has come since the start, by the clock of the server that it was made on.
    #[serde(default)]
    pub last_commit_at: Option<Moment>,
    /// WAL that is received and would be lost with the power.
    pub unflushed_bytes: u64,
    /// How long the oldest of it has been here.
    pub unflushed_seconds: f64,
}

/// A fence.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FenceStatus {
    /// `in force`, `being passed` (a newer server is followed, and its timeline not reached yet), `lifted` or `passed`.
    pub state: String,
    /// Its number.
    pub epoch: u64,
    /// Servers on this timeline and before are not followed while it is in force.
    pub timeline: u32,
    /// The end of what was held of it; absent while the fence is being closed.
    #[serde(with = "text::optional")]
    pub lsn: Option<Lsn>,
    /// Why, as somebody has said.
    pub reason: String,
    /// When it was ordered.
    pub since: Moment,
    /// The role that has ordered it.
    pub role: String,
    /// Where that came from.
    pub address: String,
    /// Whether it would survive a crash as it is.
    pub durable: bool,
}

impl FenceStatus {
    /// Whether it is in force.
    pub fn is_in_force(&self) -> bool {
        self.state == "in force"
    }

    /// For people.
    pub fn line(&self) -> String {
        let position = self.lsn.map_or("being closed".to_owned(), |lsn| format!("at {lsn}"));
        let FenceStatus { epoch, timeline, since, role, address, reason, .. } = self;
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        format!(
            "epoch {epoch}, timeline {timeline} {position}, since {since} by {role} from {address}{reason}"
        )
    }
}

/// A timeline that was left for another one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FailoverStatus {
    /// When that was seen.
    pub seen: Moment,
    /// The timeline that was left.
    pub from_timeline: u32,
    /// The one that was begun.
    pub to_timeline: u32,
    /// Where their ways part.
    #[serde(with = "text")]
    pub switch_lsn: Lsn,
    /// What the upstream was told of the one that was left.
    #[serde(with = "text")]
    pub acknowledged_lsn: Lsn,
    /// `kept`, `left` or `doubtful`.
    pub verdict: String,
    /// Whether the upstream waited for this relay.
    pub upstream_waited: bool,
    /// Commits that were acknowledged and are not on the new timeline; absent if they could not be counted.
    pub commits_left: Option<u64>,
    /// Whether somebody should look at it: commits were acknowledged, are not there, and nobody has said that this was looked at.
    pub is_open: bool,
}

/// What is reported upstream of a position.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AckStatus {
    /// `write`, `flush` or `apply`.
    pub level: String,
    /// Who must have WAL, as in `[ack]`.
    pub rule: String,
    /// The `synchronous_commit` that waits for it.
    pub synchronous_commit: String,
    /// Whether the upstream waits for this relay.
    pub is_awaited: bool,
    /// How far the rule, or the one it has lapsed to, is fulfilled.
    #[serde(with = "text::optional")]
    pub reached_lsn: Option<Lsn>,
    /// How much of what is here is not.
    pub held_bytes: u64,
    /// How long the oldest of it has waited for those whom the rule names; absent where nothing does.
    pub waiting_seconds: Option<f64>,
    /// For whom.
    pub waits_for: Vec<String>,
    /// How long the rule has lapsed; absent while it holds.
    pub degraded_seconds: Option<f64>,
    /// What holds instead.
    pub degraded_to: Option<String>,
    /// How long rules may lapse until the budget is spent; absent where there is none.
    pub budget_left_seconds: Option<f64>,
    /// In how long there is all of it again.
    pub budget_full_in_seconds: Option<f64>,
}

/// A position that somebody has reached, and what that lacks to the end of the relay's WAL.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Distance {
    /// The position.
    #[serde(with = "text")]
    pub lsn: Lsn,
    /// Bytes from there to the end.
    pub lag_bytes: u64,
    /// How long the oldest WAL behind the position has been here: 0 for who has everything, however long ago that was; growing
    /// for who lacks something and does not move.
    pub lag_seconds: f64,
}

/// Who receives from a relay.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ConsumerStatus {
    /// The number that it knows as its backend's.
    pub pid: u32,
    /// Its role.
    pub user: String,
    /// `application_name`.
    pub application_name: String,
    /// Where it comes from; absent on a Unix socket.
    pub client_addr: Option<String>,
    /// When it connected.
    pub connected_at: Moment,
    /// As in `pg_stat_replication`.
    pub state: String,
    /// The slot that it streams from.
    pub slot: Option<String>,
    /// What it was sent.
    pub sent: Option<Distance>,
    /// What it has written, as it says.
    pub write: Option<Distance>,
    /// What it has flushed.
    pub flush: Option<Distance>,
    /// What it has replayed.
    pub replay: Option<Distance>,
    /// Bytes of WAL sent in this connection.
    pub sent_bytes: u64,
    /// When it last reported.
    pub reply_at: Option<Moment>,
}

impl ConsumerStatus {
    /// What it would lose nothing of, as far as it has said; else what it has, or was sent. Its lag is that of this one.
    pub fn safe(&self) -> Option<Distance> {
        self.flush.or(self.write).or(self.sent)
    }
}

/// A replication slot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Its name.
    pub name: String,
    /// Whether it ends with its connection.
    pub temporary: bool,
    /// Who uses it.
    pub active_pid: Option<u32>,
    /// Oldest WAL that it needs, and how far that is from the end.
    pub restart: Option<Distance>,
    /// WAL on the disk that it keeps there.
    pub held_bytes: u64,
    /// As in `pg_replication_slots`.
    pub wal_status: Option<String>,
    /// WAL that can come until it may be lost; absent where that cannot be.
    pub safe_wal_size: Option<i64>,
    /// Since when nobody uses it.
    pub inactive_since: Option<Moment>,
    /// Why it is lost, if it is.
    pub lost_because: Option<String>,
    /// Where its consumer was at its first report; absent for a slot that is older than this run of the relay.
    #[serde(default, with = "text::optional")]
    pub begun_lsn: Option<Lsn>,
    /// It is older than this run of the relay, and nobody has come for it yet.
    #[serde(default)]
    pub awaited: bool,
}

/// A timeline on the way to the one that is followed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TimelineStatus {
    /// Its number.
    pub timeline: u32,
    /// Where it began; absent for the first one.
    #[serde(with = "text::optional")]
    pub begin_lsn: Option<Lsn>,
    /// Where it was left; absent for the one that is followed.
    #[serde(with = "text::optional")]
    pub end_lsn: Option<Lsn>,
}

/// The disk that the WAL is on, as it was looked at last.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DiskStatus {
    /// When; absent before the first look, which takes as long as the disk does.
    pub looked_at: Option<Moment>,
    /// Why it could not be looked at since.
    pub error: Option<String>,
    /// Size of the file system.
    pub size_bytes: u64,
    /// What is free for the relay's user.
    pub free_bytes: u64,
    /// What the files of `pg_wal` take.
    pub wal_bytes: u64,
    /// How many there are.
    pub wal_files: u64,
    /// How fast the free space becomes less, over the last hour; below zero when it becomes more.
    pub growth_bytes_per_second: Option<f64>,
    /// When it is used up if that goes on; absent where it does not become less.
    pub full_in_seconds: Option<f64>,
    /// How long a sync of written WAL took on average in the last ten minutes; absent before five have passed, and where there were
    /// few.
    #[serde(default)]
    pub sync_seconds: Option<f64>,
    /// Segments that are missing between the oldest WAL that is held and the newest.
    #[serde(default)]
    pub missing_segments: u64,
    /// The first of them.
    #[serde(default)]
    pub first_missing: Option<String>,
    /// Segments by timeline.
    pub segments: Vec<SegmentsStatus>,
    /// Who keeps WAL there, and how much; the same bytes may be kept by several.
    pub holders: Vec<HolderStatus>,
}

/// Segments of one timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentsStatus {
    /// The timeline.
    pub timeline: u32,
    /// Name of the oldest file.
    pub first: String,
    /// Name of the newest.
    pub last: String,
    /// Name of the newest that is complete.
    #[serde(default)]
    pub last_complete: Option<String>,
    /// Complete segments.
    pub complete: u64,
    /// Segments that are being written, or were left in the middle.
    pub unfinished: u64,
    /// What they take on the disk.
    pub bytes: u64,
}

/// Who keeps WAL on the disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HolderStatus {
    /// `wal_keep_size`, `recovery`, `slot`, `saved_slot`, `archive_target`, `start` or `timeline_switch`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The oldest WAL that it keeps; absent if that is all there is, because it has not said what it needs.
    #[serde(with = "text::optional")]
    pub from_lsn: Option<Lsn>,
    /// How much it keeps.
    pub held_bytes: u64,
}

/// An archive target.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ArchiveStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: String,
    /// Files that it has taken since the start.
    pub archived_files: u64,
    /// The last of them.
    pub last_archived_file: Option<String>,
    /// When that was.
    pub last_archived_at: Option<Moment>,
    /// Attempts that have failed since the start.
    pub failures: u64,
    /// The last file that could not be archived.
    pub last_failed_file: Option<String>,
    /// When that was.
    pub last_failed_at: Option<Moment>,
    /// Why, kept when it works again.
    pub last_error: Option<String>,
    /// Since when everything that was tried has failed, or a file was neither taken nor refused.
    pub failing_since: Option<Moment>,
    /// Since when it has neither taken nor refused a file.
    #[serde(default)]
    pub stalled_since: Option<Moment>,
    /// Since when nothing is begun for it, because somebody has paused it.
    #[serde(default)]
    pub paused_since: Option<Moment>,
    /// Files with another content that lay there under the name of one of ours.
    pub conflicts: u64,
    /// Those of them that nobody has looked at.
    #[serde(default)]
    pub open_conflicts: u64,
    /// Runs of segments that it will never get, and that nobody has looked at.
    #[serde(default)]
    pub open_gaps: u64,
    /// How much WAL may wait for it; absent where that is as much as there is room for.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    /// Files that wait for it.
    pub pending_files: u64,
    /// WAL that it has not got as whole files; absent before that is known.
    pub pending_bytes: Option<u64>,
    /// WAL that it has not got at all: lost if only the archive is left.
    pub at_risk_bytes: Option<u64>,
    /// How long the oldest of it has been here.
    pub at_risk_seconds: Option<f64>,
}

/// WAL that is brought back from archives.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RecallStatus {
    /// Places that are asked.
    pub sources: u64,
    /// Segments on their way.
    pub in_flight: u64,
    /// Segments that came since the start.
    pub fetched_segments: u64,
    /// The same in bytes.
    pub fetched_bytes: u64,
    /// Rounds through all places that came to nothing.
    pub failures: u64,
    /// The same within the last quarter of an hour.
    #[serde(default)]
    pub failures_lately: u64,
    /// Why the last of them did.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<Moment>,
}

/// Somebody who was refused replication commands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RefusedStatus {
    /// What it calls itself.
    pub application_name: String,
    /// Where it is; absent for the Unix socket.
    pub client_addr: Option<String>,
    /// `wal_removed`, `timeline`, `slot_lost`, `slot_in_use`, `slot_missing` or `other`.
    pub cause: String,
    /// What it was told the last time.
    pub message: String,
    /// How often it was refused, without a pause of more than two and a half minutes.
    pub times: u64,
    /// The first of these times.
    pub since: Moment,
    /// The last of them.
    pub last: Moment,
}

/// A line of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventStatus {
    /// When it was said.
    pub at: Moment,
    /// `WARN` or `ERROR`.
    pub level: String,
    /// What was said.
    pub message: String,
}

/// How long something took, each time.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Durations {
    /// Upper ends of classes, in seconds.
    pub classes: Vec<f64>,
    /// How often it fell into each, and how often behind them all.
    pub counts: Vec<u64>,
    /// How long it took altogether.
    pub total_seconds: f64,
    /// What it takes of late: the median of the last 64; absent before the first one.
    #[serde(default)]
    pub late_seconds: Option<f64>,
}

/// What has happened so often since the relay started.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Bytes that came from upstream servers.
    pub received_bytes: u64,
    /// Bytes of WAL that went to consumers.
    pub sent_bytes: u64,
    /// Streams from an upstream that have begun.
    pub upstream_streams: u64,
    /// Attempts to follow one that have failed.
    pub upstream_failures: u64,
    /// Syncs of written WAL.
    pub syncs: Durations,
    /// Segments that were begun.
    pub segments_made: u64,
    /// Files of segments that were removed because nobody needs them.
    pub segments_removed: u64,
    /// Slots that were lost.
    pub slots_lost: u64,
    /// Connections that were accepted.
    pub connections: u64,
    /// Replication connections that have logged in.
    pub replication_sessions: u64,
    /// SQL sessions that have logged in.
    pub sql_sessions: u64,
    /// SQL sessions that are there now.
    pub sql_sessions_open: u64,
    /// Why replication connections have ended, and how often.
    pub ended: BTreeMap<String, u64>,
    /// Why clients were not let in, and how often.
    pub refused: BTreeMap<String, u64>,
    /// The same within the last ten minutes, those causes that there were.
    #[serde(default)]
    pub refused_lately: BTreeMap<String, u64>,
    /// Why replication commands were refused, and how often.
    #[serde(default)]
    pub commands_refused: BTreeMap<String, u64>,
    /// Warnings in the log.
    pub warnings: u64,
    /// Errors in the log.
    pub errors: u64,
}

impl Status {
    /// Why the relay can serve nobody; `None` when it can.
    pub fn unready(&self) -> Option<String> {
        let relay = &self.relay;
        if let Some(failure) = &relay.failure {
            return Some(failure.clone());
        }
        if relay.stopping {
            return Some("the relay stops".to_owned());
        }
        if relay.write_lsn.is_some() {
            return None;
        }
        let why = self.upstream.last_error.as_deref().unwrap_or("no server has answered yet");
        Some(format!("no WAL is held yet, and none comes from the upstream: {why}"))
    }
}
