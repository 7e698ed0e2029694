//! The receive loop against scripted walsenders.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use walrelay_proto::ack::Positions;
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::receiver::ReceiverError;
use walrelay_proto::{
    ClientMessage, FullXid, Keepalive, Lsn, PgTimestamp, SegSize, StandbyStatusUpdate, SystemId,
    TimelineHistory, TimelineId, WalIdentity, XLogDataHeader,
};

use crate::consumers::ConsumerIdentity;
use crate::pg::{Stream, UpstreamConnection};
use crate::store::{
    AppendError, Background, FeedbackHorizon, Identity, Store, StoreConfig, UpstreamParameters, WalWrite,
    Writer,
};
use crate::upstream::board::Board;
use crate::upstream::receive::{ReceiveContext, ReceiveError, StreamEnd, receive};

const SEG: u64 = 1 << 20;
const START: Lsn = Lsn::new(3 * SEG);
const DEADLINE: Duration = Duration::from_secs(20);

/// A relay's upper half, in COPY BOTH with a walsender that the test plays.
struct Setup {
    store: Arc<Store>,
    writer: Writer,
    conn: UpstreamConnection,
    server: Walsender,
    wal: WalGenerator,
    stop: CancellationToken,
    timeout: Option<Duration>,
    _background: Background,
    _dir: tempfile::TempDir,
}

struct Walsender {
    socket: UnixStream,
    input: BytesMut,
}

fn zero_time() -> PgTimestamp {
    PgTimestamp::from_system_time(std::time::SystemTime::UNIX_EPOCH)
}

impl Setup {
    fn new() -> Setup {
        let dir = crate::permissions::private_tempdir();
        let (store, writer) = open(dir.path());
        let (store, background) = store;
        let (client, server) = UnixStream::pair().unwrap();
        let id = WalIdentity { system_id: SystemId(9), seg_size: SegSize::new(SEG).unwrap() };
        Setup {
            store,
            writer,
            conn: UpstreamConnection {
                stream: Stream::Unix(client),
                buffer: BytesMut::new(),
                parameters: Vec::new(),
                notices: Vec::new(),
                backend_pid: None,
                cancel_key: bytes::Bytes::new(),
                busy: true,
            },
            server: Walsender { socket: server, input: BytesMut::new() },
            wal: WalGenerator::new(id, TimelineId::FIRST, START, 1),
            stop: CancellationToken::new(),
            timeout: Some(Duration::from_secs(60)),
            _background: background,
            _dir: dir,
        }
    }

    /// Receives while the other side is played; what both have come to.
    async fn play<T>(
        &mut self,
        script: impl AsyncFnOnce(&mut Walsender, &mut WalGenerator) -> T,
    ) -> (Result<StreamEnd, ReceiveError>, T) {
        let cx = ReceiveContext {
            wal_receiver_timeout: self.timeout,
            stop: &self.stop,
            server: "upstream",
            board: &Board::default(),
            announcement: "started streaming",
        };
        let receiving = receive(&mut self.conn, &mut self.writer, &cx, None);
        let playing = script(&mut self.server, &mut self.wal);
        tokio::time::timeout(DEADLINE, async { tokio::join!(receiving, playing) }).await.expect("an end")
    }
}

fn open(dir: &Path) -> ((Arc<Store>, Background), Writer) {
    let config = StoreConfig {
        data_dir: dir.to_owned(),
        wal_write: WalWrite::Pwrite,
        wal_keep_size: 1 << 30,
        max_slot_wal_keep_size: None,
        max_replication_slots: 4,
    };
    let (store, mut writer, background) = Store::open(config).unwrap();
    let identity = Identity { system_id: SystemId(9), seg_size: SegSize::new(SEG).unwrap() };
    store.attach(identity, UpstreamParameters::default()).unwrap();
    writer.begin(identity, TimelineHistory::first(), START);
    ((store, background), writer)
}

impl Walsender {
    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    async fn wal(&mut self, at: Lsn, wal: &[u8]) {
        let header = XLogDataHeader { start: at, end: at.advance(wal.len() as u64), send_time: zero_time() };
        self.send(&header.frame(wal.len() as u32)).await;
        self.send(wal).await;
    }

    async fn keepalive(&mut self, end: Lsn, reply_requested: bool) {
        self.send(&Keepalive { end, send_time: zero_time(), reply_requested }.frame()).await;
    }

    /// The next message of the relay; `None` at the end.
    async fn next(&mut self) -> Option<(u8, BytesMut)> {
        loop {
            if let Some(word) = self.input.get(1..5) {
                let len = u32::from_be_bytes(word.try_into().unwrap()) as usize;
                if self.input.len() > len {
                    let mut frame = self.input.split_to(1 + len);
                    let body = frame.split_off(5);
                    return Some((frame[0], body));
                }
            }
            let read = tokio::time::timeout(DEADLINE, self.socket.read_buf(&mut self.input));
            if read.await.expect("a message").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn status(&mut self) -> Option<StandbyStatusUpdate> {
        loop {
            match self.next().await? {
                (b'd', body) => match ClientMessage::decode(&body).unwrap() {
                    ClientMessage::Status(status) => return Some(status),
                    ClientMessage::Feedback(_) => {}
                },
                (kind, _) => panic!("{}", kind.escape_ascii()),
            }
        }
    }

    async fn until_flushed(&mut self, end: Lsn) {
        while self.status().await.expect("a status update").flush != Some(end) {}
    }
}

#[tokio::test]
async fn wal_is_stored_and_confirmed_however_it_is_cut() {
    for (message, piece) in [(131_072, 131_072), (131_072, 777), (3_000_000, 65_536), (100, 4096)] {
        let mut setup = Setup::new();
        let (end, ()) = setup
            .play(async |server, wal| {
                wal.fill(1_200_000);
                let mut stream = Vec::new();
                for (index, part) in wal.bytes().chunks(message).enumerate() {
                    let start = START.advance((index * message) as u64);
                    let header = XLogDataHeader { start, end: start, send_time: zero_time() };
                    stream.extend(header.frame(part.len() as u32));
                    stream.extend(part);
                }
                let end = *wal.record_ends().last().unwrap();
                let (reader, mut writer) = server.socket.split();
                let mut discard = BytesMut::new();
                for piece in stream.chunks(piece) {
                    writer.write_all(piece).await.unwrap();
                    let _ = reader.try_read_buf(&mut discard);
                }
                server.keepalive(end, true).await;
                server.input.clear();
                // Statuses may have been cut by the discarding above: the last words of the relay tell.
                server.send(b"C\0\0\0\x0bCOPY 0\0").await;
            })
            .await;
        assert_eq!(end.unwrap(), StreamEnd::ServerStopped);
        let end = *setup.wal.record_ends().last().unwrap();
        assert_eq!(setup.store.tip().unwrap().write_lsn, end, "{message} in pieces of {piece}");
    }
}

/// Type and length alone do not say whether a long message is WAL.
#[tokio::test]
async fn a_long_message_of_which_only_the_first_bytes_have_come_is_waited_for() {
    let mut setup = Setup::new();
    setup.wal.fill(100_000);
    let wal = setup.wal.bytes();
    let header = XLogDataHeader { start: START, end: START, send_time: zero_time() };
    let stream = [&header.frame(wal.len() as u32)[..], wal].concat();
    // They came together with the answer to START_REPLICATION.
    setup.conn.buffer.extend_from_slice(&stream[..5]);
    let (end, ()) = setup
        .play(async |server, wal| {
            server.send(&stream[5..]).await;
            server.until_flushed(wal.position()).await;
            server.send(b"C\0\0\0\x0bCOPY 0\0").await;
        })
        .await;
    assert_eq!(end.unwrap(), StreamEnd::ServerStopped);
}

#[tokio::test]
async fn what_is_synced_is_confirmed_and_questions_are_answered() {
    let mut setup = Setup::new();
    let (end, ()) = setup
        .play(async |server, wal| {
            // Nothing has come: what lies before the start is not ours.
            let status = server.status().await.unwrap();
            assert_eq!((status.write, status.flush, status.apply), (Some(START), Some(START), None));
            for len in [100, 5000, 40_000] {
                let at = wal.position();
                wal.record(len);
                server.wal(at, &wal.take()).await;
                server.until_flushed(wal.position()).await;
                server.keepalive(wal.position(), true).await;
                let status = server.status().await.unwrap();
                let end = Some(wal.position());
                assert_eq!((status.write, status.flush, status.apply), (end, end, None));
            }
            // With nothing to do it speaks all the same.
            for _ in 0..3 {
                assert_eq!(server.status().await.unwrap().flush, Some(wal.position()));
            }
            server.send(b"C\0\0\0\x0bCOPY 0\0").await;
        })
        .await;
    assert_eq!(end.unwrap(), StreamEnd::ServerStopped);
}

#[tokio::test]
async fn bad_wal_is_refused_never_confirmed_and_taken_when_it_comes_right() {
    let mut setup = Setup::new();
    let (end, good) = setup
        .play(async |server, wal| {
            wal.fill(20_000);
            let good = *wal.record_ends().last().unwrap();
            wal.record(50_000);
            let mut bad = wal.bytes().to_vec();
            let at = bad.len() - 1000;
            bad[at] ^= 0x10;
            server.wal(START, &bad).await;
            // It is told what is good, and nothing beyond, until it hangs up.
            good
        })
        .await;
    let ReceiveError::Append(AppendError::Bad(error)) = end.unwrap_err() else { panic!() };
    assert_eq!(error.lsn(), setup.wal.last_record());
    assert_eq!(setup.store.tip().unwrap().write_lsn, good);
    setup.writer.rewind();
    let position = setup.writer.position().unwrap().lsn;
    assert_eq!(position, good);
    let (_, ()) = setup
        .play(async |server, wal| {
            server.wal(good, &wal.bytes()[good.since(START) as usize..]).await;
            server.until_flushed(wal.position()).await;
            server.send(b"C\0\0\0\x0bCOPY 0\0").await;
        })
        .await;
}

#[tokio::test]
async fn the_end_of_a_timeline_is_taken_with_its_successor() {
    let mut setup = Setup::new();
    let (end, ()) = setup
        .play(async |server, wal| {
            wal.fill(5000);
            server.wal(START, wal.bytes()).await;
            server.send(b"c\0\0\0\x04").await;
            server.keepalive(wal.position(), false).await;
            while server.next().await.unwrap().0 != b'c' {}
            let row = b"D\0\0\0\x17\0\x02\0\0\0\x012\0\0\0\x080/D00170";
            server.send(row).await;
            server.send(b"C\0\0\0\x04").await;
            server.send(b"Z\0\0\0\x05I").await;
        })
        .await;
    let next = Some((TimelineId::new(2).unwrap(), "0/D00170".parse().unwrap()));
    assert_eq!(end.unwrap(), StreamEnd::Timeline { next });
}

#[tokio::test]
async fn a_server_that_stops_inside_a_record_is_let_go() {
    let mut setup = Setup::new();
    let (end, ()) = setup
        .play(async |server, wal| {
            wal.fill(5000);
            let good = *wal.record_ends().last().unwrap();
            wal.record(30_000);
            let half = &wal.bytes()[..16_384];
            server.wal(START, half).await;
            server.until_flushed(good).await;
            loop {
                server.keepalive(START.advance(16_384), true).await;
                let (kind, body) = server.next().await.unwrap();
                if kind == b'c' {
                    return;
                }
                if let ClientMessage::Status(status) = ClientMessage::decode(&body).unwrap() {
                    assert_eq!(status.flush, Some(good), "half a record is not confirmed");
                }
            }
        })
        .await;
    assert_eq!(end.unwrap(), StreamEnd::ServerStopped);
}

#[tokio::test]
async fn a_silent_server_is_asked_and_given_up() {
    let mut setup = Setup::new();
    setup.timeout = Some(Duration::from_millis(600));
    let (end, asked) = setup
        .play(async |server, _| {
            let mut asked = 0;
            // It hangs up by dropping the connection later; the last question is the sign.
            while asked == 0 {
                asked += i32::from(server.status().await.unwrap().reply_requested);
            }
            asked
        })
        .await;
    assert!(matches!(end, Err(ReceiveError::Stream(ReceiverError::Timeout))));
    assert_eq!(asked, 1);
}

/// As after a SIGSTOP, or a disk that took long: the thread was held up for longer than the timeout.
#[tokio::test]
async fn what_came_while_we_were_held_up_is_read_before_the_server_is_given_up() {
    let mut setup = Setup::new();
    setup.timeout = Some(Duration::from_millis(500));
    let (end, ()) = setup
        .play(async |server, wal| {
            for _ in 0..3 {
                // Everything stands still, the timers go on.
                std::thread::sleep(Duration::from_millis(600));
                server.keepalive(wal.position(), false).await;
                while !matches!(server.next().await, Some((b'd', body)) if body[0] == b'r') {}
            }
            server.send(b"C\0\0\0\x0bCOPY 0\0").await;
        })
        .await;
    assert_eq!(end.unwrap(), StreamEnd::ServerStopped);
}

#[tokio::test]
async fn stopping_confirms_everything_and_says_goodbye() {
    let mut setup = Setup::new();
    let stop = setup.stop.clone();
    let (end, ()) = setup
        .play(async |server, wal| {
            wal.fill(300_000);
            server.wal(START, wal.bytes()).await;
            while server.status().await.unwrap().write != Some(wal.position()) {}
            stop.cancel();
            let mut last = None;
            while let Some((kind, body)) = server.next().await {
                match kind {
                    b'd' => last = ClientMessage::decode(&body).ok(),
                    other => assert_eq!(other, b'X'),
                }
            }
            let Some(ClientMessage::Status(status)) = last else { panic!("{last:?}") };
            assert_eq!(status.flush, Some(wal.position()));
        })
        .await;
    assert_eq!(end.unwrap(), StreamEnd::Stopped);
}

/// Each of many reports is waited for on its own: they would take the longest if they were looked for now and then.
#[tokio::test]
async fn what_consumers_have_applied_is_reported_at_once() {
    let mut setup = Setup::new();
    let consumers = setup.store.consumers().clone();
    let identity = ConsumerIdentity {
        pid: 1,
        user: "u".into(),
        application_name: "s".into(),
        client_addr: None,
        backend_start: crate::moment::Past::now(),
    };
    let _consumer = consumers.register(identity);
    let apply = |at: Lsn| Positions { write: None, flush: None, apply: Some(at) };
    let (end, lasted) = setup
        .play(async |server, wal| {
            wal.fill(100_000);
            server.wal(START, wal.bytes()).await;
            let ends = wal.record_ends().to_vec();
            server.until_flushed(*ends.last().unwrap()).await;
            let began = std::time::Instant::now();
            for at in ends.iter().step_by(ends.len().div_ceil(100)) {
                consumers.acknowledgements().report(1, || Some(apply(*at)));
                while server.status().await.expect("a status update").apply != Some(*at) {}
            }
            let lasted = began.elapsed() / u32::try_from(ends.len().min(100)).unwrap();
            server.send(b"C\0\0\0\x0bCOPY 0\0").await;
            lasted
        })
        .await;
    assert_eq!(end.unwrap(), StreamEnd::ServerStopped);
    assert!(lasted < Duration::from_millis(80), "{lasted:?} for each");
}

/// PostgreSQL's slot would ignore it otherwise (`PhysicalReplicationSlotNewXmin`).
#[tokio::test]
async fn a_horizon_that_falls_is_said_after_none() {
    let mut setup = Setup::new();
    let consumers = setup.store.consumers().clone();
    let identity = ConsumerIdentity {
        pid: 1,
        user: "u".into(),
        application_name: String::new(),
        client_addr: None,
        backend_start: crate::moment::Past::now(),
    };
    let consumer = consumers.register(identity);
    let ask = |xmin| {
        let feedback = FeedbackHorizon { xmin: FullXid::new(0, xmin), catalog_xmin: None };
        consumers.set_feedback(&consumer, feedback);
    };
    // One connection after another: the server's slot remembers; what it may hold of another life goes first.
    for (asked, expected) in [(500, [0, 500].as_slice()), (300, &[0, 300]), (300, &[300]), (400, &[400])] {
        ask(asked);
        let mut heard = Vec::new();
        let (end, ()) = setup
            .play(async |server, _| {
                while heard.last() != Some(&asked) {
                    if let Some((b'd', body)) = server.next().await
                        && let ClientMessage::Feedback(feedback) = ClientMessage::decode(&body).unwrap()
                    {
                        heard.push(feedback.xmin.map_or(0, |id| id.xid));
                    }
                }
                server.send(b"C\0\0\0\x0bCOPY 0\0").await;
            })
            .await;
        assert_eq!(end.unwrap(), StreamEnd::ServerStopped);
        assert_eq!(heard, expected, "for {asked}");
    }
}

#[tokio::test]
async fn errors_of_the_server_are_passed_on() {
    let mut setup = Setup::new();
    let (end, ()) = setup
        .play(async |server, _| {
            let text = b"SERROR\0VERROR\0C58P01\0Mrequested WAL segment X has already been removed\0\0";
            let len = (text.len() as u32 + 4).to_be_bytes();
            server.send(&[b"E", &len[..], text].concat()).await;
        })
        .await;
    let Setup { conn, mut server, .. } = setup;
    drop(conn);
    while let Some((kind, body)) = server.next().await {
        assert!(kind != b'd' || body[0] != b'r', "a report would move the slot to WAL that is gone");
    }
    let text = end.unwrap_err().to_string();
    assert!(text.contains("requested WAL segment X has already been removed"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the peer sends, the loop ends with a result and the store stays as it was.
    #[test]
    fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), framed: bool) {
        if framed {
            let len = (bytes.len() as u32 + 4).to_be_bytes();
            bytes = [&b"d"[..], &len, &bytes].concat();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut setup = Setup::new();
            let (_, ()) = setup.play(async |server, _| {
                server.send(&bytes).await;
                server.socket.shutdown().await.unwrap();
            }).await;
            assert_eq!(setup.store.tip(), None);
        });
    }
}
