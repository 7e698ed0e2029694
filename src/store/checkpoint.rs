//! Where replay from the newest checkpoint begins: what a slot reserves, as PostgreSQL's do (`ReplicationSlotReserveWal`).
//!
//! Seen in the WAL as it is verified, and kept in a small file, as the checkpoint may lie far behind the WAL that is read
//! at a start. The file may be older than what was seen, and then a new slot keeps more than it needs.

use std::io;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use walrelay_proto::{Lsn, TimelineHistory, TimelineId};

use super::TimelinePosition;
use super::dir::DataDir;

const FILE: &str = "checkpoint.toml";

/// The newest checkpoint's redo position.
#[derive(Debug, Default)]
pub(super) struct Checkpoint {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    seen: Option<TimelinePosition>,
    saved: Option<TimelinePosition>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    timeline: u32,
    redo: String,
}

impl Checkpoint {
    /// What an earlier process has seen. What cannot be read says nothing.
    pub(super) fn load(dir: &DataDir) -> Checkpoint {
        let text = dir.read(FILE).unwrap_or_else(|error| {
            tracing::warn!(
                "could not read {FILE}, new slots keep more WAL until the next checkpoint: {error}"
            );
            None
        });
        let saved = text.as_deref().and_then(parse);
        if let (Some(_), Some(text)) = (saved, &text) {
            dir.reserve(FILE, text);
        }
        Checkpoint { state: Mutex::new(State { seen: saved, saved }) }
    }

    /// A checkpoint has been seen on this timeline.
    pub(super) fn note(&self, tli: TimelineId, redo: Lsn) {
        self.lock().seen = Some(TimelinePosition { tli, lsn: redo });
    }

    /// The redo position, if it lies on the way of `history`.
    pub(super) fn redo(&self, history: &TimelineHistory) -> Option<Lsn> {
        let seen = self.lock().seen?;
        (history.timeline_at(seen.lsn) == seen.tli).then_some(seen.lsn)
    }

    /// Saves what has been seen since the last time. Waits for the disk.
    pub(super) fn save(&self, dir: &DataDir) -> io::Result<()> {
        let State { seen, saved } = *self.lock();
        let Some(now) = seen.filter(|_| seen != saved) else { return Ok(()) };
        let text = Saved { timeline: now.tli.as_u32(), redo: now.lsn.to_string() };
        dir.replace(FILE, &toml::to_string(&text).map_err(io::Error::other)?)?;
        self.lock().saved = Some(now);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(text: &str) -> Option<TimelinePosition> {
    let saved: Saved = toml::from_str(text).ok()?;
    Some(TimelinePosition { tli: TimelineId::new(saved.timeline)?, lsn: saved.redo.parse().ok()? })
}
