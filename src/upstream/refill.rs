//! Missing WAL is fetched again: segments that should lie between what is held and are gone ([`Store::missing_segments`]).
//!
//! Done beside the stream, with a connection of its own and without our slot, from each server that is followed. It
//! reports no positions. What arrives is verified with its neighbours before it takes its place; what a server does not
//! have any more is told, and consumers are sent to the archive for it, if there is one.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use walrelay_proto::{SegSize, WalFileName};

use super::connect::connect;
use super::connection::UpstreamConnection;
use super::error::{ConnectError, QueryError, ServerError};
use super::failure::UpstreamError;
use super::introduce::identify;
use super::{message, seam};
use crate::conninfo::{ConnInfo, HostSpec};
use crate::store::{FillError, Identity, Store, StoreError};

/// Limit for connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// What did not work for a reason that may pass is tried again after so long.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Missing segments could not be fetched.
#[derive(Debug, thiserror::Error)]
enum RefillError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Stream(#[from] QueryError),
    #[error(transparent)]
    Identify(#[from] UpstreamError),
    #[error(transparent)]
    OtherCluster(#[from] StoreError),
    #[error("the stream ended before the segment was whole")]
    Ended,
    #[error(transparent)]
    Fill(#[from] FillError),
    #[error("could not look for missing WAL segments: {0}")]
    Look(std::io::Error),
}

impl RefillError {
    /// Whether this server will never have them.
    fn is_final(&self) -> bool {
        match self {
            RefillError::Stream(QueryError::Server(error)) => error.is_wal_removed(),
            RefillError::OtherCluster(_) | RefillError::Fill(FillError::Invalid { .. }) => true,
            _ => false,
        }
    }
}

/// Fills the holes of the store from whichever server is followed. Never resolves. Cancel-safe: a segment is in its
/// place or not at all.
pub(super) async fn refill(
    info: &ConnInfo,
    store: &Arc<Store>,
    mut followed: watch::Receiver<Option<HostSpec>>,
) {
    loop {
        let Ok(host) = followed.wait_for(Option::is_some).await.map(|host| host.clone()) else {
            return pending().await;
        };
        let Some(host) = host else { continue };
        tokio::select! {
            () = fill_from(info, store, &host) => {}
            // It will be another server's turn.
            _ = followed.wait_for(|now| now.as_ref() != Some(&host)) => continue,
        }
        if followed.wait_for(|now| now.as_ref() != Some(&host)).await.is_err() {
            return pending().await;
        }
    }
}

/// Fetches what is missing and this server has; returns when there is nothing left to try.
async fn fill_from(info: &ConnInfo, store: &Arc<Store>, host: &HostSpec) {
    let mut given_up = Vec::new();
    loop {
        let mut again = false;
        let missing = match missing(store).await {
            Ok(missing) => missing,
            Err(error) => {
                tracing::warn!("{error}");
                return;
            }
        };
        for run in runs(&missing) {
            if given_up.contains(&run[0]) {
                continue;
            }
            let Err(error) = fill_run(info, store, host, run).await else { continue };
            let (first, last) = (shown(store, run.first()), shown(store, run.last()));
            if error.is_final() {
                given_up.push(run[0]);
                tracing::error!(
                    "missing WAL segments {first} to {last} cannot be fetched again from {host}: {error}; copy them from an \
                     archive or another copy into pg_wal of the data directory while the relay is stopped"
                );
            } else {
                again = true;
                tracing::warn!(
                    "missing WAL segments {first} to {last} could not be fetched again from {host} now: {error}; trying \
                     again in {} s",
                    TRY_AGAIN.as_secs()
                );
            }
        }
        if !again {
            return;
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

async fn missing(store: &Arc<Store>) -> Result<Vec<WalFileName>, RefillError> {
    let store = store.clone();
    let looked = tokio::task::spawn_blocking(move || store.missing_segments()).await;
    looked.unwrap_or_else(|error| Err(error.into())).map_err(RefillError::Look)
}

/// Segments that follow on each other on one timeline.
fn runs(missing: &[WalFileName]) -> Vec<&[WalFileName]> {
    let follows = |a: &WalFileName, b: &WalFileName| a.tli == b.tli && a.segno.next() == b.segno;
    missing.chunk_by(follows).collect()
}

fn shown(store: &Store, name: Option<&WalFileName>) -> String {
    let size = store.identity().map(|identity| identity.seg_size);
    name.zip(size).map_or_else(String::new, |(name, size)| name.format(size))
}

/// One connection for each run: it is hung up on when the last byte has come.
async fn fill_run(
    info: &ConnInfo,
    store: &Arc<Store>,
    host: &HostSpec,
    run: &[WalFileName],
) -> Result<(), RefillError> {
    let Some(Identity { system_id, seg_size }) = store.identity() else { return Ok(()) };
    let mut conn = connect(info, host, Instant::now() + CONNECT_LIMIT).await?;
    let theirs = identify(&mut conn).await?;
    store.check(Identity { system_id: theirs.system_id, seg_size })?;
    debug_assert_eq!(theirs.system_id, system_id);
    let start = run[0].segno.start(seg_size);
    conn.send_query(&format!("START_REPLICATION {start} TIMELINE {}", run[0].tli)).await?;
    receive(&mut conn, store, run, seg_size).await
}

async fn receive(
    conn: &mut UpstreamConnection,
    store: &Arc<Store>,
    run: &[WalFileName],
    seg_size: SegSize,
) -> Result<(), RefillError> {
    let mut next = run[0].segno.start(seg_size);
    let mut wal = Vec::with_capacity(seg_size.bytes() as usize);
    for name in run {
        while (wal.len() as u64) < seg_size.bytes() {
            let (kind, body) = seam::next_message(conn).await?;
            match kind {
                b'd' => {
                    let Some((_, bytes)) = seam::xlog_data(&body, next)? else { continue };
                    next = next.advance(bytes.len() as u64);
                    wal.extend_from_slice(bytes);
                }
                b'E' => return Err(QueryError::Server(server_error(body)).into()),
                b'c' | b'Z' => return Err(RefillError::Ended),
                _ => {}
            }
        }
        // Messages may reach over a segment's end.
        let beyond = wal.split_off(seg_size.bytes() as usize);
        fill(store, *name, std::mem::replace(&mut wal, beyond)).await?;
    }
    Ok(())
}

async fn fill(store: &Arc<Store>, name: WalFileName, wal: Vec<u8>) -> Result<(), RefillError> {
    let store = store.clone();
    let filled = tokio::task::spawn_blocking(move || store.fill_segment(name, &wal)).await;
    match filled {
        Ok(Ok(()) | Err(FillError::NotMissing(_))) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(RefillError::Look(error.into())),
    }
}

fn server_error(body: bytes::Bytes) -> ServerError {
    message::server_error(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use walrelay_proto::{SegNo, TimelineId};

    use super::*;

    #[test]
    fn runs_are_of_one_timeline_and_without_gaps() {
        let name = |tli, segno| WalFileName::new(TimelineId::new(tli).unwrap(), SegNo::new(segno));
        let missing = [name(1, 3), name(1, 4), name(1, 6), name(2, 7), name(2, 8)];
        let lens: Vec<_> = runs(&missing).iter().map(|run| run.len()).collect();
        assert_eq!(lens, [2, 1, 2]);
        assert!(runs(&[]).is_empty());
    }
}
