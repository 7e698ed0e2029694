//! Where the value comes from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use walrelay_proto::ack::Report;
use walrelay_proto::{Lsn, TimelineHistory, TimelineId, TimelinePosition};

use super::disk::DiskGauge;
use super::reminders::Key;
use super::troubles::{Trouble, TroubleStatus};
use super::value::{
    AckStatus, ArchiveStatus, CertificateEnd, ConsumerStatus, Counts, DiskStatus, Distance, Durations,
    EventStatus, FailoverStatus, FenceStatus, HolderStatus, RecallStatus, RefusedStatus, RelayStatus,
    SlotStatus, Status, TimelineStatus, UpstreamStatus,
};
use crate::archive::{ArchiveControl, Recall, TargetSeen};
use crate::consumers;
use crate::counts::{self, CLASSES, Cause, SessionCounts};
use crate::events::Events;
use crate::moment::{Clock, Moment, Past};
use crate::overlay::{Holdings, slot_row};
use crate::redact::redact;
use crate::store::failovers::Failover;
use crate::store::fence::Fencing;
use crate::store::{Held, HoldKind, HoldRow, SlotInfo, Store, Tip};
use crate::upstream::{Board, Seen};

/// What of clients that were not let in is told as of now.
const LATELY: Duration = Duration::from_secs(600);

/// A setting in effect.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Setting {
    /// As in the configuration file.
    pub name: String,
    /// Its value, without what is secret.
    pub value: String,
    /// The file has another value by now, which takes a restart.
    pub pending_restart: bool,
    /// When a change takes effect: `sighup` or `postmaster`, as in `pg_settings`.
    #[serde(default)]
    pub context: String,
    /// Where it comes from: `default`, `configuration file` or `command line`.
    #[serde(default)]
    pub source: String,
    /// The file, if it comes from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_file: Option<String>,
    /// What it is for. It is the same for every relay of the version, so it does not travel.
    #[serde(skip)]
    pub description: String,
}

impl Setting {
    /// A setting of which nothing more is known.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Setting {
        Setting {
            name: name.into(),
            value: value.into(),
            pending_restart: false,
            context: "postmaster".to_owned(),
            source: "default".to_owned(),
            source_file: None,
            description: String::new(),
        }
    }
}

/// The parts of a running relay that are looked at.
#[derive(Debug)]
pub struct SourcesSetup {
    /// The WAL.
    pub store: Arc<Store>,
    /// What the receiver says of itself.
    pub upstream: Arc<Board>,
    /// `--upstream`, without what is secret.
    pub conninfo: String,
    /// `--slot`.
    pub slot: String,
    /// The archive targets.
    pub archive: Arc<ArchiveControl>,
    /// What brings WAL back from there.
    pub recall: Arc<Recall>,
    /// What has become of connections.
    pub sessions: Arc<SessionCounts>,
    /// The log's warnings and errors.
    pub events: Events,
    /// What the disk was seen to be.
    pub disk: Arc<DiskGauge>,
    /// Settings in effect.
    pub settings: Vec<Setting>,
}

/// Where a [`Status`] comes from.
#[derive(Debug)]
pub struct Sources {
    parts: SourcesSetup,
    /// With when they were read.
    settings: RwLock<(Arc<Vec<Setting>>, Past)>,
    started: Past,
    stopping: AtomicBool,
    /// Troubles, and since when they are known.
    lasting: Mutex<BTreeMap<Key, Past>>,
    certificates: Mutex<Vec<CertificateEnd>>,
}

impl Sources {
    /// When the relay started.
    pub fn started_at(&self) -> Moment {
        self.started.moment()
    }

    /// When the settings in effect were read.
    pub fn configured_at(&self) -> Moment {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).1.moment()
    }

    /// Those of a relay that starts now.
    pub fn new(mut setup: SourcesSetup) -> Sources {
        let settings = RwLock::new((Arc::new(std::mem::take(&mut setup.settings)), Past::now()));
        let (stopping, lasting) = (AtomicBool::new(false), Mutex::default());
        let certificates = Mutex::default();
        Sources { parts: setup, settings, started: Past::now(), stopping, lasting, certificates }
    }

    /// The same of one that has started then.
    pub fn begun(self, started: Past) -> Sources {
        Sources { started, ..self }
    }

    /// What looks at the disk.
    pub fn disk(&self) -> &Arc<DiskGauge> {
        &self.parts.disk
    }

    /// The archive targets.
    pub fn archive(&self) -> &ArchiveControl {
        &self.parts.archive
    }

    /// Where connections are counted.
    pub fn sessions(&self) -> &Arc<SessionCounts> {
        &self.parts.sessions
    }

    /// Why the relay cannot go on, if so. Cheaper than to look at everything.
    pub fn failure(&self) -> Option<String> {
        self.parts.store.failure()
    }

    /// The relay stops.
    pub fn note_stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// When certificates and revocation lists end.
    pub fn set_certificates(&self, ends: Vec<CertificateEnd>) {
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = ends;
    }

    fn certificates(&self) -> Vec<CertificateEnd> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// These are the troubles now; what is new among them is known from now on.
    pub(super) fn note_troubles(&self, keys: BTreeSet<Key>, now: Past) {
        let mut lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        lasting.retain(|key, _| keys.contains(key));
        for key in keys {
            lasting.entry(key).or_insert(now);
        }
    }

    fn details(&self, troubles: Vec<Trouble>, clock: Clock) -> Vec<TroubleStatus> {
        let lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = |trouble: Trouble| {
            let since = lasting.get(&(trouble.kind, trouble.about.clone()));
            let since = since.map(|since| clock.moment(*since));
            trouble.shown(since)
        };
        troubles.into_iter().map(shown).collect()
    }

    /// The settings that are in effect from now on.
    pub fn set_settings(&self, settings: Vec<Setting>) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(settings), Past::now());
    }

    fn settings(&self) -> Arc<Vec<Setting>> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

impl Status {
    /// The relay as it is now. Waits for nothing.
    pub fn now(sources: &Sources) -> Status {
        let SourcesSetup { store, upstream, archive, recall, events, .. } = &sources.parts;
        let tip = store.tip();
        let end = End {
            lsn: tip.map(|tip| tip.write_lsn).unwrap_or_default(),
            store,
            now: Instant::now(),
            clock: Clock::now(),
        };
        let slots = store.slots().list();
        let seen = upstream.seen();
        let consumers = consumers(&end, &slots);
        let status = Status {
            at: end.clock.at(),
            ready: false,
            troubles: Vec::new(),
            trouble_details: Vec::new(),
            relay: relay(sources, tip, end.clock),
            fence: fence(store.fences().now()),
            failovers: store.failovers().iter().map(failover).collect(),
            certificates: sources.certificates(),
            ack: ack(store.consumers().acknowledgements().seen()),
            refused_commands: refused_commands(sources, &end, &consumers),
            consumers,
            slots: self::slots(&end, &slots),
            timelines: tip.map(|_| timelines(&store.history())).unwrap_or_default(),
            disk: DiskStatus { holders: holders(&end), ..sources.parts.disk.seen(end.clock) },
            archive: archive.seen().into_iter().map(|target| archive_target(&end, target)).collect(),
            recalls: recalls(recall, end.clock),
            settings: sources.settings().to_vec(),
            events: events.list().into_iter().map(EventStatus::from).collect(),
            counts: counts(sources, &seen),
            upstream: upstream_status(sources, seen, tip, &end),
        };
        let found = status.find_troubles();
        let troubles = found.iter().map(|trouble| trouble.message.clone()).collect();
        let trouble_details = sources.details(found, end.clock);
        Status { ready: status.unready().is_none(), troubles, trouble_details, ..status }
    }
}

/// Where WAL ends, and when that is.
struct End<'a> {
    lsn: Lsn,
    store: &'a Store,
    now: Instant,
    clock: Clock,
}

impl End<'_> {
    /// When something was, as everything else in the value.
    fn moment(&self, past: Past) -> Moment {
        self.clock.moment(past)
    }

    /// What somebody lacks who has reached `lsn`.
    fn distance(&self, lsn: Lsn) -> Distance {
        let lag_seconds = self.store.lag_clock().waiting(lsn, self.lsn, self.now).as_secs_f64();
        Distance { lsn, lag_bytes: self.lsn.since(lsn), lag_seconds }
    }

    /// How much of what reaches there is on the way to the present timeline; `None` if nothing is.
    fn on_this_timeline(&self, there: TimelinePosition) -> Option<Lsn> {
        let history = self.store.history();
        match history.switch_point(there.tli) {
            Some((left_at, _)) => Some(there.lsn.min(left_at)),
            None => (history.tli() == there.tli).then_some(there.lsn),
        }
    }

    /// The oldest WAL that is here, as far as is known without the disk.
    fn oldest(&self) -> Option<Lsn> {
        self.store.oldest_kept().and_then(Lsn::valid)
    }

    /// Bytes on the disk from `lsn` on.
    fn kept_from(&self, lsn: Lsn) -> u64 {
        match (self.oldest(), lsn.valid()) {
            (Some(oldest), _) => self.lsn.since(lsn.max(oldest)),
            // Retention has not looked yet.
            (None, Some(from)) => self.lsn.since(from),
            (None, None) => 0,
        }
    }
}

fn relay(sources: &Sources, tip: Option<Tip>, clock: Clock) -> RelayStatus {
    let store = &sources.parts.store;
    RelayStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at: clock.moment(sources.started),
        uptime_seconds: clock.at().since(clock.moment(sources.started)).as_secs_f64(),
        data_dir: store.data_dir().display().to_string(),
        system_identifier: store.identity().map(|identity| identity.system_id.to_string()),
        timeline: tip.map(|tip| tip.tli.as_u32()),
        oldest_lsn: store.oldest_kept().and_then(Lsn::valid),
        write_lsn: tip.map(|tip| tip.write_lsn),
        flush_lsn: tip.and_then(|tip| tip.flush_lsn.valid()),
        stopping: sources.stopping.load(Ordering::Relaxed),
        failure: store.failure(),
    }
}

fn upstream_status(sources: &Sources, seen: Seen, tip: Option<Tip>, end: &End<'_>) -> UpstreamStatus {
    let unflushed = tip.map(|tip| end.distance(tip.flush_lsn));
    let (last_error, last_error_at) = seen.last_error.unzip();
    let (end_lsn, end_at) = seen.server_end.unzip();
    let past = |past: Option<Past>| past.map(|past| end.moment(past));
    UpstreamStatus {
        conninfo: sources.parts.conninfo.clone(),
        slot: sources.parts.slot.clone(),
        state: seen.phase.as_str().to_owned(),
        since: end.moment(seen.since),
        host: seen.host,
        server_version: seen.server_version,
        server_timeline: seen.server_timeline.map(|tli| tli.as_u32()),
        stream_start_lsn: seen.started_at.map(|at| at.lsn),
        stream_start_timeline: seen.started_at.map(|at| at.tli.as_u32()),
        last_message_at: past(seen.last_message),
        end_lsn,
        end_at: past(end_at),
        failing_since: past(seen.failing_since),
        last_error: last_error.map(|error| redact(&error)),
        last_error_at: past(last_error_at),
        unreceived_bytes: end_lsn.map(|theirs| theirs.since(end.lsn)),
        lag_seconds: sources.parts.upstream.lag(end.lsn).as_secs_f64(),
        last_commit_at: end.store.newest_commit().and_then(|time| time.to_system_time()).map(Moment::from),
        unflushed_bytes: unflushed.map_or(0, |it| it.lag_bytes),
        unflushed_seconds: unflushed.map_or(0.0, |it| it.lag_seconds),
    }
}

fn fence(fencing: Fencing) -> Option<FenceStatus> {
    let state = fencing.state().to_owned();
    let Fencing { last, is_saved, .. } = fencing;
    last.map(|fence| FenceStatus {
        state,
        epoch: fence.epoch,
        timeline: fence.timeline.as_u32(),
        lsn: fence.position,
        reason: fence.reason,
        since: fence.since.to_system_time().unwrap_or(SystemTime::UNIX_EPOCH).into(),
        role: fence.by.role,
        address: fence.by.address,
        durable: is_saved,
    })
}

fn failover(failover: &Failover) -> FailoverStatus {
    FailoverStatus {
        seen: failover.seen.to_system_time().unwrap_or(SystemTime::UNIX_EPOCH).into(),
        from_timeline: failover.from.as_u32(),
        to_timeline: failover.to.as_u32(),
        switch_lsn: failover.switch_point,
        acknowledged_lsn: failover.acknowledged,
        verdict: failover.verdict().as_str().to_owned(),
        upstream_waited: failover.was_awaited,
        commits_left: failover.commits,
        is_open: failover.is_open(),
    }
}

fn ack(seen: consumers::AckSeen) -> Vec<AckStatus> {
    let seconds = |time: Duration| time.as_secs_f64();
    let (rules, budget, is_awaited) = (seen.rules, seen.allowance, seen.is_awaited);
    let status = |report: Report| AckStatus {
        level: report.level.as_str().to_owned(),
        rule: rules.at(report.level).to_string(),
        synchronous_commit: report.level.waited_for_by().to_owned(),
        is_awaited,
        reached_lsn: report.reached,
        held_bytes: report.held_bytes,
        waiting_seconds: report.waiting.map(seconds),
        waits_for: report.waits_for.iter().map(ToString::to_string).collect(),
        degraded_seconds: report.lapsed.map(seconds),
        degraded_to: report.lapsed.and(rules.lapse.as_ref()).map(|lapse| lapse.to.to_string()),
        budget_left_seconds: budget.map(|budget| seconds(budget.left)),
        budget_full_in_seconds: budget.map(|budget| seconds(budget.full_in)),
    };
    seen.reports.into_iter().map(status).collect()
}

fn consumers(end: &End<'_>, slots: &[SlotInfo]) -> Vec<ConsumerStatus> {
    let used = slots.iter().filter_map(|slot| Some((slot.active_pid?, slot.name.as_str())));
    let used: HashMap<u32, &str> = used.collect();
    let consumer = |seen: consumers::ConsumerStatus| {
        let consumers::ConsumerIdentity { pid, user, application_name, client_addr, backend_start } =
            seen.identity;
        let distance = |lsn: Option<Lsn>| lsn.map(|lsn| end.distance(lsn));
        ConsumerStatus {
            pid,
            user,
            application_name,
            client_addr: client_addr.map(|address| address.ip().to_canonical().to_string()),
            connected_at: end.moment(backend_start),
            state: seen.state.as_str().to_owned(),
            slot: used.get(&pid).map(|name| (*name).to_owned()),
            sent: distance(seen.sent_lsn),
            write: distance(seen.write_lsn),
            flush: distance(seen.flush_lsn),
            replay: distance(seen.replay_lsn),
            sent_bytes: seen.sent_bytes,
            reply_at: seen.reply_time.map(|past| end.moment(past)),
        }
    };
    end.store.consumers().list().into_iter().map(consumer).collect()
}

/// Without those who stream by now: what they wanted was given to them, over a connection that came later.
fn refused_commands(sources: &Sources, end: &End<'_>, consumers: &[ConsumerStatus]) -> Vec<RefusedStatus> {
    let refused = |it: counts::Refusee| RefusedStatus {
        application_name: it.application_name,
        client_addr: it.address.map(|address| address.to_string()),
        cause: it.cause.word().to_owned(),
        message: redact(&it.message),
        times: it.times,
        since: end.moment(it.since),
        last: end.moment(it.last),
    };
    let streams = |it: &RefusedStatus| {
        consumers.iter().any(|consumer| {
            consumer.application_name == it.application_name
                && consumer.client_addr == it.client_addr
                && consumer.state == "streaming"
                && consumer.connected_at > it.last
        })
    };
    let seen = sources.parts.sessions.commands.seen(end.now);
    seen.into_iter().map(refused).filter(|it| !streams(it)).collect()
}

fn slots(end: &End<'_>, slots: &[SlotInfo]) -> Vec<SlotStatus> {
    let holdings = Holdings::of(end.store);
    let slot = |slot: &SlotInfo| {
        let row = slot_row(slot, holdings.as_ref());
        SlotStatus {
            name: slot.name.clone(),
            temporary: slot.temporary,
            active_pid: slot.active_pid,
            restart: slot.restart_lsn.map(|lsn| end.distance(lsn)),
            held_bytes: slot.restart_lsn.filter(|_| !slot.invalidated).map_or(0, |lsn| end.kept_from(lsn)),
            wal_status: row.get("wal_status").map(str::to_owned),
            safe_wal_size: row.get("safe_wal_size").and_then(|bytes| bytes.parse().ok()),
            inactive_since: slot.inactive_since.map(|past| end.moment(past)),
            lost_because: row.get("invalidation_reason").map(str::to_owned),
            begun_lsn: slot.begun_at,
            awaited: slot.is_awaited,
        }
    };
    slots.iter().map(slot).collect()
}

fn timelines(history: &TimelineHistory) -> Vec<TimelineStatus> {
    let mut begin_lsn = None;
    let timeline = |tli: TimelineId| {
        let end_lsn = history.switch_point(tli).map(|(left_at, _)| left_at);
        let begin_lsn = std::mem::replace(&mut begin_lsn, end_lsn);
        TimelineStatus { timeline: tli.as_u32(), begin_lsn, end_lsn }
    };
    history.way().map(timeline).collect()
}

fn holders(end: &End<'_>) -> Vec<HolderStatus> {
    let holder = |row: HoldRow| {
        let (from_lsn, held_bytes) = match row.held {
            Held::Everything => (None, end.kept_from(Lsn::INVALID)),
            Held::From(from) => (Some(from), end.kept_from(from)),
            Held::Nothing => return None,
        };
        Some(HolderStatus { kind: kind(row.kind).to_owned(), name: row.name, from_lsn, held_bytes })
    };
    end.store.holds().rows().into_iter().filter_map(holder).collect()
}

fn kind(kind: HoldKind) -> &'static str {
    match kind {
        HoldKind::KeepSize => "wal_keep_size",
        HoldKind::Recovery => "recovery",
        HoldKind::Slot => "slot",
        HoldKind::SavedSlot => "saved_slot",
        HoldKind::ArchiveTarget => "archive_target",
        HoldKind::Start => "start",
        HoldKind::TimelineSwitch => "timeline_switch",
    }
}

fn archive_target(end: &End<'_>, (name, place, seen): (String, String, TargetSeen)) -> ArchiveStatus {
    let pending = seen.needed_from.map(|from| end.distance(from));
    let tail = seen.tail_end.and_then(|tail| end.on_this_timeline(tail));
    let at_risk = seen.needed_from.map(|from| end.distance(tail.map_or(from, |tail| tail.max(from))));
    let (last_archived_file, last_archived_at) = seen.last_archived.unzip();
    let (failed, last_error) = seen.last_failed.map(|(file, at, error)| ((file, at), redact(&error))).unzip();
    let (last_failed_file, last_failed_at) = failed.unzip();
    let past = |past: Option<Past>| past.map(|past| end.moment(past));
    ArchiveStatus {
        name,
        place: redact(&place),
        archived_files: seen.archived_files,
        last_archived_file,
        last_archived_at: past(last_archived_at),
        failures: seen.failures,
        last_failed_file,
        last_failed_at: past(last_failed_at),
        last_error,
        failing_since: past(seen.failing_since),
        stalled_since: past(seen.stalled_since),
        paused_since: past(seen.paused_since),
        conflicts: seen.conflicts,
        open_conflicts: seen.open_conflicts,
        open_gaps: seen.open_gaps,
        quota_bytes: seen.quota,
        pending_files: seen.pending_files,
        pending_bytes: pending.map(|it| it.lag_bytes),
        at_risk_bytes: at_risk.map(|it| it.lag_bytes),
        at_risk_seconds: at_risk.map(|it| it.lag_seconds),
    }
}

fn recalls(recall: &Recall, clock: Clock) -> RecallStatus {
    let seen = recall.seen();
    let (last_error, last_error_at) = seen.last_error.unzip();
    RecallStatus {
        sources: seen.sources as u64,
        in_flight: seen.in_flight,
        fetched_segments: seen.fetched,
        fetched_bytes: seen.fetched_bytes,
        failures: seen.failed,
        failures_lately: seen.failed_lately,
        last_error: last_error.map(|error| redact(&error)),
        last_error_at: last_error_at.map(|past| clock.moment(past)),
    }
}

fn counts(sources: &Sources, upstream: &Seen) -> Counts {
    let SourcesSetup { store, sessions, events, .. } = &sources.parts;
    let done = store.counts();
    let (warnings, errors) = events.counts();
    Counts {
        received_bytes: upstream.received_bytes,
        sent_bytes: store.consumers().sent_bytes(),
        upstream_streams: upstream.streams,
        upstream_failures: upstream.failures,
        syncs: Durations::from(&done.syncs),
        segments_made: done.segments_made.get(),
        segments_removed: done.segments_removed.get(),
        slots_lost: done.slots_lost.get(),
        connections: sessions.accepted.get(),
        replication_sessions: sessions.replication.get(),
        sql_sessions: sessions.sql.get(),
        // In this order, so that it is never below zero.
        sql_sessions_open: {
            let ended = sessions.sql_ended.get();
            sessions.sql.get().saturating_sub(ended)
        },
        ended: by_cause(&sessions.ended),
        refused: by_cause(&sessions.refused),
        refused_lately: sessions.refused.within(LATELY, Instant::now()).map(owned).collect(),
        commands_refused: by_cause(&sessions.commands.counts),
        warnings,
        errors,
    }
}

fn by_cause<C: Cause>(counts: &counts::ByCause<C>) -> std::collections::BTreeMap<String, u64> {
    counts.all().map(owned).collect()
}

fn owned((word, count): (&'static str, u64)) -> (String, u64) {
    (word.to_owned(), count)
}

impl From<&counts::Durations> for Durations {
    fn from(durations: &counts::Durations) -> Durations {
        Durations {
            classes: CLASSES.to_vec(),
            counts: durations.classes().to_vec(),
            total_seconds: durations.total().as_secs_f64(),
            late_seconds: durations.of_late().map(|late| late.as_secs_f64()),
        }
    }
}

impl From<crate::events::LoggedEvent> for EventStatus {
    fn from(event: crate::events::LoggedEvent) -> EventStatus {
        EventStatus { at: event.at, level: event.level.to_owned(), message: redact(&event.message) }
    }
}
