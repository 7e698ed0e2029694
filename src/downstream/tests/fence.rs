//! Fences, ordered by scripted clients. The upstream side is played by the tests.

use walrelay_proto::TimelinePosition;

use super::kit::*;
use crate::store::Store;

const ROLES: &str = "
[roles.rep.attributes]
superuser = false
replication = true
can_login = true
monitor = false

[roles.app]
member_of = [\"app\", \"a\"]
[roles.app.attributes]
superuser = false
replication = true
can_login = true
monitor = false

[roles.third.attributes]
superuser = true
replication = true
can_login = true
monitor = false
";

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

async fn session(relay: &Relay, user: &str) -> Client<tokio::net::TcpStream> {
    relay.log_in(&[("user", user), ("replication", "true")]).await.0
}

/// What the upstream side does, as soon as it is ordered.
async fn close(store: &Store) -> String {
    let mut fencing = store.fences().watch();
    fencing.wait_for(|shown| shown.last.as_ref().is_some_and(|fence| fence.is_open())).await.unwrap();
    let tip = store.tip().unwrap();
    store.fences().close(TimelinePosition { tli: tip.tli, lsn: tip.flush_lsn }).unwrap();
    tip.flush_lsn.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_is_answered_when_it_is_closed_and_goes_away_when_it_is_lifted() {
    let relay = Relay::start().await;
    let mut client = session(&relay, "a").await;
    let none = client.row("FENCE_STATUS").await;
    assert_eq!((&none[0], &none[1], &none[8..]), (&text("none"), &None, &[text("t"), text("walrelay")][..]));
    assert_eq!(client.row("UNFENCE").await[0], text("none"));

    let (row, end) = tokio::join!(client.row("FENCE EPOCH 5 REASON 'a \"b\"'"), close(&relay.store));
    let expected = [text("in force"), text("5"), text("1"), text(&end), text("a \"b\"")];
    assert_eq!(row[..5], expected);
    assert_eq!(row[6..], [text("a"), text("127.0.0.1"), text("t"), text("walrelay")]);
    for again in ["FENCE", "FENCE EPOCH 5 REASON 'another'", "FENCE_STATUS"] {
        assert_eq!(client.row(again).await, row, "{again}");
    }
    let there = format!("fence of epoch 5 (timeline 1 at {end})");
    let refused = pair("55000", &format!("epoch 4 is lower than that of the {there}, which is in force"));
    assert_eq!(client.error("FENCE EPOCH 4").await, refused);
    let other = pair("55000", &format!("the {there} is in force, and not one of epoch 4"));
    assert_eq!(client.error("UNFENCE EPOCH 4").await, other);
    assert_eq!(client.row("UNFENCE EPOCH 5").await[0], text("lifted"));
    assert_eq!(client.error("FENCE EPOCH 5").await.0, "55000");
    let (row, _) = tokio::join!(client.row("FENCE"), close(&relay.store));
    assert_eq!(row[..2], [text("in force"), text("6")]);
    assert_eq!(client.error("FENCE EPOCH 0").await, pair("42601", "invalid epoch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_replicates_may_look_and_only_admins_may_fence() {
    let relay = Relay::with(Options { roles: ROLES, ..Options::default() }).await;
    let mut client = session(&relay, "rep").await;
    for (command, what) in [("FENCE", "fence"), ("UNFENCE", "unfence")] {
        let answer = client.query(command).await;
        assert_eq!(kinds(&answer), "EZ");
        let expected = ("ERROR".into(), "42501".into(), format!("permission denied to {what} the relay"));
        assert_eq!(answer[0].error(), expected);
        assert!(answer[0].field('D').contains("--admin-role"), "{answer:?}");
    }
    assert_eq!(client.row("FENCE_STATUS").await[0], text("none"));
    assert_eq!(relay.store.fences().now().last, None);
    // Named, a member of who is named, a superuser.
    for (user, epoch) in [("a", "1"), ("app", "2"), ("third", "3")] {
        let mut client = session(&relay, user).await;
        let (row, _) = tokio::join!(client.row("FENCE"), close(&relay.store));
        assert_eq!((&row[1], &row[6]), (&text(epoch), &text(user)));
        client.row("UNFENCE").await;
    }
}

/// The upstream side hangs, with the disk for example.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_is_not_closed_in_time_is_in_force_all_the_same() {
    let relay = Relay::start().await;
    let mut client = session(&relay, "a").await;
    client.message(b'Q', b"FENCE EPOCH 2\0").await;
    let mut fencing = relay.store.fences().watch();
    fencing.wait_for(|shown| shown.in_force().is_some() && shown.is_saved).await.unwrap();
    // Whoever waits is told to give up; nobody lifts it.
    drop(client);
    let mut other = session(&relay, "a").await;
    let row = other.row("FENCE_STATUS").await;
    assert_eq!(row[..4], [text("in force"), text("2"), text("1"), None]);
    other.message(b'Q', b"FENCE\0").await;
    let answer = other.until_ready().await;
    let (severity, sqlstate, said) = answer[0].error();
    assert_eq!((severity.as_str(), sqlstate.as_str()), ("ERROR", "58030"));
    assert_eq!(said, "fence of epoch 2 (timeline 1, being closed) is not durable after 3 s");
    assert!(answer[0].field('D').contains("nothing more is confirmed upstream"), "{answer:?}");
    let (row, _) = tokio::join!(other.row("FENCE"), close(&relay.store));
    assert_eq!(row[..2], [text("in force"), text("2")]);
}

/// Two who conduct a failover: the higher one wins, and the other one hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_fence_that_another_one_replaces_is_told() {
    let relay = Relay::start().await;
    let (mut first, mut second) = (session(&relay, "a").await, session(&relay, "a").await);
    let mut fencing = relay.store.fences().watch();
    for (client, epoch) in [(&mut first, 2), (&mut second, 3)] {
        client.message(b'Q', format!("FENCE EPOCH {epoch}\0").as_bytes()).await;
        fencing.wait_for(|shown| shown.in_force().is_some_and(|fence| fence.epoch == epoch)).await.unwrap();
    }
    let refused = first.until_ready().await[0].error();
    assert_eq!(refused.1, "55000");
    assert!(refused.2.starts_with("epoch 2 is lower than that of the fence of epoch 3"), "{refused:?}");
    close(&relay.store).await;
    assert_eq!(second.until_ready().await[1].row()[..2], [text("in force"), text("3")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_are_served_behind_a_fence() {
    let relay = Relay::start().await;
    let mut client = session(&relay, "a").await;
    let (_, end) = tokio::join!(client.row("FENCE"), close(&relay.store));
    let mut consumer = relay.session().await;
    consumer.start(&format!("{START} TIMELINE 1")).await;
    let mut at = START;
    while at.to_string() != end {
        let (begin, wal) = consumer.wal().await;
        assert_eq!(begin, at);
        at = at.advance(wal.len() as u64);
    }
}
