//! The seam between the WAL held here and an upstream's: compared before the upstream is followed.
//!
//! A system identifier and a history prove little: a cluster restored from a plain copy of its files has both,
//! and so have two servers promoted at the same position. The bytes before the seam tell. They are asked for
//! with a START_REPLICATION of their own, without the slot, so that a server that turns out to be another
//! gets nothing of us.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use walrelay_proto::{Lsn, ServerMessage, TimelineHistory, TimelineId};

use super::connection::UpstreamConnection;
use super::error::{QueryError, ServerError};
use super::message;
use crate::store::{AppendError, ReadError, Segment, Store};

/// WAL that is compared, bytes at most.
const MOST: u64 = 1 << 20;
/// Limit for fetching it.
const LIMIT: Duration = Duration::from_secs(60);

/// What is held here right before a position.
pub(super) struct Held {
    segment: Arc<Segment>,
    /// The timeline on which the last byte lies.
    tli: TimelineId,
    from: Lsn,
    end: Lsn,
}

/// An upstream cannot be compared with what is held.
#[derive(Debug, thiserror::Error)]
pub(super) enum CompareError {
    #[error("{command}: {source}")]
    Command { command: String, source: QueryError },
    #[error(transparent)]
    Diverged(AppendError),
}

impl Held {
    /// Up to 1 MB before `at`, in one segment: that of the last byte before `at`.
    ///
    /// Zeros at the end do not count. Behind an XLOG_SWITCH a server that received half of them has whatever was
    /// in its file before; and where they belong to a record, its checksum lies before them.
    pub(super) fn before(store: &Store, at: Lsn) -> Result<Held, ReadError> {
        let unknown = || ReadError::Removed("of a cluster not known yet".to_owned());
        let size = store.identity().ok_or_else(unknown)?.seg_size;
        let tli = store.history().timeline_at(at.rewind(1));
        let segment = store.segment(tli, at.seg_before(size))?;
        let len = at.since(segment.start()).min(segment.published());
        let bytes = segment.bytes(0, len as usize);
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last as u64 + 1);
        let end = segment.start().advance(end);
        let from = end.rewind(MOST).page_start().max(segment.start());
        Ok(Held { segment, tli, from, end })
    }

    fn bytes(&self) -> &[u8] {
        self.segment.bytes(self.from.since(self.segment.start()), self.end.since(self.from) as usize)
    }

    /// Compares it with what an upstream has of timeline `tli`. What the upstream has removed counts as the
    /// same; there, the first record behind the seam has to continue ours.
    pub(super) async fn compare(
        &self,
        conn: &mut UpstreamConnection,
        tli: TimelineId,
    ) -> Result<(), CompareError> {
        let ours = self.bytes();
        let command = format!("START_REPLICATION {} TIMELINE {tli}", self.from);
        let fetched = tokio::time::timeout(LIMIT, fetch(conn, &command, self.from, ours.len())).await;
        let theirs =
            match fetched.unwrap_or_else(|_| Err(QueryError::Io(std::io::ErrorKind::TimedOut.into()))) {
                Ok(theirs) => theirs,
                Err(QueryError::Server(error)) if is_removed(&error) => {
                    tracing::debug!("WAL at the seam cannot be compared: {error}");
                    return Ok(());
                }
                Err(source) => return Err(CompareError::Command { command, source }),
            };
        match ours.iter().zip(&theirs).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(differs) => {
                let lsn = self.from.advance(differs as u64);
                Err(CompareError::Diverged(AppendError::Diverged { tli: self.tli, lsn }))
            }
        }
    }
}

/// The timeline of a server with history `theirs` whose file holds the last bytes before `at`: a segment in which
/// a timeline was left is read from its successor's.
pub(super) fn timeline_before(theirs: &TimelineHistory, at: Lsn, at_boundary: bool) -> TimelineId {
    theirs.timeline_at(if at_boundary { at.rewind(1) } else { at })
}

/// The first `len` bytes of a stream; fewer if it ends before. The connection is idle again.
pub(super) async fn fetch(
    conn: &mut UpstreamConnection,
    command: &str,
    from: Lsn,
    len: usize,
) -> Result<Vec<u8>, QueryError> {
    conn.send_query(command).await?;
    let (mut wal, mut leaving, mut failure) = (Vec::with_capacity(len), false, None);
    loop {
        let (kind, body) = conn.next_message().await?;
        match kind {
            b'd' if !leaving => append(&mut wal, from, &body)?,
            b'E' => failure = Some(message::server_error(body).unwrap_or_default()),
            b'Z' => break,
            _ => {}
        }
        let over = wal.len() >= len || kind == b'c';
        if over && !leaving {
            leaving = true;
            conn.stream.write_all(message::COPY_DONE).await.map_err(QueryError::Io)?;
            conn.stream.flush().await.map_err(QueryError::Io)?;
        }
    }
    failure.map_or(Ok(wal), |error| Err(QueryError::Server(error)))
}

/// Where a segment vanishes while it is read, the code depends on the version and the moment.
pub(super) fn is_removed(error: &ServerError) -> bool {
    error.sqlstate == "58P01" || error.message.ends_with("has already been removed")
}

fn append(wal: &mut Vec<u8>, from: Lsn, body: &[u8]) -> Result<(), QueryError> {
    let bad = |problem: String| QueryError::Protocol { problem };
    match ServerMessage::decode(body).map_err(|error| bad(error.to_string()))? {
        ServerMessage::XLogData(header, bytes) => {
            let expected = from.advance(wal.len() as u64);
            if header.start != expected {
                return Err(bad(format!("WAL at {}, expected {expected}", header.start)));
            }
            wal.extend_from_slice(bytes);
        }
        ServerMessage::Keepalive(_) => {}
    }
    Ok(())
}
