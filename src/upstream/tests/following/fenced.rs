//! What a fence does on the upstream side.

use super::*;
use crate::store::TimelinePosition;
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
    setup.store.fences().lift(None, &order().by, setup.store.fences().orders()).unwrap();
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
    let (script, whole) = far_from_its_fork(&mut wal);
    let error = meanwhile(&mut setup, &script, whole, |store| {
        store.order_fence(order()).unwrap();
    });
    let error = error.await;
    assert!(matches!(error, UpstreamError::Left(_)), "{error}");
    assert_eq!((fence_of(&setup.store).timeline, fence_of(&setup.store).position), (tli(2), Some(whole)));
    assert!(setup.store.fences().against(tli(2)).is_some() && setup.store.fences().against(tli(3)).is_none());
}

/// A server on timeline 2 that sends a part of what leads there, and its next record only half.
fn far_from_its_fork(wal: &mut WalGenerator) -> (Script, Lsn) {
    wal.fill(100_000);
    let whole = wal.position();
    wal.record(5000);
    let history = Box::leak(format!("1\t{}\tx\n", wal.position()).into_boxed_str());
    let script = Script { tli: 2, history, ..Script::of(&wal.bytes()[..wal.bytes().len() - 1000]) };
    (script, whole)
}

/// Follows it, and does something as soon as all that it sends has come.
async fn meanwhile(
    setup: &mut Setup,
    script: &Script,
    whole: Lsn,
    then: impl FnOnce(&Store),
) -> UpstreamError {
    let store = setup.store.clone();
    let doing = async {
        let mut flushed = store.flushed();
        flushed.wait_for(|flushed| flushed.is_some_and(|flushed| flushed.lsn == whole)).await.unwrap();
        then(&store);
    };
    let ((error, _), ()) = tokio::join!(setup.round(script, 1), doing);
    error
}

/// The newer server is followed and hangs far from its own timeline; whoever fences now fences it.
#[tokio::test]
async fn a_fence_that_is_being_passed_is_not_the_answer_to_the_next_order() {
    let (mut setup, mut wal) = relay();
    setup.store.order_fence(order()).unwrap();
    setup.round(&Script::of(wal.bytes()), 1).await;
    let first = fence_of(&setup.store);
    assert_eq!((first.epoch, first.timeline), (1, tli(1)));
    let (script, whole) = far_from_its_fork(&mut wal);
    let error = meanwhile(&mut setup, &script, whole, |store| {
        assert_eq!(store.fences().now().state(), "being passed");
        let same = store.order_fence(Order { epoch: Some(1), ..order() }).unwrap_err().to_string();
        assert!(same.contains("is being passed: a server on timeline 2 is followed already"), "{same}");
        // The old primary is kept away still.
        assert!(store.fences().against(tli(1)).is_some());
        assert!(store.order_fence(order()).unwrap().1, "it is another one");
    });
    let error = error.await;
    assert!(matches!(error, UpstreamError::Left(_)), "{error}");
    let second = fence_of(&setup.store);
    assert_eq!((second.epoch, second.timeline, second.position), (2, tli(2), Some(whole)));
    assert!(setup.store.fences().now().is_settled(2));
    let (error, confirmed) = setup.round(&script, 1).await;
    assert!(matches!(error, UpstreamError::Fenced { .. }) && confirmed.is_none(), "{error}");
}

/// The relay is killed in the middle of what leads to the newer server's timeline.
#[tokio::test]
async fn a_start_knows_how_new_the_server_was_that_was_followed() {
    for comes_first in [true, false] {
        let (mut setup, mut wal) = relay();
        let (script, whole) = far_from_its_fork(&mut wal);
        let text = |setup: &Setup| std::fs::read_to_string(setup.dir.path().join("timeline.toml")).unwrap();
        let copied = crate::permissions::private_tempdir();
        let to = copied.path().to_owned();
        let from = setup.dir.path().to_owned();
        meanwhile(&mut setup, &script, whole, |store| {
            if comes_first {
                // Ordered and saved, and not closed.
                store.fences().order(order(), tli(1)).unwrap();
                store.fences().save().unwrap();
            }
            copy(&from, &to);
            store.order_fence(Order { epoch: Some(7), ..order() }).unwrap();
        })
        .await;
        assert_eq!(text(&setup).trim_end(), "timeline = 1\nnewest = 1\nheading = 2");
        let again = Setup::at(copied);
        let fence = match comes_first {
            true => fence_of(&again.store),
            false => {
                again.store.order_fence(order()).unwrap();
                let tip = again.store.tip().unwrap();
                again.store.fences().close(TimelinePosition { tli: tip.tli, lsn: tip.flush_lsn }).unwrap();
                fence_of(&again.store)
            }
        };
        assert_eq!((fence.epoch, fence.timeline, fence.position), (1, tli(2), Some(whole)));
        assert!(again.store.fences().against(tli(2)).is_some());
        // A directory of before knows nothing of that.
        let dir = again.close();
        std::fs::write(dir.path().join("timeline.toml"), "timeline = 1\nnewest = 1\n").unwrap();
        std::fs::remove_file(dir.path().join("fence.toml")).unwrap();
        let before = Setup::at(dir);
        assert_eq!(
            (before.store.tip().unwrap().tli, before.store.fences().heading()),
            (tli(1), Some(tli(1)))
        );
        assert_eq!(before.store.order_fence(order()).unwrap().0.timeline, tli(1));
    }
}

/// A server whose WAL turns out to be another's is none to head for.
#[tokio::test]
async fn a_server_that_is_refused_leaves_no_trace_in_fences() {
    let (mut setup, wal) = relay();
    let mut other = generator(42);
    other.fill(600_000);
    let history = Box::leak(format!("1\t{}\tx\n", wal.position().advance(10_000)).into_boxed_str());
    let script = Script { tli: 2, history, ..Script::of(other.bytes()) };
    let (error, _) = setup.round(&script, 1).await;
    assert!(!follows(&error), "{error}");
    assert!(setup.store.fences().heading() < Some(tli(2)));
    assert_eq!(setup.store.order_fence(order()).unwrap().0.timeline, tli(1));
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => {
                std::fs::create_dir(&target).unwrap();
                copy(&entry.path(), &target);
            }
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}
