//! A client that makes and drops slots and remembers what it was told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, park_timeout};
use std::time::Duration;

use walrelay_proto::Lsn;

use crate::psql;
use crate::server::Server;

/// How many there are before it drops the oldest.
const SLOTS: usize = 3;
/// Between two orders: the commits are to have the disk for themselves now and then.
const PAUSE: Duration = Duration::from_millis(20);

/// Slots by name, with the position of each; a slot whose last order was not answered is not among them.
type Promised = BTreeMap<String, Option<Lsn>>;

/// What it was told, how many orders were answered, and the slot of an order that was not.
type Outcome = (Promised, usize, Option<String>);

/// Works until it is told to stop or an order fails.
#[derive(Debug)]
pub(crate) struct SlotWorker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Outcome>,
}

impl SlotWorker {
    /// Starts on a relay that has these slots. `round` makes the names its own.
    pub(crate) fn start(server: &Server, conninfo: &str, round: u64, promised: Promised) -> SlotWorker {
        let stop = Arc::new(AtomicBool::new(false));
        let (server, conninfo) = (server.clone(), format!("{conninfo} replication=1"));
        let told = stop.clone();
        let thread = std::thread::spawn(move || work(&server, &conninfo, round, promised, &told));
        SlotWorker { stop, thread }
    }

    /// What it was told in the end goes to `promised`; how many orders were answered, and the slot of one that was not.
    pub(crate) fn stop(self, promised: &mut Promised) -> (usize, Option<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let (told, answered, doubtful) = self.thread.join().expect("the thread does not panic");
        *promised = told;
        (answered, doubtful)
    }
}

fn work(server: &Server, conninfo: &str, round: u64, mut promised: Promised, stop: &AtomicBool) -> Outcome {
    let mut number = 0;
    loop {
        park_timeout(PAUSE);
        if stop.load(Ordering::Relaxed) {
            return (promised, number, None);
        }
        match promised.first_key_value() {
            Some((oldest, _)) if promised.len() >= SLOTS => {
                let oldest = oldest.clone();
                promised.remove(&oldest);
                let drop = format!("DROP_REPLICATION_SLOT {oldest}");
                if psql::run(server, conninfo, &[&drop]).is_err() {
                    return (promised, number, Some(oldest));
                }
            }
            _ => {
                // They sort by age.
                let name = format!("s_{round:06}_{number:06}");
                let Some(slot) = make(server, conninfo, &name) else { return (promised, number, Some(name)) };
                promised.insert(name, Some(slot));
            }
        }
        number += 1;
    }
}

/// Makes a slot that keeps WAL from now on; where it begins.
fn make(server: &Server, conninfo: &str, name: &str) -> Option<Lsn> {
    let create = format!("CREATE_REPLICATION_SLOT {name} PHYSICAL RESERVE_WAL");
    let read = format!("READ_REPLICATION_SLOT {name}");
    let rows = psql::run(server, conninfo, &[&create, &read]).ok()?;
    rows.lines().last()?.split('|').nth(1)?.parse().ok()
}
