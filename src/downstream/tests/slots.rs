//! Slots while the disk hangs: who changes them waits, and may give up; nobody else notices.

use tokio::net::TcpStream;

use super::kit::{Client, Message, Relay, START, kinds, pair};

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed().as_secs() < 20, "{what}");
        tokio::task::yield_now().await;
    }
}

fn is_there(relay: &Relay, name: &str) -> bool {
    relay.store.slots().get(name).is_some()
}

/// A session that makes a slot, which hangs.
async fn maker(relay: &Relay) -> (Client<TcpStream>, Vec<u8>) {
    let (mut maker, messages) = relay.log_in(&[("user", "rep"), ("replication", "true")]).await;
    let key = messages.iter().find(|message| message.kind == b'K').unwrap().body.clone();
    maker.message(b'Q', b"CREATE_REPLICATION_SLOT made PHYSICAL RESERVE_WAL\0").await;
    until("the slot is being made", || is_there(relay, "made")).await;
    (maker, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_holds_up_nobody_but_those_who_change_slots() {
    let mut relay = Relay::start().await;
    let (mut user, mut dropper) = (relay.session().await, relay.session().await);
    for name in ["used", "old"] {
        user.row(&format!("CREATE_REPLICATION_SLOT {name} PHYSICAL RESERVE_WAL")).await;
    }
    let hung = relay.store.slots().hang();
    let (mut maker, _) = maker(&relay).await;
    dropper.message(b'Q', b"DROP_REPLICATION_SLOT old\0").await;
    let active = |name: &str| relay.store.slots().get(name).is_some_and(|slot| slot.active_pid.is_some());
    until("the slot is being dropped", || active("old")).await;

    // More than there are workers, and they do all that consumers do.
    for _ in 0..3 {
        let mut other = relay.session().await;
        assert_eq!(other.row("READ_REPLICATION_SLOT used").await[0].as_deref(), Some("physical"));
        other.row("CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL").await;
        for name in ["made", "old"] {
            let answer = other.error(&format!("START_REPLICATION SLOT {name} 0/300000")).await;
            let text = format!("replication slot \"{name}\" is active for PID {}", std::process::id());
            assert_eq!(answer, pair("55006", &text));
        }
        other.message(b'X', b"").await;
        assert_eq!(other.until_closed().await, []);
    }
    user.start("SLOT used 0/300000 TIMELINE 1").await;
    let bytes = relay.receive(|wal| wal.fill(50_000));
    let mut received = START.as_u64();
    while received < START.as_u64() + bytes.len() as u64 {
        let (at, wal) = user.wal().await;
        received = at.as_u64() + wal.len() as u64;
    }
    user.status(received, received, false).await;
    let restart = || relay.store.slots().get("used").unwrap().restart_lsn.unwrap().as_u64();
    until("the report counts", || restart() == received).await;

    drop(hung);
    assert_eq!(kinds(&maker.until_ready().await), "TDCZ");
    assert_eq!(kinds(&dropper.until_ready().await), "CZ");
    assert!(is_there(&relay, "made") && !is_there(&relay, "old"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_maker_has_given_up_is_dropped_again() {
    let relay = Relay::start().await;
    // Cancelled.
    let hung = relay.store.slots().hang();
    let (mut cancelled, key) = maker(&relay).await;
    let mut canceller = relay.connect().await;
    let head = [&(8 + key.len() as u32).to_be_bytes()[..], &[0x04, 0xD2, 0x16, 0x2E], &key].concat();
    canceller.send(&head).await;
    let answer = cancelled.until_ready().await;
    assert_eq!(answer[0].error().1, "57014");
    assert_eq!(cancelled.error("DROP_REPLICATION_SLOT made").await.0, "55006", "it is not there yet");
    drop(hung);
    until("it is dropped again", || !is_there(&relay, "made")).await;
    // The client has left.
    let hung = relay.store.slots().hang();
    let (left, _) = maker(&relay).await;
    let before = relay.registry.len();
    drop(left);
    until("the session has ended", || relay.registry.len() < before).await;
    drop(hung);
    until("it is dropped again", || !is_there(&relay, "made")).await;
    // The relay stops.
    let hung = relay.store.slots().hang();
    let (mut told, _) = maker(&relay).await;
    relay.shutdown.cancel();
    let last: Option<Message> = told.until_closed().await.pop();
    assert_eq!(last.unwrap().error().1, "57P01");
    drop(hung);
}
