//! Streaming: a placeholder that keeps the conversation and sends no WAL.

use walrelay_proto::StartReplication;

use super::answers::{canceled, slot_error};
use super::session::{SessionContext, StreamEnd, StreamError};
use crate::wire::{Connection, Phase, ReadError, messages};

/// Serves START_REPLICATION on a connection whose output is empty or holds notices only.
pub(super) async fn stream(
    conn: &mut Connection,
    context: &SessionContext,
    start: StartReplication,
) -> Result<StreamEnd, StreamError> {
    let acquire = |name: &String| context.store.slots().acquire(name, context.pid).map_err(slot_error);
    let _slot = start.slot.as_ref().map(acquire).transpose()?;
    conn.put(&messages::copy_both_response());
    conn.set_phase(Phase::Streaming);
    loop {
        conn.flush().await.map_err(|error| StreamError::Closed(error.to_string()))?;
        let frame = tokio::select! {
            frame = conn.read_frame() => frame.map_err(closed)?,
            () = context.cancel.requested() => return Err(canceled().into()),
            () = context.shutdown.cancelled() => return Ok(StreamEnd::Shutdown),
        };
        match frame.kind {
            b'c' => {
                conn.put(&messages::CopyDone::new());
                return Ok(StreamEnd::Done { next: None });
            }
            b'X' => return Err(StreamError::Closed("client has left".into())),
            _ => {}
        }
    }
}

fn closed(error: ReadError) -> StreamError {
    match error {
        ReadError::Frame(frame) => match frame.to_pg_error() {
            Some(error) => StreamError::Pg(error),
            None => StreamError::Closed(frame.to_string()),
        },
        other => StreamError::Closed(other.to_string()),
    }
}
