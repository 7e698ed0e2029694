//! Live WAL is sent where it is published, and by the walsender where that cannot be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use walrelay_proto::sender::{Input, Output, Request, Sender, Settings, Wal};
use walrelay_proto::{Lsn, PgTimestamp, SegSize, TimelineId};

use super::kit::*;
use crate::consumers::{ConsumerIdentity, ConsumerState};
use crate::downstream::live::{Hand, Line, Live};
use crate::store::{Audience, TimelinePosition};
use crate::wire::Socket;

/// Whether something has come, without the runtime having run since.
fn has_come(socket: &TcpStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    recv(socket, &mut [0; 1], flags).is_ok_and(|(read, _)| read > 0)
}

async fn streaming(relay: &Relay) -> Client<TcpStream> {
    let mut client = relay.session().await;
    let end = relay.store.tip().unwrap().write_lsn;
    client.start(&format!("{end} TIMELINE 1")).await;
    client
}

/// Until the relay sends by whoever publishes: one thread, so nobody else can have.
async fn until_served_at_once(relay: &mut Relay, client: &mut Client<TcpStream>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "nothing is sent where it is published");
        let before = relay.store.tip().unwrap().write_lsn;
        let bytes = relay.receive(|wal| _ = wal.record(100));
        let at_once = client.buffer.is_empty() && has_come(&client.socket);
        assert_eq!(client.wal().await, (before, bytes));
        if at_once {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Reads up to the end of what is published; there is something to read.
async fn catch_up(relay: &Relay, client: &mut Client<TcpStream>) {
    let end = relay.store.tip().unwrap().write_lsn;
    loop {
        let (start, wal) = client.wal().await;
        if start.advance(wal.len() as u64) == end {
            return;
        }
    }
}

#[tokio::test]
async fn who_waits_is_sent_what_is_new_before_it_wakes() {
    let mut relay = Relay::start().await;
    let mut client = streaming(&relay).await;
    until_served_at_once(&mut relay, &mut client).await;
    // What was sent beside it counts like anything else.
    let end = relay.store.tip().unwrap().write_lsn;
    client.status(end.as_u64(), end.as_u64(), true).await;
    assert_eq!(client.keepalive().await, (end, false));
    let shown = relay.store.consumers().list();
    let streams = |it: &crate::consumers::ConsumerStatus| {
        it.sent_lsn == Some(end) && it.flush_lsn == Some(end) && it.state == ConsumerState::Streaming
    };
    assert!(shown.iter().any(streams), "{shown:?}");
}

#[tokio::test]
async fn much_at_once_and_another_timeline_are_left_to_the_walsender() {
    let mut relay = Relay::start().await;
    let mut client = streaming(&relay).await;
    until_served_at_once(&mut relay, &mut client).await;
    let before = relay.store.tip().unwrap().write_lsn;
    let bytes = relay.receive(|wal| wal.fill(100_000));
    assert!(!has_come(&client.socket), "more than whoever publishes has time for");
    let mut received = Vec::new();
    while received.len() < bytes.len() {
        received.extend(client.wal().await.1);
    }
    assert!(received == bytes);
    until_served_at_once(&mut relay, &mut client).await;
    let end = relay.switch_timeline(2);
    relay.receive(|wal| _ = wal.record(100));
    assert!(!has_come(&client.socket));
    assert_eq!(client.next().await.unwrap().kind, b'c', "the timeline has ended at {end}");
    assert!(before < end);
}

/// It stops in the middle of a message, and whoever publishes goes on.
#[tokio::test]
async fn who_does_not_read_holds_nobody_up_and_misses_nothing() {
    let mut relay = Relay::start().await;
    let (mut client, mut other) = (streaming(&relay).await, streaming(&relay).await);
    until_served_at_once(&mut relay, &mut client).await;
    let mut at = relay.store.tip().unwrap().write_lsn;
    catch_up(&relay, &mut other).await;
    let mut expected = Vec::new();
    // More than both sockets hold.
    for _ in 0..400 {
        let bytes = relay.receive(|wal| _ = wal.record(40_000));
        let mut received = 0;
        while received < bytes.len() {
            received += other.wal().await.1.len();
        }
        expected.extend(bytes);
    }
    for chunk in 0.. {
        let (start, wal) = client.wal().await;
        assert_eq!(start, at, "message {chunk}: no gap, no overlap");
        assert!(expected.starts_with(&wal));
        expected.drain(..wal.len());
        at = at.advance(wal.len() as u64);
        if expected.is_empty() {
            break;
        }
    }
    until_served_at_once(&mut relay, &mut client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_consumers_than_are_served_at_once_get_everything() {
    const CONSUMERS: usize = 50;
    let mut relay = Relay::with(Options { max_wal_senders: CONSUMERS, ..Options::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..CONSUMERS {
        clients.push(streaming(&relay).await);
    }
    for len in [100, 30_000, 24, 200_000, 300] {
        let mut at = relay.store.tip().unwrap().write_lsn;
        let bytes = relay.receive(|wal| _ = wal.record(len));
        let end = at.advance(bytes.len() as u64);
        for client in &mut clients {
            let mut received = Vec::new();
            while received.len() < bytes.len() {
                let (start, wal) = client.wal().await;
                assert_eq!(start, at.advance(received.len() as u64));
                received.extend(wal);
            }
            assert!(received == bytes);
        }
        at = end;
        assert_eq!(at, relay.store.tip().unwrap().write_lsn);
    }
}

#[tokio::test]
async fn an_error_where_it_is_published_ends_that_consumer() {
    let mut relay = Relay::start().await;
    let (mut client, mut other) = (streaming(&relay).await, streaming(&relay).await);
    until_served_at_once(&mut relay, &mut client).await;
    catch_up(&relay, &mut other).await;
    // The kernel resets what comes for a socket that is gone.
    rustix::net::sockopt::set_socket_linger(&client.socket, Some(Duration::ZERO)).unwrap();
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(20);
    while relay.registry.len() > 1 {
        assert!(Instant::now() < deadline);
        relay.receive(|wal| _ = wal.record(100));
        other.wal().await;
    }
    until_served_at_once(&mut relay, &mut other).await;
}

/// A line by itself, with a hand that has sent everything, and the other end of its socket.
struct Alone {
    relay: Relay,
    live: Arc<Live>,
    line: Line,
    peer: TcpStream,
}

impl Alone {
    async fn new() -> Alone {
        let relay = Relay::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = Socket::from(listener.accept().await.unwrap().0);
        let identity = ConsumerIdentity {
            pid: 1,
            user: "u".into(),
            application_name: "s".into(),
            client_addr: None,
            backend_start: crate::moment::Past::now(),
        };
        let consumer = relay.store.consumers().register(identity).consumer().clone();
        let size = SegSize::new(SEG).unwrap();
        let line = Line::new(&socket, relay.store.clone(), consumer, size, Lsn::INVALID);
        Alone { relay, live: Arc::default(), line, peer }
    }

    fn hand(&self) -> Box<Hand> {
        let end = self.end().unwrap();
        let published = Some(walrelay_proto::sender::Published { tli: end.tli, lsn: end.lsn });
        let wal =
            Wal { seg_size: SegSize::new(SEG).unwrap(), history: self.relay.store.history(), published };
        let request = Request { tli: Some(TimelineId::FIRST), lsn: end.lsn, restart_lsn: None };
        let limit = Duration::from_secs(60);
        let settings = Settings { peer_timeout: None, shutdown_timeout: limit, grace: limit };
        let mut sender = Sender::start(request, settings, wal, Instant::now()).unwrap();
        while let Some(output) = sender.poll_output(PgTimestamp::default()) {
            if matches!(output, Output::Bytes(_)) {
                sender.handle(Input::Sent, Instant::now());
            }
        }
        Box::new(Hand { sender, segment: None, batch: None })
    }

    fn end(&self) -> Option<TimelinePosition> {
        *self.relay.store.written().borrow()
    }
}

#[tokio::test]
async fn a_hand_that_is_in_use_or_not_lent_is_passed_over_and_its_walsender_called() {
    let mut alone = Alone::new().await;
    alone.line.lend(alone.hand());
    alone.relay.receive(|wal| _ = wal.record(100));
    let end = alone.end();
    let seat = alone.live.seat(alone.line);
    let lent = seat.lock();
    alone.live.hear(end);
    drop(lent);
    seat.called().await;
    assert!(!has_come(&alone.peer));
    alone.live.hear(end);
    assert!(has_come(&alone.peer));
    let sent = seat.take_back().unwrap();
    assert_eq!(sent.hand.sender.sent(), end.unwrap().lsn);
    assert!(sent.output.is_none() && sent.error.is_none() && sent.hand.batch.is_none());
    alone.live.hear(end);
    seat.called().await;
}

#[tokio::test]
async fn an_error_is_kept_for_the_walsender_and_nothing_more_is_written() {
    let mut alone = Alone::new().await;
    alone.line.lend(alone.hand());
    let seat = alone.live.seat(alone.line);
    rustix::net::sockopt::set_socket_linger(&alone.peer, Some(Duration::ZERO)).unwrap();
    alone.peer.shutdown().await.unwrap();
    drop(alone.peer);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "no error");
        alone.relay.receive(|wal| _ = wal.record(100));
        alone.live.hear(*alone.relay.store.written().borrow());
        if seat.lock().as_ref().unwrap().error.is_some() {
            break;
        }
        tokio::task::yield_now().await;
    }
    seat.called().await;
    let before = seat.lock().as_ref().unwrap().hand.sender.sent();
    alone.relay.receive(|wal| _ = wal.record(100));
    alone.live.hear(*alone.relay.store.written().borrow());
    seat.called().await;
    let lent = seat.take_back().unwrap();
    assert_eq!(lent.hand.sender.sent(), before);
    assert!(lent.error.is_some());
}
