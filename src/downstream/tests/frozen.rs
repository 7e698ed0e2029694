//! Clients that do not read, and a relay that is held up.

use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use walrelay_proto::{SegNo, TimelineId};

use super::kit::*;
use super::limits::{is_alone, resident};

const DEADLINE: Duration = Duration::from_secs(20);
/// More than the sockets of a client that does not read take.
const WAL: usize = 12 << 20;
/// So many settings shown are more, too.
const STATEMENTS: usize = 50_000;
const REPLICATION: &[(&str, &str)] = &[("replication", "true")];

async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Looks again and again, letting others run meanwhile.
async fn until(what: &str, condition: impl Fn() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A client that will not read, logged in, and what it needs to cancel its command.
async fn frozen(relay: &Relay, more: &[(&str, &str)]) -> (Client<TcpStream>, Vec<u8>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = Client::new(socket.connect(relay.address).await.unwrap());
    client.start_up(&[&[("user", "rep")], more].concat()).await;
    let messages = client.until_ready().await;
    let key = messages.into_iter().find(|message| message.kind == b'K').unwrap().body;
    (client, key)
}

/// Clients whose sockets are full of WAL, streaming from slots of their own.
async fn full_sockets(relay: &mut Relay, count: usize) -> Vec<(Client<TcpStream>, Vec<u8>)> {
    let mut clients = Vec::new();
    for n in 0..count {
        let (mut client, key) = frozen(relay, REPLICATION).await;
        client.query(&format!("CREATE_REPLICATION_SLOT s{n} PHYSICAL RESERVE_WAL")).await;
        client.start(&format!("SLOT s{n} 0/300000 TIMELINE 1")).await;
        clients.push((client, key));
    }
    relay.receive(|wal| wal.fill(WAL));
    let sent = || relay.store.consumers().list().iter().map(|status| status.sent_lsn).collect::<Vec<_>>();
    let mut before = Vec::new();
    within("the sockets to be full", async {
        while before != sent() || before.iter().any(Option::is_none) {
            before = sent();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    assert!(sent().iter().all(|lsn| lsn.unwrap() < relay.store.tip().unwrap().write_lsn));
    clients
}

async fn cancel(relay: &Relay, key: &[u8]) {
    let mut request = relay.connect().await;
    request.send(&[&[0, 0, 0, 16, 0x04, 0xD2, 0x16, 0x2E][..], key].concat()).await;
    assert_eq!(request.until_closed().await, []);
}

/// There are fewer workers than frozen clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_consumers_whose_slot_is_lost_are_cut_and_hold_up_nobody() {
    // The healthy one has no slot: what it has not read yet stays for it all the same.
    let (wal_keep_size, limit) = (WAL as u64, Some(2 * WAL as u64));
    let options = Options { wal_keep_size, max_slot_wal_keep_size: limit, ..Options::default() };
    let mut relay = Relay::with(options).await;
    let frozen = full_sockets(&mut relay, 3).await;
    let mut healthy = relay.session().await;
    let end = relay.store.tip().unwrap().write_lsn;
    healthy.start(&format!("{end} TIMELINE 1")).await;
    let mut at = end;
    for _ in 0..20 {
        relay.receive(|wal| wal.fill(WAL / 10));
        while at < relay.store.tip().unwrap().write_lsn {
            let (start, wal) = healthy.wal().await;
            at = start.advance(wal.len() as u64);
        }
    }
    until("the slots to be lost", || relay.store.slots().list().iter().all(|slot| slot.invalidated)).await;
    until("the frozen ones to be cut", || relay.registry.len() == 1).await;
    relay.session().await.row("IDENTIFY_SYSTEM").await;
    drop(frozen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_consumers_that_are_cancelled_are_cut_and_hold_up_nobody() {
    let mut relay = Relay::start().await;
    let frozen = full_sockets(&mut relay, 3).await;
    let mut healthy = relay.session().await;
    for (_, key) in &frozen {
        cancel(&relay, key).await;
    }
    healthy.row("IDENTIFY_SYSTEM").await;
    until("the frozen ones to be cut", || relay.registry.len() == 1).await;
    healthy.row("IDENTIFY_SYSTEM").await;
    assert!(relay.store.slots().list().iter().all(|slot| slot.active_pid.is_none()));
}

/// How much WAL a consumer gets that takes it as fast as it comes, and what it gets then; `order` is given, with its key,
/// when half of the WAL has come. All is on one thread, the segments stay mapped, and the sockets have grown meanwhile: so
/// the walsender finds the next WAL and room for it at each turn, and has never to wait.
async fn told_while_wal_flows(relay: &mut Relay, order: impl FnOnce(&mut Relay, &[u8])) -> (usize, Rest) {
    let (mut client, messages) = relay.log_in(&[("user", "rep"), ("replication", "true")]).await;
    let key = messages.into_iter().find(|message| message.kind == b'K').unwrap().body;
    client.query("CREATE_REPLICATION_SLOT s PHYSICAL RESERVE_WAL").await;
    relay.receive(|wal| wal.fill(2 * WAL));
    let segment = |segno| relay.store.segment(TimelineId::FIRST, SegNo::new(segno)).ok();
    let _mapped: Vec<_> = (START.as_u64() / SEG..).map_while(segment).collect();
    client.start("SLOT s 0/300000 TIMELINE 1").await;
    while client.wal().await.0 < START.advance(WAL as u64) {}
    order(relay, &key);
    let (mut wal, mut messages) = (0, Vec::new());
    while messages.last().is_none_or(|message: &Message| message.kind != b'Z')
        && let Some(message) = client.next().await
    {
        match message.kind {
            b'd' => wal += message.body.len(),
            _ => messages.push(message),
        }
    }
    (wal, Rest { messages, client })
}

/// What comes behind the WAL.
struct Rest {
    messages: Vec<Message>,
    client: Client<TcpStream>,
}

#[tokio::test]
async fn a_consumer_far_behind_can_be_cancelled_while_wal_flows() {
    let mut relay = Relay::start().await;
    let (wal, mut rest) = told_while_wal_flows(&mut relay, |relay, key| {
        let pid = u32::from_be_bytes(key[..4].try_into().unwrap());
        relay.registry.cancel(pid, &key[4..]);
    })
    .await;
    assert_eq!(kinds(&rest.messages), "EZ");
    let (severity, sqlstate, message) = rest.messages[0].error();
    assert_eq!(severity, "ERROR");
    assert_eq!((sqlstate, message), pair("57014", "canceling statement due to user request"));
    assert!(wal < WAL / 2, "it was sent {wal} bytes first");
    rest.client.row("IDENTIFY_SYSTEM").await;
}

#[tokio::test]
async fn a_consumer_far_behind_can_be_evicted_while_wal_flows() {
    let limit = Some(3 * WAL as u64);
    let options = Options { wal_keep_size: 0, max_slot_wal_keep_size: limit, ..Options::default() };
    let mut relay = Relay::with(options).await;
    let (wal, rest) = told_while_wal_flows(&mut relay, |relay, _| {
        relay.receive(|wal| wal.fill(2 * WAL));
        // Retention has a thread of its own; this one stands still, and the walsender with it.
        let begun = Instant::now();
        while !relay.store.slots().list()[0].invalidated {
            assert!(begun.elapsed() < DEADLINE, "the slot is not lost");
            std::thread::yield_now();
        }
    })
    .await;
    assert_eq!(kinds(&rest.messages), "E");
    let (severity, sqlstate, message) = rest.messages[0].error();
    assert_eq!(severity, "FATAL");
    assert_eq!((sqlstate, message), pair("57P01", "terminating connection due to administrator command"));
    assert!(wal < WAL / 2, "it was sent {wal} bytes first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_and_does_not_read_is_owed_one_answer() {
    const ASKED: usize = 300_000;
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    let end = relay.store.tip().unwrap().write_lsn;
    client.start(&format!("{end} TIMELINE 1")).await;
    let status = walrelay_proto::StandbyStatusUpdate {
        write: Some(end),
        flush: Some(end),
        apply: None,
        send_time: walrelay_proto::PgTimestamp::from_system_time(std::time::SystemTime::now()),
        reply_requested: true,
    };
    let many = status.frame().repeat(1000);
    for _ in 0..ASKED / 1000 {
        within("the relay to read on", client.send(&many)).await;
    }
    client.message(b'c', b"").await;
    let answer = client.until_ready().await;
    let answers = answer.iter().filter(|message| message.kind == b'd').count();
    assert!((1..ASKED / 10).contains(&answers), "{answers} answers");
    assert_eq!(kinds(&answer).trim_start_matches('d'), "cCCZ");
}

/// An answer to a walsender's client that no socket takes whole.
fn keep_long_history(relay: &Relay) {
    let history = [&b"#".repeat(2 * WAL)[..], b"\n1\t0/300000\tnone\n"].concat();
    relay.store.save_history_file(TimelineId::new(2).unwrap(), &history).unwrap();
}

/// Asks for more than the sockets take; when the answer begins to come, the relay waits for a client that reads none of it.
async fn ask_and_not_read(client: &mut Client<TcpStream>, query: &str) {
    client.message(b'Q', &[query.as_bytes(), b"\0"].concat()).await;
    assert_eq!(within("the answer", client.socket.peek(&mut [0])).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_nothing_do_not_hold_up_the_stop() {
    let options = Options { shutdown_timeout: Duration::from_millis(500), ..Options::default() };
    let mut relay = Relay::with(options).await;
    let streaming = full_sockets(&mut relay, 1).await;
    keep_long_history(&relay);
    let (mut session, _) = frozen(&relay, REPLICATION).await;
    ask_and_not_read(&mut session, "TIMELINE_HISTORY 2").await;
    let (mut console, _) = frozen(&relay, &[("database", "walrelay")]).await;
    ask_and_not_read(&mut console, &"show all;".repeat(STATEMENTS)).await;
    assert_eq!(relay.registry.len(), 3, "all are there, blocked");
    relay.shutdown.cancel();
    within("the stop", &mut relay.running).await.unwrap().unwrap();
    drop((streaming, session, console));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_answers_are_made_as_they_are_read() {
    if !is_alone("frozen::many_answers_are_made_as_they_are_read") {
        return;
    }
    let relay = Relay::start().await;
    let (mut console, _) = relay.log_in(&[("user", "rep"), ("database", "walrelay")]).await;
    let before = resident();
    console.message(b'Q', &[&b"show all;".repeat(STATEMENTS)[..], b"\0"].concat()).await;
    assert!(!within("the first answer", console.read_once()).await.is_empty());
    // All answers together are gigabytes.
    let grown = resident().saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes more");
    drop(console);
    until("the session to end", || relay.registry.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_does_not_read_its_answer_ends_when_told_or_after_a_while() {
    let relay = Relay::start().await;
    keep_long_history(&relay);
    let (mut patient, key) = frozen(&relay, REPLICATION).await;
    ask_and_not_read(&mut patient, "TIMELINE_HISTORY 2").await;
    let hasty = [REPLICATION, &[("options", "-c wal_sender_timeout=300ms")]].concat();
    let (mut hasty, _) = frozen(&relay, &hasty).await;
    ask_and_not_read(&mut hasty, "TIMELINE_HISTORY 2").await;
    until("the one with a short timeout to end", || relay.registry.len() == 1).await;
    cancel(&relay, &key).await;
    until("the cancelled one to end", || relay.registry.is_empty()).await;
}

/// What clients sent while the relay was held up is heard before their silence is judged.
#[test]
fn a_relay_that_was_held_up_does_not_take_it_for_silence() {
    const TIMEOUT: Duration = Duration::from_millis(800);
    let runtime = |workers| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
    };
    let (relays, clients) = (runtime(1), runtime(2));
    let relay = relays.block_on(Relay::start());
    let end = relay.store.tip().unwrap().write_lsn;
    let mut consumers = clients.block_on(async {
        let mut consumers = Vec::new();
        for _ in 0..8 {
            let options =
                [("user", "rep"), ("replication", "true"), ("options", "-c wal_sender_timeout=800ms")];
            let (mut client, _) = relay.log_in(&options).await;
            client.start(&format!("{end} TIMELINE 1")).await;
            consumers.push(client);
        }
        consumers
    });
    for _ in 0..3 {
        let (held, is_held) = std::sync::mpsc::channel();
        let holding = relays.spawn(async move {
            held.send(()).unwrap();
            std::thread::sleep(2 * TIMEOUT);
        });
        is_held.recv().unwrap();
        clients.block_on(async {
            for client in &mut consumers {
                client.status(end.as_u64(), end.as_u64(), false).await;
            }
            holding.await.unwrap();
            for client in &mut consumers {
                client.status(end.as_u64(), end.as_u64(), true).await;
                // What was asked for before, and the answer to this.
                while client.keepalive().await.1 {}
            }
        });
    }
    assert_eq!(relay.registry.len(), 8);
}
