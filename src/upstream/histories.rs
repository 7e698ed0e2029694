//! Timeline histories of an upstream, and the files that are kept of them.

use std::collections::BTreeSet;

use walrelay_proto::{TimelineHistory, TimelineId};

use super::failure::UpstreamError;
use super::introduce::answer;
use crate::pg::{QueryError, UpstreamConnection};
use crate::store::{SaveHistoryError, Store};

/// Numbers before the newest that are asked for although its history does not name them.
const STRANGERS: u32 = 1000;

/// The history of the upstream's timeline, and the file it was read from.
pub(super) struct UpstreamHistory {
    pub(super) history: TimelineHistory,
    content: Vec<u8>,
}

impl UpstreamHistory {
    /// Asks for it.
    pub(super) async fn fetch(conn: &mut UpstreamConnection, tli: TimelineId) -> Result<Self, UpstreamError> {
        if tli == TimelineId::FIRST {
            return Ok(UpstreamHistory { history: TimelineHistory::first(), content: Vec::new() });
        }
        let content = fetch_history(conn, tli).await?;
        let content = content.ok_or_else(|| answer("TIMELINE_HISTORY", "the current timeline has none"))?;
        let history = parse_history(tli, &content)?;
        Ok(UpstreamHistory { history, content })
    }

    /// Fetches the history files that are not here yet: those of this timeline's own history, and of the numbers just before it.
    ///
    /// Standbys ask for every number, so all that the upstream has are taken. It need not have those of
    /// timelines outside its own history; one inside that is missing is a beginning of the newest.
    pub(super) async fn fetch_all(
        &self,
        conn: &mut UpstreamConnection,
        store: &Store,
    ) -> Result<HistoryFiles, UpstreamError> {
        let mut files = Vec::new();
        for tli in asked_for(&self.history) {
            let ancestor = self.history.contains(tli).then(|| lines_before(&self.content, tli));
            let expected = ancestor.as_deref().map(|lines| parse_history(tli, lines)).transpose()?;
            let ours = store.history_file(tli).map_err(|source| history_error(tli, source.into()))?;
            let usable = |ours: &Vec<u8>| {
                let Some(expected) = &expected else { return true };
                TimelineHistory::parse(tli, ours).as_ref() == Ok(expected)
            };
            if ours.as_ref().is_some_and(usable) {
                continue;
            }
            let sent = if tli == self.history.tli() { None } else { fetch_history(conn, tli).await? };
            if let Some(content) = sent.filter(usable).or(ancestor) {
                files.push((tli, content));
            }
        }
        Ok(HistoryFiles(files))
    }
}

/// The timelines that have a history file and may be of interest. A server that has the number of four billion, or says so,
/// is not asked for all of them.
fn asked_for(history: &TimelineHistory) -> BTreeSet<TimelineId> {
    let newest = history.tli().as_u32();
    let strangers = (newest.saturating_sub(STRANGERS)..newest).filter_map(TimelineId::new);
    history.way().chain(strangers).filter(|&tli| tli != TimelineId::FIRST).collect()
}

/// History files of an upstream that are not stored here yet.
#[derive(Default)]
pub(super) struct HistoryFiles(Vec<(TimelineId, Vec<u8>)>);

impl HistoryFiles {
    /// Stores them.
    pub(super) fn save(&self, store: &Store) -> Result<(), UpstreamError> {
        for (tli, content) in &self.0 {
            store.save_history_file(*tli, content).map_err(|source| history_error(*tli, source))?;
            tracing::info!("fetched timeline history file for timeline {tli}");
        }
        Ok(())
    }
}

/// The lines of a history file before the one about `tli`: what was known when `tli` began.
fn lines_before(content: &[u8], tli: TimelineId) -> Vec<u8> {
    let number = tli.to_string();
    let about = |line: &[u8]| String::from_utf8_lossy(line).split_whitespace().next() == Some(&number);
    let lines = content.split_inclusive(|&byte| byte == b'\n');
    lines.take_while(|line| !about(line)).flatten().copied().collect()
}

/// A timeline's history file; `None` if the upstream has none.
async fn fetch_history(
    conn: &mut UpstreamConnection,
    tli: TimelineId,
) -> Result<Option<Vec<u8>>, UpstreamError> {
    let command = format!("TIMELINE_HISTORY {tli}");
    let result = match conn.query(&command).await {
        Ok(result) => result,
        Err(QueryError::Server(error)) if error.is_wal_removed() => return Ok(None),
        Err(source) => return Err(UpstreamError::Command { command, source }),
    };
    let row = result.rows.first();
    let name = row.and_then(|row| row.first()?.as_deref());
    let content = row.and_then(|row| row.get(1)?.clone());
    if name != Some(tli.history_file_name().as_bytes()) {
        return Err(answer(&command, "unexpected file name"));
    }
    content.map(|content| Some(content.to_vec())).ok_or_else(|| answer(&command, "no content"))
}

fn parse_history(tli: TimelineId, content: &[u8]) -> Result<TimelineHistory, UpstreamError> {
    TimelineHistory::parse(tli, content).map_err(|source| history_error(tli, source.into()))
}

fn history_error(tli: TimelineId, source: SaveHistoryError) -> UpstreamError {
    UpstreamError::History { tli, source }
}

/// The history of a timeline whose file is here.
pub(super) fn read_history(store: &Store, tli: TimelineId) -> Result<TimelineHistory, UpstreamError> {
    if tli == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let content = store.history_file(tli).map_err(|source| history_error(tli, source.into()))?;
    parse_history(tli, &content.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_of_files_is_asked_for() {
        let history =
            |tli, content: &[u8]| TimelineHistory::parse(TimelineId::new(tli).unwrap(), content).unwrap();
        let numbers = |history| asked_for(&history).iter().map(|tli| tli.as_u32()).collect::<Vec<_>>();
        assert_eq!(numbers(TimelineHistory::first()), [0u32; 0]);
        assert_eq!(numbers(history(4, b"1\t0/100\tx\n")), [2, 3, 4]);
        let asked = numbers(history(u32::MAX, b"1\t0/100\tx\n7\t0/200\ty\n"));
        assert_eq!((asked.len(), &asked[..2]), (STRANGERS as usize + 2, &[7, u32::MAX - STRANGERS][..]));
    }

    #[test]
    fn an_ancestors_file_is_the_beginning_of_its_descendants() {
        let content = b"1\t0/100\tx\n\n2\t0/300\ty 4 z\n\n4\t0/400\tz\n";
        let lines = |tli| lines_before(content, TimelineId::new(tli).unwrap());
        assert_eq!(lines(2), b"1\t0/100\tx\n\n");
        assert_eq!(lines(4), b"1\t0/100\tx\n\n2\t0/300\ty 4 z\n\n");
        assert_eq!(lines(7), content);
    }
}
