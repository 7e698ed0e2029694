//! What relays and candidates say of themselves.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use walrelay_proto::{CommitCounter, Lsn, PgTimestamp, SegNo, WalFileName, WalIdentity, WalVerifier};

use super::decide::{End, Lack};
use crate::archive::{Reach, Server, Source};
use crate::conninfo::ConnInfo;
use crate::pg::connect_any;

/// How long a server's answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long the WAL that would be lost may take to read.
const READING: Duration = Duration::from_secs(30);
/// Most WAL that is read for that, bytes.
const MOST: u64 = 256 << 20;
/// The database that candidates are asked in.
const DATABASE: &str = "postgres";
const QUESTION: &str = "select pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), \
    pg_get_wal_replay_pause_state(), current_setting('restore_command')";

/// What a candidate says when it is asked with SQL. What it may not, or cannot, say is absent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Told {
    pub(super) received: Option<Lsn>,
    pub(super) replayed: Option<Lsn>,
    /// `not paused`, `pause requested` or `paused`.
    pub(super) pause_state: Option<String>,
    pub(super) restore_command: Option<String>,
}

/// Commits that would be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Commits {
    pub(super) count: u64,
    /// When the first and the last of them were made.
    pub(super) span: Option<(PgTimestamp, PgTimestamp)>,
}

/// How far a server is, as its walsender tells.
pub(super) async fn reach(server: &Server) -> Result<Reach, String> {
    match timeout(LIMIT, server.reach()).await {
        Ok(Ok(Some(reach))) => Ok(reach),
        Ok(Ok(None)) => Err("it has no WAL yet".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it has not answered within {} s", LIMIT.as_secs())),
    }
}

impl From<&Reach> for End {
    fn from(reach: &Reach) -> End {
        // What a relay has confirmed to `remote_write` is not durable yet, and counts.
        End { system_id: reach.system_id, history: reach.history.clone(), lsn: reach.write_lsn }
    }
}

/// What a candidate says besides.
pub(super) async fn tell(info: &ConnInfo) -> Result<Told, String> {
    let asked = async {
        let info = info.for_sql(DATABASE);
        let mut conn = connect_any(&info, Instant::now() + LIMIT).await.map_err(|error| error.to_string())?;
        let result = conn.query(QUESTION).await;
        conn.close().await;
        result.map_err(|error| error.to_string())
    };
    let silent = || format!("it has not answered within {} s", LIMIT.as_secs());
    let result = timeout(LIMIT, asked).await.map_err(|_| silent())??;
    let text = |column: usize| {
        let value = result.rows.first()?.get(column)?.as_deref()?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let lsn = |column: usize| text(column)?.parse().ok();
    Ok(Told { received: lsn(0), replayed: lsn(1), pause_state: text(2), restore_command: text(3) })
}

/// Reads from the relay what a candidate lacks, and counts the commits in it; `None` where it is too much, or is not there.
pub(super) async fn commits(server: &Server, reach: &Reach, lack: &Lack) -> Option<Commits> {
    timeout(READING, count(server, reach, lack.from)).await.ok().flatten()
}

async fn count(server: &Server, reach: &Reach, from: Lsn) -> Option<Commits> {
    let size = reach.seg_size;
    let tli = reach.history.tli();
    let (first, last) = (from.seg_at(size), reach.write_lsn.seg_before(size));
    if first < reach.history.begin().seg_at(size) || reach.write_lsn.since(from) > MOST {
        return None;
    }
    let id = WalIdentity { system_id: reach.system_id, seg_size: size };
    let read = async |segno: SegNo| segment(server, &WalFileName::new(tli, segno).format(size)).await;
    // A record may reach into the segment: then it began in the one before.
    let mut verifier = WalVerifier::at_segment_start(id, tli, first.start(size));
    let mut bytes = read(first).await?;
    let begun = from.offset_in_seg(size) as usize;
    let _ = verifier.push(bytes.get(..begun)?);
    if verifier.verified_end().is_none() {
        let before = SegNo::new(first.as_u64().checked_sub(1)?);
        verifier = WalVerifier::at_segment_start(id, tli, before.start(size));
        let earlier = read(before).await?;
        verifier.push(&earlier).ok()?;
        verifier.push(bytes.get(..begun)?).ok()?;
        let at = verifier.verified_end()?;
        if at < first.start(size) {
            // What began there is lost, too.
            let mut counter = CommitCounter::new(at, size);
            counter.push(earlier.get(at.offset_in_seg(size) as usize..)?);
            return count_on(counter, &bytes, first, last, read).await;
        }
    }
    let at = verifier.verified_end()?;
    let counter = CommitCounter::new(at, size);
    let skipped = (at.since(first.start(size)) as usize).min(bytes.len());
    bytes = bytes.split_off(skipped);
    count_on(counter, &bytes, first, last, read).await
}

/// Counts what is left of the first segment, and the others.
async fn count_on(
    mut counter: CommitCounter,
    bytes: &[u8],
    first: SegNo,
    last: SegNo,
    read: impl AsyncFn(SegNo) -> Option<bytes::Bytes>,
) -> Option<Commits> {
    counter.push(bytes);
    for segno in first.as_u64() + 1..=last.as_u64() {
        counter.push(&read(SegNo::new(segno)).await?);
    }
    Some(Commits { count: counter.commits(), span: counter.span() })
}

async fn segment(server: &Server, name: &str) -> Option<bytes::Bytes> {
    match server.read(name).await.ok()? {
        Some(bytes) => Some(bytes),
        None => server.read_unfinished(name).await.ok()?.into_iter().next(),
    }
}
