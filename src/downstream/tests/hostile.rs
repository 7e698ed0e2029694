//! Consumers that mean harm, at the wire: each ends itself at most, and one that behaves notices nothing.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use walrelay_proto::Lsn;

use super::kit::*;
use super::limits::{is_alone, resident};
use crate::store::FeedbackHorizon;

/// A consumer that streams from the start of what is held, on a slot of its own.
async fn streaming(relay: &Relay, slot: &str) -> Client<TcpStream> {
    let mut client = relay.session().await;
    // The one before may still be letting go of its own.
    let free = async {
        while relay.store.slots().get(slot).is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), free).await.expect("the slot goes");
    client.query(&format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY PHYSICAL RESERVE_WAL")).await;
    client.start(&format!("SLOT {slot} 0/300000 TIMELINE 1")).await;
    client.wal().await;
    client
}

/// Reads until the relay has closed the connection, whatever comes.
async fn until_gone(client: &mut Client<TcpStream>) {
    while !client.read_once().await.is_empty() {}
}

/// It streams, and gets what comes.
async fn is_well(relay: &mut Relay, good: &mut Client<TcpStream>) {
    let end = relay.wal.position();
    relay.receive(|wal| wal.fill(20_000));
    let (at, wal) = good.wal().await;
    assert!(at == end && !wal.is_empty(), "{at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_cannot_be_end_their_connection_and_cost_nothing() {
    if !is_alone("hostile::lengths_that_cannot_be_end_their_connection_and_cost_nothing") {
        return;
    }
    let mut relay = Relay::start().await;
    let mut good = streaming(&relay, "good").await;
    let before = resident();
    for kind in *b"dcfXQpz\0" {
        for length in [0u32, 1, 2, 3, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let mut bad = streaming(&relay, "bad").await;
            // It may be cut off before all of it is sent.
            let _ = bad.socket.write_all(&[&[kind][..], &length.to_be_bytes(), &[0; 4096]].concat()).await;
            let _ = bad.socket.shutdown().await;
            until_gone(&mut bad).await;
        }
    }
    is_well(&mut relay, &mut good).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_good_frames_moves_nobody() {
    let mut relay = Relay::start().await;
    let mut good = streaming(&relay, "good").await;
    let mut random = 1u64;
    let mut garbage = |len: usize| -> Vec<u8> {
        let byte = |_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        };
        (0..len).map(byte).collect()
    };
    let is_kept = |relay: &Relay| {
        let slot = relay.store.slots().get("bad").expect("it is a consumer still");
        let kept = slot.restart_lsn.expect("it has been reserved");
        assert!(kept <= relay.wal.position(), "{kept}");
    };
    for round in 0..60 {
        let mut bad = streaming(&relay, "bad").await;
        // A report of any positions, which asks for an answer: then it has been taken.
        let report = [b"r", &garbage(32)[..], &[1]].concat();
        bad.socket.write_all(&frame(&report)).await.unwrap();
        bad.keepalive().await;
        is_kept(&relay);
        bad.socket.write_all(&frame(&[b"h", &garbage(24)[..]].concat())).await.unwrap();
        bad.status(0, 0, true).await;
        bad.keepalive().await;
        is_kept(&relay);
        // Last what ends it: too short, too long, or nothing that there is.
        let (kind, len) = [(b"r", 0), (b"r", 32), (b"h", 23), (b"h", 7), (b"z", 33)][round % 5];
        bad.socket.write_all(&frame(&[&kind[..], &garbage(len)].concat())).await.unwrap();
        bad.socket.shutdown().await.unwrap();
        let said = bad.until_closed().await;
        // PG: ProcessStandbyMessage says what it does not know to nobody.
        let is_told = said.iter().any(|message| message.kind == b'E');
        assert_eq!(is_told, kind != b"z", "{kind:?} {len}: {said:?}");
    }
    is_well(&mut relay, &mut good).await;
    let horizon = relay.store.consumers().horizon();
    let gone = async {
        while *horizon.borrow() != FeedbackHorizon::default() {
            tokio::task::yield_now().await;
        }
    };
    let gone = tokio::time::timeout(std::time::Duration::from_secs(20), gone).await;
    gone.expect("feedback leaves with those who gave it");
}

fn frame(content: &[u8]) -> Vec<u8> {
    [b"d", &(content.len() as u32 + 4).to_be_bytes()[..], content].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_that_fall_and_jump_let_go_of_no_wal_that_was_not_sent() {
    let mut relay = Relay::start().await;
    let mut good = streaming(&relay, "good").await;
    let mut bad = streaming(&relay, "bad").await;
    let sent = relay.wal.position().as_u64();
    for flush in [1, u64::MAX, 0x30_0000, u64::MAX - 1, sent + 1, sent, 0, 1 << 63, sent] {
        bad.status(u64::MAX, flush, true).await;
        bad.keepalive().await;
        let kept = relay.store.slots().get("bad").unwrap().restart_lsn.unwrap();
        assert!(kept <= Lsn::new(sent), "{kept} after {flush:X}");
    }
    is_well(&mut relay, &mut good).await;
    // It is still sent what comes, from where it was.
    assert_eq!(bad.wal().await.0, Lsn::new(sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ends_of_a_stream_are_one() {
    let mut relay = Relay::start().await;
    let mut good = streaming(&relay, "good").await;
    let mut bad = streaming(&relay, "bad").await;
    let ends = b"c\0\0\0\x04".repeat(20_000);
    // PG: PostgresMain takes no notice of what is left of a copy.
    let (read, mut write) = bad.socket.split();
    let sending = async {
        let _ = write.write_all(&ends).await;
        let _ = write.shutdown().await;
    };
    let reading = async {
        let mut bytes = vec![0; 1 << 16];
        let mut total = 0;
        loop {
            read.readable().await.unwrap();
            match read.try_read(&mut bytes) {
                Ok(0) => return total,
                Ok(count) => total += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return total,
            }
        }
    };
    let both = async { tokio::join!(sending, reading).1 };
    let answered = tokio::time::timeout(std::time::Duration::from_secs(20), both).await.expect("an end");
    assert!(answered < 1000, "{answered} bytes of answers");
    is_well(&mut relay, &mut good).await;
}

/// It says that it will send nothing more, in the middle of the stream.
#[tokio::test(flavor = "multi_thread")]
async fn who_closes_a_half_is_gone() {
    let mut relay = Relay::start().await;
    let mut good = streaming(&relay, "good").await;
    let before = relay.registry.len();
    let mut bad = streaming(&relay, "bad").await;
    bad.socket.shutdown().await.unwrap();
    until_gone(&mut bad).await;
    is_well(&mut relay, &mut good).await;
    let gone = async {
        while relay.registry.len() != before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.expect("it is gone");
}
