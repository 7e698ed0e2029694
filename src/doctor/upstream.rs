//! The server that the relay receives from: can the relay log in, does it get WAL, what will go wrong there.

use std::collections::BTreeMap;
use std::time::SystemTime;

use walrelay_proto::ack::SynchronousStandbys;
use walrelay_proto::{Lsn, SegSize, TimelineHistory, TimelineId};

use super::ask::{Asking, Hurdle, Trouble};
use super::certificates::{self, Dates};
use super::finding::{Finding, Findings, quoted, remedy, size, time};
use crate::conninfo::ConnInfo;

/// What doctor is called there.
const DOCTOR: &str = "walrelay-doctor";
const EACH_ITS_OWN: &str = "each relay needs its own --slot and application_name";
/// Clocks that differ by more than this make lags and times in logs hard to believe, seconds.
const SKEW: f64 = 2.0;
/// WAL that a slot which nobody uses may keep without a word, bytes.
const UNUSED: u64 = 1 << 30;
/// A slot with less than this until it is lost is in danger, bytes.
const SAFE: i64 = 1 << 30;

/// What the relay needs of it, and what is known of the relay.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) user: String,
    pub(super) slot: String,
    pub(super) application_name: String,
    /// Whether the relay is streaming from it now; `None` where that is not known.
    pub(super) streams: Option<bool>,
    /// Whose WAL the relay holds.
    pub(super) system_id: Option<String>,
    /// Of the segments that it holds.
    pub(super) seg_size: Option<SegSize>,
    /// It has run, so WAL that it has not got may be gone.
    pub(super) has_run: bool,
    /// The timeline that it followed when it ran last, and the end of what it holds of it, as far as is known; `None` while it
    /// runs, for then it tells itself.
    pub(super) held: Option<(TimelineId, Option<Lsn>)>,
    /// Whether somebody below the relay tells what it has applied.
    pub(super) somebody_applies: bool,
    /// Whether the relay is fenced, so that it confirms nothing there, on purpose.
    pub(super) is_fenced: bool,
}

/// What was found out.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) identity: Result<Identity, Trouble>,
    pub(super) sql: Result<Told, Trouble>,
}

/// What a walsender says.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    pub(super) system_id: String,
    pub(super) timeline: u32,
    /// How it came to that timeline; `None` where it does not tell.
    pub(super) history: Option<TimelineHistory>,
    /// Whether it is a relay: what it says in SQL of settings is the primary's, of slots and senders its own.
    pub(super) is_relay: bool,
    /// The certificates that it has shown.
    pub(super) certificates: Vec<Dates>,
}

/// What a session says.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) version: u32,
    /// A standby: nobody waits for anything there, and its slots may be copies.
    pub(super) in_recovery: bool,
    pub(super) may_replicate: bool,
    /// Whether the role sees everybody in `pg_stat_replication`.
    pub(super) sees_all: bool,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) slots: Vec<Slot>,
    pub(super) senders: Vec<Sender>,
    /// By how much its clock is ahead of ours, seconds.
    pub(super) skew: Option<f64>,
    /// The WAL that its own archiver failed with last, if it has archived none since.
    pub(super) archiver_fails: Option<String>,
    /// A backup that waits for WAL to be archived there.
    pub(super) waiting_backup: Option<u32>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) active_pid: Option<u32>,
    pub(super) wal_status: Option<String>,
    /// WAL that it keeps, bytes.
    pub(super) keeps: Option<u64>,
    pub(super) safe_wal_size: Option<i64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Sender {
    pub(super) pid: Option<u32>,
    pub(super) name: String,
    pub(super) address: Option<String>,
}

const SETTINGS: [&str; 11] = [
    "wal_level",
    "max_wal_senders",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "synchronous_standby_names",
    "synchronous_commit",
    "wal_sender_timeout",
    "wal_segment_size",
    "archive_mode",
    "archive_command",
    "archive_library",
];

/// Asks it, as for replication and for SQL in that database.
pub(super) async fn ask(info: &ConnInfo, database: &str) -> Facts {
    // Not to be taken for the relay by whoever looks there, this one included.
    let info = &ConnInfo { application_name: DOCTOR.to_owned(), ..info.clone() };
    let (identity, sql) = tokio::join!(identify(info), tell(info.for_sql(database)));
    Facts { identity, sql }
}

async fn identify(info: &ConnInfo) -> Result<Identity, Trouble> {
    let mut asking = Asking::connect(info).await?;
    let row = asking.row("IDENTIFY_SYSTEM").await;
    // A server knows no such command.
    let is_relay = row.is_ok() && asking.row("FENCE_STATUS").await.is_ok();
    let timeline: u32 = row.as_ref().ok().and_then(|row| row.number(1)).unwrap_or_default();
    let history = match TimelineId::new(timeline) {
        Some(tli) if tli == TimelineId::FIRST => Some(TimelineHistory::first()),
        Some(tli) => asking
            .row(&format!("TIMELINE_HISTORY {tli}"))
            .await
            .ok()
            .and_then(|row| TimelineHistory::parse(tli, row.text(1)?.as_bytes()).ok()),
        None => None,
    };
    let certificates = asking.certificates();
    asking.close().await;
    let row = row?;
    let system_id = row.text(0).unwrap_or_default().to_owned();
    Ok(Identity { system_id, timeline, history, is_relay, certificates })
}

async fn tell(info: ConnInfo) -> Result<Told, Trouble> {
    let mut asking = Asking::connect(&info).await?;
    let told = all(&mut asking).await;
    asking.close().await;
    told
}

async fn all(asking: &mut Asking) -> Result<Told, Trouble> {
    let before = SystemTime::now();
    let now = asking.row("select extract(epoch from clock_timestamp())").await?;
    let after = SystemTime::now();
    let role = asking
        .row(
            "select current_setting('server_version_num'), rolreplication or rolsuper, \
             rolsuper or pg_has_role(current_user, 'pg_monitor', 'usage'), pg_is_in_recovery() \
             from pg_roles where rolname = current_user",
        )
        .await?;
    let slots = asking
        .rows(
            "select slot_name, slot_type, active_pid, wal_status, safe_wal_size, \
             pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_lsn() end, \
             restart_lsn)::bigint from pg_replication_slots order by slot_name",
        )
        .await?;
    let senders = asking
        .rows("select pid, application_name, client_addr from pg_stat_replication order by pid")
        .await?;
    let archiver = asking
        .row(
            "select last_failed_wal from pg_stat_archiver \
             where last_failed_time > coalesce(last_archived_time, '-infinity'::timestamptz)",
        )
        .await?;
    let backup =
        asking.row("select min(pid) from pg_stat_activity where wait_event = 'BackupWaitWalArchive'").await?;
    let slot = |row: &super::ask::Row| Slot {
        name: row.text(0).unwrap_or_default().to_owned(),
        kind: row.text(1).unwrap_or_default().to_owned(),
        active_pid: row.number(2),
        wal_status: row.text(3).map(str::to_owned),
        safe_wal_size: row.number(4),
        keeps: row.number::<i64>(5).map(|bytes| bytes.max(0).unsigned_abs()),
    };
    let sender = |row: &super::ask::Row| Sender {
        pid: row.number(0),
        name: row.text(1).unwrap_or_default().to_owned(),
        address: row.text(2).map(str::to_owned),
    };
    Ok(Told {
        version: role.number(0).unwrap_or_default(),
        may_replicate: role.flag(1),
        sees_all: role.flag(2),
        in_recovery: role.flag(3),
        settings: asking.settings(&SETTINGS).await?,
        slots: slots.iter().map(slot).collect(),
        senders: senders.iter().map(sender).filter(|sender| sender.name != DOCTOR).collect(),
        skew: now.number::<f64>(0).map(|theirs| skew(theirs, before, after)),
        archiver_fails: archiver.text(0).map(str::to_owned),
        waiting_backup: backup.number(0),
    })
}

/// What their clock is ahead of ours, when the answer came between these.
fn skew(theirs: f64, before: SystemTime, after: SystemTime) -> f64 {
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    };
    let (before, after) = (seconds(before), seconds(after));
    if theirs < before { theirs - before } else { (theirs - after).max(0.0) }
}

/// What of that somebody should know.
pub(super) fn diagnose(facts: &Facts, wanted: &Wanted) -> Vec<Finding> {
    let mut found = Findings::about("upstream");
    match &facts.identity {
        Ok(identity) => login(&mut found, identity, wanted),
        Err(trouble) if trouble.is("53300") => full(&mut found, trouble, has_place(facts, wanted), wanted),
        Err(trouble) => refused(&mut found, trouble, wanted),
    }
    match &facts.sql {
        Ok(told) => {
            let is_relay = facts.identity.as_ref().is_ok_and(|identity| identity.is_relay);
            if !is_relay {
                limits(&mut found, told, wanted);
                if facts.identity.is_ok() {
                    places(&mut found, told);
                }
            }
            own_slot(&mut found, told, wanted);
            names(&mut found, told, wanted);
            if !is_relay && !told.in_recovery {
                other_slots(&mut found, told, wanted);
                waiting(&mut found, told, wanted);
            }
            archiver(&mut found, told);
            clock(&mut found, told);
        }
        Err(trouble) if facts.identity.is_ok() && trouble.is_login => found.warning(
            "upstream_sql",
            format!(
                "role \"{}\" cannot log in for SQL, so settings, slots and names there are not checked: {}",
                wanted.user, trouble.text
            ),
            vec![match (trouble.hurdle, trouble.is("53300")) {
                (Hurdle::LimitOfRole, _) => no_limit(wanted),
                (_, true) => "all connections there are in use: max_connections, and who has them: SELECT * FROM pg_stat_activity".to_owned(),
                _ => hba_line(wanted, "all"),
            }],
        ),
        Err(trouble) if facts.identity.is_ok() => found.warning(
            "upstream_sql",
            format!("settings, slots and names there are not checked: {}", trouble.text),
            remedy([
                "ask again; if it stays so, try as the relay's role: psql \"<the --upstream string> dbname=postgres\" -c 'SELECT 1', and look into the server's log",
            ]),
        ),
        Err(_) => {}
    }
    found.into_inner()
}

fn login(found: &mut Findings, identity: &Identity, wanted: &Wanted) {
    match &wanted.system_id {
        Some(held) if *held != identity.system_id => found.error(
            "upstream_other_cluster",
            format!(
                "it is another cluster ({}) than the one whose WAL the relay holds ({held})",
                identity.system_id
            ),
            remedy([
                "point --upstream at the cluster's servers, or give this cluster a --data-dir of its own",
            ]),
        ),
        _ => {
            found.ok(
                "upstream_login",
                format!(
                    "role \"{}\" can replicate from it (cluster {}, timeline {})",
                    wanted.user, identity.system_id, identity.timeline
                ),
            );
            ancestry(found, identity, wanted);
            certificates::shown(found, &identity.certificates, certificates::now());
        }
    }
}

/// What a relay that does not run will make of its timeline: docs/TIMELINES.md, Histories.
fn ancestry(found: &mut Findings, identity: &Identity, wanted: &Wanted) {
    let (Some((ours, end)), Some(history)) = (wanted.held, &identity.history) else { return };
    let theirs = history.tli();
    if theirs < ours {
        let text = format!(
            "it is on timeline {theirs}, and the relay has followed timeline {ours}: it is an old primary, or a standby that has not followed, and is refused"
        );
        let look = [
            "point --upstream at the server that was promoted (all of them: host=a,b); rebuild the old one with pg_rewind",
        ];
        return found.error("upstream_older_timeline", text, remedy(look));
    }
    let kept = "walrelay branch list shows what is left aside then; docs/TIMELINES.md, Histories";
    match history.switch_point(ours) {
        Some((left_at, next)) if end.is_some_and(|end| end > left_at) => {
            let text = format!(
                "it has left timeline {ours} at {left_at} for timeline {next}, and the relay holds WAL up to {}: what is beyond that the new primary never had",
                end.unwrap_or_default()
            );
            found.warning("upstream_other_branch", text, remedy([kept]));
        }
        None if ours != theirs => {
            let text = format!(
                "it is on timeline {theirs}, which did not come from timeline {ours} that the relay has followed: the relay goes back to the last one that both know, or refuses"
            );
            found.warning("upstream_other_branch", text, remedy(["is it the right server?", kept]));
        }
        _ => {}
    }
}

/// Whether the relay is among those who have a connection there.
fn has_place(facts: &Facts, wanted: &Wanted) -> bool {
    let is_there = |told: &Told| told.senders.iter().any(|sender| sender.name == wanted.application_name);
    wanted.streams == Some(true) || (wanted.streams.is_none() && facts.sql.as_ref().is_ok_and(is_there))
}

/// There is no place for one more, which is bad for a relay that has none, and will be for one that has.
fn full(found: &mut Findings, trouble: &Trouble, has_place: bool, wanted: &Wanted) {
    let (code, alter) = match trouble.hurdle == Hurdle::LimitOfRole {
        true => ("upstream_role_limit", no_limit(wanted)),
        false => ("upstream_max_wal_senders", more_senders(20)),
    };
    match has_place {
        true => {
            let text = format!(
                "the relay has its connection, and there is no place for another: a reconnect may find none: {}",
                trouble.text
            );
            found.warning(code, text, vec![alter]);
        }
        false => {
            let text = format!("the relay cannot replicate from it: {}", trouble.text);
            found.error(code, text, vec![alter]);
        }
    }
}

fn no_limit(wanted: &Wanted) -> String {
    format!("ALTER ROLE {} CONNECTION LIMIT -1;   -- or a larger one", quoted(&wanted.user, '"'))
}

fn more_senders(number: i64) -> String {
    format!("ALTER SYSTEM SET max_wal_senders = {number};   -- takes a restart of the server")
}

fn hba_line(wanted: &Wanted, database: &str) -> String {
    format!(
        "in pg_hba.conf there: host  {database}  {}  <the relay's address>/32  scram-sha-256   (then SELECT pg_reload_conf();)",
        wanted.user
    )
}

/// By SQLSTATE: words are translated.
fn refused(found: &mut Findings, trouble: &Trouble, wanted: &Wanted) {
    let role = quoted(&wanted.user, '"');
    let (code, remedy) = if trouble.is("28000") && trouble.text.contains("pg_hba.conf") {
        ("upstream_hba", vec![hba_line(wanted, "replication")])
    } else if trouble.is("28000") || trouble.is("42501") {
        let create = format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD '...';   -- if there is none");
        (
            "upstream_role",
            vec![create, format!("ALTER ROLE {role} LOGIN REPLICATION;"), hba_line(wanted, "replication")],
        )
    } else if trouble.is("28P01") || trouble.hurdle == Hurdle::Password {
        (
            "upstream_password",
            remedy([
                "give the password in --upstream, in PGPASSWORD or in the password file of the relay's user",
            ]),
        )
    } else if trouble.hurdle == Hurdle::Tls {
        let look = [
            "what does it show? openssl s_client -starttls postgres -connect <host>:<port>",
            "compare with sslmode, sslrootcert, sslcert and sslkey of --upstream, and the dates of the certificates",
        ];
        ("upstream_tls", remedy(look))
    } else if trouble.sqlstate.is_some() || !trouble.is_login {
        let look = [
            "look into the server's log for what it says at that moment",
            "try: psql \"<the --upstream string> replication=1\" -c IDENTIFY_SYSTEM",
        ];
        ("upstream_refuses", remedy(look))
    } else {
        let look = [
            "is the server up, does it listen there (listen_addresses, port), does a firewall let the relay through?",
            "try: psql \"<the --upstream string> replication=1\" -c IDENTIFY_SYSTEM",
        ];
        ("upstream_unreachable", remedy(look))
    };
    found.error(code, format!("the relay cannot replicate from it: {}", trouble.text), remedy);
}

fn number(told: &Told, setting: &str) -> Option<i64> {
    told.settings.get(setting)?.parse().ok()
}

/// The server's own archiving, which it keeps WAL for, and backups wait for.
fn archiver(found: &mut Findings, told: &Told) {
    let is = |name: &str, value: &str| told.settings.get(name).is_none_or(|it| it == value);
    let mode = told.settings.get("archive_mode").map_or("off", String::as_str);
    if mode == "off" || (told.in_recovery && mode != "always") {
        return;
    }
    let why = match &told.archiver_fails {
        Some(wal) => format!("its archive_command fails, with {wal} last"),
        None if is("archive_command", "") && is("archive_library", "") => {
            "archive_mode is on, and there is no archive_command".to_owned()
        }
        None => return,
    };
    let mend = "SELECT * FROM pg_stat_archiver; its log has what the command says: mend it, and what waits goes on by itself";
    let leave = "if the relay's archive is enough: ALTER SYSTEM SET archive_command = '/bin/true'; SELECT pg_reload_conf();   -- and archive_mode = off at its next restart";
    let look = remedy([mend, leave]);
    match told.waiting_backup {
        Some(pid) => {
            let text =
                format!("a backup there (PID {pid}) waits for its WAL to be archived, and hangs: {why}");
            found.error("upstream_backup_waits", text, look);
        }
        None => {
            let text = format!(
                "{why}: WAL piles up there, and a backup that waits for WAL hangs (pg_basebackup -X none, barman backup)"
            );
            found.warning("upstream_archiver", text, look);
        }
    }
}

fn limits(found: &mut Findings, told: &Told, wanted: &Wanted) {
    let theirs = told.settings.get("wal_segment_size").and_then(|size| SegSize::new(size.parse().ok()?).ok());
    if let (Some(ours), Some(theirs)) = (wanted.seg_size, theirs)
        && ours != theirs
    {
        let text = format!(
            "its wal_segment_size is {}, and the relay holds segments of {}",
            theirs.to_show(),
            ours.to_show()
        );
        let anew = [
            "after pg_resetwal --wal-segsize the relay begins anew, with an empty --data-dir, and so do consumers",
        ];
        found.error("upstream_segment_size", text, remedy(anew));
    }
    if told.version < 140_000 {
        let text =
            format!("its version is {}; walrelay knows PostgreSQL 14 and later", told.version / 10_000);
        found.error("upstream_version", text, remedy(["upgrade the server"]));
    }
    if !told.may_replicate {
        let alter = format!("ALTER ROLE {} REPLICATION;", quoted(&wanted.user, '"'));
        found.error("upstream_role", format!("role \"{}\" may not replicate", wanted.user), vec![alter]);
    }
    if told.settings.get("wal_level").is_some_and(|level| level == "minimal") {
        let alter = ["ALTER SYSTEM SET wal_level = replica;   -- takes a restart of the server"];
        found.error("upstream_wal_level", "wal_level is minimal: no WAL is sent to anybody", remedy(alter));
    }
    if let Some(most) = number(told, "max_replication_slots") {
        let has_ours = told.slots.iter().any(|slot| slot.name == wanted.slot);
        if told.slots.len() as i64 >= most && !has_ours {
            let alter = format!(
                "ALTER SYSTEM SET max_replication_slots = {};   -- takes a restart of the server",
                most + 10
            );
            let text =
                format!("all {most} of max_replication_slots are in use, and the relay's is not among them");
            found.error("upstream_max_replication_slots", text, vec![alter]);
        }
    }
}

/// Doctor was let in; others have taken what was left meanwhile.
fn places(found: &mut Findings, told: &Told) {
    let Some(most) = number(told, "max_wal_senders") else { return };
    if told.senders.len() as i64 >= most {
        let text =
            format!("all {most} of max_wal_senders are in use: a connection of the relay may find none");
        found.warning("upstream_max_wal_senders", text, vec![more_senders(most + 10)]);
    }
}

fn drop_slot(name: &str) -> String {
    format!("SELECT pg_drop_replication_slot({});", quoted(name, '\''))
}

fn own_slot(found: &mut Findings, told: &Told, wanted: &Wanted) {
    let name = &wanted.slot;
    let Some(slot) = told.slots.iter().find(|slot| slot.name == *name) else {
        if wanted.has_run && wanted.streams == Some(false) {
            let text = format!(
                "slot \"{name}\" is gone, and the relay does not run: nothing there keeps WAL for it"
            );
            let make = format!(
                "SELECT pg_create_physical_replication_slot({}, true);   -- keeps what is still there; or start the relay soon, which makes it",
                quoted(name, '\'')
            );
            return found.warning("upstream_slot_missing", text, vec![make]);
        }
        let text = format!("slot \"{name}\" is not there yet; the relay makes it");
        return found.ok("upstream_slot", text);
    };
    if slot.kind != "physical" {
        let text = format!("slot \"{name}\" is a logical one");
        return found.error("upstream_slot_kind", text, remedy(["give the relay another --slot"]));
    }
    if slot.wal_status.as_deref() == Some("lost") {
        let text = format!(
            "slot \"{name}\" is lost: WAL that the relay has not got was removed (max_slot_wal_keep_size)"
        );
        let next = "the relay makes it anew; what is missing it fetches from its archive or another server of --upstream: look at SHOW UPSTREAM";
        return found.error("upstream_slot_lost", text, vec![drop_slot(name), next.to_owned()]);
    }
    let user = slot.active_pid.map(|pid| (pid, told.senders.iter().find(|sender| sender.pid == Some(pid))));
    match user {
        Some((pid, Some(sender))) if sender.name != wanted.application_name => {
            let from =
                sender.address.as_deref().map(|address| format!(" from {address}")).unwrap_or_default();
            let text = format!(
                "slot \"{name}\" is used by PID {pid}, \"{}\"{from}, and not by this relay",
                sender.name
            );
            found.error("upstream_slot_taken", text, remedy([EACH_ITS_OWN]));
        }
        Some((pid, _)) if wanted.streams == Some(false) => {
            let text = format!("slot \"{name}\" is used by PID {pid}, and this relay does not run");
            let look =
                "if that is a connection of this relay's that is gone, wal_sender_timeout ends it; else:";
            found.error("upstream_slot_taken", text, remedy([look, EACH_ITS_OWN]));
        }
        Some(_) => found.ok("upstream_slot", format!("slot \"{name}\" is in use by the relay")),
        None => found.ok("upstream_slot", format!("slot \"{name}\" is there, and nobody uses it now")),
    }
    let limit = number(told, "max_slot_wal_keep_size").filter(|limit| *limit >= 0);
    if let (Some(limit), Some(safe)) = (limit, slot.safe_wal_size.filter(|safe| *safe < SAFE)) {
        let text = format!(
            "slot \"{name}\" is lost after {} more of WAL that the relay has not got (max_slot_wal_keep_size is {limit} MB)",
            size(safe.max(0).unsigned_abs())
        );
        found.warning(
            "upstream_slot_at_risk",
            text,
            remedy([
                "ALTER SYSTEM SET max_slot_wal_keep_size = '...';   -- larger, then SELECT pg_reload_conf();",
            ]),
        );
    }
}

fn other_slots(found: &mut Findings, told: &Told, wanted: &Wanted) {
    for slot in told.slots.iter().filter(|slot| slot.name != wanted.slot && slot.active_pid.is_none()) {
        let keeps = slot.keeps.unwrap_or_default();
        if keeps > UNUSED {
            let text =
                format!("slot \"{}\" keeps {} of WAL there, and nobody uses it", slot.name, size(keeps));
            found.warning("upstream_slot_orphaned", text, vec![drop_slot(&slot.name)]);
        }
    }
}

/// Others who are waited for by name.
fn other_names(found: &mut Findings, told: &Told, wanted: &Wanted, standbys: &SynchronousStandbys) {
    let count = |name: &str| told.senders.iter().filter(|it| it.name.eq_ignore_ascii_case(name)).count();
    let is_ours = |name: &str| name.eq_ignore_ascii_case(&wanted.application_name);
    for name in standbys.names.iter().filter(|name| !is_ours(name) && count(name) > 1) {
        let text = format!(
            "{} connections there are called \"{name}\", which synchronous_standby_names waits for: nobody knows which has confirmed",
            count(name)
        );
        let own = ["give each a name of its own: application_name in its primary_conninfo, or cluster_name"];
        found.error("upstream_name_twice", text, remedy(own));
    }
    let missing: Vec<_> = standbys.names.iter().filter(|name| count(name) == 0).map(String::as_str).collect();
    if !missing.is_empty() {
        let text = format!(
            "synchronous_standby_names names who is not connected: {}; commits go on with {} of the others",
            missing.join(", "),
            standbys.count
        );
        let look = format!(
            "bring them back, or correct the names; this relay is called \"{}\" there (application_name of --upstream)",
            wanted.application_name
        );
        found.warning("upstream_standby_missing", text, vec![look]);
    }
}

fn names(found: &mut Findings, told: &Told, wanted: &Wanted) {
    let ours = told.senders.iter().filter(|sender| sender.name == wanted.application_name);
    let addresses: Vec<_> = ours.map(|sender| sender.address.as_deref().unwrap_or("[local]")).collect();
    if addresses.len() > 1 {
        let text = format!(
            "{} connections there are called \"{}\" ({}): with two relays of one name nobody knows which has confirmed",
            addresses.len(),
            wanted.application_name,
            addresses.join(", ")
        );
        found.error(
            "upstream_name_twice",
            text,
            remedy(["give each relay an application_name of its own in --upstream"]),
        );
    }
}

/// Whether commits there wait for somebody who is not there, or for what nobody tells.
fn waiting(found: &mut Findings, told: &Told, wanted: &Wanted) {
    let setting = told.settings.get("synchronous_standby_names").map(String::as_str).unwrap_or_default();
    let Ok(standbys) = setting.parse::<SynchronousStandbys>() else { return };
    if !told.sees_all {
        let grant = format!("GRANT pg_monitor TO {};", quoted(&wanted.user, '"'));
        let text = format!(
            "role \"{}\" may not see who confirms commits, so synchronous_standby_names is not checked",
            wanted.user
        );
        return found.warning("upstream_monitor", text, vec![grant]);
    }
    let is_there = |name: &&String| told.senders.iter().any(|sender| sender.name.eq_ignore_ascii_case(name));
    let present = standbys.names.iter().filter(is_there).count();
    let any = if standbys.is_any { told.senders.len() } else { present };
    if any < standbys.count && wanted.is_fenced {
        let text =
            "commits there wait: the relay is fenced, and confirms nothing; that is what a fence is for";
        let next = "promote a standby; or, if there is to be no promotion: walrelay unfence --relay '...'";
        return found.warning("upstream_nobody_confirms", text, vec![next.to_owned()]);
    }
    if any < standbys.count {
        let missing: Vec<_> =
            standbys.names.iter().filter(|name| !is_there(name)).map(String::as_str).collect();
        let text = format!(
            "commits there wait for ever: synchronous_standby_names wants {} of its standbys, and {any} are connected (missing: {})",
            standbys.count,
            missing.join(", ")
        );
        let name = format!(
            "bring them back; this relay is called \"{}\" there (application_name of --upstream)",
            wanted.application_name
        );
        let release = "only if commits may be lost with this server, and no promotion is under way: ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf();";
        return found.error("upstream_nobody_confirms", text, vec![name, release.to_owned()]);
    }
    other_names(found, told, wanted, &standbys);
    let names_us = standbys.names.iter().any(|name| name.eq_ignore_ascii_case(&wanted.application_name));
    let is_apply = told.settings.get("synchronous_commit").is_some_and(|level| level == "remote_apply");
    if is_apply && names_us && !wanted.somebody_applies {
        let text = "commits wait until the relay has applied them (synchronous_commit = remote_apply), and nobody below it tells that it has";
        let how = "connect a hot standby below the relay, set [ack] apply, or ALTER SYSTEM SET synchronous_commit = on;";
        found.error("upstream_remote_apply", text, vec![how.to_owned()]);
    }
}

fn clock(found: &mut Findings, told: &Told) {
    let Some(skew) = told.skew.filter(|skew| skew.abs() > SKEW) else { return };
    let how = if skew > 0.0 { "ahead of" } else { "behind" };
    let text = format!("its clock is {} {how} this machine's", time(skew.abs()));
    found.warning(
        "clock_skew",
        text,
        remedy(["run chrony or systemd-timesyncd on both: timedatectl set-ntp true"]),
    );
}
