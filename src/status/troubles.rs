//! What somebody should look at: found in a [`Status`], so that whoever has one finds the same.
//!
//! Each kind has a line that says what to do, a number (`walrelay_trouble`), a row of `SHOW TROUBLES`, and an alert rule;
//! [`Reminders`](super::Reminders) tells the log of those that nobody else tells it of again.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::value::{
    AckStatus, ArchiveStatus, CertificateEnd, ConsumerStatus, DiskStatus, FailoverStatus, RefusedStatus,
    SlotStatus, Status,
};
use crate::moment::Moment;

/// WAL that is received and not durable for so long: no disk that is well takes that.
const UNFLUSHED: f64 = 5.0;
/// What a sync may take on average, seconds.
const SLOW_SYNC: f64 = 0.1;
/// An hour is enough to look, and too short to buy a disk.
const FULL_SOON: f64 = 4.0 * 3600.0;
/// What of a disk is to be free.
const FREE: f64 = 0.1;
/// How long a slot that keeps WAL may be without anybody who uses it.
const UNUSED: f64 = 3600.0;
/// What of `--max-slot-wal-keep-size`, or of a quota, may be taken before that is near.
const NEAR: f64 = 0.8;
/// A certificate that ends within this is to be renewed, seconds.
const ENDS_SOON: f64 = 14.0 * 86_400.0;
/// How far behind a consumer may be, seconds.
const BEHIND: f64 = 300.0;
/// How long WAL may wait for those whom `[ack]` names, seconds.
const HELD: f64 = 30.0;
/// How often somebody may be refused one thing: who asks for the third time goes on asking.
const REFUSED: u64 = 2;
/// How many clients may not be let in for one reason within ten minutes.
const LOGINS: u64 = 10;
/// What is counted of them: what somebody can do something about.
const LOGIN_CAUSES: [&str; 4] = ["authentication", "rules", "too_many", "rights"];
/// How many rounds through the archives may come to nothing within a quarter of an hour.
const RECALLS: u64 = 3;
/// For how long a target may lack WAL that waits for it, seconds.
const ARCHIVE_BEHIND: f64 = 900.0;
/// What it may lack for longer than that, where no file waits: a segment that is open for long.
const ARCHIVE_RISK: u64 = 256 << 20;
/// What who syncs whole segments may have written and not flushed.
const UNFLUSHED_SEGMENT: u64 = 32 << 20;

/// What kind of trouble it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TroubleKind {
    /// The relay can serve nobody.
    NotReady,
    /// It is fenced.
    Fenced,
    /// No WAL comes.
    UpstreamAway,
    /// It comes, and there is more than that.
    UpstreamBehind,
    /// A sync does not return.
    NotFlushing,
    /// Syncs take long.
    SlowSyncs,
    /// Somebody whom `[ack]` names keeps back what is reported upstream.
    AckHeldBack,
    /// A rule of `[ack]` has lapsed.
    AckDegraded,
    /// It may lapse no more.
    AckBudgetSpent,
    /// The disk cannot be looked at.
    DiskSilent,
    /// The disk is full before somebody has had time to do something.
    DiskFullSoon,
    /// Little of the disk is free.
    DiskNearlyFull,
    /// Segments are missing between the oldest and the newest WAL that is held.
    WalMissing,
    /// A promotion has left WAL behind that was acknowledged.
    WalLeftBehind,
    /// WAL that a slot needs is gone.
    SlotLost,
    /// Little can come until it is.
    SlotNearLimit,
    /// Nobody uses a slot that keeps WAL.
    SlotUnused,
    /// A consumer lacks WAL that has been here for long.
    ConsumerBehind,
    /// Somebody is refused what it asks for, again and again.
    CommandsRefused,
    /// Many clients are not let in.
    LoginsFailing,
    /// WAL that a consumer wants does not come back from the archive.
    RecallFailing,
    /// Somebody has paused a target.
    ArchivePaused,
    /// A target takes nothing.
    ArchiveFailing,
    /// A target takes less than comes.
    ArchiveBehind,
    /// What waits for a target is near its quota, or beyond.
    ArchiveQuota,
    /// A target will never get some WAL.
    ArchiveGap,
    /// Somebody else's files lay in a target.
    ArchiveConflict,
    /// A certificate ends soon, or has.
    CertificateEnds,
    /// Settings in the file are not in effect.
    PendingRestart,
}

impl TroubleKind {
    /// All there are.
    pub const ALL: &'static [TroubleKind] = &[
        TroubleKind::NotReady,
        TroubleKind::Fenced,
        TroubleKind::UpstreamAway,
        TroubleKind::UpstreamBehind,
        TroubleKind::NotFlushing,
        TroubleKind::SlowSyncs,
        TroubleKind::AckHeldBack,
        TroubleKind::AckDegraded,
        TroubleKind::AckBudgetSpent,
        TroubleKind::DiskSilent,
        TroubleKind::DiskFullSoon,
        TroubleKind::DiskNearlyFull,
        TroubleKind::WalMissing,
        TroubleKind::WalLeftBehind,
        TroubleKind::SlotLost,
        TroubleKind::SlotNearLimit,
        TroubleKind::SlotUnused,
        TroubleKind::ConsumerBehind,
        TroubleKind::CommandsRefused,
        TroubleKind::LoginsFailing,
        TroubleKind::RecallFailing,
        TroubleKind::ArchivePaused,
        TroubleKind::ArchiveFailing,
        TroubleKind::ArchiveBehind,
        TroubleKind::ArchiveQuota,
        TroubleKind::ArchiveGap,
        TroubleKind::ArchiveConflict,
        TroubleKind::CertificateEnds,
        TroubleKind::PendingRestart,
    ];

    /// What it is called in labels, rows and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            TroubleKind::NotReady => "not_ready",
            TroubleKind::Fenced => "fenced",
            TroubleKind::UpstreamAway => "upstream_away",
            TroubleKind::UpstreamBehind => "upstream_behind",
            TroubleKind::NotFlushing => "not_flushing",
            TroubleKind::SlowSyncs => "slow_syncs",
            TroubleKind::AckHeldBack => "ack_held_back",
            TroubleKind::AckDegraded => "ack_degraded",
            TroubleKind::AckBudgetSpent => "ack_budget_spent",
            TroubleKind::DiskSilent => "disk_silent",
            TroubleKind::DiskFullSoon => "disk_full_soon",
            TroubleKind::DiskNearlyFull => "disk_nearly_full",
            TroubleKind::WalMissing => "wal_missing",
            TroubleKind::WalLeftBehind => "wal_left_behind",
            TroubleKind::SlotLost => "slot_lost",
            TroubleKind::SlotNearLimit => "slot_near_limit",
            TroubleKind::SlotUnused => "slot_unused",
            TroubleKind::ConsumerBehind => "consumer_behind",
            TroubleKind::CommandsRefused => "commands_refused",
            TroubleKind::LoginsFailing => "logins_failing",
            TroubleKind::RecallFailing => "recall_failing",
            TroubleKind::ArchivePaused => "archive_paused",
            TroubleKind::ArchiveFailing => "archive_failing",
            TroubleKind::ArchiveBehind => "archive_behind",
            TroubleKind::ArchiveQuota => "archive_quota",
            TroubleKind::ArchiveGap => "archive_gap",
            TroubleKind::ArchiveConflict => "archive_conflict",
            TroubleKind::CertificateEnds => "certificate_ends",
            TroubleKind::PendingRestart => "pending_restart",
        }
    }

    /// The alert rule that tells of it.
    pub fn alert(self) -> &'static str {
        match self {
            TroubleKind::NotReady => "WalrelayNotReady",
            TroubleKind::Fenced => "WalrelayFenced",
            TroubleKind::UpstreamAway => "WalrelayUpstreamAway",
            TroubleKind::UpstreamBehind => "WalrelayUpstreamBehind",
            TroubleKind::NotFlushing => "WalrelayNotFlushing",
            TroubleKind::SlowSyncs => "WalrelaySlowSyncs",
            TroubleKind::AckHeldBack => "WalrelayAckHeldBack",
            TroubleKind::AckDegraded => "WalrelayAckDegraded",
            TroubleKind::AckBudgetSpent => "WalrelayAckBudgetSpent",
            TroubleKind::DiskSilent => "WalrelayDiskSilent",
            TroubleKind::DiskFullSoon => "WalrelayDiskFullSoon",
            TroubleKind::DiskNearlyFull => "WalrelayDiskNearlyFull",
            TroubleKind::WalMissing => "WalrelayWalMissing",
            TroubleKind::WalLeftBehind => "WalrelayWalLeftBehind",
            TroubleKind::SlotLost => "WalrelaySlotLost",
            TroubleKind::SlotNearLimit => "WalrelaySlotNearLimit",
            TroubleKind::SlotUnused => "WalrelaySlotUnused",
            TroubleKind::ConsumerBehind => "WalrelayConsumerBehind",
            TroubleKind::CommandsRefused => "WalrelayCommandsRefused",
            TroubleKind::LoginsFailing => "WalrelayLoginsFailing",
            TroubleKind::RecallFailing => "WalrelayRecallFailing",
            TroubleKind::ArchivePaused => "WalrelayArchivePaused",
            TroubleKind::ArchiveFailing => "WalrelayArchiveFailing",
            TroubleKind::ArchiveBehind => "WalrelayArchiveBehind",
            TroubleKind::ArchiveQuota => "WalrelayArchiveQuota",
            TroubleKind::ArchiveGap => "WalrelayArchiveGap",
            TroubleKind::ArchiveConflict => "WalrelayArchiveConflict",
            TroubleKind::CertificateEnds => "WalrelayCertificateEnds",
            TroubleKind::PendingRestart => "WalrelayPendingRestart",
        }
    }

    /// How long it lasts before the log is told; `None` where whoever meets it reminds the log itself.
    pub(super) fn told_after(self) -> Option<Duration> {
        let seconds = match self {
            // Each attempt to connect is told, and each file that a target does not take, with how far it is behind.
            TroubleKind::NotReady | TroubleKind::UpstreamAway => return None,
            TroubleKind::ArchivePaused | TroubleKind::ArchiveFailing => return None,
            // Commits hang: once it is sure that it was no moment of much to do.
            TroubleKind::NotFlushing | TroubleKind::AckHeldBack => 5,
            // An error was told, with what is left of the budget.
            TroubleKind::AckDegraded | TroubleKind::AckBudgetSpent => 60,
            // These come with a line of their own, and must not be forgotten.
            TroubleKind::Fenced
            | TroubleKind::SlotLost
            | TroubleKind::WalMissing
            | TroubleKind::WalLeftBehind
            | TroubleKind::ArchiveGap
            | TroubleKind::ArchiveConflict
            | TroubleKind::PendingRestart => 3600,
            // What passes within a moment is no news.
            _ => 30,
        };
        Some(Duration::from_secs(seconds))
    }

    /// What is said when it is over.
    pub(super) fn over(self) -> &'static str {
        match self {
            TroubleKind::NotReady => "consumers can be served",
            TroubleKind::Fenced => "no fence is in force any more",
            TroubleKind::UpstreamAway => "WAL comes again",
            TroubleKind::UpstreamBehind => "the relay has the upstream's WAL again",
            TroubleKind::NotFlushing => "received WAL is durable again",
            TroubleKind::SlowSyncs => "syncs are quick again",
            TroubleKind::AckHeldBack => "nobody named in [ack] keeps back any more:",
            TroubleKind::AckDegraded => "its rule in [ack] holds again:",
            TroubleKind::AckBudgetSpent => "there is budget for degraded acknowledgements again",
            TroubleKind::DiskSilent => "the data directory's disk answers again",
            TroubleKind::DiskFullSoon => "the disk does not fill up soon any more",
            TroubleKind::DiskNearlyFull => "there is room on the disk again",
            TroubleKind::WalMissing => "no WAL segment is missing any more",
            TroubleKind::WalLeftBehind => "the WAL that was left behind was looked at:",
            TroubleKind::SlotLost => "it is lost no more, or dropped: slot",
            TroubleKind::SlotNearLimit => "it is far from its limit again, lost, or dropped: slot",
            TroubleKind::SlotUnused => "it is used, keeps nothing, or is dropped: slot",
            TroubleKind::ConsumerBehind => "it has caught up, or is gone: consumer",
            TroubleKind::CommandsRefused => "it is refused nothing any more, or asks no more:",
            TroubleKind::LoginsFailing => "few clients are not let in any more for this reason:",
            TroubleKind::RecallFailing => "WAL comes back from the archive, or is not asked for any more",
            TroubleKind::ArchivePaused => "it goes on: archive target",
            TroubleKind::ArchiveFailing => "it takes WAL again: archive target",
            TroubleKind::ArchiveBehind => "it has caught up: archive target",
            TroubleKind::ArchiveQuota => "it is far from its quota again: archive target",
            TroubleKind::ArchiveGap => "its gaps were looked at: archive target",
            TroubleKind::ArchiveConflict => "its conflicts were looked at: archive target",
            TroubleKind::CertificateEnds => "what is in this file is good for long again:",
            TroubleKind::PendingRestart => "all settings of the file are in effect",
        }
    }
}

/// Something that somebody should look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// What kind.
    pub kind: TroubleKind,
    /// The slot, consumer, target it is about; empty where that is the relay.
    pub about: String,
    /// What is wrong, and what to do, on one line.
    pub message: String,
}

/// The same for whoever is shown it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TroubleStatus {
    /// What kind.
    pub kind: String,
    /// The slot, consumer, target it is about; empty where that is the relay.
    pub about: String,
    /// Since when, as far as it was seen; absent if it is new.
    pub since: Option<Moment>,
    /// What is wrong, and what to do.
    pub message: String,
    /// The alert rule that tells of it.
    pub alert: String,
}

/// So many of a kind are shown one by one where there is little room.
pub(super) const FEW: usize = 10;

/// A line each; of a kind that there are many of the first ones, and how many more.
pub fn in_brief(troubles: &[Trouble]) -> Vec<String> {
    let mut counts = BTreeMap::<TroubleKind, usize>::new();
    let mut lines = Vec::new();
    for Trouble { kind, message, .. } in troubles {
        let count = counts.entry(*kind).or_default();
        *count += 1;
        if *count <= FEW {
            lines.push(message.clone());
        }
    }
    let more = counts.into_iter().filter(|(_, count)| *count > FEW);
    lines.extend(more.map(|(kind, count)| {
        format!("{} more of the kind {} (SHOW TROUBLES has all)", count - FEW, kind.as_str())
    }));
    lines
}

impl Trouble {
    fn new(kind: TroubleKind, about: impl Into<String>, message: impl Into<String>) -> Trouble {
        Trouble { kind, about: about.into(), message: message.into() }
    }

    /// For whoever is shown it.
    pub(super) fn shown(self, since: Option<Moment>) -> TroubleStatus {
        let Trouble { kind, about, message } = self;
        let (kind, alert) = (kind.as_str().to_owned(), kind.alert().to_owned());
        TroubleStatus { kind, about, since, message, alert }
    }
}

impl Status {
    /// What somebody should look at now, a line each; nothing when all is well.
    pub fn troubles(&self) -> Vec<String> {
        self.find_troubles().into_iter().map(|trouble| trouble.message).collect()
    }

    /// The same with its kind, worst first.
    pub fn find_troubles(&self) -> Vec<Trouble> {
        let mut found: Vec<Trouble> = Vec::new();
        found.extend(self.unready().map(|why| Trouble::new(TroubleKind::NotReady, "", why)));
        let fence = self.fence.as_ref().filter(|fence| fence.is_in_force());
        found.extend(fence.map(|fence| {
            let text = format!("the relay is fenced: only a newer timeline is followed ({})", fence.line());
            Trouble::new(TroubleKind::Fenced, "", text)
        }));
        found.extend(self.upstream_away().or_else(|| self.upstream_behind()));
        found.extend(self.not_flushing());
        self.ack.iter().for_each(|level| level.find_troubles(&mut found));
        found.extend(self.budget_spent());
        self.disk.find_troubles(&mut found);
        found.extend(self.failovers.iter().filter_map(FailoverStatus::left_behind));
        self.slots.iter().for_each(|slot| slot.find_troubles(self, &mut found));
        found.extend(self.consumers.iter().filter_map(ConsumerStatus::behind));
        found.extend(self.refused_commands.iter().filter_map(RefusedStatus::again_and_again));
        found.extend(LOGIN_CAUSES.iter().filter_map(|cause| self.logins_failing(cause)));
        found.extend(self.recall_failing());
        self.archive.iter().for_each(|target| target.find_troubles(&mut found));
        found.extend(self.certificates.iter().filter_map(|end| self.certificate_ends(end)));
        found.extend(self.pending_restart());
        found
    }

    /// How many there are of each kind.
    pub fn count_troubles(&self) -> Vec<(TroubleKind, u64)> {
        let found = self.find_troubles();
        let count = |kind: &TroubleKind| found.iter().filter(|trouble| trouble.kind == *kind).count() as u64;
        TroubleKind::ALL.iter().map(|kind| (*kind, count(kind))).collect()
    }

    fn upstream_away(&self) -> Option<Trouble> {
        let upstream = &self.upstream;
        if upstream.state == "streaming" || self.relay.stopping {
            return None;
        }
        let since = upstream.failing_since.map(|since| format!(" since {since}")).unwrap_or_default();
        let error = upstream.last_error.as_ref().filter(|_| upstream.failing_since.is_some());
        let error = error.map(|error| format!(": {error}")).unwrap_or_default();
        let text = format!("no WAL comes from the upstream{since} ({}){error}", upstream.state);
        Some(Trouble::new(TroubleKind::UpstreamAway, "", text))
    }

    fn upstream_behind(&self) -> Option<Trouble> {
        let (seconds, bytes) = (self.upstream.lag_seconds, self.upstream.unreceived_bytes.unwrap_or(0));
        let is_so = self.upstream.state == "streaming" && seconds > BEHIND;
        is_so.then(|| {
            let text = format!(
                "the relay lacks WAL that the upstream may have had for {:.0} min, {bytes} bytes as far as it has told: the line is too slow, \
                 or cut (SHOW UPSTREAM has when it was heard of last), or the relay's disk is",
                seconds / 60.0
            );
            Trouble::new(TroubleKind::UpstreamBehind, "", text)
        })
    }

    fn not_flushing(&self) -> Option<Trouble> {
        let upstream = &self.upstream;
        if upstream.unflushed_seconds < UNFLUSHED || upstream.unflushed_bytes == 0 {
            return None;
        }
        let (bytes, seconds) = (upstream.unflushed_bytes, upstream.unflushed_seconds);
        let text = format!(
            "{bytes} bytes of received WAL are not durable, the oldest for {seconds:.0} s: a sync of the data directory does not \
             return, and commits that wait for this relay hang; look at its disk (dmesg, iostat -x 1), and take the relay out of the \
             upstream's synchronous_standby_names until it is well"
        );
        Some(Trouble::new(TroubleKind::NotFlushing, "", text))
    }

    fn budget_spent(&self) -> Option<Trouble> {
        let level = self.ack.first().filter(|level| level.budget_left_seconds == Some(0.0))?;
        let text = format!(
            "the budget for degraded acknowledgements is spent: commits wait for those who are named in [ack], whether they answer or \
             not; it is full again in {:.0} s; bring them back, or change [ack] (then SIGHUP)",
            level.budget_full_in_seconds.unwrap_or_default()
        );
        Some(Trouble::new(TroubleKind::AckBudgetSpent, "", text))
    }

    fn logins_failing(&self, cause: &str) -> Option<Trouble> {
        let count = self.counts.refused_lately.get(cause).filter(|count| **count > LOGINS)?;
        let why = match cause {
            "authentication" => "a wrong password or certificate",
            "rules" => "no line in the hba file, or one that rejects",
            "rights" => "roles that may not do what they want, as without REPLICATION",
            _ => "all places are taken, or an address has failed too often",
        };
        let text = format!(
            "{count} clients were not let in within ten minutes ({cause}: {why}): the log has each with its address and role; find out who \
             they are, and correct what they log in with, the hba file (then SIGHUP) or the limits, or shut them out"
        );
        Some(Trouble::new(TroubleKind::LoginsFailing, cause, text))
    }

    fn recall_failing(&self) -> Option<Trouble> {
        let count = Some(self.recalls.failures_lately).filter(|count| *count > RECALLS)?;
        let error = self.recalls.last_error.as_deref().unwrap_or("unknown");
        let text = format!(
            "a consumer wants WAL that does not come back from the archive, {count} times within a quarter of an hour: {error}; an archive \
             that is down is asked again until it answers, else the consumer has to be set up anew (SHOW RECALLS)"
        );
        Some(Trouble::new(TroubleKind::RecallFailing, "", text))
    }

    fn certificate_ends(&self, end: &CertificateEnd) -> Option<Trouble> {
        let CertificateEnd { file, path, ends_at } = end;
        let (what, then) = match file.as_str() {
            "cert" => ("certificate in --ssl-cert-file", "clients that verify it are not served"),
            "ca" => {
                ("certificate in --ssl-ca-file", "clients whose certificates it has signed are not let in")
            }
            "crl" => ("revocation list in --ssl-crl-file", "no client with a certificate is let in"),
            "upstream_cert" => {
                ("certificate in sslcert of --upstream", "the upstream lets the relay in no more")
            }
            _ => ("certificate in a target's ca-file", "the target is not trusted any more"),
        };
        let left = ends_at.as_seconds() - self.at.as_seconds();
        let when = match left {
            left if left > ENDS_SOON => return None,
            left if left > 0.0 => format!("ends in {:.0} days, on {ends_at}: then", left / 86_400.0),
            _ => format!("has ended on {ends_at}:"),
        };
        let text = format!("the {what} (\"{path}\") {when} {then}; renew it, and RELOAD (SIGHUP) the relay");
        Some(Trouble::new(TroubleKind::CertificateEnds, file, text))
    }

    fn pending_restart(&self) -> Option<Trouble> {
        let pending = self.settings.iter().filter(|setting| setting.pending_restart);
        let names: Vec<&str> = pending.map(|setting| setting.name.as_str()).collect();
        let text = format!(
            "settings were changed in the file and take a restart: {} (RESTART in the database walrelay, which refuses no client)",
            names.join(", ")
        );
        (!names.is_empty()).then(|| Trouble::new(TroubleKind::PendingRestart, "", text))
    }

    fn age(&self, since: Moment) -> f64 {
        self.at.since(since).as_secs_f64()
    }
}

impl AckStatus {
    fn find_troubles(&self, found: &mut Vec<Trouble>) {
        let AckStatus { level, rule, synchronous_commit, .. } = self;
        let waits_for = self.waits_for.join(", ");
        if let Some(seconds) = self.degraded_seconds {
            let to = self.degraded_to.as_deref().unwrap_or_default();
            let left = self.budget_left_seconds.map(|left| format!(", {left:.0} s of the budget are left"));
            let text = format!(
                "{level} = {rule} has not been fulfilled for {seconds:.0} s, {level} = {to} holds instead{}: bring back {waits_for}",
                left.unwrap_or_default()
            );
            found.push(Trouble::new(TroubleKind::AckDegraded, level, text));
        } else if let Some(seconds) = self.waiting_seconds.filter(|seconds| *seconds > HELD) {
            let commits = match self.is_awaited {
                true => format!(", and commits with synchronous_commit = {synchronous_commit} wait"),
                // What it is waited for by was asked when it connected.
                false => ", and commits wait if synchronous_standby_names names this relay by now".to_owned(),
            };
            let text = format!(
                "{level} = {rule}: {} bytes of WAL are not reported to the upstream, the oldest has waited for {waits_for} for \
                 {seconds:.0} s{commits}: bring back who is missing (SHOW CONSUMERS), or change [ack] (then SIGHUP)",
                self.held_bytes
            );
            found.push(Trouble::new(TroubleKind::AckHeldBack, level, text));
        }
    }
}

impl DiskStatus {
    fn find_troubles(&self, found: &mut Vec<Trouble>) {
        if let Some(error) = &self.error {
            let text = format!("the data directory's disk does not answer: {error}");
            found.push(Trouble::new(TroubleKind::DiskSilent, "", text));
        }
        if let Some(mean) = self.sync_seconds.filter(|mean| *mean > SLOW_SYNC) {
            let text = format!(
                "a sync of the data directory takes {:.0} ms on average, and each synchronous commit waits for one: look what else loads \
                 its disk (iostat -x 1), or move it to a faster one",
                mean * 1000.0
            );
            found.push(Trouble::new(TroubleKind::SlowSyncs, "", text));
        }
        if let Some(soon) = self.full_in_seconds.filter(|seconds| *seconds < FULL_SOON) {
            let text = format!("the disk is full in {:.0} min{}", soon / 60.0, self.most_is_kept_for());
            found.push(Trouble::new(TroubleKind::DiskFullSoon, "", text));
        }
        let free = self.free_bytes as f64 / self.size_bytes as f64;
        if self.size_bytes > 0 && free < FREE {
            let text = format!(
                "{:.1} % of the data directory's disk are free: when it is full no more WAL is taken, and the upstream keeps it{}",
                free * 100.0,
                self.most_is_kept_for()
            );
            found.push(Trouble::new(TroubleKind::DiskNearlyFull, "", text));
        }
        if let Some(first) = &self.first_missing {
            let text = format!(
                "{} WAL segments are missing in the data directory, the first is {first}, although they were received once: consumers \
                 and slots that need them wait or are refused; they are fetched again where an upstream or archive has them, else see \
                 walrelay verify --repair-from",
                self.missing_segments
            );
            found.push(Trouble::new(TroubleKind::WalMissing, "", text));
        }
    }

    fn most_is_kept_for(&self) -> String {
        let holder = self.holders.iter().max_by_key(|holder| holder.held_bytes);
        holder.map(|holder| format!("; most is kept for {} {}", holder.kind, holder.name)).unwrap_or_default()
    }
}

impl FailoverStatus {
    fn left_behind(&self) -> Option<Trouble> {
        let FailoverStatus { from_timeline: from, to_timeline: to, acknowledged_lsn, .. } = self;
        let commits =
            self.commits_left.map_or("an unknown number of".to_owned(), |commits| commits.to_string());
        let was = if self.verdict == "left" { "was" } else { "may have been" };
        let text = format!(
            "the promotion of timeline {from} to {to} left WAL behind that {was} acknowledged, up to {acknowledged_lsn}: {commits} commits; \
             see walrelay failovers and walrelay branch, then DISMISS FAILOVERS in the database walrelay"
        );
        self.is_open.then(|| Trouble::new(TroubleKind::WalLeftBehind, format!("{from} to {to}"), text))
    }
}

impl SlotStatus {
    fn find_troubles(&self, status: &Status, found: &mut Vec<Trouble>) {
        let SlotStatus { name, held_bytes, .. } = self;
        if self.wal_status.as_deref() == Some("lost") {
            let text =
                format!("slot \"{name}\" is lost: its consumer has to be set up anew, and the slot dropped");
            found.push(Trouble::new(TroubleKind::SlotLost, name, text));
            return;
        }
        let left = self.safe_wal_size.map(|left| left.max(0) as f64);
        if let Some(left) = left.filter(|left| *left < (1.0 - NEAR) * (left + *held_bytes as f64)) {
            let text = format!(
                "slot \"{name}\" is lost after another {left} bytes of WAL: make its consumer catch up, or raise \
                 --max-slot-wal-keep-size if the disk has room"
            );
            found.push(Trouble::new(TroubleKind::SlotNearLimit, name, text));
        }
        let unused = self.inactive_since.map(|since| status.age(since)).filter(|age| *age > UNUSED);
        if let Some(age) = unused.filter(|_| *held_bytes > 0) {
            let text = format!(
                "nobody has used slot \"{name}\" for {:.0} h, and it keeps {held_bytes} bytes of WAL: start its consumer, or drop it \
                 (DROP SLOT in the database walrelay)",
                age / 3600.0
            );
            found.push(Trouble::new(TroubleKind::SlotUnused, name, text));
        }
    }
}

impl ConsumerStatus {
    /// `pg_receivewal` and Barman sync a segment when it is whole, however long that takes: what counts of them is what they have
    /// written.
    pub fn syncs_segments(&self) -> bool {
        self.replay.is_none() && self.flush.is_none_or(|flush| flush.lag_bytes < UNFLUSHED_SEGMENT)
    }

    fn behind(&self) -> Option<Trouble> {
        let written = self.write.or(self.sent);
        let counts = if self.syncs_segments() { written } else { self.safe() };
        let lag = counts.filter(|it| it.lag_seconds > BEHIND)?;
        let name = &self.application_name;
        let text = format!(
            "consumer \"{name}\" lacks {} bytes of WAL, the oldest for {:.0} min: SHOW CONSUMERS says whether it was sent (then its disk is \
             slow, or it has stopped reading), walrelay doctor --consumer why",
            lag.lag_bytes,
            lag.lag_seconds / 60.0
        );
        Some(Trouble::new(TroubleKind::ConsumerBehind, name, text))
    }
}

impl RefusedStatus {
    fn again_and_again(&self) -> Option<Trouble> {
        let RefusedStatus { application_name: name, message, times, since, .. } = self;
        let remedy = match self.cause.as_str() {
            "wal_removed" => {
                "WAL that it needs is gone: let it have a restore_command, or set it up anew, with a slot; or raise --wal-keep-size"
            }
            "timeline" => {
                "it is on another branch than the relay: bring it back with pg_rewind, or set it up anew"
            }
            "slot_lost" => "set it up anew, and drop the slot",
            "slot_in_use" => {
                "give each consumer a slot of its own, or end the other one (DISCONNECT in the database walrelay)"
            }
            "slot_missing" => "create the slot on the relay, or correct its primary_slot_name",
            _ => "the log has its commands with --log-replication-commands",
        };
        let from = self.client_addr.as_ref().map(|address| format!(" from {address}")).unwrap_or_default();
        let text = format!(
            "\"{name}\"{from} is refused what it asks for again and again, {times} times since {since}: {message}; {remedy}"
        );
        (*times > REFUSED).then(|| Trouble::new(TroubleKind::CommandsRefused, name, text))
    }
}

impl ArchiveStatus {
    fn behind(&self) -> Option<Trouble> {
        let seconds = self.at_risk_seconds.filter(|seconds| *seconds > ARCHIVE_BEHIND)?;
        let bytes = self.at_risk_bytes.unwrap_or(0);
        let name = &self.name;
        let text = format!(
            "archive target \"{name}\" lacks {bytes} bytes of WAL, the oldest for {:.0} min, and {} files wait for it: it takes less than \
             comes; raise its concurrency, lower its compression, or give it a faster line",
            seconds / 60.0,
            self.pending_files
        );
        // One file may just have become whole.
        let is_so = self.pending_files > 1 || bytes > ARCHIVE_RISK;
        is_so.then(|| Trouble::new(TroubleKind::ArchiveBehind, name, text))
    }

    fn find_troubles(&self, found: &mut Vec<Trouble>) {
        let name = &self.name;
        let error = self.last_error.as_deref().unwrap_or("unknown");
        if let Some(since) = self.paused_since {
            let text = format!("archive target \"{name}\" is paused since {since}; RESUME lets it go on");
            found.push(Trouble::new(TroubleKind::ArchivePaused, name, text));
        } else if let Some(since) = self.stalled_since {
            let text = format!(
                "archive target \"{name}\" has neither taken nor refused a file since {since}: look at the network and the file system \
                 that it is on"
            );
            found.push(Trouble::new(TroubleKind::ArchiveFailing, name, text));
        } else if let Some(since) = self.failing_since {
            let text = format!("archive target \"{name}\" takes nothing since {since}: {error}");
            found.push(Trouble::new(TroubleKind::ArchiveFailing, name, text));
        } else {
            found.extend(self.behind());
        }
        let (pending, near) = (self.pending_bytes.unwrap_or(0), |quota: u64| quota as f64 * NEAR);
        if let Some(quota) = self.quota_bytes.filter(|quota| pending as f64 > near(*quota)) {
            let text = format!(
                "{pending} bytes of WAL wait for archive target \"{name}\", its quota is {quota}: bring it back, or raise the quota (then \
                 SIGHUP); beyond it on-quota decides whether WAL that it has not got is let go"
            );
            found.push(Trouble::new(TroubleKind::ArchiveQuota, name, text));
        }
        if self.open_gaps > 0 {
            let text = format!(
                "archive target \"{name}\" will never get some WAL, in {} places (the log has them): what is older cannot be recovered from \
                 there to a time behind them; take a new base backup, then DISMISS GAPS in the database walrelay",
                self.open_gaps
            );
            found.push(Trouble::new(TroubleKind::ArchiveGap, name, text));
        }
        if self.open_conflicts > 0 {
            let text = format!(
                "{} files of other content lay in archive target \"{name}\" under the names of ours, which lie beside them: find out whose \
                 they are (the log has the names) before anybody recovers from there, then DISMISS CONFLICTS in the database walrelay",
                self.open_conflicts
            );
            found.push(Trouble::new(TroubleKind::ArchiveConflict, name, text));
        }
    }
}
