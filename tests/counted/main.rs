//! What a message of WAL costs the relay, counted: memory allocated and system calls made for a fixed amount of work. Neither
//! depends on how fast or how busy the machine is, so here a change that makes the hot path longer fails.
//!
//! A relay's receiver, store and senders run in this process, between a primary that is played and one consumer. Whoever makes
//! the path shorter lowers the limits; whoever has to raise one says why.

#[path = "../../benches/common/mod.rs"]
mod common;
mod primary;
mod stage;
mod trace;

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use stage::Stage;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Small commits, each of which is received, synced, sent on and confirmed before the next one.
const COMMITS: usize = 1000;
/// Bulk: messages of 128 kB, as PostgreSQL sends when it has much.
const BULK: usize = 64 << 20;
const MESSAGES: f64 = (BULK / stage::MESSAGE) as f64;
/// What is done once, beside it (segments made ahead, syncs), or when a second has gone by, whatever the work.
const ALLOWANCE: f64 = 250.0;

/// Allocations are counted for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does the work between two marks; allocations and reallocations that it took.
fn allocations(work: impl FnOnce()) -> f64 {
    let region = Region::new(ALLOCATOR);
    trace::marked(work);
    let change = region.change();
    (change.allocations + change.reallocations) as f64
}

#[track_caller]
fn assert_at_most(counted: f64, units: f64, limit: f64, what: &str) {
    let each = counted / units;
    println!("{what}: {each:.2}, at most {limit}");
    assert!(counted <= limit * units + ALLOWANCE, "{what}: {each:.2}, and at most {limit} is allowed");
}

#[test]
fn allocations_of_commits() {
    let _alone = alone();
    let mut stage = Stage::set();
    let (first, commits) = (stage.generate_commits(COMMITS / 10), stage.generate_commits(COMMITS));
    stage.commit(&first);
    let counted = allocations(|| stage.commit(&commits));
    assert_at_most(counted, COMMITS as f64, 1.5, "allocations for each commit");
}

#[test]
fn allocations_of_bulk_received() {
    let _alone = alone();
    let mut stage = Stage::set();
    let wal = stage.generate(BULK);
    let counted = allocations(|| stage.receive(&wal));
    assert_at_most(counted, MESSAGES, 0.8, "allocations for each large message received");
}

#[test]
fn allocations_of_bulk_sent() {
    let _alone = alone();
    let mut stage = Stage::set();
    let wal = stage.generate(BULK);
    stage.receive(&wal);
    let counted = allocations(|| stage.send());
    assert_at_most(counted, MESSAGES, 0.3, "allocations for each large message sent");
}

#[test]
fn system_calls_of_commits() {
    let _alone = alone();
    let calls = trace::of("allocations_of_commits");
    assert_at_most(calls.total(), COMMITS as f64, 15.0, &format!("system calls for each commit, {calls}"));
}

#[test]
fn system_calls_of_bulk_received() {
    let _alone = alone();
    let calls = trace::of("allocations_of_bulk_received").of_work();
    let what = format!("system calls for each large message received, {calls}");
    assert_at_most(calls.total(), MESSAGES, 4.5, &what);
}

#[test]
fn system_calls_of_bulk_sent() {
    let _alone = alone();
    let calls = trace::of("allocations_of_bulk_sent").of_work();
    // Four messages go with one call where they are copied from the map; where they are not, a header and its pages take two.
    let what = format!("system calls for each large message sent, {calls}");
    assert_at_most(calls.total(), MESSAGES, 3.0, &what);
}
