//! A standby below the relay: does it stream, from here, on this timeline; why is it behind; and its `restore_command`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use walrelay_proto::{Lsn, SegSize};

use super::ask::{Asking, Trouble};
use super::finding::{Finding, Findings, quoted, remedy, size, time};
use super::restore::Tried;
use crate::conninfo::{ConnInfo, Environment};
use crate::redact::redact;

/// WAL that waits for replay without a word, bytes.
const BEHIND: u64 = 64 << 20;

/// What it is compared with.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    /// The cluster.
    pub(super) system_id: Option<String>,
    /// Of the relay's segments.
    pub(super) seg_size: Option<SegSize>,
    /// The newest timeline that relay or upstream are on.
    pub(super) timeline: Option<u32>,
    /// Ports that the relay listens on.
    pub(super) ports: Vec<u16>,
    /// Names of those who are connected to the relay now; `None` where it was not asked.
    pub(super) consumers: Option<Vec<String>>,
    /// Its slots, and whether each is lost.
    pub(super) slots: Option<BTreeMap<String, bool>>,
}

/// What it says of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) is_standby: bool,
    /// Whether the role may see settings and processes of others.
    pub(super) sees_all: bool,
    pub(super) system_id: Option<String>,
    pub(super) timeline: Option<u32>,
    pub(super) receiver: Option<Receiver>,
    pub(super) replayed: Option<Lsn>,
    pub(super) received: Option<Lsn>,
    /// `not paused`, `pause requested` or `paused`.
    pub(super) pause_state: Option<String>,
    /// What the startup process waits for.
    pub(super) waits_for: Option<String>,
    pub(super) settings: BTreeMap<String, String>,
    /// The address at which it was asked; `None` for a Unix socket.
    pub(super) server_addr: Option<IpAddr>,
    /// The roles that who it streams as belongs to, that one among them.
    pub(super) member_of: Vec<String>,
    /// What became of its `restore_command`, where that was tried.
    pub(super) tried: Option<Tried>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Receiver {
    pub(super) status: String,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
}

const SETTINGS: [&str; 9] = [
    "primary_conninfo",
    "primary_slot_name",
    "restore_command",
    "recovery_min_apply_delay",
    "recovery_target_timeline",
    "max_standby_streaming_delay",
    "hot_standby_feedback",
    "server_version_num",
    "wal_segment_size",
];

/// Asks it.
pub(super) async fn ask(info: &ConnInfo, database: &str) -> Result<Told, Trouble> {
    let mut asking = Asking::connect(&info.for_sql(database)).await?;
    let told = all(&mut asking).await;
    asking.close().await;
    told
}

async fn all(asking: &mut Asking) -> Result<Told, Trouble> {
    let at = asking
        .row(
            "select pg_is_in_recovery(), (select system_identifier from pg_control_system()), \
             (select timeline_id from pg_control_checkpoint()), pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn(), \
             case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() end, \
             (select wait_event from pg_stat_activity where backend_type = 'startup' limit 1), \
             pg_has_role(current_user, 'pg_monitor', 'usage'), host(inet_server_addr())",
        )
        .await?;
    let receiver =
        asking.row("select status, sender_host, sender_port, received_tli from pg_stat_wal_receiver").await?;
    let streams_on: Option<u32> = receiver.number(3);
    let settings = asking.settings(&SETTINGS).await?;
    let member_of = memberships(asking, settings.get("primary_conninfo")).await?;
    Ok(Told {
        is_standby: at.flag(0),
        sees_all: at.flag(7),
        system_id: at.text(1).map(str::to_owned),
        // That of the last restartpoint is older than the one that is streamed.
        timeline: streams_on.max(at.number(2)),
        receiver: receiver.text(0).map(|status| Receiver {
            status: status.to_owned(),
            host: receiver.text(1).map(str::to_owned),
            port: receiver.number(2),
        }),
        replayed: at.lsn(3),
        received: at.lsn(4),
        pause_state: at.text(5).map(str::to_owned),
        waits_for: at.text(6).map(str::to_owned),
        settings,
        server_addr: at.number(8),
        member_of,
        tried: None,
    })
}

/// Of whom it streams as: a standby has the roles of its primary. As hba lines count them, a superuser belongs to nothing by that
/// (PG: `is_member_of_role_nosuper`).
async fn memberships(asking: &mut Asking, conninfo: Option<&String>) -> Result<Vec<String>, Trouble> {
    let info = conninfo.map(|text| ConnInfo::parse(text, &Environment::of_user(super::hba::SERVERS_USER)));
    let Some(Ok(info)) = info else { return Ok(Vec::new()) };
    let question = format!(
        "with recursive m(oid) as (select oid from pg_roles where rolname = {} union \
         select roleid from pg_auth_members a join m on a.member = m.oid) select rolname from pg_roles join m using (oid)",
        quoted(&info.user, '\'')
    );
    let rows = asking.rows(&question).await?;
    Ok(rows.iter().filter_map(|row| row.text(0).map(str::to_owned)).collect())
}

impl Told {
    pub(super) fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map(String::as_str).unwrap_or_default()
    }
}

/// What of that somebody should know.
pub(super) fn diagnose(name: &str, told: &Result<Told, Trouble>, expected: &Expected) -> Vec<Finding> {
    let mut found = Findings::about(format!("consumer {name}"));
    match told {
        Err(trouble) => {
            let look =
                ["the server has to run, and let this role in for SQL; a standby needs hot_standby = on"];
            found.error(
                "consumer_unreachable",
                format!("it cannot be asked: {}", trouble.text),
                remedy(look),
            );
        }
        Ok(told) if !told.is_standby => {
            found.error(
                "consumer_no_standby",
                "it is not in recovery: it is a primary",
                remedy([
                    "leave it out here, or rebuild it as a standby: walrelay's docs/TIMELINES.md, pg_rewind",
                ]),
            );
        }
        Ok(told) => standby(&mut found, told, expected),
    }
    found.into_inner()
}

fn standby(found: &mut Findings, told: &Told, expected: &Expected) {
    if let (Some(theirs), Some(ours)) = (&told.system_id, &expected.system_id)
        && theirs != ours
    {
        let text = format!("it is of another cluster ({theirs}) than the relay's ({ours})");
        return found.error(
            "consumer_other_cluster",
            text,
            remedy(["build it anew: pg_basebackup through the relay"]),
        );
    }
    if !told.sees_all {
        let text = "the role may not see its settings and its walreceiver, so those are not checked";
        return found.warning(
            "consumer_monitor",
            text,
            remedy(["GRANT pg_monitor TO ...;   -- on the primary"]),
        );
    }
    let theirs = told.setting("wal_segment_size").parse().ok().and_then(|size| SegSize::new(size).ok());
    if let (Some(theirs), Some(ours)) = (theirs, expected.seg_size)
        && theirs != ours
    {
        let text = format!(
            "its wal_segment_size is {}, and the relay's segments have {}",
            theirs.to_show(),
            ours.to_show()
        );
        let anew = ["build it anew after pg_resetwal --wal-segsize: pg_basebackup through the relay"];
        found.error("consumer_segment_size", text, remedy(anew));
    }
    timeline(found, told, expected);
    streams(found, told, expected);
    replay(found, told);
    restore(found, told);
}

fn timeline(found: &mut Findings, told: &Told, expected: &Expected) {
    let target = told.setting("recovery_target_timeline");
    if !target.is_empty() && target != "latest" {
        let text = format!("recovery_target_timeline is {target}: it does not follow a promotion");
        found.error(
            "consumer_target_timeline",
            text,
            remedy([
                "ALTER SYSTEM SET recovery_target_timeline = 'latest';   -- takes a restart of the standby",
            ]),
        );
    }
    if let (Some(theirs), Some(newest)) = (told.timeline, expected.timeline)
        && theirs < newest
        && told.receiver.as_ref().is_none_or(|receiver| receiver.status != "streaming")
    {
        let text =
            format!("it is on timeline {theirs}, and the newest is {newest}: it is stuck on the old one");
        let look = [
            "its log tells: 'new timeline ... forked off current database system timeline ... before current recovery point' means that it has WAL of the old primary's which the new one lacks",
            "then: pg_rewind --target-pgdata=... --source-server=...  with the standby stopped; else restart it",
        ];
        found.error("consumer_old_timeline", text, remedy(look));
    }
}

fn streams(found: &mut Findings, told: &Told, expected: &Expected) {
    let conninfo = told.setting("primary_conninfo");
    if conninfo.is_empty() {
        let text = "primary_conninfo is not set: it does not stream";
        let alter = "ALTER SYSTEM SET primary_conninfo = 'host=<the relay> port=<its port> user=<a role with REPLICATION> application_name=<its name>';   -- then SELECT pg_reload_conf();";
        return found.error("consumer_no_conninfo", text, vec![alter.to_owned()]);
    }
    let slot = told.setting("primary_slot_name");
    match expected.slots.as_ref().map(|slots| slots.get(slot)) {
        Some(None) if !slot.is_empty() => {
            let text = format!("its slot \"{slot}\" is not there on the relay, so it cannot stream");
            let make = format!(
                "SELECT pg_create_physical_replication_slot('{slot}', true);   -- through the relay, or: psql \"host=<the relay> replication=1\" -c 'CREATE_REPLICATION_SLOT {slot} PHYSICAL RESERVE_WAL'"
            );
            found.error("consumer_slot_missing", text, vec![make]);
        }
        Some(Some(true)) => {
            let text = format!("its slot \"{slot}\" is lost: WAL that it needs was removed");
            let anew =
                "drop the slot, and rebuild the standby or give it a restore_command that asks the archive";
            found.error("consumer_slot_lost", text, vec![anew.to_owned()]);
        }
        _ if slot.is_empty() => {
            let text = "it streams without a slot: WAL that it has not got may be removed while it is away";
            let set = "SELECT pg_create_physical_replication_slot('<name>', true);   -- through the relay; then ALTER SYSTEM SET primary_slot_name = '<name>'; SELECT pg_reload_conf();";
            found.warning("consumer_no_slot", text, vec![set.to_owned()]);
        }
        _ => {}
    }
    match &told.receiver {
        None => {
            let look = [
                "its log tells what its walreceiver met; try: psql \"<its primary_conninfo> replication=1\" -c IDENTIFY_SYSTEM",
            ];
            found.error(
                "consumer_not_streaming",
                "its walreceiver does not run, or has not connected yet",
                remedy(look),
            );
        }
        Some(receiver) if receiver.status != "streaming" => {
            let text = format!("its walreceiver is {}, not streaming", receiver.status);
            found.warning(
                "consumer_not_streaming",
                text,
                remedy(["ask again; its log tells if it stays so"]),
            );
        }
        Some(receiver) => source(found, receiver, expected),
    }
}

fn source(found: &mut Findings, receiver: &Receiver, expected: &Expected) {
    let host = receiver.host.as_deref().unwrap_or("?");
    let port = receiver.port.unwrap_or_default();
    // Neither tells for sure: ports are translated, and a name may be another's.
    let is_there = expected.consumers.as_ref().is_none_or(|names| !names.is_empty());
    let is_ours = expected.ports.is_empty() || (expected.ports.contains(&port) && is_there);
    if !is_ours {
        let text = format!("it streams from {host} port {port}, which is not this relay");
        return found.warning("consumer_other_source", text, remedy(["point its primary_conninfo at the relay; docs/OPERATIONS.md, moving a standby under the relay"]));
    }
    found.ok("consumer_streaming", format!("it streams from {host} port {port}"));
}

fn replay(found: &mut Findings, told: &Told) {
    if told.pause_state.as_deref().is_some_and(|state| state != "not paused") {
        found.error(
            "consumer_paused",
            "its replay is paused",
            remedy(["SELECT pg_wal_replay_resume();   -- on the standby"]),
        );
    }
    let delay: u64 = told.setting("recovery_min_apply_delay").parse().unwrap_or_default();
    if delay > 0 {
        let text =
            format!("it replays {} late on purpose (recovery_min_apply_delay)", time(delay as f64 / 1000.0));
        found.warning(
            "consumer_delayed",
            text,
            remedy(["leave it out of [ack] apply and of who may be promoted"]),
        );
    }
    let behind = told.received.zip(told.replayed).map_or(0, |(received, replayed)| received.since(replayed));
    let conflict = told.waits_for.as_deref().filter(|event| event.starts_with("RecoveryConflict"));
    if let Some(event) = conflict {
        let text = format!(
            "its replay waits for queries that it is in conflict with ({event}), {} behind",
            size(behind)
        );
        let look = [
            "SELECT pid, query_start, query FROM pg_stat_activity WHERE state <> 'idle' ORDER BY query_start;   -- on the standby",
            "ALTER SYSTEM SET hot_standby_feedback = on;   -- or a shorter max_standby_streaming_delay",
        ];
        found.warning("consumer_conflict", text, remedy(look));
    } else if behind > BEHIND && delay == 0 {
        let text = format!("{} of WAL wait for its replay", size(behind));
        found.warning(
            "consumer_slow_replay",
            text,
            remedy(["look at the startup process and its disk; recovery_prefetch, shared_buffers"]),
        );
    }
}

fn restore(found: &mut Findings, told: &Told) {
    let command = told.setting("restore_command");
    // PG: replace_percent_placeholders, since 16
    let is_strict = told.setting("server_version_num").parse::<u32>().is_ok_and(|version| version >= 160_000);
    if let Some(unknown) = super::restore::unknown_placeholder(command).filter(|_| is_strict) {
        let text = format!(
            "its restore_command has {unknown}, which PostgreSQL does not know: the standby ends when it runs it: {}",
            redact(command)
        );
        let known = "%f, %p and %r are replaced; a percent sign is written %%";
        return found.error("restore_kills", text, remedy([known]));
    }
    match &told.tried {
        None if command.is_empty() => found.ok(
            "restore_command",
            "it has no restore_command: where WAL is gone from the relay, the relay gets it from its archive",
        ),
        None => found.ok(
            "restore_command",
            format!("its restore_command is not tried (--try-restore does): {}", redact(command)),
        ),
        Some(tried) => tried.tell(found, command),
    }
}
