//! What was used of the budget for degraded acknowledgements, kept for the next process in `ack-budget.toml`: a relay that is
//! restarted has no more of it for that.
//!
//! It is looked at every second, and once more when nothing is confirmed any more, so a process that is killed leaves a second out at most. A file that
//! cannot be read or written costs nobody an acknowledgement: it is told, and the budget is full.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use walrelay_proto::ack::{Budget, Rules, Spent};

use crate::moment::Moment;
use crate::store::Store;

const FILE: &str = "ack-budget.toml";
/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct Saved {
    /// When the first lapse was that counts.
    began: Moment,
    spent_ms: u64,
}

/// Takes up what the process before this one has left, for these rules. Waits for the disk.
pub(super) fn take_up(store: &Store, rules: &Rules) {
    match read(store) {
        Ok(Some(spent)) => {
            if let Some(budget) = counted(spent, rules) {
                let (seconds, all) = (spent.time.as_secs_f32(), budget.time.as_secs_f32());
                tracing::info!(
                    "{seconds:.1} s of the {all:.1} s for degraded acknowledgements were used before this start"
                );
            }
            store.consumers().acknowledgements().spent_before(spent);
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(
            "could not read \"{FILE}\" in the data directory: {error}; the budget for degraded acknowledgements is full"
        ),
    }
}

/// The budget that this still counts against, if any.
fn counted(spent: Spent, rules: &Rules) -> Option<Budget> {
    rules.lapse.as_ref()?.budget.filter(|budget| spent.ago < budget.per)
}

/// Once more, when nothing is confirmed to the upstream any more: rules may have lapsed during the stop, too. Waits for the disk.
pub(super) fn keep_last(store: &Store) {
    let Some(spent) = store.consumers().acknowledgements().spent() else { return };
    if let Err(error) = write(store, spent) {
        tell(&error);
    }
}

fn tell(error: &io::Error) {
    tracing::warn!(
        "could not write \"{FILE}\" in the data directory: {error}; after a restart the budget for degraded acknowledgements is \
         fuller than it should be"
    );
}

/// Keeps it up to date until told to stop.
pub(super) async fn keep(store: Arc<Store>, stop: CancellationToken) {
    let mut kept = store.consumers().acknowledgements().spent().map(|spent| spent.time);
    let mut is_told = false;
    let mut goes_on = true;
    while goes_on {
        goes_on = stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some();
        let Some(spent) = store.consumers().acknowledgements().spent() else { continue };
        if kept == Some(spent.time) {
            continue;
        }
        let of = store.clone();
        match tokio::task::spawn_blocking(move || write(&of, spent)).await.unwrap_or_else(|it| Err(it.into()))
        {
            Ok(()) => (kept, is_told) = (Some(spent.time), false),
            Err(error) if !is_told => {
                is_told = true;
                tell(&error);
            }
            Err(_) => {}
        }
    }
}

fn read(store: &Store) -> io::Result<Option<Spent>> {
    let Some(text) = store.read_state(FILE)? else { return Ok(None) };
    let saved: Saved =
        toml::from_str(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let ago = Moment::now().since(saved.began);
    Ok(Some(Spent { ago, time: Duration::from_millis(saved.spent_ms) }))
}

fn write(store: &Store, spent: Spent) -> io::Result<()> {
    let ago = u64::try_from(spent.ago.as_micros()).unwrap_or(u64::MAX);
    // The first of all moments stands for never, and is long over.
    let began = Moment::from_micros(Moment::now().as_micros().saturating_sub(ago).max(1));
    let began = began.expect("it is not 0");
    let spent_ms = u64::try_from(spent.time.as_millis()).unwrap_or(u64::MAX);
    store.replace_state(FILE, &toml::to_string(&Saved { began, spent_ms }).map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use walrelay_proto::ack::Lapse;

    use super::*;
    use crate::disk::OsDisk;
    use crate::store::{StoreConfig, WalWrite};

    fn opened(dir: &std::path::Path) -> Arc<Store> {
        let config = StoreConfig {
            data_dir: dir.to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 0,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        };
        Store::open_on(Arc::new(OsDisk), config).unwrap().store
    }

    #[tokio::test]
    async fn the_next_process_has_no_more_of_it() {
        let dir = crate::permissions::private_tempdir();
        let spent = Spent { ago: Duration::from_secs(3600), time: Duration::from_millis(40_500) };
        {
            let store = opened(dir.path());
            take_up(&store, &Rules::default());
            assert_eq!(store.consumers().acknowledgements().spent(), None);
            let stop = CancellationToken::new();
            let keeper = tokio::spawn(keep(store.clone(), stop.clone()));
            // Before it looks for the first time it is told to stop: it looks once more.
            tokio::task::yield_now().await;
            store.consumers().acknowledgements().spent_before(spent);
            stop.cancel();
            keeper.await.unwrap();
        }
        let store = opened(dir.path());
        take_up(&store, &Rules::default());
        let found = store.consumers().acknowledgements().spent().unwrap();
        assert_eq!(found.time, spent.time);
        let passed = found.ago.saturating_sub(spent.ago);
        assert!(found.ago >= spent.ago && passed < Duration::from_secs(60), "{found:?}");
        // What cannot be read is no reason to end.
        store.replace_state(FILE, "began = 1").unwrap();
        assert!(read(&store).is_err());
        take_up(&store, &Rules::default());
    }

    #[test]
    fn what_was_used_long_ago_or_of_no_budget_counts_no_more() {
        let budget = Budget { time: Duration::from_secs(60), per: Duration::from_secs(3600) };
        let rules = |budget| {
            let lapse = Lapse { timeout: Duration::ZERO, to: Rules::default().flush, budget };
            Rules { lapse: Some(lapse), ..Rules::default() }
        };
        let spent = |ago| Spent { ago: Duration::from_secs(ago), time: Duration::from_millis(1500) };
        assert_eq!(counted(spent(10), &Rules::default()), None);
        assert_eq!(counted(spent(10), &rules(None)), None);
        assert_eq!(counted(spent(3600), &rules(Some(budget))), None);
        assert_eq!(counted(spent(3599), &rules(Some(budget))), Some(budget));
    }

    #[test]
    fn what_is_used_during_the_stop_is_kept() {
        let dir = crate::permissions::private_tempdir();
        let spent = Spent { ago: Duration::ZERO, time: Duration::from_millis(7000) };
        {
            let store = opened(dir.path());
            keep_last(&store);
            store.consumers().acknowledgements().spent_before(spent);
            keep_last(&store);
        }
        let store = opened(dir.path());
        take_up(&store, &Rules::default());
        assert_eq!(store.consumers().acknowledgements().spent().unwrap().time, spent.time);
    }
}
