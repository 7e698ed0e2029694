//! What a fence does on the upstream side.

use super::*;
use crate::store::fence::{Fence, FenceState, FencedBy, Order};

fn order() -> Order {
    let by = FencedBy { role: "admin".to_owned(), address: "[local]".to_owned() };
    Order { epoch: None, reason: String::new(), by }
}

fn fence_of(store: &Store) -> Fence {
    store.fences().now().last.unwrap()
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

/// A relay that holds some WAL, and the WAL.
fn relay() -> (Setup, WalGenerator) {
    let mut wal = generator(41);
    wal.fill(300_000);
    (Setup::holding(wal.bytes()), wal)
}

#[tokio::test]
async fn a_server_that_is_not_newer_is_left_alone() {
    let (mut setup, mut wal) = relay();
    let end = setup.end();
    setup.store.order_fence(order()).unwrap();
    wal.fill(100_000);
    let script = Script::of(wal.bytes());
    // Before anybody is connected to, the fence is closed.
    let (error, _) = setup.round(&script, 1).await;
    assert!(matches!(error, UpstreamError::Left(_)), "{error}");
    assert!(setup.store.fences().now().is_settled(1) && script.asked.lock().unwrap().is_empty());
    assert_eq!((fence_of(&setup.store).timeline, fence_of(&setup.store).position), (tli(1), Some(end)));
    let (error, confirmed) = setup.round(&script, 1).await;
    let said = error.to_string();
    let expected =
        format!("not followed because the relay is fenced: fence of epoch 1 (timeline 1 at {end})");
    assert!(said.starts_with("upstream is on timeline 1, and ") && said.contains(&expected), "{said}");
    assert!(!error.is_permanent() && confirmed.is_none() && !script.asked_for("START_REPLICATION"));
    setup.is_untouched_by(&script);
    setup.store.fences().lift(None, &order().by).unwrap();
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(follows(&error) && confirmed == Some(wal.position()), "{error}");
}

#[tokio::test]
async fn a_newer_timeline_is_followed_and_passes_the_fence() {
    let (mut setup, mut wal) = relay();
    let end = setup.end();
    setup.store.order_fence(order()).unwrap();
    setup.round(&Script::of(wal.bytes()), 1).await;
    wal.switch_timeline(tli(2));
    wal.fill(100_000);
    let history = Box::leak(format!("1\t{end}\tx\n").into_boxed_str());
    let script = Script { tli: 2, history, ..Script::of(wal.bytes()) };
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(follows(&error) && confirmed == Some(wal.position()), "{error}");
    let fence = fence_of(&setup.store);
    assert_eq!((fence.state, fence.position), (FenceState::Passed { to: tli(2) }, Some(end)));
    // One that comes now is one of that timeline.
    setup.store.order_fence(order()).unwrap();
    setup.round(&script, 1).await;
    let fence = fence_of(&setup.store);
    assert_eq!((fence.epoch, fence.timeline, fence.position), (2, tli(2), Some(wal.position())));
    assert!(matches!(setup.round(&script, 1).await.0, UpstreamError::Fenced { .. }));
}

/// The server's last record is not whole, so that it is not confirmed, and the stream goes on.
#[tokio::test]
async fn a_stream_ends_at_once_and_all_that_came_is_covered() {
    let (mut setup, mut wal) = relay();
    wal.fill(100_000);
    let whole = wal.position();
    wal.record(5000);
    let script = Script::of(&wal.bytes()[..wal.bytes().len() - 1000]);
    let store = setup.store.clone();
    let ordering = async {
        let mut flushed = store.flushed();
        flushed.wait_for(|flushed| flushed.is_some_and(|flushed| flushed.lsn == whole)).await.unwrap();
        store.order_fence(order()).unwrap();
    };
    let ((error, confirmed), ()) = tokio::join!(setup.round(&script, 1), ordering);
    assert!(matches!(error, UpstreamError::Left(_)), "{error}");
    assert!(confirmed <= Some(whole) && setup.store.fences().now().is_settled(1));
    assert_eq!(fence_of(&setup.store).position, Some(whole));
}

/// It streams what it has in common with us first: we are behind the fork.
#[tokio::test]
async fn a_newer_server_is_fenced_although_its_timeline_is_not_reached() {
    let (mut setup, mut wal) = relay();
    wal.fill(100_000);
    let whole = wal.position();
    wal.record(5000);
    let history = Box::leak(format!("1\t{}\tx\n", wal.position()).into_boxed_str());
    let script = Script { tli: 2, history, ..Script::of(&wal.bytes()[..wal.bytes().len() - 1000]) };
    let store = setup.store.clone();
    let ordering = async {
        let mut flushed = store.flushed();
        flushed.wait_for(|flushed| flushed.is_some_and(|flushed| flushed.lsn == whole)).await.unwrap();
        store.order_fence(order()).unwrap();
    };
    let ((error, _), ()) = tokio::join!(setup.round(&script, 1), ordering);
    assert!(matches!(error, UpstreamError::Left(_)), "{error}");
    assert_eq!((fence_of(&setup.store).timeline, fence_of(&setup.store).position), (tli(2), Some(whole)));
    assert!(setup.store.fences().against(tli(2)).is_some() && setup.store.fences().against(tli(3)).is_none());
}
