//! START_REPLICATION on one timeline.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use walrelay_proto::{FullXid, HotStandbyFeedback, Lsn, PgTimestamp, SegNo, TimelineId};

use super::kit::*;
use crate::consumers::ConsumerState;
use crate::store::FeedbackHorizon;

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

/// Who is in the middle of a segment that somebody truncates is cut off; nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_segment_ends_the_streams_that_need_it() {
    let mut relay = Relay::start().await;
    let (client, mut other) = (relay.session().await, relay.session().await);
    truncated_segment_ends_stream(&mut relay, client).await;
    other.start("0/500000 TIMELINE 1").await;
    assert_eq!(other.wal().await.0, Lsn::new(0x50_0000));
}

/// `client` streams into a segment that is truncated while it is mapped, and gets no byte of what is not there.
pub(super) async fn truncated_segment_ends_stream<S: AsyncReadExt + AsyncWriteExt + Unpin>(
    relay: &mut Relay,
    mut client: Client<S>,
) {
    const LEFT: u64 = SEG / 4;
    relay.receive(|wal| wal.fill(3 * SEG as usize));
    // As if another consumer were reading it.
    let _mapped = relay.store.segment(TimelineId::FIRST, SegNo::new(4)).unwrap();
    let path = relay.store.wal_path("000000010000000000000004");
    relay.store.wal_files_changed().wait_for(|_| path.exists()).await.unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_len(LEFT).unwrap();
    client.start("0/300000 TIMELINE 1").await;
    let mut received = 0;
    loop {
        let bytes = client.read_once().await;
        received += bytes.len() as u64;
        if bytes.is_empty() {
            break;
        }
    }
    // With some headers, and not beyond the page that the file ends in.
    assert!(received >= SEG, "{received}");
    assert!(received <= SEG + LEFT + PAGE + 1000, "{received}");
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
    let sent = relay.store.tip().unwrap().write_lsn.as_u64();
    let check = async |client: &mut Client<_>, write, flush, expected: Option<u64>| {
        client.status(write, flush, true).await;
        assert!(!client.keepalive().await.1);
        assert_eq!(restart(), expected.map(Lsn::new), "after write {write:X}, flush {flush:X}");
        let status = relay.store.consumers().list().remove(0);
        assert_eq!((status.write_lsn, status.flush_lsn), (Lsn::new(write).valid(), Lsn::new(flush).valid()));
        assert_eq!(status.state, ConsumerState::Streaming);
    };
    check(&mut client, 0x300100, 0, None).await;
    check(&mut client, 0x300100, 0x300080, Some(0x300080)).await;
    check(&mut client, 0x300200, 0x300010, Some(0x300010)).await;
    // Shown as PostgreSQL shows it; but WAL that was never sent is not let go of.
    check(&mut client, 0x300200, 0x99900000, Some(sent)).await;
    check(&mut client, 0x300200, u64::MAX, Some(sent)).await;
    check(&mut client, 0x300200, 0, Some(sent)).await;
    client.message(b'c', b"").await;
    assert_eq!(kinds(&client.until_ready().await), "cCCZ");
    assert_eq!(relay.store.slots().get("s").unwrap().active_pid, None);
}

/// A standby asks for its WAL from the beginning of a segment, and reports how far it had it before.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_what_was_confirmed_before_keeps_the_slot_where_it_is() {
    let mut relay = Relay::start().await;
    relay.receive(|wal| wal.fill(2 * SEG as usize));
    let end = relay.store.tip().unwrap().write_lsn.as_u64();
    let mut client = relay.session().await;
    client.query("CREATE_REPLICATION_SLOT s PHYSICAL").await;
    client.start(&format!("SLOT s {} TIMELINE 1", Lsn::new(end))).await;
    let restart = || relay.store.slots().get("s").unwrap().restart_lsn;
    client.status(end, end, true).await;
    client.keepalive().await;
    assert_eq!(restart(), Some(Lsn::new(end)));
    client.message(b'c', b"").await;
    client.until_ready().await;
    // Ahead of everything: nothing is sent, nothing is confirmed.
    client.start("SLOT s 0/99900000 TIMELINE 1").await;
    client.status(0x9990_0000, 0x9990_0000, true).await;
    client.keepalive().await;
    assert_eq!(restart(), Some(Lsn::new(end)));
    client.message(b'c', b"").await;
    client.until_ready().await;
    client.start("SLOT s 0/300000 TIMELINE 1").await;
    client.status(end, end, false).await;
    while client.wal().await.0 < START.advance(SEG) {
        let kept = restart().unwrap().as_u64();
        assert!(kept == end, "{kept:X}");
    }
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
    let mut horizon = relay.store.consumers().horizon();
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
