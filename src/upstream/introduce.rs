//! What is asked of a server before it is followed: who it is, what it is set to, what our slot there holds.

use walrelay_proto::{Lsn, SegSize, SlotName, SystemId, TimelineId};

use super::connection::UpstreamConnection;
use super::failure::UpstreamError;
use crate::store::{Identity, Store, UpstreamParameters};

/// What is asked of the server with SHOW, for consumers that ask us, and the first major version that has it.
const SETTINGS: [(&str, u32); 15] = [
    ("server_version_num", 0),
    ("wal_level", 0),
    ("block_size", 0),
    ("wal_block_size", 0),
    ("segment_size", 0),
    ("data_checksums", 0),
    ("max_connections", 0),
    ("hot_standby", 0),
    ("wal_log_hints", 0),
    // What backup tools ask in SQL before they start a receiver.
    ("archive_timeout", 0),
    ("checkpoint_timeout", 0),
    ("synchronous_standby_names", 0),
    ("archive_mode", 0),
    ("wal_compression", 0),
    ("summarize_wal", 17),
];

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identified {
    pub(super) system_id: SystemId,
    pub(super) tli: TimelineId,
    pub(super) xlogpos: Lsn,
}

/// Who a server says that it is. Kept once it has turned out to be one that we follow.
pub(super) struct Introduced {
    pub(super) identity: Identity,
    pub(super) parameters: UpstreamParameters,
}

/// The server has answered something that makes no sense.
pub(super) fn answer(command: &str, problem: impl Into<String>) -> UpstreamError {
    UpstreamError::Answer { command: command.to_owned(), problem: problem.into() }
}

/// Runs a command that answers with one row; its values as text.
pub(super) async fn row(
    conn: &mut UpstreamConnection,
    command: &str,
) -> Result<Vec<Option<String>>, UpstreamError> {
    let failed = |source| UpstreamError::Command { command: command.to_owned(), source };
    let result = conn.query(command).await.map_err(failed)?;
    let row = result.rows.into_iter().next().ok_or_else(|| answer(command, "no row"))?;
    let text = |value: bytes::Bytes| String::from_utf8_lossy(&value).into_owned();
    Ok(row.into_iter().map(|value| value.map(text)).collect())
}

/// Asks who the server is and where it stands.
pub(super) async fn identify(conn: &mut UpstreamConnection) -> Result<Identified, UpstreamError> {
    let command = "IDENTIFY_SYSTEM";
    let row = row(conn, command).await?;
    let field = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
    let parsed = (|| {
        Some(Identified {
            system_id: field(0).parse().ok()?,
            tli: TimelineId::new(field(1).parse().ok()?)?,
            xlogpos: field(2).parse().ok()?,
        })
    })();
    parsed.ok_or_else(|| answer(command, format!("{row:?}")))
}

/// Learns who the upstream is, and makes sure that the data directory is this cluster's.
pub(super) async fn introduce(
    conn: &mut UpstreamConnection,
    store: &Store,
) -> Result<(Identified, Introduced), UpstreamError> {
    let identified = identify(conn).await?;
    let command = "SHOW wal_segment_size";
    let shown = row(conn, command).await?.into_iter().next().flatten().unwrap_or_default();
    let seg_size = SegSize::from_show(&shown).map_err(|error| answer(command, error.to_string()))?;
    let identity = Identity { system_id: identified.system_id, seg_size };
    store.check(identity)?;
    let mut parameters =
        UpstreamParameters { status: conn.parameters().to_vec(), ..UpstreamParameters::default() };
    let version = major_version(conn);
    for (name, _) in SETTINGS.into_iter().filter(|(_, first)| version >= *first) {
        match row(conn, &format!("SHOW {name}")).await {
            Ok(mut values) => {
                let value = values.pop().flatten().unwrap_or_default();
                parameters.settings.insert(name.to_owned(), value);
            }
            // Not every server has all of them or shows them to us.
            Err(UpstreamError::Command { source, .. }) if source.is_recoverable() => {}
            Err(error) => return Err(error),
        }
    }
    Ok((identified, Introduced { identity, parameters }))
}

/// 0 if the server does not say.
pub(super) fn major_version(conn: &UpstreamConnection) -> u32 {
    let version = conn.parameter("server_version").unwrap_or_default();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// `None` if the slot does not exist; inside, where its WAL begins, if the server can tell.
pub(super) async fn read_slot(
    conn: &mut UpstreamConnection,
    slot: &SlotName,
) -> Result<Option<Option<(Lsn, TimelineId)>>, UpstreamError> {
    if major_version(conn) < 15 {
        // There is no way to ask; CREATE_REPLICATION_SLOT will tell whether it exists.
        return Ok(None);
    }
    let row = row(conn, &format!("READ_REPLICATION_SLOT \"{slot}\"")).await?;
    let field = |at: usize| row.get(at).and_then(Option::as_deref);
    if field(0).is_none() {
        return Ok(None);
    }
    let reserved = field(1)
        .and_then(|lsn| lsn.parse().ok())
        .zip(field(2).and_then(|tli| tli.parse().ok()).and_then(TimelineId::new));
    Ok(Some(reserved))
}
