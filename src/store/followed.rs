//! Which timeline is followed: a small file, durable before anything is written on that timeline.
//!
//! Numbers do not tell. After a sibling was left for the timeline that took over (docs/TIMELINES.md) the highest
//! number in `pg_wal` may be a dead one, and on the way to the new one an ancestor is received with both beside it.
//!
//! What a crash leaves, step by step:
//! - Switching to a new timeline: its first file → slots come back to where both part → *this file* → shown. Before the
//!   third step the old timeline comes back, with the new one's file beside it, which is then taken up instead of made.
//! - Going back to one that is held: its files are found and made durable → slots → *this file* → shown. The timeline that is
//!   left was durable before.

use std::io;

use serde::{Deserialize, Serialize};
use walrelay_proto::TimelineId;

use super::dir::DataDir;

pub(super) const FILE: &str = "timeline.toml";

/// What the file says. It is missing in directories of before, where the highest number is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Followed {
    /// The timeline that is received.
    pub(super) tli: TimelineId,
    /// The timeline that it is to lead to: a higher one while WAL of an ancestor is still missing.
    pub(super) newest: TimelineId,
    /// The newest timeline of the servers that were ever followed: a higher one while what leads there is streamed, before
    /// anything was gone to. For fences: it is no way on, see [`newest`](Self::newest).
    pub(super) heading: TimelineId,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    timeline: u32,
    newest: u32,
    /// Only if it is another than the newest, as in all directories of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heading: Option<u32>,
}

pub(super) fn load(dir: &DataDir) -> io::Result<Option<Followed>> {
    let Some(text) = dir.read(FILE)? else { return Ok(None) };
    dir.reserve(FILE, &text);
    parse(&text).map(Some)
}

/// Understands the file's content.
pub(super) fn parse(text: &str) -> io::Result<Followed> {
    let bad =
        |what: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {what}"));
    let saved: Saved =
        toml::from_str(text).map_err(|error: toml::de::Error| bad(&error.message().replace('\n', " ")))?;
    let timeline = |number| TimelineId::new(number).ok_or_else(|| bad(&"there is no timeline 0"));
    let (tli, newest) = (timeline(saved.timeline)?, timeline(saved.newest)?);
    let heading = saved.heading.map(timeline).transpose()?.map_or(newest, |heading| heading.max(newest));
    Ok(Followed { tli, newest, heading })
}

pub(super) fn save(dir: &DataDir, followed: Followed) -> io::Result<()> {
    let Followed { tli, newest, heading } = followed;
    let heading = (heading != newest).then(|| heading.as_u32());
    let saved = Saved { timeline: tli.as_u32(), newest: newest.as_u32(), heading };
    dir.replace(FILE, &toml::to_string(&saved).map_err(io::Error::other)?)
}
