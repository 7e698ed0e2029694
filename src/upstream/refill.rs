//! Missing WAL is fetched again: segments that should lie between what is held and are gone ([`Store::missing_segments`]).
//!
//! Done beside the stream, with a connection of its own and without our slot, from each server that is followed. It
//! reports no positions. What arrives is verified with its neighbours before it takes its place; what a server does not
//! have any more is told, and consumers are sent to the archive for it, if there is one.

use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use walrelay_proto::{Lsn, SegSize, WalFileName};

use super::failure::UpstreamError;
use super::introduce::identify;
use super::seam;
use super::seam::Reports;
use crate::conninfo::{ConnInfo, HostSpec};
use crate::pg::{ConnectError, QueryError, ServerError, UpstreamConnection, connect, message};
use crate::pieces::Pieces;
use crate::store::{FillError, Identity, Store, StoreError};

/// Limit for connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// What did not work for a reason that may pass is tried again after so long.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// Messages that may wait for the disk.
const PIECES: usize = 8;

/// Missing segments could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum RefillError {
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
    Look(io::Error),
}

impl RefillError {
    /// Whether this server will never have them.
    fn is_final(&self) -> bool {
        match self {
            RefillError::Stream(QueryError::Server(error)) => error.is_wal_removed(),
            RefillError::Fill(error @ FillError::Invalid { .. }) => !error.is_doubtful(),
            RefillError::OtherCluster(_) => true,
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
pub(super) async fn fill_from(info: &ConnInfo, store: &Arc<Store>, host: &HostSpec) {
    // Before the first record nobody can tell what is missing.
    if store.written().wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut given_up = BTreeSet::new();
    loop {
        let missing: Vec<_> = match missing(store).await {
            Ok(missing) => missing.into_iter().filter(|name| !given_up.contains(name)).collect(),
            Err(error) => {
                tracing::warn!("{error}; trying again in {} s", TRY_AGAIN.as_secs());
                tokio::time::sleep(TRY_AGAIN).await;
                continue;
            }
        };
        // One by one: where the first is of no use, the next may be.
        let Some(run) = runs(&missing).first().copied() else { break };
        let Err((name, error)) = fill_run(info, store, host, run).await else { continue };
        let file = shown(store, name);
        if error.is_final() {
            if given_up.is_empty() {
                tracing::error!(
                    "missing WAL segment {file} cannot be fetched again from {host}: {error}; the next ones are tried"
                );
            }
            given_up.insert(name);
        } else {
            tracing::warn!(
                "missing WAL segment {file} could not be fetched again from {host} now: {error}; trying again in {} s",
                TRY_AGAIN.as_secs()
            );
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }
    if let (Some(first), Some(last)) = (given_up.first(), given_up.last()) {
        let (count, first, last) = (given_up.len(), shown(store, *first), shown(store, *last));
        tracing::error!(
            "{count} WAL segments between {first} and {last} stay missing: {host} does not have them; copy them from an \
             archive or another copy into pg_wal of the data directory while the relay is stopped"
        );
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

fn shown(store: &Store, name: WalFileName) -> String {
    store.identity().map_or_else(String::new, |identity| name.format(identity.seg_size))
}

/// One connection for each run: it is hung up on when the last byte has come. The segment at which it failed, and why.
pub(super) async fn fill_run(
    info: &ConnInfo,
    store: &Arc<Store>,
    host: &HostSpec,
    run: &[WalFileName],
) -> Result<(), (WalFileName, RefillError)> {
    let Some(Identity { seg_size, .. }) = store.identity() else { return Ok(()) };
    let first = run[0];
    let opened = async {
        let mut conn = connect(info, host, Instant::now() + CONNECT_LIMIT).await?;
        let theirs = identify(&mut conn).await?;
        store.check(Identity { system_id: theirs.system_id, seg_size })?;
        let start = first.segno.start(seg_size);
        conn.send_query(&format!("START_REPLICATION {start} TIMELINE {}", first.tli)).await?;
        Ok(conn)
    };
    let mut conn = opened.await.map_err(|error| (first, error))?;
    let mut received =
        Received { next: first.segno.start(seg_size), rest: Bytes::new(), reports: Reports::new() };
    for name in run {
        received.segment(&mut conn, store, *name, seg_size).await.map_err(|error| (*name, error))?;
    }
    Ok(())
}

/// What a stream has brought and no segment was made of yet.
struct Received {
    next: Lsn,
    rest: Bytes,
    reports: Reports,
}

impl Received {
    /// Has one segment stored while it comes: what is on its way to the disk is a few messages.
    async fn segment(
        &mut self,
        conn: &mut UpstreamConnection,
        store: &Arc<Store>,
        name: WalFileName,
        size: SegSize,
    ) -> Result<(), RefillError> {
        let (pieces, wal) = Pieces::channel(PIECES);
        let filling = fill(store, name, wal);
        tokio::pin!(filling);
        let sending = self.send(conn, pieces, name.segno.start(size), size);
        // A disk that does not take it ends both; what it says counts.
        let sent = tokio::select! {
            filled = &mut filling => return filled,
            sent = sending => sent,
        };
        let filled = filling.await;
        sent.and(filled)
    }

    async fn send(
        &mut self,
        conn: &mut UpstreamConnection,
        pieces: mpsc::Sender<Bytes>,
        start: Lsn,
        size: SegSize,
    ) -> Result<(), RefillError> {
        // What nobody took of a segment that had come another way.
        while self.at() < start {
            match start.since(self.at()).min(self.rest.len() as u64) {
                0 => self.rest = self.next_wal(conn).await?,
                strange => self.rest.advance(strange as usize),
            }
        }
        let mut left = size.bytes();
        while left > 0 {
            if self.rest.is_empty() {
                self.rest = self.next_wal(conn).await?;
            }
            // Messages may reach over a segment's end.
            let len = (self.rest.len() as u64).min(left);
            left -= len;
            // Nobody takes it any more: whoever did says why.
            if pieces.send(self.rest.split_to(len as usize)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Where `rest` begins.
    fn at(&self) -> Lsn {
        self.next.rewind(self.rest.len() as u64)
    }

    async fn next_wal(&mut self, conn: &mut UpstreamConnection) -> Result<Bytes, RefillError> {
        loop {
            let (kind, body) = self.reports.next_message(conn).await?;
            match kind {
                b'd' => {
                    let Some((_, wal)) = seam::xlog_data(&body, self.next)? else { continue };
                    self.next = self.next.advance(wal.len() as u64);
                    return Ok(body.slice_ref(wal));
                }
                b'E' => return Err(QueryError::Server(server_error(body)).into()),
                b'c' | b'Z' => return Err(RefillError::Ended),
                _ => {}
            }
        }
    }
}

async fn fill(store: &Arc<Store>, name: WalFileName, mut wal: Pieces) -> Result<(), RefillError> {
    let store = store.clone();
    let filled = tokio::task::spawn_blocking(move || store.fill_segment(name, &mut wal)).await;
    match filled {
        Ok(Ok(()) | Err(FillError::NotMissing(_))) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(RefillError::Look(error.into())),
    }
}

fn server_error(body: Bytes) -> ServerError {
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
