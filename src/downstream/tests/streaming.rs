//! START_REPLICATION on one timeline.

use std::time::Duration;

use walrelay_proto::{FullXid, HotStandbyFeedback, Lsn, PgTimestamp};

use super::kit::*;
use crate::store::{FeedbackHorizon, SenderState};

const PAGE: u64 = 8192;

#[tokio::test(flavor = "multi_thread")]
async fn stored_wal_is_cut_at_pages_and_segments() {
    let mut relay = Relay::start().await;
    relay.receive(|wal| wal.fill(3_000_000));
    let end = relay.store.tip().unwrap().write_lsn;
    let mut client = relay.session().await;
    let mut at = START.advance(5);
    client.start(&format!("{at} TIMELINE 1")).await;
    while at < end {
        let (start, wal) = client.wal().await;
        assert_eq!(start, at, "no gap, no overlap");
        at = start.advance(wal.len() as u64);
        assert!(wal.len() <= 128 * 1024);
        assert!(at == end || at.as_u64().is_multiple_of(PAGE), "{at} is no place to cut");
        assert_eq!(start.as_u64() / SEG, (at.as_u64() - 1) / SEG, "one segment");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_wal_comes_as_it_is_received() {
    let mut relay = Relay::start().await;
    let mut client = relay.session().await;
    let end = relay.store.tip().unwrap().write_lsn;
    client.start(&format!("{end} TIMELINE 1")).await;
    for len in [100, 24, 5000, 300] {
        let before = relay.store.tip().unwrap().write_lsn;
        let bytes = relay.receive(|wal| _ = wal.record(len));
        assert_eq!(client.wal().await, (before, bytes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_record_is_not_sent() {
    let mut relay = Relay::start().await;
    let mut client = relay.session().await;
    let end = relay.store.tip().unwrap().write_lsn;
    client.start(&format!("{end} TIMELINE 1")).await;
    let at = relay.wal.position();
    relay.wal.record(30_000);
    let bytes = relay.wal.take();
    relay.writer.append(at, &bytes[..20_000]).unwrap();
    relay.writer.commit();
    client.status(1, 0, true).await;
    assert_eq!(client.keepalive().await, (end, false), "nothing was sent");
    relay.writer.append(at.advance(20_000), &bytes[20_000..]).unwrap();
    relay.writer.commit();
    assert_eq!(client.wal().await, (end, bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_ahead_of_our_wal_waits() {
    let mut relay = Relay::start().await;
    let mut client = relay.session().await;
    let ahead = relay.store.tip().unwrap().write_lsn.advance(8001);
    client.start(&format!("{ahead} TIMELINE 1")).await;
    relay.receive(|wal| _ = wal.record(2000));
    client.status(1, 0, true).await;
    assert_eq!(client.keepalive().await, (ahead, false));
    relay.receive(|wal| wal.fill(40_000));
    assert_eq!(client.wal().await.0, ahead);
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_wal_is_an_error_inside_the_stream() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    for (start, file) in [("0/0", "000000010000000000000000"), ("0/2FFFFF", "000000010000000000000002")] {
        client.start(&format!("{start} TIMELINE 1")).await;
        let answer = client.until_ready().await;
        assert_eq!(kinds(&answer), "EZ");
        let (_, sqlstate, message) = answer[0].error();
        assert_eq!(
            (sqlstate, message),
            pair("58P01", &format!("requested WAL segment {file} has already been removed"))
        );
    }
    assert_eq!(client.row("SHOW server_version").await.len(), 1, "the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_are_taken_as_they_are() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    client.query("CREATE_REPLICATION_SLOT s PHYSICAL").await;
    client.start("SLOT s 0/300000 TIMELINE 1").await;
    client.wal().await;
    let restart = || relay.store.slots().get("s").unwrap().restart_lsn;
    // What is asked for is answered, which shows that everything before it has been handled.
    let check = async |client: &mut Client<_>, write, flush, expected: Option<u64>| {
        client.status(write, flush, true).await;
        assert!(!client.keepalive().await.1);
        assert_eq!(restart(), expected.map(Lsn::new), "after write {write:X}, flush {flush:X}");
        let status = relay.store.senders().list().remove(0);
        assert_eq!((status.write_lsn, status.flush_lsn), (Lsn::new(write).valid(), Lsn::new(flush).valid()));
        assert_eq!(status.state, SenderState::Streaming);
    };
    check(&mut client, 0x300100, 0, None).await;
    check(&mut client, 0x300100, 0x300080, Some(0x300080)).await;
    check(&mut client, 0x300200, 0x300010, Some(0x300010)).await;
    check(&mut client, 0x300200, 0x99900000, Some(0x99900000)).await;
    check(&mut client, 0x300200, 0, Some(0x99900000)).await;
    client.message(b'c', b"").await;
    assert_eq!(kinds(&client.until_ready().await), "cCCZ");
    assert_eq!(relay.store.slots().get("s").unwrap().active_pid, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_report_ends_the_stream() {
    let relay = Relay::start().await;
    let streaming = async || {
        let mut client = relay.session().await;
        client.start("0/300000 TIMELINE 1").await;
        client.wal().await;
        client
    };
    for (payload, text) in
        [(&b""[..], "no data left in message"), (b"r\0\0", "insufficient data left in message")]
    {
        let mut client = streaming().await;
        client.message(b'd', payload).await;
        let answer = client.until_ready().await;
        assert_eq!(kinds(&answer), "EZ");
        assert_eq!(answer[0].error(), ("ERROR".into(), "08P01".into(), text.into()));
    }
    let mut client = streaming().await;
    client.message(b'd', b"z").await;
    assert_eq!(client.until_closed().await, [], "closed without a word");
    let mut client = streaming().await;
    client.message(b'Q', b"SHOW server_version\0").await;
    assert_eq!(client.fatal().await, pair("08P01", "invalid standby message type \"Q\""));
    let mut client = streaming().await;
    client.message(b'X', b"").await;
    assert_eq!(client.until_closed().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mute_client_is_asked_once_and_then_given_up_whatever_is_sent_to_it() {
    let mut relay = Relay::start().await;
    let options = [("user", "rep"), ("replication", "true"), ("options", "-c wal_sender_timeout=600ms")];
    let (mut client, _) = relay.log_in(&options).await;
    client.start("0/300000 TIMELINE 1").await;
    client.wal().await;
    let mut asked = 0;
    while let Some(message) = client.next().await {
        assert_eq!(message.kind, b'd', "no error: {message:?}");
        if message.body[0] == b'k' {
            assert_eq!(message.body[17], 1);
            asked += 1;
            relay.receive(|wal| wal.fill(1000));
        }
    }
    assert_eq!(asked, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_starts_the_time_anew() {
    let relay = Relay::start().await;
    let options = [("user", "rep"), ("replication", "true"), ("options", "-c wal_sender_timeout=400ms")];
    let (mut client, _) = relay.log_in(&options).await;
    client.start("0/300000 TIMELINE 1").await;
    client.wal().await;
    for _ in 0..4 {
        assert!(client.keepalive().await.1, "asked again after each silence");
        client.status(1, 0, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_lives_with_the_connection_or_with_its_slot() {
    let relay = Relay::start().await;
    let mut horizon = relay.store.senders().horizon();
    let feedback = |xid| HotStandbyFeedback {
        send_time: PgTimestamp::from_system_time(std::time::SystemTime::now()),
        xmin: FullXid::new(0, xid),
        catalog_xmin: None,
    };
    let mut expect = async |xid: u32| {
        let wanted = FeedbackHorizon { xmin: FullXid::new(0, xid), catalog_xmin: None };
        let reached = horizon.wait_for(|horizon| *horizon == wanted);
        tokio::time::timeout(Duration::from_secs(20), reached).await.expect("the horizon").unwrap();
    };
    let mut plain = relay.session().await;
    plain.start("0/300000 TIMELINE 1").await;
    plain.send(&feedback(700).frame()).await;
    expect(700).await;
    let mut slotted = relay.session().await;
    slotted.query("CREATE_REPLICATION_SLOT s PHYSICAL").await;
    slotted.start("SLOT s 0/300000 TIMELINE 1").await;
    slotted.send(&feedback(800).frame()).await;
    drop(plain);
    expect(800).await;
    drop(slotted);
    let mut again = relay.session().await;
    while relay.store.slots().get("s").unwrap().active_pid.is_some() {
        again.row("SHOW server_version").await;
    }
    assert_eq!(relay.store.slots().get("s").unwrap().feedback.xmin, FullXid::new(0, 800));
    again.start("SLOT s 0/300000 TIMELINE 1").await;
    again.send(&feedback(0).frame()).await;
    expect(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_relay_does_not_wait_for_a_mute_client_for_ever() {
    let relay =
        Relay::with(Options { shutdown_timeout: Duration::from_millis(300), ..Options::default() }).await;
    let mut client = relay.session().await;
    client.start("0/300000 TIMELINE 1").await;
    client.wal().await;
    relay.shutdown.cancel();
    assert!(client.keepalive().await.1);
    assert_eq!(client.until_closed().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_leave_while_the_relay_stops() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    client.start("0/300000 TIMELINE 1").await;
    client.wal().await;
    relay.shutdown.cancel();
    assert!(client.keepalive().await.1);
    client.message(b'c', b"").await;
    assert_eq!(kinds(&client.until_closed().await), "c");
}
