//! A client that remembers every commit the primary acknowledged to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use walrelay_proto::Lsn;

use crate::cluster::Cluster;
use crate::psql::Session;
use crate::wait::wait_until;

/// An acknowledged commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The row in table `acked`.
    pub id: u64,
    /// The commit record starts here or later.
    pub before_commit: Lsn,
}

/// Commits one row after the other into table `acked`, waiting for each.
#[derive(Debug)]
pub struct Writer {
    acks: Arc<Mutex<Vec<Ack>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Creates the table and starts writing; ends when the primary goes away, too.
    pub fn start(primary: &Cluster) -> Writer {
        primary.sql("set synchronous_commit = local; create table acked (id bigint primary key)");
        let (acks, stop) = (Arc::default(), Arc::default());
        let (session, shared) = (primary.session(), (Arc::clone(&acks), Arc::clone(&stop)));
        let thread = std::thread::spawn(move || write(session, &shared.0, &shared.1));
        Writer { acks, stop, thread: Some(thread) }
    }

    /// What was acknowledged so far, in order; ids count from 1 without gaps.
    pub fn acks(&self) -> Vec<Ack> {
        self.acks.lock().expect("the writing thread does not panic while it holds the lock").clone()
    }

    /// Waits until `more` further commits are acknowledged.
    #[track_caller]
    pub fn wait_for_more(&self, more: usize) {
        let wanted = self.acks().len() + more;
        wait_until(format_args!("{more} more acknowledged commits"), || self.acks().len() >= wanted);
    }

    /// Waits for the commit under way and ends. All that was acknowledged.
    #[track_caller]
    pub fn stop(mut self) -> Vec<Ack> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("only this takes it").join();
        ended.expect("the writing thread does not panic");
        self.acks()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Not joined: its commit may be waiting for a relay that never comes.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write(mut session: Session, acks: &Mutex<Vec<Ack>>, stop: &AtomicBool) {
    if session.run("set synchronous_commit = on").is_err() {
        return;
    }
    for id in 1.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // The message's position is the lower bound; both are in one transaction.
        let sql = format!(
            "with row as (insert into acked values ({id})) select pg_logical_emit_message(true, 'acked', '{id}')"
        );
        let Some(before_commit) = session.run(&sql).ok().and_then(|row| row.parse().ok()) else { return };
        acks.lock().expect("nobody panics while holding the lock").push(Ack { id, before_commit });
    }
}
