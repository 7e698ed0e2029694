//! START_REPLICATION over timeline switches.

use walrelay_proto::ack::{Expression, Rules};

use super::kit::*;
use crate::store::SlotPersistence;

/// The row `next_tli, next_tli_startpos` of an answer.
fn next(answer: &[Message]) -> Vec<Option<String>> {
    answer.iter().find(|message| message.kind == b'D').expect("a row").row()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_while_streaming_ends_the_timeline_and_the_session_goes_on() {
    let mut relay = Relay::start().await;
    let mut client = relay.session().await;
    client.start("0/300000 TIMELINE 1").await;
    client.wal().await;
    let fork = relay.switch_timeline(2);
    let more = relay.receive(|wal| wal.fill(3000));
    assert_eq!(client.next().await.unwrap().kind, b'c');
    client.message(b'c', b"").await;
    let answer = client.until_ready().await;
    assert_eq!(kinds(&answer), "TDCCZ");
    assert_eq!(answer[0].columns()[0].0, "next_tli");
    assert_eq!(next(&answer), [Some("2".to_owned()), Some(fork.to_string())]);

    assert_eq!(client.row("IDENTIFY_SYSTEM").await[1].as_deref(), Some("2"));
    client.start("0/300000 TIMELINE 2").await;
    let (at, wal) = client.wal().await;
    assert_eq!(at, START);
    let head = fork.since(START) as usize;
    assert_eq!(wal[head..], more, "the new timeline's segment begins with the old one's bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_timelines_are_served_up_to_their_ends_one_step_at_a_time() {
    let mut relay = Relay::start().await;
    relay.receive(|wal| wal.fill(1_500_000));
    let first = relay.switch_timeline(2);
    relay.receive(|wal| wal.fill(1_500_000));
    let second = relay.switch_timeline(5);
    relay.receive(|wal| wal.fill(100_000));
    let mut client = relay.session().await;
    for (tli, from, end, following) in [(1, START, first, "2"), (2, first, second, "5")] {
        client.start(&format!("{from} TIMELINE {tli}")).await;
        let mut at = from;
        while at < end {
            let (start, wal) = client.wal().await;
            assert_eq!(start, at);
            at = start.advance(wal.len() as u64);
        }
        assert_eq!(at, end, "not a byte beyond");
        assert_eq!(client.next().await.unwrap().kind, b'c');
        client.message(b'c', b"").await;
        assert_eq!(next(&client.until_ready().await), [Some(following.to_owned()), Some(end.to_string())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_outside_the_history_are_refused() {
    let mut relay = Relay::start().await;
    relay.receive(|wal| wal.fill(1_500_000));
    let fork = relay.switch_timeline(2);
    relay.receive(|wal| wal.fill(1000));
    let mut client = relay.session().await;
    let unknown = client.error("START_REPLICATION 0/300000 TIMELINE 7").await;
    assert_eq!(unknown, pair("XX000", "requested timeline 7 is not in this server's history"));

    let past = fork.advance(1);
    let answer = client.query(&format!("START_REPLICATION {past} TIMELINE 1")).await;
    let text = format!("requested starting point {past} on timeline 1 is not in this server's history");
    assert_eq!(answer[0].error(), ("ERROR".into(), "XX000".into(), text));
    assert_eq!(answer[0].field('D'), format!("This server's history forked from timeline 1 at {fork}."));

    // Exactly at the end there is nothing to stream, and the next timeline comes at once.
    let answer = client.query(&format!("START_REPLICATION {fork} TIMELINE 1")).await;
    assert_eq!(kinds(&answer), "TDCCZ");
    assert_eq!(next(&answer), [Some("2".to_owned()), Some(fork.to_string())]);

    // An older segment does not exist on the new timeline, and its parent's is not taken instead.
    client.start("0/300000 TIMELINE 2").await;
    let answer = client.until_ready().await;
    let text = "requested WAL segment 000000020000000000000003 has already been removed";
    assert_eq!(answer[0].error(), ("ERROR".into(), "58P01".into(), text.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_an_old_timeline_early_is_told_the_next_all_the_same() {
    let mut relay = Relay::start().await;
    relay.receive(|wal| wal.fill(2_500_000));
    let fork = relay.switch_timeline(2);
    let mut client = relay.session().await;
    let start = "Q\0\0\0\x2aSTART_REPLICATION 0/300000 TIMELINE 1\0";
    client.send(&[start.as_bytes(), b"c\0\0\0\x04"].concat()).await;
    let answer = client.until_ready().await;
    assert!(kinds(&answer).ends_with("cTDCCZ"), "{}", kinds(&answer));
    assert_eq!(next(&answer), [Some("2".to_owned()), Some(fork.to_string())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_ahead_of_the_fork_is_sent_to_the_end_of_its_timeline() {
    let mut relay = Relay::start().await;
    let mut client = relay.session().await;
    let ahead = relay.store.tip().unwrap().write_lsn.advance(100);
    client.start(&format!("{ahead} TIMELINE 1")).await;
    let fork = relay.switch_timeline(2);
    assert_eq!(client.next().await.unwrap().kind, b'c');
    client.message(b'c', b"").await;
    assert_eq!(next(&client.until_ready().await), [Some("2".to_owned()), Some(fork.to_string())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_left_for_a_sibling_ends_with_an_error_and_what_is_common_goes_on() {
    let mut relay = Relay::start().await;
    relay.receive(|wal| wal.fill(1_500_000));
    let common = relay.wal.clone();
    let fork = relay.switch_timeline(2);
    relay.receive(|wal| wal.fill(20_000));
    let left = relay.store.tip().unwrap().write_lsn;
    let slot = "s".parse().unwrap();
    relay.store.slots().create(&slot, SlotPersistence::Persistent, Some(left)).unwrap();
    let mut client = relay.session().await;
    let from = fork.rewind(fork.as_u64() % (1 << 20));
    client.start(&format!("SLOT s {from} TIMELINE 2")).await;
    let mut at = from;
    while at < left {
        let (start, wal) = client.wal().await;
        assert_eq!(start, at);
        at = start.advance(wal.len() as u64);
    }

    relay.go_back(common).await;
    let text = "requested timeline 2 is not in this server's history";
    let answer = client.until_ready().await;
    assert_eq!(answer[0].error(), ("ERROR".into(), "XX000".into(), text.into()));
    assert_eq!(relay.store.slots().get("s").unwrap().restart_lsn, Some(fork));
    assert_eq!(client.row("IDENTIFY_SYSTEM").await[1].as_deref(), Some("1"));
    assert_eq!(client.error("START_REPLICATION 0/300000 TIMELINE 2").await, pair("XX000", text));

    // Of the segment where both parted, the file of the one that goes on is read.
    client.start(&format!("{from} TIMELINE 1")).await;
    let more = relay.receive(|wal| wal.fill(30_000));
    let (mut at, mut bytes) = (from, Vec::new());
    while at < relay.store.tip().unwrap().write_lsn {
        let (start, wal) = client.wal().await;
        assert_eq!(start, at);
        at = start.advance(wal.len() as u64);
        bytes.extend(wal);
    }
    let new = &bytes[fork.since(from) as usize..];
    assert!(*new == more[..new.len()] && new.len() > 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_reports_counts_for_the_timeline_that_is_received() {
    let mut relay = Relay::start().await;
    relay.store.consumers().set_rules(Rules { flush: Expression::connected(), ..Rules::default() });
    let confirmed = |relay: &Relay| {
        let tip = relay.store.tip().unwrap();
        relay.store.consumers().acknowledgements().compose(tip.write_lsn, tip.write_lsn).flush
    };
    let mut client = relay.session().await;
    client.start("0/300000 TIMELINE 1").await;
    let end = relay.store.tip().unwrap().write_lsn;
    let mut at = START;
    while at < end {
        let (start, wal) = client.wal().await;
        at = start.advance(wal.len() as u64);
    }
    assert_eq!(confirmed(&relay), None, "it has reported nothing yet");
    client.status(end.as_u64(), end.as_u64(), true).await;
    client.keepalive().await;
    assert_eq!(confirmed(&relay), Some(end));
    let fork = relay.switch_timeline(2);
    assert_eq!(confirmed(&relay), None, "it has not said what it has of this one");
    client.status(fork.as_u64(), fork.as_u64(), false).await;
    while confirmed(&relay) != Some(fork) {
        tokio::task::yield_now().await;
    }
    drop(client);
    relay.receive(|wal| wal.fill(1000));
    assert_eq!(confirmed(&relay), Some(fork), "it does not fall");
}
