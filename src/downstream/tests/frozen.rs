//! Clients that do not read, and a relay that is held up.

use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use super::kit::*;
use super::limits::resident;

const DEADLINE: Duration = Duration::from_secs(20);
/// More than the sockets of a client that does not read take.
const WAL: usize = 12 << 20;

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
    client.start_up(&[&[("user", "rep"), ("replication", "true")], more].concat()).await;
    let messages = client.until_ready().await;
    let key = messages.into_iter().find(|message| message.kind == b'K').unwrap().body;
    (client, key)
}

/// Clients whose sockets are full of WAL, streaming from slots of their own.
async fn full_sockets(relay: &mut Relay, count: usize) -> Vec<(Client<TcpStream>, Vec<u8>)> {
    let mut clients = Vec::new();
    for n in 0..count {
        let (mut client, key) = frozen(relay, &[]).await;
        client.query(&format!("CREATE_REPLICATION_SLOT s{n} PHYSICAL RESERVE_WAL")).await;
        client.start(&format!("SLOT s{n} 0/300000 TIMELINE 1")).await;
        clients.push((client, key));
    }
    relay.receive(|wal| wal.fill(WAL));
    let sent = || relay.store.senders().list().iter().map(|status| status.sent_lsn).collect::<Vec<_>>();
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
    let limit = Some(2 * WAL as u64);
    let options = Options { wal_keep_size: 0, max_slot_wal_keep_size: limit, ..Options::default() };
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

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_far_behind_can_be_cancelled_while_wal_flows() {
    let mut relay = Relay::start().await;
    relay.receive(|wal| wal.fill(4 * WAL));
    let (mut client, messages) = relay.log_in(&[("user", "rep"), ("replication", "true")]).await;
    let key = messages.into_iter().find(|message| message.kind == b'K').unwrap().body;
    client.start("0/300000 TIMELINE 1").await;
    client.wal().await;
    cancel(&relay, &key).await;
    let rest = client.until_ready().await;
    assert_eq!(kinds(&rest).trim_start_matches('d'), "EZ");
    let (severity, sqlstate, message) = rest[rest.len() - 2].error();
    assert_eq!(severity, "ERROR");
    assert_eq!((sqlstate, message), pair("57014", "canceling statement due to user request"));
    assert!(rest.len() < 4 * WAL / (128 * 1024), "it was sent everything first");
    client.row("IDENTIFY_SYSTEM").await;
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

/// Sends so many queries that the answers fill the sockets, and reads none.
async fn flood(client: &mut Client<TcpStream>, query: &str) {
    let mut text = query.as_bytes().to_vec();
    text.push(0);
    let message = [&b"Q"[..], &(text.len() as u32 + 4).to_be_bytes(), &text].concat();
    let many = message.repeat(20_000);
    // The relay stops reading when it cannot write; it may also close the connection.
    let _ = tokio::time::timeout(
        Duration::from_millis(500),
        tokio::io::AsyncWriteExt::write_all(&mut client.socket, &many),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_nothing_do_not_hold_up_the_stop() {
    let options = Options { shutdown_timeout: Duration::from_millis(500), ..Options::default() };
    let mut relay = Relay::with(options).await;
    let streaming = full_sockets(&mut relay, 1).await;
    let (mut session, _) = frozen(&relay, &[]).await;
    flood(&mut session, "SHOW ALL").await;
    let mut console = relay.log_in(&[("user", "rep"), ("database", "walrelay")]).await.0;
    flood(&mut console, "select * from pg_stat_replication; show all").await;
    assert_eq!(relay.registry.len(), 3, "all are there, blocked");
    relay.shutdown.cancel();
    within("the stop", &mut relay.running).await.unwrap().unwrap();
    drop((streaming, session, console));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_answers_are_made_as_they_are_read() {
    const STATEMENTS: usize = 50_000;
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
    let (mut patient, key) = frozen(&relay, &[]).await;
    flood(&mut patient, "SHOW ALL").await;
    let (mut hasty, _) = frozen(&relay, &[("options", "-c wal_sender_timeout=300ms")]).await;
    flood(&mut hasty, "SHOW ALL").await;
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
