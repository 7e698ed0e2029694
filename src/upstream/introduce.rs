//! What is asked of a server before it is followed: who it is, what it is set to, what our slot there holds.

use std::time::Duration;

use walrelay_proto::ack::{may_wait_for, names_of};
use walrelay_proto::course::{Identified, Reserved, Slot};
use walrelay_proto::{Lsn, SegSize, SlotName, TimelineId};

use super::failure::{UpstreamError, explain};
use super::made;
use crate::conninfo::{ConnInfo, HostSpec};
use crate::pg::{QueryError, QueryResult, UpstreamConnection, connect};
use crate::store::{Identity, Store, TimelinePosition, UpstreamParameters};

const IDENTIFY: &str = "IDENTIFY_SYSTEM";
const SEG_SIZE: &str = "SHOW wal_segment_size";

/// Whom commits wait for.
pub(super) const NAMES: &str = "synchronous_standby_names";
/// A relay's: whom its own rules name, which its upstream waits for by that. What it shows as [`NAMES`] is the primary's.
pub(super) const NAMES_OF_A_RELAY: &str = "walrelay.synchronous_standby_names";

/// How long a server that stops waits for its walsenders' clients; -1 for as long as it takes.
pub(super) const SHUTDOWN_TIMEOUT: &str = "wal_sender_shutdown_timeout";

/// What is asked of the server with SHOW, for consumers that ask us, and the first major version that has it.
const SETTINGS: [(&str, u32); 18] = [
    ("server_version_num", 0),
    ("wal_level", 0),
    ("block_size", 0),
    ("wal_block_size", 0),
    ("segment_size", 0),
    ("data_checksums", 0),
    ("data_directory_mode", 0),
    ("max_connections", 0),
    ("hot_standby", 0),
    ("wal_log_hints", 0),
    // What backup tools ask in SQL before they start a receiver.
    ("archive_timeout", 0),
    ("checkpoint_timeout", 0),
    (NAMES, 0),
    ("archive_mode", 0),
    ("wal_compression", 0),
    ("summarize_wal", 17),
    (SHUTDOWN_TIMEOUT, 19),
    // What strangers at the door are to look like.
    ("password_encryption", 0),
];

/// Who a server says that it is. Kept once it has turned out to be one that we follow.
pub(super) struct Introduced {
    pub(super) identity: Identity,
    pub(super) parameters: UpstreamParameters,
    pub(super) slot: Slot,
}

impl Introduced {
    /// The server is followed: whether it waits for us, and what our slot says that it was told. It is on timeline `its`: if
    /// that is not yet ours, what is left for it is judged first, by whoever waited there. Waits for the disk.
    pub(super) fn tell_acknowledgements(
        &self,
        store: &Store,
        own_name: &str,
        host: &HostSpec,
        its: TimelineId,
    ) {
        let acknowledgements = store.consumers().acknowledgements();
        if its != store.history().tli() {
            return;
        }
        let is_first = acknowledgements.follow(&waits_for(&self.parameters), own_name);
        // Later on this process knows what it has told.
        if !is_first {
            return;
        }
        let Slot::There { reserved: Some(Reserved { lsn, tli: Some(tli) }) } = self.slot else { return };
        // Somebody else may have made it, further on than we have ever reported.
        let was_ours = |found: &TimelinePosition| found.tli == tli && lsn <= found.lsn;
        if tli == its
            && store.found().as_ref().is_some_and(was_ours)
            && made::is_a_report(store, &host.to_string(), lsn)
        {
            acknowledgements.told_before(lsn);
        }
    }
}

/// Whom a server waits for: `synchronous_standby_names`.
pub(super) fn waits_for(parameters: &UpstreamParameters) -> String {
    let setting = |name: &str| parameters.settings.get(name).cloned();
    Awaited { names: setting(NAMES).unwrap_or_default(), own: setting(NAMES_OF_A_RELAY) }.all()
}

/// Whom a server waits for: its [`NAMES`], and of a relay whom its own rules name.
pub(super) struct Awaited {
    pub(super) names: String,
    pub(super) own: Option<String>,
}

impl Awaited {
    pub(super) async fn ask(conn: &mut UpstreamConnection) -> Result<Awaited, UpstreamError> {
        let names = show(conn, NAMES).await?;
        let own = match conn.is_a_relays() {
            // One of before does not know of that.
            true => show(conn, NAMES_OF_A_RELAY).await.ok(),
            false => None,
        };
        Ok(Awaited { names, own })
    }

    /// Both in one: what matters is who is among them.
    pub(super) fn all(&self) -> String {
        let names = &self.names;
        // Everybody is among them already.
        let own = self.own.as_ref().filter(|own| !own.is_empty() && !may_wait_for(names, "*"));
        let Some(own) = own else { return names.clone() };
        let quoted = |name: String| format!("\"{}\"", name.replace('"', "\"\""));
        let theirs = names_of(names).into_iter().map(quoted);
        theirs.chain([own.clone()]).collect::<Vec<_>>().join(", ")
    }
}

/// Asks for a setting.
pub(super) async fn show(conn: &mut UpstreamConnection, name: &str) -> Result<String, UpstreamError> {
    let command = format!("SHOW {name}");
    let failed = |source| UpstreamError::Command { command: command.clone(), source };
    let row = row(&command, conn.query(&command).await.map_err(failed)?)?;
    Ok(row.into_iter().next().flatten().unwrap_or_default())
}

/// Limit for connecting to ask in SQL.
const SQL_LIMIT: Duration = Duration::from_secs(15);
/// The largest answer that makes sense to what is asked here, bytes.
const MOST: usize = 64 << 10;

/// The server has answered something that makes no sense.
pub(super) fn answer(command: &str, problem: impl Into<String>) -> UpstreamError {
    UpstreamError::Answer { command: command.to_owned(), problem: problem.into() }
}

/// The values of the one row that a command answers with, as text.
fn row(command: &str, result: QueryResult) -> Result<Vec<Option<String>>, UpstreamError> {
    let row = result.rows.into_iter().next().ok_or_else(|| answer(command, "no row"))?;
    let text = |value: bytes::Bytes| String::from_utf8_lossy(&value).into_owned();
    Ok(row.into_iter().map(|value| value.map(text)).collect())
}

/// Asks where the server stands.
pub(super) async fn identify(conn: &mut UpstreamConnection) -> Result<Identified, UpstreamError> {
    let failed = |source| UpstreamError::Command { command: IDENTIFY.to_owned(), source };
    parse_identity(conn.query(IDENTIFY).await.map_err(failed)?)
}

fn parse_identity(result: QueryResult) -> Result<Identified, UpstreamError> {
    let row = row(IDENTIFY, result)?;
    let field = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
    let parsed = (|| {
        Some(Identified {
            system_id: field(0).parse().ok()?,
            tli: TimelineId::new(field(1).parse().ok()?)?,
            xlogpos: field(2).parse().ok()?,
        })
    })();
    parsed.ok_or_else(|| answer(IDENTIFY, format!("{row:?}")))
}

/// Learns who the upstream is, and makes sure that the data directory is this cluster's. All is asked at once: one
/// round trip.
pub(super) async fn introduce(
    conn: &mut UpstreamConnection,
    store: &Store,
    slot: &SlotName,
) -> Result<(Identified, Introduced), UpstreamError> {
    let version = major_version(conn);
    let known = SETTINGS.into_iter().filter(|(_, first)| version >= *first);
    let names: Vec<&str> = known.map(|(name, _)| name).collect();
    let mut commands = vec![IDENTIFY.to_owned(), SEG_SIZE.to_owned()];
    if version >= 15 {
        commands.push(format!("READ_REPLICATION_SLOT \"{slot}\""));
    }
    let facts = commands.len();
    commands.extend(names.iter().map(|name| format!("SHOW {name}")));
    let is_a_relay = conn.is_a_relays();
    commands.extend(is_a_relay.then(|| format!("SHOW {NAMES_OF_A_RELAY}")));
    let failed = |source| UpstreamError::Command { command: IDENTIFY.to_owned(), source };
    let mut answers = conn.query_each(&commands, MOST).await.map_err(failed)?;
    let mut settings = answers.split_off(facts);
    let own_names = is_a_relay.then(|| settings.pop()).flatten().and_then(Result::ok);
    let mut answers = commands.iter().zip(answers).map(|(command, answer)| {
        let failed =
            |error| UpstreamError::Command { command: command.clone(), source: QueryError::Server(error) };
        answer.map_err(failed)
    });
    let mut next = || answers.next().expect("one answer for each command");
    let identified = parse_identity(next()?)?;
    let seg_size = parse_seg_size(next()?)?;
    let slot = if version >= 15 { parse_slot(next()?)? } else { Slot::Unknown };
    let identity = Identity { system_id: identified.system_id, seg_size };
    store.check(identity)?;
    let mut parameters =
        UpstreamParameters { status: conn.parameters().to_vec(), ..UpstreamParameters::default() };
    for (name, answer) in names.into_iter().zip(settings) {
        // Not every server has all of them or shows them to us.
        let Ok(result) = answer else { continue };
        let value = row(name, result)?.into_iter().next().flatten().unwrap_or_default();
        parameters.settings.insert(name.to_owned(), value);
    }
    if let Some(own) = own_names {
        let own = row(NAMES_OF_A_RELAY, own)?.into_iter().next().flatten().unwrap_or_default();
        parameters.settings.insert(NAMES_OF_A_RELAY.to_owned(), own);
    }
    Ok((identified, Introduced { identity, parameters, slot }))
}

fn parse_seg_size(result: QueryResult) -> Result<SegSize, UpstreamError> {
    let shown = row(SEG_SIZE, result)?.into_iter().next().flatten().unwrap_or_default();
    SegSize::from_show(&shown).map_err(|error| answer(SEG_SIZE, error.to_string()))
}

/// 0 if the server does not say.
pub(super) fn major_version(conn: &UpstreamConnection) -> u32 {
    let version = conn.parameter("server_version").unwrap_or_default();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// Asks for our slot.
pub(super) async fn read_slot(conn: &mut UpstreamConnection, slot: &SlotName) -> Result<Slot, UpstreamError> {
    if major_version(conn) < 15 {
        return Ok(Slot::Unknown);
    }
    let command = format!("READ_REPLICATION_SLOT \"{slot}\"");
    let failed = |source| UpstreamError::Command { command: command.clone(), source };
    parse_slot(conn.query(&command).await.map_err(failed)?)
}

/// Where our slot's WAL begins, from a server that can be asked in SQL only, in the database `dbname`, which the relay's role
/// must be let into: `None` if there is no slot, `Some(None)` if it keeps nothing.
pub(super) async fn slot_in_sql(
    info: &ConnInfo,
    dbname: &str,
    host: &HostSpec,
    slot: &SlotName,
) -> Result<Option<Option<Lsn>>, UpstreamError> {
    let deadline = tokio::time::Instant::now() + SQL_LIMIT;
    let connected = connect(&info.for_sql(dbname), host, deadline).await;
    let mut conn = connected.map_err(|error| explain(host, error))?;
    let command =
        format!("SELECT restart_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = '{slot}'");
    let result = conn.query(&command).await;
    conn.close().await;
    let result = result.map_err(|source| UpstreamError::Command { command: command.clone(), source })?;
    if result.rows.is_empty() {
        return Ok(None);
    }
    let Some(restart) = row(&command, result)?.into_iter().next().flatten() else { return Ok(Some(None)) };
    restart.parse().map(|lsn| Some(Some(lsn))).map_err(|_| answer(&command, restart.clone()))
}

fn parse_slot(result: QueryResult) -> Result<Slot, UpstreamError> {
    let row = row("READ_REPLICATION_SLOT", result)?;
    let field = |at: usize| row.get(at).and_then(Option::as_deref);
    if field(0).is_none() {
        return Ok(Slot::Missing);
    }
    let lsn = field(1).and_then(|lsn| lsn.parse().ok());
    let tli = field(2).and_then(|tli| tli.parse().ok()).and_then(TimelineId::new);
    let reserved = lsn.zip(tli).map(|(lsn, tli)| Reserved { lsn, tli: Some(tli) });
    Ok(Slot::There { reserved })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_named_by_a_relay_or_by_its_upstream_is_awaited() {
        let check = |names: &str, own: Option<&str>, awaited: &[&str], not: &[&str]| {
            let both = Awaited { names: names.to_owned(), own: own.map(str::to_owned) }.all();
            assert!(awaited.iter().all(|name| may_wait_for(&both, name)), "{both}");
            assert!(!not.iter().any(|name| may_wait_for(&both, name)), "{both}");
        };
        check("ANY 1 (r1)", None, &["r1"], &["r2"]);
        check("ANY 1 (r1)", Some(""), &["r1"], &["r2"]);
        check("", Some("\"r2\""), &["r2"], &["r1"]);
        check("ANY 1 (r1, \"o\"\"dd\")", Some("\"r2\""), &["r1", "r2", "o\"dd"], &["r3"]);
        check("*", Some("\"r2\""), &["r1", "r2"], &[]);
    }
}
