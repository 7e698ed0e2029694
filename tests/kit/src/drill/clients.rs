//! Clients that remember every commit that was acknowledged to them, whatever happens to their server.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, park_timeout};
use std::time::Duration;

use walrelay_proto::Lsn;

use crate::cluster::Cluster;
use crate::psql::{self, Session};
use crate::server::Server;
use crate::wait::{PATIENCE, within};
use crate::writer::Ack;

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// Each commits one row after the other into table `acked`, and goes on with the next one when it does not get to know
/// what became of one.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    server: Server,
    conninfo: Mutex<String>,
    /// Of each client.
    levels: Vec<&'static str>,
    /// Between two commits of those that wait for nobody.
    pause: Duration,
    acks: Vec<Mutex<Vec<Ack>>>,
    acknowledged: AtomicUsize,
    stop: AtomicBool,
}

impl Clients {
    /// Makes the table and starts `number` clients with this `synchronous_commit`.
    pub fn start(primary: &Cluster, number: usize, synchronous_commit: &'static str) -> Clients {
        Clients::all(primary, vec![synchronous_commit; number], Duration::ZERO)
    }

    /// Makes the table and starts a client with each of these `synchronous_commit`. Those that wait for nobody do not run away
    /// from the others.
    pub fn with_levels(primary: &Cluster, levels: &[&'static str]) -> Clients {
        Clients::all(primary, levels.to_vec(), PAUSE / 5)
    }

    fn all(primary: &Cluster, levels: Vec<&'static str>, pause: Duration) -> Clients {
        Clients::of(primary.server(), &primary.local_conninfo(), levels, pause)
    }

    /// Makes the table and starts `number` clients, which wait for whom the server does, where this leads to.
    pub fn at(server: &Server, conninfo: &str, number: usize) -> Clients {
        Clients::of(server, conninfo, vec!["on"; number], Duration::ZERO)
    }

    /// Like [`Clients::with_levels`], where this leads to.
    pub fn at_with_levels(server: &Server, conninfo: &str, levels: &[&'static str]) -> Clients {
        Clients::of(server, conninfo, levels.to_vec(), PAUSE / 5)
    }

    fn of(server: &Server, conninfo: &str, levels: Vec<&'static str>, pause: Duration) -> Clients {
        let table = "create table acked (client int, id bigint, primary key (client, id))";
        let made = psql::run(server, conninfo, &["set synchronous_commit = local", table]);
        made.unwrap_or_else(|error| panic!("{table}: {error}"));
        let shared = Arc::new(Shared {
            server: server.clone(),
            conninfo: Mutex::new(conninfo.to_owned()),
            acks: (0..levels.len()).map(|_| Mutex::default()).collect(),
            acknowledged: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            levels,
            pause,
        });
        let number = shared.levels.len();
        let start = |client| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.commit(client))
        };
        Clients { threads: (0..number).map(start).collect(), shared }
    }

    /// Another server from the next connection on.
    pub fn go_to(&self, primary: &Cluster) {
        *self.shared.conninfo.lock().expect("nobody panics while holding the lock") =
            primary.local_conninfo();
    }

    /// How many commits were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits for `more` further ones; false if they do not come within [`PATIENCE`].
    pub fn get_more(&self, more: usize) -> bool {
        let wanted = self.acknowledged() + more;
        within(PATIENCE * 2, || (self.acknowledged() >= wanted).then_some(())).is_some()
    }

    /// Waits for `more` further ones of the first `clients`; false if they do not come within [`PATIENCE`].
    pub fn get_more_of(&self, clients: usize, more: usize) -> bool {
        let count = || self.marks()[..clients].iter().sum::<usize>();
        let wanted = count() + more;
        within(PATIENCE * 2, || (count() >= wanted).then_some(())).is_some()
    }

    /// The last acknowledged commit, by its position.
    pub fn last(&self) -> Lsn {
        let last = |acks: &Mutex<Vec<Ack>>| locked(acks).last().map(|ack| ack.before_commit);
        self.shared.acks.iter().filter_map(last).max().unwrap_or(Lsn::INVALID)
    }

    /// What was acknowledged, from these on: a mark for each client.
    pub fn marks(&self) -> Vec<usize> {
        self.shared.acks.iter().map(|acks| locked(acks).len()).collect()
    }

    /// Those acknowledged from one set of marks to another that this server does not have, as `client|id`.
    ///
    /// # Panics
    /// When it cannot be asked.
    #[track_caller]
    pub fn missing_on(&self, cluster: &Cluster, from: &[usize], to: &[usize]) -> Vec<String> {
        self.missing_at(&cluster.local_conninfo(), from, to)
    }

    /// The same for the server where this leads to.
    ///
    /// # Panics
    /// When it cannot be asked.
    #[track_caller]
    pub fn missing_at(&self, conninfo: &str, from: &[usize], to: &[usize]) -> Vec<String> {
        let mut asked: Vec<(usize, u64)> = Vec::new();
        for (client, (from, to)) in from.iter().zip(to).enumerate() {
            let acks = locked(&self.shared.acks[client]);
            asked.extend(acks[*from..*to].iter().map(|ack| (client, ack.id)));
        }
        let first = asked.iter().map(|(_, id)| *id).min().unwrap_or_default();
        let sql = format!("select client, id from acked where id >= {first}");
        let rows = psql::run(&self.shared.server, conninfo, &[&sql]);
        let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let there: HashSet<&str> = rows.lines().collect();
        let name = |(client, id): &(usize, u64)| format!("{client}|{id}");
        asked.iter().map(name).filter(|name| !there.contains(name.as_str())).collect()
    }

    /// No further commits; waits for those under way.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client does not panic");
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // Not joined: a commit may be waiting for a relay that never comes.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn locked(acks: &Mutex<Vec<Ack>>) -> std::sync::MutexGuard<'_, Vec<Ack>> {
    acks.lock().expect("nobody panics while holding the lock")
}

impl Shared {
    fn commit(&self, client: usize) {
        let mut id = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let conninfo = self.conninfo.lock().expect("nobody panics while holding the lock").clone();
            let mut session = Session::open(&self.server, &conninfo);
            if session.run(&format!("set synchronous_commit = {}", self.levels[client])).is_ok() {
                self.commit_on(&mut session, client, &mut id);
            }
            park_timeout(PAUSE);
        }
    }

    /// Until something fails.
    fn commit_on(&self, session: &mut Session, client: usize, id: &mut u64) {
        while !self.stop.load(Ordering::Relaxed) {
            *id += 1;
            // The message's position is the lower bound; both are in one transaction.
            let sql = format!(
                "with row as (insert into acked values ({client}, {id})) \
                 select pg_logical_emit_message(true, 'acked', '{id}')"
            );
            let Some(before_commit) = session.run(&sql).ok().and_then(|row| row.parse().ok()) else { return };
            locked(&self.acks[client]).push(Ack { id: *id, before_commit });
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
            if matches!(self.levels[client], "local" | "off") {
                park_timeout(self.pause);
            }
        }
    }
}
