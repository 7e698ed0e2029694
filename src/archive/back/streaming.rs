//! A running relay as a source, or any PostgreSQL server: WAL comes by START_REPLICATION.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout_at};
use walrelay_proto::{Lsn, SegSize, ServerMessage, SystemId, TimelineHistory, TimelineId, WalFileName};

use super::source::{FetchError, Fetching, Look, Source, show_whole};
use crate::archive::repo::name::FileName;
use crate::conninfo::ConnInfo;
use crate::pg::{QueryError, ServerError, UpstreamConnection, connect_any};
use crate::pulse::Pulse;

/// Longest wait for a connection, and for the next message of one.
const LIMIT: Duration = Duration::from_secs(30);
/// How often a walsender hears of us while it streams: well below any sensible `wal_sender_timeout`.
const STATUS_EVERY: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(3) };

/// What a relay without WAL answers to `IDENTIFY_SYSTEM` (`cannot_connect_now`); a server that starts does so at the door.
const NO_WAL_YET: &str = "57P03";

/// A relay's setting: the end of what it has received, whether it is synced or not.
const WRITE_LSN: &str = "walrelay.write_lsn";

/// A server that streams WAL. Each question is asked on a connection of its own.
#[derive(Debug)]
pub struct Server {
    name: String,
    info: ConnInfo,
    pulse: Pulse,
    vouch: Option<Vouch>,
}

/// "It is not there" has to be the word of somebody who would know.
#[derive(Clone, Copy, Debug)]
struct Vouch {
    /// The cluster that is asked about, if that is known.
    system_id: Option<SystemId>,
}

/// What came of a question about a segment.
enum Segment {
    Here(Bytes),
    /// It was never there, or not that part of it.
    None,
    /// Only what comes after it is there.
    Removed,
}

/// What a server says of itself.
struct Facts {
    system_id: Option<SystemId>,
    size: SegSize,
    history: TimelineHistory,
    flush_lsn: Lsn,
    /// The end of what it gives: of a relay also what it has not synced yet, and has confirmed to `remote_write`.
    write_lsn: Lsn,
}

/// How far a server is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Its cluster.
    pub system_id: SystemId,
    /// Size of its segments.
    pub seg_size: SegSize,
    /// The way to the timeline that it is on; of a standby, that it replays.
    pub history: TimelineHistory,
    /// End of what it has durably; of a standby, of what it has replayed or received on that timeline.
    pub flush_lsn: Lsn,
    /// End of what it gives; of a relay that may be more than what it has durably.
    pub write_lsn: Lsn,
    /// It says that it is in recovery. A relay does not.
    pub is_standby: bool,
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
        Server { name: format!("server {info}"), info, pulse: Pulse::default(), vouch: None }
    }

    /// Gives no answer where it cannot know: where it has no WAL yet, or that of another cluster than `system_id`, or has
    /// removed what is asked for.
    pub fn vouching(self, system_id: Option<SystemId>) -> Server {
        Server { vouch: Some(Vouch { system_id }), ..self }
    }

    async fn get(&self, file: &str, unfinished: bool) -> Result<Option<Bytes>, FetchError> {
        if file.ends_with(".partial") || file.ends_with(".backup") {
            return Ok(None);
        }
        let mut conn = self.connect().await?;
        self.pulse.beat();
        if let Some(vouch) = self.vouch {
            self.check_whose(&mut conn, vouch).await?;
        }
        let answer = match TimelineId::from_history_file_name(file) {
            Some(tli) => history(&mut conn, tli).await,
            None => match segment(&mut conn, file, unfinished, &self.pulse).await {
                Ok(Segment::Here(bytes)) => Ok(Some(bytes)),
                Ok(Segment::Removed) if self.vouch.is_some() => {
                    return Err(
                        self.unreachable(format!("it has WAL behind \"{file}\", and not that any more"))
                    );
                }
                Ok(Segment::None | Segment::Removed) => Ok(None),
                Err(error) => Err(error),
            },
        };
        match answer {
            // It may have gone over to another timeline meanwhile. That has no SQLSTATE, and words that are translated.
            Err(QueryError::Server(error)) if error.is_internal() => {
                match self.has(file, unfinished).await? {
                    true => Err(self.unreachable(error.to_string())),
                    false => Ok(None),
                }
            }
            Err(error) => Err(self.unreachable(error.to_string())),
            Ok(answer) => {
                conn.close().await;
                Ok(answer)
            }
        }
    }

    /// Whether it is one that would know.
    async fn check_whose(&self, conn: &mut UpstreamConnection, vouch: Vouch) -> Result<(), FetchError> {
        let theirs = whose(conn).await.map_err(|error| self.unreachable(error.to_string()))?;
        self.pulse.beat();
        match (theirs, vouch.system_id) {
            (None, _) => {
                Err(self.unreachable("it has no WAL yet, so it does not know what there was".to_owned()))
            }
            (Some(theirs), Some(ours)) if theirs != Some(ours) => {
                let theirs = theirs.map_or("unknown".to_owned(), |theirs| theirs.to_string());
                Err(self.unreachable(format!(
                    "it is of another cluster: its system identifier is {theirs}, ours is {ours}"
                )))
            }
            _ => Ok(()),
        }
    }

    /// What a relay holds of a segment of a timeline that was left; nothing from anybody else.
    async fn branch(&self, segment: &str) -> Result<Option<Bytes>, FetchError> {
        let mut conn = self.connect().await?;
        self.pulse.beat();
        let branch = branch(&mut conn, segment, &self.pulse).await;
        let branch = branch.map_err(|error| self.unreachable(error.to_string()))?;
        conn.close().await;
        Ok(branch)
    }

    async fn connect(&self) -> Result<UpstreamConnection, FetchError> {
        let connected = connect_any(&self.info, Instant::now() + LIMIT).await;
        connected.map_err(|error| self.unreachable(error.to_string()))
    }

    /// How far it is; `None` if it has no WAL yet.
    pub async fn reach(&self) -> Result<Option<Reach>, FetchError> {
        let mut conn = self.connect().await?;
        let facts = facts(&mut conn).await.map_err(|error| self.unreachable(error.to_string()))?;
        let is_standby = conn.parameter("in_hot_standby") == Some("on");
        conn.close().await;
        let Some(facts) = facts else { return Ok(None) };
        let no_id = || self.unreachable("it does not say whose WAL it has".to_owned());
        let system_id = facts.system_id.ok_or_else(no_id)?;
        let Facts { size: seg_size, history, flush_lsn, write_lsn, .. } = facts;
        Ok(Some(Reach { system_id, seg_size, history, flush_lsn, write_lsn, is_standby }))
    }

    fn unreachable(&self, reason: String) -> FetchError {
        FetchError::Unreachable { place: self.name.clone(), reason }
    }

    /// Whether a segment is the server's to give.
    async fn has(&self, file: &str, unfinished: bool) -> Result<bool, FetchError> {
        let mut conn = self.connect().await?;
        let facts = facts(&mut conn).await.map_err(|error| self.unreachable(error.to_string()))?;
        conn.close().await;
        Ok(facts.is_some_and(|facts| facts.length(file, unfinished).is_some()))
    }

    /// The segment in which the server's WAL ends, and where its timeline begins, if they are later.
    async fn after(&self, segment: &str) -> Result<Vec<FileName>, FetchError> {
        let mut conn = self.connect().await?;
        let facts = facts(&mut conn).await.map_err(|error| self.unreachable(error.to_string()))?;
        conn.close().await;
        let Some(facts) = facts else { return Ok(Vec::new()) };
        let tli = facts.history.tli();
        let newest = WalFileName::new(tli, facts.write_lsn.seg_before(facts.size));
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

    fn show<'a>(&'a self, file: &'a str, _size: u64, look: Look) -> Fetching<'a, bool> {
        Box::pin(show_whole(self.read(file), look))
    }

    fn read_unfinished<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<Bytes>> {
        Box::pin(async move { Ok(self.get(segment, true).await?.into_iter().collect()) })
    }

    fn read_branch<'a>(&'a self, segment: &'a str) -> Fetching<'a, Option<Bytes>> {
        Box::pin(self.branch(segment))
    }

    fn later<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<FileName>> {
        Box::pin(self.after(segment))
    }
}

async fn history(conn: &mut UpstreamConnection, tli: TimelineId) -> Result<Option<Bytes>, QueryError> {
    match conn.query(&format!("TIMELINE_HISTORY {}", tli.as_u32())).await {
        Ok(result) => Ok(result.rows.into_iter().next().and_then(|row| row.into_iter().nth(1)?)),
        Err(QueryError::Server(error)) if error.is_wal_removed() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn segment(
    conn: &mut UpstreamConnection,
    file: &str,
    unfinished: bool,
    pulse: &Pulse,
) -> Result<Segment, QueryError> {
    let Some(facts) = facts(conn).await? else { return Ok(Segment::None) };
    pulse.beat();
    let Some((name, len)) = facts.length(file, unfinished) else { return Ok(Segment::None) };
    let start = name.segno.start(facts.size);
    match stream(conn, start, name.tli, len as usize, pulse).await {
        Err(QueryError::Server(error)) if error.is_wal_removed() => Ok(Segment::Removed),
        other => other.map(Segment::Here),
    }
}

async fn branch(
    conn: &mut UpstreamConnection,
    file: &str,
    pulse: &Pulse,
) -> Result<Option<Bytes>, QueryError> {
    let Some(facts) = facts(conn).await? else { return Ok(None) };
    pulse.beat();
    let Some(name) = WalFileName::parse(file, facts.size) else { return Ok(None) };
    let (start, len) = (name.segno.start(facts.size), facts.size.bytes());
    let mut wal = BytesMut::new();
    while (wal.len() as u64) < len {
        let at = start.advance(wal.len() as u64);
        let rows = match conn.query(&format!("BRANCH_WAL {at} TIMELINE {}", name.tli)).await {
            Ok(result) => result.rows,
            // It has none, or it is no relay.
            Err(QueryError::Server(error)) if error.is_wal_removed() || error.is_unknown_command() => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        pulse.beat();
        let piece = rows.into_iter().next().and_then(|row| row.into_iter().next()?).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        wal.extend_from_slice(&piece);
    }
    wal.truncate(len as usize);
    Ok(Some(wal.freeze()))
}

impl Facts {
    /// The bytes to ask for of a segment: all of a whole one, or what there is. That may be all of it as well: it may have been
    /// finished since it was asked for as a whole one.
    fn length(&self, file: &str, unfinished: bool) -> Option<(WalFileName, u64)> {
        let name = WalFileName::parse(file, self.size)?;
        match (self.part(name), unfinished) {
            (Part::Whole, _) => Some((name, self.size.bytes())),
            (Part::Beginning(len), true) => Some((name, len)),
            _ => None,
        }
    }

    fn part(&self, name: WalFileName) -> Part {
        let (start, end) = (name.segno.start(self.size), name.segno.end(self.size));
        let left_at = match self.history.switch_point(name.tli) {
            Some((left_at, _)) => left_at,
            None if name.tli == self.history.tli() => Lsn::new(u64::MAX),
            None => return Part::Nothing,
        };
        match left_at.min(self.write_lsn) {
            to if to >= end => Part::Whole,
            to if to > start => Part::Beginning(to.since(start)),
            _ => Part::Nothing,
        }
    }
}

/// The cluster that a server has WAL of, if it says so; `None` if it has none yet.
async fn whose(conn: &mut UpstreamConnection) -> Result<Option<Option<SystemId>>, QueryError> {
    let system = match conn.query("IDENTIFY_SYSTEM").await {
        Err(QueryError::Server(error)) if error.sqlstate == NO_WAL_YET => return Ok(None),
        other => other?,
    };
    let id = system.rows.first().and_then(|row| row.first()?.as_deref());
    Ok(Some(id.and_then(|id| String::from_utf8_lossy(id).parse().ok())))
}

/// `None` from a server that has no WAL yet.
async fn facts(conn: &mut UpstreamConnection) -> Result<Option<Facts>, QueryError> {
    let system = match conn.query("IDENTIFY_SYSTEM").await {
        Err(QueryError::Server(error)) if error.sqlstate == NO_WAL_YET => return Ok(None),
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
    let system_id = text(0).parse().ok();
    let write_lsn = written(conn).await?.map_or(flush_lsn, |written| written.max(flush_lsn));
    Ok(Some(Facts { system_id, size, history, flush_lsn, write_lsn }))
}

/// How far a relay has received, synced or not: it gives all of that, and has confirmed it to `remote_write`. `None` if it is no
/// relay, whose `flush_lsn` is all that it gives, or one that does not say.
async fn written(conn: &mut UpstreamConnection) -> Result<Option<Lsn>, QueryError> {
    if !conn.is_a_relays() {
        return Ok(None);
    }
    match conn.query(&format!("SHOW {WRITE_LSN}")).await {
        Ok(shown) => {
            let value = shown.rows.first().and_then(|row| row.first()?.as_deref());
            Ok(value.and_then(|value| String::from_utf8_lossy(value).parse().ok()))
        }
        Err(QueryError::Server(_)) => Ok(None),
        Err(error) => Err(error),
    }
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
    let mut report_at = None;
    while wal.len() < len {
        let (kind, body) = next_message(conn, &mut report_at).await?;
        pulse.beat();
        match kind {
            b'W' => report_at = Some(Instant::now() + STATUS_EVERY),
            b'd' if append(&mut wal, start, &body)? => report_at = Some(Instant::now()),
            b'E' => return Err(QueryError::Server(ServerError::of_message(body))),
            b'c' | b'Z' => return Err(QueryError::Protocol { problem: "stream that ends early".to_owned() }),
            _ => {}
        }
    }
    wal.truncate(len);
    Ok(wal.freeze())
}

/// The next message; a sign of life first, and while it takes long, whenever one is due. It reports no position: what is read
/// here is no standby's, and nobody's commit is to count it as one.
async fn next_message(
    conn: &mut UpstreamConnection,
    report_at: &mut Option<Instant>,
) -> Result<(u8, Bytes), QueryError> {
    let silent_at = Instant::now() + LIMIT;
    loop {
        if report_at.is_some_and(|at| at <= Instant::now()) {
            conn.send_sign_of_life().await?;
            *report_at = Some(Instant::now() + STATUS_EVERY);
        }
        let until = report_at.map_or(silent_at, |at| at.min(silent_at));
        match timeout_at(until, conn.next_message()).await {
            Ok(message) => return message,
            Err(_) if until == silent_at => return Err(QueryError::Io(io::ErrorKind::TimedOut.into())),
            Err(_) => {}
        }
    }
}

/// Takes a message of the stream; whether the server wants to hear of us at once.
fn append(wal: &mut BytesMut, start: Lsn, body: &[u8]) -> Result<bool, QueryError> {
    let bad = |problem: String| QueryError::Protocol { problem };
    let (header, bytes) = match ServerMessage::decode(body).map_err(|error| bad(error.to_string()))? {
        ServerMessage::XLogData(header, bytes) => (header, bytes),
        ServerMessage::Keepalive(keepalive) => return Ok(keepalive.reply_requested),
    };
    let expected = start.advance(wal.len() as u64);
    if header.start != expected {
        return Err(bad(format!("WAL at {}, expected {expected}", header.start)));
    }
    wal.extend_from_slice(bytes);
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use walrelay_proto::{ClientMessage, Keepalive, PgTimestamp, SegNo, StandbyStatusUpdate, XLogDataHeader};

    use crate::conninfo::Environment;

    const MB: u64 = 1 << 20;

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).unwrap();
        [&[kind][..], &len.to_be_bytes(), body].concat()
    }

    /// One row of text, and the end of the answer.
    fn row(values: &[&str]) -> Vec<u8> {
        let count = u16::try_from(values.len()).unwrap().to_be_bytes();
        let columns = [count.to_vec(), vec![0; 19 * values.len()]].concat();
        let value =
            |text: &&str| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
        let values = [count.to_vec(), values.iter().flat_map(value).collect()].concat();
        [frame(b'T', &columns), frame(b'D', &values), frame(b'C', b"SELECT\0"), frame(b'Z', b"I")].concat()
    }

    async fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
        let kind = stream.read_u8().await.unwrap();
        let mut body = vec![0; stream.read_u32().await.unwrap() as usize - 4];
        stream.read_exact(&mut body).await.unwrap();
        (kind, body)
    }

    async fn read_status(stream: &mut TcpStream) -> StandbyStatusUpdate {
        let (kind, body) = read_frame(stream).await;
        assert_eq!(kind, b'd');
        match ClientMessage::decode(&body) {
            Ok(ClientMessage::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    fn wal(start: Lsn, len: usize) -> Vec<u8> {
        let header = XLogDataHeader { start, end: start, send_time: PgTimestamp::from_micros(1) };
        [&header.frame(len as u32)[..], &vec![7; len]].concat()
    }

    async fn welcome(stream: &mut TcpStream) {
        welcome_by(stream, 4711).await;
    }

    /// By a server whose process has this number.
    async fn welcome_by(stream: &mut TcpStream, pid: u32) {
        let len = stream.read_u32().await.unwrap() as usize;
        stream.read_exact(&mut vec![0; len - 4]).await.unwrap();
        let key = [pid.to_be_bytes(), [0; 4]].concat();
        let version = frame(b'S', b"server_version\x0018.1\0");
        let welcome = [frame(b'R', &[0; 4]), version, frame(b'K', &key), frame(b'Z', b"I")];
        stream.write_all(&welcome.concat()).await.unwrap();
    }

    /// What it has confirmed to `remote_write` it has not synced yet, and gives all the same.
    #[tokio::test]
    async fn a_relay_gives_what_it_has_received() {
        let (listener, source) = source().await;
        let begin = Lsn::new(8 * MB);
        let script = async {
            let mut stream = listener.accept().await.unwrap().0;
            welcome_by(&mut stream, (1 << 22) + 1).await;
            answer(&mut stream, &[row(&["77", "1", "0/800000", ""]), row(&["1MB"]), row(&["0/801000"])])
                .await;
            assert_eq!(read_frame(&mut stream).await.0, b'Q');
            let part = [frame(b'W', &[0; 3]), wal(begin, 0x1000)].concat();
            stream.write_all(&part).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        let (found, ()) = tokio::join!(source.read_unfinished("000000010000000000000008"), script);
        assert_eq!(found.unwrap(), [Bytes::from(vec![7; 0x1000])]);
    }

    /// Answers one question after another.
    async fn answer(stream: &mut TcpStream, answers: &[Vec<u8>]) {
        for answer in answers {
            assert_eq!(read_frame(stream).await.0, b'Q');
            stream.write_all(answer).await.unwrap();
        }
    }

    /// A walsender that sends segment 3 of 1 MB, and goes on only when it has heard of its client: asked for, and, as
    /// `wal_sender_timeout` has it, without.
    async fn walsender(mut stream: TcpStream) {
        welcome(&mut stream).await;
        answer(&mut stream, &[row(&["77", "1", "0/800000", ""]), row(&["1MB"])]).await;
        assert_eq!(read_frame(&mut stream).await.0, b'Q');
        stream.write_all(&frame(b'W', &[0; 3])).await.unwrap();
        let (start, half) = (Lsn::new(3 * MB), MB as usize / 2);
        let end = Lsn::new(8 * MB);
        let keepalive = Keepalive { end, send_time: PgTimestamp::from_micros(1), reply_requested: true };
        stream.write_all(&keepalive.frame()).await.unwrap();
        read_status(&mut stream).await;
        stream.write_all(&wal(start, half)).await.unwrap();
        let middle = start.advance(half as u64);
        // Asked for nothing, and it reports nothing.
        for _ in 0..2 {
            let status = read_status(&mut stream).await;
            assert_eq!((status.write, status.flush, status.apply), (None, None, None));
        }
        stream.write_all(&wal(middle, half)).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }

    /// Where to listen, and a source that asks there.
    async fn source() -> (TcpListener, Server) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let environment = Environment::of_user("rep").with("HOME", "/nonexistent");
        let info = format!("host=127.0.0.1 port={port} user=rep sslmode=disable");
        (listener, Server::new(ConnInfo::parse(&info, &environment).unwrap()))
    }

    /// The error is the same when nobody knows why, and its words are anybody's.
    #[tokio::test]
    async fn what_a_server_has_left_meanwhile_is_missing_there_in_whatever_language() {
        let first = [row(&["77", "1", "0/800000", ""]), row(&["1MB"])];
        let history = row(&["00000002.history", "1\t0/280000\tx\n"]);
        let left = vec![row(&["77", "2", "0/800000", ""]), history, row(&["1MB"])];
        let message =
            "angeforderter Startpunkt 0/300000 auf Zeitleiste 1 ist nicht in der History dieses Servers";
        let error = format!("SFEHLER\0VERROR\0CXX000\0M{message}\0\0");
        let refusal = [frame(b'E', error.as_bytes()), frame(b'Z', b"I")].concat();
        for (then, is_missing) in [(left, true), (first.to_vec(), false)] {
            let (listener, source) = source().await;
            let script = async {
                for answers in [[&first[..], std::slice::from_ref(&refusal)].concat(), then] {
                    let mut stream = listener.accept().await.unwrap().0;
                    welcome(&mut stream).await;
                    answer(&mut stream, &answers).await;
                }
            };
            let (found, ()) = tokio::join!(source.read("000000010000000000000003"), script);
            match found {
                Ok(None) => assert!(is_missing),
                other => assert!(!is_missing && other.unwrap_err().to_string().contains(message)),
            }
        }
    }

    /// Who has to be asked before a standby is told that there is nothing has to be somebody who knows.
    #[tokio::test]
    async fn who_does_not_know_has_not_answered() {
        let error = |sqlstate: &str| {
            let error = format!("SERROR\0VERROR\0C{sqlstate}\0Mno\0\0");
            [frame(b'E', error.as_bytes()), frame(b'Z', b"I")].concat()
        };
        let identity = row(&["77", "1", "0/800000", ""]);
        let removed = [identity.clone(), row(&["1MB"]), error("58P01")];
        for (before, answers, expected) in [
            (vec![error("57P03")], vec![error("57P03")], "it has no WAL yet"),
            (
                vec![row(&["78", "1", "0/800000", ""])],
                removed.to_vec(),
                "its system identifier is 78, ours is 77",
            ),
            (vec![identity], removed.to_vec(), "it has WAL behind"),
        ] {
            let (listener, source) = source().await;
            let knowing = source.vouching(Some(SystemId(77)));
            let script = async {
                let mut stream = listener.accept().await.unwrap().0;
                welcome(&mut stream).await;
                let _ = script(&mut stream, &[before, answers.clone()].concat()).await;
            };
            let (found, ()) = tokio::join!(knowing.read("000000010000000000000003"), script);
            let Err(error @ FetchError::Unreachable { .. }) = found else { panic!("{found:?}") };
            assert!(error.to_string().contains(expected), "{error}");
            // Who is no standby, or a soft one, takes it for nothing.
            let (listener, source) = self::source().await;
            let script = async {
                let mut stream = listener.accept().await.unwrap().0;
                welcome(&mut stream).await;
                answer(&mut stream, &answers).await;
            };
            let (found, ()) = tokio::join!(source.read("000000010000000000000003"), script);
            assert_eq!(found, Ok(None), "{expected}");
        }
    }

    /// Answers as long as somebody asks.
    async fn script(stream: &mut TcpStream, answers: &[Vec<u8>]) -> io::Result<()> {
        for answer in answers {
            let kind = stream.read_u8().await?;
            let mut body = vec![0; stream.read_u32().await? as usize - 4];
            stream.read_exact(&mut body).await?;
            assert!(matches!(kind, b'Q' | b'X'), "{kind}");
            stream.write_all(answer).await?;
        }
        Ok(())
    }

    /// It was not whole yet when it was asked for as a whole one.
    #[tokio::test]
    async fn a_segment_that_was_finished_meanwhile_is_given_as_what_there_is_of_it() {
        let facts = Facts {
            system_id: None,
            size: SegSize::new(MB).unwrap(),
            history: TimelineHistory::first(),
            flush_lsn: Lsn::new(4 * MB + 100),
            write_lsn: Lsn::new(4 * MB + 100),
        };
        let len = |file: &str, unfinished| facts.length(file, unfinished).map(|(_, len)| len);
        assert_eq!(len("000000010000000000000003", true), Some(MB));
        assert_eq!(len("000000010000000000000003", false), Some(MB));
        assert_eq!(
            (len("000000010000000000000004", true), len("000000010000000000000004", false)),
            (Some(100), None)
        );
        assert_eq!(len("000000010000000000000005", true), None);
    }

    #[tokio::test]
    async fn a_walsender_hears_of_us_while_it_streams() {
        let (listener, source) = source().await;
        let server = tokio::spawn(async move { walsender(listener.accept().await.unwrap().0).await });
        let segment = source.read("000000010000000000000003").await.unwrap().unwrap();
        assert!(segment.len() as u64 == MB && segment.iter().all(|&byte| byte == 7));
        server.await.unwrap();
    }

    #[test]
    fn a_server_has_what_lies_on_its_way_and_it_has_received() {
        let tli = |number| TimelineId::new(number).unwrap();
        let facts = Facts {
            system_id: None,
            size: SegSize::new(MB).unwrap(),
            history: TimelineHistory::parse(tli(3), b"1\t0/380000\tx\n").unwrap(),
            flush_lsn: Lsn::new(5 * MB + 100),
            write_lsn: Lsn::new(6 * MB + 100),
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
