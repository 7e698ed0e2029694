//! A running relay as a source, or any PostgreSQL server: WAL comes by START_REPLICATION.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout};
use walrelay_proto::{Lsn, SegSize, ServerMessage, TimelineHistory, TimelineId, WalFileName};

use super::name::FileName;
use super::source::{FetchError, Fetching, Source};
use crate::conninfo::ConnInfo;
use crate::pulse::Pulse;
use crate::upstream::{QueryError, ServerError, UpstreamConnection, connect_any};

/// Longest wait for a connection, and for the next message of one.
const LIMIT: Duration = Duration::from_secs(30);

/// A server that streams WAL. Each question is asked on a connection of its own.
#[derive(Debug)]
pub struct Server {
    name: String,
    info: ConnInfo,
    pulse: Pulse,
}

/// What a server says of itself.
struct Facts {
    size: SegSize,
    history: TimelineHistory,
    flush_lsn: Lsn,
}

/// Which part of a segment is the server's to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Nothing,
    /// Bytes from the start of a segment that is not finished on its timeline.
    Beginning(u64),
    Whole,
}

impl Server {
    /// The server that a connection string leads to.
    pub fn new(info: ConnInfo) -> Server {
        Server { name: format!("server {info}"), info, pulse: Pulse::default() }
    }

    async fn get(&self, file: &str, unfinished: bool) -> Result<Option<Bytes>, FetchError> {
        let unreachable = |reason: String| FetchError::Unreachable { place: self.name.clone(), reason };
        if file.ends_with(".partial") || file.ends_with(".backup") {
            return Ok(None);
        }
        let mut conn = connect_any(&self.info, Instant::now() + LIMIT)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        self.pulse.beat();
        let answer = match TimelineId::from_history_file_name(file) {
            Some(tli) => history(&mut conn, tli).await,
            None => segment(&mut conn, file, unfinished, &self.pulse).await,
        };
        let answer = answer.map_err(|error| unreachable(error.to_string()))?;
        conn.close().await;
        Ok(answer)
    }
}

impl Server {
    /// The segment in which the server's WAL ends, and where its timeline begins, if they are later.
    async fn after(&self, segment: &str) -> Result<Vec<FileName>, FetchError> {
        let unreachable = |reason: String| FetchError::Unreachable { place: self.name.clone(), reason };
        let mut conn = connect_any(&self.info, Instant::now() + LIMIT)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let facts = facts(&mut conn).await.map_err(|error| unreachable(error.to_string()))?;
        conn.close().await;
        let Some(facts) = facts else { return Ok(Vec::new()) };
        let tli = facts.history.tli();
        let newest = WalFileName::new(tli, facts.flush_lsn.seg_before(facts.size));
        let history = (tli != TimelineId::FIRST).then(|| FileName::history(tli));
        let known = history.into_iter().chain([FileName::segment(newest, facts.size)]);
        Ok(known.filter(|file| file.as_str() > segment).collect())
    }
}

impl Source for Server {
    fn name(&self) -> &str {
        &self.name
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn read<'a>(&'a self, file: &'a str) -> Fetching<'a, Option<Bytes>> {
        Box::pin(self.get(file, false))
    }

    fn read_unfinished<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<Bytes>> {
        Box::pin(async move { Ok(self.get(segment, true).await?.into_iter().collect()) })
    }

    fn later<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<FileName>> {
        Box::pin(self.after(segment))
    }
}

async fn history(conn: &mut UpstreamConnection, tli: TimelineId) -> Result<Option<Bytes>, QueryError> {
    match conn.query(&format!("TIMELINE_HISTORY {}", tli.as_u32())).await {
        Ok(result) => Ok(result.rows.into_iter().next().and_then(|row| row.into_iter().nth(1)?)),
        Err(QueryError::Server(error)) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn segment(
    conn: &mut UpstreamConnection,
    file: &str,
    unfinished: bool,
    pulse: &Pulse,
) -> Result<Option<Bytes>, QueryError> {
    let Some(facts) = facts(conn).await? else { return Ok(None) };
    pulse.beat();
    let Some(name) = WalFileName::parse(file, facts.size) else { return Ok(None) };
    let len = match (facts.part(name), unfinished) {
        (Part::Whole, false) => facts.size.bytes(),
        (Part::Beginning(len), true) => len,
        _ => return Ok(None),
    };
    let start = name.segno.start(facts.size);
    match stream(conn, start, name.tli, len as usize, pulse).await {
        Err(QueryError::Server(error)) if is_missing(&error) => Ok(None),
        other => other.map(Some),
    }
}

impl Facts {
    fn part(&self, name: WalFileName) -> Part {
        let (start, end) = (name.segno.start(self.size), name.segno.end(self.size));
        let left_at = match self.history.switch_point(name.tli) {
            Some((left_at, _)) => left_at,
            None if name.tli == self.history.tli() => Lsn::new(u64::MAX),
            None => return Part::Nothing,
        };
        match left_at.min(self.flush_lsn) {
            to if to >= end => Part::Whole,
            to if to > start => Part::Beginning(to.since(start)),
            _ => Part::Nothing,
        }
    }
}

/// `None` from a server that has no WAL yet.
async fn facts(conn: &mut UpstreamConnection) -> Result<Option<Facts>, QueryError> {
    let system = match conn.query("IDENTIFY_SYSTEM").await {
        Err(QueryError::Server(error)) if error.sqlstate == "57P03" => return Ok(None),
        other => other?,
    };
    let text = |column: usize| {
        let value = system.rows.first().and_then(|row| row.get(column)?.as_deref());
        value.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    };
    let bad =
        |what: &str| QueryError::Protocol { problem: format!("{what} in the answer to IDENTIFY_SYSTEM") };
    let tli = text(1).parse().ok().and_then(TimelineId::new).ok_or_else(|| bad("no timeline"))?;
    let flush_lsn = text(2).parse().map_err(|_| bad("no position"))?;
    let history = match tli {
        TimelineId::FIRST => TimelineHistory::first(),
        tli => {
            let content = history(conn, tli).await?.ok_or_else(|| bad("a timeline without a history"))?;
            TimelineHistory::parse(tli, &content).map_err(|_| bad("a timeline with a bad history"))?
        }
    };
    let shown = conn.query("SHOW wal_segment_size").await?;
    let shown = shown.rows.first().and_then(|row| row.first()?.as_deref());
    let size = SegSize::from_show(&String::from_utf8_lossy(shown.unwrap_or_default()));
    let size = size.map_err(|error| QueryError::Protocol { problem: error.to_string() })?;
    Ok(Some(Facts { size, history, flush_lsn }))
}

/// Takes `len` bytes from `start` on. The connection is of no more use then.
async fn stream(
    conn: &mut UpstreamConnection,
    start: Lsn,
    tli: TimelineId,
    len: usize,
    pulse: &Pulse,
) -> Result<Bytes, QueryError> {
    conn.send_query(&format!("START_REPLICATION PHYSICAL {start} TIMELINE {tli}")).await?;
    let mut wal = BytesMut::with_capacity(len);
    while wal.len() < len {
        let message = timeout(LIMIT, conn.next_message()).await;
        let (kind, body) = message.map_err(|_| QueryError::Io(io::ErrorKind::TimedOut.into()))??;
        pulse.beat();
        match kind {
            b'd' => append(&mut wal, start, &body)?,
            b'E' => return Err(QueryError::Server(ServerError::of_message(body))),
            b'c' | b'Z' => return Err(QueryError::Protocol { problem: "stream that ends early".to_owned() }),
            _ => {}
        }
    }
    wal.truncate(len);
    Ok(wal.freeze())
}

fn append(wal: &mut BytesMut, start: Lsn, body: &[u8]) -> Result<(), QueryError> {
    let bad = |problem: String| QueryError::Protocol { problem };
    let message = ServerMessage::decode(body).map_err(|error| bad(error.to_string()))?;
    let ServerMessage::XLogData(header, bytes) = message else { return Ok(()) };
    let expected = start.advance(wal.len() as u64);
    if header.start != expected {
        return Err(bad(format!("WAL at {}, expected {expected}", header.start)));
    }
    wal.extend_from_slice(bytes);
    Ok(())
}

fn is_missing(error: &ServerError) -> bool {
    error.is_wal_removed() || error.is_not_in_history()
}

#[cfg(test)]
mod tests {
    use super::*;
    use walrelay_proto::SegNo;

    const MB: u64 = 1 << 20;

    #[test]
    fn a_server_has_what_lies_on_its_way_and_is_durable() {
        let tli = |number| TimelineId::new(number).unwrap();
        let facts = Facts {
            size: SegSize::new(MB).unwrap(),
            history: TimelineHistory::parse(tli(3), b"1\t0/380000\tx\n").unwrap(),
            flush_lsn: Lsn::new(6 * MB + 100),
        };
        let part = |timeline, segno| facts.part(WalFileName::new(tli(timeline), SegNo::new(segno)));
        assert_eq!(part(1, 2), Part::Whole);
        assert_eq!(part(1, 3), Part::Beginning(MB / 2));
        assert_eq!(part(1, 4), Part::Nothing);
        assert_eq!(part(2, 3), Part::Nothing);
        assert_eq!(part(3, 3), Part::Whole);
        assert_eq!(part(3, 5), Part::Whole);
        assert_eq!(part(3, 6), Part::Beginning(100));
        assert_eq!(part(3, 7), Part::Nothing);
    }
}
