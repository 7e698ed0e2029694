//! The running relay, as it tells itself: what it lacks, who is behind and why, what it keeps for whom.

use std::collections::BTreeMap;

use super::finding::{Finding, Findings, quoted, remedy, size, time};
use crate::config::timeout_as_shown;
use crate::status::{ArchiveStatus, ConsumerStatus, SlotStatus, Status};

/// A consumer that is so far behind is looked at, seconds.
const BEHIND: f64 = 30.0;
/// What a receiver that syncs whole segments may have unsynced, bytes: one segment of PostgreSQL's usual size and some of the next.
const UNFLUSHED: u64 = 32 << 20;
/// A consumer that is silent for so long has stopped reading, or its line has, where the relay waits for ever, seconds.
const SILENT: f64 = 60.0;
/// This part of the relay's `wal-sender-timeout`, where it has one: at half of it a consumer is asked for a word, and at the end
/// of it the connection is.
const ASKED_IN_VAIN: f64 = 0.6;
/// A slot that nobody has used for so long is asked about, seconds.
const UNUSED: f64 = 600.0;
/// The same where nobody has come back to it since the relay was started: standbys and pg_receivewal try again every 5 seconds.
const NOT_BACK: f64 = 20.0;
/// Segments begin at multiples of this, however large they are, bytes.
const SMALLEST_SEGMENT: u64 = 1 << 20;
/// An hour is enough to look, and too short to buy a disk, seconds.
const FULL_SOON: f64 = 86_400.0;
/// Syncs that take longer of late make commits slow, seconds.
const SLOW_SYNC: f64 = 0.05;

/// What is known of it.
#[derive(Debug)]
pub(super) enum Seen {
    /// It runs.
    Running(Box<Status>),
    /// It answers, and does not tell this role how it is.
    Refusing(String),
    /// It does not answer, and there is WAL in its data directory: it has run.
    Silent(String),
    /// It has never run.
    New,
}

impl Seen {
    /// What it has told.
    pub(super) fn status(&self) -> Option<&Status> {
        match self {
            Seen::Running(status) => Some(status),
            Seen::Refusing(_) | Seen::Silent(_) | Seen::New => None,
        }
    }
}

/// What of that somebody should know. `newest` is the timeline of the upstream.
pub(super) fn diagnose(seen: &Seen, newest: Option<u32>) -> Vec<Finding> {
    let mut found = Findings::about("relay");
    match seen {
        Seen::New => {
            found.ok("relay_new", "it has not run yet; what follows is checked before the first start")
        }
        Seen::Refusing(why) => found.warning(
            "relay_refuses",
            format!("it runs, and does not tell how it is, so that is not checked: {why}"),
            remedy([
                "give --relay a connection string with a role that may look: GRANT pg_monitor TO ...;   -- on the upstream",
                "or run doctor as the relay's system user, over its Unix socket",
            ]),
        ),
        Seen::Silent(why) => found.error(
            "relay_not_running",
            format!("it has run, and does not answer now: {why}"),
            remedy([
                "systemctl status walrelay; journalctl -u walrelay -n 50",
                "systemctl enable --now walrelay   -- so that it is back after a reboot",
            ]),
        ),
        Seen::Running(status) => running(&mut found, status, newest),
    }
    found.into_inner()
}

fn running(found: &mut Findings, status: &Status, newest: Option<u32>) {
    receiving(found, status, newest);
    fence(found, status);
    disk(found, status);
    status.slots.iter().for_each(|slot| self::slot(found, status, slot));
    status.consumers.iter().for_each(|consumer| self::consumer(found, status, consumer));
    twins(found, status);
    status.archive.iter().for_each(|target| archive(found, target));
    let waiting: Vec<_> =
        status.settings.iter().filter(|it| it.pending_restart).map(|it| it.name.as_str()).collect();
    if !waiting.is_empty() {
        let text = format!("settings in the file that are not in effect: {}", waiting.join(", "));
        found.warning("relay_pending_restart", text, remedy(["systemctl restart walrelay"]));
    }
}

fn receiving(found: &mut Findings, status: &Status, newest: Option<u32>) {
    let upstream = &status.upstream;
    if let Some(failure) = &status.relay.failure {
        found.error("relay_failed", failure.clone(), remedy(["look at the disk, then restart the relay"]));
    }
    if upstream.state != "streaming" {
        let since = upstream.failing_since.map(|since| format!(" since {since}")).unwrap_or_default();
        let why = upstream.last_error.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        let text = format!("no WAL comes from the upstream{since} ({}){why}", upstream.state);
        found.error(
            "relay_not_receiving",
            text,
            remedy(["what is said of the upstream here has the cause, or SHOW EVENTS has"]),
        );
    } else {
        let from = upstream.host.as_deref().unwrap_or("the upstream");
        found.ok(
            "relay_receiving",
            format!("it receives from {from}, up to {}", text(status.relay.flush_lsn)),
        );
    }
    if let (Some(ours), Some(theirs)) = (status.relay.timeline, newest)
        && ours < theirs
        && upstream.state != "streaming"
    {
        let text = format!("it is on timeline {ours}, the upstream on {theirs}, and does not follow it");
        found.error("relay_old_timeline", text, remedy(["SHOW EVENTS tells why: mostly the two have parted, and this one has WAL that the new primary never had"]));
    }
    if let Some(late) = status.counts.syncs.late_seconds.filter(|late| *late > SLOW_SYNC) {
        let text = format!("its syncs take {} of late, and synchronous commits wait for each", time(late));
        found.warning(
            "relay_slow_sync",
            text,
            remedy(["put --data-dir on a disk with a write cache that survives a power cut"]),
        );
    }
}

fn text(lsn: Option<walrelay_proto::Lsn>) -> String {
    lsn.map_or_else(|| "nothing yet".to_owned(), |lsn| lsn.to_string())
}

fn fence(found: &mut Findings, status: &Status) {
    let Some(fence) = status.fence.as_ref().filter(|fence| fence.is_in_force()) else { return };
    let lift = format!(
        "walrelay unfence --relay '...' --epoch {}   -- unless a promotion is under way",
        fence.epoch
    );
    found.warning(
        "relay_fenced",
        format!("it is fenced: only a newer timeline is followed ({})", fence.line()),
        vec![lift],
    );
}

fn disk(found: &mut Findings, status: &Status) {
    let disk = &status.disk;
    if let Some(error) = &disk.error {
        let text = format!("the data directory's disk does not answer: {error}");
        return found.error("disk_silent", text, remedy(["dmesg; look at the disk or the server it is on"]));
    }
    let holder = disk.holders.iter().max_by_key(|holder| holder.held_bytes);
    let held =
        holder.map(|it| format!("; most is kept for {} {} ({})", it.kind, it.name, size(it.held_bytes)));
    match disk.full_in_seconds.filter(|seconds| *seconds < FULL_SOON) {
        Some(seconds) => {
            let text = format!("the disk is full in {}{}", time(seconds), held.unwrap_or_default());
            let look = [
                "SHOW HOLDERS tells who keeps what: drop slots that nobody uses, set max-slot-wal-keep-size, mend the archive",
            ];
            found.error("disk_full_soon", text, remedy(look));
        }
        None => found.ok("disk", format!("{} free, {} of WAL", size(disk.free_bytes), size(disk.wal_bytes))),
    }
}

fn slot(found: &mut Findings, status: &Status, slot: &SlotStatus) {
    let name = &slot.name;
    let drop = format!("DROP SLOT {};   -- in the database walrelay of the relay", quoted(name, '"'));
    if slot.wal_status.as_deref() == Some("lost") {
        let why = slot.lost_because.as_deref().unwrap_or("WAL that it needs was removed");
        let text = format!("slot \"{name}\" is lost: {why}");
        let anew = "set its consumer up anew: pg_basebackup through the relay, or a restore_command that asks the archive";
        return found.error("slot_lost", text, vec![drop, anew.to_owned()]);
    }
    if slot.active_pid.is_some() && archives_nothing_yet(status, slot) {
        let text = format!(
            "the receiver on slot \"{name}\" has not finished a segment since the slot was made, so nothing of it is archived: \
             Barman says \"WAL archive: FAILED (please make sure WAL shipping is setup)\" until then"
        );
        let switch = "SELECT pg_switch_wal();   -- on the primary, and commit something; for Barman: barman switch-wal --force --archive <server>";
        return found.warning("slot_no_segment", text, vec![switch.to_owned()]);
    }
    if slot.temporary || slot.active_pid.is_some() {
        return;
    }
    if slot.restart.is_none() {
        let text = format!(
            "slot \"{name}\" is not initialised: its consumer has never streamed, and nothing is kept for it"
        );
        let start = "start its consumer: for Barman `barman cron` (it starts receive-wal), for a standby primary_slot_name and primary_conninfo";
        return found.warning("slot_not_initialised", text, vec![start.to_owned(), drop]);
    }
    let unused = slot.inactive_since.map(|since| status.at.since(since).as_secs_f64()).unwrap_or_default();
    if slot.awaited && unused > NOT_BACK {
        let text = format!(
            "the consumer on slot \"{name}\" has not come back since the relay was started {} ago; {} of WAL are kept for it",
            time(status.relay.uptime_seconds),
            size(slot.held_bytes)
        );
        let start = "start its receiver (barman receive-wal, which barman cron starts within a minute; pg_receivewal, the standby) and have it start after a reboot";
        return found.warning("slot_unused", text, vec![start.to_owned(), drop]);
    }
    if unused > UNUSED {
        let held = size(slot.held_bytes);
        let text = format!("nobody has used slot \"{name}\" for {}; it keeps {held} of WAL", time(unused));
        let start = "start its receiver (barman receive-wal, pg_receivewal, the standby) and have it start after a reboot";
        found.warning("slot_unused", text, vec![start.to_owned(), drop]);
    }
}

/// A receiver of whole segments reports where one begins until it has one. A standby tells what it has replayed.
fn archives_nothing_yet(status: &Status, slot: &SlotStatus) -> bool {
    let restart = slot.restart.map(|it| it.lsn);
    let is_receiver = |it: &&ConsumerStatus| it.slot.as_ref() == Some(&slot.name) && it.replay.is_none();
    // Whoever syncs what comes reports any position.
    let is_at_its_first = slot.begun_lsn.is_some_and(|begun| begun.as_u64() % SMALLEST_SEGMENT == 0)
        && slot.begun_lsn == restart;
    is_at_its_first && status.consumers.iter().filter(is_receiver).any(|it| it.reply_at.is_some())
}

/// Where the first lag is, there is the cause.
fn consumer(found: &mut Findings, status: &Status, consumer: &ConsumerStatus) {
    let name = &consumer.application_name;
    let lag = |distance: Option<crate::status::Distance>| distance.map_or(0.0, |it| it.lag_seconds);
    let silent = consumer.reply_at.map(|at| status.at.since(at).as_secs_f64());
    if let Some(silent) = silent.filter(|silent| *silent > silence(status)) {
        let text = format!("consumer \"{name}\" has said nothing for {}", time(silent));
        let look =
            ["is its process stopped, or its machine or line gone? wal-sender-timeout ends such connections"];
        return found.warning("consumer_silent", text, remedy(look));
    }
    if lag(consumer.sent) > BEHIND {
        let text = format!(
            "consumer \"{name}\" is {} behind in what it was sent: it takes WAL slower than it comes",
            time(lag(consumer.sent))
        );
        let look = [
            "its line or its reading is the limit: compare the line's rate with that of the WAL (walrelay_received_bytes_total)",
        ];
        found.warning("consumer_slow_line", text, remedy(look));
    } else if lag(consumer.flush.or(consumer.write)) > BEHIND && !syncs_segments(consumer) {
        let text = format!(
            "consumer \"{name}\" is {} behind in what it has flushed: its disk is slow",
            time(lag(consumer.flush.or(consumer.write)))
        );
        found.warning("consumer_slow_disk", text, remedy(["look at the disk of its pg_wal (iostat -x 1)"]));
    } else if lag(consumer.replay) > BEHIND {
        let text =
            format!("consumer \"{name}\" has all WAL and is {} behind in replay", time(lag(consumer.replay)));
        let look = [
            "walrelay doctor --consumer '<how to connect to it>' tells whether it is paused, delayed, or in conflict with a query",
        ];
        found.warning("consumer_slow_replay", text, remedy(look));
    }
}

/// How long a consumer may say nothing, seconds.
fn silence(status: &Status) -> f64 {
    let limit = status.settings.iter().find(|it| it.name == "wal-sender-timeout");
    let limit = limit.and_then(|it| timeout_as_shown(&it.value).ok().flatten());
    limit.map_or(SILENT, |limit| limit.as_secs_f64() * ASKED_IN_VAIN)
}

/// pg_receivewal and Barman sync a segment when it is full, however long that takes.
fn syncs_segments(consumer: &ConsumerStatus) -> bool {
    let unflushed = consumer.flush.map_or(0, |flush| flush.lag_bytes);
    consumer.replay.is_none() && unflushed < UNFLUSHED
}

fn twins(found: &mut Findings, status: &Status) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for consumer in &status.consumers {
        *counts.entry(&consumer.application_name).or_default() += 1;
    }
    for (name, count) in counts.into_iter().filter(|(name, count)| *count > 1 && *name != "walreceiver") {
        let text = format!(
            "{count} consumers are called \"{name}\": [ack] and synchronous_standby_names cannot tell them apart"
        );
        found.warning(
            "consumer_name_twice",
            text,
            remedy([
                "give each a name of its own: application_name in its primary_conninfo, or cluster_name",
            ]),
        );
    }
}

fn archive(found: &mut Findings, target: &ArchiveStatus) {
    let name = &target.name;
    let error = target.last_error.as_deref().unwrap_or("unknown");
    if let Some(since) = target.paused_since {
        let text = format!("archive target \"{name}\" is paused since {since}");
        let resume = format!("RESUME {};   -- in the database walrelay of the relay", quoted(name, '"'));
        found.warning("archive_paused", text, vec![resume]);
    } else if let Some(since) = target.failing_since {
        let text =
            format!("archive target \"{name}\" ({}) takes nothing since {since}: {error}", target.place);
        let look = [
            "is it mounted, writable for the relay's user, not full? the relay goes on by itself when it is mended",
        ];
        found.error("archive_failing", text, remedy(look));
    } else {
        let pending = target.pending_bytes.unwrap_or_default();
        let text = format!("archive target \"{name}\" has all but {} of the WAL", size(pending));
        found.ok("archive", text);
    }
    if target.conflicts > 0 {
        let text = format!(
            "archive target \"{name}\" had {} files with another content under the names of ours",
            target.conflicts
        );
        let look = format!(
            "walrelay archive verify --archive '{}'; another cluster, or another timeline of this one, writes there",
            target.place
        );
        found.error("archive_conflicts", text, vec![look]);
    }
}
